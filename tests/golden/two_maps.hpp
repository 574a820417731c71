// limpid: what the golden cases of differential and gated differential attention share: arguments side by side, the
// layer, and the plain formula.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/layer/differential.hpp>

#include "plain.hpp"

namespace golden {

template <class S>
Mat<S> side_by_side(const Mat<S>& a, const Mat<S>& b) {
  Mat<S> both(a.rows(), a.cols() + b.cols());
  both << a, b;
  return both;
}

inline limpid::TwoMapOptions two_map_options(const Case& c, double lambda_init) {
  limpid::TwoMapOptions options;
  options.scale = c.number("scale", limpid::default_scale);
  options.lambda_init = c.number("lambda_init", lambda_init);
  options.eps = c.number("eps", 1e-5);
  const std::string norm = c.text("norm", "none");
  if (norm != "rms" && norm != "none") throw Refused("switch norm is '" + norm + "', wanted rms or none");
  options.norm = norm == "rms" ? limpid::HeadNorm::rms : limpid::HeadNorm::none;
  return options;
}

/// A layer case, forward and backward. make(masks) gives the operator; every input but the mask is a parameter.
template <class S, class Make>
Tensors<S> run_two_map_layer(const Case& c, Make&& make) {
  using Args = limpid::TwoMapLayerArgs<limpid::View<S>>;
  using Grads = limpid::TwoMapLayerArgs<limpid::MutView<S>>;
  std::map<std::string, Mat<S>> in;
  for (const char* name : {"x", "wq", "wk", "wv", "wo", "gate_w"})
    if (c.has(name)) in[name] = c.in<S>(name);
  for (const char* name : {"gate_b", "gamma", "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "lambda"})
    if (c.has(name)) in[name] = c.row<S>(name);
  Tensors<S> all;
  for (auto& [name, x] : in) all["grad." + name] = x;
  const auto fill = [&](auto& to, auto&& find) {
    to.x = find("x"), to.wq = find("wq"), to.wk = find("wk"), to.wv = find("wv"), to.wo = find("wo");
    to.gate_w = find("gate_w"), to.gate_b = find("gate_b"), to.gamma = find("gamma"), to.lambda = find("lambda");
    to.lambda_q1 = find("lambda_q1"), to.lambda_k1 = find("lambda_k1");
    to.lambda_q2 = find("lambda_q2"), to.lambda_k2 = find("lambda_k2");
  };
  Args args;
  Grads grads;
  fill(args, [&](const char* name) { return in.count(name) ? limpid::View<S>(in.at(name)) : limpid::View<S>(); });
  fill(grads, [&](const char* name) {
    return in.count(name) ? limpid::MutView<S>(all.at("grad." + std::string(name))) : limpid::MutView<S>();
  });
  Mat<S> out(args.x.rows, args.wo.cols);
  const Mat<S> dout = c.dout<S>();
  with_masks(c, [&](const auto& masks) {
    const auto op = make(masks);
    const Index heads = c.count("heads", 1);
    const auto layer = limpid::two_map_layer(op, heads, c.count("kv_heads", heads));
    limpid::TwoMapLayerSaved<std::remove_const_t<decltype(op)>, S> saved;
    layer.forward(args, out, {.saved = &saved});
    layer.backward(args, saved, dout, grads);
  });
  all["out.out"] = out;
  return all;
}

/// 1 / (1 + exp(-z))
template <class S>
Mat<S> sigmoid(Mat<S> z) {
  for (Index i = 0; i < z.size(); ++i) z.data()[i] = 1 / (1 + std::exp(-z.data()[i]));
  return z;
}

/// One head of two maps by the formulas of the papers, everything n x m in memory; gamma may be empty.
template <class S>
struct PlainTwoMaps {
  Mat<S> out, dq1, dk1, dq2, dk2, dv, dgamma, dw1, dw2;  // dw: n x 1, of the row weights

  PlainTwoMaps(const Case& c, const limpid::TwoMapOptions& options, const Mat<S>& q1, const Mat<S>& k1,
               const Mat<S>& q2, const Mat<S>& k2, const Mat<S>& v, const Mat<S>& w1, const Mat<S>& w2,
               const Mat<S>& weight_of_norm, const Mat<S>& dout) {
    const S scale = static_cast<S>(c.scale(q1.cols()));
    const Mat<bool> keep = c.visible(q1.rows(), k1.rows());
    const PlainAttention<S> a(scaled(scale, product_nt(q1, k1)), keep, v, dout),
        b(scaled(scale, product_nt(q2, k2)), keep, v, dout);
    const Mat<S> h = scaled_rows(w1, a.out) - scaled_rows(w2, b.out);
    Mat<S> dh = dout;
    out = h;
    const Mat<S> gamma = weight_of_norm.size() > 0 ? weight_of_norm : Mat<S>::Ones(1, h.cols());
    dgamma = Mat<S>::Zero(1, h.cols());
    if (options.norm == limpid::HeadNorm::rms) {
      const S factor = static_cast<S>(1 - options.lambda_init), width = static_cast<S>(h.cols());
      for (Index i = 0; i < h.rows(); ++i) {
        S squares = 0;
        for (Index c = 0; c < h.cols(); ++c) squares += h(i, c) * h(i, c);
        const S r = 1 / std::sqrt(squares / width + static_cast<S>(options.eps));
        S along = 0;  // h_i . u_i, u = factor gamma o dout
        for (Index c = 0; c < h.cols(); ++c) along += h(i, c) * factor * gamma(0, c) * dout(i, c);
        for (Index c = 0; c < h.cols(); ++c) {
          out(i, c) = factor * r * gamma(0, c) * h(i, c);
          dh(i, c) = r * factor * gamma(0, c) * dout(i, c) - r * r * r / width * along * h(i, c);
          dgamma(0, c) += factor * r * dout(i, c) * h(i, c);
        }
      }
    }
    const Mat<S> p = product_nt(dh, v);
    dw1 = row_sums(times(dh, a.out)), dw2 = row_sums(times(dh, b.out));
    const Mat<S> ds1 = scaled_rows(w1, softmax_gradient(a.a, p, dw1));
    const Mat<S> ds2 = scaled(S(-1), scaled_rows(w2, softmax_gradient(b.a, p, dw2)));
    dq1 = scaled(scale, product(ds1, k1)), dk1 = scaled(scale, product_tn(ds1, q1));
    dq2 = scaled(scale, product(ds2, k2)), dk2 = scaled(scale, product_tn(ds2, q2));
    dv = product_tn(a.a, scaled_rows(w1, dh)) - product_tn(b.a, scaled_rows(w2, dh));
    dw2 = -dw2;
  }
};

/// The layer by the formulas: weights(head) gives w1 and w2 (n x 1 each), take(head, plain) receives what a head says
/// about the gradients of its own parameters.
template <class S, class Weights, class Take>
Tensors<S> plain_two_map_layer(const Case& c, const limpid::TwoMapOptions& options, Weights&& weights, Take&& take) {
  const Mat<S> x = c.in<S>("x"), wq = c.in<S>("wq"), wk = c.in<S>("wk"), wv = c.in<S>("wv"), wo = c.in<S>("wo");
  const Mat<S> gamma = c.has("gamma") ? c.row<S>("gamma") : Mat<S>(), dout = c.dout<S>();
  const Mat<S> q = product(x, wq), k = product(x, wk), v = product(x, wv), dy = product_nt(dout, wo);
  const Index heads = c.count("heads", 1), groups = c.count("kv_heads", heads), d = wq.cols() / heads / 2,
              width = v.cols() / groups, key = wk.cols() / groups, second = key - d;  // second = 0: one key for both
  Mat<S> y(x.rows(), heads * width), dq(q.rows(), q.cols()), dk = Mat<S>::Zero(k.rows(), k.cols()),
                                                             dv = Mat<S>::Zero(v.rows(), v.cols());
  Tensors<S> all;
  for (Index h = 0; h < heads; ++h) {
    const Index g = h * groups / heads;
    const auto [w1, w2] = weights(h);
    const PlainTwoMaps<S> plain(c, options, q.middleCols(2 * h * d, d), k.middleCols(g * key, d),
                                q.middleCols((2 * h + 1) * d, d), k.middleCols(g * key + second, d),
                                v.middleCols(g * width, width), w1, w2, gamma, dy.middleCols(h * width, width));
    y.middleCols(h * width, width) = plain.out;
    dq.middleCols(2 * h * d, d) = plain.dq1, dq.middleCols((2 * h + 1) * d, d) = plain.dq2;
    dk.middleCols(g * key, d) += plain.dk1, dk.middleCols(g * key + second, d) += plain.dk2;
    dv.middleCols(g * width, width) += plain.dv;
    Mat<S>& sum = all["grad.gamma"];
    sum = h == 0 ? plain.dgamma : Mat<S>(sum + plain.dgamma);
    take(h, plain);
  }
  all["out.out"] = product(y, wo);
  all["grad.wo"] = product_tn(y, dout);
  all["grad.wq"] = product_tn(x, dq), all["grad.wk"] = product_tn(x, dk), all["grad.wv"] = product_tn(x, dv);
  all["grad.x"] = Mat<S>(product_nt(dq, wq) + product_nt(dk, wk)) + product_nt(dv, wv);
  return all;
}

}  // namespace golden
