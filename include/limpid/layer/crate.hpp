// limpid: the CRATE block: subspace attention compresses tokens, one ISTA step makes them sparse in a dictionary.
// SPDX-License-Identifier: MIT
#pragma once

#include "aot.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// What ista reads, and where its gradients go: x n x D, dictionary D x D, gamma and beta 1 x D of the norm before it,
/// eta and lambda 1 x 1 (default: those of the options). Empty: not given.
template <class T>
struct IstaArgs {
  T x{}, dictionary{}, gamma{}, beta{}, eta{}, lambda{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    f("dictionary", a.dictionary...);
    f("gamma", a.gamma...), f("beta", a.beta...);
    f("eta", a.eta...), f("lambda", a.lambda...);
  }
  template <class V>
  operator IstaArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<IstaArgs<V>>(*this);
  }
  template <class V>
  operator IstaArgs<V>() const {  // NOLINT
    return detail::same_fields<IstaArgs<V>>(*this);
  }
};

template <class S>
struct IstaSaved {
  LayerNormSaved<S> norm;
  Mat<S> residual;   // B - B W^T
  Mat<bool> active;  // where the result is positive
  bool filled = false;
  detail::Turn turn;
};

/// One proximal gradient step on 1/2 |B - Z W^T|^2 + lambda sum Z over Z >= 0, started at Z = B, B = LN(x) or x, W the
/// dictionary; token by token:
///
///     out = relu(B + eta (B - B W^T) W - eta lambda)
///     M = dout where out > 0,  N = M W^T,   dB = M + eta (N - N W),   dW = eta ((B - B W^T)^T M - N^T B),
///     d eta = sum M o ((B - B W^T) W - lambda),   d lambda = -eta sum M
///
/// "White-Box Transformers via Sparse Rate Reduction" (Yu et al., NeurIPS 2023, arXiv 2306.01129; journal version
/// 2311.13110) as in its official code: eta and lambda 0.1, not learned. There is no skip: B inside is the skip, and it
/// is normalised. At the kink the derivative is 0. Gradients ours. Kept: the norm's statistics, B - B W^T and where out
/// > 0. 4 n D^2 flop. Throws ShapeError where shapes do not fit, numbers are not finite, a result shares memory with an
/// input or another one, or, backward, no forward call has filled saved to its end.
struct Ista {
  double eta = 0.1, lambda = 0.1;
  bool norm = true;  ///< LayerNorm before it
  double eps = 1e-5;

