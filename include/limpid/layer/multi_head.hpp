// limpid: the multi-head layer: projections, any operator of q, k and v, output map.
// SPDX-License-Identifier: MIT
#pragma once

#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What MultiHead reads, and where its gradients go, H heads and G key heads: x (B n) x D,
/// wq D x (H d), wk D x (G d), wv D x (G dv), biases 1 x as many, wo (H dv) x E, bo 1 x E.
/// Empty: not given; without wo the heads' output is the result. visit(f, a...) calls
/// f(name, a's fields...): one set of parameters, or parameters and gradients side by side.
template <class T>
struct MultiHeadArgs {
  T x{}, wq{}, bq{}, wk{}, bk{}, wv{}, bv{}, wo{}, bo{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    visit_weights(f, a...);
  }
  template <class F, class... A>
  static void visit_weights(F&& f, A&&... a) {
    f("wq", a.wq...), f("bq", a.bq...);
    f("wk", a.wk...), f("bk", a.bk...);
    f("wv", a.wv...), f("bv", a.bv...);
    f("wo", a.wo...), f("bo", a.bo...);
  }
  template <class V>
  operator MultiHeadArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<MultiHeadArgs<V>>(*this);
  }
  template <class V>
  operator MultiHeadArgs<V>() const {  // NOLINT
    return detail::same_fields<MultiHeadArgs<V>>(*this);
  }
};

template <class Op, class S>
struct MultiHeadSaved {
  Mat<S> q, k, v, o;
  limpid::Saved<Op, S> attention;
  bool filled = false;
  detail::Turn turn;
};

/// out = concat_heads(op(x wq + bq, x wk + bk, x wv + bv)) wo + bo (Vaswani et al. 2017, arXiv 1706.03762,
/// section 3.2.2) for any operator of q, k, v. Kept: q, k, v, the heads' output and what the operator keeps. Throws
/// ShapeError where shapes do not fit, a result shares memory with an input or with another one, a bias is not finite,
/// or, backward, no forward call has filled saved to its end.
template <class Op>
struct MultiHead {
  Op op;
  Index heads = 1;
  Index kv_heads = 0;  ///< key heads, a divisor of heads; 0 means heads
  const char* name = "multi-head layer";

  template <class S>
  using Args = MultiHeadArgs<View<S>>;
  template <class S>
  using Grads = MultiHeadArgs<MutView<S>>;
  template <class S>
  using Saved = MultiHeadSaved<Op, S>;

