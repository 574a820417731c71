// limpid: differential attention against the identities of its paper.
// SPDX-License-Identifier: MIT
#include "support/two_maps.hpp"

using namespace two_maps;
using limpid::differential;
using limpid::differential_v2;
using Op = decltype(differential());
using In = limpid::Inputs<Op, double>;

namespace {
M number(double x) { return M::Constant(1, 1, x); }
}  // namespace

TEST_CASE("lambda 0 without a norm is plain attention of the first branch, bit for bit") {
  const Head h(37, 53, 8, 12);
  const M zero = number(0);
  CHECK(same_bits(run(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .lambda = zero}), h.plain1()));
}

TEST_CASE("equal branches give (1 - lambda) A V, and exactly zero at lambda 1") {
  const Head h(20, 33, 6, 5);
  const M q = pack(h.q1, h.q1), k = pack(h.k1, h.k1), lambda = number(0.3), one = number(1);
  CHECK(distance(run(differential(raw), {.q = q, .k = k, .v = h.v, .lambda = lambda}), 0.7 * h.plain1()) < 1e-15);
  CHECK(same_bits(run(differential(raw), {.q = q, .k = k, .v = h.v, .lambda = one}), M::Zero(20, 5)));
}

TEST_CASE("rows of the map sum to 1 - lambda: values of one give 1 - lambda") {
  const Head h(9, 40, 7, 3);
  const M ones = M::Ones(40, 3), lambda = number(0.35);
  CHECK(distance(run(differential(raw), {.q = h.q, .k = h.k, .v = ones, .lambda = lambda}), M::Constant(9, 3, 0.65)) <
        1e-14);
}

TEST_CASE("the output without a norm is affine in lambda, which is free of bounds") {
  const Head h(11, 14, 4, 6);
  const auto at = [&](double x) {
    const M lambda = number(x);
    return run(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda});
  };
  for (double x : {-0.7, 0.4, 1.9}) CHECK(distance(at(x), (1 - x) * at(0) + x * at(1)) < 1e-14);
}

TEST_CASE("vectors of zeros, or none, make lambda its initial value, which follows the depth") {
  const Head h(8, 9, 4, 5);
  const M zeros = M::Zero(1, 6), lambda = number(0.35);
  const auto op = differential({.lambda_init = 0.35, .norm = HeadNorm::none});
  const M given = run(op, {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda});
  CHECK(same_bits(run(op, {.q = h.q,
                           .k = h.k,
                           .v = h.v,
                           .lambda_q1 = zeros,
                           .lambda_k1 = zeros,
                           .lambda_q2 = zeros,
                           .lambda_k2 = zeros}),
                  given));
  CHECK(same_bits(limpid::forward(op, limpid::qkv(h.q, h.k, h.v)), given));
  CHECK(limpid::lambda_init_of_layer(1) == Approx(0.2).epsilon(1e-14));
  CHECK(limpid::lambda_init_of_layer(2) == Approx(0.35550906759096934).epsilon(1e-14));
  CHECK(limpid::lambda_init_of_layer(28) == Approx(0.7998178).epsilon(1e-6));
}

TEST_CASE("lambda from its vectors, forward and backward") {
  M v[4];
  for (int i = 0; i < 4; ++i) v[i] = random(1, 5, 7 + static_cast<std::uint64_t>(i));
  const auto lambda = [&] { return limpid::lambda_from<double>({v[0], v[1], v[2], v[3]}, 0.2); };
  CHECK(lambda() == Approx(std::exp(v[0].row(0).dot(v[1].row(0))) - std::exp(v[2].row(0).dot(v[3].row(0))) + 0.2));
  M grad[4] = {v[0], v[1], v[2], v[3]};
  limpid::lambda_from_backward<double>({v[0], v[1], v[2], v[3]}, 1.5, {grad[0], grad[1], grad[2], grad[3]});
  for (int i = 0; i < 4; ++i) CHECK(distance(grad[i], 1.5 * limpid::numeric_gradient(v[i], lambda)) < 1e-9);
}

