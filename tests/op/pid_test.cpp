// limpid: tests of attention with a PID controller, one layer and stacks of them.
// SPDX-License-Identifier: MIT
#include <cstring>
#include <limits>
#include <limpid/check/gradient.hpp>
#include <limpid/explain/map.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <vector>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/fields.hpp"
#include "support/linear_algebra.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::causal, limpid::pid, limpid::PidOptions, limpid::PidVariant, limpid::qkv,
    limpid::softmax;
using suite::distance;
using M = Mat<double>;

constexpr PidOptions no_gains{.lambda_p = 0, .lambda_i = 0, .lambda_d = 0};

PidOptions gains(double p, double i, double d, double beta, PidVariant variant = PidVariant::paper, double ema = 0.3) {
  return {.variant = variant, .lambda_p = p, .lambda_i = i, .lambda_d = d, .beta = beta, .ema = ema};
}

/// Inputs of a stack of layers.
struct Layers {
  std::vector<M> q, k, v, dout;
  Layers(Index count, Index n, Index d, Index dv, std::uint64_t seed = 1) {
    suite::Random random(seed);
    const auto make = [&](Index cols) { return suite::random_matrix<double>(random, n, cols, -1.5, 1.5); };
    for (Index l = 0; l < count; ++l)
      q.push_back(make(d)), k.push_back(make(d)), v.push_back(make(dv)), dout.push_back(make(dv));
  }
  std::size_t size() const { return q.size(); }
};

bool same_bits(const M& a, const M& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), sizeof(double) * static_cast<std::size_t>(a.size())) == 0;
}

template <class Op>
std::vector<M> run(const Op& op, const Layers& in, limpid::PidStackOptions options = {}) {
  limpid::PidStack<Op, double> stack(op, options);
  std::vector<M> out = in.v;
  for (std::size_t l = 0; l < in.size(); ++l) stack.forward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, out[l]);
  return out;
}
/// A V, layer by layer.
std::vector<M> plain(const Layers& in) {
  std::vector<M> out;
  for (std::size_t l = 0; l < in.size(); ++l) out.push_back(limpid::forward(softmax(), qkv(in.q[l], in.k[l], in.v[l])));
  return out;
}

}  // namespace

TEST_CASE("pid with all gains 0, and in its first layer, is plain attention to the bit") {
  const Layers in(4, 19, 5, 7);
  const auto want = plain(in);
  const auto none = run(pid(no_gains), in), all = run(pid(), in);
  for (std::size_t l = 0; l < in.size(); ++l) CHECK(same_bits(none[l], want[l]));
  CHECK(same_bits(all[0], want[0]));
  CHECK(!same_bits(all[1], want[1]));
  const Layers token(1, 1, 4, 3);
  CHECK(same_bits(run(pid(), token)[0], token.v[0]));
}

TEST_CASE("pid does nothing where beta is 1 and the values never change") {
  Layers in(5, 17, 4, 9);
  for (auto& v : in.v) v = in.v[0];
  const auto want = plain(in);
  for (PidVariant variant : {PidVariant::paper, PidVariant::lagged_ema}) {
    const auto out = run(pid(gains(0.7, -1.3, 2.1, 1, variant)), in);
    for (std::size_t l = 0; l < in.size(); ++l) CHECK(distance(out[l], want[l]) < 1e-14);
  }
}

TEST_CASE("pid with the P term alone and beta 1 is NeuTRENO, out = A V + alpha (V_0 - V)") {
  const Layers in(4, 16, 6, 8);
  const auto a_v = plain(in);
  for (double alpha : {0.6, 1.0}) {
    const auto out = run(pid(gains(alpha, 0, 0, 1)), in);
    for (std::size_t l = 1; l < in.size(); ++l) CHECK(distance(out[l], a_v[l] + alpha * (in.v[0] - in.v[l])) < 1e-14);
  }
}

TEST_CASE("pid with the D term alone never sees beta, and telescopes over the layers") {
  const Layers in(6, 15, 4, 5);
  const auto a_v = plain(in);
  const auto out = run(pid(gains(0, 0, 0.4, 0.1)), in), other = run(pid(gains(0, 0, 0.4, 0.9)), in);
  M sum = M::Zero(15, 5);
  for (std::size_t l = 1; l < in.size(); ++l) {
    CHECK(distance(out[l] - a_v[l], 0.4 * (in.v[l - 1] - in.v[l])) < 1e-14);
    CHECK(same_bits(out[l], other[l]));
    sum += out[l] - a_v[l];
  }
  CHECK(distance(sum, 0.4 * (in.v.front() - in.v.back())) < 1e-14);
}

