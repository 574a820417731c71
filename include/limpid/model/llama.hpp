// limpid: text decoders from a checkpoint: LLaMA and its kin, under Hugging Face's names.
// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "../call/decode.hpp"
#include "../layer/rms_norm.hpp"
#include "../layer/twicing_cache.hpp"
#include "../op/rope.hpp"
#include "../op/softmax.hpp"
#include "../score/masks.hpp"
#include "config.hpp"
#include "stack.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {

/// What a checkpoint of a decoder does not say, and its config.json does: see llama_options. eps has to be said: some
/// of the family have 1e-5 and some 1e-6.
struct LlamaOptions {
  Index heads = 0;
  double eps = eps_not_given;
  double base = 10000;  ///< of the rotary positions, rope_theta
  Index rotary = 0;     ///< columns of a head that are turned; 0 means all
  RopeScaling scaling = {};
  Index window = 0;                ///< tokens that a token sees, itself among them; longer texts are refused; 0: all
  Index layers = 0, kv_heads = 0;  ///< that the file has to have; 0: as many as it has
  /// True: W_head is the embedding, whatever the file has; false: it is the file's own, which has to be there. Where
  /// neither is said it is the file's own if there is one. A base model without a head wants true: its logits say
  /// nothing.
  std::optional<bool> tied = {};
};

/// What a run of a Llama gives and keeps for a backward pass.
template <class Op, class S>
struct LlamaSaved {
  Mat<S> hidden;  ///< after the last norm, (batch n) x D
  Mat<S> logits;  ///< (batch n) x vocabulary
  // kept:
  std::vector<Index> ids;
  Mat<S> last;
  RmsNormSaved<S> norm;
  StackSaved<Op, S> stack;
  Index batch = 1;
};

/// The keys, turned already, and the values of the tokens that a text has so far, for every layer of a Llama: of each
/// key head `length` rows and room for more, one head below the other, so that a head is read as a stream. A copy goes
/// on by itself; a smaller length takes the tokens behind it back. Llama::cache(op) gives the one that an operator
/// wants.
template <class S, class Op = void>
struct LlamaCache {
  Index length = 0;  ///< tokens so far; 0 starts anew
  std::vector<Mat<S>> k, v;
};
/// Of twicing the residuals V - u_t besides, and the operator that they were begun with.
template <class S, class Score>
struct LlamaCache<S, Twicing<Score>> : LlamaCache<S> {
  std::vector<TwicingCache<Twicing<Score>, S>> residuals;
};

/// The attention of the family: causal, rotary positions of the half layout, as the files of Hugging Face have q and k.
/// Llama::attention() has the base and frequencies of a model besides.
inline auto llama_attention(double base = 10000) {
  return rope(softmax(causal()), {.layout = RopeLayout::half, .base = base});
}

