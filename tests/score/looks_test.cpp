// limpid: products with the map of every operator against its blocks, and a NaN in such a product: it comes out where a
// kept pair, or a chain of them, brings it in, and nowhere else.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/mssa.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

using limpid::Index;
using limpid::Mat;
using M = Mat<double>;

namespace {

constexpr double quiet = std::numeric_limits<double>::quiet_NaN();

/// All entries but those that must be NaN are within rounding of b.
template <class Bad>
bool same_but(const M& a, const M& b, const Bad& bad) {
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j)
      if (bad(i, j) ? !std::isnan(a(i, j)) : !(std::abs(a(i, j) - b(i, j)) < 1e-12)) return false;
  return true;
}

M times(const M& a, const M& b) {
  M c = M::Zero(a.rows(), b.cols());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index k = 0; k < a.cols(); ++k)
      for (Index j = 0; j < b.cols(); ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}

/// op under a causal mask, batch 2, heads 2; the inputs as the operator has them.
template <class Op, class Fill>
void looks_hold(const Op& op, Index n, Index width, const Fill& fill) {
  INFO(op.name << ", n " << n);
  suite::Random random(3);
  const Index heads = 2, batch = 2;
  const M q = suite::random_matrix<double>(random, batch * n, heads * width),
          k = suite::random_matrix<double>(random, batch * n, heads * width),
          v = suite::random_matrix<double>(random, batch * n, heads * 3),
          more = suite::random_matrix<double>(random, batch * n, heads * 3);
  limpid::Inputs<Op, double> in;
  fill(in, limpid::View<double>(q), limpid::View<double>(k), limpid::View<double>(v), limpid::View<double>(more));
  limpid::Saved<Op, double> saved;
  M out(batch * n, op.out_width(limpid::detail::head_args(in, {batch, heads, heads, n, n}, 0, 0)) * heads), asked;
  limpid::Call<Op, double> call;
  call.batch = batch, call.heads = heads, call.saved = &saved, call.map = &asked, call.head = 1, call.item = 1;
  limpid::forward(op, in, out, call);
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < heads; ++h) {
      limpid::HeadCall of;
      of.head = h, of.item = b;
      M map(n, n), part(std::min<Index>(n, 5), std::min<Index>(n, 3));
      limpid::map_block(op, in, saved, 0, 0, map, of);
      if (b == 1 && h == 1) CHECK(same_but(asked, map, [](Index, Index) { return false; }));
      for (const Index q0 : {Index(0), (n - part.rows()) / 2, n - part.rows()})
        for (const Index k0 : {Index(0), (n - part.cols()) / 2, n - part.cols()}) {
          limpid::map_block(op, in, saved, q0, k0, part, of);
          CHECK(same_but(part, M(map.block(q0, k0, part.rows(), part.cols())), [](Index, Index) { return false; }));
        }
      for (Index i = 0; i < n; ++i)
        for (Index j = i + 1; j < n; ++j) CHECK(map(i, j) == 0);
      M x = suite::random_matrix<double>(random, 3, n), left(3, n), y = suite::random_matrix<double>(random, n, 2),
        right(n, 2);
      const auto nowhere = [](Index, Index) { return false; };
      limpid::map_left(op, in, saved, x, left, of);
      CHECK(same_but(left, times(x, map), nowhere));
      limpid::map_right(op, in, saved, y, right, of);
      CHECK(same_but(right, times(map, y), nowhere));
      for (const Index at : {Index(0), n / 2, n - 1}) {
        M bad_x = x, bad_y = y, fine_x = x, fine_y = y;
        bad_x(1, at) = quiet, fine_x(1, at) = 0;
        limpid::map_left(op, in, saved, bad_x, left, of);
        CHECK(same_but(left, times(fine_x, map), [&](Index i, Index j) { return i == 1 && j <= at; }));
        bad_y(at, 1) = quiet, fine_y(at, 1) = 0;
        limpid::map_right(op, in, saved, bad_y, right, of);
        CHECK(same_but(right, times(map, fine_y), [&](Index i, Index j) { return j == 1 && i >= at; }));
      }
    }
}

const auto plain = [](auto& in, auto q, auto k, auto v, auto) { in.q = q, in.k = k, in.v = v; };

}  // namespace

TEST_CASE("Products with a map are those with its blocks; a NaN goes where kept pairs lead.") {
  for (const Index n : {Index(6), Index(70)}) {
    looks_hold(limpid::softmax(limpid::causal()), n, 3, plain);
    looks_hold(limpid::nlm(limpid::causal()), n, 3, plain);
    looks_hold(limpid::twicing(limpid::causal(), {.order = 2, .alpha = 0.7}), n, 3, plain);
    looks_hold(limpid::boosting(limpid::causal(), {limpid::BoostingScheme::l2boost, 2}), n, 3, plain);
    looks_hold(limpid::differential(limpid::causal(), {.norm = limpid::HeadNorm::none}), n, 4, plain);
    looks_hold(limpid::pid(limpid::causal()), n, 3, [](auto& in, auto q, auto k, auto v, auto more) {
      in.q = q, in.k = k, in.v = v, in.reference = more, in.v_prev = more;
    });
    looks_hold(limpid::mssa(limpid::causal()), n, 3, [](auto& in, auto q, auto, auto, auto) { in.y = q; });
  }
}
