// limpid: SIMD behind one small policy. The only file that knows an instruction set.
// SPDX-License-Identifier: MIT
//
// Vectors are written with the GCC and Clang vector extension: one text serves SSE2, AVX2, AVX-512 and NEON, float and
// double, and reads as arithmetic. A policy P offers: Scalar, V (the vector), lanes, tile_rows x tile_vectors (the
// register tile), registers, strands, load, store, set, pin, hold, fma, max, select by comparison, exp, lane_index,
// sums and the largest over lanes, prefetch, quads. OneLane is the same policy for any scalar Eigen accepts (long
// double, an autodiff scalar) and for other compilers; tests use it as the reference.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../core/inline.hpp"
#include "tuning.hpp"

#if defined(__GNUC__) && !defined(LIMPID_NO_SIMD)
#define LIMPID_VECTORS 1
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif
#endif

#if defined(__clang__)
#define LIMPID_UNROLL(n) _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LIMPID_UNROLL(n) _Pragma("GCC unroll 16")
#else
#define LIMPID_UNROLL(n)
#endif

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class S>
inline constexpr S log2_e = S(1.44269504088896340735992468100189214L);
template <class S>
inline constexpr S ln_2 = S(0.693147180559945309417232121458176568L);

/// Minus infinity of a scalar: a masked score.
template <class S>
S minus_infinity() {
  return -S(std::numeric_limits<double>::infinity());
}

/// The lowest that is finite.
template <class S>
S lowest_number() {
  if constexpr (std::numeric_limits<S>::is_specialized)
    return std::numeric_limits<S>::lowest();
  else
    return S(std::numeric_limits<double>::lowest());
}

/// The width-one policy.
template <class S>
struct OneLane {
  using Scalar = S;
  using V = S;
  static constexpr int lanes = 1, tile_rows = 4, tile_vectors = 2, registers = 16, strands = 1;
  LIMPID_INLINE static V load(const S* p) { return *p; }
  LIMPID_INLINE static void store(S* p, const V& v) { *p = v; }
  LIMPID_INLINE static V set(const S& s) { return s; }
  /// The same number, which a compiler that may reassociate (-funsafe-math-optimizations) cannot take apart.
  LIMPID_INLINE static V pin(V v) {
#if defined(__GNUC__)
#if defined(__SSE2__)
    if constexpr (std::is_same_v<S, float> || std::is_same_v<S, double>) {
      asm("" : "+x"(v));
      return v;
    }
#endif
    if constexpr (std::is_floating_point_v<S>) asm("" : "+m"(v));
#endif
    return v;
  }
  LIMPID_INLINE static V hold(const V& v) { return v; }
  /// One rounding wherever the machine has an instruction for it: left to contraction, some loops round once and others
  /// twice, see Simd::fma.
  LIMPID_INLINE static V fma(const V& a, const V& b, const V& c) {
#ifdef __FP_FAST_FMAF
    if constexpr (std::is_same_v<S, float>) return std::fma(a, b, c);
#endif
#ifdef __FP_FAST_FMA
    if constexpr (std::is_same_v<S, double>) return std::fma(a, b, c);
#endif
    return a * b + c;
  }
  LIMPID_INLINE static V max(const V& a, const V& b) { return a < b ? b : a; }
  /// where a < b: x, else y
  LIMPID_INLINE static V if_less(const V& a, const V& b, const V& x, const V& y) { return a < b ? x : y; }
  LIMPID_INLINE static V if_equal(const V& a, const V& b, const V& x, const V& y) { return a == b ? x : y; }
  LIMPID_INLINE static V lane_index() { return S(0); }
  LIMPID_INLINE static S sum(const V& v) { return v; }
  LIMPID_INLINE static V largest(const V& v) { return v; }
  static constexpr bool quads = false;
  template <bool Near = false>
  LIMPID_INLINE static void prefetch(const S*, std::ptrdiff_t) {}
  LIMPID_INLINE static void transpose(V*) {}
  LIMPID_INLINE static V sums_of(V* r) { return r[0]; }
  LIMPID_INLINE static V exp(const V& v) {
    using std::exp;
    if (v == minus_infinity<S>()) return S(0);
    return exp(v);
  }
  template <int N>
  LIMPID_INLINE static void exp_each(V* x) {
    for (int i = 0; i < N; ++i) x[i] = OneLane::exp(x[i]);
  }
};

#ifdef LIMPID_VECTORS

#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline constexpr int vector_bytes = 64;
inline constexpr int vector_registers = 32;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;  // wider than the machine's compiles, and runs ten times slower
inline constexpr int vector_registers = 16;
#else
inline constexpr int vector_bytes = 16;
#if defined(__aarch64__)
inline constexpr int vector_registers = 32;
#else
inline constexpr int vector_registers = 16;
#endif
#endif