namespace detail {

inline const NameTable& llama_block() {
  static const NameTable table{{"gamma1", "input_layernorm.weight", "D"},
                               {"wq", "self_attn.q_proj.weight", "QD"},
                               {"bq", "self_attn.q_proj.bias", "Q", true},
                               {"wk", "self_attn.k_proj.weight", "KD"},
                               {"bk", "self_attn.k_proj.bias", "K", true},
                               {"wv", "self_attn.v_proj.weight", "KD"},
                               {"bv", "self_attn.v_proj.bias", "K", true},
                               {"wo", "self_attn.o_proj.weight", "DQ"},
                               {"bo", "self_attn.o_proj.bias", "D", true},
                               {"wg", "self_attn.g_proj.weight", "GD", true},
                               {"bg", "self_attn.g_proj.bias", "G", true},
                               {"gamma_q", "self_attn.q_norm.weight", "d", true},
                               {"gamma_k", "self_attn.k_norm.weight", "d", true},
                               {"gamma2", "post_attention_layernorm.weight", "D"},
                               {"w1", "mlp.gate_proj.weight", "ED"},
                               {"b1", "mlp.gate_proj.bias", "E", true},
                               {"w3", "mlp.up_proj.weight", "ED"},
                               {"b3", "mlp.up_proj.bias", "E", true},
                               {"w2", "mlp.down_proj.weight", "DE"},
                               {"b2", "mlp.down_proj.bias", "D", true}};
  return table;
}

/// Whether an operator turns q and k, and what it does with them then: a cache has keys that are turned.
template <class Op>
struct Turned {
  using Inner = Op;
  static constexpr bool turns = false;
};
template <class Op>
struct Turned<Rope<Op>> {
  using Inner = Op;
  static constexpr bool turns = true;
};
/// The second parameter of an operator's LlamaCache.
template <class Op>
struct CacheOf {
  using Type = void;
};
template <class Score>
struct CacheOf<Twicing<Score>> {
  using Type = Twicing<Score>;
};

/// rope_scaling of a config.json; context: how long a text may be, which some files mean where they do not say
/// original.
inline RopeScaling read_scaling(const Config& from, Index context) {
  using Kind = RopeScaling::Kind;
  RopeScaling to;
  std::string kind = "default";
  from.text("type", kind), from.text("rope_type", kind);
  const std::map<std::string, Kind> kinds{
      {"default", Kind::plain}, {"linear", Kind::linear}, {"llama3", Kind::llama3}, {"yarn", Kind::yarn}};
  const auto known = kinds.find(kind);
  if (known == kinds.end())
    from.fail("found the rope_scaling " + io::detail::in_quotes(kind, 80) + ", wanted default, linear, llama3 or yarn");
  to.kind = known->second, to.original = context;
  if (to.kind != Kind::plain) from.require("factor", "the rope_scaling " + kind);
  if (to.kind == Kind::llama3)
    for (const char* name : {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"})
      from.require(name, "the rope_scaling llama3");
  from.number("factor", to.factor), from.count("original_max_position_embeddings", to.original);
  from.number("low_freq_factor", to.low), from.number("high_freq_factor", to.high);
  from.number("beta_fast", to.fast), from.number("beta_slow", to.slow);
  from.number("mscale", to.mscale), from.number("mscale_all_dim", to.mscale_all_dim);
  double amplitude = 0;
  from.number("attention_factor", amplitude);
  if (amplitude != 0) to.amplitude = amplitude;
  from.flag("truncate", to.whole_planes);
  return to;
}

}  // namespace detail

/// The options of a model from the config.json that Hugging Face keeps beside its files: num_attention_heads,
/// num_key_value_heads, num_hidden_layers, rms_norm_eps, rope_theta, rope_scaling (rope_parameters in newer ones),
/// partial_rotary_factor with head_dim or hidden_size, tie_word_embeddings, sliding_window where it is in use. Throws
/// FormatError that names the file: what cannot be read, is no JSON object, is of a model with other formulas under the
/// same names, which is a model_type other than llama, mistral, qwen2 and qwen3 (Gemma's norms and Granite's factors are
/// others), a hidden_act other than silu or a scaling other than default, linear, llama3 and yarn, or lacks
/// num_attention_heads, rms_norm_eps or a number of its scaling.
inline LlamaOptions llama_options(const std::string& path) {
  const detail::Config config(path);
  LlamaOptions out;
  Index context = 0, width = 0, head = 0;
  double part = 1;
  config.one_of("model_type", {"llama", "mistral", "qwen2", "qwen3"});
  config.count("num_attention_heads", out.heads), config.count("num_hidden_layers", out.layers);
  config.eps("rms_norm_eps", out.eps);
  if (out.heads < 1 || !(out.eps >= 0)) config.fail("lacks num_attention_heads or rms_norm_eps, wanted both");
  config.one_of("hidden_act", {"silu", "swish"});
  config.count("max_position_embeddings", context);
  config.count("hidden_size", width), config.count("head_dim", head);
  config.count("num_key_value_heads", out.kv_heads);
  config.number("rope_theta", out.base);
  config.number("partial_rotary_factor", part);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(name)) continue;
    if (!config.has_object(name)) config.fail("found no object as " + std::string(name) + ", wanted one, or null");
    const detail::Config inner = config.inner(name);
    out.scaling = detail::read_scaling(inner, context);
    inner.number("rope_theta", out.base);
    inner.number("partial_rotary_factor", part);
  }
  if (part != 1) {
    const double of = static_cast<double>(head != 0 ? head : width / out.heads) * part;
    if (!(of >= 2 && of <= 0x1p40))
      config.fail("found " + limpid::detail::number_text(part) +
                  " as partial_rotary_factor, wanted a part of the heads' width");
    out.rotary = static_cast<Index>(of);
  }
  if (bool tied = false; config.has("tie_word_embeddings")) config.flag("tie_word_embeddings", tied), out.tied = tied;
  bool sliding = true;  // Qwen's files say whether their window is in use
  config.flag("use_sliding_window", sliding);
  if (sliding) config.count("sliding_window", out.window);
  return out;
}

