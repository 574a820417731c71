// limpid: scores of explanations: what their definitions imply. The numbers are held by the golden cases.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <functional>
#include <limpid/explain/baselines.hpp>
#include <limpid/explain/metrics.hpp>
#include <numeric>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols);
}

}  // namespace

TEST_CASE("rank statistics and concentration at their ends") {
  const M a = random(1, 12, 1);
  M up = a, one = M::Zero(1, 12), same = M::Constant(1, 12, -3);
  for (Index j = 0; j < 12; ++j) up(0, j) = std::exp(3 * a(0, j));
  one(0, 4) = 2;
  CHECK(limpid::spearman(a, up) == Approx(1).epsilon(1e-14));
  CHECK(limpid::pearson(a, up) < 1);
  CHECK(limpid::pearson(a, same) == 0);
  CHECK(limpid::gini(same) == 0);
  CHECK(limpid::gini(one) == Approx(1 - 1.0 / 12).epsilon(1e-14));
  CHECK(limpid::relevance_entropy(same) == Approx(std::log(12)).epsilon(1e-14));
  CHECK(limpid::relevance_entropy(one) == 0);
  CHECK(limpid::relevance_order(same).front() == 0);  // ties: the lower index, both ways
  CHECK(limpid::relevance_order(same, limpid::RemovalOrder::negative).front() == 0);
}

TEST_CASE("a heat map that is the object scores one everywhere") {
  Mat<bool> mask = Mat<bool>::Constant(2, 30, false);
  mask.block(0, 3, 1, 7).setConstant(true), mask.block(1, 20, 1, 4).setConstant(true);
  const M heat = mask.cast<double>();
  const limpid::Segmentation s = limpid::segmentation(heat, mask);
  CHECK(s.pixel_accuracy == 1);
  CHECK(s.mean_iou == 1);
  CHECK(s.mean_average_precision == Approx(1).epsilon(1e-14));
  CHECK((s.f1[0] == 1 && s.f1[1] == 1));
}

TEST_CASE("curves of a linear model: their ends, and correlation one where relevance is the exact drop") {
  const Index batch = 3, n = 8;
  const M x = random(batch * n, 2, 1), weights = random(2, 1, 2);
  const auto model = [&](const M& in) {  // p = mean of x_i w, clipped by nothing: any number will do
    M p = M::Zero(in.rows() / n, 2);
    for (Index i = 0; i < in.rows(); ++i) p(i / n, 0) += in(i, 0) * weights(0, 0) + in(i, 1) * weights(1, 0);
    return p;
  };
  M r(batch, n);
  for (Index i = 0; i < batch * n; ++i) r(i / n, i % n) = x(i, 0) * weights(0, 0) + x(i, 1) * weights(1, 0);
  const limpid::Perturber<double> perturber(x, r, {}, {0, 0, 0}, model);
  const limpid::Perturbation found = perturber.curves({.fractions = {0, 0.5, 1}});
  for (Index b = 0; b < batch; ++b) {
    const auto at = static_cast<std::size_t>(b);
    CHECK(found.deletion(b, 0) == found.probability[at]);
    CHECK(found.insertion(b, n) == found.probability[at]);
    CHECK(found.deletion(b, n) == found.insertion(b, 0));
    CHECK(found.comprehensiveness(b, 2) == found.sufficiency(b, 0));
    CHECK(found.sufficiency(b, 2) == 0);
  }
  for (const double c : perturber.faithfulness_correlation({{0, 1}, {2, 3}, {4}, {5, 6, 7}, {1, 6}}))
    CHECK(c == Approx(1).epsilon(1e-12));
  const M scaled = 3 * r.array() + 5;
  const limpid::Perturbation same = limpid::Perturber<double>(x, scaled, {}, {0, 0, 0}, model).curves();
  CHECK(suite::distance(same.deletion, found.deletion) == 0);
}

TEST_CASE("a flat heat map has no foreground; 0.29 of 100 tokens are 29, whichever way fractions are rounded") {
  Mat<bool> mask = Mat<bool>::Constant(1, 10, false);
  mask(0, 2) = true;
  const M flat = M::Constant(1, 10, 0.3);
  const limpid::Segmentation s = limpid::segmentation(flat, mask);
  CHECK(s.pixel_accuracy == Approx(0.9));
  CHECK(s.f1.front() == 0);
  CHECK(s.foreground_iou == 0);

  const M x = M::Ones(100, 1), r = random(1, 100, 7);
  const auto left = [](const M& in) {  // how many tokens are left
    M p = M::Zero(1, 1);
    p(0, 0) = in.sum();
    return p;
  };
  const limpid::Perturber<double> perturber(x, r, {}, {0}, left);
  for (const limpid::Rounding rounding : {limpid::Rounding::floor, limpid::Rounding::ceil}) {
    const limpid::Perturbation found = perturber.curves({.fractions = {0.07, 0.29, 0.57}, .rounding = rounding});
    CHECK(found.comprehensiveness(0, 0) == 7);
    CHECK(found.comprehensiveness(0, 1) == 29);
    CHECK(found.comprehensiveness(0, 2) == 57);
  }
}