TEST_CASE("pid in layer 1: the I term is the P term") {
  const Layers in(3, 12, 4, 6);
  const auto i = run(pid(gains(0, 0.7, 0, 0.3)), in), p = run(pid(gains(0.7, 0, 0, 0.3)), in);
  CHECK(distance(i[1], p[1]) < 1e-15);
  CHECK(distance(i[2], p[2]) > 1e-2);
}

TEST_CASE("pid is affine in its gains") {
  const Layers in(4, 13, 4, 5);
  for (PidVariant variant : {PidVariant::paper, PidVariant::lagged_ema}) {
    const auto a = run(pid(gains(0.3, 1.1, -0.4, 0.2, variant)), in),
               b = run(pid(gains(-0.9, 0.2, 0.8, 0.2, variant)), in),
               middle = run(pid(gains(-0.3, 0.65, 0.2, 0.2, variant)), in);
    for (std::size_t l = 0; l < in.size(); ++l) CHECK(distance(0.5 * (a[l] + b[l]), middle[l]) < 1e-14);
  }
}

TEST_CASE(
    "pid, lagged_ema with ema 1: the I term is the error of the layer before, and the D term comes a layer late") {
  const Layers in(5, 11, 4, 6);
  const auto a_v = plain(in);
  const auto i = run(pid(gains(0, 0.7, 0, 0.3, PidVariant::lagged_ema, 1)), in);
  const auto d = run(pid(gains(0, 0, 0.5, 0.3, PidVariant::lagged_ema)), in);
  CHECK(same_bits(i[1], a_v[1]));
  CHECK(same_bits(d[1], a_v[1]));
  for (std::size_t l = 2; l < in.size(); ++l) {
    CHECK(distance(i[l] - a_v[l], 0.7 * (0.3 * in.v[0] - in.v[l - 1])) < 1e-14);
    CHECK(distance(d[l] - a_v[l], 0.5 * (in.v[l - 2] - in.v[l - 1])) < 1e-14);
  }
}

TEST_CASE(
    "pid iterated over one map tends to lambda_p ((1 + lambda_p) I - A)^-1 f, and without a controller to equal rows") {
  const Layers in(2, 14, 4, 3);
  M map, out(14, 3);
  limpid::forward(softmax(), qkv(in.q[0], in.k[0], in.v[0]), out, {.map = &map});
  const auto limit = [&](double lambda) {
    auto op = pid(gains(lambda, 0, 0, 1));
    M v = in.v[1], next = v;
    for (int step = 0; step < 400; ++step) {
      limpid::forward(op, {.q = in.q[0], .k = in.k[0], .v = v, .reference = in.v[0]}, next);
      std::swap(v, next);
    }
    return v;
  };
  const M want = 0.4 * suite::solve(1.4 * M::Identity(14, 14) - map, in.v[0]);
  CHECK(distance(limit(0.4), want) < 1e-12);
  const M collapsed = limit(0);
  CHECK(distance(collapsed, collapsed.row(0).replicate(14, 1)) < 1e-12);
}

TEST_CASE("pid: gradients of every input, with heads, grouped keys, queries at the end of the keys and any map") {
  suite::Random random(5);
  const auto make = [&](Index rows, Index cols) { return suite::random_matrix<double>(random, rows, cols, -1.2, 1.2); };
  const M q = make(2 * 4, 2 * 3), k = make(2 * 6, 3), v = make(2 * 6, 5), r = make(2 * 4, 2 * 5),
          s = make(2 * 4, 2 * 5), v1 = make(2 * 4, 2 * 5), v2 = make(2 * 4, 2 * 5), p = make(2, 1), i = make(1, 1),
          d = make(2, 1), beta = make(1, 1), h = M::Constant(1, 1, 1.4);
  for (PidVariant variant : {PidVariant::paper, PidVariant::lagged_ema}) {
    auto op = pid(limpid::nlm(causal()), {.variant = variant});
    limpid::Inputs<decltype(op), double> in;
    in.q = q, in.k = k, in.v = v, in.h = h, in.reference = r, in.integral = s, in.v_prev = v1;
    in.lambda_p = p, in.lambda_i = i, in.lambda_d = d, in.beta = beta;
    if (variant == PidVariant::lagged_ema) in.v_before = v2;
    const auto check = limpid::check_gradient(op, in, {.batch = 2, .heads = 2, .kv_heads = 1});
    INFO(check.text());
    CHECK(check.worst() < 1e-8);
  }
}

