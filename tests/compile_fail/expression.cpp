// limpid: an expression that has not been computed as an input.
// SPDX-License-Identifier: MIT
// refused: pass a matrix, map or block, not an expression
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  return limpid::forward(limpid::softmax(), limpid::qkv(2 * k, k, v));
#else
  const limpid::Mat<float> q = 2 * k;
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
#endif
}
