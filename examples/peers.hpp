// limpid: what scikit-image and OpenCV make of the same noisy picture, where Python has them.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <filesystem>
#include <limpid/io/image.hpp>
#include <limpid/io/npy.hpp>
#include <string>
#include <vector>

#include "../bench/peers/photographs.hpp"

namespace peers {

/// How the script is called; empty where no Python has any of its filters.
inline const std::string& command() {
  static const std::string call = command(LIMPID_EXAMPLES "/../bench/peers/photographs.py");
  return call;
}

/// The filters there are, by name.
inline std::vector<std::string> names() { return names(command()); }

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
