// limpid: explanations by gradients of the input: gradient times input, integrated gradients, SmoothGrad.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "../call/checks.hpp"
#include "../core/random.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an explanation by gradients says: a number for every entry of the input and, their sums, for every token.
template <class S>
struct Attribution {
  Mat<S> entries;  ///< n x D, as the input
  Mat<S> tokens;   ///< 1 x n
  S score{};       ///< the model's at the input
  S baseline{};    ///< and at the baseline (integrated gradients)
  S gap{};         ///< sum of entries - (score - baseline): how far from complete it is (integrated gradients)
};

struct SmoothGradOptions {
  Index samples = 25;
  double sigma = 0.1;      ///< standard deviation of the noise, in units of the input
  std::uint64_t seed = 1;  ///< the same seed, the same noise, whatever the compiler
  bool squared = false;    ///< mean of the squares of the gradients in place of their mean
};

namespace detail {

/// The model's score at x, and its gradient; refused where either is not finite.
template <class S, class Model>
S score_at(Name name, Model& model, View<S> x, Mat<S>& dx) {
  dx.setZero(x.rows, x.cols);
  const S score = model(x, MutView<S>(dx));
  if (!row_is_finite(&score, 1)) raise(name + (": the model's score is " + number_text(score)));
  check_parameters<S>(name, "the model's gradient", View<S>(dx));
  return score;
}
template <class S>
void sum_tokens(Attribution<S>& out) {
  out.tokens.resize(1, out.entries.rows());
  for (Index i = 0; i < out.entries.rows(); ++i) {
    Accumulator<S> sum(0);
    for (Index j = 0; j < out.entries.cols(); ++j) sum += Accumulator<S>(out.entries(i, j));
    out.tokens(0, i) = S(sum);
  }
}

}  // namespace detail

/// R = x o dy/dx. model(View<S> x, MutView<S> dx) returns the score y at x and writes dy/dx, one forward and backward
/// pass; x is n x D, the embeddings or pixels. Throws ShapeError where a number is not finite.
template <class X, class Model>
auto gradient_times_input(Model&& model, X&& x_) {
  using S = detail::ScalarOf<X>;
  const View<S> x(std::forward<X>(x_));
  detail::check_parameters<S>("gradient_times_input", "x", x);
  Attribution<S> out;
  out.score = detail::score_at<S>("gradient_times_input", model, x, out.entries);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) out.entries(i, j) *= x(i, j);
  detail::sum_tokens(out);
  return out;
}

/// Integrated gradients (Sundararajan, Taly, Yan 2017, 1703.01365) along the straight line from x0, by midpoints
/// (ours):
///
///   R = (x - x0) o 1/m sum_s dy/dx at x0 + (s + 1/2) / m (x - x0),   s = 0 ... m - 1
///
/// baseline n x D, or empty for zeros. Their sum tends to y(x) - y(x0) as the steps grow; how far it is from that is
/// always told, as gap. Cost: steps + 2 calls of the model. Exact for one step of a linear model, and the gap falls as
/// 1 / steps². Throws ShapeError for less than one step, a baseline of another shape, and numbers that are not finite.
template <class X, class Model>
auto integrated_gradients(Model&& model, X&& x_, Index steps = 32,
                          const std::type_identity_t<View<detail::ScalarOf<X>>>& baseline = {}) {
  using S = detail::ScalarOf<X>;
  using W = detail::Accumulator<S>;
  constexpr const char* name = "integrated_gradients";
  const View<S> x(std::forward<X>(x_));
  if (steps < 1) detail::raise(std::string(name) + ": steps are " + detail::text_of(steps) + ", wanted at least 1");
  detail::check_steps(name, "steps", steps);
  if (baseline.given() && (baseline.rows != x.rows || baseline.cols != x.cols))
    detail::raise(std::string(name) + ": the baseline is " + detail::shape_text(baseline.rows, baseline.cols) +
                  ", wanted " + detail::shape_text(x.rows, x.cols) + " as x");
  detail::check_parameters<S>(name, "x", x);
  detail::check_parameters<S>(name, "baseline", baseline);
  const auto from = [&](Index i, Index j) { return baseline.given() ? baseline(i, j) : S(0); };
  Mat<S> at(x.rows, x.cols), gradient;
  Mat<W> sum = Mat<W>::Zero(x.rows, x.cols);
  Attribution<S> out;
  const auto score = [&](double way) {
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j)
        at(i, j) = way == 1 ? x(i, j) : S(from(i, j) + S(way) * (x(i, j) - from(i, j)));
    return detail::score_at<S>(name, model, View<S>(at), gradient);
  };
  for (Index s = 0; s < steps; ++s) {
    score((static_cast<double>(s) + 0.5) / static_cast<double>(steps));
    for (Index e = 0; e < sum.size(); ++e) sum.data()[e] += W(gradient.data()[e]);
  }
  out.score = score(1), out.baseline = score(0);
  out.entries.resize(x.rows, x.cols);
  W total(0);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) {
      const W r = W(x(i, j) - from(i, j)) * sum(i, j) / W(static_cast<double>(steps));
      out.entries(i, j) = S(r), total += r;
    }
  out.gap = S(total - (W(out.score) - W(out.baseline)));
  detail::sum_tokens(out);
  return out;
}

/// SmoothGrad (Smilkov et al. 2017, 1706.03825): the mean of dy/dx, or of its square, at x plus Gaussian noise. Cost:
/// samples + 1 calls of the model. Throws ShapeError for less than one sample, a sigma that is negative or no number,
/// and numbers that are not finite.
template <class X, class Model>
auto smooth_grad(Model&& model, X&& x_, const SmoothGradOptions& options = {}) {
  using S = detail::ScalarOf<X>;
  using W = detail::Accumulator<S>;
  constexpr const char* name = "smooth_grad";
  const View<S> x(std::forward<X>(x_));
  if (options.samples < 1)
    detail::raise(std::string(name) + ": samples are " + detail::text_of(options.samples) + ", wanted at least 1");
  detail::check_steps(name, "samples", options.samples);
  detail::check_finite<S>(name, "sigma", options.sigma, options.sigma >= 0, "a finite number, 0 or more");
  detail::check_parameters<S>(name, "x", x);
  detail::NormalNumbers normal(options.seed);
  Mat<S> at(x.rows, x.cols), gradient;
  Mat<W> sum = Mat<W>::Zero(x.rows, x.cols);
  Attribution<S> out;
  out.score = detail::score_at<S>(name, model, x, gradient);
  for (Index s = 0; s < options.samples; ++s) {
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) at(i, j) = x(i, j) + S(options.sigma * normal());
    detail::score_at<S>(name, model, View<S>(at), gradient);
    for (Index e = 0; e < sum.size(); ++e) {
      const W g(gradient.data()[e]);
      sum.data()[e] += options.squared ? g * g : g;
    }
  }
  out.entries.resize(x.rows, x.cols);
  for (Index e = 0; e < sum.size(); ++e)
    out.entries.data()[e] = S(sum.data()[e] / W(static_cast<double>(options.samples)));
  detail::sum_tokens(out);
  return out;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
