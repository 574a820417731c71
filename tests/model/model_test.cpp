// limpid: models from checkpoints: names of every family, positions of other sizes, batches, gradients, relevance, and
// what is refused. Numbers of the references are in golden/transformer_model.cpp.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <limpid/compiled_models.hpp>
#include <limpid/explain/explanation.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/op/nlm.hpp>
#include <limpid/op/twicing.hpp>
#include <limpid/score/biases.hpp>
#include <limpid/score/sink.hpp>
#include <optional>

#include "support/catch.hpp"
#include "support/files.hpp"

using namespace limpid;
using namespace limpid::model;
using suite::contains;

namespace {

using Shapes = std::vector<std::pair<std::string, std::vector<Index>>>;

/// A file of numbers in [-0.5, 0.5) that depend on a tensor's place in the list alone.
io::Safetensors weights(const Shapes& shapes) {
  io::Safetensors file;
  std::uint64_t state = 1;
  for (const auto& [name, shape] : shapes) {
    Index size = 1;
    for (const Index extent : shape) size *= extent;
    std::vector<double> values;
    for (Index i = 0; i < size; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      values.push_back(static_cast<double>(state >> 11) * 0x1p-53 - 0.5);
    }
    file.tensors[name] = io::Tensor::from(values, shape);
  }
  return file;
}
/// A file in memory and what reads it.
struct Memory {
  std::vector<std::byte> bytes;
  io::Checkpoint file;
  explicit Memory(const io::Safetensors& tensors)
      : bytes(io::serialize_safetensors(tensors)), file(bytes.data(), bytes.size(), "m") {}
};

/// Width 6, 2 layers, MLP 8, patch 2 of 3 channels, 5 classes.
struct VitLike {
  Index registers = 0, places = 10;  ///< a 3 x 3 grid and the class
  bool scales = false, head = true;
  bool class_token = true;
  const char* norm = "norm";
};
void add_pair(Shapes& to, const std::string& name, const std::vector<Index>& weight, Index bias) {
  to.push_back({name + ".weight", weight});
  to.push_back({name + ".bias", {bias}});
}
Shapes timm(const VitLike& like = {}) {
  Shapes out;
  add_pair(out, "patch_embed.proj", {6, 3, 2, 2}, 6);
  if (like.class_token) out.push_back({"cls_token", {1, 1, 6}});
  if (like.registers != 0) out.push_back({"reg_token", {1, like.registers, 6}});
  out.push_back({"pos_embed", {1, like.places, 6}});
  for (const std::string block : {"blocks.0.", "blocks.1."}) {
    for (const char* norm : {"norm1", "norm2"}) add_pair(out, block + norm, {6}, 6);
    add_pair(out, block + "attn.qkv", {18, 6}, 18);
    add_pair(out, block + "attn.proj", {6, 6}, 6);
    add_pair(out, block + "mlp.fc1", {8, 6}, 8);
    add_pair(out, block + "mlp.fc2", {6, 8}, 6);
    if (like.scales) out.push_back({block + "ls1.gamma", {6}});
    if (like.scales) out.push_back({block + "ls2.gamma", {6}});
  }
  add_pair(out, like.norm, {6}, 6);
  if (like.head) add_pair(out, "head", {5, 6}, 5);
  return out;
}
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}
/// A file of timm's names under those of Hugging Face.
io::Safetensors hugging_face(const io::Safetensors& file, bool dino, const std::string& prefix) {
  io::Safetensors out;
  std::vector<std::pair<std::string, std::string>> names{{"blocks.", "encoder.layer."},
                                                         {"patch_embed.proj", "embeddings.patch_embeddings.projection"},
                                                         {"cls_token", "embeddings.cls_token"},
                                                         {"reg_token", "embeddings.register_tokens"},
                                                         {"pos_embed", "embeddings.position_embeddings"},
                                                         {"attn.proj", "attention.output.dense"},
                                                         {"ls1.gamma", "layer_scale1.lambda1"},
                                                         {"ls2.gamma", "layer_scale2.lambda1"},
                                                         {"head.", "classifier."}};
  if (!dino) {
    names.push_back({"norm1", "layernorm_before"});
    names.push_back({"norm2", "layernorm_after"});
    names.push_back({"mlp.fc1", "intermediate.dense"});
    names.push_back({"mlp.fc2", "output.dense"});
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (const std::size_t at = name.find("attn.qkv."); at != std::string::npos) {
      const Mat<double> all = tensor.matrix<double>();
      const bool bias = contains(name, "bias");
      const char* roles[] = {"query", "key", "value"};
      for (Index i = 0; i < 3; ++i) {
        const Mat<double> part = all.middleRows(i * 6, 6);
        io::Tensor one = io::Tensor::from(part);
        if (bias) one.shape = {6};
        out.tensors[prefix + replaced(name.substr(0, at), "blocks.", "encoder.layer.") + "attention.attention." +
                    roles[i] + (bias ? ".bias" : ".weight")] = one;
      }
      continue;
    }
    std::string to = name;
    for (const auto& [a, b] : names) to = replaced(to, a, b);
    if (to == "norm.weight" || to == "norm.bias") to = "layer" + to;
    out.tensors[(to.rfind("classifier", 0) == 0 ? "" : prefix) + to] = tensor;
  }
  return out;
}

Mat<double> some(Index rows, Index cols, double start) {
  Mat<double> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = std::sin(start + 1.7 * static_cast<double>(i));
  return out;
}
double inner(const Mat<double>& a, const Mat<double>& b) { return (a.array() * b.array()).sum(); }

/// Every parameter moved along a direction: the change of a sum against the gradients. value(model) is the sum.
template <class Model, class Value>
void check_gradients(Model& model, const ParameterGradients<double>& gradients, Value&& value) {
  REQUIRE(gradients.list.size() == model.parameters.list.size());
  for (std::size_t p = 0; p < gradients.list.size(); ++p) {
    Parameter<double>& one = model.parameters.list[p];
    INFO(one.name);
    const io::Weights<double> before = one.value;
    const Mat<double> along = some(before.rows(), before.cols(), 0.3 * static_cast<double>(p));
    constexpr double step = 1e-5;
    double sums[2];
    for (int side = 0; side < 2; ++side) {
      const Mat<double> moved = before.view().map() + (side == 0 ? -step : step) * along;
      one.value = moved;
      sums[side] = value(model);
    }
    one.value = before;
    CHECK((sums[1] - sums[0]) / (2 * step) == Approx(inner(along, gradients.list[p])).epsilon(1e-7).margin(1e-7));
  }
}

/// Width 6, 2 layers, MLP 8, 11 words, 7 places.
Shapes bert_like() {
  Shapes out{{"embeddings.word_embeddings.weight", {11, 6}},
             {"embeddings.position_embeddings.weight", {7, 6}},
             {"embeddings.token_type_embeddings.weight", {2, 6}}};
  add_pair(out, "embeddings.LayerNorm", {6}, 6);
  for (const std::string block : {"encoder.layer.0.", "encoder.layer.1."}) {
    for (const char* name :
         {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
      add_pair(out, block + name, {6, 6}, 6);
    add_pair(out, block + "intermediate.dense", {8, 6}, 8);
    add_pair(out, block + "output.dense", {6, 8}, 6);
    for (const char* name : {"attention.output.LayerNorm", "output.LayerNorm"}) add_pair(out, block + name, {6}, 6);
  }
  return out;
}
/// The same with one block and embeddings of 4.
Shapes albert_like() {
  const std::string block = "albert.encoder.albert_layer_groups.0.albert_layers.0.";
  Shapes out{{"albert.embeddings.word_embeddings.weight", {11, 4}},
             {"albert.embeddings.position_embeddings.weight", {7, 4}},
             {"albert.embeddings.token_type_embeddings.weight", {2, 4}}};
  add_pair(out, "albert.embeddings.LayerNorm", {4}, 4);
  add_pair(out, "albert.encoder.embedding_hidden_mapping_in", {6, 4}, 6);
  add_pair(out, block + "ffn", {8, 6}, 8);
  add_pair(out, block + "ffn_output", {6, 8}, 6);
  for (const char* name : {"attention.query", "attention.key", "attention.value", "attention.dense"})
    add_pair(out, block + name, {6, 6}, 6);
  for (const char* name : {"attention.LayerNorm", "full_layer_layer_norm"}) add_pair(out, block + name, {6}, 6);
  return out;
}
/// Width 8, 4 heads of 2 columns over 2 key heads, 2 layers, MLP 10, 11 words; untied with biases, normed heads and
/// gates.
Shapes llama_like(bool tied) {
  Shapes out{{"model.embed_tokens.weight", {11, 8}}};
  for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
    const std::string attention = block + "self_attn.";
    out.push_back({block + "input_layernorm.weight", {8}});
    out.push_back({attention + "q_proj.weight", {8, 8}});
    out.push_back({attention + "k_proj.weight", {4, 8}});
    out.push_back({attention + "v_proj.weight", {4, 8}});
    out.push_back({attention + "o_proj.weight", {8, 8}});
    if (!tied) {
      out.push_back({attention + "q_proj.bias", {8}});
      out.push_back({attention + "k_proj.bias", {4}});
      out.push_back({attention + "v_proj.bias", {4}});
      out.push_back({attention + "q_norm.weight", {2}});
      out.push_back({attention + "k_norm.weight", {2}});
      out.push_back({attention + "g_proj.weight", {4, 8}});  // a gate a head
      out.push_back({attention + "g_proj.bias", {4}});
    }
    out.push_back({block + "post_attention_layernorm.weight", {8}});
    out.push_back({block + "mlp.gate_proj.weight", {10, 8}});
    out.push_back({block + "mlp.up_proj.weight", {10, 8}});
    out.push_back({block + "mlp.down_proj.weight", {8, 10}});
    if (!tied) {
      out.push_back({block + "mlp.gate_proj.bias", {10}});
      out.push_back({block + "mlp.up_proj.bias", {10}});
      out.push_back({block + "mlp.down_proj.bias", {8}});
    }
  }
  out.push_back({"model.norm.weight", {8}});
  if (!tied) out.push_back({"lm_head.weight", {11, 8}});
  return out;
}
const std::vector<Index> ids{3, 10, 0, 3, 7, 1, 1, 9}, types{0, 0, 1, 1, 0, 1, 1, 1};

}  // namespace

TEST_CASE("vit: the names of timm, of DINOv2 and of Hugging Face's ViT say the same", "[model]") {
  const Mat<double> image = some(36, 3, 0);
  const auto run = [&](const io::Safetensors& tensors) {
    const Memory memory(tensors);
    const Vit<double> vit(memory.file, {.heads = 2});
    CHECK(vit.unused.empty());
    CHECK(vit.layers() == 2);
    auto saved = vit.saved(softmax());
    vit.forward(softmax(), image, 6, 6, saved);
    return saved;
  };
  const io::Safetensors file = weights(timm());
  const auto wanted = run(file);
  CHECK(wanted.tokens.rows() == 10);
  CHECK(wanted.logits.cols() == 5);
  CHECK(run(hugging_face(file, false, "vit.")).logits == wanted.logits);
  CHECK(run(hugging_face(file, false, "")).logits == wanted.logits);
  CHECK(run(hugging_face(file, true, "dinov2.")).logits == wanted.logits);
  const io::Safetensors with = weights(timm({.registers = 2, .scales = true, .head = false}));
  const auto scaled = run(with);
  CHECK(scaled.tokens.rows() == 12);
  CHECK(scaled.logits.cols() == 0);
  CHECK(run(hugging_face(with, true, "")).tokens == scaled.tokens);
  // a mask token is known; what is not known is told
  io::Safetensors more = file;
  more.tensors["mask_token"] = more.tensors["fc_norm.weight"] = more.tensors["norm.bias"];
  const Memory memory(more);
  CHECK(Vit<double>(memory.file, {.heads = 2}).unused == std::vector<std::string>{"fc_norm.weight"});
}

