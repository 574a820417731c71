// limpid: golden cases of differential attention, its second version, and its layer.
// SPDX-License-Identifier: MIT
#include "two_maps.hpp"

namespace golden {

struct Differential {
  static constexpr const char* name = "differential";
  static constexpr const char* switches = "causal scale norm lambda_init eps heads kv_heads";
  static constexpr const char* vectors[4] = {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"};

  template <class S>
  static Tensors<S> library(const Case& c) {
    const limpid::TwoMapOptions options = two_map_options(c, 0.8);
    if (c.has("wq"))
      return run_two_map_layer<S>(c, [&](const auto& masks) { return limpid::differential(masks, options); });
    const bool one_key = c.has("k");
    const Mat<S> q = side_by_side<S>(c.in<S>("q1"), c.in<S>("q2")), v = c.in<S>("v"), dout = c.dout<S>();
    const Mat<S> k = one_key ? c.in<S>("k") : side_by_side<S>(c.in<S>("k1"), c.in<S>("k2"));
    const Mat<S> lambda = c.in_or_none<S>("lambda"), z = c.in_or_none<S>("logit");
    const Mat<S> gamma = c.has("gamma") ? c.row<S>("gamma") : Mat<S>();
    Mat<S> four[4];
    for (int i = 0; i < 4; ++i)
      if (c.has(vectors[i])) four[i] = c.row<S>(vectors[i]);
    Mat<S> dq = q, dk = k, dv = v, dlambda = lambda, dz = z, dgamma = gamma, out(q.rows(), v.cols());
    Mat<S> dfour[4] = {four[0], four[1], four[2], four[3]};
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::differential(masks, options);
      using Op = std::remove_const_t<decltype(op)>;
      const limpid::Inputs<Op, S> in{.q = q,
                                     .k = k,
                                     .v = v,
                                     .lambda = lambda,
                                     .lambda_q1 = four[0],
                                     .lambda_k1 = four[1],
                                     .lambda_q2 = four[2],
                                     .lambda_k2 = four[3],
                                     .z = z,
                                     .gamma = gamma};
      limpid::Saved<Op, S> saved;
      limpid::forward(op, in, out, {.saved = &saved});
      limpid::backward(op, in, saved, dout,
                       {.q = dq,
                        .k = dk,
                        .v = dv,
                        .lambda = dlambda,
                        .lambda_q1 = dfour[0],
                        .lambda_k1 = dfour[1],
                        .lambda_q2 = dfour[2],
                        .lambda_k2 = dfour[3],
                        .z = dz,
                        .gamma = dgamma});
    });
    const Index d = q.cols() / 2;
    Tensors<S> all{{"out.out", out},         {"grad.q1", dq.leftCols(d)}, {"grad.q2", dq.rightCols(d)}, {"grad.v", dv},
                   {"grad.lambda", dlambda}, {"grad.logit", dz},          {"grad.gamma", dgamma}};
    all[one_key ? "grad.k" : "grad.k1"] = one_key ? dk : Mat<S>(dk.leftCols(d));
    if (!one_key) all["grad.k2"] = dk.rightCols(d);
    for (int i = 0; i < 4; ++i) all["grad." + std::string(vectors[i])] = dfour[i];
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const limpid::TwoMapOptions options = two_map_options(c, 0.8);
    const bool layer = c.has("wq");
    const Mat<S> ones = Mat<S>::Ones(c.shape(layer ? "x" : "q1")[0], 1);
    Mat<S> lambda = scaled(static_cast<S>(options.lambda_init), ones);
    S e1 = 0, e2 = 0, sum = 0;
    if (c.has("lambda")) lambda = scaled(c.in<S>("lambda")(0, 0), ones);
    if (c.has("logit")) lambda = sigmoid(c.in<S>("logit"));
    if (c.has("lambda_q1")) {
      e1 = std::exp(dot(c.in<S>("lambda_q1"), c.in<S>("lambda_k1")));
      e2 = std::exp(dot(c.in<S>("lambda_q2"), c.in<S>("lambda_k2")));
      lambda = scaled(e1 - e2 + static_cast<S>(options.lambda_init), ones);
    }
    Tensors<S> all;
    if (layer) {
      all = plain_two_map_layer<S>(
          c, options, [&](Index) { return std::pair(ones, lambda); },
          [&](Index, const PlainTwoMaps<S>& plain) { sum += suite::sum(plain.dw2); });
    } else {
      const bool one_key = c.has("k");
      const Mat<S> gamma = c.has("gamma") ? c.row<S>("gamma") : Mat<S>();
      const PlainTwoMaps<S> plain(c, options, c.in<S>("q1"), c.in<S>(one_key ? "k" : "k1"), c.in<S>("q2"),
                                  c.in<S>(one_key ? "k" : "k2"), c.in<S>("v"), ones, lambda, gamma, c.dout<S>());
      all = {{"out.out", plain.out}, {"grad.q1", plain.dq1}, {"grad.q2", plain.dq2},      {"grad.k1", plain.dk1},
             {"grad.k2", plain.dk2}, {"grad.v", plain.dv},   {"grad.gamma", plain.dgamma}};
      if (one_key) all["grad.k"] = plain.dk1 + plain.dk2;
      all["grad.logit"] = times(plain.dw2, times<S>(lambda, ones - lambda));
      sum = suite::sum(plain.dw2);
    }
    all["grad.lambda"] = Mat<S>::Constant(1, 1, sum);
    if (c.has("lambda_q1")) {
      all["grad.lambda_q1"] = scaled(sum * e1, c.in<S>("lambda_k1"));
      all["grad.lambda_k1"] = scaled(sum * e1, c.in<S>("lambda_q1"));
      all["grad.lambda_q2"] = scaled(-sum * e2, c.in<S>("lambda_k2"));
      all["grad.lambda_k2"] = scaled(-sum * e2, c.in<S>("lambda_q2"));
    }
    return all;
  }
};

const Registered<Differential> differential_cases;

}  // namespace golden
