// limpid: real images cleaned by attention. Every pixel is a token, and each filter is one operator of the library.
// SPDX-License-Identifier: MIT
//
// Query and key of a pixel: the patch of the noisy image around it. Value: the pixel. So row i of the map A holds the
// weights with which the cleaned pixel i is averaged from all pixels of the image, and it can be looked at.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/io/idx.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/sheet.hpp>
#include <limpid/limpid.hpp>

#include "image_quality.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::io::Image;

/// A noisy image laid out as tokens.
struct Scene {
  Image noisy;
  double sigma;        // of the noise, image range 1
  Mat<float> patch;    // n x side^2
  Mat<float> centred;  // patch - 1/2: dot products of these do not simply prefer bright patches
  Mat<float> place;    // n x 2, row and column
  Mat<float> h, h_wide, h_space;

  Scene(const Image& image, double sigma_, Index side) : noisy(image), sigma(sigma_) {
    patch = patches(noisy, side);
    centred = patch.array() - 0.5f;
    place = places(noisy.rows, noisy.cols);
    // The squared distance of two patches of the same content is about 2 sigma^2 for each of its pixels.
    h = Mat<float>::Constant(1, 1, static_cast<float>(1.2 * static_cast<double>(side) * sigma));
    h_wide = h * (1.6f / 1.2f);  // twicing puts back what a wider kernel takes away
    h_space = Mat<float>::Constant(1, 1, 6.0f);
  }
};

/// One row of the table.
struct Filter {
  std::string name, formula;
  std::function<void(const Scene&, Mat<float>& out, limpid::ExecutorRef)> run;  // out n x 1
  std::function<Mat<float>(const Scene&, Index pixel)> map_row;                 // 1 x n
};

/// A filter from what makes the operator and its inputs out of a scene.
template <class MakeOp, class MakeInputs>
Filter filter(std::string name, std::string formula, MakeOp make_op, MakeInputs make_inputs) {
  Filter f{std::move(name), std::move(formula), {}, {}};
  f.run = [=](const Scene& s, Mat<float>& out, limpid::ExecutorRef executor) {
    limpid::forward(make_op(s), make_inputs(s), out, {.executor = executor});
  };
  f.map_row = [=](const Scene& s, Index pixel) {
    const auto op = make_op(s);
    limpid::Saved<std::remove_const_t<decltype(op)>, float> saved;
    Mat<float> out(s.patch.rows(), 1), row(1, s.patch.rows());
    limpid::forward(op, make_inputs(s), out, {.saved = &saved});
    limpid::map_block(op, make_inputs(s), saved, pixel, 0, row);
    return row;
  };
  return f;
}

/// The rows of the table, in order. A further operator is one more entry.
std::vector<Filter> filters() {
  using Nlm = limpid::Inputs<decltype(limpid::nlm()), float>;
  return {
      filter(
          "softmax", "A = softmax(2 (p_i - 1/2).(p_j - 1/2) / h^2): NLM without its -|p_j|^2 / h^2",
          [](const Scene& s) { return limpid::softmax({.scale = 2.0 / double(s.h(0, 0) * s.h(0, 0))}); },
          [](const Scene& s) { return limpid::qkv(s.centred, s.centred, s.noisy.pixels); }),
      filter(
          "NLM", "A = softmax(-|p_i - p_j|^2 / h^2), h = 1.2 side sigma", [](const Scene&) { return limpid::nlm(); },
          [](const Scene& s) { return Nlm{.q = s.patch, .k = s.patch, .v = s.noisy.pixels, .h = s.h}; }),
      filter(
          "NLM, near", "A = softmax(-|p_i - p_j|^2 / h^2 - |x_i - x_j|^2 / 6^2), x the place in pixels",
          [](const Scene&) { return limpid::nlm(); },
          [](const Scene& s) {
            return Nlm{.q = s.patch,
                       .k = s.patch,
                       .v = s.noisy.pixels,
                       .h = s.h,
                       .pq = s.place,
                       .pk = s.place,
                       .h_space = s.h_space};
          }),
      filter(
          "twicing", "(2A - A^2) v, A of NLM, near, with h = 1.6 side sigma",
          [](const Scene&) { return limpid::twicing(limpid::nlm()); },
          [](const Scene& s) {
            return Nlm{.q = s.patch,
                       .k = s.patch,
                       .v = s.noisy.pixels,
                       .h = s.h_wide,
                       .pq = s.place,
                       .pk = s.place,
                       .h_space = s.h_space};
          }),
  };
}

