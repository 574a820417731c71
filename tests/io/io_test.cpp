// limpid: files: what is written reads back, and whatever the bytes are, reading ends in a result or in one clear
// sentence.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <filesystem>
#include <limits>
#include <limpid/io/idx.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/safetensors.hpp>
#include <limpid/io/sheet.hpp>
#include <random>

#include "support/catch.hpp"
#include "support/distance.hpp"
#include "support/files.hpp"

using namespace limpid::io;
using limpid::Index;
using limpid::Mat;
using suite::bytes_of;
using suite::contains;

namespace {

/// A path in the system's temporary folder, removed in the end.
struct Temporary {
  std::string path;
  explicit Temporary(const std::string& name)
      : path((std::filesystem::temp_directory_path() / ("limpid-" + std::to_string(std::random_device{}()) + name))
                 .string()) {}
  ~Temporary() { std::filesystem::remove(path); }
};

/// A safetensors file with that header and so many bytes of data.
std::vector<std::byte> with_header(const std::string& header, std::size_t data = 0) {
  std::vector<std::byte> bytes(8);
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  const auto text = bytes_of(header);
  bytes.insert(bytes.end(), text.begin(), text.end());
  bytes.resize(bytes.size() + data);
  return bytes;
}

/// What a reader says, which may be a FormatError alone, or "read".
template <class Read>
std::string format_said(Read&& read) {
  try {
    read();
    return "read";
  } catch (const FormatError& problem) {
    return problem.what();
  }
}
std::string said_of(const std::vector<std::byte>& bytes) {
  return format_said([&] { parse_safetensors(bytes.data(), bytes.size()); });
}

Safetensors sample() {
  Safetensors file;
  Mat<double> wide(2, 3);
  wide << 1, -2, 3.5, 0, std::numeric_limits<double>::infinity(), 1e-300;
  const Mat<float> narrow = wide.cast<float>();
  file.tensors["wide"] = Tensor::from(wide);
  file.tensors["narrow"] = Tensor::from(narrow);
  file.tensors["counts"] = Tensor::from(std::vector<std::int64_t>{-1, 2, 1ll << 40}, {3});
  file.tensors["mask"] = Tensor::from(std::vector<bool>{true, false, true, true}, {2, 2});
  file.tensors["bytes"] = Tensor::from(std::vector<std::uint8_t>{0, 255, 7}, {1, 3, 1});
  file.tensors["number"] = Tensor::from(std::vector<std::int32_t>{-9}, {});
  file.tensors["nothing"] = Tensor::from(std::vector<float>{}, {0, 5});
  file.metadata = {{"operator", "softmax"}, {"note", "\"quotes\" and \xc3\xa9"}};
  return file;
}

}  // namespace

TEST_CASE("safetensors: what is written reads back bit for bit", "[io]") {
  const Temporary to(".safetensors");
  const Safetensors file = sample();
  write_safetensors(to.path, file);
  const Safetensors back = read_safetensors(to.path);
  REQUIRE(back.metadata == file.metadata);
  REQUIRE(back.tensors.size() == file.tensors.size());
  for (const auto& [name, tensor] : file.tensors) {
    INFO(name);
    CHECK(back.at(name).dtype == tensor.dtype);
    CHECK(back.at(name).shape == tensor.shape);
    CHECK(back.at(name).bytes == tensor.bytes);
  }
  CHECK(back.at("wide").matrix<double>()(1, 2) == 1e-300);
  CHECK(back.at("mask").matrix<bool>()(0, 1) == false);
  CHECK(back.at("mask").matrix<float>()(1, 1) == 1.0f);
  CHECK(back.at("counts").values<std::int64_t>()[2] == 1ll << 40);
  CHECK(back.at("nothing").matrix<float>().cols() == 5);
  CHECK(back.at("number").matrix<double>()(0, 0) == -9);
}

TEST_CASE("safetensors: data starts at a multiple of eight and wide types come first", "[io]") {
  const std::vector<std::byte> bytes = serialize_safetensors(sample());
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  CHECK(header.find("[0,24]") != std::string::npos);  // counts, before the bool mask
}

