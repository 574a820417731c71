// limpid: what an operator is given and what it keeps: fields with a name and a role, by which a call cuts out heads.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "matrix.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// How a packed array is cut into heads. B batch items, H query heads, G key heads (H a multiple of G).
enum class Role {
  query,       ///< (B n) x (H w): one block of columns a query head
  key,         ///< (B m) x (G w): one block of columns a key head
  query_side,  ///< n x w, or (B n) x w: the same for all heads, e.g. positions
  key_side,    ///< m x w, or (B m) x w
  head         ///< 1 x w for all heads, or H x w: parameters
};

/// Numbers of a call.
struct Dims {
  Index batch = 1, heads = 1, kv_heads = 1, n = 0, m = 0;
};

/// Query, key, value: the inputs of a plain operator, T = View<S>, or their gradients, T = MutView<S>.
template <class T>
struct QKV {
  T q{}, k{}, v{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("q", Role::query, a.q...);
    f("k", Role::key, a.k...);
    f("v", Role::key, a.v...);
  }
  /// An operator with more inputs takes these three and the defaults of the rest.
  template <class Other>
  requires(!std::is_same_v<Other, QKV> && requires(T t) { Other::from_qkv(t, t, t); }) operator Other()
      const {  // NOLINT: implicit on purpose
    return Other::from_qkv(q, k, v);
  }
};

/// Which part of A * dA counts as relevance: max(x, 0), max(-x, 0), |x| or x.
enum class Part { pos, neg, abs, signed_ };

namespace detail {

/// Whether gradients are added to what is there. A second query head of a group of keys always adds to theirs.
struct Accumulation {
  bool q = false, kv = false;
};

template <class M>
using ScalarOf = typename std::remove_cvref_t<M>::Scalar;

/// How many an object keeps, which are none any more where they have been moved away.
class Count {
 public:
  Count(Index n = 0) : n_(n) {}  // NOLINT: implicit on purpose
  Count(const Count&) = default;
  Count& operator=(const Count&) = default;
  Count(Count&& other) noexcept : n_(std::exchange(other.n_, 0)) {}
  Count& operator=(Count&& other) noexcept {
    n_ = std::exchange(other.n_, 0);
    return *this;
  }
  operator Index() const { return n_; }  // NOLINT
  operator Index&() { return n_; }       // NOLINT

 private:
  Index n_;
};

inline constexpr const char* gradient_of = "gradient of ";

struct NamesFields {
  ForArray f;
  const char* of;
  Index layer;
  template <class V>
  void operator()(const char* name, const V& v) const {
    f(NamedArray(name, v, of, layer));
  }
  template <class V>
  void operator()(const char* name, Role, const V& v) const {
    (*this)(name, v);
  }
};
/// The fields of an operator's or a layer's arguments, or of their gradients, for refuse_overlaps.
template <class Args>
auto fields_of(const Args& args, const char* of = "", Index layer = -1) {
  return [&args, of, layer](ForArray f) { Args::visit(NamesFields{f, of, layer}, args); };
}

}  // namespace detail

/// Views of q (B n) x (H d), k (B m) x (G d), v (B m) x (G dv).
template <class Q, class K, class V>
QKV<View<detail::ScalarOf<Q>>> qkv(Q&& q, K&& k, V&& v) {
  using S = detail::ScalarOf<Q>;
  return {View<S>(std::forward<Q>(q)), View<S>(std::forward<K>(k)), View<S>(std::forward<V>(v))};
}

/// Where the gradients of q, k and v go; shapes as theirs.
template <class Q, class K, class V>
QKV<MutView<detail::ScalarOf<Q>>> grads(Q&& dq, K&& dk, V&& dv) {
  using S = detail::ScalarOf<Q>;
  return {MutView<S>(std::forward<Q>(dq)), MutView<S>(std::forward<K>(dk)), MutView<S>(std::forward<V>(dv))};
}

/// What an operator keeps of a head between forward and backward.
enum class Kept {
  stat,  ///< count rows of n numbers, e.g. the log-sum-exp
  rows   ///< n x count numbers, e.g. the output
};

namespace detail {

template <class S>
void check_pair(const char* op, const char* q_name, const char* k_name, View<S> q, View<S> k) {
  if (q.cols != k.cols)  // not `given`: an array of no rows has no memory either
    raise(std::string(op) + ": " + q_name + " has " + text_of(q.cols) + " columns a head and " + k_name + " has " +
          text_of(k.cols) + ", wanted the same");
}
template <class S>
void check_scalar(const char* op, const char* name, View<S> v) {
  if (v.given() && v.cols != 1)
    raise(std::string(op) + ": " + name + " has " + text_of(v.cols) + " columns, wanted 1 (a number, or one a head)");
}

/// A call goes through its heads one by one: no more of them than its arrays have entries, and where these are empty
/// no more than this.
inline constexpr Index most_empty_heads = 1 << 20;
inline void check_counts(Name op, Index batch, Index heads, Index numbers) {
  const Index most = std::max(most_empty_heads, numbers);
  if (batch > most || heads > most / batch)
    raise(op + (": heads is " + text_of(heads) + " and batch " + text_of(batch) + ", wanted at most " + text_of(most) +
                " heads of all items, as arrays are that small"));
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
