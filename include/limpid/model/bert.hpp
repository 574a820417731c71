// limpid: text encoders from a checkpoint: BERT and its kin, under Hugging Face's names.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../op/softmax.hpp"
#include "../score/biases.hpp"
#include "config.hpp"
#include "pooling.hpp"
#include "stack.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {

/// What a checkpoint of a text encoder does not say.
struct BertOptions {
  Index heads = 0;
  Index layers =
      0;  ///< has to be said of ALBERT, whose block is used so many times; of BERT 0 means as many as there are
  double eps = 1e-12;
  Activation activation = Activation::gelu;  ///< gelu_new of a configuration is gelu_tanh
  Index first_place = 0;                     ///< row of the table of positions that a text begins with; RoBERTa's is 2
};

/// The options of a model from the config.json that Hugging Face keeps beside its files: num_attention_heads,
/// num_hidden_layers, layer_norm_eps, hidden_act (of DistilBERT n_heads, n_layers, activation); of RoBERTa and its kin
/// places begin behind pad_token_id. Throws FormatError that names the file: what cannot be read, is no JSON object, or
/// is of a model with other formulas: a model_type other than bert, electra, distilbert, albert, roberta, xlm-roberta
/// and camembert, a decoder, positions that are not a table, an ALBERT whose groups have several layers, an activation
/// that Activation has not; then what lacks heads or layers.
inline BertOptions bert_options(const std::string& path) {
  const detail::Config config(path);
  BertOptions out;
  const std::vector<std::string> plain{"bert", "electra", "distilbert", "albert"},
      padded{"roberta", "xlm-roberta", "camembert"};
  std::vector<std::string> kinds = plain;
  kinds.insert(kinds.end(), padded.begin(), padded.end());
  config.one_of("model_type", kinds);
  std::string kind = plain.front();
  config.text("model_type", kind);
  const bool distilled = kind == "distilbert";
  const char *heads = distilled ? "n_heads" : "num_attention_heads",
             *layers = distilled ? "n_layers" : "num_hidden_layers";
  config.count(heads, out.heads), config.count(layers, out.layers);
  if (out.heads < 1 || out.layers < 1) config.fail(std::string("lacks ") + heads + " or " + layers + ", wanted both");
  config.one_of("position_embedding_type", {"absolute"});
  for (const char* name : {"is_decoder", "add_cross_attention"}) {
    bool decoder = false;
    config.flag(name, decoder);
    if (decoder) config.fail("found true as " + std::string(name) + ", wanted an encoder, which has false");
  }
  Index inner = 1, pad = 1;
  config.count("inner_group_num", inner);
  if (inner != 1) config.fail("found " + std::to_string(inner) + " as inner_group_num, wanted 1");
  if (!distilled) config.eps("layer_norm_eps", out.eps);  // which is 1e-12 whatever a file says
  out.activation = config.activation(out.activation, distilled ? "activation" : "hidden_act");
  config.count("pad_token_id", pad);
  if (std::find(padded.begin(), padded.end(), kind) != padded.end()) out.first_place = pad + 1;
  return out;
}

/// What a run of a Bert gives and keeps for a backward pass.
template <class Op, class S>
struct BertSaved {
  Mat<S> hidden;  ///< (batch n) x D
  // kept:
  std::vector<Index> ids, types;
  Mat<S> sum, embedded;
  LayerNormSaved<S> norm;
  StackSaved<Op, S> stack;
  Index batch = 1;
};

/// 0 for a token that is kept and minus infinity for one that is not, B x n as keep is: for key_bias(), so that nothing
/// attends to padding.
template <class S, class Keep>
Mat<S> padding_bias(const Keep& keep) {
  Mat<S> out(keep.rows(), keep.cols());
  for (Index b = 0; b < keep.rows(); ++b)
    for (Index i = 0; i < keep.cols(); ++i) out(b, i) = keep(b, i) ? S(0) : -std::numeric_limits<S>::infinity();
  return out;
}

