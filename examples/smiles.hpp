// limpid: reactions as SMILES (Weininger 1988): tokens, atoms and bonds, and the text with atoms numbered.
//
// As much of the notation as maps of atoms need: bonds say who is next to whom and how many hydrogens an atom has; no
// canonical order, no stereochemistry, no check of valences.
// SPDX-License-Identifier: MIT
#pragma once

#include <cctype>
#include <limpid/core/check.hpp>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Tokens of a reaction: bracket atoms whole, Br and Cl, >> and ring numbers of two digits (%12) as one, all else a
/// character each. Throws ShapeError naming the place of what is none.
inline std::vector<std::string> smiles_tokens(std::string_view text) {
  constexpr std::string_view single = "BCNOSPFIbcnosp().=#-+\\/:~@?>*$0123456789";
  std::vector<std::string> tokens;
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at), two = rest.substr(0, 2);
    std::size_t size = 1;
    if (rest[0] == '[')
      size = rest.find(']') + 1;  // 0 where there is none
    else if (two == "Br" || two == "Cl" || two == ">>")
      size = 2;
    else if (rest[0] == '%' && rest.size() > 2 && std::isdigit(rest[1]) && std::isdigit(rest[2]))
      size = 3;
    else if (single.find(rest[0]) == std::string_view::npos)
      size = 0;
    if (size == 0 || rest.substr(0, size) == "[]")
      limpid::detail::raise("smiles: found '" + std::string(rest.substr(0, 8)) + "' at character " +
                            std::to_string(at + 1) + " of " + std::string(text) + ", wanted an atom, a bond or a ring");
    tokens.emplace_back(rest.substr(0, size));
    at += size;
  }
  return tokens;
}

/// Whether a token is an atom.
inline bool is_atom(const std::string& token) {
  return token[0] == '[' || token[0] == '*' || std::isalpha(static_cast<unsigned char>(token[0]));
}

struct Atom {
  limpid::Index token = 0;  ///< its place among the tokens
  std::string element;      ///< C for both C and c, * for any
  bool aromatic = false;
  int hydrogens = 0;  ///< that are not written as atoms of their own
  std::vector<limpid::Index> neighbours;
};

namespace smiles {

/// "[13c@H+:5]" in parts: before the hydrogens, their number, behind them without the number of a map.
struct Bracket {
  std::string before, element, behind;
  int hydrogens = 0;
};
inline Bracket bracket(const std::string& token) {
  Bracket to;
  std::size_t at = 1;
  const auto is = [&](auto&& test) { return test(static_cast<unsigned char>(token[at])); };
  while (is([](int c) { return std::isdigit(c); })) ++at;  // isotope
  const std::size_t first = at++;
  const bool two = std::islower(static_cast<unsigned char>(token[at])) &&
                   (std::isupper(static_cast<unsigned char>(token[first])) || token.substr(first, 2) == "se" ||
                    token.substr(first, 2) == "as");
  at += two;
  to.element = token.substr(first, at - first);
  while (token[at] == '@') ++at;
  to.before = token.substr(0, at);
  if (token[at] == 'H') {
    to.hydrogens = 1, ++at;
    if (is([](int c) { return std::isdigit(c); })) to.hydrogens = token[at++] - '0';
  }
  const std::size_t end = token.find_first_of(":]", at);
  to.behind = token.substr(at, end - at);
  return to;
}

/// Hydrogens of an atom outside of brackets: what is missing to its lowest valence that is no less than its bonds.
inline int missing_hydrogens(const std::string& element, bool aromatic, int bonds) {
  static const std::map<std::string, std::vector<int>> valences = {
      {"B", {3}}, {"C", {4}}, {"N", {3, 5}}, {"O", {2}},  {"P", {3, 5}}, {"S", {2, 4, 6}},
      {"F", {1}}, {"I", {1}}, {"Cl", {1}},   {"Br", {1}}, {"*", {}}};
  for (const int valence : valences.at(element)) {
    if (aromatic) return std::max(0, valence - bonds - 1);  // one bond more is shared by the ring
    if (valence >= bonds) return valence - bonds;
  }
  return 0;
}

}  // namespace smiles

