// limpid: golden cases of gated differential attention and its layer.
// SPDX-License-Identifier: MIT
#include "two_maps.hpp"

namespace golden {

struct DifferentialGated {
  static constexpr const char* name = "differential_gated";
  static constexpr const char* switches = "causal scale norm lambda_init eps heads kv_heads";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const limpid::TwoMapOptions options = two_map_options(c, 0.8);
    if (c.has("wq"))
      return run_two_map_layer<S>(c, [&](const auto& masks) { return limpid::differential_gated(masks, options); });
    const Mat<S> q = side_by_side<S>(c.in<S>("q1"), c.in<S>("q2")), k = side_by_side<S>(c.in<S>("k1"), c.in<S>("k2"));
    const Mat<S> v = c.in<S>("v"), x = c.in<S>("x"), gate_w = c.in<S>("gate_w"), gate_b = c.row<S>("gate_b");
    const Mat<S> gamma = c.has("gamma") ? c.row<S>("gamma") : Mat<S>(), dout = c.dout<S>();
    Mat<S> z(x.rows(), 1), out(q.rows(), v.cols());
    limpid::linear(x, gate_w, gate_b, z);
    Mat<S> dq = q, dk = k, dv = v, dz = z, dgamma = gamma, dx = x, dgate_w = gate_w, dgate_b = gate_b;
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::differential_gated(masks, options);
      using Op = std::remove_const_t<decltype(op)>;
      const limpid::Inputs<Op, S> in{.q = q, .k = k, .v = v, .z = z, .gamma = gamma};
      limpid::Saved<Op, S> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, dout, {.q = dq, .k = dk, .v = dv, .z = dz, .gamma = dgamma});
    });
    limpid::linear_backward(x, gate_w, dz, {.x = dx, .w = dgate_w, .b = dgate_b});
    const Index d = q.cols() / 2;
    return {{"out.out", out},
            {"grad.q1", dq.leftCols(d)},
            {"grad.q2", dq.rightCols(d)},
            {"grad.k1", dk.leftCols(d)},
            {"grad.k2", dk.rightCols(d)},
            {"grad.v", dv},
            {"grad.gamma", dgamma},
            {"grad.x", dx},
            {"grad.gate_w", dgate_w},
            {"grad.gate_b", dgate_b}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const limpid::TwoMapOptions options = two_map_options(c, 0.8);
    const Mat<S> x = c.in<S>("x"), gate_w = c.in<S>("gate_w");
    Mat<S> z = product(x, gate_w);
    const Mat<S> bias = c.in<S>("gate_b");
    for (Index i = 0; i < z.rows(); ++i)
      for (Index h = 0; h < z.cols(); ++h) z(i, h) += bias(h, 0);
    const Mat<S> g = sigmoid(z), rest = sigmoid(scaled(S(-1), z));
    Mat<S> dz(z.rows(), z.cols());
    const auto gate_gradient = [&](Index h, const PlainTwoMaps<S>& plain) {  // dw1 - dw2 is dg
      for (Index i = 0; i < dz.rows(); ++i) dz(i, h) = (plain.dw1(i, 0) - plain.dw2(i, 0)) * g(i, h) * rest(i, h);
    };
    Tensors<S> all;
    if (c.has("wq")) {
      all = plain_two_map_layer<S>(
          c, options, [&](Index h) { return std::pair<Mat<S>, Mat<S>>(g.col(h), rest.col(h)); }, gate_gradient);
      all["grad.x"] += product_nt(dz, gate_w);
    } else {
      const Mat<S> gamma = c.has("gamma") ? c.row<S>("gamma") : Mat<S>();
      const PlainTwoMaps<S> plain(c, options, c.in<S>("q1"), c.in<S>("k1"), c.in<S>("q2"), c.in<S>("k2"), c.in<S>("v"),
                                  g, rest, gamma, c.dout<S>());
      gate_gradient(0, plain);
      all = {{"out.out", plain.out}, {"grad.q1", plain.dq1}, {"grad.q2", plain.dq2},      {"grad.k1", plain.dk1},
             {"grad.k2", plain.dk2}, {"grad.v", plain.dv},   {"grad.gamma", plain.dgamma}};
      all["grad.x"] = product_nt(dz, gate_w);
    }
    all["grad.gate_w"] = product_tn(x, dz);
    all["grad.gate_b"] = column_sums(dz);
    return all;
  }
};

const Registered<DifferentialGated> differential_gated_cases;

}  // namespace golden
