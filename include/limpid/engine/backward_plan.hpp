// limpid: what a pull_back is asked: its maps, where gradients go, what is kept beside.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "moment.hpp"
#include "relevance.hpp"
#include "scores.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// One map of a pull_back: what it was made of and where its gradients go. delta_i = <left_i, (A right)_i>. weight (one
/// number a query, may be null) is what the map counts by: dS = weight A (dA - delta).
template <class S, class Mods>
struct BackwardMap {
  Scores<S, Mods> scores;
  Lse<const S> lse;
  const S* delta = nullptr;
  const S* weight = nullptr;
  MutView<S> dq, dk;
  S* dbias = nullptr;  // m numbers, overwritten; may be null
};

/// Everything of a pull_back that does not change from task to task.
template <class S, class Mods, int M>
struct BackwardPlan {
  Few<BackwardMap<S, Mods>, M> maps;
  View<S> left, right;  // dA = left right^T
  View<S> x;            // dV = (sum_t weight_t A_t)^T x; empty: not wanted
  MutView<S> dv;
  bool accumulate_q = false, accumulate_k = false, accumulate_v = false;
  RelevanceRequest<S> relevance;
  std::array<DistanceMoment<S>, 2> moments = {};  // of the first map
};

/// Where pull_back writes. direct: into the user's own arrays, so that `accumulate` applies there.
template <class S>
struct GradientTargets {
  MutView<S> dq, dk;
  S* dbias = nullptr;
  bool direct = true;
  std::array<DistanceMoment<S>, 2> moments = {};
};

/// The plan of a backward pass of one map: made of these scores, its gradients put there.
template <class S, class Mods>
BackwardPlan<S, Mods, 1> plan_of(const Scores<S, Mods>& scores, const std::type_identity_t<Lse<const S>>& lse,
                                 const GradientTargets<S>& to, Accumulation accumulate,
                                 const RelevanceRequest<S>& relevance) {
  BackwardPlan<S, Mods, 1> plan;
  plan.maps[0] = {scores, lse, nullptr, nullptr, to.dq, to.dk, to.dbias};
  plan.moments = to.moments;
  plan.accumulate_q = to.direct && accumulate.q;
  plan.accumulate_k = to.direct && accumulate.kv;
  plan.accumulate_v = accumulate.kv;
  plan.relevance = relevance;
  return plan;
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
