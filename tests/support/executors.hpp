// limpid: executors a user might write, for tests.
// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <limpid/core/executor.hpp>
#include <utility>

namespace suite {

/// One thread that runs the tasks in reverse order and gives them to three workers in turn.
struct Backwards {
  int workers() const { return 3; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    for (limpid::Index t = count; t-- > 0;) task(t, static_cast<int>(t % 3));
  }
};

/// Runs tasks one after the other, and something else before the first of them.
struct Nosy {
  std::function<void()> other;
  int workers() const { return 2; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    if (const auto once = std::exchange(other, nullptr)) once();
    for (limpid::Index t = 0; t < count; ++t) task(t, static_cast<int>(t % 2));
  }
};

}  // namespace suite
