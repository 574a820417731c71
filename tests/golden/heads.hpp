// limpid: arrays of heads as golden files have them: layers x heads x rows x columns, for the library side by side.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "plain.hpp"

namespace golden {

/// Extents of an input of rank 4, or of rank 3 for a single layer.
struct Heads {
  Index layers, heads, n;

  Heads(const Case& c, const std::string& name) {
    const std::vector<Index>& shape = c.shape(name);
    if (shape.size() != 3 && shape.size() != 4)
      throw Refused(name + " has rank " + std::to_string(shape.size()) + ", wanted 3 or 4");
    layers = shape.size() == 4 ? shape[0] : 1;
    heads = shape[shape.size() - 3], n = shape[shape.size() - 2];
  }

  /// n x (heads cols) of one layer.
  template <class S>
  Mat<S> packed(const Mat<S>& all, Index layer = 0) const {
    Mat<S> out(n, heads * all.cols());
    for (Index h = 0; h < heads; ++h)
      out.middleCols(h * all.cols(), all.cols()) = all.middleRows((layer * heads + h) * n, n);
    return out;
  }
  /// The way back, added to a layer of `all`.
  template <class S>
  void add(const Mat<S>& packed, Index layer, Mat<S>& all) const {
    for (Index h = 0; h < heads; ++h)
      all.middleRows((layer * heads + h) * n, n) += packed.middleCols(h * all.cols(), all.cols());
  }
};

}  // namespace golden
