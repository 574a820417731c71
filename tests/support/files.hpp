// limpid: files of the tests: a temporary path, what a reader says, bytes that end where memory does, memory taken.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limpid/io/tensor.hpp>
#include <random>
#include <string>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace suite {

/// A folder in the system's temporary folder, removed in the end with all that is in it.
struct TemporaryFolder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("limpid-folder-" + std::to_string(std::random_device{}()));
  TemporaryFolder() { std::filesystem::create_directories(path); }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  std::size_t entries() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) ++count;
    return count;
  }
};

/// What is thrown by `run`, or "read".
template <class Run>
std::string said(Run&& run) {
  try {
    run();
    return "read";
  } catch (const limpid::io::FormatError& problem) {
    return problem.what();
  } catch (const limpid::ShapeError& problem) {
    return problem.what();
  }
}
inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

inline std::vector<std::byte> bytes_of(const std::string& text) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}
inline std::vector<std::byte> first_of(const std::vector<std::byte>& bytes, std::size_t count) {
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count)};
}

/// The most memory of the machine that `run` has at one time, beyond what the program had before: libraries written in
/// C included. 0 where that cannot be told: not on Linux, or with a sanitizer, which has memory of its own.
template <class Run>
std::size_t peak_memory(Run&& run) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIMPID_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define LIMPID_TEST_SANITIZED
#endif
#endif
#if defined(__linux__) && !defined(LIMPID_TEST_SANITIZED)
  const auto now = [](const std::string& key) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
      if (word == key) {
        std::size_t kib = 0;
        status >> kib;
        return kib << 10;
      }
    return std::size_t(0);
  };
#if defined(__GLIBC__)
  malloc_trim(0);  // what was given back earlier would be taken again unseen
#endif
  const bool told = static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush);
  const std::size_t before = now("VmRSS:");
  run();
  return told ? now("VmHWM:") - before : 0;
#else
  run();
  return 0;
#endif
}

/// Memory whose last byte is followed by a page that may not be touched: a read past the end stops the program, with or
/// without a sanitizer. Where there are no such pages, a plain block of exactly that size.
class AtTheEdge {
 public:
  explicit AtTheEdge(std::size_t most) {
#if defined(__unix__) || defined(__APPLE__)
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    room_ = (most / page + 1) * page;
    void* got = mmap(nullptr, room_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (got == MAP_FAILED || mprotect(static_cast<std::byte*>(got) + room_, page, PROT_NONE) != 0) std::abort();
    first_ = static_cast<std::byte*>(got);
    mapped_ = room_ + page;
#else
    room_ = most;
    first_ = static_cast<std::byte*>(std::malloc(most + 1));
#endif
  }
  ~AtTheEdge() {
#if defined(__unix__) || defined(__APPLE__)
    munmap(first_, mapped_);
#else
    std::free(first_);
#endif
  }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;

  const std::byte* put(const std::vector<std::byte>& bytes) {
    std::byte* at = first_ + (room_ - bytes.size());
    if (!bytes.empty()) std::memcpy(at, bytes.data(), bytes.size());
    return at;
  }

 private:
  std::byte* first_ = nullptr;
  std::size_t room_ = 0, mapped_ = 0;
};

}  // namespace suite
