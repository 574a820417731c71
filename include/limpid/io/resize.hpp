// limpid: images made ready for a model: resized as Pillow does it, cut, normalised.
// SPDX-License-Identifier: MIT
#pragma once

#include "image.hpp"
#include "resampling.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// How resize weighs pixels: by a triangle of two pixels' width, or by the cubic of Keys (1981) with a = -1/2. Both are
/// stretched where the image shrinks, so that every pixel counts (antialiasing).
enum class Resampling { bilinear, bicubic };

namespace detail {

inline double resampling_weight(Resampling kind, double x) {
  if (kind == Resampling::bicubic) return cubic_weight(x, -0.5);
  return std::abs(x) < 1 ? 1 - std::abs(x) : 0;
}

/// Of every pixel along an axis of the result: the pixels it is made of, and their weights in units of 2^-22.
struct ResampledAxis {
  static constexpr int bits = 22;  // 8 for the value and 2 to spare for what is below 0 or above 255 make 32
  struct Pixel {
    Index first, count;
    std::size_t weights;
  };
  std::vector<Pixel> pixels;
  std::vector<std::int32_t> weights;

  ResampledAxis(Resampling kind, Index from, Index to) {
    const double scale = static_cast<double>(from) / static_cast<double>(to), stretched = std::max(scale, 1.0);
    const double support = (kind == Resampling::bilinear ? 1.0 : 2.0) * stretched;
    std::vector<double> exact;
    for (Index i = 0; i < to; ++i) {
      const auto [first, last, sum] = resampling_window(
          i, scale, support, from, exact, [&](double x) { return resampling_weight(kind, x * (1 / stretched)); });
      pixels.push_back({first, last - first, weights.size()});
      for (const double weight : exact) {
        const double share = (sum == 0 ? weight : weight / sum) * (1 << bits);
        weights.push_back(static_cast<std::int32_t>(share < 0 ? share - 0.5 : share + 0.5));
      }
    }
  }
};

/// One pass: lines of `from` pixels become lines of as many as the axis has. A pixel is `step` numbers from the next,
/// and `each` numbers stand side by side in it that are all treated alike.
inline std::vector<std::uint8_t> resampled(const ResampledAxis& axis, const std::vector<std::uint8_t>& in, Index lines,
                                           Index from, Index each) {
  const auto to = static_cast<Index>(axis.pixels.size());
  std::vector<std::uint8_t> out(static_cast<std::size_t>(lines * to * each));
  std::vector<std::int32_t> sums(static_cast<std::size_t>(each));
  std::uint8_t* put = out.data();
  for (Index line = 0; line < lines; ++line)
    for (const auto& [first, count, weights] : axis.pixels) {
      std::fill(sums.begin(), sums.end(), 1 << (ResampledAxis::bits - 1));
      for (Index j = 0; j < count; ++j) {
        const std::int32_t weight = axis.weights[weights + static_cast<std::size_t>(j)];
        const std::uint8_t* get = in.data() + (line * from + first + j) * each;
        for (Index c = 0; c < each; ++c) sums[static_cast<std::size_t>(c)] += weight * get[c];
      }
      for (const std::int32_t sum : sums)
        *put++ = static_cast<std::uint8_t>(std::clamp(sum >> ResampledAxis::bits, 0, 255));
    }
  return out;
}

}  // namespace detail

/// The image in rows x cols, as Pillow's Image.resize does it with BILINEAR or BICUBIC in 8 bits, exact to the grey
/// level (tests/io/resize_test.cpp): along rows first, then along columns, each pass rounded to 8 bits; weights rounded
/// to 2^-22; an axis that keeps its length is left alone. So do all versions of Pillow up to 12; from 13 on it takes
/// the columns first where the height shrinks much more than the width, which moves some greys by one or a few. Pixels
/// are rounded to v / 255 before, clipped as write_png does, and are such numbers after. Throws FormatError for an
/// image without pixels or of other channels than 1 or 3, and ShapeError for extents below 1 or out of all size.
inline Image resize(const Image& image, Index rows, Index cols, Resampling kind = Resampling::bicubic) {
  detail::check_image("resize", image);
  if (image.pixels.size() == 0) detail::fail("resize", "found an image without pixels, wanted one at least");
  if (rows < 1 || cols < 1)
    limpid::detail::raise("resize: found " + limpid::detail::shape_text(rows, cols) + ", wanted at least 1 x 1");
  const Index channels = image.channels();
  detail::image_size("resize", rows, cols, channels);
  detail::image_size("resize", image.rows, cols, channels);  // between the passes
  std::vector<std::uint8_t> grey(static_cast<std::size_t>(image.pixels.size()));
  for (std::size_t i = 0; i < grey.size(); ++i) {
    const float value = image.pixels.data()[i];
    grey[i] = static_cast<std::uint8_t>(value > 0 ? std::lround(std::min(static_cast<double>(value), 1.0) * 255) : 0);
  }
  if (cols != image.cols)
    grey = detail::resampled(detail::ResampledAxis(kind, image.cols, cols), grey, image.rows, image.cols, channels);
  if (rows != image.rows)
    grey = detail::resampled(detail::ResampledAxis(kind, image.rows, rows), grey, 1, image.rows, cols * channels);
  Image out(rows, cols, channels);
  for (std::size_t i = 0; i < grey.size(); ++i) out.pixels.data()[i] = static_cast<float>(grey[i]) / 255.0f;
  return out;
}

/// rows x cols pixels of an image, from (row, col) on. Throws ShapeError where they do not lie within it.
inline Image crop(const Image& image, Index row, Index col, Index rows, Index cols) {
  detail::check_image("crop", image);
  if (row < 0 || col < 0 || rows < 1 || cols < 1 || rows > image.rows - row || cols > image.cols - col)
    limpid::detail::raise("crop: found " + limpid::detail::shape_text(rows, cols) + " pixels from (" +
                          std::to_string(row) + ", " + std::to_string(col) + "), wanted at least one, within " +
                          limpid::detail::shape_text(image.rows, image.cols));
  Image out(rows, cols, image.channels());
  for (Index i = 0; i < rows; ++i)
    out.pixels.middleRows(i * cols, cols) = image.pixels.middleRows((row + i) * image.cols + col, cols);
  return out;
}

/// (v - mean) / deviation of every pixel, a row each, as patches() takes an image: the numbers that a checkpoint was
/// trained with, one a channel, e.g. 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225. Throws ShapeError where there are not
/// as many as channels, a mean is not finite, or a deviation not positive and finite.
template <class S>
Mat<S> normalised(const Image& image, const std::vector<double>& mean, const std::vector<double>& deviation) {
  detail::check_image("normalised", image);
  const auto channels = static_cast<std::size_t>(image.channels());
  if (mean.size() != channels || deviation.size() != channels)
    limpid::detail::raise("normalised: found " + std::to_string(mean.size()) + " means and " +
                          std::to_string(deviation.size()) + " deviations, wanted " + std::to_string(channels) +
                          ", one a channel");
  for (std::size_t c = 0; c < channels; ++c) {
    limpid::detail::check_finite<S>("normalised", "mean", mean[c]);
    limpid::detail::check_finite<S>("normalised", "deviation", deviation[c], deviation[c] > 0,
                                    "a positive finite number");
  }
  Mat<S> out = image.pixels.cast<S>();
  for (std::size_t c = 0; c < channels; ++c)
    out.col(static_cast<Index>(c)) =
        (out.col(static_cast<Index>(c)).array() - static_cast<S>(mean[c])) / static_cast<S>(deviation[c]);
  return out;
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
