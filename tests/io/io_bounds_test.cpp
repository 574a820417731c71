// limpid: the bounds of the readers, by lists of exact lengths: every truncation, every header length near the size,
// and every extent at its extremes. The bytes end where memory ends, so that one byte too many stops the test.
// SPDX-License-Identifier: MIT
#include <cmath>
#include <functional>
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
using limpid::Mat;
using suite::bytes_of;
using suite::contains;
using suite::first_of;
using suite::said;

namespace {

using Bytes = std::vector<std::byte>;

std::string little(std::uint64_t number, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(number >> (8 * i) & 0xff);
  return out;
}

std::string tensor_file(const std::string& header, std::size_t data) {
  return little(header.size(), 8) + header + std::string(data, '\1');
}
std::string npy_file(const std::string& header, std::size_t data, int version = 1) {
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' + little(header.size(), version == 1 ? 2 : 4) +
         header + std::string(data, '\1');
}
std::string npy_header(const std::string& descr, bool fortran, const std::string& shape) {
  return "{'descr': " + descr + ", 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': " + shape + ", }\n";
}

std::string gzip(const std::string& text) { return suite::deflated(text, 15 + 16); }

/// What the two readers of a format say of a file, in memory that ends with it and on disk, which must be the same.
struct Both {
  suite::AtTheEdge edge{1 << 16};
  suite::TemporaryFolder folder;
  template <class Parse, class Read>
  std::string operator()(const Bytes& bytes, Parse&& parse, Read&& read) {
    const std::string path = folder / "file";
    const std::byte* at = edge.put(bytes);
    const std::string one = said([&] { parse(at, bytes.size(), path); });
    limpid::io::detail::write_file(path, bytes);
    CHECK(said([&] { read(path); }) == one);
    return one;
  }
  std::string safetensors(const std::string& text) {
    return (*this)(
        bytes_of(text), [](auto at, auto size, auto& name) { parse_safetensors(at, size, name); },
        [](auto& path) { read_safetensors(path); });
  }
  std::string npy(const std::string& text) {
    return (*this)(
        bytes_of(text), [](auto at, auto size, auto& name) { parse_npy(at, size, name); },
        [](auto& path) { read_npy(path); });
  }
};

const std::string two = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";

}  // namespace

TEST_CASE("safetensors: every length of the file and of its header", "[io]") {
  Both both;
  const std::string good = tensor_file(two, 11);
  CHECK(both.safetensors(good) == "read");
  CHECK(contains(both.safetensors(good + '\1'), "the tensors end at byte 11 of the data, wanted all 12"));
  for (std::size_t size = 0; size < good.size(); ++size) {
    INFO(size);
    const std::string why = both.safetensors(good.substr(0, size));
    if (size < 8)
      CHECK(contains(why, "found " + std::to_string(size) + " bytes, wanted at least the 8"));
    else if (size - 8 < two.size())
      CHECK(contains(why, "the header length is " + std::to_string(two.size()) + ", but only " +
                              std::to_string(size - 8) + " bytes follow"));
    else
      CHECK(contains(why, "within the " + std::to_string(size - 8 - two.size()) + " bytes of data"));
  }
  const std::uint64_t follow = good.size() - 8;
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t length = 0; length <= follow + 40; ++length) lengths.push_back(length);
  for (int bit = 0; bit < 64; ++bit)
    for (int off = -9; off <= 9; ++off) lengths.push_back((std::uint64_t(1) << bit) + static_cast<std::uint64_t>(off));
  for (const std::uint64_t length : lengths) {
    INFO(length);
    const std::string why = both.safetensors(little(length, 8) + good.substr(8));
    if (length == two.size()) {
      CHECK(why == "read");
    } else if (length > follow) {
      CHECK(contains(why, "the header length is " + std::to_string(length) + ", but only " + std::to_string(follow) +
                              " bytes follow"));
    } else {
      CHECK(contains(why, length == 0 ? "does not start with '{'" : "not JSON"));
    }
  }
}

