// limpid: golden cases of attention guidance: patterns beside the values, their weights beside dout (kind guided), and
// corrections of maps handed over (kind maps), a guided model (vit), and pixels that climb (rewrite).
// SPDX-License-Identifier: MIT
#include <limits>
#include <optional>

#include "tiny_models.hpp"

namespace golden {

struct GradientGuidance {
  static constexpr const char* name = "gradient_guidance";
  static constexpr const char* switches =
      "kind order row start_layer heads layers target strength source steps step rule radius low high";

  static constexpr std::pair<const char*, limpid::Part> parts[] = {{"pos", limpid::Part::pos},
                                                                   {"neg", limpid::Part::neg},
                                                                   {"abs", limpid::Part::abs},
                                                                   {"signed", limpid::Part::signed_}};

  /// Attention of one token to a region, with that strength, beside a logit.
  template <class S>
  static Guide<S> guide(const Case& c, Index tokens) {
    Guide<S> out{c.in<S>("w"), {}};
    out.u = Mat<S>::Zero(tokens, out.w.cols());
    out.u.row(c.place("row", 0, tokens)).setConstant(static_cast<S>(c.number("strength", 0)));
    return out;
  }

  template <class S>
  static Tensors<S> vit(const Case& c) {
    TinyVit<S> model(c);
    const Index n = model.pos.rows(), row = c.place("row", 0, n), layers = static_cast<Index>(model.blocks.size());
    const Guide<S> how = guide<S>(c, n);
    model.guided_by(&how);
    Tensors<S> all;
    all["out.logits"] = explained<S>(c, model, c.in<S>("pixels"));
    Mat<S>& readout = all["out.readout"];
    readout.resize(layers, c.count("heads", 1));
    for (Index l = 0; l < layers; ++l) {
      auto& attention = model.blocks[static_cast<std::size_t>(l)].attention;
      readout.row(l) = attention.readout.row(row);
      attention.report(all, false);
    }
    for (const auto& [name, part] : parts)
      for (const bool by_score : {false, true}) {
        limpid::Correction correction{part, by_score ? limpid::CorrectionBy::score : limpid::CorrectionBy::map};
        if (c.text("order", "part_mean") == "mean_part") correction.order = limpid::CorrectionOrder::mean_part;
        limpid::RelevanceMatrices<S> r({n});
        for (Index l = c.place("start_layer", 0, layers); l < layers; ++l) {
          const Mat<S> abar = model.blocks[static_cast<std::size_t>(l)].attention.corrected(correction);
          r.attention(0, 0, abar), r.stage();
        }
        all["out." + std::string(by_score ? "score_" : "") + name] = r.of().row(row);
      }
    return all;
  }

  template <class S>
  static Tensors<S> rewrite(const Case& c) {
    TinyVit<S> model(c);
    const Mat<S> start = c.in<S>("pixels"), region = c.in_or_none<S>("region");
    std::optional<Guide<S>> how;
    if (c.has("w")) how = guide<S>(c, model.pos.rows()), model.guided_by(&*how);
    constexpr double inf = std::numeric_limits<double>::infinity();
    const std::string rule = c.text("rule", "l2");
    if (rule != "l2" && rule != "sign") throw Refused("rule is '" + rule + "', wanted l2 or sign");
    const limpid::RewriteOptions options{.step = c.number("step", 1),
                                         .rule = rule == "l2" ? limpid::RewriteRule::l2 : limpid::RewriteRule::sign,
                                         .radius = c.number("radius", inf),
                                         .low = c.number("low", -inf),
                                         .high = c.number("high", inf)};
    const Index steps = c.integer("steps", 0);
    Tensors<S> all;
    Mat<S>&x = all["out.pixels"] = start, &path = all["out.path"];
    for (Index step = 0;; ++step) {
      const Mat<S> logits = model.forward(x);
      if (step == 0) path.resize(steps + 1, logits.cols());
      path.row(step) = logits;
      if (step == steps) break;
      Mat<S> direction = one_of<S>(c.place("target", 0, logits.cols()), logits.cols());
      direction -= one_of<S>(c.place("source", 0, logits.cols()), logits.cols());
      const Mat<S> gradient = model.backward(direction);
      limpid::rewrite_step(gradient, start, region, x, options);
    }
    S largest = 0;
    for (Index i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(x.data()[i] - start.data()[i]));
    all["out.largest_change"] = Mat<S>::Constant(1, 1, largest);
    return all;
  }

