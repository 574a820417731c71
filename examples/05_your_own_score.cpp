// limpid: example 5. A score function and a mask of your own, as lambdas and as structs, and the check of the
// derivative.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/check/gradient.hpp>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

// The same kind of function as a struct, which has parameters and a name: a modifier says by a flag what it offers.
struct Softsign : limpid::Modifier {
  static constexpr bool per_pair = true;
  double cap = 2;
  template <class S>
  S value(S s, const limpid::At&) const {
    return s / (1 + std::abs(s) / S(cap));
  }
  template <class S>
  S slope(S s, const limpid::At&) const {
    const S shrunk = 1 / (1 + std::abs(s) / S(cap));
    return shrunk * shrunk;
  }
};
struct Even : limpid::Modifier {
  static constexpr bool is_mask = true, irregular = true;
  bool keep(const limpid::At& a) const { return a.k % 2 == 0; }
};

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

  // Structs, masks among them, go wherever the library's own do.
  const auto own = limpid::softmax(limpid::chain(Softsign(), Even() | limpid::window(2)));
  std::printf("as structs: %s\n", limpid::check_gradient(own, in).worst() < 1e-8 ? "yes" : "no");

  // A derivative that forgets the square is found out.
  const auto wrong = [](auto s, limpid::At) { return 1 - std::tanh(s / 2); };
  const auto broken = limpid::softmax(limpid::chain(limpid::score_mod(f, wrong), limpid::causal()));
  std::printf("with a wrong derivative: %s\n", limpid::check_gradient(broken, in).worst() < 1e-8 ? "yes" : "no");
}

// prints: largest weight of the last query: 0.167, without the cap 0.422
// prints: gradient agrees with differences: yes
// prints: as structs: yes
// prints: with a wrong derivative: no
