// limpid: `explain` of texts: what makes two sentences alike (MiniLM), and why an atom of a product is taken for that
// atom of the reactants (RXNMapper).
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <deque>
#include <filesystem>
#include <functional>
#include <optional>

#include "explain_methods.hpp"
#include "minilm.hpp"
#include "rxnmapper.hpp"

namespace text_report {

using limpid::Index, limpid::Mat, limpid::MutView, limpid::Part, limpid::View;
using report::number;
using Op = decltype(limpid::softmax());
using Bert = limpid::model::Bert<float>;

/// A part of a text in a model, and the number that is explained, which is made of its hidden tokens.
struct Reading {
  const Bert& bert;
  limpid::ExecutorRef executor;
  Mat<float> weights;  // 1 x n: of the tokens that the number is read off
  std::function<float(const Mat<float>& hidden, Mat<float>* gradient)> score;
  std::function<Mat<float>()> attention{};  // raw, of the layer behind
  Bert::Saved<Op> saved{};
  report::Taken taken{};  // by a forward call
  Mat<float> x, masked;   // the embeddings, less those of the text with every token masked; and these

  Reading(const Bert& model, limpid::ExecutorRef on, const std::vector<Index>& ids, Index mask)
      : bert(model), executor(on) {
    std::vector<Index> none(ids.size(), mask);
    none.front() = ids.front(), none.back() = ids.back();  // [CLS] and [SEP]
    bert.forward(Op(), none, {}, saved, {.executor = executor});
    masked = saved.sum;
    taken = report::taken_by([&] { bert.forward(Op(), ids, {}, saved, {.executor = executor}); });
    x = saved.sum - masked;
  }
  auto& blocks() { return saved.stack.blocks; }
  Index tokens() const { return x.rows(); }
  Mat<float> gradient() const {
    Mat<float> d;
    score(saved.hidden, &d);
    return d;
  }
  Mat<float> relevance(Part part) {
    limpid::model::RelevanceRow<float> row{weights, {}, part};
    const Mat<float> d = gradient();
    bert.backward(Op(), saved, View<float>(d), nullptr, {}, &row, {.executor = executor});
    return row.rest;
  }
  /// The score at embeddings and its gradient, as the methods of the input want it.
  auto model() const {
    return [this](View<float> at, MutView<float> d) {
      Bert::Saved<Op> own;
      const Mat<float> sums = masked + at.map();
      bert.forward(Op(), View<float>(sums), own, {.executor = executor});
      Mat<float> dhidden;
      const float y = score(own.hidden, &dhidden);
      bert.backward(Op(), own, View<float>(dhidden), nullptr, d, nullptr, {.executor = executor});
      return y;
    };
  }
};

/// The parts of a text, each explained by itself; one below the other in what a method finds.
using Readings = std::deque<Reading>;
using Method = report::Method<Readings>;

template <class F>
Method of_each(const std::string& name, const std::string& about, F f) {
  return {name, about, [f](Readings& all) {
            report::Found out;
            for (Reading& one : all) {
              const report::Found found = f(one);
              out.values.insert(out.values.end(), found.values.begin(), found.values.end());
              if (!found.remark.empty()) out.remark += (out.remark.empty() ? "" : "; ") + found.remark;
            }
            return out;
          }};
}

/// attention: where the raw attention comes from.
inline std::vector<Method> methods(const std::string& attention) {
  return {
      of_each("raw attention", attention, [](Reading& r) { return r.attention(); }),
      of_each("rollout", "where all layers together look, half of each the token itself; no gradient",
              [](Reading& r) { return report::rollout_row(Op(), r.blocks(), r.weights, r.executor); }),
      of_each("relevance", "attention where it raises the number, through all layers (gradient rollout)",
              [](Reading& r) { return r.relevance(Part::pos); }),
      of_each("relevance, signed", "the same with what lowers it",
              [](Reading& r) { return r.relevance(Part::signed_); }),
      of_each("Grad-CAM", "the tokens that the number is read off, along their mean gradient, what is positive",
              [](Reading& r) -> Mat<float> {
                const Mat<float> mean = r.gradient().colwise().mean();
                return (r.saved.hidden * mean.transpose()).cwiseMax(0.0f);
              }),
      of_each("gradient x input", "what leaving the token out ([MASK]) would take, by the slope alone",
              [](Reading& r) { return limpid::gradient_times_input(r.model(), View<float>(r.x)).tokens; }),
      of_each("integrated gradients",
              "the same summed on the way from all tokens left out, in steps until 1 % is missing",
              [](Reading& r) {
                return report::integrated_gradients(r.model(), View<float>(r.x),
                                                    Mat<float>::Zero(r.x.rows(), r.x.cols()), 512);
              }),
      of_each("SmoothGrad",
              "how strongly the number reacts to small changes: gradient squared, mean of 16 noisy copies",
              [](Reading& r) {
                const double size = std::sqrt(double(r.x.squaredNorm()) / double(r.x.size()));
                return limpid::smooth_grad(r.model(), View<float>(r.x),
                                           {.samples = 16, .sigma = 0.15 * size, .seed = 1, .squared = true})
                    .tokens;
              }),
  };
}

/// One sentence, whose vector's length is explained, or two and their cosine. Throws std::invalid_argument for a
/// sentence without words or with too many, two that are the same to the model, and a method that does not exist.
inline report::Report of_sentences(const std::vector<std::string>& sentences, const std::vector<std::string>& names,
                                   const std::string& model, const std::string& folder, limpid::ExecutorRef executor) {
  const auto chosen = report::chosen(methods("where the last layer looks, mean over tokens and heads"), names);
  const wordpiece::Tokenizer tokenizer(model + "/vocab.txt");
  std::vector<wordpiece::Text> texts;
  for (const std::string& sentence : sentences) texts.push_back(minilm::read(sentence, tokenizer));
  const bool two = texts.size() == 2;
  if (two && texts[0].ids == texts[1].ids)
    throw std::invalid_argument("found the sentence '" + sentences[1] + "' twice, wanted two that differ");
  const limpid::io::Checkpoint file(model);
  const Bert bert(file, {.heads = minilm::heads});
  report::Report r;
  Readings all;
  report::Taken forward;
  std::vector<Mat<float>> embeddings;
  for (const auto& text : texts) {
    const Reading& one = all.emplace_back(bert, executor, text.ids, tokenizer.id("[MASK]"));
    embeddings.push_back(minilm::embedding(one.saved.hidden));
    forward.milliseconds += one.taken.milliseconds;
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    Reading& one = all[i];
    one.weights = minilm::mean_of(one.tokens());
    one.attention = [&one] {
      return report::attention_row(Op(), one.blocks().back(), one.weights, report::first_numbers(minilm::heads),
                                   one.executor);
    };
    const auto other = two ? std::optional(embeddings[1 - i]) : std::nullopt;
    one.score = [other](const Mat<float>& hidden, Mat<float>* gradient) {
      const Mat<float> weights = minilm::mean_of(hidden.rows()), mean = limpid::model::pool(hidden, weights);
      if (other) {
        if (gradient) *gradient = minilm::likeness_backward(hidden, *other);
        return minilm::embedding(hidden).row(0).dot(other->row(0));
      }
      if (gradient) *gradient = limpid::model::pool_backward(weights, limpid::model::unit_rows(mean));
      return mean.norm();
    };
    r.lines.push_back({two ? "sentence " + std::to_string(i + 1) : "", i});
    for (const std::string& piece : texts[i].pieces) {
      const bool joined = piece.size() > 2 && piece.compare(0, 2, "##") == 0;
      r.lines.back().tokens.push_back({joined ? piece.substr(2) : piece, "", joined});
    }
  }
  r.title = two ? "MiniLM: what makes two sentences alike" : "MiniLM: what makes a sentence's vector long";
  r.answer = two ? "Explained: the cosine of the two sentences, " +
                       number("%.3f", double(embeddings[0].row(0).dot(embeddings[1].row(0)))) +
                       ", where 1 is the same meaning and 0 nothing in common"
                 : "Explained: the length of the sentence's vector, " +
                       number("%.3f", double(all[0].score(all[0].saved.hidden, nullptr)));
  r.more = two ? "orange: makes them more alike" : "orange: makes it longer";
  r.less = two ? "blue: makes them less alike" : "blue: makes it shorter";
  r.hint = "[CLS] and [SEP] are where a text begins and ends.";
  r.layer = bert.layers() - 1, r.unit = 1;
  std::filesystem::create_directories(folder);
  std::printf("%s\n", r.answer.c_str());
  report::run(chosen, all, r);
  for (Reading& one : all) r.looks.push_back(report::looks_of(Op(), one.blocks(), minilm::heads, one.tokens()));
  report::add_facts(r, bert.layers(), minilm::heads, forward);
  return r;
}

/// A_ij + A_ji of one head of the next layer, from what its block reads, and the gradient of that: attention, forward and
/// backward, whose values are two columns, the unit vectors of j and i.
class Sight {
 public:
  Sight(const Bert& bert, Index head, Index i, Index j) : i_(i), j_(j) {
    const auto take = [&](const std::string& end) -> Mat<float> {
      for (const auto& one : bert.parameters.list)
        if (one.name.size() > end.size() && one.name.compare(one.name.size() - end.size(), end.size(), end) == 0) {
          const auto all = one.value.view().map();
          const Index width = bert.width() / rxnmapper::heads;
          if (all.rows() == 1) return all.middleCols(head * width, width);
          return all.middleRows(head * width, width);
        }
      throw std::runtime_error("the model lacks " + end);
    };
    wq_ = take("attention.query.weight"), bq_ = take("attention.query.bias");
    wk_ = take("attention.key.weight"), bk_ = take("attention.key.bias");
  }
  float operator()(const Mat<float>& hidden, Mat<float>* gradient) const {
    const Index n = hidden.rows();
    const Mat<float> q = (hidden * wq_.transpose()).rowwise() + bq_.row(0);
    const Mat<float> k = (hidden * wk_.transpose()).rowwise() + bk_.row(0);
    Mat<float> v = Mat<float>::Zero(n, 2), out(n, 2);
    v(j_, 0) = v(i_, 1) = 1;
    limpid::Saved<Op, float> saved;
    limpid::forward(Op(), limpid::qkv(q, k, v), out, {.saved = &saved});
    if (gradient) {
      Mat<float> dout = Mat<float>::Zero(n, 2), dq(n, q.cols()), dk(n, k.cols()), dv(n, 2);
      dout(i_, 0) = dout(j_, 1) = 1;
      limpid::backward(Op(), limpid::qkv(q, k, v), saved, dout, limpid::grads(dq, dk, dv));
      *gradient = dq * wq_ + dk * wk_;
    }
    return out(i_, 0) + out(j_, 1);
  }