  template <class S>
  static Tensors<S> maps(const Case& c) {
    const Heads e(c, "a");
    const Mat<S> a = c.in<S>("a"), g = c.in<S>("g");
    const Index rows = e.heads * e.n, row = c.place("row", 0, e.n), start = c.place("start_layer", 0, e.layers);
    limpid::Correction how;
    if (c.text("order", "part_mean") == "mean_part") how.order = limpid::CorrectionOrder::mean_part;
    Tensors<S> all;
    for (const auto& [key, part] : parts)
      for (const bool by_score : {false, true}) {
        how.part = part, how.by = by_score ? limpid::CorrectionBy::score : limpid::CorrectionBy::map;
        limpid::RelevanceMatrices<S> r({e.n});
        Mat<S> abars(e.layers * e.n, e.n);
        for (Index l = 0; l < e.layers; ++l) {
          const auto part_of = [&](const Mat<S>& x) { return limpid::View<S>(x).block(l * rows, 0, rows, e.n); };
          const Mat<S> abar = limpid::corrected_map<S>({part_of(a), part_of(g), e.heads}, how);
          abars.middleRows(l * e.n, e.n) = abar;
          if (l >= start) r.attention(0, 0, abar), r.stage();
        }
        if (!by_score) all["out.abar_" + std::string(key)] = abars;
        all["out." + std::string(by_score ? "score_" : "") + key] = r.of().row(row);
      }
    return all;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    if (c.text("kind", "") == "maps") return maps<S>(c);
    if (c.text("kind", "") == "vit") return vit<S>(c);
    if (c.text("kind", "") == "rewrite") return rewrite<S>(c);
    if (c.text("kind", "") != "guided")
      throw Refused("kind is '" + c.text("kind", "") + "', wanted guided, maps, vit or rewrite");
    const Heads queries(c, "q"), keys(c, "k");
    const Index heads = queries.heads, n = queries.n, m = keys.n;
    const Mat<S> q = queries.packed(c.in<S>("q")), k = keys.packed(c.in<S>("k")), w = c.in<S>("w"), u = c.in<S>("u");
    const Mat<S> v_heads = c.in<S>("v"), dout_heads = c.in<S>("do");
    const Index dv = v_heads.cols(), r = w.cols();
    Mat<S> v(m, heads * (dv + r)), dout(n, heads * (dv + r)), out = dout;
    const Mat<S> v_packed = keys.packed(v_heads), dout_packed = queries.packed(dout_heads);
    limpid::append_columns(v_packed, w, heads, v);
    limpid::append_columns(dout_packed, u, heads, dout);

    const auto op = limpid::softmax();
    limpid::Saved<std::remove_const_t<decltype(op)>, S> saved;
    limpid::forward(op, limpid::qkv(q, k, v), out, {.heads = heads, .saved = &saved});
    Mat<S> dq = q, dk = k, dv_all = v, o(n, heads * dv), readout(n, heads * r), dv_own(m, heads * dv);
    limpid::backward(op, limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv_all));
    limpid::split_columns(out, heads, o, readout);
    limpid::split_columns(dv_all, heads, dv_own, {});

    Tensors<S> all;
    const auto by_heads = [&](const char* key, const Heads& e, const Mat<S>& packed) {
      Mat<S>& to = all[key] = Mat<S>::Zero(heads * e.n, packed.cols() / heads);
      e.add(packed, 0, to);
    };
    by_heads("out.o", queries, o), by_heads("out.readout", queries, readout);
    by_heads("out.dq", queries, dq), by_heads("out.dk", keys, dk), by_heads("out.dv", keys, dv_own);
    all["out.y"] = Mat<S>::Constant(1, 1, dot(out, dout));
    Mat<S>& g = all["out.g"] = Mat<S>::Zero(heads * n, m);
    for (Index h = 0; h < heads; ++h)
      g.middleRows(h * n, n) = product_nt<S>(dout.middleCols(h * (dv + r), dv + r), v.middleCols(h * (dv + r), dv + r));
    for (const auto& [key, part] :
         {std::pair{"out.abar_pos", limpid::Part::pos}, std::pair{"out.abar_abs", limpid::Part::abs}}) {
      limpid::Relevance<S> relevance({n, m}, part);
      Mat<S>& abar = all[key] = Mat<S>::Zero(n, m);
      for (Index i = 0; i < n; ++i) {
        relevance.start(i, 0);
        limpid::backward(op, limpid::qkv(q, k, v), saved, dout, {}, relevance.ask(0, 1));
        relevance.stage();
        abar.row(i) = relevance.of(1);
      }
    }
    return all;
  }
};

const Registered<GradientGuidance> gradient_guidance_cases;

}  // namespace golden
