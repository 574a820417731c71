// limpid: rotary positions round an operator.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <optional>

#include "../call/checks.hpp"
#include "../call/operator.hpp"
#include "../score/dot.hpp"
#include "../score/rope_frequencies.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Which columns make plane l of a rotary width r: (2 l, 2 l + 1),
/// as in the paper, or (l, l + r / 2), as in GPT-NeoX and Llama.
enum class RopeLayout { interleaved, half };

/// An offset that is not set: m - n.
inline constexpr std::nullopt_t default_offset = std::nullopt;

/// frequencies, A x r / 2, a row an axis of the positions and a column a plane, stand in place of base^(-2 l / r):
/// rope_frequencies (one axis, scaled for longer texts), axial_frequencies (tokens of an image), or others. q_positions
/// and k_positions, n x A and m x A for all items alike or batch times as many rows, say where tokens stand, in place
/// of the offsets: padding on the left, sequences one after the other, places on a grid. Those arrays are looked at,
/// and have to outlive the operator.
struct RopeOptions {
  RopeLayout layout = RopeLayout::interleaved;
  double base = 10000;
  Index rotary = 0;  ///< r, the columns turned, even, at most the width; 0 means all
  Index width = 0;   ///< columns that share one rotation, a divisor of the head's width; 0 means all of them
  std::optional<double> q_offset = default_offset;  ///< position of query 0
  double k_offset = 0;                              ///< position of key 0
  View<double> frequencies = {};
  double amplitude = 1;  ///< what q and k are multiplied by besides
  View<double> q_positions = {}, k_positions = {};
};

/// Arguments of rope_rotate; frequencies, amplitude and positions, of the rows of x, as in RopeOptions.
struct RopeRotation {
  RopeLayout layout = RopeLayout::interleaved;
  double base = 10000;
  Index rotary = 0;
  Index batch = 1, heads = 1;
  double first = 0;      ///< position of row 0 of every item
  bool inverse = false;  ///< turn back: what a gradient wants, as the rotation is orthogonal but for the amplitude
  View<double> frequencies = {};
  double amplitude = 1;
  View<double> positions = {};
};

