#!/usr/bin/env python3
# limpid: what published models answer in their original framework: tests/model/published/*.
# SPDX-License-Identifier: MIT
"""usage: published.py rxnmapper|minilm|dinov2|wordpiece ...     writes published/NAME here

Wants torch, transformers<5, safetensors, tokenizers, Pillow and the weights: examples/fetch_models (rxnmapper travels).

Of each model in float64, by PyTorch and transformers: MATRIX.sums is the matrix times cos(1), cos(2) ..., MATRIX.rows
its first and its middle row.
  layers.L.out   what a block gives, n x D, sums of every layer; tokens: after the last norm where there is one
  layers.L.map   the middle row (of an image the first) of the attention map of every head, of three layers
  y              a scalar: of the mean embedding's cosine with another text's (minilm), of a token's row times cos(1), cos(2) ...
                 (rxnmapper), the length of the class token (dinov2)
  gradient       of y: n x D with respect to a token's embeddings before their norm; of an image 224 x (224 3), its pixels
  weights.NAME   gradients of y with respect to some weights
  relevance      Chefer, Gur and Wolf 2021, rules 5 and 6, without the start: start (R - I)
  rollout        Abnar and Zuidema 2020, residual 1/2, of the same start
  saliency       what the decoder that came with dinov2 makes of the patches, 224 x 224
Beside them in the metadata float_error.KIND: what the same program in float32 errs by, largest error over largest entry,
the worst of a kind and of four inputs. The photograph kept is chelsea.png, 224 x 224 pixels from (16, 16) on.
"""
import json
import pathlib
import re
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/model/published"
WEIGHTS = {"rxnmapper": ROOT / "examples/data/rxnmapper/rxnmapper.safetensors"}
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Of each the first is the one whose numbers are kept; all tell what float32 errs by.
REACTIONS = ["CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1", "CC(=O)O.CCN>>CCNC(C)=O", "CCO.BrCF>>CCOCF", "Nc1ccccc1.ClCC>>CCNc1ccccc1"]
TEXTS = ["The bank raised its interest rates again.", "Mortgages became more expensive for home owners.",
         "They had lunch by the water and watched the boats.", "Loud noises in a storm make many pets hide."]
PICTURES = [("chelsea", 16, 16), ("chelsea", 32, 0), ("astronaut", 0, 120), ("camera", 60, 150)]

torch.set_num_threads(1)
plain_softmax = torch.nn.functional.softmax  # eager attention asks for float32 inside, whatever the model's type
torch.nn.functional.softmax = lambda x, dim=None, dtype=None, **k: plain_softmax(x, dim=dim)
plain_resize = torch.nn.functional.interpolate  # and so are positions resized
torch.nn.functional.interpolate = lambda x, *a, **k: plain_resize(x.to(torch.get_default_dtype()), *a, **k)
transformers.logging.set_verbosity_error()


def load(name, dtype):
    state = load_file(WEIGHTS.get(name, ROOT / f"build/models/{name}/model.safetensors"))
    if name == "rxnmapper":
        config = transformers.AlbertConfig(vocab_size=591, embedding_size=128, hidden_size=256, num_hidden_layers=12,
                                           num_attention_heads=8, intermediate_size=512, hidden_act="gelu",
                                           attn_implementation="eager")
        model = transformers.AlbertModel(config, add_pooling_layer=False)
        state = {key.removeprefix("albert."): value for key, value in state.items()}
    elif name == "minilm":
        config = transformers.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                                         attn_implementation="eager")
        model = transformers.BertModel(config, add_pooling_layer=False)
        state = {key: value for key, value in state.items() if not key.startswith("pooler.")}
    else:
        config = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518,
                                           patch_size=14, attn_implementation="eager")
        model = transformers.Dinov2Model(config)
        state = {key: value for key, value in state.items() if not key.startswith("decoder.")}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not set(missing) - {"embeddings.mask_token"} and not set(unknown) - {"embeddings.position_ids"}, (missing, unknown)
    return model.to(dtype).eval()


def token_ids(name, item):
    if name == "minilm":
        tokenizer = transformers.BertTokenizer(ROOT / "build/models/minilm/vocab.txt", do_lower_case=True)
        return [tokenizer(text)["input_ids"] for text in (TEXTS[item], TEXTS[item ^ 1])]
    vocabulary = (ROOT / "examples/data/rxnmapper/vocabulary.txt").read_text().split("\n")
    tokens = re.findall(r"Br|Cl|>>|.", REACTIONS[item])
    return [[vocabulary.index(token) for token in ["[CLS]", *tokens, "[SEP]"]]]


