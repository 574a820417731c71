// limpid: rollout, row by row, against the product of factors that are written down.
// SPDX-License-Identifier: MIT
#include <limpid/check/gradient.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/products.hpp"

namespace {

using limpid::Fuse, limpid::Index, limpid::Mat, limpid::qkv, limpid::Rollout, limpid::RolloutOptions;
using suite::distance, suite::product;
using M = Mat<double>;

M random(Index rows, Index cols, std::uint64_t seed, double size = 1) {
  suite::Random r(seed);
  return suite::random_matrix<double>(r, rows, cols, -size, size);
}

/// A stack of layers of some operator, and its maps.
template <class Op>
struct Stack {
  Op op;
  Index heads, n, d = 4;
  std::vector<M> q, k, v;
  std::vector<limpid::Saved<Op, double>> saved;

  Stack(Op op_, Index layers, Index heads_, Index n_) : op(op_), heads(heads_), n(n_), saved(std::size_t(layers)) {
    for (Index l = 0; l < layers; ++l) {
      q.push_back(random(n, heads * d, 3 * l + 1, 2));
      k.push_back(random(n, heads * d, 3 * l + 2, 2));
      v.push_back(random(n, heads * d, 3 * l + 3));
      M out(n, heads * d);
      limpid::forward(op, in(std::size_t(l)), out, {.heads = heads, .saved = &saved[std::size_t(l)]});
    }
  }
  limpid::Inputs<Op, double> in(std::size_t l) const { return qkv(q[l], k[l], v[l]); }

  M map(std::size_t l, Index head) {
    M a(n, n);
    limpid::map_block(op, in(l), saved[l], 0, 0, a, {.head = head});
    return a;
  }
  /// The whole of C, by the formula.
  M dense(const RolloutOptions& o) {
    M c = M::Identity(n, n);
    for (std::size_t l = 0; l < q.size(); ++l) {
      M fused = map(l, 0);
      for (Index h = 1; h < heads; ++h) {
        const M a = map(l, h);
        if (o.fuse == Fuse::mean) fused += a;
        if (o.fuse == Fuse::max) fused = fused.cwiseMax(a);
        if (o.fuse == Fuse::min) fused = fused.cwiseMin(a);
      }
      if (o.fuse == Fuse::mean) fused /= double(heads);
      M f = o.residual * M::Identity(n, n) + (1 - o.residual) * fused;
      for (Index i = 0; i < n && o.normalise; ++i)
        if (const double sum = f.row(i).sum(); sum != 0)
          f.row(i) /= sum;
        else
          f.row(i) = M::Identity(n, n).row(i);
      c = product(f, c);
    }
    return c;
  }
  M rows(const RolloutOptions& o, const M& first) {
    Rollout<double> rollout(o);
    rollout.start(first);
    for (std::size_t l = q.size(); l-- > 0;) rollout.layer(op, in(l), saved[l]);
    return rollout.rows();
  }
  M all(const RolloutOptions& o) { return rows(o, M::Identity(n, n)); }
};

}  // namespace

TEST_CASE("rollout rows are those of the product of all factors, however heads are fused") {
  const M gaps = random(41, 41, 99);
  const auto keep = [&gaps](limpid::At a) { return a.q != 7 && a.q != 40 && gaps(a.q, a.k) > -0.5; };  // two empty rows
  Stack stack(limpid::softmax(limpid::mask(keep)), 3, 2, 41);
  for (const Fuse fuse : {Fuse::mean, Fuse::max, Fuse::min})
    for (const double residual : {0.5, 0.25, 0.0})
      for (const bool normalise : {true, false}) {
        const RolloutOptions o{.residual = residual, .fuse = fuse, .normalise = normalise};
        const M dense = stack.dense(o);
        CHECK(distance(stack.all(o), dense) < 1e-14);
        CHECK(distance(stack.rows(o, random(2, 41, 5)), product(random(2, 41, 5), dense)) < 1e-14);
        if (normalise) CHECK(distance(suite::row_sums(dense), M::Ones(41, 1)) < 1e-14);
      }
  for (const Fuse fuse : {Fuse::mean, Fuse::max, Fuse::min})
    for (const double residual : {0.5, 0.0})
      for (const bool normalise : {true, false}) {
        Rollout<double> one({.residual = residual, .fuse = fuse, .normalise = normalise});
        one.start(41, 40);  // a token without keys hands on itself, or unless normalised the residual's share of it
        one.layer(stack.op, stack.in(2), stack.saved[2]);
        CHECK(one.rows() == (normalise ? 1 : residual) * M::Identity(41, 41).row(40));
      }
}

