// limpid: every block size, cache size and machine switch of the engine, each with its reason.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
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

/// Rows that are copied side by side before they are read: so many bytes apart (a quarter page), over more memory than
/// that (a quarter of L2), and read at least so often: then page table walks cost more than the copy.
struct StridedRows {
  static constexpr Index passes = 8, apart = 1024, memory = l2_bytes / 4;
};

/// Products of whole matrices: the inner sum in blocks, each summed apart, whose packed panel stays in L2. Of so few
/// rows a panel would be packed for as long as they take: B is read where it lies. Rows of a task: so many, all about
/// alike (257 tokens were 256 and one); or fewer where there would be less than so many tasks and the inner sum is
/// short: then a worker keeps its panel for the next task.
struct GemmBlocks {
  static constexpr Index height = 256, depth = 512, few_rows = 8;
  /// What a forward pass sums at a time, for digits: of 12 layers of RXNMapper (inner sums of 256 and 512) tokens err by
  /// a third of what they do in sums of 512, mean of twelve inputs; 0.99 to 1.03 of the time in blocks of so many rows
  /// (1 to 257 rows, float, AVX-512, Emerald Rapids, one thread of a loaded machine; all rows at once 1.07).
  static constexpr Index apart = 128, near_rows = 24;
  /// From so many rows on the next panel that is packed already is asked for, a little a tile: 0.95 to 0.98 of the time
  /// for 64 and 128 rows, 1.04 to 1.1 for 16, which are memory's alone; not of what is packed here (1.02 to 1.15; float,
  /// AVX-512, Emerald Rapids, one thread of a loaded machine).
  static constexpr Index asking_rows = 48;
  static constexpr Index tasks = 48, fewest_rows = 64, kept_depth = 1536;
  /// Rows that packing asks for ahead of those it copies: dx of weights in memory in 0.83 to 0.98 of the time for 16
  /// rows, as the memory is, 0.95 for 128, 0.98 for 512 (MiniLM's shapes, one thread of an Emerald Rapids).
  static constexpr Index rows_ahead = 16;
  /// A^T B, gradients of weights: whether A's columns are packed too. Where they lie, every step of the inner sum is in
  /// another line, and soon in another page: 0.99 of the time for 64 rows, 0.90 to 0.96 for 128, 0.85 for 512 (there).
  /// The smaller factor whole, the larger one panel by panel, so that each is read from memory once: 0.75 of the time
  /// for 512 rows and weights of 1536 x 384, 0.94 for 128 (there).
  static constexpr bool packs_columns(Index inner, Index cols) { return inner >= 64 && cols >= 96; }
  /// Rows of a task. finer: of wide panels on several workers, which are half as many, so that there are as many tasks.
  static Index rows(Index all, Index panels, Index inner, bool finer) {
    const Index wanted = inner > kept_depth ? 1 : (tasks + panels - 1) / std::max<Index>(1, panels);
    const Index fewest = finer ? fewest_rows / 2 : fewest_rows;
    const Index blocks = std::max((all + height - 1) / height, std::min(wanted, all / fewest));
    return blocks > 1 ? all / blocks / 8 * 8 : std::max<Index>(1, all);  // whole tiles, where they are of 8 rows or 4
  }
};

/// Rows of a task of a layer norm. Chosen, not measured.
inline constexpr Index rows_of_task = 256;
/// Entries of a task that activates: some 4 us, so that 16 rows of an MLP of 1536 are work for two. By the simulation of
/// bench/scaling.cpp, not swept.
inline constexpr Index activated_entries = 12288;
/// Columns of a task that sums over rows, a bias's gradient. Chosen, not measured.
inline constexpr Index columns_of_task = 192;
/// Rows of a map that looks inside make at a time: few, as they are m wide. Chosen, not measured.
inline constexpr Index rows_at_a_time = 32;

