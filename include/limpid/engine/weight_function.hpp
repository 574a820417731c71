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
/// for vectors of scores, with + - * /, P::set(number), P::exp(x), P::max(a, b) and P::if_less(a, b, x, y), which is x
/// where a < b and else y; and copies like a number. slope is given the weight and nothing else: scores of one weight
/// must have one derivative, as those of a monotone function have, or those where a ReLU is 0. At a kink it is that of
/// either side. A NaN has to stay one, and comparisons with it are false: max(s, 0) is right, as P::max is its first
/// where one is NaN, if_less(s, 0, 0, s) as well.
template <class W>
concept WeightFunction = requires {
  { W::normalised } -> std::convertible_to<bool>;
}
&&(W::normalised || requires(const W& w, double x) {
  w.template weight<detail::OneLane<double>>(x);
  w.template slope<detail::OneLane<double>>(x);
});

namespace detail {

/// One sentence for what a weight function lacks.
template <class W>
constexpr bool check_weight_function() {
  constexpr bool kind = requires { bool(W::normalised); };
  static_assert(kind, "limpid: a weight function has static constexpr bool normalised, false but for a softmax");
  if constexpr (kind && !WeightFunction<W>) {
    constexpr bool weight = requires(const W& w, double x) { w.template weight<OneLane<double>>(x); };
    constexpr bool slope = requires(const W& w, double x) { w.template slope<OneLane<double>>(x); };
    static_assert(weight,
                  "limpid: a weight function offers template <class P> typename P::V weight(typename P::V s) const");
    static_assert(slope,
                  "limpid: a weight function offers template <class P> typename P::V slope(typename P::V w) const, the "
                  "derivative of weight from the weight itself");
  }
  return WeightFunction<W>;
}

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
