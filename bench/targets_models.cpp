// limpid: the targets of whole models: beside PyTorch and ONNX Runtime, on two threads, decoding, training
// SPDX-License-Identifier: MIT
#include <limpid/model/bert.hpp>
#include <limpid/model/llama.hpp>
#include <memory>
#include <utility>

#include "../examples/vit.hpp"
#include "allocation.hpp"
#include "models.hpp"
#include "session.hpp"

namespace bench {
namespace {

using limpid::model::ModelCall;

// ---- models of random weights: speed does not depend on them ----

/// BERT of MiniLM's shape.
struct Text {
  static constexpr Index layers = 6, width = 384, heads = 12, mlp = 1536, words = 1000, places = 512;
  File file;
  limpid::model::Bert<float> model;

  /// Weights that are trained cannot be packed.
  explicit Text(bool packed) : model(made(file).checkpoint(), {.heads = heads}) {
    if (packed) model.pack();
  }
  static File& made(File& f) {
    f.add("embeddings.word_embeddings.weight", {words, width});
    f.add("embeddings.position_embeddings.weight", {places, width});
    f.add("embeddings.token_type_embeddings.weight", {2, width});
    f.norm("embeddings.LayerNorm", width);
    for (Index l = 0; l < layers; ++l) {
      const std::string block = "encoder.layer." + std::to_string(l) + ".";
      for (const char* of : {"self.query", "self.key", "self.value", "output.dense"})
        f.linear(block + "attention." + of, width, width);
      f.norm(block + "attention.output.LayerNorm", width);
      f.linear(block + "intermediate.dense", mlp, width);
      f.linear(block + "output.dense", width, mlp);
      f.norm(block + "output.LayerNorm", width);
    }
    return f;
  }
  static std::vector<Index> ids(Index count) {
    std::vector<Index> out;
    for (Index i = 0; i < count; ++i) out.push_back(i % 997);
    return out;
  }
};

/// A decoder in the way of LLaMA.
struct Decoder {
  static constexpr Index layers = 8, width = 512, heads = 8, mlp = 1376, words = 1024;
  File file;
  limpid::model::Llama<float> model;

  Decoder() : model(made(file).checkpoint(), {.heads = heads, .eps = 1e-5}) { model.pack(); }
  static File& made(File& f) {
    f.add("model.embed_tokens.weight", {words, width});
    for (Index l = 0; l < layers; ++l) {
      const std::string block = "model.layers." + std::to_string(l) + ".";
      for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
        f.add(block + norm + ".weight", {width}, true);
      for (const char* of : {"q_proj", "k_proj", "v_proj", "o_proj"})
        f.linear(block + "self_attn." + of, width, width, false);
      for (const char* of : {"gate_proj", "up_proj"}) f.linear(block + "mlp." + of, mlp, width, false);
      f.linear(block + "mlp.down_proj", width, mlp, false);
    }
    f.add("model.norm.weight", {width}, true);
    f.linear("lm_head", words, width, false);
    return f;
  }
};

// ---- the peers ----

/// peers/torch_models.py by the first Python that has torch 2.
class Models {
 public:
  static Models& instance() {
    static Models models;
    return models;
  }
  /// Of these ways to do it those that can, as candidates of that name; a line says what cannot.
  std::vector<Candidate> candidates(const std::string& model, Index tokens, const std::string& what, int threads,
                                    const std::vector<std::string>& ways) {
    std::vector<Candidate> all;
    if (!there_) return all;
    for (const std::string& how : ways) {
      const std::string question =
          model + " " + std::to_string(tokens) + " " + what + " " + how + " " + std::to_string(threads) + " ";
      if (const std::string answer = process_.ask(question + "1"); answer.rfind("no", 0) == 0)
        std::cerr << "  " << model << ", " << what << ", " << how << " is left out: " << answer.substr(2) << '\n';
      else
        all.push_back({how, [this, question](long calls) {
                         return std::strtod(process_.ask(question + std::to_string(calls)).c_str(), nullptr);
                       }});
    }
    return all;
  }

 private:
  Models() : there_(start_torch(process_, "torch_models.py")) {}

