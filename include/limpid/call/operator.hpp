// limpid: what the author of an operator needs: the sweeps by name, and what operators share.
// SPDX-License-Identifier: MIT
//
// The interface itself is told in interface.hpp; examples/10_your_own_operator.cpp is an operator from outside.
#pragma once

#include <concepts>

#include "../core/pass.hpp"
#include "../engine/probe.hpp"
#include "../engine/pull_back.hpp"
#include "../engine/smooth.hpp"
#include "../engine/smooth_transposed.hpp"
#include "backward.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What operators and families of scores are made of. P is the engine's vectors, of a Pass; S its scalar.
namespace engine {

using detail::Accumulation;  // accumulate.q, accumulate.kv: whether gradients of query and key fields are added to
using detail::Context;       // pass.context: scratch memory (arena()), and run(count, task(t, arena))

// The sweeps, each one pass over tiles of the map A of one head; nothing n x n is stored.
using detail::entropy;      // (context, scores, lse, out): - sum_j A_ij log A_ij of every row
using detail::map_block;    // (context, scores, lse, q0, k0, out): a block of A
using detail::pull_back;    // (context, plan, collected): dA = left right^T -> dq, dk, dv and what hangs on scores
using detail::smooth;       // (context, scores, x, out, lse): out = A x, and the log-sum-exp of every row
using detail::smooth_both;  // the same for two maps over one x
using detail::smooth_transposed;  // (context, scores, lse, g, out, accumulate): out = A^T g
using detail::smooth_with_lse;    // (context, scores, lse, x, out): out = A x, the log-sum-exp known
using detail::visit_pairs;        // (context, scores, lse, queries, keys, f(i, j, weight)): A pair by pair
using detail::visit_weights;      // (context, scores, lse, queries, keys, f(tile)): A tile by tile

// Scores of one head in natural units, and the two rows of numbers that make weights of them again: 2 of Kept::stat, of
// which lse_of(keep.lse) makes a view. A row that keeps no key has top plus infinity and inverse 0.
using detail::Lse;
using detail::lse_of;
using detail::Scores;
using detail::with_weight;  // (scores, weight): the same scores under another WeightFunction than softmax

// A plan of pull_back and what it is filled with; MapBackward below fills what all operators fill alike.
using detail::BackwardMap;
using detail::BackwardPlan;
using detail::GradientTargets;
using detail::plan_of;

// Rows: delta_i = <dout_i, out_i> in the order in which a tile is summed; copies and sums.
using detail::add_scaled_row;
using detail::check_factor;  // <S>(op, "option", number): ShapeError where it is not finite, or sums would overflow
using detail::copy;
using detail::copy_or_add;
using detail::copy_or_add_scaled;
using detail::copy_rows;
using detail::for_lanes;
using detail::row_dots;

}  // namespace engine

/// What every operator over a family of scores shares. Score: DotScore, NlmScore, BilateralScore or a user's.
template <class Score>
struct OverScores {
  static_assert((detail::check_score_family<Score, double>(), true));  // its own sentences are enough
  Score score;
  const char* name;  ///< in the text of errors

  template <class T>
  using Args = typename Score::template Args<T>;
  template <class In>
  Index out_width(const In& head) const {
    return head.v.cols;
  }
  const auto& modifiers() const { return score.mods; }
  auto& modifiers() { return score.mods; }
};

/// For an operator that needs nothing of forward in backward but its inputs.
template <class T>
struct KeepNothing {
  template <class F, class... K>
  static void visit(F&&, const auto&, K&&...) {}
};