/// A LLaMA-style decoder (Touvron et al. 2023, arXiv 2302.13971): pre-norm blocks of RMS norm, grouped keys (their
/// number by the shape of k_proj), SwiGLU; biases of q, k, v (Qwen2) and of all others, QK norm (Qwen3) and a gate on
/// the heads' output (MultiHeadArgs::wg) where the file has them, the gate as self_attn.g_proj;
///
///     x = embed_tokens[id],   logits = N(blocks(x)) W_head^T
///
/// W_head is lm_head.weight, or the embedding itself where there is none (tied), as the options do not say otherwise:
/// its gradient is then of both.
/// Positions come with the operator: attention() turns by the options' base, rotary and scaling.
///
///     const limpid::io::Checkpoint file("folder");     // one file, or shards by their index
///     const limpid::model::Llama<float> llama(file, limpid::model::llama_options("folder/config.json"));
///     const auto op = llama.attention();               // looks at llama
///     auto saved = llama.saved(op);
///     llama.forward(op, ids, saved);                                    // saved.logits
///     const auto why = llama.explain(op, saved, id);                    // of the last token's logit of that id
///
/// Throws FormatError that names the file, the tensor, found and wanted: missing tensors all at once, other shapes, a
/// head count that does not divide, tensors of a block that are not known. Throws ShapeError for options that are none:
/// eps, base, rotary, scaling. Calls throw ShapeError: ids out of the vocabulary, a text longer than the window, an
/// operator's own reasons.
template <class S>
class Llama {
 public:
  template <class Op>
  using Saved = LlamaSaved<Op, S>;

