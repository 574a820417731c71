// limpid: tokens beside a union of subspaces: signal-to-noise ratio, share of energy.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "coding_rate.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

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
