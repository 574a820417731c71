// limpid: positions: rotary (RoPE) round any operator with q and k, sinusoidal, ALiBi slopes, parts of a score.
// SPDX-License-Identifier: MIT
//
// Key j stands at j, query i at i + m - n: the alignment of the causal mask. Angles are computed in double, whatever
// the scalar. ALiBi and relative tables are modifiers (score/modifiers.hpp), positions in bilateral kernels
// score/bilateral.hpp.
#pragma once

#include <cmath>
#include <optional>

#include "../core/call.hpp"
#include "dot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Which columns make plane l of a rotary width r: (2 l, 2 l + 1), as in the paper, or (l, l + r / 2), as in GPT-NeoX
/// and Llama.
enum class RopeLayout { interleaved, half };

/// An offset that is not set: m - n.
inline constexpr std::nullopt_t default_offset = std::nullopt;

struct RopeOptions {
  RopeLayout layout = RopeLayout::interleaved;
  double base = 10000;
  Index rotary = 0;  ///< r, the columns turned, even, at most the width; 0 means all
  Index width = 0;   ///< columns that share one rotation, a divisor of the head's width; 0 means all of them
  std::optional<double> q_offset = default_offset;  ///< position of query 0
  double k_offset = 0;                              ///< position of key 0
};

/// Arguments of rope_rotate.
struct RopeRotation {
  RopeLayout layout = RopeLayout::interleaved;
  double base = 10000;
  Index rotary = 0;
  Index batch = 1, heads = 1;
  double first = 0;      ///< position of row 0 of every item
  bool inverse = false;  ///< turn back: what a gradient wants, as the rotation is orthogonal
};

namespace detail {

/// The frequencies are powers of base from 0 down to -last / width: numbers, and none of them 0 or all but 0.
inline void check_base(const char* op, double base, Index last, Index width) {
  check_finite<double>(op, "base", base, base > 0, "a positive, finite number");
  if (last <= 0) return;
  const double power = std::pow(base, -static_cast<double>(last) / static_cast<double>(width));
  check_finite<double>(op, "base", base, std::isnormal(power), "one whose powers neither overflow nor underflow");
}
/// Positions first .. first + count: so are their angles.
inline void check_first(const char* op, const char* option, double first, Index count, double base, Index last,
                        Index width) {
  check_finite<double>(op, option, first);
  const double fastest =
      std::max(1.0, last <= 0 ? 1.0 : std::pow(base, -static_cast<double>(last) / static_cast<double>(width)));
  const double angle = (std::abs(first) + static_cast<double>(count)) * fastest;
  check_finite<double>(op, option, first, std::isfinite(angle), "one whose angles do not overflow");
}

inline void check_rotary(const char* op, Index rotary, Index width, double base) {
  const Index r = rotary == 0 ? width : rotary;
  if (r < 0 || r > width || r % 2 != 0)
    raise(std::string(op) + ": rotary is " + text_of(r) + ", wanted an even number, at most the width " +
          text_of(width));
  check_base(op, base, r - 2, r);
}

/// Turns plane l of row i by (first + i) base^(-2 l / r), back if sign is -1; out may be x. The angle of row 64 t + s
/// is that of row 64 t, computed, plus that of s, from a table: one complex product in place of a sine and a cosine.
template <class S>
void turn_rows(View<S> x, MutView<S> out, RopeLayout layout, double base, Index r, double first, double sign) {
  constexpr Index block = 64, chunk = 8;
  double step_cos[chunk][block], step_sin[chunk][block], frequency[chunk];
  const Index n = x.rows, half = r / 2, steps = n < block ? n : block;
  if (out.data != x.data)
    for (Index i = 0; i < n; ++i)
      for (Index c = r; c < x.cols; ++c) out(i, c) = x(i, c);
  for (Index l0 = 0; l0 < half; l0 += chunk) {
    const Index planes = half - l0 < chunk ? half - l0 : chunk;
    for (Index l = 0; l < planes; ++l) {
      frequency[l] = std::pow(base, -2.0 * static_cast<double>(l0 + l) / static_cast<double>(r));
      for (Index s = 0; s < steps; ++s) {
        const double angle = static_cast<double>(s) * frequency[l];
        step_cos[l][s] = std::cos(angle), step_sin[l][s] = std::sin(angle);
      }
    }
    for (Index i0 = 0; i0 < n; i0 += block) {
      const Index rows = n - i0 < block ? n - i0 : block;
      for (Index l = 0; l < planes; ++l) {
        const double angle = (first + static_cast<double>(i0)) * frequency[l];
        const double c0 = std::cos(angle), s0 = std::sin(angle);
        const Index a = layout == RopeLayout::half ? l0 + l : 2 * (l0 + l);
        const Index b = layout == RopeLayout::half ? a + half : a + 1;
        for (Index s = 0; s < rows; ++s) {
          const S cosine = S(c0 * step_cos[l][s] - s0 * step_sin[l][s]);
          const S sine = S(sign * (s0 * step_cos[l][s] + c0 * step_sin[l][s]));
          const S u = x(i0 + s, a), v = x(i0 + s, b);
          out(i0 + s, a) = cosine * u - sine * v;
          out(i0 + s, b) = sine * u + cosine * v;
        }
      }
    }
  }
}

}  // namespace detail