  Process process_;
  bool there_;
};

const std::vector<std::string> inference{"eager", "compiled", "onnx", "onnx-fused"}, training{"eager", "compiled"};

// ---- one thread ----

const auto attention = limpid::softmax();

void encoder_rows(Session& s) {
  const Text text(true), trained(false);
  const std::map<Index, Bound> forward{{16, {1.1, 0.8}}, {128, {0.95, 0.8}}, {512, {0.9, 0.8}}};
  for (const auto& row : forward) {
    const Index n = row.first;
    const Bound bound = row.second;
    const std::string name = "MiniLM, " + std::to_string(n) + " tokens", peer = "minilm";
    limpid::Workspace workspace;
    const std::vector<Index> ids = Text::ids(n);
    auto saved = text.model.saved(attention);
    row_over_fastest(
        s, "Whole models, one thread, time over the fastest of PyTorch and ONNX Runtime", name,
        on_this_thread(
            "ours", [&] { text.model.forward(attention, ids, {}, saved, {.keep = false, .workspace = &workspace}); }),
        Models::instance().candidates(peer, n, "forward", 1, inference), bound);
    limpid::model::ParameterGradients<float> gradients(trained.model.parameters);
    Matrix<float> d(n, Text::width);
    fill_normal(d, 1);
    row_over_fastest(s, "Forward and backward of every parameter, one thread, time over PyTorch's", name,
                     on_this_thread("ours",
                                    [&] {
                                      trained.model.forward(attention, ids, {}, saved, {.workspace = &workspace});
                                      trained.model.backward(attention, saved, limpid::View<float>(d), &gradients, {},
                                                             nullptr, {.workspace = &workspace});
                                    }),
                     Models::instance().candidates(peer, n, "training", 1, training), {0.8, 0.6});
    d.setZero(), d.row(0).setOnes();
    Matrix<float> start = Matrix<float>::Zero(1, n);
    start(0, 0) = 1;
    row_over_fastest(s, "Forward and relevance of every token, one thread, time over PyTorch's with stored maps", name,
                     on_this_thread("ours",
                                    [&] {
                                      text.model.forward(attention, ids, {}, saved, {.workspace = &workspace});
                                      limpid::model::RelevanceRow<float> why{start, Matrix<float>::Zero(1, n)};
                                      text.model.backward(attention, saved, limpid::View<float>(d), nullptr, {}, &why,
                                                          {.workspace = &workspace});
                                    }),
                     Models::instance().candidates(peer, n, "relevance", 1, {"eager"}), {0.7, 0.4});
  }
}

void image_rows(Session& s) {
  const Image image;
  const Matrix<float> pixels = image.pixels();
  const Index side = Image::across * Image::patch;
  limpid::Workspace workspace;
  auto saved = image.model.saved(attention);
  row_over_fastest(
      s, "Whole models, one thread, time over the fastest of PyTorch and ONNX Runtime", "DINOv2-small, 257 tokens",
      on_this_thread(
          "ours",
          [&] { image.model.forward(attention, pixels, side, side, saved, {.keep = false, .workspace = &workspace}); }),
      Models::instance().candidates("dinov2", 257, "forward", 1, inference), {0.9, 0.75});
}

// ---- two threads ----

/// f(workspace, executor) on two threads over one.
template <class F>
void two_over_one(Session& s, const std::string& name, F f) {
  limpid::ThreadPool pool(2);
  limpid::Workspace one, two;
  Group g;
  g.add(peak_candidate<float>(s.one));
  g.add({"peak of two", peak_candidate<float>(s.two).seconds});
  g.add(candidate("one", [&] { f(one, limpid::ExecutorRef()); }));
  g.add(candidate("two", [&] { f(two, limpid::ExecutorRef(pool)); }));
  g.run(s.effort);
  s.add("Whole models, two threads over one", name, g.over("one", "two"), Better::larger, 1.8, 1.95,
        "the peak loop " + short_number(2 * g.over("peak", "peak of two").value) + "x; " +
            short_number(1e3 * g["one"].median()) + " ms on one");
}

void thread_rows(Session& s) {
  const Text text(true);
  for (const Index n : {16, 128, 512}) {
    const std::vector<Index> ids = Text::ids(n);
    const std::string name = "MiniLM, " + std::to_string(n) + " tokens, ";
    auto saved = text.model.saved(attention);
    two_over_one(s, name + "forward", [&](limpid::Workspace& workspace, limpid::ExecutorRef executor) {
      text.model.forward(attention, ids, {}, saved, {.keep = false, .workspace = &workspace, .executor = executor});
    });
    limpid::model::ParameterGradients<float> gradients(text.model.parameters);
    Matrix<float> d(n, Text::width);
    fill_normal(d, 1);
    two_over_one(s, name + "forward and backward", [&](limpid::Workspace& workspace, limpid::ExecutorRef executor) {
      const ModelCall call{.workspace = &workspace, .executor = executor};
      text.model.forward(attention, ids, {}, saved, call);
      text.model.backward(attention, saved, limpid::View<float>(d), &gradients, {}, nullptr, call);
    });
  }
  {
    const Image image;
    const Matrix<float> pixels = image.pixels();
    const Index side = Image::across * Image::patch;
    auto saved = image.model.saved(attention);
    two_over_one(s, "DINOv2-small, 257 tokens, forward",
                 [&](limpid::Workspace& workspace, limpid::ExecutorRef executor) {
                   image.model.forward(attention, pixels, side, side, saved,
                                       {.keep = false, .workspace = &workspace, .executor = executor});
                 });
  }
  const Decoder decoder;
  const std::vector<Index> ids = Text::ids(256);
  auto saved = decoder.model.saved(limpid::model::llama_attention());
  two_over_one(s, "LLaMA-style, 256 tokens, forward", [&](limpid::Workspace& workspace, limpid::ExecutorRef executor) {
    decoder.model.forward(limpid::model::llama_attention(), ids, saved,
                          {.keep = false, .workspace = &workspace, .executor = executor});
  });
}

// ---- decoding ----

void decoder_rows(Session& s) {
  const Decoder decoder;
  const auto op = limpid::softmax(limpid::causal());
  for (const Index n : {64, 2048}) {
    limpid::Workspace workspace;
    limpid::model::LlamaCache<float> cache;
    decoder.model.step(op, Text::ids(n), cache, {.workspace = &workspace});
    // the weights that a step reads, on large pages as it has them: from others a core reads less
    limpid::detail::LargeVector<float> weights;
    weights.reserve(static_cast<std::size_t>(decoder.model.parameters.size()));
    for (const auto& one : decoder.model.parameters.list)
      if (one.name != "model.embed_tokens.weight")
        weights.insert(weights.end(), one.value.view().data,
                       one.value.view().data + one.value.rows() * one.value.cols());
    double bytes = 0;
    const auto read = [&](const float* from, Index count) {
      volatile std::uint64_t seen = read_bytes(from, static_cast<std::size_t>(count) * sizeof(float));
      static_cast<void>(seen);
      bytes += double(count) * sizeof(float);
    };
    const auto read_all = [&] {
      bytes = 0;
      read(weights.data(), static_cast<Index>(weights.size()));
      for (std::size_t l = 0; l < cache.k.size(); ++l)
        for (const auto* of : {&cache.k[l], &cache.v[l]})
          for (Index g = 0; g < Decoder::heads; ++g)
            read(of->row(g * (of->rows() / Decoder::heads)).data(), n * of->cols());
    };
    Group g;
    g.add(on_this_thread("read", read_all));
    g.add(on_this_thread("ours", [&] {
      cache.length = n;
      decoder.model.step(op, {1}, cache, {.workspace = &workspace});
    }));
    g.run(s.effort);
    s.add("Decoding one token, LLaMA-style, 8 layers x 512, share of the read bandwidth",
          "after " + std::to_string(n) + " tokens", g.over("read"), Better::larger, 0.8, 0.9,
          short_number(1e3 * g["ours"].median()) + " ms, " + short_number(bytes / mib) + " MiB, " +
              short_number(1e-9 * bytes / g["read"].median()) + " GB/s read");
  }
}

// ---- training ----

/// A step of examples/train: a batch in tasks of a few images, each by one thread.
class Training {
 public:
  static constexpr Index batch = 128, each = 16, tasks = batch / each;

