// limpid: what layers refuse: results over inputs or over each other, sizes that do not fit, states half filled;
// each by name, before anything is written. And sizes of 0, which are none of these.
// SPDX-License-Identifier: MIT
#include <functional>
#include <limpid/limpid.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::MutView, limpid::View;
using suite::error_of, suite::Nosy;
using M = limpid::Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols);
}

constexpr double untouched = 7;

/// One array after another of those that the arguments hold.
template <class Args, class F>
void each_given(const Args& args, F&& f) {
  Args::visit(
      [&](const char* name, const auto& v) {
        if (v.rows > 0) f(std::string(name), v);
      },
      args);
}
template <class Args, class V>
void put(Args& args, const std::string& field, const V& v) {
  Args::visit(
      [&](const char* name, auto& to) {
        if (name == field) to = v;
      },
      args);
}

/// Two arrays that begin at one place of a buffer of their own.
struct Shared {
  M buffer;
  MutView<double> first, second;
  template <class A, class B>
  Shared(const A& a, const B& b)
      : buffer(M::Constant(std::max(a.rows, b.rows), std::max(a.cols, b.cols), untouched)),
        first(MutView<double>(buffer).block(0, 0, a.rows, a.cols)),
        second(MutView<double>(buffer).block(0, 0, b.rows, b.cols)) {}
};

/// forward(in, out) and backward(in, dout, gradients) of a layer
/// refuse every pair that shares memory, and write nothing.
template <template <class> class Args, class Forward, class Backward>
void check_overlaps(const std::string& layer, const Args<M>& parameters, M out, const Forward& forward,
                    const Backward& backward) {
  INFO(layer);
  const auto in = limpid::detail::same_fields<Args<View<double>>>(parameters);
  const auto refused = [&](const std::string& written, const std::string& other, const auto& call) {
    INFO(written << " over " << other);
    CHECK(error_of(call) == layer + ": " + written + " shares memory with " + other + ", wanted memory of its own");
  };
  forward(in, MutView<double>(out));
  each_given(in, [&](const std::string& field, const View<double>& v) {
    Shared shared(v, View<double>(out));
    limpid::detail::copy<double>(v, shared.first);
    const M before = shared.buffer;
    Args<View<double>> with = in;
    put(with, field, View<double>(shared.first));
    refused("out", field, [&] { forward(with, shared.second); });
    CHECK(shared.buffer == before);
  });

  const M dout = out;
  Args<M> found = parameters;
  const auto clean = [&] {
    Args<M>::visit([](const char*, M& m) { m.setConstant(untouched); }, found);
    return limpid::detail::same_fields<Args<MutView<double>>>(found);
  };
  const auto is_clean = [&] {
    Args<M>::visit([](const char*, const M& m) { CHECK((m.array() == untouched).all()); }, found);
  };
  each_given(in, [&](const std::string& field, const View<double>& v) {
    const std::string of = "gradient of " + field;
    const auto with_gradient = [&](const MutView<double>& place) {
      Args<MutView<double>> grad = clean();
      put(grad, field, place);
      return grad;
    };
    {
      Shared shared(v, View<double>(dout));
      const auto grad = with_gradient(shared.first);
      refused(of, "dout", [&] { backward(in, View<double>(shared.second), grad); });
      CHECK((shared.buffer.array() == untouched).all());
      is_clean();
    }
    bool later = true;
    each_given(in, [&](const std::string& other, const View<double>& w) {
      Shared shared(w, v);
      limpid::detail::copy<double>(w, shared.first);
      const M before = shared.buffer;
      Args<View<double>> with = in;
      put(with, other, View<double>(shared.first));
      auto grad = with_gradient(shared.second);
      refused(of, other, [&] { backward(with, View<double>(dout), grad); });
      CHECK(shared.buffer == before);
      is_clean();
      later = later && other != field;
      if (!later) return;
      put(grad, other, shared.first);  // of two gradients the later one is named first
      refused(of, "gradient of " + other, [&] { backward(in, View<double>(dout), grad); });
      is_clean();
    });
  });
  backward(in, View<double>(dout), clean());  // and apart all is well
}

template <template <class> class Args, class Layer>
void check_layer_overlaps(const std::string& name, const Layer& layer, const Args<M>& p, Index cols) {
  typename Layer::template Saved<double> saved;
  check_overlaps<Args>(
      name, p, M(p.x.rows(), cols),
      [&](const Args<View<double>>& in, const MutView<double>& out) { layer.forward(in, out, {.saved = &saved}); },
      [&](const Args<View<double>>& in, const View<double>& dout, const Args<MutView<double>>& grad) {
        layer.template backward<double>(in, saved, dout, grad);
      });
}

limpid::MultiHeadArgs<M> multi_head_parameters() {
  limpid::MultiHeadArgs<M> p;
  p.x = random(5, 4, 1), p.wq = random(4, 6, 2), p.bq = random(1, 6, 3), p.wk = random(4, 3, 4);
  p.bk = random(1, 3, 5), p.wv = random(4, 2, 6), p.bv = random(1, 2, 7), p.wo = random(4, 3, 8);
  p.bo = random(1, 3, 9);
  return p;
}
limpid::MlpArgs<M> mlp_parameters(Index n = 5, Index dim = 4, Index hidden = 3) {
  return {random(n, dim, 1), random(dim, hidden, 2), random(1, hidden, 3), random(hidden, dim, 4),
          random(1, dim, 5), random(dim, hidden, 6), random(1, hidden, 7)};
}
/// Every parameter that a block before whose sublayers norms stand can have: two heads of dk, one of keys.
limpid::TransformerBlockArgs<M> block_parameters(Index n = 5, Index dim = 4, Index dk = 3, Index dv = 2, Index m = 3) {
  limpid::TransformerBlockArgs<M> p;
  p.x = random(n, dim, 1), p.context = random(m, 5, 2);
  p.gamma1 = p.beta1 = p.scale1 = p.gamma_c = p.beta_c = p.scale_c = p.gamma2 = p.beta2 = p.scale2 = random(1, dim, 3);
  p.wq = p.wq2 = random(dim, 2 * dk, 4), p.wk = random(dim, dk, 5), p.wk2 = random(5, dk, 6);
  p.wv = random(dim, dv, 7), p.wv2 = random(5, dv, 8), p.wo = p.wo2 = random(2 * dv, dim, 9);
  p.bq = p.bq2 = random(1, 2 * dk, 10), p.bk = p.bk2 = random(1, dk, 11), p.bv = p.bv2 = random(1, dv, 12);
  p.bo = p.bo2 = random(1, dim, 13), p.gamma_q = p.gamma_k = p.gamma_q2 = p.gamma_k2 = random(1, dk, 14);
  if (dim + dv == 0) p.bo = p.bo2 = M();  // a wo of no size is none
  const limpid::MlpArgs<M> mlp = mlp_parameters(n, dim, 3);
  p.w1 = mlp.w1, p.b1 = mlp.b1, p.w2 = mlp.w2, p.b2 = mlp.b2, p.w3 = mlp.w3, p.b3 = mlp.b3;
  return p;
}
limpid::TransformerBlockOptions block_options() {
  return {
      .heads = 2, .kv_heads = 1, .eps = 1e-3, .mlp = limpid::swiglu(), .qk_norm_eps = 1e-3, .cross_qk_norm_eps = 1e-3};
}
limpid::CrateArgs<M> crate_parameters() {
  limpid::CrateArgs<M> p;
  p.x = random(5, 4, 1), p.gamma1 = random(1, 4, 2), p.beta1 = random(1, 4, 3), p.u = random(4, 6, 4);
  p.wo = random(6, 4, 5), p.bo = random(1, 4, 6), p.gamma2 = random(1, 4, 7), p.beta2 = random(1, 4, 8);
  p.dictionary = random(4, 4, 9), p.eta = p.lambda = M::Constant(1, 1, 0.1);
  return p;
}
limpid::TwoMapLayerArgs<M> two_map_parameters() {
  limpid::TwoMapLayerArgs<M> p;
  p.x = random(5, 4, 1), p.wq = random(4, 8, 2), p.wk = random(4, 4, 3), p.wv = random(4, 3, 4);
  p.wo = random(6, 4, 5), p.gate_w = random(4, 2, 6), p.gate_b = random(1, 2, 7), p.gamma = random(1, 3, 8);
  return p;
}
limpid::AotArgs<M> aot_parameters() {
  limpid::AotArgs<M> p;
  p.eta = M::Constant(1, 1, 0.5), p.gamma = random(1, 4, 2), p.beta = random(1, 4, 3), p.u = random(4, 6, 4);
  p.wo = random(6, 4, 5), p.bo = random(1, 4, 6);
  return p;
}

