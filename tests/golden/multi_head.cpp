// limpid: golden cases of multi-head attention with rotary positions and gates, made by golden/multi_head.py.
// SPDX-License-Identifier: MIT
#include <limpid/layer/multi_head.hpp>
#include <limpid/op/rope.hpp>

#include "subspace.hpp"

namespace golden {

struct MultiHead {
  static constexpr const char* name = "multi_head";
  static constexpr const char* switches =
      "base causal fast factor heads high kv_heads low original rope rotary scale scaling slow";
  static constexpr double bound = 1e-12;

  static limpid::RopeScaling scaling_of(const Case& c) {
    using Kind = limpid::RopeScaling::Kind;
    const std::map<std::string, Kind> kinds{
        {"plain", Kind::plain}, {"linear", Kind::linear}, {"llama3", Kind::llama3}, {"yarn", Kind::yarn}};
    const auto found = kinds.find(c.text("scaling", "plain"));
    if (found == kinds.end()) throw Refused("scaling is '" + c.text("scaling", "plain") + "'");
    limpid::RopeScaling s;
    s.kind = found->second, s.factor = c.number("factor", 1), s.original = c.integer("original", 0);
    s.low = c.number("low", 1), s.high = c.number("high", 4);
    s.fast = c.number("fast", 32), s.slow = c.number("slow", 1);
    return s;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    Parameters<S, limpid::MultiHeadArgs> p(c);
    p.value.x = c.in<S>("x"), p.grad.x = p.value.x;
    const Index heads = c.count("heads", 1), kv_heads = c.count("kv_heads", heads);
    const Mat<S> dout = c.dout<S>();
    Mat<S> out(dout.rows(), dout.cols());
    const auto run = [&](const auto& op) {
      const auto layer = limpid::multi_head(op, heads, kv_heads);
      limpid::MultiHeadSaved<std::remove_cvref_t<decltype(op)>, S> saved;
      layer.forward(p.value, out, {.saved = &saved});
      layer.backward(p.value, saved, dout, p.grad);
    };
    const Index width = p.value.wq.cols() / heads;
    Mat<double> positions;
    if (c.has("positions")) positions = c.in<double>("positions");
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, {c.scale(width)});
      const std::string rope = c.text("rope", "none");
      if (rope == "none") return run(op);
      if (rope != "half" && rope != "interleaved") throw Refused("rope is '" + rope + "'");
      limpid::RopeOptions turn;
      turn.layout = rope == "half" ? limpid::RopeLayout::half : limpid::RopeLayout::interleaved;
      turn.rotary = c.integer("rotary", width);
      limpid::RopeFrequencies f = limpid::rope_frequencies(turn.rotary, c.number("base", 10000), scaling_of(c));
      if (positions.cols() > 1)
        f.values = limpid::axial_frequencies(turn.rotary, positions.cols(), c.number("base", 10000));
      turn.frequencies = f.values, turn.amplitude = f.amplitude;
      if (positions.size() > 0) turn.q_positions = positions, turn.k_positions = positions;
      run(limpid::rope(op, turn));
    });
    Tensors<S> all{{"out.out", out}};
    p.put(c, all);
    all["grad.x"] = p.grad.x;
    return all;
  }
};

const Registered<MultiHead> multi_head_cases;

}  // namespace golden
