// limpid: two files of tensors compared name by name.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/io/compare.hpp>

#include "support/catch.hpp"

using namespace limpid::io;
using limpid::Index;

TEST_CASE("compare: the largest error over the largest entry, layer by layer", "[io]") {
  const auto file = [](const std::vector<std::pair<std::string, Tensor>>& tensors) {
    Safetensors out;
    for (const auto& [name, tensor] : tensors) out.tensors[name] = tensor;
    return out;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const auto of = [](const std::vector<double>& values) {
    return Tensor::from(values, {static_cast<Index>(values.size())});
  };
  const Safetensors reference = file({{"layers.10.out", of({1, -4, infinity, nan})},
                                      {"layers.2.out", of({1, 2})},
                                      {"layers.2.a", of({0, 0})},
                                      {"layers.02.b", of({1})},
                                      {"ids", Tensor::from(std::vector<std::int64_t>{1, 2}, {2})},
                                      {"lost", of({1})},
                                      {"nan", of({1})},
                                      {"short", of({1, 2})},
                                      {"zero", of({0})}});
  const Safetensors found = file({{"layers.10.out", of({1, -3.5, infinity, nan})},
                                  {"layers.2.out", Tensor::from(std::vector<float>{1, 2}, {1, 2})},
                                  {"layers.2.a", of({0, 0})},
                                  {"layers.02.b", of({1.25})},
                                  {"ids", Tensor::from(std::vector<std::int32_t>{1, 3}, {2})},
                                  {"nan", of({nan})},
                                  {"short", of({1})},
                                  {"zero", of({1})},
                                  {"more", of({1})}});
  const std::vector<Drift> all = compare(reference, found);
  std::vector<std::string> names;
  for (const Drift& one : all) names.push_back(one.name);
  CHECK(names == std::vector<std::string>{"ids", "layers.2.a", "layers.02.b", "layers.2.out", "layers.10.out", "lost",
                                          "nan", "short", "zero"});
  const auto relative = [&](std::size_t i) { return all[i].relative(); };
  CHECK(relative(0) == 0.5);
  CHECK(relative(1) == 0);
  CHECK(relative(2) == 0.25);
  CHECK(relative(3) == 0);
  CHECK(relative(4) == 0.125);
  CHECK(all[5].problem == "not found");
  CHECK(relative(6) == infinity);
  CHECK(all[7].problem == "found the shape [1]");
  CHECK(relative(8) == infinity);
  CHECK(drift_text({all[3], all[4], all[5]}, 1e-6) ==
        "tensor         shape  error    over largest entry\n"
        "layers.2.out   [2]    0.0e+00  0.0e+00\n"
        "layers.10.out  [4]    5.0e-01  1.2e-01  <<\n"
        "lost           [1]    not found  <<\n"
        "2 of 3 beyond 1e-06, the first is 'layers.10.out'\n");
  CHECK(drift_text({all[3]}, 0) ==
        "tensor        shape  error    over largest entry\n"
        "layers.2.out  [2]    0.0e+00  0.0e+00\n"
        "0 of 1 beyond 0\n");
  CHECK(extra_names(reference, found) == std::vector<std::string>{"more"});
  CHECK(extra_names(found, reference) == std::vector<std::string>{"lost"});
  CHECK(extra_names(file({}), file({{"l.10", of({1})}, {"l.9", of({1})}})) == std::vector<std::string>{"l.9", "l.10"});
  Safetensors torn = reference;
  torn.tensors["zero"].bytes.pop_back();
  CHECK(compare(reference, torn).back().problem.find("found 7 bytes") != std::string::npos);
}
