// limpid: embeddings: rows of a table as tokens, and the gradient of the table; a token of its own before those of each
// item.
// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "layer.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace detail {

template <class S>
void check_embedding(const char* op, const char* table_name, View<S> table, std::span<const Index> ids,
                     const char* out_name, View<S> out) {
  const auto count = static_cast<Index>(ids.size());
  check_out<S>(op, out_name, out, count, table.cols);
  for (Index i = 0; i < count; ++i)
    if (const Index id = ids[static_cast<std::size_t>(i)]; id < 0 || id >= table.rows)
      raise(std::string(op) + ": id " + text_of(i) + " is " + text_of(id) + ", wanted it in [0, " +
            text_of(table.rows) + "), as " + table_name + " has rows");
}

template <class S>
void check_first_token(const char* x_name, View<S> x, const char* token_name, View<S> token, const char* out_name,
                       View<S> out, Index batch) {
  const char* op = "prepend";
  check_heads(op, 1, 1, batch, x.rows);
  if (token.rows < 1 || token.cols != x.cols)
    raise(std::string(op) + ": " + token_name + " is " + shape_text(token.rows, token.cols) + ", wanted at least 1 x " +
          text_of(x.cols) + ", as " + x_name + " has columns");
  check_out<S>(op, out_name, out, x.rows + batch * token.rows, x.cols);
}

}  // namespace detail

/// Row i of out is row ids[i] of table: words, types or learned positions as tokens; table V x D, out as many rows as
/// there are ids. call.accumulate adds to what is there: words, then positions, then types. Throws ShapeError for an id
/// that is no row of the table, an out of another shape or one that shares memory with the table; before anything is
/// written.
///     limpid::embed(words, ids, x);
///     limpid::embed(positions, places, x, {.accumulate = true});
template <class T, class Y>
void embed(T&& table_, std::span<const Index> ids, Y&& out_, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Y>;
  const View<S> table(std::forward<T>(table_));
  const MutView<S> out(std::forward<Y>(out_));
  detail::check_embedding<S>("embed", "table", table, ids, "out", out);
  detail::refuse_overlaps("embed", {{"out", out}}, {{"table", table}});
  detail::with_context(call, [&](const detail::Context& context) {
    detail::for_rows(context, out.rows, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i)
        detail::copy_or_add<S>(table.block(ids[static_cast<std::size_t>(i)], 0, 1, table.cols),
                               out.block(i, 0, 1, out.cols), call.accumulate);
    });
  });
}

/// The gradient of the table, V x D, from that of the tokens: row v the sum of the rows i of dout with ids[i] = v, in
/// their order; 0 where there is none, or left alone where it is added to what is there, as add(dtable) or
/// call.accumulate says. Throws ShapeError as embed does.
template <class Dy>
void embed_backward(std::span<const Index> ids, Dy&& dout_,
                    const std::type_identity_t<Gradient<detail::ScalarOf<Dy>>>& dtable, const LayerCall& call = {}) {
  using S = detail::ScalarOf<Dy>;
  const View<S> dout(std::forward<Dy>(dout_));
  detail::check_embedding<S>("embed", "gradient of table", dtable, ids, "dout", dout);
  detail::refuse_overlaps("embed", {{"table", dtable, detail::gradient_of}}, {{"dout", dout}});
  const MutView<S> to = dtable.view();
  if (!dtable.adds(call.accumulate)) to.fill(S(0));
  for (Index i = 0; i < dout.rows; ++i)
    detail::copy_or_add<S>(dout.block(i, 0, 1, dout.cols), to.block(ids[static_cast<std::size_t>(i)], 0, 1, to.cols),
                           true);
}

/// The rows of `token` before those of each item: a class token, or one and registers. token k x D, x (B n) x D, out
/// (B (k + n)) x D. Throws ShapeError where shapes do not fit or out shares memory with x or token.
template <class T, class X, class Y>
void prepend(T&& token_, X&& x_, Y&& out_, Index batch = 1) {
  using S = detail::ScalarOf<Y>;
  const View<S> token(std::forward<T>(token_)), x(std::forward<X>(x_));
  const MutView<S> out(std::forward<Y>(out_));
  detail::check_first_token<S>("x", x, "token", token, "out", out, batch);
  detail::refuse_overlaps("prepend", {{"out", out}}, {{"x", x}, {"token", token}});
  const Index n = x.rows / batch, k = token.rows;
  for (Index b = 0; b < batch; ++b) {
    detail::copy<S>(token, out.block(b * (k + n), 0, k, x.cols));
    detail::copy<S>(x.block(b * n, 0, n, x.cols), out.block(b * (k + n) + k, 0, n, x.cols));
  }
}

/// The gradients of x and of the token, which is the sum over the items; those that are given, each added or not as it
/// says. Throws ShapeError as prepend does; of a gradient that is not given rows tells the token's.
template <class Dy>
void prepend_backward(Index rows, Dy&& dout_, const std::type_identity_t<Gradient<detail::ScalarOf<Dy>>>& dtoken,
                      const std::type_identity_t<Gradient<detail::ScalarOf<Dy>>>& dx, Index batch = 1,
                      const LayerCall& call = {}) {
  using S = detail::ScalarOf<Dy>;
  const View<S> dout(std::forward<Dy>(dout_));
  if (rows < 1) detail::raise("prepend: rows is " + detail::text_of(rows) + ", wanted at least 1");
  detail::check_heads("prepend", 1, 1, batch, dout.rows);
  const Index n = dout.rows / batch - rows;
  if (n < 0)
    detail::raise("prepend: dout has " + detail::text_of(dout.rows / batch) + " rows an item, wanted at least " +
                  detail::text_of(rows));
  if (dtoken.given()) detail::check_out<S>("prepend", "gradient of token", dtoken, rows, dout.cols);
  if (dx.given()) detail::check_out<S>("prepend", "gradient of x", dx, batch * n, dout.cols);
  detail::refuse_overlaps("prepend", {{"token", dtoken, detail::gradient_of}, {"x", dx, detail::gradient_of}},
                          {{"dout", dout}});
  for (Index b = 0; b < batch; ++b) {
    if (dtoken.given())
      detail::copy_or_add<S>(dout.block(b * (rows + n), 0, rows, dout.cols), dtoken.view(),
                             b > 0 || dtoken.adds(call.accumulate));
    if (dx.given())
      detail::copy_or_add<S>(dout.block(b * (rows + n) + rows, 0, n, dout.cols), dx.view().block(b * n, 0, n, dx.cols),
                             dx.adds(call.accumulate));
  }
}

}  // namespace LIMPID_ABI
}  // namespace limpid
