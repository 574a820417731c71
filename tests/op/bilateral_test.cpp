// limpid: tests of bilateral attention.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"

namespace {

using limpid::bilateral, limpid::ContentKernel, limpid::Index, limpid::Mat, limpid::qkv, limpid::softmax,
    limpid::SpatialKernel;
using suite::distance;
using M = Mat<double>;
using Op = decltype(bilateral());
using In = limpid::Inputs<Op, double>;

struct Problem {
  M q, k, v, a, b, dout;
  Problem(Index n, Index m, Index d = 4, Index c = 3) {
    suite::Random random(static_cast<std::uint64_t>(n * 100 + m));
    const auto make = [&](Index rows, Index cols) {
      return suite::random_matrix<double>(random, rows, cols, -1.5, 1.5);
    };
    q = make(n, d), k = make(m, d), v = make(m, 2), a = make(n, c), b = make(m, c), dout = make(n, 2);
  }
};

M number(double x) { return M::Constant(1, 1, x); }
M joined(const M& left, double s, const M& right, double t) {
  M all(left.rows(), left.cols() + right.cols());
  all << s * left, t * right;
  return all;
}

}  // namespace

TEST_CASE("dot and dot is plain attention of scale 1 on joined rows, and so are its gradients") {
  const Problem p(7, 9);
  const double s = std::sqrt(0.3), t = std::sqrt(0.7);
  const auto op = bilateral(limpid::causal(), {.scale = 0.3, .pscale = 0.7});
  const auto plain = softmax(limpid::causal(), {.scale = 1});
  const auto in =
      limpid::Inputs<decltype(bilateral(limpid::causal())), double>{.q = p.q, .k = p.k, .v = p.v, .a = p.a, .b = p.b};
  const M rows = joined(p.q, s, p.a, t), keys = joined(p.k, s, p.b, t);
  M out(7, 2), want(7, 2), dq = p.q, dk = p.k, dv = p.v, da = p.a, db = p.b, drows = rows, dkeys = keys, dvalues = p.v;
  limpid::Saved<std::remove_const_t<decltype(op)>, double> saved;
  limpid::Saved<std::remove_const_t<decltype(plain)>, double> plain_saved;
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::forward(plain, qkv(rows, keys, p.v), want, {.saved = &plain_saved});
  CHECK(distance(out, want) < 1e-14);
  limpid::backward(op, in, saved, p.dout, {.q = dq, .k = dk, .v = dv, .a = da, .b = db});
  limpid::backward(plain, qkv(rows, keys, p.v), plain_saved, p.dout, limpid::grads(drows, dkeys, dvalues));
  CHECK(distance(joined(dq, 1, da, 1), joined(drows.leftCols(4), s, drows.rightCols(3), t)) < 1e-14);
  CHECK(distance(joined(dk, 1, db, 1), joined(dkeys.leftCols(4), s, dkeys.rightCols(3), t)) < 1e-14);
  CHECK(distance(dv, dvalues) < 1e-14);
}

TEST_CASE("scales are those of the widths of content and positions, each its own, unless they are given") {
  const Problem p(7, 9, 4, 3);
  const auto out = [&](const limpid::BilateralOptions& options) {
    return limpid::forward(bilateral(options), In{.q = p.q, .k = p.k, .v = p.v, .a = p.a, .b = p.b});
  };
  CHECK(distance(out({}), out({.scale = 1 / std::sqrt(4.0), .pscale = 1 / std::sqrt(3.0)})) < 1e-15);
}

