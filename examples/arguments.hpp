// limpid: the command line of the examples that take files and numbers by their place.
// SPDX-License-Identifier: MIT
#pragma once

#include <charconv>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

/// What follows the program's name; nothing where help was asked for, which is printed. usage names the program and all
/// that it takes.
inline std::optional<std::vector<std::string>> arguments(int argc, char** argv, std::size_t most, const char* usage) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") {
      std::printf("usage: %s\n", usage);
      return std::nullopt;
    }
    if (word.empty() || word.substr(0, 2) == "--")
      throw std::invalid_argument("found the argument '" + word + "', wanted: " + usage);
  }
  if (words.size() > most)
    throw std::invalid_argument("found " + std::to_string(words.size()) + " arguments, wanted: " + usage);
  return words;
}

/// The whole number that an argument is; name: its own.
inline long whole_number(const std::string& name, const std::string& word, long least, long most) {
  long number = 0;
  const char* end = word.data() + word.size();
  const auto read = std::from_chars(word.data(), end, number);
  if (read.ec != std::errc() || read.ptr != end || number < least || number > most)
    throw std::invalid_argument(name + " is '" + word + "', wanted a whole number from " + std::to_string(least) +
                                " to " + std::to_string(most));
  return number;
}
