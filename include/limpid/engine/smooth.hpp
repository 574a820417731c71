// limpid: the sweep `smooth`: A X and the row log-sum-exp, by key blocks with a running maximum, or with the
// log-sum-exp known.
//
// Online softmax: Milakov & Gimelshein 2018, arXiv 1805.02867; tiled with the log-sum-exp kept: Dao et al. 2022,
// 2205.14135. Lanes are queries: maximum, sum, rescale and mask are per-lane operations, K and X are read where they
// lie and broadcast.
//
// The log-sum-exp is kept as two numbers, see Lse. Where it is known a sweep needs no maximum, and divides by the sum
// at the end, as the first one did.
// SPDX-License-Identifier: MIT
#pragma once

#include "decode.hpp"
#include "distance.hpp"
#include "gather.hpp"
#include "guard.hpp"
#include "online_step.hpp"
#include "smooth_lines.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class P>
struct StoreScores {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S* bias;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    P::store(out + r * ld + lane, P::fma(acc, P::set(scale), P::set(bias[r])));
  }
};

/// The same, and the largest score of every query so far, to be had while scores are in registers. HasBias: false
/// where the biases of all keys are 0, for which there is no register with AVX2.
template <class P, bool HasBias>
struct StoreAndFindTop {
  using S = typename P::Scalar;
  using V = typename P::V;
  S* out;
  Index ld;
  S scale;
  const S* bias;
  S* top;
  template <int R, int N>
  LIMPID_INLINE void tile(Index r0, Index lane, const V (&acc)[R][N]) const {
    V most[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) most[v] = P::load(top + lane + v * P::lanes);
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      S* row = out + (r0 + r) * ld + lane;
      const V added = P::set(HasBias ? bias[r0 + r] : S(0));
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) {
        const V score = HasBias ? P::fma(acc[r][v], P::set(scale), added) : acc[r][v] * P::set(scale);
        P::store(row + v * P::lanes, score);
        most[v] = P::max(most[v], score);
      }
    }
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) P::store(top + lane + v * P::lanes, most[v]);
  }
};

template <class P>
struct StoreWithLse {  // exp(score - top), queries in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S *bias, *top;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    typename P::V s[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v)
      s[v] = P::fma(acc[v], P::set(scale), P::set(bias[r])) - P::load(top + lane + v * P::lanes);
    P::template exp_each<N>(s);
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) P::store(out + r * ld + lane + v * P::lanes, s[v]);
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

/// One block of queries [q0, q1) of one map: load, then every block of keys in order, then finish.
template <class P, bool Online, class Mods>
class SmoothBlock {
 public:
  using S = typename P::Scalar;
  using Blocks = SmoothBlocks<P>;
  static constexpr Index width = Blocks::panel;

  SmoothBlock(const SmoothMap<S, Mods>& map, Index q0, Index q1, Arena& arena)
      : map_(map), scores_(map.scores), q0_(q0), q1_(q1), count_((q1 - q0 + width - 1) / width) {
    const Index d = scores_.q.cols, dv = map.x.cols;
    qt_ = arena.take<S>(count_ * d * width);
    ot_ = arena.take<S>(count_ * dv * width);
    tile_ = arena.take<S>(Blocks::keys * width);
    bias_ = arena.take<S>(Blocks::keys);
    top_ = arena.take<S>(count_ * width);
    sum_ = arena.take<S>(count_ * width);
    alpha_ = arena.take<S>(width);
    found_ = arena.take<S>(width);
    for (Index p = 0; p < count_; ++p) {
      const Index first = first_of(p), rows = rows_of(p);
      transpose_into<P>(scores_.q.block(first, 0, rows, d), qt_ + p * d * width, width);
      for (Index l = 0; l < width; ++l) {
        top_[p * width + l] = minus_infinity<S>();
        sum_[p * width + l] = S(0);
        // padding lanes weigh nothing
        if (!Online) {
          const S constant = l < rows ? scores_.row_constant(first + l, first) : S(0);
          if constexpr (are_normalised<Mods>)
            top_[p * width + l] = l < rows ? map.known.top[first + l] + constant : -minus_infinity<S>();
          else
            top_[p * width + l] = constant;
        }
      }
    }
    clear(ot_, count_ * dv * width);
    if (!Online) std::fill(alpha_, alpha_ + width, S(1));
  }

