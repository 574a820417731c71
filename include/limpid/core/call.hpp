// limpid: the front doors forward, backward and the looks inside: checks, heads, batch, threads, memory. Nothing of a
// paper.
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "args.hpp"
#include "context.hpp"
#include "pull_back.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What operator Op reads, and where its gradients go: the same fields, read or written.
template <class Op, class S>
using Inputs = typename Op::template Args<View<S>>;
template <class Op, class S>
using Grads = typename Op::template Args<MutView<S>>;

namespace detail {

template <class Op, class S>
struct SavedState {
  Dims dims;
  typename Op::template Keep<Mat<S>> kept;
  bool filled = false;
  mutable Turn turn;
};

}  // namespace detail

/// What a forward pass keeps for the backward pass and for looking inside. Filled by forward, reused without allocation
/// by the next call of the same shapes. Tied to the inputs it was made from: these must still hold the same numbers.
/// One call at a time, but backward and looks inside may share a filled one: ShapeError.
template <class Op, class S>
using Saved = detail::SavedState<std::remove_const_t<Op>, S>;

/// What a forward call may be asked besides. Asking never changes a bit of out. lse and map are resized; throws
/// ShapeError where one lies over an input, an array of a modifier, out or the other.
template <class Op, class S>
struct Call {
  Index batch = 1, heads = 1;
  Index kv_heads = 0;              ///< key heads, a divisor of heads; 0 means heads
  Saved<Op, S>* saved = nullptr;   ///< keep what backward needs
  Workspace* workspace = nullptr;  ///< scratch to reuse; otherwise the call has its own
  ExecutorRef executor = {};       ///< serial unless told otherwise
  Mat<S>* lse = nullptr;           ///< (B H) x n: row log-sum-exp, natural, minus infinity for a row without keys
  Mat<S>* map = nullptr;           ///< n x m: the (effective) map of one head
  Index head = 0, item = 0;        ///< which one
};

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

/// One head of a filled Saved, for the looks inside. These throw ShapeError where out has a wrong shape or lies over an
/// input, map_right also where it lies over x.
struct HeadCall {
  Index head = 0, item = 0;
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
};

