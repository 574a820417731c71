// limpid: every operator and layer, forward and backward, at a modest size: compiled by each compiler at -O2 and at -O3
// SPDX-License-Identifier: MIT
#include "levels.hpp"

#include <deque>
#include <limpid/explain/coding_rate.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/layer/boosting_block.hpp>
#include <limpid/layer/crate.hpp>
#include <limpid/layer/differential.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <memory>
#include <string>
#include <vector>

#include "ours.hpp"

namespace {

using namespace bench;
using Array = limpid::Mat<float>;
using In = limpid::View<float>;
using Out = limpid::MutView<float>;

constexpr Index tokens = 197, head = 64, heads = 6, width = heads * head;

std::vector<Candidate> candidates;

template <class F>
void add(std::string name, F f) {
  candidates.push_back(candidate(std::move(name), std::move(f)));
}

/// Arrays of one line, random, at home as long as it is.
class Arrays {
 public:
  Array& make(Index rows, Index cols, double size = 1) {
    return arrays_.emplace_back(suite::random_matrix<float>(random_, rows, cols, -size, size));
  }
  /// An input and the place of its gradient. Weights are small, so that tokens stay of their size.
  void give(In& in, Out& gradient, Index rows, Index cols, double size = 1) {
    in = make(rows, cols, size);
    gradient = make(rows, cols);
  }
  void weight(In& in, Out& gradient, Index rows, Index cols) { give(in, gradient, rows, cols, 0.08); }
  limpid::Workspace workspace;

