// limpid: the register tile. One routine serves every matrix product of the library.
// SPDX-License-Identifier: MIT
//
// C[r][lanes] = sum_k a(r, k) * B[k][lanes]: a is broadcast entry by entry and read where it lies, B is read in vectors,
// tile_rows x tile_vectors accumulators stay in registers, and an epilogue says what becomes of them. k runs in order in one
// chain of fused multiply-adds, so an entry has the same bits wherever it stands in a tile.
#pragma once

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// How a lies in memory: rows, a(r, k) = a[r * lda + k]; columns, a(r, k) = a[k * lda + r].
enum class Walk { rows, columns };

// Not inlined: inside a larger loop g++ spills the accumulators.
template <class P, Walk W, int R, int N, class Epilogue>
LIMPID_NOINLINE void register_tile(Index inner, const typename P::Scalar* a, Index lda, const typename P::Scalar* b,
                                   Index ldb, const Epilogue& epilogue, Index r0, Index v0) {
  using V = typename P::V;
  V acc[R][N];
  LIMPID_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) acc[r][v] = P::set(typename P::Scalar(0));
  }
  for (Index k = 0; k < inner; ++k) {
    V bv[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) bv[v] = P::load(b + v * P::lanes);
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      const V av = P::set(W == Walk::rows ? a[r * lda] : a[r]);
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) acc[r][v] = P::fma(av, bv[v], acc[r][v]);
    }
    a += W == Walk::rows ? 1 : lda;
    b += ldb;
  }
  LIMPID_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) epilogue(r0 + r, (v0 + v) * P::lanes, acc[r][v]);
  }
}

template <class P, Walk W, int N, class Epilogue>
void tile_rows(Index rows, Index inner, const typename P::Scalar* a, Index lda, const typename P::Scalar* b, Index ldb,
               const Epilogue& epilogue, Index v0) {
  constexpr int R = P::tile_rows;
  const Index step = W == Walk::rows ? lda : 1;
  Index r = 0;
  for (; r + R <= rows; r += R) register_tile<P, W, R, N>(inner, a + r * step, lda, b, ldb, epilogue, r, v0);
  if constexpr (R > 4)
    if (r + 4 <= rows) {
      register_tile<P, W, 4, N>(inner, a + r * step, lda, b, ldb, epilogue, r, v0);
      r += 4;
    }
  for (; r < rows; ++r) register_tile<P, W, 1, N>(inner, a + r * step, lda, b, ldb, epilogue, r, v0);
}

/// C = A B over `rows` rows and `vectors` vectors; epilogue(row, first lane, accumulator) is called once for each.
template <class P, Walk W, class Epilogue>
void product(Index rows, Index vectors, Index inner, const typename P::Scalar* a, Index lda,
             const typename P::Scalar* b, Index ldb, const Epilogue& epilogue) {
  constexpr int N = P::tile_vectors;
  Index v = 0;
  for (; v + N <= vectors; v += N) tile_rows<P, W, N>(rows, inner, a, lda, b + v * P::lanes, ldb, epilogue, v);
  if constexpr (N > 2)
    if (v + 2 <= vectors) {
      tile_rows<P, W, 2>(rows, inner, a, lda, b + v * P::lanes, ldb, epilogue, v);
      v += 2;
    }
  for (; v < vectors; ++v) tile_rows<P, W, 1>(rows, inner, a, lda, b + v * P::lanes, ldb, epilogue, v);
}

/// Rows of up to `lanes` entries more than `from` has become whole vectors: to[c][..] = from(.., c), zero beyond.
/// to is cols x width with width >= from.rows.
template <class S>
void transpose_into(View<S> from, S* to, Index width) {
  constexpr Index block = 16;
  for (Index c0 = 0; c0 < from.cols; c0 += block) {
    const Index c1 = c0 + block < from.cols ? c0 + block : from.cols;
    for (Index i = 0; i < from.rows; ++i) {
      const S* row = from.row(i);
      for (Index c = c0; c < c1; ++c) to[c * width + i] = row[c];
    }
    for (Index c = c0; c < c1; ++c)
      for (Index i = from.rows; i < width; ++i) to[c * width + i] = S(0);
  }
}

template <class P>
constexpr Index padded(Index count) {
  return (count + P::lanes - 1) / P::lanes * P::lanes;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
