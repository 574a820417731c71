// limpid: photographs cleaned by attention. Every pixel is a token that looks at the pixels in a window round it, and
// each filter is one operator of the library.
// SPDX-License-Identifier: MIT
//
// Query and key of a pixel: the patch of the noisy picture around it. Value: the pixel, or the whole patch, laid back
// over the picture. So row i of the map A holds the weights with which pixel i is averaged from those near it, and it
// can be looked at.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <functional>
#include <limpid/exec/thread_pool.hpp>
#include <limpid/io/npy.hpp>
#include <limpid/io/sheet.hpp>
#include <limpid/layer/patches.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <limpid/op/bilateral.hpp>
#include <limpid/op/boosting.hpp>
#include <limpid/op/differential.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/local.hpp>
#include <thread>

#include "image_quality.hpp"
#include "option_checks.hpp"
#include "peers.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::io::Image;

/// What the user may choose of the filters.
struct Settings {
  Index side = 7, window = 21;
  double bandwidth = 0;  // in place of the factor that a filter has by itself; 0: that
  double factor(double own) const { return bandwidth > 0 ? bandwidth : own; }
};

/// What there is to clean, and how.
struct Task {
  Image noisy;
  double sigma;  // of the noise, range 1
  Settings settings;
  limpid::ExecutorRef executor;
};

/// A noisy picture, or a part of one, laid out as tokens.
struct Scene : Task {
  limpid::ImagePatches grid;
  Mat<float> patch;  // n x (channels side^2)
  Mat<float> place;  // n x 2, row and column

  explicit Scene(Task task) : Task(std::move(task)), grid(grid_of(settings.side)) {
    patch = patches_of(noisy.pixels, grid);
    place = places(noisy.rows, noisy.cols);
  }
  limpid::ImagePatches grid_of(Index side) const { return {noisy.rows, noisy.cols, side}; }
  Mat<float> patches_of(const Mat<float>& pixels, const limpid::ImagePatches& g) const {
    Mat<float> out(g.tokens(), pixels.cols() * g.patch * g.patch);
    limpid::patches(g, pixels, out, {.executor = executor});
    return out;
  }
  /// Two noisy patches of the same content lie sqrt(2) times that apart.
  double unit(Index side) const { return sigma * static_cast<double>(side) * std::sqrt(double(noisy.channels())); }
  double unit() const { return unit(settings.side); }
  limpid::Neighbourhood near() const {
    return limpid::neighbourhood({noisy.rows, noisy.cols}, {settings.window, settings.window});
  }
};

/// Arrays made for one call; inputs are views and need somebody who keeps what they look at.
class Keep {
 public:
  const Mat<float>& operator()(double number) { return (*this)(Mat<float>::Constant(1, 1, float(number)).eval()); }
  const Mat<float>& operator()(Mat<float> array) { return arrays_.emplace_back(std::move(array)); }

 private:
  std::deque<Mat<float>> arrays_;
};

/// What becomes of a score -|p_i - p_j|^2 / h^2 before the exponential.
struct PixelScore {
  float noise = -1;                    // what noise alone takes from a score is given back, up to 0; negative: is not
  float space = 0;                     // - space |x_i - x_j|^2
  const float* place = nullptr;        // n x 2
  const float* centre = nullptr;       // the score of every pixel with itself, in place of its own
  bool others = false;                 // a pixel does not see itself, and scores count
  static constexpr float cold = 1000;  // so many times

  template <class S>
  S operator()(S s, const limpid::At& at) const {
    const Index i = at.row(), j = at.key();
    if (i == j && others) return -std::numeric_limits<S>::infinity();
    if (i == j && centre) return S(centre[i]);
    if (noise >= 0) s = std::min(s + S(noise), S(0));
    if (space > 0) {
      const S y = S(place[2 * i] - place[2 * j]), x = S(place[2 * i + 1] - place[2 * j + 1]);
      s -= S(space) * (y * y + x * x);
    }
    return others ? S(cold) * s : s;
  }
};
/// Its derivative. The rows of maps that are drawn do not ask for it: they are gradients of values.
struct PixelSlope {
  template <class S>
  S operator()(S, const limpid::At&) const {
    return S(1);
  }
};
auto pixel_map(const Scene& s, const PixelScore& score) {
  return limpid::nlm(limpid::chain(s.near(), limpid::score_mod(score, PixelSlope{})));
}
using PixelMap = decltype(pixel_map(std::declval<const Scene&>(), {}));

/// Queries and keys for such a map, from any patches.
template <class Op>
limpid::Inputs<Op, float> map_inputs(const Mat<float>& patch, const Mat<float>& h) {
  limpid::Inputs<Op, float> in;
  in.q = patch, in.k = patch, in.h = h;
  return in;
}

