// limpid: tests of the ISTA step, the CRATE block, coding rates and the share of energy in subspaces.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/layer/crate.hpp>

#include "layer_gradient.hpp"
#include "support/distance.hpp"
#include "support/linear_algebra.hpp"
#include "support/products.hpp"

namespace {

using limpid::CodingRateOptions, limpid::CrateArgs, limpid::Index, limpid::Ista, limpid::IstaArgs, limpid::Mat,
    limpid::mssa;
using suite::distance;
using suite::product, suite::product_nt, suite::product_tn;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}
M orthonormal(Index rows, Index cols, std::uint64_t seed) { return suite::orthonormal(random(rows, rows, seed), cols); }
M relu(const M& x) { return x.cwiseMax(0); }

Ista plain_ista(double eta, double lambda) { return {eta, lambda, false, 1e-5}; }
M ista(const Ista& step, const M& x, const M& dictionary) {
  M out = x;
  step.forward({.x = x, .dictionary = dictionary}, out);
  return out;
}
/// 1/2 logdet(I + alpha x^T x) by eigenvalues.
double plain_rate(const M& x, double eps2) {
  const double alpha = static_cast<double>(x.cols()) / (static_cast<double>(x.rows()) * eps2);
  double sum = 0;
  for (double value : suite::symmetric_eigenvalues(product_tn(x, x))) sum += 0.5 * std::log(1 + alpha * value);
  return sum;
}

double rate_of(const M& x) { return limpid::coding_rate(x); }

}  // namespace

TEST_CASE("ista: eta 0, the identity, an orthogonal dictionary and a huge lambda are what they must be") {
  const M x = random(11, 8, 1), w = random(8, 8, 2), eye = M::Identity(8, 8), q = orthonormal(8, 8, 3);
  CHECK(distance(ista(plain_ista(0, 0.1), x, w), relu(x)) == 0);
  CHECK(distance(ista(plain_ista(0.7, 0.1), x, eye), relu(x.array() - 0.07)) < 1e-15);
  CHECK(distance(ista(plain_ista(0.3, 0), x, q), relu(0.7 * x + 0.3 * product(x, q))) < 1e-14);
  CHECK(ista(plain_ista(0.1, 1e6), x, w).isZero(0));
  M out = x;
  limpid::IstaSaved<double> saved;
  IstaArgs<M> p{x, w, {}, {}, {}, {}}, g = p;
  plain_ista(0.1, 1e6).forward(p, out, {.saved = &saved});
  plain_ista(0.1, 1e6).backward(p, saved, x, g);
  CHECK(g.x.isZero(0));
  CHECK(g.dictionary.isZero(0));
}

TEST_CASE("ista: a token that is not finite shows, in its own row alone") {
  const M x = random(11, 9, 1), w = random(9, 9, 2), fine = ista(plain_ista(0.1, 0.1), x, w);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()})
    for (const Index at : {Index(0), Index(8)}) {
      M odd = x;
      odd(5, at) = bad;
      const M out = ista(plain_ista(0.1, 0.1), odd, w);
      for (Index i = 0; i < 11; ++i) {
        if (i == 5 && std::isnan(bad)) CHECK(out.row(i).array().isNaN().all());
        if (i != 5) CHECK(distance(out.row(i), fine.row(i)) == 0);
      }
    }
}

TEST_CASE("ista does not raise its objective where tokens are not negative and eta is at most 1 / |W|^2") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const M b = random(6, 5, 3 * seed + 1).cwiseAbs(), w = random(5, 5, 3 * seed + 2);
    const double eta = 1 / suite::symmetric_eigenvalues(product_tn(w, w)).back(), lambda = 0.2;
    const auto objective = [&](const M& z) { return 0.5 * (b - product_nt(z, w)).squaredNorm() + lambda * z.sum(); };
    CHECK(objective(ista(plain_ista(eta, lambda), b, w)) <= objective(b) + 1e-12);
  }
}