/// Smooth for few queries, bound by memory: worth it from so many keys on; keys of a block, whose scores stay in L1;
/// rows of values that stay near for several passes over them; keys of a task, by shape alone, merged in order; lines
/// that are asked for together with the first where a pass takes fewer columns than a row has.
struct DecodeBlocks {
  static constexpr Index fewest_keys = 256, block = 1024, near = 64, chunk = 2048;
  static constexpr int together = 4;
  /// Queries that are worked on side by side: more than two want registers in quads.
  static constexpr Index most_queries(bool quads) { return quads ? 8 : 2; }
  /// How far ahead is prefetched. Where there is much to do for a row the machine no longer looks far enough ahead by
  /// itself: 12 KiB of rows, or 8 KiB where bandwidth is high and queries are fewer than eight.
  static constexpr Index prefetch_bytes(Index queries) { return high_bandwidth && queries < 8 ? 8 * 1024 : 12 * 1024; }
  /// Rows at most that one is asked for ahead of its use, while weights are made too.
  template <class S>
  static constexpr Index rows_ahead(Index cols) {
    return prefetch_bytes(8) / static_cast<Index>(sizeof(S)) / cols + 2 * block / 8;
  }
};

// Block sizes matter little (3 %); these keep a block of scores in L1.
template <class P>
struct SmoothBlocks {
  static constexpr Index panel = panel_of<P>;
  static constexpr Index panels = P::lanes == 1 ? 8 : (128 + panel - 1) / panel;
  static constexpr Index queries = panel * panels, keys = 128;
};

/// Windows on a grid line by line: lines of queries of a stretch, which is a task. dK and dV of a stretch are summed
/// apart; those of a serial `smooth` have nothing to share, and it takes one. Against blocks: a pair costs 1.2 times as
/// much, and a query saves what 30 pairs cost (windows of 7 x 7, 8 x 8 by fours and 21 x 21: Zen 4, AVX-512, g++ -O2).
struct LineCosts {
  static constexpr Index smooth_groups = 2, pull_groups = 4;
  static constexpr bool less(double by_line, double by_block) { return 1.2 * by_line < by_block + 30; }
};

/// Columns up to which a bandwidth's gradient is summed by pair: wider rows cost too much.
inline constexpr Index widest_moment = 8;

template <class P>
struct PullBlocks {
  static constexpr Index unit = P::lanes * P::tile_vectors;
  static constexpr Index keys = unit >= 64 ? unit : 64 / unit * unit;
  /// With 64 the weights and gradients of a block fit into L1: backward is 4 % quicker in float and 5 % in double with
  /// 16 registers (AVX2, Zen 3). With 32 the size does not matter.
  static constexpr Index queries = P::registers == 32 ? 128 : 64;
  /// How many of these a block of n queries in all has: where blocks are few, tasks wait less for smaller ones (16
  /// workers, n = 1024, causal: 0.80 of the speed-up in place of 0.71). Without a mask, whose edge they would cut, all
  /// are about alike.
  static Index rows(Index n, bool masked) {
    const Index most = n <= 1024 ? std::min<Index>(64, queries) : queries;
    if (masked || n > 1024) return most;
    const Index blocks = std::max<Index>(1, (n + (queries > most ? most / 2 : most - 1)) / most);
    const Index even = (std::max<Index>(1, n) + blocks - 1) / blocks;  // of no queries there is no block, but its size
    return std::min(queries, (even + P::tile_rows - 1) / P::tile_rows * P::tile_rows);
  }
  /// Tasks wanted of a head, and the fewest queries a task is cut down to for them, as its keys' sums are gathered
  /// again. Of 128 in place of 256, 16 workers have 0.85 of the speed-up in place of 0.81 at n = 1024, causal; of 64,
  /// 0.80 in place of 0.70 at 12 heads of 197, but a serial call is 1 to 4 % slower at n = 512 (Zen 4, AVX-512).
  static constexpr Index tasks = 128;
  static Index fewest_rows(Index n, bool masked) {
    if (n <= 320 && !masked && P::registers == 32) return 64;
    return n <= 1024 ? 128 : 256;
  }
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
