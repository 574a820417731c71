// limpid: the attention-only transformer (AoT): layers that are a norm, attention and a skip, and stacks of them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <memory>
#include <vector>

#include "layer_norm.hpp"
#include "mssa.hpp"
#include "multi_head.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an AoT layer reads, and where its gradients go: x (B n) x D; eta 1 x 1, the step, default 1; gamma and beta
/// 1 x D of the norm; then the attention's own: u (MSSA, see MssaLayerArgs) or wq, wk, wv (see MultiHeadArgs), wo, bo.
/// Empty: not given. A stack reads x elsewhere and leaves this one empty. visit(f, a...) calls f(name, a's fields...).
template <class T>
struct AotArgs {
  T x{}, eta{}, gamma{}, beta{}, u{}, wq{}, bq{}, wk{}, bk{}, wv{}, bv{}, wo{}, bo{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    f("eta", a.eta...);
    f("gamma", a.gamma...), f("beta", a.beta...);
    f("u", a.u...);
    MultiHeadArgs<T>::visit_weights(f, a...);
  }
  template <class V>
  operator AotArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<AotArgs<V>>(*this);
  }
  template <class V>
  operator AotArgs<V>() const {  // NOLINT
    return detail::same_fields<AotArgs<V>>(*this);
  }
};

namespace detail {

/// MssaLayer for operators of one array, MultiHead for those of q, k and v.
template <class Op>
inline constexpr bool is_mssa = requires(typename Op::template Args<View<float>> in) {
  in.y;
};
template <class Op>
using AttentionLayer = std::conditional_t<is_mssa<Op>, MssaLayer<Op>, MultiHead<Op>>;

template <class T, class Op>
auto attention_args(const AotArgs<T>& from, T x) {
  if constexpr (is_mssa<Op>)
    return MssaLayerArgs<T>{x, from.u, from.wo, from.bo};
  else
    return MultiHeadArgs<T>{x, from.wq, from.bq, from.wk, from.bk, from.wv, from.bv, from.wo, from.bo};
}

/// out = a + factor b, out may be either.
template <class S>
void add_scaled(View<S> a, S factor, View<S> b, MutView<S> out) {
  for (Index i = 0; i < out.rows; ++i) add_scaled_row<Native<S>>(a.row(i), factor, b.row(i), out.row(i), out.cols);
}

}  // namespace detail

template <class Op, class S>
struct AotSaved {
  LayerNormSaved<S> norm;
  typename detail::AttentionLayer<Op>::template Saved<S> attention;
  bool filled = false;
  detail::Turn turn;
};

/// One layer of an attention-only transformer, batches of tokens to tokens of the same shape:
///
///     H = LN(x) or x,   out = x + eta Attention(H)
///     d eta = <dout, Attention(H)>,   dx = dout + LN backward of dH,   dH from eta dout
///
/// Attention is MSSA for op = mssa(...), or plain multi-head attention (the variant AoT-MHSA) for any operator of q, k,
/// v. "Attention-Only Transformers via Unrolled Subspace Denoising", ICML 2025, arXiv 2506.03790, section on the
/// architecture. Their theory has a fixed eta and no norm; their networks eta = 1 and pre-norm. eta as a scalar to
/// learn is ours. Kept: the norm's statistics and what the attention keeps; H and Attention(H) are made again. x must
/// still be there. backward takes what an Explanation asks for. Throws ShapeError as MultiHead does, also where gamma,
/// beta, eta or eps is not finite.
template <class Op>
struct Aot {
  Op op;
  Index heads = 1;
  Index kv_heads = 0;  ///< multi-head attention only
  bool norm = true;
  double eps = 1e-5;

