// limpid: IDX files (MNIST and its relatives), gzip or plain. Link zlib.
// SPDX-License-Identifier: MIT
#pragma once

#include <zlib.h>

#include <algorithm>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

namespace detail {

/// The bytes of a file one after another, unpacked where the file is gzip (RFC 1952), of any number of members.
class Unpacked {
 public:
  explicit Unpacked(const std::string& path) : source_(path) {
    refill();
    packed_ = stream_.avail_in >= 2 && piece_[0] == std::byte(0x1f) && piece_[1] == std::byte(0x8b);
    if (packed_ && inflateInit2(&stream_, gzip_window) != Z_OK) fail(path, "zlib has no memory");
  }
  ~Unpacked() {
    if (packed_) inflateEnd(&stream_);
  }
  Unpacked(const Unpacked&) = delete;
  Unpacked& operator=(const Unpacked&) = delete;

  /// The most bytes that the file can hold: deflate packs 258 of them in no less than 2 bits.
  std::size_t most() const { return packed_ ? saturated(source_.size(), 1032) : source_.size(); }

  /// Exactly so many bytes.
  void read(void* to, std::size_t count) {
    if (some(to, count) != count)
      fail(source_.name(), "ends early, after " + std::to_string(passed_) + (packed_ ? " unpacked" : "") + " bytes");
  }

  /// Refuses what follows the last byte that was wanted; at the end of a gzip member its check sum is looked at.
  void finish() {
    std::byte one;
    if (some(&one, 1) != 0) fail(source_.name(), "goes on after its last entry");
  }

 private:
  static constexpr int gzip_window = 15 + 16;

  static std::size_t saturated(std::size_t a, std::size_t b) {
    return a > std::numeric_limits<std::size_t>::max() / b ? std::numeric_limits<std::size_t>::max() : a * b;
  }

  void refill() {
    const std::size_t count = std::min(piece_.size(), source_.size() - at_);
    source_.read(at_, piece_.data(), count);
    at_ += count;
    stream_.next_in = reinterpret_cast<Bytef*>(piece_.data());
    stream_.avail_in = static_cast<uInt>(count);
  }

  /// Up to count bytes; fewer only at the end.
  std::size_t some(void* to, std::size_t count) {
    auto* out = static_cast<std::byte*>(to);
    std::size_t had = 0;
    while (had < count) {
      if (stream_.avail_in == 0) refill();
      const std::size_t room = std::min(count - had, std::size_t(1) << 30);
      if (!packed_) {
        const std::size_t now = std::min(room, static_cast<std::size_t>(stream_.avail_in));
        if (now == 0) break;
        std::memcpy(out + had, stream_.next_in, now);
        stream_.next_in += now;
        stream_.avail_in -= static_cast<uInt>(now);
        had += now;
        continue;
      }
      if (between_) {  // another member, or the end of the file
        if (stream_.avail_in == 0) break;
        inflateReset(&stream_);
        between_ = false;
      }
      stream_.next_out = reinterpret_cast<Bytef*>(out + had);
      stream_.avail_out = static_cast<uInt>(room);
      const bool nothing = stream_.avail_in == 0;
      const int code = inflate(&stream_, Z_NO_FLUSH);
      had += room - stream_.avail_out;
      if (code == Z_STREAM_END)
        between_ = true;
      else if (nothing && stream_.avail_out == room)
        fail(source_.name(), "ends within its gzip stream");
      else if (code != Z_OK && code != Z_BUF_ERROR)
        fail(source_.name(), std::string("its gzip stream is damaged: ") +
                                 (stream_.msg != nullptr ? stream_.msg : "zlib gives no reason"));
    }
    passed_ += had;
    return had;
  }

  Source source_;
  std::array<std::byte, std::size_t(1) << 16> piece_;
  std::size_t at_ = 0, passed_ = 0;
  z_stream stream_{};
  bool packed_ = false, between_ = false;
};

}  // namespace detail

