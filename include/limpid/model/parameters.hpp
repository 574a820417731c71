// limpid: the parameters of a model under the names of its checkpoint, and the tables that say which is which.
// SPDX-License-Identifier: MIT
#pragma once

#include <sstream>

#include "../io/checkpoint.hpp"
#include "../layer/transformer_block.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
/// Whole models, read from a checkpoint: opt in, never in the umbrella header. They need what io/safetensors.hpp needs.
namespace model {

/// One tensor of a model.
template <class S>
struct Parameter {
  std::string name;          ///< as the checkpoint has it
  std::vector<Index> shape;  ///< the same
  io::Weights<S> value;      ///< as a matrix: the first axis of two or more gives the rows
};

/// A block of a parameter, by its number: of a packed one the part that a role has. None: absent.
struct Slot {
  Index parameter = -1, row = 0, col = 0, rows = 0, cols = 0;
  bool given() const { return parameter >= 0; }
};

/// All that a model has learnt, in the order in which it is used.
template <class S>
struct Parameters {
  std::vector<Parameter<S>> list;

  View<S> operator()(const Slot& slot) const {
    if (!slot.given()) return {};
    const View<S> all = list[static_cast<std::size_t>(slot.parameter)].value;
    return all.block(slot.row, slot.col, slot.rows, slot.cols);
  }
  /// How many numbers there are.
  Index size() const {
    Index count = 0;
    for (const Parameter<S>& one : list) count += one.value.rows() * one.value.cols();
    return count;
  }
  /// As a file to write, its floats as F64, F32, F16 or BF16. Throws FormatError as Tensor::from does.
  io::Safetensors file(io::DType type) const {
    io::Safetensors out;
    for (const Parameter<S>& one : list) {
      io::Tensor tensor = io::Tensor::from(one.value.view().map(), type);
      tensor.shape = one.shape;
      out.tensors[one.name] = std::move(tensor);
    }
    return out;
  }
};

/// A gradient of every parameter, in the same order and shape, added to by every backward call.
template <class S>
struct ParameterGradients {
  std::vector<Mat<S>> list;

  ParameterGradients() = default;
  explicit ParameterGradients(const Parameters<S>& parameters) {
    for (const Parameter<S>& one : parameters.list) list.emplace_back(one.value.rows(), one.value.cols());
    for (const Mat<S>& one : list)  // all of them before the first is written: together they are large
      limpid::detail::ask_for_large_pages(one.data(), static_cast<std::size_t>(one.size()) * sizeof(S));
    set_zero();
  }
  void set_zero() {
    for (Mat<S>& one : list) one.setZero();
  }
  MutView<S> operator()(const Slot& slot) {
    if (!slot.given()) return {};
    const MutView<S> all = list[static_cast<std::size_t>(slot.parameter)];
    return all.block(slot.row, slot.col, slot.rows, slot.cols);
  }
};

namespace detail {

/// A tensor of a family of checkpoints: the roles that share its rows, in equal parts; its name; a letter an axis for
/// its extents, the same letter the same extent in all of the model, told by the first tensor that has it; and whether
/// files of the family may lack it. Letters: D width, E of the MLP, Q and K of the queries and keys, P = 3 D, d of a
/// head, V vocabulary.
struct NameRow {
  const char* roles;
  const char* name;
  const char* shape;
  bool optional = false;
};
using NameTable = std::vector<NameRow>;

/// Reads the tensors of a model by their tables. Everything required is looked for before anything is read, so that one
/// error names all that is missing.
template <class S>
class Loader {
 public:
  Loader(const io::Checkpoint& file, Parameters<S>& to) : file_(file), to_(to) {}

  std::map<char, Index> extents;

  /// The first of these prefixes under which the file has the tensor; the first one where it has none.
  std::string prefix(const std::vector<std::string>& prefixes, const std::string& name) const {
    for (const std::string& one : prefixes)
      if (file_.has(one + name)) return one;
    return prefixes.front();
  }
  /// How many blocks there are: n where `name` exists with its # from 0 to n - 1.
  Index count(const std::string& name) const {
    Index n = 0;
    while (file_.has(numbered(name, n))) ++n;
    return n;
  }
  static std::string numbered(const std::string& name, Index number) {
    const std::size_t at = name.find('#');
    return at == std::string::npos ? name : name.substr(0, at) + std::to_string(number) + name.substr(at + 1);
  }