/// The map at work, for an operator of one map: Op::map(pass, in, keep) gives its scores and what was kept of its rows.
template <class Scores, class S>
struct ShownMap {
  Scores scores;
  detail::Lse<const S> lse;
};
template <class S, class Mods>
ShownMap<detail::Scores<S, Mods>, S> shown_map(const detail::Scores<S, Mods>& scores,
                                               const detail::LseUnder<const S, detail::WeightOf<Mods>>& lse = {}) {
  return {scores, lse};
}
template <class Op>
struct OneMap {
  template <class P, class In, class Keep, class S>
  void apply(const Pass<P>& pass, const In& in, const Keep& keep, View<S> x, MutView<S> out) const {
    with_map(pass, in, keep, [&](const auto& map) {
      detail::smooth_with_lse<P>(pass.context, map.scores, map.lse, x, out);  // out = A x
    });
  }
  template <class P, class In, class Keep, class S>
  void apply_transposed(const Pass<P>& pass, const In& in, const Keep& keep, View<S> g, MutView<S> out) const {
    with_map(pass, in, keep, [&](const auto& map) {
      detail::smooth_transposed<P>(pass.context, map.scores, map.lse, g, out);  // out = A^T g
    });
  }
  /// A block of A, from (q0, k0), as large as out.
  template <class P, class In, class Keep, class S>
  void map_block(const Pass<P>& pass, const In& in, const Keep& keep, Index q0, Index k0, MutView<S> out) const {
    with_map(pass, in, keep,
             [&](const auto& map) { detail::map_block<P>(pass.context, map.scores, map.lse, q0, k0, out); });
  }

 private:
  template <class P, class In, class Keep, class F>
  void with_map(const Pass<P>& pass, const In& in, const Keep& keep, F&& look) const {
    constexpr bool offered = requires(const Op& op) { op.map(pass, in, keep); };
    static_assert(offered, "limpid: an operator over OneMap offers map(const Pass<P>&, in, keep) const, a shown_map");
    if constexpr (offered) look(static_cast<const Op&>(*this).map(pass, in, keep));
  }
};

namespace detail {

template <class W, class Scores>
auto under(const Scores& scores, const W& weight) {
  if constexpr (std::is_same_v<W, SoftmaxWeight>)
    return scores;
  else
    return with_weight(scores, weight);
}

}  // namespace detail

/// The backward pass of one map: its scores are prepared, its gradients go where grad says. Fill what is left of plan -
/// left and right with dA = left right^T, x and dv with dV = A^T x, maps[0].delta, or all by of_values - and finish.
template <class P, class Score, class In, class Grad, class Weight = SoftmaxWeight>
struct MapBackward {
  using S = typename P::Scalar;
  using Prepared = typename Score::template Prepared<S>;
  using Scores = decltype(detail::under(std::declval<const Prepared&>().scores, std::declval<const Weight&>()));
  const BackwardPass<P>& pass;
  const Score& score;
  const In& in;
  const Grad& grad;
  Prepared prepared;
  detail::GradientTargets<S> targets;
  decltype(detail::plan_of(std::declval<const Scores&>(), {}, std::declval<const detail::GradientTargets<S>&>(), {},
                           {})) plan;

  MapBackward(const BackwardPass<P>& pass_, const Score& score_, const In& in_, detail::LseUnder<const S, Weight> lse,
              const Grad& grad_, const Weight& weight = {})
      : pass(pass_),
        score(score_),
        in(in_),
        grad(grad_),
        prepared(score.prepare(pass.arena(), in, pass.at)),
        targets(score.targets(pass.arena(), in, prepared, grad)),
        plan(detail::plan_of(detail::under(prepared.scores, weight), lse, targets, pass.accumulate, pass.relevance)) {}
  MapBackward(const MapBackward&) = delete;
  MapBackward& operator=(const MapBackward&) = delete;

  /// The plan of out = A V: dA = dout V^T, dV = A^T dout and, of normalised weights, delta_i = <dout_i, (A V)_i>.
  void of_values(View<S> dout, View<S> v, MutView<S> dv, View<S> average = {}) {
    plan.left = dout, plan.right = v;
    plan.x = dout, plan.dv = dv;
    if constexpr (Weight::normalised) {
      S* delta = pass.arena().template take<S>(dout.rows);
      detail::row_dots<P>(pass.context, dout, average, delta);
      plan.maps[0].delta = delta;
    }
  }
  /// dS and what follows from it, delivered to the inputs of the scores.
  void finish() {
    detail::pull_back<P>(pass.context, plan, pass.collected);
    deliver();
  }
  /// The same after a pull_back of one's own.
  void deliver() { score.finish(in, prepared, targets, grad, pass.accumulate); }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