TEST_CASE("areas under curves are their trapezoids; of classes as probable as each other the first is predicted") {
  const Index batch = 2, n = 7;
  const M x = random(batch * n, 2, 31), r = random(batch, n, 32);
  const auto model = [&](const M& in) {
    M p = M::Zero(batch, 3);
    for (Index i = 0; i < in.rows(); ++i) p(i / n, i % 3) += in(i, 0) * in(i, 0) + in(i, 1);
    return p;
  };
  const limpid::Perturbation found =
      limpid::Perturber<double>(x, r, {}, {0, 2}, model).curves({.fractions = {0.1, 0.2, 0.7}});
  const auto trapezoids = [&](const M& curve, Index b) {
    double sum = 0;
    for (Index k = 0; k < n; ++k) sum += (curve(b, k) + curve(b, k + 1)) / 2 / double(n);
    return sum;
  };
  for (Index b = 0; b < batch; ++b) {
    CHECK(found.deletion_auc[std::size_t(b)] == Approx(trapezoids(found.deletion, b)).epsilon(1e-13));
    CHECK(found.insertion_auc[std::size_t(b)] == Approx(trapezoids(found.insertion, b)).epsilon(1e-13));
  }
  const auto over_fractions = [](const std::vector<double>& y) {
    return (0.1 * (y[0] + y[1]) / 2 + 0.5 * (y[1] + y[2]) / 2) / 0.6;
  };
  CHECK(found.positive_auc == Approx(over_fractions(found.positive_accuracy)).epsilon(1e-13));
  CHECK(found.negative_auc == Approx(over_fractions(found.negative_accuracy)).epsilon(1e-13));

  M p(3, 3);
  p << 0.2, 0.4, 0.4, 0.3, 0.3, 0.3, 0.5, 0, 0.5;
  CHECK(limpid::predicted_classes(p) == std::vector<Index>{1, 0, 0});
}

TEST_CASE("scores refuse what does not fit") {
  const M a = random(1, 4, 1), b = random(1, 5, 2), x = random(8, 2, 3), r = random(2, 4, 4);
  const auto model = [](const M&) { return M(M::Zero(2, 3)); };
  CHECK_THROWS_WITH(limpid::pearson(a, b), "pearson: got 1 x 4 and 1 x 5, wanted two of the same shape, not empty");
  CHECK_THROWS_WITH(limpid::top_k_overlap(a, a, 5), "top_k_overlap: k is 5, wanted it in [1, 4]");
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, a, {}, {0}, model),
                    "perturbation: x is 8 x 2 and r 1 x 4, wanted x to have a row for every entry of r");
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0}, model), "perturbation: 1 targets, wanted 2");
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0, 3}, model).curves(),
                    "perturbation: target is 3, wanted it in [0, 3)");
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0, 0}, model).curves({.fractions = {1.5}}),
                    "perturbation: a fraction is 1.500000, wanted it in [0, 1]");
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0, 0}, model).curves({.fractions = {0.5, 0.1}}),
                    "perturbation: fractions fall, wanted them rising");
  CHECK_THROWS_WITH(limpid::gini(r), "gini: got 2 x 4, wanted one row, not empty");
  M hole = a;
  hole(0, 2) = std::nan("");
  CHECK_THROWS_WITH(limpid::spearman(hole, a), "spearman: entry 2 is NaN, wanted a number");
  CHECK_THROWS_WITH(limpid::relevance_order(hole), "relevance_order: entry 2 is NaN, wanted a number");
}

namespace {

long double pearson_by_definition(const M& a, const M& b) {
  const Index n = a.cols();
  long double ma = 0, mb = 0, ab = 0, aa = 0, bb = 0;
  for (Index i = 0; i < n; ++i)
    ma += static_cast<long double>(a(0, i)) / n, mb += static_cast<long double>(b(0, i)) / n;
  for (Index i = 0; i < n; ++i) {
    ab += (a(0, i) - ma) * (b(0, i) - mb);
    aa += (a(0, i) - ma) * (a(0, i) - ma), bb += (b(0, i) - mb) * (b(0, i) - mb);
  }
  return ab / (std::sqrt(aa) * std::sqrt(bb));
}

}  // namespace

TEST_CASE("scores of explanations do not depend on the size of their numbers") {
  suite::Random random(11);
  const M a = suite::random_matrix<double>(random, 1, 40), b = suite::random_matrix<double>(random, 1, 40);
  Mat<bool> mask(1, 40);
  for (Index j = 0; j < 40; ++j) mask(0, j) = j % 3 == 0;
  for (double scale : {1e-300, 1e-200, 1e-90, 1e-12, 1e90, 1e200, 1e300, 1.7e308}) {
    const M c = scale * a;
    INFO("scale " << scale);
    CHECK(std::abs(limpid::pearson(c, b) - static_cast<double>(pearson_by_definition(a, b))) <= 1e-14);
    CHECK(std::abs(limpid::pearson(c, c) - 1) <= 1e-15);
    CHECK(std::abs(limpid::spearman(c, b) - limpid::spearman(a, b)) <= 1e-15);
    CHECK(std::abs(limpid::gini(c) - limpid::gini(a)) <= 1e-14);
    CHECK(std::abs(limpid::relevance_entropy(c) - limpid::relevance_entropy(a)) <= 1e-14);
    CHECK(std::abs(limpid::mass_accuracy(c, mask) - limpid::mass_accuracy(a, mask)) <= 1e-14);
    const auto found = limpid::segmentation(c, mask), wanted = limpid::segmentation(a, mask);
    CHECK(found.pixel_accuracy == wanted.pixel_accuracy);
    CHECK(std::abs(found.mean_average_precision - wanted.mean_average_precision) <= 1e-12);
  }
  for (double offset : {1e3, -1e6}) {  // most digits are the offset's
    const M c = a.array() + offset;
    CHECK(std::abs(limpid::pearson(c, b) - static_cast<double>(pearson_by_definition(c, b))) <= 1e-13);
  }
}

TEMPLATE_TEST_CASE("numbers that differ by roundings alone correlate with nothing", "", float, double) {
  using S = TestType;
  suite::Random random(12);
  const Mat<S> b = suite::random_matrix<S>(random, 1, 30);
  for (double level : {0.1, 1.0 / 3, -7.7, 1e-20, 1e20}) {
    Mat<S> a = Mat<S>::Constant(1, 30, S(level));
    CHECK(limpid::pearson(a, b) == 0);
    CHECK(limpid::pearson(b, a) == 0);
    CHECK(limpid::pearson(a, a) == 0);
    for (Index j = 0; j < 30; j += 2) a(0, j) = std::nextafter(a(0, j), S(0));
    CHECK(limpid::pearson(a, b) == 0);
    CHECK(limpid::pearson(b, a) == 0);
    a(0, 3) += S(level) * S(1e-3);
    CHECK(limpid::pearson(a, a) > 0.99);
  }
}

