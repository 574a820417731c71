// limpid: IDX files (MNIST and its relatives), gzip or plain. Link zlib.
// SPDX-License-Identifier: MIT
#pragma once

#include <zlib.h>

#include <algorithm>
#include <memory>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// Reads an IDX file of unsigned bytes, gzip or plain: [images, rows, cols] or [labels]. count >= 0 reads only that
/// many entries of the first axis. Throws FormatError naming the path, also where the file holds more than limit bytes.
inline Tensor read_idx(const std::string& path, Index count = -1, std::size_t limit = std::size_t(1) << 30) {
  struct Close {
    void operator()(gzFile_s* file) const { gzclose(file); }
  };
  const std::unique_ptr<gzFile_s, Close> file(gzopen(path.c_str(), "rb"));
  if (!file) detail::fail(path, "cannot be opened for reading");
  const auto read = [&](void* to, std::size_t bytes) {
    if (gzread(file.get(), to, static_cast<unsigned>(bytes)) != static_cast<int>(bytes))
      detail::fail(path, "ends early, or its gzip stream is damaged");
  };
  unsigned char head[4];
  read(head, 4);
  if (head[0] != 0 || head[1] != 0) detail::fail(path, "does not start as an IDX file does");
  if (head[2] != 8) detail::fail(path, "the IDX type is " + std::to_string(head[2]) + ", wanted 8 (unsigned bytes)");
  Tensor tensor(DType::u8, {}, {});
  for (int axis = 0; axis < head[3]; ++axis) {
    unsigned char extent[4];
    read(extent, 4);
    tensor.shape.push_back((Index(extent[0]) << 24) | (Index(extent[1]) << 16) | (Index(extent[2]) << 8) |
                           Index(extent[3]));
  }
  if (count >= 0 && !tensor.shape.empty()) tensor.shape[0] = std::min(tensor.shape[0], count);
  const std::size_t wanted = detail::bytes_of(path, tensor.dtype, tensor.shape);
  if (wanted > limit)
    detail::fail(path, "shape " + detail::shape_of(tensor.shape) + " needs " + std::to_string(wanted) +
                           " bytes, the limit is " + std::to_string(limit));
  const std::size_t piece = std::size_t(1) << 20;  // grown as it is read: a header that lies costs no memory
  while (tensor.bytes.size() < wanted) {
    const std::size_t had = tensor.bytes.size(), more = std::min(piece, wanted - had);
    tensor.bytes.resize(had + more);
    read(tensor.bytes.data() + had, more);
  }
  return tensor;
}

/// Writes a gzip IDX file of unsigned bytes. Throws FormatError naming the path.
inline void write_idx(const std::string& path, const Tensor& tensor) {
  tensor.check(path);
  if (tensor.dtype != DType::u8)
    detail::fail(path, std::string("found ") + detail::info(tensor.dtype).safetensors + ", wanted U8");
  std::vector<std::byte> bytes = {std::byte(0), std::byte(0), std::byte(8), std::byte(tensor.shape.size())};
  if (tensor.shape.size() > 255) detail::fail(path, "an IDX file has at most 255 axes");
  for (Index extent : tensor.shape) {
    if (extent > Index(0xffffffff)) detail::fail(path, "an IDX axis has at most 2^32 - 1 entries");
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(std::byte((extent >> shift) & 0xff));
  }
  detail::append(bytes, tensor.bytes.data(), tensor.bytes.size());
  gzFile file = gzopen(path.c_str(), "wb9");
  if (file == nullptr) detail::fail(path, "cannot be opened for writing");
  bool written = true;
  for (std::size_t at = 0; at < bytes.size() && written;) {
    const std::size_t some = std::min(bytes.size() - at, std::size_t(1) << 20);
    written = gzwrite(file, bytes.data() + at, static_cast<unsigned>(some)) == static_cast<int>(some);
    at += some;
  }
  if (gzclose(file) != Z_OK || !written) detail::fail(path, "could not be written to its end");
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
