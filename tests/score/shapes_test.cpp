// limpid: modifiers refuse tables of other shapes than they can read, in one sentence that names them.
// SPDX-License-Identifier: MIT
#include <limpid/score/modifiers.hpp>
#include <set>

#include "support/catch.hpp"

using limpid::Index;
using limpid::Mat;

namespace {

using Shape = std::pair<Index, Index>;

/// What make(rows, cols) makes, asked about B = 2, H = 3, n = 4, m = 7: refused unless its shape is among `fine`.
template <class Make>
void takes_only(const std::string& name, const std::set<Shape>& fine, const Make& make) {
  for (const Index rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 21, 24, 25})
    for (const Index cols : {0, 1, 2, 3, 4, 5, 6, 7, 8, 12}) {
      INFO(name << " of " << rows << " x " << cols);
      std::string said;
      try {
        make(rows, cols).check("some operator", 2, 3, 4, 7);
      } catch (const limpid::ShapeError& e) {
        said = e.what();
      }
      const bool none = rows * cols == 0 && name.find("gradient") == 0;  // an empty gradient is not asked for
      if (none || fine.count({rows, cols}) > 0) {
        CHECK(said == "");
        continue;
      }
      CHECK(said.find("some operator") != std::string::npos);
      CHECK(said.find(name) != std::string::npos);
      CHECK(said.find(limpid::detail::shape_text(rows, cols)) != std::string::npos);
      CHECK(said.find("wanted") != std::string::npos);
    }
}

}  // namespace

TEST_CASE("Tables of modifiers have the shapes that are documented, or are refused.") {
  Mat<double> x;
  Mat<bool> keep;
  const auto of = [&](Index rows, Index cols) -> Mat<double>& {
    x = Mat<double>::Zero(rows, cols);
    return x;
  };
  const auto mask = [&](Index rows, Index cols) {
    keep = Mat<bool>::Constant(rows, cols, true);
    return limpid::mask_matrix(keep);
  };
  const std::set<Shape> masks = {{4, 7}, {8, 7}, {24, 7}};
  takes_only("mask", masks, mask);
  // whichever part of a combination it is
  takes_only("mask", masks, [&](Index r, Index c) { return mask(r, c) & limpid::causal(); });
  takes_only("mask", masks, [&](Index r, Index c) { return limpid::causal() & mask(r, c); });
  takes_only("mask", masks, [&](Index r, Index c) { return limpid::causal() | mask(r, c); });
  takes_only("mask", masks, [&](Index r, Index c) { return mask(r, c) | limpid::causal(); });
  takes_only("mask", masks, [&](Index r, Index c) { return !mask(r, c); });
  takes_only("mask", masks, [&](Index r, Index c) { return limpid::chain(limpid::causal(), mask(r, c)); });
  takes_only("key bias", {{1, 7}, {2, 7}}, [&](Index r, Index c) { return limpid::key_bias(of(r, c)); });
  takes_only("bias", {{4, 7}, {12, 7}, {24, 7}}, [&](Index r, Index c) { return limpid::bias(of(r, c)); });
  const std::set<Shape> slopes = {{1, 1}, {1, 3}, {3, 1}};
  takes_only("ALiBi slopes", slopes, [&](Index r, Index c) { return limpid::alibi(of(r, c)); });
  takes_only("ALiBi slopes", slopes, [&](Index r, Index c) { return limpid::alibi_symmetric(of(r, c)); });
  takes_only("relative table", {{1, 1}, {1, 3}, {1, 5}, {1, 7}, {3, 1}, {3, 3}, {3, 5}, {3, 7}},
             [&](Index r, Index c) { return limpid::relative(of(r, c)); });

  // gradients have the shape of what they are of
  Mat<double> table;
  const auto fixed = [&](Index rows, Index cols) -> Mat<double>& {
    table = Mat<double>::Zero(rows, cols);
    return table;
  };
  takes_only("gradient of the key bias", {{2, 7}},
             [&](Index r, Index c) { return limpid::key_bias(fixed(2, 7), of(r, c)); });
  takes_only("gradient of the bias", {{12, 7}}, [&](Index r, Index c) { return limpid::bias(fixed(12, 7), of(r, c)); });
  takes_only("gradient of the relative table", {{3, 5}},
             [&](Index r, Index c) { return limpid::relative(fixed(3, 5), of(r, c)); });
}

TEMPLATE_TEST_CASE("Minus infinity masks whatever the score is, and no sum of finite numbers does.", "", float,
                   double) {
  using S = TestType;
  const S inf = std::numeric_limits<S>::infinity(), low = std::numeric_limits<S>::lowest();
  const limpid::At at{0, 0, 0, 0, 1, 1};
  for (const S amount : {-inf, low}) {
    const Mat<S> one = Mat<S>::Constant(1, 1, amount);
    for (const S s : {std::numeric_limits<S>::quiet_NaN(), inf, -inf, low, S(-1), S(1)}) {
      if (amount == low && !(s <= 1 && s >= low)) continue;
      const S wanted = amount == low && s <= 0 ? low : (amount == low ? low + s : amount);
      INFO(amount << " added to " << s);
      CHECK(limpid::additive([amount](const limpid::At&) { return amount; }).value(s, at) == wanted);
      CHECK(limpid::key_bias(one).value(s, at) == wanted);
      CHECK(limpid::relative(one).value(s, at) == wanted);
      CHECK(limpid::bias(one).value(s, at) == wanted);
    }
  }
}
