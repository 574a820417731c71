// limpid: example 3. Batch and heads in packed buffers, grouped keys, threads. A head is a block of the buffer, never a
// copy.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/limpid.hpp>

using limpid::Index;
using limpid::Mat;

int main() {
  // 2 sequences of 50 tokens; 8 query heads share 2 key heads (grouped keys, Ainslie et al. 2023); head width 16.
  const Index batch = 2, n = 50, heads = 8, kv_heads = 2, d = 16;
  // One buffer holds query, key and value side by side, as a fused projection leaves them; views cut it up.
  Mat<float> fused(batch * n, (heads + 2 * kv_heads) * d);
  for (Index i = 0; i < fused.size(); ++i) fused.data()[i] = std::sin(0.37f * static_cast<float>(i));
  const auto q = fused.leftCols(heads * d);
  const auto k = fused.middleCols(heads * d, kv_heads * d), v = fused.rightCols(kv_heads * d);

  const auto op = limpid::softmax(limpid::causal());
  Mat<float> out(batch * n, heads * d);
  limpid::forward(op, limpid::qkv(q, k, v), out, {.batch = batch, .heads = heads, .kv_heads = kv_heads});

  // The same with two threads: the same bits.
  limpid::ThreadPool pool(2);
  Mat<float> threaded(batch * n, heads * d);
  limpid::forward(op, limpid::qkv(q, k, v), threaded,
                  {.batch = batch, .heads = heads, .kv_heads = kv_heads, .executor = pool});
  std::printf("two threads: %s\n", threaded == out ? "the same bits" : "other bits");

  // Head 5 of sequence 1 by itself: it reads key head 5 / (8 / 2) = 1.
  const auto rows = [&](const auto& m, Index head) { return m.block(n, head * d, n, d); };
  const auto q5 = rows(q, 5), k1 = rows(k, 1), v1 = rows(v, 1);
  const Mat<float> alone = limpid::forward(op, limpid::qkv(q5, k1, v1));
  std::printf("head 5 alone: %s\n", alone == rows(out, 5) ? "the same bits" : "other bits");
}

// prints: two threads: the same bits
// prints: head 5 alone: the same bits
