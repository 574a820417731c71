// limpid: masks: causal, windows, functions and matrices, and what is made of them by &, | and !.
// SPDX-License-Identifier: MIT
#pragma once

#include "modifier.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Query i of n sees key j of m when j - i <= m - n: the last query sees the last key (bottom-right aligned).
///
///     n = 3, m = 5:  x x x . .        n = 3, m = 2:  . .
///                    x x x x .                       x .
///                    x x x x x                       x x
struct Causal : Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Interval interval(const At& a) const { return {0, std::max<Index>(0, a.position() + 1)}; }
  bool keep(const At& a) const { return a.k <= a.position(); }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    const Index offset = a.m - a.n;
    if (k1 - 1 <= q0 + offset) return Cover::all;
    return k0 > q1 - 1 + offset ? Cover::none : Cover::some;
  }
};
inline Causal causal() { return {}; }

/// Keys from `left` before the query's position to `right` after it, both included; a negative number means no limit.
struct Window : Modifier {
  static constexpr bool is_mask = true, intervals = true;
  Index left = -1, right = 0;
  Interval interval(const At& a) const {
    const Index p = a.position();
    return {std::max<Index>(0, p - before(a)), std::max<Index>(0, p + after(a) + 1)};
  }
  bool keep(const At& a) const {
    const Index gap = a.k - a.position();
    return gap >= -before(a) && gap <= after(a);
  }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    const Index p0 = q0 + a.m - a.n, p1 = q1 - 1 + a.m - a.n;
    if (k1 - 1 < p0 - before(a) || k0 > p1 + after(a)) return Cover::none;
    return k0 >= p1 - before(a) && k1 - 1 <= p0 + after(a) ? Cover::all : Cover::some;
  }

 private:
  // no two positions lie farther apart than this, so larger windows, which would overflow sums, are no different
  static Index widest(const At& a) { return a.n + a.m; }
  Index before(const At& a) const { return left < 0 ? widest(a) : std::min(left, widest(a)); }
  Index after(const At& a) const { return right < 0 ? widest(a) : std::min(right, widest(a)); }
};
inline Window window(Index left, Index right = 0) {
  Window w;
  w.left = left;
  w.right = right;
  return w;
}

/// true = keep, asked pair by pair. A function that offers
/// block(At, q0, q1, k0, k1) -> Cover lets whole tiles be skipped.
template <class F>
struct MaskFunction : Modifier {
  static constexpr bool is_mask = true, irregular = true;
  F f;
  explicit MaskFunction(F f_) : f(std::move(f_)) {}
  bool keep(const At& a) const { return f(a); }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    if constexpr (requires { f.block(a, q0, q1, k0, k1); }) return f.block(a, q0, q1, k0, k1);
    return Cover::some;
  }
};
template <class F>
MaskFunction<F> mask(F f) {
  return MaskFunction<F>(std::move(f));
}

/// A boolean matrix, true = keep: n x m for all, (B n) x m one a batch item, or (B H n) x m one a head.
struct MaskMatrix : Modifier {
  static constexpr bool is_mask = true, irregular = true;
  View<bool> keep_;
  bool keep(const At& a) const {
    const Index n = a.all_rows();
    Index row = a.row();
    if (keep_.rows == a.batches * a.heads * n && a.heads > 1)
      row += (a.batch * a.heads + a.head) * n;
    else if (keep_.rows == a.batches * n)
      row += a.batch * n;
    return keep_(row, a.key());
  }
  Cover cover(const At&, Index, Index, Index, Index) const { return Cover::some; }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if ((keep_.rows != n && keep_.rows != b * n && keep_.rows != b * h * n) || (keep_.cols != m && keep_.rows != 0))
      detail::raise_modifier(
          op, "mask", keep_.rows, keep_.cols,
          "n x m, (B n) x m or (B H n) x m with n = " + detail::text_of(n) + ", m = " + detail::text_of(m));
  }
};
inline MaskMatrix mask_matrix(View<bool> keep) {
  MaskMatrix m;
  m.keep_ = keep;
  return m;
}

