// limpid: the register tile. One routine serves every matrix product of the library.
//
// C[r][lanes] = sum_k a(r, k) * B[k][lanes]: a is broadcast entry by entry and read where it lies, B is read in
// vectors, tile_rows x tile_vectors accumulators stay in registers, and an epilogue says what becomes of them. k runs
// in order in one chain of fused multiply-adds, so an entry has the same bits wherever it stands in a tile.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Which factor of a product is read as its transpose: none, a(r, k) = a[r * lda + k]; a, a(r, k) = a[k * lda + r].
enum class Transposed { none, a, b };

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
template <class P, Transposed T, int R, int N, class Step, class Epilogue>
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
      const V av = P::set(T == Transposed::a ? a[r] : a[r * lda]);
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) acc[r][v] = one.add(av, bv[v], acc[r][v], r0 + r, (v0 + v) * P::lanes);
    }
    a += T == Transposed::a ? lda : 1;
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

/// Rows that stand anywhere in an array: row r is row list[r] of it.
struct RowList {
  const Index* list;
  Index stride;
};

/// The same with the rows of A where a list says.
template <class P, Transposed T, int R, int N, class Step, class Epilogue>
LIMPID_NOINLINE void register_tile(Index inner, const typename P::Scalar* a, const RowList& list,
                                   const typename P::Scalar* b, Index ldb, const Step& step, const Epilogue& epilogue,
                                   Index r0, Index v0) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const Step one = step;
  V acc[R][N];
  const S* rows[R];
  const Index *next = list.list, stride = list.stride;
  LIMPID_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    if constexpr (T == Transposed::none) rows[r] = a + next[r0 + r] * stride;
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) acc[r][v] = P::set(S(0));
  }
  for (Index k = 0; k < inner; ++k) {
    V bv[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) bv[v] = P::hold(P::load(b + v * P::lanes));
    const S* row = T == Transposed::a ? a + next[k] * stride + r0 : nullptr;
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      const V av = P::set(T == Transposed::a ? row[r] : rows[r][k]);
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) acc[r][v] = one.add(av, bv[v], acc[r][v], r0 + r, (v0 + v) * P::lanes);
    }
    b += ldb;
  }
  const Epilogue finish = epilogue;
  if constexpr (requires { finish.template tile<R, N>(r0, v0, acc); }) {
    finish.template tile<R, N>(r0, v0 * P::lanes, acc);
  } else {
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) finish_row<P, N>(finish, r0 + r, v0 * P::lanes, acc[r]);
  }
}

template <class P, Transposed T, int N, class Step, class Epilogue, class Rows>
void tile_rows(Index rows, Index inner, const typename P::Scalar* a, const Rows& lda, const typename P::Scalar* b,
               Index ldb, const Step& by, const Epilogue& epilogue, Index v0) {
  constexpr int R = P::tile_rows;
  Index step = 0;  // a list says itself where its rows are
  if constexpr (std::is_same_v<Rows, Index>) step = T == Transposed::a ? 1 : lda;
  Index r = 0;
  // of eight or nine that are left two tiles of four are less work than one of six and some of one
  const auto fits = [&] { return r + R <= rows && !(R == 6 && (rows - r == 8 || rows - r == 9)); };
  for (; fits(); r += R) register_tile<P, T, R, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
  if constexpr (R > 4)
    for (; r + 4 <= rows; r += 4) register_tile<P, T, 4, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
  for (; r < rows; ++r) register_tile<P, T, 1, N>(inner, a + r * step, lda, b, ldb, by, epilogue, r, v0);
}

template <class P, Transposed T, class Rows, class Epilogue, class Step>
LIMPID_INLINE void product_of_rows(Index rows, Index vectors, Index inner, const typename P::Scalar* a, const Rows& lda,
                                   const typename P::Scalar* b, Index ldb, const Epilogue& epilogue, const Step& by) {
  constexpr int N = P::tile_vectors;
  Index v = 0;
  for (; v + N <= vectors; v += N) tile_rows<P, T, N>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
  if constexpr (N > 2)
    if (v + 2 <= vectors) {
      tile_rows<P, T, 2>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
      v += 2;
    }
  for (; v < vectors; ++v) tile_rows<P, T, 1>(rows, inner, a, lda, b + v * P::lanes, ldb, by, epilogue, v);
}

/// C = A B over `rows` rows and `vectors` vectors; epilogue(row, first lane, accumulator) is called once for each. by:
/// what is summed in place of products.
template <class P, Transposed T, class Epilogue, class Step = AddProduct<P>>
void product(Index rows, Index vectors, Index inner, const typename P::Scalar* a, Index lda,
             const typename P::Scalar* b, Index ldb, const Epilogue& epilogue, const Step& by = {}) {
  product_of_rows<P, T>(rows, vectors, inner, a, lda, b, ldb, epilogue, by);
}
/// The same with the rows of A as it lies where a list says.
template <class P, Transposed T, class Epilogue, class Step = AddProduct<P>>
void product(Index rows, Index vectors, Index inner, const typename P::Scalar* a, const RowList& list,
             const typename P::Scalar* b, Index ldb, const Epilogue& epilogue, const Step& by = {}) {
  product_of_rows<P, T>(rows, vectors, inner, a, list, b, ldb, epilogue, by);
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

/// The same for sums that begin with the first tile: what was there before counts for nothing.
template <class P>
struct StoreOrAdd {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  bool add;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    P::store(p, add ? P::load(p) + acc : acc);
  }
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
