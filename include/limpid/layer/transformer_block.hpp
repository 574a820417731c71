// limpid: the transformer block: attention by any operator, cross attention, an MLP, each with its norm, its residual
// and LayerScale.
// SPDX-License-Identifier: MIT
#pragma once

#include "mlp.hpp"
#include "multi_head.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// Where the norms of a block stand: before a sublayer (Xiong et al. 2020, arXiv 2002.04745), after its residual
/// (Vaswani et al. 2017), or before a sublayer and again before its residual.
enum class NormPlace { pre, post, sandwich };

/// What a transformer block reads, and where its gradients go. x (B n) x D. Self attention: gamma1 and beta1 1 x D, wq
/// to bg, gamma_q and gamma_k as in MultiHeadArgs, scale1 1 x D of LayerScale. Cross attention: context (B m) x C,
/// gamma_c, beta_c, wq2 to bg2, gamma_q2, gamma_k2, scale_c. MLP: gamma2, beta2, w1 to b3 as in MlpArgs, scale2.
/// gamma1b, beta1b, gamma_cb, beta_cb, gamma2b, beta2b: of the second norms of a sandwich. Every weight may lie either
/// way round, as out_in(w) says. Empty: not given. visit(f, a...) calls f(name, a's fields...) in this order,
/// visit_parameters the same without x and context.
template <class T>
struct TransformerBlockArgs {
  using W = detail::LayerWeight<T>;
  T x{}, context{};
  T gamma1{}, beta1{};
  W wq{};
  T bq{};
  W wk{};
  T bk{};
  W wv{};
  T bv{};
  W wo{};
  T bo{};
  W wg{};
  T bg{}, gamma_q{}, gamma_k{}, gamma1b{}, beta1b{}, scale1{};
  T gamma_c{}, beta_c{};
  W wq2{};
  T bq2{};
  W wk2{};
  T bk2{};
  W wv2{};
  T bv2{};
  W wo2{};
  T bo2{};
  W wg2{};
  T bg2{}, gamma_q2{}, gamma_k2{}, gamma_cb{}, beta_cb{}, scale_c{};
  T gamma2{}, beta2{};
  W w1{};
  T b1{};
  W w2{};
  T b2{};
  W w3{};
  T b3{}, gamma2b{}, beta2b{}, scale2{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("x", a.x...), f("context", a.context...);
    visit_parameters(f, a...);
  }
  template <class F, class... A>
  static void visit_parameters(F&& f, A&&... a) {
    f("gamma1", a.gamma1...), f("beta1", a.beta1...);
    f("wq", a.wq...), f("bq", a.bq...), f("wk", a.wk...), f("bk", a.bk...);
    f("wv", a.wv...), f("bv", a.bv...), f("wo", a.wo...), f("bo", a.bo...);
    f("wg", a.wg...), f("bg", a.bg...);
    f("gamma_q", a.gamma_q...), f("gamma_k", a.gamma_k...);
    f("gamma1b", a.gamma1b...), f("beta1b", a.beta1b...), f("scale1", a.scale1...);
    f("gamma_c", a.gamma_c...), f("beta_c", a.beta_c...);
    f("wq2", a.wq2...), f("bq2", a.bq2...), f("wk2", a.wk2...), f("bk2", a.bk2...);
    f("wv2", a.wv2...), f("bv2", a.bv2...), f("wo2", a.wo2...), f("bo2", a.bo2...);
    f("wg2", a.wg2...), f("bg2", a.bg2...);
    f("gamma_q2", a.gamma_q2...), f("gamma_k2", a.gamma_k2...);
    f("gamma_cb", a.gamma_cb...), f("beta_cb", a.beta_cb...), f("scale_c", a.scale_c...);
    f("gamma2", a.gamma2...), f("beta2", a.beta2...);
    f("w1", a.w1...), f("b1", a.b1...), f("w2", a.w2...), f("b2", a.b2...), f("w3", a.w3...), f("b3", a.b3...);
    f("gamma2b", a.gamma2b...), f("beta2b", a.beta2b...), f("scale2", a.scale2...);
  }
  template <class V>
  operator TransformerBlockArgs<V>() {  // NOLINT: implicit on purpose
    return detail::same_fields<TransformerBlockArgs<V>>(*this);
  }
  template <class V>
  operator TransformerBlockArgs<V>() const {  // NOLINT
    return detail::same_fields<TransformerBlockArgs<V>>(*this);
  }
};

