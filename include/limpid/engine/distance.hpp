// limpid: squared distances by pair, sum_c (q_ic - k_jc)^2, and gradients that are sums of differences.
// SPDX-License-Identifier: MIT
//
// |q|^2 - 2 <q, k> + |k|^2 loses (extent / distance)^2 of the digits of a near pair,
// about whatever middle. Differences lose none, but cost one subtraction more a column:
// they are for calls that need them (score/kernel.hpp), in one of two ways.
//   Narrow rows: every pair is summed from differences.
//   Wide rows: near pairs alone are. A tile is made of products about a middle, (|q|^2 + |k|^2) / 2 - <q, k> =
//   |q - k|^2 / 2; a pair for which this is below half of the first term, so that more than a digit is lost, is made
//   again from differences. Gradients likewise: the pairs that are not near give sum_j dS_ij k_j - (sum_j dS_ij) q_i
//   about the middle.
// A pair has the same bits whichever side stands in the lanes: (a - b)^2 = (b - a)^2, and columns come in one order.
// All of this page is our own.
#pragma once

#include <utility>

#include "pack.hpp"
#include "scores.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class P>
struct AddSquare {
  LIMPID_INLINE static typename P::V add(const typename P::V& a, const typename P::V& b, const typename P::V& acc,
                                         Index, Index) {
    const typename P::V t = b - a;
    return P::fma(t, t, acc);
  }
};

/// a (b - own), own being the row of the tile.
template <class P>
struct AddDifference {
  const typename P::Scalar* own;
  Index ld;
  LIMPID_INLINE typename P::V add(const typename P::V& a, const typename P::V& b, const typename P::V& acc, Index r,
                                  Index lane) const {
    return P::fma(a, b - P::load(own + r * ld + lane), acc);
  }
};

/// One part of the scores, added to what stands there or, at first, to the additive part of its key. Kept above minus
/// infinity, which would be no key.
template <class P, bool KeysAreLanes>
struct StorePart {
  using S = typename P::Scalar;
  S* out;
  Index ld;
  S factor;
  const S* bias;  // null: what stands there
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    const typename P::V before = bias == nullptr ? P::load(p) : (KeysAreLanes ? P::load(bias + lane) : P::set(bias[r]));
    const typename P::V s = P::fma(acc, P::set(factor), before), lowest = P::set(lowest_number<S>());
    P::store(p, P::if_less(s, lowest, lowest, s));
  }
};

/// The same for a part of which near pairs alone are differences; these become infinity here, see make_near_pairs().
/// `beside` has a few columns that are differences. Neither part is so large that a sum with the lowest number would
/// change it, see score/kernel.hpp.
template <class P, bool KeysAreLanes>
struct StoreFarPart {
  using S = typename P::Scalar;
  using V = typename P::V;
  S* out;
  Index ld;
  S twice;
  const S *half_rows, *half_lanes, *bias;
  S* top;  // of every lane the largest score so far; null: not wanted
  struct Beside {
    const S* rows;
    Index stride;
    const S* lanes;
    Index cols;
    S factor;
  } beside;
  template <int R, int N>
  LIMPID_INLINE void tile(Index r0, Index lane, const V (&acc)[R][N]) const {
    constexpr int group = P::registers == 32 && R % 4 == 0 ? 4 : 1;  // rows whose squares find room beside acc
    const V infinity = P::set(-minus_infinity<S>());
    S* p = out + r0 * ld + lane;
    const S *half_row = half_rows + r0, *half_lane = half_lanes + lane, *own = beside.rows + r0 * beside.stride;
    const S* added = bias == nullptr ? nullptr : bias + (KeysAreLanes ? lane : r0);
    V most[N];
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) most[v] = KeysAreLanes || !top ? infinity : P::load(top + lane + v * P::lanes);
    LIMPID_UNROLL(16)
    for (int g = 0; g < R; g += group) {
      V squares[group][N];
      LIMPID_UNROLL(4)
      for (int r = 0; r < group; ++r) {
        LIMPID_UNROLL(4)
        for (int v = 0; v < N; ++v) squares[r][v] = P::set(S(0));
      }
      const S* lanes_of = beside.lanes + lane;
      for (Index c = 0; c < beside.cols; ++c, lanes_of += ld) {
        V other[N];
        LIMPID_UNROLL(4)
        for (int v = 0; v < N; ++v) other[v] = P::load(lanes_of + v * P::lanes);
        LIMPID_UNROLL(4)
        for (int r = 0; r < group; ++r) {
          const V one = P::set(own[r * beside.stride + c]);
          LIMPID_UNROLL(4)
          for (int v = 0; v < N; ++v) squares[r][v] = P::fma(other[v] - one, other[v] - one, squares[r][v]);
        }
      }
      own += group * beside.stride;
      LIMPID_UNROLL(4)
      for (int r = 0; r < group; ++r, p += ld) {
        LIMPID_UNROLL(4)
        for (int v = 0; v < N; ++v) {
          const Index l = v * P::lanes;
          const V half = P::set(half_row[g + r]) + P::load(half_lane + l),
                  apart = half - acc[g + r][v];  // |q - k|^2 / 2
          const V before =
              added == nullptr ? P::load(p + l) : (KeysAreLanes ? P::load(added + l) : P::set(added[g + r]));
          const V s = P::fma(apart, P::set(twice), P::fma(squares[r][v], P::set(beside.factor), before));
          const V score = P::if_less(apart, acc[g + r][v], infinity, s);  // apart is less than a half of half
          P::store(p + l, score);
          if constexpr (!KeysAreLanes) most[v] = P::max(most[v], score);
        }
      }
    }
    if (KeysAreLanes || !top) return;
    LIMPID_UNROLL(4)
    for (int v = 0; v < N; ++v) P::store(top + lane + v * P::lanes, most[v]);
  }
};