struct Score {
  double psnr = 0, ssim = 0, seconds = 0;
  Index count = 0;
  void add(const Image& image, const Image& clean, double s) {
    psnr += ::psnr(image, clean), ssim += ::ssim(image, clean), seconds += s, ++count;
  }
};

std::string text(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

/// Says on stderr what is going on: one line that changes on a terminal, a line each in a log.
void progress(const std::string& what) {
  static const bool terminal = isatty(2) != 0;
  if (terminal)
    std::fprintf(stderr, "\r%-60s%s", what.c_str(), what.empty() ? "\r" : "");
  else if (!what.empty())
    std::fprintf(stderr, "%s\n", what.c_str());
}

/// Draws a red frame around one pixel of an image that has been enlarged by `factor`.
void mark(Image& image, Index row, Index col, Index factor) {
  for (Index i = -1; i <= factor; ++i)
    for (Index j = -1; j <= factor; ++j) {
      const Index r = row * factor + i, c = col * factor + j;
      const bool edge = i == -1 || j == -1 || i == factor || j == factor;
      if (!edge || r < 0 || c < 0 || r >= image.rows || c >= image.cols) continue;
      image(r, c, 0) = 1, image(r, c, 1) = 0.1f, image(r, c, 2) = 0.1f;
    }
}

/// Runs examples/skimage_nlm.py on the arrays in `folder`, if there is a Python that has scikit-image; what it prints,
/// or nothing.
std::string scikit_image(const std::string& folder) {
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const std::string command =
        std::string(python) + " '" LIMPID_EXAMPLES "/skimage_nlm.py' '" + folder + "' 2>/dev/null";
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) continue;
    std::string answer;
    char buffer[256];
    while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) answer += buffer;
    if (pclose(pipe) == 0 && !answer.empty()) return answer;
  }
  return "";
}

