// limpid: random numbers that are the same everywhere.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>

#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Uniform in [-1, 1): splitmix64 (Steele, Lea, Flood 2014), so that a seed means the same everywhere.
inline double uniform(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1.0;
}

/// Standard normal numbers, the same for a seed everywhere, by the polar method (Marsaglia, Bray 1964).
class NormalNumbers {
 public:
  explicit NormalNumbers(std::uint64_t seed) : state_(seed) {}
  double operator()() {
    if (ready_) {
      ready_ = false;
      return spare_;
    }
    double a = 0, b = 0, r = 0;
    do {
      a = uniform(state_), b = uniform(state_);
      r = a * a + b * b;
    } while (r >= 1 || r == 0);
    const double f = std::sqrt(-2 * std::log(r) / r);
    spare_ = b * f;
    ready_ = true;
    return a * f;
  }

 private:
  std::uint64_t state_;
  double spare_ = 0;
  bool ready_ = false;
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