TEST_CASE("safetensors: a malformed file is refused with what was found and wanted", "[io]") {
  CHECK(said_of(bytes_of("abc")) == "safetensors: found 3 bytes, wanted at least the 8 of the header length");
  CHECK(contains(said_of(bytes_of("\xff\xff\xff\xff\xff\xff\xff\xff{}")), "only 2 bytes follow"));
  CHECK(contains(said_of(with_header("")), "does not start with '{'"));
  CHECK(contains(said_of(with_header("[1]")), "does not start with '{'"));
  CHECK(contains(said_of(with_header("{\"a\":")), "is not JSON"));
  CHECK(contains(said_of(with_header("{\"a\xff\":1}")), "is not JSON"));
  CHECK(contains(said_of(with_header(R"({"a":1})")), "found number, wanted an object"));
  CHECK(contains(said_of(with_header(R"({"a":{"x":{"y":{"z":{}}}}})")), "nested deeper"));
  CHECK(contains(said_of(with_header(R"({"__metadata__":{"n":3}})")), "'n' is number, wanted a string"));
  const auto tensor = [](const std::string& fields) { return R"({"a":{)" + fields + "}}"; };
  const std::string f32 = R"("dtype":"F32",)";
  CHECK(contains(said_of(with_header(tensor(R"("dtype":"F8","shape":[],"data_offsets":[0,1])"), 1)), "dtype is 'F8'"));
  CHECK(contains(said_of(with_header(tensor(R"("shape":[],"data_offsets":[0,0])"))), "dtype is ''"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("data_offsets":[0,0])"))), "wanted an array 'shape'"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[-1],"data_offsets":[0,4])"), 4)), "'shape' holds '-1'"));
  CHECK(
      contains(said_of(with_header(tensor(f32 + R"("shape":[1.5],"data_offsets":[0,4])"), 4)), "'shape' holds '1.5'"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[2],"data_offsets":[0,4])"), 4)),
                 "found 4 bytes, wanted 8"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[2],"data_offsets":[0,8])"), 4)), "within the 4 bytes"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[1],"data_offsets":[8,4])"), 8)), "within the 8 bytes"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[1],"data_offsets":[4,8])"), 8)), "starts at byte 4"));
  CHECK(contains(said_of(with_header(tensor(f32 + R"("shape":[1],"data_offsets":[0,4])"), 8)), "wanted all 8"));
  CHECK(contains(
      said_of(with_header(tensor(f32 + R"("shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0])"))),
      "larger than any memory"));
  CHECK(contains(said_of(with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                     R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                                     1)),
                 "names 'a' twice"));
  CHECK(contains(said_of(with_header(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                     R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                     3)),
                 "starts at byte 1 of the data, wanted 2"));
  CHECK(contains(format_said([] { read_safetensors("no-such-file.safetensors"); }),
                 "no-such-file.safetensors: cannot be opened"));
  CHECK(contains(format_said([] { read_safetensors("."); }), ".: is a folder, wanted a file"));
  CHECK(contains(format_said([] { sample().at("missing"); }), "no tensor 'missing'; found 'bytes'"));
}

TEST_CASE("safetensors: every file one byte away from a good one ends in a result or a FormatError", "[io]") {
  const std::vector<std::byte> good = serialize_safetensors(sample());
  int read = 0, refused = 0;
  for (std::size_t at = 0; at < good.size(); ++at)
    for (int flip : {1, 0x20, 0x80}) {
      std::vector<std::byte> bytes = good;
      bytes[at] ^= static_cast<std::byte>(flip);
      said_of(bytes) == "read" ? ++read : ++refused;
    }
  for (std::size_t size = 0; size < good.size(); ++size)
    CHECK(said_of(std::vector<std::byte>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))) != "read");
  CHECK(read > 0);
  CHECK(refused > 0);
}

