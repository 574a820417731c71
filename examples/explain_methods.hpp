// limpid: methods of `explain` by their names, what each takes, and what images and texts ask of a model alike.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/explain/rollout.hpp>
#include <limpid/explain/views.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "explain_report.hpp"

namespace report {

inline std::string number(const char* format, double value) {
  char out[64];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

/// What a method says of every patch or token, in order, and a remark.
struct Found {
  std::vector<float> values;
  std::string remark;

  Found() = default;
  Found(const Mat<float>& all, std::string said = {})  // NOLINT: implicit on purpose
      : values(all.data(), all.data() + all.size()), remark(std::move(said)) {}
};

/// A way to explain: its name, what it does in a few words, and how.
template <class Subject>
struct Method {
  std::string name, about;
  std::function<Found(Subject&)> run;
};

/// Those of these names, or all where there are none. Throws std::invalid_argument for a name that none has.
template <class Subject>
std::vector<Method<Subject>> chosen(const std::vector<Method<Subject>>& all, const std::vector<std::string>& names) {
  std::string known;
  for (const auto& m : all) known += (known.empty() ? "" : ", ") + m.name;
  for (const std::string& name : names)
    if (std::none_of(all.begin(), all.end(), [&](const auto& m) { return m.name == name; }))
      throw std::invalid_argument("--methods: found '" + name + "', wanted of " + known);
  std::vector<Method<Subject>> out;
  for (const auto& m : all)
    if (names.empty() || std::find(names.begin(), names.end(), m.name) != names.end()) out.push_back(m);
  return out;
}

/// A line of /proc/self/status in MiB; less than 0 where there is none.
inline double process_mib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (double kib = 0; word == key && status >> kib) return kib / 1024;
  return -1;
}

/// Milliseconds of a call, and the MiB that it took at most beyond what was there, less than 0 where the system does not
/// tell.
struct Taken {
  double milliseconds = 0, mib = -1;
};
template <class F>
Taken taken_by(F&& f) {
#if defined(__GLIBC__)
  malloc_trim(0);  // what was given back earlier would be taken again unseen
#endif
  const bool told = static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush);
  const double before = process_mib("VmRSS:");
  const auto start = std::chrono::steady_clock::now();
  f();
  Taken out;
  out.milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  if (told && before >= 0) out.mib = std::max(0.0, process_mib("VmHWM:") - before);
  return out;
}

/// Runs them one after another and prints of each where most is and what it took.
template <class Subject>
void run(const std::vector<Method<Subject>>& methods, Subject& subject, Report& to) {
  for (const auto& m : methods) {
    Found found;
    const Taken taken = taken_by([&] { found = m.run(subject); });
    const auto most = std::max_element(found.values.begin(), found.values.end()) - found.values.begin();
    std::printf("%-22s most at %-32s %7.1f ms%s%s%s\n", m.name.c_str(), to.name_of(most).c_str(), taken.milliseconds,
                taken.mib < 0 ? "" : number(" %6.1f MiB", taken.mib).c_str(), found.remark.empty() ? "" : "   ",
                found.remark.c_str());
    to.heats.push_back({m.name, m.about, found.remark, std::move(found.values), taken.milliseconds, taken.mib});
  }
}

/// Queries, keys and values of a block that a forward call kept.
template <class Block>
auto attention_of(const Block& block) {
  return limpid::qkv(block.attention.q, block.attention.k, block.attention.v);
}

/// weights A of one block, 1 x n: mean over these of its heads.
template <class Op, class Block>
Mat<float> attention_row(const Op& op, Block& block, const Mat<float>& weights, const std::vector<Index>& heads,
                         limpid::ExecutorRef executor) {
  Mat<float> sum = Mat<float>::Zero(1, weights.cols()), row = sum;
  for (const Index h : heads) {
    limpid::map_left(op, attention_of(block), block.attention.attention, weights, row,
                     {.head = h, .executor = executor});
    sum += row / static_cast<float>(heads.size());
  }
  return sum;
}
inline std::vector<Index> first_numbers(Index count) {
  std::vector<Index> out;
  for (Index i = 0; i < count; ++i) out.push_back(i);
  return out;
}

/// The rollout of all blocks, of a row of weights.
template <class Op, class Blocks>
Mat<float> rollout_row(const Op& op, Blocks& blocks, const Mat<float>& weights, limpid::ExecutorRef executor) {
  limpid::Rollout<float> rollout;
  rollout.start(limpid::View<float>(weights));
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block)
    rollout.layer(op, attention_of(*block), block->attention.attention, {.executor = executor});
  return rollout.rows();
}

/// Integrated gradients from x0, in steps until 1 % of the change is missing, at most so many: sums over the rows of x, and
/// how far they are from complete.
template <class Model>
Found integrated_gradients(const Model& model, limpid::View<float> x, const Mat<float>& x0, Index most) {
  const auto found = limpid::integrated_gradients_within(model, x, {.most = most}, x0);
  const double change = double(found.score) - double(found.baseline), gap = found.gap;
  return {found.tokens, std::to_string(found.steps) + " steps, " + number("sums to %.4g", change + gap) +
                            number(", the change is %.4g", change) +
                            number(", %.1f %% missing", change == 0 ? 0 : 100 * std::abs(gap / change))};
}

/// Where every token of every layer and head looks.
template <class Op, class Blocks>
nlohmann::json looks_of(const Op& op, Blocks& blocks, Index heads, Index tokens) {
  Looks looks(static_cast<Index>(blocks.size()), heads, tokens);
  for (auto& block : blocks)
    for (Index h = 0; h < heads; ++h) {
      const auto top = limpid::top_keys(op, attention_of(block), block.attention.attention, looks.each(), {.head = h});
      looks.add(top.keys, top.weights);
    }
  return looks.json();
}

/// What there is to know besides: r.looks are there, forward is what a forward call took.
inline void add_facts(Report& r, Index layers, Index heads, const Taken& forward) {
  double maps = 0;
  std::string tokens;
  for (const auto& part : r.looks) {
    const auto n = part.at("tokens").get<double>();
    tokens += (tokens.empty() ? "" : " and ") + number("%.0f", n);
    maps += 2 * double(layers * heads) * n * n * 4 / (1 << 20);
  }
  r.facts = {{"tokens", tokens},
             {"layers, heads", std::to_string(layers) + ", " + std::to_string(heads)},
             {"forward", number("%.1f ms", forward.milliseconds)},
             {"all maps and gradients would take", number("%.1f MiB", maps) + "; none was held"}};
}

}  // namespace report
