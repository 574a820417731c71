// limpid: `smooth` for a few queries against many keys, the case of decoding. Bound by memory: every key and value is
// read once, in the order of memory, and serves all queries while it is near. Lanes run along features: one or two
// queries take whole vectors of them; of more queries a vector holds four features of several (quads), and their scores
// and weights stay in that order until the values have been summed. With 16 registers or fewer a block is read as four
// strands side by side, each in the order of memory.
//
// So scores are summed in another order than by the sweeps that make weights again from a log-sum-exp. Those get theirs
// from the tiles, and here rows are always summed anew: logits in the thousands make a different sum a different
// weight.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../core/context.hpp"
#include "pack.hpp"
#include "pages.hpp"
#include "smooth_map.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

struct Decode : DecodeBlocks {
  /// Numbers from one row of scores to the next: rows 4 KiB apart would share places in L1.
  template <class P>
  static constexpr Index ld = block + P::lanes;

  /// Whether a block is read in strands.
  template <class P>
  static constexpr bool woven = P::strands > 1;
  /// Where there are strands: the i-th row in the order in which quads take them, a row of each strand after the other.
  template <class P>
  static Index in_strands(Index i, Index strand) {
    return woven<P> && i < 4 * strand ? i / 4 + i % 4 * strand : i;
  }
  template <class S>
  static bool come_together(Index c, Index columns) {
    constexpr Index all = together * line_of<S>;
    return c % all == 0 && c + all <= columns;
  }

  /// Whether this path serves: whole vectors of features, and enough keys for it to matter.
  template <class P>
  static bool fits(Index n, Index m, Index d, Index dv) {
    return P::lanes > 1 && n <= most_queries(P::quads) && n > 0 && m >= fewest_keys && d > 0 && d % P::lanes == 0 &&
           dv > 0 && dv % P::lanes == 0;
  }
  /// Numbers from a row to what is asked for with it. Where bandwidth is not high, vectors of a line leave the machine
  /// time to look far enough for one query, and for the values of two.
  template <class Rows>
  static Index ahead(const Rows& rows, Index queries) {
    return prefetch_bytes(queries) / static_cast<Index>(sizeof(typename Rows::Scalar)) / rows.cols * rows.stride;
  }
  /// Asks for a line so far ahead, into L1 where bandwidth is high.
  template <class P>
  LIMPID_INLINE static void prefetch(const typename P::Scalar* row, Index further) {
    P::template prefetch<high_bandwidth>(row, further);
  }
  /// The same for column c of row i, which is at `row`; of rows of a list so many rows ahead.
  template <class P, class Rows>
  LIMPID_INLINE static void prefetch(const Rows& rows, Index i, Index c, const typename P::Scalar* row, Index further) {
    if constexpr (are_listed<Rows>)
      prefetch<P>(rows.row(i + further) + c, 0);
    else
      prefetch<P>(row + c, further);
  }
  template <class P>
  static constexpr bool prefetches_keys(int n) {
    return n > 1 || prefetches_values<P>;
  }
  template <class P>
  static constexpr bool prefetches_values = high_bandwidth || P::lanes < line_of<typename P::Scalar>;
  /// Queries are worked on by 1, 2, 4 or 8; those too many are zeros.
  static Index whole(Index n) { return n <= 2 ? n : (n <= 4 ? 4 : 8); }
};

