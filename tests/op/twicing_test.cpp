// limpid: tests of twicing attention.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/linear_algebra.hpp"
#include "support/products.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::causal, limpid::qkv, limpid::softmax, limpid::twicing;
using suite::distance;
using suite::product;
using M = Mat<double>;

struct Problem {
  M q, k, v;
  Problem(Index n, Index d, Index dv) {
    suite::Random random(static_cast<std::uint64_t>(100 * n + d));
    q = suite::random_matrix<double>(random, n, d, -2, 2), k = suite::random_matrix<double>(random, n, d, -2, 2);
    v = suite::random_matrix<double>(random, n, dv);
  }
};

bool same_bits(const M& a, const M& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), sizeof(double) * static_cast<std::size_t>(a.size())) == 0;
}
template <class Op>
M map_of(const Op& op, const Problem& p) {
  M out(p.q.rows(), p.v.cols()), map;
  limpid::forward(op, qkv(p.q, p.k, p.v), out, {.map = &map});
  return map;
}
M eye(Index n) { return M::Identity(n, n); }

/// The recurrence on a whole map: u_0 = A, u_t = u_{t-1} + alpha A (I - u_{t-1}).
M polynomial(const M& a, Index order, double alpha) {
  M u = a;
  for (Index t = 0; t < order; ++t) u += alpha * (a - product(a, u));
  return u;
}

}  // namespace

TEST_CASE("twicing of order 0, or with alpha 0, is plain attention") {
  const Problem p(37, 5, 3);
  const M plain = limpid::forward(softmax(causal()), qkv(p.q, p.k, p.v));
  CHECK(same_bits(limpid::forward(twicing(causal(), {.order = 0}), qkv(p.q, p.k, p.v)), plain));
  CHECK(same_bits(limpid::forward(twicing(causal(), {.order = 3, .alpha = 0}), qkv(p.q, p.k, p.v)), plain));
}

TEST_CASE("twicing applies 2A - A^2, in general I - (I - A)^(order + 1)") {
  const Problem p(35, 6, 4);
  const auto check = [&](const auto& map_operator) {
    const M a = map_of(map_operator, p);
    M power = eye(35) - a;
    for (Index order = 0; order <= 4; ++order, power -= product(power, a)) {
      const auto op = twicing(map_operator, {.order = order});
      CHECK(distance(limpid::forward(op, qkv(p.q, p.k, p.v)), product<double>(eye(35) - power, p.v)) < 1e-13);
      CHECK(distance(map_of(op, p), eye(35) - power) < 1e-13);
    }
    CHECK(distance(limpid::forward(twicing(map_operator), qkv(p.q, p.k, p.v)),
                   product<double>(2 * a - product(a, a), p.v)) < 1e-14);
    const auto damped = twicing(map_operator, {.order = 3, .alpha = 0.4});
    CHECK(distance(limpid::forward(damped, qkv(p.q, p.k, p.v)), product(polynomial(a, 3, 0.4), p.v)) < 1e-14);
  };
  check(softmax());
  check(softmax(causal(), {.scale = 0.9}));
  check(limpid::nlm(limpid::window(5, 2)));
}

TEST_CASE("twicing leaves constant values alone, and its rows sum to 1 while entries may be negative") {
  Problem p(33, 4, 2);
  p.v = M::Constant(33, 2, 0.7);
  for (Index order : {1, 2, 5})
    for (double alpha : {1.0, 0.3}) {
      const auto op = twicing(causal(), {.order = order, .alpha = alpha});
      CHECK(distance(limpid::forward(op, qkv(p.q, p.k, p.v)), p.v) < 1e-14);
      CHECK(distance(map_of(op, p).rowwise().sum(), M::Ones(33, 1)) < 1e-13);
    }
  const M e = map_of(twicing(), p);
  CHECK(e.minCoeff() < -1e-3);
  CHECK((e.cwiseAbs().rowwise().sum().array() <= 3).all());
}

