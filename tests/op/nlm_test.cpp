// limpid: tests of non-local means attention.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/linear_algebra.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::nlm, limpid::qkv;
using suite::distance;
using M = Mat<double>;

struct Problem {
  M q, k, v;
  Problem(Index n, Index m, Index d, Index dv) {
    suite::Random random(static_cast<std::uint64_t>(n * 100 + m));
    q = suite::random_matrix<double>(random, n, d), k = suite::random_matrix<double>(random, m, d);
    v = suite::random_matrix<double>(random, m, dv);
  }
};

M number(double x) { return M::Constant(1, 1, x); }

template <class Op>
M filtered(const Op& op, const M& q, const M& k, const M& v, const M& h) {
  return limpid::forward(op, limpid::Inputs<Op, double>{.q = q, .k = k, .v = v, .h = h});
}

/// The formula: f of -|q_i - k_j|^2 / h^2, softmax of rows, times v.
template <class F>
M written_down(const M& q, const M& k, const M& v, double h, F&& f) {
  M out = M::Zero(q.rows(), v.cols());
  for (Index i = 0; i < q.rows(); ++i) {
    double sum = 0;
    for (Index j = 0; j < k.rows(); ++j) {
      const double weight = std::exp(f(-(q.row(i) - k.row(j)).squaredNorm() / (h * h)));
      sum += weight;
      out.row(i) += weight * v.row(j);
    }
    out.row(i) /= sum;
  }
  return out;
}

}  // namespace

TEST_CASE("with keys of one length nlm is plain attention of scale 2 / h^2") {
  Problem p(7, 12, 5, 3);
  p.k.rowwise().normalize();
  const double h = 0.7;
  CHECK(distance(filtered(nlm(), p.q, p.k, p.v, number(h)),
                 limpid::forward(limpid::softmax({.scale = 2 / (h * h)}), qkv(p.q, p.k, p.v))) < 1e-14);
  // and the default bandwidth gives plain attention's own scale
  CHECK(distance(limpid::forward(nlm(), qkv(p.q, p.k, p.v)), limpid::forward(limpid::softmax(), qkv(p.q, p.k, p.v))) <
        1e-14);
}

TEST_CASE(
    "one vector added to every query and key changes nothing, nor does one factor for queries, keys and bandwidth") {
  const Problem p(6, 9, 4, 3);
  const M by = M::Constant(1, 4, 3.25), before = filtered(nlm(limpid::causal()), p.q, p.k, p.v, number(0.8));
  const M q = p.q + by.replicate(6, 1), k = p.k + by.replicate(9, 1);
  CHECK(distance(filtered(nlm(limpid::causal()), q, k, p.v, number(0.8)), before) < 1e-13);
  const M q3 = 3 * p.q, k3 = 3 * p.k;
  CHECK(distance(filtered(nlm(limpid::causal()), q3, k3, p.v, number(2.4)), before) < 1e-14);
}

TEST_CASE("a wide bandwidth gives the mean of the visible values, a narrow one the value of the nearest key") {
  const Problem p(8, 8, 3, 2);
  for (double h : {1e9, std::numeric_limits<double>::infinity()}) {
    const M wide = filtered(nlm(limpid::causal()), p.q, p.k, p.v, number(h));
    for (Index i = 0; i < 8; ++i) CHECK(distance(wide.row(i), p.v.topRows(i + 1).colwise().mean()) < 1e-14);
  }
  const M narrow = filtered(nlm(), p.q, p.k, p.v, number(1e-3));
  for (Index i = 0; i < 8; ++i) {
    Index nearest = 0;
    (p.k.rowwise() - p.q.row(i)).rowwise().squaredNorm().minCoeff(&nearest);
    CHECK(distance(narrow.row(i), p.v.row(nearest)) < 1e-14);
  }
  CHECK(distance(filtered(nlm(), p.k, p.k, p.v, number(1e-3)), p.v) < 1e-14);
}

