// limpid: what the methods of explain say of the patches of photographs, before DINOv2, and what removing patches does.
// SPDX-License-Identifier: MIT
//
// DINOv2 has no classes. What is explained and what is measured is one number, s: how far the class token c has come
// from e, that of a square without any patch, to c0, that of the intact one: <c - e, c0 - e> / |c0 - e|^2, from 0 to 1.
// The cosine of c and c0 has no gradient at the intact square, and <c, c0> / <c0, c0> ends anywhere: 0.11 to 0.59 of e.
#pragma once

#include <array>
#include <limpid/explain/map.hpp>
#include <limpid/explain/metrics.hpp>
#include <limpid/io/resize.hpp>
#include <limpid/model/vit.hpp>
#include <mutex>
#include <random>

#include "patch_explanations.hpp"

namespace training {

/// Softmax attention that writes its maps and their gradients down while its backward pass goes by.
struct WatchedSoftmax : decltype(limpid::softmax()) {
  using Softmax = decltype(limpid::softmax());
  struct Seen {
    Index heads = 0;
    std::vector<Mat<float>> a, g;  ///< of every layer, last first; (heads n) x n
  };
  Seen* seen = nullptr;

  explicit WatchedSoftmax(Seen* to = nullptr) : Softmax(limpid::softmax()), seen(to) {}
  template <class P, class S = typename P::Scalar>
  void backward(const limpid::BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    Softmax::template backward<P, S>(pass, in, keep, dout, grad);
    if (seen == nullptr) return;
    const Index n = in.q.rows, head = pass.at.head;
    if (head == 0) {
      seen->a.emplace_back(seen->heads * n, n);
      seen->g.emplace_back(seen->heads * n, n);
    }
    Softmax::map_block(pass, in, keep, 0, 0, MutView<float>(seen->a.back()).block(head * n, 0, n, n));
    limpid::linear(dout, limpid::out_in(in.v), View<S>(),
                   MutView<float>(seen->g.back()).block(head * n, 0, n, n));  // dA = dout V^T
  }
};

/// A square of a photograph before DINOv2, as Group is images before a model of robustness.
class Crop {
 public:
  static constexpr Index count = 1, heads = 6, side = 224;
  using Vit = limpid::model::Vit<float>;

  /// colour: the pixels of a patch that is removed.
  Crop(const Vit& vit, const limpid::io::Image& square, const Mat<float>& colour)
      : vit_(vit), grid_(side / vit.patch()) {
    const Mat<float> pixels = limpid::io::normalised<float>(square, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225});
    x = in_patches(pixels);
    none = colour.replicate(x.rows(), x.cols() / 3);
    forward(none);
    empty_ = saved_.tokens.row(0);
    forward(x);
    towards_ = saved_.tokens.row(0) - empty_;
    towards_ /= towards_.squaredNorm();
    seen_.heads = heads;
    Mat<float> d(x.rows(), x.cols());
    run(x, d, WatchedSoftmax(&seen_));
  }
  Crop(const Crop&) = delete;
  Crop& operator=(const Crop&) = delete;

  Index patches() const { return grid_ * grid_; }
  /// s, how much is left.
  float left(const Mat<float>& at) {
    forward(at);
    return score();
  }
  auto model() {
    return [this](View<float> at, MutView<float> d) { return run(at, d, WatchedSoftmax()); };
  }
  Layers maps(Index) const {
    Layers all;
    for (std::size_t l = seen_.a.size(); l-- > 0;) all.push_back({seen_.a[l], seen_.g[l], heads});
    return all;
  }
  /// Every pixel of the mean colour.
  Mat<float> flat() const {
    Mat<float> out(x.rows(), x.cols());
    for (Index c = 0; c < 3; ++c) {
      float sum = 0;
      for (Index j = c; j < x.cols(); j += 3) sum += x.col(j).mean();
      for (Index j = c; j < x.cols(); j += 3) out.col(j).setConstant(3 * sum / static_cast<float>(x.cols()));
    }
    return out;
  }

  /// Relevance without any map, by the model's own backward pass.
  Mat<float> own_relevance() {
    forward(x);
    limpid::model::RelevanceRow<float> row{Mat<float>::Zero(1, saved_.tokens.rows()), {}, Part::pos};
    row.start(0, 0) = 1;
    Mat<float> dtokens = Mat<float>::Zero(saved_.tokens.rows(), vit_.width());
    dtokens.row(0) = towards_;
    vit_.backward(WatchedSoftmax(), saved_, View<float>(), View<float>(dtokens), nullptr, {}, &row);
    return row.rest.rightCols(patches());
  }

