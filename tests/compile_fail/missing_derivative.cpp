// limpid: backward through a score function that came without its derivative.
// SPDX-License-Identifier: MIT
// refused: backward needs the derivative of the score function
#include <cmath>
#include <limpid/limpid.hpp>

void train(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v,
           const limpid::Mat<float>& dout, limpid::Mat<float>& dq, limpid::Mat<float>& dk, limpid::Mat<float>& dv) {
  const auto cap = [](auto s, limpid::At) { return 30 * std::tanh(s / 30); };
#if LIMPID_MISTAKE
  auto op = limpid::softmax(limpid::score_mod(cap));
#else
  const auto slope = [](auto s, limpid::At) { return 1 - std::tanh(s / 30) * std::tanh(s / 30); };
  auto op = limpid::softmax(limpid::score_mod(cap, slope));
#endif
  limpid::Mat<float> out(q.rows(), v.cols());
  limpid::Saved<decltype(op), float> saved;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
}
