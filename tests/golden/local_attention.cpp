// limpid: golden cases of attention to few pairs: neighbourhoods, packed sequences, documents, lengths, blocks, sinks.
// SPDX-License-Identifier: MIT
#include "../support/any_local.hpp"
#include "heads.hpp"
#include "plain.hpp"

namespace golden {

struct LocalAttention {
  static constexpr const char* name = "local_attention";
  static constexpr const char* switches =
      "kind may_be_inf causal scale heads kv_heads grid window border dilation stride causal_axes global bq bk";

  static std::vector<Index> numbers(const Mat<double>& m) {
    std::vector<Index> list;
    for (Index i = 0; i < m.size(); ++i) list.push_back(static_cast<Index>(m.data()[i]));
    return list;
  }
  /// "7x8"
  static std::vector<Index> sizes(const std::string& text) {
    std::vector<Index> list;
    for (std::size_t at = 0; at < text.size(); at = text.find('x', at) + 1) {
      list.push_back(std::stol(text.substr(at)));
      if (text.find('x', at) == std::string::npos) break;
    }
    return list;
  }
  static limpid::Neighbourhood neighbourhood(const Case& c) {
    const auto grid = sizes(c.text("grid", "")), window = sizes(c.text("window", ""));
    limpid::NeighbourhoodOptions options;
    const std::string border = c.text("border", "clip"), causal = c.text("causal_axes", "");
    if (border == "shift") options.border = limpid::Border::shift;
    if (border == "mirror") options.border = limpid::Border::mirror;
    const auto dilation = sizes(c.text("dilation", "")), stride = sizes(c.text("stride", ""));
    std::copy(dilation.begin(), dilation.end(), options.dilation.begin());
    std::copy(stride.begin(), stride.end(), options.stride.begin());
    for (std::size_t x = 0; x < causal.size(); ++x) options.causal[x] = causal[x] == '1';
    options.global = c.integer("global", 0);
    if (grid.size() == 1) return limpid::neighbourhood({grid[0]}, {window[0]}, options);
    if (grid.size() == 2) return limpid::neighbourhood({grid[0], grid[1]}, {window[0], window[1]}, options);
    return limpid::neighbourhood({grid[0], grid[1], grid[2]}, {window[0], window[1], window[2]}, options);
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.dout<S>();
    const Index heads = c.count("heads", 1), kv_heads = c.count("kv_heads", heads);
    const auto run = [&](const auto& mask) {
      Index batch = 1;
      if (c.has("lengths")) batch = c.shape("lengths")[0];
      CausalIfAsked causal;
      causal.asked = c.flag("causal");
      const auto op = limpid::softmax(limpid::chain(mask, causal), {.scale = c.scale(q.cols() / heads)});
      Mat<S> out(dout.rows(), dout.cols()), lse;
      Mat<S> dq(q.rows(), q.cols()), dk(k.rows(), k.cols()), dv(v.rows(), v.cols());
      limpid::Saved<std::remove_cv_t<decltype(op)>, S> saved;
      limpid::forward(op, limpid::qkv(q, k, v), out,
                      {.batch = batch, .heads = heads, .kv_heads = kv_heads, .saved = &saved, .lse = &lse});
      limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
      return Tensors<S>{{"out.out", out}, {"out.lse", lse}, {"grad.q", dq}, {"grad.k", dk}, {"grad.v", dv}};
    };
    const std::string kind = c.text("kind", "");
    if (kind == "neighbourhood") return run(neighbourhood(c));
    if (kind == "packed") {
      const std::vector<Index> cu_q = numbers(c.in<double>("cu_q")), cu_k = numbers(c.in<double>("cu_k"));
      return run(suite::AnyPacked(limpid::packed(cu_q, cu_k)));
    }
    if (kind == "document") return run(suite::AnyPacked(limpid::documents(numbers(c.in<double>("doc")))));
    if (kind == "lengths") return run(limpid::key_lengths(numbers(c.in<double>("lengths"))));
    if (kind == "blocks") {
      const Mat<double> kept = c.in<double>("block_mask");
      const Mat<bool> mask = kept.array() != 0;
      return run(limpid::blocks(mask, c.count("bq", 1), c.count("bk", 1)));
    }
    if (kind == "sink") {
      const Mat<S> logits = c.in<S>("sink");
      Mat<S> gradient = Mat<S>::Zero(logits.rows(), logits.cols());
      Tensors<S> results = run(limpid::sink(logits, gradient));
      results["grad.sink"] = gradient;
      return results;
    }
    throw Refused("kind '" + kind + "' is not known");
  }
};

const Registered<LocalAttention> local_attention_cases;

}  // namespace golden