namespace detail {

template <class Op>
Name operator_name(const Op& op) {
  return Name(op.name);
}

/// Numbers of the call from the first query and the first key field that are given; without key fields m = n.
template <class In>
Dims dims_of(Name op, const In& in, Index batch, Index heads, Index kv_heads) {
  Dims d;
  d.batch = batch, d.heads = heads, d.kv_heads = kv_heads == 0 ? heads : kv_heads;
  if (batch < 1) raise(op + ": batch is " + text_of(batch) + ", wanted at least 1");
  if (heads < 1) raise(op + ": heads is " + text_of(heads) + ", wanted at least 1");
  if (d.kv_heads < 1 || heads % d.kv_heads != 0)
    raise(op + ": heads is " + text_of(heads) + " and kv_heads " + text_of(d.kv_heads) +
          ", wanted kv_heads to divide heads");
  bool has_query = false, has_key = false;
  In::visit(
      [&](const char* name, Role role, const auto& v) {
        if (!v.given() && v.rows == 0 && v.cols == 0) return;
        if ((role == Role::query && !has_query) || (role == Role::key && !has_key)) {
          if (v.rows % batch != 0)
            raise(op + ": " + name + " has " + text_of(v.rows) +
                  " rows, wanted a multiple of batch = " + text_of(batch));
          (role == Role::query ? d.n : d.m) = v.rows / batch;
          (role == Role::query ? has_query : has_key) = true;
        }
      },
      in);
  if (!has_key) d.m = d.n;
  return d;
}

/// Every field against its role. `what` is put before the name, e.g. "gradient of ".
template <class In>
void check_fields(Name op, const std::string& what, const In& in, const Dims& d) {
  In::visit(
      [&](const char* name, Role role, const auto& v) {
        if (!v.given() && v.rows == 0 && v.cols == 0) return;
        const auto fail = [&](const std::string& wanted) {
          raise(op + ": " + what + name + " is " + shape_text(v.rows, v.cols) + ", wanted " + wanted);
        };
        const std::string n = text_of(d.n), m = text_of(d.m), b = text_of(d.batch);
        switch (role) {
          case Role::query:
            if (v.rows != d.batch * d.n) fail(text_of(d.batch * d.n) + " rows (batch " + b + " x n " + n + ")");
            if (v.cols % d.heads != 0) fail("columns a multiple of heads = " + text_of(d.heads));
            break;
          case Role::key:
            if (v.rows != d.batch * d.m) fail(text_of(d.batch * d.m) + " rows (batch " + b + " x m " + m + ")");
            if (v.cols % d.kv_heads != 0) fail("columns a multiple of kv_heads = " + text_of(d.kv_heads));
            break;
          case Role::query_side:
            if (v.rows != d.n && v.rows != d.batch * d.n) fail("n = " + n + " rows, or batch times that");
            break;
          case Role::key_side:
            if (v.rows != d.m && v.rows != d.batch * d.m) fail("m = " + m + " rows, or batch times that");
            break;
          case Role::head:
            if (v.rows != 1 && v.rows != d.heads) fail("1 row, or one a head (" + text_of(d.heads) + ")");
            break;
        }
      },
      in);
}

/// The block of a packed array that belongs to batch item b and query head h.
template <class V>
V head_of(const V& v, Role role, const Dims& d, Index b, Index h) {
  if (v.rows == 0 && v.cols == 0) return v;
  const Index g = h / (d.heads / d.kv_heads);
  switch (role) {
    case Role::query:
      return v.block(b * d.n, h * (v.cols / d.heads), d.n, v.cols / d.heads);
    case Role::key:
      return v.block(b * d.m, g * (v.cols / d.kv_heads), d.m, v.cols / d.kv_heads);
    case Role::query_side:
      return v.block(v.rows == d.n ? 0 : b * d.n, 0, d.n, v.cols);
    case Role::key_side:
      return v.block(v.rows == d.m ? 0 : b * d.m, 0, d.m, v.cols);
    case Role::head:
      break;
  }
  return v.block(v.rows == 1 ? 0 : h, 0, 1, v.cols);
}

/// A parameter array, if given: finite numbers.
template <class S>
void check_parameters(Name op, const char* name, View<S> v) {
  if (!v.given() || holds_finite(v)) return;
  for (Index i = 0; i < v.rows; ++i)
    for (Index c = 0; c < v.cols; ++c)
      if (!row_is_finite(&v(i, c), 1))
        raise(op + (std::string(": ") + name + " is " + number_text(v(i, c)) + " in row " + text_of(i) + ", column " +
                    text_of(c) + ", wanted finite numbers"));
  raise(op + (std::string(": ") + name + " holds a number that is not finite"));  // fast math has no eye for the place
}

/// Every head takes a turn, so there may be no more of them than arrays have numbers, or than a call without any can
/// go through at once.
inline constexpr Index most_empty_heads = 1 << 20;
inline void check_counts(Name op, Index batch, Index heads, Index numbers) {
  const Index most = std::max(most_empty_heads, numbers);
  if (batch > most || heads > most / batch)
    raise(op + (": heads is " + text_of(heads) + " and batch " + text_of(batch) + ", wanted at most " + text_of(most) +
                " heads of all items, as arrays are that small"));
}

template <class Args>
Args head_args(const Args& all, const Dims& d, Index b, Index h) {
  Args one{};
  Args::visit([&](const char*, Role role, const auto& from, auto& to) { to = head_of(from, role, d, b, h); }, all, one);
  return one;
}

/// The arrays of the user's that modifiers look at, and those that they add to.
template <class Op>
auto tables_of(const Op& op) {
  return [&op](auto&& f) { op.modifiers().reads(f); };
}
template <class Op>
auto sinks_of(const Op& op) {
  return [&op](auto&& f) { op.modifiers().writes(f); };
}

/// What a backward call writes, of an operator or of what has one inside, may lie neither over what is read nor over
/// arrays of the operator's modifiers, nor may their sinks, of which several may be one array.
template <class Op, class Written, class Read>
void refuse_backward_overlaps(Name name, const Op& op, const Written& written, const Read& read) {
  const auto all = joined(read, tables_of(op));
  refuse_overlaps(name, written, joined(all, sinks_of(op)));
  sinks_of(op)([&](const NamedArray& sink) { refuse_overlaps(name, arrays({sink}), all); });
}

/// How a call spreads: over heads, each on one worker, or over the tasks inside one head after the other. The bits are
/// the same either way; many heads are better spread whole.
inline bool spread_over_heads(Index heads, int workers) {
  return workers > 1 && (heads >= 2 * workers || heads % workers == 0);
}

/// task(t, context) for count heads (or groups of them).
template <class Task>
void for_heads(Index count, bool may_spread, Workspace& workspace, ExecutorRef executor, Task&& task) {
  const int workers = executor.workers();
  workspace.prepare(workers);
  if (may_spread && spread_over_heads(count, workers)) {
    executor.run(count, [&](Index t, int worker) {
      ArenaScope scope(workspace.worker(worker));
      task(t, Context(workspace.worker(worker)));
    });
    workspace.level();
    return;
  }
  const Context context(workspace, executor);
  for (Index t = 0; t < count; ++t) {
    ArenaScope scope(workspace.common());
    task(t, context);
  }
}

/// Visits what an operator keeps: Keep::visit(f, head, k...), or Keep::visit_for(op, f, head, k...) where the number of
/// arrays depends on the operator's parameters.
template <class Keep, class Op, class F, class In, class... K>
void visit_kept(const Op& op, F&& f, const In& head, K&&... k) {
  if constexpr (requires { Keep::visit_for(op, f, head, k...); })
    Keep::visit_for(op, f, head, k...);
  else
    Keep::visit(f, head, k...);
}

/// Views of one head of what an operator keeps.
template <class ViewType, class Op, class S, class In>
auto head_kept(const Op& op, Saved<Op, S>& saved, const In& head, Index b, Index h) {
  typename Op::template Keep<ViewType> one;
  const Dims& d = saved.dims;
  visit_kept<typename Op::template Keep<ViewType>>(
      op,
      [&](Kept kind, Index count, bool, auto& all, auto& view) {
        const MutView<S> whole(all);
        const bool stat = kind == Kept::stat;
        const Index rows = stat ? d.batch * d.heads * count : d.batch * d.n, cols = stat ? d.n : d.heads * count;
        if (whole.rows != rows || whole.cols != cols)
          raise(operator_name(op) + ": saved holds " + shape_text(whole.rows, whole.cols) + " numbers, wanted " +
                shape_text(rows, cols) + "; it comes from other parameters or other widths");
        view = kind == Kept::stat ? whole.block((b * d.heads + h) * count, 0, count, d.n)
                                  : whole.block(b * d.n, h * count, d.n, count);
      },
      head, saved.kept, one);
  return one;
}

template <class Op, class S, class In>
typename Op::template Keep<View<S>> const_kept(const Op& op, const In& head,
                                               typename Op::template Keep<MutView<S>>& keep) {
  using Views = typename Op::template Keep<View<S>>;
  Views views;
  visit_kept<Views>(
      op, [](Kept, Index, bool, MutView<S>& from, View<S>& to) { to = from; }, head, keep, views);
  return views;
}

/// A family of scores may leave out what is constant in a row, as it changes no weight; a log-sum-exp that is shown (in
/// natural units) gets it back.
template <class Op, class S, class In>
void complete_lse(const Op& op, const Context& context, const In& head, const At& at, S* lse) {
  if constexpr (requires { op.complete_lse(context, head, at, lse); })
    op.complete_lse(context, head, at, lse);
  else if constexpr (requires { op.score.complete_lse(context.arena(), head, at, lse); })
    op.score.complete_lse(context.arena(), head, at, lse);
}

template <class Op, class S>
Op bound(const Op& op, const Dims& d) {
  Op copy = op;
  // built anew, not assigned: a chain may hold a lambda with captures, which has no assignment
  std::destroy_at(&copy.modifiers());
  std::construct_at(&copy.modifiers(), op.modifiers().bound(d.batch, d.heads));
  return copy;
}

/// Whether an operator's scores look at a parameter themselves; an operator round another one has those of that.
template <class Op>
bool looks_at_itself(const Op& op, std::string_view field) {
  if constexpr (requires { op.score.checks(field); }) return op.score.checks(field);
  if constexpr (requires { op.inner; }) return looks_at_itself(op.inner, field);
  return false;
}

template <class Op, class S>
const Inputs<Op, S>& check_call(const Op& op, const Inputs<Op, S>& in, const Dims& d, View<S> out,
                                const char* out_name) {
  const Name name = operator_name(op);
  check_fields(name, "", in, d);
  Inputs<Op, S>::visit(
      [&](const char* field, Role, const View<S>& v) {  // q and k miss each other; without v out would have no columns
        if (std::string_view(field) == "v" && v.rows == 0 && d.m > 0)
          raise(name + ": v is not given, wanted " + text_of(d.batch * d.m) + " rows");
      },
      in);
  Index numbers = 0, different = 1;
  Inputs<Op, S>::visit(
      [&](const char*, Role role, const View<S>& v) {
        numbers = std::max(numbers, v.rows * v.cols);
        if (role == Role::head && v.rows > 1) different = d.heads;
      },
      in);
  check_counts(name, d.batch, d.heads, numbers);
  const auto head = head_args(in, d, 0, 0);
  for (Index h = 0; h < different; ++h) op.check(d, head_args(in, d, 0, h));  // parameters differ from head to head
  Inputs<Op, S>::visit(
      [&](const char* field, Role role, const View<S>& v) {
        if (role == Role::head && !looks_at_itself(op, field)) check_parameters<S>(name, field, v);
      },
      in);
  op.modifiers().check(op.name, d.batch, d.heads, d.n, d.m);
  const Index width = d.heads * op.out_width(head);
  if (out.rows != d.batch * d.n || out.cols != width)
    raise(name + ": " + out_name + " is " + shape_text(out.rows, out.cols) + ", wanted " +
          shape_text(d.batch * d.n, width));
  return in;
}

/// The whole forward pass with policy P (the machine's vectors, or OneLane as the reference).
template <class P, class Op, class S = typename P::Scalar>
void forward_with(const Op& operation, const Inputs<Op, S>& in, MutView<S> out, const Call<Op, S>& call) {
  const Name name = operator_name(operation);
  const Dims d = dims_of(name, in, call.batch, call.heads, call.kv_heads);
  check_call<Op, S>(operation, in, d, out, "out");
  if (call.lse && call.lse == call.map) raise(name + ": lse and map are one matrix, wanted two");
  const auto asked = [](const Mat<S>* m) { return m ? View<S>(*m) : View<S>(); };
  refuse_overlaps(name, arrays({{"out", out}, {"lse", asked(call.lse)}, {"map", asked(call.map)}}),
                  joined(fields_of(in), tables_of(operation)));
  if (call.map && (call.head < 0 || call.head >= d.heads || call.item < 0 || call.item >= d.batch))
    raise(name + ": map was asked of head " + text_of(call.head) + " of item " + text_of(call.item) + ", there are " +
          text_of(d.heads) + " heads and " + text_of(d.batch) + " items");
  const Op op = bound<Op, S>(operation, d);
  using KeepAll = typename Op::template Keep<Mat<S>>;
  using Keep = typename Op::template Keep<MutView<S>>;

  const auto first = head_args(in, d, 0, 0);
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  const SavedTurn saved_turn(call.saved, true, name);
  if (call.saved) {
    Saved<Op, S>& saved = *call.saved;
    saved.filled = false;
    saved.dims = d;
    visit_kept<KeepAll>(
        op,
        [&](Kept kind, Index count, bool, Mat<S>& m) {
          if (kind == Kept::stat)
            m.resize(d.batch * d.heads * count, d.n);
          else
            m.resize(d.batch * d.n, d.heads * count);
        },
        first, saved.kept);
  }
  if (call.lse) call.lse->resize(d.batch * d.heads, d.n);
  if (call.map) call.map->resize(d.n, d.m);

  for_heads(d.batch * d.heads, true, workspace, call.executor, [&](Index t, const Context& context) {
    const Index b = t / d.heads, h = t % d.heads;
    const auto head = head_args(in, d, b, h);
    Keep keep;
    if (call.saved)
      keep = head_kept<MutView<S>>(op, *call.saved, head, b, h);
    else
      visit_kept<Keep>(
          op,
          [&](Kept kind, Index count, bool needed, MutView<S>& v) {
            if (needed || call.lse || call.map)
              v = kind == Kept::stat ? context.arena().template matrix<S>(count, d.n)
                                     : context.arena().template matrix<S>(d.n, count);
          },
          head, keep);
    const At at{b, h, 0, 0, d.n, d.m};
    const Index width = out.cols / d.heads;
    op.template forward<P, S>(context, head, out.block(b * d.n, h * width, d.n, width), keep, at);
    if (call.lse) {
      const Lse<S> kept = lse_of(keep.lse);
      const Index* from = references<S>(context.arena(), op.modifiers(), at);
      for (Index i = 0; i < d.n; ++i) {
        using std::log;
        const bool none = kept.top[i] == -minus_infinity<S>();
        S sum = none ? minus_infinity<S>() : kept.top[i] - log(kept.inverse[i]);
        if (!none && from != nullptr && from[i] >= 0) {
          At pair = at;
          pair.q = i, pair.k = from[i];
          sum = std::max(sum + op.modifiers().template above<S>(pair, -1), lowest_number<S>());
        }
        (*call.lse)(t, i) = sum;
      }
      complete_lse(op, context, head, at, call.lse->data() + t * d.n);
    }
    if (call.map && b == call.item && h == call.head) {
      const typename Op::template Keep<View<S>> kept = const_kept<Op, S>(op, head, keep);
      op.template map_block<P, S>(context, head, kept, 0, 0, MutView<S>(*call.map), at);
    }
  });
  if (call.saved) call.saved->filled = true;
}

template <class Op, class S>
void check_saved(Name name, const Saved<Op, S>& saved, const Inputs<Op, S>& in) {
  if (!saved.filled) raise(name + ": saved is empty, wanted one that a forward call has filled");
  const Dims d = dims_of(name, in, saved.dims.batch, saved.dims.heads, saved.dims.kv_heads);
  if (d.n != saved.dims.n || d.m != saved.dims.m)
    raise(name + ": saved belongs to n = " + text_of(saved.dims.n) + ", m = " + text_of(saved.dims.m) +
          ", the inputs have n = " + text_of(d.n) + ", m = " + text_of(d.m));
}

template <class P, class Op, class S = typename P::Scalar>
void backward_with(const Op& operation, const Inputs<Op, S>& in, Saved<Op, S>& saved, View<S> dout,
                   const Grads<Op, S>& grad, const BackwardCall<S>& call) {
  const Name name = operator_name(operation);
  const SavedTurn saved_turn(&saved, false, name);
  check_saved<Op, S>(name, saved, in);
  const Dims d = saved.dims;
  check_call<Op, S>(operation, in, d, dout, "dout");
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
  refuse_backward_overlaps(name, operation,
                           joined(fields_of(grad, gradient_of), arrays({{"relevance", call.relevance}})),
                           joined(fields_of(in), arrays({{"dout", dout}, {"relevance_weights", weights}})));
  const Op op = bound<Op, S>(operation, d);

  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  workspace.prepare(call.executor.workers());
  Arena& common = workspace.common();
  ArenaScope scope(common);

  // Gradients of what several heads share: each head writes its own, and they are added in order afterwards.
  const auto is_shared = [](Role r) { return r == Role::query_side || r == Role::key_side || r == Role::head; };
  const Index heads = d.batch * d.heads, group = d.heads / d.kv_heads;
  Grads<Op, S> parts{};
  Grads<Op, S>::visit(
      [&](const char*, Role role, const MutView<S>& g, MutView<S>& part) {
        if (!g.given() || !is_shared(role)) return;
        const Index rows = role == Role::head ? 1 : (role == Role::query_side ? d.n : d.m);
        part = common.matrix<S>(heads * rows, g.cols);
        part.fill(S(0));
      },
      grad, parts);
  const Index sink_size = op.modifiers().sink_size(d.n, d.m);
  S* sinks = common.take<S>(heads * sink_size);
  for (Index s = 0; s < heads * sink_size; ++s) sinks[s] = S(0);
  S* emitted = emits ? common.take<S>(heads * d.m) : nullptr;

  const bool may_spread = !op.modifiers().wants_serial_heads(d.batch, d.heads, d.n);
  for_heads(d.batch * d.kv_heads, may_spread, workspace, call.executor, [&](Index t, const Context& context) {
    const Index b = t / d.kv_heads, g = t % d.kv_heads;
    for (Index h = g * group; h < (g + 1) * group; ++h) {
      ArenaScope inner(context.arena());
      const auto head = head_args(in, d, b, h);
      Grads<Op, S> to{};
      Grads<Op, S>::visit(
          [&](const char*, Role role, const MutView<S>& all, const MutView<S>& part, MutView<S>& one) {
            if (!all.given()) return;
            if (!is_shared(role)) {
              one = head_of(all, role, d, b, h);
            } else {
              const Index rows = part.rows / heads;
              one = part.block((b * d.heads + h) * rows, 0, rows, part.cols);
            }
          },
          grad, parts, to);
      const auto keep = head_kept<View<S>>(op, saved, head, b, h);
      const At at{b, h, 0, 0, d.n, d.m};
      const Index width = dout.cols / d.heads, index = b * d.heads + h;
      Emission<S> emission;
      if (emits) emission = {call.relevance_weights.row(b), emitted + index * d.m, call.part};
      const Accumulation accumulate{call.accumulate, call.accumulate || h > g * group};
      op.template backward<P, S>(context, head, keep, dout.block(b * d.n, h * width, d.n, width), to, accumulate, at,
                                 sinks + index * sink_size, emission);
    }
  });

  Grads<Op, S>::visit(
      [&](const char*, Role role, const MutView<S>& g, const MutView<S>& part) {
        if (!g.given() || !is_shared(role)) return;
        if (!call.accumulate) g.fill(S(0));
        for (Index t = 0; t < heads; ++t) {
          const Index rows = part.rows / heads;
          deliver<S>(part.block(t * rows, 0, rows, part.cols), head_of(g, role, d, t / d.heads, t % d.heads), true);
        }
      },
      grad, parts);
  if (sink_size > 0)
    for (Index t = 0; t < heads; ++t)
      op.modifiers().flush(At{t / d.heads, t % d.heads, 0, 0, d.n, d.m}, sinks + t * sink_size);
  if (emits)
    for (Index b = 0; b < d.batch; ++b)
      for (Index j = 0; j < d.m; ++j) {
        S sum(0);
        for (Index h = 0; h < d.heads; ++h) sum += emitted[(b * d.heads + h) * d.m + j];
        call.relevance(b, j) = sum / S(double(d.heads));
      }
}

/// Whether the rows of an operator's map have an entropy.
template <class Op, class S>
inline constexpr bool has_entropy = requires(const Op& op, const Context& context, const Inputs<Op, S>& head,
                                             const typename Op::template Keep<View<S>>& keep, S* out, const At& at) {
  op.template entropy<Native<S>, S>(context, head, keep, out, at);
};

/// Runs look(context, head inputs, head kept, at) for one head of a saved forward pass; out is what it writes to.
template <class Op, class S, class Look>
void look_inside(const Op& operation, const Inputs<Op, S>& in, Saved<Op, S>& saved, const HeadCall& call,
                 const MutView<S>& out, Look&& look) {
  const Name name = operator_name(operation);
  refuse_overlaps(name, arrays({{"out", out}}), joined(fields_of(in), tables_of(operation)));
  const SavedTurn saved_turn(&saved, false, name);
  check_saved<Op, S>(name, saved, in);
  const Dims d = saved.dims;
  if (call.head < 0 || call.head >= d.heads || call.item < 0 || call.item >= d.batch)
    raise(name + ": asked of head " + text_of(call.head) + " of item " + text_of(call.item) + ", there are " +
          text_of(d.heads) + " heads and " + text_of(d.batch) + " items");
  const Op op = bound<Op, S>(operation, d);
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  workspace.prepare(call.executor.workers());
  ArenaScope scope(workspace.common());
  const auto head = head_args(in, d, call.item, call.head);
  const auto keep = head_kept<View<S>>(op, saved, head, call.item, call.head);
  look(op, Context(workspace, call.executor), head, keep, At{call.item, call.head, 0, 0, d.n, d.m});
}

}  // namespace detail

