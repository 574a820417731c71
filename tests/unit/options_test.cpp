// limpid: what may be handed in as an option: numbers that are none, integers at their ends, tables of any width.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

using limpid::At, limpid::Index, limpid::Mat, limpid::qkv;
using suite::distance, suite::error_of;

namespace {

const double none_such = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

template <class S>
struct Rows {
  Mat<S> q, k, v, out;
  explicit Rows(Index n = 6, Index m = 6, Index d = 4) {
    suite::Random random(1);
    q = suite::random_matrix<S>(random, n, d), k = suite::random_matrix<S>(random, m, d);
    v = suite::random_matrix<S>(random, m, d), out.resize(n, d);
  }
  template <class Op>
  std::string error(const Op& op) {
    return error_of([&] { limpid::forward(op, limpid::Inputs<Op, S>(qkv(q, k, v)), out); });
  }
};

/// make(x) builds an operator whose option is x; every bad x is refused by operator and option, every good one is not.
template <class S, class Make>
void check_option(const std::string& begins, const std::vector<double>& bad, const std::vector<double>& good,
                  const Make& make) {
  Rows<S> rows;
  for (double x : bad) {
    const std::string found = rows.error(make(x));
    INFO(begins << x << ": " << found);
    CHECK(found.find(begins) == 0);
    CHECK(found.find("wanted") != std::string::npos);
  }
  for (double x : good) {
    INFO(begins << x);
    CHECK(rows.error(make(x)) == "");
    CHECK(rows.out.allFinite());
  }
}

}  // namespace

TEMPLATE_TEST_CASE("Options that are no finite numbers, or out of range, are refused by name", "", float, double) {
  using S = TestType;
  std::vector<double> none = {none_such, inf, -inf};
  if (sizeof(S) == 4) none.push_back(1e308);
  const std::vector<double> some = {0.0, 1.0, -2.0, 1e-300};
  check_option<S>("softmax: scale is ", none, some, [](double x) { return limpid::softmax({.scale = x}); });
  check_option<S>("twicing: scale is ", none, some,
                  [](double x) { return limpid::twicing(limpid::softmax({.scale = x})); });
  check_option<S>("twicing: alpha is ", none, some, [](double x) { return limpid::twicing({.order = 1, .alpha = x}); });
  check_option<S>("pid: lambda_p is ", none, some, [](double x) { return limpid::pid({.lambda_p = x}); });
  check_option<S>("pid: lambda_i is ", none, some, [](double x) { return limpid::pid({.lambda_i = x}); });
  check_option<S>("pid: lambda_d is ", none, some, [](double x) { return limpid::pid({.lambda_d = x}); });
  check_option<S>("pid: beta is ", none, some, [](double x) { return limpid::pid({.beta = x}); });
  check_option<S>("pid: ema is ", {none_such, inf, 0, -1, 1.5}, {1.0, 1e-3},
                  [](double x) { return limpid::pid({.ema = x}); });
  check_option<S>("bilateral: scale is ", none, some, [](double x) {
    limpid::BilateralOptions o;
    o.spatial = limpid::SpatialKernel::none, o.scale = x;
    return limpid::bilateral(o);
  });
  const auto rope = [](auto set) {
    return [set](double x) {
      limpid::RopeOptions o;
      set(o, x);
      return limpid::rope(limpid::softmax(), o);
    };
  };
  check_option<S>("softmax: base is ", {none_such, inf, 0, -1}, {1.0, 1e6},
                  rope([](limpid::RopeOptions& o, double x) { o.base = x; }));
  check_option<S>("softmax: q_offset is ", {none_such, inf}, {0, -3, 7},
                  rope([](limpid::RopeOptions& o, double x) { o.q_offset = x; }));
  check_option<S>("softmax: k_offset is ", {none_such, inf}, {0, -3, 7},
                  rope([](limpid::RopeOptions& o, double x) { o.k_offset = x; }));
  Mat<S> wide = Mat<S>::Random(6, 8);
  const auto two_maps = [&](const char* begins, const std::vector<double>& bad, auto set) {
    for (double x : bad) {
      limpid::DifferentialOptions o;
      set(o, x);
      Rows<S> rows;
      const auto op = limpid::differential(o);
      const std::string found = error_of([&] { limpid::forward(op, qkv(wide, wide, rows.v), rows.out); });
      INFO(begins << x << ": " << found);
      CHECK(found.find(begins) == 0);
    }
  };
  two_maps("differential: scale is ", none, [](auto& o, double x) { o.scale = x; });
  two_maps("differential: eps is ", {none_such, inf, -1.0}, [](auto& o, double x) { o.eps = x; });
  two_maps("differential: lambda_init is ", none, [](auto& o, double x) { o.lambda_init = x; });

  Mat<S> y = Mat<S>::Random(5, 4), out(5, 4);
  for (double x : none) {
    const auto op = limpid::mssa({.scale = x});
    CHECK(error_of([&] { limpid::forward(op, {.y = y}, out); }).find("mssa: scale is ") == 0);
  }
  for (double tau : {none_such, 0.0, -1.0, 1.5}) {
    const auto op = limpid::mssa({.phi = limpid::Phi::threshold, .tau = tau});
    CHECK(error_of([&] { limpid::forward(op, {.y = y}, out); }).find("mssa: tau is ") == 0);
  }
  for (double h : {none_such, 0.0, -1.0, 1e-30}) {
    if (sizeof(S) == 8 && h > 0 && h < 1) continue;
    Mat<S> bandwidth = Mat<S>::Constant(1, 1, S(h));
    limpid::NlmArgs<limpid::View<S>> in = qkv(y, y, y);
    in.h = bandwidth;
    INFO("h " << h);
    CHECK(error_of([&] { limpid::forward(limpid::nlm(), in, out); }).find("nlm: h is ") == 0);
  }
  CHECK(error_of([&] { limpid::sinusoidal(out, {.base = inf}); }).find("sinusoidal: base is ") == 0);
  CHECK(error_of([&] { limpid::sinusoidal(out, {.first = none_such}); }).find("sinusoidal: first is ") == 0);
}

