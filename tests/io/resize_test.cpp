// limpid: images as a model wants them: the grey levels that Pillow gives, cut, normalised.
// SPDX-License-Identifier: MIT
//
// The numbers are those of Pillow 11.3, made so (numpy's names): pixel(r, c, k) of an image is
//   where((r + c) % 5 < 2, (r // 3 + c // 4) % 2 * 255, (7 r r + 11 c c + 5 r c + 97 k) // 3 % 256)
// and the result np.asarray(Image.fromarray(image).resize((cols, rows), Image.BILINEAR or Image.BICUBIC)), whole for
// small images and as its FNV-1a hash of 32 bits for larger ones. Pillow 13.0 gives the same but for 97 x 33, 50 x 50 and
// 600 x 20, where it takes the vertical pass first.
#include <cmath>
#include <limits>
#include <limpid/io/resize.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace limpid::io;
using limpid::Index;
using limpid::Mat;
using suite::contains;
using suite::said;

namespace {
namespace resizing {

struct Sizes {
  Index rows, cols, channels, to_rows, to_cols;
};
struct Small {
  Sizes sizes;
  Resampling kind;
  std::vector<int> wanted;
};
struct Large {
  Sizes sizes;
  std::uint32_t bilinear, bicubic;
};
// clang-format off
const std::vector<Small> small_ones{
    {{5, 7, 1, 3, 4}, Resampling::bilinear, {2, 20, 135, 225, 16, 62, 163, 161, 96, 209, 133, 111}},
    {{5, 7, 1, 3, 4}, Resampling::bicubic, {0, 6, 135, 234, 8, 58, 172, 163, 92, 225, 131, 107}},
    {{3, 2, 3, 4, 5}, Resampling::bilinear, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 4, 3, 13,
     23, 4, 23, 41, 4, 25, 45, 3, 15, 28, 4, 18, 33, 7, 29, 52, 9, 40, 71, 10, 43, 75, 9, 41, 74, 10, 42, 75, 13,
     45, 78, 15, 47, 80, 16, 48, 81}},
    {{3, 2, 3, 4, 5}, Resampling::bicubic, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 11,
     20, 4, 22, 41, 4, 27, 49, 3, 15, 27, 3, 17, 31, 8, 31, 54, 11, 44, 77, 12, 49, 86, 8, 42, 77, 9, 43, 78, 13,
     46, 80, 16, 49, 82, 17, 49, 82}},
    {{1, 1, 1, 2, 2}, Resampling::bilinear, {0, 0, 0, 0}},
    {{1, 1, 1, 2, 2}, Resampling::bicubic, {0, 0, 0, 0}},
    {{4, 6, 1, 4, 3}, Resampling::bilinear, {2, 25, 139, 6, 55, 224, 15, 45, 159, 58, 207, 138}},
    {{4, 6, 1, 4, 3}, Resampling::bicubic, {0, 18, 149, 1, 46, 241, 12, 38, 171, 43, 225, 131}},
    {{6, 4, 1, 3, 4}, Resampling::bilinear, {1, 5, 19, 31, 16, 50, 141, 112, 128, 223, 184, 125}},
    {{6, 4, 1, 3, 4}, Resampling::bicubic, {0, 1, 7, 23, 8, 39, 148, 117, 138, 240, 189, 126}},
};
const std::vector<Large> large_ones{
    {{13, 17, 1, 5, 6}, 0xd7451cd4, 0x95b631e3},
    {{7, 5, 3, 16, 11}, 0xe77c88c6, 0xadf09f29},
    {{9, 9, 3, 9, 4}, 0x8a594969, 0xc5cfe654},
    {{9, 9, 3, 4, 9}, 0x30c6895b, 0x1282b1c1},
    {{40, 3, 1, 1, 1}, 0xff0c53ad, 0xff0c53ad},
    {{8, 8, 3, 8, 8}, 0x1cbd337d, 0x1cbd337d},
    {{1, 300, 1, 1, 7}, 0x93cc5f34, 0xa6fab703},
    {{200, 301, 3, 224, 224}, 0xe23b5e11, 0xb3294483},
    {{480, 640, 3, 224, 298}, 0x4cbef8cf, 0x9f71eb76},
    {{97, 33, 1, 31, 101}, 0x0a9d07f0, 0x3384c0c2},
    {{50, 50, 3, 49, 51}, 0x6a4fff53, 0xb4085d8f},
    {{2, 2, 3, 64, 3}, 0x2221c84d, 0x06d16bcd},
    {{600, 20, 3, 7, 300}, 0x7a47cbee, 0xb210179e},
};
// clang-format on

Image picture(const Sizes& s) {
  Image out(s.rows, s.cols, s.channels);
  for (Index r = 0; r < s.rows; ++r)
    for (Index c = 0; c < s.cols; ++c)
      for (Index k = 0; k < s.channels; ++k)
        out(r, c, k) = static_cast<float>((r + c) % 5 < 2 ? (r / 3 + c / 4) % 2 * 255
                                                          : (7 * r * r + 11 * c * c + 5 * r * c + 97 * k) / 3 % 256) /
                       255.0f;
  return out;
}
std::vector<int> greys(const Image& image) {
  std::vector<int> out;
  for (Index i = 0; i < image.pixels.size(); ++i) {
    out.push_back(static_cast<int>(std::lround(image.pixels.data()[i] * 255.0f)));
    CHECK(image.pixels.data()[i] == static_cast<float>(out.back()) / 255.0f);
  }
  return out;
}
std::uint32_t hash(const std::vector<int>& greys) {
  std::uint32_t out = 2166136261u;
  for (const int grey : greys) out = (out ^ static_cast<std::uint32_t>(grey)) * 16777619u;
  return out;
}

}  // namespace resizing
}  // namespace

