// limpid: tests of sigmoid attention, against the formula written down and at its ends.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/limpid.hpp>
#include <tuple>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::sigmoid;
using suite::distance;
using Real = long double;

template <class S>
struct Problem {
  Mat<S> q, k, v, dout;
  Problem(Index n, Index m, Index d, Index dv, double logits = 1.5) {
    suite::Random random(static_cast<std::uint64_t>(n * 100 + m));
    q = suite::random_matrix<S>(random, n, d, -logits, logits), k = suite::random_matrix<S>(random, m, d);
    v = suite::random_matrix<S>(random, m, dv), dout = suite::random_matrix<S>(random, n, dv);
  }
};

template <class T>
struct Results {
  Mat<T> out, dq, dk, dv;
};

template <class S, class Op>
Results<S> run(const Op& op, const Problem<S>& p) {
  Results<S> r;
  r.out.resize(p.dout.rows(), p.dout.cols()), r.dq.resize(p.q.rows(), p.q.cols());
  r.dk.resize(p.k.rows(), p.k.cols()), r.dv.resize(p.v.rows(), p.v.cols());
  limpid::Saved<Op, S> saved;
  limpid::forward(op, qkv(p.q, p.k, p.v), r.out, {.saved = &saved});
  limpid::backward(op, qkv(p.q, p.k, p.v), saved, p.dout, limpid::grads(r.dq, r.dk, r.dv));
  return r;
}

/// A = sigmoid(scale q k^T + b), where keeps(i, j); the arithmetic is T's.
template <class T, class S, class Keeps>
Results<T> written_down(const Problem<S>& p, T scale, T bias, const Keeps& keeps) {
  Results<T> r;
  r.out = Mat<T>::Zero(p.dout.rows(), p.dout.cols()), r.dq = Mat<T>::Zero(p.q.rows(), p.q.cols());
  r.dk = Mat<T>::Zero(p.k.rows(), p.k.cols()), r.dv = Mat<T>::Zero(p.v.rows(), p.v.cols());
  for (Index i = 0; i < p.q.rows(); ++i)
    for (Index j = 0; j < p.k.rows(); ++j) {
      if (!keeps(i, j)) continue;
      T s(0), da(0);
      for (Index c = 0; c < p.q.cols(); ++c) s += T(p.q(i, c)) * T(p.k(j, c));
      for (Index c = 0; c < p.v.cols(); ++c) da += T(p.dout(i, c)) * T(p.v(j, c));
      const T x = scale * s + bias, e = std::exp(-std::abs(x)), w = (x < 0 ? e : T(1)) / (1 + e), ds = w * (1 - w) * da;
      for (Index c = 0; c < p.v.cols(); ++c) {
        r.out(i, c) += w * T(p.v(j, c));
        r.dv(j, c) += w * T(p.dout(i, c));
      }
      for (Index c = 0; c < p.q.cols(); ++c) {
        r.dq(i, c) += scale * ds * T(p.k(j, c));
        r.dk(j, c) += scale * ds * T(p.q(i, c));
      }
    }
  return r;
}
const auto all = [](Index, Index) { return true; };

template <class S, class T>
double apart(const Results<S>& a, const Results<T>& b) {
  const auto of = [](const auto& x, const auto& y) {
    return double((x.template cast<Real>() - y.template cast<Real>()).cwiseAbs().maxCoeff() /
                  y.template cast<Real>().cwiseAbs().maxCoeff());
  };
  return std::max({of(a.out, b.out), of(a.dq, b.dq), of(a.dk, b.dk), of(a.dv, b.dv)});
}

}  // namespace

TEST_CASE("Sigmoid attention and its gradients are those of the formula, bias -log m unless told otherwise.") {
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{1, 1}, {7, 40}, {40, 7}, {130, 257}}) {
    const Problem<double> p(n, m, 8, 5);
    const Real scale = 1 / std::sqrt(Real(8));
    CHECK(apart(run(sigmoid(), p), written_down<Real>(p, scale, -std::log(Real(m)), all)) < 1e-13);
    CHECK(apart(run(sigmoid({.scale = 0.7, .bias = 0.25}), p), written_down<Real>(p, Real(0.7), Real(0.25), all)) <
          1e-13);
    const auto seen = [n = n, m = m](Index i, Index j) { return j - i <= m - n; };
    if (m >= n)
      CHECK(apart(run(sigmoid(limpid::causal()), p), written_down<Real>(p, scale, -std::log(Real(m)), seen)) < 1e-13);
  }
}

