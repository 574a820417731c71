// limpid: the frequencies of rotary positions: scaled for longer texts, and of several axes.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "positions.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// How the frequencies of a model that was trained on short texts are changed for long ones: what Hugging Face's
/// config.json calls rope_scaling.
///
///     plain    f_l = base^(-2 l / r)
///     linear   f_l / factor (position interpolation; Chen et al. 2023, arXiv 2306.15595)
///     llama3   f_l where f_l original / (2 pi) turns are `high` or more, f_l / factor where they are below `low`, and
///              between them (1 - t) f_l / factor + t f_l, t = (turns - low) / (high - low) (Llama 3.1)
///     yarn     t_l f_l / factor + (1 - t_l) f_l, t_l a straight line from 0 at the plane that turns `fast` times over
///              the original length to 1 at the one that turns `slow` times; q and k are multiplied by an amplitude
///              besides (Peng et al. 2023, arXiv 2309.00071)
struct RopeScaling {
  enum class Kind { plain, linear, llama3, yarn } kind = Kind::plain;
  double factor = 1;
  Index original = 0;                     ///< tokens it was trained on; has to be said of llama3 and yarn
  double low = 1, high = 4;               ///< llama3: low_freq_factor, high_freq_factor
  double fast = 32, slow = 1;             ///< yarn: beta_fast, beta_slow
  bool whole_planes = true;               ///< yarn: the line begins and ends at whole planes (truncate)
  std::optional<double> amplitude = {};   ///< yarn: attention_factor; 0.1 ln(factor) + 1 where it is not said
  double mscale = 0, mscale_all_dim = 0;  ///< yarn: both above 0: the amplitude is the quotient of the two
};

/// A frequency a plane, 1 x r / 2, and what q and k are multiplied by.
struct RopeFrequencies {
  Mat<double> values;
  double amplitude = 1;
};

namespace detail {

/// The columns that are turned, and the base.
inline void check_planes(const char* op, Index rotary, double base) {
  if (rotary < 0 || rotary % 2 != 0)
    raise(std::string(op) + ": rotary is " + text_of(rotary) + ", wanted an even number, 0 or more");
  check_base(op, base, rotary - 2, rotary);
}
inline void check_scaling(const char* op, const RopeScaling& s, double base) {
  using Kind = RopeScaling::Kind;
  if (s.kind == Kind::plain) return;
  check_finite<double>(op, "factor", s.factor, s.factor >= 1, "a finite number, 1 or more");
  if (s.kind == Kind::linear) return;
  if (s.original < 1)
    raise(std::string(op) + ": original is " + text_of(s.original) + ", wanted the tokens that it was trained on");
  if (s.kind == Kind::llama3) {
    check_finite<double>(op, "low", s.low, s.low > 0, "a positive, finite number");
    check_finite<double>(op, "high", s.high, s.high > s.low, "a finite number, more than low");
    return;
  }
  check_finite<double>(op, "base", base, base > 1, "more than 1, as planes are sought by their turns");
  check_finite<double>(op, "slow", s.slow, s.slow > 0, "a positive, finite number");
  check_finite<double>(op, "fast", s.fast, s.fast >= s.slow, "a finite number, not below slow");
  check_finite<double>(op, "mscale", s.mscale);
  check_finite<double>(op, "mscale_all_dim", s.mscale_all_dim);
  if (s.amplitude) check_finite<double>(op, "amplitude", *s.amplitude, *s.amplitude > 0, "a positive, finite number");
}

/// The amplitude of yarn, by its factor.
inline double yarn_amplitude(const RopeScaling& s) {
  const auto of = [&](double m) { return 0.1 * m * std::log(s.factor) + 1; };
  if (s.amplitude) return *s.amplitude;
  return s.mscale > 0 && s.mscale_all_dim > 0 ? of(s.mscale) / of(s.mscale_all_dim) : of(1);
}

}  // namespace detail