TEST_CASE("vit: weights are read where they lie, and a model is written as it was read", "[model]") {
  const io::Safetensors file = weights(timm({.registers = 1, .scales = true}));
  const Memory memory(file);
  const Vit<double> vit(memory.file, {.heads = 3});
  for (const auto& one : vit.parameters.list) CHECK(one.value.in_place());
  const io::Safetensors written = vit.parameters.file(io::DType::f64);
  CHECK(written.tensors.size() == file.tensors.size());
  Index count = 0;
  for (const auto& [name, tensor] : file.tensors) {
    CHECK(written.at(name).shape == tensor.shape);
    CHECK(written.at(name).bytes == tensor.bytes);
    count += tensor.size();
  }
  CHECK(vit.parameters.size() == count);
  CHECK(vit.parameters.file(io::DType::bf16).at("cls_token").bytes.size() == 12);
}

TEST_CASE("vit: every gradient, with registers, layer scale and positions of another size", "[model]") {
  for (const PositionResize rule : {PositionResize::bicubic, PositionResize::dinov2, PositionResize::antialiased})
    for (const Index places : {9, 10}) {
      const Memory memory(weights(timm({.registers = 2, .places = places, .scales = true})));
      VitOptions options;
      options.heads = 2, options.positions = rule;
      if (places == 9) options.pool = VitOptions::Pool::mean;
      Vit<double> vit(memory.file, options);
      const auto op = twicing();
      const Mat<double> image = some(2 * 4 * 10, 3, 1);  // two images of 2 x 5 patches
      auto saved = vit.saved(op);
      const ModelCall call{.batch = 2};
      vit.forward(op, image, 4, 10, saved, call);
      const Mat<double> dlogits = some(2, 5, 2), dtokens = some(saved.tokens.rows(), 6, 3);
      const auto value = [&](const Mat<double>& pixels) {
        auto other = vit.saved(op);
        vit.forward(op, pixels, 4, 10, other, {.batch = 2, .keep = false});
        return inner(other.logits, dlogits) + inner(other.tokens, dtokens);
      };
      ParameterGradients<double> gradients(vit.parameters);
      Mat<double> dimage(image.rows(), 3);
      vit.backward(op, saved, dlogits, dtokens, &gradients, dimage, nullptr, call);
      check_gradients(vit, gradients, [&](const auto&) { return value(image); });
      const Mat<double> along = some(image.rows(), 3, 4), up = image + 1e-5 * along, down = image - 1e-5 * along;
      CHECK((value(up) - value(down)) / 2e-5 == Approx(inner(along, dimage)).epsilon(1e-7));
      // a second backward pass adds to the gradients
      const ParameterGradients<double> once = gradients;
      vit.backward(op, saved, dlogits, dtokens, &gradients, dimage, nullptr, call);
      for (std::size_t p = 0; p < once.list.size(); ++p)
        CHECK((gradients.list[p] - 2 * once.list[p]).norm() <= 1e-12 * (1 + once.list[p].norm()));
      gradients.set_zero();
      CHECK(gradients.list.front().isZero(0));
    }
}

TEST_CASE("vit: models that pool patches: a norm after the mean, no class token, grids that are no squares",
          "[model]") {
  struct Kind {
    bool class_token;
    Index registers, places;
    const char* norm;
  };
  // of 2 x 3 patches; 4 places of 1 x 3 are no square without their class
  for (const Kind& kind : {Kind{true, 0, 7, "fc_norm"}, Kind{false, 0, 6, "fc_norm"}, Kind{false, 2, 6, "norm"},
                           Kind{true, 2, 6, "norm"}}) {
    const Memory memory(weights(timm(
        {.registers = kind.registers, .places = kind.places, .class_token = kind.class_token, .norm = kind.norm})));
    Vit<double> vit(memory.file, {.heads = 2, .pool = VitOptions::Pool::mean, .grid_rows = 2, .grid_cols = 3});
    CHECK(vit.unused.empty());
    const Index first = kind.registers + (kind.class_token ? 1 : 0);
    CHECK(vit.first_patch() == first);
    const auto op = softmax();
    const ModelCall call{.batch = 2};
    const Mat<double> image = some(2 * 4 * 6, 3, 1), dlogits = some(2, 5, 2), dtokens = some(2 * (first + 6), 6, 3);
    auto saved = vit.saved(op);
    vit.forward(op, image, 4, 6, saved, call);
    // the head reads the mean of the patches, normed before it or after
    for (Index b = 0; b < 2; ++b) {
      Mat<double> pooled = Mat<double>::Zero(1, 6);
      for (Index i = 0; i < 6; ++i) pooled += saved.tokens.row(b * (first + 6) + first + i) / 6;
      if (kind.norm != std::string("norm")) {
        Mat<double> normed(1, 6);
        const auto gamma = memory.file.row<double>("fc_norm.weight"), beta = memory.file.row<double>("fc_norm.bias");
        layer_norm(pooled, gamma.view(), beta.view(), normed, {.eps = 1e-6});
        pooled = normed;
      }
      CHECK((saved.pooled.row(b) - pooled).norm() <= 1e-14);
    }
    const auto value = [&](const Mat<double>& pixels) {
      auto other = vit.saved(op);
      vit.forward(op, pixels, 4, 6, other, {.batch = 2, .keep = false});
      return inner(other.logits, dlogits) + inner(other.tokens, dtokens);
    };
    ParameterGradients<double> gradients(vit.parameters);
    Mat<double> dimage(image.rows(), 3);
    vit.backward(op, saved, dlogits, dtokens, &gradients, dimage, nullptr, call);
    check_gradients(vit, gradients, [&](const auto&) { return value(image); });
    const Mat<double> along = some(image.rows(), 3, 4), up = image + 1e-5 * along, down = image - 1e-5 * along;
    CHECK((value(up) - value(down)) / 2e-5 == Approx(inner(along, dimage)).epsilon(1e-7));
    // relevance starts at the patches alone
    const auto why = vit.explain(op, saved, 1, call);
    CHECK(why.start.leftCols(first).isZero(0));
    CHECK(why.start.rightCols(6).isConstant(1.0 / 6));
  }
  // a grid that is told is not guessed: 4 places are 1 x 3 and the class, or 2 x 2
  const Memory memory(weights(timm({.places = 4})));
  const Mat<double> image = some(2 * 6, 3, 1);
  const auto logits = [&](const VitOptions& options) {
    const Vit<double> vit(memory.file, options);
    auto saved = vit.saved(softmax());
    vit.forward(softmax(), image, 2, 6, saved);
    return saved.logits;
  };
  CHECK((logits({.heads = 2}) - logits({.heads = 2, .grid_rows = 1, .grid_cols = 3})).norm() > 1e-3);
  CHECK(logits({.heads = 2}) == logits({.heads = 2, .grid_rows = 2, .grid_cols = 2}));
}

TEST_CASE("models: items of a batch come out as alone, and what is not kept changes no bit", "[model]") {
  const Memory memory(weights(timm()));
  VitOptions options;
  options.heads = 2, options.pool = VitOptions::Pool::mean;
  const Vit<double> vit(memory.file, options);
  const Mat<double> image = some(72, 3, 5);
  auto both = vit.saved(softmax()), one = vit.saved(softmax());
  vit.forward(softmax(), image, 6, 6, both, {.batch = 2});
  const RelevanceRow<double> why = vit.explain(softmax(), both, 1);
  for (Index b = 0; b < 2; ++b) {
    const Mat<double> alone = image.middleRows(b * 36, 36);
    vit.forward(softmax(), alone, 6, 6, one);
    CHECK((one.logits - both.logits.row(b)).cwiseAbs().maxCoeff() < 1e-14);
    const RelevanceRow<double> its = vit.explain(softmax(), one, 1);
    CHECK((its.rest - why.rest.row(b)).cwiseAbs().maxCoeff() < 1e-14);
    CHECK(its.rest.minCoeff() >= 0);
    CHECK(its.rest.maxCoeff() > 0);
    CHECK(its.start(0, 0) == 0);
    CHECK(its.start(0, 4) == 1.0 / 9);
    CHECK(its.row() == its.start + its.rest);
    const Mat<double> logits = one.logits;
    vit.forward(softmax(), alone, 6, 6, one, {.keep = false});
    CHECK(one.logits == logits);
    CHECK(contains(suite::error_of([&] { vit.explain(softmax(), one, 1); }), "wanted a forward call with keep"));
  }
}

TEST_CASE("positions: a table resized as the checkpoint's own programs do it", "[model]") {
  // PyTorch 2.15: interpolate(sin(0.7 arange(25)) as 5 x 5, size (3, 7), bicubic, align_corners False); the same with
  // antialias; with scale_factor (3.1 / 5, 7.1 / 5).
  const std::vector<std::pair<PositionResize, std::vector<double>>> wanted{
      {PositionResize::bicubic,
       {-0.184533632166296, -0.053915469618272, 0.138349747697423,  0.263866500607806,  0.337775941220596,
        0.312724938108012,  0.24951880289425,   0.630916907321496,  0.863148817741757,  1.012552477377402,
        0.854598908088281,  0.529501905899179,  -0.024928396942734, -0.420445870573311, 0.328598826663888,
        0.251009097741584,  0.092859097555574,  -0.068725180915082, -0.216868109816832, -0.318417152585691,
        -0.345524497807397}},
      {PositionResize::antialiased,
       {-0.1380178772357146,    -0.056233100736464245, 0.0603438677051731,   0.15680366458353706,
        0.21310930971792588,    0.20902251336321578,   0.1804534107809445,   0.04055486189345045,
        0.05413179744290126,    0.06331609844513356,   0.054349132090741235, 0.03146448528595125,
        -0.0011740302186911931, -0.025846440224120533, 0.20402327882850188,  0.1443357563082036,
        0.042706773082101517,   -0.06834728420443958,  -0.1618990259135815,  -0.21093331597599135,
        -0.2225199987826306}},
      {PositionResize::dinov2,
       {-0.17121996838684692, -0.019627714857833916, 0.19731443928810208,  0.32615395309984974,  0.39772077294332076,
        0.3503003963292772,   0.2564820529838465,    0.6448088865084293,   0.8495518245720095,   0.9744683148550675,
        0.8192731655556341,   0.4972940205776456,    -0.03078243871132125, -0.42860431938759885, 0.002090555389678317,
        -0.0935644717642002,  -0.21012697042838901,  -0.251611043929598,   -0.24614032324433474, -0.16009887656785846,
        -0.06811173516285687}},
  };
  Mat<double> table(25, 2);
  for (Index i = 0; i < 25; ++i) table(i, 0) = std::sin(0.7 * static_cast<double>(i)), table(i, 1) = 1;
  for (const auto& [rule, numbers] : wanted) {
    const Mat<double> out = resize_positions<double>(rule, table, 5, 5, 3, 7);
    REQUIRE(out.rows() == 21);
    for (Index i = 0; i < 21; ++i) {
      CHECK(std::abs(out(i, 0) - numbers[static_cast<std::size_t>(i)]) < 1e-12);
      CHECK(std::abs(out(i, 1) - 1) < 1e-14);  // weights sum to 1
    }
    CHECK(resize_positions<double>(rule, table, 5, 5, 5, 5) == table);
    const Mat<double> d = some(21, 2, 1), back = resize_positions_backward<double>(rule, d, 5, 5, 3, 7);
    CHECK(inner(back, table) == Approx(inner(d, out)));
  }
  CHECK(contains(suite::error_of([&] { resize_positions<double>(PositionResize::bicubic, table, 4, 5, 3, 7); }),
                 "the table is 25 x 2, wanted 20 rows, for grids of 4 x 5 and 3 x 7"));
  CHECK(contains(suite::error_of([&] { resize_positions<double>(PositionResize::bicubic, table, 5, 5, 0, 7); }),
                 "resize_positions: "));
}

