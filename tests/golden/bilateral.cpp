// limpid: golden cases of bilateral attention.
// SPDX-License-Identifier: MIT
#include "plain.hpp"

namespace golden {

struct Bilateral {
  static constexpr const char* name = "bilateral";
  static constexpr const char* switches = "content spatial scale pscale causal";

  static limpid::BilateralOptions options(const Case& c) {
    const std::string content = c.text("content", "dot"), spatial = c.text("spatial", "dot");
    limpid::BilateralOptions o;
    if (content != "dot" && content != "dist") throw Refused("content '" + content + "' is not known");
    if (spatial != "dot" && spatial != "gauss" && spatial != "none")
      throw Refused("spatial '" + spatial + "' is not known");
    if (content == "dist") o.content = limpid::ContentKernel::dist;
    if (spatial == "gauss") o.spatial = limpid::SpatialKernel::gauss;
    if (spatial == "none") o.spatial = limpid::SpatialKernel::none;
    o.scale = c.number("scale", limpid::default_scale);
    o.pscale = c.number("pscale", limpid::default_scale);
    return o;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const Mat<S> h_range = c.in_or_none<S>("h_range"), h_space = c.in_or_none<S>("h_space");
    const Mat<S> a = c.in_or_none<S>("a"), b = c.in_or_none<S>("b"), pq = c.in_or_none<S>("pq"),
                 pk = c.in_or_none<S>("pk");
    Mat<S> dq = q, dk = k, dv = v, dh_range = h_range, dh_space = h_space, da = a, db = b, dpq = pq, dpk = pk,
           out(q.rows(), v.cols());
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::bilateral(masks, options(c));
      using Op = std::remove_const_t<decltype(op)>;
      const limpid::Inputs<Op, S> in{
          .q = q, .k = k, .v = v, .h_range = h_range, .a = a, .b = b, .pq = pq, .pk = pk, .h_space = h_space};
      limpid::Saved<Op, S> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, dout,
                       {.q = dq,
                        .k = dk,
                        .v = dv,
                        .h_range = dh_range,
                        .a = da,
                        .b = db,
                        .pq = dpq,
                        .pk = dpk,
                        .h_space = dh_space});
    });
    return {{"out.out", out}, {"grad.q", dq}, {"grad.k", dk},   {"grad.v", dv},   {"grad.h_range", dh_range},
            {"grad.a", da},   {"grad.b", db}, {"grad.pq", dpq}, {"grad.pk", dpk}, {"grad.h_space", dh_space}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const limpid::BilateralOptions o = options(c);
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v");
    const bool dist = o.content == limpid::ContentKernel::dist, dot = o.spatial == limpid::SpatialKernel::dot,
               gauss = o.spatial == limpid::SpatialKernel::gauss;
    const Mat<S> x = c.in_or_none<S>(gauss ? "pq" : "a"), y = c.in_or_none<S>(gauss ? "pk" : "b");
    const S h_range = dist ? c.in<S>("h_range")(0, 0) : S(1), h_space = gauss ? c.in<S>("h_space")(0, 0) : S(1);
    const S scale = static_cast<S>(c.scale(q.cols()));
    const S pscale = static_cast<S>(c.number("pscale", 1 / std::sqrt(static_cast<double>(x.cols()))));

    Mat<S> scores = scaled(scale, product_nt(q, k));
    if (dist) scores = scaled(-1 / (h_range * h_range), squared_distances(q, k));
    if (dot) scores += scaled(pscale, product_nt(x, y));
    if (gauss) scores += scaled(-1 / (h_space * h_space), squared_distances(x, y));
    const PlainAttention<S> plain(scores, c.visible(q.rows(), k.rows()), v, c.dout<S>());

    Tensors<S> all{{"out.out", plain.out},
                   {"grad.q", scaled(scale, product(plain.ds, k))},
                   {"grad.k", scaled(scale, product_tn(plain.ds, q))},
                   {"grad.v", plain.dv}};
    if (dist) {
      const DistanceGradients<S> content(plain.ds, q, k, h_range);
      all["grad.q"] = content.dx, all["grad.k"] = content.dy, all["grad.h_range"] = content.dh;
    }
    if (dot)
      all["grad.a"] = scaled(pscale, product(plain.ds, y)), all["grad.b"] = scaled(pscale, product_tn(plain.ds, x));
    if (gauss) {
      const DistanceGradients<S> place(plain.ds, x, y, h_space);
      all["grad.pq"] = place.dx, all["grad.pk"] = place.dy, all["grad.h_space"] = place.dh;
    }
    return all;
  }
};

const Registered<Bilateral> bilateral_cases;

}  // namespace golden