TEST_CASE("without eps the normed output does not see the size of the values") {
  const Head h(12, 17, 5, 8);
  const M larger = 37.5 * h.v, lambda = number(0.4);
  const auto op = differential({.eps = 0});
  CHECK(distance(run(op, {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda}),
                 run(op, {.q = h.q, .k = h.k, .v = larger, .lambda = lambda})) < 1e-14);
}

TEST_CASE("the norm is (1 - lambda_init) gamma H over its root mean square") {
  const Head h(6, 7, 4, 19);
  const M gamma = random(1, 19, 3), lambda = number(0.4);
  const M raw_out = run(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda});
  M want = raw_out;
  for (Index i = 0; i < 6; ++i)
    want.row(i) =
        0.75 * raw_out.row(i).cwiseProduct(gamma.row(0)) / std::sqrt(raw_out.row(i).squaredNorm() / 19 + 0.01);
  CHECK(distance(run(differential({.lambda_init = 0.25, .eps = 0.01}),
                     {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda, .gamma = gamma}),
                 want) < 1e-14);
}

TEST_CASE("one token gives (1 - lambda) v") {
  const Head h(1, 1, 4, 8);
  const M lambda = number(0.3);
  CHECK(distance(run(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda}), 0.7 * h.v) < 1e-15);
}

TEST_CASE("without eps it is gated attention at the logit -ln lambda, gradients included") {
  const Head h(21, 34, 6, 9);
  const M gamma = random(1, 9, 5), lambda = number(0.8), z = M::Constant(21, 1, -std::log(0.8));
  const auto op = differential({.lambda_init = 0.3, .eps = 0});
  const auto gated = limpid::differential_gated({.lambda_init = 0.3, .eps = 0});
  const In in{.q = h.q, .k = h.k, .v = h.v, .lambda = lambda, .gamma = gamma};
  const limpid::Inputs<decltype(gated), double> gated_in{.q = h.q, .k = h.k, .v = h.v, .z = z, .gamma = gamma};
  M out(21, 9), gated_out(21, 9), dq = h.q, dk = h.k, dv = h.v, dgamma = gamma, dlambda = lambda;
  M gdq = h.q, gdk = h.k, gdv = h.v, gdgamma = gamma, dz = z;
  limpid::Saved<Op, double> saved;
  limpid::Saved<std::remove_const_t<decltype(gated)>, double> gated_saved;
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::forward(gated, gated_in, gated_out, {.saved = &gated_saved});
  CHECK(distance(out, gated_out) < 1e-13);
  limpid::backward(op, in, saved, h.dout, {.q = dq, .k = dk, .v = dv, .lambda = dlambda, .gamma = dgamma});
  limpid::backward(gated, gated_in, gated_saved, h.dout, {.q = gdq, .k = gdk, .v = gdv, .z = dz, .gamma = gdgamma});
  CHECK(distance(dq, gdq) < 1e-12);
  CHECK(distance(dk, gdk) < 1e-12);
  CHECK(distance(dv, gdv) < 1e-12);
  CHECK(distance(dgamma, gdgamma) < 1e-12);
  CHECK(dlambda(0, 0) == Approx(-dz.sum() / 0.8).epsilon(1e-10));  // lambda = exp(-z)
}

TEST_CASE("version 2 subtracts sigmoid(z) of the second map, one key for both branches") {
  const Head h(16, 23, 8, 8);
  M z = random(16, 1, 9, 3);
  z(3, 0) = -inf;
  M want = h.plain1();
  const M second = limpid::forward(limpid::softmax(), limpid::qkv(h.q2, h.k1, h.v));
  for (Index i = 0; i < 16; ++i) want.row(i) -= second.row(i) / (1 + std::exp(-z(i, 0)));
  const M out = run(differential_v2(), {.q = h.q, .k = h.k1, .v = h.v, .z = z});
  CHECK(distance(out, want) < 1e-14);
  CHECK(same_bits(out.row(3), h.plain1().row(3)));
  const M twice = pack(h.k1, h.k1);
  CHECK(same_bits(out, run(differential_v2(), {.q = h.q, .k = twice, .v = h.v, .z = z})));
}

