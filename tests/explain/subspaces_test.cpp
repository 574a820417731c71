// limpid: shares of energy, signal-to-noise ratios and coding rates by their formulas, rows of zeros included.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/subspaces.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

using limpid::Index;
using limpid::Mat;
using Real = long double;

namespace {

template <class S>
Real projected(const Mat<S>& x, Index i, const Mat<S>& u, Index column) {
  Real sum = 0;
  for (Index c = 0; c < x.cols(); ++c) sum += Real(x(i, c)) * Real(u(c, column));
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("subspace_energy: the share of a row's energy in every subspace; a row of zeros has none.", "",
                   float, double) {
  using S = TestType;
  suite::Random random(1);
  for (const Index classes : {1, 2, 3}) {
    const Index n = 37, dim = 11, p = 2;
    Mat<S> x = suite::random_matrix<S>(random, n, dim), u = suite::random_matrix<S>(random, dim, classes * p);
    x.row(0).setZero();
    x.row(20).setZero();
    Mat<S> out = Mat<S>::Constant(n, classes, S(7));
    limpid::subspace_energy(x, u, out);
    for (Index i = 0; i < n; ++i)
      for (Index k = 0; k < classes; ++k) {
        Real all = 0, inside = 0;
        for (Index c = 0; c < dim; ++c) all += Real(x(i, c)) * Real(x(i, c));
        for (Index j = 0; j < p; ++j) inside += projected(x, i, u, k * p + j) * projected(x, i, u, k * p + j);
        INFO(classes << " classes, row " << i << ", class " << k);
        if (all == 0)
          CHECK(out(i, k) == 0);
        else
          CHECK(std::abs(Real(out(i, k)) - inside / all) <=
                32 * std::numeric_limits<S>::epsilon() * (1 + inside / all));
      }
    Mat<S> wrong(n - 1, classes);
    CHECK_THROWS_AS(limpid::subspace_energy(x, u, wrong), limpid::ShapeError);
  }
}

TEST_CASE("subspace_data: orthonormal bases, classes in turn, noise of the size asked for; its ratio by the formula.") {
  limpid::SubspaceDataOptions options;
  options.tokens = 50, options.classes = 3, options.width = 4, options.dim = 15, options.delta = 0.1;
  const auto data = limpid::subspace_data<double>(options);
  REQUIRE(data.labels.size() == 50);
  for (std::size_t i = 0; i < data.labels.size(); ++i) CHECK(data.labels[i] == Index(i) % 3);
  for (Index a = 0; a < data.u.cols(); ++a)
    for (Index b = 0; b < data.u.cols(); ++b)
      CHECK(std::abs(limpid::detail::dot(Mat<double>(data.u.col(a)).data(), Mat<double>(data.u.col(b)).data(), 15) -
                     (a == b ? 1 : 0)) < 1e-14);
  Mat<double> share(50, 3);
  limpid::subspace_energy(data.x, data.u, share);
  for (Index i = 0; i < 50; ++i) CHECK(share(i, i % 3) > 0.7);
  const auto snr = limpid::subspace_snr(data.x, data.u, data.labels, 3);
  for (Index k = 0; k < 3; ++k) {
    Real signal = 0, noise = 0;
    for (Index i = 0; i < 50; ++i) {
      if (data.labels[static_cast<std::size_t>(i)] != k) continue;
      for (Index c = 0; c < 15; ++c) {
        Real s = 0;
        for (Index j = 0; j < 4; ++j) s += projected(data.x, i, data.u, k * 4 + j) * Real(data.u(c, k * 4 + j));
        signal += s * s, noise += (Real(data.x(i, c)) - s) * (Real(data.x(i, c)) - s);
      }
    }
    CHECK(std::abs(Real(snr[static_cast<std::size_t>(k)]) / std::sqrt(signal / noise) - 1) < 1e-12L);
  }
  auto labels = data.labels;
  for (const Index wrong : {Index(-1), Index(3)}) {
    labels[7] = wrong;
    CHECK_THROWS_AS(limpid::subspace_snr(data.x, data.u, labels, 3), limpid::ShapeError);
  }
  labels.pop_back();
  CHECK_THROWS_AS(limpid::subspace_snr(data.x, data.u, labels, 3), limpid::ShapeError);
}

TEST_CASE(
    "A row of zeros stays one in a normalised coding rate, and gets no gradient; gradients are added where asked.") {
  suite::Random random(2);
  for (const auto& [n, d] : std::vector<std::pair<Index, Index>>{{6, 9}, {9, 4}}) {
    Mat<double> x = suite::random_matrix<double>(random, n, d);
    x.row(2).setZero();
    Mat<double> unit = x;
    for (Index i = 0; i < n; ++i)
      if (i != 2) unit.row(i) /= std::sqrt(limpid::detail::dot(x.row(i).data(), x.row(i).data(), d));
    const limpid::CodingRateOptions plain{.eps2 = 0.1}, normal{.eps2 = 0.1, .normalise = true};
    CHECK(std::abs(limpid::coding_rate(x, normal) - limpid::coding_rate(unit, plain)) < 1e-13);
    Mat<double> dx = Mat<double>::Constant(n, d, 7), more = Mat<double>::Constant(n, d, 0.5);
    limpid::coding_rate_backward(x, 1.3, dx, normal);
    limpid::coding_rate_backward(x, 1.3, more, normal, {.accumulate = true});
    for (Index c = 0; c < d; ++c) CHECK(dx(2, c) == 0);
    CHECK(suite::distance(more, Mat<double>(dx.array() + 0.5)) < 1e-14);
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < d && i != 2; ++c) {
        const double h = 1e-5, at = x(i, c);
        x(i, c) = at + h;
        const double up = limpid::coding_rate(x, normal);
        x(i, c) = at - h;
        const double down = limpid::coding_rate(x, normal);
        x(i, c) = at;
        CHECK(std::abs(dx(i, c) - 1.3 * (up - down) / (2 * h)) < 1e-7);
      }
  }
}

TEST_CASE("Measurements of nothing: no tokens, or tokens of no width, cost no nats, and have no entries to count.") {
  for (const auto& [n, d] : std::vector<std::pair<Index, Index>>{{0, 6}, {5, 0}, {0, 0}})
    for (const bool normalise : {false, true}) {
      INFO(n << " x " << d << ", normalise " << normalise);
      const limpid::CodingRateOptions options{.normalise = normalise};
      const Mat<double> x(n, d), u = Mat<double>::Ones(d, 4);
      Mat<double> dx(n, d), du = Mat<double>::Constant(d, 4, 7), share(n, 2);
      CHECK(limpid::coding_rate(x, options) == 0);
      limpid::coding_rate_backward(x, 1, dx, options);
      CHECK(limpid::subspace_coding_rate(x, u, options) == 0);
      limpid::subspace_coding_rate_backward(x, u, 1, dx, du, options);
      CHECK(du.isZero(0));
      CHECK(limpid::nonzero_share(x) == 0);
      const auto measured = limpid::rate_reduction(x, u, options);
      CHECK((measured.rate == 0 && measured.rate_c == 0 && measured.nonzero == 0 && measured.entries == 0));
      limpid::subspace_energy(x, u, share);
      CHECK(share.isZero(0));
    }
  // a class without tokens has no ratio, one without noise an infinite one
  const Mat<double> u = Mat<double>::Identity(3, 3), x = 2 * Mat<double>::Identity(3, 3).topRows(1);
  const auto snr = limpid::subspace_snr(x, u, {0}, 3);
  CHECK(std::isinf(snr[0]));
  CHECK((std::isnan(snr[1]) && std::isnan(snr[2])));
}

namespace {

using R = Mat<Real>;

/// a^-1 b by elimination with the largest pivots.
R solved(R a, R b) {
  for (Index k = 0; k < a.rows(); ++k) {
    Index pivot = k;
    for (Index i = k; i < a.rows(); ++i)
      if (std::abs(a(i, k)) > std::abs(a(pivot, k))) pivot = i;
    a.row(k).swap(a.row(pivot)), b.row(k).swap(b.row(pivot));
    for (Index i = 0; i < a.rows(); ++i) {
      if (i == k) continue;
      const Real factor = a(i, k) / a(k, k);
      a.row(i) -= factor * a.row(k), b.row(i) -= factor * b.row(k);
    }
  }
  for (Index k = 0; k < a.rows(); ++k) b.row(k) /= a(k, k);
  return b;
}

/// The rate of x in subspaces of p columns of u, and its gradients, by loops over long double.
struct RateByHand {
  Real value = 0;
  R dx, du;
  RateByHand(const R& x, const R& u, Index p, Real eps2, bool normalise) {
    const Index n = x.rows();
    dx.setZero(n, x.cols()), du.setZero(u.rows(), u.cols());
    for (Index k = 0; k < u.cols() / p; ++k) {
      const R uk = u.middleCols(k * p, p);
      R y = suite::product(x, uk);
      R norm = R::Ones(n, 1);
      for (Index i = 0; i < n && normalise; ++i) {
        norm(i, 0) = std::sqrt(y.row(i).squaredNorm());
        if (norm(i, 0) > 0) y.row(i) /= norm(i, 0);
      }
      const Real alpha = Real(p) / (Real(n) * eps2);
      const R gram = alpha * suite::product_tn(y, y);
      R left = gram;  // I + left, by elimination that never adds the 1
      for (Index e = 0; e < p; ++e) {
        value += std::log1p(left(e, e)) / 2;
        for (Index i = e + 1; i < p; ++i)
          for (Index j = e + 1; j < p; ++j) left(i, j) -= left(i, e) * left(e, j) / (1 + left(e, e));
      }
      R d = alpha * solved(R::Identity(p, p) + gram, y.transpose()).transpose();
      for (Index i = 0; i < n && normalise; ++i)
        if (norm(i, 0) > 0) d.row(i) = (d.row(i) - d.row(i).cwiseProduct(y.row(i)).sum() * y.row(i)) / norm(i, 0);
      dx += suite::product_nt(d, uk), du.middleCols(k * p, p) += suite::product_tn(x, d);
    }
  }
};

/// Whether all is right, a row of each its own size, to so many roundings or a few of the smallest numbers.
template <class S>
void check_rows(const Mat<S>& found, const R& wanted, Real roundings) {
  using Limits = std::numeric_limits<S>;
  for (Index i = 0; i < wanted.rows(); ++i) {
    const Real bound =
        roundings * Limits::epsilon() * wanted.row(i).cwiseAbs().maxCoeff() + 4 * Real(Limits::denorm_min());
    for (Index c = 0; c < wanted.cols(); ++c) {
      INFO("row " << i << ", column " << c << ": " << found(i, c) << ", wanted " << double(wanted(i, c)));
      if (std::abs(wanted(i, c)) > Real(Limits::max()))
        CHECK((std::isinf(found(i, c)) && (found(i, c) > 0) == (wanted(i, c) > 0)));
      else
        CHECK(std::abs(Real(found(i, c)) - wanted(i, c)) <= bound);
    }
  }
}

/// Rows of a size each, so large that no entry overflows.
template <class S>
Mat<S> rows_of_sizes(suite::Random& random, Index n, Index dim, const std::vector<double>& sizes) {
  Mat<S> x = suite::random_matrix<S>(random, n, dim);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < dim; ++c) x(i, c) = S(double(x(i, c)) * sizes[std::size_t(i) % sizes.size()]);
  return x;
}

const std::vector<std::vector<double>> float_sizes = {{3.4e38},          {1e25}, {1}, {1e-25}, {1e-40}, {2e-44},
                                                      {3.4e38, 1, 1e-40}};

}  // namespace

