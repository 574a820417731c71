// limpid: safetensors files. A JSON header, then the tensors one after another, little-endian.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

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
    for (const auto& entry : tensors) names += (names.empty() ? "" : ", ") + detail::in_quotes(entry.first);
    detail::fail("safetensors", "no tensor " + detail::in_quotes(name) + "; found " + (names.empty() ? "none" : names));
  }

  /// The metadata string of that name, or what to use where it is absent.
  std::string meta(const std::string& name, const std::string& otherwise = "") const {
    const auto found = metadata.find(name);
    return found == metadata.end() ? otherwise : found->second;
  }
};

namespace detail {

/// JSON that says no to a key given twice, which a plain parse would settle silently in favour of the last.
inline nlohmann::json parse_header(const std::string& file, const char* first, const char* last) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > 3) fail(file, "the header is nested deeper than tensor, field, list");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second && twice.empty())
      twice = parsed.get<std::string>();
    return true;
  };
  nlohmann::json header;
  // The parser below takes a NUL for the end and would not look at what follows.
  if (const auto* nul = std::find(first, last, '\0'); nul != last)
    fail(file, "the header has a NUL at its byte " + std::to_string(nul - first) + ", wanted JSON padded with spaces");
  try {
    header = nlohmann::json::parse(first, last, watch);
  } catch (const nlohmann::json::exception& problem) {
    fail(file, std::string("the header is not JSON (") + problem.what() + ")");
  }
  if (!twice.empty()) fail(file, "the header names " + in_quotes(twice) + " twice, wanted each name once");
  if (!header.is_object()) fail(file, "the header is " + std::string(header.type_name()) + ", wanted an object");
  return header;
}

inline std::vector<Index> index_list(const std::string& file, const nlohmann::json& entry, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array()) fail(file, std::string("wanted an array '") + key + "'");
  std::vector<Index> list;
  for (const auto& number : *found) {
    if (!number.is_number_unsigned() ||
        number.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
      fail(file, std::string("'") + key + "' holds " + in_quotes(number.dump(-1, ' ', true)) +
                     ", wanted whole numbers from 0");
    list.push_back(static_cast<Index>(number.get<std::uint64_t>()));
  }
  return list;
}

/// The tensors and metadata of a file, wherever its bytes are. Everything the header says is checked before the data is
/// touched, and then each tensor is read into its place.
inline Safetensors read_safetensors(Source& source) {
  const std::string& name = source.name();
  const std::size_t size = source.size();
  if (size < 8) fail(name, "found " + std::to_string(size) + " bytes, wanted at least the 8 of the header length");
  std::uint64_t length = 0;
  source.read(0, &length, 8);
  if (length > size - 8)
    fail(name,
         "the header length is " + std::to_string(length) + ", but only " + std::to_string(size - 8) + " bytes follow");
  if (length > 100'000'000)  // the format's own limit
    fail(name, "the header length is " + std::to_string(length) + ", wanted at most 100000000");
  const auto room = static_cast<std::size_t>(size - 8 - length);
  std::string text(static_cast<std::size_t>(length), ' ');
  source.read(8, text.data(), text.size());
  if (text.empty() || text[0] != '{') fail(name, "the header does not start with '{'");
  const nlohmann::json header = parse_header(name, text.data(), text.data() + text.size());

  Safetensors file;
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  std::vector<std::pair<std::size_t, Tensor*>> places;
  for (const auto& [key, entry] : header.items()) {
    const std::string where = name + ": " + in_quotes(key);
    if (key == "__metadata__" && entry.is_null()) continue;  // the reference takes it for none
    if (!entry.is_object()) fail(where, "found " + std::string(entry.type_name()) + ", wanted an object");
    if (key == "__metadata__") {
      for (const auto& [switch_name, value] : entry.items()) {
        if (!value.is_string()) fail(where, in_quotes(switch_name) + " is " + value.type_name() + ", wanted a string");
        file.metadata[switch_name] = value.get<std::string>();
      }
      continue;
    }
    const auto found = entry.find("dtype");
    const std::string type = found != entry.end() && found->is_string() ? found->get<std::string>() : "";
    const auto known =
        std::find_if(dtypes.begin(), dtypes.end(), [&](const DTypeInfo& i) { return type == i.safetensors; });
    if (known == dtypes.end())
      fail(where, "dtype is " + in_quotes(type) + ", wanted F64, F32, F16, BF16, I64, I32, U8 or BOOL");
    Tensor tensor(known->type, index_list(where, entry, "shape"), {});
    const std::vector<Index> offsets = index_list(where, entry, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1] || static_cast<std::size_t>(offsets[1]) > room)
      fail(where, "data_offsets are " + shape_of(offsets) + ", wanted [begin, end] within the " + std::to_string(room) +
                      " bytes of data");
    const auto begin = static_cast<std::size_t>(offsets[0]), end = static_cast<std::size_t>(offsets[1]);
    tensor.check_bytes(where, end - begin);
    spans.emplace_back(begin, end);
    places.emplace_back(begin, &file.tensors.emplace(key, std::move(tensor)).first->second);
  }
  std::sort(spans.begin(), spans.end());
  std::size_t reached = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != reached)
      fail(name, "a tensor starts at byte " + std::to_string(begin) + " of the data, wanted " +
                     std::to_string(reached) + ", the end of the one before");
    reached = end;
  }
  if (reached != room)
    fail(name,
         "the tensors end at byte " + std::to_string(reached) + " of the data, wanted all " + std::to_string(room));
  for (const auto& [begin, tensor] : places)
    tensor->bytes =
        source.bytes(static_cast<std::size_t>(8 + length) + begin, bytes_of(name, tensor->dtype, tensor->shape));
  return file;
}

