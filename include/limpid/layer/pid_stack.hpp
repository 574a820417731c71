// limpid: a stack of PID attention layers, which hands its state from layer to layer and back.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <deque>

#include "../op/pid.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

struct PidStackOptions {
  Index batch = 1, heads = 1, kv_heads = 0;  ///< as in Call
  bool keep = true;  ///< keep every layer for backward; otherwise the memory of three layers' values
};

/// Layers of pid() one after the other, with the state between them and its adjoints on the way back. What stands
/// between two layers of a model (projections, residuals, feed-forward) stays the caller's:
///
///     limpid::PidStack<decltype(op), float> stack(op, {.heads = H});
///     for (l = 0 .. L-1) stack.forward({.q = q, .k = k, .v = v}, out);               // hands its state on
///     for (l = L-1 .. 0) stack.backward({.q = q, .k = k, .v = v}, dout, {dq, dk, dv});
///
/// forward takes the state from the layers before it, whatever the fields of the state say; the gains are the caller's.
/// backward goes from the last layer to the first and gives the whole gradient of a layer's q, k and v, the later
/// layers' part in dv included (paper; upstream Sb, Vb, Rb of S, V_prev and R are 0 after the last layer):
///
///     Sb <- Sb + lambda_i G,   dV = A^T G - lambda_p G - Sb - lambda_d G + Vb,   Vb <- lambda_d G,
///     Rb <- Rb + beta (lambda_p G + Sb),   layer 0: dV = A^T G + Vb + Rb
///
/// Gradients of the gains are summed over the layers: the call of the last layer overwrites, the others add. A layer
/// keeps what pid() keeps, its values and its integral; nothing is allocated when a stack of the same shapes runs
/// again. One call at a time: another one meanwhile, on whatever thread, throws ShapeError. A copy holds what the other
/// holds and goes on by itself.
template <class Op, class S>
class PidStack {
 public:
  explicit PidStack(const Op& op, const PidStackOptions& options = {}) : op_(op), options_(options) {}

  /// Layers run forward since the start.
  Index size() const { return size_; }
  /// The next layer is layer 0 again; memory is kept.
  void restart() {
    const detail::SavedTurn turn = take_turn();
    size_ = left_ = 0;
  }

  /// The next layer. batch, heads, kv_heads and saved of the call are the stack's own business.
  template <class Out>
  void forward(const Inputs<Op, S>& layer, Out&& out, Call<Op, S> call = {}) {
    const detail::SavedTurn turn = take_turn();
    Layer& here = at(size_);
    const Inputs<Op, S> in = with_state(layer, size_);
    call.batch = options_.batch, call.heads = options_.heads, call.kv_heads = options_.kv_heads;
    call.saved = options_.keep ? &here.saved : nullptr;
    limpid::forward(op_, in, std::forward<Out>(out), call);
    own_values(in, here.v);
    hand_on(in);
    left_ = ++size_;
  }

