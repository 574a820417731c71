// limpid: rewrites what an image is taken for by changes of its pixels that a person hardly sees: a sneaker becomes an
// ankle boot. A demonstration of a weakness, as every model of this kind has it.
// SPDX-License-Identifier: MIT
//
//     rewrite [--number K] [--to CLASS] [--radius R] [--steps N] [--region TOP LEFT ROWS COLS] [--out FOLDER]
//     gnuplot rewrite.gp                       in that folder: rewrite.png
//
// Projected gradient ascent of the target's logit less that of the answer (Madry et al. 2018, arXiv 1706.06083), with
// limpid::rewrite_step: pixels stay in [0, 1], within the radius of what they were, and as they were outside the region.
// The model is the vision transformer of Fashion-MNIST that travels.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <limpid/explain/guidance.hpp>
#include <limpid/io/checkpoint.hpp>
#include <limpid/io/color.hpp>
#include <limpid/model/vit.hpp>

#include "image_quality.hpp"
#include "option_checks.hpp"
#include "training.hpp"

namespace {

using limpid::Index, limpid::Mat, limpid::View;
using limpid::io::Image;

constexpr Index side = 28, enlargement = 8;
constexpr const char* kinds[] = {"T-shirt", "trousers", "pullover", "dress", "coat",
                                 "sandal",  "shirt",    "sneaker",  "bag",   "ankle boot"};

/// What pixels in [0, 1], a row each, are taken for.
class Model {
 public:
  explicit Model(const limpid::io::Checkpoint& file)
      : vit_(file, {.heads = 4}),
        mean_(std::stof(file.meta("pixel mean")) / 255),
        deviation_(std::stof(file.meta("pixel deviation")) / 255) {}

  /// 1 x classes; what the gradient needs is kept.
  const Mat<float>& logits(const Mat<float>& x) {
    const Mat<float> normalised = ((x.array() - mean_) / deviation_).matrix();
    vit_.forward(op_, View<float>(normalised), side, side, saved_);
    return saved_.logits;
  }
  /// Of logit `to` less logit `from`, with respect to the pixels of the last call.
  Mat<float> gradient(Index from, Index to) {
    Mat<float> dlogits = Mat<float>::Zero(1, vit_.classes()), d(side * side, 1);
    dlogits(0, to) = 1, dlogits(0, from) = -1;
    vit_.backward(op_, saved_, View<float>(dlogits), View<float>(), nullptr, d);
    return d / deviation_;
  }

