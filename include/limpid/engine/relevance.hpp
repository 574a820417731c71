// limpid: relevance sent down with the backward pass.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/pass.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// All four parts in one go.
template <class P>
void add_relevance_parts(const Tile<typename P::Scalar>& t, const typename P::Scalar* weights,
                         const typename P::Scalar* da, const RelevanceRequest<typename P::Scalar>& e) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0));
  const auto w = [&](Index row) { return e.w + row * e.w_stride + t.q0; };
  const S *w_pos = w(0), *w_neg = w(1), *w_abs = w(2), *w_signed = w(3);
  for (Index j = 0; j < t.nk; j += P::lanes) {
    V pos = zero, neg = zero, abs = zero, both = zero;
    for (Index i = 0; i < t.nq; ++i) {
      const V weight = P::load(weights + i * t.ld + j);
      const V x = P::if_equal(weight, zero, zero, weight * P::load(da + i * t.ld + j)), less = zero - x;
      pos = P::fma(P::max(x, zero), P::set(w_pos[i]), pos);
      neg = P::fma(P::max(less, zero), P::set(w_neg[i]), neg);
      abs = P::fma(P::max(x, less), P::set(w_abs[i]), abs);
      both = P::fma(x, P::set(w_signed[i]), both);
    }
    const Index left = std::min<Index>(P::lanes, t.nk - j);
    S part[P::lanes];
    const auto add = [&](const V& sum, Index row) {
      P::store(part, sum);
      S* to = e.c + row * e.c_stride + t.k0 + j;
      for (Index l = 0; l < left; ++l) to[l] += part[l];
    };
    add(pos, 0), add(neg, 1), add(abs, 2), add(both, 3);
  }
}

template <class P>
void add_relevance(const Tile<typename P::Scalar>& t, const typename P::Scalar* weights, const typename P::Scalar* da,
                   const RelevanceRequest<typename P::Scalar>& e) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0));
  for (Index j = 0; j < t.nk; j += P::lanes) {
    V sum = zero;
    for (Index i = 0; i < t.nq; ++i) {
      const V weight = P::load(weights + i * t.ld + j);
      V x = P::if_equal(weight, zero, zero, weight * P::load(da + i * t.ld + j));
      if (e.part == Part::pos) x = P::max(x, zero);  // the first where it is NaN, which has to show
      if (e.part == Part::neg) x = P::max(zero - x, zero);
      if (e.part == Part::abs) x = P::max(x, zero - x);
      sum = P::fma(x, P::set(e.w[t.q0 + i]), sum);
    }
    const Index lanes = std::min<Index>(P::lanes, t.nk - j);
    S part[P::lanes];
    P::store(part, sum);
    for (Index l = 0; l < lanes; ++l) e.c[t.k0 + j + l] += part[l];
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
