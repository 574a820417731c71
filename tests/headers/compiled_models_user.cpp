// limpid: a program that has limpid::compiled_models do what it holds: it links, and layers and files are as ever.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <limpid/compiled_models.hpp>

namespace {

using limpid::Index, limpid::Mat;

/// A transformer block of weights that add nothing is x, twice normed.
bool block_is_right() {
  const Index n = 5, width = 8;
  Mat<float> x(n, width), zero = Mat<float>::Zero(width, width), out(n, width), dx(n, width);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i % 7) - 3.0F;
  const auto block = limpid::transformer_block(
      limpid::softmax(), {.heads = 2, .eps = 1e-6, .place = limpid::NormPlace::post, .mlp = std::nullopt});
  limpid::TransformerBlockArgs<limpid::View<float>> in;
  in.x = x, in.wq = zero, in.wk = zero, in.wv = zero, in.wo = zero;
  decltype(block)::Saved<float> saved;
  block.forward(in, out, {.saved = &saved});
  limpid::TransformerBlockArgs<limpid::Gradient<float>> grad;
  grad.x = dx;
  block.backward(in, saved, out, grad);
  for (Index i = 0; i < n; ++i) {
    const float mean = x.row(i).mean(), deviation = std::sqrt((x.row(i).array() - mean).square().mean() + 1e-6F);
    for (Index c = 0; c < width; ++c)
      if (!(std::abs(out(i, c) - (x(i, c) - mean) / deviation) < 1e-5F)) return false;
  }
  return dx.allFinite();
}

/// What reads files is in the library, and what it throws is caught here.
bool file_is_refused() {
  try {
    const limpid::model::Bert<float> bert(limpid::io::Checkpoint("no such file"), {.heads = 2});
    auto saved = bert.saved(limpid::softmax());
    bert.forward(limpid::softmax(), {0}, {}, saved);
    bert.backward(limpid::softmax(), saved, limpid::View<float>(saved.hidden), nullptr);
  } catch (const limpid::io::FormatError& error) {
    return std::string(error.what()).find("no such file") != std::string::npos;
  }
  return false;
}

}  // namespace

int main() {  // NOLINT(bugprone-exception-escape): a test that throws has failed
  if (!block_is_right()) return std::puts("the block is wrong"), 1;
  if (!file_is_refused()) return std::puts("a file that is not there is not refused"), 1;
  std::puts("as ever");
  return 0;
}
