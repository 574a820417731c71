// limpid: the tiny transformers of the explanations' golden files, from the library's parts: a vision transformer and
// two streams that attend to each other, pre-norm, erf GELU, eps 1e-6, weights [in, out].
// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <string>

#include "heads.hpp"

namespace golden {

/// y + <u, A w> of an attention beside the number that is explained: patterns w over keys, u at the queries.
template <class S>
struct Guide {
  Mat<S> w, u;
};

/// Norm, linear maps, perceptron: each keeps what its backward wants. Gradients of inputs alone.
template <class S>
struct TinyNorm {
  Mat<S> gain, bias, x;
  limpid::LayerNormSaved<S> saved;

  TinyNorm(const Case& c, const std::string& key) : gain(c.row<S>(key + "_gain")), bias(c.row<S>(key + "_bias")) {}
  Mat<S> forward(const Mat<S>& input) {
    x = input;
    Mat<S> y(x.rows(), x.cols());
    limpid::layer_norm(x, gain, bias, y, {.eps = 1e-6, .saved = &saved});
    return y;
  }
  Mat<S> backward(const Mat<S>& dy) {
    Mat<S> dx(x.rows(), x.cols());
    limpid::layer_norm_backward(x, gain, saved, dy, {.x = dx});
    return dx;
  }
};

template <class S>
struct TinyLinear {
  Mat<S> w, b;

  TinyLinear(const Case& c, const std::string& key, const std::string& w_name = "_w", const std::string& b_name = "_b")
      : w(c.in<S>(key + w_name)), b(c.row<S>(key + b_name)) {}
  Mat<S> forward(const Mat<S>& x) const {
    Mat<S> y(x.rows(), w.cols());
    limpid::linear(x, w, b, y);
    return y;
  }
  Mat<S> backward(const Mat<S>& dy) const { return product_nt<S>(dy, w); }
};

template <class S>
struct TinyMlp {
  Mat<S> w1, b1, w2, b2, x;
  limpid::MlpSaved<S> saved;

  TinyMlp(const Case& c, const std::string& key)
      : w1(c.in<S>(key + "_w1")), b1(c.row<S>(key + "_b1")), w2(c.in<S>(key + "_w2")), b2(c.row<S>(key + "_b2")) {}
  limpid::MlpArgs<limpid::View<S>> in() const { return {x, w1, b1, w2, b2, {}, {}}; }
  Mat<S> forward(const Mat<S>& input) {
    x = input;
    Mat<S> y(x.rows(), w2.cols());
    limpid::Mlp{}.forward(in(), y, {.saved = &saved});
    return y;
  }
  Mat<S> backward(const Mat<S>& dy) {
    Mat<S> dx(x.rows(), x.cols());
    limpid::MlpArgs<limpid::Gradient<S>> grad;
    grad.x = limpid::Gradient<S>(dx);
    limpid::Mlp{}.backward(in(), saved, dy, grad);
    return dx;
  }
};

/// One attention, from x to itself or to another stream, and what can be asked of it after backward().
template <class S>
struct TinyAttention {
  using Op = decltype(limpid::softmax());
  std::string key;
  Index heads;
  TinyLinear<S> to_q, to_k, to_v, to_out;
  Mat<S> q, k, v, dout, readout;  // v and dout with the guide's columns
  limpid::Saved<Op, S> saved;
  const Guide<S>* guide = nullptr;

  TinyAttention(const Case& c, const std::string& name)
      : key(name),
        heads(c.count("heads", 1)),
        to_q(c, name, "_wq", "_bq"),
        to_k(c, name, "_wk", "_bk"),
        to_v(c, name, "_wv", "_bv"),
        to_out(c, name, "_wo", "_bo") {}

  limpid::Inputs<Op, S> in() const { return limpid::qkv(q, k, v); }
  Index patterns() const { return guide ? guide->w.cols() : 0; }

