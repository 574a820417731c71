// limpid: tests of layer normalisation and of the multi-head layers, MSSA among them.
// SPDX-License-Identifier: MIT
#include <limpid/layer/layer_norm.hpp>
#include <limpid/layer/mssa.hpp>
#include <limpid/layer/multi_head.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/rope.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/twicing.hpp>

#include "layer_gradient.hpp"
#include "support/distance.hpp"
#include "support/linear_algebra.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::mssa, limpid::mssa_layer, limpid::MssaLayerArgs, limpid::MultiHeadArgs;
using suite::distance;
using suite::product, suite::product_nt, suite::product_tn;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}
/// rows x cols with orthonormal columns.
M orthonormal(Index rows, Index cols, std::uint64_t seed) { return suite::orthonormal(random(rows, rows, seed), cols); }
template <class Layer, class Args>
M run(const Layer& layer, const Args& args, Index rows, Index cols) {
  M out(rows, cols);
  layer.forward(args, out);
  return out;
}

}  // namespace

TEST_CASE("layer norm: rows have mean 0 and variance 1, a constant row gives beta, and shift and scale do not show") {
  const M x = random(9, 13, 1, 3), gamma = random(1, 13, 2), beta = random(1, 13, 3);
  const limpid::View<double> none;
  M y = x, z = x;
  limpid::layer_norm(x, none, none, y, {.eps = 0});
  CHECK((y.rowwise().mean().array().abs() < 1e-15).all());
  CHECK(distance(y.cwiseProduct(y).rowwise().mean(), M::Ones(9, 1)) < 1e-14);
  const M moved = (5 * x).array() + 3;
  limpid::layer_norm(moved, none, none, z, {.eps = 0});
  CHECK(distance(y, z) < 1e-14);
  limpid::layer_norm(x, gamma, beta, z, {.eps = 0});
  CHECK(distance(z, y.cwiseProduct(gamma.replicate(9, 1)) + beta.replicate(9, 1)) < 1e-15);
  const M flat = M::Constant(9, 13, 0.3);
  for (double eps : {1e-5, 0.0}) {
    limpid::layer_norm(flat, gamma, beta, z, {.eps = eps});
    CHECK(distance(z, beta.replicate(9, 1)) < 1e-12);
  }
}

TEST_CASE("layer norm: central differences agree with the gradient, of a constant row too") {
  M x = random(300, 5, 4), gamma = random(1, 5, 5), beta = random(1, 5, 6), y = x, dx = x, dgamma = gamma, dbeta = beta;
  const M dy = random(300, 5, 7);
  x.row(4).setConstant(0.25);
  limpid::LayerNormSaved<double> saved;
  const auto value = [&] {
    limpid::layer_norm(x, gamma, beta, y, {.eps = 0.1, .saved = &saved});
    return y.cwiseProduct(dy).sum();
  };
  value();
  limpid::layer_norm_backward(x, gamma, saved, dy, {dx, dgamma, dbeta});
  const M found = dx.topRows(8);
  CHECK(distance(limpid::numeric_gradient<double>(limpid::MutView<double>(x).block(0, 0, 8, 5), value), found) < 1e-9);
  CHECK(distance(limpid::numeric_gradient(gamma, value), dgamma) < 1e-8);
  CHECK(distance(limpid::numeric_gradient(beta, value), dbeta) < 1e-8);
}

TEST_CASE("multi-head layer: central differences agree, with grouped keys, biases and a batch") {
  MultiHeadArgs<M> p{random(2 * 5, 4, 1), random(4, 6, 2), random(1, 6, 3), random(4, 3, 4), random(1, 3, 5),
                     random(4, 2, 6),     random(1, 2, 7), random(4, 3, 8), random(1, 3, 9)};
  suite::check_layer_gradient<MultiHeadArgs>(limpid::multi_head(limpid::softmax(limpid::causal()), 2, 1), p, 10, 3, 2);
  p.wo.resize(0, 0), p.bo.resize(0, 0), p.bq.resize(0, 0);
  suite::check_layer_gradient<MultiHeadArgs>(limpid::multi_head(limpid::softmax(), 2, 1), p, 10, 4, 2);
}

