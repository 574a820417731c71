// limpid: one call at a time for what layers save, for stacks of PID layers, decoding caches and workspaces.
// SPDX-License-Identifier: MIT
#include <functional>
#include <limpid/limpid.hpp>
#include <thread>
#include <utility>

#include "support/catch.hpp"
#include "support/executors.hpp"
#include "support/fields.hpp"

namespace {

using limpid::Index, limpid::qkv;
using suite::error_of, suite::Nosy;
using M = limpid::Mat<float>;

/// What `second` says when it is called in the middle of `first`, by the same thread and by another one.
std::vector<std::string> during(const std::function<void(limpid::ExecutorRef)>& first,
                                const std::function<void(limpid::ExecutorRef)>& second) {
  std::vector<std::string> found;
  for (bool own_thread : {true, false}) {
    bool asked = false;
    std::string text;
    Nosy nosy{[&] {
      asked = true;
      const auto call = [&] { text = error_of([&] { second({}); }); };
      own_thread ? call() : std::thread(call).join();
    }};
    first(nosy);
    CHECK(asked);
    found.push_back(text);
  }
  return found;
}

M random(Index rows, Index cols, std::uint64_t seed) {
  suite::Random r(seed);
  return suite::random_matrix<float>(r, rows, cols);
}

constexpr Index n = 300, width = 8;  // several tasks in every sweep

/// A state that forward fills and backward reads: nothing else meanwhile, but several may read.
void check_saved(const std::string& name, const std::function<void(limpid::ExecutorRef)>& forward,
                 const std::function<void(limpid::ExecutorRef)>& backward) {
  INFO(name);
  forward({});
  const std::string busy = name + ": saved is in use by another call, wanted one call at a time";
  for (const auto& found : {during(forward, forward), during(forward, backward), during(backward, forward)})
    for (const std::string& text : found) CHECK(text.find(busy) == 0);
  for (const std::string& text : during(backward, backward)) CHECK(text == "");
  forward({});
  backward({});
}

template <class Layer, class Args>
void check_layer(const std::string& name, const Layer& layer, const Args& in) {
  typename Layer::template Saved<float> saved;
  const M x = random(n, width, 20), dout = random(n, width, 21);
  M out = x;
  check_saved(
      name, [&](limpid::ExecutorRef e) { layer.forward(in, out, {.saved = &saved, .executor = e}); },
      [&](limpid::ExecutorRef e) {
        M dx = x;
        typename Layer::template Grads<float> grad;
        grad.x = dx;
        layer.template backward<float>(in, saved, dout, grad, {.executor = e});
      });
}

}  // namespace

