// limpid: the vision transformer of the examples (Dosovitskiy et al. 2021, arXiv 2010.11929), over any operator, or of
// other blocks.
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "training.hpp"

namespace training {

struct VitShape {
  Index rows = 28, cols = 28, patch = 4, width = 64, layers = 4, heads = 4, mlp = 128, classes = 10;
  Index patches() const { return (rows / patch) * (cols / patch); }
  Index tokens() const { return patches() + 1; }  // the class token is the first
  Index pixels() const { return patch * patch; }
};

/// The maps of a layer's attention, those of pictures one below the other and of each its heads, (images heads tokens) x
/// tokens, and the gradients of the logits' sum, weighted by dlogits, with respect to them. Maps are the effective ones,
/// of which entries may be negative: what takes the values to the heads' output, before a norm of heads where there is
/// one.
template <class S>
struct LayerMaps {
  Mat<S> a, g;
};

/// What one thread works with, for so many images at a time; the same memory call after call.
template <class S>
struct Room {
  Mat<S> patches;          ///< (images patches) x pixels, row by row of the grid: the input
  Mat<S> logits, dlogits;  ///< images x classes
  std::vector<int> labels;
  std::vector<LayerMaps<S>>* maps = nullptr;  ///< where backward puts them, a layer each; of models in float alone

  Room(const VitShape& s, Index images)
      : patches(images * s.patches(), s.pixels()),
        logits(images, s.classes),
        dlogits(images, s.classes),
        labels(static_cast<std::size_t>(images)) {}
  virtual ~Room() = default;
};

/// A model whose parameters lie in one array w, by the layout of parameters().
template <class S>
class Model {
 public:
  explicit Model(const VitShape& shape) : shape_(shape) {}
  virtual ~Model() = default;
  const VitShape& shape() const { return shape_; }
  const Parameters& parameters() const { return parameters_; }

  virtual std::unique_ptr<Room<S>> room(Index images) const = 0;
  /// room.logits from room.patches; with `keep`, what backward needs.
  virtual void forward(const Mat<S>& w, Room<S>& room, bool keep) const = 0;
  /// The gradient of all parameters, overwritten, and of room.patches where dpatches is given, from room.dlogits, after
  /// forward(w, room, true).
  virtual void backward(const Mat<S>& w, Room<S>& room, Mat<S>& gradient, MutView<S> dpatches) const = 0;

 protected:
  VitShape shape_;
  Parameters parameters_;
};

/// What a model's layers can be, from vit_operator.cpp, where it is said what it is. Compiled a list at a time: half of
/// what each compiles is what all of them are made of.
#define LIMPID_VITS_0(of) of(softmax)  // alone, for the bench
#define LIMPID_VITS_1(of) of(softmax) of(twicing) of(boosting) of(boosting_block)
#define LIMPID_VITS_2(of) of(nlm) of(bilateral) of(sigmoid) of(gated)
#define LIMPID_VITS_3(of) of(differential) of(pid) of(aot) of(crate)
#define LIMPID_VIT_OPERATORS(of) LIMPID_VITS_1(of) LIMPID_VITS_2(of) LIMPID_VITS_3(of)
#define LIMPID_VIT(op) std::unique_ptr<Model<float>> make_vit_##op(const VitShape& shape);
LIMPID_VIT_OPERATORS(LIMPID_VIT)
#undef LIMPID_VIT
/// Those that are there in double too, to be checked: one of a kind, and what is put together in vit_operator.cpp.
#define LIMPID_VITS_IN_DOUBLE_0(of)
#define LIMPID_VITS_IN_DOUBLE_1(of) of(softmax) of(boosting_block)
#define LIMPID_VITS_IN_DOUBLE_2(of) of(gated)
#define LIMPID_VITS_IN_DOUBLE_3(of) of(pid) of(aot) of(crate)
#define LIMPID_VITS_IN_DOUBLE(of) LIMPID_VITS_IN_DOUBLE_1(of) LIMPID_VITS_IN_DOUBLE_2(of) LIMPID_VITS_IN_DOUBLE_3(of)
#define LIMPID_VIT(op) std::unique_ptr<Model<double>> make_vit_in_double_##op(const VitShape& shape);
LIMPID_VITS_IN_DOUBLE(LIMPID_VIT)
#undef LIMPID_VIT

template <class S>
using MakeVit = std::unique_ptr<Model<S>> (*)(const VitShape& shape);
inline const std::map<std::string, MakeVit<float>>& vits() {
#define LIMPID_VIT(op) {#op, make_vit_##op},
  static const std::map<std::string, MakeVit<float>> all{LIMPID_VIT_OPERATORS(LIMPID_VIT)};
#undef LIMPID_VIT
  return all;
}
inline const std::map<std::string, MakeVit<double>>& vits_in_double() {
#define LIMPID_VIT(op) {#op, make_vit_in_double_##op},
  static const std::map<std::string, MakeVit<double>> all{LIMPID_VITS_IN_DOUBLE(LIMPID_VIT)};
#undef LIMPID_VIT
  return all;
}

}  // namespace training
