// limpid: where a score stands, and the runs of keys that masks speak of.
// SPDX-License-Identifier: MIT
#pragma once

#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where a score stands: batch item, query head, query, key; the numbers n of queries and m of keys, and those of batch
/// items and heads.
struct At {
  Index batch = 0, head = 0, q = 0, k = 0, n = 0, m = 0;
  Index batches = 1, heads = 1;
  /// The query's place on the keys' axis: the last query stands at the last key (bottom-right alignment).
  Index position() const { return q + m - n; }
};

/// Keys [begin, end) that a query sees.
struct Interval {
  Index begin = 0, end = 0;
};

/// What a mask does to a whole block of pairs.
enum class Cover { none, some, all };

/// Whether there are amounts so far above or below 0 that sums with them lose digits of scores.
struct Far {
  bool above = false, below = false;
  bool any() const { return above || below; }
};

}  // namespace LIMPID_ABI
}  // namespace limpid
