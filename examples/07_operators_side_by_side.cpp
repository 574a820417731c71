// limpid: example 7. The same tokens through five operators, forward and backward; all that changes is the operator.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

namespace {

/// The sum of a row of the (effective) map, its smallest entry, and the length of the gradient of q.
template <class Op>
void show(const char* name, const Op& op, const limpid::Inputs<Op, double>& in) {
  const Index n = in.q.rows;
  Mat<double> out(n, in.v.cols), dq(n, in.q.cols), map;
  limpid::Saved<Op, double> saved;
  limpid::forward(op, in, out, {.saved = &saved, .map = &map});
  const Mat<double> dout = Mat<double>::Ones(n, in.v.cols);
  limpid::Grads<Op, double> wanted{};  // any field may be asked for: dv, the bandwidth, lambda ...
  wanted.q = dq;
  limpid::backward(op, in, saved, dout, wanted);
  std::printf("%-12s row sums to %.2f, smallest entry %6.3f, |dq| %.4f\n", name, map.row(7).sum(), map.minCoeff(),
              dq.norm());
}

}  // namespace

int main() {
  const Index n = 24, d = 8;
  Mat<double> x(n, d), v(n, 2), lambda(1, 1);
  for (Index i = 0; i < n * d; ++i) x.data()[i] = std::sin(0.37 * static_cast<double>(i * i % 101));
  for (Index i = 0; i < 2 * n; ++i) v.data()[i] = std::cos(0.5 * static_cast<double>(i));
  lambda << 0.3;

  show("softmax", limpid::softmax(), limpid::qkv(x, x, v));
  show("nlm", limpid::nlm(), limpid::qkv(x, x, v));
  show("twicing", limpid::twicing(limpid::nlm()), limpid::qkv(x, x, v));
  // Two maps from the two halves of q and k; their difference sums to 1 - lambda.
  const auto difference = limpid::differential({.norm = limpid::HeadNorm::none});
  show("differential", difference, {.q = x, .k = x, .v = v, .lambda = lambda});

  // PID looks at earlier layers, so it comes as a stack; the values of a layer are what the last one gave.
  const auto op = limpid::pid(limpid::softmax());
  limpid::PidStack<std::remove_const_t<decltype(op)>, double> stack(op);
  Mat<double> first(n, 2), second(n, 2), g = Mat<double>::Ones(n, 2), dv(n, 2);
  stack.forward(limpid::qkv(x, x, v), first);
  stack.forward(limpid::qkv(x, x, first), second);
  stack.backward(limpid::qkv(x, x, first), g, {.v = dv});
  g = dv;
  stack.backward(limpid::qkv(x, x, v), g, {.v = dv});
  std::printf("%-12s two layers, |out| %.4f, |dv| %.4f\n", "pid", second.norm(), dv.norm());
}

// prints: softmax      row sums to 1.00, smallest entry  0.008, |dq| 1.1517
// prints: nlm          row sums to 1.00, smallest entry  0.008, |dq| 1.1276
// prints: twicing      row sums to 1.00, smallest entry -0.011, |dq| 0.8451
// prints: differential row sums to 0.70, smallest entry -0.022, |dq| 1.2072
// prints: pid          two layers, |out| 0.6510, |dv| 1.1832
