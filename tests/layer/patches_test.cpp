// limpid: patches of an image, their transpose and their fold, against plain loops.
// SPDX-License-Identifier: MIT
#include <limpid/layer/patches.hpp>

#include <limpid/exec/thread_pool.hpp>

#include "support/executors.hpp"
#include "support/two_maps.hpp"

namespace {

using limpid::ImagePatches;
using limpid::Index;
using limpid::Mat;
using limpid::PatchBorder;
using two_maps::distance;
using two_maps::M;
using two_maps::random;
using two_maps::same_bits;

/// The pixel of an axis that a place beyond the border stands for, walked to step by step; -1: none.
Index pixel(PatchBorder border, Index at, Index length) {
  if (at >= 0 && at < length) return at;
  if (border == PatchBorder::edge) return at < 0 ? 0 : length - 1;
  if (border == PatchBorder::zero) return -1;
  if (length == 1) return 0;
  while (at < 0 || at >= length) at = at < 0 ? -at : 2 * (length - 1) - at;
  return at;
}

/// f(token, place in the row of the patch, pixel or -1, channel).
template <class F>
void each(const ImagePatches& p, Index channels, F&& f) {
  const Index before = p.border == PatchBorder::none ? 0 : p.patch / 2;
  const Index end = p.border == PatchBorder::none ? p.patch - 1 : 0;
  Index token = 0;
  for (Index i = 0; i < p.rows - end; i += p.stride)
    for (Index j = 0; j < p.cols - end; j += p.stride, ++token)
      for (Index c = 0; c < channels; ++c)
        for (Index a = 0; a < p.patch; ++a)
          for (Index b = 0; b < p.patch; ++b) {
            const Index r = pixel(p.border, i - before + a, p.rows), k = pixel(p.border, j - before + b, p.cols);
            f(token, (c * p.patch + a) * p.patch + b, r < 0 || k < 0 ? -1 : r * p.cols + k, c);
          }
  CHECK(token == p.tokens());
}

M patches_by_loops(const ImagePatches& p, const M& image) {
  M out = M::Zero(p.tokens(), image.cols() * p.patch * p.patch);
  each(p, image.cols(), [&](Index t, Index e, Index at, Index c) {
    if (at >= 0) out(t, e) = image(at, c);
  });
  return out;
}

const std::vector<ImagePatches> shapes{
    {5, 7, 3},
    {5, 7, 3, 1, PatchBorder::edge},
    {5, 7, 3, 1, PatchBorder::zero},
    {5, 7, 3, 1, PatchBorder::none},
    {6, 4, 2},
    {5, 8, 4, 3, PatchBorder::zero},
    {6, 9, 3, 3, PatchBorder::none},
    {7, 9, 3, 2, PatchBorder::none},
    {9, 8, 5, 2},
    {2, 3, 9},  // mirrored more than once
    {2, 3, 9, 1, PatchBorder::edge},
    {2, 3, 9, 1, PatchBorder::zero},
    {1, 6, 5},
    {1, 1, 7},
    {3, 3, 1},
};

}  // namespace

TEST_CASE("patches are those of a plain loop, in float too, and fold back to the image") {
  for (const ImagePatches& p : shapes)
    for (Index channels = 1; channels <= 4; ++channels) {
      INFO(p.rows << " x " << p.cols << ", " << channels << " channels, patch " << p.patch << ", stride " << p.stride
                  << ", border " << int(p.border));
      const M image = random(p.rows * p.cols, channels, 1), wanted = patches_by_loops(p, image);
      M out = M::Constant(wanted.rows(), wanted.cols(), 7);
      limpid::patches(p, image, out);
      CHECK(same_bits(out, wanted));
      const Mat<float> small = image.cast<float>();
      Mat<float> out_small(wanted.rows(), wanted.cols());
      limpid::patches(p, small, out_small);
      CHECK(same_bits(out_small.cast<double>(), wanted.cast<float>().cast<double>()));

      M folded = M::Constant(image.rows(), image.cols(), 7);
      limpid::fold_patches(p, out, folded);
      CHECK(distance(folded, image) < 1e-13);
      limpid::fold_patches(p, out, folded, {.accumulate = true});
      CHECK(distance(folded, 2 * image) < 1e-13);
    }
}

