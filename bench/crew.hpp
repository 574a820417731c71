// limpid: a small fork-join crew of threads for the baselines and the peak loops of the bench
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace bench {

/// Keeps size - 1 threads; the caller is the last one. Of its own, so that baselines and machine figures do not depend
/// on limpid's executors. Waiting threads spin for a moment, then sleep, so that an idle crew does not take a core from
/// whatever is timed next.
class Crew {
 public:
  explicit Crew(int size) {
    for (int worker = 1; worker < size; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() {
    stop_ = true;
    ++epoch_;
    epoch_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls f(job, worker) for every job in [0, jobs); returns when all are done.
  template <class F>
  void run(int jobs, const F& f) {
    if (threads_.empty() || jobs == 1) {
      for (int job = 0; job < jobs; ++job) f(job, 0);
      return;
    }
    work_ = std::cref(f);
    jobs_ = jobs;
    next_ = 0;
    busy_ = static_cast<int>(threads_.size());
    ++epoch_;
    epoch_.notify_all();
    take(0);
    for (int left = busy_; left != 0; left = busy_) pause();
  }

 private:
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  void take(int worker) {
    for (int job = next_++; job < jobs_; job = next_++) work_(job, worker);
  }
  void serve(int worker) {
    for (int seen = 0; !stop_;) {
      for (int spin = 0; spin < 2000 && epoch_ == seen; ++spin) pause();
      epoch_.wait(seen);
      seen = epoch_;
      if (stop_) return;
      take(worker);
      --busy_;
    }
  }

  std::vector<std::thread> threads_;
  std::function<void(int, int)> work_;
  int jobs_ = 0;
  std::atomic<int> next_{0}, busy_{0}, epoch_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace bench
