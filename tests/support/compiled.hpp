// limpid: the operators that tests ask for most, without modifiers and causal: declared here, which the tests'
// precompiled header includes, and compiled once for each scalar, in compiled_float.cpp and compiled_double.cpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/check/subspace_data.hpp>
#include <limpid/compiled.hpp>
#include <limpid/explain/subspaces.hpp>
#include <utility>

namespace suite::compiled {

template <class Mods>
using Nlm = decltype(limpid::nlm(std::declval<Mods>()));
template <class Mods>
using Bilateral = decltype(limpid::bilateral(std::declval<Mods>()));
template <class Mods>
using Rope = decltype(limpid::rope(limpid::softmax(std::declval<Mods>())));
template <class Mods>
using Twicing = decltype(limpid::twicing(std::declval<Mods>()));
template <class Mods>
using Boosting = decltype(limpid::boosting(std::declval<Mods>()));
template <class Mods>
using Differential = decltype(limpid::differential(std::declval<Mods>()));
template <class Mods>
using DifferentialGated = decltype(limpid::differential_gated(std::declval<Mods>()));
template <class Mods>
using Pid = decltype(limpid::pid(std::declval<Mods>()));
template <class Mods>
using Mssa = decltype(limpid::mssa(std::declval<Mods>()));

using Plain = limpid::Chain<>;
using Causal = limpid::Chain<limpid::Causal>;

template <class... M>
using Modified = limpid::Softmax<limpid::DotScore<limpid::Chain<M...>>>;
using WithRelative = Modified<limpid::Relative<double, limpid::ClipOffset>>;
using RotaryTwicing = decltype(limpid::rope(std::declval<Twicing<Causal>>()));

}  // namespace suite::compiled

#define LIMPID_TEST_FORWARD(EXTERN, S, ...)                                                     \
  EXTERN template void limpid::detail::forward_with<limpid::detail::Native<S>, __VA_ARGS__, S>( \
      const __VA_ARGS__&, const limpid::Inputs<__VA_ARGS__, S>&, limpid::MutView<S>,            \
      const limpid::Call<__VA_ARGS__, S>&);
#define LIMPID_TEST_BACKWARD(EXTERN, S, ...)                                                                      \
  EXTERN template void limpid::detail::backward_with<limpid::detail::Native<S>, __VA_ARGS__, S>(                  \
      const __VA_ARGS__&, const limpid::Inputs<__VA_ARGS__, S>&, limpid::Saved<__VA_ARGS__, S>&, limpid::View<S>, \
      const limpid::Grads<__VA_ARGS__, S>&, const limpid::BackwardCall<S>&);
#define LIMPID_TEST_OPERATOR(EXTERN, S, OP) \
  LIMPID_TEST_FORWARD(EXTERN, S, OP)        \
  LIMPID_TEST_BACKWARD(EXTERN, S, OP)
#define LIMPID_TEST_OPERATORS_WITH(EXTERN, S, MODS)                         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Bilateral<MODS>)         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Rope<MODS>)              \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Twicing<MODS>)           \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Boosting<MODS>)          \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Differential<MODS>)      \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::DifferentialGated<MODS>) \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Pid<MODS>)               \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Mssa<MODS>)

/// What more than one test asks for besides.
#define LIMPID_TEST_MODIFIED(EXTERN, S)                                              \
  LIMPID_TEST_FORWARD(EXTERN, S, suite::compiled::Modified<limpid::Alibi<S, false>>) \
  LIMPID_TEST_FORWARD(EXTERN, S, suite::compiled::Modified<limpid::Alibi<S, true>>)  \
  LIMPID_TEST_FORWARD(EXTERN, S, suite::compiled::Modified<limpid::KeyBias<S>>)      \
  LIMPID_TEST_FORWARD(EXTERN, S, suite::compiled::Modified<limpid::Bias<S>>)         \
  LIMPID_TEST_FORWARD(EXTERN, S, suite::compiled::Modified<limpid::KeyBias<S>, limpid::KeyBias<S>>)
#define LIMPID_TEST_MODIFIED_float(EXTERN)
#define LIMPID_TEST_MODIFIED_double(EXTERN)                                                                     \
  LIMPID_TEST_OPERATOR(EXTERN, double, suite::compiled::RotaryTwicing)                                          \
  LIMPID_TEST_OPERATOR(EXTERN, double, suite::compiled::WithRelative)                                           \
  LIMPID_TEST_FORWARD(EXTERN, double, suite::compiled::Modified<limpid::Window>)                                \
  LIMPID_TEST_FORWARD(EXTERN, double, suite::compiled::Modified<limpid::Bias<double>, limpid::KeyBias<double>>) \
  LIMPID_TEST_BACKWARD(EXTERN, double, suite::compiled::Modified<limpid::KeyBias<double>>)                      \
  LIMPID_TEST_BACKWARD(EXTERN, double, suite::compiled::Modified<limpid::Alibi<double, false>>)

