// limpid: example 2. A training loop: forward keeps what backward needs, and after the first step nothing is allocated.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

int main() {
  // 24 tokens of width 8 look back at each other; q, k and v are the parameters, and out should become the target.
  const Index n = 24, d = 8;
  Mat<float> q(n, d), k(n, d), v(n, d), target(n, d);
  for (Index i = 0; i < n * d; ++i) {
    const float t = static_cast<float>(i);
    q.data()[i] = std::sin(1.3f * t), k.data()[i] = std::cos(0.7f * t), v.data()[i] = 0;
    target.data()[i] = std::sin(0.05f * t);
  }

  const auto op = limpid::softmax(limpid::causal());
  limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
  limpid::Workspace workspace;
  Mat<float> out(n, d), dout(n, d), dq(n, d), dk(n, d), dv(n, d);
  for (int step = 0; step <= 300; ++step) {
    limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved, .workspace = &workspace});
    dout = out - target;  // of loss = |out - target|^2 / 2
    const float loss = 0.5f * dout.squaredNorm();
    limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv), {.workspace = &workspace});
    const float rate = 0.02f;
    q -= rate * dq, k -= rate * dk, v -= rate * dv;
    if (step % 100 == 0) std::printf("step %3d: loss %.2f\n", step, loss);
  }
}

// prints: step   0: loss 47.13
// prints: step 100: loss 15.87
// prints: step 200: loss 0.70
// prints: step 300: loss 0.38