TEST_CASE("In float sigmoid attention is within 2 x the plain float formula's error.") {
  double ours = 0, naive = 0;
  for (const Index n : {Index(33), Index(64), Index(200)}) {
    const Problem<float> p(n, n, 16, 16, 6);
    const Real scale = Real(0.25), bias = -std::log(Real(n));
    const auto exact = written_down<Real>(p, scale, bias, all);
    ours = std::max(ours, apart(run(sigmoid(), p), exact));
    naive = std::max(naive, apart(written_down<float>(p, float(scale), float(bias), all), exact));
  }
  INFO(ours << " against " << naive);
  CHECK(ours <= 2 * naive);
}

TEST_CASE("Weights of large logits are 0 and 1, and pass no gradient to them.") {
  Problem<float> p(9, 33, 4, 3);
  p.q *= 1e6F;
  const auto r = run(sigmoid(), p);
  CHECK(r.out.allFinite());
  CHECK(r.dq.isZero(0));
  CHECK(r.dk.isZero(0));
  for (Index i = 0; i < 9; ++i) {
    Mat<float> sum = Mat<float>::Zero(1, 3);
    for (Index j = 0; j < 33; ++j)
      if (p.q.row(i).dot(p.k.row(j)) > 0) sum += p.v.row(j);
    CHECK((sum - r.out.row(i)).cwiseAbs().maxCoeff() < 1e-5F);
  }
}

TEST_CASE("A row's other keys do not matter to a weight; biases, positions and score functions come before it.") {
  const Problem<double> p(6, 20, 8, 5);
  Mat<double> map, part, slopes = Mat<double>::Constant(1, 1, 0.5), out(6, 5);
  const auto op = sigmoid({.bias = -1});
  limpid::forward(op, qkv(p.q, p.k, p.v), out, {.map = &map});
  limpid::forward(op, qkv(p.q, p.k.topRows(3), p.v.topRows(3)), out, {.map = &part});
  CHECK(Mat<double>(map.leftCols(3)) == part);

  // alibi counts amounts from the last query: a sigmoid must not lose what is the same for a whole row
  limpid::forward(sigmoid(limpid::alibi(slopes), {.bias = -1}), qkv(p.q, p.k, p.v), out, {.map = &map});
  const auto by_hand = limpid::additive([](const limpid::At& a) { return -0.5 * double(a.position() - a.k); });
  Mat<double> wanted(6, 5);
  limpid::forward(sigmoid(by_hand, {.bias = -1}), qkv(p.q, p.k, p.v), wanted, {.map = &part});
  CHECK(distance(out, wanted) < 1e-14);
  CHECK(distance(map, part) < 1e-14);

  // nor what tables have in common: far amounts are amounts here
  const Mat<double> far = Mat<double>::Constant(1, 20, -2000);
  limpid::forward(sigmoid(limpid::key_bias(far)), qkv(p.q, p.k, p.v), out, {.map = &map});
  CHECK(map.isZero(0));
}

TEST_CASE("Sigmoid attention has no log-sum-exp, and says so; its bias must be a number.") {
  const Problem<double> p(3, 4, 2, 2);
  Mat<double> out(3, 2), lse;
  CHECK_THROWS_WITH(limpid::forward(sigmoid(), qkv(p.q, p.k, p.v), out, {.lse = &lse}),
                    "sigmoid: lse is asked for, but its weights are not divided by a row's sum");
  CHECK_THROWS_WITH(
      limpid::forward(sigmoid({.bias = std::numeric_limits<double>::infinity()}), qkv(p.q, p.k, p.v), out),
      "sigmoid: bias is inf, wanted a finite number");
  const Mat<double> none_k(0, 2), none_v(0, 2);
  out.setConstant(7);
  limpid::forward(sigmoid(), qkv(p.q, none_k, none_v), out);
  CHECK(out.isZero(0));
}

TEST_CASE("Masks made of masks, types of an inner namespace, reach every operator by its plain name.") {
  const auto pad = limpid::mask([](const limpid::At& a) { return a.k != 3; });
  const auto both = limpid::causal() & pad;
  using namespace limpid;
  Problem<double> p(5, 5, 4, 3);
  const auto wanted = run(limpid::sigmoid(chain(causal(), pad)), p), found = run(sigmoid(both), p);
  CHECK(distance(found.out, wanted.out) == 0);
  CHECK(distance(found.dq, wanted.dq) == 0);
  static_cast<void>(std::tuple(softmax(both), twicing(both), nlm(both), bilateral(both), boosting(both),
                               differential(both), differential_gated(both), pid(both)));
}
