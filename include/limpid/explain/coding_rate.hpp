// limpid: coding rates and sparsity, the measurements behind sparse rate reduction, with gradients.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Cholesky>

#include "../layer/linear.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct CodingRateOptions {
  double eps2 = 0.01;      ///< the SQUARED precision; what the official code calls eps
  bool normalise = false;  ///< scale every row of what is measured to unit norm first; a zero row stays zero
  Index heads = 1;         ///< subspaces; of the rates that take a codebook u
};

namespace detail {

/// The power of two that takes the largest entry of a row out of [1/2, 1).
template <class S>
int exponent_of(const S* row, Index count) {
  int exponent = 0;
  if constexpr (std::is_floating_point_v<S>) {
    const S largest = largest_entry<Native<S>>(row, count);
    if (largest > S(0) && std::isfinite(largest)) std::frexp(largest, &exponent);
  }
  return exponent;
}
/// to = from 2^exponent, in two factors, as one of them may have no number.
template <class From, class To>
void scale_by_power(const From* from, int exponent, To* to, Index count) {
  From first(1), second(1);
  if constexpr (std::is_floating_point_v<From>)
    first = std::ldexp(first, exponent / 2), second = std::ldexp(second, exponent - exponent / 2);
  if constexpr (std::is_same_v<From, To>)
    for_lanes<Native<To>>(count, [&](auto policy, Index c) {
      using L = decltype(policy);
      L::store(to + c, L::load(from + c) * L::set(first) * L::set(second));
    });
  else
    for (Index c = 0; c < count; ++c) to[c] = To(from[c] * first * second);
}

/// y = x U of rows that are brought to order 1 one by one, so that no sum of products over- or underflows: row i of x
/// is 2^exponents[i] that of rows.
template <class S>
struct ScaledTokens {
  MutView<S> rows, y;
  int* exponents;

  ScaledTokens(const Context& context, View<S> x, View<S> u)
      : rows(context.arena().template matrix<S>(x.rows, x.cols)),
        y(context.arena().template matrix<S>(x.rows, u.cols)),
        exponents(context.arena().template take<int>(x.rows)) {
    for (Index i = 0; i < x.rows; ++i) {
      exponents[i] = exponent_of(x.row(i), x.cols);
      scale_by_power(x.row(i), -exponents[i], rows.row(i), x.cols);
    }
    linear_in<Native<S>>(context, rows, u, View<S>(), y);
  }
};

/// 1/2 logdet(I + alpha y^T y) of one set of rows, and on request its gradient, all in the wide scalar. exponents, if
/// any: row i of y is 2^exponents[i] that of x, and the gradient is one of y, unless normalised, where it is one of x.
template <class S>
class OneRate {
 public:
  using W = Accumulator<S>;
  using P = Native<W>;