/// The two-map layer as the other layers are called.
template <class Layer>
struct Gated : Layer {
  template <class S>
  using Saved = limpid::TwoMapLayerSaved<decltype(Layer::op), S>;
};
template <class Layer>
Gated(Layer) -> Gated<Layer>;
template <class Op>
limpid::AotStack<Op> stack_of(const limpid::Aot<Op>& layer) {
  return {layer};
}

}  // namespace

TEST_CASE("Layers refuse results that share memory with an input, with dout or with another result") {
  check_layer_overlaps("multi-head layer", limpid::multi_head(limpid::softmax(), 2, 1), multi_head_parameters(), 3);
  limpid::MssaLayerArgs<M> mssa{random(5, 4, 1), random(4, 6, 2), random(6, 3, 3), random(1, 3, 4)};
  check_layer_overlaps("mssa layer", limpid::mssa_layer(limpid::mssa(), 2), mssa, 3);
  limpid::AotArgs<M> aot = aot_parameters();
  aot.x = random(5, 4, 1);
  check_layer_overlaps("aot layer", limpid::aot(limpid::mssa(), {.heads = 2}), aot, 4);
  limpid::IstaArgs<M> ista{random(5, 4, 1), random(4, 4, 2), random(1, 4, 3),
                           random(1, 4, 4), M::Ones(1, 1),   M::Ones(1, 1)};
  check_layer_overlaps("ista", limpid::Ista{}, ista, 4);
  check_layer_overlaps("crate block", limpid::crate(limpid::mssa(), {.heads = 2}), crate_parameters(), 4);
  check_layer_overlaps("mlp", limpid::swiglu(), mlp_parameters(), 4);
  check_layer_overlaps("transformer block",
                       limpid::transformer_block(limpid::softmax(), limpid::softmax(), block_options()),
                       block_parameters(), 4);

  const auto gated = limpid::two_map_layer(limpid::differential_gated(), 2, 1);
  limpid::TwoMapLayerSaved<decltype(gated.op), double> saved;
  check_overlaps<limpid::TwoMapLayerArgs>(
      "layer", two_map_parameters(), M(5, 4),
      [&](const auto& in, const MutView<double>& out) { gated.forward(in, out, {.saved = &saved}); },
      [&](const auto& in, const View<double>& dout, const auto& grad) { gated.backward(in, saved, dout, grad); });

  limpid::BoostingBlockSaved<double> block;
  check_overlaps<limpid::BoostingBlockArgs>(
      "boosting block", {random(5, 4, 1), random(5, 4, 2), M::Ones(1, 1), M::Ones(1, 1)}, M(5, 4),
      [&](const auto& in, const MutView<double>& out) {
        M next(5, 4);
        limpid::boosting_block(in, limpid::detail::copy<double>, out, next, &block);
      },
      [&](const auto& in, const View<double>& dout, const auto& grad) {
        const auto vjp = [](View<double>, View<double> dz, MutView<double> ds) { limpid::detail::copy(dz, ds); };
        limpid::boosting_block_backward<double>(in, block, vjp, dout, {}, grad);
      });
}

namespace {

/// make(modifiers) is a layer; field one of its parameters. The layer refuses results over the arrays of its operator's
/// modifiers as the operator does.
template <template <class> class Args, class Make>
void check_modifier_overlaps(const std::string& name, const Make& make, const Args<M>& parameters,
                             const std::string& field, Index cols) {
  INFO(name);
  const auto in = limpid::detail::same_fields<Args<View<double>>>(parameters);
  const auto five = [](M& m) { return Eigen::Map<M>(m.data(), 1, 5); };
  const auto refused = [&](const std::string& what, const auto& call) {
    CHECK(error_of(call) == name + ": " + what + ", wanted memory of its own");
  };
  M out = random(5, cols, 1), keys = random(1, 5, 2), dkeys = M::Zero(1, 5), x = parameters.x, g = random(4, 12, 3);
  {
    const M before = out;
    Eigen::Map<M> over = five(out);
    refused("out shares memory with key bias", [&] { make(limpid::key_bias(over)).forward(in, out); });
    CHECK(out == before);
  }
  const auto back = [&](const auto& modifiers, const Args<View<double>>& with, const MutView<double>& gradient) {
    const auto layer = make(modifiers);
    typename std::remove_const_t<decltype(layer)>::template Saved<double> saved;
    layer.forward(with, out, {.saved = &saved});
    const M dout = out;
    Args<MutView<double>> grad;
    put(grad, field, gradient);
    return error_of([&] { layer.template backward<double>(with, saved, dout, grad); });
  };
  View<double> like;
  Args<View<double>>::visit(
      [&](const char* other, const auto& v) {
        if (other == field) like = v;
      },
      in);
  const MutView<double> gradient(g.data(), like.rows, like.cols, like.cols);
  Eigen::Map<M> in_g = five(g), in_x = five(x);
  const M of_g = g;
  const std::string of = name + ": gradient of " + field + " shares memory with ", own = ", wanted memory of its own";
  CHECK(back(limpid::key_bias(in_g), in, gradient) == of + "key bias" + own);
  CHECK(back(limpid::key_bias(keys, in_g), in, gradient) == of + "gradient of the key bias" + own);
  Args<View<double>> with = in;
  put(with, "x", View<double>(x));
  CHECK(back(limpid::key_bias(keys, in_x), with, gradient) ==
        name + ": gradient of the key bias shares memory with x" + own);
  CHECK((g == of_g && x == parameters.x));
  CHECK(back(limpid::key_bias(keys, dkeys), in, gradient) == "");
}

}  // namespace

