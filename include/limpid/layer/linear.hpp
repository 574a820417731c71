// limpid: the linear map of tokens, y = x W + b, forward and backward, on the engine's own register tile.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../core/large_pages.hpp"
#include "../engine/gemm.hpp"
#include "layer.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where the gradients of a linear map go; an empty one is not computed.
template <class S>
struct LinearGrads {
  Gradient<S> x{}, w{}, b{};
};

namespace detail {

/// Room for the panels of a weight, and its panels, as linear() reads them.
template <class S>
Index packed_size(const Weight<S>& w) {
  return panels_size<Native<S>>(w.inputs(), w.outputs());
}
template <class S>
void pack_weight(const Weight<S>& w, S* to) {
  if (w.order == WeightOrder::out_in)
    pack_panels<Native<S>, true>(View<S>(w), to);
  else
    pack_panels<Native<S>, false>(View<S>(w), to);
}

}  // namespace detail

/// A weight for inference: brought into the order in which linear() reads it once, instead of in every call, for as
/// much memory again. The bits of a result are the same. It looks at w, which has to outlive it and must not change.
///     limpid::PackedWeight<float> packed(limpid::out_in(w));
///     limpid::linear(x, packed, b, y);
template <class S>
class PackedWeight {
 public:
  PackedWeight() = default;
  explicit PackedWeight(const Weight<S>& w) : weight_(w), panels_(static_cast<std::size_t>(detail::packed_size<S>(w))) {
    detail::pack_weight<S>(w, panels_.data());
  }
  /// Good for as long as this object stays where it is.
  Weight<S> weight() const {
    Weight<S> w = weight_;
    w.panels = panels_.data();
    return w;
  }

 private:
  Weight<S> weight_;
  detail::LargeVector<S> panels_;
};

namespace detail {

/// to = sums over the rows of x, or += where `to` or the call says so; each in the order of the rows.
template <class S>
void add_columns(const Context& context, View<S> x, const Gradient<S>& to, bool add) {
  constexpr Index step = columns_of_task;
  if (!to.adds(add)) to.view().fill(S(0));
  context.run((x.cols + step - 1) / step, [&](Index task, Arena&) {
    const Index first = task * step, count = std::min(step, x.cols - first);
    for (Index i = 0; i < x.rows; ++i) add_row<Native<S>>(x.row(i) + first, to.data + first, count);
  });
}

/// y = x w + b, shapes checked; b may be empty.
template <class P>
void linear_in(const Context& context, View<typename P::Scalar> x, const Weight<typename P::Scalar>& w,
               View<typename P::Scalar> b, MutView<typename P::Scalar> y) {
  if (w.order == WeightOrder::out_in)
    multiply<P, Transposed::b>(context, x, w, y, false, b.data, w.panels, GemmBlocks::apart);
  else
    multiply<P, Transposed::none>(context, x, w, y, false, b.data, w.panels, GemmBlocks::apart);
}
/// The same in a layer's forward call, kept in that field of what it saves.
template <class S, class Saved>
View<S> projected(const ForwardScope<Saved>& scope, Mat<S> Saved::*field, View<S> x, View<S> w, View<S> b = {}) {
  const MutView<S> y = scope.room(field, x.rows, w.cols);
  linear_in<Native<S>>(scope.context, x, w, b, y);
  return y;
}
/// add_x and add: to what is there, where a gradient does not say so itself.
template <class P>
void linear_backward_in(const Context& context, View<typename P::Scalar> x, const Weight<typename P::Scalar>& w,
                        View<typename P::Scalar> dy, const LinearGrads<typename P::Scalar>& grad, bool add_x,
                        bool add) {
  using S = typename P::Scalar;
  const MutView<S> dx = grad.x.view(), dw = grad.w.view();
  const bool turned = w.order == WeightOrder::out_in;
  if (dx.given() && turned) multiply<P, Transposed::none>(context, dy, w, dx, grad.x.adds(add_x));  // dx = dy w
  if (dx.given() && !turned) multiply<P, Transposed::b>(context, dy, w, dx, grad.x.adds(add_x));    // dx = dy w^T
  if (dw.given() && turned) multiply<P, Transposed::a>(context, dy, x, dw, grad.w.adds(add));       // dw = dy^T x
  if (dw.given() && !turned) multiply<P, Transposed::a>(context, x, dy, dw, grad.w.adds(add));      // dw = x^T dy
  if (grad.b.given()) add_columns<S>(context, dy, grad.b, add);                                     // db = sums of dy
}

}  // namespace detail

/// y = x w + b for every token: x n x D, w D x E, or out_in(w) with w E x D for y = x w^T + b, b 1 x E (a default View:
/// no bias), y n x E. 2 n D E flop; no copy of x or w beyond one packed panel a worker, and none of a PackedWeight.
/// Throws ShapeError where shapes do not fit or y shares memory with an input.
template <class X, class W, class B, class Y>
void linear(X&& x, W&& w, B&& b, Y&& y, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> vx(std::forward<X>(x)), vb(std::forward<B>(b));
  const Weight<S> vw(std::forward<W>(w));
  const MutView<S> vy(std::forward<Y>(y));
  detail::check_linear<S>("linear", vx, vw, vy, "y");
  detail::check_bias<S>("linear", "b", vb, vw.outputs());
  detail::refuse_overlaps("linear", {{"y", vy}}, {{"x", vx}, {"w", vw}, {"b", vb}});
  detail::with_context(call,
                       [&](const auto& context) { detail::linear_in<detail::Native<S>>(context, vx, vw, vb, vy); });
}

/// dx = dy w^T, dw = x^T dy, db = column sums of dy, those that grad names; of out_in(w) dx = dy w, dw = dy^T x, as w
/// lies. add(dw) adds to what is there, overwrite(dx) does not, others as call.accumulate says. 4 n D E flop. Throws
/// ShapeError where shapes do not fit or a gradient shares memory with x, w, dy or another one.
template <class X, class W, class Dy, class S = detail::ScalarOf<Dy>>
void linear_backward(X&& x, W&& w, Dy&& dy, const std::type_identity_t<LinearGrads<S>>& grad,
                     const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vdy(std::forward<Dy>(dy));
  const Weight<S> vw(std::forward<W>(w));
  detail::check_linear<S>("linear", vx, vw, vdy, "dy");
  detail::check_gradient<S>("linear", "x", grad.x, vx);
  detail::check_gradient<S>("linear", "w", grad.w, vw);
  detail::check_bias<S>("linear", "gradient of b", grad.b, vw.outputs());
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
