// limpid: gradient-weighted relevance of tokens, one stream or several, sent down with the backward pass.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "../call/backward.hpp"
#include "../call/checks.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// In place of a Part: all four of them.
struct AllParts {};

/// Relevance of the tokens of one or more streams (text, image, queries ...) to one token of one of them. With
/// Abar = mean_h part(A_h * dy/dA_h), for every stage of attentions that are evaluated from the same state, s being a
/// stream that d's tokens attend to:
///
///   R_dc <- R_dc + sum_s Abar_ds R_sc     at first R_dd = I, all others 0
///
/// One stream: Chefer, Gur and Wolf 2021, 2103.15679, rules 5 and 6, R = (I + Abar_L) ... (I + Abar_1). Several: their
/// rules 7 and 11 too; rule 10 is replaced by the linear one above, which is our reading of Cui, Fan and Chen 2026
/// (2605.27458), whose text we could not obtain: the formula is ours.
///
/// Only the row of the explained token is made: as every factor is linear, it goes through the stages from the last to
/// the first, the order of the backward pass, whose kernel already holds A and dy/dA. Asking costs about three flop a
/// pair, of windows and block masks a pass of its own, and changes no bit of a gradient:
///
///   limpid::Relevance<float> relevance({n_text, n_image});
///   relevance.start(token, text);
///   for (each stage, last to first) {
///     limpid::backward(op, in, saved, dout, grad, relevance.ask(text, image));  // text attends to image
///     limpid::backward(...,                       relevance.ask(image, text));  // of the same stage
///     relevance.stage();
///   }
///   relevance.of(image);  // batch x n_image
///
/// Where gradients are of no interest `grad` may be empty. Of operators with several passes (twicing, boosting) A is
/// the map of one pass. Kept: a row for every stream and for every attention of a stage, reused; nothing is allocated
/// after the first explanation. One call at a time, though several may read; a backward pass that ask() spoke for
/// writes to it until it ends, and stage() and start() want all of these ended. Another call meanwhile throws
/// ShapeError. Error in double: within 1e-12 of the dense formula, as a test asserts.
///
/// Relevance<float>(tokens, limpid::AllParts()) makes the rows of every part in one backward pass, each through its own
/// product: four rows an item, positive, negative, absolute and signed, in all that it returns.
template <class S>
class Relevance {
 public:
  /// Streams of so many tokens, in every item of a batch.
  explicit Relevance(const std::vector<Index>& tokens, Part part = Part::pos, Index batch = 1)
      : Relevance(tokens, part, 1, batch) {}
  Relevance(const std::vector<Index>& tokens, AllParts, Index batch = 1) : Relevance(tokens, Part::pos, 4, batch) {}

  /// Explain this token of this stream, in every item.
  void start(Index token, Index stream = 0) {
    const detail::SavedTurn turn = take_turn(true);
    start_at(stream, [&](Index) { return token; });
  }
  /// Another token in each item, as where sequences end at different places. Throws ShapeError for another number of
  /// tokens than items.
  void start(const std::vector<Index>& tokens, Index stream = 0) {
    const detail::SavedTurn turn = take_turn(true);
    if (static_cast<Index>(tokens.size()) != at(stream).rows() / each_)
      detail::raise("relevance: " + detail::text_of(tokens.size()) + " tokens to explain, wanted " +
                    detail::text_of(at(stream).rows() / each_) + ", one an item");
    start_at(stream, [&](Index item) { return tokens[static_cast<std::size_t>(item)]; });
  }
  /// A mixture of this stream's tokens, rows batch x n or one for all items: 1 / n of each explains a mean over tokens,
  /// as sentence embeddings are. Throws ShapeError for another shape and for numbers that are not finite.
  void start(View<S> rows, Index stream = 0) {
    const detail::SavedTurn turn = take_turn(true);
    const Mat<S>& explained = at(stream);
    const Index items = explained.rows() / each_;
    if (rows.cols != explained.cols() || (rows.rows != items && rows.rows != 1))
      detail::raise("relevance: rows to start with are " + detail::shape_text(rows.rows, rows.cols) + ", wanted " +
                    detail::shape_text(items, explained.cols()) + " or one row");
    detail::check_parameters<S>("relevance", "rows", rows);
    first_.resize(explained.rows(), explained.cols());
    for (Index b = 0; b < first_.rows(); ++b)
      for (Index i = 0; i < first_.cols(); ++i) first_(b, i) = rows(rows.rows == 1 ? 0 : b / each_, i);
    begin(stream);
  }