TEST_CASE("an empty row gives zeros, and a row that attends to it sums to more than 1") {
  Problem p(9, 4, 3);
  Mat<bool> keep = Mat<bool>::Constant(9, 9, true);
  keep.row(4).setConstant(false);
  keep.row(7).setConstant(false);
  keep(7, 4) = true;  // row 7 sees only the empty row: 2 - 0
  const auto op = twicing(limpid::mask_matrix(keep));
  const M a = map_of(softmax(limpid::mask_matrix(keep)), p), e = map_of(op, p);
  const M out = limpid::forward(op, qkv(p.q, p.k, p.v));
  CHECK(out.row(4).isZero(0));
  CHECK(distance(out.row(7), 2 * p.v.row(4)) < 1e-15);
  for (Index i : {0, 3, 8}) CHECK(e.row(i).sum() == Approx(1 + a(i, 4)).epsilon(1e-13));
  CHECK(limpid::check_gradient(op, qkv(p.q, p.k, p.v)).worst() < 1e-8);
}

TEST_CASE("one token keeps its value and passes no gradient to q and k; a causal first token too") {
  Problem p(1, 4, 3);
  limpid::Saved<decltype(twicing()), double> saved;
  M out(1, 3), dq(1, 4), dk(1, 4), dv(1, 3);
  const M dout = M::Constant(1, 3, 1.5);
  limpid::forward(twicing(), qkv(p.q, p.k, p.v), out, {.saved = &saved});
  limpid::backward(twicing(), qkv(p.q, p.k, p.v), saved, dout, limpid::grads(dq, dk, dv));
  CHECK(distance(out, p.v) < 1e-15);
  CHECK(dq.isZero(1e-15));
  CHECK(dk.isZero(1e-15));
  CHECK(distance(dv, dout) < 1e-15);
  const Problem many(20, 4, 3);
  CHECK(distance(limpid::forward(twicing(causal()), qkv(many.q, many.k, many.v)).row(0), many.v.row(0)) < 1e-15);
}

TEST_CASE("a map that is the identity or the mean is its own twicing") {
  Problem p(12, 12, 3);
  p.q = p.k = 100 * eye(12);
  CHECK(distance(limpid::forward(twicing(), qkv(p.q, p.k, p.v)), p.v) < 1e-14);
  p.q.setZero();
  CHECK(distance(limpid::forward(twicing(), qkv(p.q, p.k, p.v)), p.v.colwise().mean().replicate(12, 1)) < 1e-14);
}

TEST_CASE("two tokens that attend only to each other are pushed apart: the eigenvalue -1 becomes -3") {
  const Problem p(2, 3, 4);
  const auto other = limpid::mask([](const limpid::At& a) { return a.q != a.k; });
  const M out = limpid::forward(twicing(other), qkv(p.q, p.k, p.v));
  CHECK(distance(out.row(0), 2 * p.v.row(1) - p.v.row(0)) < 1e-15);
  CHECK(distance(out.row(1), 2 * p.v.row(0) - p.v.row(1)) < 1e-15);
}

TEST_CASE("twicing sends every eigenvalue l of a distance map with k = q to 1 - (1 - l)^2, which is larger") {
  Problem p(24, 2, 1);
  p.k = p.q;
  const auto sorted = [](const M& map) {
    std::vector<double> real;
    for (const std::complex<double>& value : suite::eigenvalues(map)) {
      CHECK(std::abs(value.imag()) < 1e-7);
      real.push_back(value.real());
    }
    std::sort(real.begin(), real.end());
    return real;
  };
  const std::vector<double> plain = sorted(map_of(limpid::nlm(), p)),
                            twiced = sorted(map_of(twicing(limpid::nlm()), p));
  CHECK(plain.front() > -1e-12);
  CHECK(plain.back() == Approx(1).epsilon(1e-12));
  for (std::size_t i = 0; i < 24; ++i) {
    CHECK(twiced[i] == Approx(1 - (1 - plain[i]) * (1 - plain[i])).margin(1e-9));
    CHECK(twiced[i] >= plain[i] - 1e-12);
  }
}