  Mat<float> x, none;  ///< patches x (pixels of a patch, three colours each); all of them removed

 private:
  float score() const { return (saved_.tokens.row(0) - empty_.row(0)).dot(towards_.row(0)); }
  void forward(View<float> at) {
    pixels_ = in_pixels(at);
    vit_.forward(WatchedSoftmax(), View<float>(pixels_), side, side, saved_);
  }
  float run(View<float> at, MutView<float> d, const WatchedSoftmax& op) {
    forward(at);
    Mat<float> dtokens = Mat<float>::Zero(saved_.tokens.rows(), vit_.width()), dpixels(side * side, 3);
    dtokens.row(0) = towards_;
    vit_.backward(op, saved_, View<float>(), View<float>(dtokens), nullptr, dpixels);
    const Mat<float> by_patch = in_patches(dpixels);
    for (Index i = 0; i < d.rows; ++i) std::copy_n(by_patch.row(i).data(), d.cols, d.row(i));
    return score();
  }
  /// f(pixel, patch, place in it).
  template <class F>
  void each_pixel(const F& f) const {
    const Index p = vit_.patch();
    for (Index r = 0; r < side; ++r)
      for (Index c = 0; c < side; ++c) f(r * side + c, r / p * grid_ + c / p, (r % p * p + c % p) * 3);
  }
  Mat<float> in_patches(const Mat<float>& pixels) const {
    Mat<float> out(patches(), vit_.patch() * vit_.patch() * 3);
    each_pixel([&](Index i, Index patch, Index at) { out.block(patch, at, 1, 3) = pixels.row(i); });
    return out;
  }
  Mat<float> in_pixels(View<float> by_patch) const {
    Mat<float> out(side * side, 3);
    each_pixel([&](Index i, Index patch, Index at) { out.row(i) = by_patch.map().block(patch, at, 1, 3); });
    return out;
  }

  const Vit& vit_;
  Index grid_;
  limpid::model::VitSaved<WatchedSoftmax, float> saved_;
  Mat<float> empty_, towards_, pixels_;
  WatchedSoftmax::Seen seen_;
};

/// Throws unless relevance from the maps is that of the model's own backward pass. Returned: the largest difference.
inline double check_maps(Crop& g) {
  const Mat<float> own = g.own_relevance(), by_maps = relevance(g, Part::pos);
  const double worst = double((own - by_maps).cwiseAbs().maxCoeff()) / double(own.cwiseAbs().maxCoeff());
  if (!(worst < 1e-4))
    throw std::runtime_error(text("dinov2: relevance from maps is %.1e away from that of the backward pass", worst));
  return worst;
}

/// What is asked of photographs, and the files that they are.
struct PhotographPlan {
  std::vector<MethodOf<Crop>> methods;
  std::vector<std::string> photographs;
  Index crops = 3;  ///< of each
  Index seed = 1;
  std::string replace = "mean", weights, folder;

  Index count() const { return crops * std::ssize(photographs); }
  /// What a crop's numbers depend on.
  std::string words() const {
    std::string all = text("seed %ld, %s for a patch", long(seed), replace.c_str());
    for (const std::string& p : photographs) all += ", " + std::filesystem::path(p).stem().string();
    for (const auto& m : methods) all += std::string(", ") + m.name;
    return all;
  }
};

/// Faithfulness on photographs: a row of numbers a crop, and their table.
class Photographs {
 public:
  static constexpr Index steps = 16, saco_groups = 8, least = 5;  ///< least: photographs that an interval is told of
  static constexpr std::array<const char*, 3> metrics{"deletion", "insertion", "SaCo"};
  static constexpr std::array<bool, 3> more{false, true, true};  ///< is better

  explicit Photographs(const PhotographPlan& plan) : plan_(plan) {
    for (const std::string& path : plan.photographs) {
      const limpid::io::Image image = limpid::io::read_png(path, limpid::io::Channels::rgb);
      if (std::min(image.rows, image.cols) < Crop::side)
        throw std::invalid_argument(
            path + text(": found %ld x %ld pixels, wanted at least 224 x 224", long(image.rows), long(image.cols)));
      images_.push_back(image);
    }
  }