  OneRate(const char* name, const Context& context, View<S> x, const CodingRateOptions& options,
          const int* exponents = nullptr)
      : context_(context), alpha_(x.rows == 0 ? W(0) : W(double(x.cols)) / (W(double(x.rows)) * W(options.eps2))) {
    using std::log1p;
    using std::sqrt;
    if (!row_is_finite(&alpha_, 1))
      raise(std::string(name) + ": eps2 is " + number_text(options.eps2) +
            ", wanted it so large that D / (n eps2) is a finite number");
    y_.resize(x.rows, x.cols);
    for (Index i = 0; i < x.rows; ++i)
      for (Index c = 0; c < x.cols; ++c) y_(i, c) = W(x(i, c));
    if (options.normalise) {
      inverse_.resize(x.rows, 1);
      for (Index i = 0; i < x.rows; ++i) {
        // by the largest entry first: squares of rows far from 1 would over- or underflow
        const W largest = x.cols == 0 ? W(0) : y_.row(i).cwiseAbs().maxCoeff();
        if (!(largest > W(0)) || !row_is_finite(y_.row(i).data(), x.cols)) {  // a zero row stays one, NaN shows
          inverse_(i, 0) = largest == W(0) ? W(0) : W(1);
          continue;
        }
        y_.row(i) /= largest;
        const W norm = sqrt(dot(y_.row(i).data(), y_.row(i).data(), x.cols));
        y_.row(i) /= norm;
        inverse_(i, 0) = W(1) / largest / norm;
      }
    }
    // alpha = share unit^2, y times unit: squares over- or underflow with what they are of the rate, not before
    if constexpr (std::is_floating_point_v<W>)
      if (!options.normalise) {
        int exponent = 0;
        const W fraction = std::frexp(alpha_, &exponent);
        unit_ = std::ldexp(W(1), exponent / 2), share_ = std::ldexp(fraction, exponent % 2);
        for (Index i = 0; i < x.rows; ++i)
          scale_by_power(y_.row(i).data(), exponent / 2 + (exponents ? exponents[i] : 0), y_.row(i).data(), x.cols);
      }
    const Index size = std::min(x.rows, x.cols);  // both determinants agree: the smaller one
    if (size == 0) return;
    Mat<W> gram(size, size);
    if (x.rows < x.cols)
      multiply<P, Transposed::b>(context, View<W>(y_), View<W>(y_), MutView<W>(gram), false);
    else
      multiply<P, Transposed::a>(context, View<W>(y_), View<W>(y_), MutView<W>(gram), false);
    gram *= share_;
    if (options.normalise && alpha_ < W(1)) gram_ = gram;
    const Mat<W> diagonal = gram.diagonal();
    gram.diagonal().array() += W(1);
    W largest(0), least(0);  // what is left of the diagonal is at least 1, but for what rounding makes of it
    for (Index i = 0; i < size; ++i) largest = std::max(largest, gram(i, i));
    cholesky_.compute(gram);
    for (Index i = 0; i < size; ++i) {
      const W pivot = cholesky_.matrixLLT()(i, i);
      least = i == 0 ? pivot : std::min(least, pivot);
      // log pivot^2, without the 1 in which a small pivot^2 - 1 would lose its digits
      const auto before = cholesky_.matrixLLT().row(i).head(i);
      value_ += log1p(diagonal(i, 0) - dot(before.data(), before.data(), i)) / W(2);
    }
    const W rounding = W(double(size)) * W(std::numeric_limits<W>::epsilon()) * largest;
    const bool right = cholesky_.info() == Eigen::Success && row_is_finite(&value_, 1) && least * least > rounding;
    if (!right && holds_finite(x))  // what x holds itself may show
      raise(std::string(name) + ": eps2 is " + number_text(options.eps2) +
            ", wanted it so large that I + D / (n eps2) x^T x is a positive matrix in numbers");
  }

  W value() const { return value_; }
  /// dx = g d value / dx:  g alpha (I + alpha y y^T)^-1 y = g alpha y (I + alpha y^T y)^-1,
  /// then through the normalisation.
  Mat<W> gradient(W g) const {
    Mat<W> d;
    if (y_.size() == 0) return y_;
    // Of unit rows only what is across them counts. Where alpha is small (I + alpha y y^T)^-1 y is all but y itself,
    // and what is across lies in the digits that differ: without y, -(I + alpha y y^T)^-1 alpha y y^T y.
    const bool across = gram_.size() > 0, by_rows = y_.rows() < y_.cols();
    d = y_;
    if (across)
      multiply<P, Transposed::none>(context_, View<W>(by_rows ? gram_ : y_), View<W>(by_rows ? y_ : gram_),
                                    MutView<W>(d), false);
    if (by_rows) {
      solve(d);
    } else {
      Mat<W> turned = d.transpose();
      solve(turned);
      d = turned.transpose();
    }
    d *= g * (share_ * unit_) * W(across ? -1 : 1);
    if (inverse_.size() > 0)  // y = x / |x|: dx = (dy - y <y, dy>) / |x|
      for (Index i = 0; i < d.rows(); ++i) {
        const W along = dot(d.row(i).data(), y_.row(i).data(), d.cols());
        d.row(i) = (d.row(i) - along * y_.row(i)) * inverse_(i, 0);
      }
    return d;
  }

 private:
  /// b = (L L^T)^-1 b by rows: Eigen's solvers leave the vectors of their small triangles to -O3. Columns in blocks
  /// that stay in L2.
  void solve(Mat<W>& b) const {
    const auto& l = cholesky_.matrixLLT();
    constexpr Index block = 128;
    for (Index c = 0; c < b.cols(); c += block) {
      const Index cols = std::min(block, b.cols() - c);
      const auto row = [&](Index i) { return b.data() + i * b.cols() + c; };
      for (Index i = 0; i < b.rows(); ++i) {
        for (Index j = 0; j < i; ++j) add_scaled_row<P>(row(i), -l(i, j), row(j), row(i), cols);
        scale_row<P>(W(1) / l(i, i), row(i), row(i), cols);
      }
      for (Index i = b.rows(); i-- > 0;) {
        for (Index j = i + 1; j < b.rows(); ++j) add_scaled_row<P>(row(i), -l(j, i), row(j), row(i), cols);
        scale_row<P>(W(1) / l(i, i), row(i), row(i), cols);
      }
    }
  }