  Training() : model_(training::make_vit_softmax({})), pool_(2) {
    images_.count = batch, images_.rows = images_.cols = 28;
    for (Index i = 0; i < batch * 28 * 28; ++i) images_.pixels.push_back(static_cast<std::uint8_t>(i * 37 % 251));
    for (Index i = 0; i < batch; ++i) images_.labels.push_back(static_cast<std::uint8_t>(i % 10));
    w_ = model_->parameters().started<float>(1);
    adam_.decay = 0.05;
    adam_.m = adam_.v = Matrix<float>::Zero(1, w_.cols());
    gradients_.assign(static_cast<std::size_t>(tasks), adam_.m);
    for (int worker = 0; worker < 2; ++worker) rooms_.push_back(model_->room(each));
  }
  void step() {
    const Index n = model_->shape().patches();
    pool_.run(tasks, [&](Index task, int worker) {
      training::Room<float>& room = *rooms_[static_cast<std::size_t>(worker)];
      for (Index i = 0; i < each; ++i) {
        const Index image = task * each + i;
        training::put_patches<float>(images_, image, {}, {127, 70}, 4,
                                     limpid::MutView<float>(room.patches).block(i * n, 0, n, room.patches.cols()));
        room.labels[static_cast<std::size_t>(i)] = images_.labels[static_cast<std::size_t>(image)];
      }
      model_->forward(w_, room, true);
      Index right = 0;
      training::cross_entropy<float>(room.logits, room.labels, 0.1, 1.0 / double(batch), room.dlogits, right);
      model_->backward(w_, room, gradients_[static_cast<std::size_t>(task)], {});
    });
    for (std::size_t t = 1; t < gradients_.size(); ++t) gradients_[0] += gradients_[t];
    adam_.step(model_->parameters(), w_, gradients_[0], training::clipping(gradients_[0], 1), 1e-4);
  }