/// tile[i][j] = <q_i, k_j> scale + bias_j for N queries, 1 or 2, and the keys of a block. ahead: where to prefetch from.
template <class P, int N, class Rows>
LIMPID_NOINLINE void decode_dots(View<typename P::Scalar> q, Rows k, const typename P::Scalar* bias,
                                 typename P::Scalar scale, Index ahead, typename P::Scalar* tile) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr bool woven = Decode::woven<P>;
  constexpr int R = P::lanes / N;  // keys at a time: as many sums as there are lanes, which one reduction serves
  // keys read side by side: of every strand one; else more would not look like a stream to the machine
  constexpr int G = std::min(R, woven ? P::strands : N), T = R / G;
  const bool touching = rows_touch(k);
  const auto some = [&](Index j, Index apart) {  // keys j + t + r apart, or the R from j on
    V sums[N * R];
    LIMPID_UNROLL(4)
    for (int t = 0; t < T; ++t) {
      const S* key[G];
      const auto place = [&](int r) {
        const Index at = j + (woven ? t + r * apart : t * G + r);
        return at < k.rows ? at : j;
      };
      LIMPID_UNROLL(16)
      for (int r = 0; r < G; ++r) key[r] = k.row(place(r));
      const S* soon[G];
      if constexpr (are_listed<Rows>) {
        LIMPID_UNROLL(16)
        for (int r = 0; r < G; ++r) soon[r] = k.row(place(r) + ahead);
      }
      V part[N * G];
      LIMPID_UNROLL(16)
      for (int s = 0; s < N * G; ++s) part[s] = P::set(S(0));
      for (Index c = 0; c < q.cols; c += P::lanes) {
        V query[N];
        LIMPID_UNROLL(4)
        for (int i = 0; i < N; ++i) query[i] = P::pin(P::load(q.row(i) + c));
        LIMPID_UNROLL(4)
        for (int r = 0; r < G; ++r) {
          const V one = P::pin(P::load(key[r] + c));
          if constexpr (are_listed<Rows>)
            Decode::prefetch<P>(soon[r] + c, 0);
          else if (!woven && Decode::prefetches_keys<P>(N))  // in the order of memory where rows touch
            Decode::prefetch<P>(touching ? key[0] + c * G + r * P::lanes : key[r] + c, ahead);
          LIMPID_UNROLL(4)
          for (int i = 0; i < N; ++i) part[i * G + r] = P::fma(one, query[i], part[i * G + r]);
        }
      }
      LIMPID_UNROLL(4)
      for (int i = 0; i < N; ++i) {
        LIMPID_UNROLL(4)
        for (int r = 0; r < G; ++r) sums[i * R + (woven ? r * T + t : t * G + r)] = part[i * G + r];
      }
    }
    S all[P::lanes];
    P::store(all, P::sums_of(sums));
    constexpr int pieces = woven ? G : 1, length = R / pieces;
    LIMPID_UNROLL(4)
    for (int i = 0; i < N; ++i) {
      LIMPID_UNROLL(4)
      for (int r = 0; r < pieces; ++r)
        std::copy_n(all + i * R + r * length, length, tile + i * Decode::ld<P> + j + r * apart);
    }
  };
  Index j = 0;
  if constexpr (woven) {
    const Index strand = k.rows / R * T;
    for (; j < strand; j += T) some(j, strand);
    j = G * strand;
  }
  for (; j < k.rows; j += R) some(j, T);
  for (int i = 0; i < N; ++i)
    for (Index c = 0; c < padded<P>(k.rows); c += P::lanes) {
      S* p = tile + i * Decode::ld<P> + c;
      P::store(p, P::fma(P::load(p), P::set(scale), P::load(bias + c)));
    }
}

/// Scores of N queries, 1 or 2, become weights: exp(score - top). Tops and sums are brought up to date, alpha is what
/// the old ones and the output are worth now.
template <class P, int N>
LIMPID_NOINLINE void decode_weights(typename P::Scalar* tile, Index keys, typename P::Scalar* top,
                                    typename P::Scalar* sum, typename P::Scalar* alpha) {
  using S = typename P::Scalar;
  using V = typename P::V;
  const Index whole = padded<P>(keys);
  for (Index i = 0; i < N; ++i) {
    S* row = tile + i * Decode::ld<P>;
    for (Index j = keys; j < whole; ++j) row[j] = minus_infinity<S>();
    const V old = P::set(top[i]), none = P::set(minus_infinity<S>());
    V most = old;
    for (Index j = 0; j < whole; j += P::lanes) most = P::max(most, P::load(row + j));
    most = P::largest(most);
    const V base = P::if_equal(most, none, P::set(S(0)), most);
    S lane[P::lanes];
    P::store(lane, P::exp(old - base));
    alpha[i] = lane[0];
    P::store(lane, most);
    top[i] = lane[0];
    V total = P::set(S(0));
    for (Index j = 0; j < whole; j += P::lanes) {
      const V e = P::exp(P::load(row + j) - base);
      total = total + e;
      P::store(row + j, e);
    }
    sum[i] = sum[i] * alpha[i] + P::sum(total);
  }
}

