// limpid: the register tile. One routine serves every matrix product of the library.
// SPDX-License-Identifier: MIT
//
// C[r][lanes] = sum_k a(r, k) * B[k][lanes]: a is broadcast entry by entry and read where it lies, B is read in
// vectors, tile_rows x tile_vectors accumulators stay in registers, and an epilogue says what becomes of them. k runs
// in order in one chain of fused multiply-adds, so an entry has the same bits wherever it stands in a tile.
#pragma once

#include <algorithm>

#include "simd.hpp"
#include "workspace.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// How a lies in memory: rows, a(r, k) = a[r * lda + k]; columns, a(r, k) = a[k * lda + r].
enum class Walk { rows, columns };

/// Hands a row of accumulators to an epilogue, at once where it takes them so (`row`), else one by one.
template <class P, int N, class Epilogue>
LIMPID_INLINE void finish_row(const Epilogue& epilogue, Index r, Index lane, const typename P::V* acc) {
  if constexpr (requires { epilogue.template row<N>(r, lane, acc); }) {
    epilogue.template row<N>(r, lane, acc);
  } else {
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) epilogue(r, lane + v * P::lanes, acc[v]);
  }
}

/// What one step of the inner loop adds to the accumulator at (row, lane): here the product.
template <class P>
struct AddProduct {
  LIMPID_INLINE static typename P::V add(const typename P::V& a, const typename P::V& b, const typename P::V& acc,
                                         Index, Index) {
    return P::fma(a, b, acc);
  }
};

// Not inlined: inside a larger loop g++ spills the accumulators.
template <class P, Walk W, int R, int N, class Step, class Epilogue>
LIMPID_NOINLINE void register_tile(Index inner, const typename P::Scalar* a, Index lda, const typename P::Scalar* b,
                                   Index ldb, const Step& step, const Epilogue& epilogue, Index r0, Index v0) {
  using V = typename P::V;
  const Step one = step;
  V acc[R][N];
  LIMPID_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) acc[r][v] = P::set(typename P::Scalar(0));
  }
  for (Index k = 0; k < inner; ++k) {
    V bv[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) bv[v] = P::hold(P::load(b + v * P::lanes));
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      const V av = P::set(W == Walk::rows ? a[r * lda] : a[r]);
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) acc[r][v] = one.add(av, bv[v], acc[r][v], r0 + r, (v0 + v) * P::lanes);
    }
    a += W == Walk::rows ? 1 : lda;
    b += ldb;
  }
  const Epilogue finish = epilogue;  // a copy of its own: what is stored cannot change it
  // All at once where it takes them so (`tile`): an epilogue with many addresses would keep them in vector registers.
  if constexpr (requires { finish.template tile<R, N>(r0, v0, acc); }) {
    finish.template tile<R, N>(r0, v0 * P::lanes, acc);
  } else {
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) finish_row<P, N>(finish, r0 + r, v0 * P::lanes, acc[r]);
  }
}

template <class P, Walk W, int N, class Step, class Epilogue>
void tile_rows(Index rows, Index inner, const typename P::Scalar* a, Index lda, const typename P::Scalar* b, Index ldb,
               const Step& by, const Epilogue& epilogue, Index v0) {
  constexpr int R = P::tile_rows;
  const Index step = W == Walk::rows ? lda : 1;
  Index r = 0;
  for (; r + R <= rows; r += R) register_tile<P, W, R, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
  if constexpr (R > 4)
    if (r + 4 <= rows) {
      register_tile<P, W, 4, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
      r += 4;
    }
  for (; r < rows; ++r) register_tile<P, W, 1, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
}

/// C = A B over `rows` rows and `vectors` vectors; epilogue(row, first lane, accumulator) is called once for each. by:
/// what is summed in place of products.
template <class P, Walk W, class Epilogue, class Step = AddProduct<P>>
void product(Index rows, Index vectors, Index inner, const typename P::Scalar* a, Index lda,
             const typename P::Scalar* b, Index ldb, const Epilogue& epilogue, const Step& by = {}) {
  constexpr int N = P::tile_vectors;
  Index v = 0;
  for (; v + N <= vectors; v += N) tile_rows<P, W, N>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
  if constexpr (N > 2)
    if (v + 2 <= vectors) {
      tile_rows<P, W, 2>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
      v += 2;
    }
  for (; v < vectors; ++v) tile_rows<P, W, 1>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
}

