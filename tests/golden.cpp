// limpid: `golden FOLDER` checks the library against every golden case below the folder, in double and in float.
// SPDX-License-Identifier: MIT
//
// Bounds, both relative to the largest entry of a tensor (a tensor that vanishes beside its fellows, below 1e-9 of the
// largest entry among the case's outputs, or among its gradients, is measured by that entry instead):
//   double   1e-10, or what the operator's test says, or 4 times how far the plain formula's own result moves when the
//            inputs move by half a double epsilon, where that is more: if one weight is all but 1, delta cancels against
//            dA and neither the formula nor the reference has ten digits of the small rest
//   float    4 times the larger of two errors, plus 32 float epsilons: that of the plain formula computed in float, and
//            what inputs moved by half a float epsilon do to the library's result in double. Operators whose test
//            gives no plain formula go by the second alone.
#include "support/golden.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <limpid/io/safetensors.hpp>

golden::File golden::read_file(const std::string& path) {
  limpid::io::Safetensors file = limpid::io::read_safetensors(path);
  return {std::move(file.tensors), std::move(file.metadata)};
}

namespace {

using namespace golden;

constexpr double formula_bound = 1e-6;
constexpr double multiple = 4, float_floor = 32 * 0x1p-23;
constexpr std::uint64_t draws = 4;

bool is_result(const std::string& key) { return key.rfind("out.", 0) == 0 || key.rfind("grad.", 0) == 0; }

/// What an error in each result is measured by.
std::map<std::string, double> scales_of(const Case& c) {
  std::map<std::string, double> scales, largest;
  for (const auto& [key, tensor] : c.file().tensors) {
    if (!is_result(key)) continue;
    double top = 0;
    for (double x : tensor.values<double>())
      if (std::isfinite(x)) top = std::max(top, std::abs(x));
    scales[key] = top;
    double& all = largest[key.substr(0, 4)];
    all = std::max(all, top);
  }
  for (auto& [key, scale] : scales) {
    const double all = largest[key.substr(0, 4)];
    if (scale < 1e-9 * all) scale = all;
    if (scale == 0) scale = 1;
  }
  return scales;
}

/// The results as the file has them.
std::map<std::string, std::vector<double>> golden_values(const Case& c) {
  std::map<std::string, std::vector<double>> all;
  for (const auto& [key, tensor] : c.file().tensors)
    if (is_result(key)) all[key] = tensor.values<double>();
  return all;
}

/// The largest error of every result; a missing one refuses the case.
template <class S>
std::map<std::string, double> errors(const std::map<std::string, std::vector<double>>& wanted, const Tensors<S>& found,
                                     const std::map<std::string, double>& scales) {
  std::map<std::string, double> worst;
  for (const auto& [key, scale] : scales) {
    const std::vector<double>& want = wanted.at(key);
    const auto at = found.find(key);
    if (at == found.end()) throw Refused("the test does not compute " + key);
    if (static_cast<std::size_t>(at->second.size()) != want.size())
      throw Refused(key + " has " + std::to_string(at->second.size()) + " entries, wanted " +
                    std::to_string(want.size()));
    double error = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      const auto got = static_cast<double>(at->second.data()[i]);
      if (got == want[i] || (std::isnan(got) && std::isnan(want[i]))) continue;
      const double distance = std::abs(got - want[i]) / scale;
      error = std::isnan(distance) ? std::numeric_limits<double>::infinity() : std::max(error, distance);
    }
    worst[key] = error;
  }
  return worst;
}

void raise_to(std::map<std::string, double>& all, const std::map<std::string, double>& other) {
  for (const auto& [key, error] : other) all[key] = std::max(all[key], error);
}

struct Worst {
  double error = 0, bound = 0;
  std::string what;
  void look(const std::string& precision, const std::string& key, double e, double b) {
    if (e <= b || (bound > 0 && e / b <= error / bound)) return;
    error = e, bound = b, what = precision + " " + key;
  }
};

/// An empty text where the case passes, otherwise what is wrong with it.
std::string check(const std::string& path) {
  Case c(path);
  const std::string name = c.operator_name();
  if (name.empty()) return "names no operator in its metadata";
  const auto entry = registry().find(name);
  if (entry == registry().end()) {
    std::string known;
    for (const auto& other : registry()) known += (known.empty() ? "" : ", ") + other.first;
    return "operator '" + name + "' is not known here; known are " + known;
  }
  const Operator& op = entry->second;
  for (const auto& [key, value] : c.file().metadata)
    if (key != "operator" && key != "case" && key != "may_be_inf" && op.switches.count(key) == 0)
      return "switch '" + key + "' (= '" + value + "') is not known to operator " + name;

  const auto scales = scales_of(c);
  const auto wanted = golden_values(c);
  const auto in_double = errors(wanted, op.library(c), scales);
  const std::vector<std::string> unused = c.unused();
  if (!unused.empty()) return "input '" + unused.front() + "' is not known to operator " + name;

  std::map<std::string, double> off, noise,
      unavoidable;  // of the plain formula in double, its rounding noise; in float
  if (op.formula) {
    const Tensors<double> plain = op.formula(c);
    off = errors(wanted, plain, scales);
    raise_to(unavoidable, errors(wanted, op.formula_float(c), scales));
    std::map<std::string, std::vector<double>> undisturbed;
    for (const auto& [key, value] : plain) undisturbed[key].assign(value.data(), value.data() + value.size());
    for (std::uint64_t draw = 1; draw <= draws; ++draw) {
      c.perturb(0x1p-53, draw);
      raise_to(noise, errors(undisturbed, op.formula(c), scales));
    }
  }
  for (std::uint64_t draw = 1; draw <= draws; ++draw) {
    c.perturb(0x1p-24, draw);
    raise_to(unavoidable, errors(wanted, op.library(c), scales));
    // one sample of the plain formula's error says little where a sum cancels
    if (op.formula) raise_to(unavoidable, errors(wanted, op.formula_float(c), scales));
  }
  c.perturb(0, 0);

  Worst worst;
  for (const auto& [key, error] : in_double)
    worst.look("double", key, error, std::max(op.bound, multiple * noise[key]));
  if (worst.what.empty())
    for (const auto& [key, error] : off)
      if (!(error <= formula_bound)) return "the plain formula of the test itself is wrong about " + key;
  if (worst.what.empty())
    for (const auto& [key, error] : errors(wanted, op.library_float(c), scales))
      worst.look("float", key, error, multiple * unavoidable[key] + float_floor);

  if (worst.what.empty()) return "";
  char text[200];
  std::snprintf(text, sizeof text, "%s: relative error %.3g, bound %.3g", worst.what.c_str(), worst.error, worst.bound);
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: golden FOLDER    checks every *.safetensors case below it\n");
    return 2;
  }
  std::vector<std::string> paths;
  try {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[1]))
      if (entry.is_regular_file() && entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  } catch (const std::filesystem::filesystem_error& problem) {
    std::fprintf(stderr, "golden: %s\n", problem.what());
    return 2;
  }
  std::sort(paths.begin(), paths.end());
  int passed = 0, failed = 0;
  for (const std::string& path : paths) {
    std::string problem;
    try {
      problem = check(path);
    } catch (const std::exception& caught) {
      problem = caught.what();
    }
    (problem.empty() ? passed : failed) += 1;
    if (problem.rfind(path + ": ", 0) == 0) problem.erase(0, path.size() + 2);
    if (!problem.empty()) std::printf("FAIL %s: %s\n", path.c_str(), problem.c_str());
  }
  if (paths.empty()) std::printf("no *.safetensors file below %s\n", argv[1]);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
