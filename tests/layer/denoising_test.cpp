// limpid: the denoising theorem of the attention-only transformer, at a size
// where its noise has dimensions enough.
// SPDX-License-Identifier: MIT
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/layer/aot.hpp>

#include "support/catch.hpp"

namespace {

using limpid::aot, limpid::Index, limpid::Mat, limpid::mssa;

/// Every ratio of a class's SNR from layer to layer, divided by 1 + eta tau,
/// less 1: the largest.
template <class S>
double rate_error(const limpid::SubspaceData<S>& data, Index classes, double eta, double tau, int layers) {
  const auto layer =
      aot(mssa({.scale = 1, .phi = limpid::Phi::threshold, .tau = tau}), {.heads = classes, .norm = false});
  const Mat<S> step = Mat<S>::Constant(1, 1, S(eta));
  Mat<S> x = data.x, next = x;
  auto before = limpid::subspace_snr(x, data.u, data.labels, classes);
  double worst = 0;
  for (int l = 0; l < layers; ++l) {
    layer.forward({.x = x, .eta = step, .u = data.u}, next);
    std::swap(x, next);
    const auto now = limpid::subspace_snr(x, data.u, data.labels, classes);
    for (std::size_t k = 0; k < now.size(); ++k)
      worst = std::max(worst, std::abs(now[k] / before[k] / (1 + eta * tau) - 1));
    before = now;
  }
  return worst;
}

}  // namespace

TEST_CASE(
    "the denoising theorem: every layer multiplies every class's "
    "signal-to-noise ratio by 1 + eta tau") {
  for (std::uint64_t seed : {1u, 2u}) {
    const limpid::SubspaceDataOptions options{.tokens = 400, .classes = 8, .width = 48, .delta = 0.05, .seed = seed};
    CHECK(rate_error(limpid::subspace_data<double>(options), 8, 0.1, 0.6, 13) < 1e-10);
    CHECK(rate_error(limpid::subspace_data<float>(options), 8, 0.1, 0.6, 13) < 1e-4);
  }
}

TEST_CASE(
    "the denoising theorem needs many dimensions for its noise: at delta "
    "0.5 and p 12 the rate is lost") {
  const auto data = limpid::subspace_data<double>({.tokens = 60, .classes = 3, .width = 12, .dim = 40, .delta = 0.5});
  CHECK(rate_error(data, 3, 0.5, 0.6, 5) > 0.01);
}