TEST_CASE("pooling: means of kept tokens, unit rows, and their gradients", "[model]") {
  Mat<bool> keep(2, 3);
  keep << true, false, true, false, false, true;
  const Mat<double> weights = mean_weights<double>(keep);
  Mat<double> wanted(2, 3);
  wanted << 0.5, 0, 0.5, 0, 0, 1;
  CHECK(weights == wanted);
  Mat<double> x = some(6, 4, 0);
  x.row(1).setConstant(std::nan(""));  // padding is not looked at
  const Mat<double> pooled = pool(x, weights), unit = unit_rows(pooled), d = some(2, 4, 2);
  CHECK((pooled.row(0) - (x.row(0) + x.row(2)) / 2).norm() < 1e-15);
  CHECK(pooled.row(1) == x.row(5));
  CHECK(unit.row(1).norm() == Approx(1));
  const Mat<double> dpooled = unit_rows_backward(pooled, d), dx = pool_backward(weights, dpooled);
  const Mat<double> along = some(6, 4, 4);
  const auto value = [&](double step) {
    const Mat<double> moved = x + step * along;
    return inner(unit_rows(pool(moved, weights)), d);
  };
  CHECK((value(1e-6) - value(-1e-6)) / 2e-6 == Approx(inner(along, dx)).epsilon(1e-8));
  CHECK(dx.row(1).isZero(0));
  const Mat<double> nothing = Mat<double>::Zero(1, 4);
  CHECK(unit_rows(nothing) == nothing);
  CHECK(unit_rows_backward<double>(nothing, some(1, 4, 2)).allFinite());
  keep(1, 2) = false;
  CHECK(contains(suite::error_of([&] { mean_weights<double>(keep); }), "item 1 keeps no token"));
  CHECK(contains(suite::error_of([&] { pool(x, nothing); }), "pool: tokens are 6 x 4 and weights 1 x 4"));
}

TEST_CASE("bert: prefixes and the names that were released first", "[model]") {
  const io::Safetensors file = weights(bert_like());
  const auto run = [&](const io::Safetensors& tensors) {
    const Memory memory(tensors);
    const Bert<double> bert(memory.file, {.heads = 3});
    auto saved = bert.saved(softmax());
    bert.forward(softmax(), ids, types, saved, {.batch = 2});
    return std::pair(saved.hidden, bert.unused);
  };
  const auto wanted = run(file);
  CHECK(wanted.second.empty());
  io::Safetensors released;
  for (const auto& [name, tensor] : file.tensors)
    released.tensors["bert." + replaced(replaced(name, "LayerNorm.weight", "LayerNorm.gamma"), "LayerNorm.bias",
                                        "LayerNorm.beta")] = tensor;
  released.tensors["bert.pooler.dense.bias"] = file.at("embeddings.LayerNorm.bias");
  released.tensors["bert.embeddings.position_ids"] = io::Tensor::from(std::vector<std::int64_t>{0, 1}, {1, 2});
  const auto found = run(released);
  CHECK(found.first == wanted.first);
  CHECK(found.second == std::vector<std::string>{"bert.pooler.dense.bias"});
}

TEST_CASE("bert: the names of DistilBERT, which has no types, and of ELECTRA, whose embeddings may be mapped",
          "[model]") {
  const auto run = [](const Bert<double>& bert, const std::vector<Index>& kinds) {
    auto saved = bert.saved(softmax());
    bert.forward(softmax(), ids, kinds, saved, {.batch = 2});
    return saved.hidden;
  };
  io::Safetensors file = weights(bert_like()), distilled, electra;
  file.tensors["embeddings.token_type_embeddings.weight"] = io::Tensor::from(Mat<double>(Mat<double>::Zero(2, 6)));
  const std::vector<std::pair<std::string, std::string>> names{{"encoder.layer.", "transformer.layer."},
                                                               {"attention.self.query", "attention.q_lin"},
                                                               {"attention.self.key", "attention.k_lin"},
                                                               {"attention.self.value", "attention.v_lin"},
                                                               {"attention.output.dense", "attention.out_lin"},
                                                               {"attention.output.LayerNorm", "sa_layer_norm"},
                                                               {"intermediate.dense", "ffn.lin1"},
                                                               {"output.dense", "ffn.lin2"},
                                                               {"output.LayerNorm", "output_layer_norm"}};
  for (const auto& [name, tensor] : file.tensors) {
    std::string to = name;
    for (const auto& [a, b] : names) to = replaced(to, a, b);
    if (!contains(name, "token_type")) distilled.tensors["distilbert." + to] = tensor;
    electra.tensors["electra." + name] = tensor;
  }
  const Memory plain(file), of_distilled(distilled), of_electra(electra);
  const Mat<double> wanted = run({plain.file, {.heads = 2}}, {});
  Bert<double> distil(of_distilled.file, {.heads = 2, .layers = 2});
  CHECK(distil.unused.empty());
  CHECK(run(distil, {}) == wanted);
  CHECK(run(distil, std::vector<Index>(8, 0)) == wanted);
  CHECK(suite::error_of([&] { run(distil, types); }) == "bert: types[2] is 1, wanted it in [0, 1), the types");
  CHECK(run({of_electra.file, {.heads = 2}}, types) == wanted);
  const Mat<double> d = some(8, 6, 1);
  const auto gradients_of = [&](Bert<double>& bert) {
    auto saved = bert.saved(softmax());
    bert.forward(softmax(), ids, {}, saved, {.batch = 2});
    ParameterGradients<double> gradients(bert.parameters);
    bert.backward(softmax(), saved, d, &gradients, {}, nullptr, {.batch = 2});
    check_gradients(bert, gradients, [&](const auto& model) { return inner(run(model, {}), d); });
  };
  gradients_of(distil);
  // the same from embeddings of other widths: a map that puts zeros behind them
  Mat<double> map = Mat<double>::Zero(6, 6);
  for (Index i = 0; i < 6; ++i) map(i, 5 - i) = 1;
  const auto turned = [&](const std::string& name) {
    io::Tensor& one = electra.tensors["electra.embeddings." + name];
    std::vector<double> values = one.values<double>();
    for (auto row = values.begin(); row != values.end(); row += 6) std::reverse(row, row + 6);
    one = io::Tensor::from(values, one.shape);
  };
  for (const char* name :
       {"word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"})
    turned(name);
  electra.tensors["electra.embeddings_project.weight"] = io::Tensor::from(map);
  electra.tensors["electra.embeddings_project.bias"] = io::Tensor::from(std::vector<double>(6, 0), {6});
  const Memory of_mapped(electra);
  Bert<double> mapped(of_mapped.file, {.heads = 2});
  CHECK(mapped.unused.empty());
  CHECK((run(mapped, {}) - wanted).cwiseAbs().maxCoeff() < 1e-13);
  gradients_of(mapped);
  electra.tensors.erase("electra.embeddings_project.bias");
  const Memory half(electra);
  CHECK(contains(suite::error_of([&] { Bert<double>(half.file, {.heads = 2}); }),
                 "lacks 1 of 39 tensors: 'electra.embeddings_project.bias'"));
}

TEST_CASE("vit: a distilled DeiT, two heads, and a head that reads the mean of the patches besides", "[model]") {
  const Mat<double> image = some(72, 3, 0);
  const ModelCall call{.batch = 2};
  const auto run = [&](const Vit<double>& vit) {
    auto saved = vit.saved(softmax());
    vit.forward(softmax(), image, 6, 6, saved, call);
    return saved;
  };
  const auto every_gradient = [&](Vit<double>& vit) {
    const auto saved_of = run(vit);
    auto saved = saved_of;
    const Mat<double> dlogits = some(2, 5, 2), dtokens = some(saved.tokens.rows(), 6, 3);
    ParameterGradients<double> gradients(vit.parameters);
    vit.backward(softmax(), saved, dlogits, dtokens, &gradients, {}, nullptr, call);
    check_gradients(vit, gradients, [&](const auto& model) {
      const auto other = run(model);
      return inner(other.logits, dlogits) + inner(other.tokens, dtokens);
    });
  };
  // the same as a register that has its place added already
  const io::Safetensors with_register = weights(timm({.registers = 1}));
  io::Safetensors file = with_register;
  const Mat<double> token = file.at("reg_token").matrix<double>(), places = file.at("pos_embed").matrix<double>();
  Mat<double> more(11, 6);
  more << places.row(0), some(1, 6, 8), places.bottomRows(9);
  const Mat<double> distilled = token - more.row(1);
  file.tensors.erase("reg_token");
  file.tensors["dist_token"] = io::Tensor::from(distilled), file.tensors["pos_embed"] = io::Tensor::from(more);
  const Memory plain(with_register), of_one(file);
  const auto wanted = run({plain.file, {.heads = 2}});
  const Vit<double> one(of_one.file, {.heads = 2});
  CHECK(one.first_patch() == 2);
  CHECK(one.unused.empty());
  CHECK((run(one).tokens - wanted.tokens).cwiseAbs().maxCoeff() < 1e-13);
  CHECK((run(one).logits - wanted.logits).cwiseAbs().maxCoeff() < 1e-13);
  // two heads
  const Mat<double> second = some(5, 6, 4);
  file.tensors["head_dist.weight"] = io::Tensor::from(second);
  file.tensors["head_dist.bias"] = io::Tensor::from(std::vector<double>{1, 2, 3, 4, 5}, {5});
  const Memory of_two(file);
  Vit<double> two(of_two.file, {.heads = 2});
  CHECK(two.classes() == 5);
  auto saved = run(two);
  CHECK(saved.pooled.cols() == 12);
  for (Index b = 0; b < 2; ++b) {
    const Mat<double> its =
        wanted.tokens.row(11 * b + 1) * second.transpose() + (Mat<double>(1, 5) << 1, 2, 3, 4, 5).finished();
    CHECK((saved.logits.row(b) - (wanted.logits.row(b) + its) / 2).cwiseAbs().maxCoeff() < 1e-13);
  }
  CHECK(two.explain(softmax(), saved, 1, call).start.leftCols(3) ==
        (Mat<double>(2, 3) << 0.5, 0.5, 0, 0.5, 0.5, 0).finished());
  every_gradient(two);
  // Hugging Face's names: of a student's head, and of both
  io::Safetensors renamed = hugging_face(file, false, "deit."), both;
  const auto moved = [](io::Safetensors tensors, const std::string& from, const std::string& to) {
    auto node = tensors.tensors.extract(from);
    node.key() = to;
    tensors.tensors.insert(std::move(node));
    return tensors;
  };
  renamed = moved(renamed, "deit.dist_token", "deit.embeddings.distillation_token");
  both = renamed;
  for (const std::string part : {".weight", ".bias"}) {
    both = moved(both, "deit.head_dist" + part, "distillation_classifier" + part);
    both = moved(both, "classifier" + part, "cls_classifier" + part);
  }
  const Memory of_student(renamed), of_both(both);
  CHECK(run({of_both.file, {.heads = 2}}).logits == saved.logits);
  CHECK(run({of_student.file, {.heads = 2}}).logits == run(one).logits);
  // a head of the class token and the mean of the patches
  io::Safetensors wide = weights(timm());
  const auto narrow = run({Memory(wide).file, {.heads = 2}});
  Mat<double> head(5, 12);
  head << wide.at("head.weight").matrix<double>(), second;
  wide.tensors["head.weight"] = io::Tensor::from(head);
  const Memory of_wide(wide);
  Vit<double> wider(of_wide.file, {.heads = 2});
  auto of_mean = run(wider);
  CHECK(wider.classes() == 5);
  for (Index b = 0; b < 2; ++b) {
    const Mat<double> mean = narrow.tokens.middleRows(10 * b + 1, 9).colwise().mean();
    CHECK((of_mean.logits.row(b) - narrow.logits.row(b) - mean * second.transpose()).cwiseAbs().maxCoeff() < 1e-13);
    CHECK((of_mean.pooled.row(b).tail(6) - mean).cwiseAbs().maxCoeff() < 1e-13);
  }
  const RelevanceRow<double> why = wider.explain(softmax(), of_mean, 1, call);
  CHECK(why.start(1, 0) == 0.5);
  CHECK(why.start(1, 4) == Approx(1.0 / 18));
  every_gradient(wider);
  file.tensors["pos_embed"] = io::Tensor::from(places);
  const Memory placeless(file);
  CHECK(contains(suite::error_of([&] { Vit<double>(placeless.file, {.heads = 2}); }),
                 "'pos_embed': found 10 places, wanted a square number and two more"));
}

