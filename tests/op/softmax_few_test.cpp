// limpid: plain attention of a few queries against many keys, the path that decoding takes.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>
#include <limpid/op/softmax.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::softmax;
using Wide = Mat<long double>;

/// Scores s + more(i, j), where minus infinity masks, their softmax, and what it makes of v.
template <class More>
Wide by_formula(Wide s, const Wide& v, More more) {
  for (Index i = 0; i < s.rows(); ++i) {
    long double most = -std::numeric_limits<long double>::infinity(), sum = 0;
    for (Index j = 0; j < s.cols(); ++j) most = std::max(most, s(i, j) += static_cast<long double>(more(i, j)));
    const long double base = std::isinf(most) ? 0 : most;
    for (Index j = 0; j < s.cols(); ++j) sum += s(i, j) = std::exp(s(i, j) - base);
    for (Index j = 0; j < s.cols() && sum > 0; ++j) s(i, j) /= sum;
  }
  return suite::product(s, v);
}

}  // namespace

TEMPLATE_TEST_CASE("A few queries against many keys get what the formula says, whatever modifies their scores", "",
                   float, double) {
  using S = TestType;
  constexpr S none = -std::numeric_limits<S>::infinity();
  suite::Random random(7);
  for (Index n = 1; n <= 8; ++n)
    for (const Index m : {Index(n % 2 == 0 ? 256 : 301), Index(n == 2 || n == 7 ? 2051 : 573)}) {
      const Index d = 16 * (1 + n % 4), width = n % 2 == 0 ? 64 : 80;
      const Mat<S> q = suite::random_matrix<S>(random, n, d, -2, 2), k = suite::random_matrix<S>(random, m, d);
      const Mat<S> v = suite::random_matrix<S>(random, m, width);
      Mat<S> bias = suite::random_matrix<S>(random, 1, m);
      bias(0, 0) = bias(0, m - 2) = none;
      const Mat<S> slope = Mat<S>::Constant(1, 1, S(0.01));
      const Wide wide_q = q.template cast<long double>(), wide_k = k.template cast<long double>();
      const Wide wide_v = v.template cast<long double>();
      const Wide scores = suite::scaled(1 / std::sqrt(static_cast<long double>(d)), suite::product_nt(wide_q, wide_k));
      const auto near = [&](const auto& op, auto more) {
        Mat<S> out(n, width);
        limpid::forward(op, qkv(q, k, v), out);
        INFO("n " << n << ", m " << m);
        // values are at most 1: so many roundings
        CHECK(suite::distance(out, by_formula(scores, wide_v, more)) <= 16 * std::numeric_limits<S>::epsilon());
      };
      const auto gap = [&](Index i, Index j) { return j - (i + m - n); };
      near(softmax(), [](Index, Index) { return S(0); });
      near(softmax(limpid::causal()), [&](Index i, Index j) { return gap(i, j) <= 0 ? S(0) : none; });
      near(softmax(limpid::window(100, 2)),
           [&](Index i, Index j) { return gap(i, j) >= -100 && gap(i, j) <= 2 ? S(0) : none; });
      near(softmax(limpid::key_bias(bias)), [&](Index, Index j) { return bias(0, j); });
      {  // what a key that is masked for all holds is never looked at
        Mat<S> broken_k = k, broken_v = v, out(n, width), other(n, width);
        broken_k.row(0).setConstant(std::numeric_limits<S>::quiet_NaN()), broken_k.row(m - 2).setConstant(-none);
        broken_v.row(0).setConstant(-none), broken_v.row(m - 2).setConstant(std::numeric_limits<S>::quiet_NaN());
        limpid::forward(softmax(limpid::key_bias(bias)), qkv(q, k, v), out);
        limpid::forward(softmax(limpid::key_bias(bias)), qkv(q, broken_k, broken_v), other);
        CHECK(out == other);
      }
      near(softmax(limpid::alibi(slope)), [&](Index i, Index j) { return slope(0, 0) * S(gap(i, j)); });
      near(softmax(limpid::alibi_symmetric(slope)),
           [&](Index i, Index j) { return -slope(0, 0) * S(std::abs(gap(i, j))); });
      // keys that are seen by no query, and a query that sees no key
      near(softmax(limpid::mask([](const limpid::At& a) { return a.q != 0 && a.k % 3 != 1; })),
           [](Index i, Index j) { return i != 0 && j % 3 != 1 ? S(0) : none; });
    }
}

