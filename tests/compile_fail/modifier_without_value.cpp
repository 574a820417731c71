// limpid: a modifier that says it changes scores, and does not say how.
// SPDX-License-Identifier: MIT
// refused alone: a modifier with per_pair = true offers template <class S> S value\(S, const At&\) const
#include <limpid/limpid.hpp>

struct Halved : limpid::Modifier {
  static constexpr bool per_pair = true;
#if !LIMPID_MISTAKE
  template <class S>
  S value(S s, const limpid::At&) const {
    return s / 2;
  }
  template <class S>
  S slope(S, const limpid::At&) const {
    return S(0.5);
  }
#endif
};

limpid::Mat<float> halved(const limpid::Mat<float>& q, const limpid::Mat<float>& k, const limpid::Mat<float>& v) {
  return limpid::forward(limpid::softmax(Halved()), limpid::qkv(q, k, v));
}
