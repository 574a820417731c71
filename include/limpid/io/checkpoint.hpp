// limpid: the weights of a model on disk: safetensors files, mapped, read tensor by tensor when asked for.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <memory>

#include "mapping.hpp"
#include "safetensors.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace io {

/// Numbers of a Checkpoint as S, rows x cols. Where the file holds them as S, at an address that S may have, this looks
/// into the file and keeps it open; otherwise it holds a copy, converted. Read it wherever a View<S> is wanted.
template <class S>
class Weights {
 public:
  Weights() = default;
  /// A matrix of one's own.
  Weights(Mat<S> own) : own_(std::move(own)) {}  // NOLINT: implicit on purpose
  Weights(View<S> in_file, std::shared_ptr<const detail::Mapping> file)
      : in_file_(in_file), file_(std::move(file)), in_place_(true) {}

  View<S> view() const { return in_place_ ? in_file_ : View<S>(own_); }
  operator View<S>() const { return view(); }  // NOLINT: implicit on purpose
  Index rows() const { return view().rows; }
  Index cols() const { return view().cols; }
  bool given() const { return view().given(); }
  /// Whether this looks into the file.
  bool in_place() const { return in_place_; }

 private:
  Mat<S> own_;
  View<S> in_file_;
  std::shared_ptr<const detail::Mapping> file_;
  bool in_place_ = false;
};

namespace detail {

/// How many letters have to be put in, taken out or changed to make b of a (Levenshtein 1966), or `most` where that is
/// less. Only the first 128 letters are looked at.
inline std::size_t edit_distance(std::string_view a, std::string_view b, std::size_t most) {
  a = a.substr(0, 128), b = b.substr(0, 128);
  if (std::max(a.size(), b.size()) - std::min(a.size(), b.size()) >= most) return most;
  std::array<std::size_t, 129> row;
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i), least = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
      least = std::min(least, row[j]);
    }
    if (least >= most) return most;
  }
  return std::min(row[b.size()], most);
}

/// The names nearest to the one wanted, three at most; one that ends with the other, as with a prefix that a family of
/// files has and another has not, comes first.
template <class Map>
std::string nearest_names(const std::string& wanted, const Map& map) {
  constexpr std::size_t shown = 3, far = 256;
  std::vector<std::pair<std::size_t, const std::string*>> best;
  const auto ends_with = [](const std::string& a, const std::string& b) {
    return a.size() > b.size() && !b.empty() && a.compare(a.size() - b.size(), b.size(), b) == 0;
  };
  for (const auto& entry : map) {
    const std::string& name = entry.first;
    const std::size_t most = best.size() < shown ? far : best.back().first;
    const std::size_t distance =
        ends_with(name, wanted) || ends_with(wanted, name) ? 0 : edit_distance(wanted, name, most);
    if (best.size() == shown && distance >= most) continue;
    if (best.size() == shown) best.pop_back();
    const auto at = std::find_if(best.begin(), best.end(), [&](const auto& other) { return distance < other.first; });
    best.emplace(at, distance, &name);
  }
  if (best.empty()) return "the file has none";
  std::string text = "nearest of " + std::to_string(map.size()) + (best.size() == 1 ? " is " : " are ");
  for (std::size_t i = 0; i < best.size(); ++i) text += (i == 0 ? "" : ", ") + in_quotes(*best[i].second, 80);
  return text;
}

/// What nlohmann's parser tells of a model.safetensors.index.json: the file that each tensor lies in, by weight_map.
class ShardIndex {
 public:
  explicit ShardIndex(const std::string& file) : file_(file) {}

  std::vector<std::string> shards;
  std::map<std::string, std::size_t> shard_of;
  bool found = false;

