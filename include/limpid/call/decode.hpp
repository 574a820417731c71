// limpid: the front door for decoding: keys and values in pages of a pool.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>

#include "../engine/pages.hpp"
#include "forward.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Keys or values in pages of fixed size, by strides: row r of page p has key head g's numbers, `width` of them, at
/// data + p page_stride + g head_stride + r row_stride. So a pool of pages x rows x heads x d is read, one of pages x
/// heads x rows x d, and one that has keys beside values (their data apart, page_stride that of both).
template <class S>
struct PagePool {
  const S* data = nullptr;
  Index pages = 0, rows = 0, width = 0;  ///< how many pages, rows of a page, columns of a head
  Index page_stride = 0, head_stride = 0, row_stride = 0;
};

/// The keys and values of B items: key j of item b is row j % rows of page table(b, j / rows). An item has lengths(b)
/// keys, 0 or more; entries of the table behind them are not looked at.
template <class S>
struct Pages {
  PagePool<S> k, v;
  View<Index> table;    ///< B x as many pages as the longest item wants, or more
  View<Index> lengths;  ///< B numbers, a row or a column
};

namespace detail {

template <class S>
Index page_length(const Pages<S>& pages, Index b) {
  return pages.lengths.rows == 1 ? pages.lengths(0, b) : pages.lengths(b, 0);
}

/// All that a pool reaches, as one row.
template <class S>
View<S> extent_of(const PagePool<S>& pool, Index kv_heads) {
  if (pool.pages < 1 || pool.rows < 1 || pool.width < 1) return {};
  const Index last = (pool.pages - 1) * pool.page_stride + (kv_heads - 1) * pool.head_stride +
                     (pool.rows - 1) * pool.row_stride + pool.width;
  return {pool.data, 1, last, last};
}

template <class S>
void check_pool(Name op, const char* what, const PagePool<S>& pool, Index kv_heads) {
  const auto fail = [&](const char* field, Index found, const std::string& wanted) {
    raise(op + (std::string(": ") + what + " of the pages has " + field + " " + text_of(found) + ", wanted " + wanted));
  };
  if (pool.rows < 1) fail("rows", pool.rows, "at least 1");
  if (pool.pages < 0) fail("pages", pool.pages, "0 or more");
  if (pool.width < 0) fail("width", pool.width, "0 or more");
  const std::pair<const char*, std::pair<Index, Index>> strides[] = {{"row_stride", {pool.row_stride, pool.rows}},
                                                                     {"head_stride", {pool.head_stride, kv_heads}},
                                                                     {"page_stride", {pool.page_stride, pool.pages}}};
  for (const auto& [field, stride] : strides) {
    if (stride.second > 1 && stride.first < pool.width)
      fail(field, stride.first, "at least its width " + text_of(pool.width));
    if (stride.second > 0 && stride.first > Index(most_entries) / stride.second)
      fail(field, stride.first, "at most " + text_of(Index(most_entries) / stride.second));
  }
}

template <class S>
bool same_pool(const PagePool<S>& a, const PagePool<S>& b) {
  return a.data == b.data && a.width == b.width && a.page_stride == b.page_stride && a.head_stride == b.head_stride &&
         a.row_stride == b.row_stride;
}

template <class S>
void check_pages(Name op, const Pages<S>& pages, const Dims& d) {
  check_pool(op, "k", pages.k, d.kv_heads), check_pool(op, "v", pages.v, d.kv_heads);
  if (pages.k.rows != pages.v.rows || pages.k.pages != pages.v.pages)
    raise(op + (": v of the pages has " + text_of(pages.v.pages) + " pages of " + text_of(pages.v.rows) +
                " rows, wanted " + text_of(pages.k.pages) + " of " + text_of(pages.k.rows) + " as k"));
  if (pages.lengths.rows * pages.lengths.cols != d.batch || (pages.lengths.rows != 1 && pages.lengths.cols != 1))
    raise(op + (": lengths of the pages is " + shape_text(pages.lengths.rows, pages.lengths.cols) +
                ", wanted a number for each of " + text_of(d.batch) + " items"));
  if (pages.table.rows != d.batch)
    raise(op + (": the table of pages has " + text_of(pages.table.rows) + " rows, wanted one for each of " +
                text_of(d.batch) + " items"));
  const Index rows = pages.k.rows, most = std::min(pages.table.cols, Index(most_entries) / rows) * rows;
  for (Index b = 0; b < d.batch; ++b) {
    const Index length = page_length(pages, b);
    if (length < 0 || length > most)
      raise(op + (": item " + text_of(b) + " of the pages has " + text_of(length) + " keys, wanted 0 to " +
                  text_of(most) + ", " + text_of(pages.table.cols) + " pages of " + text_of(rows) + " rows"));
    for (Index p = 0; p < (length + rows - 1) / rows; ++p)
      if (pages.table(b, p) < 0 || pages.table(b, p) >= pages.k.pages)
        raise(op + (": page " + text_of(p) + " of item " + text_of(b) + " is number " + text_of(pages.table(b, p)) +
                    ", wanted 0 to " + text_of(pages.k.pages - 1) + ", as the pool has " + text_of(pages.k.pages)));
  }
}

/// Whether an operator says that its one field of keys holds the values, too.
template <class Op>
constexpr bool keys_are_values() {
  if constexpr (requires { Op::keys_are_values; }) return Op::keys_are_values;
  return false;
}
/// one_array: of keys and values.
inline bool is_paged(std::string_view field, Role role, bool one_array) {
  return one_array ? role == Role::key : field == "k" || field == "v";
}

inline void refuse_keys(Name op, FieldList fields, bool one_array) {
  fields([&](const FieldShape& v) {
    if (v.role != Role::key || !v.given) return;
    if (is_paged(v.name, v.role, one_array))
      raise(op + (std::string(": ") + v.name + " is given beside pages, wanted one of them"));
    raise(op + (std::string(": ") + v.name + " is given, rows of keys that pages do not hold, wanted none"));
  });
}

/// The inputs of a call whose items have m keys: k and v with their shapes, not where their rows are.
template <class Op, class S>
Inputs<Op, S> with_keys(Inputs<Op, S> in, const Pages<S>& pages, const Dims& d) {
  Inputs<Op, S>::visit(
      [&](const char* field, Role role, View<S>& v) {
        if (role == Role::key_side) {
          if (v.rows > d.m) v = v.block(0, 0, d.m, v.cols);
        } else if (is_paged(field, role, keys_are_values<Op>())) {
          const PagePool<S>& pool = std::string_view(field) == "v" ? pages.v : pages.k;
          v = {pool.data, d.batch * d.m, d.kv_heads * pool.width, pool.row_stride};
        }
      },
      in);
  return in;
}

/// Whether an operator says that it reads keys and values by `smooth` alone.
template <class Op>
constexpr bool reads_pages() {
  if constexpr (requires { Op::reads_pages; }) return Op::reads_pages;
  return false;
}

template <class P, class Op, class S = typename P::Scalar>
void decode_with(const Op& op, const Inputs<Op, S>& in, const Pages<S>& pages, MutView<S> out,
                 const Call<Op, S>& call) {
  constexpr bool one_array = keys_are_values<Op>();
  static_assert(has_qkv<Op, S>() || one_array,
                "limpid: keys and values in pages are for an operator of q, k and v, or one whose keys are values");
  const Name name = operator_name(op);
  refuse_keys(name, shapes_of(in), one_array);
  Dims d = dims_of(name, shapes_of(in), call.batch, call.heads, call.kv_heads);
  check_pages(name, pages, d);
  if (one_array && !same_pool(pages.k, pages.v))
    raise(name + ": k and v of the pages are two pools, wanted one, as keys are the values");
  if (call.saved) raise(name + (": saved is given with pages, wanted none: backward is for keys in one array"));
  if (call.lse && !has_lse<Op>) raise(name + ": lse is asked for, but its weights are not divided by a row's sum");
  if (call.lse && call.lse == call.map) raise(name + ": lse and map are one matrix, wanted two");
  if (call.map) check_head(name, "map was asked", call.head, call.item, d);
  double flop = 0;
  for (Index b = 0; b < d.batch; ++b) {
    d.m = page_length(pages, b);
    const auto item = with_keys<Op, S>(in, pages, d);
    if (b == 0 || d.m != page_length(pages, b - 1)) check_call<Op, S>(op, item, d, out, "out");
    flop += flop_of(shapes_of(item), d) / double(d.batch);
  }
  const auto asked = [](const Mat<S>* m) { return m ? View<S>(*m) : View<S>(); };
  refuse_overlaps(name, arrays({{"out", out}, {"lse", asked(call.lse)}, {"map", asked(call.map)}}),
                  joined(fields_of(in), tables_of(op),
                         arrays({{"k of the pages", extent_of(pages.k, d.kv_heads)},
                                 {"v of the pages", extent_of(pages.v, d.kv_heads)},
                                 {"the table of pages", pages.table},
                                 {"lengths of the pages", pages.lengths}})));
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::closed);
  if (call.lse) call.lse->resize(d.batch * d.heads, d.n);
  if (call.map) call.map->resize(d.n, page_length(pages, call.item));

