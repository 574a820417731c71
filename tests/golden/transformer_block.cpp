// limpid: golden cases of transformer blocks.
// SPDX-License-Identifier: MIT
#include <limpid/layer/transformer_block.hpp>
#include <limpid/op/rope.hpp>

#include "subspace.hpp"

namespace golden {

struct TransformerBlock {
  static constexpr const char* name = "transformer_block";
  static constexpr const char* switches = "base causal eps heads kv_heads mlp norm norm_kind qk_norm rope scale";
  static constexpr double bound = 1e-12;

  static limpid::TransformerBlockOptions options_of(const Case& c) {
    const auto one_of = [&](const char* name, const char* absent, const auto& table) {
      const std::string found = c.text(name, absent);
      for (const auto& [text, value] : table)
        if (found == text) return value;
      throw Refused(std::string(name) + " is '" + found + "'");
    };
    using limpid::Activation, limpid::Mlp, limpid::NormKind, limpid::NormPlace;
    limpid::TransformerBlockOptions o;
    o.heads = c.count("heads", 1), o.kv_heads = c.count("kv_heads", o.heads);
    o.eps = c.number("eps", 1e-5);
    o.place = one_of("norm", "pre",
                     std::map<std::string, NormPlace>{
                         {"pre", NormPlace::pre}, {"post", NormPlace::post}, {"sandwich", NormPlace::sandwich}});
    o.norm = one_of("norm_kind", "layer",
                    std::map<std::string, NormKind>{{"layer", NormKind::layer}, {"rms", NormKind::rms}});
    o.mlp = one_of("mlp", "gelu",
                   std::map<std::string, std::optional<Mlp>>{{"gelu", Mlp{Activation::gelu}},
                                                             {"gelu_tanh", Mlp{Activation::gelu_tanh}},
                                                             {"relu", Mlp{Activation::relu}},
                                                             {"silu", Mlp{Activation::silu}},
                                                             {"swiglu", limpid::swiglu()},
                                                             {"geglu", limpid::geglu()},
                                                             {"none", std::nullopt}});
    if (one_of("qk_norm", "none",
               std::map<std::string, bool>{{"none", false}, {"false", false}, {"rms", true}, {"true", true}}))
      o.qk_norm_eps = o.eps;
    return o;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    using Args = limpid::TransformerBlockArgs<Mat<S>>;
    limpid::TransformerBlockOptions options = options_of(c);
    Parameters<S, limpid::TransformerBlockArgs> p(c);
    p.value.x = c.in<S>("x"), p.grad.x = p.value.x;
    const Mat<S> dout = c.dout<S>();
    Mat<S> out(p.value.x.rows(), p.value.x.cols());
    const limpid::SoftmaxOptions scale{c.scale(p.value.wq.cols() / options.heads)};
    const auto run = [&](const auto& block) {
      typename std::remove_cvref_t<decltype(block)>::template Saved<S> saved;
      block.forward(p.value, out, {.saved = &saved});
      block.backward(p.value, saved, dout, p.grad);
    };
    const auto crossed = [&](const auto& op) {
      if (p.value.context.size() == 0) return run(limpid::transformer_block(op, options));
      MaskIfGiven seen;
      Mat<bool> keep;
      if (c.has("mask_c")) keep = c.in<S>("mask_c").unaryExpr([](S x) { return x != 0; });
      if (keep.size() > 0) seen.keep_ = keep;
      run(limpid::transformer_block(op, limpid::softmax(seen, scale), options));
    };
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, scale);
      const std::string rope = c.text("rope", "none");
      if (rope == "none") return crossed(op);
      if (rope != "half" && rope != "interleaved") throw Refused("rope is '" + rope + "'");
      limpid::RopeOptions turn;
      turn.layout = rope == "half" ? limpid::RopeLayout::half : limpid::RopeLayout::interleaved;
      turn.base = c.number("base", 10000);
      crossed(limpid::rope(op, turn));
    });
    Tensors<S> all{{"out.out", out}};
    Args::visit(
        [&](const char* field, const Mat<S>& g) {
          if (g.size() > 0) all[std::string("grad.") + field] = g;
        },
        p.grad);
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    using Var = typename Tape<S>::Var;
    Tape<S> t;
    const auto in = [&](const std::string& name) { return t.in(c, name); };
    const std::string place = c.text("norm", "pre"), mlp = c.text("mlp", "gelu"), rope = c.text("rope", "none");
    const Index heads = c.count("heads", 1);
    const double eps = c.number("eps", 1e-5), base = c.number("base", 10000);
    const bool centred = c.text("norm_kind", "layer") == "layer";
    const auto norm = [&](Var y, const std::string& of) {
      return t.normed(y, in("gamma" + of), in("beta" + of), eps, centred);
    };
    /// Every head's rows normed by themselves.
    const auto normed_heads = [&](Var y, Index count, Var gamma) {
      const Index d = y->value.cols() / count;
      std::vector<Var> all;
      for (Index h = 0; h < count; ++h) all.push_back(t.normed(t.columns(y, h * d, d), gamma, nullptr, eps, false));
      return t.beside(all);
    };
    const auto attention = [&](Var y, Var context, const std::string& tail, const Mat<bool>& keep) {
      const auto linear = [&](Var z, const std::string& of) {
        return t.linear(z, in("w" + of + tail), in("b" + of + tail));
      };
      Var q = linear(y, "q"), k = linear(context, "k");
      const Index d = q->value.cols() / heads, groups = k->value.cols() / d;
      if (tail.empty() && in("gamma_q") != nullptr)
        q = normed_heads(q, heads, in("gamma_q")), k = normed_heads(k, groups, in("gamma_k"));
      if (tail.empty() && rope != "none")
        q = t.turned(q, heads, rope == "half", base), k = t.turned(k, groups, rope == "half", base);
      return linear(t.attention(q, k, linear(context, "v"), heads, groups, c.scale(d), keep), "o");
    };
    const auto sublayer = [&](Var x, const std::string& of, const std::string& scale, const auto& f) {
      const auto scaled_by = [&](Var y) { return t.times_row(y, in(scale)); };
      if (place == "post") return norm(t.add(x, scaled_by(f(x))), of);
      const Var y = f(norm(x, of));
      return t.add(x, place == "pre" ? scaled_by(y) : norm(y, of + "b"));
    };
    Var x = in("x");
    const Var context = in("context");
    const Index n = x->value.rows();
    x = sublayer(x, "1", "scale1", [&](Var y) { return attention(y, y, "", c.visible(n, n)); });
    if (context != nullptr) {
      Mat<bool> keep = Mat<bool>::Constant(n, context->value.rows(), true);
      if (c.has("mask_c")) keep = c.in<S>("mask_c").unaryExpr([](S seen) { return seen != 0; });
      x = sublayer(x, "_c", "scale_c", [&](Var y) { return attention(y, context, "2", keep); });
    }
    if (mlp != "none")
      x = sublayer(x, "2", "scale2", [&](Var y) {
        const Var inside = t.linear(y, in("w1"), in("b1"));
        Var a = mlp == "relu"                      ? t.each(inside, relu_of<S>, relu_slope<S>)
                : mlp == "gelu_tanh"               ? t.each(inside, tanh_gelu_of<S>, tanh_gelu_slope<S>)
                : mlp == "silu" || mlp == "swiglu" ? t.each(inside, silu_of<S>, silu_slope<S>)
                                                   : t.each(inside, gelu_of<S>, gelu_slope<S>);
        if (in("w3") != nullptr) a = t.times(a, t.linear(y, in("w3"), in("b3")));
        return t.linear(a, in("w2"), in("b2"));
      });
    x->grad = c.dout<S>();
    t.backward();
    Tensors<S> all{{"out.out", x->value}};
    t.gradients(all);
    return all;
  }
};

const Registered<TransformerBlock> transformer_block_cases;

}  // namespace golden
