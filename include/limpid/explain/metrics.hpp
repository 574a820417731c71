// limpid: scoring explanations: what removing tokens does to a prediction, and whether relevance lies on the object.
// SPDX-License-Identifier: MIT
//
// An explanation is a row of n numbers, r (1 x n), of several inputs B x n. All is computed in double. Definitions
// follow the code of Chefer, Gur and Wolf (CVPR 2021, 2012.09838), ERASER (DeYoung et al. 2020), RISE's causal metrics
// and Quantus (Hedstrom et al. 2023) where nothing else is said. Memory O(B n), or what the model's own call takes.
// Throws ShapeError where shapes do not fit, a number is NaN, which has no rank, or infinite where sums are made. In
// double the golden cases are met to 1e-10 of the largest entry.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../core/args.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Most relevant first, or least relevant first. Equal values keep the lower index first in both (ours: without a rule
/// results would not be reproducible), so under ties one is not the other turned round.
enum class RemovalOrder { positive, negative };

namespace detail {

/// An explanation as numbers: one row, not empty, none NaN. Infinite ones have a rank, but no sums.
template <class S>
std::vector<double> numbers(const char* what, const View<S>& r, bool infinite_too = false) {
  if (r.rows != 1 || r.cols < 1)
    raise(std::string(what) + ": got " + shape_text(r.rows, r.cols) + ", wanted one row, not empty");
  std::vector<double> out(static_cast<std::size_t>(r.cols));
  for (Index j = 0; j < r.cols; ++j) {
    out[static_cast<std::size_t>(j)] = static_cast<double>(r(0, j));
    const double x = out[static_cast<std::size_t>(j)];
    if (std::isnan(x)) raise(std::string(what) + ": entry " + text_of(j) + " is NaN, wanted a number");
    if (std::isinf(x) && !infinite_too)
      raise(std::string(what) + ": entry " + text_of(j) + " is " + (x > 0 ? "" : "-") + "inf, wanted a finite number");
  }
  return out;
}

/// Times a power of two that brings the largest into [1/2, 1): sums and squares of what is left neither over- nor
/// underflow. Ratios stay what they are. Returned: the exponent that takes it back.
inline int to_order_of_one(std::vector<double>& x) {
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  if (!(largest > 0) || std::isinf(largest)) return 0;
  int exponent = 0;
  std::frexp(largest, &exponent);
  for (double& v : x) v = std::ldexp(v, -exponent);
  return exponent;
}

/// Whether entries differ by no more than four roundings of the largest, in a scalar with this epsilon. made_of: the
/// size of the numbers they are sums or differences of, where that is larger.
inline bool is_constant(const std::vector<double>& x, double epsilon, double made_of = 0) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  if (std::isinf(*low) || std::isinf(*high)) return *low == *high;
  return *high - *low <= 4 * epsilon * std::max({std::abs(*low), std::abs(*high), made_of});
}
template <class S>
double epsilon_of() {
  return static_cast<double>(std::numeric_limits<S>::epsilon());
}

}  // namespace detail

template <class R>
std::vector<Index> relevance_order(R&& r_, RemovalOrder order = RemovalOrder::positive) {
  const std::vector<double> r =
      detail::numbers("relevance_order", View<detail::ScalarOf<R>>(std::forward<R>(r_)), true);
  std::vector<Index> at(r.size());
  std::iota(at.begin(), at.end(), Index(0));
  std::stable_sort(at.begin(), at.end(), [&](Index a, Index b) {
    const double first = r[static_cast<std::size_t>(a)], second = r[static_cast<std::size_t>(b)];
    return order == RemovalOrder::positive ? first > second : first < second;
  });
  return at;
}

namespace detail {

template <class A, class B>
void check_rows(const char* what, const A& a, const B& b) {
  if (a.rows != b.rows || a.cols != b.cols || a.rows < 1 || a.cols < 1)
    raise(std::string(what) + ": got " + shape_text(a.rows, a.cols) + " and " + shape_text(b.rows, b.cols) +
          ", wanted two of the same shape, not empty");
}

/// a / b, and 0 where b is 0.
inline double quotient(double a, double b) { return b == 0 ? 0 : a / b; }

/// 0 where one has equal entries only. What differs by roundings alone is for the caller to tell.
inline double pearson(std::vector<double> a, std::vector<double> b) {
  const auto centred = [](std::vector<double>& x) {
    to_order_of_one(x);
    for (int again = 0; again < 2; ++again) {  // the first mean is rounded
      const double mean = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
      for (double& v : x) v -= mean;
    }
    to_order_of_one(x);
  };
  centred(a), centred(b);
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) ab += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
  return std::clamp(quotient(ab, std::sqrt(aa) * std::sqrt(bb)), -1.0, 1.0);
}

