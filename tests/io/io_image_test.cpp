// limpid: PNG files of every kind, made by libpng here, and pictures of values at their extremes.
// SPDX-License-Identifier: MIT
#include <png.h>

#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <limpid/io/sheet.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace limpid::io;
using limpid::Index;
using limpid::Mat;
using suite::contains;
using suite::said;

namespace {

/// How a file is to be made.
struct Kind {
  int type = PNG_COLOR_TYPE_GRAY, bits = 8;
  double gamma = 0;  // gAMA, where it is not 0
  bool srgb = false, interlaced = false;
  std::vector<png_color> palette;
  std::vector<png_byte> palette_alpha;
  const png_color_16* transparent = nullptr;
};

void keep(png_structp png, png_bytep from, std::size_t count) {
  auto* bytes = static_cast<std::vector<std::byte>*>(png_get_io_ptr(png));
  const auto* first = reinterpret_cast<const std::byte*>(from);
  bytes->insert(bytes->end(), first, first + count);
}

/// rows of packed numbers as PNG has them, big-endian.
std::vector<std::byte> made(const Kind& kind, Index cols, const std::vector<std::vector<png_byte>>& rows) {
  std::vector<std::byte> bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(png, &bytes, keep, nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(cols), static_cast<png_uint_32>(rows.size()), kind.bits, kind.type,
               kind.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  if (kind.gamma != 0) png_set_gAMA(png, info, kind.gamma);
  if (kind.srgb) png_set_sRGB(png, info, PNG_sRGB_INTENT_ABSOLUTE);
  if (!kind.palette.empty()) png_set_PLTE(png, info, kind.palette.data(), static_cast<int>(kind.palette.size()));
  if (!kind.palette_alpha.empty())
    png_set_tRNS(png, info, kind.palette_alpha.data(), static_cast<int>(kind.palette_alpha.size()), nullptr);
  if (kind.transparent != nullptr) png_set_tRNS(png, info, nullptr, 0, kind.transparent);
  png_set_check_for_invalid_index(png, 0);
  png_write_info(png, info);
  std::vector<png_bytep> pointers;
  for (const auto& row : rows) pointers.push_back(const_cast<png_bytep>(row.data()));
  png_write_image(png, pointers.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

Image parse(const std::vector<std::byte>& bytes, Channels channels = Channels::as_stored) {
  return parse_png(bytes.data(), bytes.size(), channels);
}

std::vector<png_byte> wide(const std::vector<int>& numbers) {
  std::vector<png_byte> out;
  for (int number : numbers)
    out.push_back(static_cast<png_byte>(number >> 8)), out.push_back(static_cast<png_byte>(number));
  return out;
}

/// The right value: the number over the largest, on white by alpha.
long double right(int number, int alpha, int bits) {
  const long double most = static_cast<long double>((1 << bits) - 1), a = alpha / most;
  return a * (number / most) + 1 - a;
}
constexpr double three_units = 3 * 0x1p-24;

}  // namespace

TEST_CASE("png: sixteen bits are read as they are stored, whatever the chunks say of light", "[io]") {
  for (const double gamma : {0.0, 1.0, 0.45455, 2.2})
    for (const bool srgb : {false, true})
      for (const bool interlaced : {false, true}) {
        if (srgb && gamma != 0 && gamma != 0.45455) continue;  // libpng does not write what contradicts itself
        Kind kind;
        kind.bits = 16, kind.gamma = gamma, kind.srgb = srgb, kind.interlaced = interlaced;
        const Image grey = parse(made(kind, 4, {wide({0, 8192, 32768, 65535}), wide({1, 255, 256, 65534})}));
        const int eight[] = {0, 32, 128, 255}, all[] = {0, 8192, 32768, 65535, 1, 255, 256, 65534};
        REQUIRE(grey.channels() == 1);
        for (Index i = 0; i < 4; ++i) CHECK(std::lround(grey(0, i) * 255) == eight[i]);
        for (Index i = 0; i < 8; ++i)
          CHECK(std::abs(grey.pixels(i, 0) - static_cast<double>(right(all[i], 65535, 16))) <= three_units);
        kind.bits = 8;
        const Image narrow = parse(made(kind, 3, {{0, 100, 255}}));
        CHECK(std::lround(narrow(0, 1) * 255) == 100);
        kind.type = PNG_COLOR_TYPE_RGB;
        CHECK(std::lround(parse(made(kind, 1, {{10, 20, 30}}))(0, 0, 1) * 255) == 20);
      }
}

TEST_CASE("png: grey of a file in colour is to_grey of its colours", "[io]") {
  for (const int bits : {8, 16})
    for (const double gamma : {0.0, 1.0, 0.45455}) {
      Kind kind;
      kind.type = PNG_COLOR_TYPE_RGB, kind.bits = bits, kind.gamma = gamma;
      const std::vector<int> numbers{255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 60, 77, 77, 77};
      const auto file =
          made(kind, 5, {bits == 16 ? wide(numbers) : std::vector<png_byte>(numbers.begin(), numbers.end())});
      const Image colour = parse(file), grey = parse(file, Channels::grey);
      REQUIRE(colour.channels() == 3);
      CHECK(grey.pixels == to_grey(colour).pixels);
      for (Index i = 0; i < 5; ++i) {
        long double mean = 0;
        for (Index c = 0; c < 3; ++c)
          mean += right(numbers[static_cast<std::size_t>(3 * i + c)], (1 << bits) - 1, bits) / 3;
        CHECK(std::abs(grey(0, i) - static_cast<double>(mean)) <= three_units);
      }
    }
  const Image grey = parse(made(Kind{}, 2, {{7, 200}})), colour = parse(made(Kind{}, 2, {{7, 200}}), Channels::rgb);
  for (Index c = 0; c < 3; ++c) CHECK(colour(0, 1, c) == grey(0, 1));
}

TEST_CASE("png: alpha of either depth puts encoded values on white", "[io]") {
  for (const int bits : {8, 16})
    for (const double gamma : {0.0, 1.0, 0.45455})
      for (const bool coloured : {false, true}) {
        Kind kind;
        kind.type = coloured ? PNG_COLOR_TYPE_RGB_ALPHA : PNG_COLOR_TYPE_GRAY_ALPHA, kind.bits = bits,
        kind.gamma = gamma;
        const int most = (1 << bits) - 1, values[] = {0, 1, most / 4, most / 2, most},
                  alphas[] = {0, 1, most / 3, most - 1, most};
        std::vector<int> row;
        for (int v : values)
          for (int a : alphas) {
            row.push_back(v);
            if (coloured) row.push_back(most - v), row.push_back(v / 2);
            row.push_back(a);
          }
        const auto file = made(kind, 25, {bits == 16 ? wide(row) : std::vector<png_byte>(row.begin(), row.end())});
        const Image read = parse(file);
        REQUIRE(read.channels() == (coloured ? 3 : 1));
        Index i = 0;
        for (int v : values)
          for (int a : alphas) {
            CHECK(std::abs(read(0, i, 0) - static_cast<double>(right(v, a, bits))) <= three_units);
            if (coloured) CHECK(std::abs(read(0, i, 1) - static_cast<double>(right(most - v, a, bits))) <= three_units);
            if (coloured) CHECK(std::abs(read(0, i, 2) - static_cast<double>(right(v / 2, a, bits))) <= three_units);
            ++i;
          }
        CHECK(parse(file, Channels::grey).pixels == to_grey(read).pixels);
      }
}

TEST_CASE("png: few bits, palettes and a colour that is transparent", "[io]") {
  for (const bool interlaced : {false, true})
    for (const int bits : {1, 2, 4, 8}) {
      const int most = (1 << bits) - 1;
      std::vector<std::vector<png_byte>> rows;
      for (int r = 0; r < 9; ++r) {  // nine rows and columns: every pass of the interlacing
        std::vector<png_byte> row(static_cast<std::size_t>((9 * bits + 7) / 8), 0);
        for (int c = 0; c < 9; ++c) {
          const int bit = c * bits, number = (r * 9 + c) % (most + 1);
          row[static_cast<std::size_t>(bit / 8)] =
              static_cast<png_byte>(row[static_cast<std::size_t>(bit / 8)] | number << (8 - bits - bit % 8));
        }
        rows.push_back(row);
      }
      Kind kind;
      kind.bits = bits, kind.interlaced = interlaced, kind.gamma = 1;
      const png_color_16 key{0, 0, 0, 0, 1};
      for (const png_color_16* transparent : {static_cast<const png_color_16*>(nullptr), &key}) {
        kind.transparent = transparent;
        const Image grey = parse(made(kind, 9, rows));
        for (int i = 0; i < 81; ++i) {
          const int number = i % (most + 1);
          CHECK(std::abs(grey.pixels(i, 0) -
                         static_cast<double>(right(number, transparent != nullptr && number == 1 ? 0 : most, bits))) <=
                three_units);
        }
      }
      kind.transparent = nullptr;
      kind.type = PNG_COLOR_TYPE_PALETTE;
      for (int i = 0; i <= most; ++i) {
        kind.palette.push_back(
            {static_cast<png_byte>(i * 2), static_cast<png_byte>(255 - i), static_cast<png_byte>(i * 7)});
        kind.palette_alpha.push_back(static_cast<png_byte>(i % 2 == 0 ? 255 : 100));
      }
      const Image colours = parse(made(kind, 9, rows));
      REQUIRE(colours.channels() == 3);
      for (int i = 0; i < 81; ++i) {
        const int number = i % (most + 1), alpha = number % 2 == 0 ? 255 : 100;
        CHECK(std::abs(colours.pixels(i, 0) -
                       static_cast<double>(right(static_cast<png_byte>(number * 2), alpha, 8))) <= three_units);
        CHECK(std::abs(colours.pixels(i, 1) - static_cast<double>(right(255 - number, alpha, 8))) <= three_units);
        CHECK(std::abs(colours.pixels(i, 2) -
                       static_cast<double>(right(static_cast<png_byte>(number * 7), alpha, 8))) <= three_units);
      }
      kind.palette.pop_back(), kind.palette_alpha.clear();  // the last colour is used, but no longer there
      if (!kind.palette.empty() && most < 81)
        CHECK(contains(said([&] { parse(made(kind, 9, rows)); }),
                       "uses colour " + std::to_string(most) + " of its palette"));
    }
  Kind kind;
  kind.bits = 16;
  const png_color_16 key{0, 0, 0, 0, 300};
  kind.transparent = &key;
  const Image grey = parse(made(kind, 2, {wide({300, 301})}));
  CHECK(grey(0, 0) == 1);
  CHECK(std::abs(grey(0, 1) - 301 / 65535.0) <= three_units);
}

TEST_CASE("png: sixteen bits are written and read back, and a file that claims too much is refused", "[io]") {
  const suite::TemporaryFolder folder;
  Image all(256, 256, 1);
  for (Index i = 0; i < 65536; ++i) all.pixels(i, 0) = static_cast<float>(i) / 65535.0f;
  write_png(folder / "x.png", all, 16);
  CHECK(read_png(folder / "x.png").pixels == all.pixels);
  CHECK((to_grey(read_png(folder / "x.png", Channels::rgb)).pixels - all.pixels).cwiseAbs().maxCoeff() <= 0x1p-24f);
  CHECK(contains(said([&] { write_png(folder / "x.png", all, 4); }), "bits is 4, wanted 8 or 16"));
  auto file = made(Kind{}, 1, {{1}});
  const std::byte big[] = {std::byte(0), std::byte(0), std::byte(0x1f), std::byte(0xff)};
  for (std::size_t i = 0; i < 4; ++i) file[16 + i] = file[20 + i] = big[i];
  const auto sum = static_cast<std::uint32_t>([&] {  // of the header, as PNG defines it
    std::uint32_t c = 0xffffffffu;
    for (std::size_t i = 12; i < 29; ++i) {
      c ^= std::to_integer<std::uint32_t>(file[i]);
      for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    }
    return c ^ 0xffffffffu;
  }());
  for (int i = 0; i < 4; ++i)
    file[static_cast<std::size_t>(29 + i)] = static_cast<std::byte>(sum >> (24 - 8 * i) & 0xff);
  CHECK(contains(said([&] { parse(file); }), "has 8191 x 8191 pixels, more than its"));
}

TEST_CASE("pictures of values: constant, none, infinite, huge, tiny and NaN", "[io]") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
  const auto shown = [](const Image& image, Index i) {
    return Rgb{image.pixels(i, 0), image.pixels(i, 1), image.pixels(i, 2)};
  };
  std::deque<Mat<float>> maps;  // a view is not taken of a temporary
  const auto map = [&](std::initializer_list<float> values) -> const Mat<float>& {
    Mat<float>& out = maps.emplace_back(1, static_cast<Index>(values.size()));
    Index i = 0;
    for (float v : values) out(0, i++) = v;
    return out;
  };
  const Mat<float> nothing(0, 5);
  const Image zeros = heat_map(map({0, 0})), same = heat_map(map({3, 3})), none = heat_map(nothing);
  CHECK(shown(zeros, 0) == perceptual(0));
  CHECK(shown(same, 0) == perceptual(1));
  CHECK(none.pixels.size() == 0);
  for (const Mat<float>& values :
       {map({inf, -inf, nan, 0}), map({inf, -inf, nan, huge}), map({inf, -inf, nan, tiny}), map({inf, -inf, nan, 1})}) {
    const Image drawn = heat_map(values, diverging);
    CHECK(shown(drawn, 0) == diverging(1));
    CHECK(shown(drawn, 1) == diverging(-1));
    CHECK(shown(drawn, 2) == diverging(0));
    CHECK(shown(drawn, 3) == diverging(values(0, 3) == 0 ? 0.0f : 1.0f));
    const Image laid = overlay(Image(1, 4, 1, 0.5f), values, diverging);
    CHECK(shown(laid, 0) == diverging(1));
    CHECK(laid.pixels.allFinite());
    CHECK(laid(0, 2, 0) == Approx(0.275));
  }
  CHECK(shown(heat_map(map({huge, -huge}), diverging, tiny), 1) == diverging(-1));
  CHECK(shown(heat_map(map({tiny, 2 * tiny})), 0) == perceptual(0.5f));
  CHECK(shown(heat_map(map({tiny}), perceptual, huge), 0) == perceptual(0));
  CHECK(overlay(Image(0, 5, 1), nothing).pixels.size() == 0);
  for (const float bad : {nan, inf, -inf, -1.0f}) {
    CHECK(contains(said([&] { heat_map(map({1}), perceptual, bad); }), "heat_map: scale is "));
    CHECK(contains(said([&] { overlay(Image(1, 1, 1), map({1}), perceptual, bad); }), "overlay: scale is "));
    CHECK(contains(said([&] { overlay(Image(1, 1, 1), map({1}), perceptual, 0, bad); }), "overlay: gamma is "));
    if (!std::isfinite(bad)) CHECK(contains(said([&] { overlay(Image(1, 1, 1, bad), map({1})); }), "not finite"));
    CHECK(perceptual(bad) == perceptual(bad > 0 ? 1.0f : 0.0f));
  }
  CHECK(contains(said([&] { overlay(Image(1, 1, 1), map({1}), perceptual, 0, 0); }), "overlay: gamma is 0"));
  CHECK(contains(said([&] { heat_map(map({1}), nullptr); }), "heat_map: colors is null"));
}

TEST_CASE("sheets: a picture takes the channels of the sheet it is pasted into", "[io]") {
  Image colour(1, 2, 3);
  colour.pixels << 0.9f, 0.3f, 0.0f, 0.2f, 0.4f, 0.6f;
  Image grey_sheet(2, 3, 1, 1.0f), colour_sheet(2, 3, 3, 1.0f);
  paste(grey_sheet, colour, 1, 1);
  CHECK(grey_sheet(1, 1) == to_grey(colour)(0, 0));
  CHECK(grey_sheet(1, 2) == to_grey(colour)(0, 1));
  CHECK(grey_sheet(1, 0) == 1);
  paste(colour_sheet, to_grey(colour), 0, 0);
  for (Index c = 0; c < 3; ++c) CHECK(colour_sheet(0, 1, c) == to_grey(colour)(0, 1));
  paste(colour_sheet, colour, 1, 1);
  for (Index c = 0; c < 3; ++c) CHECK(colour_sheet(1, 1, c) == colour(0, 0, c));
  for (Image* sheet : {&grey_sheet, &colour_sheet})
    for (const Image& nothing : {Image(), Image(0, 3, 3), Image(2, 0, 1)}) {
      const Image was = *sheet;
      paste(*sheet, nothing, 0, 0);
      CHECK(sheet->pixels == was.pixels);
    }
  Image two(2, 2, 2, 0.5f);
  const Mat<float> values = Mat<float>::Zero(2, 2);
  for (const auto& use : std::vector<std::function<void()>>{
           [&] { paste(two, colour, 0, 0); }, [&] { paste(grey_sheet, two, 0, 0); }, [&] { to_grey(two); },
           [&] { to_rgb(two); }, [&] { enlarge(two, 2); }, [&] { draw_text(two, 0, 0, "A"); },
           [&] {
             contact_sheet({{two, "", ""}}, 1);
           },
           [&] { overlay(two, values); }})
    CHECK(contains(said(use), "wanted rows * cols pixels of 1 or 3 channels"));
  CHECK(two.pixels.minCoeff() == 0.5f);
}

TEST_CASE("sheets and text: sizes at their extremes", "[io]") {
  constexpr Index most = std::numeric_limits<Index>::max(), least = std::numeric_limits<Index>::min();
  const Image dot(1, 1, 1, 0.5f);
  for (const Index bad : {Index(0), Index(-1), least, most}) {
    CHECK(contains(said([&] {
                     contact_sheet({{dot, "a", ""}}, bad);
                   }),
                   "contact_sheet: across is " + std::to_string(bad)));
    CHECK(contains(said([&] { contact_sheet({{dot, "a", ""}}, 1, bad); }), "contact_sheet: enlargement is "));
    CHECK(contains(said([&] { contact_sheet({{dot, "a", ""}}, 1, 1, bad); }), "contact_sheet: text_size is "));
    CHECK(contains(said([&] { text_width("a", bad); }), "text_width: size is "));
    CHECK(contains(said([&] { enlarge(dot, bad); }), "enlarge: factor is "));
    if (bad != 0) CHECK(contains(said([&] { Image(bad, most, 3); }), "Image: found "));
    Image page(20, 20, 1, 1.0f);
    CHECK(contains(said([&] { draw_text(page, 0, 0, "a", bad); }), "draw_text: size is "));
    draw_text(page, bad, bad, "AB"), draw_text(page, bad, 3, "AB"), draw_text(page, 3, bad, "AB");
    if (bad == least || bad == most) CHECK(page.pixels.minCoeff() == 1.0f);
    CHECK((bad == 0) == (said([&] { paste(page, dot, bad, bad); }) == "read"));
  }
  Image page(20, 20, 1, 1.0f);
  draw_text(page, -3 * (Index(1) << 20), 0, "HHHH",
            Index(1) << 20);  // the middle of an H: its bar, and no walk outside
  CHECK(page.pixels.maxCoeff() == 0.0f);
  CHECK(contains(said([&] { paste(page, Image(21, 1, 1), 0, 0); }), "does not fit"));
  Image torn = page;
  torn.rows = 30;
  CHECK(contains(said([&] { enlarge(torn, 2); }), "found an image of 30 x 20"));
  CHECK(contains(said([&] { to_grey(torn); }), "found an image of 30 x 20"));
  CHECK(contains(said([&] { to_rgb(torn); }), "found an image of 30 x 20"));
  CHECK(contains(said([&] { contact_sheet({{torn, "", ""}}, 1); }), "found an image of 30 x 20"));
  CHECK(contact_sheet({}, 3).pixels.minCoeff() == 1.0f);
  CHECK(contact_sheet({{Image(), "label", ""}}, 1).pixels.minCoeff() == 0.0f);
}
