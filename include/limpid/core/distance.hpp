// limpid: squared distances by pair, sum_c (q_ic - k_jc)^2, and gradients that are sums of differences.
// SPDX-License-Identifier: MIT
//
// |q|^2 - 2 <q, k> + |k|^2 about whatever middle loses (extent / distance)^2 of the digits of a near pair. Differences
// lose none. They cost a subtraction more a column, so they are for those calls that need them, see score/kernel.hpp.
// A pair has the same bits whichever side stands in the lanes: (a - b)^2 = (b - a)^2, and columns come in one order.
#pragma once

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
  const S* start;  // null: what stands there
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    const typename P::V before =
        start == nullptr ? P::load(p) : (KeysAreLanes ? P::load(start + lane) : P::set(start[r]));
    const typename P::V s = P::fma(acc, P::set(factor), before), lowest = P::set(lowest_number<S>());
    P::store(p, P::if_less(s, lowest, lowest, s));
  }
};

/// A tile of scores from their parts: a side in rows, the other in lanes, transposed.
template <class P, bool KeysAreLanes>
void tile_of_parts(const PartsOfScores<typename P::Scalar>& parts, Index rows, Index vectors,
                   const typename P::Scalar* a, Index lda, const typename P::Scalar* transposed, Index ld,
                   const typename P::Scalar* start, typename P::Scalar* out) {
  for (const auto& part : parts) {
    if (part.cols == 0) continue;
    const StorePart<P, KeysAreLanes> store{out, ld, part.factor, &part == &parts[0] ? start : nullptr};
    const auto *left = a + part.first, *right = transposed + part.first * ld;
    if (part.differences)
      product<P, Walk::rows>(rows, vectors, part.cols, left, lda, right, ld, store, AddSquare<P>());
    else
      product<P, Walk::rows>(rows, vectors, part.cols, left, lda, right, ld, store);
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

/// The score of one pair from its parts, before the additive part of its key.
template <class P>
typename P::Scalar score_of_parts(const PartsOfScores<typename P::Scalar>& parts, const typename P::Scalar* q,
                                  const typename P::Scalar* k) {
  using S = typename P::Scalar;
  S sum(0);
  for (const auto& part : parts)
    if (part.cols > 0)
      sum += part.factor * (part.differences ? vector_distance<P>(q + part.first, k + part.first, part.cols)
                                             : vector_dot<P>(q + part.first, k + part.first, part.cols));
  return sum < lowest_number<S>() ? lowest_number<S>() : sum;
}

/// Rows as whole vectors with zeros in the columns that are no differences: what AddDifference takes off.
template <class P, class S = typename P::Scalar>
void rows_taken_off(const PartsOfScores<S>& parts, const S* rows, Index stride, Index count, Index cols, S* out) {
  const Index width = padded<P>(cols);
  clear(out, count * width);
  for (const auto& part : parts)
    if (part.differences)
      for (Index i = 0; i < count; ++i)
        std::copy(rows + i * stride + part.first, rows + i * stride + part.first + part.cols,
                  out + i * width + part.first);
}

/// out += sum_k a(r, k) (B[k] - own[r]), in the columns that are differences; elsewhere own is zero, and vectors of
/// columns ahead of the first difference are plain products.
template <class P, Walk W, class S = typename P::Scalar>
void add_differences(const PartsOfScores<S>& parts, Index rows, Index vectors, Index inner, const S* a, Index lda,
                     const S* b, Index ldb, const S* own, Index own_ld, S* out, Index ld) {
  const Index plain = parts[0].differences ? 0 : parts[0].cols / P::lanes, at = plain * P::lanes;
  if (plain > 0) product<P, W>(rows, plain, inner, a, lda, b, ldb, Accumulate<P>{out, ld});
  if (vectors > plain)
    product<P, W>(rows, vectors - plain, inner, a, lda, b + at, ldb, Accumulate<P>{out + at, ld},
                  AddDifference<P>{own + at, own_ld});
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
