// limpid: what a published vision transformer sees in photographs.
// SPDX-License-Identifier: MIT
//
//     photos [PHOTOGRAPH.png ...] [--model FOLDER] [--picture FILE]
//
// DINOv2-small (Oquab et al. 2023, arXiv 2304.07193), 12 layers that learned from photographs without labels, of the
// square in the middle of each, 224 x 224 pixels, 16 x 16 patches; a row of pictures each: the photograph; saliency, by
// the decoder that came with the weights; the first three principal components of all patches' tokens as red, green and
// blue, so that what is alike has one colour in every photograph; what each patch is to the class token, by relevance
// to its length, gradients times maps multiplied through all layers (Chefer, Gur and Wolf 2021, arXiv 2103.15679); and
// where the class token looks in the last layer, a head each. Weights: examples/fetch_models dinov2.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limpid/explain/explanation.hpp>
#include <limpid/io/resize.hpp>
#include <limpid/io/sheet.hpp>
#include <limpid/model/vit.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "option_checks.hpp"
#include "saliency.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::View;
using limpid::io::Image;

constexpr Index side = 224, grid = 16, heads = 6, shown = 96;

/// What the model makes of a photograph; maps are grid x grid.
struct Seen {
  Image photograph;
  Mat<float> patches;  ///< their tokens, (grid grid) x D
  Mat<float> saliency, relevance;
  std::vector<Mat<float>> looks;  ///< of the class token, a head each
};

Image middle_square(const std::string& path) {
  const Image all = limpid::io::read_png(path, limpid::io::Channels::rgb);
  const Index edge = std::min(all.rows, all.cols);
  return limpid::io::resize(limpid::io::crop(all, (all.rows - edge) / 2, (all.cols - edge) / 2, edge, edge), side,
                            side);
}

Mat<float> as_grid(const Mat<float>& row) { return Eigen::Map<const Mat<float>>(row.data(), grid, grid); }

Seen look(const limpid::model::Vit<float>& vit, const limpid::io::Checkpoint& file, const std::string& path) {
  Seen out;
  out.photograph = middle_square(path);
  const Mat<float> pixels = limpid::io::normalised<float>(out.photograph, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225});
  const auto op = limpid::softmax();
  auto saved = vit.saved(op);
  vit.forward(op, View<float>(pixels), side, side, saved);
  const Index first = vit.first_patch(), n = saved.tokens.rows();
  out.patches = saved.tokens.bottomRows(n - first);
  out.saliency = saliency<float>(file, out.patches, grid, grid);

  auto& last = saved.stack.blocks.back().attention;
  for (Index h = 0; h < heads; ++h) {
    Mat<float> row(1, n - first);
    limpid::map_block(op, limpid::qkv(last.q, last.k, last.v), last.attention, 0, first, row, {.head = h});
    out.looks.push_back(as_grid(row));
  }
  Mat<float> dtokens = Mat<float>::Zero(n, vit.width());
  dtokens.row(0) = saved.tokens.row(0).normalized();
  limpid::Explanation<float> why;
  why.start(n, 0);
  vit.backward(op, saved, View<float>(), View<float>(dtokens), nullptr, {}, why);
  out.relevance = as_grid(Mat<float>(why.relevance().rightCols(n - first)));
  return out;
}

/// The first three principal components of the patches of all photographs, each scaled to [0, 1]: an image each.
std::vector<Image> components(const std::vector<Seen>& all) {
  const Index n = grid * grid, count = std::ssize(all);
  Mat<double> x(count * n, all.front().patches.cols());
  for (Index i = 0; i < count; ++i) x.middleRows(i * n, n) = all[std::size_t(i)].patches.cast<double>();
  x.rowwise() -= x.colwise().mean().eval();
  const Mat<double> turned = x.transpose();
  Mat<double> covariance(x.cols(), x.cols()), axes = turned.leftCols(3), next(x.cols(), 3), found(x.rows(), 3);
  limpid::linear(turned, x, View<double>(), covariance);
  for (int step = 0; step < 200; ++step) {  // orthogonal iteration
    limpid::linear(covariance, axes, View<double>(), next);
    axes = next;
    for (Index c = 0; c < 3; ++c) {
      for (Index b = 0; b < c; ++b) axes.col(c) -= axes.col(b).dot(axes.col(c)) * axes.col(b);
      axes.col(c).normalize();
    }
  }
  limpid::linear(x, axes, View<double>(), found);
  for (Index c = 0; c < 3; ++c) {
    auto column = found.col(c);
    if (-column.minCoeff() > column.maxCoeff()) column = -column;  // the sign means nothing
    const double least = column.minCoeff(), most = column.maxCoeff();
    column = (column.array() - least) / std::max(most - least, 1e-300);
  }
  std::vector<Image> out;
  for (Index i = 0; i < count; ++i) {
    Image image(grid, grid, 3);
    image.pixels = found.middleRows(i * n, n).cast<float>();
    out.push_back(limpid::io::enlarge(image, shown / grid));
  }
  return out;
}

