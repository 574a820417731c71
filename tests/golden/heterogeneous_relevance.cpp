// limpid: golden cases of relevance across streams: a row of R for every token of every stream by the backward pass
// (kind stages_qkv), and whole matrices from maps handed over (kind stages).
// SPDX-License-Identifier: MIT
#include <sstream>

#include "tiny_models.hpp"

namespace golden {

struct HeterogeneousRelevance {
  static constexpr const char* name = "heterogeneous_relevance";
  static constexpr const char* switches =
      "kind streams stages explain row part order heads target text_layers image_layers cross_layers";

  static std::vector<std::string> pieces(const std::string& text, char between) {
    std::vector<std::string> all;
    std::istringstream stream(text);
    for (std::string piece; std::getline(stream, piece, between);) all.push_back(piece);
    return all;
  }

  /// The streams and the attentions of every stage.
  struct Plan {
    struct Attention {
      Index to, from;
      std::string key;  // before the arrays' names
    };
    std::vector<std::string> names;
    std::vector<Index> tokens;
    std::vector<std::vector<Attention>> stages;
    Index explained = 0, row = 0;

    explicit Plan(const Case& c) {
      for (const std::string& stream : pieces(c.text("streams", ""), ',')) {
        const auto both = pieces(stream, ':');
        if (both.size() != 2) throw Refused("stream '" + stream + "', wanted name:tokens");
        names.push_back(both[0]), tokens.push_back(std::stol(both[1]));
      }
      for (const std::string& stage : pieces(c.text("stages", ""), ';')) {
        const std::string at = std::to_string(stages.size());
        stages.emplace_back();
        for (const std::string& pair : pieces(stage, ',')) {
          const auto both = pieces(pair, '<');
          if (both.size() != 2) throw Refused("stage '" + pair + "', wanted to<from");
          stages.back().push_back({place_of(both[0]), place_of(both[1]), at + "_" + both[0] + "_" + both[1] + "_"});
        }
      }
      explained = place_of(c.text("explain", ""));
      row = c.place("row", 0, tokens[static_cast<std::size_t>(explained)]);
    }
    Index place_of(const std::string& stream) const {
      for (std::size_t s = 0; s < names.size(); ++s)
        if (names[s] == stream) return static_cast<Index>(s);
      throw Refused("stream '" + stream + "' is not among the streams");
    }
  };

  static limpid::Correction correction(const Case& c) {
    const std::string part = c.text("part", "pos"), order = c.text("order", "part_mean");
    limpid::Correction out;
    if (part == "pos" || part == "abs" || part == "neg" || part == "signed")
      out.part = part == "pos"   ? limpid::Part::pos
                 : part == "abs" ? limpid::Part::abs
                 : part == "neg" ? limpid::Part::neg
                                 : limpid::Part::signed_;
    else
      throw Refused("part is '" + part + "', wanted pos, abs, neg or signed");
    if (order == "mean_part")
      out.order = limpid::CorrectionOrder::mean_part;
    else if (order != "part_mean")
      throw Refused("order is '" + order + "', wanted part_mean or mean_part");
    return out;
  }

  template <class S>
  static Tensors<S> by_matrices(const Plan& plan, const std::function<Mat<S>(const typename Plan::Attention&)>& abar) {
    limpid::RelevanceMatrices<S> r(plan.tokens);
    for (const auto& stage : plan.stages) {
      for (const auto& a : stage) {
        const Mat<S> map = abar(a);
        r.attention(a.to, a.from, map);
      }
      r.stage();
    }
    Tensors<S> all;
    for (std::size_t d = 0; d < plan.names.size(); ++d)
      for (std::size_t s = 0; s < plan.names.size(); ++s) {
        all["out.r_" + plan.names[d] + "_" + plan.names[s]] = r.of(static_cast<Index>(d), static_cast<Index>(s));
        if (static_cast<Index>(d) == plan.explained)
          all["out.row_" + plan.names[s]] = r.of(static_cast<Index>(d), static_cast<Index>(s)).row(plan.row);
      }
    return all;
  }