TEST_CASE("safetensors: only white space of JSON pads the header", "[io]") {
  Both both;
  const std::string one = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  for (int c = 0; c < 256; ++c)
    for (const std::string& before : {std::string(), std::string("  ")}) {
      INFO(c);
      const char letter = static_cast<char>(c);
      const bool white = letter == ' ' || letter == '\n' || letter == '\t' || letter == '\r';  // as the reference
      const std::string why = both.safetensors(tensor_file(one + before + letter, 4));
      CHECK((why == "read") == white);
      CHECK(both.safetensors(tensor_file(one + before + letter + "{}", 4)) != "read");
      if (c == 0)
        CHECK(contains(why, "the header has a NUL at its byte " + std::to_string(one.size() + before.size())));
    }
  CHECK(both.safetensors(tensor_file("{\"__metadata__\":null," + one.substr(1), 4)) == "read");
  CHECK(both.safetensors(tensor_file("{\"__metadata__\":null}", 0)) == "read");
  for (const char* other : {"[]", "1", "\"a\"", "true", "{\"a\":null}", "{\"a\":[]}"})
    CHECK(contains(both.safetensors(tensor_file(std::string("{\"__metadata__\":") + other + "}", 0)), "__metadata__"));
  CHECK(contains(both.safetensors(tensor_file(R"({"a":null})", 0)), "found null, wanted an object"));
}