  template <class S>
  using Args = IstaArgs<View<S>>;
  template <class S>
  using Grads = IstaArgs<MutView<S>>;
  template <class S>
  using Saved = IstaSaved<S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>("ista", in, out, "out");
    detail::refuse_overlaps("ista", detail::arrays({{"out", out}}), detail::fields_of(in));
    const detail::ForwardScope<Saved<S>> scope("ista", call);
    const detail::Context& context = scope.context;
    const View<S> b = detail::normed<S>(scope, norm, in.x, in.gamma, in.beta, eps, scope.part(&Saved<S>::norm));
    const MutView<S> e = scope.room(&Saved<S>::residual, b.rows, b.cols);
    detail::multiply<detail::Native<S>, detail::Transposed::b>(context, b, in.dictionary, e, false);
    detail::add_scaled<S>(b, S(-1), e, e);  // B - B W^T
    detail::linear_in<detail::Native<S>>(context, e, in.dictionary, View<S>(), out);
    if (call.saved) call.saved->active.resize(b.rows, b.cols);
    const S step = value(in.eta, eta), least = step * value(in.lambda, lambda);
    for (Index i = 0; i < out.rows; ++i) {
      const S* from = b.row(i);
      S* to = out.row(i);
      detail::for_lanes<detail::Native<S>>(out.cols, [&](auto policy, Index c) {
        using L = decltype(policy);
        const auto u = L::fma(L::set(step), L::load(to + c), L::load(from + c)) - L::set(least);
        L::store(to + c, L::if_less(u, L::set(S(0)), L::set(S(0)), u));  // a NaN shows
      });
      if (!call.saved) continue;
      bool* active = call.saved->active.data() + i * out.cols;
      for (Index c = 0; c < out.cols; ++c) active[c] = to[c] > S(0);
    }
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, IstaSaved<S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad, const LayerCall& call = {}) const {
    using P = detail::Native<S>;
    const detail::SavedTurn saved_turn(&saved, false, "ista");
    const View<S> dout(std::forward<Dout>(dout_)), e(saved.residual);
    check<S>("ista", in, dout, "dout");
    detail::check_gradients("ista", in, grad);
    detail::refuse_gradient_overlaps("ista", in, dout, grad);
    check_saved<S>("ista", in, saved);
    const detail::LayerScope scope(call);
    const detail::Context& context = scope.context;
    Arena& arena = scope.arena;
    const Index rows = in.x.rows, cols = in.x.cols;
    const View<S> b = detail::normed<S>(scope, norm, in.x, in.gamma, in.beta, eps, nullptr);
    const S step = value(in.eta, eta), threshold = value(in.lambda, lambda);
    const MutView<S> m = arena.matrix<S>(rows, cols), n = arena.matrix<S>(rows, cols), db = arena.matrix<S>(rows, cols);
    for (Index i = 0; i < rows; ++i)
      for (Index c = 0; c < cols; ++c) m(i, c) = saved.active(i, c) ? dout(i, c) : S(0);
    if (grad.eta.given() || grad.lambda.given()) {
      detail::linear_in<P>(context, e, in.dictionary, View<S>(), n);  // (B - B W^T) W
      detail::Accumulator<S> on_eta = 0, sum = 0;
      for (Index i = 0; i < rows; ++i)
        for (Index c = 0; c < cols; ++c) {
          on_eta += detail::Accumulator<S>(m(i, c)) * detail::Accumulator<S>(n(i, c) - threshold);
          sum += detail::Accumulator<S>(m(i, c));
        }
      const auto give = [&](MutView<S> g, S x) {
        if (g.given()) g(0, 0) = call.accumulate ? g(0, 0) + x : x;
      };
      give(grad.eta, S(on_eta));
      give(grad.lambda, -step * S(sum));
    }
    for (Index i = 0; i < rows; ++i) {
      detail::copy_row<P>(m.row(i), db.row(i), cols);
      detail::scale_row<P>(step, m.row(i), m.row(i), cols);
    }
    detail::multiply<P, detail::Transposed::b>(context, m, in.dictionary, n, false);  // n = eta M W^T
    for (Index i = 0; i < rows; ++i) {
      detail::add_row<P>(n.row(i), db.row(i), cols);
      detail::scale_row<P>(S(-1), n.row(i), n.row(i), cols);
    }
    detail::multiply<P, detail::Transposed::none>(context, n, in.dictionary, db, true);  // dB = M + eta (N - N W)
    if (grad.dictionary.given()) {  // dW = eta ((B - B W^T)^T M - N^T B)
      detail::multiply<P, detail::Transposed::a>(context, e, m, grad.dictionary, call.accumulate);
      detail::multiply<P, detail::Transposed::a>(context, n, b, grad.dictionary, true);
    }
    if (norm)  // b = LN(x)
      detail::layer_norm_backward_in<P>(context, in.x, in.gamma, View<S>(saved.norm.statistics), View<S>(db),
                                        {grad.x, grad.gamma, grad.beta}, call.accumulate, call.accumulate);
    else if (grad.x.given())
      detail::copy_or_add<S>(db, grad.x, call.accumulate);
  }

  /// Shapes and numbers of a call, raised in the name of a layer; out_name is that of out: out or dout.
  template <class S>
  void check(const char* layer, const Args<S>& in, View<S> out, const char* out_name) const {
    using detail::raise;
    using detail::shape_text;
    detail::check_number(layer, "eta", in.eta), detail::check_number(layer, "lambda", in.lambda);
    if (!norm && (in.gamma.given() || in.beta.given()))
      raise(std::string(layer) + ": gamma or beta is given, but norm is false");
    detail::check_norm<S>(layer, in.x, in.gamma, in.beta, eps);
    detail::check_finite<S>(layer, "eta", eta);
    detail::check_finite<S>(layer, "lambda", lambda);
    if (in.dictionary.rows != in.x.cols || in.dictionary.cols != in.x.cols)
      raise(std::string(layer) + ": dictionary is " + shape_text(in.dictionary.rows, in.dictionary.cols) + ", wanted " +
            shape_text(in.x.cols, in.x.cols) + ", square as x has columns");
    detail::check_rows(layer, in);
    const S step = value(in.eta, eta), threshold = value(in.lambda, lambda);
    if (!detail::are_factors(step, threshold, step * threshold))
      raise(std::string(layer) + ": eta is " + detail::number_text(step) + " and lambda " +
            detail::number_text(threshold) + ", wanted numbers that are at most " +
            detail::number_text(detail::largest_factor<S>()) + " in size, their product too");
    detail::check_like_x(layer, out_name, out, in.x);
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const char* layer, const Args<S>& in, const IstaSaved<S>& saved) const {
    const Mat<S>& e = saved.residual;
    if (e.rows() != in.x.rows || e.cols() != in.x.cols)
      detail::raise(std::string(layer) + ": saved holds a residual of " + detail::shape_text(e.rows(), e.cols()) +
                    ", wanted " + detail::shape_text(in.x.rows, in.x.cols));
    if (norm) detail::check_saved_norm<S>(layer, saved.norm, in.x);
    detail::check_filled(layer, saved);
  }

 private:
  template <class S>
  static S value(View<S> given, double otherwise) {
    return given.given() ? given(0, 0) : S(otherwise);
  }
};

