// limpid: example 9. Explaining a stack: which words and which image patches an answer rests on. Two streams, text and
// image; relevance goes down with the backward pass, so no map is ever stored.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/limpid.hpp>
#include <vector>

using limpid::Index;
using limpid::Mat;

constexpr Index text = 0, image = 1, words = 4, patches = 6, width = 8, heads = 2;

/// x <- x + attention: tokens of one stream attend to those of a stream, two heads side by side.
struct Attention {
  Index to, from;
  Mat<double> q, kv;
  limpid::Saved<decltype(limpid::softmax()), double> saved;
};

int main() {
  std::vector<Mat<double>> x{Mat<double>(words, width), Mat<double>(patches, width)};
  for (Mat<double>& stream : x)
    for (Index i = 0; i < stream.size(); ++i)
      stream.data()[i] = 1.5 * std::sin(static_cast<double>(i * i + stream.rows()));

  // Words look at words, patches at patches, then words at patches, then words at words.
  std::vector<Attention> layers{
      {text, text, {}, {}, {}}, {image, image, {}, {}, {}}, {text, image, {}, {}, {}}, {text, text, {}, {}, {}}};
  for (Attention& a : layers) {
    a.q = x[std::size_t(a.to)], a.kv = x[std::size_t(a.from)];
    Mat<double> out(a.q.rows(), width);
    limpid::forward(limpid::softmax(), limpid::qkv(a.q, a.kv, a.kv), out, {.heads = heads, .saved = &a.saved});
    x[std::size_t(a.to)] += out;
  }

  // The answer is read from word 0: y = sum of its entries.
  std::vector<Mat<double>> dx{Mat<double>::Zero(words, width), Mat<double>::Zero(patches, width)};
  dx[text].row(0).setOnes();
  limpid::Relevance<double> relevance({words, patches});
  relevance.start(0, text);
  for (auto a = layers.rbegin(); a != layers.rend(); ++a) {
    Mat<double> dq = a->q, dk = a->kv, dv = a->kv;
    limpid::BackwardCall<double> call = relevance.ask(a->to, a->from);
    limpid::backward(limpid::softmax(), limpid::qkv(a->q, a->kv, a->kv), a->saved, dx[std::size_t(a->to)],
                     limpid::grads(dq, dk, dv), call);
    relevance.stage();
    dx[std::size_t(a->to)] += dq;
    dx[std::size_t(a->from)] += dk + dv;
  }

  std::printf("words:  ");
  for (Index j = 0; j < words; ++j) std::printf(" %.3f", relevance.of(text)(0, j));
  std::printf("\npatches:");
  for (Index j = 0; j < patches; ++j) std::printf(" %.3f", relevance.of(image)(0, j));

  // Rollout asks the maps alone: how much of each word is in word 0 after the two layers of words.
  limpid::Rollout<double> rollout;
  rollout.start(words, 0);
  for (std::size_t l : {3, 0})
    rollout.layer(limpid::softmax(), limpid::qkv(layers[l].q, layers[l].kv, layers[l].kv), layers[l].saved);
  std::printf("\nrollout:");
  for (Index j = 0; j < words; ++j) std::printf(" %.3f", rollout.rows()(0, j));
  std::printf(", together %.3f\n", rollout.rows().sum());
}

// prints: words:   6.109 0.000 0.599 0.049
// prints: patches: 0.006 0.030 0.042 0.000 1.427 0.000
// prints: rollout: 0.709 0.020 0.245 0.027, together 1.000
