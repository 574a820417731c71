// limpid: a tile of weights made again from the log-sum-exp, keys in lanes: every backward and every look begins so.
// SPDX-License-Identifier: MIT
#pragma once

#include "distance.hpp"
#include "pack.hpp"
#include "scores.hpp"
#include "tile.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class P>
struct StoreByRow {  // scores, keys in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S* bias;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    P::store(out + r * ld + lane, P::fma(acc, P::set(scale), P::load(bias + lane)));
  }
};

template <class P>
struct StoreWeights {  // exp(score - top) factor, keys in lanes
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S scale;
  const S *bias, *top, *factor;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    typename P::V s[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v)
      s[v] = P::fma(acc[v], P::set(scale), P::load(bias + lane + v * P::lanes)) - P::set(top[r]);
    P::template exp_each<N>(s);
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) P::store(out + r * ld + lane + v * P::lanes, s[v] * P::set(factor[r]));
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
struct PrefetchNext {
  Epilogue epilogue;
  NextRows<P> next;
  template <int N>
  LIMPID_INLINE void row(Index r, Index lane, const typename P::V* acc) const {
    if constexpr (P::lanes >= line_of<typename P::Scalar>) {
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) P::prefetch(next.rows, r * next.stride + lane + v * P::lanes);
    }
    finish_row<P, N>(epilogue, r, lane, acc);
  }
};
template <class P, class Epilogue>
PrefetchNext<P, Epilogue> prefetching(const NextRows<P>& next, const Epilogue& epilogue) {
  return {epilogue, next};
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
    padded_rows<P>(block, copy, rows, stride);
  }
};

/// Queries of [q0, q1) that see a key of [k0, k1); empty if none.
template <class S, class Mods>
Interval queries_that_see(const Scores<S, Mods>& scores, Index q0, Index q1, Index k0, Index k1) {
  const auto sees = [&](Index a, Index b) {
    const Interval h = scores.key_range(a, b);
    return h.begin < k1 && h.end > k0 && h.begin < h.end;
  };
  if constexpr (Mods::intervals || are_gathered<Mods>) {
    if (!sees(q0, q1)) return {q0, q0};
    while (q0 < q1 && !sees(q0, q0 + 1)) ++q0;
    while (q1 > q0 && !sees(q1 - 1, q1)) --q1;
  }
  if constexpr (Mods::irregular || are_gathered<Mods>)
    if (q0 < q1 && scores.cover(q0, q1, k0, k1) == Cover::none) return {q0, q0};
  return {q0, q1};
}

/// What weights_tile needs beside the tile: the bias of the keys, and of every query what is taken off its scores (top:
/// their maximum and the row constant; of weights that are not normalised the row constant alone) and the factor of its
/// row.
template <class P>
struct TileRows {
  typename P::Scalar *bias, *buffer, *top, *factor;
  NearPairs* near = nullptr;  // wanted, if not null
  explicit TileRows(Arena& arena)
      : bias(arena.take<typename P::Scalar>(PullBlocks<P>::keys)),
        buffer(arena.take<typename P::Scalar>(PullBlocks<P>::keys)),
        top(arena.take<typename P::Scalar>(PullBlocks<P>::queries)),
        factor(arena.take<typename P::Scalar>(PullBlocks<P>::queries)) {}
};

/// Scores become weights, where a product could not make them so.
template <class P, class Weight>
void weights_by_row(const Weight& weight, const Tile<typename P::Scalar>& t, Index vectors, const TileRows<P>& row) {
  using S = typename P::Scalar;
  const typename P::V none = P::set(minus_infinity<S>()), zero = P::set(S(0));
  for (Index i = 0; i < t.nq; ++i)
    for (Index j = 0; j < vectors * P::lanes; j += P::lanes) {
      S* p = t.data + i * t.ld + j;
      const typename P::V s = P::load(p), below = s - P::set(row.top[i]);
      if constexpr (Weight::normalised)
        P::store(p, P::if_equal(s, none, zero, P::exp(below) * P::set(row.factor[i])));  // also in a row that is NaN
      else
        P::store(p, P::if_equal(s, none, zero, weight.template weight<P>(below)));
    }
}