/// out = op(in). Buffers are packed: q (B n) x (H d), k (B m) x (G d), v (B m) x (G dv), out (B n) x (H dv); a head is
/// a block of them, never a copy. Throws ShapeError naming operator, argument, found and wanted.
template <class Op, class Out>
void forward(const Op& op, const Inputs<Op, detail::ScalarOf<Out>>& in, Out&& out,
             const Call<Op, detail::ScalarOf<Out>>& call = {}) {
  using S = detail::ScalarOf<Out>;
  detail::forward_with<detail::Native<S>>(op, in, MutView<S>(std::forward<Out>(out)), call);
}

/// The same for one head, returned.
template <class Op, class In, class S = typename detail::ScalarOf<decltype(In::q)>>
Mat<S> forward(const Op& op, const In& in) {
  const Inputs<Op, S> all = in;
  const Dims d = detail::dims_of(detail::operator_name(op), all, 1, 1, 1);
  detail::check_fields(detail::operator_name(op), "", all, d);
  Mat<S> out(d.n, op.out_width(all));
  forward(op, all, out);
  return out;
}

/// Gradients of everything that grad names, from dout; saved comes from the forward call. An empty field is not
/// computed.
template <class Op, class S, class Dout>
void backward(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Dout&& dout,
              const std::type_identity_t<Grads<Op, S>>& grad, const std::type_identity_t<BackwardCall<S>>& call = {}) {
  detail::backward_with<detail::Native<S>>(op, in, saved, View<S>(std::forward<Dout>(dout)), grad, call);
}