/// What a CRATE block reads, and where its gradients go: x (B n) x D; gamma1
/// and beta1 of the norm before the attention; u, wo, bo (see MssaLayerArgs);
/// gamma2, beta2, dictionary, eta and lambda (see IstaArgs). Empty: not given.
template <class T>
struct CrateArgs {
  T x{}, gamma1{}, beta1{}, u{}, wo{}, bo{}, gamma2{}, beta2{}, dictionary{}, eta{}, lambda{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...);
    f("gamma1", a.gamma1...), f("beta1", a.beta1...);
    f("u", a.u...), f("wo", a.wo...), f("bo", a.bo...);
    f("gamma2", a.gamma2...), f("beta2", a.beta2...);
    f("dictionary", a.dictionary...);
    f("eta", a.eta...), f("lambda", a.lambda...);
  }
  template <class V>
  operator CrateArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<CrateArgs<V>>(*this);
  }
  template <class V>
  operator CrateArgs<V>() const {  // NOLINT
    return detail::same_fields<CrateArgs<V>>(*this);
  }
};

template <class Op, class S>
struct CrateSaved {
  AotSaved<Op, S> compress;
  Mat<S> h;
  IstaSaved<S> sparsify;
  bool filled = false;
  detail::Turn turn;
};

/// A CRATE block: H = x + MSSA(LN(x)), out = ISTA(LN(H)). Sources and defaults as MssaLayer and Ista; the language
/// version has op = mssa(causal()).
///
/// The papers derive its first half from a descent of the coding rate R^c. The step that is built, x + MSSA(LN(x)),
/// RAISES the plain R^c of its tokens (Hu et al., NeurIPS 2024, and our own measurement; coding_rate.hpp): do not read
/// it as a descent. Kept: H and what the two halves keep. backward takes what an Explanation asks for. Throws ShapeError
/// as Aot and Ista do.
template <class Op>
struct Crate {
  Op op;
  Index heads = 1;
  Ista ista;
  double eps = 1e-5;

