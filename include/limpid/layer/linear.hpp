// limpid: the linear map of tokens, y = x W + b, forward and backward, on the engine's own register tile.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../core/call.hpp"
#include "../core/rows.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What a call of a layer may be told.
struct LayerCall {
  bool accumulate = false;         ///< backward: add to the gradients instead of overwriting them
  Workspace* workspace = nullptr;  ///< scratch to reuse; otherwise the call has its own
  ExecutorRef executor = {};       ///< serial unless told otherwise
};

/// Where the gradients of a linear map go; an empty one is not computed.
template <class S>
struct LinearGrads {
  MutView<S> x{}, w{}, b{};
};

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

/// out = A B, A B + a row for all, or out += A B. A is a (W == rows) or its transpose (columns), B is b or its
/// transpose. Cut into tasks by shape alone; the inner sum runs in blocks, each summed apart. 2 rows cols inner flop;
/// scratch of one packed panel a worker.
template <class P, Walk W, bool TransposeB>
void multiply(const Context& context, View<typename P::Scalar> a, View<typename P::Scalar> b,
              MutView<typename P::Scalar> out, bool accumulate, const typename P::Scalar* row = nullptr) {
  using S = typename P::Scalar;
  constexpr Index width = P::lanes * P::tile_vectors, depth = 256, height = 256, few_rows = 8;
  const Index inner = W == Walk::rows ? a.cols : a.rows, step = W == Walk::rows ? a.stride : 1,
              along = W == Walk::rows ? 1 : a.stride;
  const Index panels = (out.cols + width - 1) / width, blocks = (out.rows + height - 1) / height;
  context.run(panels * blocks, [&](Index task, Arena& arena) {
    const Index c0 = task % panels * width, r0 = task / panels * height;
    const Index cols = std::min(width, out.cols - c0), rows = std::min(height, out.rows - r0);
    const MutView<S> to = out.block(r0, c0, rows, cols);
    if (inner == 0 && !accumulate)
      for (Index i = 0; i < rows; ++i)
        for (Index c = 0; c < cols; ++c) to(i, c) = row ? row[c0 + c] : S(0);
    // a panel serves all rows of a block; of a few rows it would cost as much as they do, and b is read where it lies
    const bool packed = TransposeB || rows > few_rows || cols % P::lanes != 0;
    S* panel = packed ? arena.take<S>(depth * width) : nullptr;
    for (Index k0 = 0; k0 < inner; k0 += depth) {
      const Index count = std::min(depth, inner - k0);
      if constexpr (TransposeB) {
        transpose_into<P>(b.block(c0, k0, cols, count), panel, width);
      } else if (packed) {
        for (Index k = 0; k < count; ++k) {
          copy_row<P>(b.row(k0 + k) + c0, panel + k * width, cols);
          std::fill(panel + k * width + cols, panel + (k + 1) * width, S(0));
        }
      }
      product<P, W>(rows, (cols + P::lanes - 1) / P::lanes, count, a.data + r0 * step + k0 * along, a.stride,
                    packed ? panel : b.row(k0) + c0, packed ? width : b.stride,
                    StoreInside<P>{to.data, to.stride, cols, accumulate || k0 > 0, row ? row + c0 : row});
    }
  });
}

template <class S>
void check_linear(const char* op, View<S> x, View<S> w, View<S> y, const char* y_name) {
  if (w.rows != x.cols)
    raise(std::string(op) + ": w is " + shape_text(w.rows, w.cols) + ", wanted " + text_of(x.cols) +
          " rows, as x has columns");
  if (y.rows != x.rows || y.cols != w.cols)
    raise(std::string(op) + ": " + y_name + " is " + shape_text(y.rows, y.cols) + ", wanted " +
          shape_text(x.rows, w.cols));
}
template <class S>
void check_bias(const char* op, const char* name, View<S> b, Index cols) {
  if (b.given() && (b.rows != 1 || b.cols != cols))
    raise(std::string(op) + ": " + name + " is " + shape_text(b.rows, b.cols) + ", wanted " + shape_text(1, cols));
}
template <class S>
void check_gradient(const char* op, const char* name, View<S> g, View<S> like) {
  if (g.given() && (g.rows != like.rows || g.cols != like.cols))
    raise(std::string(op) + ": gradient of " + name + " is " + shape_text(g.rows, g.cols) + ", wanted " +
          shape_text(like.rows, like.cols));
}

