// limpid: attention rollout, a row at a time: what the input's tokens are to a token of the output. Nothing n x n.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "../call/backward.hpp"
#include "map.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// How the maps of a layer's heads become one.
enum class Fuse { mean, max, min };

struct RolloutOptions {
  double residual = 0.5;   ///< share of the skip connection, in [0, 1]
  Fuse fuse = Fuse::mean;  ///< mean is the paper's; max and min are common in code
  bool normalise = true;   ///< divide the rows of a factor by their sums
  bool gradient = false;   ///< keep what gradient() needs: r x n numbers a layer
};

/// Attention rollout, Abnar and Zuidema 2020, 2005.00928, eq. 1: rows of
///
///   C = F_L ... F_1,   F_l = residual I + (1 - residual) fuse_h A_l,h,   rows of F_l divided by their sums
///
/// which is how tokens of the output (rows of C) share in those of the input. Rows that sum to 1 stay so; a query
/// without keys hands on its own token (the paper has no such rows; the division is the code's), and so does one whose
/// row of F_l sums to 0, as one without keys does at a residual of 0, where there is nothing to divide (ours: the limit
/// of small residuals); unless normalised it hands on the residual's share. Only the rows asked for are made, from the
/// last layer to the first:
///
///   limpid::Rollout<float> rollout;
///   rollout.start(n, token);
///   for (auto l = layers.rbegin(); l != layers.rend(); ++l) rollout.layer(l->op, l->in, l->saved);
///   rollout.rows();  // 1 x n, sums to 1
///
/// Any operator's effective map will do, so twicing's shares may be negative. Self-attention only, n = m: for more
/// streams see Relevance. Kept: r x n numbers for r rows, with max and min two blocks of rows of a map; nothing is
/// allocated after the first layer. Cost of a layer and head, plain attention's forward being 4 n² d: about
/// n² (2 d + 2 r); as much again for the row sums if normalised, where the operator's rows need not sum to 1. One call
/// at a time, another one meanwhile, on whatever thread, throws ShapeError; several may read.
/// Error in double: rows within 1e-14 of the formula, gradients within 1e-8 of central differences, as tests assert.
template <class S>
class Rollout {
 public:
  explicit Rollout(const RolloutOptions& options = {}) : options_(options) {
    if (!(options.residual >= 0 && options.residual <= 1))
      detail::raise("rollout: residual is " + std::to_string(options.residual) + ", wanted it in [0, 1]");
  }

  /// The row of one token of n.
  void start(Index n, Index token) {
    const detail::SavedTurn turn = take_turn(true);
    if (token < 0 || token >= n)
      detail::raise("rollout: token is " + detail::text_of(token) + ", wanted it in [0, " + detail::text_of(n) + ")");
    rows_.setZero(1, n);
    rows_(0, token) = S(1);
    layers_ = left_ = 0;
  }
  /// Rows of your own (r x n), which may be some of rows(); the identity gives the whole of C. Throws ShapeError for
  /// numbers that are not finite.
  void start(View<S> rows) {
    const detail::SavedTurn turn = take_turn(true);
    detail::check_parameters<S>("rollout", "rows", rows);
    next_.resize(rows.rows, rows.cols);
    detail::copy<S>(rows, next_);
    rows_.swap(next_);
    layers_ = left_ = 0;
  }

  /// rows <- rows F, with the state that the layer's forward call saved; all heads of the item that call names. Throws
  /// ShapeError where n differs from m or from what was started with.
  template <class Op>
  void layer(const Op& op, const std::type_identity_t<Inputs<Op, S>>& in, Saved<Op, S>& saved, HeadCall call = {}) {
    const detail::SavedTurn turn = take_turn(true), saved_turn(&saved, false, detail::operator_name(op));
    const Dims& d = saved.dims;
    if (saved.filled && (d.n != d.m || d.n != rows_.cols()))
      detail::raise(detail::operator_name(op) + ": rollout over a map " + detail::shape_text(d.n, d.m) + ", wanted " +
                    detail::shape_text(rows_.cols(), rows_.cols()));
    if (!call.workspace) call.workspace = &workspace_;
    if (options_.fuse == Fuse::mean)
      by_mean(op, in, saved, call);
    else
      by_blocks(op, in, saved, call);
    rows_.swap(next_);
    ++layers_, left_ = 0;
  }

  /// r x n.
  const Mat<S>& rows() const {
    const detail::SavedTurn turn = take_turn(false);
    return rows_;
  }

