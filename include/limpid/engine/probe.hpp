// limpid: the sweep `probe`: parts of a map, and reductions of it, from tiles made again from the log-sum-exp.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "gather.hpp"
#include "guard.hpp"
#include "weights_tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Calls f(tile) with the weights of every tile of queries [q0, q1) x keys [k0, k1); rows of queries may run in
/// parallel, the tiles of a row of queries come in the order of their keys.
template <class P, class Mods>
void visit_weights(const Context& context, Scores<typename P::Scalar, Mods> scores, Lse<const typename P::Scalar> lse,
                   Interval queries, Interval keys, FunctionRef<void(const Tile<typename P::Scalar>&)> f) {
  using S = typename P::Scalar;
  using Blocks = PullBlocks<P>;
  constexpr Index ld = Blocks::keys, rows = Blocks::queries;
  static_assert(!Mods::gathers, "limpid: visit_pairs, in the place of visit_weights, knows masks that gather");
  ArenaScope scope(context.arena());
  const Guard<P, Mods> guard(context, {&scores});
  context.run((queries.end - queries.begin + rows - 1) / rows, [&](Index task, Arena& arena) {
    const Index q0 = queries.begin + task * rows, nq = std::min(rows, queries.end - q0);
    KeyPanel<P> panel(arena, scores.k.cols);
    S* tile = arena.take<S>(rows * ld);
    const TileRows<P> row(arena);
    for (Index k0 = keys.begin; k0 < keys.end; k0 += ld) {
      const Index nk = std::min(ld, keys.end - k0);
      const Tile<S> t{tile, ld, q0, nq, k0, nk};
      panel.load(scores, k0, nk);
      weights_tile<P>(scores, lse, static_cast<const S*>(nullptr), t, panel.transposed, row, static_cast<S*>(nullptr),
                      NextRows<P>::none(tile));
      for (Index i = 0; i < nq; ++i)
        if (are_normalised<Mods> &&
            lse.top[q0 + i] == -minus_infinity<S>())  // a row without keys has no weights, whatever the query holds
          for (Index j = 0; j < nk; ++j) tile[i * ld + j] = S(0);
      f(t);
    }
  });
}

/// Calls f(i, j, weight) for the pairs of queries x keys, the keys of a row in order; rows may run in parallel. Of a
/// mask that gathers the pairs of its blocks alone are visited.
template <class P, class Mods, class F>
void visit_pairs(const Context& context, const Scores<typename P::Scalar, Mods>& scores,
                 Lse<const typename P::Scalar> lse, Interval queries, Interval keys, F&& f) {
  using S = typename P::Scalar;
  const auto within = [](Index i, Interval in) { return i >= in.begin && i < in.end; };
  if constexpr (Mods::gathers) {
    ArenaScope scope(context.arena());
    const GatherPlan<P, Mods> plan(context.arena(), scores);
    for_gathered<P>(context, plan, scores, [&](const auto& block, Index, const Context& own) {
      const Index *q = block.query_rows(), *k = block.key_rows();
      Interval rows{0, block.queries()};
      while (rows.begin < rows.end && !within(q[rows.begin], queries)) ++rows.begin;
      while (rows.begin < rows.end && !within(q[rows.end - 1], queries)) --rows.end;
      visit_weights<P>(own, block.of(scores), block.of_queries(lse), rows, {0, block.keys()}, [&](const Tile<S>& t) {
        for (Index i = 0; i < t.nq; ++i)
          for (Index j = 0; within(q[t.q0 + i], queries) && j < t.nk; ++j)
            if (within(k[t.k0 + j], keys)) f(q[t.q0 + i], k[t.k0 + j], t.data[i * t.ld + j]);
      });
    });
  } else {
    visit_weights<P>(context, scores, lse, queries, keys, [&](const Tile<S>& t) {
      for (Index i = 0; i < t.nq; ++i)
        for (Index j = 0; j < t.nk; ++j) f(t.q0 + i, t.k0 + j, t.data[i * t.ld + j]);
    });
  }
}

/// out = the block of the map that begins at (q0, k0), as large as out.
template <class P, class Mods>
void map_block(const Context& context, const Scores<typename P::Scalar, Mods>& scores,
               Lse<const typename P::Scalar> lse, Index q0, Index k0, MutView<typename P::Scalar> out) {
  using S = typename P::Scalar;
  if constexpr (Mods::gathers) out.fill(S(0));
  visit_pairs<P>(context, scores, lse, {q0, q0 + out.rows}, {k0, k0 + out.cols}, [&](Index i, Index j, const S& a) {
    if constexpr (Mods::gathers)
      out(i - q0, j - k0) += a;  // of a mirrored border a key may come twice
    else
      out(i - q0, j - k0) = a;
  });
}

/// out_i = - sum_j A_ij log A_ij, in nats; 0 for a row without keys.
template <class P, class Mods>
void entropy(const Context& context, const Scores<typename P::Scalar, Mods>& scores, Lse<const typename P::Scalar> lse,
             typename P::Scalar* out) {
  using S = typename P::Scalar;
  for (Index i = 0; i < scores.n(); ++i) out[i] = S(0);
  visit_pairs<P>(context, scores, lse, {0, scores.n()}, {0, scores.m()}, [&](Index i, Index, const S& a) {
    using std::log;
    if (!(a <= S(0))) out[i] -= a * log(a);  // a NaN shows
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