TEST_CASE("models: tensors of a block that are not known, and blocks that are missing, are refused", "[model]") {
  const auto said = [](io::Safetensors file, const std::string& name, auto&& load, bool remove = false) {
    if (remove)
      for (auto at = file.tensors.begin(); at != file.tensors.end();)
        at = contains(at->first, name) ? file.tensors.erase(at) : std::next(at);
    else
      file.tensors[name] = io::Tensor::from(std::vector<double>{1, 2}, {2});
    const Memory memory(file);
    return suite::error_of([&] { load(memory.file); });
  };
  const auto vit = [](const io::Checkpoint& file) { Vit<double>(file, {.heads = 2}); };
  const auto bert = [](const io::Checkpoint& file) { Bert<double>(file, {.heads = 2}); };
  const auto llama = [](const io::Checkpoint& file) { Llama<double>(file, {.heads = 4, .eps = 1e-5}); };
  const std::string why = "': found a tensor among those of the model that its formula does not have, wanted none: ";
  const io::Safetensors of_vit = weights(timm()), of_dino = hugging_face(of_vit, true, "dinov2."),
                        of_bert = weights(bert_like()), of_llama = weights(llama_like(true));
  for (const std::string name : {"blocks.1.attn.q_norm.bias", "norm_pre.weight", "patch_embed.norm.weight"})
    CHECK(contains(said(of_vit, name, vit), "m: '" + name + why));
  CHECK(contains(said(of_dino, "dinov2.encoder.layer.0.x", vit), "m: 'dinov2.encoder.layer.0.x" + why));
  CHECK(contains(said(of_dino, "dinov2.embeddings.x", vit), "m: 'dinov2.embeddings.x" + why));
  CHECK(said(of_vit, "head_dist.weight", vit).empty());
  for (const std::string name : {"encoder.layer.1.attention.self.distance_embedding.weight", "embeddings.x.weight"})
    CHECK(contains(said(of_bert, name, bert), "m: '" + name + why));
  CHECK(said(of_bert, "cls.predictions.bias", bert).empty());
  CHECK(contains(said(of_llama, "model.layers.0.self_attn.sinks", llama), "m: 'model.layers.0.self_attn.sinks" + why));
  CHECK(said(of_llama, "model.layers.0.self_attn.rotary_emb.inv_freq", llama).empty());
  // the first block's are missing, so the second's are too many; or the second's
  CHECK(contains(said(of_llama, "layers.0.", llama, true), "lacks 9 of "));
  io::Safetensors gap;
  for (const auto& [name, tensor] : of_llama.tensors) gap.tensors[replaced(name, "layers.1.", "layers.2.")] = tensor;
  CHECK(contains(said(gap, "x", llama), "m: 'model.layers.2.input_layernorm.weight" + why));
  const auto layers = [&](Index wanted) {
    const Memory vits(of_vit), llamas(of_llama);
    return std::array{
        suite::error_of([&] { Vit<double>(vits.file, {.heads = 2, .layers = wanted}); }),
        suite::error_of([&] { Llama<double>(llamas.file, {.heads = 4, .eps = 1e-5, .layers = wanted}); })};
  };
  for (const std::string& text : layers(2)) CHECK(text.empty());
  for (const std::string& text : layers(3))
    CHECK(text == "m: found 2 blocks and options of 3 layers, wanted as many, or 0");
  const Memory of_one_block(weights(albert_like()));
  CHECK(contains(suite::error_of([&] { Bert<double>(of_one_block.file, {.heads = 2, .layers = Index(1) << 39}); }),
                 "options of 549755813888 layers, wanted layers, a multiple of the blocks, at most 65536"));
  const Memory groups(of_llama);
  CHECK(Llama<double>(groups.file, {.heads = 4, .eps = 1e-5, .kv_heads = 2}).kv_heads() == 2);
  CHECK(suite::error_of([&] { Llama<double>(groups.file, {.heads = 2, .eps = 1e-5, .kv_heads = 2}); }) ==
        "m: 'model.layers.0.self_attn.k_proj.weight': found 4 rows, 1 heads of width 4, wanted the 2 of the options");
  // the head that the options want
  const Memory tied(of_llama), own(weights(llama_like(false)));
  const auto with = [](const Memory& memory, std::optional<bool> wanted) {
    const Llama<double> model(memory.file, {.heads = 4, .eps = 1e-5, .tied = wanted});
    CHECK(model.unused.empty());
    return model.tied();
  };
  CHECK(with(tied, true));
  CHECK(with(tied, {}));
  CHECK(with(own, true));
  CHECK(!with(own, false));
  CHECK(!with(own, {}));
  CHECK(contains(suite::error_of([&] { with(tied, false); }), "lacks 1 of 21 tensors: 'lm_head.weight'"));
}

TEST_CASE("bert: every gradient, of the shared block of ALBERT too", "[model]") {
  for (const bool albert : {false, true}) {
    const Memory memory(weights(albert ? albert_like() : bert_like()));
    BertOptions options;
    options.heads = 2, options.layers = albert ? 3 : 0, options.eps = 1e-3;
    Bert<double> bert(memory.file, options);
    CHECK(bert.unused.empty());
    CHECK(bert.layers() == (albert ? 3 : 2));
    Mat<bool> keep = Mat<bool>::Constant(2, 4, true);
    keep(1, 3) = false;
    const Mat<double> padding = padding_bias<double>(keep), mean = mean_weights<double>(keep);
    const auto op = softmax(key_bias(padding));
    auto saved = bert.saved(op);
    const ModelCall call{.batch = 2};
    bert.forward(op, ids, types, saved, call);
    const Mat<double> d = some(2, 6, 1), dhidden = pool_backward<double>(mean, d);
    ParameterGradients<double> gradients(bert.parameters);
    Mat<double> dembeddings(8, bert.parameters.list.front().value.cols());
    RelevanceRow<double> why{mean, Mat<double>::Zero(2, 4)};
    bert.backward(op, saved, dhidden, &gradients, dembeddings, &why, call);
    check_gradients(bert, gradients, [&](const auto& model) {
      auto other = model.saved(op);
      model.forward(op, ids, types, other, {.batch = 2, .keep = false});
      return inner(pool(other.hidden, mean), d);
    });
    CHECK(why.rest(1, 3) == 0);
    CHECK(why.rest.maxCoeff() > 0);
    CHECK(dembeddings.row(7).isZero(0));
    // id 1 is there twice
    CHECK((gradients.list.front().row(1) - dembeddings.row(5) - dembeddings.row(6)).norm() < 1e-14);
    // asked for nothing else, relevance is the same
    RelevanceRow<double> alone{mean};
    bert.backward(op, saved, dhidden, nullptr, {}, &alone, call);
    CHECK(alone.rest == why.rest);
    // from the sums of embeddings, bit for bit; their tables are not in it
    auto by_sums = bert.saved(op);
    bert.forward(op, View<double>(saved.sum), by_sums, call);
    CHECK(by_sums.hidden == saved.hidden);
    Mat<double> dsums(8, dembeddings.cols());
    bert.backward(op, by_sums, dhidden, nullptr, dsums, nullptr, call);
    CHECK(dsums == dembeddings);
    const ParameterGradients<double> before = gradients;
    CHECK(suite::error_of([&] { bert.backward(op, by_sums, dhidden, &gradients, {}, nullptr, call); }) ==
          "bert: gradients of parameters after a call by sums of embeddings, wanted one by ids");
    CHECK(gradients.list == before.list);
  }
}

TEST_CASE("llama: every gradient, tied or not, with biases, normed heads and gates", "[model]") {
  for (const bool tied : {false, true}) {
    const Memory memory(weights(llama_like(tied)));
    Llama<double> llama(memory.file, {.heads = 4, .eps = 1e-3});
    CHECK(llama.unused.empty());
    CHECK(llama.tied() == tied);
    CHECK(llama.kv_heads() == 2);
    const auto op = llama_attention();
    auto saved = llama.saved(op);
    const ModelCall call{.batch = 2};
    llama.forward(op, ids, saved, call);
    const Mat<double> d = some(8, 11, 1);
    ParameterGradients<double> gradients(llama.parameters);
    Mat<double> dembeddings(8, 8);
    llama.backward(op, saved, d, &gradients, dembeddings, nullptr, call);
    check_gradients(llama, gradients, [&](const auto& model) {
      auto other = model.saved(op);
      model.forward(op, ids, other, {.batch = 2, .keep = false});
      return inner(other.logits, d);
    });
    const RelevanceRow<double> why = llama.explain(op, saved, 5, call);
    CHECK(why.start == (Mat<double>(2, 4) << 0, 0, 0, 1, 0, 0, 0, 1).finished());
    CHECK(why.rest.minCoeff() >= 0);
    CHECK(why.rest.maxCoeff() > 0);
    // causal: the first token of an item alone has the logits it has in company
    auto first = llama.saved(op);
    llama.forward(op, {ids[4]}, first);
    CHECK((first.logits - saved.logits.row(4)).cwiseAbs().maxCoeff() < 1e-14);
  }
}