  template <class S>
  using Args = AotArgs<View<S>>;
  template <class S>
  using Grads = AotArgs<MutView<S>>;
  template <class S>
  using Saved = AotSaved<Op, S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>("aot layer", in, out, "out", call.batch);
    detail::refuse_out_overlaps("aot layer", op, in, out);
    check_operator<S>(in, call.batch);
    const detail::ForwardScope<Saved<S>> scope("aot layer", call);
    const View<S> h = detail::normed<S>(scope, norm, in.x, in.gamma, in.beta, eps, scope.part(&Saved<S>::norm));
    attention().forward(detail::attention_args<View<S>, Op>(in, h), out,
                        {call.batch, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
    detail::add_scaled<S>(in.x, step<S>(in), out, out);  // out = x + eta Attention(H)
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, AotSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad,
                const std::type_identity_t<BackwardCall<S>>& call = {}) const {
    const View<S> dout(std::forward<Dout>(dout_));
    const detail::SavedTurn saved_turn(&saved, false, "aot layer");
    check<S>("aot layer", in, dout, "dout", 1);
    detail::check_gradients("aot layer", with_biases<S>(in), grad);
    check_saved<S>("aot layer", in, saved);
    detail::check_asked<S>("aot layer", call, saved.attention.attention.dims, saved.attention.o.cols());
    detail::refuse_gradient_overlaps("aot layer", op, in, dout, grad, call);
    const detail::LayerScope scope(call);
    Arena& arena = scope.arena;
    const Index rows = in.x.rows, cols = in.x.cols;
    const View<S> h = detail::normed<S>(scope, norm, in.x, in.gamma, in.beta, eps, nullptr);
    const auto args = detail::attention_args<View<S>, Op>(in, h);
    const MutView<S> da = arena.matrix<S>(rows, cols), dh = arena.matrix<S>(rows, cols);
    S d_eta(0);
    if (grad.eta.given()) {  // d eta = <dout, Attention(H)>
      attention().template project<S>(scope.context, args, saved.attention.o, da);
      S* each = arena.take<S>(rows);
      detail::row_dots<detail::Native<S>>(dout, View<S>(da), each);
      detail::Accumulator<S> sum = 0;
      for (Index i = 0; i < rows; ++i) sum += detail::Accumulator<S>(each[i]);
      d_eta = S(sum) + (call.accumulate ? grad.eta(0, 0) : S(0));
    }
    const S eta = step<S>(in);
    for (Index i = 0; i < rows; ++i)
      detail::scale_row<detail::Native<S>>(eta, dout.row(i), da.row(i), cols);  // out = x + eta Attention(H)
    const bool onward = grad.x.given() || grad.gamma.given() || grad.beta.given();
    if (call.accumulate) dh.fill(S(0));  // this one is ours
    attention().template backward<S>(args, saved.attention, da,
                                     detail::attention_args<MutView<S>, Op>(grad, onward ? dh : MutView<S>()),
                                     {call.accumulate, scope.workspace, scope.executor, call.relevance_weights,
                                      call.relevance, call.part, call.heads_gradient});
    if (grad.eta.given()) grad.eta(0, 0) = d_eta;
    if (grad.x.given()) {  // the skip
      if (call.accumulate)
        detail::add_scaled<S>(grad.x, S(1), dout, grad.x);
      else
        detail::copy<S>(dout, grad.x);
    }
    if (!norm) {
      if (grad.x.given()) detail::add_scaled<S>(grad.x, S(1), dh, grad.x);
    } else if (onward) {  // h = LN(x)
      detail::layer_norm_backward_in<detail::Native<S>>(scope.context, in.x, in.gamma, View<S>(saved.norm.statistics),
                                                        View<S>(dh), {grad.x, grad.gamma, grad.beta}, true,
                                                        call.accumulate);
    }
  }

  detail::AttentionLayer<Op> attention() const {
    if constexpr (detail::is_mssa<Op>)
      return {op, heads};
    else
      return {op, heads, kv_heads};
  }

  /// Shapes and numbers of a call, raised in the name of a layer; out_name is that of out: out or dout.
  template <class S>
  void check(const char* layer, const Args<S>& in, View<S> out, const char* out_name, Index batch) const {
    detail::check_number(layer, "eta", in.eta);
    detail::check_parameters(layer, "eta", in.eta);
    if (!detail::are_factors(step(in)))
      detail::raise(std::string(layer) + ": eta is " + detail::number_text(step(in)) + ", wanted at most " +
                    detail::number_text(detail::largest_factor<S>()) + " in size");
    if (!norm && (in.gamma.given() || in.beta.given()))
      detail::raise(std::string(layer) + ": gamma or beta is given, but norm is false");
    detail::check_norm<S>(layer, in.x, in.gamma, in.beta, eps);
    const View<S> other[] = {in.wq, in.bq, in.wk, in.bk, in.wv, in.bv};
    bool strange = detail::is_mssa<Op> ? false : in.u.given();
    if (detail::is_mssa<Op>)
      for (const View<S>& w : other) strange |= w.given();
    if (strange)
      detail::raise(std::string(layer) + ": " +
                    (detail::is_mssa<Op> ? "wq, wk or wv is given to MSSA, whose projection is u"
                                         : "u is given to multi-head attention, whose projections are wq, wk and wv"));
    const auto args = detail::attention_args<View<S>, Op>(in, in.x);
    attention().template check<S>(layer, args, batch);
    if (const Index width = attention().template out_width<S>(args); width != in.x.cols)
      detail::raise(std::string(layer) + ": the attention's result has " + detail::text_of(width) +
                    " columns, wanted " + detail::text_of(in.x.cols) + " as x has");
    detail::check_like_x(layer, out_name, out, in.x);
  }
  /// What the operator refuses of such inputs, asked before anything is written.
  template <class S>
  void check_operator(const Args<S>& in, Index batch) const {
    attention().template check_operator<S>(detail::attention_args<View<S>, Op>(in, in.x), batch);
  }
  /// With the shapes of biases that are not given.
  template <class S>
  Args<S> with_biases(Args<S> in) const {
    const auto like = attention().template with_biases<S>(detail::attention_args<View<S>, Op>(in, in.x));
    in.bo = like.bo;
    if constexpr (!detail::is_mssa<Op>) in.bq = like.bq, in.bk = like.bk, in.bv = like.bv;
    return in;
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const Saved<S>& saved) const {
    if (norm) detail::check_saved_norm<S>(layer, saved.norm, in.x);
    attention().template check_saved<S>(layer, detail::attention_args<View<S>, Op>(in, in.x), saved.attention);
    detail::check_filled(layer, saved);
  }

 private:
  template <class S>
  static S step(const Args<S>& in) {
    return in.eta.given() ? in.eta(0, 0) : S(1);
  }
};

struct AotOptions {
  Index heads = 1;
  Index kv_heads = 0;  ///< multi-head attention only; 0 means heads
  bool norm = true;    ///< LayerNorm before the attention
  double eps = 1e-5;
};

/// aot(mssa(), {.heads = 8}), aot(mssa({.scale = 1, .phi = Phi::threshold, .tau = 0.6}), {.heads = 8, .norm = false}),
/// aot(softmax(causal()), {.heads = 8}): see Aot.
template <class Op>
Aot<Op> aot(const Op& op, AotOptions options = {}) {
  return {op, options.heads, options.kv_heads, options.norm, options.eps};
}

/// What a stack keeps: every layer's own, and the tokens between layers. Reused without allocation.
template <class Op, class S>
struct AotStackSaved {
  std::vector<AotSaved<Op, S>> layers;
  std::vector<Mat<S>> tokens;  ///< layer l's result, all but the last
  bool filled = false;
  detail::Turn turn;
};

/// A stack of AoT layers of any depth, one set of parameters a layer: layers[l] is an AotArgs of views or of matrices.
///     limpid::AotStack<decltype(layer.op)> stack{layer};
///     stack.forward(x, parameters, out, {.batch = B, .saved = &saved});
///     stack.backward(x, parameters, saved, dout, dx, gradients);      // dx and gradients[l] as far as they are wanted
/// Throws ShapeError as Aot does, for all layers before the first is run. Layers may share parameters, each with a
/// gradient of its own.
template <class Op>
struct AotStack {
  Aot<Op> layer;

