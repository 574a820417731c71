// limpid: matrices. Mat owns, View and MutView look at rows of somebody else's memory.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "check.hpp"
#include "function_ref.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

using Index = Eigen::Index;

/// Owning row-major matrix: one token per row.
template <class S>
using Mat = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <class D>
std::true_type is_dense(const Eigen::DenseBase<D>&);
std::false_type is_dense(...);
template <class M>
inline constexpr bool is_eigen = decltype(is_dense(std::declval<const std::remove_cvref_t<M>&>()))::value;

template <class D>
std::true_type is_owner(const Eigen::PlainObjectBase<D>&);
std::false_type is_owner(...);
template <class M>
inline constexpr bool owns_memory = decltype(is_owner(std::declval<const std::remove_cvref_t<M>&>()))::value;

/// Everything a view asks of an Eigen argument, each failure one sentence. A column vector counts as n rows of one.
template <class S, class M, bool Writes>
constexpr bool check_viewable() {
  using Plain = std::remove_cvref_t<M>;
  constexpr bool direct = (Plain::Flags & Eigen::DirectAccessBit) != 0;
  static_assert(std::is_same_v<typename Plain::Scalar, S>,
                "limpid: all arrays of one call must have the same scalar type; cast the odd one into a Mat first");
  static_assert(direct, "limpid: pass a matrix, map or block, not an expression; store the expression in a Mat first");
  static_assert(Plain::IsRowMajor || Plain::ColsAtCompileTime == 1,
                "limpid: matrices must be row-major (one token per row); copy a column-major one into limpid::Mat<S>");
  if constexpr (direct)
    static_assert(Plain::InnerStrideAtCompileTime == 1,
                  "limpid: the entries of a row must be contiguous (inner stride 1); copy into limpid::Mat<S> first");
  static_assert(std::is_lvalue_reference_v<M> || !owns_memory<M>,
                "limpid: a temporary matrix would be gone before the view is read; give it a name first");
  if constexpr (Writes && direct)
    static_assert(
        (Plain::Flags & Eigen::LvalueBit) != 0 && !(owns_memory<M> && std::is_const_v<std::remove_reference_t<M>>),
        "limpid: this argument is written to and must not be const");
  return true;
}

}  // namespace detail

/// Read-only view of a row-major matrix: rows x cols entries, row i at data + i * stride, entries of a row contiguous.
/// Converts implicitly from a named row-major Eigen matrix, map or block; a default one is empty ("not given").
/// It owns nothing: what it looks at must outlive it.
template <class S>
struct View {
  using Scalar = S;
  const S* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;

  View() = default;
  View(const S* data_, Index rows_, Index cols_, Index stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  template <class M>
  requires detail::is_eigen<M> View(M&& m)  // NOLINT: implicit on purpose, as Eigen::Ref is
      : rows(m.rows()), cols(m.cols()) {
    static_assert(detail::check_viewable<S, M, false>());
    data = m.data();
    stride = std::remove_cvref_t<M>::IsRowMajor ? m.outerStride() : 1;
  }

  bool empty() const { return rows == 0 || cols == 0; }
  /// An array without entries has no memory either, but a shape: that of 0 tokens is given.
  bool given() const { return data != nullptr || (empty() && rows + cols > 0); }
  const S* row(Index i) const { return data + i * stride; }
  const S& operator()(Index i, Index j) const { return data[i * stride + j]; }
  View block(Index i, Index j, Index r, Index c) const { return {data ? data + i * stride + j : data, r, c, stride}; }
  auto map() const { return Eigen::Map<const Mat<S>, 0, Eigen::OuterStride<>>(data, rows, cols, {stride}); }
};

/// The writable View.
template <class S>
struct MutView {
  using Scalar = S;
  S* data = nullptr;
  Index rows = 0, cols = 0, stride = 0;

  MutView() = default;
  MutView(S* data_, Index rows_, Index cols_, Index stride_) : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  template <class M>
  requires detail::is_eigen<M> MutView(M&& m) : rows(m.rows()), cols(m.cols()) {  // NOLINT: implicit on purpose
    static_assert(detail::check_viewable<S, M, true>());
    data = const_cast<S*>(m.data());  // a const owner was refused above; maps and blocks carry their own constness
    stride = std::remove_cvref_t<M>::IsRowMajor ? m.outerStride() : 1;
  }

