// limpid: keys and values in pages of fixed size, which stand in any order: read row by row from a list, or copied.
//
// A view of such an array has the shape of all rows, the data of page 0 and the stride within a page. Only the sweeps
// of a policy InPages may be given one.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "many_rows.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// The vectors of a sweep over keys in pages.
template <class P>
struct InPages : P {
  using Plain = P;
};
template <class P>
inline constexpr bool in_pages = false;
template <class P>
inline constexpr bool in_pages<InPages<P>> = true;

/// Rows where a list says. The stride is that of the list: one.
template <class S>
struct ListedRows {
  using Scalar = S;
  const S* data;
  Index rows, cols;
  const Index* list;
  static constexpr Index stride = 1;
  const S* row(Index i) const { return data + list[i]; }
  ListedRows block(Index i, Index j, Index r, Index c) const { return {data + j, r, c, list + i}; }
};
template <class Rows>
inline constexpr bool are_listed = false;
template <class S>
inline constexpr bool are_listed<ListedRows<S>> = true;
template <class Rows>
bool rows_touch(const Rows& rows) {
  return !are_listed<Rows> && rows.stride == rows.cols;
}

/// A row among others, as one goes from row to row; `ahead` and `further` make what lies ahead of it.
template <class S>
struct PlaceInArray {
  const S* at;
  const S* row() const { return at; }
  const S* ahead(const S* here, Index) const { return here; }
  static Index further(Index rows) { return rows; }
  void move(Index by) { at += by; }
};
template <class S>
struct PlaceInList {
  const S* data;
  const Index* at;
  const S* row() const { return data + *at; }
  const S* ahead(const S*, Index rows) const { return data + at[rows]; }
  static Index further(Index) { return 0; }
  void move(Index by) { at += by; }
};
template <class S>
PlaceInArray<S> place_of(const View<S>& rows) {
  return {rows.data};
}
template <class S>
PlaceInList<S> place_of(const ListedRows<S>& rows) {
  return {rows.data, rows.list};
}

/// f(rows, first) for rows [begin, end) page by page: those of one page, and the number of the first among all.
template <class S, class F>
void for_pages(const KeyPages& pages, Index page_stride, View<S> v, Index begin, Index end, F&& f) {
  for (Index j = begin; j < end;) {
    const Index row = j % pages.rows, count = std::min(pages.rows - row, end - j);
    f(View<S>(v.data + pages.number[j / pages.rows] * page_stride + row * v.stride, count, v.cols, v.stride), j);
    j += count;
  }
}

/// Rows from `start` on, side by side.
template <class S>
View<S> copied_pages(const Context& context, const KeyPages& pages, Index page_stride, View<S> v, Index start = 0) {
  const MutView<S> to = context.arena().matrix<S>(v.rows - start, v.cols);
  for_rows(context, to.rows, [&](Index begin, Index end) {
    for_pages(pages, page_stride, v, start + begin, start + end, [&](const View<S>& rows, Index first) {
      for (Index r = 0; r < rows.rows; ++r) copy_row<Native<S>>(rows.row(r), to.row(first - start + r), v.cols);
    });
  });
  return to;
}

template <class P, class S = typename P::Scalar>
bool pages_are_finite(const Context& context, const KeyPages& pages, Index page_stride, View<S> v) {
  std::atomic<bool> finite{true};
  for_rows(context, v.rows, [&](Index begin, Index end) {
    for_pages(pages, page_stride, v, begin, end, [&](const View<S>& rows, Index) {
      if (finite && !all_finite<P>(rows)) finite = false;
    });
  });
  return finite;
}

/// Rows [begin, end) of keys and of values, for a decode.
struct InOneArray {
  template <class S>
  std::pair<View<S>, View<S>> operator()(View<S> k, View<S> x, Index begin, Index end, Arena&) const {
    return {k.block(begin, 0, end - begin, k.cols), x.block(begin, 0, end - begin, x.cols)};
  }
};
struct RowsOfPages {
  const KeyPages& pages;
  template <class S>
  std::pair<ListedRows<S>, ListedRows<S>> operator()(View<S> k, View<S> x, Index begin, Index end, Arena& arena) const {
    const Index* keys = list(k, pages.k_stride, begin, end, arena);
    const bool alike = k.stride == x.stride && pages.k_stride == pages.v_stride;
    return {{k.data, end - begin, k.cols, keys},
            {x.data, end - begin, x.cols, alike ? keys : list(x, pages.v_stride, begin, end, arena)}};
  }

 private:
  /// Where rows begin, and as many behind them as a prefetch may ask for.
  template <class S>
  const Index* list(View<S> v, Index page_stride, Index begin, Index end, Arena& arena) const {
    const Index behind = DecodeBlocks::rows_ahead<S>(v.cols), known = std::min(v.rows, end + behind);
    Index* to = arena.take<Index>(end - begin + behind);
    for_pages(pages, page_stride, v, begin, known, [&](const View<S>& rows, Index first) {
      for (Index r = 0; r < rows.rows; ++r) to[first - begin + r] = rows.row(r) - v.data;
    });
    std::fill(to + (known - begin), to + (end - begin + behind), to[known - begin - 1]);
    return to;
  }
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