TEST_CASE("entries that are no finite numbers: ranks take infinite ones, sums refuse them, nothing hangs") {
  const double inf = std::numeric_limits<double>::infinity();
  Mat<bool> mask(1, 3);
  mask << true, false, true;
  M good(1, 3), bad(1, 3);
  good << 1, 2, 3;
  for (double x : {inf, -inf, std::nan("")})
    for (Index at = 0; at < 3; ++at) {
      bad = good;
      bad(0, at) = x;
      const std::string entry = "entry " + std::to_string(at) + " is ";
      const auto refused = [&](auto&& f, const char* name) {
        const std::string found = suite::error_of(f);
        INFO(name << ": " << found);
        CHECK(found.find(name) == 0);
        CHECK(found.find(entry) != std::string::npos);
        CHECK(found.find("wanted") != std::string::npos);
      };
      refused([&] { limpid::pearson(bad, good); }, "pearson");
      refused([&] { limpid::pearson(good, bad); }, "pearson");
      refused([&] { limpid::gini(bad); }, "gini");
      refused([&] { limpid::relevance_entropy(bad); }, "relevance_entropy");
      refused([&] { limpid::mass_accuracy(bad, mask); }, "mass_accuracy");
      refused([&] { limpid::segmentation(bad, mask); }, "segmentation");
      if (std::isnan(x)) {
        refused([&] { limpid::spearman(bad, good); }, "spearman");
        refused([&] { limpid::pointing(bad, mask); }, "relevance_order");
        continue;
      }
      CHECK(limpid::relevance_order(bad)[x > 0 ? 0 : 2] == at);
      CHECK(std::abs(limpid::spearman(bad, good)) <= 1);
      CHECK(limpid::pointing(bad, mask) == mask(0, limpid::relevance_order(bad)[0]));
    }
  for (double flat : {0.0, 5.0, -1e300, 1e-310}) {
    const M even = M::Constant(1, 3, flat);
    const auto s = limpid::segmentation(even, mask);
    CHECK(std::isfinite(s.mean_iou));
    CHECK(std::isfinite(s.mean_average_precision));
    CHECK(limpid::gini(even) == 0);
    CHECK(std::isfinite(limpid::relevance_entropy(even)));
  }
  M ends(1, 3);
  ends << -1.7e308, 0, 1.7e308;  // whose range overflows
  CHECK(std::isfinite(limpid::segmentation(ends, mask).mean_average_precision));
  M p(1, 2);
  p << 0.5, std::nan("");
  CHECK(suite::error_of([&] {
          limpid::predicted_classes(p);
        }).find("predicted_classes: probability 1 of input 0 is NaN") == 0);
}

namespace {

using Real = long double;

/// How many of r are greater, or as great and earlier: the place of entry j in its order.
Index place(const M& r, Index j) {
  Index before = 0;
  for (Index i = 0; i < r.cols(); ++i) before += r(0, i) > r(0, j) || (r(0, i) == r(0, j) && i < j);
  return before;
}
/// Its rank from 1, counted from below: those that are less, and half of the others that are as great.
M ranks(const M& r) {
  M out(1, r.cols());
  for (Index j = 0; j < r.cols(); ++j) {
    double less = 0, same = 0;
    for (Index i = 0; i < r.cols(); ++i) less += r(0, i) < r(0, j), same += r(0, i) == r(0, j);
    out(0, j) = less + (same + 1) / 2;
  }
  return out;
}
Real over(Real a, Real b) { return b == 0 ? 0 : a / b; }

/// Average precision, a threshold at each value there is.
Real average_precision(const std::vector<std::pair<Real, bool>>& pool) {
  Real all = 0, sum = 0;
  for (const auto& [score, truth] : pool) all += truth;
  for (const auto& [score, truth] : pool) {
    if (!truth) continue;
    Real taken = 0, right = 0;  // with this one's score as the threshold
    for (const auto& other : pool)
      if (other.first >= score) taken += 1, right += other.second;
    sum += right / taken;
  }
  return over(sum, all);
}

}  // namespace

