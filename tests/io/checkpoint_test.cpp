// limpid: weights on disk: looked at where they lie, converted where they must be, refused one by one, in one file or in
// many, and a file that proves itself.
// SPDX-License-Identifier: MIT
#include <limits>
#include <limpid/io/checkpoint.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace limpid::io;
using limpid::Index;
using limpid::Mat;
using limpid::View;
using suite::bytes_of;
using suite::contains;
using suite::said;

namespace {
namespace checkpoint {

Mat<double> numbers(Index rows, Index cols) {
  Mat<double> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = 0.25 * static_cast<double>(i) - 1;
  return out;
}
Tensor shaped(Tensor tensor, std::vector<Index> shape) {
  tensor.shape = std::move(shape);
  return tensor;
}
Safetensors of_all_types() {
  Safetensors file;
  const Mat<double> m = numbers(3, 4);
  file.tensors["f64"] = Tensor::from(m, DType::f64);
  file.tensors["f32"] = Tensor::from(m, DType::f32);
  file.tensors["f16"] = Tensor::from(m, DType::f16);
  file.tensors["bf16"] = Tensor::from(m, DType::bf16);
  file.tensors["row"] = shaped(Tensor::from(m, DType::f32), {12});
  file.tensors["class"] = shaped(Tensor::from(m, DType::f32), {1, 1, 12});
  file.tensors["positions"] = shaped(Tensor::from(m, DType::f32), {1, 3, 4});
  file.tensors["filter"] = shaped(Tensor::from(m, DType::f32), {3, 1, 2, 2});
  file.tensors["oblong"] = shaped(Tensor::from(m, DType::f32), {3, 2, 2, 1});
  file.tensors["i64"] = Tensor::from(std::vector<std::int64_t>{-1, 1ll << 40}, {2});
  file.tensors["i32"] = Tensor::from(std::vector<std::int32_t>{-1, 7}, {2, 1});
  file.tensors["u8"] = Tensor::from(std::vector<std::uint8_t>{255, 0}, {2});
  file.tensors["bool"] = Tensor::from(std::vector<bool>{true, false}, {2});
  file.tensors["empty"] = Tensor::from(std::vector<float>{}, {0, 4});
  file.metadata["kind"] = "test";
  return file;
}
/// A file with that header and so many bytes of data, all of them 1.
std::vector<std::byte> with_data(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  return bytes_of(std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, '\1'));
}
std::string opened(const std::vector<std::byte>& bytes) {
  return said([&] { Checkpoint(bytes.data(), bytes.size()); });
}
void write_text(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

}  // namespace checkpoint
}  // namespace

TEST_CASE("checkpoint: tensors are read when asked for, in place where they can be", "[io]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "model.safetensors";
  write_safetensors(path, checkpoint::of_all_types());
  const Mat<double> wanted = checkpoint::numbers(3, 4);
  for (const std::string& from : {path, folder.path.string()}) {  // the file, and the folder it lies in
    const Checkpoint file(from);
    CHECK(file.name() == path);
    CHECK(file.meta("kind") == "test");
    CHECK(file.unused().size() == file.names().size());
    for (const char* type : {"f64", "f32", "f16", "bf16"}) {
      INFO(type);
      const auto narrow = file.matrix<float>(type, 3, 4);
      const auto wide = file.matrix<double>(type);
      CHECK(narrow.view().map() == wanted.cast<float>());
      CHECK(wide.view().map() == wanted);
      CHECK(narrow.in_place() == (std::string(type) == "f32"));
      CHECK(wide.in_place() == (std::string(type) == "f64"));
    }
    CHECK(file.row<float>("row", 12).view().map().reshaped<Eigen::RowMajor>() ==
          wanted.cast<float>().reshaped<Eigen::RowMajor>());
    CHECK(file.row<float>("class").cols() == 12);
    CHECK(file.matrix<float>("positions", 3, 4).view().map() == wanted.cast<float>());
    const auto filter = file.filter<float>("filter", 3, 1, 2);
    CHECK(filter.view().map() == wanted.cast<float>());
    CHECK(file.matrix<float>("empty", 0, 4).cols() == 4);
    CHECK(file.indices("i64") == std::vector<std::int64_t>{-1, 1ll << 40});
    CHECK(file.indices("i32") == std::vector<std::int64_t>{-1, 7});
    CHECK(file.indices("u8") == std::vector<std::int64_t>{255, 0});
    CHECK(file.indices("bool") == std::vector<std::int64_t>{1, 0});
    CHECK(file.tensor("i32").values<int>()[1] == 7);
    CHECK(file.shape("class") == std::vector<Index>{1, 1, 12});
    CHECK(file.type("bf16") == "BF16");
    CHECK(file.unused() == std::vector<std::string>{"oblong"});
    file.skip("oblong");
    file.skip("not there");
    CHECK(file.unused().empty());
  }
}

