// limpid: scores of explanations: what their definitions imply. The numbers are held by the golden cases.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/explain/metrics.hpp>

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
  CHECK(std::abs(limpid::gini(same)) < 1e-15);
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
    CHECK(limpid::pearson(a, a) == 0);
    for (Index j = 0; j < 30; j += 2) a(0, j) = std::nextafter(a(0, j), S(0));
    CHECK(limpid::pearson(a, b) == 0);
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
