// limpid: MSSA's threshold by its formula: A_ij = tau where the softmax weight is above tau, else 0; ties are dropped,
// what is dropped passes nothing, and a gradient that is nothing but zeros is written all the same.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <functional>
#include <limpid/explain/map.hpp>
#include <limpid/op/mssa.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

using limpid::At;
using limpid::Index;
using limpid::Mat;
using Real = long double;

namespace {

struct Case {
  Index n, m, heads, batch;
  double tau, scale;  // m > n: with a cache
  std::function<bool(const At&)> keep;
  bool accumulate;
};

template <class S>
Real worst(const Mat<S>& a, const Mat<Real>& b) {
  Real most = 0;
  for (Index i = 0; i < b.size(); ++i) most = std::max(most, std::abs(Real(a.data()[i]) - b.data()[i]));
  return a.rows() == b.rows() && a.cols() == b.cols() ? most : Real(1e9);
}

template <class S>
void holds(const Case& c, std::uint64_t seed = 1) {
  const Index p = 3, n = c.n, m = c.m, width = c.heads * p;
  INFO("n " << n << ", m " << m << ", heads " << c.heads << ", batch " << c.batch << ", tau " << c.tau << ", scale "
            << c.scale << (c.accumulate ? ", added" : ""));
  suite::Random random(seed);
  const bool cached = m > n;
  const Mat<S> all = suite::random_matrix<S>(random, c.batch * m, width, -2, 2);
  Mat<S> y(c.batch * n, width);
  for (Index b = 0; b < c.batch; ++b) y.middleRows(b * n, n) = all.middleRows(b * m + m - n, n);
  const Mat<S> dout = suite::random_matrix<S>(random, c.batch * n, width);

  // by the formula
  const Real before = 0.5, start = c.accumulate ? before : Real(0);
  Mat<Real> out = Mat<Real>::Zero(c.batch * n, width), dall = Mat<Real>::Constant(c.batch * m, width, start),
            relevance = Mat<Real>::Zero(c.batch, m);
  std::vector<Mat<Real>> maps;
  for (Index b = 0; b < c.batch; ++b)
    for (Index h = 0; h < c.heads; ++h) {
      Mat<Real> map = Mat<Real>::Zero(n, m);
      for (Index i = 0; i < n; ++i) {
        std::vector<Real> s(static_cast<std::size_t>(m), 0);
        Real sum = 0;
        for (Index j = 0; j < m; ++j) {
          if (!c.keep(At{b, h, i, j, n, m})) continue;
          Real dot = 0;
          for (Index k = 0; k < p; ++k) dot += Real(y(b * n + i, h * p + k)) * Real(all(b * m + j, h * p + k));
          sum += s[static_cast<std::size_t>(j)] = std::exp(dot * Real(c.scale));
        }
        for (Index j = 0; j < m; ++j) {
          const Real w = sum == 0 ? Real(0) : s[static_cast<std::size_t>(j)] / sum;
          if (!(w > Real(S(c.tau)) * (1 + Real(1e-9)))) continue;  // equal weights are equal to the last bits only
          map(i, j) = Real(S(c.tau));
          Real da = 0;
          for (Index k = 0; k < p; ++k) {
            out(b * n + i, h * p + k) += map(i, j) * Real(all(b * m + j, h * p + k));
            dall(b * m + j, h * p + k) += map(i, j) * Real(dout(b * n + i, h * p + k));
            da += Real(dout(b * n + i, h * p + k)) * Real(all(b * m + j, h * p + k));
          }
          relevance(b, j) += std::abs(map(i, j) * da) / Real(c.heads);
        }
      }
      maps.push_back(map);
    }

  const auto op = limpid::mssa(limpid::mask(c.keep), {.scale = c.scale, .phi = limpid::Phi::threshold, .tau = c.tau});
  using Op = std::remove_const_t<decltype(op)>;
  limpid::Saved<Op, S> saved;
  limpid::Inputs<Op, S> in;
  in.y = y;
  if (cached) in.cache = all;
  Mat<S> found = Mat<S>::Constant(c.batch * n, width, S(7));
  limpid::forward(op, in, found, {.batch = c.batch, .heads = c.heads, .saved = &saved});
  const Real units = 64 * Real(std::numeric_limits<S>::epsilon());
  CHECK(worst(found, out) <= units);

  Mat<S> dy = Mat<S>::Constant(c.batch * n, width, S(before)), dcache = Mat<S>::Constant(c.batch * m, width, S(before)),
         emitted = Mat<S>::Constant(c.batch, m, S(before));
  const Mat<S> weights = Mat<S>::Ones(c.batch, n);
  limpid::Grads<Op, S> grad;
  grad.y = dy;
  if (cached) grad.cache = dcache;
  limpid::BackwardCall<S> call;
  call.accumulate = c.accumulate, call.relevance_weights = weights, call.relevance = emitted,
  call.part = limpid::Part::abs;
  limpid::backward(op, in, saved, dout, grad, call);
  CHECK(worst(cached ? dcache : dy, dall) <= units * Real(n));
  if (cached) CHECK(worst(dy, Mat<Real>(Mat<Real>::Constant(c.batch * n, width, start))) == 0);
  CHECK(worst(emitted, relevance) <= units * Real(n));

  for (Index b = 0; b < c.batch; ++b)
    for (Index h = 0; h < c.heads; ++h) {
      const Mat<Real>& map = maps[static_cast<std::size_t>(b * c.heads + h)];
      limpid::HeadCall of;
      of.head = h, of.item = b;
      const Mat<S> x = suite::random_matrix<S>(random, 2, n), z = suite::random_matrix<S>(random, m, 2);
      Mat<S> left(2, m), right(n, 2);
      limpid::map_left(op, in, saved, x, left, of);
      limpid::map_right(op, in, saved, z, right, of);
      Mat<Real> to_left = Mat<Real>::Zero(2, m), to_right = Mat<Real>::Zero(n, 2);
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < m; ++j)
          for (Index k = 0; k < 2; ++k) {
            to_left(k, j) += Real(x(k, i)) * map(i, j);
            to_right(i, k) += map(i, j) * Real(z(j, k));
          }
      CHECK(worst(left, to_left) <= units * Real(n));
      CHECK(worst(right, to_right) <= units);
      // blocks cut every way
      bool same = true;
      for (Index q0 = 0; q0 < n; q0 += 2)
        for (Index k0 = 0; k0 < m; k0 += 3)
          for (Index rows = 1; rows <= std::min<Index>(2, n - q0); ++rows)
            for (Index cols = 1; cols <= std::min<Index>(3, m - k0); ++cols) {
              Mat<S> block = Mat<S>::Constant(rows, cols, S(7));
              limpid::map_block(op, in, saved, q0, k0, block, of);
              same = same && worst(block, Mat<Real>(map.block(q0, k0, rows, cols))) == 0;
            }
      CHECK(same);
    }
}

