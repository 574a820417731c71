// limpid: statistics of rows at the edges: spreads that are rounding noise, entries whose squares leave the range.
// SPDX-License-Identifier: MIT
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/coding_rate.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/layer/layer_norm.hpp>
#include <limpid/op/differential.hpp>
#include <vector>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

using limpid::Index, limpid::Mat, limpid::View;
using suite::distance;
namespace detail = limpid::detail;

namespace {

using Wide = long double;

/// The definition: one row at a time, in long double. A row whose entries are all the same has no spread.
struct Norm {
  Mat<Wide> xh, dx;
  Wide size = 0;  // of what dx is a difference of
  template <class S>
  Norm(const Mat<S>& x, const Mat<S>& t, double eps) : xh(x.rows(), x.cols()), dx(x.rows(), x.cols()) {
    const Index width = x.cols();
    for (Index i = 0; i < x.rows(); ++i) {
      Wide mean = 0, variance = 0, level = 0, slope = 0;
      const auto d = [&](Index c) {
        return static_cast<Wide>(x(i, c)) - static_cast<Wide>(x(i, 0));
      };  // exact if small
      for (Index c = 0; c < width; ++c) mean += d(c) / static_cast<Wide>(width);
      for (Index c = 0; c < width; ++c) variance += (d(c) - mean) * (d(c) - mean) / static_cast<Wide>(width);
      const bool flat = x.row(i).maxCoeff() == x.row(i).minCoeff();
      const Wide spread = (flat ? 0 : variance) + static_cast<Wide>(static_cast<S>(eps));
      const Wide r = spread == 0 ? 0 : 1 / std::sqrt(spread);
      for (Index c = 0; c < width; ++c) xh(i, c) = flat ? 0 : (d(c) - mean) * r;
      for (Index c = 0; c < width; ++c) level += t(i, c) / Wide(width), slope += t(i, c) * xh(i, c) / width;
      for (Index c = 0; c < width; ++c) dx(i, c) = r * (t(i, c) - level - xh(i, c) * slope);
      size = std::max(size, r * t.row(i).cwiseAbs().maxCoeff());
    }
  }
};

template <class P>
void check_rows(const Mat<typename P::Scalar>& x, double eps) {
  using S = typename P::Scalar;
  suite::Random random(7);
  const Mat<S> dy = suite::random_matrix<S>(random, x.rows(), x.cols());
  const Norm wanted(x, dy, eps);
  limpid::Workspace workspace;
  workspace.prepare(1);
  const detail::Context context(workspace.common());
  Mat<S> y(x.rows(), x.cols()), statistics(x.rows(), 4), dx(x.rows(), x.cols());
  detail::layer_norm_in<P, S>(context, x, {}, {}, eps, y, statistics);
  detail::layer_norm_backward_in<P, S>(context, x, {}, statistics, dy, {dx, {}, {}}, false, false);
  const double rounding = std::numeric_limits<S>::epsilon();
  INFO("width " << x.cols() << ", eps " << eps << ", lanes " << P::lanes << ", first entries " << x(0, 0) << ", "
                << x(0, x.cols() - 1));
  CHECK(distance(y, wanted.xh) <= 16 * rounding * (1 + static_cast<double>(wanted.xh.cwiseAbs().maxCoeff())));
  if (wanted.size == 0)
    CHECK(dx.isZero(0));
  else if (wanted.size < std::numeric_limits<S>::max() && wanted.size > std::numeric_limits<S>::min() * 100)
    CHECK(static_cast<double>((dx.template cast<Wide>() - wanted.dx).cwiseAbs().maxCoeff() / wanted.size) <=
          64 * rounding);
}

template <class S>
void check_all(const Mat<S>& x, double eps) {
  check_rows<detail::Native<S>>(x, eps);
  check_rows<detail::OneLane<S>>(x, eps);
}

}  // namespace

TEMPLATE_TEST_CASE("layer norm: a constant row gives beta exactly, at any width, offset and vector width", "", float,
                   double) {
  using S = TestType;
  for (Index width : {1, 2, 3, 7, 8, 13, 16, 31, 64, 257, 768})
    for (double offset : {0.1, 0.3, -0.7, 1.0 / 3, 1e4, 12345.678, 1e-20, 3e38, -3e37, 1e-40, 0.0})
      for (double eps : {0.0, 1e-5, 1e-12}) {
        const Mat<S> x = Mat<S>::Constant(2, width, S(offset));
        Mat<S> gamma = Mat<S>::Constant(1, width, S(3)), beta = Mat<S>::Constant(1, width, S(0.625)), y(2, width);
        limpid::layer_norm(x, gamma, beta, y, {.eps = eps});
        INFO("width " << width << ", offset " << offset << ", eps " << eps);
        CHECK(y == beta.replicate(2, 1));
        limpid::Workspace workspace;
        workspace.prepare(1);
        detail::layer_norm_in<detail::OneLane<S>, S>(detail::Context(workspace.common()), x, gamma, beta, eps, y, {});
        CHECK(y == beta.replicate(2, 1));
        // two roundings apart: still no spread; more is one
        if (eps > 0 || width < 3 || offset == 0 || std::abs(offset) < 1e-30) continue;
        Mat<S> noisy = x;
        noisy(0, 1) = std::nextafter(noisy(0, 1), S(0));
        limpid::layer_norm(noisy, gamma, beta, y, {.eps = 0});
        CHECK(y.row(0) == beta);
      }
}

