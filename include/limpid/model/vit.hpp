// limpid: vision transformers from a checkpoint: timm's and Hugging Face's names, DINOv2's layer scale and registers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../layer/patches.hpp"
#include "../op/softmax.hpp"
#include "config.hpp"
#include "pooling.hpp"
#include "positions.hpp"
#include "stack.hpp"

namespace limpid {
inline namespace LIMPID_ABI {
namespace model {

/// What a checkpoint of a vision transformer does not say. heads has to be said: 384 columns may be 6 of them or 12.
struct VitOptions {
  Index heads = 0;
  double eps = 1e-6;  ///< what timm and DINOv2 train with; Hugging Face's ViTConfig says 1e-12 for the same weights
  enum class Pool { first, mean } pool = Pool::first;  ///< the class token, or the mean of the patches
  PositionResize positions = PositionResize::bicubic;
  Index layers = 0;                    ///< that the file has to have; 0: as many as it has
  Index grid_rows = 0, grid_cols = 0;  ///< of the table of positions; 0: as many, as nearly all models have
};

/// The options of a model from the config.json that Hugging Face keeps beside its files: num_attention_heads,
/// num_hidden_layers and layer_norm_eps, as they stand there; positions resized as that model's program does it. Throws
/// FormatError that names the file: what cannot be read, is no JSON object, is of a model with other formulas, which is
/// a model_type other than vit, deit, dinov2 and dinov2_with_registers, a hidden_act other than gelu or an MLP with
/// gates, or lacks num_attention_heads.
inline VitOptions vit_options(const std::string& path) {
  const detail::Config config(path);
  VitOptions out;
  config.one_of("model_type", {"vit", "deit", "dinov2", "dinov2_with_registers"});
  config.count("num_attention_heads", out.heads), config.count("num_hidden_layers", out.layers);
  if (out.heads < 1) config.fail("lacks num_attention_heads, wanted it");
  bool gated = false;
  config.flag("use_swiglu_ffn", gated);
  if (gated) config.fail("found true as use_swiglu_ffn, wanted false: no MLP with gates");
  config.one_of("hidden_act", {"gelu"});
  config.eps("layer_norm_eps", out.eps);
  std::string kind;
  config.text("model_type", kind);
  if (kind == "dinov2_with_registers") out.positions = PositionResize::antialiased;
  return out;
}

/// What a run of a Vit gives and keeps for a backward pass.
template <class Op, class S>
struct VitSaved {
  /// After the last norm: class token, distillation token, registers, patches; (batch n) x D. Before a norm of pooled
  /// ones.
  Mat<S> tokens;
  Mat<S> pooled;  ///< batch x D, or 2 D where the head reads two of them
  Mat<S> logits;  ///< batch x classes; without columns where the checkpoint has no head
  // kept:
  Index rows = 0, cols = 0;  ///< of patches
  Mat<S> patches, last, unnormed;
  StackSaved<Op, S> stack;
  LayerNormSaved<S> norm;
};

namespace detail {

/// The names of a family of vision transformers.
struct VitNames {
  std::vector<std::string> prefixes;
  const char *patch_weight, *patch_bias, *class_token, *distillation, *registers, *positions, *norm_weight, *norm_bias;
  /// Without their .weight and .bias; never prefixed. The second is of the distillation token; nullptr: none.
  std::vector<std::pair<const char*, const char*>> heads;
  const char* blocks;  ///< of the block number
  NameTable table;
  std::vector<const char*> unused;         ///< known and not needed
  std::vector<const char*> pooled_norm{};  ///< in the place of norm_weight and norm_bias: of pooled tokens
};

/// The names that Hugging Face gives alike to all its vision transformers; those of the first norm of a block, and of
/// all that follows its attention, differ.
inline VitNames hugging_face_vit(std::vector<std::string> prefixes, const NameTable& norm, const NameTable& rest,
                                 std::vector<const char*> unused) {
  NameTable table = norm;
  table.insert(table.end(), {{"wq", "attention.attention.query.weight", "DD"},
                             {"bq", "attention.attention.query.bias", "D", true},
                             {"wk", "attention.attention.key.weight", "DD"},
                             {"bk", "attention.attention.key.bias", "D", true},
                             {"wv", "attention.attention.value.weight", "DD"},
                             {"bv", "attention.attention.value.bias", "D", true},
                             {"wo", "attention.output.dense.weight", "DD"},
                             {"bo", "attention.output.dense.bias", "D", true}});
  table.insert(table.end(), rest.begin(), rest.end());
  return {std::move(prefixes),
          "embeddings.patch_embeddings.projection.weight",
          "embeddings.patch_embeddings.projection.bias",
          "embeddings.cls_token",
          "embeddings.distillation_token",
          "embeddings.register_tokens",
          "embeddings.position_embeddings",
          "layernorm.weight",
          "layernorm.bias",
          {{"classifier", nullptr}, {"cls_classifier", "distillation_classifier"}},
          "encoder.layer.#.",
          std::move(table),
          std::move(unused)};
}

inline const std::vector<VitNames>& vit_families() {
  static const std::vector<VitNames> all{
      {{"", "module.", "model.", "backbone."},
       "patch_embed.proj.weight",
       "patch_embed.proj.bias",
       "cls_token",
       "dist_token",
       "reg_token",
       "pos_embed",
       "norm.weight",
       "norm.bias",
       {{"head", "head_dist"}},
       "blocks.#.",
       {{"gamma1", "norm1.weight", "D"},
        {"beta1", "norm1.bias", "D"},
        {"wq wk wv", "attn.qkv.weight", "PD"},
        {"bq bk bv", "attn.qkv.bias", "P", true},
        {"wo", "attn.proj.weight", "DD"},
        {"bo", "attn.proj.bias", "D", true},
        {"gamma_q", "attn.q_norm.weight", "d", true},
        {"gamma_k", "attn.k_norm.weight", "d", true},
        {"scale1", "ls1.gamma", "D", true},
        {"gamma2", "norm2.weight", "D"},
        {"beta2", "norm2.bias", "D"},
        {"w1", "mlp.fc1.weight", "ED"},
        {"b1", "mlp.fc1.bias", "E", true},
        {"w2", "mlp.fc2.weight", "DE"},
        {"b2", "mlp.fc2.bias", "D", true},
        {"scale2", "ls2.gamma", "D", true}},
       {"mask_token"},
       {"fc_norm.weight", "fc_norm.bias"}},
      hugging_face_vit({"", "dinov2.", "dinov2_with_registers.", "vit."},
                       {{"gamma1", "norm1.weight", "D"}, {"beta1", "norm1.bias", "D"}},
                       {{"scale1", "layer_scale1.lambda1", "D", true},
                        {"gamma2", "norm2.weight", "D"},
                        {"beta2", "norm2.bias", "D"},
                        {"w1", "mlp.fc1.weight", "ED"},
                        {"b1", "mlp.fc1.bias", "E", true},
                        {"w2", "mlp.fc2.weight", "DE"},
                        {"b2", "mlp.fc2.bias", "D", true},
                        {"scale2", "layer_scale2.lambda1", "D", true}},
                       {"embeddings.mask_token"}),
      hugging_face_vit({"", "vit.", "deit."},
                       {{"gamma1", "layernorm_before.weight", "D"}, {"beta1", "layernorm_before.bias", "D"}},
                       {{"gamma2", "layernorm_after.weight", "D"},
                        {"beta2", "layernorm_after.bias", "D"},
                        {"w1", "intermediate.dense.weight", "ED"},
                        {"b1", "intermediate.dense.bias", "E", true},
                        {"w2", "output.dense.weight", "DE"},
                        {"b2", "output.dense.bias", "D", true}},
                       {"embeddings.mask_token"})};
  return all;
}

}  // namespace detail

/// A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929; DeiT, Touvron et al. 2020, 2012.12877; DINOv2,
/// Oquab et al. 2023, 2304.07193; registers, Darcet et al. 2023, 2309.16588) as its checkpoint has it: pre-norm blocks,
/// erf GELU, layer scale and RMS-normed heads where the file has them.
///
///     tokens = [class; registers; patches W^T + b + positions],   logits = pooled(N(blocks(tokens))) W_head^T + b_head
///
/// timm's models that pool patches have N after the mean (fc_norm in place of norm), or no class token: as the file
/// says. The table of positions has a place for the class token, or none where its rows are a square number (timm's
/// copies of DINOv2, whose class token has its position added already); of a grid that is no square, grid_rows and
/// grid_cols tell. It is resized where the image has other patches. A distilled DeiT has a second token with a place,
/// and logits that are the mean of two heads, one a token, or the first one's alone. A head of 2 D columns, as DINOv2's
/// classifiers have, reads the class token and the mean of the patches, whatever the options say. Relevance then starts
/// with half of what each of the two reads [ours]. Weights are read in place; their names and order are in
/// parameters.list. Any operator of q, k and v goes into a call.
///
///     const limpid::io::Checkpoint file("vit.safetensors");
///     const limpid::model::Vit<float> vit(file, {.heads = 6});         // or vit_options("config.json")
///     auto saved = vit.saved(limpid::softmax());
///     vit.forward(limpid::softmax(), pixels, 224, 224, saved);         // saved.logits
///     const auto why = vit.explain(limpid::softmax(), saved, label);   // why.rest: batch x n; more by an Explanation
///
/// The file's names must be those of one family (timm, DINOv2, Hugging Face's ViT and DeiT). Throws FormatError that
/// names the file, the tensor, found and wanted: missing tensors all at once, other shapes, a head count that does not
/// divide, tensors among those of a block or of the embeddings that are not known.
/// Calls throw ShapeError: an image whose sides are no multiples of the patch, other channels, an operator's own
/// reasons.
template <class S>
class Vit {
 public:
  template <class Op>
  using Saved = VitSaved<Op, S>;

  Vit(const io::Checkpoint& file, const VitOptions& options);

  Parameters<S> parameters;
  std::vector<std::string> unused;  ///< tensors of the file that this model does not know

  /// Brings the weights of the blocks into the order in which linear() reads them, for as much memory again: less work
  /// in calls of few tokens, the same bits. To be called again where parameters change.
  void pack() { stack_.pack(parameters); }
  Index layers() const { return stack_.layers; }
  Index width() const { return patch_.rows; }
  Index patch() const { return side_; }
  Index channels() const { return channels_; }
  Index classes() const { return reads_.empty() ? 0 : reads_.front().weight.rows; }
  /// Tokens before the patches: the class token, where there is one, the distillation token and the registers.
  Index first_patch() const { return (class_.given() ? 1 : 0) + distillation_.rows + registers_.rows; }
  template <class Op>
  Saved<Op> saved(const Op&) const {
    return {};
  }

  /// image (batch rows cols) x channels, a pixel a row, normalised as the checkpoint wants it (io::normalised).
  template <class Op>
  void forward(const Op& op, View<S> image, Index rows, Index cols, VitSaved<Op, S>& saved,
               const ModelCall& call = {}) const;

  /// Backwards from the gradients of logits and of tokens, either of which may be without entries: gradients are added
  /// to, dimage ((batch rows cols) x channels) is overwritten, relevance gets its row; what is null or empty is not
  /// made. Throws ShapeError where they do not fit, neither is given, or nothing was kept.
  template <class Op>
  void backward(const Op& op, VitSaved<Op, S>& saved, View<S> dlogits, View<S> dtokens,
                ParameterGradients<S>* gradients, MutView<S> dimage = {}, RelevanceRow<S>* relevance = nullptr,
                const ModelCall& call = {}) const {
    run_backward(op, saved, dlogits, dtokens, gradients, dimage, relevance, call);
  }
  /// The same with all that an Explanation, started with a row an item, asks for; its input are the patches, a row each
  /// as saved.patches has them. Gradients have the same bits.
  template <class Op>
  void backward(const Op& op, VitSaved<Op, S>& saved, View<S> dlogits, View<S> dtokens,
                ParameterGradients<S>* gradients, MutView<S> dimage, Explanation<S>& why,
                const ModelCall& call = {}) const {
    run_backward(op, saved, dlogits, dtokens, gradients, dimage, &why, call);
  }

  /// The relevance of every token to the logit of that class, in every item. Throws ShapeError for a class out of
  /// range.
  template <class Op>
  RelevanceRow<S> explain(const Op& op, VitSaved<Op, S>& saved, Index label, const ModelCall& call = {}) const {
    RelevanceRow<S> out;
    explain_label(
        op, saved, label, [&](const Mat<S>& start) { out.start = start; }, out, call);
    return out;
  }
  /// All that an Explanation asks for, of that logit: it is started with the token, or the mean, that the model reads.
  template <class Op>
  void explain(const Op& op, VitSaved<Op, S>& saved, Index label, Explanation<S>& why,
               const ModelCall& call = {}) const {
    explain_label(
        op, saved, label, [&](const Mat<S>& start) { why.start(View<S>(start)); }, why, call);
  }

 private:
  template <class Op, class Start, class Asked>
  void explain_label(const Op& op, VitSaved<Op, S>& saved, Index label, const Start& start, Asked& asked,
                     const ModelCall& call) const {
    if (label < 0 || label >= classes())
      limpid::detail::raise("vit: the class is " + std::to_string(label) + ", wanted it in [0, " +
                            std::to_string(classes()) + ")");
    const Index batch = saved.logits.rows(), n = saved.rows * saved.cols;
    Mat<S> weights = Mat<S>::Zero(batch, n + first_patch());
    for (const Read& one : reads_) weights += pool_weights(one.from, batch, n) / S(double(reads_.size()));
    start(weights);
    Mat<S> dlogits = Mat<S>::Zero(batch, classes());
    dlogits.col(label).setOnes();
    run_backward(op, saved, View<S>(dlogits), View<S>(), nullptr, MutView<S>(), &asked, call);
  }
  template <class Op, class Asked>
  void run_backward(const Op& op, VitSaved<Op, S>& saved, View<S> dlogits, View<S> dtokens,
                    ParameterGradients<S>* gradients, MutView<S> dimage, Asked* asked, const ModelCall& call) const;

  ImagePatches cut_of(Index rows, Index cols) const { return {rows, cols, side_, side_, PatchBorder::none}; }
  ImagePatches check_image(Index rows, Index cols, View<S> image, Index batch, const char* name) const {
    const ImagePatches cut = cut_of(rows, cols);
    limpid::detail::check_patches("vit", cut);
    if (batch < 1 || image.rows != batch * rows * cols || image.cols != channels_)
      limpid::detail::raise(std::string("vit: ") + name + " is " + limpid::detail::shape_text(image.rows, image.cols) +
                            ", wanted " + limpid::detail::text_of(batch) + " x " + limpid::detail::text_of(rows) +
                            " x " + limpid::detail::text_of(cols) + " rows, a pixel each, of " +
                            limpid::detail::text_of(channels_) + " channels");
    return cut;
  }
  /// What a head reads: a token, or the mean of the patches.
  struct Read {
    Slot weight, bias;
    Index from;
  };
  static constexpr Index mean_of_patches = -1;
  Mat<S> pool_weights(Index from, Index batch, Index n) const {
    Mat<S> out = Mat<S>::Zero(batch, n + first_patch());
    if (from == mean_of_patches)
      out.rightCols(n).setConstant(S(1) / S(double(n)));
    else
      out.col(from).setOnes();
    return out;
  }
  /// What a model without a head pools.
  Index first_read() const { return options_.pool == VitOptions::Pool::mean ? mean_of_patches : 0; }
  void read_head(const io::Checkpoint& file, detail::Loader<S>& load, const detail::VitNames& names);

  VitOptions options_;
  detail::Stack<S> stack_;
  Slot patch_, patch_bias_, class_, distillation_, registers_, positions_, norm_, norm_bias_;
  std::vector<Read> reads_;  ///< one or two, whose sum times share_ the logits are; none: no head
  S share_ = S(1);
  bool norm_after_pool_ = false;
  Index channels_ = 0, side_ = 0, class_places_ = 0, grid_rows_ = 0, grid_cols_ = 0;
};

// Outside of the class, where a template is not inline: limpid::compiled_models holds them.

template <class S>
Vit<S>::Vit(const io::Checkpoint& file, const VitOptions& options) : options_(options) {
  detail::Loader<S> load(file, parameters);
  const detail::VitNames* names = nullptr;
  std::string prefix;
  for (const auto& family : detail::vit_families()) {
    prefix = load.prefix(family.prefixes, family.patch_weight);
    const std::string first = prefix + load.numbered(family.blocks, 0) + family.table.front().name;
    if (!file.has(prefix + family.patch_weight) || !file.has(first)) continue;
    names = &family;
    break;
  }
  if (names == nullptr) names = &detail::vit_families().front(), prefix.clear();
  stack_.layers = load.count(prefix + names->blocks + names->table.front().name);
  const bool has_class = options.pool == VitOptions::Pool::first || file.has(prefix + names->class_token);
  norm_after_pool_ = !file.has(prefix + names->norm_weight) && !names->pooled_norm.empty() &&
                     file.has(prefix + names->pooled_norm.front());
  const char* norm_weight = norm_after_pool_ ? names->pooled_norm.front() : names->norm_weight;
  const char* norm_bias = norm_after_pool_ ? names->pooled_norm.back() : names->norm_bias;
  for (const char* name : {names->patch_weight, names->positions, norm_weight, norm_bias})
    load.want(prefix, {{"", name, ""}});
  if (has_class) load.want(prefix, {{"", names->class_token, ""}});
  for (Index l = 0; l < std::max(stack_.layers, Index(1)); ++l)
    load.want(prefix + load.numbered(names->blocks, l), names->table);
  load.require();
  load.check_layers(stack_.layers, options.layers);

  const auto optional = [&](const std::string& name, const char* shape) {
    return file.has(name) ? load.take(name, shape) : Slot();
  };
  patch_ = load.take(prefix + names->patch_weight, "Dcpp");
  channels_ = load.extents['c'], side_ = load.extents['p'];
  const Index width = load.extents['D'];
  detail::check_heads(file, width, options.heads);
  load.extents['P'] = 3 * width, load.extents['d'] = width / options.heads;
  patch_bias_ = optional(prefix + names->patch_bias, "D");
  if (has_class) {
    class_ = load.take(prefix + names->class_token, "D");
    distillation_ = optional(prefix + names->distillation, "D");
  }
  registers_ = optional(prefix + names->registers, "RD");
  positions_ = load.take(prefix + names->positions, "ND");
  const Index places = load.extents['N'], least = distillation_.given() ? 2 : 0,
              most = std::max<Index>(least, has_class ? 1 : 0);
  grid_rows_ = options.grid_rows, grid_cols_ = options.grid_cols;
  std::string wanted = limpid::detail::shape_text(grid_rows_, grid_cols_);
  if (grid_rows_ == 0 && grid_cols_ == 0) {
    const auto squares = static_cast<double>(std::max(places - least, Index(0)));
    grid_rows_ = grid_cols_ = static_cast<Index>(std::llround(std::sqrt(squares)));
    wanted = "a square number";
  }
  const bool fits = grid_rows_ > 0 && grid_cols_ > 0 && grid_rows_ <= places / grid_cols_;
  class_places_ = fits ? places - grid_rows_ * grid_cols_ : most + 1;
  if (class_places_ > most || class_places_ < least)
    io::detail::fail(file.name() + ": " + io::detail::in_quotes(prefix + names->positions, 80),
                     "found " + std::to_string(places) + " places, wanted " + wanted +
                         (least != 0  ? " and two more"
                          : has_class ? ", or one more"
                                      : ""));
  for (Index l = 0; l < stack_.layers; ++l)
    stack_.blocks.push_back(load.block(prefix + load.numbered(names->blocks, l), names->table));
  norm_ = load.take(prefix + norm_weight, "D"), norm_bias_ = load.take(prefix + norm_bias, "D");
  read_head(file, load, *names);
  for (const char* name : names->unused) file.skip(prefix + name);
  const std::string blocks(names->blocks);
  std::vector<std::string> parts{blocks.substr(0, blocks.find('#'))};
  parts.insert(parts.end(), {"embeddings.", "patch_embed.", "norm_pre.", "pos_embed", "dist_token", "reg_token"});
  for (std::string& part : parts) part.insert(0, prefix);
  load.refuse_unread(parts);
  unused = file.unused();
  stack_.options.heads = options.heads, stack_.options.eps = options.eps;
  if (stack_.blocks.front().gamma_q.given()) stack_.options.qk_norm_eps = options.eps;
}

template <class S>
void Vit<S>::read_head(const io::Checkpoint& file, detail::Loader<S>& load, const detail::VitNames& names) {
  const auto with_bias = [&](const std::string& name, const char* shape, Index from) {
    Read out{load.take(name + ".weight", shape), {}, from};
    if (file.has(name + ".bias")) out.bias = load.take(name + ".bias", "V");
    return out;
  };
  for (const auto& [first, second] : names.heads) {
    const std::string name = std::string(first) + ".weight";
    if (!file.has(name)) continue;
    const Index width = load.extents['D'];
    const bool of_two = !norm_after_pool_;
    if (of_two && second != nullptr && distillation_.given() && file.has(std::string(second) + ".weight")) {
      reads_ = {with_bias(first, "VD", 0), with_bias(second, "VD", 1)};
      share_ = S(0.5);
    } else if (of_two && file.shape(name) == std::vector<Index>{file.shape(name).front(), 2 * width}) {
      const Read both = with_bias(first, "V2", 0);
      Slot left = both.weight, right = both.weight;
      left.cols = right.cols = right.col = width;
      reads_ = {{left, both.bias, 0}, {right, {}, mean_of_patches}};
    } else {
      reads_ = {with_bias(first, "VD", first_read())};
    }
    return;
  }
}

template <class S>
template <class Op>
void Vit<S>::forward(const Op& op, View<S> image, Index rows, Index cols, VitSaved<Op, S>& saved,
                     const ModelCall& call) const {
  const ImagePatches cut = check_image(rows, cols, image, call.batch, "image");
  const Index n = cut.tokens(), all = n + first_patch(), pixels = rows * cols;
  stack_.check(op, parameters, call.batch * all, call.batch);
  saved.rows = cut.rows_of_patches(), saved.cols = cut.cols_of_patches();
  saved.patches.resize(call.batch * n, channels_ * side_ * side_);
  const LayerCall inner{false, call.workspace, call.executor};
  for (Index b = 0; b < call.batch; ++b)
    patches(
        cut, image.block(b * pixels, 0, pixels, image.cols),
        MutView<S>(saved.patches.data() + b * n * saved.patches.cols(), n, saved.patches.cols(), saved.patches.cols()),
        inner);
  Mat<S> embedded(saved.patches.rows(), width());
  linear(View<S>(saved.patches), out_in(parameters(patch_)), parameters(patch_bias_), embedded, inner);
  const View<S> table = parameters(positions_);
  const Mat<S> places =
      resize_positions<S>(options_.positions, table.block(class_places_, 0, grid_rows_ * grid_cols_, width()),
                          grid_rows_, grid_cols_, saved.rows, saved.cols);
  embed(places, detail::places_of(call.batch, n), embedded, {true, call.workspace, call.executor});
  Mat<S> first(first_patch(), width()), x(call.batch * all, width());
  if (class_.given()) first.row(0) = parameters(class_).map();
  if (distillation_.given()) first.row(1) = parameters(distillation_).map();
  first.topRows(class_places_) += table.map().topRows(class_places_);
  if (registers_.given()) first.bottomRows(registers_.rows) = parameters(registers_).map();
  if (first.rows() > 0)
    prepend(first, embedded, x, call.batch);
  else
    x = std::move(embedded);
  saved.last = stack_.forward(op, parameters, std::move(x), saved.stack, call);
  const auto norm = [&](const Mat<S>& in) {
    Mat<S> out(in.rows(), width());
    layer_norm(in, parameters(norm_), parameters(norm_bias_), out,
               {options_.eps, &saved.norm, call.workspace, call.executor});
    return out;
  };
  saved.tokens = norm_after_pool_ ? std::move(saved.last) : norm(saved.last);
  const auto pooled = [&](Index from) -> Mat<S> {
    Mat<S> out = pool(saved.tokens, pool_weights(from, call.batch, n));
    if (!norm_after_pool_) return out;
    saved.unnormed = std::move(out);
    return norm(saved.unnormed);
  };
  saved.logits.resize(call.batch, classes());
  if (reads_.empty()) {
    saved.pooled = pooled(first_read());
    return;
  }
  saved.pooled.resize(call.batch, static_cast<Index>(reads_.size()) * width());
  Mat<S> part(call.batch, reads_.size() > 1 ? classes() : 0);
  for (std::size_t r = 0; r < reads_.size(); ++r) {
    const Index first_col = static_cast<Index>(r) * width();
    saved.pooled.middleCols(first_col, width()) = pooled(reads_[r].from);
    Mat<S>& to = r == 0 ? saved.logits : part;
    linear(View<S>(saved.pooled).block(0, first_col, call.batch, width()), out_in(parameters(reads_[r].weight)),
           parameters(reads_[r].bias), to, inner);
    if (r != 0) saved.logits += part;
  }
  if (share_ != S(1)) saved.logits *= share_;
}

template <class S>
template <class Op, class Asked>
void Vit<S>::run_backward(const Op& op, VitSaved<Op, S>& saved, View<S> dlogits, View<S> dtokens,
                          ParameterGradients<S>* gradients, MutView<S> dimage, Asked* asked,
                          const ModelCall& call) const {
  const Index n = saved.rows * saved.cols, all = n + first_patch();
  const Index batch = n == 0 ? 0 : saved.patches.rows() / n;
  const auto gradient = [&](const Slot& slot) {
    return gradients != nullptr ? add((*gradients)(slot)) : Gradient<S>();
  };
  const auto fits = [&](const char* name, View<S> found, Index rows, Index cols) {
    if (found.given() && (found.rows != rows || found.cols != cols))
      limpid::detail::raise(std::string("vit: ") + name + " is " + limpid::detail::shape_text(found.rows, found.cols) +
                            ", wanted " + limpid::detail::shape_text(rows, cols));
  };
  fits("the gradient of logits", dlogits, batch, classes());
  fits("the gradient of tokens", dtokens, batch * all, width());
  fits("the gradient of the image", dimage, batch * n * side_ * side_, channels_);
  detail::check_gradient_list("vit", gradients, parameters);
  stack_.check_kept(op, parameters, saved.stack);
  detail::check_asked("vit", asked, batch, all);
  if (!dlogits.given() && !dtokens.given())
    limpid::detail::raise("vit: found no gradient of logits or tokens, wanted one of them to go back from");
  const LayerCall inner{false, call.workspace, call.executor};
  const auto before_norm = [&](const Mat<S>& x, const Mat<S>& dy) {
    Mat<S> dx(x.rows(), x.cols());
    layer_norm_backward(View<S>(x), parameters(norm_), saved.norm, View<S>(dy),
                        {overwrite(dx), gradient(norm_), gradient(norm_bias_)}, inner);
    return dx;
  };
  Mat<S> d = Mat<S>::Zero(batch * all, width());
  if (dtokens.given()) d = dtokens.map();
  if (dlogits.given()) {
    const Mat<S> of_heads = share_ * dlogits.map();
    Mat<S> dpooled(batch, width());
    for (std::size_t r = 0; r < reads_.size(); ++r) {
      linear_backward(View<S>(saved.pooled).block(0, static_cast<Index>(r) * width(), batch, width()),
                      out_in(parameters(reads_[r].weight)), View<S>(of_heads),
                      {overwrite(dpooled), gradient(reads_[r].weight), gradient(reads_[r].bias)}, inner);
      if (norm_after_pool_) dpooled = before_norm(saved.unnormed, dpooled);
      d += pool_backward(pool_weights(reads_[r].from, batch, n), dpooled);
    }
  }
  if (!norm_after_pool_) d = before_norm(saved.last, d);
  d = stack_.backward(op, parameters, saved.stack, std::move(d), gradients, asked, call);
  const bool input = dimage.given() || (asked != nullptr && detail::asks_for_input(asked));
  if (gradients == nullptr && !input) return;
  Mat<S> dembedded(batch * n, width()), dfirst(first_patch(), width());
  if (first_patch() > 0)
    prepend_backward(first_patch(), d, gradients != nullptr ? overwrite(dfirst) : Gradient<S>(), dembedded, batch);
  else
    dembedded = std::move(d);
  if (gradients != nullptr) {
    if (class_.given()) (*gradients)(class_).map() += dfirst.row(0);
    if (distillation_.given()) (*gradients)(distillation_).map() += dfirst.row(1);
    (*gradients)(positions_).map().topRows(class_places_) += dfirst.topRows(class_places_);
    if (registers_.given()) (*gradients)(registers_).map() += dfirst.bottomRows(registers_.rows);
    Mat<S> dplaces(n, width());
    embed_backward(detail::places_of(batch, n), dembedded, dplaces);
    (*gradients)(positions_).map().bottomRows(grid_rows_ * grid_cols_) += resize_positions_backward<S>(
        options_.positions, View<S>(dplaces), grid_rows_, grid_cols_, saved.rows, saved.cols);
  }
  Mat<S> dpatches(input ? batch * n : 0, saved.patches.cols());
  linear_backward(View<S>(saved.patches), out_in(parameters(patch_)), View<S>(dembedded),
                  {input ? overwrite(dpatches) : Gradient<S>(), gradient(patch_), gradient(patch_bias_)}, inner);
  if (input && asked != nullptr) detail::tell_input(asked, saved.patches, dpatches, first_patch());
  if (!dimage.given()) return;
  const ImagePatches cut = cut_of(saved.rows * side_, saved.cols * side_);
  const Index pixels = cut.rows * cut.cols;
  for (Index b = 0; b < batch; ++b)
    patches_backward(cut, View<S>(dpatches).block(b * n, 0, n, dpatches.cols()),
                     dimage.block(b * pixels, 0, pixels, channels_), inner);
}

}  // namespace model

}  // namespace LIMPID_ABI
}  // namespace limpid
