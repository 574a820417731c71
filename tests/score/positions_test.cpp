// limpid: tests of positions: rotary, sinusoidal, ALiBi, relative tables, score decomposition.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::rope, limpid::RopeLayout, limpid::softmax;
using suite::distance;
using M = Mat<double>;

M make(std::uint64_t seed, Index rows, Index cols) {
  suite::Random random(seed);
  return suite::random_matrix<double>(random, rows, cols, -1.5, 1.5);
}
M turned(const M& x, const limpid::RopeRotation& call) {
  M out(x.rows(), x.cols());
  limpid::rope_rotate(x, out, call);
  return out;
}
/// The definition, one entry after the other.
M turned_by_hand(const M& x, RopeLayout layout, Index r, double base, double first) {
  M out = x;
  for (Index i = 0; i < x.rows(); ++i)
    for (Index l = 0; l < r / 2; ++l) {
      const double t =
          (first + static_cast<double>(i)) * std::pow(base, -2.0 * static_cast<double>(l) / static_cast<double>(r));
      const Index a = layout == RopeLayout::half ? l : 2 * l, b = layout == RopeLayout::half ? l + r / 2 : 2 * l + 1;
      out(i, a) = std::cos(t) * x(i, a) - std::sin(t) * x(i, b);
      out(i, b) = std::sin(t) * x(i, a) + std::cos(t) * x(i, b);
    }
  return out;
}

/// An operator on q, k, v: everything it can be asked.
template <class Op>
struct Run {
  M out, dq, dk, dv, map, lse, left, right;
  Run(const Op& op, const M& q, const M& k, const M& v, const M& dout) : out(q.rows(), v.cols()), dq(q), dk(k), dv(v) {
    limpid::Saved<Op, double> saved;
    limpid::forward(op, qkv(q, k, v), out, {.saved = &saved, .lse = &lse});
    limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
    map.resize(3, 4), left.resize(1, k.rows()), right.resize(q.rows(), v.cols());
    limpid::map_block(op, qkv(q, k, v), saved, 2, 1, map);
    const M ones = M::Ones(1, q.rows());
    limpid::map_left(op, qkv(q, k, v), saved, ones, left);
    limpid::map_right(op, qkv(q, k, v), saved, v, right);
  }
};
template <class Op>
Run<Op> run(const Op& op, const M& q, const M& k, const M& v, const M& dout) {
  return {op, q, k, v, dout};
}

}  // namespace

TEST_CASE("rope turns every plane by position times frequency, in both layouts, past the blocks it works in") {
  const M x = make(1, 150, 22);
  for (RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half})
    for (Index rotary : {0, 2, 10, 22}) {
      const M out = turned(x, {.layout = layout, .base = 100, .rotary = rotary, .first = 7.5});
      CHECK(distance(out, turned_by_hand(x, layout, rotary == 0 ? 22 : rotary, 100, 7.5)) < 1e-13);
    }
}

TEST_CASE("rope keeps norms, is the identity at position 0, turns back, and works in place") {
  const M x = make(2, 70, 8), out = turned(x, {.first = 3});
  CHECK(distance(out.rowwise().norm(), x.rowwise().norm()) < 1e-14);
  CHECK(distance(turned(x, {}).row(0), x.row(0)) == 0);
  CHECK(distance(turned(out, {.first = 3, .inverse = true}), x) < 1e-14);
  M self = x;
  limpid::rope_rotate(self, self, {.first = 3});
  CHECK(self == out);
  CHECK_THROWS_WITH(limpid::rope_rotate(self.leftCols(4), self.middleCols(2, 4)),
                    "rope_rotate: out shares memory with x, wanted x itself or memory of its own");
}

TEST_CASE("the half layout is the interleaved one with columns permuted to 0, r/2, 1, r/2 + 1 ...") {
  const M x = make(3, 9, 8);
  Eigen::PermutationMatrix<Eigen::Dynamic> p(8);
  for (int l = 0; l < 4; ++l) p.indices()[l] = 2 * l, p.indices()[4 + l] = 2 * l + 1;  // half's column -> interleaved's
  const M permuted = x * p.inverse();
  const M interleaved = turned(permuted, {});
  CHECK(distance(interleaved * p, turned(x, {.layout = RopeLayout::half})) < 1e-15);
}

