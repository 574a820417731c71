// limpid: images and PNG files. Link libpng.
// SPDX-License-Identifier: MIT
#pragma once

#include <png.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

namespace detail {

/// rows * cols * channels where that is a size an image can have; what names who asks.
inline Index image_size(const char* what, Index rows, Index cols, Index channels) {
  constexpr Index most = Index(1) << 40;
  if (rows < 0 || cols < 0 || channels < 1 || (rows != 0 && cols > most / rows) || rows * cols > most / channels)
    limpid::detail::raise(std::string(what) + ": found " + std::to_string(rows) + " x " + std::to_string(cols) +
                          " pixels of " + std::to_string(channels) +
                          " channels, wanted no negative extent, a channel at least and 2^40 numbers at most");
  return rows * cols * channels;
}

}  // namespace detail

/// An image as attention sees it: one pixel a token. pixels is (rows * cols) x channels in [0, 1], row by row; 1
/// channel is grey, 3 are red, green, blue, both in sRGB's encoding as they stand in a file.
struct Image {
  Index rows = 0, cols = 0;
  Mat<float> pixels;

  Image() = default;
  /// Throws ShapeError for extents no image has.
  Image(Index rows_, Index cols_, Index channels, float value = 0)
      : rows(rows_),
        cols(cols_),
        pixels(Mat<float>::Constant(detail::image_size("Image", rows_, cols_, channels) / channels, channels, value)) {}

  Index channels() const { return pixels.cols(); }
  float& operator()(Index row, Index col, Index channel = 0) { return pixels(row * cols + col, channel); }
  float operator()(Index row, Index col, Index channel = 0) const { return pixels(row * cols + col, channel); }
};

/// What read_png makes of the colours of a file. grey of a file in colour is to_grey of what rgb reads.
enum class Channels { as_stored, grey, rgb };

namespace detail {

/// Throws FormatError unless the parts of an image agree and it is grey or in colour.
inline void check_image(const std::string& what, const Image& image) {
  const bool sized = image.rows >= 0 && image.cols >= 0 &&
                     (image.rows == 0 || image.cols <= std::numeric_limits<Index>::max() / image.rows);
  const bool empty = image.pixels.size() == 0;  // an image without pixels has no need of channels
  if (!sized || image.pixels.rows() != image.rows * image.cols ||
      (!empty && image.channels() != 1 && image.channels() != 3))
    fail(what, "found an image of " + std::to_string(image.rows) + " x " + std::to_string(image.cols) + " with " +
                   std::to_string(image.pixels.rows()) + " pixels of " + std::to_string(image.channels()) +
                   " channels, wanted rows * cols pixels of 1 or 3 channels");
}

}  // namespace detail

/// The image in one channel: the mean of the three, of the encoded values. Throws FormatError where the image is not
/// rows * cols pixels of 1 or 3 channels, as all do here that take one.
inline Image to_grey(const Image& image) {
  detail::check_image("to_grey", image);
  if (image.channels() == 1) return image;
  Image out(image.rows, image.cols, 1);
  if (image.channels() == 3) out.pixels = image.pixels.rowwise().mean();
  return out;
}

namespace detail {

/// libpng reports what is wrong by a jump over the frames of its caller. Those steps are functions of their own below,
/// without anything to destroy; the message waits here, and warnings are not printed.
struct PngState {
  png_structp png = nullptr;
  png_infop info = nullptr;
  char message[128] = "";

  static void error(png_structp png, png_const_charp text) {
    auto* state = static_cast<PngState*>(png_get_error_ptr(png));
    std::strncpy(state->message, text, sizeof(state->message) - 1);
    png_longjmp(png, 1);
  }
  static void warning(png_structp, png_const_charp) {}
};

struct PngReader : PngState {
  const std::byte* data = nullptr;
  std::size_t size = 0, at = 0;

  PngReader(const std::byte* data_, std::size_t size_) : data(data_), size(size_) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, static_cast<PngState*>(this), error, warning);
    info = png != nullptr ? png_create_info_struct(png) : nullptr;
  }
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  static void pull(png_structp png, png_bytep to, std::size_t count) {
    auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > reader->size - reader->at) png_error(png, "the file ends early");
    std::memcpy(to, reader->data + reader->at, count);
    reader->at += count;
  }

  /// What the file holds: everything before the pixels. Of the chunks that need not be there only tRNS is looked at,
  /// all others are skipped: libpng would unpack and keep every text, 8 MB of each 8 KB.
  bool header() {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_set_read_fn(png, this, pull);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the limit here is one of pixels
    png_read_info(png, info);
    return true;
  }
  /// From now on rows come as 8 or 16 bits (of this machine's order) a channel, a transparent colour made alpha, and of
  /// a palette its indices. passes: of interlacing.
  bool expand(int* passes) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_get_color_type(png, info) == PNG_COLOR_TYPE_PALETTE ? png_set_packing(png) : png_set_expand(png);
    png_set_swap(png);
    *passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    return true;
  }
  bool row(png_bytep to) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_read_row(png, to, nullptr);
    return true;
  }
  bool end() {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_read_end(png, nullptr);
    return true;
  }
};

