// limpid: how a call's work is shared. Heads are tasks, and loops inside a head hold tasks that every worker of the
// call may help with: any mix of batch, heads and length keeps any number of workers busy, on any executor, by one run
// of it.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include "executor.hpp"
#include "function_ref.hpp"
#include "workspace.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Waiting for what another thread is about to do: it keeps the core for some microseconds, then lends it to others.
class Backoff {
 public:
  void pause() {
    constexpr int few = 200;
#if defined(__unix__) || defined(__APPLE__)
    if (++times_ > few) return static_cast<void>(sched_yield());  // <thread> would cost every user's compiler
#endif
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

 private:
  int times_ = 0;
};

/// An order that parts of tasks keep, whoever runs them: the number of the one that comes next.
struct alignas(64) Order {
  std::atomic<Index> next{0};
};

/// Tasks 0 to count - 1, handed out in ascending order to whoever asks. No type of a task is in it: a sweep's loops
/// cost its user's compiler one function each.
class Loop {
 public:
  /// Runs tasks of a loop that is handed out for as long as there are some: what Context::run makes of a task.
  using Body = FunctionRef<void(Loop&, Arena&)>;

  Loop(Index count, Body body, const std::atomic<bool>* stopped = nullptr, TaskTrace* trace = nullptr)
      : count_(count), body_(body), stopped_(stopped), trace_(trace) {}

  void run(Arena& arena) { body_(*this, arena); }
  /// The next task, -1 if there is none. The one that its caller had before has ended.
  Index next() {
    const Index t = next_.fetch_add(1);
    if (trace_ && t > 0) trace_->end_task();
    if (t >= count_ || (stopped_ && *stopped_)) return -1;
    if (trace_) trace_->begin_task();
    return t;
  }
  bool is_over() const { return next_.load() >= count_; }

 private:
  const Index count_;
  const Body body_;
  const std::atomic<bool>* const stopped_;
  TaskTrace* const trace_;
  std::atomic<Index> next_{0};
};

/// The work of one call: a number of heads, each run as plain code by one worker, with loops inside.
///
/// The executor is asked for one run of so many loops as workers are wanted. Each takes heads from a counter; a head
/// publishes its loops, whose tasks are handed out in ascending order to their owner and to whoever has no head. An
/// owner whose loop is handed out waits for those who are in it, and helps others meanwhile, but never begins a head.
/// So a task may wait for tasks before it in its loop: they have been begun, and nothing interrupts a task. An executor
/// that runs its loops one after the other leaves all to the first.
///
/// The first exception of a task ends the call: no further task is begun, and when all have ended it comes out of run.
class TaskTree {
 public:
  TaskTree(Workspace& workspace, ExecutorRef executor, double flop) : workspace_(workspace), executor_(executor) {
    workers_ = static_cast<int>(std::min(double(executor.workers()), std::max(1.0, flop / executor.flop_a_worker())));
  }

  /// Whether tasks may run at the same time.
  bool spreads() const { return workers_ > 1; }

  /// A head's number, its worker's, the arena for its scratch.
  using Head = FunctionRef<void(Index, int, Arena&)>;

  /// head(h, worker, arena) for every h in [0, heads).
  void run(Index heads, Head head) {
    workspace_.prepare(executor_.workers(), shared() ? static_cast<int>(std::min<Index>(heads, workers_)) : 0);
    const ArenaScope scope(workspace_.common());
    if (shared()) return share(heads, head);
    if (trace()) trace()->begin_loop(heads, workers_);
    for (Index h = 0; h < heads; ++h) {
      const ArenaScope of_head(workspace_.common());
      if (trace()) trace()->begin_task();
      head(h, 0, workspace_.common());
      if (trace()) trace()->end_task();
    }
    if (trace()) trace()->end_loop();
  }

