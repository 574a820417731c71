// limpid: interleaved timing for the bench programs
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The p-quantile, 0 <= p <= 1, linear between the two nearest values. NaN for an empty sample.
inline double quantile(std::vector<double> x, double p) {
  if (x.empty()) return std::nan("");
  std::sort(x.begin(), x.end());
  const double place = p * static_cast<double>(x.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, x.size() - 1);
  return x[low] + (place - static_cast<double>(low)) * (x[high] - x[low]);
}

inline double median(std::vector<double> x) { return quantile(std::move(x), 0.5); }

/// One thing to time: makes `calls` calls and returns the seconds they took together. A candidate times itself, so
/// that a peer in another process can be one too.
struct Candidate {
  std::string name;
  std::function<double(long)> seconds;
};

/// A candidate out of something callable in this process.
template <class F>
Candidate candidate(std::string name, F f) {
  return {std::move(name), [f](long calls) mutable {
            const double start = now();
            for (long i = 0; i < calls; ++i) f();
            return now() - start;
          }};
}

/// How long to measure: `rounds` rounds, in each of which every candidate runs for at least `seconds`.
struct Effort {
  int rounds = 7;
  double seconds = 0.06;
};

/// Seconds per call of one candidate, one entry a round.
struct Times {
  std::string name;
  std::vector<double> seconds;
  double median() const { return bench::median(seconds); }
};

/// Times all candidates in interleaved rounds, A B C A B C: what disturbs the
/// machine for a while then disturbs every candidate, not one of them. Each round of
/// a candidate starts warm: one call untimed, unless a call alone fills the round.
inline std::vector<Times> interleave(const std::vector<Candidate>& candidates, Effort effort) {
  std::vector<Times> times;
  std::vector<long> calls;
  for (const Candidate& c : candidates) {
    c.seconds(1);
    long n = 1;
    double t = c.seconds(n);
    while (t < effort.seconds / 4 && n < (1L << 40)) {
      n = t > 0 ? std::max(n + 1, static_cast<long>(static_cast<double>(n) * effort.seconds / 2 / t)) : 4 * n;
      t = c.seconds(n);
    }
    // Five percent more than needed, so that a round is not a little shorter than promised.
    const double wanted = std::ceil(1.05 * effort.seconds * static_cast<double>(n) / t);
    calls.push_back(std::max(1L, static_cast<long>(wanted)));
    times.push_back({c.name, {}});
  }
  for (int round = 0; round < effort.rounds; ++round)
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (calls[i] > 1) candidates[i].seconds(1);
      times[i].seconds.push_back(candidates[i].seconds(calls[i]) / static_cast<double>(calls[i]));
    }
  return times;
}

/// A measured number with the quartiles of its rounds.
struct Figure {
  double value = std::nan("");
  double low = std::nan("");
  double high = std::nan("");
};

/// factor * (time of a / time of b), taken round by round: median and quartiles. The two times of a round were measured
/// within a fraction of a second, so what slows the machine down for longer than that cancels.
inline Figure ratio(const Times& a, const Times& b, double factor = 1) {
  std::vector<double> each;
  for (std::size_t i = 0; i < std::min(a.seconds.size(), b.seconds.size()); ++i)
    each.push_back(factor * a.seconds[i] / b.seconds[i]);
  return {median(each), quantile(each, 0.25), quantile(each, 0.75)};
}

}  // namespace bench