namespace detail {

inline const NameTable& bert_embeddings() {
  static const NameTable table{{"words", "embeddings.word_embeddings.weight", "Ve"},
                               {"places", "embeddings.position_embeddings.weight", "Ne"},
                               {"types", "embeddings.token_type_embeddings.weight", "Te"},
                               {"gamma", "embeddings.LayerNorm.weight", "e"},
                               {"beta", "embeddings.LayerNorm.bias", "e"}};
  return table;
}
inline const NameTable& bert_block() {
  static const NameTable table{{"wq", "attention.self.query.weight", "DD"},
                               {"bq", "attention.self.query.bias", "D"},
                               {"wk", "attention.self.key.weight", "DD"},
                               {"bk", "attention.self.key.bias", "D"},
                               {"wv", "attention.self.value.weight", "DD"},
                               {"bv", "attention.self.value.bias", "D"},
                               {"wo", "attention.output.dense.weight", "DD"},
                               {"bo", "attention.output.dense.bias", "D"},
                               {"gamma1", "attention.output.LayerNorm.weight", "D"},
                               {"beta1", "attention.output.LayerNorm.bias", "D"},
                               {"w1", "intermediate.dense.weight", "ED"},
                               {"b1", "intermediate.dense.bias", "E"},
                               {"w2", "output.dense.weight", "DE"},
                               {"b2", "output.dense.bias", "D"},
                               {"gamma2", "output.LayerNorm.weight", "D"},
                               {"beta2", "output.LayerNorm.bias", "D"}};
  return table;
}
/// DistilBERT's, which has no types.
inline const NameTable& distilled_embeddings() {
  static const NameTable table{{"words", "embeddings.word_embeddings.weight", "Ve"},
                               {"places", "embeddings.position_embeddings.weight", "Ne"},
                               {"gamma", "embeddings.LayerNorm.weight", "e"},
                               {"beta", "embeddings.LayerNorm.bias", "e"}};
  return table;
}
inline const NameTable& distilled_block() {
  static const NameTable table{{"wq", "attention.q_lin.weight", "DD"},
                               {"bq", "attention.q_lin.bias", "D"},
                               {"wk", "attention.k_lin.weight", "DD"},
                               {"bk", "attention.k_lin.bias", "D"},
                               {"wv", "attention.v_lin.weight", "DD"},
                               {"bv", "attention.v_lin.bias", "D"},
                               {"wo", "attention.out_lin.weight", "DD"},
                               {"bo", "attention.out_lin.bias", "D"},
                               {"gamma1", "sa_layer_norm.weight", "D"},
                               {"beta1", "sa_layer_norm.bias", "D"},
                               {"w1", "ffn.lin1.weight", "ED"},
                               {"b1", "ffn.lin1.bias", "E"},
                               {"w2", "ffn.lin2.weight", "DE"},
                               {"b2", "ffn.lin2.bias", "D"},
                               {"gamma2", "output_layer_norm.weight", "D"},
                               {"beta2", "output_layer_norm.bias", "D"}};
  return table;
}
inline const NameTable& albert_block() {
  static const NameTable table{{"wq", "attention.query.weight", "DD"},
                               {"bq", "attention.query.bias", "D"},
                               {"wk", "attention.key.weight", "DD"},
                               {"bk", "attention.key.bias", "D"},
                               {"wv", "attention.value.weight", "DD"},
                               {"bv", "attention.value.bias", "D"},
                               {"wo", "attention.dense.weight", "DD"},
                               {"bo", "attention.dense.bias", "D"},
                               {"gamma1", "attention.LayerNorm.weight", "D"},
                               {"beta1", "attention.LayerNorm.bias", "D"},
                               {"w1", "ffn.weight", "ED"},
                               {"b1", "ffn.bias", "E"},
                               {"w2", "ffn_output.weight", "DE"},
                               {"b2", "ffn_output.bias", "D"},
                               {"gamma2", "full_layer_layer_norm.weight", "D"},
                               {"beta2", "full_layer_layer_norm.bias", "D"}};
  return table;
}

}  // namespace detail