TEST_CASE("pid stack: the gradient through all layers, with respect to every array and gain") {
  const Layers in(5, 6, 2 * 3, 2 * 4, 9);
  M gain[4] = {M::Constant(2, 1, 0.8), M::Constant(1, 1, 0.5), M::Constant(1, 1, 0.25), M::Constant(2, 1, 0.4)};
  gain[0](1, 0) = 0.3, gain[3](0, 0) = -0.2;
  for (PidVariant variant : {PidVariant::paper, PidVariant::lagged_ema}) {
    auto op = pid(causal(), {.variant = variant});
    Layers own = in;
    const auto inputs = [&](std::size_t l) {
      return limpid::Inputs<decltype(op), double>{.q = own.q[l],
                                                  .k = own.k[l],
                                                  .v = own.v[l],
                                                  .lambda_p = gain[0],
                                                  .lambda_i = gain[1],
                                                  .lambda_d = gain[2],
                                                  .beta = gain[3]};
    };
    const limpid::PidStackOptions two{.batch = 1, .heads = 2}, forgetful{.batch = 1, .heads = 2, .keep = false};
    using Op = decltype(op);
    limpid::PidStack<Op, double> stack(op, two), other(op, forgetful);
    const auto value = [&](limpid::PidStack<Op, double>& s) {
      double sum = 0;
      M out(6, 8);
      s.restart();
      for (std::size_t l = 0; l < own.size(); ++l) {
        s.forward(inputs(l), out);
        sum += out.cwiseProduct(own.dout[l]).sum();
      }
      return sum;
    };
    CHECK(value(stack) == value(other));
    Layers grad = in;
    M dgain[4] = {gain[0], gain[1], gain[2], gain[3]};
    for (std::size_t l = own.size(); l-- > 0;)
      stack.backward(inputs(l), own.dout[l],
                     {.q = grad.q[l],
                      .k = grad.k[l],
                      .v = grad.v[l],
                      .lambda_p = dgain[0],
                      .lambda_i = dgain[1],
                      .lambda_d = dgain[2],
                      .beta = dgain[3]});
    CHECK_THROWS_AS(stack.backward(inputs(0), own.dout[0], {}), limpid::ShapeError);
    const auto close = [&](M& x, const M& found) {
      const M want = limpid::numeric_gradient(x, [&] { return value(other); });
      CHECK(distance(found, want) < 1e-9 * std::max(1.0, want.cwiseAbs().maxCoeff()));
    };
    for (std::size_t l = 0; l < own.size(); ++l)
      close(own.q[l], grad.q[l]), close(own.k[l], grad.k[l]), close(own.v[l], grad.v[l]);
    for (int g = 0; g < 4; ++g) close(gain[g], dgain[g]);

    // once more, added to what is there
    value(stack);
    const M before = grad.v[1], gain_before = dgain[0];
    for (std::size_t l = own.size(); l-- > 0;)
      stack.backward(inputs(l), own.dout[l], {.v = grad.v[l], .lambda_p = dgain[0]}, {.accumulate = true});
    CHECK(distance(grad.v[1], 2 * before) < 1e-13);
    CHECK(distance(dgain[0], 2 * gain_before) < 1e-12);
  }
}

TEST_CASE(
    "pid stack: one that keeps nothing has the bits of one that keeps every layer, however deep and started again") {
  const Layers in(9, 7, 2 * 3, 2 * 4, 11);
  for (PidVariant variant : {PidVariant::paper, PidVariant::lagged_ema}) {
    const auto op = pid(gains(0.7, -0.4, 0.3, 0.2, variant));
    using Stack = limpid::PidStack<std::remove_const_t<decltype(op)>, double>;
    Stack all(op, {.heads = 2}), none(op, {.heads = 2, .keep = false});
    for (int time = 0; time < 2; ++time, all.restart(), none.restart())
      for (std::size_t l = 0; l < in.size(); ++l) {
        M wanted = in.v[l], found = in.v[l];
        all.forward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, wanted);
        none.forward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, found);
        INFO("layer " << l);
        CHECK(same_bits(found, wanted));
      }
  }
}

