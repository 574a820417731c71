// limpid: a layer of two-map attention: projections, gate, differential or gated attention, output projection.
// SPDX-License-Identifier: MIT
#pragma once

#include "../op/differential.hpp"
#include "../op/differential_gated.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a two-map layer reads, and where its gradients go, H heads and G key heads. x (B n) x D, wq D x (H 2d),
/// wk D x (G 2d), or D x (G d) for one key to both branches, wv D x (G dv), wo (H dv) x E. gate_w D x H and gate_b 1 x
/// H make the logits z = x gate_w + gate_b that the operator takes (gated attention, or version 2 of differential). The
/// rest is handed to the operator: gamma, lambda and the vectors it is learned through. Empty: not given.
template <class T>
struct TwoMapLayerArgs {
  T x{}, wq{}, wk{}, wv{}, wo{}, gate_w{}, gate_b{}, gamma{}, lambda{}, lambda_q1{}, lambda_k1{}, lambda_q2{},
      lambda_k2{};
};

/// What the layer keeps between forward and backward. One call at a time, as Saved.
template <class Op, class S>
struct TwoMapLayerSaved {
  Mat<S> q, k, v, z, y;
  Saved<Op, S> attention;
  detail::Turn turn;
};

template <class Op, class S>
struct TwoMapLayerCall {
  Index batch = 1;
  TwoMapLayerSaved<Op, S>* saved = nullptr;
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
};

/// out = concat_heads(op(x wq, x wk, x wv, z)) wo, for op = differential(...), differential_v2(...) or
/// differential_gated(...); Ye et al. 2024, arXiv 2410.05258, section 2.1, without biases. Rotary positions come
/// between projection and scores: with them, call linear and the operator yourself.
///
/// Kept: q, k, v, z, the heads' output and what the operator keeps, O((B n)(D + H (2 d + dv))). Throws ShapeError.
template <class Op>
struct TwoMapLayer {
  Op op;
  Index heads = 1;
  Index kv_heads = 0;  ///< key heads, a divisor of heads; 0 means heads

  template <class S>
  using Args = TwoMapLayerArgs<View<S>>;
  template <class S>
  using Grads = TwoMapLayerArgs<MutView<S>>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const TwoMapLayerCall<Op, detail::ScalarOf<Out>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(in);
    const detail::SavedTurn saved_turn(call.saved, true, "layer");
    Workspace own;
    Workspace& workspace = call.workspace ? *call.workspace : own;
    const detail::WorkspaceTurn turn(workspace, detail::Inside::open);
    workspace.prepare(call.executor.workers());
    ArenaScope scope(workspace.common());
    const LayerCall linear_call{false, &workspace, call.executor};
    const auto room = [&](Mat<S> TwoMapLayerSaved<Op, S>::*field, Index cols) {
      if (!call.saved) return workspace.common().template matrix<S>(in.x.rows, cols);
      (call.saved->*field).resize(in.x.rows, cols);
      return MutView<S>(call.saved->*field);
    };
    const auto projected = [&](Mat<S> TwoMapLayerSaved<Op, S>::*field, View<S> w, View<S> b) {
      const MutView<S> to = room(field, w.cols);
      if (w.given()) linear(in.x, w, b, to, linear_call);
      return View<S>(to);
    };
    using Saved = TwoMapLayerSaved<Op, S>;
    const View<S> q = projected(&Saved::q, in.wq, {}), k = projected(&Saved::k, in.wk, {}),
                  v = projected(&Saved::v, in.wv, {}), z = projected(&Saved::z, in.gate_w, in.gate_b);
    const MutView<S> y = room(&Saved::y, in.wo.rows);
    Call<Op, S> inner;
    inner.batch = call.batch, inner.heads = heads, inner.kv_heads = kv_heads;
    inner.workspace = &workspace, inner.executor = call.executor;
    inner.saved = call.saved ? &call.saved->attention : nullptr;
    limpid::forward(op, operator_args<View<S>>(in, q, k, v, z), y, inner);
    linear(View<S>(y), in.wo, View<S>(), out, linear_call);
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, TwoMapLayerSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad, const LayerCall& call = {}) const {
    const View<S> dout(std::forward<Dout>(dout_));
    const detail::SavedTurn saved_turn(&saved, false, "layer");
    Workspace own;
    Workspace& workspace = call.workspace ? *call.workspace : own;
    const detail::WorkspaceTurn turn(workspace, detail::Inside::open);
    workspace.prepare(call.executor.workers());
    Arena& arena = workspace.common();
    ArenaScope scope(arena);
    const auto like = [&](const Mat<S>& m) {
      return m.size() == 0 ? MutView<S>() : arena.matrix<S>(m.rows(), m.cols());
    };
    const MutView<S> dq = like(saved.q), dk = like(saved.k), dv = like(saved.v), dz = like(saved.z), dy = like(saved.y);
    const LayerCall linear_call{call.accumulate, &workspace, call.executor},
        overwrite{false, &workspace, call.executor};

    // out = y wo
    linear_backward(View<S>(saved.y), in.wo, dout, {{}, grad.wo, {}}, linear_call);
    linear_backward(View<S>(saved.y), in.wo, dout, {dy, {}, {}}, overwrite);
    // y = op(q, k, v, z); the operator's own parameters are added to where asked
    BackwardCall<S> inner;
    inner.workspace = &workspace, inner.executor = call.executor, inner.accumulate = call.accumulate;
    if (call.accumulate)
      for (const MutView<S>& g : {dq, dk, dv, dz}) g.fill(S(0));
    limpid::backward(op, operator_args<View<S>>(in, saved.q, saved.k, saved.v, saved.z), saved.attention, View<S>(dy),
                     operator_args<MutView<S>>(grad, dq, dk, dv, dz), inner);
    // q = x wq, k = x wk, v = x wv, z = x gate_w + gate_b
    LayerCall add = linear_call;
    const auto project_back = [&](View<S> w, MutView<S> d, MutView<S> dw, MutView<S> db) {
      linear_backward(in.x, w, View<S>(d), {grad.x, {}, {}}, add);
      linear_backward(in.x, w, View<S>(d), {{}, dw, db}, linear_call);
      add.accumulate = true;
    };
    project_back(in.wq, dq, grad.wq, {});
    project_back(in.wk, dk, grad.wk, {});
    project_back(in.wv, dv, grad.wv, {});
    if (in.gate_w.given()) project_back(in.gate_w, dz, grad.gate_w, grad.gate_b);
  }

 private:
  template <class S>
  static void check(const Args<S>& in) {
    const auto reads_x = [&](const char* name, View<S> w) {
      if (w.rows != in.x.cols)
        detail::raise("layer: " + std::string(name) + " is " + detail::shape_text(w.rows, w.cols) + ", wanted " +
                      detail::text_of(in.x.cols) + " rows, as x has columns");
    };
    reads_x("wq", in.wq);
    reads_x("wk", in.wk);
    reads_x("wv", in.wv);
    if (in.gate_w.given()) reads_x("gate_w", in.gate_w);
    detail::check_parameters("layer", "gate_b", in.gate_b);
    if (in.gate_b.given() && !in.gate_w.given()) detail::raise("layer: gate_b is given without gate_w");
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
