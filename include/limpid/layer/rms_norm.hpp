// limpid: root mean square normalisation of tokens, forward and backward.
// SPDX-License-Identifier: MIT
#pragma once

#include "layer_norm.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What rms_norm keeps for backward of every row.
template <class S>
using RmsNormSaved = LayerNormSaved<S>;

/// Where the gradients of an rms norm go; an empty one is not computed.
template <class S>
struct RmsNormGrads {
  Gradient<S> x{}, gamma{};
};

/// What a call of rms_norm is told: eps always.
template <class S>
struct RmsNormCall {
  double eps = eps_not_given;
  RmsNormSaved<S>* saved = nullptr;
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
};

/// y = gamma o x / sqrt(mean x^2 + eps) for every row (Zhang & Sennrich 2019, arXiv 1910.07467). x and y n x D, gamma
/// 1 x D (a default View: 1). Kept: n x 4. 3 n D flop. A row of zeros gives zeros, and without eps passes no gradient.
/// Right for entries of any size, as layer_norm is (tests/layer/rms_norm_test.cpp). Throws ShapeError where shapes do
/// not fit, y shares memory with an input, eps is not given, negative or no number, or gamma is not finite.
template <class X, class G, class Y>
void rms_norm(X&& x, G&& gamma, Y&& y, const RmsNormCall<detail::ScalarOf<Y>>& call) {
  using S = detail::ScalarOf<Y>;
  detail::check_eps_given("rms_norm", call.eps);
  detail::norm<S>("rms_norm", NormKind::rms, std::forward<X>(x), std::forward<G>(gamma), {}, std::forward<Y>(y),
                  {call.eps, call.saved, call.workspace, call.executor});
}

/// The gradients that grad names, from dy; saved comes from the forward call. Throws ShapeError where shapes do not
/// fit, saved is of other rows, of a layer norm or of a call that was not finished, or a gradient shares memory with x,
/// gamma, dy or another one.
///
///     dx = r (t - xh mean(t o xh)),   t = gamma o dy,   xh = x r,   r = 1 / sqrt(mean x^2 + eps)
///     dgamma = sum of dy o xh over rows
template <class X, class G, class Dy, class S = detail::ScalarOf<Dy>>
void rms_norm_backward(X&& x, G&& gamma, const RmsNormSaved<S>& saved, Dy&& dy,
                       const std::type_identity_t<RmsNormGrads<S>>& grad, const LayerCall& call = {}) {
  detail::norm_backward<S>("rms_norm", NormKind::rms, std::forward<X>(x), std::forward<G>(gamma), saved,
                           std::forward<Dy>(dy), {grad.x, grad.gamma, {}}, call);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
