// limpid: modifiers by their law: a formula for one pair beside the modifier, and attention by plain loops in long
// double that knows nothing but the formula.
// SPDX-License-Identifier: MIT
//
// A modifier of any type goes into one of two that ask it by virtual calls and pass on all it says of itself, so that
// the sweeps are compiled a few times only.
#pragma once

#include <cmath>
#include <functional>
#include <limits>
#include <limpid/op/softmax.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/fields.hpp"

namespace laws {

using limpid::At;
using limpid::Cover;
using limpid::Index;
using limpid::Interval;
using limpid::Mat;
using limpid::MutView;
using limpid::View;
using Real = long double;

constexpr Real inf = std::numeric_limits<Real>::infinity();
constexpr Real nan = std::numeric_limits<Real>::quiet_NaN();

/// A mask of any type.
struct AnyMask : limpid::Modifier {
  static constexpr bool is_mask = true, intervals = true, irregular = true;

  struct Asked {
    virtual ~Asked() = default;
    virtual Interval interval(const At&) const = 0;
    virtual bool keep(const At&) const = 0;
    virtual Cover cover(const At&, Index, Index, Index, Index) const = 0;
    virtual Cover says(const At&, Index, Index, Index, Index) const = 0;  // whether the sweeps ask it or not
    virtual void check(const char*, Index, Index, Index, Index) const = 0;
  };
  template <class M>
  struct Of final : Asked {
    M m;
    explicit Of(M m_) : m(std::move(m_)) {}
    Interval interval(const At& a) const override { return M::intervals ? m.interval(a) : Interval{0, a.m}; }
    bool keep(const At& a) const override { return !M::irregular || m.keep(a); }
    Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const override {
      return M::irregular ? m.cover(a, q0, q1, k0, k1) : Cover::all;
    }
    Cover says(const At& a, Index q0, Index q1, Index k0, Index k1) const override {
      return m.cover(a, q0, q1, k0, k1);
    }
    void check(const char* op, Index b, Index h, Index n, Index k) const override { m.check(op, b, h, n, k); }
  };

  std::shared_ptr<Asked> of;

  AnyMask() = default;
  template <limpid::IsMask M>
  requires(!std::is_same_v<M, AnyMask>) AnyMask(M m)  // NOLINT: implicit on purpose
      : of(std::make_shared<Of<M>>(std::move(m))) {}

  Interval interval(const At& a) const { return of ? of->interval(a) : Interval{0, a.m}; }
  bool keep(const At& a) const { return !of || of->keep(a); }
  Cover cover(const At& a, Index q0, Index q1, Index k0, Index k1) const {
    return of ? of->cover(a, q0, q1, k0, k1) : Cover::all;
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if (of) of->check(op, b, h, n, m);
  }
};

/// A modifier of any type that changes scores by pair (Values), or adds an amount a key.
template <class S, bool Values>
struct Any : limpid::Modifier {
  static constexpr bool per_pair = Values, per_key = !Values, tables = true, collects_gradient = true;