 private:
  Index i_, j_;
  Mat<float> wq_, bq_, wk_, bk_;
};

/// A reaction, and why an atom of its product, counted from 1, is taken for what it is mapped to; 0: the least sure one.
/// Throws std::invalid_argument and ShapeError for what is no reaction, an atom that is not there or not mapped, and a
/// method that does not exist.
inline report::Report of_reaction(const std::string& smiles, Index atom, const std::vector<std::string>& names,
                                  const std::string& model, const std::string& folder, limpid::ExecutorRef executor) {
  const auto chosen = report::chosen(methods("where both atoms look, in the head that decides"), names);
  const rxnmapper::Reaction reaction(smiles);
  rxnmapper::Mapper mapper(model);
  Mat<double> seen;
  const report::Taken forward = report::taken_by([&] { seen = rxnmapper::between(reaction, mapper.map(reaction)); });
  const rxnmapper::Mapping mapping = rxnmapper::mapping_of(reaction, seen);
  const Index atoms = std::ssize(mapping.from);
  if (atom > atoms)
    throw std::invalid_argument("--atom: found " + std::to_string(atom) + ", wanted it from 1 to " +
                                std::to_string(atoms) + ", the atoms of the product");
  Index asked = atom - 1;
  for (Index p = 0; p < atoms && atom == 0; ++p)
    if (mapping.from[std::size_t(p)] >= 0 &&
        (asked < 0 || mapping.weight[std::size_t(p)] < mapping.weight[std::size_t(asked)]))
      asked = p;
  if (asked < 0 || mapping.from[std::size_t(asked)] < 0)
    throw std::invalid_argument("found " + (asked < 0 ? "no atom" : "atom " + std::to_string(asked + 1)) +
                                " of the product mapped to none of the reactants, wanted one that is");
  const Index to = mapping.from[std::size_t(asked)];
  const Atom &product = reaction.products[std::size_t(asked)], &reactant = reaction.reactants[std::size_t(to)];
  const Index i = product.token + 1, j = reactant.token + 1;  // [CLS] comes first

  const Bert below(mapper.file, {.heads = rxnmapper::heads, .layers = rxnmapper::layer});
  Readings all;
  Reading& one = all.emplace_back(below, executor, mapper.ids(reaction), mapper.vocabulary.at("[MASK]"));
  one.weights = Mat<float>::Zero(1, one.tokens());
  one.weights(0, i) = one.weights(0, j) = 0.5f;
  one.score = Sight(below, rxnmapper::head, i, j);
  one.attention = [&] {
    return report::attention_row(Op(), mapper.saved.stack.blocks[rxnmapper::layer], one.weights, {rxnmapper::head},
                                 executor);
  };

  report::Report r;
  r.lines = {{"reactants", 0}, {"product", 0}};
  r.lines[0].tokens.push_back({"[CLS]"});
  bool behind = false;
  for (const std::string& token : reaction.tokens) {
    r.lines[behind].tokens.push_back({token, "", true});
    behind |= token == ">>";
  }
  r.lines[1].tokens.push_back({"[SEP]"});
  const Index first = std::ssize(r.lines[0].tokens);
  for (Index p = 0; p < atoms; ++p) {
    const Index from = mapping.from[std::size_t(p)];
    const std::string note = std::to_string(p + 1);
    r.lines[1].tokens[std::size_t(reaction.products[std::size_t(p)].token + 1 - first)].note = note;
    if (from >= 0) r.lines[0].tokens[std::size_t(reaction.reactants[std::size_t(from)].token + 1)].note = note;
  }
  const std::string decides =
      "head " + std::to_string(rxnmapper::head + 1) + " of layer " + std::to_string(rxnmapper::layer + 1);
  const std::string name = std::to_string(asked + 1);
  r.title = "RXNMapper: where the atoms of a product come from";
  r.answer = "Mapped: " + rxnmapper::mapped_text(reaction, mapping) + ", confidence " +
             number("%.3f", mapping.confidence) + "\nExplained: how much atom " + name + " of the product, " +
             product.element + ", and the atom of the reactants that it is mapped to see of each other in " + decides +
             ", which decides: " + number("%.2f of 2", double(one.score(one.saved.hidden, nullptr))) +
             number("; %.1f %% sure", 100 * mapping.weight[std::size_t(asked)]) +
             (atom == 0 ? ", the least of all atoms" : "");
  r.more = "orange: for this pair of atoms", r.less = "blue: against it";
  r.framed = {i, j};
  r.hint = "Layer " + std::to_string(rxnmapper::layer + 1) + ", head " + std::to_string(rxnmapper::head + 1) +
           " decides: there an atom of the product looks at what it was, of the same number. The two atoms in question "
           "have a dashed frame.";
  r.layer = rxnmapper::layer, r.head = rxnmapper::head, r.unit = i;
  std::filesystem::create_directories(folder);
  std::printf("%s\n", r.answer.c_str());
  report::run(chosen, all, r);
  r.looks = {report::looks_of(Op(), mapper.saved.stack.blocks, rxnmapper::heads, one.tokens())};
  report::add_facts(r, rxnmapper::layers, rxnmapper::heads, forward);
  return r;
}

}  // namespace text_report