 private:
  std::deque<Array> arrays_;
  suite::Random random_{1};
};

// ---- operators ----

void add_operators() {
  const auto both = [](const std::string& name, const auto& o) {
    add(name + ", forward", [o] { o->forward(); });
    add(name + ", backward", [o] { o->backward(); });
  };
  suite::Sizes sizes;
  sizes.n = sizes.m = tokens, sizes.d = sizes.dv = head;
  suite::for_each_operator(
      [&](auto entry) { both(entry.name, ours_of<float, decltype(entry)>(sizes, limpid::chain(), true, 1)); });
  both("softmax, causal", ours_of<float, suite::entry_softmax>(sizes, limpid::causal(), true, 1));
  sizes.n = 4, sizes.m = 1024;
  both("softmax, 4 queries", ours_of<float, suite::entry_softmax>(sizes, limpid::chain(), true, 1));
}

// ---- layers ----

/// Layers that are told what they read, where it goes and what to keep: all but the plain functions below.
/// set(arrays, inputs, gradients) gives them their parameters, x is here.
template <class Saved, class Layer, class Set>
void add_layer(const std::string& name, const Layer& layer, const Set& set) {
  struct Line {
    Arrays arrays;
    typename Layer::template Args<float> in;
    typename Layer::template Grads<float> grad;
    Saved saved;
  };
  auto l = std::make_shared<Line>();
  l->arrays.give(l->in.x, l->grad.x, tokens, width);
  set(l->arrays, l->in, l->grad);
  const Out out = l->arrays.make(tokens, width);
  const In dout = l->arrays.make(tokens, width);
  const auto keep = [=] { layer.forward(l->in, out, {.saved = &l->saved, .workspace = &l->arrays.workspace}); };
  keep();
  add(name + ", forward", [=] { layer.forward(l->in, out, {.workspace = &l->arrays.workspace}); });
  add(name + ", forward with saved state", keep);
  add(name + ", backward",
      [=] { layer.template backward<float>(l->in, l->saved, dout, l->grad, {.workspace = &l->arrays.workspace}); });
}
template <class Layer, class Set>
void add_layer(const std::string& name, const Layer& layer, const Set& set) {
  add_layer<typename Layer::template Saved<float>>(name, layer, set);
}

void projections(Arrays& a, auto& in, auto& grad, Index queries = width) {
  a.weight(in.wq, grad.wq, width, queries), a.weight(in.wk, grad.wk, width, queries);
  a.weight(in.wv, grad.wv, width, width), a.weight(in.wo, grad.wo, width, width);
}
void norm(Arrays& a, In& gamma, Out& dgamma, In& beta, Out& dbeta) {
  a.give(gamma, dgamma, 1, width), a.give(beta, dbeta, 1, width);
}

void add_layers() {
  add_layer("multi_head", limpid::multi_head(limpid::softmax(), heads), [](Arrays& a, auto& in, auto& grad) {
    projections(a, in, grad);
    for (auto [b, g] : {std::pair{&in.bq, &grad.bq}, {&in.bk, &grad.bk}, {&in.bv, &grad.bv}, {&in.bo, &grad.bo}})
      a.give(*b, *g, 1, width);
  });
  add_layer("mssa_layer", limpid::mssa_layer(limpid::mssa(), heads), [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.u, grad.u, width, width), a.weight(in.wo, grad.wo, width, width), a.give(in.bo, grad.bo, 1, width);
  });
  add_layer("aot of softmax", limpid::aot(limpid::softmax(), {.heads = heads}), [](Arrays& a, auto& in, auto& grad) {
    projections(a, in, grad);
    norm(a, in.gamma, grad.gamma, in.beta, grad.beta), a.give(in.eta, grad.eta, 1, 1);
  });
  add_layer("aot of mssa", limpid::aot(limpid::mssa(), {.heads = heads}), [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.u, grad.u, width, width), a.weight(in.wo, grad.wo, width, width), a.give(in.bo, grad.bo, 1, width);
    norm(a, in.gamma, grad.gamma, in.beta, grad.beta), a.give(in.eta, grad.eta, 1, 1);
  });
  add_layer("ista", limpid::Ista{}, [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.dictionary, grad.dictionary, width, width), norm(a, in.gamma, grad.gamma, in.beta, grad.beta);
    a.give(in.eta, grad.eta, 1, 1), a.give(in.lambda, grad.lambda, 1, 1);
  });
  add_layer("crate", limpid::crate(limpid::mssa(), {.heads = heads}), [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.u, grad.u, width, width), a.weight(in.wo, grad.wo, width, width), a.give(in.bo, grad.bo, 1, width);
    a.weight(in.dictionary, grad.dictionary, width, width);
    norm(a, in.gamma1, grad.gamma1, in.beta1, grad.beta1), norm(a, in.gamma2, grad.gamma2, in.beta2, grad.beta2);
    a.give(in.eta, grad.eta, 1, 1), a.give(in.lambda, grad.lambda, 1, 1);
  });
  const auto two_maps = [](const std::string& name, const auto& op, const auto& more) {
    using Op = std::decay_t<decltype(op)>;
    add_layer<limpid::TwoMapLayerSaved<Op, float>>(name, limpid::two_map_layer(op, heads),
                                                   [&](Arrays& a, auto& in, auto& grad) {
                                                     projections(a, in, grad, 2 * width);
                                                     a.give(in.gamma, grad.gamma, 1, head);
                                                     more(a, in, grad);
                                                   });
  };
  two_maps("two_map_layer of differential", limpid::differential(), [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.lambda_q1, grad.lambda_q1, 1, head), a.weight(in.lambda_k1, grad.lambda_k1, 1, head);
    a.weight(in.lambda_q2, grad.lambda_q2, 1, head), a.weight(in.lambda_k2, grad.lambda_k2, 1, head);
  });
  two_maps("two_map_layer of differential_gated", limpid::differential_gated(), [](Arrays& a, auto& in, auto& grad) {
    a.weight(in.gate_w, grad.gate_w, width, heads), a.give(in.gate_b, grad.gate_b, 1, heads);
  });
}