  Mat<S> forward(const Mat<S>& x, const Mat<S>& context) {
    q = to_q.forward(x), k = to_k.forward(context);
    const Mat<S> own = to_v.forward(context);
    v = own;
    if (guide) {
      v.resize(own.rows(), own.cols() + heads * patterns());
      limpid::append_columns(own, guide->w, heads, v);
    }
    Mat<S> all(q.rows(), v.cols()), out(q.rows(), own.cols());
    limpid::forward(limpid::softmax(), in(), all, {.heads = heads, .saved = &saved});
    readout.resize(q.rows(), heads * patterns());
    if (guide)
      limpid::split_columns(all, heads, out, readout);
    else
      out = all;
    return to_out.forward(out);
  }
  /// dx, and dcontext added to what is there.
  Mat<S> backward(const Mat<S>& dy, Mat<S>& dcontext) {
    const Mat<S> own = to_out.backward(dy);
    dout = own;
    if (guide) {
      dout.resize(own.rows(), v.cols());
      limpid::append_columns(own, guide->u, heads, dout);
    }
    Mat<S> dq = q, dk = k, dv = v, dv_own(v.rows(), own.cols());
    limpid::backward(limpid::softmax(), in(), saved, dout, limpid::grads(dq, dk, dv));
    if (guide)
      limpid::split_columns(dv, heads, dv_own, {});
    else
      dv_own = dv;
    dcontext += to_k.backward(dk);
    dcontext += to_v.backward(dv_own);
    return to_q.backward(dq);
  }

  /// Maps, or gradients with respect to them, heads one below the other.
  Mat<S> stacked(bool gradients) {
    const Index n = q.rows(), m = k.rows();
    Mat<S> all(heads * n, m);
    const Op op = limpid::softmax();
    for (Index h = 0; h < heads; ++h) {
      const limpid::HeadCall call{.head = h};
      if (gradients)
        limpid::gradient_block(op, in(), saved, dout, 0, 0, all.middleRows(h * n, n), call);
      else
        limpid::map_block(op, in(), saved, 0, 0, all.middleRows(h * n, n), call);
    }
    return all;
  }
  Mat<S> corrected(const limpid::Correction& how) {
    Mat<S> abar(q.rows(), k.rows());
    limpid::corrected_rows(limpid::softmax(), in(), saved, dout, 0, abar, how);
    return abar;
  }
  void report(Tensors<S>& all, bool with_maps) {
    if (with_maps) all["out.map." + key] = stacked(false);
    all["out.mapgrad." + key] = stacked(true);
  }
};

/// x + att(LN x), then x + mlp(LN x).
template <class S>
struct TinyBlock {
  TinyNorm<S> n1, n2;
  TinyAttention<S> attention;
  TinyMlp<S> mlp;

  TinyBlock(const Case& c, const std::string& key)
      : n1(c, key + "_n1"), n2(c, key + "_n2"), attention(c, key + "_att"), mlp(c, key + "_ff") {}
  void forward(Mat<S>& x) {
    const Mat<S> y = n1.forward(x);
    x += attention.forward(y, y);
    x += mlp.forward(n2.forward(x));
  }
  void backward(Mat<S>& dx) {
    dx += n2.backward(mlp.backward(dx));
    Mat<S> dy = Mat<S>::Zero(dx.rows(), dx.cols());
    const Mat<S> own = attention.backward(dx, dy);
    dy += own;
    dx += n1.backward(dy);
  }
};

/// Logits of tokens [cls; pixels W + b] + pos after blocks, read at token 0.
template <class S>
struct TinyVit {
  TinyLinear<S> patch, head;
  Mat<S> cls, pos, last;
  std::deque<TinyBlock<S>> blocks;
  TinyNorm<S> norm;

