// limpid: scores become weights, queries in lanes: against a running maximum, or one that is known.
// SPDX-License-Identifier: MIT
#pragma once

#include "simd.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Keys and values of a block, of whose successor a part is prefetched while weights are made: the columns from `from`
/// on, every `step`. No columns where all keys and values find room in L2 anyway.
template <class S>
struct Prefetch {
  View<S> k, x;
  Index from, step;
  /// What lies `further` rows on from row j.
  template <class P>
  LIMPID_INLINE void prefetch(Index j, Index further) const {
    for (Index c = from; c < k.cols; c += step) P::prefetch(k.row(j) + c, further * k.stride);
    for (Index c = from; c < x.cols; c += step) P::prefetch(x.row(j) + c, further * x.stride);
  }
};

/// One block of scores becomes weights against the running maximum; alpha is what older sums shrink by. found: the
/// largest scores so far, or null where they are still to be found. at_infinity is called where a score is infinite, to
/// replace it.
template <class P, int N, class AtInfinity>
LIMPID_NOINLINE void online_step(typename P::Scalar* s, Index ld, Index nk, const typename P::Scalar* found,
                                 typename P::Scalar* running_max, typename P::Scalar* running_sum,
                                 typename P::Scalar* alpha, const Prefetch<typename P::Scalar>& prefetched,
                                 const AtInfinity& at_infinity) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V none = P::set(minus_infinity<S>());
  V top[N], base[N], sum[N];
  const auto find_top = [&] {
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) top[v] = P::load(s + v * P::lanes);
    for (Index j = 1; j < nk; ++j) {
      LIMPID_UNROLL(16)
      for (int v = 0; v < N; ++v) top[v] = P::max(top[v], P::load(s + j * ld + v * P::lanes));
    }
  };
  if (found) {
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) top[v] = P::load(found + v * P::lanes);
  } else {
    find_top();
  }
  if constexpr (!std::is_same_v<AtInfinity, std::nullptr_t>) {
    V all = P::set(S(0));
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) all = P::max(all, top[v]);  // past what is NaN, whose query is lost anyway
    S largest[P::lanes];
    P::store(largest, P::largest(all));
    if (largest[0] == -minus_infinity<S>()) at_infinity(), find_top();
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) sum[v] = P::set(S(0));
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) {
    const V old = P::load(running_max + v * P::lanes);
    top[v] = P::max(old, top[v]);
    base[v] = P::if_equal(top[v], none, P::set(S(0)), top[v]);  // no key so far: exp(-inf - 0) = 0
    P::store(running_max + v * P::lanes, top[v]);
    P::store(alpha + v * P::lanes, P::exp(old - base[v]));
  }
  for (Index j = 0; j < nk; ++j) {
    prefetched.template prefetch<P>(j, SmoothBlocks<P>::keys);
    V e[N];
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) e[v] = P::load(s + j * ld + v * P::lanes) - base[v];
    P::template exp_each<N>(e);
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) {
      sum[v] = sum[v] + e[v];
      P::store(s + j * ld + v * P::lanes, e[v]);
    }
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) {
    S* l = running_sum + v * P::lanes;
    P::store(l, P::fma(P::load(l), P::load(alpha + v * P::lanes), sum[v]));
  }
}

template <class P, class Weight>
LIMPID_NOINLINE void weights_from_scores(const Weight& weight, typename P::Scalar* s, Index ld, Index rows,
                                         Index vectors, const typename P::Scalar* top) {
  for (Index j = 0; j < rows; ++j)
    for (Index v = 0; v < vectors; ++v) {
      typename P::Scalar* p = s + j * ld + v * P::lanes;
      const typename P::V below = P::load(p) - P::load(top + v * P::lanes);
      if constexpr (Weight::normalised)
        P::store(p, P::exp(below));
      else
        P::store(p, weight.template weight<P>(below));
    }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
