// limpid: the perceptron of a transformer block: two linear maps and an activation between them, or three of the gated
// one.
// SPDX-License-Identifier: MIT
#pragma once

#include "../engine/activation.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an Mlp reads, and where its gradients go: x n x D, w1 D x E, b1 1 x E, w2 E x F, b2 1 x F, of the gated one w3
/// D x E and b3 1 x E; or each weight the other way round as out_in(w) says. Empty biases: 0. visit as MultiHeadArgs.
template <class T>
struct MlpArgs {
  T x{};
  detail::LayerWeight<T> w1{};
  T b1{};
  detail::LayerWeight<T> w2{};
  T b2{};
  detail::LayerWeight<T> w3{};
  T b3{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    visit_weights(f, a...);
  }
  template <class F, class... A>
  static void visit_weights(F&& f, A&&... a) {
    f("w1", a.w1...), f("b1", a.b1...);
    f("w2", a.w2...), f("b2", a.b2...);
    f("w3", a.w3...), f("b3", a.b3...);
  }
  template <class V>
  operator MlpArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<MlpArgs<V>>(*this);
  }
  template <class V>
  operator MlpArgs<V>() const {  // NOLINT
    return detail::same_fields<MlpArgs<V>>(*this);
  }
};

/// What an Mlp keeps: its hidden layer before the activation, and what gates it.
template <class S>
struct MlpSaved {
  Mat<S> hidden, gate;
  bool filled = false;
  detail::Turn turn;
};

namespace detail {

/// The rows of an MLP that go through it together, so that its scratch does not grow with them: blocks of the inner sum
/// of a product (GemmBlocks), so that gradients of weights are summed as those of all rows at once.
struct MlpRows {
  static constexpr Index step = GemmBlocks::depth;
  /// Rows of a task that activates, of such a width.
  static Index activated(Index width) {
    return std::clamp<Index>(activated_entries / std::max<Index>(1, width), 1, 64);
  }
  static Index most(Index n) { return n < 2 * step ? n : std::max(step, n - (n / step - 1) * step); }
  /// f(first row, rows), the last ones with what is left over.
  template <class F>
  static void visit(Index n, F&& f) {
    for (Index r0 = 0, rows = 0; r0 < n || r0 == 0; r0 += rows) {
      rows = n - r0 < 2 * step ? n - r0 : step;
      f(r0, rows);
      if (rows == 0) break;
    }
  }
};

}  // namespace detail

/// out = act(x w1 + b1) w2 + b2, or, gated, (act(x w1 + b1) o (x w3 + b3)) w2 + b2 (Shazeer 2020, arXiv 2002.05202:
/// SwiGLU is silu gated, GEGLU gelu gated).
///
///     da = dout w2^T,   dh = da o act'(h),   gated: dh = da o g o act'(h),   dg = da o act(h)
///     dw2 = a^T dout,   dw1 = x^T dh,   dw3 = x^T dg,   dx = dh w1^T + dg w3^T,   db = column sums
///
/// Kept: h = x w1 + b1, n x E, and g of the gated one; x must still be there. 2 n E (D + F) flop forward, twice that
/// backward, gated half as much again. Throws ShapeError where shapes do not fit, w3 or b3 is given to one without a
/// gate or w3 missing in a gated one, a bias is not finite, a result shares memory with an input or another one, or,
/// backward, no forward call has filled saved to its end.
struct Mlp {
  Activation activation = Activation::gelu;
  bool gated = false;