  template <class S>
  using Saved = AotStackSaved<Op, S>;

  template <class X, class T, class Out>
  void forward(X&& x_, const std::vector<AotArgs<T>>& layers, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const View<S> x(std::forward<X>(x_));
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(x, layers, out, "out", call.batch);
    detail::refuse_overlaps("aot stack", detail::arrays({{"out", out}}),
                            detail::joined(read<S>(x, layers), detail::tables_of(layer.op)));
    for (AotArgs<View<S>> in : layers) {
      in.x = x;
      layer.template check_operator<S>(in, call.batch);
    }
    const detail::ForwardScope<Saved<S>> scope("aot stack", call);
    const auto depth = layers.size();
    if (depth == 0) detail::copy<S>(x, out);
    if (call.saved) {
      call.saved->layers.resize(depth);
      call.saved->tokens.resize(depth == 0 ? 0 : depth - 1);
    }
    MutView<S> spare[2];
    if (!call.saved && depth > 1)
      for (auto& s : spare) s = scope.arena.template matrix<S>(x.rows, x.cols);
    View<S> from = x;
    for (std::size_t l = 0; l < depth; ++l) {
      AotArgs<View<S>> in = layers[l];
      in.x = from;
      MutView<S> to = out;
      if (l + 1 < depth) {
        to = spare[l % 2];
        if (call.saved) {
          call.saved->tokens[l].resize(x.rows, x.cols);
          to = call.saved->tokens[l];
        }
      }
      layer.forward(in, to,
                    {call.batch, call.saved ? &call.saved->layers[l] : nullptr, scope.workspace, scope.executor});
      from = to;
    }
    scope.done();
  }