/// A tile of scores from their parts: queries in rows, a, and keys in lanes, transposed, or the other way round. Those
/// parts that may leave an infinity come last, and look for the largest score of every lane (top; may be null). Rows that
/// are listed are for parts without near pairs.
template <class P, bool KeysAreLanes, class Rows>
void tile_of_parts(const PartsOfScores<typename P::Scalar>& parts, const Tile<typename P::Scalar>& t, Index vectors,
                   const typename P::Scalar* a, const Rows& lda, const typename P::Scalar* transposed,
                   const typename P::Scalar* bias, typename P::Scalar* top = nullptr) {
  using S = typename P::Scalar;
  const Index rows = KeysAreLanes ? t.nq : t.nk;
  const auto left = [&](const ScorePart<S>& part) { return a + part.first; };
  const auto right = [&](const ScorePart<S>& part) { return transposed + part.first * t.ld; };

  const ScorePart<S>* beside = nullptr;  // goes with the other part
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const auto &part = parts[p], &other = parts[1 - p];
    if (part.cols == 0 || part.near_alone()) continue;
    if (part.differences && other.near_alone()) {
      beside = &part;
      continue;
    }
    const StorePart<P, KeysAreLanes> store{t.data, t.ld, part.factor, bias};
    bias = nullptr;
    if (part.differences)
      product<P, Transposed::none>(rows, vectors, part.cols, left(part), lda, right(part), t.ld, store, AddSquare<P>());
    else
      product<P, Transposed::none>(rows, vectors, part.cols, left(part), lda, right(part), t.ld, store);
  }
  if constexpr (std::is_same_v<Rows, Index>)
    for (const auto& part : parts) {
      if (part.cols == 0 || !part.near_alone()) continue;
      StoreFarPart<P, KeysAreLanes> store{
          t.data, t.ld, S(2) * part.factor, part.half_q + t.q0, part.half_k + t.k0, bias, top, {}};
      if (!KeysAreLanes) std::swap(store.half_rows, store.half_lanes);
      const ScorePart<S>& by = beside ? *beside : part;
      store.beside = {left(by), lda, right(by), beside ? by.cols : 0, by.factor};
      bias = nullptr;
      product<P, Transposed::none>(rows, vectors, part.cols, left(part), lda, right(part), t.ld, store);
    }
}

/// |a - b|^2, lanes along the columns.
template <class P>
typename P::Scalar vector_distance(const typename P::Scalar* a, const typename P::Scalar* b, Index count) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0));
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) {
    const typename P::V t = P::load(a + c) - P::load(b + c);
    sum = P::fma(t, t, sum);
  }
  S total = P::sum(sum);
  for (; c < count; ++c) total += (a[c] - b[c]) * (a[c] - b[c]);
  return total;
}