TEST_CASE("rollout identities: the identity, one map, a triangle, one token; twicing's effective maps") {
  Stack causal(limpid::softmax(limpid::causal()), 3, 2, 19);
  CHECK(distance(causal.all({.residual = 1}), M::Identity(19, 19)) < 1e-15);
  const M triangle = causal.all({});
  for (Index i = 0; i < 19; ++i)
    for (Index j = i + 1; j < 19; ++j) CHECK(triangle(i, j) == 0);
  Stack one(limpid::softmax(), 1, 1, 19);
  CHECK(distance(one.all({.residual = 0}), one.map(0, 0)) < 1e-15);
  Stack token(limpid::softmax(), 2, 3, 1);
  CHECK(distance(token.all({}), M::Ones(1, 1)) < 1e-15);
  Stack twicing(limpid::twicing(), 2, 2, 23);
  CHECK(distance(twicing.all({}), twicing.dense({})) < 1e-14);
}

namespace {

template <class Op>
void gradients_hold(const Op& op, const RolloutOptions& o) {
  INFO("residual " << o.residual << ", normalise " << o.normalise);
  Stack stack(op, 3, 2, 9);
  const M first = M::Identity(9, 9).topRows(7).bottomRows(2), drows = random(2, 9, 77);
  Rollout<double> rollout(o);
  rollout.start(first);
  for (std::size_t l = 3; l-- > 0;) rollout.layer(stack.op, stack.in(l), stack.saved[l]);
  rollout.start_gradient(drows);
  for (std::size_t l = 0; l < 3; ++l) {
    M dq = stack.q[l], dk = stack.k[l];
    CHECK_THROWS_WITH(rollout.gradient(stack.op, stack.in(l), stack.saved[l], {.q = dq, .k = dk, .v = dk}),
                      "softmax: a rollout has no gradient for v");
    M narrow(9, 3);  // what is refused may be asked again
    CHECK_THROWS_AS(rollout.gradient(stack.op, stack.in(l), stack.saved[l], {.q = narrow, .k = dk, .v = {}}),
                    limpid::ShapeError);
    rollout.gradient(stack.op, stack.in(l), stack.saved[l], {.q = dq, .k = dk, .v = {}});
    const auto value = [&] {
      M out(9, 8);
      limpid::forward(stack.op, stack.in(l), out, {.heads = 2, .saved = &stack.saved[l]});
      return stack.rows(o, first).cwiseProduct(drows).sum();
    };
    CHECK(distance(dq, limpid::numeric_gradient(stack.q[l], value)) < 1e-8);
    CHECK(distance(dk, limpid::numeric_gradient(stack.k[l], value)) < 1e-8);
    value();  // saved is of these inputs again
  }
}

}  // namespace

TEST_CASE("rollout gradients of queries and keys are those of central differences, tokens without keys included") {
  const auto keep = [](limpid::At a) { return a.q != 3 && a.q != 5 && (a.q + a.k) % 4 != 1; };
  for (const double residual : {0.4, 0.0})
    for (const bool normalise : {true, false}) {
      if (residual == 0 && !normalise) continue;  // the map alone
      const RolloutOptions o{.residual = residual, .normalise = normalise, .gradient = true};
      gradients_hold(limpid::softmax(limpid::causal()), o);
      gradients_hold(limpid::softmax(limpid::mask(keep)), o);
    }
}