  template <class S>
  static Tensors<S> coattention(const Case& c) {
    TinyCoAttention<S> model(c);
    Tensors<S> all;
    all["out.logits"] = explained<S>(c, model);
    const Index row = c.place("row", 0, model.t.rows());
    for (const auto& [name, part] : {std::pair{"pos", limpid::Part::pos}, std::pair{"abs", limpid::Part::abs}}) {
      limpid::Correction how = correction(c);
      how.part = part;
      limpid::RelevanceMatrices<S> r({model.t.rows(), model.i.rows()});
      model.visit(
          [&](Index to, Index from, TinyAttention<S>& attention) {
            attention.report(all, true);
            const Mat<S> abar = attention.corrected(how);
            r.attention(to, from, abar);
          },
          [&] { r.stage(); });
      const std::string key = "out." + std::string(name) + ".";
      const char* const streams[] = {"t", "i"};
      for (Index d = 0; d < 2; ++d) {
        for (Index s = 0; s < 2; ++s) all[key + "r_" + streams[d] + "_" + streams[s]] = r.of(d, s);
        all[key + "row_" + streams[d]] = r.of(0, d).row(row);
      }
    }
    return all;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind == "coattn") return coattention<S>(c);
    const Plan plan(c);
    const limpid::Correction how = correction(c);
    if (kind == "stages")
      return by_matrices<S>(plan, [&](const Plan::Attention& a) {
        const Heads e(c, a.key + "a");
        const Mat<S> map = c.in<S>(a.key + "a"), g = c.in<S>(a.key + "g");
        return limpid::corrected_map<S>({map, g, e.heads}, how);
      });
    if (kind != "stages_qkv") throw Refused("kind is '" + kind + "', wanted stages or stages_qkv");

    using Op = decltype(limpid::softmax());
    struct Attention {
      Index to, from, heads;
      Mat<S> q, k, v, dout;
      limpid::Saved<Op, S> saved;
    };
    std::vector<std::vector<Attention>> stages;
    for (const auto& stage : plan.stages) {
      stages.emplace_back();
      for (const Plan::Attention& at : stage) {
        const auto packed = [&](const char* array) { return Heads(c, at.key + array).packed(c.in<S>(at.key + array)); };
        Attention a{at.to,        at.from, Heads(c, at.key + "q").heads, packed("q"), packed("k"), packed("v"),
                    packed("do"), {}};
        Mat<S> out(a.q.rows(), a.v.cols());
        limpid::forward(limpid::softmax(), limpid::qkv(a.q, a.k, a.v), out, {.heads = a.heads, .saved = &a.saved});
        stages.back().push_back(std::move(a));
      }
    }

    if (how.order == limpid::CorrectionOrder::mean_part) {  // not what the backward pass emits: rows of maps
      const auto op = limpid::softmax();
      return by_matrices<S>(plan, [&](const Plan::Attention& at) {
        for (auto& stage : stages)
          for (Attention& a : stage)
            if (&stage - &stages[0] == std::stol(at.key) && a.to == at.to && a.from == at.from) {
              Mat<S> abar(a.q.rows(), a.k.rows());
              limpid::corrected_rows(op, limpid::qkv(a.q, a.k, a.v), a.saved, a.dout, 0, abar, how);
              return abar;
            }
        throw Refused("no attention " + at.key);
      });
    }
    Tensors<S> all;
    limpid::Relevance<S> relevance(plan.tokens, how.part);
    const auto& names = plan.names;
    const auto& tokens = plan.tokens;
    for (std::size_t d = 0; d < names.size(); ++d)
      for (Index i = 0; i < tokens[d]; ++i) {
        relevance.start(i, static_cast<Index>(d));
        for (std::size_t s = stages.size(); s-- > 0;) {
          for (Attention& a : stages[s])
            limpid::backward(limpid::softmax(), limpid::qkv(a.q, a.k, a.v), a.saved, a.dout, {},
                             relevance.ask(a.to, a.from));
          relevance.stage();
        }
        for (std::size_t s = 0; s < names.size(); ++s) {
          const Mat<S>& found = relevance.of(static_cast<Index>(s));
          Mat<S>& r = all["out.r_" + names[d] + "_" + names[s]];
          if (i == 0) r.resize(tokens[d], tokens[s]);
          r.row(i) = found;
          if (static_cast<Index>(d) == plan.explained && i == plan.row) all["out.row_" + names[s]] = found;
        }
      }
    return all;
  }
};

const Registered<HeterogeneousRelevance> heterogeneous_relevance_cases;

}  // namespace golden
