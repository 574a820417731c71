// limpid: attention with a PID controller on the values (PIDformer): one layer as an operator, and a stack of layers.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <deque>

#include "../score/kernel.hpp"
#include "softmax.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// paper: the integral is the plain sum of errors, the present one included; the derivative is E^l - E^(l-1).
/// lagged_ema: an exponential average of strictly earlier errors, and a derivative one layer late. The published
/// numbers were probably obtained with it.
enum class PidVariant { paper, lagged_ema };

/// Gains default to the published constants (ImageNet, DeiT-tiny). A layer given lambda_p ... as inputs takes those
/// instead.
struct PidOptions {
  PidVariant variant = PidVariant::paper;
  double lambda_p = 0.8, lambda_i = 0.5, lambda_d = 0.05;
  double beta = 0.1;  ///< the reference is beta V^0
  double ema = 0.3;   ///< share of the newest error in the average, in (0, 1]; lagged_ema only
};

namespace detail {

template <class F, class... A>
void visit_pid_state(F&& f, A&&... a) {
  f("reference", Role::query, a.reference...);
  f("integral", Role::query, a.integral...);
  f("v_prev", Role::query, a.v_prev...);
  f("v_before", Role::query, a.v_before...);
}
template <class F, class... A>
void visit_pid_gains(F&& f, A&&... a) {
  f("lambda_p", Role::head, a.lambda_p...);
  f("lambda_i", Role::head, a.lambda_i...);
  f("lambda_d", Role::head, a.lambda_d...);
  f("beta", Role::head, a.beta...);
}

}  // namespace detail

/// Inputs of one layer and their gradients: those of the map, then the state handed from layer to layer, (B n) x (H dv)
/// each, and the gains, 1 x 1 or H x 1. An empty one is not given.
///
///     reference   R = V^0; without it the layer is the first one, plain attention
///     integral    S, the errors of layers 1 .. l-1 (lagged_ema: their average I); empty in layer 1
///     v_prev      V^(l-1); without it (lagged_ema: without v_before) there is no derivative term
///     v_before    V^(l-2), lagged_ema only, from layer 2 on
///
/// Over a map of q, k and v use designated initialisers; over one with more inputs (nlm, bilateral) assign the fields.
template <class MapArgs, class T>
struct PidArgs : MapArgs {
  T reference{}, integral{}, v_prev{}, v_before{}, lambda_p{}, lambda_i{}, lambda_d{}, beta{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    MapArgs::visit(f, a...);
    detail::visit_pid_state(f, a...);
    detail::visit_pid_gains(f, a...);
  }
  static PidArgs from_qkv(T q, T k, T v) { return {MapArgs::from_qkv(q, k, v)}; }
};
template <class T>
struct PidArgs<QKV<T>, T> {
  T q{}, k{}, v{}, reference{}, integral{}, v_prev{}, v_before{}, lambda_p{}, lambda_i{}, lambda_d{}, beta{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    QKV<T>::visit(f, a...);
    detail::visit_pid_state(f, a...);
    detail::visit_pid_gains(f, a...);
  }
  static PidArgs from_qkv(T q, T k, T v) { return {q, k, v}; }
};

namespace detail {

/// The controller of one head, added to A V row by row. What counts by exactly 0 is not looked at.
///
///     paper:       E = beta R - V,   lambda_p E + lambda_i (S + E) + lambda_d (V_prev - V)
///     lagged_ema:  E = beta R - V,   lambda_p E + lambda_i I       + lambda_d (V_before - V_prev)
template <class S>
struct PidController {
  S p, i, d, beta;
  bool on, lagged;
  View<S> r, s, v, older, newer;

  template <class In>
  PidController(const PidOptions& options, const In& in) : lagged(options.variant == PidVariant::lagged_ema) {
    const auto gain = [](View<S> given, double otherwise) { return given.given() ? given(0, 0) : S(otherwise); };
    p = gain(in.lambda_p, options.lambda_p), i = gain(in.lambda_i, options.lambda_i);
    d = gain(in.lambda_d, options.lambda_d), beta = gain(in.beta, options.beta);
    on = in.reference.given();
    r = in.reference, s = in.integral;
    if (!on) return;
    // the values of the queries' own tokens: the last query stands at the last key
    v = in.v.block(in.v.rows - in.q.rows, 0, in.q.rows, in.v.cols);
    older = lagged ? in.v_before : in.v_prev, newer = lagged ? in.v_prev : v;
  }

