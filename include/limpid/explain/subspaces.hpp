// limpid: tokens near a union of subspaces: the data of the denoising theorem, signal-to-noise ratio, share of energy.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../check/random.hpp"
#include "coding_rate.hpp"

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

/// Tokens x (n x D), the orthonormal basis u (D x (K p), class k in columns k p .. (k + 1) p - 1) and the class of
/// every token.
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

/// SNR_k = |X_k U_k U_k^T|_F / |X_k (I - U_k U_k^T)|_F, X_k the rows of class k: signal over what lies outside the
/// class's subspace. x n x D, u D x (classes p), labels n. Infinite for a class without noise, NaN for one without
/// tokens; measured in double. Throws ShapeError.
template <class X, class U, class S = detail::ScalarOf<X>>
std::vector<double> subspace_snr(X&& x, U&& u, const std::vector<Index>& labels, Index classes) {
  const View<S> vx(std::forward<X>(x)), vu(std::forward<U>(u));
  detail::check_codebook<S>("subspace_snr", vx, vu, classes);
  if (static_cast<Index>(labels.size()) != vx.rows)
    detail::raise("subspace_snr: there are " + detail::text_of(labels.size()) + " labels, wanted " +
                  detail::text_of(vx.rows));
  const Index p = vu.cols / classes, dim = vx.cols;
  std::vector<double> signal(static_cast<std::size_t>(classes)), noise = signal, inside(static_cast<std::size_t>(dim));
  double largest = 0;  // squares of tokens far from 1 would over- or underflow
  for (Index i = 0; i < vx.rows; ++i)
    for (Index c = 0; c < dim; ++c) largest = std::max(largest, std::abs(double(vx(i, c))));
  const double by = largest > 0 && std::isfinite(largest) ? largest : 1;
  const auto token = [&](Index i, Index c) { return double(vx(i, c)) / by; };
  for (Index i = 0; i < vx.rows; ++i) {
    const Index k = labels[static_cast<std::size_t>(i)];
    if (k < 0 || k >= classes)
      detail::raise("subspace_snr: label " + detail::text_of(i) + " is " + detail::text_of(k) + ", wanted one of " +
                    detail::text_of(classes) + " classes");
    std::vector<double> y(static_cast<std::size_t>(p));
    for (Index c = 0; c < dim; ++c)
      for (Index j = 0; j < p; ++j) y[static_cast<std::size_t>(j)] += token(i, c) * double(vu(c, k * p + j));
    double in = 0, out = 0;
    for (Index c = 0; c < dim; ++c) {
      double s = 0;
      for (Index j = 0; j < p; ++j) s += y[static_cast<std::size_t>(j)] * double(vu(c, k * p + j));
      in += s * s;
      out += (token(i, c) - s) * (token(i, c) - s);
    }
    signal[static_cast<std::size_t>(k)] += in;
    noise[static_cast<std::size_t>(k)] += out;
  }
  std::vector<double> snr;
  for (std::size_t k = 0; k < signal.size(); ++k) snr.push_back(std::sqrt(signal[k] / noise[k]));
  return snr;
}

/// out_ik = |x_i U_k|^2 / |x_i|^2, n x classes: a soft membership of token i in subspace k; rows sum to 1 where u is a
/// complete orthonormal basis. A zero row gives zeros; rows of any other size are multiplied as if of order 1. Throws
/// ShapeError where shapes do not fit or out shares memory with an input. Ours.
template <class X, class U, class Out, class S = detail::ScalarOf<Out>>
void subspace_energy(X&& x, U&& u, Out&& out_, const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vu(std::forward<U>(u));
  const MutView<S> out(std::forward<Out>(out_));
  detail::check_codebook<S>("subspace_energy", vx, vu, out.cols);
  if (out.rows != vx.rows)
    detail::raise("subspace_energy: out is " + detail::shape_text(out.rows, out.cols) + ", wanted " +
                  detail::text_of(vx.rows) + " rows");
  detail::refuse_overlaps("subspace_energy", {{"out", out}}, {{"x", vx}, {"u", vu}});
  detail::with_context(call, [&](const auto& context) {
    const Index p = vu.cols / out.cols;
    const detail::ScaledTokens<S> tokens(context, vx, vu);
    const auto squares = [](const S* row, Index count) {
      return detail::vector_dot<detail::Native<S>>(row, row, count);
    };
    for (Index i = 0; i < out.rows; ++i) {
      const S all = squares(tokens.rows.row(i), vx.cols);
      for (Index k = 0; k < out.cols; ++k) out(i, k) = all == S(0) ? S(0) : squares(tokens.y.row(i) + k * p, p) / all;
    }
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