inline void check_reads(const char* layer, const char* name, Index rows, Index cols, Index wanted, const char* what) {
  if (rows != wanted)
    raise(std::string(layer) + ": " + name + " is " + shape_text(rows, cols) + ", wanted " + text_of(wanted) +
          " rows, as " + what);
}

/// Heads, key heads and the batch of a layer's tokens, before anything is divided by them.
inline void check_heads(Name layer, Index heads, Index groups, Index batch, Index tokens) {
  if (heads < 1 || groups < 1 || heads % groups != 0)
    raise(layer + (": heads is " + text_of(heads) + " and kv_heads " + text_of(groups) +
                   ", wanted at least 1, kv_heads a divisor of heads"));
  if (batch < 1 || tokens % batch != 0)
    raise(layer + (": batch is " + text_of(batch) + " and x has " + text_of(tokens) +
                   " rows, wanted at least 1 item and as many rows in each"));
}

/// A projection of the tokens: its rows, and its columns as heads have them.
template <class S>
void check_projection(const char* layer, const char* name, View<S> w, View<S> x, Index heads) {
  check_reads(layer, name, w.rows, w.cols, x.cols, "x has columns");
  if (w.cols % heads != 0)
    raise(std::string(layer) + ": " + name + " has " + text_of(w.cols) + " columns, wanted a multiple of its " +
          text_of(heads) + " heads");
}

/// Gradients as large as what they are of.
template <class Args, class Grads>
void check_gradients(const char* layer, const Args& in, const Grads& grad) {
  Args::visit([&](const char* field, const auto& p,
                  const auto& g) { check_gradient<ScalarOf<decltype(p)>>(layer, field, g, p); },
              in, grad);
}

/// What is written backward by a layer, against all that it reads.
template <class Args, class Grads, class S>
void refuse_gradient_overlaps(const char* layer, const Args& in, View<S> dout, const Grads& grad) {
  refuse_overlaps(layer, fields_of(grad, gradient_of), joined(fields_of(in), arrays({{"dout", dout}})));
}
/// The same of a layer round an operator.
template <class Op, class Args, class Grads, class S>
void refuse_gradient_overlaps(const char* layer, const Op& op, const Args& in, View<S> dout, const Grads& grad) {
  refuse_backward_overlaps(layer, op, fields_of(grad, gradient_of), joined(fields_of(in), arrays({{"dout", dout}})));
}

template <class S>
void check_out(const char* layer, const char* name, View<S> out, Index rows, Index cols) {
  if (out.rows != rows || out.cols != cols)
    raise(std::string(layer) + ": " + name + " is " + shape_text(out.rows, out.cols) + ", wanted " +
          shape_text(rows, cols));
}

/// What a forward call kept of a layer's tokens, n x width.
template <class S>
void check_kept(const char* layer, const char* field, const Mat<S>& kept, Index rows, Index cols) {
  if (kept.rows() != rows || kept.cols() != cols)
    raise(std::string(layer) + ": saved holds " + field + " of " + shape_text(kept.rows(), kept.cols()) + ", wanted " +
          shape_text(rows, cols) + " as the inputs make it");
}

/// A forward call that throws on its way leaves a saved state that is neither the old one nor a new one.
template <class Saved>
void check_filled(Name layer, const Saved& saved) {
  if (!saved.filled) raise(layer + ": saved is empty, wanted one that a forward call has filled");
}

