// limpid: tests of the attention-only transformer; the denoising theorem is in denoising_test.cpp.
// SPDX-License-Identifier: MIT
#include <cstring>
#include <limpid/check/subspace_data.hpp>
#include <limpid/layer/aot.hpp>
#include <limpid/layer/crate.hpp>

#include "layer_gradient.hpp"
#include "support/distance.hpp"

namespace {

using limpid::aot, limpid::AotArgs, limpid::Index, limpid::Mat, limpid::mssa, limpid::View;
using suite::distance;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

/// One layer's parameters, MSSA of width 4 on tokens of width 6.
AotArgs<M> parameters(std::uint64_t seed) {
  AotArgs<M> p;
  p.eta = random(1, 1, seed), p.gamma = random(1, 6, seed + 1), p.beta = random(1, 6, seed + 2);
  p.u = random(6, 4, seed + 3), p.wo = random(4, 6, seed + 4), p.bo = random(1, 6, seed + 5);
  return p;
}

/// The gradient of a bias that is not given is that of one of zeros.
template <class Args, class Layer>
void check_absent_bias(const Layer& layer, Args p, M Args::*bias) {
  typename Layer::template Saved<double> saved;
  const M dout = random(10, 6, 51);
  M out(10, 6), absent;
  (p.*bias).resize(0, 0);
  for (const bool given : {false, true}) {
    if (given) p.*bias = M::Zero(1, 6);
    layer.forward(p, out, {.batch = 2, .saved = &saved});
    Args g;
    g.*bias = M::Constant(1, 6, 7);
    layer.backward(p, saved, dout, g);
    if (!given) absent = g.*bias;
    CHECK((g.*bias - absent).norm() == 0);
  }
  CHECK(absent.norm() > 0);
}

}  // namespace

TEST_CASE("A bias that is not given has the gradient of one that is 0: aot, mssa and crate") {
  AotArgs<M> p = parameters(1);
  p.x = random(10, 6, 30);
  check_absent_bias(aot(mssa(), {.heads = 2}), p, &AotArgs<M>::bo);
  limpid::MssaLayerArgs<M> free{p.x, p.u, p.wo, p.bo}, tied{p.x, p.u, {}, {}};
  check_absent_bias(limpid::mssa_layer(mssa(), 2), free, &limpid::MssaLayerArgs<M>::bo);
  check_absent_bias(limpid::mssa_layer(mssa(), 2), tied, &limpid::MssaLayerArgs<M>::bo);
  limpid::CrateArgs<M> block;
  block.x = p.x, block.u = p.u, block.dictionary = random(6, 6, 36);
  check_absent_bias(limpid::crate(mssa(), {.heads = 2}), block, &limpid::CrateArgs<M>::bo);
  p.u.resize(0, 0);
  p.wq = random(6, 6, 31), p.wk = random(6, 6, 32), p.wv = random(6, 6, 33), p.wo = random(6, 6, 34);
  const auto multi = aot(limpid::softmax(), {.heads = 2});
  check_absent_bias(multi, p, &AotArgs<M>::bq);
  check_absent_bias(multi, p, &AotArgs<M>::bv);
  check_absent_bias(multi, p, &AotArgs<M>::bo);
}

TEST_CASE(
    "aot layer: central differences agree, MSSA and multi-head, with and "
    "without the norm") {
  AotArgs<M> p = parameters(1);
  p.x = random(2 * 5, 6, 30);
  suite::check_layer_gradient<AotArgs>(aot(mssa(limpid::causal()), {.heads = 2}), p, 10, 6, 2);
  p.gamma.resize(0, 0), p.beta.resize(0, 0), p.wo.resize(0, 0);
  suite::check_layer_gradient<AotArgs>(aot(mssa(), {.heads = 2, .norm = false}), p, 10, 6, 2);
  p.u.resize(0, 0);
  p.wq = random(6, 4, 31), p.wk = random(6, 2, 32), p.wv = random(6, 3, 33), p.wo = random(6, 6, 34);
  p.gamma = random(1, 6, 35);
  suite::check_layer_gradient<AotArgs>(aot(limpid::softmax(limpid::causal()), {.heads = 2, .kv_heads = 1}), p, 10, 6,
                                       2);
}

TEST_CASE(
    "aot layer: eta 0 is the identity with no gradient but eta's, and "
    "eta is 1 unless it is given") {
  AotArgs<M> p = parameters(3);
  p.x = random(7, 6, 40);
  p.eta.setZero();
  const auto layer = aot(mssa(), {.heads = 2});
  M out(7, 6), same(7, 6);
  const M dout = random(7, 6, 41);
  limpid::AotSaved<decltype(layer.op), double> saved;
  layer.forward(p, out, {.saved = &saved});
  CHECK(distance(out, p.x) == 0);
  AotArgs<M> g = p;
  layer.backward(p, saved, dout, g);
  AotArgs<M>::visit(
      [&](const std::string& name, const M& d) {
        if (d.size() > 0 && name != "x" && name != "eta") CHECK(d.isZero(0));
      },
      g);
  CHECK(std::abs(g.eta(0, 0)) > 1e-3);
  CHECK(distance(g.x, dout) == 0);
  p.eta.setOnes();
  layer.forward(p, out);
  p.eta.resize(0, 0);
  layer.forward(p, same);
  CHECK(distance(out, same) == 0);
}

