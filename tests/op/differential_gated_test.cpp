// limpid: gated differential attention against its identities.
// SPDX-License-Identifier: MIT
#include "support/two_maps.hpp"

#include <limpid/layer/linear.hpp>

using namespace two_maps;
using limpid::differential_gated;
using Op = decltype(differential_gated());
using In = limpid::Inputs<Op, double>;

TEST_CASE("an open gate is plain attention of the first branch, a closed one minus that of the second") {
  const Head h(19, 27, 6, 7);
  const M open = M::Constant(19, 1, inf), closed = M::Constant(19, 1, -inf), wide = M::Constant(19, 1, 800);
  CHECK(same_bits(run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = open}), h.plain1()));
  CHECK(same_bits(run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = wide}), h.plain1()));
  CHECK(same_bits(run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = closed}), -h.plain2()));
}

TEST_CASE("logits of zero, the default, give half the difference of the maps, and exactly zero for equal branches") {
  const Head h(12, 15, 4, 6);
  const M zero = M::Zero(12, 1), q = pack(h.q1, h.q1), k = pack(h.k1, h.k1);
  const M out = limpid::forward(differential_gated(raw), limpid::qkv(h.q, h.k, h.v));
  CHECK(distance(out, 0.5 * (h.plain1() - h.plain2())) < 1e-15);
  CHECK(same_bits(out, run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = zero})));
  CHECK(same_bits(limpid::forward(differential_gated(raw), limpid::qkv(q, k, h.v)), M::Zero(12, 6)));
}

TEST_CASE("equal branches give (2 g - 1) A V, and rows of the fused map sum to 2 g - 1") {
  const Head h(14, 20, 5, 4);
  const M z = random(14, 1, 3, 2), q = pack(h.q1, h.q1), k = pack(h.k1, h.k1), ones = M::Ones(20, 4);
  const M sums = (2 / (1 + (-z.array()).exp()) - 1).matrix();
  CHECK(distance(run(differential_gated(raw), {.q = q, .k = k, .v = h.v, .z = z}),
                 sums.col(0).asDiagonal() * h.plain1()) < 1e-14);
  CHECK(distance(run(differential_gated(raw), {.q = h.q, .k = h.k, .v = ones, .z = z}), sums.replicate(1, 4)) < 1e-14);
}

TEST_CASE("swapping the branches and negating the gate negates the output") {
  const Head h(10, 13, 4, 5);
  const M z = random(10, 1, 3, 2), minus = -z, q = pack(h.q2, h.q1), k = pack(h.k2, h.k1);
  CHECK(distance(run(differential_gated(raw), {.q = q, .k = k, .v = h.v, .z = minus}),
                 -run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = z})) < 1e-15);
}

TEST_CASE("without eps the normed output is differential attention with lambda exp(-z) of every row") {
  const Head h(9, 16, 5, 8);
  const M z = random(9, 1, 3, 2), gamma = random(1, 8, 4);
  const M out =
      run(differential_gated({.lambda_init = 0.4, .eps = 0}), {.q = h.q, .k = h.k, .v = h.v, .z = z, .gamma = gamma});
  for (Index i = 0; i < 9; ++i) {
    const M lambda = M::Constant(1, 1, std::exp(-z(i, 0))), q = h.q.row(i);
    const M one = run(limpid::differential({.lambda_init = 0.4, .eps = 0}),
                      {.q = q, .k = h.k, .v = h.v, .lambda = lambda, .gamma = gamma});
    CHECK(distance(out.row(i), one) < 1e-13);
  }
  CHECK(limpid::detail::logistic(-std::log(0.8)) == Approx(1 / 1.8).epsilon(1e-14));
}

TEST_CASE("one token gives (2 g - 1) v") {
  const Head h(1, 1, 4, 8);
  const M z = M::Constant(1, 1, 1.7);
  CHECK(distance(run(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = z}),
                 (2 / (1 + std::exp(-1.7)) - 1) * h.v) < 1e-15);
}

TEST_CASE("the gate keeps its digits far out: 1 - g is not a difference, and nothing overflows") {
  CHECK(limpid::detail::logistic(-40.0) == Approx(4.248354255291589e-18).epsilon(1e-14));
  CHECK(limpid::detail::logistic(-1000.0) == 0);
  CHECK(limpid::detail::logistic(1000.0) == 1);
  CHECK(std::isnan(limpid::detail::logistic(not_a_number)));
  const Head h(3, 4, 2, 3);
  M z = M::Constant(3, 1, 40), out(3, 3), dz = z;
  const auto op = differential_gated(raw);
  const In in{.q = h.q, .k = h.k, .v = h.v, .z = z};
  limpid::Saved<Op, double> saved;
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::backward(op, in, saved, h.dout, {.z = dz});
  const M dg = h.dout.cwiseProduct(h.plain1() + h.plain2()).rowwise().sum();
  CHECK(distance(dz / 4.248354255291589e-18, dg) < 1e-13);
}

