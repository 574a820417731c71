// limpid: OpenMP as an executor. Opt in: the program that includes this compiles and links with OpenMP.
// SPDX-License-Identifier: MIT
#pragma once

#ifndef _OPENMP
#error "limpid: exec/openmp.hpp needs OpenMP; compile with -fopenmp and link OpenMP::OpenMP_CXX"
#endif
#include <omp.h>

#include <exception>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "../core/executor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Tasks on an OpenMP team of `threads` (default: what OpenMP would take). Inside a task of any pool of ours, and in
/// the child of a fork, where OpenMP's runtime waits for threads that its parent had, they run one after the other on
/// the calling thread: on a team made before the fork, and on any once a team has run before it. (A program's own
/// parallel regions before a fork are not known here.)
class OpenMP {
 public:
  explicit OpenMP(int threads = omp_get_max_threads()) : threads_(threads < 1 ? 1 : threads) {}
  int workers() const { return threads_; }
  template <class Task>
  void run(Index count, Task&& task) {
    if (detail::InsideTask::now() || process_ != this_process() || process_ != process_of_teams()) {
      for (Index t = 0; t < count; ++t) task(t, 0);
      return;
    }
    std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (Index t = 0; t < count; ++t) {
      try {
        const detail::InsideTask inside;
        task(t, omp_get_thread_num());
      } catch (...) {
#pragma omp critical(limpid_openmp_error)
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
  }

 private:
#if defined(__unix__) || defined(__APPLE__)
  static long this_process() { return static_cast<long>(getpid()); }
#else
  static long this_process() { return 0; }
#endif
  /// The one in which a team ran first.
  static long process_of_teams() {
    static const long first = this_process();
    return first;
  }
  int threads_;
  long process_ = this_process();
};

}  // namespace LIMPID_ABI
}  // namespace limpid