  Llama(const io::Checkpoint& file, const LlamaOptions& options) : options_(options) {
    limpid::detail::check_eps_given("llama", options.eps);
    detail::Loader<S> load(file, parameters);
    const std::string prefix = load.prefix({"model.", "", "transformer."}, "embed_tokens.weight");
    const std::string blocks = prefix + "layers.#.";
    const detail::NameTable& table = detail::llama_block();
    stack_.layers = load.count(blocks + table.front().name);
    load.want(prefix, {{"", "embed_tokens.weight", ""}, {"", "norm.weight", ""}});
    for (Index l = 0; l < std::max(stack_.layers, Index(1)); ++l) load.want(load.numbered(blocks, l), table);
    if (options.tied == false) load.want("", {{"", "lm_head.weight", ""}});
    load.require();
    load.check_layers(stack_.layers, options.layers);
    words_ = load.take(prefix + "embed_tokens.weight", "VD");
    const std::string first = load.numbered(blocks, 0), q = first + "self_attn.q_proj.weight";
    const Index queries = file.shape(q).empty() ? 0 : file.shape(q).front();
    detail::check_heads(file, queries, options.heads);
    load.extents['d'] = queries / options.heads;
    limpid::detail::check_rotary("llama", options.rotary, load.extents['d']);
    turn_ = rope_frequencies(options.rotary == 0 ? load.extents['d'] : options.rotary, options.base, options.scaling);
    for (Index l = 0; l < stack_.layers; ++l) stack_.blocks.push_back(load.block(load.numbered(blocks, l), table));
    const Index keys = load.extents['K'], head = load.extents['d'];
    if (keys < head || keys % head != 0 || options.heads % (keys / head) != 0)
      io::detail::fail(file.name() + ": " + io::detail::in_quotes(first + "self_attn.k_proj.weight", 80),
                       "found " + std::to_string(keys) + " rows, wanted a divisor of the " +
                           std::to_string(options.heads) + " heads times their width " + std::to_string(head));
    if (options.kv_heads != 0 && options.kv_heads != keys / head)
      io::detail::fail(file.name() + ": " + io::detail::in_quotes(first + "self_attn.k_proj.weight", 80),
                       "found " + std::to_string(keys) + " rows, " + std::to_string(keys / head) + " heads of width " +
                           std::to_string(head) + ", wanted the " + std::to_string(options.kv_heads) +
                           " of the options");
    norm_ = load.take(prefix + "norm.weight", "D");
    head_ = file.has("lm_head.weight") && options.tied != true ? load.take("lm_head.weight", "VD") : words_;
    if (options.tied == true) file.skip("lm_head.weight");  // the embedding again
    for (Index l = 0; l < stack_.layers; ++l) file.skip(load.numbered(blocks, l) + "self_attn.rotary_emb.inv_freq");
    file.skip(prefix + "rotary_emb.inv_freq");
    load.refuse_unread({prefix + "layers."});
    unused = file.unused();
    stack_.options.heads = options.heads, stack_.options.kv_heads = keys / head;
    stack_.options.eps = options.eps, stack_.options.norm = NormKind::rms;
    stack_.options.mlp = Mlp{Activation::silu, true};
    if (stack_.blocks.front().gamma_q.given()) stack_.options.qk_norm_eps = options.eps;
  }

  Parameters<S> parameters;
  std::vector<std::string> unused;  ///< tensors of the file that this model does not know

  /// Brings the weights of the blocks and of the head into the order in which linear() reads them, for as much memory
  /// again: less work in calls of few tokens, the same bits. To be called again where parameters change.
  void pack() {
    stack_.pack(parameters);
    packed_head_.assign(1, PackedWeight<S>(out_in(parameters(head_))));
  }
  Index layers() const { return stack_.layers; }
  Index width() const { return words_.cols; }
  Index vocabulary() const { return words_.rows; }
  Index kv_heads() const { return stack_.options.kv_heads; }
  bool tied() const { return head_.parameter == words_.parameter; }
  /// The rotary positions of the model, which look at it, and its own attention with them.
  RopeOptions rope() const {
    return {.layout = RopeLayout::half,
            .rotary = 2 * turn_.values.cols(),
            .frequencies = turn_.values,
            .amplitude = turn_.amplitude};
  }
  auto attention() const { return limpid::rope(softmax(causal()), rope()); }
  template <class Op>
  Saved<Op> saved(const Op&) const {
    return {};
  }

  /// ids: batch items of n tokens, one after another.
  template <class Op>
  void forward(const Op& op, const std::vector<Index>& ids, LlamaSaved<Op, S>& saved,
               const ModelCall& call = {}) const {
    detail::check_ids("llama", "ids", ids, call.batch, vocabulary(), "the vocabulary");
    const auto count = static_cast<Index>(ids.size());
    check_length(count / call.batch);
    stack_.check(op, parameters, count, call.batch);
    saved.ids = ids, saved.batch = call.batch;
    Mat<S> x(count, width());
    embed(parameters(words_), ids, x, {false, call.workspace, call.executor});
    saved.last = stack_.forward(op, parameters, std::move(x), saved.stack, call);
    saved.hidden.resize(count, width()), saved.logits.resize(count, vocabulary());
    rms_norm(saved.last, parameters(norm_), saved.hidden, {options_.eps, &saved.norm, call.workspace, call.executor});
    linear(View<S>(saved.hidden), head_weight(), View<S>(), saved.logits, {false, call.workspace, call.executor});
  }

