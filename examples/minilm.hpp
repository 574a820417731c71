// limpid: sentences as MiniLM embeds them, and how alike two are.
//
// MiniLM (Wang, Wei, Dong, Bao, Yang, Zhou 2020, arXiv 2002.10957) as sentence-transformers trained it to embed
// sentences (all-MiniLM-L6-v2): a BERT of 6 layers, the mean of its tokens made one long; the product of two embeddings
// is the cosine. Weights: examples/fetch_models minilm.
// SPDX-License-Identifier: MIT
#pragma once

#include <limpid/model/bert.hpp>
#include <stdexcept>
#include <string>

#include "wordpiece.hpp"

namespace minilm {

constexpr limpid::Index heads = 12;
constexpr std::size_t most_tokens = 256;  // as long as what it was trained on

/// A sentence in tokens. Throws std::invalid_argument where it has no words, or more tokens than the model was trained
/// on.
inline wordpiece::Text read(const std::string& sentence, const wordpiece::Tokenizer& tokenizer) {
  wordpiece::Text text = tokenizer(sentence);
  if (text.words.empty()) throw std::invalid_argument("found the sentence '" + sentence + "', wanted words");
  if (text.ids.size() > most_tokens)
    throw std::invalid_argument("a sentence has " + std::to_string(text.ids.size()) + " tokens, wanted at most " +
                                std::to_string(most_tokens));
  return text;
}

/// The weights of n tokens in their mean.
inline limpid::Mat<float> mean_of(limpid::Index n) {
  return limpid::Mat<float>::Constant(1, n, 1 / static_cast<float>(n));
}
/// The embedding of a sentence from the model's tokens.
inline limpid::Mat<float> embedding(const limpid::Mat<float>& hidden) {
  return limpid::model::unit_rows(limpid::model::pool(hidden, mean_of(hidden.rows())));
}
/// The gradient of the tokens, n x D, for embedding(hidden) . other.
inline limpid::Mat<float> likeness_backward(const limpid::Mat<float>& hidden, const limpid::Mat<float>& other) {
  const limpid::Mat<float> weights = mean_of(hidden.rows());
  return limpid::model::pool_backward(weights,
                                      limpid::model::unit_rows_backward(limpid::model::pool(hidden, weights), other));
}

}  // namespace minilm