TEST_CASE("What a layer saves is for one call at a time; several backward passes may share it") {
  const M x = random(n, width, 1), w = random(width, width, 2), b = random(1, width, 3);
  {
    limpid::MultiHeadArgs<limpid::View<float>> in;
    in.x = x, in.wq = in.wk = in.wv = in.wo = w;
    check_layer("multi-head layer", limpid::multi_head(limpid::softmax(), 2), in);
  }
  {
    limpid::MssaLayerArgs<limpid::View<float>> in;
    in.x = x, in.u = w;
    check_layer("mssa layer", limpid::mssa_layer(limpid::mssa(), 2), in);
  }
  {
    limpid::AotArgs<limpid::View<float>> in;
    in.x = x, in.u = w;
    check_layer("aot layer", limpid::aot(limpid::mssa(), {.heads = 2}), in);
  }
  {
    limpid::IstaArgs<limpid::View<float>> in;
    in.x = x, in.dictionary = w;
    check_layer("ista", limpid::Ista{}, in);
  }
  {
    limpid::CrateArgs<limpid::View<float>> in;
    in.x = x, in.u = w, in.dictionary = w;
    check_layer("crate block", limpid::crate(limpid::mssa(), {.heads = 2}), in);
  }
  const M dout = random(n, width, 4);
  M out = x, dx = x;
  {
    const auto layer = limpid::two_map_layer(limpid::differential(), 1);
    limpid::TwoMapLayerArgs<limpid::View<float>> in;
    in.x = x, in.wq = in.wk = in.wv = in.wo = w;
    limpid::TwoMapLayerSaved<decltype(layer.op), float> saved;
    check_saved(
        "layer", [&](limpid::ExecutorRef e) { layer.forward(in, out, {.saved = &saved, .executor = e}); },
        [&](limpid::ExecutorRef e) {
          M own = x;
          limpid::TwoMapLayerArgs<limpid::MutView<float>> grad;
          grad.x = own;
          layer.backward(in, saved, dout, grad, {.executor = e});
        });
  }
  {
    const auto layer = limpid::aot(limpid::mssa(), {.heads = 2});
    const limpid::AotStack<decltype(layer.op)> stack{layer};
    std::vector<limpid::AotArgs<M>> parameters(2);
    for (auto& p : parameters) p.u = w;
    limpid::AotStackSaved<decltype(layer.op), float> saved;
    check_saved(
        "aot stack",
        [&](limpid::ExecutorRef e) { stack.forward(x, parameters, out, {.saved = &saved, .executor = e}); },
        [&](limpid::ExecutorRef e) {
          M own = x;
          std::vector<limpid::AotArgs<limpid::MutView<float>>> grad(2);
          stack.backward(x, parameters, saved, dout, own, grad, {.executor = e});
        });
  }
  {
    limpid::LayerNormSaved<float> saved;
    check_saved(
        "layer_norm",
        [&](limpid::ExecutorRef e) { limpid::layer_norm(x, b, b, out, {.saved = &saved, .executor = e}); },
        [&](limpid::ExecutorRef e) {
          M own = x;
          limpid::layer_norm_backward(x, b, std::as_const(saved), dout, {own, {}, {}}, {.executor = e});
        });
  }
  {
    limpid::BoostingBlockSaved<float> saved;
    const auto identity = [](limpid::View<float> from, limpid::MutView<float> to) {
      limpid::detail::copy<float>(from, to);
    };
    const auto pass = [](limpid::View<float>, limpid::View<float> from, limpid::MutView<float> to) {
      limpid::detail::copy<float>(from, to);
    };
    check_saved(
        "boosting block",
        [&](limpid::ExecutorRef e) {
          M own = x, next = x;
          limpid::boosting_block({.x = x}, identity, own, next, &saved, {.executor = e});
        },
        [&](limpid::ExecutorRef e) {
          M own = x;
          limpid::boosting_block_backward({.x = x}, std::as_const(saved), pass, dout, {}, {.x = own}, {.executor = e});
        });
  }
}

TEST_CASE("A stack of PID layers and a decoding cache are for one call at a time") {
  const M q = random(n, width, 1), k = random(n, width, 2), v = random(n, width, 3), dout = random(n, width, 4);
  const auto refused = [](const std::string& name, const std::vector<std::string>& found) {
    for (const std::string& text : found)
      CHECK(text == name + " is in use by another call, wanted one call at a time, or one for each");
  };
  const auto op = limpid::pid();
  limpid::PidStack<std::remove_const_t<decltype(op)>, float> stack(op);
  const auto forward = [&](limpid::ExecutorRef e) {
    M out = v;
    stack.forward({.q = q, .k = k, .v = v}, out, {.executor = e});
  };
  const auto backward = [&](limpid::ExecutorRef e) {
    M dv = v;
    stack.backward({.q = q, .k = k, .v = v}, dout, {.v = dv}, {.executor = e});
  };
  const auto restart = [&](limpid::ExecutorRef) { stack.restart(); };
  for (const auto& other :
       {std::function<void(limpid::ExecutorRef)>(forward), std::function<void(limpid::ExecutorRef)>(backward),
        std::function<void(limpid::ExecutorRef)>(restart)}) {
    stack.restart();
    for (int l = 0; l < 4; ++l) forward({});
    refused("pid stack", during(backward, other));
    refused("pid stack", during(forward, other));
    CHECK(stack.size() == 6);
  }

  const auto decoding = limpid::twicing(limpid::causal());
  limpid::TwicingCache<std::remove_const_t<decltype(decoding)>, float> cache(decoding, {.heads = 2});
  const M qi = random(1, width, 5), ki = random(1, width, 6), vi = random(1, width, 7);
  const auto step = [&](limpid::ExecutorRef e) {
    M out = vi;
    cache.step(qkv(qi, ki, vi), out, e);
  };
  refused("twicing cache", during(step, step));
  refused("twicing cache", during(step, [&](limpid::ExecutorRef) { cache.clear(); }));
  refused("twicing cache", during(step, [&](limpid::ExecutorRef) { cache.reserve(100); }));
  CHECK(cache.size() == 6);
}

