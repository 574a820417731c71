// limpid: transformer blocks.
// SPDX-License-Identifier: MIT
#include <limpid/layer/transformer_block.hpp>

#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/relevance.hpp>
#include <limpid/op/rope.hpp>
#include <limpid/op/twicing.hpp>

#include "layer_gradient.hpp"
#include "support/products.hpp"

namespace {

using limpid::Activation, limpid::Index, limpid::Mat, limpid::Mlp, limpid::NormKind, limpid::NormPlace, limpid::View;
using suite::distance;
using M = Mat<double>;
using Args = limpid::TransformerBlockArgs<M>;
using Options = limpid::TransformerBlockOptions;

struct Given {
  bool cross = false, scales = false, beta = true, gamma = true, bias = true, sandwich = false, gated = false,
       mlp = true, heads_norm = false;
  Index kv_heads = 2;
};

/// Parameters of a block of width 6 with two heads of 4 and a hidden layer of 5; tokens are 2 x 4, of the context 2 x
/// 3.
template <class S = double>
limpid::TransformerBlockArgs<Mat<S>> parameters(const Given& g, Index tokens = 8, Index context = 6) {
  limpid::TransformerBlockArgs<Mat<S>> p;
  suite::Random r(17);
  const auto random = [&](Index rows, Index cols) { return suite::random_matrix<S>(r, rows, cols); };
  const Index d = 6, q = 8, k = 4 * g.kv_heads;
  p.x = random(tokens, d);
  p.wq = random(d, q), p.wk = random(d, k), p.wv = random(d, k), p.wo = random(q, d);
  if (g.bias) p.bq = random(1, q), p.bk = random(1, k), p.bv = random(1, k), p.bo = random(1, d);
  if (g.gamma) p.gamma1 = random(1, d);
  if (g.beta) p.beta1 = random(1, d);
  if (g.sandwich) p.gamma1b = random(1, d);
  if (g.sandwich && g.beta) p.beta1b = random(1, d);
  if (g.scales) p.scale1 = random(1, d);
  if (g.heads_norm) p.gamma_q = random(1, 4), p.gamma_k = random(1, 4), p.wg = random(d, 2), p.bg = random(1, 2);
  if (g.cross) {
    p.context = random(context, 3);
    p.wq2 = random(d, q), p.wk2 = random(3, k), p.wv2 = random(3, k), p.wo2 = random(q, d);
    if (g.bias) p.bq2 = random(1, q), p.bk2 = random(1, k), p.bv2 = random(1, k), p.bo2 = random(1, d);
    if (g.gamma) p.gamma_c = random(1, d);
    if (g.beta) p.beta_c = random(1, d);
    if (g.sandwich) p.gamma_cb = random(1, d);
    if (g.scales) p.scale_c = random(1, d);
    if (g.heads_norm) p.gamma_q2 = random(1, 4), p.gamma_k2 = random(1, 4), p.wg2 = random(d, q);
  }
  if (!g.mlp) return p;
  if (g.gamma) p.gamma2 = random(1, d);
  if (g.beta) p.beta2 = random(1, d);
  if (g.sandwich) p.gamma2b = random(1, d);
  if (g.scales) p.scale2 = random(1, d);
  p.w1 = random(d, 5), p.w2 = random(5, d);
  if (g.bias) p.b1 = random(1, 5), p.b2 = random(1, d);
  if (g.gated) p.w3 = random(d, 5);
  if (g.gated && g.bias) p.b3 = random(1, 5);
  return p;
}

/// The same tokens through norm, attention and MLP called one by one.
M plus(const M& a, const M& b) { return a + b; }

}  // namespace