/// A map over the photograph: the larger, the brighter.
Image over(const Image& photograph, const Mat<float>& map) {
  Mat<float> values(shown, shown);
  const Index rows = map.rows(), cols = map.cols();
  for (Index r = 0; r < shown; ++r)
    for (Index c = 0; c < shown; ++c) values(r, c) = map(r * rows / shown, c * cols / shown);
  return limpid::io::overlay(photograph, View<float>(values));
}

void write_picture(const std::string& path, const std::vector<std::string>& names, const std::vector<Seen>& all) {
  const std::vector<Image> colours = components(all);
  std::vector<limpid::io::Tile> tiles;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Seen& seen = all[i];
    const Image small = limpid::io::resize(seen.photograph, shown, shown);
    tiles.push_back({small, std::filesystem::path(names[i]).stem().string(), ""});
    tiles.push_back({over(small, seen.saliency), "saliency", ""});
    tiles.push_back({colours[i], "components", ""});
    tiles.push_back({over(small, seen.relevance), "relevance", ""});
    for (std::size_t h = 0; h < seen.looks.size(); ++h)
      tiles.push_back({over(small, seen.looks[h]), "head " + std::to_string(h), ""});
  }
  limpid::io::write_png(path, limpid::io::contact_sheet(tiles, 4 + heads, 1));
}

/// "12, 40": row and column of the largest entry, in pixels of the square.
std::string place(const Mat<float>& map) {
  Index r = 0, c = 0;
  map.maxCoeff(&r, &c);
  const Index cell = side / map.rows();
  return std::to_string(r * cell + cell / 2) + ", " + std::to_string(c * cell + cell / 2);
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> paths;
  const std::string fetched = LIMPID_EXAMPLES "/../build/models/dinov2";
  std::string picture, folder = fetched;
  CLI::App app("Shows what DINOv2 sees in photographs.");
  app.add_option("PHOTOGRAPH", paths, "PNG files; without any, three of examples/data");
  app.add_option("--model", folder, "folder with model.safetensors")->check(option::named_path());
  app.add_option("--picture", picture, "PNG to write, a row for each photograph")->check(option::named_path());
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  if (folder == fetched && !std::filesystem::exists(folder + "/model.safetensors")) {
    std::fprintf(stderr, "photos: the weights are not there; examples/fetch_models dinov2 fetches them (90 MB)\n");
    return 77;  // left out, to ctest
  }
  if (paths.empty())
    for (const char* name : {"chelsea", "astronaut", "camera"})
      paths.push_back(LIMPID_EXAMPLES "/data/photographs/" + std::string(name) + ".png");
  const limpid::io::Checkpoint file(folder);
  const limpid::model::Vit<float> vit(file, {.heads = heads});
  std::vector<Seen> all;
  for (const std::string& path : paths) all.push_back(look(vit, file, path));
  if (!picture.empty()) write_picture(picture, paths, all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Seen& seen = all[i];
    std::printf("%s: saliency up to %.2f at %s; most relevant at %s; heads look at", paths[i].c_str(),
                double(seen.saliency.maxCoeff()), place(seen.saliency).c_str(), place(seen.relevance).c_str());
    for (const Mat<float>& map : seen.looks) std::printf(" (%s)", place(map).c_str());
    std::printf("\n");
  }
  if (!picture.empty()) std::printf("picture: %s\n", picture.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "photos: %s\n", problem.what());
  return 1;
}
