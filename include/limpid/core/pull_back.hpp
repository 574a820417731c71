// limpid: the sweeps `pull_back` (dS of one or two maps from dA given as a thin product; dQ, dK, dV and what hangs on
// scores) and `smooth_transposed` (A^T G), both with the log-sum-exp known.
// SPDX-License-Identifier: MIT
//
// FlashAttention-2's backward (Dao 2023, arXiv 2307.08691) with lanes along keys: key blocks outside, the transposed
// key and value panels are made once a block, queries are read where they lie and broadcast. dK and dV of a block stay
// in cache. Keys are cut into at most four chunks by shape alone; each sums its own dQ and these are added in order, so
// the bits do not depend on who ran what.
#pragma once

#include <array>

#include "context.hpp"
#include "smooth.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Which part of A * dA counts as relevance: max(x, 0), max(-x, 0), |x| or x.
enum class Part { pos, neg, abs, signed_ };

namespace detail {

inline constexpr Index most_chunks = 4;  // of keys

template <class P>
struct PullBlocks {
  static constexpr Index unit = P::lanes * P::tile_vectors;
  static constexpr Index keys = unit >= 64 ? unit : 64 / unit * unit;
  /// Weights and gradients of a block find room in the first cache where vectors are shorter: backward 4 % quicker in
  /// float, 5 % in double with 16 registers (AVX2, Zen 3). With 32 the size does not matter.
  static constexpr Index queries = P::registers == 32 ? 128 : 64;
  static Index chunks(Index m) {
    const Index blocks = (m + keys - 1) / keys;
    return blocks >= 16 ? most_chunks : (blocks >= 4 ? 2 : 1);
  }
  static Index chunk_begin(Index m, Index chunk) {
    const Index blocks = (m + keys - 1) / keys;
    return std::min(m, blocks * chunk / chunks(m) * keys);
  }
};

/// One map of a pull_back: what it was made of and where its gradients go. delta_i = <left_i, (A right)_i>. weight (one
/// number a query, may be null) is what the map counts by: dS = weight A (dA - delta).
template <class S, class Mods>
struct PullMap {
  Scores<S, Mods> scores;
  Lse<const S> lse;
  const S* delta = nullptr;
  const S* weight = nullptr;
  MutView<S> dq, dk;
  S* dbias = nullptr;  // m numbers, overwritten; may be null
};

/// Relevance sent down with the backward pass: c_j = sum_i w_i part(A_ij dA_ij). Spec: Chefer, Gur, Wolf 2021,
/// 2103.15679.
template <class S>
struct Emission {
  const S* w = nullptr;  // n row weights
  S* c = nullptr;        // m, overwritten
  Part part = Part::pos;
};

/// Asked of a pull_back: sum_ij dS_ij |q_i - k_j|^2, a bandwidth's gradient. By pair, as dS is large where the distance
/// is small: from sums of dS k and dS it would cancel. sums: one a chunk of keys, for the reader to add. part: where
/// the scores are summed by pair, what makes a tile of these distances.
template <class S>
struct Moment {
  static constexpr Index parts = most_chunks, widest = 8;  // wider rows than that cost too much
  View<S> q, k;
  Wide<S>* sums = nullptr;
  ScorePart<S> part = {};
};

template <class P>
struct StoreByRow {  // scores, keys in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S* start;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    P::store(out + r * ld + lane, P::fma(acc, P::set(scale), P::load(start + lane)));
  }
};

template <class P>
struct StoreWeights {  // exp(score - top) factor, keys in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S *start, *top, *factor;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    typename P::V s[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v)
      s[v] = P::fma(acc[v], P::set(scale), P::load(start + lane + v * P::lanes)) - P::set(top[r]);
    P::template exp_each<N>(s);
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) P::store(out + r * ld + lane + v * P::lanes, s[v] * P::set(factor[r]));
  }
};