  explicit TinyVit(const Case& c)
      : patch(c, "patch"), head(c, "head"), cls(c.in<S>("cls")), pos(c.in<S>("pos")), norm(c, "nf") {
    for (Index l = 0; l < c.count("layers", 1); ++l) blocks.emplace_back(c, "l" + std::to_string(l));
  }
  void guided_by(const Guide<S>* guide) {
    for (auto& block : blocks) block.attention.guide = guide;
  }
  Mat<S> forward(const Mat<S>& pixels) {
    Mat<S> x(pos.rows(), pos.cols());
    x << cls, patch.forward(pixels);
    x += pos;
    for (auto& block : blocks) block.forward(x);
    last = norm.forward(x);
    return head.forward(last.topRows(1));
  }
  Mat<S> backward(const Mat<S>& dlogits) {
    Mat<S> dx = Mat<S>::Zero(pos.rows(), pos.cols());
    dx.row(0) = head.backward(dlogits);
    dx = norm.backward(dx);
    for (std::size_t l = blocks.size(); l-- > 0;) blocks[l].backward(dx);
    return patch.backward(dx.bottomRows(dx.rows() - 1));
  }
};

/// Text and image: blocks of their own, then layers in which each attends to the other, and to itself; logits read at
/// text token 0.
template <class S>
struct TinyCoAttention {
  struct Cross {
    TinyNorm<S> nt, ni;
    TinyAttention<S> ti, it;
    TinyBlock<S> tt, ii;
    Cross(const Case& c, const std::string& key)
        : nt(c, key + "_nt"),
          ni(c, key + "_ni"),
          ti(c, key + "_ti"),
          it(c, key + "_it"),
          tt(c, key + "_tt"),
          ii(c, key + "_ii") {}
  };
  std::deque<TinyBlock<S>> text, image;
  std::deque<Cross> cross;
  TinyLinear<S> head;
  Mat<S> t, i;

  explicit TinyCoAttention(const Case& c) : head(c, "head"), t(c.in<S>("text")), i(c.in<S>("image")) {
    for (Index l = 0; l < c.integer("text_layers", 0); ++l) text.emplace_back(c, "t" + std::to_string(l));
    for (Index l = 0; l < c.integer("image_layers", 0); ++l) image.emplace_back(c, "i" + std::to_string(l));
    for (Index l = 0; l < c.count("cross_layers", 1); ++l) cross.emplace_back(c, "x" + std::to_string(l));
  }
  Mat<S> forward() {
    for (auto& block : text) block.forward(t);
    for (auto& block : image) block.forward(i);
    for (auto& x : cross) {
      const Mat<S> nt = x.nt.forward(t), ni = x.ni.forward(i);
      t += x.ti.forward(nt, ni), i += x.it.forward(ni, nt);
      x.tt.forward(t), x.ii.forward(i);
    }
    return head.forward(t.topRows(1));
  }
  void backward(const Mat<S>& dlogits) {
    Mat<S> dt = Mat<S>::Zero(t.rows(), t.cols()), di = Mat<S>::Zero(i.rows(), i.cols());
    dt.row(0) = head.backward(dlogits);
    for (std::size_t l = cross.size(); l-- > 0;) {
      Cross& x = cross[l];
      x.tt.backward(dt), x.ii.backward(di);
      Mat<S> dnt = Mat<S>::Zero(t.rows(), t.cols()), dni = Mat<S>::Zero(i.rows(), i.cols());
      const Mat<S> own_t = x.ti.backward(dt, dni), own_i = x.it.backward(di, dnt);
      dnt += own_t, dni += own_i;
      dt += x.nt.backward(dnt), di += x.ni.backward(dni);
    }
    for (std::size_t l = text.size(); l-- > 0;) text[l].backward(dt);
    for (std::size_t l = image.size(); l-- > 0;) image[l].backward(di);
  }
  /// Every attention with its streams (text 0, image 1), stage by stage.
  template <class F, class E>
  void visit(F&& attention, E&& stage) {
    for (auto& block : text) attention(0, 0, block.attention), stage();
    for (auto& block : image) attention(1, 1, block.attention), stage();
    for (auto& x : cross) {
      attention(0, 1, x.ti), attention(1, 0, x.it), stage();
      attention(0, 0, x.tt.attention), attention(1, 1, x.ii.attention), stage();
    }
  }
};

/// The row of one class.
template <class S>
Mat<S> one_of(Index place, Index size) {
  Mat<S> out = Mat<S>::Zero(1, size);
  out(0, place) = S(1);
  return out;
}

/// Forward, and back from the logit that the file names; the logits.
template <class S, class Model, class... In>
Mat<S> explained(const Case& c, Model& model, const In&... in) {
  const Mat<S> logits = model.forward(in...);
  model.backward(one_of<S>(c.place("target", 0, logits.cols()), logits.cols()));
  return logits;
}

}  // namespace golden
