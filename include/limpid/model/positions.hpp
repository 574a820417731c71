// limpid: a table of positions made for images of one size, resized for those of another.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../io/resampling.hpp"

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
    const double old = static_cast<double>(from);
    double scale = old / static_cast<double>(to);
    if (rule == PositionResize::dinov2) scale = 1 / ((static_cast<double>(to) + 0.1) / old);
    const double stretched = std::max(scale, 1.0);
    std::vector<double> exact;
    for (Index i = 0; i < to; ++i) {
      auto& weights = of[static_cast<std::size_t>(i)];
      if (smooth) {
        const auto window = io::detail::resampling_window(
            i, scale, 2 * stretched, from, exact, [&](double x) { return io::detail::cubic_weight(x / stretched, a); });
        for (Index j = window.first; j < window.last; ++j)
          weights.emplace_back(j, exact[static_cast<std::size_t>(j - window.first)] / window.sum);
      } else {
        const double at = (static_cast<double>(i) + 0.5) * scale - 0.5, low = std::floor(at), t = at - low;
        for (int k = -1; k <= 2; ++k)
          weights.emplace_back(std::clamp(static_cast<Index>(low) + k, Index(0), from - 1),
                               io::detail::cubic_weight(t - static_cast<double>(k), a));
      }
    }
  }
};

/// The grids of a table of `given` rows.
template <class S>
void check_grids(View<S> table, Index given, Index old_rows, Index old_cols, Index rows, Index cols) {
  if (rows < 1 || cols < 1 || old_rows < 1 || old_cols < 1 || table.rows != given)
    limpid::detail::raise("resize_positions: the table is " + limpid::detail::shape_text(table.rows, table.cols) +
                          ", wanted " + std::to_string(given) + " rows, for grids of " +
                          limpid::detail::shape_text(old_rows, old_cols) + " and " +
                          limpid::detail::shape_text(rows, cols));
}
/// f(old place, new place, weight) for all that a resized table is made of.
template <class F>
void resized_places(PositionResize rule, Index old_rows, Index old_cols, Index rows, Index cols, F&& f) {
  if (old_rows == rows && old_cols == cols) {
    for (Index i = 0; i < rows * cols; ++i) f(i, i, 1.0);
    return;
  }
  const AxisWeights down(rule, old_rows, rows), across(rule, old_cols, cols);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c)
      for (const auto& [i, u] : down.of[static_cast<std::size_t>(r)])
        for (const auto& [j, v] : across.of[static_cast<std::size_t>(c)]) f(i * old_cols + j, r * cols + c, u * v);
}

}  // namespace detail

/// A table of positions, one a row, of a grid of old_rows x old_cols for one of rows x cols; where the sizes are the
/// same it is left as it is. In double. Throws ShapeError for a table of other rows and for sizes below 1.
template <class S>
Mat<S> resize_positions(PositionResize rule, View<S> table, Index old_rows, Index old_cols, Index rows, Index cols) {
  detail::check_grids<S>(table, old_rows * old_cols, old_rows, old_cols, rows, cols);
  Mat<double> out = Mat<double>::Zero(rows * cols, table.cols);
  detail::resized_places(rule, old_rows, old_cols, rows, cols, [&](Index old, Index place, double weight) {
    out.row(place) += weight * table.map().row(old).template cast<double>();
  });
  return out.template cast<S>();
}
/// The gradient of the old table, a row a place of old_rows x old_cols, from that of the resized one: the transpose.
/// Throws ShapeError as resize_positions does.
template <class S>
Mat<S> resize_positions_backward(PositionResize rule, View<S> dout, Index old_rows, Index old_cols, Index rows,
                                 Index cols) {
  detail::check_grids<S>(dout, rows * cols, old_rows, old_cols, rows, cols);
  Mat<double> out = Mat<double>::Zero(old_rows * old_cols, dout.cols);
  detail::resized_places(rule, old_rows, old_cols, rows, cols, [&](Index old, Index place, double weight) {
    out.row(old) += weight * dout.map().row(place).template cast<double>();
  });
  return out.template cast<S>();
}

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
