// limpid: sums of dS times distances, the gradient of a bandwidth.
// SPDX-License-Identifier: MIT
#pragma once

#include "distance.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Asked of a pull_back: sum_ij dS_ij |q_i - k_j|^2, a bandwidth's gradient. By pair, as dS is large where the distance
/// is small: from sums of dS k and dS it would cancel. sum: added to. part: where
/// the scores are summed by pair, what makes a tile of these distances.
template <class S>
struct DistanceMoment {
  View<S> q, k;
  Accumulator<S>* sum = nullptr;
  ScorePart<S> part = {};
};

/// A row of queries at a time goes to the wide sum: terms of either sign, most of which cancels.
template <class P>
LIMPID_NOINLINE Accumulator<typename P::Scalar> moment_of_tile(const Tile<typename P::Scalar>& t,
                                                               View<typename P::Scalar> q,
                                                               const typename P::Scalar* keys_transposed) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0));
  Accumulator<S> total = 0;
  for (Index i = 0; i < t.nq; ++i) {
    V sum = zero;
    for (Index j = 0; j < t.nk; j += P::lanes) {
      V distance = zero;
      for (Index c = 0; c < q.cols; ++c) {
        const V d = P::set(q(t.q0 + i, c)) - P::load(keys_transposed + c * t.ld + j);
        distance = P::fma(d, d, distance);
      }
      const V ds = P::load(t.data + i * t.ld + j), inside = P::lane_index() + P::set(S(double(j)));
      const V one = P::if_equal(ds, zero, zero, ds * distance);  // a masked pair may lie anywhere
      sum = sum + P::if_less(inside, P::set(S(double(t.nk))), one, zero);
    }
    total += Accumulator<S>(P::sum(sum));
  }
  return total;
}

/// The same of distances that are there, a tile like that of dS.
template <class P>
LIMPID_NOINLINE Accumulator<typename P::Scalar> moment_of_distances(const Tile<typename P::Scalar>& t,
                                                                    const typename P::Scalar* distances) {
  using S = typename P::Scalar;
  Accumulator<S> total = 0;
  for (Index i = 0; i < t.nq; ++i)
    total += Accumulator<S>(sum_lanes<P>(t.nk, [&](auto policy, Index j) {
      using L = decltype(policy);
      const typename L::V ds = L::load(t.data + i * t.ld + j), zero = L::set(S(0));
      return L::if_equal(ds, zero, zero, ds * L::load(distances + i * t.ld + j));  // a masked pair may lie anywhere
    }));
  return total;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
