// limpid: how the heads of a call are spread over workers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// How a call spreads: over heads, each on one worker, or over the tasks inside one head after the other. The bits are
/// the same either way; many heads are better spread whole.
inline bool spread_over_heads(Index heads, int workers) {
  return workers > 1 && (heads >= 2 * workers || heads % workers == 0);
}

/// task(t, context) for count heads (or groups of them).
template <class Task>
void for_heads(Index count, bool may_spread, Workspace& workspace, ExecutorRef executor, Task&& task) {
  const int workers = executor.workers();
  workspace.prepare(workers);
  if (may_spread && spread_over_heads(count, workers)) {
    executor.run(count, [&](Index t, int worker) {
      ArenaScope scope(workspace.worker(worker));
      task(t, Context(workspace.worker(worker)));
    });
    workspace.level();
    return;
  }
  const Context context(workspace, executor);
  for (Index t = 0; t < count; ++t) {
    ArenaScope scope(workspace.common());
    task(t, context);
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
