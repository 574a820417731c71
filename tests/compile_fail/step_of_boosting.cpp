// limpid: a decoder that is to step over operators of which no token is decoded alone, and with the cache of another.
// SPDX-License-Identifier: MIT
// refused alone: no token of this operator is decoded alone, as it needs the whole map
// refused alone: this operator wants another cache, as cache\(op\) gives it
// refused alone: a step turns q and k once, and here is a rope round a rope
#include <limpid/model/llama.hpp>
#include <limpid/op/boosting.hpp>

using namespace limpid;

Mat<float> run(const model::Llama<float>& llama) {
#if LIMPID_MISTAKE == 1
  const auto op = rope(boosting(causal()));
#else
  const auto op = rope(twicing(causal()));
#endif
#if LIMPID_MISTAKE == 2
  model::LlamaCache<float> cache;
#else
  auto cache = llama.cache(op);
#endif
#if LIMPID_MISTAKE == 3
  return llama.step(rope(op), {1}, cache);
#else
  return llama.step(op, {1}, cache);
#endif
}
