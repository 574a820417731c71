// limpid: npy files, numpy's own format for one array.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

namespace detail {

inline constexpr std::size_t most_npy_header = 0xffff;  // of version 1
inline constexpr const char* npy_types = "<f8, <f4, <f2, <i8, <i4, |u1 or |b1";

/// The dictionary in an npy header, a Python literal of three known keys, as Python 2 or 3 writes it.
class NpyHeader {
 public:
  NpyHeader(std::string file, std::string text, int version)
      : file_(std::move(file)), text_(std::move(text)), python2_(version < 3) {
    if (const std::size_t nul = text_.find('\0'); nul != std::string::npos)
      fail(file_, "the header has a NUL at its character " + std::to_string(nul) + ", wanted a Python dictionary");
    bool seen[3] = {false, false, false};
    expect('{');
    while (!take('}')) {
      const std::string key = string();
      expect(':');
      const int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (which < 0) fail(file_, "the header has a key " + in_quotes(key) + ", wanted descr, fortran_order and shape");
      if (seen[which]) fail(file_, "the header names " + in_quotes(key) + " twice");
      seen[which] = true;
      if (which == 0) descr = type();
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
    while (at_ < text_.size() && std::strchr(" \n\t\r", text_[at_]) != nullptr) ++at_;
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
    skip();
    if (at_ + 1 < text_.size() && (text_[at_] == 'u' || text_[at_] == 'U') &&
        (text_[at_ + 1] == '\'' || text_[at_ + 1] == '"'))
      ++at_;  // Python 2 marks its Unicode strings
    const char quote = take('\'') ? '\'' : '"';
    if (quote == '"') expect('"');
    const std::size_t end = text_.find(quote, at_);
    if (end == std::string::npos) fail(file_, "a string of the header does not end");
    std::string out = text_.substr(at_, end - at_);
    at_ = end + 1;
    return out;
  }
  /// A type's name; a structured type, which is a list, is refused here, where its text can still be shown.
  std::string type() {
    skip();
    if (at_ == text_.size() || (text_[at_] != '[' && text_[at_] != '(')) return string();
    const std::size_t first = at_;
    int depth = 0;
    for (char quote = 0; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (quote != 0) {
        if (c == quote) quote = 0;
      } else if (c == '\'' || c == '"') {
        quote = c;
      } else {
        depth += (c == '[' || c == '(') - (c == ']' || c == ')');
        if (depth == 0) break;
      }
    }
    const std::string text = text_.substr(first, at_ + 1 - first);
    fail(file_, "the type is the structured " + in_quotes(text, 200) + ", wanted one of " + npy_types +
                    "; save one array for each of its fields");
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
      if (text_[first] == '0' && at_ - first > 1)
        fail(file_, "an extent of the shape is " + in_quotes(text_.substr(first, at_ - first)) +
                        ", wanted a whole number without zeros before it");
      if (at_ < text_.size() && text_[at_] == 'L' && python2_) ++at_;  // Python 2 marks its long numbers
      if (out.size() == most_axes)
        fail(file_, "the shape has more than " + std::to_string(most_axes) + " extents, wanted at most that many");
      out.push_back(number);
      if (!take(',')) {
        if (out.size() == 1)
          fail(file_, "the shape is a number in brackets, wanted a tuple as (" + std::to_string(number) + ",)");
        expect(')');
        break;
      }
    }
    return out;
  }

