// limpid: how a score becomes a weight, and dA becomes dS. A policy of all sweeps.
// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// A row of scores becomes weights that sum to one: A_ij = exp(s_ij - lse_i), dS = A o (dA - delta 1^T), delta_i =
/// sum_j A_ij dA_ij. The sweeps find the log-sum-exp on their first way through the keys and are given it afterwards.
struct SoftmaxWeight {
  static constexpr bool normalised = true;
  template <class P>
  LIMPID_INLINE static typename P::V gradient(const typename P::V& w, const typename P::V& da,
                                              const typename P::V& delta) {
    return w * (da - delta);
  }
};

/// Any other weight function is one of a score alone, not of its row (`normalised` is false), e.g. a sigmoid. It offers
///
///     template <class P> typename P::V weight(typename P::V s) const      A_ij from s_ij, the score with modifiers, in
///                                                                         natural units; 0 where s is minus infinity
///     template <class P> typename P::V slope(typename P::V w) const       dA_ij / ds_ij from the weight itself
///
/// for vectors of scores, with + - * / and P::exp, P::set, P::if_less, P::max, and copies like a number.
template <class W>
concept WeightFunction = requires(const W& w, double x) {
  { W::normalised } -> std::convertible_to<bool>;
}
&&(W::normalised || requires(const W& w, double x) {
  w.template weight<detail::OneLane<double>>(x);
  w.template slope<detail::OneLane<double>>(x);
});

namespace detail {

/// dS of a pair: the weight function's own derivative.
template <class P, class W>
LIMPID_INLINE typename P::V weight_gradient(const W& function, const typename P::V& w, const typename P::V& da,
                                            const typename P::V& delta) {
  if constexpr (W::normalised)
    return function.template gradient<P>(w, da, delta);
  else
    return function.template slope<P>(w) * da;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
