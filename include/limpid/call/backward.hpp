// limpid: the front door backward. Nothing of a paper.
// SPDX-License-Identifier: MIT
#pragma once

#include "../engine/relevance.hpp"
#include "../engine/rows.hpp"
#include "forward.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a backward call may be told.
template <class S>
struct BackwardCall {
  bool accumulate = false;  ///< add to the gradients instead of overwriting them
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
  /// Relevance beside the gradients: relevance (B x m) = mean over heads of sum_i w_i part(A_ij dA_ij), w (B x n)
  /// given. Where both have 4 B rows, those of an item are of every part, positive, negative, absolute and signed, each
  /// with row weights of its own, and part is not looked at. ShapeError where it lies over an input, dout, w or any
  /// gradient.
  View<S> relevance_weights = {};
  MutView<S> relevance = {};
  Part part = Part::pos;
  /// Of a layer round an operator: gets the gradient of its heads' output, (B n) x (H dv), which gradient_block,
  /// relevance_block and head_importance call dout; of an operator alone dout itself. Refused as relevance is.
  MutView<S> heads_gradient = {};
};

namespace detail {

/// A gradient is as large as what it is of, unless it is not asked for.
inline void check_gradient_shape(Name name, const FieldShape& g, Index rows, Index cols) {
  if (!g.given && g.rows == 0) return;
  if (g.rows != rows || g.cols != cols)
    raise(name + ": gradient of " + g.name + " is " + shape_text(g.rows, g.cols) + ", wanted " +
          shape_text(rows, cols));
}
/// Rows of relevance of an item: of one part, or of all four.
template <class S>
Index relevance_rows(const BackwardCall<S>& call, Index batch) {
  return call.relevance.rows == 4 * batch ? 4 : 1;
}
/// Relevance is B x m, its weights are B x n; where all parts are asked for, four rows an item.
inline void check_relevance_shape(Name name, const char* what, Index rows, Index cols, Index wanted, Index tokens) {
  if (rows != wanted || cols != tokens)
    raise(name + ": " + what + " is " + shape_text(rows, cols) + ", wanted " + shape_text(wanted, tokens));
}
/// What is written for a call's requests besides gradients, and what is read for it.
template <class S>
auto written_for(const BackwardCall<S>& call) {
  return [&call](ForArray f) {
    f(NamedArray("relevance", call.relevance)), f(NamedArray("heads_gradient", call.heads_gradient));
  };
}
template <class S>
auto read_for(const BackwardCall<S>& call, const View<S>& dout) {
  return [&call, dout](ForArray f) {
    f(NamedArray("dout", dout));
    f(NamedArray("relevance_weights", call.relevance.given() ? call.relevance_weights : View<S>()));
  };
}

/// Shapes of what a backward call writes and reads, and that none lies over another.
template <class Op, class S>
void check_backward(const Op& op, const Inputs<Op, S>& in, const Dims& d, View<S> dout, const Grads<Op, S>& grad,
                    const BackwardCall<S>& call) {
  const Name name = operator_name(op);
  check_call<Op, S>(op, in, d, dout, "dout");
  Grads<Op, S>::visit(
      [&](const char* field, Role role, const MutView<S>& g, const View<S>& x) {
        check_gradient_shape(name, {field, role, g.rows, g.cols, g.given()}, x.rows, x.cols);
      },
      grad, in);
  const bool emits = call.relevance.given();
  const View<S> weights = emits ? call.relevance_weights : View<S>();
  if (emits) {
    const Index rows = relevance_rows(call, d.batch) * d.batch;
    check_relevance_shape(name, "relevance", call.relevance.rows, call.relevance.cols, rows, d.m);
    check_relevance_shape(name, "relevance_weights", weights.rows, weights.cols, rows, d.n);
  }
  if (call.heads_gradient.given())
    check_relevance_shape(name, "heads_gradient", call.heads_gradient.rows, call.heads_gradient.cols, dout.rows,
                          dout.cols);
  refuse_backward_overlaps(name, op, joined(fields_of(grad, gradient_of), written_for(call)),
                           joined(fields_of(in), read_for(call, dout)));
}

/// Gradients of what several heads share (sides, parameters): each head writes its own, and they are added in order
/// afterwards.
template <class S>
class SharedGradients {
 public:
  /// grad: calls the function that it is given for the gradient of every field, in their order.
  SharedGradients(Arena& arena, const Dims& d, FunctionRef<void(FunctionRef<void(Role, const MutView<S>&)>)> grad)
      : d_(d) {
    grad([&](Role, const MutView<S>&) { ++count_; });
    fields_ = arena.take<Field>(count_);
    Index f = 0;
    grad([&](Role role, const MutView<S>& g) {
      Field& field = fields_[f++];
      field.role = role, field.all = g;
      if (!field.is_shared()) return;
      const Index rows = role == Role::head ? 1 : (role == Role::query_side ? d.n : d.m);
      field.parts = arena.matrix<S>(d.batch * d.heads * rows, g.cols);
      field.parts.fill(S(0));
    });
  }

  /// Where a head writes the gradient of a field: its block of the packed one, its own of a shared one.
  MutView<S> of_head(Index field, Index b, Index h) const {
    const Field& f = fields_[field];
    if (!f.all.given()) return {};
    return f.is_shared() ? part(f, b * d_.heads + h) : head_of(f.all, f.role, d_, b, h);
  }

