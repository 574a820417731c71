// limpid: writers: the old file whole or the new one whole, and nothing beside it.
// SPDX-License-Identifier: MIT
#include <limpid/io/idx.hpp>
#include <limpid/io/image.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/safetensors.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

#if defined(__unix__)
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>

using namespace limpid::io;
using limpid::Index;
using suite::bytes_of;
using suite::contains;
using suite::said;

namespace {

/// Every writer, with a file of some size: noise, which no packing makes small.
struct Writer {
  std::string name;
  std::function<void(const std::string&)> write;
};
std::vector<Writer> writers() {
  std::mt19937 bits(7);
  std::vector<std::uint8_t> noise(200 * 200);
  for (auto& value : noise) value = static_cast<std::uint8_t>(bits());
  const Tensor tensor = Tensor::from(noise, {200, 200});
  Image image(200, 200, 1);
  for (std::size_t i = 0; i < noise.size(); ++i) image.pixels.data()[i] = static_cast<float>(noise[i]) / 255.0f;
  Safetensors file;
  file.tensors["noise"] = tensor;
  return {{"safetensors", [=](const std::string& path) { write_safetensors(path, file); }},
          {"npy", [=](const std::string& path) { write_npy(path, tensor); }},
          {"idx", [=](const std::string& path) { write_idx(path, tensor); }},
          {"png", [=](const std::string& path) { write_png(path, image); }}};
}

/// No file may grow beyond so many bytes while this lives: what a full disk does, halfway through a file.
struct SizeLimit {
  rlimit before{};
  void (*handler)(int);
  explicit SizeLimit(rlim_t bytes) : handler(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before);
    rlimit now = before;
    now.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~SizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
  }
};

const auto old = bytes_of("the old file");
std::vector<std::byte> read(const std::string& path) { return limpid::io::detail::read_file(path); }
void put(const std::string& path) { std::ofstream(path, std::ios::binary) << "the old file"; }

}  // namespace

TEST_CASE("readers and writers: a path with a NUL or without a letter names no file", "[io]") {
  const suite::TemporaryFolder folder;
  for (const Writer& writer : writers()) {
    INFO(writer.name);
    const std::string cut = folder / writer.name, path = cut + '\0' + ".end";
    const std::string refused = cut + "?.end: the path has a NUL, wanted one without";
    const auto read_it = [&](const std::string& from) {
      if (writer.name == "safetensors") read_safetensors(from);
      if (writer.name == "npy") read_npy(from);
      if (writer.name == "idx") read_idx(from);
      if (writer.name == "png") read_png(from);
    };
    CHECK(said([&] { writer.write(path); }) == refused);
    CHECK(folder.entries() == 0);
    writer.write(cut);
    CHECK(said([&] { read_it(cut); }) == "read");
    CHECK(said([&] { read_it(path); }) == refused);
    std::filesystem::remove(cut);
    const std::string empty = "file: the path is empty, wanted the name of a file";
    CHECK(said([&] { writer.write(""); }) == empty);
    CHECK(said([&] { read_it(""); }) == empty);
  }
  CHECK(said([&] { write_png(std::string("a\0b", 3), Image(2, 2, 2)); }).find("2 channels") != std::string::npos);
}

TEST_CASE("writers: a write that fails halfway leaves the old file and nothing beside it", "[io]") {
  for (const Writer& writer : writers()) {
    INFO(writer.name);
    const suite::TemporaryFolder folder;
    const std::string path = folder / "file";
    for (const bool there : {false, true}) {
      if (there) put(path);
      for (const rlim_t bytes : {0, 1, 100, 4096, 20000}) {
        INFO(bytes);
        std::string why;
        {
          const SizeLimit limit(bytes);
          why = said([&] { writer.write(path); });
        }
        CHECK(contains(why, path + ": could not be written to its end: "));
        CHECK(folder.entries() == (there ? 1u : 0u));
        if (there) CHECK(read(path) == old);
      }
    }
    writer.write(path);
    CHECK(read(path).size() > 20000);
    CHECK(folder.entries() == 1);
  }
}