/// The columns of a row that make a part of the scores, as they were given.
template <class S, class Mods>
const S* part_of_query(const Scores<S, Mods>& scores, const ScorePart<S>& part, Index i) {
  return part.near_alone() ? part.q.row(i) : scores.q.row(i) + part.first;
}
template <class S, class Mods>
const S* part_of_key(const Scores<S, Mods>& scores, const ScorePart<S>& part, Index j) {
  return part.near_alone() ? part.k.row(j) : scores.k.row(j) + part.first;
}

/// The score of one pair from its parts, before the additive part of its key.
template <class P, class Mods>
typename P::Scalar score_of_parts(const Scores<typename P::Scalar, Mods>& scores,
                                  const PartsOfScores<typename P::Scalar>& parts, Index i, Index j) {
  using S = typename P::Scalar;
  S sum(0);
  for (const auto& part : parts) {
    if (part.cols == 0) continue;
    const S *q = part_of_query(scores, part, i), *k = part_of_key(scores, part, j);
    sum += part.factor * (part.differences ? vector_distance<P>(q, k, part.cols) : vector_dot<P>(q, k, part.cols));
  }
  return sum < lowest_number<S>() ? lowest_number<S>() : sum;
}

/// The near pairs of a tile, by their places in it; those of its rows that are looked at begin at `first`.
struct NearPairs {
  Index* places;
  Index count = 0, first = 0;
};

/// The largest number of rows [begin, end) of a tile, none below 0.
template <class P>
typename P::Scalar largest_of(const Tile<typename P::Scalar>& t, Index begin, Index end, Index vectors) {
  using S = typename P::Scalar;
  using V = typename P::V;
  V top = P::set(S(0)), second = top;  // side by side, as each waits for the one before it
  Index r = begin;
  for (; r + 2 <= end; r += 2)
    for (Index v = 0; v < vectors; ++v) {
      const S* at = t.data + r * t.ld + v * P::lanes;
      top = P::max(top, P::load(at)), second = P::max(second, P::load(at + t.ld));
    }
  for (; r < end; ++r)
    for (Index v = 0; v < vectors; ++v) top = P::max(top, P::load(t.data + r * t.ld + v * P::lanes));
  S each[P::lanes];
  P::store(each, P::largest(P::max(top, second)));
  return each[0];
}

/// The scores of a tile's near pairs, found by their infinity, from differences of the rows as they were given. bias:
/// the additive parts of keys; null: each row has its own. found: which they are; may be null.
template <class P, bool KeysAreLanes, class Mods>
LIMPID_NOINLINE void make_near_pairs(const Scores<typename P::Scalar, Mods>& scores,
                                     const PartsOfScores<typename P::Scalar>& parts, const Tile<typename P::Scalar>& t,
                                     Index vectors, const typename P::Scalar* bias, NearPairs* found = nullptr) {
  using S = typename P::Scalar;
  const Index rows = KeysAreLanes ? t.nq : t.nk, lanes = KeysAreLanes ? t.nk : t.nq;
  const S infinity = -minus_infinity<S>();
  constexpr Index some = 4;
  bool any = false;
  for (Index r = 0; r < rows; ++r) {
    S* row = t.data + r * t.ld;
    if (r % some == 0) any = largest_of<P>(t, r, std::min(rows, r + some), vectors) == infinity;
    if (!any) continue;
    for (Index l = 0; l < lanes; ++l) {
      if (!(row[l] == infinity)) continue;
      if (found) found->places[found->count++] = found->first + r * t.ld + l;
      const Index i = t.q0 + (KeysAreLanes ? r : l), j = t.k0 + (KeysAreLanes ? l : r);
      S added;
      if (bias == nullptr)
        scores.key_bias(origin_of<P>(t.q0), j, 1, &added, i);
      else
        added = bias[KeysAreLanes ? l : r];
      const S s = score_of_parts<P>(scores, parts, i, j) + added;
      row[l] = s < lowest_number<S>() ? lowest_number<S>() : s;
    }
  }
}