/// No cross attention.
struct NoCross {};

/// What a block is besides its operators. eps has to be said.
struct TransformerBlockOptions {
  Index heads = 1;
  Index kv_heads = 0;          ///< 0 means heads
  double eps = eps_not_given;  ///< of all norms of tokens
  NormPlace place = NormPlace::pre;
  NormKind norm = NormKind::layer;
  std::optional<Mlp> mlp = Mlp{};             ///< nullopt: attention only
  std::optional<double> qk_norm_eps = {};     ///< see MultiHead
  Index cross_heads = 0, cross_kv_heads = 0;  ///< 0 means as many as the self attention has
  std::optional<double> cross_qk_norm_eps = {};
};

namespace detail {

inline constexpr const char* block_name = "transformer block";
inline constexpr const char* cross_name = "transformer block, cross attention";

/// What surrounds one sublayer of a block: T = View or Gradient.
template <class T>
struct Surroundings {
  T gamma, beta, gamma_b, beta_b, scale;
};

/// What a sublayer's surroundings keep: statistics of the norms; what the sublayer gave where its scale or a norm after
/// it wants that, and the sum that a norm after the residual is of.
template <class S>
struct SurroundingsSaved {
  LayerNormSaved<S> norm, norm_b;
  Mat<S> result, sum;
};

/// The norms and residual of a block round each of its sublayers.
struct Residual {
  NormPlace place;
  NormKind kind;
  double eps;

  /// out from x; f(View in, MutView out) is the sublayer.
  template <class S, class F>
  void forward(const LayerScope& scope, View<S> x, const Surroundings<View<S>>& p, MutView<S> out,
               SurroundingsSaved<S>* saved, F&& f) const {
    Arena& arena = scope.arena;
    const ArenaScope taken(arena);
    const auto room = [&](bool keep, Mat<S> SurroundingsSaved<S>::*field) {
      if (!keep || !saved) return arena.matrix<S>(x.rows, x.cols);
      (saved->*field).resize(x.rows, x.cols);
      return MutView<S>(saved->*field);
    };
    const MutView<S> r = room(place == NormPlace::sandwich || p.scale.given(), &SurroundingsSaved<S>::result);
    f(place == NormPlace::post ? x : normed<S>(scope, x, p, saved), r);
    if (place == NormPlace::sandwich) {  // out = x + norm_b(r)
      norm<S>(scope.context, r, p.gamma_b, p.beta_b, out, saved ? &saved->norm_b : nullptr);
      add<S>(scope.context, x, nullptr, out, out);
    } else if (place == NormPlace::post) {  // out = norm(x + scale o r)
      const MutView<S> sum = room(true, &SurroundingsSaved<S>::sum);
      add<S>(scope.context, x, p.scale.data, r, sum);
      norm<S>(scope.context, sum, p.gamma, p.beta, out, saved ? &saved->norm : nullptr);
    } else {  // out = x + scale o r
      add<S>(scope.context, x, p.scale.data, r, out);
    }
  }