  /// What is not in the part is made, some crops at a time, and written as it comes.
  void make(limpid::ThreadPool& pool) {
    const std::string path = plan_.folder + "/dinov2.safetensors";
    const Index columns = std::ssize(plan_.methods) * std::ssize(metrics);
    if (std::filesystem::exists(path)) {
      const Safetensors file = limpid::io::read_safetensors(path);
      if (file.meta("plan") != plan_.words())
        throw std::invalid_argument(path + ": found " + file.meta("plan") + ", wanted " + plan_.words() +
                                    "; another --out begins anew");
      values_ = file.at("values").matrix<double>();
      if (values_.cols() != columns)
        throw FormatError(path +
                          text(": found %ld columns of values, wanted %ld", long(values_.cols()), long(columns)));
    }
    if (values_.rows() < plan_.count()) {
      const limpid::io::Checkpoint file(plan_.weights);
      const Crop::Vit vit(file, {.heads = Crop::heads});
      const Clock::time_point start = Clock::now();
      const Index before = values_.rows();
      while (values_.rows() < plan_.count()) {
        const Index first = values_.rows(), count = std::min<Index>(plan_.count() - first, pool.workers());
        progress(text("dinov2, %ld of %ld crops", long(first), long(plan_.count())) +
                     (first == before
                          ? std::string()
                          : ", " + duration(since(start) * double(plan_.count() - first) / double(first - before)) +
                                " left"),
                 false);
        values_.conservativeResize(first + count, columns);
        pool.run(count, [&](Index task, int) { judge(vit, first + task); });
        Safetensors part;
        part.tensors["values"] = Tensor::from(
            Eigen::Map<const Mat<double>>(values_.data(), values_.rows(), values_.cols()), limpid::io::DType::f64);
        part.metadata["plan"] = plan_.words();
        limpid::io::write_safetensors(path, part);
      }
      progress("dinov2, done", true);
    }
    values_.conservativeResize(plan_.count(), columns);
  }

  /// Of one square.
  double check() const {
    const limpid::io::Checkpoint file(plan_.weights);
    const Crop::Vit vit(file, {.heads = Crop::heads});
    Crop g(vit, square(0), removed());
    return check_maps(g);
  }

