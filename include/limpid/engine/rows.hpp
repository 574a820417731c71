// limpid: loops along rows. Whole vectors, then what is left one by one, from one text: a compiler's own vectoriser
// does nothing for most of them at -O2.
// SPDX-License-Identifier: MIT
#pragma once

#include "simd.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// f(policy, column) over whole vectors of P, then over the columns that are left with OneLane.
template <class P, class F>
LIMPID_INLINE void for_lanes(Index count, const F& f) {
  Index c = 0;
  for (; c + P::lanes <= count; c += P::lanes) f(P{}, c);
  for (; c < count; ++c) f(OneLane<typename P::Scalar>{}, c);
}

/// The sum of f(policy, column) over all columns, four vectors
/// at a time: in one chain each sum would wait for the last.
template <class P, class F>
LIMPID_INLINE typename P::Scalar sum_lanes(Index count, const F& f) {
  using S = typename P::Scalar;
  typename P::V sum = P::set(S(0)), second = sum, third = sum, fourth = sum;
  Index c = 0;
  for (; c + 4 * P::lanes <= count; c += 4 * P::lanes) {
    sum = sum + f(P{}, c);
    second = second + f(P{}, c + P::lanes);
    third = third + f(P{}, c + 2 * P::lanes);
    fourth = fourth + f(P{}, c + 3 * P::lanes);
  }
  for (; c + P::lanes <= count; c += P::lanes) sum = sum + f(P{}, c);
  sum = (sum + second) + (third + fourth);
  S rest(0);
  for (; c < count; ++c) rest = rest + f(OneLane<S>{}, c);
  return P::sum(sum) + rest;
}

template <class P>
typename P::Scalar row_sum(const typename P::Scalar* x, Index count) {
  return sum_lanes<P>(count, [&](auto policy, Index c) { return decltype(policy)::load(x + c); });
}

/// The largest |x_c|, past what is NaN.
template <class P>
typename P::Scalar largest_entry(const typename P::Scalar* x, Index count) {
  using S = typename P::Scalar;
  typename P::V tops = P::set(S(0));
  S largest(0);
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    const typename L::V entry = L::load(x + c), size = L::max(entry, -entry);
    if constexpr (L::lanes == P::lanes)
      tops = P::max(tops, size);
    else
      largest = L::max(largest, size);
  });
  S lanes[P::lanes];
  P::store(lanes, P::largest(tops));
  return OneLane<S>::max(largest, lanes[0]);
}

/// Column by column the median of count rows, at most `most` of them; of none 0.
template <class P, Index most>
void median_of_rows(const typename P::Scalar* const* rows, Index count, Index cols, typename P::Scalar* to) {
  for_lanes<P>(cols, [&](auto policy, Index c) {
    using L = decltype(policy);
    typename L::V column[most];
    for (Index s = 0; s < count; ++s) column[s] = L::load(rows[s] + c);
    for (Index least = 0; least < count / 2 + 1; ++least)  // the least of those that are left goes to the front
      for (Index s = count - 1; s > least; --s) {
        const typename L::V a = column[s - 1], b = column[s];
        column[s - 1] = L::if_less(a, b, a, b), column[s] = L::if_less(a, b, b, a);
      }
    L::store(to + c, count == 0 ? L::set(typename P::Scalar(0)) : column[count / 2]);
  });
}

/// to = from.
template <class P>
LIMPID_INLINE void copy_row(const typename P::Scalar* from, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::load(from + c));
  });
}
/// to += from.
template <class P>
LIMPID_INLINE void add_row(const typename P::Scalar* from, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::load(to + c) + L::load(from + c));
  });
}

/// to = factor from; to may be from.
template <class P>
LIMPID_INLINE void scale_row(typename P::Scalar factor, const typename P::Scalar* from, typename P::Scalar* to,
                             Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::set(factor) * L::load(from + c));
  });
}
/// to = a + factor b; to may be either.
template <class P>
LIMPID_INLINE void add_scaled_row(const typename P::Scalar* a, typename P::Scalar factor, const typename P::Scalar* b,
                                  typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::fma(L::set(factor), L::load(b + c), L::load(a + c)));
  });
}

