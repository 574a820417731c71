// limpid: attention sinks: a logit in every row that has no value.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "modifier.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// One more logit s_h in every row of head h, without a value and not multiplied by the scale (learnt, as in gpt-oss,
/// Agarwal et al. 2025, arXiv 2508.10925; a token as one: Xiao et al. 2023, arXiv 2309.17453):
///
///     A_ij = exp(S_ij) / (exp(s_h) + sum_j' exp(S_ij')),   lse_i = log(exp(s_h) + sum_j exp(S_ij))
///     ds_h = - sum_i exp(s_h - lse_i) delta_i,   delta_i = sum_j A_ij dA_ij
///
/// logits is a row or column of H numbers; dlogits the same, added to. Rows of A sum to 1 - exp(s_h - lse_i), and their
/// entropy is that of the keys' weights alone. Score functions do not see the sink. A row without keys has lse s_h and
/// zeros, and gives the sink nothing. Minus infinity is no sink; plus infinity leaves zeros. For weights that are
/// divided by the sum of their row; others, as sigmoid's, do not compile. One to a chain. ShapeError: other than H
/// numbers, or NaN among them.
template <class S>
struct Sink : Modifier {
  static constexpr bool sinks = true;
  View<S> logits;
  MutView<S> dlogits;
  bool adds() const { return true; }  // to the sum of a row, and nothing to a score
  template <class T>
  T logit(Index head) const {
    return detail::taken<T>(*detail::number_of_head(logits, head));
  }
  Index gradient_size(Index, Index) const { return dlogits.empty() ? 0 : 1; }
  template <class T>
  void deliver_gradient(const At& a, const T* sum) const {
    *detail::number_of_head(dlogits, a.head) += S(*sum);
  }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("sink", logits));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the sink", dlogits));
  }
  void check(const char* op, Index, Index h, Index, Index) const {
    const Index count = logits.rows * logits.cols;
    if (count != h || (logits.rows != 1 && logits.cols != 1))
      detail::raise_modifier(op, "sink", logits.rows, logits.cols, "one number a head, H = " + detail::text_of(h));
    for (Index i = 0; i < count; ++i)
      if (const S& logit = *detail::number_of_head(logits, i); logit != logit)
        detail::raise(std::string(op) + ": the sink of head " + detail::text_of(i) +
                      " is nan, wanted a number, or an infinity");
    if (!dlogits.empty() && (dlogits.rows * dlogits.cols != count || (dlogits.rows != 1 && dlogits.cols != 1)))
      detail::raise_modifier(op, "gradient of the sink", dlogits.rows, dlogits.cols,
                             detail::text_of(count) + " numbers");
  }
};
template <class A>
auto sink(A&& logits) {
  Sink<typename std::remove_cvref_t<A>::Scalar> m;
  m.logits = View<typename std::remove_cvref_t<A>::Scalar>(std::forward<A>(logits));
  return m;
}
template <class A, class DA>
auto sink(A&& logits, DA&& dlogits) {
  auto m = sink(std::forward<A>(logits));
  m.dlogits = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dlogits));
  return m;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