/// A block of the (effective) map of one head: out(i, j) is the weight query q0 + i gives key k0 + j. A row is 1 x m, a
/// column n x 1, the whole map n x m; memory for what was asked. Cost 2 d flop a pair (more where a map is a
/// polynomial).
template <class Op, class S, class Out>
void map_block(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Index q0, Index k0,
               Out&& out, const HeadCall& call = {}) {
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(op, in, saved, call, to,
                      [&](const Op& o, const auto& context, const auto& head, const auto& keep, const At& at) {
                        if (q0 < 0 || k0 < 0 || to.rows > at.n - q0 || to.cols > at.m - k0)
                          detail::raise(detail::operator_name(op) + ": map block " +
                                        detail::shape_text(to.rows, to.cols) + " at " + detail::text_of(q0) + ", " +
                                        detail::text_of(k0) + ", wanted it inside " + detail::shape_text(at.n, at.m));
                        o.template map_block<detail::Native<S>, S>(context, head, keep, q0, k0, to, at);
                      });
}

/// out = x A for rows x (r x n) and one head, out r x m: w^T A without A. Column mass is x = ones.
template <class Op, class S, class X, class Out>
void map_left(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, X&& x, Out&& out,
              const HeadCall& call = {}) {
  const View<S> w(std::forward<X>(x));
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(
      op, in, saved, call, to, [&](const Op& o, const auto& context, const auto& head, const auto& keep, const At& at) {
        if (w.cols != at.n || to.cols != at.m || w.rows != to.rows)
          detail::raise(detail::operator_name(op) + ": map_left got x " + detail::shape_text(w.rows, w.cols) +
                        " and out " + detail::shape_text(to.rows, to.cols) + ", wanted r x " + detail::text_of(at.n) +
                        " and r x " + detail::text_of(at.m));
        const MutView<S> g = context.arena().template matrix<S>(at.n, w.rows);
        const MutView<S> y = context.arena().template matrix<S>(at.m, w.rows);
        for (Index r = 0; r < w.rows; ++r)
          for (Index i = 0; i < at.n; ++i) g(i, r) = w(r, i);
        o.template apply_transposed<detail::Native<S>, S>(context, head, keep, g, y, at);
        for (Index r = 0; r < w.rows; ++r)
          for (Index j = 0; j < at.m; ++j) to(r, j) = y(j, r);
      });
}