  /// Gradients of a scalar of rows() with respect to the queries and keys of the layers, drows (r x n) being that with
  /// respect to rows(). Then one call of gradient() a layer, from the first to the last:
  ///
  ///   dF_l = w_l^T u_l,  u_1 = drows^T,  u_l+1 = F_l u_l,  w_l the rows that came into layer l
  ///
  /// so dA_h = share w^T u is the gradient of attention whose values are u: no n x n array here either. Wants
  /// options.gradient and Fuse::mean; maps whose rows sum to 1 or are empty, as then the division passes no gradient.
  /// Throws ShapeError without the first two, and where drows has another shape than rows().
  void start_gradient(View<S> drows) {
    const detail::SavedTurn turn = take_turn(true);
    if (!options_.gradient || options_.fuse != Fuse::mean)
      detail::raise("rollout: a gradient wants RolloutOptions{.gradient = true} and Fuse::mean");
    if (drows.rows != rows_.rows() || drows.cols != rows_.cols())
      detail::raise("rollout: drows is " + detail::shape_text(drows.rows, drows.cols) + ", wanted " +
                    detail::shape_text(rows_.rows(), rows_.cols()));
    u_ = drows.map().transpose();
    left_ = layers_;
  }
  /// The layer's dq, dk and whatever else grad names but v, for one item (batch 1), of an operator with values v that
  /// its map does not depend on. Cost and memory: a forward and a backward pass with values r wide, arrays of its own.
  /// Throws ShapeError where there was no start_gradient() after the last start() or layer(), for more layers than
  /// there were, and for another shape; the layer's turn is still to come then.
  template <class Op>
  void gradient(const Op& op, Inputs<Op, S> in, const Saved<Op, S>& saved, const Grads<Op, S>& grad,
                const BackwardCall<S>& call = {}) {
    const detail::SavedTurn turn = take_turn(true), saved_turn(&saved, false, detail::operator_name(op));
    const Dims& d = saved.dims;
    if (left_ == 0)
      detail::raise(
          "rollout: gradient() without a layer to go, wanted start_gradient() after the last start() or "
          "layer(), and then one call for each layer");
    if (d.batch != 1 || d.n != u_.rows())
      detail::raise(detail::operator_name(op) + ": the gradient of a rollout over batch " + detail::text_of(d.batch) +
                    " and n = " + detail::text_of(d.n) + ", wanted batch 1 and n = " + detail::text_of(u_.rows()));
    if (grad.v.given()) detail::raise(detail::operator_name(op) + ": a rollout has no gradient for v");
    detail::refuse_overlaps(detail::operator_name(op), detail::fields_of(grad, detail::gradient_of),
                            detail::arrays({{"v", in.v}}));
    const Step& step = trail_[static_cast<std::size_t>(left_ - 1)];
    const Index n = d.n, r = u_.cols();
    const S each = share() / S(static_cast<double>(d.heads));
    Mat<S> v(n, d.kv_heads * r), dout(n, d.heads * r), out(n, d.heads * r);
    for (Index g = 0; g < d.kv_heads; ++g) v.middleCols(g * r, r) = u_;
    for (Index i = 0; i < n; ++i)
      for (Index c = 0; c < d.heads * r; ++c) dout(i, c) = each * step.rows(c % r, i);
    in.v = v;
    Saved<Op, S> own;
    forward(op, in, out,
            {.heads = d.heads,
             .kv_heads = d.kv_heads,
             .saved = &own,
             .workspace = call.workspace,
             .executor = call.executor});
    backward(op, in, own, dout, grad, call);
    for (Index i = 0; i < n; ++i) {
      const S of = options_.normalise ? step.sums(i, 0) : S(1);
      for (Index c = 0; c < r && of != S(0); ++c) {
        S sum = S(0);
        for (Index h = 0; h < d.heads; ++h) sum += out(i, h * r + c);
        sum = residual() * u_(i, c) + share() * (sum / S(static_cast<double>(d.heads)));
        u_(i, c) = sum * inverse(of);
      }
    }
    --left_;
  }

 private:
  static constexpr Index block = 16;  // rows of a map at a time, where heads are fused entry by entry

  detail::SavedTurn take_turn(bool writes) const { return {&turn_, writes, "rollout", ""}; }
  S residual() const { return S(options_.residual); }
  S share() const { return S(1 - options_.residual); }

