// limpid: explanations by gradients of the input: gradient times input, integrated gradients, SmoothGrad.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../call/checks.hpp"
#include "../core/random.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What an explanation by gradients says: a number for every entry of the input and, their sums, for every token.
template <class S>
struct Attribution {
  Mat<S> entries;   ///< n x D, as the input
  Mat<S> tokens;    ///< 1 x n
  S score{};        ///< the model's at the input
  S baseline{};     ///< and at the baseline (integrated gradients)
  S gap{};          ///< sum of entries - (score - baseline): how far from complete it is (integrated gradients)
  Index steps = 0;  ///< how many gradients were taken (integrated gradients)
};

/// When integrated_gradients_within is done: shares of the change of y, whatever its units.
struct IntegrationOptions {
  double missing = 0.01;  ///< of y(x) - y(x0), at most
  double pieces = 0.03;   ///< of the same, summed over the pieces whatever their signs, at most
  Index most = 65;        ///< gradients, 9 or more
};

struct SmoothGradOptions {
  Index samples = 25;
  double sigma = 0.1;      ///< standard deviation of the noise, in units of the input
  std::uint64_t seed = 1;  ///< the same seed, the same noise, whatever the compiler
  bool squared = false;    ///< mean of the squares of the gradients in place of their mean
  Index at_once = 4;       ///< samples a call of a model that takes several inputs
};

