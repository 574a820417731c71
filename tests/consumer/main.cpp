// limpid: the program of every consumer project: one line of attention, checked against a sum done by hand.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#ifdef LIMPID_SINGLE_HEADER
#include "limpid.hpp"
#else
#include <limpid/limpid.hpp>
#endif

int main() {
  // Keys of which the query likes the second better by ln 3: weights 1/4 and 3/4.
  limpid::Mat<float> q(1, 1), k(2, 1), v(2, 1);
  q << 1;
  k << 0, std::log(3.0F);
  v << 4, 8;
  const limpid::Mat<float> out = limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
  std::printf("limpid %d.%d.%d: %.4f, wanted 7\n", LIMPID_VERSION_MAJOR, LIMPID_VERSION_MINOR, LIMPID_VERSION_PATCH,
              static_cast<double>(out(0, 0)));
  return std::abs(out(0, 0) - 7) < 1e-5F ? 0 : 1;
}