TEST_CASE("Shares of energy and coding rates of float tokens at either end: value and gradients") {
  suite::Random random(7);
  const Index n = 12, dim = 6, p = 2;
  const Mat<float> u = suite::random_matrix<float>(random, dim, 3 * p);
  for (const auto& sizes : float_sizes) {
    Mat<float> x = rows_of_sizes<float>(random, n, dim, sizes), share(n, 3);
    x.row(5).setZero();
    INFO("tokens of " << sizes[0] << " and " << sizes.size() - 1 << " other sizes");
    const R xr = x.cast<Real>(), ur = u.cast<Real>(), y = suite::product(xr, ur);
    R wanted = R::Zero(n, 3);
    for (Index i = 0; i < n; ++i)
      for (Index k = 0; k < 3 && i != 5; ++k)
        wanted(i, k) = y.row(i).segment(k * p, p).squaredNorm() / xr.row(i).squaredNorm();
    limpid::subspace_energy(x, u, share);
    check_rows(share, wanted, 64);
    for (const bool normalise : {false, true})
      for (const bool accumulate : {false, true}) {
        const limpid::CodingRateOptions options{.eps2 = 0.1, .normalise = normalise, .heads = 3};
        INFO("normalise " << normalise << ", accumulate " << accumulate);
        const RateByHand right(xr, ur, p, 0.1, normalise);
        // logarithms have the roundings of what they are of; small ones those of squares
        CHECK(std::abs(limpid::subspace_coding_rate(x, u, options) - double(right.value)) <=
              1e-5 * std::min(1.0, double(right.value)) + 1e-320);
        Mat<float> dx = Mat<float>::Constant(n, dim, accumulate ? 0.5F : 7), du = Mat<float>::Constant(dim, 3 * p, 7);
        if (accumulate) du.setConstant(0.5F);
        limpid::subspace_coding_rate_backward(x, u, 1.5, dx, du, options, {.accumulate = accumulate});
        const auto added = [&](const R& d) {
          return accumulate ? R(1.5L * d + R::Constant(d.rows(), d.cols(), 0.5L)) : R(1.5L * d);
        };
        check_rows(dx, added(right.dx), 512);
        check_rows(du, added(right.du), 512);
        Mat<float> alone = dx;
        limpid::subspace_coding_rate_backward(x, u, 1.5, alone, {}, options);
        if (!accumulate) CHECK(alone == dx);
      }
  }
}