  Context context_;
  W alpha_, share_ = alpha_, unit_ = 1, value_ = 0;
  Mat<W> y_, inverse_, gram_;
  Eigen::LLT<Mat<W>> cholesky_;
};

inline void check_rate(const char* name, const CodingRateOptions& options) {
  check_finite<double>(name, "eps2", options.eps2, options.eps2 > 0, "a positive, finite number");
}
template <class S>
void check_codebook(const char* name, View<S> x, View<S> u, Index heads) {
  if (u.rows != x.cols)
    raise(std::string(name) + ": u is " + shape_text(u.rows, u.cols) + ", wanted " + text_of(x.cols) +
          " rows, as x has columns");
  if (heads < 1 || u.cols % heads != 0)
    raise(std::string(name) + ": u has " + text_of(u.cols) +
          " columns, wanted a multiple of heads = " + text_of(heads));
  check_counts(name, 1, heads, u.cols);
}
}  // namespace detail

/// R(x) = 1/2 logdet(I_D + alpha x^T x) = 1/2 logdet(I_n + alpha x x^T), alpha = D / (n eps2): nats to code the rows of
/// x (n x D) up to precision eps. "White-Box Transformers via Sparse Rate Reduction", arXiv 2306.01129; the same as in
/// 2311.13110. By Cholesky of the smaller Gram matrix, in double for float tokens. O(n D min(n, D)). Throws ShapeError
/// for eps2 <= 0, and where it is so small for the size of x that the 1 of I is lost.
template <class X, class S = detail::ScalarOf<X>>
detail::Accumulator<S> coding_rate(X&& x, const CodingRateOptions& options = {}, const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x));
  detail::check_rate("coding_rate", options);
  detail::Accumulator<S> value = 0;
  detail::with_context(
      call, [&](const auto& context) { value = detail::OneRate<S>("coding_rate", context, vx, options).value(); });
  return value;
}

/// dx = g dR/dx = g alpha x (I + alpha x^T x)^-1, g the upstream number; added if the call says accumulate. Throws
/// ShapeError as coding_rate does, and where dx has another shape or shares memory with x.
template <class X, class Dx, class S = detail::ScalarOf<Dx>>
void coding_rate_backward(X&& x, double g, Dx&& dx, const CodingRateOptions& options = {}, const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x));
  const MutView<S> to(std::forward<Dx>(dx));
  detail::check_rate("coding_rate", options);
  detail::check_gradient<S>("coding_rate", "x", to, vx);
  detail::refuse_overlaps("coding_rate", {{"x", to, detail::gradient_of}}, {{"x", vx}});
  detail::with_context(call, [&](const auto& context) {
    const auto d = detail::OneRate<S>("coding_rate", context, vx, options).gradient(detail::Accumulator<S>(g));
    for (Index i = 0; i < to.rows; ++i)
      for (Index c = 0; c < to.cols; ++c) to(i, c) = S(d(i, c)) + (call.accumulate ? to(i, c) : S(0));
  });
}

/// R^c(x; U) = sum_k R(x U_k), the rate with one codebook a head, u D x (H p), alpha = p / (n eps2). Tokens of any size
/// are multiplied as if of order 1. Throws ShapeError as coding_rate, and where u does not fit.
template <class X, class U, class S = detail::ScalarOf<X>>
detail::Accumulator<S> subspace_coding_rate(X&& x, U&& u, const CodingRateOptions& options = {},
                                            const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vu(std::forward<U>(u));
  detail::check_rate("subspace_coding_rate", options);
  detail::check_codebook<S>("subspace_coding_rate", vx, vu, options.heads);
  detail::Accumulator<S> value = 0;
  detail::with_context(call, [&](const auto& context) {
    const Index p = vu.cols / options.heads;
    const detail::ScaledTokens<S> tokens(context, vx, vu);
    for (Index k = 0; k < options.heads; ++k)
      value += detail::OneRate<S>("subspace_coding_rate", context, tokens.y.block(0, k * p, vx.rows, p), options,
                                  tokens.exponents)
                   .value();
  });
  return value;
}