TEST_CASE("positions of every item, or of all: a batch is its items one by one, gradients included") {
  const Index batch = 3, n = 4, m = 6;
  const Problem p(batch * n, batch * m);
  for (const bool shared : {false, true}) {
    const M pq = shared ? M(p.a.topRows(n)) : p.a, pk = shared ? M(p.b.topRows(m)) : p.b;
    M out(batch * n, 2), one(n, 2), dpq = pq, dpk = pk, sum_q = M::Zero(pq.rows(), 3), sum_k = M::Zero(pk.rows(), 3);
    limpid::Saved<Op, double> saved, of_one;
    const auto op = bilateral();
    const In in{.q = p.q, .k = p.k, .v = p.v, .pq = pq, .pk = pk};
    limpid::forward(op, in, out, {.batch = batch, .saved = &saved});
    limpid::backward(op, in, saved, p.dout, {.pq = dpq, .pk = dpk});
    for (Index b = 0; b < batch; ++b) {
      const Index i = shared ? 0 : b * n, j = shared ? 0 : b * m;
      const M own_q = pq.middleRows(i, n), own_k = pk.middleRows(j, m), dout = p.dout.middleRows(b * n, n);
      const M q = p.q.middleRows(b * n, n), k = p.k.middleRows(b * m, m), v = p.v.middleRows(b * m, m);
      M dq = own_q, dk = own_k;
      const In item{.q = q, .k = k, .v = v, .pq = own_q, .pk = own_k};
      limpid::forward(op, item, one, {.saved = &of_one});
      limpid::backward(op, item, of_one, dout, {.pq = dq, .pk = dk});
      CHECK(distance(out.middleRows(b * n, n), one) == 0);
      sum_q.middleRows(i, n) += dq, sum_k.middleRows(j, m) += dk;
    }
    CHECK(distance(dpq, sum_q) < 1e-14);
    CHECK(distance(dpk, sum_k) < 1e-14);
  }
}

TEST_CASE("positions that say nothing leave plain attention, or nlm") {
  const Problem p(6, 8);
  const M zero = M::Zero(6, 3), far = number(1e9), h = number(0.8), pq = p.a.leftCols(2), pk = p.b.leftCols(2);
  const M plain = limpid::forward(softmax(), qkv(p.q, p.k, p.v));
  CHECK(distance(limpid::forward(bilateral(), In{.q = p.q, .k = p.k, .v = p.v, .a = zero, .b = p.b}), plain) < 1e-14);
  CHECK(distance(limpid::forward(bilateral({.spatial = SpatialKernel::none}), qkv(p.q, p.k, p.v)), plain) < 1e-14);
  CHECK(distance(limpid::forward(bilateral({.spatial = SpatialKernel::gauss}),
                                 In{.q = p.q, .k = p.k, .v = p.v, .pq = pq, .pk = pk, .h_space = far}),
                 plain) < 1e-14);
  const auto nlm = limpid::nlm();
  const auto of_nlm = [&](const limpid::NlmArgs<limpid::View<double>>& in) { return limpid::forward(nlm, in); };
  CHECK(distance(limpid::forward(bilateral({.content = ContentKernel::dist, .spatial = SpatialKernel::none}),
                                 In{.q = p.q, .k = p.k, .v = p.v, .h_range = h}),
                 of_nlm({.q = p.q, .k = p.k, .v = p.v, .h = h})) < 1e-14);
  const M hs = number(1.3);
  CHECK(distance(limpid::forward(limpid::bilateral_classic(),
                                 In{.q = p.q, .k = p.k, .v = p.v, .h_range = h, .pq = pq, .pk = pk, .h_space = hs}),
                 of_nlm({.q = p.q, .k = p.k, .v = p.v, .h = h, .pq = pq, .pk = pk, .h_space = hs})) < 1e-14);
}

TEST_CASE("a narrow spatial kernel leaves every token alone") {
  const Problem p(9, 9);
  M place(9, 2);
  for (Index i = 0; i < 9; ++i) place.row(i) << static_cast<double>(i / 3), static_cast<double>(i % 3);
  const M hs = number(1e-2);
  CHECK(distance(limpid::forward(limpid::bilateral_classic(),
                                 In{.q = p.q, .k = p.k, .v = p.v, .pq = place, .pk = place, .h_space = hs}),
                 p.v) < 1e-14);
}

