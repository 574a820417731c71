// limpid: every second column of a matrix as an input: entries of a row are not neighbours (a block of columns is
// fine).
// SPDX-License-Identifier: MIT
// refused: the entries of a row must be contiguous
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& wide, const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  const Eigen::Map<const limpid::Mat<float>, 0, Eigen::Stride<Eigen::Dynamic, 2>> q(
      wide.data(), wide.rows(), wide.cols() / 2, Eigen::Stride<Eigen::Dynamic, 2>(wide.cols(), 2));
#else
  const auto q = wide.leftCols(wide.cols() / 2);
#endif
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
}
