// limpid: attention guidance: asking about a region instead of a class, and rewriting an image's class.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "../call/backward.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// A copy of x with columns beside those of every head: out_h = [x_h, more_h], x (rows x H c), more (rows x r, the same
/// for all heads, or rows x H r), out (rows x H (c + r)).
///
/// Guided attention is plain attention of v' = [v, w] and dout' = [dout, u]: it gives the scalar
/// y + sum over heads of <u, A w>, says what attention the patterns w get (the readout A w, the last r columns of out),
/// and its backward is exact, dA_ij = dout_i . v_j + u_i . w_j. So a region of keys can be asked about: w is 1 on it, u
/// the strength at the token that reads. Drop the last r columns of dv (split_columns). After Cui, Fan and Chen 2026
/// (2605.11392), whose text we could not obtain: the formulas are ours. Costs attention r more value columns. Throws
/// ShapeError where shapes do not fit or arrays overlap.
///
///   limpid::append_columns(v, w, heads, guided_v);
///   limpid::forward(op, limpid::qkv(q, k, guided_v), out, {.saved = &saved});
///   limpid::append_columns(dout, u, heads, guided_dout);
///   limpid::backward(op, limpid::qkv(q, k, guided_v), saved, guided_dout, grad, relevance.ask());
template <class X, class More, class Out>
void append_columns(X&& x_, More&& more_, Index heads, Out&& out_) {
  using S = detail::ScalarOf<Out>;
  const View<S> x(std::forward<X>(x_)), more(std::forward<More>(more_));
  const MutView<S> out(std::forward<Out>(out_));
  if (heads > 0) detail::check_counts("append_columns", 1, heads, out.cols);
  const bool shared = more.cols * heads == out.cols - x.cols;
  const bool fits = heads > 0 && x.cols % heads == 0 && out.cols % heads == 0 && more.rows == x.rows &&
                    out.rows == x.rows && (shared || more.cols == out.cols - x.cols);
  if (!fits)
    detail::raise("append_columns: x is " + detail::shape_text(x.rows, x.cols) + ", more " +
                  detail::shape_text(more.rows, more.cols) + " and out " + detail::shape_text(out.rows, out.cols) +
                  ", wanted out to hold x and more of each of " + detail::text_of(heads) + " heads");
  detail::refuse_overlaps("append_columns", {{"out", out}}, {{"x", x}, {"more", more}});
  const Index c = x.cols / heads, r = out.cols / heads - c;
  for (Index h = 0; h < heads; ++h) {
    detail::copy<S>(x.block(0, h * c, x.rows, c), out.block(0, h * (c + r), x.rows, c));
    detail::copy<S>(more.block(0, shared ? 0 : h * r, x.rows, r), out.block(0, h * (c + r) + c, x.rows, r));
  }
}

/// The way back: of every head's columns the first to `left` (rows x H c), the rest to `right` (rows x H r). Either may
/// be empty if the other is not. Throws as append_columns does.
template <class X>
void split_columns(X&& x_, Index heads, MutView<detail::ScalarOf<X>> left, MutView<detail::ScalarOf<X>> right) {
  using S = detail::ScalarOf<X>;
  const View<S> x(std::forward<X>(x_));
  if (heads > 0) detail::check_counts("split_columns", 1, heads, x.cols);
  const Index width = heads > 0 && x.cols % heads == 0 ? x.cols / heads : -1;
  const Index c = left.given() ? left.cols / std::max<Index>(heads, 1) : width - right.cols / std::max<Index>(heads, 1);
  const auto fits = [&](const MutView<S>& part, Index columns) {
    return !part.given() || (part.rows == x.rows && part.cols == heads * columns);
  };
  if (width < 0 || c < 0 || c > width || !fits(left, c) || !fits(right, width - c))
    detail::raise("split_columns: x is " + detail::shape_text(x.rows, x.cols) + ", left " +
                  detail::shape_text(left.rows, left.cols) + " and right " +
                  detail::shape_text(right.rows, right.cols) + ", wanted the columns of each of " +
                  detail::text_of(heads) + " heads to be shared out");
  detail::refuse_overlaps("split_columns", {{"left", left}, {"right", right}}, {{"x", x}});
  for (Index h = 0; h < heads; ++h) {
    if (left.given()) detail::copy<S>(x.block(0, h * width, x.rows, c), left.block(0, h * c, x.rows, c));
    if (right.given())
      detail::copy<S>(x.block(0, h * width + c, x.rows, width - c), right.block(0, h * (width - c), x.rows, width - c));
  }
}

enum class RewriteRule { l2, sign };

struct RewriteOptions {
  double step = 1;  ///< length of a step (l2), or of each entry (sign)
  RewriteRule rule = RewriteRule::l2;
  double radius = std::numeric_limits<double>::infinity();  ///< how far an entry may go from where it was at first
  double low = -std::numeric_limits<double>::infinity();    ///< and between which values it stays
  double high = std::numeric_limits<double>::infinity();
};

