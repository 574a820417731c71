// limpid: golden cases of attention guidance, kind guided: patterns beside the values, their weights beside dout.
// SPDX-License-Identifier: MIT
#include "heads.hpp"

namespace golden {

struct GradientGuidance {
  static constexpr const char* name = "gradient_guidance";
  static constexpr const char* switches = "kind";

  template <class S>
  static Tensors<S> library(const Case& c) {
    if (c.text("kind", "") != "guided") throw Refused("known is the kind guided");
    const Heads queries(c, "q"), keys(c, "k");
    const Index heads = queries.heads, n = queries.n, m = keys.n;
    const Mat<S> q = queries.packed(c.in<S>("q")), k = keys.packed(c.in<S>("k")), w = c.in<S>("w"), u = c.in<S>("u");
    const Mat<S> v_heads = c.in<S>("v"), dout_heads = c.in<S>("do");
    const Index dv = v_heads.cols(), r = w.cols();
    Mat<S> v(m, heads * (dv + r)), dout(n, heads * (dv + r)), out = dout;
    const Mat<S> v_packed = keys.packed(v_heads), dout_packed = queries.packed(dout_heads);
    limpid::append_columns(v_packed, w, heads, v);
    limpid::append_columns(dout_packed, u, heads, dout);

    const auto op = limpid::softmax();
    limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
    limpid::forward(op, limpid::qkv(q, k, v), out, {.heads = heads, .saved = &saved});
    Mat<S> dq = q, dk = k, dv_all = v, o(n, heads * dv), readout(n, heads * r), dv_own(m, heads * dv);
    limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv_all));
    limpid::split_columns(out, heads, o, readout);
    limpid::split_columns(dv_all, heads, dv_own, {});

    Tensors<S> all;
    const auto by_heads = [&](const char* key, const Heads& e, const Mat<S>& packed) {
      Mat<S>& to = all[key] = Mat<S>::Zero(heads * e.n, packed.cols() / heads);
      e.add(packed, 0, to);
    };
    by_heads("out.o", queries, o), by_heads("out.readout", queries, readout);
    by_heads("out.dq", queries, dq), by_heads("out.dk", keys, dk), by_heads("out.dv", keys, dv_own);
    all["out.y"] = Mat<S>::Constant(1, 1, dot(out, dout));
    Mat<S>& g = all["out.g"] = Mat<S>::Zero(heads * n, m);
    for (Index h = 0; h < heads; ++h)
      g.middleRows(h * n, n) = product_nt<S>(dout.middleCols(h * (dv + r), dv + r), v.middleCols(h * (dv + r), dv + r));
    for (const auto& [key, part] :
         {std::pair{"out.abar_pos", limpid::Part::pos}, std::pair{"out.abar_abs", limpid::Part::abs}}) {
      limpid::Relevance<S> relevance({n, m}, part);
      Mat<S>& abar = all[key] = Mat<S>::Zero(n, m);
      for (Index i = 0; i < n; ++i) {
        relevance.start(i, 0);
        limpid::backward(op, limpid::qkv(q, k, v), saved, dout, {}, relevance.ask(0, 1));
        relevance.stage();
        abar.row(i) = relevance.of(1);
      }
    }
    return all;
  }
};

const Registered<GradientGuidance> gradient_guidance_cases;

}  // namespace golden
