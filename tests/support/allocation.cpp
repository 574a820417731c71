// limpid: operator new and delete in every form, counting.
// SPDX-License-Identifier: MIT
#include "allocation.hpp"

#include <Eigen/Core>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace {

std::atomic<std::size_t> calls{0}, eigen_calls{0}, live{0}, peak{0};

// A block begins with its size and with the address that malloc gave, right before what the caller gets.
struct Header {
  std::size_t size;
  void* block;
};

void* allocate(std::size_t size, std::size_t alignment) noexcept {
  if (alignment < alignof(std::max_align_t)) alignment = alignof(std::max_align_t);
  char* block = static_cast<char*>(std::malloc(size + alignment + sizeof(Header)));
  if (block == nullptr) return nullptr;
  auto address = reinterpret_cast<std::uintptr_t>(block) + sizeof(Header);
  address = (address + alignment - 1) / alignment * alignment;
  char* start = block + (address - reinterpret_cast<std::uintptr_t>(block));
  const Header header{size, block};
  std::memcpy(start - sizeof(Header), &header, sizeof(Header));
  ++calls;
  const std::size_t now = live += size;
  std::size_t before = peak.load();
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
  return start;
}

void release(void* start) noexcept {
  if (start == nullptr) return;
  Header header;
  std::memcpy(&header, static_cast<char*>(start) - sizeof(Header), sizeof(Header));
  live -= header.size;
  std::free(header.block);
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* start = allocate(size, alignment);
  if (start == nullptr) throw std::bad_alloc();
  return start;
}

constexpr std::size_t none = 1;

}  // namespace

void* operator new(std::size_t s) { return allocate_or_throw(s, none); }
void* operator new[](std::size_t s) { return allocate_or_throw(s, none); }
void* operator new(std::size_t s, const std::nothrow_t&) noexcept { return allocate(s, none); }
void* operator new[](std::size_t s, const std::nothrow_t&) noexcept { return allocate(s, none); }
void* operator new(std::size_t s, std::align_val_t a) { return allocate_or_throw(s, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t s, std::align_val_t a) { return allocate_or_throw(s, static_cast<std::size_t>(a)); }
void* operator new(std::size_t s, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(s, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t s, std::align_val_t a, const std::nothrow_t&) noexcept {
  return allocate(s, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { release(p); }

namespace suite {

void eigen_complains(const char* text) {
  if (std::strstr(text, "is_malloc_allowed") == nullptr) throw std::logic_error(std::string("Eigen: ") + text);
  ++eigen_calls;
}

HeapWatch::HeapWatch() : calls_(::calls), eigen_(::eigen_calls), live_(::live) {
  ::peak = live_;
  Eigen::internal::set_is_malloc_allowed(false);
}
HeapWatch::~HeapWatch() { Eigen::internal::set_is_malloc_allowed(true); }
std::size_t HeapWatch::calls() const { return ::calls - calls_; }
std::size_t HeapWatch::eigen_calls() const { return ::eigen_calls - eigen_; }
std::size_t HeapWatch::peak_bytes() const { return ::peak - live_; }

}  // namespace suite
