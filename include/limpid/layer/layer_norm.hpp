// limpid: layer normalisation of tokens, forward and backward; what root mean square normalisation shares with it.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../engine/rows.hpp"
#include "linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Which norm: layer_norm, or rms_norm, which takes no mean off.
enum class NormKind { layer, rms };

/// An eps that has to be said, as it differs by model and changes digits: 1e-12 in BERT, 1e-6 in the vision
/// transformers of timm and in DINOv2, 1e-5 in PyTorch's default, 1e-5 or 1e-6 in LLaMA.
inline constexpr double eps_not_given = -1;

/// What a norm keeps for backward of every row, n x 4: mean (rounded, and what
/// that leaves off) and r = 1 / sqrt(var + eps) of the row times a power of two,
/// and that power. It is 1 but where squares of the row would over- or underflow. Of an rms norm the mean is 0.
template <class S>
struct LayerNormSaved {
  Mat<S> statistics;
  Index width = 0;  ///< of those rows
  NormKind kind = NormKind::layer;
  bool filled = false;
  mutable detail::Turn turn;
};

/// Where the gradients of a layer norm go; an empty one is not computed.
template <class S>
struct LayerNormGrads {
  Gradient<S> x{}, gamma{}, beta{};
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

/// Of unit x, unit a power of two: the mean, as rounded and what that leaves off, and 1 / sqrt(var + eps). unit is 1
/// but where squares of x would leave the scalar's range.
template <class S>
struct RowStatistics {
  S mean, off, inverse, unit;
};

/// unit x - mean - off. Kept: a compiler that may reassociate would round mean + off to the mean again.
template <class L, class S>
LIMPID_INLINE auto without_mean(L, const S* x, Index c, const RowStatistics<S>& row) {
  return L::pin(L::set(row.unit) * L::load(x + c) - L::set(row.mean)) - L::set(row.off);
}

/// Whether all entries lie within two roundings of the largest of each other.
template <class S>
bool is_flat(const S* x, Index count) {
  S low = x[0], high = x[0];
  for (Index c = 1; c < count; ++c) {
    if (x[c] < low) low = x[c];
    if (high < x[c]) high = x[c];
  }
  const S largest = high < -low ? -low : high;
  return high - low <= S(2 * std::numeric_limits<S>::epsilon()) * largest;
}

/// The mean is corrected by the mean of what is left without it, as its rounding would else be all the spread that a
/// constant row has. Without an eps a flat row has no spread, and inverse is 0.
template <class P, class S = typename P::Scalar>
RowStatistics<S> row_statistics(const S* x, Index count, double eps, NormKind kind = NormKind::layer) {
  using std::sqrt;
  const S width = S(double(count)), epsilon = S(std::numeric_limits<S>::epsilon());
  S variance(0), spread(0);
  const auto of = [&](S unit, S added) {
    const auto entry = [&](auto policy, Index c) {
      using L = decltype(policy);
      return L::set(unit) * L::load(x + c);
    };
    S first = kind == NormKind::rms ? S(0) : sum_lanes<P>(count, entry) / width, off(0);
    for (bool again : {true, false}) {
      const auto left = [&](auto policy, Index c) { return without_mean(policy, x, c, {first, off, S(1), unit}); };
      off = S(0);
      if (kind == NormKind::layer) off = sum_lanes<P>(count, left) / width;
      const S squares = sum_lanes<P>(count, [&](auto policy, Index c) {
        const auto d = left(policy, c);
        return d * d;
      });
      variance = squares / width;
      if (!(again && off * off > variance / S(16))) break;
      first = first + off;  // where the mean is rounded by as much as the entries are apart
    }
    const bool small = kind == NormKind::layer &&
                       variance <= S(4) * epsilon * epsilon * first * first;  // as that of a flat row, at most
    spread = added == S(0) && small && is_flat(x, count) ? S(0) : variance + added;
    return RowStatistics<S>{first, off, spread == S(0) ? S(0) : S(1) / sqrt(spread), unit};
  };
  const RowStatistics<S> plain = of(S(1), S(eps));
  if constexpr (std::is_floating_point_v<S>) {
    using Limits = std::numeric_limits<S>;
    if (spread > Limits::min() / (epsilon * epsilon) && variance < Limits::max() * epsilon) return plain;
    const S largest = largest_entry<P>(x, count);
    if (!(largest > S(0) && row_is_finite(x, count))) return plain;
    int exponent = 0;
    std::frexp(std::max(largest, sqrt(S(eps))), &exponent);
    exponent = std::clamp(-exponent, Limits::min_exponent, Limits::max_exponent - 2);
    return of(std::ldexp(S(1), exponent), std::ldexp(S(eps), 2 * exponent));
  }
  return plain;
}

/// Tasks of so many rows, by shape alone.
struct NormRows {
  static constexpr Index step = rows_of_task;
  static Index tasks(Index rows) { return (rows + step - 1) / step; }
};

/// y = gamma o (x - mean) r + beta and the statistics (n x 4, may be null), shapes checked; gamma and beta may be
/// empty, y may be x.
template <class P, class S = typename P::Scalar>
void norm_in(const Context& context, NormKind kind, View<S> x, View<S> gamma, View<S> beta, double eps, MutView<S> y,
             MutView<S> statistics) {
  const Index width = x.cols;
  if (width == 0) return;
  const S *scale = gamma.data, *shift = beta.data;
  context.run(NormRows::tasks(x.rows), [&](Index task, Arena&) {
    for (Index i = task * NormRows::step; i < std::min(x.rows, (task + 1) * NormRows::step); ++i) {
      const S* from = x.row(i);
      S* to = y.row(i);
      const RowStatistics<S> row = row_statistics<P>(from, width, eps, kind);
      for_lanes<P>(width, [&](auto policy, Index c) {
        using L = decltype(policy);
        auto u = without_mean(policy, from, c, row) * L::set(row.inverse);
        if (scale) u = u * L::load(scale + c);
        if (shift) u = u + L::load(shift + c);
        L::store(to + c, u);
      });
      if (statistics.given())
        statistics(i, 0) = row.mean, statistics(i, 1) = row.off, statistics(i, 2) = row.inverse,
                      statistics(i, 3) = row.unit;
    }
  });
}

/// dx = r (t - mean(t) - xh mean(t o xh)), t = gamma o dy, xh = (x - mean) r; dgamma = sum of dy o xh, dbeta of dy.
/// An rms norm has no mean(t). add_x and add: to what is there, where a gradient does not say so itself; dx may be dy.
template <class P, class S = typename P::Scalar>
void norm_backward_in(const Context& context, NormKind kind, View<S> x, View<S> gamma, View<S> statistics, View<S> dy,
                      const LayerNormGrads<S>& grad, bool add_x, bool add) {
  Arena& arena = context.arena();
  ArenaScope scope(arena);
  const Index width = x.cols, tasks = NormRows::tasks(x.rows);
  const bool parameters = grad.gamma.given() || grad.beta.given();
  const MutView<S> parts = parameters ? arena.matrix<S>(2 * tasks, width) : MutView<S>();
  if (width == 0) return;
  const S* scale = gamma.data;
  const MutView<S> dx = grad.x.view();
  const bool adds = grad.x.adds(add_x);
  context.run(tasks, [&](Index task, Arena& own) {
    S *xh = own.take<S>(width), *t = own.take<S>(width);
    S *dgamma = parameters ? parts.row(2 * task) : nullptr, *dbeta = parameters ? parts.row(2 * task + 1) : nullptr;
    if (parameters) clear(dgamma, width), clear(dbeta, width);
    for (Index i = task * NormRows::step; i < std::min(x.rows, (task + 1) * NormRows::step); ++i) {
      const S *from = x.row(i), *up = dy.row(i);
      const RowStatistics<S> row{statistics(i, 0), statistics(i, 1), statistics(i, 2), statistics(i, 3)};
      for_lanes<P>(width, [&](auto policy, Index c) {
        using L = decltype(policy);
        const auto u = without_mean(policy, from, c, row) * L::set(row.inverse);
        const auto g = L::load(up + c);
        L::store(xh + c, u);
        L::store(t + c, scale ? L::load(scale + c) * g : g);
        if (!dgamma) return;
        L::store(dgamma + c, L::fma(g, u, L::load(dgamma + c)));
        L::store(dbeta + c, L::load(dbeta + c) + g);
      });
      if (!dx.given()) continue;
      const S along = sum_lanes<P>(width, [&](auto policy, Index c) {
        using L = decltype(policy);
        return L::load(t + c) * L::load(xh + c);
      });
      const S level = kind == NormKind::rms ? S(0) : row_sum<P>(t, width) / S(double(width));
      const S slope = along / S(double(width));
      S* to = dx.row(i);
      for_lanes<P>(width, [&](auto policy, Index c) {
        using L = decltype(policy);
        const auto u = L::load(t + c) - L::set(level) - L::load(xh + c) * L::set(slope);
        const auto d = L::set(row.unit) * (L::set(row.inverse) * u);
        L::store(to + c, adds ? L::load(to + c) + d : d);
      });
    }
  });
  const auto sum = [&](const Gradient<S>& to, Index first) {
    if (!to.given()) return;
    if (!to.adds(add)) to.view().fill(S(0));
    for (Index task = 0; task < tasks; ++task) add_row<P>(parts.row(2 * task + first), to.data, width);
  };
  sum(grad.gamma, 0);
  sum(grad.beta, 1);
}

template <class P, class S = typename P::Scalar>
void layer_norm_in(const Context& context, View<S> x, View<S> gamma, View<S> beta, double eps, MutView<S> y,
                   MutView<S> statistics) {
  norm_in<P, S>(context, NormKind::layer, x, gamma, beta, eps, y, statistics);
}
template <class P, class S = typename P::Scalar>
void layer_norm_backward_in(const Context& context, View<S> x, View<S> gamma, View<S> statistics, View<S> dy,
                            const LayerNormGrads<S>& grad, bool add_x, bool add) {
  norm_backward_in<P, S>(context, NormKind::layer, x, gamma, statistics, dy, grad, add_x, add);
}

template <class S>
void check_norm(const char* op, View<S> x, View<S> gamma, View<S> beta, double eps, const char* gamma_name = "gamma",
                const char* beta_name = "beta") {
  check_finite<S>(op, "eps", eps, eps >= 0, "a finite number, 0 or more");
  check_bias<S>(op, gamma_name, gamma, x.cols);
  check_bias<S>(op, beta_name, beta, x.cols);
  check_parameters(op, gamma_name, gamma);
  check_parameters(op, beta_name, beta);
}

/// That an eps was said.
inline void check_eps_given(const char* op, double eps) {
  if (eps == eps_not_given)
    raise(std::string(op) +
          ": eps is not given, wanted that of the model (BERT 1e-12, ViT 1e-6, PyTorch's default 1e-5)");
}

/// That saved was filled by a forward call of such an x.
template <class S>
void check_saved_norm(const char* op, const LayerNormSaved<S>& saved, View<S> x, NormKind kind = NormKind::layer) {
  if (saved.statistics.rows() != x.rows || saved.width != x.cols)
    raise(std::string(op) + ": saved is of a norm of " + shape_text(saved.statistics.rows(), saved.width) +
          ", wanted one of x, " + shape_text(x.rows, x.cols));
  if (saved.kind != kind)
    raise(std::string(op) + (kind == NormKind::rms ? ": saved is of a layer norm, wanted one of an rms norm"
                                                   : ": saved is of an rms norm, wanted one of a layer norm"));
  check_filled(op, saved);
}

/// Both norms, for their front doors.
template <class S>
void norm(const char* op, NormKind kind, View<S> x, View<S> gamma, View<S> beta, MutView<S> y,
          const LayerNormCall<S>& call) {
  check_norm<S>(op, x, gamma, beta, call.eps);
  check_out<S>(op, "y", y, x.rows, x.cols);
  refuse_overlaps(op, {{"y", y}}, {{"x", x}, {"gamma", gamma}, {"beta", beta}});
  const SavedTurn saved_turn(call.saved, true, op);
  with_context({false, call.workspace, call.executor}, [&](const auto& context) {
    MutView<S> statistics;
    if (call.saved) {
      call.saved->filled = false;
      call.saved->statistics.resize(x.rows, 4);
      call.saved->width = x.cols, call.saved->kind = kind;
      statistics = call.saved->statistics;
    }
    norm_in<Native<S>>(context, kind, x, gamma, beta, call.eps, y, statistics);
  });
  if (call.saved) call.saved->filled = true;
}
template <class S>
void norm_backward(const char* op, NormKind kind, View<S> x, View<S> gamma, const LayerNormSaved<S>& saved, View<S> dy,
                   const LayerNormGrads<S>& grad, const LayerCall& call) {
  const SavedTurn saved_turn(&saved, false, op);
  check_norm<S>(op, x, gamma, {}, 0);
  check_saved_norm<S>(op, saved, x, kind);
  check_gradient<S>(op, "y", dy, x);
  check_gradient<S>(op, "x", grad.x, x);
  const char* of = kind == NormKind::rms ? "rms_norm: gradient" : "layer_norm: gradient";
  check_bias<S>(of, "gamma", grad.gamma, x.cols);
  check_bias<S>(of, "beta", grad.beta, x.cols);
  refuse_overlaps(op,
                  {{"x", grad.x, gradient_of}, {"gamma", grad.gamma, gradient_of}, {"beta", grad.beta, gradient_of}},
                  {{"x", x}, {"gamma", gamma}, {"dy", dy}});
  with_context(call, [&](const auto& context) {
    norm_backward_in<Native<S>>(context, kind, x, gamma, View<S>(saved.statistics), dy, grad, call.accumulate,
                                call.accumulate);
  });
}

}  // namespace detail