namespace detail {

/// Whether a model takes several inputs at once: model(x, dx, scores).
template <class S, class Model>
inline constexpr bool takes_several = requires(Model& model, View<S> x, MutView<S> dx, MutView<S> scores) {
  model(x, dx, scores);
};

/// The model's scores at inputs one under another, 1 x items, and their gradients; without dx no gradient is wanted,
/// though a model of one input at a time makes it. Refused where a number is not finite.
template <class S, class Model>
void scores_at(Name name, Model& model, View<S> x, Mat<S>* dx, MutView<S> scores) {
  Mat<S> unwanted;
  constexpr bool several = takes_several<S, Model>;
  if (dx == nullptr && !several) dx = &unwanted;
  if (dx != nullptr) dx->setZero(x.rows, x.cols);
  if constexpr (several) {
    model(x, dx != nullptr ? MutView<S>(*dx) : MutView<S>(), scores);
  } else {
    const Index rows = x.rows / scores.cols;
    for (Index i = 0; i < scores.cols; ++i)
      scores(0, i) = model(x.block(i * rows, 0, rows, x.cols), MutView<S>(*dx).block(i * rows, 0, rows, x.cols));
  }
  for (Index i = 0; i < scores.cols; ++i)
    if (!row_is_finite(&scores(0, i), 1)) raise(name + (": the model's score is " + number_text(scores(0, i))));
  if (dx != nullptr) check_parameters<S>(name, "the model's gradient", View<S>(*dx));
}
template <class S, class Model>
S score_at(Name name, Model& model, View<S> x, Mat<S>& dx) {
  S score{};
  scores_at<S>(name, model, x, &dx, MutView<S>(&score, 1, 1, 1));
  return score;
}
/// How many of `count` inputs a model is given at once.
template <class S, class Model>
Index at_once(const char* name, Index wanted, Index count) {
  if (wanted < 1) raise(std::string(name) + ": at_once is " + text_of(wanted) + ", wanted at least 1");
  return takes_several<S, Model> ? std::min(wanted, count) : 1;
}
template <class S>
void check_baseline(const char* name, View<S> x, View<S> baseline) {
  if (baseline.given() && (baseline.rows != x.rows || baseline.cols != x.cols))
    raise(std::string(name) + ": the baseline is " + shape_text(baseline.rows, baseline.cols) + ", wanted " +
          shape_text(x.rows, x.cols) + " as x");
  check_parameters<S>(name, "x", x);
  check_parameters<S>(name, "baseline", baseline);
  for (Index i = 0; i < baseline.rows; ++i)
    for (Index j = 0; j < baseline.cols; ++j)
      if (const S way = x(i, j) - baseline(i, j); !row_is_finite(&way, 1))
        raise(std::string(name) + ": x is " + number_text(x(i, j)) + " and the baseline " +
              number_text(baseline(i, j)) + " at (" + text_of(i) + ", " + text_of(j) +
              "), wanted a difference that does not overflow");
}
/// Part of the way from one number to another; all of it is that number, whatever is rounded.
template <class S>
S on_line(S from, S to, double way) {
  return way == 1 ? to : S(from + S(way) * (to - from));
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
/// pass; x is n x D, the embeddings or pixels. Or it takes several at once, model(x, dx, MutView<S> scores): of as many
/// as scores (1 x items) has columns, x and dx one under another; where dx is not given scores alone are wanted, and a
/// forward pass will do. Throws ShapeError where a number is not finite.
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
/// always told, as gap. Cost: steps + 2 calls of the model; of one that takes several inputs, at_once steps a call, and
/// the ends' two scores without a gradient. Exact for one step of a linear model, and the gap falls as 1 / steps².
/// Throws ShapeError for less than one step or one at once, a baseline of another shape, and numbers that are not
/// finite.
template <class X, class Model>
auto integrated_gradients(Model&& model, X&& x_, Index steps = 32,
                          const std::type_identity_t<View<detail::ScalarOf<X>>>& baseline = {}, Index at_once = 4) {
  using S = detail::ScalarOf<X>;
  using W = detail::Accumulator<S>;
  constexpr const char* name = "integrated_gradients";
  const View<S> x(std::forward<X>(x_));
  if (steps < 1) detail::raise(std::string(name) + ": steps are " + detail::text_of(steps) + ", wanted at least 1");
  detail::check_steps(name, "steps", steps);
  detail::check_baseline(name, x, baseline);
  const auto from = [&](Index i, Index j) { return baseline.given() ? baseline(i, j) : S(0); };
  const Index most = detail::at_once<S, std::remove_cvref_t<Model>>(name, at_once, steps);
  Mat<S> at, gradient, scores(1, std::max(most, Index(2)));
  Mat<W> sum = Mat<W>::Zero(x.rows, x.cols);
  Attribution<S> out;
  const auto ask = [&](Index items, Mat<S>* dx, auto way_of) {
    at.resize(items * x.rows, x.cols);
    for (Index s = 0; s < items; ++s) {
      const double way = way_of(s);
      for (Index i = 0; i < x.rows; ++i)
        for (Index j = 0; j < x.cols; ++j) at(s * x.rows + i, j) = detail::on_line(from(i, j), x(i, j), way);
    }
    detail::scores_at<S>(name, model, View<S>(at), dx, MutView<S>(scores).block(0, 0, 1, items));
  };
  for (Index first = 0; first < steps; first += most) {
    const Index items = std::min(most, steps - first);
    ask(items, &gradient, [&](Index s) { return (static_cast<double>(first + s) + 0.5) / static_cast<double>(steps); });
    for (Index s = 0; s < items; ++s)
      for (Index e = 0; e < sum.size(); ++e) sum.data()[e] += W(gradient.data()[s * sum.size() + e]);
  }
  ask(2, nullptr, [](Index s) { return s == 0 ? 1.0 : 0.0; });
  out.score = scores(0, 0), out.baseline = scores(0, 1);
  out.entries.resize(x.rows, x.cols);
  W total(0);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) {
      const W r = W(x(i, j) - from(i, j)) * sum(i, j) / W(static_cast<double>(steps));
      out.entries(i, j) = S(r), total += r;
    }
  out.gap = S(total - (W(out.score) - W(out.baseline)));
  out.steps = steps;
  detail::sum_tokens(out);
  return out;
}

/// The same R and gap, of x and baseline n x D, with steps where they are needed (ours). The line is cut into pieces,
/// four at first, of which each is integrated by Simpson's rule; as y is known at their ends, so is what each lacks of
/// the change across it. The piece that lacks most is halved until no more is missing than the options allow, or the
/// next halving would take more gradients than `most`: gap and steps tell which. It is for models whose gradient is
/// large near one end, where equal steps miss most of the change. One input a call of the model; kept are n x D numbers
/// for every gradient taken. Throws as integrated_gradients, and ShapeError for options out of range.
template <class X, class Model>
auto integrated_gradients_within(Model&& model, X&& x_, const IntegrationOptions& options = {},
                                 const std::type_identity_t<View<detail::ScalarOf<X>>>& baseline = {}) {
  using S = detail::ScalarOf<X>;
  using W = detail::Accumulator<S>;
  constexpr const char* name = "integrated_gradients_within";
  constexpr double longest = 0.25;
  const View<S> x(std::forward<X>(x_));
  detail::check_baseline(name, x, baseline);
  for (const auto& [field, share] : {std::pair{"missing", options.missing}, {"pieces", options.pieces}})
    detail::check_finite<double>(name, field, share, share >= 0, "a finite number, 0 or more");
  detail::check_steps(name, "most", options.most);
  if (options.most < 9)
    detail::raise(std::string(name) + ": most is " + detail::text_of(options.most) + ", wanted at least 9");
  struct Point {
    double way;
    W score, slope;
    Mat<S> entries;  // (x - x0) o dy/dx
  };
  const auto from = [&](Index i, Index j) { return baseline.given() ? baseline(i, j) : S(0); };
  Mat<S> at(x.rows, x.cols);
  const auto point = [&](double way) {
    Point p{way, W(0), W(0), {}};
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) at(i, j) = detail::on_line(from(i, j), x(i, j), way);
    p.score = W(detail::score_at<S>(name, model, View<S>(at), p.entries));
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) p.slope += W(p.entries(i, j) *= x(i, j) - from(i, j));
    return p;
  };
  std::vector<Point> line;  // ends of pieces, and their middles
  for (const double way : {0.0, 0.5, 1.0}) line.push_back(point(way));
  const W change = line[2].score - line[0].score, size = std::abs(change);
  while (std::ssize(line) + 2 <= options.most) {
    W sum(0), lacking(0);
    double largest = 0, most_wanted = -1;
    std::size_t halved = 0;
    for (std::size_t i = 0; i + 2 < line.size(); i += 2) {
      const Point &first = line[i], &middle = line[i + 1], &last = line[i + 2];
      const double length = last.way - first.way;
      const W got = W(length) * (first.slope + 4 * middle.slope + last.slope) / 6;
      const W lacks = std::abs(last.score - first.score - got);
      sum += got, lacking += lacks, largest = std::max(largest, length);
      const double wants = length > longest ? std::numeric_limits<double>::max() * length : double(lacks);
      if (wants > most_wanted) most_wanted = wants, halved = i;
    }
    if (largest <= longest && std::abs(sum - change) <= W(options.missing) * size &&
        lacking <= W(options.pieces) * size)
      break;
    Point left = point((line[halved].way + line[halved + 1].way) / 2);
    Point right = point((line[halved + 1].way + line[halved + 2].way) / 2);
    const auto behind = line.begin() + static_cast<std::ptrdiff_t>(halved) + 1;
    line.insert(line.insert(behind, std::move(left)) + 2, std::move(right));
  }
  Attribution<S> out;
  out.entries.setZero(x.rows, x.cols);
  W total(0);
  for (Index i = 0; i < x.rows; ++i)
    for (Index j = 0; j < x.cols; ++j) {
      W sum(0);
      for (std::size_t p = 0; p + 2 < line.size(); p += 2)
        sum += W(line[p + 2].way - line[p].way) / 6 *
               (W(line[p].entries(i, j)) + 4 * W(line[p + 1].entries(i, j)) + W(line[p + 2].entries(i, j)));
      out.entries(i, j) = S(sum), total += sum;
    }
  out.score = S(line.back().score), out.baseline = S(line.front().score), out.gap = S(total - change);
  out.steps = std::ssize(line);
  detail::sum_tokens(out);
  return out;
}

