// limpid: counts what the program asks the heap for: operator new in every form, and Eigen's own allocation.
// SPDX-License-Identifier: MIT
//
// To be included before anything of Eigen in every file of a program that links support/allocation.cpp.
#pragma once

#if defined(EIGEN_CORE_H) || defined(EIGEN_CORE_MODULE_H)
#error "include support/allocation.hpp before Eigen"
#endif

#include <cstddef>

namespace suite {

/// What eigen_assert calls: an allocation while none was allowed is counted, anything else throws std::logic_error.
void eigen_complains(const char* text);

}  // namespace suite

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(x) ((x) ? static_cast<void>(0) : ::suite::eigen_complains(#x))

namespace suite {

/// Counts from its construction on, all threads together.
class HeapWatch {
 public:
  HeapWatch();
  ~HeapWatch();
  HeapWatch(const HeapWatch&) = delete;
  HeapWatch& operator=(const HeapWatch&) = delete;
  std::size_t calls() const;        ///< of operator new
  std::size_t eigen_calls() const;  ///< by matrices of Eigen; their bytes are in no figure here
  std::size_t peak_bytes() const;   ///< the most that operator new held at one time, beyond what it held at the start

 private:
  std::size_t calls_, eigen_, live_;
};

}  // namespace suite
