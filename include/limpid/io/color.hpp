// limpid: colours for maps. Everything is computed in OKLab (Ottosson 2020), in which equal steps look equally large.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "image.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// Red, green, blue in [0, 1], sRGB encoded.
using Rgb = std::array<float, 3>;

namespace detail {

inline float srgb_encode(float linear) {
  return linear <= 0.0031308f ? 12.92f * linear : 1.055f * std::pow(linear, 1.0f / 2.4f) - 0.055f;
}

/// OKLab in polar form (lightness 0..1, chroma, hue in degrees) to linear sRGB, which may leave [0, 1].
inline Rgb oklch_to_linear(float lightness, float chroma, float hue) {
  const float angle = hue * 0.017453292519943295f;
  const float a = chroma * std::cos(angle), b = chroma * std::sin(angle);
  const float l = lightness + 0.3963377774f * a + 0.2158037573f * b;
  const float m = lightness - 0.1055613458f * a - 0.0638541728f * b;
  const float s = lightness - 0.0894841775f * a - 1.2914855480f * b;
  const float l3 = l * l * l, m3 = m * m * m, s3 = s * s * s;
  return {4.0767416621f * l3 - 3.3077115913f * m3 + 0.2309699292f * s3,
          -1.2684380046f * l3 + 2.6097574011f * m3 - 0.3413193965f * s3,
          -0.0041960863f * l3 - 0.7034186147f * m3 + 1.7076147010f * s3};
}

/// The colour of that lightness and hue with as much of the chroma as sRGB has.
inline Rgb oklch(float lightness, float chroma, float hue) {
  const auto fits = [&](float c) {
    const Rgb x = oklch_to_linear(lightness, c, hue);
    return std::all_of(x.begin(), x.end(), [](float v) { return v > -1e-4f && v < 1.0001f; });
  };
  if (!fits(chroma)) {
    float low = 0, high = chroma;
    for (int step = 0; step < 16; ++step) (fits((low + high) / 2) ? low : high) = (low + high) / 2;
    chroma = low;
  }
  Rgb out = oklch_to_linear(lightness, chroma, hue);
  for (float& v : out) v = srgb_encode(std::clamp(v, 0.0f, 1.0f));
  return out;
}

inline float unit(float t) { return t >= 0 ? std::min(t, 1.0f) : 0.0f; }  // NaN counts as 0

}  // namespace detail

/// For amounts, t in [0, 1]: dark violet over teal to yellow. Lightness rises linearly with t, so the map reads the
/// same in grey and with most colour-blind eyes. Outside [0, 1] the ends go on; NaN counts as 0.
inline Rgb perceptual(float t) {
  t = detail::unit(t);
  const float hue = 312.0f - 204.0f * t;  // violet, blue, teal, green, yellow
  const float chroma = 0.105f + 0.055f * std::abs(2 * t - 1);
  return detail::oklch(0.20f + 0.72f * t, chroma, hue);
}

/// For signed amounts, t in [-1, 1]: blue over near white to red, the two arms equally light. NaN counts as 0.
inline Rgb diverging(float t) {
  const float amount = detail::unit(std::abs(t));
  return detail::oklch(0.97f - 0.50f * amount, 0.19f * amount, t < 0 ? 258.0f : 27.0f);
}

/// A colour map takes a number to a colour: perceptual or diverging.
using ColorMap = Rgb (*)(float);

namespace detail {

/// The scale of a heat map, checked: where it is 0 the largest finite magnitude, which is 0 where there is none.
inline float map_scale(const char* what, View<float> values, ColorMap colors, float scale) {
  if (colors == nullptr) limpid::detail::raise(std::string(what) + ": colors is null, wanted a colour map");
  if (!(scale >= 0) || !std::isfinite(scale))
    limpid::detail::raise(std::string(what) + ": scale is " + std::to_string(scale) +
                          ", wanted 0 (the largest magnitude) or a positive finite number");
  if (scale == 0)
    for (Index i = 0; i < values.rows; ++i)
      for (Index j = 0; j < values.cols; ++j)
        if (std::isfinite(values(i, j))) scale = std::max(scale, std::abs(values(i, j)));
  return scale;
}

/// value / scale in [-1, 1]; NaN is 0, and so are zeros without
/// a scale. In double, where no two floats over- or underflow.
inline float map_place(float value, float scale) {
  if (std::isnan(value) || value == 0) return 0;
  const double t = scale > 0 ? static_cast<double>(value) / static_cast<double>(scale) : static_cast<double>(value);
  return static_cast<float>(std::clamp(t, -1.0, 1.0));
}

}  // namespace detail