const auto everything = [](const At&) { return true; };

}  // namespace

TEMPLATE_TEST_CASE("The threshold is its formula, with and without a cache, above one half and below.", "", float,
                   double) {
  const auto mask = [](const At& a) { return a.q % 5 != 2 && (a.q * 3 + a.k * 7 + a.head + a.batch) % 4 != 1; };
  const auto causal = [](const At& a) { return a.k <= a.position(); };
  for (const double tau : {0.02, 0.15, 0.3, 0.45, 0.5, 0.6, 0.9, 1.0})
    for (const bool accumulate : {false, true}) {
      holds<TestType>({7, 7, 2, 2, tau, 0.7, everything, accumulate});
      holds<TestType>({4, 9, 3, 2, tau, 0.7, mask, accumulate});
      holds<TestType>({5, 5, 1, 1, tau, 1.5, causal, accumulate});
      holds<TestType>({1, 6, 2, 1, tau, 3, everything, accumulate});
    }
}

TEMPLATE_TEST_CASE("A weight that is equal to the threshold does not pass; if none does, gradients are zeros.", "",
                   float, double) {
  using S = TestType;
  for (Index keys = 1; keys <= 9; ++keys) {
    const double tau = static_cast<double>(S(1) / S(double(keys)));
    const auto first = [keys](const At& a) { return a.k < keys; };
    for (const bool accumulate : {false, true}) {
      holds<S>({keys, keys, 2, 1, tau, 0, everything, accumulate});
      holds<S>({3, keys + 4, 1, 2, tau, 0, first, accumulate});
      holds<S>({3, keys + 4, 1, 2, 0.99 * tau, 0, first, accumulate});
    }
  }
  holds<S>({4, 4, 1, 1, 0.25, 0, everything, false});
}