TEMPLATE_TEST_CASE("layer norm: rows of any size, forward and backward, against long double", "", float, double) {
  using S = TestType;
  const double huge = sizeof(S) == 4 ? 3e38 : 1.7e308, tiny = sizeof(S) == 4 ? 1e-37 : 1e-306;
  suite::Random random(3);
  for (Index width : {2, 4, 5, 13, 64, 300}) {
    const Mat<S> base = suite::random_matrix<S>(random, 5, width);
    for (double scale : {1.0, 1e4, 1e18, 1e20, 1e30, huge, 1e-10, 1e-18, 1e-22, 1e-30, tiny})
      for (double eps : {0.0, 1e-5})
        if (scale <= huge) check_all<S>(S(scale) * base, eps);
    for (double offset : {100.0, -3000.0}) {  // spreads of a few hundred roundings of the offset, exactly given
      Mat<S> x = Mat<S>::Constant(3, width, S(offset));
      for (Index i = 0; i < x.size(); ++i)
        x.data()[i] += S((i * 37 % 101) - 50) * S(std::abs(offset)) * 64 * std::numeric_limits<S>::epsilon();
      for (Index i = 0; i < 3; ++i) x(i, 0) = S(offset), x(i, 1) = x(i, 0) * S(1 + 1e-3);
      check_all<S>(x, 0);
    }
  }
  Mat<S> steps(1, 4);
  steps << 1, 2, 3, 4;
  for (double scale : {1e30, 1e-30, sizeof(S) == 4 ? 8e37 : 4e307}) check_all<S>(S(scale) * steps, 0);
}

TEMPLATE_TEST_CASE("layer norm: rows with a few roundings of spread have one, and tiny rows with a tiny eps", "", float,
                   double) {
  using S = TestType;
  const double rounding = std::numeric_limits<S>::epsilon();
  for (Index width : {4, 13, 64, 300})
    for (double offset : {1.0, 1e6, -0.3})
      for (int apart : {6, 27, 50}) {  // of one entry alone, or of a few
        Mat<S> x = Mat<S>::Constant(2, width, S(offset));
        x(0, width / 2) = S(offset * (1 + apart * rounding));
        x(1, 0) = S(offset * (1 + apart / 2.0 * rounding)), x(1, 1) = S(offset * (1 + apart * rounding));
        check_all<S>(x, 0);
      }
  Mat<S> alone = Mat<S>::Ones(1, 1000), y = alone;
  alone(0, 500) += S(42 * rounding);
  limpid::layer_norm(alone, View<S>(), View<S>(), y, {.eps = 0});
  CHECK(double(y(0, 500)) == Approx(std::sqrt(999.0)).epsilon(1e-4));
  // with an eps the spread of a row that is all but flat counts
  for (Index width : {2, 3, 5, 64})
    for (double offset : {1e6, 3e4, 1.0})
      for (double share : {0.01, 1.0, 100.0}) {
        Mat<S> x = Mat<S>::Constant(1, width, S(offset));
        x(0, 1) = std::nextafter(x(0, 1), std::numeric_limits<S>::max());
        const double step = double(x(0, 1)) - double(x(0, 0));
        check_all<S>(x, share * step * step);
      }
  Mat<S> steps(1, 4);
  steps << 1, 2, 3, 4;
  using Limits = std::numeric_limits<S>;
  for (double scale : {double(Limits::min()), double(Limits::min()) * 1e4, double(Limits::min()) * 1e9})
    for (double eps : {double(Limits::min()), double(Limits::min()) * 1e4, double(Limits::min()) * 1e8, 1e-30, 1e-12})
      check_all<S>(S(scale) * steps, eps);
}

TEST_CASE("layer norm: what was kept of rows of another width is refused") {
  const Mat<double> wide = Mat<double>::Random(5, 8), x = Mat<double>::Random(5, 4);
  Mat<double> y(5, 8), dx(5, 4);
  limpid::LayerNormSaved<double> saved;
  limpid::layer_norm(wide, View<double>(), View<double>(), y, {.saved = &saved});
  CHECK_THROWS_WITH(limpid::layer_norm_backward(x, View<double>(), saved, x, {.x = dx}),
                    Catch::Contains("layer_norm: saved is of a norm of 5 x 8, wanted one of x, 5 x 4"));
}

