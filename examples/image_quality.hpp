// limpid: what the examples on images need besides attention: reading, noise, patches, a mark, PSNR, SSIM and scores.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limpid/io/idx.hpp>
#include <limpid/io/image.hpp>
#include <random>
#include <string>
#include <vector>

/// Standard normal numbers by Box and Muller (1958). Written out because std::normal_distribution may differ from one
/// standard library to the next, and then so would the figures.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : bits_(seed) {}

  double operator()() {
    if (spare_ready_) {
      spare_ready_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log(uniform())), angle = 6.283185307179586 * uniform();
    spare_ = radius * std::sin(angle);
    spare_ready_ = true;
    return radius * std::cos(angle);
  }

 private:
  double uniform() { return (static_cast<double>(bits_() >> 11) + 0.5) * 0x1p-53; }  // never 0

  std::mt19937_64 bits_;
  double spare_ = 0;
  bool spare_ready_ = false;
};

/// The first images of an IDX file of bytes, grey, in [0, 1]: at least one, of at most so many pixels. Throws
/// FormatError for a file that has none.
inline std::vector<limpid::io::Image> read_images(const std::string& path, limpid::Index count, limpid::Index most) {
  using limpid::Index;
  const limpid::io::Tensor all = limpid::io::read_idx(path, count);
  const std::string found = path + ": found the shape " + limpid::io::detail::shape_of(all.shape) + ", wanted images";
  if (all.shape.size() != 3) throw limpid::io::FormatError(found + " (3 axes)");
  if (all.size() == 0) throw limpid::io::FormatError(found + " with pixels");
  const Index rows = all.shape[1], cols = all.shape[2];
  if (rows * cols > most)
    throw limpid::io::FormatError(found + " of at most " + std::to_string(most) +
                                  " pixels; time grows with their square");
  std::vector<limpid::io::Image> images;
  const std::vector<float> values = all.values<float>();
  for (Index i = 0; i < all.shape[0]; ++i) {
    images.emplace_back(rows, cols, 1);
    for (Index p = 0; p < rows * cols; ++p)
      images.back().pixels(p, 0) = values[static_cast<std::size_t>(i * rows * cols + p)] / 255.0f;
  }
  return images;
}

/// Draws a frame around one pixel of an image that has been enlarged by `factor`: green, which no colour map has.
inline void mark(limpid::io::Image& image, limpid::Index row, limpid::Index col, limpid::Index factor) {
  using limpid::Index;
  for (Index i = -1; i <= factor; ++i)
    for (Index j = -1; j <= factor; ++j) {
      const Index r = row * factor + i, c = col * factor + j;
      const bool edge = i == -1 || j == -1 || i == factor || j == factor;
      if (!edge || r < 0 || c < 0 || r >= image.rows || c >= image.cols) continue;
      image(r, c, 0) = 0.2f, image(r, c, 1) = 1, image(r, c, 2) = 0.2f;
    }
}

/// The image plus Gaussian noise of that standard deviation, not clipped.
inline limpid::io::Image add_noise(const limpid::io::Image& clean, double sigma, std::uint64_t seed) {
  Normal normal(seed);
  limpid::io::Image noisy = clean;
  for (limpid::Index i = 0; i < noisy.pixels.size(); ++i)
    noisy.pixels.data()[i] += static_cast<float>(sigma * normal());
  return noisy;
}

inline limpid::io::Image clipped(limpid::io::Image image) {
  image.pixels = image.pixels.cwiseMax(0.0f).cwiseMin(1.0f);
  return image;
}

/// n x side^2: around every pixel of a grey image its side x side patch, row by row. Beyond the border the image is
/// reflected at the centre of its outermost pixels.
inline limpid::Mat<float> patches(const limpid::io::Image& image, limpid::Index side) {
  using limpid::Index;
  const auto reflected = [](Index i, Index size) {
    if (size == 1) return Index(0);
    const Index period = 2 * (size - 1);
    i = ((i % period) + period) % period;
    return i < size ? i : period - i;
  };
  limpid::Mat<float> out(image.rows * image.cols, side * side);
  for (Index r = 0; r < image.rows; ++r)
    for (Index c = 0; c < image.cols; ++c)
      for (Index a = 0; a < side; ++a)
        for (Index b = 0; b < side; ++b)
          out(r * image.cols + c, a * side + b) =
              image(reflected(r + a - side / 2, image.rows), reflected(c + b - side / 2, image.cols));
  return out;
}