TEST_CASE("checkpoint: what was read outlives the object, and the file's replacement", "[io]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  Safetensors file = checkpoint::of_all_types();
  write_safetensors(path, file);
  auto weights = Checkpoint(path).matrix<float>("f32");
  const auto copy = weights;
  REQUIRE(weights.in_place());
  const Mat<float> other = Mat<float>::Zero(3, 4);
  file.tensors["f32"] = Tensor::from(other);
  write_safetensors(path, file);
  CHECK(copy.view().map() == checkpoint::numbers(3, 4).cast<float>());
  weights = Checkpoint(path).matrix<float>("f32");
  CHECK(weights.view().map() == other);
  Weights<double> own = Checkpoint(path).matrix<double>("f32");
  const Weights<double> moved = std::move(own);
  CHECK(moved.view().map() == other.cast<double>());
  const View<double> seen = moved;
  CHECK(seen.rows == 3);
}

TEST_CASE("checkpoint: numbers at an odd address are copied", "[io]") {
  const Mat<float> wanted = checkpoint::numbers(1, 2).cast<float>();
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  for (int spaces = 0; spaces < 8; ++spaces, header += ' ') {
    std::vector<std::byte> bytes = checkpoint::with_data(header, 8);
    std::memcpy(bytes.data() + bytes.size() - 8, wanted.data(), 8);
    const Checkpoint file(bytes.data(), bytes.size());
    const auto row = file.row<float>("a", 2);
    CHECK(row.in_place() == ((8 + header.size()) % alignof(float) == 0));
    CHECK(row.view().map() == wanted);
  }
}

TEST_CASE("checkpoint: rank, shape and type are told as found and wanted", "[io]") {
  const auto bytes = serialize_safetensors(checkpoint::of_all_types());
  const Checkpoint file(bytes.data(), bytes.size(), "m");
  CHECK(said([&] { file.row<float>("row", 13); }) == "m: 'row': found the shape [12], wanted [13]");
  CHECK(said([&] { file.row<float>("f32", 4); }) == "m: 'f32': found the shape [3, 4], wanted [4]");
  CHECK(said([&] { file.matrix<float>("row"); }) == "m: 'row': found the shape [12], wanted [any, any]");
  CHECK(said([&] { file.matrix<float>("f32", 4, 3); }) == "m: 'f32': found the shape [3, 4], wanted [4, 3]");
  CHECK(said([&] { file.matrix<float>("filter"); }) == "m: 'filter': found the shape [3, 1, 2, 2], wanted [any, any]");
  CHECK(said([&] { file.filter<float>("filter", 3, 2, 2); }) ==
        "m: 'filter': found the shape [3, 1, 2, 2], wanted [3, 2, 2, 2]");
  CHECK(said([&] { file.filter<float>("oblong"); }) ==
        "m: 'oblong': found the shape [3, 2, 2, 1], wanted [any, any, any, any]");
  CHECK(said([&] { file.row<float>("i64"); }) == "m: 'i64': found the type 'I64', wanted F64, F32, F16 or BF16");
  CHECK(contains(said([&] { file.indices("f32"); }), "m: 'f32': found the type 'F32', wanted integers"));
  Safetensors large;
  large.tensors["a"] = Tensor::from(std::vector<double>{1e300}, {1});
  const auto of_large = serialize_safetensors(large);
  CHECK(said([&] { Checkpoint(of_large.data(), of_large.size(), "m").row<float>("a"); }) ==
        "m: 'a': found the entry 1e+300, wanted at most 3.40282e+38 in size");
  // what was refused was not read
  CHECK(file.unused().size() == file.names().size());
}