TEST_CASE("llama: the next tokens from a cache have the logits that they have in the whole text", "[model]") {
  for (const bool tied : {false, true}) {
    const Memory memory(weights(llama_like(tied)));
    LlamaOptions options{.heads = 4, .eps = 1e-5, .base = 100};
    if (tied) options.scaling = {.kind = RopeScaling::Kind::yarn, .factor = 4, .original = 64};
    const Llama<double> llama(memory.file, options);
    const auto op = llama.attention();
    auto saved = llama.saved(op);
    llama.forward(op, ids, saved);
    auto plain = saved;
    llama.forward(llama_attention(100), ids, plain);
    CHECK((plain.logits == saved.logits) == !tied);
    LlamaCache<double> cache;
    Index at = 0;
    for (const Index n : {3, 1, 1, 2, 1}) {
      const std::vector<Index> next(ids.begin() + at, ids.begin() + at + n);
      CHECK(contains(suite::error_of([&] { llama.step(softmax(causal()), {1, 11}, cache); }), "llama: ids[1] is 11"));
      const Mat<double> logits = llama.step(softmax(causal()), next, cache);
      REQUIRE(logits.rows() == n);
      CHECK((logits - saved.logits.middleRows(at, n)).cwiseAbs().maxCoeff() < 1e-13);
      at += n;
      CHECK(cache.length == at);
    }
    cache.k.pop_back();
    CHECK(contains(suite::error_of([&] { llama.step(softmax(causal()), {1}, cache); }),
                   "llama: the cache is of 1 layers, wanted 2"));
    cache.length = 0;  // anew
    CHECK((llama.step(softmax(causal()), {ids[0]}, cache) - saved.logits.row(0)).cwiseAbs().maxCoeff() < 1e-13);
  }
}

TEST_CASE("llama: over twicing, the next tokens have the logits that they have in the whole text", "[model]") {
  const Mat<double> sinks = Mat<double>::Constant(1, 4, 0.5);
  const auto check = [&](const auto& inner, Index heads, const RopeOptions* positions = nullptr) {
    const Memory memory(weights(llama_like(heads == 2)));
    const Llama<double> llama(memory.file, {.heads = heads, .eps = 1e-5, .base = 100});
    const bool turned_by_op = positions != nullptr;
    const RopeOptions turned = turned_by_op ? *positions : llama.rope();
    const auto op = rope(inner, turned);
    auto saved = llama.saved(op);
    llama.forward(op, ids, saved);
    auto cache = llama.cache(op);
    Index at = 0;
    const auto follow = [&](auto& from, Index n) {
      const std::vector<Index> next(ids.begin() + at, ids.begin() + at + n);
      const Mat<double> logits = turned_by_op ? llama.step(op, next, from) : llama.step(inner, next, from);
      REQUIRE(logits.rows() == n);
      CHECK((logits - saved.logits.middleRows(at, n)).cwiseAbs().maxCoeff() < 1e-12);
    };
    for (const Index n : {3, 1, 1, 2, 1}) follow(cache, n), at += n;
    CHECK(cache.length == at);
    at = 5, cache.length = 5;  // the last three taken back, and read again in a copy and here
    auto copy = cache;
    follow(copy, 1), follow(cache, 3), at = 6, follow(copy, 2);
    at = 0, cache.length = 0;  // anew
    follow(cache, 2);
  };
  const RopeOptions halves{.layout = RopeLayout::half, .base = 50, .amplitude = 1.5}, wide{.base = 50},
      narrow{.rotary = 2, .width = 2, .q_offset = 3, .k_offset = 1};
  check(twicing(causal()), 2);
  check(twicing(causal(), {.order = 2, .alpha = 0.7}), 4);
  check(twicing(chain(window(2, 0), sink(sinks))), 4, &halves);
  check(twicing(nlm(causal())), 2, &wide);
  check(softmax(causal()), 2, &halves);
  check(softmax(causal()), 2, &narrow);

  const Memory memory(weights(llama_like(true)));
  const Llama<double> llama(memory.file, {.heads = 4, .eps = 1e-5});
  // what is refused, or thrown in the second layer, leaves the cache as it was
  int asked = 0, last = 1 << 20;
  const std::function<bool(const At&)> past = [&](const At& a) {
    if (++asked > last) throw std::runtime_error("asked too often");
    return a.k <= a.position();
  };
  const auto op = twicing(mask(past));
  auto cache = llama.cache(op);
  const Mat<double> wanted = llama.step(op, ids, cache);
  cache.length = 0, asked = 0;
  llama.step(op, {ids[0], ids[1]}, cache);
  last = asked + 14;  // of 2 layers with 4 heads each
  CHECK(suite::error_of([&] { llama.step(op, {ids[2]}, cache); }) == "asked too often");
  CHECK(cache.length == 2);
  last = 1 << 20;
  const auto other = twicing(mask(past), {.order = 2}), weaker = twicing(mask(past), {.alpha = 0.5});
  CHECK(suite::error_of([&] { llama.step(other, {1}, cache); }) ==
        "llama: twicing has order 2 and alpha 1, wanted 1 and 1 as the cache's first step");
  CHECK(contains(suite::error_of([&] { llama.step(weaker, {1}, cache); }), "order 1 and alpha 0.5, wanted 1 and 1"));
  const Mat<double> rest = llama.step(op, {ids.begin() + 2, ids.end()}, cache);
  CHECK((rest - wanted.bottomRows(6)).cwiseAbs().maxCoeff() < 1e-12);
  auto anew = cache;
  anew.length = 0;
  llama.step(other, ids, anew);
  cache.residuals[1].truncate(3);
  CHECK(suite::error_of([&] { llama.step(op, {1}, cache); }) ==
        "twicing cache: truncate was asked for 8 tokens, wanted 0 to 3, those held");
  cache.residuals.pop_back();
  CHECK(contains(suite::error_of([&] { llama.step(op, {1}, cache); }), "has residuals of 1 layers, wanted 2"));
  // positions of a whole text are none of a text that grows
  const Mat<double> places = Mat<double>::Zero(8, 1);
  LlamaCache<double> plain;
  const auto placed = [&](const RopeOptions& options) {
    return suite::error_of([&] { llama.step(rope(softmax(causal()), options), ids, plain); });
  };
  CHECK(
      contains(placed({.k_positions = places}), "llama: the operator gives positions of queries or keys, wanted off"));
  CHECK(
      contains(placed({.q_positions = places}), "llama: the operator gives positions of queries or keys, wanted off"));
  CHECK(placed({.width = 3}) == "llama: rope's width is 3, wanted a divisor of the head's 2");
  CHECK(contains(placed({.rotary = 4}), "llama: rotary is 4, wanted an even number, at most the width 2"));
  CHECK(plain.length == 0);
}

TEST_CASE("llama: options from a config.json, positions as they say", "[model]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "config.json";
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return llama_options(path);
  };
  const std::string start = R"({"num_attention_heads": 4, "rms_norm_eps": 1e-05, "hidden_size": 8)";
  const LlamaOptions plain = read(start + "}");
  CHECK(plain.heads == 4);
  CHECK(plain.eps == 1e-5);
  CHECK(plain.base == 10000);
  CHECK(plain.rotary == 0);
  CHECK(plain.scaling.kind == RopeScaling::Kind::plain);
  const LlamaOptions old =
      read(start + R"(, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
    "low_freq_factor": 1.5, "high_freq_factor": 5.0, "original_max_position_embeddings": 8192}})");
  CHECK(old.base == 500000);
  CHECK(old.scaling.kind == RopeScaling::Kind::llama3);
  CHECK(old.scaling.factor == 8);
  CHECK(old.scaling.low == 1.5);
  CHECK(old.scaling.high == 5);
  CHECK(old.scaling.original == 8192);
  const LlamaOptions late =
      read(start + R"(, "max_position_embeddings": 64, "partial_rotary_factor": 0.5, "head_dim": 4,
    "rope_scaling": null, "rope_parameters": {"type": "yarn", "factor": 2, "rope_theta": 100, "beta_fast": 16,
    "beta_slow": 2, "attention_factor": 1.5, "truncate": false}})");
  CHECK(late.base == 100);
  CHECK(late.rotary == 2);
  CHECK(late.scaling.kind == RopeScaling::Kind::yarn);
  CHECK(late.scaling.original == 64);
  CHECK(late.scaling.fast == 16);
  CHECK(late.scaling.slow == 2);
  CHECK(late.scaling.amplitude == 1.5);
  CHECK(!late.scaling.whole_planes);
  const auto said = [&](const std::string& text) { return suite::error_of([&] { read(text); }); };
  CHECK(contains(said("[]"), "config.json: found no JSON object"));
  CHECK(contains(said("{"), "found no JSON object"));
  CHECK(contains(said("{}"), "lacks num_attention_heads or rms_norm_eps"));
  CHECK(contains(said(start + R"(, "rope_theta": "x"})"), "found no number as rope_theta, wanted one"));
  CHECK(contains(said(start + R"(, "head_dim": 1.5})"), "found 1.5 as head_dim, wanted a whole number"));
  CHECK(contains(said(start + R"(, "rope_scaling": {"type": "dynamic"}})"),
                 "found the rope_scaling 'dynamic', wanted default, linear, llama3 or yarn"));
  CHECK(contains(said(start + R"(, "partial_rotary_factor": 0.5})"), "wanted a part of the heads' width"));
  CHECK(contains(suite::error_of([&] { llama_options(folder / "none.json"); }), "cannot be opened"));
  // models with the same names and other formulas
  CHECK(contains(said(start + R"(, "model_type": "gemma"})"),
                 "config.json: found 'gemma' as model_type, wanted llama, mistral, qwen2 or qwen3"));
  CHECK(contains(said(R"({"model_type": "gpt2"})"), "found 'gpt2' as model_type, wanted llama"));
  CHECK(contains(said(start + R"(, "hidden_act": "gelu"})"), "found 'gelu' as hidden_act, wanted silu or swish"));
  CHECK(!plain.tied.has_value());
  CHECK(plain.layers == 0);
  CHECK(plain.kv_heads == 0);
  CHECK(read(start + R"(, "num_key_value_heads": 2})").kv_heads == 2);
  const auto scaled = [&](const std::string& text) { return said(start + R"(, "rope_scaling": )" + text + "}"); };
  CHECK(contains(scaled(R"("linear")"), "found no object as rope_scaling, wanted one, or null"));
  CHECK(contains(scaled(R"({"type": "linear"})"), "lacks factor, which the rope_scaling linear wants"));
  CHECK(contains(scaled(R"({"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4})"),
                 "lacks original_max_position_embeddings, which the rope_scaling llama3 wants"));
  CHECK(
      contains(said(R"({"num_attention_heads": 4, "rms_norm_eps": -1e-05})"), "found -1e-05 as rms_norm_eps, wanted"));
  const LlamaOptions tied = read(start + R"(, "tie_word_embeddings": false, "num_hidden_layers": 3})");
  CHECK(tied.tied == false);
  CHECK(tied.layers == 3);
  CHECK(contains(said(start + R"(, "hidden_act": 1})"), "found no text as hidden_act"));
  CHECK(read(start + R"(, "model_type": "mistral", "sliding_window": null})").window == 0);
  CHECK(read(start + R"(, "model_type": "qwen2", "sliding_window": 4, "use_sliding_window": false})").window == 0);
  CHECK(read(start + R"(, "model_type": "mistral", "hidden_act": "silu", "sliding_window": 4096})").window == 4096);

  // the model turns as its options say: as an operator of the same frequencies does, part of the width alone
  const Memory memory(weights(llama_like(true)));
  LlamaOptions wide{.heads = 2, .eps = 1e-5, .base = 100, .rotary = 2};
  wide.scaling = {.kind = RopeScaling::Kind::linear, .factor = 4};
  const Llama<double> llama(memory.file, wide);
  const Mat<double> slow = Mat<double>::Constant(1, 1, 0.25);
  const auto op = rope(softmax(causal()), {.layout = RopeLayout::half, .rotary = 2, .frequencies = slow});
  auto saved = llama.saved(op);
  llama.forward(op, ids, saved);
  const Mat<double> wanted = saved.logits;
  llama.forward(llama.attention(), ids, saved);
  CHECK(saved.logits == wanted);
  LlamaCache<double> cache;
  CHECK((llama.step(softmax(causal()), ids, cache) - wanted).cwiseAbs().maxCoeff() < 1e-13);
  // what a window would change is refused, with nothing written
  wide.window = 5;
  const Llama<double> windowed(memory.file, wide);
  const Mat<double> before = saved.logits;
  CHECK(contains(suite::error_of([&] { windowed.forward(windowed.attention(), ids, saved); }),
                 "llama: found a text of 8 tokens, wanted at most 5, the window"));
  CHECK(saved.logits == before);
  CHECK(contains(suite::error_of([&] { windowed.step(softmax(causal()), {1}, cache); }), "a text of 9 tokens"));
  CHECK(cache.length == 8);
  wide.rotary = 3;
  CHECK(contains(suite::error_of([&] { Llama<double>(memory.file, wide); }),
                 "llama: rotary is 3, wanted an even number"));
  wide.rotary = 0, wide.scaling.factor = 0;
  CHECK(contains(suite::error_of([&] { Llama<double>(memory.file, wide); }), "factor is 0, wanted a finite number"));
}