  /// An empty cache for steps over an operator.
  template <class Op>
  auto cache(const Op&) const {
    return LlamaCache<S, typename detail::CacheOf<typename detail::Turned<Op>::Inner>::Type>();
  }
  /// The next tokens of one text, one or more: the logits of each, n x vocabulary, from the keys and values of the
  /// cache, to which theirs are added. op is forward's, as attention() is, or that without its rotary positions,
  /// softmax(causal()): q and k are then turned as rope() says, each token by its place in the text. The numbers are
  /// forward's, but for rounding. The cache doubles its room when that is full.
  ///
  ///     auto cache = llama.cache(op);
  ///     llama.step(op, prompt, cache);                                   // logits of what follows each token
  ///     llama.step(op, {id}, cache);
  ///
  /// Over twicing the residuals of earlier tokens are kept, too (TwicingCache, which says what modifiers may look at):
  /// H order d more numbers a token and layer. Tokens of a prompt then go one after another through the attention, and
  /// the modifiers are those of the first step. An operator that needs the whole map otherwise does not compile. Throws
  /// ShapeError as forward does, for positions that an operator gives, and for twicing of another order or alpha than
  /// the cache's; the cache is as it was.
  template <class Op, class Cached>
  Mat<S> step(const Op& op, const std::vector<Index>& ids, LlamaCache<S, Cached>& cache,
              const ModelCall& call = {}) const {
    using Inner = typename detail::Turned<Op>::Inner;
    using Wanted = typename detail::CacheOf<Inner>::Type;
    constexpr bool once = !detail::Turned<Inner>::turns;
    constexpr bool alone = !limpid::detail::needs_whole_map<Inner> || !std::is_void_v<Wanted>;
    constexpr bool cached = std::is_same_v<Cached, Wanted>;
    static_assert(once, "limpid: a step turns q and k once, and here is a rope round a rope");
    static_assert(!once || alone, "limpid: no token of this operator is decoded alone, as it needs the whole map");
    static_assert(!once || !alone || cached, "limpid: this operator wants another cache, as cache(op) gives it");
    if constexpr (once && alone && cached) {
      if constexpr (detail::Turned<Op>::turns)
        return step_turned(op.inner, op.options, ids, cache, call);
      else
        return step_turned(op, rope(), ids, cache, call);
    }
    return {};
  }

  /// Backwards from the gradient of logits: gradients are added to, dembeddings ((batch n) x D) gets the gradient of
  /// the embedded tokens, relevance its row; what is null or empty is not made. Throws ShapeError where they do not
  /// fit, or nothing was kept.
  template <class Op>
  void backward(const Op& op, LlamaSaved<Op, S>& saved, View<S> dlogits, ParameterGradients<S>* gradients,
                MutView<S> dembeddings = {}, RelevanceRow<S>* relevance = nullptr, const ModelCall& call = {}) const {
    run_backward(op, saved, dlogits, gradients, dembeddings, relevance, call);
  }
  /// The same with all that an Explanation, started with a row an item, asks for; its input are the embedded tokens.
  /// Gradients have the same bits.
  template <class Op>
  void backward(const Op& op, LlamaSaved<Op, S>& saved, View<S> dlogits, ParameterGradients<S>* gradients,
                MutView<S> dembeddings, Explanation<S>& why, const ModelCall& call = {}) const {
    run_backward(op, saved, dlogits, gradients, dembeddings, &why, call);
  }

  /// The relevance of every token to the last token's logit of that id, in every item. Throws ShapeError for an id out
  /// of the vocabulary.
  template <class Op>
  RelevanceRow<S> explain(const Op& op, LlamaSaved<Op, S>& saved, Index id, const ModelCall& call = {}) const {
    RelevanceRow<S> out;
    explain_id(
        op, saved, id, [&](const Mat<S>& start) { out.start = start; }, out, call);
    return out;
  }
  /// All that an Explanation asks for, of that logit: it is started with the last token of each item.
  template <class Op>
  void explain(const Op& op, LlamaSaved<Op, S>& saved, Index id, Explanation<S>& why,
               const ModelCall& call = {}) const {
    explain_id(
        op, saved, id, [&](const Mat<S>& start) { why.start(View<S>(start)); }, why, call);
  }