  /// The last layer not yet taken back. in: the arrays of its forward call; grad: any of q, k, v, the map's own inputs
  /// and the gains.
  template <class Dout>
  void backward(const Inputs<Op, S>& layer, Dout&& dout, const Grads<Op, S>& grad, const BackwardCall<S>& call = {}) {
    const detail::SavedTurn turn = take_turn();
    if (left_ == 0 || !options_.keep)
      detail::raise(std::string(op_.name) + " stack: " +
                    (options_.keep ? "no layer is left to go back through" : "keep is false, nothing to go back with"));
    const Index l = left_ - 1;
    Layer& here = at(l);
    const Inputs<Op, S> in = with_state(layer, l);
    const bool last = left_ == size_;
    const View<S> upstream(std::forward<Dout>(dout));
    Grads<Op, S> to = grad;
    to.reference = to.integral = to.v_prev = to.v_before = MutView<S>();
    const auto fresh = [&](MutView<S>& field, Mat<S>& m) {
      m.resize(here.v.rows(), here.v.cols());
      if (call.accumulate) m.setZero();
      field = m;
    };
    if (in.reference.given()) fresh(to.reference, dr_);
    if (in.integral.given()) fresh(to.integral, ds_);
    if (in.v_prev.given()) fresh(to.v_prev, dprev_);
    if (in.v_before.given()) fresh(to.v_before, dbefore_);
    BackwardCall<S> inner = call;
    Grads<Op, S> gains{};
    std::size_t g = 0;
    detail::visit_pid_gains(
        [&](const char*, Role, const MutView<S>& asked, MutView<S>& now, MutView<S>& part) {
          Mat<S>& m = gains_[g++];
          if (!asked.given()) return;
          m.resize(asked.rows, asked.cols);
          m.setZero();
          now = part = m;
        },
        grad, to, gains);
    // the gains' own gradients are written afterwards, which the operator does not see
    const View<S> weights = call.relevance.given() ? call.relevance_weights : View<S>();
    detail::refuse_backward_overlaps(
        op_.name, op_, detail::joined(detail::fields_of(grad, detail::gradient_of), detail::written_for(call)),
        detail::joined(detail::fields_of(in), detail::arrays({{"dout", upstream}, {"relevance_weights", weights}})));
    limpid::backward(op_, in, here.saved, upstream, to, inner);

    if (last) {  // what comes from later layers; sb_ is that of the integral this layer hands on
      for (Mat<S>* m : {&sb_, &rb_, &pending_[0], &pending_[1]}) {
        m->resize(here.v.rows(), here.v.cols());
        m->setZero();
      }
    }
    const S weight =
        op_.options.variant == PidVariant::lagged_ema ? S(op_.options.ema) : S(1);  // of E in what is handed on
    if (l > 0) {
      if (!last) pull_integral(in, weight, gains.beta);
      if (in.integral.given()) {
        if (op_.options.variant == PidVariant::lagged_ema)
          sb_ = (S(1) - weight) * sb_ + ds_;  // I' = ema E + (1 - ema) I
        else
          sb_ += ds_;  // S' = S + E
      }
      rb_ += dr_;
    } else {
      pending_[0] += rb_;  // R = V^0
    }
    if (grad.v.given()) add_to_values(pending_[0], grad.v);
    pending_[0] = pending_[1];
    if (l > 0) pending_[0] += dprev_;
    if (in.v_before.given())
      pending_[1] = dbefore_;
    else
      pending_[1].setZero();
    detail::visit_pid_gains(
        [&](const char*, Role, const MutView<S>& asked, const MutView<S>& part) {
          if (asked.given()) detail::copy_or_add<S>(part, asked, call.accumulate || !last);
        },
        grad, gains);
    --left_;
  }

 private:
  struct Layer {
    Mat<S> v, integral;  // of the queries' tokens, H heads; the integral is the one the layer reads
    Saved<Op, S> saved;
  };

  detail::SavedTurn take_turn() { return {&turn_, true, op_.name, " stack"}; }
  Index heads() const { return options_.heads; }
  /// Without keep: layer 0, and two places in turn. The layer before last has lent its values when a layer writes its
  /// own there, and the last one's integral is used up when it hands on the next.
  Layer& at(Index l) {
    const Index slot = l == 0 || options_.keep ? l : 1 + (l - 1) % 2;
    while (static_cast<Index>(layers_.size()) <= slot) layers_.emplace_back();
    return layers_[static_cast<std::size_t>(slot)];
  }

  Inputs<Op, S> with_state(Inputs<Op, S> in, Index l) {
    in.reference = in.integral = in.v_prev = in.v_before = View<S>();
    if (l == 0) return in;
    in.reference = at(0).v;
    in.v_prev = at(l - 1).v;
    if (l > 1) {
      in.integral = at(l).integral;
      if (op_.options.variant == PidVariant::lagged_ema) in.v_before = at(l - 2).v;
    }
    return in;
  }