TEST_CASE("pid: a row without keys keeps its controller, and passes no gradient through the map") {
  const Layers in(2, 5, 3, 4);
  const M nan = M::Constant(1, 3, std::numeric_limits<double>::quiet_NaN());
  Layers odd = in;
  odd.q[1].row(2) = nan;
  auto op = pid(limpid::mask([](const limpid::At& a) { return a.q != 2; }), gains(0.8, 0.5, 0.05, 0.1));
  M out(5, 4), dq(5, 3), dk(5, 3), dv(5, 4);
  limpid::Saved<decltype(op), double> saved;
  const limpid::Inputs<decltype(op), double> layer{
      .q = odd.q[1], .k = odd.k[1], .v = odd.v[1], .reference = in.v[0], .v_prev = in.v[0]};
  limpid::forward(op, layer, out, {.saved = &saved});
  const M e = 0.1 * in.v[0] - in.v[1];
  CHECK(distance(out.row(2), 1.3 * e.row(2) + 0.05 * (in.v[0] - in.v[1]).row(2)) < 1e-15);
  M g = M::Zero(5, 4);
  g.row(2).setOnes();
  limpid::backward(op, layer, saved, g, {.q = dq, .k = dk, .v = dv});
  CHECK(dq.isZero(0));
  CHECK(dk.isZero(0));
  M want = M::Zero(5, 4);
  want.row(2).setConstant(-1.35);
  CHECK(distance(dv, want) < 1e-15);
}

TEST_CASE("pid: the map from inside is A minus the gains where a query meets its own key") {
  const Layers in(2, 9, 4, 5);
  const M q = in.q[1].bottomRows(3), r = in.v[0].bottomRows(3), zero = M::Zero(9, 5), one = M::Zero(3, 5);
  auto op = pid(gains(0.8, 0.5, 0.05, 0.1));
  const limpid::Inputs<decltype(op), double> layer{.q = q, .k = in.k[1], .v = in.v[1], .reference = r, .v_prev = r};
  M out(3, 5), rest(3, 5), map;
  limpid::Saved<decltype(op), double> saved;
  limpid::forward(op, {.q = q, .k = in.k[1], .v = zero, .reference = r, .v_prev = r}, rest);
  limpid::forward(op, layer, out, {.saved = &saved, .map = &map});
  CHECK(distance(out, map * in.v[1] + rest) < 1e-14);
  CHECK(std::abs(map.row(1).sum() - (1 - 1.35)) < 1e-14);
  M again(3, 5), left(2, 9), block(2, 3);
  limpid::map_right(op, layer, saved, in.v[1], again);
  CHECK(distance(again, map * in.v[1]) < 1e-14);
  const M x = in.v[0].topRows(2).leftCols(3);
  limpid::map_left(op, layer, saved, x, left);
  CHECK(distance(left, x * map) < 1e-14);
  limpid::map_block(op, layer, saved, 1, 5, block);
  CHECK(distance(block, map.block(1, 5, 2, 3)) < 1e-15);
}

TEST_CASE("pid decodes: the last tokens against all keys are the last rows of the whole") {
  const Layers in(4, 10, 4, 5);
  auto op = pid(causal());
  const auto whole = run(op, in);
  limpid::PidStack<decltype(op), double> stack(op, {.keep = false});
  for (std::size_t l = 0; l < in.size(); ++l) {
    M out(2, 5);
    const M q = in.q[l].bottomRows(2);
    stack.forward({.q = q, .k = in.k[l], .v = in.v[l]}, out);
    CHECK(distance(out, whole[l].bottomRows(2)) < 1e-14);
  }
}