  bool has_d() const { return on && older.given() && newer.given(); }
  // What out changes by, per unit of E, S, V_prev (or V_before), V and R.
  S on_error() const { return !on ? S(0) : (lagged ? p : p + i); }
  S on_s() const { return on ? i : S(0); }
  S on_older() const { return has_d() ? d : S(0); }
  S on_v() const { return (lagged ? S(0) : -on_older()) - on_error(); }
  S on_r() const { return beta * on_error(); }

  template <class P>
  void add_to(MutView<S> out) const {
    const S e = on_error(), sum = s.given() ? on_s() : S(0), slope = on_older();
    if (e == S(0) && sum == S(0) && slope == S(0)) return;
    for (Index row = 0; row < out.rows; ++row) {
      S* to = out.row(row);
      for_lanes<P>(out.cols, [&](auto policy, Index c) {
        using L = decltype(policy);
        auto u = L::load(to + c);
        if (e != S(0)) u = L::fma(L::set(e), error<L>(row, c), u);
        if (sum != S(0)) u = L::fma(L::set(sum), L::load(s.row(row) + c), u);
        if (slope != S(0)) u = L::fma(L::set(slope), L::load(older.row(row) + c) - L::load(newer.row(row) + c), u);
        L::store(to + c, u);
      });
    }
  }

  /// <G, d out / d gain>: <G, E>, <G, S + E>, <G, V_prev - V>, <Eb, R>.
  struct Sums {
    Wide<S> p = 0, i = 0, d = 0, beta = 0;
  };
  Sums gradients(View<S> g) const {
    Sums all;
    if (!on) return all;
    const Wide<S> reference = inner_product(g, r);
    all.p = Wide<S>(beta) * reference - inner_product(g, v);
    all.i = (s.given() ? inner_product(g, s) : Wide<S>(0)) + (lagged ? Wide<S>(0) : all.p);
    if (has_d()) all.d = inner_product(g, older) - inner_product(g, newer);
    all.beta = Wide<S>(on_error()) * reference;
    return all;
  }

 private:
  template <class L>
  LIMPID_INLINE typename L::V error(Index row, Index c) const {
    return L::fma(L::set(beta), L::load(r.row(row) + c), -L::load(v.row(row) + c));
  }
};

}  // namespace detail

/// One layer of pid() over any family of scores.
template <class Score>
struct Pid {
  Score score;
  PidOptions options;
  const char* name = "pid";

  template <class T>
  using Args = PidArgs<typename Score::template Args<T>, T>;