  /// f(row of queries, row of keys, head, its group) for the values of the queries' own tokens.
  template <class F>
  void each_row(Index n_rows, Index m_rows, F&& f) const {
    const Index batch = options_.batch, n = n_rows / batch, m = m_rows / batch;
    const Index group = options_.kv_heads == 0 ? 1 : heads() / options_.kv_heads;
    for (Index b = 0; b < batch; ++b)
      for (Index i = 0; i < n; ++i)
        for (Index h = 0; h < heads(); ++h) f(b * n + i, b * m + m - n + i, h, h / group);
  }
  void own_values(const Inputs<Op, S>& in, Mat<S>& v) const {
    const Index groups = options_.kv_heads == 0 ? heads() : options_.kv_heads, dv = in.v.cols / groups;
    v.resize(in.q.rows, heads() * dv);
    each_row(in.q.rows, in.v.rows, [&](Index i, Index j, Index h, Index g) {
      detail::copy_row<detail::Native<S>>(in.v.row(j) + g * dv, v.data() + i * v.cols() + h * dv, dv);
    });
  }
  void add_to_values(const Mat<S>& from, MutView<S> dv) const {
    const Index width = from.cols() / heads();
    each_row(from.rows(), dv.rows, [&](Index i, Index j, Index h, Index g) {
      detail::add_row<detail::Native<S>>(from.data() + i * from.cols() + h * width, dv.row(j) + g * width, width);
    });
  }
  S beta(const Inputs<Op, S>& in, Index h) const {
    return in.beta.given() ? in.beta(in.beta.rows == 1 ? 0 : h, 0) : S(op_.options.beta);
  }

  /// S' = S + beta R - V, or I' = ema (beta R - V) + (1 - ema) I, for the next layer; layer 0 hands on nothing.
  void hand_on(const Inputs<Op, S>& in) {
    if (size_ == 0) return;
    const Layer& here = at(size_);
    Mat<S>& next = at(size_ + 1).integral;
    const bool lagged = op_.options.variant == PidVariant::lagged_ema;
    const S weight = lagged ? S(op_.options.ema) : S(1), rest = lagged ? S(1) - weight : S(1);
    const Index width = here.v.cols() / heads();
    next.resize(here.v.rows(), here.v.cols());
    for (Index i = 0; i < next.rows(); ++i)
      for (Index h = 0; h < heads(); ++h) {
        const S b = beta(in, h);
        const Index at = h * width;
        const S *reference = in.reference.row(i) + at, *v = here.v.data() + i * here.v.cols() + at;
        const S* integral = in.integral.given() ? in.integral.row(i) + at : nullptr;
        S* to = next.data() + i * next.cols() + at;
        detail::for_lanes<detail::Native<S>>(width, [&](auto policy, Index c) {
          using L = decltype(policy);
          const auto e = L::fma(L::set(b), L::load(reference + c), -L::load(v + c));
          const auto fresh = L::set(weight) * e;
          L::store(to + c, integral ? L::fma(L::set(rest), L::load(integral + c), fresh) : fresh);
        });
      }
  }
  /// The way back of hand_on, sb_ upstream: dV -= w sb, dR += w beta sb, dbeta += w <sb, R>.
  void pull_integral(const Inputs<Op, S>& in, S weight, MutView<S> dbeta) {
    const Index width = sb_.cols() / heads();
    for (Index h = 0; h < heads(); ++h) {
      const S b = beta(in, h);
      detail::Accumulator<S> sum = 0;
      for (Index i = 0; i < sb_.rows(); ++i)
        for (Index c = h * width; c < (h + 1) * width; ++c) {
          const S g = weight * sb_(i, c);
          pending_[0](i, c) -= g;
          dr_(i, c) += b * g;
          sum += detail::Accumulator<S>(g) * detail::Accumulator<S>(in.reference(i, c));
        }
      if (dbeta.given()) dbeta(dbeta.rows == 1 ? 0 : h, 0) += S(sum);
    }
  }

  Op op_;
  PidStackOptions options_;
  std::deque<Layer> layers_;  // which stay where they are as more come
  detail::Count size_, left_;
  Mat<S> dr_, ds_, dprev_, dbefore_;  // of one layer
  Mat<S> sb_, rb_, pending_[2];       // from later layers: of the integral, of R, of the next two layers' V
  std::array<Mat<S>, 4> gains_;
  detail::Turn turn_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
