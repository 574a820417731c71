// limpid: how a sweep over blocks of keys is cut into tasks, and in what order they add to what they share.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../core/context.hpp"
#include "scores.hpp"
#include "tuning.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// How a sweep is cut, by shape alone: blocks of keys, and where these are few, stretches of the blocks of queries.
template <class P>
struct PullCut {
  using Blocks = PullBlocks<P>;
  Index n, m, rows, key_blocks, query_blocks, stretches, in_stretch;  // rows: of a block of queries

  template <class S, class Mods>
  explicit PullCut(const Scores<S, Mods>& scores) : n(scores.n()), m(scores.m()) {
    constexpr bool masked = have_masks<Mods>;
    rows = Blocks::rows(n, masked);
    key_blocks = (m + Blocks::keys - 1) / Blocks::keys, query_blocks = (n + rows - 1) / rows;
    const Index fewest = Blocks::fewest_rows(n, masked), most = std::max<Index>(1, (n + fewest - 1) / fewest);
    const Index wanted = std::min(most, (Blocks::tasks + key_blocks - 1) / std::max<Index>(1, key_blocks));
    in_stretch = std::max<Index>(1, (query_blocks + wanted - 1) / std::max<Index>(1, wanted));
    stretches = std::max<Index>(1, (query_blocks + in_stretch - 1) / in_stretch);
  }
  Interval keys(Index block) const { return {block * Blocks::keys, std::min(m, (block + 1) * Blocks::keys)}; }
  Interval queries(Index block) const { return {block * rows, std::min(n, (block + 1) * rows)}; }
  Interval blocks(Index stretch) const {
    return {stretch * in_stretch, std::min(query_blocks, (stretch + 1) * in_stretch)};
  }
};

/// The tasks of a sweep: a block of keys and a stretch of queries each, those that see most first, and else by keys.
/// Those that see nothing are left out. What several add to they add to in the order of their numbers.
template <class P, class S, class Mods>
class PullTaskList {
 public:
  struct Task {
    Index keys, stretch;
    Index next;  // that adds to the same keys; count() if none
    bool first;  // of its keys
  };

  PullTaskList(Arena& arena, const PullCut<P>& cut, const Scores<S, Mods>& scores)
      : cut_(cut),
        scores_(&scores),
        tasks_(arena.take<Task>(cut.key_blocks * cut.stretches)),
        keys_(arena.take<Order>(cut.key_blocks)) {
    const ArenaScope scope(arena);
    const Index all = cut.key_blocks * cut.stretches;
    Index* sizes = arena.take<Index>(all);
    for (Index j = 0; j < cut.key_blocks; ++j) {
      Index* of_keys = sizes + j * cut.stretches;
      bool none = true;
      for (Index s = 0; s < cut.stretches; ++s) none = (of_keys[s] = size_of(j, s)) == 0 && none;
      for (Index s = none ? 1 : 0; s < cut.stretches; ++s)  // somebody has to write that there is nothing
        if (of_keys[s] == 0) of_keys[s] = -1;
    }
    for (Index size = cut.in_stretch; size >= 0; --size)
      for (Index t = 0; t < all; ++t)
        if (sizes[t] == size) tasks_[count_++] = {t / cut.stretches, t % cut.stretches, 0, false};
    for (Index j = 0; j < cut.key_blocks; ++j) keys_[j].next = count_;
    for (Index t = count_; t-- > 0;) tasks_[t].next = keys_[tasks_[t].keys].next.exchange(t);
    for (Index j = 0; j < cut.key_blocks; ++j) tasks_[keys_[j].next].first = true;
  }

  Index count() const { return count_; }
  const Task& operator[](Index task) const { return tasks_[task]; }
  /// What has been gathered for a block of keys is added in this order.
  Order& of_keys(Index block) const { return keys_[block]; }
  /// The next task after this one that sees some of these queries; count() if none.
  Index next_that_sees(Index queries, Index task) const {
    const Index stretch = queries / cut_.in_stretch;
    while (++task < count_ && (tasks_[task].stretch != stretch || !sees(queries, tasks_[task].keys))) {
    }
    return task;
  }

  /// Whether any query of the block sees any key of the block.
  bool sees(Index queries, Index block) const {
    if (!within(queries, block)) return false;
    const Interval rows = cut_.queries(queries), keys = cut_.keys(block);
    if constexpr (Mods::irregular || are_gathered<Mods>)
      return scores_->cover(rows.begin, rows.end, keys.begin, keys.end) != Cover::none;
    return true;
  }

 private:
  /// Whether the interval of any query of the block has any key of the block.
  bool within(Index queries, Index block) const {
    if constexpr (Mods::intervals) {
      const Interval rows = cut_.queries(queries), keys = cut_.keys(block);
      const Interval h = scores_->key_range(rows.begin, rows.end);
      return h.begin < keys.end && h.end > keys.begin && h.begin < h.end;
    }
    return true;
  }
  /// How many blocks of queries a task has, 0 if it sees nothing; without a mask, all have as many. Intervals alone
  /// count: a mask that says which blocks it keeps leaves tasks out, but the others stay in the same order, and so
  /// gradients have the same bits.
  Index size_of(Index keys, Index stretch) const {
    if constexpr (!have_masks<Mods>) return cut_.in_stretch;
    const Interval blocks = cut_.blocks(stretch);
    Index size = 0;
    bool any = false;
    for (Index i = blocks.begin; i < blocks.end; ++i) size += within(i, keys), any = any || sees(i, keys);
    return any ? size : 0;
  }

  const PullCut<P>& cut_;
  const Scores<S, Mods>* scores_;
  Task* tasks_;
  Order* keys_;
  Index count_ = 0;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
