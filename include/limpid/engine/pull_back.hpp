// limpid: the sweep `pull_back`, the vector-Jacobian product of one or two maps: dS from dA given as a thin product,
// then dQ, dK, dV and what hangs on scores, the log-sum-exp known.
//
// FlashAttention-2's backward (Dao 2023, arXiv 2307.08691) with lanes along keys: key blocks outside, the transposed
// key and value panels are made once a block, queries are read where they lie and broadcast. dK and dV of a block stay
// in cache. Keys are cut into at most four chunks by shape alone; each sums its own dQ and these are added in order, so
// the bits do not depend on who ran what.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "../core/context.hpp"
#include "backward_plan.hpp"
#include "guard.hpp"
#include "weights_tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// dS of each map from dA, softmax: P (dA - delta), P weighted; zero where P is, as dA may have overflowed there.
template <class P, int M, bool Keep, class Weight>
struct StoreGradients {
  using S = typename P::Scalar;
  Index ld;
  const S* weights[M];
  S* ds[M];
  const S* delta[M];
  S *total, *da;
  Weight function;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    const Index at = r * ld + lane;
    const typename P::V zero = P::set(S(0)), sum = P::load(weights[0] + at);
    P::store(ds[0] + at, P::if_equal(sum, zero, zero, gradient(0, r, sum, acc)));
    if constexpr (M == 2) {
      const typename P::V second = P::load(weights[1] + at);
      P::store(ds[1] + at, P::if_equal(second, zero, zero, gradient(1, r, second, acc)));
      P::store(total + at, sum + second);
    }
    if constexpr (Keep) P::store(da + at, acc);
  }
  LIMPID_INLINE typename P::V gradient(int t, Index r, const typename P::V& w, const typename P::V& acc) const {
    if constexpr (Weight::normalised)
      return weight_gradient<P>(function, w, acc, P::set(delta[t][r]));
    else
      return weight_gradient<P>(function, w, acc, acc);
  }
};

