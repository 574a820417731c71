// limpid: decompositions, for tests.
// SPDX-License-Identifier: MIT
#include "linear_algebra.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace suite {

using limpid::Index, limpid::Mat;

std::vector<std::complex<double>> eigenvalues(const Mat<double>& a) {
  // QR with Wilkinson's shift: the last row goes to zero beside its diagonal, which then is an eigenvalue
  using Complex = std::complex<double>;
  std::vector<std::vector<Complex>> x(static_cast<std::size_t>(a.rows()));
  for (std::size_t i = 0; i < x.size(); ++i)
    for (Index j = 0; j < a.cols(); ++j) x[i].push_back(a(static_cast<Index>(i), j));
  const double size = a.norm();
  std::vector<Complex> values;
  for (int step = 0; !x.empty(); ++step) {
    const std::size_t n = x.size(), last = n - 1;
    double rest = 0;
    for (std::size_t j = 0; j < last; ++j) rest += std::abs(x[last][j]);
    if (rest <= 1e-15 * size) {
      values.push_back(x[last][last]);
      x.pop_back();
      for (auto& row : x) row.pop_back();
      continue;
    }
    if (step > 100 * a.rows()) throw std::runtime_error("eigenvalues: no end");
    const Complex middle = (x[last - 1][last - 1] + x[last][last]) / 2.0, half = middle - x[last][last],
                  root = std::sqrt(half * half + x[last - 1][last] * x[last][last - 1]),
                  shift = std::abs(half - root) < std::abs(half + root) ? middle - root : middle + root;
    for (std::size_t i = 0; i < n; ++i) x[i][i] -= shift;
    struct Turn {
      std::size_t i, j;
      Complex c, s;
    };
    std::vector<Turn> turns;
    for (std::size_t j = 0; j < last; ++j)
      for (std::size_t i = j + 1; i < n; ++i) {
        const double length = std::hypot(std::abs(x[j][j]), std::abs(x[i][j]));
        if (std::abs(x[i][j]) == 0) continue;
        const Turn t{i, j, x[j][j] / length, x[i][j] / length};
        for (std::size_t k = 0; k < n; ++k) {
          const Complex upper = x[j][k], lower = x[i][k];
          x[j][k] = std::conj(t.c) * upper + std::conj(t.s) * lower, x[i][k] = t.c * lower - t.s * upper;
        }
        turns.push_back(t);
      }
    for (const Turn& t : turns)
      for (std::size_t k = 0; k < n; ++k) {
        const Complex left = x[k][t.j], right = x[k][t.i];
        x[k][t.j] = left * t.c + right * t.s, x[k][t.i] = right * std::conj(t.c) - left * std::conj(t.s);
      }
    for (std::size_t i = 0; i < n; ++i) x[i][i] += shift;
  }
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