TEST_CASE("checkpoint: a tensor of a type nobody knows refuses itself and not the file", "[io]") {
  const auto bytes = checkpoint::with_data(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},)"
                                           R"("b":{"dtype":"F4","shape":[3],"data_offsets":[4,6]},)"
                                           R"("i8":{"dtype":"I8","shape":[2],"data_offsets":[6,8]},)"
                                           R"("i16":{"dtype":"I16","shape":[1],"data_offsets":[8,10]},)"
                                           R"("u16":{"dtype":"U16","shape":[1],"data_offsets":[10,12]},)"
                                           R"("u32":{"dtype":"U32","shape":[1],"data_offsets":[12,16]},)"
                                           R"("u64":{"dtype":"U64","shape":[1],"data_offsets":[16,24]}})",
                                           24);
  const Checkpoint file(bytes.data(), bytes.size(), "m");
  CHECK(said([&] { file.row<float>("a"); }) == "m: 'a': found the type 'F8_E4M3', wanted F64, F32, F16 or BF16");
  CHECK(contains(said([&] { file.tensor("a"); }), "m: 'a': found the type 'F8_E4M3', wanted F64"));
  CHECK(contains(said([&] { file.indices("b"); }), "m: 'b': found the type 'F4', wanted integers"));
  CHECK(file.indices("i8") == std::vector<std::int64_t>{1, 1});
  CHECK(file.indices("i16") == std::vector<std::int64_t>{0x0101});
  CHECK(file.indices("u16") == std::vector<std::int64_t>{0x0101});
  CHECK(file.indices("u32") == std::vector<std::int64_t>{0x01010101});
  CHECK(file.indices("u64") == std::vector<std::int64_t>{0x0101010101010101});
  CHECK(file.unused() == std::vector<std::string>{"a", "b"});
  CHECK(contains(said([&] { parse_safetensors(bytes.data(), bytes.size()); }), "'a': dtype is 'F8_E4M3', wanted F64"));
  auto beyond = checkpoint::with_data(R"({"a":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}})", 8);
  beyond.back() = std::byte(0xff);
  CHECK(contains(said([&] { Checkpoint(beyond.data(), beyond.size()).indices("a"); }), "wanted one below 2^63"));
}