/// dS = P (dA - delta) for each map, P weighted; zero where P is, as dA may have overflowed there.
template <class P, int M, bool Keep>
struct StoreGradients {
  using S = typename P::Scalar;
  Index ld;
  const S* weights[M];
  S* ds[M];
  const S* delta[M];
  S *total, *da;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    const Index at = r * ld + lane;
    const typename P::V zero = P::set(S(0)), sum = P::load(weights[0] + at);
    P::store(ds[0] + at, P::if_equal(sum, zero, zero, sum * (acc - P::set(delta[0][r]))));
    if constexpr (M == 2) {
      const typename P::V second = P::load(weights[1] + at);
      P::store(ds[1] + at, P::if_equal(second, zero, zero, second * (acc - P::set(delta[1][r]))));
      P::store(total + at, sum + second);
    }
    if constexpr (Keep) P::store(da + at, acc);
  }
};

/// Where the next block of queries begins in an array, and how far its rows lie apart.
template <class P>
struct NextRows {
  const typename P::Scalar* rows;
  Index stride;
  static NextRows none(const typename P::Scalar* near) { return {near, 0}; }
};

/// An epilogue that also asks for the next block's rows, a line at a vector. Without a branch: where nothing is far,
/// what is near is asked for. Vectors shorter than a line lost by it.
template <class P, class Epilogue>
struct FetchNext {
  Epilogue epilogue;
  NextRows<P> next;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    if constexpr (P::lanes >= line_of<typename P::Scalar>) {
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) P::fetch(next.rows, r * next.stride + lane + v * P::lanes);
    }
    finish_row<P, N>(epilogue, r, lane, acc);
  }
};
template <class P, class Epilogue>
FetchNext<P, Epilogue> fetching(const NextRows<P>& next, const Epilogue& epilogue) {
  return {epilogue, next};
}

/// Rows as whole vectors: in place where the width allows it, else a padded copy.
template <class P, class S>
void whole_rows(View<S> block, S* copy, const S*& rows, Index& stride) {
  rows = block.data;
  stride = block.stride;
  if (block.cols % P::lanes == 0) return;
  stride = padded<P>(block.cols);
  rows = copy;
  for (Index i = 0; i < block.rows; ++i) {
    copy_row<P>(block.row(i), copy + i * stride, block.cols);
    for (Index c = block.cols; c < stride; ++c) copy[i * stride + c] = S(0);
  }
}

/// The key side of a block: transposed panel, and rows that can be loaded as whole vectors.
template <class P>
struct KeyPanel {
  using S = typename P::Scalar;
  static constexpr Index width = PullBlocks<P>::keys;
  S *transposed, *copy;
  const S* rows = nullptr;
  Index stride = 0, d;

  KeyPanel(Arena& arena, Index d_)
      : transposed(arena.take<S>(d_ * width)), copy(arena.take<S>(padded<P>(d_) * width)), d(d_) {}
  /// Keys [k0, k0 + nk).
  template <class Mods>
  void load(const Scores<S, Mods>& scores, Index k0, Index nk) {
    const View<S> block = scores.k.block(k0, 0, nk, d);
    transpose_into<P>(block, transposed, width);
    whole_rows<P>(block, copy, rows, stride);
  }
};

/// Queries of [q0, q1) that see a key of [k0, k1); empty if none.
template <class S, class Mods>
Interval queries_that_see(const Scores<S, Mods>& scores, Index q0, Index q1, Index k0, Index k1) {
  const auto sees = [&](Index a, Index b) {
    const Interval h = scores.hull(a, b);
    return h.begin < k1 && h.end > k0 && h.begin < h.end;
  };
  if constexpr (Mods::intervals) {
    if (!sees(q0, q1)) return {q0, q0};
    while (q0 < q1 && !sees(q0, q0 + 1)) ++q0;
    while (q1 > q0 && !sees(q1 - 1, q1)) --q1;
  }
  if constexpr (Mods::irregular)
    if (q0 < q1 && scores.mods->cover(scores.place(0, 0), q0, q1, k0, k1) == Cover::none) return {q0, q0};
  return {q0, q1};
}

/// What weights_tile needs beside the tile: the additive part of the keys, and of every query the maximum as seen from
/// the tile and the factor of its row.
template <class P>
struct TileRows {
  typename P::Scalar *start, *buffer, *top, *factor;
  NearPairs* near = nullptr;  // wanted, if not null
  explicit TileRows(Arena& arena)
      : start(arena.take<typename P::Scalar>(PullBlocks<P>::keys)),
        buffer(arena.take<typename P::Scalar>(PullBlocks<P>::keys)),
        top(arena.take<typename P::Scalar>(PullBlocks<P>::queries)),
        factor(arena.take<typename P::Scalar>(PullBlocks<P>::queries)) {}
};