TEST_CASE("bert and vit: options from a config.json", "[model]") {
  const suite::TemporaryFolder folder;
  const std::string path = folder / "config.json";
  const auto bert = [&](const std::string& text) {
    std::ofstream(path) << text;
    return bert_options(path);
  };
  const auto said = [&](const std::string& text) { return suite::error_of([&] { bert(text); }); };
  const std::string start = R"({"num_attention_heads": 4, "num_hidden_layers": 3, "layer_norm_eps": 1e-05)";
  const BertOptions plain = bert(start + R"(, "model_type": "albert", "hidden_act": "gelu_new", "pad_token_id": 0})");
  CHECK(plain.heads == 4);
  CHECK(plain.layers == 3);
  CHECK(plain.eps == 1e-5);
  CHECK(plain.activation == Activation::gelu_tanh);
  CHECK(plain.first_place == 0);
  const BertOptions roberta = bert(start + R"(, "model_type": "xlm-roberta", "pad_token_id": 1})");
  CHECK(roberta.activation == Activation::gelu);
  CHECK(roberta.first_place == 2);
  CHECK(contains(said("3"), "config.json: found no JSON object"));
  CHECK(contains(said(R"({"num_attention_heads": 4})"), "lacks num_attention_heads or num_hidden_layers"));
  CHECK(contains(said(start + R"(, "model_type": "mpnet"})"),
                 "'mpnet' as model_type, wanted bert, electra, distilbert, albert, roberta, xlm-roberta or camembert"));
  CHECK(contains(said(R"({"model_type": "gpt2"})"), "found 'gpt2' as model_type"));
  CHECK(contains(said(start + R"(, "is_decoder": true})"), "found true as is_decoder, wanted an encoder"));
  CHECK(contains(said(start + R"(, "add_cross_attention": true})"), "found true as add_cross_attention, wanted an en"));
  const BertOptions distilled = bert(R"({"model_type": "distilbert", "n_heads": 2, "n_layers": 6, "activation": "relu",
    "num_hidden_layers": 5, "layer_norm_eps": 1, "pad_token_id": 0})");
  CHECK(distilled.heads == 2);
  CHECK(distilled.layers == 6);
  CHECK(distilled.eps == 1e-12);
  CHECK(distilled.activation == Activation::relu);
  CHECK(distilled.first_place == 0);
  CHECK(contains(said(R"({"num_attention_heads": 4, "num_hidden_layers": 3, "layer_norm_eps": -1})"),
                 "found -1 as layer_norm_eps, wanted a number, 0 or more"));
  CHECK(contains(said(R"({"model_type": "distilbert", "n_heads": 2})"), "lacks n_heads or n_layers, wanted both"));
  CHECK(bert(start + R"(, "model_type": "electra", "pad_token_id": 0})").first_place == 0);
  CHECK(contains(said(start + R"(, "position_embedding_type": "relative_key"})"),
                 "found 'relative_key' as position_embedding_type, wanted absolute"));
  CHECK(contains(said(start + R"(, "inner_group_num": 2})"), "found 2 as inner_group_num, wanted 1"));
  CHECK(contains(said(start + R"(, "hidden_act": "mish"})"), "found 'mish' as hidden_act, wanted gelu, gelu_fast"));
  CHECK(contains(said(start + R"(, "pad_token_id": -1})"), "found -1 as pad_token_id"));

  const auto vit = [&](const std::string& text) {
    std::ofstream(path) << text;
    return vit_options(path);
  };
  const VitOptions of_vit = vit(R"({"num_attention_heads": 6, "layer_norm_eps": 1e-12, "model_type": "vit"})");
  CHECK(of_vit.heads == 6);
  CHECK(of_vit.eps == 1e-12);
  CHECK(of_vit.positions == PositionResize::bicubic);
  CHECK(vit(R"({"num_attention_heads": 6, "model_type": "dinov2_with_registers"})").positions ==
        PositionResize::antialiased);
  CHECK(contains(suite::error_of([&] { vit("{}"); }), "lacks num_attention_heads"));
  CHECK(vit(R"({"num_attention_heads": 6, "model_type": "deit", "num_hidden_layers": 3})").layers == 3);
  CHECK(contains(suite::error_of([&] { vit(R"({"num_attention_heads": 6, "use_swiglu_ffn": true})"); }),
                 "found true as use_swiglu_ffn, wanted false"));
  CHECK(contains(suite::error_of([&] { vit(R"({"num_attention_heads": 6, "model_type": "beit"})"); }),
                 "found 'beit' as model_type, wanted vit, deit, dinov2 or dinov2_with_registers"));
  CHECK(contains(suite::error_of([&] { vit(R"({"num_attention_heads": 6, "hidden_act": "quick_gelu"})"); }),
                 "found 'quick_gelu' as hidden_act, wanted gelu"));

  // a text of RoBERTa begins behind the places of padding: as one whose table lies that much further up
  io::Safetensors file = weights(bert_like());
  const Memory memory(file);
  const Mat<double> table = file.at("embeddings.position_embeddings.weight").matrix<double>();
  file.tensors["embeddings.position_embeddings.weight"] = io::Tensor::from(Mat<double>(table.bottomRows(5)));
  const Memory shorter(file);
  const Bert<double> shifted(memory.file, {.heads = 2, .first_place = 2}), wanted(shorter.file, {.heads = 2});
  auto a = shifted.saved(softmax()), b = wanted.saved(softmax());
  shifted.forward(softmax(), ids, types, a, {.batch = 2});
  wanted.forward(softmax(), ids, types, b, {.batch = 2});
  CHECK(a.hidden == b.hidden);
  ParameterGradients<double> of_a(shifted.parameters), of_b(wanted.parameters);
  const Mat<double> dhidden = some(8, 6, 1);
  shifted.backward(softmax(), a, dhidden, &of_a);
  wanted.backward(softmax(), b, dhidden, &of_b);
  CHECK(of_a.list[1].topRows(2).isZero(0));
  CHECK(of_a.list[1].bottomRows(5) == of_b.list[1]);
  CHECK(contains(suite::error_of([&] {
                   shifted.forward(softmax(), {1, 1, 1, 1, 1, 1}, {}, a);
                 }),
                 "bert: found 6 tokens an item, wanted at most 5, the places of the checkpoint from first_place on"));
  CHECK(contains(suite::error_of([&] { Bert<double>(memory.file, {.heads = 2, .first_place = 7}); }),
                 "bert: first_place is 7, wanted it in [0, 7)"));
}

TEST_CASE("models: packed weights give the same bits, in copies too", "[model]") {
  const Memory of_albert(weights(albert_like())), of_vit(weights(timm({.scales = true})));
  BertOptions options;
  options.heads = 2, options.layers = 3;
  Bert<double> bert(of_albert.file, options);
  auto plain = bert.saved(softmax()), packed = bert.saved(softmax());
  bert.forward(softmax(), ids, types, plain, {.batch = 2});
  bert.pack();
  bert.forward(softmax(), ids, types, packed, {.batch = 2});
  CHECK(packed.hidden == plain.hidden);
  const Mat<double> image = some(36, 3, 0);
  auto wanted = std::make_unique<Vit<float>>(of_vit.file, VitOptions{.heads = 2});
  auto before = wanted->saved(softmax()), after = before;
  const Mat<float> pixels = image.cast<float>();
  wanted->forward(softmax(), pixels, 6, 6, before);
  wanted->pack();
  const Vit<float> copy = *wanted;
  wanted.reset();
  copy.forward(softmax(), pixels, 6, 6, after);
  CHECK(after.logits == before.logits);
  for (const bool tied : {false, true}) {
    const Memory memory(weights(llama_like(tied)));
    auto llama = std::make_unique<Llama<double>>(memory.file, LlamaOptions{.heads = 4, .eps = 1e-5});
    const auto op = llama_attention();
    auto in_whole = llama->saved(op), again = llama->saved(op);
    LlamaCache<double> cache, other;
    llama->forward(op, ids, in_whole);
    const Mat<double> next = llama->step(softmax(causal()), ids, cache);
    llama->pack();
    const Llama<double> alike = *llama;
    llama.reset();
    alike.forward(op, ids, again);
    CHECK(again.logits == in_whole.logits);
    CHECK(alike.step(softmax(causal()), ids, other) == next);
  }
}

