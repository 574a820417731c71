// limpid: decoding with twicing attention: one token at a time, with a cache of keys, values and residuals.
// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "../op/twicing.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct DecodeOptions {
  Index batch = 1, heads = 1, kv_heads = 0;  ///< as in Call
};

/// Twicing one token at a time, as causal attention over the tokens so far: row i of
/// forward(twicing(chain(causal(), ...))) up to rounding, in i (d + (order + 1) dv) products instead of a whole pass.
/// [ours] Since a row of A V needs no later token, the residuals V - u_t of earlier tokens are cached beside K and V:
///
///     a_i = softmax over j <= i
///     u_{0,i} = sum_j a_ij v_j,   u_{t,i} = u_{t-1,i} + alpha sum_j a_ij (v_j - u_{t-1,j})
///
/// where the term j = i uses the row just found. The operator's modifiers are asked with n = 1 and m = i + 1, the token
/// standing at the last key: ALiBi, windows and causal() fit; masks must go by position(), and arrays of a fixed number
/// of keys are refused. Memory a token: K and V as given, and H order dv residuals. Keys with rotary positions are
/// cached rotated. One call at a time: another one meanwhile, on whatever thread, throws ShapeError. A copy holds the
/// tokens so far and goes on by itself, as a search over several continuations needs it.
template <class Op, class S>
class TwicingCache {
 public:
  explicit TwicingCache(const Op& op, const DecodeOptions& options = {})
      : op_(op), dims_{options.batch, options.heads, options.kv_heads == 0 ? options.heads : options.kv_heads, 1, 1} {
    if (dims_.batch < 1 || dims_.heads < 1 || dims_.kv_heads < 1 || dims_.heads % dims_.kv_heads != 0)
      detail::raise(std::string(op.name) + " cache: batch " + detail::text_of(dims_.batch) + ", heads " +
                    detail::text_of(dims_.heads) + ", kv_heads " + detail::text_of(dims_.kv_heads) +
                    ", wanted positive ones, kv_heads a divisor of heads");
  }

  /// Tokens held.
  Index size() const { return size_; }
  /// Forgets them; memory is kept.
  void clear() {
    const detail::SavedTurn turn = take_turn();
    size_ = 0;
  }
  /// Makes room, so that no step up to that many tokens allocates (after the first, which learns the widths).
  void reserve(Index tokens) {
    const detail::SavedTurn turn = take_turn();
    if (!detail::fits_memory(tokens, 1))
      detail::raise(detail::Name(op_.name) + (" cache: reserve was asked for " + detail::text_of(tokens) +
                                              " tokens, wanted 0 to " + detail::text_of(detail::most_entries)));
    room_ = std::max<Index>(room_, tokens);
  }

  /// The next token of every batch item: q is B x (H d), k B x (G d), v B x (G dv), out B x (H dv); other inputs of the
  /// map likewise, with n = m = 1. Throws ShapeError where shapes do not fit or differ from the first token's, or out
  /// shares memory with an input. Whatever is thrown on the way, also by a modifier's function or for want of memory,
  /// the cache is as it was before.
  void step(const Inputs<Op, S>& token, MutView<S> out, ExecutorRef executor = {}) {
    using P = detail::Native<S>;
    const detail::SavedTurn turn = take_turn();
    detail::check_call<Op, S>(op_, token, dims_, View<S>(out), "out");
    detail::refuse_overlaps(op_.name, detail::arrays({{"out", out}}),
                            detail::joined(detail::fields_of(token), detail::tables_of(op_)));
    const Index heads = dims_.heads, dv = out.cols / heads;
    Dims seen = dims_;
    seen.m = size_ + 1;
    op_.modifiers().check(op_.name, seen.batch, heads, 1, seen.m);
    past_.resize(static_cast<std::size_t>(dims_.batch));  // not before arrays with that many items were seen
    residuals_.resize(static_cast<std::size_t>(dims_.batch));
    append(token);
    struct Step {  // taken back unless it comes to its end
      Index& size;
      bool done = false;
      explicit Step(Index& s) : size(s) { ++size; }
      ~Step() { size -= done ? 0 : 1; }
    } step(size_);
    const double flop = 4 * double(seen.batch * seen.m * (op_.order + 1)) * double(out.cols);
    detail::for_heads(
        seen.batch * heads, true, flop, workspace_, executor, [&](Index t, const detail::Context& context) {
          const Index b = t / heads, h = t % heads;
          Inputs<Op, S> head{};
          Inputs<Op, S>::visit(
              [&](const char*, Role role, const View<S>& one, const Mat<S>& past, View<S>& to) {
                if (!one.given()) return;
                Dims d = seen;
                d.batch = 1;
                if (role == Role::key || role == Role::key_side)
                  to = detail::head_of(View<S>(past).block(0, 0, size_, past.cols()), role, d, 0, h);
                else if (role == Role::head)
                  to = detail::head_of(one, role, d, 0, h);
                else
                  to = detail::head_of(one.block(one.rows == 1 ? 0 : b, 0, 1, one.cols), role, d, 0, h);
              },
              token, past_[static_cast<std::size_t>(b)], head);
          MutView<S> residuals = residuals_[static_cast<std::size_t>(b)];
          row<P>(context.arena(), op_, head, residuals.block(0, h * op_.order * dv, size_, op_.order * dv),
                 out.block(b, h * dv, 1, dv), detail::at_head(seen, b, h));
        });
    step.done = true;
  }

