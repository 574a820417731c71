// limpid: what layers share: their calls, checks of their arrays, memory between their steps.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../call/backward.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

template <class S>
class Explanation;  // explain/explanation.hpp: what goes down with the backward pass of a stack of layers

/// What a call of a layer may be told.
struct LayerCall {
  bool accumulate = false;         ///< backward: add to the gradients instead of overwriting them
  Workspace* workspace = nullptr;  ///< scratch to reuse; otherwise the call has its own
  ExecutorRef executor = {};       ///< serial unless told otherwise

  /// The same of a layer round an operator, which may be asked for relevance besides.
  template <class S>
  operator BackwardCall<S>() const {  // NOLINT: implicit on purpose
    return {accumulate, workspace, executor};
  }
};

/// How the weight of a linear map lies in memory: [in, out] for y = x W, or [out, in] for y = x W^T, as PyTorch, timm
/// and Hugging Face keep it.
enum class WeightOrder { in_out, out_in };

template <class S>
class PackedWeight;

/// The weight of a linear map, read where it lies, and its order. A matrix or view that says nothing else is [in, out];
/// in_out(w) and out_in(w) say it, which alone tells the two orders of a square one apart.
template <class S>
struct Weight : View<S> {
  WeightOrder order = WeightOrder::in_out;
  const S* panels = nullptr;  ///< what PackedWeight made of it

  Weight() = default;
  template <class V>
  requires(!std::is_same_v<std::remove_cvref_t<V>, Weight> &&
           !std::is_same_v<std::remove_cvref_t<V>, PackedWeight<S>> && std::is_convertible_v<V, View<S>>)
      Weight(V&& v, WeightOrder order_ = WeightOrder::in_out)  // NOLINT: implicit on purpose
      : View<S>(std::forward<V>(v)), order(order_) {}
  Weight(const PackedWeight<S>& packed) : Weight(packed.weight()) {}  // NOLINT: the same

  Index inputs() const { return order == WeightOrder::in_out ? this->rows : this->cols; }
  Index outputs() const { return order == WeightOrder::in_out ? this->cols : this->rows; }
};

/// w lies [in, out]: y = x w.
template <class W>
Weight<detail::ScalarOf<W>> in_out(W&& w) {
  using S = detail::ScalarOf<W>;
  return {View<S>(std::forward<W>(w)), WeightOrder::in_out};
}
/// w lies [out, in]: y = x w^T.
template <class W>
Weight<detail::ScalarOf<W>> out_in(W&& w) {
  using S = detail::ScalarOf<W>;
  return {View<S>(std::forward<W>(w)), WeightOrder::out_in};
}

/// Where a gradient goes, as large as what it is of, and whether it is added to what is there: as the call says
/// (LayerCall::accumulate), or, for this one alone, as add(m) or overwrite(m) say.
template <class S>
struct Gradient {
  using Scalar = S;
  enum class Way { as_call, add, overwrite };
  S* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;
  Way way = Way::as_call;

  Gradient() = default;
  template <class V>
  requires(!std::is_same_v<std::remove_cvref_t<V>, Gradient> && std::is_convertible_v<V, MutView<S>>)
      Gradient(V&& v, Way way_ = Way::as_call)  // NOLINT: implicit on purpose, copies are excluded
      : way(way_) {
    const MutView<S> to(std::forward<V>(v));
    data = to.data, rows = to.rows, cols = to.cols, stride = to.stride;
  }
  MutView<S> view() const { return {data, rows, cols, stride}; }
  operator View<S>() const { return view(); }
  bool given() const { return view().given(); }
  bool adds(bool accumulate) const { return way == Way::as_call ? accumulate : way == Way::add; }
};

/// A gradient that is added to what m holds, whatever the call says of the others.
template <class M>
Gradient<detail::ScalarOf<M>> add(M&& m) {
  using S = detail::ScalarOf<M>;
  return {MutView<S>(std::forward<M>(m)), Gradient<S>::Way::add};
}
/// A gradient that overwrites m, whatever the call says of the others.
template <class M>
Gradient<detail::ScalarOf<M>> overwrite(M&& m) {
  using S = detail::ScalarOf<M>;
  return {MutView<S>(std::forward<M>(m)), Gradient<S>::Way::overwrite};
}

namespace detail {

template <class T>
struct WeightField {
  using type = T;
};
template <class S>
struct WeightField<View<S>> {
  using type = Weight<S>;
};
/// The weight of a linear map among the fields of type T of a layer's arguments.
template <class T>
using LayerWeight = typename WeightField<T>::type;

/// The same parameters as views of another kind: Mat to View or MutView, MutView to View.
template <class To, class From>
To same_fields(From& from) {
  To to{};
  To::visit([](const char*, auto& a, auto& b) { b = std::remove_reference_t<decltype(b)>(a); }, from, to);
  return to;
}

/// The arrays of one row among a layer's. Matrices are not looked through, which would take as long as a token does: a
/// NaN in them comes out.
template <class Args>
void check_rows(Name layer, const Args& in) {
  Args::visit(
      [&](const char* field, const auto& v) {
        const std::string_view name = field;
        if (name != "x" && name != "context" && v.rows == 1) check_parameters<ScalarOf<decltype(v)>>(layer, field, v);
      },
      in);
}

}  // namespace detail

