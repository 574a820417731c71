// limpid: all of R, the relevance of every token to every other, of one stream or several: for few tokens, for maps
// from elsewhere, and for the one rule that has no rows of its own. And the row of an encoder-decoder, which has.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "correction.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// How relevance goes across streams where the tokens of s attend to those of q:
///   linear    R_sq <- R_sq + Abar R_qq, and so for every source: as within a stream. Ours (see Relevance).
///   chefer    R_sq <- R_sq + Rbar_ss^T Abar Rbar_qq,   Rbar_ij = (R - I)_ij / sum_j (R - I)_ij + I_ij; rule 10, with 8
///             and 9, of Chefer, Gur and Wolf 2021, 2103.15679. A row whose sum is 0 stays that of I: ours, where the
///             formula is 0 / 0.
enum class CrossRule { linear, chefer };

struct RelevanceMatrixOptions {
  CrossRule cross = CrossRule::linear;
  bool normalise = true;      ///< chefer: rules 8 and 9; otherwise Rbar = R
  bool own_relevance = true;  ///< chefer: otherwise R_sq <- R_sq + Abar, the authors' ablation
};

/// R of every pair of streams, made stage by stage from the first to the last out of maps Abar (corrected_map), a stage
/// being attentions that are evaluated from the same state:
///
///   within a stream    R_sc <- R_sc + Abar R_sc                    rules 6 and 7
///   s attends to q     R_sq as CrossRule says;   R_sc <- R_sc + Abar R_qc of all other sources c   (c = s: rule 11)
///
/// at first R_ss = I, all others 0. R - I is kept apart (ours): its small numbers keep their digits in float. Rule 10
/// is the one rule without a sweep of rows, as its transpose asks for columns of R_ss and these for rows of R_qq again,
/// so this is what it needs: (sum n)² numbers. Flop: 2 n m n_c a map and source. Where the rules are linear, Relevance
/// makes a row without any matrix. Errors: rows within 1e-12 of Relevance's in double, as tests assert.
template <class S>
class RelevanceMatrices {
 public:
  /// Throws ShapeError for no streams and for a stream of less than no tokens.
  explicit RelevanceMatrices(const std::vector<Index>& tokens, const RelevanceMatrixOptions& options = {})
      : options_(options), tokens_(tokens) {
    if (tokens.empty()) detail::raise("relevance matrices: no streams, wanted at least one");
    for (const Index n : tokens)
      if (n < 0) detail::raise("relevance matrices: a stream of " + detail::text_of(n) + " tokens, wanted at least 0");
    for (const Index to : tokens)
      for (const Index from : tokens) r_.push_back(Mat<S>::Zero(to, from));
    more_ = r_;
  }

  /// Of the current stage: the tokens of `to` attend to those of `from` by abar, n_to x n_from. Throws ShapeError for
  /// another shape, a stream that is not there, and numbers that are not finite.
  void attention(Index to, Index from, std::type_identity_t<View<S>> abar) {
    check(to), check(from);
    if (abar.rows != tokens(to) || abar.cols != tokens(from))
      detail::raise("relevance matrices: abar is " + detail::shape_text(abar.rows, abar.cols) + ", wanted " +
                    detail::shape_text(tokens(to), tokens(from)) + ", the tokens of both streams");
    detail::check_parameters<S>("relevance matrices", "abar", abar);
    for (Index c = 0; c < streams(); ++c) {
      Mat<S>& sum = more(to, c);
      if (c == from && to != from && options_.cross == CrossRule::chefer)
        sum += options_.own_relevance ? across(to, from, abar) : Mat<S>(abar.map());
      else
        sum += times_r(abar, from, c);
    }
  }
  /// Ends a stage: what its attentions say is added, all at once.
  void stage() {
    for (std::size_t i = 0; i < r_.size(); ++i) r_[i] += more_[i], more_[i].setZero();
  }

  /// R_to,from, n_to x n_from, less the identity where both streams are one. Throws ShapeError for a stream that is not
  /// there, as of() does.
  const Mat<S>& without_identity(Index to = 0, Index from = 0) const {
    check(to), check(from);
    return r_[place(to, from)];
  }
  /// R_to,from: row i says what the tokens of `from` are to token i of `to`.
  Mat<S> of(Index to = 0, Index from = 0) const {
    Mat<S> r = without_identity(to, from);
    if (to == from) r.diagonal().array() += S(1);
    return r;
  }

 private:
  Index streams() const { return static_cast<Index>(tokens_.size()); }
  Index tokens(Index s) const { return tokens_[static_cast<std::size_t>(s)]; }
  std::size_t place(Index to, Index from) const { return static_cast<std::size_t>(to * streams() + from); }
  Mat<S>& more(Index to, Index from) { return more_[place(to, from)]; }
  void check(Index stream) const {
    if (stream < 0 || stream >= streams())
      detail::raise("relevance matrices: stream is " + detail::text_of(stream) + ", wanted it in [0, " +
                    detail::text_of(streams()) + ")");
  }

  /// Abar R_from,c.
  Mat<S> times_r(View<S> abar, Index from, Index c) const {
    Mat<S> out = detail::matrix_product<S>(abar, r_[place(from, c)]);
    if (from == c) out += abar.map();
    return out;
  }
  Mat<S> rbar(Index s) const {
    Mat<S> r = r_[place(s, s)];
    for (Index i = 0; i < r.rows() && options_.normalise; ++i) {
      const S sum = r.row(i).sum();
      if (sum == S(0))
        r.row(i).setZero();
      else
        r.row(i) /= sum;
    }
    r.diagonal().array() += S(1);
    return r;
  }
  Mat<S> across(Index to, Index from, View<S> abar) const {
    const Mat<S> left = rbar(to).transpose(), right = rbar(from);
    const Mat<S> half = detail::matrix_product<S>(left, abar);
    return detail::matrix_product<S>(half, right);
  }

