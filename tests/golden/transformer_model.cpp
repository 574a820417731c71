// limpid: golden cases of whole models: a vision transformer, a BERT encoder, a LLaMA-style decoder, each read from the
// case as from its checkpoint.
// SPDX-License-Identifier: MIT
#include <limpid/model/bert.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/model/vit.hpp>

#include "support/golden.hpp"

namespace golden {

struct TransformerModel {
  static constexpr const char* name = "transformer_model";
  static constexpr const char* switches = "kind heads kv_heads layers patch eps pool base label explained";

  template <class S>
  static Tensors<S> library(const Case& c) {
    const std::string kind = c.text("kind", "");
    if (kind == "vit") return vit<S>(c);
    if (kind == "bert") return bert<S>(c);
    if (kind == "llama") return llama<S>(c);
    throw Refused("kind is '" + kind + "'");
  }

 private:
  /// The weights of the case as a file in memory, all but the inputs of the model.
  template <class S>
  static std::vector<std::byte> checkpoint(const Case& c, const std::set<std::string>& inputs) {
    limpid::io::Safetensors file;
    for (const auto& entry : c.file().tensors) {
      const std::string tensor = entry.first.substr(entry.first.find('.') + 1);
      if (entry.first.rfind("in.", 0) != 0 || inputs.count(tensor) != 0) continue;
      file.tensors[tensor] = limpid::io::Tensor::from(c.in<S>(tensor));
      file.tensors[tensor].shape = entry.second.shape;
    }
    return limpid::io::serialize_safetensors(file);
  }
  static std::vector<Index> numbers(const Case& c, const std::string& input) {
    const Mat<double> all = c.in<double>(input);
    std::vector<Index> out;
    for (Index i = 0; i < all.size(); ++i) out.push_back(static_cast<Index>(all.data()[i]));
    return out;
  }
  template <class S, class Model>
  static void put(const Model& model, const limpid::model::ParameterGradients<S>& gradients, Tensors<S>& all) {
    if (!model.unused.empty()) throw Refused("the model does not know '" + model.unused.front() + "'");
    for (std::size_t i = 0; i < gradients.list.size(); ++i)
      all["grad." + model.parameters.list[i].name] = gradients.list[i];
  }
  /// The mean over rows of -log softmax(logits)[label], and factor times its gradient added to dlogits.
  template <class S>
  static Mat<S> cross_entropy(const Mat<S>& logits, const std::vector<Index>& labels, S factor, Mat<S>& dlogits) {
    Mat<S> loss = Mat<S>::Zero(1, 1);
    const S count = S(double(labels.size()));
    for (std::size_t l = 0; l < labels.size(); ++l) {
      const auto i = static_cast<Index>(l);
      const S most = logits.row(i).maxCoeff();
      const Mat<S> e = (logits.row(i).array() - most).exp();
      loss(0, 0) += (std::log(e.sum()) + most - logits(i, labels[l])) / count;
      dlogits.row(i) += e * (factor / (e.sum() * count));
      dlogits(i, labels[l]) -= factor / count;
    }
    return loss;
  }

  template <class S>
  static Tensors<S> vit(const Case& c) {
    const auto bytes = checkpoint<S>(c, {"image"});
    const limpid::io::Checkpoint file(bytes.data(), bytes.size());
    limpid::model::VitOptions options;
    options.heads = c.count("heads", 1), options.eps = c.number("eps", 1e-6);
    const std::string pool = c.text("pool", "cls");
    if (pool != "cls" && pool != "mean") throw Refused("pool is '" + pool + "'");
    if (pool == "mean") options.pool = limpid::model::VitOptions::Pool::mean;
    const limpid::model::Vit<S> model(file, options);
    if (model.layers() != c.count("layers", 1) || model.patch() != c.count("patch", 1))
      throw Refused("the weights are of another number of layers or another patch");
    const std::vector<Index>& shape = c.shape("image");
    const Index pixels = shape[1] * shape[2];
    const Mat<S> by_channel = c.in<S>("image").template reshaped<Eigen::RowMajor>(shape[0], pixels);
    const Mat<S> image = by_channel.transpose();
    const auto op = limpid::softmax();
    auto saved = model.saved(op);
    model.forward(op, image, shape[1], shape[2], saved);
    Mat<S> dlogits = c.dout<S>("logits").transpose();
    const Mat<S> loss =
        cross_entropy<S>(saved.logits, {c.place("label", 0, model.classes())}, c.dout<S>("loss")(0, 0), dlogits);
    limpid::model::ParameterGradients<S> gradients(model.parameters);
    Mat<S> dimage(pixels, shape[0]);
    model.backward(op, saved, dlogits, {}, &gradients, dimage);
    const Mat<S> turned = dimage.transpose();
    Tensors<S> all{{"out.logits", saved.logits},
                   {"out.loss", loss},
                   {"out.relevance", model.explain(op, saved, c.place("explained", 0, model.classes())).row()},
                   {"grad.image", turned.template reshaped<Eigen::RowMajor>(shape[0] * shape[1], shape[2])}};
    put(model, gradients, all);
    return all;
  }

