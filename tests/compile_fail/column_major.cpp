// limpid: a column-major matrix as an input.
// SPDX-License-Identifier: MIT
// refused: matrices must be row-major
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  const Eigen::MatrixXf q = k;
#else
  const limpid::Mat<float> q = k;
#endif
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
}