/// A row of stored numbers as encoded values: v / 255 or v / 65535, over white where there is alpha.
template <class T>
void png_row(const png_byte* from, Index cols, Index channels, bool alpha, float* to) {
  constexpr float most = std::numeric_limits<T>::max();
  const auto number = [&](Index i) {
    T value;
    std::memcpy(&value, from + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    return static_cast<float>(value) / most;
  };
  const Index stored = channels + (alpha ? 1 : 0);
  for (Index col = 0; col < cols; ++col) {
    const float cover = alpha ? number(col * stored + channels) : 1.0f;
    for (Index c = 0; c < channels; ++c)
      to[col * channels + c] = std::min(cover * number(col * stored + c) + (1.0f - cover), 1.0f);
  }
}

}  // namespace detail

/// Reads a PNG of any kind from memory; name stands in the messages. A pixel is the number stored over the largest of
/// its depth: v / (2^bits - 1), at 1, 2, 4, 8 and 16 bits (all 16 are kept), through the palette where there is one.
/// Values stay encoded as they are stored: gAMA, cHRM, sRGB and iCCP chunks are not applied, whatever they say, and
/// nothing is done in linear light. grey from colour is to_grey, the mean of the three values; rgb from grey repeats
/// it. Alpha (a channel, or tRNS) puts the pixel on white, a v + 1 - a, before grey is made; bKGD is not looked at.
/// Interlaced files too; what follows the end of the PNG is not looked at. Rounding: at most 3 units of 2^-24. Throws
/// FormatError for a damaged file, for one of more than limit pixels (before room is made for them) and for one that
/// claims more pixels than its bytes can hold.
inline Image parse_png(const std::byte* data, std::size_t size, Channels channels = Channels::as_stored,
                       Index limit = Index(1) << 26, const std::string& name = "png") {
  detail::PngReader png(data, size);
  if (png.info == nullptr) detail::fail(name, "libpng has no memory");
  if (!png.header()) detail::fail(name, std::string("is not a PNG file; libpng says: ") + png.message);
  const auto rows = static_cast<Index>(png_get_image_height(png.png, png.info));
  const auto cols = static_cast<Index>(png_get_image_width(png.png, png.info));
  if (rows * cols > limit)  // both fit 31 bits
    detail::fail(name, "has " + std::to_string(rows) + " x " + std::to_string(cols) + " pixels, the limit is " +
                           std::to_string(limit) + " in all");
  const std::size_t least = static_cast<std::size_t>(rows) * png_get_rowbytes(png.png, png.info);
  if (least / 1032 / 2 > size)  // deflate packs 1032 bytes into one at best; interlaced rows may pad a bit
    detail::fail(name, "has " + std::to_string(rows) + " x " + std::to_string(cols) + " pixels, more than its " +
                           std::to_string(size) + " bytes can hold");
  const bool palette = png_get_color_type(png.png, png.info) == PNG_COLOR_TYPE_PALETTE;
  int passes = 0;
  if (!png.expand(&passes)) detail::fail(name, std::string("libpng says: ") + png.message);
  const int type = png_get_color_type(png.png, png.info), depth = png_get_bit_depth(png.png, png.info);
  const bool colour = (type & PNG_COLOR_MASK_COLOR) != 0, alpha = palette || (type & PNG_COLOR_MASK_ALPHA) != 0;
  std::vector<png_byte> looked_up;  // a row of the palette's colours with their alpha
  png_colorp colours = nullptr;
  png_bytep covers = nullptr;
  int colours_there = 0, covers_there = 0;
  if (palette) {
    looked_up.resize(static_cast<std::size_t>(cols) * 4);
    png_get_PLTE(png.png, png.info, &colours, &colours_there);
    png_get_tRNS(png.png, png.info, &covers, &covers_there, nullptr);
  }
  const std::size_t row_bytes = png_get_rowbytes(png.png, png.info);
  Image out(rows, cols, colour ? 3 : 1);
  // Interlaced rows come in seven passes and must all be kept until the last.
  std::vector<png_byte> stored(passes > 1 ? row_bytes * static_cast<std::size_t>(rows) : row_bytes);
  for (int pass = 0; pass < passes; ++pass)
    for (Index i = 0; i < rows; ++i) {
      png_byte* row = stored.data() + (passes > 1 ? static_cast<std::size_t>(i) * row_bytes : 0);
      if (!png.row(row)) detail::fail(name, std::string("libpng says: ") + png.message);
      if (pass + 1 < passes) continue;
      if (palette) {
        for (Index j = 0; j < cols; ++j) {
          const int index = row[j];
          if (index >= colours_there)
            detail::fail(name, "uses colour " + std::to_string(index) + " of its palette, which has " +
                                   std::to_string(colours_there));
          const png_color& of = colours[index];
          const png_byte entry[4] = {of.red, of.green, of.blue, index < covers_there ? covers[index] : png_byte(255)};
          std::memcpy(looked_up.data() + 4 * j, entry, 4);
        }
        row = looked_up.data();
      }
      float* to = out.pixels.data() + i * cols * out.channels();
      depth == 16 ? detail::png_row<std::uint16_t>(row, cols, out.channels(), alpha, to)
                  : detail::png_row<std::uint8_t>(row, cols, out.channels(), alpha, to);
    }
  if (!png.end()) detail::fail(name, std::string("libpng says: ") + png.message);
  if (channels == Channels::grey) return to_grey(out);
  if (channels == Channels::as_stored || colour) return out;
  Image repeated(rows, cols, 3);
  for (Index c = 0; c < 3; ++c) repeated.pixels.col(c) = out.pixels.col(0);
  return repeated;
}

