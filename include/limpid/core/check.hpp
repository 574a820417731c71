// limpid: errors. One cold function raises them, so that the checks cost nothing where they pass.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

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

/// A name in the text of an error. No std::string: a long one
/// would allocate in every call, also where nothing is wrong.
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

/// A number as an error shows it; one of a scalar that is no double has no text.
template <class S>
std::string number_text(const S& number) {
  if constexpr (std::is_constructible_v<double, S>) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", double(number));
    return text;
  } else {
    return "no finite number";
  }
}

/// An option: a finite number, also in the scalar of the arrays, S. wanted says what else it must be.
template <class S>
void check_finite(Name op, const char* option, double value, bool fits = true, const char* wanted = "a finite number") {
  const S own = S(value);
  if (fits && std::isfinite(value) && own - own == S(0)) return;
  raise(op.text + std::string(": ") + option + " is " + number_text(value) + ", wanted " + wanted +
        (fits && std::isfinite(value) ? " in the scalar of the arrays" : ""));
}

/// The largest number that may multiply sums: so far from the end of S that they do not reach it. Infinity where S has
/// no limits to tell.
template <class S>
double largest_factor() {
  if constexpr (std::numeric_limits<S>::is_specialized) return double(std::numeric_limits<S>::max() / S(0x1p20));
  return std::numeric_limits<double>::infinity();
}
template <class S, class... More>
bool are_factors(const S& number, const More&... more) {
  if constexpr (std::is_constructible_v<double, S>)
    if (!(std::abs(double(number)) <= largest_factor<S>())) return false;
  return (are_factors(more) && ...);
}
/// An option that multiplies sums: finite, and no larger than that.
template <class S>
void check_factor(Name op, const char* option, double value) {
  check_finite<S>(op, option, value);
  if (const double most = largest_factor<S>(); std::abs(value) > most)
    raise(op.text + std::string(": ") + option + " is " + number_text(value) + ", wanted at most " + number_text(most) +
          " in size");
}

/// How many steps a filter may take: more are a slip, and their memory would not fit into any machine's.
inline constexpr long long most_steps = 1 << 20;
inline void check_steps(Name op, const char* option, long long value) {
  if (value < 0) raise(op.text + std::string(": ") + option + " is " + text_of(value) + ", wanted 0 or more");
  if (value > most_steps)
    raise(op.text + std::string(": ") + option + " is " + text_of(value) + ", wanted at most " + text_of(most_steps));
}

/// Sizes of an array to be made, before it is: a product that overflows, or that no memory holds, is refused.
inline constexpr long long most_entries = 1LL << 40;
inline bool fits_memory(long long rows, long long cols) {
  return rows >= 0 && cols >= 0 && (cols == 0 || rows <= most_entries / cols) && rows <= most_entries &&
         cols <= most_entries;
}

inline std::string shape_text(long long rows, long long cols) { return text_of(rows) + " x " + text_of(cols); }

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
