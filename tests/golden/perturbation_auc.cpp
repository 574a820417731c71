// limpid: golden cases of the scores of explanations.
// SPDX-License-Identifier: MIT
#include <sstream>

#include "plain.hpp"

namespace golden {

struct PerturbationAuc {
  static constexpr const char* name = "perturbation_auc";
  static constexpr const char* switches = "kind k target rounding fractions";

  template <class S>
  static Mat<S> column(const std::vector<double>& x) {
    Mat<S> out(static_cast<Index>(x.size()), 1);
    for (std::size_t i = 0; i < x.size(); ++i) out(static_cast<Index>(i), 0) = static_cast<S>(x[i]);
    return out;
  }
  template <class S>
  static Mat<S> number(double x) {
    return column<S>({x});
  }

  /// softmax(mean_i tanh(x_i w1 + b1) w2 + b2), an input every n rows.
  template <class S>
  struct Classifier {
    Mat<S> w1, b1, w2, b2;
    Index n;
    Mat<S> operator()(const Mat<S>& x) const {
      Mat<S> mean = Mat<S>::Zero(x.rows() / n, w1.cols());
      const Mat<S> hidden = product(x, w1);
      for (Index i = 0; i < x.rows(); ++i)
        for (Index c = 0; c < w1.cols(); ++c) mean(i / n, c) += std::tanh(hidden(i, c) + b1(c, 0)) / static_cast<S>(n);
      Mat<S> p = product(mean, w2);
      for (Index b = 0; b < p.rows(); ++b) {
        S sum = 0;
        for (Index c = 0; c < p.cols(); ++c) sum += p(b, c) = std::exp(p(b, c) + b2(c, 0));
        for (Index c = 0; c < p.cols(); ++c) p(b, c) /= sum;
      }
      return p;
    }
  };

  template <class S>
  static Tensors<S> perturbed(const Case& c) {
    const Mat<S> x = c.in<S>("x"), r = c.in<S>("r"), baseline = c.row<S>("baseline");
    const Classifier<S> model{c.in<S>("w1"), c.in<S>("b1"), c.in<S>("w2"), c.in<S>("b2"), r.cols()};
    const Mat<double> label = c.in<double>("label");
    std::vector<Index> target;
    for (Index b = 0; b < label.size(); ++b) target.push_back(static_cast<Index>(label.data()[b]));
    const Mat<S> intact = model(x);
    if (c.text("target", "label") == "predicted") target = limpid::predicted_classes(intact);
    limpid::PerturbationOptions options;
    options.rounding = c.text("rounding", "floor") == "ceil" ? limpid::Rounding::ceil : limpid::Rounding::floor;
    if (const std::string list = c.text("fractions", ""); !list.empty()) {
      options.fractions.clear();
      std::istringstream numbers(list);
      for (std::string f; std::getline(numbers, f, ',');) options.fractions.push_back(std::stod(f));
    }
    const limpid::Perturber<S> perturber(x, r, baseline, target, model);
    const limpid::Perturbation found = perturber.curves(options);
    Tensors<S> all{{"out.prob", column<S>(found.probability)},
                   {"out.positive_accuracy", column<S>(found.positive_accuracy)},
                   {"out.positive_auc", number<S>(found.positive_auc)},
                   {"out.negative_accuracy", column<S>(found.negative_accuracy)},
                   {"out.negative_auc", number<S>(found.negative_auc)},
                   {"out.deletion", found.deletion.template cast<S>()},
                   {"out.insertion", found.insertion.template cast<S>()},
                   {"out.deletion_auc", column<S>(found.deletion_auc)},
                   {"out.insertion_auc", column<S>(found.insertion_auc)},
                   {"out.comprehensiveness", found.comprehensiveness.template cast<S>()},
                   {"out.sufficiency", found.sufficiency.template cast<S>()},
                   {"out.aopc_comprehensiveness", number<S>(found.aopc_comprehensiveness)},
                   {"out.aopc_sufficiency", number<S>(found.aopc_sufficiency)}};
    if (c.has("subsets")) {
      const Mat<double> places = c.in<double>("subsets");
      std::vector<std::vector<Index>> subsets;
      for (Index s = 0; s < places.rows(); ++s) {
        subsets.emplace_back();
        for (Index j = 0; j < places.cols(); ++j) subsets.back().push_back(static_cast<Index>(places(s, j)));
      }
      all["out.faithfulness_correlation"] = column<S>(perturber.faithfulness_correlation(subsets));
    }
    return all;
  }

  template <class S>
  static Tensors<S> localised(const Case& c) {
    const Mat<S> a = c.in<S>("a"), b = c.in<S>("b");
    const Mat<bool> mask = c.mask();
    std::map<std::string, std::vector<double>> all;
    for (Index i = 0; i < a.rows(); ++i) {
      const limpid::View<S> r(a.row(i)), other(b.row(i));
      const limpid::View<bool> object(mask.row(i));
      all["out.pearson"].push_back(limpid::pearson(r, other));
      all["out.spearman"].push_back(limpid::spearman(r, other));
      all["out.top_k_overlap"].push_back(limpid::top_k_overlap(r, other, c.count("k", 1)));
      all["out.gini"].push_back(limpid::gini(r));
      all["out.entropy"].push_back(limpid::relevance_entropy(r));
      all["out.mass_accuracy"].push_back(limpid::mass_accuracy(r, object));
      all["out.rank_accuracy"].push_back(limpid::rank_accuracy(r, object));
      all["out.pointing"].push_back(limpid::pointing(r, object));
    }
    Tensors<S> out;
    for (const auto& [key, values] : all) out[key] = column<S>(values);
    return out;
  }

  template <class S>
  static Tensors<S> segmented(const Case& c) {
    const std::vector<Index>& shape = c.shape("heat");
    if (shape.size() != 3) throw Refused("heat has rank " + std::to_string(shape.size()) + ", wanted 3");
    const Mat<S> rows = c.in<S>("heat");
    const Mat<bool> mask = c.mask();
    const Index pixels = shape[1] * shape[2];
    const limpid::Segmentation found = limpid::segmentation(limpid::View<S>(rows.data(), shape[0], pixels, pixels),
                                                            limpid::View<bool>(mask.data(), shape[0], pixels, pixels));
    return {{"out.pixel_accuracy", number<S>(found.pixel_accuracy)},
            {"out.iou", column<S>({found.background_iou, found.foreground_iou})},
            {"out.miou", number<S>(found.mean_iou)},
            {"out.average_precision", column<S>(found.average_precision)},
            {"out.map", number<S>(found.mean_average_precision)},
            {"out.f1", column<S>(found.f1)}};
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind == "perturb") return perturbed<S>(c);
    if (kind == "localise") return localised<S>(c);
    if (kind == "segmentation") return segmented<S>(c);
    throw Refused("kind is '" + kind + "', wanted perturb, localise or segmentation");
  }
};

const Registered<PerturbationAuc> perturbation_auc_cases;

}  // namespace golden
