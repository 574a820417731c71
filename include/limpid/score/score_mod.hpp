// limpid: score functions of the user's own.
// SPDX-License-Identifier: MIT
#pragma once

#include "modifier.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// S + f(at); minus infinity masks the pair, and a finite number beyond the scalar of the scores counts as its largest
/// of that sign. No gradient reaches what f looks at: see bias for a table that learns. Amounts are added to scores as
/// they are, as nothing is known of f: where all keys that a row sees have the lowest number, they count alike.
template <class F>
struct Additive : Modifier {
  static constexpr bool per_pair = true;
  F f;
  explicit Additive(F f_) : f(std::move(f_)) {}
  bool adds() const { return true; }
  template <class S>
  S value(S s, const At& a) const {
    return detail::plus(s, detail::taken<S>(f(a)));
  }
};
template <class F>
Additive<F> additive(F f) {
  return Additive<F>(std::move(f));
}

struct NoDerivative {};

/// A score function of the user's own: f(s, at), and its derivative df(s, at) with respect to s for the backward pass.
/// Minus infinity masks the pair; a finite number beyond the scalar of the scores counts as its largest of that sign.
/// Where biases come before it, f is given the rounded sums: with the lowest number on all keys that a row sees, these
/// are all alike. Biases that come after it have their say, see KeyBias.
template <class F, class D>
struct ScoreFunction : Modifier {
  static constexpr bool per_pair = true;
  F f;
  D df;
  ScoreFunction(F f_, D df_) : f(std::move(f_)), df(std::move(df_)) {}
  template <class S>
  S value(S s, const At& a) const {
    return detail::taken<S>(f(s, a));
  }
  template <class S>
  S slope(S s, const At& a) const {
    static_assert(!std::is_same_v<D, NoDerivative>,
                  "limpid: backward needs the derivative of the score function; write score_mod(f, df)");
    if constexpr (!std::is_same_v<D, NoDerivative>) return detail::taken<S>(df(s, a));
    return s;
  }
};
template <class F, class D = NoDerivative>
ScoreFunction<F, D> score_mod(F f, D df = {}) {
  return {std::move(f), std::move(df)};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