  template <class T>
  struct Keep {
    T lse, average;  // average = A V: the delta of the softmax must not see the controller
    template <class F, class... K>
    static void visit(F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 2, true, k.lse...);
      f(Kept::rows, head.v.cols, false, k.average...);
    }
  };

  template <class In>
  void check(const Dims& dims, const In& head) const {
    using detail::raise;
    using detail::text_of;
    const std::string op = name;
    score.check(name, dims, head);
    if (!(options.ema > 0 && options.ema <= 1))
      raise(op + ": ema is " + std::to_string(options.ema) + ", wanted a number in (0, 1]");
    using S = typename decltype(In::v)::Scalar;
    detail::check_factor<S>(op, "lambda_p", options.lambda_p);
    detail::check_factor<S>(op, "lambda_i", options.lambda_i);
    detail::check_factor<S>(op, "lambda_d", options.lambda_d);
    detail::check_factor<S>(op, "beta", options.beta);
    detail::visit_pid_gains([&](const char* field, Role, const auto& x) { detail::check_scalar(name, field, x); },
                            head);
    detail::visit_pid_state(
        [&](const char* field, Role, const auto& x) {
          if (!x.given()) return;
          if (x.cols != head.v.cols)
            raise(op + ": " + field + " has " + text_of(x.cols) + " columns a head, wanted " + text_of(head.v.cols) +
                  ", the width of v");
          if (!head.reference.given()) raise(op + ": " + field + " is given without reference, the values of layer 0");
        },
        head);
    if (head.v_before.given() && (options.variant != PidVariant::lagged_ema || !head.v_prev.given()))
      raise(op + ": v_before belongs to lagged_ema, with v_prev");
    if (head.reference.given() && dims.m < dims.n)
      raise(op + ": n is " + text_of(dims.n) + " and m " + text_of(dims.m) +
            ", wanted n <= m, as each query's own value is controlled");
    const detail::PidController<S> c(options, head);
    const S gains[] = {c.p, c.i, c.d, c.beta};
    if (detail::row_is_finite(gains, 4) &&
        !detail::are_factors(c.p, c.i, c.d, c.beta, c.p + c.i, c.p + c.i + c.d, c.beta * c.p, c.beta * (c.p + c.i)))
      raise(op + ": lambda_p is " + detail::number_text(c.p) + ", lambda_i " + detail::number_text(c.i) +
            ", lambda_d " + detail::number_text(c.d) + " and beta " + detail::number_text(c.beta) +
            ", wanted numbers that are at most " + detail::number_text(detail::largest_factor<S>()) +
            " in size, their sums and products too");
  }
  template <class In>
  Index out_width(const In& head) const {
    return head.v.cols;
  }
  const auto& modifiers() const { return score.mods; }
  auto& modifiers() { return score.mods; }

  template <class P, class S>
  void forward(const detail::Context& context, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep,
               const At& at) const {
    const auto prepared = score.prepare(context.arena(), in, at);
    detail::smooth<P>(context, prepared.scores, in.v, out, detail::lse_of(keep.lse));
    if (keep.average.given()) detail::copy<S>(out, keep.average);
    detail::PidController<S>(options, in).template add_to<P>(out);
  }

  template <class P, class S>
  void backward(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad, detail::Accumulation accumulate, const At& at, S* sinks,
                const detail::Emission<S>& emission) const {
    Arena& arena = context.arena();
    const auto prepared = score.prepare(arena, in, at);
    const auto to = score.targets(arena, in, prepared, grad);
    S* delta = arena.take<S>(in.q.rows);
    detail::row_dots<P>(dout, keep.average, delta);  // of A V, without the controller
    auto plan = detail::plan_of(prepared.scores, detail::lse_of(keep.lse), delta, to, accumulate, emission);
    plan.left = dout, plan.right = in.v;  // dA = dout V^T
    plan.x = dout, plan.dv = grad.v;      // dV = A^T dout
    detail::pull_back<P>(context, plan, sinks);
    score.finish(in, prepared, to, grad, accumulate);

    const detail::PidController<S> c(options, in);
    if (grad.v.given()) add<P>(c.on_v(), dout, own_rows(grad.v, in.q.rows));  // dV -= Eb + lambda_d dout
    put<P>(c.on_r(), dout, grad.reference, accumulate.q);                     // dR = beta Eb
    put<P>(c.on_s(), dout, grad.integral, accumulate.q);                      // dS = lambda_i dout
    put<P>(c.lagged ? -c.on_older() : c.on_older(), dout, grad.v_prev, accumulate.q);
    put<P>(c.lagged ? c.on_older() : S(0), dout, grad.v_before, accumulate.q);
    if (grad.lambda_p.given() || grad.lambda_i.given() || grad.lambda_d.given() || grad.beta.given()) {
      const auto sums = c.gradients(dout);
      if (grad.lambda_p.given()) grad.lambda_p(0, 0) = S(sums.p);
      if (grad.lambda_i.given()) grad.lambda_i(0, 0) = S(sums.i);
      if (grad.lambda_d.given()) grad.lambda_d(0, 0) = S(sums.d);
      if (grad.beta.given()) grad.beta(0, 0) = S(sums.beta);
    }
  }

  /// out = E x and out = E^T g, E = d out / d V with A and the state held still.
  template <class P, class S>
  void apply(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x,
             MutView<S> out, const At& at) const {
    detail::smooth_known<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), x, out);
    add<P>(detail::PidController<S>(options, in).on_v(), own_rows(x, in.q.rows), out);
  }
  template <class P, class S>
  void apply_transposed(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out, const At& at) const {
    detail::smooth_transposed<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), g,
                                 out);
    add<P>(detail::PidController<S>(options, in).on_v(), g, own_rows(out, in.q.rows));
  }
  template <class P, class S>
  void map_block(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out, const At& at) const {
    detail::map_block<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), q0, k0, out);
    const S c = detail::PidController<S>(options, in).on_v();
    for (Index i = 0; i < out.rows; ++i) {
      const Index own = q0 + i + in.v.rows - in.q.rows - k0;
      if (c != S(0) && own >= 0 && own < out.cols) out(i, own) += c;
    }
  }
  /// Of the rows of A, the distributions.
  template <class P, class S>
  void entropy(const detail::Context& context, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out,
               const At& at) const {
    detail::entropy<P>(context, score.prepare(context.arena(), in, at).scores, detail::lse_of(keep.lse), out);
  }

 private:
  template <class V>
  static V own_rows(const V& v, Index n) {
    return n > v.rows ? v : v.block(v.rows - n, 0, n, v.cols);
  }
  template <class P, class S>
  static void add(S factor, View<S> from, MutView<S> to) {
    if (factor != S(0)) detail::deliver_scaled<P>(from, factor, to, true);
  }
  template <class P, class S>
  static void put(S factor, View<S> from, MutView<S> to, bool accumulate) {
    if (!to.given()) return;
    if (!accumulate) to.fill(S(0));
    add<P>(factor, from, to);
  }
};

