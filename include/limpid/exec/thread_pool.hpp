// limpid: a thread pool as an executor. Tasks are handed out one by one; between calls threads sleep, after a moment.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "../core/executor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// `threads` workers, the caller's thread among them (less than one counts as one). After a call they look for the next
/// one for 100 us, yielding, then sleep. The first exception of a task comes out of run, and the pool serves on. A
/// program that uses it links its platform's thread library (Threads::Threads in CMake).
///
/// run may be called from anywhere: calls from several threads wait for each other; inside a task of this pool, or of
/// another one while this one is busy, tasks run one after the other on the calling thread, and so they do in the child
/// of a fork, which has no threads but its own. No call waits for itself.
class ThreadPool {
 public:
  explicit ThreadPool(int threads = static_cast<int>(std::thread::hardware_concurrency()))
      : crew_(std::make_unique<Crew>()) {
    try {
      for (int w = 1; w < threads; ++w) crew_->threads.emplace_back([crew = crew_.get(), w] { crew->serve(w); });
    } catch (...) {  // no more threads to be had: those that run must end first
      crew_->end();
      throw;
    }
  }
  ~ThreadPool() {
    if (crew_->is_ours())
      crew_->end();
    else
      static_cast<void>(crew_.release());  // in the child of a fork there is nobody to wait for, and nothing to undo
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int workers() const { return static_cast<int>(crew_->threads.size()) + 1; }

  template <class Task>
  void run(Index count, Task&& task) {
    if (crew_->threads.empty() || count <= 1 || !crew_->is_ours() || Inside::holds(crew_.get())) {
      for (Index t = 0; t < count; ++t) task(t, 0);
      return;
    }
    std::unique_lock<std::mutex> one_call(crew_->calls, std::defer_lock);
    if (Inside::any()) {
      if (!one_call.try_lock()) {
        for (Index t = 0; t < count; ++t) task(t, 0);
        return;
      }
    } else {
      one_call.lock();
    }
    crew_->run(count, &task, [](const void* f, Index t, int worker) {
      (*static_cast<std::remove_reference_t<Task>*>(const_cast<void*>(f)))(t, worker);
    });
  }

 private:
  struct Crew;

  /// The pools whose tasks this thread is in, the innermost first.
  class Inside {
   public:
    explicit Inside(const Crew* crew) : crew_(crew), outer_(innermost()) { innermost() = this; }
    ~Inside() { innermost() = outer_; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    static bool any() { return innermost() != nullptr; }
    static bool holds(const Crew* crew) {
      for (const Inside* i = innermost(); i; i = i->outer_)
        if (i->crew_ == crew) return true;
      return false;
    }

   private:
    static const Inside*& innermost() {
      static thread_local const Inside* top = nullptr;
      return top;
    }
    const Crew* crew_;
    const Inside* outer_;
  };

  /// The threads and what they share.
  struct Crew {
    std::vector<std::thread> threads;
    std::mutex calls;

    bool is_ours() const {
#if defined(__unix__) || defined(__APPLE__)
      return process == getpid();
#else
      return true;
#endif
    }
    void end() {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        stop = true;
      }
      wake.notify_all();
      for (std::thread& t : threads) t.join();
    }

    void run(Index tasks, const void* f, void (*caller)(const void*, Index, int)) {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        object = f, call = caller;
        next.store(0, std::memory_order_relaxed);
        count = tasks;
        busy.store(static_cast<int>(threads.size()));
        error = nullptr;
        ++round;
      }
      wake.notify_all();
      work(0);
      const auto finished = [this] { return busy.load() == 0; };
      wait_a_moment(finished);
      std::unique_lock<std::mutex> lock(mutex);
      done.wait(lock, finished);
      if (error) std::rethrow_exception(std::exchange(error, nullptr));
    }

    void serve(int worker) {
      unsigned long seen = 0;
      const auto called = [&] { return stop.load() || round.load() != seen; };
      for (;;) {
        wait_a_moment(called);
        {
          std::unique_lock<std::mutex> lock(mutex);
          wake.wait(lock, called);
          if (stop) return;
          seen = round;
        }
        work(worker);
        const std::lock_guard<std::mutex> lock(mutex);
        if (--busy == 0) done.notify_one();
      }
    }

   private:
    /// Waking a thread takes as long as a small head's attention, so for about that long a thread looks before it
    /// sleeps; others that have work may have the core meanwhile.
    template <class Condition>
    static void wait_a_moment(const Condition& holds) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
      while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    }

    void work(int worker) {
      const Inside inside(this);
      for (Index t = next.fetch_add(1); t < count; t = next.fetch_add(1)) {
        try {
          call(object, t, worker);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(mutex);
          if (!error) error = std::current_exception();
          next.store(count);  // no further tasks: their result would be thrown away
        }
      }
    }

    std::mutex mutex;
    std::condition_variable wake, done;
    std::atomic<Index> next{0};
    Index count = 0;
    const void* object = nullptr;
    void (*call)(const void*, Index, int) = nullptr;
    std::atomic<int> busy{0};  // threads other than the caller's
    std::atomic<unsigned long> round{0};
    std::atomic<bool> stop{false};
    std::exception_ptr error;
#if defined(__unix__) || defined(__APPLE__)
    const pid_t process = getpid();
#endif
  };

  std::unique_ptr<Crew> crew_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
