// limpid: where the atoms of a product come from, read off one attention map of a published model.
// SPDX-License-Identifier: MIT
//
//     atom_mapping [REACTION ...] [--picture FILE]      reactions as SMILES, reactants>>products
//
// RXNMapper (Schwaller, Hoover, Reymond, Strobelt, Laino 2021, "Extraction of organic chemistry grammar from
// unsupervised learning of chemical reactions", Science Advances 7) is an ALBERT of 12 layers that learned to fill in
// tokens of reactions that were left out. One head of its eleventh layer looks, from an atom of the product, at the
// atom of the reactants that it was: its map is the answer. Weights, and the reactions that are mapped where none is
// given: data/rxnmapper.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limpid/explain/map.hpp>
#include <limpid/model/bert.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "smiles.hpp"

namespace {

using limpid::Index;
using limpid::Mat;

constexpr Index layer = 10, head = 5;   // counted from 0
constexpr double neighbours_more = 90;  // neighbours of mapped atoms belong together
constexpr Index most_tokens = 512;

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
class Mapper {
 public:
  explicit Mapper(const std::string& folder)
      : file_(folder + "/rxnmapper.safetensors"), albert_(file_, {.heads = 8, .layers = 12}) {
    std::ifstream vocabulary(folder + "/vocabulary.txt");
    if (!vocabulary) throw std::runtime_error("cannot read " + folder + "/vocabulary.txt");
    for (std::string token; std::getline(vocabulary, token);) ids_.emplace(token, Index(ids_.size()));
    for (const char* token : {"[CLS]", "[SEP]", "[UNK]"})
      if (!ids_.count(token)) throw std::runtime_error(folder + "/vocabulary.txt lacks " + token);
  }

  /// n x n, [CLS] first and [SEP] last.
  Mat<float> map(const Reaction& reaction) {
    std::vector<Index> ids{ids_.at("[CLS]")};
    for (const std::string& token : reaction.tokens)
      ids.push_back(ids_.count(token) ? ids_.at(token) : ids_.at("[UNK]"));
    ids.push_back(ids_.at("[SEP]"));
    albert_.forward(limpid::softmax(), ids, {}, saved_);
    auto& attention = saved_.stack.blocks[layer].attention;
    Mat<float> map(std::ssize(ids), std::ssize(ids));
    limpid::map_block(limpid::softmax(), limpid::qkv(attention.q, attention.k, attention.v), attention.attention, 0, 0,
                      map, {.head = head});
    return map;
  }

 private:
  limpid::io::Checkpoint file_;
  limpid::model::Bert<float> albert_;
  limpid::model::Bert<float>::Saved<decltype(limpid::softmax())> saved_;
  std::map<std::string, Index> ids_;
};

/// What a product atom and a reactant atom see of each other, products x reactants; 0 between different elements.
Mat<double> between(const Reaction& reaction, const Mat<float>& map) {
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
Mapping mapping_of(const Reaction& reaction, Mat<double> seen) {
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
std::string mapped_text(const Reaction& reaction, const Mapping& mapping) {
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

/// A reaction of the file that travels with the example, and what RXNMapper's own program answers.
struct Known {
  std::string text;
  double confidence = 0;
  std::vector<Index> from;
};
std::vector<Known> known_reactions(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<Known> all;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    Known known;
    words >> known.text >> known.confidence;
    for (Index r = 0; words >> r;) known.from.push_back(r);
    all.push_back(known);
  }
  return all;
}

/// The picture as a script for gnuplot, data and all: how much the atoms of the product (rows) and those of the
/// reactants see of each other, a ring round each pair that was mapped.
void write_picture(const std::string& path, const Reaction& reaction, const Mat<double>& seen, const Mapping& mapping) {
  const std::string script = path + ".gp";
  std::ofstream file(script);
  const auto labels = [&](const char* axis, const std::vector<Atom>& atoms) {
    file << "set " << axis << "tics (";
    for (std::size_t i = 0; i < atoms.size(); ++i)
      file << (i == 0 ? "" : ", ") << '"' << reaction.tokens[std::size_t(atoms[i].token)] << "\" " << i;
    file << ") scale 0 font ',9' noenhanced" << (axis[0] == 'x' ? " rotate by 90 right\n" : "\n");
  };
  const double cell = 18, wide = 150 + cell * double(seen.cols()), high = 150 + cell * double(seen.rows());
  std::string title = reaction.text;  // on two lines where one is too long
  if (title.size() > 80) title.insert(title.find(">>"), "\\n");
  file << "# limpid: drawn by gnuplot\nset terminal pngcairo size " << std::max(700.0, wide) << ',' << high
       << " font 'sans,10'\nset output '" << path << "'\nset title \"" << title
       << "\" noenhanced\nset palette defined (0 'white', 0.5 '#7fb0d8', 1 '#08306b')\n"
       << "set cblabel 'weight, both ways'\nset xlabel 'reactants (a ring: mapped)'\nset ylabel 'product'\nset key "
          "off\n";
  labels("x", reaction.reactants), labels("y", reaction.products);
  file << "set xrange [-0.5:" << double(seen.cols()) - 0.5 << "]\nset yrange [" << double(seen.rows()) - 0.5
       << ":-0.5]\n$map << end\n"
       << seen << "\nend\n$pairs << end\n";
  for (std::size_t p = 0; p < mapping.from.size(); ++p)
    if (mapping.from[p] >= 0) file << mapping.from[p] << ' ' << p << '\n';
  file << "end\nplot $map matrix with image notitle, $pairs with points pt 6 ps 1.6 lw 1.5 lc '#d62728' title "
          "'mapped'\n";
  if (!file.flush()) throw std::runtime_error("cannot write " + script);
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> reactions;
  std::string picture, folder = LIMPID_EXAMPLES "/data/rxnmapper";
  CLI::App app("Maps the atoms of reactions by one attention map of RXNMapper.");
  app.add_option("REACTION", reactions, "SMILES, reactants>>products; without any, reactions whose answers are known");
  app.add_option("--picture", picture, "PNG of the first reaction's map; FILE.gp is written, which gnuplot draws");
  app.add_option("--model", folder, "folder with rxnmapper.safetensors and vocabulary.txt");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  }
  std::vector<Known> known;
  if (reactions.empty()) {
    known = known_reactions(folder + "/reactions.tsv");
    for (const Known& k : known) reactions.push_back(k.text);
  }
  Mapper mapper(folder);
  Index same = 0;
  const std::vector<Reaction> all(reactions.begin(), reactions.end());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Reaction& reaction = all[i];
    const Mat<double> seen = between(reaction, mapper.map(reaction));
    const Mapping mapping = mapping_of(reaction, seen);
    if (i == 0 && !picture.empty()) write_picture(picture, reaction, seen, mapping);
    std::printf("%s\n  confidence %.6f", mapped_text(reaction, mapping).c_str(), mapping.confidence);
    if (!known.empty()) {
      const bool right = mapping.from == known[i].from && std::abs(mapping.confidence - known[i].confidence) < 2e-6;
      same += right;
      std::printf(", RXNMapper's own program: %.6f, %s", known[i].confidence, right ? "the same map" : "ANOTHER MAP");
    }
    std::printf("\n");
  }
  if (!known.empty()) std::printf("%ld of %ld reactions as RXNMapper maps them\n", long(same), long(std::ssize(known)));
  if (!picture.empty()) std::printf("picture: gnuplot %s.gp draws %s\n", picture.c_str(), picture.c_str());
  return same == std::ssize(known) ? 0 : 1;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "atom_mapping: %s\n", problem.what());
  return 1;
}
