// limpid: the plain formulas the golden tests compare float errors with, and the masks they share.
// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <limpid/limpid.hpp>

#include "../support/golden.hpp"

namespace golden {

/// Softmax attention written down: everything n x m in memory, row by row.
template <class S>
struct PlainAttention {
  Mat<S> a, out, ds, dv;

  /// From scores, what is kept, values, and the gradient of out:
  /// A = softmax_rows(S), out = A V, dS = A o (dout V^T - delta 1^T), dV = A^T dout.
  PlainAttention(const Mat<S>& scores, const Mat<bool>& keep, const Mat<S>& v, const Mat<S>& dout) {
    a = Mat<S>::Zero(scores.rows(), scores.cols());
    for (Index i = 0; i < a.rows(); ++i) {
      S top = -std::numeric_limits<S>::infinity(), sum = 0;
      for (Index j = 0; j < a.cols(); ++j)
        if (keep(i, j)) top = std::max(top, scores(i, j));
      for (Index j = 0; j < a.cols(); ++j)
        if (keep(i, j)) sum += a(i, j) = std::exp(scores(i, j) - top);
      if (sum > 0) a.row(i) /= sum;
    }
    out = a * v;
    const Mat<S> da = dout * v.transpose();
    const Mat<S> delta = dout.cwiseProduct(out).rowwise().sum();
    ds = a.cwiseProduct(da - delta.replicate(1, a.cols()));
    dv = a.transpose() * dout;
  }
};

/// dS = A o (dA - delta 1^T), delta_i = sum_j A_ij dA_ij.
template <class S>
Mat<S> softmax_gradient(const Mat<S>& a, const Mat<S>& da) {
  const Mat<S> delta = a.cwiseProduct(da).rowwise().sum();
  return a.cwiseProduct(da - delta.replicate(1, a.cols()));
}

/// |x_i - y_j|^2, by differences.
template <class S>
Mat<S> squared_distances(const Mat<S>& x, const Mat<S>& y) {
  Mat<S> out(x.rows(), y.rows());
  for (Index i = 0; i < out.rows(); ++i)
    for (Index j = 0; j < out.cols(); ++j) out(i, j) = (x.row(i) - y.row(j)).squaredNorm();
  return out;
}

/// Gradients of S_ij = -|x_i - y_j|^2 / h^2 from dS: dx_i = -(2/h^2) sum_j dS_ij (x_i - y_j), dy the other way round,
/// dh = (2/h^3) sum dS_ij |x_i - y_j|^2.
template <class S>
struct DistanceGradients {
  Mat<S> dx, dy, dh;
  DistanceGradients(const Mat<S>& ds, const Mat<S>& x, const Mat<S>& y, S h) {
    const S c = 2 / (h * h);
    dx = c * (ds * y) - c * ds.rowwise().sum().asDiagonal() * x;
    dy = c * (ds.transpose() * x) - c * ds.colwise().sum().transpose().asDiagonal() * y;
    dh = Mat<S>::Constant(1, 1, c / h * ds.cwiseProduct(squared_distances(x, y)).sum());
  }
};

/// Calls f with the modifiers the case asks for: its mask and the switch `causal`, either, both or neither.
template <class F>
auto with_masks(const Case& c, F&& f) {
  const bool causal = c.flag("causal");
  if (!c.has("mask")) return causal ? f(limpid::chain(limpid::causal())) : f(limpid::chain());
  const Mat<bool> keep = c.mask();
  return causal ? f(limpid::chain(limpid::causal() & limpid::mask_matrix(keep)))
                : f(limpid::chain(limpid::mask_matrix(keep)));
}

/// As with_masks, with fewer kinds of operator to compile: causal alone, or a matrix of what is visible.
template <class F>
void with_visible(const Case& c, Index n, Index m, F&& f) {
  if (c.flag("causal") && !c.has("mask")) return f(limpid::causal());
  const Mat<bool> keep = c.visible(n, m);
  f(limpid::mask_matrix(keep));
}

/// Forward and backward of an operator that maps q, k, v to out: "out.out", "grad.q", "grad.k", "grad.v".
template <class S, class Op>
Tensors<S> run_qkv(const Op& op, const Mat<S>& q, const Mat<S>& k, const Mat<S>& v, const Mat<S>& dout) {
  Mat<S> out(q.rows(), v.cols()), dq(q.rows(), q.cols()), dk(k.rows(), k.cols()), dv(v.rows(), v.cols());
  limpid::Saved<Op, S> saved;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
  return {{"out.out", out}, {"grad.q", dq}, {"grad.k", dk}, {"grad.v", dv}};
}

}  // namespace golden