  for_heads(d.batch * d.heads, true, flop, workspace, call.executor, [&](Index t, const Context& context) {
    const Index b = t / d.heads, h = t % d.heads, g = h / (d.heads / d.kv_heads);
    Dims own_dims = d;
    own_dims.m = page_length(pages, b);
    auto head = head_args(with_keys<Op, S>(in, pages, own_dims), own_dims, b, h);
    const KeyPages table{pages.table.row(b), pages.k.rows, pages.k.page_stride, pages.v.page_stride};
    const auto rows_of = [&](const PagePool<S>& pool) {
      return View<S>(pool.data + g * pool.head_stride, own_dims.m, pool.width, pool.row_stride);
    };
    const At at = at_head(own_dims, b, h);
    if constexpr (reads_pages<Op>())
      if (!call.map || b != call.item || h != call.head) {
        head.k = rows_of(pages.k), head.v = rows_of(pages.v);
        return forward_head<InPages<P>>(op, Pass<InPages<P>>{context.with(table), at}, head, out, call);
      }
    const View<S> k = copied_pages(context, table, table.k_stride, rows_of(pages.k));
    const View<S> v = one_array ? k : copied_pages(context, table, table.v_stride, rows_of(pages.v));
    Inputs<Op, S>::visit(
        [&](const char* field, Role role, View<S>& of) {
          if (is_paged(field, role, one_array)) of = std::string_view(field) == "v" ? v : k;
        },
        head);
    forward_head<P>(op, Pass<P>{context, at}, head, out, call);
  });
}

}  // namespace detail

