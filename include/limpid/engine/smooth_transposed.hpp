// limpid: the sweep `smooth_transposed`, A^T G, the log-sum-exp known.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "guard.hpp"
#include "weights_tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// out = A^T g (g n x w, out m x w), the log-sum-exp known. 2 n m (d + w) flop.
template <class P, class Mods>
void smooth_transposed(const Context& context, Scores<typename P::Scalar, Mods> scores,
                       Lse<const typename P::Scalar> lse, View<typename P::Scalar> g, MutView<typename P::Scalar> out,
                       bool accumulate = false) {
  using S = typename P::Scalar;
  using Blocks = PullBlocks<P>;
  constexpr Index ld = Blocks::keys, rows = Blocks::queries;
  const Index n = scores.n(), m = scores.m(), w = g.cols, pw = padded<P>(w);
  ArenaScope scope(context.arena());
  const Guard<P, Mods> guard(context, {&scores}, {.x = &g});

  context.run((m + ld - 1) / ld, [&](Index task, Arena& arena) {
    const Index k0 = task * ld, k1 = std::min(m, k0 + ld), nk = k1 - k0;
    KeyPanel<P> keys(arena, scores.k.cols);
    S* tile = arena.take<S>(rows * ld);
    S* sum = arena.take<S>(pw * ld);
    S* copy = arena.take<S>(pw * rows);
    const TileRows<P> row(arena);
    keys.load(scores, k0, nk);
    clear(sum, pw * ld);
    for (Index block = 0; block < n; block += rows) {
      const Interval seen = queries_that_see(scores, block, std::min(n, block + rows), k0, k1);
      const Index q0 = seen.begin, nq = seen.end - q0;
      if (nq <= 0) continue;
      const Tile<S> t{tile, ld, q0, nq, k0, nk};
      weights_tile<P>(scores, lse, static_cast<const S*>(nullptr), t, keys.transposed, row, static_cast<S*>(nullptr),
                      NextRows<P>::none(tile));
      const S* g_rows;
      Index g_stride;
      padded_rows<P>(g.block(q0, 0, nq, w), copy, g_rows, g_stride);
      product<P, Transposed::a>(nk, pw / P::lanes, nq, tile, ld, g_rows, g_stride, Accumulate<P>{sum, pw});
    }
    copy_or_add_scaled<P>(View<S>(sum, nk, w, pw), S(1), out.block(k0, 0, nk, w), accumulate);
  });
  guard.poison_transposed(out);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