template <class S>
struct Bits;
template <>
struct Bits<float> {
  using Integer = std::int32_t;
  static constexpr int mantissa = 23, bias = 127, lowest = -126;
  static constexpr float round = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  // (2^f - 1) / f on [-1/2, 1/2], minimax in the relative error of 2^f: 2.6e-9
  static constexpr int degree = 6;
  static constexpr float poly[degree] = {0.69314721496748640686F,   0.24022652782749013963F,
                                         0.05550310551995249712F,   0.0096176929926250585596F,
                                         0.0013406643587536332485F, 0.00015594672095691839069F};
};
template <>
struct Bits<double> {
  using Integer = std::int64_t;
  static constexpr int mantissa = 52, bias = 1023, lowest = -1022;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  // the same, 1.8e-17
  static constexpr int degree = 11;
  static constexpr double poly[degree] = {0.69314718055994569673,   0.24022650695910098006,   0.055504108664790395991,
                                          0.0096181291076070028225, 0.0013333558153439677232, 0.00015403530441571379487,
                                          1.5252727385427634649e-5, 1.3215442675797238875e-6, 1.0180647576596453048e-7,
                                          7.0725703207584155167e-9, 4.0780825360861861517e-10};
};

/// One machine vector of float or double.
template <class S>
struct Simd {
  using Scalar = S;
  using B = Bits<S>;
  using Integer = typename B::Integer;
  typedef S V __attribute__((vector_size(vector_bytes)));
  typedef S Unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(S)), may_alias));
  typedef Integer I __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(S)), registers = vector_registers;
  // measured: 8 x 2 with 32 registers, 4 x 3 with 16; wider ones spill
  static constexpr int tile_rows = vector_registers == 32 ? 8 : 4;
  static constexpr int tile_vectors = vector_registers == 32 ? 2 : 3;
  /// Rows that come from memory are best read as so many strands side by side, each a part of them in order: the
  /// hardware prefetcher follows every strand, but only so far, and not beyond a page. Four bring a third more than one
  /// (Zen 3); software prefetches besides would take places among the misses under way. With 32 registers one strand
  /// with software prefetch was measured to be best.
  static constexpr int strands = vector_registers == 32 ? 1 : 4;

  LIMPID_INLINE static V load(const S* p) { return *reinterpret_cast<const Unaligned*>(p); }
  LIMPID_INLINE static void store(S* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  LIMPID_INLINE static V set(S s) { return s - V{}; }
  /// The same vector, in a register from here on: g++ would load it anew for every multiply-add that it takes part in.
  LIMPID_INLINE static V pin(V v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__SSE2__)
    asm("" : "+x"(v));
#endif
    return v;
  }
  /// keep, for a vector of the register tile. SSE multiplies in place and would copy it for every product.
  LIMPID_INLINE static V hold(V v) { return vector_bytes > 16 ? pin(v) : v; }
  /// By its instruction where there is one: left to contraction, g++ tuned for Zen rounds twice in some loops and once
  /// in others, and what two sweeps sum in one order would differ in the last bit.
  LIMPID_INLINE static V fma(V a, V b, V c) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    else
      return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX__) && defined(__FMA__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    else
      return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
  }
  /// The larger one; a where one of them is NaN. Spelt out: g++ would compare and choose.
  LIMPID_INLINE static V max(V a, V b) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    // with a mask, of all lanes: without, g++ 12 warns of what its header leaves unset
    if constexpr (sizeof(S) == 4)
      return (V)_mm512_maskz_max_ps(__mmask16(-1), (__m512)b, (__m512)a);
    else
      return (V)_mm512_maskz_max_pd(__mmask8(-1), (__m512d)b, (__m512d)a);
#elif defined(__AVX__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm256_max_ps((__m256)b, (__m256)a);
    else
      return (V)_mm256_max_pd((__m256d)b, (__m256d)a);
#elif defined(__SSE2__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm_max_ps((__m128)b, (__m128)a);
    else
      return (V)_mm_max_pd((__m128d)b, (__m128d)a);
#else
    return a < b ? b : a;