TEST_CASE(
    "repeated n times, eigenvalues keep 1 / (n + 1) of [0, 1] with plain attention, (2n)!! / (2n+1)!! with twicing") {
  // Items of two tokens whose map has the eigenvalues 1 and l; v = (1, -1) belongs to l.
  const Index items = 400, times = 30;
  M q(2 * items, 2), k(2 * items, 2), plain(2 * items, 1);
  for (Index b = 0; b < items; ++b) {
    const double l = (static_cast<double>(b) + 0.5) / static_cast<double>(items);
    q.middleRows(2 * b, 2) = std::log((1 + l) / (1 - l)) * eye(2);
    k.middleRows(2 * b, 2) = eye(2);
    plain(2 * b, 0) = 1, plain(2 * b + 1, 0) = -1;
  }
  M twiced = plain, next = plain;
  double exact = 1;
  for (Index t = 1; t <= times; ++t) {
    limpid::forward(softmax({.scale = 1}), qkv(q, k, plain), next, {.batch = items});
    plain.swap(next);
    limpid::forward(twicing(softmax({.scale = 1})), qkv(q, k, twiced), next, {.batch = items});
    twiced.swap(next);
    exact *= 2.0 * static_cast<double>(t) / static_cast<double>(2 * t + 1);
  }
  const auto capacity = [&](const M& v) {
    double sum = 0;
    for (Index b = 0; b < items; ++b) sum += v(2 * b, 0) / static_cast<double>(items);
    return sum;
  };
  CHECK(capacity(plain) == Approx(1.0 / (times + 1)).epsilon(2e-3));
  CHECK(capacity(twiced) == Approx(exact).epsilon(2e-3));
  CHECK(exact == Approx(std::sqrt(std::acos(-1.0)) / (2 * std::sqrt(times))).epsilon(0.02));
}

TEST_CASE("causal twicing does not see what comes later") {
  const Problem p(70, 8, 5);
  for (Index order : {1, 3}) {
    const auto op = twicing(causal(), {.order = order});
    const M before = limpid::forward(op, qkv(p.q, p.k, p.v));
    for (double changed : {17.0, std::numeric_limits<double>::quiet_NaN()}) {
      Problem other = p;
      for (M* x : {&other.q, &other.k, &other.v}) x->bottomRows(1).setConstant(changed);
      const M after = limpid::forward(op, qkv(other.q, other.k, other.v));
      CHECK(same_bits(before.topRows(69), after.topRows(69)));
      CHECK_FALSE(same_bits(before.bottomRows(1), after.bottomRows(1)));
    }
  }
}

TEST_CASE("twicing refuses keys of another number than queries, a negative order, and what another order has saved") {
  const Problem p(5, 4, 3), other(7, 4, 3);
  const std::string sentence =
      "twicing: q has n = 5 tokens an item and k has m = 7, wanted the same: the map is applied to its own output";
  CHECK_THROWS_WITH(limpid::forward(twicing(), qkv(p.q, other.k, other.v)), sentence);
  CHECK_THROWS_WITH(limpid::forward(twicing(limpid::nlm()), qkv(p.q, other.k, other.v)), sentence);
  CHECK_THROWS_AS(limpid::forward(twicing({.order = 0}), qkv(p.q, other.k, other.v)), limpid::ShapeError);
  CHECK_THROWS_WITH(limpid::forward(twicing({.order = -1}), qkv(p.q, p.k, p.v)),
                    "twicing: order is -1, wanted 0 or more");
  limpid::Saved<decltype(twicing()), double> saved;
  M out(5, 3), dq(5, 4), dk(5, 4), dv(5, 3);
  limpid::forward(twicing(), qkv(p.q, p.k, p.v), out, {.saved = &saved});
  CHECK_THROWS_WITH(limpid::backward(twicing({.order = 2}), qkv(p.q, p.k, p.v), saved, out, limpid::grads(dq, dk, dv)),
                    "twicing: saved holds 5 x 6 numbers, wanted 5 x 9; it comes from other parameters or other widths");
}

