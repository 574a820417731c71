// limpid: products with the map of every operator against its blocks, and a NaN in such a product: it comes out where a
// kept pair, or a chain of them, brings it in, and nowhere else.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/explain/map.hpp>
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
  call.batch = batch, call.heads = heads, call.saved = &saved, call.map = &asked, call.head = 0,
  call.item = 0;  // others come after it
  limpid::forward(op, in, out, call);
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < heads; ++h) {
      limpid::HeadCall of;
      of.head = h, of.item = b;
      M map(n, n), part(std::min<Index>(n, 5), std::min<Index>(n, 3));
      limpid::map_block(op, in, saved, 0, 0, map, of);
      if (b == 0 && h == 0) CHECK(same_but(asked, map, [](Index, Index) { return false; }));
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

TEST_CASE("Looks inside refuse other shapes, blocks that leave the map, heads and items that are not there.") {
  suite::Random random(4);
  const Index n = 5, m = 7;
  const M q = suite::random_matrix<double>(random, 2 * n, 4), k = suite::random_matrix<double>(random, 2 * m, 4),
          v = suite::random_matrix<double>(random, 2 * m, 6);
  const auto op = limpid::softmax();
  const auto in = limpid::qkv(q, k, v);
  limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
  M out(2 * n, 6);
  limpid::forward(op, in, out, {.batch = 2, .heads = 2, .saved = &saved});
  M some(3, 4);
  const auto block = [&](Index q0, Index k0, Index rows, Index cols) {
    some.resize(rows, cols);
    limpid::map_block(op, in, saved, q0, k0, some);
  };
  CHECK_NOTHROW(block(n - 3, m - 4, 3, 4));
  for (const auto& [q0, k0, rows, cols] : std::vector<std::array<Index, 4>>{{n - 2, 0, 3, 4},
                                                                            {n - 1, 0, 2, 1},
                                                                            {0, m - 3, 3, 4},
                                                                            {0, m - 1, 1, 2},
                                                                            {-1, 0, 3, 4},
                                                                            {0, -1, 3, 4},
                                                                            {n, 0, 1, 1}})
    CHECK_THROWS_AS(block(q0, k0, rows, cols), limpid::ShapeError);
  const auto left = [&](Index rows, Index cols, Index to_rows, Index to_cols) {
    M x = M::Zero(rows, cols), y(to_rows, to_cols);
    limpid::map_left(op, in, saved, x, y);
  };
  CHECK_NOTHROW(left(2, n, 2, m));
  CHECK_THROWS_AS(left(2, n + 1, 2, m), limpid::ShapeError);
  CHECK_THROWS_AS(left(2, n, 2, m - 1), limpid::ShapeError);
  CHECK_THROWS_AS(left(2, n, 2, m + 1), limpid::ShapeError);
  CHECK_THROWS_AS(left(2, n, 3, m), limpid::ShapeError);
  const auto right = [&](Index rows, Index cols, Index to_rows, Index to_cols) {
    M x = M::Zero(rows, cols), y(to_rows, to_cols);
    limpid::map_right(op, in, saved, x, y);
  };
  CHECK_NOTHROW(right(m, 2, n, 2));
  CHECK_THROWS_AS(right(m - 1, 2, n, 2), limpid::ShapeError);
  CHECK_THROWS_AS(right(m, 2, n + 1, 2), limpid::ShapeError);
  CHECK_THROWS_AS(right(m, 2, n, 3), limpid::ShapeError);
  CHECK_THROWS_AS(right(m, 2, n, 1), limpid::ShapeError);
  for (const auto& [rows, cols] : std::vector<std::pair<Index, Index>>{{n - 1, 1}, {n + 1, 1}, {n, 2}}) {
    M e(rows, cols);
    CHECK_THROWS_AS(limpid::map_entropy(op, in, saved, e), limpid::ShapeError);
  }
  some.resize(n, m);
  for (const auto& [head, item] : std::vector<std::pair<Index, Index>>{{2, 0}, {-1, 0}, {0, 2}, {0, -1}}) {
    limpid::HeadCall of;
    of.head = head, of.item = item;
    CHECK_THROWS_AS(limpid::map_block(op, in, saved, 0, 0, some, of), limpid::ShapeError);
    M map;
    CHECK_THROWS_AS(limpid::forward(op, in, out, {.batch = 2, .heads = 2, .map = &map, .head = head, .item = item}),
                    limpid::ShapeError);
  }
  // a state of other numbers of keys or queries
  const M fewer_keys = k.topRows(2 * m - 2), fewer_values = v.topRows(2 * m - 2), fewer_queries = q.topRows(2 * n - 2);
  M one(1, 1), dq(2 * n, 4), dk(2 * m - 2, 4), dv(2 * m - 2, 6);
  CHECK_THROWS_AS(limpid::map_block(op, limpid::qkv(q, fewer_keys, fewer_values), saved, 0, 0, one),
                  limpid::ShapeError);
  CHECK_THROWS_AS(limpid::map_block(op, limpid::qkv(fewer_queries, k, v), saved, 0, 0, one), limpid::ShapeError);
  CHECK_THROWS_AS(limpid::backward(op, limpid::qkv(q, fewer_keys, fewer_values), saved, out, limpid::grads(dq, dk, dv)),
                  limpid::ShapeError);
}