 private:
  detail::SavedTurn take_turn() { return {&turn_, true, op_.name, " cache"}; }
  /// Room for one more row, doubled when it runs out.
  void grow(Mat<S>& m, Index cols) const {
    if (m.cols() == cols && m.rows() > size_) return;
    Mat<S> larger(std::max<Index>({room_, 2 * size_, 16}), cols);
    if (size_ > 0) larger.topRows(size_) = m.topRows(size_);
    m.swap(larger);
  }
  void append(const Inputs<Op, S>& token) {
    for (Index b = 0; b < dims_.batch; ++b) {
      auto& past = past_[static_cast<std::size_t>(b)];
      Inputs<Op, S>::visit(
          [&](const char* name, Role role, const View<S>& one, Mat<S>& rows) {
            if (role != Role::key && role != Role::key_side) return;
            if (size_ > 0 && rows.cols() != one.cols)
              detail::raise(std::string(op_.name) + " cache: " + name + " has " + detail::text_of(one.cols) +
                            " columns, wanted " + detail::text_of(rows.cols()) + " as the first token's");
            if (one.cols == 0) return;
            grow(rows, one.cols);
            for (Index c = 0; c < one.cols; ++c) rows(Index(size_), c) = one(one.rows == 1 ? 0 : b, c);
          },
          token, past);
      grow(residuals_[static_cast<std::size_t>(b)], dims_.heads * op_.order * (token.v.cols / dims_.kv_heads));
    }
  }

  /// out = sum_j a_j x_j, summed by blocks of keys as the sweeps do; a key that weighs nothing is not looked at.
  template <class P>
  static void weighted_rows(const S* a, View<S> x, MutView<S> part, S* out) {
    for (Index c = 0; c < x.cols; ++c) out[c] = S(0);
    for (Index j0 = 0; j0 < x.rows; j0 += 128) {
      part.fill(S(0));
      for (Index j = j0; j < std::min(x.rows, j0 + 128); ++j)
        if (a[j] != S(0)) detail::combine_row<P>(a[j], x.row(j), S(1), part.data, part.data, x.cols);
      detail::add_row<P>(part.data, out, x.cols);
    }
  }

  /// One head of one token: scores, weights, u_0 .. u_order, and the residuals of this token into the last row.
  template <class P>
  static void row(Arena& arena, const Op& op, const Inputs<Op, S>& head, MutView<S> residuals, MutView<S> out, At at) {
    using std::exp;
    auto prepared = op.score.prepare(arena, head, at);
    auto& s = prepared.scores;
    s.settle(arena);
    const Index m = at.m, dv = head.v.cols, now = m - 1;
    S* a = arena.take<S>(m);
    if (s.by_pair())
      for (Index j = 0; j < m; ++j) a[j] = detail::score_of_parts<P>(s, s.parts, 0, j);
    else
      detail::row_dots<P>(View<S>(s.q.data, m, s.q.cols, 0), s.k, a);
    S top = detail::minus_infinity<S>(), total(0);
    for (Index j = 0; j < m; ++j) {
      const S score = (s.by_pair() ? a[j] : a[j] * s.scale) + (s.bias ? s.bias[j] : S(0));
      a[j] = s.kept(0, j) ? s.value(score, 0, j) : detail::minus_infinity<S>();
      if (!(a[j] <= top)) top = a[j];  // a NaN that is kept shows
    }
    for (Index j = 0; j < m; ++j) total += a[j] = a[j] == detail::minus_infinity<S>() ? S(0) : exp(a[j] - top);
    const S shrink = s.add_sink(0, 0, top, total);
    for (Index j = 0; j < m && total != S(0); ++j) a[j] = a[j] * shrink / total;
    if (total == S(0)) detail::clear(a, m);

    const MutView<S> part = arena.matrix<S>(1, std::max(dv, residuals.cols));
    S* again = arena.take<S>(residuals.cols);
    weighted_rows<P>(a, head.v, part.block(0, 0, 1, dv), out.data);  // u_0
    weighted_rows<P>(a, residuals.block(0, 0, now, residuals.cols), part.block(0, 0, 1, residuals.cols), again);
    for (Index t = 0; t < op.order; ++t)
      for (Index c = 0; c < dv; ++c) {
        const S r = residuals(now, t * dv + c) = head.v(now, c) - out(0, c);
        out(0, c) += S(op.alpha) * (again[t * dv + c] + (a[now] == S(0) ? S(0) : a[now] * r));  // u_{t + 1}
      }
  }

  Op op_;
  Dims dims_;
  detail::Count size_, room_;
  std::vector<typename Op::template Args<Mat<S>>> past_;  // a batch item each: rows of every key array
  std::vector<Mat<S>> residuals_;                         // V - u_t: head after head, t = 0 .. order - 1
  Workspace workspace_;
  detail::Turn turn_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
