// limpid: the multi-head layer: projections, any operator of q, k and v, output map; self and cross attention.
// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "../engine/activation.hpp"
#include "rms_norm.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What MultiHead reads, and where its gradients go, H heads and G key heads: x (B n) x D, wq D x (H d), wk D x (G d),
/// wv D x (G dv), biases 1 x as many, wo (H dv) x E, bo 1 x E; or each weight the other way round as out_in(w) says.
/// context (B m) x C, what keys and values are made from in place of x (cross attention), wk and wv then of C inputs.
/// wg D x H or D x (H dv) of a gate on the heads' output, one a head or one an entry, bg 1 x as many. gamma_q and
/// gamma_k 1 x d of the norms of each head's q and k. Empty: not given; without wo the heads' output is the result.
/// visit(f, a...) calls f(name, a's fields...): one set of parameters, or parameters and gradients side by side.
template <class T>
struct MultiHeadArgs {
  T x{};
  detail::LayerWeight<T> wq{};
  T bq{};
  detail::LayerWeight<T> wk{};
  T bk{};
  detail::LayerWeight<T> wv{};
  T bv{};
  detail::LayerWeight<T> wo{};
  T bo{};
  detail::LayerWeight<T> wg{};
  T bg{}, gamma_q{}, gamma_k{}, context{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...), f("context", a.context...);
    visit_weights(f, a...);
    f("wg", a.wg...), f("bg", a.bg...);
    f("gamma_q", a.gamma_q...), f("gamma_k", a.gamma_k...);
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
  Mat<S> q, k, v, o;        ///< as the operator has seen them and made them: what looks inside are given
  Mat<S> gate;              ///< x wg + bg, whose sigmoid gates o, where there is a gate
  Mat<S> q_plain, k_plain;  ///< q and k before their norms, where they have one
  RmsNormSaved<S> q_norm, k_norm;
  limpid::Saved<Op, S> attention;
  bool filled = false;
  detail::Turn turn;
};

namespace detail {

/// The heads of a packed array below each other; its rows lie close.
template <class V>
V by_heads(const V& packed, Index heads) {
  const Index width = packed.cols / heads;
  return {packed.data, packed.rows * heads, width, width};
}

/// out = o o sig(z), z of the same width or one number a head; out may be o.
template <class S>
void gate_heads(const Context& context, View<S> z, View<S> o, MutView<S> out) {
  if (z.empty()) return;
  const Index width = o.cols / z.cols;
  for_rows(context, o.rows, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      if (width == 1) {
        gate_row<Native<S>>(z.row(i), o.row(i), out.row(i), o.cols);
        continue;
      }
      for (Index h = 0; h < z.cols; ++h) {
        const S gate = logistic(z(i, h));
        for (Index c = h * width; c < (h + 1) * width; ++c) out(i, c) = gate * o(i, c);
      }
    }
  });
}
/// out again, and from d, the gradient of out, which is overwritten by that of o, that of z.
template <class S>
void gate_heads_backward(const Context& context, View<S> z, View<S> o, MutView<S> out, MutView<S> d, MutView<S> dz) {
  if (z.empty()) return;
  const Index width = o.cols / z.cols;
  for_rows(context, o.rows, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      if (width == 1) {
        gate_backward_row<Native<S>>(z.row(i), o.row(i), d.row(i), out.row(i), d.row(i), dz.row(i), o.cols);
        continue;
      }
      for (Index h = 0; h < z.cols; ++h) {
        const S gate = logistic(z(i, h));
        const Index begin = h * width;
        dz(i, h) = dot(d.row(i) + begin, o.row(i) + begin, width) * gate * logistic(-z(i, h));
        for (Index c = begin; c < begin + width; ++c) out(i, c) = gate * o(i, c), d(i, c) *= gate;
      }
    }
  });
}

}  // namespace detail