TEST_CASE("gradients of gated attention match central differences") {
  const Head h(7, 9, 3, 5);
  const M z = random(7, 1, 60, 2), gamma = random(1, 5, 61);
  gradients_are_right(differential_gated(raw), {.q = h.q, .k = h.k, .v = h.v, .z = z});
  gradients_are_right(differential_gated(limpid::causal()), {.q = h.q, .k = h.k, .v = h.v, .z = z, .gamma = gamma});
}

TEST_CASE("gradients of batches and grouped keys of gated attention match central differences") {
  const Index batch = 2, heads = 4, groups = 2, n = 3, m = 5, d = 2, dv = 3;
  const M q = random(batch * n, heads * 2 * d, 1), k = random(batch * m, groups * 2 * d, 2),
          v = random(batch * m, groups * dv, 4), z = random(batch * n, heads, 6), gamma = random(heads, dv, 7);
  gradients_are_right(differential_gated(), {.q = q, .k = k, .v = v, .z = z, .gamma = gamma},
                      {.batch = batch, .heads = heads, .kv_heads = groups});
}

TEST_CASE("a gate that is linear in the tokens: gradients of its parameters and of the tokens") {
  const Index heads = 2, n = 5, width = 6, dv = 3;
  const Head h(n, 7, 2 * heads, heads * dv);  // the branches' widths make two heads
  M x = random(n, width, 70), w = random(width, heads, 71), b = random(1, heads, 72), z(n, heads), dz(n, heads);
  const auto op = differential_gated();
  M out(n, heads * dv), dx = x, dw = w, db = b;
  limpid::Saved<Op, double> saved;
  const auto value = [&] {
    limpid::linear(x, w, b, z);
    limpid::forward(op, {.q = h.q, .k = h.k, .v = h.v, .z = z}, out, {.heads = heads, .saved = &saved});
    return out.cwiseProduct(h.dout).sum();
  };
  value();
  limpid::backward(op, {.q = h.q, .k = h.k, .v = h.v, .z = z}, saved, h.dout, {.z = dz});
  limpid::linear_backward(x, w, dz, {.x = dx, .w = dw, .b = db});
  CHECK(distance(dx, limpid::numeric_gradient(x, value)) < 1e-9);
  CHECK(distance(dw, limpid::numeric_gradient(w, value)) < 1e-9);
  CHECK(distance(db, limpid::numeric_gradient(b, value)) < 1e-9);
}

TEST_CASE("a gated row with every key masked gives zeros and passes no gradient, whatever it holds") {
  Head h(6, 10, 4, 5);
  Mask keep = Mask::Constant(6, 10, true);
  keep.row(2).setConstant(false);
  M z = random(6, 1, 9);
  for (const HeadNorm norm : {HeadNorm::none, HeadNorm::rms}) {
    const auto op = differential_gated(limpid::mask_matrix(keep), {.norm = norm});
    using MaskedOp = std::remove_const_t<decltype(op)>;
    const limpid::Inputs<MaskedOp, double> in{.q = h.q, .k = h.k, .v = h.v, .z = z};
    M out(6, 5), dq = h.q, dk = h.k, dv = h.v, dz = z;
    const auto pass = [&] {
      limpid::Saved<MaskedOp, double> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, h.dout, {.q = dq, .k = dk, .v = dv, .z = dz});
    };
    pass();
    CHECK(same_bits(out.row(2), M::Zero(1, 5)));
    CHECK(same_bits(dq.row(2), M::Zero(1, 8)));
    CHECK(dz(2, 0) == 0);
    const M out_was = out, dk_was = dk, dv_was = dv, q_was = h.q, dout_was = h.dout;
    const double z_was = z(2, 0);
    h.q.row(2).setConstant(not_a_number), h.dout.row(2).setConstant(inf), z(2, 0) = not_a_number;
    pass();
    CHECK(same_bits(out, out_was));
    CHECK(same_bits(dk, dk_was));
    CHECK(same_bits(dv, dv_was));
    CHECK(same_bits(dq.row(2), M::Zero(1, 8)));
    CHECK(dz(2, 0) == 0);
    h.q = q_was, h.dout = dout_was, z(2, 0) = z_was;
  }
}

TEST_CASE("a gate that is not a number reaches the keys its query keeps and no others") {
  for (const HeadNorm norm : {HeadNorm::none, HeadNorm::rms}) {
    const Head h(8, 8, 4, 5);
    M z = random(8, 1, 9);
    z(3, 0) = not_a_number;
    const auto op = differential_gated(limpid::causal(), {.norm = norm});
    using CausalOp = std::remove_const_t<decltype(op)>;
    const limpid::Inputs<CausalOp, double> in{.q = h.q, .k = h.k, .v = h.v, .z = z};
    M out(8, 5), dq = h.q, dk = h.k, dv = h.v, dz = z;
    limpid::Saved<CausalOp, double> saved;
    limpid::forward(op, in, out, {.saved = &saved});
    limpid::backward(op, in, saved, h.dout, {.q = dq, .k = dk, .v = dv, .z = dz});
    for (Index i = 0; i < 8; ++i) {
      CHECK(out.row(i).array().isNaN().all() == (i == 3));
      CHECK(dq.row(i).array().isNaN().all() == (i == 3));
      CHECK(dk.row(i).array().isNaN().any() == (i <= 3));
      CHECK(dv.row(i).array().isNaN().any() == (i <= 3));
      CHECK(std::isnan(dz(i, 0)) == (i == 3));
    }
  }
}