  std::string file_, text_;
  bool python2_;  // may have written it
  std::size_t at_ = 0;
};

/// Entries of so many bytes that are stored with the first axis running fastest, put in C order: read a piece at a time
/// and spread, so that they are held once.
inline void read_fortran(Source& source, std::size_t at, Tensor& tensor) {
  const std::size_t width = info(tensor.dtype).bytes, rank = tensor.shape.size();
  std::vector<std::size_t> stride(rank, width), place(rank, 0);  // bytes between neighbours along each axis of C order
  for (std::size_t axis = rank; axis-- > 1;)
    stride[axis - 1] = stride[axis] * static_cast<std::size_t>(tensor.shape[axis]);
  const std::size_t piece = (std::size_t(1) << 20) / width * width;
  std::size_t to = 0;
  for (std::size_t done = 0; done < tensor.bytes.size(); done += piece) {
    const std::vector<std::byte> some = source.bytes(at + done, std::min(piece, tensor.bytes.size() - done));
    for (std::size_t from = 0; from < some.size(); from += width) {
      std::memcpy(tensor.bytes.data() + to, some.data() + from, width);
      for (std::size_t axis = 0; axis < rank; ++axis) {
        to += stride[axis];
        if (++place[axis] < static_cast<std::size_t>(tensor.shape[axis])) break;
        to -= place[axis] * stride[axis];
        place[axis] = 0;
      }
    }
  }
}

inline Tensor read_npy(Source& source) {
  const std::string& name = source.name();
  const std::size_t size = source.size();
  std::array<std::byte, 12> head{};
  source.read(0, head.data(), std::min(size, head.size()));
  if (size < 10 || std::memcmp(head.data(), "\x93NUMPY", 6) != 0) fail(name, "does not start as an npy file does");
  const int version = std::to_integer<int>(head[6]), minor = std::to_integer<int>(head[7]);
  if (version < 1 || version > 3 || minor != 0)
    fail(name, "is npy version " + std::to_string(version) + (minor == 0 ? "" : "." + std::to_string(minor)) +
                   ", wanted 1, 2 or 3");
  const std::size_t start = version == 1 ? 10 : 12;
  if (size < start) fail(name, "ends within its header");
  const std::size_t length = version == 1 ? load<std::uint16_t>(head.data() + 8) : load<std::uint32_t>(head.data() + 8);
  if (length > size - start)
    fail(name, "the header length is " + std::to_string(length) + ", but only " + std::to_string(size - start) +
                   " bytes follow");
  if (length > most_npy_header)  // version 2 is for structured types alone
    fail(name,
         "the header length is " + std::to_string(length) + ", wanted at most " + std::to_string(most_npy_header));
  std::string text(length, ' ');
  source.read(start, text.data(), length);
  const NpyHeader header(name, std::move(text), version);
  // One byte has no order, and numpy takes any sign of it.
  const std::string descr = header.descr.size() == 3 && header.descr[2] == '1' && std::strchr("<>=", header.descr[0])
                                ? "|" + header.descr.substr(1)
                                : header.descr;
  const auto known = std::find_if(dtypes.begin(), dtypes.end(),
                                  [&](const DTypeInfo& i) { return i.npy[0] != '\0' && descr == i.npy; });
  if (known == dtypes.end())
    fail(name, "the type is " + in_quotes(header.descr) + ", wanted " + npy_types +
                   (header.descr.substr(0, 1) == ">" ? " (little-endian)" : ""));
  Tensor tensor(known->type, header.shape, {});
  tensor.check_bytes(name, size - start - length);
  const std::size_t axes =
      static_cast<std::size_t>(std::count_if(tensor.shape.begin(), tensor.shape.end(), [](Index e) { return e != 1; }));
  if (header.fortran_order && axes > 1) {
    tensor.bytes.resize(size - start - length);
    read_fortran(source, start + length, tensor);
  } else {  // with one axis that is longer than 1 both orders are the same
    tensor.bytes = source.bytes(start + length, size - start - length);
  }
  return tensor;
}

/// The header of a version 1 file.
inline std::string npy_header(const Tensor& tensor) {
  tensor.check("npy");
  check_axes("npy", tensor.shape);
  const DTypeInfo& type = info(tensor.dtype);
  if (type.npy[0] == '\0') fail("npy", std::string("numpy has no type ") + type.safetensors);
  std::string shape;
  for (Index extent : tensor.shape) shape += std::to_string(extent) + ", ";
  if (tensor.shape.size() > 1)
    shape.resize(shape.size() - 2);  // (3,) keeps its comma, (3, 4) has none at the end
  else if (!shape.empty())
    shape.resize(shape.size() - 1);
  std::string text = std::string("{'descr': '") + type.npy + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  text.resize((10 + text.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');  // data from a multiple of 64, as numpy's
  text += '\n';
  const auto length = static_cast<std::uint16_t>(text.size());
  return std::string("\x93NUMPY\x01\x00", 8) + std::string(reinterpret_cast<const char*>(&length), 2) + text;
}

}  // namespace detail

/// Reads an npy file from memory, versions 1 to 3, written by Python 2 or 3; name stands in the messages. Types f8 f4
/// f2 i8 i4 u1 b1, little-endian; an array in Fortran order is put in C order. Throws FormatError for anything else,
/// structured and big-endian types, headers beyond 65535 bytes and more than 64 axes included, and where bytes are
/// missing or left over.
inline Tensor parse_npy(const std::byte* data, std::size_t size, const std::string& name = "npy") {
  detail::Source source(data, size, name);
  return detail::read_npy(source);
}

/// Reads an npy file as parse_npy does, straight into the tensor. Throws FormatError naming the path.
inline Tensor read_npy(const std::string& path) {
  detail::Source source(path);
  return detail::read_npy(source);
}

/// The bytes of a version 1 npy file. Throws FormatError for a type that numpy lacks and for more than 64 axes.
inline std::vector<std::byte> serialize_npy(const Tensor& tensor) {
  const std::string header = detail::npy_header(tensor);
  std::vector<std::byte> bytes;
  detail::append(bytes, header.data(), header.size());
  detail::append(bytes, tensor.bytes.data(), tensor.bytes.size());
  return bytes;
}

/// Writes a version 1 npy file beside the path and renames it, so that a failure leaves what was there. Throws
/// FormatError naming the path.
inline void write_npy(const std::string& path, const Tensor& tensor) {
  const std::string header = detail::npy_header(tensor);
  detail::Replacement out(path);
  out.write(header.data(), header.size());
  out.write(tensor.bytes);
  out.done();
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