 private:
  std::unique_ptr<training::Model<float>> model_;
  limpid::ThreadPool pool_;
  training::LabelledImages images_;
  Matrix<float> w_;
  training::AdamW<float> adam_;
  std::vector<Matrix<float>> gradients_;
  std::vector<std::unique_ptr<training::Room<float>>> rooms_;
};

void training_rows(Session& s) {
  Training ours;
  const std::vector<Candidate> peers =
      Models::instance().candidates("vit", Training::batch, "step", 2, bench::training);
  Group g;
  g.add(candidate("ours", [&] { ours.step(); }));
  for (const Candidate& peer : peers) g.add(peer);
  g.run(s.effort);
  for (const Candidate& peer : peers)
    s.add("Training step of a ViT (4 layers, D = 64, 4 heads, MLP 128, 50 tokens), batch 128, two threads",
          "images a second over PyTorch's, " + peer.name, g.over(peer.name), Better::larger, 2, 3.5,
          short_number(double(Training::batch) / g["ours"].median()) + " images a second, PyTorch " +
              short_number(double(Training::batch) / g[peer.name].median()));
}

void memory_rows(Session& s) {
  const Text text(false);
  const Index batch = 8, n = 128;
  const std::vector<Index> ids = Text::ids(batch * n);
  const double parameters = double(text.model.parameters.size()) * sizeof(float);
  limpid::model::ParameterGradients<float> gradients(text.model.parameters);
  Matrix<float> d(batch * n, Text::width);
  fill_normal(d, 1);
  const ModelCall call{.batch = batch};
  const std::uint64_t before = live_bytes();
  auto saved = text.model.saved(attention);
  text.model.forward(attention, ids, {}, saved, call);
  const double kept = double(live_bytes() - before);
  saved = text.model.saved(attention);
  reset_peak_live();
  text.model.forward(attention, ids, {}, saved, call);
  text.model.backward(attention, saved, limpid::View<float>(d), &gradients, {}, nullptr, call);
  const double peak = double(peak_live_bytes() - before);
  if (kept <= 0) return;  // no heap is counted here
  const double held = 2 * parameters;
  s.add("Memory of training over parameters, their gradients and saved activations", "MiniLM, 8 texts of 128 tokens",
        {(held + peak) / (held + kept), none, none}, Better::smaller, 1.1, 1.03,
        "saved " + short_number(kept / mib) + " MiB, besides " + short_number((peak - kept) / mib) + ", parameters " +
            short_number(parameters / mib));
}

}  // namespace

std::vector<Section> model_sections() {
  return {{"model forward", encoder_rows}, {"model image", image_rows},       {"model decode", decoder_rows},
          {"model memory", memory_rows},   {"model training", training_rows}, {"model threads", thread_rows}};
}

}  // namespace bench
