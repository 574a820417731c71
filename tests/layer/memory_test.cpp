// limpid: layers, stacks of PID attention and explanations allocate nothing from their second step on.
// SPDX-License-Identifier: MIT
#include "support/allocation.hpp"
// allocation.hpp comes first
#include <limpid/explain/relevance.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/layer/crate.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <limpid/layer/transformer_block.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>

#include "support/catch.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index;
using M = limpid::Mat<float>;

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<float>(r, rows, cols);
}
/// Heap calls of the second of two runs.
template <class F>
std::size_t second_run(F&& run) {
  run();
  const suite::HeapWatch watch;
  run();
  return watch.calls() + watch.eigen_calls();
}

}  // namespace

TEST_CASE("a stack of pid layers, started again, allocates nothing") {
  const M q = random(20, 8, 1), k = random(20, 8, 2), v = random(20, 12, 3), dout = random(20, 12, 4);
  const M p = M::Constant(1, 1, 0.5f);
  M out = v, dq = q, dk = k, dv = v, dp = p;
  auto op = limpid::pid(limpid::causal(), {.variant = limpid::PidVariant::lagged_ema});
  limpid::PidStack<decltype(op), float> stack(op, {.heads = 2});
  limpid::Workspace workspace;
  CHECK(second_run([&] {
          stack.restart();
          for (int l = 0; l < 5; ++l)
            stack.forward({.q = q, .k = k, .v = v, .lambda_p = p}, out, {.workspace = &workspace});
          for (int l = 0; l < 5; ++l)
            stack.backward({.q = q, .k = k, .v = v, .lambda_p = p}, dout, {.q = dq, .k = dk, .v = dv, .lambda_p = dp},
                           {.workspace = &workspace});
        }) == 0);
}

TEST_CASE(
    "a stack of pid layers that keeps nothing has the places of three layers, and none more however deep it gets") {
  const M q = random(20, 8, 1), k = random(20, 8, 2), v = random(20, 12, 3);
  M out = v;
  for (const auto variant : {limpid::PidVariant::paper, limpid::PidVariant::lagged_ema}) {
    auto op = limpid::pid(limpid::causal(), {.variant = variant});
    limpid::PidStack<decltype(op), float> stack(op, {.heads = 2, .keep = false});
    limpid::Workspace workspace;
    const auto forward = [&] { stack.forward({.q = q, .k = k, .v = v}, out, {.workspace = &workspace}); };
    for (int l = 0; l < 3; ++l) forward();
    const suite::HeapWatch watch;
    for (int l = 3; l < 9; ++l) forward();
    CHECK(watch.calls() + watch.eigen_calls() == 0);
  }
}

TEST_CASE("a crate block and a stack of aot layers allocate nothing in their second step") {
  const M x = random(20, 8, 1), dout = random(20, 8, 2);
  M out = x, dx = x;
  limpid::Workspace workspace;

  limpid::CrateArgs<M> block;
  block.u = random(8, 8, 3), block.wo = random(8, 8, 4), block.bo = random(1, 8, 5), block.dictionary = random(8, 8, 6);
  block.gamma1 = block.gamma2 = random(1, 8, 7), block.x = x;
  limpid::CrateArgs<M> gradient = block;
  const auto crate = limpid::crate(limpid::mssa(), {.heads = 2});
  limpid::CrateSaved<decltype(crate.op), float> saved;
  CHECK(second_run([&] {
          crate.forward(block, out, {.saved = &saved, .workspace = &workspace});
          crate.backward(block, saved, dout, gradient, {.workspace = &workspace});
        }) == 0);

  std::vector<limpid::AotArgs<M>> layers(3);
  for (auto& l : layers) l.u = random(8, 8, 8), l.gamma = random(1, 8, 9), l.eta = M::Constant(1, 1, 0.5f);
  std::vector<limpid::AotArgs<M>> gradients = layers;
  const limpid::AotStack<limpid::Mssa<limpid::Chain<>>> stack{limpid::aot(limpid::mssa(), {.heads = 2})};
  limpid::AotStackSaved<limpid::Mssa<limpid::Chain<>>, float> kept;
  CHECK(second_run([&] {
          stack.forward(x, layers, out, {.saved = &kept, .workspace = &workspace});
          stack.backward(x, layers, kept, dout, dx, gradients, {.workspace = &workspace});
        }) == 0);
}

TEST_CASE("a transformer block allocates nothing in its second step") {
  limpid::TransformerBlockArgs<M> p;
  p.x = random(20, 8, 1), p.context = random(9, 6, 2), p.wq = p.wk = p.wv = p.wo = p.wq2 = p.wo2 = random(8, 8, 3);
  p.wk2 = p.wv2 = random(6, 8, 4), p.w1 = p.w3 = random(8, 12, 5), p.w2 = random(12, 8, 6), p.scale1 = random(1, 8, 7);
  limpid::TransformerBlockArgs<M> gradient = p;
  const auto op = limpid::softmax();
  for (const limpid::NormPlace place : {limpid::NormPlace::pre, limpid::NormPlace::post}) {
    const auto block = limpid::transformer_block(
        op, op, {.heads = 2, .eps = 1e-6, .place = place, .mlp = limpid::swiglu(), .qk_norm_eps = 1e-6});
    std::remove_const_t<decltype(block)>::Saved<float> saved;
    M out = p.x, dout = random(20, 8, 8);
    limpid::Workspace workspace;
    CHECK(second_run([&] {
            block.forward(p, out, {.saved = &saved, .workspace = &workspace});
            block.backward(p, saved, dout, gradient, {.workspace = &workspace});
          }) == 0);
  }
}

TEST_CASE("rollout and relevance, started again, allocate nothing") {
  const M q = random(40, 8, 1), k = random(40, 8, 2), v = random(40, 8, 3), dout = random(40, 8, 4);
  M out = v;
  const auto op = limpid::nlm();
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  limpid::Workspace workspace;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.heads = 2, .saved = &saved, .workspace = &workspace});
  for (const limpid::Fuse fuse : {limpid::Fuse::mean, limpid::Fuse::max}) {
    limpid::Rollout<float> rollout({.fuse = fuse});
    CHECK(second_run([&] {
            rollout.start(40, 3);
            for (int l = 0; l < 3; ++l) rollout.layer(op, limpid::qkv(q, k, v), saved);
          }) == 0);
  }
  limpid::Relevance<float> relevance({40});
  CHECK(second_run([&] {
          relevance.start(3);
          for (int l = 0; l < 3; ++l) {
            limpid::BackwardCall<float> call = relevance.ask();
            call.workspace = &workspace;
            limpid::backward(op, limpid::qkv(q, k, v), saved, dout, {}, call);
            relevance.stage();
          }
        }) == 0);
}
