// limpid: products of whole matrices, A B and A^T B, on the register tile: for linear layers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../core/context.hpp"
#include "pack.hpp"
#include "tile.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

/// The register tile of these products: with 32 wide registers 6 x 4, which loads less a multiply-add than 8 x 2 and
/// whose panels are of whole pairs of lines (MiniLM's 512 rows in 0.92 of the time; 8 x 3 in 0.94, but that takes 1.05
/// of the time of 8 x 2 where weights of few rows come from memory; Emerald Rapids, one thread).
template <class P>
struct GemmTile : P {
  static constexpr bool wide = P::registers == 32 && sizeof(typename P::V) == 64;
  static constexpr int tile_rows = wide ? 6 : P::tile_rows, tile_vectors = wide ? 4 : P::tile_vectors;
};

/// Hands a register tile to a matrix whose rows need not be whole vectors: added to what is there, or to a row that all
/// rows begin with (null: zeros).
template <class P>
struct StoreInside {
  using S = typename P::Scalar;
  S* out;
  Index ld, cols;
  bool add;
  const S* first;

  /// What is added to is far away, as gradients of weights are: the rows of the next tile are asked for (of 16 rows
  /// 0.75 of the time, of 128 0.97; float, AVX-512, Zen 4, one thread).
  template <int R, int N>
  LIMPID_INLINE void tile(Index r0, Index lane, const typename P::V (&acc)[R][N]) const {
    S* const p = out + r0 * ld + lane;
    if (lane + N * P::lanes > cols) {
      S part[R * N * P::lanes];
      each<R, N>(acc, [&](int r, int v, const typename P::V& sum) { P::store(part + (r * N + v) * P::lanes, sum); });
      inside(p, lane, R, N * P::lanes, part);
    } else if (add) {
      each<R, N>(acc, [&](int r, int v, const typename P::V& sum) {
        S* const to = p + r * ld + v * P::lanes;
        if constexpr (P::lanes >= line_of<S>) P::prefetch(to, R * ld);
        P::store(to, P::load(to) + sum);
      });
    } else if (first) {
      each<R, N>(acc, [&](int r, int v, const typename P::V& sum) {
        P::store(p + r * ld + v * P::lanes, P::load(first + lane + v * P::lanes) + sum);
      });
    } else {
      each<R, N>(acc, [&](int r, int v, const typename P::V& sum) { P::store(p + r * ld + v * P::lanes, sum); });
    }
  }

 private:
  template <int R, int N, class F>
  LIMPID_INLINE static void each(const typename P::V (&acc)[R][N], const F& f) {
    LIMPID_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      LIMPID_UNROLL(4)
      for (int v = 0; v < N; ++v) f(r, v, acc[r][v]);
    }
  }
  /// Of so many rows of sums the columns that there are.
  LIMPID_NOINLINE void inside(S* p, Index lane, Index rows, Index width, const S* part) const {
    for (Index r = 0; r < rows; ++r, p += ld, part += width)
      for (Index l = 0; l < cols - lane && l < width; ++l)
        p[l] = add ? p[l] + part[l] : (first ? first[lane + l] + part[l] : part[l]);
  }
};

/// Columns of B, or of its transpose, packed side by side. Those of a whole inner sum are kept for a worker's next task
/// if it is short.
template <class P, bool TransposeB>
class GemmPanel {
 public:
  using S = typename P::Scalar;
  static constexpr int vectors = GemmTile<P>::tile_vectors;
  static constexpr Index width = P::lanes * vectors, depth = GemmBlocks::depth;

  /// ready: all panels side by side as pack_panels makes them, or null.
  GemmPanel(Arena& arena, View<S> b, Index inner, const S* ready)
      : b_(b),
        inner_(inner),
        kept_(inner <= GemmBlocks::kept_depth),
        ready_(ready),
        data_(ready ? nullptr : arena.take<S>(width * (kept_ ? inner : depth))) {}

  bool holds(Index c0) const { return ready_ || c0_ == c0; }
  /// `count` rows from k0 on, of cols columns from c0 on.
  const S* rows(Index k0, Index count, Index c0, Index cols) {
    if (ready_) return ready_ + c0 * inner_ + k0 * width;
    if (!kept_) return pack(b_, data_, k0, count, c0, cols), data_;
    if (c0_ != c0) {
      for (Index k = 0; k < inner_; k += depth) pack(b_, data_ + k * width, k, std::min(depth, inner_ - k), c0, cols);
      c0_ = c0;
    }
    return data_ + k0 * width;
  }

