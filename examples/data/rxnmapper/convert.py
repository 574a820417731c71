#!/usr/bin/env python3
"""Writes rxnmapper.safetensors and vocabulary.txt here from the PyPI package rxnmapper 0.4.3 (MIT, see LICENSE).

usage: convert.py [WHEEL]     without a wheel it is fetched by pip

Wants Python alone. Weights keep PyTorch's names, their order [out, in] and every bit (float32); the head that predicts
masked tokens and the pooler, which a map does not need, stay behind.
"""
import collections
import hashlib
import io
import json
import math
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile

SHA256 = "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2"  # of pytorch_model.bin
FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
HERE = pathlib.Path(__file__).resolve().parent

Tensor = collections.namedtuple("Tensor", "shape data")


class Weights(pickle.Unpickler):
    """A file that torch.save wrote before its version 1.6, or a zip that it wrote since; nothing but tensors is made."""

    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} in a file of weights")

    def persistent_load(self, key):
        return key  # ("storage", type, name, place, size)

    def tensor(self, key, offset, shape, stride, *_):
        kind, name, size = key[1], key[2], key[4]
        assert kind == "FloatStorage", kind
        packed = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        assert stride == packed, (shape, stride)
        return Tensor(shape, lambda: self.storages(name, size)[4 * offset : 4 * (offset + math.prod(shape))])


def read_weights(raw):
    if zipfile.is_zipfile(io.BytesIO(raw)):
        archive = zipfile.ZipFile(io.BytesIO(raw))
        root = archive.namelist()[0].split("/")[0]
        weights = Weights(archive.open(root + "/data.pkl"), lambda name, _: archive.read(f"{root}/data/{name}"))
        return weights.load()
    file = io.BytesIO(raw)
    for _ in range(3):  # magic number, version, sizes of types
        pickle.load(file)
    found = {}
    tensors = Weights(file, lambda name, _: found[name]).load()
    for name in pickle.load(file):
        (size,) = struct.unpack("<q", file.read(8))
        found[name] = file.read(4 * size)
    return tensors


def main():
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            wheel = pathlib.Path(sys.argv[1])
        else:
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, "rxnmapper==0.4.3"], check=True)
            (wheel,) = pathlib.Path(folder).glob("*.whl")
        package = zipfile.ZipFile(wheel)
        raw = package.read(FOLDER + "pytorch_model.bin")
        vocabulary = package.read(FOLDER + "vocab.txt")
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256:
        sys.exit(f"pytorch_model.bin has the SHA-256 {found}, wanted {SHA256}")
    header, parts, at = {"__metadata__": {"source": "rxnmapper 0.4.3", "license": "MIT"}}, [], 0
    for name, tensor in sorted(read_weights(raw).items()):
        if name.startswith(("predictions.", "albert.pooler")):
            continue
        data = tensor.data()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (HERE / "rxnmapper.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    (HERE / "vocabulary.txt").write_bytes(vocabulary)
    print(f"{len(parts)} tensors, {at} bytes")


main()