  /// Keys [k0, k1), those of them that a panel sees.
  void add_keys(Index k0, Index k1) {
    const Index d = scores_.q.cols, dv = map_.x.cols;
    for (Index p = 0; p < count_; ++p) {
      const Index first = first_of(p), rows = rows_of(p), vectors = (rows + P::lanes - 1) / P::lanes;
      const Interval own = scores_.key_range(first, first + rows);
      const Index b = std::max(k0, own.begin), nk = std::min(k1, own.end) - b;
      if (nk <= 0) continue;
      if constexpr (Mods::irregular)
        if (scores_.cover(first, first + rows, b, b + nk) == Cover::none) continue;
      const Tile<S> t{tile_, width, first, rows, b, nk};
      const bool mixed = scores_.mixed(first, rows);
      if (mixed) key_bias_by_row<P, false>(scores_, t, vectors, bias_);
      scores_.key_bias(first, b, nk, bias_);
      const S* panel = qt_ + p * d * width;
      S *top = top_ + p * width, *sum = sum_ + p * width;
      if constexpr (Online || Mods::per_pair || !are_normalised<Mods>) {
        const bool sums_parts = scores_.by_pair() || mixed;
        std::copy(top, top + width, found_);
        S* const found = product_finds_top && (!sums_parts || scores_.near_alone()) && keeps_all(t) ? found_ : nullptr;
        if (sums_parts)
          scores_by_pair(t, vectors, panel, mixed, found);
        else if constexpr (product_finds_top)
          with_keys(b, nk, vectors, panel,
                    StoreAndFindTop<P, Scores<S, Mods>::adds>{tile_, width, scores_.scale, bias_, found_});
        else
          with_keys(b, nk, vectors, panel, StoreScores<P>{tile_, width, scores_.scale, bias_});
        if constexpr (Mods::per_pair) value_tile<P, false>(scores_, t);
        drop_keys<P, false>(scores_, bias_, t, minus_infinity<S>());
        if constexpr (have_masks<Mods>) mask_tile<P, false>(scores_, t, minus_infinity<S>());
        if constexpr (!Online) {
          weights_from_scores<P>(scores_.weight, tile_, width, nk, vectors, top);
        } else {
          const auto step = [&](const auto& at_infinity) {
            if (vectors == P::tile_vectors) {
              online_step<P, P::tile_vectors>(tile_, width, nk, found, top, sum, alpha_, part(p, b, nk), at_infinity);
            } else {
              for (Index l = 0; l < vectors * P::lanes; l += P::lanes)
                online_step<P, 1>(tile_ + l, width, nk, found ? found + l : nullptr, top + l, sum + l, alpha_ + l,
                                  part(p, b, nk), at_infinity);
            }
          };
          if constexpr (top_finds_near) {
            const auto make_near = [&] {
              if (scores_.near_alone())
                make_near_pairs<P, false>(scores_, scores_.parts, t, vectors, mixed ? nullptr : bias_);
            };
            step(FunctionRef<void()>(make_near));  // one online_step for all modifiers
          } else {
            step(nullptr);
          }
        }
      } else {
        if (scores_.by_pair() || mixed) {
          scores_by_pair(t, vectors, panel, mixed, nullptr);
          weights_from_scores<P>(scores_.weight, tile_, width, nk, vectors, top);
        } else {
          with_keys(b, nk, vectors, panel, StoreWithLse<P>{tile_, width, scores_.scale, bias_, top});
        }
        drop_keys<P, false>(scores_, bias_, t, S(0));
        if constexpr (have_masks<Mods>) mask_tile<P, false>(scores_, t, S(0));
      }
      const Rescale<P> rescale{ot_ + p * dv * width, width, alpha_};
      if constexpr (are_gathered<Mods>)
        if (scores_.listed) {
          product<P, Transposed::a>(dv, vectors, nk, map_.x.data, RowList{scores_.block->k + b, map_.x.stride}, tile_,
                                    width, rescale);
          continue;
        }
      product<P, Transposed::a>(dv, vectors, nk, map_.x.row(b), map_.x.stride, tile_, width, rescale);
    }
  }

