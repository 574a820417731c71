// limpid: a file as memory. Mapped where the system can, so that only what is looked at is read.
// SPDX-License-Identifier: MIT
#pragma once

#include "file.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define LIMPID_IO_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {
namespace detail {

/// The bytes of a file, read-only, as long as this lives; a plain copy of them where mapping is not to be had. Whoever
/// shortens the file in place meanwhile takes the memory away (writers of this library rename and do not).
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    Source source(path);  // refuses what is no file
    size_ = source.size();
#if defined(LIMPID_IO_MMAP)
    if (const int file = size_ == 0 ? -1 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC); file >= 0) {
      struct stat found {};
      if (::fstat(file, &found) == 0 && static_cast<std::size_t>(found.st_size) == size_)
        if (void* at = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0); at != MAP_FAILED)
          mapped_ = static_cast<const std::byte*>(at);
      ::close(file);
    }
#endif
    if (mapped_ == nullptr) copy_ = source.bytes(0, size_);
  }
  ~Mapping() {
#if defined(LIMPID_IO_MMAP)
    if (mapped_ != nullptr) ::munmap(const_cast<std::byte*>(mapped_), size_);
#endif
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::byte* data() const { return mapped_ != nullptr ? mapped_ : copy_.data(); }
  std::size_t size() const { return size_; }

 private:
  const std::byte* mapped_ = nullptr;
  std::vector<std::byte> copy_;
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