  void add_up(bool accumulate) const {
    for (const Field* f = fields_; f < fields_ + count_; ++f) {
      if (!f->is_shared()) continue;
      if (!accumulate) f->all.fill(S(0));
      for (Index t = 0; t < d_.batch * d_.heads; ++t)
        copy_or_add<S>(part(*f, t), head_of(f->all, f->role, d_, t / d_.heads, t % d_.heads), true);
    }
  }

 private:
  struct Field {
    Role role = Role::query;
    MutView<S> all, parts;
    bool is_shared() const { return all.given() && role != Role::query && role != Role::key; }
  };
  MutView<S> part(const Field& f, Index t) const {
    const Index rows = f.parts.rows / (d_.batch * d_.heads);
    return f.parts.block(t * rows, 0, rows, f.parts.cols);
  }
  const Dims d_;
  Field* fields_ = nullptr;
  Index count_ = 0;
};

/// What heads emit, `rows` rows of m numbers each, averaged over those of an item.
template <class S>
void mean_of_heads(const S* emitted, Index rows, const Dims& d, MutView<S> to) {
  for (Index b = 0; b < d.batch; ++b)
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < d.m; ++j) {
        S sum(0);
        for (Index h = 0; h < d.heads; ++h) sum += emitted[((b * d.heads + h) * rows + r) * d.m + j];
        to(b * rows + r, j) = sum / S(double(d.heads));
      }
}

template <class P, class Op, class S = typename P::Scalar>
void backward_with(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, View<S> dout, const Grads<Op, S>& grad,
                   const BackwardCall<S>& call) {
  const Name name = operator_name(op);
  const SavedTurn saved_turn(&saved, false, name);
  check_saved(name, saved.filled, saved.dims, shapes_of(in));
  const Dims d = saved.dims;
  check_backward<Op, S>(op, in, d, dout, grad, call);
  check_saved_columns<Op, S>(op, saved, in);

  Workspace temporary;
  Workspace& workspace = call.workspace ? *call.workspace : temporary;
  const WorkspaceTurn turn(workspace, Inside::closed);
  workspace.prepare(call.executor.workers());
  Arena& common = workspace.common();
  ArenaScope scope(common);

  const Index heads = d.batch * d.heads, group = d.heads / d.kv_heads;
  const SharedGradients<S> shared(common, d, [&](const auto& f) {
    Grads<Op, S>::visit([&](const char*, Role role, const MutView<S>& g) { f(role, g); }, grad);
  });
  const Index gradient_size = op.modifiers().gradient_size(d.n, d.m);
  S* collected = common.take<S>(heads * gradient_size);
  for (Index s = 0; s < heads * gradient_size; ++s) collected[s] = S(0);
  const bool emits = call.relevance.given();
  const Index rows = relevance_rows(call, d.batch);
  S* emitted = emits ? common.take<S>(heads * rows * d.m) : nullptr;

  const bool may_spread = !op.modifiers().wants_serial_heads(d.batch, d.heads, d.n);
  for_heads(
      d.batch * d.kv_heads, may_spread, 2.5 * flop_of(shapes_of(in), d), workspace, call.executor,
      [&](Index t, const Context& context) {
        const Index b = t / d.kv_heads, g = t % d.kv_heads;
        for (Index h = g * group; h < (g + 1) * group; ++h) {
          ArenaScope inner(context.arena());
          const auto head = head_args(in, d, b, h);
          const auto keep = head_kept<View<S>>(op, saved, head, b, h);
          const Index width = dout.cols / d.heads, index = b * d.heads + h;
          RelevanceRequest<S> relevance;
          if (emits)
            relevance = {call.relevance_weights.row(b * rows),
                         emitted + index * rows * d.m,
                         call.part,
                         rows,
                         call.relevance_weights.stride,
                         d.m};
          Grads<Op, S> own{};
          Index field = 0;
          Grads<Op, S>::visit([&](const char*, Role, MutView<S>& g) { g = shared.of_head(field++, b, h); }, own);
          const Accumulation accumulate{call.accumulate, call.accumulate || h > g * group};
          op.backward(
              BackwardPass<P>{{context, at_head(d, b, h)}, accumulate, collected + index * gradient_size, relevance},
              head, keep, dout.block(b * d.n, h * width, d.n, width), own);
        }
      });

  shared.add_up(call.accumulate);
  if (gradient_size > 0)
    for (Index t = 0; t < heads; ++t)
      op.modifiers().deliver_gradient(at_head(d, t / d.heads, t % d.heads), collected + t * gradient_size);
  if (emits) mean_of_heads(emitted, rows, d, call.relevance);
  if (call.heads_gradient.given()) copy<S>(dout, call.heads_gradient);
}

}  // namespace detail

/// Gradients of everything that grad names, from dout; saved comes from the forward call. An empty field is not
/// computed.
template <class Op, class S, class Dout>
void backward(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Dout&& dout,
              const std::type_identity_t<Grads<Op, S>>& grad, const std::type_identity_t<BackwardCall<S>>& call = {}) {
  detail::backward_with<detail::Native<S>>(op, in, saved, View<S>(std::forward<Dout>(dout)), grad, call);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