  bool null() { return value("null"); }
  bool boolean(bool) { return value("boolean"); }
  bool number_integer(std::int64_t) { return value("number"); }
  bool number_unsigned(std::uint64_t) { return value("number"); }
  bool number_float(double, const std::string&) { return value("number"); }
  bool string(std::string& text) {
    if (depth_ != 2 || !inside_) return value("string");
    const auto known = number_of_.find(text);
    if (known == number_of_.end()) {
      const std::filesystem::path path(text);
      if (text.empty() || text.find('\0') != std::string::npos || path.filename() != path || text == "." ||
          text == "..")
        fail(file_, "weight_map: " + in_quotes(name_) + " lies in " + in_quotes(text) +
                        ", wanted the name of a file in the same folder");
      number_of_.emplace(text, shards.size());
      shards.push_back(text);
    }
    if (!shard_of.emplace(name_, number_of_.at(text)).second)
      fail(file_, "weight_map names " + in_quotes(name_) + " twice, wanted each name once");
    return true;
  }
  template <class Bytes>
  bool binary(Bytes&) {  // JSON has none
    return true;
  }
  bool start_object(std::size_t) {
    if (depth_ > 0) value("object");
    if (depth_ == 1 && name_ == "weight_map") inside_ = found = true;
    ++depth_;
    return true;
  }
  bool key(std::string& text) {
    if (depth_ == 1 && found && text == "weight_map") fail(file_, "names 'weight_map' twice, wanted it once");
    if (depth_ <= 2) name_ = text;
    return true;
  }
  bool end_object() {
    if (--depth_ == 1) inside_ = false;
    return true;
  }
  bool start_array(std::size_t) {
    value("array");
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& problem) {
    fail(file_, "is not JSON (" + printable(problem.what(), 300) + ")");
  }

 private:
  /// Of weight_map only an object of strings is right; all else may hold anything.
  bool value(const char* type) const {
    if (inside_) fail(file_, "weight_map: " + in_quotes(name_) + " is " + type + ", wanted the name of a file");
    if (depth_ == 1 && name_ == "weight_map" && std::string_view(type) != "object")
      fail(file_, std::string("weight_map is ") + type + ", wanted an object");
    return true;
  }

  const std::string& file_;
  std::size_t depth_ = 0;
  std::string name_;
  bool inside_ = false;
  std::map<std::string, std::size_t> number_of_;
};

inline std::string wanted_shape(const std::vector<Index>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return out + "]";
}

}  // namespace detail

/// The weights of a model as they lie on disk: one safetensors file, or those that an index names. Opening reads the
/// headers alone and checks them as parse_safetensors does; a tensor is read when it is asked for, F64, F32, F16 and
/// BF16 as float or double (F32 as float and F64 as double in place, where they are aligned), integers and BOOL as
/// indices. A tensor of a type that is not known here refuses itself, and the others can be read.
///
/// A file that is replaced (written beside and renamed, as write_safetensors does) stays as it was opened; one that is
/// overwritten in place changes the numbers, and one that is cut short there ends the program, as with any mapping.
/// Reading may go on in several threads.
///
/// Throws FormatError, which names the file, the tensor, what was found and what was wanted. Memory: the headers, and
/// what is converted.
class Checkpoint {
 public:
  static constexpr Index any = -1;  ///< an extent that may have any size

  /// A file.safetensors; an index, whose name ends in .json, with its shards beside it; or a folder that holds
  /// model.safetensors.index.json or model.safetensors. A shard may have tensors beyond the index's list: they count
  /// too, unless the list has that name in another shard.
  explicit Checkpoint(const std::string& path) : name_(detail::checked_path(path)) { open(path); }

  /// A file that lies in memory, which must outlive this and all that is read from it.
  Checkpoint(const std::byte* data, std::size_t size, const std::string& name = "checkpoint") : name_(name) {
    detail::Source source(data, size, name);
    add(source, data, nullptr, nullptr, 0);
  }