  struct Asked {
    virtual ~Asked() = default;
    virtual S value(S, const At&) const = 0;
    virtual S slope(S, const At&) const = 0;
    virtual S key_bias(const At&, Index) const = 0;
    virtual S row_constant(const At&, Index) const = 0;
    virtual bool adds() const = 0;
    virtual bool is_table() const = 0;
    virtual S amount(const At&) const = 0;
    virtual limpid::Far far(const At&) const = 0;
    virtual void add_gradient(const At&, S, S*) const = 0;
    virtual bool wants_gradient() const = 0;
    virtual Index gradient_size(Index, Index) const = 0;
    virtual void deliver_gradient(const At&, const S*) const = 0;
    virtual bool wants_serial_heads(Index, Index, Index) const = 0;
    virtual void check(const char*, Index, Index, Index, Index) const = 0;
  };
  template <class M>
  struct Of final : Asked {
    static_assert(Values || !M::per_pair);
    M m;
    explicit Of(M m_) : m(std::move(m_)) {}
    S value(S s, const At& a) const override { return m.value(s, a); }
    S slope(S s, const At& a) const override { return m.slope(s, a); }
    S key_bias(const At& a, Index q0) const override { return M::per_key ? m.template key_bias<S>(a, q0) : S(0); }
    S row_constant(const At& a, Index q0) const override {
      return M::per_key ? m.template row_constant<S>(a, q0) : S(0);
    }
    bool adds() const override { return m.adds(); }
    bool is_table() const override { return m.is_table(); }
    S amount(const At& a) const override { return m.template amount<S>(a); }
    limpid::Far far(const At& a) const override { return m.template far<S>(a); }
    void add_gradient(const At& a, S ds, S* sum) const override {
      if constexpr (M::collects_gradient) m.add_gradient(a, ds, sum);
    }
    bool wants_gradient() const override { return M::collects_gradient && m.wants_gradient(); }
    Index gradient_size(Index n, Index k) const override { return m.gradient_size(n, k); }
    void deliver_gradient(const At& a, const S* sum) const override { m.deliver_gradient(a, sum); }
    bool wants_serial_heads(Index b, Index h, Index n) const override { return m.wants_serial_heads(b, h, n); }
    void check(const char* op, Index b, Index h, Index n, Index k) const override { m.check(op, b, h, n, k); }
  };

  std::shared_ptr<Asked> of;

  Any() = default;
  template <class M>
  requires(limpid::IsModifier<M> && !std::is_same_v<M, Any>) Any(M m)  // NOLINT: implicit on purpose
      : of(std::make_shared<Of<M>>(std::move(m))) {}

  S value(S s, const At& a) const { return of ? of->value(s, a) : s; }
  S slope(S s, const At& a) const { return of ? of->slope(s, a) : S(1); }
  template <class T>
  S key_bias(const At& a, Index q0) const {
    return of ? of->key_bias(a, q0) : S(0);
  }
  template <class T>
  S row_constant(const At& a, Index q0) const {
    return of ? of->row_constant(a, q0) : S(0);
  }
  bool adds() const { return !of || of->adds(); }
  bool is_table() const { return of && of->is_table(); }
  template <class T>
  S amount(const At& a) const {
    return of ? of->amount(a) : S(0);
  }
  template <class T>
  limpid::Far far(const At& a) const {
    return of ? of->far(a) : limpid::Far{};
  }
  void add_gradient(const At& a, S ds, S* sum) const { of->add_gradient(a, ds, sum); }
  bool wants_gradient() const { return of && of->wants_gradient(); }
  Index gradient_size(Index n, Index m) const { return of ? of->gradient_size(n, m) : 0; }
  void deliver_gradient(const At& a, const S* sum) const { of->deliver_gradient(a, sum); }
  bool wants_serial_heads(Index b, Index h, Index n) const { return of && of->wants_serial_heads(b, h, n); }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if (of) of->check(op, b, h, n, m);
  }
};

/// What one modifier makes of the score of a pair. Minus infinity: the pair does not count.
struct Formula {
  std::function<Real(Real, const At&)> value;
  std::function<Real(Real, const At&)> slope = {};     // 1 if there is none
  std::function<void(const At&, Real)> gradient = {};  // is told dS of its result
};

/// An array that a modifier looks at, its gradient, and what the gradient should be.
template <class S>
struct Table {
  Mat<S> numbers, gradient;
  Mat<Real> expected, terms;  // terms: the sums of their sizes, by which rounding is measured
  void add(Index i, Index j, Real term) {
    expected(i, j) += term;
    if (std::isfinite(term)) terms(i, j) += std::abs(term);
  }
};

/// Modifiers and their law.
template <class S>
struct Law {
  std::string name;
  bool by_value = false;  // which of the two pairs below is meant
  Any<S, true> first_value, second_value;
  Any<S, false> first_start, second_start;
  AnyMask mask, second_mask;
  std::vector<Formula> formulas;
  std::function<bool(const At&)> keep = [](const At&) { return true; };
  std::vector<std::shared_ptr<Table<S>>> tables;
};