  /// dx, overwritten, from dout; f(View in, View dout, MutView din) is the sublayer's backward pass.
  template <class S, class F>
  void backward(const LayerScope& scope, View<S> x, const Surroundings<View<S>>& p, const SurroundingsSaved<S>& saved,
                View<S> dout, const Surroundings<Gradient<S>>& grad, MutView<S> dx, bool accumulate, F&& f) const {
    using P = Native<S>;
    Arena& arena = scope.arena;
    const ArenaScope taken(arena);
    const auto room = [&] { return arena.matrix<S>(x.rows, x.cols); };
    View<S> dr = dout;  // of what the sublayer gave, before its scale
    if (place != NormPlace::pre) {
      const bool post = place == NormPlace::post;
      const MutView<S> to = room();
      norm_backward_in<P>(scope.context, kind, View<S>(post ? saved.sum : saved.result), post ? p.gamma : p.gamma_b,
                          View<S>(post ? saved.norm.statistics : saved.norm_b.statistics), dout,
                          {to, post ? grad.gamma : grad.gamma_b, post ? grad.beta : grad.beta_b}, false, accumulate);
      dr = to;
    }
    const View<S> dsum = dr;
    if (p.scale.given()) {
      const View<S> r(saved.result);
      const MutView<S> scaled = room();
      if (grad.scale.given()) {  // dscale = sum of dsum o r over rows
        for_rows(scope.context, x.rows, [&](Index first, Index last) {
          for (Index i = first; i < last; ++i) times_row<P>(dsum.row(i), r.row(i), scaled.row(i), x.cols);
        });
        add_columns<S>(scope.context, View<S>(scaled), grad.scale, accumulate);
      }
      for_rows(scope.context, x.rows, [&](Index first, Index last) {
        for (Index i = first; i < last; ++i) times_row<P>(dsum.row(i), p.scale.data, scaled.row(i), x.cols);
      });
      dr = scaled;
    }
    if (place == NormPlace::post) {  // sum = x + scale o f(x)
      f(x, dr, dx);
      add<S>(scope.context, dx, nullptr, dsum, dx);
    } else {  // r = f(norm(x)), and x goes on besides
      const MutView<S> dh = room();
      f(normed<S>(scope, x, p, nullptr), dr, dh);
      norm_backward_in<P>(scope.context, kind, x, p.gamma, View<S>(saved.norm.statistics), View<S>(dh),
                          {dh, grad.gamma, grad.beta}, false, accumulate);
      add<S>(scope.context, dout, nullptr, dh, dx);
    }
  }

  /// That saved was filled by a forward call of such an x.
  template <class S>
  void check_saved(View<S> x, const Surroundings<View<S>>& p, const SurroundingsSaved<S>& saved) const {
    check_saved_norm<S>(block_name, saved.norm, x, kind);
    if (place == NormPlace::sandwich) check_saved_norm<S>(block_name, saved.norm_b, x, kind);
    if (place == NormPlace::post) check_kept(block_name, "sum", saved.sum, x.rows, x.cols);
    if (place == NormPlace::sandwich || p.scale.given()) check_kept(block_name, "result", saved.result, x.rows, x.cols);
  }

 private:
  template <class S>
  void norm(const Context& context, View<S> x, View<S> gamma, View<S> beta, MutView<S> y,
            LayerNormSaved<S>* saved) const {
    if (saved) {
      saved->statistics.resize(x.rows, 4);
      saved->width = x.cols, saved->kind = kind, saved->filled = true;
    }
    norm_in<Native<S>>(context, kind, x, gamma, beta, eps, y, saved ? MutView<S>(saved->statistics) : MutView<S>());
  }
  /// What the sublayer reads, made anew in the backward pass.
  template <class S>
  View<S> normed(const LayerScope& scope, View<S> x, const Surroundings<View<S>>& p,
                 SurroundingsSaved<S>* saved) const {
    const MutView<S> h = scope.arena.template matrix<S>(x.rows, x.cols);
    norm<S>(scope.context, x, p.gamma, p.beta, h, saved ? &saved->norm : nullptr);
    return h;
  }
  /// to = a + factors o b
  template <class S>
  static void add(const Context& context, View<S> a, const S* factors, View<S> b, MutView<S> to) {
    for_rows(context, to.rows, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) add_times_row<Native<S>>(a.row(i), factors, b.row(i), to.row(i), to.cols);
    });
  }
};

template <class Op, class S>
struct CrossSaved {
  using type = MultiHeadSaved<Op, S>;
};
template <class S>
struct CrossSaved<NoCross, S> {
  struct type {};
};

}  // namespace detail

/// What a block keeps. attention.q, .k, .v and .attention, and those of cross, are what map_block and Rollout ask for.
template <class Op, class CrossOp, class S>
struct TransformerBlockSaved {
  MultiHeadSaved<Op, S> attention;
  typename detail::CrossSaved<CrossOp, S>::type cross;
  MlpSaved<S> mlp;
  detail::SurroundingsSaved<S> round_attention, round_cross, round_mlp;
  Mat<S> attended, crossed;  ///< tokens after self and after cross attention, where another sublayer follows
  bool filled = false;
  detail::Turn turn;
};

