// limpid: scores that are sums of kernels, dot products and squared distances, reduced to one dot product and a key bias.
// SPDX-License-Identifier: MIT
//
// -|q - k|^2 / h^2 is (2 q.k - |k|^2) / h^2 up to a constant of the row, which the softmax drops; a sum of such terms is one
// product of concatenated rows. Distances are taken from the keys' mean: exact, as the kernel does not move with a common
// shift, and without it float loses every digit. All of this page is our own derivation of a classical identity.
#pragma once

#include <array>
#include <cmath>

#include "dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Sums over a whole head: wider than float, as they cancel.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, float>, double, S>;

/// coefficient <q_i, k_j>, or -coefficient |q_i - k_j|^2.
template <class S>
struct KernelTerm {
  View<S> q, k;
  bool distance = false;
  S coefficient = S(1);
  bool given() const { return q.cols > 0; }
  S weight() const { return distance ? S(2) * coefficient : coefficient; }  // of <q, k>
};

/// Up to two terms, made ready for the sweeps.
template <class S, class Mods>
struct KernelPrepared {
  Scores<S, Mods> scores;
  std::array<KernelTerm<S>, 2> terms;  // centred where they are distances
  Index count = 0;
};

/// The arrays of a distance term about the mean of its keys (of those that are finite: a masked key may hold anything).
template <class S>
void centre(Arena& arena, KernelTerm<S>& term) {
  const Index w = term.k.cols;
  S* mean = arena.take<S>(w);
  for (Index c = 0; c < w; ++c) mean[c] = S(0);
  Index used = 0;
  for (Index j = 0; j < term.k.rows; ++j) {
    if (!row_is_finite(term.k.row(j), w)) continue;
    ++used;
    for (Index c = 0; c < w; ++c) mean[c] += (term.k(j, c) - mean[c]) / S(double(used));
  }
  const auto shifted = [&](View<S> from) {
    MutView<S> to = arena.matrix<S>(from.rows, w);
    for (Index i = 0; i < from.rows; ++i)
      for (Index c = 0; c < w; ++c) to(i, c) = from(i, c) - mean[c];
    return View<S>(to);
  };
  term.q = shifted(term.q);
  term.k = shifted(term.k);
}

template <class S, class Mods>
KernelPrepared<S, Mods> prepare_kernel(Arena& arena, const std::array<KernelTerm<S>, 2>& terms, const Mods& mods,
                                       const At& at) {
  KernelPrepared<S, Mods> p;
  const Index n = terms[0].q.rows, m = terms[0].k.rows;
  bool any_distance = false;
  Index width = 0;
  for (const auto& term : terms) {
    if (!term.given()) continue;
    any_distance |= term.distance;
    width += term.q.cols;
    p.terms[static_cast<std::size_t>(p.count++)] = term;
  }
  S* bias = nullptr;
  if (any_distance) {
    bias = arena.take<S>(m);
    for (Index j = 0; j < m; ++j) bias[j] = S(0);
  }
  for (Index t = 0; t < p.count; ++t) {
    auto& term = p.terms[static_cast<std::size_t>(t)];
    if (!term.distance) continue;
    centre(arena, term);
    for (Index j = 0; j < m; ++j) bias[j] -= term.coefficient * dot(term.k.row(j), term.k.row(j), term.k.cols);
  }
  if (p.count == 1) {
    p.scores = {p.terms[0].q, p.terms[0].k, p.terms[0].weight(), bias, &mods, at};
    return p;
  }
  MutView<S> q = arena.matrix<S>(n, width), k = arena.matrix<S>(m, width);
  Index first = 0;
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    const Index w = term.q.cols;
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < w; ++c) q(i, first + c) = term.weight() * term.q(i, c);
    copy<S>(term.k, k.block(0, first, m, w));
    first += w;
  }
  p.scores = {q, k, S(1), bias, &mods, at};
  return p;
}