TEST_CASE("ista: what no forward call has filled, or one without norm, is refused") {
  const M x = random(7, 6, 1), w = random(6, 6, 2), dout = random(7, 6, 3);
  M out(7, 6), dx(7, 6);
  limpid::IstaSaved<double> saved;
  IstaArgs<limpid::View<double>> in;
  in.x = x, in.dictionary = w;
  IstaArgs<limpid::MutView<double>> grad;
  grad.x = dx;
  CHECK_THROWS_WITH(Ista{}.backward(in, saved, dout, grad), Catch::Contains("residual of 0 x 0, wanted 7 x 6"));
  plain_ista(0.1, 0.1).forward(in, out, {1, &saved});
  CHECK_THROWS_WITH(Ista{}.backward(in, saved, dout, grad), Catch::Contains("ista: saved is of a norm of 0 x"));
  Ista{}.forward(in, out, {1, &saved});
  Ista{}.backward(in, saved, dout, grad);
}

TEST_CASE("ista and crate: central differences agree for every parameter") {
  IstaArgs<M> p{random(7, 6, 1), random(6, 6, 2),        random(1, 6, 3),
                random(1, 6, 4), M::Constant(1, 1, 0.3), M::Constant(1, 1, 0.2)};
  suite::check_layer_gradient<IstaArgs>(Ista{}, p, 7, 6);
  p.gamma.resize(0, 0), p.beta.resize(0, 0);
  suite::check_layer_gradient<IstaArgs>(plain_ista(0.1, 0.1), p, 7, 6);
  CrateArgs<M> c{random(10, 6, 1),
                 random(1, 6, 2),
                 random(1, 6, 3),
                 random(6, 4, 4),
                 random(4, 6, 5),
                 random(1, 6, 6),
                 random(1, 6, 7),
                 random(1, 6, 8),
                 random(6, 6, 9),
                 {},
                 {}};
  suite::check_layer_gradient<CrateArgs>(limpid::crate(mssa(limpid::causal()), {.heads = 2}), c, 10, 6, 2);
}

TEST_CASE("crate is attention with a skip, then ista of what comes out") {
  const M x = random(8, 6, 1), u = random(6, 6, 2), wo = random(6, 6, 3), w = random(6, 6, 4);
  M h = x, want = x, out = x;
  limpid::aot(mssa(), {.heads = 3}).forward({.x = x, .u = u, .wo = wo}, h);
  Ista{0.1, 0.5, true, 1e-5}.forward({.x = h, .dictionary = w}, want);
  limpid::crate(mssa(), {.heads = 3, .lambda = 0.5}).forward({.x = x, .u = u, .wo = wo, .dictionary = w}, out);
  CHECK(distance(out, want) == 0);
  CHECK((out.array() >= 0).all());
  CHECK_THROWS_WITH(Ista{}.forward({.x = x, .dictionary = u.leftCols(5)}, out),
                    "ista: dictionary is 6 x 5, wanted 6 x 6, square as x has columns");
}

TEST_CASE(
    "coding rate: both determinants, few and many tokens, agree with eigenvalues, and the gradient with differences") {
  for (Index n : {1, 4, 9, 30}) {
    M x = random(n, 9, static_cast<std::uint64_t>(n));
    for (bool normalise : {false, true}) {
      const CodingRateOptions options{.eps2 = 0.3, .normalise = normalise};
      const M measured = normalise ? M(x.rowwise().normalized()) : x;
      CHECK(std::abs(limpid::coding_rate(x, options) - plain_rate(measured, 0.3)) < 1e-12);
      M dx = x;
      limpid::coding_rate_backward(x, 1.7, dx, options);
      CHECK(distance(limpid::numeric_gradient(x, [&] { return 1.7 * limpid::coding_rate(x, options); }), dx) < 1e-9);
      const M once = dx;
      limpid::coding_rate_backward(x, 1.7, dx, options, {.accumulate = true});
      CHECK(distance(dx, 2 * once) < 1e-14);
    }
  }
  const M one = random(1, 5, 3);
  CHECK(std::abs(limpid::coding_rate(one) - 0.5 * std::log1p(5 / 0.01 * one.squaredNorm())) < 1e-13);
}

