// limpid: the sweep `smooth`: A X and the row log-sum-exp, by key blocks with a running maximum, or with the
// log-sum-exp known. SPDX-License-Identifier: MIT
//
// Online softmax: Milakov & Gimelshein 2018, arXiv 1805.02867; tiled with the log-sum-exp kept: Dao et al. 2022,
// 2205.14135. Lanes are queries: maximum, sum, rescale and mask are per-lane operations, K and X are read where they
// lie and broadcast.
//
// Inside the library a log-sum-exp is kept in base 2, plus infinity for a row that keeps no key (so that exp2(s - lse)
// = 0).
#pragma once

#include "context.hpp"
#include "smooth_few.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

// Block sizes matter little (anchors: within 3 %); these keep a block of scores in the first cache.
template <class P>
struct SmoothBlocks {
  static constexpr Index panel = P::lanes * P::tile_vectors;  // queries that go through the registers together
  static constexpr Index panels = P::lanes == 1 ? 8 : (128 + panel - 1) / panel;
  static constexpr Index queries = panel * panels, keys = 128;
};

template <class P>
struct StoreScores {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S* start;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    P::store(out + r * ld + lane, P::fma(acc, P::set(scale), P::set(start[r])));
  }
};

template <class P>
struct StoreKnown {  // exp2(score - lse), queries in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S *start, *lse;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    const typename P::V s = P::fma(acc, P::set(scale), P::set(start[r]));
    P::store(out + r * ld + lane, P::exp2(s - P::load(lse + lane)));
  }
};

template <class P>
struct Rescale {  // C = C * alpha + acc: each key block is summed apart, which keeps float's digits
  using S = typename P::Scalar;
  S* out;
  Index ld;
  const S* alpha;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    P::store(p, P::fma(P::load(p), P::load(alpha + lane), acc));
  }
};

template <class P>
struct Accumulate {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    P::store(p, P::load(p) + acc);
  }
};

/// One block of scores becomes weights against the running maximum; alpha is what older sums shrink by.
template <class P, int N>
LIMPID_NOINLINE void online_step(typename P::Scalar* s, Index ld, Index nk, typename P::Scalar* running_max,
                                 typename P::Scalar* running_sum, typename P::Scalar* alpha) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V none = P::set(minus_infinity<S>());
  V top[N], base[N], sum[N];
  for (int v = 0; v < N; ++v) top[v] = P::load(s + v * P::lanes), sum[v] = P::set(S(0));
  for (Index j = 1; j < nk; ++j)
    for (int v = 0; v < N; ++v) top[v] = P::max(top[v], P::load(s + j * ld + v * P::lanes));
  for (int v = 0; v < N; ++v) {
    const V old = P::load(running_max + v * P::lanes);
    top[v] = P::max(old, top[v]);
    base[v] = P::if_equal(top[v], none, P::set(S(0)), top[v]);  // no key so far: exp2(-inf - 0) = 0
    P::store(running_max + v * P::lanes, top[v]);
    P::store(alpha + v * P::lanes, P::exp2(old - base[v]));
  }
  for (Index j = 0; j < nk; ++j)
    for (int v = 0; v < N; ++v) {
      S* p = s + j * ld + v * P::lanes;
      const V e = P::exp2(P::load(p) - base[v]);
      sum[v] = sum[v] + e;
      P::store(p, e);
    }
  for (int v = 0; v < N; ++v) {
    S* l = running_sum + v * P::lanes;
    P::store(l, P::fma(P::load(l), P::load(alpha + v * P::lanes), sum[v]));
  }
}

template <class P>
LIMPID_NOINLINE void weights_from_scores(typename P::Scalar* s, Index ld, Index rows, Index vectors,
                                         const typename P::Scalar* lse) {
  for (Index j = 0; j < rows; ++j)
    for (Index v = 0; v < vectors; ++v) {
      typename P::Scalar* p = s + j * ld + v * P::lanes;
      P::store(p, P::exp2(P::load(p) - P::load(lse + v * P::lanes)));
    }
}

