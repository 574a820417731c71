// limpid: the denoising theorem of subspace attention, measured: signal over noise layer by layer, and where it fails.
// SPDX-License-Identifier: MIT
//
//     subspace_denoising [PNG FILE] [LAYERS, 1 to 36]
//
// Tokens near a union of 8 subspaces of dimension 48, noise delta in the others. Every layer is x + eta MSSA(x) with a
// threshold tau on the softmax weights (layer/aot.hpp). The theorem: each layer multiplies the ratio by 1 + eta tau. It
// holds to rounding until delta sqrt(p) (1 + eta tau)^layer, the size of a score between a token's noise and the grown
// signal of the others, reaches 1.2 to 1.6; then single weights pass the threshold and carry signal to the wrong class.
#include <cmath>
#include <cstdio>
#include <limpid/check/subspace_data.hpp>
#include <limpid/explain/subspaces.hpp>
#include <limpid/io/sheet.hpp>
#include <limpid/layer/aot.hpp>
#include <string>
#include <vector>

#include "arguments.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::io::draw_text;
using limpid::io::Image;

constexpr Index classes = 8, width = 48, tokens = 400;
constexpr double eta = 0.1, tau = 0.6, rate = 1 + eta * tau;

/// Ratios of one noise level: the mean over classes after every layer, and how many layers had the exact rate.
struct Run {
  double delta;
  std::vector<double> snr;
  int exact = 0;
};

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v;
  return sum / static_cast<double>(x.size());
}

Run measure(double delta, int layers) {
  const auto data =
      limpid::subspace_data<double>({.tokens = tokens, .classes = classes, .width = width, .delta = delta});
  const auto op = limpid::mssa({.scale = 1, .phi = limpid::Phi::threshold, .tau = tau});
  const auto layer = limpid::aot(op, {.heads = classes, .norm = false});
  const Mat<double> step = Mat<double>::Constant(1, 1, eta);
  limpid::Workspace workspace;
  Mat<double> x = data.x, next = x;
  std::vector<double> before = limpid::subspace_snr(x, data.u, data.labels, classes);
  Run run{delta, {mean(before)}};
  bool holds = true;
  for (int l = 0; l < layers; ++l) {
    layer.forward({.x = x, .eta = step, .u = data.u}, next, {.workspace = &workspace});
    std::swap(x, next);
    const std::vector<double> now = limpid::subspace_snr(x, data.u, data.labels, classes);
    for (std::size_t k = 0; k < now.size(); ++k) holds = holds && std::abs(now[k] / before[k] / rate - 1) < 1e-10;
    run.exact += holds;
    run.snr.push_back(mean(now));
    before = now;
  }
  return run;
}

struct Colour {
  float r, g, b;
};

/// Layers to the right, the ratio upwards on a logarithmic scale.
class Plot {
 public:
  Plot(int layers, double low, double high)
      : picture_(624, 920, 3, 1.0f), layers_(layers), low_(std::log2(low)), high_(std::log2(high)) {
    for (int power = static_cast<int>(low_); power <= static_cast<int>(high_); ++power) {
      line(0, std::exp2(power), layers, std::exp2(power), {0.88f, 0.88f, 0.88f});
      const std::string label = power < 0 ? "1/" + std::to_string(1 << -power) : std::to_string(1 << power);
      draw_text(picture_, row(std::exp2(power)) - 7, left - 14 - limpid::io::text_width(label, 2), label, 2, 0.2f);
    }
    for (int l = 0; l <= layers; l += 5) {
      line(l, std::exp2(low_), l, std::exp2(high_), {0.88f, 0.88f, 0.88f});
      const std::string label = std::to_string(l);
      draw_text(picture_, bottom + 10, col(l) - limpid::io::text_width(label, 2) / 2, label, 2, 0.2f);
    }
    draw_text(picture_, 14, left, "SIGNAL / NOISE BY LAYER: DOTS MEASURED, LINES PREDICTED", 2, 0.1f);
    draw_text(picture_, bottom + 34, (left + right - limpid::io::text_width("LAYER", 2)) / 2, "LAYER", 2, 0.2f);
    draw_text(picture_, bottom + 62, left, "PREDICTED: 1 + ETA TAU = 1.06 A LAYER. RING: FIRST OFF THE RATE", 2, 0.2f);
  }

