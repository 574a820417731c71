// limpid: safetensors files. A JSON header, then the tensors one after another, little-endian.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "tensor.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// A safetensors file in memory: tensors by name, and the strings of its __metadata__.
struct Safetensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;

  bool has(const std::string& name) const { return tensors.count(name) != 0; }

  /// The tensor of that name; throws FormatError listing the names there are.
  const Tensor& at(const std::string& name) const {
    const auto found = tensors.find(name);
    if (found != tensors.end()) return found->second;
    std::string names;
    std::size_t shown = 0;
    for (auto entry = tensors.begin(); entry != tensors.end() && shown < 20; ++entry, ++shown)
      names += (shown == 0 ? "" : ", ") + detail::in_quotes(entry->first);
    if (shown < tensors.size()) names += " and " + std::to_string(tensors.size() - shown) + " more";
    detail::fail("safetensors", "no tensor " + detail::in_quotes(name) + "; found " + (names.empty() ? "none" : names));
  }

  /// The metadata string of that name, or what to use where it is absent.
  std::string meta(const std::string& name, const std::string& otherwise = "") const {
    const auto found = metadata.find(name);
    return found == metadata.end() ? otherwise : found->second;
  }
};

namespace detail {

inline constexpr std::size_t most_header = 100'000'000;  // the format's own limit
inline constexpr std::size_t most_metadata = std::size_t(1) << 16;

/// What the header says of a tensor; the bytes stay in the file.
struct StoredTensor {
  std::string type;
  std::vector<Index> shape;
  std::size_t begin = 0, end = 0;  ///< of the data
};

/// A header that was read: what lies behind it, and where the data starts in the file.
struct SafetensorsContents {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::size_t start = 0;
};

inline auto known_type(std::string_view text) {
  return std::find_if(dtypes.begin(), dtypes.end(), [&](const DTypeInfo& i) { return text == i.safetensors; });
}

/// Integers that files may hold beside those of DType; they are read as indices.
struct OtherInteger {
  const char* type;
  std::size_t bytes;
};
inline constexpr std::array<OtherInteger, 5> other_integers{
    {{"I8", 1}, {"I16", 2}, {"U16", 2}, {"U32", 4}, {"U64", 8}}};

/// Bytes of an entry, 0 for a type that is not known here.
inline std::size_t entry_bytes(std::string_view type) {
  if (const auto known = known_type(type); known != dtypes.end()) return known->bytes;
  for (const OtherInteger& other : other_integers)
    if (type == other.type) return other.bytes;
  return 0;
}

/// A JSON text, event by event. A template, so that limpid::compiled_models can hold it.
template <class Events>
void parse_json(const std::string& text, Events& events) {
  nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &events);
}

/// What nlohmann's parser tells of a header, put straight into the file it describes: no tree is made of it, which
/// would take thirty times its size. Throws FormatError at the first fault of the text.
class SafetensorsHeader {
 public:
  using Place = std::map<std::string, StoredTensor>::iterator;

  /// room: the bytes of data; all_types: a tensor of any type is taken, not only of one that Tensor can hold.
  SafetensorsHeader(const std::string& file, std::size_t room, bool all_types, SafetensorsContents& out)
      : file_(file), room_(room), all_types_(all_types), out_(out) {}

  std::vector<Place> places;

  std::string where(const std::string& name) const { return file_ + ": " + in_quotes(name); }
  [[noreturn]] void outside(const std::string& name, const std::vector<Index>& offsets) const {
    fail(where(name), "data_offsets are " + shape_of(offsets) + ", wanted [begin, end] within the " +
                          std::to_string(room_) + " bytes of data");
  }