TEST_CASE("Layers refuse results over the arrays of their operator's modifiers, and those over what they read") {
  check_modifier_overlaps<limpid::MultiHeadArgs>(
      "multi-head layer", [](const auto& m) { return limpid::multi_head(limpid::softmax(m), 2, 1); },
      multi_head_parameters(), "wq", 3);
  check_modifier_overlaps<limpid::MssaLayerArgs>(
      "mssa layer", [](const auto& m) { return limpid::mssa_layer(limpid::mssa(m), 2); },
      {random(5, 4, 1), random(4, 6, 2), random(6, 3, 3), random(1, 3, 4)}, "u", 3);
  limpid::AotArgs<M> aot = aot_parameters();
  aot.x = random(5, 4, 1);
  check_modifier_overlaps<limpid::AotArgs>(
      "aot layer", [](const auto& m) { return limpid::aot(limpid::mssa(m), {.heads = 2}); }, aot, "u", 4);
  check_modifier_overlaps<limpid::CrateArgs>(
      "crate block", [](const auto& m) { return limpid::crate(limpid::mssa(m), {.heads = 2}); }, crate_parameters(),
      "u", 4);
  check_modifier_overlaps<limpid::TwoMapLayerArgs>(
      "layer", [](const auto& m) { return Gated{limpid::two_map_layer(limpid::differential_gated(m), 2, 1)}; },
      two_map_parameters(), "wq", 4);

  M out = random(5, 4, 1), dx = out;
  Eigen::Map<M> keys(out.data(), 1, 5), sink(dx.data(), 1, 5);
  const M x = random(5, 4, 2), before = out, given = random(1, 5, 3);
  const std::vector<limpid::AotArgs<M>> parameters(2, aot_parameters());
  const std::vector<limpid::AotArgs<View<double>>> layers(parameters.begin(), parameters.end());
  std::vector<limpid::AotArgs<MutView<double>>> none(2);
  const auto over = stack_of(limpid::aot(limpid::mssa(limpid::key_bias(keys)), {.heads = 2}));
  CHECK(error_of([&] { over.forward(x, layers, out); }) ==
        "aot stack: out shares memory with key bias, wanted memory of its own");
  const auto stack = stack_of(limpid::aot(limpid::mssa(limpid::key_bias(given, sink)), {.heads = 2}));
  limpid::AotStackSaved<decltype(stack.layer.op), double> saved;
  M right(5, 4);
  stack.forward(x, layers, right, {.saved = &saved});
  CHECK(error_of([&] { stack.backward(x, layers, saved, right, dx, none); }) ==
        "aot stack: gradient of x shares memory with gradient of the key bias, wanted memory of its own");
  CHECK((out == before && dx == before));
}

TEST_CASE("A boosting block refuses gradients over du_next, and those of its numbers that are no numbers") {
  const M x = random(5, 4, 1), dout = random(5, 4, 2);
  M out(5, 4), next(5, 4), dx(5, 4), two(1, 2);
  limpid::BoostingBlockSaved<double> saved;
  limpid::boosting_block({.x = x}, limpid::detail::copy<double>, out, next, &saved);
  const auto vjp = [](View<double>, View<double> dz, MutView<double> ds) { limpid::detail::copy(dz, ds); };
  CHECK(error_of([&] { limpid::boosting_block_backward<double>({.x = x}, saved, vjp, dout, dx, {.x = dx}); }) ==
        "boosting block: gradient of x shares memory with du_next, wanted memory of its own");
  CHECK(error_of([&] { limpid::boosting_block_backward<double>({.x = x}, saved, vjp, dout, {}, {.tau = two}); }) ==
        "boosting block: gradient of tau is 1 x 2, wanted 1 x 1");
  CHECK(error_of([&] { limpid::boosting_block_backward<double>({.x = x}, saved, vjp, dout, {}, {.rho = two}); }) ==
        "boosting block: gradient of rho is 1 x 2, wanted 1 x 1");
}

TEST_CASE("Linear maps, norms and rates refuse results over inputs and over each other") {
  const std::string wanted = ", wanted memory of its own";
  M x = random(4, 4, 1), w = random(4, 4, 2), b = random(1, 4, 3), y = random(4, 4, 4), d = random(4, 4, 5);
  const M before = d;
  const auto linear = [&](const limpid::LinearGrads<double>& grad) {
    return error_of([&] { limpid::linear_backward(x, w, y, grad); });
  };
  CHECK(error_of([&] { limpid::linear(x, w, b, w); }) == "linear: y shares memory with w" + wanted);
  CHECK(linear({.x = d, .w = d}) == "linear: gradient of w shares memory with gradient of x" + wanted);
  CHECK(linear({.w = d, .b = d.row(3)}) == "linear: gradient of b shares memory with gradient of w" + wanted);
  CHECK(linear({.w = y}) == "linear: gradient of w shares memory with dy" + wanted);
  CHECK(linear({.x = w}) == "linear: gradient of x shares memory with w" + wanted);

  limpid::LayerNormSaved<double> saved;
  M gamma = b, normed(4, 4);
  limpid::layer_norm(x, gamma, b, normed, {.saved = &saved});
  const auto norm = [&](const limpid::LayerNormGrads<double>& grad) {
    return error_of([&] { limpid::layer_norm_backward(x, gamma, saved, y, grad); });
  };
  M dg = b;
  CHECK(norm({.x = d, .gamma = d.row(1)}) == "layer_norm: gradient of gamma shares memory with gradient of x" + wanted);
  CHECK(norm({.gamma = dg, .beta = dg}) ==
        "layer_norm: gradient of beta shares memory with gradient of gamma" + wanted);
  CHECK(norm({.gamma = gamma}) == "layer_norm: gradient of gamma shares memory with gamma" + wanted);
  CHECK(norm({.x = y}) == "layer_norm: gradient of x shares memory with dy" + wanted);
  CHECK(error_of([&] { limpid::layer_norm(x, gamma, x.row(2), x, {}); }).find("layer_norm: y shares memory with x") ==
        0);

  const auto rate = [&](const MutView<double>& dx, const MutView<double>& du) {
    return error_of([&] { limpid::subspace_coding_rate_backward(x, w, 1, dx, du, {.heads = 2}); });
  };
  CHECK(rate(x, {}) == "subspace_coding_rate: gradient of x shares memory with x" + wanted);
  CHECK(rate({}, x) == "subspace_coding_rate: gradient of u shares memory with x" + wanted);
  CHECK(rate(d, d) == "subspace_coding_rate: gradient of u shares memory with gradient of x" + wanted);
  CHECK(error_of([&] { limpid::coding_rate_backward(x, 1, x); }) ==
        "coding_rate: gradient of x shares memory with x" + wanted);
  CHECK(error_of([&] { limpid::subspace_energy(x, w, w); }) == "subspace_energy: out shares memory with u" + wanted);
  CHECK(d == before);
}