/// The largest score of every pixel with another one: log-sum-exp of scores so cold that the largest alone counts.
Mat<float> largest_of_others(const Scene& s, PixelScore score, const Mat<float>& patch, const Mat<float>& h) {
  score.others = true;
  auto in = map_inputs<PixelMap>(patch, h);
  in.v = s.noisy.pixels;
  Mat<float> out(s.noisy.pixels.rows(), s.noisy.channels()), lse;
  limpid::forward(pixel_map(s, score), in, out, {.executor = s.executor, .lse = &lse});
  for (Index i = 0; i < lse.size(); ++i)
    lse.data()[i] = std::isfinite(lse.data()[i]) ? lse.data()[i] / PixelScore::cold : 0;
  return lse;
}

/// One row of a map, and the cleaned pixel that it must give.
struct MapRow {
  Mat<float> weights;  // n x 1
  float cleaned = 0;   // in the first channel
};

/// One row of the table.
struct Filter {
  std::string name, label, formula;  // label: the name below small pictures
  Index windows;                     // one after the other: a pixel hangs on those so many half windows away
  std::function<void(const Scene&, Mat<float>& out)> run;
  std::function<MapRow(const Scene&, Index pixel)> map_row;
};

/// An operator and its inputs but for the values, made out of a scene, and what it averages: pixels, or whole patches.
template <class Op>
struct Averaging {
  Op op;
  limpid::Inputs<Op, float> in;
  std::optional<limpid::ImagePatches> whole;  // the patches that are averaged and laid back
  float factor = 1;                           // of the result

  void run(const Scene& s, Mat<float>& out, limpid::Saved<Op, float>* saved = nullptr) {
    if (!whole) {
      in.v = s.noisy.pixels;
      limpid::forward(op, in, out, {.saved = saved, .executor = s.executor});
    } else {
      const Mat<float> values = s.patches_of(s.noisy.pixels, *whole);
      Mat<float> means(values.rows(), values.cols());
      in.v = values;
      limpid::forward(op, in, means, {.saved = saved, .executor = s.executor});
      limpid::fold_patches(*whole, means, out, {.executor = s.executor});
      in.v = {};
    }
    if (factor != 1) out *= factor;
  }
  /// The result is linear in the noisy pixels, so a row of the map is the gradient of one cleaned pixel.
  MapRow map_row(const Scene& s, Index pixel) {
    const Index n = s.noisy.pixels.rows();
    Mat<float> out(n, s.noisy.channels()), e = Mat<float>::Zero(n, s.noisy.channels()), weights = e;
    limpid::Saved<Op, float> saved;
    run(s, out, &saved);
    e(pixel, 0) = factor;
    limpid::Grads<Op, float> grad;
    if (!whole) {
      in.v = s.noisy.pixels;
      grad.v = weights;
      limpid::backward(op, in, saved, e, grad, {.executor = s.executor});
    } else {
      const Mat<float> values = s.patches_of(s.noisy.pixels, *whole);
      Mat<float> times = Mat<float>::Ones(values.rows(), values.cols()), count = e;
      limpid::patches_backward(*whole, times, count);
      e(pixel, 0) /= count(pixel, 0);
      const Mat<float> dmeans = s.patches_of(e, *whole);
      in.v = values;
      grad.v = times;
      limpid::backward(op, in, saved, dmeans, grad, {.executor = s.executor});
      limpid::patches_backward(*whole, times, weights);
      in.v = {};
    }
    return {weights.col(0), out(pixel, 0)};
  }
};

/// A filter from make(scene, keep) -> Averaging.
template <class Make>
Filter filter(std::string name, std::string label, std::string formula, Index windows, Make make) {
  return {std::move(name),
          std::move(label),
          std::move(formula),
          windows,
          [make](const Scene& s, Mat<float>& out) {
            Keep keep;
            make(s, keep).run(s, out);
          },
          [make](const Scene& s, Index pixel) {
            Keep keep;
            return make(s, keep).map_row(s, pixel);
          }};
}

/// What stands between plain non-local means and the better ones.
struct Ways {
  double factor;           // h in units of sigma side
  bool subtracted = true;  // |p_i - p_j|^2 less what noise adds to it, 2 sigma^2 a pixel, 0 at least
  bool centre = false;     // a pixel's own weight is the largest of the others'
  bool whole = false;      // whole patches are averaged
  double space = 0;        // width of the spatial kernel, in pixels; 0: none
};

/// Any operator over a map in that way; op(map) makes it.
template <class MakeOp>
auto averaging(const Scene& s, Keep& keep, const Ways& ways, MakeOp make_op) {
  const double factor = s.settings.factor(ways.factor);
  const Mat<float>& h = keep(factor * s.unit());
  PixelScore score;
  if (ways.subtracted) score.noise = static_cast<float>(2 / (factor * factor));
  if (ways.space > 0) score.space = static_cast<float>(1 / (ways.space * ways.space));
  score.place = s.place.data();
  if (ways.centre) score.centre = keep(largest_of_others(s, score, s.patch, h)).data();
  const auto op = make_op(pixel_map(s, score));
  using Op = std::remove_const_t<decltype(op)>;
  Averaging<Op> out{op, map_inputs<Op>(s.patch, h), {}};
  if (ways.whole) out.whole = s.grid;
  return out;
}
template <class MakeOp>
Filter way(std::string name, std::string label, std::string formula, Index windows, const Ways& ways, MakeOp make_op) {
  return filter(std::move(name), std::move(label), std::move(formula), windows,
                [=](const Scene& s, Keep& keep) { return averaging(s, keep, ways, make_op); });
}
constexpr auto plain = [](const PixelMap& map) { return map; };

