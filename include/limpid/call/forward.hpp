// limpid: the front door forward: checks, heads, batch, threads, memory. Nothing of a paper.
// SPDX-License-Identifier: MIT
#pragma once

#include "../engine/gather.hpp"
#include "checks.hpp"
#include "heads.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

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

namespace detail {

/// A family of scores may leave out what is constant in a row, as it changes no weight; a log-sum-exp that is shown (in
/// natural units) gets it back.
template <class Op, class S, class In>
void complete_lse(const Op& op, const Context& context, const In& head, const At& at, S* lse) {
  if constexpr (requires { op.complete_lse(context, head, at, lse); })
    op.complete_lse(context, head, at, lse);
  else if constexpr (requires { op.score.complete_lse(context.arena(), head, at, lse); })
    op.score.complete_lse(context.arena(), head, at, lse);
}

/// The log-sum-exp of every row of a head in natural units, from what sweeps keep.
template <class Op, class P, class S = typename P::Scalar>
void shown_lse(const Op& op, const Pass<P>& pass, const Inputs<Op, S>& head, const Lse<S>& kept, S* lse) {
  using std::log;
  const S without_keys = op.modifiers().template sink<S>(pass.at);
  for (Index i = 0; i < pass.at.n; ++i)
    lse[i] = kept.top[i] == -minus_infinity<S>() ? without_keys : kept.top[i] - log(kept.inverse[i]);
  const auto complete = [&](Index row, At pair, Index from) {
    if (from < 0 || lse[row] == minus_infinity<S>()) return;
    pair.k = from;
    lse[row] = std::max(lse[row] + op.modifiers().template above<S>(pair, -1), lowest_number<S>());
  };
  using Mods = std::remove_cvref_t<decltype(op.modifiers())>;
  if constexpr (Mods::tables && Mods::gathers) {
    const auto scores = places_of<S, Mods>(op.modifiers(), pass.at);
    const GatherPlan<P, Mods> plan(pass.arena(), scores);
    for_gathered<P>(pass.context, plan, scores, [&](const auto& block, Index, const Context& context) {
      auto own = block.of(scores);
      own.settle(context.arena());
      for (Index i = 0; own.from != nullptr && i < own.n(); ++i)
        complete(block.query_rows()[i], own.place(i, 0), own.from[i]);
    });
  } else if (const Index* from = references<S>(pass.arena(), op.modifiers(), pass.at)) {
    for (Index i = 0; i < pass.at.n; ++i) {
      At pair = pass.at;
      pair.q = i;
      complete(i, pair, from[i]);
    }
  }
  complete_lse(op, pass.context, head, pass.at, lse);
}

/// One head, of the item and number that pass.at says: its block of out and what the call asks besides.
template <class P, class Op, class S = typename P::Scalar>
void forward_head(const Op& op, const Pass<P>& pass, const Inputs<Op, S>& head, MutView<S> out,
                  const Call<Op, S>& call) {
  const At& at = pass.at;
  const Index b = at.batch, h = at.head, width = out.cols / at.heads;
  using Keep = typename Op::template Keep<MutView<S>>;
  Keep keep;
  if (call.saved)
    keep = head_kept<MutView<S>>(op, *call.saved, head, b, h);
  else
    visit_kept<Keep>(
        op,
        [&](Kept kind, Index count, bool needed, MutView<S>& v) {
          if (needed || call.lse || call.map)
            v = kind == Kept::stat ? pass.arena().template matrix<S>(count, at.n)
                                   : pass.arena().template matrix<S>(at.n, count);
        },
        head, keep);
  op.forward(pass, head, out.block(b * at.n, h * width, at.n, width), keep);
  if constexpr (has_lse<Op>)
    if (call.lse) shown_lse(op, pass, head, lse_of(keep.lse), call.lse->data() + (b * at.heads + h) * at.n);
  if (call.map && b == call.item && h == call.head) {
    const typename Op::template Keep<View<S>> kept = const_kept<Op, S>(op, head, keep);
    op.map_block(pass, head, kept, 0, 0, MutView<S>(*call.map));
  }
}

template <class P, class Op, class S = typename P::Scalar>
void forward_checked(const Op& op, const Inputs<Op, S>& in, MutView<S> out, const Call<Op, S>& call) {
  const Name name = operator_name(op);
  const Dims d = dims_of(name, shapes_of(in), call.batch, call.heads, call.kv_heads);
  check_call<Op, S>(op, in, d, out, "out");
  if (call.lse && !has_lse<Op>) raise(name + ": lse is asked for, but its weights are not divided by a row's sum");
  if (call.lse && call.lse == call.map) raise(name + ": lse and map are one matrix, wanted two");
  const auto asked = [](const Mat<S>* m) { return m ? View<S>(*m) : View<S>(); };
  refuse_overlaps(name, arrays({{"out", out}, {"lse", asked(call.lse)}, {"map", asked(call.map)}}),
                  joined(fields_of(in), tables_of(op)));
  if (call.map) check_head(name, "map was asked", call.head, call.item, d);
  using KeepAll = typename Op::template Keep<Mat<S>>;

  const auto first = head_args(in, d, 0, 0);
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  const SavedTurn saved_turn(call.saved, true, name);
  if (call.saved) {
    Saved<Op, S>& saved = *call.saved;
    saved.filled = false;
    saved.dims = d, saved.columns = out.cols;
    visit_kept<KeepAll>(
        op, [&](Kept kind, Index count, bool, Mat<S>& m) { resize_kept(m, kind, count, d); }, first, saved.kept);
  }
  if (call.lse) call.lse->resize(d.batch * d.heads, d.n);
  if (call.map) call.map->resize(d.n, d.m);

  // true: heads may run at the same time
  for_heads(d.batch * d.heads, true, flop_of(shapes_of(in), d), workspace, call.executor,
            [&](Index t, const Context& context) {
              const Index b = t / d.heads, h = t % d.heads;
              forward_head<P>(op, Pass<P>{context, at_head(d, b, h)}, head_args(in, d, b, h), out, call);
            });
  if (call.saved) call.saved->filled = true;
}

/// The whole forward pass with policy P (the machine's vectors, or OneLane as the reference). What the operator lacks
/// is one sentence and no other error.
template <class P, class Op, class S = typename P::Scalar>
void forward_with(const Op& op, const Inputs<Op, S>& in, MutView<S> out, const Call<Op, S>& call) {
  if constexpr (check_operator<Op, S>()) forward_checked<P>(op, in, out, call);
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
  const Dims d = detail::dims_of(detail::operator_name(op), detail::shapes_of(all), 1, 1, 1);
  detail::check_fields(detail::operator_name(op), "", detail::shapes_of(all), d);
  Mat<S> out(d.n, op.out_width(all));
  forward(op, all, out);
  return out;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