TEST_CASE("scores of turned rows depend on offsets alone: one shift of all positions changes nothing") {
  const M q = make(4, 6, 8), k = make(5, 9, 8), v = make(6, 9, 3), dout = make(7, 6, 3);
  const auto near = run(rope(softmax(limpid::causal())), q, k, v, dout);  // queries stand at 3 .. 8
  const auto far = run(rope(softmax(limpid::causal()), {.q_offset = 1003, .k_offset = 1000}), q, k, v, dout);
  CHECK(distance(near.out, far.out) < 1e-11);
  CHECK(distance(near.dq, far.dq) < 1e-11);
  CHECK(distance(near.dk, far.dk) < 1e-11);
  CHECK(distance(near.out, run(rope(softmax(limpid::causal()), {.q_offset = 0}), q, k, v, dout).out) > 1e-3);
  const M same = M::Constant(9, 8, 0.5), scores = suite::product_nt(turned(same, {}), turned(same, {}));
  for (Index i = 1; i < 9; ++i) CHECK(scores(i, i - 1) == Approx(scores(1, 0)));
}

TEST_CASE("rope round an operator is the operator on turned rows, with gradients turned back, whatever it is asked") {
  const Index n = 6;
  const M q = make(8, n, 6), k = make(9, n, 6), v = make(10, n, 3), dout = make(11, n, 3);
  const limpid::RopeOptions options{.layout = RopeLayout::half, .base = 50, .rotary = 4};
  const limpid::RopeRotation call{.layout = RopeLayout::half, .base = 50, .rotary = 4};
  const auto compare = [&](const auto& op) {
    const auto got = run(rope(op, options), q, k, v, dout);
    const auto want = run(op, turned(q, call), turned(k, call), v, dout);
    CHECK(got.out == want.out);
    CHECK(got.map == want.map);
    CHECK(got.lse == want.lse);
    CHECK(got.left == want.left);
    CHECK(got.right == want.right);
    CHECK(got.dv == want.dv);
    CHECK(distance(turned(got.dq, call), want.dq) < 1e-14);
    CHECK(distance(turned(got.dk, call), want.dk) < 1e-14);
  };
  compare(softmax(limpid::causal()));
  compare(limpid::nlm());
  compare(limpid::bilateral({.spatial = limpid::SpatialKernel::none}));
  compare(limpid::twicing(softmax(limpid::causal())));
  compare(limpid::twicing(limpid::nlm(), {.order = 2}));
}

TEST_CASE("gradients under rope agree with differences, over heads, items and shared keys, and accumulate") {
  const M q = make(12, 8, 8), k = make(13, 12, 4), v = make(14, 12, 2), dout = make(15, 8, 4);
  const auto op = rope(softmax(limpid::causal()), {.rotary = 2});
  const auto check = limpid::check_gradient(op, qkv(q, k, v), {.batch = 2, .heads = 2, .kv_heads = 1});
  INFO(check.text());
  CHECK(check.worst() < 1e-8);

  using Op = std::remove_const_t<decltype(op)>;
  limpid::Saved<Op, double> saved;
  M out(8, 4), dq(8, 8), dk(12, 4), dv(12, 2), entropy(4, 1), map;
  limpid::forward(op, qkv(q, k, v), out, {.batch = 2, .heads = 2, .kv_heads = 1, .saved = &saved, .map = &map});
  limpid::map_entropy(op, qkv(q, k, v), saved, entropy);
  CHECK(entropy(3, 0) == Approx(-(map.row(3).array() * map.row(3).array().log()).sum()));
  limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
  M twice_q = dq, twice_k = dk, twice_v = dv;
  limpid::backward(op, qkv(q, k, v), saved, dout, limpid::grads(twice_q, twice_k, twice_v), {.accumulate = true});
  CHECK(distance(twice_q, 2 * dq) < 1e-14);
  CHECK(distance(twice_k, 2 * dk) < 1e-14);
  CHECK(distance(twice_v, 2 * dv) < 1e-14);
}

TEST_CASE("a packed array is turned head by head, item by item") {
  const M x = make(16, 10, 12);  // two items of 5 rows, three heads of width 4
  const M all = turned(x, {.batch = 2, .heads = 3, .first = 2});
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h) {
      const M one = x.block(5 * b, 4 * h, 5, 4);
      CHECK(distance(all.block(5 * b, 4 * h, 5, 4), turned(one, {.first = 2})) == 0);
    }
}