/// out_i = out_i * alpha_i + sum_j tile[i][j] x_j for N queries, 1 or 2. ahead: as above.
template <class P, int N, class Rows>
LIMPID_NOINLINE void decode_values(const typename P::Scalar* tile, Rows x, const typename P::Scalar* alpha,
                                   MutView<typename P::Scalar> out, Index ahead) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr bool woven = Decode::woven<P>;
  constexpr int wide = woven ? 8 / N : 4;  // vectors of columns
  const auto columns = [&](Index c, auto count, auto asks, auto sides, Index begin, Index end, Index apart,
                           const S* factor) {
    constexpr int C = decltype(count)::value;
    V acc[N][C];
    LIMPID_UNROLL(4)
    for (int i = 0; i < N; ++i) {
      LIMPID_UNROLL(8)
      for (int v = 0; v < C; ++v) acc[i][v] = P::set(S(0));
    }
    for (Index j = begin; j < end; ++j) {
      LIMPID_UNROLL(4)
      for (int r = 0; r < decltype(sides)::value; ++r) {
        const S *x_row = x.row(j + r * apart) + c, *soon = x_row;
        if constexpr (are_listed<Rows>) soon = x.row(j + r * apart + ahead) + c;
        if constexpr (decltype(asks)::value) {
          LIMPID_UNROLL(4)
          for (Index l = C * P::lanes; l < Decode::together * line_of<S>; l += line_of<S>) P::prefetch(x_row, l);
        }
        V row[C];
        LIMPID_UNROLL(8)
        for (int v = 0; v < C; ++v) {
          row[v] = P::pin(P::load(x_row + v * P::lanes));
          if constexpr (are_listed<Rows>)
            Decode::prefetch<P>(soon + v * P::lanes, 0);
          else if (!woven && Decode::prefetches_values<P>)
            Decode::prefetch<P>(x_row + v * P::lanes, ahead);
        }
        LIMPID_UNROLL(4)
        for (int i = 0; i < N; ++i) {
          const V p = P::set(tile[i * Decode::ld<P> + j + r * apart]);
          LIMPID_UNROLL(8)
          for (int v = 0; v < C; ++v) acc[i][v] = P::fma(p, row[v], acc[i][v]);
        }
      }
    }
    LIMPID_UNROLL(4)
    for (int i = 0; i < N; ++i) {
      LIMPID_UNROLL(8)
      for (int v = 0; v < C; ++v) {
        auto* p = out.row(i) + c + v * P::lanes;
        P::store(p, P::fma(P::load(p), P::set(factor[i]), acc[i][v]));
      }
    }
  };
  const auto rows = [&](auto sides, Index begin, Index end, Index apart, const S* factor) {
    using Wide = std::integral_constant<int, wide>;
    Index c = 0;
    for (; c + wide * P::lanes <= x.cols; c += wide * P::lanes) {
      if (woven && wide * P::lanes < Decode::together * line_of<S> && Decode::come_together<S>(c, x.cols))
        columns(c, Wide(), std::true_type(), sides, begin, end, apart, factor);
      else
        columns(c, Wide(), std::false_type(), sides, begin, end, apart, factor);
    }
    for (; c < x.cols; c += P::lanes)
      columns(c, std::integral_constant<int, 1>(), std::false_type(), sides, begin, end, apart, factor);
  };
  if constexpr (!woven) {
    rows(std::integral_constant<int, 1>(), 0, x.rows, 0, alpha);
  } else {  // a few rows of each strand at a time, which stay near for the passes over them
    constexpr int G = P::strands;
    const Index strand = x.rows / G, step = x.cols <= wide * P::lanes ? strand : Decode::near / G;
    S one[N];
    std::fill_n(one, N, S(1));
    for (Index j = 0; j < strand; j += step)
      rows(std::integral_constant<int, G>(), j, std::min(strand, j + step), strand, j == 0 ? alpha : one);
    if (G * strand < x.rows) rows(std::integral_constant<int, 1>(), G * strand, x.rows, 0, strand == 0 ? alpha : one);
  }
}

/// Queries as quad_dots wants them: four features of each side by side.
template <class S>
void pack_quads(View<S> q, S* out) {
  for (Index c = 0; c < q.cols; c += 4)
    for (Index i = 0; i < q.rows; ++i, out += 4) std::copy(q.row(i) + c, q.row(i) + c + 4, out);
}