/// What a forward call of a layer may be told; Saved is the layer's own Saved<S>.
template <class Saved>
struct LayerForward {
  Index batch = 1;
  Saved* saved = nullptr;          ///< keep what backward needs; reused without allocation; one call at a time
  Workspace* workspace = nullptr;  ///< scratch to reuse; otherwise the call has its own
  ExecutorRef executor = {};       ///< serial unless told otherwise
};

namespace detail {

/// A weight of so many inputs, as `what`; one that would fit the other way round is told so.
template <class S>
void check_weight(const char* layer, const char* name, const std::type_identity_t<Weight<S>>& w, Index inputs,
                  const char* what) {
  if (w.inputs() == inputs) return;
  const bool turned = w.order == WeightOrder::out_in;
  std::string text = std::string(layer) + ": " + name + " is " + shape_text(w.rows, w.cols) +
                     (turned ? ", [out, in], wanted " : ", wanted ") + text_of(inputs) +
                     (turned ? " columns, as " : " rows, as ") + what;
  if (w.outputs() == inputs) text += std::string("; it would fit as ") + (turned ? "in_out(" : "out_in(") + name + ")";
  raise(text);
}
template <class S>
void check_linear(const char* op, View<S> x, const std::type_identity_t<Weight<S>>& w, View<S> y, const char* y_name) {
  check_weight<S>(op, "w", w, x.cols, "x has columns");
  if (y.rows != x.rows || y.cols != w.outputs())
    raise(std::string(op) + ": " + y_name + " is " + shape_text(y.rows, y.cols) + ", wanted " +
          shape_text(x.rows, w.outputs()));
}
template <class S>
void check_bias(const char* op, const char* name, View<S> b, Index cols) {
  if (b.given() && (b.rows != 1 || b.cols != cols))
    raise(std::string(op) + ": " + name + " is " + shape_text(b.rows, b.cols) + ", wanted " + shape_text(1, cols));
}
template <class S>
void check_gradient(const char* op, const char* name, View<S> g, View<S> like) {
  if (g.given() && (g.rows != like.rows || g.cols != like.cols))
    raise(std::string(op) + ": gradient of " + name + " is " + shape_text(g.rows, g.cols) + ", wanted " +
          shape_text(like.rows, like.cols));
}

inline void check_reads(const char* layer, const char* name, Index rows, Index cols, Index wanted, const char* what) {
  if (rows != wanted)
    raise(std::string(layer) + ": " + name + " is " + shape_text(rows, cols) + ", wanted " + text_of(wanted) +
          " rows, as " + what);
}

/// Heads, key heads and the batch of a layer's tokens, before anything is divided by them.
inline void check_heads(Name layer, Index heads, Index groups, Index batch, Index tokens) {
  if (heads < 1 || groups < 1 || heads % groups != 0)
    raise(layer + (": heads is " + text_of(heads) + " and kv_heads " + text_of(groups) +
                   ", wanted at least 1, kv_heads a divisor of heads"));
  if (batch < 1 || tokens % batch != 0)
    raise(layer + (": batch is " + text_of(batch) + " and x has " + text_of(tokens) +
                   " rows, wanted at least 1 item and as many rows in each"));
}

/// A projection of the tokens: its rows, and its columns as heads have them.
template <class S>
void check_projection(const char* layer, const char* name, const std::type_identity_t<Weight<S>>& w, View<S> x,
                      Index heads, const char* what = "x has columns") {
  check_weight<S>(layer, name, w, x.cols, what);
  if (w.outputs() % heads != 0)
    raise(std::string(layer) + ": " + name + " has " + text_of(w.outputs()) +
          (w.order == WeightOrder::out_in ? " rows" : " columns") + ", wanted a multiple of its " + text_of(heads) +
          " heads");
}

/// A bias that is not given is 0, and may have a gradient: the shape of that.
template <class S>
View<S> or_zero(View<S> bias, Index cols) {
  return bias.given() ? bias : View<S>(nullptr, cols > 0 ? 1 : 0, cols, cols);
}

/// Gradients as large as what they are of.
template <class Args, class Grads>
void check_gradients(const char* layer, const Args& in, const Grads& grad) {
  Args::visit([&](const char* field, const auto& p,
                  const auto& g) { check_gradient<ScalarOf<decltype(p)>>(layer, field, g, p); },
              in, grad);
}

/// The result of a layer round an operator, against all that is read for it.
template <class Op, class Args, class S>
void refuse_out_overlaps(const char* layer, const Op& op, const Args& in, MutView<S> out) {
  refuse_overlaps(layer, arrays({{"out", out}}), joined(fields_of(in), tables_of(op)));
}
/// What is written backward by a layer, against all that it reads.
template <class Args, class Grads, class S>
void refuse_gradient_overlaps(const char* layer, const Args& in, View<S> dout, const Grads& grad) {
  refuse_overlaps(layer, fields_of(grad, gradient_of), joined(fields_of(in), arrays({{"dout", dout}})));
}
/// The same of a layer round an operator.
template <class Op, class Args, class Grads, class S>
void refuse_gradient_overlaps(const char* layer, const Op& op, const Args& in, View<S> dout, const Grads& grad,
                              const BackwardCall<S>& call) {
  refuse_backward_overlaps(layer, op, joined(fields_of(grad, gradient_of), written_for(call)),
                           joined(fields_of(in), read_for(call, dout)));
}

template <class S>
void check_out(const char* layer, const char* name, View<S> out, Index rows, Index cols) {
  if (out.rows != rows || out.cols != cols)
    raise(std::string(layer) + ": " + name + " is " + shape_text(out.rows, out.cols) + ", wanted " +
          shape_text(rows, cols));
}

/// A result, or a gradient, that has to be as large as x.
template <class S>
void check_like_x(const char* layer, const char* name, View<S> v, View<S> x) {
  if (v.rows != x.rows || v.cols != x.cols)
    raise(std::string(layer) + ": " + name + " is " + shape_text(v.rows, v.cols) + ", wanted " +
          shape_text(x.rows, x.cols) + " as x");
}
/// A parameter that is one number, if it is given.
template <class S>
void check_number(const char* layer, const char* name, View<S> v) {
  if (v.given() && (v.rows != 1 || v.cols != 1))
    raise(std::string(layer) + ": " + name + " is " + shape_text(v.rows, v.cols) + ", wanted 1 x 1");
}

/// What a forward call kept of a layer's tokens, n x width.
template <class S>
void check_kept(const char* layer, const char* field, const Mat<S>& kept, Index rows, Index cols) {
  if (kept.rows() != rows || kept.cols() != cols)
    raise(std::string(layer) + ": saved holds " + field + " of " + shape_text(kept.rows(), kept.cols()) + ", wanted " +
          shape_text(rows, cols) + " as the inputs make it");
}

/// What a backward call asks for besides gradients, of heads whose output has so many columns together.
template <class S>
void check_asked(const char* layer, const BackwardCall<S>& call, const Dims& d, Index columns) {
  if (call.relevance.given()) {
    const Index rows = relevance_rows(call, d.batch) * d.batch;
    check_out<S>(layer, "relevance", call.relevance, rows, d.m);
    check_out<S>(layer, "relevance_weights", call.relevance_weights, rows, d.n);
  }
  if (call.heads_gradient.given()) check_out<S>(layer, "heads_gradient", call.heads_gradient, d.batch * d.n, columns);
}

/// A forward call that throws on its way leaves a saved state that is neither the old one nor a new one.
template <class Saved>
void check_filled(Name layer, const Saved& saved) {
  if (!saved.filled) raise(layer + ": saved is empty, wanted one that a forward call has filled");
}

/// What the operator of a layer kept is of as many heads as the layer has.
template <class State>
void check_kept_heads(Name layer, const State& attention, Index heads, Index groups) {
  if (attention.dims.heads != heads || attention.dims.kv_heads != groups)
    raise(layer + (": saved holds heads of " + text_of(attention.dims.heads) + " and kv_heads of " +
                   text_of(attention.dims.kv_heads) + ", wanted " + text_of(heads) + " and " + text_of(groups)));
}

/// A layer's call while it runs: its turn with a workspace, the one given or its own, and a context there.
struct LayerScope {
  Workspace own;
  Workspace* workspace;
  ExecutorRef executor;
  WorkspaceTurn turn;
  Arena& arena;
  ArenaScope taken;
  Context context;

