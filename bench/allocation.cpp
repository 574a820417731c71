// limpid: a counting heap for the bench programs; link it and every allocation of the process is seen
// SPDX-License-Identifier: MIT
#include "allocation.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace bench {
namespace {

std::atomic<std::uint64_t> bytes{0}, calls{0}, live{0}, most{0};

[[maybe_unused]] void note(std::size_t n) {
  bytes.fetch_add(n, std::memory_order_relaxed);
  calls.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

Allocated allocated() { return {bytes.load(), calls.load()}; }
std::uint64_t live_bytes() { return live.load(); }
std::uint64_t peak_live_bytes() { return most.load(); }
void reset_peak_live() { most = live.load(); }

}  // namespace bench

#if defined(__GLIBC__)

// glibc allows a program to bring its own malloc and keeps its own one reachable under these names.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
}

namespace bench {
namespace {

void* taken(void* p, std::size_t n) {
  if (!p) return p;
  note(n);
  const std::size_t usable = malloc_usable_size(p);
  const std::uint64_t held = live.fetch_add(usable, std::memory_order_relaxed) + usable;
  std::uint64_t seen = most.load(std::memory_order_relaxed);
  while (held > seen && !most.compare_exchange_weak(seen, held, std::memory_order_relaxed)) {
  }
  return p;
}

void given_back(void* p) {
  if (p) live.fetch_sub(malloc_usable_size(p), std::memory_order_relaxed);
}

}  // namespace
}  // namespace bench

extern "C" {
void* malloc(std::size_t n) noexcept { return bench::taken(__libc_malloc(n), n); }
void* calloc(std::size_t count, std::size_t size) noexcept {
  return bench::taken(__libc_calloc(count, size), count * size);
}
void* realloc(void* old, std::size_t n) noexcept {
  bench::given_back(old);
  void* p = __libc_realloc(old, n);
  if (!p && n && old) bench::live.fetch_add(malloc_usable_size(old), std::memory_order_relaxed);
  return bench::taken(p, n);
}
void* memalign(std::size_t alignment, std::size_t n) noexcept { return bench::taken(__libc_memalign(alignment, n), n); }
void* aligned_alloc(std::size_t alignment, std::size_t n) noexcept {
  return bench::taken(__libc_memalign(alignment, n), n);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t n) noexcept {
  void* p = bench::taken(__libc_memalign(alignment, n), n);
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}
void free(void* p) noexcept {
  bench::given_back(p);
  __libc_free(p);
}
}

#else

void* operator new(std::size_t n) {
  bench::note(n);
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

#endif
