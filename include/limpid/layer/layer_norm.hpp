// limpid: layer normalisation of tokens, forward and backward.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What layer_norm keeps for backward: the mean and r = 1 / sqrt(var + eps) of every row, n x 2.
template <class S>
struct LayerNormSaved {
  Mat<S> statistics;
};

/// Where the gradients of a layer norm go; an empty one is not computed.
template <class S>
struct LayerNormGrads {
  MutView<S> x, gamma, beta;
};

/// What a call of layer_norm may be told.
template <class S>
struct LayerNormCall {
  double eps = 1e-5;
  LayerNormSaved<S>* saved = nullptr;
  Workspace* workspace = nullptr;
  ExecutorRef executor = {};
};

namespace detail {

template <class P>
typename P::Scalar row_sum(const typename P::Scalar* x, Index count) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0));
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) sum = sum + P::load(x + c);
  S rest(0);
  for (; c < count; ++c) rest += x[c];
  return P::sum(sum) + rest;
}
template <class P>
typename P::Scalar row_variance(const typename P::Scalar* x, typename P::Scalar mean, Index count) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0));
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) {
    const typename P::V d = P::load(x + c) - P::set(mean);
    sum = P::fma(d, d, sum);
  }
  S rest(0);
  for (; c < count; ++c) rest += (x[c] - mean) * (x[c] - mean);
  return (P::sum(sum) + rest) / S(double(count));
}

/// Tasks of so many rows, by shape alone.
struct NormRows {
  static constexpr Index step = 256;
  static Index tasks(Index rows) { return (rows + step - 1) / step; }
};

/// y = gamma o (x - mean) r + beta and the statistics (n x 2, may be null), shapes checked; gamma and beta may be
/// empty.
template <class P, class S = typename P::Scalar>
void layer_norm_in(const Context& context, View<S> x, View<S> gamma, View<S> beta, double eps, MutView<S> y,
                   MutView<S> statistics) {
  using std::sqrt;
  const Index width = x.cols;
  if (width == 0) return;
  context.run(NormRows::tasks(x.rows), [&](Index task, Arena&) {
    for (Index i = task * NormRows::step; i < std::min(x.rows, (task + 1) * NormRows::step); ++i) {
      const S* from = x.row(i);
      S* to = y.row(i);
      const S mean = row_sum<P>(from, width) / S(double(width));
      const S spread = row_variance<P>(from, mean, width) + S(eps);
      const S r = spread == S(0) ? S(0) : S(1) / sqrt(spread);  // a constant row, without eps
      for (Index c = 0; c < width; ++c) to[c] = (from[c] - mean) * r;
      if (gamma.given())
        for (Index c = 0; c < width; ++c) to[c] *= gamma(0, c);
      if (beta.given())
        for (Index c = 0; c < width; ++c) to[c] += beta(0, c);
      if (statistics.given()) statistics(i, 0) = mean, statistics(i, 1) = r;
    }
  });
}

/// dx = r (t - mean(t) - xh mean(t o xh)), t = gamma o dy, xh = (x - mean) r; dgamma = sum of dy o xh, dbeta of dy.
/// add_x and add: to what is there.
template <class P, class S = typename P::Scalar>
void layer_norm_backward_in(const Context& context, View<S> x, View<S> gamma, View<S> statistics, View<S> dy,
                            const LayerNormGrads<S>& grad, bool add_x, bool add) {
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Index width = x.cols, tasks = NormRows::tasks(x.rows);
  const bool parameters = grad.gamma.given() || grad.beta.given();
  const MutView<S> parts = parameters ? arena.matrix<S>(2 * tasks, width) : MutView<S>();
  if (width == 0) return;
  context.run(tasks, [&](Index task, Arena& own) {
    S *xh = own.take<S>(width), *t = own.take<S>(width);
    S *dgamma = parameters ? parts.row(2 * task) : nullptr, *dbeta = parameters ? parts.row(2 * task + 1) : nullptr;
    if (parameters) clear(dgamma, width), clear(dbeta, width);
    for (Index i = task * NormRows::step; i < std::min(x.rows, (task + 1) * NormRows::step); ++i) {
      const S *from = x.row(i), *up = dy.row(i);
      const S mean = statistics(i, 0), r = statistics(i, 1);
      for (Index c = 0; c < width; ++c) xh[c] = (from[c] - mean) * r;
      for (Index c = 0; c < width; ++c) t[c] = gamma.given() ? gamma(0, c) * up[c] : up[c];
      if (parameters)
        for (Index c = 0; c < width; ++c) dgamma[c] += up[c] * xh[c], dbeta[c] += up[c];
      if (!grad.x.given()) continue;
      const S along = vector_dot<P>(t, xh, width);
      const S level = row_sum<P>(t, width) / S(double(width)), slope = along / S(double(width));
      S* to = grad.x.row(i);
      if (add_x)
        for (Index c = 0; c < width; ++c) to[c] += r * (t[c] - level - xh[c] * slope);
      else
        for (Index c = 0; c < width; ++c) to[c] = r * (t[c] - level - xh[c] * slope);
    }
  });
  const auto sum = [&](MutView<S> to, Index first) {
    if (!to.given()) return;
    if (!add) to.fill(S(0));
    for (Index task = 0; task < tasks; ++task)
      for (Index c = 0; c < width; ++c) to(0, c) += parts(2 * task + first, c);
  };
  sum(grad.gamma, 0);
  sum(grad.beta, 1);
}

