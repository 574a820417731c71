// limpid: reactions as RXNMapper reads them, and where the atoms of a product come from, read off one attention map.
//
// RXNMapper (Schwaller, Hoover, Reymond, Strobelt, Laino 2021, "Extraction of organic chemistry grammar from
// unsupervised learning of chemical reactions", Science Advances 7) is an ALBERT of 12 layers that learned to fill in
// tokens of reactions that were left out. One head of its eleventh layer looks, from an atom of the product, at the
// atom of the reactants that it was: its map is the answer. Weights: data/rxnmapper.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <fstream>
#include <limpid/explain/map.hpp>
#include <limpid/model/bert.hpp>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "smiles.hpp"

namespace rxnmapper {

using limpid::Index, limpid::Mat;

constexpr Index layer = 10, head = 5;   // counted from 0
constexpr double neighbours_more = 90;  // neighbours of mapped atoms belong together
constexpr Index heads = 8, layers = 12, most_tokens = 512;

/// A reaction as the model reads it: its atoms on either side, whose tokens are counted without the one in front.
struct Reaction {
  std::string text;
  std::vector<std::string> tokens;
  std::vector<Atom> reactants, products;

  explicit Reaction(const std::string& reaction) : text(reaction), tokens(smiles_tokens(reaction)) {
    const auto arrow = std::find(tokens.begin(), tokens.end(), ">>");
    if (arrow == tokens.end() || std::find(arrow + 1, tokens.end(), ">>") != tokens.end())
      throw std::invalid_argument("found the reaction '" + reaction + "', wanted reactants>>products, with >> once");
    if (const Index count = std::ssize(tokens) + 2; count > most_tokens)
      throw std::invalid_argument("the reaction has " + std::to_string(count) + " tokens, wanted at most " +
                                  std::to_string(most_tokens));
    const Index middle = arrow - tokens.begin();
    reactants = smiles_atoms(tokens, 0, middle), products = smiles_atoms(tokens, middle + 1, std::ssize(tokens));
    if (reactants.empty() || products.empty())
      throw std::invalid_argument("found the reaction '" + reaction + "', wanted atoms on both sides");
  }
};

/// Of every product atom the reactant atom that it was, or -1, and the weight that decided; confidence: their product.
struct Mapping {
  std::vector<Index> from;
  std::vector<double> weight;
  double confidence = 1;
};

/// The model with its vocabulary, and the map of the head that decides.
struct Mapper {
  limpid::io::Checkpoint file;
  limpid::model::Bert<float> albert;
  limpid::model::Bert<float>::Saved<decltype(limpid::softmax())> saved{};
  std::map<std::string, Index> vocabulary{};

  explicit Mapper(const std::string& folder)
      : file(folder + "/rxnmapper.safetensors"), albert(file, {.heads = heads, .layers = layers}) {
    std::ifstream lines(folder + "/vocabulary.txt");
    if (!lines) throw std::runtime_error("cannot read " + folder + "/vocabulary.txt");
    for (std::string token; std::getline(lines, token);) vocabulary.emplace(token, Index(vocabulary.size()));
    for (const char* token : {"[CLS]", "[SEP]", "[UNK]", "[MASK]"})
      if (!vocabulary.count(token)) throw std::runtime_error(folder + "/vocabulary.txt lacks " + token);
  }

  /// [CLS] first and [SEP] last.
  std::vector<Index> ids(const Reaction& reaction) const {
    std::vector<Index> out{vocabulary.at("[CLS]")};
    for (const std::string& token : reaction.tokens)
      out.push_back(vocabulary.at(vocabulary.count(token) ? token : "[UNK]"));
    out.push_back(vocabulary.at("[SEP]"));
    return out;
  }
  /// n x n; all that the model made of the reaction is in saved then.
  Mat<float> map(const Reaction& reaction) {
    const std::vector<Index> all = ids(reaction);
    albert.forward(limpid::softmax(), all, {}, saved);
    auto& attention = saved.stack.blocks[layer].attention;
    Mat<float> map(std::ssize(all), std::ssize(all));
    limpid::map_block(limpid::softmax(), limpid::qkv(attention.q, attention.k, attention.v), attention.attention, 0, 0,
                      map, {.head = head});
    return map;
  }
};

/// What a product atom and a reactant atom see of each other, products x reactants; 0 between different elements.
inline Mat<double> between(const Reaction& reaction, const Mat<float>& map) {
  Mat<double> seen = Mat<double>::Zero(std::ssize(reaction.products), std::ssize(reaction.reactants));
  for (Index p = 0; p < seen.rows(); ++p)
    for (Index r = 0; r < seen.cols(); ++r) {
      const Atom &to = reaction.products[std::size_t(p)], &from = reaction.reactants[std::size_t(r)];
      const Index i = to.token + 1, j = from.token + 1;  // [CLS] comes first
      if (to.element == from.element) seen(p, r) = double(map(i, j)) + double(map(j, i));
    }
  return seen;
}

/// One pair after the other, the surest first: the largest share of a product atom's sight that one reactant atom has.
/// Neither is looked at again, and what their neighbours see of each other counts for more from then on.
inline Mapping mapping_of(const Reaction& reaction, Mat<double> seen) {
  Mapping to{std::vector<Index>(std::size_t(seen.rows()), -1), std::vector<double>(std::size_t(seen.rows()), 1), 1};
  for (Index step = 0; step < seen.rows(); ++step) {
    Index p = 0, r = 0;
    double best = -1;
    for (Index i = 0; i < seen.rows(); ++i) {
      Index j = 0;
      const double sum = seen.row(i).sum(), largest = sum == 0 ? 0 : seen.row(i).maxCoeff(&j) / sum;
      if (largest > best) best = largest, p = i, r = j;
    }
    if (best < 1e-8) break;  // no atom of its element is left
    to.from[std::size_t(p)] = r, to.weight[std::size_t(p)] = best, to.confidence *= best;
    for (const Index i : reaction.products[std::size_t(p)].neighbours)
      for (const Index j : reaction.reactants[std::size_t(r)].neighbours) seen(i, j) *= neighbours_more;
    seen.row(p).setZero(), seen.col(r).setZero();
  }
  return to;
}

/// The reaction with the atoms of the product numbered from 1, and those of the reactants as they map.
inline std::string mapped_text(const Reaction& reaction, const Mapping& mapping) {
  std::vector<std::string> tokens = reaction.tokens;
  for (std::size_t p = 0; p < reaction.products.size(); ++p) {
    const Index number = Index(p) + 1;
    const auto write = [&](const Atom& atom) {
      std::string& token = tokens[std::size_t(atom.token)];
      token = numbered(token, atom, number);
    };
    write(reaction.products[p]);
    if (mapping.from[p] >= 0) write(reaction.reactants[std::size_t(mapping.from[p])]);
  }
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

}  // namespace rxnmapper
