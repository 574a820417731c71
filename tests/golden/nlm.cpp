// limpid: golden cases of non-local means attention.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct Nlm {
  static constexpr const char* name = "nlm";
  static constexpr const char* switches = "causal";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const Mat<S> h = c.in_or_none<S>("h"), pq = c.in_or_none<S>("pq"), pk = c.in_or_none<S>("pk"),
                 h_space = c.in_or_none<S>("h_space");
    Mat<S> dq = q, dk = k, dv = v, dh = h, dpq = pq, dpk = pk, dh_space = h_space, out(q.rows(), v.cols());
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::nlm(masks);
      using Op = std::remove_const_t<decltype(op)>;
      const limpid::Inputs<Op, S> in{.q = q, .k = k, .v = v, .h = h, .pq = pq, .pk = pk, .h_space = h_space};
      limpid::Saved<Op, S> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, dout,
                       {.q = dq, .k = dk, .v = dv, .h = dh, .pq = dpq, .pk = dpk, .h_space = dh_space});
    });
    return {{"out.out", out}, {"grad.q", dq},   {"grad.k", dk},   {"grad.v", dv},
            {"grad.h", dh},   {"grad.pq", dpq}, {"grad.pk", dpk}, {"grad.h_space", dh_space}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const S h = c.has("h") ? c.in<S>("h")(0, 0)
                           : static_cast<S>(std::sqrt(2.0) * std::pow(static_cast<double>(q.cols()), 0.25));
    const bool spatial = c.has("pq");
    const Mat<S> pq = c.in_or_none<S>("pq"), pk = c.in_or_none<S>("pk");
    const S h_space = spatial ? c.in<S>("h_space")(0, 0) : S(1);
    Mat<S> scores = scaled(-1 / (h * h), squared_distances(q, k));
    if (spatial) scores += scaled(-1 / (h_space * h_space), squared_distances(pq, pk));
    const PlainAttention<S> plain(scores, c.visible(q.rows(), k.rows()), v, c.dout<S>());
    const DistanceGradients<S> content(plain.ds, q, k, h);
    Tensors<S> all{{"out.out", plain.out},
                   {"grad.q", content.dx},
                   {"grad.k", content.dy},
                   {"grad.v", plain.dv},
                   {"grad.h", content.dh}};
    if (spatial) {
      const DistanceGradients<S> place(plain.ds, pq, pk, h_space);
      all["grad.pq"] = place.dx, all["grad.pk"] = place.dy, all["grad.h_space"] = place.dh;
    }
    return all;
  }
};

const Registered<Nlm> nlm_cases;

}  // namespace golden
