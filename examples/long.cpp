// limpid: a stack over many thousand tokens explained in a few MiB, where the maps themselves would take tens of GiB.
// SPDX-License-Identifier: MIT
//
//     long [--tokens N ...] [--layers L] [--heads H] [--threads T]
//
// Transformer blocks of random weights, 32 columns a head, over tokens of noise; the token in the middle, among all the
// others, looks like the first one, which the answer is read from. One backward pass says which tokens the answer rests
// on: relevance (Chefer, Gur and Wolf 2021, arXiv 2103.15679), rollout (Abnar and Zuidema 2020, arXiv 2005.00928) and
// the importance of every head. It should find the token, and does. What that takes beyond the backward pass is
// measured, every allocation counted; what the maps and their gradients of all layers and heads would take, as methods
// want them that keep them, is computed: 2 layers heads n^2 floats. Time goes with n^2: 65536 tokens take some minutes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/explain/explanation.hpp>
#include <limpid/layer/transformer_block.hpp>
#include <limpid/op/softmax.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../bench/allocation.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using Block = limpid::TransformerBlock<decltype(limpid::softmax())>;

constexpr Index head_width = 32;
constexpr double mib = 1 << 20, gib = 1 << 30;

Mat<float> noise(std::mt19937_64& random, Index rows, Index cols, float size) {
  Mat<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = size * (static_cast<float>(random() >> 40) * 0x1p-23f - 1);
  return m;
}

class Stack {
 public:
  Stack(Index tokens, Index layers, Index heads, limpid::ExecutorRef executor)
      : executor_(executor),
        block_(limpid::transformer_block(limpid::softmax(), {.heads = heads, .eps = 1e-6})),
        saved_(static_cast<std::size_t>(layers)) {
    std::mt19937_64 random(1);
    const Index width = heads * head_width;
    const auto near_identity = [&](float scale) {
      Mat<float> w = noise(random, width, width, 0.05f);
      for (Index i = 0; i < width; ++i) w(i, i) += scale;
      return w;
    };
    parameters_.wq = near_identity(2), parameters_.wk = near_identity(2);
    parameters_.wv = near_identity(0.5f), parameters_.wo = near_identity(0.5f);
    parameters_.w1 = noise(random, width, 2 * width, 0.1f), parameters_.w2 = noise(random, 2 * width, width, 0.1f);
    x_.push_back(noise(random, tokens, width, 1));
    x_.front().row(0) = 4 * noise(random, 1, width, 1);
    x_.front().row(tokens / 2) += x_.front().row(0);
  }
  Index tokens() const { return x_.front().rows(); }

  void forward() {
    for (std::size_t l = 0; l < saved_.size(); ++l) {
      x_.emplace_back(tokens(), x_.front().cols());
      block_.forward(in(l), x_.back(), {.saved = &saved_[l], .workspace = &workspace_, .executor = executor_});
    }
  }
  /// From half the square of what the first token became; why may be null.
  void backward(limpid::Explanation<float>* why) {
    Mat<float> d = Mat<float>::Zero(tokens(), x_.front().cols()), dx = d;
    d.row(0) = x_.back().row(0);
    for (std::size_t l = saved_.size(); l-- > 0;) {
      const auto pass = [&](limpid::BackwardCall<float> ask) {
        ask.workspace = &workspace_, ask.executor = executor_;
        block_.backward(in(l), saved_[l], d, {.x = dx}, ask);
      };
      if (why == nullptr)
        pass({});
      else
        why->layer(block_.op, saved_[l].attention, pass, {.workspace = &workspace_, .executor = executor_});
      d.swap(dx);
    }
  }

 private:
  limpid::TransformerBlockArgs<limpid::View<float>> in(std::size_t layer) const {
    limpid::TransformerBlockArgs<limpid::View<float>> args = parameters_;
    args.x = x_[layer];
    return args;
  }
  limpid::ExecutorRef executor_;
  Block block_;
  limpid::TransformerBlockArgs<Mat<float>> parameters_;  // of every block
  std::vector<Mat<float>> x_;
  std::vector<Block::Saved<float>> saved_;
  limpid::Workspace workspace_;
};

/// The most that f held at a time beyond what was held before it, in bytes, and the seconds it took.
template <class F>
std::pair<double, double> cost_of(F&& f) {
  bench::reset_peak_live();
  const auto before = static_cast<double>(bench::live_bytes());
  const auto start = std::chrono::steady_clock::now();
  f();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {static_cast<double>(bench::peak_live_bytes()) - before, seconds};
}

/// The token that has most in a row, the first left out.
Index most_of(const Mat<float>& row) {
  Index at = 0;
  row.rightCols(row.cols() - 1).row(0).maxCoeff(&at);
  return at + 1;
}

void run(Index tokens, Index layers, Index heads, limpid::ExecutorRef executor) {
  const auto say = [&](const char* what) { std::fprintf(stderr, "long: %ld tokens, %s\n", long(tokens), what); };
  say("forward");
  Stack stack(tokens, layers, heads, executor);
  const auto forward = cost_of([&] { stack.forward(); });
  say("backward");
  const auto first = cost_of([&] { stack.backward(nullptr); });  // which leaves its scratch for the next one
  const auto backward = cost_of([&] { stack.backward(nullptr); });
  say("backward, explained");
  limpid::Explanation<float> why({.rollout = limpid::RolloutOptions{}, .heads = true});
  const auto explained = cost_of([&] {
    why.start(tokens, 0);
    stack.backward(&why);
  });
  const Index found = most_of(why.relevance()), rolled = most_of(why.rollout());
  const float sum = why.rollout().sum();
  if (!(sum > 0.99f && sum < 1.01f)) throw std::logic_error("the row of rollout sums to " + std::to_string(sum));
  Index layer = 0, head = 0;
  float most = -1;
  for (Index l = 0; l < layers; ++l)
    for (Index h = 0; h < heads; ++h)
      if (const float size = std::abs(why.heads(l)(0, h)); size > most) most = size, layer = l, head = h;
  const double maps = 2 * static_cast<double>(layers * heads) * static_cast<double>(tokens * tokens) * sizeof(float);
  std::printf("%7ld  %9.1f  %9.1f  %9.1f  %12.1f  %12.1f  %7.1f  %ld%s, %ld%s  %ld, %ld\n", long(tokens),
              forward.second, backward.second, explained.second, first.first / mib,
              (explained.first - backward.first) / mib, maps / gib, long(found), found == tokens / 2 ? "" : " (!)",
              long(rolled), rolled == tokens / 2 ? "" : " (!)", long(layer), long(head));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Index> tokens{4096, 16384};
  Index layers = 3, heads = 2;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  CLI::App app("Explains a stack over many thousand tokens without a map.");
  app.add_option("--tokens", tokens, "numbers of tokens")->check(CLI::Range(4, 1 << 20))->capture_default_str();
  app.add_option("--layers", layers)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--heads", heads)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--threads", threads)->check(CLI::Range(1, 4096))->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  limpid::ThreadPool pool(threads);
  std::printf("%ld layers of %ld heads, 32 columns each, %d threads; the token to find is in the middle\n\n",
              long(layers), long(heads), threads);
  std::printf("                          seconds                 MiB it takes          GiB  most relevant,  most\n");
  std::printf(
      " tokens    forward   backward  explained      backward  explaining +     maps  most by rollout  important "
      "layer, head\n");
  for (const Index n : tokens) run(n, layers, heads, pool);
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "long: %s\n", problem.what());
  return 1;
}