  /// Asks for rows [k0, k1) of a panel that is ready.
  void ask(Index k0, Index k1, Index c0) const {
    for (Index l = k0 * width; l < k1 * width; l += line_of<S>) P::prefetch(ready_, c0 * inner_ + l);
  }
  static void pack(View<S> b, S* to, Index k0, Index count, Index c0, Index cols) {
    if constexpr (TransposeB) {
      transpose_into<P>(b.block(c0, k0, cols, count), to, width);
    } else if (cols == width) {
      for (Index k = 0; k < count; ++k) {
        const S* from = b.row(k0 + k) + c0;
        LIMPID_UNROLL(4)
        for (int v = 0; v < vectors; ++v) {
          // rows too far apart for the hardware to foresee, and from memory where they are weights that are trained
          if (v * P::lanes % line_of<S> == 0) P::prefetch(from + v * P::lanes, GemmBlocks::rows_ahead * b.stride);
          P::store(to + k * width + v * P::lanes, P::load(from + v * P::lanes));
        }
      }
    } else {
      for (Index k = 0; k < count; ++k) {
        copy_row<P>(b.row(k0 + k) + c0, to + k * width, cols);
        std::fill(to + k * width + cols, to + (k + 1) * width, S(0));
      }
    }
  }

  View<S> b_;
  Index inner_, c0_ = -1;
  bool kept_;
  const S* ready_;
  S* data_;
};

/// Room for all panels of a B with inner rows (or columns, where it is transposed) and cols columns.
template <class P>
Index panels_size(Index inner, Index cols) {
  constexpr Index width = GemmPanel<P, false>::width;
  return (cols + width - 1) / width * width * inner;
}
/// All panels of B, or of its transpose, one after the other, for multiply().
template <class P, bool TransposeB, class S = typename P::Scalar>
void pack_panels(View<S> b, S* to) {
  using Panel = GemmPanel<P, TransposeB>;
  const Index inner = TransposeB ? b.cols : b.rows, cols = TransposeB ? b.rows : b.cols;
  for (Index c0 = 0; c0 < cols; c0 += Panel::width)
    for (Index k = 0; k < inner; k += Panel::depth)
      Panel::pack(b, to + c0 * inner + k * Panel::width, k, std::min(Panel::depth, inner - k), c0,
                  std::min(Panel::width, cols - c0));
}

/// out = A^T B or += A^T B, of A panel by panel, where all of B is packed.
template <class P, class S = typename P::Scalar>
void multiply_panels(const Context& context, View<S> a, const S* b, Index cols, MutView<S> out, bool accumulate,
                     const S* row) {
  using Panel = GemmPanel<P, false>;
  constexpr Index width = Panel::width;
  context.run((a.cols + width - 1) / width, [&](Arena& arena) { return arena.template take<S>(width * a.rows); },
              [&](S* own, Index task) {
                const Index r0 = task * width, rows = std::min(width, a.cols - r0);
                Panel::pack(a, own, 0, a.rows, r0, rows);
                for (Index c0 = 0; c0 < cols; c0 += width) {
                  const Index some = std::min(width, cols - c0);
                  product<GemmTile<P>, Transposed::a>(
                      rows, (some + P::lanes - 1) / P::lanes, a.rows, own, width, b + c0 * a.rows, width,
                      StoreInside<GemmTile<P>>{out.row(r0) + c0, out.stride, some, accumulate, row ? row + c0 : row});
                }
              });
}