TEST_CASE("with keys equal to queries the eigenvalues of the map are real and lie in [0, 1]") {
  const Problem p(14, 14, 2, 1);
  M out(14, 1), map;
  const auto op = nlm();
  using Op = std::remove_const_t<decltype(op)>;
  limpid::forward(op, qkv(p.q, p.q, p.v), out, limpid::Call<Op, double>{.map = &map});
  double largest = 0;
  for (const std::complex<double>& value : suite::eigenvalues(map)) {
    CHECK(std::abs(value.imag()) < 1e-9);
    CHECK(value.real() > -1e-12);
    largest = std::max(largest, value.real());
  }
  CHECK(largest == Approx(1.0));
}

TEST_CASE("float keeps its digits when all queries and keys share an offset") {
  for (double offset : {50.0, 1000.0}) {
    Problem p(16, 20, 8, 4);
    const Mat<float> q = (p.q.array() + offset).cast<float>(), k = (p.k.array() + offset).cast<float>(),
                     v = p.v.cast<float>();
    const Mat<float> h = Mat<float>::Constant(1, 1, 2);
    const M q2 = q.cast<double>(), k2 = k.cast<double>(), v2 = v.cast<double>();
    const auto op = nlm();
    using Op = std::remove_const_t<decltype(op)>;
    const Mat<float> out = limpid::forward(op, limpid::Inputs<Op, float>{.q = q, .k = k, .v = v, .h = h});
    CHECK(distance(out.cast<double>(), filtered(op, q2, k2, v2, number(2))) <
          2e-6);  // 0.15 at 1000 without the centring
  }
}

TEST_CASE("float keeps its digits under an offset where one query alone sees the keys, the first or the last") {
  Problem p(6, 20, 8, 4);
  const Mat<float> k = (p.k.array() + 1000).cast<float>(), v = p.v.cast<float>(), h = Mat<float>::Constant(1, 1, 2);
  const M k2 = k.cast<double>(), v2 = v.cast<double>();
  for (const Index n : {Index(1), Index(6)})
    for (const Index seer : {Index(0), n - 1}) {
      const Mat<float> q = (p.q.topRows(n).array() + 1000).cast<float>();
      const M q2 = q.cast<double>();
      const auto op = nlm(limpid::mask([seer](limpid::At a) { return a.q == seer; }));
      using Op = std::remove_const_t<decltype(op)>;
      const Mat<float> out = limpid::forward(op, limpid::Inputs<Op, float>{.q = q, .k = k, .v = v, .h = h});
      INFO("query " << seer << " of " << n);
      CHECK(distance(out.row(seer).cast<double>(), written_down(q2.row(seer), k2, v2, 2, [](double s) { return s; })) <
            2e-6);
    }
}

TEST_CASE("a score function sees the score itself, and its gradients agree with differences") {
  const Problem p(5, 7, 3, 2);
  const auto soft = [](auto s, limpid::At) {
    using std::tanh;
    return tanh(s);
  };
  const auto slope = [](auto s, limpid::At) {
    using std::tanh;
    return 1 - tanh(s) * tanh(s);
  };
  const auto op = nlm(limpid::score_mod(soft, slope));
  CHECK(distance(filtered(op, p.q, p.k, p.v, number(1.2)),
                 written_down(p.q, p.k, p.v, 1.2, [](double s) { return std::tanh(s); })) < 1e-14);
  const M h = number(1.2), hs = number(0.9), pq = p.q.leftCols(2), pk = p.k.rightCols(2);
  const auto check =
      limpid::check_gradient(op, {.q = p.q, .k = p.k, .v = p.v, .h = h, .pq = pq, .pk = pk, .h_space = hs});
  INFO(check.text());
  CHECK(check.worst() < 1e-8);
}

TEST_CASE("gradients of everything agree with differences, for two heads, shared keys and a mask") {
  suite::Random random(5);
  const auto make = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  const M q = make(10, 6), k = make(14, 3), v = make(14, 2), pq = make(5, 2), pk = make(7, 2);
  M h(2, 1), hs(2, 1);
  h << 0.9, 1.4, hs << 1.1, 0.7;
  const auto check =
      limpid::check_gradient(nlm(limpid::causal()), {.q = q, .k = k, .v = v, .h = h, .pq = pq, .pk = pk, .h_space = hs},
                             {.batch = 2, .heads = 2, .kv_heads = 1});
  INFO(check.text());
  CHECK(check.worst() < 1e-8);
}

