// limpid: a double matrix among float ones.
// SPDX-License-Identifier: MIT
// refused: must have the same scalar type
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<double>& values) {
#if LIMPID_MISTAKE
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, values));
#else
  const limpid::Mat<float> v = values.cast<float>();
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
#endif
}
