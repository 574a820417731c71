// limpid: errors. One cold function raises them, so that the checks cost nothing where they pass.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../version.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Thrown when an argument does not fit: the text names operator, argument, what was found and what was wanted.
struct ShapeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

namespace detail {

[[noreturn, gnu::cold, gnu::noinline]] inline void raise(const std::string& text) {
#if defined(__cpp_exceptions)
  throw ShapeError(text);
#else
  std::fputs(text.c_str(), stderr);  // a build without exceptions has no other way to say why it stops
  std::abort();
#endif
}

/// A name in the text of an error. No std::string: a long one would allocate in every call, also where nothing is
/// wrong.
struct Name {
  const char* text;
  Name(const char* text_) : text(text_) {}                 // NOLINT: implicit on purpose
  Name(const std::string& text_) : text(text_.c_str()) {}  // NOLINT: the same; looks at it no longer than the call
  operator std::string() const { return text; }            // NOLINT
};
inline std::string operator+(Name name, const std::string& text) { return name.text + text; }

template <class Number>
std::string text_of(Number number) {
  return std::to_string(static_cast<long long>(number));
}

/// An option: a finite number, also in the scalar of the arrays, S. wanted says what else it must be.
template <class S>
void check_finite(Name op, const char* option, double value, bool fits = true, const char* wanted = "a finite number") {
  const S own = S(value);
  if (fits && std::isfinite(value) && own - own == S(0)) return;
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  raise(op.text + std::string(": ") + option + " is " + text + ", wanted " + wanted +
        (fits && std::isfinite(value) ? " in the scalar of the arrays" : ""));
}

inline std::string shape_text(long long rows, long long cols) { return text_of(rows) + " x " + text_of(cols); }

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