TEST_CASE("gauss on whole positions is a relative table of -r^2 / h^2, gradients too") {
  const Index n = 6, m = 8, reach = 7;
  const Problem p(n, m);
  const double h = 2.5;
  M pq(n, 1), pk(m, 1), table(1, 2 * reach + 1), dtable = M::Zero(1, 2 * reach + 1), hs = number(h);
  for (Index i = 0; i < n; ++i) pq(i, 0) = static_cast<double>(i + m - n);
  for (Index j = 0; j < m; ++j) pk(j, 0) = static_cast<double>(j);
  for (Index r = -reach; r <= reach; ++r) table(0, r + reach) = -static_cast<double>(r * r) / (h * h);

  const auto op = bilateral({.spatial = SpatialKernel::gauss});
  const auto other = softmax(limpid::relative(table, dtable));
  const In in{.q = p.q, .k = p.k, .v = p.v, .pq = pq, .pk = pk, .h_space = hs};
  limpid::Saved<Op, double> saved;
  limpid::Saved<std::remove_const_t<decltype(other)>, double> other_saved;
  M out(n, 2), want(n, 2), dq = p.q, dk = p.k, dv = p.v, dhs = hs, wq = p.q, wk = p.k, wv = p.v;
  limpid::forward(op, in, out, {.saved = &saved});
  limpid::forward(other, qkv(p.q, p.k, p.v), want, {.saved = &other_saved});
  CHECK(distance(out, want) < 1e-14);
  limpid::backward(op, in, saved, p.dout, {.q = dq, .k = dk, .v = dv, .h_space = dhs});
  limpid::backward(other, qkv(p.q, p.k, p.v), other_saved, p.dout, limpid::grads(wq, wk, wv));
  CHECK(distance(dq, wq) < 1e-14);
  CHECK(distance(dk, wk) < 1e-14);
  CHECK(dhs(0, 0) == Approx((dtable.array() * table.array()).sum() * -2 / h));  // the table's share of dh
}

TEST_CASE("untied weighs by token-token and position-position scores, without the cross terms") {
  suite::Random random(3);
  const auto make = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  const M x = make(7, 5), pos = make(7, 5), wq = make(5, 4), wk = make(5, 4), v = make(7, 2);
  const auto parts = limpid::score_parts(x, pos, wq, wk);
  const M q = x * wq, k = x * wk, a = pos * wq, b = pos * wk;
  M weights = (parts.tt + parts.pp).array().exp().matrix();
  for (Index i = 0; i < 7; ++i) weights.row(i) /= weights.row(i).sum();
  M out(7, 2), map;
  limpid::forward(limpid::bilateral_untied(), {.q = q, .k = k, .v = v, .a = a, .b = b}, out,
                  limpid::Call<Op, double>{.map = &map});
  CHECK(distance(map, weights) < 1e-14);
}

TEST_CASE("gradients of everything agree with differences, for every pair of kernels") {
  suite::Random random(8);
  const Index n = 4, m = 6;  // two items, two heads, one key head
  const auto make = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols); };
  const M q = make(2 * n, 6), k = make(2 * m, 3), v = make(2 * m, 2), a = make(2 * n, 4), b = make(2 * m, 2),
          pq = make(n, 2), pk = make(2 * m, 2);
  M hr(2, 1), hs(2, 1);
  hr << 0.9, 1.5, hs << 1.2, 0.6;
  for (ContentKernel content : {ContentKernel::dot, ContentKernel::dist})
    for (SpatialKernel spatial : {SpatialKernel::dot, SpatialKernel::gauss, SpatialKernel::none})
      for (bool shared : {false, true}) {
        In in{.q = q, .k = k, .v = v};
        if (content == ContentKernel::dist) in.h_range = hr;
        if (spatial == SpatialKernel::gauss) in.h_space = hs;
        if (spatial != SpatialKernel::none && shared) in.pq = pq, in.pk = pk;
        if (spatial != SpatialKernel::none && !shared) in.a = a, in.b = b;
        const auto check = limpid::check_gradient(bilateral({.content = content, .spatial = spatial}), in,
                                                  {.batch = 2, .heads = 2, .kv_heads = 1});
        INFO("content " << static_cast<int>(content) << ", spatial " << static_cast<int>(spatial) << "\n"
                        << check.text());
        CHECK(check.worst() < 1e-8);
      }
}

TEST_CASE("a score function sees the sum of both kernels") {
  const Problem p(4, 5);
  const auto soft = [](auto s, limpid::At) {
    using std::tanh;
    return tanh(s / 3);
  };
  const auto slope = [](auto s, limpid::At) {
    using std::tanh;
    return (1 - tanh(s / 3) * tanh(s / 3)) / 3;
  };
  const M hr = number(0.9), hs = number(1.1);
  M want = M::Zero(4, 2);
  for (Index i = 0; i < 4; ++i) {
    double sum = 0;
    for (Index j = 0; j < 5; ++j) {
      const double s = -(p.q.row(i) - p.k.row(j)).squaredNorm() / 0.81 - (p.a.row(i) - p.b.row(j)).squaredNorm() / 1.21;
      sum += std::exp(std::tanh(s / 3));
      want.row(i) += std::exp(std::tanh(s / 3)) * p.v.row(j);
    }
    want.row(i) /= sum;
  }
  const auto op = limpid::bilateral_classic(limpid::score_mod(soft, slope));
  const limpid::Inputs<std::remove_const_t<decltype(op)>, double> in{
      .q = p.q, .k = p.k, .v = p.v, .h_range = hr, .a = p.a, .b = p.b, .h_space = hs};
  CHECK(distance(limpid::forward(op, in), want) < 1e-14);
  const auto check = limpid::check_gradient(op, in);
  INFO(check.text());
  CHECK(check.worst() < 1e-8);
}

