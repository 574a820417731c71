// limpid: identities of plain attention.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/explain/map.hpp>
#include <limpid/op/softmax.hpp>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::softmax;
using suite::distance, suite::product, suite::product_nt, suite::product_tn;

constexpr double few = 64 * 0x1p-53;  // so many roundings of numbers of the order of 1

template <class S>
struct Case {
  Mat<S> q, k, v, dout, dq, dk, dv, out;

  Case(Index n, Index m, Index d, Index width, double logits, std::uint64_t seed = 1) {
    suite::Random random(seed);
    q = suite::random_matrix<S>(random, n, d, -logits, logits), k = suite::random_matrix<S>(random, m, d);
    v = suite::random_matrix<S>(random, m, width), dout = suite::random_matrix<S>(random, n, width);
  }
  void run() {
    const auto op = softmax();
    limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
    out.resize(dout.rows(), dout.cols());
    limpid::forward(op, qkv(q, k, v), out, {.saved = &saved});
    dq.resize(q.rows(), q.cols()), dk.resize(k.rows(), k.cols()), dv.resize(v.rows(), v.cols());
    limpid::backward(op, qkv(q, k, v), saved, dout, {.q = dq, .k = dk, .v = dv});
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Where every row has one weight of 1, out is that value and q and k get exactly no gradient", "",
                   float, double) {
  // delta is summed in the order of dA: the last bit of a difference would come back times the large logits
  for (const Index width : {Index(1), Index(7), Index(16), Index(45), Index(64)})
    for (const Index n : {Index(1), Index(5), Index(40)}) {
      Case<TestType> c(n, 300, 32, width, 1);
      c.q *= TestType(1e7);  // the two largest scores of a row differ by 5000 and more
      c.run();
      INFO("n " << n << ", width " << width);
      const Mat<TestType> s = product_nt(c.q, c.k);
      for (Index i = 0; i < n; ++i) {
        Index first = 0;
        s.row(i).maxCoeff(&first);
        CHECK(c.out.row(i) == c.v.row(first));
      }
      CHECK(c.dq.isZero(0));
      CHECK(c.dk.isZero(0));
      // every row of dout arrives, whole, however the scores of few queries were summed
      CHECK(std::abs(c.dv.sum() - c.dout.sum()) <=
            8 * std::numeric_limits<TestType>::epsilon() * c.dout.cwiseAbs().sum());
    }
}

TEST_CASE("One key gives its value; equal keys give the mean of the values") {
  Case<double> one(4, 1, 5, 3, 2);
  one.run();
  for (Index i = 0; i < 4; ++i) CHECK(one.out.row(i) == one.v.row(0));
  CHECK(one.dq.isZero(0));

  Case<double> equal(4, 37, 5, 3, 2);
  for (Index j = 1; j < 37; ++j) equal.k.row(j) = equal.k.row(0);
  equal.run();
  for (Index i = 0; i < 4; ++i) CHECK(distance(equal.out.row(i), equal.v.colwise().mean()) <= few);
}

TEST_CASE("Keys may come in any order, values scale the result, and rows of dS sum to nothing") {
  Case<double> a(9, 200, 6, 5, 3);
  a.run();
  Case<double> b = a;
  for (Index j = 0; j < 200; ++j) b.k.row(j) = a.k.row((7 * j + 3) % 200), b.v.row(j) = 2 * a.v.row((7 * j + 3) % 200);
  b.run();
  CHECK(distance(b.out, 2 * a.out) <= few);
  CHECK(distance(b.dq, 2 * a.dq) <= 8 * few);
  // a common shift of all keys moves no score against another: dS 1 = 0
  Case<double> moved = a;
  moved.k.rowwise() += Eigen::RowVectorXd::Constant(6, 0.5);
  moved.run();
  CHECK(distance(moved.out, a.out) <= 8 * few);
  CHECK(distance(moved.dq, a.dq) <= 8 * few);
}

namespace {

/// Softmax attention with an additive table (n x m, or one row for all) in long double; biases are compared before they
/// are added to scores, so that those at the ends of a type lose nothing. Rows without a key: zeros.
template <class S>
Mat<long double> with_bias(const Case<S>& c, const Mat<S>& b, bool causal) {
  const long double scale = 1 / std::sqrt(static_cast<long double>(c.q.cols()));
  Mat<long double> out = Mat<long double>::Zero(c.q.rows(), c.v.cols());
  const Index n = c.q.rows(), m = c.k.rows();
  for (Index i = 0; i < n; ++i) {
    const auto bias = [&](Index j) { return static_cast<long double>(b(b.rows() == 1 ? 0 : i, j)); };
    const auto keeps = [&](Index j) { return !(std::isinf(bias(j)) && bias(j) < 0) && !(causal && j - i > m - n); };
    long double level = -HUGE_VALL, top = -HUGE_VALL, sum = 0;
    for (Index j = 0; j < m; ++j)
      if (keeps(j)) level = std::max(level, bias(j));
    const auto score = [&](Index j) {
      long double s = 0;
      for (Index f = 0; f < c.q.cols(); ++f) s += static_cast<long double>(c.q(i, f)) * c.k(j, f);
      return s * scale + (bias(j) - level);
    };
    for (Index j = 0; j < m; ++j)
      if (keeps(j)) top = std::max(top, score(j));
    for (Index j = 0; j < m; ++j) {
      if (!keeps(j)) continue;
      const long double w = std::exp(score(j) - top);
      sum += w;
      for (Index f = 0; f < c.v.cols(); ++f) out(i, f) += w * c.v(j, f);
    }
    if (sum > 0) out.row(i) /= sum;
  }
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("A bias may be any number: only minus infinity masks", "", float, double) {
  using S = TestType;
  const S most = std::numeric_limits<S>::max(), none = -std::numeric_limits<S>::infinity();
  const std::vector<std::vector<S>> levels = {{-most},
                                              {most},
                                              {-most, most},
                                              {-most, none},
                                              {-most / 2, -most},
                                              {most / 2, most, -most},
                                              {S(-1e30), S(0), none},
                                              {S(3000), S(3001)},
                                              {-most, S(0)},
                                              {none},
                                              {S(-1e9), S(-1e9) + S(128)}};
  for (const auto& level : levels)
    for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{1, 2}, {3, 300}, {8, 517}, {33, 129}, {5, 3}}) {
      Case<S> c(n, m, 8, 8, 2);
      Mat<S> b(1, m);
      for (Index j = 0; j < m; ++j) b(0, j) = level[static_cast<std::size_t>(j * 7 % 5) % level.size()];
      INFO("first biases " << level[0] << ", " << level.back() << "; n " << n << ", m " << m);
      Mat<S> out(n, 8), lse;
      const double bound = 100 * std::numeric_limits<S>::epsilon();
      limpid::forward(softmax(limpid::key_bias(b)), qkv(c.q, c.k, c.v), out, {.lse = &lse});
      CHECK(distance(out, with_bias<S>(c, b, false)) <= bound);
      for (Index i = 0; i < n; ++i) {
        CHECK(!std::isnan(lse(0, i)));
        CHECK((lse(0, i) == none) == (b.maxCoeff() == none));
      }

      // the same through every later sweep: rows of the map sum to 1, dv gets what dout holds
      const auto op = softmax(limpid::key_bias(b));
      limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
      Mat<S> again(n, 8), map(n, m), dq(n, 8), dk(m, 8), dv(m, 8);
      limpid::forward(op, qkv(c.q, c.k, c.v), again, {.saved = &saved});
      limpid::map_block(op, qkv(c.q, c.k, c.v), saved, 0, 0, map);
      CHECK(distance(product(map, c.v), out) <= bound);
      limpid::backward(op, qkv(c.q, c.k, c.v), saved, c.dout, limpid::grads(dq, dk, dv));
      CHECK(distance(dv, product_tn(map, c.dout)) <= 10 * bound);
      CHECK(dq.allFinite());
      CHECK(dk.allFinite());

      // by value (a table, a function) finite sums stay finite as well; equal extremes then count alike
      Mat<S> table(n, m);
      for (Index i = 0; i < n; ++i) table.row(i) = b;
      limpid::forward(softmax(limpid::bias(table)), qkv(c.q, c.k, c.v), out, {.lse = &lse});
      CHECK(out.allFinite());
      CHECK((lse(0, 0) == none) == (b.maxCoeff() == none));
      limpid::forward(softmax(limpid::chain(limpid::key_bias(b), limpid::key_bias(b))), qkv(c.q, c.k, c.v), out);
      CHECK(out.allFinite());
      limpid::forward(softmax(limpid::chain(limpid::key_bias(b), limpid::causal())), qkv(c.q, c.k, c.v), out);
      CHECK(out.allFinite());
      if (level.size() == 1) CHECK(distance(out, with_bias<S>(c, b, true)) <= bound);
    }
}

TEMPLATE_TEST_CASE("A score function does not bring back a key that was masked before it", "", float, double) {
  using S = TestType;
  const S none = -std::numeric_limits<S>::infinity();
  Case<S> c(9, 40, 8, 8, 2);
  Mat<S> b(1, 40), table(9, 40), all = Mat<S>::Zero(9, 40);
  for (Index j = 0; j < 40; ++j) b(0, j) = j % 3 == 1 ? none : S(0);
  for (Index i = 0; i < 9; ++i) table.row(i) = b;
  for (Index j = 1; j < 40; j += 3) c.v.row(j).setConstant(std::numeric_limits<S>::quiet_NaN());
  const auto cap = limpid::score_mod([](auto s, const limpid::At&) { return 5 * std::tanh(s / 5); });
  const auto masked = limpid::mask([](const limpid::At& a) { return a.k % 3 != 1; });
  Mat<S> wanted(9, 8), out(9, 8);
  limpid::forward(softmax(limpid::chain(cap, masked)), qkv(c.q, c.k, c.v), wanted);
  REQUIRE(wanted.allFinite());
  limpid::forward(softmax(limpid::chain(limpid::key_bias(b), cap)), qkv(c.q, c.k, c.v), out);
  CHECK(out == wanted);
  limpid::forward(softmax(limpid::chain(limpid::bias(table), cap, limpid::bias(all))), qkv(c.q, c.k, c.v), out);
  CHECK(out == wanted);
  limpid::forward(softmax(limpid::chain(limpid::additive([&](const limpid::At& a) { return b(0, a.k); }), cap)),
                  qkv(c.q, c.k, c.v), out);
  CHECK(out == wanted);
}

TEMPLATE_TEST_CASE("With ALiBi weights of logits of 1e5 are made again as they were, wherever a block begins", "",
                   float, double) {
  using S = TestType;
  const Index n = 200, m = 230, d = 5;
  Case<S> c(n, m, d, 3, 1e5);
  c.dout = Mat<S>::Ones(n, 3);
  const Mat<S> slope = Mat<S>::Constant(1, 1, S(0.3)), weights = Mat<S>::Ones(1, n);
  const auto check = [&](const auto& op) {
    using Op = std::remove_cvref_t<decltype(op)>;
    limpid::Saved<Op, S> saved;
    Mat<S> out(n, 3), map, dv(m, 3), mass(1, m), block(53, 61);
    limpid::forward(op, qkv(c.q, c.k, c.v), out, {.saved = &saved, .map = &map});
    const double unit = double(std::numeric_limits<S>::epsilon());
    CHECK(distance(map.rowwise().sum(), Mat<S>::Ones(n, 1)) < 8 * unit);
    CHECK(distance(product(map, c.v), out) < 16 * unit);
    limpid::backward(op, qkv(c.q, c.k, c.v), saved, c.dout, {.v = dv});
    CHECK(distance(dv, product_tn(map, c.dout)) < 256 * unit);
    limpid::map_left(op, qkv(c.q, c.k, c.v), saved, weights, mass);
    CHECK(distance(mass, product(weights, map)) < 256 * unit);
    limpid::map_block(op, qkv(c.q, c.k, c.v), saved, 37, 101, block);
    CHECK(block == map.block(37, 101, 53, 61));
  };
  check(softmax(limpid::alibi(slope)));
  check(softmax(limpid::chain(limpid::causal(), limpid::alibi(slope))));
}

TEST_CASE("What is asked for besides may not lie over what is read or written") {
  Case<double> c(9, 9, 4, 4, 1);
  const auto op = softmax();
  using Op = std::remove_const_t<decltype(op)>;
  limpid::Saved<Op, double> saved;
  Mat<double> out(9, 4), dq(9, 4), square = Mat<double>::Ones(9, 9), weights = Mat<double>::Ones(1, 9);
  limpid::forward(op, qkv(c.q, c.k, c.v), out, {.saved = &saved});
  const auto refused = [](const auto& call, const char* text) { CHECK_THROWS_WITH(call(), Catch::Contains(text)); };
  const auto with = [&](Mat<double>* lse, Mat<double>* map) {
    return [&op, &c, &out, lse, map] { limpid::forward(op, qkv(c.q, c.k, c.v), out, {.lse = lse, .map = map}); };
  };
  const Mat<double> q = c.q, k = c.k;
  refused(with(&c.k, nullptr), "softmax: lse shares memory with k");
  refused(with(nullptr, &out), "softmax: map shares memory with out");
  refused(with(&square, &square), "softmax: lse and map are one matrix");
  refused([&] { limpid::map_right(op, qkv(c.q, c.k, c.v), saved, square, square); }, "out shares memory with x");
  refused([&] { limpid::map_block(op, qkv(c.q, c.k, c.v), saved, 0, 0, c.k.leftCols(3)); }, "shares memory with k");
  const auto emits = [&](auto&& relevance) {
    return [&op, &c, &saved, &dq, &weights, relevance] {
      limpid::backward(op, qkv(c.q, c.k, c.v), saved, c.dout, {.q = dq},
                       {.relevance_weights = weights, .relevance = relevance});
    };
  };
  c.dout = Mat<double>::Ones(9, 4);
  refused(emits(limpid::MutView<double>(dq.data(), 1, 9, 9)), "relevance shares memory with gradient of q");
  refused(emits(limpid::MutView<double>(c.dout.data(), 1, 9, 9)), "relevance shares memory with dout");
  refused(emits(limpid::MutView<double>(c.v.data(), 1, 9, 9)), "relevance shares memory with v");
  CHECK((c.q == q && c.k == k));
}

TEMPLATE_TEST_CASE("A value or dout that is NaN shows in every part of relevance", "", float, double) {
  using S = TestType;
  Case<S> c(4, 4, 3, 3, 1);
  c.v(1, 0) = std::numeric_limits<S>::quiet_NaN();
  const auto op = softmax();
  using Op = std::remove_const_t<decltype(op)>;
  limpid::Saved<Op, S> saved;
  Mat<S> out(4, 3), dq(4, 3), weights = Mat<S>::Ones(1, 4), relevance(1, 4);
  limpid::forward(op, qkv(c.q, c.k, c.v), out, {.saved = &saved});
  for (const auto part : {limpid::Part::pos, limpid::Part::neg, limpid::Part::abs, limpid::Part::signed_}) {
    limpid::backward(op, qkv(c.q, c.k, c.v), saved, c.dout, {.q = dq},
                     {.relevance_weights = weights, .relevance = relevance, .part = part});
    CHECK(std::isnan(relevance(0, 1)));
  }
}
