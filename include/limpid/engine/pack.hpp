// limpid: packing: rows transposed into panels and back, padded to whole vectors, or brought side by side.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../core/workspace.hpp"
#include "many_rows.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class P>
constexpr Index padded(Index count) {
  return (count + P::lanes - 1) / P::lanes * P::lanes;
}

/// to[c][i] = from(i, c), and 0 for i in [from.rows, width); to is from.cols x width, width a whole number of vectors.
template <class P>
LIMPID_NOINLINE void transpose_into(View<typename P::Scalar> from, typename P::Scalar* to, Index width) {
  using S = typename P::Scalar;
  constexpr Index w = P::lanes;
  for (Index i = 0; i < width; i += w) {
    const Index rows = std::clamp<Index>(from.rows - i, 0, w);
    Index c = 0;
    if (w > 1 && rows > 0)
      for (; c + w <= from.cols; c += w) {
        typename P::V square[w];
        const S* row = from.row(i) + c;
        if (rows == w) {
          LIMPID_UNROLL(16)
          for (Index r = 0; r < w; ++r) {
            if (r > 0) row = next_row(row, from.stride);
            square[r] = P::load(row);
            P::template prefetch<true>(row, w * from.stride);
          }
        } else {
          LIMPID_UNROLL(16)
          for (Index r = 0; r < w; ++r) {
            if (r > 0 && r < rows) row = next_row(row, from.stride);
            square[r] = r < rows ? P::load(row) : P::set(S(0));
          }
        }
        P::transpose(square);
        S* column = to + c * width + i;
        LIMPID_UNROLL(16)
        for (Index r = 0; r < w; ++r) {
          if (r > 0) column = next_row(column, width);
          P::store(column, square[r]);
        }
      }
    if (rows == 0)
      for (; c < from.cols; ++c) P::store(to + c * width + i, P::set(S(0)));
    for (; c < from.cols; ++c) {
      for (Index r = 0; r < rows; ++r) to[c * width + i + r] = from(i + r, c);
      for (Index r = rows; r < w; ++r) to[c * width + i + r] = S(0);
    }
  }
}

/// to(i, c) = from[c][i] * factor[i] for i < to.rows: the way back. from is to.cols x width.
template <class P>
LIMPID_NOINLINE void transpose_out(const typename P::Scalar* from, Index width, const typename P::Scalar* factor,
                                   MutView<typename P::Scalar> to) {
  using S = typename P::Scalar;
  constexpr Index w = P::lanes;
  for (Index i = 0; i < to.rows; i += w) {
    const Index rows = std::min<Index>(w, to.rows - i);
    Index c = 0;
    if (w > 1)
      for (; c + w <= to.cols; c += w) {
        typename P::V square[w];
        const S* column = from + c * width + i;
        LIMPID_UNROLL(16)
        for (Index r = 0; r < w; ++r) {
          if (r > 0) column = next_row(column, width);
          square[r] = P::load(column) * P::load(factor + i);
        }
        P::transpose(square);
        S* row = to.row(i) + c;
        if (rows == w) {
          LIMPID_UNROLL(16)
          for (Index r = 0; r < w; ++r) {
            if (r > 0) row = next_row(row, to.stride);
            P::store(row, square[r]);
          }
        } else {
          for (Index r = 0; r < rows; ++r) P::store(to.row(i + r) + c, square[r]);
        }
      }
    for (; c < to.cols; ++c)
      for (Index r = 0; r < rows; ++r) to(i + r, c) = from[c * width + i + r] * factor[i + r];
  }
}

/// Whether rows are better copied side by side before they are read: they lie far apart (a head among many in one
/// buffer), over so much memory and for so many passes, that page table walks cost more than the copy.
template <class V>
bool rows_are_strided(const V& rows, Index passes) {
  const Index pitch = rows.stride * static_cast<Index>(sizeof(typename V::Scalar));
  return passes >= StridedRows::passes && rows.stride > rows.cols && pitch >= StridedRows::apart &&
         rows.rows * pitch > StridedRows::memory;
}
template <class S>
View<S> pack_if_strided(const Context& context, View<S> rows, Index passes) {
  if (!rows_are_strided(rows, passes)) return rows;
  const MutView<S> copied = context.arena().matrix<S>(rows.rows, rows.cols);
  copy_rows<S>(context, rows, copied);
  return copied;
}

/// Rows as whole vectors: in place where the width allows it, else a padded copy.
template <class P, class S>
void padded_rows(View<S> block, S* copy, const S*& rows, Index& stride) {
  rows = block.data;
  stride = block.stride;
  if (block.cols % P::lanes == 0) return;
  stride = padded<P>(block.cols);
  rows = copy;
  for (Index i = 0; i < block.rows; ++i) {
    copy_row<P>(block.row(i), copy + i * stride, block.cols);
    for (Index c = block.cols; c < stride; ++c) copy[i * stride + c] = S(0);
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
