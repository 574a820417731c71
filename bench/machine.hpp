// limpid: what the machine can do, measured: multiply-adds a second, bytes read a second
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "crew.hpp"
#include "timing.hpp"

namespace bench {

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;  // SSE2, NEON
#endif

inline constexpr const char* instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "AVX2 + FMA";
#elif defined(__AVX__)
  return "AVX";
#elif defined(__SSE2__)
  return "SSE2";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "generic";
#endif
}

template <class S>
struct Vector {
  typedef S type __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(S));
};

namespace detail {

// Twelve chains: two pipes times a latency of four or five need eight to ten; twelve and the two constants still fit
// into sixteen registers.
inline constexpr int chains = 12;
inline constexpr long trips = 20000;

template <class S, std::size_t... I>
__attribute__((noinline)) S multiply_add_chains(S factor, S term, std::index_sequence<I...>) {
  using V = typename Vector<S>::type;
  V a = V{} + factor, b = V{} + term;
  V sum[] = {(static_cast<void>(I), V{} + static_cast<S>(I))...};
  for (long t = 0; t < trips; ++t) ((sum[I] = sum[I] * a + b), ...);
  V all = V{};
  ((all += sum[I]), ...);
  return all[0];
}

}  // namespace detail

/// Flop of one call of `multiply_adds`, on one thread.
template <class S>
constexpr double multiply_adds_flop() {
  return 2.0 * detail::chains * static_cast<double>(detail::trips) * Vector<S>::lanes;
}

/// The peak loop: independent chains of x = x a + b in registers, contracted to fused multiply-adds where the target
/// has them (without FMA it is a multiplication and an addition, the peak of such a machine).
template <class S>
void multiply_adds() {
  volatile S factor = static_cast<S>(0.999), term = static_cast<S>(0.001);
  volatile S result = detail::multiply_add_chains<S>(factor, term, std::make_index_sequence<detail::chains>());
  static_cast<void>(result);
}

/// The peak loop on every thread of the crew at once.
template <class S>
Candidate peak_candidate(Crew& crew) {
  return {"peak", [&crew](long calls) {
            const double start = now();
            crew.run(crew.size(), [calls](int, int) {
              for (long i = 0; i < calls; ++i) multiply_adds<S>();
            });
            return now() - start;
          }};
}

/// Flop per second of the peak loop right now: the best of three bursts of about two milliseconds each.
template <class S>
double peak_now(Crew& crew) {
  const Candidate peak = peak_candidate<S>(crew);
  const double once = peak.seconds(1);
  const long calls = std::max(1L, static_cast<long>(2e-3 / std::max(once, 1e-7)));
  double best = once;
  for (int i = 0; i < 3; ++i) best = std::min(best, peak.seconds(calls) / static_cast<double>(calls));
  return multiply_adds_flop<S>() * crew.size() / best;
}

/// Reads `bytes` bytes (a multiple of 16 vectors is read, the rest left) with as many independent loads as the machine
/// can keep open, and returns something that depends on all of them.
__attribute__((noinline)) inline std::uint64_t read_bytes(const void* data, std::size_t bytes) {
  typedef std::uint64_t V __attribute__((vector_size(vector_bytes)));
  typedef std::uint64_t Loose __attribute__((vector_size(vector_bytes), aligned(8)));
  constexpr std::size_t lanes = vector_bytes / sizeof(std::uint64_t), step = 8 * lanes;
  const auto* p = static_cast<const std::uint64_t*>(data);
  const std::uint64_t* end = p + bytes / sizeof(std::uint64_t) / step * step;
  V s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
  auto load = [](const std::uint64_t* at) { return V(*reinterpret_cast<const Loose*>(at)); };
  for (; p != end; p += step) {
    s0 ^= load(p);
    s1 ^= load(p + lanes);
    s2 ^= load(p + 2 * lanes);
    s3 ^= load(p + 3 * lanes);
    s4 ^= load(p + 4 * lanes);
    s5 ^= load(p + 5 * lanes);
    s6 ^= load(p + 6 * lanes);
    s7 ^= load(p + 7 * lanes);
  }
  const V all = s0 ^ s1 ^ s2 ^ s3 ^ s4 ^ s5 ^ s6 ^ s7;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < lanes; ++i) sum ^= all[i];
  return sum;
}

/// Model name of the processor as the system tells it.
inline std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

inline std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown compiler";
#endif
}

}  // namespace bench