TEST_CASE("layer norm: eps that is negative or no number is refused by name") {
  const Mat<double> x = Mat<double>::Ones(2, 3);
  Mat<double> y(2, 3);
  const View<double> none;
  for (double eps : {-1.0, -1e-300, std::nan(""), HUGE_VAL})
    CHECK(suite::error_of([&] { limpid::layer_norm(x, none, none, y, {.eps = eps}); }).find("layer_norm: eps is") == 0);
}

TEMPLATE_TEST_CASE("The head norm of differential attention: rows of any size keep their direction", "", float,
                   double) {
  using S = TestType;
  suite::Random random(5);
  limpid::Workspace workspace;
  workspace.prepare(1);
  for (Index width : {3, 8, 20}) {
    const Mat<S> base = suite::random_matrix<S>(random, 4, width), dy = suite::random_matrix<S>(random, 4, width);
    for (double scale : {1.0, 1e18, 1e30, 1e37, 1e-18, 1e-30, 1e-36}) {
      using P = detail::Native<S>;
      limpid::TwoMapOptions options;
      options.lambda_init = 0, options.eps = 0;
      Mat<S> h = S(scale) * base, back = h, dgamma(1, width);
      const Mat<Wide> wide = h.template cast<Wide>();
      limpid::ArenaScope scope(workspace.common());
      const detail::RmsNorm<P> norm(workspace.common(), width, {}, options);
      norm.forward(h);
      norm.backward(detail::Context(workspace.common()), back, dy, dgamma, [](Index) { return false; });
      Mat<S> with_eps = S(scale) * base;  // as tiny as the row, or as large: eps is of squares
      options.eps = scale < 1 ? double(std::numeric_limits<S>::min()) * 1e4 : 1e-5;
      detail::RmsNorm<P>(workspace.common(), width, {}, options).forward(with_eps);
      for (Index i = 0; i < 4; ++i) {
        const Wide mean = wide.row(i).squaredNorm() / Wide(width) + static_cast<Wide>(static_cast<S>(options.eps));
        const Mat<Wide> y = wide.row(i) / std::sqrt(mean);
        CHECK(distance(with_eps.row(i), y) <= 16 * std::numeric_limits<S>::epsilon() * y.cwiseAbs().maxCoeff());
      }
      for (Index i = 0; i < 4; ++i) {
        const Wide r = 1 / std::sqrt(wide.row(i).squaredNorm() / Wide(width));
        const Mat<Wide> y = r * wide.row(i), g = dy.row(i).template cast<Wide>();
        const Mat<Wide> d = r * (g - g.cwiseProduct(y).sum() / Wide(width) * y);
        INFO("scale " << scale << ", width " << width);
        CHECK(distance(h.row(i), y) <= 16 * std::numeric_limits<S>::epsilon() * 4);
        if (scale < 1e36)  // beyond, gradients are subnormal
          CHECK(static_cast<double>((back.row(i).template cast<Wide>() - d).cwiseAbs().maxCoeff() / r) <=
                64 * std::numeric_limits<S>::epsilon());
      }
    }
  }
}

TEST_CASE("coding rate: rows that are normalised first may be of any size; a zero row stays zero") {
  suite::Random random(9);
  const Mat<double> x = suite::random_matrix<double>(random, 6, 4);
  limpid::CodingRateOptions options;
  options.normalise = true;
  const double wanted = limpid::coding_rate(x, options);
  for (double scale : {1e-200, 1e-160, 1e200, 1e300, 1e-300}) {
    const Mat<double> scaled = scale * x;
    CHECK(std::abs(limpid::coding_rate(scaled, options) - wanted) <= 1e-13 * wanted);
  }
  Mat<double> with_zero = x;
  with_zero.row(2).setZero();
  CHECK(std::isfinite(limpid::coding_rate(with_zero, options)));
  for (double eps2 : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    options.eps2 = eps2;
    CHECK(suite::error_of([&] { limpid::coding_rate(x, options); }).find("coding_rate: eps2 is") == 0);
  }
}

TEMPLATE_TEST_CASE("Shares of energy and signal to noise do not change with the size of the tokens; zero rows give 0",
                   "", float, double) {
  using S = TestType;
  const auto data = limpid::subspace_data<S>({.tokens = 24, .classes = 3, .width = 4});
  Mat<S> share(24, 3), again(24, 3);
  limpid::subspace_energy(data.x, data.u, share);
  const auto snr = limpid::subspace_snr(data.x, data.u, data.labels, 3);
  for (double scale : {1e30, 1e-30, 1e-36}) {
    Mat<S> x = S(scale) * data.x;
    limpid::subspace_energy(x, data.u, again);
    CHECK(distance(again, share) <= 64 * std::numeric_limits<S>::epsilon());
    const auto scaled = limpid::subspace_snr(x, data.u, data.labels, 3);
    for (std::size_t k = 0; k < 3; ++k) CHECK(std::abs(scaled[k] / snr[k] - 1) <= 1e-3);
    x.row(5).setZero();
    limpid::subspace_energy(x, data.u, again);
    CHECK(again.row(5).isZero(0));
  }
}