TEST_CASE("A stack of layers refuses, of all its layers, results that share memory, before the first is run") {
  const limpid::AotStack<decltype(limpid::mssa())> stack{limpid::aot(limpid::mssa(), {.heads = 2})};
  const std::vector<limpid::AotArgs<M>> layers(3, aot_parameters());
  std::vector<limpid::AotArgs<View<double>>> in(layers.begin(), layers.end());
  std::vector<limpid::AotArgs<M>> found = layers;
  std::vector<limpid::AotArgs<MutView<double>>> grad(found.begin(), found.end());
  const M x = random(5, 4, 10), dout = random(5, 4, 11), zero = M::Zero(5, 4);
  M out = zero, dx = zero;
  limpid::AotStackSaved<decltype(limpid::mssa()), double> saved;
  stack.forward(x, in, out, {.saved = &saved});
  const auto first = found;
  const auto refused = [&](const std::string& what, const auto& call) {
    CHECK(error_of(call) == "aot stack: " + what + ", wanted memory of its own");
  };
  const auto back = [&] { stack.backward(x, in, saved, dout, dx, grad); };
  M own = x;
  refused("out shares memory with x", [&] { stack.forward(own, in, own); });
  CHECK(own == x);
  M large = random(9, 4, 12);
  auto with = in;
  with[1].wo = large.topRows(6);
  refused("out shares memory with wo of layer 1", [&] { stack.forward(x, with, large.bottomRows(5)); });
  refused("out shares memory with x", [&] { stack.forward(own, std::vector<limpid::AotArgs<M>>(), own); });

  std::swap(grad[2].u, grad[0].u), grad[0].u = grad[2].u;
  refused("gradient of u of layer 2 shares memory with gradient of u of layer 0", back);
  grad = {found.begin(), found.end()};
  grad[1].beta = grad[1].gamma;
  refused("gradient of beta of layer 1 shares memory with gradient of gamma of layer 1", back);
  grad = {found.begin(), found.end()};
  own = layers[2].u;
  with = in, with[2].u = own, grad[0].u = own;
  refused("gradient of u of layer 0 shares memory with u of layer 2",
          [&] { stack.backward(x, with, saved, dout, dx, grad); });
  grad = {found.begin(), found.end()};
  own = dout;
  refused("gradient of x shares memory with dout", [&] { stack.backward(x, in, saved, own, own, grad); });
  for (std::size_t l = 0; l < 3; ++l) CHECK(found[l].u == first[l].u);
  CHECK(dx == zero);
  back();
  const std::vector<limpid::AotArgs<View<double>>> tied(3, in[0]);  // parameters may be shared
  stack.forward(x, tied, out, {.saved = &saved});
  stack.backward(x, tied, saved, dout, dx, grad);
}

namespace {

/// A forward call that is refused leaves what was saved as it was; one that throws on its way leaves nothing to go back
/// with. forward(saved, in, out) and backward(saved, in, dout, gradients), in[0] is right, in[1] does not fit.
template <class Saved, class Args, class Forward, class Backward>
void check_filled(const std::string& layer, Saved saved, const Args& right, const Args& wrong, bool& throws, M out,
                  const Forward& forward, const Backward& backward) {
  INFO(layer);
  const M dout = random(out.rows(), out.cols(), 20);
  M dx = M::Zero(5, 4), again = dx;
  CHECK(error_of([&] { backward(saved, right, dout, dx); }) != "");
  forward(saved, right, out);
  backward(saved, right, dout, dx);
  const M before = out;
  CHECK(error_of([&] { forward(saved, wrong, out); }).find(layer) == 0);
  CHECK(out == before);
  backward(saved, right, dout, again);
  CHECK(again == dx);
  throws = true;
  CHECK(error_of([&] { forward(saved, right, out); }) == "user");
  throws = false;
  CHECK(error_of([&] { backward(saved, right, dout, again); }) ==
        layer + ": saved is empty, wanted one that a forward call has filled");
  CHECK(again == dx);
  forward(saved, right, out);
  backward(saved, right, dout, again);
  CHECK(again == dx);
}

template <class Layer, class Args>
void check_layer_filled(const std::string& name, const Layer& layer, const Args& right, const Args& wrong, bool& throws,
                        Index cols) {
  check_filled(
      name, typename Layer::template Saved<double>(), right, wrong, throws, M(5, cols),
      [&](auto& saved, const Args& in, M& out) { layer.forward(in, out, {.saved = &saved}); },
      [&](auto& saved, const Args& in, const M& dout, M& dx) {
        typename Layer::template Grads<double> grad;
        grad.x = dx;
        layer.template backward<double>(in, saved, dout, grad);
      });
}

}  // namespace

