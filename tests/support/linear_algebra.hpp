// limpid: decompositions for tests, by hand: each of Eigen's costs seconds to compile.
// SPDX-License-Identifier: MIT
#pragma once

#include <complex>
#include <limpid/core/matrix.hpp>
#include <vector>

namespace suite {

/// Eigenvalues of any square matrix, in any order.
std::vector<std::complex<double>> eigenvalues(const limpid::Mat<double>& a);

/// Eigenvalues of a symmetric matrix, smallest first.
std::vector<double> symmetric_eigenvalues(const limpid::Mat<double>& a);

/// An orthonormal basis of the first `cols` columns.
limpid::Mat<double> orthonormal(const limpid::Mat<double>& a, limpid::Index cols);

/// x with a x = b.
limpid::Mat<double> solve(const limpid::Mat<double>& a, const limpid::Mat<double>& b);
double determinant(const limpid::Mat<double>& a);

}  // namespace suite
