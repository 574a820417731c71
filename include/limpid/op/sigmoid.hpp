// limpid: sigmoid attention: every pair is weighed by itself, without a softmax over the row.
// SPDX-License-Identifier: MIT
#pragma once

#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct SigmoidOptions {
  std::optional<double> scale = default_scale;
  std::optional<double> bias = std::nullopt;  ///< b; default -log m, the paper's
};

/// w = sigmoid(s + b), dw/ds = w (1 - w).
struct SigmoidWeight {
  static constexpr bool normalised = false;
  double bias = 0;
  template <class P, class V = typename P::V, class S = typename P::Scalar>
  LIMPID_INLINE V weight(const typename P::V& s) const {
    const V x = s + P::set(S(bias)), zero = P::set(S(0)), one = P::set(S(1));
    const V e = P::exp(P::if_less(x, zero, x, -x));  // at most 1
    return P::if_less(x, zero, e, one) / (one + e);
  }
  template <class P>
  LIMPID_INLINE typename P::V slope(const typename P::V& w) const {
    return w * (P::set(typename P::Scalar(1)) - w);
  }
};

/// Sigmoid attention, or any family of scores in the place of s (Ramapuram et al. 2024, "Theory, Analysis, and Best
/// Practices for Sigmoid Self-Attention", arXiv 2409.04431):
///
///     A_ij = sigmoid(s_ij + b),   s = scale Q K^T and modifiers,   b = -log m,   out = A V
///     dS = A o (1 - A) o (dout V^T),   dV = A^T dout
///
/// Rows do not sum to one, and there is no log-sum-exp: a call that asks for it throws ShapeError. Nothing is kept. A
/// masked pair weighs 0; m counts all keys, masked or not (ours). Cost, shapes and errors as softmax; float within 2 x
/// the error of the naive float formula (tests/contract, op/sigmoid).
template <class Score>
struct Sigmoid : OverScores<Score>, OneMap<Sigmoid<Score>> {
  std::optional<double> bias;
  template <class T>
  using Args = typename Score::template Args<T>;
  template <class T>
  using Keep = KeepNothing<T>;

  template <class In>
  void check(const Dims& dims, const In& head) const {
    this->score.check(this->name, dims, head);
    if (bias) engine::check_factor<typename decltype(In::q)::Scalar>(this->name, "bias", *bias);
  }
  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>&) const {
    engine::smooth<P>(pass.context, map(pass, in, {}).scores, in.v, out, {});
  }
  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>&, View<S> dout,
                const Args<MutView<S>>& grad) const {
    MapBackward backward_map(pass, this->score, in, {}, grad, weight(pass.at));
    backward_map.of_values(dout, in.v, grad.v);  // dA = dout V^T, dV = A^T dout
    backward_map.finish();                       // dS = A o (1 - A) o dA and what follows from it
  }
  template <class P, class S = typename P::Scalar>
  auto map(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>&) const {
    return shown_map(engine::with_weight(this->score.prepare(pass.arena(), in, pass.at).scores, weight(pass.at)));
  }
  SigmoidWeight weight(const At& at) const { return {bias.value_or(at.m > 0 ? -std::log(double(at.m)) : 0)}; }
};

/// sigmoid(), sigmoid(causal()), sigmoid(causal() & pad, {.bias = 0}); see Sigmoid.
template <class M>
requires(!std::is_same_v<M, SigmoidOptions>) auto sigmoid(const M& modifiers, SigmoidOptions options = {}) {
  return Sigmoid<DotScore<decltype(chain(modifiers))>>{
      {{chain(modifiers), options.scale}, "sigmoid"}, {}, options.bias};
}
inline auto sigmoid(SigmoidOptions options = {}) { return sigmoid(chain(), options); }

}  // namespace LIMPID_ABI
}  // namespace limpid