 private:
  /// step() over an operator whose q and k are turned.
  template <class Op, class Cached>
  Mat<S> step_turned(const Op& op, const RopeOptions& turned, const std::vector<Index>& ids,
                     LlamaCache<S, Cached>& cache, const ModelCall& call) const {
    detail::check_ids("llama", "ids", ids, 1, vocabulary(), "the vocabulary");
    const auto n = static_cast<Index>(ids.size());
    const Index before = cache.length, all = before + n, heads = options_.heads, groups = stack_.options.kv_heads;
    const auto count = static_cast<std::size_t>(layers());
    if (before < 0 || (before > 0 && (cache.k.size() != count || cache.v.size() != count)))
      limpid::detail::raise("llama: the cache is of " + std::to_string(cache.k.size()) + " layers, wanted " +
                            std::to_string(count));
    check_length(all);
    check_turned(turned);
    if constexpr (!std::is_void_v<Cached>) begin_residuals(op, cache);
    cache.k.resize(count), cache.v.resize(count);
    const LayerCall inner{false, call.workspace, call.executor};
    Mat<S> x(n, width()), h(n, width()), sum(n, width());
    embed(parameters(words_), ids, x, inner);
    const auto norm = [&](View<S> gamma) {
      rms_norm(x, gamma, h, {options_.eps, nullptr, call.workspace, call.executor});
    };
    const auto project = [&](const Mat<S>& from, const Weight<S>& w, View<S> b) {
      Mat<S> out(n, w.outputs());
      linear(from, w, b, out, inner);
      return out;
    };
    const auto turn = [&](Mat<S>& rows, View<S> gamma, Index of, double first) {
      const Index head = rows.cols() / of;
      if (stack_.options.qk_norm_eps) {
        const Mat<S> plain = rows;
        rms_norm(View<S>(plain.data(), n * of, head, head), gamma, MutView<S>(rows.data(), n * of, head, head),
                 {*stack_.options.qk_norm_eps, nullptr, call.workspace, call.executor});
      }
      rope_rotate(rows, rows,
                  {.layout = turned.layout,
                   .base = turned.base,
                   .rotary = turned.rotary,
                   .heads = turned.width == 0 ? of : rows.cols() / turned.width,
                   .first = first + static_cast<double>(before),
                   .frequencies = turned.frequencies,
                   .amplitude = turned.amplitude});
    };
    // of each head its rows, which lie behind those of the cache from now on
    const auto append = [&](Mat<S>& to, const Mat<S>& rows) {
      const Index head = rows.cols() / groups, room = to.rows() / groups, wanted = std::max(all, 2 * before);
      if (before > 0 && (room < before || to.cols() != head))
        limpid::detail::raise("llama: the cache holds " + limpid::detail::shape_text(to.rows(), to.cols()) +
                              ", wanted at least " + limpid::detail::shape_text(groups * before, head));
      if (room < all || to.cols() != head) {
        Mat<S> more(groups * wanted, head);
        limpid::detail::ask_for_large_pages(more.data(), static_cast<std::size_t>(more.size()) * sizeof(S));
        for (Index g = 0; g < groups && before > 0; ++g)
          more.middleRows(g * wanted, before) = to.middleRows(g * room, before);
        to = std::move(more);
      }
      const Index each = to.rows() / groups;
      for (Index g = 0; g < groups; ++g) to.middleRows(g * each + before, n) = rows.middleCols(g * head, head);
      return PagePool<S>{to.data(), 1, all, head, to.size(), each * head, head};
    };
    const Mat<Index> page = Mat<Index>::Zero(1, 1), length = Mat<Index>::Constant(1, 1, all);
    for (Index l = 0; l < layers(); ++l) {
      const TransformerBlockArgs<View<S>> block = stack_.arguments(parameters, l);
      const auto place = static_cast<std::size_t>(l);
      norm(block.gamma1);
      Mat<S> q = project(h, block.wq, block.bq), k = project(h, block.wk, block.bk);
      turn(q, block.gamma_q, heads, turned.q_offset.value_or(0)), turn(k, block.gamma_k, groups, turned.k_offset);
      const Pages<S> pages{append(cache.k[place], k), append(cache.v[place], project(h, block.wv, block.bv)), page,
                           length};
      Mat<S> o(n, block.wo.inputs());
      if constexpr (!std::is_void_v<Cached>) {
        step_residuals(cache.residuals[place], q, pages, o, call.executor);
      } else {
        Inputs<Op, S> in;
        in.q = q;
        decode(op, in, pages, o, {1, heads, groups, nullptr, call.workspace, call.executor});
      }
      if (block.wg.given()) {
        const Mat<S> gate = project(h, block.wg, block.bg);
        limpid::detail::with_context(inner,
                                     [&](const auto& context) { limpid::detail::gate_heads<S>(context, gate, o, o); });
      }
      x += project(o, block.wo, block.bo);
      norm(block.gamma2);
      MlpArgs<View<S>> mlp;
      mlp.x = h, mlp.w1 = block.w1, mlp.w2 = block.w2, mlp.w3 = block.w3;
      mlp.b1 = block.b1, mlp.b2 = block.b2, mlp.b3 = block.b3;
      stack_.options.mlp->forward(mlp, sum, {1, nullptr, call.workspace, call.executor});
      x += sum;
    }
    norm(parameters(norm_));
    cache.length = all;
    return project(h, head_weight(), View<S>());
  }