TEST_CASE(
    "multi-head layer: central differences agree of cross attention and of normed heads, with gammas and without") {
  MultiHeadArgs<M> p{random(2 * 5, 4, 1), random(4, 6, 2), random(1, 6, 3), random(4, 3, 4), random(1, 3, 5),
                     random(4, 2, 6),     random(1, 2, 7), random(4, 3, 8), random(1, 3, 9)};
  auto layer = limpid::multi_head(limpid::softmax(), 2, 1);
  layer.qk_norm_eps = 0.1;
  suite::check_layer_gradient<MultiHeadArgs>(layer, p, 10, 3, 2);
  p.gamma_q = random(1, 3, 10), p.gamma_k = random(1, 3, 11);
  suite::check_layer_gradient<MultiHeadArgs>(layer, p, 10, 3, 2);
  p.context = random(2 * 3, 5, 12), p.wk = random(5, 3, 13), p.wv = random(5, 2, 14);
  suite::check_layer_gradient<MultiHeadArgs>(layer, p, 10, 3, 2);
  layer.qk_norm_eps = {}, p.gamma_q.resize(0, 0), p.gamma_k.resize(0, 0);
  suite::check_layer_gradient<MultiHeadArgs>(layer, p, 10, 3, 2);
}

TEST_CASE("multi-head layer: normed heads and context are what the operator is given") {
  const M x = random(7, 4, 1), c = random(9, 5, 2), wq = random(4, 6, 3), wk = random(5, 6, 4), wv = random(5, 4, 5);
  const M gq = random(1, 3, 6), gk = random(1, 3, 7);
  M q = product(x, wq), k = product(c, wk);
  const M v = product(c, wv);
  for (M* m : {&q, &k})
    for (Index i = 0; i < m->rows(); ++i)
      for (const Index h : {0, 3}) {
        auto head = m->block(i, h, 1, 3);
        head = (head / std::sqrt(head.squaredNorm() / 3 + 1e-3)).cwiseProduct(m == &q ? gq : gk).eval();
      }
  M wanted(7, 4), out(7, 4);
  limpid::forward(limpid::softmax(), limpid::qkv(q, k, v), wanted, {.heads = 2});
  auto layer = limpid::multi_head(limpid::softmax(), 2);
  layer.qk_norm_eps = 1e-3;
  limpid::MultiHeadSaved<decltype(layer.op), double> saved;
  const MultiHeadArgs<limpid::View<double>> in{
      .x = x, .wq = wq, .wk = wk, .wv = wv, .gamma_q = gq, .gamma_k = gk, .context = c};
  layer.forward(in, out);
  CHECK(distance(out, wanted) < 1e-14);
  M kept = out;
  layer.forward(in, kept, {.saved = &saved});
  CHECK(kept == out);
  CHECK(distance(saved.q, q) < 1e-14);
  CHECK(distance(saved.k, k) < 1e-14);
}

TEST_CASE("multi-head layer: central differences agree of a gate, of heads and of entries, whatever the operator") {
  MultiHeadArgs<M> p{random(2 * 5, 4, 1), random(4, 8, 2), random(1, 8, 3), random(4, 4, 4), random(1, 4, 5),
                     random(4, 4, 6),     random(1, 4, 7), random(4, 3, 8), random(1, 3, 9)};
  p.wo = random(8, 3, 8), p.wv = random(4, 4, 6), p.bv = random(1, 4, 7);
  const auto check = [&](const auto& op, Index gates, bool bias) {
    MultiHeadArgs<M> q = p;
    q.wg = random(4, gates, 10, 2);
    if (bias) q.bg = random(1, gates, 11, 3);
    suite::check_layer_gradient<MultiHeadArgs>(limpid::multi_head(op, 2, 1), q, 10, 3, 2);
    q.wo.resize(0, 0), q.bo.resize(0, 0);
    suite::check_layer_gradient<MultiHeadArgs>(limpid::multi_head(op, 2, 1), q, 10, 8, 2);
  };
  for (const Index gates : {2, 8}) {
    check(limpid::softmax(limpid::causal()), gates, true);
    check(limpid::rope(limpid::softmax(limpid::causal()), {.layout = limpid::RopeLayout::half}), gates, false);
    check(limpid::twicing(limpid::softmax()), gates, true);
    check(limpid::nlm(), gates, true);
    check(limpid::sigmoid(), gates, true);
    check(limpid::boosting(), gates, true);
  }
  auto layer = limpid::multi_head(limpid::softmax(), 2, 1);  // queries' tokens gate what they read from others
  layer.qk_norm_eps = 0.1;
  p.context = random(2 * 3, 5, 12), p.wk = random(5, 4, 13), p.wv = random(5, 4, 14), p.wg = random(4, 2, 15);
  suite::check_layer_gradient<MultiHeadArgs>(layer, p, 10, 3, 2);
}

