// limpid: tests of boosting residuals round a fixed map.
// SPDX-License-Identifier: MIT
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

using limpid::Index, limpid::Mat, limpid::View, limpid::boosting, limpid::causal, limpid::qkv, limpid::softmax;
using Scheme = limpid::BoostingScheme;
using suite::distance;
using suite::product;
using M = Mat<double>;
constexpr Scheme schemes[] = {Scheme::diffusion, Scheme::l2boost, Scheme::sos};

struct Problem {
  M q, k, v;
  Problem(Index n, Index d, Index dv) {
    suite::Random random(static_cast<std::uint64_t>(100 * n + d));
    q = suite::random_matrix<double>(random, n, d, -2, 2), k = suite::random_matrix<double>(random, n, d, -2, 2);
    v = suite::random_matrix<double>(random, n, dv);
  }
};

M number(double x) { return M::Constant(1, 1, x); }
M eye(Index n) { return M::Identity(n, n); }
bool same_bits(const M& a, const M& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), sizeof(double) * static_cast<std::size_t>(a.size())) == 0;
}
/// rho belongs to sos alone.
template <class Op>
limpid::Inputs<Op, double> inputs(const Op& op, const Problem& p, const M& tau, const M& rho) {
  return {qkv(p.q, p.k, p.v), tau, op.options.scheme == Scheme::sos ? View<double>(rho) : View<double>()};
}
template <class Op>
M boosted(const Op& op, const Problem& p, double tau, double rho = 1) {
  const M t = number(tau), r = number(rho);
  return limpid::forward(op, inputs(op, p, t, r));
}
M softmax_map(const Problem& p) {
  M out(p.q.rows(), p.v.cols()), map;
  limpid::forward(softmax(), qkv(p.q, p.k, p.v), out, {.map = &map});
  return map;
}
M power(const M& a, Index times) {
  M all = eye(a.rows());
  for (Index t = 0; t < times; ++t) all = product(all, a);
  return all;
}

}  // namespace

TEST_CASE("special cases of boosting are the operators one knows") {
  const Problem p(34, 5, 3);
  const auto in = qkv(p.q, p.k, p.v);
  const M plain = limpid::forward(softmax(), in), a = softmax_map(p);
  CHECK(same_bits(limpid::forward(boosting({.steps = 0}), in), plain));
  CHECK(distance(limpid::forward(boosting({.steps = 0, .skip = true}), in), p.v + plain) < 1e-15);
  CHECK(same_bits(limpid::forward(boosting({.steps = 3}), in), limpid::forward(limpid::twicing({.order = 3}), in)));
  CHECK(same_bits(limpid::forward(boosting({.scheme = Scheme::diffusion, .steps = 0}), in), p.v));
  CHECK(same_bits(limpid::forward(boosting({.scheme = Scheme::diffusion, .steps = 1}), in), plain));
  CHECK(distance(boosted(boosting({.scheme = Scheme::sos, .steps = 4}), p, 1, 0), plain) < 1e-15);
  CHECK(distance(limpid::forward(boosting({.scheme = Scheme::sos, .steps = 1}), in), product(product(a, a), p.v)) <
        1e-15);
}

TEST_CASE("every scheme is its polynomial of the map") {
  const Problem p(21, 5, 3);
  const M a = softmax_map(p), one = eye(21);
  for (Index t = 0; t <= 4; ++t) {
    CHECK(distance(boosted(boosting({.scheme = Scheme::diffusion, .steps = t}), p, 0.3),
                   product(power(0.7 * one + 0.3 * a, t), p.v)) < 1e-14);
    CHECK(distance(boosted(boosting({.steps = t}), p, 1), product<double>(one - power(one - a, t + 1), p.v)) < 1e-14);
    // l2boost turns an eigenvalue l into 1 - (1 - l)(1 - tau l)^t
    CHECK(distance(boosted(boosting({.steps = t}), p, 0.6),
                   product<double>(one - product<double>(one - a, power(one - 0.6 * a, t)), p.v)) < 1e-14);
    M u = product(a, p.v);
    for (Index s = 0; s < t; ++s) u = 0.8 * product<double>(a, p.v + 0.5 * u) - (0.8 * 0.5 + 0.8 - 1) * u;
    CHECK(distance(boosted(boosting({.scheme = Scheme::sos, .steps = t}), p, 0.8, 0.5), u) < 1e-14);
  }
}

TEST_CASE("Bregman iteration is l2boost with tau = 1") {
  const Problem p(18, 4, 3);
  const M a = softmax_map(p);
  M returned = M::Zero(18, 3), u = product(a, p.v);  // sum of V - u_i
  for (Index t = 1; t <= 4; ++t) {
    returned += p.v - u;
    u = product<double>(a, p.v + returned);
    CHECK(distance(boosted(boosting({.steps = t}), p, 1), u) < 1e-13);
  }
}

