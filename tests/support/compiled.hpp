// limpid: the operators that tests ask for most, without modifiers and causal, and layers: declared here, which the
// precompiled header of the tests includes, and compiled once for each scalar, in compiled_float.cpp and
// compiled_double.cpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/check/subspace_data.hpp>
#include <limpid/compiled.hpp>
#include <limpid/explain/subspaces.hpp>
#include <utility>

#include "support/compiled_steps.hpp"

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

/// What layers of any operator are made of.
#define LIMPID_TEST_MULTIPLY(EXTERN, S, SIDE)                                                                         \
  EXTERN template void limpid::detail::multiply<limpid::detail::Native<S>, limpid::detail::Transposed::SIDE>(         \
      const limpid::detail::Context&, limpid::View<S>, limpid::View<S>, limpid::MutView<S>, bool, const S*, const S*, \
      limpid::Index);
#define LIMPID_TEST_LAYERS(EXTERN, S)                                                                                  \
  LIMPID_TEST_MULTIPLY(EXTERN, S, none)                                                                                \
  LIMPID_TEST_MULTIPLY(EXTERN, S, a)                                                                                   \
  LIMPID_TEST_MULTIPLY(EXTERN, S, b)                                                                                   \
  EXTERN template void limpid::detail::linear_in<limpid::detail::Native<S>>(                                           \
      const limpid::detail::Context&, limpid::View<S>, const limpid::Weight<S>&, limpid::View<S>, limpid::MutView<S>); \
  EXTERN template void limpid::detail::linear_backward_in<limpid::detail::Native<S>>(                                  \
      const limpid::detail::Context&, limpid::View<S>, const limpid::Weight<S>&, limpid::View<S>,                      \
      const limpid::LinearGrads<S>&, bool, bool);                                                                      \
  EXTERN template void limpid::detail::norm_in<limpid::detail::Native<S>, S>(                                          \
      const limpid::detail::Context&, limpid::NormKind, limpid::View<S>, limpid::View<S>, limpid::View<S>, double,     \
      limpid::MutView<S>, limpid::MutView<S>);                                                                         \
  EXTERN template void limpid::detail::norm_backward_in<limpid::detail::Native<S>, S>(                                 \
      const limpid::detail::Context&, limpid::NormKind, limpid::View<S>, limpid::View<S>, limpid::View<S>,             \
      limpid::View<S>, const limpid::LayerNormGrads<S>&, bool, bool);                                                  \
  EXTERN template void limpid::detail::activate_row<limpid::detail::Native<S>, S>(                                     \
      limpid::Activation, const S*, const std::type_identity_t<S>*, S*, limpid::Index);                                \
  EXTERN template void limpid::detail::activate_backward_row<limpid::detail::Native<S>, S>(                            \
      limpid::Activation, const S*, const S*, S*, S*, limpid::Index);                                                  \
  EXTERN template void limpid::detail::activate_gated_backward_row<limpid::detail::Native<S>, S>(                      \
      limpid::Activation, const S*, const S*, const S*, S*, S*, S*, limpid::Index);                                    \
  EXTERN template void limpid::Mlp::forward_to<S>(const limpid::MlpArgs<limpid::View<S>>&, limpid::MutView<S>,         \
                                                  const limpid::LayerForward<limpid::MlpSaved<S>>&) const;             \
  EXTERN template void limpid::Mlp::backward_from<S>(const limpid::MlpArgs<limpid::View<S>>&, limpid::MlpSaved<S>&,    \
                                                     limpid::View<S>, const limpid::MlpArgs<limpid::Gradient<S>>&,     \
                                                     const limpid::LayerCall&) const;

// And what goes over all entries of a data set.
#define LIMPID_TEST_SUBSPACES(EXTERN, S)                                                               \
  EXTERN template limpid::SubspaceData<S> limpid::subspace_data(const limpid::SubspaceDataOptions&);   \
  EXTERN template std::vector<double> limpid::subspace_snr<limpid::Mat<S>&, const limpid::Mat<S>&, S>( \
      limpid::Mat<S>&, const limpid::Mat<S>&, const std::vector<limpid::Index>&, limpid::Index);

LIMPID_TEST_SUBSPACES(extern, float)
LIMPID_TEST_SUBSPACES(extern, double)
LIMPID_TEST_LAYERS(extern, float)
LIMPID_TEST_LAYERS(extern, double)
LIMPID_TEST_OPERATORS(extern, float)
LIMPID_TEST_OPERATORS(extern, double)
