// limpid: what the places of a resized axis are made of; images and tables of positions share it.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {
namespace detail {

/// The cubic of Keys (1981), two places wide on either side.
inline double cubic_weight(double x, double a) {
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/// Old places [first, last) that a new one is made of, and the sum of their weights.
struct ResamplingWindow {
  Index first, last;
  double sum;
};

/// The window of place i of an axis that had `from` places, `scale` old ones a new one: those within `support` of its
/// middle, cut off at the ends. weights becomes weight(x) of each, x its middle less that of the new one.
template <class Weight>
ResamplingWindow resampling_window(Index i, double scale, double support, Index from, std::vector<double>& weights,
                                   Weight&& weight) {
  const double center = (static_cast<double>(i) + 0.5) * scale;
  const auto first = std::max(Index(0), static_cast<Index>(std::floor(center - support + 0.5)));
  const auto last = std::min(from, static_cast<Index>(std::floor(center + support + 0.5)));
  weights.clear();
  double sum = 0;
  for (Index j = first; j < last; ++j) {
    weights.push_back(weight(static_cast<double>(j) - center + 0.5));
    sum += weights.back();
  }
  return {first, last, sum};
}

}  // namespace detail
}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
