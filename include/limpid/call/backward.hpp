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
  /// given. ShapeError where it lies over an input, dout, w or any gradient.
  View<S> relevance_weights = {};
  MutView<S> relevance = {};
  Part part = Part::pos;
};

namespace detail {

/// Shapes of what a backward call writes and reads, and that none lies over another.
template <class Op, class S>
void check_backward(const Op& op, const Inputs<Op, S>& in, const Dims& d, View<S> dout, const Grads<Op, S>& grad,
                    const BackwardCall<S>& call) {
  const Name name = operator_name(op);
  check_call<Op, S>(op, in, d, dout, "dout");
  Grads<Op, S>::visit(
      [&](const char* field, Role, const MutView<S>& g, const View<S>& x) {
        if (!g.given() && g.rows == 0) return;
        if (g.rows != x.rows || g.cols != x.cols)
          raise(name + ": gradient of " + field + " is " + shape_text(g.rows, g.cols) + ", wanted " +
                shape_text(x.rows, x.cols));
      },
      grad, in);
  const bool emits = call.relevance.given();
  if (emits && (call.relevance.rows != d.batch || call.relevance.cols != d.m))
    raise(name + ": relevance is " + shape_text(call.relevance.rows, call.relevance.cols) + ", wanted " +
          shape_text(d.batch, d.m));
  if (emits && (call.relevance_weights.rows != d.batch || call.relevance_weights.cols != d.n))
    raise(name + ": relevance_weights is " + shape_text(call.relevance_weights.rows, call.relevance_weights.cols) +
          ", wanted " + shape_text(d.batch, d.n));
  const View<S> weights = emits ? call.relevance_weights : View<S>();
  refuse_backward_overlaps(name, op, joined(fields_of(grad, gradient_of), arrays({{"relevance", call.relevance}})),
                           joined(fields_of(in), arrays({{"dout", dout}, {"relevance_weights", weights}})));
}

/// Gradients of what several heads share (sides, parameters): each head writes its own, and they are added in order
/// afterwards.
template <class Op, class S>
class SharedGradients {
 public:
  SharedGradients(Arena& arena, const Dims& d, const Grads<Op, S>& grad) : d_(d), grad_(grad) {
    Grads<Op, S>::visit(
        [&](const char*, Role role, const MutView<S>& g, MutView<S>& part) {
          if (!g.given() || !is_shared(role)) return;
          const Index rows = role == Role::head ? 1 : (role == Role::query_side ? d.n : d.m);
          part = arena.matrix<S>(d.batch * d.heads * rows, g.cols);
          part.fill(S(0));
        },
        grad, parts_);
  }

  /// Where a head writes: its block of the packed gradients, its own of the shared ones.
  Grads<Op, S> of_head(Index b, Index h) const {
    Grads<Op, S> to{};
    Grads<Op, S>::visit(
        [&](const char*, Role role, const MutView<S>& all, const MutView<S>& part, MutView<S>& one) {
          if (!all.given()) return;
          one = is_shared(role) ? of(part, b * d_.heads + h) : head_of(all, role, d_, b, h);
        },
        grad_, parts_, to);
    return to;
  }

  void add_up(bool accumulate) const {
    Grads<Op, S>::visit(
        [&](const char*, Role role, const MutView<S>& g, const MutView<S>& part) {
          if (!g.given() || !is_shared(role)) return;
          if (!accumulate) g.fill(S(0));
          for (Index t = 0; t < d_.batch * d_.heads; ++t)
            copy_or_add<S>(of(part, t), head_of(g, role, d_, t / d_.heads, t % d_.heads), true);
        },
        grad_, parts_);
  }

 private:
  static bool is_shared(Role r) { return r == Role::query_side || r == Role::key_side || r == Role::head; }
  MutView<S> of(const MutView<S>& part, Index t) const {
    const Index rows = part.rows / (d_.batch * d_.heads);
    return part.block(t * rows, 0, rows, part.cols);
  }
  const Dims d_;
  const Grads<Op, S>& grad_;
  Grads<Op, S> parts_{};
};

template <class P, class Op, class S = typename P::Scalar>
void backward_with(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, View<S> dout, const Grads<Op, S>& grad,
                   const BackwardCall<S>& call) {
  const Name name = operator_name(op);
  const SavedTurn saved_turn(&saved, false, name);
  check_saved<Op, S>(name, saved, in);
  const Dims d = saved.dims;
  check_backward<Op, S>(op, in, d, dout, grad, call);
  check_saved_columns<Op, S>(op, saved, in);

  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  workspace.prepare(call.executor.workers());
  Arena& common = workspace.common();
  ArenaScope scope(common);

  const Index heads = d.batch * d.heads, group = d.heads / d.kv_heads;
  const SharedGradients<Op, S> shared(common, d, grad);
  const Index gradient_size = op.modifiers().gradient_size(d.n, d.m);
  S* collected = common.take<S>(heads * gradient_size);
  for (Index s = 0; s < heads * gradient_size; ++s) collected[s] = S(0);
  const bool emits = call.relevance.given();
  S* emitted = emits ? common.take<S>(heads * d.m) : nullptr;

  const bool may_spread = !op.modifiers().wants_serial_heads(d.batch, d.heads, d.n);
  for_heads(
      d.batch * d.kv_heads, may_spread, 2.5 * flop_of(in, d), workspace, call.executor,
      [&](Index t, const Context& context) {
        const Index b = t / d.kv_heads, g = t % d.kv_heads;
        for (Index h = g * group; h < (g + 1) * group; ++h) {
          ArenaScope inner(context.arena());
          const auto head = head_args(in, d, b, h);
          const auto keep = head_kept<View<S>>(op, saved, head, b, h);
          const Index width = dout.cols / d.heads, index = b * d.heads + h;
          RelevanceRequest<S> relevance;
          if (emits) relevance = {call.relevance_weights.row(b), emitted + index * d.m, call.part};
          const Accumulation accumulate{call.accumulate, call.accumulate || h > g * group};
          op.backward(
              BackwardPass<P>{{context, at_head(d, b, h)}, accumulate, collected + index * gradient_size, relevance},
              head, keep, dout.block(b * d.n, h * width, d.n, width), shared.of_head(b, h));
        }
      });

  shared.add_up(call.accumulate);
  if (gradient_size > 0)
    for (Index t = 0; t < heads; ++t)
      op.modifiers().deliver_gradient(at_head(d, t / d.heads, t % d.heads), collected + t * gradient_size);
  if (emits)
    for (Index b = 0; b < d.batch; ++b)
      for (Index j = 0; j < d.m; ++j) {
        S sum(0);
        for (Index h = 0; h < d.heads; ++h) sum += emitted[(b * d.heads + h) * d.m + j];
        call.relevance(b, j) = sum / S(double(d.heads));
      }
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