TEST_CASE("models: a checkpoint that does not fit is refused with tensor, found and wanted", "[model]") {
  const auto said = [](const Shapes& shapes, auto&& load) {
    const Memory memory(weights(shapes));
    return suite::error_of([&] { load(memory.file); });
  };
  const auto vit = [](Index heads) { return [=](const io::Checkpoint& file) { Vit<float>(file, {.heads = heads}); }; };
  const auto without = [](Shapes shapes, const std::string& name) {
    shapes.erase(std::remove_if(shapes.begin(), shapes.end(), [&](const auto& one) { return one.first == name; }),
                 shapes.end());
    return shapes;
  };
  const auto with = [](Shapes shapes, const std::string& name, const std::vector<Index>& shape) {
    for (auto& one : shapes)
      if (one.first == name) one.second = shape;
    return shapes;
  };
  CHECK(said(timm(), vit(2)).empty());
  CHECK(said(timm(), vit(0)) == "m: found 6 columns and 0 heads, wanted heads of 1 or more that divide them");
  CHECK(said(timm(), vit(4)) == "m: found 6 columns and 4 heads, wanted heads of 1 or more that divide them");
  CHECK(contains(said(without(without(timm(), "norm.bias"), "blocks.1.mlp.fc2.weight"), vit(2)),
                 "tensors: 'norm.bias' (nearest of 30 are"));
  CHECK(contains(said(without(without(timm(), "norm.bias"), "blocks.1.mlp.fc2.weight"), vit(2)), "m: lacks 2 of "));
  CHECK(said(with(timm(), "blocks.1.mlp.fc1.weight", {7, 6}), vit(2)) ==
        "m: 'blocks.1.mlp.fc1.weight': found the shape [7, 6], wanted [8, 6]");
  CHECK(said(with(timm(), "blocks.0.attn.qkv.weight", {12, 6}), vit(2)) ==
        "m: 'blocks.0.attn.qkv.weight': found the shape [12, 6], wanted [18, 6]");
  CHECK(said(with(timm(), "patch_embed.proj.weight", {6, 3, 2, 3}), vit(2)) ==
        "m: 'patch_embed.proj.weight': found the shape [6, 3, 2, 3], wanted [any, any, any, any]");
  CHECK(contains(said(with(timm(), "pos_embed", {1, 12, 6}), vit(2)),
                 "m: 'pos_embed': found 12 places, wanted a square number, or one more"));
  const auto grid = [](Index rows, Index cols, VitOptions::Pool pool = VitOptions::Pool::first) {
    return [=](const io::Checkpoint& file) {
      Vit<float>(file, {.heads = 2, .pool = pool, .grid_rows = rows, .grid_cols = cols});
    };
  };
  CHECK(said(timm(), grid(3, 3)).empty());
  CHECK(said(timm(), grid(5, 2)).empty());  // without a place for the class
  for (const auto& [rows, cols] : {std::pair<Index, Index>{4, 2}, {2, 6}, {0, 9}, {-3, -3}, {3, Index(1) << 62}})
    CHECK(contains(said(timm(), grid(rows, cols)), "m: 'pos_embed': found 10 places, wanted " + std::to_string(rows) +
                                                       " x " + std::to_string(cols) + ", or one more"));
  CHECK(contains(said(timm({.class_token = false}), vit(2)), "m: lacks 1 of "));
  const auto mean = grid(0, 0, VitOptions::Pool::mean);
  CHECK(said(timm({.places = 9, .class_token = false}), mean).empty());
  CHECK(said(timm({.class_token = false}), mean) == "m: 'pos_embed': found 10 places, wanted a square number");
  CHECK(contains(said(bert_like(), vit(2)), "m: lacks "));
  const auto bert = [](Index heads, Index layers) {
    return [=](const io::Checkpoint& file) { Bert<float>(file, {.heads = heads, .layers = layers}); };
  };
  CHECK(said(bert_like(), bert(2, 0)).empty());
  CHECK(contains(said(bert_like(), bert(5, 0)), "found 6 columns and 5 heads"));
  CHECK(contains(said(bert_like(), bert(2, 3)), "found 2 blocks and options of 3 layers, wanted as many, or 0"));
  CHECK(contains(said(albert_like(), bert(2, 0)), "found 1 blocks and options of 0 layers, wanted layers, a multiple"));
  CHECK(contains(said(timm(), bert(2, 0)), "lacks "));
  CHECK(
      contains(said({{"x", {1}}}, bert(2, 0)), "m: lacks 21 of 21 tensors: 'embeddings.word_embeddings.weight' (near"));
  const auto llama = [](Index heads, double eps) {
    return [=](const io::Checkpoint& file) { Llama<float>(file, {.heads = heads, .eps = eps}); };
  };
  CHECK(said(llama_like(true), llama(4, 1e-5)).empty());
  CHECK(contains(said(llama_like(true), llama(4, eps_not_given)), "llama: eps"));
  CHECK(contains(said(llama_like(true), llama(3, 1e-5)), "found 8 columns and 3 heads"));
  CHECK(contains(said(llama_like(true), llama(1, 1e-5)),
                 "'model.layers.0.self_attn.k_proj.weight': found 4 rows, wanted a divisor of the 1 heads times"));
}

TEST_CASE("models: calls that do not fit are refused", "[model]") {
  const Memory of_vit(weights(timm())), of_bert(weights(bert_like())), of_llama(weights(llama_like(true)));
  const Vit<double> vit(of_vit.file, {.heads = 2});
  auto v = vit.saved(softmax());
  const Mat<double> image = some(36, 3, 0), grey = some(36, 1, 0);
  CHECK(contains(suite::error_of([&] { vit.forward(softmax(), image, 6, 5, v); }), "do not cover 5 pixels"));
  CHECK(contains(suite::error_of([&] { vit.forward(softmax(), grey, 6, 6, v); }),
                 "vit: image is 36 x 1, wanted 1 x 6 x 6 rows, a pixel each, of 3 channels"));
  CHECK(contains(suite::error_of([&] { vit.forward(softmax(), image, 6, 6, v, {.batch = 2}); }), "wanted 2 x 6 x 6"));
  CHECK(contains(suite::error_of([&] { vit.forward(softmax(), image, 6, 6, v, {.batch = 0}); }), "wanted 0 x 6 x 6"));
  vit.forward(softmax(), image, 6, 6, v);
  CHECK(contains(suite::error_of([&] { vit.explain(softmax(), v, 5); }), "vit: the class is 5, wanted it in [0, 5)"));
  const Mat<double> dlogits = some(1, 5, 0), dother = some(2, 5, 0);
  CHECK(contains(suite::error_of([&] { vit.backward(softmax(), v, dother, {}, nullptr); }),
                 "vit: the gradient of logits is 2 x 5, wanted 1 x 5"));
  ParameterGradients<double> none;
  CHECK(contains(suite::error_of([&] { vit.backward(softmax(), v, dlogits, {}, &none); }), "vit: found 0 gradients"));
  const Bert<double> bert(of_bert.file, {.heads = 2});
  auto b = bert.saved(softmax());
  const auto run = [&](const std::vector<Index>& words, const std::vector<Index>& kinds, Index batch) {
    return suite::error_of([&] { bert.forward(softmax(), words, kinds, b, {.batch = batch}); });
  };
  CHECK(run({1, 2}, {}, 1).empty());
  CHECK(run({1, 11}, {}, 1) == "bert: ids[1] is 11, wanted it in [0, 11), the vocabulary");
  CHECK(run({1, -1}, {}, 1) == "bert: ids[1] is -1, wanted it in [0, 11), the vocabulary");
  CHECK(run({1, 2}, {0, 2}, 1) == "bert: types[1] is 2, wanted it in [0, 2), the types");
  CHECK(contains(run({1, 2}, {0}, 1), "bert: found 1 types, wanted 2, one a token, or none"));
  CHECK(contains(run({}, {}, 1), "found 0 ids and a batch of 1"));
  CHECK(contains(run({1, 2, 3}, {}, 2), "found 3 ids and a batch of 2"));
  CHECK(contains(run({1}, {}, 0), "found 1 ids and a batch of 0"));
  CHECK(contains(run({1, 2, 3, 4, 5, 6, 7, 8}, {}, 1), "bert: found 8 tokens an item, wanted at most 7"));
  run({1, 2}, {}, 1);
  CHECK(contains(suite::error_of([&] { bert.backward(softmax(), b, image, nullptr); }),
                 "bert: the gradient of hidden is 36 x 3, wanted 2 x 6"));
  for (const auto& [rows, cols, batch] : {std::array<Index, 3>{4, 5, 2}, {3, 6, 2}, {0, 6, 1}, {4, 6, 0}}) {
    const Mat<double> sums = Mat<double>::Zero(rows, cols);
    const ModelCall call{.batch = batch};
    CHECK(contains(suite::error_of([&] { bert.forward(softmax(), View<double>(sums), b, call); }),
                   "bert: sums of embeddings are " + std::to_string(rows) + " x " + std::to_string(cols) +
                       " and a batch of " + std::to_string(batch) + ", wanted 6 columns"));
  }
  const Llama<double> llama(of_llama.file, {.heads = 4, .eps = 1e-5});
  const auto op = llama_attention();
  auto l = llama.saved(op);
  CHECK(contains(suite::error_of([&] { llama.forward(op, {11}, l); }), "llama: ids[0] is 11"));
  llama.forward(op, {1, 2}, l);
  CHECK(contains(suite::error_of([&] { llama.explain(op, l, 11); }), "llama: id[0] is 11"));
  CHECK(contains(suite::error_of([&] { llama.backward(op, l, image, nullptr); }),
                 "llama: the gradient of logits is 36 x 3, wanted 2 x 11"));
}

TEST_CASE("models: what is refused leaves saved and gradients as they were", "[model]") {
  const Memory of_vit(weights(timm())), of_bert(weights(bert_like())), of_llama(weights(llama_like(false)));
  const auto zero = [](const ParameterGradients<double>& gradients) {
    return std::all_of(gradients.list.begin(), gradients.list.end(), [](const auto& g) { return g.isZero(0); });
  };
  // an operator of the same type that refuses: a bias of another number of keys
  const auto with_bias = [](const Mat<double>& bias) { return softmax(key_bias(bias)); };
  const Mat<double> ten = some(1, 10, 1), four = some(2, 4, 1), odd = some(1, 7, 1);
  const auto refused = with_bias(odd);
  const char* why = "softmax: key bias is 1 x 7";
  {
    const Vit<double> vit(of_vit.file, {.heads = 2});
    const auto op = with_bias(ten);
    const Mat<double> image = some(36, 3, 0), other = some(16, 3, 2), d = some(1, 5, 3);
    auto saved = vit.saved(op);
    vit.forward(op, image, 6, 6, saved);
    ParameterGradients<double> wanted(vit.parameters), got(vit.parameters);
    vit.backward(op, saved, d, {}, &wanted);
    const Mat<double> logits = saved.logits;
    CHECK(contains(suite::error_of([&] { vit.forward(refused, other, 4, 4, saved); }), why));
    CHECK(saved.rows == 3);
    CHECK(saved.logits == logits);
    CHECK(contains(suite::error_of([&] { vit.backward(refused, saved, d, {}, &got); }), why));
    CHECK(zero(got));
    got.list[3].resize(2, 2);
    CHECK(suite::error_of([&] { vit.backward(op, saved, d, {}, &got); }) ==
          "vit: the gradient of '" + vit.parameters.list[3].name + "' is 2 x 2, wanted 10 x 6");
    got = ParameterGradients<double>(vit.parameters);
    auto forgotten = saved;
    forgotten.stack.blocks.clear();
    CHECK(contains(suite::error_of([&] { vit.backward(op, forgotten, d, {}, &got); }), "nothing was kept"));
    CHECK(zero(got));
    vit.backward(op, saved, d, {}, &got);
    CHECK(got.list == wanted.list);
  }
  {
    const Bert<double> bert(of_bert.file, {.heads = 2});
    const auto op = with_bias(four);
    const Mat<double> d = some(8, 6, 3);
    auto saved = bert.saved(op);
    bert.forward(op, ids, types, saved, {.batch = 2});
    ParameterGradients<double> wanted(bert.parameters), got(bert.parameters);
    bert.backward(op, saved, d, &wanted);
    CHECK(contains(suite::error_of([&] { bert.forward(refused, {1, 2}, {}, saved); }), why));
    const Mat<double> sums = 2 * saved.sum;
    CHECK(contains(suite::error_of([&] { bert.forward(refused, View<double>(sums), saved); }), why));
    CHECK(2 * saved.sum == sums);
    CHECK(saved.ids == ids);
    CHECK(saved.sum.rows() == 8);
    CHECK(contains(suite::error_of([&] { bert.backward(refused, saved, d, &got); }), why));
    CHECK(zero(got));
    bert.backward(op, saved, d, &got);
    CHECK(got.list == wanted.list);
  }
  {
    const Llama<double> llama(of_llama.file, {.heads = 4, .eps = 1e-5});
    const auto op = with_bias(four);
    const Mat<double> d = some(8, 11, 3);
    auto saved = llama.saved(op);
    llama.forward(op, ids, saved, {.batch = 2});
    ParameterGradients<double> wanted(llama.parameters), got(llama.parameters);
    llama.backward(op, saved, d, &wanted);
    CHECK(contains(suite::error_of([&] { llama.forward(refused, {1, 2}, saved); }), why));
    CHECK(saved.ids == ids);
    CHECK(contains(suite::error_of([&] { llama.backward(refused, saved, d, &got); }), why));
    CHECK(zero(got));
    llama.backward(op, saved, d, &got);
    CHECK(got.list == wanted.list);
    // an operator that kept less: of another order
    const auto once = twicing(causal()), twice = twicing(causal(), {.order = 2});
    auto less = llama.saved(once);
    llama.forward(once, ids, less, {.batch = 2});
    got.set_zero();
    CHECK(contains(suite::error_of([&] { llama.backward(twice, less, d, &got); }), "it comes from other parameters"));
    CHECK(zero(got));
  }
}