TEST_CASE(
    "multi-head layer: a gate is the sigmoid of x wg + bg times the heads' output, in float too, at its ends too") {
  const M x = random(7, 4, 1), wq = random(4, 6, 2), wv = random(4, 6, 3), wo = random(6, 5, 4), bg = random(1, 6, 5);
  for (const Index gates : {2, 6}) {
    const M wg = random(4, gates, 6, 30), own = bg.leftCols(gates);  // up to 60 and more: one side of 1 is lost
    MultiHeadArgs<limpid::View<double>> in{.x = x, .wq = wq, .wk = wq, .wv = wv};
    const auto layer = limpid::multi_head(limpid::softmax(), 2);
    M plain(7, 6), gated(7, 6), out(7, 5);
    layer.forward(in, plain);
    in.wg = wg, in.bg = own;
    layer.forward(in, gated);
    const M z = product(x, wg) + own.replicate(7, 1);
    for (Index i = 0; i < 7; ++i)
      for (Index c = 0; c < 6; ++c)
        CHECK(gated(i, c) == Approx(plain(i, c) / (1 + std::exp(-z(i, c * gates / 6)))).epsilon(1e-13));
    in.wo = wo;
    layer.forward(in, out);
    CHECK(distance(out, product(gated, wo)) < 1e-14);
    // packed the other way round, and kept: the same bits
    const M turned = wg.transpose();
    M again(7, 5);
    limpid::MultiHeadSaved<std::remove_const_t<decltype(layer.op)>, double> saved;
    in.wg = limpid::out_in(turned);
    layer.forward(in, again, {.saved = &saved});
    CHECK(again == out);
    CHECK(saved.o == plain);
    CHECK(distance(saved.gate, z) < 1e-14);
    const Mat<float> xf = x.cast<float>(), qf = wq.cast<float>(), vf = wv.cast<float>(), gf = wg.cast<float>();
    Mat<float> single(7, 6);
    layer.forward(MultiHeadArgs<limpid::View<float>>{.x = xf, .wq = qf, .wk = qf, .wv = vf, .wg = gf}, single);
    in.bg = {}, in.wo = {}, in.wg = wg;
    layer.forward(in, gated);
    CHECK(distance(single.cast<double>(), gated) < 1e-5);
  }
}

TEST_CASE("multi-head layer: relevance through the layer is the operator's, and asking changes no bit") {
  MultiHeadArgs<M> p{random(2 * 5, 4, 1), random(4, 6, 2), random(1, 6, 3), random(4, 3, 4), random(1, 3, 5),
                     random(4, 2, 6),     random(1, 2, 7), random(4, 3, 8), random(1, 3, 9)};
  const auto layer = limpid::multi_head(limpid::softmax(limpid::causal()), 2, 1);
  limpid::MultiHeadSaved<std::remove_const_t<decltype(layer.op)>, double> saved;
  M out(10, 3), relevance(2, 5), wanted(2, 5);
  const M dout = random(10, 3, 20), weights = random(2, 5, 21), d_o = product_nt(dout, p.wo);
  layer.forward(p, out, {.batch = 2, .saved = &saved});
  MultiHeadArgs<M> grad = p, asked = p;
  layer.backward(p, saved, dout, grad);
  layer.backward(p, saved, dout, asked,
                 {.relevance_weights = weights, .relevance = relevance, .part = limpid::Part::abs});
  MultiHeadArgs<M>::visit([](const char*, const M& a, const M& b) { CHECK(a == b); }, grad, asked);
  limpid::backward(layer.op, limpid::qkv(saved.q, saved.k, saved.v), saved.attention, d_o, {},
                   {.relevance_weights = weights, .relevance = wanted, .part = limpid::Part::abs});
  CHECK(distance(relevance, wanted) < 1e-14);
  CHECK(relevance.cwiseAbs().minCoeff() > 0);
  M small(2, 4);
  CHECK_THROWS_WITH(layer.backward(p, saved, dout, asked, {.relevance_weights = weights, .relevance = small}),
                    "multi-head layer: relevance is 2 x 4, wanted 2 x 5");
  CHECK_THROWS_WITH(layer.backward(p, saved, dout, asked, {.relevance_weights = weights, .relevance = saved.q}),
                    "multi-head layer: relevance is 10 x 6, wanted 2 x 5");
}

