// limpid: a const matrix where the result goes.
// SPDX-License-Identifier: MIT
// refused: this argument is written to and must not be const
#include <limpid/limpid.hpp>

#if LIMPID_MISTAKE
using Result = const limpid::Mat<float>;
#else
using Result = limpid::Mat<float>;
#endif

void attend(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v, Result& out) {
  limpid::forward(limpid::softmax(), limpid::qkv(q, k, v), out);
}
