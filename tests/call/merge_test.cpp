// limpid: two partial results over different keys, merged, beside one call over all keys.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/call/merge.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/softmax.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::qkv, limpid::View;
using suite::distance, suite::error_of;

template <class S>
struct Part {
  Mat<S> out, lse;
};
constexpr Index batch = 2, heads = 3, kv_heads = 1, n = 5, d = 6, dv = 7;

/// The result over keys [begin, end) of every item of m keys.
template <class S, class Op>
Part<S> over(const Op& op, const Mat<S>& q, const Mat<S>& k, const Mat<S>& v, Index begin, Index end) {
  const Index m = k.rows() / batch, some = end - begin;
  Mat<S> own_k(batch * some, k.cols()), own_v(batch * some, v.cols());
  for (Index b = 0; b < batch; ++b) {
    own_k.middleRows(b * some, some) = k.middleRows(b * m + begin, some);
    own_v.middleRows(b * some, some) = v.middleRows(b * m + begin, some);
  }
  Part<S> p{Mat<S>(q.rows(), heads * dv), {}};
  limpid::forward(op, qkv(q, own_k, own_v), p.out,
                  {.batch = batch, .heads = heads, .kv_heads = kv_heads, .lse = &p.lse});
  return p;
}

template <class S>
bool same_bits(const Mat<S>& a, const Mat<S>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() && (a.array() == b.array()).all();
}

}  // namespace

TEMPLATE_TEST_CASE("Merged parts are one call over all keys, a sink counted in one of them", "", float, double) {
  using S = TestType;
  constexpr double eps = std::numeric_limits<S>::epsilon();
  suite::Random random(3);
  for (const double size : {1., 30., 3000.}) {  // of scores
    const Index m = 40;
    const Mat<S> q = suite::random_matrix<S>(random, batch * n, heads * d, -size, size);
    const Mat<S> k = suite::random_matrix<S>(random, batch * m, d), v = suite::random_matrix<S>(random, batch * m, dv);
    Mat<S> logits(1, heads);
    logits << S(-1), S(2), S(size);
    const auto check = [&](const auto& first, const auto& others) {
      const Part<S> all = over(first, q, k, v, 0, m);
      const double most = 1 + static_cast<double>(all.lse.cwiseAbs().maxCoeff());
      for (const Index cut : {0, 1, 17, 39, 40}) {
        INFO("scores of " << size << ", cut at " << cut);
        Part<S> p = over(first, q, k, v, 0, cut);
        const Part<S> rest = over(others, q, k, v, cut, m);
        limpid::merge(p.out, p.lse, rest.out, rest.lse);
        CHECK(distance(p.out, all.out) <= 2 * eps * most);
        CHECK(distance(p.lse, all.lse) <= 2 * eps * most);
      }
      Part<S> p = over(first, q, k, v, 0, 9);  // three parts, the middle one last
      const Part<S> last = over(others, q, k, v, 20, m), middle = over(others, q, k, v, 9, 20);
      limpid::merge(p.out, p.lse, last.out, last.lse);
      limpid::merge(p.out, p.lse, middle.out, middle.lse);
      CHECK(distance(p.out, all.out) <= 2 * eps * most);
      CHECK(distance(p.lse, all.lse) <= 2 * eps * most);
    };
    check(limpid::softmax(), limpid::softmax());
    check(limpid::softmax(limpid::sink(logits)), limpid::softmax());
    if (size < 100) check(limpid::nlm(), limpid::nlm());
  }
}