/// Rotary position embedding of a packed array: x and out (B n) x (H d), row i of an item stands at first + i.
///
///     (out_a, out_b) = (cos t x_a - sin t x_b, sin t x_a + cos t x_b),   t = (first + i) base^(-2 l / r)
///
/// for plane l = (a, b) of every head. Su et al. 2021, "RoFormer", arXiv 2104.09864, eq. 15 and 34. Columns r.. of a
/// head are left alone. Norms are kept; inverse turns back. out may be x itself. Cost 8 flop an entry. Throws
/// ShapeError where shapes, rotary or base do not fit, or an angle overflows.
template <class X, class Out>
void rope_rotate(X&& x, Out&& out, const RopeRotation& call = {}) {
  using S = detail::ScalarOf<Out>;
  const View<S> from(std::forward<X>(x));
  const MutView<S> to(std::forward<Out>(out));
  const auto shape = [&] { return detail::shape_text(from.rows, from.cols); };
  if (call.batch < 1 || from.rows % call.batch != 0)
    detail::raise("rope_rotate: x is " + shape() +
                  ", wanted rows a multiple of batch = " + detail::text_of(call.batch));
  if (call.heads < 1 || from.cols % call.heads != 0)
    detail::raise("rope_rotate: x is " + shape() +
                  ", wanted columns a multiple of heads = " + detail::text_of(call.heads));
  if (to.rows != from.rows || to.cols != from.cols)
    detail::raise("rope_rotate: out is " + detail::shape_text(to.rows, to.cols) + ", wanted " + shape());
  if (!(to.data == from.data && to.stride == from.stride) && detail::overlap(View<S>(to), from))
    detail::raise("rope_rotate: out shares memory with x, wanted x itself or memory of its own");
  const Index n = from.rows / call.batch, d = from.cols / call.heads;
  detail::check_rotary("rope_rotate", call.rotary, d, call.base);
  const Index r = call.rotary == 0 ? d : call.rotary;
  detail::check_first("rope_rotate", "first", call.first, n, call.base, r - 2, r);
  detail::check_counts("rope_rotate", call.batch, call.heads, from.rows * from.cols);
  for (Index b = 0; b < call.batch; ++b)
    for (Index h = 0; h < call.heads; ++h)
      detail::turn_rows<S>(from.block(b * n, h * d, n, d), to.block(b * n, h * d, n, d), call.layout, call.base, r,
                           call.first, call.inverse ? -1.0 : 1.0);
}

/// An operator whose q and k are turned before it sees them; everything else goes through. Made by rope().
template <class Op>
struct Rope {
  Op inner;
  RopeOptions options;
  const char* name = inner.name;

  template <class T>
  using Args = typename Op::template Args<T>;
  template <class T>
  struct Keep : Op::template Keep<T> {
    template <class F, class... K>
    static void visit_for(const Rope& op, F&& f, const auto& head, K&&... k) {
      detail::visit_kept<typename Op::template Keep<T>>(op.inner, f, head, k...);
    }
  };

  static_assert(
      requires(Args<View<double>> a) { a.q, a.k; },
      "limpid: rope turns the inputs q and k of an operator, and this one does not have them");