TEST_CASE("tensors: half and brain floats become floats", "[io]") {
  const std::vector<std::pair<std::uint16_t, float>> halves{{0x3c00, 1.0f},
                                                            {0xc000, -2.0f},
                                                            {0x7bff, 65504.0f},
                                                            {0x0001, 0x1p-24f},
                                                            {0x03ff, 1023 * 0x1p-24f},
                                                            {0x8000, -0.0f},
                                                            {0x7c00, std::numeric_limits<float>::infinity()}};
  for (const auto& [bits, value] : halves) {
    Tensor t(DType::f16, {1}, std::vector<std::byte>(2));
    std::memcpy(t.bytes.data(), &bits, 2);
    CHECK(t.values<float>()[0] == value);
    CHECK(std::signbit(t.values<float>()[0]) == std::signbit(value));
  }
  Tensor nan(DType::f16, {1}, {std::byte(1), std::byte(0x7c)});
  CHECK(std::isnan(nan.values<float>()[0]));
  Tensor brain(DType::bf16, {1}, {std::byte(0x49), std::byte(0x40)});
  CHECK(brain.values<float>()[0] == 3.140625f);
}

TEST_CASE("tensors: a float is not read as an integer, and entries must fill the shape", "[io]") {
  const Tensor t = Tensor::from(std::vector<float>{1, 2}, {2});
  CHECK(format_said([&] { t.values<std::int32_t>(); }) == "tensor: found F32, wanted an integer or bool type");
  CHECK(contains(format_said([] {
                   Tensor::from(std::vector<float>{1, 2}, {3});
                 }),
                 "found 8 bytes, wanted 12 for shape [3] of F32"));
}

TEST_CASE("npy: what is written reads back, any rank", "[io]") {
  const Temporary to(".npy");
  for (const std::vector<Index>& shape : {std::vector<Index>{}, {6}, {2, 3}, {1, 2, 3}, {0, 4}}) {
    Index size = 1;
    for (Index extent : shape) size *= extent;
    std::vector<double> values(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.5 * static_cast<double>(i);
    write_npy(to.path, Tensor::from(values, shape));
    const Tensor back = read_npy(to.path);
    CHECK(back.shape == shape);
    CHECK(back.values<double>() == values);
    CHECK(std::filesystem::file_size(to.path) % 64 == back.bytes.size() % 64);
  }
}

TEST_CASE("npy: headers of versions 1 and 2 as numpy writes them, and what is refused", "[io]") {
  const auto file = [](int version, const std::string& header, std::size_t data) {
    std::string text = "\x93NUMPY";
    text += static_cast<char>(version);
    text += '\0';
    for (int i = 0; i < (version == 1 ? 2 : 4); ++i) text += static_cast<char>((header.size() >> (8 * i)) & 0xff);
    return bytes_of(text + header + std::string(data, '\1'));
  };
  const auto parse = [](const std::vector<std::byte>& bytes) { return parse_npy(bytes.data(), bytes.size()); };
  CHECK(parse(file(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (2, 2), }  \n", 4)).matrix<bool>()(1, 1));
  CHECK(parse(file(2, "{\"shape\": (3,), 'fortran_order': False, 'descr': '<f4'}", 12)).shape == std::vector<Index>{3});
  const auto refusal = [&](const std::vector<std::byte>& bytes) { return format_said([&] { parse(bytes); }); };
  const auto header = [&](const std::string& text) { return refusal(file(1, text, 8)); };
  CHECK(refusal(bytes_of("NUMPY")) == "npy: does not start as an npy file does");
  CHECK(contains(refusal(file(9, "{}", 0)), "is npy version 9"));
  CHECK(header("{'descr': '<f8', 'fortran_order': True, 'shape': (1,)}") == "read");
  CHECK(contains(header("{'descr': '>f8', 'fortran_order': False, 'shape': (1,)}"), "the type is '>f8'"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}"), "found 8 bytes, wanted 16"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': False}"), "lacks one of"));
  CHECK(contains(header("{'descr': '<f8', 'descr': '<f8'}"), "names 'descr' twice"));
  CHECK(contains(header("{'colour': 'red'}"), "has a key 'colour'"));
  CHECK(contains(header("{'descr': '<f8"), "does not end"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "wanted a whole number"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,)}"), "too large"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': maybe, 'shape': (1,)}"), "neither True nor False"));
  CHECK(contains(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)} x"), "goes on after"));
  const auto good = file(2, "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", 8);
  for (std::size_t size = 0; size < good.size(); ++size)
    CHECK(refusal(std::vector<std::byte>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))) != "read");
}

