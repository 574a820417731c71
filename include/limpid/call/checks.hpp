// limpid: checks of the front doors.
// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

#include "../engine/rows.hpp"
#include "interface.hpp"
#include "saved.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

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

/// The arrays of the user's that modifiers, and the operator itself, look at, and those that they add to.
template <class Op>
auto tables_of(const Op& op) {
  return [&op](ForArray f) {
    op.modifiers().reads(f);
    if constexpr (requires { op.reads(f); }) op.reads(f);
  };
}
template <class Op>
auto gradients_of(const Op& op) {
  return [&op](ForArray f) { op.modifiers().writes(f); };
}

/// What a backward call writes, of an operator or of what has one inside, may lie neither over what is read nor over
/// arrays of the operator's modifiers. Nor may the gradients of these lie over what is read; several may be one array.
inline void refuse_backward_overlaps(Name name, ArrayList tables, ArrayList gradients, ArrayList written,
                                     ArrayList read) {
  const auto all = joined(read, tables);
  refuse_overlaps(name, written, joined(all, gradients));
  gradients([&](const NamedArray& one) { refuse_overlaps(name, arrays({one}), all); });
}
template <class Op>
void refuse_backward_overlaps(Name name, const Op& op, ArrayList written, ArrayList read) {
  refuse_backward_overlaps(name, tables_of(op), gradients_of(op), written, read);
}

/// Whether an operator's scores look at a parameter themselves; an operator round another one has those of that.
template <class Op>
bool looks_at_itself(const Op& op, std::string_view field) {
  if constexpr (requires { op.score.checks(field); }) return op.score.checks(field);
  if constexpr (requires { op.inner; }) return looks_at_itself(op.inner, field);
  return false;
}

/// Fields of a call against their roles, and how many heads have parameters of their own.
inline Index check_shapes(Name name, FieldList fields, const Dims& d) {
  check_fields(name, "", fields, d);
  Index numbers = 0, different = 1;
  fields([&](const FieldShape& v) {  // q and k miss each other; without v out would have no columns
    if (std::string_view(v.name) == "v" && v.rows == 0 && d.m > 0)
      raise(name + ": v is not given, wanted " + text_of(d.batch * d.m) + " rows");
    numbers = std::max(numbers, v.rows * v.cols);
    if (v.role == Role::head && v.rows > 1) different = d.heads;
  });
  check_counts(name, d.batch, d.heads, numbers);
  return different;
}
inline void check_out_shape(Name name, const char* out_name, Index rows, Index cols, const Dims& d, Index width) {
  if (rows != d.batch * d.n || cols != d.heads * width)
    raise(name + ": " + out_name + " is " + shape_text(rows, cols) + ", wanted " +
          shape_text(d.batch * d.n, d.heads * width));
}
/// What a call asks of one head.
inline void check_head(Name name, const char* what, Index head, Index item, const Dims& d) {
  if (head < 0 || head >= d.heads || item < 0 || item >= d.batch)
    raise(name + ": " + what + " of head " + text_of(head) + " of item " + text_of(item) + ", there are " +
          text_of(d.heads) + " heads and " + text_of(d.batch) + " items");
}

template <class Op, class S>
const Inputs<Op, S>& check_call(const Op& op, const Inputs<Op, S>& in, const Dims& d, View<S> out,
                                const char* out_name) {
  const Name name = operator_name(op);
  const Index different = check_shapes(name, shapes_of(in), d);
  const auto head = head_args(in, d, 0, 0);
  for (Index h = 0; h < different; ++h) op.check(d, head_args(in, d, 0, h));  // parameters differ from head to head
  Inputs<Op, S>::visit(
      [&](const char* field, Role role, const View<S>& v) {
        if (role == Role::head && !looks_at_itself(op, field)) check_parameters<S>(name, field, v);
      },
      in);
  op.modifiers().check(op.name, d.batch, d.heads, d.n, d.m);
  check_out_shape(name, out_name, out.rows, out.cols, d, op.out_width(head));
  return in;
}

/// Whether the rows of an operator's map have an entropy.
template <class Op, class S>
inline constexpr bool has_entropy = requires(const Op& op, const Pass<Native<S>>& pass, const Inputs<Op, S>& head,
                                             const typename Op::template Keep<View<S>>& keep, S* out) {
  op.entropy(pass, head, keep, out);
};
/// Whether an operator says that the rows of its map sum to 1, but to 0 without keys.
template <class Op>
inline constexpr bool rows_sum_to_one = [] {
  if constexpr (requires { Op::rows_sum_to_one; })
    return bool(Op::rows_sum_to_one);
  else
    return false;
}();
/// Whether an operator says that a row of its result is made of other rows of its map.
template <class Op>
inline constexpr bool needs_whole_map = [] {
  if constexpr (requires { Op::needs_whole_map; })
    return bool(Op::needs_whole_map);
  else
    return false;
}();
/// Whether its rows have a log-sum-exp.
template <class Op>
inline constexpr bool has_lse = requires(typename Op::template Keep<View<double>> keep) {
  keep.lse;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
