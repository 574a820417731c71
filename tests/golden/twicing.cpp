// limpid: golden cases of twicing attention.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct Twicing {
  static constexpr const char* name = "twicing";
  static constexpr const char* switches = "order alpha scale causal";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    return with_masks(c, [&](const auto& masks) {
      const auto op = limpid::twicing(limpid::softmax(masks, {.scale = c.scale(q.cols())}),
                                      {.order = c.integer("order", 1), .alpha = c.number("alpha", 1)});
      Tensors<S> all = run_qkv<S>(op, q, k, v, c.dout<S>());
      Mat<S> out(q.rows(), v.cols()), effective;
      limpid::forward(op, limpid::qkv(q, k, v), out, {.map = &effective});
      all["out.effective"] = effective;
      return all;
    });
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const S scale = static_cast<S>(c.scale(q.cols())), alpha = static_cast<S>(c.number("alpha", 1));
    const Index order = c.integer("order", 1);
    const PlainAttention<S> plain(scaled(scale, product_nt(q, k)), c.visible(q.rows(), k.rows()), v, dout);
    const Mat<S>& a = plain.a;
    std::vector<Mat<S>> u{plain.out};
    Mat<S> effective = a;
    for (Index t = 1; t <= order; ++t) {
      u.push_back(u.back() + scaled(alpha, product<S>(a, v - u.back())));
      effective += scaled(alpha, Mat<S>(a - product(a, effective)));
    }
    const Mat<S> dv = product_tn(effective, dout);
    Mat<S> g = dout, da = Mat<S>::Zero(a.rows(), a.cols());
    for (Index t = order; t >= 1; --t) {
      da += scaled(alpha, product_nt<S>(g, v - u[static_cast<std::size_t>(t - 1)]));
      g -= scaled(alpha, product_tn(a, g));
    }
    da += product_nt(g, v);
    const Mat<S> ds = softmax_gradient(a, da);
    return {{"out.out", u.back()},
            {"out.effective", effective},
            {"grad.q", scaled(scale, product(ds, k))},
            {"grad.k", scaled(scale, product_tn(ds, q))},
            {"grad.v", dv}};
  }
};

const Registered<Twicing> twicing_cases;

}  // namespace golden
