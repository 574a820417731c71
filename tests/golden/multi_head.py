#!/usr/bin/env python3
# limpid: makes the golden cases of multi-head attention with rotary positions and gates, tests/data/multi_head: written
# from the formulas in torch 2.15, float64, gradients by autograd.
# SPDX-License-Identifier: MIT
#
#   q = x Wq + bq, k, v; q and k of each head turned: plane l of row i by sum_a positions[i, a] f[a, l], times amplitude
#   o = softmax(q k^T / sqrt(d), mask) v;   o <- o sigmoid(x Wg + bg), a gate a head or an entry;   out = o Wo + bo
import json
import math
import os
import struct
import sys

import torch


def frequencies(r, base, s, axes):
    if axes > 1:  # every axis its own planes, one after the other
        own = r // axes
        f = torch.zeros(axes, r // 2, dtype=torch.float64)
        for a in range(axes):
            for i in range(own // 2):
                f[a, a * own // 2 + i] = base ** (-2 * i / own)
        return f, 1.0
    f, amplitude = [base ** (-2 * l / r) for l in range(r // 2)], 1.0
    kind, factor, original = s.get('scaling', 'plain'), s.get('factor', 1), s.get('original', 0)
    if kind == 'linear':
        f = [x / factor for x in f]
    if kind == 'llama3':
        low, high = s['low'], s['high']
        def scaled(x):
            wave = 2 * math.pi / x
            if wave < original / high:
                return x
            if wave > original / low:
                return x / factor
            smooth = (original / wave - low) / (high - low)
            return (1 - smooth) * x / factor + smooth * x
        f = [scaled(x) for x in f]
    if kind == 'yarn':
        def dim(turns):
            return r * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
        low, high = max(math.floor(dim(s['fast'])), 0), min(math.ceil(dim(s['slow'])), r - 1)
        ramp = [min(max((l - low) / (high - low), 0), 1) for l in range(r // 2)]
        f = [x / factor * t + x * (1 - t) for x, t in zip(f, ramp)]
        amplitude = 0.1 * math.log(factor) + 1
    return torch.tensor([f], dtype=torch.float64), amplitude


def turned(x, layout, f, amplitude, positions, r):
    angle = positions @ f  # n x r / 2
    c, s = amplitude * torch.cos(angle), amplitude * torch.sin(angle)
    part, rest = x[..., :r], x[..., r:]
    if layout == 'half':
        u, v = part[..., :r // 2], part[..., r // 2:]
        return torch.cat([u * c - v * s, v * c + u * s, rest], -1)
    u, v = part[..., 0::2], part[..., 1::2]
    return torch.cat([torch.stack([u * c - v * s, v * c + u * s], -1).flatten(-2), rest], -1)


def run(t, s):
    heads, groups, n = s['heads'], s.get('kv_heads', s['heads']), t['x'].shape[0]
    def split(name, count):
        rows = t['x'] @ t['w' + name]
        if 'b' + name in t:
            rows = rows + t['b' + name]
        return rows.reshape(n, count, -1).transpose(0, 1)
    q, k, v = split('q', heads), split('k', groups), split('v', groups)
    d = q.shape[-1]
    if 'rope' in s:
        r = s.get('rotary', d)
        positions = t.get('positions', torch.arange(n, dtype=torch.float64)[:, None])
        f, amplitude = frequencies(r, s.get('base', 10000), s, positions.shape[1])
        q, k = (turned(x, s['rope'], f, amplitude, positions, r) for x in (q, k))
    k, v = (x.repeat_interleave(heads // groups, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(d)
    keep = t.get('mask', torch.ones(n, n, dtype=torch.bool))
    if s.get('causal'):
        keep = keep & torch.ones(n, n, dtype=torch.bool).tril()
    o = torch.softmax(scores.masked_fill(~keep, -math.inf), -1) @ v
    o = o.transpose(0, 1).reshape(n, -1)
    if 'wg' in t:
        gate = torch.sigmoid(t['x'] @ t['wg'] + t.get('bg', 0))
        o = (o.reshape(n, gate.shape[1], -1) * gate[:, :, None]).reshape(n, -1)
    return o @ t['wo'] + t.get('bo', 0)


def write(path, metadata, arrays):
    header, data = {'__metadata__': metadata}, b''
    for name, x in arrays.items():
        part = x.contiguous().numpy().tobytes()
        header[name] = {'dtype': 'BOOL' if x.dtype == torch.bool else 'F64', 'shape': list(x.shape),
                        'data_offsets': [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text + data)


def case(folder, name, n, width, dv=None, gate=None, positions=None, mask=None, biases=False, **s):
    torch.manual_seed(sum(map(ord, name)))
    heads, groups, d = s['heads'], s.get('kv_heads', s['heads']), s.pop('d')
    dv = dv or d
    def matrix(rows, cols):
        return torch.rand(rows, cols, dtype=torch.float64) * 2 - 1
    shapes = {'x': (n, width), 'wq': (width, heads * d), 'wk': (width, groups * d), 'wv': (width, groups * dv),
              'wo': (heads * dv, width)}
    t = {key: matrix(*shape) for key, shape in shapes.items()}
    if gate:
        t['wg'] = matrix(width, heads if gate == 'head' else heads * dv)
        if biases:
            t['bg'] = matrix(1, t['wg'].shape[1])[0]
    if biases:
        for w in 'qkvo':
            t['b' + w] = matrix(1, t['w' + w].shape[1])[0]
    inputs = list(t)
    for x in t.values():
        x.requires_grad_(True)
    if positions is not None:
        t['positions'] = torch.tensor(positions, dtype=torch.float64)
    if mask is not None:
        t['mask'] = torch.tensor(mask)
    out = run(t, s)
    dout = matrix(n, width)
    out.backward(dout)
    arrays = {'in.' + key: x.detach() for key, x in t.items()}
    arrays.update({'out.out': out.detach(), 'dout.out': dout})
    arrays.update({'grad.' + key: t[key].grad for key in inputs})
    metadata = {'operator': 'multi_head', 'case': name}
    metadata.update({key: 'true' if x is True else str(x) for key, x in s.items()})
    write(os.path.join(folder, name + '.safetensors'), metadata, arrays)


folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), '..', 'data', 'multi_head')
case(folder, 'gate_of_entries', 7, 10, d=4, dv=3, heads=2, gate='entry', biases=True)
case(folder, 'gate_of_heads', 9, 12, d=4, dv=5, heads=4, kv_heads=2, gate='head', causal=True, rope='half', rotary=2)
case(folder, 'gate_without_bias', 5, 6, d=6, heads=1, gate='entry')
case(folder, 'linear', 8, 8, d=8, heads=2, rope='interleaved', scaling='linear', factor=4.0, causal=True)
case(folder, 'llama3', 11, 12, d=16, heads=2, kv_heads=1, rope='half', base=100.0, scaling='llama3', factor=8.0, low=1.0,
     high=4.0, original=64, causal=True)
case(folder, 'yarn', 10, 12, d=16, heads=2, rope='half', base=50.0, scaling='yarn', factor=4.0, fast=8.0, slow=1.0,
     original=128)
case(folder, 'left_padding', 8, 8, d=4, heads=2, rope='half', base=100.0, causal=True,
     positions=[[max(0, i - 3)] for i in range(8)], mask=[[j >= 3 or i < 3 for j in range(8)] for i in range(8)])
lengths = [3, 1, 5]
which = [s for s, length in enumerate(lengths) for _ in range(length)]
case(folder, 'packed', 9, 8, d=6, heads=2, rope='interleaved', base=100.0, rotary=4, causal=True,
     positions=[[i] for length in lengths for i in range(length)], mask=[[a == b for b in which] for a in which])
case(folder, 'image', 12, 8, d=8, heads=2, rope='half', base=100.0, gate='head',
     positions=[[i, j] for i in range(3) for j in range(4)])
