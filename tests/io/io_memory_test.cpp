// limpid: files that are small and would fill the memory or the day: lists without end, texts packed a thousand to one,
// tensors by the thousand.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <limits>
#include <limpid/io/idx.hpp>
#include <limpid/io/image.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/safetensors.hpp>

#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/zlib.hpp"

using namespace limpid::io;
using limpid::Index;
using suite::bytes_of;
using suite::contains;
using suite::peak_memory;
using suite::said;

namespace {

constexpr std::size_t mega = 1'000'000;

std::string repeated(const std::string& text, std::size_t times) {
  std::string out;
  out.reserve(text.size() * times);
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

/// `"0":value,"1":value` and so on.
std::string fields(std::size_t count, const std::string& value) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":" + value;
  return out;
}

std::string big_endian(std::size_t number) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(number >> shift & 0xff);
  return out;
}

struct Answer {
  std::string says;
  std::size_t memory;
};
template <class Read>
Answer answer(Read&& read) {
  Answer out;
  out.memory = peak_memory([&] { out.says = said(read); });
  return out;
}

Answer safetensors(const std::string& header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  const auto file = bytes_of(std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, '\1'));
  return answer([&] { parse_safetensors(file.data(), file.size()); });
}
Answer safetensors_of(const std::string& fields) { return safetensors("{\"a\":{" + fields + "}}", 1); }

Answer npy(const std::string& header, std::size_t data = 1) {  // version 2
  const auto length = static_cast<std::uint32_t>(header.size());
  const auto file = bytes_of(std::string("\x93NUMPY\2\0", 8) + std::string(reinterpret_cast<const char*>(&length), 4) +
                             header + std::string(data, '\1'));
  return answer([&] { parse_npy(file.data(), file.size()); });
}
std::string npy_header(const std::string& shape) {
  return "{'descr': '|u1', 'fortran_order': False, 'shape': (" + shape + "), }";
}

std::string chunk(const std::string& name, const std::string& data) {
  const std::string body = name + data;
  return big_endian(data.size()) + body +
         big_endian(crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size())));
}
/// A PNG of one grey pixel, with more chunks before it.
std::vector<std::byte> one_pixel(const std::string& chunks) {
  return bytes_of(std::string("\x89PNG\r\n\x1a\n") +
                  chunk("IHDR", big_endian(1) + big_endian(1) + std::string("\10\0\0\0\0", 5)) + chunks +
                  chunk("IDAT", suite::deflated(std::string("\0\63", 2))) + chunk("IEND", ""));
}

}  // namespace

TEST_CASE("safetensors: a header takes memory of a few times its size", "[io]") {
  const std::string good = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])", ones = repeated("1,", mega / 2) + "1";
  constexpr std::size_t most = 10 * mega;  // the headers have one million bytes
  Answer found = safetensors_of(R"("dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,1])");
  CHECK(found.says == "safetensors: 'a': shape has more than 64 numbers, wanted at most that many axes");
  CHECK(found.memory < most);
  found = safetensors_of(R"("dtype":"U8","shape":[1],"data_offsets":[)" + ones + "]");
  CHECK(found.says == "safetensors: 'a': data_offsets has more than 2 numbers, wanted [begin, end]");
  CHECK(found.memory < most);
  found = safetensors_of(good + ",\"x\":[" + ones + "]");  // as the reference, which does not look at other fields
  CHECK(found.says == "read");
  CHECK(found.memory < most);
  for (const std::string& more : {fields(mega / 8, "0"), "\"x\":{" + fields(mega / 8, "0") + "}"}) {
    found = safetensors_of(good + "," + more);
    CHECK(contains(found.says, "'a': has more than 64 fields"));
    CHECK(found.memory < most);
  }
  found = safetensors("{\"__metadata__\":{" + fields(mega / 10, "\"\"") + "}}");
  CHECK(contains(found.says, "'__metadata__': holds more than 65536 strings"));
  CHECK(found.memory < most);
  found = safetensors("{" + fields(mega / 60, R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})") + "}");
  CHECK(found.says == "read");
  CHECK(found.memory < most);
}