  const std::string& name() const { return name_; }
  /// The strings of __metadata__, of the first shard that has them.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  std::string meta(const std::string& key, const std::string& otherwise = "") const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? otherwise : found->second;
  }

  bool has(const std::string& tensor) const { return tensors_.count(tensor) != 0; }
  /// In the order of their bytes: 'layers.10' comes before 'layers.2'.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : tensors_) out.push_back(entry.first);
    return out;
  }
  /// The shape as the file gives it, and its type's name. Neither counts as asking for the tensor.
  const std::vector<Index>& shape(const std::string& tensor) const { return find(tensor).stored.shape; }
  const std::string& type(const std::string& tensor) const { return find(tensor).stored.type; }

  /// 1 x cols of a tensor of one axis, or of more whose first ones have the extent 1.
  template <class S>
  Weights<S> row(const std::string& tensor, Index cols = any) const {
    return read<S>(tensor, {cols});
  }
  /// rows x cols of a tensor of two axes, or of more whose first ones have the extent 1.
  template <class S>
  Weights<S> matrix(const std::string& tensor, Index rows = any, Index cols = any) const {
    return read<S>(tensor, {rows, cols});
  }
  /// outputs x (channels patch^2) of a patch filter [outputs, channels, patch, patch]: a row is what patches() makes of
  /// a patch, channel by channel, row by row.
  template <class S>
  Weights<S> filter(const std::string& tensor, Index outputs = any, Index channels = any, Index patch = any) const {
    return read<S>(tensor, {outputs, channels, patch, patch});
  }

  /// All entries of a tensor of integers or BOOL, of any shape.
  std::vector<std::int64_t> indices(const std::string& tensor) const {
    const Entry& entry = find(tensor);
    const std::string& type = entry.stored.type;
    const std::byte* from = entry.data;
    std::vector<std::int64_t> out;
    const auto all = [&](auto zero) {
      using T = decltype(zero);
      out.resize((entry.stored.end - entry.stored.begin) / sizeof(T));
      for (std::size_t i = 0; i < out.size(); ++i) {
        const T number = detail::load<T>(from + i * sizeof(T));
        if constexpr (std::is_same_v<T, std::uint64_t>)
          if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
            refuse(tensor, "found the entry " + std::to_string(number) + ", wanted one below 2^63");
        out[i] = static_cast<std::int64_t>(number);  // NOLINT(bugprone-signed-char-misuse): an I8 has a sign
      }
    };
    if (type == "I64")
      all(std::int64_t());
    else if (type == "I32")
      all(std::int32_t());
    else if (type == "I16")
      all(std::int16_t());
    else if (type == "I8")
      all(std::int8_t());
    else if (type == "U64")
      all(std::uint64_t());
    else if (type == "U32")
      all(std::uint32_t());
    else if (type == "U16")
      all(std::uint16_t());
    else if (type == "U8" || type == "BOOL")
      all(std::uint8_t());
    else
      refuse(tensor, "found the type " + detail::in_quotes(type) + ", wanted integers (I64 to I8, U64 to U8) or BOOL");
    if (type == "BOOL")
      for (std::int64_t& number : out) number = number != 0;
    entry.asked = true;
    return out;
  }

  /// The tensor as read_safetensors has it: one of the types that Tensor holds.
  Tensor tensor(const std::string& name) const {
    const Entry& entry = find(name);
    const auto type = detail::known_type(entry.stored.type);
    if (type == detail::dtypes.end())
      refuse(name, "found the type " + detail::in_quotes(entry.stored.type) +
                       ", wanted F64, F32, F16, BF16, I64, I32, U8 or BOOL");
    entry.asked = true;
    return {type->type, entry.stored.shape,
            std::vector<std::byte>(entry.data, entry.data + (entry.stored.end - entry.stored.begin))};
  }

  /// That all of these are there; throws FormatError that names each one that is not (the first ten) and its nearest.
  void require(const std::vector<std::string>& wanted) const {
    std::vector<const std::string*> missing;
    for (const std::string& name : wanted)
      if (!has(name)) missing.push_back(&name);
    if (missing.empty()) return;
    std::string text = "lacks " + std::to_string(missing.size()) + " of " + std::to_string(wanted.size()) + " tensors";
    for (std::size_t i = 0; i < missing.size() && i < 10; ++i)
      text += (i == 0 ? ": " : "; ") + detail::in_quotes(*missing[i], 80) + " (" +
              detail::nearest_names(*missing[i], tensors_) + ")";
    if (missing.size() > 10) text += "; and " + std::to_string(missing.size() - 10) + " more";
    detail::fail(name_, text);
  }

  /// Says that a tensor is known and not needed, as buffers that some files carry; nothing where there is none.
  void skip(const std::string& tensor) const {
    if (const auto found = tensors_.find(tensor); found != tensors_.end()) found->second.asked = true;
  }
  /// The tensors that nobody has asked for: of a model that was read, those it does not know. The proof that a file
  /// carries of itself (prove) is none of them.
  std::vector<std::string> unused() const {
    std::vector<std::string> out;
    for (const auto& [name, entry] : tensors_)
      if (!entry.asked && name != meta("limpid.proof.input") && name != meta("limpid.proof.output"))
        out.push_back(name);
    return out;
  }

 private:
  struct Entry {
    detail::StoredTensor stored;
    const std::byte* data = nullptr;
    std::shared_ptr<const detail::Mapping> file;
    mutable std::atomic<bool> asked{false};
  };

  /// A template, so that limpid::compiled_models can hold it, as the two that read tensors.
  template <class Unused = void>
  void open(const std::string& path);
  void add_file(const std::string& path, const detail::ShardIndex* index, std::size_t shard) {
    const auto file = std::make_shared<const detail::Mapping>(path);
    detail::Source source(file->data(), file->size(), path);
    add(source, file->data(), file, index, shard);
  }
  void add(detail::Source& source, const std::byte* data, const std::shared_ptr<const detail::Mapping>& file,
           const detail::ShardIndex* index, std::size_t shard) {
    detail::SafetensorsContents contents = detail::read_contents(source, true);
    if (metadata_.empty()) metadata_ = std::move(contents.metadata);
    for (auto& [name, stored] : contents.tensors) {
      if (index != nullptr) {
        const auto listed = index->shard_of.find(name);
        if (listed != index->shard_of.end() && listed->second != shard) continue;
      }
      const auto [at, first] = tensors_.try_emplace(name);
      if (!first)
        detail::fail(source.name(), "has " + detail::in_quotes(name, 80) + " again, which another shard has already");
      at->second.data = data + contents.start + stored.begin;
      at->second.stored = std::move(stored);
      at->second.file = file;
    }
  }

  const Entry& find(const std::string& tensor) const {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end())
      detail::fail(name_,
                   "no tensor " + detail::in_quotes(tensor, 80) + "; " + detail::nearest_names(tensor, tensors_));
    return found->second;
  }
  [[noreturn]] void refuse(const std::string& tensor, const std::string& text) const {
    detail::fail(name_ + ": " + detail::in_quotes(tensor, 80), text);
  }

  /// A tensor of that shape: one axis is a row, of more the first gives the rows.
  template <class S>
  Weights<S> read(const std::string& tensor, const std::vector<Index>& wanted) const {
    static_assert(std::is_same_v<S, float> || std::is_same_v<S, double>,
                  "limpid: weights are read as float or double; integers by indices()");
    const Entry& entry = find(tensor);
    const std::vector<Index>& shape = entry.stored.shape;
    const std::size_t more = shape.size() < wanted.size() ? 0 : shape.size() - wanted.size();
    bool fits = shape.size() >= wanted.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i)
      fits = i < more ? shape[i] == 1 : wanted[i - more] < 0 || shape[i] == wanted[i - more];
    if (fits && wanted.size() == 4) fits = shape[more + 2] == shape[more + 3];  // a patch is square
    if (!fits)
      refuse(tensor, "found the shape " + detail::shape_of(shape) + ", wanted " + detail::wanted_shape(wanted));
    const auto type = detail::known_type(entry.stored.type);
    if (type == detail::dtypes.end() ||
        (type->type != DType::f64 && type->type != DType::f32 && type->type != DType::f16 && type->type != DType::bf16))
      refuse(tensor, "found the type " + detail::in_quotes(entry.stored.type) + ", wanted F64, F32, F16 or BF16");
    Index rows = 1, cols = 1;
    for (std::size_t i = more; i < shape.size(); ++i) (wanted.size() > 1 && i == more ? rows : cols) *= shape[i];
    const bool aligned = reinterpret_cast<std::uintptr_t>(entry.data) % alignof(S) == 0;
    if (type->type == dtype_of<S>() && aligned) {
      entry.asked = true;
      return {View<S>(reinterpret_cast<const S*>(entry.data), rows, cols, cols), entry.file};
    }
    Mat<S> own(rows, cols);
    const std::string where = name_ + ": " + detail::in_quotes(tensor, 80);
    const auto convert = [&](auto stored, const auto& number) {
      using T = decltype(stored);
      for (Index i = 0; i < own.size(); ++i)
        own.data()[i] =
            detail::rounded<S>(number(detail::load<T>(entry.data + static_cast<std::size_t>(i) * sizeof(T))), where);
    };
    const auto same = [](auto x) { return x; };
    if (type->type == DType::f64)
      convert(double(), same);  // NOLINT(bugprone-branch-clone): of another type
    else if (type->type == DType::f32)
      convert(float(), same);
    else
      convert(std::uint16_t(), type->type == DType::f16 ? detail::half_to_float : detail::brain_to_float);
    entry.asked = true;
    return own;
  }

  std::string name_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> tensors_;
};