/// Differential attention has dot products, so the distance is written as one: -|p_i - p_j|^2 / h^2 is, up to a
/// constant of the row, (p_i, 1) . (2 p_j, -|p_j|^2) / h^2. Two maps, the second with twice the h^2.
constexpr double lambda = 0.2;  // that of the paper's first layer
auto two_widths(const Scene& s, Keep& keep, double own, double space) {
  const auto op = limpid::differential(s.near(), {.scale = 1, .norm = limpid::HeadNorm::none});
  using Op = std::remove_const_t<decltype(op)>;
  const Index n = s.patch.rows(), d = s.patch.cols();
  const double h = s.settings.factor(own) * s.unit();
  Mat<float> q(n, 2 * (d + 3)), k(n, 2 * (d + 3)), place = s.place, centred = s.patch.array() - 0.5f;
  place.rowwise() -= place.colwise().mean().eval();
  const float w = static_cast<float>(1 / (space * space));
  for (Index branch = 0; branch < 2; ++branch) {
    const float g = static_cast<float>(1 / (h * h)) / static_cast<float>(1 + branch);
    auto qb = q.middleCols(branch * (d + 3), d + 3), kb = k.middleCols(branch * (d + 3), d + 3);
    qb << centred, place, Mat<float>::Ones(n, 1);
    kb << 2 * g * centred, 2 * w * place, -g * centred.rowwise().squaredNorm() - w * place.rowwise().squaredNorm();
  }
  Averaging<Op> out{op,
                    limpid::qkv(keep(std::move(q)), keep(std::move(k)), limpid::View<float>()),
                    {},
                    static_cast<float>(1 / (1 - lambda))};
  out.in.lambda = keep(lambda);
  return out;
}

/// A stack of PID layers on one map: every layer smooths what the last one gave and pulls it back to the noisy picture.
Filter pid_filter(Index layers, const Ways& ways, std::string formula) {
  const auto make = [=](const Scene& s, Keep& keep) {
    return averaging(s, keep, ways, [](const PixelMap& map) {
      return limpid::pid(map, {.lambda_p = 0.1, .lambda_i = 0, .lambda_d = 0, .beta = 1});
    });
  };
  using Op = decltype(make(std::declval<const Scene&>(), std::declval<Keep&>()).op);
  Filter f{"PID", "PID", std::move(formula), layers, {}, {}};
  f.run = [=](const Scene& s, Mat<float>& out) {
    Keep keep;
    auto a = make(s, keep);
    limpid::PidStack<Op, float> stack(a.op, {.keep = false});
    Mat<float> v = s.noisy.pixels;
    for (Index l = 0; l < layers; ++l) {
      a.in.v = v;
      stack.forward(a.in, out, {.executor = s.executor});
      if (l + 1 < layers) v.swap(out);
    }
  };
  f.map_row = [=](const Scene& s, Index pixel) {
    Keep keep;
    auto a = make(s, keep);
    limpid::PidStack<Op, float> stack(a.op);
    const Index n = s.noisy.pixels.rows(), channels = s.noisy.channels();
    std::vector<Mat<float>> v{s.noisy.pixels};
    for (Index l = 0; l < layers; ++l) {
      a.in.v = v.back();
      Mat<float> out(n, channels);
      stack.forward(a.in, out, {.executor = s.executor});
      v.push_back(std::move(out));
    }
    Mat<float> g = Mat<float>::Zero(n, channels), dv = g;
    g(pixel, 0) = 1;
    for (Index l = layers - 1; l >= 0; --l) {
      a.in.v = v[static_cast<std::size_t>(l)];
      limpid::Grads<Op, float> grad;
      grad.v = dv;
      stack.backward(a.in, g, grad, {.executor = s.executor});
      g.swap(dv);
    }
    return MapRow{g.col(0), v.back()(pixel, 0)};
  };
  return f;
}

/// Twice: the weights of a second pass come from patches of what the first one gave, with a rest of the noisy picture.
struct SecondPass {
  double mix, factor, space;
  Index side;  // of its patches, at most
};
auto second_pass(const Scene& s, Keep& keep, const Ways& first, const SecondPass& second) {
  Mat<float> guide(s.noisy.pixels.rows(), s.noisy.channels());
  Keep of_first;
  averaging(s, of_first, first, plain).run(s, guide);
  guide = float(second.mix) * guide + float(1 - second.mix) * s.noisy.pixels;
  const auto grid = s.grid_of(std::min(second.side, s.settings.side));
  const Mat<float>& patch = keep(s.patches_of(guide, grid));
  const Mat<float>& h = keep(s.settings.factor(second.factor) * s.unit(grid.patch));
  PixelScore score;
  score.space = static_cast<float>(1 / (second.space * second.space));
  score.place = s.place.data();
  score.centre = keep(largest_of_others(s, score, patch, h)).data();
  return Averaging<PixelMap>{pixel_map(s, score), map_inputs<PixelMap>(patch, h), grid};
}

