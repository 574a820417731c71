// limpid: golden cases of whole models: a vision transformer, a BERT encoder, a LLaMA-style decoder, each read from the
// case as from its checkpoint.
// SPDX-License-Identifier: MIT
#include <limpid/model/bert.hpp>
#include <limpid/model/llama.hpp>
#include <limpid/model/vit.hpp>

#include "tape.hpp"

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

  template <class S>
  static Tensors<S> formula(const Case& c) {
    const std::string kind = c.text("kind", "");
    return kind == "vit" ? plain_vit<S>(c) : kind == "bert" ? plain_bert<S>(c) : plain_llama<S>(c);
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
    options.grid_rows = c.shape("image")[1] / c.count("patch", 1);
    options.grid_cols = c.shape("image")[2] / c.count("patch", 1);
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

  /// The formulas. Weights lie [out, in].
  template <class S>
  struct Plain {
    using Var = typename Tape<S>::Var;
    const Case& c;
    Tape<S> t;
    std::vector<std::vector<Var>> maps;  // of every layer

    Var in(const std::string& name) { return t.in(c, name); }
    Var linear(Var x, const std::string& name) {
      return t.linear(x, t.transposed(in(name + ".weight")), in(name + ".bias"));
    }
    Var norm(Var x, const std::string& name, double eps, bool centred = true) {
      return t.normed(x, in(name + ".weight"), in(name + ".bias"), eps, centred);
    }
    Var attention(Var q, Var k, Var v, Index heads, Index groups, const Mat<bool>& keep) {
      maps.emplace_back();
      return t.attention(q, k, v, heads, groups, 1 / std::sqrt(double(q->value.cols() / heads)), keep, &maps.back());
    }
    static Var gelu(Tape<S>& t, Var x) { return t.each(x, gelu_of<S>, gelu_slope<S>); }

    /// What goes back from logits, whose row `at` is explained from the row of weights.
    Tensors<S> finish(Var logits, Index at, Mat<S> row, const std::vector<Index>& labels) {
      logits->grad(at, c.place("explained", 0, logits->value.cols())) = S(1);
      t.backward();
      for (std::size_t l = maps.size(); l-- > 0;) {
        Mat<S> abar = Mat<S>::Zero(row.cols(), row.cols());
        for (const Var a : maps[l]) abar += times(a->value, a->grad).unaryExpr(&relu_of<S>);
        row += product<S>(row, scaled(1 / S(double(maps[l].size())), abar));
      }
      t.clear();
      logits->grad = c.dout<S>("logits");
      if (logits->grad.rows() != logits->value.rows()) logits->grad = Mat<S>(logits->grad.transpose());
      const Mat<S> loss = cross_entropy<S>(logits->value, labels, c.dout<S>("loss")(0, 0), logits->grad);
      t.backward();
      Tensors<S> all{{"out.logits", logits->value}, {"out.loss", loss}, {"out.relevance", row}};
      t.gradients(all);
      return all;
    }
  };

  template <class S>
  static Tensors<S> plain_vit(const Case& c) {
    Plain<S> m{c, {}, {}};
    using Var = typename Tape<S>::Var;
    Tape<S>& t = m.t;
    const std::vector<Index>& shape = c.shape("image");
    const Index heads = c.count("heads", 1), side = c.count("patch", 1), rows = shape[1] / side, cols = shape[2] / side;
    const Index pixels = shape[0] * side * side;
    const double eps = c.number("eps", 1e-6);
    std::vector<Index> places;  // pixels patch by patch: channel, row, column
    for (Index i = 0; i < rows * cols; ++i)
      for (Index at = 0; at < pixels; ++at) {
        const Index row = i / cols * side + at / side % side, col = i % cols * side + at % side;
        places.push_back((at / side / side * shape[1] + row) * shape[2] + col);
      }
    const Var flat = t.reshaped(m.in("image"), shape[0] * shape[1] * shape[2], 1);
    const Var filters = m.in("patch_embed.proj.weight"), token = m.in("cls_token"), table = m.in("pos_embed");
    const Var filter = t.reshaped(filters, c.shape("patch_embed.proj.weight")[0], pixels);
    Var x = t.linear(t.reshaped(t.rows_of(flat, places), rows * cols, pixels), t.transposed(filter),
                     m.in("patch_embed.proj.bias"));
    if (token != nullptr && table->value.rows() > x->value.rows())
      x = t.add(t.below({token, x}), table);
    else
      x = t.add(x, table), x = token == nullptr ? x : t.below({token, x});
    const Index n = x->value.rows(), width = x->value.cols(), first = n - rows * cols;
    const auto scaled_by = [&](Var y, const std::string& name) { return t.times_row(y, m.in(name)); };
    for (Index l = 0; l < c.count("layers", 1); ++l) {
      const std::string at = "blocks." + std::to_string(l) + ".";
      const Var qkv = m.linear(m.norm(x, at + "norm1", eps), at + "attn.qkv");
      const Var y = m.attention(t.columns(qkv, 0, width), t.columns(qkv, width, width),
                                t.columns(qkv, 2 * width, width), heads, heads, Mat<bool>::Constant(n, n, true));
      x = t.add(x, scaled_by(m.linear(y, at + "attn.proj"), at + "ls1.gamma"));
      const Var inside = m.linear(m.norm(x, at + "norm2", eps), at + "mlp.fc1");
      x = t.add(x, scaled_by(m.linear(m.gelu(t, inside), at + "mlp.fc2"), at + "ls2.gamma"));
    }
    Mat<S> row = Mat<S>::Zero(1, n);
    if (c.text("pool", "cls") == "cls")
      row(0, 0) = S(1);
    else
      row.rightCols(n - first).setConstant(1 / S(double(n - first)));
    const bool before = c.has("norm.weight");
    if (before) x = m.norm(x, "norm", eps);
    x = t.product(t.leaf(row), x);
    if (!before) x = m.norm(x, "fc_norm", eps);
    return m.finish(m.linear(x, "head"), 0, row, {c.integer("label", 0)});
  }

  template <class S>
  static Tensors<S> plain_bert(const Case& c) {
    Plain<S> m{c, {}, {}};
    using Var = typename Tape<S>::Var;
    Tape<S>& t = m.t;
    const std::vector<Index> ids = numbers(c, "ids");
    const auto n = static_cast<Index>(ids.size());
    const Index heads = c.count("heads", 1);
    const double eps = c.number("eps", 1e-12);
    Mat<bool> keep = Mat<bool>::Constant(n, n, true);
    if (c.has("keep")) keep = c.in<double>("keep").transpose().replicate(n, 1).template cast<bool>();
    Var x = t.add(t.rows_of(m.in("embeddings.word_embeddings.weight"), ids),
                  t.rows(m.in("embeddings.position_embeddings.weight"), 0, n));
    x = t.add(x, t.rows_of(m.in("embeddings.token_type_embeddings.weight"),
                           c.has("types") ? numbers(c, "types") : std::vector<Index>(ids.size(), 0)));
    x = m.norm(x, "embeddings.LayerNorm", eps);
    for (Index l = 0; l < c.count("layers", 1); ++l) {
      const std::string at = "encoder.layer." + std::to_string(l) + ".", own = at + "attention.self.";
      const Var y = m.attention(m.linear(x, own + "query"), m.linear(x, own + "key"), m.linear(x, own + "value"), heads,
                                heads, keep);
      x = m.norm(t.add(x, m.linear(y, at + "attention.output.dense")), at + "attention.output.LayerNorm", eps);
      const Var inside = m.gelu(t, m.linear(x, at + "intermediate.dense"));
      x = m.norm(t.add(x, m.linear(inside, at + "output.dense")), at + "output.LayerNorm", eps);
    }
    Mat<S> row = keep.row(0).template cast<S>();
    row /= row.sum();
    const Var unit = t.scaled(1 / std::sqrt(S(double(x->value.cols()))),
                              t.normed(t.product(t.leaf(row), x), nullptr, nullptr, 0, false));
    x->grad = c.dout<S>("hidden"), unit->grad = c.dout<S>("embedding").transpose();
    t.backward();
    Tensors<S> all{{"out.hidden", x->value}, {"out.embedding", unit->value}};
    t.gradients(all);
    return all;
  }

  template <class S>
  static Tensors<S> plain_llama(const Case& c) {
    Plain<S> m{c, {}, {}};
    using Var = typename Tape<S>::Var;
    Tape<S>& t = m.t;
    const std::vector<Index> ids = numbers(c, "ids");
    const auto n = static_cast<Index>(ids.size());
    const Index heads = c.count("heads", 1), groups = c.count("kv_heads", heads);
    const double eps = c.number("eps", 1e-5), base = c.number("base", 10000);
    const Var table = m.in("model.embed_tokens.weight");
    Mat<bool> keep(n, n);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) keep(i, j) = j <= i;
    Var x = t.rows_of(table, ids);
    for (Index l = 0; l < c.count("layers", 1); ++l) {
      const std::string at = "model.layers." + std::to_string(l) + ".", own = at + "self_attn.";
      Var y = m.norm(x, at + "input_layernorm", eps, false);
      y = m.attention(t.turned(m.linear(y, own + "q_proj"), heads, true, base),
                      t.turned(m.linear(y, own + "k_proj"), groups, true, base), m.linear(y, own + "v_proj"), heads,
                      groups, keep);
      x = t.add(x, m.linear(y, own + "o_proj"));
      y = m.norm(x, at + "post_attention_layernorm", eps, false);
      y = t.times(t.each(m.linear(y, at + "mlp.gate_proj"), silu_of<S>, silu_slope<S>),
                  m.linear(y, at + "mlp.up_proj"));
      x = t.add(x, m.linear(y, at + "mlp.down_proj"));
    }
    x = m.norm(x, "model.norm", eps, false);
    const Var logits = c.has("lm_head.weight") ? m.linear(x, "lm_head") : t.product(x, t.transposed(table));
    Mat<S> row = Mat<S>::Zero(1, n);
    row(0, n - 1) = S(1);
    return m.finish(logits, n - 1, row, {ids.begin() + 1, ids.end()});
  }
};

const Registered<TransformerModel> transformer_model_cases;

}  // namespace golden
