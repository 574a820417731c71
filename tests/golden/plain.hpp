// limpid: the plain formulas the golden tests compare float errors with, and the masks they share.
// SPDX-License-Identifier: MIT
#pragma once

#include <limits>
#include <limpid/limpid.hpp>

#include "../support/golden.hpp"
#include "../support/products.hpp"

namespace golden {

using suite::column_sums, suite::dot, suite::product, suite::product_nt, suite::product_tn, suite::row_sums,
    suite::scaled, suite::scaled_rows, suite::times, suite::transposed;

/// dS = A o (dA - delta 1^T), delta one number a row: sum_j A_ij dA_ij.
template <class S>
Mat<S> softmax_gradient(const Mat<S>& a, Mat<S> da, const Mat<S>& delta) {
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) da(i, j) = a(i, j) * (da(i, j) - delta(i, 0));
  return da;
}
template <class S>
Mat<S> softmax_gradient(const Mat<S>& a, const Mat<S>& da) {
  return softmax_gradient(a, da, row_sums(times(a, da)));
}

/// Softmax attention written down: everything n x m in memory, row by row.
template <class S>
struct PlainAttention {
  Mat<S> a, out, ds, dv;

  /// From scores, what is kept, values, and the gradient of out:
  /// A = softmax_rows(S), out = A V, dS = A o (dout V^T - delta 1^T), delta_i = dout_i . out_i, dV = A^T dout.
  PlainAttention(const Mat<S>& scores, const Mat<bool>& keep, const Mat<S>& v, const Mat<S>& dout) {
    a = Mat<S>::Zero(scores.rows(), scores.cols());
    for (Index i = 0; i < a.rows(); ++i) {
      S top = -std::numeric_limits<S>::infinity(), sum = 0;
      for (Index j = 0; j < a.cols(); ++j)
        if (keep(i, j)) top = std::max(top, scores(i, j));
      for (Index j = 0; j < a.cols(); ++j)
        if (keep(i, j)) sum += a(i, j) = std::exp(scores(i, j) - top);
      if (sum > 0)
        for (Index j = 0; j < a.cols(); ++j) a(i, j) /= sum;
    }
    out = product(a, v);
    ds = softmax_gradient(a, product_nt(dout, v), row_sums(times(dout, out)));
    dv = product_tn(a, dout);
  }
};

/// |x_i - y_j|^2, by differences.
template <class S>
Mat<S> squared_distances(const Mat<S>& x, const Mat<S>& y) {
  Mat<S> out(x.rows(), y.rows());
  for (Index i = 0; i < out.rows(); ++i)
    for (Index j = 0; j < out.cols(); ++j) {
      S sum = 0;
      for (Index c = 0; c < x.cols(); ++c) sum += (x(i, c) - y(j, c)) * (x(i, c) - y(j, c));
      out(i, j) = sum;
    }
  return out;
}

/// Gradients of S_ij = -|x_i - y_j|^2 / h^2 from dS: dx_i = -(2/h^2) sum_j dS_ij (x_i - y_j), dy the other way round,
/// dh = (2/h^3) sum dS_ij |x_i - y_j|^2.
template <class S>
struct DistanceGradients {
  Mat<S> dx, dy, dh;
  DistanceGradients(const Mat<S>& ds, const Mat<S>& x, const Mat<S>& y, S h) {
    const S c = 2 / (h * h);
    dx = scaled(c, Mat<S>(product(ds, y) - scaled_rows(row_sums(ds), x)));
    dy = scaled(c, Mat<S>(product_tn(ds, x) - scaled_rows(column_sums(ds), y)));
    dh = Mat<S>::Constant(1, 1, c / h * dot(ds, squared_distances(x, y)));
  }
};

/// What a case asks to be masked, decided when it is read: one kind of operator to compile for all cases.
struct CausalIfAsked : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true;
  bool asked = false;
  limpid::Interval interval(const limpid::At& a) const {
    return asked ? limpid::Causal().interval(a) : limpid::Interval{0, a.m};
  }
};
struct MaskIfGiven : limpid::MaskMatrix {
  bool given() const { return keep_.cols > 0; }
  bool keep(const limpid::At& a) const { return !given() || MaskMatrix::keep(a); }
  limpid::Cover cover(const limpid::At& a, Index q0, Index q1, Index k0, Index k1) const {
    return given() ? MaskMatrix::cover(a, q0, q1, k0, k1) : limpid::Cover::all;
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if (given()) MaskMatrix::check(op, b, h, n, m);
  }
};

/// Calls f with the modifiers the case asks for: its mask and the switch `causal`, either, both or neither.
template <class F>
auto with_masks(const Case& c, F&& f) {
  CausalIfAsked causal;
  causal.asked = c.flag("causal");
  const Mat<bool> keep = c.has("mask") ? c.mask() : Mat<bool>();
  MaskIfGiven mask;
  if (keep.size() > 0) mask.keep_ = keep;
  return f(limpid::chain(causal, mask));
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