/// out = concat_heads(op(x wq + bq, c wk + bk, c wv + bv)) wo + bo (Vaswani et al. 2017, arXiv 1706.03762, section
/// 3.2.2) for any operator of q, k, v, c = context where it is given, else x. With qk_norm_eps each head's q and k are
/// RMS-normed before the operator sees them (Henry et al. 2020, arXiv 2010.04245, with the RMS norm of later models);
/// rotary positions come with the operator, after that: rope(softmax(causal()), {.layout = RopeLayout::half}) turns
/// query i of n at place i + m - n. With wg the heads' output is gated by the tokens before wo, o o sig(x wg + bg) (Qiu
/// et al. 2025, arXiv 2505.06708, G1): dx, dwg and dbg come of do o o o sig', and the operator's backward pass,
/// relevance too, of do o sig. Kept: q, k, v, the heads' output, the gate before its sigmoid and what the operator
/// keeps; saved.q, saved.k, saved.v and saved.attention are what map_block and Rollout ask for. backward takes the
/// request of a Relevance (ask()) or an Explanation as the operator's own does, and its gradients have the same bits
/// then. Throws
/// ShapeError where shapes do not fit, a result shares memory with an input or with another one, a bias or gamma is not
/// finite, or, backward, no forward call has filled saved to its end.
template <class Op>
struct MultiHead {
  Op op;
  Index heads = 1;
  Index kv_heads = 0;  ///< key heads, a divisor of heads; 0 means heads
  const char* name = "multi-head layer";
  std::optional<double> qk_norm_eps = {};  ///< q and k of each head are RMS-normed, with this eps

  template <class S>
  using Args = MultiHeadArgs<View<S>>;
  template <class S>
  using Grads = MultiHeadArgs<Gradient<S>>;
  template <class S>
  using Saved = MultiHeadSaved<Op, S>;

