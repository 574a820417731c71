// limpid: example 6. Looking inside a head: the map, one row of it, the log-sum-exp, the entropy, products with the
// map.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

int main() {
  const Index n = 6, d = 4;
  Mat<double> x(n, d);
  for (Index i = 0; i < n * d; ++i) x.data()[i] = 2 * std::sin(0.9 * static_cast<double>(i));

  const auto op = limpid::softmax(limpid::causal());
  using Op = std::remove_const_t<decltype(op)>;
  const auto in = limpid::qkv(x, x, x);
  Mat<double> out(n, d), asked(n, d), lse, map;
  limpid::Saved<Op, double> saved;
  limpid::forward(op, in, out);
  limpid::forward(op, in, asked, {.saved = &saved, .lse = &lse, .map = &map});
  std::printf("asking changes %s of out\n", asked == out ? "no bit" : "bits");
  std::printf("map of query 3:     ");
  for (Index j = 0; j < n; ++j) std::printf(" %.3f", map(3, j));

  // One row costs one row: memory for the map of a long sequence is never needed.
  Mat<double> row(1, n), entropy(n, 1), mass(1, n);
  limpid::map_block(op, in, saved, 3, 0, row);
  std::printf("\nthe row alone:      ");
  for (Index j = 0; j < n; ++j) std::printf(" %.3f", row(0, j));

  limpid::map_entropy(op, in, saved, entropy);
  std::printf("\nentropy of query 3:  %.3f nats, log-sum-exp %.3f\n", entropy(3, 0), lse(0, 3));

  // w^T A without A: how much all queries together look at each key.
  const Mat<double> ones = Mat<double>::Ones(1, n);
  limpid::map_left(op, in, saved, ones, mass);
  std::printf("mass on every key:  ");
  for (Index j = 0; j < n; ++j) std::printf(" %.3f", mass(0, j));
  std::printf("\n");
}

// prints: asking changes no bit of out
// prints: map of query 3:      0.007 0.114 0.000 0.879 0.000 0.000
// prints: the row alone:       0.007 0.114 0.000 0.879 0.000 0.000
// prints: entropy of query 3:  0.397 nats, log-sum-exp 4.509
// prints: mass on every key:   1.246 1.121 1.027 1.067 0.847 0.693
