// limpid: how photographs.py is called, by the bench and by examples/denoise
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace peers {

/// A word as the shell takes it for itself.
inline std::string quoted(const std::string& word) {
  std::string out = "'";
  for (char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

/// The lines that a command prints; none where it fails.
inline std::vector<std::string> lines_of(const std::string& command) {
  std::vector<std::string> lines;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return lines;
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) {
    lines.emplace_back(buffer);
    while (!lines.back().empty() && lines.back().back() == '\n') lines.back().pop_back();
  }
  if (pclose(pipe) != 0) lines.clear();
  return lines;
}

/// How the script is called: by a Python that has any of its filters. Empty where there is none.
inline std::string command(const std::string& script) {
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const std::string call = std::string(python) + " " + quoted(script);
    if (!lines_of(call + " --names 2>/dev/null").empty()) return call;
  }
  return "";
}

/// The filters that a command has, by name; one line on stderr says what is not installed.
inline std::vector<std::string> names(const std::string& command) {
  if (!command.empty()) return lines_of(command + " --names");
  std::fprintf(stderr, "scikit-image, OpenCV: not installed, left out\n");
  return {};
}

}  // namespace peers