TEST_CASE("Transformer block: central differences agree, wherever norms stand and whatever the sublayers are") {
  const auto plain = limpid::softmax(limpid::causal());
  const auto check = [](const auto& block, const Given& g) {
    suite::check_layer_gradient<limpid::TransformerBlockArgs>(block, parameters(g), 8, 6, 2, 1e-8);
  };
  Options o{.heads = 2, .eps = 1};  // of a smaller one central differences know fewer digits
  for (const NormPlace place : {NormPlace::pre, NormPlace::post, NormPlace::sandwich})
    for (const NormKind norm : {NormKind::layer, NormKind::rms}) {
      INFO("place " << static_cast<int>(place) << ", norm " << static_cast<int>(norm));
      o.place = place, o.norm = norm;
      const bool sandwich = place == NormPlace::sandwich, layer = norm == NormKind::layer;
      o.mlp = Mlp{};
      check(limpid::transformer_block(plain, o), {.beta = layer, .sandwich = sandwich});
      o.mlp = limpid::swiglu();
      check(limpid::transformer_block(plain, limpid::softmax(), o),
            {.cross = true, .scales = !sandwich, .beta = layer, .sandwich = sandwich, .gated = true});
      check(limpid::transformer_block(plain, limpid::softmax(), o),
            {.cross = true, .beta = false, .gamma = false, .bias = false, .gated = true});
      o.mlp = std::nullopt;
      check(limpid::transformer_block(plain, o), {.scales = !sandwich, .beta = false, .mlp = false});
      check(limpid::transformer_block(plain, limpid::softmax(), o), {.cross = true, .beta = false, .mlp = false});
    }
}

TEST_CASE(
    "Transformer block: central differences agree of another operator, rotary positions, grouped keys, normed and "
    "gated heads") {
  const auto turned = limpid::rope(limpid::twicing(limpid::causal()), {.layout = limpid::RopeLayout::half});
  Options o{.heads = 2, .kv_heads = 1, .eps = 1e-2, .mlp = Mlp{Activation::silu}, .qk_norm_eps = 1e-2};
  suite::check_layer_gradient<limpid::TransformerBlockArgs>(
      limpid::transformer_block(turned, o), parameters({.heads_norm = true, .kv_heads = 1}), 8, 6, 2, 1e-8);
  o.cross_qk_norm_eps = 1e-2;
  suite::check_layer_gradient<limpid::TransformerBlockArgs>(
      limpid::transformer_block(turned, limpid::softmax(), o),
      parameters({.cross = true, .heads_norm = true, .kv_heads = 1}), 8, 6, 2, 1e-8);
}

TEST_CASE("Transformer block: its parts called one by one give the same") {
  const Args p = parameters({.scales = true});
  const auto op = limpid::softmax();
  const auto attention = limpid::multi_head(op, 2);
  const auto norm = [](const M& x, const M& gamma, const M& beta) {
    M y = x;
    limpid::layer_norm(x, gamma, beta, y, {.eps = 1e-3});
    return y;
  };
  const auto attend = [&](const M& h) {
    M y = h;
    attention.forward(
        {.x = h, .wq = p.wq, .bq = p.bq, .wk = p.wk, .bk = p.bk, .wv = p.wv, .bv = p.bv, .wo = p.wo, .bo = p.bo}, y,
        {.batch = 2});
    return y;
  };
  const auto perceptron = [&](const M& h) {
    M y = h;
    Mlp().forward({.x = h, .w1 = p.w1, .b1 = p.b1, .w2 = p.w2, .b2 = p.b2}, y);
    return y;
  };
  const auto scaled = [](const M& x, const M& by) -> M { return x.cwiseProduct(by.replicate(x.rows(), 1)); };
  M out = p.x;
  limpid::transformer_block(op, {.heads = 2, .eps = 1e-3}).forward(p, out, {.batch = 2});
  M x = plus(p.x, scaled(attend(norm(p.x, p.gamma1, p.beta1)), p.scale1));
  CHECK(distance(out, plus(x, scaled(perceptron(norm(x, p.gamma2, p.beta2)), p.scale2))) < 1e-14);

  limpid::transformer_block(op, {.heads = 2, .eps = 1e-3, .place = NormPlace::post}).forward(p, out, {.batch = 2});
  x = norm(plus(p.x, scaled(attend(p.x), p.scale1)), p.gamma1, p.beta1);
  CHECK(distance(out, norm(plus(x, scaled(perceptron(x), p.scale2)), p.gamma2, p.beta2)) < 1e-14);

  // of a sandwich the second norms take the place of the scales
  const Args s = parameters({.sandwich = true});
  M r = s.x;
  limpid::transformer_block(op, {.heads = 2, .eps = 1e-3, .place = NormPlace::sandwich, .mlp = std::nullopt})
      .forward({.x = s.x,
                .gamma1 = s.gamma1,
                .beta1 = s.beta1,
                .wq = s.wq,
                .wk = s.wk,
                .wv = s.wv,
                .wo = s.wo,
                .gamma1b = s.gamma1b,
                .beta1b = s.beta1b},
               out, {.batch = 2});
  const M h = norm(s.x, s.gamma1, s.beta1);
  attention.forward({.x = h, .wq = s.wq, .wk = s.wk, .wv = s.wv, .wo = s.wo}, r, {.batch = 2});
  CHECK(distance(out, plus(s.x, norm(r, s.gamma1b, s.beta1b))) < 1e-14);
}