TEST_CASE("After a forward call that was refused a layer goes back as before, after one that threw not at all") {
  bool throws = false;
  const auto mask = limpid::mask([&](const limpid::At&) {
    if (throws) throw std::runtime_error("user");
    return true;
  });
  const M wide = random(7, 7, 1), other = random(5, 4, 30);
  const auto p = multi_head_parameters();
  const limpid::MultiHeadArgs<View<double>> heads = p;
  for (const auto& change : {+[](limpid::MultiHeadArgs<View<double>>&a, const M&m) { a.wo = m; },
                             +[](limpid::MultiHeadArgs<View<double>>&a, const M&m) { a.bk = m; },
                             +[](limpid::MultiHeadArgs<View<double>>&a, const M&m) { a.bo = m; }}) {
    auto wrong = heads;
    wrong.x = other;
    change(wrong, wide);
    check_layer_filled("multi-head layer", limpid::multi_head(limpid::softmax(mask), 2, 1), heads, wrong, throws, 3);
  }
  const M x = p.x, u = random(4, 6, 2), wo = random(6, 4, 3), w = random(4, 4, 4);
  const limpid::MssaLayerArgs<View<double>> mssa{x, u, wo, {}};
  check_layer_filled("mssa layer", limpid::mssa_layer(limpid::mssa(mask), 2), mssa, {other, u, wide, {}}, throws, 4);
  limpid::AotArgs<View<double>> aot, not_aot;
  aot.x = x, aot.u = u, aot.wo = wo;
  not_aot = aot, not_aot.x = other, not_aot.bo = wide;
  const auto layer = limpid::aot(limpid::mssa(mask), {.heads = 2});
  check_layer_filled("aot layer", layer, aot, not_aot, throws, 4);
  limpid::CrateArgs<View<double>> crate, not_crate;
  crate.x = x, crate.u = u, crate.wo = wo, crate.dictionary = w;
  not_crate = crate, not_crate.x = other, not_crate.dictionary = wide;
  check_layer_filled("crate block", limpid::crate(limpid::mssa(mask), {.heads = 2}), crate, not_crate, throws, 4);

  std::vector<limpid::AotArgs<View<double>>> stacked(2, aot), wrong(2, aot);
  wrong[1].wo = wide;
  const limpid::AotStack<decltype(layer.op)> stack{layer};
  check_filled(
      "aot stack", limpid::AotStackSaved<decltype(layer.op), double>(), std::pair(x, stacked),
      std::pair(other, stacked), throws, M(5, 4),
      [&](auto& saved, const auto& in, M& out) {
        if (in.first == other) stack.forward(in.first, wrong, out, {.saved = &saved});
        stack.forward(in.first, in.second, out, {.saved = &saved});
      },
      [&](auto& saved, const auto& in, const M& dout, M& dx) {
        std::vector<limpid::AotArgs<MutView<double>>> none(2);
        stack.backward(in.first, in.second, saved, dout, dx, none);
      });

  const auto tp = two_map_parameters();
  const auto two = limpid::detail::same_fields<limpid::TwoMapLayerArgs<View<double>>>(tp);
  auto not_two = two;
  not_two.x = other, not_two.wo = wide;
  const auto gated = limpid::two_map_layer(limpid::differential_gated(mask), 2, 1);
  check_filled(
      "layer", limpid::TwoMapLayerSaved<decltype(gated.op), double>(), two, not_two, throws, M(5, 4),
      [&](auto& saved, const auto& in, M& out) { gated.forward(in, out, {.saved = &saved}); },
      [&](auto& saved, const auto& in, const M& dout, M& dx) {
        limpid::TwoMapLayerArgs<MutView<double>> grad;
        grad.x = dx;
        gated.backward(in, saved, dout, grad);
      });

  limpid::BoostingBlockArgs<View<double>> block, not_block;
  block.x = x, not_block.x = other, not_block.u = wide;
  check_filled(
      "boosting block", limpid::BoostingBlockSaved<double>(), block, not_block, throws, M(5, 4),
      [&](auto& saved, const auto& in, M& out) {
        const auto f = [&](View<double> from, MutView<double> to) {
          if (throws) throw std::runtime_error("user");
          limpid::detail::copy<double>(from, to);
        };
        limpid::boosting_block(in, f, out, MutView<double>(), &saved);
      },
      [&](auto& saved, const auto& in, const M& dout, M& dx) {
        const auto vjp = [](View<double>, View<double> dz, MutView<double> ds) { limpid::detail::copy(dz, ds); };
        limpid::boosting_block_backward<double>(in, saved, vjp, dout, {}, {.x = dx});
      });
}

namespace {

/// One step forward and back of n tokens, all gradients asked for; the sizes are said by the parameters.
template <template <class> class Args, class Layer>
void check_sizes(const Layer& layer, const Args<M>& p, Index cols) {
  typename Layer::template Saved<double> saved;
  const auto in = limpid::detail::same_fields<Args<View<double>>>(p);
  Args<M> found = p;
  Args<M>::visit([](const char*, M& m) { m.setConstant(untouched); }, found);
  M out = M::Constant(p.x.rows(), cols, untouched);
  layer.forward(in, out, {.saved = &saved});
  layer.template backward<double>(in, saved, out, limpid::detail::same_fields<Args<MutView<double>>>(found));
  CHECK((out.array() != untouched).all());
  Args<M>::visit(
      [](const char* name, const M& m) {
        INFO(name);
        CHECK((m.array() != untouched).all());
      },
      found);
}

}  // namespace

/// make(bias) is a layer whose operator takes that key bias; five tokens.
template <template <class> class Args, class Make>
void check_operator_refusal(const Args<M>& parameters, const Make& make, const std::string& said) {
  const M fits = random(1, 5, 3), odd = random(1, 4, 4), d = random(5, 6, 5);
  const auto layer = make(fits), refused = make(odd);
  typename std::remove_const_t<decltype(layer)>::template Saved<double> saved;
  Args<View<double>> in;
  Args<M>::visit(
      [](const char*, const M& from, View<double>& to) {
        if (from.size() > 0) to = from;
      },
      parameters, in);
  M out(5, 6), dx(5, 6), again(5, 6);
  layer.forward(in, out, {.saved = &saved});
  Args<MutView<double>> grad;
  grad.x = dx;
  layer.template backward<double>(in, saved, d, grad);
  const M before = out, half = 0.5 * parameters.x;
  Args<View<double>> other = in;
  other.x = half;
  CHECK_THAT(error_of([&] { refused.forward(other, out, {.saved = &saved}); }), Catch::StartsWith(said));
  CHECK(out == before);
  grad.x = again;
  layer.template backward<double>(in, saved, d, grad);
  CHECK(again == dx);
}

TEST_CASE("What its operator refuses leaves what a layer has kept as it was") {
  const auto w = [](std::uint64_t seed) { return random(6, 6, seed); };
  const M x = random(5, 6, 1), row = random(1, 6, 2), one = M::Ones(1, 1);
  using limpid::key_bias;
  check_operator_refusal<limpid::MssaLayerArgs>(
      {x, w(11), {}, {}}, [](const M& bias) { return limpid::mssa_layer(limpid::mssa(key_bias(bias)), 2); },
      "mssa: key bias is");
  limpid::TwoMapLayerArgs<M> two;
  two.x = x, two.wq = w(12), two.wk = w(13), two.wv = random(6, 4, 14), two.wo = random(4, 6, 15);
  two.gate_w = random(6, 1, 16);
  check_operator_refusal<limpid::TwoMapLayerArgs>(
      two, [](const M& bias) { return limpid::two_map_layer(limpid::differential_gated(key_bias(bias)), 1); },
      "differential_gated: key bias is");
  limpid::AotArgs<M> aot;
  aot.x = x, aot.eta = one, aot.u = w(17);
  check_operator_refusal<limpid::AotArgs>(
      aot,
      [](const M& bias) {
        return limpid::Aot<decltype(limpid::mssa(key_bias(bias)))>{limpid::mssa(key_bias(bias)), 2};
      },
      "mssa: key bias is");
  limpid::CrateArgs<M> crate;
  crate.x = x, crate.u = w(18), crate.dictionary = w(19), crate.gamma1 = row, crate.gamma2 = row;
  check_operator_refusal<limpid::CrateArgs>(
      crate,
      [](const M& bias) {
        return limpid::Crate<decltype(limpid::mssa(key_bias(bias)))>{limpid::mssa(key_bias(bias)), 2, {}};
      },
      "mssa: key bias is");
}