/// BERT (Devlin et al. 2018, arXiv 1810.04805), ELECTRA (Clark et al. 2020, 2003.10555), DistilBERT (Sanh et al. 2019,
/// 1910.01108), which has no types, or ALBERT (Lan et al. 2019, 1909.11942), whichever the file's names are of:
/// post-norm blocks over
///
///     embedded = N(words[id] + places[i] + types[type]),   of ALBERT, and ELECTRA if it has them, times W_in^T + b_in
///
/// Prefixes as bert. or roberta. and none, and LayerNorm.gamma and .beta of files released in TensorFlow's names, are
/// found by themselves. Token i of an item has place first_place + i. Pooler and heads of tasks are not read, and so
/// reported in `unused`; what is not known among embeddings and blocks is refused. Padding goes into the operator:
///
///     const limpid::io::Checkpoint file("model.safetensors");
///     const limpid::model::Bert<float> bert(file, {.heads = 12});   // or bert_options("config.json")
///     const limpid::Mat<float> padding = limpid::model::padding_bias<float>(keep);   // batch x n
///     const auto op = limpid::softmax(limpid::key_bias(padding));
///     auto saved = bert.saved(op);
///     bert.forward(op, ids, {}, saved, {.batch = batch});
///     const auto sentence = unit_rows(pool(saved.hidden, mean_weights<float>(keep)));
///
/// Throws FormatError that names the file, the tensor, found and wanted: missing tensors all at once, other shapes, a
/// head count that does not divide, ALBERT without layers; ShapeError for a first_place that is none. Calls throw
/// ShapeError: ids out of the vocabulary, more tokens than places, sums of embeddings of another shape, an operator's
/// own reasons.
template <class S>
class Bert {
 public:
  template <class Op>
  using Saved = BertSaved<Op, S>;

  Bert(const io::Checkpoint& file, const BertOptions& options);

  Parameters<S> parameters;
  std::vector<std::string> unused;  ///< tensors of the file that this model does not know

  /// Brings the weights of the blocks into the order in which linear() reads them, for as much memory again: less work
  /// in calls of few tokens, the same bits. To be called again where parameters change.
  void pack() { stack_.pack(parameters); }
  Index layers() const { return stack_.layers; }
  Index width() const { return map_.given() ? map_.rows : words_.cols; }
  Index vocabulary() const { return words_.rows; }
  template <class Op>
  Saved<Op> saved(const Op&) const {
    return {};
  }

  /// ids and types: batch items of n tokens, one after another; types may be empty: 0.
  template <class Op>
  void forward(const Op& op, const std::vector<Index>& ids, const std::vector<Index>& types, BertSaved<Op, S>& saved,
               const ModelCall& call = {}) const;
  /// The same from sums of embeddings, (batch n) x their width: saved.sum of a call by ids, or what integrated gradients
  /// and SmoothGrad make of it. Their tables have no gradient then, and backward throws where gradients are wanted.
  template <class Op>
  void forward(const Op& op, View<S> sums, BertSaved<Op, S>& saved, const ModelCall& call = {}) const {
    if (call.batch < 1 || sums.rows < 1 || sums.rows % call.batch != 0 || sums.cols != words_.cols)
      limpid::detail::raise("bert: sums of embeddings are " + limpid::detail::shape_text(sums.rows, sums.cols) +
                            " and a batch of " + std::to_string(call.batch) + ", wanted " +
                            std::to_string(words_.cols) + " columns and as many tokens in each item, one at least");
    stack_.check(op, parameters, sums.rows, call.batch);
    saved.ids.clear(), saved.types.clear(), saved.batch = call.batch;
    saved.sum = sums.map();
    from_sums(op, saved, call);
  }

  /// Backwards from the gradient of hidden: gradients are added to, dembeddings ((batch n) x the width of embeddings)
  /// gets the gradient of the sum of a token's embeddings, relevance its row; what is null or empty is not made. Throws
  /// ShapeError where they do not fit, or nothing was kept.
  template <class Op>
  void backward(const Op& op, BertSaved<Op, S>& saved, View<S> dhidden, ParameterGradients<S>* gradients,
                MutView<S> dembeddings = {}, RelevanceRow<S>* relevance = nullptr, const ModelCall& call = {}) const {
    run_backward(op, saved, dhidden, gradients, dembeddings, relevance, call);
  }
  /// The same with all that an Explanation, started with a row an item, asks for; its input is the sum of a token's
  /// embeddings. Gradients have the same bits.
  template <class Op>
  void backward(const Op& op, BertSaved<Op, S>& saved, View<S> dhidden, ParameterGradients<S>* gradients,
                MutView<S> dembeddings, Explanation<S>& why, const ModelCall& call = {}) const {
    run_backward(op, saved, dhidden, gradients, dembeddings, &why, call);
  }

 private:
  template <class Op, class Asked>
  void run_backward(const Op& op, BertSaved<Op, S>& saved, View<S> dhidden, ParameterGradients<S>* gradients,
                    MutView<S> dembeddings, Asked* asked, const ModelCall& call) const;

  std::vector<Index> places(Index batch, Index n) const { return detail::places_of(batch, n, options_.first_place); }

  template <class Op>
  void from_sums(const Op& op, BertSaved<Op, S>& saved, const ModelCall& call) const;

