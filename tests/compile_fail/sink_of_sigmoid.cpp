// limpid: a sink beside weights that are not divided by the sum of their row.
// SPDX-License-Identifier: MIT
// refused alone: limpid: a sink joins the sum of a row's weights, and these are not divided by one
// refused alone: limpid: a chain of modifiers has one sink at most
#include <limpid/limpid.hpp>

using limpid::Mat;

void run(const Mat<float>& x, const Mat<float>& logits, Mat<float>& out) {
#if LIMPID_MISTAKE == 1
  limpid::forward(limpid::sigmoid(limpid::sink(logits)), limpid::qkv(x, x, x), out);
#elif LIMPID_MISTAKE == 2
  limpid::forward(limpid::softmax(limpid::chain(limpid::sink(logits), limpid::sink(logits))), limpid::qkv(x, x, x),
                  out);
#else
  limpid::forward(limpid::softmax(limpid::sink(logits)), limpid::qkv(x, x, x), out);
#endif
}