/// The atoms of one side of a reaction, tokens [begin, end): molecules are apart at '.', which '~' does not do. Throws
/// ShapeError for a bond or ring without its two atoms and for brackets that do not match.
inline std::vector<Atom> smiles_atoms(const std::vector<std::string>& tokens, limpid::Index begin, limpid::Index end) {
  using limpid::Index;
  struct Open {
    Index atom;
    char bond;
  };
  std::vector<Atom> atoms;
  std::vector<int> bonds;  // their orders, summed
  std::vector<Index> branches;
  std::map<std::string, Open> rings;
  Index last = -1;
  char bond = 0;
  const auto fail = [&](Index at, const char* wanted) {
    limpid::detail::raise("smiles: found '" + tokens[std::size_t(at)] + "' as token " + std::to_string(at + 1) +
                          ", wanted " + wanted);
  };
  const auto join = [&](Index a, Index b, char by) {
    atoms[std::size_t(a)].neighbours.push_back(b), atoms[std::size_t(b)].neighbours.push_back(a);
    const int order = by == '=' ? 2 : by == '#' ? 3 : by == '$' ? 4 : 1;
    bonds[std::size_t(a)] += order, bonds[std::size_t(b)] += order;
  };
  const auto end_of_molecule = [&](Index at) {
    if (bond || !branches.empty() || !rings.empty()) fail(at, "every bond, ring and parenthesis closed before");
    last = -1;
  };
  for (Index t = begin; t < end; ++t) {
    const std::string& token = tokens[std::size_t(t)];
    if (is_atom(token)) {
      Atom atom;
      atom.token = t;
      const smiles::Bracket inside = token[0] == '[' ? smiles::bracket(token) : smiles::Bracket{"", token, "", 0};
      atom.element = inside.element, atom.hydrogens = inside.hydrogens;
      atom.aromatic = std::islower(static_cast<unsigned char>(atom.element[0]));
      atom.element[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(atom.element[0])));
      atoms.push_back(atom), bonds.push_back(0);
      const Index own = std::ssize(atoms) - 1;
      if (last >= 0)
        join(last, own, bond);
      else if (bond)
        fail(t - 1, "an atom before it");
      last = own, bond = 0;
    } else if (token == ".") {
      end_of_molecule(t);
    } else if (token == "(") {
      if (last < 0) fail(t, "an atom before it");
      branches.push_back(last);
    } else if (token == ")") {
      if (branches.empty() || bond) fail(t, "a parenthesis that it closes");
      last = branches.back(), branches.pop_back();
    } else if (std::isdigit(static_cast<unsigned char>(token.back()))) {
      if (last < 0) fail(t, "an atom before it");
      if (const auto open = rings.find(token); open == rings.end()) {
        rings[token] = {last, bond};
      } else {
        join(open->second.atom, last, bond ? bond : open->second.bond);
        rings.erase(open);
      }
      bond = 0;
    } else {
      bond = token[0];  // of a dative bond, ->, the last sign
    }
  }
  if (end > begin) end_of_molecule(end - 1);
  for (std::size_t i = 0; i < atoms.size(); ++i)
    if (tokens[std::size_t(atoms[i].token)][0] != '[')
      atoms[i].hydrogens = smiles::missing_hydrogens(atoms[i].element, atoms[i].aromatic, bonds[i]);
  return atoms;
}

/// The text of a token with the number of a map, which atoms have in brackets with their hydrogens; 0 is none.
inline std::string numbered(const std::string& token, const Atom& atom, limpid::Index number) {
  if (number == 0) return token;
  const smiles::Bracket parts =
      token[0] == '[' ? smiles::bracket(token) : smiles::Bracket{"[" + token, "", "", atom.hydrogens};
  const int h = token[0] == '[' ? parts.hydrogens : atom.hydrogens;
  return parts.before +
         (h == 0   ? ""
          : h == 1 ? "H"
                   : "H" + std::to_string(h)) +
         parts.behind + ":" + std::to_string(number) + "]";
}