  BertOptions options_;
  detail::Stack<S> stack_;
  Slot words_, places_, types_, gamma_, beta_, map_, map_bias_;
};

// Outside of the class, where a template is not inline: limpid::compiled_models holds them.

template <class S>
Bert<S>::Bert(const io::Checkpoint& file, const BertOptions& options) : options_(options) {
  detail::Loader<S> load(file, parameters);
  const std::string prefix = load.prefix({"", "bert.", "albert.", "roberta.", "electra.", "distilbert.", "model."},
                                         detail::bert_embeddings().front().name);
  const std::string group = prefix + "encoder.albert_layer_groups.#.albert_layers.0.",
                    distilled_blocks = prefix + "transformer.layer.#.";
  const bool albert = file.has(load.numbered(group, 0) + detail::albert_block().front().name);
  const bool distilled = file.has(load.numbered(distilled_blocks, 0) + detail::distilled_block().front().name);
  const std::string blocks = albert ? group : distilled ? distilled_blocks : prefix + "encoder.layer.#.";
  const detail::NameTable& table = albert      ? detail::albert_block()
                                   : distilled ? detail::distilled_block()
                                               : detail::bert_block();
  const detail::NameTable& embeddings = distilled ? detail::distilled_embeddings() : detail::bert_embeddings();
  const std::string mapping = prefix + (albert ? "encoder.embedding_hidden_mapping_in." : "embeddings_project.");
  const bool mapped = albert || file.has(mapping + "weight");  // of ELECTRA where its embeddings have another width
  const Index count = load.count(blocks + table.front().name);

  load.want(prefix, embeddings);
  if (mapped) load.want(mapping, {{"", "weight", ""}, {"", "bias", ""}});
  for (Index l = 0; l < std::max(count, Index(1)); ++l) load.want(load.numbered(blocks, l), table);
  load.require();
  stack_.layers = options.layers == 0 && !albert ? count : options.layers;
  constexpr Index most_layers = Index(1) << 16;  // of ALBERT the options alone say how many there are
  if (stack_.layers < 1 || stack_.layers > most_layers || stack_.layers % count != 0 ||
      (!albert && stack_.layers != count))
    io::detail::fail(
        file.name(),
        "found " + std::to_string(count) + " blocks and options of " + std::to_string(options.layers) +
            " layers, wanted " +
            (albert ? "layers, a multiple of the blocks, at most " + std::to_string(most_layers) : "as many, or 0"));

  load.read(prefix, embeddings, [&](const std::string& role, const Slot& slot) {
    (role == "words"    ? words_
     : role == "places" ? places_
     : role == "types"  ? types_
     : role == "gamma"  ? gamma_
                        : beta_) = slot;
  });
  if (options.first_place < 0 || options.first_place >= places_.rows)
    limpid::detail::raise("bert: first_place is " + std::to_string(options.first_place) + ", wanted it in [0, " +
                          std::to_string(places_.rows) + "), the places of the checkpoint");
  if (mapped) {
    map_ = load.take(mapping + "weight", "De");
    map_bias_ = load.take(mapping + "bias", "D");
  } else {
    load.extents['D'] = load.extents['e'];
  }
  detail::check_heads(file, load.extents['D'], options.heads);
  for (Index l = 0; l < count; ++l) stack_.blocks.push_back(load.block(load.numbered(blocks, l), table));
  file.skip(prefix + "embeddings.position_ids");  // 0, 1, 2 ..., which some files carry
  load.refuse_unread({prefix + "embeddings", prefix + "encoder.", prefix + "transformer."});
  unused = file.unused();
  stack_.options.heads = options.heads, stack_.options.eps = options.eps;
  stack_.options.place = NormPlace::post, stack_.options.mlp = Mlp{options.activation};
}