TEST_CASE("sos settles at ((1 + rho) I - rho A)^-1 A V, whatever tau") {
  const Problem p(16, 4, 2);
  const M a = softmax_map(p);
  for (double rho : {0.7, -0.4}) {
    const M limit = suite::solve((1 + rho) * eye(16) - rho * a, product(a, p.v));
    for (double tau : {0.3, 0.6})
      CHECK(distance(boosted(boosting({.scheme = Scheme::sos, .steps = 400}), p, tau, rho), limit) < 1e-13);
  }
}

TEST_CASE("constant values stay, twice with skip, and a single token stays and passes no gradient but to its value") {
  Problem p(20, 4, 2), one(1, 4, 2);
  p.v = M::Constant(20, 2, -0.6);
  const M tau = number(0.8), rho = number(0.5), dout = M::Constant(1, 2, 1.5);
  for (Scheme scheme : schemes)
    for (bool skip : {false, true}) {
      const auto op = boosting({.scheme = scheme, .steps = 3, .skip = skip});
      const double factor = skip ? 2 : 1;
      CHECK(distance(boosted(op, p, 0.8, 0.5), factor * p.v) < 1e-14);
      CHECK(distance(boosted(op, one, 0.8, 0.5), factor * one.v) < 1e-15);
      limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
      M out(1, 2), dq(1, 4), dk(1, 4), dv(1, 2), dtau(1, 1), drho(1, 1);
      limpid::forward(op, inputs(op, one, tau, rho), out, {.saved = &saved});
      limpid::MutView<double> to_rho;
      if (scheme == Scheme::sos)
        to_rho = drho;
      else
        drho.setZero();
      limpid::backward(op, inputs(op, one, tau, rho), saved, dout, {limpid::grads(dq, dk, dv), dtau, to_rho});
      for (const M* g : {&dq, &dk, &dtau, &drho}) CHECK(g->isZero(1e-15));
      CHECK(distance(dv, factor * dout) < 1e-14);
    }
}

TEST_CASE(
    "skip raises the ratio of signal to noise by (1 + a) / (1 + b) where the filter keeps a of one and b of the "
    "other") {
  // Two tokens, a map with eigenvalues 1 for (1, 1), the signal, and b for (1, -1), the noise.
  const double b = 0.4, noise = 0.3;
  Problem p(2, 2, 1);
  p.q = std::log((1 + b) / (1 - b)) * eye(2), p.k = eye(2);
  p.v << 1 + noise, 1 - noise;
  const M out = limpid::forward(boosting(softmax({.scale = 1}), {.steps = 0, .skip = true}), qkv(p.q, p.k, p.v));
  const double signal = (out(0, 0) + out(1, 0)) / 2, rest = (out(0, 0) - out(1, 0)) / 2;
  CHECK(signal / rest == Approx((1 + 1) / (1 + b) / noise));
}

TEST_CASE("gradients of boosting are right, of tau and rho too, and where tau is 0") {
  const Problem p(7, 4, 3);
  const M slopes = M::Constant(1, 1, 0.2);
  for (Scheme scheme : schemes)
    for (Index steps : {0, 1, 3})
      for (double tau : {0.7, 0.0}) {
        const auto op = boosting(causal(), {.scheme = scheme, .steps = steps, .skip = steps == 1});
        const M t = number(tau), r = number(0.6);
        const auto check = limpid::check_gradient(op, inputs(op, p, t, r));
        INFO(check.text());
        CHECK(check.worst() < 1e-8);
      }
  const auto nlm = boosting(limpid::nlm(), {.scheme = Scheme::sos, .steps = 2});
  const M h = number(1.2), t = number(0.8), r = number(-0.3);
  CHECK(limpid::check_gradient(nlm, {{.q = p.q, .k = p.k, .v = p.v, .h = h}, t, r}).worst() < 1e-8);
  M all = p.v, some = p.v;  // q, k and v alone are enough for any map
  limpid::forward(nlm, {{.q = p.q, .k = p.k, .v = p.v}, {}, {}}, all);
  limpid::forward(nlm, limpid::qkv(p.q, p.k, p.v), some);
  CHECK(same_bits(all, some));
}

TEST_CASE("heads may have a tau each or share one, whose gradient is then the sum") {
  const Problem p(2 * 9, 3 * 4, 3 * 2);
  const auto op = boosting(causal(), {.scheme = Scheme::sos, .steps = 2});
  M each(3, 1), shared = number(0.8), rho = number(0.4);
  each << 0.9, 0.5, 0.8;
  CHECK(limpid::check_gradient(op, inputs(op, p, each, rho), {.batch = 2, .heads = 3}).worst() < 1e-8);
  CHECK(limpid::check_gradient(op, inputs(op, p, shared, rho), {.batch = 2, .heads = 3}).worst() < 1e-8);
}