  template <class In>
  void check(const Dims& dims, const In& head) const {
    inner.check(dims, head);
    for (Index cols : {head.q.cols, head.k.cols}) {
      const Index w = options.width == 0 ? cols : options.width;
      if (w < 0 || (w > 0 && cols % w != 0))
        detail::raise(std::string(name) + ": rope's width is " + detail::text_of(w) +
                      ", wanted a divisor of the head's " + detail::text_of(cols));
      detail::check_rotary(name, options.rotary, w, options.base);
      const Index r = options.rotary == 0 ? w : options.rotary;
      if (options.q_offset) detail::check_first(name, "q_offset", *options.q_offset, dims.n, options.base, r - 2, r);
      detail::check_first(name, "k_offset", options.k_offset, dims.m, options.base, r - 2, r);
    }
  }
  template <class In>
  Index out_width(const In& head) const {
    return inner.out_width(head);
  }
  const auto& modifiers() const { return inner.modifiers(); }
  auto& modifiers() { return inner.modifiers(); }

  template <class P, class S>
  void forward(const detail::Context& context, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep,
               const At& at) const {
    inner.template forward<P, S>(context, turned<S>(context, in), out, keep, at);
  }

  template <class S>
  void complete_lse(const detail::Context& context, const Args<View<S>>& in, const At& at, S* lse) const {
    detail::complete_lse(inner, context, turned<S>(context, in), at, lse);
  }

  template <class P, class S>
  void backward(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad, detail::Accumulation accumulate, const At& at, S* sinks,
                const detail::Emission<S>& emission) const {
    const Args<View<S>> seen = turned<S>(context, in);
    Args<MutView<S>> inside = grad;  // of the turned rows; zeros, as the operator may be told to add
    const auto scratch = [&](const MutView<S>& g, MutView<S>& to) {
      if (!g.given()) return;
      to = context.arena().template matrix<S>(g.rows, g.cols);
      to.fill(S(0));
    };
    scratch(grad.q, inside.q);
    scratch(grad.k, inside.k);
    inner.template backward<P, S>(context, seen, keep, dout, inside, accumulate, at, sinks, emission);
    const auto turn_back = [&](const MutView<S>& from, const MutView<S>& to, double first, bool add) {
      if (!to.given()) return;
      turn<S>(context, from, from, first, -1);  // dq = R^T dq', R the turn of the forward pass
      detail::deliver<S>(from, to, add);
    };
    turn_back(inside.q, grad.q, q_first(in), accumulate.q);
    turn_back(inside.k, grad.k, options.k_offset, accumulate.kv);
  }

  template <class P, class S>
  void apply(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x,
             MutView<S> out, const At& at) const {
    inner.template apply<P, S>(context, turned<S>(context, in), keep, x, out, at);
  }
  template <class P, class S>
  void apply_transposed(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out, const At& at) const {
    inner.template apply_transposed<P, S>(context, turned<S>(context, in), keep, g, out, at);
  }
  template <class P, class S>
  void map_block(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out, const At& at) const {
    inner.template map_block<P, S>(context, turned<S>(context, in), keep, q0, k0, out, at);
  }
  template <class P, class S>
  requires detail::has_entropy<Op, S>
  void entropy(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out,
               const At& at) const {
    inner.template entropy<P, S>(context, turned<S>(context, in), keep, out, at);
  }

 private:
  template <class In>
  double q_first(const In& in) const {
    return options.q_offset.value_or(static_cast<double>(in.k.rows - in.q.rows));
  }
  template <class S>
  void turn(const detail::Context& context, View<S> x, MutView<S> out, double first, double sign) const {
    constexpr Index rows = 1024;  // a task; a multiple of 64, so that the bits do not depend on the cut
    const Index w = options.width == 0 ? x.cols : options.width, r = options.rotary == 0 ? w : options.rotary;
    context.run((x.rows + rows - 1) / rows, [&](Index task, Arena&) {
      const Index i0 = task * rows, n = x.rows - i0 < rows ? x.rows - i0 : rows;
      for (Index c = 0; c < x.cols; c += w)
        detail::turn_rows<S>(x.block(i0, c, n, w), out.block(i0, c, n, w), options.layout, options.base, r,
                             first + static_cast<double>(i0), sign);
    });
  }
  template <class S>
  Args<View<S>> turned(const detail::Context& context, const Args<View<S>>& in) const {
    const auto one = [&](View<S> x, double first) {
      const MutView<S> out = context.arena().template matrix<S>(x.rows, x.cols);
      turn<S>(context, x, out, first, 1);
      return View<S>(out);
    };
    Args<View<S>> seen = in;
    seen.q = one(in.q, q_first(in));
    seen.k = one(in.k, options.k_offset);
    return seen;
  }
};

