// limpid: what training takes besides a model: named parameters, AdamW, rates, the loss, images drawn anew.
// SPDX-License-Identifier: MIT
//
// All of it is cut by shape and drawn by number, never by thread or by time, so that a run is the same, bit by bit, on
// any number of threads and after any number of interruptions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limpid/core/matrix.hpp>
#include <limpid/io/idx.hpp>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace training {

using limpid::Index;
using limpid::Mat;
using limpid::MutView;
using limpid::View;

/// Random numbers by their place: Random(seed, epoch, image) gives the same ones whatever was drawn before (splitmix64;
/// Steele, Lea, Flood 2014). So seed and epoch are all of the random state that a checkpoint has to keep.
class Random {
 public:
  template <class... Place>
  explicit Random(std::uint64_t seed, Place... place) : state_(seed) {
    ((state_ = bits() ^ static_cast<std::uint64_t>(place)), ...);
  }
  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// 0 to count - 1.
  Index below(Index count) { return static_cast<Index>(uniform() * static_cast<double>(count)); }
  /// Standard normal (Box and Muller 1958).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));  // drawn first, whatever the compiler
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  std::uint64_t state_;
};

/// How a parameter begins, and whether it decays: a weight uniform in +-sqrt(6 / (inputs + outputs)) (Glorot, Bengio
/// 2010) and decaying; a token normal of standard deviation 0.02; biases 0; the gammas of norms 1.
enum class Start { weight, token, zero, one };

struct Parameter {
  std::string name;
  Index rows, cols, first;
  Start start;
  Index size() const { return rows * cols; }
};

/// The parameters of a model: names, shapes, and where each lies in one array of all their numbers. Gradients and the
/// optimiser's moments are arrays of the same layout.
class Parameters {
 public:
  void add(const std::string& name, Index rows, Index cols, Start start) {
    places_[name] = all_.size();
    all_.push_back({name, rows, cols, size_, start});
    constexpr Index line = 16;  // each begins at a cache line
    size_ += (rows * cols + line - 1) / line * line;
  }
  const std::vector<Parameter>& all() const { return all_; }
  /// Entries of an array of all of them.
  Index size() const { return size_; }
  /// Numbers among them.
  Index count() const {
    Index sum = 0;
    for (const Parameter& p : all_) sum += p.size();
    return sum;
  }
  const Parameter* find(const std::string& name) const {
    const auto place = places_.find(name);
    return place == places_.end() ? nullptr : &all_[place->second];
  }
  template <class S>
  MutView<S> view(Mat<S>& numbers, const std::string& name) const {
    const Parameter& p = all_[places_.at(name)];
    return {numbers.data() + p.first, p.rows, p.cols, p.cols};
  }
  template <class S>
  View<S> view(const Mat<S>& numbers, const std::string& name) const {
    return view(const_cast<Mat<S>&>(numbers), name);
  }
  template <class S>
  Mat<S> started(std::uint64_t seed) const {
    Mat<S> numbers = Mat<S>::Zero(1, size_);
    for (std::size_t i = 0; i < all_.size(); ++i) {
      const Parameter& p = all_[i];
      Random random(seed, i);
      const double bound = std::sqrt(6.0 / static_cast<double>(p.rows + p.cols));
      for (Index j = p.first; j < p.first + p.size(); ++j)
        numbers(0, j) = S(p.start == Start::weight  ? bound * (2 * random.uniform() - 1)
                          : p.start == Start::token ? 0.02 * random.normal()
                          : p.start == Start::one   ? 1.0
                                                    : 0.0);
    }
    return numbers;
  }

 private:
  std::vector<Parameter> all_;
  std::map<std::string, std::size_t> places_;
  Index size_ = 0;
};

/// AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101): m and v the running means of g and g^2,
///     w <- w - rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay w),
/// weights alone decaying.
template <class S>
struct AdamW {
  double decay = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  Mat<S> m, v;
  Index t = 0;  ///< steps taken

  /// One step along g * factor.
  void step(const Parameters& parameters, Mat<S>& w, const Mat<S>& g, double factor, double rate) {
    ++t;
    const double a = rate / (1 - std::pow(beta1, static_cast<double>(t)));
    const S b = S(1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(t))));
    for (const Parameter& p : parameters.all()) {
      const auto of = [&](auto& numbers) { return numbers.middleCols(p.first, p.size()).array(); };
      auto mp = of(m), vp = of(v), wp = of(w);
      const auto gp = of(g) * S(factor);
      mp = S(beta1) * mp + S(1 - beta1) * gp;
      vp = S(beta2) * vp + S(1 - beta2) * gp.square();
      const S kept = p.start == Start::weight ? S(1 - rate * decay) : S(1);
      wp = kept * wp - S(a) * mp / (b * vp.sqrt() + S(eps));
    }
  }
};

/// The rate of step t of `steps`: a straight line up to `rate` over the first `warmup`, then half a cosine down to 0
/// (Loshchilov, Hutter 2017, arXiv 1608.03983).
inline double rate_of(Index t, Index steps, Index warmup, double rate) {
  if (t < warmup) return rate * static_cast<double>(t + 1) / static_cast<double>(warmup);
  const double through = static_cast<double>(t - warmup) / static_cast<double>(std::max<Index>(1, steps - warmup));
  return rate * 0.5 * (1 + std::cos(3.141592653589793 * through));
}

/// What a gradient is multiplied by so that its norm is at most `most` (Pascanu, Mikolov, Bengio 2013, arXiv
/// 1211.5063); `most` 0: by 1.
template <class S>
double clipping(const Mat<S>& gradient, double most) {
  const double norm = std::sqrt(gradient.template cast<double>().squaredNorm());
  return most > 0 && norm > most ? most / norm : 1;
}

