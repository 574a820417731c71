// limpid: what the methods of explain say of the patches of images, before a model of robustness; and whether the maps
// that they read are right.
// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <limpid/explain/baselines.hpp>
#include <limpid/explain/input_gradients.hpp>
#include <limpid/explain/maps.hpp>
#include <limpid/explain/relevance_matrices.hpp>

#include "trainer.hpp"

namespace training {

using limpid::Part;
using Layers = std::vector<limpid::HeadMaps<float>>;

constexpr Index each = 4;  ///< images of a group

/// Images of a group before a model: the class it takes each for is what is explained.
class Group {
 public:
  static constexpr Index count = each;

  Group(const Trained& t, Room<float>& room, const LabelledImages& tests, Index first)
      : t_(t), room_(room), gradient_(Mat<float>::Zero(1, t.w.cols())) {
    const VitShape& s = t.model->shape();
    x.resize(each * s.patches(), s.pixels());
    for (Index i = 0; i < each; ++i)
      put_patches<float>(tests, first + i, {}, t.spread, s.patch,
                         MutView<float>(x).block(i * s.patches(), 0, s.patches(), s.pixels()));
    const Mat<float> p = probabilities(x);
    target = limpid::predicted_classes(p);
    for (Index i = 0; i < each; ++i)
      right += target[static_cast<std::size_t>(i)] == tests.labels[std::size_t(first + i)];
    room_.maps = &maps_;
    score(x, {});
    room_.maps = nullptr;
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  Index patches() const { return t_.model->shape().patches(); }
  Mat<float> probabilities(const Mat<float>& at) const {
    room_.patches = at;
    t_.model->forward(t_.w, room_, false);
    Mat<float> e = room_.logits;
    e.colwise() -= room_.logits.rowwise().maxCoeff().eval();
    e = e.array().exp();
    return e.array().colwise() / e.rowwise().sum().eval().array();
  }
  /// The sum of the targets' logits, and its gradient.
  float score(View<float> at, MutView<float> d) {
    room_.patches = at.map();
    t_.model->forward(t_.w, room_, true);
    room_.dlogits.setZero();
    float sum = 0;
    for (Index i = 0; i < each; ++i) {
      const Index c = target[static_cast<std::size_t>(i)];
      room_.dlogits(i, c) = 1, sum += room_.logits(i, c);
    }
    t_.model->backward(t_.w, room_, gradient_, d);
    return sum;
  }
  auto model() {
    return [this](View<float> at, MutView<float> d) { return score(at, d); };
  }
  /// Of one image or of all, a layer each.
  Layers maps(Index image, Index images = 1) const {
    const Index heads = t_.model->shape().heads, rows = images * heads * t_.model->shape().tokens();
    Layers all;
    for (const LayerMaps<float>& l : maps_)
      all.push_back({View<float>(l.a).block(image * rows, 0, rows, l.a.cols()),
                     View<float>(l.g).block(image * rows, 0, rows, l.g.cols()), images * heads});
    return all;
  }
  /// The images without contrast.
  Mat<float> flat() const {
    Mat<float> out(x.rows(), x.cols());
    for (Index i = 0; i < each; ++i)
      out.middleRows(i * patches(), patches()).setConstant(x.middleRows(i * patches(), patches()).mean());
    return out;
  }
  /// Of the parameters, by the last score.
  const Mat<float>& gradient() const { return gradient_; }

  Mat<float> x;  ///< (images patches) x pixels
  std::vector<Index> target;
  Index right = 0;

 private:
  const Trained& t_;
  Room<float>& room_;
  Mat<float> gradient_;
  std::vector<LayerMaps<float>> maps_;
};

/// A row of numbers for every image, from its maps: those of the patches, which come last. G: a Group or what offers the
/// same: x, count, patches(), maps(), model(), flat().
template <class G, class F>
Mat<float> by_maps(const G& g, F&& f) {
  Mat<float> out(G::count, g.patches());
  for (Index i = 0; i < G::count; ++i) out.row(i) = Mat<float>(f(g.maps(i))).rightCols(g.patches());
  return out;
}
template <class G>
Mat<float> relevance(const G& g, Part part) {
  return by_maps(g, [part](const Layers& layers) -> Mat<float> {
    limpid::RelevanceMatrices<float> r({layers.front().n()});
    for (const auto& layer : layers) {
      const Mat<float> abar = limpid::corrected_map(layer, {.part = part});
      r.attention(0, 0, abar), r.stage();
    }
    return r.without_identity().row(0);
  });
}
template <class G>
Mat<float> of_patches(const Mat<float>& tokens) {
  return Eigen::Map<const Mat<float>>(tokens.data(), G::count, tokens.size() / G::count);
}

/// A method: its name as explain has it, what it does, and a number for every patch of every image.
template <class G>
struct MethodOf {
  const char *name, *about;
  std::function<Mat<float>(G&, std::uint64_t seed)> run;
};
template <class G>
std::vector<MethodOf<G>> methods_of() {
  return {
      {"random", "uniform numbers: what the others have to beat",
       [](G& g, std::uint64_t seed) -> Mat<float> {
         return limpid::random_relevance(G::count, g.patches(), seed).template cast<float>();
       }},
      {"raw attention", "the class token's row of the last layer, mean over heads",
       [](G& g, std::uint64_t) {
         return by_maps(g, [](const Layers& l) -> Mat<float> { return limpid::fused_map(l.back()).row(0); });
       }},
      {"rollout", "maps of all layers multiplied, half of each the skip connection, rows divided by their sums",
       [](G& g, std::uint64_t) {
         return by_maps(g, [](const Layers& l) -> Mat<float> { return limpid::map_rollout(l).row(0); });
       }},
      {"gradient rollout", "rollout of I + what is positive of maps times their gradients",
       [](G& g, std::uint64_t) {
         return by_maps(g, [](const Layers& l) -> Mat<float> {
           return limpid::map_rollout(l, {.method = limpid::RolloutMethod::gradient_rollout, .normalise = true}).row(0);
         });
       }},
      {"Grad-CAM", "of the last layer's maps, heads weighted by their mean gradients",
       [](G& g, std::uint64_t) { return by_maps(g, [](const Layers& l) { return limpid::gradcam(l.back()); }); }},
      {"relevance", "maps times their gradients, what is positive, through all layers, rows not divided",
       [](G& g, std::uint64_t) { return relevance(g, Part::pos); }},
      {"relevance, signed", "the same with both signs",
       [](G& g, std::uint64_t) { return relevance(g, Part::signed_); }},
      {"gradient x input", "pixels times the logit's gradient, summed over a patch",
       [](G& g, std::uint64_t) {
         return of_patches<G>(limpid::gradient_times_input(g.model(), View<float>(g.x)).tokens);
       }},
      {"integrated gradients", "16 steps from an image without contrast",
       [](G& g, std::uint64_t) {
         const Mat<float> flat = g.flat();
         return of_patches<G>(limpid::integrated_gradients(g.model(), View<float>(g.x), 16, flat).tokens);
       }},
      {"SmoothGrad", "the gradient squared, mean of 16 noisy images",
       [](G& g, std::uint64_t seed) {
         return of_patches<G>(limpid::smooth_grad(g.model(), View<float>(g.x),
                                                  {.samples = 16, .sigma = 0.15, .seed = seed, .squared = true})
                                  .tokens);
       }},
  };
}
using Method = MethodOf<Group>;
inline std::vector<Method> methods() { return methods_of<Group>(); }

/// Throws unless maps and gradients fit the gradient of the weights: of what the values (MSSA: the output projection)
/// of a head are multiplied by, which is sum of A o dA, and sum of w o dw. Returned: the largest difference.
inline double check_maps(const std::string& name, const Trained& t, const LabelledImages& tests) {
  const auto room = t.model->room(each);
  const Group g(t, *room, tests, 0);
  const Parameters& parameters = t.model->parameters();
  const Index heads = t.model->shape().heads;
  const Layers layers = g.maps(0, each);
  double worst = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string prefix = "blocks." + std::to_string(l) + ".";
    const bool mssa = parameters.find(prefix + "u") != nullptr;
    if (name == "pid" && l + 1 < layers.size()) continue;  // later layers read these values too
    for (Index h = 0; h < heads; ++h) {
      double of_maps = 0, size = 0, of_weights = 0;
      for (Index i = 0; i < each; ++i) {
        const Mat<float> both =
            layers[l].map(i * heads + h).map().cwiseProduct(layers[l].gradient(i * heads + h).map());
        of_maps += both.cast<double>().sum(), size += both.cast<double>().cwiseAbs().sum();
      }
      for (const char* of : {"wv", "bv", "wo"}) {
        if (parameters.find(prefix + of) == nullptr || mssa != (std::string(of) == "wo")) continue;
        const View<float> w = parameters.view(t.w, prefix + of), d = parameters.view(g.gradient(), prefix + of);
        const Index rows = mssa ? w.rows / heads : w.rows, cols = mssa ? w.cols : w.cols / heads;
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) {
            const Index r = mssa ? h * rows + i : i, c = mssa ? j : h * cols + j;
            of_weights += static_cast<double>(w(r, c)) * static_cast<double>(d(r, c));
          }
      }
      worst = std::max(worst, std::abs(of_maps - of_weights) / size);
    }
  }
  if (!(worst < 1e-4))
    throw std::runtime_error(name + text(": maps and gradients are %.1e away from those of the weights", worst));
  return worst;
}

}  // namespace training