/// to = a + factors o b, of null factors a + b; to may be either.
template <class P>
LIMPID_NOINLINE void add_times_row(const typename P::Scalar* a, const typename P::Scalar* factors,
                                   const typename P::Scalar* b, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    if (factors)
      L::store(to + c, L::fma(L::load(factors + c), L::load(b + c), L::load(a + c)));
    else
      L::store(to + c, L::load(a + c) + L::load(b + c));
  });
}
/// to = a o b; to may be either.
template <class P>
LIMPID_NOINLINE void times_row(const typename P::Scalar* a, const typename P::Scalar* b, typename P::Scalar* to,
                               Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::load(a + c) * L::load(b + c));
  });
}

/// to = a x + b y; to may be either.
template <class P>
LIMPID_NOINLINE void combine_row(typename P::Scalar a, const typename P::Scalar* x, typename P::Scalar b,
                                 const typename P::Scalar* y, typename P::Scalar* to, Index count) {
  for_lanes<P>(count, [&](auto policy, Index c) {
    using L = decltype(policy);
    L::store(to + c, L::fma(L::set(a), L::load(x + c), L::set(b) * L::load(y + c)));
  });
}

/// to = from, or to += from.
template <class S>
void copy_or_add(View<S> from, MutView<S> to, bool accumulate) {
  if (!accumulate) return copy(from, to);
  for (Index i = 0; i < from.rows; ++i) add_row<Native<S>>(from.row(i), to.row(i), from.cols);
}

/// Whole rows at once: to = factor * from, or to += factor * from. Rows written to are seldom in cache, so they
/// are prefetched.
template <class P>
LIMPID_NOINLINE void copy_or_add_scaled(View<typename P::Scalar> from, typename P::Scalar factor,
                                        MutView<typename P::Scalar> to, bool accumulate) {
  using V = typename P::V;
  const V f = P::set(factor);
  for (Index i = 0; i < to.rows; ++i) {
    const auto* x = from.row(i);
    auto* y = to.row(i);
    Index c = 0;
    for (Index l = 0; l < to.cols; l += line_of<typename P::Scalar>) P::prefetch(y + l, 16 * to.stride);
    if (accumulate) {
      for (; c + P::lanes <= to.cols; c += P::lanes) P::store(y + c, P::load(y + c) + f * P::load(x + c));
      for (; c < to.cols; ++c) y[c] += factor * x[c];
    } else {
      for (; c + P::lanes <= to.cols; c += P::lanes) P::store(y + c, f * P::load(x + c));
      for (; c < to.cols; ++c) y[c] = factor * x[c];
    }
  }
}

template <class S>
void clear(S* data, Index count) {
  std::fill(data, data + count, S(0));
}

template <class P>
bool all_finite(View<typename P::Scalar> v) {
  using S = typename P::Scalar;
  constexpr int G = P::strands, sums = 4;  // of one row as many sums side by side: in one chain each would wait
  static_assert(G <= sums);
  const Index strand = v.rows / G;
  // a zero that the compiler cannot see: with -fno-signed-zeros it would leave out x * 0
  const typename P::V nought = P::pin(P::set(S(0)));
  const S none = P::sum(nought);
  typename P::V zero[sums];
  LIMPID_UNROLL(4)
  for (int g = 0; g < sums; ++g) zero[g] = nought;
  S rest(0);
  const auto row = [&](Index i, auto sides) {  // of each strand, or alone
    Index j = 0;
    if constexpr (decltype(sides)::value == 1)
      for (; j + sums * P::lanes <= v.cols; j += sums * P::lanes) {
        LIMPID_UNROLL(4)
        for (int g = 0; g < sums; ++g) zero[g] = P::fma(P::load(v.row(i) + j + g * P::lanes), nought, zero[g]);
      }
    for (; j + P::lanes <= v.cols; j += P::lanes) {
      LIMPID_UNROLL(4)
      for (int g = 0; g < decltype(sides)::value; ++g)
        zero[g] = P::fma(P::load(v.row(i + g * strand) + j), nought, zero[g]);
    }
    for (; j < v.cols; ++j)
      for (int g = 0; g < decltype(sides)::value; ++g) rest += v(i + g * strand, j) * none;
  };
  for (Index i = 0; i < strand; ++i) row(i, std::integral_constant<int, G>());
  for (Index i = G * strand; i < v.rows; ++i) row(i, std::integral_constant<int, 1>());
  LIMPID_UNROLL(4)
  for (int g = 0; g < sums; ++g) rest += P::sum(zero[g]);
  return !(rest != S(0));
}