/// dx = sum_k dY_k U_k^T and dU_k = x^T dY_k, dY_k = g dR/dY_k; either may be an empty view. Throws ShapeError as
/// subspace_coding_rate does, and where a gradient has another shape or shares memory with x, u or the other.
template <class X, class U, class S = detail::ScalarOf<X>>
void subspace_coding_rate_backward(X&& x, U&& u, double g, const std::type_identity_t<MutView<S>>& dx,
                                   const std::type_identity_t<MutView<S>>& du, const CodingRateOptions& options = {},
                                   const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vu(std::forward<U>(u));
  detail::check_rate("subspace_coding_rate", options);
  detail::check_codebook<S>("subspace_coding_rate", vx, vu, options.heads);
  detail::check_gradient<S>("subspace_coding_rate", "x", dx, vx);
  detail::check_gradient<S>("subspace_coding_rate", "u", du, vu);
  detail::refuse_overlaps("subspace_coding_rate", {{"x", dx, detail::gradient_of}, {"u", du, detail::gradient_of}},
                          {{"x", vx}, {"u", vu}});
  detail::with_context(call, [&](const auto& context) {
    const Index p = vu.cols / options.heads;
    using W = detail::Accumulator<S>;
    using P = detail::Native<S>;
    const detail::ScaledTokens<S> tokens(context, vx, vu);
    const MutView<S> y = tokens.y;
    const MutView<W> dy = context.arena().template matrix<W>(y.rows, y.cols);
    for (Index k = 0; k < options.heads; ++k) {
      const Mat<W> d =
          detail::OneRate<S>("subspace_coding_rate", context, y.block(0, k * p, y.rows, p), options, tokens.exponents)
              .gradient(W(g));
      detail::copy<W>(View<W>(d), dy.block(0, k * p, y.rows, p));
    }
    // dx_i = dy_i U^T, with dy_i brought to order 1 as x_i was; dU = sum_i x_i^T dy_i, with what x_i was divided by
    const auto power = [&](Index i) { return options.normalise ? 0 : tokens.exponents[i]; };
    if (du.given()) {
      for (Index i = 0; i < y.rows; ++i) detail::scale_by_power(dy.row(i), power(i), y.row(i), y.cols);
      detail::multiply<P, detail::Transposed::a>(context, tokens.rows, y, du, call.accumulate);
    }
    if (!dx.given()) return;
    const MutView<S> to = context.arena().template matrix<S>(1, vx.cols), rows = tokens.rows;
    int* exponents = context.arena().template take<int>(y.rows);
    for (Index i = 0; i < y.rows; ++i) {
      const int exponent = detail::exponent_of(dy.row(i), y.cols);
      exponents[i] = exponent + power(i) - tokens.exponents[i];
      detail::scale_by_power(dy.row(i), -exponent, y.row(i), y.cols);
    }
    detail::multiply<P, detail::Transposed::b>(context, y, vu, rows, false);
    for (Index i = 0; i < y.rows; ++i) {
      detail::scale_by_power(rows.row(i), exponents[i], to.row(0), vx.cols);
      for (Index c = 0; c < vx.cols; ++c) dx(i, c) = to(0, c) + (call.accumulate ? dx(i, c) : S(0));
    }
  });
}

/// The share of entries that are not zero.
template <class X, class S = detail::ScalarOf<X>>
double nonzero_share(X&& x) {
  const View<S> v(std::forward<X>(x));
  Index count = 0;
  for (Index i = 0; i < v.rows; ++i)
    for (Index c = 0; c < v.cols; ++c) count += v(i, c) != S(0);
  return v.empty() ? 0 : static_cast<double>(count) / (static_cast<double>(v.rows) * static_cast<double>(v.cols));
}

/// The measurements of a layer. The papers take rate_c on H = x + MSSA(LN(x)) with the layer's own u, nonzero on its
/// result; the official code takes rate_c on the projected input with rows normalised.
struct RateReduction {
  double rate = 0, rate_c = 0, nonzero = 0;
  Index entries = 0;
  double reduction() const { return rate - rate_c; }
  /// The objective of sparse rate reduction, R - R^c - lambda |x|_0.
  double objective(double lambda) const { return reduction() - lambda * nonzero * static_cast<double>(entries); }
};

template <class X, class U, class S = detail::ScalarOf<X>>
RateReduction rate_reduction(X&& x, U&& u, const CodingRateOptions& options = {}, const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vu(std::forward<U>(u));
  return {double(coding_rate(vx, options, call)), double(subspace_coding_rate(vx, vu, options, call)),
          nonzero_share(vx), vx.rows * vx.cols};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
