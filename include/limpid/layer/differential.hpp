// limpid: a layer of two-map attention: projections, gate, differential or gated attention, output projection.
// SPDX-License-Identifier: MIT
#pragma once

#include "../op/differential.hpp"
#include "../op/differential_gated.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a two-map layer reads, and where its gradients go, H heads and G key heads. x (B n) x D, wq D x (H 2d),
/// wk D x (G 2d), or D x (G d) for one key to both branches, wv D x (G dv), wo (H dv) x E. gate_w D x H and
/// gate_b 1 x H make the logits z = x gate_w + gate_b that the operator takes (gated attention, or version 2 of
/// differential). The rest is handed to the operator: gamma, lambda and the vectors it is learned through.
/// Empty: not given.
template <class T>
struct TwoMapLayerArgs {
  T x{}, wq{}, wk{}, wv{}, wo{}, gate_w{}, gate_b{}, gamma{}, lambda{}, lambda_q1{}, lambda_k1{}, lambda_q2{},
      lambda_k2{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    f("wq", a.wq...), f("wk", a.wk...), f("wv", a.wv...), f("wo", a.wo...);
    f("gate_w", a.gate_w...), f("gate_b", a.gate_b...);
    f("gamma", a.gamma...), f("lambda", a.lambda...);
    f("lambda_q1", a.lambda_q1...), f("lambda_k1", a.lambda_k1...);
    f("lambda_q2", a.lambda_q2...), f("lambda_k2", a.lambda_k2...);
  }
};

/// What the layer keeps between forward and backward. One call at a time, as Saved.
template <class Op, class S>
struct TwoMapLayerSaved {
  Mat<S> q, k, v, z, y;
  Saved<Op, S> attention;
  bool filled = false;
  detail::Turn turn;
};

template <class Op, class S>
using TwoMapLayerCall = LayerForward<TwoMapLayerSaved<Op, S>>;

/// out = concat_heads(op(x wq, x wk, x wv, z)) wo, for op = differential(...), differential_v2(...) or
/// differential_gated(...); Ye et al. 2024, arXiv 2410.05258, section 2.1, without biases. Rotary positions come
/// between projection and scores: with them, call linear and the operator yourself.
///
/// Kept: q, k, v, z, the heads' output y and what the operator keeps, O((B n)(D + H (2 d + dv))). backward takes what an
/// Explanation asks for, whose layer() wants the operator's arguments then: q, k, v and z with lambda and gamma. Throws
/// ShapeError where shapes do not fit, a result shares memory with an input or with another one, gate_b is not finite,
/// or, backward, no forward call has filled saved to its end.
template <class Op>
struct TwoMapLayer {
  Op op;
  Index heads = 1;
  Index kv_heads = 0;  ///< key heads, a divisor of heads; 0 means heads

