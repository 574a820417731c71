// limpid: what a forward pass keeps for backward and for looking inside.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/workspace.hpp"
#include "layout.hpp"

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
  Index columns = 0;  // of out
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

namespace detail {

/// Visits what an operator keeps: Keep::visit(f, head, k...), or Keep::visit_for(op, f, head, k...) where the number of
/// arrays depends on the operator's parameters.
template <class Keep, class Op, class F, class In, class... K>
void visit_kept(const Op& op, F&& f, const In& head, K&&... k) {
  if constexpr (requires { Keep::visit_for(op, f, head, k...); })
    Keep::visit_for(op, f, head, k...);
  else
    Keep::visit(f, head, k...);
}

/// Room for what all heads keep.
template <class S>
void resize_kept(Mat<S>& m, Kept kind, Index count, const Dims& d) {
  if (kind == Kept::stat)
    m.resize(d.batch * d.heads * count, d.n);
  else
    m.resize(d.batch * d.n, d.heads * count);
}
inline void check_kept_shape(Name op, Index found_rows, Index found_cols, Index rows, Index cols) {
  if (found_rows != rows || found_cols != cols)
    raise(op + ": saved holds " + shape_text(found_rows, found_cols) + " numbers, wanted " + shape_text(rows, cols) +
          "; it comes from other parameters or other widths");
}
/// A head's block of what all heads keep.
template <class S>
MutView<S> kept_block(Name name, const MutView<S>& whole, Kept kind, Index count, const Dims& d, Index b, Index h) {
  const bool stat = kind == Kept::stat;
  const Index rows = stat ? d.batch * d.heads * count : d.batch * d.n, cols = stat ? d.n : d.heads * count;
  check_kept_shape(name, whole.rows, whole.cols, rows, cols);
  return stat ? whole.block((b * d.heads + h) * count, 0, count, d.n) : whole.block(b * d.n, h * count, d.n, count);
}

/// Views of one head of what an operator keeps.
template <class ViewType, class Op, class S, class In>
auto head_kept(const Op& op, Saved<Op, S>& saved, const In& head, Index b, Index h) {
  typename Op::template Keep<ViewType> one;
  const Dims& d = saved.dims;
  visit_kept<typename Op::template Keep<ViewType>>(
      op,
      [&](Kept kind, Index count, bool, auto& all, auto& view) {
        view = kept_block<S>(operator_name(op), MutView<S>(all), kind, count, d, b, h);
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

inline void check_saved(Name name, bool filled, const Dims& saved, FieldList fields) {
  if (!filled) raise(name + ": saved is empty, wanted one that a forward call has filled");
  const Dims d = dims_of(name, fields, saved.batch, saved.heads, saved.kv_heads);
  if (d.n != saved.n || d.m != saved.m)
    raise(name + ": saved belongs to n = " + text_of(saved.n) + ", m = " + text_of(saved.m) +
          ", the inputs have n = " + text_of(d.n) + ", m = " + text_of(d.m));
}

/// The same of widths, of inputs that fit each other.
inline void check_saved_columns(Name op, Index saved, Index columns) {
  if (columns != saved)
    raise(op + ": saved belongs to an output of " + text_of(saved) + " columns, that of the inputs has " +
          text_of(columns));
}
template <class Op, class S>
void check_saved_columns(const Op& op, const Saved<Op, S>& saved, const Inputs<Op, S>& in) {
  check_saved_columns(operator_name(op), saved.columns,
                      saved.dims.heads * op.out_width(head_args(in, saved.dims, 0, 0)));
}
/// All of it, for a layer that has gradients of its own to write first: of such inputs, and of the shapes that the
/// operator's parameters make.
template <class Op, class S>
void check_saved_all(const Op& op, const Saved<Op, S>& saved, const Inputs<Op, S>& in) {
  const Name name = operator_name(op);
  const Dims& d = saved.dims;
  check_saved(name, saved.filled, d, shapes_of(in));
  check_saved_columns<Op, S>(op, saved, in);
  visit_kept<typename Op::template Keep<Mat<S>>>(
      op,
      [&](Kept kind, Index count, bool, const Mat<S>& all) {
        const bool stat = kind == Kept::stat;
        check_kept_shape(name, all.rows(), all.cols(), stat ? d.batch * d.heads * count : d.batch * d.n,
                         stat ? d.n : d.heads * count);
      },
      head_args(in, d, 0, 0), saved.kept);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
