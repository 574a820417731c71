#!/usr/bin/env python3
"""Writes vit.safetensors here from a checkpoint of examples/train: the same model under timm's names, in float16.

usage: convert.py CHECKPOINT

Wants Python and numpy. Optimiser and curve stay behind; weights are [out, in] as timm has them, q, k and v in one.
"""
import json
import pathlib
import struct
import sys

import numpy as np


def read(path):
    """Tensors and metadata of a safetensors file of float32."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    meta, body = header.pop("__metadata__"), data[8 + length :]
    of = {"F32": np.float32, "F64": np.float64}
    return meta, {
        name: np.frombuffer(body[slice(*t["data_offsets"])], of[t["dtype"]]).reshape(t["shape"])
        for name, t in header.items()
    }


def write(path, meta, tensors):
    header, body = {"__metadata__": meta}, b""
    for name, tensor in tensors.items():
        packed = tensor.astype("<f2").tobytes()
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [len(body), len(body) + len(packed)]}
        body += packed
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


meta, have = read(sys.argv[1])
patch, width, layers = int(meta["patch"]), int(meta["width"]), int(meta["layers"])
tensors = {
    "patch_embed.proj.weight": have["patch.w"].T.reshape(width, 1, patch, patch),
    "patch_embed.proj.bias": have["patch.b"][0],
    "cls_token": have["class"][None],
    "pos_embed": have["positions"][None],
}
for layer in range(layers):
    block = f"blocks.{layer}."
    part = lambda name: have[block + name]  # noqa: E731
    tensors |= {
        block + "norm1.weight": part("gamma1")[0],
        block + "norm1.bias": part("beta1")[0],
        block + "attn.qkv.weight": np.concatenate([part(w).T for w in ("wq", "wk", "wv")]),
        block + "attn.qkv.bias": np.concatenate([part(b)[0] for b in ("bq", "bk", "bv")]),
        block + "attn.proj.weight": part("wo").T,
        block + "attn.proj.bias": part("bo")[0],
        block + "norm2.weight": part("gamma2")[0],
        block + "norm2.bias": part("beta2")[0],
        block + "mlp.fc1.weight": part("w1").T,
        block + "mlp.fc1.bias": part("b1")[0],
        block + "mlp.fc2.weight": part("w2").T,
        block + "mlp.fc2.bias": part("b2")[0],
    }
tensors |= {
    "norm.weight": have["norm.gamma"][0],
    "norm.bias": have["norm.beta"][0],
    "head.weight": have["head.w"].T,
    "head.bias": have["head.b"][0],
}
accuracy = f"{100 * have['curve'][-1][4]:.2f} % of the test images"
kept = {name: meta[name] for name in ("heads", "epochs", "seed", "lr", "pixel mean", "pixel deviation")}
write(pathlib.Path(__file__).resolve().parent / "vit.safetensors", kept | {"accuracy in training": accuracy}, tensors)