/// y = gamma o (x - mean) / sqrt(var + eps) + beta for every row, biased variance (Ba, Kiros, Hinton 2016, arXiv
/// 1607.06450). x and y n x D, gamma and beta 1 x D (a default View: 1 and 0). A constant row gives beta, and so does,
/// without eps, one whose entries differ by no more than two roundings of the largest; such a row passes no gradient
/// without eps. Right for entries of any size: the error is within 16 roundings of the largest entry of (x -
/// mean) r from 1e-38 to 3e38 (tests/layer/layer_norm_test.cpp). Throws ShapeError where shapes do not fit, y shares
/// memory with an input, or eps is negative or no number, or gamma or beta is not finite.
template <class X, class G, class B, class Y>
void layer_norm(X&& x, G&& gamma, B&& beta, Y&& y, const LayerNormCall<detail::ScalarOf<Y>>& call = {}) {
  using S = detail::ScalarOf<Y>;
  detail::norm<S>("layer_norm", NormKind::layer, std::forward<X>(x), std::forward<G>(gamma), std::forward<B>(beta),
                  std::forward<Y>(y), call);
}

namespace detail {

/// What a layer with a norm before it reads: LN(x), or x itself without one; saved may be null.
template <class S>
View<S> normed(const LayerScope& scope, bool norm, View<S> x, View<S> gamma, View<S> beta, double eps,
               LayerNormSaved<S>* saved) {
  if (!norm) {
    if (saved) saved->statistics.resize(0, 4);  // of an earlier call
    return x;
  }
  const MutView<S> y = scope.arena.matrix<S>(x.rows, x.cols);
  layer_norm(x, gamma, beta, y, {eps, saved, scope.workspace, scope.executor});
  return y;
}

}  // namespace detail

/// The gradients that grad names, from dy; saved comes from the forward call. Throws
/// ShapeError where shapes do not fit, saved is of other rows or of a call that was
/// not finished, or a gradient shares memory with x, gamma, dy or another one.
///
///     dx = r (t - mean(t) - xh mean(t o xh)),   t = gamma o dy,   xh = (x - mean) r
///     dgamma = sum of dy o xh over rows,   dbeta = sum of dy
template <class X, class G, class Dy, class S = detail::ScalarOf<Dy>>
void layer_norm_backward(X&& x, G&& gamma, const LayerNormSaved<S>& saved, Dy&& dy,
                         const std::type_identity_t<LayerNormGrads<S>>& grad, const LayerCall& call = {}) {
  detail::norm_backward<S>("layer_norm", NormKind::layer, std::forward<X>(x), std::forward<G>(gamma), saved,
                           std::forward<Dy>(dy), grad, call);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