namespace detail {

/// The pairs a mask keeps, whatever kind it is: where it says both, those of its interval that keep() keeps. keep() of
/// one that gathers asks for the intervals itself, at places of the mask's own.
template <class M>
bool mask_keeps(const M& m, const At& a) {
  if constexpr (M::intervals && !M::gathers && (M::irregular || !own_keep<M>())) {
    const Interval in = m.interval(a);
    if (a.k < in.begin || a.k >= in.end) return false;
  }
  return m.keep(a);
}

template <class A, class B>
struct TwoMasks : Modifier {
  static_assert(check_modifier<A>() && check_modifier<B>());
  A a;
  B b;
  TwoMasks(A a_, B b_) : a(std::move(a_)), b(std::move(b_)) {}
  void check(const char* op, Index bt, Index h, Index n, Index m) const {
    a.check(op, bt, h, n, m), b.check(op, bt, h, n, m);
  }
};
template <class A, class B>
struct TwoIntervals : TwoMasks<A, B> {
  using TwoMasks<A, B>::TwoMasks;
  Interval interval(const At& at) const { return common(this->a.interval(at), this->b.interval(at)); }
  Interval range(const At& first, const At& last) const {
    return common(range_of(this->a, first, last), range_of(this->b, first, last));
  }
};

template <class A, class B>
using AndBase = std::conditional_t<A::intervals || B::intervals, TwoIntervals<A, B>, TwoMasks<A, B>>;
template <class A, class B>
struct AndMask : AndBase<A, B> {
  static constexpr bool is_mask = true, intervals = A::intervals || B::intervals,
                        irregular = A::irregular || B::irregular, gathers = A::gathers || B::gathers,
                        irregular_besides = A::gathers ? A::irregular_besides || B::irregular
                                                       : B::gathers && (A::irregular || B::irregular_besides);
  using Base = AndBase<A, B>;
  using Base::Base;
  bool keep(const At& at) const {
    if constexpr (gathers) {
      if (!leading().keep(at)) return false;
      const At own = leading().own_place(at);
      return mask_keeps(this->a, own) && mask_keeps(this->b, own);
    } else {
      return mask_keeps(this->a, at) && mask_keeps(this->b, at);
    }
  }
  const auto& leading() const requires gathers {
    if constexpr (A::gathers)
      return leading_of(this->a);
    else
      return leading_of(this->b);
  }
  bool keep_besides(const At& at) const {
    if constexpr (A::gathers)
      return this->a.keep_besides(at) && (!B::irregular || this->b.keep(at));
    else if constexpr (B::gathers)
      return (!A::irregular || this->a.keep(at)) && this->b.keep_besides(at);
    return true;
  }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = this->a.cover(at, q0, q1, k0, k1), y = this->b.cover(at, q0, q1, k0, k1);
    if (x == Cover::none || y == Cover::none) return Cover::none;
    return x == Cover::all && y == Cover::all ? Cover::all : Cover::some;
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    Base::check(op, b, h, n, m);
    if constexpr (A::gathers) refuse_repeated_keys(op, this->b);
  }
};

template <class A, class B>
struct OrMask : TwoMasks<A, B> {
  static constexpr bool is_mask = true, irregular = true;
  using TwoMasks<A, B>::TwoMasks;
  bool keep(const At& at) const { return mask_keeps(this->a, at) || mask_keeps(this->b, at); }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = this->a.cover(at, q0, q1, k0, k1), y = this->b.cover(at, q0, q1, k0, k1);
    if (x == Cover::all || y == Cover::all) return Cover::all;
    return x == Cover::none && y == Cover::none ? Cover::none : Cover::some;
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    TwoMasks<A, B>::check(op, b, h, n, m);
    refuse_repeated_keys(op, this->a), refuse_repeated_keys(op, this->b);
  }
};

template <class A>
struct NotMask : Modifier {
  static_assert(check_modifier<A>());
  static constexpr bool is_mask = true, irregular = true;
  A a;
  explicit NotMask(A a_) : a(std::move(a_)) {}
  bool keep(const At& at) const { return !mask_keeps(a, at); }
  Cover cover(const At& at, Index q0, Index q1, Index k0, Index k1) const {
    const Cover x = a.cover(at, q0, q1, k0, k1);
    return x == Cover::some ? x : (x == Cover::all ? Cover::none : Cover::all);
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    a.check(op, b, h, n, m);
    refuse_repeated_keys(op, a);
  }
};

}  // namespace detail

template <IsMask A, IsMask B>
detail::AndMask<A, B> operator&(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <IsMask A, IsMask B>
detail::OrMask<A, B> operator|(A a, B b) {
  return {std::move(a), std::move(b)};
}
template <IsMask A>
detail::NotMask<A> operator!(A a) {
  return detail::NotMask<A>(std::move(a));
}

}  // namespace LIMPID_ABI
}  // namespace limpid