TEST_CASE("Layers of no tokens, of no columns or of heads without any, forward and back") {
  // the first is none of all tokens, the second and third tokens and heads without columns
  for (const auto& [n, dim, dk, dv] : {std::tuple<Index, Index, Index, Index>{0, 4, 3, 2},
                                       {5, 0, 3, 2},
                                       {5, 4, 0, 2},
                                       {5, 4, 3, 0},
                                       {0, 0, 3, 2},
                                       {0, 4, 0, 0},
                                       {5, 0, 0, 0}}) {
    INFO("n " << n << ", dim " << dim << ", dk " << dk << ", dv " << dv);
    const M x = random(n, dim, 1), b = random(1, dim, 2), w = random(dim, dim, 3);
    limpid::MultiHeadArgs<M> heads{x,
                                   random(dim, 2 * dk, 2),
                                   random(1, 2 * dk, 3),
                                   random(dim, dk, 4),
                                   random(1, dk, 5),
                                   random(dim, dv, 6),
                                   random(1, dv, 7),
                                   random(2 * dv, 3, 8),
                                   random(1, 3, 9)};
    check_sizes<limpid::MultiHeadArgs>(limpid::multi_head(limpid::softmax(), 2, 1), heads, 3);
    check_sizes<limpid::MlpArgs>(limpid::swiglu(), mlp_parameters(n, dim, dk), dim);
    for (const Index m : {Index(3), Index(dk * dv == 0 ? 3 : 0)})  // 0 x 0 keys and values are none that are given
      check_sizes<limpid::TransformerBlockArgs>(
          limpid::transformer_block(limpid::softmax(), limpid::softmax(), block_options()),
          block_parameters(n, dim, dk, dv, m), dim);
    const M u = random(dim, 2 * dk, 4), wo = random(2 * dk, dim, 5);
    check_sizes<limpid::MssaLayerArgs>(limpid::mssa_layer(limpid::mssa(), 2), {x, u, wo, b}, dim);
    check_sizes<limpid::MssaLayerArgs>(limpid::mssa_layer(limpid::mssa(), 2), {x, u, {}, b}, dim);
    limpid::AotArgs<M> aot;
    aot.x = x, aot.eta = M::Ones(1, 1), aot.gamma = aot.beta = aot.bo = b, aot.u = u, aot.wo = wo;
    check_sizes<limpid::AotArgs>(limpid::aot(limpid::mssa(), {.heads = 2}), aot, dim);
    check_sizes<limpid::IstaArgs>(limpid::Ista{}, {x, w, b, b, M::Ones(1, 1), M::Ones(1, 1)}, dim);
    limpid::CrateArgs<M> crate{x, b, b, u, wo, b, b, b, w, M::Ones(1, 1), M::Ones(1, 1)};
    check_sizes<limpid::CrateArgs>(limpid::crate(limpid::mssa(), {.heads = 2}), crate, dim);
    for (const Index gates : {0, 2}) {
      limpid::TwoMapLayerArgs<M> two;
      two.x = x, two.wq = random(dim, 4 * dk, 1), two.wk = random(dim, 2 * dk, 2), two.wv = random(dim, dv, 3);
      two.wo = random(2 * dv, 3, 4);
      if (gates > 0) two.gate_w = random(dim, gates, 5), two.gate_b = random(1, gates, 6);
      const auto in = limpid::detail::same_fields<limpid::TwoMapLayerArgs<View<double>>>(two);
      auto found = two;
      decltype(found)::visit([](const char*, M& m) { m.setConstant(untouched); }, found);
      M out = M::Constant(n, 3, untouched);
      const auto both = [&](const auto& layer) {
        limpid::TwoMapLayerSaved<std::remove_cvref_t<decltype(layer.op)>, double> saved;
        layer.forward(in, out, {.saved = &saved});
        layer.backward(in, saved, out, limpid::detail::same_fields<limpid::TwoMapLayerArgs<MutView<double>>>(found));
      };
      if (gates > 0)
        both(limpid::two_map_layer(limpid::differential_gated(), 2, 1));
      else
        both(limpid::two_map_layer(limpid::differential(), 2, 1));
      CHECK((out.array() != untouched).all());
      decltype(found)::visit([](const char*, const M& m) { CHECK((m.array() != untouched).all()); }, found);
    }
  }
}

TEST_CASE("Stacks and blocks of no tokens or of no columns, forward and back") {
  for (const auto& [n, dim] : {std::pair<Index, Index>{0, 4}, {5, 0}, {0, 0}}) {
    INFO("n " << n << ", dim " << dim);
    const M x = random(n, dim, 1), u = random(dim, 6, 2), wo = random(6, dim, 3), b = random(1, dim, 4);
    M out = x, dx = x;
    for (const std::size_t depth : {0, 1, 3}) {
      limpid::AotArgs<View<double>> one;
      one.u = u, one.wo = wo, one.bo = one.gamma = b;
      const std::vector<limpid::AotArgs<View<double>>> layers(depth, one);
      std::vector<limpid::AotArgs<M>> found(depth);
      for (auto& f : found) f.u = M::Ones(dim, 6), f.bo = M::Ones(1, dim);
      const limpid::AotStack<decltype(limpid::mssa())> stack{limpid::aot(limpid::mssa(), {.heads = 2})};
      limpid::AotStackSaved<decltype(limpid::mssa()), double> saved;
      stack.forward(x, layers, out);
      stack.forward(x, layers, out, {.saved = &saved});
      stack.backward(x, layers, saved, out, dx, found);
      for (const auto& f : found)
        if (n == 0) CHECK((f.u.isZero(0) && f.bo.isZero(0)));
    }
    M next = x, tau = M::Ones(1, 1), dtau = tau;
    limpid::BoostingBlockSaved<double> saved;
    limpid::boosting_block({.x = x, .u = x, .tau = tau}, limpid::detail::copy<double>, out, next, &saved);
    const auto vjp = [](View<double>, View<double> dz, MutView<double> ds) { limpid::detail::copy(dz, ds); };
    limpid::boosting_block_backward<double>({.x = x, .u = x, .tau = tau}, saved, vjp, out, next,
                                            {.x = dx, .tau = dtau});
    CHECK(dtau(0, 0) == 0);
    M rate = x, energy(n, 2);
    limpid::coding_rate_backward(x, 1, rate);
    CHECK(limpid::subspace_coding_rate(x, u, {.heads = 2}) == 0);
    limpid::subspace_coding_rate_backward(x, u, 1, rate, {}, {.heads = 2});
    limpid::subspace_energy(x, u, energy);
  }
}