TEST_CASE("subspace coding rate: gradients with respect to tokens and codebook, and both forms of rows") {
  M x = random(7, 6, 1), u = random(6, 4, 2), dx = x, du = u;
  for (bool normalise : {false, true}) {
    const CodingRateOptions options{.eps2 = 0.2, .normalise = normalise, .heads = 2};
    const auto rate = [&] { return limpid::subspace_coding_rate(x, u, options); };
    limpid::subspace_coding_rate_backward(x, u, 1, dx, du, options);
    CHECK(distance(limpid::numeric_gradient(x, rate), dx) < 1e-9);
    CHECK(distance(limpid::numeric_gradient(u, rate), du) < 1e-9);
  }
}

TEST_CASE("coding rates: rotations and order change nothing, scale raises, zero is zero and has no gradient") {
  const M x = random(12, 6, 1), q = orthonormal(6, 6, 2), none = M::Zero(12, 6), u = random(6, 6, 3),
          eye = M::Identity(6, 6);
  const CodingRateOptions three{.eps2 = 0.1, .heads = 3};
  CHECK(std::abs(rate_of(product(x, q)) - rate_of(x)) < 1e-12);
  CHECK(std::abs(rate_of(x.colwise().reverse()) - rate_of(x)) < 1e-12);
  CHECK(rate_of(2 * x) > rate_of(x));
  CHECK(limpid::coding_rate(x) > 0);
  for (bool normalise : {false, true}) {
    M d = x;
    limpid::coding_rate_backward(none, 1, d, {.normalise = normalise});
    CHECK(limpid::coding_rate(none, {.normalise = normalise}) == 0);
    CHECK(d.isZero(0));
  }
  CHECK(std::abs(limpid::subspace_coding_rate(x, eye) - limpid::coding_rate(x)) < 1e-12);
  M turned = u;
  for (Index k = 0; k < 3; ++k)
    turned.middleCols(2 * k, 2) =
        product<double>(u.middleCols(2 * k, 2), orthonormal(2, 2, static_cast<std::uint64_t>(5 + k)));
  CHECK(std::abs(limpid::subspace_coding_rate(x, turned, three) - limpid::subspace_coding_rate(x, u, three)) < 1e-12);
  CHECK_THROWS_WITH(limpid::subspace_coding_rate(x, u, {.heads = 4}),
                    "subspace_coding_rate: u has 6 columns, wanted a multiple of heads = 4");
  CHECK_THROWS_WITH(limpid::coding_rate(x, {.eps2 = 0}), "coding_rate: eps2 is 0, wanted a positive, finite number");
}

TEST_CASE("coding rates of tokens exactly in their subspaces: R is the sum over subspaces and not below R^c") {
  const auto data = limpid::subspace_data<double>({.tokens = 40, .classes = 3, .width = 4, .delta = 0});
  double sum = 0;
  for (Index k = 0; k < 3; ++k) {
    const M y = product<double>(data.x, data.u.middleCols(4 * k, 4));
    const M inside = M::Identity(4, 4) + 12 / (40 * 0.01) * product_tn(y, y);
    sum += 0.5 * std::log(suite::determinant(inside));
  }
  const auto measured = limpid::rate_reduction(data.x, data.u, {.heads = 3});
  CHECK(std::abs(measured.rate - sum) < 1e-10);
  CHECK(measured.reduction() > 0);
  CHECK(measured.nonzero == 1);
  CHECK(std::abs(measured.objective(0.1) - (measured.reduction() - 0.1 * 480)) < 1e-10);
}

TEST_CASE("small alpha: the gradient of R^c is its Neumann series") {
  const M x = random(9, 6, 1, 0.5), u = orthonormal(6, 6, 2);
  M dx = x, du = u, series = M::Zero(9, 6);
  const double alpha = 1e-4;
  const CodingRateOptions options{.eps2 = 3 / (9 * alpha), .heads = 2};
  limpid::subspace_coding_rate_backward(x, u, 1, dx, du, options);
  for (Index k = 0; k < 2; ++k) {
    const M uk = u.middleCols(3 * k, 3), y = product(x, uk);
    series += product_nt<double>(alpha * y - alpha * alpha * product(product_nt(y, y), y), uk);
  }
  CHECK(distance(dx, series) < 10 * alpha * alpha * alpha);
}

