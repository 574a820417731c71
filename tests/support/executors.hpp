// limpid: executors a user might write, for tests.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/core/executor.hpp>

namespace suite {

/// One thread that runs the tasks in reverse order and gives them to three workers in turn.
struct Backwards {
  int workers() const { return 3; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    for (limpid::Index t = count; t-- > 0;) task(t, static_cast<int>(t % 3));
  }
};

}  // namespace suite
