// limpid: looks inside one head of a saved forward pass: parts of its map, the map at work, its entropy.
// SPDX-License-Identifier: MIT
#pragma once

#include "../call/checks.hpp"
#include "../call/heads.hpp"
#include "../core/pass.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// One head of a filled Saved, for the looks inside. These throw ShapeError where out has a wrong shape or lies over an
/// input, map_right also where it lies over x.
struct HeadCall {
  Index head = 0, item = 0;
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
};

namespace detail {

/// Runs look(pass, head inputs, head kept) for one head of a saved forward pass; out is what it writes to.
template <class Op, class S>
using Look =
    FunctionRef<void(const Pass<Native<S>>&, const Inputs<Op, S>&, const typename Op::template Keep<View<S>>&)>;
template <class Op, class S>
void look_inside(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, const HeadCall& call,
                 const MutView<S>& out, std::type_identity_t<Look<Op, S>> look) {
  const Name name = operator_name(op);
  refuse_overlaps(name, arrays({{"out", out}}), joined(fields_of(in), tables_of(op)));
  const SavedTurn saved_turn(&saved, false, name);
  check_saved(name, saved.filled, saved.dims, shapes_of(in));
  check_saved_columns<Op, S>(op, saved, in);
  const Dims d = saved.dims;
  check_head(name, "asked", call.head, call.item, d);
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  workspace.prepare(call.executor.workers());
  ArenaScope scope(workspace.common());
  const auto head = head_args(in, d, call.item, call.head);
  const auto keep = head_kept<View<S>>(op, saved, head, call.item, call.head);
  const double flop = flop_of(shapes_of(in), d) / double(d.batch * d.heads);
  Context(workspace, call.executor).as_head(flop, [&](const Context& context) {
    look(Pass<Native<S>>{context, at_head(d, call.item, call.head)}, head, keep);
  });
}

}  // namespace detail

/// A block of the (effective) map of one head: out(i, j) is the weight query q0 + i gives
/// key k0 + j. A row is 1 x m, a column n x 1, the whole map n x m; memory for what was
/// asked. Cost 2 d flop a pair (more where a map is a polynomial).
template <class Op, class S, class Out>
void map_block(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, Index q0, Index k0,
               Out&& out, const HeadCall& call = {}) {
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(op, in, saved, call, to, [&](const auto& pass, const auto& head, const auto& keep) {
    const At& at = pass.at;
    if (q0 < 0 || k0 < 0 || to.rows > at.n - q0 || to.cols > at.m - k0)
      detail::raise(detail::operator_name(op) + ": map block " + detail::shape_text(to.rows, to.cols) + " at " +
                    detail::text_of(q0) + ", " + detail::text_of(k0) + ", wanted it inside " +
                    detail::shape_text(at.n, at.m));
    op.map_block(pass, head, keep, q0, k0, to);
  });
}

/// out = x A for rows x (r x n) and one head, out r x m: w^T A without A. Column mass is x = ones.
template <class Op, class S, class X, class Out>
void map_left(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, X&& x, Out&& out,
              const HeadCall& call = {}) {
  const View<S> w(std::forward<X>(x));
  const MutView<S> to(std::forward<Out>(out));
  detail::look_inside(op, in, saved, call, to, [&](const auto& pass, const auto& head, const auto& keep) {
    const At& at = pass.at;
    if (w.cols != at.n || to.cols != at.m || w.rows != to.rows)
      detail::raise(detail::operator_name(op) + ": map_left got x " + detail::shape_text(w.rows, w.cols) + " and out " +
                    detail::shape_text(to.rows, to.cols) + ", wanted r x " + detail::text_of(at.n) + " and r x " +
                    detail::text_of(at.m));
    const MutView<S> g = pass.arena().template matrix<S>(at.n, w.rows);
    const MutView<S> y = pass.arena().template matrix<S>(at.m, w.rows);
    for (Index r = 0; r < w.rows; ++r)
      for (Index i = 0; i < at.n; ++i) g(i, r) = w(r, i);
    op.apply_transposed(pass, head, keep, View<S>(g), y);
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
  detail::look_inside(op, in, saved, call, to, [&](const auto& pass, const auto& head, const auto& keep) {
    const At& at = pass.at;
    if (v.rows != at.m || to.rows != at.n || v.cols != to.cols)
      detail::raise(detail::operator_name(op) + ": map_right got x " + detail::shape_text(v.rows, v.cols) +
                    " and out " + detail::shape_text(to.rows, to.cols) + ", wanted " + detail::text_of(at.m) +
                    " x c and " + detail::text_of(at.n) + " x c");
    detail::refuse_overlaps(detail::operator_name(op), {{"out", to}}, {{"x", v}});
    op.apply(pass, head, keep, v, to);
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
  detail::look_inside(op, in, saved, call, to, [&](const auto& pass, const auto& head, const auto& keep) {
    const At& at = pass.at;
    if (to.rows != at.n || to.cols != 1)
      detail::raise(detail::operator_name(op) + ": map_entropy got out " + detail::shape_text(to.rows, to.cols) +
                    ", wanted " + detail::shape_text(at.n, 1));
    S* e = pass.arena().template take<S>(at.n);
    if constexpr (has_entropy) op.entropy(pass, head, keep, e);
    for (Index i = 0; i < to.rows; ++i) to(i, 0) = e[i];
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
