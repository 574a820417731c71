// limpid: what the sections of the targets table share
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "machine.hpp"
#include "ours.hpp"
#include "peers/peers.hpp"
#include "rows.hpp"

namespace bench {

inline constexpr double none = std::numeric_limits<double>::quiet_NaN();
inline constexpr double mib = 1024.0 * 1024.0;

/// What the sections have in common.
struct Session {
  Effort effort;
  std::string self;  // this program, to run parts of itself in a fresh process
  std::vector<Row> rows;
  Crew one{1}, two{2};

  Crew& crew(int threads) { return threads == 1 ? one : two; }

  void add(const std::string& section, const std::string& name, Figure figure, Better better, double must, double aim,
           const std::string& note = "", const std::string& unit = "") {
    rows.push_back({section, name, figure, unit, better, must, aim, note});
    std::cerr << "  " << name << ": " << short_number(figure.value) << (note.empty() ? "" : " (" + note + ")") << '\n';
  }
};

/// Candidates of one group, timed together; figures are read by name.
class Group {
 public:
  Group& add(Candidate c) {
    candidates_.push_back(std::move(c));
    return *this;
  }
  template <class S>
  Group& add(const std::vector<Peer<S>>& peers) {
    for (const Peer<S>& p : peers) candidates_.push_back(p.candidate);
    return *this;
  }
  Group& run(const Effort& effort) {
    for (Times& t : interleave(candidates_, effort)) times_[t.name] = std::move(t);
    return *this;
  }
  bool has(const std::string& name) const { return times_.count(name) != 0; }
  const Times& operator[](const std::string& name) const { return times_.at(name); }
  /// How many times quicker `ours` is than `theirs`.
  Figure over(const std::string& theirs, const std::string& ours = "ours") const {
    return ratio(times_.at(theirs), times_.at(ours));
  }
  /// Share of the peak loop, for `flop` flop a call.
  template <class S>
  Figure share(double flop, int threads = 1, const std::string& name = "ours") const {
    return ratio(times_.at("peak"), times_.at(name), flop / (multiply_adds_flop<S>() * threads));
  }

 private:
  std::vector<Candidate> candidates_;
  std::map<std::string, Times> times_;
};

inline std::string sized(Index n) { return "n = " + std::to_string(n); }

inline std::string rate(double flop, const Times& t) { return short_number(flop / t.median() * 1e-9) + " GFLOP/s"; }

/// The bound of a row that depends on n.
struct Bound {
  double must, aim;
};

/// A part of the table, measured on its own.
struct Section {
  const char* name;
  std::function<void(Session&)> rows;
};

/// Sections of the build for the machine at hand: those of plain attention, those of masks that keep few pairs, those of
/// whole models, those of explanations, those that go over all operators, and those of levels of optimisation.
std::vector<Section> attention_sections();
std::vector<Section> local_sections();
std::vector<Section> model_sections();
std::vector<Section> explanation_sections();
std::vector<Section> operator_sections();
std::vector<Section> level_sections();

/// Peak memory of one call, for a process of its own.
int memory_child(const std::string& direction, Index n, int threads);
int image_memory_child(Index side, int threads);
int explanation_memory_child(const std::string& direction, Index n, int threads);

}  // namespace bench