TEST_CASE("safetensors: extents, offsets and neighbours at their extremes", "[io]") {
  Both both;
  const auto file = [&](const std::string& shape, const std::string& offsets, std::size_t data,
                        const std::string& more = "") {
    return both.safetensors(tensor_file(
        R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}" + more + "}", data));
  };
  CHECK(file("[]", "[0,4]", 4) == "read");
  CHECK(file("[0]", "[0,0]", 0) == "read");
  CHECK(file("[3,0,9223372036854775807]", "[0,0]", 0) != "read");  // 3 times it overflows, whatever the 0 says
  CHECK(file("[0,9]", "[0,0]", 0) == "read");
  const std::vector<std::string> numbers = {"-1",
                                            "-0",
                                            "1.0",
                                            "1e0",
                                            "true",
                                            "null",
                                            "\"1\"",

                                            "4294967295",
                                            "4294967296",
                                            "2147483648",
                                            "2305843009213693951",
                                            "2305843009213693952",
                                            "4611686018427387904",
                                            "9223372036854775807",
                                            "9223372036854775808",
                                            "18446744073709551615",
                                            "18446744073709551616",
                                            "99999999999999999999999"};
  for (const std::string& number : numbers) {
    INFO(number);
    CHECK(contains(file("[" + number + "]", "[0,4]", 4), "'a'"));
    CHECK(contains(file("[" + number + "," + number + "]", "[0,4]", 4), "'a'"));
    CHECK(contains(file("[1]", "[" + number + ",4]", 4), "'a'"));
    CHECK(contains(file("[1]", "[0," + number + "]", 4), "'a'"));
    CHECK(contains(file("[1]", "[" + number + "," + number + "]", 4), "'a'"));
  }
  for (const std::string number : {"[1]", "1e400"}) {  // no JSON of a header at all
    CHECK(file("[" + number + "]", "[0,4]", 4) != "read");
    CHECK(file("[1]", "[0," + number + "]", 4) != "read");
  }
  for (const char* offsets : {"[]", "[0]", "[0,4,4]", "[4,0]", "{}", "4", "[0,5]"})
    CHECK(contains(file("[1]", offsets, 4), "data_offsets"));
  const auto other = [](const std::string& shape, const std::string& offsets) {
    return R"(,"b":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  CHECK(file("[1]", "[0,4]", 8, other("[1]", "[4,8]")) == "read");
  CHECK(file("[1]", "[4,8]", 8, other("[1]", "[0,4]")) == "read");
  CHECK(file("[1]", "[0,4]", 4, other("[0]", "[4,4]")) == "read");
  CHECK(file("[1]", "[0,4]", 4, other("[0]", "[0,0]")) == "read");
  CHECK(contains(file("[1]", "[0,4]", 4, other("[0]", "[2,2]")), "starts at byte 2"));
  CHECK(contains(file("[1]", "[0,4]", 4, other("[1]", "[0,4]")), "starts at byte 0"));  // the same bytes twice
  CHECK(contains(file("[1]", "[0,4]", 12, other("[1]", "[8,12]")), "starts at byte 8 of the data, wanted 4"));
  CHECK(contains(file("[1]", "[4,8]", 8), "starts at byte 4 of the data, wanted 0"));
  for (const char* type : {"F8", "f32", "", "F32 ", "I16", "U64", "F8_E4M3", "C64"})
    CHECK(contains(both.safetensors(tensor_file(
                       std::string(R"({"a":{"dtype":")") + type + R"(","shape":[1],"data_offsets":[0,4]}})", 4)),
                   std::string("'a': dtype is '") + type + "', wanted F64"));
}

TEST_CASE("npy: every length of the file and of its header", "[io]") {
  Both both;
  for (int version : {1, 2, 3}) {
    const std::string header = npy_header("'<f4'", false, "(2, 3)"), good = npy_file(header, 24, version);
    const std::size_t start = version == 1 ? 10 : 12, follow = good.size() - start;
    CHECK(both.npy(good) == "read");
    CHECK(contains(both.npy(good + '\1'), "found 25 bytes, wanted 24"));
    for (std::size_t size = 0; size < good.size(); ++size) {
      INFO(size);
      const std::string why = both.npy(good.substr(0, size));
      if (size < 10)
        CHECK(contains(why, "does not start as an npy file does"));
      else if (size < start)
        CHECK(contains(why, "ends within its header"));
      else if (size - start < header.size())
        CHECK(contains(why, "but only " + std::to_string(size - start) + " bytes follow"));
      else
        CHECK(contains(why, "found " + std::to_string(size - start - header.size()) + " bytes, wanted 24"));
    }
    std::vector<std::uint64_t> lengths{0xffff, 0xfffe, 0x8000, 0x7fff};
    for (std::uint64_t length = 0; length <= follow + 40; ++length) lengths.push_back(length);
    if (version > 1)
      for (std::uint64_t off = 0; off < 20; ++off)
        lengths.insert(lengths.end(), {0xffffffff - off, 0x80000000 - off, 0x80000000 + off});
    for (const std::uint64_t length : lengths) {
      INFO(length);
      const std::string why = both.npy(good.substr(0, 8) + little(length, version == 1 ? 2 : 4) + good.substr(start));
      if (length > follow)
        CHECK(contains(why, "the header length is " + std::to_string(length) + ", but only " + std::to_string(follow) +
                                " bytes follow"));
      else
        CHECK((why == "read") == (length == header.size()));
    }
  }
  CHECK(contains(both.npy(std::string("\x93NUMPY\1\1", 8) + npy_file("{}", 0).substr(8)), "is npy version 1.1"));
}

TEST_CASE("npy: what Python 2 wrote, and Fortran order", "[io]") {
  Both both;
  const auto parse = [](const std::string& text) {
    const Bytes bytes = bytes_of(text);
    return parse_npy(bytes.data(), bytes.size());
  };
  const Tensor old = parse(npy_file("{u'descr': u'<f8', u'fortran_order': False, u'shape': (3L, 4L), }      \n", 96));
  CHECK(old.shape == std::vector<Index>{3, 4});
  CHECK(parse(npy_file("{'descr': '<f8', 'fortran_order': False, 'shape': (3L,), }", 24)).shape[0] == 3);
  for (const char* order : {"|", "<", ">", "="})
    CHECK(both.npy(npy_file(npy_header(std::string("'") + order + "u1'", false, "(4,)"), 4)) == "read");
  for (const char* shape :
       {"(3)", "(,)", "(3LL,)", "(3 4)", "(-3,)", "(3L4,)", "(0x3,)", "(3.0,)", "[3]", "3", "(3,,)", "(L,)",
        "(9223372036854775807,)", "(9223372036854775808L,)", "(4294967296, 4294967296)", "(0, 9223372036854775000)"})
    CHECK(both.npy(npy_file(npy_header("'<f8'", false, shape), 24)) != "read");

  // Right values by a naive loop: the entry at (i, j, k) of column-major data is number i + d0 (j + d1 k).
  for (const std::vector<Index>& shape :
       {std::vector<Index>{}, {7}, {1, 7}, {7, 1}, {2, 3}, {3, 2, 4}, {2, 1, 3, 2}, {0, 3}, {3, 0}, {600, 700}}) {
    std::string text = "(";
    Index size = 1;
    for (Index extent : shape) text += std::to_string(extent) + ",", size *= extent;
    std::string file = npy_file(npy_header("'<f4'", true, text + ")"), 0);
    for (Index i = 0; i < size; ++i) {
      const auto value = static_cast<float>(i);
      file += std::string(reinterpret_cast<const char*>(&value), 4);
    }
    const Tensor read = parse(file);
    REQUIRE(read.shape == shape);
    const std::vector<float> values = read.values<float>();
    REQUIRE(static_cast<Index>(values.size()) == size);
    bool same = true;
    for (Index at = 0; at < size; ++at) {
      Index rest = at, number = 0;
      std::vector<Index> place(shape.size());
      for (std::size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) place[axis] = rest % shape[axis];
      for (std::size_t axis = shape.size(); axis-- > 0;) number = number * shape[axis] + place[axis];
      same = same && values[static_cast<std::size_t>(at)] == static_cast<float>(number);
    }
    CHECK(same);
  }

  const std::string why = both.npy(npy_file(npy_header("[('x', '<f8'), ('y (m)]', '<i4', (2,))]", false, "(1,)"), 16));
  CHECK(contains(why, "the type is the structured '[('x', '<f8'), ('y (m)]', '<i4', (2,))]', wanted one of <f8"));
  CHECK(both.npy(npy_file(npy_header("[('x', '<f8'", false, "(1,)"), 8)) != "read");
  for (const char* type :
       {">f8", ">i4", "|f8", "<u2", "|O", "<c16", "<U5", "|S3", "<M8[ns]", "|V8", "|i1", "<b2", "", "<"})
    CHECK(contains(both.npy(npy_file(npy_header(std::string("'") + type + "'", false, "(1,)"), 8)),
                   std::string("the type is '") + type + "', wanted <f8"));
}

TEST_CASE("idx: every length, plain and gzip, members, and bytes that are left over", "[io]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "file";
  const auto file = [&](const std::string& text, Index count = -1, std::size_t limit = 1 << 20) {
    limpid::io::detail::write_file(path, bytes_of(text));
    return said([&] { read_idx(path, count, limit); });
  };
  const std::string plain("\0\0\10\2\0\0\0\2\0\0\0\3abcdef", 18), packed = gzip(plain);
  CHECK(file(plain) == "read");
  CHECK(file(packed) == "read");
  for (std::size_t size = 0; size < plain.size(); ++size) CHECK(contains(file(plain.substr(0, size)), "ends early"));
  for (std::size_t size = 0; size < packed.size(); ++size) CHECK(contains(file(packed.substr(0, size)), "ends"));
  for (std::size_t split = 0; split <= plain.size(); ++split) {  // a member may end anywhere, or be empty
    CHECK(file(gzip(plain.substr(0, split)) + gzip(plain.substr(split))) == "read");
    CHECK(read_idx(path).bytes == bytes_of("abcdef"));
  }
  CHECK(contains(file(plain + "x"), "goes on after its last entry"));
  CHECK(contains(file(gzip(plain + "x")), "goes on after its last entry"));
  CHECK(contains(file(packed + gzip("x")), "goes on after its last entry"));
  CHECK(contains(file(packed + "xyz"), "damaged"));
  for (Index count = 0; count <= 4; ++count) {
    INFO("of 2 entries " << count);
    const bool whole = count >= 2;  // else a part was asked for, and no more is looked at
    CHECK((file(plain + "x", count) == "read") != whole);
    CHECK((file(gzip(plain + "x"), count) == "read") != whole);
    CHECK(file(plain, count) == "read");
  }
  for (const std::size_t at : {0, 1}) {
    std::string other = plain;
    other[at] = 1;
    CHECK(contains(file(other), "does not start as an IDX file does"));
  }
  for (std::size_t at = packed.size() - 8; at < packed.size(); ++at) {
    std::string bent = packed;
    bent[at] = static_cast<char>(bent[at] ^ 1);
    CHECK(contains(file(bent), "damaged"));  // the check sum is looked at
  }
  CHECK(contains(file(std::string("\0\0\10\2\377\377\377\377\377\377\377\377", 12)),
                 "needs 18446744065119617025 bytes") == false);  // more than any memory is said as such
  CHECK(contains(file(std::string("\0\0\10\2\377\377\377\377\377\377\377\377", 12)), "larger than any memory"));
  CHECK(contains(file(std::string("\0\0\10\1\0\17\377\377a", 9)), "ends early: shape [1048575] needs 1048575 bytes"));
  CHECK(contains(file(gzip(std::string("\0\0\10\1\0\17\377\377a", 9))), "ends early: shape [1048575]"));
  CHECK(file(std::string("\0\0\10\2\0\0\0\0\377\377\377\377", 12)) == "read");  // no images of any size
  CHECK(file(std::string("\0\0\10\0a", 5)) == "read");
  CHECK(read_idx(path).shape.empty());
  CHECK(contains(file(std::string("\0\0\10\377", 4) + std::string(300, '\0')), "ends early"));
}

TEST_CASE("png: every length of the file", "[io]") {
  const suite::TemporaryFolder folder;
  write_png(folder / "x.png", Image(3, 4, 3, 0.5f));
  const Bytes good = limpid::io::detail::read_file(folder / "x.png");
  suite::AtTheEdge edge(1 << 16);
  for (std::size_t size = 0; size <= good.size(); ++size) {
    INFO(size);
    const std::byte* at = edge.put(first_of(good, size));
    CHECK((said([&] { parse_png(at, size); }) == "read") == (size == good.size()));
  }
}

TEST_CASE("tensors: an integer that the type asked for cannot hold is refused", "[io]") {
  const Tensor t = Tensor::from(std::vector<std::int64_t>{-1, 300, 1ll << 40}, {3});
  CHECK(contains(said([&] { t.values<std::uint8_t>(); }), "found the entry -1"));
  CHECK(contains(said([&] { t.values<std::int32_t>(); }), "found the entry 1099511627776"));
  CHECK(contains(said([&] { t.values<std::uint64_t>(); }), "found the entry -1"));
  CHECK(t.values<double>()[1] == 300);
  CHECK(contains(said([] { Tensor::from(std::vector<std::uint64_t>{~0ull}, {1}); }), "I64 cannot hold"));
  CHECK(contains(said([] { Tensor::from(std::vector<std::int8_t>{-1}, {1}); }), "U8 cannot hold"));
  CHECK(contains(said([] { Tensor(DType::f32, {4}, Bytes(8)).matrix<float>(); }), "found 8 bytes, wanted 16"));
  const Mat<std::uint64_t> large = Mat<std::uint64_t>::Constant(2, 2, ~0ull);
  const Mat<std::int8_t> negative = Mat<std::int8_t>::Constant(2, 2, -1);
  CHECK(contains(said([&] { Tensor::from(large); }), "found the entry 18446744073709551615, which I64 cannot hold"));
  CHECK(contains(said([&] { Tensor::from(negative); }), "found the entry -1, which U8 cannot hold"));
}

TEST_CASE("tensors: an integer becomes a bool or a floating-point number exactly, or is refused", "[io]") {
  const auto of = [](std::int64_t number) { return Tensor::from(std::vector<std::int64_t>{number}, {1}); };
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max(), least = -most - 1, bit = 1;
  for (const std::int64_t number : {bit << 24, -(bit << 24), (bit << 24) + 2, bit << 62, least, bit * 0}) {
    CHECK(of(number).values<float>()[0] == static_cast<float>(number));
    CHECK(of(number).matrix<float>()(0, 0) == static_cast<float>(number));
  }
  for (const std::int64_t number : {(bit << 24) + 1, -(bit << 24) - 1, most, most - 1, least + 1})
    CHECK(said([&] { of(number).values<float>(); }) ==
          "tensor: found the entry " + std::to_string(number) +
              ", wanted an integer that 24 bits of a floating-point number hold exactly");
  CHECK(of((bit << 53) + 2).values<double>()[0] == 0x1p53 + 2);
  for (const std::int64_t number : {(bit << 53) + 1, most, least + 1})
    CHECK(contains(said([&] { of(number).matrix<double>(); }), "that 53 bits of a floating-point number hold exactly"));
  CHECK(contains(said([] { Tensor::from(std::vector<std::int32_t>{16777217}, {1}).values<float>(); }), "16777217"));
  if (std::numeric_limits<long double>::digits >= 64) CHECK(of(most).values<long double>()[0] == 0x1p63L - 1);
  CHECK((of(1).values<bool>()[0] && !of(0).values<bool>()[0]));
  for (const std::int64_t number : {bit * 5, bit * -1, bit << 32, least})
    CHECK(said([&] { of(number).values<bool>(); }) ==
          "tensor: found the entry " + std::to_string(number) + ", wanted 0 or 1 for a bool");
  CHECK(contains(said([] { Tensor::from(std::vector<std::uint8_t>{1, 5}, {2}).matrix<bool>(); }), "the entry 5"));
  CHECK(Tensor(DType::boolean, {1}, {std::byte(5)}).values<bool>()[0]);  // as numpy and torch read it
}

TEST_CASE("tensors: a float beyond the largest of the type asked for is refused, a smaller one is rounded", "[io]") {
  constexpr double inf = std::numeric_limits<double>::infinity(), last = std::numeric_limits<float>::max();
  const auto of = [](double number) { return Tensor::from(std::vector<double>{number}, {1}); };
  for (const double number : {1e300, -1e39, last * (1 + 0x1p-24)}) {
    CHECK(contains(said([&] { of(number).values<float>(); }), "wanted at most 3.40282e+38 in size"));
    CHECK(contains(said([&] { of(number).matrix<float>(); }), "tensor: found the entry "));
    CHECK(of(number).values<double>()[0] == number);
  }
  for (const double number : {inf, -inf, last, -last, last * (1 + 0x1p-26), 0.1, 1e-300})
    CHECK(of(number).values<float>()[0] == static_cast<float>(number));
  CHECK(std::isnan(of(std::numeric_limits<double>::quiet_NaN()).values<float>()[0]));
}

TEST_CASE("tensors: bytes that are not the shape's, and a type that is none, are refused by every look at entries",
          "[io]") {
  const Tensor torn(DType::f32, {2}, Bytes(7)), more(DType::u8, {2}, Bytes(3));
  CHECK(said([&] { torn.values<float>(); }) == "tensor: found 7 bytes, wanted 8 for shape [2] of F32");
  CHECK(said([&] { torn.matrix<float>(); }) == "tensor: found 7 bytes, wanted 8 for shape [2] of F32");
  CHECK(said([&] { more.values<int>(); }) == "tensor: found 3 bytes, wanted 2 for shape [2] of U8");
  const Tensor none(static_cast<DType>(99), {1}, Bytes(8));
  for (const auto& look : std::vector<std::function<void()>>{[&] { none.values<double>(); }, [&] { none.check("x"); },
                                                             [&] { none.size(); }, [&] { serialize_npy(none); }})
    CHECK(said(look) == "tensor: found the dtype 99, wanted one of DType");
  CHECK(Tensor(DType::f32, {0, 3}, {}).values<float>().empty());
  const Mat<double> rows(3, 0);
  CHECK(Tensor::from(rows).matrix<double>().rows() == 3);
}