TEST_CASE("gradients of differential attention match central differences") {
  const Head h(7, 9, 3, 5);
  const M lambda = number(0.45), gamma = random(1, 5, 60), z = random(7, 1, 61);
  M v[4];
  for (int i = 0; i < 4; ++i) v[i] = random(1, 3, 62 + static_cast<std::uint64_t>(i));
  gradients_are_right(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda});
  gradients_are_right(differential(limpid::causal(), {.lambda_init = 0.3}), {.q = h.q,
                                                                             .k = h.k,
                                                                             .v = h.v,
                                                                             .lambda_q1 = v[0],
                                                                             .lambda_k1 = v[1],
                                                                             .lambda_q2 = v[2],
                                                                             .lambda_k2 = v[3],
                                                                             .gamma = gamma});
  gradients_are_right(differential_v2(), {.q = h.q, .k = h.k1, .v = h.v, .z = z});
}

TEST_CASE("gradients of batches, grouped keys and parameters of every head match central differences") {
  const Index batch = 2, heads = 4, groups = 2, n = 3, m = 5, d = 2, dv = 3;
  const M q = random(batch * n, heads * 2 * d, 1), k = random(batch * m, groups * 2 * d, 2),
          one_key = random(batch * m, groups * d, 3), v = random(batch * m, groups * dv, 4),
          lambda = random(heads, 1, 5), z = random(batch * n, heads, 6), gamma = random(1, dv, 7);
  const limpid::GradientOptions calls{.batch = batch, .heads = heads, .kv_heads = groups};
  gradients_are_right(differential(), {.q = q, .k = k, .v = v, .lambda = lambda, .gamma = gamma}, calls);
  gradients_are_right(differential_v2(), {.q = q, .k = one_key, .v = v, .z = z}, calls);
}

TEST_CASE("head i of grouped keys meets key blocks 2 g and 2 g + 1 and value block g") {
  const Index heads = 4, groups = 2, n = 6, m = 8, d = 3, dv = 4;
  const M q = random(n, heads * 2 * d, 1), k = random(m, groups * 2 * d, 2), v = random(m, groups * dv, 4);
  M out(n, heads * dv);
  limpid::forward(differential(), limpid::qkv(q, k, v), out, {.heads = heads, .kv_heads = groups});
  for (Index i = 0; i < heads; ++i) {
    const Index g = i / 2;
    const M one = limpid::forward(
        differential(),
        limpid::qkv(q.middleCols(i * 2 * d, 2 * d), k.middleCols(g * 2 * d, 2 * d), v.middleCols(g * dv, dv)));
    CHECK(same_bits(out.middleCols(i * dv, dv), one));
  }
}

TEST_CASE("gradients that accumulate add to what is there, one key for both branches included") {
  const Head h(9, 12, 4, 6);
  const M z = random(9, 1, 3);
  const auto op = differential_v2();
  const In in{.q = h.q, .k = h.k1, .v = h.v, .z = z};
  M out(9, 6), dq = h.q, dk = h.k1, dv = h.v, dz = z;
  limpid::Saved<Op, double> saved;
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::backward(op, in, saved, h.dout, {.q = dq, .k = dk, .v = dv, .z = dz});
  M q2 = M::Constant(9, 8, 2.0), k2 = M::Constant(12, 4, 3.0), v2 = M::Constant(12, 6, 4.0),
    z2 = M::Constant(9, 1, 5.0);
  limpid::backward(op, in, saved, h.dout, {.q = q2, .k = k2, .v = v2, .z = z2}, {.accumulate = true});
  CHECK(distance(q2.array() - 2.0, dq) < 1e-14);
  CHECK(distance(k2.array() - 3.0, dk) < 1e-14);
  CHECK(distance(v2.array() - 4.0, dv) < 1e-14);
  CHECK(distance(z2.array() - 5.0, dz) < 1e-14);
}

