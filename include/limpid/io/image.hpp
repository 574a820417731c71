// limpid: images, and PNG files through libpng's simplified interface. Link libpng.
// SPDX-License-Identifier: MIT
#pragma once

#include <png.h>

#include <algorithm>
#include <cmath>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// An image as attention sees it: one pixel a token. pixels is (rows * cols) x channels in [0, 1], row by row; 1
/// channel is grey, 3 are red, green, blue, both in sRGB's encoding as they stand in a file.
struct Image {
  Index rows = 0, cols = 0;
  Mat<float> pixels;

  Image() = default;
  Image(Index rows_, Index cols_, Index channels, float value = 0)
      : rows(rows_), cols(cols_), pixels(Mat<float>::Constant(rows_ * cols_, channels, value)) {}

  Index channels() const { return pixels.cols(); }
  float& operator()(Index row, Index col, Index channel = 0) { return pixels(row * cols + col, channel); }
  float operator()(Index row, Index col, Index channel = 0) const { return pixels(row * cols + col, channel); }
};

/// What read_png makes of the colours of a file.
enum class Channels { as_stored, grey, rgb };

namespace detail {

struct PngImage {  // libpng's control block, given back whatever happens
  png_image image{};
  PngImage() { image.version = PNG_IMAGE_VERSION; }
  ~PngImage() { png_image_free(&image); }
  PngImage(const PngImage&) = delete;
  PngImage& operator=(const PngImage&) = delete;
};

inline Image finish_png(PngImage& png, const std::string& name, Channels wanted, Index limit) {
  const auto rows = static_cast<Index>(png.image.height), cols = static_cast<Index>(png.image.width);
  if (rows * cols > limit)  // both fit 31 bits
    fail(name, "has " + std::to_string(rows) + " x " + std::to_string(cols) + " pixels, the limit is " +
                   std::to_string(limit) + " in all");
  const bool colour =
      wanted == Channels::rgb || (wanted == Channels::as_stored && (png.image.format & PNG_FORMAT_FLAG_COLOR) != 0);
  png.image.format = colour ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  std::vector<png_byte> bytes(PNG_IMAGE_SIZE(png.image));
  png_color white{255, 255, 255};
  if (png_image_finish_read(&png.image, &white, bytes.data(), 0, nullptr) == 0)
    fail(name, std::string("libpng says: ") + png.image.message);
  Image out(rows, cols, colour ? 3 : 1);
  for (std::size_t i = 0; i < bytes.size(); ++i) out.pixels.data()[i] = static_cast<float>(bytes[i]) / 255.0f;
  return out;
}

}  // namespace detail

/// Reads a PNG of any kind from memory; name stands in the messages. 16 bits become 8, transparent pixels lie on white.
/// Throws FormatError for a damaged file and for one of more than limit pixels (before room is made for them).
inline Image parse_png(const std::byte* data, std::size_t size, Channels channels = Channels::as_stored,
                       Index limit = Index(1) << 26, const std::string& name = "png") {
  detail::PngImage png;
  if (png_image_begin_read_from_memory(&png.image, data, size) == 0)
    detail::fail(name, std::string("is not a PNG file; libpng says: ") + png.image.message);
  return detail::finish_png(png, name, channels, limit);
}

/// Reads a PNG file. Throws FormatError naming the path.
inline Image read_png(const std::string& path, Channels channels = Channels::as_stored, Index limit = Index(1) << 26) {
  const std::vector<std::byte> bytes = detail::read_file(path);
  return parse_png(bytes.data(), bytes.size(), channels, limit, path);
}

/// Writes an 8-bit PNG; what lies outside [0, 1] is clipped, and NaN is black. Throws FormatError naming the path.
inline void write_png(const std::string& path, const Image& image) {
  if (image.rows < 1 || image.cols < 1 || image.pixels.rows() != image.rows * image.cols ||
      (image.channels() != 1 && image.channels() != 3))
    detail::fail(path, "found an image of " + std::to_string(image.rows) + " x " + std::to_string(image.cols) +
                           " with " + std::to_string(image.pixels.rows()) + " pixels of " +
                           std::to_string(image.channels()) +
                           " channels, wanted rows * cols pixels, at least one, of 1 or 3 channels");
  std::vector<png_byte> bytes(static_cast<std::size_t>(image.pixels.size()));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const float value = image.pixels.data()[i];
    bytes[i] = static_cast<png_byte>(value > 0 ? std::lround(std::min(value, 1.0f) * 255.0f) : 0);
  }
  detail::PngImage png;
  png.image.width = static_cast<png_uint_32>(image.cols);
  png.image.height = static_cast<png_uint_32>(image.rows);
  png.image.format = image.channels() == 3 ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  if (png_image_write_to_file(&png.image, path.c_str(), 0, bytes.data(), 0, nullptr) == 0)
    detail::fail(path, std::string("could not be written; libpng says: ") + png.image.message);
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