template <class S>
struct Problem {
  suite::Sizes sizes;
  Mat<S> q, k, v, dout, weights;  // weights: of queries, for relevance
  Mat<S> left, right;             // for one head: r x n and m x c
};

/// What a call gives, or should give.
template <class S>
struct Results {
  Mat<S> out, lse, dq, dk, dv, relevance;
  std::vector<Mat<S>> map, left, right, entropy;  // of every item and head
  std::vector<Mat<S>> tables;                     // gradients of the law's
};

struct Way {
  bool accumulate = false;
  int workers = 1;    // a pool of so many; 0: one thread that has the workers of three take tasks in reverse
  bool looks = true;  // maps, products and entropies as well
  limpid::Part part = limpid::Part::signed_;
};

/// By the library, with gradients set to `before` first.
template <class S>
Results<S> run(const Law<S>& law, const Problem<S>& p, const Way& way = {}, S before = S(0.5));
extern template Results<float> run(const Law<float>&, const Problem<float>&, const Way&, float);
extern template Results<double> run(const Law<double>&, const Problem<double>&, const Way&, double);

/// By plain loops over the pairs that count. What is not finite counts as NaN, so an entry is NaN exactly where its
/// formula, over these pairs, has such a number in it. `size`: the largest score.
template <class S>
Results<Real> by_loops(const Law<S>& law, const Problem<S>& p, const Way& way, Real before, Real* size = nullptr);
extern template Results<Real> by_loops(const Law<float>&, const Problem<float>&, const Way&, Real, Real*);
extern template Results<Real> by_loops(const Law<double>&, const Problem<double>&, const Way&, Real, Real*);

/// The first entry that is farther off than `units` of rounding of the array's largest, or of `size`, with its
/// numbers; else empty.
template <class S>
std::string difference(const Mat<S>& found, const Mat<Real>& wanted, Real units, Real size = 1);
extern template std::string difference(const Mat<float>&, const Mat<Real>&, Real, Real);
extern template std::string difference(const Mat<double>&, const Mat<Real>&, Real, Real);

template <class S>
Problem<S> problem(const suite::Sizes& s, std::uint64_t seed = 1) {
  suite::Random random(seed);
  Problem<S> p;
  p.sizes = s;
  p.q = suite::random_matrix<S>(random, s.batch * s.n, s.heads * s.d, -1.5, 1.5);
  p.k = suite::random_matrix<S>(random, s.batch * s.m, s.kv_heads * s.d, -1.5, 1.5);
  p.v = suite::random_matrix<S>(random, s.batch * s.m, s.kv_heads * s.dv);
  p.dout = suite::random_matrix<S>(random, s.batch * s.n, s.heads * s.dv);
  p.weights = suite::random_matrix<S>(random, s.batch, s.n, 0.1, 1);
  p.left = suite::random_matrix<S>(random, 2, s.n);
  p.right = suite::random_matrix<S>(random, s.m, 2);
  return p;
}

/// Every array of two results, by name.
template <class A, class B, class F>
void each_array(const Results<A>& a, const Results<B>& b, F&& f) {
  f("out", a.out, b.out), f("lse", a.lse, b.lse);
  f("dq", a.dq, b.dq), f("dk", a.dk, b.dk), f("dv", a.dv, b.dv), f("relevance", a.relevance, b.relevance);
  const auto all = [&](const std::string& name, const std::vector<Mat<A>>& x, const std::vector<Mat<B>>& y) {
    for (std::size_t i = 0; i < x.size() && i < y.size(); ++i) f(name + " " + std::to_string(i), x[i], y[i]);
  };
  all("map", a.map, b.map), all("left product", a.left, b.left), all("right product", a.right, b.right);
  all("entropy", a.entropy, b.entropy);
}

}  // namespace laws