TEMPLATE_TEST_CASE("A few queries read every key and value once, however many there are and however far apart", "",
                   float, double) {
  using S = TestType;
  suite::Random random(11);
  const auto inside = [&random](Index rows, Index cols, Index stride, Mat<S>& buffer) {
    buffer = Mat<S>::Constant(rows + 1, stride, std::numeric_limits<S>::quiet_NaN());  // nothing beside may be used
    buffer.topLeftCorner(rows, cols) = suite::random_matrix<S>(random, rows, cols);
    return limpid::View<S>(buffer.data(), rows, cols, stride);
  };
  // every remainder of a vector and of four, in the first block and in one after it
  for (const Index first : {Index(256), Index(1024), Index(2048)})
    for (Index more = 0; more < (first == 256 ? 17 : 10); ++more) {
      const Index m = first + more, n = 1 + more % 8, d = first == 256 ? 48 : 16, width = 16 * (1 + (more + m) % 9);
      const Mat<S> q = suite::random_matrix<S>(random, n, d, -2, 2);
      Mat<S> k_buffer, v_buffer, out(n, width);
      const auto k = inside(m, d, d + more % 3 * 8, k_buffer), v = inside(m, width, width + more % 2 * 24, v_buffer);
      limpid::forward(softmax(), qkv(limpid::View<S>(q), k, v), out);
      const Wide wide_q = q.template cast<long double>(), wide_k = k.map().template cast<long double>();
      const Wide wide_v = v.map().template cast<long double>();
      const Wide scores = suite::scaled(1 / std::sqrt(static_cast<long double>(d)), suite::product_nt(wide_q, wide_k));
      INFO("n " << n << ", m " << m << ", width " << width);
      const Wide want = by_formula(scores, wide_v, [](Index, Index) { return S(0); });
      CHECK(suite::distance(out, want) <= 16 * std::numeric_limits<S>::epsilon());
    }
}

TEMPLATE_TEST_CASE("One entry that is not finite is seen wherever it stands", "", float, double) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  for (Index rows = 0; rows < 11; ++rows)
    for (const Index cols : {1, 7, 16, 33}) {
      Mat<S> buffer = Mat<S>::Constant(rows + 1, cols + 3, Limits::quiet_NaN());
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) buffer(i, j) = (i + j) % 2 == 0 ? Limits::max() : -Limits::denorm_min();
      const limpid::View<S> view(buffer.data(), rows, cols, buffer.cols());
      CHECK(limpid::detail::holds_finite(view));
      for (const S broken : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()})
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) {
            const S kept = buffer(i, j);
            buffer(i, j) = broken;
            INFO(rows << " x " << cols << ", " << broken << " at " << i << ", " << j);
            CHECK_FALSE(limpid::detail::holds_finite(view));
            buffer(i, j) = kept;
          }
    }
}

TEST_CASE("One query over many keys without columns, or values without, is no decode and gives what is left.") {
  const Index m = 400;
  for (const auto& [d, dv] : {std::pair<Index, Index>{64, 0}, {0, 64}}) {
    const limpid::Mat<float> q = limpid::Mat<float>::Ones(1, d), k = limpid::Mat<float>::Ones(m, d),
                             v = limpid::Mat<float>::Ones(m, dv);
    limpid::Mat<float> out(1, dv), lse;
    limpid::forward(limpid::softmax(), limpid::qkv(q, k, v), out, {.lse = &lse});
    CHECK(std::isfinite(lse(0, 0)));
    for (Index c = 0; c < dv; ++c) CHECK(std::abs(out(0, c) - 1) <= 1e-6f);
  }
}