TEST_CASE("gradients of twicing are right, whatever the map, the order and alpha") {
  const Problem p(7, 4, 3);
  M slopes = M::Constant(1, 1, 0.3), dslopes = M::Zero(1, 1);
  const auto in = qkv(p.q, p.k, p.v);
  CHECK(limpid::check_gradient(twicing(), in).worst() < 1e-8);
  CHECK(limpid::check_gradient(twicing({.order = 0}), in).worst() < 1e-8);
  CHECK(limpid::check_gradient(twicing(causal(), {.order = 3, .alpha = 0.6}), in).worst() < 1e-8);
  CHECK(limpid::check_gradient(limpid::rope(twicing(causal(), {.order = 2})), in).worst() < 1e-8);
  const M h = M::Constant(1, 1, 1.1), places = M::Random(7, 2);
  const auto nlm = twicing(limpid::nlm(causal()), {.order = 2});
  CHECK(limpid::check_gradient(nlm, {.q = p.q, .k = p.k, .v = p.v, .h = h, .pq = places, .pk = places}).worst() < 1e-8);
  const auto bilateral = twicing(limpid::bilateral_classic());
  CHECK(limpid::check_gradient(bilateral, {.q = p.q, .k = p.k, .v = p.v, .pq = places, .pk = places}).worst() < 1e-8);

  // and what a modifier learns
  const auto biased = twicing(limpid::chain(causal(), limpid::alibi(slopes, dslopes)), {.order = 2});
  CHECK(limpid::check_gradient(biased, in).worst() < 1e-8);
  dslopes.setZero();
  M out(7, 3), dq = p.q, dk = p.k, dv = p.v;
  const M ones = M::Ones(7, 3);
  limpid::Saved<std::remove_const_t<decltype(biased)>, double> saved;
  limpid::forward(biased, in, out, {.saved = &saved});
  limpid::backward(biased, in, saved, ones, limpid::grads(dq, dk, dv));
  const M wanted = limpid::numeric_gradient(slopes, [&] { return limpid::forward(biased, in).sum(); });
  CHECK(dslopes(0, 0) == Approx(wanted(0, 0)).epsilon(1e-8));
}

TEST_CASE("the effective map is the same in whole, in blocks, in rows and columns, and at work") {
  const Problem p(150, 8, 3);
  const auto op = twicing(causal(), {.order = 2, .alpha = 0.8});
  const M e = map_of(op, p);
  limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
  M out(150, 3);
  limpid::forward(op, qkv(p.q, p.k, p.v), out, {.saved = &saved});
  CHECK(distance(product(e, p.v), out) < 1e-14);
  const auto block = [&](Index q0, Index k0, Index rows, Index cols) {
    M b(rows, cols);
    limpid::map_block(op, qkv(p.q, p.k, p.v), saved, q0, k0, b);
    return distance(b, e.block(q0, k0, rows, cols));
  };
  CHECK(block(3, 0, 1, 150) < 1e-14);
  CHECK(block(0, 149, 150, 1) < 1e-14);
  CHECK(block(20, 10, 100, 30) < 1e-14);
  CHECK(block(60, 5, 70, 140) < 1e-14);
  M left(2, 150), right(150, 3);
  const M x = M::Random(2, 150), y = M::Random(150, 3);
  limpid::map_left(op, qkv(p.q, p.k, p.v), saved, x, left);
  limpid::map_right(op, qkv(p.q, p.k, p.v), saved, y, right);
  CHECK(distance(left, product(x, e)) < 1e-13);
  CHECK(distance(right, product(e, y)) < 1e-13);
}
