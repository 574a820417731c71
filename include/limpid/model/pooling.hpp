// limpid: one row of a text or an image from the rows of its tokens.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {
namespace detail {

template <class S>
void check_pooling(const char* op, View<S> x, View<S> weights) {
  if (weights.rows < 1 || weights.cols < 1 || x.rows != weights.rows * weights.cols)
    limpid::detail::raise(std::string(op) + ": tokens are " + limpid::detail::shape_text(x.rows, x.cols) +
                          " and weights " + limpid::detail::shape_text(weights.rows, weights.cols) +
                          ", wanted a weight a token, an item a row");
}

}  // namespace detail

/// The weights of a mean over the kept tokens of each item: keep is batch x n, not 0 where a token counts; 1 / count
/// there and 0 elsewhere, which is also the start of the relevance of a mean-pooled answer. Throws ShapeError for an
/// item without tokens.
template <class S, class Keep>
Mat<S> mean_weights(const Keep& keep) {
  Mat<S> out = Mat<S>::Zero(keep.rows(), keep.cols());
  for (Index b = 0; b < keep.rows(); ++b) {
    Index count = 0;
    for (Index i = 0; i < keep.cols(); ++i) count += keep(b, i) ? 1 : 0;
    if (count == 0)
      limpid::detail::raise("mean_weights: item " + std::to_string(b) + " keeps no token, wanted one at least");
    for (Index i = 0; i < keep.cols(); ++i)
      if (keep(b, i)) out(b, i) = S(1) / S(double(count));
  }
  return out;
}

/// A sum of the tokens of each item: x (B n) x D, weights B x n, the result B x D. A token of weight 0 is not looked
/// at. Throws ShapeError where they do not fit.
template <class S>
Mat<S> pool(const Mat<S>& x, const Mat<S>& weights) {
  detail::check_pooling<S>("pool", x, weights);
  Mat<S> out = Mat<S>::Zero(weights.rows(), x.cols());
  for (Index b = 0; b < weights.rows(); ++b)
    for (Index i = 0; i < weights.cols(); ++i)
      if (weights(b, i) != S(0)) out.row(b) += weights(b, i) * x.row(b * weights.cols() + i);
  return out;
}
/// The gradient of the tokens, (B n) x D, from that of pool, B x D; weights as pool has them.
template <class S>
Mat<S> pool_backward(const Mat<S>& weights, const Mat<S>& dout) {
  Mat<S> dx(weights.size(), dout.cols());
  for (Index b = 0; b < weights.rows(); ++b)
    for (Index i = 0; i < weights.cols(); ++i) dx.row(b * weights.cols() + i) = weights(b, i) * dout.row(b);
  return dx;
}

/// Every row of x, B x D, over its length, or over 1e-12 where that is more, as sentence embeddings are compared.
template <class S>
Mat<S> unit_rows(const Mat<S>& x) {
  Mat<S> out = x;
  for (Index i = 0; i < x.rows(); ++i) out.row(i) /= std::max(x.row(i).norm(), S(1e-12));
  return out;
}
/// dx = (dy - y (y . dy)) / |x| for every row; x and dout B x D.
template <class S>
Mat<S> unit_rows_backward(const Mat<S>& x, const Mat<S>& dout) {
  Mat<S> dx = dout;
  for (Index i = 0; i < x.rows(); ++i) {
    const S length = x.row(i).norm();
    if (length > S(1e-12)) dx.row(i) -= x.row(i) * (x.row(i).dot(dout.row(i)) / (length * length));
    dx.row(i) /= std::max(length, S(1e-12));
  }
  return dx;
}

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