  std::string report() const {
    const Index photographs = std::ssize(images_);
    std::string out = "\ndinov2: squares of 224 x 224 pixels, patches of 14 x 14; at random places of each of " +
                      std::to_string(photographs) + " photographs: " + std::to_string(plan_.crops) + ".\n";
    out +=
        "The model has no classes. Explained and measured is s, how far the class token c has come from e, that of a\n"
        "square without any patch, to c0, that of the intact one: <c - e, c0 - e> / |c0 - e|^2, from 0 to 1.\n"
        "A patch is removed by ";
    out += plan_.replace == "mean" ? "the mean colour of the training images" : "black";
    out +=
        " in its place, 16 at a time. Areas are trapezoids under s over the fraction\n"
        "that is gone, the most relevant first (deletion), or that is back (insertion). SaCo: 8 groups of 32 patches.\n"
        "Squares of one photograph are not independent, so a photograph is one number, the mean of its squares.\n";
    out += has_intervals()
               ? "Mean ± half of the 95 % interval, by a bootstrap over photographs, 2000 draws; * better than "
                 "random, ! worse:\nthe interval of the difference is without 0.\n\n"
               : "Mean (least to most of the photographs): of less than five no interval is told. * better "
                 "than random in every\nphotograph, ! worse in every one; where nothing is told apart that "
                 "is so of four in one of eight cases.\n\n";
    out += "| method               |";
    std::string rule = "| --- |";
    for (const char* m : metrics) out += text(" %-24s |", m), rule += " --- |";
    out += "\n" + rule + "\n";
    for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
      out += text("| %-20s |", plan_.methods[m].name);
      for (std::size_t k = 0; k < metrics.size(); ++k) {
        const std::vector<double> of = by_photograph(m, k, false), above = by_photograph(m, k, true);
        const int beside = beside_random(above, more[k]);
        const char* mark = beside > 0 ? "*" : beside < 0 ? "!" : " ";
        if (has_intervals()) {
          const auto i = interval(of);
          out += text(" %6.3f ± %.3f %s         |", i.mean, (i.high - i.low) / 2, mark);
        } else {
          const auto [low, high] = std::minmax_element(of.begin(), of.end());
          double mean = 0;
          for (const double v : of) mean += v / static_cast<double>(of.size());
          out += text(" %6.3f (%.3f to %.3f) %s |", mean, *low, *high, mark);
        }
      }
      out += "\n";
    }
    return out;
  }

  std::string csv() const {
    std::string out = "photograph,crop,method,metric,value\n";
    for (Index i = 0; i < plan_.count(); ++i)
      for (std::size_t m = 0; m < plan_.methods.size(); ++m)
        for (std::size_t k = 0; k < metrics.size(); ++k)
          out += std::filesystem::path(plan_.photographs[photograph_of(i)]).stem().string() +
                 text(",%ld,\"%s\",%s,%.6f\n", long(i / std::ssize(images_)), plan_.methods[m].name, metrics[k],
                      values_(i, column(m, k)));
    return out;
  }

 private:
  static Index column(std::size_t method, std::size_t metric) {
    return static_cast<Index>(method * metrics.size() + metric);
  }
  bool has_intervals() const { return std::ssize(images_) >= least; }
  /// Crop by crop through the photographs.
  std::size_t photograph_of(Index i) const { return static_cast<std::size_t>(i) % images_.size(); }

  limpid::io::Image square(Index i) const {
    const limpid::io::Image& all = images_[photograph_of(i)];
    std::mt19937_64 random(static_cast<std::uint64_t>(plan_.seed * 1000003 + i));
    const auto place = [&](Index size) {
      return static_cast<Index>(random() % static_cast<std::uint64_t>(size - Crop::side + 1));
    };
    const Index row = place(all.rows), col = place(all.cols);
    return limpid::io::crop(all, row, col, Crop::side, Crop::side);
  }

  /// What a pixel that was removed is.
  Mat<float> removed() const {
    if (plan_.replace == "mean") return Mat<float>::Zero(1, 3);
    return limpid::io::normalised<float>(limpid::io::Image(1, 1, 3), {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225});
  }
  /// All methods and metrics of a crop.
  void judge(const Crop::Vit& vit, Index i) {
    Crop g(vit, square(i), removed());
    const Index n = g.patches(), some = n / steps;
    const Mat<float> instead = g.none.row(0);
    for (std::size_t m = 0; m < plan_.methods.size(); ++m) {
      const Mat<float> r = plan_.methods[m].run(g, static_cast<std::uint64_t>(plan_.seed * 1000003 + i));
      const std::vector<Index> order = limpid::relevance_order(r);
      Mat<float> without = g.x, only = g.none;
      double deletion = 0.5, insertion = 0.5;  // trapezoids, of s 1 and 0 at the ends
      for (Index k = 0; k < n - some; k += some) {
        for (Index j = k; j < k + some; ++j) {
          const Index at = order[static_cast<std::size_t>(j)];
          without.row(at) = instead, only.row(at) = g.x.row(at);
        }
        deletion += static_cast<double>(g.left(without)), insertion += static_cast<double>(g.left(only));
      }
      const limpid::Perturber<float> perturber(
          g.x, r, instead, {0}, [&](const Mat<float>& at) { return Mat<float>::Constant(1, 1, g.left(at)); });
      values_(i, column(m, 0)) = deletion / double(steps), values_(i, column(m, 1)) = insertion / double(steps);
      values_(i, column(m, 2)) = perturber.saco(saco_groups).front();
    }
  }

  std::vector<double> by_photograph(std::size_t method, std::size_t k, bool above_random) const {
    std::vector<double> out(images_.size());
    for (Index i = 0; i < plan_.count(); ++i)
      out[photograph_of(i)] += (values_(i, column(method, k)) - (above_random ? values_(i, column(0, k)) : 0)) /
                               static_cast<double>(plan_.crops);
    return out;
  }
  limpid::MeanInterval interval(const std::vector<double>& of) const {
    return limpid::bootstrap_mean(of, 0.95, 2000, static_cast<std::uint64_t>(plan_.seed));
  }
  int beside_random(const std::vector<double>& above, bool more_is_better) const {
    double low = *std::min_element(above.begin(), above.end()), high = *std::max_element(above.begin(), above.end());
    if (has_intervals()) {
      const auto i = interval(above);
      low = i.low, high = i.high;
    }
    return low > 0 ? (more_is_better ? 1 : -1) : high < 0 ? (more_is_better ? -1 : 1) : 0;
  }

  const PhotographPlan& plan_;
  std::vector<limpid::io::Image> images_;
  Mat<double> values_;
};

}  // namespace training