template <class Unused>
void Checkpoint::open(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path file(path);
  if (fs::is_directory(file, ignored)) {
    file /= "model.safetensors.index.json";
    if (!fs::exists(file, ignored)) file = fs::path(path) / "model.safetensors";
    name_ = file.string();
  }
  if (file.extension() != ".json") {
    add_file(name_, nullptr, 0);
    return;
  }
  detail::Source source(name_);
  if (source.size() > detail::most_header)
    detail::fail(name_, "has " + std::to_string(source.size()) + " bytes, wanted at most " +
                            std::to_string(detail::most_header));
  std::string text(source.size(), ' ');
  source.read(0, text.data(), text.size());
  if (text.find('\0') != std::string::npos) detail::fail(name_, "has a NUL, wanted JSON");
  detail::ShardIndex index(name_);
  detail::parse_json(text, index);
  if (!index.found) detail::fail(name_, "has no weight_map, wanted an index of safetensors files");
  for (std::size_t i = 0; i < index.shards.size(); ++i)
    add_file((file.parent_path() / index.shards[i]).string(), &index, i);
  for (const auto& [tensor, shard] : index.shard_of)
    if (!has(tensor))
      detail::fail(name_, "names the tensor " + detail::in_quotes(tensor, 80) + " of " +
                              detail::in_quotes(index.shards[shard]) + ", which does not have it");
}