  /// The name that the file has a tensor under: of a LayerNorm, gamma and beta in files that were released in
  /// TensorFlow's names. No other gamma is one: LayerScale's is not.
  std::string known(const std::string& name) const {
    for (const auto& [now, then] :
         {std::pair{"LayerNorm.weight", "LayerNorm.gamma"}, std::pair{"LayerNorm.bias", "LayerNorm.beta"}}) {
      const std::string_view end(now);
      if (!file_.has(name) && name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0)
        if (std::string old = name.substr(0, name.size() - end.size()) + then; file_.has(old)) return old;
    }
    return name;
  }

  void want(const std::string& prefix, const NameTable& table) {
    for (const NameRow& row : table)
      if (!row.optional) wanted_.push_back(known(prefix + row.name));
  }
  void require() {
    file_.require(wanted_);
    wanted_.clear();
  }

  /// Refuses tensors of floats that nobody has read and whose names begin as a part of the model: they say that its
  /// formula is another one, or that a block before them is missing, and without them the numbers would be wrong.
  void refuse_unread(const std::vector<std::string>& parts) const {
    for (const std::string& name : file_.unused())
      for (const std::string& part : parts)
        if (name.compare(0, part.size(), part) == 0 && file_.type(name).find('F') != std::string::npos)
          io::detail::fail(file_.name() + ": " + io::detail::in_quotes(name, 80),
                           "found a tensor among those of the model that its formula does not have, wanted none: "
                           "the model is another one, or lacks a block before this one");
  }
  /// That a file has as many blocks as the options say; 0: any number.
  void check_layers(Index found, Index wanted) const {
    if (found < 1 || wanted < 0 || (wanted != 0 && wanted != found))
      io::detail::fail(file_.name(), "found " + std::to_string(found) + " blocks and options of " +
                                         std::to_string(wanted) + " layers, wanted as many, or 0");
  }

  /// Reads a table and tells put(role, slot) where each role lies.
  template <class F>
  void read(const std::string& prefix, const NameTable& table, F&& put) {
    for (const NameRow& row : table) {
      const std::string name = known(prefix + row.name);
      if (row.optional && !file_.has(name)) continue;
      const Slot all = take(name, row.shape);
      std::istringstream roles(row.roles);
      std::vector<std::string> parts;
      for (std::string role; roles >> role;) parts.push_back(role);
      const auto count = static_cast<Index>(parts.size());
      const bool is_row = std::string_view(row.shape).size() == 1;  // a packed bias: its columns are shared
      const Index length = is_row ? all.cols : all.rows, part = length / count;
      if (length % count != 0)
        io::detail::fail(file_.name() + ": " + io::detail::in_quotes(name, 80),
                         "found " + std::to_string(length) + (is_row ? " entries" : " rows") +
                             ", wanted a multiple of " + std::to_string(count));
      for (Index i = 0; i < count; ++i)
        put(parts[static_cast<std::size_t>(i)],
            is_row ? Slot{all.parameter, 0, i * part, 1, part} : Slot{all.parameter, i * part, 0, part, all.cols});
    }
  }
  /// The parameters of a block; roles are the names of its arguments.
  TransformerBlockArgs<Slot> block(const std::string& prefix, const NameTable& table) {
    TransformerBlockArgs<Slot> out;
    read(prefix, table, [&](const std::string& role, const Slot& slot) {
      TransformerBlockArgs<Slot>::visit_parameters(
          [&](const char* field, Slot& to) {
            if (role == field) to = slot;
          },
          out);
    });
    return out;
  }

  Slot take(const std::string& asked, const std::string& shape) {
    const std::string name = known(asked);
    const auto extent = [&](std::size_t i) {
      const auto known = extents.find(shape[i]);
      return known == extents.end() ? io::Checkpoint::any : known->second;
    };
    Parameter<S> one;
    one.name = name, one.shape = file_.shape(name);
    if (shape.size() == 1)
      one.value = file_.template row<S>(name, extent(0));
    else if (shape.size() == 2)
      one.value = file_.template matrix<S>(name, extent(0), extent(1));
    else
      one.value = file_.template filter<S>(name, extent(0), extent(1), extent(2));
    for (std::size_t i = 0; i < shape.size(); ++i)
      extents.emplace(shape[i], one.shape[one.shape.size() - shape.size() + i]);
    to_.list.push_back(std::move(one));
    return {static_cast<Index>(to_.list.size()) - 1, 0, 0, to_.list.back().value.rows(), to_.list.back().value.cols()};
  }

 private:
  const io::Checkpoint& file_;
  Parameters<S>& to_;
  std::vector<std::string> wanted_;
};

}  // namespace detail
}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
