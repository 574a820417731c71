// limpid: golden cases of generic relevance: the row that the backward pass emits beside the gradients (kind qkv), and
// whole matrices from maps handed over, of one stream, two, and an encoder-decoder.
// SPDX-License-Identifier: MIT
#include <deque>

#include "tiny_models.hpp"

namespace golden {

struct GenericRelevance {
  static constexpr const char* name = "generic_relevance";
  static constexpr const char* switches =
      "kind part order start_layer row normalise self_in_rule_10 last_text_only causal scale heads layers target "
      "text_layers image_layers cross_layers";

  template <class S>
  static Mat<S> part_of(const Case& c, const Mat<S>& x) {
    const std::string part = c.text("part", "pos");
    Mat<S> out = x;
    for (Index i = 0; i < out.size(); ++i) {
      S& value = out.data()[i];
      if (part == "pos") value = std::max(value, S(0));
      if (part == "neg") value = std::max(-value, S(0));
      if (part == "abs") value = std::abs(value);
    }
    if (part == "pos" || part == "neg" || part == "abs" || part == "signed") return out;
    throw Refused("part is '" + part + "', wanted pos, neg, abs or signed");
  }
  static limpid::Part part(const Case& c) {
    const std::string part = c.text("part", "pos");
    return part == "neg"      ? limpid::Part::neg
           : part == "abs"    ? limpid::Part::abs
           : part == "signed" ? limpid::Part::signed_
                              : limpid::Part::pos;
  }

  static void check(const Case& c) {
    if (c.text("order", "part_mean") != "part_mean" && c.text("order", "") != "mean_part")
      throw Refused("order is '" + c.text("order", "") + "', wanted part_mean or mean_part");
  }
  static limpid::Correction correction(const Case& c) {
    const bool after = c.text("order", "part_mean") == "mean_part";
    return {.part = part(c), .order = after ? limpid::CorrectionOrder::mean_part : limpid::CorrectionOrder::part_mean};
  }

  /// The layers of one kind of attention, as the file hands over their maps; none where it has none.
  template <class S>
  struct Family {
    Mat<S> a, g;
    Index layers = 0, heads = 0, n = 0, m = 0;
    std::vector<Mat<S>> abar;

    Family(const Case& c, const std::string& name) {
      if (!c.has(name + "a")) return;
      const Heads e(c, name + "a");
      a = c.in<S>(name + "a"), g = c.in<S>(name + "g");
      layers = e.layers, heads = e.heads, n = e.n, m = a.cols();
      for (Index l = 0; l < layers; ++l) abar.push_back(limpid::corrected_map(maps(l), correction(c)));
    }
    limpid::HeadMaps<S> maps(Index l) const {
      const Index rows = heads * n;
      return {limpid::View<S>(a).block(l * rows, 0, rows, m), limpid::View<S>(g).block(l * rows, 0, rows, m), heads};
    }
  };

  static limpid::RelevanceMatrixOptions rules(const Case& c) {
    return {.cross = limpid::CrossRule::chefer,
            .normalise = c.flag("normalise", true),
            .own_relevance = c.flag("self_in_rule_10", true)};
  }

  template <class S>
  static Tensors<S> self(const Case& c) {
    const Heads e(c, "a");
    const Family<S> all_layers(c, "");
    Mat<S> abar(e.layers * e.n, e.n);
    for (Index l = 0; l < e.layers; ++l) abar.middleRows(l * e.n, e.n) = all_layers.abar[static_cast<std::size_t>(l)];
    Tensors<S> all;
    finish(c, e, abar, all);
    return all;
  }

  template <class S>
  static Tensors<S> bimodal(const Case& c) {
    const Family<S> t(c, "t_"), i(c, "i_"), ti(c, "ti_"), it(c, "it_"), tt(c, "tt_"), ii(c, "ii_");
    limpid::RelevanceMatrices<S> r({ti.n, ti.m}, rules(c));
    for (const Mat<S>& abar : t.abar) r.attention(0, 0, abar), r.stage();
    for (const Mat<S>& abar : i.abar) r.attention(1, 1, abar), r.stage();
    for (std::size_t l = 0; l < ti.abar.size(); ++l) {
      const bool both = !(c.flag("last_text_only") && l + 1 == ti.abar.size());
      r.attention(0, 1, ti.abar[l]);
      if (both) r.attention(1, 0, it.abar[l]);
      r.stage();
      r.attention(0, 0, tt.abar[l]);
      if (both) r.attention(1, 1, ii.abar[l]);
      r.stage();
    }
    Tensors<S> all;
    all["out.r_tt"] = r.of(0, 0), all["out.r_ti"] = r.of(0, 1), all["out.r_it"] = r.of(1, 0),
    all["out.r_ii"] = r.of(1, 1);
    const Index row = c.place("row", 0, ti.n);
    all["out.row_tt"] = all["out.r_tt"].row(row), all["out.row_ti"] = all["out.r_ti"].row(row);
    return all;
  }

