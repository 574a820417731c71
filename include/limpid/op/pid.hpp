// limpid: attention with a PID controller on the values (PIDformer): one layer as an operator.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>

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
    Accumulator<S> p = 0, i = 0, d = 0, beta = 0;
  };
  Sums gradients(View<S> g) const {
    Sums all;
    if (!on) return all;
    const Accumulator<S> reference = inner_product(g, r);
    all.p = Accumulator<S>(beta) * reference - inner_product(g, v);
    all.i = (s.given() ? inner_product(g, s) : Accumulator<S>(0)) + (lagged ? Accumulator<S>(0) : all.p);
    if (has_d()) all.d = inner_product(g, older) - inner_product(g, newer);
    all.beta = Accumulator<S>(on_error()) * reference;
    return all;
  }

 private:
  template <class L>
  LIMPID_INLINE auto error(Index row, Index c) const {
    return L::fma(L::set(beta), L::load(r.row(row) + c), -L::load(v.row(row) + c));
  }
};

}  // namespace detail

/// One layer of pid() over any family of scores.
template <class Score>
struct Pid : OverScores<Score> {
  PidOptions options;
  static constexpr bool reads_pages = Softmax<Score>::reads_pages;
  using OverScores<Score>::score;
  using OverScores<Score>::name;

  template <class T>
  using Args = PidArgs<typename Score::template Args<T>, T>;

  template <class T>
  struct Keep {
    T lse, average;  // average = A V: the delta of the softmax must not see the controller
    template <class F, class... K>
    static void visit(F&& f, const auto& head, K&&... k) {
      f(Kept::stat, 2, false, k.lse...);
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
  template <class P, class S = typename P::Scalar>
  void forward(const Pass<P>& pass, const Args<View<S>>& in, MutView<S> out, const Keep<MutView<S>>& keep) const {
    const auto prepared = score.prepare(pass.arena(), in, pass.at);
    engine::smooth<P>(pass.context, prepared.scores, in.v, out, engine::lse_of(keep.lse), keep.average);
    Args<View<S>> own = in;  // of the controller, which looks at the last values
    if (const detail::KeyPages* pages = pass.context.pages(); pages != nullptr && in.reference.given())
      own.v = detail::copied_pages(pass.context, *pages, pages->v_stride, in.v, in.v.rows - in.q.rows);
    detail::PidController<S>(options, own).template add_to<P>(out);
  }

  template <class P, class S = typename P::Scalar>
  void backward(const BackwardPass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> dout,
                const Args<MutView<S>>& grad) const {
    MapBackward map(pass, score, in, engine::lse_of(keep.lse), grad);
    map.of_values(dout, in.v, grad.v, keep.average);  // delta of A V, without the controller
    map.finish();

    const detail::PidController<S> c(options, in);
    if (grad.v.given()) add<P>(c.on_v(), dout, own_rows(grad.v, in.q.rows));  // dV -= Eb + lambda_d dout
    put<P>(c.on_r(), dout, grad.reference, pass.accumulate.q);                // dR = beta Eb
    put<P>(c.on_s(), dout, grad.integral, pass.accumulate.q);                 // dS = lambda_i dout
    put<P>(c.lagged ? -c.on_older() : c.on_older(), dout, grad.v_prev, pass.accumulate.q);
    put<P>(c.lagged ? c.on_older() : S(0), dout, grad.v_before, pass.accumulate.q);
    if (grad.lambda_p.given() || grad.lambda_i.given() || grad.lambda_d.given() || grad.beta.given()) {
      const auto sums = c.gradients(dout);
      if (grad.lambda_p.given()) grad.lambda_p(0, 0) = S(sums.p);
      if (grad.lambda_i.given()) grad.lambda_i(0, 0) = S(sums.i);
      if (grad.lambda_d.given()) grad.lambda_d(0, 0) = S(sums.d);
      if (grad.beta.given()) grad.beta(0, 0) = S(sums.beta);
    }
  }

  /// out = E x and out = E^T g, E = d out / d V with A and the state held still.
  template <class P, class S = typename P::Scalar>
  void apply(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> x, MutView<S> out) const {
    engine::smooth_with_lse<P>(pass.context, score.prepare(pass.arena(), in, pass.at).scores, engine::lse_of(keep.lse),
                               x, out);
    add<P>(detail::PidController<S>(options, in).on_v(), own_rows(x, in.q.rows), out);
  }
  template <class P, class S = typename P::Scalar>
  void apply_transposed(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, View<S> g,
                        MutView<S> out) const {
    engine::smooth_transposed<P>(pass.context, score.prepare(pass.arena(), in, pass.at).scores,
                                 engine::lse_of(keep.lse), g, out);
    add<P>(detail::PidController<S>(options, in).on_v(), g, own_rows(out, in.q.rows));
  }
  template <class P, class S = typename P::Scalar>
  void map_block(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, Index q0, Index k0,
                 MutView<S> out) const {
    engine::map_block<P>(pass.context, score.prepare(pass.arena(), in, pass.at).scores, engine::lse_of(keep.lse), q0,
                         k0, out);
    const S c = detail::PidController<S>(options, in).on_v();
    for (Index i = 0; i < out.rows; ++i) {
      const Index own = q0 + i + in.v.rows - in.q.rows - k0;
      if (c != S(0) && own >= 0 && own < out.cols) out(i, own) += c;
    }
  }
  /// Of the rows of A, the distributions.
  template <class P, class S = typename P::Scalar>
  void entropy(const Pass<P>& pass, const Args<View<S>>& in, const Keep<View<S>>& keep, S* out) const {
    engine::entropy<P>(pass.context, score.prepare(pass.arena(), in, pass.at).scores, engine::lse_of(keep.lse), out);
  }

 private:
  template <class V>
  static V own_rows(const V& v, Index n) {
    return n > v.rows ? v : v.block(v.rows - n, 0, n, v.cols);
  }
  template <class P, class S>
  static void add(S factor, View<S> from, MutView<S> to) {
    if (factor != S(0)) engine::copy_or_add_scaled<P>(from, factor, to, true);
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
  return Pid<Score>{{map.score, "pid"}, options};
}
/// pid(softmax(modifiers), options)
template <class M>
requires(!std::is_same_v<M, PidOptions>) auto pid(const M& modifiers, PidOptions options = {}) {
  return pid(softmax(modifiers), options);
}
inline auto pid(PidOptions options = {}) { return pid(softmax(), options); }

}  // namespace LIMPID_ABI
}  // namespace limpid
