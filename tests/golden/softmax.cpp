// limpid: golden cases of softmax attention.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct Softmax {
  static constexpr const char* name = "softmax";
  static constexpr const char* switches = "causal scale";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const auto run = [&](const auto& masks) {
      return run_qkv<S>(limpid::softmax(masks, {.scale = c.scale(q.cols())}), q, k, v, c.dout<S>());
    };
    if (c.has("mask")) return with_masks(c, run);  // here the chains that most users write are compiled as they are
    return c.flag("causal") ? run(limpid::chain(limpid::causal())) : run(limpid::chain());
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const S scale = static_cast<S>(c.scale(q.cols()));
    const PlainAttention<S> plain(scaled(scale, product_nt(q, k)), c.visible(q.rows(), k.rows()), v, c.dout<S>());
    return {{"out.out", plain.out},
            {"grad.q", scaled(scale, product(plain.ds, k))},
            {"grad.k", scaled(scale, product_tn(plain.ds, q))},
            {"grad.v", plain.dv}};
  }
};

const Registered<Softmax> softmax_cases;

}  // namespace golden