TEST_CASE("models: a row of relevance that does not fit is refused before anything is written", "[model]") {
  const auto refused = [](const char* name, const auto& model, const auto& op, auto& saved, Index n, auto&& backward) {
    ParameterGradients<double> gradients(model.parameters);
    const auto said = [&](RelevanceRow<double> row) {
      const std::string text = suite::error_of([&] { backward(op, saved, &gradients, &row); });
      for (const Mat<double>& one : gradients.list) CHECK(one.isZero(0));
      return text;
    };
    const std::string wanted = ", wanted 1 x " + std::to_string(n), start = std::string(name) + ": the start of ";
    CHECK(said({}) == start + "relevance is 0 x 0" + wanted);
    CHECK(said({some(1, n + 1, 0)}) == start + "relevance is 1 x " + std::to_string(n + 1) + wanted);
    CHECK(said({some(2, n, 0)}) == start + "relevance is 2 x " + std::to_string(n) + wanted);
    CHECK(said({some(1, n, 0), some(1, 1, 0)}) == std::string(name) + ": the rest of relevance is 1 x 1" + wanted);
  };
  const Memory of_vit(weights(timm())), of_bert(weights(bert_like())), of_llama(weights(llama_like(true)));
  const Vit<double> vit(of_vit.file, {.heads = 2});
  auto v = vit.saved(softmax());
  const Mat<double> image = some(36, 3, 0), dlogits = some(1, 5, 0), dtwo = some(2, 6, 0), dwords = some(2, 11, 0);
  vit.forward(softmax(), image, 6, 6, v);
  refused("vit", vit, softmax(), v, 10, [&](const auto& op, auto& saved, auto* gradients, auto* row) {
    vit.backward(op, saved, dlogits, {}, gradients, {}, row);
  });
  const Bert<double> bert(of_bert.file, {.heads = 2});
  auto b = bert.saved(softmax());
  bert.forward(softmax(), {1, 2}, {}, b);
  refused("bert", bert, softmax(), b, 2, [&](const auto& op, auto& saved, auto* gradients, auto* row) {
    bert.backward(op, saved, dtwo, gradients, {}, row);
  });
  const Llama<double> llama(of_llama.file, {.heads = 4, .eps = 1e-5});
  const auto op = llama_attention();
  auto l = llama.saved(op);
  llama.forward(op, {1, 2}, l);
  refused("llama", llama, op, l, 2, [&](const auto& its, auto& saved, auto* gradients, auto* row) {
    llama.backward(its, saved, dwords, gradients, {}, row);
  });
}

TEST_CASE("models: an explanation goes down with the backward pass, and changes no bit of it", "[model]") {
  // backward(gradients, input, asked): with null, a row or an explanation, once each
  const auto check = [](const auto& model, const auto& op, auto& stack, const Mat<double>& start, Index inputs,
                        Index columns, auto&& backward) {
    ParameterGradients<double> plain(model.parameters), asked(model.parameters);
    Mat<double> input(inputs, columns), again(inputs, columns);
    RelevanceRow<double> row{start};
    backward(&plain, input, row);
    Explanation<double> why(
        {.relevance = {Part::pos, Part::abs}, .rollout = RolloutOptions{}, .heads = true, .input = true});
    why.start(View<double>(start));
    backward(&asked, again, why);
    CHECK(asked.list == plain.list);
    CHECK(again == input);
    CHECK(why.relevance() == row.rest);
    CHECK(why.layers() == model.layers());
    for (Index b = 0; b < start.rows(); ++b) {
      Rollout<double> rollout;
      rollout.start(View<double>(start).block(b, 0, 1, start.cols()));
      for (std::size_t l = stack.blocks.size(); l-- > 0;) {
        auto& a = stack.blocks[l].attention;
        rollout.layer(op, qkv(a.q, a.k, a.v), a.attention, {.item = b});
      }
      CHECK(why.rollout().row(b) == rollout.rows().row(0));
    }
    row = {start, {}, Part::abs};
    backward(nullptr, {}, row);
    CHECK((why.relevance(Part::abs) - row.rest).cwiseAbs().maxCoeff() < 1e-14);
    Explanation<double> alone({.relevance = {}, .heads = true, .input = true});
    alone.start(View<double>(start));
    backward(nullptr, {}, alone);
    for (Index l = 0; l < model.layers(); ++l) {
      CHECK(alone.heads(l) == why.heads(l));
      CHECK(alone.heads(l).cwiseAbs().minCoeff() > 0);
    }
    CHECK(alone.gradient() == why.gradient());
    const auto said = [&](Explanation<double>& one) {
      ParameterGradients<double> none(model.parameters);
      const std::string text = suite::error_of([&] { backward(&none, {}, one); });
      for (const Mat<double>& each : none.list) CHECK(each.isZero(0));
      return text;
    };
    CHECK(contains(said(why), ": an explanation that has gone through " + std::to_string(model.layers()) + " layers"));
    why.start(start.cols() + 1, 0, start.rows());
    CHECK(contains(said(why), ": an explanation started with rows 2 x " + std::to_string(start.cols() + 1) +
                                  ", wanted 2 x " + std::to_string(start.cols())));
    return alone;
  };
  const Memory of_vit(weights(timm({.registers = 2, .scales = true}))), of_bert(weights(albert_like())),
      of_llama(weights(llama_like(false)));
  const ModelCall call{.batch = 2};
  {
    const Vit<double> vit(of_vit.file, {.heads = 2});
    const Mat<double> image = some(72, 3, 0), dlogits = some(2, 5, 1), dtokens = some(24, 6, 2);
    auto saved = vit.saved(softmax());
    vit.forward(softmax(), image, 6, 6, saved, call);
    Mat<double> dimage;
    const auto backward = [&](ParameterGradients<double>* gradients, MutView<double> to, auto& asked) {
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(asked)>, Explanation<double>>)
        vit.backward(softmax(), saved, dlogits, dtokens, gradients, to, asked, call);
      else
        vit.backward(softmax(), saved, dlogits, dtokens, gradients, to, &asked, call);
      if (to.given()) dimage = to.map();
    };
    const auto why = check(vit, softmax(), saved.stack, some(2, 12, 4).cwiseAbs(), 72, 3, backward);
    for (Index b = 0; b < 2; ++b) {  // the patch in row 2, column 1 of 3 x 3
      double sum = 0;
      for (Index r = 4; r < 6; ++r)
        for (Index c = 2; c < 4; ++c) sum += image.row(36 * b + 6 * r + c).dot(dimage.row(36 * b + 6 * r + c));
      CHECK(why.gradient_times_input()(b, 3 + 7) == Approx(sum));
      CHECK(why.gradient_times_input().row(b).head(3).isZero(0));
      CHECK(why.gradient_times_input().row(b).sum() ==
            Approx(inner(image.middleRows(36 * b, 36), dimage.middleRows(36 * b, 36))));
    }
    // of a class
    Explanation<double> label({.heads = true});
    vit.explain(softmax(), saved, 3, label, call);
    CHECK(label.relevance() == vit.explain(softmax(), saved, 3, call).rest);
    CHECK(label.started().col(0).sum() == 2);
    CHECK(contains(suite::error_of([&] { vit.explain(softmax(), saved, 5, label); }), "vit: the class is 5"));
    CHECK(label.layers() == 2);
    label.start(12, 0, 2);
    const std::string none = "vit: found no gradient of logits or tokens, wanted one of them to go back from";
    CHECK(suite::error_of([&] { vit.backward(softmax(), saved, {}, {}, nullptr, {}, label, call); }) == none);
    CHECK(suite::error_of([&] { vit.backward(softmax(), saved, {}, {}, nullptr); }) == none);
  }
  {
    const Bert<double> bert(of_bert.file, {.heads = 2, .layers = 3});
    Mat<bool> keep = Mat<bool>::Constant(2, 4, true);
    keep(1, 3) = false;
    const Mat<double> padding = padding_bias<double>(keep), mean = mean_weights<double>(keep);
    const auto op = softmax(key_bias(padding));
    const Mat<double> dhidden = pool_backward<double>(mean, some(2, 6, 1));
    auto saved = bert.saved(op);
    bert.forward(op, ids, types, saved, call);
    Mat<double> input;
    const auto backward = [&](ParameterGradients<double>* gradients, MutView<double> to, auto& asked) {
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(asked)>, Explanation<double>>)
        bert.backward(op, saved, dhidden, gradients, to, asked, call);
      else
        bert.backward(op, saved, dhidden, gradients, to, &asked, call);
      if (to.given()) input = to.map();
    };
    const auto why = check(bert, op, saved.stack, mean, 8, 4, backward);
    CHECK(why.gradient() == input);
    CHECK(why.gradient_times_input()(1, 2) == Approx(saved.sum.row(6).dot(input.row(6))));
    CHECK(why.gradient_times_input()(1, 3) == 0);
  }
  {
    const Llama<double> llama(of_llama.file, {.heads = 4, .eps = 1e-5});
    const auto op = llama_attention();
    const Mat<double> dlogits = some(8, 11, 1);
    auto saved = llama.saved(op);
    llama.forward(op, ids, saved, call);
    Mat<double> input;
    const auto backward = [&](ParameterGradients<double>* gradients, MutView<double> to, auto& asked) {
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(asked)>, Explanation<double>>)
        llama.backward(op, saved, dlogits, gradients, to, asked, call);
      else
        llama.backward(op, saved, dlogits, gradients, to, &asked, call);
      if (to.given()) input = to.map();
    };
    const auto why = check(llama, op, saved.stack, some(2, 4, 4).cwiseAbs(), 8, 8, backward);
    CHECK(why.gradient() == input);
    CHECK(why.heads(1).cols() == 4);
    Explanation<double> last;
    llama.explain(op, saved, 5, last, call);
    CHECK(last.relevance() == llama.explain(op, saved, 5, call).rest);
    CHECK(last.started().col(3).sum() == 2);
    CHECK(contains(suite::error_of([&] { llama.explain(op, saved, 11, last); }), "llama: id[0] is 11"));
    CHECK(last.layers() == 2);
  }
}

TEST_CASE("models: a model that proves itself, in float and from F16", "[model]") {
  const Memory first(weights(llama_like(true)));
  const auto run = [](const auto& model, const io::Tensor& input) {
    const auto op = llama_attention();
    auto saved = model.saved(op);
    model.forward(op, input.values<Index>(), saved);
    return saved.logits;
  };
  const io::Tensor input = io::Tensor::from(std::vector<std::int64_t>{1, 2, 3, 10}, {4});
  const Llama<double> llama(first.file, {.heads = 4, .eps = 1e-5});
  const Mat<double> logits = run(llama, input);
  for (const io::DType type : {io::DType::f64, io::DType::f32, io::DType::f16, io::DType::bf16}) {
    io::Safetensors written = llama.parameters.file(type);
    io::add_proof(written, input, io::Tensor::from(logits));
    const Memory again(written);
    const Llama<float> read(again.file, {.heads = 4, .eps = 1e-5});
    CHECK(read.unused.empty());
    const double error = io::prove(again.file, 1, [&](const io::Tensor& t) { return run(read, t); });
    CHECK(error < (type == io::DType::bf16 ? 3e-2 : type == io::DType::f16 ? 3e-3 : 3e-6));
  }
}