TEST_CASE("scores are their definitions, where many entries are equal, none is on the object, or all are zero") {
  suite::Random random(21);
  for (int times = 0; times < 300; ++times) {
    const Index n = 1 + random.below(12), values = 1 + random.below(4);
    M a(1, n), b(1, n);
    Mat<bool> mask(1, n);
    const Index dense = random.below(4);  // 0: nothing is on the object; 3: everything
    for (Index j = 0; j < n; ++j) {
      a(0, j) = double(random.below(values) - values / 2);
      b(0, j) = double(random.below(values));
      mask(0, j) = random.below(3) < dense;
    }
    INFO("a " << a << ", b " << b << ", mask " << mask);
    Real sum = 0, differences = 0, entropy = 0, positive = 0, on = 0, size = 0, found = 0, least = a(0, 0),
         most = least;
    for (Index i = 0; i < n; ++i) {
      const Real x = a(0, i);
      sum += std::abs(x), positive += std::max<Real>(0, x), size += mask(0, i);
      on += mask(0, i) ? std::max<Real>(0, x) : 0;
      for (Index j = 0; j < n; ++j) differences += std::abs(std::abs(x) - std::abs(Real(a(0, j))));
      least = std::min(least, x), most = std::max(most, x);
    }
    for (Index j = 0; j < n; ++j) {
      if (a(0, j) != 0) entropy -= std::abs(Real(a(0, j))) / sum * std::log(std::abs(Real(a(0, j))) / sum);
      found += mask(0, j) && Real(place(a, j)) < size;
      CHECK(limpid::relevance_order(a)[std::size_t(place(a, j))] == j);
      CHECK(limpid::relevance_order(a, limpid::RemovalOrder::negative)[std::size_t(place(M(-a), j))] == j);
    }
    const auto same = [](double is, Real wanted) {
      return std::abs(Real(is) - wanted) <= 1e-14L * (1 + std::abs(wanted));
    };
    const auto flat = [](const M& r) { return (r.array() == r(0, 0)).all(); };
    const bool none = flat(a) || flat(b);
    CHECK(same(limpid::pearson(a, b), none ? 0 : pearson_by_definition(a, b)));
    CHECK(same(limpid::spearman(a, b), none ? 0 : pearson_by_definition(ranks(a), ranks(b))));
    for (Index k = 1; k <= n; ++k) {
      Real both = 0;
      for (Index j = 0; j < n; ++j) both += place(a, j) < k && place(b, j) < k;
      CHECK(same(limpid::top_k_overlap(a, b, k), both / Real(k)));
    }
    CHECK(same(limpid::gini(a), over(differences, 2 * Real(n) * sum)));
    CHECK(same(limpid::relevance_entropy(a), entropy));
    CHECK(same(limpid::mass_accuracy(a, mask), over(on, positive)));
    CHECK(same(limpid::rank_accuracy(a, mask), over(found, size)));
    for (Index j = 0; j < n; ++j)
      if (place(a, j) == 0) CHECK(limpid::pointing(a, mask) == mask(0, j));

    Real mean = 0, right = 0, hit[2] = {}, either[2] = {}, said = 0;
    std::vector<std::pair<Real, bool>> pool;
    const auto heat = [&](Index j) { return over(Real(a(0, j)) - least, most - least); };
    for (Index j = 0; j < n; ++j) mean += heat(j) / Real(n);
    bool close = false;  // to the mean, where rounding decides
    for (Index j = 0; j < n; ++j) {
      const bool truth = mask(0, j), is = heat(j) > mean;
      close |= most > least && std::abs(heat(j) - mean) < 1e-12L;
      right += truth == is, said += is;
      for (const bool c : {false, true}) hit[c] += truth == c && is == c, either[c] += truth == c || is == c;
      pool.emplace_back(double(1 - heat(j)), !truth), pool.emplace_back(double(heat(j)), truth);
    }
    if (close) continue;
    const limpid::Segmentation s = limpid::segmentation(a, mask);
    CHECK(same(s.pixel_accuracy, right / Real(n)));
    CHECK(same(s.background_iou, over(hit[0], either[0])));
    CHECK(same(s.foreground_iou, over(hit[1], either[1])));
    CHECK(same(s.f1[0], over(2 * hit[1], said + size)));
    // of thirds 1 - 1/3 and 2/3 are not the same number
    if (most - least != 3) CHECK(same(s.average_precision[0], average_precision(pool)));
  }
}

namespace {

/// A model whose answers are given, one a call.
struct Answers {
  std::vector<M> all;
  std::size_t* next;
  M operator()(const M&) const { return all.at((*next)++); }
};

M one_by(double p, double other = 0.25) {
  M out(1, 2);
  out << other, p;
  return out;
}

}  // namespace

TEST_CASE("empty lists and matrices are refused, by name") {
  const M x = random(6, 2, 1), r = random(2, 3, 2), no_rows(0, 3), no_columns(2, 0);
  const Mat<bool> mask(0, 3), narrow(2, 0);
  const auto model = [](const M&) { return M(M::Zero(2, 3)); };
  const limpid::Perturber<double> perturber(x, r, {}, {0, 1}, model);
  CHECK_THROWS_WITH(perturber.curves({.fractions = {}}), "perturbation: no fractions, wanted at least one");
  CHECK_THROWS_WITH(perturber.faithfulness_correlation({}), "perturbation: no subsets, wanted at least one");
  CHECK(perturber.faithfulness_correlation({{}, {}}) == std::vector<double>{0, 0});
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0, 1}, nullptr), "perturbation: no model, wanted a function");
  CHECK_THROWS_AS(limpid::Perturber<double>(x, no_rows, {}, {}, model), limpid::ShapeError);
  CHECK_THROWS_AS(limpid::Perturber<double>(x, no_columns, {}, {0, 1}, model), limpid::ShapeError);
  CHECK_THROWS_WITH(limpid::segmentation(no_rows, mask),
                    "segmentation: got 0 x 3 and 0 x 3, wanted two of the same shape, not empty");
  CHECK_THROWS_WITH(limpid::segmentation(no_columns, narrow),
                    "segmentation: got 2 x 0 and 2 x 0, wanted two of the same shape, not empty");
  CHECK_THROWS_WITH(limpid::predicted_classes(no_columns), "predicted_classes: got 2 x 0, wanted at least one class");
  const auto silent = [](const M&) { return M(2, 0); };
  CHECK_THROWS_WITH(limpid::Perturber<double>(x, r, {}, {0, 1}, silent).curves(),
                    "perturbation: the model returned 2 x 0, wanted 2 rows and a column for every class");
  const std::vector<std::function<void()>> others = {[&] { limpid::pearson(no_rows, no_rows); },
                                                     [&] { limpid::spearman(no_rows, no_rows); },
                                                     [&] { limpid::top_k_overlap(no_rows, no_rows, 1); },
                                                     [&] { limpid::gini(no_rows); },
                                                     [&] { limpid::relevance_entropy(no_rows); },
                                                     [&] { limpid::mass_accuracy(no_rows, mask); },
                                                     [&] { limpid::rank_accuracy(no_rows, mask); },
                                                     [&] { limpid::pointing(no_rows, mask); },
                                                     [&] { limpid::relevance_order(no_rows); }};
  for (const auto& other : others) CHECK(suite::error_of(other).find("not empty") != std::string::npos);
}

TEST_CASE("fractions: in [0, 1], rising, equal ones as well; an area without a span is 0") {
  const M x = random(4, 2, 1), r = random(1, 4, 2);
  const auto model = [](const M&) { return one_by(0.5); };
  const limpid::Perturber<double> perturber(x, r, {}, {1}, model);
  const double inf = std::numeric_limits<double>::infinity();
  for (const double bad : {-0.1, 1.1, inf, -inf, std::nan("")})
    for (const std::vector<double>& list : {std::vector<double>{bad}, {0.5, bad}, {bad, 0.5}, {0.2, bad, 0.4}})
      CHECK(suite::error_of([&] { perturber.curves({.fractions = list}); }).find("perturbation: ") == 0);
  for (const std::vector<double>& list : {std::vector<double>{0.5}, {0.5, 0.5}, {0}, {1}}) {
    const limpid::Perturbation found = perturber.curves({.fractions = list});
    CHECK(found.positive_auc == 0);
    CHECK(found.positive_accuracy == std::vector<double>(list.size(), 1));
    CHECK(found.aopc_comprehensiveness == 0);
  }
}

