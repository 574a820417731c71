// limpid: executors. How a number of independent tasks is run; the library cuts work by shape, never by thread count.
// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <type_traits>

#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Runs tasks one after the other on the caller's thread: the default.
struct Serial {
  int workers() const { return 1; }
  template <class Task>
  void run(Index count, Task&& task) {
    for (Index t = 0; t < count; ++t) task(t, 0);
  }
};

/// What an executor of your own needs: workers(), the most tasks that run at the same time, and run(count, task), which
/// calls task(t, worker) once for every t in [0, count), worker in [0, workers()) and never the same one twice at a
/// time. Any order will do: the bits of a result do not depend on it. A task that throws must surface in run.
template <class E>
concept Executor = requires(E& e, void (*task)(Index, int)) {
  { e.workers() } -> std::convertible_to<int>;
  e.run(Index(1), task);
};

/// A reference to any executor, without templates in the calls that pass it on. Default: serial.
class ExecutorRef {
 public:
  ExecutorRef() = default;
  template <class E>
  requires(!std::is_same_v<std::remove_cvref_t<E>, ExecutorRef> && Executor<E>)
      ExecutorRef(E& executor)  // NOLINT: implicit on purpose
      : object_(&executor), workers_(executor.workers()), run_([](void* object, Index count, Thunk thunk) {
          static_cast<E*>(object)->run(count, [thunk](Index t, int worker) { thunk.call(thunk.task, t, worker); });
        }) {}

  int workers() const { return workers_ < 1 ? 1 : workers_; }

  template <class Task>
  void run(Index count, Task&& task) const {
    if (run_ == nullptr || count <= 1) {
      for (Index t = 0; t < count; ++t) task(t, 0);
      return;
    }
    using Plain = std::remove_reference_t<Task>;
    run_(object_, count, {const_cast<std::remove_const_t<Plain>*>(&task), [](void* f, Index t, int worker) {
                            (*static_cast<Plain*>(f))(t, worker);
                          }});
  }

 private:
  struct Thunk {
    void* task;
    void (*call)(void*, Index, int);
  };
  void* object_ = nullptr;
  int workers_ = 1;
  void (*run_)(void*, Index, Thunk) = nullptr;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