  // The events, by the names the parser calls them. depth_ counts the brackets that are open: 1 in the header, 2 in a
  // tensor or the metadata, 3 in a list.
  bool null() {
    if (depth_ == 1 && name_ == metadata_name) return true;  // the reference takes it for none
    return other("null", "null");
  }
  bool boolean(bool value) { return other("boolean", value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return other("number", value == 0 ? "-0" : std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) {
    if (list_ == nullptr || value > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
      return other("number", std::to_string(value));
    const std::size_t most = list_ == &offsets_ ? 2 : most_axes;
    if (list_->size() == most)
      fail(where(name_), field_ + " has more than " + std::to_string(most) + " numbers, wanted " +
                             (list_ == &offsets_ ? "[begin, end]" : "at most that many axes"));
    list_->push_back(static_cast<Index>(value));
    return true;
  }
  bool number_float(double, const std::string& text) { return other("number", text.substr(0, 50)); }
  bool string(std::string& text) {
    if (depth_ == 2 && metadata_) {
      value_->second = text;
    } else if (depth_ == 2 && field_ == "dtype") {
      if (!all_types_ && known_type(text) == dtypes.end()) wrong_type(text);
      entry_->second.type = text.substr(0, 40);
    } else {
      other("string", '"' + text.substr(0, 50) + '"');
    }
    return true;
  }
  template <class Bytes>
  bool binary(Bytes&) {  // JSON has none
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ == 1) {
      metadata_ = name_ == metadata_name;
      offsets_.clear();
    } else if (depth_ > 1) {
      other("object", "{");
    }
    if (depth_ == 1 || depth_ == 2) fields_[depth_ - 1].clear();
    ++depth_;
    return true;
  }
  bool key(std::string& text) {
    nested();
    if (depth_ == 1) {
      name_ = text;
      bool first = !metadata_seen_;
      if (text == metadata_name)
        metadata_seen_ = true;
      else
        std::tie(entry_, first) = out_.tensors.try_emplace(text);
      if (!first) twice(text);
    } else if (depth_ == 2 && metadata_) {
      bool first = true;
      std::tie(value_, first) = out_.metadata.try_emplace(text);
      if (!first) twice(text);
      if (out_.metadata.size() > most_metadata)
        fail(where(name_), "holds more than " + std::to_string(most_metadata) + " strings, wanted at most that many");
    } else {
      std::vector<std::string>& fields = fields_[depth_ - 2];
      if (std::find(fields.begin(), fields.end(), text) != fields.end()) twice(text);
      if (fields.size() == most_fields)
        fail(where(name_), "has more than " + std::to_string(most_fields) +
                               " fields, wanted dtype, shape, data_offsets and few others");
      fields.push_back(text);
    }
    if (depth_ == 2) field_ = text;
    return true;
  }
  bool end_object() {
    --depth_;
    if (depth_ != 1 || std::exchange(metadata_, false)) return true;
    const auto& fields = fields_[0];
    if (std::find(fields.begin(), fields.end(), "dtype") == fields.end()) wrong_type("");
    for (const char* list : {"shape", "data_offsets"})
      if (std::find(fields.begin(), fields.end(), list) == fields.end()) no_list(list);
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) outside(name_, offsets_);
    entry_->second.begin = static_cast<std::size_t>(offsets_[0]);
    entry_->second.end = static_cast<std::size_t>(offsets_[1]);
    places.push_back(entry_);
    return true;
  }
  bool start_array(std::size_t) {
    if (depth_ == 2 && !metadata_ && field_ == "shape")
      list_ = &entry_->second.shape;
    else if (depth_ == 2 && !metadata_ && field_ == "data_offsets")
      list_ = &offsets_;
    else
      other("array", "[");
    ++depth_;
    return true;
  }
  bool end_array() {
    if (--depth_ == 2) list_ = nullptr;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& problem) {
    fail(file_, "the header is not JSON (" + printable(problem.what(), 300) + ")");
  }

 private:
  static constexpr const char* metadata_name = "__metadata__";
  static constexpr std::size_t most_fields = 64;

  /// A value that is not what its place is for. Fields of other names may hold anything.
  bool other(const char* type, const std::string& text) {
    nested();
    if (depth_ == 1) fail(where(name_), "found " + std::string(type) + ", wanted an object");
    if (metadata_) fail(where(name_), in_quotes(field_) + " is " + type + ", wanted a string");
    if (list_ != nullptr)
      fail(where(name_), "'" + field_ + "' holds " + in_quotes(text) + ", wanted whole numbers from 0");
    if (depth_ == 2 && field_ == "dtype") wrong_type("");
    if (depth_ == 2 && (field_ == "shape" || field_ == "data_offsets")) no_list(field_);
    return true;
  }
  void nested() const {
    if (depth_ > 3) fail(file_, "the header is nested deeper than tensor, field, list");
  }
  [[noreturn]] void twice(const std::string& name) const {
    fail(file_, "the header names " + in_quotes(name) + " twice, wanted each name once");
  }
  [[noreturn]] void wrong_type(const std::string& type) const {
    fail(where(name_), "dtype is " + in_quotes(type) + ", wanted F64, F32, F16, BF16, I64, I32, U8 or BOOL");
  }
  [[noreturn]] void no_list(const std::string& field) const { fail(where(name_), "wanted an array '" + field + "'"); }

  const std::string& file_;
  std::size_t room_;
  bool all_types_;
  SafetensorsContents& out_;
  std::size_t depth_ = 0;
  std::string name_, field_;                        // the keys that led here
  std::array<std::vector<std::string>, 2> fields_;  // all keys of the objects that are open
  bool metadata_ = false, metadata_seen_ = false;
  Place entry_;
  std::map<std::string, std::string>::iterator value_;
  std::vector<Index> offsets_, *list_ = nullptr;
};

/// Throws FormatError unless shape, type and place of a tensor agree.
inline void check_stored(const SafetensorsHeader& header, const std::string& name, const StoredTensor& tensor,
                         std::size_t room) {
  if (tensor.end > room) header.outside(name, {static_cast<Index>(tensor.begin), static_cast<Index>(tensor.end)});
  const std::size_t each = entry_bytes(tensor.type);
  const std::size_t entries = bytes_of(header.where(name), DType::u8, tensor.shape), found = tensor.end - tensor.begin;
  if (each == 0) return;
  if (entries > static_cast<std::size_t>(std::numeric_limits<Index>::max()) / each)
    fail(header.where(name), "shape " + shape_of(tensor.shape) + " is larger than any memory");
  if (entries * each != found)
    fail(header.where(name), "found " + std::to_string(found) + " bytes, wanted " + std::to_string(entries * each) +
                                 " for shape " + shape_of(tensor.shape) + " of " + tensor.type);
}

/// All that the header of a file says, checked before the data is touched: shapes, types and places agree, and the
/// tensors lie one after another and fill the file.
inline SafetensorsContents read_contents(Source& source, bool all_types) {
  const std::string& name = source.name();
  const std::size_t size = source.size();
  if (size < 8) fail(name, "found " + std::to_string(size) + " bytes, wanted at least the 8 of the header length");
  std::uint64_t length = 0;
  source.read(0, &length, 8);
  if (length > size - 8)
    fail(name,
         "the header length is " + std::to_string(length) + ", but only " + std::to_string(size - 8) + " bytes follow");
  if (length > most_header)
    fail(name, "the header length is " + std::to_string(length) + ", wanted at most " + std::to_string(most_header));
  std::string text(static_cast<std::size_t>(length), ' ');
  source.read(8, text.data(), text.size());
  if (text.empty() || text[0] != '{') fail(name, "the header does not start with '{'");
  // The parser takes a NUL for the end and would not look at what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string::npos)
    fail(name, "the header has a NUL at its byte " + std::to_string(nul) + ", wanted JSON padded with spaces");

  SafetensorsContents contents;
  contents.start = 8 + text.size();
  const std::size_t room = size - contents.start;
  SafetensorsHeader header(name, room, all_types, contents);
  parse_json(text, header);
  auto& places = header.places;
  for (const auto& place : places) check_stored(header, place->first, place->second, room);
  std::sort(places.begin(), places.end(), [](const auto& a, const auto& b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::size_t reached = 0;
  for (const auto& entry : places) {
    const StoredTensor& place = entry->second;
    if (place.begin != reached)
      fail(name, "a tensor starts at byte " + std::to_string(place.begin) + " of the data, wanted " +
                     std::to_string(reached) + ", the end of the one before");
    reached = place.end;
  }
  if (reached != room)
    fail(name,
         "the tensors end at byte " + std::to_string(reached) + " of the data, wanted all " + std::to_string(room));
  return contents;
}

/// The tensors and metadata of a file, wherever its bytes are; each tensor is read straight into its place.
inline Safetensors read_safetensors(Source& source) {
  SafetensorsContents contents = read_contents(source, false);
  Safetensors file;
  file.metadata = std::move(contents.metadata);
  for (auto& [name, stored] : contents.tensors)
    file.tensors.try_emplace(file.tensors.end(), name, known_type(stored.type)->type, std::move(stored.shape),
                             source.bytes(contents.start + stored.begin, stored.end - stored.begin));
  return file;
}

/// The header of a file, padded, and the tensors in the order in which they follow it. Writing is of templates, so that
/// who only reads files need not compile it.
template <class Json>
std::pair<std::string, std::vector<const Tensor*>> safetensors_header(const Safetensors& file) {
  std::vector<std::pair<std::string, const Tensor*>> order;
  for (const auto& [key, tensor] : file.tensors) {
    tensor.check("safetensors: " + in_quotes(key));
    if (key == "__metadata__") fail("safetensors", "'__metadata__' is not a name a tensor can have");
    check_axes("safetensors: " + in_quotes(key), tensor.shape);
    order.emplace_back(key, &tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return info(a.second->dtype).bytes > info(b.second->dtype).bytes;
  });
  if (file.metadata.size() > most_metadata)
    fail("safetensors", "found " + std::to_string(file.metadata.size()) + " metadata strings, wanted at most " +
                            std::to_string(most_metadata));
  Json header = Json::object();
  if (!file.metadata.empty()) header["__metadata__"] = file.metadata;
  std::vector<const Tensor*> tensors;
  std::size_t reached = 0;
  for (const auto& [key, tensor] : order) {
    header[key] = {{"dtype", info(tensor->dtype).safetensors},
                   {"shape", tensor->shape},
                   {"data_offsets", {reached, reached + tensor->bytes.size()}}};
    reached += tensor->bytes.size();
    tensors.push_back(tensor);
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const typename Json::exception& problem) {
    fail("safetensors", std::string("a name or metadata string is not UTF-8 (") + problem.what() + ")");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > most_header)
    fail("safetensors",
         "the header has " + std::to_string(text.size()) + " bytes, wanted at most " + std::to_string(most_header));
  const auto length = static_cast<std::uint64_t>(text.size());
  text.insert(0, reinterpret_cast<const char*>(&length), 8);
  return {text, tensors};
}

}  // namespace detail

/// Reads a safetensors file from memory; name stands in the messages. As in the reference implementation, tensors must
/// lie one after another, without holes or overlap, and fill the file; only JSON's white space may pad the header; and
/// a __metadata__ of null is none. Stricter than it: a name given twice is refused, extents whose product overflows are
/// (even beside a 0), the dtypes are F64 F32 F16 BF16 I64 I32 U8 BOOL, and a tensor has at most 64 axes and 64 fields,
/// the metadata 65536 strings. A tensor's field of a name that the format does not know may hold anything, but a list
/// or an object in it holds neither of them: what is nested deeper is refused. Beside what it returns, reading takes
/// memory of a few times the header. Throws FormatError for anything else.
inline Safetensors parse_safetensors(const std::byte* data, std::size_t size, const std::string& name = "safetensors") {
  detail::Source source(data, size, name);
  return detail::read_safetensors(source);
}

/// Reads a safetensors file as parse_safetensors does, each tensor straight into its place: the memory taken is that of
/// the tensors and the header. Throws FormatError naming the path.
inline Safetensors read_safetensors(const std::string& path) {
  detail::Source source(path);
  return detail::read_safetensors(source);
}

/// The bytes of a safetensors file. The header is padded so that the data starts at a multiple of 8; wide types come
/// first, so that every tensor is aligned to its type. Throws FormatError for a tensor whose bytes are not its shape's,
/// and for more than parse_safetensors reads.
template <class Json = nlohmann::json>
std::vector<std::byte> serialize_safetensors(const Safetensors& file) {
  const auto [header, tensors] = detail::safetensors_header<Json>(file);
  std::vector<std::byte> bytes;
  detail::append(bytes, header.data(), header.size());
  for (const Tensor* tensor : tensors) detail::append(bytes, tensor->bytes.data(), tensor->bytes.size());
  return bytes;
}

/// Writes a safetensors file beside the path and renames it, so that a failure leaves what was there. Throws
/// FormatError naming the path.
template <class Json = nlohmann::json>
void write_safetensors(const std::string& path, const Safetensors& file) {
  const auto [header, tensors] = detail::safetensors_header<Json>(file);
  detail::Replacement out(path);
  out.write(header.data(), header.size());
  for (const Tensor* tensor : tensors) out.write(tensor->bytes);
  out.done();
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