TEST_CASE("what a model returns: NaN and infinite probabilities are refused with the call that gave them") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const M x = random(2, 2, 1), r = (M(1, 2) << 2, 1).finished();
  const limpid::PerturbationOptions half{.fractions = {0.5}};
  const std::vector<std::string> calls = {"without the 0 most relevant tokens", "with only the 0 most relevant tokens",
                                          "without the 1 most relevant tokens", "with only the 1 most relevant tokens",
                                          "without the 2 most relevant tokens", "with only the 2 most relevant tokens",
                                          "without the 1 least relevant tokens"};
  const auto wanted = [](const char* number, const char* at, const std::string& call) {
    return std::string("perturbation: the model returned ") + number + " for class " + at + " of input 0 " + call +
           ", wanted a finite number";
  };
  for (std::size_t bad = 0; bad < calls.size(); ++bad) {
    std::size_t next = 0;
    Answers answers{std::vector<M>(calls.size(), one_by(0.5)), &next};
    const auto error = [&](const M& answer) {
      next = 0, answers.all[bad] = answer;
      return suite::error_of([&] { limpid::Perturber<double>(x, r, {}, {1}, answers).curves(half); });
    };
    CHECK(error(one_by(nan)).find(" for class 1 of input 0 " + calls[bad] + ", wanted a finite") != std::string::npos);
    CHECK(error(one_by(0.5, nan)).find(" for class 0 of input 0 " + calls[bad]) != std::string::npos);
    CHECK(error(one_by(inf)) == wanted("inf", "1", calls[bad]));
    CHECK(error(one_by(-inf)) == wanted("-inf", "1", calls[bad]));
    CHECK(error(one_by(1.7e308)) == "perturbation: the model returned 1.7e+308 for class 1 of input 0 " + calls[bad] +
                                        ", wanted at most 8.98847e+307 in size");
    CHECK(error(one_by(0.5, -inf)) == "");  // has a rank, and is in no sum
  }
  for (std::size_t bad = 0; bad < 3; ++bad) {
    std::size_t next = 0;
    Answers answers{std::vector<M>(3, one_by(0.5)), &next};
    answers.all[bad] = one_by(inf);
    const std::string call = bad == 0 ? "with all tokens" : "without the tokens of subset " + std::to_string(bad - 1);
    CHECK(suite::error_of([&] {
            limpid::Perturber<double>(x, r, {}, {1}, answers).faithfulness_correlation({{0}, {1}});
          }) == wanted("inf", "1", call));
  }
}

TEST_CASE("curves of numbers of any size have finite areas and means") {
  const M x = random(3, 2, 1), r = random(1, 3, 2);
  for (const double size : {8e307, 1.0, 1e-300}) {
    int sign = 1;
    const auto model = [&](const M&) { return one_by(size * (sign = -sign), -2 * size); };
    const limpid::Perturbation found = limpid::Perturber<double>(x, r, {}, {1}, model).curves({.fractions = {0, 1}});
    INFO("size " << size);
    // deletion is -1 times size each time, insertion 1
    CHECK(found.deletion_auc[0] / size == Approx(-1).epsilon(1e-14));
    CHECK(found.insertion_auc[0] / size == Approx(1).epsilon(1e-14));
    CHECK(found.comprehensiveness(0, 1) == 0);
    CHECK(found.sufficiency(0, 1) == -2 * size);
    CHECK(found.aopc_sufficiency == -2 * size);
    CHECK(found.aopc_comprehensiveness == 0);
  }
}

TEMPLATE_TEST_CASE("faithfulness correlates at any size, and with roundings alone not at all", "", float, double) {
  using S = TestType;
  const Index n = 6;
  const double most = std::numeric_limits<S>::max(), least = std::numeric_limits<S>::min(),
               epsilon = std::numeric_limits<S>::epsilon(), inf = std::numeric_limits<double>::infinity();
  const Mat<S> x = Mat<S>::Ones(n, 1);
  const std::vector<std::vector<Index>> each{{0}, {1}, {2}, {3}, {4}, {5}}, threes{{0, 1, 2}, {3, 4, 5}, {3, 1, 5}};
  const auto found = [&](const Mat<S>& r, const std::vector<std::vector<Index>>& subsets, const Mat<S>& drops,
                         double level) {  // of a model from which token j takes drops(j)
    const auto model = [&](const Mat<S>& in) {
      double p = level;
      for (Index j = 0; j < n; ++j) p -= in(j, 0) == S(0) ? double(drops(0, j)) : 0.0;
      Mat<S> out(1, 1);
      out(0, 0) = S(p);
      return out;
    };
    return limpid::Perturber<S>(x, r, {}, {0}, model).faithfulness_correlation(subsets)[0];
  };
  Mat<S> drops(1, n), r(1, n), flat = Mat<S>::Constant(1, n, S(0.3)), noise = flat;
  drops << S(0.5), S(0.25), S(-0.125), S(0), S(0.375), S(0.0625);
  for (const double size : {most, 1e20, 1.0, 1e-20, least * 64}) {
    INFO("size " << size);
    r = S(size) * drops;
    CHECK(found(r, each, drops, 1) == Approx(1).epsilon(1e-14));
    CHECK(found(r, {{0, 1, 4}, {2, 3}, {5}}, drops, 1) == Approx(1).epsilon(1e-14));  // the first sum may be infinite
    CHECK(found(r, each, r, 0) == Approx(1).epsilon(1e-14));
    CHECK(found(Mat<S>(-r), each, r, 0) == Approx(-1).epsilon(1e-14));
  }
  for (Index j = 0; j < n; j += 2) noise(0, j) = std::nextafter(noise(0, j), S(1));
  CHECK(found(flat, each, drops, 1) == 0);
  CHECK(found(noise, each, drops, 1) == 0);
  CHECK(found(r, each, flat, 1) == 0);
  CHECK(found(r, each, Mat<S>(S(epsilon) * drops), 0.7) == 0);  // what the model's own roundings take
  CHECK(found(r, each, Mat<S>(S(epsilon) * drops), 0) == Approx(1).epsilon(1e-13));
  // sums of the same numbers, in other orders
  r << S(0.1), S(0.2), S(-0.3), S(-0.3), S(0.2), S(0.1);
  CHECK(found(r, threes, drops, 1) == 0);
  r(0, 2) = S(1e6);
  CHECK(found(r, {{0, 2}, {1, 2}, {3, 2}}, drops, 1) != 0);
  for (const double bad : {inf, -inf}) {
    r(0, 4) = S(bad);
    const std::string entry = std::string("perturbation: entry 4 is ") + (bad > 0 ? "" : "-") + "inf, wanted a finite";
    CHECK(suite::error_of([&] { found(r, each, drops, 1); }).find(entry) == 0);
  }
}