  /// Writes out and the log-sum-exp.
  void finish() {
    const Index dv = map_.x.cols;
    for (Index p = 0; p < count_; ++p) {
      const Index first = first_of(p), rows = rows_of(p);
      for (Index l = 0; l < rows; ++l) {
        if constexpr (Online) {
          S total = sum_[p * width + l], top = top_[p * width + l];
          const S shrink = scores_.add_sink(first + l, first, top, total), inverse = scores_.one_over(total, top);
          const bool none = total == S(0);
          alpha_[l] = Mods::sinks ? inverse * shrink : inverse;
          if (!map_.lse.given()) continue;
          scores_.store_lse(map_.lse, first + l, first, none ? -minus_infinity<S>() : top, inverse);
        } else if constexpr (are_normalised<Mods>) {
          alpha_[l] = map_.known.inverse[first + l];
        } else {
          alpha_[l] = S(1);
        }
      }
      transpose_out<P>(ot_ + p * dv * width, width, alpha_, map_.out.block(first, 0, rows, dv));
    }
  }

 private:
  /// Whether what a product stores are scores that count, so that it finds their maximum: no function makes others of
  /// them, and no mask takes some out. Those of keys that are none are minus infinity.
  static constexpr bool product_finds_top = Online && !Mods::per_pair && !Mods::irregular;
  bool keeps_all(const Tile<S>& t) const {
    if constexpr (Mods::intervals)
      // the ends of each mask's move one way with the query, but not among rows that were gathered
      for (Index i = t.q0; i < t.q0 + t.nq; i += are_gathered<Mods> ? 1 : std::max<Index>(1, t.nq - 1)) {
        const Interval in = scores_.interval(i);
        if (in.begin > t.k0 || in.end < t.k0 + t.nk) return false;
      }
    // a window that every query of a panel sees whole is not worth looking for
    return !are_gathered<Mods> ||
           (!Mods::irregular && (scores_.block->axes == 0 || t.k0 + t.nk <= scores_.block->free));
  }
  /// Whether near pairs are left at infinity until a block's maximum is known, which finds them.
  static constexpr bool top_finds_near = Online && are_distances<Mods> && !Mods::per_pair;

  /// The scores of a tile where distances are summed by pair, or rows are mixed: then it holds their additive parts.
  void scores_by_pair(const Tile<S>& t, Index vectors, const S* panel, bool mixed, S* found) {
    const View<S> k = scores_.k;
    if constexpr (are_distances<Mods>)
      if (scores_.by_pair()) {
        const S* bias = mixed ? nullptr : bias_;
        if constexpr (are_gathered<Mods>)
          if (scores_.listed)
            return tile_of_parts<P, false>(scores_.parts, t, vectors, k.data,
                                           RowList{scores_.block->k + t.k0, k.stride}, panel, bias);
        if constexpr (top_finds_near)
          tile_of_parts<P, false>(scores_.parts, t, vectors, k.row(t.k0), k.stride, panel, bias, found);
        else
          tile_by_pair<P, false>(scores_, scores_.parts, t, vectors, k.row(t.k0), k.stride, panel, bias);
        return;
      }
    with_keys(t.k0, t.nk, vectors, panel, AddScores<P>{tile_, width, scores_.scale});
  }
  /// Products of keys [k0, k0 + nk) and the queries of a panel.
  template <class Epilogue>
  void with_keys(Index k0, Index nk, Index vectors, const S* panel, const Epilogue& epilogue) {
    const View<S> k = scores_.k;
    if constexpr (are_gathered<Mods>)
      if (scores_.listed)
        return product<P, Transposed::none>(nk, vectors, k.cols, k.data, RowList{scores_.block->k + k0, k.stride},
                                            panel, width, epilogue);
    product<P, Transposed::none>(nk, vectors, k.cols, k.row(k0), k.stride, panel, width, epilogue);
  }
  Index first_of(Index p) const { return q0_ + p * width; }
  Index rows_of(Index p) const { return std::min(width, q1_ - first_of(p)); }
  /// What panel p fetches of the block after keys [b, b + nk): every panel its share of the lines.
  Prefetch<S> part(Index p, Index b, Index nk) const {
    const bool tied = map_.x.data == scores_.k.data;  // keys that are their own values
    const Index d = scores_.k.cols, dv = tied ? 0 : map_.x.cols;
    if (are_gathered<Mods> && scores_.listed) return {scores_.k.block(0, 0, 0, 0), map_.x.block(0, 0, 0, 0), 0, 1};
    const bool far = scores_.k.rows * (d + dv) * static_cast<Index>(sizeof(S)) > l2_bytes;
    return {scores_.k.block(b, 0, nk, far ? d : 0), map_.x.block(b, 0, nk, far ? dv : 0), p * line_of<S>,
            count_ * line_of<S>};
  }