TEST_CASE("Transformer block: threads, a batch, weights [out, in] and asking for relevance change no bit") {
  const auto op = limpid::softmax();
  const Options o{.heads = 2, .eps = 1e-6, .mlp = limpid::geglu()};
  const auto block = limpid::transformer_block(op, limpid::softmax(), o);
  const Given given{.cross = true, .scales = true, .gated = true};
  const auto p = parameters<float>(given, 140, 66);
  suite::Random r(3);
  const Mat<float> dout = suite::random_matrix<float>(r, 140, 6);
  using Saved = std::remove_const_t<decltype(block)>::Saved<float>;
  Saved saved;
  Mat<float> out = p.x, again = p.x;
  auto grad = p, other = p;
  block.forward(p, out, {.batch = 2, .saved = &saved});
  block.backward(p, saved, dout, grad);
  const auto same = [&] {
    limpid::TransformerBlockArgs<Mat<float>>::visit(
        [&](const char* name, const Mat<float>& a, const Mat<float>& b) {
          INFO(name);
          CHECK(a == b);
        },
        grad, other);
  };
  limpid::ThreadPool pool(3);
  block.forward(p, again, {.batch = 2, .saved = &saved, .executor = pool});
  CHECK(again == out);
  Mat<float> ones = Mat<float>::Ones(2, 70), relevance(2, 70), cross(2, 33);
  block.backward(p, saved, dout, other, {.executor = pool, .relevance_weights = ones, .relevance = relevance},
                 {.relevance_weights = ones, .relevance = cross});
  same();
  CHECK((relevance.minCoeff() >= 0 && relevance.maxCoeff() > 0 && cross.maxCoeff() > 0));

  // the second item alone
  auto item = p;
  item.x = p.x.bottomRows(70), item.context = p.context.bottomRows(33);
  Mat<float> half(70, 6);
  block.forward(item, half);
  CHECK(half == out.bottomRows(70));

  // weights the other way round
  auto turned = p;
  limpid::TransformerBlockArgs<View<float>> in = p;
  const auto turn = [&](Mat<float>& w, limpid::Weight<float>& to) {
    w.transposeInPlace();
    to = limpid::out_in(w);
  };
  turn(turned.wq, in.wq), turn(turned.wk, in.wk), turn(turned.wv, in.wv), turn(turned.wo, in.wo);
  turn(turned.wq2, in.wq2), turn(turned.wk2, in.wk2), turn(turned.wv2, in.wv2), turn(turned.wo2, in.wo2);
  turn(turned.w1, in.w1), turn(turned.w2, in.w2), turn(turned.w3, in.w3);
  block.forward(in, again, {.batch = 2, .saved = &saved});
  CHECK(again == out);
  other = turned;
  block.backward(in, saved, dout, other);
  for (Mat<float>* w : {&other.wq, &other.wk, &other.wv, &other.wo, &other.wq2, &other.wk2, &other.wv2, &other.wo2,
                        &other.w1, &other.w2, &other.w3})
    w->transposeInPlace();
  same();
}

