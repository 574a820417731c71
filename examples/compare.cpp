// limpid: where two files of tensors drift apart, layer by layer: a model's intermediate results beside a reference's.
// SPDX-License-Identifier: MIT
//
// Write what every layer gives under the same names on both sides, as safetensors; the first line marked with << is
// where to look. Ends with 0 where all tensors of the reference are within the tolerance, and with 2 where one is not.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <limpid/io/compare.hpp>
#include <string>

int main(int argc, char** argv) try {
  std::string reference_path, found_path;
  double tolerance = 1e-6;
  bool exact_names = false;
  CLI::App app("Compares the tensors of two safetensors files name by name, in the order of layers.");
  app.add_option("REFERENCE", reference_path, "safetensors file that is right")->required();
  app.add_option("FOUND", found_path, "safetensors file that is looked at")->required();
  app.add_option("--tolerance", tolerance, "largest error over largest entry of a tensor, 1e-6 unless said")
      ->check([](const std::string& word) {
        char* end = nullptr;
        const double number = std::strtod(word.c_str(), &end);
        return !word.empty() && *end == 0 && number >= 0 ? "" : "wanted 0 or more, found '" + word + "'";
      });
  app.add_flag("--exact-names", exact_names, "tensors that only FOUND has count as drifted");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  namespace io = limpid::io;
  const io::Safetensors reference = io::read_safetensors(reference_path), found = io::read_safetensors(found_path);
  const std::vector<io::Drift> all = io::compare(reference, found);
  const std::vector<std::string> extra = io::extra_names(reference, found);
  std::printf("%s", io::drift_text(all, tolerance).c_str());
  for (const std::string& name : extra)
    std::printf("only in %s: %s\n", found_path.c_str(), io::detail::printable(name, 80).c_str());
  bool drifts = exact_names && !extra.empty();
  for (const io::Drift& one : all) drifts = drifts || one.beyond(tolerance);
  return drifts ? 2 : 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "compare: %s\n", problem.what());
  return 1;
}
