// limpid: what every operator of the list costs beside plain attention
// SPDX-License-Identifier: MIT
#include <string_view>

#include "operators.hpp"
#include "session.hpp"

namespace bench {
namespace {

/// At most so many times plain attention. An operator that is not here is measured all the same.
struct Cost {
  std::string_view name;
  double forward, backward;
  double forward_half, backward_half;  // two maps of half the width
};

/// Inputs twice as wide as the operator counts d: measured at half of it, its rows are as wide as plain attention's.
constexpr std::string_view doubled[] = {"rope"};
constexpr Cost costs[] = {{"twicing", 2.1, 1.85, none, none},
                          {"differential", 2.15, 1.85, 1.7, 1.3},
                          {"differential_gated", 2.15, 1.85, 1.7, 1.3},
                          {"pid", 1.06, none, none, none},
                          {"pid_lagged", 1.06, none, none, none},
                          {"nlm", 1.10, none, none, none},
                          {"bilateral", 1.10, none, none, none},
                          {"bilateral_classic", 1.10, none, none, none},
                          {"mssa", 1.0, none, none, none}};

const Cost* cost_of(std::string_view name) {
  for (const Cost& c : costs)
    if (c.name == name) return &c;
  return nullptr;
}

/// Whether an operator takes positions (arrays beside queries and keys) that need not be given.
template <class Entry>
bool has_optional_positions() {
  bool found = false;
  const suite::Traits traits = Entry::traits();
  using Op = decltype(Entry::make(limpid::chain()));
  Op::template Args<limpid::View<float>>::visit([&](const char* field, limpid::Role role) {
    const suite::Rule rule = suite::rule_of(traits, field, role);
    found |= role == limpid::Role::query_side && rule.optional && !rule.absent;
  });
  return found;
}

void cost_rows(Session& s) {
  for (Index n : {1024, 4096}) {
    struct Item {
      std::string name;
      double forward, backward;
    };
    std::vector<Item> items;
    Group g;
    auto add = [&](const std::string& name, const std::shared_ptr<Runner>& o, double forward, double backward) {
      g.add(candidate(name + " forward", [o] { o->forward(); }));
      g.add(candidate(name + " backward", [o] { o->backward(); }));
      items.push_back({name, forward, backward});
    };
    suite::Sizes sizes;
    sizes.n = sizes.m = n, sizes.d = sizes.dv = 64;
    // Every input given: without its state or its gates an operator would be plain attention.
    RunnerOptions all;
    all.all_inputs = true;
    suite::for_each_operator([&](auto entry) {
      using Entry = decltype(entry);
      const std::string name = Entry::name;
      const Cost* cost = cost_of(name);
      const double forward = cost ? cost->forward : none, backward = cost ? cost->backward : none;
      const bool two_widths = cost && !std::isnan(cost->forward_half);
      suite::Sizes own = sizes;
      for (const std::string_view wide : doubled)
        if (name == wide) own.d = 32;
      add(name + (two_widths ? ", full width" : ""), make_runner<Entry>(own, all), forward, backward);
      if (two_widths) {
        suite::Sizes half = sizes;
        half.d = 32;
        add(name + ", half width", make_runner<Entry>(half, all), cost->forward_half, cost->backward_half);
      }
      if (has_optional_positions<Entry>())
        add(name + ", without positions", make_runner<Entry>(sizes, {}), forward, backward);
    });
    g.run(s.effort);
    for (const Item& item : items) {
      if (item.name == "softmax") continue;
      for (const char* direction : {"forward", "backward"}) {
        const std::string d = std::string(" ") + direction;
        s.add("Operators, time over plain attention, d = 64", item.name + "," + d + ", " + sized(n),
              g.over(item.name + d, "softmax" + d), Better::smaller,
              std::string(direction) == "forward" ? item.forward : item.backward, none);
      }
    }
  }
}

}  // namespace

std::vector<Section> operator_sections() { return {{"operators", cost_rows}}; }

}  // namespace bench
