// limpid: the MLP of a block, plain and gated.
// SPDX-License-Identifier: MIT
#include <limpid/layer/mlp.hpp>

#include <limpid/exec/thread_pool.hpp>

#include "layer_gradient.hpp"
#include "support/products.hpp"

namespace {

using limpid::Activation, limpid::Index, limpid::Mat, limpid::Mlp, limpid::MlpArgs, limpid::View;
using suite::distance, suite::product;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols);
}
MlpArgs<M> parameters(bool gated) {
  MlpArgs<M> p;
  p.x = random(11, 5, 1), p.w1 = random(5, 9, 2), p.b1 = random(1, 9, 3), p.w2 = random(9, 4, 4),
  p.b2 = random(1, 4, 5);
  if (gated) p.w3 = random(5, 9, 6), p.b3 = random(1, 9, 7);
  return p;
}
double act(Activation a, double x) {
  if (a == Activation::gelu) return x * std::erfc(-x / std::sqrt(2.0)) / 2;
  if (a == Activation::relu) return std::max(x, 0.0);
  if (a == Activation::silu) return x / (1 + std::exp(-x));
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

}  // namespace

TEST_CASE("mlp: the formula, and central differences, of every activation, with a gate and without") {
  for (const Activation a : {Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::silu})
    for (const bool gated : {false, true}) {
      INFO("activation " << static_cast<int>(a) << ", gated " << gated);
      const Mlp layer{a, gated};
      MlpArgs<M> p = parameters(gated);
      M h = product(p.x, p.w1) + p.b1.replicate(11, 1), out(11, 4);
      for (Index i = 0; i < h.size(); ++i) h.data()[i] = act(a, h.data()[i]);
      if (gated) h = h.cwiseProduct(product(p.x, p.w3) + p.b3.replicate(11, 1)).eval();
      layer.forward(p, out);
      CHECK(distance(out, product(h, p.w2) + p.b2.replicate(11, 1)) < 1e-14);
      suite::check_layer_gradient<MlpArgs>(layer, p, 11, 4);
      p.b1.resize(0, 0), p.b2.resize(0, 0), p.b3.resize(0, 0);
      suite::check_layer_gradient<MlpArgs>(layer, p, 11, 4);
    }
}

TEST_CASE("mlp: weights [out, in] give the same bits, gradients lie as they do, each is added or not as it says") {
  const MlpArgs<M> p = parameters(true);
  const M t1 = p.w1.transpose(), t2 = p.w2.transpose(), t3 = p.w3.transpose(), dout = random(11, 4, 9);
  MlpArgs<M> grad = p;
  M out(11, 4), again = out;
  limpid::MlpSaved<double> saved;
  const Mlp layer = limpid::swiglu();
  layer.forward(p, out, {.saved = &saved});
  layer.backward(p, saved, dout, grad);
  const limpid::PackedWeight<double> packed(limpid::out_in(t2));
  MlpArgs<View<double>> turned = p;
  turned.w1 = limpid::out_in(t1), turned.w2 = packed, turned.w3 = limpid::out_in(t3);
  layer.forward(turned, again, {.saved = &saved});
  CHECK(again == out);
  M dx = M::Constant(11, 5, 7), d1 = M::Constant(9, 5, 7), d2 = M::Constant(4, 9, 7), d3 = M::Constant(9, 5, 7),
    b1 = M::Constant(1, 9, 7), b2 = M::Constant(1, 4, 7);
  layer.backward<double>(
      turned, saved, dout,
      {.x = limpid::overwrite(dx), .w1 = d1, .b1 = b1, .w2 = limpid::overwrite(d2), .b2 = b2, .w3 = d3},
      {.accumulate = true});
  CHECK(dx == grad.x);
  CHECK(d2.transpose() == grad.w2);
  CHECK(distance(d1.transpose(), M(grad.w1.array() + 7)) < 1e-14);
  CHECK(distance(d3.transpose(), M(grad.w3.array() + 7)) < 1e-14);
  CHECK(distance(b1, M(grad.b1.array() + 7)) < 1e-14);
  CHECK(distance(b2, M(grad.b2.array() + 7)) < 1e-14);
  layer.backward<double>(turned, saved, dout, {.x = limpid::add(dx), .w3 = d3});
  CHECK(distance(dx, 2 * grad.x) < 1e-14);
  CHECK(d3.transpose() == grad.w3);
}

