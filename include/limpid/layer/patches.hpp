// limpid: patches of an image as tokens, and back: the gradient of the image, the mean of what lies over a pixel.
// SPDX-License-Identifier: MIT
#pragma once

#include "layer.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a patch has beyond the border. mirror: the image mirrored there, the outermost pixel not repeated, so
/// c b | a b c (a side of one pixel repeats it); edge: the outermost pixel, a a | a b c; zero: zeros; none: nothing, as
/// patches lie within the image.
enum class PatchBorder { mirror, edge, zero, none };

/// An image of rows x cols pixels and its square patches of patch x patch. With a border, patch (i, j) has pixel (i
/// stride, j stride) at its place patch / 2, and there are ceil(rows / stride) x ceil(cols / stride); with none, the
/// pixel is its first one and as many patches as fit: patch = stride cuts an image as vision transformers do.
struct ImagePatches {
  Index rows = 0, cols = 0, patch = 1;
  Index stride = 1;
  PatchBorder border = PatchBorder::mirror;

  /// How many patches there are. Throw ShapeError where patches() would for these numbers.
  Index rows_of_patches() const;
  Index cols_of_patches() const;
  Index tokens() const;
};

namespace detail {

inline Index patches_along(const ImagePatches& p, Index length) {
  return p.border == PatchBorder::none ? (length - p.patch) / p.stride + 1 : (length + p.stride - 1) / p.stride;
}

inline void check_patches(const char* what, const ImagePatches& p) {
  const auto refuse = [&](const char* field, Index found, const std::string& wanted) {
    raise(std::string(what) + ": " + field + " is " + text_of(found) + ", wanted " + wanted);
  };
  if (p.rows < 1 || p.cols < 1 || !fits_memory(p.rows, p.cols))
    raise(std::string(what) + ": the image is " + shape_text(p.rows, p.cols) +
          " pixels, wanted at least one and at most 2^40");
  constexpr Index largest = 1 << 15;  // a patch of more could not be a row
  if (p.patch < 1 || p.patch > largest) refuse("patch", p.patch, "from 1 to " + text_of(largest));
  if (p.stride < 1 || p.stride > p.patch) refuse("stride", p.stride, "from 1 to the patch's " + text_of(p.patch));
  if (p.border == PatchBorder::none)
    for (const Index length : {p.rows, p.cols})
      if (length < p.patch || (length - p.patch) % p.stride != 0)
        raise(std::string(what) + ": patches of " + text_of(p.patch) + " at a stride of " + text_of(p.stride) +
              " do not cover " + text_of(length) + " pixels, wanted patch + a multiple of stride, or a border");
  const Index tokens = patches_along(p, p.rows) * patches_along(p, p.cols);
  if (!fits_memory(tokens, p.patch * p.patch))
    raise(std::string(what) + ": " + text_of(tokens) + " patches of " + text_of(p.patch) + " x " + text_of(p.patch) +
          " fit no memory");
}
/// An image and its patches, by the names they have in a call.
template <class S>
void check_patch_arrays(const char* what, const ImagePatches& p, const char* image_name, View<S> image,
                        const char* patches_name, View<S> patches) {
  check_patches(what, p);
  constexpr Index most_channels = 4;
  if (image.rows != p.rows * p.cols || image.cols < 1 || image.cols > most_channels)
    raise(std::string(what) + ": " + image_name + " is " + shape_text(image.rows, image.cols) + ", wanted " +
          text_of(p.rows * p.cols) + " rows, a pixel each, of 1 to " + text_of(most_channels) + " channels");
  check_out(what, patches_name, patches, p.tokens(), image.cols * p.patch * p.patch);
}

/// to[i * patch + a]: the pixel that patch i has at place a, along an axis of that length; -1 where it has none.
inline const Index* patch_pixels(Arena& arena, const ImagePatches& p, Index length, Index patches) {
  Index* to = arena.take<Index>(patches * p.patch);
  for (Index i = 0; i < patches; ++i)
    for (Index a = 0; a < p.patch; ++a) {
      Index at = i * p.stride + a - (p.border == PatchBorder::none ? 0 : p.patch / 2);
      if (p.border == PatchBorder::mirror) {
        const Index period = std::max<Index>(1, 2 * (length - 1));
        at = (at % period + period) % period;
        at = std::min(at, period - at);
        if (length == 1) at = 0;
      } else if (p.border == PatchBorder::edge) {
        at = std::clamp<Index>(at, 0, length - 1);
      } else if (at < 0 || at >= length) {
        at = -1;
      }
      to[i * p.patch + a] = at;
    }
  return to;
}

/// image += transpose of patches, or = where `add` is not set; each row of the image is summed by one task, patches in
/// ascending order, so that no bit depends on who runs it.
template <class S>
void scatter_patches(const Context& context, const ImagePatches& p, View<S> patches, MutView<S> image, bool add) {
  const Index down = p.rows_of_patches(), across = p.cols_of_patches(), side = p.patch, channels = image.cols;
  Arena& arena = context.arena();
  const Index* row_of = patch_pixels(arena, p, p.rows, down);
  const Index* col_of = patch_pixels(arena, p, p.cols, across);
  // which rows of which patches lie on a row of the image: sorted by it, in ascending order each
  Index* begin = arena.take<Index>(p.rows + 1);
  Index* list = arena.take<Index>(down * side);
  std::fill_n(begin, p.rows + 1, Index(0));
  for (Index i = 0; i < down * side; ++i)
    if (row_of[i] >= 0) ++begin[row_of[i] + 1];
  for (Index r = 0; r < p.rows; ++r) begin[r + 1] += begin[r];
  for (Index i = 0; i < down * side; ++i)
    if (row_of[i] >= 0) list[begin[row_of[i]]++] = i;
  context.run(p.rows, [&](Index r, Arena&) {
    const MutView<S> to{image.row(r * p.cols), p.cols, channels, image.stride};
    if (!add) to.fill(S(0));
    for (Index e = r == 0 ? 0 : begin[r - 1]; e < begin[r]; ++e) {
      const Index i = list[e] / side, a = list[e] % side;
      for (Index j = 0; j < across; ++j) {
        const S* from = patches.row(i * across + j) + a * side;
        for (Index c = 0; c < channels; ++c)
          for (Index b = 0; b < side; ++b)
            if (const Index at = col_of[j * side + b]; at >= 0) to(at, c) += from[c * side * side + b];
      }
    }
  });
}

}  // namespace detail