/// tile = <q_i, k_j> scale + bias_j for W queries, 4 or 8, in quads: four keys after four keys, of each W x 4 numbers,
/// a query a row; bias and tile are in the order of in_strands. A vector holds four features of as many queries as
/// there is room for, so that few lanes have to be summed in the end.
template <class P, int W, class Rows>
LIMPID_NOINLINE void quad_dots(const typename P::Scalar* packed, Rows k, const typename P::Scalar* bias,
                               typename P::Scalar scale, Index ahead, typename P::Scalar* tile) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr int all = 4 * W / P::lanes, most = P::registers == 32 ? 16 : 8;  // vectors of queries; sums
  constexpr int Q = std::min(all, most / 4), R = std::min(8, most / Q);      // vectors and keys at a time
  // Lines are prefetched evenly over the steps, four features each; in the order of memory where rows touch.
  constexpr int steps = static_cast<int>(line_of<S> / 4);  // to a line
  const bool touching = rows_touch(k);
  const Index gap = touching ? line_of<S> : k.stride;
  constexpr bool woven = Decode::woven<P>;
  static_assert(!woven || R == 4);
  const Index strand = k.rows / 4;
  for (Index j = 0; j < k.rows; j += R) {
    const S* key[R];
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) key[r] = k.row(Decode::in_strands<P>(j + (j + r < k.rows ? r : 0), strand));
    LIMPID_UNROLL(4)
    for (int first = 0; first < all; first += Q) {
      V sums[Q * R];
      LIMPID_UNROLL(16)
      for (int s = 0; s < Q * R; ++s) sums[s] = P::set(S(0));
      const S *q = packed + first * P::lanes, *soon = k.row(j);
      for (Index c = 0; c < k.cols; c += 4, q += 4 * W) {
        V query[Q];
        LIMPID_UNROLL(4)
        for (int v = 0; v < Q; ++v) query[v] = P::pin(P::load(q + v * P::lanes));
        LIMPID_UNROLL(8)
        for (int r = 0; r < R; ++r) {
          const V one = P::pin(P::in_quads(key[r] + c));
          if (!woven && r % steps == 0 && first == 0) {
            if constexpr (are_listed<Rows>)
              Decode::prefetch<P>(k, j + c / 4 % steps * (R / steps) + r / steps, c / line_of<S> * line_of<S>, soon,
                                  ahead);
            else
              Decode::prefetch<P>(soon + r / steps * gap, ahead);
          }
          LIMPID_UNROLL(4)
          for (int v = 0; v < Q; ++v) sums[v * R + r] = P::fma(one, query[v], sums[v * R + r]);
        }
        if constexpr (are_listed<Rows>) continue;
        soon = !touching && (c + 4) % line_of<S> == 0 ? k.row(j) + c + 4 : soon + R / steps * gap;
      }
      LIMPID_UNROLL(4)
      for (int r = 0; r < R; r += 4) {
        const V from = P::in_quads(bias + j + r);
        LIMPID_UNROLL(4)
        for (int v = 0; v < Q; ++v)
          P::store(tile + (j + r) * W + (first + v) * P::lanes,
                   P::fma(P::quad_sums(sums + v * R + r), P::set(scale), from));
      }
    }
  }
}

/// Scores in quads become weights, as by decode_weights. Memory is not to wait meanwhile: the first rows of x, so many,
/// are asked for, so far ahead and in the order of in_strands, one for eight keys.
template <class P, int W, class Rows>
LIMPID_NOINLINE void quad_weights(typename P::Scalar* tile, Index keys, typename P::Scalar* top,
                                  typename P::Scalar* sum, typename P::Scalar* alpha, Rows x, Index first,
                                  Index ahead) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr int all = 4 * W, Q = all / P::lanes;
  V most[Q], base[Q], total[Q];
  LIMPID_UNROLL(16)
  for (int v = 0; v < Q; ++v) most[v] = P::set(minus_infinity<S>()), total[v] = P::set(S(0));
  for (const S* p = tile; p < tile + keys * W; p += all) {
    LIMPID_UNROLL(16)
    for (int v = 0; v < Q; ++v) most[v] = P::max(most[v], P::load(p + v * P::lanes));
  }
  S lane[all], old[all];
  LIMPID_UNROLL(16)
  for (int v = 0; v < Q; ++v) P::store(lane + v * P::lanes, most[v]);
  for (int i = 0; i < W; ++i) {
    S* four = lane + 4 * i;
    std::fill_n(old + 4 * i, 4, top[i]);
    top[i] = std::max(top[i], *std::max_element(four, four + 4));
    std::fill_n(four, 4, top[i] == minus_infinity<S>() ? S(0) : top[i]);
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < Q; ++v) {
    base[v] = P::load(lane + v * P::lanes);
    P::store(old + v * P::lanes, P::exp(P::load(old + v * P::lanes) - base[v]));
  }
  for (Index j = 0; j < keys; j += 4) {
    if (j % 8 == 0 && j / 8 < first) {
      const Index place = Decode::in_strands<P>(j / 8, x.rows / 4);
      for (Index c = 0; c < x.cols; c += line_of<S>) Decode::prefetch<P>(x, place, c, x.row(place), ahead);
    }
    S* p = tile + j * W;
    LIMPID_UNROLL(16)
    for (int v = 0; v < Q; ++v) {
      const V e = P::exp(P::load(p + v * P::lanes) - base[v]);
      total[v] = total[v] + e;
      P::store(p + v * P::lanes, e);
    }
  }
  LIMPID_UNROLL(16)
  for (int v = 0; v < Q; ++v) P::store(lane + v * P::lanes, total[v]);
  for (int i = 0; i < W; ++i) {
    alpha[i] = old[4 * i];
    sum[i] = sum[i] * alpha[i] + ((lane[4 * i] + lane[4 * i + 1]) + (lane[4 * i + 2] + lane[4 * i + 3]));
  }
}