/// The scores of a tile where they are summed by pair, or some parts of them.
template <class P, bool KeysAreLanes, class Mods>
void tile_by_pair(const Scores<typename P::Scalar, Mods>& scores, const PartsOfScores<typename P::Scalar>& parts,
                  const Tile<typename P::Scalar>& t, Index vectors, const typename P::Scalar* rows, Index stride,
                  const typename P::Scalar* transposed, const typename P::Scalar* bias, NearPairs* found = nullptr) {
  tile_of_parts<P, KeysAreLanes>(parts, t, vectors, rows, stride, transposed, bias);
  if (scores.near_alone()) make_near_pairs<P, KeysAreLanes>(scores, parts, t, vectors, bias, found);
}

/// dS of near pairs, taken out of the tile.
template <class S>
void take_near_pairs(const NearPairs& near, const Tile<S>& ds, S* taken) {
  for (Index f = 0; f < near.count; ++f) taken[f] = std::exchange(ds.data[near.places[f]], S(0));
}

/// The gradients of near pairs, whose dS was taken out of a tile (keys in lanes): dq += dS (k - q), dk += dS (q - k) in
/// columns that are distances, dq += dS k, dk += dS q in others. dq and dk begin at the tile's rows; may be null.
template <class P, class Mods>
LIMPID_NOINLINE void pull_near_pairs(const Scores<typename P::Scalar, Mods>& scores, const NearPairs& near,
                                     const Tile<typename P::Scalar>& ds, const typename P::Scalar* taken,
                                     typename P::Scalar* dq, Index dq_stride, typename P::Scalar* dk, Index dk_stride) {
  using S = typename P::Scalar;
  for (Index f = 0; f < near.count; ++f) {
    const Index i = near.places[f] / ds.ld, j = near.places[f] % ds.ld;
    const S g = taken[f];
    if (g == S(0)) continue;  // a masked pair may hold anything
    const auto add = [&](const ScorePart<S>& part, const S* own, const S* other, S* row) {
      S* to = row + part.first;
      for_lanes<P>(part.cols, [&](auto policy, Index c) {
        using L = decltype(policy);
        const typename L::V x = part.differences ? L::load(other + c) - L::load(own + c) : L::load(other + c);
        L::store(to + c, L::fma(L::set(g), x, L::load(to + c)));
      });
    };
    for (const auto& part : scores.parts) {
      if (part.cols == 0) continue;
      const S *q = part_of_query(scores, part, ds.q0 + i), *k = part_of_key(scores, part, ds.k0 + j);
      if (dq) add(part, q, k, dq + i * dq_stride);
      if (dk) add(part, k, q, dk + j * dk_stride);
    }
  }
}

/// to -= weight row, in columns of which near pairs alone are differences.
template <class P>
void take_off_middle(const PartsOfScores<typename P::Scalar>& parts, typename P::Scalar weight,
                     const typename P::Scalar* row, typename P::Scalar* to) {
  for (const auto& part : parts)
    if (part.near_alone()) add_scaled_row<P>(to + part.first, -weight, row + part.first, to + part.first, part.cols);
}

/// Rows as whole vectors with zeros in the columns that are no differences: what AddDifference takes off.
template <class P, class S = typename P::Scalar>
void rows_taken_off(const PartsOfScores<S>& parts, const S* rows, Index stride, Index count, Index cols, S* out) {
  const Index width = padded<P>(cols);
  clear(out, count * width);
  for (const auto& part : parts)
    if (part.differences && !part.near_alone())
      for (Index i = 0; i < count; ++i)
        std::copy(rows + i * stride + part.first, rows + i * stride + part.first + part.cols,
                  out + i * width + part.first);
}

/// out += sum_k a(r, k) (B[k] - own[r]), in the columns that are differences; elsewhere own is zero, and vectors of
/// columns ahead of the first difference are plain products.
template <class P, Transposed T, class S = typename P::Scalar>
void add_differences(const PartsOfScores<S>& parts, Index rows, Index vectors, Index inner, const S* a, Index lda,
                     const S* b, Index ldb, const S* own, Index own_ld, S* out, Index ld) {
  const bool products = !parts[0].differences || parts[0].near_alone();
  const Index plain = products ? parts[0].cols / P::lanes : 0, at = plain * P::lanes;
  if (plain > 0) product<P, T>(rows, plain, inner, a, lda, b, ldb, Accumulate<P>{out, ld});
  if (vectors > plain)
    product<P, T>(rows, vectors - plain, inner, a, lda, b + at, ldb, Accumulate<P>{out + at, ld},
                  AddDifference<P>{own + at, own_ld});
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