/// The rows of the table, in order; a further operator is one more entry. The few numbers were chosen once, by mean
/// PSNR over sigma 15, 25 and 50, on coffee.png and chelsea.png, neither of which the table reports.
std::vector<Filter> filters() {
  using limpid::BoostingScheme;
  const auto boosting = [](BoostingScheme scheme, Index steps) {
    return [=](const PixelMap& map) { return limpid::boosting(map, {.scheme = scheme, .steps = steps}); };
  };
  return {
      way("NLM", "NLM", "A v, A = softmax(-|p_i - p_j|^2 / h^2), p the patches, h = 0.9 sigma side", 1,
          {.factor = 0.9, .subtracted = false}, plain),
      way("subtracted", "subtracted", "the same of max(|p_i - p_j|^2 - 2 sigma^2 side^2, 0), h = 0.6 sigma side", 1,
          {.factor = 0.6}, plain),
      way("centre", "centre", "and a pixel's own weight is the largest of the others'; h = 0.55 sigma side", 1,
          {.factor = 0.55, .centre = true}, plain),
      way("patches", "patches", "and v whole patches, laid back over the picture; h = 0.45 sigma side", 1,
          {.factor = 0.45, .centre = true, .whole = true}, plain),
      way("near", "near", "and - |x_i - x_j|^2 / 7^2, x the place in pixels; h = 0.55 sigma side", 1,
          {.factor = 0.55, .centre = true, .whole = true, .space = 7}, plain),
      filter("twice", "twice",
             "the same again, with 5 x 5 patches of 0.85 near + 0.15 noisy, nothing subtracted; h = 0.42 sigma 5", 2,
             [](const Scene& s, Keep& keep) {
               return second_pass(s, keep, {.factor = 0.45, .centre = true, .whole = true, .space = 7},
                                  {.mix = 0.85, .factor = 0.42, .space = 7, .side = 5});
             }),
      filter("bilateral", "bilateral", "A = softmax(-|v_i - v_j|^2 / (5 sigma)^2 - |x_i - x_j|^2 / 2^2), v the pixels",
             1,
             [](const Scene& s, Keep& keep) {
               const auto op = limpid::bilateral_classic(s.near());
               using Op = std::remove_const_t<decltype(op)>;
               limpid::Inputs<Op, float> in;
               in.q = s.noisy.pixels, in.k = s.noisy.pixels;
               in.h_range = keep(s.settings.factor(5) * s.unit(1));
               in.pq = s.place, in.pk = s.place, in.h_space = keep(2);
               return Averaging<Op>{op, in, {}};
             }),
      way("twicing", "twicing", "(2A - A^2) v, A and v as in near, here and below; h = 0.8 sigma side", 2,
          {.factor = 0.8, .centre = true, .whole = true, .space = 7},
          [](const PixelMap& map) { return limpid::twicing(map); }),
      way("diffusion", "diffusion", "A^2 v: diffusion, 2 steps of 1; h = 0.35 sigma side", 2,
          {.factor = 0.35, .centre = true, .whole = true, .space = 7}, boosting(BoostingScheme::diffusion, 2)),
      way("l2boost", "l2boost", "(I - (I - A)^3) v: L2 boosting, 2 steps of 1; h = 1 sigma side", 3,
          {.factor = 1, .centre = true, .whole = true, .space = 7}, boosting(BoostingScheme::l2boost, 2)),
      filter("SOS", "SOS", "u <- A (v + u) / 2 from u = A v: SOS, 2 steps, rho = 1, tau = 1/2; h = 0.4 sigma side", 3,
             [=](const Scene& s, Keep& keep) {
               const Ways ways{.factor = 0.4, .centre = true, .whole = true, .space = 7};
               auto out = averaging(s, keep, ways, boosting(BoostingScheme::sos, 2));
               out.in.tau = keep(0.5);
               return out;
             }),
      filter("differential", "diff.", "(A - 0.2 B) v / 0.8 of plain A, B with twice the h^2; h = 1.15 sigma side", 1,
             [](const Scene& s, Keep& keep) { return two_widths(s, keep, 1.15, 7); }),
      pid_filter(4, {.factor = 0.45, .space = 7},
                 "v <- A v + 0.1 (noisy - v), 4 layers: the P term alone, v pixels; h = 0.45 sigma side"),
  };
}

/// The noise of a picture by itself: the median size of differences across 2 x 2 squares (Donoho, Johnstone 1994).
double estimated_noise(const Image& image) {
  std::vector<float> sizes;
  for (Index c = 0; c < image.channels(); ++c)
    for (Index r = 0; r + 1 < image.rows; r += 2)
      for (Index k = 0; k + 1 < image.cols; k += 2)
        sizes.push_back(std::abs(image(r, k, c) - image(r, k + 1, c) - image(r + 1, k, c) + image(r + 1, k + 1, c)) /
                        2);
  if (sizes.empty()) return 0;
  const auto middle = sizes.begin() + static_cast<std::ptrdiff_t>(sizes.size() / 2);
  std::nth_element(sizes.begin(), middle, sizes.end());
  return static_cast<double>(*middle) / 0.6745;
}