TEST_CASE("Transformer block: used twice, dx is overwritten and parameters are added to, in one backward pass each") {
  const Args p = parameters({});
  const auto block = limpid::transformer_block(limpid::softmax(), {.heads = 2, .eps = 1e-3});
  using Saved = std::remove_const_t<decltype(block)>::Saved<double>;
  Saved first, second;
  suite::Random r(5);
  const M dout = suite::random_matrix<double>(r, 8, 6);
  M middle = p.x, out = p.x, dmiddle = M::Constant(8, 6, 7);
  Args later = p, grad = p, grad_later = p;
  block.forward(p, middle, {.saved = &first});
  later.x = middle;
  block.forward(later, out, {.saved = &second});
  block.backward(later, second, dout, grad_later);
  block.backward(p, first, grad_later.x, grad);

  Args sum = p;
  Args::visit([](const char*, M& m) { m.setConstant(0); }, sum);
  limpid::TransformerBlockArgs<limpid::Gradient<double>> to = sum;
  to.x = limpid::overwrite(dmiddle);
  block.backward(later, second, dout, to, {.accumulate = true});
  CHECK(dmiddle == grad_later.x);
  to.x = limpid::overwrite(sum.x);
  block.backward(p, first, dmiddle, to, {.accumulate = true});
  CHECK(sum.x == grad.x);
  Args::visit(
      [&](const char* name, const M& all, const M& a, const M& b) {
        INFO(name);
        if (std::string(name) != "x" && all.size() > 0) CHECK(distance(all, plus(a, b)) < 1e-14);
      },
      sum, grad, grad_later);
  // and one that asks to be added to, beside others that are overwritten
  M dx = M::Constant(8, 6, 7);
  block.backward(p, first, grad_later.x, {.x = limpid::add(dx), .w1 = sum.w1});
  CHECK(distance(dx, M(grad.x.array() + 7)) < 1e-14);
  CHECK(sum.w1 == grad.w1);
}

TEST_CASE("Transformer block: memory grows with the tokens, not with their square") {
  const auto block = limpid::transformer_block(limpid::softmax(), {.heads = 2, .eps = 1e-3});
  const auto bytes = [&](Index n) {
    const auto p = parameters<float>({}, n);
    auto grad = p;
    std::remove_const_t<decltype(block)>::Saved<float> saved;
    limpid::Workspace workspace;
    Mat<float> out = p.x;
    block.forward(p, out, {.saved = &saved, .workspace = &workspace});
    block.backward(p, saved, out, grad, {.workspace = &workspace});
    Index kept = saved.attended.size() + saved.mlp.hidden.size() + saved.round_mlp.norm.statistics.size();
    for (const Mat<float>* m : {&saved.attention.q, &saved.attention.k, &saved.attention.v, &saved.attention.o})
      kept += m->size();
    return std::pair<double, double>(static_cast<double>(workspace.bytes()), static_cast<double>(kept));
  };
  const auto few = bytes(512), many = bytes(2048);
  CHECK(many.first < 4.5 * few.first);
  CHECK(many.second == 4 * few.second);
}

TEST_CASE("Transformer block: every parameter is visited under its name, views and gradients side by side") {
  const Args p = parameters({.cross = true, .scales = true, .gated = true, .heads_norm = true});
  Index numbers = 0;
  std::string names;
  Args::visit_parameters(
      [&](const char* name, const M& m) {
        numbers += m.size();
        if (m.size() > 0) names += std::string(name) + " ";
      },
      p);
  CHECK(names ==
        "gamma1 beta1 wq bq wk bk wv bv wo bo wg bg gamma_q gamma_k scale1 gamma_c beta_c wq2 bq2 wk2 bk2 wv2 bv2 wo2 "
        "bo2 wg2 gamma_q2 gamma_k2 scale_c gamma2 beta2 w1 b1 w2 b2 w3 b3 scale2 ");
  CHECK(numbers == 3 * 3 * 6 + 4 * 6 * 8 + 2 * (3 * 8 + 6) + 2 * 6 * 8 + 2 * 3 * 8 + 4 * 4 + 3 * 6 * 5 + 2 * 5 + 6 +
                       6 * 2 + 2 + 6 * 8);
}

