// limpid: example 1. One head of attention in one line, and what happens when shapes do not fit.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <limpid/limpid.hpp>

int main() {
  // Tokens are rows: 2 queries and 3 keys of width 4, values of width 2.
  limpid::Mat<float> q(2, 4), k(3, 4), v(3, 2);
  // clang-format off
  q << 4, 0, 0, 0,
       0, 1, 0, 0;
  k << 2, 0, 0, 0,
       0, 2, 0, 0,
       1, 1, 1, 0;
  v << 1, 0,
       0, 1,
       5, 5;
  // clang-format on

  const limpid::Mat<float> out = limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
  for (limpid::Index i = 0; i < out.rows(); ++i) std::printf("query %d: %.3f %.3f\n", int(i), out(i, 0), out(i, 1));

  // The same call with another operator: non-local means, weights from distances in place of dot products.
  const limpid::Mat<float> filtered = limpid::forward(limpid::nlm(), limpid::qkv(q, k, v));
  for (limpid::Index i = 0; i < out.rows(); ++i)
    std::printf("query %d: %.3f %.3f by non-local means\n", int(i), filtered(i, 0), filtered(i, 1));

  try {
    const limpid::Mat<float> narrow = k.leftCols(3);
    limpid::forward(limpid::softmax(), limpid::qkv(q, narrow, v));
  } catch (const limpid::ShapeError& problem) {
    std::printf("%s\n", problem.what());
  }
}

// prints: query 0: 1.453 0.602
// prints: query 1: 1.722 2.042
// prints: query 0: 1.568 0.744 by non-local means
// prints: query 1: 1.985 2.280 by non-local means
// prints: softmax: q has width 4 a head and k has 3, wanted the same (1 heads, 1 key heads)