TEST_CASE("mlp: threads change no bit") {
  suite::Random r(1);
  MlpArgs<Mat<float>> p;
  p.x = suite::random_matrix<float>(r, 400, 33), p.w1 = suite::random_matrix<float>(r, 33, 70);
  p.w2 = suite::random_matrix<float>(r, 70, 33);
  const Mat<float> dout = p.x;
  const auto run = [&](limpid::ExecutorRef executor) {
    std::vector<Mat<float>> all{p.x, p.x, p.w1, p.w2};
    limpid::MlpSaved<float> saved;
    Mlp().forward(p, all[0], {.saved = &saved, .executor = executor});
    Mlp().backward<float>(p, saved, dout, {.x = all[1], .w1 = all[2], .w2 = all[3]}, {.executor = executor});
    return all;
  };
  limpid::ThreadPool pool(3);
  CHECK(run(pool) == run({}));
}

TEST_CASE("mlp: what does not fit is refused by name, before anything is written") {
  const auto refused = [](const Mlp& layer, const MlpArgs<View<double>>& in, const std::string& text) {
    M out = M::Constant(11, 4, 7);
    CHECK(suite::error_of([&] { layer.forward(in, out); }) == "mlp: " + text);
    CHECK((out.array() == 7).all());
  };
  MlpArgs<M> p = parameters(true), plain = parameters(false);
  const M t1 = p.w1.transpose(), narrow = random(5, 8, 9), nan = M::Constant(1, 9, std::nan(""));
  refused({Activation::silu}, p, "w3 or b3 is given to an mlp that is not gated");
  refused(limpid::geglu(), plain, "w3 is not given to a gated mlp");
  MlpArgs<View<double>> in = plain;
  in.w1 = t1;
  refused({}, in, "w1 is 9 x 5, wanted 5 rows, as x has columns; it would fit as out_in(w1)");
  in = plain, in.w2 = limpid::out_in(plain.w2);
  refused({}, in, "w2 is 9 x 4, [out, in], wanted 9 columns, as w1 has outputs; it would fit as in_out(w2)");
  in = p, in.w3 = narrow;
  refused(limpid::swiglu(), in, "w3 is 5 x 8 and w1 5 x 9, wanted as many outputs of both");
  in = plain, in.b1 = plain.b2;
  refused({}, in, "b1 is 1 x 4, wanted 1 x 9");
  in = plain, in.b1 = nan;
  refused({}, in, "b1 is nan in row 0, column 0, wanted finite numbers");
  limpid::MlpSaved<double> saved;
  M dout = random(11, 4, 3), dx(11, 5);
  CHECK_THROWS_WITH(Mlp().backward(plain, saved, dout, {.x = dx}),
                    "mlp: saved holds hidden of 0 x 0, wanted 11 x 9 as the inputs make it");
  Mlp().forward(plain, dout, {.saved = &saved});
  CHECK_THROWS_WITH(Mlp().backward(plain, saved, dout, {.x = plain.x}),
                    "mlp: gradient of x shares memory with x, wanted memory of its own");
  CHECK_THROWS_WITH(Mlp().backward(plain, saved, dout, {.b1 = dx}), "mlp: gradient of b1 is 11 x 5, wanted 1 x 9");
}

TEST_CASE("mlp: many rows, which go through it some at a time, have the bits that each step has of all of them") {
  using limpid::View;
  for (const Index n : {1100, 1024}) {
    const M x = random(n, 5, 1), w1 = random(5, 7, 2), b1 = random(1, 7, 3), w2 = random(7, 6, 4),
            dout = random(n, 6, 6);
    M h(n, 7), a, out(n, 6), kept(n, 6), wanted(n, 6);
    limpid::linear(x, w1, b1, h);
    a = h.cwiseMax(0);
    limpid::linear(a, w2, View<double>(), wanted);
    const Mlp layer{Activation::relu};
    const MlpArgs<View<double>> in{x, w1, b1, w2};
    Mlp::Saved<double> saved;
    layer.forward<M&>(in, out);
    layer.forward<M&>(in, kept, {.saved = &saved});
    CHECK(out == wanted);
    CHECK(kept == wanted);
    M dh(n, 7);
    limpid::linear_backward(a, w2, dout, {dh, {}, {}});
    dh = (h.array() > 0).select(dh, 0.0).eval();
    for (const bool accumulate : {false, true}) {
      M dx = random(n, 5, 7), dw1 = random(5, 7, 8), db1 = random(1, 7, 9), dw2 = random(7, 6, 10),
        db2 = random(1, 6, 11);
      M ex = dx, e1 = dw1, eb1 = db1, e2 = dw2, eb2 = db2;
      limpid::linear_backward(a, w2, dout, {{}, e2, eb2}, {.accumulate = accumulate});
      limpid::linear_backward(x, w1, dh, {ex, e1, eb1}, {.accumulate = accumulate});
      MlpArgs<limpid::Gradient<double>> grad{dx, dw1, db1, dw2, db2};
      layer.backward<double>(in, saved, dout, grad, {.accumulate = accumulate});
      CHECK((dx == ex && dw1 == e1 && db1 == eb1 && dw2 == e2 && db2 == eb2));
    }
  }
}