#endif
  }
  LIMPID_INLINE static V if_less(V a, V b, V x, V y) { return a < b ? x : y; }
  LIMPID_INLINE static V if_equal(V a, V b, V x, V y) { return a == b ? x : y; }
  LIMPID_INLINE static V lane_index() {
    V v;
    LIMPID_UNROLL(16)
    for (int l = 0; l < lanes; ++l) v[l] = S(l);
    return v;
  }
  LIMPID_INLINE static S sum(V v) {
    over_lanes<lanes / 2>(v, [](V a, V b) { return a + b; });
    return v[0];
  }
  /// The largest lane, in all of them.
  LIMPID_INLINE static V largest(V v) {
    over_lanes<lanes / 2>(v, [](V a, V b) { return max(a, b); });
    return v;
  }

  /// Prefetches a cache line: into L2, as L1 would have to give up what is in use, or, if Near, into L1. Any address
  /// will do. Volatile, so that the compiler keeps the order of prefetches: g++ 12 shuffled those of a few rows, and
  /// the hardware no longer saw a stream.
  template <bool Near = false>
  LIMPID_INLINE static void prefetch(const S* p, std::ptrdiff_t further) {
    const auto address = reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(further) * sizeof(S);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): it may lie behind the array, where no pointer may be moved to
    const auto* line = reinterpret_cast<const char*>(address);
#if defined(__x86_64__) || defined(__i386__)
    if constexpr (Near)
      asm volatile("prefetcht0 %0" : : "m"(*line));
    else
      asm volatile("prefetcht1 %0" : : "m"(*line));
#else
    __builtin_prefetch(line, 0, Near ? 3 : 2);
#endif
  }

  // A quad is four neighbouring lanes.
  static constexpr bool quads = lanes >= 4;
  /// Four numbers in every quad. Spelt out: g++ would go through memory.
  LIMPID_INLINE static V in_quads(const S* p) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm512_maskz_broadcast_f32x4(0xFFFF, _mm_loadu_ps(p));
    else
      return (V)_mm512_maskz_broadcast_f64x4(0xFF, _mm256_loadu_pd(p));
#elif defined(__AVX__)
    if constexpr (sizeof(S) == 4)
      return (V)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    else
      return load(p);
#else
    return load(p);
#endif
  }
  /// Lane i of each quad is the sum of that quad of r[i].
  LIMPID_INLINE static V quad_sums(const V* r) {
    constexpr auto all = std::make_integer_sequence<int, lanes>();
    const V low = zip_quads<0>(r[0], r[1], all) + zip_quads<2>(r[0], r[1], all);
    const V high = zip_quads<0>(r[2], r[3], all) + zip_quads<2>(r[2], r[3], all);
    return join_quads<0>(low, high, all) + join_quads<2>(low, high, all);
  }

  /// e^x: exact zero where it is less than about the smallest normal number (and at minus infinity), NaN stays NaN.
  LIMPID_INLINE static V exp(V x) {
    exp_each<1>(&x);
    return x;
  }
  /// The same for N vectors, step by step for all of them: one after the other
  /// would fill the schedulers of the core with work that has to wait. x log2(e) is
  /// split into a whole number n and a rest, the rest by one fused multiply-add.
  template <int N>
  LIMPID_INLINE static void exp_each(V* x) {
    const V factor = set(log2_e<S>);
    constexpr S lowest = S(B::lowest) * ln_2<S>;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    // minus infinity makes a NaN on the way, which the mask takes out; the maskz forms keep g++ from warning
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) {
      const V y = x[i] * factor;
      if constexpr (sizeof(S) == 4) {
        const __m512 n = _mm512_maskz_roundscale_ps(0xFFFF, (__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x[i], _mm512_set1_ps(lowest), _CMP_NLT_UQ);
        x[i] = (V)_mm512_maskz_scalef_ps(normal, (__m512)power(fma(x[i], factor, -(V)n)), n);
      } else {
        const __m512d n = _mm512_maskz_roundscale_pd(0xFF, (__m512d)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __mmask8 normal = _mm512_cmp_pd_mask((__m512d)x[i], _mm512_set1_pd(lowest), _CMP_NLT_UQ);
        x[i] = (V)_mm512_maskz_scalef_pd(normal, (__m512d)power(fma(x[i], factor, -(V)n)), n);
      }
    }
#else
    // The low bits of `shifted` are n - lowest, those of a power of two below 2^n: zero for the lowest n, which takes
    // everything down to minus infinity. What is missing, a factor of 2, is in the polynomial.
    constexpr S round = B::round - S(B::lowest);
    V y[N], shifted[N], f[N], p[N];
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) y[i] = max(x[i], set(lowest));
    // pin: a compiler that may reassociate would cancel what is added and taken away again
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) shifted[i] = pin(fma(y[i], factor, set(round)));
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) f[i] = pin(shifted[i] - round);
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) f[i] = fma(y[i], factor, -f[i]);
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) p[i] = set(2 * B::poly[B::degree - 1]);
    LIMPID_UNROLL(16)
    for (int c = B::degree - 2; c >= 0; --c) {
      LIMPID_UNROLL(16)
      for (int i = 0; i < N; ++i) p[i] = fma(p[i], f[i], set(2 * B::poly[c]));
    }
    LIMPID_UNROLL(16)
    for (int i = 0; i < N; ++i) x[i] = fma(p[i], f[i], set(S(2))) * (V)((I)shifted[i] << B::mantissa);
