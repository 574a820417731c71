// limpid: products of whole matrices, A B and A^T B, on the register tile: for linear layers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "pack.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// Hands a register tile to a matrix whose rows need not be whole vectors: added to what is there, or to a row that all
/// rows begin with (null: zeros).
template <class P>
struct StoreInside {
  using S = typename P::Scalar;
  S* out;
  Index ld, cols;
  bool add;
  const S* first;
  LIMPID_INLINE void operator()(Index r, Index lane, const typename P::V& acc) const {
    S* p = out + r * ld + lane;
    if (lane + P::lanes <= cols) {
      P::store(p, add ? P::load(p) + acc : (first ? P::load(first + lane) + acc : acc));
    } else if (lane < cols) {
      S part[P::lanes];
      P::store(part, acc);
      for (Index l = 0; l < cols - lane; ++l)
        p[l] = add ? p[l] + part[l] : (first ? first[lane + l] + part[l] : part[l]);
    }
  }
};

/// out = A B, A B + a row for all, or out += A B. A is a and B is b, or their transpose. Cut into tasks by shape alone;
/// the inner sum runs in blocks, each summed apart. 2 rows cols inner flop; scratch of one packed panel a worker.
template <class P, Transposed T>
void multiply(const Context& context, View<typename P::Scalar> a, View<typename P::Scalar> b,
              MutView<typename P::Scalar> out, bool accumulate, const typename P::Scalar* row = nullptr) {
  using S = typename P::Scalar;
  constexpr Index width = P::lanes * P::tile_vectors, depth = GemmBlocks::depth, height = GemmBlocks::height;
  const Index inner = T == Transposed::a ? a.rows : a.cols, step = T == Transposed::a ? 1 : a.stride,
              along = T == Transposed::a ? a.stride : 1;
  const Index panels = (out.cols + width - 1) / width, blocks = (out.rows + height - 1) / height;
  context.run(panels * blocks, [&](Index task, Arena& arena) {
    const Index c0 = task % panels * width, r0 = task / panels * height;
    const Index cols = std::min(width, out.cols - c0), rows = std::min(height, out.rows - r0);
    const MutView<S> to = out.block(r0, c0, rows, cols);
    if (inner == 0 && !accumulate)
      for (Index i = 0; i < rows; ++i)
        for (Index c = 0; c < cols; ++c) to(i, c) = row ? row[c0 + c] : S(0);
    // a panel serves all rows of a block; of a few rows it would cost as much as they do, and b is read where it lies
    const bool packed = T == Transposed::b || rows > GemmBlocks::few_rows || cols % P::lanes != 0;
    S* panel = packed ? arena.take<S>(depth * width) : nullptr;
    for (Index k0 = 0; k0 < inner; k0 += depth) {
      const Index count = std::min(depth, inner - k0);
      if constexpr (T == Transposed::b) {
        transpose_into<P>(b.block(c0, k0, cols, count), panel, width);
      } else if (packed) {
        for (Index k = 0; k < count; ++k) {
          copy_row<P>(b.row(k0 + k) + c0, panel + k * width, cols);
          std::fill(panel + k * width + cols, panel + (k + 1) * width, S(0));
        }
      }
      product<P, T>(rows, (cols + P::lanes - 1) / P::lanes, count, a.data + r0 * step + k0 * along, a.stride,
                    packed ? panel : b.row(k0) + c0, packed ? width : b.stride,
                    StoreInside<P>{to.data, to.stride, cols, accumulate || k0 > 0, row ? row + c0 : row});
    }
  });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