  template <class S>
  using Args = MlpArgs<View<S>>;
  template <class S>
  using Grads = MlpArgs<Gradient<S>>;
  template <class S>
  using Saved = MlpSaved<S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    forward_to<S>(in, MutView<S>(std::forward<Out>(out_)), call);
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, MlpSaved<S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad, const LayerCall& call = {}) const {
    backward_from<S>(in, saved, View<S>(std::forward<Dout>(dout_)), grad, call);
  }

  /// Shapes and numbers of the inputs, raised in the name of a layer.
  template <class S>
  void check(const char* layer, const Args<S>& in) const {
    detail::check_weight<S>(layer, "w1", in.w1, in.x.cols, "x has columns");
    detail::check_bias<S>(layer, "b1", in.b1, in.w1.outputs());
    if (gated) {
      if (!in.w3.given() && in.x.cols + in.w1.outputs() > 0)
        detail::raise(std::string(layer) + ": w3 is not given to a gated mlp");
      detail::check_weight<S>(layer, "w3", in.w3, in.x.cols, "x has columns");
      if (in.w3.outputs() != in.w1.outputs())
        detail::raise(std::string(layer) + ": w3 is " + detail::shape_text(in.w3.rows, in.w3.cols) + " and w1 " +
                      detail::shape_text(in.w1.rows, in.w1.cols) + ", wanted as many outputs of both");
      detail::check_bias<S>(layer, "b3", in.b3, in.w3.outputs());
    } else if (in.w3.given() || in.b3.given()) {
      detail::raise(std::string(layer) + ": w3 or b3 is given to an mlp that is not gated");
    }
    detail::check_weight<S>(layer, "w2", in.w2, in.w1.outputs(), "w1 has outputs");
    detail::check_bias<S>(layer, "b2", in.b2, in.w2.outputs());
    detail::check_rows(layer, in);
  }
  /// Gradients as large as what they are of; a bias that is not given is 0, and may have one.
  template <class S>
  void check_gradients(const char* layer, const Args<S>& in, const Grads<S>& grad) const {
    Args<S> like = in;
    like.b1 = detail::or_zero(in.b1, in.w1.outputs()), like.b2 = detail::or_zero(in.b2, in.w2.outputs());
    if (gated) like.b3 = detail::or_zero(in.b3, in.w3.outputs());
    detail::check_gradients(layer, like, grad);
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const Saved<S>& saved) const {
    detail::check_kept(layer, "hidden", saved.hidden, in.x.rows, in.w1.outputs());
    if (gated) detail::check_kept(layer, "gate", saved.gate, in.x.rows, in.w1.outputs());
    detail::check_filled(layer, saved);
  }

 private:
  template <class S>
  void forward_to(const Args<S>& in, MutView<S> out, const LayerForward<Saved<S>>& call) const;
  template <class S>
  void backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                     const LayerCall& call) const;
  template <class S>
  double flop(const Args<S>& in) const {
    return 2.0 * double(in.x.rows) * double(in.w1.outputs()) *
           (double(in.x.cols) * (gated ? 2 : 1) + double(in.w2.outputs()));
  }
};

// Outside of the class, where a template is not inline: limpid::compiled_models holds them.

template <class S>
void Mlp::forward_to(const Args<S>& in, MutView<S> out, const LayerForward<Saved<S>>& call) const {
  using P = detail::Native<S>;
  check<S>("mlp", in);
  detail::check_out<S>("mlp", "out", out, in.x.rows, in.w2.outputs());
  detail::refuse_overlaps("mlp", detail::arrays({{"out", out}}), detail::fields_of(in));
  const detail::ForwardScope<Saved<S>> scope("mlp", call);
  const Index n = in.x.rows, width = in.w1.outputs();
  // what is not kept has room for some rows alone
  const Index most = detail::MlpRows::most(n);
  const MutView<S> all_hidden = scope.room(&Saved<S>::hidden, scope.saved ? n : most, width);
  const MutView<S> all_gate = gated ? scope.room(&Saved<S>::gate, scope.saved ? n : most, width) : MutView<S>();
  const MutView<S> all_a = scope.saved ? scope.arena.template matrix<S>(most, width) : all_hidden;
  scope.context.as_head(flop<S>(in), [&](const detail::Context& shared) {
    detail::MlpRows::visit(n, [&](Index r0, Index rows) {
      const auto part = [&](MutView<S> all) { return all.block(scope.saved ? r0 : 0, 0, rows, width); };
      const View<S> x = in.x.block(r0, 0, rows, in.x.cols);
      const MutView<S> hidden = part(all_hidden), gate = gated ? part(all_gate) : MutView<S>();
      const MutView<S> a = all_a.block(0, 0, rows, width);
      detail::linear_in<P>(shared, x, in.w1, in.b1, hidden);
      if (gated) detail::linear_in<P>(shared, x, in.w3, in.b3, gate);
      detail::for_rows(
          shared, rows,
          [&](Index first, Index last) {
            for (Index i = first; i < last; ++i)
              detail::activate_row<P>(activation, hidden.row(i), gated ? gate.row(i) : nullptr, a.row(i), width);
          },
          detail::MlpRows::activated(width));
      detail::linear_in<P>(shared, a, in.w2, in.b2, out.block(r0, 0, rows, out.cols));
    });
  });
  scope.done();
}