TEST_CASE("checkpoint: a malformed file is refused as it is opened", "[io]") {
  const auto tensor = [](const std::string& type, const std::string& shape, const std::string& offsets) {
    return R"({"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  const auto one = [&](const std::string& type, const std::string& shape, const std::string& offsets) {
    return R"({"a":)" + tensor(type, shape, offsets) + "}";
  };
  using checkpoint::opened;
  using checkpoint::with_data;
  CHECK(opened(with_data(one("F32", "[2]", "[0,8]"), 8)) == "read");
  CHECK(contains(opened(bytes_of("abc")), "found 3 bytes, wanted at least the 8"));
  CHECK(contains(opened(bytes_of("\xff\xff\xff\xff\xff\xff\xff\x7f{}")), "only 2 bytes follow"));
  CHECK(contains(opened(with_data(one("F32", "[2]", "[0,8]"), 7)), "within the 7 bytes"));
  CHECK(contains(opened(with_data(one("F32", "[2]", "[0,8]"), 9)), "wanted all 9"));
  CHECK(contains(opened(with_data(one("F32", "[3]", "[0,8]"), 8)), "found 8 bytes, wanted 12 for shape [3] of F32"));
  CHECK(contains(opened(with_data(one("U64", "[3]", "[0,8]"), 8)), "found 8 bytes, wanted 24 for shape [3] of U64"));
  CHECK(contains(opened(with_data(one("F32", "[4611686018427387904]", "[0,8]"), 8)), "larger than any memory"));
  CHECK(contains(opened(with_data(one("F8", "[4611686018427387904,4]", "[0,8]"), 8)), "larger than any memory"));
  CHECK(contains(opened(with_data(one("F32", "[0,4611686018427387904,4]", "[0,0]"), 0)), "larger than any memory"));
  CHECK(contains(opened(with_data(one("F8", "[1]", "[8,0]"), 8)), "wanted [begin, end]"));
  CHECK(contains(
      opened(with_data(R"({"a":)" + tensor("F8", "[4]", "[0,4]") + R"(,"b":)" + tensor("F8", "[4]", "[2,8]") + "}", 8)),
      "starts at byte 2 of the data, wanted 4"));
  CHECK(contains(
      opened(with_data(R"({"a":)" + tensor("F8", "[4]", "[0,4]") + R"(,"a":)" + tensor("F8", "[4]", "[4,8]") + "}", 8)),
      "names 'a' twice"));
  CHECK(contains(opened(with_data(one("F32", "[1]", "[0,4]").substr(0, 30), 4)), "not JSON"));
  CHECK(contains(said([] { Checkpoint("no-such-file.safetensors"); }), "no-such-file.safetensors: cannot be opened"));
  CHECK(contains(said([] { Checkpoint(""); }), "the path is empty"));
  const suite::TemporaryFolder folder;
  CHECK(contains(said([&] { Checkpoint{folder.path.string()}; }), "model.safetensors: cannot be opened"));
}

TEST_CASE("checkpoint: the nearest names are told, not all of them", "[io]") {
  Safetensors file;
  const Mat<float> one = Mat<float>::Zero(1, 1);
  for (int i = 0; i < 12; ++i)
    for (const char* part : {"attn.qkv.weight", "attn.proj.weight", "norm1.weight", "norm1.bias"})
      file.tensors["blocks." + std::to_string(i) + "." + part] = Tensor::from(one);
  file.tensors["a.long.prefix.of.another.family.model.cls_token"] = Tensor::from(one);
  const auto bytes = serialize_safetensors(file);
  const Checkpoint read(bytes.data(), bytes.size(), "m");
  CHECK(said([&] { read.row<float>("blocks.3.norm1.gamma"); }) ==
        "m: no tensor 'blocks.3.norm1.gamma'; nearest of 49 are 'blocks.3.norm1.bias', 'blocks.0.norm1.bias', "
        "'blocks.1.norm1.bias'");
  CHECK(contains(said([&] { read.row<float>("cls_token"); }),
                 "nearest of 49 are 'a.long.prefix.of.another.family.model.cls_token', "));
  CHECK(contains(said([&] { read.row<float>("blocks.12.attn.qkv.weight"); }), "'blocks.1.attn.qkv.weight'"));
  CHECK(said([&] {
          read.require({"blocks.0.norm1.bias", "cls_token", "x"});
        })
            .rfind("m: lacks 2 of 3 tensors: 'cls_token' (nearest of 49 are "
                   "'a.long.prefix.of.another.family.model.cls_token'",
                   0) == 0);
  CHECK(said([&] { read.require({"blocks.0.norm1.bias"}); }) == "read");
  const auto nothing = checkpoint::with_data("{}", 0);
  CHECK(said([&] { Checkpoint(nothing.data(), nothing.size(), "m").indices("a"); }) ==
        "m: no tensor 'a'; the file has none");
  // names as long as a header may have them are told in a sentence too
  file.tensors[std::string(100000, 'a')] = Tensor::from(one);
  const auto longer = serialize_safetensors(file);
  CHECK(said([&] { Checkpoint(longer.data(), longer.size(), "m").indices(std::string(90000, 'a')); }).size() < 500);
}

TEST_CASE("checkpoint: shards by their index", "[io]") {
  const suite::TemporaryFolder folder;
  const Mat<float> one = Mat<float>::Constant(1, 1, 1), two = Mat<float>::Constant(1, 1, 2);
  Safetensors first, second;
  first.tensors["a"] = Tensor::from(one);
  first.tensors["both"] = Tensor::from(one);
  first.tensors["extra"] = Tensor::from(one);
  second.tensors["b"] = Tensor::from(two);
  second.tensors["both"] = Tensor::from(two);
  second.metadata["format"] = "pt";
  write_safetensors(folder / "model-1.safetensors", first);
  write_safetensors(folder / "model-2.safetensors", second);
  const std::string path = folder / "model.safetensors.index.json";
  const std::string map =
      R"("weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "both": "model-2.safetensors"})";
  checkpoint::write_text(path, R"({"metadata": {"total_size": 16, "x": [1, {"y": null}]}, )" + map + "}");
  for (const std::string& from : {path, folder.path.string()}) {
    const Checkpoint file(from);
    CHECK(file.name() == path);
    CHECK(file.names() == std::vector<std::string>{"a", "b", "both", "extra"});
    CHECK(file.matrix<float>("a").view()(0, 0) == 1);
    CHECK(file.matrix<float>("b").view()(0, 0) == 2);
    CHECK(file.matrix<float>("both").view()(0, 0) == 2);
    CHECK(file.unused() == std::vector<std::string>{"extra"});
    CHECK(file.meta("format") == "pt");
  }
  const auto opened = [&](const std::string& text) {
    checkpoint::write_text(path, text);
    return said([&] { Checkpoint{path}; });
  };
  CHECK(contains(opened("{}"), "has no weight_map"));
  CHECK(contains(opened(""), "is not JSON"));
  CHECK(contains(opened("{" + map), "is not JSON"));
  CHECK(contains(opened("{" + map + "," + map + "}"), "names 'weight_map' twice"));
  CHECK(contains(opened(R"({"weight_map": 3})"), "weight_map is number, wanted an object"));
  CHECK(contains(opened(R"({"weight_map": ["a"]})"), "weight_map is array, wanted an object"));
  CHECK(contains(opened(R"({"weight_map": {"a": 3}})"), "weight_map: 'a' is number, wanted the name of a file"));
  CHECK(contains(opened(R"({"weight_map": {"a": {"b": "c"}}})"), "weight_map: 'a' is object"));
  CHECK(contains(opened(R"({"weight_map": {"a": "model-1.safetensors", "a": "model-1.safetensors"}})"),
                 "weight_map names 'a' twice"));
  for (const char* name : {"../model-1.safetensors", "/etc/passwd", "..", ".", "", "a\\u0000b", "x/"})
    CHECK(contains(opened(R"({"weight_map": {"a": ")" + std::string(name) + "\"}}"), "in the same folder"));
  CHECK(contains(opened(R"({"weight_map": {"a": "model-3.safetensors"}})"), "model-3.safetensors: cannot be opened"));
  CHECK(contains(opened(R"({"weight_map": {"b": "model-1.safetensors"}})"),
                 "names the tensor 'b' of 'model-1.safetensors', which does not have it"));
  CHECK(contains(opened(R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})"),
                 "model-2.safetensors: has 'both' again"));
}