TEST_CASE("idx: gzip round trip, part of a file, and what is refused", "[io]") {
  const Temporary to(".gz");
  std::vector<std::uint8_t> values(3 * 4 * 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(4 * i);
  write_idx(to.path, Tensor::from(values, {3, 4, 5}));
  const Tensor back = read_idx(to.path);
  CHECK(back.shape == std::vector<Index>{3, 4, 5});
  CHECK(back.values<std::uint8_t>() == values);
  CHECK(read_idx(to.path, 2).shape == std::vector<Index>{2, 4, 5});
  CHECK(read_idx(to.path, 9).shape[0] == 3);
  CHECK(contains(format_said([&] { read_idx(to.path, -1, 59); }), "needs 60 bytes, the limit is 59"));
  const auto plain = [&](std::vector<int> content) {
    std::vector<std::byte> bytes;
    for (int b : content) bytes.push_back(static_cast<std::byte>(b));
    detail::write_file(to.path, bytes);
    return format_said([&] { read_idx(to.path); });
  };
  CHECK(plain({0, 0, 8, 1, 0, 0, 0, 2, 7, 7}) == "read");  // gzip is optional
  CHECK(contains(plain({0, 0, 8, 1, 0, 0, 0, 2, 7}), "ends early"));
  CHECK(contains(plain({0, 0, 8, 1, 0x7f, 0xff, 0xff, 0xff, 7}), "needs 2147483647 bytes"));
  CHECK(contains(plain({0, 0, 13, 1, 0, 0, 0, 0}), "the IDX type is 13"));
  CHECK(contains(plain({1, 0, 8, 1}), "does not start as an IDX file does"));
  CHECK(contains(plain({}), "ends early"));
}

TEST_CASE("png: grey and colour come back as eight bits of themselves, clipped", "[io]") {
  const Temporary to(".png");
  for (Index channels : {1, 3}) {
    Image image(5, 7, channels);
    for (Index i = 0; i < image.pixels.size(); ++i) image.pixels.data()[i] = static_cast<float>(i % 256) / 255.0f;
    image(0, 0) = -3, image(0, 1) = 9, image(0, 2) = std::numeric_limits<float>::quiet_NaN();
    write_png(to.path, image);
    image(0, 0) = 0, image(0, 1) = 1, image(0, 2) = 0;
    const Image back = read_png(to.path);
    REQUIRE(back.channels() == channels);
    CHECK(back.rows == 5);
    CHECK(back.cols == 7);
    CHECK(suite::distance(back.pixels, image.pixels) < 1e-6f);
    CHECK(read_png(to.path, Channels::grey).channels() == 1);
    CHECK(read_png(to.path, Channels::rgb).channels() == 3);
  }
  CHECK(contains(format_said([&] { read_png(to.path, Channels::rgb, 34); }), "has 5 x 7 pixels, the limit is 34"));
  CHECK(contains(format_said([&] { write_png(to.path, Image(2, 2, 2)); }), "2 channels"));
  CHECK(contains(format_said([&] { write_png("no-such-folder/x.png", Image(2, 2, 1)); }), "could not be written"));
}

TEST_CASE("png: every file cut short or bent ends in a result or a FormatError", "[io]") {
  const Temporary to(".png");
  Image image(9, 9, 3, 0.5f);
  draw_text(image, 1, 1, "A");
  write_png(to.path, image);
  const std::vector<std::byte> good = detail::read_file(to.path);
  const auto parse = [](const std::vector<std::byte>& bytes) {
    return format_said([&] { parse_png(bytes.data(), bytes.size(), Channels::rgb, 1 << 16); });
  };
  CHECK(parse(good) == "read");
  CHECK(contains(parse({}), "is not a PNG file"));
  for (std::size_t size = 0; size + 12 < good.size(); ++size)
    CHECK(parse(std::vector<std::byte>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))) != "read");
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::vector<std::byte> bytes = good;
    bytes[at] ^= std::byte(0x10);
    parse(bytes);
  }
}