TEST_CASE("a key that a bias masks may hold anything, and rows of weights sum to one unless they are empty") {
  Problem p(4, 6, 3, 2);
  M bias = M::Zero(1, 6), out(4, 2), map, lse;
  bias(0, 2) = -std::numeric_limits<double>::infinity();
  const auto op = nlm(chain(limpid::key_bias(bias), limpid::mask([](limpid::At a) { return a.q != 1; })));
  using Op = std::remove_const_t<decltype(op)>;
  const M clean = limpid::forward(op, qkv(p.q, p.k, p.v));
  p.k(2, 1) = std::numeric_limits<double>::quiet_NaN();
  limpid::forward(op, qkv(p.q, p.k, p.v), out, limpid::Call<Op, double>{.lse = &lse, .map = &map});
  CHECK(distance(out, clean) == Approx(0).margin(1e-14));
  CHECK(out.row(1).isZero(0));
  for (Index i = 0; i < 4; ++i) CHECK(map.row(i).sum() == Approx(i == 1 ? 0 : 1).margin(1e-14));
}

TEST_CASE("the log-sum-exp is that of the scores as written, with and without a score function") {
  const Problem p(5, 6, 3, 2);
  const M h = number(0.9);
  M out(5, 2), lse;
  const auto check = [&](const auto& op) {
    using Op = std::remove_cvref_t<decltype(op)>;
    limpid::forward(op, {.q = p.q, .k = p.k, .v = p.v, .h = h}, out, limpid::Call<Op, double>{.lse = &lse});
    for (Index i = 0; i < 5; ++i) {
      const auto distances = (p.k.rowwise() - p.q.row(i)).rowwise().squaredNorm();
      CHECK(lse(0, i) == Approx(std::log((-distances.array() / 0.81).exp().sum())));
    }
  };
  check(nlm());
  check(nlm(limpid::additive([](limpid::At) { return 0.0; })));
}

