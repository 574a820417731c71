// limpid: where numbers drift: two files of tensors, name by name.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>

#include "safetensors.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// How far a tensor is from its reference.
struct Drift {
  std::string name;
  std::vector<Index> shape;  ///< the reference's
  double error = 0;          ///< the largest distance of two entries
  double largest = 0;        ///< the largest entry of the reference, infinities and NaN left out
  std::string problem;       ///< why the numbers could not be compared; empty where they were

  /// The largest error over the largest entry: 0 where all are the same, infinity where nothing was compared.
  double relative() const {
    if (!problem.empty()) return std::numeric_limits<double>::infinity();
    return error == 0 ? 0 : error / largest;
  }
  bool beyond(double bound) const { return !(relative() <= bound); }
};

namespace detail {

/// Names with the numbers in them as numbers: 'layers.2' before 'layers.10'.
inline bool before(std::string_view a, std::string_view b) {
  const auto digits = [](std::string_view text, std::size_t at) {
    std::size_t end = at;
    while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
    return end;
  };
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    const std::size_t i_end = digits(a, i), j_end = digits(b, j);
    if (i_end > i && j_end > j) {
      std::string_view x = a.substr(i, i_end - i), y = b.substr(j, j_end - j);
      while (x.size() > 1 && x.front() == '0') x.remove_prefix(1);
      while (y.size() > 1 && y.front() == '0') y.remove_prefix(1);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
      i = i_end, j = j_end;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
    }
  }
  return a.size() - i < b.size() - j || (a.size() - i == b.size() - j && a < b);
}

inline Drift drift_of(const std::string& name, const Tensor& reference, const Tensor& found) {
  Drift out;
  out.name = name, out.shape = reference.shape;
  const std::vector<double> wanted = reference.values<double>(), got = found.values<double>();
  if (wanted.size() != got.size()) {
    out.problem = "found the shape " + shape_of(found.shape);
    return out;
  }
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (std::isfinite(wanted[i])) out.largest = std::max(out.largest, std::abs(wanted[i]));
    if (got[i] == wanted[i] || (std::isnan(got[i]) && std::isnan(wanted[i]))) continue;
    const double apart = std::abs(got[i] - wanted[i]);
    out.error = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(out.error, apart);
  }
  return out;
}

}  // namespace detail

/// The tensors of found beside those of the reference that have their names, in the order of the names with numbers as
/// numbers: which layer is the first whose numbers drift. Shapes may differ where the number of entries does not ([n,
/// D] and [1, n, D]); what has another size, another kind or is missing is told as its problem. What only found has is
/// left out, see extra_names. A NaN or an infinity that the other file has not is an infinite error.
inline std::vector<Drift> compare(const Safetensors& reference, const Safetensors& found) {
  std::vector<Drift> all;
  for (const auto& [name, tensor] : reference.tensors) {
    const auto other = found.tensors.find(name);
    try {
      if (other == found.tensors.end())
        all.push_back({name, tensor.shape, 0, 0, "not found"});
      else
        all.push_back(detail::drift_of(name, tensor, other->second));
    } catch (const FormatError& problem) {
      all.push_back({name, tensor.shape, 0, 0, problem.what()});
    }
  }
  std::sort(all.begin(), all.end(), [](const Drift& a, const Drift& b) { return detail::before(a.name, b.name); });
  return all;
}

/// The tensors that found has and the reference has not, in the same order.
inline std::vector<std::string> extra_names(const Safetensors& reference, const Safetensors& found) {
  std::vector<std::string> names;
  for (const auto& one : found.tensors)
    if (reference.tensors.count(one.first) == 0) names.push_back(one.first);
  std::sort(names.begin(), names.end(), detail::before);
  return names;
}

/// The comparison as text, a line a tensor: name, shape, the largest error, and that over the largest entry; behind
/// those where this is beyond `bound`, or nothing could be compared, a mark, and in the end how many they are and which
/// is the first.
inline std::string drift_text(const std::vector<Drift>& all, double bound) {
  std::size_t width = 6, shapes = 5, beyond = 0;
  const Drift* first = nullptr;
  for (const Drift& one : all) {
    width = std::max(width, std::min(one.name.size(), std::size_t(80)));
    shapes = std::max(shapes, detail::shape_of(one.shape).size());
  }
  const auto padded = [](std::string text, std::size_t to) {
    return text + std::string(to - std::min(to, text.size()), ' ');
  };
  const auto number = [](const char* format, double x) {
    char text[32];
    std::snprintf(text, sizeof text, format, x);
    return std::string(text);
  };
  std::string out = padded("tensor", width) + "  " + padded("shape", shapes) + "  error    over largest entry\n";
  for (const Drift& one : all) {
    const bool far = one.beyond(bound);
    beyond += far ? 1 : 0;
    if (far && first == nullptr) first = &one;
    out += padded(detail::printable(one.name, 80), width) + "  " + padded(detail::shape_of(one.shape), shapes) + "  " +
           (one.problem.empty() ? padded(number("%.1e", one.error), 7) + "  " + number("%.1e", one.relative())
                                : one.problem) +
           (far ? "  <<" : "") + "\n";
  }
  out += std::to_string(beyond) + " of " + std::to_string(all.size()) + " beyond " + number("%g", bound);
  return out + (first == nullptr ? "" : ", the first is " + detail::in_quotes(first->name, 80)) + "\n";
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