/// Puts an input and what the model made of it into a file, so that the file can prove itself wherever it is read: as
/// tensors proof.input and proof.output, which metadata names under limpid.proof.input and limpid.proof.output (other
/// writers may name any two tensors there). Throws FormatError where the file has tensors of those names.
inline void add_proof(Safetensors& file, Tensor input, Tensor output) {
  for (const char* name : {"proof.input", "proof.output"})
    if (file.has(name)) detail::fail("safetensors", "has a tensor '" + std::string(name) + "' already");
  file.tensors["proof.input"] = std::move(input);
  file.tensors["proof.output"] = std::move(output);
  file.metadata["limpid.proof.input"] = "proof.input";
  file.metadata["limpid.proof.output"] = "proof.output";
}

inline bool has_proof(const Checkpoint& file) {
  return file.metadata().count("limpid.proof.input") != 0 && file.metadata().count("limpid.proof.output") != 0;
}

/// Runs a model on the input that its file carries: run(const Tensor&) gives a matrix. Returns the largest error over
/// the largest entry of the output stored beside it. Throws FormatError where that is more than `bound` or no number,
/// where the output has another size, and where the file carries no proof.
template <class Run>
double prove(const Checkpoint& file, double bound, Run&& run) {
  if (!has_proof(file))
    detail::fail(file.name(), "carries no proof, wanted metadata limpid.proof.input and limpid.proof.output");
  const std::string name = file.meta("limpid.proof.output");
  const std::vector<double> wanted = file.tensor(name).values<double>();
  const auto& found = run(file.tensor(file.meta("limpid.proof.input")));
  if (static_cast<std::size_t>(found.size()) != wanted.size())
    detail::fail(file.name(), "the model's output has " + std::to_string(found.size()) + " numbers, wanted " +
                                  std::to_string(wanted.size()) + " as " + detail::in_quotes(name, 80));
  double error = 0, largest = 0;
  std::size_t place = 0;
  for (Index i = 0; i < found.rows(); ++i)
    for (Index j = 0; j < found.cols(); ++j, ++place) {
      const double apart = std::abs(static_cast<double>(found(i, j)) - wanted[place]);
      error = std::isnan(error) || apart <= error ? error : apart;  // NaN stays
      largest = std::max(largest, std::abs(wanted[place]));
    }
  const double relative = error == 0 ? 0 : error / largest;
  if (!(relative <= bound))
    detail::fail(file.name(), "the model's output is " + limpid::detail::number_text(relative) +
                                  " of the largest entry away from " + detail::in_quotes(name, 80) +
                                  ", wanted at most " + limpid::detail::number_text(bound));
  return relative;
}

}  // namespace io

}  // namespace LIMPID_ABI
}  // namespace limpid
