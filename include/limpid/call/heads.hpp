// limpid: how the heads of a call are spread over workers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "layout.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// task(t, context) for count heads (or groups of them), which cost some flop together. Where they may not run at the
/// same time one comes after the other, its loops shared.
inline void for_heads(Index count, bool may_spread, double flop, Workspace& workspace, ExecutorRef executor,
                      FunctionRef<void(Index, const Context&)> task) {
  TaskTree tree(workspace, executor, flop);
  const auto head = [&](Index t, int worker, Arena& arena) {
    const ArenaScope scope(arena);
    task(t, Context(tree, worker, arena));
  };
  if (may_spread) return tree.run(count, head);
  tree.run(1, [&](Index, int worker, Arena& arena) {
    for (Index t = 0; t < count; ++t) head(t, worker, arena);
  });
}

/// About what all heads of a forward pass cost: enough to say how many workers are worth their while.
inline double flop_of(FieldList fields, const Dims& d) {
  double width = 0;  // of a head's queries, keys and values
  fields([&](const FieldShape& v) {
    if (v.role == Role::query) width += double(v.cols) / double(d.heads);
    if (v.role == Role::key) width += double(v.cols) / double(d.kv_heads);
  });
  return 1.5 * width * double(d.n) * double(d.m) * double(d.batch * d.heads);
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
