// limpid: the Hindered Transformer (HiT), whose logits are an exact sum over the patches of an image.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "layer_norm.hpp"
#include "mlp.hpp"

namespace limpid {
inline namespace LIMPID_ABI {

/// The weights of a block: [in, out], D x D of the attention, D x F and F x D of the MLP, all others one row.
template <class T>
struct HinderedBlockArgs {
  T gamma1{}, beta1{}, wq{}, bq{}, wk{}, bk{}, wv{}, bv{}, wo{}, bo{}, gamma2{}, beta2{}, w1{}, b1{}, w2{}, b2{};

  template <class F, class... A>
  static void visit(F&& f, A&&... a) {
    f("gamma1", a.gamma1...), f("beta1", a.beta1...);
    f("wq", a.wq...), f("bq", a.bq...), f("wk", a.wk...), f("bk", a.bk...);
    f("wv", a.wv...), f("bv", a.bv...), f("wo", a.wo...), f("bo", a.bo...);
    f("gamma2", a.gamma2...), f("beta2", a.beta2...);
    f("w1", a.w1...), f("b1", a.b1...), f("w2", a.w2...), f("b2", a.b2...);
  }
};

/// What a HiT reads, and its gradients: patch tokens x (n x D) and class token cls (1 x D), both with their positions,
/// blocks, the last norm's gamma and beta, the head wh (D x C) and bh (1 x C).
template <class T>
struct HinderedArgs {
  T x{}, cls{};
  std::vector<HinderedBlockArgs<T>> blocks;
  T gamma{}, beta{}, wh{}, bh{};
};

struct HinderedOptions {
  Index heads = 1;
  std::vector<Index> stages = {};  ///< blocks between two halvings of the grid; empty: all of them, no halving
  double eps = 1e-6;
  Activation activation = Activation::gelu;
};

/// logits 1 x C. contribution n x C: its rows and bh sum to the logits. attention (L H) x n: what the class token gives
/// each patch, spread over the patches of the input where the grid was halved; rows sum to 1.
template <class S>
struct HinderedResult {
  Mat<S> logits, contribution, attention;
};

/// What the backward pass wants of the forward one.
template <class S>
struct HinderedSaved {
  struct Block {
    Mat<S> x, u, q, k, v, a, cls, class_u, hidden;  // a: H x n_l; u, class_u: after the first norm; hidden: the second
    LayerNormSaved<S> norm, class_norm, norm2;
    MlpSaved<S> mlp;
  };
  std::vector<Block> blocks;
  Mat<S> cls, last, t;  // the final class token, after its norm, and what each patch put into it
  LayerNormSaved<S> norm;
  S mean{}, deviation{};
  bool filled = false;
};

/// Jeanneret, Simon and Jurie 2025, arXiv 2502.17196 (after their code; where it adds a class token without position
/// and leaves sums incomplete, ours adds what the forward pass used, so that the sum is exact). Patches never see one
/// another: the class token alone attends, and takes from every block
///
///   put_j = concat_h(a_h,j v_h,j) wo,   cls <- cls + sum_j put_j + bo,   x <- x + mlp(norm2(x))
///
/// the last block's MLP being dead code; between stages patches become means of 2 x 2. So each logit is a sum over
/// input patches j, the terms that no patch owns (cls_0, bo, beta) shared equally:
///
///   t_j = sum_l put_l,owner(j) n_l / n + sum_l bo_l / n + cls_0 / n
///   m_j = (gamma o (t_j - mean(cls) / n) / std(cls) + beta / n) wh,      sum_j m_j + bh = logits
///
/// No n x n array: 2 n D (2 D + 2 F) flop a block. Double: within 1e-10 of independent references, gradients too.
/// Throws ShapeError where shapes, heads or stages do not fit or, backward, no forward call has filled saved.
template <class S>
class Hindered {
 public:
  using Args = HinderedArgs<View<S>>;
  using Gradients = HinderedArgs<Mat<S>>;

  explicit Hindered(HinderedOptions options) : options_(std::move(options)) {}

  HinderedResult<S> forward(const Args& in, HinderedSaved<S>* saved = nullptr, const LayerCall& call = {}) const {
    const std::vector<Index> stages = check(in);
    HinderedSaved<S> own;
    HinderedSaved<S>& s = saved ? *saved : own;
    s = {};
    s.blocks.resize(in.blocks.size());
    const Index n = in.x.rows, width = in.x.cols, heads = options_.heads;
    HinderedResult<S> out;
    out.attention.resize(static_cast<Index>(in.blocks.size()) * heads, n);
    s.t = Mat<S>(in.cls.map() / number(n)).replicate(n, 1);
    Mat<S> x = in.x.map(), cls = in.cls.map(), put;
    Index l = 0, side = side_of(n);
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      if (stage > 0) x = halved(x, side), side /= 2;
      for (Index b = 0; b < stages[stage]; ++b, ++l) {
        const auto& w = in.blocks[static_cast<std::size_t>(l)];
        auto& k = s.blocks[static_cast<std::size_t>(l)];
        attend(w, x, cls, k, call);
        put.resize(x.rows(), width);
        const Mat<S> z = weighted(k);
        linear(z, w.wo, View<S>(), put, call);
        const S share = number(x.rows()) / number(n);
        for (Index j = 0; j < n; ++j) {
          const Index owner = owner_of(j, n, x.rows());
          for (Index c = 0; c < width; ++c) s.t(j, c) += share * put(owner, c) + entry(w.bo, c) / number(n);
          for (Index h = 0; h < heads; ++h) out.attention(l * heads + h, j) = share * k.a(h, owner);
        }
        cls += put.colwise().sum();
        if (w.bo.given()) cls += w.bo.map();
        if (l + 1 < static_cast<Index>(in.blocks.size())) perceive(w, x, k, call);
      }
    }
    s.cls = cls, s.last.resize(1, width);
    layer_norm(s.cls, in.gamma, in.beta, s.last, norm_call(&s.norm, call));
    out.logits.resize(1, in.wh.cols);
    linear(s.last, in.wh, in.bh, out.logits, call);
    s.mean = cls.mean();
    s.deviation = std::sqrt((cls.array() - s.mean).square().mean() + S(options_.eps));
    out.contribution.resize(n, in.wh.cols);
    const Mat<S> y = shares(in, s);
    linear(y, in.wh, View<S>(), out.contribution, call);
    s.filled = true;
    return out;
  }

  /// Gradients of everything, from those of what forward() gave; an empty one is zeros.
  Gradients backward(const Args& in, HinderedSaved<S>& s, View<S> dlogits, View<S> dcontribution = {},
                     View<S> dattention = {}, const LayerCall& call = {}) const {
    const std::vector<Index> stages = check(in);
    const Index n = in.x.rows, width = in.x.cols, classes = in.wh.cols;
    if (!s.filled || s.blocks.size() != in.blocks.size() || s.t.rows() != n || s.t.cols() != width)
      raise("saved is of another call, or of none that ended");
    expect("dlogits", dlogits, 1, classes), expect("dcontribution", dcontribution, n, classes);
    expect("dattention", dattention, static_cast<Index>(in.blocks.size()) * options_.heads, n);
    Gradients g = zeros(in);
    Mat<S> dcls = Mat<S>::Zero(1, width), dt = Mat<S>::Zero(n, width);
    const LayerCall more{.accumulate = true, .workspace = call.workspace, .executor = call.executor};
    if (dlogits.given()) {
      Mat<S> dlast(1, width);
      linear_backward(s.last, in.wh, dlogits, {overwrite(dlast), g.wh, g.bh}, more);
      layer_norm_backward(s.cls, in.gamma, s.norm, dlast, {dcls, g.gamma, g.beta}, more);
    }
    if (dcontribution.given()) pull_contribution(in, s, dcontribution, g, dcls, dt, more);

    g.cls = dt.colwise().sum() / number(n);
    const Mat<S> dshared = g.cls;  // what every block's bo gets of the contributions
    Mat<S> dx;
    Index l = static_cast<Index>(in.blocks.size());
    for (std::size_t stage = stages.size(); stage-- > 0;) {
      for (Index b = stages[stage]; b-- > 0;) {
        --l;
        const auto& w = in.blocks[static_cast<std::size_t>(l)];
        auto& k = s.blocks[static_cast<std::size_t>(l)];
        auto& to = g.blocks[static_cast<std::size_t>(l)];
        if (dx.size() == 0) dx.setZero(k.x.rows(), width);
        if (l + 1 < static_cast<Index>(in.blocks.size())) pull_mlp(w, k, to, dx, more);
        const Index own = k.x.rows();
        const S share = number(own) / number(n);
        Mat<S> dput = dcls.replicate(own, 1), da = Mat<S>::Zero(options_.heads, own);
        for (Index j = 0; j < n; ++j) {
          const Index owner = owner_of(j, n, own);
          dput.row(owner) += share * dt.row(j);
          for (Index h = 0; h < options_.heads && dattention.given(); ++h)
            da(h, owner) += share * dattention(l * options_.heads + h, j);
        }
        to.bo += dcls + dshared;
        pull_attention(w, k, to, dput, da, dx, dcls, more);
      }
      if (stage > 0) dx = doubled(dx, side_of(n) >> (stage - 1));
    }
    g.x = dx, g.cls += dcls;
    return g;
  }

 private:
  using Block = HinderedBlockArgs<View<S>>;
  using Kept = typename HinderedSaved<S>::Block;

  [[noreturn]] static void raise(const std::string& text) { detail::raise("hindered: " + text); }
  static void expect(const std::string& name, const View<S>& v, Index rows, Index cols, bool needed = false) {
    if ((v.given() || needed) && (v.rows != rows || v.cols != cols))
      raise(name + " is " + detail::shape_text(v.rows, v.cols) + ", wanted " + detail::shape_text(rows, cols));
  }
  static S number(Index n) { return S(static_cast<double>(n)); }
  static S entry(const View<S>& row, Index c) { return row.given() ? row(0, c) : S(0); }
  static Index side_of(Index n) { return static_cast<Index>(std::llround(std::sqrt(static_cast<double>(n)))); }
  /// The patch of a grid of `own` that holds patch j of one of n.
  static Index owner_of(Index j, Index n, Index own) {
    if (own == n) return j;
    const Index side = side_of(n), half = side_of(own), times = side / half;
    return j / side / times * half + j % side / times;
  }
  LayerNormCall<S> norm_call(LayerNormSaved<S>* saved, const LayerCall& call) const {
    return {options_.eps, saved, call.workspace, call.executor};
  }

  std::vector<Index> check(const Args& in) const {
    const Index n = in.x.rows, width = in.x.cols, blocks = static_cast<Index>(in.blocks.size());
    const Index heads = options_.heads;
    if (n < 1 || width < 1) raise("x is " + detail::shape_text(n, width) + ", wanted a patch and a column at least");
    if (heads < 1 || width % heads != 0)
      raise(detail::text_of(heads) + " heads do not divide " + detail::text_of(width) + " columns");
    std::vector<Index> stages = options_.stages.empty() ? std::vector<Index>{blocks} : options_.stages;
    Index sum = 0;
    for (const Index stage : stages) sum += stage < 0 ? blocks + 1 : stage;
    if (blocks < 1 || sum != blocks) raise(detail::text_of(blocks) + " blocks, wanted as many as the stages have");
    const Index side = side_of(n), halvings = static_cast<Index>(stages.size()) - 1;
    if (halvings > 0 && (side * side != n || halvings > 30 || side % (Index(1) << halvings) != 0))
      raise(detail::text_of(n) + " patches, wanted a square whose side can be halved " + detail::text_of(halvings) +
            " times");
    expect("cls", in.cls, 1, width, true), expect("gamma", in.gamma, 1, width), expect("beta", in.beta, 1, width);
    expect("wh", in.wh, width, in.wh.cols, true), expect("bh", in.bh, 1, in.wh.cols);
    for (Index l = 0; l < blocks; ++l) {
      const Block& w = in.blocks[static_cast<std::size_t>(l)];
      const std::string of = "block " + detail::text_of(l) + ": ";
      for (const auto& [name, v] :
           {std::pair("wq", w.wq), std::pair("wk", w.wk), std::pair("wv", w.wv), std::pair("wo", w.wo)})
        expect(of + name, v, width, width, true);
      for (const auto& [name, v] : {std::pair("gamma1", w.gamma1), std::pair("beta1", w.beta1), std::pair("bq", w.bq),
                                    std::pair("bk", w.bk), std::pair("bv", w.bv), std::pair("bo", w.bo),
                                    std::pair("gamma2", w.gamma2), std::pair("beta2", w.beta2), std::pair("b2", w.b2)})
        expect(of + name, v, 1, width);
      expect(of + "w1", w.w1, width, w.w1.cols, true), expect(of + "w2", w.w2, w.w1.cols, width, true);
      expect(of + "b1", w.b1, 1, w.w1.cols);
    }
    return stages;
  }

  /// Gradients of zero, of the shapes of what they are of; of biases that are not given too.
  static Gradients zeros(const Args& in) {
    Gradients g;
    const Index width = in.x.cols;
    const auto zero = [](Mat<S>& m, const View<S>& v, Index cols) {
      m.setZero(v.given() ? v.rows : 1, v.given() ? v.cols : cols);
    };
    zero(g.x, in.x, 0), zero(g.cls, in.cls, width), zero(g.wh, in.wh, 0);
    zero(g.gamma, in.gamma, width), zero(g.beta, in.beta, width), zero(g.bh, in.bh, in.wh.cols);
    for (const Block& w : in.blocks) {
      auto& to = g.blocks.emplace_back();
      Block::visit([&](const char* name, const View<S>& v,
                       Mat<S>& m) { zero(m, v, std::string(name) == "b1" ? w.w1.cols : width); },
                   w, to);
    }
    return g;
  }

  static Mat<S> halved(const Mat<S>& x, Index side) {
    Mat<S> out = Mat<S>::Zero(x.rows() / 4, x.cols());
    for (Index j = 0; j < x.rows(); ++j) out.row(j / side / 2 * (side / 2) + j % side / 2) += x.row(j) / S(4);
    return out;
  }
  static Mat<S> doubled(const Mat<S>& dx, Index side) {
    Mat<S> out(dx.rows() * 4, dx.cols());
    for (Index j = 0; j < out.rows(); ++j) out.row(j) = dx.row(j / side / 2 * (side / 2) + j % side / 2) / S(4);
    return out;
  }

  /// Queries of the class token, keys, values and the map of a block.
  void attend(const Block& w, const Mat<S>& x, const Mat<S>& cls, Kept& k, const LayerCall& call) const {
    const Index width = x.cols(), heads = options_.heads, d = width / heads;
    k.x = x, k.cls = cls;
    k.u.resize(x.rows(), width), k.class_u.resize(1, width), k.q.resize(1, width);
    k.k.resize(x.rows(), width), k.v.resize(x.rows(), width), k.a.resize(heads, x.rows());
    layer_norm(k.x, w.gamma1, w.beta1, k.u, norm_call(&k.norm, call));
    layer_norm(k.cls, w.gamma1, w.beta1, k.class_u, norm_call(&k.class_norm, call));
    linear(k.class_u, w.wq, w.bq, k.q, call);
    linear(k.u, w.wk, w.bk, k.k, call);
    linear(k.u, w.wv, w.bv, k.v, call);
    const S scale = S(1) / std::sqrt(number(d));
    for (Index h = 0; h < heads; ++h) {
      for (Index j = 0; j < x.rows(); ++j) k.a(h, j) = scale * detail::dot(&k.q(0, h * d), &k.k(j, h * d), d);
      const S top = k.a.row(h).maxCoeff();
      k.a.row(h) = (k.a.row(h).array() - top).exp();
      k.a.row(h) /= k.a.row(h).sum();
    }
  }
  /// a_h,j v_h,j of every patch, heads side by side.
  Mat<S> weighted(const Kept& k) const {
    const Index d = k.v.cols() / options_.heads;
    Mat<S> z = k.v;
    for (Index j = 0; j < z.rows(); ++j)
      for (Index h = 0; h < options_.heads; ++h) z.row(j).segment(h * d, d) *= k.a(h, j);
    return z;
  }
  void perceive(const Block& w, Mat<S>& x, Kept& k, const LayerCall& call) const {
    k.hidden.resize(x.rows(), x.cols());
    layer_norm(x, w.gamma2, w.beta2, k.hidden, norm_call(&k.norm2, call));
    Mat<S> more(x.rows(), x.cols());
    Mlp{options_.activation}.forward({k.hidden, w.w1, w.b1, w.w2, w.b2, {}, {}}, more,
                                     {.saved = &k.mlp, .workspace = call.workspace, .executor = call.executor});
    x += more;
  }
  /// gamma o (t_j - mean / n) / std + beta / n: what the head reads of every patch.
  static Mat<S> shares(const Args& in, const HinderedSaved<S>& s) {
    Mat<S> y = s.t;
    const S n = number(y.rows());
    for (Index j = 0; j < y.rows(); ++j)
      for (Index c = 0; c < y.cols(); ++c)
        y(j, c) =
            (in.gamma.given() ? in.gamma(0, c) : S(1)) * (y(j, c) - s.mean / n) / s.deviation + entry(in.beta, c) / n;
    return y;
  }

  void pull_contribution(const Args& in, const HinderedSaved<S>& s, View<S> dm, Gradients& g, Mat<S>& dcls, Mat<S>& dt,
                         const LayerCall& more) const {
    const Index n = s.t.rows(), width = s.t.cols();
    const Mat<S> y = shares(in, s);
    linear_backward(y, in.wh, dm, {overwrite(dt), g.wh, {}}, more);  // dt: of y so far
    S dmean(0), ddeviation(0);
    for (Index j = 0; j < n; ++j)
      for (Index c = 0; c < width; ++c) {
        const S gamma = in.gamma.given() ? in.gamma(0, c) : S(1), dy = dt(j, c), off = s.t(j, c) - s.mean / number(n);
        g.beta(0, c) += dy / number(n);
        g.gamma(0, c) += dy * off / s.deviation;
        const S d = gamma * dy / s.deviation;
        dt(j, c) = d, dmean -= d / number(n), ddeviation -= d * off / s.deviation;
      }
    for (Index c = 0; c < width; ++c)
      dcls(0, c) += (dmean + ddeviation * (s.cls(0, c) - s.mean) / s.deviation) / number(width);
  }
  void pull_mlp(const Block& w, Kept& k, HinderedBlockArgs<Mat<S>>& to, Mat<S>& dx, const LayerCall& more) const {
    Mat<S> dhidden(dx.rows(), dx.cols());
    MlpArgs<Gradient<S>> grad;
    grad.x = overwrite(dhidden), grad.w1 = to.w1, grad.b1 = to.b1, grad.w2 = to.w2, grad.b2 = to.b2;
    Mlp{options_.activation}.backward({k.hidden, w.w1, w.b1, w.w2, w.b2, {}, {}}, k.mlp, dx, grad, more);
    layer_norm_backward(k.x, w.gamma2, k.norm2, dhidden, {dx, to.gamma2, to.beta2}, more);
  }
  /// From dput and da to the block's weights, its patches (added to dx) and its class token (added to dcls).
  void pull_attention(const Block& w, Kept& k, HinderedBlockArgs<Mat<S>>& to, const Mat<S>& dput, Mat<S>& da,
                      Mat<S>& dx, Mat<S>& dcls, const LayerCall& more) const {
    const Index own = k.x.rows(), width = k.x.cols(), heads = options_.heads, d = width / heads;
    Mat<S> z = weighted(k), dz(own, width), dq = Mat<S>::Zero(1, width), dk(own, width), dv(own, width);
    linear_backward(z, w.wo, dput, {overwrite(dz), to.wo, {}}, more);
    const S scale = S(1) / std::sqrt(number(d));
    for (Index h = 0; h < heads; ++h) {
      for (Index j = 0; j < own; ++j) da(h, j) += detail::dot(&dz(j, h * d), &k.v(j, h * d), d);
      const S along = detail::dot(&k.a(h, 0), &da(h, 0), own);
      for (Index j = 0; j < own; ++j) {
        const S ds = scale * k.a(h, j) * (da(h, j) - along);
        for (Index c = h * d; c < (h + 1) * d; ++c) {
          dq(0, c) += ds * k.k(j, c), dk(j, c) = ds * k.q(0, c), dv(j, c) = k.a(h, j) * dz(j, c);
        }
      }
    }
    Mat<S> du = Mat<S>::Zero(own, width), dclass(1, width);
    linear_backward(k.class_u, w.wq, dq, {overwrite(dclass), to.wq, to.bq}, more);
    linear_backward(k.u, w.wk, dk, {du, to.wk, to.bk}, more);
    linear_backward(k.u, w.wv, dv, {du, to.wv, to.bv}, more);
    layer_norm_backward(k.cls, w.gamma1, k.class_norm, dclass, {dcls, to.gamma1, to.beta1}, more);
    layer_norm_backward(k.x, w.gamma1, k.norm, du, {dx, to.gamma1, to.beta1}, more);
  }

  HinderedOptions options_;
};

}  // namespace LIMPID_ABI
}  // namespace limpid
