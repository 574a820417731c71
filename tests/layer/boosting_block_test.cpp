// limpid: tests of the boosting residual round a sublayer.
// SPDX-License-Identifier: MIT
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::MutView, limpid::View, limpid::boosting_block;
using suite::distance;
using M = Mat<double>;

M number(double x) { return M::Constant(1, 1, x); }

/// z = s + s_before^2 w: a sublayer that mixes tokens, with a parameter w (1 x D).
struct Sublayer {
  M w;
  void operator()(View<double> s, MutView<double> z) const {
    for (Index i = 0; i < s.rows; ++i)
      for (Index c = 0; c < s.cols; ++c) {
        const double before = s(i == 0 ? s.rows - 1 : i - 1, c);
        z(i, c) = s(i, c) + before * before * w(0, c);
      }
  }
  auto vjp(M& dw) const {
    return [&dw, this](View<double> s, View<double> dz, MutView<double> ds) {
      dw.setZero(1, s.cols);
      ds.fill(0);
      for (Index i = 0; i < s.rows; ++i)
        for (Index c = 0; c < s.cols; ++c) {
          const Index b = i == 0 ? s.rows - 1 : i - 1;
          ds(i, c) += dz(i, c);
          ds(b, c) += 2 * s(b, c) * w(0, c) * dz(i, c);
          dw(0, c) += s(b, c) * s(b, c) * dz(i, c);
        }
    };
  }
};

struct Problem {
  M x, u, g, next;
  Sublayer f;
  Problem() {
    suite::Random random(3);
    for (M* m : {&x, &u, &g, &next}) *m = suite::random_matrix<double>(random, 6, 5);
    f.w = suite::random_matrix<double>(random, 1, 5);
  }
  M plain(const M& s) const {
    M z(s.rows(), s.cols());
    f(s, z);
    return z;
  }
};

}  // namespace

TEST_CASE("with tau = 1 and rho = 0, the default, the block is the ordinary residual whatever the estimate holds") {
  const Problem p;
  M out = p.x, next = p.x, dx = p.x, du = p.x, dw;
  limpid::BoostingBlockSaved<double> saved;
  boosting_block({.x = p.x, .u = p.u}, p.f, out, next, &saved);
  CHECK(distance(out, p.x + p.plain(p.x)) < 1e-15);
  CHECK(distance(next, p.plain(p.x)) == 0);
  limpid::boosting_block_backward({.x = p.x, .u = p.u}, saved, p.f.vjp(dw), p.g, {}, {.x = dx, .u = du});
  CHECK(du.isZero(0));
}

TEST_CASE("the first block has no estimate: out = x + tau f(x)") {
  const Problem p;
  const M tau = number(0.7), rho = number(0.4), none = M::Zero(6, 5);
  M out = p.x, next = p.x, other = p.x;
  boosting_block({.x = p.x, .tau = tau, .rho = rho}, p.f, out, next);
  CHECK(distance(out, p.x + 0.7 * p.plain(p.x)) < 1e-15);
  boosting_block({.x = p.x, .u = none, .tau = tau, .rho = rho}, p.f, other, next);
  CHECK(distance(out, other) == 0);
  boosting_block({.x = p.x, .tau = tau, .rho = rho}, p.f, other, MutView<double>());  // the last block: u_next unwanted
  CHECK(distance(out, other) == 0);
}

TEST_CASE("round a fixed map the estimate of the block goes the way of sos") {
  suite::Random random(4);
  const M q = suite::random_matrix<double>(random, 9, 4), k = suite::random_matrix<double>(random, 9, 4),
          v = suite::random_matrix<double>(random, 9, 3), tau = number(0.6), rho = number(0.5);
  const auto attention = limpid::softmax();
  const auto f = [&](View<double> s, MutView<double> z) { limpid::forward(attention, limpid::qkv(q, k, s.map()), z); };
  M u(9, 3), next(9, 3), out(9, 3);
  boosting_block({.x = v}, f, out, u);  // u_0 = A V
  for (Index t = 0; t <= 4; ++t) {
    const auto sos = limpid::boosting({.scheme = limpid::BoostingScheme::sos, .steps = t});
    const limpid::Inputs<std::remove_const_t<decltype(sos)>, double> in{limpid::qkv(q, k, v), tau, rho};
    CHECK(distance(u, limpid::forward(sos, in)) < 1e-15);
    boosting_block({.x = v, .u = u, .tau = tau, .rho = rho}, f, out, next);
    u.swap(next);
  }
}