/// The frequencies of r columns, for rope() and rope_rotate:
///
///     const auto f = limpid::rope_frequencies(128, 5e5, {.kind = limpid::RopeScaling::Kind::llama3, .factor = 8,
///                                                        .original = 8192});
///     const auto op = limpid::rope(limpid::softmax(limpid::causal()),
///                                  {.layout = limpid::RopeLayout::half, .frequencies = f.values,
///                                   .amplitude = f.amplitude});
///
/// f has to outlive op. Within 1e-6 of the frequencies that transformers 4.57 makes in float (tests/score/
/// positions_test.cpp). Throws ShapeError for an odd rotary, a base whose powers are no numbers, and a scaling that is
/// none.
inline RopeFrequencies rope_frequencies(Index rotary, double base = 10000, const RopeScaling& scaling = {}) {
  using Kind = RopeScaling::Kind;
  const char* op = "rope_frequencies";
  detail::check_planes(op, rotary, base);
  detail::check_scaling(op, scaling, base);
  constexpr double turn = 6.283185307179586476925286766559;
  const double r = static_cast<double>(rotary), original = static_cast<double>(scaling.original);
  double first = 0, last = 0;  // yarn: between these planes
  if (scaling.kind == Kind::yarn) {
    const auto plane = [&](double turns) { return r * std::log(original / (turns * turn)) / (2 * std::log(base)); };
    first = plane(scaling.fast), last = plane(scaling.slow);
    if (scaling.whole_planes) first = std::floor(first), last = std::ceil(last);
    first = std::max(first, 0.0), last = std::min(last, r - 1);
    if (first == last) last += 0.001;  // a step
  }
  RopeFrequencies out{Mat<double>(1, rotary / 2), scaling.kind == Kind::yarn ? detail::yarn_amplitude(scaling) : 1.0};
  for (Index l = 0; l < rotary / 2; ++l) {
    const double f = std::pow(base, -2.0 * static_cast<double>(l) / r), slowed = f / scaling.factor;
    double kept = 1;  // how much of f stays
    if (scaling.kind == Kind::linear) kept = 0;
    if (scaling.kind == Kind::llama3) kept = (f * original / turn - scaling.low) / (scaling.high - scaling.low);
    if (scaling.kind == Kind::yarn) kept = 1 - (static_cast<double>(l) - first) / (last - first);
    kept = std::clamp(kept, 0.0, 1.0);
    out.values(0, l) = kept == 1 ? f : (1 - kept) * slowed + kept * f;
  }
  return out;
}

/// Frequencies for tokens on a grid, a row an axis: each axis turns its own share of the planes, those of axis a being
/// l = a r / (2 A) + i, and f(a, l) = base^(-2 i A / r); all others are 0. So the angle of plane l is sum_a p_a f(a,
/// l), and scores depend on the offset along every axis (Heo et al. 2024, "Rotary Position Embedding for Vision
/// Transformer", arXiv 2403.13298, RoPE-Axial, with base 100). A x r / 2. Other rows mix axes in one plane: their
/// RoPE-Mixed. Throws ShapeError where rotary is no multiple of 2 A, axes are not 1 to 4, or a base has powers that are
/// no numbers.
inline Mat<double> axial_frequencies(Index rotary, Index axes, double base = 10000) {
  const char* op = "axial_frequencies";
  if (axes < 1 || axes > 4) detail::raise(std::string(op) + ": axes is " + detail::text_of(axes) + ", wanted 1 to 4");
  if (rotary < 0 || rotary % (2 * axes) != 0)
    detail::raise(std::string(op) + ": rotary is " + detail::text_of(rotary) + ", wanted a multiple of " +
                  detail::text_of(2 * axes) + ", pairs of columns for each of " + detail::text_of(axes) + " axes");
  const Index own = rotary / axes;
  detail::check_base(op, base, own - 2, own);
  Mat<double> out = Mat<double>::Zero(axes, rotary / 2);
  for (Index a = 0; a < axes; ++a)
    for (Index i = 0; i < own / 2; ++i)
      out(a, a * (own / 2) + i) = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(own));
  return out;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