def photograph(item, dtype):
    from PIL import Image

    name, x, y = PICTURES[item]
    image = Image.open(ROOT / f"examples/data/photographs/{name}.png").convert("RGB").crop((x, y, x + 224, y + 224))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).to(dtype).reshape(224, 224, 3) / 255
    pixels = (pixels - torch.tensor(MEAN, dtype=dtype)) / torch.tensor(DEVIATION, dtype=dtype)
    return pixels.permute(2, 0, 1)[None].contiguous()


def saliency(tokens, dtype):
    state = {k: v.to(dtype) for k, v in load_file(ROOT / "build/models/dinov2/model.safetensors").items() if k[:7] == "decoder"}
    x = tokens[:, 1:].transpose(1, 2).reshape(1, 384, 16, 16)
    for i in 1, 2, 3:
        x = torch.nn.functional.conv_transpose2d(x, state[f"decoder.upconv{i}.weight"], state[f"decoder.upconv{i}.bias"], 2, 1)
        norm = [state[f"decoder.bn{i}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = torch.nn.functional.batch_norm(x, *norm, eps=1e-5).relu()
    x = torch.nn.functional.conv2d(x, state["decoder.final_conv.weight"], state["decoder.final_conv.bias"])
    return torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False).sigmoid()[0, 0]


def run(name, dtype, item):
    """Every tensor of the file by its name, and the input's ids."""
    torch.set_default_dtype(dtype)
    model = load(name, dtype)
    out = {}

    def matrix(key, value, rows=True):
        value = value.detach()
        out[key + ".sums"] = value @ torch.arange(1, value.shape[1] + 1, dtype=torch.float64).cos().to(dtype)
        if rows:
            out[key + ".rows"] = value[[0, value.shape[0] // 2]]

    ask = dict(output_attentions=True, output_hidden_states=True)
    ids = token_ids(name, item) if name != "dinov2" else []
    if name == "dinov2":
        leaf = photograph(item, dtype).requires_grad_()
        answer = model(pixel_values=leaf, **ask)
    else:
        found = []
        hook = model.embeddings.LayerNorm.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        answer = model(input_ids=torch.tensor(ids[:1]), **ask)
        hook.remove()
        (leaf,) = found
        leaf.retain_grad()
    maps, tokens = answer.attentions, answer.last_hidden_state
    for one in maps:
        one.retain_grad()
    n, layers = tokens.shape[1], len(maps)
    start = torch.zeros(n, dtype=dtype)
    if name == "minilm":
        with torch.no_grad():
            other = model(input_ids=torch.tensor(ids[1:])).last_hidden_state[0].mean(0)
        mean = tokens[0].mean(0)
        y = mean / mean.norm() @ (other / other.norm())
        start += 1 / n
    elif name == "rxnmapper":
        y = tokens[0, n - 3] @ torch.arange(1, 257, dtype=torch.float64).cos().to(dtype)
        start[n - 3] = 1
    else:
        y = tokens[0, 0].norm()
        start[0] = 1
    y.backward()
    for l in range(layers):
        matrix(f"layers.{l}.out", answer.hidden_states[l + 1][0], rows=l == layers - 1)
        if l in (0, layers // 2, layers - 1):
            out[f"layers.{l}.map"] = maps[l][0, :, 0 if name == "dinov2" else n // 2].detach()
    matrix("tokens", tokens[0])
    out["y"] = y.detach()[None]
    matrix("gradient", leaf.grad[0].permute(1, 2, 0).reshape(224, -1) if name == "dinov2" else leaf.grad[0])
    weights = dict(model.named_parameters())
    pick = {"rxnmapper": ["encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight",
                          "encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
                          "encoder.embedding_hidden_mapping_in.weight"],
            "minilm": ["encoder.layer.0.attention.self.query.weight", "encoder.layer.5.output.dense.weight",
                       "encoder.layer.3.attention.output.LayerNorm.weight"],
            "dinov2": ["encoder.layer.0.attention.attention.query.weight", "encoder.layer.11.mlp.fc2.weight",
                       "encoder.layer.6.layer_scale1.lambda1", "embeddings.patch_embeddings.projection.weight"]}[name]
    for key in pick:
        value = weights[key].grad
        matrix("weights." + key, value.flatten(1) if value.ndim > 1 else value[None], rows=False)
    rest, roll = torch.zeros_like(start), start
    for one in reversed(maps):
        rest = rest + (start + rest) @ (one[0] * one.grad[0]).clamp(min=0).mean(0)
        roll = roll / 2 + roll @ one[0].detach().mean(0) / 2
    out["relevance"], out["rollout"] = rest.detach(), roll
    if name == "dinov2":
        matrix("saliency", saliency(tokens, dtype))
    return out, ids


def kind(key):
    part = key.split(".")
    return "tokens" if key == "y" else part[2] if part[0] == "layers" else part[0]


def model(name):
    errors = {}
    for item in reversed(range(4)):
        wanted, ids = run(name, torch.float64, item)
        found, _ = run(name, torch.float32, item)
        for key, value in wanted.items():
            error = float((found[key].double() - value).abs().max() / value.abs().max())
            errors[kind(key)] = max(errors.get(kind(key), 0), error)
    print(name, "in float32:", {key: f"{error:.1e}" for key, error in errors.items()})
    about = {"rxnmapper": REACTIONS[0], "minilm": " | ".join(TEXTS[:2]), "dinov2": "chelsea.png"}[name]
    for i, one in enumerate(ids):
        wanted[f"ids.{i}"] = torch.tensor(one)
    save_file({key: value.contiguous().clone() for key, value in wanted.items()}, OUT / f"{name}.safetensors",
              {"input": about, "torch": torch.__version__, "transformers": transformers.__version__}
              | {"float_error." + key: repr(error) for key, error in errors.items()})


def wordpiece():
    """Texts as the tokenizers library cuts them, and the part of the vocabulary that decides about their words."""
    from tokenizers import BertWordPieceTokenizer

    file = ROOT / "build/models/minilm/vocab.txt"
    tokenizer = BertWordPieceTokenizer(str(file), lowercase=True)
    texts = [*TEXTS[:2], "", " \t\n ", "Hello, World!", "don't stop -- it's 3.14% of $5 (ok?)",
             "unaffable embeddings tokenization",
             "Caf\xe9 cre\u0300me, na\xefve r\xf4le: \xc5ngstr\xf6m \xd8rsted stra\xdfe \xbfqu\xe9?",
             "\u0141\xf3d\u017a \u010cesk\xfd \u0130stanbul Vi\u1ec7t Nam",
             "\u0391\u03b8\u03ae\u03bd\u03b1 \u039f\u03b4\u03cc\u03c2",
             "\u041c\u043e\u0441\u043a\u0432\u0430 \u0451\u043b\u043a\u0430 \u0419\u043e\u0434",
             "\u6771\u4eac\u90fd is Tokyo\u3002\u304c\u30d1", "\ud55c\uad6d \uac00",
             "\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
             "smile \U0001f600 \u2764\ufe0f end", "zero\u200bwidth soft\xadhyphen a\x00b\ufffdc \u2028line",
             "\u201cquotes\u201d \u2014 dash\u2026 \xa7 12\u20ac \xb7 \xab x \xbb", "a" * 100, "b" * 101,
             "x\xa0y\u3000z", "C++20 @user #tag a_b e-mail/url:https://x.org", "ONE\rTWO\u2003THREE"]
    cases = [{"text": text, "tokens": tokenizer.encode(text).tokens} for text in texts]
    vocabulary = file.read_text().split("\n")
    pieces, words = set(vocabulary), set()
    for text in texts:
        normal = tokenizer.normalize(text)
        words |= {word for word, _ in tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(normal)}
    asked = {"[CLS]", "[SEP]", "[UNK]"}
    for word in words:
        for i in range(len(word)):
            asked |= {("##" if i else "") + word[i:j] for j in range(i + 1, len(word) + 1)}
    kept = [token for token in vocabulary if token in asked & pieces]
    (OUT / "wordpiece.txt").write_text("".join(token + "\n" for token in kept))
    text = ",\n".join(json.dumps(case) for case in cases)
    (OUT / "wordpiece.json").write_text("[\n" + text + "\n]\n")
    print(len(cases), "texts,", len(kept), "tokens")


for name in sys.argv[1:]:
    OUT.mkdir(exist_ok=True)
    wordpiece() if name == "wordpiece" else model(name)