TEST_CASE("the fused map g A+ - (1 - g) A- is seen in blocks and at work") {
  const Head h(13, 18, 5, 4);
  const M z = random(13, 1, 5, 2), x = random(18, 3, 8), y = random(2, 13, 9);
  auto op = differential_gated();
  const In in{.q = h.q, .k = h.k, .v = h.v, .z = z};
  limpid::Saved<Op, double> saved;
  M out(13, 4), whole, first(13, 18), second(13, 18), right(13, 3), left(2, 18);
  limpid::forward(op, in, out, {.saved = &saved, .map = &whole});
  limpid::map_right(op, in, saved, x, right);
  CHECK(distance(right, whole * x) < 1e-14);
  limpid::map_left(op, in, saved, y, left);
  CHECK(distance(left, y * whole) < 1e-14);
  op.options.shown = Shown::first;
  limpid::map_block(op, in, saved, 0, 0, first);
  op.options.shown = Shown::second;
  limpid::map_block(op, in, saved, 0, 0, second);
  const M g = (1 / (1 + (-z.array()).exp())).matrix(), rest = (1 / (1 + z.array().exp())).matrix();
  CHECK(distance(whole, g.col(0).asDiagonal() * first - rest.col(0).asDiagonal() * second) < 1e-15);
}

TEST_CASE("each map that can be shown is its formula over many blocks: whole, in part, its products, its entropies") {
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{70, 140}, {140, 90}}) {
    const Head h(n, m, 3, 4);
    const M z = random(n, 1, 5, 2), x = random(m, 3, 8), y = random(2, n, 9);
    auto op = differential_gated(limpid::causal());
    using CausalOp = decltype(op);
    const limpid::Inputs<CausalOp, double> in{.q = h.q, .k = h.k, .v = h.v, .z = z};
    limpid::Saved<CausalOp, double> saved;
    M out(n, 4);
    limpid::forward(op, in, out, {.saved = &saved});
    const auto weights = [&, n = n, m = m](const M& q, const M& k) {
      M a = M::Zero(n, m);
      for (Index i = 0; i < n; ++i) {
        double sum = 0;
        for (Index j = 0; j < m && j - i <= m - n; ++j)
          sum += a(i, j) = std::exp(q.row(i).dot(k.row(j)) / std::sqrt(3.0));
        if (sum > 0) a.row(i) /= sum;
      }
      return a;
    };
    const M a[2] = {weights(h.q1, h.k1), weights(h.q2, h.k2)};
    M effective = a[0];
    for (Index i = 0; i < n; ++i)
      effective.row(i) = a[0].row(i) / (1 + std::exp(-z(i, 0))) - a[1].row(i) / (1 + std::exp(z(i, 0)));
    for (const Shown shown : {Shown::first, Shown::second, Shown::effective}) {
      op.options.shown = shown;
      const M& map = shown == Shown::effective ? effective : a[shown == Shown::second];
      INFO("n " << n << ", m " << m << ", shown " << static_cast<int>(shown));
      M whole(n, m), part(33, 70), right(n, 3), left(2, m), entropy(n, 1);
      limpid::map_block(op, in, saved, 0, 0, whole);
      CHECK(distance(whole, map) < 1e-14);
      for (const Index q0 : {Index(0), Index(31), n - 33})
        for (const Index k0 : {Index(1), m - 70}) {
          limpid::map_block(op, in, saved, q0, k0, part);
          CHECK(distance(part, map.block(q0, k0, 33, 70)) < 1e-14);
        }
      limpid::map_right(op, in, saved, x, right);
      CHECK(distance(right, map * x) < 1e-13);
      limpid::map_left(op, in, saved, y, left);
      CHECK(distance(left, y * map) < 1e-13);
      if (shown == Shown::effective) continue;
      limpid::map_entropy(op, in, saved, entropy);
      for (Index i = 0; i < n; ++i) {
        double want = 0;
        for (Index j = 0; j < m; ++j)
          if (map(i, j) > 0) want -= map(i, j) * std::log(map(i, j));
        CHECK(std::abs(entropy(i, 0) - want) < 1e-12);
      }
    }
  }
}

TEST_CASE("where a gate is closed only the other map is left, and an infinite number weighed by it stays infinite") {
  const Head h(7, 9, 3, 4);
  M z = random(7, 1, 5, 2), y = random(2, 7, 9);
  z(4, 0) = inf;  // g = 1
  y(1, 4) = inf;
  const auto op = differential_gated();
  const In in{.q = h.q, .k = h.k, .v = h.v, .z = z};
  limpid::Saved<Op, double> saved;
  M out(7, 4), left(2, 9);
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::map_left(op, in, saved, y, left);
  CHECK(left.row(0).allFinite());
  CHECK((left.row(1).array() == inf).all());
}