  /// Of the map of one head. Where an operator says that they are 1, but 0 without keys, nothing is multiplied.
  template <class Op>
  void row_sums(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, const HeadCall& call) {
    if constexpr (detail::rows_sum_to_one<Op>) {
      detail::look_inside(op, in, saved, call, MutView<S>(part_), [&](const auto& pass, const auto&, const auto& keep) {
        const auto lse = detail::lse_of(keep.lse);
        for (Index i = 0; i < pass.at.n; ++i) {
          const S inverse = lse.inverse[i];  // NaN of a row that is NaN
          part_(i, 0) = inverse != inverse ? inverse : inverse == S(0) ? S(0) : S(1);
        }
      });
    } else {
      map_right(op, in, saved, ones_, part_, call);
    }
  }

  template <class Op>
  void by_mean(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, HeadCall call) {
    const Index n = rows_.cols(), heads = saved.dims.heads;
    const S count = S(static_cast<double>(heads));  // divided by in the end: shares of 1 would all round the same way
    if (options_.gradient && static_cast<std::size_t>(layers_) == trail_.size()) trail_.emplace_back();
    Step& step = options_.gradient ? trail_[static_cast<std::size_t>(layers_)] : step_;
    if (options_.normalise) {
      ones_.setOnes(n, 1), part_.resize(n, 1), step.sums.setZero(n, 1);
      for (call.head = 0; call.head < heads; ++call.head) {
        row_sums(op, in, saved, call);
        for (Index i = 0; i < n; ++i) step.sums(i, 0) += part_(i, 0);
      }
      for (Index i = 0; i < n; ++i) step.sums(i, 0) = residual() + share() * (step.sums(i, 0) / count);
    }
    step.rows.resize(rows_.rows(), n), next_.setZero(rows_.rows(), n), product_.resize(rows_.rows(), n);
    for (Index r = 0; r < rows_.rows(); ++r)
      for (Index i = 0; i < n; ++i)
        step.rows(r, i) = rows_(r, i) * inverse(options_.normalise ? step.sums(i, 0) : S(1));
    for (call.head = 0; call.head < heads; ++call.head) {
      map_left(op, in, saved, step.rows, product_, call);
      for (Index e = 0; e < rows_.size(); ++e) next_.data()[e] += product_.data()[e];
    }
    for (Index r = 0; r < rows_.rows(); ++r)
      for (Index i = 0; i < n; ++i) {
        const bool nothing = options_.normalise && step.sums(i, 0) == S(0);
        next_(r, i) = share() * (next_(r, i) / count) + (nothing ? rows_(r, i) : residual() * step.rows(r, i));
      }
  }

  template <class Op>
  void by_blocks(const Op& op, const Inputs<Op, S>& in, Saved<Op, S>& saved, HeadCall call) {
    const Index n = rows_.cols();
    next_.setZero(rows_.rows(), n), part_.resize(block, n), product_.resize(block, n);
    for (Index q0 = 0; q0 < n; q0 += block) {
      const Index count = std::min(block, n - q0);
      const MutView<S> fused = MutView<S>(part_).block(0, 0, count, n),
                       own = MutView<S>(product_).block(0, 0, count, n);
      for (call.head = 0; call.head < saved.dims.heads; ++call.head) {
        map_block(op, in, saved, q0, 0, call.head == 0 ? fused : own, call);
        if (call.head == 0) continue;
        for (Index i = 0; i < count; ++i)
          for (Index j = 0; j < n; ++j) {
            S& a = fused(i, j);
            const S& b = own(i, j);
            const bool stays = a != a || (options_.fuse == Fuse::max ? b <= a : b >= a);  // a NaN of either shows
            if (!stays) a = b;
          }
      }
      for (Index i = 0; i < count; ++i) {
        S sum = options_.normalise ? residual() : S(1);
        for (Index j = 0; j < n && options_.normalise; ++j) sum += share() * fused(i, j);
        for (Index r = 0; r < rows_.rows(); ++r) {
          const S w = rows_(r, q0 + i) * inverse(sum);
          next_(r, q0 + i) += sum == S(0) ? rows_(r, q0 + i) : residual() * w;
          for (Index j = 0; j < n; ++j) next_(r, j) += share() * w * fused(i, j);
        }
      }
    }
  }

  static S inverse(const S& sum) { return sum == S(0) ? S(0) : S(1) / sum; }

  /// What a layer's gradient needs: the rows that came in, over the sums of the factor's rows, and these.
  struct Step {
    Mat<S> rows, sums;
  };

  RolloutOptions options_;
  Mat<S> rows_, next_, product_, part_, ones_, u_;
  Step step_;
  std::vector<Step> trail_;
  detail::Count layers_, left_;
  Workspace workspace_;
  mutable detail::Turn turn_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
