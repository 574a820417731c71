// limpid: what plain attention loses and twicing keeps: eigenvalues of the map, and how alike tokens become with depth.
// SPDX-License-Identifier: MIT
//
//     collapse [PNG FILE] [IMAGES] [IDX FILE]     images of at most 64 x 64 pixels, none of them flat
//
// Tokens are the patches round the pixels of an image, and the map is non-local means with k = q: its eigenvalues lie
// in [0, 1], so everything here is as the theory says. Plain attention multiplies by an eigenvalue l at every
// application, twicing by 2 l - l^2. PID pulls the values back to where they began.
#include <Eigen/Eigenvalues>
#include <cstdio>
#include <iterator>
#include <limpid/io/sheet.hpp>
#include <limpid/layer/pid_stack.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/pid.hpp>
#include <limpid/op/twicing.hpp>
#include <stdexcept>
#include <string>

#include "arguments.hpp"
#include "image_quality.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using limpid::io::Image;
using limpid::io::Rgb;

constexpr Index applications = 16, side = 5;

/// The tokens of an image: every patch, less the mean patch; and the bandwidth of its map.
struct Tokens {
  Mat<double> x, h;
  explicit Tokens(const Image& image) : x(patches(image, side).cast<double>()) {
    x.rowwise() -= x.colwise().mean().eval();
    h = Mat<double>::Constant(1, 1, 0.25 * static_cast<double>(side));
  }
};

/// Mean cosine of all pairs of different tokens: |sum of unit tokens|^2 counts every pair twice and every token once. A
/// token that is zero has none.
double mean_cosine(const Mat<double>& v) {
  Mat<double> sum = Mat<double>::Zero(1, v.cols());
  double n = 0;
  for (Index i = 0; i < v.rows(); ++i)
    if (const double size = v.row(i).stableNorm(); size > 0) sum += v.row(i) / size, ++n;
  if (n < 2)
    throw std::runtime_error("fewer than two tokens of an image differ from the mean, wanted cosines of pairs");
  return (sum.squaredNorm() - n) / (n * (n - 1));
}

template <class Op>
limpid::Inputs<Op, double> inputs(const Tokens& t, const Mat<double>& v) {
  limpid::Inputs<Op, double> in = limpid::qkv(t.x, t.x, v);
  in.h = t.h;
  return in;
}

/// Cosines after 0, 1, ... applications of one fixed map; step(v, out) is one.
template <class Step>
void add_cosines(const Tokens& t, std::vector<double>& cosines, Step&& step) {
  Mat<double> v = t.x, out = t.x;
  cosines.resize(static_cast<std::size_t>(applications) + 1);
  for (std::size_t l = 0; l < cosines.size(); ++l) {
    cosines[l] += mean_cosine(v);
    step(v, out);
    v.swap(out);
  }
}

/// Eigenvalues, largest first. A_ij = e^(S_ij - lse_i) with S
/// symmetric, so A is similar to e^(S_ij - (lse_i + lse_j) / 2).
Eigen::VectorXd eigenvalues(const Tokens& t) {
  const auto op = limpid::nlm();
  Mat<double> out = t.x, map, lse;
  limpid::forward(op, inputs<decltype(limpid::nlm())>(t, t.x), out, {.lse = &lse, .map = &map});
  for (Index i = 0; i < map.rows(); ++i)
    for (Index j = 0; j < map.cols(); ++j) map(i, j) *= std::exp((lse(0, i) - lse(0, j)) / 2);
  const Mat<double> symmetric = (map + map.transpose()) / 2;
  return Eigen::SelfAdjointEigenSolver<Mat<double>>(symmetric, Eigen::EigenvaluesOnly).eigenvalues().reverse();
}

struct Curve {
  std::string name;
  Rgb color;
  std::vector<double> y;
};

/// draw_text of size 2, and what follows a '^' small and raised.
void draw_formula(Image& sheet, Index row, Index col, const std::string& text) {
  bool raised = false;
  for (char letter : text) {
    if (letter == '^') {
      raised = true;
      continue;
    }
    if (letter == ')' || letter == ' ') raised = false;
    limpid::io::draw_text(sheet, row - (raised ? 3 : 0), col, std::string(1, letter), raised ? 1 : 2);
    col += limpid::io::text_width("x", raised ? 1 : 2);
  }
}