inline Index ImagePatches::rows_of_patches() const {
  detail::check_patches("patches", *this);
  return detail::patches_along(*this, rows);
}
inline Index ImagePatches::cols_of_patches() const {
  detail::check_patches("patches", *this);
  return detail::patches_along(*this, cols);
}
inline Index ImagePatches::tokens() const { return rows_of_patches() * cols_of_patches(); }

/// The patches of an image, one a row: image (rows cols) x C, a pixel a row as tokens are, C from 1 to 4; out tokens x
/// (C patch^2), of every channel its patch row by row, one channel after the other, as the weights of a convolution
/// lie. Throws ShapeError for an image without pixels, a patch or stride out of range, patches without a border that do
/// not cover the image, arrays of other shapes and an out that shares memory with the image.
template <class X, class Y>
void patches(const ImagePatches& p, X&& image, Y&& out, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> x(std::forward<X>(image));
  const MutView<S> y(std::forward<Y>(out));
  detail::check_patch_arrays<S>("patches", p, "image", x, "out", y);
  detail::refuse_overlaps("patches", {{"out", y}}, {{"image", x}});
  detail::with_context(call, [&](const detail::Context& context) {
    const Index across = p.cols_of_patches(), side = p.patch;
    const Index* row_of = detail::patch_pixels(context.arena(), p, p.rows, p.rows_of_patches());
    const Index* col_of = detail::patch_pixels(context.arena(), p, p.cols, across);
    context.run(p.rows_of_patches(), [&](Index i, Arena&) {
      for (Index j = 0; j < across; ++j) {
        S* to = y.row(i * across + j);
        for (Index c = 0; c < x.cols; ++c)
          for (Index a = 0; a < side; ++a)
            for (Index b = 0; b < side; ++b) {
              const Index r = row_of[i * side + a], k = col_of[j * side + b];
              *to++ = r < 0 || k < 0 ? S(0) : x(r * p.cols + k, c);
            }
      }
    });
  });
}

/// The transpose of patches(): from a gradient of the patches that of the image, each pixel the sum of what the patches
/// have of it, those mirrored there too. call.accumulate adds to what is there. Throws ShapeError as patches does.
template <class Dy, class Dx>
void patches_backward(const ImagePatches& p, Dy&& dout, Dx&& dimage, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Dx>;
  const View<S> dy(std::forward<Dy>(dout));
  const MutView<S> dx(std::forward<Dx>(dimage));
  detail::check_patch_arrays<S>("patches", p, "gradient of image", dx, "dout", dy);
  detail::refuse_overlaps("patches", {{"image", dx, detail::gradient_of}}, {{"dout", dy}});
  detail::with_context(
      call, [&](const detail::Context& context) { detail::scatter_patches<S>(context, p, dy, dx, call.accumulate); });
}

/// An image from patches that overlap: every pixel the mean of what they have of it, so that fold_patches after
/// patches() gives the image back. call.accumulate adds to what is there. Throws ShapeError as patches does, and where
/// a pixel lies in no patch.
template <class X, class Y>
void fold_patches(const ImagePatches& p, X&& patches, Y&& image, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> x(std::forward<X>(patches));
  const MutView<S> y(std::forward<Y>(image));
  detail::check_patch_arrays<S>("fold_patches", p, "image", y, "patches", x);
  detail::refuse_overlaps("fold_patches", {{"image", y}}, {{"patches", x}});
  detail::with_context(call, [&](const detail::Context& context) {
    // how often a pixel is in a patch is how often its row is, times how often its column is
    const auto counts = [&](Index length, Index number) {
      const Index* pixels = detail::patch_pixels(context.arena(), p, length, number);
      Index* count = context.arena().take<Index>(length);
      std::fill_n(count, length, Index(0));
      for (Index i = 0; i < number * p.patch; ++i)
        if (pixels[i] >= 0) ++count[pixels[i]];
      for (Index r = 0; r < length; ++r)
        if (count[r] == 0)
          detail::raise("fold_patches: row or column " + detail::text_of(r) + " of the image lies in no patch of " +
                        detail::text_of(p.patch) + " at a stride of " + detail::text_of(p.stride) +
                        ", wanted patches that cover it");
      return count;
    };
    const Index *down = counts(p.rows, p.rows_of_patches()), *across = counts(p.cols, p.cols_of_patches());
    MutView<S> sum = y;
    if (call.accumulate) sum = context.arena().matrix<S>(y.rows, y.cols);
    detail::scatter_patches<S>(context, p, x, sum, false);
    detail::for_rows(context, y.rows, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        const Index row = i / p.cols, col = i % p.cols;
        for (Index c = 0; c < y.cols; ++c) {
          const S mean = sum(i, c) / S(double(down[row] * across[col]));
          y(i, c) = call.accumulate ? S(y(i, c) + mean) : mean;
        }
      }
    });
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
