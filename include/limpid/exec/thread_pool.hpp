// limpid: a thread pool as an executor. Tasks are handed out one by one; between calls threads sleep, after a moment.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
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

#include "../core/tasks.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// `threads` workers, the caller's thread among them (less than one counts as one). After a call they look for the next
/// one for 100 us, as long as no more threads do so, of all pools, than there are cores; then they sleep. A call wakes
/// no more of them than it has tasks for. The first exception of a task comes out of run when all others have ended,
/// and the pool serves on. A program that uses it links its platform's thread library (Threads::Threads in CMake).
///
/// run may be called from anywhere. Calls from several threads go on side by side: each caller is at work on its own
/// tasks at once, and the pool's threads help the first call that has tasks left. So a call ends whatever other calls
/// wait for, also one made by a thread that a task of this pool waits for. Inside a task of any pool of ours tasks run
/// one after the other on the calling thread, and so they do in the child of a fork, which has no threads but its own.
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
    if (crew_->threads.empty() || count <= 1 || !crew_->is_ours() || detail::InsideTask::now()) {
      for (Index t = 0; t < count; ++t) task(t, 0);
      return;
    }
    crew_->run(count, &task, [](const void* f, Index t, int worker) {
      (*static_cast<std::remove_reference_t<Task>*>(const_cast<void*>(f)))(t, worker);
    });
  }

 private:
  struct Crew;

  /// A call of run, which outlives what is done for it.
  struct Job {
    const void* object;
    void (*call)(const void*, Index, int);
    Index count;
    std::atomic<Index> next{0};
    std::atomic<int> helpers{0};  // threads other than the caller's
    std::exception_ptr error = nullptr;
    Job* after = nullptr;
  };

  /// The threads and what they share.
  struct Crew {
    std::vector<std::thread> threads;

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

    void run(Index count, const void* object, void (*call)(const void*, Index, int)) {
      Job job{object, call, count};
      Index asleep;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        Job** last = &jobs;
        while (*last) last = &(*last)->after;
        *last = &job;
        ++round;
        asleep = std::min(sleeping, count - 1 - looking.load());
      }
      if (asleep == static_cast<Index>(threads.size())) wake.notify_all(), asleep = 0;
      for (; asleep > 0; --asleep) wake.notify_one();  // those that look out come by themselves
      work(job, 0);
      {
        const std::lock_guard<std::mutex> lock(mutex);
        Job** place = &jobs;
        while (*place != &job) place = &(*place)->after;
        *place = job.after;  // from now on nobody begins to help
      }
      const auto finished = [&] { return job.helpers.load() == 0; };
      look_out(finished);
      std::unique_lock<std::mutex> lock(mutex);
      done.wait(lock, finished);
      if (job.error) std::rethrow_exception(std::exchange(job.error, nullptr));
    }

    void serve(int worker) {
      unsigned long seen = 0;
      const auto called = [&] { return stop.load() || round.load() != seen; };
      std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
      for (;;) {
        ++looking;
        look_out(called);
        lock.lock();
        --looking;
        ++sleeping;
        wake.wait(lock, called);
        --sleeping;
        if (stop) return;
        seen = round;
        while (Job* job = unfinished()) {
          ++job->helpers;
          lock.unlock();
          work(*job, worker);
          lock.lock();
          if (--job->helpers == 0) done.notify_all();
        }
        lock.unlock();
      }
    }

   private:
    /// Waking a thread takes as long as a small head's attention, so for about that long a thread looks before it
    /// sleeps: a moment on its core, then between others that have work. Not where all cores are looked from already.
    template <class Condition>
    static void look_out(const Condition& holds) {
      static const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
      static std::atomic<int> lookouts{0};
      const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
      if (lookouts.fetch_add(1) < cores)
        for (detail::Backoff backoff; !holds() && std::chrono::steady_clock::now() < end;) backoff.pause();
      --lookouts;
    }

    /// The first job that has tasks left.
    Job* unfinished() const {
      Job* job = jobs;
      while (job && job->next.load() >= job->count) job = job->after;
      return job;
    }

    void work(Job& job, int worker) {
      const detail::InsideTask inside;
      for (Index t = job.next.fetch_add(1); t < job.count; t = job.next.fetch_add(1)) {
        try {
          job.call(job.object, t, worker);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(mutex);
          if (!job.error) job.error = std::current_exception();
          job.next.store(job.count);  // no further tasks: their result would be thrown away
        }
      }
    }

    std::mutex mutex;
    std::condition_variable wake, done;
    Job* jobs = nullptr;  // in the order of the calls
    std::atomic<Index> looking{0};
    Index sleeping = 0;
    std::atomic<unsigned long> round{0};
    std::atomic<bool> stop{false};
#if defined(__unix__) || defined(__APPLE__)
    const pid_t process = getpid();
#endif
  };

  std::unique_ptr<Crew> crew_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
