// limpid: where the atoms of a product come from, read off one attention map of a published model.
// SPDX-License-Identifier: MIT
//
//     atom_mapping [REACTION ...] [--picture FILE]      reactions as SMILES, reactants>>products
//
// By RXNMapper, of which rxnmapper.hpp tells. Weights, and the reactions that are mapped where none is given:
// data/rxnmapper.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "gnuplot.hpp"
#include "option_checks.hpp"
#include "rxnmapper.hpp"

namespace {

using limpid::Index;
using limpid::Mat;
using rxnmapper::Mapping;
using rxnmapper::Reaction;

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
      file << (i == 0 ? "" : ", ") << gnuplot::quoted(reaction.tokens[std::size_t(atoms[i].token)]) << ' ' << i;
    file << ") scale 0 font ',9' noenhanced" << (axis[0] == 'x' ? " rotate by 90 right\n" : "\n");
  };
  const double cell = 18, wide = 150 + cell * double(seen.cols()), high = 150 + cell * double(seen.rows());
  std::string title = reaction.text;  // on two lines where one is too long
  if (title.size() > 80) title.insert(title.find(">>"), 1, '\n');
  file << "# limpid: drawn by gnuplot\nset terminal pngcairo size " << std::max(700.0, wide) << ',' << high
       << " font 'sans,10'\nset output " << gnuplot::quoted(path) << "\nset title " << gnuplot::quoted(title)
       << " noenhanced\nset palette defined (0 'white', 0.5 '#7fb0d8', 1 '#08306b')\n"
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
  app.add_option("--picture", picture, "PNG of the first reaction's map; FILE.gp is written, which gnuplot draws")
      ->check(option::named_path());
  app.add_option("--model", folder, "folder with rxnmapper.safetensors and vocabulary.txt")
      ->check(option::named_path());
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
  rxnmapper::Mapper mapper(folder);
  Index same = 0;
  const std::vector<Reaction> all(reactions.begin(), reactions.end());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Reaction& reaction = all[i];
    const Mat<double> seen = rxnmapper::between(reaction, mapper.map(reaction));
    const Mapping mapping = rxnmapper::mapping_of(reaction, seen);
    if (i == 0 && !picture.empty()) write_picture(picture, reaction, seen, mapping);
    std::printf("%s\n  confidence %.6f", rxnmapper::mapped_text(reaction, mapping).c_str(), mapping.confidence);
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
