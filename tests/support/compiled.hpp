// limpid: the operators that tests ask for most, without modifiers and causal: declared here, which the tests'
// precompiled header includes, and compiled once for each scalar, in compiled_float.cpp and compiled_double.cpp.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/compiled.hpp>
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

}  // namespace suite::compiled

#define LIMPID_TEST_OPERATOR(EXTERN, S, OP)                                                                         \
  EXTERN template void limpid::detail::forward_with<limpid::detail::Native<S>, OP, S>(                              \
      const OP&, const limpid::Inputs<OP, S>&, limpid::MutView<S>, const limpid::Call<OP, S>&);                     \
  EXTERN template void limpid::detail::backward_with<limpid::detail::Native<S>, OP, S>(                             \
      const OP&, const limpid::Inputs<OP, S>&, limpid::Saved<OP, S>&, limpid::View<S>, const limpid::Grads<OP, S>&, \
      const limpid::BackwardCall<S>&);
#define LIMPID_TEST_OPERATORS_WITH(EXTERN, S, MODS)                         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Bilateral<MODS>)         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Rope<MODS>)              \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Twicing<MODS>)           \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Boosting<MODS>)          \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Differential<MODS>)      \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::DifferentialGated<MODS>) \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Pid<MODS>)               \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Mssa<MODS>)

/// What limpid::compiled has not.
#define LIMPID_TEST_OPERATORS(EXTERN, S)                                         \
  LIMPID_TEST_OPERATOR(EXTERN, S, suite::compiled::Nlm<suite::compiled::Causal>) \
  LIMPID_TEST_OPERATORS_WITH(EXTERN, S, suite::compiled::Plain)                  \
  LIMPID_TEST_OPERATORS_WITH(EXTERN, S, suite::compiled::Causal)

LIMPID_TEST_OPERATORS(extern, float)
LIMPID_TEST_OPERATORS(extern, double)
