// limpid: gated differential attention, an excitatory and an inhibitory map fused by a gate of every token and head.
// SPDX-License-Identifier: MIT
#pragma once

#include "two_maps.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

using DifferentialGatedOptions = TwoMapOptions;

/// Inputs of gated differential attention and their gradients. q, k, v, gamma as in DifferentialArgs; z (B n) x H, the
/// logits of the gate, default 0. z = x gate_w + gate_b is linear() of layer/linear.hpp; any network will do.
template <class T>
struct DifferentialGatedArgs {
  T q{}, k{}, v{}, z{}, gamma{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("q", Role::query, a.q...);
    f("k", Role::key, a.k...);
    f("v", Role::key, a.v...);
    f("z", Role::query, a.z...);
    f("gamma", Role::head, a.gamma...);
  }
  static DifferentialGatedArgs from_qkv(T q, T k, T v) { return {q, k, v, {}, {}}; }
};

namespace detail {

/// w1 = g, w2 = 1 - g, g = sigmoid(z).
struct GateMix {
  static constexpr bool first_is_one = false;
  template <class T>
  using Args = DifferentialGatedArgs<T>;

  template <class S>
  struct Weights {
    View<S> z;
    S first(Index i) const { return z.given() ? detail::logistic(z(i, 0)) : S(0.5); }
    S second(Index i) const { return z.given() ? detail::logistic(-z(i, 0)) : S(0.5); }
  };

  template <class In>
  static void check(const char* name, const In& in) {
    check_scalar(name, "z", in.z);
  }
  template <class S, class In>
  static Weights<S> weights(const In& in, const TwoMapOptions&) {
    return {in.z};
  }
  /// dg_i = delta1_i + delta2_i, dz_i = dg_i g_i (1 - g_i).
  template <class S, class In, class Out>
  static void pull(const In&, const RowWeights<S>& w, Index n, const S* delta1, const S* delta2, const Out& grad,
                   Accumulation accumulate) {
    if (!grad.z.given()) return;
    for (Index i = 0; i < n; ++i) {
      const S dz = (delta1[i] + delta2[i]) * (w.first[i] * w.second[i]);
      grad.z(i, 0) = accumulate.q ? grad.z(i, 0) + dz : dz;
    }
  }
};

}  // namespace detail

template <class Mods>
using DifferentialGated = TwoMaps<detail::GateMix, Mods>;

/// Gated differential attention (Lygizou, Farsang, Grosu 2025, "Differential Gated Self-Attention", arXiv 2505.24054):
///
///     g_i = sigmoid(z_i),   A+- = softmax_rows(scale Q_b K_b^T),   H_i = g_i (A+ V)_i - (1 - g_i) (A- V)_i
///     Y = (1 - lambda_init) gamma o H / sqrt(mean(H^2) + eps)
///     dS+ = g_i A+ o (P - delta+),   dS- = -(1 - g_i) A- o (P - delta-),   P = dH V^T
///     dg_i = delta+_i + delta-_i,   dz_i = dg_i g_i (1 - g_i),   delta_b,i = <dH_i, (A_b V)_i>
///
/// The paper's body was not to be had. Its own, by abstract and public reviews: the two maps, the gate of the query's
/// token, the fusion, lambda_init = 0.8. Ours, after differential attention: the split of q and k, the scale, the norm
/// and lambda_init in its factor; {.norm = HeadNorm::none} leaves the last two out. With a gate of one half the rows of
/// the fused map sum to 0; z = 0.2231 starts at differential attention with lambda 0.8.
/// Inputs: DifferentialGatedArgs. Kept, cost and errors as differential.
inline auto differential_gated(DifferentialGatedOptions options = {}) {
  return DifferentialGated<Chain<>>{chain(), options, "differential_gated"};
}
template <class M>
requires(!std::is_same_v<M, DifferentialGatedOptions>) auto differential_gated(const M& modifiers,
                                                                               DifferentialGatedOptions options = {}) {
  return DifferentialGated<decltype(chain(modifiers))>{chain(modifiers), options, "differential_gated"};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