TEST_CASE("checkpoint: opening takes no memory for the data", "[io]") {
  const suite::TemporaryFolder folder;
  constexpr std::size_t size = std::size_t(64) << 20;
  {
    Safetensors file;
    file.tensors["a"] = Tensor(DType::f32, {Index(size / 4)}, std::vector<std::byte>(size));
    write_safetensors(folder / "a", file);
  }
  CHECK(suite::peak_memory([&] {
          const Checkpoint file(folder / "a");
          CHECK(file.row<float>("a").in_place());
        }) < (std::size_t(6) << 20));
}

TEST_CASE("tensors: stored as F64, F32, F16 and BF16, rounded to the nearest", "[io]") {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Mat<double> one(1, 1);
  const auto bits = [&](double x, DType type) {
    one(0, 0) = x;
    return limpid::io::detail::load<std::uint16_t>(Tensor::from(one, type).bytes.data());
  };
  // Every half and brain float is stored as itself, and the middle of two neighbours as the even one.
  for (const DType type : {DType::f16, DType::bf16}) {
    const unsigned top = type == DType::f16 ? 0x7c00 : 0x7f80;
    const auto value = [&](unsigned pattern) {
      const auto half = static_cast<std::uint16_t>(pattern);
      return double(type == DType::f16 ? limpid::io::detail::half_to_float(half)
                                       : limpid::io::detail::brain_to_float(half));
    };
    int wrong = 0;
    for (unsigned pattern = 0; pattern + 1 < top; ++pattern) {
      const double low = value(pattern), high = value(pattern + 1), middle = low + (high - low) / 2;
      wrong += bits(low, type) != pattern;
      wrong += bits(-low, type) != (pattern | 0x8000u);
      wrong += bits(middle, type) != pattern + pattern % 2;
      wrong += bits(std::nextafter(middle, high), type) != pattern + 1;
      wrong += bits(std::nextafter(middle, low), type) != pattern;
    }
    CHECK(wrong == 0);
    CHECK(bits(infinity, type) == top);
    CHECK(bits(-infinity, type) == (top | 0x8000u));
    CHECK((bits(std::nan(""), type) & 0x7fffu) > top);
    CHECK(bits(5e-324, type) == 0);
    const double largest = value(top - 1), edge = largest + (largest - value(top - 2)) / 2;
    CHECK(bits(std::nextafter(edge, 0), type) == top - 1);
    CHECK(contains(said([&] { bits(edge, type); }), "wanted at most "));
    CHECK(contains(said([&] { bits(-1e300, type); }), "tensor: found the entry -1e+300, wanted at most "));
  }
  one(0, 0) = 1e300;
  CHECK(contains(said([&] { Tensor::from(one, DType::f32); }), "found the entry 1e+300, wanted at most 3.40282e+38"));
  CHECK(Tensor::from(one, DType::f64).values<double>()[0] == 1e300);
  CHECK(said([&] { Tensor::from(one, DType::i64); }) ==
        "tensor: found the type I64, wanted F64, F32, F16 or BF16 for floats");
}