/// What limpid::compiled has not.
#define LIMPID_TEST_OPERATORS(EXTERN, S)                                         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Nlm<suite::compiled::Causal>) \
  LIMPID_TEST_OPERATORS_WITH(EXTERN, S, suite::compiled::Plain)                  \
  LIMPID_TEST_OPERATORS_WITH(EXTERN, S, suite::compiled::Causal)                 \
  LIMPID_TEST_MODIFIED(EXTERN, S)                                                \
  LIMPID_TEST_MODIFIED_##S(EXTERN)

// What of the sweeps knows neither operator nor modifiers: a product with every
// epilogue that forward and backward have, and the steps of few queries. P: Native<S>.
#define LIMPID_TEST_PRODUCT(EXTERN, S, P, SIDE, STEP, ...)                 \
  EXTERN template void product<P, Transposed::SIDE, __VA_ARGS__, STEP<P>>( \
      Index, Index, Index, const S*, Index, const S*, Index, const __VA_ARGS__&, const STEP<P>&);
#define LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, N)                                                     \
  EXTERN template void online_step<P, N>(S*, Index, Index, const S*, S*, S*, S*, const Prefetch<S>&, \
                                         const std::nullptr_t&);
#define LIMPID_TEST_SWEEPS(EXTERN, S, P)                                                                           \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, Rescale<P>)                                                     \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, Accumulate<P>)                                                  \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddProduct, StoreInside<P>)                                                 \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, a, AddDifference, Accumulate<P>)                                               \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddDifference, Accumulate<P>)                                            \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddSquare, StorePart<P, true>)                                           \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddSquare, StorePart<P, false>)                                          \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StorePart<P, true>)                                          \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StorePart<P, false>)                                         \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreFarPart<P, true>)                                       \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreFarPart<P, false>)                                      \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, Accumulate<P>)                                               \
  LIMPID_TEST_PRODUCT(EXTERN, S, P, none, AddProduct, StoreInside<P>)                                              \
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
  LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, 1)                                                                         \
  LIMPID_TEST_ONLINE_STEP(EXTERN, S, P, P::tile_vectors)                                                           \
  EXTERN template void row_dots<P>(View<S>, View<S>, S*);                                                          \
  EXTERN template void row_dots<P>(const Context&, View<S>, View<S>, S*);                                          \
  EXTERN template void transpose_into<P>(View<S>, S*, Index);                                                      \
  EXTERN template void transpose_out<P>(const S*, Index, const S*, MutView<S>);
// Few queries; quads where a vector holds four numbers.
#define LIMPID_TEST_DECODE(EXTERN, S, P, N)                            \
  EXTERN template void decode_dots<P, N>(View<S>, View<S>, Index, S*); \
  EXTERN template void decode_values<P, N>(const S*, View<S>, const S*, MutView<S>, Index);
#define LIMPID_TEST_QUADS(EXTERN, S, P, W)                                               \
  EXTERN template void quad_dots<P, W>(const S*, View<S>, const S*, S, Index, S*);       \
  EXTERN template void quad_weights<P, W>(S*, Index, S*, S*, S*, View<S>, Index, Index); \
  EXTERN template void quad_values<P, W>(const S*, View<S>, const S*, MutView<S>, Index, Index);

#define LIMPID_TEST_STEPS(EXTERN, S)          \
  LIMPID_TEST_SWEEPS(EXTERN, S, Native<S>)    \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 1) \
  LIMPID_TEST_DECODE(EXTERN, S, Native<S>, 2) \
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

// And what goes over all entries of a data set.
#define LIMPID_TEST_SUBSPACES(EXTERN, S)                                                               \
  EXTERN template limpid::SubspaceData<S> limpid::subspace_data(const limpid::SubspaceDataOptions&);   \
  EXTERN template std::vector<double> limpid::subspace_snr<limpid::Mat<S>&, const limpid::Mat<S>&, S>( \
      limpid::Mat<S>&, const limpid::Mat<S>&, const std::vector<limpid::Index>&, limpid::Index);

#if defined(__GNUC__)  // elsewhere there are no vectors: engine/simd.hpp
namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {
LIMPID_TEST_STEPS(extern, float)
LIMPID_TEST_STEPS(extern, double)
}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
#endif

LIMPID_TEST_SUBSPACES(extern, float)
LIMPID_TEST_SUBSPACES(extern, double)
LIMPID_TEST_OPERATORS(extern, float)
LIMPID_TEST_OPERATORS(extern, double)
