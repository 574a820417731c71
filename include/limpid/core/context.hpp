// limpid: the context of a sweep: scratch memory, and who runs its tasks.
// SPDX-License-Identifier: MIT
#pragma once

#include "executor.hpp"
#include "workspace.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Where a sweep takes scratch from and who runs its tasks. Either the sweep runs on one worker, or it spreads.
class Context {
 public:
  explicit Context(Arena& arena) : arena_(&arena) {}
  Context(Workspace& workspace, ExecutorRef executor)
      : arena_(&workspace.common()), workspace_(&workspace), executor_(executor) {}

  Arena& arena() const { return *arena_; }
  /// Whether tasks may run at the same time.
  bool spreads() const { return workspace_ != nullptr && executor_.workers() > 1; }
  /// task(t, arena) for every t in [0, count); what a task takes from the arena is given back when it ends.
  template <class Task>
  void run(Index count, Task&& task) const {
    if (!spreads()) {
      for (Index t = 0; t < count; ++t) {
        ArenaScope scope(*arena_);
        task(t, *arena_);
      }
      return;
    }
    executor_.run(count, [&](Index t, int worker) {
      Arena& own = workspace_->worker(worker);
      ArenaScope scope(own);
      task(t, own);
    });
    workspace_->level();
  }

 private:
  Arena* arena_;
  Workspace* workspace_ = nullptr;
  ExecutorRef executor_;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