/// C vectors of columns of quad_values' sum for N of W queries, with so many rows from `x` on, of which four lie so far
/// apart, and in strands the next four behind them. Of four rows the ones from First to Last are prefetched ahead, or
/// their lines come together.
template <class P, int W, int N, int C, int First, int Last, class Place>
LIMPID_INLINE void quad_columns(const typename P::Scalar* weight, Place x, Index stride, Index apart, Index rows,
                                Index ahead, const typename P::Scalar* alpha, typename P::Scalar* out,
                                Index out_stride) {
  using V = typename P::V;
  V acc[N][C];
  LIMPID_UNROLL(8)
  for (int i = 0; i < N; ++i) {
    LIMPID_UNROLL(4)
    for (int v = 0; v < C; ++v) acc[i][v] = P::load(out + i * out_stride + v * P::lanes) * P::set(alpha[i]);
  }
  const auto one = [&](const typename P::Scalar* w, bool prefetched) {
    V row[C];
    const auto* x_row = x.row();
    if (Decode::woven<P> && prefetched) {
      LIMPID_UNROLL(4)
      for (int l = 1; l < Decode::together; ++l) P::prefetch(x_row, l * line_of<typename P::Scalar>);
    }
    LIMPID_UNROLL(4)
    for (int v = 0; v < C; ++v) {
      row[v] = P::pin(P::load(x_row + v * P::lanes));
      if (!Decode::woven<P> && prefetched && v * P::lanes % line_of<typename P::Scalar> == 0)
        Decode::prefetch<P>(x.ahead(x_row, ahead) + v * P::lanes, x.further(ahead));
    }
    LIMPID_UNROLL(8)
    for (int i = 0; i < N; ++i) {
      const V p = P::set(w[4 * i]);
      LIMPID_UNROLL(4)
      for (int v = 0; v < C; ++v) acc[i][v] = P::fma(p, row[v], acc[i][v]);
    }
    x.move(apart);
  };
  Index j = 0;
  for (; j + 4 <= rows; j += 4, weight += 4 * W) {
    LIMPID_UNROLL(4)
    for (int r = 0; r < 4; ++r) one(weight + r, First <= r && r <= Last);
    if (Decode::woven<P>) x.move(stride - 4 * apart);
  }
  for (; j < rows; ++j, ++weight) one(weight, !Decode::woven<P>);
  LIMPID_UNROLL(8)
  for (int i = 0; i < N; ++i) {
    LIMPID_UNROLL(4)
    for (int v = 0; v < C; ++v) P::store(out + i * out_stride + v * P::lanes, acc[i][v]);
  }
}

/// What one pass over rows of values takes: so many queries and vectors of columns, as many sums as registers hold and
/// no fewer than it takes to keep the multiply-adds going. Where memory is quick a second pass over near rows costs
/// more than sums outside of registers.
template <class P, int W>
struct QuadPass {
  static constexpr int queries = W == 8 && !high_bandwidth ? 6 : W, vectors = P::registers == 32 ? 4 : 2;
  static bool is_all(Index columns) { return queries == W && columns <= vectors * P::lanes; }
};

