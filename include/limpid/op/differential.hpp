// limpid: differential attention, (A1 - lambda A2) V, and its second version.
// SPDX-License-Identifier: MIT
#pragma once

#include "two_maps.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

using DifferentialOptions = TwoMapOptions;

/// Inputs of differential attention and their gradients, H heads, G key heads. q (B n) x (H 2d) and k (B m) x (G 2d):
/// head i, branch b in columns ((2 i + b) d, +d); k may be (B m) x (G d), one key for both branches. v (B m) x (G dv).
/// lambda, at most one of: lambda 1 x 1 (or H x 1); the four vectors 1 x w (or H x w); z (B n) x H, logits of lambda
/// for every token and head (lambda_i = sigmoid(z_i), version 2). None of them: lambda_init, as with vectors of zeros.
/// gamma 1 x dv (or H x dv), the weight of the norm, default 1.
template <class T>
struct DifferentialArgs {
  T q{}, k{}, v{}, lambda{}, lambda_q1{}, lambda_k1{}, lambda_q2{}, lambda_k2{}, z{}, gamma{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("q", Role::query, a.q...);
    f("k", Role::key, a.k...);
    f("v", Role::key, a.v...);
    f("lambda", Role::head, a.lambda...);
    f("lambda_q1", Role::head, a.lambda_q1...);
    f("lambda_k1", Role::head, a.lambda_k1...);
    f("lambda_q2", Role::head, a.lambda_q2...);
    f("lambda_k2", Role::head, a.lambda_k2...);
    f("z", Role::query, a.z...);
    f("gamma", Role::head, a.gamma...);
  }
  static DifferentialArgs from_qkv(T q, T k, T v) { return {q, k, v, {}, {}, {}, {}, {}, {}, {}}; }
};

/// The paper's lambda_init of layer 1, 2, ...: 0.8 - 0.6 exp(-0.3 (layer - 1)).
inline double lambda_init_of_layer(Index layer) {
  if (layer < 1)
    detail::raise("lambda_init_of_layer: layer is " + detail::text_of(layer) + ", wanted the first one to be 1");
  return 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(layer - 1));
}

/// The four vectors lambda is learned through (all of one length, rows or columns), or their gradients.
template <class T>
struct LambdaVectors {
  T q1, k1, q2, k2;
};

namespace detail {
template <class S>
S exp_dot(View<S> a, View<S> b) {
  using std::exp;
  S sum(0);
  for (Index i = 0; i < a.rows; ++i) sum += dot(a.row(i), b.row(i), a.cols);
  return exp(sum);
}
}  // namespace detail

/// lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init. Ye et al. 2024, eq. 2.
template <class S>
S lambda_from(const LambdaVectors<View<S>>& v, double lambda_init) {
  return detail::exp_dot(v.q1, v.k1) - detail::exp_dot(v.q2, v.k2) + S(lambda_init);
}

/// dq1 = dlambda e1 k1, dk1 = dlambda e1 q1, dq2 = -dlambda e2 k2, dk2 = -dlambda e2 q2, e_b = exp(q_b . k_b);
/// overwrites those that are given.
template <class S>
void lambda_from_backward(const LambdaVectors<View<S>>& v, S dlambda, const LambdaVectors<MutView<S>>& grad) {
  const S e1 = detail::exp_dot(v.q1, v.k1), e2 = detail::exp_dot(v.q2, v.k2);
  const auto scaled = [](S factor, const View<S>& x, const MutView<S>& to) {
    if (!to.given()) return;
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c) to(i, c) = factor * x(i, c);
  };
  scaled(dlambda * e1, v.k1, grad.q1);
  scaled(dlambda * e1, v.q1, grad.k1);
  scaled(-dlambda * e2, v.k2, grad.q2);
  scaled(-dlambda * e2, v.q2, grad.k2);
}

namespace detail {

/// w1 = 1, w2 = lambda.
struct LambdaMix {
  static constexpr bool first_is_one = true;
  template <class T>
  using Args = DifferentialArgs<T>;

  template <class S>
  struct Weights {
    S lambda;
    View<S> z;
    S first(Index) const { return S(1); }
    S second(Index i) const { return z.given() ? detail::logistic(z(i, 0)) : lambda; }
  };

  template <class In>
  static void check(const char* name, const In& in) {
    const Name op = name;
    const int vectors = in.lambda_q1.given() + in.lambda_k1.given() + in.lambda_q2.given() + in.lambda_k2.given();
    if (vectors != 0 && vectors != 4)
      raise(op + ": " + text_of(vectors) + " of the four vectors of lambda are given, wanted all or none");
    if ((vectors == 4) + in.lambda.given() + in.z.given() > 1)
      raise(op + ": lambda is given twice, wanted one of lambda, its four vectors, and z");
    check_scalar(name, "lambda", in.lambda);
    check_scalar(name, "z", in.z);
    check_pair(name, "lambda_q1", "lambda_k1", in.lambda_q1, in.lambda_k1);
    check_pair(name, "lambda_q2", "lambda_k2", in.lambda_q2, in.lambda_k2);
    using S = typename decltype(In::q)::Scalar;
    if (in.lambda.given() && row_is_finite(in.lambda.data, 1) && !are_factors(in.lambda(0, 0)))
      raise(op + (": lambda is " + number_text(in.lambda(0, 0)) + ", wanted at most " +
                  number_text(largest_factor<S>()) + " in size"));
    if (vectors == 0) return;
    check_parameters(op, "lambda_q1", in.lambda_q1), check_parameters(op, "lambda_k1", in.lambda_k1);
    check_parameters(op, "lambda_q2", in.lambda_q2), check_parameters(op, "lambda_k2", in.lambda_k2);
    const S lambda = lambda_from<S>(LambdaMix::vectors(in), 0);
    if (!are_factors(lambda))
      raise(op + (": the four vectors of lambda make " + number_text(lambda) + ", wanted a number of at most " +
                  number_text(largest_factor<S>()) + " in size"));
  }

