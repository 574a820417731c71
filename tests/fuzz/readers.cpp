// limpid: fuzzing the readers of files: whatever the bytes are, a result that makes sense or FormatError.
// SPDX-License-Identifier: MIT
//
// The first byte chooses the reader (an index of shards is one too) and whether what a random file would never get right
// (magic numbers, lengths, check sums) is put right, so that the parsers behind are reached too.
#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limpid/io/checkpoint.hpp>
#include <limpid/io/idx.hpp>
#include <limpid/io/image.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/safetensors.hpp>

namespace {

using namespace limpid::io;
using Bytes = std::vector<std::byte>;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}
const std::byte* bytes_of(const char* text) { return reinterpret_cast<const std::byte*>(text); }

void check(const Tensor& tensor) {
  std::size_t entries = 1;
  for (limpid::Index extent : tensor.shape) {
    require(extent >= 0, "no extent is negative");
    entries *= static_cast<std::size_t>(extent);
  }
  require(tensor.bytes.size() == entries * limpid::io::detail::info(tensor.dtype).bytes, "the bytes are the shape's");
  const bool whole = tensor.dtype == DType::i64 || tensor.dtype == DType::i32;
  require((whole ? tensor.values<std::int64_t>().size() : tensor.values<double>().size()) == entries,
          "every entry can be read");
}

/// A file opened for its tensors one by one: each is read, or refuses itself.
void checkpoint(const Bytes& file) {
  const Checkpoint read(file.data(), file.size());
  for (const std::string& name : read.names()) {
    std::size_t entries = 1;
    for (limpid::Index extent : read.shape(name)) entries *= static_cast<std::size_t>(extent);
    const auto look = [&](auto&& get) {
      try {
        require(static_cast<std::size_t>(get()) == entries, "every entry can be read");
      } catch (const FormatError& problem) {
        require(problem.what()[0] != '\0', "an error says something");
      }
    };
    const auto count = [](const Weights<float>& weights) {
      const limpid::View<float> view = weights;
      volatile float seen = 0;
      for (limpid::Index i = 0; i < view.rows; ++i)
        for (limpid::Index j = 0; j < view.cols; ++j) seen = view(i, j);
      static_cast<void>(seen);
      return view.rows * view.cols;
    };
    look([&] { return count(read.row<float>(name)); });
    look([&] { return count(read.matrix<float>(name)); });
    look([&] { return read.filter<double>(name).view().map().size(); });
    look([&] { return read.indices(name).size(); });
  }
  require(read.unused().size() <= read.names().size(), "no more are unused than there are");
}

void index(const Bytes& file) {
  const std::string name = "index";
  const auto* text = reinterpret_cast<const char*>(file.data());
  limpid::io::detail::ShardIndex index(name);
  nlohmann::json::sax_parse(text, text + file.size(), &index);
  for (const auto& entry : index.shard_of) require(entry.second < index.shards.size(), "a shard of the list");
  for (const std::string& shard : index.shards) require(shard.find('/') == std::string::npos, "a file of the folder");
}

void safetensors(Bytes file, bool repaired) {
  if (repaired) {  // the length of the header: up to the last closing brace
    std::uint64_t length = file.size();
    while (length > 0 && file[length - 1] != std::byte('}')) --length;
    const auto* first = reinterpret_cast<const std::byte*>(&length);
    file.insert(file.begin(), first, first + 8);
  }
  checkpoint(file);
  const Safetensors read = parse_safetensors(file.data(), file.size());
  for (const auto& entry : read.tensors) check(entry.second);
  const Bytes again = serialize_safetensors(read);
  const Safetensors twice = parse_safetensors(again.data(), again.size());
  require(twice.metadata == read.metadata && twice.tensors.size() == read.tensors.size(), "written and read again");
  for (const auto& [name, tensor] : read.tensors)
    require(twice.at(name).bytes == tensor.bytes && twice.at(name).shape == tensor.shape, "the tensors are the same");
}

void npy(Bytes file, bool repaired) {
  if (repaired) {
    std::uint16_t length = 0;
    while (length < file.size() && length < 0xffff && (length == 0 || file[length - 1u] != std::byte('}'))) ++length;
    Bytes head(bytes_of("\x93NUMPY\x01"), bytes_of("\x93NUMPY\x01") + 8);
    head.insert(head.end(), reinterpret_cast<const std::byte*>(&length),
                reinterpret_cast<const std::byte*>(&length) + 2);
    file.insert(file.begin(), head.begin(), head.end());
  }
  const Tensor read = parse_npy(file.data(), file.size());
  check(read);
  const Bytes again = serialize_npy(read);
  require(parse_npy(again.data(), again.size()).bytes == read.bytes, "written and read again");
}

struct TemporaryFile {
  char path[32] = "/tmp/limpid_fuzz_XXXXXX";
  TemporaryFile() {
    const int descriptor = mkstemp(path);
    require(descriptor >= 0, "there is room for a temporary file");
    close(descriptor);
  }
  ~TemporaryFile() { std::remove(path); }
};

void idx(const Bytes& file, limpid::Index count) {
  static const TemporaryFile temporary;
  std::FILE* out = std::fopen(temporary.path, "wb");
  require(out != nullptr && std::fwrite(file.data(), 1, file.size(), out) == file.size(), "the file can be written");
  std::fclose(out);
  check(read_idx(temporary.path, count, std::size_t(1) << 24));
}

void png(Bytes file, bool repaired) {
  if (repaired) {
    const auto* signature = bytes_of("\x89PNG\r\n\x1a\n");
    file.insert(file.begin(), signature, signature + 8);
    for (std::size_t at = 8; at + 12 <= file.size();) {  // every chunk: length, name, data, check sum
      const auto byte = [&](std::size_t i) { return std::to_integer<std::uint32_t>(file[at + i]); };
      const std::size_t length = (byte(0) << 24 | byte(1) << 16 | byte(2) << 8 | byte(3)) % (file.size() - at - 11);
      for (std::size_t i = 0; i < 4; ++i) file[at + i] = std::byte(length >> (24 - 8 * i) & 0xff);
      const auto sum = crc32(0, reinterpret_cast<const Bytef*>(file.data() + at + 4), static_cast<uInt>(length + 4));
      for (std::size_t i = 0; i < 4; ++i) file[at + 8 + length + i] = std::byte(sum >> (24 - 8 * i) & 0xff);
      at += length + 12;
    }
  }
  for (const Channels channels : {Channels::as_stored, Channels::grey, Channels::rgb}) {
    const Image read = parse_png(file.data(), file.size(), channels, limpid::Index(1) << 16);
    require(read.rows > 0 && read.cols > 0 && read.rows * read.cols <= limpid::Index(1) << 16, "a size within limits");
    require(read.pixels.rows() == read.rows * read.cols, "every pixel");
    for (limpid::Index i = 0; i < read.pixels.size(); ++i)
      require(read.pixels.data()[i] >= 0 && read.pixels.data()[i] <= 1, "pixels are from 0 to 1");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto* first = reinterpret_cast<const std::byte*>(data) + 1;
  const Bytes file(first, first + size - 1);
  const bool repaired = (data[0] & 4) != 0;
  try {
    switch (data[0] & 3) {
      case 0:
        (data[0] & 8) != 0 ? index(file) : safetensors(file, repaired);
        break;
      case 1:
        npy(file, repaired);
        break;
      case 2:
        idx(file, static_cast<limpid::Index>(data[0] >> 3) - 1);
        break;
      default:
        png(file, repaired);
    }
  } catch (const FormatError& problem) {
    require(problem.what()[0] != '\0', "an error says something");
  }
  return 0;
}