TEST_CASE("multi-head layer: what its operator refuses leaves what was kept as it was") {
  const M x = random(5, 4, 1), w = random(4, 6, 2), fits = random(1, 5, 3), odd = random(1, 4, 4), d = random(5, 6, 5);
  const MultiHeadArgs<limpid::View<double>> in{.x = x, .wq = w, .wk = w, .wv = w};
  const auto layer = limpid::multi_head(limpid::softmax(limpid::key_bias(fits)), 2);
  const auto refused = limpid::multi_head(limpid::softmax(limpid::key_bias(odd)), 2);
  limpid::MultiHeadSaved<std::remove_const_t<decltype(layer.op)>, double> saved;
  M out(5, 6), dx(5, 4), again(5, 4);
  layer.forward(in, out, {.saved = &saved});
  layer.backward(in, saved, d, {.x = dx});
  const M before = out;
  const M half = 0.5 * x;
  MultiHeadArgs<limpid::View<double>> other = in;
  other.x = half;
  CHECK_THROWS_WITH(refused.forward(other, out, {.saved = &saved}),
                    Catch::Matchers::StartsWith("softmax: key bias is"));
  CHECK(out == before);
  layer.backward(in, saved, d, {.x = again});
  CHECK(again == dx);
}

TEST_CASE("mssa layer: central differences agree, tied and free") {
  MssaLayerArgs<M> p{random(2 * 5, 6, 1), random(6, 4, 2), random(4, 3, 3), random(1, 3, 4)};
  const auto layer = mssa_layer(mssa(limpid::causal(), {.scale = 1.1}), 2);
  suite::check_layer_gradient<MssaLayerArgs>(layer, p, 10, 3, 2);
  p.wo.resize(0, 0), p.bo = random(1, 6, 5);
  suite::check_layer_gradient<MssaLayerArgs>(layer, p, 10, 6, 2);
  const auto threshold = mssa_layer(mssa({.scale = 3, .phi = limpid::Phi::threshold, .tau = 0.55}), 2);
  suite::check_layer_gradient<MssaLayerArgs>(threshold, p, 10, 6, 2);
}

TEST_CASE("mssa layer: wo = u^T is the tied form, and attention with wq = wk = wv = u is MSSA") {
  const M x = random(17, 9, 1), u = random(9, 8, 2), ut = u.transpose(), bo = random(1, 9, 3);
  const auto layer = mssa_layer(mssa(), 4);
  const M tied = run(layer, MssaLayerArgs<limpid::View<double>>{x, u, {}, bo}, 17, 9);
  CHECK(distance(tied, run(layer, MssaLayerArgs<limpid::View<double>>{x, u, ut, bo}, 17, 9)) < 1e-14);
  M attention(17, 9);
  limpid::multi_head(limpid::softmax(), 4).forward({.x = x, .wq = u, .wk = u, .wv = u, .wo = ut, .bo = bo}, attention);
  CHECK(distance(tied, attention) < 1e-14);
}