/// The header of a file, padded, and the tensors in the order in which they follow it.
inline std::pair<std::string, std::vector<const Tensor*>> safetensors_header(const Safetensors& file) {
  std::vector<std::pair<std::string, const Tensor*>> order;
  for (const auto& [key, tensor] : file.tensors) {
    tensor.check("safetensors: " + in_quotes(key));
    if (key == "__metadata__") fail("safetensors", "'__metadata__' is not a name a tensor can have");
    order.emplace_back(key, &tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return info(a.second->dtype).bytes > info(b.second->dtype).bytes;
  });
  nlohmann::json header = nlohmann::json::object();
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
  } catch (const nlohmann::json::exception& problem) {
    fail("safetensors", std::string("a name or metadata string is not UTF-8 (") + problem.what() + ")");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const auto length = static_cast<std::uint64_t>(text.size());
  text.insert(0, reinterpret_cast<const char*>(&length), 8);
  return {text, tensors};
}

}  // namespace detail

/// Reads a safetensors file from memory; name stands in the messages. As in the reference implementation, tensors must
/// lie one after another, without holes or overlap, and fill the file; only JSON's white space may pad the header; and
/// a
/// __metadata__ of null is none. Stricter than it: a name given twice is refused, extents whose product overflows are
/// (even beside a 0), and the dtypes are F64 F32 F16 BF16 I64 I32 U8 BOOL. Throws FormatError for anything else.
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
/// first, so that every tensor is aligned to its type. Throws FormatError for a tensor whose bytes are not its shape's.
inline std::vector<std::byte> serialize_safetensors(const Safetensors& file) {
  const auto [header, tensors] = detail::safetensors_header(file);
  std::vector<std::byte> bytes;
  detail::append(bytes, header.data(), header.size());
  for (const Tensor* tensor : tensors) detail::append(bytes, tensor->bytes.data(), tensor->bytes.size());
  return bytes;
}

/// Writes a safetensors file beside the path and renames it, so that a failure leaves what was there. Throws
/// FormatError naming the path.
inline void write_safetensors(const std::string& path, const Safetensors& file) {
  const auto [header, tensors] = detail::safetensors_header(file);
  detail::Replacement out(path);
  out.write(header.data(), header.size());
  for (const Tensor* tensor : tensors) out.write(tensor->bytes);
  out.done();
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