template <class P>
struct Accumulate {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    P::store(p, P::load(p) + acc);
  }
};

/// to[c][i] = from(i, c), zero for i from from.rows to width; to is from.cols x width, width whole vectors.
template <class P>
LIMPID_NOINLINE void transpose_into(View<typename P::Scalar> from, typename P::Scalar* to, Index width) {
  using S = typename P::Scalar;
  constexpr Index w = P::lanes;
  for (Index i = 0; i < width; i += w) {
    const Index rows = std::clamp<Index>(from.rows - i, 0, w);
    Index c = 0;
    if (w > 1 && rows == w)
      for (; c + w <= from.cols; c += w) {
        typename P::V square[w];
        LIMPID_UNROLL(16)
        for (Index r = 0; r < w; ++r) square[r] = P::load(from.row(i + r) + c);
        P::transpose(square);
        LIMPID_UNROLL(16)
        for (Index r = 0; r < w; ++r) P::store(to + (c + r) * width + i, square[r]);
      }
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
  constexpr Index w = P::lanes;
  for (Index i = 0; i < to.rows; i += w) {
    const Index rows = std::min<Index>(w, to.rows - i);
    Index c = 0;
    if (w > 1)
      for (; c + w <= to.cols; c += w) {
        typename P::V square[w];
        LIMPID_UNROLL(16)
        for (Index r = 0; r < w; ++r) square[r] = P::load(from + (c + r) * width + i) * P::load(factor + i);
        P::transpose(square);
        if (rows == w) {
          LIMPID_UNROLL(16)
          for (Index r = 0; r < w; ++r) P::store(to.row(i + r) + c, square[r]);
        } else {
          for (Index r = 0; r < rows; ++r) P::store(to.row(i + r) + c, square[r]);
        }
      }
    for (; c < to.cols; ++c)
      for (Index r = 0; r < rows; ++r) to(i + r, c) = from[c * width + i + r] * factor[i + r];
  }
}

/// Whole rows at once: to = factor * from, or to += factor * from. Rows written to are far as a rule, and asked for.
template <class P>
LIMPID_NOINLINE void deliver_scaled(View<typename P::Scalar> from, typename P::Scalar factor,
                                    MutView<typename P::Scalar> to, bool accumulate) {
  using V = typename P::V;
  const V f = P::set(factor);
  for (Index i = 0; i < to.rows; ++i) {
    const auto* x = from.row(i);
    auto* y = to.row(i);
    Index c = 0;
    for (Index l = 0; l < to.cols; l += line_of<typename P::Scalar>) P::fetch(y + l, 16 * to.stride);
    if (accumulate) {
      for (; c + P::lanes <= to.cols; c += P::lanes) P::store(y + c, P::load(y + c) + f * P::load(x + c));
      for (; c < to.cols; ++c) y[c] += factor * x[c];
    } else {
      for (; c + P::lanes <= to.cols; c += P::lanes) P::store(y + c, f * P::load(x + c));
      for (; c < to.cols; ++c) y[c] = factor * x[c];
    }
  }
}

/// Bytes of the second cache, about: arrays larger than this are read from farther away.
inline constexpr Index second_cache = 1 << 20;

/// Whether rows lie far apart, as many heads side by side in one buffer do, over so much memory, and are to be passed
/// over so often, that walks through page tables cost more than a copy of them side by side.
template <class V>
bool rows_are_far(const V& rows, Index passes) {
  constexpr Index few_passes = 8, apart = 1024, near = second_cache / 4;  // bytes; apart: a quarter page
  const Index pitch = rows.stride * static_cast<Index>(sizeof(typename V::Scalar));
  return passes >= few_passes && rows.stride > rows.cols && pitch >= apart && rows.rows * pitch > near;
}
template <class S>
View<S> near_rows(Arena& arena, View<S> rows, Index passes) {
  if (!rows_are_far(rows, passes)) return rows;
  const MutView<S> copied = arena.matrix<S>(rows.rows, rows.cols);
  copy<S>(rows, copied);
  return copied;
}

template <class S>
void clear(S* data, Index count) {
  std::fill(data, data + count, S(0));
}

template <class P>
constexpr Index padded(Index count) {
  return (count + P::lanes - 1) / P::lanes * P::lanes;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