/// y = x w + b, shapes checked; b may be empty.
template <class P>
void linear_in(const Context& context, View<typename P::Scalar> x, View<typename P::Scalar> w,
               View<typename P::Scalar> b, MutView<typename P::Scalar> y) {
  multiply<P, Walk::rows, false>(context, x, w, y, false, b.data);
}
template <class P>
void linear_backward_in(const Context& context, View<typename P::Scalar> x, View<typename P::Scalar> w,
                        View<typename P::Scalar> dy, const LinearGrads<typename P::Scalar>& grad, bool accumulate) {
  using S = typename P::Scalar;
  if (grad.x.given()) multiply<P, Walk::rows, true>(context, dy, w, grad.x, accumulate);      // dx = dy w^T
  if (grad.w.given()) multiply<P, Walk::columns, false>(context, x, dy, grad.w, accumulate);  // dw = x^T dy
  if (grad.b.given()) {                                                                       // db = column sums of dy
    if (!accumulate) grad.b.fill(S(0));
    for (Index i = 0; i < dy.rows; ++i) add_row<P>(dy.row(i), grad.b.data, dy.cols);
  }
}

/// Runs f(context) with the workspace and executor of the call.
template <class F>
void with_context(const LayerCall& call, F&& f) {
  Workspace own;
  Workspace& workspace = call.workspace ? *call.workspace : own;
  const WorkspaceTurn turn(workspace, Inside::open);
  workspace.prepare(call.executor.workers());
  ArenaScope scope(workspace.common());
  f(Context(workspace, call.executor));
}

}  // namespace detail

/// y = x w + b for every token: x n x D, w D x E, b 1 x E (a default View: no bias), y n x E. 2 n D E flop; no copy of
/// x or w beyond one packed panel a worker. Throws ShapeError where shapes do not fit or y shares memory with an input.
template <class X, class W, class B, class Y>
void linear(X&& x, W&& w, B&& b, Y&& y, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> vx(std::forward<X>(x)), vw(std::forward<W>(w)), vb(std::forward<B>(b));
  const MutView<S> vy(std::forward<Y>(y));
  detail::check_linear<S>("linear", vx, vw, vy, "y");
  detail::check_bias<S>("linear", "b", vb, vw.cols);
  detail::refuse_overlaps("linear", {{"y", vy}}, {{"x", vx}, {"w", vw}, {"b", vb}});
  detail::with_context(call,
                       [&](const auto& context) { detail::linear_in<detail::Native<S>>(context, vx, vw, vb, vy); });
}

/// dx = dy w^T, dw = x^T dy, db = column sums of dy, those that grad names. 4 n D E flop. Throws ShapeError where
/// shapes do not fit or a gradient shares memory with x, w, dy or another one.
template <class X, class W, class Dy, class S = detail::ScalarOf<Dy>>
void linear_backward(X&& x, W&& w, Dy&& dy, const std::type_identity_t<LinearGrads<S>>& grad,
                     const LayerCall& call = {}) {
  const View<S> vx(std::forward<X>(x)), vw(std::forward<W>(w)), vdy(std::forward<Dy>(dy));
  detail::check_linear<S>("linear", vx, vw, vdy, "dy");
  detail::check_gradient<S>("linear", "x", grad.x, vx);
  detail::check_gradient<S>("linear", "w", grad.w, vw);
  detail::check_bias<S>("linear", "gradient of b", grad.b, vw.cols);
  using detail::gradient_of;
  detail::refuse_overlaps("linear",
                          {{"x", grad.x, gradient_of}, {"w", grad.w, gradient_of}, {"b", grad.b, gradient_of}},
                          {{"x", vx}, {"w", vw}, {"dy", vdy}});
  detail::with_context(call, [&](const auto& context) {
    detail::linear_backward_in<detail::Native<S>>(context, vx, vw, vdy, grad, call.accumulate);
  });
}

}  // namespace LIMPID_ABI
}  // namespace limpid