  /// Inside a head, not inside a task: the tasks of a loop, by every worker that has nothing else to do.
  void loop(int owner, Arena& arena, Index count, Loop::Body body) {
    if (shared() && count > 1) return publish(owner, count, body);
    if (trace()) trace()->begin_loop(count, workers_);
    Loop(count, body, nullptr, trace()).run(shared() ? *places_[owner].arena : arena);
    if (trace()) trace()->end_loop();
  }

  /// Inside a task: f() when the order has come to `turn`; then it is the turn of `after`.
  void in_order(Order& order, Index turn, Index after, FunctionRef<void()> f) {
    for (Backoff backoff; order.next.load(std::memory_order_acquire) != turn; backoff.pause())
      if (stopped_) throw Stopped();
    if (trace()) trace()->begin_ordered(&order);
    f();
    if (trace()) trace()->end_ordered(&order);
    order.next.store(after, std::memory_order_release);
  }

 private:
  /// Ends a head or a task where another one has thrown.
  struct Stopped {};

  /// Where a worker's loop is found. Whoever counts himself in finds it there until he counts himself out.
  struct alignas(64) Place {
    std::atomic<Loop*> open{nullptr};
    std::atomic<int> inside{0};
    Arena* arena = nullptr;  // for the tasks that this worker runs
  };

  TaskTrace* trace() const { return executor_.trace(); }
  bool shared() const { return spreads() && trace() == nullptr; }

  void share(Index heads, Head head) {
    places_ = workspace_.common().take<Place>(workers_);
    std::atomic<Index> next{0}, ended{0};
    std::atomic<int> with_heads{0};
    executor_.run(workers_, [&](Index l, int worker) {
      const InsideTask inside;
      const int me = static_cast<int>(l);
      places_[me].arena = &workspace_.worker(worker);
      Arena* own = nullptr;
      Backoff backoff;
      while (ended.load() < heads) {
        Index h = next.load(std::memory_order_relaxed);
        if (h < heads) h = next.fetch_add(1);
        if (h < heads) {
          if (!own) own = &workspace_.head(with_heads.fetch_add(1));
          guarded([&] {
            const ArenaScope of_head(*own);
            if (!stopped_) head(h, me, *own);
          });
          ended.fetch_add(1);
          backoff = {};
        } else if (help(me)) {
          backoff = {};
        } else {
          backoff.pause();
        }
      }
    });
    workspace_.level();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void publish(int owner, Index count, Loop::Body body) {
    Loop loop(count, body, &stopped_);
    Place& place = places_[owner];
    place.open.store(&loop);
    guarded([&] { loop.run(*place.arena); });
    place.open.store(nullptr);
    Backoff backoff;
    while (place.inside.load() != 0)
      if (help(owner))
        backoff = {};
      else
        backoff.pause();
    if (stopped_) throw Stopped();
  }

  /// Tasks of the first loop that has some; false if there is none. Workers begin to look apart from each other, so
  /// that all that are free do not help one head.
  bool help(int me) {
    for (int p = 0; p < workers_; ++p) {
      const int other = static_cast<int>((5LL * me + p) % workers_);
      Place& place = places_[other];
      if (other == me) continue;
      if (place.open.load(std::memory_order_relaxed) == nullptr) continue;
      place.inside.fetch_add(1);
      Loop* loop = place.open.load();
      const bool helps = loop != nullptr && !loop->is_over();
      if (helps) guarded([&] { loop->run(*places_[me].arena); });
      if (loop) place.open.compare_exchange_strong(loop, nullptr);  // nobody else looks in
      place.inside.fetch_sub(1);
      if (helps) return true;
    }
    return false;
  }

  /// f(), an exception kept for the caller of run.
  template <class F>
  void guarded(F&& f) {
    try {
      f();
    } catch (...) {  // the first: who is Stopped comes later
      if (!failed_.exchange(true)) error_ = std::current_exception();
      stopped_ = true;
    }
  }

  Workspace& workspace_;
  ExecutorRef executor_;
  int workers_ = 1;
  Place* places_ = nullptr;
  std::atomic<bool> failed_{false}, stopped_{false};
  std::exception_ptr error_ = nullptr;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