  template <class S>
  using Args = CrateArgs<View<S>>;
  template <class S>
  using Grads = CrateArgs<MutView<S>>;
  template <class S>
  using Saved = CrateSaved<Op, S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    const MutView<S> out(std::forward<Out>(out_));
    check<S>(in, out, "out", call.batch);
    detail::refuse_out_overlaps("crate block", op, in, out);
    compress().template check_operator<S>(first<View<S>>(in, in.x), call.batch);
    const detail::ForwardScope<Saved<S>> scope("crate block", call);
    const MutView<S> h = scope.room(&Saved<S>::h, in.x.rows, in.x.cols);
    compress().forward(first<View<S>>(in, in.x), h,
                       {call.batch, scope.part(&Saved<S>::compress), scope.workspace, scope.executor});
    ista.forward(second<View<S>>(in, h), out,
                 {call.batch, scope.part(&Saved<S>::sparsify), scope.workspace, scope.executor});
    scope.done();
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, CrateSaved<Op, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad,
                const std::type_identity_t<BackwardCall<S>>& call = {}) const {
    const View<S> dout(std::forward<Dout>(dout_));
    const detail::SavedTurn saved_turn(&saved, false, "crate block");
    check<S>(in, dout, "dout", 1);
    Args<S> like = in;
    like.bo = detail::or_zero(in.bo, in.x.cols);
    detail::check_gradients("crate block", like, grad);
    detail::refuse_gradient_overlaps("crate block", op, in, dout, grad, call);
    compress().template check_saved<S>("crate block", first<View<S>>(in, in.x), saved.compress);
    ista.check_saved<S>("crate block", second<View<S>>(in, in.x), saved.sparsify);
    detail::check_filled("crate block", saved);
    const auto& attention = saved.compress.attention;
    detail::check_asked<S>("crate block", call, attention.attention.dims, attention.o.cols());
    const detail::LayerScope scope(call);
    const MutView<S> dh = scope.arena.matrix<S>(saved.h.rows(), saved.h.cols());
    if (call.accumulate) dh.fill(S(0));  // this one is ours
    const LayerCall inner{call.accumulate, scope.workspace, scope.executor};
    ista.backward<S>(second<View<S>>(in, saved.h), saved.sparsify, dout, second<MutView<S>>(grad, dh), inner);
    compress().template backward<S>(first<View<S>>(in, in.x), saved.compress, dh, first<MutView<S>>(grad, grad.x),
                                    {call.accumulate, scope.workspace, scope.executor, call.relevance_weights,
                                     call.relevance, call.part, call.heads_gradient});
  }

 private:
  /// H and x have one shape. The norms first: the halves call both of them gamma and beta.
  template <class S>
  void check(const Args<S>& in, View<S> out, const char* out_name, Index batch) const {
    detail::check_norm<S>("crate block", in.x, in.gamma1, in.beta1, eps, "gamma1", "beta1");
    detail::check_norm<S>("crate block", in.x, in.gamma2, in.beta2, ista.eps, "gamma2", "beta2");
    compress().template check<S>("crate block", first<View<S>>(in, in.x), in.x, "x", batch);
    ista.check<S>("crate block", second<View<S>>(in, in.x), out, out_name);
  }
  Aot<Op> compress() const { return {op, heads, 0, true, eps}; }
  template <class T, class From>
  static AotArgs<T> first(const From& from, T x) {
    AotArgs<T> to;
    to.x = x, to.gamma = from.gamma1, to.beta = from.beta1, to.u = from.u, to.wo = from.wo, to.bo = from.bo;
    return to;
  }
  template <class T, class From>
  static IstaArgs<T> second(const From& from, T x) {
    return {x, from.dictionary, from.gamma2, from.beta2, from.eta, from.lambda};
  }
};

struct CrateOptions {
  Index heads = 1;
  double eta = 0.1, lambda = 0.1;  ///< of the ISTA step; the masked autoencoder has lambda 0.5
  double eps = 1e-5;               ///< of both norms
};

/// crate(mssa(), {.heads = 6}): see Crate.
template <class Op>
Crate<Op> crate(const Op& op, CrateOptions options = {}) {
  return {op, options.heads, {options.eta, options.lambda, true, options.eps}, options.eps};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