TEST_CASE("A scale that is not set is 1 / sqrt(d), and one that is set may be that or 0") {
  Rows<double> a, b;
  CHECK(a.error(limpid::softmax()) == "");
  CHECK(b.error(limpid::softmax({.scale = 0.5})) == "");
  CHECK(a.out == b.out);
  CHECK(b.error(limpid::softmax({.scale = 0})) == "");
  CHECK(distance(b.out, b.v.colwise().mean().replicate(6, 1)) < 1e-15);
}

TEST_CASE("Windows at the ends of their integers are no windows, or empty ones") {
  const Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{5, 5}, {3, 9}, {9, 3}, {40, 300}, {300, 40}}) {
    Rows<double> rows(n, m), wanted(n, m);
    for (Index left : {Index(0), Index(2), most, most - 1, Index(-1), least})
      for (Index right : {Index(0), Index(1), most, most - 1, Index(-1), least}) {
        INFO("n " << n << ", m " << m << ", left " << left << ", right " << right);
        const auto kept = limpid::mask([&, n = n, m = m](const At& a) {
          const double gap = static_cast<double>(a.k - (a.q + m - n));
          return (left < 0 || gap >= -static_cast<double>(left)) && (right < 0 || gap <= static_cast<double>(right));
        });
        REQUIRE(wanted.error(limpid::softmax(kept)) == "");
        CHECK(rows.error(limpid::softmax(limpid::window(left, right))) == "");
        CHECK(distance(rows.out, wanted.out) <= 1e-15);
        const auto either = (!limpid::window(left, right)) | limpid::causal();
        CHECK(rows.error(limpid::softmax(either)) == "");
        const auto either_kept = (!kept) | limpid::causal();
        REQUIRE(wanted.error(limpid::softmax(either_kept)) == "");
        CHECK(distance(rows.out, wanted.out) <= 1e-15);
      }
  }
}

