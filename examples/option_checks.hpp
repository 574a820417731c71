// limpid: what options of the examples are checked for besides what CLI11 has.
// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace option {

/// A path that is not empty.
inline CLI::Validator named_path() {
  return {
      [](const std::string& word) { return word.empty() ? std::string("wanted a path, found none") : std::string(); },
      "PATH"};
}

/// A number, both ends included: CLI::Range lets NaN pass.
inline CLI::Validator between(double low, double high) {
  char least[32], most[32];
  std::snprintf(least, sizeof least, "%g", low), std::snprintf(most, sizeof most, "%g", high);
  const std::string from = least, to = most;
  return {[=](const std::string& word) {
            char* end = nullptr;
            const double value = std::strtod(word.c_str(), &end);
            return !word.empty() && *end == 0 && value >= low && value <= high
                       ? std::string()
                       : "wanted from " + from + " to " + to + ", found '" + word + "'";
          },
          "in [" + from + " - " + to + "]"};
}

}  // namespace option