TEMPLATE_TEST_CASE("Parts without keys, and log-sum-exps that are no numbers", "", float, double) {
  using S = TestType;
  constexpr S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  const auto merged = [](S a, S x, S b, S y) {
    Mat<S> out = Mat<S>::Constant(1, 2, x), lse = Mat<S>::Constant(1, 1, a);
    const Mat<S> more = Mat<S>::Constant(1, 2, y), more_lse = Mat<S>::Constant(1, 1, b);
    limpid::merge(out, lse, more, more_lse);
    CHECK((out(0, 0) == out(0, 1) || std::isnan(out(0, 1))));
    return std::pair<S, S>(out(0, 0), lse(0, 0));
  };
  using Pair = std::pair<S, S>;
  CHECK(merged(S(0.3), S(0.7), -inf, nan) == Pair(S(0.7), S(0.3)));  // to the last bit, what is empty not looked at
  CHECK(merged(-inf, nan, S(0.3), S(0.7)) == Pair(S(0.7), S(0.3)));
  CHECK(merged(-inf, S(5), -inf, nan) == Pair(S(0), -inf));
  CHECK(merged(inf, S(0), S(3), S(9)) == Pair(S(0), inf));  // a sink of plus infinity
  CHECK(merged(S(3), S(9), inf, S(0)) == Pair(S(0), inf));
  CHECK(merged(inf, S(2), -inf, S(9)) == Pair(S(2), inf));
  CHECK(merged(S(5000), S(2), S(-5000), inf) == Pair(S(2), S(5000)));  // what weighs nothing is not looked at
  CHECK(merged(S(-5000), inf, S(5000), S(2)) == Pair(S(2), S(5000)));
  for (const auto& [a, b] : {Pair(inf, inf), Pair(nan, S(1)), Pair(S(1), nan), Pair(nan, -inf), Pair(-inf, nan)}) {
    INFO(a << " and " << b);
    const Pair p =
        merged(a, a == -inf ? S(0) : (b == -inf ? nan : S(1)), b, b == -inf ? S(0) : (a == -inf ? nan : S(1)));
    CHECK(std::isnan(p.first));
    CHECK(std::isnan(p.second));
  }
  CHECK(merged(std::numeric_limits<S>::max(), S(1), std::numeric_limits<S>::max(), S(3)) ==
        Pair(S(2), std::numeric_limits<S>::max()));
  CHECK(merged(std::numeric_limits<S>::lowest(), S(1), std::numeric_limits<S>::lowest(), S(3)) ==
        Pair(S(2), std::numeric_limits<S>::lowest()));
  Mat<S> none(0, 4), none_lse(2, 0);
  limpid::merge(none, none_lse, View<S>(none), View<S>(none_lse));
}

TEST_CASE("Parts that do not fit are refused before anything is written") {
  using M = Mat<double>;
  M out = M::Constant(10, 6, 7), lse = M::Constant(4, 5, 7), more = M::Ones(10, 6), more_lse = M::Zero(4, 5);
  const M before = out, lse_before = lse;
  const auto refused = [&](const std::string& text, auto&& a, auto&& b, auto&& c, auto&& e) {
    CHECK(error_of([&] { limpid::merge(a, b, c, e); }) == "merge: " + text);
    CHECK(same_bits(out, before));
    CHECK(same_bits(lse, lse_before));
  };
  M short_more(9, 6), narrow(10, 5), other_lse(5, 4);
  refused("more_out is 9 x 6, wanted 10 x 6 as the first one", out, lse, short_more, more_lse);
  refused("more_out is 10 x 5, wanted 10 x 6 as the first one", out, lse, narrow, more_lse);
  refused("more_lse is 5 x 4, wanted 4 x 5 as the first one", out, lse, more, other_lse);
  const std::string wanted = ", wanted (B n) x (H dv) and (B H) x n";
  for (const auto& [rows, n_] : {std::pair<Index, Index>(4, 3), {3, 5}, {0, 5}, {4, 0}}) {
    M a = M::Zero(rows, n_), b = a;
    refused("out is 10 x 6 and lse " + std::to_string(rows) + " x " + std::to_string(n_) + wanted, out, a, more, b);
  }
  M wide = M::Zero(10, 5), wide_more = wide;  // 2 heads of 5 columns
  refused("out is 10 x 5 and lse 4 x 5" + wanted, wide, lse, wide_more, more_lse);
  const std::string own = ", wanted memory of its own";
  refused("out shares memory with more_out" + own, out, lse, out, more_lse);
  refused("lse shares memory with more_lse" + own, out, lse, more, lse);
  auto corner = View<double>(out.data(), 4, 5, 6);
  refused("out shares memory with more_lse" + own, out, lse, more, corner);
}
