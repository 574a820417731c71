// limpid: golden cases of sigmoid attention, made by golden/sigmoid.py.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr const char* switches = "causal scale bias";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const limpid::SigmoidOptions options{.scale = c.scale(q.cols()), .bias = c.number("bias", std::nullopt)};
    return with_masks(
        c, [&](const auto& masks) { return run_qkv<S>(limpid::sigmoid(masks, options), q, k, v, c.dout<S>()); });
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const S scale = static_cast<S>(c.scale(q.cols()));
    const S bias = static_cast<S>(c.number("bias", -std::log(static_cast<double>(k.rows()))));
    const Mat<bool> keep = c.visible(q.rows(), k.rows());
    Mat<S> a = scaled(scale, product_nt(q, k)), ds = product_nt(dout, v);
    for (Index i = 0; i < a.rows(); ++i)
      for (Index j = 0; j < a.cols(); ++j) {
        a(i, j) = keep(i, j) ? 1 / (1 + std::exp(-(a(i, j) + bias))) : S(0);
        ds(i, j) *= a(i, j) * (1 - a(i, j));
      }
    return {{"out.out", product(a, v)},
            {"grad.q", scaled(scale, product(ds, k))},
            {"grad.k", scaled(scale, product_tn(ds, q))},
            {"grad.v", product_tn(a, dout)}};
  }
};

const Registered<Sigmoid> sigmoid_cases;

}  // namespace golden
