// limpid: activations and their derivatives against the functions of the standard library in long double.
// SPDX-License-Identifier: MIT
#include <limpid/engine/activation.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using limpid::Activation;
using limpid::Index;
using namespace limpid::detail;

namespace {

constexpr Activation all[] = {Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::silu};

long double logistic(long double w) { return 1 / (1 + std::exp(-w)); }
struct Wanted {
  long double value, slope;
};
Wanted wanted(Activation a, long double x) {
  const long double root = std::sqrt(2.0L), c = 2 * std::sqrt(2 / std::acos(-1.0L));
  switch (a) {
    case Activation::gelu: {
      const long double phi = std::erfc(-x / root) / 2;
      return {x * phi, phi + x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0L))};
    }
    case Activation::gelu_tanh: {
      const long double s = logistic(c * (x + 0.044715L * x * x * x));
      return {x * s, s + x * s * (1 - s) * c * (1 + 3 * 0.044715L * x * x)};
    }
    case Activation::relu:
      return {x > 0 ? x : 0, x > 0 ? 1.0L : 0.0L};
    default:
      return {x * logistic(x), logistic(x) * (1 + x * (1 - logistic(x)))};
  }
}

template <class S>
struct Rows {
  std::vector<S> value, slope;
  bool same = true;
  Rows(Activation a, const std::vector<S>& x) : value(x.size()), slope(x.size(), S(1)) {
    const auto count = static_cast<Index>(x.size());
    activate_backward_row<Native<S>>(a, x.data(), slope.data(), value.data(), slope.data(), count);
    std::vector<S> alone(x.size());
    activate_row<Native<S>>(a, x.data(), nullptr, alone.data(), count);
    // Of a NaN the sign is open; the others by value, as a long double has bytes that say nothing.
    for (std::size_t i = 0; i < x.size(); ++i)
      if (!(std::isnan(alone[i]) && std::isnan(value[i])))
        same = same && alone[i] == value[i] && std::signbit(alone[i]) == std::signbit(value[i]);
    CHECK(same);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Activations are right to 2 epsilon |x|, their derivatives to 3 epsilon", "", float, double) {
  using S = TestType;
  std::vector<S> x;
  for (int i = -40000; i <= 40000; ++i) x.push_back(S(i) * S(0.0009765) + S(1e-4) * S(std::sin(i)));
  for (double s = 1e-30; s < 1e30; s *= 1.37) x.push_back(S(s)), x.push_back(S(-s));
  const double epsilon = std::numeric_limits<S>::epsilon();
  for (const Activation a : all) {
    const Rows<S> found(a, x);
    double value = 0, slope = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const Wanted want = wanted(a, static_cast<long double>(x[i]));
      const auto off =
          static_cast<double>(std::abs(found.value[i] - want.value) / std::abs(static_cast<long double>(x[i])));
      value = std::max(value, x[i] == 0 ? 0.0 : off);
      if (!(a == Activation::relu && x[i] == 0))
        slope = std::max(slope, static_cast<double>(std::abs(found.slope[i] - want.slope)));
    }
    INFO("activation " << static_cast<int>(a));
    CAPTURE(value / epsilon, slope / epsilon);
    CHECK(value <= 2 * epsilon);
    CHECK(slope <= 3 * epsilon);
  }
}

TEMPLATE_TEST_CASE("Far out activations are 0 and x, derivatives 0 and 1, and NaN stays NaN", "", float, double,
                   long double) {
  using S = TestType;
  const S inf = std::numeric_limits<S>::infinity(), top = std::numeric_limits<S>::max();
  const std::vector<S> x{-inf, -top, inf, top, S(0), std::numeric_limits<S>::quiet_NaN()};
  for (const Activation a : all) {
    INFO("activation " << static_cast<int>(a));
    const Rows<S> found(a, x);
    CHECK(found.value[0] == 0);
    CHECK(found.slope[0] == 0);
    CHECK(found.value[1] == 0);
    CHECK(found.slope[1] == 0);
    CHECK(found.value[2] == inf);
    CHECK(found.slope[2] == 1);
    CHECK(found.value[3] == top);
    CHECK(found.slope[3] == 1);
    CHECK(found.value[4] == 0);
    CHECK(std::isnan(found.value[5]));
  }
}

TEMPLATE_TEST_CASE("An entry has the same bits wherever it stands, and gates multiply", "", float, double) {
  using S = TestType;
  std::vector<S> x, gate, dy;
  for (int i = 0; i < 37; ++i)
    x.push_back(S(i - 17) / S(5)), gate.push_back(S(i % 5 - 2)), dy.push_back(S(i % 7 - 3) / S(4));
  for (const Activation a : all) {
    const Rows<S> plain(a, x);
    for (std::size_t begin = 1; begin < 20; ++begin) {
      const Rows<S> part(a, std::vector<S>(x.begin() + static_cast<std::ptrdiff_t>(begin), x.end()));
      CHECK(std::memcmp(part.value.data(), plain.value.data() + begin, part.value.size() * sizeof(S)) == 0);
      CHECK(std::memcmp(part.slope.data(), plain.slope.data() + begin, part.value.size() * sizeof(S)) == 0);
    }
    std::vector<S> y(37), again(37), dx = dy, dgate(37);
    activate_row<Native<S>>(a, x.data(), gate.data(), y.data(), 37);
    activate_gated_backward_row<Native<S>>(a, x.data(), gate.data(), dx.data(), again.data(), dx.data(), dgate.data(),
                                           37);
    for (std::size_t i = 0; i < 37; ++i) {
      CHECK(y[i] == plain.value[i] * gate[i]);
      CHECK(again[i] == y[i]);
      CHECK(dx[i] == dy[i] * gate[i] * plain.slope[i]);
      CHECK(dgate[i] == dy[i] * plain.value[i]);
    }
  }
}