/// <a, b>, lanes along the entries.
template <class P>
typename P::Scalar vector_dot(const typename P::Scalar* a, const typename P::Scalar* b, Index count) {
  typename P::V sum = P::set(typename P::Scalar(0));
  Index j = 0;
  for (; j + P::lanes <= count; j += P::lanes) sum = P::fma(P::load(a + j), P::load(b + j), sum);
  return P::sum(sum) + dot(a + j, b + j, count - j);
}

/// Both for callers outside of the engine, who know no policy.
template <class S>
S squared_norm(View<S> x, Index i) {
  return vector_dot<Native<S>>(x.row(i), x.row(i), x.cols);
}
template <class S>
bool holds_finite(View<S> x) {
  return all_finite<Native<S>>(x);
}

/// The next of rows that lie so far apart, one after the other: of a square g++ would keep the place of every row, and
/// make them all anew for the next.
template <class T>
LIMPID_INLINE T* next_row(T* row, Index stride) {
  row += stride;
#if defined(__GNUC__)
  asm("" : "+r"(row));
#endif
  return row;
}

/// out_i = <a_i, b_i> for every row, summed in the order of the register tile: where one weight is 1 and all others are
/// 0, a row of out is a row of v, and delta is the dA of that pair to the last bit, so that their difference is 0.
template <class P>
LIMPID_NOINLINE void row_dots(View<typename P::Scalar> a, View<typename P::Scalar> b, typename P::Scalar* out) {
  using S = typename P::Scalar;
  using V = typename P::V;
  constexpr Index w = P::lanes;
  // One square after the other, by a running address: with both at once compilers keep 2 w addresses, and not in
  // registers.
  const auto columns = [](View<S> of, Index i, Index rows, Index c, V* square) {
    const S* p = of.row(i) + c;
    LIMPID_UNROLL(16)
    for (Index r = 0; r < w; ++r) {
      if (r > 0 && r < rows) p = next_row(p, of.stride);
      square[r] = P::load(p);
      P::prefetch(p, w * of.stride);  // of the next w rows
    }
    P::transpose(square);
  };
  for (Index i = 0; i < a.rows; i += w) {
    const Index rows = std::min(w, a.rows - i);
    const auto row = [&](View<S> of, Index r) { return of.row(r < rows ? i + r : i); };
    V sum = P::set(S(0));
    Index c = 0;
    for (; c + w <= a.cols; c += w) {
      V x[w], y[w];
      columns(a, i, rows, c, x), columns(b, i, rows, c, y);
      LIMPID_UNROLL(16)
      for (Index r = 0; r < w; ++r) sum = P::fma(x[r], y[r], sum);
    }
    S lane[w];
    for (; c < a.cols; ++c) {
      S other[w];
      for (Index r = 0; r < w; ++r) lane[r] = row(a, r)[c], other[r] = row(b, r)[c];
      sum = P::fma(P::load(lane), P::load(other), sum);
    }
    P::store(lane, sum);
    std::copy(lane, lane + rows, out + i);
  }
}

/// sum_ij g_ij v_ij, where g is not 0; made and summed wide, as most of it may cancel. By reference: of several calls
/// with one g by value, g++ 12 -O2 stored it for the first alone, and a call between them wrote over it.
template <class S>
Accumulator<S> inner_product(const View<S>& g, const View<S>& v) {
  Accumulator<S> sum = 0;
  for (Index i = 0; i < g.rows; ++i)
    for (Index j = 0; j < g.cols; ++j)
      if (g(i, j) != S(0)) sum += Accumulator<S>(g(i, j)) * Accumulator<S>(v(i, j));
  return sum;
}

/// out_i = w1_i a_i - w2_i b_i; out may be a or b.
template <class P>
LIMPID_NOINLINE void weighted_difference(const typename P::Scalar* w1, View<typename P::Scalar> a,
                                         const typename P::Scalar* w2, View<typename P::Scalar> b,
                                         MutView<typename P::Scalar> out) {
  using V = typename P::V;
  for (Index i = 0; i < out.rows; ++i) {
    const auto *x = a.row(i), *y = b.row(i);
    auto* z = out.row(i);
    const auto minus = -w2[i];
    const V f = P::set(w1[i]), g = P::set(minus);
    Index c = 0;
    for (; c + P::lanes <= out.cols; c += P::lanes) P::store(z + c, P::fma(f, P::load(x + c), g * P::load(y + c)));
    for (; c < out.cols; ++c) z[c] = w1[i] * x[c] + minus * y[c];
  }
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