/// Ranks from 1; equal values share the mean of theirs.
inline std::vector<double> mean_ranks(const std::vector<double>& x) {
  std::vector<std::size_t> at(x.size());
  std::iota(at.begin(), at.end(), std::size_t(0));
  std::sort(at.begin(), at.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });
  std::vector<double> ranks(x.size());
  for (std::size_t i = 0, end = 0; i < at.size(); i = end) {
    for (end = i; end < at.size() && x[at[end]] == x[at[i]];) ++end;
    for (std::size_t s = i; s < end; ++s) ranks[at[s]] = (static_cast<double>(i + 1) + static_cast<double>(end)) / 2;
  }
  return ranks;
}

}  // namespace detail

/// Correlation of two explanations, or of two of anything, in [-1, 1]; 0 where one is constant to within four
/// roundings, which correlate with nothing. Right for numbers of any size; infinite ones are refused.
template <class A, class B>
double pearson(A&& a_, B&& b_) {
  const View<detail::ScalarOf<A>> a(std::forward<A>(a_)), b(std::forward<B>(b_));
  detail::check_rows("pearson", a, b);
  const std::vector<double> x = detail::numbers("pearson", a), y = detail::numbers("pearson", b);
  const double epsilon = detail::epsilon_of<detail::ScalarOf<A>>();
  if (detail::is_constant(x, epsilon) || detail::is_constant(y, epsilon)) return 0;
  return detail::pearson(x, y);
}
/// The same of their ranks, ties sharing the mean of theirs.
template <class A, class B>
double spearman(A&& a_, B&& b_) {
  const View<detail::ScalarOf<A>> a(std::forward<A>(a_)), b(std::forward<B>(b_));
  detail::check_rows("spearman", a, b);
  const std::vector<double> x = detail::numbers("spearman", a, true), y = detail::numbers("spearman", b, true);
  const double epsilon = detail::epsilon_of<detail::ScalarOf<A>>();
  if (detail::is_constant(x, epsilon) || detail::is_constant(y, epsilon)) return 0;
  return detail::pearson(detail::mean_ranks(x), detail::mean_ranks(y));
}

/// |first k of a and first k of b| / k, both most relevant first, as relevance_order has them. O(n log n). Throws
/// ShapeError for other shapes, for k outside [1, n] and for NaN.
template <class A, class B>
double top_k_overlap(A&& a_, B&& b_, Index k) {
  const View<detail::ScalarOf<A>> a(std::forward<A>(a_)), b(std::forward<B>(b_));
  detail::check_rows("top_k_overlap", a, b);
  if (k < 1 || k > a.cols)
    detail::raise("top_k_overlap: k is " + detail::text_of(k) + ", wanted it in [1, " + detail::text_of(a.cols) + "]");
  const std::vector<Index> first = relevance_order(a), second = relevance_order(b);
  std::vector<bool> among(first.size());
  for (Index i = 0; i < k; ++i) among[static_cast<std::size_t>(first[static_cast<std::size_t>(i)])] = true;
  Index both = 0;
  for (Index i = 0; i < k; ++i) both += among[static_cast<std::size_t>(second[static_cast<std::size_t>(i)])] ? 1 : 0;
  return static_cast<double>(both) / static_cast<double>(k);
}

/// Concentration: 0 where all |r| are equal, 1 - 1/n where one is not zero.
template <class R>
double gini(R&& r_) {
  const View<detail::ScalarOf<R>> r(std::forward<R>(r_));
  std::vector<double> a = detail::numbers("gini", r);
  detail::to_order_of_one(a);
  for (double& x : a) x = std::abs(x);
  std::sort(a.begin(), a.end());
  const auto n = static_cast<double>(a.size());
  // sum_i (2 i - n - 1) a_i as a sum of gaps: no term is negative, and equal entries give 0 itself
  double weighted = 0, sum = a[0];
  for (std::size_t i = 1; i < a.size(); ++i) {
    const auto below = static_cast<double>(i);
    weighted += below * (n - below) * (a[i] - a[i - 1]), sum += a[i];
  }
  return detail::quotient(weighted, n * sum);
}
/// Entropy of |r| / sum |r|, in nats: log n where all are equal, 0 where one is not zero.
template <class R>
double relevance_entropy(R&& r_) {
  const View<detail::ScalarOf<R>> r(std::forward<R>(r_));
  double sum = 0, entropy = 0;
  std::vector<double> all = detail::numbers("relevance_entropy", r);
  detail::to_order_of_one(all);
  for (double& x : all) sum += x = std::abs(x);
  const auto top = std::max_element(all.begin(), all.end());
  const double most = *top;
  double rest = 0;
  *top = 0;
  for (const double x : all) {
    rest += x;
    if (const double q = detail::quotient(x, sum); q > 0) entropy -= q * std::log(q);
  }
  // of the largest share: where it is all but 1 its logarithm is what the others have
  return sum > 0 ? entropy + most / sum * std::log1p(rest / most) : 0;
}

