// limpid: the vision transformer of the examples over LIMPID_VIT_OPERATOR, e.g. softmax: compiled once for each.
// SPDX-License-Identifier: MIT
#include <limpid/layer/layer_norm.hpp>
#include <limpid/layer/transformer_block.hpp>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/sigmoid.hpp>
#include <limpid/op/softmax.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/biases.hpp>

#include "vit.hpp"

namespace training {
namespace {

// What makes the operator of a layer, 0 and on, of each name.
struct softmax {
  explicit softmax(const VitShape&) {}
  auto operator()(Index) const { return limpid::softmax(); }
};
struct nlm {
  explicit nlm(const VitShape&) {}
  auto operator()(Index) const { return limpid::nlm(); }
};
struct twicing {
  explicit twicing(const VitShape&) {}
  auto operator()(Index) const { return limpid::twicing(); }
};
struct sigmoid {
  explicit sigmoid(const VitShape&) {}
  auto operator()(Index) const { return limpid::sigmoid(); }
};
/// L2 boosting of two steps, I - (I - A)^3; twicing is that of one.
struct boosting {
  explicit boosting(const VitShape&) {}
  auto operator()(Index) const { return limpid::boosting({.scheme = limpid::BoostingScheme::l2boost, .steps = 2}); }
};
/// lambda as it begins in that layer, not learned.
struct differential {
  explicit differential(const VitShape&) {}
  auto operator()(Index layer) const {
    return limpid::differential({.lambda_init = limpid::lambda_init_of_layer(layer + 1)});
  }
};
/// Content and place, each by its distance: patches at p_i and p_j of the grid weigh exp(-|p_i - p_j|^2 / 2^2) besides,
/// the class token and what it sees 1.
struct bilateral {
  Mat<float> place;
  explicit bilateral(const VitShape& shape) : place(Mat<float>::Zero(shape.tokens(), shape.tokens())) {
    const Index n = shape.tokens(), across = shape.cols / shape.patch;
    for (Index i = 1; i < n; ++i)
      for (Index j = 1; j < n; ++j) {
        const Index down = (i - 1) / across - (j - 1) / across, right = (i - 1) % across - (j - 1) % across;
        place(i, j) = -static_cast<float>(down * down + right * right) / 4;
      }
  }
  auto operator()(Index) const { return limpid::nlm(limpid::bias(place)); }
};

/// Patches by a linear map, a class token before them, learned positions, `layers` pre-norm blocks, and of the class
/// token a layer norm and a linear map to the logits.
template <class Make, class S>
class Vit : public Model<S> {
  using Model<S>::shape_, Model<S>::parameters_;

 public:
  using Block = limpid::TransformerBlock<std::remove_const_t<decltype(std::declval<Make>()(0))>>;

  Vit(const VitShape& shape, Make make) : Model<S>(shape), make_(std::move(make)) {
    const Index d = shape.width, e = shape.mlp;
    const auto linear = [&](const std::string& w, const std::string& b, Index in, Index out) {
      parameters_.add(w, in, out, Start::weight);
      parameters_.add(b, 1, out, Start::zero);
    };
    const auto norm = [&](const std::string& gamma, const std::string& beta) {
      parameters_.add(gamma, 1, d, Start::one);
      parameters_.add(beta, 1, d, Start::zero);
    };
    linear("patch.w", "patch.b", shape.pixels(), d);
    parameters_.add("class", 1, d, Start::token);
    parameters_.add("positions", shape.tokens(), d, Start::token);
    for (std::size_t l = 0; l < static_cast<std::size_t>(shape.layers); ++l) {
      blocks_.push_back(limpid::transformer_block(make_(static_cast<Index>(l)), {.heads = shape.heads, .eps = eps}));
      const std::string block = prefix(l);
      norm(block + "gamma1", block + "beta1");
      for (const char* of : {"q", "k", "v", "o"}) linear(block + "w" + of, block + "b" + of, d, d);
      norm(block + "gamma2", block + "beta2");
      linear(block + "w1", block + "b1", d, e);
      linear(block + "w2", block + "b2", e, d);
    }
    norm("norm.gamma", "norm.beta");
    linear("head.w", "head.b", d, shape.classes);
  }

  std::unique_ptr<Room<S>> room(Index images) const override { return std::make_unique<Own>(shape_, images); }

  void forward(const Mat<S>& w, Room<S>& room_, bool keep) const override {
    Own& room = static_cast<Own&>(room_);
    const Index n = shape_.tokens(), images = room.logits.rows();
    const auto p = [&](const char* name) { return parameters_.view(w, name); };
    limpid::linear(room.patches, p("patch.w"), p("patch.b"), room.embedded, {.workspace = &room.workspace});
    const auto positions = matrix(p("positions"));
    for (Index i = 0; i < images; ++i) {
      auto tokens = room.x[0].middleRows(i * n, n);
      tokens.row(0) = matrix(p("class")) + positions.row(0);
      tokens.bottomRows(n - 1) = room.embedded.middleRows(i * (n - 1), n - 1) + positions.bottomRows(n - 1);
    }
    for (std::size_t l = 0; l < blocks_.size(); ++l)
      blocks_[l].forward(block(w, l, room), room.x[l + 1],
                         {.batch = images, .saved = keep ? &room.saved[l] : nullptr, .workspace = &room.workspace});
    for (Index i = 0; i < images; ++i) room.of_class.row(i) = room.x.back().row(i * n);
    limpid::layer_norm(room.of_class, p("norm.gamma"), p("norm.beta"), room.normed,
                       {.eps = eps, .saved = &room.norm, .workspace = &room.workspace});
    limpid::linear(room.normed, p("head.w"), p("head.b"), room.logits, {.workspace = &room.workspace});
  }

