// limpid: a table of positions made for images of one size, resized for those of another.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {

/// How a family resizes its table of positions. bicubic: the cubic of Keys with a = -3/4, by the size, the border
/// repeated (PyTorch's interpolate; Hugging Face's ViT and DINOv2). dinov2: the same at a scale of (size + 0.1) / old
/// size, as DINOv2's own program has it. antialiased: a = -1/2, stretched where the table shrinks, weights that sum to
/// 1 within the border (PyTorch's antialias, timm, DINOv2 with registers at Hugging Face).
enum class PositionResize { bicubic, dinov2, antialiased };

namespace detail {

/// Of every place along an axis: the old ones it is made of.
struct AxisWeights {
  std::vector<std::vector<std::pair<Index, double>>> of;

  AxisWeights(PositionResize rule, Index from, Index to) : of(static_cast<std::size_t>(to)) {
    const bool smooth = rule == PositionResize::antialiased;
    const double a = smooth ? -0.5 : -0.75;
    const auto cubic = [a](double x) {
      x = std::abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
    };
    const double old = static_cast<double>(from);
    double scale = old / static_cast<double>(to);
    if (rule == PositionResize::dinov2) scale = 1 / ((static_cast<double>(to) + 0.1) / old);
    for (Index i = 0; i < to; ++i) {
      auto& weights = of[static_cast<std::size_t>(i)];
      const double center = (static_cast<double>(i) + 0.5) * scale;
      if (smooth) {
        const double stretched = std::max(scale, 1.0), support = 2 * stretched;
        const auto first = std::max(Index(0), static_cast<Index>(std::floor(center - support + 0.5)));
        const auto last = std::min(from, static_cast<Index>(std::floor(center + support + 0.5)));
        double sum = 0;
        for (Index j = first; j < last; ++j) {
          weights.emplace_back(j, cubic((static_cast<double>(j) - center + 0.5) / stretched));
          sum += weights.back().second;
        }
        for (auto& one : weights) one.second /= sum;
      } else {
        const double at = center - 0.5, low = std::floor(at), t = at - low;
        for (int k = -1; k <= 2; ++k)
          weights.emplace_back(std::clamp(static_cast<Index>(low) + k, Index(0), from - 1),
                               cubic(t - static_cast<double>(k)));
      }
    }
  }
};

}  // namespace detail

/// A table of positions, one a row, of a grid of old_rows x old_cols for one of rows x cols; where the sizes are the
/// same it is left as it is. In double. Throws ShapeError for a table of other rows and for sizes below 1.
template <class S>
Mat<S> resize_positions(PositionResize rule, View<S> table, Index old_rows, Index old_cols, Index rows, Index cols,
                        bool transpose = false) {
  const Index given = transpose ? rows * cols : old_rows * old_cols;
  if (rows < 1 || cols < 1 || old_rows < 1 || old_cols < 1 || table.rows != given)
    limpid::detail::raise("resize_positions: the table is " + limpid::detail::shape_text(table.rows, table.cols) +
                          ", wanted " + std::to_string(given) + " rows, for grids of " +
                          limpid::detail::shape_text(old_rows, old_cols) + " and " +
                          limpid::detail::shape_text(rows, cols));
  if (old_rows == rows && old_cols == cols) return table.map();
  const detail::AxisWeights down(rule, old_rows, rows), across(rule, old_cols, cols);
  Mat<double> out = Mat<double>::Zero(transpose ? old_rows * old_cols : rows * cols, table.cols);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c)
      for (const auto& [i, u] : down.of[static_cast<std::size_t>(r)])
        for (const auto& [j, v] : across.of[static_cast<std::size_t>(c)]) {
          const Index there = i * old_cols + j, here = r * cols + c;
          if (transpose)
            out.row(there) += (u * v) * table.map().row(here).template cast<double>();
          else
            out.row(here) += (u * v) * table.map().row(there).template cast<double>();
        }
  return out.template cast<S>();
}
/// The gradient of the old table, a row a place of old_rows x old_cols, from that of the resized one: the transpose.
/// Throws ShapeError as resize_positions does.
template <class S>
Mat<S> resize_positions_backward(PositionResize rule, View<S> dout, Index old_rows, Index old_cols, Index rows,
                                 Index cols) {
  return resize_positions<S>(rule, dout, old_rows, old_cols, rows, cols, true);
}

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