TEMPLATE_TEST_CASE("what is constant but for roundings has no ranks and no foreground either", "", float, double) {
  using S = TestType;
  const double inf = std::numeric_limits<double>::infinity();
  Mat<bool> mask = Mat<bool>::Constant(1, 30, false);
  mask.leftCols(7).setConstant(true);
  suite::Random random(12);
  const Mat<S> b = suite::random_matrix<S>(random, 1, 30);
  for (const double level : {0.3, -7.7, 1e-20, 1e20}) {
    Mat<S> a = Mat<S>::Constant(1, 30, S(level));
    for (Index j = 0; j < 30; j += 2) a(0, j) = std::nextafter(a(0, j), S(0));
    const Mat<S> zero = Mat<S>::Zero(1, 30);
    INFO("level " << level);
    CHECK(limpid::spearman(a, b) == 0);
    CHECK(limpid::spearman(b, a) == 0);
    const auto s = limpid::segmentation(a, mask), none = limpid::segmentation(zero, mask);
    CHECK(s.pixel_accuracy == none.pixel_accuracy);
    CHECK(s.foreground_iou == 0);
    CHECK(s.mean_average_precision == none.mean_average_precision);
    a(0, 3) += S(level) * S(1e-3);
    CHECK(limpid::spearman(a, a) == Approx(1).epsilon(1e-14));
    CHECK(limpid::segmentation(a, mask).foreground_iou > 0);
  }
  Mat<S> ends = b;
  ends(0, 4) = S(inf);
  CHECK(limpid::spearman(ends, ends) == Approx(1).epsilon(1e-14));
  ends(0, 9) = S(-inf);
  CHECK(limpid::spearman(ends, ends) == Approx(1).epsilon(1e-14));
  ends.setConstant(S(inf));
  CHECK(limpid::spearman(ends, b) == 0);
}

TEST_CASE("average precision: thresholds that roundings alone keep apart are one, whatever a map's scale and level") {
  Mat<bool> mask(1, 6);
  mask << true, false, true, true, false, false;
  // H, in thirds, 0 1 2 3 1 2 and what is left to 3: of 2 at one 1 is right, of 6 from 2/3 on 4, of 10 5, of all 6
  const double wanted = (1 * 1.0 / 2 + 3 * 4.0 / 6 + 1 * 5.0 / 10 + 1 * 6.0 / 12) / 6;
  for (const double scale : {1.0, 3.0, 0.1, 7e-5})
    for (const double level : {0.0, 1.0, 0.3, -0.7}) {
      M heat(1, 6);
      heat << 0, 1, 2, 3, 1, 2;
      heat = (heat.array() * scale + level).matrix();
      INFO(scale << " from " << level);
      CHECK(limpid::segmentation(heat, limpid::View<bool>(mask)).average_precision[0] == Approx(wanted).epsilon(1e-12));
    }
}

TEST_CASE("entropy of a share that is all but one keeps its digits") {
  for (const double rest : {1e-3, 1e-9, 1e-17, 1e-40}) {
    M a(1, 3);
    a << rest / 2, -1, rest / 2;
    const Real small = Real(rest) / 2 / (1 + Real(rest));
    const Real wanted = -2 * small * std::log(small) + std::log1p(Real(rest)) / (1 + Real(rest));
    CHECK(limpid::relevance_entropy(a) == Approx(double(wanted)).epsilon(1e-14));
  }
}

TEMPLATE_TEST_CASE("equal entries, of any size and number, have no concentration, all of the entropy, no correlation",
                   "", float, double) {
  using S = TestType;
  for (const Index n : {1, 2, 3, 7, 49, 100, 1000, 100000}) {
    const Mat<bool> mask = Mat<bool>::Constant(1, n, true), off = Mat<bool>::Constant(1, n, false);
    Mat<S> other(1, n);
    for (Index j = 0; j < n; ++j) other(0, j) = S(j % 17) - 8;
    for (const double level : {0.0, 0.1, 1.0 / 3, -7.7, 1e30, -1e-40, double(std::numeric_limits<S>::max())}) {
      const Mat<S> even = Mat<S>::Constant(1, n, S(level));
      INFO(n << " entries of " << level);
      const bool some = even(0, 0) != S(0);
      CHECK(limpid::gini(even) == 0);
      CHECK(limpid::relevance_entropy(even) ==
            (some ? Approx(std::log(double(n))).epsilon(1e-10).margin(0) : Approx(0)));
      CHECK(limpid::pearson(even, other) == 0);
      CHECK(limpid::pearson(other, even) == 0);
      CHECK(limpid::spearman(even, other) == 0);
      CHECK(limpid::spearman(even, even) == 0);
      CHECK(limpid::mass_accuracy(even, mask) == (even(0, 0) > S(0) ? 1 : 0));
      CHECK(limpid::mass_accuracy(even, off) == 0);
      CHECK(limpid::rank_accuracy(even, mask) == 1);
      CHECK(limpid::rank_accuracy(even, off) == 0);
      CHECK(limpid::pointing(even, mask));
      for (const Index k : {Index(1), (n + 1) / 2, n}) CHECK(limpid::top_k_overlap(even, even, k) == 1);
      const auto s = limpid::segmentation(even, mask);
      CHECK((s.pixel_accuracy == 0 && s.mean_iou == 0 && s.f1[0] == 0));
      CHECK(s.mean_average_precision == Approx(0.5));
    }
  }
}

