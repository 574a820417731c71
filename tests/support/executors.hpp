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
  double flop_a_worker() const { return 1; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    for (limpid::Index t = count; t-- > 0;) task(t, static_cast<int>(t % 3));
  }
};

/// Another executor, of whom as many workers are asked for as it has, however small the work.
template <class E>
struct Eager {
  E& executor;
  int workers() const { return executor.workers(); }
  double flop_a_worker() const { return 1; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    executor.run(count, task);
  }
};
template <class E>
Eager<E> eager(E& executor) {
  return {executor};
}

/// Runs tasks one after the other, and something else before the first of them.
struct Nosy {
  std::function<void()> other;
  int workers() const { return 2; }
  double flop_a_worker() const { return 1; }
  template <class Task>
  void run(limpid::Index count, Task&& task) {
    if (const auto once = std::exchange(other, nullptr)) once();
    for (limpid::Index t = 0; t < count; ++t) task(t, static_cast<int>(t % 2));
  }
};

}  // namespace suite
