// limpid: a temporary as an input: the view would outlive it.
// SPDX-License-Identifier: MIT
// refused: a temporary matrix would be gone
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  const auto in = limpid::qkv(limpid::Mat<float>(2 * k), k, v);
#else
  const limpid::Mat<float> q = 2 * k;
  const auto in = limpid::qkv(q, k, v);
#endif
  return limpid::forward(limpid::softmax(), in);
}
