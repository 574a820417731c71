// limpid: tests of the digits of distance scores: what lies far apart is no worse than the formula written down.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::nlm;

/// nlm and its gradients written down in T for arrays in S, by pair.
template <class T, class S>
struct Formula {
  Mat<T> out, lse, dq, dk, dv, dpq, dpk, dh = Mat<T>::Zero(1, 1), dhs = dh;
  Mat<T> sizes = Mat<T>::Zero(1, 2);  // of what the bandwidth gradients sum

  Formula(const Mat<S>& q, const Mat<S>& k, const Mat<S>& v, S h, const Mat<S>& pq, const Mat<S>& pk, S hs,
          const Mat<S>& g, bool causal) {
    const Index n = q.rows(), m = k.rows();
    const T c = 1 / (T(h) * T(h)), cs = 1 / (T(hs) * T(hs)), none = -std::numeric_limits<T>::infinity();
    out.setZero(n, v.cols()), lse.setZero(n, 1), dq.setZero(n, q.cols()), dk.setZero(m, q.cols());
    dv.setZero(m, v.cols()), dpq.setZero(n, pq.cols()), dpk.setZero(m, pq.cols());
    Mat<T> a(1, m), far(1, m), apart(1, m);
    const auto squared = [](const Mat<S>& x, Index i, const Mat<S>& y, Index j) {
      T sum = 0;
      for (Index e = 0; e < x.cols(); ++e) sum += (T(x(i, e)) - T(y(j, e))) * (T(x(i, e)) - T(y(j, e)));
      return sum;
    };
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < m; ++j) {
        far(j) = squared(q, i, k, j), apart(j) = squared(pq, i, pk, j);
        a(j) = causal && j > i + m - n ? none : -far(j) * c - apart(j) * cs;
      }
      const T top = a.maxCoeff();
      T total = 0, delta = 0;
      for (Index j = 0; j < m; ++j) total += a(j) = std::exp(a(j) - top);
      lse(i, 0) = top + std::log(total);
      for (Index j = 0; j < m; ++j) {
        a(j) /= total;
        for (Index e = 0; e < v.cols(); ++e) out(i, e) += a(j) * T(v(j, e)), dv(j, e) += a(j) * T(g(i, e));
      }
      for (Index e = 0; e < v.cols(); ++e) delta += T(g(i, e)) * out(i, e);
      for (Index j = 0; j < m; ++j) {
        T da = 0;
        for (Index e = 0; e < v.cols(); ++e) da += T(g(i, e)) * T(v(j, e));
        const T ds = a(j) * (da - delta);
        if (ds == 0) continue;
        const auto pull = [&](const Mat<S>& x, const Mat<S>& y, T weight, Mat<T>& dx, Mat<T>& dy) {
          for (Index e = 0; e < x.cols(); ++e) {
            const T one = 2 * weight * ds * (T(y(j, e)) - T(x(i, e)));
            dx(i, e) += one, dy(j, e) -= one;
          }
        };
        pull(q, k, c, dq, dk), pull(pq, pk, cs, dpq, dpk);
        dh(0) += 2 * c / T(h) * ds * far(j), dhs(0) += 2 * cs / T(hs) * ds * apart(j);
        sizes(0) += std::abs(2 * c / T(h) * ds * far(j)), sizes(1) += std::abs(2 * cs / T(hs) * ds * apart(j));
      }
    }
  }
};

template <class S>
struct Case {
  Mat<S> q, k, v, pq, pk;
  S h = S(1), hs = S(1);
};