template <class S>
void check_norm(const char* op, View<S> x, View<S> gamma, View<S> beta) {
  check_bias<S>(op, "gamma", gamma, x.cols);
  check_bias<S>(op, "beta", beta, x.cols);
}

}  // namespace detail

/// y = gamma o (x - mean) / sqrt(var + eps) + beta for every row, biased variance (Ba, Kiros, Hinton 2016, arXiv
/// 1607.06450). x and y n x D, gamma and beta 1 x D (a default View: 1 and 0). A constant row gives beta. Throws
/// ShapeError where shapes do not fit or y shares memory with an input.
template <class X, class G, class B, class Y>
void layer_norm(X&& x, G&& gamma, B&& beta, Y&& y, const LayerNormCall<detail::ScalarOf<Y>>& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> vx(std::forward<X>(x)), vg(std::forward<G>(gamma)), vb(std::forward<B>(beta));
  const MutView<S> vy(std::forward<Y>(y));
  detail::check_norm<S>("layer_norm", vx, vg, vb);
  if (vy.rows != vx.rows || vy.cols != vx.cols)
    detail::raise("layer_norm: y is " + detail::shape_text(vy.rows, vy.cols) + ", wanted " +
                  detail::shape_text(vx.rows, vx.cols));
  for (const View<S>& in : {vx, vg, vb}) detail::refuse_overlap("layer_norm", "y", vy, "an input", in);
  MutView<S> statistics;
  if (call.saved) {
    call.saved->statistics.resize(vx.rows, 2);
    statistics = call.saved->statistics;
  }
  detail::with_context({false, call.workspace, call.executor}, [&](const auto& context) {
    detail::layer_norm_in<detail::Native<S>>(context, vx, vg, vb, call.eps, vy, statistics);
  });
}

/// The gradients that grad names, from dy; saved comes from the forward call.
///
///     dx = r (t - mean(t) - xh mean(t o xh)),   t = gamma o dy,   xh = (x - mean) r
///     dgamma = sum of dy o xh over rows,   dbeta = sum of dy
template <class X, class G, class Dy, class S = detail::ScalarOf<Dy>>
void layer_norm_backward(X&& x, G&& gamma, const LayerNormSaved<S>& saved, Dy&& dy,
                         const std::type_identity_t<LayerNormGrads<S>>& grad, const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vg(std::forward<G>(gamma)), vdy(std::forward<Dy>(dy)), s(saved.statistics);
  detail::check_norm<S>("layer_norm", vx, vg, {});
  if (s.rows != vx.rows)
    detail::raise("layer_norm: saved belongs to " + detail::text_of(s.rows) + " rows, x has " +
                  detail::text_of(vx.rows));
  detail::check_gradient<S>("layer_norm", "y", vdy, vx);
  detail::check_gradient<S>("layer_norm", "x", grad.x, vx);
  detail::check_norm<S>("layer_norm: gradient", vx, grad.gamma, grad.beta);
  for (const MutView<S>& g : {grad.x, grad.gamma, grad.beta}) {
    detail::refuse_overlap("layer_norm", "a gradient", g, "x", vx);
    detail::refuse_overlap("layer_norm", "a gradient", g, "dy", vdy);
  }
  detail::with_context(call, [&](const auto& context) {
    detail::layer_norm_backward_in<detail::Native<S>>(context, vx, vg, s, vdy, grad, call.accumulate, call.accumulate);
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
