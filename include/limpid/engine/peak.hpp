// limpid: the sweep `row_peaks`: log-sum-exp, largest weight and its key for every row of a map, in one pass.
// SPDX-License-Identifier: MIT
#pragma once

#include "smooth.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// As online_step, and place (lane by lane) is the row of the block's maximum, the last one where several share it.
template <class P, int N>
LIMPID_NOINLINE void peak_step(const typename P::Scalar* s, Index ld, Index nk, typename P::Scalar* block_max,
                               typename P::Scalar* place, typename P::Scalar* running_max,
                               typename P::Scalar* running_sum) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V none = P::set(minus_infinity<S>());
  V top[N], base[N], sum[N], at[N];
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) top[v] = P::load(s + v * P::lanes), sum[v] = at[v] = P::set(S(0));
  for (Index j = 1; j < nk; ++j) {
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) top[v] = P::max(top[v], P::load(s + j * ld + v * P::lanes));
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) {
    P::store(block_max + v * P::lanes, top[v]);
    const V newer = P::max(P::load(running_max + v * P::lanes), top[v]);
    base[v] = P::if_equal(newer, none, P::set(S(0)), newer);
  }
  for (Index j = 0; j < nk; ++j) {
    LIMPID_UNROLL(16)
    for (int v = 0; v < N; ++v) {
      const V x = P::load(s + j * ld + v * P::lanes);
      sum[v] = sum[v] + P::exp(x - base[v]);
      at[v] = P::if_less(x, top[v], at[v], P::set(S(j)));
    }
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < N; ++v) {
    S *m = running_max + v * P::lanes, *l = running_sum + v * P::lanes;
    P::store(l, P::fma(P::load(l), P::exp(P::load(m) - base[v]), sum[v]));
    P::store(m, P::max(P::load(m), top[v]));
    P::store(place + v * P::lanes, at[v]);
  }
}

template <class P, class Mods>
void peaks_of_rows(const Context& context, Scores<typename P::Scalar, Mods> scores, Lse<typename P::Scalar> lse,
                   typename P::Scalar* weight, Index* key) {
  using S = typename P::Scalar;
  using Blocks = SmoothBlocks<P>;
  constexpr Index width = Blocks::panel;
  const Index n = scores.n(), d = scores.q.cols;
  ArenaScope scope(context.arena());
  const Guard<P, Mods> guard(context, {&scores});

  context.run((n + width - 1) / width, [&](Index task, Arena& arena) {
    const Index first = task * width, rows = std::min(width, n - first), vectors = (rows + P::lanes - 1) / P::lanes;
    S* panel = arena.take<S>(d * width);
    S* tile = arena.take<S>(Blocks::keys * width);
    S* bias = arena.take<S>(Blocks::keys);
    S *block_max = arena.take<S>(width), *place = arena.take<S>(width);
    S *top = arena.take<S>(width), *sum = arena.take<S>(width);
    transpose_into<P>(scores.q.block(first, 0, rows, d), panel, width);
    for (Index l = 0; l < width; ++l) top[l] = minus_infinity<S>(), sum[l] = S(0);
    for (Index l = 0; l < rows; ++l) key[first + l] = -1;

    const Interval seen = scores.key_range(first, first + rows);
    for (Index b = seen.begin; b < seen.end; b += Blocks::keys) {
      const Index nk = std::min(Blocks::keys, seen.end - b);
      if constexpr (Mods::irregular || are_gathered<Mods>)
        if (scores.cover(first, first + rows, b, b + nk) == Cover::none) continue;
      const Tile<S> t{tile, width, first, rows, b, nk};
      const bool mixed = scores.mixed(first, rows);
      if (mixed) key_bias_by_row<P, false>(scores, t, vectors, bias);
      scores.key_bias(first, b, nk, bias);
      if (mixed)
        product<P, Transposed::none>(nk, vectors, d, scores.k.row(b), scores.k.stride, panel, width,
                                     AddScores<P>{tile, width, scores.scale});
      else
        product<P, Transposed::none>(nk, vectors, d, scores.k.row(b), scores.k.stride, panel, width,
                                     StoreScores<P>{tile, width, scores.scale, bias});
      if constexpr (Mods::per_pair) value_tile<P, false>(scores, t);
      drop_keys<P, false>(scores, bias, t, minus_infinity<S>());
      if constexpr (have_masks<Mods>) mask_tile<P, false>(scores, t, minus_infinity<S>());
      for (Index v = 0; v < vectors * P::lanes; v += P::lanes) {
        S before[P::lanes];
        P::store(before, P::load(top + v));
        peak_step<P, 1>(tile + v, width, nk, block_max + v, place + v, top + v, sum + v);
        for (Index l = 0; l < P::lanes && v + l < rows; ++l)
          if (block_max[v + l] > before[l]) key[first + v + l] = b + static_cast<Index>(place[v + l]);
      }
    }
    for (Index l = 0; l < rows; ++l) {
      const S shrink = scores.add_sink(first + l, first, top[l], sum[l]);
      const bool none = sum[l] == S(0);
      const S inverse = none ? S(0) : S(1) / sum[l];
      weight[first + l] = inverse * shrink;
      scores.store_lse(lse, first + l, first, none ? -minus_infinity<S>() : top[l], inverse);
    }
  });
  guard.poison(MutView<S>(lse.top, n, 0, 0), lse);
}

/// For every row of the map its log-sum-exp, its largest weight and the key that has it; a row without keys has 0 and
/// -1. Where several keys share the largest weight one of them is named. 2 n m d flop.
template <class P, class Mods>
void row_peaks(const Context& context, const Scores<typename P::Scalar, Mods>& scores, Lse<typename P::Scalar> lse,
               typename P::Scalar* weight, Index* key) {
  using S = typename P::Scalar;
  if constexpr (Mods::gathers) {
    ArenaScope scope(context.arena());
    const GatherPlan<P, Mods> plan(context.arena(), scores);
    for_gathered<P>(context, plan, scores, [&](const auto& block, Index, const Context& own_context) {
      Arena& arena = own_context.arena();
      const Lse<S> own = block.room(lse);
      S* own_weight = arena.take<S>(block.queries());
      Index* own_key = arena.take<Index>(block.queries());
      peaks_of_rows<P>(own_context, block.of(scores), own, own_weight, own_key);
      block.deliver(own, lse);
      for (Index i = 0; i < block.queries(); ++i) {
        weight[block.query_rows()[i]] = own_weight[i];
        key[block.query_rows()[i]] = own_key[i] < 0 ? -1 : block.key_rows()[own_key[i]];
      }
    });
  } else {
    peaks_of_rows<P>(context, scores, lse, weight, key);
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
