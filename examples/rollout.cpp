// limpid: what a stack of attention layers did to a pixel: rollout over real images.
// SPDX-License-Identifier: MIT
//
//     rollout [PNG FILE] [IMAGES] [IDX FILE]     images of at most 64 x 64 pixels
//
// Every layer is x <- (x + A x) / 2, A the non-local means of the patches as they are by then: a stack with skip
// connections, whose maps change from layer to layer. With residual 1/2 rollout is exact for it: a pixel of the result
// is its row of C times the noisy pixels, and the program checks that it is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limpid/explain/rollout.hpp>
#include <limpid/io/color.hpp>
#include <limpid/io/sheet.hpp>
#include <limpid/op/nlm.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "image_quality.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::io::Image;
using Op = decltype(limpid::nlm());

constexpr Index side = 5, enlargement = 5;
constexpr double sigma = 25.0 / 255;

/// One layer as its forward call saw it.
struct Layer {
  Mat<float> patches, pixels, h;
  limpid::Saved<Op, float> saved;
  limpid::Inputs<Op, float> in() const { return {.q = patches, .k = patches, .v = pixels, .h = h}; }
};

/// Goes `depth` layers through and returns the last one's pixels.
Mat<float> run(const Image& noisy, Index depth, std::vector<Layer>& layers) {
  Image x = noisy;
  layers.resize(static_cast<std::size_t>(depth));
  for (Layer& layer : layers) {
    layer.patches = patches(x, side), layer.pixels = x.pixels, layer.h = Mat<float>::Constant(1, 1, 0.6f);
    Mat<float> smoothed(x.pixels.rows(), 1);
    limpid::forward(limpid::nlm(), layer.in(), smoothed, {.saved = &layer.saved});
    x.pixels = 0.5f * (x.pixels + smoothed);
  }
  return x.pixels;
}

/// How many of the largest shares make up nine tenths of a row.
Index tenths(Mat<float> row) {
  std::sort(row.data(), row.data() + row.size(), std::greater<>());
  float sum = 0;
  Index count = 0;
  while (count < row.size() && sum < 0.9f) sum += row.data()[count++];
  return count;
}

}  // namespace

int main(int argc, char** argv) try {
  const auto words = arguments(argc, argv, 3, "rollout [PNG FILE] [IMAGES] [IDX FILE]");
  if (!words) return 0;
  const std::string picture = words->size() > 0 ? words->at(0) : "rollout.png";
  const std::string data =
      words->size() > 2 ? words->at(2) : LIMPID_EXAMPLES "/data/fashion-mnist-32-images-idx3-ubyte.gz";
  const Index wanted = words->size() > 1 ? whole_number("IMAGES", words->at(1), 1, 1000000) : 4;
  const std::vector<Image> all = read_images(data, wanted, 64 * 64);
  const Index images = std::ssize(all), rows = all[0].rows, cols = all[0].cols, n = rows * cols;
  const Index row = rows / 2, col = cols / 2, token = row * cols + col;

  std::printf("x <- (x + A x) / 2, noise of 25 of 255, pixel %ld, %ld\n\n", long(row), long(col));
  std::printf("image  layers   noisy  result  row x noisy pixels  pixels of 90 %% of the row\n");
  std::vector<limpid::io::Tile> tiles;
  for (Index image = 0; image < images; ++image) {
    const Image noisy = add_noise(all[static_cast<std::size_t>(image)], sigma, static_cast<std::uint64_t>(image));
    Image whole = limpid::io::enlarge(limpid::io::to_rgb(clipped(noisy)), enlargement);
    mark(whole, row, col, enlargement);
    tiles.push_back({whole, "noisy", ""});
    for (const Index depth : {1, 3, 9}) {
      std::vector<Layer> layers;
      const Mat<float> result = run(noisy, depth, layers);
      limpid::Rollout<float> rollout;
      rollout.start(n, token);
      for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer)
        rollout.layer(limpid::nlm(), layer->in(), layer->saved);
      const Mat<float>& share = rollout.rows();
      const float given = (share * noisy.pixels)(0, 0);
      if (!(std::abs(given - result(token, 0)) < 1e-5f)) throw std::logic_error("the row does not give the result");
      std::printf("%5ld  %6ld  %6.4f  %6.4f              %6.4f  %26ld\n", long(image), long(depth),
                  static_cast<double>(noisy.pixels(token, 0)), static_cast<double>(result(token, 0)),
                  static_cast<double>(given), long(tenths(share)));
      Mat<float> others = share;  // the pixel's own share is the largest for long: the colours are for the others
      others(0, token) = 0;
      const limpid::View<float> grid(others.data(), rows, cols, cols);
      Image heat = limpid::io::enlarge(limpid::io::overlay(clipped(noisy), grid), enlargement);
      mark(heat, row, col, enlargement);
      tiles.push_back({heat, depth == 1 ? "1 layer" : std::to_string(depth) + " layers", ""});
    }
  }
  limpid::io::write_png(picture, limpid::io::contact_sheet(tiles, 8, 1, 2));
  std::printf("\npicture: %s\n", picture.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "rollout: %s\n", problem.what());
  return 1;
}