TEST_CASE("gradients of the block are right, and are added where asked") {
  Problem p;
  M tau = number(0.8), rho = number(-0.3), out = p.x, next = p.x;
  for (bool first : {false, true})
    for (bool last : {false, true}) {
      const auto args = [&] {
        limpid::BoostingBlockArgs<View<double>> in{.x = p.x, .u = {}, .tau = tau, .rho = rho};
        if (!first) in.u = p.u;
        return in;
      };
      const auto value = [&] {
        boosting_block(args(), p.f, out, next);
        return out.cwiseProduct(p.g).sum() + (last ? 0 : next.cwiseProduct(p.next).sum());
      };
      limpid::BoostingBlockSaved<double> saved;
      boosting_block(args(), p.f, out, next, &saved);
      M dx = p.x, du = p.x, dtau(1, 1), drho(1, 1), dw;
      const View<double> w = last ? View<double>() : View<double>(p.next);
      limpid::BoostingBlockArgs<MutView<double>> to{.x = dx, .u = {}, .tau = dtau, .rho = drho};
      if (!first) to.u = du;
      limpid::boosting_block_backward(args(), saved, p.f.vjp(dw), p.g, w, to);
      CHECK(distance(dx, limpid::numeric_gradient(p.x, value)) < 1e-9);
      if (!first) CHECK(distance(du, limpid::numeric_gradient(p.u, value)) < 1e-9);
      CHECK(distance(dtau, limpid::numeric_gradient(tau, value)) < 1e-9);
      CHECK(distance(drho, limpid::numeric_gradient(rho, value)) < 1e-9);
      CHECK(distance(dw, limpid::numeric_gradient(p.f.w, value)) < 1e-9);
      const M once[] = {dx, du, dtau, drho};
      limpid::boosting_block_backward(args(), saved, p.f.vjp(dw), p.g, w, to, {.accumulate = true});
      CHECK(distance(dx, 2 * once[0]) < 1e-14);
      if (!first) CHECK(distance(du, 2 * once[1]) < 1e-14);
      CHECK(distance(dtau, 2 * once[2]) < 1e-14);
      CHECK(distance(drho, 2 * once[3]) < 1e-14);
    }
}

TEST_CASE("the block refuses shapes that do not fit, buffers that overlap, and a state that no forward call filled") {
  const Problem p;
  M out = p.x, next = p.x, small(5, 5), dw;
  const M wide = M::Ones(1, 2);
  limpid::BoostingBlockSaved<double> saved;
  CHECK_THROWS_WITH(boosting_block({.x = p.x}, p.f, small, next), "boosting block: out is 5 x 5, wanted 6 x 5 as x");
  CHECK_THROWS_WITH(boosting_block({.x = p.x, .u = small}, p.f, out, next),
                    "boosting block: u is 5 x 5, wanted 6 x 5 as x");
  CHECK_THROWS_WITH(boosting_block({.x = p.x, .tau = wide}, p.f, out, next),
                    "boosting block: tau is 1 x 2, wanted 1 x 1");
  CHECK_THROWS_AS(boosting_block({.x = out}, p.f, out, next), limpid::ShapeError);
  CHECK_THROWS_AS(boosting_block({.x = p.x}, p.f, out, out), limpid::ShapeError);
  CHECK_THROWS_AS(limpid::boosting_block_backward({.x = p.x}, saved, p.f.vjp(dw), p.g, {}, {.x = out}),
                  limpid::ShapeError);
}