/// n x 2: row and column of every pixel.
inline limpid::Mat<float> places(limpid::Index rows, limpid::Index cols) {
  limpid::Mat<float> out(rows * cols, 2);
  for (limpid::Index i = 0; i < out.rows(); ++i)
    out.row(i) << static_cast<float>(i / cols), static_cast<float>(i % cols);
  return out;
}

/// Peak signal-to-noise ratio in decibels, the peak being 1.
inline double psnr(const limpid::io::Image& image, const limpid::io::Image& clean) {
  return -10.0 * std::log10((image.pixels - clean.pixels).cast<double>().squaredNorm() /
                            static_cast<double>(clean.pixels.size()));
}

/// Structural similarity of two grey images, Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment": Gaussian
/// window 11 x 11 of standard deviation 1.5, K1 = 0.01, K2 = 0.03, range 1; the mean over all windows that lie within
/// the image. NaN for an image smaller than the window.
inline double ssim(const limpid::io::Image& x, const limpid::io::Image& y) {
  using limpid::Index;
  constexpr Index side = 11;
  if (x.rows < side || x.cols < side) return std::nan("");
  double weight[side], sum = 0;
  for (Index i = 0; i < side; ++i)
    sum += weight[i] = std::exp(-0.5 * static_cast<double>((i - 5) * (i - 5)) / (1.5 * 1.5));
  for (double& w : weight) w /= sum;

  // The window is a product of two one-dimensional ones: first along the rows, then along the columns.
  const auto blurred = [&](auto&& value) {
    limpid::Mat<double> along(x.rows, x.cols - side + 1), out(x.rows - side + 1, x.cols - side + 1);
    along.setZero(), out.setZero();
    for (Index r = 0; r < along.rows(); ++r)
      for (Index c = 0; c < along.cols(); ++c)
        for (Index k = 0; k < side; ++k) along(r, c) += weight[k] * value(r, c + k);
    for (Index r = 0; r < out.rows(); ++r)
      for (Index k = 0; k < side; ++k) out.row(r) += weight[k] * along.row(r + k);
    return out;
  };
  const auto at = [](const limpid::io::Image& image, Index r, Index c) { return static_cast<double>(image(r, c)); };
  const limpid::Mat<double> mx = blurred([&](Index r, Index c) { return at(x, r, c); });
  const limpid::Mat<double> my = blurred([&](Index r, Index c) { return at(y, r, c); });
  const limpid::Mat<double> xx = blurred([&](Index r, Index c) { return at(x, r, c) * at(x, r, c); });
  const limpid::Mat<double> yy = blurred([&](Index r, Index c) { return at(y, r, c) * at(y, r, c); });
  const limpid::Mat<double> xy = blurred([&](Index r, Index c) { return at(x, r, c) * at(y, r, c); });

  const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
  double total = 0;
  for (Index i = 0; i < mx.size(); ++i) {
    const double a = mx.data()[i], b = my.data()[i];
    const double vx = xx.data()[i] - a * a, vy = yy.data()[i] - b * b, cov = xy.data()[i] - a * b;
    total += (2 * a * b + c1) * (2 * cov + c2) / ((a * a + b * b + c1) * (vx + vy + c2));
  }
  return total / static_cast<double>(mx.size());
}

/// Mean structural similarity of the channels.
inline double similarity(const limpid::io::Image& x, const limpid::io::Image& y) {
  double sum = 0;
  for (limpid::Index c = 0; c < x.channels(); ++c) {
    limpid::io::Image a(x.rows, x.cols, 1), b = a;
    a.pixels = x.pixels.col(c), b.pixels = y.pixels.col(c);
    sum += ssim(a, b);
  }
  return sum / static_cast<double>(x.channels());
}

/// What a filter reached on several images, summed.
struct Score {
  double psnr = 0, ssim = 0;
  std::vector<double> seconds;
  void add(const limpid::io::Image& image, const limpid::io::Image& clean, double s) {
    psnr += ::psnr(image, clean), ssim += similarity(image, clean), seconds.push_back(s);
  }
  double median_seconds() {
    std::nth_element(seconds.begin(), seconds.begin() + std::ssize(seconds) / 2, seconds.end());
    return seconds[seconds.size() / 2];
  }
};

inline std::string text(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

/// A weight of a map, short.
inline std::string weight_text(float w) {
  const float size = std::abs(w);
  return w == 0 ? "0" : text(size >= 0.01f ? "%.3f" : size >= 0.0001f ? "%.4f" : "%.0e", static_cast<double>(w));
}