TEST_CASE("pid says what is wrong with its state") {
  const Layers in(2, 5, 3, 4);
  M out(5, 4);
  const M narrow = M::Zero(5, 3), more = M::Zero(9, 3);
  const auto with = [&](auto set) {
    auto op = pid();
    limpid::Inputs<decltype(op), double> layer{.q = in.q[1], .k = in.k[1], .v = in.v[1], .reference = in.v[0]};
    set(layer);
    limpid::forward(op, layer, out);
  };
  CHECK_THROWS_WITH(with([&](auto& l) { l.reference = {}, l.v_prev = in.v[0]; }),
                    "pid: v_prev is given without reference, the values of layer 0");
  CHECK_THROWS_WITH(with([&](auto& l) { l.integral = narrow; }),
                    "pid: integral has 3 columns a head, wanted 4, the width of v");
  CHECK_THROWS_WITH(with([&](auto& l) { l.v_prev = l.v_before = in.v[0]; }),
                    "pid: v_before belongs to lagged_ema, with v_prev");
  M nine = M::Zero(9, 4), nine_out = nine;
  CHECK_THROWS_WITH(limpid::forward(pid(), {.q = more, .k = in.k[1], .v = in.v[1], .reference = nine}, nine_out),
                    "pid: n is 9 and m 5, wanted n <= m, as each query's own value is controlled");
  CHECK_THROWS_WITH(limpid::forward(pid({.ema = 0}), {.q = in.q[1], .k = in.k[1], .v = in.v[1]}, out),
                    "pid: ema is 0.000000, wanted a number in (0, 1]");
}

TEST_CASE("a pid stack that was moved away is empty and can begin again") {
  const auto op = pid(gains(0.3, 0.2, 0.1, 0.7));
  const Layers in(2, 9, 4, 4);
  limpid::PidStack<std::remove_const_t<decltype(op)>, double> stack(op), wanted(op);
  M out = in.v[0], right = out;
  for (std::size_t l = 0; l < 2; ++l) stack.forward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, out);
  auto taken = std::move(stack);
  CHECK(taken.size() == 2);
  CHECK(stack.size() == 0);
  stack.forward({.q = in.q[1], .k = in.k[1], .v = in.v[1]}, out);
  wanted.forward({.q = in.q[1], .k = in.k[1], .v = in.v[1]}, right);
  CHECK(same_bits(out, right));
  taken = std::move(stack);
  CHECK(taken.size() == 1);
  CHECK_THROWS_AS(stack.backward({.q = in.q[1], .k = in.k[1], .v = in.v[1]}, in.dout[1], {}), limpid::ShapeError);
}

TEST_CASE("a copy of a pid stack holds its layers and goes on by itself, forward and backward") {
  const auto op = pid(causal(), gains(0.3, 0.2, 0.1, 0.7));
  using Stack = limpid::PidStack<std::remove_const_t<decltype(op)>, double>;
  const Layers first(4, 9, 4, 4), second(4, 9, 4, 4, 2);
  const auto forward = [](Stack& stack, const Layers& in, std::size_t from, std::size_t to) {
    M out = in.v[0];
    for (std::size_t l = from; l < to; ++l) stack.forward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, out);
    return out;
  };
  const auto backward = [&](Stack& stack, const Layers& start, const Layers& end) {
    std::vector<M> dq = start.q;
    for (std::size_t l = 4; l-- > 0;) {
      const Layers& in = l < 2 ? start : end;
      limpid::Grads<std::remove_const_t<decltype(op)>, double> grad;
      grad.q = dq[l];
      stack.backward({.q = in.q[l], .k = in.k[l], .v = in.v[l]}, in.dout[l], grad);
    }
    return dq;
  };
  Stack stack(op), wanted(op), wanted_of_copy(op);
  for (Stack* one : {&stack, &wanted, &wanted_of_copy}) forward(*one, first, 0, 2);
  Stack copy = stack, assigned(op);
  forward(assigned, second, 0, 3);
  assigned = copy;
  CHECK(copy.size() == 2);
  CHECK(same_bits(forward(stack, first, 2, 4), forward(wanted, first, 2, 4)));
  const M right = forward(wanted_of_copy, second, 2, 4);
  CHECK(same_bits(forward(copy, second, 2, 4), right));
  CHECK(same_bits(forward(assigned, second, 2, 4), right));
  const auto dq = backward(wanted, first, first), dq_of_copy = backward(wanted_of_copy, first, second);
  const auto found = backward(stack, first, first), found_of_copy = backward(copy, first, second);
  for (std::size_t l = 0; l < 4; ++l) {
    CHECK(same_bits(found[l], dq[l]));
    CHECK(same_bits(found_of_copy[l], dq_of_copy[l]));
  }
}

