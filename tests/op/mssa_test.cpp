// limpid: tests of subspace attention, where one array is query, key and value.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/op/mssa.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::causal, limpid::mssa, limpid::MssaOptions, limpid::Phi;
using suite::distance;
using suite::product, suite::product_nt, suite::product_tn;
using M = Mat<double>;

M tokens(Index n, Index p, std::uint64_t seed = 3, double size = 1.5) {
  suite::Random random(seed);
  return suite::random_matrix<double>(random, n, p, -size, size);
}
bool same_bits(const M& a, const M& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), sizeof(double) * static_cast<std::size_t>(a.size())) == 0;
}
template <class Op>
M run(const Op& op, const M& y) {
  M out(y.rows(), y.cols());
  limpid::forward(op, {.y = y}, out);
  return out;
}
MssaOptions threshold(double tau, double scale = 1) { return {.scale = scale, .phi = Phi::threshold, .tau = tau}; }

/// Softmax rows of scale y y^T, written down; keys 0 .. i of query i only where causal.
M weights(const M& y, double scale, bool causal_only = false) {
  M p = product_nt<double>(scale * y, y);
  for (Index i = 0; i < p.rows(); ++i) {
    const Index seen = causal_only ? i + 1 : p.cols();
    p.row(i).rightCols(p.cols() - seen).setConstant(-std::numeric_limits<double>::infinity());
    p.row(i) = (p.row(i).array() - p.row(i).maxCoeff()).exp();
    p.row(i) /= p.row(i).sum();
  }
  return p;
}
M cut(const M& p, double tau) { return (p.array() > tau).cast<double>().matrix() * tau; }

}  // namespace

TEST_CASE("mssa is plain attention whose q, k and v are one array, to the bit, and its gradient the sum of the three") {
  const M y = tokens(2 * 43, 2 * 5), g = tokens(2 * 43, 2 * 5, 4);
  auto op = mssa(causal(), {.scale = 0.7});
  auto plain = limpid::softmax(causal(), {.scale = 0.7});
  M out = y, want = y, dy = y, dq = y, dk = y, dv = y;
  limpid::Saved<decltype(op), double> saved;
  limpid::Saved<decltype(plain), double> kept;
  limpid::forward(op, {.y = y}, out, {.batch = 2, .heads = 2, .saved = &saved});
  limpid::forward(plain, limpid::qkv(y, y, y), want, {.batch = 2, .heads = 2, .saved = &kept});
  CHECK(same_bits(out, want));
  limpid::backward(op, {.y = y}, saved, g, {.y = dy});
  limpid::backward(plain, limpid::qkv(y, y, y), kept, g, limpid::grads(dq, dk, dv));
  CHECK(distance(dy, dq + dk + dv) < 1e-13);
  M twice = dy;
  limpid::backward(op, {.y = y}, saved, g, {.y = twice}, {.accumulate = true});
  CHECK(distance(twice, 2 * dy) < 1e-13);
}

TEST_CASE("mssa: central differences agree with the gradient, with and without a cache") {
  const M y = tokens(2 * 5, 2 * 3), cache = tokens(2 * 8, 2 * 3, 8);
  auto op = mssa(causal());
  limpid::Inputs<decltype(op), double> in{.y = y};
  CHECK(limpid::check_gradient(op, in, {.batch = 2, .heads = 2}).worst() < 1e-9);
  in.cache = cache;
  CHECK(limpid::check_gradient(op, in, {.batch = 2, .heads = 2}).worst() < 1e-9);
}

TEST_CASE("mssa with scale 0 is the mean, and permuting tokens permutes rows") {
  const M y = tokens(21, 6);
  CHECK(distance(run(mssa({.scale = 0}), y), y.colwise().mean().replicate(21, 1)) < 1e-15);
  Eigen::PermutationMatrix<Eigen::Dynamic> turn(21);
  for (int i = 0; i < 21; ++i) turn.indices()[i] = (8 * i + 3) % 21;
  for (const auto& options : {MssaOptions{}, threshold(0.6), threshold(0.1)})
    CHECK(distance(run(mssa(options), turn * y), turn * run(mssa(options), y)) < 1e-14);
}

TEST_CASE("mssa of distinct tokens of unit norm is the identity where the scale is large") {
  M y = tokens(30, 7);
  y.rowwise().normalize();
  CHECK(distance(run(mssa({.scale = 1e5}), y), y) < 1e-12);
  CHECK(distance(run(mssa(threshold(0.75, 1e5)), y), 0.75 * y) < 1e-15);
}

TEST_CASE("mssa decodes: the last tokens against one cached array are the last rows of the whole") {
  const M y = tokens(300, 16), last = y.bottomRows(3);
  M out(3, 16);
  limpid::forward(mssa(causal()), {.y = last, .cache = y}, out);
  CHECK(distance(out, run(mssa(causal()), y).bottomRows(3)) < 1e-14);
  limpid::forward(mssa(causal(), threshold(0.6, 0.3)), {.y = last, .cache = y}, out);
  CHECK(distance(out, run(mssa(causal(), threshold(0.6, 0.3)), y).bottomRows(3)) < 1e-15);
}

