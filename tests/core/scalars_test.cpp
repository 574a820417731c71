// limpid: any scalar goes through the one-lane path, forward and backward: here numbers that carry a derivative.
// SPDX-License-Identifier: MIT
#include <limpid/op/softmax.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

namespace {

/// value + slope e, e^2 = 0.
struct Dual {
  double value = 0, slope = 0;
  constexpr Dual() = default;
  constexpr Dual(double v) : value(v) {}  // NOLINT: implicit, as for any number
  constexpr Dual(double v, double s) : value(v), slope(s) {}
  Dual& operator+=(const Dual& b) { return *this = {value + b.value, slope + b.slope}; }
  Dual& operator-=(const Dual& b) { return *this = {value - b.value, slope - b.slope}; }
  Dual& operator*=(const Dual& b) { return *this = {value * b.value, slope * b.value + value * b.slope}; }
  Dual& operator/=(const Dual& b) { return *this = {value / b.value, (slope - value / b.value * b.slope) / b.value}; }
  friend Dual operator+(Dual a, const Dual& b) { return a += b; }
  friend Dual operator-(Dual a, const Dual& b) { return a -= b; }
  friend Dual operator*(Dual a, const Dual& b) { return a *= b; }
  friend Dual operator/(Dual a, const Dual& b) { return a /= b; }
  Dual operator-() const { return {-value, -slope}; }
  friend bool operator==(const Dual& a, const Dual& b) { return a.value == b.value; }
  friend bool operator!=(const Dual& a, const Dual& b) { return a.value != b.value; }
  friend bool operator<(const Dual& a, const Dual& b) { return a.value < b.value; }
  [[maybe_unused]] friend bool operator>(const Dual& a, const Dual& b) { return a.value > b.value; }
  [[maybe_unused]] friend bool operator<=(const Dual& a, const Dual& b) { return a.value <= b.value; }
  [[maybe_unused]] friend bool operator>=(const Dual& a, const Dual& b) { return a.value >= b.value; }
  friend Dual exp(const Dual& a) { return {std::exp(a.value), a.slope * std::exp(a.value)}; }
  friend Dual log(const Dual& a) { return {std::log(a.value), a.slope / a.value}; }
  friend Dual sqrt(const Dual& a) { return {std::sqrt(a.value), a.slope / (2 * std::sqrt(a.value))}; }
  friend bool isfinite(const Dual& a) { return std::isfinite(a.value); }
  [[maybe_unused]] friend bool isnan(const Dual& a) { return std::isnan(a.value); }
};

}  // namespace

template <>
struct Eigen::NumTraits<Dual> : Eigen::NumTraits<double> {
  using Real = Dual;
  using NonInteger = Dual;
  using Nested = Dual;
};

namespace {

using limpid::Index;
using limpid::Mat;

/// <out, w> and what backward says of q, in any scalar, of the same problem.
template <class S>
S value_and_gradient(const Mat<S>& q, const Mat<double>& k0, const Mat<double>& v0, const Mat<double>& w0, Mat<S>& dq) {
  const Mat<S> k = k0.template cast<S>(), v = v0.template cast<S>(), w = w0.template cast<S>();
  Mat<S> out(w.rows(), w.cols()), dk(k.rows(), k.cols()), dv(v.rows(), v.cols());
  dq.resize(q.rows(), q.cols());
  const auto op = limpid::softmax(limpid::causal());
  limpid::Saved<std::remove_cvref_t<decltype(op)>, S> saved;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  limpid::backward(op, limpid::qkv(q, k, v), saved, w, limpid::grads(dq, dk, dv));
  S sum(0);
  for (Index i = 0; i < out.size(); ++i) sum += out.data()[i] * w.data()[i];
  return sum;
}

}  // namespace

TEST_CASE("A dual number goes through forward and backward: its slope is the gradient, and that of the gradient.") {
  suite::Random random(21);
  const auto q = suite::random_matrix<double>(random, 4, 3), k = suite::random_matrix<double>(random, 6, 3),
             v = suite::random_matrix<double>(random, 6, 2), w = suite::random_matrix<double>(random, 4, 2);
  Mat<double> dq, above, below;
  value_and_gradient<double>(q, k, v, w, dq);
  for (Index i = 0; i < 4; ++i)
    for (Index c = 0; c < 3; ++c) {
      Mat<Dual> dual = q.cast<Dual>(), dual_dq;
      dual(i, c).slope = 1;
      CHECK(value_and_gradient<Dual>(dual, k, v, w, dual_dq).slope == Approx(dq(i, c)).margin(1e-12));
      Mat<double> x = q;
      const double h = 0x1p-13;
      x(i, c) = q(i, c) + h;
      value_and_gradient<double>(x, k, v, w, above);
      x(i, c) = q(i, c) - h;
      value_and_gradient<double>(x, k, v, w, below);
      for (Index r = 0; r < 4; ++r)
        for (Index e = 0; e < 3; ++e) {
          CHECK(dual_dq(r, e).value == Approx(dq(r, e)).margin(1e-12));
          CHECK(dual_dq(r, e).slope == Approx((above(r, e) - below(r, e)) / (2 * h)).margin(1e-6));
        }
    }
}

TEST_CASE("long double goes through forward and backward with its own digits.") {
  suite::Random random(22);
  const auto q = suite::random_matrix<double>(random, 4, 3), k = suite::random_matrix<double>(random, 6, 3),
             v = suite::random_matrix<double>(random, 6, 2), w = suite::random_matrix<double>(random, 4, 2);
  Mat<double> dq;
  Mat<long double> fine;
  const double value = value_and_gradient<double>(q, k, v, w, dq);
  const long double wanted = value_and_gradient<long double>(q.cast<long double>(), k, v, w, fine);
  CHECK(std::abs(static_cast<double>(wanted - value)) < 1e-14);
  for (Index i = 0; i < dq.size(); ++i) CHECK(std::abs(static_cast<double>(fine.data()[i] - dq.data()[i])) < 1e-14);
}