/// weights_tile of rows that count amounts of keys from one query.
template <class P, class Mods>
void weights_of_rows(const Scores<typename P::Scalar, Mods>& scores, Lse<const typename P::Scalar> lse,
                     const typename P::Scalar* weight, const Tile<typename P::Scalar>& t,
                     const typename P::Scalar* keys_transposed, const TileRows<P>& row, typename P::Scalar* raw,
                     const NextRows<P>& next) {
  using S = typename P::Scalar;
  const Index vectors = (t.nk + P::lanes - 1) / P::lanes, origin = origin_of<P>(t.q0);
  const S scale = scores.scale;
  S* start = row.start;
  scores.starts(origin, t.k0, t.nk, start, t.q0);
  for (Index j = t.nk; j < vectors * P::lanes; ++j) start[j] = S(0);
  for (Index i = 0; i < t.nq; ++i) {
    row.top[i] = lse.top[t.q0 + i] + scores.shift(t.q0 + i, origin);
    row.factor[i] = weight ? weight[t.q0 + i] * lse.inverse[t.q0 + i] : lse.inverse[t.q0 + i];
  }
  const View<S> q = scores.q;
  const S* rows = q.row(t.q0);
  const bool mixed = scores.mixed(t.q0, t.nq);
  if (Mods::values || scores.by_pair() || mixed) {
    if (mixed) starts_by_row<P, true>(scores, t, vectors, row.buffer);
    if (scores.by_pair()) {
      if constexpr (are_distances<Mods>)
        tile_by_pair<P, true>(scores, scores.parts, t, vectors, rows, q.stride, keys_transposed,
                              mixed ? nullptr : start, row.near);
    } else if (mixed) {
      product<P, Walk::rows>(t.nq, vectors, q.cols, rows, q.stride, keys_transposed, t.ld,
                             AddScores<P>{t.data, t.ld, scale});
    } else {
      product<P, Walk::rows>(t.nq, vectors, scores.q.cols, rows, scores.q.stride, keys_transposed, t.ld,
                             fetching(next, StoreByRow<P>{t.data, t.ld, scale, start}));
    }
    if (raw)
      for (Index i = 0; i < t.nq * t.ld; ++i) raw[i] = t.data[i];
    if constexpr (Mods::values) value_tile<P, true>(scores, t);
    const typename P::V none = P::set(minus_infinity<S>()), zero = P::set(S(0));
    for (Index i = 0; i < t.nq; ++i)
      for (Index j = 0; j < vectors * P::lanes; j += P::lanes) {
        S* p = t.data + i * t.ld + j;
        const typename P::V s = P::load(p), weighed = P::exp(s - P::set(row.top[i])) * P::set(row.factor[i]);
        P::store(p, P::if_equal(s, none, zero, weighed));  // also in a row that is NaN
      }
  } else {
    product<P, Walk::rows>(t.nq, vectors, scores.q.cols, rows, scores.q.stride, keys_transposed, t.ld,
                           fetching(next, StoreWeights<P>{t.data, t.ld, scale, start, row.top, row.factor}));
  }
  drop_keys<P, true>(scores, start, t, S(0));
  if constexpr (Mods::intervals || Mods::irregular) mask_tile<P, true>(scores, t, S(0));
}

/// Weights of queries [q0, q0 + nq) and keys [k0, k0 + nk), keys in lanes, each row times weight (may be null); raw
/// (may be null) gets the scores before modifiers, for their derivative.
template <class P, class Mods>
void weights_tile(const Scores<typename P::Scalar, Mods>& scores, Lse<const typename P::Scalar> lse,
                  const typename P::Scalar* weight, const Tile<typename P::Scalar>& t,
                  const typename P::Scalar* keys_transposed, const TileRows<P>& row, typename P::Scalar* raw,
                  const NextRows<P>& next) {
  if (row.near) row.near->count = 0;
  if constexpr (!Mods::shifts) {
    weights_of_rows<P>(scores, lse, weight, t, keys_transposed, row, raw, next);
  } else {
    for (Index q0 = t.q0, end = t.q0 + t.nq; q0 < end;) {
      const Index first = q0 - t.q0, nq = std::min(end, origin_of<P>(q0) + panel_of<P>) - q0;
      if (row.near) row.near->first = first * t.ld;
      weights_of_rows<P>(scores, lse, weight, {t.data + first * t.ld, t.ld, q0, nq, t.k0, t.nk}, keys_transposed, row,
                         raw ? raw + first * t.ld : nullptr, {next.rows + first * next.stride, next.stride});
      q0 += nq;
    }
  }
}

