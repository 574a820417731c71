// limpid: the gradient checker says yes to right gradients and no to wrong ones.
// SPDX-License-Identifier: MIT
#include <limpid/check/promises.hpp>
#include <limpid/op/nlm.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

using limpid::Index;
using limpid::Mat;

namespace {

Mat<double> filled(Index rows, Index cols, std::uint64_t seed) {
  Mat<double> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = limpid::detail::uniform(seed);
  return m;
}

}  // namespace

TEST_CASE("Right gradients pass, entry by entry and along directions, for every field that is given.") {
  const Mat<double> q = filled(6, 4, 1), k = filled(10, 2, 2), v = filled(10, 3, 3),
                    h = Mat<double>::Constant(2, 1, 1.3);
  limpid::GradientOptions options;
  options.batch = 2, options.heads = 2, options.kv_heads = 1;
  limpid::Inputs<decltype(limpid::nlm()), double> in = limpid::qkv(q, k, v);
  in.h = h;
  for (int directions : {0, 3}) {
    options.directions = directions;
    const auto check = limpid::check_gradient(limpid::nlm(), in, options);
    INFO(check.text());
    CHECK(check.fields.size() == 4);
    CHECK(check.worst() < 1e-8);
  }
}

TEST_CASE("A wrong derivative is found, in the fields it concerns.") {
  const Mat<double> q = filled(4, 3, 1), k = filled(5, 3, 2), v = filled(5, 3, 3);
  const auto square = [](auto s, limpid::At) { return s * s; };
  const auto wrong = [](auto s, limpid::At) { return s; };  // not 2 s
  const auto check = limpid::check_gradient(limpid::softmax(limpid::score_mod(square, wrong)), limpid::qkv(q, k, v));
  REQUIRE(check.fields.size() == 3);
  CHECK(check.fields[0].error > 0.1);
  CHECK(check.fields[1].error > 0.1);
  CHECK(check.fields[2].error < 1e-8);
  CHECK(check.worst() > 0.1);
}

TEST_CASE(
    "Near a kink a short step tells a right derivative from a wrong one, the step of smooth functions does not.") {
  Mat<double> q(1, 1), k(3, 1), v(3, 1);
  q << 1, k << 2e-4, 0.7, -0.4, v << 1, -0.5, 0.25;  // the first score is 2e-4 above 0
  const auto relu = [](auto s, limpid::At) { return s > 0 ? s : 0 * s; };
  const auto slope = [](auto s, limpid::At) { return s > 0 ? 1.0 : 0.0; };
  const auto wrong = [](auto s, limpid::At) { return s > 0.5 ? 1.0 : 0.0; };
  const auto worst = [&](const auto& df, double step) {
    const auto op = limpid::softmax(limpid::score_mod(relu, df), {.scale = 1});
    return limpid::check_gradient(op, limpid::qkv(q, k, v), {.step = step}).worst();
  };
  CHECK(worst(slope, 0) > 1e-3);
  CHECK(worst(slope, 1e-6) < 1e-6);
  CHECK(worst(wrong, 1e-6) > 0.1);
  const auto op = limpid::softmax(limpid::score_mod(relu, slope), {.scale = 1});
  CHECK_FALSE(limpid::check_promises(op, limpid::qkv(q, k, v)).kept());
  CHECK(limpid::check_promises(op, limpid::qkv(q, k, v), 1, 1, 0, 1e-6).kept());
}

TEST_CASE("Options of the checker that make no sense are refused, each by its name.") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const Mat<double> q = filled(4, 4, 1), v = filled(4, 4, 3);
  const auto error = [&](limpid::GradientOptions options) {
    return suite::error_of([&] { limpid::check_gradient(limpid::softmax(), limpid::qkv(q, q, v), options); });
  };
  CHECK(error({.directions = -1}) == "check_gradient: directions is -1, wanted 0 or more");
  CHECK(error({.directions = std::numeric_limits<int>::min()}).find("check_gradient: directions is -2147483648") == 0);
  for (const double step : {nan, inf, -inf, -1e-3, 1e-17, 1e-300, 1.5}) {
    INFO(step);
    const std::string ends = "wanted 0 (the scalar's eps^(1/5)) or from 2.22045e-16 to 1";
    for (const int directions : {0, 2}) {
      const std::string found = error({.directions = directions, .step = step});
      CHECK(found.find("check_gradient: step is ") == 0);
      CHECK(found.find(ends) != std::string::npos);
    }
    Mat<double> x = q;
    int calls = 0;
    CHECK(suite::error_of([&] {
            limpid::numeric_gradient(
                x, [&] { return double(++calls); }, step);
          }).find("numeric_gradient: step is ") == 0);
    CHECK(calls == 0);
  }
  for (const Index bad : {Index(-1), Index(0), Index(3), std::numeric_limits<Index>::max()}) {
    CHECK(error({.batch = bad}).find("softmax: ") == 0);
    CHECK(error({.heads = bad}).find("softmax: ") == 0);
    if (bad != 0) CHECK(error({.heads = 2, .kv_heads = bad}).find("softmax: ") == 0);
  }
  for (const double step : {0.0, 1e-3, 0x1p-10})
    for (const int directions : {0, 2}) {
      const limpid::GradientOptions options{.heads = 2, .seed = 7, .directions = directions, .step = step};
      CHECK(limpid::check_gradient(limpid::softmax(), limpid::qkv(q, q, v), options).worst() < 1e-8);
    }
  const Mat<double> none(0, 4);
  CHECK(limpid::check_gradient(limpid::softmax(), limpid::qkv(none, none, none)).fields.empty());
}

TEST_CASE("numeric_gradient puts back what it looked at where the function throws.") {
  Mat<double> x = filled(2, 3, 4);
  const Mat<double> was = x;
  CHECK_THROWS_AS(limpid::numeric_gradient(x,
                                           [&] {
                                             if (x(1, 1) != was(1, 1)) throw std::runtime_error("no");
                                             return x.sum();
                                           }),
                  std::runtime_error);
  CHECK(x == was);
}

TEST_CASE("numeric_gradient leaves what it looked at as it was.") {
  Mat<double> x = filled(2, 3, 4);
  const Mat<double> was = x;
  const Mat<double> g = limpid::numeric_gradient(x, [&] { return x(0, 1) * x(0, 1) + 3 * x(1, 2); });
  CHECK(x == was);
  CHECK(g(0, 1) == Approx(2 * was(0, 1)).epsilon(1e-9));
  CHECK(g(1, 2) == Approx(3).epsilon(1e-9));
  CHECK(std::abs(g(0, 0)) < 1e-10);
}
