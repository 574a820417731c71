// limpid: an operator in the place of a modifier: rotations go round twicing, not into it.
// SPDX-License-Identifier: MIT
// refused alone: a modifier \(a mask, a bias, a score function\) was wanted
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  const auto op = limpid::twicing(limpid::rope(limpid::softmax()));
#else
  const auto op = limpid::rope(limpid::twicing());
#endif
  return limpid::forward(op, limpid::qkv(q, k, v));
}