/// SmoothGrad (Smilkov et al. 2017, 1706.03825): the mean of dy/dx, or of its square, at x plus Gaussian noise. Cost:
/// samples + 1 calls of the model; of one that takes several inputs, at_once samples a call. Throws ShapeError for less
/// than one sample or one at once, a sigma that is negative or no number, and numbers that are not finite.
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
  const Index most = detail::at_once<S, std::remove_cvref_t<Model>>(name, options.at_once, options.samples);
  detail::NormalNumbers normal(options.seed);
  Mat<S> at, gradient, scores(1, most);
  Mat<W> sum = Mat<W>::Zero(x.rows, x.cols);
  Attribution<S> out;
  detail::scores_at<S>(name, model, x, nullptr, MutView<S>(&out.score, 1, 1, 1));
  for (Index first = 0; first < options.samples; first += most) {
    const Index items = std::min(most, options.samples - first);
    at.resize(items * x.rows, x.cols);
    for (Index i = 0; i < at.rows(); ++i)
      for (Index j = 0; j < x.cols; ++j) at(i, j) = x(i % x.rows, j) + S(options.sigma * normal());
    detail::scores_at<S>(name, model, View<S>(at), &gradient, MutView<S>(scores).block(0, 0, 1, items));
    for (Index s = 0; s < items; ++s)
      for (Index e = 0; e < sum.size(); ++e) {
        const W g(gradient.data()[s * sum.size() + e]);
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