/// out = A B, A B + a row for all, or out += A B. A is a and B is b, or their transpose. Cut into tasks by shape
/// alone; the inner sum runs in blocks, each summed apart, of no more than `apart`. 2 rows cols inner flop; scratch of
/// one packed panel a worker, none where they are `ready` (pack_panels). Of A^T what may be ready is A, of one block of
/// the inner sum: it is made here where it pays, as scratch.
template <class P, Transposed T>
void multiply(const Context& context, View<typename P::Scalar> a, View<typename P::Scalar> b,
              MutView<typename P::Scalar> out, bool accumulate, const typename P::Scalar* row = nullptr,
              const typename P::Scalar* ready = nullptr, Index apart = GemmBlocks::depth) {
  using S = typename P::Scalar;
  using Panel = GemmPanel<P, T == Transposed::b>;
  constexpr Index width = Panel::width, depth = GemmBlocks::depth;
  constexpr bool turned = T == Transposed::a;
  const Index inner = turned ? a.rows : a.cols, step = turned ? 1 : a.stride, along = turned ? a.stride : 1;
  const bool alone = !context.spreads();
  const Index panels = (out.cols + width - 1) / width;
  // of wide panels there are few, and several workers want more tasks; what a task has changes no bit
  const Index height = GemmBlocks::rows(out.rows, panels, inner, GemmTile<P>::wide && !alone);
  const Index blocks = (out.rows + height - 1) / height;
  if constexpr (turned)
    if (!ready && GemmBlocks::packs_columns(inner, out.cols)) {
      // the smaller factor is packed whole, the larger one panel by panel: so each comes from far away once
      const bool by_rows = a.cols > b.cols;
      const View<S> whole = by_rows ? b : a;
      const ArenaScope scope(context.arena());
      S* const columns = context.arena().template take<S>(panels_size<P>(std::min(depth, inner), whole.cols));
      for (Index k0 = 0; k0 < inner; k0 += depth) {
        const Index count = std::min(depth, inner - k0);
        const bool add = accumulate || k0 > 0;
        const View<S> a_rows = a.block(k0, 0, count, a.cols), b_rows = b.block(k0, 0, count, b.cols);
        context.run((whole.cols + width - 1) / width, [&](Index task, Arena&) {
          const Index c0 = task * width;
          Panel::pack(whole, columns + c0 * count, k0, count, c0, std::min(width, whole.cols - c0));
        });
        if (by_rows)
          multiply_panels<P>(context, a_rows, columns, b.cols, out, add, row);
        else
          multiply<P, T>(context, a_rows, b_rows, out, add, row, columns);
      }
      return;
    }
  context.run(
      panels * blocks, [&](Arena& arena) { return Panel(arena, b, inner, turned ? nullptr : ready); },
      [&](Panel& panel, Index task) {
        const Index c0 = task / blocks * width, r0 = task % blocks * height;
        const Index cols = std::min(width, out.cols - c0), rows = std::min(height, out.rows - r0);
        const MutView<S> to = out.block(r0, c0, rows, cols);
        if (inner == 0 && !accumulate)
          for (Index i = 0; i < rows; ++i)
            for (Index c = 0; c < cols; ++c) to(i, c) = row ? row[c0 + c] : S(0);
        // a panel serves all rows of a block; of a few it would cost as much as they do, and b is read where it lies
        const bool packed =
            T == Transposed::b || rows > GemmBlocks::few_rows || cols % P::lanes != 0 || panel.holds(c0);
        for (Index k0 = 0; k0 < inner; k0 += depth) {
          const Index count = std::min(depth, inner - k0), ldb = packed ? width : b.stride;
          const S* b_rows = packed ? panel.rows(k0, count, c0, cols) : b.row(k0) + c0;
          const auto part = [&](Index r, Index some, Index k, Index terms, const S* a_rows, Index lda) {
            product<GemmTile<P>, T>(
                some, (cols + P::lanes - 1) / P::lanes, terms, a_rows, lda, b_rows + k * ldb, ldb,
                StoreInside<GemmTile<P>>{to.row(r), to.stride, cols, accumulate || k0 + k > 0, row ? row + c0 : row});
          };
          if (turned && ready) {
            for (Index r = r0, some = 0; r < r0 + rows; r += some) {  // to the end of the panel of A that row r is in
              some = std::min(r0 + rows, (r / width + 1) * width) - r;
              part(r - r0, some, 0, count, ready + r / width * width * inner + r % width, width);
            }
            continue;
          }
          // alone, this worker takes the next panel: it comes from memory while this one is used
          const bool asks = GemmTile<P>::wide && !turned && ready && alone && rows >= GemmBlocks::asking_rows &&
                            r0 + rows == out.rows && c0 + width < out.cols;
          // so that what is added to is near, or to ask for little at a time
          const Index some = asks ? GemmTile<P>::tile_rows : apart < count ? GemmBlocks::near_rows : rows;
          const Index parts = (rows + some - 1) / some * ((count + apart - 1) / apart);
          Index number = 0;
          for (Index r = 0; r < rows; r += some)
            for (Index k = 0; k < count; k += apart, ++number) {
              if (asks) panel.ask(k0 + number * count / parts, k0 + (number + 1) * count / parts, c0 + width);
              part(r, std::min(some, rows - r), k, std::min(apart, count - k),
                   a.data + (r0 + r) * step + (k0 + k) * along, a.stride);
            }
        }
      });
}

}  // namespace detail
}  // namespace LIMPID_ABI
}  // namespace limpid
