// limpid: the version, and the name of the ABI that keeps differently built objects apart
// SPDX-License-Identifier: MIT
#pragma once

// The only place where the version stands: CMakeLists.txt reads these three lines.
#define LIMPID_VERSION_MAJOR 0
#define LIMPID_VERSION_MINOR 1
#define LIMPID_VERSION_PATCH 0

// Everything lives in the inline namespace limpid::LIMPID_ABI, for instance limpid::v0_1_avx512. Its name holds the
// version and whatever changes the code or the layout that the same header compiles to: a program may link objects that
// were built with and without -march=native, and no function of one is ever taken for a function of the other.
#if defined(LIMPID_NO_SIMD)
#define LIMPID_ABI_VECTORS w1
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VP2INTERSECT__)
#define LIMPID_ABI_VECTORS avx512vp2  // prefetches differently, see engine/tuning.hpp
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
#define LIMPID_ABI_VECTORS avx512
#elif defined(__AVX512F__)
#define LIMPID_ABI_VECTORS avx512f  // Eigen aligns to 64 bytes here, our vectors have 32
#elif defined(__AVX2__) && (defined(__FMA__) || defined(_MSC_VER))
#define LIMPID_ABI_VECTORS avx2
#elif defined(__AVX__) && defined(__FMA__)
#define LIMPID_ABI_VECTORS avx_fma
#elif defined(__AVX__)
#define LIMPID_ABI_VECTORS avx
#elif defined(__SSE4_1__)
#define LIMPID_ABI_VECTORS sse4
#elif defined(__SSE2__) || defined(_M_X64)
#define LIMPID_ABI_VECTORS sse2
#elif defined(__ARM_NEON)
#define LIMPID_ABI_VECTORS neon
#else
#define LIMPID_ABI_VECTORS w1
#endif

// What masks a pair is minus infinity, and a NaN must come out where it went in: a compiler that is told that there are
// neither makes something else of this library, silently.
#if !defined(LIMPID_ALLOW_FAST_MATH) && \
    (defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST))
// clang-format off
#error "limpid: infinity and NaN have a meaning here, so -ffast-math, -Ofast and -ffinite-math-only are refused unless you define LIMPID_ALLOW_FAST_MATH and mask nothing"
// clang-format on
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(_M_FP_FAST)
#define LIMPID_ABI_FINITE _finite
#else
#define LIMPID_ABI_FINITE
#endif
// g++ from version 12 on says what else it may do to sums; results are right all the same, but not the same bits.
#if defined(__ASSOCIATIVE_MATH__)
#define LIMPID_ABI_SUMS _associative
#else
#define LIMPID_ABI_SUMS
#endif
#if defined(__RECIPROCAL_MATH__)
#define LIMPID_ABI_QUOTIENTS _reciprocal
#else
#define LIMPID_ABI_QUOTIENTS
#endif
#if defined(__NO_SIGNED_ZEROS__)
#define LIMPID_ABI_ZEROS _unsigned
#else
#define LIMPID_ABI_ZEROS
#endif

#define LIMPID_ABI_JOIN_(major, minor, vectors, finite, sums, quotients, zeros) \
  v##major##_##minor##_##vectors##finite##sums##quotients##zeros
#define LIMPID_ABI_JOIN(major, minor, vectors, finite, sums, quotients, zeros) \
  LIMPID_ABI_JOIN_(major, minor, vectors, finite, sums, quotients, zeros)
#define LIMPID_ABI                                                                                                    \
  LIMPID_ABI_JOIN(LIMPID_VERSION_MAJOR, LIMPID_VERSION_MINOR, LIMPID_ABI_VECTORS, LIMPID_ABI_FINITE, LIMPID_ABI_SUMS, \
                  LIMPID_ABI_QUOTIENTS, LIMPID_ABI_ZEROS)