/// A part of a picture, as much of it as there is.
Image cut(const Image& image, Index row, Index col, Index rows, Index cols) {
  row = std::clamp<Index>(row, 0, image.rows), col = std::clamp<Index>(col, 0, image.cols);
  Image out(std::min(rows, image.rows - row), std::min(cols, image.cols - col), image.channels());
  for (Index r = 0; r < out.rows; ++r)
    out.pixels.middleRows(r * out.cols, out.cols) = image.pixels.middleRows((row + r) * image.cols + col, out.cols);
  return out;
}

/// The filter over `strip` rows of a picture at a time: their patches, and those of the rows round them that their
/// pixels hang on, are all that there is at once. Equal to the whole but for roundings.
void run_by_strips(const Filter& filter, const Task& task, Index strip, Mat<float>& out) {
  const Image& noisy = task.noisy;
  const Index reach = filter.windows * (task.settings.window / 2) + 2 * task.settings.side;
  for (Index first = 0; first < noisy.rows; first += strip) {
    const Index top = std::max<Index>(0, first - reach), rows = std::min(strip, noisy.rows - first);
    const Scene part(
        {cut(noisy, top, 0, first + rows + reach - top, noisy.cols), task.sigma, task.settings, task.executor});
    Mat<float> cleaned(part.noisy.pixels.rows(), noisy.channels());
    filter.run(part, cleaned);
    out.middleRows(first * noisy.cols, rows * noisy.cols) =
        cleaned.middleRows((first - top) * noisy.cols, rows * noisy.cols);
  }
}

/// Says on stderr what is going on and how long it will take: one line that changes on a terminal, a line for every
/// change of what is said in a log.
class Progress {
 public:
  /// all: names of the steps to come, each as often as it comes.
  explicit Progress(std::map<std::string, Index> all) : left_(std::move(all)) {}

  void say(const std::string& what, const std::string& step) {
    double known = 0, seconds = 0;
    for (const auto& [name, took] : took_) known += took.first / took.second, seconds += 1;
    const double usual = seconds > 0 ? known / seconds : 0;
    double remaining = 0;
    for (const auto& [name, count] : left_) {
      const auto found = took_.find(name);
      remaining += double(count) * (found == took_.end() ? usual : found->second.first / found->second.second);
    }
    std::string left;
    if (usual > 0) left = remaining < 90 ? text(", %.0f s left", remaining) : text(", %.0f min left", remaining / 60);
    if (terminal_)
      std::fprintf(stderr, "\r%-78s", (what + ", " + step + left).c_str());
    else if (what != last_)
      std::fprintf(stderr, "%s%s\n", what.c_str(), left.c_str());
    last_ = what;
  }
  void done(const std::string& step, double took) {
    auto& sum = took_[step];
    sum.first += took, sum.second += 1;
    --left_[step];
  }
  void end() const {
    if (terminal_) std::fprintf(stderr, "\r%-78s\r", "");
  }

 private:
  const bool terminal_ = isatty(2) != 0;
  std::map<std::string, Index> left_;
  std::map<std::string, std::pair<double, double>> took_;  // seconds, times
  std::string last_;
};

/// Signed weights over the image: blue or red, the more the larger; at 0 the image is left as it is.
limpid::io::Rgb tint(float t) { return limpid::io::diverging(t < 0 ? -1.0f : 1.0f); }

/// Where one pixel looks: a row of every map over the noisy picture. A part of it is enough, as large as a filter
/// reaches.
std::vector<limpid::io::Tile> map_tiles(const Task& whole, const std::vector<Filter>& all,
                                        const std::vector<Image>& cleaned, const std::vector<Index>& pixel) {
  const Settings& s = whole.settings;
  const Index reach = 4 * (s.window / 2) + 2 * s.side, shown = std::min<Index>(reach, 3 * s.window / 2);
  const Index top = std::max<Index>(0, pixel[0] - reach), left = std::max<Index>(0, pixel[1] - reach);
  const Scene part({cut(whole.noisy, top, left, pixel[0] - top + reach + 1, pixel[1] - left + reach + 1), whole.sigma,
                    s, whole.executor});
  const Index row = pixel[0] - top, col = pixel[1] - left;
  const Index y = std::max<Index>(0, row - shown), x = std::max<Index>(0, col - shown);
  const auto near = [&](const Image& image) { return cut(image, y, x, row - y + shown + 1, col - x + shown + 1); };
  const Index factor = std::max<Index>(1, 220 / (2 * shown + 1));
  std::vector<limpid::io::Tile> tiles;
  const auto add = [&](const Image& image, const std::string& name, const std::string& line) {
    Image large = limpid::io::enlarge(near(image), factor);
    mark(large, row - y, col - x, factor);
    tiles.push_back({large, name, line});
  };
  const Image under = limpid::io::to_rgb(clipped(part.noisy));
  add(under, "noisy", "pixel " + std::to_string(pixel[0]) + ", " + std::to_string(pixel[1]));
  for (std::size_t f = 0; f < all.size(); ++f) {
    const MapRow found = all[f].map_row(part, row * part.noisy.cols + col);
    const float given = found.weights.col(0).dot(part.noisy.pixels.col(0)), wanted = cleaned[f](pixel[0], pixel[1]);
    if (!(std::abs(given - wanted) < 2e-3f))
      throw std::logic_error(all[f].name + ": the row of the map gives " + std::to_string(given) + ", the filter " +
                             std::to_string(wanted));
    const float low = found.weights.minCoeff(), high = found.weights.maxCoeff();
    const bool has_sign = low < -1e-6f * high;
    const limpid::View<float> grid(found.weights.data(), part.noisy.rows, part.noisy.cols, part.noisy.cols);
    add(limpid::io::overlay(under, grid, has_sign ? tint : limpid::io::perceptual), all[f].label,
        weight_text(has_sign ? low : 0) + " to " + weight_text(high));
  }
  return tiles;
}