/// values (rows x cols) as an image: colours of value / scale; scale 0 means the largest finite magnitude. Infinite
/// values take the colour of the end, NaN that of 0, whatever the rest is. Throws ShapeError for another scale.
inline Image heat_map(View<float> values, ColorMap colors = perceptual, float scale = 0) {
  scale = detail::map_scale("heat_map", values, colors, scale);
  Image out(values.rows, values.cols, 3);
  for (Index i = 0; i < values.rows; ++i)
    for (Index j = 0; j < values.cols; ++j) {
      const Rgb color = colors(detail::map_place(values(i, j), scale));
      for (Index c = 0; c < 3; ++c) out(i, j, c) = color[static_cast<std::size_t>(c)];
    }
  return out;
}

/// The image in three channels. Throws FormatError as to_grey does.
inline Image to_rgb(const Image& image) {
  detail::check_image("to_rgb", image);
  if (image.channels() == 3) return image;
  Image out(image.rows, image.cols, 3);
  for (Index c = 0; c < 3 && image.pixels.size() != 0; ++c) out.pixels.col(c) = image.pixels.col(0);
  return out;
}

/// Lays a heat map over an image: where the value is 0 the dimmed grey image shows, where it is largest its colour
/// alone. values: rows x cols of the image, as heat_map takes them; gamma < 1 lifts small values. Throws FormatError
/// where the image has another size or a pixel that is not finite, and ShapeError for another scale or a gamma that is
/// not positive and finite.
inline Image overlay(const Image& image, View<float> values, ColorMap colors = perceptual, float scale = 0,
                     float gamma = 0.5f) {
  if (values.rows != image.rows || values.cols != image.cols)
    detail::fail("overlay", "found a map of " + limpid::detail::shape_text(values.rows, values.cols) + ", wanted " +
                                limpid::detail::shape_text(image.rows, image.cols) + " as the image");
  detail::check_image("overlay", image);
  if (!image.pixels.allFinite()) detail::fail("overlay", "found a pixel of the image that is not finite");
  if (!(gamma > 0) || !std::isfinite(gamma))
    limpid::detail::raise("overlay: gamma is " + std::to_string(gamma) + ", wanted a positive finite number");
  scale = detail::map_scale("overlay", values, colors, scale);
  Image out = to_rgb(to_grey(image));
  for (Index i = 0; i < values.rows; ++i)
    for (Index j = 0; j < values.cols; ++j) {
      const float t = detail::map_place(values(i, j), scale);
      const float weight = std::pow(std::abs(t), gamma);
      const Rgb color = colors(t < 0 ? -weight : weight);
      for (Index c = 0; c < 3; ++c)
        out(i, j, c) = (1 - weight) * 0.55f * out(i, j, c) + weight * color[static_cast<std::size_t>(c)];
    }
  return out;
}

/// Every pixel as a factor x factor square. Throws FormatError as to_grey does, and ShapeError for a factor below 1 or
/// one no memory is large enough for.
inline Image enlarge(const Image& image, Index factor) {
  detail::check_image("enlarge", image);
  if (factor < 1 || factor > Index(1) << 20)
    limpid::detail::raise("enlarge: factor is " + std::to_string(factor) + ", wanted from 1 to 2^20");
  detail::image_size("enlarge", image.rows, factor, 1);
  detail::image_size("enlarge", image.cols, factor, 1);
  Image out(image.rows * factor, image.cols * factor, std::max(image.channels(), Index(1)));
  for (Index i = 0; i < out.rows; ++i)
    for (Index j = 0; j < out.cols; ++j)
      for (Index c = 0; c < out.channels(); ++c) out(i, j, c) = image(i / factor, j / factor, c);
  return out;
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