/// out = op(in) for a few queries of every item over keys and values that lie in pages: the same to the last bit as
/// forward over each item's keys in one array, masks, biases and positions as there with m the item's own number of
/// keys. in has everything but k and v; what stands beside keys (pk of nlm) is the same for all items, a row for each
/// key of the longest. For mssa, whose cache is keys and values, k and v are one pool. call as forward's, but saved, as
/// there is no backward pass. Softmax of dot products, pid over it and the operators of two maps, masked or not, read
/// pages where they lie when queries are few and neither lse nor map is asked for; all else works on a copy of one
/// head's keys and values, O(m (d + dv)) memory a worker. Throws ShapeError, before anything is written, as forward
/// does, and where k or v is given, a number of a page is not one of the pool's, an item has more keys than its row of
/// the table has room for, or pools, table and lengths do not fit each other.
template <class Op, class Out>
void decode(const Op& op, const Inputs<Op, detail::ScalarOf<Out>>& in, const Pages<detail::ScalarOf<Out>>& pages,
            Out&& out, const Call<Op, detail::ScalarOf<Out>>& call = {}) {
  using S = detail::ScalarOf<Out>;
  if constexpr (detail::check_operator<Op, S>())
    detail::decode_with<detail::Native<S>>(op, in, pages, MutView<S>(std::forward<Out>(out)), call);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