  /// Gradients of x (may be empty) and of the parameters that gradients[l] names; saved comes from the forward call.
  template <class X, class T, class S, class Dout, class G>
  void backward(X&& x_, const std::vector<AotArgs<T>>& layers, AotStackSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<MutView<S>>& dx, std::vector<AotArgs<G>>& gradients,
                const LayerCall& call = {}) const {
    run_backward<S>(
        std::forward<X>(x_), layers, saved, std::forward<Dout>(dout_), dx, gradients,
        [](auto&, const auto& pass, const LayerCall& inner) { pass(inner); }, call);
  }
  /// The same with all that an Explanation, started with a row an item, asks for. Gradients have the same bits.
  template <class X, class T, class S, class Dout, class G>
  void backward(X&& x_, const std::vector<AotArgs<T>>& layers, AotStackSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<MutView<S>>& dx, std::vector<AotArgs<G>>& gradients,
                std::type_identity_t<Explanation<S>>& why, const LayerCall& call = {}) const {
    if (!saved.layers.empty()) {
      const Dims& d = saved.layers.front().attention.attention.dims;
      why.check("aot stack", d.batch, d.n);
    }
    run_backward<S>(
        std::forward<X>(x_), layers, saved, std::forward<Dout>(dout_), dx, gradients,
        [&](auto& kept, const auto& pass, const LayerCall& inner) { why.layer(layer.op, kept, pass, inner); }, call);
  }

 private:
  template <class S, class T, class G, class Through>
  void run_backward(View<S> x, const std::vector<AotArgs<T>>& layers, AotStackSaved<Op, S>& saved, View<S> dout,
                    MutView<S> dx, std::vector<AotArgs<G>>& gradients, const Through& through,
                    const LayerCall& call) const {
    const auto depth = layers.size();
    const detail::SavedTurn saved_turn(&saved, false, "aot stack");
    if (saved.layers.size() != depth || gradients.size() != depth)
      detail::raise("aot stack: there are " + detail::text_of(depth) + " layers, " +
                    detail::text_of(saved.layers.size()) + " saved and " + detail::text_of(gradients.size()) +
                    " sets of gradients, wanted as many");
    check<S>(x, layers, dout, "dout", 1);
    detail::check_gradient<S>("aot stack", "x", dx, x);
    detail::check_filled("aot stack", saved);
    for (std::size_t l = 0; l < depth; ++l) {
      const AotArgs<View<S>> in = of_layer(x, layers[l]);
      const AotArgs<MutView<S>> grad = of_layer(MutView<S>(), gradients[l]);
      detail::check_gradients(LayerName(l).text, layer.template with_biases<S>(in), grad);
      layer.template check_saved<S>(LayerName(l).text, in, saved.layers[l]);
    }
    const auto written = [&](auto&& f) {
      detail::arrays({{"x", dx, detail::gradient_of}})(f);
      for (std::size_t l = 0; l < depth; ++l)
        detail::fields_of(of_layer(MutView<S>(), gradients[l]), detail::gradient_of, static_cast<Index>(l))(f);
    };
    detail::refuse_backward_overlaps("aot stack", layer.op, written,
                                     detail::joined(read<S>(x, layers), detail::arrays({{"dout", dout}})));
    const detail::LayerScope scope(call);
    MutView<S> spare[2];
    for (auto& s : spare) s = scope.arena.matrix<S>(x.rows, x.cols);
    View<S> g = dout;
    for (std::size_t l = depth; l-- > 0;) {
      AotArgs<View<S>> in = layers[l];
      in.x = l == 0 ? x : View<S>(saved.tokens[l - 1]);
      AotArgs<MutView<S>> grad = gradients[l];
      grad.x = spare[l % 2];
      if (call.accumulate) grad.x.fill(S(0));
      const auto pass = [&](BackwardCall<S> asked) {
        asked.accumulate = call.accumulate;
        layer.template backward<S>(in, saved.layers[l], g, grad, asked);
      };
      through(saved.layers[l].attention, pass, LayerCall{false, scope.workspace, scope.executor});
      g = grad.x;
    }
    if (dx.given()) detail::copy_or_add<S>(g, dx, call.accumulate);
  }
  /// A layer as its errors name it.
  struct LayerName {
    char text[48];
    explicit LayerName(std::size_t l) { std::snprintf(text, sizeof text, "aot stack, layer %zu", l); }
  };
  /// The arrays of one layer, x in the place of its tokens.
  template <class V, class T>
  static AotArgs<V> of_layer(V x, T& layer) {
    AotArgs<V> args = layer;
    args.x = x;
    return args;
  }
  /// Shapes and numbers of all layers, whose tokens have the shape of x.
  template <class S, class T>
  void check(View<S> x, const std::vector<AotArgs<T>>& layers, View<S> out, const char* out_name, Index batch) const {
    detail::check_out<S>("aot stack", out_name, out, x.rows, x.cols);
    for (std::size_t l = 0; l < layers.size(); ++l)
      layer.template check<S>(LayerName(l).text, of_layer(x, layers[l]), out, out_name, batch);
  }
  /// What is read of all layers.
  template <class S, class T>
  static auto read(View<S> x, const std::vector<AotArgs<T>>& layers) {
    return [x, &layers](auto&& f) {
      f(detail::NamedArray("x", x));
      for (std::size_t l = 0; l < layers.size(); ++l)
        detail::fields_of(of_layer(View<S>(), layers[l]), "", static_cast<Index>(l))(f);
    };
  }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