TEST_CASE("mssa layer, tied: one token is projected, scale 0 projects the mean, turned bases and turned tokens fit") {
  const M u = random(9, 6, 2), one = random(1, 9, 3), x = random(16, 9, 4);
  const auto softmax = mssa_layer(mssa(), 3);
  const auto cut = mssa_layer(mssa({.scale = 1, .phi = limpid::Phi::threshold, .tau = 0.6}), 3);
  const auto full = mssa_layer(mssa({.scale = 1, .phi = limpid::Phi::threshold, .tau = 1}), 3);
  const auto tied = [](const auto& layer, const M& tokens, const M& basis) {
    return run(layer, MssaLayerArgs<limpid::View<double>>{tokens, basis, {}, {}}, tokens.rows(), tokens.cols());
  };
  CHECK(distance(tied(softmax, one, u), product_nt(product(one, u), u)) < 1e-14);
  CHECK(distance(tied(cut, one, u), 0.6 * product_nt(product(one, u), u)) < 1e-14);
  CHECK(tied(full, one, u).isZero(0));
  CHECK(distance(tied(mssa_layer(mssa({.scale = 0}), 3), x, u),
                 product_nt(product<double>(x.colwise().mean(), u), u).replicate(16, 1)) < 1e-14);

  M turned = u;
  for (Index k = 0; k < 3; ++k)
    turned.middleCols(2 * k, 2) =
        product<double>(u.middleCols(2 * k, 2), orthonormal(2, 2, static_cast<std::uint64_t>(10 + k)));
  CHECK(distance(tied(softmax, x, turned), tied(softmax, x, u)) < 1e-14);
  const M q = orthonormal(9, 9, 20);
  CHECK(distance(tied(softmax, product(x, q), product_tn(q, u)), product(tied(softmax, x, u), q)) < 1e-14);
}

TEST_CASE("multi-head layers say what does not fit") {
  const M x = random(5, 6, 1), u = random(6, 4, 2), tall = random(7, 4, 3), wo = random(4, 6, 4), b = random(1, 6, 5);
  M out(5, 6), small(5, 5);
  const auto layer = mssa_layer(mssa(), 2);
  CHECK_THROWS_WITH(layer.forward({.x = x, .u = tall}, out), "mssa layer: u is 7 x 4, wanted 6 rows, as x has columns");
  CHECK_THROWS_WITH(layer.forward({.x = x, .u = u}, small), "mssa layer: out is 5 x 5, wanted 5 x 6");
  const auto heads = limpid::multi_head(limpid::softmax(), 2);
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = tall, .wv = u, .wo = wo}, out),
                    "multi-head layer: wk is 7 x 4, wanted 6 rows, as x has columns");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .bo = b}, out),
                    "multi-head layer: bo is given without wo");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = limpid::out_in(u)}, out),
                    "multi-head layer: wv is 6 x 4, [out, in], wanted 6 columns, as x has columns; it would fit as "
                    "in_out(wv)");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .gamma_q = b}, out),
                    "multi-head layer: gamma_q or gamma_k is given without qk_norm_eps");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .context = tall}, out),
                    "multi-head layer: wk is 6 x 4, wanted 4 rows, as context has columns; it would fit as out_in(wk)");
  const M gate = random(6, 3, 8);
  CHECK_THROWS_WITH(
      heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .wg = gate}, out),
      "multi-head layer: wg makes 3 gates, wanted 2, one a head, or 4, one an entry of the heads' output");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .wg = wo}, out),
                    "multi-head layer: wg is 4 x 6, wanted 6 rows, as x has columns; it would fit as out_in(wg)");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .bg = b}, out),
                    "multi-head layer: bg is given without wg");
  CHECK_THROWS_WITH(heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .wg = u, .bg = b}, out),
                    "multi-head layer: bg is 1 x 6, wanted 1 x 4");
  const M three = random(3, 6, 6), six = random(6, 6, 7);
  CHECK_THROWS_WITH(heads.forward({.x = six, .wq = u, .wk = u, .wv = u, .context = three}, out, {.batch = 2}),
                    "multi-head layer: batch is 2 and context has 3 rows, wanted as many in each item");

  // what a layer of other heads has kept does not fit, also where the widths do
  limpid::MultiHeadSaved<limpid::Softmax<limpid::DotScore<limpid::Chain<>>>, double> saved;
  M dx(5, 6);
  const auto four = limpid::multi_head(limpid::softmax(), 4);
  heads.forward({.x = x, .wq = u, .wk = u, .wv = u, .wo = wo}, out, {.saved = &saved});
  CHECK_THROWS_WITH(four.backward({.x = x, .wq = u, .wk = u, .wv = u, .wo = wo}, saved, out, {.x = dx}),
                    "multi-head layer: saved holds heads of 2 and kv_heads of 2, wanted 4 and 4");
}