  operator View<S>() const { return {data, rows, cols, stride}; }
  bool empty() const { return rows == 0 || cols == 0; }
  bool given() const { return data != nullptr || (empty() && rows + cols > 0); }
  S* row(Index i) const { return data + i * stride; }
  S& operator()(Index i, Index j) const { return data[i * stride + j]; }
  MutView block(Index i, Index j, Index r, Index c) const {
    return {data ? data + i * stride + j : data, r, c, stride};
  }
  auto map() const { return Eigen::Map<Mat<S>, 0, Eigen::OuterStride<>>(data, rows, cols, {stride}); }
  void fill(S value) const {
    for (Index i = 0; i < rows; ++i) std::fill(row(i), row(i) + cols, value);
  }
};

namespace detail {

/// Sums over a whole head: wider than float, as they cancel.
template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, float>, double, S>;

template <class S>
void copy(View<S> from, MutView<S> to) {
  for (Index i = 0; i < from.rows; ++i) std::copy(from.row(i), from.row(i) + from.cols, to.row(i));
}

template <class S>
S dot(const S* a, const S* b, Index count) {
  S sum(0);
  for (Index i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

template <class S>
bool row_is_finite(const S* row, Index count) {
  using std::isfinite;
  bool fine = true;
  for (Index i = 0; i < count; ++i) fine &= static_cast<bool>(isfinite(row[i]));
  return fine;
}

/// Whether two blocks of memory share a byte; an exact test for two blocks of one packed buffer, whose rows interleave,
/// and for a row, which may lie between those of a block. What is not given shares nothing.
template <class A, class B>
bool overlap(const A& a, const B& b) {
  if (a.empty() || b.empty() || a.data == nullptr || b.data == nullptr) return false;
  const auto first = [](const auto& v) { return reinterpret_cast<std::uintptr_t>(v.data); };
  const auto last = [](const auto& v) { return reinterpret_cast<std::uintptr_t>(v.row(v.rows - 1) + v.cols); };
  if (last(a) <= first(b) || last(b) <= first(a)) return false;
  if (a.rows == 1 && b.rows == 1) return true;
  const Index stride = a.rows == 1 ? b.stride : a.stride;
  if ((b.rows > 1 && b.stride != stride) || stride == 0) return true;
  const auto size = static_cast<std::intptr_t>(sizeof(typename A::Scalar));
  const auto pitch = static_cast<std::intptr_t>(stride) * size;
  auto offset = static_cast<std::intptr_t>(first(b) - first(a)) % pitch;
  if (offset < 0) offset += pitch;
  return offset < static_cast<std::intptr_t>(a.cols) * size ||
         pitch - offset < static_cast<std::intptr_t>(b.cols) * size;
}

/// An array of a call, whatever its scalar, and its name in an
/// error: of + name, and the layer it belongs to in a stack.
struct NamedArray {
  const char* name;
  View<unsigned char> bytes;
  const char* of = "";
  Index layer = -1;

  template <class V>
  NamedArray(const char* name_, const V& v, const char* of_ = "", Index layer_ = -1)
      : name(name_),
        bytes(reinterpret_cast<const unsigned char*>(v.data), v.rows, v.cols * size<V>, v.stride * size<V>),
        of(of_),
        layer(layer_) {}
  std::string text() const { return std::string(of) + name + (layer < 0 ? "" : " of layer " + text_of(layer)); }

 private:
  template <class V>
  static constexpr Index size = static_cast<Index>(sizeof(typename V::Scalar));
};

/// A list of arrays as refuse_overlaps takes it: a function that calls the one it is given for each of them.
using ForArray = FunctionRef<void(const NamedArray&)>;
using ArrayList = FunctionRef<void(ForArray)>;

/// Of what a braced list holds, so for one statement only.
inline auto arrays(std::initializer_list<NamedArray> list) {
  return [list](ForArray f) {
    for (const NamedArray& one : list) f(one);
  };
}
template <class... Lists>
auto joined(const Lists&... lists) {
  return [=](ForArray f) { (lists(f), ...); };
}

/// What is written may share memory neither with what is read nor with anything else that is written.
inline void refuse_overlaps(Name op, ArrayList written, ArrayList read) {
  Index place = 0;
  written([&](const NamedArray& out) {
    const auto refuse = [&](const NamedArray& other) {
      if (overlap(out.bytes, other.bytes))
        raise(op + (": " + out.text() + " shares memory with " + other.text() + ", wanted memory of its own"));
    };
    Index before = place++;
    if (out.bytes.empty()) return;
    read(refuse);
    written([&](const NamedArray& other) {
      if (before-- > 0) refuse(other);
    });
  });
}
inline void refuse_overlaps(Name op, std::initializer_list<NamedArray> written,
                            std::initializer_list<NamedArray> read) {
  refuse_overlaps(op, ArrayList(arrays(written)), ArrayList(arrays(read)));
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