/// The error of ours over that of the formula in S plus units of rounding: of everything, the largest.
template <class S, class Op>
double worst(const Op& op, const Case<S>& p, bool causal = false) {
  suite::Random random(11);
  const Mat<S> g = suite::random_matrix<S>(random, p.q.rows(), p.v.cols());
  const Formula<long double, S> right(p.q, p.k, p.v, p.h, p.pq, p.pk, p.hs, g, causal);
  const Formula<S, S> plain(p.q, p.k, p.v, p.h, p.pq, p.pk, p.hs, g, causal);
  const Index n = p.q.rows();
  const Mat<S> h = Mat<S>::Constant(1, 1, p.h), hs = Mat<S>::Constant(1, 1, p.hs);
  const bool placed = p.pq.cols() > 0;
  limpid::Inputs<Op, S> in{.q = p.q, .k = p.k, .v = p.v, .h = h};
  if (placed) in.pq = p.pq, in.pk = p.pk, in.h_space = hs;
  Mat<S> out(n, p.v.cols()), lse(n, 1), dq = p.q, dk = p.k, dv = p.v, dpq = p.pq, dpk = p.pk, dh = h, dhs = hs;
  limpid::Saved<Op, S> saved;
  limpid::Call<Op, S> call;
  call.saved = &saved, call.lse = &lse;
  limpid::forward(op, in, out, call);
  typename Op::template Args<limpid::MutView<S>> grads{.q = dq, .k = dk, .v = dv, .h = dh};
  if (placed) grads.pq = dpq, grads.pk = dpk, grads.h_space = dhs;
  limpid::backward(op, in, saved, g, grads);
  double found = 0;
  const auto look = [&](const Mat<S>& ours, const Mat<S>& naive, const Mat<long double>& truth, double units,
                        long double size = 0) {
    long double a = 0, b = 0;
    REQUIRE(ours.size() == truth.size());
    for (Index i = 0; i < truth.size(); ++i) {
      a = std::max(a, std::abs(ours.data()[i] - truth.data()[i]));
      b = std::max(b, std::abs(naive.data()[i] - truth.data()[i]));
      size = std::max(size, std::abs(truth.data()[i]));
    }
    REQUIRE(std::isfinite(double(a)));
    const double ratio = double(a / (b + units * std::numeric_limits<S>::epsilon() * size));
    found = std::max(found, ratio);
  };
  look(out, plain.out, right.out, 0.5), look(lse, plain.lse, right.lse, 0.5), look(dv, plain.dv, right.dv, 0.5);
  look(dq, plain.dq, right.dq, 0.5), look(dk, plain.dk, right.dk, 0.5);
  look(dh, plain.dh, right.dh, 4, right.sizes(0));
  if (placed) {
    look(dpq, plain.dpq, right.dpq, 0.5), look(dpk, plain.dpk, right.dpk, 0.5);
    look(dhs, plain.dhs, right.dhs, 4, right.sizes(1));
  }
  return found;
}

/// Rows in clusters of a width of h, which lie `extent` h apart and come in any order.
template <class S>
Case<S> clusters(Index d, double extent, Index count, bool placed) {
  suite::Random random(static_cast<std::uint64_t>(d * 100 + count));
  const auto normal = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  const double h = 0.7, root = std::sqrt(double(d));
  const Mat<double> centres = normal(count, d) * (extent * h / root);
  const auto rows = [&](Index n, Index step) {
    Mat<double> x = normal(n, d) * (h / root);
    for (Index i = 0; i < n; ++i) x.row(i) += centres.row(i * step % count);
    return Mat<S>(x.template cast<S>());
  };
  Case<S> p{rows(37, 5), rows(70, 3), suite::random_matrix<S>(random, 70, 5), Mat<S>(37, 0), Mat<S>(70, 0)};
  if (placed) p.pq = suite::random_matrix<S>(random, 37, 2), p.pk = suite::random_matrix<S>(random, 70, 2);
  p.h = S(h);
  return p;
}

template <class S>
Case<S> line(Index n, double h_space) {
  suite::Random random(3);
  const auto normal = [&](Index cols) { return suite::random_matrix<S>(random, n, cols); };
  Case<S> p{normal(4), normal(4), normal(3), Mat<S>(n, 1), Mat<S>(n, 1)};
  for (Index i = 0; i < n; ++i) p.pq(i, 0) = p.pk(i, 0) = S(double(i));
  p.h = S(2), p.hs = S(h_space);
  return p;
}

}  // namespace

TEMPLATE_TEST_CASE("clusters far apart keep the digits of the formula, forward, lse and all gradients", "", float,
                   double) {
  for (Index d : {1, 2, 3, 49, 64})
    for (double extent : {1.0, 3.0, 10.0, 1e3, 1e5})
      for (Index count : {2, 7}) {
        INFO("width " << d << ", extent " << extent << ", clusters " << count);
        CHECK(worst<TestType>(nlm(), clusters<TestType>(d, extent, count, false)) < 5);
        if (d == 2 || d == 49) {
          CHECK(worst<TestType>(nlm(), clusters<TestType>(d, extent, count, true)) < 5);
          CHECK(worst<TestType>(nlm(limpid::causal()), clusters<TestType>(d, extent, count, false), true) < 5);
        }
      }
}

TEMPLATE_TEST_CASE("positions along a line and over an image keep the digits of the formula", "", float, double) {
  for (Index n : {28, 200}) CHECK(worst<TestType>(nlm(), line<TestType>(n, 1)) < 5);
  Case<TestType> image = line<TestType>(196, 1.5);
  image.pq.resize(196, 2);
  for (Index i = 0; i < 196; ++i) image.pq(i, 0) = TestType(9 * (i / 14)), image.pq(i, 1) = TestType(9 * (i % 14));
  image.pk = image.pq;
  CHECK(worst<TestType>(nlm(), image) < 5);
}