/// A block of a transformer, batches of tokens to tokens of the same shape, for each of its sublayers f: self
/// attention, cross attention where there is one, MLP where there is one,
///
///     pre        x <- x + s o f(N(x))
///     post       x <- N(x + s o f(x))
///     sandwich   x <- x + N_b(f(N(x)))
///
/// N a layer or rms norm, s LayerScale (Touvron et al. 2021, arXiv 2103.17239) or 1. Attention is MultiHead of any
/// operator of q, k and v; rotary positions come with it, rope(softmax(causal()), {.layout = RopeLayout::half}). Kept:
/// what MultiHead and Mlp keep, the tokens between sublayers, the norms' statistics, of post the sums they are of, of
/// LayerScale and sandwich what sublayers gave; N(x) is made again. Memory O(n (D + E)), whatever m and n. x, context
/// and the parameters must still be there.
///
///     const auto block = limpid::transformer_block(limpid::softmax(), {.heads = 6, .eps = 1e-6});
///     decltype(block)::Saved<float> saved;
///     block.forward({.x = x, .gamma1 = g1, ..., .wq = limpid::out_in(wq), ...}, out, {.saved = &saved});
///     block.backward(in, saved, dout, {.x = dx, .wq = limpid::add(dwq), ...});
///
/// A gradient that says add(m) or overwrite(m) does that, the others as call.accumulate says; of blocks that share
/// their parameters, dx is overwritten and parameters are added to. backward takes the request of a Relevance (ask())
/// or an Explanation for its self attention, and another for its cross attention; gradients have the same bits then. Error, of the
/// largest entry: double within 1e-12 of independent references, found 1.3e-15; float within 4e-6 beside what rounded
/// inputs make, found 6e-7 (tests/golden/transformer_block.cpp). Throws ShapeError as MultiHead and Mlp do, with the
/// layer's name first, where eps is not given, a beta is given to an rms norm, a scale or second norm to a block
/// without, context to a block without cross attention, or sublayers give other widths than x has.
template <class Op, class CrossOp = NoCross>
struct TransformerBlock {
  Op op;
  TransformerBlockOptions options;
  CrossOp cross_op;

  static constexpr bool crosses = !std::is_same_v<CrossOp, NoCross>;
  template <class S>
  using Args = TransformerBlockArgs<View<S>>;
  template <class S>
  using Grads = TransformerBlockArgs<Gradient<S>>;
  template <class S>
  using Saved = TransformerBlockSaved<Op, CrossOp, S>;

  template <class Out>
  void forward(const Args<detail::ScalarOf<Out>>& in, Out&& out_,
               const LayerForward<Saved<detail::ScalarOf<Out>>>& call = {}) const {
    using S = detail::ScalarOf<Out>;
    forward_to<S>(in, MutView<S>(std::forward<Out>(out_)), call);
  }

  /// Gradients of everything that grad names, from dout; saved comes from the forward call. cross_call: what it asks
  /// for besides gradients alone counts.
  template <class S, class Dout>
  void backward(const std::type_identity_t<Args<S>>& in, TransformerBlockSaved<Op, CrossOp, S>& saved, Dout&& dout_,
                const std::type_identity_t<Grads<S>>& grad, const std::type_identity_t<BackwardCall<S>>& call = {},
                const std::type_identity_t<BackwardCall<S>>& cross_call = {}) const {
    backward_from<S>(in, saved, View<S>(std::forward<Dout>(dout_)), grad, call, cross_call);
  }

  /// All that a backward call may refuse, before anything is written.
  template <class S>
  void check_backward(const Args<S>& in, const Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                      const BackwardCall<S>& call, const BackwardCall<S>& cross_call = {}) const {
    check<S>(in, dout, "dout", 1);
    check_saved<S>(in, saved);
    check_gradients<S>(in, grad);
    check_requests<S>(in, saved, dout, grad, call, cross_call);
    check_operators<S>(in, saved.attention.attention.dims.batch);
  }

  MultiHead<Op> attention() const {
    return {op, options.heads, options.kv_heads, detail::block_name, options.qk_norm_eps};
  }
  auto cross() const {
    const Index heads = options.cross_heads == 0 ? options.heads : options.cross_heads;
    const Index kv_heads =
        options.cross_heads == 0 && options.cross_kv_heads == 0 ? options.kv_heads : options.cross_kv_heads;
    return MultiHead<CrossOp>{cross_op, heads, kv_heads, detail::cross_name, options.cross_qk_norm_eps};
  }