/// Curves over first, first + 1, ... with values in [0, 1], a grid, a mark every `step`, and the curves' names from
/// column `names` of the plot on.
void draw_plot(Image& sheet, Index top, Index left, Index rows, Index cols, const std::string& title,
               const std::string& below, int first, int step, Index names, const std::vector<Curve>& curves) {
  using limpid::io::draw_text;
  const auto dot = [&](double row, double col, const Rgb& color, Index size) {
    for (Index i = 0; i < size; ++i)
      for (Index j = 0; j < size; ++j) {
        const Index r = static_cast<Index>(std::lround(row)) + i - size / 2,
                    c = static_cast<Index>(std::lround(col)) + j - size / 2;
        if (r < 0 || c < 0 || r >= sheet.rows || c >= sheet.cols) continue;
        for (Index k = 0; k < 3; ++k) sheet(r, c, k) = color[static_cast<std::size_t>(k)];
      }
  };
  const int last = static_cast<int>(curves.front().y.size()) - 1;
  const auto row_of = [&](double y) { return static_cast<double>(top) + (1 - y) * static_cast<double>(rows); };
  const auto col_of = [&](double x) { return static_cast<double>(left) + x * static_cast<double>(cols) / last; };
  const Rgb grid{0.87f, 0.87f, 0.87f};
  draw_text(sheet, top - 34, left, title, 2);
  for (int tenths = 0; tenths <= 10; tenths += 2) {
    for (Index c = 0; c <= cols; ++c) dot(row_of(tenths / 10.0), static_cast<double>(left + c), grid, 1);
    char text[8];
    std::snprintf(text, sizeof text, "%.1f", tenths / 10.0);
    draw_text(sheet, static_cast<Index>(row_of(tenths / 10.0)) - 7, left - 44, text, 2, 0.35f);
  }
  for (int x = 0; x <= last; ++x) {
    if ((x + first) % step != 0 && x != 0) continue;
    for (Index r = 0; r <= rows; ++r) dot(static_cast<double>(top + r), col_of(x), grid, 1);
    const std::string text = std::to_string(x + first);
    draw_text(sheet, top + rows + 12, static_cast<Index>(col_of(x)) + 1 - limpid::io::text_width(text, 2) / 2, text, 2,
              0.35f);
  }
  draw_text(sheet, top + rows + 36, left + (cols - limpid::io::text_width(below, 2)) / 2, below, 2, 0.35f);
  for (Index line = static_cast<Index>(curves.size()) - 1; line >= 0; --line) {  // the first one on top
    const Curve& curve = curves[static_cast<std::size_t>(line)];
    for (int i = 0; i < last; ++i) {
      const double x0 = col_of(i), x1 = col_of(i + 1);
      const double y0 = row_of(curve.y[static_cast<std::size_t>(i)]),
                   y1 = row_of(curve.y[static_cast<std::size_t>(i) + 1]);
      const double length = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1.0});
      for (double s = 0; s <= length; ++s)
        dot(y0 + (y1 - y0) * s / length, x0 + (x1 - x0) * s / length, curve.color, 3);
    }
    for (int i = 0; i <= last; ++i) dot(row_of(curve.y[static_cast<std::size_t>(i)]), col_of(i), curve.color, 7);
    const Index row = top + 16 + 24 * line, col = left + names;
    for (Index c = 0; c < 24; ++c) dot(static_cast<double>(row + 7), static_cast<double>(col + c), curve.color, 3);
    dot(static_cast<double>(row + 7), static_cast<double>(col + 12), curve.color, 7);
    draw_formula(sheet, row, col + 34, curve.name);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const auto words = arguments(argc, argv, 3, "collapse [PNG FILE] [IMAGES] [IDX FILE]");
  if (!words) return 0;
  const std::string picture = words->size() > 0 ? words->at(0) : "collapse.png";
  const std::string data =
      words->size() > 2 ? words->at(2) : LIMPID_EXAMPLES "/data/fashion-mnist-32-images-idx3-ubyte.gz";
  const Index wanted = words->size() > 1 ? whole_number("IMAGES", words->at(1), 1, 1000000) : 8;
  const std::vector<Image> all = read_images(data, wanted, 64 * 64);
  const Index images = std::ssize(all), rows = all[0].rows, cols = all[0].cols;

  const auto plain_op = limpid::nlm();
  const auto twicing_op = limpid::twicing(limpid::nlm());
  const auto pid_op = limpid::pid(limpid::nlm());
  using Plain = std::remove_const_t<decltype(plain_op)>;
  using Twicing = std::remove_const_t<decltype(twicing_op)>;
  using Pid = std::remove_const_t<decltype(pid_op)>;
  std::vector<double> plain, twiced, controlled, spectrum, twiced_spectrum;
  for (Index image = 0; image < images; ++image) {
    const Tokens t(all[static_cast<std::size_t>(image)]);
    if (t.x.isZero(0))
      throw std::runtime_error(data + ": image " + std::to_string(image) + " is flat, wanted one whose patches differ");
    add_cosines(t, plain,
                [&](const Mat<double>& v, Mat<double>& out) { limpid::forward(plain_op, inputs<Plain>(t, v), out); });
    add_cosines(t, twiced, [&](const Mat<double>& v, Mat<double>& out) {
      limpid::forward(twicing_op, inputs<Twicing>(t, v), out);
    });
    limpid::PidStack<Pid, double> stack(pid_op, {.keep = false});
    add_cosines(t, controlled, [&](const Mat<double>& v, Mat<double>& out) { stack.forward(inputs<Pid>(t, v), out); });
    if (image > 0) continue;
    const Eigen::VectorXd l = eigenvalues(t);
    for (Index i = 0; i < l.size(); ++i) {
      spectrum.push_back(l(i));
      twiced_spectrum.push_back(2 * l(i) - l(i) * l(i));
    }
  }
  for (auto* curve : {&plain, &twiced, &controlled})
    for (double& y : *curve) y /= static_cast<double>(images);

  std::printf("non-local means with k = q, patches %ld x %ld of %ld images of %ld x %ld pixels\n\n", long(side),
              long(side), long(images), long(rows), long(cols));
  std::printf(
      "eigenvalues of the first image's map, largest first\n  number       A  2A - A^2   A^16  (2A - A^2)^16\n");
  for (std::size_t i : {0, 1, 2, 4, 9, 19, 49, 99})
    if (i < spectrum.size())
      std::printf("  %6zu  %.4f    %.4f  %.4f         %.4f\n", i + 1, spectrum[i], twiced_spectrum[i],
                  std::pow(spectrum[i], 16), std::pow(twiced_spectrum[i], 16));
  std::printf("\nmean cosine similarity of the tokens\n  applications   plain  twicing     PID\n");
  for (std::size_t l : {0, 1, 2, 4, 8, 12, 16})
    std::printf("  %12zu  %.4f   %.4f  %.4f\n", l, plain[l], twiced[l], controlled[l]);

  const Rgb blue{0.00f, 0.45f, 0.70f}, red{0.84f, 0.37f, 0.00f}, green{0.00f, 0.62f, 0.45f};
  const Rgb pale_blue{0.55f, 0.77f, 0.90f}, pale_red{0.96f, 0.72f, 0.50f};
  const auto head = [](const std::vector<double>& all_of_it, int power) {
    std::vector<double> out(all_of_it.begin(), all_of_it.begin() + std::min<std::ptrdiff_t>(std::ssize(all_of_it), 30));
    for (double& y : out) y = std::pow(y, power);
    return out;
  };
  Image sheet(480, 1180, 3, 1.0f);
  draw_plot(sheet, 60, 70, 340, 480, "EIGENVALUES AND THEIR 16TH POWERS", "NUMBER, LARGEST FIRST", 1, 5, 290,
            {{"A", blue, head(spectrum, 1)},
             {"2A - A^2", red, head(twiced_spectrum, 1)},
             {"A^16", pale_blue, head(spectrum, 16)},
             {"(2A - A^2)^16", pale_red, head(twiced_spectrum, 16)}});
  draw_plot(sheet, 60, 660, 340, 480, "MEAN COSINE OF TOKENS, 1: ALL ALIKE", "APPLICATIONS", 0, 4, 20,
            {{"PLAIN", blue, plain}, {"TWICING", red, twiced}, {"PID", green, controlled}});
  limpid::io::write_png(picture, sheet);
  std::printf("\npicture: %s\n", picture.c_str());
  return 0;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "collapse: %s\n", problem.what());
  return 1;
}
