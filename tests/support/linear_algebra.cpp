// limpid: Eigen's decompositions, for tests.
// SPDX-License-Identifier: MIT
#include "linear_algebra.hpp"

#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <algorithm>
#include <cmath>

namespace suite {

using limpid::Index, limpid::Mat;

std::vector<std::complex<double>> eigenvalues(const Mat<double>& a) {
  const Eigen::EigenSolver<Eigen::MatrixXd> solver(Eigen::MatrixXd(a), false);
  return {solver.eigenvalues().data(), solver.eigenvalues().data() + a.rows()};
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

Mat<double> solve(const Mat<double>& a, const Mat<double>& b) { return Eigen::MatrixXd(a).partialPivLu().solve(b); }
double determinant(const Mat<double>& a) { return Eigen::MatrixXd(a).determinant(); }

}  // namespace suite