  /// Columns of the result. Throws ShapeError where heads or
  /// kv_heads is below 1, does not divide or is out of all size.
  template <class S>
  Index out_width(const Args<S>& in) const {
    detail::check_heads(name, heads, groups(), 1, 0);
    detail::check_counts(name, 1, heads, std::max(in.wq.outputs(), in.wv.outputs()));
    return in.wo.given() ? in.wo.outputs() : head_width<S>(in);
  }

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    forward_to<S>(in, MutView<S>(std::forward<Out>(out_)), call);
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, MultiHeadSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad,
                const std::type_identity_t<BackwardCall<S>>& call = {}) const {
    backward_from<S>(in, saved, View<S>(std::forward<Dout>(dout_)), grad, call);
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
    const View<S> c = source<S>(in);
    if (c.rows % batch != 0)
      detail::raise(std::string(layer) + ": batch is " + detail::text_of(batch) + " and context has " +
                    detail::text_of(c.rows) + " rows, wanted as many in each item");
    const char* wide = in.context.given() ? "context has columns" : "x has columns";
    detail::check_projection<S>(layer, "wq", in.wq, in.x, heads);
    detail::check_projection<S>(layer, "wk", in.wk, c, groups(), wide);
    detail::check_projection<S>(layer, "wv", in.wv, c, groups(), wide);
    detail::check_counts(layer, 1, heads, std::max(in.wq.outputs(), in.wv.outputs()));
    detail::check_bias<S>(layer, "bq", in.bq, in.wq.outputs());
    detail::check_bias<S>(layer, "bk", in.bk, in.wk.outputs());
    detail::check_bias<S>(layer, "bv", in.bv, in.wv.outputs());
    if (!qk_norm_eps && (in.gamma_q.given() || in.gamma_k.given()))
      detail::raise(std::string(layer) + ": gamma_q or gamma_k is given without qk_norm_eps");
    if (qk_norm_eps) {
      const Index width = in.wq.outputs() / heads;
      detail::check_finite<S>(layer, "qk_norm_eps", *qk_norm_eps, *qk_norm_eps >= 0, "a finite number, 0 or more");
      if (in.wk.outputs() / groups() != width)
        detail::raise(std::string(layer) + ": wq makes heads of " + detail::text_of(width) + " and wk of " +
                      detail::text_of(in.wk.outputs() / groups()) + ", wanted the same");
      detail::check_bias<S>(layer, "gamma_q", in.gamma_q, width);
      detail::check_bias<S>(layer, "gamma_k", in.gamma_k, width);
    }
    if (in.bo.given() && !in.wo.given()) detail::raise(std::string(layer) + ": bo is given without wo");
    if (in.wo.given()) detail::check_weight<S>(layer, "wo", in.wo, head_width<S>(in), "the heads' output has columns");
    detail::check_bias<S>(layer, "bo", in.bo, in.wo.outputs());
    if (in.bg.given() && !in.wg.given()) detail::raise(std::string(layer) + ": bg is given without wg");
    if (in.wg.given()) {
      detail::check_weight<S>(layer, "wg", in.wg, in.x.cols, "x has columns");
      if (in.wg.outputs() != heads && in.wg.outputs() != head_width<S>(in))
        detail::raise(std::string(layer) + ": wg makes " + detail::text_of(in.wg.outputs()) + " gates, wanted " +
                      detail::text_of(heads) + ", one a head, or " + detail::text_of(head_width<S>(in)) +
                      ", one an entry of the heads' output");
      detail::check_bias<S>(layer, "bg", in.bg, in.wg.outputs());
    }
    detail::check_rows(layer, in);
  }
  /// What the operator refuses of such inputs, asked before anything is written.
  template <class S>
  void check_operator(const Args<S>& in, Index batch) const {
    const Index width = head_width<S>(in);
    const Inputs<Op, S> all = projected<S>(in);
    const Dims d = detail::dims_of(op.name, detail::shapes_of(all), batch, heads, groups());
    detail::check_call<Op, S>(op, all, d, View<S>(nullptr, in.x.rows, width, width), "out");
  }
  /// With the shapes of biases and gammas that are not given, which may have a gradient too.
  template <class S>
  Args<S> with_biases(Args<S> in) const {
    in.bq = detail::or_zero(in.bq, in.wq.outputs()), in.bk = detail::or_zero(in.bk, in.wk.outputs());
    in.bv = detail::or_zero(in.bv, in.wv.outputs()), in.bo = detail::or_zero(in.bo, in.wo.outputs());
    in.bg = detail::or_zero(in.bg, in.wg.outputs());
    const Index width = in.wq.outputs() / heads;
    if (qk_norm_eps) in.gamma_q = detail::or_zero(in.gamma_q, width), in.gamma_k = detail::or_zero(in.gamma_k, width);
    return in;
  }
  /// Gradients as large as what they are of.
  template <class S>
  void check_gradients(const char* layer, const Args<S>& in, const Grads<S>& grad) const {
    detail::check_gradients(layer, with_biases<S>(in), grad);
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const Saved<S>& saved) const {
    const Index keys = source<S>(in).rows;
    detail::check_kept(layer, "q", saved.q, in.x.rows, in.wq.outputs());
    detail::check_kept(layer, "k", saved.k, keys, in.wk.outputs());
    detail::check_kept(layer, "v", saved.v, keys, in.wv.outputs());
    if (qk_norm_eps) {
      detail::check_kept(layer, "q_plain", saved.q_plain, in.x.rows, in.wq.outputs());
      detail::check_kept(layer, "k_plain", saved.k_plain, keys, in.wk.outputs());
    }
    if (in.wg.given()) detail::check_kept(layer, "gate", saved.gate, in.x.rows, in.wg.outputs());
    detail::check_filled(layer, saved);
    detail::check_kept_heads(layer, saved.attention, heads, groups());
    detail::check_kept(layer, "o", saved.o, in.x.rows, head_width<S>(in));
    detail::check_saved_all<Op, S>(op, saved.attention, projected<S>(in));
  }

 private:
  template <class S>
  void forward_to(const Args<S>& in, MutView<S> out, const LayerForward<Saved<S>>& call) const;
  template <class S>
  void backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                     const BackwardCall<S>& call) const;
  Index groups() const { return kv_heads == 0 ? heads : kv_heads; }
  /// What keys and values are made from.
  template <class S>
  static View<S> source(const Args<S>& in) {
    return in.context.given() ? in.context : in.x;
  }
  template <class S>
  void normed(const detail::Context& context, View<S> x, View<S> gamma, MutView<S> y, Index count,
              RmsNormSaved<S>* saved) const {
    if (saved) saved->statistics.resize(x.rows * count, 4);
    detail::norm_in<detail::Native<S>>(context, NormKind::rms, detail::by_heads(x, count), gamma, View<S>(),
                                       *qk_norm_eps, detail::by_heads(y, count),
                                       saved ? MutView<S>(saved->statistics) : MutView<S>());
  }
  /// The shapes of what the operator is given.
  template <class S>
  static Inputs<Op, S> projected(const Args<S>& in) {
    const auto of = [](Index rows, const Weight<S>& w) { return View<S>(nullptr, rows, w.outputs(), w.outputs()); };
    const Index keys = source<S>(in).rows;
    return QKV<View<S>>{of(in.x.rows, in.wq), of(keys, in.wk), of(keys, in.wv)};
  }
  /// Of q, k and v from the tokens.
  template <class S>
  static double projection_flop(const Args<S>& in) {
    const View<S> c = source<S>(in);
    return 2.0 * (double(in.x.rows) * double(in.x.cols) * double(in.wq.outputs()) +
                  double(c.rows) * double(c.cols) * double(in.wk.outputs() + in.wv.outputs()));
  }
  template <class S>
  static double gate_flop(const Args<S>& in) {
    return 2.0 * double(in.x.rows) * double(in.x.cols) * double(in.wg.outputs());
  }
  template <class S>
  Index head_width(const Args<S>& in) const {
    return in.wv.outputs() / groups() * heads;
  }
};

