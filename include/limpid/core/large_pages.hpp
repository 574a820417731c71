// limpid: memory for large arrays that are read from end to end, on large pages where the system has them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../version.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

inline constexpr std::size_t large_page = std::size_t(1) << 21;

/// Asks for pages of 2 MiB for memory that nobody has written to yet; the system gives them or not. A core fetches ahead
/// within a page alone, and has to look each of them up: what is read from end to end, as weights are in decoding, comes
/// some 1.5 times as fast (Zen 4 in a virtual machine, one thread; `bench/run targets --only 'model decode'` says what it
/// reads here; transparent_hugepage at never is the other side).
inline void ask_for_large_pages(const void* data, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = 4096;
  const auto first = reinterpret_cast<std::uintptr_t>(data), from = first / page * page;
  constexpr std::size_t least = std::size_t(1) << 17;  // smaller arrays share their pages with others
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the page that the array begins in
  if (bytes >= least) static_cast<void>(::madvise(reinterpret_cast<void*>(from), first - from + bytes, MADV_HUGEPAGE));
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

/// Memory that begins with a large page, where it is as large as one.
template <class T>
struct LargePages {
  using value_type = T;
  static constexpr std::size_t page = large_page, line = 64;

  LargePages() = default;
  template <class U>
  LargePages(const LargePages<U>&) {}  // NOLINT: implicit, as allocators are

  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* data = ::operator new(bytes, alignment(bytes));
    if (bytes >= page) ask_for_large_pages(data, bytes);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t count) { ::operator delete(data, alignment(count * sizeof(T))); }
  friend bool operator==(const LargePages&, const LargePages&) { return true; }

 private:
  static std::align_val_t alignment(std::size_t bytes) { return std::align_val_t(bytes >= page ? page : line); }
};

template <class T>
using LargeVector = std::vector<T, LargePages<T>>;

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