/// out = A x for one head, x m x c, out n x c.
template <class Op, class S, class X, class Out>
void map_right(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, X&& x, Out&& out,
               const HeadCall& call = {}) {
  const View<S> v(std::forward<X>(x));
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(
      op, in, saved, call, to, [&](const Op& o, const auto& context, const auto& head, const auto& keep, const At& at) {
        if (v.rows != at.m || to.rows != at.n || v.cols != to.cols)
          detail::raise(detail::operator_name(op) + ": map_right got x " + detail::shape_text(v.rows, v.cols) +
                        " and out " + detail::shape_text(to.rows, to.cols) + ", wanted " + detail::text_of(at.m) +
                        " x c and " + detail::text_of(at.n) + " x c");
        detail::refuse_overlaps(detail::operator_name(op), {{"out", to}}, {{"x", v}});
        o.template apply<detail::Native<S>, S>(context, head, keep, v, to, at);
      });
}

/// out (n x 1) = the entropy of every row of the map, in nats; for operators whose rows are distributions.
template <class Op, class S, class Out>
void map_entropy(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Out&& out,
                 const HeadCall& call = {}) {
  constexpr bool has_entropy = detail::has_entropy<Op, S>;
  static_assert(has_entropy,
                "limpid: map_entropy wants an operator whose map has rows that are distributions; the effective map of "
                "twicing and boosting has entries of either sign");
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(
      op, in, saved, call, to, [&](const Op& o, const auto& context, const auto& head, const auto& keep, const At& at) {
        if (to.rows != at.n || to.cols != 1)
          detail::raise(detail::operator_name(op) + ": map_entropy got out " + detail::shape_text(to.rows, to.cols) +
                        ", wanted " + detail::shape_text(at.n, 1));
        S* e = context.arena().template take<S>(at.n);
        if constexpr (has_entropy) o.template entropy<detail::Native<S>, S>(context, head, keep, e, at);
        for (Index i = 0; i < to.rows; ++i) to(i, 0) = e[i];
      });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
