# limpid: explanations of an image by PyTorch with every map stored, timed on request
# SPDX-License-Identifier: MIT
"""Says what it calls, then answers each line.

`open FOLDER HEADS LABEL STEPS`: a vision transformer (timm's names, layer scale, patches of a square image) and what it
reads, as the bench has left them there: model.safetensors, pixels.f32 (a pixel a row), noise.f32 (as many images of noise,
scaled). Answers `ready`.
`WHAT HOW CALLS`: that many calls, in seconds of the thread. WHAT once (what one forward and one backward pass give: raw
attention of the last layer, rollout, relevance of all four parts, attention Grad-CAM, gradient x input) or all (integrated
gradients and SmoothGrad too), or, of the same, published and all_published: every method by passes of its own, as who
takes the authors' code for each runs it. HOW one (an image at a time), four (four at a time) or compiled (torch.compile) is
how the passes of the last two are made, which need no map; the others take every map and its gradient, softmax written
out. Parameters want no gradient but where published code calls backward(). After it FOLDER/WHAT.f32 holds what was found.

Published: raw attention and rollout by a forward pass each without a graph (vit-explain, whose rollout multiplies whole
maps); relevance by loss.backward() with maps and their gradients kept, then R <- R + Abar R of whole matrices, all four
parts after one such pass (Transformer-MM-Explainability); Grad-CAM by another (Transformer-Explainability, baselines);
gradient x input by torch.autograd.grad (captum). Written anew here.

Started by the bench, which puts it into its interleaved rounds. float32, one thread.
"""

import json
import os
import struct
import sys
import time

from quiet_torch import functional, torch


def floats(path):
    return torch.frombuffer(bytearray(open(path, "rb").read()), dtype=torch.float32)


