// limpid: the gradient checker says yes to right gradients and no to wrong ones.
// SPDX-License-Identifier: MIT
#include <limpid/check/gradient.hpp>
#include <limpid/op/nlm.hpp>

#include "support/catch.hpp"

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

TEST_CASE("numeric_gradient leaves what it looked at as it was.") {
  Mat<double> x = filled(2, 3, 4);
  const Mat<double> was = x;
  const Mat<double> g = limpid::numeric_gradient(x, [&] { return x(0, 1) * x(0, 1) + 3 * x(1, 2); });
  CHECK(x == was);
  CHECK(g(0, 1) == Approx(2 * was(0, 1)).epsilon(1e-9));
  CHECK(g(1, 2) == Approx(3).epsilon(1e-9));
  CHECK(std::abs(g(0, 0)) < 1e-10);
}