  const SmoothMap<S, Mods>& map_;
  const Scores<S, Mods>& scores_;
  Index q0_, q1_, count_;
  S *qt_, *ot_, *tile_, *bias_, *top_, *sum_, *alpha_, *found_;
};

/// How many queries are a task: a whole block, or a part of one where there would be few tasks; a row has the same bits
/// in any. Parts of a panel are for rows that begin with one key, and count no amounts from the panel's first. A serial
/// call with parts of two vectors is as quick as with whole blocks.
template <class P, class Mods>
Index smooth_part(const Context& context, const Scores<typename P::Scalar, Mods>& scores) {
  using Blocks = SmoothBlocks<P>;
  constexpr Index enough = 96, least = 2 * P::lanes;  // tasks; queries
  const Index n = scores.n();
  Index part = Blocks::queries;
  if (!context.spreads() || n >= enough * part) return part;
  part = Blocks::panel;
  const Index begin = scores.key_range(0, n).begin;
  const bool alike = !Mods::row_constants && !scores.mixed(0, n) && scores.key_range(0, 1).begin == begin &&
                     scores.key_range(n - 1, n).begin == begin;
  if (!alike || P::lanes == 1) return part;
  for (const Index smaller : {2 * least, least})
    if (n < enough * part && smaller < part && Blocks::queries % smaller == 0) part = smaller;
  return part;
}

template <class Maps>
void copy_results(const Context& context, const Maps& maps) {
  for (const auto& map : maps)
    if (map.copy.given()) copy_rows<typename decltype(map.copy)::Scalar>(context, map.out, map.copy);
}

