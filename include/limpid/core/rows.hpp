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

/// The sum of f(policy, column) over all columns, lanes side by side, four vectors at a time: a sum waits for the one
/// before it.
template <class P, class F>
LIMPID_INLINE typename P::Scalar sum_lanes(Index count, const F& f) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0)), second = sum, third = sum, fourth = sum;
  Index c = 0;
  for (; c + 4 * P::lanes <= count; c += 4 * P::lanes) {
    sum = sum + f(P{}, c);
    second = second + f(P{}, c + P::lanes);
    third = third + f(P{}, c + 2 * P::lanes);
    fourth = fourth + f(P{}, c + 3 * P::lanes);
  }
  for (; c + P::lanes <= count; c += P::lanes) sum = sum + f(P{}, c);
  sum = (sum + second) + (third + fourth);
  S rest(0);
  for (; c < count; ++c) rest = rest + f(OneLane<S>{}, c);
  return P::sum(sum) + rest;
}

template <class P>
typename P::Scalar row_sum(const typename P::Scalar* x, Index count) {
  return sum_lanes<P>(count, [&](auto policy, Index c) { return decltype(policy)::load(x + c); });
}

/// The largest |x_c|, past what is NaN.
template <class P>
typename P::Scalar largest_entry(const typename P::Scalar* x, Index count) {
  using S = typename P::Scalar;
  typename P::V tops = P::set(S(0));
  S largest(0);
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    const typename L::V entry = L::load(x + c), size = L::max(entry, -entry);
    if constexpr (L::lanes == P::lanes)
      tops = P::max(tops, size);
    else
      largest = L::max(largest, size);
  });
  S lanes[P::lanes];
  P::store(lanes, P::largest(tops));
  return OneLane<S>::max(largest, lanes[0]);
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

/// to = factor from; to may be from.
template <class P>
LIMPID_INLINE void scale_row(typename P::Scalar factor, const typename P::Scalar* from, typename P::Scalar* to,
                             Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::set(factor) * L::load(from + c));
  });
}
/// to = a + factor b; to may be either.
template <class P>
LIMPID_INLINE void add_scaled_row(const typename P::Scalar* a, typename P::Scalar factor, const typename P::Scalar* b,
                                  typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::fma(L::set(factor), L::load(b + c), L::load(a + c)));
  });
}

/// to = from, or to += from.
template <class S>
void deliver(View<S> from, MutView<S> to, bool accumulate) {
  if (!accumulate) return copy(from, to);
  for (Index i = 0; i < from.rows; ++i) add_row<Native<S>>(from.row(i), to.row(i), from.cols);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