TEST_CASE("the last query stands at the last key") {
  const M q = make(17, 7, 4), k = make(18, 7, 4), v = make(19, 7, 2);
  const M all = limpid::forward(rope(softmax(limpid::causal())), qkv(q, k, v)), last = q.bottomRows(2);
  CHECK(distance(limpid::forward(rope(softmax(limpid::causal())), qkv(last, k, v)), all.bottomRows(2)) < 1e-14);
}

TEST_CASE("both branches of differential attention are turned over their own width") {
  const M q = make(20, 5, 8), k = make(21, 5, 8), v = make(22, 5, 3);
  const auto op = limpid::differential({.norm = limpid::HeadNorm::none});
  const M q2 = turned(q, {.heads = 2}), k2 = turned(k, {.heads = 2});
  CHECK(limpid::forward(rope(op, {.width = 4}), qkv(q, k, v)) == limpid::forward(op, qkv(q2, k2, v)));
}

TEST_CASE("angles keep their digits in float at far positions") {
  const Mat<float> x = make(23, 3, 8).cast<float>();
  Mat<float> out(3, 8);
  limpid::rope_rotate(x, out, {.first = 123456});
  CHECK(distance(out.cast<double>(), turned_by_hand(x.cast<double>(), RopeLayout::interleaved, 8, 10000, 123456)) <
        3e-7);
}

TEST_CASE("an odd or too wide rotary is refused") {
  const M x = make(24, 4, 5);
  M out = x;
  CHECK_THROWS_WITH(limpid::rope_rotate(x, out),
                    "rope_rotate: rotary is 5, wanted an even number, at most the width 5");
  CHECK_THROWS_WITH(limpid::forward(rope(softmax(), {.rotary = 6}), qkv(x, x, x)),
                    "softmax: rotary is 6, wanted an even number, at most the width 5");
  CHECK_THROWS_WITH(limpid::forward(rope(softmax(), {.width = 2}), qkv(x, x, x)),
                    "softmax: rope's width is 2, wanted a divisor of the head's 5");
  CHECK_THROWS_WITH(limpid::rope_rotate(x, out, {.base = -1, .rotary = 2}),
                    "rope_rotate: base is -1, wanted a positive, finite number");
}

TEST_CASE("products of sinusoidal encodings depend on offsets alone, and the layouts are permutations of one another") {
  const M pe = limpid::sinusoidal<double>(20, 12), products = suite::product_nt(pe, pe);
  CHECK(pe(0, 0) == 0);
  CHECK(pe(0, 1) == 1);
  CHECK(pe(3, 2) == Approx(std::sin(3 * std::pow(10000, -2.0 / 12))));
  for (Index i = 4; i < 20; ++i) CHECK(products(i, i - 4) == Approx(products(4, 0)));
  const M concat = limpid::sinusoidal<double>(20, 12, {.layout = limpid::SinusoidalLayout::concat});
  for (Index l = 0; l < 6; ++l) {
    CHECK(concat.col(l) == pe.col(2 * l));
    CHECK(concat.col(6 + l) == pe.col(2 * l + 1));
  }
  CHECK(limpid::sinusoidal<double>(3, 5, {.first = 17}).row(2) == limpid::sinusoidal<double>(20, 5).row(19));
}

TEST_CASE("ALiBi slopes are a geometric sequence, completed by every other slope of the next power of two") {
  const M eight = limpid::alibi_slopes<double>(8), twelve = limpid::alibi_slopes<double>(12),
          one = limpid::alibi_slopes<double>(1);
  for (Index h = 0; h < 8; ++h) {
    CHECK(eight(h, 0) == std::exp2(-static_cast<double>(h + 1)));
    CHECK(twelve(h, 0) == eight(h, 0));
  }
  for (Index h = 0; h < 4; ++h) CHECK(twelve(8 + h, 0) == std::exp2(-0.5 - static_cast<double>(h)));
  CHECK(one(0, 0) == std::exp2(-8));
  CHECK(limpid::alibi_slopes<double>(0).size() == 0);
}