namespace {

using Real = long double;

/// 1/2 logdet(I + alpha x^T x) by elimination that never adds the 1.
template <class S>
Real rate_apart(const Mat<S>& x, Real alpha) {
  const Mat<Real> y = x.template cast<Real>();
  Mat<Real> a = alpha * product_tn(y, y);
  Real sum = 0;
  for (Index k = 0; k < a.rows(); ++k) {
    sum += std::log1p(a(k, k)) / 2;
    for (Index i = k + 1; i < a.rows(); ++i)
      for (Index j = k + 1; j < a.rows(); ++j) a(i, j) -= a(i, k) * a(k, j) / (1 + a(k, k));
  }
  return sum;
}
/// |found - wanted| over the largest wanted.
template <class S>
double relative(const Mat<S>& found, const Mat<Real>& wanted) {
  return distance(found, wanted) / double(wanted.cwiseAbs().maxCoeff());
}

}  // namespace

TEMPLATE_TEST_CASE("coding rates of small numbers have all their digits, value and gradient", "", float, double) {
  using S = TestType;
  const double digits = 8 * std::numeric_limits<S>::epsilon();
  for (const Index n : {1, 3, 9, 30}) {
    const Mat<S> u = orthonormal(9, 9, 5).cast<S>();
    for (const double scale : {1.0, 1e-3, 1e-6, 1e-9, 1e-15}) {
      INFO("n " << n << ", scale " << scale);
      const Mat<S> x = (scale * random(n, 9, std::uint64_t(n))).cast<S>();
      const Real alpha = Real(9) / (Real(n) * Real(0.01));
      CHECK(std::abs(limpid::coding_rate(x) / double(rate_apart(x, alpha)) - 1) < 1e-13);
      const CodingRateOptions three{.heads = 3};
      Real parts = 0;
      for (Index k = 0; k < 3; ++k) {
        const Mat<S> uk = u.middleCols(3 * k, 3);
        parts += rate_apart(product(x, uk), alpha / 3);
      }
      CHECK(std::abs(limpid::subspace_coding_rate(x, u, three) / double(parts) - 1) < 50 * digits);
      if (scale > 1e-6) continue;  // the series ends where its next term is below the last digit
      const Mat<Real> y = x.template cast<Real>();
      Mat<S> dx = x;
      limpid::coding_rate_backward(x, 1, dx);
      CHECK(relative(dx, alpha * (y - alpha * product(y, product_tn(y, y)))) < digits);
      Mat<S> du = u;
      limpid::subspace_coding_rate_backward(x, u, 1, dx, du, three);
      const Mat<Real> v = u.template cast<Real>();
      CHECK(relative(du, alpha / 3 * product(product_tn(y, y), v)) < 1e-7 + 50 * digits);
    }
  }
}

TEST_CASE("coding rates where squares of tokens or 1 / eps2 have no number of their own") {
  const M x = random(4, 3, 1);
  for (const double scale : {1e-160, 1e-200, 1e-290}) {
    const double eps2 = 1e-300;
    const M small = scale * x;
    const Real alpha = Real(3) / (4 * Real(eps2));
    M wanted = x, dx = x;
    // of the order 1e-19 and less: the trace alone
    const Real rate = alpha * Real(scale) * Real(scale) * Real(x.squaredNorm()) / 2;
    CHECK(std::abs(limpid::coding_rate(small, {.eps2 = eps2}) / double(rate) - 1) < 1e-13);
    limpid::coding_rate_backward(small, 1, dx, {.eps2 = eps2});
    wanted = double(alpha) * small;
    CHECK(distance(dx / wanted(0, 0), wanted / wanted(0, 0)) < 1e-13);
  }
  const M large = 1e100 * x;
  M dx = x;
  CHECK(limpid::coding_rate(large, {.eps2 = 1e300}) / 1e-100 == Approx(3.0 / 8 * x.squaredNorm()).epsilon(1e-13));
  limpid::coding_rate_backward(large, 1, dx, {.eps2 = 1e300});
  CHECK(distance(dx * 1e200, 0.75 * x) < 1e-13);
}