// Outside of the class, where a template is not inline: limpid::compiled_models holds them.

template <class Op>
template <class S>
void MultiHead<Op>::forward_to(const Args<S>& in, MutView<S> out, const LayerForward<Saved<S>>& call) const {
  check<S>(name, in, call.batch);
  detail::check_out<S>(name, "out", out, in.x.rows, out_width<S>(in));
  detail::refuse_out_overlaps(name, op, in, out);
  check_operator<S>(in, call.batch);
  const detail::ForwardScope<Saved<S>> scope(name, call);
  const View<S> c = source<S>(in);
  const auto room = [&](Mat<S> Saved<S>::*field, View<S> of, const Weight<S>& w) {
    return scope.room(field, of.rows, w.outputs());
  };
  const MutView<S> q = room(&Saved<S>::q, in.x, in.wq), k = room(&Saved<S>::k, c, in.wk);
  const MutView<S> v = room(&Saved<S>::v, c, in.wv);
  const bool apart = qk_norm_eps && scope.saved;  // else the norms work in place
  const MutView<S> q_plain = apart ? room(&Saved<S>::q_plain, in.x, in.wq) : q;
  const MutView<S> k_plain = apart ? room(&Saved<S>::k_plain, c, in.wk) : k;
  scope.context.as_head(projection_flop<S>(in), [&](const detail::Context& shared) {
    detail::linear_in<detail::Native<S>>(shared, in.x, in.wq, in.bq, q_plain);
    detail::linear_in<detail::Native<S>>(shared, c, in.wk, in.bk, k_plain);
    detail::linear_in<detail::Native<S>>(shared, c, in.wv, in.bv, v);
    if (!qk_norm_eps) return;
    normed<S>(shared, q_plain, in.gamma_q, q, heads, scope.part(&Saved<S>::q_norm));
    normed<S>(shared, k_plain, in.gamma_k, k, groups(), scope.part(&Saved<S>::k_norm));
  });
  const MutView<S> o = scope.room(&Saved<S>::o, in.x.rows, head_width<S>(in));
  limpid::forward(op, qkv(q, k, v), o,
                  {call.batch, heads, kv_heads, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
  View<S> passed = o;
  if (in.wg.given()) {
    const MutView<S> z = room(&Saved<S>::gate, in.x, in.wg);
    const MutView<S> to = scope.saved ? scope.arena.template matrix<S>(o.rows, o.cols) : o;  // o is kept as it is
    scope.context.as_head(gate_flop<S>(in), [&](const detail::Context& shared) {
      detail::linear_in<detail::Native<S>>(shared, in.x, in.wg, in.bg, z);
      detail::gate_heads<S>(shared, z, o, to);
    });
    passed = to;
  }
  project<S>(scope.context, in, passed, out);
  scope.done();
}

template <class Op>
template <class S>
void MultiHead<Op>::backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                                  const BackwardCall<S>& call) const {
  using P = detail::Native<S>;
  const detail::SavedTurn saved_turn(&saved, false, name);
  check<S>(name, in, 1);
  detail::check_out<S>(name, "dout", dout, in.x.rows, out_width<S>(in));
  check_gradients<S>(name, in, grad);
  check_saved<S>(name, in, saved);
  detail::check_asked<S>(name, call, saved.attention.dims, saved.o.cols());
  detail::refuse_gradient_overlaps(name, op, in, dout, grad, call);
  const detail::LayerScope scope(call);
  const detail::Context& context = scope.context;
  Arena& arena = scope.arena;
  const auto room = [&](const Mat<S>& m) { return arena.matrix<S>(m.rows(), m.cols()); };
  View<S> d_o = dout, passed = saved.o;
  MutView<S> d, dz;  // of the heads' output, of the gate before its sigmoid
  if (in.wo.given() || in.wg.given()) d = room(saved.o), d_o = d;
  if (in.wo.given())
    detail::linear_backward_in<P>(context, saved.o, in.wo, dout, {d, {}, {}}, false, false);
  else if (in.wg.given())
    detail::copy<S>(dout, d);
  if (in.wg.given()) {
    const MutView<S> gated = room(saved.o);
    dz = room(saved.gate);
    detail::gate_heads_backward<S>(context, saved.gate, saved.o, gated, d, dz);
    passed = gated;
  }
  const MutView<S> dq = room(saved.q), dk = room(saved.k), dv = room(saved.v);
  limpid::backward(
      op, qkv(saved.q, saved.k, saved.v), saved.attention, d_o, grads(dq, dk, dv),
      {false, scope.workspace, scope.executor, call.relevance_weights, call.relevance, call.part, call.heads_gradient});
  context.as_head(2 * projection_flop<S>(in), [&](const detail::Context& shared) {
    const bool add = call.accumulate;
    if (in.wo.given())  // out = o wo + bo, o gated
      detail::linear_backward_in<P>(shared, passed, in.wo, dout, {{}, grad.wo, grad.bo}, false, add);
    if (qk_norm_eps) {  // q = norm(q_plain), k = norm(k_plain)
      const auto back = [&](const Mat<S>& plain, View<S> gamma, const RmsNormSaved<S>& norm, MutView<S> d,
                            const Gradient<S>& dgamma, Index count) {
        const MutView<S> rows = detail::by_heads(d, count);
        detail::norm_backward_in<P>(shared, NormKind::rms, detail::by_heads(View<S>(plain), count), gamma,
                                    View<S>(norm.statistics), View<S>(rows), {rows, dgamma, {}}, false, add);
      };
      back(saved.q_plain, in.gamma_q, saved.q_norm, dq, grad.gamma_q, heads);
      back(saved.k_plain, in.gamma_k, saved.k_norm, dk, grad.gamma_k, groups());
    }
    // q = x wq + bq, k = c wk + bk, v = c wv + bv
    const bool cross = in.context.given();
    const View<S> c = source<S>(in);
    const Gradient<S> dx_of_k = cross ? grad.context : Gradient<S>(grad.x.view());
    detail::linear_backward_in<P>(shared, in.x, in.wq, dq, {grad.x, grad.wq, grad.bq}, add, add);
    detail::linear_backward_in<P>(shared, c, in.wk, dk, {dx_of_k, grad.wk, grad.bk}, cross ? add : true, add);
    detail::linear_backward_in<P>(shared, c, in.wv, dv, {dx_of_k.view(), grad.wv, grad.bv}, true, add);
    if (in.wg.given())  // z = x wg + bg
      detail::linear_backward_in<P>(shared, in.x, in.wg, dz, {grad.x.view(), grad.wg, grad.bg}, true, add);
  });
}

/// multi_head(softmax(causal()), 8), multi_head(twicing(), 8, 2): see MultiHead.
template <class Op>
MultiHead<Op> multi_head(const Op& op, Index heads, Index kv_heads = 0) {
  return {op, heads, kv_heads};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
