// limpid: Eigen's decompositions, for tests.
// SPDX-License-Identifier: MIT
#include "linear_algebra.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <utility>

namespace suite {

using limpid::Index, limpid::Mat;

std::vector<std::complex<double>> eigenvalues(const Mat<double>& a) {
  // in long double: what Eigen has of vectors for double takes twice as long to compile
  using Wide = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic>;
  Wide wide(a.rows(), a.cols());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) wide(i, j) = a(i, j);
  const Eigen::EigenSolver<Wide> solver(wide, false);
  std::vector<std::complex<double>> values;
  for (Index i = 0; i < a.rows(); ++i) values.emplace_back(solver.eigenvalues()(i));
  return values;
}

std::vector<double> symmetric_eigenvalues(const Mat<double>& a) {
  std::vector<double> real;
  for (const std::complex<double>& value : eigenvalues(a)) real.push_back(value.real());
  std::sort(real.begin(), real.end());
  return real;
}

Mat<double> orthonormal(const Mat<double>& a, Index cols) {
  Mat<double> q = a.leftCols(cols);
  for (Index j = 0; j < cols; ++j)
    for (int twice = 0; twice < 2; ++twice) {  // Gram and Schmidt's way; the second pass takes what rounding has left
      const auto along = [&](Index k) {
        double sum = 0;
        for (Index i = 0; i < q.rows(); ++i) sum += q(i, k) * q(i, j);
        return sum;
      };
      for (Index k = 0; k < j; ++k) {
        const double share = along(k);
        for (Index i = 0; i < q.rows(); ++i) q(i, j) -= share * q(i, k);
      }
      const double length = std::sqrt(along(j));
      for (Index i = 0; i < q.rows(); ++i) q(i, j) /= length;
    }
  return q;
}

namespace {

/// Gauss's way, with the largest entry of a column as pivot: b becomes x with a x = b. Returns the determinant of a.
double eliminate(Mat<double> a, Mat<double>& b) {
  const Index n = a.rows();
  double determinant = 1;
  for (Index j = 0; j < n; ++j) {
    Index top = j;
    for (Index i = j + 1; i < n; ++i)
      if (std::abs(a(i, j)) > std::abs(a(top, j))) top = i;
    if (top != j) {
      for (Index c = 0; c < n; ++c) std::swap(a(j, c), a(top, c));
      for (Index c = 0; c < b.cols(); ++c) std::swap(b(j, c), b(top, c));
      determinant = -determinant;
    }
    determinant *= a(j, j);
    for (Index i = j + 1; i < n; ++i) {
      const double share = a(i, j) / a(j, j);
      for (Index c = j; c < n; ++c) a(i, c) -= share * a(j, c);
      for (Index c = 0; c < b.cols(); ++c) b(i, c) -= share * b(j, c);
    }
  }
  for (Index j = n; j-- > 0;)
    for (Index c = 0; c < b.cols(); ++c) {
      for (Index k = j + 1; k < n; ++k) b(j, c) -= a(j, k) * b(k, c);
      b(j, c) /= a(j, j);
    }
  return determinant;
}

}  // namespace

Mat<double> solve(const Mat<double>& a, const Mat<double>& b) {
  Mat<double> x = b;
  eliminate(a, x);
  return x;
}
double determinant(const Mat<double>& a) {
  Mat<double> none(a.rows(), 0);
  return eliminate(a, none);
}

}  // namespace suite
