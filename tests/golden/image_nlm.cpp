// limpid: golden cases of non-local means on an image: patches as queries and keys, pixels as values, keys in a window.
// SPDX-License-Identifier: MIT
#include <limpid/layer/patches.hpp>

#include "plain.hpp"

namespace golden {

struct ImageNlm {
  static constexpr const char* name = "image_nlm";
  static constexpr const char* switches = "patch radius h h_space rho";

  /// One pixel a row.
  template <class S>
  static Mat<S> as_tokens(const Mat<S>& image) {
    return Eigen::Map<const Mat<S>>(image.data(), image.size(), 1);
  }
  template <class S>
  static Mat<S> places(Index rows, Index cols) {
    Mat<S> out(rows * cols, 2);
    for (Index i = 0; i < out.rows(); ++i) out.row(i) << static_cast<S>(i / cols), static_cast<S>(i % cols);
    return out;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Index rows = c.shape("image")[0], cols = c.shape("image")[1];
    const Index side = c.count("patch", 1), radius = c.integer("radius", 0);
    const Mat<S> image = as_tokens(c.in<S>("image"));
    const limpid::ImagePatches grid{rows, cols, side};
    Mat<S> patch(grid.tokens(), side * side);
    limpid::patches(grid, image, patch);
    const Mat<S> place = places<S>(rows, cols), h = Mat<S>::Constant(1, 1, S(c.number("h", 1))),
                 h_space = Mat<S>::Constant(1, 1, S(c.number("h_space", 1))),
                 rho = Mat<S>::Constant(1, 1, S(c.number("rho", 1)));
    const bool spatial = c.number("h_space", std::nullopt).has_value();
    const auto near = limpid::neighbourhood({rows, cols}, {2 * radius + 1, 2 * radius + 1});
    const auto result = [&](const auto& op, auto&& set) {
      limpid::Inputs<std::remove_cvref_t<decltype(op)>, S> in;
      in.q = patch, in.k = patch, in.v = image, in.h = h;
      if (spatial) in.pq = place, in.pk = place, in.h_space = h_space;
      set(in);
      Mat<S> out(image.rows(), 1);
      limpid::forward(op, in, out);
      return out;
    };
    const auto map = limpid::nlm(near);
    const auto nothing = [](auto&) {};
    return {{"out.out", result(map, nothing)},
            {"out.twicing", result(limpid::twicing(map), nothing)},
            {"out.sos",
             result(limpid::boosting(map, {.scheme = limpid::BoostingScheme::sos}), [&](auto& in) { in.rho = rho; })}};
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const Mat<S> image = c.in<S>("image");
    const Index rows = image.rows(), cols = image.cols(), n = rows * cols;
    const Index half = c.count("patch", 1) / 2, radius = c.integer("radius", 0);
    const S h = S(c.number("h", 1)), rho = S(c.number("rho", 1));
    const std::optional<double> h_space = c.number("h_space", std::nullopt);
    const auto pixel = [&](Index r, Index k) {
      const auto inside = [](Index i, Index size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; };
      return image(inside(r, rows), inside(k, cols));
    };
    Mat<S> score(n, n);
    Mat<bool> keep(n, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) {
        const Index y = i / cols, x = i % cols, dy = j / cols - y, dx = j % cols - x;
        S sum = 0;
        for (Index a = -half; a <= half; ++a)
          for (Index b = -half; b <= half; ++b) {
            const S gap = pixel(y + a, x + b) - pixel(y + dy + a, x + dx + b);
            sum += gap * gap;
          }
        score(i, j) = -sum / (h * h);
        if (h_space) score(i, j) -= S(double(dy * dy + dx * dx) / (*h_space * *h_space));
        keep(i, j) = std::abs(dy) <= radius && std::abs(dx) <= radius;
      }
    const Mat<S> v = as_tokens(image);
    const PlainAttention<S> plain(score, keep, v, v);
    const Mat<S>& u = plain.out;
    return {{"out.out", u},
            {"out.twicing", scaled(S(2), u) - product(plain.a, u)},
            {"out.sos", product<S>(plain.a, v + scaled(rho, u)) - scaled(rho, u)}};
  }
};

const Registered<ImageNlm> image_nlm_cases;

}  // namespace golden
