// limpid: files as a whole. Read straight into where the bytes are wanted; written beside the old file and renamed.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../core/matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
/// Files: opt in, never in the umbrella header, and may use libraries the core does without.
namespace io {

/// Thrown for a file that cannot be opened or is not what it claims to be, a path that is empty or holds a NUL among
/// them: the text names the file, what was found and what was wanted. Whatever the bytes are, the readers end in a
/// result or in this; they never read out of bounds, and take no more memory than the file's own size accounts for.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

[[noreturn]] inline void fail(const std::string& file, const std::string& text) {
  std::string all = file + ": " + text;
  std::replace(all.begin(), all.end(), '\0', '?');  // what() would end at a NUL
  throw FormatError(all);
}

/// A path that names a file: the system would end it at a NUL and open another one.
inline const std::string& checked_path(const std::string& path) {
  if (path.empty()) fail("file", "the path is empty, wanted the name of a file");
  if (path.find('\0') != std::string::npos) fail(path, "the path has a NUL, wanted one without");
  return path;
}

/// Text from a file as it may stand in a message: short, printable.
inline std::string printable(std::string_view text, std::size_t most) {
  std::string out;
  for (char c : text.substr(0, most)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (text.size() > most ? "..." : "");
}
inline std::string in_quotes(std::string_view text, std::size_t most = 40) {
  return std::string("'") + printable(text, most) + "'";
}

/// Bytes to read at any place: memory of the caller's, or a file, which is read straight into its destination so that
/// nothing is held twice. A read past the end is refused whoever asks.
class Source {
 public:
  Source(const std::byte* data, std::size_t size, std::string name)
      : name_(std::move(name)), data_(data), size_(size) {}

  explicit Source(const std::string& path) : name_(checked_path(path)) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    if (std::filesystem::is_directory(status)) fail(path, "is a folder, wanted a file");  // opens, and claims any size
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
      fail(path, "is a pipe or a device, wanted a regular file");  // opening a pipe would wait for its writer
    in_.open(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = in_ ? static_cast<std::streamoff>(in_.tellg()) : -1;
    if (size < 0) fail(path, "cannot be opened for reading");
    size_ = static_cast<std::size_t>(size);
  }

  const std::string& name() const { return name_; }
  std::size_t size() const { return size_; }

  void read(std::size_t at, void* to, std::size_t count) {
    if (at > size_ || count > size_ - at)
      fail(name_, "ends at byte " + std::to_string(size_) + ", wanted " + std::to_string(count) + " bytes from byte " +
                      std::to_string(at));
    if (count == 0) return;
    if (data_ != nullptr) {
      std::memcpy(to, data_ + at, count);
      return;
    }
    in_.seekg(static_cast<std::streamoff>(at));
    in_.read(static_cast<char*>(to), static_cast<std::streamsize>(count));
    if (!in_) fail(name_, "could not be read to its end");
  }

  std::vector<std::byte> bytes(std::size_t at, std::size_t count) {
    if (at > size_ || count > size_ - at) read(at, nullptr, count);  // says why, before room is made
    std::vector<std::byte> out(count);
    read(at, out.data(), count);
    return out;
  }

 private:
  std::string name_;
  const std::byte* data_ = nullptr;
  std::ifstream in_;
  std::size_t size_ = 0;
};

inline std::vector<std::byte> read_file(const std::string& path) {
  Source source(path);
  return source.bytes(0, source.size());
}

/// A file being written. The bytes go into a new file in the target's folder, and done() renames that over the target:
/// who looks at the path finds the old file whole or the new one whole, and where anything fails the old one stays and
/// the new one is removed. The new file has the old one's permissions and belongs to who writes it; other hard links
/// keep the old bytes; a symbolic link stays and what it points to is replaced. What is no regular file (a device, a
/// pipe) cannot be replaced and is written to as it is.
class Replacement {
 public:
  explicit Replacement(const std::string& path) : name_(checked_path(path)), target_(path) {
    namespace fs = std::filesystem;
    std::error_code problem;
    for (int links = 0; fs::is_symlink(fs::symlink_status(target_, problem)); ++links) {
      if (fs::exists(target_, problem) && !fs::is_regular_file(target_, problem)) break;  // /dev/stdout and the like
      if (links == 40)
        fail(name_, "could not be written: cannot be opened for writing: its symbolic links go round in a circle");
      const fs::path to = fs::read_symlink(target_, problem);
      if (problem) fail(name_, "could not be written: cannot be opened for writing: " + problem.message());
      target_ = to.is_absolute() ? to : target_.parent_path() / to;
    }
    const fs::file_status status = fs::status(target_, problem);
    if (fs::is_directory(status)) fail(name_, "could not be written: cannot be opened for writing: it is a folder");
    if (fs::exists(status)) {
      // Opened, but left as it is: a file its owner protected from writing is not replaced either.
      file_ = std::fopen(target_.string().c_str(), fs::is_regular_file(status) ? "r+b" : "wb");
      if (file_ == nullptr)
        fail(name_, std::string("could not be written: cannot be opened for writing: ") + std::strerror(errno));
      if (!fs::is_regular_file(status)) return;
      std::fclose(std::exchange(file_, nullptr));
    }
    std::random_device number;
    for (int attempt = 0; file_ == nullptr && attempt < 100; ++attempt) {
      beside_ = target_.parent_path() / (".limpid-" + std::to_string(number()) + ".part");
      file_ = std::fopen(beside_.string().c_str(), "wbx");  // x: a file of that name is not opened
      if (file_ == nullptr && errno != EEXIST) break;
    }
    if (file_ == nullptr) {
      const std::string why = std::strerror(errno);
      const std::string folder = target_.has_parent_path() ? target_.parent_path().string() : ".";
      beside_.clear();
      fail(name_, "could not be written: cannot be opened for writing: no file can be made in the folder " + folder +
                      ": " + why);
    }
    if (fs::exists(status)) fs::permissions(beside_, status.permissions(), problem);  // not every file system has any
  }

  ~Replacement() {
    if (file_ != nullptr) std::fclose(file_);
    std::error_code ignored;
    if (!beside_.empty()) std::filesystem::remove(beside_, ignored);
  }
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  void write(const void* from, std::size_t count) {
    if (count != 0 && std::fwrite(from, 1, count, file_) != count) stop(std::strerror(errno));
  }
  void write(const std::vector<std::byte>& bytes) { write(bytes.data(), bytes.size()); }

  /// The new file takes the old one's place.
  void done() {
    const bool flushed = std::fflush(file_) == 0;
    const int why = errno;
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (!flushed || !closed) stop(std::strerror(flushed ? errno : why));
    if (beside_.empty()) return;
    std::error_code problem;
    std::filesystem::rename(beside_, target_, problem);
    if (problem) stop(problem.message());
    beside_.clear();
  }

 private:
  [[noreturn]] void stop(const std::string& why) const {
    fail(name_, "could not be written to its end: " + why + (beside_.empty() ? "" : "; what was there is untouched"));
  }

  std::string name_;
  std::filesystem::path target_, beside_;
  std::FILE* file_ = nullptr;
};

inline void write_file(const std::string& path, const std::vector<std::byte>& bytes) {
  Replacement file(path);
  file.write(bytes);
  file.done();
}

}  // namespace detail
}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