TEST_CASE("checkpoint: a file proves itself", "[io]") {
  Mat<float> x = checkpoint::numbers(2, 3).cast<float>(), y = 2 * x;
  Safetensors file;
  file.tensors["weight"] = Tensor::from(x);
  const auto none = serialize_safetensors(file);
  const auto twice = [](const Tensor& input) -> Mat<float> { return 2 * input.matrix<float>(); };
  CHECK(contains(said([&] { prove(Checkpoint(none.data(), none.size(), "m"), 1e-6, twice); }), "m: carries no proof"));
  add_proof(file, Tensor::from(x), Tensor::from(y));
  CHECK(
      contains(said([&] { add_proof(file, Tensor::from(x), Tensor::from(y)); }), "has a tensor 'proof.input' already"));
  const auto bytes = serialize_safetensors(file);
  const Checkpoint read(bytes.data(), bytes.size(), "m");
  CHECK(has_proof(read));
  CHECK(read.unused() == std::vector<std::string>{"weight"});
  CHECK(prove(read, 1e-6, twice) == 0);
  const auto off = [](const Tensor& input) -> Mat<float> { return 2.002f * input.matrix<float>(); };
  CHECK(prove(read, 2e-3, off) == Approx(1e-3).epsilon(1e-3));
  CHECK(contains(said([&] { prove(read, 1e-6, off); }), "m: the model's output is 0.001"));
  CHECK(contains(said([&] { prove(read, 1e-6, off); }), "away from 'proof.output', wanted at most 1e-06"));
  CHECK(contains(said([&] {
                   prove(read, 1, [](const Tensor& input) {
                     Mat<float> out = input.matrix<float>();
                     out(0, 0) = std::nanf("");
                     return out;
                   });
                 }),
                 "the model's output is nan"));
  CHECK(contains(said([&] { prove(read, 1, [](const Tensor&) -> Mat<float> { return Mat<float>::Zero(1, 2); }); }),
                 "has 2 numbers, wanted 6"));
}