void add_functions() {
  for (const Index n : {Index(4), tokens}) {
    struct Line {
      Arrays arrays;
      In x, w, b, gamma, beta;
      limpid::LinearGrads<float> grad;
      limpid::LayerNormGrads<float> norm;
      limpid::LayerNormSaved<float> saved;
    };
    auto l = std::make_shared<Line>();
    Arrays& a = l->arrays;
    a.give(l->x, l->grad.x, n, width), a.weight(l->w, l->grad.w, width, width), a.give(l->b, l->grad.b, 1, width);
    a.give(l->gamma, l->norm.gamma, 1, width), a.give(l->beta, l->norm.beta, 1, width);
    l->norm.x = a.make(n, width);
    const Out y = a.make(n, width);
    const In dy = a.make(n, width);
    const std::string sizes = " " + std::to_string(n) + " x 384";
    add("linear" + sizes + " x 384, forward",
        [=] { limpid::linear(l->x, l->w, l->b, y, {.workspace = &l->arrays.workspace}); });
    add("linear" + sizes + " x 384, backward",
        [=] { limpid::linear_backward(l->x, l->w, dy, l->grad, {.workspace = &l->arrays.workspace}); });
    const auto norm = [=] {
      limpid::layer_norm(l->x, l->gamma, l->beta, y, {.saved = &l->saved, .workspace = &l->arrays.workspace});
    };
    norm();
    add("layer_norm" + sizes + ", forward", norm);
    add("layer_norm" + sizes + ", backward", [=] {
      limpid::layer_norm_backward(l->x, l->gamma, l->saved, dy, l->norm, {.workspace = &l->arrays.workspace});
    });
  }

  struct Block {  // round a sublayer that costs nothing
    Arrays arrays;
    limpid::BoostingBlockArgs<In> in;
    limpid::BoostingBlockArgs<Out> grad;
    limpid::BoostingBlockSaved<float> saved;
  };
  auto block = std::make_shared<Block>();
  for (auto [in, grad] : {std::pair{&block->in.x, &block->grad.x}, {&block->in.u, &block->grad.u}})
    block->arrays.give(*in, *grad, tokens, width);
  block->arrays.give(block->in.tau, block->grad.tau, 1, 1), block->arrays.give(block->in.rho, block->grad.rho, 1, 1);
  const Out out = block->arrays.make(tokens, width), next = block->arrays.make(tokens, width);
  const In dout = block->arrays.make(tokens, width), dnext = block->arrays.make(tokens, width);
  const auto same = [](In from, Out to) { limpid::detail::copy<float>(from, to); };
  const auto boosting = [=] {
    limpid::boosting_block(block->in, same, out, next, &block->saved, {.workspace = &block->arrays.workspace});
  };
  boosting();
  add("boosting_block, forward", boosting);
  add("boosting_block, backward", [=] {
    limpid::boosting_block_backward<float>(block->in, block->saved, [same](In, In dz, Out ds) { same(dz, ds); }, dout,
                                           dnext, block->grad, {.workspace = &block->arrays.workspace});
  });

  using PidOp = decltype(limpid::pid());
  struct Stack {
    Arrays arrays;
    limpid::Inputs<PidOp, float> in;
    limpid::Grads<PidOp, float> grad;
    limpid::PidStack<PidOp, float> stack{limpid::pid(), {.heads = 2}};
  };
  auto stack = std::make_shared<Stack>();
  for (auto [in, grad] :
       {std::pair{&stack->in.q, &stack->grad.q}, {&stack->in.k, &stack->grad.k}, {&stack->in.v, &stack->grad.v}})
    stack->arrays.give(*in, *grad, tokens, 2 * head);
  limpid::detail::visit_pid_gains(
      [&](const char*, limpid::Role, In& in, Out& grad) { stack->arrays.give(in, grad, 2, 1); }, stack->in,
      stack->grad);
  const Out tokens_out = stack->arrays.make(tokens, 2 * head);
  const In tokens_dout = stack->arrays.make(tokens, 2 * head);
  const auto up = [=] {
    stack->stack.restart();
    for (int layer = 0; layer < 3; ++layer)
      stack->stack.forward(stack->in, tokens_out, {.workspace = &stack->arrays.workspace});
  };
  add("pid stack, 3 layers, forward", up);
  add("pid stack, 3 layers, both", [=] {
    up();
    for (int layer = 0; layer < 3; ++layer)
      stack->stack.backward(stack->in, tokens_dout, stack->grad, {.workspace = &stack->arrays.workspace});
  });

  struct Rate {
    Arrays arrays;
    In x, u;
    Out dx, du;
  };
  auto rate = std::make_shared<Rate>();
  rate->arrays.give(rate->x, rate->dx, tokens, width), rate->arrays.weight(rate->u, rate->du, width, width);
  const limpid::CodingRateOptions options{.heads = heads};
  add("subspace_coding_rate, forward", [=] {
    volatile double value =
        limpid::subspace_coding_rate(rate->x, rate->u, options, {.workspace = &rate->arrays.workspace});
    static_cast<void>(value);
  });
  add("subspace_coding_rate, backward", [=] {
    limpid::subspace_coding_rate_backward(rate->x, rate->u, 1, rate->dx, rate->du, options,
                                          {.workspace = &rate->arrays.workspace});
  });
  const Out energy = rate->arrays.make(tokens, heads);
  add("subspace_energy, forward",
      [=] { limpid::subspace_energy(rate->x, rate->u, energy, {.workspace = &rate->arrays.workspace}); });
}

}  // namespace

int limpid_level_count() {
  if (candidates.empty()) add_operators(), add_layers(), add_functions();
  return static_cast<int>(candidates.size());
}
const char* limpid_level_name(int index) { return candidates[static_cast<std::size_t>(index)].name.c_str(); }
double limpid_level_seconds(int index, long calls) {
  return candidates[static_cast<std::size_t>(index)].seconds(calls);
}
