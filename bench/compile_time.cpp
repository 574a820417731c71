// limpid: a user's translation unit, compiled by the bench to see how long that takes
// SPDX-License-Identifier: MIT
#ifdef LIMPID_BENCH_COMPILED  // with the optional target limpid::compiled
#include <limpid/compiled.hpp>
#else
#include <limpid/limpid.hpp>
#endif

void attend(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v,
            const limpid::Mat<float>& dout, limpid::Mat<float>& out, limpid::Mat<float>& dq, limpid::Mat<float>& dk,
            limpid::Mat<float>& dv) {
  const auto op = limpid::softmax();
  limpid::Saved<std::remove_cv_t<decltype(op)>, float> saved;
  limpid::forward(op, limpid::qkv(q, k, v), out, {.saved = &saved});
  limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
}