/// Reads an IDX file of unsigned bytes, gzip or plain: [images, rows, cols] or [labels]. count >= 0 reads no more than
/// that many entries of the first axis and looks no further; a file read whole, as for any count below 0, must end with
/// its last entry. Throws FormatError naming the path, also where the shape needs more than limit bytes or more than
/// the file can hold.
inline Tensor read_idx(const std::string& path, Index count = -1, std::size_t limit = std::size_t(1) << 30) {
  detail::Unpacked file(path);
  unsigned char head[4];
  file.read(head, 4);
  if (head[0] != 0 || head[1] != 0) detail::fail(path, "does not start as an IDX file does");
  if (head[2] != 8) detail::fail(path, "the IDX type is " + std::to_string(head[2]) + ", wanted 8 (unsigned bytes)");
  Tensor tensor(DType::u8, {}, {});
  for (int axis = 0; axis < head[3]; ++axis) {
    unsigned char extent[4];
    file.read(extent, 4);
    tensor.shape.push_back((Index(extent[0]) << 24) | (Index(extent[1]) << 16) | (Index(extent[2]) << 8) |
                           Index(extent[3]));
  }
  const bool part = count >= 0 && !tensor.shape.empty() && count < tensor.shape[0];
  if (part) tensor.shape[0] = count;
  const std::size_t wanted = detail::bytes_of(path, tensor.dtype, tensor.shape);
  if (wanted > limit)
    detail::fail(path, "shape " + detail::shape_of(tensor.shape) + " needs " + std::to_string(wanted) +
                           " bytes, the limit is " + std::to_string(limit));
  if (wanted > file.most())
    detail::fail(path, "ends early: shape " + detail::shape_of(tensor.shape) + " needs " + std::to_string(wanted) +
                           " bytes, the file can hold at most " + std::to_string(file.most()));
  tensor.bytes.reserve(wanted);  // and grown within it as it is read: a packed file that lies costs no memory
  while (tensor.bytes.size() < wanted) {
    const std::size_t had = tensor.bytes.size(), more = std::min(std::size_t(1) << 20, wanted - had);
    tensor.bytes.resize(had + more);
    file.read(tensor.bytes.data() + had, more);
  }
  if (!part) file.finish();
  return tensor;
}

/// Writes a gzip IDX file of unsigned bytes beside the path and renames it, so that a failure leaves what was there.
/// Throws FormatError naming the path.
inline void write_idx(const std::string& path, const Tensor& tensor) {
  tensor.check(path);
  if (tensor.dtype != DType::u8)
    detail::fail(path, std::string("found ") + detail::info(tensor.dtype).safetensors + ", wanted U8");
  if (tensor.shape.size() > 255) detail::fail(path, "an IDX file has at most 255 axes");
  std::vector<std::byte> head = {std::byte(0), std::byte(0), std::byte(8), std::byte(tensor.shape.size())};
  for (Index extent : tensor.shape) {
    if (extent > Index(0xffffffff)) detail::fail(path, "an IDX axis has at most 2^32 - 1 entries");
    for (int shift = 24; shift >= 0; shift -= 8) head.push_back(std::byte((extent >> shift) & 0xff));
  }
  detail::Replacement out(path);
  struct Deflate {
    z_stream stream{};
    ~Deflate() { deflateEnd(&stream); }
  } packer;
  if (deflateInit2(&packer.stream, Z_BEST_COMPRESSION, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    detail::fail(path, "could not be written: zlib has no memory");
  std::vector<std::byte> piece(std::size_t(1) << 16);
  const auto pack = [&](const std::vector<std::byte>& bytes, bool last) {
    std::size_t at = 0;
    do {
      const std::size_t some = std::min(bytes.size() - at, std::size_t(1) << 30);
      packer.stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes.data() + at));
      packer.stream.avail_in = static_cast<uInt>(some);
      at += some;
      do {
        packer.stream.next_out = reinterpret_cast<Bytef*>(piece.data());
        packer.stream.avail_out = static_cast<uInt>(piece.size());
        deflate(&packer.stream, last && at == bytes.size() ? Z_FINISH : Z_NO_FLUSH);
        out.write(piece.data(), piece.size() - packer.stream.avail_out);
      } while (packer.stream.avail_out == 0);
    } while (at < bytes.size());
  };
  pack(head, false);
  pack(tensor.bytes, true);
  out.done();
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
