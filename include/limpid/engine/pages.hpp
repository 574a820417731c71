// limpid: keys and values in pages of fixed size, which stand in any order.
// SPDX-License-Identifier: MIT
#pragma once

#include "many_rows.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Where the keys of an item are: key j in row j % rows of page number[j / rows].
struct PageTable {
  const Index* number;
  Index rows;
};

/// Rows [begin, end) of an array in pages, one below the other. v: the array with what all its pages have in common,
/// data that of page 0, and stride within a page.
template <class S>
void copy_pages(const PageTable& table, Index page_stride, View<S> v, Index begin, Index end, MutView<S> to) {
  for (Index j = begin; j < end;) {
    const Index row = j % table.rows, count = std::min(table.rows - row, end - j);
    const View<S> page(v.data + table.number[j / table.rows] * page_stride, table.rows, v.cols, v.stride);
    for (Index r = 0; r < count; ++r) copy_row<Native<S>>(page.row(row + r), to.row(j - begin + r), v.cols);
    j += count;
  }
}
template <class S>
View<S> copied_pages(const Context& context, const PageTable& table, Index page_stride, View<S> v) {
  const MutView<S> to = context.arena().matrix<S>(v.rows, v.cols);
  for_rows(context, v.rows, [&](Index begin, Index end) {
    copy_pages(table, page_stride, v, begin, end, to.block(begin, 0, end - begin, v.cols));
  });
  return to;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
