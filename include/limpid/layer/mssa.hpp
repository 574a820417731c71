// limpid: multi-head subspace self-attention with its projections.
// SPDX-License-Identifier: MIT
#pragma once

#include "../op/mssa.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What MssaLayer reads, and where its gradients go: x (B n) x D, u D x (H p), head k's basis in columns
/// k p .. (k + 1) p - 1, wo (H p) x E, bo 1 x E. Without wo the output map is tied, wo = u^T. visit as MultiHeadArgs.
template <class T>
struct MssaLayerArgs {
  T x{}, u{}, wo{}, bo{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    f("u", a.u...);
    f("wo", a.wo...);
    f("bo", a.bo...);
  }
  template <class V>
  operator MssaLayerArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<MssaLayerArgs<V>>(*this);
  }
  template <class V>
  operator MssaLayerArgs<V>() const {  // NOLINT
    return detail::same_fields<MssaLayerArgs<V>>(*this);
  }
};

template <class Op, class S>
struct MssaLayerSaved {
  Mat<S> y, o;
  limpid::Saved<Op, S> attention;
  bool filled = false;
  detail::Turn turn;
};

/// Multi-head subspace self-attention with its projections, one matrix a head where attention has four:
///
///     Y_k = x U_k,   O_k = A_k Y_k with A_k of mssa(),   out = [O_1 .. O_H] W_O + b_O
///     tied:  out = sum_k A_k x U_k U_k^T
///     dO = dout W_O^T,   dW_O = O^T dout,   dU = x^T dY,   dx = dY U^T
///     tied:  dO = dout U,   dU += dout^T O
///
/// "Attention-Only Transformers via Unrolled Subspace Denoising", ICML 2025, arXiv 2506.03790, eq. 3 to 5; CRATE, arXiv
/// 2306.01129. Networks have a free W_O with bias and scale 1 / sqrt(p), the default; the theory has it tied, scale 1
/// and orthonormal U. Kept: Y, O and what mssa() keeps. 2 n D H p + 2 n E H p flop beside the operator's. backward
/// takes what an Explanation asks for. Throws ShapeError as MultiHead does.
template <class Op>
struct MssaLayer {
  Op op;
  Index heads = 1;
  const char* name = "mssa layer";

  template <class S>
  using Args = MssaLayerArgs<View<S>>;
  template <class S>
  using Grads = MssaLayerArgs<MutView<S>>;
  template <class S>
  using Saved = MssaLayerSaved<Op, S>;

  template <class S>
  Index out_width(const Args<S>& in) const {
    return in.wo.given() ? in.wo.cols : in.u.rows;
  }

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(name, in, call.batch);
    detail::check_out<S>(name, "out", out, in.x.rows, out_width<S>(in));
    detail::refuse_out_overlaps(name, op, in, out);
    check_operator<S>(in, call.batch);
    const detail::ForwardScope<Saved<S>> scope(name, call);
    const View<S> y = detail::projected(scope, &Saved<S>::y, in.x, in.u);
    const MutView<S> o = scope.room(&Saved<S>::o, in.x.rows, in.u.cols);
    limpid::forward(op, {.y = y}, o,
                    {call.batch, heads, 0, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
    project<S>(scope.context, in, o, out);
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, MssaLayerSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad,
                const std::type_identity_t<BackwardCall<S>>& call = {}) const {
    using P = detail::Native<S>;
    const detail::SavedTurn saved_turn(&saved, false, name);
    const View<S> dout(std::forward<Dout>(dout_)), o(saved.o);
    check<S>(name, in, 1);
    detail::check_out<S>(name, "dout", dout, in.x.rows, out_width<S>(in));
    detail::check_gradients(name, with_biases<S>(in), grad);
    check_saved<S>(name, in, saved);
    detail::check_asked<S>(name, call, saved.attention.dims, o.cols);
    detail::refuse_gradient_overlaps(name, op, in, dout, grad, call);
    const detail::LayerScope scope(call);
    const MutView<S> d_o = scope.arena.matrix<S>(o.rows, o.cols), dy = scope.arena.matrix<S>(o.rows, o.cols);
    const bool tied = !in.wo.given();
    if (tied)  // out = o u^T + bo
      detail::linear_in<P>(scope.context, dout, in.u, View<S>(), d_o);
    else  // out = o wo + bo
      detail::linear_backward_in<P>(scope.context, o, in.wo, dout, {d_o, {}, {}}, false, false);
    limpid::backward(op, {.y = saved.y}, saved.attention, d_o, {.y = dy},
                     {false, scope.workspace, scope.executor, call.relevance_weights, call.relevance, call.part,
                      call.heads_gradient});
    bool add_u = call.accumulate;
    if (tied && grad.u.given()) {
      detail::multiply<P, detail::Transposed::a>(scope.context, dout, o, grad.u, add_u);
      add_u = true;
    }
    detail::linear_backward_in<P>(scope.context, o, in.wo, dout, {{}, grad.wo, grad.bo}, false, call.accumulate);
    // y = x u
    detail::linear_backward_in<P>(scope.context, in.x, in.u, dy, {grad.x, grad.u, {}}, call.accumulate, add_u);
  }

  /// out from the heads' output o, the last step of forward, shapes checked.
  template <class S>
  void project(const detail::Context& context, const Args<S>& in, View<S> o, MutView<S> out) const {
    using P = detail::Native<S>;
    if (in.wo.given())
      detail::linear_in<P>(context, o, in.wo, in.bo, out);
    else
      detail::multiply<P, detail::Transposed::b>(context, o, in.u, out, false, in.bo.data);
  }

  /// Shapes and numbers of the inputs, raised in the name of a layer.
  template <class S>
  void check(const char* layer, const Args<S>& in, Index batch) const {
    detail::check_heads(layer, heads, heads, batch, in.x.rows);
    detail::check_projection(layer, "u", in.u, in.x, heads);
    detail::check_counts(layer, 1, heads, in.u.cols);
    if (in.wo.given())
      detail::check_reads(layer, "wo", in.wo.rows, in.wo.cols, in.u.cols, "the heads' output has columns");
    detail::check_bias<S>(layer, "bo", in.bo, out_width<S>(in));
    detail::check_rows(layer, in);
  }
  /// What the operator refuses of such inputs, asked before anything is written.
  template <class S>
  void check_operator(const Args<S>& in, Index batch) const {
    const View<S> y(nullptr, in.x.rows, in.u.cols, in.u.cols);
    const Inputs<Op, S> all{.y = y};
    const Dims d = detail::dims_of(op.name, detail::shapes_of(all), batch, heads, 0);
    detail::check_call<Op, S>(op, all, d, y, "out");
  }
  /// With the shape of a bias that is not given.
  template <class S>
  Args<S> with_biases(Args<S> in) const {
    in.bo = detail::or_zero(in.bo, out_width<S>(in));
    return in;
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const Saved<S>& saved) const {
    detail::check_kept(layer, "y", saved.y, in.x.rows, in.u.cols);
    detail::check_filled(layer, saved);
    detail::check_kept_heads(layer, saved.attention, heads, heads);
    detail::check_kept(layer, "o", saved.o, in.x.rows, in.u.cols);
  }
};

/// mssa_layer(mssa(), 8), mssa_layer(mssa({.scale = 1, .phi = Phi::threshold, .tau = 0.6}), 8): see MssaLayer.
template <class Op>
MssaLayer<Op> mssa_layer(const Op& op, Index heads) {
  return {op, heads};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
