// limpid: what makes weights again: the maximum of a row and one over its sum.
// SPDX-License-Identifier: MIT
#pragma once

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// What makes scores the weights of a softmax again: A_ij = exp(s_ij - top_i) inverse_i, the maximum of a row and one
/// over its sum. Two arrays of n numbers, as in one, the log-sum-exp, a float has lost the digits of the sum where
/// logits are in the thousands. A row that keeps no key has plus infinity and 0. Null: not wanted, or not known.
template <class T>
struct Lse {
  T *top = nullptr, *inverse = nullptr;
  Lse() = default;
  Lse(T* top_, T* inverse_) : top(top_), inverse(inverse_) {}
  template <class U>
  requires std::is_same_v<const U, T> Lse(const Lse<U>& other)  // NOLINT: implicit on purpose
      : top(other.top), inverse(other.inverse) {}
  bool given() const { return top != nullptr; }
};
/// That of map t in what an operator keeps (Kept::stat, two rows a map).
template <class S>
Lse<S> lse_of(const MutView<S>& kept, Index t = 0) {
  return kept.given() ? Lse<S>(kept.row(2 * t), kept.row(2 * t + 1)) : Lse<S>();
}
template <class S>
Lse<const S> lse_of(const View<S>& kept, Index t = 0) {
  return {kept.row(2 * t), kept.row(2 * t + 1)};
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
