// limpid: the config.json that Hugging Face keeps beside the weights of a model.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "../io/checkpoint.hpp"
#include "../layer/mlp.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {
namespace detail {

/// One object of a config.json. What an entry holds that it must not is a FormatError with file, name, found, wanted.
class Config {
 public:
  /// Throws FormatError that names the file: what cannot be read, or is no JSON object.
  explicit Config(const std::string& path) : path_(path) {
    io::detail::Source source(path);
    constexpr std::size_t most = std::size_t(1)
                                 << 24;  // a tree of it takes several times as much; 21000 classes are 2 MB
    if (source.size() > most)
      io::detail::fail(path, "has " + std::to_string(source.size()) + " bytes, wanted at most " + std::to_string(most));
    std::string text(source.size(), ' ');
    source.read(0, text.data(), text.size());
    entries_ = nlohmann::json::parse(text, nullptr, false);
    if (!entries_.is_object()) io::detail::fail(path, "found no JSON object, wanted the configuration of a model");
  }

  /// Whether the entry is there and not null.
  bool has(const char* name) const {
    const auto found = entries_.find(name);
    return found != entries_.end() && !found->is_null();
  }
  /// An object within this one, which the caller has seen to be one.
  Config inner(const char* name) const { return {path_, entries_.at(name)}; }
  bool has_object(const char* name) const { return has(name) && entries_.at(name).is_object(); }

  /// The entry; `to` stays where there is none.
  void number(const char* name, double& to) const {
    if (!has(name)) return;
    if (!entries_.at(name).is_number()) fail("found no number as " + std::string(name) + ", wanted one");
    to = entries_.at(name).template get<double>();
  }
  void count(const char* name, Index& to) const {
    double found = static_cast<double>(to);
    number(name, found);
    if (!(found >= 0 && found <= 0x1p40 && found == std::floor(found)))
      fail("found " + limpid::detail::number_text(found) + " as " + std::string(name) +
           ", wanted a whole number, 0 or more");
    to = static_cast<Index>(found);
  }
  /// The eps of a norm; `to` stays where there is none.
  void eps(const char* name, double& to) const {
    number(name, to);
    if (has(name) && !(to >= 0))
      fail("found " + limpid::detail::number_text(to) + " as " + name + ", wanted a number, 0 or more");
  }
  /// Refuses an object, or a whole configuration, that lacks an entry.
  void require(const char* name, const std::string& of) const {
    if (!has(name)) fail("lacks " + std::string(name) + ", which " + of + " wants");
  }
  void flag(const char* name, bool& to) const {
    if (!has(name)) return;
    if (!entries_.at(name).is_boolean()) fail("found neither true nor false as " + std::string(name));
    to = entries_.at(name).template get<bool>();
  }
  void text(const char* name, std::string& to) const {
    if (!has(name)) return;
    if (!entries_.at(name).is_string()) fail("found no text as " + std::string(name) + ", wanted one");
    to = entries_.at(name).template get<std::string>();
  }

  /// Refuses a text that is not among those wanted: a model with other formulas would load and be wrong.
  void one_of(const char* name, const std::vector<std::string>& wanted) const {
    std::string found = wanted.front(), all;
    text(name, found);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (found == wanted[i]) return;
      all += (i == 0 ? "" : i + 1 == wanted.size() ? " or " : ", ") + wanted[i];
    }
    fail("found " + io::detail::in_quotes(found, 80) + " as " + std::string(name) + ", wanted " + all);
  }
  /// hidden_act, or that other entry, under the names of Hugging Face.
  Activation activation(Activation of, const char* entry = "hidden_act") const {
    static const std::map<std::string, Activation> known{
        {"gelu", Activation::gelu},           {"gelu_new", Activation::gelu_tanh},
        {"gelu_fast", Activation::gelu_tanh}, {"gelu_pytorch_tanh", Activation::gelu_tanh},
        {"relu", Activation::relu},           {"silu", Activation::silu},
        {"swish", Activation::silu}};
    if (!has(entry)) return of;
    std::vector<std::string> names;
    names.reserve(known.size());
    for (const auto& one : known) names.push_back(one.first);
    one_of(entry, names);
    std::string name;
    text(entry, name);
    return known.at(name);
  }
  [[noreturn]] void fail(const std::string& what) const { io::detail::fail(path_, what); }

 private:
  Config(std::string path, nlohmann::json entries) : path_(std::move(path)), entries_(std::move(entries)) {}

  std::string path_;
  nlohmann::json entries_;
};

}  // namespace detail
}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