TEST_CASE("pid stack: no tokens, no keys and no columns go through all layers and back") {
  for (const auto variant : {PidVariant::paper, PidVariant::lagged_ema})
    for (const auto& [n, m, width, wide] :
         {std::tuple<Index, Index, Index, Index>{0, 0, 4, 4}, {0, 3, 4, 4}, {3, 3, 0, 4}, {3, 3, 4, 0}, {0, 0, 0, 0}}) {
      const auto op = pid({.variant = variant});
      limpid::PidStack<std::remove_const_t<decltype(op)>, double> stack(op, {.heads = 2});
      const M q = M::Ones(n, width), k = M::Ones(m, width), v = M::Ones(m, wide), gain = M::Constant(1, 1, 0.5);
      M out(n, wide), dq = M::Ones(n, width), dk = k, dv = v, dgain = gain;
      for (int l = 0; l < 4; ++l) stack.forward({.q = q, .k = k, .v = v, .lambda_p = gain, .beta = gain}, out);
      for (int l = 0; l < 4; ++l)
        stack.backward({.q = q, .k = k, .v = v, .lambda_p = gain, .beta = gain}, out,
                       {.q = dq, .k = dk, .v = dv, .lambda_p = dgain});
      if (n == 0) CHECK((dgain.isZero(0) && dk.isZero(0) && dv.isZero(0)));
    }
}

TEST_CASE("pid stack: gradients of gains that lie over another array are refused, and nothing is taken back") {
  const auto op = pid();
  limpid::PidStack<std::remove_const_t<decltype(op)>, double> stack(op);
  M q = M::Ones(4, 3), dout = q, dq = q, gain = M::Constant(1, 1, 0.5), dgain = gain;
  M out = q;
  for (int l = 0; l < 2; ++l) stack.forward({.q = q, .k = q, .v = q, .lambda_p = gain}, out);
  const auto refused = [&](const auto& grad, const std::string& what) {
    CHECK_THROWS_WITH(stack.backward({.q = q, .k = q, .v = q, .lambda_p = gain}, dout, grad),
                      "pid: " + what + ", wanted memory of its own");
    CHECK((dq == q && dout == q && dgain(0, 0) == 0.5 && gain(0, 0) == 0.5));
  };
  using Grad = limpid::Grads<std::remove_const_t<decltype(op)>, double>;
  Grad grad;
  grad.lambda_p = gain;
  refused(grad, "gradient of lambda_p shares memory with lambda_p");
  grad.q = dq, grad.lambda_p = dq.block(0, 0, 1, 1);
  refused(grad, "gradient of lambda_p shares memory with gradient of q");
  grad.q = {}, grad.lambda_p = dout.block(0, 0, 1, 1);
  refused(grad, "gradient of lambda_p shares memory with dout");
  {
    M keys = M::Ones(1, 4), sink = M::Zero(1, 4), weights = M::Ones(1, 4), relevance = weights;
    const auto biased = pid(limpid::key_bias(keys, sink));
    limpid::PidStack<std::remove_const_t<decltype(biased)>, double> other(biased);
    for (int l = 0; l < 2; ++l) other.forward({.q = q, .k = q, .v = q, .lambda_p = gain}, out);
    for (const auto& [memory, what] : {std::pair<M*, std::string>{&keys, "key bias"},
                                       {&sink, "gradient of the key bias"},
                                       {&weights, "relevance_weights"}}) {
      limpid::Grads<std::remove_const_t<decltype(biased)>, double> over;
      over.lambda_p = memory->block(0, 1, 1, 1);
      const M before = *memory;
      CHECK_THROWS_WITH(other.backward({.q = q, .k = q, .v = q, .lambda_p = gain}, dout, over,
                                       {.relevance_weights = weights, .relevance = relevance}),
                        "pid: gradient of lambda_p shares memory with " + what + ", wanted memory of its own");
      CHECK(*memory == before);
    }
    limpid::Grads<std::remove_const_t<decltype(biased)>, double> over;
    over.lambda_p = relevance.block(0, 1, 1, 1);
    CHECK_THROWS_WITH(other.backward({.q = q, .k = q, .v = q, .lambda_p = gain}, dout, over,
                                     {.relevance_weights = weights, .relevance = relevance}),
                      "pid: relevance shares memory with gradient of lambda_p, wanted memory of its own");
  }
  grad.lambda_p = dgain;
  for (int l = 0; l < 2; ++l) stack.backward({.q = q, .k = q, .v = q, .lambda_p = gain}, dout, grad);
}
