# limpid: torch's attention, timed on request
# SPDX-License-Identifier: MIT
"""Reads lines `forward|backward float32|float64 heads n d causal threads calls`, answers each with the seconds the calls took.

The first line it writes says what it is and calls, then a tab and the GFLOP/s of a plain product on one thread.
Started by the bench programs, which put it into their interleaved rounds. Uses scaled_dot_product_attention where
this torch has it, else the three eager operations; backward is autograd from the stored weights.
"""

import ctypes
import math
import os
import sys
import time

# Before torch is loaded. Threads that wait must not spin: somebody else is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import torch
except ImportError as error:
    print("no torch:", error, flush=True)
    sys.exit(0)



def set_threads(n):
    """torch's own threads, and those of an OpenBLAS below it, which torch.set_num_threads does not reach."""
    torch.set_num_threads(n)
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            libraries = {line.split()[-1] for line in maps if "blas" in line}
    except OSError:
        return
    for path in libraries:
        set_blas = getattr(ctypes.CDLL(path), "openblas_set_num_threads", None)
        if set_blas is not None:
            set_blas(n)


def libraries():
    """What torch's products run on, by the names of the libraries loaded and of torch's own configuration."""
    text = torch.__config__.show()
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            loaded = sorted({os.path.basename(line.split()[-1]) for line in maps if "blas" in line})
    except OSError:
        loaded = []
    built = [name for name, mark in (("MKL", "BLAS_INFO=mkl"), ("oneDNN", "USE_MKLDNN=ON")) if mark in text]
    return ", ".join(built + loaded) or "no BLAS that it names"


def product_gflops():
    """A plain product of 512 x 512 in float, one thread, the best of five."""
    set_threads(1)
    a = torch.randn(512, 512)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * 512**3 / best


SDPA = getattr(torch.nn.functional, "scaled_dot_product_attention", None)


def attention(q, k, v, causal, hidden):
    if SDPA is not None:
        return SDPA(q, k, v, is_causal=causal)
    scores = torch.matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
    if causal:
        scores = scores.masked_fill(hidden, -math.inf)
    return torch.matmul(torch.softmax(scores, -1), v)


def make_call(direction, dtype, heads, n, d, causal):
    generator = torch.Generator().manual_seed(1)
    q, k, v, dout = (torch.randn(1, heads, n, d, generator=generator).to(getattr(torch, dtype)) for _ in range(4))
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1) if causal else None
    if direction == "forward":

        def call():
            with torch.no_grad():
                attention(q, k, v, causal, hidden)

        return call
    for x in (q, k, v):
        x.requires_grad_(True)
    out = attention(q, k, v, causal, hidden)
    return lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)


def main():
    kind = "scaled_dot_product_attention" if SDPA is not None else "eager softmax(q k^T) v"
    place = "the distribution's" if "/dist-packages/" in torch.__file__ and "/usr/lib/" in torch.__file__ else "PyPI's"
    rate = product_gflops()
    print(f"torch {torch.__version__}, {place}, {kind}, on {libraries()}\t{rate:.3g}", flush=True)
    key, call, width = None, None, None
    for line in sys.stdin:
        direction, dtype, heads, n, d, causal, threads, calls = line.split()
        if width != threads:
            width = threads
            set_threads(int(threads))
        if key != (direction, dtype, heads, n, d, causal):
            key = (direction, dtype, heads, n, d, causal)
            call = None  # the old problem's memory first
            call = make_call(direction, dtype, int(heads), int(n), int(d), causal == "1")
        start = time.perf_counter()
        for _ in range(int(calls)):
            call()
        print(repr(time.perf_counter() - start), flush=True)


main()