TEST_CASE("A rollout is for one call at a time, and so is what its layers saved") {
  const M q = random(n, width, 1), k = random(n, width, 2), v = random(n, width, 3), drows = random(1, n, 4);
  const auto op = limpid::softmax();
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  const auto forward = [&](limpid::ExecutorRef e) {
    M out = v;
    limpid::forward(op, qkv(q, k, v), out, {.saved = &saved, .executor = e});
  };
  forward({});
  limpid::Rollout<float> rollout({.gradient = true});
  const auto layer = [&](limpid::ExecutorRef e) { rollout.layer(op, qkv(q, k, v), saved, {.executor = e}); };
  const auto gradient = [&](limpid::ExecutorRef e) {
    M dq = q;
    rollout.gradient(op, qkv(q, k, v), saved, {.q = dq, .k = {}, .v = {}}, {.executor = e});
  };
  const std::vector<std::function<void(limpid::ExecutorRef)>> others = {
      layer,
      gradient,
      [&](limpid::ExecutorRef) { rollout.start(n, 1); },
      [&](limpid::ExecutorRef) { rollout.start(drows); },
      [&](limpid::ExecutorRef) { rollout.rows(); },
      [&](limpid::ExecutorRef) { rollout.start_gradient(drows); }};
  for (const auto& other : others) {
    rollout.start(n, 3);
    for (int l = 0; l < 6; ++l) layer({});
    const M before = rollout.rows();
    const auto check = [&](const std::function<void(limpid::ExecutorRef)>& first) {
      for (const std::string& text : during(first, other))
        CHECK(text == "rollout is in use by another call, wanted one call at a time, or one for each");
      for (const std::string& text : during(first, forward))
        CHECK(text.find("softmax: saved is in use by another call") == 0);
    };
    check(layer);
    CHECK(rollout.rows() != before);
    rollout.start_gradient(drows);
    check(gradient);
    gradient({});
  }
}

namespace {

/// A number that calls something when it is assigned or added to.
struct Caller {
  float value = 0;
  static std::function<void()>& other() {
    static std::function<void()> call;
    return call;
  }
  static void ring() {
    if (const auto once = std::exchange(other(), nullptr)) once();
  }
  Caller() = default;
  Caller(float v) : value(v) {}  // NOLINT: implicit, as for any number
  Caller(const Caller&) = default;
  Caller& operator=(const Caller& b) {
    ring();
    value = b.value;
    return *this;
  }
  Caller& operator+=(const Caller& b) {
    ring();
    value += b.value;
    return *this;
  }
  [[maybe_unused]] friend Caller operator+(const Caller& a, const Caller& b) { return {a.value + b.value}; }
};

}  // namespace

template <>
struct Eigen::NumTraits<Caller> : Eigen::NumTraits<float> {
  using Real = Caller;
  using NonInteger = Caller;
  using Nested = Caller;
};

TEST_CASE("A relevance is for one call at a time") {
  limpid::Relevance<Caller> relevance({5, 3});
  const std::vector<std::function<void()>> writers = {[&] { relevance.start(2, 0); }, [&] { relevance.ask(0, 1); },
                                                      [&] { relevance.stage(); }};
  std::vector<std::function<void()>> others = writers;
  others.push_back([&] { relevance.of(1); });
  for (const auto& first : writers)
    for (const auto& second : others)
      for (const bool own_thread : {true, false}) {
        relevance.start(1, 0);
        relevance.ask(0, 1);
        std::string text;
        bool asked = false;
        Caller::other() = [&] {
          asked = true;
          const auto call = [&] { text = error_of(second); };
          own_thread ? call() : std::thread(call).join();
        };
        first();
        CHECK(asked);
        CHECK(text == "relevance is in use by another call, wanted one call at a time, or one for each");
        second();  // and is free again
        CHECK_THROWS_WITH(relevance.ask(2), "relevance: stream is 2, wanted it in [0, 2)");
        second();
      }
}