TEMPLATE_TEST_CASE("a normalised coding rate with a large eps2 has a gradient: what is across the rows", "", float,
                   double) {
  using S = TestType;
  for (const Index n : {3, 9, 30})
    for (const double eps2 : {1e9, 1e12, 1e20}) {
      INFO("n " << n << ", eps2 " << eps2);
      const Mat<S> x = random(n, 9, std::uint64_t(n)).cast<S>();
      Mat<Real> y = x.template cast<Real>(), wanted;
      for (Index i = 0; i < n; ++i) y.row(i) /= std::sqrt(limpid::detail::dot(&y(i, 0), &y(i, 0), 9));
      const Real alpha = Real(9) / (Real(n) * Real(eps2));
      wanted = -alpha * alpha * product(y, product_tn(y, y));
      for (Index i = 0; i < n; ++i) {
        const Real along = limpid::detail::dot(&y(i, 0), &wanted(i, 0), 9);
        const Mat<Real> own = x.row(i).template cast<Real>();
        wanted.row(i) = (wanted.row(i) - along * y.row(i)) / std::sqrt(limpid::detail::dot(&own(0, 0), &own(0, 0), 9));
      }
      const double unit = double(wanted.cwiseAbs().maxCoeff());
      if (unit < 1e-30 && sizeof(S) == 4) continue;  // a float's last digits
      Mat<S> dx = x;
      limpid::coding_rate_backward(x, 1, dx, {.eps2 = eps2, .normalise = true});
      CHECK(relative(dx, wanted) < 1e-8 + 8 * double(std::numeric_limits<S>::epsilon()));
      CHECK(std::abs(limpid::coding_rate(x, {.eps2 = eps2, .normalise = true}) * eps2 / 4.5 - 1) < 1e-8);
    }
}

TEST_CASE("the attention step of the papers raises the plain R^c; normalised, the exact theorem leaves it alone") {
  const auto data = limpid::subspace_data<double>({.tokens = 50, .classes = 4, .width = 8, .delta = 1});
  const CodingRateOptions options{.eps2 = 0.5, .heads = 4};
  M x = data.x, next = x;
  const M eta = M::Constant(1, 1, 0.3);
  const double before = limpid::subspace_coding_rate(x, data.u, options);
  limpid::aot(mssa(), {.heads = 4, .norm = false}).forward({.x = x, .eta = eta, .u = data.u}, next);
  CHECK(limpid::subspace_coding_rate(next, data.u, options) > before);

  const auto near = limpid::subspace_data<double>({.tokens = 64, .classes = 4, .width = 48, .delta = 0.05});
  const CodingRateOptions normalised{.normalise = true, .heads = 4};
  M now = near.x, later = now;
  limpid::aot(mssa({.scale = 1, .phi = limpid::Phi::threshold, .tau = 0.6}), {.heads = 4, .norm = false})
      .forward({.x = now, .eta = eta, .u = near.u}, later);
  CHECK(std::abs(limpid::subspace_coding_rate(later, near.u, normalised) -
                 limpid::subspace_coding_rate(now, near.u, normalised)) < 1e-9);
}

TEST_CASE("subspaces: orthonormal basis, shares of energy that sum to 1, ratios of the size the noise says") {
  const auto data = limpid::subspace_data<double>({.tokens = 80, .classes = 4, .width = 16, .delta = 0.1});
  CHECK(distance(product_tn(data.u, data.u), M::Identity(64, 64)) < 1e-14);
  M energy(80, 4);
  limpid::subspace_energy(data.x, data.u, energy);
  CHECK(distance(energy.rowwise().sum(), M::Ones(80, 1)) < 1e-13);
  for (Index i = 0; i < 80; ++i) {
    Index largest = 0;
    energy.row(i).maxCoeff(&largest);
    CHECK(largest == data.labels[static_cast<std::size_t>(i)]);
  }
  for (double snr : limpid::subspace_snr(data.x, data.u, data.labels, 4))
    CHECK(std::abs(snr * 0.1 * std::sqrt(3) - 1) < 0.1);
  const M eye = M::Identity(4, 4);
  CHECK(limpid::nonzero_share(eye) == 0.25);
  const auto wide = limpid::subspace_data<float>({.tokens = 5, .classes = 2, .width = 3, .dim = 10});
  CHECK(wide.x.cols() == 10);
  CHECK_THROWS_AS(limpid::subspace_data<float>({.classes = 2, .width = 3, .dim = 5}), limpid::ShapeError);
}
