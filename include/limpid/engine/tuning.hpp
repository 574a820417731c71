// limpid: every block size, cache size and machine switch of the engine, each with its reason.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "../core/matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Numbers in a cache line, which is what a prefetch brings.
template <class S>
inline constexpr std::ptrdiff_t line_of = sizeof(S) < 64 ? 64 / static_cast<std::ptrdiff_t>(sizeof(S)) : 1;

/// Whether a core has so much memory bandwidth (Zen 5: 46 GB/s, Zen 4 half of it) that prefetching into L2 does not
/// keep up, and an L1 of 48 KiB to prefetch into. Known by an instruction, for want of a name: g++ 12 takes Zen 5 for a
/// Zen 3 with more instructions.
#if defined(__AVX512VP2INTERSECT__)
inline constexpr bool high_bandwidth = true;
#else
inline constexpr bool high_bandwidth = false;
#endif

/// From this size on an amount is far: beside it a float keeps 13 bits behind the point.
inline constexpr double far_amount = 1024;

/// Queries that go through the registers together; origin_of: the first of those that query i is among. Every sweep
/// counts amounts of keys that depend on the query's place from there: scores near 1e5 are rounded to 1/128, and
/// weights that are made more than once have to be the same.
template <class P>
inline constexpr Index panel_of = P::lanes* P::tile_vectors;
template <class P>
Index origin_of(Index i) {
  return i / panel_of<P> * panel_of<P>;
}

/// Bytes of L2, about: larger arrays are read from farther away.
inline constexpr Index l2_bytes = 1 << 20;

// Block sizes matter little (3 %); these keep a block of scores in L1.
template <class P>
struct SmoothBlocks {
  static constexpr Index panel = panel_of<P>;
  static constexpr Index panels = P::lanes == 1 ? 8 : (128 + panel - 1) / panel;
  static constexpr Index queries = panel * panels, keys = 128;
};

template <class P>
struct PullBlocks {
  static constexpr Index unit = P::lanes * P::tile_vectors;
  static constexpr Index keys = unit >= 64 ? unit : 64 / unit * unit;
  /// With 64 the weights and gradients of a block fit into L1: backward is 4 % quicker in float and 5 % in double with
  /// 16 registers (AVX2, Zen 3). With 32 the size does not matter.
  static constexpr Index queries = P::registers == 32 ? 128 : 64;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
