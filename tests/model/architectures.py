#!/usr/bin/env python3
# limpid: small models of many published architectures, made by Hugging Face's transformers and by timm, and what they answer.
# SPDX-License-Identifier: MIT
"""usage: architectures.py FOLDER [PROGRAM] [--only REGEX]
          architectures.py --keep          writes tests/model/published/small_*.safetensors

Makes a model with random weights of every architecture below, as save_pretrained writes it, in FOLDER/NAME: config.json,
one file or shards, F64, F16 or BF16. Beside them, in float64, reference.safetensors with an input, the model's answer, a
score and its gradient for the input; its metadata say what limpid makes of such a model: the same, or a refusal.
Kept are the smallest ones, config.json as metadata and the reference as reference.*: tests/model/published_test.cpp.
PROGRAM, built as `cmake --build build --target architectures`, compares (tests/model/architectures.cpp).

Wants torch, transformers<5 and safetensors, timm for its models; without torch or transformers it says so and ends well.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import safetensors.torch
    import torch
    half, brain = torch.float16, torch.bfloat16
    # Rotary angles, norms and softmax ask for float32 inside, whatever the model's type.
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    import transformers
    from transformers import *
except ImportError as missing:
    sys.exit(print(f"architectures.py: skipped, {missing}") or 0)
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

TEXT = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=40, attn_implementation="eager")
IMAGE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=12, patch_size=4,
             attn_implementation="eager")
DECODER = dict(TEXT, num_key_value_heads=2)
SMALL_TEXT = dict(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                  max_position_embeddings=10, attn_implementation="eager")
SMALL_IMAGE = dict(IMAGE, hidden_size=8, num_attention_heads=2, intermediate_size=12, num_labels=3)
CASES = {}


def case(name, model, config, same=True, **more):
    CASES[name] = (model, config, same, more)


def randomised(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.25 * torch.randn(p.shape, generator=generator) + (1 if p.dim() == 1 and "bias" not in name else 0))
    return model.eval()


def weights_of(shape):
    count = torch.Size(shape).numel()
    return torch.cos(1 + 1.7 * torch.arange(count)).reshape(shape)


def text_input(model, encoder):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, model.config.vocab_size, (2, 9), generator=generator)
    types = torch.randint(0, 2, (2, 9), generator=generator)
    keep = torch.ones(2, 9, dtype=torch.int64)
    if encoder:
        keep[1, 6:] = 0
        ids[1, 6:] = model.config.pad_token_id or 0
    return ids, types, keep


def of_encoder(model, more):
    base = getattr(model, model.base_model_prefix, model)
    ids, types, keep = text_input(model, True)
    words = base.get_input_embeddings()
    embedded = words(ids).detach().requires_grad_()
    call = dict(inputs_embeds=embedded, attention_mask=keep)
    if getattr(model.config, "type_vocab_size", 0) > 1:
        call["token_type_ids"] = types
    else:
        types = torch.zeros_like(types)
    if "first_place" in more:  # as by ids: places begin behind padding
        call["position_ids"] = (more["first_place"] + torch.arange(9)).expand(2, 9)
    hidden = base(**call).last_hidden_state
    score = (hidden * weights_of(hidden.shape) * keep[..., None]).sum()
    score.backward()
    by_ids = {key: value for key, value in call.items() if key not in ("inputs_embeds", "position_ids")}
    assert (((base(input_ids=ids, **by_ids).last_hidden_state - hidden) * keep[..., None]).abs().max()) < 1e-12
    return dict(ids=ids, types=types, keep=keep, hidden=hidden, gradient=embedded.grad)


def of_decoder(model, more):
    ids, _, _ = text_input(model, False)
    ids = ids[:, :more.get("n", 9)]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    (logits * weights_of(logits.shape)).sum().backward()
    return dict(ids=ids, hidden=logits, gradient=embedded.grad)


def of_image(model, more):
    size = more.get("size", (12, 12))
    image = torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(5)).requires_grad_()
    if more.get("timm"):
        tokens, logits = model.forward_features(image), None
        if model.num_classes:
            logits = model.forward_head(tokens)
    else:
        base = getattr(model, model.base_model_prefix, model)
        call = dict(interpolate_pos_encoding=True) if size != (12, 12) and "dinov2" not in model.config.model_type else {}
        tokens = base(image, **call).last_hidden_state
        logits = model(image, **call).logits if hasattr(model, "classifier") or "teacher" in more else None
    score = (tokens * weights_of(tokens.shape)).sum()
    if logits is not None:
        score = score + (logits * weights_of(logits.shape)).sum()
    score.backward()
    out = dict(image=image, hidden=tokens, gradient=image.grad)
    return out if logits is None else dict(out, logits=logits)


def write(folder, name):
    make, config, same, more = CASES[name]
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    model = randomised(make(config))
    dtype = more.get("dtype")
    if dtype is not None:
        model = model.to(dtype)
    if more.get("timm"):
        safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
    else:
        model.save_pretrained(out, max_shard_size=more.get("shard", "1GB"))
    model = model.double().float()
    if dtype is not None and hasattr(model, "model") and hasattr(model.model, "rotary_emb"):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # frequencies are no weights
    kind = more["kind"]
    tensors = {}
    if same or more.get("answer", False):
        tensors = dict(encoder=of_encoder, decoder=of_decoder, image=of_image)[kind](model, more)
    metadata = {"kind": kind, "expected": "same" if same else "refused"}
    metadata.update({key: str(value) for key, value in more.items() if key in ("heads", "eps", "positions", "pool")})
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in tensors.items()}, out / "reference.safetensors", metadata)


def keep(folder, name):
    """All that was written of a model, as one file."""
    tensors = safetensors.torch.load_file(folder / name / "model.safetensors")
    with safetensors.safe_open(folder / name / "reference.safetensors", "pt") as reference:
        metadata = dict(reference.metadata(), config=(folder / name / "config.json").read_text())
        for key in reference.keys():
            tensors["reference." + key] = reference.get_tensor(key)
    out = pathlib.Path(__file__).resolve().parent / "published" / f"{name}.safetensors"
    safetensors.torch.save_file(tensors, out, metadata)


def encoder(name, model, config, same=True, **more):
    case(name, model, config, same, kind="encoder", **more)


def decoder(name, model, config, same=True, **more):
    case(name, model, config, same, kind="decoder", **more)


def image(name, model, config, same=True, **more):
    case(name, model, config, same, kind="image", **more)


encoder("bert", BertModel, BertConfig(**TEXT))
encoder("bert_masked_lm_f16_shards", BertForMaskedLM, BertConfig(**TEXT, hidden_act="gelu_new"), dtype=half, shard="10KB")
encoder("bert_relu", BertModel, BertConfig(**TEXT, hidden_act="relu", layer_norm_eps=1e-5))
encoder("bert_relative", BertModel, BertConfig(**TEXT, position_embedding_type="relative_key"), same=False)
encoder("bert_decoder", BertLMHeadModel, BertConfig(**TEXT, is_decoder=True), same=False)
encoder("bert_cross", BertModel, BertConfig(**TEXT, is_decoder=True, add_cross_attention=True), same=False)
encoder("roberta", RobertaModel, RobertaConfig(**TEXT, layer_norm_eps=1e-5), first_place=2)
encoder("roberta_classifier_bf16", RobertaForSequenceClassification, RobertaConfig(**dict(TEXT, type_vocab_size=1)), dtype=brain,
        first_place=2)
encoder("xlm_roberta", XLMRobertaModel, XLMRobertaConfig(**TEXT, pad_token_id=1), first_place=2)
encoder("camembert", CamembertForMaskedLM, CamembertConfig(**TEXT), first_place=2)
encoder("albert", AlbertModel, AlbertConfig(**TEXT, embedding_size=12, pad_token_id=0))
encoder("albert_groups", AlbertForMaskedLM, AlbertConfig(**dict(TEXT, num_hidden_layers=4), num_hidden_groups=2, embedding_size=12))
encoder("albert_inner", AlbertModel, AlbertConfig(**TEXT, inner_group_num=2, embedding_size=12), same=False)
encoder("electra", ElectraModel, ElectraConfig(**TEXT, embedding_size=12))
encoder("electra_discriminator", ElectraForPreTraining, ElectraConfig(**TEXT, embedding_size=24))
DISTIL = dict(vocab_size=50, dim=24, n_layers=3, n_heads=4, hidden_dim=40, max_position_embeddings=40, attn_implementation="eager")
encoder("distilbert", DistilBertModel, DistilBertConfig(**DISTIL))
encoder("distilbert_classifier", DistilBertForSequenceClassification, DistilBertConfig(**DISTIL, activation="relu"))
encoder("distilbert_sinusoidal", DistilBertForMaskedLM, DistilBertConfig(**DISTIL, sinusoidal_pos_embds=True))
encoder("mpnet", MPNetModel, MPNetConfig(**TEXT), same=False)
encoder("deberta", DebertaModel, DebertaConfig(**TEXT), same=False)
encoder("deberta_v2", DebertaV2Model, DebertaV2Config(**TEXT), same=False)
encoder("xlm_roberta_xl", XLMRobertaXLModel, XLMRobertaXLConfig(**TEXT), same=False)
encoder("roberta_prelayernorm", RobertaPreLayerNormModel, RobertaPreLayerNormConfig(**TEXT), same=False)
encoder("modernbert", ModernBertModel, ModernBertConfig(**dict(TEXT, pad_token_id=0)), same=False)
encoder("ernie", ErnieModel, ErnieConfig(**TEXT, use_task_id=True), same=False)
encoder("convbert", ConvBertModel, ConvBertConfig(**TEXT, embedding_size=24), same=False)
encoder("roformer", RoFormerModel, RoFormerConfig(**TEXT), same=False)

encoder("small_distilbert", DistilBertModel, DistilBertConfig(
    vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=10, attn_implementation="eager"))
encoder("small_electra", ElectraModel, ElectraConfig(**SMALL_TEXT, embedding_size=4))

image("small_deit", DeiTForImageClassificationWithTeacher, DeiTConfig(**SMALL_IMAGE), teacher=True)
image("small_dinov2", Dinov2ForImageClassification, Dinov2Config(**SMALL_IMAGE))
image("vit", ViTModel, ViTConfig(**IMAGE))
image("vit_classifier_other_size", ViTForImageClassification, ViTConfig(**IMAGE, num_labels=5, qkv_bias=False), size=(16, 8))
image("vit_f16_shards", ViTForImageClassification, ViTConfig(**IMAGE, num_labels=5), dtype=half, shard="8KB")
image("vit_gelu_new", ViTModel, ViTConfig(**IMAGE, hidden_act="gelu_new"), same=False)
image("deit", DeiTModel, DeiTConfig(**IMAGE))
image("deit_classifier_other_size", DeiTForImageClassification, DeiTConfig(**IMAGE, num_labels=5), size=(16, 8))
image("deit_with_teacher", DeiTForImageClassificationWithTeacher, DeiTConfig(**IMAGE, num_labels=5), teacher=True)
image("dinov2", Dinov2Model, Dinov2Config(**IMAGE), size=(16, 8))
image("dinov2_classifier", Dinov2ForImageClassification, Dinov2Config(**IMAGE, num_labels=5))
image("dinov2_swiglu", Dinov2Model, Dinov2Config(**IMAGE, use_swiglu_ffn=True), same=False)
image("dinov2_registers_classifier", Dinov2WithRegistersForImageClassification,
      Dinov2WithRegistersConfig(**IMAGE, num_register_tokens=3, num_labels=5))
image("dinov2_registers", Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**IMAGE, num_register_tokens=3), size=(16, 8))
image("dinov3", DINOv3ViTModel, DINOv3ViTConfig(**IMAGE), same=False)
image("beit", BeitModel, BeitConfig(**IMAGE), same=False)
image("clip", CLIPVisionModel, CLIPVisionConfig(**IMAGE), same=False)
image("siglip", SiglipVisionModel, SiglipVisionConfig(**IMAGE), same=False)
image("vit_mae", ViTMAEModel, ViTMAEConfig(**IMAGE), same=False)
image("vit_msn", ViTMSNModel, ViTMSNConfig(**IMAGE), same=False)
image("ijepa", IJepaModel, IJepaConfig(**IMAGE), same=False)

decoder("llama", LlamaForCausalLM, LlamaConfig(**DECODER))
decoder("llama_tied_biases_bf16_shards", LlamaForCausalLM,
        LlamaConfig(**DECODER, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=10), dtype=brain, shard="8KB")
decoder("llama_linear", LlamaForCausalLM, LlamaConfig(**DECODER, rope_scaling={"rope_type": "linear", "factor": 4.0}))
decoder("llama_llama3", LlamaForCausalLM, LlamaConfig(**DECODER, rope_theta=500.0, rope_scaling={
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16}))
decoder("llama_yarn", LlamaForCausalLM, LlamaConfig(**DECODER, rope_theta=100.0, rope_scaling={
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}))
decoder("llama_yarn_no_original", LlamaForCausalLM, LlamaConfig(**DECODER, rope_scaling={"rope_type": "yarn", "factor": 4.0}))
decoder("llama_yarn_mscale", LlamaForCausalLM, LlamaConfig(**DECODER, rope_scaling={
    "rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 8.0, "beta_slow": 2.0,
    "original_max_position_embeddings": 16}))
decoder("llama_dynamic", LlamaForCausalLM, LlamaConfig(**DECODER, rope_scaling={"rope_type": "dynamic", "factor": 4.0}), same=False)
decoder("llama_longrope", LlamaForCausalLM, LlamaConfig(**DECODER, rope_scaling={
    "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}), same=False)
decoder("llama_base", LlamaModel, LlamaConfig(**DECODER), same=False)
decoder("mistral", MistralForCausalLM, MistralConfig(**DECODER, sliding_window=None))
decoder("mistral_window", MistralForCausalLM, MistralConfig(**DECODER, sliding_window=4), n=4)
decoder("qwen2_tied", Qwen2ForCausalLM, Qwen2Config(**DECODER, tie_word_embeddings=True))
decoder("qwen2_yarn", Qwen2ForCausalLM, Qwen2Config(**DECODER, rope_scaling={
    "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}))
decoder("qwen2_window", Qwen2ForCausalLM,
        Qwen2Config(**DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1), n=4)
decoder("qwen3", Qwen3ForCausalLM, Qwen3Config(**DECODER, head_dim=8))
decoder("phi3", Phi3ForCausalLM, Phi3Config(**DECODER, pad_token_id=0), same=False)
for name, model, config in [
        ("gemma", GemmaForCausalLM, GemmaConfig(**DECODER, head_dim=8)),
        ("gemma2", Gemma2ForCausalLM, Gemma2Config(**DECODER, head_dim=8)),
        ("smollm3", SmolLM3ForCausalLM, SmolLM3Config(**DECODER, pad_token_id=0)), ("olmo", OlmoForCausalLM, OlmoConfig(**DECODER)),
        ("olmo2", Olmo2ForCausalLM, Olmo2Config(**DECODER)), ("starcoder2", Starcoder2ForCausalLM, Starcoder2Config(**DECODER)),
        ("gpt2", GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=40)),
        ("granite", GraniteForCausalLM, GraniteConfig(**DECODER)), ("cohere", CohereForCausalLM, CohereConfig(**DECODER)),
        ("mixtral", MixtralForCausalLM, MixtralConfig(**DECODER, num_local_experts=2)),
        ("qwen3_moe", Qwen3MoeForCausalLM, Qwen3MoeConfig(**DECODER, num_experts=2, num_experts_per_tok=1)),
        ("stablelm", StableLmForCausalLM, StableLmConfig(**DECODER)), ("persimmon", PersimmonForCausalLM, PersimmonConfig(**TEXT)),
        ("glm", GlmForCausalLM, GlmConfig(**DECODER, head_dim=8, pad_token_id=0)),
        ("helium", HeliumForCausalLM, HeliumConfig(**DECODER, head_dim=8)),
        ("phi", PhiForCausalLM, PhiConfig(**DECODER))]:
    decoder(name, model, config, same=False)

try:
    import timm

    def of_timm(name, **options):
        small = dict(img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=4, num_classes=5)
        return lambda _: timm.create_model(name, **small, **options)
    TIMM = dict(timm=True, heads=4, eps=1e-6, positions="antialiased")
    image("timm_vit", of_timm("vit_tiny_patch16_224"), None, **TIMM)
    image("timm_vit_dynamic_size", of_timm("vit_tiny_patch16_224", dynamic_img_size=True), None, size=(16, 8), **TIMM)
    image("timm_layer_scale", of_timm("vit_tiny_patch16_224", init_values=0.1, qkv_bias=False), None, **TIMM)
    image("timm_qk_norm", of_timm("vit_tiny_patch16_224", qk_norm=True), None, same=False, answer=True, **TIMM)
    image("timm_registers", of_timm("vit_small_patch14_reg4_dinov2"), None, **TIMM)
    image("timm_mean", of_timm("vit_tiny_patch16_224", global_pool="avg", fc_norm=False), None, pool="mean", **TIMM)
    image("timm_fc_norm", of_timm("vit_tiny_patch16_224", global_pool="avg", fc_norm=True), None, same=False, **TIMM)
    image("timm_pre_norm", of_timm("vit_tiny_patch16_224", pre_norm=True), None, same=False, **TIMM)
    image("timm_no_class_token", of_timm("vit_tiny_patch16_224", class_token=False, global_pool="avg"), None, same=False, **TIMM)
    image("timm_deit_distilled", of_timm("deit_tiny_distilled_patch16_224"), None, **TIMM)
    image("timm_beit", of_timm("beit_base_patch16_224"), None, same=False, **TIMM)
except ImportError as missing:
    print(f"architectures.py: timm's models are left out, {missing}")


def main():
    arguments = sys.argv[1:]
    only = ""
    if "--only" in arguments:
        at = arguments.index("--only")
        only = arguments[at + 1]
        del arguments[at:at + 2]
    if not arguments:
        sys.exit(__doc__)
    if arguments == ["--keep"]:
        with tempfile.TemporaryDirectory() as folder:
            for name in [name for name in CASES if name.startswith("small_")]:
                write(pathlib.Path(folder), name)
                keep(pathlib.Path(folder), name)
        return
    folder = pathlib.Path(arguments[0])
    names = [name for name in CASES if re.search(only, name)]
    for name in names:
        write(folder, name)
    if len(arguments) > 1:
        sys.exit(subprocess.run([arguments[1], *(str(folder / name) for name in names)]).returncode)


main()
