// limpid: how packed arrays are cut into heads, and what their shapes must be.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "../core/args.hpp"
#include "../core/at.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class Op>
Name operator_name(const Op& op) {
  return Name(op.name);
}

/// A field of a call, whatever its scalar.
struct FieldShape {
  const char* name;
  Role role;
  Index rows, cols;
  bool given;  ///< or has a shape at least
};
/// The fields of a call: a function that calls the one it is given for each of them.
using ForField = FunctionRef<void(const FieldShape&)>;
using FieldList = FunctionRef<void(ForField)>;
template <class In>
auto shapes_of(const In& in) {
  return [&in](ForField f) {
    In::visit(
        [&](const char* name, Role role, const auto& v) {
          f({name, role, v.rows, v.cols, v.given() || v.rows != 0 || v.cols != 0});
        },
        in);
  };
}

/// Numbers of the call from the first query and the first key field that are given; without key fields m = n.
inline Dims dims_of(Name op, FieldList fields, Index batch, Index heads, Index kv_heads) {
  Dims d;
  d.batch = batch, d.heads = heads, d.kv_heads = kv_heads == 0 ? heads : kv_heads;
  if (batch < 1) raise(op + ": batch is " + text_of(batch) + ", wanted at least 1");
  if (heads < 1) raise(op + ": heads is " + text_of(heads) + ", wanted at least 1");
  if (d.kv_heads < 1 || heads % d.kv_heads != 0)
    raise(op + ": heads is " + text_of(heads) + " and kv_heads " + text_of(d.kv_heads) +
          ", wanted kv_heads to divide heads");
  bool has_query = false, has_key = false;
  fields([&](const FieldShape& v) {
    if (!v.given) return;
    if ((v.role == Role::query && !has_query) || (v.role == Role::key && !has_key)) {
      if (v.rows % batch != 0)
        raise(op + ": " + v.name + " has " + text_of(v.rows) + " rows, wanted a multiple of batch = " + text_of(batch));
      (v.role == Role::query ? d.n : d.m) = v.rows / batch;
      (v.role == Role::query ? has_query : has_key) = true;
    }
  });
  if (!has_key) d.m = d.n;
  return d;
}

/// Every field against its role. `what` is put before the name, e.g. "gradient of ".
inline void check_fields(Name op, const std::string& what, FieldList fields, const Dims& d) {
  fields([&](const FieldShape& v) {
    if (!v.given) return;
    const auto fail = [&](const std::string& wanted) {
      raise(op + ": " + what + v.name + " is " + shape_text(v.rows, v.cols) + ", wanted " + wanted);
    };
    const auto rows = [&](const char* of, Index count) {
      fail(text_of(d.batch * count) + " rows (batch " + text_of(d.batch) + " x " + of + " " + text_of(count) + ")");
    };
    switch (v.role) {
      case Role::query:
        if (v.rows != d.batch * d.n) rows("n", d.n);
        if (v.cols % d.heads != 0) fail("columns a multiple of heads = " + text_of(d.heads));
        break;
      case Role::key:
        if (v.rows != d.batch * d.m) rows("m", d.m);
        if (v.cols % d.kv_heads != 0) fail("columns a multiple of kv_heads = " + text_of(d.kv_heads));
        break;
      case Role::query_side:
        if (v.rows != d.n && v.rows != d.batch * d.n) fail("n = " + text_of(d.n) + " rows, or batch times that");
        break;
      case Role::key_side:
        if (v.rows != d.m && v.rows != d.batch * d.m) fail("m = " + text_of(d.m) + " rows, or batch times that");
        break;
      case Role::head:
        if (v.rows != 1 && v.rows != d.heads) fail("1 row, or one a head (" + text_of(d.heads) + ")");
        break;
    }
  });
}

/// Where batch item b and query head h begin.
inline At at_head(const Dims& d, Index b, Index h) { return {b, h, 0, 0, d.n, d.m, d.batch, d.heads}; }

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

template <class Args>
Args head_args(const Args& all, const Dims& d, Index b, Index h) {
  Args one{};
  Args::visit([&](const char*, Role role, const auto& from, auto& to) { to = head_of(from, role, d, b, h); }, all, one);
  return one;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