  /// The matrices from maps, and the row from their products alone, whoever makes these.
  template <class S>
  static Tensors<S> encoder_decoder(const Case& c, const std::vector<limpid::MapProducts<S>>& e,
                                    const std::vector<limpid::MapProducts<S>>& d,
                                    const std::vector<limpid::MapProducts<S>>& x) {
    const Index n = x.front().n, m = x.front().m, row = c.place("row", 0, n);
    limpid::RelevanceMatrices<S> r({n, m}, rules(c));  // queries, inputs
    const auto add = [&](Index to, Index from, const limpid::MapProducts<S>& map) {
      Mat<S> abar(map.n, map.m);
      const Mat<S> identity = Mat<S>::Identity(map.n, map.n);
      map.left(identity, abar);
      r.attention(to, from, abar), r.stage();
    };
    for (const auto& map : e) add(1, 1, map);
    for (std::size_t l = 0; l < x.size(); ++l) add(0, 0, d[l]), add(0, 1, x[l]);
    Tensors<S> all;
    all["out.r_ii"] = r.of(1, 1), all["out.r_qq"] = r.of(0, 0), all["out.r_qi"] = r.of(0, 1);
    all["out.row_qi"] = limpid::encoder_decoder_relevance(e, d, x, row, rules(c)).inputs;
    return all;
  }
  template <class S>
  static Tensors<S> encoder_decoder_of_maps(const Case& c) {
    const Family<S> e(c, "e_"), d(c, "d_"), x(c, "x_");
    const auto products = [&](const Family<S>& f) {
      std::vector<limpid::MapProducts<S>> all;
      for (Index l = 0; l < f.layers; ++l) all.push_back(limpid::corrected_products(f.maps(l), correction(c)));
      return all;
    };
    return encoder_decoder<S>(c, products(e), products(d), products(x));
  }

  /// What a forward call saved of every layer of one kind of attention.
  template <class S>
  struct SavedFamily {
    using Op = decltype(limpid::softmax());
    struct Layer {
      Mat<S> q, k, v, dout;
      limpid::Inputs<Op, S> in;
      limpid::Saved<Op, S> saved;
    };
    std::deque<Layer> layers;

    SavedFamily(const Case& c, const std::string& name) {
      if (!c.has(name + "q")) return;
      const Heads e(c, name + "q"), f(c, name + "k");
      const Mat<S> q = c.in<S>(name + "q"), k = c.in<S>(name + "k"), v = c.in<S>(name + "v"), d = c.in<S>(name + "do");
      for (Index l = 0; l < e.layers; ++l) {
        Layer& layer = layers.emplace_back();
        layer.q = e.packed(q, l), layer.k = f.packed(k, l), layer.v = f.packed(v, l), layer.dout = e.packed(d, l);
        layer.in = limpid::qkv(layer.q, layer.k, layer.v);
        Mat<S> out(e.n, layer.v.cols());
        limpid::forward(limpid::softmax(), layer.in, out, {.heads = e.heads, .saved = &layer.saved});
      }
    }
    std::vector<limpid::MapProducts<S>> products(const Case& c) {
      std::vector<limpid::MapProducts<S>> all;
      for (Layer& layer : layers)
        all.push_back(limpid::corrected_products(op, layer.in, layer.saved, layer.dout, correction(c)));
      return all;
    }
    Op op = limpid::softmax();
  };
  template <class S>
  static Tensors<S> encoder_decoder_of_heads(const Case& c) {
    SavedFamily<S> e(c, "e_"), d(c, "d_"), x(c, "x_");
    return encoder_decoder<S>(c, e.products(c), d.products(c), x.products(c));
  }

