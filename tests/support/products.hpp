// limpid: products of small matrices by hand, their sums in order: what formulas written down in tests are made of.
// SPDX-License-Identifier: MIT
//
// Every free-form product of Eigen costs a test a second of compilation or more; these cost nothing.
#pragma once

#include <limpid/core/matrix.hpp>

namespace suite {

/// a b
template <class S>
limpid::Mat<S> product(const limpid::Mat<S>& a, const limpid::Mat<S>& b) {
  eigen_assert(a.cols() == b.rows());
  const limpid::Index n = a.rows(), m = b.cols(), d = a.cols();
  limpid::Mat<S> c(n, m);
  for (limpid::Index i = 0; i < n * m; ++i) c.data()[i] = S(0);
  for (limpid::Index i = 0; i < n; ++i)
    for (limpid::Index l = 0; l < d; ++l) {
      const S factor = a.data()[i * d + l];
      const S* from = b.data() + l * m;
      S* to = c.data() + i * m;
      for (limpid::Index j = 0; j < m; ++j) to[j] += factor * from[j];
    }
  return c;
}

template <class S>
limpid::Mat<S> transposed(const limpid::Mat<S>& a) {
  const limpid::Index n = a.cols(), m = a.rows();
  limpid::Mat<S> t(n, m);
  for (limpid::Index i = 0; i < n; ++i)
    for (limpid::Index j = 0; j < m; ++j) t.data()[i * m + j] = a.data()[j * n + i];
  return t;
}

/// a b^T
template <class S>
limpid::Mat<S> product_nt(const limpid::Mat<S>& a, const limpid::Mat<S>& b) {
  return product(a, transposed(b));
}
/// a^T b
template <class S>
limpid::Mat<S> product_tn(const limpid::Mat<S>& a, const limpid::Mat<S>& b) {
  return product(transposed(a), b);
}

template <class S>
limpid::Mat<S> scaled(S factor, limpid::Mat<S> a) {
  for (limpid::Index i = 0; i < a.size(); ++i) a.data()[i] *= factor;
  return a;
}

/// diag(d) a, d one number a row of a.
template <class S>
limpid::Mat<S> scaled_rows(const limpid::Mat<S>& d, limpid::Mat<S> a) {
  eigen_assert(d.size() == a.rows());
  for (limpid::Index i = 0; i < a.rows(); ++i)
    for (limpid::Index j = 0; j < a.cols(); ++j) a.data()[i * a.cols() + j] *= d.data()[i];
  return a;
}

/// a o b
template <class S>
limpid::Mat<S> times(limpid::Mat<S> a, const limpid::Mat<S>& b) {
  eigen_assert(a.rows() == b.rows() && a.cols() == b.cols());
  for (limpid::Index i = 0; i < a.size(); ++i) a.data()[i] *= b.data()[i];
  return a;
}

template <class S>
S sum(const limpid::Mat<S>& a) {
  S total(0);
  for (limpid::Index i = 0; i < a.size(); ++i) total += a.data()[i];
  return total;
}
/// Sum of a o b.
template <class S>
S dot(const limpid::Mat<S>& a, const limpid::Mat<S>& b) {
  return sum(times(a, b));
}

/// One number a row: n x 1.
template <class S>
limpid::Mat<S> row_sums(const limpid::Mat<S>& a) {
  limpid::Mat<S> sums(a.rows(), 1);
  for (limpid::Index i = 0; i < a.rows(); ++i) {
    S total(0);
    for (limpid::Index j = 0; j < a.cols(); ++j) total += a.data()[i * a.cols() + j];
    sums.data()[i] = total;
  }
  return sums;
}
/// One number a column: 1 x m.
template <class S>
limpid::Mat<S> column_sums(const limpid::Mat<S>& a) {
  return transposed(row_sums(transposed(a)));
}

}  // namespace suite