/// The images to be cleaned: the user's own, or the first of an IDX file of test images.
std::vector<Image> load(const std::string& own, const std::string& data, Index count, Index limit,
                        std::string& source) {
  if (!own.empty()) {
    source = own;
    return {limpid::io::read_png(own, limpid::io::Channels::grey, limit)};
  }
  source = data;
  const limpid::io::Tensor all = limpid::io::read_idx(data, count);
  if (all.shape.size() != 3) throw limpid::io::FormatError(data + ": wanted images (3 axes)");
  std::vector<Image> images;
  const std::vector<float> values = all.values<float>();
  const Index rows = all.shape[1], cols = all.shape[2];
  for (Index i = 0; i < all.shape[0]; ++i) {
    images.emplace_back(rows, cols, 1);
    for (Index p = 0; p < rows * cols; ++p)
      images.back().pixels(p, 0) = values[static_cast<std::size_t>(i * rows * cols + p)] / 255.0f;
  }
  return images;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string packaged = "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz";
  const std::string travelling = LIMPID_EXAMPLES "/data/fashion-mnist-32-images-idx3-ubyte.gz";
  std::string own, data = std::filesystem::exists(packaged) ? packaged : travelling, folder = "denoise-pictures";
  Index count = 40, seeds = -1, side = 3, limit = 256 * 256, shown = 0;
  int threads = 1;
  std::vector<double> sigmas{15, 25, 50};
  std::vector<Index> pixel;
  bool scikit = true;

  CLI::App app("Cleans noisy images with the attention operators of limpid and says how well each one does.");
  app.add_option("--image", own, "a PNG of your own instead of the test images; colour is made grey");
  app.add_option("--data", data, "gzip IDX file of test images")->capture_default_str();
  app.add_option("--images", count, "how many of them")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--sigma", sigmas, "standard deviations of the noise, of 255")->capture_default_str();
  app.add_option("--seeds", seeds, "noise seeds to average over (default: 5, for --image 1)");
  app.add_option("--patch", side, "side of the patches, odd")->capture_default_str()->check(CLI::Range(1, 15));
  app.add_option("--limit", limit, "most pixels of --image; time grows with their square")->capture_default_str();
  app.add_option("--show", shown, "which image's map is drawn")->capture_default_str();
  app.add_option("--pixel", pixel, "row and column of the pixel whose row of the map is drawn")->expected(2);
  app.add_option("--threads", threads, "workers of the thread pool")->capture_default_str()->check(CLI::Range(1, 1024));
  app.add_option("--out", folder, "folder for the pictures")->capture_default_str();
  app.add_flag("--scikit,!--no-scikit", scikit, "compare with scikit-image's filter where Python has it");
  CLI11_PARSE(app, argc, argv);
  if (side % 2 == 0) throw CLI::ValidationError("--patch", "wanted an odd number");
  if (seeds < 1) seeds = own.empty() ? 5 : 1;

  std::string source;
  const std::vector<Image> images = load(own, data, count, limit, source);
  if (images.empty()) throw limpid::io::FormatError(source + ": holds no image");
  const std::vector<Filter> all = filters();
  const std::size_t columns = sigmas.size();
  shown = std::clamp<Index>(shown, 0, static_cast<Index>(images.size()) - 1);
  const Image& example = images[static_cast<std::size_t>(shown)];
  if (pixel.size() != 2) pixel = {example.rows * 9 / 20, example.cols / 2};
  if (pixel[0] < 0 || pixel[0] >= example.rows || pixel[1] < 0 || pixel[1] >= example.cols)
    throw CLI::ValidationError("--pixel", "lies outside the image");
  std::filesystem::create_directories(folder);
  limpid::ThreadPool pool(threads);

  std::vector<std::vector<Score>> scores(all.size() + 1, std::vector<Score>(columns));
  std::vector<std::string> pictures, compared(columns);
  const Index drawn = std::min<Index>(static_cast<Index>(images.size()), 5);
  const Index enlargement = std::max<Index>(1, 112 / example.cols);
  for (std::size_t column = 0; column < columns; ++column) {
    const double sigma = sigmas[column] / 255;
    std::vector<limpid::io::Tile> tiles;
    for (Index seed = 0; seed < seeds; ++seed) {
      progress("noise " + text("%g", sigmas[column]) + " of 255, seed " + std::to_string(seed + 1) + " of " +
               std::to_string(seeds));
      for (std::size_t i = 0; i < images.size(); ++i) {
        const Image& clean = images[i];
        const Scene scene(add_noise(clean, sigma, 1000 * static_cast<std::uint64_t>(seed) + i), sigma, side);
        const bool draw = seed == 0 && static_cast<Index>(i) < drawn;
        const auto show = [&](const Image& image, const std::string& name, bool with_psnr) {
          if (draw) tiles.push_back({image, name, with_psnr ? text("%.2f dB", psnr(image, clean)) : ""});
        };
        const Image noisy = clipped(scene.noisy);
        scores[0][column].add(noisy, clean, 0);
        show(clean, "clean", false);
        show(noisy, "noisy", true);
        for (std::size_t f = 0; f < all.size(); ++f) {
          Image out(clean.rows, clean.cols, 1);
          const auto start = std::chrono::steady_clock::now();
          all[f].run(scene, out.pixels, pool);
          const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
          out = clipped(out);
          scores[f + 1][column].add(out, clean, took.count());
          show(out, all[f].name, true);
        }
      }
    }
    const std::string path = folder + "/filters-sigma-" + text("%g", sigmas[column]) + ".png";
    limpid::io::write_png(path, limpid::io::contact_sheet(tiles, static_cast<Index>(all.size()) + 2, enlargement));
    pictures.push_back(path);

    // One pixel's row of every map, over the noisy image.
    const Scene scene(add_noise(example, sigma, static_cast<std::uint64_t>(shown)), sigma, side);
    const Index factor = std::max<Index>(1, 224 / example.cols);
    std::vector<limpid::io::Tile> maps;
    Image whole = limpid::io::enlarge(limpid::io::to_rgb(clipped(scene.noisy)), factor);
    mark(whole, pixel[0], pixel[1], factor);
    maps.push_back({whole, "noisy", "pixel " + std::to_string(pixel[0]) + ", " + std::to_string(pixel[1])});
    for (const Filter& f : all) {
      const Mat<float> row = f.map_row(scene, pixel[0] * example.cols + pixel[1]);
      const limpid::View<float> grid(row.data(), example.rows, example.cols, example.cols);
      Image heat = limpid::io::enlarge(limpid::io::overlay(clipped(scene.noisy), grid), factor);
      mark(heat, pixel[0], pixel[1], factor);
      maps.push_back({heat, f.name, "largest weight " + text("%.3f", row.maxCoeff())});
    }
    const std::string map_path = folder + "/map-row-sigma-" + text("%g", sigmas[column]) + ".png";
    limpid::io::write_png(map_path, limpid::io::contact_sheet(maps, static_cast<Index>(maps.size()), 1));
    pictures.push_back(map_path);

    if (scikit && example.rows * example.cols <= 4096) {
      progress("noise " + text("%g", sigmas[column]) + " of 255, scikit-image for comparison");
      const auto stacked = [&](bool with_noise) {
        std::vector<float> values;
        for (std::size_t i = 0; i < images.size(); ++i) {
          const Image image = with_noise ? add_noise(images[i], sigma, i) : images[i];
          values.insert(values.end(), image.pixels.data(), image.pixels.data() + image.pixels.size());
        }
        return limpid::io::Tensor::from(values, {static_cast<Index>(images.size()), example.rows, example.cols});
      };
      limpid::io::write_npy(folder + "/clean.npy", stacked(false));
      limpid::io::write_npy(folder + "/noisy.npy", stacked(true));
      std::vector<double> level{sigma, static_cast<double>(side)};
      limpid::io::write_npy(folder + "/noise.npy", limpid::io::Tensor::from(level, {2}));
      compared[column] = scikit_image(folder);
      for (const char* name : {"/clean.npy", "/noisy.npy", "/noise.npy"}) std::filesystem::remove(folder + name);
    }
  }
  progress("");

  std::printf("%d images of %s, %d x %d pixels, %d noise seeds, patches %d x %d, %d threads\n", int(images.size()),
              source.c_str(), int(example.rows), int(example.cols), int(seeds), int(side), int(side), threads);
  std::printf("Mean PSNR in dB, mean SSIM and milliseconds an image, by standard deviation of the noise (of 255)\n\n");
  std::printf("%-14s", "");
  for (double sigma : sigmas) std::printf("|      sigma %-10g", sigma);
  std::printf("\n%-14s", "filter");
  for (std::size_t column = 0; column < columns; ++column) std::printf("|%7s %6s %6s", "PSNR", "SSIM", "ms");
  std::printf("\n");
  for (std::size_t f = 0; f < scores.size(); ++f) {
    std::printf("%-14s", f == 0 ? "noisy" : all[f - 1].name.c_str());
    for (const Score& s : scores[f]) {
      const double k = 1.0 / static_cast<double>(s.count);
      std::printf("|%7.2f %6.3f %6s", s.psnr * k, s.ssim * k, f == 0 ? "" : text("%.2f", 1e3 * s.seconds * k).c_str());
    }
    std::printf("\n");
  }
  bool any = false;
  for (const std::string& answer : compared) any |= !answer.empty();
  if (any) {
    std::printf("%-14s", "scikit-image");
    for (const std::string& answer : compared) {
      double p = 0, s = 0, ms = 0, h = 0;
      if (std::sscanf(answer.c_str(), "%lf %lf %lf %lf", &p, &s, &ms, &h) == 4)
        std::printf("|%7.2f %6.3f %6.2f", p, s, ms);
      else
        std::printf("|%21s", "");
    }
    std::printf("\n");
  }
  std::printf("\n");
  for (const Filter& f : all) std::printf("%-14s%s\n", f.name.c_str(), f.formula.c_str());
  if (any)
    std::printf("%-14sdenoise_nl_means over the whole image, sigma told, best of several h, first seed only\n",
                "scikit-image");
  std::printf("\nPictures:\n");
  for (const std::string& path : pictures)
    std::printf("  %s\n", std::filesystem::absolute(path).lexically_normal().c_str());
  return 0;
} catch (const CLI::Error& problem) {
  std::fprintf(stderr, "denoise: %s\n", problem.what());
  return 2;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "denoise: %s\n", problem.what());
  return 1;
}