/// One block of queries [q0, q1) against every key it sees.
template <class P, bool Online, class Mods>
void smooth_block(const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> x, Index q0, Index q1,
                  MutView<typename P::Scalar> out, const typename P::Scalar* known, typename P::Scalar* lse,
                  Arena& arena) {
  using S = typename P::Scalar;
  using Blocks = SmoothBlocks<P>;
  constexpr Index width = Blocks::panel;
  const Index d = scores.q.cols, dv = x.cols, count = (q1 - q0 + width - 1) / width;
  const S scale = scores.scale * scores.unit();
  S* qt = arena.take<S>(count * d * width);
  S* ot = arena.take<S>(count * dv * width);
  S* tile = arena.take<S>(Blocks::keys * width);
  S* start = arena.take<S>(Blocks::keys);
  S* top = arena.take<S>(count * width);
  S* sum = arena.take<S>(count * width);
  S* alpha = arena.take<S>(width);

  for (Index p = 0; p < count; ++p) {
    const Index first = q0 + p * width, rows = std::min(width, q1 - first);
    transpose_into<P>(scores.q.block(first, 0, rows, d), qt + p * d * width, width);
    for (Index l = 0; l < width; ++l) {
      top[p * width + l] = minus_infinity<S>();
      sum[p * width + l] = S(0);
      // the known log-sum-exp takes the place of the maximum; padding lanes weigh nothing
      if (!Online)
        top[p * width + l] = l < rows ? known[first + l] + scores.shift(first + l, first) : -minus_infinity<S>();
    }
  }
  clear(ot, count * dv * width);
  if (!Online)
    for (Index l = 0; l < width; ++l) alpha[l] = S(1);

  const Interval seen = scores.hull(q0, q1);
  for (Index k0 = seen.begin; k0 < seen.end; k0 += Blocks::keys) {
    const Index k1 = std::min(k0 + Blocks::keys, seen.end);
    for (Index p = 0; p < count; ++p) {
      const Index first = q0 + p * width, rows = std::min(width, q1 - first);
      const Index vectors = (rows + P::lanes - 1) / P::lanes;
      const Interval own = scores.hull(first, first + rows);
      const Index b = std::max(k0, own.begin), nk = std::min(k1, own.end) - b;
      if (nk <= 0) continue;
      if constexpr (Mods::irregular)
        if (scores.mods->cover(scores.place(0, 0), first, first + rows, b, b + nk) == Cover::none) continue;
      const Tile<S> t{tile, width, first, rows, b, nk};
      scores.starts(first, b, nk, start);
      S* panel = qt + p * d * width;
      if constexpr (Online || Mods::values) {
        product<P, Walk::rows>(nk, vectors, d, scores.k.row(b), scores.k.stride, panel, width,
                               StoreScores<P>{tile, width, scale, start});
        if constexpr (Mods::values) value_tile<P, false>(scores, t);
        drop_keys<P, false>(scores, start, t, minus_infinity<S>());
        if constexpr (Mods::intervals || Mods::irregular) mask_tile<P, false>(scores, t, minus_infinity<S>());
        if constexpr (Online) {
          if (vectors == P::tile_vectors) {
            online_step<P, P::tile_vectors>(tile, width, nk, top + p * width, sum + p * width, alpha);
          } else {
            for (Index v = 0; v < vectors; ++v)
              online_step<P, 1>(tile + v * P::lanes, width, nk, top + p * width + v * P::lanes,
                                sum + p * width + v * P::lanes, alpha + v * P::lanes);
          }
        } else {
          weights_from_scores<P>(tile, width, nk, vectors, top + p * width);
        }
      } else {
        product<P, Walk::rows>(nk, vectors, d, scores.k.row(b), scores.k.stride, panel, width,
                               StoreKnown<P>{tile, width, scale, start, top + p * width});
        drop_keys<P, false>(scores, start, t, S(0));
        if constexpr (Mods::intervals || Mods::irregular) mask_tile<P, false>(scores, t, S(0));
      }
      product<P, Walk::columns>(dv, vectors, nk, x.row(b), x.stride, tile, width,
                                Rescale<P>{ot + p * dv * width, width, alpha});
    }
  }

  for (Index p = 0; p < count; ++p) {
    const Index first = q0 + p * width, rows = std::min(width, q1 - first);
    for (Index l = 0; l < rows; ++l) {
      const S total = Online ? sum[p * width + l] : S(1);
      alpha[l] = total == S(0) ? S(0) : S(1) / total;
      if (Online && lse) {
        using std::log;
        lse[first + l] = total == S(0) ? -minus_infinity<S>()
                                       : top[p * width + l] + log(total) * log2_e<S> - scores.shift(first + l, first);
      }
    }
    transpose_out<P>(ot + p * dv * width, width, alpha, out.block(first, 0, rows, dv));
  }
}

template <class P, bool Online, class Mods>
void smooth_any(const Context& context, Scores<typename P::Scalar, Mods> scores, View<typename P::Scalar> x,
                MutView<typename P::Scalar> out, const typename P::Scalar* known, typename P::Scalar* lse) {
  constexpr Index step = SmoothBlocks<P>::queries;
  const Index n = scores.n(), blocks = (n + step - 1) / step;
  ArenaScope scope(context.arena());
  const KeyGuard<P, Mods> guard(context.arena(), scores, x);
  if (FewQueries::fits<P>(n, scores.m(), scores.q.cols, x.cols)) {
    smooth_few<P, Online>(context, scores, x, out, known, lse);
    if (guard.found()) guard.poison(out, lse);
    return;
  }
  scores.k = near_rows(context.arena(), scores.k, blocks);
  x = near_rows(context.arena(), x, blocks);
  context.run(blocks, [&](Index t, Arena& arena) {
    const Index q0 = (blocks - 1 - t) * step;  // under a causal mask the last queries have the most to do
    smooth_block<P, Online>(scores, x, q0, std::min(n, q0 + step), out, known, lse, arena);
  });
  if (guard.found()) guard.poison(out, lse);
}

/// out = A x for one head, x m x dv, out n x dv; lse (n numbers, base 2, may be null) for later sweeps.
/// 2 n m (d + dv) flop; scratch of one block of queries a worker.
template <class P, class Mods>
void smooth(const Context& context, const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> x,
            MutView<typename P::Scalar> out, typename P::Scalar* lse) {
  smooth_any<P, true>(context, scores, x, out, nullptr, lse);
}

/// out = A x with the log-sum-exp known: no maximum, no sum.
template <class P, class Mods>
void smooth_known(const Context& context, const Scores<typename P::Scalar, Mods>& scores, const typename P::Scalar* lse,
                  View<typename P::Scalar> x, MutView<typename P::Scalar> out) {
  smooth_any<P, false>(context, scores, x, out, lse, nullptr);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