/// out_i = out_i * alpha_i + sum_j weight_ij x_j for W queries, 4 or 8, the weights in quads. Of eight first six, then
/// the two that are left, while the rows are near; both ask for rows ahead, evenly over the time. In strands the rows
/// are apart and stride from each other in turn, and nothing is asked for ahead.
template <class P, int W, class Rows>
LIMPID_NOINLINE void quad_values(const typename P::Scalar* weights, Rows x, const typename P::Scalar* alpha,
                                 MutView<typename P::Scalar> out, Index apart, Index ahead) {
  using S = typename P::Scalar;
  constexpr int N = QuadPass<P, W>::queries, wide = QuadPass<P, W>::vectors;
  const auto some = [&](auto queries, auto vectors, Index c) {
    constexpr int count = decltype(queries)::value, C = decltype(vectors)::value, i = count == N ? 0 : N;
    const auto rows = [&](auto first, auto last) {
      quad_columns<P, W, count, C, decltype(first)::value, decltype(last)::value>(
          weights + 4 * i, place_of(x.block(0, c, x.rows, x.cols)), x.stride, apart, x.rows, ahead, alpha + i,
          out.row(i) + c, out.stride);
    };
    using std::integral_constant;
    if constexpr (!Decode::woven<P>)
      rows(integral_constant < int, i == 0 ? 0 : 3 > (), integral_constant < int, i == 0 && N < W ? 2 : 3 > ());
    else if (i == 0 && Decode::come_together<S>(c, x.cols))
      rows(integral_constant<int, 0>(), integral_constant<int, 3>());
    else
      rows(integral_constant<int, 4>(), integral_constant<int, 4>());
  };
  const auto columns = [&](auto queries, auto vectors) {
    constexpr int step = decltype(vectors)::value * P::lanes;
    Index c = 0;
    for (; c + step <= x.cols; c += step) some(queries, vectors, c);
    for (; c < x.cols; c += P::lanes) some(queries, std::integral_constant<int, 1>(), c);
  };
  columns(std::integral_constant<int, N>(), std::integral_constant<int, wide>());
  if constexpr (N < W) columns(std::integral_constant<int, W - N>(), std::integral_constant<int, 4>());
}

/// W queries' scores in quads, as rows, and back.
template <class P, int W, class F>
void each_quad(typename P::Scalar* tile, typename P::Scalar* rows, Index keys, F&& f) {
  const Index strand = Decode::woven<P> ? keys / 4 : 0;
  for (Index i = 0; i < W; ++i)
    for (Index j = 0; j < keys; j += 4)
      f(tile + W * j + 4 * i, rows + i * Decode::ld<P> + Decode::in_strands<P>(j, strand), j < 4 * strand ? strand : 1);
}
template <class P, int W>
LIMPID_NOINLINE void rows_of_quads(typename P::Scalar* tile, Index keys, typename P::Scalar* rows) {
  using S = typename P::Scalar;
  each_quad<P, W>(tile, rows, keys, [](const S* quad, S* row, Index apart) {
    for (Index r = 0; r < 4; ++r) row[r * apart] = quad[r];
  });
}
template <class P, int W>
LIMPID_NOINLINE void quads_of_rows(typename P::Scalar* tile, Index keys, typename P::Scalar* rows) {
  using S = typename P::Scalar;
  each_quad<P, W>(tile, rows, keys, [](S* quad, const S* row, Index apart) {
    for (Index r = 0; r < 4; ++r) quad[r] = row[r * apart];
  });
}

/// Scores of W queries in quads become weights, and out_i is worth less and has the values of these keys added. ahead:
/// where to prefetch from.
template <class P, int W, class Rows>
LIMPID_NOINLINE void quad_output(typename P::Scalar* tile, Rows x, typename P::Scalar* top, typename P::Scalar* sum,
                                 MutView<typename P::Scalar> out, Index ahead) {
  using S = typename P::Scalar;
  const Index keys = x.rows, whole = (keys + 3) / 4 * 4;
  for (Index j = keys; j < whole; ++j)
    for (Index i = 0; i < W; ++i) tile[W * (whole - 4) + 4 * i + j % 4] = minus_infinity<S>();
  S alpha[W];
  if constexpr (Decode::woven<P>) {
    quad_weights<P, W>(tile, whole, top, sum, alpha, x, keys / 8, 0);
    const Index strand = keys / 4;
    constexpr Index step = Decode::near / 4;
    const auto rows = [&](Index from, Index first, Index count, Index apart) {
      quad_values<P, W>(tile + W * from, x.block(first, 0, count, x.cols), alpha, out, apart, 0);
      std::fill_n(alpha, W, S(1));
    };
    for (Index j = 0; j < strand; j += step) rows(4 * j, j, 4 * std::min(step, strand - j), strand * x.stride);
    if (4 * strand < keys) rows(4 * strand, 4 * strand, keys - 4 * strand, x.stride);
  } else {
    // What is asked for while weights are made the values leave out: they look that much further ahead, and at the
    // end ask for nothing.
    const Index spared = high_bandwidth ? 0 : keys / 8;
    quad_weights<P, W>(tile, whole, top, sum, alpha, x, spared, ahead);
    const Index step = spared == 0 && QuadPass<P, W>::is_all(x.cols) ? keys : Decode::near;
    for (Index j = 0; j < keys; j += step) {
      quad_values<P, W>(tile + W * j, x.block(j, 0, std::min(step, keys - j), x.cols), alpha, out, x.stride,
                        j + spared < keys ? ahead + spared * x.stride : 0);
      std::fill_n(alpha, W, S(1));
    }
  }
}