  /// Shapes and numbers of a call; out_name is that of out: out or dout.
  template <class S>
  void check(const Args<S>& in, View<S> out, const char* out_name, Index batch) const {
    const char* layer = detail::block_name;
    detail::check_eps_given(layer, options.eps);
    check_round<S>(in.x, round_attention<View<S>>(in), "gamma1", "beta1", "gamma1b", "beta1b", "scale1", true);
    check_round<S>(in.x, round_cross<View<S>>(in), "gamma_c", "beta_c", "gamma_cb", "beta_cb", "scale_c", crosses);
    check_round<S>(in.x, round_mlp<View<S>>(in), "gamma2", "beta2", "gamma2b", "beta2b", "scale2",
                   options.mlp.has_value());
    const auto width = [&](const char* name, const char* what, Index found) {
      if (found != in.x.cols)
        detail::raise(std::string(name) + ": the result of the " + what + " has " + detail::text_of(found) +
                      " columns, wanted " + detail::text_of(in.x.cols) + " as x has");
    };
    const auto self = attention_args<View<S>>(in, in.x);
    attention().template check<S>(layer, self, batch);
    width(layer, "attention", attention().template out_width<S>(self));
    if constexpr (crosses) {
      if (!in.context.given()) detail::raise(std::string(detail::cross_name) + ": context is not given");
      const auto other = cross_args<View<S>>(in, in.x, in.context);
      cross().template check<S>(detail::cross_name, other, batch);
      width(detail::cross_name, "attention", cross().template out_width<S>(other));
    } else {
      refuse_given("cross attention", cross_args<View<S>>(in, View<S>(), in.context));
    }
    const auto perceptron = mlp_args<View<S>>(in, in.x);
    if (options.mlp) {
      options.mlp->template check<S>(layer, perceptron);
      width(layer, "mlp", in.w2.outputs());
    } else {
      refuse_given("mlp", mlp_args<View<S>>(in, View<S>()));
    }
    detail::check_rows(layer, in);
    detail::check_like_x(layer, out_name, out, in.x);
  }
  /// What the operators refuse of such inputs.
  template <class S>
  void check_operators(const Args<S>& in, Index batch) const {
    attention().template check_operator<S>(attention_args<View<S>>(in, in.x), batch);
    if constexpr (crosses) cross().template check_operator<S>(cross_args<View<S>>(in, in.x, in.context), batch);
  }
  /// That saved was filled by a forward call of such inputs.
  template <class S>
  void check_saved(const Args<S>& in, const Saved<S>& saved) const {
    const char* layer = detail::block_name;
    detail::check_filled(layer, saved);
    attention().template check_saved<S>(layer, attention_args<View<S>>(in, in.x), saved.attention);
    residual().template check_saved<S>(in.x, round_attention<View<S>>(in), saved.round_attention);
    if (crosses || options.mlp) detail::check_kept(layer, "attended", saved.attended, in.x.rows, in.x.cols);
    if constexpr (crosses) {
      cross().template check_saved<S>(detail::cross_name, cross_args<View<S>>(in, in.x, in.context), saved.cross);
      residual().template check_saved<S>(in.x, round_cross<View<S>>(in), saved.round_cross);
      if (options.mlp) detail::check_kept(layer, "crossed", saved.crossed, in.x.rows, in.x.cols);
    }
    if (options.mlp) {
      options.mlp->template check_saved<S>(layer, mlp_args<View<S>>(in, in.x), saved.mlp);
      residual().template check_saved<S>(in.x, round_mlp<View<S>>(in), saved.round_mlp);
    }
  }