/// One map, or several over the same values: these then go through the keys together, a block of values serving all.
template <class P, bool Online, std::size_t M, class Mods>
void smooth_rows(const Context& context, Few<SmoothMap<typename P::Scalar, Mods>, M> maps) {
  using Block = SmoothBlock<P, Online, Mods>;
  constexpr Index step = SmoothBlocks<P>::queries, keys = SmoothBlocks<P>::keys;
  const Index n = maps[0].scores.n(), blocks = (n + step - 1) / step;
  Arena& common = context.arena();
  ArenaScope scope(common);
  const auto guards =
      each_map(maps, [&](auto& map) { return Guard<P, Mods>(context, {&map.scores}, {.right = &map.x}); });
  const bool listed = are_gathered<Mods> && maps[0].scores.listed;
  const bool few = are_normalised<Mods> && !listed && decodes<P>(maps);
  auto tiled = maps;
  bool wanted = !few;
  if constexpr (P::lanes > 1 && are_normalised<Mods>)
    if (few) {
      smooth_decode<P>(context, maps, InOneArray());
      for (auto& map : tiled) {  // the log-sum-exp is summed as later sweeps sum; out is what it is without
        map.x = map.x.block(0, 0, map.x.rows, 0);
        wanted = wanted || map.lse.given();
      }
    }
  if (wanted) {
    const auto* values = tiled[0].x.data;
    for (auto& map : tiled) {
      if (listed) continue;
      map.scores.k = pack_if_strided(context, map.scores.k, blocks);
      map.x = &map != &tiled[0] && map.x.data == values ? tiled[0].x : pack_if_strided(context, map.x, blocks);
    }
    // A row sees the keys in the blocks that its block of queries sees, whatever part of that is a task.
    const Index part = smooth_part<P>(context, tiled[0].scores), parts = (n + part - 1) / part;
    context.run(parts, [&](Index task, Arena& arena) {
      const Index q0 = (parts - 1 - task) * part;  // under a causal mask the last queries have the most to do
      const Index q1 = std::min(n, q0 + part), block_begin = q0 / step * step;
      auto block = each_map(tiled, [&](const auto& map) { return Block(map, q0, q1, arena); });
      const Interval seen = tiled[0].scores.key_range(block_begin, std::min(n, block_begin + step));
      for (Index k0 = seen.begin; k0 < seen.end; k0 += keys)
        for (auto& b : block) b.add_keys(k0, std::min(k0 + keys, seen.end));
      for (auto& b : block) b.finish();
    });
  }
  for (std::size_t t = 0; t < M; ++t) guards[t].poison(maps[t].out, maps[t].lse);
  copy_results(context, maps);
}

/// The same block by block.
template <class P, bool Online, std::size_t M, class Mods>
void smooth_gathered(const Context& context, const Few<SmoothMap<typename P::Scalar, Mods>, M>& maps) {
  using S = typename P::Scalar;
  if constexpr (goes_by_lines<P, Mods>())
    if (std::all_of(maps.begin(), maps.end(),
                    [&](const auto& map) { return smooth_lines<P, Online, Mods>(context, map); }))
      return;
  ArenaScope scope(context.arena());
  const GatherPlan<P, Mods> plan(context.arena(), maps[0].scores);
  // What is finite, or hidden from none, needs no looking through, and keys that a panel reads once no copy.
  const bool whole = keeps_whole_blocks(maps[0].scores);
  bool finite = true, listed = true;
  for (const auto& map : maps) {
    const bool same_values = &map != &maps[0] && map.x.data == maps[0].x.data;
    finite = whole || (finite && (!Mods::per_pair || all_finite<P>(context, map.scores.q)) &&
                       all_finite<P>(context, map.scores.k) && (same_values || all_finite<P>(context, map.x)));
    listed = listed && !map.scores.near_alone();
  }
  listed = listed && finite;
  auto all = maps;
  for (auto& map : all) {
    map.scores.unguarded = finite;
    if (!listed) continue;
    map.scores.k = packed_for_windows(context, map.scores.k);
    const bool same_values = &map != &all[0] && map.x.data == maps[0].x.data;
    map.x = same_values ? all[0].x : packed_for_windows(context, map.x);
  }
  const auto sweep = [&](const auto& block, Index, const Context& own_context) {
    const bool where_they_lie = listed && !block.keys_together();
    const View<S> x = where_they_lie ? all[0].x : block.of_keys(all[0].x);
    const auto own = each_map(all, [&](const auto& map) {
      const View<S> own_x = map.x.data == all[0].x.data ? x : where_they_lie ? map.x : block.of_keys(map.x);
      return SmoothMap<S, Gathered<Mods>>{block.of(map.scores, where_they_lie),
                                          own_x,
                                          block.room(map.out),
                                          block.of_queries(map.known),
                                          block.room(map.lse),
                                          {}};
    });
    smooth_rows<P, Online, M, Gathered<Mods>>(own_context, own);
    for (std::size_t t = 0; t < M; ++t) {
      block.deliver(own[t].out, maps[t].out);
      block.deliver(own[t].lse, maps[t].lse);
    }
  };
  for_gathered<P>(context, plan, all[0].scores, sweep, blocks_own_keys<Mods>());
  copy_results(context, maps);
}

