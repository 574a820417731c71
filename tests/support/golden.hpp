// limpid: golden cases. A file holds inputs, outputs and gradients of one operator from an independent reference; an
// operator under test is one struct in tests/golden/<operator>.cpp that says how the library computes them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <limpid/io/tensor.hpp>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

using limpid::Index;
using limpid::Mat;

/// Results under the names they have in the file: "out.out", "grad.q" ... Vectors may come as rows or columns.
template <class S>
using Tensors = std::map<std::string, Mat<S>>;

/// Why a case cannot be run: a switch, kind or input that the operator's test does not know. Counts as failed.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a safetensors file holds. golden.cpp alone compiles the parser.
struct File {
  std::map<std::string, limpid::io::Tensor> tensors;
  std::map<std::string, std::string> metadata;

  bool has(const std::string& name) const { return tensors.count(name) != 0; }
  const limpid::io::Tensor& at(const std::string& name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw Refused("there is no tensor '" + name + "'");
    return found->second;
  }
  std::string meta(const std::string& name, const std::string& absent = "") const {
    const auto found = metadata.find(name);
    return found == metadata.end() ? absent : found->second;
  }
};
File read_file(const std::string& path);

/// One file.
class Case {
 public:
  explicit Case(const std::string& path) : file_(read_file(path)) {}

  const File& file() const { return file_; }
  std::string operator_name() const { return file_.meta("operator"); }

  /// Whether the file has the input "in.<name>".
  bool has(const std::string& name) const { return file_.has("in." + name); }

  /// Input of that name: the last axis gives the columns, all others the rows; a vector is a column. An absent one
  /// refuses the case.
  template <class S>
  Mat<S> in(const std::string& name) const {
    if (!has(name)) throw Refused("the input '" + name + "' is missing");
    used_.insert("in." + name);
    return perturbed<S>("in." + name);
  }
  /// The same, of no size where the file does not have it.
  template <class S>
  Mat<S> in_or_none(const std::string& name) const {
    return has(name) ? in<S>(name) : Mat<S>();
  }
  /// A vector as one row: the library's form of parameters for one head.
  template <class S>
  Mat<S> row(const std::string& name) const {
    return in<S>(name).transpose();
  }
  const std::vector<Index>& shape(const std::string& name) const { return file_.at("in." + name).shape; }

  /// Upstream gradient of the output of that name; zeros of the output's shape where the file has none.
  template <class S>
  Mat<S> dout(const std::string& name = "out") const {
    if (file_.has("dout." + name)) return perturbed<S>("dout." + name);
    if (!file_.has("out." + name)) throw Refused("the output '" + name + "' is missing");
    const Mat<S> like = file_.at("out." + name).matrix<S>();
    return Mat<S>::Zero(like.rows(), like.cols());
  }

