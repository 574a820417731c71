// limpid: loops along rows. Whole vectors, then what is left one by one, from one text: a compiler's own vectoriser
// does nothing for most of them at -O2. SPDX-License-Identifier: MIT
#pragma once

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// f(policy, column) over whole vectors of P, then over the columns that are left with OneLane.
template <class P, class F>
LIMPID_INLINE void for_lanes(Index count, const F& f) {
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) f(P{}, c);
  for (; c < count; ++c) f(OneLane<typename P::Scalar>{}, c);
}

/// The sum of f(policy, column) over all columns, lanes side by side.
template <class P, class F>
LIMPID_INLINE typename P::Scalar sum_lanes(Index count, const F& f) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0));
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) sum = sum + f(P{}, c);
  S rest(0);
  for (; c < count; ++c) rest = rest + f(OneLane<S>{}, c);
  return P::sum(sum) + rest;
}

/// to = from.
template <class P>
LIMPID_INLINE void copy_row(const typename P::Scalar* from, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::load(from + c));
  });
}
/// to += from.
template <class P>
LIMPID_INLINE void add_row(const typename P::Scalar* from, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::load(to + c) + L::load(from + c));
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
