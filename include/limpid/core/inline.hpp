// limpid: what compilers are told of single functions; an array without functions of its own.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

#include "../version.hpp"

#if defined(__GNUC__)
#define LIMPID_INLINE [[gnu::always_inline]] inline
#define LIMPID_NOINLINE [[gnu::noinline]]
#define LIMPID_RESTRICT __restrict__
#else
#define LIMPID_INLINE inline
#define LIMPID_NOINLINE
#define LIMPID_RESTRICT
#endif

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// std::array for what has a type of its own with every operator: where nothing is inlined, as in a debug build, that
/// would be eight functions for each of them.
template <class T, std::size_t N>
struct Few {
  static constexpr std::size_t count = N;
  T items[N];

  LIMPID_INLINE T& operator[](std::size_t i) { return items[i]; }
  LIMPID_INLINE const T& operator[](std::size_t i) const { return items[i]; }
  LIMPID_INLINE T* begin() { return items; }
  LIMPID_INLINE T* end() { return items + N; }
  LIMPID_INLINE const T* begin() const { return items; }
  LIMPID_INLINE const T* end() const { return items + N; }
};

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