TEST_CASE("a slope of zero and a constant table leave plain attention, and symmetric ALiBi is a relative table") {
  const M q = make(25, 5, 4), k = make(26, 8, 4), v = make(27, 8, 2), plain = limpid::forward(softmax(), qkv(q, k, v));
  const M zero = M::Zero(1, 1), slope = M::Constant(1, 1, 0.3), constant = M::Constant(1, 7, 1.7);
  CHECK(distance(limpid::forward(softmax(limpid::alibi(zero)), qkv(q, k, v)), plain) < 1e-14);
  CHECK(distance(limpid::forward(softmax(limpid::relative(constant)), qkv(q, k, v)), plain) < 1e-14);
  M table(1, 15);
  for (Index r = -7; r <= 7; ++r) table(0, r + 7) = -0.3 * std::abs(static_cast<double>(r));
  const M symmetric = limpid::forward(softmax(limpid::alibi_symmetric(slope)), qkv(q, k, v));
  CHECK(distance(symmetric, limpid::forward(softmax(limpid::relative(table)), qkv(q, k, v))) < 1e-14);
  CHECK(distance(limpid::forward(softmax(limpid::chain(limpid::alibi(slope), limpid::causal())), qkv(q, k, v)),
                 limpid::forward(softmax(limpid::chain(limpid::alibi_symmetric(slope), limpid::causal())),
                                 qkv(q, k, v))) < 1e-14);
}

TEST_CASE("the four parts of the scores sum to the scores; a row of them, and their gradients, are right") {
  M x = make(28, 6, 5), p = make(29, 6, 5), wq = make(30, 5, 3), wk = make(31, 5, 3);
  const auto parts = limpid::score_parts(x, p, wq, wk);
  const M both = x + p, whole = suite::product_nt(suite::product(both, wq), suite::product(both, wk)) / std::sqrt(3.0);
  CHECK(distance(parts.tt + parts.tp + parts.pt + parts.pp, whole) < 1e-13);
  CHECK(distance(parts.tp, suite::product_nt(suite::product(x, wq), suite::product(p, wk)) / std::sqrt(3.0)) < 1e-13);
  for (Index i = 0; i < 6; ++i) {
    const auto row = limpid::score_parts_row(x, p, wq, wk, i);
    CHECK(distance(row.tt, parts.tt.row(i)) < 1e-13);
    CHECK(distance(row.tp, parts.tp.row(i)) < 1e-13);
    CHECK(distance(row.pt, parts.pt.row(i)) < 1e-13);
    CHECK(distance(row.pp, parts.pp.row(i)) < 1e-13);
  }
  const limpid::ScoreParts<double> g{make(32, 6, 6), make(33, 6, 6), make(34, 6, 6), make(35, 6, 6)};
  M dx = x, dp = p, dwq = wq, dwk = wk;
  limpid::score_parts_backward(x, p, wq, wk, g, dx, dp, dwq, dwk, 0.4);
  const auto value = [&] {
    const auto s = limpid::score_parts(x, p, wq, wk, 0.4);
    return s.tt.cwiseProduct(g.tt).sum() + s.tp.cwiseProduct(g.tp).sum() + s.pt.cwiseProduct(g.pt).sum() +
           s.pp.cwiseProduct(g.pp).sum();
  };
  CHECK(distance(dx, limpid::numeric_gradient(x, value)) < 1e-8);
  CHECK(distance(dp, limpid::numeric_gradient(p, value)) < 1e-8);
  CHECK(distance(dwq, limpid::numeric_gradient(wq, value)) < 1e-8);
  CHECK(distance(dwk, limpid::numeric_gradient(wk, value)) < 1e-8);
  CHECK_THROWS_WITH(limpid::score_parts(x, wq, wq, wk), "score_parts: p is 5 x 3, wanted 6 x 5");
  const M at_first = dx;
  const auto refused = [&](const std::string& what, auto&&... gradients) {
    CHECK_THROWS_WITH(limpid::score_parts_backward(x, p, wq, wk, g, gradients..., 0.4),
                      "score_parts_backward: " + what + ", wanted memory of its own");
    CHECK(dx == at_first);
  };
  refused("dp shares memory with dx", dx, dx, dwq, dwk);
  refused("dwk shares memory with dwq", dx, dp, dwq, dwq);
  refused("dp shares memory with x", dx, x, dwq, dwk);
  refused("dwq shares memory with wk", dx, dp, wk, dwk);
}