  template <class S>
  static Tensors<S> bert(const Case& c) {
    const auto bytes = checkpoint<S>(c, {"ids", "types", "keep"});
    const limpid::io::Checkpoint file(bytes.data(), bytes.size());
    limpid::model::BertOptions options;
    options.heads = c.count("heads", 1), options.layers = c.count("layers", 1), options.eps = c.number("eps", 1e-12);
    const limpid::model::Bert<S> model(file, options);
    const std::vector<Index> ids = numbers(c, "ids");
    Mat<bool> keep = Mat<bool>::Constant(1, static_cast<Index>(ids.size()), true);
    if (c.has("keep")) keep = c.in<double>("keep").transpose().cast<bool>();
    const Mat<S> padding = limpid::model::padding_bias<S>(keep), weights = limpid::model::mean_weights<S>(keep);
    const auto op = limpid::softmax(limpid::key_bias(padding));
    auto saved = model.saved(op);
    model.forward(op, ids, c.has("types") ? numbers(c, "types") : std::vector<Index>(), saved);
    const Mat<S> pooled = limpid::model::pool(saved.hidden, weights);
    const Mat<S> dembedding = c.dout<S>("embedding").transpose();
    const Mat<S> dhidden = c.dout<S>("hidden") + limpid::model::pool_backward<S>(
                                                     weights, limpid::model::unit_rows_backward(pooled, dembedding));
    limpid::model::ParameterGradients<S> gradients(model.parameters);
    model.backward(op, saved, dhidden, &gradients);
    Tensors<S> all{{"out.hidden", saved.hidden}, {"out.embedding", limpid::model::unit_rows(pooled)}};
    put(model, gradients, all);
    return all;
  }

  template <class S>
  static Tensors<S> llama(const Case& c) {
    const auto bytes = checkpoint<S>(c, {"ids"});
    const limpid::io::Checkpoint file(bytes.data(), bytes.size());
    const limpid::model::Llama<S> model(file, {c.count("heads", 1), c.number("eps", 1e-5)});
    if (model.layers() != c.count("layers", 1) || model.kv_heads() != c.count("kv_heads", c.count("heads", 1)))
      throw Refused("the weights are of another number of layers or key heads");
    const std::vector<Index> ids = numbers(c, "ids");
    const auto op = limpid::model::llama_attention(c.number("base", 10000));
    auto saved = model.saved(op);
    model.forward(op, ids, saved);
    Mat<S> dlogits = c.dout<S>("logits");
    const Mat<S> loss = cross_entropy<S>(saved.logits, {ids.begin() + 1, ids.end()}, c.dout<S>("loss")(0, 0), dlogits);
    limpid::model::ParameterGradients<S> gradients(model.parameters);
    model.backward(op, saved, dlogits, &gradients);
    Tensors<S> all{{"out.logits", saved.logits},
                   {"out.loss", loss},
                   {"out.relevance", model.explain(op, saved, c.place("explained", 0, model.vocabulary())).row()}};
    put(model, gradients, all);
    return all;
  }
};

const Registered<TransformerModel> transformer_model_cases;

}  // namespace golden