TEST_CASE("resize: the grey levels of Pillow", "[io]") {
  for (const auto& one : resizing::small_ones) {
    INFO(one.sizes.rows << " x " << one.sizes.cols << " to " << one.sizes.to_rows << " x " << one.sizes.to_cols);
    const Image out = resize(resizing::picture(one.sizes), one.sizes.to_rows, one.sizes.to_cols, one.kind);
    CHECK(out.rows == one.sizes.to_rows);
    CHECK(out.cols == one.sizes.to_cols);
    CHECK(resizing::greys(out) == one.wanted);
  }
  for (const auto& one : resizing::large_ones) {
    INFO(one.sizes.rows << " x " << one.sizes.cols << " to " << one.sizes.to_rows << " x " << one.sizes.to_cols);
    const Image in = resizing::picture(one.sizes);
    const auto of = [&](Resampling kind) {
      return resizing::hash(resizing::greys(resize(in, one.sizes.to_rows, one.sizes.to_cols, kind)));
    };
    CHECK(of(Resampling::bilinear) == one.bilinear);
    CHECK(of(Resampling::bicubic) == one.bicubic);
  }
}

TEST_CASE("resize: pixels are grey levels before, and the size that is there already changes nothing", "[io]") {
  Image image(1, 5, 1);
  image.pixels << -1.0f, 0.5f, 2.0f, std::nanf(""), 100.4f / 255.0f;
  const Image out = resize(image, 1, 5);
  CHECK(resizing::greys(out) == std::vector<int>{0, 128, 255, 0, 100});
  const Image in = resizing::picture({6, 7, 3, 0, 0});
  CHECK(resize(in, 6, 7).pixels == in.pixels);
}

TEST_CASE("resize, crop, normalised: sizes that no image has", "[io]") {
  const Image image(4, 6, 3, 0.5f);
  CHECK(said([&] { resize(image, 0, 3); }) == "resize: found 0 x 3, wanted at least 1 x 1");
  CHECK(said([&] { resize(image, 3, -1); }) == "resize: found 3 x -1, wanted at least 1 x 1");
  CHECK(contains(said([&] { resize(image, Index(1) << 40, 2); }), "2^40 numbers at most"));
  CHECK(contains(said([&] { resize(Image(0, 3, 1), 3, 3); }), "without pixels"));
  CHECK(contains(said([&] { resize(Image(2, 2, 2), 3, 3); }), "wanted rows * cols pixels of 1 or 3 channels"));
  CHECK(said([&] { crop(image, 1, 1, 4, 2); }) ==
        "crop: found 4 x 2 pixels from (1, 1), wanted at least one, within 4 x 6");
  CHECK(contains(said([&] { crop(image, 0, 5, 1, 2); }), "within 4 x 6"));
  CHECK(contains(said([&] { crop(image, -1, 0, 1, 2); }), "within 4 x 6"));
  CHECK(contains(said([&] { crop(image, 0, 0, 0, 2); }), "within 4 x 6"));
  CHECK(said([&] { normalised<float>(image, {0.5}, {0.5}); }) ==
        "normalised: found 1 means and 1 deviations, wanted 3, one a channel");
  CHECK(contains(said([&] { normalised<float>(image, {0, 0, 0}, {1, 0, 1}); }), "deviation is 0, wanted a positive"));
  CHECK(contains(said([&] { normalised<float>(image, {0, std::nan(""), 0}, {1, 1, 1}); }), "mean is nan"));
  CHECK(contains(said([&] { normalised<float>(image, {0, 0, 0}, {1, 1, 1e300}); }), "deviation is 1e+300"));
}

TEST_CASE("crop and normalised: the pixels asked for, less the mean over the deviation", "[io]") {
  const Image image = resizing::picture({5, 7, 3, 0, 0}), part = crop(image, 1, 2, 3, 4);
  CHECK(part.rows == 3);
  CHECK(part.cols == 4);
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 4; ++j)
      for (Index c = 0; c < 3; ++c) CHECK(part(i, j, c) == image(i + 1, j + 2, c));
  const std::vector<double> mean{0.485, 0.456, 0.406}, deviation{0.229, 0.224, 0.225};
  const Mat<double> out = normalised<double>(part, mean, deviation);
  const Mat<float> narrow = normalised<float>(part, mean, deviation);
  REQUIRE(out.rows() == 12);
  for (Index i = 0; i < 12; ++i)
    for (Index c = 0; c < 3; ++c) {
      const auto k = static_cast<std::size_t>(c);
      CHECK(out(i, c) == (static_cast<double>(part.pixels(i, c)) - mean[k]) / deviation[k]);
      CHECK(narrow(i, c) == (part.pixels(i, c) - static_cast<float>(mean[k])) / static_cast<float>(deviation[k]));
    }
}