template <class P>
void emit_relevance(const Tile<typename P::Scalar>& t, const typename P::Scalar* weights, const typename P::Scalar* da,
                    const Emission<typename P::Scalar>& e) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0));
  for (Index j = 0; j < t.nk; j += P::lanes) {
    V sum = zero;
    for (Index i = 0; i < t.nq; ++i) {
      const V weight = P::load(weights + i * t.ld + j);
      V x = P::if_equal(weight, zero, zero, weight * P::load(da + i * t.ld + j));
      if (e.part == Part::pos) x = P::max(x, zero);  // the first where it is NaN, which has to show
      if (e.part == Part::neg) x = P::max(zero - x, zero);
      if (e.part == Part::abs) x = P::max(x, zero - x);
      sum = P::fma(x, P::set(e.w[t.q0 + i]), sum);
    }
    const Index lanes = std::min<Index>(P::lanes, t.nk - j);
    S part[P::lanes];
    P::store(part, sum);
    for (Index l = 0; l < lanes; ++l) e.c[t.k0 + j + l] += part[l];
  }
}

/// A row of queries at a time goes to the wide sum: terms of either sign, most of which cancels.
template <class P>
LIMPID_NOINLINE Wide<typename P::Scalar> moment_of_tile(const Tile<typename P::Scalar>& t, View<typename P::Scalar> q,
                                                        const typename P::Scalar* keys_transposed) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const V zero = P::set(S(0));
  Wide<S> total = 0;
  for (Index i = 0; i < t.nq; ++i) {
    V sum = zero;
    for (Index j = 0; j < t.nk; j += P::lanes) {
      V distance = zero;
      for (Index c = 0; c < q.cols; ++c) {
        const V d = P::set(q(t.q0 + i, c)) - P::load(keys_transposed + c * t.ld + j);
        distance = P::fma(d, d, distance);
      }
      const V ds = P::load(t.data + i * t.ld + j), inside = P::lane_index() + P::set(S(double(j)));
      const V one = P::if_equal(ds, zero, zero, ds * distance);  // a masked pair may lie anywhere
      sum = sum + P::if_less(inside, P::set(S(double(t.nk))), one, zero);
    }
    total += Wide<S>(P::sum(sum));
  }
  return total;
}

/// The same of distances that are there, a tile like that of dS.
template <class P>
LIMPID_NOINLINE Wide<typename P::Scalar> moment_of_distances(const Tile<typename P::Scalar>& t,
                                                             const typename P::Scalar* distances) {
  using S = typename P::Scalar;
  Wide<S> total = 0;
  for (Index i = 0; i < t.nq; ++i)
    total += Wide<S>(sum_lanes<P>(t.nk, [&](auto policy, Index j) {
      using L = decltype(policy);
      const typename L::V ds = L::load(t.data + i * t.ld + j), zero = L::set(S(0));
      return L::if_equal(ds, zero, zero, ds * L::load(distances + i * t.ld + j));  // a masked pair may lie anywhere
    }));
  return total;
}

/// Everything of a pull_back that does not change from chunk to chunk.
template <class S, class Mods, int M>
struct PullPlan {
  std::array<PullMap<S, Mods>, M> maps;
  View<S> left, right;  // dA = left right^T
  View<S> x;            // dV = (sum_t weight_t A_t)^T x; empty: not wanted
  MutView<S> dv;
  bool accumulate_q = false, accumulate_k = false, accumulate_v = false;
  Emission<S> emission;
  std::array<Moment<S>, 2> moments = {};  // of the first map
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