  template <class S>
  using Args = TwoMapLayerArgs<View<S>>;
  template <class S>
  using Grads = TwoMapLayerArgs<MutView<S>>;
  template <class S>
  using Saved = TwoMapLayerSaved<Op, S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(in, out, "out", call.batch);
    detail::refuse_out_overlaps("layer", op, in, out);
    check_operator<S>(in, call.batch);
    const detail::ForwardScope<Saved<S>> scope("layer", call);
    const View<S> q = detail::projected(scope, &Saved<S>::q, in.x, in.wq);
    const View<S> k = detail::projected(scope, &Saved<S>::k, in.x, in.wk);
    const View<S> v = detail::projected(scope, &Saved<S>::v, in.x, in.wv);
    const View<S> z = detail::projected(scope, &Saved<S>::z, in.x, in.gate_w, in.gate_b);
    const MutView<S> y = scope.room(&Saved<S>::y, in.x.rows, in.wo.rows);
    limpid::forward(op, operator_args<View<S>>(in, q, k, v, z), y,
                    {call.batch, heads, kv_heads, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
    detail::linear_in<detail::Native<S>>(scope.context, y, in.wo, View<S>(), out);
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, TwoMapLayerSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad,
                const std::type_identity_t<BackwardCall<S>>& call = {}) const {
    using P = detail::Native<S>;
    const View<S> dout(std::forward<Dout>(dout_));
    const detail::SavedTurn saved_turn(&saved, false, "layer");
    check<S>(in, dout, "dout", 1);
    Args<S> like = in;
    like.gate_b = detail::or_zero(in.gate_b, in.gate_w.cols);
    detail::check_gradients("layer", like, grad);
    detail::refuse_gradient_overlaps("layer", op, in, dout, grad, call);
    detail::check_kept("layer", "q", saved.q, in.x.rows, in.wq.cols);
    detail::check_kept("layer", "k", saved.k, in.x.rows, in.wk.cols);
    detail::check_kept("layer", "v", saved.v, in.x.rows, in.wv.cols);
    detail::check_kept("layer", "z", saved.z, in.x.rows, in.gate_w.cols);
    detail::check_filled("layer", saved);
    detail::check_kept_heads("layer", saved.attention, heads, kv_heads == 0 ? heads : kv_heads);
    detail::check_kept("layer", "y", saved.y, in.x.rows, in.wo.rows);
    detail::check_asked<S>("layer", call, saved.attention.dims, saved.y.cols());
    const detail::LayerScope scope(call);
    const detail::Context& context = scope.context;
    const auto room = [&](const Mat<S>& m) { return scope.arena.matrix<S>(m.rows(), m.cols()); };
    const MutView<S> dq = room(saved.q), dk = room(saved.k), dv = room(saved.v), dz = room(saved.z), dy = room(saved.y);
    detail::linear_backward_in<P>(context, saved.y, in.wo, dout, {dy, {}, {}}, false, false);
    // y = op(q, k, v, z); the operator's own parameters are added to where asked
    if (call.accumulate)
      for (const MutView<S>& g : {dq, dk, dv, dz}) g.fill(S(0));
    limpid::backward(op, operator_args<View<S>>(in, saved.q, saved.k, saved.v, saved.z), saved.attention, View<S>(dy),
                     operator_args<MutView<S>>(grad, dq, dk, dv, dz),
                     {call.accumulate, scope.workspace, scope.executor, call.relevance_weights, call.relevance,
                      call.part, call.heads_gradient});
    // out = y wo
    detail::linear_backward_in<P>(context, saved.y, in.wo, dout, {{}, grad.wo, {}}, false, call.accumulate);
    // q = x wq, k = x wk, v = x wv, z = x gate_w + gate_b
    const bool add = call.accumulate;
    detail::linear_backward_in<P>(context, in.x, in.wq, dq, {grad.x, grad.wq, {}}, add, add);
    detail::linear_backward_in<P>(context, in.x, in.wk, dk, {grad.x, grad.wk, {}}, true, add);
    detail::linear_backward_in<P>(context, in.x, in.wv, dv, {grad.x, grad.wv, {}}, true, add);
    if (in.gate_w.given())
      detail::linear_backward_in<P>(context, in.x, in.gate_w, dz, {grad.x, grad.gate_w, grad.gate_b}, true, add);
  }

 private:
  template <class S>
  void check(const Args<S>& in, View<S> out, const char* out_name, Index batch) const {
    const char* layer = "layer";
    const Index groups = kv_heads == 0 ? heads : kv_heads;
    detail::check_heads(layer, heads, groups, batch, in.x.rows);
    detail::check_projection(layer, "wq", in.wq, in.x, heads);
    detail::check_projection(layer, "wk", in.wk, in.x, groups);
    detail::check_projection(layer, "wv", in.wv, in.x, groups);
    detail::check_counts(layer, 1, heads, std::max(in.wq.cols, in.wv.cols));
    if (in.gate_w.given())
      detail::check_reads(layer, "gate_w", in.gate_w.rows, in.gate_w.cols, in.x.cols, "x has columns");
    if (in.gate_b.given() && !in.gate_w.given()) detail::raise("layer: gate_b is given without gate_w");
    detail::check_bias<S>(layer, "gate_b", in.gate_b, in.gate_w.cols);
    detail::check_parameters(layer, "gate_b", in.gate_b);
    detail::check_reads(layer, "wo", in.wo.rows, in.wo.cols, in.wv.cols / groups * heads,
                        "the heads' output has columns");
    operator_args<View<S>>(in, View<S>(), View<S>(), View<S>(), View<S>());
    detail::check_out<S>(layer, out_name, out, in.x.rows, in.wo.cols);
  }

  /// What the operator refuses of such inputs, asked before anything is written.
  template <class S>
  void check_operator(const Args<S>& in, Index batch) const {
    const Index rows = in.x.rows;
    const auto of = [&](View<S> w) { return View<S>(nullptr, rows, w.cols, w.cols); };
    const Inputs<Op, S> all = operator_args<View<S>>(in, of(in.wq), of(in.wk), of(in.wv), of(in.gate_w));
    const Dims d = detail::dims_of(op.name, detail::shapes_of(all), batch, heads, kv_heads);
    detail::check_call<Op, S>(op, all, d, View<S>(nullptr, rows, in.wo.rows, in.wo.rows), "out");
  }
  /// The operator's arguments, from the layer's: an operator that has no such field is not given it.
  template <class T, class From>
  static typename Op::template Args<T> operator_args(const From& from, T q, T k, T v, T z) {
    typename Op::template Args<T> to{};
    to.q = q, to.k = k, to.v = v, to.gamma = from.gamma;
    if (z.cols > 0) to.z = z;
    if constexpr (requires { to.lambda; }) {
      to.lambda = from.lambda;
      to.lambda_q1 = from.lambda_q1, to.lambda_k1 = from.lambda_k1;
      to.lambda_q2 = from.lambda_q2, to.lambda_k2 = from.lambda_k2;
    } else if (from.lambda.given() || from.lambda_q1.given()) {
      detail::raise("layer: lambda is given to gated attention, whose weights come from gate_w and gate_b");
    }
    return to;
  }
};

/// two_map_layer(differential(causal(), {...}), heads, kv_heads): see TwoMapLayer.
template <class Op>
TwoMapLayer<Op> two_map_layer(const Op& op, Index heads, Index kv_heads = 0) {
  return {op, heads, kv_heads};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