/// Gradients of one term and what they say about its coefficient.
template <class S>
struct KernelGradient {
  MutView<S> q, k;
  bool coefficient = false;   ///< asked for
  Wide<S> sum_ds_s = 0;       ///< sum_ij dS_ij s_ij, s_ij this term's (reduced) score: coefficient times its derivative
};

/// Where pull_back should write: into the user's arrays if there is one term and nothing else to be computed.
template <class S, class Mods>
PullTargets<S> kernel_targets(Arena& arena, const KernelPrepared<S, Mods>& p,
                              const std::array<KernelGradient<S>, 2>& g) {
  PullTargets<S> to;
  const Index n = p.scores.n(), m = p.scores.m(), width = p.scores.q.cols;
  if (p.scores.bias) to.dbias = arena.take<S>(m);
  to.direct = p.count == 1 && !g[0].coefficient;
  if (to.direct) {
    to.dq = g[0].q, to.dk = g[0].k;
  } else {
    to.dq = arena.matrix<S>(n, width), to.dk = arena.matrix<S>(m, width);
  }
  return to;
}

/// From gradients of the concatenated rows and of the bias to those of every term:
///     dist: dq_i = 2 c sum_j dS_ij k_j,   dk_j = 2 c (sum_i dS_ij q_i - c_j k_j),   c_j = sum_i dS_ij.
template <class S, class Mods>
void finish_kernel(const KernelPrepared<S, Mods>& p, const PullTargets<S>& from, std::array<KernelGradient<S>, 2>& g,
                   Accumulation accumulate) {
  const Index n = p.scores.n(), m = p.scores.m();
  Index first = 0;
  for (Index t = 0; t < p.count; ++t) {
    const auto& term = p.terms[static_cast<std::size_t>(t)];
    auto& to = g[static_cast<std::size_t>(t)];
    const Index w = term.q.cols;
    const S weight = term.weight(), on_q = p.count == 1 ? S(1) : weight;  // dS K' against the gradient of the weighted row
    if (!from.direct) {
      for (Index i = 0; i < n; ++i) {
        const S* dq = from.dq.row(i) + first;
        Wide<S> sum = 0;
        for (Index c = 0; c < w; ++c) {
          const S d = dq[c] * on_q;
          if (d != S(0)) sum += Wide<S>(d) * Wide<S>(term.q(i, c));  // a row that passes nothing may hold anything
          if (to.q.given()) to.q(i, c) = accumulate.q ? to.q(i, c) + d : d;
        }
        to.sum_ds_s += sum;
      }
      if (to.k.given()) deliver<S>(View<S>(from.dk).block(0, first, m, w), to.k, accumulate.kv);
    }
    if (term.distance)
      for (Index j = 0; j < m; ++j) {
        const S c_j = from.dbias[j];
        if (c_j == S(0)) continue;
        to.sum_ds_s -= Wide<S>(c_j) * Wide<S>(term.coefficient) * Wide<S>(dot(term.k.row(j), term.k.row(j), w));
        if (to.k.given())
          for (Index c = 0; c < w; ++c) to.k(j, c) -= weight * c_j * term.k(j, c);
      }
    first += w;
  }
}

/// The bandwidth of a head: a given positive number, or the default.
template <class S>
S bandwidth(const char* op, const char* name, View<S> given, S otherwise) {
  if (!given.given()) return otherwise;
  const S h = given(0, 0);
  if (!(h > S(0))) raise(std::string(op) + ": " + name + " is " + std::to_string(double(h)) + ", wanted a positive bandwidth");
  return h;
}

template <class S>
void check_pair(const char* op, const char* q_name, const char* k_name, View<S> q, View<S> k) {
  if (q.given() != k.given() || q.cols != k.cols)
    raise(std::string(op) + ": " + q_name + " has " + text_of(q.cols) + " columns a head and " + k_name + " has " +
          text_of(k.cols) + ", wanted the same");
}
template <class S>
void check_scalar(const char* op, const char* name, View<S> v) {
  if (v.given() && v.cols != 1)
    raise(std::string(op) + ": " + name + " has " + text_of(v.cols) + " columns, wanted 1 (a number, or one a head)");
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