  void backward(const Mat<S>& w, Room<S>& room_, Mat<S>& gradient) const override {
    Own& room = static_cast<Own&>(room_);
    const Index n = shape_.tokens(), images = room.logits.rows();
    const auto p = [&](const char* name) { return parameters_.view(w, name); };
    const auto d = [&](const char* name) { return parameters_.view(gradient, name); };
    const limpid::LayerCall call{.workspace = &room.workspace};
    limpid::linear_backward(room.normed, p("head.w"), room.dlogits, {room.dnormed, d("head.w"), d("head.b")}, call);
    Mat<S>& dclass = room.normed;  // which nothing reads any more
    limpid::layer_norm_backward(room.of_class, p("norm.gamma"), room.norm, room.dnormed,
                                {dclass, d("norm.gamma"), d("norm.beta")}, call);
    room.dx.setZero();
    for (Index i = 0; i < images; ++i) room.dx.row(i * n) = dclass.row(i);
    for (std::size_t l = blocks_.size(); l-- > 0;) {
      auto grads = block_fields<limpid::Gradient<S>>(gradient, l);
      grads.x = room.dbefore;
      blocks_[l].template backward<S>(block(w, l, room), room.saved[l], room.dx, grads, call);
      room.dx.swap(room.dbefore);
    }
    auto dpositions = matrix(d("positions"));
    dpositions.setZero();
    for (Index i = 0; i < images; ++i) {
      const auto tokens = room.dx.middleRows(i * n, n);
      dpositions += tokens;
      room.embedded.middleRows(i * (n - 1), n - 1) = tokens.bottomRows(n - 1);  // its gradient, in its place
    }
    matrix(d("class")) = dpositions.row(0);
    limpid::linear_backward(room.patches, p("patch.w"), room.embedded, {{}, d("patch.w"), d("patch.b")}, call);
  }

 private:
  static constexpr double eps = 1e-6;

  struct Own : Room<S> {
    Mat<S> embedded, of_class, normed, dnormed, dx, dbefore;
    std::vector<Mat<S>> x;
    std::vector<typename Block::template Saved<S>> saved;
    limpid::LayerNormSaved<S> norm;
    limpid::Workspace workspace;

    Own(const VitShape& s, Index images)
        : Room<S>(s, images),
          embedded(images * s.patches(), s.width),
          of_class(images, s.width),
          normed(images, s.width),
          dnormed(images, s.width),
          dx(images * s.tokens(), s.width),
          dbefore(images * s.tokens(), s.width),
          x(static_cast<std::size_t>(s.layers) + 1, Mat<S>(images * s.tokens(), s.width)),
          saved(static_cast<std::size_t>(s.layers)) {}
  };

  template <class V>
  static auto matrix(const V& view) {
    using M = std::conditional_t<std::is_same_v<V, View<S>>, const Mat<S>, Mat<S>>;
    return Eigen::Map<M>(view.data, view.rows, view.cols);
  }
  static std::string prefix(std::size_t layer) { return "blocks." + std::to_string(layer) + "."; }
  /// The parameters of a block among those of an array, or their gradients.
  template <class T, class Numbers>
  limpid::TransformerBlockArgs<T> block_fields(Numbers& numbers, std::size_t layer) const {
    limpid::TransformerBlockArgs<T> fields;
    const std::string block = prefix(layer);
    fields.visit_parameters(
        [&](const char* name, auto& field) {
          if (parameters_.find(block + name)) field = parameters_.view(numbers, block + name);
        },
        fields);
    return fields;
  }
  limpid::TransformerBlockArgs<View<S>> block(const Mat<S>& w, std::size_t layer, const Own& room) const {
    auto fields = block_fields<View<S>>(w, layer);
    fields.x = room.x[layer];
    return fields;
  }

  Make make_;
  std::vector<Block> blocks_;
};

}  // namespace

#define LIMPID_JOIN(a, b) a##b
#define LIMPID_MAKE(op) LIMPID_JOIN(make_vit_, op)
std::unique_ptr<Model<float>> LIMPID_MAKE(LIMPID_VIT_OPERATOR)(const VitShape& shape) {
  return std::make_unique<Vit<LIMPID_VIT_OPERATOR, float>>(shape, LIMPID_VIT_OPERATOR(shape));
}
#ifdef LIMPID_VIT_IN_DOUBLE
std::unique_ptr<Model<double>> make_vit_in_double(const VitShape& shape) {
  return std::make_unique<Vit<LIMPID_VIT_OPERATOR, double>>(shape, LIMPID_VIT_OPERATOR(shape));
}
#endif

}  // namespace training
