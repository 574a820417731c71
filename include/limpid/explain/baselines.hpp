// limpid: what scores of explanations are compared with: what a model can reach, chance, intervals, shuffled weights,
// and explanations of inputs next to it.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "../core/random.hpp"
#include "metrics.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// (value - lowest) / (highest - lowest); 0 where these are one.
inline double normalised(double value, double lowest, double highest) {
  return detail::quotient(value - lowest, highest - lowest);
}

/// A mean and where it would lie for other draws of the same inputs.
struct MeanInterval {
  double mean = 0, low = 0, high = 0;
};

/// The percentile bootstrap of a mean (Efron 1979): the middle `level` of the means of so many draws, with replacement,
/// of as many values. The same numbers for a seed everywhere. Throws ShapeError for no values, one that is not finite,
/// a level outside of (0, 1) and less than one draw.
inline MeanInterval bootstrap_mean(const std::vector<double>& values, double level = 0.95, Index draws = 2000,
                                   std::uint64_t seed = 1) {
  if (values.empty()) detail::raise("bootstrap_mean: no values, wanted at least one");
  for (const double value : values)
    if (!std::isfinite(value)) detail::raise("bootstrap_mean: a value is " + detail::number_text(value));
  if (!(level > 0 && level < 1))
    detail::raise("bootstrap_mean: level is " + detail::number_text(level) + ", wanted it in (0, 1)");
  if (draws < 1) detail::raise("bootstrap_mean: draws are " + detail::text_of(draws) + ", wanted at least 1");
  detail::check_steps("bootstrap_mean", "draws", draws);
  const double count = static_cast<double>(values.size());
  MeanInterval out;
  for (const double value : values) out.mean += value / count;
  std::vector<double> means;
  for (Index d = 0; d < draws; ++d) {
    double mean = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double place = (detail::uniform(seed) + 1) / 2 * count;
      mean += values[std::min(static_cast<std::size_t>(place), values.size() - 1)] / count;
    }
    means.push_back(mean);
  }
  std::sort(means.begin(), means.end());
  const auto at = [&](double share) {
    return means[static_cast<std::size_t>(std::llround(share * static_cast<double>(means.size() - 1)))];
  };
  out.low = at((1 - level) / 2), out.high = at((1 + level) / 2);
  return out;
}

/// Relevance that knows nothing, uniform in [0, 1): what an explanation has to beat. The same for a seed everywhere.
inline Mat<double> random_relevance(Index rows, Index tokens, std::uint64_t seed) {
  if (!detail::fits_memory(rows, tokens))
    detail::raise("random_relevance: " + detail::shape_text(rows, tokens) + " is no shape");
  Mat<double> out(rows, tokens);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = (detail::uniform(seed) + 1) / 2;
  return out;
}

/// Entries in another order, drawn by a seed: weights for the randomisation check (Adebayo et al. 2018, 1810.03292),
/// layer by layer from the top: an explanation that keeps its ranks (spearman) does not look at the weights.
template <class W>
void shuffle_entries(W&& w_, std::uint64_t seed) {
  const MutView<detail::ScalarOf<W>> w(std::forward<W>(w_));
  const Index count = w.rows * w.cols;
  const auto at = [&](Index i) -> auto& { return w(i / w.cols, i % w.cols); };
  for (Index i = count - 1; i > 0; --i) {  // Fisher and Yates
    const auto j = static_cast<Index>((detail::uniform(seed) + 1) / 2 * static_cast<double>(i + 1));
    std::swap(at(i), at(std::min(i, j)));
  }
}

struct SensitivityOptions {
  double radius = 0.02;  ///< of the ball (largest change of an entry) that inputs are drawn from
  Index samples = 10;
  std::uint64_t seed = 1;
};

/// Largest |E(x + d) - E(x)| / |E(x)| over samples of |d| <= radius (Yeh et al. 2019, 1901.09392, max-sensitivity), in
/// the Euclidean norm: how far an explanation moves where the input hardly does. explain(View<S> x) returns the
/// explanation, a Mat<S> of one shape; samples + 1 calls. 0 where both are zero; right for numbers of any size. Throws
/// ShapeError for a radius that is negative or no number, less than one sample, another shape, and numbers that are not
/// finite.
template <class X, class Explain>
double max_sensitivity(Explain&& explain, X&& x_, const SensitivityOptions& options = {}) {
  using S = detail::ScalarOf<X>;
  const View<S> x(std::forward<X>(x_));
  detail::check_finite<S>("max_sensitivity", "radius", options.radius, options.radius >= 0,
                          "a finite number, 0 or more");
  if (options.samples < 1)
    detail::raise("max_sensitivity: samples are " + detail::text_of(options.samples) + ", wanted at least 1");
  detail::check_steps("max_sensitivity", "samples", options.samples);
  const auto checked = [&](Mat<S> e) {
    for (Index i = 0; i < e.rows(); ++i)
      if (!detail::row_is_finite(e.data() + i * e.cols(), e.cols()))
        detail::raise("max_sensitivity: an explanation holds a number that is not finite");
    return e;
  };
  const Mat<S> intact = checked(explain(x));
  std::uint64_t seed = options.seed;
  Mat<S> moved(x.rows, x.cols);
  double most = 0;
  for (Index s = 0; s < options.samples; ++s) {
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) moved(i, j) = x(i, j) + S(options.radius * detail::uniform(seed));
    const Mat<S> other = checked(explain(View<S>(moved)));
    if (other.rows() != intact.rows() || other.cols() != intact.cols())
      detail::raise("max_sensitivity: an explanation is " + detail::shape_text(other.rows(), other.cols()) +
                    ", wanted " + detail::shape_text(intact.rows(), intact.cols()) + " as that of x");
    std::vector<double> change, size;
    for (Index i = 0; i < intact.size(); ++i) {  // halves: a difference does not overflow
      size.push_back(static_cast<double>(intact.data()[i]) / 2);
      change.push_back(static_cast<double>(other.data()[i]) / 2 - size.back());
    }
    const int exponent = detail::to_order_of_one(change) - detail::to_order_of_one(size);
    const auto square = [](const std::vector<double>& x) {
      return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    };
    const double changed = std::sqrt(square(change)), all = std::sqrt(square(size));
    most = std::max(most, changed == 0 ? 0 : std::ldexp(changed / all, exponent));
  }
  return most;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