TEST_CASE("gini is the mean difference over twice the mean, also where entries are all but equal") {
  suite::Random random(3);
  for (const double spread : {1.0, 1e-3, 1e-9, 1e-15}) {
    M a(1, 40);
    for (Index j = 0; j < 40; ++j) a(0, j) = 1 + spread * random.uniform(0, 1);
    Real sum = 0, differences = 0;
    for (Index i = 0; i < 40; ++i) {
      sum += a(0, i);
      for (Index j = 0; j < 40; ++j) differences += std::abs(Real(a(0, i)) - Real(a(0, j)));
    }
    INFO("spread " << spread);
    CHECK(std::abs(Real(limpid::gini(a)) / (differences / (80 * sum)) - 1) < 1e-14L);
  }
}

TEST_CASE("overlap of the first k of many: counted, ties in the order of their places") {
  const Index n = 200000;
  M a(1, n), b(1, n);
  for (Index j = 0; j < n; ++j) a(0, j) = double(n - j), b(0, j) = double(j / 2 % 5 == 0);  // j / 2 % 5: ties
  for (const Index k : {1, 10, 40000, 100000, 200000}) {
    Index both = 0, ones = n / 5;
    for (Index j = 0, other = 0; j < n; ++j) {
      const bool one = b(0, j) == 1;
      const Index place = one ? j / 10 * 2 + j % 2 : ones + other;
      other += !one;
      both += j < k && place < k;
    }
    CHECK(limpid::top_k_overlap(a, b, k) == double(both) / double(k));
  }
}

TEST_CASE("a subset that lists a token twice is refused before the model is called; subsets may repeat each other") {
  const M x = random(4, 2, 1), r = random(1, 4, 2);
  Index calls = 0;
  const auto model = [&](const M& in) {
    ++calls;
    return one_by(in.sum());
  };
  const limpid::Perturber<double> perturber(x, r, {}, {1}, model);
  CHECK_THROWS_WITH(perturber.faithfulness_correlation({{0, 1}, {3, 2, 3}}),
                    "perturbation: token 3 is in subset 1 more than once, wanted it once");
  CHECK_THROWS_WITH(perturber.faithfulness_correlation({{2, 2}}),
                    "perturbation: token 2 is in subset 0 more than once, wanted it once");
  CHECK(calls == 0);
  CHECK(perturber.faithfulness_correlation({{0, 1}, {1, 0}, {0, 2}}).size() == 1);
  CHECK(calls == 4);
}

namespace {

/// Probabilities of a class that fall by what is removed, and by pairs of it: a number for every set of tokens.
struct Falling {
  Index n;
  M own, pairs;
  mutable Index calls = 0;
  explicit Falling(Index n_) : n(n_), own(random(1, n_, 5)), pairs(random(n_, n_, 6)) {}
  double drop(const std::vector<bool>& gone) const {
    double sum = 0;
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j)
        if (gone[std::size_t(i)] && gone[std::size_t(j)]) sum += i == j ? own(0, i) : pairs(i, j) / 4;
    return sum / 20;
  }
  M operator()(const M& x) const {
    ++calls;
    M p(x.rows() / n, 2);
    for (Index b = 0; b < p.rows(); ++b) {
      std::vector<bool> gone;
      for (Index i = 0; i < n; ++i) gone.push_back(x(b * n + i, 0) == 0);
      p(b, 0) = 0.5 - (b == 0 ? drop(gone) : 0), p(b, 1) = 1 - p(b, 0);
    }
    return p;
  }
};

}  // namespace

TEST_CASE("SaCo: one where groups matter as they are said to, minus one where they matter the other way round") {
  constexpr Index n = 6;
  const M x = M::Ones(2 * n, 1);
  M r(2, n);
  r << 6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6;
  const auto model = [](const M& at) {
    M p(2, 2);
    for (Index b = 0; b < 2; ++b) {
      p(b, 0) = 0;
      for (Index i = 0; i < n; ++i) p(b, 0) += 0.01 * double(n - i) * at(b * n + i, 0);
      p(b, 1) = 1 - p(b, 0);
    }
    return p;
  };
  const limpid::Perturber<double> perturber(x, r, {}, {0, 0}, model);
  for (const Index groups : {2, 3, 6}) {
    const auto found = perturber.saco(groups);
    CHECK(found[0] == 1);
    CHECK(found[1] == -1);
  }
  // By hand: relevance of the groups 5, 3, 1; what they take 0.1, 0.3, 0.2: (0.5 - 0.3) - ... pairs -2, -4, +2 of 8.
  M y = M::Ones(3, 1), s(1, 3);
  s << 5, 3, 1;
  const auto three = [](const M& at) {
    M p(1, 1);
    p << 0.1 * at(0, 0) + 0.3 * at(1, 0) + 0.2 * at(2, 0);
    return p;
  };
  CHECK(limpid::Perturber<double>(y, s, {}, {0}, three).saco(3)[0] == Approx((-2.0 - 4 + 2) / 8).epsilon(1e-14));
  const M flat = M::Ones(2, n);
  CHECK(limpid::Perturber<double>(x, flat, {}, {0, 0}, model).saco(3)[0] == 0);
  CHECK_THROWS_WITH(perturber.saco(1), "perturbation: 1 groups, wanted from 2 to 6");
  CHECK_THROWS_WITH(perturber.saco(7), "perturbation: 7 groups, wanted from 2 to 6");
}