 private:
  template <class S>
  void forward_to(const Args<S>& in, MutView<S> out, const LayerForward<Saved<S>>& call) const;
  template <class S>
  void backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                     const BackwardCall<S>& call, const BackwardCall<S>& cross_call) const;
  detail::Residual residual() const { return {options.place, options.norm, options.eps}; }

  template <class T, class From>
  static MultiHeadArgs<T> attention_args(const From& p, const T& x) {
    return {x, p.wq, p.bq, p.wk, p.bk, p.wv, p.bv, p.wo, p.bo, p.wg, p.bg, p.gamma_q, p.gamma_k, T()};
  }
  template <class T, class From>
  static MultiHeadArgs<T> cross_args(const From& p, const T& x, const T& context) {
    return {x, p.wq2, p.bq2, p.wk2, p.bk2, p.wv2, p.bv2, p.wo2, p.bo2, p.wg2, p.bg2, p.gamma_q2, p.gamma_k2, context};
  }
  template <class T, class From>
  static MlpArgs<T> mlp_args(const From& p, const T& x) {
    return {x, p.w1, p.b1, p.w2, p.b2, p.w3, p.b3};
  }
  template <class T, class From>
  static detail::Surroundings<T> round_attention(const From& p) {
    return {p.gamma1, p.beta1, p.gamma1b, p.beta1b, p.scale1};
  }
  template <class T, class From>
  static detail::Surroundings<T> round_cross(const From& p) {
    return {p.gamma_c, p.beta_c, p.gamma_cb, p.beta_cb, p.scale_c};
  }
  template <class T, class From>
  static detail::Surroundings<T> round_mlp(const From& p) {
    return {p.gamma2, p.beta2, p.gamma2b, p.beta2b, p.scale2};
  }

  template <class A>
  static void refuse_given(const char* what, const A& args) {
    A::visit(
        [&](const char* field, const auto& v) {
          if (v.given())
            detail::raise(std::string(detail::block_name) + ": " + field + " of the " + what +
                          " is given to a block without one");
        },
        args);
  }
  /// What surrounds a sublayer, which may be there or not.
  template <class S>
  void check_round(View<S> x, const detail::Surroundings<View<S>>& p, const char* gamma, const char* beta,
                   const char* gamma_b, const char* beta_b, const char* scale, bool there) const {
    const char* layer = detail::block_name;
    const auto refuse = [&](View<S> v, const char* name, bool fits, const char* why) {
      if (v.given() && !fits) detail::raise(std::string(layer) + ": " + name + " is given to " + why);
    };
    const bool sandwich = options.place == NormPlace::sandwich, layers = options.norm == NormKind::layer;
    refuse(p.gamma, gamma, there, "a block without that sublayer");
    refuse(p.beta, beta, there, "a block without that sublayer");
    refuse(p.scale, scale, there, "a block without that sublayer");
    refuse(p.scale, scale, !sandwich, "a sandwich, which has a norm in its place");
    refuse(p.gamma_b, gamma_b, there && sandwich, "a block without that norm");
    refuse(p.beta_b, beta_b, there && sandwich, "a block without that norm");
    refuse(p.beta, beta, layers, "an rms norm");
    refuse(p.beta_b, beta_b, layers, "an rms norm");
    detail::check_norm<S>(layer, x, p.gamma, p.beta, options.eps, gamma, beta);
    detail::check_norm<S>(layer, x, p.gamma_b, p.beta_b, options.eps, gamma_b, beta_b);
    detail::check_bias<S>(layer, scale, p.scale, x.cols);
  }
  /// Gradients as large as what they are of. A gamma, beta or bias that is not given may have one.
  template <class S>
  void check_gradients(const Args<S>& in, const Grads<S>& grad) const {
    const char* layer = detail::block_name;
    detail::check_gradient<S>(layer, "x", grad.x, in.x);
    attention().template check_gradients<S>(layer, attention_args<View<S>>(in, in.x),
                                            attention_args<Gradient<S>>(grad, grad.x));
    if constexpr (crosses)
      cross().template check_gradients<S>(detail::cross_name, cross_args<View<S>>(in, in.x, in.context),
                                          cross_args<Gradient<S>>(grad, grad.x, grad.context));
    else
      refuse_given("cross attention", cross_args<Gradient<S>>(grad, Gradient<S>(), grad.context));
    if (options.mlp)
      options.mlp->template check_gradients<S>(layer, mlp_args<View<S>>(in, in.x), mlp_args<Gradient<S>>(grad, grad.x));
    else
      refuse_given("mlp", mlp_args<Gradient<S>>(grad, Gradient<S>()));
    const bool sandwich = options.place == NormPlace::sandwich, layers = options.norm == NormKind::layer;
    const View<S> row(nullptr, 1, in.x.cols, in.x.cols);
    const auto round = [&](const detail::Surroundings<Gradient<S>>& g, View<S> scale, const char* gamma,
                           const char* beta, const char* gamma_b, const char* beta_b, const char* scale_name,
                           bool there) {
      const auto like = [&](bool fits) { return fits ? row : View<S>(); };
      detail::check_gradient<S>(layer, gamma, g.gamma, like(there));
      detail::check_gradient<S>(layer, beta, g.beta, like(there && layers));
      detail::check_gradient<S>(layer, gamma_b, g.gamma_b, like(there && sandwich));
      detail::check_gradient<S>(layer, beta_b, g.beta_b, like(there && sandwich && layers));
      detail::check_gradient<S>(layer, scale_name, g.scale, scale);
    };
    round(round_attention<Gradient<S>>(grad), in.scale1, "gamma1", "beta1", "gamma1b", "beta1b", "scale1", true);
    round(round_cross<Gradient<S>>(grad), in.scale_c, "gamma_c", "beta_c", "gamma_cb", "beta_cb", "scale_c", crosses);
    round(round_mlp<Gradient<S>>(grad), in.scale2, "gamma2", "beta2", "gamma2b", "beta2b", "scale2",
          options.mlp.has_value());
  }
  /// What is asked for besides gradients, and that nothing that is written lies over anything else.
  template <class S>
  void check_requests(const Args<S>& in, const Saved<S>& saved, View<S> dout, const Grads<S>& grad,
                      const BackwardCall<S>& call, const BackwardCall<S>& cross_call) const {
    detail::check_asked<S>(detail::block_name, call, saved.attention.attention.dims, saved.attention.o.cols());
    if (!crosses && (cross_call.relevance.given() || cross_call.heads_gradient.given()))
      detail::raise(detail::block_name + std::string(cross_call.relevance.given() ? ": relevance" : ": heads_gradient")
                                             .append(" of the cross attention is asked of a block without one"));
    if constexpr (crosses)
      detail::check_asked<S>(detail::cross_name, cross_call, saved.cross.attention.dims, saved.cross.o.cols());
    const auto asked = [](const BackwardCall<S>& c) { return c.relevance.given() ? c.relevance_weights : View<S>(); };
    const auto refuse = [&](const auto& one) {
      detail::refuse_backward_overlaps(
          detail::block_name, one,
          detail::joined(detail::fields_of(grad, detail::gradient_of),
                         detail::arrays({{"relevance", call.relevance},
                                         {"heads_gradient", call.heads_gradient},
                                         {"cross relevance", cross_call.relevance},
                                         {"cross heads_gradient", cross_call.heads_gradient}})),
          detail::joined(detail::fields_of(in), detail::arrays({{"dout", dout},
                                                                {"relevance_weights", asked(call)},
                                                                {"cross relevance_weights", asked(cross_call)}})));
    };
    refuse(op);
    if constexpr (crosses) refuse(cross_op);
  }
};