 private:
  decltype(limpid::softmax()) op_ = limpid::softmax();
  limpid::model::Vit<float> vit_;
  limpid::model::VitSaved<decltype(limpid::softmax()), float> saved_;
  float mean_, deviation_;
};

Index answer(const Mat<float>& logits) {
  Index best = 0;
  logits.row(0).maxCoeff(&best);
  return best;
}
std::string percent(const Mat<float>& logits, Index of) {
  const Mat<double> e = (logits.cast<double>().array() - static_cast<double>(logits.maxCoeff())).exp().matrix();
  return text("%.1f %%", 100 * e(0, of) / e.sum());
}

/// A program of gnuplot's that draws the images and the way of the logits from the two CSV files beside it.
void write_picture(const std::string& path, Index from, Index to, double radius) {
  const double shown = std::max(radius, 1e-3);  // a range of none cannot be drawn
  std::ofstream file(path);
  file << "# Draws rewrite.png: gnuplot rewrite.gp\n"
          "set terminal pngcairo size 1200,340 font 'sans,10'\n"
          "set output 'rewrite.png'\n"
          "set datafile separator ','\n"
          "set multiplot layout 1,4\n"
          "unset key\nunset tics\nset size ratio 1\nset yrange [27.5:-0.5]\nset xrange [-0.5:27.5]\n"
          "set cbrange [0:1]\nunset colorbox\nset palette grey\n"
       << "set title 'before: " << kinds[from] << "'\nplot 'pixels.csv' skip 1 using 2:1:3 with image\n"
       << "set title 'after: " << kinds[to] << "'\nplot 'pixels.csv' skip 1 using 2:1:4 with image\n"
       << "set title 'difference, of a range of 1'\nset palette defined (-1 '#2166ac', 0 '#f7f7f7', 1 '#b2182b')\n"
       << "set colorbox\nset cbtics\nset cbrange [" << -shown << ':' << shown << "]\n"
       << "plot 'pixels.csv' skip 1 using 2:1:5 with image\n"
       << "set title 'logits'\nset size noratio\nset autoscale\nset tics\nset grid\nset xlabel 'step'\n"
          "set key right top\n"
       << "plot for [c=0:9] 'path.csv' skip 1 using 1:(column(c+2)) with lines lw 1 lc '#bbbbbb' notitle, \\\n"
       << "  'path.csv' skip 1 using 1:" << from + 2 << " with lines lw 3 lc '#0072b2' title '" << kinds[from]
       << "', \\\n  'path.csv' skip 1 using 1:" << to + 2 << " with lines lw 3 lc '#d55e00' title '" << kinds[to]
       << "'\nunset multiplot\n";
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace

int main(int argc, char** argv) try {
  std::string folder = "rewrite";
  Index number = 9, to = 9, steps = 40;
  double radius = 0.03, step = 0;
  std::vector<Index> region{0, 0, side, side};
  CLI::App app("Rewrites what a vision transformer takes an image for, by little changes of pixels.");
  app.add_option("--number", number, "which of the 200 test images that travel")
      ->capture_default_str()
      ->check(CLI::Range(0, 199));
  app.add_option("--to", to, "the class it shall be taken for, 0 to 9 (9: ankle boot)")
      ->capture_default_str()
      ->check(CLI::Range(0, 9));
  app.add_option("--radius", radius, "largest change of a pixel in [0, 1]")
      ->capture_default_str()
      ->check(option::between(0, 1));
  app.add_option("--steps", steps, "of the gradient's signs")->capture_default_str()->check(CLI::Range(0, 100000));
  app.add_option("--step", step, "change of a pixel in a step (default: a tenth of the radius)")
      ->check(option::between(0, 1));
  app.add_option("--region", region, "TOP LEFT ROWS COLS of the pixels that may change (default: all)")
      ->expected(4)
      ->check(CLI::Range(Index(0), side));
  app.add_option("--out", folder, "folder of before.png, after.png, difference.png, pixels.csv, path.csv, rewrite.gp")
      ->capture_default_str()
      ->check(option::named_path());
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  const Index top = region[0], left = region[1], rows = region[2], cols = region[3];
  if (rows < 1 || cols < 1 || top + rows > side || left + cols > side)
    throw CLI::ValidationError("--region", "wanted rows and columns inside of 28 x 28 pixels");

  const auto images = training::read_labelled(LIMPID_EXAMPLES "/data", "fashion-mnist-200", 0, 10);
  Mat<float> start(side * side, 1), allowed = Mat<float>::Zero(side * side, 1);
  for (Index i = 0; i < start.size(); ++i) {
    start(i, 0) = static_cast<float>(images.image(number)[i]) / 255;
    const Index r = i / side - top, c = i % side - left;
    allowed(i, 0) = r >= 0 && r < rows && c >= 0 && c < cols ? 1.0f : 0.0f;
  }
  Model model(limpid::io::Checkpoint(LIMPID_EXAMPLES "/data/vit/vit.safetensors"));
  const Mat<float> first = model.logits(start);
  const Index from = answer(first);
  if (from == to)
    throw std::invalid_argument("--to: found " + std::to_string(to) + ", " + kinds[to] + ", which image " +
                                std::to_string(number) + " is taken for already, wanted another class");

  std::filesystem::create_directories(folder);
  std::ofstream path(folder + "/path.csv");
  path << "step";
  for (const char* kind : kinds) path << ',' << kind;
  path << '\n';
  Mat<float> x = start, last;
  Index flips = -1;
  for (Index s = 0; s <= steps; ++s) {
    last = model.logits(x);
    path << s;
    for (Index c = 0; c < last.cols(); ++c) path << ',' << last(0, c);
    path << '\n';
    if (flips < 0 && answer(last) == to) flips = s;
    if (s == steps) break;
    const Mat<float> gradient = model.gradient(from, to);
    limpid::rewrite_step(View<float>(gradient), View<float>(start), View<float>(allowed), x,
                         {.step = step > 0 ? step : radius / 10,
                          .rule = limpid::RewriteRule::sign,
                          .radius = radius,
                          .low = 0,
                          .high = 1});
  }
  if (!path.flush()) throw std::runtime_error(folder + "/path.csv: cannot be written");

  Image before(side, side, 1), after = before;
  before.pixels = start, after.pixels = x;
  const Mat<float> change = x - start;
  std::ofstream pixels(folder + "/pixels.csv");
  pixels << "row,col,before,after,difference\n";
  for (Index i = 0; i < change.size(); ++i)
    pixels << i / side << ',' << i % side << ',' << start(i, 0) << ',' << x(i, 0) << ',' << change(i, 0) << '\n';
  if (!pixels.flush()) throw std::runtime_error(folder + "/pixels.csv: cannot be written");
  const View<float> grid(change.data(), side, side, side);
  const auto enlarged = [](const Image& image) { return limpid::io::enlarge(image, enlargement); };
  limpid::io::write_png(folder + "/before.png", enlarged(before));
  limpid::io::write_png(folder + "/after.png", enlarged(after));
  limpid::io::write_png(folder + "/difference.png",
                        enlarged(limpid::io::heat_map(grid, limpid::io::diverging, static_cast<float>(radius))));
  write_picture(folder + "/rewrite.gp", from, answer(last), radius);

  std::printf("Image %ld, %s by its label, is taken for: %s, %s (%s %s)\n", long(number),
              kinds[images.labels[static_cast<std::size_t>(number)]], kinds[from], percent(first, from).c_str(),
              kinds[to], percent(first, to).c_str());
  std::printf("After %ld steps it is taken for: %s, %s (%s %s)", long(steps), kinds[answer(last)],
              percent(last, answer(last)).c_str(), kinds[from], percent(last, from).c_str());
  std::printf(flips >= 0 ? ", for the first time after step %ld\n" : "; not rewritten, a larger --radius may do it\n",
              long(flips));
  std::printf("Changed: pixels by at most %.4f of a range of 1, by %.4f in the mean; PSNR %.1f dB\n\n",
              static_cast<double>(change.cwiseAbs().maxCoeff()), static_cast<double>(change.cwiseAbs().mean()),
              psnr(after, before));
  std::printf(
      "This demonstrates a weakness: a picture made so shows what moves this model, not what an ankle boot looks\n"
      "like, and a model whose input others can choose must not be trusted where its answer matters.\n\n");
  std::printf("%s: before.png, after.png, difference.png; `gnuplot rewrite.gp` there draws rewrite.png\n",
              folder.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "rewrite: %s\n", problem.what());
  return 1;
}