TEST_CASE("rollout refuses what it cannot mean") {
  Stack stack(limpid::softmax(), 1, 1, 5);
  Rollout<double> rollout;
  CHECK_THROWS_WITH(Rollout<double>({.residual = 1.5}), "rollout: residual is 1.500000, wanted it in [0, 1]");
  CHECK_THROWS_WITH(rollout.start(5, 5), "rollout: token is 5, wanted it in [0, 5)");
  const M no_number{{0, std::nan("")}};
  CHECK_THROWS_WITH(rollout.start(no_number), Catch::Contains("rollout: rows") && Catch::Contains("nan"));
  rollout.start(6, 0);
  CHECK_THROWS_WITH(rollout.layer(stack.op, stack.in(0), stack.saved[0]),
                    "softmax: rollout over a map 5 x 5, wanted 6 x 6");
  const M drows = M::Ones(1, 6);
  CHECK_THROWS_WITH(rollout.start_gradient(drows),
                    "rollout: a gradient wants RolloutOptions{.gradient = true} and Fuse::mean");
}

TEST_CASE("rollout in float: the maps keep a share that is lost beside a residual of all but 1") {
  const Mat<float> q = Mat<float>::Zero(2, 3);
  Mat<float> out(2, 3);
  const auto op = limpid::softmax();
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  limpid::forward(op, qkv(q, q, q), out, {.saved = &saved});
  for (const Fuse fuse : {Fuse::mean, Fuse::max}) {
    Rollout<float> rollout({.residual = 1 - 1e-9, .fuse = fuse});
    rollout.start(2, 0);
    rollout.layer(op, qkv(q, q, q), saved);
    CHECK(std::abs(double(rollout.rows()(0, 1)) / 0.5e-9 - 1) < 1e-6);
  }
}

TEST_CASE("rollout in float: rows still sum to 1 after layers of many heads") {
  const Index n = 11, heads = 12;
  const auto op = limpid::softmax();
  Rollout<float> rollout;
  const Mat<float> mean = Mat<float>::Constant(1, n, 1.0f / float(n));
  rollout.start(mean);
  for (std::uint64_t layer = 0; layer < 8; ++layer) {
    const Mat<float> q = random(n, 4 * heads, 2 * layer).cast<float>(),
                     k = random(n, 4 * heads, 2 * layer + 1).cast<float>();
    Mat<float> out(n, 4 * heads);
    limpid::Saved<std::remove_cv_t<decltype(op)>, float> saved;
    limpid::forward(op, qkv(q, k, k), out, {.heads = heads, .saved = &saved});
    rollout.layer(op, qkv(q, k, k), saved);
  }
  CHECK(std::abs(rollout.rows().cast<double>().sum() - 1) < 5e-7);
}
TEST_CASE("A map that is NaN shows in a rollout, whichever head it is and however heads are fused") {
  for (const Fuse fuse : {Fuse::mean, Fuse::max, Fuse::min})
    for (const Index head : {0, 1}) {
      Stack stack(limpid::softmax(), 1, 2, 4);
      stack.q[0](2, head * stack.d) = std::numeric_limits<double>::quiet_NaN();
      M out(4, 2 * stack.d);
      limpid::forward(stack.op, stack.in(0), out, {.heads = 2, .saved = &stack.saved[0]});
      RolloutOptions options;
      options.fuse = fuse;
      Rollout<double> rollout(options);
      rollout.start(4, 2);
      rollout.layer(stack.op, stack.in(0), stack.saved[0]);
      INFO("head " << head);
      CHECK(rollout.rows().array().isNaN().all());
    }
}

TEST_CASE("a gradient of a rollout does not lie over an input, v included, and one that was moved away is empty") {
  Stack stack(limpid::softmax(), 1, 1, 5);
  Rollout<double> rollout({.gradient = true});
  const auto in = stack.in(0);
  M v = Eigen::Map<const M>(in.v.data, in.v.rows, in.v.cols), dk(5, 4);
  const M before = v;
  rollout.start(5, 1);
  rollout.layer(stack.op, in, stack.saved[0]);
  const M drows = random(1, 5, 5);
  rollout.start_gradient(drows);
  auto with = in;
  with.v = v;
  CHECK_THROWS_WITH(rollout.gradient(stack.op, with, stack.saved[0], {.q = v, .k = dk, .v = {}}),
                    "softmax: gradient of q shares memory with v, wanted memory of its own");
  CHECK(v == before);
  const Rollout<double> taken = std::move(rollout);
  CHECK(taken.rows().rows() == 1);
  CHECK_THROWS_WITH(rollout.gradient(stack.op, in, stack.saved[0], {.q = v, .k = dk, .v = {}}),
                    Catch::Contains("gradient() without a layer to go"));
}