/// Cross entropy against 1 - smoothing of a label and smoothing / classes of every class (Szegedy et al. 2016, arXiv
/// 1512.00567). Returns the sum over images; d: its gradient times `factor`. Counts in `right` the images whose largest
/// logit is their label's.
template <class S>
double cross_entropy(View<S> logits, const std::vector<int>& labels, double smoothing, double factor, MutView<S> d,
                     Index& right) {
  double loss = 0;
  const Index classes = logits.cols;
  std::vector<double> p(static_cast<std::size_t>(classes));
  for (Index i = 0; i < logits.rows; ++i) {
    const S* row = logits.row(i);
    const Index best = std::max_element(row, row + classes) - row, label = labels[static_cast<std::size_t>(i)];
    double sum = 0;
    for (Index c = 0; c < classes; ++c)
      sum += p[static_cast<std::size_t>(c)] = std::exp(static_cast<double>(row[c]) - static_cast<double>(row[best]));
    const double lse = static_cast<double>(row[best]) + std::log(sum);
    for (Index c = 0; c < classes; ++c) {
      const double wanted = (c == label ? 1 - smoothing : 0) + smoothing / static_cast<double>(classes);
      loss += wanted * (lse - static_cast<double>(row[c]));
      if (d.given()) d(i, c) = S(factor * (p[static_cast<std::size_t>(c)] / sum - wanted));
    }
    right += best == label ? 1 : 0;
  }
  return loss;
}

/// Images and what they show, as bytes.
struct LabelledImages {
  Index count = 0, rows = 0, cols = 0;
  std::vector<std::uint8_t> pixels, labels;

  const std::uint8_t* image(Index i) const { return pixels.data() + i * rows * cols; }
};

/// The first `most` images (0: all) of name-images-idx3-ubyte and name-labels-idx1-ubyte in a folder, as they are or
/// with .gz. Throws FormatError where the two do not fit, there are none, or a label is not below `classes`.
inline LabelledImages read_labelled(const std::string& folder, const std::string& name, Index most, Index classes) {
  const auto read = [&](const std::string& file) {
    const std::string path = folder + "/" + name + file;
    return std::pair(
        limpid::io::read_idx(std::filesystem::exists(path + ".gz") ? path + ".gz" : path, most == 0 ? -1 : most), path);
  };
  const auto [images, images_path] = read("-images-idx3-ubyte");
  const auto [labels, labels_path] = read("-labels-idx1-ubyte");
  const auto refuse = [](const std::string& path, const limpid::io::Tensor& found, const std::string& wanted) {
    throw limpid::io::FormatError(path + ": found the shape " + limpid::io::detail::shape_of(found.shape) +
                                  ", wanted " + wanted);
  };
  if (images.shape.size() != 3 || images.size() == 0) refuse(images_path, images, "images with pixels (3 axes)");
  if (labels.shape.size() != 1 || labels.shape[0] != images.shape[0])
    refuse(labels_path, labels, "a label for each of " + std::to_string(images.shape[0]) + " images");
  LabelledImages all{images.shape[0], images.shape[1], images.shape[2], images.values<std::uint8_t>(),
                     labels.values<std::uint8_t>()};
  const auto largest = std::max_element(all.labels.begin(), all.labels.end());
  if (*largest >= classes)
    throw limpid::io::FormatError(labels_path + ": found the label " + std::to_string(int(*largest)) +
                                  ", wanted 0 to " + std::to_string(classes - 1));
  return all;
}

/// Mean and standard deviation of all pixels.
struct Spread {
  double mean = 0, deviation = 1;
};
inline Spread spread_of(const LabelledImages& images) {
  std::uint64_t sum = 0, squares = 0;
  for (const std::uint64_t p : images.pixels) sum += p, squares += p * p;
  const double n = static_cast<double>(images.pixels.size()), mean = static_cast<double>(sum) / n;
  const double variance = static_cast<double>(squares) / n - mean * mean;
  return {mean, variance > 0 ? std::sqrt(variance) : 1};
}

/// How an image is laid down: moved by whole pixels, with 0 where it leaves room, and mirrored left to right.
struct Moved {
  Index down = 0, right = 0;
  bool mirrored = false;

  static Moved drawn(Random random, Index most) {
    Moved m;
    m.down = random.below(2 * most + 1) - most, m.right = random.below(2 * most + 1) - most;
    m.mirrored = random.below(2) == 1;
    return m;
  }
};

/// The square patches of an image, a row each, pixels less the mean over the deviation.
template <class S>
void put_patches(const LabelledImages& images, Index image, const Moved& moved, const Spread& spread, Index patch,
                 MutView<S> to) {
  const std::uint8_t* from = images.image(image);
  const Index rows = images.rows, cols = images.cols, across = cols / patch;
  const S mean = S(spread.mean), factor = S(1 / spread.deviation);
  for (Index t = 0; t < to.rows; ++t)
    for (Index i = 0; i < to.cols; ++i) {
      const Index r = t / across * patch + i / patch - moved.down, c = t % across * patch + i % patch;
      const Index at = (moved.mirrored ? cols - 1 - c : c) - moved.right;
      const bool inside = r >= 0 && r < rows && at >= 0 && at < cols;
      to(t, i) = ((inside ? S(from[r * cols + at]) : S(0)) - mean) * factor;
    }
}

/// The order in which an epoch takes the images (Fisher, Yates).
inline std::vector<Index> shuffled(Index count, Random random) {
  std::vector<Index> order(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) order[static_cast<std::size_t>(i)] = i;
  for (Index i = count - 1; i > 0; --i)
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.below(i + 1))]);
  return order;
}

}  // namespace training