TEST_CASE(
    "aot layer: with the norm, scaled and shifted rows change by the "
    "same amount, and constant rows are fine") {
  AotArgs<M> p = parameters(5);
  p.x = random(8, 6, 50);
  const auto layer = aot(mssa(), {.heads = 2, .eps = 0});
  M out(8, 6), other(8, 6);
  layer.forward(p, out);
  const M x = p.x;
  p.x = (2.5 * x).array() + 0.7;
  layer.forward(p, other);
  CHECK(distance(out - x, other - p.x) < 1e-13);
  p.x.row(3).setConstant(2);
  limpid::AotSaved<decltype(layer.op), double> saved;
  const auto usual = aot(mssa(), {.heads = 2});
  usual.forward(p, out, {.saved = &saved});
  AotArgs<M> g = p;
  usual.backward(p, saved, out, g);
  CHECK(g.x.allFinite());
}

TEST_CASE(
    "aot layer, tied, orthonormal, no norm: one token goes to x + eta x "
    "u u^T") {
  const auto data = limpid::subspace_data<double>({.tokens = 1, .classes = 2, .width = 3, .dim = 6});
  const M eta = M::Constant(1, 1, 0.3);
  M out(1, 6);
  aot(mssa(), {.heads = 2, .norm = false}).forward({.x = data.x, .eta = eta, .u = data.u}, out);
  CHECK(distance(out, 1.3 * data.x) < 1e-15);
}

TEST_CASE(
    "aot stack: layer after layer, the gradient through all of them, and "
    "nothing kept where nothing is asked") {
  std::vector<AotArgs<M>> layers{parameters(1), parameters(20), parameters(40)}, grads = layers;
  const limpid::AotStack<limpid::Mssa<limpid::Chain<limpid::Causal>>> stack{aot(mssa(limpid::causal()), {.heads = 2})};
  M x = random(9, 6, 60), out(9, 6), want = x, dx = x;
  const M dout = random(9, 6, 61);
  limpid::AotStackSaved<decltype(stack.layer.op), double> saved;
  stack.forward(x, layers, out, {.saved = &saved});
  for (auto layer : layers) {
    layer.x = want;
    stack.layer.forward(layer, want);
  }
  CHECK(distance(out, want) == 0);
  const auto value = [&] {
    M y(9, 6);
    stack.forward(x, layers, y);
    return y.cwiseProduct(dout).sum();
  };
  stack.backward(x, layers, saved, dout, dx, grads);
  CHECK(distance(limpid::numeric_gradient(x, value), dx) < 1e-9);
  for (std::size_t l = 0; l < layers.size(); ++l)
    AotArgs<M>::visit(
        [&](const char* name, M& p, const M& g) {
          if (p.size() == 0) return;
          INFO(name << " of layer " << l);
          CHECK(distance(limpid::numeric_gradient(p, value), g) < 1e-8);
        },
        layers[l], grads[l]);
  // once more, added to what is there
  const M once = dx;
  const std::vector<AotArgs<M>> grads_once = grads;
  stack.backward(x, layers, saved, dout, dx, grads, {.accumulate = true});
  CHECK(distance(dx, 2 * once) < 1e-13);
  for (std::size_t l = 0; l < layers.size(); ++l)
    AotArgs<M>::visit(
        [&](const char* name, const M& two, const M& one) {
          INFO(name << " of layer " << l);
          if (one.size() > 0) CHECK(distance(two, 2 * one) < 1e-13);
        },
        grads[l], grads_once[l]);
  // causal: row i hangs on rows 0 .. i alone
  M later = x, changed(9, 6);
  later.row(8).setConstant(4);
  stack.forward(later, layers, changed);
  CHECK(std::memcmp(changed.data(), out.data(), 8 * 6 * sizeof(double)) == 0);
  const std::vector<AotArgs<M>> none;
  stack.forward(x, none, changed);
  CHECK(distance(changed, x) == 0);
}

TEST_CASE("aot layer says what does not fit") {
  AotArgs<M> p = parameters(7);
  p.x = random(4, 6, 70);
  M out(4, 6);
  p.wq = p.u;
  CHECK_THROWS_WITH(aot(mssa(), {.heads = 2}).forward(p, out),
                    "aot layer: wq, wk or wv is given to MSSA, whose projection is u");
  p.wq.resize(0, 0);
  CHECK_THROWS_WITH(aot(mssa(), {.heads = 2, .norm = false}).forward(p, out),
                    "aot layer: gamma or beta is given, but norm is false");
  CHECK_THROWS_WITH(aot(limpid::softmax(), {.heads = 2}).forward(p, out),
                    "aot layer: u is given to multi-head attention, whose "
                    "projections are wq, wk and wv");
  p.eta = M::Zero(1, 2);
  CHECK_THROWS_WITH(aot(mssa(), {.heads = 2}).forward(p, out), "aot layer: eta is 1 x 2, wanted 1 x 1");
}

TEST_CASE("aot layer: what a layer without norm kept is refused by one with") {
  AotArgs<M> p = parameters(1);
  p.x = random(5, 6, 30);
  const M dout = random(5, 6, 31);
  M out(5, 6), dx(5, 6);
  limpid::AotSaved<std::remove_cvref_t<decltype(mssa())>, double> saved;
  const auto normed = aot(mssa(), {.heads = 2}), plain = aot(mssa(), {.heads = 2, .norm = false});
  AotArgs<View<double>> in;
  in.x = p.x, in.u = p.u, in.wo = p.wo, in.eta = p.eta;
  AotArgs<limpid::MutView<double>> grad;
  grad.x = dx;
  normed.forward(in, out, {1, &saved});
  plain.forward(in, out, {1, &saved});
  CHECK_THROWS_WITH(normed.backward(in, saved, dout, grad), Catch::Contains("aot layer: saved is of a norm of 0 x"));
  normed.forward(in, out, {1, &saved});
  normed.backward(in, saved, dout, grad);
}
