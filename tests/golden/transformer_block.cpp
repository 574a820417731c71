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
};

const Registered<TransformerBlock> transformer_block_cases;

}  // namespace golden