TEST_CASE("safetensors: what is wrong is told in a sentence, however long it is", "[io]") {
  const std::string text(mega / 10, '1');
  for (const std::string& wrong : {"{\"" + text, "{\"a\":" + text, "{\"a\":\"" + text + "\"}", "{\"" + text + "\":[]}",
                                   "{\"a\":{\"shape\":[" + text + "]}}", "{\"a\":{\"shape\":[\"" + text + "\"]}}"}) {
    const Answer found = safetensors(wrong);
    CHECK(contains(found.says, "wanted") != contains(found.says, "not JSON"));
    CHECK(found.says.size() < 500);
  }
}

TEST_CASE("safetensors: at most 64 axes, 64 fields and 65536 strings, read and written", "[io]") {
  const auto shaped = [](std::size_t axes) {
    return R"("dtype":"U8","data_offsets":[0,1],"shape":[1)" + repeated(",1", axes - 1) + "]";
  };
  CHECK(safetensors_of(shaped(64)).says == "read");
  CHECK(contains(safetensors_of(shaped(65)).says, "'a': shape has more than 64 numbers"));
  CHECK(safetensors_of(shaped(1) + "," + fields(61, "null")).says == "read");
  CHECK(contains(safetensors_of(shaped(1) + "," + fields(62, "null")).says, "has more than 64 fields"));
  CHECK(safetensors_of(shaped(1) + ",\"x\":{" + fields(64, "0") + "}").says == "read");
  CHECK(contains(safetensors_of(shaped(1) + ",\"x\":{" + fields(65, "0") + "}").says, "has more than 64 fields"));
  CHECK(contains(safetensors_of(shaped(1) + R"(,"x":1,"x":1)").says, "names 'x' twice"));
  CHECK(contains(safetensors_of(shaped(1) + R"(,"x":{"y":1,"y":1})").says, "names 'y' twice"));
  CHECK(contains(safetensors(R"({"__metadata__":null,"__metadata__":null})").says, "names '__metadata__' twice"));
  CHECK(contains(safetensors(R"({"__metadata__":{"a":"","a":""}})").says, "names 'a' twice"));

  Safetensors file;
  const auto written = [&] { return said([&] { serialize_safetensors(file); }); };
  file.tensors["a"] = Tensor(DType::u8, std::vector<Index>(64, 1), {std::byte(1)});
  CHECK(written() == "read");
  file.tensors["a"].shape.push_back(1);
  CHECK(written() == "safetensors: 'a': found 65 axes, wanted at most 64");
  file.tensors.clear();
  for (std::size_t i = 0; i < 65536; ++i) file.metadata[std::to_string(i)];
  const auto bytes = serialize_safetensors(file);
  CHECK(parse_safetensors(bytes.data(), bytes.size()).metadata.size() == 65536);
  file.metadata["one more"];
  CHECK(written() == "safetensors: found 65537 metadata strings, wanted at most 65536");
}

TEST_CASE("safetensors: the first fault of the text is told, whatever the kind of value", "[io]") {
  const auto says = [](const std::string& fields) { return safetensors_of(fields).says; };
  for (const char* value : {"1", "-1", "1.5", "true", "null", "\"1\"", "{}"})
    for (const std::string field : {"shape", "data_offsets"})
      CHECK(says("\"dtype\":\"U8\",\"" + field + "\":" + value) == "safetensors: 'a': wanted an array '" + field + "'");
  for (const char* value : {"1", "-1", "1.5", "true", "null", "[]", "{}"})
    CHECK(contains(says(std::string("\"dtype\":") + value), "'a': dtype is '', wanted F64"));
  const std::pair<const char*, const char*> held[] = {{"-1", "-1"},       {"-0", "-0"},     {"1e0", "1e0"},
                                                      {"1.50", "1.50"},   {"true", "true"}, {"null", "null"},
                                                      {"\"1\"", "\"1\""}, {"[]", "["},      {"{}", "{"}};
  for (const auto& [value, shown] : held)
    for (const std::string field : {"shape", "data_offsets"})
      CHECK(says("\"dtype\":\"U8\",\"" + field + "\":[" + value + "]") ==
            "safetensors: 'a': '" + field + "' holds '" + shown + "', wanted whole numbers from 0");
  const std::pair<const char*, const char*> types[] = {{"-1", "number"},    {"1", "number"},  {"1.5", "number"},
                                                       {"true", "boolean"}, {"null", "null"}, {"\"1\"", "string"},
                                                       {"[]", "array"},     {"{}", "object"}};
  for (const auto& [value, type] : types) {
    const std::string text = value;
    if (text != "{}")
      CHECK(safetensors("{\"a\":" + text + "}").says ==
            std::string("safetensors: 'a': found ") + type + ", wanted an object");
    if (text != "\"1\"")
      CHECK(safetensors("{\"__metadata__\":{\"a\":" + text + "}}").says ==
            std::string("safetensors: '__metadata__': 'a' is ") + type + ", wanted a string");
  }
  const std::string good = R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":)";
  for (const char* value : {"1", "{}", "[]", "[[]]", "[{}]", "{\"y\":[]}", "{\"y\":{}}", "[1,[],\"\",{},null]"})
    CHECK(says(good + value) == "read");
  for (const char* value : {"[[1]]", "[[[]]]", "[{\"z\":1}]", "{\"y\":[1]}", "{\"y\":{\"z\":1}}", "{\"y\":[{}]}"})
    CHECK(says(good + value) == "safetensors: the header is nested deeper than tensor, field, list");
}

