// limpid: how far two results are apart.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <limpid/core/matrix.hpp>

namespace suite {

/// The largest |a - b| of two matrices or expressions; infinity where one is NaN or shapes differ. Not maxCoeff, which
/// passes over a NaN.
template <class A, class B>
double distance(const A& first, const B& second) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  const auto& a = first.eval();  // an entry of a product would each time be the whole product
  const auto& b = second.eval();
  if (a.rows() != b.rows() || a.cols() != b.cols()) return inf;
  double most = 0;
  for (limpid::Index i = 0; i < a.rows(); ++i)
    for (limpid::Index j = 0; j < a.cols(); ++j) {
      const long double d = std::abs(static_cast<long double>(a(i, j)) - static_cast<long double>(b(i, j)));
      most = std::isnan(d) ? inf : std::max(most, static_cast<double>(d));
    }
  return most;
}

}  // namespace suite