template <class S>
void Mlp::backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                        const LayerCall& call) const {
  using P = detail::Native<S>;
  const detail::SavedTurn saved_turn(&saved, false, "mlp");
  check<S>("mlp", in);
  detail::check_out<S>("mlp", "dout", dout, in.x.rows, in.w2.outputs());
  check_gradients<S>("mlp", in, grad);
  check_saved<S>("mlp", in, saved);
  detail::refuse_gradient_overlaps("mlp", in, dout, grad);
  const detail::LayerScope scope(call);
  const Index n = in.x.rows, width = in.w1.outputs();
  const Index most = detail::MlpRows::most(n);
  const auto room = [&] { return scope.arena.template matrix<S>(most, width); };
  const MutView<S> all_a = room(), all_dh = room(), all_dg = gated ? room() : MutView<S>();
  const View<S> all_hidden(saved.hidden), all_gate(saved.gate);
  scope.context.as_head(2 * flop<S>(in), [&](const detail::Context& shared) {
    detail::MlpRows::visit(n, [&](Index r0, Index rows) {
      const bool add = call.accumulate;
      const auto of = [&](Gradient<S> g) { return r0 > 0 && g.given() ? limpid::add(g.view()) : g; };
      const auto part = [&](View<S> all) { return all.block(r0, 0, rows, all.cols); };
      const auto here = [&](MutView<S> all) { return all.block(0, 0, rows, width); };
      const View<S> x = part(in.x), dy = part(dout), hidden = part(all_hidden);
      const View<S> gate = gated ? part(all_gate) : View<S>();
      const MutView<S> a = here(all_a), dh = here(all_dh), dg = gated ? here(all_dg) : MutView<S>();
      Gradient<S> dx = grad.x;
      if (dx.given()) dx = Gradient<S>(grad.x.view().block(r0, 0, rows, in.x.cols), grad.x.way);
      detail::linear_backward_in<P>(shared, a, in.w2, dy, {dh, {}, {}}, false, false);  // da
      detail::for_rows(
          shared, rows,
          [&](Index first, Index last) {
            for (Index i = first; i < last; ++i)
              if (gated)
                detail::activate_gated_backward_row<P>(activation, hidden.row(i), gate.row(i), dh.row(i), a.row(i),
                                                       dh.row(i), dg.row(i), width);
              else
                detail::activate_backward_row<P>(activation, hidden.row(i), dh.row(i), a.row(i), dh.row(i), width);
          },
          detail::MlpRows::activated(width));
      detail::linear_backward_in<P>(shared, a, in.w2, dy, {{}, of(grad.w2), of(grad.b2)}, false, add);
      detail::linear_backward_in<P>(shared, x, in.w1, dh, {dx, of(grad.w1), of(grad.b1)}, add, add);
      if (gated) detail::linear_backward_in<P>(shared, x, in.w3, dg, {dx.view(), of(grad.w3), of(grad.b3)}, true, add);
    });
  });
}

/// The MLP of LLaMA: silu, gated.
inline Mlp swiglu() { return {Activation::silu, true}; }
/// The same with GELU.
inline Mlp geglu() { return {Activation::gelu, true}; }

}  // namespace LIMPID_ABI
}  // namespace limpid