  template <class S, class In>
  static Weights<S> weights(const In& in, const TwoMapOptions& options) {
    S lambda(options.lambda_init);
    if (in.lambda.given()) lambda = in.lambda(0, 0);
    if (in.lambda_q1.given()) lambda = lambda_from<S>(vectors(in), options.lambda_init);
    return {lambda, in.z};
  }

  /// d w2_i = -delta2_i; w2_i = lambda or sigmoid(z_i).
  template <class S, class In, class Out>
  static void pull(const In& in, const RowWeights<S>& w, Index n, const S*, const S* delta2, const Out& grad,
                   Accumulation accumulate) {
    if (grad.z.given())
      for (Index i = 0; i < n; ++i) {
        const S dz = w.second[i] == S(0) ? S(0) : -delta2[i] * w.second[i] * detail::logistic(-in.z(i, 0));
        grad.z(i, 0) = accumulate.q ? grad.z(i, 0) + dz : dz;
      }
    Accumulator<S> sum(0);
    for (Index i = 0; i < n; ++i) sum -= Accumulator<S>(delta2[i]);
    if (grad.lambda.given()) grad.lambda(0, 0) = S(sum);
    if (in.lambda_q1.given())
      lambda_from_backward<S>(vectors(in), S(sum), {grad.lambda_q1, grad.lambda_k1, grad.lambda_q2, grad.lambda_k2});
  }

 private:
  template <class In>
  static LambdaVectors<decltype(In::q)> vectors(const In& in) {
    return {in.lambda_q1, in.lambda_k1, in.lambda_q2, in.lambda_k2};
  }
};

}  // namespace detail

template <class Mods>
using Differential = TwoMaps<detail::LambdaMix, Mods>;

/// Differential attention (Ye, Dong, Xia, Sun, Zhu, Huang, Wei 2024, "Differential Transformer", arXiv 2410.05258):
///
///     A_b = softmax_rows(scale Q_b K_b^T),   H = (A1 - lambda A2) V                                     (eq. 1)
///     lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init                    (eq. 2)
///     Y = (1 - lambda_init) gamma o H / sqrt(mean(H^2) + eps)     (eq. 3; gamma and eps are the official code's)
///     dS1 = A1 o (P - delta1),   dS2 = -lambda A2 o (P - delta2),   P = dH V^T
///     dV = (A1 - lambda A2)^T dH,   dlambda = -sum_i delta2_i,   delta_b,i = <dH_i, (A_b V)_i>
///
/// Inputs: DifferentialArgs. differential(causal(), {.lambda_init = lambda_init_of_layer(l)}) for the paper's layers;
/// {.norm = HeadNorm::none} gives H. Grouped keys: head i meets key block 2 g + b, g = i G / H, as in the flash files
/// of the official code. Kept: the log-sum-exp of both maps, A1 V and A2 V. Cost 4 n m (d + dv) flop forward and
/// 4 n m (3 d + dv) backward, against plain attention of twice the head width 1.5 times and as much; memory
/// O((n + m)(d + dv)). A row that keeps no key gives zeros and passes no gradient. Throws ShapeError where shapes do
/// not fit, lambda is given twice, or gamma without a norm. Error as softmax: double within 1e-10 of the largest entry,
/// float within 4 x that of the plain float formula (tests/contract).
inline auto differential(DifferentialOptions options = {}) {
  return Differential<Chain<>>{chain(), options, "differential"};
}
template <class M>
requires(!std::is_same_v<M, DifferentialOptions>) auto differential(const M& modifiers,
                                                                    DifferentialOptions options = {}) {
  return Differential<decltype(chain(modifiers))>{chain(modifiers), options, "differential"};
}

/// Version 2 of its authors (January 2026, code and blog): A1 V - sigmoid(z_i) A2 V
/// with a logit z for every token and head, one key for both branches, no norm.
/// The second query branch of head i is query head 2 i + 1 of the official code.
inline auto differential_v2(SoftmaxOptions options = {}) {
  return differential({.scale = options.scale, .norm = HeadNorm::none});
}
template <class M>
requires(!std::is_same_v<M, SoftmaxOptions>) auto differential_v2(const M& modifiers, SoftmaxOptions options = {}) {
  return differential(modifiers, {.scale = options.scale, .norm = HeadNorm::none});
}

}  // namespace LIMPID_ABI
}  // namespace limpid
