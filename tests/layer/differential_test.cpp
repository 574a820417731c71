// limpid: the layer of two-map attention.
// SPDX-License-Identifier: MIT
#include <limpid/layer/differential.hpp>

#include <limpid/exec/thread_pool.hpp>

#include "support/two_maps.hpp"

namespace {

using namespace two_maps;
using Args = limpid::TwoMapLayerArgs<limpid::View<double>>;
using Grads = limpid::TwoMapLayerArgs<limpid::MutView<double>>;

/// Two batch items of five tokens, width 6, four heads on two key heads, d = 3, dv = 4.
struct Layer {
  static constexpr Index batch = 2, heads = 4, groups = 2, d = 3, dv = 4;
  M x = random(batch * 5, 6, 1), wq = random(6, heads * 2 * d, 2), wk = random(6, groups * 2 * d, 3),
    one_key = random(6, groups*d, 4), wv = random(6, groups*dv, 5), wo = random(heads * dv, 7, 6),
    gate_w = random(6, heads, 7), gate_b = random(1, heads, 8), gamma = random(1, dv, 9), lambda = random(heads, 1, 10),
    dout = random(batch * 5, 7, 11);
};

/// Every gradient of a layer against central differences; which
/// fields there are, `set` says for views and for gradients.
template <class Op, class Set>
void layer_is_right(const Op& op, Set&& set) {
  Layer l, g;
  const auto layer = limpid::two_map_layer(op, l.heads, l.groups);
  Args args;
  Grads grads;
  set(args, l), set(grads, g);
  limpid::TwoMapLayerSaved<Op, double> saved;
  M out(l.x.rows(), 7);
  const auto value = [&] {
    layer.forward(args, out, {.batch = l.batch});
    return out.cwiseProduct(l.dout).sum();
  };
  value();
  const M without = out;
  layer.forward(args, out, {.batch = l.batch, .saved = &saved});
  CHECK(same_bits(out, without));
  layer.backward(args, saved, l.dout, grads);
  const auto compare = [&](const char* name, M& x, const M& gradient, bool given) {
    if (!given) return;
    const M wanted = limpid::numeric_gradient(x, value);
    INFO(name);
    CHECK(distance(gradient, wanted) < 1e-8 * std::max(1.0, wanted.cwiseAbs().maxCoeff()));
  };
  compare("x", l.x, g.x, true), compare("wq", l.wq, g.wq, true), compare("wv", l.wv, g.wv, true);
  compare("wo", l.wo, g.wo, true), compare("gate_w", l.gate_w, g.gate_w, args.gate_w.given());
  compare("gate_b", l.gate_b, g.gate_b, args.gate_b.given()), compare("gamma", l.gamma, g.gamma, args.gamma.given());
  compare("lambda", l.lambda, g.lambda, args.lambda.given());
  compare("wk", l.wk, g.wk, args.wk.cols == l.wk.cols());
  compare("wk", l.one_key, g.one_key, args.wk.cols == l.one_key.cols());
}

template <class A>
void projections(A& a, Layer& l) {
  a.x = l.x, a.wq = l.wq, a.wk = l.wk, a.wv = l.wv, a.wo = l.wo;
}

}  // namespace

TEST_CASE("gradients of a differential layer match central differences") {
  layer_is_right(limpid::differential(limpid::causal()), [](auto& a, Layer& l) {
    projections(a, l);
    a.gamma = l.gamma, a.lambda = l.lambda;
  });
}

TEST_CASE("gradients of a version 2 layer, one key for both branches, match central differences") {
  layer_is_right(limpid::differential_v2(limpid::causal()), [](auto& a, Layer& l) {
    projections(a, l);
    a.wk = l.one_key, a.gate_w = l.gate_w;
  });
}

TEST_CASE("gradients of a gated layer match central differences") {
  // the first token sees itself alone, H = (2 g - 1) v: near g = 1/2
  // a small eps bends the norm faster than differences can
  layer_is_right(limpid::differential_gated(limpid::causal(), {.eps = 0.1}), [](auto& a, Layer& l) {
    projections(a, l);
    a.gamma = l.gamma, a.gate_w = l.gate_w, a.gate_b = l.gate_b;
  });
}

TEST_CASE("threads and a workspace change no bit of a layer, and accumulating adds") {
  Layer l, g, again;
  const auto op = limpid::differential_gated(limpid::causal());
  const auto layer = limpid::two_map_layer(op, l.heads, l.groups);
  Args args;
  Grads grads, more;
  projections(args, l), projections(grads, g), projections(more, again);
  args.gate_w = l.gate_w, args.gate_b = l.gate_b, args.gamma = l.gamma;
  grads.gate_w = g.gate_w, grads.gate_b = g.gate_b, grads.gamma = g.gamma;
  more.gate_w = again.gate_w, more.gate_b = again.gate_b, more.gamma = again.gamma;
  limpid::TwoMapLayerSaved<std::remove_const_t<decltype(op)>, double> saved, saved2;
  M out(l.x.rows(), 7), out2 = out;
  layer.forward(args, out, {.batch = l.batch, .saved = &saved});
  layer.backward(args, saved, l.dout, grads);
  limpid::ThreadPool pool(2);
  limpid::Workspace workspace;
  layer.forward(args, out2, {.batch = l.batch, .saved = &saved2, .workspace = &workspace, .executor = pool});
  CHECK(same_bits(out, out2));
  layer.backward(args, saved2, l.dout, more, {.workspace = &workspace, .executor = pool});
  for (auto field :
       {&Layer::x, &Layer::wq, &Layer::wk, &Layer::wv, &Layer::wo, &Layer::gate_w, &Layer::gate_b, &Layer::gamma})
    CHECK(same_bits(g.*field, again.*field));
  layer.backward(args, saved2, l.dout, more, {.accumulate = true, .workspace = &workspace});
  for (auto field :
       {&Layer::x, &Layer::wq, &Layer::wk, &Layer::wv, &Layer::wo, &Layer::gate_w, &Layer::gate_b, &Layer::gamma})
    CHECK(distance(2 * (g.*field), again.*field) < 1e-12);
}

TEST_CASE("arguments of a layer that do not fit are refused by name") {
  Layer l;
  M out(l.x.rows(), 7);
  const auto refused = [&](auto&& change, const std::string& what) {
    Args args;
    projections(args, l);
    change(args);
    try {
      limpid::two_map_layer(limpid::differential_gated(limpid::causal()), l.heads, l.groups).forward(args, out);
    } catch (const limpid::ShapeError& error) {
      CHECK(error.what() == what);
      return;
    }
    FAIL("was not refused: " << what);
  };
  refused([&](Args& a) { a.wk = l.wo; }, "layer: wk is 16 x 7, wanted 6 rows, as x has columns");
  refused([&](Args& a) { a.gate_b = l.gate_b; }, "layer: gate_b is given without gate_w");
  refused([&](Args& a) { a.lambda = l.lambda; },
          "layer: lambda is given to gated attention, whose weights come from gate_w and gate_b");
}