/// Rotary positions round an operator with inputs q and k: rope(softmax(causal())), rope(nlm(), {.layout =
/// RopeLayout::half}), also twicing, bilateral, and whatever else has them. Scores become those of rows turned by their
/// positions (see rope_rotate): for a dot product, scale q_i^T Rot(p_j - p_i) k_j, a kernel of content and offset that
/// has no cross term and is not separable. Gradients are turned back. Differential attention holds two branches in a
/// head: .width = d. rope goes outermost: rope(twicing(nlm())). Kept and modifiers are the operator's; copies of q, k
/// (and their gradients) in scratch, O((n + m) d). Throws ShapeError where rotary is odd or wider than the width.
template <class Op>
Rope<Op> rope(const Op& op, const RopeOptions& options = {}) {
  return Rope<Op>{op, options};
}

/// interleaved: PE[t, 2 l] = sin(t w_l), PE[t, 2 l + 1] = cos(t w_l); concat: all sines, then all cosines.
enum class SinusoidalLayout { interleaved, concat };

struct SinusoidalOptions {
  SinusoidalLayout layout = SinusoidalLayout::interleaved;
  double base = 10000;
  double first = 0;  ///< position of row 0
};

/// Sinusoidal encodings, w_l = base^(-2 l / D): Vaswani et al. 2017, arXiv 1706.03762, section 3.5. Overwrites out, n x
/// D; an odd D has one sine more than cosines. Added to x before the projections, so dx is the gradient of the sum. p_i
/// . p_j depends on i - j only (for even D).
template <class Out>
void sinusoidal(Out&& out, const SinusoidalOptions& options = {}) {
  using S = detail::ScalarOf<Out>;
  const MutView<S> pe(std::forward<Out>(out));
  const Index width = pe.cols, sines = (width + 1) / 2;
  detail::check_base("sinusoidal", options.base, 2 * (sines - 1), width);
  detail::check_first("sinusoidal", "first", options.first, pe.rows, options.base, 2 * (sines - 1), width);
  for (Index l = 0; l < sines; ++l) {
    const double w = std::pow(options.base, -2.0 * static_cast<double>(l) / static_cast<double>(width));
    const bool concat = options.layout == SinusoidalLayout::concat;
    const Index a = concat ? l : 2 * l, b = concat ? sines + l : 2 * l + 1;
    for (Index t = 0; t < pe.rows; ++t) {
      const double angle = (options.first + static_cast<double>(t)) * w;
      pe(t, a) = S(std::sin(angle));
      if (b < width) pe(t, b) = S(std::cos(angle));
    }
  }
}
template <class S>
Mat<S> sinusoidal(Index n, Index width, const SinusoidalOptions& options = {}) {
  if (!detail::fits_memory(n, width))
    detail::raise("sinusoidal: the encodings are " + detail::shape_text(n, width) +
                  ", wanted sizes that are not negative and at most " + detail::text_of(detail::most_entries) +
                  " entries");
  Mat<S> out(n, width);
  sinusoidal(out, options);
  return out;
}

/// H x 1 slopes for alibi(): 2^(-8 i / H), i = 1 .. H, for a power of two H; otherwise those of the largest power of
/// two P < H, then the 1st, 3rd, 5th ... slopes of 2 P. Press, Smith, Lewis 2022, arXiv 2108.12409, section 3 (other H:
/// official code).
template <class S>
Mat<S> alibi_slopes(Index heads) {
  if (heads < 0 || heads > detail::most_empty_heads)
    detail::raise("alibi_slopes: heads is " + detail::text_of(heads) + ", wanted 0 to " +
                  detail::text_of(detail::most_empty_heads));
  Mat<S> slopes(heads, 1);
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  const auto slope = [](Index i, Index of) {
    return S(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(of)));
  };
  for (Index h = 0; h < heads; ++h)
    slopes(h, 0) = h < power ? slope(h + 1, power) : slope(2 * (h - power) + 1, 2 * power);
  return slopes;
}

/// The four parts of scores of tokens with additive positions: token-token, token-position, position-token and
/// position-position (query side first).
template <class S>
struct ScoreParts {
  Mat<S> tt, tp, pt, pp;
};