TEST_CASE("safetensors: many tensors take time in proportion to their number", "[io]") {
  for (const std::size_t entries : {0, 1}) {
    const auto seconds = [&](std::size_t count) {
      std::string text;
      for (std::size_t i = 0; i < count; ++i)
        text += (i == 0 ? "{\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[)" +
                std::to_string(entries) + R"(],"data_offsets":[)" + std::to_string(i * entries) + "," +
                std::to_string((i + 1) * entries) + "]}";
      const auto before = std::chrono::steady_clock::now();
      CHECK(safetensors(text + "}", count * entries).says == "read");
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
    };
    seconds(1000);
    const double few = std::min({seconds(1000), seconds(1000), seconds(1000)});
    double many = seconds(16000);
    for (int again = 0; again < 2 && many > 80 * few; ++again) many = std::min(many, seconds(16000));
    CHECK(many < 80 * few);  // 16 times in proportion, 256 times by the square
  }
  Safetensors file;
  for (int i = 0; i < 1000; ++i) file.tensors[std::to_string(i)];
  const std::string why = said([&] { file.at("x"); });
  CHECK(contains(why, "no tensor 'x'; found '0', '1', '10', '100'"));
  CHECK(contains(why, " and 980 more"));
}

TEST_CASE("npy: headers have at most 65535 bytes and 64 axes, read and written", "[io]") {
  for (const std::string& header : {npy_header(repeated("1,", 2 * mega)), npy_header("1,") + std::string(4 * mega, ' '),
                                    "{'" + std::string(4 * mega, 'x'), "{'descr': [" + std::string(4 * mega, '(')}) {
    const Answer found = npy(header);
    CHECK(found.says == "npy: the header length is " + std::to_string(header.size()) + ", wanted at most 65535");
    CHECK(found.memory < mega);
  }
  const std::string good = npy_header("1,");
  CHECK(npy(good + std::string(65535 - good.size(), ' ')).says == "read");
  CHECK(contains(npy(good + std::string(65536 - good.size(), ' ')).says, "length is 65536"));
  CHECK(npy(npy_header(repeated("1,", 64))).says == "read");
  CHECK(npy(npy_header(repeated("1,", 65))).says ==
        "npy: the shape has more than 64 extents, wanted at most that many");
  Tensor tensor(DType::u8, std::vector<Index>(64, 1), {std::byte(1)});
  CHECK(said([&] { serialize_npy(tensor); }) == "read");
  tensor.shape.push_back(1);
  CHECK(said([&] { serialize_npy(tensor); }) == "npy: found 65 axes, wanted at most 64");
}

TEST_CASE("npy: what is no literal of Python is refused", "[io]") {
  CHECK(npy(npy_header("0,"), 0).says == "read");
  CHECK(npy(npy_header("10,"), 10).says == "read");
  CHECK(npy(npy_header("1L, 2L"), 2).says == "read");
  for (const char* shape : {"02,",  "00,",  "1, 02", "002,", "0L2,", "02L,", "2l,",  "2LL,",  "+2,",  "-2,",
                            "2_0,", "0x2,", "2.,",   "2e0,", "2 0,", "2 L,", "0o2,", "0b10,", "'2',", "True,"})
    CHECK(npy(npy_header(shape), 2).says != "read");
  CHECK(contains(npy(npy_header("1, 02"), 2).says, "an extent of the shape is '02', wanted"));
  // NULs: in every place of a good header, and in place of every character of it.
  const std::string good = npy_header("2, 1L");
  CHECK(npy(good, 2).says == "read");
  for (std::size_t at = 0; at <= good.size(); ++at)
    for (const std::size_t over : {0, 1})
      if (at + over <= good.size())
        CHECK(contains(npy(good.substr(0, at) + '\0' + good.substr(at + over), 2).says,
                       "has a NUL at its character " + std::to_string(at)));
  std::string third = std::string("\x93NUMPY\3\0", 8) + std::string("\0\0\0\0", 4) + good + "\1\1";
  third[8] = static_cast<char>(good.size());
  CHECK(said([&] { parse_npy(bytes_of(third).data(), third.size()); }) != "read");  // no Python 2 wrote version 3
}

TEST_CASE("png: chunks beside the pixels are skipped, whatever they would unpack to", "[io]") {
  const std::string text = suite::deflated(std::string(7 * mega, 'a'));
  const std::string keyword("k\0", 2), method(1, '\0');
  std::string profile(7 * mega, '\0');
  profile.replace(0, 4, big_endian(profile.size())), profile.replace(12, 8, "GRAYXYZ "), profile.replace(36, 4, "acsp");
  const std::pair<const char*, std::string> bombs[] = {
      {"zTXt", repeated(chunk("zTXt", keyword + method + text), 8)},
      {"iTXt", repeated(chunk("iTXt", keyword + std::string("\1\0\0\0", 4) + text), 8)},
      {"iCCP", chunk("iCCP", keyword + method + suite::deflated(profile))},
      {"tEXt", repeated(chunk("tEXt", keyword + std::string(mega, 'a')), 8)},
      {"sPLT", chunk("sPLT", keyword + "\10" + std::string(6 * mega, 'a'))},
      {"eXIf", chunk("eXIf", "II*" + std::string(8 * mega, 'a'))},
      {"abCd", chunk("abCd", std::string(8 * mega, 'a'))}};
  for (const auto& [name, chunks] : bombs) {
    INFO(name);
    const auto file = one_pixel(chunks);
    Image read;
    const Answer found = answer([&] { read = parse_png(file.data(), file.size()); });
    CHECK(found.says == "read");
    CHECK(found.memory < 2 * mega);
    if (found.says == "read") CHECK(std::abs(read(0, 0) - 51.0f / 255) < 1e-6f);
  }
  const auto file = one_pixel(chunk("ABCD", ""));  // but what must be understood is not skipped
  CHECK(contains(said([&] { parse_png(file.data(), file.size()); }), "ABCD"));
}

TEST_CASE("png: more than a million rows or columns", "[io]") {
  const suite::TemporaryFolder folder;
  for (const auto& [rows, cols] : {std::pair<Index, Index>{1, 1000001}, {1000001, 1}}) {
    Image image(rows, cols, 1);
    image.pixels(1000000, 0) = 1;
    write_png(folder / "x.png", image);
    CHECK(read_png(folder / "x.png").pixels == image.pixels);
    CHECK(contains(said([&] { read_png(folder / "x.png", Channels::grey, 1000000); }),
                   "pixels, the limit is 1000000 in all"));
  }
}

TEST_CASE("idx: a packed file takes the memory of its shape", "[io]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "file", head("\0\0\10\1\0\0\0\5abcde", 13);
  limpid::io::detail::write_file(path, bytes_of(suite::deflated(head + std::string(32 * mega, 'a'), 15 + 16)));
  Answer found = answer([&] { read_idx(path); });
  CHECK(contains(found.says, "goes on after its last entry"));
  CHECK(found.memory < 2 * mega);
  found = answer([&] { read_idx(path, 3); });
  CHECK(found.says == "read");
  CHECK(found.memory < 2 * mega);
  std::string lies =
      suite::deflated(std::string("\0\0\10\1\1\0\0\0abc", 11), 15 + 16);  // 16 MiB, and noise that could hold them
  lies += std::string(20000, '\0');
  limpid::io::detail::write_file(path, bytes_of(lies));
  found = answer([&] { read_idx(path); });
  CHECK(contains(found.says, "gzip stream is damaged"));
  CHECK(found.memory < 3 * mega);
}