  /// n x m, true = keep: the mask of the file and the switch
  /// `causal` together (query i sees key j when j - i <= m - n).
  Mat<bool> visible(Index n, Index m) const {
    Mat<bool> keep = Mat<bool>::Constant(n, m, true);
    if (has("mask")) keep = mask();
    if (flag("causal"))
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < m; ++j) keep(i, j) = keep(i, j) && j - i <= m - n;
    return keep;
  }
  Mat<bool> mask() const {
    used_.insert("in.mask");
    return file_.at("in.mask").matrix<bool>();
  }

  /// Switches, as strings in the file's metadata, with what an absent one means.
  std::string text(const std::string& name, const std::string& absent) const { return file_.meta(name, absent); }
  bool flag(const std::string& name, bool absent = false) const {
    const std::string value = file_.meta(name, absent ? "true" : "false");
    if (value == "true") return true;
    if (value == "false" || value == "none") return false;
    throw Refused("switch " + name + " is '" + value + "', wanted true or false");
  }
  std::optional<double> number(const std::string& name, std::nullopt_t) const {
    const double value = number(name, std::nan(""));
    return std::isnan(value) ? std::nullopt : std::optional<double>(value);
  }
  double number(const std::string& name, double absent) const {
    const std::string value = file_.meta(name);
    if (value.empty()) return absent;
    std::size_t end = 0;
    double result = 0;
    try {
      result = std::stod(value, &end);
    } catch (const std::exception&) {
      end = 0;
    }
    if (end != value.size()) throw Refused("switch " + name + " is '" + value + "', wanted a number");
    return result;
  }
  Index integer(const std::string& name, Index absent) const {
    const double value = number(name, static_cast<double>(absent));
    if (value != std::floor(value) || std::abs(value) > 1e15)
      throw Refused("switch " + name + " is '" + file_.meta(name) + "', wanted a whole number");
    return static_cast<Index>(value);
  }
  /// A switch that counts something one can divide by, such as heads.
  Index count(const std::string& name, Index absent) const {
    const Index value = integer(name, absent);
    if (value < 1) throw Refused("switch " + name + " is '" + file_.meta(name) + "', wanted at least 1");
    return value;
  }
  /// A switch that names one of `size` things, from 0.
  Index place(const std::string& name, Index absent, Index size) const {
    const Index value = integer(name, absent);
    if (value < 0 || value >= size)
      throw Refused("switch " + name + " is '" + file_.meta(name) + "', wanted less than " + std::to_string(size));
    return value;
  }
  /// Switch `scale`; absent means 1 / sqrt(d).
  double scale(Index d) const { return number("scale", 1.0 / std::sqrt(static_cast<double>(d))); }

  /// Inputs nobody has asked for yet.
  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const auto& entry : file_.tensors)
      if (entry.first.rfind("in.", 0) == 0 && used_.count(entry.first) == 0) names.push_back(entry.first.substr(3));
    return names;
  }

  /// From now on every real input comes with a random relative error of at most `relative`; 0 ends it.
  void perturb(double relative, std::uint64_t seed) { relative_ = relative, seed_ = seed; }

 private:
  template <class S>
  Mat<S> perturbed(const std::string& key) const {
    const limpid::io::Tensor& tensor = file_.at(key);
    Mat<S> out = tensor.matrix<S>();
    if (relative_ == 0 || tensor.dtype != limpid::io::DType::f64) return out;
    std::uint64_t state = seed_;
    for (char c : key) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    for (Index i = 0; i < out.size(); ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const double u = static_cast<double>(state >> 11) * 0x1p-52 - 1;
      out.data()[i] += static_cast<S>(u * relative_ * static_cast<double>(out.data()[i]));
    }
    return out;
  }

  File file_;
  double relative_ = 0;
  std::uint64_t seed_ = 0;
  mutable std::set<std::string> used_;
};

/// How an operator is run: by the library, and, where it is given, by the plain formula in the same precision.
struct Operator {
  std::set<std::string> switches;
  double bound = 1e-10;  ///< of errors in double
  std::function<Tensors<double>(const Case&)> library, formula;
  std::function<Tensors<float>(const Case&)> library_float, formula_float;
};

inline std::map<std::string, Operator>& registry() {
  static std::map<std::string, Operator> all;
  return all;
}

/// Enters an operator's test. T has
///     static constexpr const char* name        the operator as the files name it
///     static constexpr const char* switches    all switches it knows, separated by spaces
///     static constexpr double bound            optional: of errors in double
///     template <class S> static Tensors<S> library(const Case&)      every output and gradient, by the library
///     template <class S> static Tensors<S> formula(const Case&)      optional: the same by the plain formula
template <class T>
struct Registered {
  Registered() {
    Operator op;
    std::string word;
    for (const char* c = T::switches;; ++c) {
      if (*c != ' ' && *c != '\0') {
        word += *c;
        continue;
      }
      if (!word.empty()) op.switches.insert(word);
      word.clear();
      if (*c == '\0') break;
    }
    if constexpr (requires { T::bound; }) op.bound = T::bound;
    op.library = [](const Case& c) { return T::template library<double>(c); };
    op.library_float = [](const Case& c) { return T::template library<float>(c); };
    if constexpr (requires(const Case& c) { T::template formula<double>(c); }) {
      op.formula = [](const Case& c) { return T::template formula<double>(c); };
      op.formula_float = [](const Case& c) { return T::template formula<float>(c); };
    }
    registry()[T::name] = op;
  }
};

}  // namespace golden