template <class S>
template <class Op>
void Bert<S>::forward(const Op& op, const std::vector<Index>& ids, const std::vector<Index>& types,
                      BertSaved<Op, S>& saved, const ModelCall& call) const {
  detail::check_ids("bert", "ids", ids, call.batch, vocabulary(), "the vocabulary");
  const auto count = static_cast<Index>(ids.size()), n = count / call.batch;
  if (!types.empty())
    detail::check_ids("bert", "types", types, call.batch, std::max(types_.rows, Index(1)), "the types");
  if (!types.empty() && types.size() != ids.size())
    limpid::detail::raise("bert: found " + std::to_string(types.size()) + " types, wanted " + std::to_string(count) +
                          ", one a token, or none");
  if (n > places_.rows - options_.first_place)
    limpid::detail::raise("bert: found " + std::to_string(n) + " tokens an item, wanted at most " +
                          std::to_string(places_.rows - options_.first_place) + ", the places of the checkpoint" +
                          (options_.first_place != 0 ? " from first_place on" : ""));
  stack_.check(op, parameters, count, call.batch);
  saved.ids = ids, saved.types = types, saved.batch = call.batch;
  if (types.empty()) saved.types.assign(ids.size(), 0);
  saved.sum.resize(count, words_.cols);
  embed(parameters(words_), saved.ids, saved.sum, {false, call.workspace, call.executor});
  if (types_.given()) embed(parameters(types_), saved.types, saved.sum, {true, call.workspace, call.executor});
  embed(parameters(places_), places(call.batch, n), saved.sum, {true, call.workspace, call.executor});
  from_sums(op, saved, call);
}

template <class S>
template <class Op, class Asked>
void Bert<S>::run_backward(const Op& op, BertSaved<Op, S>& saved, View<S> dhidden, ParameterGradients<S>* gradients,
                           MutView<S> dembeddings, Asked* asked, const ModelCall& call) const {
  const Index count = saved.hidden.rows(), n = count / saved.batch;
  if (dhidden.rows != count || dhidden.cols != width())
    limpid::detail::raise("bert: the gradient of hidden is " + limpid::detail::shape_text(dhidden.rows, dhidden.cols) +
                          ", wanted " + limpid::detail::shape_text(count, width()));
  if (dembeddings.given() && (dembeddings.rows != count || dembeddings.cols != words_.cols))
    limpid::detail::raise("bert: the gradient of embeddings is " +
                          limpid::detail::shape_text(dembeddings.rows, dembeddings.cols) + ", wanted " +
                          limpid::detail::shape_text(count, words_.cols));
  detail::check_gradient_list("bert", gradients, parameters);
  stack_.check_kept(op, parameters, saved.stack);
  detail::check_asked("bert", asked, saved.batch, n);
  if (gradients != nullptr && saved.ids.empty())
    limpid::detail::raise("bert: gradients of parameters after a call by sums of embeddings, wanted one by ids");
  const auto gradient = [&](const Slot& slot) {
    return gradients != nullptr ? add((*gradients)(slot)) : Gradient<S>();
  };
  const LayerCall inner{false, call.workspace, call.executor};
  Mat<S> d = stack_.backward(op, parameters, saved.stack, Mat<S>(dhidden.map()), gradients, asked, call);
  const bool input = asked != nullptr && detail::asks_for_input(asked);
  if (gradients == nullptr && !dembeddings.given() && !input) return;
  if (map_.given()) {
    Mat<S> dmapped(count, words_.cols);
    linear_backward(View<S>(saved.embedded), out_in(parameters(map_)), View<S>(d),
                    {overwrite(dmapped), gradient(map_), gradient(map_bias_)}, inner);
    d = std::move(dmapped);
  }
  Mat<S> dsum(count, words_.cols);
  layer_norm_backward(View<S>(saved.sum), parameters(gamma_), saved.norm, View<S>(d),
                      {overwrite(dsum), gradient(gamma_), gradient(beta_)}, inner);
  if (dembeddings.given()) dembeddings.map() = dsum;
  if (input) detail::tell_input(asked, saved.sum, dsum, 0);
  if (gradients == nullptr) return;
  embed_backward(saved.ids, dsum, gradient(words_));
  if (types_.given()) embed_backward(saved.types, dsum, gradient(types_));
  embed_backward(places(saved.batch, n), dsum, gradient(places_));
}

template <class S>
template <class Op>
void Bert<S>::from_sums(const Op& op, BertSaved<Op, S>& saved, const ModelCall& call) const {
  const Index count = saved.sum.rows();
  saved.embedded.resize(count, words_.cols);
  layer_norm(saved.sum, parameters(gamma_), parameters(beta_), saved.embedded,
             {options_.eps, &saved.norm, call.workspace, call.executor});
  Mat<S> x;
  if (map_.given()) {
    x.resize(count, width());
    linear(View<S>(saved.embedded), out_in(parameters(map_)), parameters(map_bias_), x,
           {false, call.workspace, call.executor});
  } else {
    x = saved.embedded;
  }
  saved.hidden = stack_.forward(op, parameters, std::move(x), saved.stack, call);
}

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