// Outside of the class, where a template is not inline: limpid::compiled_models holds them.

template <class Op, class CrossOp>
template <class S>
void TransformerBlock<Op, CrossOp>::forward_to(const Args<S>& in, MutView<S> out,
                                               const LayerForward<Saved<S>>& call) const {
  check<S>(in, out, "out", call.batch);
  detail::refuse_out_overlaps(detail::block_name, op, in, out);
  if constexpr (crosses) detail::refuse_out_overlaps(detail::block_name, cross_op, in, out);
  check_operators<S>(in, call.batch);
  const detail::ForwardScope<Saved<S>> scope(detail::block_name, call);
  using Round = detail::SurroundingsSaved<S>;
  const Index rows = in.x.rows, cols = in.x.cols;
  const auto step = [&](View<S> x, bool last, Mat<S> Saved<S>::*kept, Round Saved<S>::*round,
                        const detail::Surroundings<View<S>>& p, auto&& f) -> View<S> {
    const MutView<S> to = last ? out : scope.room(kept, rows, cols);
    residual().template forward<S>(scope, x, p, to, scope.part(round), f);
    return to;
  };
  View<S> x =
      step(in.x, !crosses && !options.mlp, &Saved<S>::attended, &Saved<S>::round_attention,
           round_attention<View<S>>(in), [&](View<S> h, MutView<S> r) {
             attention().forward(attention_args<View<S>>(in, h), r,
                                 {call.batch, scope.part(&Saved<S>::attention), scope.workspace, scope.executor});
           });
  if constexpr (crosses)
    x = step(x, !options.mlp, &Saved<S>::crossed, &Saved<S>::round_cross, round_cross<View<S>>(in),
             [&](View<S> h, MutView<S> r) {
               cross().forward(cross_args<View<S>>(in, h, in.context), r,
                               {call.batch, scope.part(&Saved<S>::cross), scope.workspace, scope.executor});
             });
  if (options.mlp)
    step(x, true, nullptr, &Saved<S>::round_mlp, round_mlp<View<S>>(in), [&](View<S> h, MutView<S> r) {
      options.mlp->forward(mlp_args<View<S>>(in, h), r,
                           {1, scope.part(&Saved<S>::mlp), scope.workspace, scope.executor});
    });
  scope.done();
}

