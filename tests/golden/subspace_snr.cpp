// limpid: golden cases of the denoising theorem: tokens and signal-to-noise ratios layer by layer.
// SPDX-License-Identifier: MIT
#include <limpid/explain/subspaces.hpp>

#include "subspace.hpp"

namespace golden {

struct SubspaceSnr {
  static constexpr const char* name = "subspace_snr";
  static constexpr const char* switches = "heads scale phi tau eta layers delta rate_exact";

  template <class S>
  static Tensors<S> library(const Case& c) {
    Mat<S> x = c.in<S>("x");
    const Mat<S> u = c.in<S>("u"), eta = Mat<S>::Constant(1, 1, static_cast<S>(c.number("eta", 0)));
    const Index heads = c.count("heads", 1), layers = c.integer("layers", 0);
    const limpid::MssaOptions options = mssa_options(c, u.cols() / heads);
    const auto layer = limpid::aot(limpid::mssa(options), {.heads = heads, .norm = false});
    std::vector<Index> labels;
    const Mat<double> classes = c.in<double>("labels");
    for (Index i = 0; i < classes.size(); ++i) labels.push_back(static_cast<Index>(classes.data()[i]));

    Mat<S> tokens((layers + 1) * x.rows(), x.cols()), snr(layers + 1, heads), next = x;
    for (Index l = 0; l <= layers; ++l) {
      tokens.middleRows(l * x.rows(), x.rows()) = x;
      const std::vector<double> now = limpid::subspace_snr(x, u, labels, heads);
      for (Index k = 0; k < heads; ++k) snr(l, k) = static_cast<S>(now[static_cast<std::size_t>(k)]);
      layer.forward({.x = x, .eta = eta, .u = u}, next);
      std::swap(x, next);
    }
    return {{"out.tokens", tokens}, {"out.snr", snr}};
  }
};

const Registered<SubspaceSnr> subspace_snr_cases;

}  // namespace golden