  template <class Call>
  explicit LayerScope(const Call& call)
      : workspace(call.workspace ? call.workspace : &own),
        executor(call.executor),
        turn(*workspace, Inside::open),
        arena(prepared(*workspace, executor.workers())),
        taken(arena),
        context(*workspace, executor) {}

  static Arena& prepared(Workspace& workspace, int workers) {
    workspace.prepare(workers);
    return workspace.common();
  }
};

/// A forward call: its saved state, if there is one, is empty until `done`.
template <class Saved>
struct ForwardScope : private SavedTurn, LayerScope {
  Saved* saved;

  ForwardScope(Name layer, const LayerForward<Saved>& call)
      : SavedTurn(call.saved, true, layer), LayerScope(call), saved(call.saved) {
    if (saved) saved->filled = false;
  }
  /// What a part of the layer keeps; null where nothing is kept.
  template <class Part>
  Part* part(Part Saved::*field) const {
    return saved ? &(saved->*field) : nullptr;
  }
  /// Memory between two steps: in saved where it is kept, else scratch.
  template <class S>
  MutView<S> room(Mat<S> Saved::*field, Index rows, Index cols) const {
    if (!saved) return arena.matrix<S>(rows, cols);
    (saved->*field).resize(rows, cols);
    return saved->*field;
  }
  void done() const {
    if (saved) saved->filled = true;
  }
};

/// Runs f(context) with the workspace and executor of the call.
template <class F>
void with_context(const LayerCall& call, F&& f) {
  f(LayerScope(call).context);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
