// limpid: decoding with twicing attention: one token at a time, with a cache of keys, values and residuals.
// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "../call/decode.hpp"
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
/// of keys are refused. Memory a token: K and V as given, or none where they lie in pages, and H order dv residuals.
/// Keys with rotary positions are cached rotated. One call at a time: another one meanwhile, on whatever thread, throws
/// ShapeError. A copy holds the tokens so far and goes on by itself, as a search over several continuations needs it.
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
  const Op& op() const { return op_; }
  /// Forgets them; memory is kept.
  void clear() { truncate(0); }
  /// Forgets all but the first ones, whose rows need no later token. Throws ShapeError where it has fewer.
  void truncate(Index tokens) {
    const detail::SavedTurn turn = take_turn();
    if (tokens < 0 || tokens > size_)
      detail::raise(detail::Name(op_.name) + (" cache: truncate was asked for " + detail::text_of(tokens) +
                                              " tokens, wanted 0 to " + detail::text_of(size_) + ", those held"));
    size_ = tokens;
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
    const detail::SavedTurn turn = take_turn();
    advance(token, nullptr, out, executor);
  }
  /// The same with the keys and values of all tokens in pages, this one's among them, from the first step on: token has
  /// neither k nor v, and every item has size() + 1 keys. The bits are those of keys that are given. Scores that use
  /// keys as they are, those of dot products, read pages where they lie, others from a copy of one head's. Throws as
  /// the step above and decode() do, and where an item has another number of keys.
  void step(const Inputs<Op, S>& token, const Pages<S>& pages, MutView<S> out, ExecutorRef executor = {}) {
    const detail::SavedTurn turn = take_turn();
    const std::string name = std::string(op_.name) + " cache";
    if (token.k.given() || token.v.given())
      detail::raise(name + ": " + (token.k.given() ? "k" : "v") + " is given beside pages, wanted one of them");
    detail::check_pages(name, pages, dims_);
    for (Index b = 0; b < dims_.batch; ++b)
      if (const Index keys = detail::page_length(pages, b); keys != size_ + 1)
        detail::raise(name + ": item " + detail::text_of(b) + " of the pages has " + detail::text_of(keys) +
                      " keys, wanted " + detail::text_of(size_ + 1) + ", the tokens so far and this one");
    if (const Index held = size_ > 0 ? residuals_[0].cols() : 0; held != 0 && held != residual_columns(pages.v.width))
      detail::raise(name + ": v of the pages has width " + detail::text_of(pages.v.width) + ", wanted " +
                    detail::text_of(held / residual_columns(1)) + " as the first token's");
    advance(token, &pages, out, executor);
  }

 private:
  Index residual_columns(Index value_columns) const { return dims_.heads * op_.order * value_columns; }
  void advance(const Inputs<Op, S>& token, const Pages<S>* pages, MutView<S> out, ExecutorRef executor) {
    using P = detail::Native<S>;
    Inputs<Op, S> shaped = token;
    if (pages != nullptr) {
      const auto shape_of = [&](const PagePool<S>& pool) {
        return View<S>(pool.data, dims_.batch, dims_.kv_heads * pool.width, pool.row_stride);
      };
      shaped.k = shape_of(pages->k), shaped.v = shape_of(pages->v);
    }
    detail::check_call<Op, S>(op_, shaped, dims_, View<S>(out), "out");
    detail::refuse_overlaps(op_.name, detail::arrays({{"out", out}}),
                            detail::joined(detail::fields_of(token), detail::tables_of(op_)));
    if (pages != nullptr)
      detail::refuse_overlaps(op_.name, {{"out", out}},
                              {{"k of the pages", detail::extent_of(pages->k, dims_.kv_heads)},
                               {"v of the pages", detail::extent_of(pages->v, dims_.kv_heads)},
                               {"the table of pages", pages->table},
                               {"lengths of the pages", pages->lengths}});
    const Index heads = dims_.heads, dv = out.cols / heads;
    Dims seen = dims_;
    seen.m = size_ + 1;
    op_.modifiers().check(op_.name, seen.batch, heads, 1, seen.m);
    past_.resize(static_cast<std::size_t>(dims_.batch));  // not before arrays with that many items were seen
    residuals_.resize(static_cast<std::size_t>(dims_.batch));
    append(token, shaped.v.cols / dims_.kv_heads);
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
          const Index one_page = 0;
          detail::KeyPages where{&one_page, size_, 0, 0};
          if (pages != nullptr) {
            where = {pages->table.row(b), pages->k.rows, pages->k.page_stride, pages->v.page_stride};
            const auto rows_of = [&](const PagePool<S>& pool) {
              const Index g = h / (heads / dims_.kv_heads);
              return View<S>(pool.data + g * pool.head_stride, size_, pool.width, pool.row_stride);
            };
            head.k = rows_of(pages->k), head.v = rows_of(pages->v);
            if constexpr (!Softmax<decltype(Op::score)>::reads_pages) {
              head.k = detail::copied_pages(context, where, where.k_stride, head.k);
              head.v = detail::copied_pages(context, where, where.v_stride, head.v);
              where = {&one_page, size_, 0, 0};
            }
          }
          MutView<S> residuals = residuals_[static_cast<std::size_t>(b)];
          row<P>(context.arena(), op_, head, where, residuals.block(0, h * op_.order * dv, size_, op_.order * dv),
                 out.block(b, h * dv, 1, dv), detail::at_head(seen, b, h));
        });
    step.done = true;
  }
  detail::SavedTurn take_turn() { return {&turn_, true, op_.name, " cache"}; }
  /// Room for one more row, doubled when it runs out.
  void grow(Mat<S>& m, Index cols) const {
    if (m.cols() == cols && m.rows() > size_) return;
    Mat<S> larger(std::max<Index>({room_, 2 * size_, 16}), cols);
    if (size_ > 0) larger.topRows(size_) = m.topRows(size_);
    m.swap(larger);
  }
  void append(const Inputs<Op, S>& token, Index value_width) {
    for (Index b = 0; b < dims_.batch; ++b) {
      auto& past = past_[static_cast<std::size_t>(b)];
      Inputs<Op, S>::visit(
          [&](const char* name, Role role, const View<S>& one, Mat<S>& rows) {
            if (role != Role::key && role != Role::key_side) return;
            if (size_ > 0 && rows.cols() != one.cols)
              detail::raise(std::string(op_.name) + " cache: " + name + " has " + detail::text_of(one.cols) +
                            " columns, wanted " + detail::text_of(rows.cols()) + " as the first token's");
            if (one.cols == 0) {
              if (size_ == 0) rows.resize(0, 0);  // of an earlier text, which had such rows
              return;
            }
            grow(rows, one.cols);
            for (Index c = 0; c < one.cols; ++c) rows(Index(size_), c) = one(one.rows == 1 ? 0 : b, c);
          },
          token, past);
      grow(residuals_[static_cast<std::size_t>(b)], residual_columns(value_width));
    }
  }

  /// out = sum_j a_j x_j, summed by blocks of keys as the sweeps do; a key that weighs nothing is not looked at.
  template <class P>
  static void weighted_rows(const S* a, const detail::KeyPages& pages, Index page_stride, View<S> x, MutView<S> part,
                            S* out) {
    for (Index c = 0; c < x.cols; ++c) out[c] = S(0);
    for (Index j0 = 0; j0 < x.rows; j0 += 128) {
      part.fill(S(0));
      detail::for_pages(pages, page_stride, x, j0, std::min(x.rows, j0 + 128), [&](const View<S>& rows, Index first) {
        for (Index r = 0; r < rows.rows; ++r)
          if (const S weight = a[first + r]; weight != S(0))
            detail::combine_row<P>(weight, rows.row(r), S(1), part.data, part.data, x.cols);
      });
      detail::add_row<P>(part.data, out, x.cols);
    }
  }

  /// One head of one token: scores, weights, u_0 .. u_order, and the residuals of this token into the last row. pages:
  /// where the rows of keys and values are.
  template <class P>
  static void row(Arena& arena, const Op& op, const Inputs<Op, S>& head, const detail::KeyPages& pages,
                  MutView<S> residuals, MutView<S> out, At at) {
    using std::exp;
    auto prepared = op.score.prepare(arena, head, at);
    auto& s = prepared.scores;
    s.settle(arena);
    const Index m = at.m, dv = head.v.cols, now = m - 1;
    S* a = arena.take<S>(m);
    if (s.by_pair())
      for (Index j = 0; j < m; ++j) a[j] = detail::score_of_parts<P>(s, s.parts, 0, j);
    else
      detail::for_pages(pages, pages.k_stride, s.k, 0, m, [&](const View<S>& rows, Index first) {
        detail::row_dots<P>(View<S>(s.q.data, rows.rows, s.q.cols, 0), rows, a + first);
      });
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
    weighted_rows<P>(a, pages, pages.v_stride, head.v, part.block(0, 0, 1, dv), out.data);  // u_0
    const Index one_page = 0;
    weighted_rows<P>(a, {&one_page, m, 0, 0}, 0, residuals.block(0, 0, now, residuals.cols),
                     part.block(0, 0, 1, residuals.cols), again);
    const S* own = nullptr;
    detail::for_pages(pages, pages.v_stride, head.v, now, m, [&](const View<S>& rows, Index) { own = rows.data; });
    for (Index t = 0; t < op.order; ++t)
      for (Index c = 0; c < dv; ++c) {
        const S r = residuals(now, t * dv + c) = own[c] - out(0, c);
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
