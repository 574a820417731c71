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

}  // namespace detail

/// Reads a safetensors file from memory; name stands in the messages. Tensors must lie one after another, without holes
/// or overlap, and fill the file; dtypes F64 F32 F16 BF16 I64 I32 U8 BOOL. Throws FormatError for anything else.
inline Safetensors parse_safetensors(const std::byte* data, std::size_t size, const std::string& name = "safetensors") {
  if (size < 8)
    detail::fail(name, "found " + std::to_string(size) + " bytes, wanted at least the 8 of the header length");
  const auto length = detail::load<std::uint64_t>(data);
  if (length > size - 8)
    detail::fail(name, "the header length is " + std::to_string(length) + ", but only " + std::to_string(size - 8) +
                           " bytes follow");
  if (length > 100'000'000)  // the format's own limit
    detail::fail(name, "the header length is " + std::to_string(length) + ", wanted at most 100000000");
  const char* text = reinterpret_cast<const char*>(data) + 8;
  if (length == 0 || text[0] != '{') detail::fail(name, "the header does not start with '{'");
  const nlohmann::json header = detail::parse_header(name, text, text + length);
  const std::byte* body = data + 8 + length;
  const auto room = static_cast<std::size_t>(size - 8 - length);

  Safetensors file;
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  for (const auto& [key, entry] : header.items()) {
    const std::string where = name + ": " + detail::in_quotes(key);
    if (!entry.is_object()) detail::fail(where, "found " + std::string(entry.type_name()) + ", wanted an object");
    if (key == "__metadata__") {
      for (const auto& [switch_name, value] : entry.items()) {
        if (!value.is_string())
          detail::fail(where, detail::in_quotes(switch_name) + " is " + value.type_name() + ", wanted a string");
        file.metadata[switch_name] = value.get<std::string>();
      }
      continue;
    }
    const auto found = entry.find("dtype");
    const std::string type = found != entry.end() && found->is_string() ? found->get<std::string>() : "";
    const auto known = std::find_if(detail::dtypes.begin(), detail::dtypes.end(),
                                    [&](const detail::DTypeInfo& i) { return type == i.safetensors; });
    if (known == detail::dtypes.end())
      detail::fail(where, "dtype is " + detail::in_quotes(type) + ", wanted F64, F32, F16, BF16, I64, I32, U8 or BOOL");
    Tensor tensor(known->type, detail::index_list(where, entry, "shape"), {});
    const std::vector<Index> offsets = detail::index_list(where, entry, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1] || static_cast<std::size_t>(offsets[1]) > room)
      detail::fail(where, "data_offsets are " + detail::shape_of(offsets) + ", wanted [begin, end] within the " +
                              std::to_string(room) + " bytes of data");
    const auto begin = static_cast<std::size_t>(offsets[0]), end = static_cast<std::size_t>(offsets[1]);
    tensor.bytes.assign(body + begin, body + end);
    tensor.check(where);
    spans.emplace_back(begin, end);
    file.tensors.emplace(key, std::move(tensor));
  }
  std::sort(spans.begin(), spans.end());
  std::size_t reached = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != reached)
      detail::fail(name, "a tensor starts at byte " + std::to_string(begin) + " of the data, wanted " +
                             std::to_string(reached) + ", the end of the one before");
    reached = end;
  }
  if (reached != room)
    detail::fail(name, "the tensors end at byte " + std::to_string(reached) + " of the data, wanted all " +
                           std::to_string(room));
  return file;
}

/// Reads a safetensors file. Throws FormatError naming the path.
inline Safetensors read_safetensors(const std::string& path) {
  const std::vector<std::byte> bytes = detail::read_file(path);
  return parse_safetensors(bytes.data(), bytes.size(), path);
}

/// The bytes of a safetensors file. The header is padded so that the data starts at a multiple of 8; wide types come
/// first, so that every tensor is aligned to its type. Throws FormatError for a tensor whose bytes are not its shape's.
inline std::vector<std::byte> serialize_safetensors(const Safetensors& file) {
  std::vector<std::pair<std::string, const Tensor*>> order;
  for (const auto& [key, tensor] : file.tensors) {
    tensor.check("safetensors: " + detail::in_quotes(key));
    if (key == "__metadata__") detail::fail("safetensors", "'__metadata__' is not a name a tensor can have");
    order.emplace_back(key, &tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return detail::info(a.second->dtype).bytes > detail::info(b.second->dtype).bytes;
  });
  nlohmann::json header = nlohmann::json::object();
  if (!file.metadata.empty()) header["__metadata__"] = file.metadata;
  std::size_t reached = 0;
  for (const auto& [key, tensor] : order) {
    header[key] = {{"dtype", detail::info(tensor->dtype).safetensors},
                   {"shape", tensor->shape},
                   {"data_offsets", {reached, reached + tensor->bytes.size()}}};
    reached += tensor->bytes.size();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& problem) {
    detail::fail("safetensors", std::string("a name or metadata string is not UTF-8 (") + problem.what() + ")");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::vector<std::byte> bytes;
  const auto length = static_cast<std::uint64_t>(text.size());
  bytes.reserve(8 + text.size() + reached);
  detail::append(bytes, &length, 8);
  detail::append(bytes, text.data(), text.size());
  for (const auto& entry : order) detail::append(bytes, entry.second->bytes.data(), entry.second->bytes.size());
  return bytes;
}

/// Writes a safetensors file. Throws FormatError naming the path.
inline void write_safetensors(const std::string& path, const Safetensors& file) {
  detail::write_file(path, serialize_safetensors(file));
}

}  // namespace io
}  // namespace LIMPID_ABI
}  // namespace limpid
