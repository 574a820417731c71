// limpid: the contract suite's view of an operator: its types hidden, so that a check is compiled once for all
// operators.
// SPDX-License-Identifier: MIT
#pragma once

#include "support/allocation.hpp"

#include <functional>
#include <limpid/explain/map.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/fields.hpp"

namespace suite {

using limpid::At;
using limpid::Cover;
using limpid::Interval;

/// The modifiers an operator is built with. Four chains, as each costs a compilation of the whole engine; what they do
/// is said when they are called.
enum class Kind {
  none,    ///< chain()
  causal,  ///< causal()
  masks,   ///< intervals, mask function and key bias
  values   ///< the same after a score function and an added amount
};
inline const char* text_of(Kind kind) {
  constexpr const char* names[] = {"none", "causal", "masks", "values"};
  return names[static_cast<int>(kind)];
}

/// What the chains masks and values do in a call; by default nothing.
template <class S>
struct Modifiers {
  bool causal = false;
  bool window = false;
  Index left = -1, right = -1;                                        // of the window
  std::function<bool(const At&)> keep;                                // true = keep
  std::function<Cover(const At&, Index, Index, Index, Index)> cover;  // the hint to it
  Mat<S> key_bias;                                                    // 1 x m or B x m
  Mat<S>* dkey_bias = nullptr;
  double cap = 0;                        // scores stay below it in size, values only
  std::function<double(const At&)> add;  // values only

  template <class T>
  Modifiers<T> cast() const {
    return {causal, window, left, right, keep, cover, key_bias.template cast<T>(), nullptr, cap, add};
  }
};

/// What forward may be asked besides, as limpid::Call.
template <class S>
struct Ask {
  std::shared_ptr<void> saved;
  limpid::Workspace* workspace = nullptr;
  limpid::ExecutorRef executor = {};
  Mat<S>* lse = nullptr;
  Mat<S>* map = nullptr;
  Index head = 0, item = 0;
};

/// One operator with one chain and one scalar.
template <class S>
class Subject {
 public:
  using Views = std::vector<View<S>>;
  using MutViews = std::vector<MutView<S>>;

  virtual ~Subject() = default;
  virtual Index out_width(const Sizes& sizes, const Views& in) const = 0;  ///< columns of out, all heads together
  virtual std::shared_ptr<void> new_saved() const = 0;
  virtual std::size_t saved_bytes(const Views& in, const void* saved) const = 0;
  virtual void forward(const Sizes& sizes, const Modifiers<S>& mods, const Views& in, MutView<S> out,
                       const Ask<S>& ask) const = 0;
  virtual void backward(const Modifiers<S>& mods, const Views& in, void* saved, View<S> dout, const MutViews& grad,
                        const limpid::BackwardCall<S>& call) const = 0;
  virtual void map_right(const Modifiers<S>& mods, const Views& in, void* saved, View<S> x, MutView<S> out,
                         const limpid::HeadCall& call) const = 0;
};

/// An operator with everything that the suite compiled it for.
struct Operator {
  const char* name = nullptr;
  Traits traits;
  std::string text_name;  ///< what its errors call it
  bool has_lse = true;    ///< weights come by a log-sum-exp, which can be asked for
  std::function<Fields<double>(const Sizes&, bool, Random&)> make_fields;
  std::unique_ptr<Subject<float>> of_float[4];
  std::unique_ptr<Subject<double>> of_double[4];
  std::unique_ptr<Subject<float>> plain_float;      ///< chain values, without SIMD
  std::unique_ptr<Subject<long double>> reference;  ///< chain values

  template <class S>
  const Subject<S>& get(Kind kind) const {
    const auto k = static_cast<std::size_t>(kind);
    if constexpr (std::is_same_v<S, long double>)
      return *reference;
    else if constexpr (std::is_same_v<S, float>)
      return *of_float[k];
    else
      return *of_double[k];
  }
};

/// All operators of the list.
using Operators = std::vector<std::unique_ptr<Operator>>;
const Operators& operators();

/// What fills in one scalar of all operators; contract/instance.cpp adds itself, once for each it is compiled for.
std::vector<void (*)(Operators&)>& instances();

}  // namespace suite
