// limpid: softmax and non-local-means attention written down, with everything n x m in memory: what errors are measured
// by.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>
#include <limpid/core/matrix.hpp>
#include <map>
#include <string>

namespace suite {

/// One head: the output and the gradient of every input, by the formulas as they stand in a paper.
template <class S>
struct Naive {
  using Matrix = limpid::Mat<S>;
  using Index = limpid::Index;
  Matrix out;
  std::map<std::string, Matrix> grad;

  /// S = q k^T / sqrt(d)
  static Naive softmax(const Matrix& q, const Matrix& k, const Matrix& v, const Matrix& dout) {
    Naive r;
    const S scale = S(1) / std::sqrt(S(q.cols()));
    const Matrix ds = r.attend(scaled(scale, product(q, k.transpose())), v, dout);
    r.grad["q"] = scaled(scale, product(ds, k));
    r.grad["k"] = scaled(scale, product(ds.transpose(), q));
    return r;
  }

  /// S = -|q - k|^2 / h^2 - |pq - pk|^2 / h_space^2
  static Naive nlm(const Matrix& q, const Matrix& k, const Matrix& v, S h, const Matrix& pq, const Matrix& pk,
                   S h_space, const Matrix& dout) {
    Naive r;
    const Matrix content = distances(q, k), space = distances(pq, pk);
    const Matrix ds = r.attend(-content / (h * h) - space / (h_space * h_space), v, dout);
    r.distance_gradients(ds, content, q, k, h, "q", "k", "h");
    r.distance_gradients(ds, space, pq, pk, h_space, "pq", "pk", "h_space");
    return r;
  }

 private:
  // By hand: Eigen's own product makes g++ 12 warn of its intrinsics. The sums run in order, as in a product of blocks.
  static Matrix product(const Matrix& a, const Matrix& b) {
    Matrix c = Matrix::Zero(a.rows(), b.cols());
    for (Index i = 0; i < a.rows(); ++i)
      for (Index k = 0; k < a.cols(); ++k)
        for (Index j = 0; j < b.cols(); ++j) c(i, j) += a(i, k) * b(k, j);
    return c;
  }
  static Matrix scaled(S factor, Matrix m) {
    m *= factor;
    return m;
  }
  /// A = softmax_rows(s), out = A v, dv = A^T dout; returns dS.
  Matrix attend(Matrix s, const Matrix& v, const Matrix& dout) {
    for (Index i = 0; i < s.rows(); ++i) {
      S top = -std::numeric_limits<S>::infinity(), sum(0);
      for (Index j = 0; j < s.cols(); ++j) top = std::max(top, s(i, j));
      for (Index j = 0; j < s.cols(); ++j) sum += s(i, j) = std::exp(s(i, j) - top);
      for (Index j = 0; j < s.cols(); ++j) s(i, j) /= sum;
    }
    out = product(s, v);
    grad["v"] = product(s.transpose(), dout);
    Matrix ds = product(dout, v.transpose());
    for (Index i = 0; i < s.rows(); ++i) {
      S delta(0);
      for (Index c = 0; c < out.cols(); ++c) delta += dout(i, c) * out(i, c);
      for (Index j = 0; j < s.cols(); ++j) ds(i, j) = s(i, j) * (ds(i, j) - delta);
    }
    return ds;
  }

  static Matrix distances(const Matrix& x, const Matrix& y) {
    Matrix all(x.rows(), y.rows());
    for (Index i = 0; i < all.rows(); ++i)
      for (Index j = 0; j < all.cols(); ++j) {
        S sum(0);
        for (Index c = 0; c < x.cols(); ++c) sum += (x(i, c) - y(j, c)) * (x(i, c) - y(j, c));
        all(i, j) = sum;
      }
    return all;
  }

  void distance_gradients(const Matrix& ds, const Matrix& squares, const Matrix& x, const Matrix& y, S h,
                          const char* x_name, const char* y_name, const char* h_name) {
    Matrix dx = Matrix::Zero(x.rows(), x.cols()), dy = Matrix::Zero(y.rows(), y.cols());
    S dh(0);
    for (Index i = 0; i < ds.rows(); ++i)
      for (Index j = 0; j < ds.cols(); ++j) {
        const S g = S(-2) / (h * h) * ds(i, j);
        for (Index c = 0; c < x.cols(); ++c) {
          const S by = g * (x(i, c) - y(j, c));
          dx(i, c) += by, dy(j, c) -= by;
        }
        dh += S(2) / (h * h * h) * ds(i, j) * squares(i, j);
      }
    grad[x_name] = dx, grad[y_name] = dy, grad[h_name] = Matrix::Constant(1, 1, dh);
  }
};

}  // namespace suite