  /// R = (I + Abar_L) ... (I + Abar_start) from the layers' head-averaged maps, and what the file asks of it.
  template <class S>
  static void finish(const Case& c, const Heads& e, const Mat<S>& abar, Tensors<S>& all) {
    Mat<S> r = Mat<S>::Identity(e.n, e.n);
    for (Index l = c.place("start_layer", 0, e.layers + 1); l < e.layers; ++l)
      r += product<S>(abar.middleRows(l * e.n, e.n), r);
    const Index row = c.place("row", 0, e.n);
    all["out.abar"] = abar, all["out.r"] = r, all["out.row"] = r.row(row), all["out.column"] = r.col(row);
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    check(c);
    const std::string kind = c.text("kind", "");
    if (kind == "self") return self<S>(c);
    if (kind == "bimodal") return bimodal<S>(c);
    if (kind == "encdec") return encoder_decoder_of_maps<S>(c);
    if (kind == "encdec_qkv") return encoder_decoder_of_heads<S>(c);
    if (kind == "qkv") return heads<S>(c);
    if (kind == "vit") return vit<S>(c);
    if (kind == "coattn") return coattention<S>(c);
    throw Refused("generic_relevance of kind '" + kind + "' is not known here");
  }

  /// The row by the backward pass is rollout's and relevance's own test; here whole matrices.
  template <class S>
  static Tensors<S> vit(const Case& c) {
    TinyVit<S> model(c);
    Tensors<S> all;
    all["out.logits"] = explained<S>(c, model, c.in<S>("pixels"));
    limpid::RelevanceMatrices<S> r({model.pos.rows()});
    const Index start = c.place("start_layer", 0, static_cast<Index>(model.blocks.size()));
    for (std::size_t l = 0; l < model.blocks.size(); ++l) {
      model.blocks[l].attention.report(all, true);
      if (static_cast<Index>(l) < start) continue;
      const Mat<S> abar = model.blocks[l].attention.corrected(correction(c));
      r.attention(0, 0, abar), r.stage();
    }
    all["out.r"] = r.of(), all["out.row"] = r.of().row(c.place("row", 0, model.pos.rows()));
    return all;
  }
  template <class S>
  static Tensors<S> coattention(const Case& c) {
    TinyCoAttention<S> model(c);
    Tensors<S> all;
    all["out.logits"] = explained<S>(c, model);
    limpid::RelevanceMatrices<S> r({model.t.rows(), model.i.rows()}, rules(c));
    Index cross = 0;
    const bool last_text_only = c.flag("last_text_only");
    model.visit(
        [&](Index to, Index from, TinyAttention<S>& attention) {
          attention.report(all, true);
          if (to == 0 && from == 1) ++cross;
          if (last_text_only && to == 1 && cross == static_cast<Index>(model.cross.size())) return;
          const Mat<S> abar = attention.corrected(correction(c));
          r.attention(to, from, abar);
        },
        [&] { r.stage(); });
    all["out.r_tt"] = r.of(0, 0), all["out.r_ti"] = r.of(0, 1), all["out.r_it"] = r.of(1, 0),
    all["out.r_ii"] = r.of(1, 1);
    const Index row = c.place("row", 0, model.t.rows());
    if (c.file().has("out.row_tt")) all["out.row_tt"] = all["out.r_tt"].row(row);
    if (c.file().has("out.row_ti")) all["out.row_ti"] = all["out.r_ti"].row(row);
    return all;
  }

