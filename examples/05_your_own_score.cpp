// limpid: example 5. A score function of your own, its derivative, and the check that the two belong together.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

int main() {
  // Soft capping: scores stay within (-2, 2) however large q and k are.
  const auto f = [](auto s, limpid::At) { return 2 * std::tanh(s / 2); };
  const auto df = [](auto s, limpid::At) {
    const auto t = std::tanh(s / 2);
    return 1 - t * t;
  };
  const auto op = limpid::softmax(limpid::chain(limpid::score_mod(f, df), limpid::causal()));

  const Index n = 12, d = 4;
  Mat<double> q(n, d), k(n, d), v(n, d);
  for (Index i = 0; i < n * d; ++i) {
    const double t = static_cast<double>(i);
    q.data()[i] = 3 * std::sin(1.3 * t), k.data()[i] = 3 * std::cos(0.7 * t), v.data()[i] = std::sin(2.1 * t);
  }
  const auto in = limpid::qkv(q, k, v);

  Mat<double> out(n, d), sharp(n, d), map, sharp_map;
  limpid::forward(op, in, out, {.map = &map});
  limpid::forward(limpid::softmax(limpid::causal()), in, sharp, {.map = &sharp_map});
  std::printf("largest weight of the last query: %.3f, without the cap %.3f\n", map.row(n - 1).maxCoeff(),
              sharp_map.row(n - 1).maxCoeff());

  // Backward against central differences of forward, every entry of every input.
  std::printf("gradient agrees with differences: %s\n", limpid::check_gradient(op, in).worst() < 1e-8 ? "yes" : "no");

  // A derivative that forgets the square is found out.
  const auto wrong = [](auto s, limpid::At) { return 1 - std::tanh(s / 2); };
  const auto broken = limpid::softmax(limpid::chain(limpid::score_mod(f, wrong), limpid::causal()));
  std::printf("with a wrong derivative: %s\n", limpid::check_gradient(broken, in).worst() < 1e-8 ? "yes" : "no");
}

// prints: largest weight of the last query: 0.167, without the cap 0.422
// prints: gradient agrees with differences: yes
// prints: with a wrong derivative: no
