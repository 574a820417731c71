// limpid: the linear map of tokens, y = x W + b, forward and backward, on the engine's own register tile.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../engine/gemm.hpp"
#include "layer.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where the gradients of a linear map go; an empty one is not computed.
template <class S>
struct LinearGrads {
  MutView<S> x{}, w{}, b{};
};

namespace detail {

/// y = x w + b, shapes checked; b may be empty.
template <class P>
void linear_in(const Context& context, View<typename P::Scalar> x, View<typename P::Scalar> w,
               View<typename P::Scalar> b, MutView<typename P::Scalar> y) {
  multiply<P, Transposed::none>(context, x, w, y, false, b.data);
}
/// The same in a layer's forward call, kept in that field of what it saves.
template <class S, class Saved>
View<S> projected(const ForwardScope<Saved>& scope, Mat<S> Saved::*field, View<S> x, View<S> w, View<S> b = {}) {
  const MutView<S> y = scope.room(field, x.rows, w.cols);
  linear_in<Native<S>>(scope.context, x, w, b, y);
  return y;
}
/// add_x and add: to what is there.
template <class P>
void linear_backward_in(const Context& context, View<typename P::Scalar> x, View<typename P::Scalar> w,
                        View<typename P::Scalar> dy, const LinearGrads<typename P::Scalar>& grad, bool add_x,
                        bool add) {
  using S = typename P::Scalar;
  if (grad.x.given()) multiply<P, Transposed::b>(context, dy, w, grad.x, add_x);  // dx = dy w^T
  if (grad.w.given()) multiply<P, Transposed::a>(context, x, dy, grad.w, add);    // dw = x^T dy
  if (grad.b.given()) {                                                           // db = column sums of dy
    if (!add) grad.b.fill(S(0));
    for (Index i = 0; i < dy.rows; ++i) add_row<P>(dy.row(i), grad.b.data, dy.cols);
  }
}

}  // namespace detail

/// y = x w + b for every token: x n x D, w D x E, b 1 x E (a default View: no bias), y n x E. 2 n D E flop; no copy of
/// x or w beyond one packed panel a worker. Throws ShapeError where shapes do not fit or y shares memory with an input.
template <class X, class W, class B, class Y>
void linear(X&& x, W&& w, B&& b, Y&& y, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> vx(std::forward<X>(x)), vw(std::forward<W>(w)), vb(std::forward<B>(b));
  const MutView<S> vy(std::forward<Y>(y));
  detail::check_linear<S>("linear", vx, vw, vy, "y");
  detail::check_bias<S>("linear", "b", vb, vw.cols);
  detail::refuse_overlaps("linear", {{"y", vy}}, {{"x", vx}, {"w", vw}, {"b", vb}});
  detail::with_context(call,
                       [&](const auto& context) { detail::linear_in<detail::Native<S>>(context, vx, vw, vb, vy); });
}

/// dx = dy w^T, dw = x^T dy, db = column sums of dy, those that grad names. 4 n D E flop. Throws ShapeError where
/// shapes do not fit or a gradient shares memory with x, w, dy or another one.
template <class X, class W, class Dy, class S = detail::ScalarOf<Dy>>
void linear_backward(X&& x, W&& w, Dy&& dy, const std::type_identity_t<LinearGrads<S>>& grad,
                     const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vw(std::forward<W>(w)), vdy(std::forward<Dy>(dy));
  detail::check_linear<S>("linear", vx, vw, vdy, "dy");
  detail::check_gradient<S>("linear", "x", grad.x, vx);
  detail::check_gradient<S>("linear", "w", grad.w, vw);
  detail::check_bias<S>("linear", "gradient of b", grad.b, vw.cols);
  using detail::gradient_of;
  detail::refuse_overlaps("linear",
                          {{"x", grad.x, gradient_of}, {"w", grad.w, gradient_of}, {"b", grad.b, gradient_of}},
                          {{"x", vx}, {"w", vw}, {"dy", vdy}});
  detail::with_context(call, [&](const auto& context) {
    detail::linear_backward_in<detail::Native<S>>(context, vx, vw, vdy, grad, call.accumulate, call.accumulate);
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