/// weights_tile of rows whose key biases are relative to the same query, that of origin_of.
template <class P, class Mods>
void weights_of_rows(const Scores<typename P::Scalar, Mods>& scores, Lse<const typename P::Scalar> lse,
                     const typename P::Scalar* row_weight, const Tile<typename P::Scalar>& t,
                     const typename P::Scalar* keys_transposed, const TileRows<P>& row, typename P::Scalar* raw,
                     const NextRows<P>& next) {
  using S = typename P::Scalar;
  const Index vectors = (t.nk + P::lanes - 1) / P::lanes, origin = origin_of<P>(t.q0);
  const S scale = scores.scale;
  S* bias = row.bias;
  scores.key_bias(origin, t.k0, t.nk, bias, t.q0);
  for (Index j = t.nk; j < vectors * P::lanes; ++j) bias[j] = S(0);
  for (Index i = 0; i < t.nq; ++i) {
    if constexpr (are_normalised<Mods>) {
      row.top[i] = lse.top[t.q0 + i] + scores.row_constant(t.q0 + i, origin);
      row.factor[i] = row_weight ? row_weight[t.q0 + i] * lse.inverse[t.q0 + i] : lse.inverse[t.q0 + i];
    } else {
      row.top[i] = scores.row_constant(t.q0 + i, origin);
    }
  }
  const View<S> q = scores.q;
  const S* rows = q.row(t.q0);
  const bool mixed = scores.mixed(t.q0, t.nq);
  if (Mods::per_pair || !are_normalised<Mods> || scores.by_pair() || mixed) {
    if (mixed) key_bias_by_row<P, true>(scores, t, vectors, row.buffer);
    if (scores.by_pair()) {
      if constexpr (are_distances<Mods>)
        tile_by_pair<P, true>(scores, scores.parts, t, vectors, rows, q.stride, keys_transposed, mixed ? nullptr : bias,
                              row.near);
    } else if (mixed) {
      product<P, Transposed::none>(t.nq, vectors, q.cols, rows, q.stride, keys_transposed, t.ld,
                                   AddScores<P>{t.data, t.ld, scale});
    } else {
      product<P, Transposed::none>(t.nq, vectors, scores.q.cols, rows, scores.q.stride, keys_transposed, t.ld,
                                   prefetching(next, StoreByRow<P>{t.data, t.ld, scale, bias}));
    }
    if (raw)
      for (Index i = 0; i < t.nq * t.ld; ++i) raw[i] = t.data[i];
    if constexpr (Mods::per_pair) value_tile<P, true>(scores, t);
    weights_by_row<P>(scores.weight, t, vectors, row);
  } else {
    product<P, Transposed::none>(t.nq, vectors, scores.q.cols, rows, scores.q.stride, keys_transposed, t.ld,
                                 prefetching(next, StoreWeights<P>{t.data, t.ld, scale, bias, row.top, row.factor}));
  }
  drop_keys<P, true>(scores, bias, t, S(0));
  if constexpr (have_masks<Mods>) mask_tile<P, true>(scores, t, S(0));
}

/// Weights of queries [q0, q0 + nq) and keys [k0, k0 + nk), keys in lanes, each row times row_weight (may be null); raw
/// (may be null) gets the scores before modifiers, for their derivative.
template <class P, class Mods>
void weights_tile(const Scores<typename P::Scalar, Mods>& scores, Lse<const typename P::Scalar> lse,
                  const typename P::Scalar* row_weight, const Tile<typename P::Scalar>& t,
                  const typename P::Scalar* keys_transposed, const TileRows<P>& row, typename P::Scalar* raw,
                  const NextRows<P>& next) {
  if (row.near) row.near->count = 0;
  if constexpr (!Mods::row_constants) {
    weights_of_rows<P>(scores, lse, row_weight, t, keys_transposed, row, raw, next);
  } else {
    for (Index q0 = t.q0, end = t.q0 + t.nq; q0 < end;) {
      const Index first = q0 - t.q0, nq = std::min(end, origin_of<P>(q0) + panel_of<P>) - q0;
      if (row.near) row.near->first = first * t.ld;
      weights_of_rows<P>(scores, lse, row_weight, {t.data + first * t.ld, t.ld, q0, nq, t.k0, t.nk}, keys_transposed,
                         row, raw ? raw + first * t.ld : nullptr, {next.rows + first * next.stride, next.stride});
      q0 += nq;
    }
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