TEST_CASE("a row with every key masked gives zeros and passes no gradient, whatever it holds") {
  for (const HeadNorm norm : {HeadNorm::none, HeadNorm::rms}) {
    Head h(6, 10, 4, 5);
    Mask keep = Mask::Constant(6, 10, true);
    keep.row(2).setConstant(false);
    keep.col(7).setConstant(false);
    M z = random(6, 1, 9), gamma = random(1, 5, 10);
    const auto op = differential(limpid::mask_matrix(keep), {.norm = norm, .eps = 0});
    using MaskedOp = std::remove_const_t<decltype(op)>;
    M out(6, 5), dq = h.q, dk = h.k, dv = h.v, dz = z, dgamma = gamma;
    const auto pass = [&] {
      limpid::Inputs<MaskedOp, double> in{.q = h.q, .k = h.k, .v = h.v, .z = z};
      limpid::Grads<MaskedOp, double> grad{.q = dq, .k = dk, .v = dv, .z = dz};
      if (norm == HeadNorm::rms) in.gamma = gamma, grad.gamma = dgamma;
      limpid::Saved<MaskedOp, double> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, h.dout, grad);
    };
    pass();
    CHECK(same_bits(out.row(2), M::Zero(1, 5)));
    CHECK(same_bits(dq.row(2), M::Zero(1, 8)));
    CHECK(same_bits(dk.row(7), M::Zero(1, 8)));
    CHECK(same_bits(dv.row(7), M::Zero(1, 5)));
    CHECK(dz(2, 0) == 0);
    const M out_was = out, dq_was = dq, dk_was = dk, dv_was = dv, dz_was = dz, dgamma_was = dgamma;
    h.q.row(2).setConstant(not_a_number), z(2, 0) = not_a_number, h.dout.row(2).setConstant(not_a_number);
    h.k.row(7).setConstant(not_a_number), h.v.row(7).setConstant(inf);
    pass();
    CHECK(same_bits(out, out_was));
    CHECK(same_bits(dq, dq_was));
    CHECK(same_bits(dk, dk_was));
    CHECK(same_bits(dv, dv_was));
    CHECK(same_bits(dz, dz_was));
    CHECK(same_bits(dgamma, dgamma_was));
  }
}

TEST_CASE("the effective map is A1 - lambda A2, seen whole, in blocks and at work, and both maps can be seen alone") {
  const Head h(13, 18, 5, 4);
  const M lambda = number(0.6), x = random(18, 3, 8), y = random(2, 13, 9);
  auto op = differential(raw);
  const In in{.q = h.q, .k = h.k, .v = h.v, .lambda = lambda};
  limpid::Saved<Op, double> saved;
  M out(13, 4), whole, first(13, 18), second(13, 18), block(3, 7), right(13, 3), left(2, 18), entropy(13, 1);
  Mat<double> lse;
  limpid::forward(op, in, out, {.saved = &saved, .lse = &lse, .map = &whole});
  CHECK(same_bits(out, run(op, in)));
  CHECK(distance(whole * h.v, out) < 1e-14);
  CHECK(distance(whole.rowwise().sum(), M::Constant(13, 1, 0.4)) < 1e-14);
  CHECK(whole.minCoeff() < 0);
  limpid::map_block(op, in, saved, 4, 9, block);
  CHECK(distance(block, whole.block(4, 9, 3, 7)) < 1e-15);
  limpid::map_right(op, in, saved, x, right);
  CHECK(distance(right, whole * x) < 1e-14);
  limpid::map_left(op, in, saved, y, left);
  CHECK(distance(left, y * whole) < 1e-14);
  CHECK_THROWS_AS(limpid::map_entropy(op, in, saved, entropy), limpid::ShapeError);

  op.options.shown = Shown::first;
  limpid::map_block(op, in, saved, 0, 0, first);
  CHECK(distance(first * h.v, h.plain1()) < 1e-14);
  limpid::map_entropy(op, in, saved, entropy);
  CHECK(distance(entropy, -(first.array() * first.array().log()).rowwise().sum()) < 1e-13);
  CHECK(distance(lse.transpose(), (h.q1 * h.k1.transpose() / std::sqrt(5.0)).array().exp().rowwise().sum().log()) <
        1e-13);
  op.options.shown = Shown::second;
  limpid::map_block(op, in, saved, 0, 0, second);
  CHECK(distance(second * h.v, h.plain2()) < 1e-14);
  limpid::map_left(op, in, saved, y, left);
  CHECK(distance(left, y * second) < 1e-14);
  limpid::map_right(op, in, saved, x, right);
  CHECK(distance(right, second * x) < 1e-14);
  CHECK(distance(whole, first - 0.6 * second) < 1e-15);
}