/// Keys [begin, end): running maximum, sum and unnormalised output of every query. q: the queries, made up to `whole`;
/// k and x: the rows of these keys.
template <class P, class Mods, class Rows>
class DecodeChunk {
 public:
  using S = typename P::Scalar;

  DecodeChunk(const Scores<S, Mods>& scores, View<S> q, const Rows& k, const Rows& x, S* top, S* sum, MutView<S> out,
              Arena& arena)
      : scores_(scores), q_(q), k_(k), x_(x), top_(top), sum_(sum), out_(out) {
    tile_ = arena.take<S>(q.rows * ld);
    bias_ = arena.take<S>(ld);
    if (q.rows <= 2) return;
    pack_quads(q, packed_ = arena.take<S>(q.rows * q.cols));
    if (!modified()) return;
    rows_ = arena.take<S>(q.rows * ld);
    if (woven) ordered_ = arena.take<S>(ld);
  }

  void run(Index begin, Index end) {
    for (Index i = 0; i < q_.rows; ++i) {
      top_[i] = minus_infinity<S>(), sum_[i] = S(0);
      clear(out_.row(i), out_.cols);
    }
    const Index most = q_.rows <= 2 ? ld : Decode::block;
    for (Index k0 = begin; k0 < end; k0 += most) {
      const Tile<S> t{q_.rows <= 2 ? tile_ : rows_, ld, 0, scores_.n(), k0, std::min(most, end - k0)};
      scores_.key_bias(0, k0, t.nk, bias_);
      clear(bias_ + t.nk, ld - t.nk);
      const Rows keys = k_.block(k0 - begin, 0, t.nk, q_.cols), values = x_.block(k0 - begin, 0, t.nk, x_.cols);
      if (q_.rows == 1) {
        by_rows<1>(t, keys, values);
      } else if (q_.rows == 2) {
        by_rows<2>(t, keys, values);
      } else if constexpr (P::quads) {
        if (q_.rows == 4)
          by_quads<4>(t, keys, values);
        else
          by_quads<8>(t, keys, values);
      }
    }
  }

 private:
  static constexpr Index ld = Decode::ld<P>;
  static constexpr bool woven = Decode::woven<P>;

  bool modified() const { return Mods::per_pair || Mods::per_key || have_masks<Mods> || scores_.bias != nullptr; }

  void modify(const Tile<S>& t) const {
    if constexpr (Mods::per_pair) value_tile<P, true>(scores_, t);
    drop_keys<P, true>(scores_, bias_, t, minus_infinity<S>());
    if constexpr (have_masks<Mods>) mask_tile<P, true>(scores_, t, minus_infinity<S>());
  }

  template <int W>
  void by_quads(const Tile<S>& t, const Rows& keys, const Rows& values) {
    const Index whole = (t.nk + 3) / 4 * 4, strand = woven ? t.nk / 4 : 0;
    const S* bias = bias_;  // the same for all where nothing modifies
    if (ordered_ != nullptr) {
      for (Index j = 0; j < whole; ++j) ordered_[j] = bias_[Decode::in_strands<P>(j, strand)];
      bias = ordered_;
    }
    quad_dots<P, W>(packed_, keys, bias, scores_.scale, Decode::ahead(k_, q_.rows), tile_);
    if (modified()) {
      rows_of_quads<P, W>(tile_, t.nk, rows_);
      modify(t);
      quads_of_rows<P, W>(tile_, t.nk, rows_);
    }
    quad_output<P, W>(tile_, values, top_, sum_, out_, Decode::ahead(x_, q_.rows));
  }

  template <int N>
  void by_rows(const Tile<S>& t, const Rows& keys, const Rows& values) {
    decode_dots<P, N>(q_, keys, bias_, scores_.scale, Decode::ahead(k_, q_.rows), tile_);
    modify(t);
    S alpha[N];
    decode_weights<P, N>(tile_, t.nk, top_, sum_, alpha);
    decode_values<P, N>(tile_, values, alpha, out_, Decode::ahead(x_, q_.rows));
  }