TEST_CASE(
    "threshold: forward, map, both products with it and gradient are those of the map written down, for any tau") {
  for (double tau : {0.9, 0.6, 0.5, 0.3, 0.12, 0.04}) {
    for (bool only_past : {false, true}) {
      const M y = tokens(150, 6, 11, 1), g = tokens(150, 6, 12), x = tokens(150, 2, 13), w = tokens(4, 150, 14);
      const M p = weights(y, 2.5, only_past), a = cut(p, tau);
      REQUIRE((p.array() - tau).abs().minCoeff() > 1e-8);  // no weight so near that rounding decides
      REQUIRE(a.sum() > 0);
      const auto check = [&](const auto& op) {
        M out = y, map, dy = y, right(150, 2), left(4, 150), block(7, 30);
        limpid::Saved<std::remove_cvref_t<decltype(op)>, double> saved;
        limpid::forward(op, {.y = y}, out, {.saved = &saved, .map = &map});
        CHECK(same_bits(map, a));
        CHECK(distance(out, product(a, y)) < 1e-15);
        CHECK(same_bits(out, run(op, y)));
        limpid::map_right(op, {.y = y}, saved, x, right);
        limpid::map_left(op, {.y = y}, saved, w, left);
        limpid::map_block(op, {.y = y}, saved, 90, 80, block);
        CHECK(distance(right, product(a, x)) < 1e-15);
        CHECK(distance(left, product(w, a)) < 1e-14);
        CHECK(same_bits(block, a.block(90, 80, 7, 30)));
        M relevance(1, 150);
        const M ones = M::Ones(1, 150);
        limpid::backward(op, {.y = y}, saved, g, {.y = dy}, {.relevance_weights = ones, .relevance = relevance});
        CHECK(distance(dy, product_tn(a, g)) < 1e-14);
        CHECK(distance(relevance, a.cwiseProduct(product_nt(g, y)).cwiseMax(0).colwise().sum()) < 1e-14);
        if (tau >= 0.5) CHECK((map.array() > 0).rowwise().count().maxCoeff() <= 1);
      };
      if (only_past)
        check(mssa(causal(), threshold(tau, 2.5)));
      else
        check(mssa(threshold(tau, 2.5)));
    }
  }
}

TEST_CASE("threshold: ties never pass, one token passes below tau = 1 and not at it") {
  M y(4, 2);
  y << 3, 0, 3, 0, 0, 3, 0, 3;
  CHECK(run(mssa(threshold(0.5)), y).isZero(0));
  CHECK(distance(run(mssa(threshold(0.49)), y), 0.98 * y) < 1e-15);
  const M one = tokens(1, 5);
  CHECK(same_bits(run(mssa(threshold(0.7)), one), 0.7 * one));
  CHECK(run(mssa(threshold(1)), one).isZero(0));
}

TEST_CASE("threshold: weights of any size stay finite, masked keys do not show, kept ones that are not finite do") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (double tau : {0.6, 0.2}) {
    M y = tokens(40, 4, 21, 300);
    const auto open = mssa(threshold(tau));
    CHECK(run(open, y).allFinite());
    auto op = mssa(limpid::mask([](const limpid::At& a) { return a.k != 7 && a.q != 30; }), threshold(tau));
    const M before = run(op, y);
    CHECK(before.row(30).isZero(0));
    y.row(7).setConstant(nan);
    M out = y, dy = y;
    limpid::Saved<decltype(op), double> saved;
    limpid::forward(op, {.y = y}, out, {.saved = &saved});
    for (Index i = 0; i < 40; ++i)
      if (i != 7) CHECK(same_bits(out.row(i), before.row(i)));
    CHECK(out.row(7).array().isNaN().all());
    const M g = M::Ones(40, 4);
    limpid::backward(op, {.y = y}, saved, g, {.y = dy});
    CHECK(dy.allFinite());
    CHECK(dy.row(7).isZero(0));
    CHECK(run(open, y).array().isNaN().all());
  }
}

TEST_CASE("mssa says what is wrong") {
  const M y = tokens(6, 4), narrow = tokens(9, 3), few = tokens(4, 4);
  M out = y;
  CHECK_THROWS_WITH(limpid::forward(mssa(threshold(0)), {.y = y}, out),
                    "mssa: tau is 0.000000, wanted a number in (0, 1]");
  CHECK_THROWS_WITH(limpid::forward(mssa(threshold(1.5)), {.y = y}, out),
                    "mssa: tau is 1.500000, wanted a number in (0, 1]");
  CHECK_THROWS_WITH(limpid::forward(mssa(), {.y = y}, out, {.heads = 2, .kv_heads = 1}),
                    "mssa: kv_heads is 1 and heads 2, wanted the same, as one array is query, key and value");
  CHECK_THROWS_WITH(limpid::forward(mssa(), {.y = y, .cache = narrow}, out),
                    "mssa: q has width 4 a head and k has 3, wanted the same (1 heads, 1 key heads)");
  CHECK_THROWS_WITH(limpid::forward(mssa(), {.y = y, .cache = few}, out),
                    "mssa: cache has 4 rows an item and y 6, wanted y to be the last rows of cache");
}