TEST_CASE("limits of the area over the deletion curve: those of all orders, and what a beam says lies between them") {
  const Index n = 5;
  const Falling model(n);
  const M x = M::Ones(2 * n, 1), r = random(2, n, 9);
  const limpid::Perturber<double> perturber(x, r, {}, {0, 0}, model);
  double lowest = 1, highest = -1;
  std::vector<Index> order(5);
  std::iota(order.begin(), order.end(), Index(0));
  do {
    std::vector<bool> gone(std::size_t(n), false);
    double area = 0;
    for (const Index j : order) gone[std::size_t(j)] = true, area += model.drop(gone) / double(n);
    lowest = std::min(lowest, area), highest = std::max(highest, area);
  } while (std::next_permutation(order.begin(), order.end()));
  const auto exact = perturber.aopc_limits(10), greedy = perturber.aopc_limits(1);
  CHECK(exact.lowest[0] == Approx(lowest).epsilon(1e-12));
  CHECK(exact.highest[0] == Approx(highest).epsilon(1e-12));
  CHECK(std::abs(exact.highest[1]) < 1e-15);
  CHECK(greedy.highest[0] <= exact.highest[0] + 1e-15);
  std::vector<bool> gone(5, false);
  double best_first = 0;  // the token that takes most, then the next one
  for (Index k = 0; k < n; ++k) {
    std::vector<bool> best;
    for (std::size_t j = 0; j < gone.size(); ++j) {
      std::vector<bool> more = gone;
      more[j] = true;
      if (!gone[j] && (best.empty() || model.drop(more) > model.drop(best))) best = more;
    }
    gone = best, best_first += model.drop(gone) / double(n);
  }
  CHECK(greedy.highest[0] == Approx(best_first).epsilon(1e-12));
  CHECK(greedy.lowest[0] >= exact.lowest[0] - 1e-15);
  CHECK(limpid::normalised(0.3, 0.1, 0.5) == Approx(0.5));
  CHECK(limpid::normalised(0.3, 0.3, 0.3) == 0);
  CHECK_THROWS_WITH(perturber.aopc_limits(0), "perturbation: beam is 0, wanted at least 1");
}

TEST_CASE("bootstrap: the interval of a mean, wider for fewer values, the same for a seed") {
  std::vector<double> values;
  suite::Random draw(3);
  const M numbers = suite::random_matrix<double>(draw, 1, 400);  // uniform in [-1, 1): deviation 1 / sqrt 3
  for (Index i = 0; i < 400; ++i) values.push_back(numbers(0, i));
  const auto all = limpid::bootstrap_mean(values), again = limpid::bootstrap_mean(values);
  const double width = 2 * 1.96 / std::sqrt(3.0 * 400);
  CHECK(all.mean == Approx(numbers.mean()));
  CHECK(all.low == again.low);
  CHECK(all.high - all.low == Approx(width).epsilon(0.1));
  CHECK(all.low < all.mean);
  CHECK((all.mean - all.low) / (all.high - all.mean) == Approx(1).epsilon(0.1));
  CHECK(all.mean < all.high);
  const auto few = limpid::bootstrap_mean({values.begin(), values.begin() + 25});
  CHECK(few.high - few.low > 2 * (all.high - all.low));
  CHECK(limpid::bootstrap_mean(values, 0.5).low > all.low);
  const auto one = limpid::bootstrap_mean({2.5});
  CHECK((one.low == 2.5 && one.high == 2.5));
  CHECK_THROWS_WITH(limpid::bootstrap_mean({}), "bootstrap_mean: no values, wanted at least one");
  CHECK_THROWS_WITH(limpid::bootstrap_mean({std::nan("")}), "bootstrap_mean: a value is nan");
  CHECK_THROWS_WITH(limpid::bootstrap_mean({1}, 1), "bootstrap_mean: level is 1, wanted it in (0, 1)");
}

TEST_CASE("chance, shuffled weights and inputs near by") {
  const M chance = limpid::random_relevance(2, 500, 4);
  CHECK(chance == limpid::random_relevance(2, 500, 4));
  CHECK(chance != limpid::random_relevance(2, 500, 5));
  CHECK(std::abs(chance.mean() - 0.5) < 0.05);
  CHECK((chance.minCoeff() >= 0 && chance.maxCoeff() < 1));
  M w = random(7, 5, 3);
  const M before = w;
  limpid::shuffle_entries(w, 1);
  CHECK(w != before);
  std::vector<double> a(w.data(), w.data() + w.size()), b(before.data(), before.data() + before.size());
  std::sort(a.begin(), a.end()), std::sort(b.begin(), b.end());
  CHECK(a == b);
  const M x = random(4, 3, 8);
  const auto twice = [](limpid::View<double> at) { return M(2 * at.map()); };
  const double moved = limpid::max_sensitivity(twice, x, {.radius = 0.1, .samples = 20});
  CHECK(moved > 0.02 / x.norm());
  CHECK(moved <= 0.1 * std::sqrt(12.0) / x.norm());
  const auto same = [](limpid::View<double>) { return M(M::Ones(1, 3)); };
  CHECK(limpid::max_sensitivity(same, x) == 0);
  for (const double size : {1e-320, 1e-170, 1e200, 1e307}) {
    const auto far = [&](limpid::View<double> at) { return M(size * at.map()); };
    const double tolerance = size < 1e-300 ? 0.02 : 1e-12;  // few digits are left there
    CHECK(limpid::max_sensitivity(far, x, {.radius = 0.1, .samples = 20}) == Approx(moved).epsilon(tolerance));
  }
  const Mat<float> single = x.cast<float>();
  const auto low = [](limpid::View<float> at) { return Mat<float>(1e-25f * at.map()); };
  CHECK(limpid::max_sensitivity(low, single, {.radius = 0.1, .samples = 20}) == Approx(moved).epsilon(1e-5));
  CHECK_THROWS_WITH(limpid::max_sensitivity(same, x, {.samples = 0}),
                    "max_sensitivity: samples are 0, wanted at least 1");
}
