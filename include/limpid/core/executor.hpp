// limpid: executors. How a number of independent tasks is run; the library cuts work by shape, never by thread count.
// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <type_traits>

#include "function_ref.hpp"
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
/// time. Any order will do, also one after the other: the bits of a result do not depend on it. A task that throws must
/// surface in run. It may have inside(), whether the calling thread runs a task of it: a call made there runs serially;
/// and flop_a_worker(), the work from which on another worker is worth waking, 2e6 otherwise, some 20 to 50 us.
template <class E>
concept Executor = requires(E& e, void (*task)(Index, int)) {
  { e.workers() } -> std::convertible_to<int>;
  e.run(Index(1), task);
};

namespace detail {

/// Whether this thread is in a task of one of our pools, or of a call of ours: what is called there runs serially, as
/// all workers have been asked for already.
class InsideTask {
 public:
  InsideTask() { ++depth(); }
  ~InsideTask() { --depth(); }
  InsideTask(const InsideTask&) = delete;
  InsideTask& operator=(const InsideTask&) = delete;
  static bool now() { return depth() > 0; }

 private:
  static int& depth() {
    static thread_local int of_thread = 0;
    return of_thread;
  }
};

/// Told what a call's tasks are, by a call that then runs them one after the other: bench/scaling.cpp computes from it
/// how they would spread. Loops hold tasks; an ordered part of a task comes after the one before it in the same order.
class TaskTrace {
 public:
  virtual ~TaskTrace() = default;
  virtual void begin_loop(Index count, int workers) = 0;
  virtual void end_loop() = 0;
  virtual void begin_task() = 0;
  virtual void end_task() = 0;
  virtual void begin_ordered(const void* order) = 0;
  virtual void end_ordered(const void* order) = 0;
};

}  // namespace detail

/// A reference to any executor, without templates in the calls that pass it on. Default: serial.
class ExecutorRef {
 public:
  ExecutorRef() = default;
  template <class E>
  requires(!std::is_same_v<std::remove_cvref_t<E>, ExecutorRef> && Executor<E>)
      ExecutorRef(E& executor)  // NOLINT: implicit on purpose
      : object_(&executor),
        workers_(executor.workers()),
        run_([](void* object, Index count, Task task) { static_cast<E*>(object)->run(count, task); }) {
    if constexpr (requires { executor.trace(); }) trace_ = executor.trace();
    if constexpr (requires { executor.flop_a_worker(); }) flop_a_worker_ = double(executor.flop_a_worker());
    if constexpr (requires { executor.inside(); })
      if (executor.inside()) workers_ = 1;
  }

  /// How many workers a call may ask for here.
  int workers() const { return workers_ < 1 || (trace_ == nullptr && detail::InsideTask::now()) ? 1 : workers_; }
  double flop_a_worker() const { return flop_a_worker_; }
  detail::TaskTrace* trace() const { return trace_; }

  using Task = detail::FunctionRef<void(Index task, int worker)>;
  void run(Index count, Task task) const {
    if (run_ != nullptr && count > 1) return run_(object_, count, task);
    for (Index t = 0; t < count; ++t) task(t, 0);
  }

 private:
  void* object_ = nullptr;
  int workers_ = 1;
  void (*run_)(void*, Index, Task) = nullptr;
  double flop_a_worker_ = 2e6;
  detail::TaskTrace* trace_ = nullptr;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
