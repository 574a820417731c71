// limpid: all headers in two translation units of one program: nothing is defined twice, and both compute the same.
// SPDX-License-Identifier: MIT
#include <cstdio>
#include <vector>

#include "all.hpp"

void attention_of_the_other_unit(const float* q, const float* k, const float* v, float* out, long n, long d);

int main() {  // NOLINT(bugprone-exception-escape): a test that throws has failed
  constexpr long n = 37, d = 8;
  std::vector<float> q(n * d), k(n * d), v(n * d), here(n * d), there(n * d);
  for (long i = 0; i < n * d; ++i) {
    q[i] = static_cast<float>(i % 7) - 3.0F;
    k[i] = static_cast<float>(i % 5) - 2.0F;
    v[i] = static_cast<float>(i % 11) - 5.0F;
  }
  const limpid::View<float> query(q.data(), n, d, d), key(k.data(), n, d, d), value(v.data(), n, d, d);
  limpid::forward(limpid::softmax(limpid::causal()), {query, key, value}, limpid::MutView<float>(here.data(), n, d, d));
  attention_of_the_other_unit(q.data(), k.data(), v.data(), there.data(), n, d);

  // Not bit for bit: the units may be built for different machines. A weighted mean of |v| <= 5 rounds at some 1e-6.
  for (long i = 0; i < n * d; ++i)
    if (!(here[i] - there[i] < 1e-5F && there[i] - here[i] < 1e-5F)) {
      std::printf("entry %ld: %g in one unit, %g in the other\n", i, here[i], there[i]);
      return 1;
    }
  std::printf("both units agree\n");
  return 0;
}
