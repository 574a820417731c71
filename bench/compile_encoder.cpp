// limpid: the translation unit of somebody who uses an encoder, compiled by the bench to see how long that takes
// SPDX-License-Identifier: MIT
#ifdef LIMPID_BENCH_COMPILED  // with the optional target limpid::compiled_models
#include <limpid/compiled_models.hpp>
#endif
#include <limpid/model/bert.hpp>

/// The gradient of every parameter for one of the tokens.
void train(const limpid::model::Bert<float>& bert, const std::vector<limpid::Index>& ids, const limpid::Mat<float>& d,
           limpid::model::ParameterGradients<float>& gradients) {
  const auto op = limpid::softmax();
  auto saved = bert.saved(op);
  bert.forward(op, ids, {}, saved);
  bert.backward(op, saved, limpid::View<float>(d), &gradients);
}
limpid::model::Bert<float> load(const std::string& path) { return {limpid::io::Checkpoint(path), {.heads = 12}}; }
