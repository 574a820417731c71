// limpid: a transpose as an input: its rows are the columns of something else.
// SPDX-License-Identifier: MIT
// refused: matrices must be row-major
#include <limpid/limpid.hpp>

limpid::Mat<float> attend(const limpid::Mat<float>& q_columns, const limpid::Mat<float>& k,
                          const limpid::Mat<float>& v) {
#if LIMPID_MISTAKE
  return limpid::forward(limpid::softmax(), limpid::qkv(q_columns.transpose(), k, v));
#else
  const limpid::Mat<float> q = q_columns.transpose();
  return limpid::forward(limpid::softmax(), limpid::qkv(q, k, v));
#endif
}