      StoreGradients<P, M, Emit> store;
      store.ld = ld, store.total = total, store.da = da;
      for (int t = 0; t < M; ++t) {
        const auto& map = plan.maps[t];
        const Tile<S> tile{weights[t], ld, q0, nq, k0, nk};
        weights_tile<P>(map.scores, map.lse, map.weight, tile, keys[t].transposed, row, raw[t], next(map.scores.q));
        store.weights[t] = weights[t], store.ds[t] = ds[t], store.delta[t] = map.delta + q0;
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

/// As KeyGuard, for the backward pass. What is not finite is replaced by zeros, and `poison` writes NaN where it would
/// have come: a row of dS where a query, its dout, or a key or value that it keeps is not finite; where it is a query
/// or key, its weights too, which dV hangs on. A query with nothing to keep, or a masked key, passes nothing whatever
/// it holds.
template <class P, int M, class Mods>
class PullGuard {
 public:
  using S = typename P::Scalar;

  PullGuard(Arena& arena, PullPlan<S, Mods, M>& plan)
      : plan_(plan), bad_left_(plan.left), bad_right_(plan.right), bad_x_(plan.x) {
    for (auto& map : plan.maps) map.scores.settle(arena);
    if (std::none_of(plan.maps.begin(), plan.maps.end(), [](const auto& map) { return map.scores.can_mask(); })) return;
    bool clean = all_finite<P>(plan.left) && all_finite<P>(plan.right);
    if (plan.dv.given()) clean = clean && all_finite<P>(plan.x);
    for (const auto& map : plan.maps) clean = clean && all_finite<P>(map.scores.q) && all_finite<P>(map.scores.k);
    if (clean) return;
    const Index n = plan.left.rows, m = plan.right.rows;
    state_ = arena.take<State>(n);
    bool *bad_key = arena.take<bool>(m), *bad_value = arena.take<bool>(m);
    for (Index j = 0; j < m; ++j) {
      bad_value[j] = !row_is_finite(plan.right.row(j), plan.right.cols);
      bad_key[j] = false;
      for (const auto& map : plan.maps) bad_key[j] |= !row_is_finite(map.scores.k.row(j), map.scores.k.cols);
    }
    for (Index i = 0; i < n; ++i) {
      bool odd = false;
      for (const auto& map : plan.maps) odd |= !row_is_finite(map.scores.q.row(i), map.scores.q.cols);
      const bool odd_left = !row_is_finite(plan.left.row(i), plan.left.cols);
      state_[i] = State::fine;
      for (Index j = 0; j < m && state_[i] != State::no_weights; ++j)
        if ((odd || odd_left || bad_key[j] || bad_value[j]) && plan.maps[0].scores.keeps(i, j))
          state_[i] = odd || bad_key[j] ? State::no_weights : State::no_gradient;
    }
    plan.left = without_bad_entries(arena, plan.left);
    plan.right = without_bad_entries(arena, plan.right);
    if (plan.dv.given()) plan.x = without_bad_entries(arena, plan.x);
    for (auto& map : plan.maps) {
      without_bad_queries(arena, map.scores);
      without_bad_keys(arena, map.scores);
      S *top = arena.take<S>(n), *inverse = arena.take<S>(n), *delta = arena.take<S>(n);
      for (Index i = 0; i < n; ++i) {
        const bool out = state_[i] == State::no_weights;
        top[i] = out ? -minus_infinity<S>() : map.lse.top[i];
        inverse[i] = out ? S(0) : map.lse.inverse[i];
        delta[i] = out ? S(0) : (state_[i] == State::fine ? map.delta[i] : nan());
      }
      map.lse = {top, inverse}, map.delta = delta;
    }
  }

  void poison(S* sinks) const {
    if (!state_) return;
    const auto& scores = plan_.maps[0].scores;
    const auto spoil = [&](MutView<S> v, Index row) {
      if (v.given())
        for (Index c = 0; c < v.cols; ++c) v(row, c) = nan();
    };
    for (Index i = 0; i < plan_.left.rows; ++i) {
      const bool weights = state_[i] != State::no_weights, gradient = state_[i] == State::fine;
      const bool left = row_is_finite(bad_left_.row(i), bad_left_.cols);
      const bool x = !plan_.dv.given() || row_is_finite(bad_x_.row(i), bad_x_.cols);
      if (gradient && x) continue;
      if (!gradient)
        for (const auto& map : plan_.maps) spoil(map.dq, i);
      for (Index j = 0; j < plan_.right.rows; ++j) {
        if (!scores.keeps(i, j)) continue;
        if (!weights)
          spoil(plan_.dv, j);
        else if (!x)
          for (Index c = 0; c < plan_.dv.cols; ++c)
            if (!row_is_finite(&bad_x_(i, c), 1)) plan_.dv(j, c) = nan();
        if (gradient) continue;
        for (const auto& map : plan_.maps) {
          spoil(map.dk, j);
          if (map.dbias) map.dbias[j] = nan();
        }
        if (plan_.emission.c && !(weights && left && row_is_finite(bad_right_.row(j), bad_right_.cols)))
          plan_.emission.c[j] = nan();
        if (Mods::sinks && scores.mods->wants_sink()) scores.mods->pull(S(0), nan(), scores.place(i, j), sinks);
      }
      if (!gradient)
        for (const auto& moment : plan_.moments)
          if (moment.sums) moment.sums[0] = Wide<S>(nan());
    }
  }

 private:
  enum class State : unsigned char { fine, no_gradient, no_weights };  // of a query's row

  static S nan() { return S(std::numeric_limits<double>::quiet_NaN()); }

  PullPlan<S, Mods, M>& plan_;
  View<S> bad_left_, bad_right_, bad_x_;
  State* state_ = nullptr;
};

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

/// As KeyGuard, for sums over queries: a row of g that keeps no key passes nothing, whatever it or its query holds, and
/// an entry of g that is not finite spoils its column alone.
template <class P, class Mods>
class RowGuard {
 public:
  using S = typename P::Scalar;

  RowGuard(Arena& arena, Scores<S, Mods>& scores, Lse<const S>& lse, View<S>& g) : scores_(&scores), bad_g_(g) {
    using std::isnan;
    if (!scores.can_mask()) return;
    bool clean = all_finite<P>(g) && all_finite<P>(scores.q);
    for (Index i = 0; i < g.rows; ++i) clean = clean && !isnan(lse.inverse[i]);
    if (clean) return;
    rows_ = arena.take<Index>(g.rows);
    whole_ = arena.take<bool>(g.rows);
    S *top = arena.take<S>(g.rows), *inverse = arena.take<S>(g.rows);
    for (Index i = 0; i < g.rows; ++i) {
      const bool whole = isnan(lse.inverse[i]) || !row_is_finite(scores.q.row(i), scores.q.cols);
      if (whole || !row_is_finite(g.row(i), g.cols)) rows_[count_] = i, whole_[count_++] = whole;
      top[i] = whole ? -minus_infinity<S>() : lse.top[i];
      inverse[i] = whole ? S(0) : lse.inverse[i];
    }
    without_bad_queries(arena, scores);
    g = without_bad_entries(arena, g), lse = {top, inverse};
  }

  /// NaN into out = A^T g wherever such a row keeps a key.
  void poison(MutView<S> out) const {
    const S nan = S(std::numeric_limits<double>::quiet_NaN());
    for (Index b = 0; b < count_; ++b)
      for (Index j = 0; j < out.rows; ++j) {
        if (!scores_->keeps(rows_[b], j)) continue;
        for (Index c = 0; c < out.cols; ++c)
          if (whole_[b] || !row_is_finite(&bad_g_(rows_[b], c), 1)) out(j, c) = nan;
      }
  }

 private:
  const Scores<S, Mods>* scores_;
  View<S> bad_g_;
  Index* rows_ = nullptr;
  bool* whole_ = nullptr;  // the weights themselves are NaN
  Index count_ = 0;
};

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
  const RowGuard<P, Mods> rows_of_g(context.arena(), scores, lse, g);
  View<S> also = scores.k;
  const KeyGuard<P, Mods> guard(context.arena(), scores, also);  // keys that nobody keeps must not be seen

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
      whole_rows<P>(g.block(q0, 0, nq, w), copy, g_rows, g_stride);
      product<P, Walk::columns>(nk, pw / P::lanes, nq, tile, ld, g_rows, g_stride, Accumulate<P>{sum, pw});
    }
    deliver_scaled<P>(View<S>(sum, nk, w, pw), S(1), out.block(k0, 0, nk, w), accumulate);
  });
  rows_of_g.poison(out);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
