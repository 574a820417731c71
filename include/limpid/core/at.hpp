// limpid: where a score stands, and the runs of keys that masks speak of.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>

#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where a score stands: batch item, query head, query, key; the numbers n of queries and m of keys, and those of batch
/// items and heads.
struct At {
  Index batch = 0, head = 0, q = 0, k = 0, n = 0, m = 0;
  Index batches = 1, heads = 1;
  /// In a packed call q, k, n and m are those of a sequence, which begins here; rows and keys: of the whole call.
  Index first_q = 0, first_k = 0, rows = -1, keys = -1;
  /// Where query and key stand in the arrays of the call.
  Index row() const { return first_q + q; }
  Index key() const { return first_k + k; }
  Index all_rows() const { return rows < 0 ? n : rows; }
  Index all_keys() const { return keys < 0 ? m : keys; }
  /// The query's place on the keys' axis: the last query stands at the last key (bottom-right alignment).
  Index position() const { return q + m - n; }
};

/// Keys [begin, end) that a query sees.
struct Interval {
  Index begin = 0, end = 0;
};
inline Interval common(const Interval& a, const Interval& b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}
/// The least that has both.
inline Interval around(const Interval& a, const Interval& b) {
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

/// What a mask does to a whole block of pairs.
enum class Cover { none, some, all };

/// Whether there are amounts so far above or below 0 that sums with them lose digits of scores.
struct Far {
  bool above = false, below = false;
  bool any() const { return above || below; }
};

/// A block of queries and all keys that one of them may see: what a mask that keeps few of many pairs hands to the
/// engine, which then works on these alone. Query i sees key j where j < free, or lo[a][i] <= at[a][j] <= hi[a][i] on
/// every axis a.
template <class S>
struct PairBlock {
  static constexpr int most_axes = 3;
  Index queries = 0, keys = 0;
  Index *q = nullptr, *k = nullptr;  ///< rows of the call, to be filled; k ascending
  Index free = 0;
  int axes = 0;
  std::array<S*, most_axes> lo = {}, hi = {}, at = {};
  Index first_q = 0, first_k = 0, n = -1, m = -1;  ///< what places are counted from, and how many there are, if said
  bool far = false;  ///< tables of the head have entries far from 0, see engine/reference_key.hpp
};

/// Tokens on a grid of one to three axes, the last of them axes[2]: that at place (a, b, c) is row first + a apart[0] +
/// b apart[1] + c apart[2]. A query sees the keys that lie, on every axis, in the interval of its place; the ends of
/// these do not fall from place to place.
struct WindowGrid {
  Index first = 0;
  std::array<Index, 3> places = {1, 1, 1}, apart = {0, 0, 0};
  Index lines() const { return places[0] * places[1]; }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
