// limpid: a thread pool as an executor. Tasks are handed out one by one; between calls threads sleep, after a moment.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "../core/executor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// `threads` workers, the caller's thread among them. After a call they look for the next one for 100 us, yielding,
/// then sleep. One call at a time; the first exception of a task comes out of run. A program that uses it links its
/// platform's thread library (Threads::Threads in CMake).
class ThreadPool {
 public:
  explicit ThreadPool(int threads = static_cast<int>(std::thread::hardware_concurrency())) {
    for (int w = 1; w < threads; ++w) threads_.emplace_back([this, w] { serve(w); });
  }
  ~ThreadPool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int workers() const { return static_cast<int>(threads_.size()) + 1; }

  template <class Task>
  void run(Index count, Task&& task) {
    if (threads_.empty() || count <= 1) {
      for (Index t = 0; t < count; ++t) task(t, 0);
      return;
    }
    const std::lock_guard<std::mutex> one_call(calls_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      object_ = &task;
      call_ = [](const void* f, Index t, int worker) {
        (*static_cast<std::remove_reference_t<Task>*>(const_cast<void*>(f)))(t, worker);
      };
      next_.store(0, std::memory_order_relaxed);
      count_ = count;
      busy_.store(workers() - 1);
      error_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    work(0);
    const auto finished = [this] { return busy_.load() == 0; };
    wait_a_moment(finished);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, finished);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void serve(int worker) {
    unsigned long seen = 0;
    const auto called = [&] { return stop_.load() || round_.load() != seen; };
    for (;;) {
      wait_a_moment(called);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, called);
        if (stop_) return;
        seen = round_;
      }
      work(worker);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  /// Waking a thread takes as long as a small head's attention, so for about that long a thread looks before it sleeps;
  /// others that have work may have the core meanwhile.
  template <class Condition>
  static void wait_a_moment(const Condition& holds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }

  void work(int worker) {
    for (Index t = next_.fetch_add(1); t < count_; t = next_.fetch_add(1)) {
      try {
        call_(object_, t, worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_.store(count_);  // no further tasks: their result would be thrown away
      }
    }
  }

  std::vector<std::thread> threads_;
  std::mutex calls_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<Index> next_{0};
  Index count_ = 0;
  const void* object_ = nullptr;
  void (*call_)(const void*, Index, int) = nullptr;
  std::atomic<int> busy_{0};  // threads other than the caller's
  std::atomic<unsigned long> round_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