TEST_CASE("Sizes that make no sense are refused, however large") {
  Rows<double> r;
  for (Index heads : {Index(0), Index(-1), Index(3), std::numeric_limits<Index>::max(), Index(1) << 61})
    CHECK(error_of([&] { limpid::forward(limpid::softmax(), qkv(r.q, r.k, r.v), r.out, {.heads = heads}); }) != "");
  for (Index batch : {Index(0), Index(-4), Index(5), std::numeric_limits<Index>::max(), Index(1) << 61})
    CHECK(error_of([&] { limpid::forward(limpid::softmax(), qkv(r.q, r.k, r.v), r.out, {.batch = batch}); }) != "");
  CHECK(r.error(limpid::twicing({.order = -1})).find("twicing: order is -1") == 0);
  CHECK(r.error(limpid::boosting({.steps = -3})).find("boosting: steps is -3") == 0);
}

TEST_CASE("Relative tables: T5's 32 buckets, with gradients; a width that the clipped map cannot have is refused") {
  // T5's buckets (Raffel et al. 2020, arXiv 1910.10683, section 2.1, as its code has them): half of them exact, half
  // in steps of a logarithm up to 128.
  const auto bucket = [](bool both) {
    return [both](Index offset, Index count) {
      Index base = 0, distance = -offset, half = count;
      if (both) {
        half = count / 2;
        base = offset > 0 ? half : 0;
        distance = std::abs(offset);
      } else {
        distance = std::max<Index>(0, distance);
      }
      const Index exact = half / 2;
      if (distance < exact) return base + distance;
      const double steps = std::log(static_cast<double>(distance) / static_cast<double>(exact)) /
                           std::log(128.0 / static_cast<double>(exact)) * static_cast<double>(half - exact);
      return base + std::min<Index>(half - 1, exact + static_cast<Index>(steps));
    };
  };
  for (bool both : {false, true})
    for (Index width : {4, 8, 31, 32, 33})
      for (const auto& [n, m] : std::vector<std::pair<Index, Index>>{{40, 40}, {5, 150}, {150, 7}}) {
        Rows<double> r(n, m);
        suite::Random random(5);
        const Mat<double> table = suite::random_matrix<double>(random, 1, width),
                          dout = suite::random_matrix<double>(random, n, 4);
        const auto map = bucket(both);
        const auto reference =
            limpid::additive([&, n = n, m = m](const At& a) { return table(0, map(a.k - (a.q + m - n), width)); });
        Rows<double> wanted(n, m);
        INFO("width " << width << ", both " << both << ", n " << n << ", m " << m);
        REQUIRE(wanted.error(limpid::softmax(reference)) == "");
        Mat<double> dtable = Mat<double>::Zero(1, width), expected = dtable, dq = r.q, dk = r.k, dv = r.v, A(n, m);
        const auto op = limpid::softmax(limpid::relative(table, dtable, map));
        limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
        limpid::forward(op, qkv(r.q, r.k, r.v), r.out, {.saved = &saved, .map = &A});
        CHECK(distance(r.out, wanted.out) <= 1e-14);
        limpid::backward(op, qkv(r.q, r.k, r.v), saved, dout, limpid::grads(dq, dk, dv));
        for (Index i = 0; i < n; ++i)
          for (Index j = 0; j < m; ++j)
            expected(0, map(j - (i + m - n), width)) +=
                A(i, j) * (dout.row(i).dot(r.v.row(j)) - dout.row(i).dot(r.out.row(i)));
        CHECK(distance(dtable, expected) <= 1e-13);
      }
  Rows<double> r;
  const Mat<double> even = Mat<double>::Zero(1, 32), odd = Mat<double>::Zero(1, 33);
  CHECK(r.error(limpid::softmax(limpid::relative(even))).find("softmax: relative table is 1 x 32") == 0);
  CHECK(r.error(limpid::softmax(limpid::relative(odd))) == "");
  const auto outside = [](Index offset, Index) { return offset; };
  CHECK(
      r.error(limpid::softmax(limpid::relative(even, outside))).find("softmax: the map of a relative table gives -5") ==
      0);
}