/// What was taken away, grey where nothing was, three sigma of it as far as black or white.
Image method_noise(const Image& noisy, const Image& cleaned, double sigma) {
  Image out = noisy;
  out.pixels = ((noisy.pixels - cleaned.pixels).array() / float(6 * sigma) + 0.5f).matrix();
  return clipped(out);
}

/// "camera" of "/a/camera.png".
std::string stem(const std::string& path) { return std::filesystem::path(path).stem().string(); }

}  // namespace

int main(int argc, char** argv) try {
  const std::string photographs = LIMPID_EXAMPLES "/data/photographs/";
  std::vector<std::string> paths, only;
  std::string folder = "denoise-pictures";
  Settings settings;
  Index seeds = -1, limit = Index(1) << 24, crop = 0, detail = 192, strip_rows = -1;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency())), bits = 8;
  std::vector<double> sigmas;
  std::vector<Index> pixel;
  bool peers = true, colour = false, own_noise = false;

  CLI::App app("Cleans noisy photographs with the attention operators of limpid and says how well each one does.");
  const CLI::Validator named = option::named_path();
  app.add_option("--image", paths, "PNG files, 8 or 16 bit (default: the photographs that travel with the source)")
      ->check(named);
  app.add_flag("--colour,!--grey", colour, "filter colour as it is; otherwise it is made grey");
  app.add_option("--sigma", sigmas, "standard deviations of the noise that is added, of 255 (default: 15 25 50)")
      ->check(option::between(0.001, 10000));
  app.add_flag("--own-noise", own_noise, "add none: estimate the noise that the pictures have, and clean that");
  app.add_option("--seeds", seeds, "noise seeds to average over (default: 5, for --image 1)")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--filter", only, "names of the filters to run, as the table has them (default: all)");
  app.add_option("--patch", settings.side, "side of the patches, odd")->capture_default_str()->check(CLI::Range(1, 31));
  app.add_option("--window", settings.window, "side of the window a pixel looks at, odd")
      ->capture_default_str()
      ->check(CLI::Range(1, 255));
  app.add_option("--bandwidth", settings.bandwidth,
                 "h in units of sigma times the patch's side, in place of a filter's")
      ->check(option::between(0.001, 1000));
  app.add_option("--crop", crop, "only so many rows and columns from the middle")->check(CLI::Range(1, 1 << 20));
  app.add_option("--detail", detail, "rows and columns of the part that sheets show")
      ->capture_default_str()
      ->check(CLI::Range(16, 4096));
  app.add_option("--pixel", pixel, "row and column of the pixel whose row of the map is drawn")->expected(2);
  app.add_option("--bits", bits, "of the pictures written, 8 or 16")
      ->capture_default_str()
      ->check(CLI::IsMember({8, 16}));
  app.add_option("--strip", strip_rows,
                 "rows worked on at a time, 0: all (default: all of up to 2^20 pixels, otherwise 64)")
      ->check(CLI::Range(0, 1 << 28));
  app.add_option("--limit", limit, "most pixels of a picture")->capture_default_str()->check(CLI::Range(1, 1 << 28));
  app.add_option("--threads", threads, "workers of the thread pool (default: one a core)")->check(CLI::Range(1, 1024));
  app.add_option("--out", folder, "folder for the pictures")->capture_default_str()->check(named);
  app.add_flag("--peers,!--no-peers", peers, "compare with scikit-image and OpenCV where Python has them");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  for (const auto& [option, value] : {std::pair("--patch", settings.side), std::pair("--window", settings.window)})
    if (value % 2 == 0) throw CLI::ValidationError(option, "wanted an odd number, found " + std::to_string(value));
  if (own_noise && !sigmas.empty()) throw CLI::ValidationError("--own-noise", "wanted no --sigma beside it");
  const bool own = !paths.empty();
  if (seeds < 1) seeds = own || own_noise ? 1 : 5;
  if (!own) paths = {photographs + "camera.png", photographs + "astronaut.png"};
  std::map<std::string, std::string> named_so;  // pictures have the names of what they are of
  for (const std::string& path : paths)
    if (const auto [at, is_new] = named_so.try_emplace(stem(path), path); !is_new)
      throw CLI::ValidationError("--image",
                                 "found " + at->second + " and " + path + ", wanted files of different names");
  if (own_noise) sigmas = {0};
  if (sigmas.empty()) sigmas = {15, 25, 50};

  std::vector<Filter> all;
  for (Filter& f : filters())
    if (only.empty() || std::find(only.begin(), only.end(), f.name) != only.end()) all.push_back(std::move(f));
  for (const std::string& name : only)
    if (std::none_of(all.begin(), all.end(), [&](const Filter& f) { return f.name == name; })) {
      std::string known;
      for (const Filter& f : filters()) known += (known.empty() ? "" : ", ") + f.name;
      throw CLI::ValidationError("--filter", "found '" + name + "', wanted of " + known);
    }

  std::vector<Image> images;
  for (const std::string& path : paths) {
    if (std::filesystem::is_directory(path)) throw limpid::io::FormatError(path + ": is a folder, wanted a PNG file");
    const auto channels = colour ? limpid::io::Channels::as_stored : limpid::io::Channels::grey;
    Image image = limpid::io::read_png(path, channels, limit);
    if (crop > 0)
      image = cut(image, (image.rows - std::min(crop, image.rows)) / 2, (image.cols - std::min(crop, image.cols)) / 2,
                  crop, crop);
    if (own_noise && !(estimated_noise(image) > 0))
      throw std::invalid_argument(path + ": no noise was found in it, wanted some to clean");
    if (pixel.size() == 2 && (pixel[0] < 0 || pixel[0] >= image.rows || pixel[1] < 0 || pixel[1] >= image.cols))
      throw CLI::ValidationError("--pixel", std::to_string(pixel[0]) + ", " + std::to_string(pixel[1]) +
                                                " lies outside the image of " + std::to_string(image.rows) + " x " +
                                                std::to_string(image.cols));
    images.push_back(std::move(image));
  }
  std::filesystem::create_directories(folder);
  limpid::ThreadPool pool(threads);
  const std::vector<std::string> others = peers && !own_noise && !colour ? peers::names() : std::vector<std::string>();

  const std::size_t columns = sigmas.size();
  std::vector<std::vector<Score>> scores(all.size() + 1, std::vector<Score>(columns));
  std::map<std::string, std::vector<Score>> of_peers;
  std::vector<std::string> pictures;
  std::map<std::string, Index> steps;
  for (const Filter& f : all) steps[f.name] = static_cast<Index>(images.size() * columns) * seeds;
  steps["maps"] = static_cast<Index>(images.size() * columns);
  if (!others.empty()) steps["others"] = static_cast<Index>(images.size() * columns) * seeds;
  Progress progress(steps);
  const auto timed = [&](const std::string& what, const std::string& step, auto&& f) {
    progress.say(what, step);
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    progress.done(step, took.count());
    return took.count();
  };

  for (std::size_t i = 0; i < images.size(); ++i)
    for (std::size_t column = 0; column < columns; ++column)
      for (Index seed = 0; seed < seeds; ++seed) {
        const Image& clean = images[i];
        const double sigma = own_noise ? estimated_noise(clean) : sigmas[column] / 255;
        const std::string title = stem(paths[i]) + (own_noise ? "" : "-sigma-" + text("%g", sigmas[column]));
        const std::string now = title + ", seed " + std::to_string(seed + 1) + " of " + std::to_string(seeds);
        Image given = own_noise ? clean : add_noise(clean, sigma, 1000 * static_cast<std::uint64_t>(seed) + i);
        const Task task{std::move(given), sigma, settings, pool};
        const bool large = clean.rows * clean.cols > Index(1) << 20;
        const Index rows = strip_rows > 0 ? strip_rows : strip_rows < 0 && large ? 64 : clean.rows;
        std::optional<Scene> scene;
        if (rows >= clean.rows) scene.emplace(task);
        scores[0][column].add(clipped(task.noisy), clean, 0);
        std::vector<Image> cleaned;
        for (std::size_t f = 0; f < all.size(); ++f) {
          Image out(clean.rows, clean.cols, clean.channels());
          const double took = timed(now, all[f].name, [&] {
            scene ? all[f].run(*scene, out.pixels) : run_by_strips(all[f], task, rows, out.pixels);
          });
          scores[f + 1][column].add(clipped(out), clean, took);
          cleaned.push_back(std::move(out));
        }
        if (!others.empty())
          timed(now, "others", [&] {
            for (const peers::Result& r :
                 peers::measured(folder, clean, task.noisy, sigma, settings.side, settings.window)) {
              auto& row = of_peers[r.name];
              row.resize(columns);
              row[column].psnr += r.psnr, row[column].ssim += r.ssim, row[column].seconds.push_back(r.seconds);
            }
          });
        if (seed > 0) continue;

        const auto at = pixel.size() == 2 ? pixel : std::vector<Index>{clean.rows / 3, clean.cols * 4 / 9};
        const Index top = std::max<Index>(0, std::min(at[0] - detail / 2, clean.rows - detail));
        const Index left = std::max<Index>(0, std::min(at[1] - detail / 2, clean.cols - detail));
        const auto part = [&](const Image& image) { return cut(image, top, left, detail, detail); };
        const auto db = [&](const Image& image) {
          return own_noise ? std::string() : text("%.2f dB", psnr(clipped(image), clean));
        };
        std::vector<limpid::io::Tile> strip, removed;
        if (!own_noise) strip.push_back({part(clean), "clean", ""});
        strip.push_back({part(clipped(task.noisy)), "noisy", db(task.noisy)});
        if (!own_noise) removed.push_back({method_noise(part(task.noisy), part(clean), sigma), "the noise", ""});
        for (std::size_t f = 0; f < all.size(); ++f) {
          strip.push_back({part(clipped(cleaned[f])), all[f].label, db(cleaned[f])});
          removed.push_back({method_noise(part(task.noisy), part(cleaned[f]), sigma), all[f].label, ""});
        }
        const auto write = [&](const std::string& name, const Image& image, int depth) {
          pictures.push_back(folder + "/" + title + "-" + name + ".png");
          limpid::io::write_png(pictures.back(), image, depth);
        };
        const auto sheet = [&](const std::vector<limpid::io::Tile>& tiles) {
          Image all_of_them = limpid::io::contact_sheet(tiles, 5, 1, 2);
          return clean.channels() == 1 ? limpid::io::to_grey(all_of_them) : all_of_them;
        };
        write("filters", sheet(strip), 8);
        write("method-noise", sheet(removed), 8);
        if (own)
          for (std::size_t f = 0; f < all.size(); ++f) write(all[f].name, clipped(cleaned[f]), bits);
        timed(now, "maps",
              [&] { write("map-row", limpid::io::contact_sheet(map_tiles(task, all, cleaned, at), 5, 1, 2), 8); });
      }
  progress.end();

  std::string of;
  for (std::size_t i = 0; i < images.size(); ++i)
    of += (i ? ", " : "") + stem(paths[i]) + " (" + std::to_string(images[i].rows) + " x " +
          std::to_string(images[i].cols) + (images[i].channels() == 3 ? ", colour" : "") +
          (own_noise ? text(", sigma %.2f of 255 found", 255 * estimated_noise(images[i])) : "") + ")";
  std::printf("%s; patches %d x %d, window %d x %d, %d noise seed%s, %d thread%s\n", of.c_str(), int(settings.side),
              int(settings.side), int(settings.window), int(settings.window), int(seeds), seeds == 1 ? "" : "s",
              threads, threads == 1 ? "" : "s");
  if (own_noise) {
    std::printf("Median milliseconds a picture\n\n");
    for (std::size_t f = 0; f < all.size(); ++f)
      std::printf("%-19s|%8.0f\n", all[f].name.c_str(), 1e3 * scores[f + 1][0].median_seconds());
  } else {
    std::printf("Mean PSNR in dB, mean SSIM and median milliseconds, by standard deviation of the noise (of 255)\n\n");
    std::printf("%-19s", "");
    for (double sigma : sigmas) std::printf("|      sigma %-10g", sigma);
    std::printf("\n%-19s", "filter");
    for (std::size_t column = 0; column < columns; ++column) std::printf("|%7s %6s %6s", "PSNR", "SSIM", "ms");
    std::printf("\n");
    const auto line = [&](const std::string& name, std::vector<Score>& row, bool has_time) {
      std::printf("%-19s", name.c_str());
      for (Score& s : row) {
        const double k = 1.0 / static_cast<double>(s.seconds.size());
        std::printf("|%7.2f %6s %6s", s.psnr * k, std::isnan(s.ssim) ? "-" : text("%.3f", s.ssim * k).c_str(),
                    has_time ? text("%.0f", 1e3 * s.median_seconds()).c_str() : "");
      }
      std::printf("\n");
    };
    line("noisy", scores[0], false);
    for (std::size_t f = 0; f < all.size(); ++f) line(all[f].name, scores[f + 1], true);
    for (const std::string& name : others)
      if (of_peers.count(name) != 0) line(name, of_peers[name], true);
  }
  std::printf("\n");
  for (const Filter& f : all) std::printf("%-19s%s\n", f.name.c_str(), f.formula.c_str());
  if (!of_peers.empty())
    std::printf("%-19sone thread; sigma told, h = 0.6 sigma, OpenCV h = sigma of bytes\n", "others");
  if (settings.bandwidth > 0) std::printf("%-19sh = %g sigma side throughout\n", "--bandwidth", settings.bandwidth);
  std::printf("\nPictures:\n");
  for (const std::string& path : pictures)
    std::printf("  %s\n", std::filesystem::absolute(path).lexically_normal().c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "denoise: %s\n", problem.what());
  return 1;
}