TEST_CASE("causal boosting does not see what comes later") {
  const Problem p(45, 6, 4);
  for (Scheme scheme : schemes) {
    const auto op = boosting(causal(), {.scheme = scheme, .steps = 3, .skip = true});
    const M before = boosted(op, p, 0.7, 0.5);
    for (double changed : {9.0, std::numeric_limits<double>::infinity()}) {
      Problem other = p;
      for (M* x : {&other.q, &other.k, &other.v}) x->bottomRows(1).setConstant(changed);
      const M after = boosted(op, other, 0.7, 0.5);
      CHECK(same_bits(before.topRows(44), after.topRows(44)));
    }
  }
}

TEST_CASE("a token nobody sees and nobody asks passes no gradient, whatever its value holds") {
  Problem p(11, 4, 3);
  const Index hidden = 6;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  p.v.row(hidden).setConstant(nan);
  M dout = M::Ones(11, 3);
  dout.row(hidden).setZero();
  const auto keep = limpid::mask([](const limpid::At& a) { return a.k != hidden; });
  for (Scheme scheme : schemes) {
    const auto op = boosting(keep, {.scheme = scheme, .steps = 2});
    const M t = number(0.7), r = number(0.5);
    limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
    M out(11, 3), dq(11, 4), dk(11, 4), dv(11, 3), dtau(1, 1);
    limpid::forward(op, inputs(op, p, t, r), out, {.saved = &saved});
    limpid::backward(op, inputs(op, p, t, r), saved, dout, {limpid::grads(dq, dk, dv), dtau, {}});
    for (Index i = 0; i < 11; ++i) CHECK((i == hidden || out.row(i).allFinite()));
    for (const M* g : {&dq, &dk, &dv, &dtau}) CHECK(g->allFinite());
  }
}

TEST_CASE(
    "a token without keys passes no gradient of the step size, whatever its dout holds; where it keeps itself it "
    "does") {
  const Problem p(5, 4, 3);
  const auto keep = limpid::mask([](const limpid::At& a) { return a.q != 3 && a.k != 3; });
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (Scheme scheme : schemes) {
      const auto op = boosting(keep, {.scheme = scheme, .steps = 3});
      const M t = number(0.7), r = number(0.5);
      limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
      M out(5, 3), dq(5, 4), dk(5, 4), dv(5, 3), dtau(1, 1), drho(1, 1), dout = M::Ones(5, 3);
      dout.row(3).setConstant(bad);
      limpid::forward(op, inputs(op, p, t, r), out, {.saved = &saved});
      const bool sos = scheme == Scheme::sos;
      limpid::backward(
          op, inputs(op, p, t, r), saved, dout,
          {limpid::grads(dq, dk, dv), dtau, sos ? limpid::MutView<double>(drho) : limpid::MutView<double>()});
      CHECK(std::isfinite(dtau(0, 0)) == (scheme != Scheme::diffusion));  // of which out is the value itself there
      if (sos) CHECK(std::isfinite(drho(0, 0)));
    }
}

TEST_CASE("the effective map of every scheme is the map at work") {
  const Problem p(70, 5, 3);
  const M t = number(0.7), r = number(0.5), x = M::Random(2, 70);
  for (Scheme scheme : schemes) {
    const auto op = boosting(causal(), {.scheme = scheme, .steps = 2, .skip = scheme == Scheme::sos});
    const auto in = inputs(op, p, t, r);
    limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
    M out(70, 3), map, left(2, 70), row(1, 70);
    limpid::forward(op, in, out, {.saved = &saved, .map = &map});
    CHECK(distance(product(map, p.v), out) < 1e-14);
    limpid::map_left(op, in, saved, x, left);
    CHECK(distance(left, product(x, map)) < 1e-13);
    limpid::map_block(op, in, saved, 31, 0, row);
    CHECK(distance(row, map.row(31)) < 1e-14);
  }
}

TEST_CASE("boosting refuses what it cannot mean") {
  const Problem p(5, 4, 3), other(7, 4, 3);
  const M wide = M::Ones(1, 2), r = number(1);
  CHECK_THROWS_WITH(
      limpid::forward(boosting(), qkv(p.q, other.k, other.v)),
      "boosting: q has n = 5 tokens an item and k has m = 7, wanted the same: the map is applied to its own output");
  CHECK_THROWS_WITH(limpid::forward(boosting({.steps = -2}), qkv(p.q, p.k, p.v)),
                    "boosting: steps is -2, wanted 0 or more");
  const limpid::Inputs<decltype(boosting()), double> bad{qkv(p.q, p.k, p.v), wide}, fed{qkv(p.q, p.k, p.v), {}, r};
  CHECK_THROWS_AS(limpid::forward(boosting(), bad), limpid::ShapeError);
  CHECK_THROWS_WITH(limpid::forward(boosting(), fed), "boosting: rho is given, but only the scheme sos has one");
}