TEST_CASE("Layers of no heads, of heads that do not divide, of no batch items are refused by name, out_width too") {
  const auto heads = multi_head_parameters();
  const auto crate = crate_parameters();
  const auto two_parameters = two_map_parameters();
  const auto two = limpid::detail::same_fields<limpid::TwoMapLayerArgs<View<double>>>(two_parameters);
  limpid::AotArgs<M> aot = aot_parameters();
  aot.x = heads.x;
  const limpid::MssaLayerArgs<M> mssa{heads.x, aot.u, aot.wo, {}};
  M three(5, 3), four(5, 4);
  const std::string wanted = ", wanted at least 1, kv_heads a divisor of heads";
  for (const auto& pair : {std::pair<Index, Index>{0, 0}, {-1, 0}, {0, 1}, {2, -1}, {3, 2}}) {
    const Index h = pair.first, g = pair.second;
    const std::string found = ": heads is " + std::to_string(h) + " and kv_heads " + std::to_string(g == 0 ? h : g);
    const auto layer = limpid::multi_head(limpid::softmax(), h, g);
    CHECK(error_of([&] { layer.forward(heads, three); }) == "multi-head layer" + found + wanted);
    CHECK(error_of([&] { layer.out_width<double>(heads); }) == "multi-head layer" + found + wanted);
    CHECK(error_of([&] { limpid::two_map_layer(limpid::differential(), h, g).forward(two, four); }) ==
          "layer" + found + wanted);
    if (g != 0) continue;
    CHECK(error_of([&] { limpid::mssa_layer(limpid::mssa(), h).forward(mssa, four); }) ==
          "mssa layer" + found + wanted);
    CHECK(error_of([&] { limpid::aot(limpid::mssa(), {.heads = h}).forward(aot, four); }) ==
          "aot layer" + found + wanted);
    CHECK(error_of([&] { limpid::crate(limpid::mssa(), {.heads = h}).forward(crate, four); }) ==
          "crate block" + found + wanted);
  }
  CHECK(error_of([&] {
          limpid::multi_head(limpid::softmax(), Index(1) << 62, 1).out_width<double>(heads);
        }).find("multi-head layer: heads is 4611686018427387904 and batch 1, wanted at most") == 0);
  for (const Index b : {0, -1, 2}) {
    const std::string found = ": batch is " + std::to_string(b) + " and x has 5 rows, wanted at least 1 item";
    const auto refused = [&](const std::string& name, const auto& call) {
      CHECK(error_of(call).find(name + found) == 0);
    };
    refused("multi-head layer",
            [&] { limpid::multi_head(limpid::softmax(), 2, 1).forward(heads, three, {.batch = b}); });
    refused("mssa layer", [&] { limpid::mssa_layer(limpid::mssa(), 2).forward(mssa, four, {.batch = b}); });
    refused("aot layer", [&] { limpid::aot(limpid::mssa(), {.heads = 2}).forward(aot, four, {.batch = b}); });
    refused("crate block", [&] { limpid::crate(limpid::mssa(), {.heads = 2}).forward(crate, four, {.batch = b}); });
    refused("layer", [&] { limpid::two_map_layer(limpid::differential(), 2, 1).forward(two, four, {.batch = b}); });
  }
}

namespace {

/// Every array given, one row or column too large, is refused
/// in the layer's own name and its own, and so is its gradient.
template <template <class> class Args, class Forward, class Backward>
void check_names(const std::string& layer, const Args<M>& parameters, Index cols, const Forward& forward,
                 const Backward& backward) {
  INFO(layer);
  const auto in = limpid::detail::same_fields<Args<View<double>>>(parameters);
  const M other = random(9, 11, 40), dout = random(in.x.rows, cols, 41);
  M out = M::Constant(in.x.rows, cols, untouched);
  const auto named = [&](const std::string& text, const std::string& field) {
    INFO(field << ": " << text);
    CHECK((text.find(layer + ": " + field + " is ") == 0 || text.find(layer + ": " + field + " has ") == 0));
  };
  each_given(in, [&](const std::string& field, const View<double>&) {
    if (field == "x") return;  // all others are held against it
    auto with = in;
    put(with, field, View<double>(other));
    named(error_of([&] { forward(with, MutView<double>(out)); }), field);
  });
  CHECK((out.array() == untouched).all());
  M large(9, 11);
  named(error_of([&] { forward(in, MutView<double>(large)); }), "out");
  forward(in, MutView<double>(out));
  each_given(in, [&](const std::string& field, const View<double>&) {
    Args<MutView<double>> grad;
    put(grad, field, MutView<double>(large));
    named(error_of([&] { backward(in, View<double>(dout), grad); }), "gradient of " + field);
  });
  named(error_of([&] { backward(in, View<double>(large), {}); }), "dout");
}

template <template <class> class Args, class Layer>
void check_layer_names(const std::string& name, const Layer& layer, const Args<M>& p, Index cols) {
  typename Layer::template Saved<double> saved;
  check_names<Args>(
      name, p, cols,
      [&](const Args<View<double>>& in, const MutView<double>& out) { layer.forward(in, out, {.saved = &saved}); },
      [&](const Args<View<double>>& in, const View<double>& dout, const Args<MutView<double>>& grad) {
        layer.template backward<double>(in, saved, dout, grad);
      });
}

}  // namespace

