// limpid: models that architectures.py has made, read by their config.json: the same numbers, or a refusal.
// SPDX-License-Identifier: MIT
//
//     architectures FOLDER ...     of each model the largest error over the largest entry, or why it is refused
//
// Ends with 1 where an answer or a gradient is further than 1e-12 from the reference, or what is to be refused is not.
#include <cstdio>
#include <limpid/model/bert.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/model/vit.hpp>

using namespace limpid;
using namespace limpid::model;

namespace {

Mat<double> matrix_of(const io::Checkpoint& file, const char* name, Index cols) {
  const io::Tensor tensor = file.tensor(name);
  const std::vector<double> values = tensor.values<double>();
  return Eigen::Map<const Mat<double>>(values.data(), static_cast<Index>(values.size()) / cols, cols);
}
Mat<double> score_weights(Index rows, Index cols) {
  Mat<double> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = std::cos(1 + 1.7 * static_cast<double>(i));
  return out;
}

struct Errors {
  double answer = 0, gradient = 0;
};
double apart(const Mat<double>& a, const Mat<double>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || !a.allFinite()) return 1;
  return (a - b).cwiseAbs().maxCoeff() / b.cwiseAbs().maxCoeff();
}

/// [B, 3, rows, cols] as a pixel a row.
Mat<double> pixels_of(const io::Tensor& tensor) {
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

Errors of_encoder(const std::string& folder, const io::Checkpoint& reference) {
  const Bert<double> bert(io::Checkpoint(folder), bert_options(folder + "/config.json"));
  tell_unused(bert);
  if (!reference.has("hidden")) return {};
  const Index n = reference.shape("ids")[1], batch = reference.shape("ids")[0];
  Mat<bool> keep(batch, n);
  const auto kept = reference.indices("keep");
  for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = kept[static_cast<std::size_t>(i)] != 0;
  const auto numbers = [&](const char* name) {
    const auto all = reference.indices(name);
    return std::vector<Index>(all.begin(), all.end());
  };
  const Mat<double> padding = padding_bias<double>(keep);
  const auto op = softmax(key_bias(padding));
  auto saved = bert.saved(op);
  const ModelCall call{.batch = batch};
  bert.forward(op, numbers("ids"), numbers("types"), saved, call);
  Mat<double> wanted = matrix_of(reference, "hidden", bert.width()), d = score_weights(batch * n, bert.width()),
              hidden = saved.hidden;
  for (Index i = 0; i < batch * n; ++i)
    if (!kept[static_cast<std::size_t>(i)]) wanted.row(i).setZero(), hidden.row(i).setZero(), d.row(i).setZero();
  Mat<double> dembeddings(batch * n, saved.sum.cols());
  bert.backward(op, saved, d, nullptr, dembeddings);
  return {apart(hidden, wanted), apart(dembeddings, matrix_of(reference, "gradient", saved.sum.cols()))};
}

Errors of_decoder(const std::string& folder, const io::Checkpoint& reference) {
  const Llama<double> llama(io::Checkpoint(folder), llama_options(folder + "/config.json"));
  tell_unused(llama);
  if (!reference.has("hidden")) return {};
  const auto all = reference.indices("ids");
  const std::vector<Index> ids(all.begin(), all.end());
  const ModelCall call{.batch = reference.shape("ids")[0]};
  const auto op = llama.attention();
  auto saved = llama.saved(op);
  llama.forward(op, ids, saved, call);
  const Mat<double> wanted = matrix_of(reference, "hidden", llama.vocabulary()),
                    d = score_weights(wanted.rows(), wanted.cols());
  Mat<double> dembeddings(saved.logits.rows(), llama.width());
  llama.backward(op, saved, d, nullptr, dembeddings, nullptr, call);
  const auto first = ids.begin() + saved.logits.rows() / call.batch;
  auto cache = llama.cache(op);
  const Mat<double> stepped = llama.step(op, {ids.begin(), first}, cache);
  return {std::max(apart(saved.logits, wanted), apart(stepped, wanted.topRows(stepped.rows()))),
          apart(dembeddings, matrix_of(reference, "gradient", llama.width()))};
}

Errors of_image(const std::string& folder, const io::Checkpoint& reference) {
  VitOptions options;
  if (reference.meta("heads").empty()) {
    options = vit_options(folder + "/config.json");
  } else {
    options.heads = std::stol(reference.meta("heads")), options.eps = std::stod(reference.meta("eps"));
    if (reference.meta("positions") == "antialiased") options.positions = PositionResize::antialiased;
    if (reference.meta("pool") == "mean") options.pool = VitOptions::Pool::mean;
  }
  const Vit<double> vit(io::Checkpoint(folder), options);
  tell_unused(vit);
  if (!reference.has("hidden")) return {};
  const io::Tensor image = reference.tensor("image");
  const Mat<double> pixels = pixels_of(image);
  const ModelCall call{.batch = image.shape[0]};
  auto saved = vit.saved(softmax());
  vit.forward(softmax(), pixels, image.shape[2], image.shape[3], saved, call);
  const Mat<double> tokens = matrix_of(reference, "hidden", vit.width()),
                    dtokens = score_weights(tokens.rows(), tokens.cols());
  double error = apart(saved.tokens, tokens);
  Mat<double> dlogits, dpixels(pixels.rows(), pixels.cols());
  if (reference.has("logits")) {
    const Mat<double> logits = matrix_of(reference, "logits", reference.shape("logits")[1]);
    error = std::max(error, apart(saved.logits, logits));
    dlogits = score_weights(logits.rows(), logits.cols());
  }
  vit.backward(softmax(), saved, dlogits, dtokens, nullptr, dpixels, nullptr, call);
  return {error, apart(dpixels, pixels_of(reference.tensor("gradient")))};
}

/// Whether the model of that folder is as its reference wants it.
bool check(const std::string& folder) {
  const io::Checkpoint reference(folder + "/reference.safetensors");
  const std::string kind = reference.meta("kind"), name = folder.substr(folder.find_last_of('/') + 1);
  const bool same = reference.meta("expected") == "same";
  try {
    const Errors e = kind == "encoder"   ? of_encoder(folder, reference)
                     : kind == "decoder" ? of_decoder(folder, reference)
                                         : of_image(folder, reference);
    const bool right = same && e.answer < 1e-12 && e.gradient < 1e-12;
    std::printf("%-9s %-32s answer %.1e, gradient %.1e\n",
                right  ? "same"
                : same ? "WRONG"
                       : "TAKEN",
                name.c_str(), e.answer, e.gradient);
    return right;
  } catch (const std::exception& problem) {
    std::string text = problem.what();
    if (text.rfind(folder, 0) == 0) text.erase(0, folder.size() + 1);
    std::printf("%-9s %-32s %s\n", same ? "REFUSED" : "refused", name.c_str(), text.c_str());
    return !same;
  }
}

}  // namespace

int main(int argc, char** argv) try {
  int wrong = 0;
  for (int i = 1; i < argc; ++i) wrong += check(argv[i]) ? 0 : 1;
  std::printf("%d models, %d not as wanted\n", argc - 1, wrong);
  return wrong == 0 ? 0 : 1;
} catch (const std::exception& problem) {
  std::fprintf(stderr, "architectures: %s\n", problem.what());
  return 1;
}
