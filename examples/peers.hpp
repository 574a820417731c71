// limpid: what scikit-image and OpenCV make of the same noisy picture, where Python has them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limpid/io/image.hpp>
#include <limpid/io/npy.hpp>
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

/// How the script is called: by a Python that has any of them. Empty where there is none.
inline std::string command() {
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const std::string call = std::string(python) + " " + quoted(LIMPID_EXAMPLES "/../bench/peers/photographs.py");
    if (!lines_of(call + " --names 2>/dev/null").empty()) return call;
  }
  return "";
}

/// The filters there are, by name; one line on stderr says what is not installed.
inline std::vector<std::string> names() {
  const std::string call = command();
  if (!call.empty()) return lines_of(call + " --names");
  std::fprintf(stderr, "scikit-image, OpenCV: not installed, left out\n");
  return {};
}

struct Result {
  std::string name;
  double psnr = 0, ssim = 0, seconds = 0;
};

/// What they make of one noisy picture; the script reads it from files in the folder, which are taken away again.
inline std::vector<Result> measured(const std::string& folder, const limpid::io::Image& clean,
                                    const limpid::io::Image& noisy, double sigma, limpid::Index side,
                                    limpid::Index window) {
  const auto write = [&](const char* name, const limpid::io::Image& image) {
    const std::vector<float> values(image.pixels.data(), image.pixels.data() + image.pixels.size());
    limpid::io::write_npy(folder + name, limpid::io::Tensor::from(values, {image.rows, image.cols}));
  };
  write("/clean.npy", clean);
  write("/noisy.npy", noisy);
  const std::vector<double> about{sigma, static_cast<double>(side), static_cast<double>(window)};
  limpid::io::write_npy(folder + "/about.npy", limpid::io::Tensor::from(about, {3}));
  std::vector<Result> all;
  for (const std::string& line : lines_of(command() + " " + quoted(folder) + " 2>/dev/null")) {
    Result r;
    const std::size_t bar = line.find('|');
    if (bar == std::string::npos) continue;
    r.name = line.substr(0, bar);
    if (std::sscanf(line.c_str() + bar + 1, "%lf %lf %lf", &r.psnr, &r.ssim, &r.seconds) == 3) all.push_back(r);
  }
  for (const char* name : {"/clean.npy", "/noisy.npy", "/about.npy"}) std::filesystem::remove(folder + name);
  return all;
}

}  // namespace peers