TEST_CASE("patches of 16 bits keep the digits of the formula, and the nearest of far keys is found") {
  suite::Random random(5);
  Case<float> p;
  Mat<double> levels = suite::random_matrix<double>(random, 120, 1),
              noise = suite::random_matrix<double>(random, 120, 49);
  p.q.resize(120, 49);
  for (Index i = 0; i < 120; ++i)
    for (Index c = 0; c < 49; ++c)
      p.q(i, c) = float(std::floor(std::clamp(32768 + 20000 * levels(i, 0) + 30 * noise(i, c), 0.0, 65535.0)));
  p.k = p.q, p.v = suite::random_matrix<float>(random, 120, 3), p.pq.resize(120, 0), p.pk.resize(120, 0), p.h = 400;
  CHECK(worst<float>(nlm(), p) < 5);
  for (float x : {1000.0F, 3000.0F, 6000.0F, 1e5F}) {
    Mat<float> q(1, 1), k(5, 1), v(5, 1), h = Mat<float>::Constant(1, 1, 1);
    q << x, k << 0, 0, 0, x, x + 1, v << 0, 0, 0, 1, 2;
    const auto op = nlm();
    const Mat<float> out =
        limpid::forward(op, limpid::Inputs<std::remove_const_t<decltype(op)>, float>{.q = q, .k = k, .v = v, .h = h});
    CHECK(out(0, 0) == Approx(1.268941).epsilon(1e-6));
  }
}

TEST_CASE("a key that is not finite and kept by no query changes no bit of far clusters, in any sweep") {
  const Case<float> p = clusters<float>(49, 100, 2, false);
  const auto op = nlm(limpid::mask([](limpid::At a) { return a.k != 3; }));
  using Op = std::remove_const_t<decltype(op)>;
  const Mat<float> h = Mat<float>::Constant(1, 1, p.h);
  const auto run = [&](const Mat<float>& k) {
    return Mat<float>(limpid::forward(op, limpid::Inputs<Op, float>{.q = p.q, .k = k, .v = p.v, .h = h}));
  };
  Mat<float> k = p.k;
  const Mat<float> before = run(k);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30F}) {
    k.row(3).setConstant(bad);
    CHECK(run(k) == before);
  }
}

TEST_CASE("the map of far clusters, made again from what was kept, has rows that sum to 1") {
  const Case<float> p = clusters<float>(49, 1e4, 7, true);
  const auto op = nlm();
  using Op = std::remove_const_t<decltype(op)>;
  const Mat<float> h = Mat<float>::Constant(1, 1, p.h), hs = Mat<float>::Constant(1, 1, p.hs);
  Mat<float> out(37, 5), map;
  limpid::Call<Op, float> call;
  call.map = &map;
  limpid::forward(
      op, limpid::Inputs<Op, float>{.q = p.q, .k = p.k, .v = p.v, .h = h, .pq = p.pq, .pk = p.pk, .h_space = hs}, out,
      call);
  for (Index i = 0; i < 37; ++i) CHECK(std::abs(map.row(i).sum() - 1) < 8 * std::numeric_limits<float>::epsilon());
  CHECK((map * p.v - out).cwiseAbs().maxCoeff() < 1e-5F);
}

TEST_CASE("a score function sees the score of far clusters, and gradients do not change by a far common shift") {
  const auto half = [](auto s, limpid::At) { return s / 2; };
  const auto slope = [](auto s, limpid::At) { return decltype(s)(0.5); };
  Case<double> p = clusters<double>(3, 1e4, 2, true);
  const auto op = nlm(limpid::score_mod(half, slope));
  using Op = std::remove_const_t<decltype(op)>;
  // halves of scores are scores at sqrt(2) the bandwidth
  const Mat<double> h = Mat<double>::Constant(1, 1, p.h), hs = Mat<double>::Constant(1, 1, p.hs);
  const Mat<double> wide = h * std::sqrt(2.0), wide_s = hs * std::sqrt(2.0);
  Mat<double> dq[2], dp[2];
  suite::Random random(4);
  const Mat<double> g = suite::random_matrix<double>(random, 37, 5);
  const auto run = [&](const auto& one, const Mat<double>& b, const Mat<double>& bs, int t) {
    using One = std::remove_cvref_t<decltype(one)>;
    const limpid::Inputs<One, double> in{.q = p.q, .k = p.k, .v = p.v, .h = b, .pq = p.pq, .pk = p.pk, .h_space = bs};
    Mat<double> out(37, 5), dk = p.k, dv = p.v;
    dq[t] = p.q, dp[t] = p.pq;
    limpid::Saved<One, double> saved;
    limpid::Call<One, double> call;
    call.saved = &saved;
    limpid::forward(one, in, out, call);
    limpid::backward(one, in, saved, g,
                     typename One::template Args<limpid::MutView<double>>{.q = dq[t], .k = dk, .v = dv, .pq = dp[t]});
    return out;
  };
  const Mat<double> a = run(op, h, hs, 0), b = run(nlm(), wide, wide_s, 1);
  CHECK((a - b).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((dq[0] - dq[1]).cwiseAbs().maxCoeff() < 1e-12);
  CHECK((dp[0] - dp[1]).cwiseAbs().maxCoeff() < 1e-12);
  static_assert(sizeof(Op) > 0);
}