/// One layer of attention with a PID controller on its values, over any map A:
///
///     E = beta R - V,   out = A V + lambda_p E + lambda_i (S + E) + lambda_d (V_prev - V)                      paper
///                       out = A V + lambda_p E + lambda_i I       + lambda_d (V_before - V_prev)          lagged_ema
///
/// "PIDformer: Transformer Meets Control Theory" (Nguyen, Uribe, Nguyen, Baraniuk, ICML 2024, arXiv 2402.15989; its
/// equation numbers could not be read). R = V^0 and the rest of the state come from earlier layers (see PidArgs);
/// PidStack carries it, forward and backward. lambda_p = beta = 1 and no other gain is NeuTRENO with alpha = 1.
/// Gradients, G = dout:
///
///     Eb = (lambda_p + lambda_i) G  (lagged_ema: lambda_p G),   dV = A^T G - Eb - lambda_d G,   dR = beta Eb,
///     dS = lambda_i G,   dV_prev = lambda_d G,   d lambda_p = <G, E> ...,   d beta = <Eb, R>;
///     dq, dk as in the map with delta_i = <G_i, (A V)_i>
///
/// Those of the state and of the gains are ours, as is what follows. A row that keeps no key has A V = 0 but keeps its
/// controller, which looks at the token's own value, masked as a key or not. n <= m: the last query stands at the last
/// key (decoding). The map shown from inside is E = d out / d V = A - (lambda_p + lambda_i + lambda_d) I, I at the
/// queries' own keys (lagged_ema: A - lambda_p I); its entropy and relevance are those of A. pid(), pid(causal(),
/// {.beta = 1}), pid(nlm(), {.variant = PidVariant::lagged_ema}).
///
/// Kept: the row log-sum-exp and A V. Cost of the map plus 10 n dv flop. Throws ShapeError where shapes do not fit,
/// where state is given without reference, for an ema outside (0, 1], and for gains so large that their sums or
/// products with beta overflow. The paper's stability results are of continuous depth: a step of the P term takes an
/// eigenvalue mu of A to mu - lambda_p and shrinks only where that is inside (-1, 1).
template <class Score>
auto pid(const Softmax<Score>& map, PidOptions options = {}) {
  return Pid<Score>{map.score, options};
}
/// pid(softmax(modifiers), options)
template <class M>
requires(!std::is_same_v<M, PidOptions>) auto pid(const M& modifiers, PidOptions options = {}) {
  return pid(softmax(modifiers), options);
}
inline auto pid(PidOptions options = {}) { return pid(softmax(), options); }

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
        op_.name, op_,
        detail::joined(detail::fields_of(grad, detail::gradient_of), detail::arrays({{"relevance", call.relevance}})),
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
          if (asked.given()) detail::deliver<S>(part, asked, call.accumulate || !last);
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
      detail::Wide<S> sum = 0;
      for (Index i = 0; i < sb_.rows(); ++i)
        for (Index c = h * width; c < (h + 1) * width; ++c) {
          const S g = weight * sb_(i, c);
          pending_[0](i, c) -= g;
          dr_(i, c) += b * g;
          sum += detail::Wide<S>(g) * detail::Wide<S>(in.reference(i, c));
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