  /// That an operator's positions are those of a text that grows, and fit the heads.
  void check_turned(const RopeOptions& turned) const {
    const Index head = stack_.blocks.front().wq.rows / options_.heads, w = turned.width == 0 ? head : turned.width;
    if (turned.q_positions.given() || turned.k_positions.given())
      limpid::detail::raise(
          "llama: the operator gives positions of queries or keys, wanted offsets, as tokens of a "
          "step stand where the text has come to");
    if (w < 0 || head % w != 0)
      limpid::detail::raise("llama: rope's width is " + std::to_string(w) + ", wanted a divisor of the head's " +
                            std::to_string(head));
    limpid::detail::check_rotary("llama", turned.rotary, w);
  }
  /// Residuals as long as the cache.
  template <class Op>
  void begin_residuals(const Op& op, LlamaCache<S, Op>& cache) const {
    auto& residuals = cache.residuals;
    const auto count = static_cast<std::size_t>(layers());
    if (cache.length == 0) {
      residuals.clear(), residuals.reserve(count);
      for (std::size_t l = 0; l < count; ++l)
        residuals.emplace_back(op, DecodeOptions{1, options_.heads, stack_.options.kv_heads});
    } else if (residuals.size() != count) {
      limpid::detail::raise("llama: the cache has residuals of " + std::to_string(residuals.size()) +
                            " layers, wanted " + std::to_string(count));
    } else if (const Op& begun = residuals.front().op(); begun.order != op.order || begun.alpha != op.alpha) {
      limpid::detail::raise(std::string("llama: ") + op.name + " has order " + std::to_string(op.order) +
                            " and alpha " + limpid::detail::number_text(op.alpha) + ", wanted " +
                            std::to_string(begun.order) + " and " + limpid::detail::number_text(begun.alpha) +
                            " as the cache's first step");
    }
    for (auto& one : residuals) one.truncate(cache.length);
  }
  /// Tokens of one layer, whose keys and values lie in pages, one after another.
  template <class Op>
  static void step_residuals(TwicingCache<Op, S>& residuals, const Mat<S>& q, Pages<S> pages, Mat<S>& out,
                             ExecutorRef executor) {
    for (Index i = 0; i < q.rows(); ++i) {
      const Mat<Index> so_far = Mat<Index>::Constant(1, 1, residuals.size() + 1);
      pages.lengths = so_far;
      Inputs<Op, S> token;
      token.q = View<S>(q).block(i, 0, 1, q.cols());
      residuals.step(token, pages, MutView<S>(out).block(i, 0, 1, out.cols()), executor);
    }
  }
  template <class Op, class Start, class Asked>
  void explain_id(const Op& op, LlamaSaved<Op, S>& saved, Index id, const Start& begin, Asked& asked,
                  const ModelCall& call) const {
    detail::check_ids("llama", "id", {id}, 1, vocabulary(), "the vocabulary");
    const Index n = saved.logits.rows() / saved.batch;
    Mat<S> dlogits = Mat<S>::Zero(saved.logits.rows(), vocabulary()), start = Mat<S>::Zero(saved.batch, n);
    for (Index b = 0; b < saved.batch; ++b) dlogits(b * n + n - 1, id) = S(1);
    start.col(n - 1).setOnes();
    begin(start);
    run_backward(op, saved, View<S>(dlogits), nullptr, MutView<S>(), &asked, call);
  }
  template <class Op, class Asked>
  void run_backward(const Op& op, LlamaSaved<Op, S>& saved, View<S> dlogits, ParameterGradients<S>* gradients,
                    MutView<S> dembeddings, Asked* asked, const ModelCall& call) const {
    const Index count = saved.logits.rows();
    if (dlogits.rows != count || dlogits.cols != vocabulary())
      limpid::detail::raise("llama: the gradient of logits is " +
                            limpid::detail::shape_text(dlogits.rows, dlogits.cols) + ", wanted " +
                            limpid::detail::shape_text(count, vocabulary()));
    if (dembeddings.given() && (dembeddings.rows != count || dembeddings.cols != width()))
      limpid::detail::raise("llama: the gradient of embeddings is " +
                            limpid::detail::shape_text(dembeddings.rows, dembeddings.cols) + ", wanted " +
                            limpid::detail::shape_text(count, width()));
    detail::check_gradient_list("llama", gradients, parameters);
    stack_.check_kept(op, parameters, saved.stack);
    detail::check_asked("llama", asked, saved.batch, count / saved.batch);
    const auto gradient = [&](const Slot& slot) {
      return gradients != nullptr ? add((*gradients)(slot)) : Gradient<S>();
    };
    const LayerCall inner{false, call.workspace, call.executor};
    Mat<S> dhidden(count, width()), dlast(count, width());
    linear_backward(View<S>(saved.hidden), out_in(parameters(head_)), dlogits,
                    {overwrite(dhidden), gradient(head_), {}}, inner);
    rms_norm_backward(View<S>(saved.last), parameters(norm_), saved.norm, View<S>(dhidden),
                      {overwrite(dlast), gradient(norm_)}, inner);
    const Mat<S> d = stack_.backward(op, parameters, saved.stack, std::move(dlast), gradients, asked, call);
    if (dembeddings.given()) dembeddings.map() = d;
    if (asked != nullptr && detail::asks_for_input(asked)) detail::tell_input(asked, saved.stack.x.front(), d, 0);
    if (gradients != nullptr) embed_backward(saved.ids, d, gradient(words_));
  }

  void check_length(Index n) const {
    if (options_.window > 0 && n > options_.window)
      limpid::detail::raise("llama: found a text of " + std::to_string(n) + " tokens, wanted at most " +
                            std::to_string(options_.window) + ", the window of the options");
  }
  Weight<S> head_weight() const {
    Weight<S> w = out_in(parameters(head_));
    if (!packed_head_.empty()) w.panels = packed_head_.front().weight().panels;
    return w;
  }

  LlamaOptions options_;
  detail::Stack<S> stack_;
  std::vector<PackedWeight<S>> packed_head_;  ///< one or none
  Slot words_, norm_, head_;
  RopeFrequencies turn_;
};

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