TEST_CASE("What does not fit a layer is refused in its own name and by its own field") {
  check_layer_names("multi-head layer", limpid::multi_head(limpid::softmax(), 2, 1), multi_head_parameters(), 3);
  limpid::MssaLayerArgs<M> mssa{random(5, 4, 1), random(4, 6, 2), random(6, 3, 3), random(1, 3, 4)};
  check_layer_names("mssa layer", limpid::mssa_layer(limpid::mssa(), 2), mssa, 3);
  check_layer_names("crate block", limpid::crate(limpid::mssa(), {.heads = 2}), crate_parameters(), 4);
  limpid::AotArgs<M> aot = aot_parameters();
  aot.x = random(5, 4, 1);
  check_layer_names("aot layer", limpid::aot(limpid::mssa(), {.heads = 2}), aot, 4);
  auto wide = aot;
  wide.wo = random(6, 3, 5), wide.bo.resize(0, 0);
  M out(5, 4);
  CHECK(error_of([&] { limpid::aot(limpid::mssa(), {.heads = 2}).forward(wide, out); }) ==
        "aot layer: the attention's result has 3 columns, wanted 4 as x has");

  auto odd = multi_head_parameters();
  odd.wq = random(4, 5, 1), odd.bq.resize(0, 0);
  CHECK(error_of([&] { limpid::multi_head(limpid::softmax(), 2, 1).forward(odd, out); }) ==
        "multi-head layer: wq has 5 columns, wanted a multiple of its 2 heads");

  auto two = two_map_parameters();
  two.gamma.resize(0, 0);
  const auto gated = limpid::two_map_layer(limpid::differential_gated(), 2, 1);
  limpid::TwoMapLayerSaved<decltype(gated.op), double> saved;
  check_names<limpid::TwoMapLayerArgs>(
      "layer", two, 4, [&](const auto& in, const MutView<double>& o) { gated.forward(in, o, {.saved = &saved}); },
      [&](const auto& in, const View<double>& dout, const limpid::TwoMapLayerArgs<MutView<double>>& grad) {
        gated.backward(in, saved, dout, grad);
      });

  std::vector<limpid::AotArgs<M>> layers(3, aot_parameters());
  layers[2].gamma = random(1, 5, 1);
  const limpid::AotStack<decltype(limpid::mssa())> stack{limpid::aot(limpid::mssa(), {.heads = 2})};
  CHECK(error_of([&] { stack.forward(aot.x, layers, out); }) == "aot stack, layer 2: gamma is 1 x 5, wanted 1 x 4");
}

namespace {

/// An executor that has no more of it.
struct Throwing {
  bool throws = false;
  int workers() const { return 2; }
  template <class Task>
  void run(Index count, Task&& task) {
    if (throws) throw std::runtime_error("user");
    for (Index t = 0; t < count; ++t) task(t, 0);
  }
};

}  // namespace

TEST_CASE("A norm and a boosting block whose workspace is in use keep what was saved") {
  const M x = random(6, 4, 1);
  M out = x, next = x, dx = x, again = x;
  limpid::Workspace workspace;
  limpid::LayerNormSaved<double> norm;
  limpid::BoostingBlockSaved<double> block;
  const View<double> none;
  const limpid::BoostingBlockArgs<View<double>> in{.x = x};
  const auto filter = limpid::detail::copy<double>;
  const auto vjp = [](View<double>, View<double> dz, MutView<double> ds) { limpid::detail::copy(dz, ds); };
  const auto back = [&](M& to) {
    limpid::layer_norm_backward(x, none, norm, x, {.x = to});
    limpid::BoostingBlockArgs<MutView<double>> grad;
    M of_block = x;
    grad.x = of_block;
    limpid::boosting_block_backward<double>(in, block, vjp, x, {}, grad);
    to += of_block;
  };
  limpid::layer_norm(x, none, none, out, {.saved = &norm});
  limpid::boosting_block(in, filter, out, next, &block);
  back(dx);
  std::string refused_norm, refused_block;
  const auto mask = limpid::mask([&](limpid::At) {
    refused_norm =
        error_of([&] { limpid::layer_norm(x, none, none, next, {.saved = &norm, .workspace = &workspace}); });
    refused_block = error_of([&] { limpid::boosting_block(in, filter, out, next, &block, {.workspace = &workspace}); });
    return true;
  });
  M own(1, 4);
  const M one = random(1, 4, 2);
  limpid::forward(limpid::softmax(mask), limpid::qkv(one, one, one), own, {.workspace = &workspace});
  CHECK(refused_norm.find("in use") != std::string::npos);
  CHECK(refused_block.find("in use") != std::string::npos);
  back(again);
  CHECK((again == dx));
}

TEST_CASE("After a forward call whose executor threw, a norm and an ISTA step do not go back") {
  const M x = random(600, 4, 1), w = random(4, 4, 2);
  M out = x, dx = x;
  Throwing executor;
  const View<double> none;
  limpid::LayerNormSaved<double> norm;
  limpid::layer_norm(x, none, none, out, {.saved = &norm, .executor = executor});
  limpid::IstaSaved<double> step;
  limpid::IstaArgs<MutView<double>> grad;
  grad.x = dx;
  const limpid::Ista ista{.norm = false};
  ista.forward({.x = x, .dictionary = w}, out, {.saved = &step, .executor = executor});
  executor.throws = true;
  CHECK(error_of([&] { limpid::layer_norm(x, none, none, out, {.saved = &norm, .executor = executor}); }) == "user");
  CHECK(error_of([&] { limpid::layer_norm_backward(x, none, norm, x, {.x = dx}); }) ==
        "layer_norm: saved is empty, wanted one that a forward call has filled");
  CHECK(error_of([&] { ista.forward({.x = x, .dictionary = w}, out, {.saved = &step, .executor = executor}); }) ==
        "user");
  CHECK(error_of([&] { ista.backward({.x = x, .dictionary = w}, step, x, grad); }) ==
        "ista: saved is empty, wanted one that a forward call has filled");
  CHECK((dx == x));  // no 600 rows in a message
}

TEST_CASE("What a layer saved in one half alone, as the other was in use, it does not go back with") {
  limpid::CrateArgs<M> p = crate_parameters();
  p.x = random(600, 4, 1);
  const limpid::CrateArgs<View<double>> in = p;
  M out = p.x, own = p.x, dx = p.x;
  {
    const auto layer = limpid::aot(limpid::mssa(), {.heads = 2});
    const limpid::AotArgs<View<double>> args{.x = p.x, .u = p.u, .wo = p.wo};
    limpid::AotSaved<decltype(layer.op), double> saved;
    layer.forward(args, out, {.saved = &saved});
    std::string text;
    Nosy nosy{[&] { text = error_of([&] { layer.forward(args, own, {.saved = &saved}); }); }};
    layer.attention().forward({p.x, p.u, p.wo, {}}, out, {.saved = &saved.attention, .executor = nosy});
    CHECK(text.find("saved is in use by another call") != std::string::npos);
    limpid::AotArgs<MutView<double>> grad;
    grad.x = dx;
    CHECK(error_of([&] { layer.backward(args, saved, p.x, grad); }) ==
          "aot layer: saved is empty, wanted one that a forward call has filled");
  }
  const auto block = limpid::crate(limpid::mssa(), {.heads = 2});
  limpid::CrateSaved<decltype(block.op), double> saved;
  block.forward(in, out, {.saved = &saved});
  std::string text;
  Nosy nosy{[&] { text = error_of([&] { block.forward(in, own, {.saved = &saved}); }); }};
  block.ista.forward({.x = p.x, .dictionary = p.dictionary}, out, {.saved = &saved.sparsify, .executor = nosy});
  CHECK(text.find("saved is in use by another call") != std::string::npos);
  limpid::CrateArgs<MutView<double>> grad;
  grad.x = dx;
  CHECK(error_of([&] { block.backward(in, saved, p.x, grad); }) ==
        "crate block: saved is empty, wanted one that a forward call has filled");
}