  RelevanceMatrixOptions options_;
  std::vector<Index> tokens_;
  std::vector<Mat<S>> r_, more_;
};

/// What an encoder-decoder's output token took from the decoder's queries and from the encoder's tokens.
template <class S>
struct EncoderDecoderRow {
  Mat<S> queries;  ///< R_qq[row] less the identity, 1 x n_q
  Mat<S> inputs;   ///< R_qi[row], 1 x n_i
};

/// Relevance of one query of an encoder-decoder (DETR; Chefer, Gur and Wolf 2021, rules 5 to 10, their code's
/// schedule): encoder layers by rule 6; in every decoder layer self-attention by rules 6 and 7, then cross-attention by
/// rule 10. Every map comes as its products (corrected_products) and is asked for twice at most, so nothing n x n is
/// made:
///
///   w_L = e_row,  w_(k-1) = w_k + w_k Abar^qq_k        u_k = (Rbar^qq)_k w_k by right products of all w at once
///   z = sum_k u_k Abar^qi_k,   y = z / t, t the row sums of R^ii - I,   result = z + (y R^ii - y)
///
/// Without options.normalise u_k = R^qq_k w_k and the result is z R^ii; without own_relevance sum_k Abar^qi_k[row].
/// Memory O((n_q + n_i) L). Equal to RelevanceMatrices with CrossRule::chefer (tests: 1e-12 of it). Throws ShapeError
/// where the layers' shapes do not fit each other, there are not as many self- as cross-attentions, or no such row.
template <class S>
EncoderDecoderRow<S> encoder_decoder_relevance(const std::vector<MapProducts<S>>& encoder,
                                               const std::vector<MapProducts<S>>& self,
                                               const std::vector<MapProducts<S>>& cross, Index row,
                                               const RelevanceMatrixOptions& options = {CrossRule::chefer}) {
  const auto refuse = [](const std::string& text) { detail::raise("encoder_decoder_relevance: " + text); };
  if (cross.empty() || self.size() != cross.size())
    refuse(detail::text_of(self.size()) + " self- and " + detail::text_of(cross.size()) +
           " cross-attentions, wanted one of each a decoder layer, and a layer at least");
  const Index n = cross.front().n, m = cross.front().m, layers = static_cast<Index>(cross.size());
  const auto expect = [&](const MapProducts<S>& map, Index rows, Index cols, const char* which) {
    if (!map.left || !map.right) refuse(std::string(which) + " map has no products, wanted those from both sides");
    if (map.n != rows || map.m != cols)
      refuse(std::string(which) + " map " + detail::shape_text(map.n, map.m) + ", wanted " +
             detail::shape_text(rows, cols));
  };
  for (const auto& map : encoder) expect(map, m, m, "an encoder's");
  for (const auto& map : self) expect(map, n, n, "a self-attention's");
  for (const auto& map : cross) expect(map, n, m, "a cross-attention's");
  if (row < 0 || row >= n) refuse("row is " + detail::text_of(row) + ", wanted it in [0, " + detail::text_of(n) + ")");

  // Rows pushed back through the decoder: what stands at row k is w after k layers.
  Mat<S> w = Mat<S>::Zero(layers + 1, n), product(1, n);
  w(layers, row) = S(1);
  Mat<S> queries = Mat<S>::Zero(1, n);
  for (Index k = layers; k-- > 0;) {
    self[static_cast<std::size_t>(k)].left(View<S>(w).block(k + 1, 0, 1, n), product);
    w.row(k) = w.row(k + 1) + product.row(0);
    queries += product;
  }
  // All of them and ones as columns go up again, and meet the cross-attentions on the way.
  Mat<S> columns(n, layers + 1), y = Mat<S>::Zero(n, layers + 1), sum(n, layers + 1), up(n, layers + 1);
  columns.leftCols(layers) = w.bottomRows(layers).transpose();
  columns.col(layers).setOnes();
  Mat<S> z = Mat<S>::Zero(1, m), u(1, n), part(1, m);
  for (Index k = 0; k < layers; ++k) {
    sum = columns + y;
    self[static_cast<std::size_t>(k)].right(sum, up);
    y += up;
    for (Index i = 0; i < n; ++i) {
      const S t = y(i, layers), own = columns(i, k), mixed = y(i, k);
      u(0, i) = own;
      if (options.own_relevance && (!options.normalise || t != S(0))) u(0, i) += options.normalise ? mixed / t : mixed;
    }
    cross[static_cast<std::size_t>(k)].left(u, part);
    z += part;
  }
  if (!options.own_relevance) return {queries, z};
  Mat<S> scaled = z;
  if (options.normalise) {
    Mat<S> t = Mat<S>::Zero(m, 1), ones = Mat<S>::Ones(m, 1), more(m, 1), both(m, 1);
    for (const auto& map : encoder) both = ones + t, map.right(both, more), t += more;
    for (Index j = 0; j < m; ++j) scaled(0, j) = t(j, 0) == S(0) ? S(0) : z(0, j) / t(j, 0);
  }
  Mat<S> rest = Mat<S>::Zero(1, m), now(1, m);  // scaled (R^ii - I)
  for (std::size_t l = encoder.size(); l-- > 0;) {
    now = scaled + rest;
    encoder[l].left(now, part);
    rest += part;
  }
  return {queries, Mat<S>(z + rest)};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