namespace detail {

template <class S>
struct Decomposed {
  View<S> x, p, wq, wk;
  S scale;
};

template <class S, class X, class Pos, class WQ, class WK>
Decomposed<S> decomposed(const X& x, const Pos& p, const WQ& wq, const WK& wk, const std::optional<double>& scale) {
  Decomposed<S> d{View<S>(x), View<S>(p), View<S>(wq), View<S>(wk), S(0)};
  const std::string name = "score_parts: ";
  if (d.p.rows != d.x.rows || d.p.cols != d.x.cols)
    raise(name + "p is " + shape_text(d.p.rows, d.p.cols) + ", wanted " + shape_text(d.x.rows, d.x.cols));
  if (d.wq.rows != d.x.cols || d.wk.rows != d.x.cols || d.wk.cols != d.wq.cols)
    raise(name + "wq is " + shape_text(d.wq.rows, d.wq.cols) + " and wk " + shape_text(d.wk.rows, d.wk.cols) +
          ", wanted both " + text_of(d.x.cols) + " x d");
  check_scale<S>("score_parts", "scale", scale);
  d.scale = scale_of<S>(scale, d.wq.cols);
  return d;
}

/// out += f a b, or f a b^T, or f a^T b: plain loops, these products are small.
template <class S>
void add_product(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index i = 0; i < a.rows; ++i)
    for (Index k = 0; k < a.cols; ++k)
      for (Index j = 0; j < b.cols; ++j) out(i, j) += f * a(i, k) * b(k, j);
}
template <class S>
void add_product_nt(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index i = 0; i < a.rows; ++i)
    for (Index j = 0; j < b.rows; ++j) out(i, j) += f * dot(a.row(i), b.row(j), a.cols);
}
template <class S>
void add_product_tn(S f, View<S> a, View<S> b, MutView<S> out) {
  for (Index k = 0; k < a.rows; ++k)
    for (Index i = 0; i < a.cols; ++i)
      for (Index j = 0; j < b.cols; ++j) out(i, j) += f * a(k, i) * b(k, j);
}

template <class S>
Mat<S> multiplied(View<S> a, View<S> b) {
  Mat<S> out = Mat<S>::Zero(a.rows, b.cols);
  add_product<S>(S(1), a, b, out);
  return out;
}

}  // namespace detail

/// What positions added to tokens do to the scores S = scale ((X + P) WQ) ((X + P) WK)^T:
///
///     tt = scale (X WQ)(X WK)^T,  tp = scale (X WQ)(P WK)^T,  pt = scale (P WQ)(X WK)^T,  pp = scale (P WQ)(P WK)^T
///
/// which sum to S; tt + pp are the scores of bilateral_untied(). Our own, after Prop. III.2 of arXiv 2506.10371v1. One
/// head: x, p n x D, wq, wk D x d (blocks of columns of packed weights will do), scale default 1 / sqrt(d). A
/// diagnostic: the results are n x n by definition, 8 n^2 d flop in plain loops; score_parts_row needs memory for one
/// row. Throws ShapeError.
template <class X, class Pos, class WQ, class WK, class S = detail::ScalarOf<X>>
ScoreParts<S> score_parts(const X& x, const Pos& p, const WQ& wq, const WK& wk,
                          std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  const Mat<S> xq = detail::multiplied(d.x, d.wq), pq = detail::multiplied(d.p, d.wq);
  const Mat<S> xk = detail::multiplied(d.x, d.wk), pk = detail::multiplied(d.p, d.wk);
  const auto part = [&](const Mat<S>& a, const Mat<S>& b) {
    Mat<S> out = Mat<S>::Zero(a.rows(), b.rows());
    detail::add_product_nt<S>(d.scale, a, b, out);
    return out;
  };
  return {part(xq, xk), part(xq, pk), part(pq, xk), part(pq, pk)};
}

/// Row i of the four parts, 1 x n each: scale x_j . (WK (WQ^T x_i)) and so on. 2 D (2 n + 4 d) flop, memory O(n + D).
template <class X, class Pos, class WQ, class WK, class S = detail::ScalarOf<X>>
ScoreParts<S> score_parts_row(const X& x, const Pos& p, const WQ& wq, const WK& wk, Index i,
                              std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  if (i < 0 || i >= d.x.rows)
    detail::raise("score_parts_row: row " + detail::text_of(i) + " was asked for, there are " +
                  detail::text_of(d.x.rows));
  const auto row = [&](View<S> from, View<S> keys) {  // from . WQ . WK^T . keys^T
    const Mat<S> q = detail::multiplied(from.block(i, 0, 1, from.cols), d.wq);
    Mat<S> u = Mat<S>::Zero(1, keys.cols), out = Mat<S>::Zero(1, keys.rows);
    detail::add_product_nt<S>(d.scale, q, d.wk, u);
    detail::add_product_nt<S>(S(1), u, keys, out);
    return out;
  };
  return {row(d.x, d.x), row(d.x, d.p), row(d.p, d.x), row(d.p, d.p)};
}