  /// Columns of the result. Throws ShapeError where heads or
  /// kv_heads is below 1, does not divide or is out of all size.
  template <class S>
  Index out_width(const Args<S>& in) const {
    detail::check_heads(name, heads, groups(), 1, 0);
    detail::check_counts(name, 1, heads, std::max(in.wq.cols, in.wv.cols));
    return in.wo.given() ? in.wo.cols : head_width<S>(in);
  }

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(name, in, call.batch);
    detail::check_out<S>(name, "out", out, in.x.rows, out_width<S>(in));
    detail::refuse_out_overlaps(name, op, in, out);
    const detail::ForwardScope<Saved<S>> scope(name, call);
    const auto room = [&](Mat<S> Saved<S>::*field, View<S> w) { return scope.room(field, in.x.rows, w.cols); };
    const MutView<S> q = room(&Saved<S>::q, in.wq), k = room(&Saved<S>::k, in.wk), v = room(&Saved<S>::v, in.wv);
    scope.context.as_head(projection_flop<S>(in), [&](const detail::Context& shared) {
      detail::linear_in<detail::Native<S>>(shared, in.x, in.wq, in.bq, q);
      detail::linear_in<detail::Native<S>>(shared, in.x, in.wk, in.bk, k);
      detail::linear_in<detail::Native<S>>(shared, in.x, in.wv, in.bv, v);
    });
    const MutView<S> o = scope.room(&Saved<S>::o, in.x.rows, head_width<S>(in));
    limpid::forward(op, qkv(q, k, v), o,
                    {call.batch, heads, kv_heads, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
    project<S>(scope.context, in, o, out);
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, MultiHeadSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad, const LayerCall& call = {}) const {
    using P = detail::Native<S>;
    const View<S> dout(std::forward<Dout>(dout_));
    const detail::SavedTurn saved_turn(&saved, false, name);
    check<S>(name, in, 1);
    detail::check_out<S>(name, "dout", dout, in.x.rows, out_width<S>(in));
    detail::check_gradients(name, with_biases<S>(in), grad);
    check_saved<S>(name, in, saved);
    detail::refuse_gradient_overlaps(name, op, in, dout, grad);
    const detail::LayerScope scope(call);
    const detail::Context& context = scope.context;
    Arena& arena = scope.arena;
    View<S> d_o = dout;
    if (in.wo.given()) {
      const MutView<S> to = arena.matrix<S>(saved.o.rows(), saved.o.cols());
      detail::linear_backward_in<P>(context, saved.o, in.wo, dout, {to, {}, {}}, false, false);
      d_o = to;
    }
    const auto room = [&](const Mat<S>& m) { return arena.matrix<S>(m.rows(), m.cols()); };
    const MutView<S> dq = room(saved.q), dk = room(saved.k), dv = room(saved.v);
    limpid::backward(op, qkv(saved.q, saved.k, saved.v), saved.attention, d_o, grads(dq, dk, dv),
                     {false, scope.workspace, scope.executor});
    context.as_head(2 * projection_flop<S>(in), [&](const detail::Context& shared) {
      const bool add = call.accumulate;
      if (in.wo.given())  // out = o wo + bo
        detail::linear_backward_in<P>(shared, saved.o, in.wo, dout, {{}, grad.wo, grad.bo}, false, add);
      // q = x wq + bq, k = x wk + bk, v = x wv + bv
      detail::linear_backward_in<P>(shared, in.x, in.wq, dq, {grad.x, grad.wq, grad.bq}, add, add);
      detail::linear_backward_in<P>(shared, in.x, in.wk, dk, {grad.x, grad.wk, grad.bk}, true, add);
      detail::linear_backward_in<P>(shared, in.x, in.wv, dv, {grad.x, grad.wv, grad.bv}, true, add);
    });
  }

  /// out from the heads' output o, the last step of forward, shapes checked.
  template <class S>
  void project(const detail::Context& context, const Args<S>& in, View<S> o, MutView<S> out) const {
    if (in.wo.given())
      detail::linear_in<detail::Native<S>>(context, o, in.wo, in.bo, out);
    else
      detail::copy<S>(o, out);
  }

  /// Shapes and numbers of the inputs, raised in the name of a layer.
  template <class S>
  void check(const char* layer, const Args<S>& in, Index batch) const {
    detail::check_heads(layer, heads, groups(), batch, in.x.rows);
    detail::check_projection(layer, "wq", in.wq, in.x, heads);
    detail::check_projection(layer, "wk", in.wk, in.x, groups());
    detail::check_projection(layer, "wv", in.wv, in.x, groups());
    detail::check_counts(layer, 1, heads, std::max(in.wq.cols, in.wv.cols));
    detail::check_bias<S>(layer, "bq", in.bq, in.wq.cols);
    detail::check_bias<S>(layer, "bk", in.bk, in.wk.cols);
    detail::check_bias<S>(layer, "bv", in.bv, in.wv.cols);
    if (in.bo.given() && !in.wo.given()) detail::raise(std::string(layer) + ": bo is given without wo");
    if (in.wo.given())
      detail::check_reads(layer, "wo", in.wo.rows, in.wo.cols, head_width<S>(in), "the heads' output has columns");
    detail::check_bias<S>(layer, "bo", in.bo, in.wo.cols);
    detail::check_rows(layer, in);
  }
  /// With the shapes of biases that are not given.
  template <class S>
  static Args<S> with_biases(Args<S> in) {
    in.bq = detail::or_zero(in.bq, in.wq.cols), in.bk = detail::or_zero(in.bk, in.wk.cols);
    in.bv = detail::or_zero(in.bv, in.wv.cols), in.bo = detail::or_zero(in.bo, in.wo.cols);
    return in;
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const Saved<S>& saved) const {
    detail::check_kept(layer, "q", saved.q, in.x.rows, in.wq.cols);
    detail::check_kept(layer, "k", saved.k, in.x.rows, in.wk.cols);
    detail::check_kept(layer, "v", saved.v, in.x.rows, in.wv.cols);
    detail::check_filled(layer, saved);
    detail::check_kept_heads(layer, saved.attention, heads, groups());
    detail::check_kept(layer, "o", saved.o, in.x.rows, head_width<S>(in));
  }

 private:
  Index groups() const { return kv_heads == 0 ? heads : kv_heads; }
  /// Of q, k and v from the tokens.
  template <class S>
  static double projection_flop(const Args<S>& in) {
    return 2.0 * double(in.x.rows) * double(in.x.cols) * double(in.wq.cols + in.wk.cols + in.wv.cols);
  }
  template <class S>
  Index head_width(const Args<S>& in) const {
    return in.wv.cols / groups() * heads;
  }
};

/// multi_head(softmax(causal()), 8), multi_head(twicing(), 8, 2): see MultiHead.
template <class Op>
MultiHead<Op> multi_head(const Op& op, Index heads, Index kv_heads = 0) {
  return {op, heads, kv_heads};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