/// Localisation on an object, mask (1 x n) true where it is: share of the positive relevance that lies on it.
template <class R>
double mass_accuracy(R&& r_, const View<bool>& mask) {
  const View<detail::ScalarOf<R>> r(std::forward<R>(r_));
  detail::check_rows("mass_accuracy", r, mask);
  double on = 0, all = 0;
  std::vector<double> given = detail::numbers("mass_accuracy", r);
  for (double& x : given) x = std::max(0.0, x);
  detail::to_order_of_one(given);
  for (Index j = 0; j < r.cols; ++j) {
    const double x = given[static_cast<std::size_t>(j)];
    all += x, on += mask(0, j) ? x : 0;
  }
  return detail::quotient(on, all);
}
/// Share of the s most relevant tokens that lie on it, s its size.
template <class R>
double rank_accuracy(R&& r_, const View<bool>& mask) {
  const View<detail::ScalarOf<R>> r(std::forward<R>(r_));
  detail::check_rows("rank_accuracy", r, mask);
  const std::vector<Index> order = relevance_order(r);
  Index size = 0, on = 0;
  for (Index j = 0; j < r.cols; ++j) size += mask(0, j) ? 1 : 0;
  for (Index i = 0; i < size; ++i) on += mask(0, order[static_cast<std::size_t>(i)]) ? 1 : 0;
  return detail::quotient(static_cast<double>(on), static_cast<double>(size));
}
/// Whether the most relevant token lies on it.
template <class R>
bool pointing(R&& r_, const View<bool>& mask) {
  const View<detail::ScalarOf<R>> r(std::forward<R>(r_));
  detail::check_rows("pointing", r, mask);
  return mask(0, relevance_order(r).front());
}

/// A set of heat maps against ground truth, an image a row (N x pixels; bring them to one size first). With
/// H = (heat - min) / (max - min), 0 where flat to within four roundings, the foreground is where H exceeds its mean.
struct Segmentation {
  double pixel_accuracy = 0;                                    ///< correct pixels / pixels, over the whole set
  double background_iou = 0, foreground_iou = 0, mean_iou = 0;  ///< intersections and unions summed over the set
  std::vector<double> average_precision;  ///< an image each: (1 - H, H) of all pixels against (not M, M), pooled
  double mean_average_precision = 0;
  std::vector<double> f1;  ///< of the foreground, 0 where undefined
};