template <class P, bool Emit, int M, class Mods>
void pull_chunk(const PullPlan<typename P::Scalar, Mods, M>& plan, Index chunk, Index begin, Index end,
                const std::array<MutView<typename P::Scalar>, M>& dq, typename P::Scalar* sinks, Arena& arena) {
  using S = typename P::Scalar;
  using Blocks = PullBlocks<P>;
  constexpr Index ld = Blocks::keys, rows = Blocks::queries;
  const Index n = plan.left.rows, w = plan.dv.given() ? plan.x.cols : 0;
  Index width = plan.left.cols;  // of what is read for a query
  for (const auto& map : plan.maps) width += 2 * map.scores.q.cols;
  const bool far = n * width * static_cast<Index>(sizeof(S)) > 2 * second_cache;
  const auto take_tile = [&] { return arena.take<S>(rows * ld); };

  std::array<KeyPanel<P>, M> keys = [&] {
    if constexpr (M == 1)
      return std::array<KeyPanel<P>, 1>{KeyPanel<P>(arena, plan.maps[0].scores.k.cols)};
    else
      return std::array<KeyPanel<P>, 2>{KeyPanel<P>(arena, plan.maps[0].scores.k.cols),
                                        KeyPanel<P>(arena, plan.maps[1].scores.k.cols)};
  }();
  S* right_t = arena.take<S>(plan.right.cols * ld);
  S *weights[M], *ds[M], *raw[M], *dk_block[M], *q_copy[M], *keys_off[M];
  const S* q_rows[M];
  Index q_stride[M];
  for (int t = 0; t < M; ++t) {
    weights[t] = take_tile();
    ds[t] = M == 1 ? take_tile() : weights[t];
    raw[t] = Mods::values ? take_tile() : nullptr;
    dk_block[t] = arena.take<S>(padded<P>(plan.maps[t].scores.k.cols) * ld);
    q_copy[t] = arena.take<S>(padded<P>(plan.maps[t].scores.q.cols) * rows);
    keys_off[t] = plan.maps[t].scores.by_pair() ? arena.take<S>(padded<P>(plan.maps[t].scores.k.cols) * ld) : nullptr;
  }
  S* total = M == 1 ? weights[0] : take_tile();
  S* da = Emit ? take_tile() : nullptr;
  S* dv_block = arena.take<S>(padded<P>(w) * ld);
  S* x_copy = arena.take<S>(padded<P>(w) * rows);
  TileRows<P> row(arena);
  NearPairs near_pairs = {};
  S* taken = nullptr;  // of keys: sums of dS of far pairs
  if (plan.maps[0].scores.near_alone()) {
    near_pairs.places = arena.take<Index>(rows * ld);
    row.near = &near_pairs;
    taken = arena.take<S>(ld);
  }
  std::array<S*, 2> moment_keys = {};
  S *distances = nullptr, *no_start = nullptr;
  for (std::size_t p = 0; p < 2; ++p) {
    if (!plan.moments[p].sums) continue;
    if (plan.moments[p].part.cols == 0) {
      moment_keys[p] = arena.take<S>(plan.moments[p].k.cols * ld);
    } else if (!distances) {
      distances = take_tile(), no_start = arena.take<S>(ld);
      clear(no_start, ld);
    }
  }
  const auto near = NextRows<P>::none(total);
  const bool sinking = Mods::sinks && plan.maps[0].scores.mods->wants_sink();

  for (Index k0 = begin; k0 < end; k0 += ld) {
    const Index k1 = std::min(k0 + ld, end), nk = k1 - k0, vectors = (nk + P::lanes - 1) / P::lanes;
    for (int t = 0; t < M; ++t) {
      const auto& map = plan.maps[t];
      keys[t].load(map.scores, k0, nk);
      clear(dk_block[t], padded<P>(map.scores.k.cols) * ld);
      if (keys_off[t])
        rows_taken_off<P>(map.scores.parts, map.scores.k.row(k0), map.scores.k.stride, nk, map.scores.k.cols,
                          keys_off[t]);
      if (map.dbias) clear(map.dbias + k0, nk);
    }
    transpose_into<P>(plan.right.block(k0, 0, nk, plan.right.cols), right_t, ld);
    for (std::size_t p = 0; p < 2; ++p)
      if (const View<S>& k = plan.moments[p].k; moment_keys[p])
        transpose_into<P>(k.block(k0, 0, nk, k.cols), moment_keys[p], ld);
    clear(dv_block, padded<P>(w) * ld);
    if (taken) clear(taken, ld);
    if constexpr (Emit) clear(plan.emission.c + k0, nk);

    for (Index block = 0; block < n; block += rows) {
      const Interval seen = queries_that_see(plan.maps[0].scores, block, std::min(n, block + rows), k0, k1);
      const Index q0 = seen.begin, nq = seen.end - q0;
      if (nq <= 0) continue;
      const Index after = block + rows < n ? block + rows : 0;
      const auto next = [&](View<S> v) { return far ? NextRows<P>{v.row(after), v.stride} : near; };

      StoreGradients<P, M, Emit, WeightOf<Mods>> store;
      store.ld = ld, store.total = total, store.da = da, store.function = plan.maps[0].scores.weight;
      for (int t = 0; t < M; ++t) {
        const auto& map = plan.maps[t];
        const Tile<S> tile{weights[t], ld, q0, nq, k0, nk};
        weights_tile<P>(map.scores, map.lse, map.weight, tile, keys[t].transposed, row, raw[t], next(map.scores.q));
        store.weights[t] = weights[t], store.ds[t] = ds[t], store.delta[t] = map.delta ? map.delta + q0 : nullptr;
      }
      product<P, Walk::rows>(nq, vectors, plan.left.cols, plan.left.row(q0), plan.left.stride, right_t, ld,
                             fetching(next(plan.left), store));

      const Tile<S> tile{total, ld, q0, nq, k0, nk};
      if constexpr (Emit) emit_relevance<P>(tile, total, da, plan.emission);
      for (int t = 0; t < M; ++t) {
        const auto& map = plan.maps[t];
        if (Mods::values || sinking) {
          const auto& mods = *map.scores.mods;
          At a = map.scores.place(q0, k0);
          for (Index i = 0; i < nq; ++i) {
            a.q = q0 + i;
            for (Index j = 0; j < nk; ++j) {
              a.k = k0 + j;
              S& g = ds[t][i * ld + j];
              if (g == S(0)) continue;  // masked, perhaps: no derivative is asked of a score that was none
              g = mods.pull(Mods::values ? raw[t][i * ld + j] : S(0), g, a, sinks);
            }
          }
        }
        if constexpr (are_distances<Mods> && M == 1)
          for (std::size_t p = 0; p < 2; ++p) {
            const auto& moment = plan.moments[p];
            const Tile<S> of_ds{ds[t], ld, q0, nq, k0, nk};
            if (moment_keys[p]) {
              moment.sums[chunk] += moment_of_tile<P>(of_ds, moment.q, moment_keys[p]);
            } else if (moment.sums) {
              const View<S> q = map.scores.q;
              tile_by_pair<P, true>(map.scores, {moment.part}, {distances, ld, q0, nq, k0, nk}, vectors, q.row(q0),
                                    q.stride, keys[t].transposed, no_start);
              moment.sums[chunk] += moment_of_distances<P>(of_ds, distances);
            }
          }
        if (map.dbias)
          for (Index i = 0; i < nq; ++i) add_row<P>(ds[t] + i * ld, map.dbias + k0, nk);
        const Index d = map.scores.k.cols, features = padded<P>(d) / P::lanes;
        const bool by_pair = map.scores.by_pair();
        const View<S> q = map.scores.q;
        if constexpr (are_distances<Mods> && M == 1)
          if (taken) {
            pull_near_pairs<P>(map.scores, near_pairs, {ds[t], ld, q0, nq, k0, nk},
                               dq[t].given() ? dq[t].row(q0) : nullptr, dq[t].stride,
                               map.dk.given() ? dk_block[t] : nullptr, padded<P>(d));
            for (Index i = 0; i < nq; ++i) {
              const S* of_row = ds[t] + i * ld;
              add_row<P>(of_row, taken, nk);
              if (dq[t].given())
                take_off_middle<P>(map.scores.parts, row_sum<P>(of_row, nk), q.row(q0 + i), dq[t].row(q0 + i));
            }
          }
        if (by_pair && dq[t].given()) {
          if constexpr (are_distances<Mods>) {
            rows_taken_off<P>(map.scores.parts, map.scores.q.row(q0), map.scores.q.stride, nq, d, q_copy[t]);
            add_differences<P, Walk::rows>(map.scores.parts, nq, features, nk, ds[t], ld, keys[t].rows, keys[t].stride,
                                           q_copy[t], padded<P>(d), dq[t].row(q0), dq[t].stride);
          }
        } else if (dq[t].given()) {
          product<P, Walk::rows>(nq, features, nk, ds[t], ld, keys[t].rows, keys[t].stride,
                                 fetching(next(dq[t]), Accumulate<P>{dq[t].row(q0), dq[t].stride}));
        }
        if (map.dk.given()) {
          whole_rows<P>(q.block(q0, 0, nq, d), q_copy[t], q_rows[t], q_stride[t]);
          if (by_pair) {
            if constexpr (are_distances<Mods>)
              add_differences<P, Walk::columns>(map.scores.parts, nk, features, nq, ds[t], ld, q_rows[t], q_stride[t],
                                                keys_off[t], padded<P>(d), dk_block[t], padded<P>(d));
          } else {
            product<P, Walk::columns>(nk, features, nq, ds[t], ld, q_rows[t], q_stride[t],
                                      Accumulate<P>{dk_block[t], padded<P>(d)});
          }
        }
      }
      if (w > 0) {
        const S* x_rows;
        Index x_stride;
        whole_rows<P>(plan.x.block(q0, 0, nq, w), x_copy, x_rows, x_stride);
        product<P, Walk::columns>(nk, padded<P>(w) / P::lanes, nq, total, ld, x_rows, x_stride,
                                  Accumulate<P>{dv_block, padded<P>(w)});
      }
    }

    for (int t = 0; t < M; ++t) {
      const auto& map = plan.maps[t];
      if (!map.dk.given()) continue;
      const Index d = map.scores.k.cols;
      if constexpr (are_distances<Mods>)
        if (taken)
          for (Index j = 0; j < nk; ++j)
            take_off_middle<P>(map.scores.parts, taken[j], map.scores.k.row(k0 + j), dk_block[t] + j * padded<P>(d));
      deliver_scaled<P>(View<S>(dk_block[t], nk, d, padded<P>(d)), map.scores.scale, map.dk.block(k0, 0, nk, d),
                        plan.accumulate_k);
    }
    if (w > 0)
      deliver_scaled<P>(View<S>(dv_block, nk, w, padded<P>(w)), S(1), plan.dv.block(k0, 0, nk, w), plan.accumulate_v);
  }
}