template <class P, bool Online, std::size_t M, class Mods>
void smooth_any(const Context& context, const Few<SmoothMap<typename P::Scalar, Mods>, M>& maps);

/// Of keys and values in pages: a decode reads them where they lie, if nothing else has to; else they are copied side
/// by side.
template <class P, bool Online, std::size_t M, class Mods>
void smooth_in_pages(const Context& context, Few<SmoothMap<typename P::Scalar, Mods>, M> maps) {
  using Plain = typename P::Plain;
  const KeyPages& pages = *context.pages();
  ArenaScope scope(context.arena());
  const View<typename P::Scalar> values = maps[0].x;
  const auto same_values = [&](const auto& map) { return &map != &maps[0] && map.x.data == values.data; };
  if constexpr (Plain::lanes > 1 && are_normalised<Mods> && !Mods::gathers) {
    for (auto& map : maps) map.scores.settle(context.arena());
    bool in_place = decodes<Plain>(maps);
    for (const auto& map : maps)
      in_place = in_place && !map.lse.given() && !map.copy.given() &&
                 (!map.scores.can_mask() ||
                  (pages_are_finite<Plain>(context, pages, pages.k_stride, map.scores.k) &&
                   (same_values(map) || pages_are_finite<Plain>(context, pages, pages.v_stride, map.x)) &&
                   (!Mods::per_pair || all_finite<Plain>(context, map.scores.q))));
    if (in_place) return smooth_decode<Plain>(context, maps, RowsOfPages{pages});
  }
  for (auto& map : maps) {
    map.scores.k = copied_pages(context, pages, pages.k_stride, map.scores.k);
    map.x = same_values(map) ? maps[0].x : copied_pages(context, pages, pages.v_stride, map.x);
  }
  smooth_any<Plain, Online, M, Mods>(context, maps);
}

template <class P, bool Online, std::size_t M, class Mods>
void smooth_any(const Context& context, const Few<SmoothMap<typename P::Scalar, Mods>, M>& maps) {
  if constexpr (in_pages<P>)
    smooth_in_pages<P, Online, M, Mods>(context, maps);
  else if constexpr (Mods::gathers)
    smooth_gathered<P, Online, M, Mods>(context, maps);
  else
    smooth_rows<P, Online, M, Mods>(context, maps);
}

/// out = A x for one head, x m x dv, out n x dv; lse (may be null, and is where weights are not normalised) for later
/// sweeps; copy (may be null): where out goes as well.
/// 2 n m (d + dv) flop; scratch of one block of queries a worker.
template <class P, class Mods>
void smooth(const Context& context, const Scores<typename P::Scalar, Mods>& scores, View<typename P::Scalar> x,
            MutView<typename P::Scalar> out, LseUnder<typename P::Scalar, WeightOf<Mods>> lse,
            MutView<typename P::Scalar> copy = {}) {
  smooth_any<P, are_normalised<Mods>, 1, Mods>(context, {{{scores, x, out, {}, lse, copy}}});
}

/// The same for two maps over the same values in one pass over the keys.
template <class P, class Mods>
void smooth_both(const Context& context, const Few<Scores<typename P::Scalar, Mods>, 2>& scores,
                 View<typename P::Scalar> x, MutView<typename P::Scalar> first, Lse<typename P::Scalar> first_lse,
                 MutView<typename P::Scalar> second, Lse<typename P::Scalar> second_lse) {
  smooth_any<P, true, 2, Mods>(
      context, {{{scores[0], x, first, {}, first_lse, {}}, {scores[1], x, second, {}, second_lse, {}}}});
}

/// out = A x with the log-sum-exp known: no maximum, no sum.
template <class P, class Mods>
void smooth_with_lse(const Context& context, const Scores<typename P::Scalar, Mods>& scores,
                     Lse<const typename P::Scalar> lse, View<typename P::Scalar> x, MutView<typename P::Scalar> out) {
  smooth_any<P, false, 1, Mods>(context, {{{scores, x, out, lse, {}, {}}}});
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