template <class Op, class CrossOp>
template <class S>
void TransformerBlock<Op, CrossOp>::backward_from(const Args<S>& in, Saved<S>& saved, View<S> dout,
                                                  const Grads<S>& grad, const BackwardCall<S>& call,
                                                  const BackwardCall<S>& cross_call) const {
  const detail::SavedTurn saved_turn(&saved, false, detail::block_name);
  check_backward<S>(in, saved, dout, grad, call, cross_call);
  const detail::LayerScope scope(call);
  Arena& arena = scope.arena;
  const Index rows = in.x.rows, cols = in.x.cols;
  const bool add = call.accumulate, direct = grad.x.given() && !grad.x.adds(add);
  const auto room = [&] { return arena.matrix<S>(rows, cols); };
  const MutView<S> dx = direct ? grad.x.view() : room();
  View<S> d = dout;
  if (options.mlp) {
    const MutView<S> to = room();
    residual().template backward<S>(scope, crosses ? View<S>(saved.crossed) : View<S>(saved.attended),
                                    round_mlp<View<S>>(in), saved.round_mlp, d, round_mlp<Gradient<S>>(grad), to, add,
                                    [&](View<S> h, View<S> dr, MutView<S> dh) {
                                      options.mlp->template backward<S>(mlp_args<View<S>>(in, h), saved.mlp, dr,
                                                                        mlp_args<Gradient<S>>(grad, overwrite(dh)),
                                                                        {add, scope.workspace, scope.executor});
                                    });
    d = to;
  }
  if constexpr (crosses) {
    const MutView<S> to = room();
    residual().template backward<S>(scope, saved.attended, round_cross<View<S>>(in), saved.round_cross, d,
                                    round_cross<Gradient<S>>(grad), to, add, [&](View<S> h, View<S> dr, MutView<S> dh) {
                                      cross().template backward<S>(
                                          cross_args<View<S>>(in, h, in.context), saved.cross, dr,
                                          cross_args<Gradient<S>>(grad, overwrite(dh), grad.context),
                                          {add, scope.workspace, scope.executor, cross_call.relevance_weights,
                                           cross_call.relevance, cross_call.part, cross_call.heads_gradient});
                                    });
    d = to;
  }
  residual().template backward<S>(
      scope, in.x, round_attention<View<S>>(in), saved.round_attention, d, round_attention<Gradient<S>>(grad), dx, add,
      [&](View<S> h, View<S> dr, MutView<S> dh) {
        attention().template backward<S>(attention_args<View<S>>(in, h), saved.attention, dr,
                                         attention_args<Gradient<S>>(grad, overwrite(dh)),
                                         {add, scope.workspace, scope.executor, call.relevance_weights, call.relevance,
                                          call.part, call.heads_gradient});
      });
  if (grad.x.given() && !direct) detail::copy_or_add<S>(dx, grad.x.view(), true);
}

/// transformer_block(softmax(), {.heads = 6, .eps = 1e-6}), transformer_block(rope(twicing(causal()), {.layout =
/// RopeLayout::half}), {.heads = 8, .kv_heads = 2, .eps = 1e-5, .norm = NormKind::rms, .mlp = swiglu()}): see
/// TransformerBlock.
template <class Op>
TransformerBlock<Op> transformer_block(const Op& op, const TransformerBlockOptions& options) {
  return {op, options, {}};
}
/// With cross attention: transformer_block(softmax(causal()), softmax(), {.heads = 8, .eps = 1e-5}).
template <class Op, class CrossOp>
TransformerBlock<Op, CrossOp> transformer_block(const Op& op, const CrossOp& cross_op,
                                                const TransformerBlockOptions& options) {
  return {op, options, cross_op};
}

}  // namespace LIMPID_ABI
}  // namespace limpid
