// limpid: the data of the denoising theorem: tokens near a union of subspaces.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/random.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct SubspaceDataOptions {
  Index tokens = 400;   ///< n; token i is of class i mod classes, so the classes differ in size by one at most
  Index classes = 8;    ///< K, one subspace each
  Index width = 48;     ///< p, dimension of a subspace
  Index dim = 0;        ///< D, at least K p; 0 means K p
  double delta = 0.05;  ///< standard deviation of the noise in the subspaces of the other classes
  std::uint64_t seed = 1;
};

/// Tokens x (n x D), the orthonormal basis u (D x (K p), class k in columns k p .. (k + 1) p - 1)
/// and the class of every token.
template <class S>
struct SubspaceData {
  Mat<S> x, u;
  std::vector<Index> labels;
};

/// Data of Definition 1 of "Attention-Only Transformers via Unrolled Subspace Denoising", ICML 2025, arXiv 2506.03790:
/// a random orthonormal u and, for a token of class k,
///
///     x_i = a_i U_k^T + sum_{j != k} e_ij U_j^T,     a_i ~ N(0, I_p),   e_ij ~ N(0, delta^2 I_p)
///
/// Its theorem: with threshold MSSA (tied, scale 1, tau in (1/2, 1 / (1 + n exp(-9 p / 32))], these u, no norm) every
/// layer x <- x + eta MSSA(x) multiplies every class's ratio by 1 + eta tau. At finite n that holds while delta sqrt(p)
/// (1 + eta tau)^layer stays below 1.2 to 1.6, by the seed (measured, ours; examples/subspace_denoising.cpp). Throws
/// ShapeError where dim < classes width, and for sizes that are negative or fit into no memory.
template <class S>
SubspaceData<S> subspace_data(const SubspaceDataOptions& options = {}) {
  if (options.tokens < 0 || options.classes < 1 || options.width < 1 || options.dim < 0 ||
      !detail::fits_memory(options.classes, options.width))
    detail::raise("subspace_data: tokens is " + detail::text_of(options.tokens) + ", classes " +
                  detail::text_of(options.classes) + ", width " + detail::text_of(options.width) + " and dim " +
                  detail::text_of(options.dim) + ", wanted positive numbers that memory has room for");
  const Index width = options.classes * options.width, dim = options.dim == 0 ? width : options.dim;
  if (dim < width)
    detail::raise("subspace_data: dim is " + detail::text_of(dim) +
                  ", wanted at least classes width = " + detail::text_of(width));
  if (!detail::fits_memory(width, dim) || !detail::fits_memory(options.tokens, dim))
    detail::raise("subspace_data: tokens is " + detail::text_of(options.tokens) + ", classes width " +
                  detail::text_of(width) + " and dim " + detail::text_of(dim) + ", wanted arrays of at most " +
                  detail::text_of(detail::most_entries) + " entries");
  detail::check_factor<S>("subspace_data", "delta", options.delta);
  detail::NormalNumbers normal(options.seed);
  Mat<double> basis(width, dim), x = Mat<double>::Zero(options.tokens, dim);  // a basis vector a row
  for (Index r = 0; r < width; ++r) {
    for (Index c = 0; c < dim; ++c) basis(r, c) = normal();
    for (int again = 0; again < 2; ++again)  // Gram-Schmidt, twice is enough
      for (Index q = 0; q < r; ++q) {
        const double along = detail::dot(basis.row(r).data(), basis.row(q).data(), dim);
        for (Index c = 0; c < dim; ++c) basis(r, c) -= along * basis(q, c);
      }
    const double norm = std::sqrt(detail::dot(basis.row(r).data(), basis.row(r).data(), dim));
    for (Index c = 0; c < dim; ++c) basis(r, c) /= norm;
  }
  SubspaceData<S> data;
  for (Index i = 0; i < options.tokens; ++i) {
    const Index label = i % options.classes;
    data.labels.push_back(label);
    for (Index r = 0; r < width; ++r) {
      const double weight = normal() * (r / options.width == label ? 1.0 : options.delta);
      for (Index c = 0; c < dim; ++c) x(i, c) += weight * basis(r, c);
    }
  }
  data.x.resize(options.tokens, dim);
  data.u.resize(dim, width);
  for (Index i = 0; i < x.size(); ++i) data.x.data()[i] = S(x.data()[i]);
  for (Index r = 0; r < width; ++r)
    for (Index c = 0; c < dim; ++c) data.u(c, r) = S(basis(r, c));
  return data;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