TEST_CASE("The workspace of an operator's call is refused inside it, that of a layer's serves what it is made of") {
  const M x = random(20, width, 1), w = random(width, width, 2), dout = random(20, width, 3);
  M out = x, second = x, alone = x;
  limpid::Workspace workspace;
  const auto plain = limpid::softmax();
  const auto layer = limpid::multi_head(plain, 2);
  limpid::MultiHeadArgs<limpid::View<float>> weights;
  weights.x = x, weights.wq = weights.wk = weights.wv = weights.wo = w;
  const std::vector<std::function<void()>> others = {
      [&] { limpid::forward(plain, qkv(x, x, x), second, {.workspace = &workspace}); },
      [&] { layer.forward(weights, second, {.workspace = &workspace}); },
      [&] { limpid::linear(x, w, limpid::View<float>(), second, {.workspace = &workspace}); }};
  limpid::forward(plain, qkv(x, x, x), alone);
  for (const auto& other : others) {
    bool asked = false;
    std::string found;
    const auto nosy = [&] {
      if (!std::exchange(asked, true)) found = error_of(other);
    };
    const auto masked = limpid::softmax(limpid::mask([&](const limpid::At&) {
      nosy();
      return true;
    }));
    const auto scored = limpid::softmax(limpid::score_mod([&](auto s, const limpid::At&) { return s; },
                                                          [&](auto s, const limpid::At&) {
                                                            nosy();
                                                            return decltype(s)(1);
                                                          }));
    const std::string busy = "workspace is in use by the call that this one is made in, wanted one call at a time";
    limpid::forward(masked, qkv(x, x, x), out, {.workspace = &workspace});
    CHECK(found.find(busy) == 0);
    CHECK(out == alone);
    other();  // open again

    asked = false, found.clear();
    limpid::multi_head(masked, 2).forward(weights, out, {.workspace = &workspace});
    CHECK(found.find(busy) == 0);
    other();

    limpid::Saved<std::remove_const_t<decltype(masked)>, float> saved;
    asked = true;
    limpid::forward(masked, qkv(x, x, x), out, {.saved = &saved, .workspace = &workspace});
    asked = false, found.clear();
    M row(1, 20);
    limpid::map_block(masked, qkv(x, x, x), saved, 0, 0, row, {.workspace = &workspace});
    CHECK(found.find(busy) == 0);
    other();

    limpid::Saved<std::remove_const_t<decltype(scored)>, float> scores;
    M dq = x, dk = x, dv = x;
    limpid::forward(scored, qkv(x, x, x), out, {.saved = &scores, .workspace = &workspace});
    asked = false, found.clear();
    limpid::backward(scored, qkv(x, x, x), scores, dout, limpid::grads(dq, dk, dv), {.workspace = &workspace});
    CHECK(found.find(busy) == 0);
    other();
  }

  // refused calls and functions that throw leave a workspace and a saved state as they were
  limpid::Saved<std::remove_const_t<decltype(plain)>, float> kept;
  limpid::forward(plain, qkv(x, x, x), out, {.saved = &kept});
  const auto refused = limpid::softmax(limpid::mask([&](const limpid::At&) -> bool {
    limpid::forward(plain, qkv(x, x, x), second, {.saved = &kept, .workspace = &workspace});
    return true;
  }));
  CHECK_THROWS_AS(limpid::forward(refused, qkv(x, x, x), out, {.workspace = &workspace}), limpid::ShapeError);
  M dq = x, dk = x, dv = x;
  limpid::backward(plain, qkv(x, x, x), kept, dout, limpid::grads(dq, dk, dv), {.workspace = &workspace});

  // a sublayer may use the workspace of its block
  const auto sublayer = [&](limpid::Workspace* of) {
    return [&, of](limpid::View<float> s, limpid::MutView<float> z) {
      limpid::MultiHeadArgs<limpid::View<float>> in = weights;
      in.x = s;
      layer.forward(in, z, {.workspace = of});
    };
  };
  M next = x, wanted = x;
  limpid::boosting_block({.x = x}, sublayer(nullptr), wanted, next);
  limpid::boosting_block({.x = x}, sublayer(&workspace), out, next, nullptr, {.workspace = &workspace});
  CHECK(out == wanted);
}
