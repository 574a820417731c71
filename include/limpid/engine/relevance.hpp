// limpid: relevance sent down with the backward pass.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/pass.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

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