#endif
  }

  /// A square of vectors, rows become columns: log2(lanes) rounds of a perfect shuffle.
  LIMPID_INLINE static void transpose(V* r) {
    V t[lanes];
    LIMPID_UNROLL(4)
    for (int step = 1; step < lanes; step *= 2) {
      LIMPID_UNROLL(16)
      for (int i = 0; i < lanes / 2; ++i) {
        t[2 * i] =
            zip(r[i], r[i + lanes / 2], std::integral_constant<int, 0>(), std::make_integer_sequence<int, lanes>());
        t[2 * i + 1] = zip(r[i], r[i + lanes / 2], std::integral_constant<int, lanes / 2>(),
                           std::make_integer_sequence<int, lanes>());
      }
      LIMPID_UNROLL(16)
      for (int i = 0; i < lanes; ++i) r[i] = t[i];
    }
  }

  /// Lane l of the result is the sum of all lanes of r[l]. Each round makes one vector of two: lanes whose number has
  /// the bit of the round add two lanes of the later vector, the others two of the earlier.
  LIMPID_INLINE static V sums_of(V* r) {
    fold<lanes / 2>(r);
    return r[0];
  }

 private:
  template <int From, int... L>
  LIMPID_INLINE static V zip_quads(V a, V b, std::integer_sequence<int, L...>) {
    return shuffle(a, b, std::integer_sequence<int, (L / 4 * 4 + From + L % 4 / 2 + L % 2 * lanes)...>());
  }
  template <int From, int... L>
  LIMPID_INLINE static V join_quads(V a, V b, std::integer_sequence<int, L...>) {
    return shuffle(a, b, std::integer_sequence<int, (L / 4 * 4 + From + L % 2 + L % 4 / 2 * lanes)...>());
  }
  /// Lane i is lane L_i of a and b side by side.
  template <int... L>
  LIMPID_INLINE static V shuffle(V a, V b, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, L...);
#else
    return __builtin_shuffle(a, b, I{L...});
#endif
  }
  /// Every lane becomes the combination of all, halves first: a tree instead of a chain.
  template <int Bit, class F>
  LIMPID_INLINE static void over_lanes(V& v, F combine) {
    if constexpr (Bit > 0) {
      v = combine(v, mirrored<Bit>(v, std::make_integer_sequence<int, lanes>()));
      over_lanes<Bit / 2>(v, combine);
    }
  }
  template <int Bit, int... L>
  LIMPID_INLINE static V mirrored(V v, std::integer_sequence<int, L...>) {
    return shuffle(v, v, std::integer_sequence<int, (L ^ Bit)...>());
  }
  template <int Bit>
  LIMPID_INLINE static void fold(V* r) {
    if constexpr (Bit > 0) {
      LIMPID_UNROLL(16)
      for (int i = 0; i < Bit; ++i) r[i] = folded<Bit>(r[i], r[i + Bit], std::make_integer_sequence<int, lanes>());
      fold<Bit / 2>(r);
    }
  }
  template <int Bit, int... L>
  LIMPID_INLINE static V folded(V a, V b, std::integer_sequence<int, L...>) {
    return shuffle(a, b, std::integer_sequence<int, ((L & Bit) ? lanes + L : L)...>()) +
           shuffle(a, b, std::integer_sequence<int, ((L & Bit) ? lanes + (L ^ Bit) : (L ^ Bit))...>());
  }
  template <int Half, int... L>
  LIMPID_INLINE static V zip(V a, V b, std::integral_constant<int, Half>, std::integer_sequence<int, L...>) {
    return shuffle(a, b, std::integer_sequence<int, (Half + L / 2 + (L % 2) * lanes)...>());
  }
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  LIMPID_INLINE static V power(V f) {
    V p = set(B::poly[B::degree - 1]);
    LIMPID_UNROLL(16)
    for (int i = B::degree - 2; i >= 0; --i) p = fma(p, f, set(B::poly[i]));
    return fma(p, f, set(S(1)));
  }
#endif
};

template <class S>
using Native = std::conditional_t<std::is_same_v<S, float> || std::is_same_v<S, double>, Simd<S>, OneLane<S>>;
#else
template <class S>
using Native = OneLane<S>;
#endif

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
