// limpid: models that architectures.py has made, beside what their own framework answers.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdio>
#include <limpid/model/bert.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/model/vit.hpp>
#include <string>

namespace architectures {

using namespace limpid;
using namespace limpid::model;

/// A model's file and config.json, and the file of what it has to answer, whose tensors begin with a prefix.
struct Case {
  const io::Checkpoint& file;
  std::string config;
  const io::Checkpoint& reference;
  std::string prefix = {};

  bool has(const char* name) const { return reference.has(prefix + name); }
  std::vector<Index> shape(const char* name) const { return reference.shape(prefix + name); }
  io::Tensor tensor(const char* name) const { return reference.tensor(prefix + name); }
  std::vector<Index> indices(const char* name) const {
    const auto all = reference.indices(prefix + name);
    return {all.begin(), all.end()};
  }
};

inline Mat<double> matrix_of(const Case& of, const char* name, Index cols) {
  const io::Tensor tensor = of.tensor(name);
  const std::vector<double> values = tensor.values<double>();
  return Eigen::Map<const Mat<double>>(values.data(), static_cast<Index>(values.size()) / cols, cols);
}
inline Mat<double> score_weights(Index rows, Index cols) {
  Mat<double> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = std::cos(1 + 1.7 * static_cast<double>(i));
  return out;
}

struct Errors {
  double answer = 0, gradient = 0;
};
inline double apart(const Mat<double>& a, const Mat<double>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || !a.allFinite()) return 1;
  return (a - b).cwiseAbs().maxCoeff() / b.cwiseAbs().maxCoeff();
}

/// [B, 3, rows, cols] as a pixel a row.
inline Mat<double> pixels_of(const io::Tensor& tensor) {
  const std::vector<double> values = tensor.values<double>();
  const Index batch = tensor.shape[0], channels = tensor.shape[1], pixels = tensor.shape[2] * tensor.shape[3];
  Mat<double> out(batch * pixels, channels);
  for (Index b = 0; b < batch; ++b)
    for (Index c = 0; c < channels; ++c)
      for (Index i = 0; i < pixels; ++i)
        out(b * pixels + i, c) = values[static_cast<std::size_t>((b * channels + c) * pixels + i)];
  return out;
}

template <class Model>
void tell_unused(const Model& model) {
  std::string text;
  for (const std::string& name : model.unused) text += (text.empty() ? "" : " ") + name;
  if (text.size() > 150) text = text.substr(0, 150) + " ...";
  if (!text.empty()) std::printf("  unused: %s\n", text.c_str());
}

inline Errors of_encoder(const Case& of) {
  const Bert<double> bert(of.file, bert_options(of.config));
  if (of.prefix.empty()) tell_unused(bert);
  if (!of.has("hidden")) return {};
  const Index n = of.shape("ids")[1], batch = of.shape("ids")[0];
  Mat<bool> keep(batch, n);
  const auto kept = of.indices("keep");
  for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = kept[static_cast<std::size_t>(i)] != 0;
  const Mat<double> padding = padding_bias<double>(keep);
  const auto op = softmax(key_bias(padding));
  auto saved = bert.saved(op);
  const ModelCall call{.batch = batch};
  bert.forward(op, of.indices("ids"), of.indices("types"), saved, call);
  Mat<double> wanted = matrix_of(of, "hidden", bert.width()), d = score_weights(batch * n, bert.width()),
              hidden = saved.hidden;
  for (Index i = 0; i < batch * n; ++i)
    if (!kept[static_cast<std::size_t>(i)]) wanted.row(i).setZero(), hidden.row(i).setZero(), d.row(i).setZero();
  Mat<double> dembeddings(batch * n, saved.sum.cols());
  bert.backward(op, saved, d, nullptr, dembeddings);
  return {apart(hidden, wanted), apart(dembeddings, matrix_of(of, "gradient", saved.sum.cols()))};
}

inline Errors of_decoder(const Case& of) {
  const Llama<double> llama(of.file, llama_options(of.config));
  if (of.prefix.empty()) tell_unused(llama);
  if (!of.has("hidden")) return {};
  const std::vector<Index> ids = of.indices("ids");
  const ModelCall call{.batch = of.shape("ids")[0]};
  const auto op = llama.attention();
  auto saved = llama.saved(op);
  llama.forward(op, ids, saved, call);
  const Mat<double> wanted = matrix_of(of, "hidden", llama.vocabulary()),
                    d = score_weights(wanted.rows(), wanted.cols());
  Mat<double> dembeddings(saved.logits.rows(), llama.width());
  llama.backward(op, saved, d, nullptr, dembeddings, nullptr, call);
  const auto first = ids.begin() + saved.logits.rows() / call.batch;
  auto cache = llama.cache(op);
  const Mat<double> stepped = llama.step(op, {ids.begin(), first}, cache);
  return {std::max(apart(saved.logits, wanted), apart(stepped, wanted.topRows(stepped.rows()))),
          apart(dembeddings, matrix_of(of, "gradient", llama.width()))};
}

inline Errors of_image(const Case& of) {
  VitOptions options;
  if (of.reference.meta("heads").empty()) {
    options = vit_options(of.config);
  } else {
    options.heads = std::stol(of.reference.meta("heads")), options.eps = std::stod(of.reference.meta("eps"));
    if (of.reference.meta("positions") == "antialiased") options.positions = PositionResize::antialiased;
    if (of.reference.meta("pool") == "mean") options.pool = VitOptions::Pool::mean;
  }
  const Vit<double> vit(of.file, options);
  if (of.prefix.empty()) tell_unused(vit);
  if (!of.has("hidden")) return {};
  const io::Tensor image = of.tensor("image");
  const Mat<double> pixels = pixels_of(image);
  const ModelCall call{.batch = image.shape[0]};
  auto saved = vit.saved(softmax());
  vit.forward(softmax(), pixels, image.shape[2], image.shape[3], saved, call);
  const Mat<double> tokens = matrix_of(of, "hidden", vit.width()),
                    dtokens = score_weights(tokens.rows(), tokens.cols());
  double error = apart(saved.tokens, tokens);
  Mat<double> dlogits, dpixels(pixels.rows(), pixels.cols());
  if (of.has("logits")) {
    const Mat<double> logits = matrix_of(of, "logits", of.shape("logits")[1]);
    error = std::max(error, apart(saved.logits, logits));
    dlogits = score_weights(logits.rows(), logits.cols());
  }
  vit.backward(softmax(), saved, dlogits, dtokens, nullptr, dpixels, nullptr, call);
  return {error, apart(dpixels, pixels_of(of.tensor("gradient")))};
}

}  // namespace architectures