def safetensors(path):
    data = bytearray(open(path, "rb").read())
    (size,) = struct.unpack("<Q", data[:8])
    whole = torch.frombuffer(data[8 + size :], dtype=torch.float32)
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32", entry
        first, last = (offset // 4 for offset in entry["data_offsets"])
        tensors[name] = whole[first:last].view(entry["shape"])
    return tensors


class Explained:
    """A model, an image and the logit that is explained."""

    def __init__(self, folder, heads, label, steps):
        self.folder, self.heads, self.label, self.steps = folder, heads, label, steps
        self.w = safetensors(os.path.join(folder, "model.safetensors"))
        pixels = floats(os.path.join(folder, "pixels.f32")).view(-1, 3)
        side = round(len(pixels) ** 0.5)

        def image(rows):
            return rows.view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()

        self.x = image(pixels)
        self.flat = self.x.mean((2, 3), keepdim=True).expand_as(self.x)
        self.noise = image(floats(os.path.join(folder, "noise.f32")))
        self.layers = sum(name.endswith("norm1.weight") for name in self.w)
        self.patch = self.w["patch_embed.proj.weight"].shape[-1]
        self.compiled = torch.compile(lambda x: self.logits(x, None))
        self.trained = {name: t.detach().requires_grad_() for name, t in self.w.items()}

    def logits(self, x, maps, w=None):
        w = w or self.w

        def linear(name, t):
            return functional.linear(t, w[name + ".weight"], w[name + ".bias"])

        def norm(name, t):
            return functional.layer_norm(t, t.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-6)

        t = functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], self.patch)
        t = t.flatten(2).transpose(1, 2)
        t = torch.cat((w["cls_token"].expand(len(x), -1, -1), t), 1) + w["pos_embed"]
        for layer in range(self.layers):
            at = f"blocks.{layer}."
            qkv = linear(at + "attn.qkv", norm(at + "norm1", t))
            q, k, v = qkv.view(len(x), t.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if maps is None:
                mixed = functional.scaled_dot_product_attention(q, k, v)
            else:
                maps.append(torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1))
                mixed = maps[-1] @ v
            t = t + w[at + "ls1.gamma"] * linear(at + "attn.proj", mixed.transpose(1, 2).reshape(t.shape))
            m = linear(at + "mlp.fc2", functional.gelu(linear(at + "mlp.fc1", norm(at + "norm2", t))))
            t = t + w[at + "ls2.gamma"] * m
        return linear("head", norm("norm", t)[:, 0])

    def of_patches(self, entries):
        """Sums over channels and the pixels of every patch."""
        return functional.avg_pool2d(entries.sum(1, keepdim=True), self.patch).flatten() * self.patch**2

    def once(self):
        x, maps = self.x.clone().requires_grad_(), []
        slopes = torch.autograd.grad(self.logits(x, maps)[0, self.label], [*maps, x])
        maps = [a.detach()[0] for a in maps]
        first = torch.zeros(maps[0].shape[-1])
        first[0] = 1
        found = [maps[-1][:, 0].mean(0)]
        row = first
        for a in reversed(maps):
            mean = a.mean(0)
            shared = row / (0.5 + 0.5 * mean.sum(-1))
            row = 0.5 * shared + 0.5 * (shared @ mean)
        found.append(row)
        rows = [first] * 4
        for a, g in zip(reversed(maps), reversed(slopes[:-1])):
            product = a * g[0]
            pos, both = product.clamp(min=0).mean(0), product.mean(0)
            neg = pos - both
            rows = [r + r @ part for r, part in zip(rows, (pos, neg, pos + neg, both))]
        found += [r - first for r in rows]
        found += [self.gradcam(maps[-1], slopes[-2][0]), self.of_patches(self.x * slopes[-1])]
        return found

    @staticmethod
    def gradcam(a, g):
        """Of one layer's maps and gradients, heads x n x n: the class token's row, itself left out."""
        return (g[:, 0, 1:].mean(-1, keepdim=True) * a[:, 0, 1:]).mean(0).clamp(min=0)

    def backward(self):
        """Every map and its gradient, by loss.backward(), which takes the gradients of all parameters too."""
        for t in self.trained.values():
            t.grad = None
        maps = []
        y = self.logits(self.x, maps, self.trained)[0, self.label]
        for a in maps:
            a.retain_grad()
        y.backward()
        return [a.detach()[0] for a in maps], [a.grad[0] for a in maps]

    def published(self):
        found, one = [], torch.eye((self.x.shape[-1] // self.patch) ** 2 + 1)
        with torch.no_grad():
            maps = []
            self.logits(self.x, maps)
            found.append(maps[-1][0, :, 0].mean(0))
            maps = []
            self.logits(self.x, maps)
            rollout = one
            for a in maps:
                a = (a[0].mean(0) + one) / 2
                rollout = (a / a.sum(-1, keepdim=True)) @ rollout
            found.append(rollout[0])
        r = [one] * 4
        for a, g in zip(*self.backward()):
            product = a * g
            pos, both = product.clamp(min=0).mean(0), product.mean(0)
            neg = pos - both
            r = [whole + part @ whole for whole, part in zip(r, (pos, neg, pos + neg, both))]
        found += [whole[0] - one[0] for whole in r]
        maps, slopes = self.backward()
        found.append(self.gradcam(maps[-1], slopes[-1]))
        x = self.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.logits(x, [], self.trained)[0, self.label], x)
        found.append(self.of_patches(self.x * slope))
        return found

    def slopes(self, images, how):
        """The gradient of the logit at every image."""
        each = 4 if how == "four" else 1
        run = self.compiled if how == "compiled" else lambda x: self.logits(x, None)
        for first in range(0, len(images), each):
            x = images[first : first + each].clone().requires_grad_()
            yield from torch.autograd.grad(run(x)[:, self.label].sum(), x)[0]

    def all(self, how, found):
        ways = (torch.arange(self.steps) + 0.5) / self.steps
        total = torch.zeros_like(self.x[0])
        for slope in self.slopes(self.flat + ways.view(-1, 1, 1, 1) * (self.x - self.flat), how):
            total += slope
        with torch.no_grad():  # the ends, for how far from complete it is
            ends = self.logits(torch.cat((self.x, self.flat)), None)[:, self.label]
        entries = (self.x - self.flat) * total / self.steps
        found += [self.of_patches(entries), (entries.sum() - (ends[0] - ends[1])).view(1)]
        squares = torch.zeros_like(self.x[0])
        for slope in self.slopes(self.x + self.noise, how):
            squares += slope**2
        found.append(self.of_patches((squares / len(self.noise))[None]))
        return found


def main():
    torch.set_num_threads(1)
    print("torch", torch.__version__, flush=True)
    explained = None
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "open":
                explained = Explained(words[1], *(int(word) for word in words[2:]))
                print("ready", flush=True)
                continue
            what, how, count = words
            start = time.thread_time()
            for _ in range(int(count)):
                found = explained.published() if what.endswith("published") else explained.once()
                if what.startswith("all"):
                    found = explained.all(how, found)
            seconds = time.thread_time() - start
            with open(os.path.join(explained.folder, what + ".f32"), "wb") as file:
                file.write(bytes(torch.cat(found).contiguous().numpy().tobytes()))
            print(repr(seconds), flush=True)
        except Exception as error:  # of whichever library: the row says why it has no figure
            print("no", " ".join(f"{type(error).__name__}: {error}".split())[:200], flush=True)


main()
