// limpid: biases added to scores: one a key, or one a pair.
// SPDX-License-Identifier: MIT
#pragma once

#include "modifier.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// S + b_j for every key: b is 1 x m, or B x m for one row a batch item. db the same shape, added to: db_j += sum_i
/// dS_ij. Minus infinity, and nothing else, masks a key. Where all keys that a row sees have biases far from 0, as the
/// lowest number that some models write for a mask is, differences of b count, not their rounded sums with S; so it is
/// with relative() and bias() too, and with several of them.
template <class S>
struct KeyBias : Modifier {
  static constexpr bool per_key = true, tables = true, collects_gradient = true;
  View<S> b;
  MutView<S> db;
  Index row(const At& a) const { return b.rows == 1 ? 0 : a.batch; }
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class T>
  T amount(const At& a) const {
    return detail::taken<T>(b(row(a), a.key()));
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, amount<T>(a));
  }
  template <class T>
  T key_bias(const At& a, Index) const {
    return amount<T>(a);
  }
  template <class T>
  Far far(const At& a) const {
    return detail::far_of(b.row(row(a)), b.cols);
  }
  template <class T>
  void add_gradient(const At& a, T ds, T* sum) const {
    sum[a.key()] += ds;
  }
  bool wants_gradient() const { return !db.empty(); }
  Index gradient_size(Index, Index m) const { return wants_gradient() ? m : 0; }
  template <class T>
  void deliver_gradient(const At& a, const T* sum) const {
    for (Index j = 0; j < a.m; ++j) db(row(a), j) += S(sum[j]);
  }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("key bias", b));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the key bias", db));
  }
  void check(const char* op, Index batch, Index, Index, Index m) const {
    const bool fits = (b.rows == 1 || b.rows == batch) && b.cols == m;
    if (!fits) detail::raise_modifier(op, "key bias", b.rows, b.cols, "1 x m or B x m with m = " + detail::text_of(m));
    if (!db.empty() && (db.rows != b.rows || db.cols != b.cols))
      detail::raise_modifier(op, "gradient of the key bias", db.rows, db.cols, detail::shape_text(b.rows, b.cols));
  }
};
template <class B>
KeyBias<typename std::remove_cvref_t<B>::Scalar> key_bias(B&& b) {
  KeyBias<typename std::remove_cvref_t<B>::Scalar> m;
  m.b = View<typename std::remove_cvref_t<B>::Scalar>(std::forward<B>(b));
  return m;
}
template <class B, class DB>
KeyBias<typename std::remove_cvref_t<B>::Scalar> key_bias(B&& b, DB&& db) {
  auto m = key_bias(std::forward<B>(b));
  m.db = MutView<typename std::remove_cvref_t<B>::Scalar>(std::forward<DB>(db));
  return m;
}

/// S + table: a dense bias n x m for all, (H n) x m one a head, or (B H n) x m; dtable the same shape, added to.
/// The one thing here that is n x m, because the user brought it. Every sweep looks it through for entries far from 0,
/// which count as in KeyBias.
template <class S>
struct Bias : Modifier {
  static constexpr bool per_pair = true, tables = true, collects_gradient = true;
  View<S> table;
  MutView<S> dtable;
  Index row(const At& a) const {
    const Index n = a.all_rows();
    if (table.rows == n) return a.row();
    return (table.rows == a.heads * n ? a.head : a.batch * a.heads + a.head) * n + a.row();
  }
  bool adds() const { return true; }
  bool is_table() const { return true; }
  template <class T>
  T amount(const At& a) const {
    return detail::taken<T>(table(row(a), a.key()));
  }
  template <class T>
  T value(T s, const At& a) const {
    return detail::plus(s, amount<T>(a));
  }
  template <class T>
  Far far(At a) const {
    Far all;
    for (a.q = 0; a.q < a.n && !(all.above && all.below); ++a.q) {
      const Far one = detail::far_of(table.row(row(a)), table.cols);
      all = {all.above || one.above, all.below || one.below};
    }
    return all;
  }
  template <class T>
  void add_gradient(const At& a, T ds, T*) const {
    if (!dtable.empty()) dtable(row(a), a.key()) += S(ds);
  }
  bool wants_gradient() const { return !dtable.empty(); }
  bool wants_serial_heads(Index b, Index h, Index n) const { return !dtable.empty() && dtable.rows != b * h * n; }
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("bias", table));
  }
  template <class F>
  void writes(F&& f) const {
    f(detail::NamedArray("gradient of the bias", dtable));
  }
  void check(const char* op, Index b, Index h, Index n, Index m) const {
    if ((table.rows != n && table.rows != h * n && table.rows != b * h * n) || table.cols != m)
      detail::raise_modifier(
          op, "bias", table.rows, table.cols,
          "n x m, (H n) x m or (B H n) x m with n = " + detail::text_of(n) + ", m = " + detail::text_of(m));
    if (!dtable.empty() && (dtable.rows != table.rows || dtable.cols != table.cols))
      detail::raise_modifier(op, "gradient of the bias", dtable.rows, dtable.cols,
                             detail::shape_text(table.rows, table.cols));
  }
};
template <class A>
auto bias(A&& table) {
  using S = typename std::remove_cvref_t<A>::Scalar;
  Bias<S> m;
  m.table = View<S>(std::forward<A>(table));
  return m;
}
template <class A, class DA>
auto bias(A&& table, DA&& dtable) {
  auto m = bias(std::forward<A>(table));
  m.dtable = MutView<typename std::remove_cvref_t<A>::Scalar>(std::forward<DA>(dtable));
  return m;
}

}  // namespace LIMPID_ABI
}  // namespace limpid