template <class H>
Segmentation segmentation(H&& heat_, const View<bool>& mask) {
  const View<detail::ScalarOf<H>> heat(std::forward<H>(heat_));
  detail::check_rows("segmentation", heat, mask);
  Segmentation out;
  double correct = 0, hit[2] = {}, either[2] = {};
  for (Index image = 0; image < heat.rows; ++image) {
    std::vector<double> h = detail::numbers("segmentation", heat.block(image, 0, 1, heat.cols));
    detail::to_order_of_one(h);
    const auto [low, high] = std::minmax_element(h.begin(), h.end());
    const bool flat = detail::is_constant(h, detail::epsilon_of<detail::ScalarOf<H>>());
    const double least = *low, most = *high, range = flat ? 0 : most - least;
    // the greatest is 1 to the last bit, also where a division becomes a product with 1 / range
    for (double& x : h) x = x == most && !flat ? 1 : detail::quotient(x - least, range);
    const double mean = std::accumulate(h.begin(), h.end(), 0.0) / static_cast<double>(h.size());
    double both = 0, found = 0, wanted = 0;
    std::vector<std::pair<double, bool>> pool;
    for (std::size_t p = 0; p < h.size(); ++p) {
      const bool truth = mask(image, static_cast<Index>(p)), said = h[p] > mean;
      correct += truth == said;
      for (const bool c : {false, true}) {
        hit[c] += truth == c && said == c;
        either[c] += truth == c || said == c;
      }
      both += truth && said, found += said, wanted += truth;
      pool.emplace_back(1 - h[p], !truth), pool.emplace_back(h[p], truth);
    }
    out.f1.push_back(detail::quotient(2 * both, found + wanted));
    // every threshold once: the recall it adds times the precision it has; h and 1 - h of others, 2/3 and 1 - 1/3, are
    // one threshold where roundings alone keep them apart
    const double apart =
        flat ? 0 : 4 * detail::epsilon_of<double>() * std::max(std::abs(least), std::abs(most)) / range;
    std::sort(pool.begin(), pool.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    double right = 0, precision_sum = 0;
    for (std::size_t i = 0, end = 0; i < pool.size(); i = end) {
      double more = 0;
      for (end = i; end < pool.size() && pool[i].first - pool[end].first <= apart; ++end) more += pool[end].second;
      right += more;
      precision_sum += more * right / static_cast<double>(end);
    }
    out.average_precision.push_back(detail::quotient(precision_sum, static_cast<double>(h.size())));
    out.mean_average_precision += out.average_precision.back() / static_cast<double>(heat.rows);
  }
  out.pixel_accuracy = correct / static_cast<double>(heat.rows * heat.cols);
  out.background_iou = detail::quotient(hit[0], either[0]), out.foreground_iou = detail::quotient(hit[1], either[1]);
  out.mean_iou = (out.background_iou + out.foreground_iou) / 2;
  return out;
}

enum class Rounding { floor, ceil };

struct PerturbationOptions {
  std::vector<double> fractions{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};  ///< of tokens, rising
  Rounding rounding = Rounding::floor;  ///< of fraction times n, to 1e-9 (ours: 0.29 of 100 is 29)
};

/// What removing tokens does to p, the probability of the target; p0 that on the intact input.
struct Perturbation {
  std::vector<double> probability;                           ///< p0, an input each
  std::vector<double> positive_accuracy, negative_accuracy;  ///< by fraction: lower is better, higher is better
  double positive_auc = 0, negative_auc = 0;                 ///< trapezoids over the fractions' span, 0 without one
  Mat<double> deletion, insertion;                           ///< B x (n + 1): p without, or with only, the first k
  std::vector<double> deletion_auc, insertion_auc;           ///< lower is better, higher is better
  Mat<double> comprehensiveness, sufficiency;                ///< B x fractions: p0 - p without, p0 - p with only
  double aopc_comprehensiveness = 0, aopc_sufficiency = 0;   ///< their means
};

/// Least and most that any order of removal reaches of the mean drop of p over k = 1 ... n, an input each.
struct AopcLimits {
  std::vector<double> lowest, highest;
};

/// The class the model finds most probable, an input each (the first of equal ones); probabilities B x C, C at least 1.
template <class P>
std::vector<Index> predicted_classes(P&& probabilities_) {
  const View<detail::ScalarOf<P>> probabilities(std::forward<P>(probabilities_));
  if (probabilities.cols < 1)
    detail::raise("predicted_classes: got " + detail::shape_text(probabilities.rows, probabilities.cols) +
                  ", wanted at least one class");
  std::vector<Index> out;
  for (Index b = 0; b < probabilities.rows; ++b) {
    for (Index c = 0; c < probabilities.cols; ++c)
      if (std::isnan(static_cast<double>(probabilities(b, c))))
        detail::raise("predicted_classes: probability " + detail::text_of(c) + " of input " + detail::text_of(b) +
                      " is NaN, wanted a number");
    Index best = 0;
    for (Index c = 1; c < probabilities.cols; ++c)
      if (probabilities(b, c) > probabilities(b, best)) best = c;
    out.push_back(best);
  }
  return out;
}

/// Inputs of which tokens are replaced by a baseline, and the model that sees them: x (B n) x D, r B x n, baseline 1 x
/// D or empty for zeros, target a class an input, model a function of a Mat<S> like x that returns probabilities B x C.
/// A probability that is NaN, or of a target and infinite or so large that differences are, is refused with the call of
/// the model that gave it.
template <class S>
class Perturber {
 public:
  using Model = std::function<Mat<S>(const Mat<S>&)>;

  Perturber(const View<S>& x, const View<S>& r, const View<S>& baseline, std::vector<Index> target, Model model)
      : x_(x), r_(r), baseline_(baseline), target_(std::move(target)), model_(std::move(model)) {
    if (!model_) detail::raise("perturbation: no model, wanted a function");
    if (r.cols < 1 || r.rows < 1 || x.rows != r.rows * r.cols)
      detail::raise("perturbation: x is " + detail::shape_text(x.rows, x.cols) + " and r " +
                    detail::shape_text(r.rows, r.cols) + ", wanted x to have a row for every entry of r");
    if (baseline.given() && (baseline.rows != 1 || baseline.cols != x.cols))
      detail::raise("perturbation: baseline is " + detail::shape_text(baseline.rows, baseline.cols) + ", wanted " +
                    detail::shape_text(1, x.cols));
    if (static_cast<Index>(target_.size()) != r.rows)
      detail::raise("perturbation: " + detail::text_of(target_.size()) + " targets, wanted " + detail::text_of(r.rows));
    for (Index b = 0; b < r.rows; ++b) detail::numbers("perturbation", r.block(b, 0, 1, r.cols), true);
    for (const RemovalOrder order : {RemovalOrder::positive, RemovalOrder::negative})
      for (Index b = 0; b < r.rows; ++b)
        orders_[static_cast<std::size_t>(order)].push_back(relevance_order(r.block(b, 0, 1, r.cols), order));
  }

  /// All curves at once: 2 (n + 1) + fractions calls of the model.
  Perturbation curves(const PerturbationOptions& options = {}) const {
    const Index batch = r_.rows, n = r_.cols;
    const auto count = static_cast<Index>(options.fractions.size());
    const std::vector<Index> taken = counts(options);
    Perturbation out;
    out.deletion.resize(batch, n + 1), out.insertion.resize(batch, n + 1);
    std::vector<double> right(static_cast<std::size_t>(n + 1));
    for (Index k = 0; k <= n; ++k) {
      const auto without = [k] { return "without the " + detail::text_of(k) + " most relevant tokens"; };
      const auto only = [k] { return "with only the " + detail::text_of(k) + " most relevant tokens"; };
      right[static_cast<std::size_t>(k)] = see(removed(RemovalOrder::positive, k, false), without, out.deletion, k);
      see(removed(RemovalOrder::positive, k, true), only, out.insertion, k);
    }
    for (Index b = 0; b < batch; ++b) {
      out.probability.push_back(out.deletion(b, 0));
      out.deletion_auc.push_back(area(out.deletion, b)), out.insertion_auc.push_back(area(out.insertion, b));
    }
    Mat<double> unused(batch, 1);
    out.comprehensiveness.resize(batch, count), out.sufficiency.resize(batch, count);
    for (Index t = 0; t < count; ++t) {
      const Index k = taken[static_cast<std::size_t>(t)];
      const auto without = [k] { return "without the " + detail::text_of(k) + " least relevant tokens"; };
      out.positive_accuracy.push_back(right[static_cast<std::size_t>(k)]);
      out.negative_accuracy.push_back(see(removed(RemovalOrder::negative, k, false), without, unused, 0));
      for (Index b = 0; b < batch; ++b) {
        out.comprehensiveness(b, t) = out.deletion(b, 0) - out.deletion(b, k);
        out.sufficiency(b, t) = out.deletion(b, 0) - out.insertion(b, k);
      }
    }
    out.positive_auc = area(options.fractions, out.positive_accuracy);
    out.negative_auc = area(options.fractions, out.negative_accuracy);
    out.aopc_comprehensiveness = mean(out.comprehensiveness), out.aopc_sufficiency = mean(out.sufficiency);
    return out;
  }

  /// Correlation, over the subsets of tokens given, of their relevance and of what removing them takes from p; an input
  /// each. Subsets of one token: the faithfulness estimate; first 1, 2, ... of the order: sensitivity-n. 0 where one of
  /// the two is constant to within four roundings of what it is made of. Throws ShapeError, before the model is called,
  /// for no subsets, a token that is none of the n, one that a subset lists twice (it can be removed but once) and
  /// relevance that is infinite.
  std::vector<double> faithfulness_correlation(const std::vector<std::vector<Index>>& subsets) const {
    const Index batch = r_.rows, n = r_.cols;
    if (subsets.empty()) detail::raise("perturbation: no subsets, wanted at least one");
    std::vector<std::size_t> last(static_cast<std::size_t>(n), subsets.size());  // subset that a token was last seen in
    for (std::size_t s = 0; s < subsets.size(); ++s)
      for (const Index j : subsets[s]) {
        if (j < 0 || j >= n)
          detail::raise("perturbation: token " + detail::text_of(j) + " in a subset, wanted it in [0, " +
                        detail::text_of(n) + ")");
        if (std::exchange(last[static_cast<std::size_t>(j)], s) == s)
          detail::raise("perturbation: token " + detail::text_of(j) + " is in subset " + detail::text_of(s) +
                        " more than once, wanted it once");
      }
    for (Index b = 0; b < batch; ++b) detail::numbers("perturbation", r_.block(b, 0, 1, n));  // of sums, all finite
    Mat<double> p(batch, static_cast<Index>(subsets.size()) + 1);
    see(
        copied(), [] { return std::string("with all tokens"); }, p, 0);
    for (std::size_t s = 0; s < subsets.size(); ++s) {
      Mat<S> x = copied();
      for (const Index j : subsets[s])
        for (Index b = 0; b < batch; ++b) replace(x, b, j);
      const auto without = [s] { return "without the tokens of subset " + detail::text_of(s); };
      see(x, without, p, static_cast<Index>(s) + 1);
    }
    std::vector<double> out;
    for (Index b = 0; b < batch; ++b) {
      std::vector<double> terms;
      for (const std::vector<Index>& subset : subsets)
        for (const Index j : subset) terms.push_back(static_cast<double>(r_(b, j)));
      detail::to_order_of_one(terms);
      std::vector<double> sums, drops;
      double largest_sum = 0, largest_p = std::abs(p(b, 0));
      const double epsilon = detail::epsilon_of<S>();
      auto term = terms.begin();
      for (std::size_t s = 0; s < subsets.size(); ++s) {
        double sum = 0, size = 0;
        for (std::size_t i = 0; i < subsets[s].size(); ++i, ++term) sum += *term, size += std::abs(*term);
        const double after = p(b, static_cast<Index>(s) + 1);
        sums.push_back(sum), drops.push_back(p(b, 0) - after);
        // the order of a sum moves it by a rounding a term
        size *= 1 + static_cast<double>(subsets[s].size()) * detail::epsilon_of<double>() / (4 * epsilon);
        largest_sum = std::max(largest_sum, size), largest_p = std::max(largest_p, std::abs(after));
      }
      const bool constant =
          detail::is_constant(sums, epsilon, largest_sum) || detail::is_constant(drops, epsilon, largest_p);
      out.push_back(constant ? 0 : detail::pearson(sums, drops));
    }
    return out;
  }

  /// SaCo (Wu, Kang, Tang, Hong, Yan 2024, arXiv 2404.01415), an input each, in [-1, 1]: tokens in groups of falling
  /// relevance, as many in each (the first ones get what is left over: ours), s_i the relevance of group i and d_i what
  /// its removal alone takes from p; over all pairs i < j
  ///
  ///   sum +-(s_i - s_j) / sum |s_i - s_j|,   + where d_i >= d_j
  ///
  /// so it asks whether groups said to matter more do so, and by how much more they were said to. 0 where all groups
  /// have the same relevance. groups + 1 calls of the model. Throws ShapeError for less than 2 groups, more than
  /// tokens, and infinite relevance.
  std::vector<double> saco(Index groups) const {
    const Index batch = r_.rows, n = r_.cols;
    if (groups < 2 || groups > n)
      detail::raise("perturbation: " + detail::text_of(groups) + " groups, wanted from 2 to " + detail::text_of(n));
    for (Index b = 0; b < batch; ++b) detail::numbers("perturbation", r_.block(b, 0, 1, n));
    Mat<double> p(batch, groups + 1);
    see(
        copied(), [] { return std::string("with all tokens"); }, p, groups);
    std::vector<std::vector<double>> of_group(static_cast<std::size_t>(batch));  // their relevance
    Index first = 0;
    for (Index g = 0; g < groups; ++g) {
      const Index size = n / groups + (g < n % groups ? 1 : 0);
      Mat<S> x = copied();
      for (Index b = 0; b < batch; ++b) {
        double sum = 0;
        for (Index i = first; i < first + size; ++i) {
          const Index token = orders_[0][static_cast<std::size_t>(b)][static_cast<std::size_t>(i)];
          sum += static_cast<double>(r_(b, token)) / static_cast<double>(n);  // of any size: no overflow
          replace(x, b, token);
        }
        of_group[static_cast<std::size_t>(b)].push_back(sum);
      }
      see(
          x, [g] { return "without group " + detail::text_of(g); }, p, g);
      first += size;
    }
    std::vector<double> out;
    for (Index b = 0; b < batch; ++b) {
      const auto& s = of_group[static_cast<std::size_t>(b)];
      double sum = 0, all = 0;
      for (Index i = 0; i < groups; ++i)
        for (Index j = i + 1; j < groups; ++j) {
          const double weight = s[static_cast<std::size_t>(i)] - s[static_cast<std::size_t>(j)];
          sum += p(b, i) <= p(b, j) ? weight : -weight, all += std::abs(weight);  // d = p0 - p
        }
      out.push_back(detail::quotient(sum, all));
    }
    return out;
  }

  /// What any order could reach of the area over the deletion curve, 1/n sum_k p0 - p(x without the first k), k = 1 ...
  /// n (Edin et al. 2024, arXiv 2408.08137): with it areas of different models compare, (area - lowest) / (highest -
  /// lowest), see normalised(). By a beam of so many sets of removed tokens a step, of equal sets the better one: exact
  /// where the beam holds all sets of a size, at most n over n / 2; otherwise highest is a bound from below and lowest
  /// from above. Up to 2 beam n² calls of the model. Throws ShapeError for a beam of less than 1.
  AopcLimits aopc_limits(Index beam) const {
    if (beam < 1) detail::raise("perturbation: beam is " + detail::text_of(beam) + ", wanted at least 1");
    AopcLimits out;
    out.lowest = best_area(beam, -1), out.highest = best_area(beam, 1);
    return out;
  }

 private:
  /// The largest of sign times the mean drop, times sign.
  std::vector<double> best_area(Index beam, double sign) const {
    struct State {
      std::vector<bool> gone;
      double drop = 0;  // summed so far, times sign
    };
    const Index batch = r_.rows, n = r_.cols;
    Mat<double> p(batch, 1), intact(batch, 1);
    see(
        copied(), [] { return std::string("with all tokens"); }, intact, 0);
    std::vector<std::vector<State>> states(static_cast<std::size_t>(batch),
                                           {State{std::vector<bool>(static_cast<std::size_t>(n)), 0}});
    for (Index k = 1; k <= n; ++k) {
      std::vector<std::map<std::vector<bool>, double>> next(static_cast<std::size_t>(batch));
      std::size_t most = 0;
      for (const auto& of_input : states) most = std::max(most, of_input.size());
      for (std::size_t place = 0; place < most; ++place)
        for (Index j = 0; j < n; ++j) {  // each input's state of that place, without token j too
          Mat<S> x = copied();
          bool any = false;
          const auto tried = [&](Index b) -> const State* {
            const auto& own = states[static_cast<std::size_t>(b)];
            return place < own.size() && !own[place].gone[static_cast<std::size_t>(j)] ? &own[place] : nullptr;
          };
          for (Index b = 0; b < batch; ++b)
            if (const State* state = tried(b)) {
              any = true;
              for (Index i = 0; i < n; ++i)
                if (i == j || state->gone[static_cast<std::size_t>(i)]) replace(x, b, i);
            }
          if (!any) continue;
          see(
              x, [k] { return "without " + detail::text_of(k) + " tokens"; }, p, 0);
          for (Index b = 0; b < batch; ++b)
            if (const State* state = tried(b)) {
              std::vector<bool> gone = state->gone;
              gone[static_cast<std::size_t>(j)] = true;
              const double drop = state->drop + sign * (intact(b, 0) - p(b, 0)) / static_cast<double>(n);
              const auto [at, is_new] = next[static_cast<std::size_t>(b)].try_emplace(gone, drop);
              if (!is_new) at->second = std::max(at->second, drop);
            }
        }
      for (Index b = 0; b < batch; ++b) {
        auto& own = states[static_cast<std::size_t>(b)];
        own.clear();
        for (const auto& [gone, drop] : next[static_cast<std::size_t>(b)]) own.push_back({gone, drop});
        std::stable_sort(own.begin(), own.end(), [](const State& a, const State& b) { return a.drop > b.drop; });
        if (static_cast<Index>(own.size()) > beam) own.resize(static_cast<std::size_t>(beam));
      }
    }
    std::vector<double> out;
    for (const auto& of_input : states) out.push_back(sign * of_input.front().drop);
    return out;
  }

  std::vector<Index> counts(const PerturbationOptions& options) const {
    std::vector<Index> out;
    if (options.fractions.empty()) detail::raise("perturbation: no fractions, wanted at least one");
    if (!std::is_sorted(options.fractions.begin(), options.fractions.end()))
      detail::raise("perturbation: fractions fall, wanted them rising");
    for (const double f : options.fractions) {
      if (!(f >= 0 && f <= 1))
        detail::raise("perturbation: a fraction is " + std::to_string(f) + ", wanted it in [0, 1]");
      const double exact = static_cast<double>(r_.cols) * f;
      out.push_back(
          static_cast<Index>(options.rounding == Rounding::floor ? std::floor(exact + 1e-9) : std::ceil(exact - 1e-9)));
    }
    return out;
  }
  Mat<S> copied() const {
    Mat<S> x(x_.rows, x_.cols);
    detail::copy<S>(x_, x);
    return x;
  }
  void replace(Mat<S>& x, Index b, Index j) const {
    for (Index c = 0; c < x.cols(); ++c) x(b * r_.cols + j, c) = baseline_.given() ? baseline_(0, c) : S(0);
  }
  /// Without the first k of the order, or with only these.
  Mat<S> removed(RemovalOrder order, Index k, bool keep) const {
    Mat<S> x = copied();
    for (Index b = 0; b < r_.rows; ++b) {
      const std::vector<Index>& at = orders_[static_cast<std::size_t>(order)][static_cast<std::size_t>(b)];
      for (Index i = keep ? k : 0; i < (keep ? r_.cols : k); ++i) replace(x, b, at[static_cast<std::size_t>(i)]);
    }
    return x;
  }
  /// Column k of p becomes the targets' probabilities; returned: how often the target is the class predicted. what()
  /// says what has been done to x.
  template <class What>
  double see(const Mat<S>& x, const What& what, Mat<double>& p, Index k) const {
    const Mat<S> probabilities = model_(x);
    if (probabilities.rows() != r_.rows || probabilities.cols() < 1)
      detail::raise("perturbation: the model returned " +
                    detail::shape_text(probabilities.rows(), probabilities.cols()) + ", wanted " +
                    detail::text_of(r_.rows) + " rows and a column for every class");
    for (Index b = 0; b < r_.rows; ++b) {
      const Index wanted = target_[static_cast<std::size_t>(b)];
      if (wanted < 0 || wanted >= probabilities.cols())
        detail::raise("perturbation: target is " + detail::text_of(wanted) + ", wanted it in [0, " +
                      detail::text_of(probabilities.cols()) + ")");
      for (Index c = 0; c < probabilities.cols(); ++c) {
        const double found = static_cast<double>(probabilities(b, c));
        const bool fits = c == wanted ? std::abs(found) <= most : !std::isnan(found);
        if (!fits)
          detail::raise("perturbation: the model returned " + detail::number_text(found) + " for class " +
                        detail::text_of(c) + " of input " + detail::text_of(b) + " " + what() + ", wanted " +
                        (std::isfinite(found) ? "at most " + detail::number_text(most) + " in size"
                                              : std::string("a finite number")));
      }
      p(b, k) = static_cast<double>(probabilities(b, wanted));
    }
    const std::vector<Index> found = predicted_classes(probabilities);
    double right = 0;
    for (Index b = 0; b < r_.rows; ++b)
      right += found[static_cast<std::size_t>(b)] == target_[static_cast<std::size_t>(b)];
    return right / static_cast<double>(r_.rows);
  }
  static constexpr double most = std::numeric_limits<double>::max() / 2;  // two of them have a difference

  /// Of numbers of any size: sums do not overflow.
  static double mean(const Mat<double>& values) {
    std::vector<double> all(values.data(), values.data() + values.size());
    const int exponent = detail::to_order_of_one(all);
    return std::ldexp(std::accumulate(all.begin(), all.end(), 0.0) / static_cast<double>(all.size()), exponent);
  }
  static double area(const Mat<double>& curve, Index b) {
    std::vector<double> y(curve.row(b).data(), curve.row(b).data() + curve.cols());
    const int exponent = detail::to_order_of_one(y);
    const double sum = std::accumulate(y.begin(), y.end(), 0.0) - (y.front() + y.back()) / 2;
    return std::ldexp(sum / static_cast<double>(y.size() - 1), exponent);
  }
  static double area(const std::vector<double>& f, const std::vector<double>& y) {
    double sum = 0;
    for (std::size_t t = 0; t + 1 < f.size(); ++t) sum += (y[t] + y[t + 1]) / 2 * (f[t + 1] - f[t]);
    return detail::quotient(sum, f.back() - f.front());
  }

  View<S> x_, r_, baseline_;
  std::vector<Index> target_;
  Model model_;
  std::vector<std::vector<Index>> orders_[2];  // by RemovalOrder, then by input
};

}  // namespace LIMPID_ABI
}  // namespace limpid