TEST_CASE("relevance sent down with the backward pass is that of the effective map") {
  const Head h(30, 70, 5, 6);
  const M lambda = number(0.6), weights = random(1, 30, 8);
  const auto op = differential(raw);
  const In in{.q = h.q, .k = h.k, .v = h.v, .lambda = lambda};
  limpid::Saved<Op, double> saved;
  M out(30, 6), map, dq = h.q, again = h.q, relevance(1, 70);
  limpid::forward(op, in, out, {.saved = &saved, .map = &map});
  limpid::backward(op, in, saved, h.dout, {.q = dq});
  limpid::backward(op, in, saved, h.dout, {.q = again}, {.relevance_weights = weights, .relevance = relevance});
  CHECK(same_bits(dq, again));
  const M part = map.cwiseProduct(h.dout * h.v.transpose()).cwiseMax(0.0);
  CHECK(distance(relevance, weights * part) < 1e-13);
}

TEST_CASE("arguments that do not fit are refused by name") {
  const Head h(4, 5, 3, 6);
  const M odd = random(4, 5, 1), narrow = random(5, 4, 2), lambda = number(0.5), vector = random(1, 3, 3),
          gamma = random(1, 5, 4);
  const auto refused = [&](const auto& op, const In& in, const std::string& what) {
    M out(4, 6);
    try {
      limpid::forward(op, in, out);
    } catch (const limpid::ShapeError& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find("differential: " + what) == 0);
      return;
    }
    FAIL("was not refused: " << what);
  };
  refused(differential(), {.q = odd, .k = h.k, .v = h.v}, "q has width 5");
  refused(differential(), {.q = h.q, .k = narrow, .v = h.v}, "q has width 6 a head and k has 4");
  refused(differential(), {.q = h.q, .k = h.k, .v = h.v, .lambda_q1 = vector}, "1 of the four vectors");
  refused(differential(), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda, .z = lambda}, "z is 1 x 1, wanted 4 rows");
  const M z = random(4, 1, 5), wide = random(4, 2, 6);
  refused(differential(), {.q = h.q, .k = h.k, .v = h.v, .lambda = lambda, .z = z}, "lambda is given twice");
  refused(differential(), {.q = h.q, .k = h.k, .v = h.v, .z = wide}, "z has 2 columns");
  refused(differential(), {.q = h.q, .k = h.k, .v = h.v, .gamma = gamma}, "gamma has 5 columns, wanted 6");
  refused(differential(raw), {.q = h.q, .k = h.k, .v = h.v, .gamma = gamma}, "gamma is given, but norm is none");
  refused(differential({.eps = -1}), {.q = h.q, .k = h.k, .v = h.v}, "eps is -1");
}
