// limpid: the rows of the targets table: figure, must, aim; printing them, storing them
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "timing.hpp"

namespace bench {

enum class Better { larger, smaller };

/// One line of the table. A row without must and aim is there to be read, not to be held.
struct Row {
  std::string section;
  std::string name;
  Figure figure;
  std::string unit;
  Better better = Better::larger;
  double must = std::nan("");
  double aim = std::nan("");
  std::string note;

  bool meets(double bound) const { return better == Better::larger ? figure.value >= bound : figure.value <= bound; }
};

inline void to_json(nlohmann::json& j, const Row& r) {
  j = {{"section", r.section},
       {"name", r.name},
       {"figure", r.figure.value},
       {"low", r.figure.low},
       {"high", r.figure.high},
       {"unit", r.unit},
       {"better", r.better == Better::larger ? "larger" : "smaller"},
       {"must", r.must},
       {"aim", r.aim},
       {"note", r.note}};
}

inline void from_json(const nlohmann::json& j, Row& r) {
  // A NaN is written as null.
  auto number = [&j](const char* key) { return j.at(key).is_null() ? std::nan("") : j.at(key).get<double>(); };
  r.section = j.at("section").get<std::string>();
  r.name = j.at("name").get<std::string>();
  r.figure = {number("figure"), number("low"), number("high")};
  r.unit = j.at("unit").get<std::string>();
  r.better = j.at("better").get<std::string>() == "larger" ? Better::larger : Better::smaller;
  r.must = number("must");
  r.aim = number("aim");
  r.note = j.at("note").get<std::string>();
}

/// Three significant digits, without an exponent.
inline std::string short_number(double x) {
  if (std::isnan(x)) return "-";
  const double size = std::fabs(x);
  const int digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, x);
  return text;
}

/// Rows of several runs as those of one: the median of a row's figures, between the least and the largest of them. The
/// note is that of the first run.
inline std::vector<Row> across_runs(const std::vector<Row>& rows) {
  std::vector<Row> joined;
  std::vector<std::vector<double>> figures;
  for (const Row& r : rows) {
    const auto same = [&r](const Row& j) { return j.section == r.section && j.name == r.name; };
    const auto at = std::find_if(joined.begin(), joined.end(), same) - joined.begin();
    if (at == static_cast<std::ptrdiff_t>(joined.size())) {
      joined.push_back(r);
      figures.emplace_back();
    }
    figures[static_cast<std::size_t>(at)].push_back(r.figure.value);
  }
  for (std::size_t i = 0; i < joined.size(); ++i) {
    const auto missing = [](double f) { return std::isnan(f); };
    if (std::any_of(figures[i].begin(), figures[i].end(), missing))
      joined[i].figure = {};  // not measured in one is not measured
    else if (figures[i].size() > 1)
      joined[i].figure = {median(figures[i]), quantile(figures[i], 0), quantile(figures[i], 1)};
  }
  return joined;
}

/// `spread_title` says what stands beside the figures.
inline void print_table(std::vector<Row> rows, const char* spread_title) {
  // Sections in the order they first appear, whatever order their rows were measured in.
  std::vector<std::string> sections;
  for (const Row& r : rows)
    if (std::find(sections.begin(), sections.end(), r.section) == sections.end()) sections.push_back(r.section);
  std::stable_sort(rows.begin(), rows.end(), [&sections](const Row& a, const Row& b) {
    return std::find(sections.begin(), sections.end(), a.section) <
           std::find(sections.begin(), sections.end(), b.section);
  });
  std::size_t width = 4;
  for (const Row& r : rows) width = std::max(width, r.name.size() + r.unit.size() + (r.unit.empty() ? 0 : 2));
  const int w = static_cast<int>(width);
  std::string section;
  int musts = 0, musts_met = 0, aims = 0, aims_met = 0;
  std::vector<const Row*> short_of_must, short_of_aim;
  for (const Row& r : rows) {
    if (r.section != section) {
      section = r.section;
      std::printf("\n%s\n%-*s %9s %15s %9s %9s\n", section.c_str(), w + 2, "", "figure", spread_title, "must", "aim");
    }
    const std::string name = r.unit.empty() ? r.name : r.name + ", " + r.unit;
    const std::string sign = r.better == Better::larger ? ">= " : "<= ";
    auto bound = [&sign](double x) { return std::isnan(x) ? std::string("") : sign + short_number(x); };
    std::string verdict;
    const bool measured = !std::isnan(r.figure.value);
    if (!std::isnan(r.must)) {
      ++musts;
      if (measured && r.meets(r.must))
        ++musts_met;
      else
        short_of_must.push_back(&r), verdict = measured ? "SHORT OF MUST" : "NOT MEASURED";
    }
    if (!std::isnan(r.aim)) {
      ++aims;
      if (measured && r.meets(r.aim))
        ++aims_met;
      else if (verdict.empty())
        short_of_aim.push_back(&r), verdict = "short of aim";
    }
    const std::string spread =
        std::isnan(r.figure.low) ? "" : short_number(r.figure.low) + " .. " + short_number(r.figure.high);
    std::printf("  %-*s %9s %15s %9s %9s  %s%s%s\n", w, name.c_str(), short_number(r.figure.value).c_str(),
                spread.c_str(), bound(r.must).c_str(), bound(r.aim).c_str(), verdict.c_str(),
                verdict.empty() || r.note.empty() ? "" : "; ", r.note.c_str());
  }
  auto list = [](const char* title, const std::vector<const Row*>& some) {
    if (some.empty()) return;
    std::printf("\n%s\n", title);
    for (const Row* r : some)
      std::printf("  %s / %s: %s, must %s, aim %s\n", r->section.c_str(), r->name.c_str(),
                  short_number(r->figure.value).c_str(), short_number(r->must).c_str(), short_number(r->aim).c_str());
  };
  list("Short of must:", short_of_must);
  list("Short of aim:", short_of_aim);
  std::printf("\n%d of %d must, %d of %d aim\n", musts_met, musts, aims_met, aims);
}

}  // namespace bench