  void draw(const Run& run, Colour colour) {
    for (int l = 0; l < layers_; ++l)
      line(l, run.snr[0] * std::pow(rate, l), l + 1, run.snr[0] * std::pow(rate, l + 1), colour);
    for (int l = 0; l <= layers_; ++l) disc(l, run.snr[static_cast<std::size_t>(l)], 0, 4.5, colour);
    if (run.exact < layers_) disc(run.exact + 1, run.snr[static_cast<std::size_t>(run.exact + 1)], 8, 11, colour);
    char text[40];
    std::snprintf(text, sizeof text, "DELTA %.2f", run.delta);
    draw_text(picture_, row(run.snr[0]) + 14, col(0) + 14, text, 2, 0.1f);
  }
  const Image& picture() const { return picture_; }

 private:
  static constexpr Index left = 80, right = 890, top = 50, bottom = 530;
  Index col(double layer) const { return left + static_cast<Index>(std::lround(layer / layers_ * (right - left))); }
  Index row(double snr) const {
    return bottom - static_cast<Index>(std::lround((std::log2(snr) - low_) / (high_ - low_) * (bottom - top)));
  }
  void dot(Index r, Index c, Colour colour) {
    if (r < 0 || r >= picture_.rows || c < 0 || c >= picture_.cols) return;
    picture_(r, c, 0) = colour.r, picture_(r, c, 1) = colour.g, picture_(r, c, 2) = colour.b;
  }
  void line(double l0, double y0, double l1, double y1, Colour colour) {
    const Index r0 = row(y0), r1 = row(y1), c0 = col(l0), c1 = col(l1);
    const Index steps = std::max<Index>(1, std::max(std::abs(r1 - r0), std::abs(c1 - c0)));
    for (Index s = 0; s <= steps; ++s) dot(r0 + (r1 - r0) * s / steps, c0 + (c1 - c0) * s / steps, colour);
  }
  void disc(double layer, double snr, double inner, double outer, Colour colour) {
    const Index r = row(snr), c = col(layer), reach = static_cast<Index>(outer) + 1;
    for (Index i = -reach; i <= reach; ++i)
      for (Index j = -reach; j <= reach; ++j) {
        const double distance = std::sqrt(static_cast<double>(i * i + j * j));
        if (distance >= inner && distance <= outer) dot(r + i, c + j, colour);
      }
  }

  Image picture_;
  int layers_;
  double low_, high_;
};

}  // namespace

int main(int argc, char** argv) try {
  const auto words = arguments(argc, argv, 2, "subspace_denoising [PNG FILE] [LAYERS, 1 to 36]");
  if (!words) return 0;
  const std::string path = words->size() > 0 ? words->at(0) : "subspace_denoising.png";
  const int layers = words->size() > 1 ? static_cast<int>(whole_number("LAYERS", words->at(1), 1, 36)) : 30;
  std::vector<Run> runs;
  for (double delta : {0.05, 0.1, 0.2}) runs.push_back(measure(delta, layers));

  std::printf("%td tokens near %td subspaces of dimension %td; eta %.1f, tau %.1f\n", tokens, classes, width, eta, tau);
  std::printf("signal over noise, mean of the classes: measured, and predicted by 1 + eta tau = %.2f a layer\n\n",
              rate);
  std::printf("layer");
  for (const Run& run : runs) std::printf("      delta %.2f      ", run.delta);
  for (int l = 0; l <= layers; ++l) {
    std::printf("\n%5d", l);
    for (const Run& run : runs)
      std::printf("  %8.4f  %8.4f", run.snr[static_cast<std::size_t>(l)], run.snr[0] * std::pow(rate, l));
  }
  std::printf("\n");
  for (const Run& run : runs) {
    if (run.exact == layers) {
      std::printf("\ndelta %.2f: the rate is exact in all %d layers", run.delta, layers);
      continue;
    }
    std::printf("\ndelta %.2f: the rate is exact for %d layers; there delta sqrt(p) (1 + eta tau)^layer is %.2f",
                run.delta, run.exact, run.delta * std::sqrt(static_cast<double>(width)) * std::pow(rate, run.exact));
  }
  Plot plot(layers, 0.5, 64);
  const Colour colours[] = {{0.00f, 0.45f, 0.70f}, {0.84f, 0.37f, 0.00f}, {0.00f, 0.62f, 0.45f}};
  for (std::size_t r = 0; r < runs.size(); ++r) plot.draw(runs[r], colours[r]);
  limpid::io::write_png(path, plot.picture());
  std::printf("\n\npicture: %s\n", path.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "subspace_denoising: %s\n", problem.what());
  return 1;
}