/// Reads a PNG file as parse_png does. Throws FormatError naming the path.
inline Image read_png(const std::string& path, Channels channels = Channels::as_stored, Index limit = Index(1) << 26) {
  const std::vector<std::byte> bytes = detail::read_file(path);
  return parse_png(bytes.data(), bytes.size(), channels, limit, path);
}

namespace detail {

struct PngWriter : PngState {
  std::vector<std::byte> bytes;
  bool full = false;  // no memory was left; thrown once libpng's frames are gone

  PngWriter() {
    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, static_cast<PngState*>(this), error, warning);
    info = png != nullptr ? png_create_info_struct(png) : nullptr;
  }
  ~PngWriter() { png_destroy_write_struct(&png, &info); }
  PngWriter(const PngWriter&) = delete;
  PngWriter& operator=(const PngWriter&) = delete;

  static void push(png_structp png, png_bytep from, std::size_t count) {
    auto* writer = static_cast<PngWriter*>(png_get_io_ptr(png));
    try {
      append(writer->bytes, from, count);
    } catch (const std::bad_alloc&) {
      writer->full = true;
    }
    if (writer->full) png_error(png, "no memory");
  }
  static void flush(png_structp) {}

  bool header(png_uint_32 rows, png_uint_32 cols, int bits, int type) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_set_write_fn(png, this, push, flush);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // a million by itself
    png_set_IHDR(png, info, cols, rows, bits, type, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_set_sRGB(png, info, PNG_sRGB_INTENT_PERCEPTUAL);
    png_write_info(png, info);
    return true;
  }
  bool row(png_const_bytep from) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_write_row(png, from);
    return true;
  }
  bool end() {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_write_end(png, info);
    return true;
  }
};

}  // namespace detail

/// Writes a PNG of 8 or 16 bits, marked sRGB, beside the path and renames it, so that a failure leaves what was there.
/// What lies outside [0, 1] is clipped, and NaN is black. Throws FormatError naming the path, and ShapeError for
/// another number of bits.
inline void write_png(const std::string& path, const Image& image, int bits = 8) {
  detail::check_image(path, image);
  if (image.rows < 1 || image.cols < 1 || image.channels() < 1 || image.rows > 0x7fffffff || image.cols > 0x7fffffff)
    detail::fail(path, "found an image of " + std::to_string(image.rows) + " x " + std::to_string(image.cols) +
                           ", wanted from 1 to 2^31 - 1 rows and columns");
  if (bits != 8 && bits != 16) limpid::detail::raise("write_png: bits is " + std::to_string(bits) + ", wanted 8 or 16");
  detail::PngWriter png;
  if (png.info == nullptr) detail::fail(path, "libpng has no memory");
  bool written = png.header(static_cast<png_uint_32>(image.rows), static_cast<png_uint_32>(image.cols), bits,
                            image.channels() == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY);
  const double most = bits == 8 ? 255 : 65535;
  std::vector<png_byte> row;
  for (Index i = 0; i < image.rows && written; ++i) {
    row.clear();
    for (Index j = 0; j < image.cols * image.channels(); ++j) {
      const float value = image.pixels.data()[i * image.cols * image.channels() + j];
      const long number = value > 0 ? std::lround(std::min(static_cast<double>(value), 1.0) * most) : 0;
      if (bits == 16) row.push_back(static_cast<png_byte>(number >> 8));
      row.push_back(static_cast<png_byte>(number & 0xff));
    }
    written = png.row(row.data());
  }
  if (!written || !png.end()) detail::fail(path, std::string("could not be written; libpng says: ") + png.message);
  detail::write_file(path, png.bytes);
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