TEST_CASE("the gradient of an image is the transpose, and the fold its mean") {
  for (const ImagePatches& p : shapes)
    for (Index channels = 1; channels <= 4; ++channels) {
      INFO(p.rows << " x " << p.cols << ", " << channels << " channels, patch " << p.patch << ", stride " << p.stride
                  << ", border " << int(p.border));
      const M x = random(p.rows * p.cols, channels, 1), y = random(p.tokens(), channels * p.patch * p.patch, 2);
      M px = y, pty = x, fold = x, wanted = M::Zero(x.rows(), x.cols()), count = wanted;
      limpid::patches(p, x, px);
      limpid::patches_backward(p, y, pty);
      CHECK(std::abs(px.cwiseProduct(y).sum() - x.cwiseProduct(pty).sum()) <
            1e-13 * px.cwiseProduct(y).cwiseAbs().sum());
      each(p, channels, [&](Index t, Index e, Index at, Index c) {
        if (at >= 0) wanted(at, c) += y(t, e), count(at, c) += 1;
      });
      CHECK(distance(pty, wanted) < 1e-13);
      limpid::patches_backward(p, y, pty, {.accumulate = true});
      CHECK(distance(pty, 2 * wanted) < 1e-13);
      limpid::fold_patches(p, y, fold);
      CHECK(distance(fold, wanted.cwiseQuotient(count)) < 1e-13);
    }
}

TEST_CASE("views of wider buffers, and threads, change no bit of patches") {
  const ImagePatches p{40, 33, 5};
  const Index n = p.tokens();
  const M image = random(n, 3, 1), y = random(n, 75, 2);
  M out(n, 75), back(n, 3), fold(n, 3);
  limpid::patches(p, image, out);
  limpid::patches_backward(p, y, back);
  limpid::fold_patches(p, y, fold);
  const M wide = random(n, 5, 3);
  M wide_out = M::Constant(n, 80, 7), of_block(n, 75);
  const M block = wide.middleCols(1, 3);
  limpid::patches(p, block, of_block);
  limpid::patches(p, wide.middleCols(1, 3), wide_out.middleCols(2, 75));
  CHECK(same_bits(wide_out.middleCols(2, 75), of_block));
  CHECK(same_bits(wide_out.leftCols(2), M::Constant(n, 2, 7)));
  M wide_back = M::Constant(n, 6, 7);
  limpid::patches_backward(p, y, wide_back.middleCols(2, 3));
  CHECK(same_bits(wide_back.middleCols(2, 3), back));
  limpid::fold_patches(p, y, wide_back.middleCols(2, 3));
  CHECK(same_bits(wide_back.middleCols(2, 3), fold));
  CHECK(same_bits(wide_back.rightCols(1), M::Constant(n, 1, 7)));

  limpid::Workspace workspace;
  const auto run = [&](limpid::ExecutorRef executor) {
    M out2(n, 75), back2(n, 3), fold2(n, 3);
    const limpid::LayerCall call{.workspace = &workspace, .executor = executor};
    limpid::patches(p, image, out2, call);
    limpid::patches_backward(p, y, back2, call);
    limpid::fold_patches(p, y, fold2, call);
    CHECK(same_bits(out, out2));
    CHECK(same_bits(back, back2));
    CHECK(same_bits(fold, fold2));
  };
  limpid::ThreadPool pool(3);
  run(pool);
  suite::Backwards backwards;
  run(backwards);
  const std::size_t bytes = workspace.bytes();
  run(backwards);
  CHECK(workspace.bytes() == bytes);
}

