// limpid: example 4. Masks, biases and positions: what sits between the scores and the softmax. true means keep.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <limpid/limpid.hpp>
#include <vector>

using limpid::Index;
using limpid::Mat;

namespace {

/// The map of one head with these modifiers, over 5 equal tokens, so that only the modifiers speak.
template <class M>
void show(const char* title, const M& modifiers) {
  const Mat<float> x = Mat<float>::Zero(5, 2);
  Mat<float> out(5, 2), map;
  limpid::forward(limpid::softmax(modifiers), limpid::qkv(x, x, x), out, {.map = &map});
  std::printf("%s\n", title);
  for (Index i = 0; i < 5; ++i) {
    for (Index j = 0; j < 5; ++j) std::printf(" %.2f", map(i, j));
    std::printf("\n");
  }
}

}  // namespace

int main() {
  show("causal:", limpid::causal());
  show("the last three, itself included:", limpid::window(2, 0));

  // A function of the pair; a row that keeps no key gives zeros, forward and backward.
  const std::vector<Index> length{3};
  const auto pad = limpid::mask([&](limpid::At a) { return a.k < length[std::size_t(a.batch)] && a.q != 1; });
  show("a mask and causal:", limpid::causal() & pad);

  Mat<float> slope(1, 1);
  slope << 1;
  show("causal ALiBi:", limpid::chain(limpid::alibi(slope), limpid::causal()));
}

// prints: causal:
// prints:  1.00 0.00 0.00 0.00 0.00
// prints:  0.50 0.50 0.00 0.00 0.00
// prints:  0.33 0.33 0.33 0.00 0.00
// prints:  0.25 0.25 0.25 0.25 0.00
// prints:  0.20 0.20 0.20 0.20 0.20
// prints: the last three, itself included:
// prints:  1.00 0.00 0.00 0.00 0.00
// prints:  0.50 0.50 0.00 0.00 0.00
// prints:  0.33 0.33 0.33 0.00 0.00
// prints:  0.00 0.33 0.33 0.33 0.00
// prints:  0.00 0.00 0.33 0.33 0.33
// prints: a mask and causal:
// prints:  1.00 0.00 0.00 0.00 0.00
// prints:  0.00 0.00 0.00 0.00 0.00
// prints:  0.33 0.33 0.33 0.00 0.00
// prints:  0.33 0.33 0.33 0.00 0.00
// prints:  0.33 0.33 0.33 0.00 0.00
// prints: causal ALiBi:
// prints:  1.00 0.00 0.00 0.00 0.00
// prints:  0.27 0.73 0.00 0.00 0.00
// prints:  0.09 0.24 0.67 0.00 0.00
// prints:  0.03 0.09 0.24 0.64 0.00
// prints:  0.01 0.03 0.09 0.23 0.64
