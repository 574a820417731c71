// limpid: npy files, numpy's own format for one array.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

namespace detail {

/// The dictionary in an npy header, a Python literal of three known keys.
class NpyHeader {
 public:
  NpyHeader(std::string file, std::string text) : file_(std::move(file)), text_(std::move(text)) {
    bool seen[3] = {false, false, false};
    expect('{');
    while (!take('}')) {
      const std::string key = string();
      expect(':');
      const int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (which < 0) fail(file_, "the header has a key " + in_quotes(key) + ", wanted descr, fortran_order and shape");
      if (seen[which]) fail(file_, "the header names " + in_quotes(key) + " twice");
      seen[which] = true;
      if (which == 0) descr = string();
      if (which == 1) fortran_order = boolean();
      if (which == 2) shape = tuple();
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    if (!seen[0] || !seen[1] || !seen[2]) fail(file_, "the header lacks one of descr, fortran_order and shape");
    skip();
    if (at_ != text_.size()) fail(file_, "the header goes on after its dictionary");
  }

  std::string descr;
  bool fortran_order = false;
  std::vector<Index> shape;

 private:
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool take(char c) {
    skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(file_, std::string("wanted '") + c + "' at character " + std::to_string(at_) + " of the header");
  }
  std::string string() {
    const char quote = take('\'') ? '\'' : '"';
    if (quote == '"') expect('"');
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string::npos) fail(file_, "a string of the header does not end");
    std::string out = text_.substr(at_, end - at_);
    at_ = end + 1;
    return out;
  }
  bool boolean() {
    skip();
    for (const char* word : {"True", "False"})
      if (text_.compare(at_, std::strlen(word), word) == 0) {
        at_ += std::strlen(word);
        return word[0] == 'T';
      }
    fail(file_, "fortran_order is neither True nor False");
  }
  std::vector<Index> tuple() {
    std::vector<Index> out;
    expect('(');
    while (!take(')')) {
      skip();
      const std::size_t first = at_;
      Index number = 0;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        if (number > (std::numeric_limits<Index>::max() - 9) / 10) fail(file_, "an extent of the shape is too large");
        number = number * 10 + (text_[at_] - '0');
      }
      if (at_ == first) fail(file_, "wanted a whole number at character " + std::to_string(at_) + " of the header");
      out.push_back(number);
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return out;
  }

  std::string file_, text_;
  std::size_t at_ = 0;
};

}  // namespace detail

/// Reads an npy file from memory, versions 1 to 3; name stands in the messages. Types f8 f4 f2 i8 i4 u1 b1,
/// little-endian, C order. Throws FormatError for anything else.
inline Tensor parse_npy(const std::byte* data, std::size_t size, const std::string& name = "npy") {
  const char magic[] = "\x93NUMPY";
  if (size < 10 || std::memcmp(data, magic, 6) != 0) detail::fail(name, "does not start as an npy file does");
  const int version = std::to_integer<int>(data[6]);
  if (version < 1 || version > 3)
    detail::fail(name, "is npy version " + std::to_string(version) + ", wanted 1, 2 or 3");
  const std::size_t start = version == 1 ? 10 : 12;
  if (size < start) detail::fail(name, "ends within its header");
  const std::size_t length =
      version == 1 ? detail::load<std::uint16_t>(data + 8) : detail::load<std::uint32_t>(data + 8);
  if (length > size - start)
    detail::fail(name, "the header length is " + std::to_string(length) + ", but only " + std::to_string(size - start) +
                           " bytes follow");
  const detail::NpyHeader header(name, std::string(reinterpret_cast<const char*>(data) + start, length));
  if (header.fortran_order) detail::fail(name, "found Fortran order, wanted C order");
  const auto known = std::find_if(detail::dtypes.begin(), detail::dtypes.end(), [&](const detail::DTypeInfo& i) {
    return i.npy[0] != '\0' && header.descr == i.npy;
  });
  if (known == detail::dtypes.end())
    detail::fail(name,
                 "the type is " + detail::in_quotes(header.descr) + ", wanted <f8, <f4, <f2, <i8, <i4, |u1 or |b1");
  Tensor tensor(known->type, header.shape, {data + start + length, data + size});
  tensor.check(name);
  return tensor;
}

/// Reads an npy file. Throws FormatError naming the path.
inline Tensor read_npy(const std::string& path) {
  const std::vector<std::byte> bytes = detail::read_file(path);
  return parse_npy(bytes.data(), bytes.size(), path);
}

/// The bytes of a version 1 npy file.
inline std::vector<std::byte> serialize_npy(const Tensor& tensor) {
  tensor.check("npy");
  const detail::DTypeInfo& type = detail::info(tensor.dtype);
  if (type.npy[0] == '\0') detail::fail("npy", std::string("numpy has no type ") + type.safetensors);
  std::string shape;
  for (Index extent : tensor.shape) shape += std::to_string(extent) + ", ";
  if (tensor.shape.size() > 1)
    shape.resize(shape.size() - 2);  // (3,) keeps its comma, (3, 4) has none at the end
  else if (!shape.empty())
    shape.resize(shape.size() - 1);
  std::string text = std::string("{'descr': '") + type.npy + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  text.resize((10 + text.size() + 1 + 63) / 64 * 64 - 10 - 1,
              ' ');  // the data starts at a multiple of 64, as numpy's does
  text += '\n';
  if (text.size() > 0xffff) detail::fail("npy", "the shape is too long for a version 1 header");
  std::vector<std::byte> bytes;
  const auto length = static_cast<std::uint16_t>(text.size());
  detail::append(bytes, "\x93NUMPY\x01\x00", 8);
  detail::append(bytes, &length, 2);
  detail::append(bytes, text.data(), text.size());
  detail::append(bytes, tensor.bytes.data(), tensor.bytes.size());
  return bytes;
}

/// Writes a version 1 npy file. Throws FormatError naming the path.
inline void write_npy(const std::string& path, const Tensor& tensor) {
  detail::write_file(path, serialize_npy(tensor));
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