  /// What to tell the backward pass of an attention by which the tokens of `to` attend to those of `from`. Valid until
  /// stage() or start(). Throws ShapeError before the first start(), and where there is no such stream.
  BackwardCall<S> ask(Index to = 0, Index from = 0) {
    const detail::SavedTurn turn = take_turn(true);
    const Mat<S>&queries = at(to), &keys = at(from);
    if (!started_) detail::raise("relevance: ask() before start(), wanted a token to explain");
    if (used_ == asked_.size()) asked_.emplace_back();
    auto& [stream, emitted] = asked_[used_];
    stream = static_cast<std::size_t>(from);
    emitted.setZero(keys.rows(), keys.cols());
    ++used_;
    BackwardCall<S> call;
    call.relevance_weights = View<S>(queries), call.relevance = MutView<S>(emitted), call.part = part_;
    return call;
  }

  /// Ends a stage: what its attentions have emitted is added, all at once.
  void stage() {
    const detail::SavedTurn turn = take_turn(true);
    for (std::size_t a = 0; a < used_; ++a) added_[asked_[a].first] += asked_[a].second;
    for (std::size_t s = 0; s < rho_.size(); ++s) rho_[s] = added_[s];
    if (started_) rho_[explained_] += first_;
    used_ = 0;
  }

  /// Relevance of the tokens of a stream so far, batch x n, of all parts (4 batch) x n. After the first stage of the
  /// model it is the explanation; the explained token's own entry holds the 1 of the identity.
  const Mat<S>& of(Index stream = 0) const {
    const detail::SavedTurn turn = take_turn(false);
    return at(stream);
  }
  /// The same less what was started with, a row of R - I: the explanation, whose small numbers the 1 of the identity
  /// would round away in float.
  const Mat<S>& without_start(Index stream = 0) const {
    const detail::SavedTurn turn = take_turn(false);
    at(stream);
    return added_[static_cast<std::size_t>(stream)];
  }

 private:
  Relevance(const std::vector<Index>& tokens, Part part, Index each, Index batch) : part_(part), each_(each) {
    if (batch < 1) detail::raise("relevance: batch is " + detail::text_of(batch) + ", wanted at least 1");
    if (tokens.empty()) detail::raise("relevance: no streams, wanted at least one");
    for (const Index n : tokens) {
      if (n < 0) detail::raise("relevance: a stream of " + detail::text_of(n) + " tokens, wanted at least 0");
      rho_.push_back(Mat<S>::Zero(each * batch, n));
    }
    added_ = rho_;
  }

  detail::SavedTurn take_turn(bool writes) const { return {&turn_, writes, "relevance", ""}; }
  const Mat<S>& at(Index stream) const {
    if (stream < 0 || stream >= static_cast<Index>(rho_.size()))
      detail::raise("relevance: stream is " + detail::text_of(stream) + ", wanted it in [0, " +
                    detail::text_of(static_cast<Index>(rho_.size())) + ")");
    return rho_[static_cast<std::size_t>(stream)];
  }

  template <class Token>
  void start_at(Index stream, Token token_of) {
    const Mat<S>& explained = at(stream);
    for (Index b = 0; b < explained.rows(); ++b)
      if (const Index token = token_of(b / each_); token < 0 || token >= explained.cols())
        detail::raise("relevance: token is " + detail::text_of(token) + ", wanted it in [0, " +
                      detail::text_of(explained.cols()) + ")");
    first_.setZero(explained.rows(), explained.cols());
    for (Index b = 0; b < first_.rows(); ++b) first_(b, token_of(b / each_)) = S(1);
    begin(stream);
  }
  void begin(Index stream) {
    explained_ = static_cast<std::size_t>(stream);
    for (std::size_t s = 0; s < rho_.size(); ++s) rho_[s].setZero(), added_[s].setZero();
    rho_[explained_] = first_;
    used_ = 0, started_ = true;
  }

  Part part_;
  Index each_;                       // rows of an item
  std::vector<Mat<S>> rho_, added_;  // what is sent down, and that less what was started with
  Mat<S> first_;
  std::size_t explained_ = 0;
  std::vector<std::pair<std::size_t, Mat<S>>> asked_;  // where to, and what was emitted
  std::size_t used_ = 0;
  bool started_ = false;
  mutable detail::Turn turn_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