TEST_CASE("patches that do not fit are refused by name, before anything is written") {
  M image = random(12, 2, 1), out = M::Constant(12, 18, 7), five = random(12, 5, 2), none(12, 0), back = image;
  const auto refused = [](auto&& call, const std::string& what) {
    try {
      call();
    } catch (const limpid::ShapeError& error) {
      CHECK(error.what() == what);
      return;
    }
    FAIL("was not refused: " << what);
  };
  const ImagePatches p{3, 4, 3};
  const auto of = [&](const ImagePatches& grid) {
    std::string counted;  // who asks how many there are is told the same
    try {
      static_cast<void>(grid.tokens());
    } catch (const limpid::ShapeError& error) {
      counted = error.what();
    }
    try {
      limpid::patches(grid, image, out);
    } catch (const limpid::ShapeError& error) {
      const bool of_arrays = grid.rows == 4;  // the grid is one
      CHECK(counted == (of_arrays ? "" : error.what()));
      throw;
    }
  };
  refused([&] { of({0, 4, 3}); }, "patches: the image is 0 x 4 pixels, wanted at least one and at most 2^40");
  refused(
      [&] {
        of({Index(1) << 32, Index(1) << 32, 3});
      },
      "patches: the image is 4294967296 x 4294967296 pixels, wanted at least one and at most 2^40");
  refused([&] { of({3, 4, 0}); }, "patches: patch is 0, wanted from 1 to 32768");
  refused([&] { of({3, 4, 40000}); }, "patches: patch is 40000, wanted from 1 to 32768");
  refused([&] { of({3, 4, 3, 0}); }, "patches: stride is 0, wanted from 1 to the patch's 3");
  refused([&] { of({3, 4, 3, 4}); }, "patches: stride is 4, wanted from 1 to the patch's 3");
  refused(
      [&] {
        of({3, 4, 3, 2, PatchBorder::none});
      },
      "patches: patches of 3 at a stride of 2 do not cover 4 pixels, wanted patch + a multiple of stride, or a "
      "border");
  refused(
      [&] {
        of({3, 4, 4, 1, PatchBorder::none});
      },
      "patches: patches of 4 at a stride of 1 do not cover 3 pixels, wanted patch + a multiple of stride, or a "
      "border");
  refused([&] { of({1 << 20, 1 << 15, 32768}); }, "patches: 34359738368 patches of 32768 x 32768 fit no memory");
  refused([&] { of({4, 4, 3}); }, "patches: image is 12 x 2, wanted 16 rows, a pixel each, of 1 to 4 channels");
  refused([&] { limpid::patches(p, five, out); },
          "patches: image is 12 x 5, wanted 12 rows, a pixel each, of 1 to 4 channels");
  refused([&] { limpid::patches(p, none, out); },
          "patches: image is 12 x 0, wanted 12 rows, a pixel each, of 1 to 4 channels");
  refused([&] { limpid::patches(p, image, five); }, "patches: out is 12 x 5, wanted 12 x 18");
  refused([&] { limpid::patches(p, out.leftCols(2), out); },
          "patches: out shares memory with image, wanted memory of its own");
  refused([&] { limpid::patches_backward(p, image, back); }, "patches: dout is 12 x 2, wanted 12 x 18");
  refused([&] { limpid::patches_backward(p, out, five); },
          "patches: gradient of image is 12 x 5, wanted 12 rows, a pixel each, of 1 to 4 channels");
  refused([&] { limpid::patches_backward(p, out, out.leftCols(2)); },
          "patches: gradient of image shares memory with dout, wanted memory of its own");
  refused([&] { limpid::fold_patches(p, image, back); }, "fold_patches: patches is 12 x 2, wanted 12 x 18");
  refused([&] { limpid::fold_patches(p, out, out.leftCols(2)); },
          "fold_patches: image shares memory with patches, wanted memory of its own");
  // 4 columns in patches of 2 from -1 to 0 and from 1 to 2
  M half = random(4, 8, 3), folded = M::Constant(12, 2, 7);
  refused(
      [&] {
        limpid::fold_patches({3, 4, 2, 2, PatchBorder::zero}, half, folded);
      },
      "fold_patches: row or column 3 of the image lies in no patch of 2 at a stride of 2, wanted patches that cover "
      "it");
  CHECK(same_bits(folded, M::Constant(12, 2, 7)));
  CHECK(same_bits(out, M::Constant(12, 18, 7)));
  CHECK(same_bits(back, image));
}