  template <class S>
  static Tensors<S> heads(const Case& c) {
    const Heads e(c, "q");
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.in<S>("do");
    Tensors<S> all;
    Mat<S>&a = all["out.a"], &g = all["out.g"], &o = all["out.o"];
    a.resize(q.rows(), e.n), g.resize(q.rows(), e.n), o.resize(q.rows(), v.cols());
    Mat<S> abar(e.layers * e.n, e.n), row = Mat<S>::Zero(1, e.n);
    row(0, c.place("row", 0, e.n)) = S(1);
    with_masks(c, [&](const auto& masks) {
      const auto op = limpid::softmax(masks, {.scale = c.scale(q.cols())});
      using Op = std::remove_const_t<decltype(op)>;
      for (Index l = e.layers - 1; l >= 0; --l) {
        const Mat<S> ql = e.packed(q, l), kl = e.packed(k, l), vl = e.packed(v, l), dl = e.packed(dout, l);
        const auto in = limpid::qkv(ql, kl, vl);
        Mat<S> out(e.n, vl.cols()), map;
        limpid::Saved<Op, S> saved;
        for (Index h = 0; h < e.heads; ++h) {
          limpid::forward(op, in, out, {.heads = e.heads, .saved = &saved, .map = &map, .head = h});
          const Index at = (l * e.heads + h) * e.n;
          a.middleRows(at, e.n) = map;
          g.middleRows(at, e.n) = product_nt<S>(dout.middleRows(at, e.n), v.middleRows(at, e.n));
          o.middleRows(at, e.n) = out.middleCols(h * v.cols(), v.cols());
        }
        Mat<S> dq = ql, dk = kl, dv = vl, weights, relevance(1, e.n);
        if (c.text("order", "part_mean") == "part_mean") {
          // Abar row by row: the weights e_i pick row i. The backward pass takes one row of weights for the whole item.
          for (Index i = 0; i < e.n; ++i) {
            weights = Mat<S>::Identity(e.n, e.n).row(i);
            limpid::backward(op, in, saved, dl, limpid::grads(dq, dk, dv),
                             {.relevance_weights = weights, .relevance = relevance, .part = part(c)});
            abar.row(l * e.n + i) = relevance;
          }
          if (l < c.place("start_layer", 0, e.layers + 1)) continue;
          // The chain as it is meant to be used: w <- w + w Abar, last layer first, in the backward pass itself.
          limpid::backward(op, in, saved, dl, limpid::grads(dq, dk, dv),
                           {.relevance_weights = row, .relevance = relevance, .part = part(c)});
          row += relevance;
        } else {  // the part after the mean over heads: not what the backward pass emits; from the library's maps
          Mat<S> mean = Mat<S>::Zero(e.n, e.n);
          for (Index h = 0; h < e.heads; ++h) {
            const Index at = (l * e.heads + h) * e.n;
            mean += scaled(1 / static_cast<S>(e.heads), times<S>(a.middleRows(at, e.n), g.middleRows(at, e.n)));
          }
          abar.middleRows(l * e.n, e.n) = part_of<S>(c, mean);
        }
      }
    });
    finish(c, e, abar, all);
    if (c.text("order", "part_mean") == "part_mean") all["out.row"] = row;
    return all;
  }

  template <class S>
  static Tensors<S> formula(const Case& c) {
    check(c);
    if (c.text("kind", "") != "qkv") return library<S>(c);  // maps are all there is to it
    const Heads e(c, "q");
    const Mat<S> q = c.in<S>("q"), k = c.in<S>("k"), v = c.in<S>("v"), dout = c.in<S>("do");
    const S scale = static_cast<S>(c.scale(q.cols()));
    Tensors<S> all;
    Mat<S>&a = all["out.a"], &g = all["out.g"], &o = all["out.o"];
    a.resize(q.rows(), e.n), g.resize(q.rows(), e.n), o.resize(q.rows(), v.cols());
    Mat<S> abar(e.layers * e.n, e.n);
    for (Index l = 0; l < e.layers; ++l) {
      Mat<S> parts = Mat<S>::Zero(e.n, e.n), products = parts;
      for (Index h = 0; h < e.heads; ++h) {
        const Index at = (l * e.heads + h) * e.n;
        const Mat<S> vh = v.middleRows(at, e.n), dh = dout.middleRows(at, e.n);
        const Mat<S> scores = scaled(scale, product_nt<S>(q.middleRows(at, e.n), k.middleRows(at, e.n)));
        const PlainAttention<S> plain(scores, c.visible(e.n, e.n), vh, dh);
        a.middleRows(at, e.n) = plain.a;
        g.middleRows(at, e.n) = product_nt(dh, vh);
        o.middleRows(at, e.n) = plain.out;
        const Mat<S> x = times<S>(plain.a, g.middleRows(at, e.n));
        parts += part_of<S>(c, x);
        products += x;
      }
      const S heads = static_cast<S>(e.heads);
      abar.middleRows(l * e.n, e.n) = c.text("order", "part_mean") == "part_mean"
                                          ? scaled(1 / heads, parts)
                                          : part_of<S>(c, scaled(1 / heads, products));
    }
    finish(c, e, abar, all);
    return all;
  }
};

const Registered<GenericRelevance> generic_relevance_cases;

}  // namespace golden
