// limpid: the sweep `smooth_transposed`, A^T G, the log-sum-exp known.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "gather.hpp"
#include "guard.hpp"
#include "pull_cut.hpp"
#include "weights_tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// A worker's tasks of A^T g, with the scratch that they use one after the other.
template <class P, class Mods>
class TransposedTasks {
 public:
  using S = typename P::Scalar;

  TransposedTasks(Arena& arena, const PullCut<P>& cut, const Scores<S, Mods>& scores, Lse<const S> lse, View<S> g)
      : cut_(cut),
        scores_(scores),
        lse_(lse),
        g_(g),
        keys_(arena, scores.k.cols),
        row_(arena),
        tile_(arena.take<S>(PullBlocks<P>::queries * ld)),
        sum_(arena.take<S>(padded<P>(g.cols) * ld)),
        copy_(arena.take<S>(padded<P>(g.cols) * PullBlocks<P>::queries)) {}
  TransposedTasks(const TransposedTasks&) = delete;
  TransposedTasks& operator=(const TransposedTasks&) = delete;

  /// The sums of a block of keys over blocks of queries.
  View<S> sums(Index keys, Interval blocks) {
    const Interval own = cut_.keys(keys);
    const Index nk = own.end - own.begin, w = g_.cols, pw = padded<P>(w);
    if (loaded_ != keys) keys_.load(scores_, own.begin, nk), loaded_ = keys;
    bool gathered = false;
    for (Index i = blocks.begin; i < blocks.end; ++i) {
      const Interval block = cut_.queries(i);
      const Interval seen = queries_that_see(scores_, block.begin, block.end, own.begin, own.end);
      const Index q0 = seen.begin, nq = seen.end - q0;
      if (nq <= 0) continue;
      weights_tile<P>(scores_, lse_, static_cast<const S*>(nullptr), {tile_, ld, q0, nq, own.begin, nk},
                      keys_.transposed, row_, static_cast<S*>(nullptr), NextRows<P>::none(tile_));
      if (2 * w <= P::lanes) {
        for (Index c = 0; c < w; ++c) add_column(q0, nq, nk, c, pw, gathered);
      } else {
        const S* g_rows;
        Index g_stride;
        padded_rows<P>(g_.block(q0, 0, nq, w), copy_, g_rows, g_stride);
        product<P, Transposed::a>(nk, pw / P::lanes, nq, tile_, ld, g_rows, g_stride,
                                  StoreOrAdd<P>{sum_, pw, gathered});
      }
      gathered = true;
    }
    if (!gathered) clear(sum_, pw * ld);
    return {sum_, nk, w, pw};
  }

 private:
  static constexpr Index ld = PullBlocks<P>::keys;

  /// One column of the product, lanes along keys: of few columns whole vectors would be padding for the most part. The
  /// same sums in the same order, so the same bits.
  void add_column(Index q0, Index nq, Index nk, Index c, Index stride, bool gathered) {
    constexpr Index most = 4;           // chains of multiply-adds at a time
    static_assert(ld % P::lanes == 0);  // so that the last vector of keys lies in a row of the tile
    using V = typename P::V;
    S part[most * P::lanes];
    for (Index j = 0; j < nk; j += most * P::lanes) {
      V sums[most];
      for (V& sum : sums) sum = P::set(S(0));
      const Index vectors = std::min(most, (nk - j + P::lanes - 1) / P::lanes);
      const auto add = [&](Index count) {
        for (Index i = 0; i < nq; ++i) {
          const V x = P::set(g_(q0 + i, c));
          for (Index v = 0; v < count; ++v) sums[v] = P::fma(P::load(tile_ + i * ld + j + v * P::lanes), x, sums[v]);
        }
      };
      if (vectors == most)
        add(most);
      else
        add(vectors);
      for (Index v = 0; v < vectors; ++v) P::store(part + v * P::lanes, sums[v]);
      for (Index l = 0; l < std::min(most * P::lanes, nk - j); ++l) {
        S& to = sum_[(j + l) * stride + c];
        to = gathered ? to + part[l] : part[l];
      }
    }
  }

  const PullCut<P>& cut_;
  const Scores<S, Mods>& scores_;
  const Lse<const S> lse_;
  const View<S> g_;
  KeyPanel<P> keys_;
  const TileRows<P> row_;
  S *tile_, *sum_, *copy_;
  Index loaded_ = -1;
};

template <class P, class Mods>
void smooth_transposed_rows(const Context& context, Scores<typename P::Scalar, Mods> scores,
                            Lse<const typename P::Scalar> lse, View<typename P::Scalar> g,
                            MutView<typename P::Scalar> out, bool accumulate) {
  using S = typename P::Scalar;
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Guard<P, Mods> guard(context, {&scores}, {.x = &g});

  const PullCut<P> cut(scores);
  const PullTaskList<P, S, Mods> tasks(arena, cut, scores);
  context.run(
      tasks.count(), [&](Arena& own) { return TransposedTasks<P, Mods>(own, cut, scores, lse, g); },
      [&](TransposedTasks<P, Mods>& worker, Index task) {
        const auto& it = tasks[task];
        const View<S> sums = worker.sums(it.keys, cut.blocks(it.stretch));
        context.in_order(tasks.of_keys(it.keys), task, it.next, [&] {
          const MutView<S> to = out.block(cut.keys(it.keys).begin, 0, sums.rows, sums.cols);
          copy_or_add_scaled<P>(sums, S(1), to, accumulate || !it.first);
        });
      });
  guard.poison_transposed(out);
}

/// The same block by block.
template <class P, class Mods>
void smooth_transposed_gathered(const Context& context, const Scores<typename P::Scalar, Mods>& scores,
                                const Lse<const typename P::Scalar>& lse, View<typename P::Scalar> g,
                                MutView<typename P::Scalar> out, bool accumulate) {
  using S = typename P::Scalar;
  ArenaScope scope(context.arena());
  const GatherPlan<P, Mods> plan(context.arena(), scores);
  Order& order = *context.arena().template take<Order>(1);
  if (!accumulate) out.fill(S(0));
  constexpr bool own_keys = blocks_own_keys<Mods>();
  const auto sweep = [&](const auto& block, Index number, const Context& own_context) {
    const MutView<S> own = own_context.arena().template matrix<S>(block.keys(), out.cols);
    smooth_transposed_rows<P, Gathered<Mods>>(own_context, block.of(scores), block.of_queries(lse), block.of_queries(g),
                                              own, false);
    if (own_keys)
      block.add_to_keys(own, out);
    else
      context.in_order(order, number, number + 1, [&] { block.add_to_keys(own, out); });
  };
  for_gathered<P>(context, plan, scores, sweep, own_keys);
}

/// out = A^T g (g n x w, out m x w), the log-sum-exp known. 2 n m (d + w) flop.
template <class P, class Mods>
void smooth_transposed(const Context& context, const Scores<typename P::Scalar, Mods>& scores,
                       Lse<const typename P::Scalar> lse, View<typename P::Scalar> g, MutView<typename P::Scalar> out,
                       bool accumulate = false) {
  if constexpr (Mods::gathers)
    smooth_transposed_gathered<P, Mods>(context, scores, lse, g, out, accumulate);
  else
    smooth_transposed_rows<P, Mods>(context, scores, lse, g, out, accumulate);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