TEST_CASE("Transformer block: what does not fit is refused by name, before anything is written") {
  const auto op = limpid::softmax();
  const Options options{.heads = 2, .eps = 1e-3};
  const Args p = parameters({}), crossed = parameters({.cross = true});
  const auto refused = [](const auto& block, const limpid::TransformerBlockArgs<View<double>>& in,
                          const std::string& text) {
    M out = M::Constant(8, 6, 7);
    CHECK(suite::error_of([&] { block.forward(in, out); }) == "transformer block" + text);
    CHECK((out.array() == 7).all());
  };
  const auto block = limpid::transformer_block(op, options);
  using In = limpid::TransformerBlockArgs<View<double>>;
  const M row = M::Ones(1, 6), five = M::Ones(1, 5), square = M::Ones(6, 6), nan = M::Constant(1, 6, std::nan(""));
  refused(limpid::transformer_block(op, Options{.heads = 2}), p,
          ": eps is not given, wanted that of the model (BERT 1e-12, ViT 1e-6, PyTorch's default 1e-5)");
  refused(limpid::transformer_block(op, {.heads = 3, .eps = 1e-3}), p,
          ": wq has 8 columns, wanted a multiple of its 3 heads");
  refused(block, crossed, ": gamma_c is given to a block without that sublayer");
  In in = p;
  in.context = row;
  refused(block, in, ": context of the cross attention is given to a block without one");
  refused(limpid::transformer_block(op, op, options), p, ", cross attention: context is not given");
  in = crossed, in.wk2 = square;
  refused(limpid::transformer_block(op, op, options), in,
          ", cross attention: wk is 6 x 6, wanted 3 rows, as context has columns");
  in = p, in.gamma1b = row;
  refused(block, in, ": gamma1b is given to a block without that norm");
  in = p, in.scale1 = row;
  refused(limpid::transformer_block(op, {.heads = 2, .eps = 1e-3, .place = NormPlace::sandwich}), in,
          ": scale1 is given to a sandwich, which has a norm in its place");
  refused(limpid::transformer_block(op, {.heads = 2, .eps = 1e-3, .norm = NormKind::rms}), p,
          ": beta1 is given to an rms norm");
  in = p, in.gamma2 = five;
  refused(block, in, ": gamma2 is 1 x 5, wanted 1 x 6");
  in = p, in.scale2 = five;
  refused(block, in, ": scale2 is 1 x 5, wanted 1 x 6");
  in = p, in.scale2 = nan;
  refused(block, in, ": scale2 is nan in row 0, column 0, wanted finite numbers");
  in = p, in.w2 = View<double>(p.w2).block(0, 0, 5, 5), in.b2 = {};
  refused(block, in, ": the result of the mlp has 5 columns, wanted 6 as x has");
  in = p, in.w1 = limpid::out_in(p.w1);
  refused(block, in, ": w1 is 6 x 5, [out, in], wanted 6 columns, as x has columns; it would fit as in_out(w1)");
  in = p, in.wo = View<double>(p.wo).block(0, 0, 8, 5), in.bo = {};
  refused(block, in, ": the result of the attention has 5 columns, wanted 6 as x has");
  refused(limpid::transformer_block(op, {.heads = 2, .eps = 1e-3, .mlp = std::nullopt}), p,
          ": gamma2 is given to a block without that sublayer");

  using Saved = std::remove_const_t<decltype(block)>::Saved<double>;
  Saved saved;
  M out = p.x, dx = M::Constant(8, 6, 7), dw = M::Constant(6, 5, 7);
  const auto refused_back = [&](const limpid::TransformerBlockArgs<limpid::Gradient<double>>& grad,
                                const std::string& text, const limpid::BackwardCall<double>& call = {}) {
    CHECK(suite::error_of([&] { block.backward(p, saved, out, grad, call); }) == "transformer block" + text);
    CHECK(((dx.array() == 7).all() && (dw.array() == 7).all()));
  };
  refused_back({.x = dx}, ": saved is empty, wanted one that a forward call has filled");
  block.forward(p, out, {.batch = 2, .saved = &saved});
  M context = M::Ones(6, 3), one(2, 4), wrong(1, 4);
  refused_back({.x = dx, .w1 = dx}, ": gradient of w1 is 8 x 6, wanted 6 x 5");
  refused_back({.x = dx, .context = context}, ": context of the cross attention is given to a block without one");
  refused_back({.x = dx, .scale1 = dx}, ": gradient of scale1 is 8 x 6, wanted 0 x 0");
  refused_back({.x = out, .w1 = dw}, ": gradient of x shares memory with dout, wanted memory of its own");
  refused_back({.x = dx, .w1 = dw}, ": relevance is 1 x 4, wanted 2 x 4",
               {.relevance_weights = one, .relevance = wrong});
  refused_back({.x = dx, .w1 = dw}, ": relevance_weights is 1 x 4, wanted 2 x 4",
               {.relevance_weights = wrong, .relevance = one});
  block.backward(p, saved, out, {.x = dx, .w1 = dw});
}
