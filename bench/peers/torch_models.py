# limpid: whole models by PyTorch and ONNX Runtime, timed on request
# SPDX-License-Identifier: MIT
"""Says what it calls, then answers each line with seconds, or with `no` and a reason.

`MODEL TOKENS WHAT HOW THREADS CALLS`: that many calls. MODEL minilm (BERT, post-norm, 6 layers, 384 wide, 12 heads of 32,
MLP 1536), dinov2 (ViT, pre-norm with layer scale, 12 layers, 384 wide, 6 heads of 64, MLP 1536) or vit (4 layers, 64 wide, 4
heads, MLP 128, TOKENS the images of a batch). WHAT forward, training (forward and backward, every gradient), relevance
(forward with stored maps, backward to the maps, Chefer's rule) or step (with loss, clipping and AdamW). HOW eager, compiled
(torch.compile; forward with frozen weights), onnx or onnx-fused (ONNX Runtime, as exported or by its own optimiser for
transformers). Weights are random: speed does not depend on them. Seconds are those of the thread for one, of the clock for
more: with one thread nothing else is at work, and what else the machine does stays out.

Started by the bench, which puts it into its interleaved rounds. float32.
"""

import os
import sys
import tempfile
import time

from quiet_torch import functional, torch
from torch import nn

try:
    import onnxruntime
except ImportError:
    onnxruntime = None


class Block(nn.Module):
    """A transformer block; after a call with `stored` maps holds the weights of every head."""

    def __init__(self, width, heads, mlp, post, scaled):
        super().__init__()
        self.heads, self.post = heads, post
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.scale2 = nn.Parameter(torch.ones(width)) if scaled else None
        self.stored, self.maps = False, None

    def attention(self, x):
        batch, n, width = x.shape
        q, k, v = (f(x).view(batch, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.stored:
            self.maps = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
            mixed = self.maps @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).reshape(batch, n, width))

    def mlp(self, x):
        return self.down(functional.gelu(self.up(x)))

    def forward(self, x):
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        a = self.attention(self.norm1(x))
        x = x + (a if self.scale1 is None else self.scale1 * a)
        m = self.mlp(self.norm2(x))
        return x + (m if self.scale2 is None else self.scale2 * m)


class Text(nn.Module):
    def __init__(self, layers=6, width=384, heads=12, mlp=1536, words=1000, places=512):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, True, False) for _ in range(layers))

    def forward(self, ids):
        x = self.words(ids) + self.places.weight[: ids.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return x


class Image(nn.Module):
    def __init__(self, layers, width, heads, mlp, patch, channels, patches, scaled, classes=0):
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, patches + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp, False, scaled) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes) if classes else None

    def forward(self, pixels):
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(x), -1, -1), x), 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if self.head is None else self.head(self.norm(x[:, 0]))


def made(name, tokens):
    """A model and what it reads."""
    torch.manual_seed(1)
    if name == "minilm":
        return Text(), torch.arange(tokens).remainder(997).view(1, -1)
    if name == "dinov2":
        side = round((tokens - 1) ** 0.5)
        return Image(12, 384, 6, 1536, 14, 3, side * side, True), torch.randn(1, 3, 14 * side, 14 * side)
    return Image(4, 64, 4, 128, 4, 1, 49, False, 10), torch.randn(tokens, 1, 28, 28)


def session(model, x, fused):
    """The model as ONNX Runtime runs it."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "model.onnx")
    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, input_names=["x"])
    if fused:
        from onnxruntime.transformers import optimizer

        heads, width = model.blocks[0].heads, model.blocks[0].q.in_features
        kind = "bert" if isinstance(model, Text) else "vit"
        optimized = optimizer.optimize_model(path, model_type=kind, num_heads=heads, hidden_size=width)
        path = os.path.join(folder, "fused.onnx")
        optimized.save_model_to_file(path)
    options = onnxruntime.SessionOptions()
    if fused:  # all is done already; what a session folds once more may collide with its names
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_call(name, tokens, what, how):
    model, x = made(name, tokens)
    if how.startswith("onnx"):
        if onnxruntime is None:
            raise RuntimeError("onnxruntime is not installed")
        model.eval()
        run, feed = session(model, x, how == "onnx-fused"), {"x": x.numpy()}
        return lambda: run.run(None, feed)
    if what == "forward":
        model.eval()
        run = torch.compile(model, options={"freezing": True}) if how == "compiled" else model

        def forward():
            with torch.no_grad():
                run(x)

        return forward
    parameters = list(model.parameters())
    if what == "relevance":
        for block in model.blocks:
            block.stored = True

        def relevance():
            out = model(x)
            maps = [block.maps for block in model.blocks]
            slopes = torch.autograd.grad(out[:, 0].sum(), maps)
            row = torch.zeros(1, 1, maps[0].shape[-1])
            row[0, 0, 0] = 1
            for a, d in zip(reversed(maps), reversed(slopes)):
                row = row + row @ (a.detach() * d).clamp(min=0).mean(1)
            return row

        return relevance
    run = torch.compile(model) if how == "compiled" else model
    if what == "training":
        dout = torch.randn_like(model(x).detach())
        return lambda: torch.autograd.grad(run(x), parameters, dout, allow_unused=True)
    labels = torch.arange(len(x)).remainder(10)
    adam = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def step():
        adam.zero_grad()
        loss(run(x), labels).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()

    return step


def main():
    have = "" if onnxruntime is None else f", onnxruntime {onnxruntime.__version__}"
    print(f"torch {torch.__version__}{have}", flush=True)
    key, call = None, None
    calls = {}
    for line in sys.stdin:
        name, tokens, what, how, threads, count = line.split()
        torch.set_num_threads(int(threads))
        key = (name, tokens, what, how, threads)
        try:
            if key not in calls:
                if calls and next(iter(calls))[:3] != key[:3]:
                    calls.clear()  # the old problem's memory first
                call = make_call(name, int(tokens), what, how)
                call()  # what is compiled is compiled now
                calls[key] = call
            clock = time.thread_time if threads == "1" else time.perf_counter
            start = clock()
            for _ in range(int(count)):
                calls[key]()
            print(repr(clock() - start), flush=True)
        except Exception as error:  # of whichever library: the row says why it has no figure
            print("no", " ".join(f"{type(error).__name__}: {error}".split())[:200], flush=True)


main()