namespace detail {

inline constexpr Index most_rope_axes = 4;

/// What rows are turned by.
struct Turning {
  RopeLayout layout;
  double base;
  Index r;
  View<double> frequencies;
  double amplitude;
  Index axes() const { return frequencies.given() ? frequencies.rows : 1; }
  double frequency(Index axis, Index plane) const {
    if (frequencies.given()) return frequencies(axis, plane);
    return std::pow(base, -2.0 * static_cast<double>(plane) / static_cast<double>(r));
  }
  double fastest() const {
    double most = 0;
    for (Index a = 0; a < frequencies.rows; ++a)
      for (Index l = 0; l < frequencies.cols; ++l) most = std::max(most, std::abs(frequencies(a, l)));
    return most;
  }
};

/// Where rows stand: row i at first + i, or as `rows` says, an axis a column.
struct RopePlaces {
  double first = 0;
  View<double> rows = {};
  RopePlaces from(Index i, Index count) const {
    return {first + static_cast<double>(i), rows.given() ? rows.block(i, 0, count, rows.cols) : rows};
  }
  /// Rows from i on, `most` at most, of which each stands one further along the last axis than the one before it.
  Index run(Index i, Index most) const {
    if (!rows.given()) return most;
    const Index last = rows.cols - 1;
    for (Index s = 1; s < most; ++s) {
      for (Index a = 0; a < last; ++a)
        if (rows(i + s, a) != rows(i, a)) return s;
      if (rows(i + s, last) != rows(i, last) + static_cast<double>(s)) return s;
    }
    return most;
  }
};

/// The part that an item has of the positions of all, or that is the same for all.
inline View<double> rows_of_item(View<double> positions, Index n, Index item) {
  return positions.given() ? positions.block(positions.rows == n ? 0 : item * n, 0, n, positions.cols) : positions;
}

inline void check_rotary(const char* op, Index rotary, Index width) {
  const Index r = rotary == 0 ? width : rotary;
  if (r < 0 || r > width || r % 2 != 0)
    raise(std::string(op) + ": rotary is " + text_of(r) + ", wanted an even number, at most the width " +
          text_of(width));
}
template <class S>
void check_turning(const char* op, const Turning& t) {
  check_finite<S>(op, "amplitude", t.amplitude);
  const View<double> f = t.frequencies;
  if (!f.given()) return check_base(op, t.base, t.r - 2, t.r);
  if (f.rows < 1 || f.rows > most_rope_axes || f.cols != t.r / 2)
    raise(std::string(op) + ": frequencies is " + shape_text(f.rows, f.cols) + ", wanted 1 to " +
          text_of(most_rope_axes) + " rows, an axis each, and " + text_of(t.r / 2) + " columns, a plane each");
  check_parameters<double>(op, "frequencies", f);
}
/// Rows first .. first + count of one axis.
inline void check_first(const char* op, const char* option, double first, Index count, const Turning& t) {
  if (!t.frequencies.given()) return check_first(op, option, first, count, t.base, t.r - 2, t.r);
  check_finite<double>(op, option, first);
  check_finite<double>(op, option, first,
                       std::isfinite((std::abs(first) + static_cast<double>(count)) * std::max(1.0, t.fastest())),
                       "one whose angles do not overflow");
}
/// Positions of n rows of each item, which have to be there where frequencies are of several axes.
inline void check_positions(const char* op, const char* name, View<double> p, Index n, Index batch, const Turning& t) {
  const auto axes = [&] { return text_of(t.axes()) + " columns, as frequencies have rows, an axis each"; };
  if (!p.given()) {
    if (t.axes() != 1) raise(std::string(op) + ": " + name + " is not given, wanted " + axes());
    return;
  }
  if ((p.rows != n && p.rows != batch * n) || p.cols != t.axes())
    raise(std::string(op) + ": " + name + " is " + shape_text(p.rows, p.cols) + ", wanted " + text_of(n) +
          " rows, or batch times that, and " + axes());
  check_parameters<double>(op, name, p);
  double farthest = 0;
  for (Index i = 0; i < p.rows; ++i)
    for (Index a = 0; a < p.cols; ++a) farthest = std::max(farthest, std::abs(p(i, a)));
  check_first(op, name, farthest * static_cast<double>(t.axes()), 1, t);
}

/// Turns plane l of every row by sum_a p_a f(a, l), times the amplitude, back if sign is -1; out may be x. Of rows that
/// stand one after the other the angle of row s of a block is that of its first, computed, plus that of s, from a
/// table: one complex product in place of a sine and a cosine.
template <class S>
void turn_rows(View<S> x, MutView<S> out, const Turning& t, const RopePlaces& places, double sign) {
  constexpr Index block = 64, chunk = 8;
  double step_cos[chunk][block], step_sin[chunk][block], frequency[most_rope_axes][chunk];
  const Index n = x.rows, half = t.r / 2, steps = n < block ? n : block, axes = t.axes();
  if (out.data != x.data)
    for (Index i = 0; i < n; ++i)
      for (Index c = t.r; c < x.cols; ++c) out(i, c) = x(i, c);
  for (Index l0 = 0; l0 < half; l0 += chunk) {
    const Index planes = half - l0 < chunk ? half - l0 : chunk;
    for (Index l = 0; l < planes; ++l) {
      for (Index a = 0; a < axes; ++a) frequency[a][l] = t.frequency(a, l0 + l);
      for (Index s = 0; s < steps; ++s) {
        const double angle = static_cast<double>(s) * frequency[axes - 1][l];
        step_cos[l][s] = std::cos(angle), step_sin[l][s] = std::sin(angle);
      }
    }
    for (Index i0 = 0, rows = 0; i0 < n; i0 += rows) {
      rows = places.run(i0, n - i0 < block ? n - i0 : block);
      for (Index l = 0; l < planes; ++l) {
        double angle = 0;
        if (places.rows.given())
          for (Index a = 0; a < axes; ++a) angle += places.rows(i0, a) * frequency[a][l];
        else
          angle = (places.first + static_cast<double>(i0)) * frequency[0][l];
        const double c0 = t.amplitude * std::cos(angle), s0 = t.amplitude * std::sin(angle);
        const Index a = t.layout == RopeLayout::half ? l0 + l : 2 * (l0 + l);
        const Index b = t.layout == RopeLayout::half ? a + half : a + 1;
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
/// for plane l = (a, b) of every head, or, with frequencies and positions, t = sum over axes of p(i, axis)
/// f(axis, l), and times the amplitude. Su et al. 2021, "RoFormer", arXiv 2104.09864, eq. 15 and 34. Columns r.. of a
/// head are left alone. Norms are kept, times the amplitude; inverse turns back. out may be x itself. Cost 8 flop an
/// entry, and a sine and a cosine a plane for every 64 rows that stand one after the other. Throws ShapeError where
/// shapes, rotary, base, frequencies or positions do not fit, positions are given beside first, an angle overflows, or
/// out shares memory with frequencies, positions, or x without being x.
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
  const char* op = "rope_rotate";
  detail::check_rotary(op, call.rotary, d);
  const detail::Turning t{call.layout, call.base, call.rotary == 0 ? d : call.rotary, call.frequencies, call.amplitude};
  detail::check_turning<S>(op, t);
  detail::check_counts(op, call.batch, call.heads, from.rows * from.cols);
  detail::check_positions(op, "positions", call.positions, n, call.batch, t);
  if (call.positions.given() && call.first != 0)
    detail::raise(std::string(op) + ": positions is given beside first, wanted one of them");
  detail::check_first(op, "first", call.first, n, t);
  detail::refuse_overlaps(op, {{"out", to}}, {{"frequencies", call.frequencies}, {"positions", call.positions}});
  for (Index b = 0; b < call.batch; ++b)
    for (Index h = 0; h < call.heads; ++h)
      detail::turn_rows<S>(from.block(b * n, h * d, n, d), to.block(b * n, h * d, n, d), t,
                           {call.first, detail::rows_of_item(call.positions, n, b)}, call.inverse ? -1.0 : 1.0);
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
      detail::check_rotary(name, options.rotary, w);
      const detail::Turning t = turning(cols);
      detail::check_turning<detail::ScalarOf<decltype(head.q)>>(name, t);
      if (options.q_offset) detail::check_first(name, "q_offset", *options.q_offset, dims.n, t);
      detail::check_first(name, "k_offset", options.k_offset, dims.m, t);
      detail::check_positions(name, "q_positions", options.q_positions, dims.n, dims.batch, t);
      detail::check_positions(name, "k_positions", options.k_positions, dims.m, dims.batch, t);
    }
    if (options.q_positions.given() && options.q_offset)
      detail::raise(std::string(name) + ": q_positions is given beside q_offset, wanted one of them");
    if (options.k_positions.given() && options.k_offset != 0)
      detail::raise(std::string(name) + ": k_positions is given beside k_offset, wanted one of them");
  }
  template <class In>
  Index out_width(const In& head) const {
    return inner.out_width(head);
  }
  const auto& modifiers() const { return inner.modifiers(); }
  auto& modifiers() { return inner.modifiers(); }
  static constexpr bool rows_sum_to_one = detail::rows_sum_to_one<Op>;
  static constexpr bool needs_whole_map = detail::needs_whole_map<Op>;
  /// The arrays that rows are turned by.
  template <class F>
  void reads(F&& f) const {
    f(detail::NamedArray("frequencies", options.frequencies));
    f(detail::NamedArray("q_positions", options.q_positions));
    f(detail::NamedArray("k_positions", options.k_positions));
    if constexpr (requires { inner.reads(f); }) inner.reads(f);
  }

  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    inner.forward(pass, turned<S>(pass.context, in, pass.at), out, keep);
  }

  template <class S>
  void complete_lse(const engine::Context& context, const Args<View<S>>& in, const At& at, S* lse) const {
    detail::complete_lse(inner, context, turned<S>(context, in, at), at, lse);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    const Args<View<S>> seen = turned<S>(pass.context, in, pass.at);
    Args<MutView<S>> inside = grad;  // of the turned rows; zeros, as the operator may be told to add
    const auto scratch = [&](const MutView<S>& g, MutView<S>& to) {
      if (!g.given()) return;
      to = pass.arena().template matrix<S>(g.rows, g.cols);
      to.fill(S(0));
    };
    scratch(grad.q, inside.q);
    scratch(grad.k, inside.k);
    inner.backward(pass, seen, keep, dout, inside);
    const auto turn_back = [&](const MutView<S>& from, const MutView<S>& to, const detail::RopePlaces& at, bool add) {
      if (!to.given()) return;
      turn<S>(pass.context, from, from, at, -1);  // dq = R^T dq', R the turn of the forward pass
      engine::copy_or_add<S>(from, to, add);
    };
    turn_back(inside.q, grad.q, q_places(in, pass.at), pass.accumulate.q);
    turn_back(inside.k, grad.k, k_places(in, pass.at), pass.accumulate.kv);
  }

  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    inner.apply(pass, turned<S>(pass.context, in, pass.at), keep, x, out);
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    inner.apply_transposed(pass, turned<S>(pass.context, in, pass.at), keep, g, out);
  }
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    inner.map_block(pass, turned<S>(pass.context, in, pass.at), keep, q0, k0, out);
  }
  template <class P, class S = typename P::Scalar>
  requires detail::has_entropy<Op, S>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    inner.entropy(pass, turned<S>(pass.context, in, pass.at), keep, out);
  }

 private:
  template <class In>
  detail::RopePlaces q_places(const In& in, const At& at) const {
    return {options.q_offset.value_or(static_cast<double>(in.k.rows - in.q.rows)),
            detail::rows_of_item(options.q_positions, in.q.rows, at.batch)};
  }
  template <class In>
  detail::RopePlaces k_places(const In& in, const At& at) const {
    return {options.k_offset, detail::rows_of_item(options.k_positions, in.k.rows, at.batch)};
  }
  detail::Turning turning(Index cols) const {
    const Index w = options.width == 0 ? cols : options.width, r = options.rotary == 0 ? w : options.rotary;
    return {options.layout, options.base, r, options.frequencies, options.amplitude};
  }
  template <class S>
  void turn(const engine::Context& context, View<S> x, MutView<S> out, const detail::RopePlaces& places,
            double sign) const {
    constexpr Index rows = 1024;  // a task; a multiple of 64, so that the bits do not depend on the cut
    const Index w = options.width == 0 ? x.cols : options.width;
    const detail::Turning t = turning(x.cols);
    context.run((x.rows + rows - 1) / rows, [&](Index task, Arena&) {
      const Index i0 = task * rows, n = x.rows - i0 < rows ? x.rows - i0 : rows;
      for (Index c = 0; c < x.cols; c += w)
        detail::turn_rows<S>(x.block(i0, c, n, w), out.block(i0, c, n, w), t, places.from(i0, n), sign);
    });
  }
  template <class S>
  Args<View<S>> turned(const engine::Context& context, const Args<View<S>>& in, const At& at) const {
    const auto one = [&](View<S> x, const detail::RopePlaces& places) {
      const MutView<S> out = context.arena().template matrix<S>(x.rows, x.cols);
      turn<S>(context, x, out, places, 1);
      return View<S>(out);
    };
    Args<View<S>> seen = in;
    seen.q = one(in.q, q_places(in, at));
    seen.k = one(in.k, k_places(in, at));
    return seen;
  }
};

/// Rotary positions round an operator with inputs q and k: rope(softmax(causal())), rope(nlm(), {.layout =
/// RopeLayout::half}), also twicing, bilateral, and whatever else has them. Scores become those of rows turned by their
/// positions (see rope_rotate): for a dot product, scale q_i^T Rot(p_j - p_i) k_j, a kernel of content and offset that
/// has no cross term and is not separable. Gradients are turned back. Differential attention holds two branches in a
/// head: .width = d. rope goes outermost: rope(twicing(nlm())). Kept and modifiers are the operator's; copies of q, k
/// (and their gradients) in scratch, O((n + m) d). With q_positions and k_positions tokens stand where these say, and
/// masks go on as if they did not: padding on the left is left out by key_bias or a mask, sequences one after the other
/// are kept apart by packed. Throws ShapeError where rotary is odd or wider than the width, frequencies or positions do
/// not fit, are not finite, are of several axes without positions, or are given beside offsets, and where an angle
/// overflows.
template <class Op>
Rope<Op> rope(const Op& op, const RopeOptions& options = {}) {
  return Rope<Op>{op, options};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