/// Gradients of x, p, wq and wk from those of the four parts (n x n each, none may be missing), e.g. of a penalty on
/// the cross terms: with Xq = X WQ and so on, dXq = scale (dtt Xk + dtp Pk), dXk = scale (dtt^T Xq + dpt^T Pq), dPq,
/// dPk likewise, then dX = dXq WQ^T + dXk WK^T,  dWQ = X^T dXq + P^T dPq. Overwrites dx, dp (n x D), dwq, dwk (D x d).
/// Throws ShapeError where shapes do not fit or one of these shares memory with another array.
template <class S, class X, class Pos, class WQ, class WK, class DX, class DP, class DWQ, class DWK>
void score_parts_backward(const X& x, const Pos& p, const WQ& wq, const WK& wk, const ScoreParts<S>& dout, DX&& dx,
                          DP&& dp, DWQ&& dwq, DWK&& dwk, std::optional<double> scale = default_scale) {
  const auto d = detail::decomposed<S>(x, p, wq, wk, scale);
  const MutView<S> gx(std::forward<DX>(dx)), gp(std::forward<DP>(dp)), gq(std::forward<DWQ>(dwq)),
      gk(std::forward<DWK>(dwk));
  const Index n = d.x.rows;
  const auto check = [](const char* name, View<S> found, Index rows, Index cols) {
    if (found.rows != rows || found.cols != cols)
      detail::raise(std::string("score_parts_backward: ") + name + " is " + detail::shape_text(found.rows, found.cols) +
                    ", wanted " + detail::shape_text(rows, cols));
  };
  check("dtt", dout.tt, n, n), check("dtp", dout.tp, n, n), check("dpt", dout.pt, n, n), check("dpp", dout.pp, n, n);
  check("dx", gx, n, d.x.cols), check("dp", gp, n, d.x.cols);
  check("dwq", gq, d.wq.rows, d.wq.cols), check("dwk", gk, d.wk.rows, d.wk.cols);
  detail::refuse_overlaps("score_parts_backward", {{"dx", gx}, {"dp", gp}, {"dwq", gq}, {"dwk", gk}},
                          {{"x", d.x},
                           {"p", d.p},
                           {"wq", d.wq},
                           {"wk", d.wk},
                           {"dtt", View<S>(dout.tt)},
                           {"dtp", View<S>(dout.tp)},
                           {"dpt", View<S>(dout.pt)},
                           {"dpp", View<S>(dout.pp)}});

  const Mat<S> xq = detail::multiplied(d.x, d.wq), pq = detail::multiplied(d.p, d.wq);
  const Mat<S> xk = detail::multiplied(d.x, d.wk), pk = detail::multiplied(d.p, d.wk);
  const auto query = [&](const Mat<S>& with_x, const Mat<S>& with_p) {
    Mat<S> g = Mat<S>::Zero(n, d.wq.cols);
    detail::add_product<S>(d.scale, with_x, xk, g);
    detail::add_product<S>(d.scale, with_p, pk, g);
    return g;
  };
  const auto key = [&](const Mat<S>& with_x, const Mat<S>& with_p) {
    Mat<S> g = Mat<S>::Zero(n, d.wq.cols);
    detail::add_product_tn<S>(d.scale, with_x, xq, g);
    detail::add_product_tn<S>(d.scale, with_p, pq, g);
    return g;
  };
  const Mat<S> dxq = query(dout.tt, dout.tp), dpq = query(dout.pt, dout.pp);
  const Mat<S> dxk = key(dout.tt, dout.pt), dpk = key(dout.tp, dout.pp);
  for (const auto& g : {gx, gp, gq, gk}) g.fill(S(0));
  detail::add_product_nt<S>(S(1), dxq, d.wq, gx), detail::add_product_nt<S>(S(1), dxk, d.wk, gx);
  detail::add_product_nt<S>(S(1), dpq, d.wq, gp), detail::add_product_nt<S>(S(1), dpk, d.wk, gp);
  detail::add_product_tn<S>(S(1), d.x, dxq, gq), detail::add_product_tn<S>(S(1), d.p, dpq, gq);
  detail::add_product_tn<S>(S(1), d.x, dxk, gk), detail::add_product_tn<S>(S(1), d.p, dpk, gk);
}

}  // namespace LIMPID_ABI
}  // namespace limpid