  const Scores<S, Mods>& scores_;
  View<S> q_;
  Rows k_, x_;
  S *top_, *sum_;
  MutView<S> out_;
  S *tile_, *bias_, *packed_ = nullptr, *rows_ = nullptr, *ordered_ = nullptr;
};

/// What the chunks of one map leave behind, and how it becomes the result.
template <class P, class Mods>
class DecodeParts {
 public:
  using S = typename P::Scalar;

  DecodeParts(Arena& arena, const SmoothMap<S, Mods>& map, Index chunks)
      : map_(map), rows_(Decode::whole(map.scores.n())) {
    const Index n = map.scores.n(), d = map.scores.q.cols;
    parts_ = arena.matrix<S>(chunks * rows_, map.x.cols);
    top_ = arena.matrix<S>(chunks, rows_), sum_ = arena.matrix<S>(chunks, rows_);
    q_ = arena.matrix<S>(rows_, d);
    copy<S>(map.scores.q, q_);
    for (Index i = n; i < rows_; ++i) clear(q_.row(i), d);
    // wanted when the keys are done with: the result's rows, and what are mostly the next item's queries
    for (Index i = 0; i < n; ++i) {
      for (Index c = 0; c < map.out.cols; c += P::lanes) P::prefetch(map.out.row(i) + c, 0);
      for (Index c = 0; c < d; c += P::lanes) P::prefetch(map.scores.q.row(i) + c, n * map.scores.q.stride);
    }
  }

  /// The keys' rows: `source` makes them.
  template <class Source>
  void run_chunk(Index c, Index begin, Index end, const Source& source, Arena& arena) const {
    const auto [k, x] = source(map_.scores.k, map_.x, begin, end, arena);
    DecodeChunk<P, Mods, std::remove_const_t<decltype(k)>>(map_.scores, View<S>(q_), k, x, top_.row(c), sum_.row(c),
                                                           parts_.block(c * rows_, 0, rows_, map_.x.cols), arena)
        .run(begin, end);
  }

  /// The chunks in order, whoever made them.
  void merge() const {
    using std::exp;
    const MutView<S>& out = map_.out;
    for (Index i = 0; i < out.rows; ++i) {
      S most = minus_infinity<S>(), total(0);
      for (Index c = 0; c < top_.rows; ++c) most = most < top_(c, i) ? top_(c, i) : most;
      const auto empty = [&](Index c) { return top_(c, i) == minus_infinity<S>() && sum_(c, i) == S(0); };
      const auto factor = [&](Index c) { return top_(c, i) == most ? S(1) : exp(top_(c, i) - most); };
      for (Index c = 0; c < top_.rows; ++c)
        if (!empty(c)) total += sum_(c, i) * factor(c);
      S top = most;
      const S shrink = map_.scores.add_sink(i, 0, top, total), one_over = map_.scores.one_over(total, top),
              inverse = Mods::sinks ? one_over * shrink : one_over;
      bool begun = false;
      for (Index c = 0; c < top_.rows; ++c) {
        if (empty(c)) continue;
        copy_or_add_scaled<P>(parts_.block(c * rows_ + i, 0, 1, out.cols), factor(c) * inverse,
                              out.block(i, 0, 1, out.cols), begun);
        begun = true;
      }
      if (!begun) clear(out.row(i), out.cols);
    }
  }

 private:
  const SmoothMap<S, Mods>& map_;
  Index rows_;
  MutView<S> parts_, top_, sum_, q_;
};

/// Whether a `smooth` of these maps is a decode.
template <class P, class Maps>
bool decodes(const Maps& maps) {
  const auto& scores = maps[0].scores;
  return !scores.by_pair() && !scores.mixed(0, scores.n()) &&
         Decode::fits<P>(scores.n(), scores.m(), scores.q.cols, maps[0].x.cols);
}

template <class P, std::size_t M, class Mods, class Source>
void smooth_decode(const Context& context, const Few<SmoothMap<typename P::Scalar, Mods>, M>& maps,
                   const Source& source) {
  const auto& scores = maps[0].scores;
  const Interval seen = scores.key_range(0, scores.n());
  const Index chunks = (seen.end - seen.begin + Decode::chunk - 1) / Decode::chunk;
  const auto parts =
      each_map(maps, [&](const auto& map) { return DecodeParts<P, Mods>(context.arena(), map, chunks); });
  context.run(chunks, [&](Index c, Arena& own) {
    const Index begin = seen.begin + c * Decode::chunk;
    for (const auto& part : parts) part.run_chunk(c, begin, std::min(seen.end, begin + Decode::chunk), source, own);
  });
  for (const auto& part : parts) part.merge();
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