/// One step of class rewriting: x climbs along the gradient of logit_target - logit_source,
///
///   d = region * gradient;   d / |d|_2 (l2) or sign(d);   x <- clip(clip(x + step d, start +- radius), low, high)
///
/// x, start, gradient (rows x c), region (rows x 1, zero where nothing may change; empty: everywhere). A gradient of
/// zero changes nothing; one of any other size has its direction. Throws ShapeError where shapes or options do not fit,
/// x shares memory with another array, or a number is infinite or NaN, one of the result as well; nothing has changed
/// then. After Cui, Fan and Chen 2026 (2605.11392); the formulas are ours.
template <class X>
void rewrite_step(View<detail::ScalarOf<X>> gradient, View<detail::ScalarOf<X>> start, View<detail::ScalarOf<X>> region,
                  X&& x_, const RewriteOptions& options) {
  using S = detail::ScalarOf<X>;
  const MutView<S> x(std::forward<X>(x_));
  const auto fits = [&](const View<S>& v, Index cols) { return v.rows == x.rows && v.cols == cols; };
  if (!fits(gradient, x.cols) || !fits(start, x.cols) || (region.given() && !fits(region, 1)))
    detail::raise("rewrite_step: x is " + detail::shape_text(x.rows, x.cols) + ", gradient " +
                  detail::shape_text(gradient.rows, gradient.cols) + ", start " +
                  detail::shape_text(start.rows, start.cols) + " and region " +
                  detail::shape_text(region.rows, region.cols) + ", wanted one shape, and region a column or empty");
  detail::refuse_overlaps("rewrite_step", {{"x", x}}, {{"gradient", gradient}, {"start", start}, {"region", region}});
  detail::check_finite<S>("rewrite_step", "step", options.step);
  const auto refuse = [&](const char* wanted) {
    detail::raise("rewrite_step: radius is " + std::to_string(options.radius) + ", low " + std::to_string(options.low) +
                  " and high " + std::to_string(options.high) + ", wanted " + wanted);
  };
  if (!(options.radius >= 0) || !(options.low <= options.high)) refuse("radius at least 0 and low at most high");
  constexpr double inf = std::numeric_limits<double>::infinity();
  if (S(options.low) == S(inf) || S(options.high) == S(-inf)) refuse("finite numbers between low and high");
  detail::check_parameters<S>("rewrite_step", "gradient", gradient);
  detail::check_parameters<S>("rewrite_step", "start", start);
  detail::check_parameters<S>("rewrite_step", "region", region);
  detail::check_parameters<S>("rewrite_step", "x", View<S>(x));
  using std::sqrt;
  using W = detail::Accumulator<S>;
  const auto weight = [&](Index i) { return region.given() ? region(i, 0) : S(1); };
  // d over 2^exponent. As it is, unless its square or 1 / |d| would over- or underflow.
  bool plain = true;
  int exponent = 0;
  const auto direction = [&](Index i, Index j) {
    if constexpr (std::is_floating_point_v<S>)
      if (!plain) {
        int first = 0, second = 0;
        const W product = std::frexp(W(weight(i)), &first) * std::frexp(W(gradient(i, j)), &second);
        return std::ldexp(product, first + second - exponent);
      }
    return W(weight(i)) * W(gradient(i, j));
  };
  const auto square = [&] {
    W sum(0);
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) {
        const W d = direction(i, j);
        sum += d * d;
      }
    return sum;
  };
  W length(0);
  if (options.rule == RewriteRule::l2) {
    length = square();
    if constexpr (std::is_floating_point_v<S>) {
      using Limits = std::numeric_limits<W>;
      plain = length > Limits::min() / Limits::epsilon() && length < Limits::max() * Limits::epsilon();
      if (!plain) {
        exponent = std::numeric_limits<int>::min();
        for (Index i = 0; i < x.rows; ++i)
          for (Index j = 0; j < x.cols; ++j) {
            if (weight(i) == S(0) || gradient(i, j) == S(0)) continue;
            int first = 0, second = 0;
            std::frexp(weight(i), &first), std::frexp(gradient(i, j), &second);
            exponent = std::max(exponent, first + second);
          }
        if (exponent == std::numeric_limits<int>::min()) return;  // a gradient of zero
        length = square();
      }
    }
    length = sqrt(length);
  }
  const auto clip = [](S value, S low, S high) { return std::min(std::max(value, low), high); };
  const auto moved = [&](Index i, Index j) {
    const S w = weight(i), g = gradient(i, j);
    if (w == S(0) || g == S(0)) return x(i, j);  // bit for bit what it was
    const S along =
        options.rule == RewriteRule::l2 ? S(direction(i, j) / length) : ((w > S(0)) == (g > S(0)) ? S(1) : S(-1));
    const S near =
        clip(x(i, j) + S(options.step) * along, start(i, j) - S(options.radius), start(i, j) + S(options.radius));
    return clip(near, S(options.low), S(options.high));
  };
  for (const bool writes : {false, true})
    for (Index i = 0; i < x.rows; ++i)
      for (Index j = 0; j < x.cols; ++j) {
        const S to = moved(i, j);
        if (writes)
          x(i, j) = to;
        else if (!detail::row_is_finite(&to, 1))
          detail::raise("rewrite_step: x is " + detail::number_text(x(i, j)) + " in row " + detail::text_of(i) +
                        ", column " + detail::text_of(j) + ", and step " + detail::number_text(options.step) +
                        ", wanted their sum to be a finite number");
      }
}

}  // namespace LIMPID_ABI
}  // namespace limpid
