// limpid: rotary positions round an operator.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>

#include "../call/operator.hpp"
#include "../score/dot.hpp"
#include "../score/positions.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Which columns make plane l of a rotary width r: (2 l, 2 l + 1),
/// as in the paper, or (l, l + r / 2), as in GPT-NeoX and Llama.
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

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    inner.forward(pass, turned<S>(pass.context, in), out, keep);
  }

  template <class S>
  void complete_lse(const engine::Context& context, const Args<View<S>>& in, const At& at, S* lse) const {
    detail::complete_lse(inner, context, turned<S>(context, in), at, lse);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    const Args<View<S>> seen = turned<S>(pass.context, in);
    Args<MutView<S>> inside = grad;  // of the turned rows; zeros, as the operator may be told to add
    const auto scratch = [&](const MutView<S>& g, MutView<S>& to) {
      if (!g.given()) return;
      to = pass.arena().template matrix<S>(g.rows, g.cols);
      to.fill(S(0));
    };
    scratch(grad.q, inside.q);
    scratch(grad.k, inside.k);
    inner.backward(pass, seen, keep, dout, inside);
    const auto turn_back = [&](const MutView<S>& from, const MutView<S>& to, double first, bool add) {
      if (!to.given()) return;
      turn<S>(pass.context, from, from, first, -1);  // dq = R^T dq', R the turn of the forward pass
      engine::copy_or_add<S>(from, to, add);
    };
    turn_back(inside.q, grad.q, q_first(in), pass.accumulate.q);
    turn_back(inside.k, grad.k, options.k_offset, pass.accumulate.kv);
  }

  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    inner.apply(pass, turned<S>(pass.context, in), keep, x, out);
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    inner.apply_transposed(pass, turned<S>(pass.context, in), keep, g, out);
  }
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    inner.map_block(pass, turned<S>(pass.context, in), keep, q0, k0, out);
  }
  template <class P, class S = typename P::Scalar>
  requires detail::has_entropy<Op, S>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    inner.entropy(pass, turned<S>(pass.context, in), keep, out);
  }

 private:
  template <class In>
  double q_first(const In& in) const {
    return options.q_offset.value_or(static_cast<double>(in.k.rows - in.q.rows));
  }
  template <class S>
  void turn(const engine::Context& context, View<S> x, MutView<S> out, double first, double sign) const {
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
  Args<View<S>> turned(const engine::Context& context, const Args<View<S>>& in) const {
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

}  // namespace LIMPID_ABI
}  // namespace limpid