TEST_CASE("float keeps its digits when content and positions share offsets") {
  Problem p(12, 15);
  const Mat<float> q = (p.q.array() + 1000).cast<float>(), k = (p.k.array() + 1000).cast<float>(),
                   v = p.v.cast<float>(), pq = (p.a.array() - 500).cast<float>(),
                   pk = (p.b.array() - 500).cast<float>();
  const M q2 = q.cast<double>(), k2 = k.cast<double>(), v2 = v.cast<double>(), pq2 = pq.cast<double>(),
          pk2 = pk.cast<double>();
  const auto op = limpid::bilateral_classic();
  const Mat<float> out = limpid::forward(op, limpid::Inputs<Op, float>{.q = q, .k = k, .v = v, .pq = pq, .pk = pk});
  const M want = limpid::forward(op, In{.q = q2, .k = k2, .v = v2, .pq = pq2, .pk = pk2});
  CHECK(distance(out.cast<double>(), want) < 2e-6);
}

TEST_CASE("the log-sum-exp is that of the scores as written") {
  const Problem p(5, 6);
  const M hr = number(0.9), hs = number(1.1);
  M out(5, 2), lse;
  limpid::forward(limpid::bilateral_classic(),
                  {.q = p.q, .k = p.k, .v = p.v, .h_range = hr, .a = p.a, .b = p.b, .h_space = hs}, out,
                  limpid::Call<Op, double>{.lse = &lse});
  for (Index i = 0; i < 5; ++i) {
    double sum = 0;
    for (Index j = 0; j < 6; ++j)
      sum += std::exp(-(p.q.row(i) - p.k.row(j)).squaredNorm() / 0.81 - (p.a.row(i) - p.b.row(j)).squaredNorm() / 1.21);
    CHECK(lse(0, i) == Approx(std::log(sum)));
  }
}

TEST_CASE("inputs that the chosen kernels do not read are refused, and so are missing positions") {
  const Problem p(4, 4);
  const M one = number(1), bad = number(-1), three = M::Ones(4, 3);
  const In in{.q = p.q, .k = p.k, .v = p.v};
  const auto with = [&](auto&& change) {
    In other = in;
    change(other);
    return other;
  };
  const Op none = bilateral({.spatial = SpatialKernel::none}), gauss = bilateral({.spatial = SpatialKernel::gauss});
  CHECK_THROWS_WITH(limpid::forward(bilateral(), in),
                    "bilateral: no positions are given, wanted a and b or pq and pk, or spatial = none");
  CHECK_THROWS_WITH(limpid::forward(none, with([&](In& x) { x.a = p.a, x.b = p.b; })),
                    "bilateral: positions are given, wanted none with spatial = none");
  CHECK_THROWS_WITH(limpid::forward(none, with([&](In& x) { x.h_range = one; })),
                    "bilateral: h_range is given, wanted none with content = dot");
  CHECK_THROWS_WITH(limpid::forward(none, with([&](In& x) { x.h_space = one; })),
                    "bilateral: h_space is given, wanted none unless spatial = gauss");
  CHECK_THROWS_WITH(limpid::forward(bilateral(), with([&](In& x) { x.a = p.a, x.b = p.b, x.pq = p.a, x.pk = p.b; })),
                    "bilateral: both a, b and pq, pk are given, wanted one pair of positions");
  CHECK_THROWS_WITH(limpid::forward(bilateral(), with([&](In& x) { x.a = three, x.b = p.q; })),
                    "bilateral: a has 3 columns a head and b has 4, wanted the same");
  CHECK_THROWS_WITH(limpid::forward(gauss, with([&](In& x) { x.pq = p.a, x.pk = p.b, x.h_space = bad; })),
                    "bilateral: h_space is -1.000000, wanted a positive bandwidth");
}
