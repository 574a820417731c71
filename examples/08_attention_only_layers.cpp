// limpid: example 8. A stack of attention-only layers (AoT) learns to denoise: every layer is x + eta MSSA(x), and its
// one matrix U has to find the subspaces near which the tokens lie.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/layer/aot.hpp>
#include <vector>

using limpid::Index;
using limpid::Mat;

int main() {
  // 90 tokens of width 12, a third of them near each of 3 subspaces of dimension 4, noise 0.3 in the others.
  const Index heads = 3, p = 4, width = heads * p, depth = 2;
  const auto data = limpid::subspace_data<double>({.tokens = 90, .classes = heads, .width = p, .delta = 0.3});
  const Index n = data.x.rows();
  Mat<double> target(n, width), out(n, width), dout(n, width), dx(n, width);
  for (Index i = 0; i < n; ++i) {  // twice the signal, and no noise
    const auto u = data.u.middleCols(data.labels[std::size_t(i)] * p, p);
    target.row(i) = 2 * data.x.row(i) * u * u.transpose();
  }

  std::vector<limpid::AotArgs<Mat<double>>> layers(depth), gradients(depth);
  for (Index l = 0; l < depth; ++l) {
    auto &layer = layers[std::size_t(l)], &gradient = gradients[std::size_t(l)];
    layer.u = gradient.u = Mat<double>(width, width);
    layer.eta = gradient.eta = Mat<double>::Constant(1, 1, 0.5);
    for (Index i = 0; i < width * width; ++i)
      layer.u.data()[i] = 0.4 * std::cos(1.1 * static_cast<double>((i + 50 * l) * i % 97));
  }

  const auto layer = limpid::aot(limpid::mssa(), {.heads = heads, .norm = false});
  const limpid::AotStack<std::remove_const_t<decltype(layer.op)>> stack{layer};
  limpid::AotStackSaved<std::remove_const_t<decltype(layer.op)>, double> saved;
  limpid::Workspace workspace;
  for (int step = 0; step <= 1000; ++step) {
    stack.forward(data.x, layers, out, {.saved = &saved, .workspace = &workspace});
    dout = out - target;  // of loss = |out - target|^2 / 2
    if (step % 500 == 0)
      std::printf("step %4d: loss %.1f, signal over noise %.2f\n", step, dout.squaredNorm() / 2,
                  limpid::subspace_snr(out, data.u, data.labels, heads)[0]);
    stack.backward(data.x, layers, saved, dout, dx, gradients, {.workspace = &workspace});
    for (std::size_t l = 0; l < layers.size(); ++l) {
      layers[l].u -= 0.0005 * gradients[l].u;
      layers[l].eta -= 0.0005 * gradients[l].eta;
    }
  }
}

// prints: step    0: loss 165.8, signal over noise 2.17
// prints: step  500: loss 92.4, signal over noise 2.89
// prints: step 1000: loss 85.4, signal over noise 3.02