TEST_CASE("colours: lightness of the perceptual map rises evenly, the diverging map is symmetric", "[io]") {
  const auto lightness = [](const Rgb& c) {  // OKLab's, from sRGB (Ottosson 2020)
    const auto linear = [](float v) { return v <= 0.04045f ? v / 12.92f : std::pow((v + 0.055f) / 1.055f, 2.4f); };
    const float r = linear(c[0]), g = linear(c[1]), b = linear(c[2]);
    return 0.2104542553f * std::cbrt(0.4122214708f * r + 0.5363325363f * g + 0.0514459929f * b) +
           0.7936177850f * std::cbrt(0.2119034982f * r + 0.6806995451f * g + 0.1073969566f * b) -
           0.0040720468f * std::cbrt(0.0883024619f * r + 0.2817188376f * g + 0.6299787005f * b);
  };
  for (int i = 0; i <= 32; ++i) {
    const float t = static_cast<float>(i) / 32;
    CHECK(lightness(perceptual(t)) == Approx(0.20 + 0.72 * t).margin(2e-3));
    CHECK(lightness(diverging(t)) == Approx(0.97 - 0.50 * t).margin(2e-3));
    CHECK(lightness(diverging(-t)) == Approx(0.97 - 0.50 * t).margin(2e-3));
    for (const Rgb& c : {perceptual(t), diverging(t), diverging(-t)})
      for (float v : c) CHECK((v >= 0 && v <= 1));
  }
  CHECK(diverging(-1)[2] > diverging(-1)[0]);
  CHECK(diverging(1)[0] > diverging(1)[2]);
  CHECK(perceptual(7) == perceptual(1));
  CHECK(perceptual(std::numeric_limits<float>::quiet_NaN()) == perceptual(0));
}

TEST_CASE("overlay: a zero shows the dimmed image, the largest value its colour alone", "[io]") {
  Image image(2, 2, 1, 0.8f);
  Mat<float> values(2, 2);
  values << 0, 1, 4, 0;
  const Image out = overlay(image, values);
  CHECK(out(0, 0, 0) == Approx(0.44));
  CHECK(out(0, 0, 2) == Approx(0.44));
  for (Index c = 0; c < 3; ++c) CHECK(out(1, 0, c) == Approx(perceptual(1)[static_cast<std::size_t>(c)]));
  const Mat<float> wrong = Mat<float>::Zero(2, 3);
  CHECK(format_said([&] { overlay(image, wrong); }) == "overlay: found a map of 2 x 3, wanted 2 x 2 as the image");
  CHECK(heat_map(values)(1, 0, 1) == Approx(perceptual(1)[1]));
}

TEST_CASE("sheets: pictures keep their pixels and labels leave ink", "[io]") {
  const Image picture(3, 4, 1, 0.25f);
  const Image sheet = contact_sheet({{picture, "nlm", "29.85 dB"}, {picture, "x", ""}, {picture, "", ""}}, 2, 2);
  CHECK(sheet.channels() == 3);
  Index painted = 0, ink = 0;
  for (Index i = 0; i < sheet.rows * sheet.cols; ++i) {
    painted += sheet.pixels(i, 0) == 0.25f;
    ink += sheet.pixels(i, 0) == 0.0f;
  }
  CHECK(painted == 3 * 6 * 8);
  CHECK(ink > 20);
  CHECK(text_width("abc", 2) == 36);
  Image small(2, 2, 1, 1.0f);
  draw_text(small, -3, -3, "WWW");  // clipped, not written out of bounds
  CHECK(small.pixels.minCoeff() == 0.0f);
}