TEMPLATE_TEST_CASE("A threshold under amounts a key: the softmax's log-sum-exp, and tau where its weights are larger.",
                   "", float, double) {
  using S = TestType;
  suite::Random random(9);
  const Mat<S> y = suite::random_matrix<S>(random, 150, 3, -2, 2), slopes = Mat<S>::Constant(1, 1, S(0.25));
  const auto mods = limpid::chain(limpid::alibi(slopes), limpid::causal());
  Mat<S> out(150, 3), soft_map, soft_lse, map, lse;
  const auto soft = limpid::mssa(mods, {.scale = 0.7});
  limpid::forward(soft, {.y = y}, out, {.lse = &soft_lse, .map = &soft_map});
  for (const double tau : {0.1, 0.3, 0.6}) {
    const auto op = limpid::mssa(mods, {.scale = 0.7, .phi = limpid::Phi::threshold, .tau = tau});
    limpid::forward(op, {.y = y}, out, {.lse = &lse, .map = &map});
    bool same = true, cut = true;
    for (Index i = 0; i < 150; ++i) {
      same &= std::abs(lse(0, i) - soft_lse(0, i)) <= 256 * std::numeric_limits<S>::epsilon();
      for (Index j = 0; j < 150; ++j)
        if (std::abs(soft_map(i, j) - S(tau)) > S(1e-4)) cut &= map(i, j) == (soft_map(i, j) > S(tau) ? S(tau) : S(0));
    }
    INFO("tau " << tau);
    CHECK(same);
    CHECK(cut);
  }
}

TEST_CASE("A threshold over many blocks of queries and keys.") {
  holds<double>({140, 140, 1, 1, 0.02, 0.4, everything, false});
  holds<double>({30, 300, 1, 1, 0.7, 4, [](const At& a) { return a.k % 7 != 3; }, false});
}

TEMPLATE_TEST_CASE("The peaks of rows: the maximum, one over the sum, a key that has it; -1 for a row without keys.",
                   "", float, double) {
  using S = TestType;
  suite::Random random(5);
  const Index n = 70, m = 300, d = 3;
  Mat<S> q = suite::random_matrix<S>(random, n, d, -2, 2), k = suite::random_matrix<S>(random, m, d, -2, 2);
  for (Index j = 140; j < m; ++j) k.row(j) = k.row(j - 140);  // every maximum is there twice, in another block
  k.row(7).setConstant(std::numeric_limits<S>::quiet_NaN());  // a key that only query 3 keeps
  const auto keep = [](const At& a) { return a.q % 9 != 4 && (a.q + a.k) % 3 != 0 && (a.k != 7 || a.q == 3); };
  const auto mods = limpid::chain(limpid::mask(keep));
  using Mods = std::remove_const_t<decltype(mods)>;
  const limpid::detail::Scores<S, Mods> scores{q, k, S(0.5), nullptr, &mods, At{}};
  std::vector<S> top(n), inverse(n), weight(n);
  std::vector<Index> key(n);
  limpid::Arena arena;
  limpid::detail::row_peaks<limpid::detail::Native<S>>(limpid::detail::Context(arena), scores,
                                                       limpid::detail::Lse<S>(top.data(), inverse.data()),
                                                       weight.data(), key.data());
  for (Index i = 0; i < n; ++i) {
    INFO("row " << i);
    const auto at = static_cast<std::size_t>(i);
    Real most = -HUGE_VALL, sum = 0;
    const auto score = [&](Index j) {
      Real dot = 0;
      for (Index c = 0; c < d; ++c) dot += Real(q(i, c)) * Real(k(j, c)) / 2;
      return dot;
    };
    for (Index j = 0; j < m; ++j)
      if (keep(At{0, 0, i, j, n, m})) most = std::max(most, score(j));
    for (Index j = 0; j < m; ++j)
      if (keep(At{0, 0, i, j, n, m})) sum += std::exp(score(j) - most);
    if (i == 3) {
      CHECK(std::isnan(inverse[at]));
    } else if (sum == 0) {
      CHECK(key[at] == -1);
      CHECK(weight[at] == 0);
      CHECK(inverse[at] == 0);
      CHECK(top[at] == std::numeric_limits<S>::infinity());
    } else {
      const Real units = 64 * Real(std::numeric_limits<S>::epsilon());
      CHECK(std::abs(Real(weight[at]) - 1 / sum) <= units);
      CHECK(inverse[at] == weight[at]);
      CHECK(std::abs(Real(top[at]) - most) <= units * 8);
      REQUIRE(key[at] >= 0);
      CHECK(keep(At{0, 0, i, key[at], n, m}));
      CHECK(std::abs(score(key[at]) - most) <= units * 8);
    }
  }
}