TEST_CASE("a bandwidth that is not positive is refused before anything is written, whichever head it belongs to") {
  const Problem p(3, 3, 4, 2);
  M h(2, 1), out = M::Constant(3, 2, 7);
  h << 1, -1;
  const auto op = nlm();
  using Op = std::remove_const_t<decltype(op)>;
  const limpid::Inputs<Op, double> in{.q = p.q, .k = p.k, .v = p.v, .h = h};
  CHECK_THROWS_WITH(limpid::forward(op, in, out, {.heads = 2}), "nlm: h is -1.000000, wanted a positive bandwidth");
  CHECK(out == M::Constant(3, 2, 7));
  for (double bad : {0.0, -2.0, 1e-200, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(filtered(op, p.q, p.k, p.v, number(bad)), limpid::ShapeError);
}

TEMPLATE_TEST_CASE("where a bandwidth leaves all keys of a query beyond the end of the numbers, NaN shows it", "",
                   float, double) {
  using S = TestType;
  const auto causal = nlm(limpid::causal());
  using Op = std::remove_const_t<decltype(causal)>;
  const S least = std::sqrt(2 / std::numeric_limits<S>::max());
  const auto nan = [](const Mat<S>& x) { return x.array().isNaN().all(); };
  for (const Index d : {2, 20})
    for (const Index n : {4, 6, 40}) {
      INFO(n << " queries of width " << d);
      suite::Random random(4);
      Mat<S> q = suite::random_matrix<S>(random, n, d), k = Mat<S>::Zero(n, d);
      const Mat<S> v = suite::random_matrix<S>(random, n, 3), g = suite::random_matrix<S>(random, n, 3);
      for (Index i = 0; i < n; ++i) k(i, 0) = S(10 * (i + 1)), q(i, 1) = S(5);
      q.row(2) = k.row(1), q.row(n - 1) = k.row(2);
      const Mat<S> h = Mat<S>::Constant(1, 1, S(1.1) * least);
      Mat<S> out(n, 3), lse(1, n), bare(n, 3), map, dq = q, dk = k, dv = v, dh = h;
      const limpid::Inputs<Op, S> in{.q = q, .k = k, .v = v, .h = h};
      limpid::Saved<Op, S> saved;
      limpid::Call<Op, S> call;
      limpid::forward(causal, in, bare, call);
      call.saved = &saved, call.lse = &lse, call.map = &map;
      limpid::forward(causal, in, out, call);
      limpid::backward(causal, in, saved, g,
                       typename Op::template Args<limpid::MutView<S>>{.q = dq, .k = dk, .v = dv, .h = dh});
      for (Index i = 0; i < n; ++i) {
        INFO("row " << i);
        const Index nearest = i == 0 ? 0 : i == 2 ? 1 : i == n - 1 ? 2 : -1;  // the first sees one key
        if (nearest < 0) {
          CHECK((nan(out.row(i)) && nan(bare.row(i)) && nan(dq.row(i)) && nan(lse.col(i))));
          CHECK(nan(map.row(i).head(i + 1)));
        } else {
          CHECK((out.row(i) == v.row(nearest) && bare.row(i) == v.row(nearest) && dq.row(i).isZero(0)));
          CHECK((map(i, nearest) == 1 && map.row(i).sum() == 1));
        }
      }
      CHECK((nan(dh) && nan(dk.row(0)) && nan(dv.row(0))));
    }
  // as small as that and a little smaller: one is taken, the other refused
  const Mat<S> q = Mat<S>::Zero(2, 2), v = Mat<S>::Ones(2, 1);
  Mat<S> h(1, 1), out(2, 1);
  const limpid::Inputs<decltype(nlm()), S> in{.q = q, .k = q, .v = v, .h = h};
  h(0, 0) = S(1.01) * least;
  limpid::forward(nlm(), in, out);
  CHECK(out == v);
  h(0, 0) = S(0.99) * least;  // 2 / h^2 overflows, and with it what gradients are made of
  CHECK_THROWS_AS(limpid::forward(nlm(), in, out), limpid::ShapeError);
}

TEST_CASE("an image goes strip by strip, each with the rows that its window and patches reach, as the whole does") {
  constexpr Index rows = 41, cols = 13, patch = 3, window = 7, half = window / 2;
  M image(rows * cols, 1);
  for (Index i = 0; i < image.size(); ++i)
    image(i, 0) = std::sin(0.1 * double(i)) + 0.2 * std::sin(double(i * i % 577));
  const M h = number(3);
  // rows [first, last), from the keys within reach, whose patches need half a patch more
  const auto cleaned = [&](Index first, Index last, Index reach) {
    const Index k0 = std::max<Index>(0, first - reach), k1 = std::min(rows, last + reach);
    const Index p0 = std::max<Index>(0, k0 - patch / 2), p1 = std::min(rows, k1 + patch / 2);
    M patches((p1 - p0) * cols, patch * patch), out((k1 - k0) * cols, 1);
    limpid::patches(limpid::ImagePatches{p1 - p0, cols, patch}, image.middleRows(p0 * cols, (p1 - p0) * cols), patches);
    const auto op = limpid::nlm(limpid::neighbourhood({k1 - k0, cols}, {window, window}));
    const auto own = patches.middleRows((k0 - p0) * cols, (k1 - k0) * cols);
    limpid::forward(op, {.q = own, .k = own, .v = image.middleRows(k0 * cols, (k1 - k0) * cols), .h = h}, out);
    return M(out.middleRows((first - k0) * cols, (last - first) * cols));
  };
  const M whole = cleaned(0, rows, half);
  for (const Index strip : {1, 8, 10, 20})
    for (Index first = 0; first < rows; first += strip) {
      const Index last = std::min(rows, first + strip);
      CHECK(distance(cleaned(first, last, half), M(whole.middleRows(first * cols, (last - first) * cols))) < 1e-14);
    }
  CHECK(distance(cleaned(10, 20, half - 1), M(whole.middleRows(10 * cols, 10 * cols))) > 1e-4);
}