template <class P, bool Emit, int M, class Mods>
void pull_back_any(const Context& context, PullPlan<typename P::Scalar, Mods, M> plan, typename P::Scalar* sinks) {
  using S = typename P::Scalar;
  using Blocks = PullBlocks<P>;
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Index n = plan.left.rows, m = plan.right.rows, chunks = Blocks::chunks(m);
  const Index sink_size = plan.maps[0].scores.mods->sink_size(n, m);
  PullGuard<P, M, Mods> guard(arena, plan);
  const Index passes = (m + Blocks::keys - 1) / Blocks::keys;
  const bool one_array = plan.x.data == plan.left.data && plan.x.cols == plan.left.cols;
  plan.left = near_rows(arena, plan.left, passes);
  if (plan.dv.given()) plan.x = one_array ? plan.left : near_rows(arena, plan.x, passes);
  for (auto& map : plan.maps) map.scores.q = near_rows(arena, map.scores.q, passes);

  // The first chunk sums into dq itself where whole vectors fit there.
  using Targets = std::array<MutView<S>, M>;
  const auto fresh = [&](bool first) {
    Targets targets;
    for (int t = 0; t < M; ++t) {
      const MutView<S>& dq = plan.maps[t].dq;
      if (!dq.given()) continue;
      const bool in_place = first && !plan.accumulate_q && dq.cols % P::lanes == 0 && !rows_are_far(dq, passes);
      targets[t] = in_place ? dq : arena.matrix<S>(n, padded<P>(dq.cols));
    }
    return targets;
  };
  const auto restart = [&](Targets& targets, S* partial) {
    for (auto& t : targets)
      for (Index i = 0; i < t.rows; ++i) detail::clear(t.row(i), t.cols);
    detail::clear(partial, sink_size);
  };
  const auto add = [&](Targets& sum, const Targets& part, const S* partial) {
    for (int t = 0; t < M; ++t)
      if (sum[t].given()) deliver_scaled<P>(part[t], S(1), sum[t], true);
    for (Index s = 0; s < sink_size; ++s) sinks[s] += partial[s];
  };

  Targets sum = fresh(true);
  S* sink_parts = arena.take<S>(sink_size * chunks);
  restart(sum, sink_parts);
  if (!context.spreads()) {
    Targets part = chunks > 1 ? fresh(false) : sum;
    for (Index c = 0; c < chunks; ++c) {
      S* partial = sink_parts + c * sink_size;
      Targets& target = c == 0 ? sum : part;
      if (c > 0) restart(target, partial);
      ArenaScope inner(arena);
      pull_chunk<P, Emit, M>(plan, c, Blocks::chunk_begin(m, c), Blocks::chunk_begin(m, c + 1), target, partial, arena);
      if (c > 0) add(sum, part, partial);
    }
  } else {
    Targets parts[4] = {sum};
    for (Index c = 1; c < chunks; ++c) parts[c] = fresh(false);
    context.run(chunks, [&](Index c, Arena& own) {
      S* partial = sink_parts + c * sink_size;
      if (c > 0) restart(parts[c], partial);
      pull_chunk<P, Emit, M>(plan, c, Blocks::chunk_begin(m, c), Blocks::chunk_begin(m, c + 1), parts[c], partial, own);
    });
    for (Index c = 1; c < chunks; ++c) add(sum, parts[c], sink_parts + c * sink_size);
  }
  for (Index s = 0; s < sink_size; ++s) sinks[s] += sink_parts[s];

  for (int t = 0; t < M; ++t) {
    const MutView<S>& dq = plan.maps[t].dq;
    if (!dq.given()) continue;
    deliver_scaled<P>(View<S>(sum[t]).block(0, 0, n, dq.cols), plan.maps[t].scores.scale, dq, plan.accumulate_q);
  }
  guard.poison(sinks);
}

/// Gradients of one head from dA = left right^T (left n x r, right m x r):
///     dS_t = weight_t A_t o (dA - delta_t 1^T),  dQ_t = scale_t dS_t K_t,  dK_t = scale_t dS_t^T Q_t,
///     dbias_t = column sums of dS_t,  dV = (sum_t weight_t A_t)^T x.
/// Where a modifier changes values, dS is taken back through its derivative first. sinks: sink_size(n, m) numbers,
/// added to. 2 n m (sum_t 3 d_t + r + w) flop; scratch: one tile set a worker and at most four times n x d.
template <class P, int M, class Mods>
void pull_back(const Context& context, const PullPlan<typename P::Scalar, Mods, M>& plan, typename P::Scalar* sinks) {
  if (plan.emission.c != nullptr)
    pull_back_any<P, true, M>(context, plan, sinks);
  else
    pull_back_any<P, false, M>(context, plan, sinks);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
