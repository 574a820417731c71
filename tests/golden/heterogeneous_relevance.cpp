// limpid: golden cases of relevance across streams, kind stages_qkv: a row of R for every token of every stream.
// SPDX-License-Identifier: MIT
#include <sstream>

#include "heads.hpp"

namespace golden {

struct HeterogeneousRelevance {
  static constexpr const char* name = "heterogeneous_relevance";
  static constexpr const char* switches = "kind streams stages explain row part order";

  static std::vector<std::string> pieces(const std::string& text, char between) {
    std::vector<std::string> all;
    std::istringstream stream(text);
    for (std::string piece; std::getline(stream, piece, between);) all.push_back(piece);
    return all;
  }

  template <class S>
  static Tensors<S> library(const Case& c) {
    if (c.text("kind", "") != "stages_qkv" || c.text("order", "part_mean") != "part_mean")
      throw Refused("known is the kind stages_qkv, of order part_mean");
    const std::string part = c.text("part", "pos");
    if (part != "pos" && part != "abs") throw Refused("part is '" + part + "', wanted pos or abs");
    std::vector<std::string> names;
    std::vector<Index> tokens;
    for (const std::string& stream : pieces(c.text("streams", ""), ',')) {
      const auto both = pieces(stream, ':');
      if (both.size() != 2) throw Refused("stream '" + stream + "', wanted name:tokens");
      names.push_back(both[0]), tokens.push_back(std::stol(both[1]));
    }
    const auto place_of = [&](const std::string& stream) {
      for (std::size_t s = 0; s < names.size(); ++s)
        if (names[s] == stream) return static_cast<Index>(s);
      throw Refused("stream '" + stream + "' is not among the streams");
    };

    using Op = decltype(limpid::softmax());
    struct Attention {
      Index to, from, heads;
      Mat<S> q, k, v, dout;
      limpid::Saved<Op, S> saved;
    };
    std::vector<std::vector<Attention>> stages;
    for (const std::string& stage : pieces(c.text("stages", ""), ';')) {
      const std::string at = std::to_string(stages.size());
      stages.emplace_back();
      for (const std::string& pair : pieces(stage, ',')) {
        const auto both = pieces(pair, '<');
        if (both.size() != 2) throw Refused("stage '" + pair + "', wanted to<from");
        const std::string key = at + "_" + both[0] + "_" + both[1] + "_";
        const auto packed = [&](const char* array) { return Heads(c, key + array).packed(c.in<S>(key + array)); };
        Attention a{place_of(both[0]),
                    place_of(both[1]),
                    Heads(c, key + "q").heads,
                    packed("q"),
                    packed("k"),
                    packed("v"),
                    packed("do"),
                    {}};
        Mat<S> out(a.q.rows(), a.v.cols());
        limpid::forward(limpid::softmax(), limpid::qkv(a.q, a.k, a.v), out, {.heads = a.heads, .saved = &a.saved});
        stages.back().push_back(std::move(a));
      }
    }

    Tensors<S> all;
    const Index explained = place_of(c.text("explain", "")),
                row = c.place("row", 0, tokens[static_cast<std::size_t>(explained)]);
    limpid::Relevance<S> relevance(tokens, part == "abs" ? limpid::Part::abs : limpid::Part::pos);
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
          if (static_cast<Index>(d) == explained && i == row) all["out.row_" + names[s]] = found;
        }
      }
    return all;
  }
};

const Registered<HeterogeneousRelevance> heterogeneous_relevance_cases;

}  // namespace golden
