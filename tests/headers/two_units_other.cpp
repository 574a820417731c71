// limpid: all headers in a second translation unit; see two_units_main.cpp.
// SPDX-License-Identifier: MIT
#include "all.hpp"

// Plain pointers: an Eigen matrix must not cross between objects built with different vector flags.
void attention_of_the_other_unit(const float* q, const float* k, const float* v, float* out, long n, long d) {
  const limpid::View<float> query(q, n, d, d), key(k, n, d, d), value(v, n, d, d);
  limpid::forward(limpid::softmax(limpid::causal()), {query, key, value}, limpid::MutView<float>(out, n, d, d));
}