TEST_CASE("writers: folders that take no file, devices, links, permissions", "[io]") {
  for (const Writer& writer : writers()) {
    INFO(writer.name);
    const suite::TemporaryFolder folder;
    const auto why = [&](const std::string& path) { return said([&] { writer.write(path); }); };
    CHECK(contains(why(folder / "no/file"), "no file can be made in the folder " + (folder / "no")));
    CHECK(contains(why(folder.path.string()), "it is a folder"));
    if (std::filesystem::exists("/dev/full")) {
      CHECK(contains(why("/dev/full"), "/dev/full: could not be written to its end"));
      CHECK(why("/dev/null") == "read");
      CHECK(std::filesystem::is_character_file("/dev/full"));
      CHECK(std::filesystem::is_character_file("/dev/null"));
    }

    const std::string shut = folder / "shut", kept = folder / "shut/file";
    std::filesystem::create_directory(shut);
    put(kept);
    ::chmod(shut.c_str(), 0500);
    if (::access(shut.c_str(), W_OK) != 0) {  // it is writable to root all the same
      CHECK(contains(why(kept), "no file can be made in the folder"));
      CHECK(read(kept) == old);
    }
    ::chmod(shut.c_str(), 0700);
    ::chmod(kept.c_str(), 0400);
    if (::access(kept.c_str(), W_OK) != 0) {
      CHECK(contains(why(kept), "cannot be opened for writing"));
      CHECK(read(kept) == old);
    }
    std::filesystem::remove_all(shut);

    const std::string path = folder / "file", link = folder / "link", around = folder / "around";
    put(path);
    ::chmod(path.c_str(), 0640);
    std::filesystem::create_symlink("file", link);
    writer.write(link);
    CHECK(std::filesystem::is_symlink(link));
    CHECK(!std::filesystem::is_symlink(path));
    CHECK(read(path).size() > 20000);
    CHECK(read(link) == read(path));
    CHECK(std::filesystem::status(path).permissions() == std::filesystem::perms(0640));
    std::filesystem::remove(path);
    writer.write(link);  // a link to what is not there yet
    CHECK(std::filesystem::is_symlink(link));
    CHECK(read(path).size() > 20000);
    std::filesystem::create_symlink("around", around);
    CHECK(contains(why(around), "round in a circle"));
    CHECK(folder.entries() == 3);

    const auto here = std::filesystem::current_path();  // a bare name has no folder
    std::filesystem::current_path(folder.path);
    writer.write("bare");
    std::filesystem::current_path(here);
    CHECK(read(folder / "bare").size() > 20000);
    CHECK(folder.entries() == 4);
  }
}

TEST_CASE("readers: a file takes its own size of memory", "[io]") {
  const suite::TemporaryFolder folder;
  constexpr std::size_t size = std::size_t(64) << 20;
  Safetensors file;
  file.tensors["a"] = Tensor(DType::u8, {Index(size)}, std::vector<std::byte>(size));
  write_safetensors(folder / "a", file);
  write_npy(folder / "b", file.at("a"));
  std::string fortran = "{'descr': '|u1', 'fortran_order': True, 'shape': (8192, 8192), }";
  fortran = std::string("\x93NUMPY\1\0", 8) + static_cast<char>(fortran.size()) + '\0' + fortran;
  {
    std::ofstream out(folder / "c", std::ios::binary);
    out << fortran;
    out.seekp(static_cast<std::streamoff>(fortran.size() + size - 1));
    out.put('\0');
  }
  write_idx(folder / "d", file.at("a"));
  file.tensors.clear();
  constexpr std::size_t most = size + (std::size_t(6) << 20);
  CHECK(suite::peak_memory([&] { read_safetensors(folder / "a"); }) < most);
  CHECK(suite::peak_memory([&] { read_npy(folder / "b"); }) < most);
  CHECK(suite::peak_memory([&] { read_npy(folder / "c"); }) < most);
  CHECK(suite::peak_memory([&] { read_idx(folder / "d"); }) < most);
}

#endif
