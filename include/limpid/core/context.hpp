// limpid: the context of a sweep: scratch memory, and who runs its tasks.
// SPDX-License-Identifier: MIT
#pragma once

#include "tasks.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Where the keys of a batch item are: key j in row j % rows of page number[j / rows], pages so far apart.
struct KeyPages {
  const Index* number;
  Index rows, k_stride, v_stride;
};

/// Where a sweep takes scratch from and who runs its tasks: one worker, the workers of a call from inside one of its
/// heads, or those of an executor, asked anew for every loop.
class Context {
 public:
  explicit Context(Arena& arena) : arena_(&arena) {}
  Context(Workspace& workspace, ExecutorRef executor)
      : arena_(&workspace.common()), workspace_(&workspace), executor_(executor) {}
  Context(TaskTree& tree, int worker, Arena& arena) : arena_(&arena), tree_(&tree), worker_(worker) {}

  Arena& arena() const { return *arena_; }
  /// Of a call whose keys lie in pages: where.
  const KeyPages* pages() const { return pages_; }
  Context with(const KeyPages& pages) const {
    Context c = *this;
    c.pages_ = &pages;
    return c;
  }
  /// Whether tasks may run at the same time.
  bool spreads() const { return tree_ ? tree_->spreads() : workspace_ && executor_.workers() > 1; }

  /// task(t, arena) for every t in [0, count), not from inside a task; what a task takes from the arena is given back
  /// when it ends.
  void run(Index count, FunctionRef<void(Index, Arena&)> task) const {
    run_loop(count, [&](Loop& loop, Arena& arena) {
      for (Index t = loop.next(); t >= 0; t = loop.next()) {
        const ArenaScope scope(arena);
        task(t, arena);
      }
    });
  }
  /// task(state, t), where state is made by make(arena) once for every worker that takes part.
  template <class Make, class Task>
  void run(Index count, Make&& make, Task&& task) const {
    run_loop(count, [&](Loop& loop, Arena& arena) {
      Index t = loop.next();
      if (t < 0) return;
      const ArenaScope scope(arena);
      auto&& state = make(arena);
      for (; t >= 0; t = loop.next()) task(state, t);
    });
  }
  void run_loop(Index count, Loop::Body body) const {
    if (count <= 0) return;
    if (tree_) return tree_->loop(worker_, *arena_, count, body);
    if (count > 1 && workspace_ && (spreads() || executor_.trace()))
      return as_head(double(count) * executor_.flop_a_worker(),
                     [&](const Context& inner) { inner.run_loop(count, body); });
    Loop(count, body).run(*arena_);
  }
  /// f(context), its loops shared by the workers of one call.
  void as_head(double flop, FunctionRef<void(const Context&)> f) const {
    if (!workspace_) return f(*this);
    TaskTree tree(*workspace_, executor_, flop);
    tree.run(1, [&](Index, int worker, Arena& arena) { f(Context(tree, worker, arena)); });
  }

  /// Inside a task, f() when the order has come to `turn`; then it is the turn of `after`. See TaskTree::in_order.
  void in_order(Order& order, Index turn, Index after, FunctionRef<void()> f) const {
    if (tree_) return tree_->in_order(order, turn, after, f);
    f();
    order.next.store(after, std::memory_order_relaxed);
  }

 private:
  Arena* arena_;
  Workspace* workspace_ = nullptr;
  ExecutorRef executor_;
  TaskTree* tree_ = nullptr;
  int worker_ = 0;
  const KeyPages* pages_ = nullptr;
};

/// f(first row, last row) over blocks of rows, spread as the context says. 1024 rows are work for sixteen; chosen by
/// bench/run scaling (gated, twicing), not swept.
inline void for_rows(const Context& context, Index rows, FunctionRef<void(Index, Index)> f, Index step = 64) {
  context.run((rows + step - 1) / step, [&](Index t, Arena&) { f(t * step, std::min(rows, (t + 1) * step)); });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
