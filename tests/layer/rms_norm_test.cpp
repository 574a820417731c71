// limpid: root mean square normalisation.
// SPDX-License-Identifier: MIT
#include <limpid/layer/rms_norm.hpp>

#include <limpid/check/gradient.hpp>
#include <limpid/exec/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::View;
using suite::distance;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

}  // namespace

TEST_CASE("rms norm is its formula, with gamma and without, and a row of zeros gives zeros") {
  M x = random(300, 13, 1, 3), y = x;
  const M gamma = random(1, 13, 2);
  x.row(7).setZero();
  for (const double eps : {0.0, 1e-6, 0.5}) {
    for (const bool with : {true, false}) {
      limpid::rms_norm(x, with ? View<double>(gamma) : View<double>(), y, {.eps = eps});
      for (Index i = 0; i < x.rows(); ++i) {
        const double mean = x.row(i).squaredNorm() / 13 + eps, r = mean == 0 ? 0 : 1 / std::sqrt(mean);
        for (Index c = 0; c < 13; ++c) CHECK(std::abs(y(i, c) - x(i, c) * r * (with ? gamma(0, c) : 1)) <= 4e-15);
      }
    }
  }
}

TEST_CASE("rms norm: central differences agree with the gradient, each added or not as it says") {
  M x = random(300, 5, 4), gamma = random(1, 5, 5), y = x, dx = x, dgamma = gamma;
  const M dy = random(300, 5, 7);
  x.row(4).setZero();
  limpid::RmsNormSaved<double> saved;
  const auto value = [&] {
    limpid::rms_norm(x, gamma, y, {.eps = 0.1, .saved = &saved});
    return y.cwiseProduct(dy).sum();
  };
  value();
  limpid::rms_norm_backward(x, gamma, saved, dy, {dx, dgamma});
  const M found = dx.topRows(8);
  CHECK(distance(limpid::numeric_gradient<double>(limpid::MutView<double>(x).block(0, 0, 8, 5), value), found) < 1e-9);
  CHECK(distance(limpid::numeric_gradient(gamma, value), dgamma) < 1e-8);
  M dx2 = M::Constant(300, 5, 7), dgamma2 = M::Constant(1, 5, 7);
  limpid::rms_norm_backward(x, gamma, saved, dy, {limpid::overwrite(dx2), dgamma2}, {.accumulate = true});
  CHECK(dx2 == dx);
  CHECK(distance(dgamma2, M(dgamma.array() + 7)) < 1e-14);
  dgamma2.setConstant(7);
  limpid::rms_norm_backward(x, gamma, saved, dy, {.gamma = limpid::add(dgamma2)});
  CHECK(distance(dgamma2, M(dgamma.array() + 7)) < 1e-14);
}

TEMPLATE_TEST_CASE("rms norm is right for entries of any size, without eps", "", float, double) {
  using S = TestType;
  for (const Index width : {1, 3, 16, 37}) {
    const Mat<S> x = random(5, width, 8).cast<S>(), dy = random(5, width, 9).cast<S>();
    Mat<S> wanted = x, y = x, dx = x, dx2 = x;
    limpid::RmsNormSaved<S> saved;
    limpid::rms_norm(x, View<S>(), wanted, {.eps = 0, .saved = &saved});
    limpid::rms_norm_backward(x, View<S>(), saved, dy, {.x = dx});
    for (const int exponent :
         sizeof(S) == 4 ? std::vector<int>{-120, -100, 60, 100, 127} : std::vector<int>{-1000, -600, 510, 1000, 1022}) {
      INFO("width " << width << ", exponent " << exponent);
      const S scale = std::ldexp(S(1), exponent);
      const Mat<S> scaled = scale * x, scaled_dy = scale * dy;
      limpid::rms_norm(scaled, View<S>(), y, {.eps = 0, .saved = &saved});
      CHECK(distance(y, wanted) <= 8 * std::numeric_limits<S>::epsilon());
      if (exponent > 60) continue;  // dx would be subnormal, or as large as 1 / scale
      limpid::rms_norm_backward(scaled, View<S>(), saved, scaled_dy, {.x = dx2});
      CHECK(distance(dx2, dx) <= 64 * std::numeric_limits<S>::epsilon());
    }
  }
}

TEST_CASE("rms norm: threads change no bit, and what does not fit is refused by name") {
  const M x = random(900, 24, 1), gamma = random(1, 24, 2), dy = random(900, 24, 3), short_gamma = random(1, 23, 4);
  M y = x, y2 = x, dx = x, dx2 = x, dg = gamma, dg2 = gamma;
  limpid::RmsNormSaved<double> saved, saved2;
  limpid::rms_norm(x, gamma, y, {.eps = 1e-6, .saved = &saved});
  limpid::rms_norm_backward(x, gamma, saved, dy, {dx, dg});
  limpid::ThreadPool pool(3);
  limpid::rms_norm(x, gamma, y2, {.eps = 1e-6, .saved = &saved2, .executor = pool});
  limpid::rms_norm_backward(x, gamma, saved2, dy, {dx2, dg2}, {.executor = pool});
  CHECK((y == y2 && dx == dx2 && dg == dg2));

  const View<double> none;
  CHECK_THROWS_WITH(
      limpid::rms_norm(x, gamma, y, {}),
      "rms_norm: eps is not given, wanted that of the model (BERT 1e-12, ViT 1e-6, PyTorch's default 1e-5)");
  CHECK_THROWS_WITH(limpid::rms_norm(x, short_gamma, y, {.eps = 1e-6}), "rms_norm: gamma is 1 x 23, wanted 1 x 24");
  CHECK_THROWS_WITH(limpid::rms_norm(y, gamma, y, {.eps = 1e-6}),
                    "rms_norm: y shares memory with x, wanted memory of its own");
  limpid::LayerNormSaved<double> other;
  limpid::layer_norm(x, gamma, none, y, {.eps = 1e-6, .saved = &other});
  CHECK_THROWS_WITH(limpid::rms_norm_backward(x, gamma, other, dy, {.x = dx}),
                    "rms_norm: saved is of a layer norm, wanted one of an rms norm");
  CHECK_THROWS_WITH(limpid::layer_norm_backward(x, gamma, saved, dy, {.x = dx}),
                    "layer_norm: saved is of an rms norm, wanted one of a layer norm");
}