TEST_CASE("a copy of a rollout goes on by itself") {
  Stack stack(limpid::softmax(), 3, 2, 7);
  Rollout<double> one, wanted;
  for (Rollout<double>* rollout : {&one, &wanted}) {
    rollout->start(7, 3);
    rollout->layer(stack.op, stack.in(2), stack.saved[2]);
  }
  Rollout<double> copy = one, assigned;
  assigned = one;
  wanted.layer(stack.op, stack.in(1), stack.saved[1]);
  one.layer(stack.op, stack.in(0), stack.saved[0]);
  for (Rollout<double>* rollout : {&copy, &assigned}) {
    rollout->layer(stack.op, stack.in(1), stack.saved[1]);
    CHECK(rollout->rows() == wanted.rows());
  }
  CHECK(one.rows() != wanted.rows());
}

TEST_CASE("a rollout starts again from rows of its own, all or some of them") {
  Stack stack(limpid::softmax(), 1, 2, 40);
  const M identity = M::Identity(40, 40);
  for (const Index count : {40, 3}) {
    Rollout<double> rollout;
    rollout.start(identity);
    rollout.layer(stack.op, stack.in(0), stack.saved[0]);
    const M first = rollout.rows();
    rollout.start(rollout.rows().middleRows(40 - count, count));
    CHECK(rollout.rows() == first.bottomRows(count));
    rollout.layer(stack.op, stack.in(0), stack.saved[0]);
    CHECK(distance(rollout.rows(), product(first, first).bottomRows(count)) < 1e-14);
  }
}

TEST_CASE("a gradient of a rollout wants start_gradient() after the last start() or layer(); a trail is used once") {
  Stack stack(limpid::softmax(), 2, 1, 6);
  const M drows = random(1, 6, 5);
  Rollout<double> rollout({.gradient = true});
  M dq(6, 4), dk(6, 4);
  const auto gradient = [&](std::size_t l) {
    rollout.gradient(stack.op, stack.in(l), stack.saved[l], {.q = dq, .k = dk, .v = {}});
  };
  const auto layers = [&](Index token) {
    rollout.start(6, token);
    for (std::size_t l = 2; l-- > 0;) rollout.layer(stack.op, stack.in(l), stack.saved[l]);
  };
  const auto refused = [&] {
    dq.setConstant(7);
    CHECK_THROWS_WITH(gradient(0),
                      "rollout: gradient() without a layer to go, wanted start_gradient() after the last start() or "
                      "layer(), and then one call for each layer");
    CHECK(dq == M::Constant(6, 4, 7));
  };
  layers(1);
  refused();
  rollout.start_gradient(drows);
  gradient(0);
  const M right = dq;
  layers(2);  // one layer of the first trail is left
  refused();
  rollout.start_gradient(drows);
  rollout.start(6, 1);
  refused();
  layers(2);
  rollout.start_gradient(drows);
  rollout.layer(stack.op, stack.in(0), stack.saved[0]);
  refused();
  layers(1);
  rollout.start_gradient(drows);
  gradient(0);
  CHECK(dq == right);
  gradient(1);
  refused();
}

TEST_CASE("a layer that a mask of the user's stops, wherever, leaves the rollout where it was") {
  Index left = -1;
  const auto keep = [&left](limpid::At) {
    if (left-- == 0) throw std::runtime_error("stopped");
    return true;
  };
  Stack stack(limpid::softmax(limpid::mask(keep)), 1, 2, 5);
  const M identity = M::Identity(5, 5);
  for (const Fuse fuse : {Fuse::mean, Fuse::max}) {
    Rollout<double> rollout({.residual = 0.3, .fuse = fuse});
    rollout.start(identity);
    for (Index at = 0;; ++at) {
      INFO("asked " << at << " times");
      left = at;
      bool stopped = false;
      try {
        rollout.layer(stack.op, stack.in(0), stack.saved[0]);
      } catch (const std::runtime_error&) {
        stopped = true;
      }
      if (!stopped) break;
      CHECK(rollout.rows() == identity);
    }
    left = -1;
    CHECK(rollout.rows() == stack.rows({.residual = 0.3, .fuse = fuse}, identity));
  }
}
