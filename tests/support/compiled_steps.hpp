// limpid: the steps of the sweeps that know neither operator nor modifiers: most of what tests run. Declared here and
// compiled once, with optimisation, in compiled_steps.cpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/engine/gemm.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>

// What of the sweeps knows neither operator nor modifiers: a product with every
// epilogue that forward and backward have, and the steps of few queries. P: Native<S>.
#define LIMPID_TEST_PRODUCT(EXTERN, S, P, SIDE, STEP, ...)                 \
  EXTERN template void product<P, Transposed::SIDE, __VA_ARGS__, STEP<P>>( \
      Index, Index, Index, const S*, Index, const S*, Index, const __VA_ARGS__&, const STEP<P>&);
#define LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, N)                                                     \
  EXTERN template void online_step<P, N>(S*, Index, Index, const S*, S*, S*, S*, const Prefetch<S>&, \
                                         const std::nullptr_t&);                                     \
  EXTERN template void online_step<P, N>(S*, Index, Index, const S*, S*, S*, S*, const Prefetch<S>&, \
                                         const FunctionRef<void()>&);
#define LIMPID_TEST_SWEEPS(EXTERN, S, P)                                                                           \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, Rescale<P>)                                                     \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, Accumulate<P>)                                                  \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, StoreOrAdd<P>)                                                  \
  LIMPID_TEST_PRODUCT(EXTERN, S, GemmTile<P>, a, AddProduct, StoreInside<GemmTile<P>>)                             \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddDifference, Accumulate<P>)                                               \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddDifference, Accumulate<P>)                                            \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddSquare, StorePart<P, true>)                                           \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddSquare, StorePart<P, false>)                                          \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StorePart<P, true>)                                          \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StorePart<P, false>)                                         \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreFarPart<P, true>)                                       \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreFarPart<P, false>)                                      \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, Accumulate<P>)                                               \
  LIMPID_TEST_PRODUCT(EXTERN, S, GemmTile<P>, none, AddProduct, StoreInside<GemmTile<P>>)                          \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreScores<P>)                                              \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, AddScores<P>)                                                \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreWithLse<P>)                                             \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreAndFindTop<P, true>)                                    \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreAndFindTop<P, false>)                                   \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreByRow<P>>)                              \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreWeights<P>>)                            \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, Accumulate<P>>)                              \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 1, true, SoftmaxWeight>>)  \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 1, false, SoftmaxWeight>>) \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 2, true, SoftmaxWeight>>)  \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 2, false, SoftmaxWeight>>) \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 1, true, SigmoidWeight>>)  \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, PrefetchNext<P, StoreGradients<P, 1, false, SigmoidWeight>>) \
  LIMPID_TEST_PRODUCT(EXTERN, S, GemmTile<P>, b, AddProduct, StoreInside<GemmTile<P>>)                             \
  LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, 1)                                                                         \
  LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, P::tile_vectors)                                                           \
  EXTERN template void row_dots<P>(View<S>, View<S>, S*);                                                          \
  EXTERN template void row_dots<P>(const Context&, View<S>, View<S>, S*);                                          \
  EXTERN template void transpose_into<P>(View<S>, S*, Index);                                                      \
  EXTERN template void transpose_out<P>(const S*, Index, const S*, MutView<S>);
// Few queries; quads where a vector holds four numbers. Rows of pages with the same optimisation as those of one array:
// their bits are compared.
#define LIMPID_TEST_DECODE_WEIGHTS(EXTERN, S, P, N) EXTERN template void decode_weights<P, N>(S*, Index, S*, S*, S*);
#define LIMPID_TEST_DECODE(EXTERN, S, P, N, ROWS)                                \
  EXTERN template void decode_dots<P, N>(View<S>, ROWS, const S*, S, Index, S*); \
  EXTERN template void decode_values<P, N>(const S*, ROWS, const S*, MutView<S>, Index);
#define LIMPID_TEST_QUADS(EXTERN, S, P, W)                 \
  EXTERN template void rows_of_quads<P, W>(S*, Index, S*); \
  EXTERN template void quads_of_rows<P, W>(S*, Index, S*); \
  LIMPID_TEST_QUADS_OF(EXTERN, S, P, W, View<S>)           \
  LIMPID_TEST_QUADS_OF(EXTERN, S, P, W, ListedRows<S>)
#define LIMPID_TEST_QUADS_OF(EXTERN, S, P, W, ROWS)                                           \
  EXTERN template void quad_dots<P, W>(const S*, ROWS, const S*, S, Index, S*);               \
  EXTERN template void quad_weights<P, W>(S*, Index, S*, S*, S*, ROWS, Index, Index);         \
  EXTERN template void quad_values<P, W>(const S*, ROWS, const S*, MutView<S>, Index, Index); \
  EXTERN template void quad_output<P, W>(S*, ROWS, S*, S*, MutView<S>, Index);

#define LIMPID_TEST_STEPS(EXTERN, S)                         \
  LIMPID_TEST_SWEEPS(EXTERN, S, Native<S>)                   \
  LIMPID_TEST_DECODE_WEIGHTS(EXTERN, S, Native<S>, 1)        \
  LIMPID_TEST_DECODE_WEIGHTS(EXTERN, S, Native<S>, 2)        \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 1, View<S>)       \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 2, View<S>)       \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 1, ListedRows<S>) \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 2, ListedRows<S>) \
  LIMPID_TEST_QUADS_##S(EXTERN, Native<S>)
#define LIMPID_TEST_QUADS_float(EXTERN, P) \
  LIMPID_TEST_QUADS(EXTERN, float, P, 4)   \
  LIMPID_TEST_QUADS(EXTERN, float, P, 8)
#if defined(__SSE2__) && !defined(__AVX__)
#define LIMPID_TEST_QUADS_double(EXTERN, P)
#else
#define LIMPID_TEST_QUADS_double(EXTERN, P) \
  LIMPID_TEST_QUADS(EXTERN, double, P, 4)   \
  LIMPID_TEST_QUADS(EXTERN, double, P, 8)
#endif

// Elsewhere there are no vectors (engine/simd.hpp), and the fuzzers compile them with flags of their own.
#if defined(__GNUC__) && !defined(LIMPID_OWN_STEPS)
namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {
LIMPID_TEST_STEPS(extern, float)
LIMPID_TEST_STEPS(extern, double)
}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
#endif
