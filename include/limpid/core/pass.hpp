// limpid: what a pass of an operator over one head is given besides its arrays.
// SPDX-License-Identifier: MIT
#pragma once

#include "args.hpp"
#include "at.hpp"
#include "context.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Relevance sent down with the backward pass, of one head: c_j = sum_i w_i part(A_ij dA_ij). Chefer, Gur, Wolf 2021,
/// arXiv 2103.15679.
template <class S>
struct RelevanceRequest {
  const S* w = nullptr;  ///< n row weights
  S* c = nullptr;        ///< m, overwritten; null: not asked
  Part part = Part::pos;
  Index rows = 1;                    ///< or 4: all parts, in their order, each with row weights of its own
  Index w_stride = 0, c_stride = 0;  ///< from row to row

  Part part_of(Index row) const { return rows == 1 ? part : static_cast<Part>(row); }
};

/// One head of a call, forward or from inside. P: the vectors of the engine (a policy, see engine/simd.hpp), which the
/// sweeps want to be told: smooth<P>(pass.context, ...).
template <class P>
struct Pass {
  using Scalar = typename P::Scalar;
  const detail::Context& context;  ///< scratch memory and who runs tasks
  At at;                           ///< batch item and head
  Arena& arena() const { return context.arena(); }
};

/// One head of a backward call.
template <class P>
struct BackwardPass : Pass<P> {
  detail::Accumulation accumulate;  ///< which gradients are added to what is there
  typename P::Scalar* collected;    ///< for the modifiers' own gradients, handed on to pull_back; added to
  RelevanceRequest<typename P::Scalar> relevance = {};
};

}  // namespace LIMPID_ABI
}  // namespace limpid
