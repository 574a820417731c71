#!/usr/bin/env python3
# limpid: makes the golden cases of sigmoid attention, tests/data/sigmoid: the formulas in 50 decimal digits, no library.
# SPDX-License-Identifier: MIT
#
#   A_ij = 1 / (1 + exp(-(scale q_i . k_j + b))), 0 where a pair is masked, b = -log m unless given;   out = A V
#   dV = A^T dout,   dS_ij = A_ij (1 - A_ij) dout_i . v_j,   dQ = scale dS K,   dK = scale dS^T Q
import json
import os
import random
import struct
import sys
from decimal import Decimal as D, getcontext

getcontext().prec = 50


def product(a, b):
    return [[sum((x * y for x, y in zip(row, column)), D(0)) for column in zip(*b)] for row in a]


def transposed(a):
    return [list(row) for row in zip(*a)]


def sigmoid(q, k, v, dout, keep, scale, bias):
    s = product(q, transposed(k))
    a = [[1 / (1 + (-(scale * x + bias)).exp()) if kept else D(0) for x, kept in zip(*rows)] for rows in zip(s, keep)]
    da = product(dout, transposed(v))
    ds = [[w * (1 - w) * x * scale for w, x in zip(*rows)] for rows in zip(a, da)]
    return {'out.out': product(a, v), 'grad.q': product(ds, k), 'grad.k': product(transposed(ds), q),
            'grad.v': product(transposed(a), dout)}


def write(path, metadata, arrays, mask):
    header, data = {'__metadata__': metadata}, b''
    for name, rows in list(arrays.items()) + ([('in.mask', mask)] if mask else []):
        kind, code = ('BOOL', '?') if name == 'in.mask' else ('F64', 'd')
        numbers = [bool(x) if code == '?' else float(x) for row in rows for x in row]
        part = struct.pack('<%d%s' % (len(numbers), code), *numbers)
        header[name] = {'dtype': kind, 'shape': [len(rows), len(rows[0])], 'data_offsets': [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text + data)


def case(folder, name, n, m, d, dv, size=1, empty_row=None, causal=False, scale=None, bias=None):
    dice = random.Random(name)
    def matrix(rows, cols, by=1):
        return [[D(by * dice.uniform(-2, 2)) for _ in range(cols)] for _ in range(rows)]
    arrays = {'in.q': matrix(n, d, size), 'in.k': matrix(m, d), 'in.v': matrix(m, dv), 'dout.out': matrix(n, dv)}
    mask = None
    if empty_row is not None:
        mask = [[i != empty_row and dice.random() < 0.6 for _ in range(m)] for i in range(n)]
    keep = [[(mask is None or mask[i][j]) and (not causal or j - i <= m - n) for j in range(m)] for i in range(n)]
    arrays.update(sigmoid(arrays['in.q'], arrays['in.k'], arrays['in.v'], arrays['dout.out'], keep,
                          1 / D(d).sqrt() if scale is None else D(scale), -D(m).ln() if bias is None else D(bias)))
    switches = {'causal': 'true' if causal else None, 'scale': scale, 'bias': bias}
    metadata = {'operator': 'sigmoid', 'case': name, **{key: str(x) for key, x in switches.items() if x is not None}}
    write(os.path.join(folder, name + '.safetensors'), metadata, arrays, mask)


folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), '..', 'data', 'sigmoid')
case(folder, 'cross', 9, 14, 8, 5)
case(folder, 'causal_scale_bias', 12, 12, 6, 6, causal=True, scale=0.75, bias=-0.5)
case(folder, 'mask_with_empty_row', 7, 11, 4, 3, empty_row=2)
case(folder, 'extreme_logits', 5, 6, 4, 4, size=400)
case(folder, 'one_token', 1, 1, 4, 4)
