// limpid: OpenMP as an executor. Opt in: the program that includes this compiles and links with OpenMP.
// SPDX-License-Identifier: MIT
#pragma once

#ifndef _OPENMP
#error "limpid: exec/openmp.hpp needs OpenMP; compile with -fopenmp and link OpenMP::OpenMP_CXX"
#endif
#include <omp.h>

#include <exception>

#include "../core/executor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Tasks on an OpenMP team of `threads` (default: what OpenMP would take).
class OpenMP {
 public:
  explicit OpenMP(int threads = omp_get_max_threads()) : threads_(threads < 1 ? 1 : threads) {}
  int workers() const { return threads_; }
  template <class Task>
  void run(Index count, Task&& task) {
    std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (Index t = 0; t < count; ++t) {
      try {
        task(t, omp_get_thread_num());
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  int threads_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
