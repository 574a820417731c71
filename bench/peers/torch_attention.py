# limpid: torch's attention, timed on request
# SPDX-License-Identifier: MIT
"""Says what this torch is and calls, then answers each line with seconds.

`forward|backward float32|float64 heads n d causal threads calls`: that many calls of attention.
`product n`: one n x n x n product in float32 on one thread.

Started by the bench programs, which put it into their interleaved rounds. Uses scaled_dot_product_attention where
this torch has it, else the three eager operations; backward is autograd from the stored weights.
"""

import ctypes
import math
import os
import re
import sys
import time

# Before torch is loaded. Threads that wait must not spin: somebody else is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import torch
except ImportError as error:
    print("no torch:", error, flush=True)
    sys.exit(0)


def loaded(word):
    """Paths of the loaded libraries whose name has this word, links followed."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "/" in line}
    except OSError:
        return []
    return sorted({os.path.realpath(path) for path in paths if word in os.path.basename(path)})


def set_threads(n):
    """torch's own threads, and those of an OpenBLAS below it, which torch.set_num_threads does not reach."""
    torch.set_num_threads(n)
    for path in loaded("blas"):
        set_blas = getattr(ctypes.CDLL(path), "openblas_set_num_threads", None)
        if set_blas is not None:
            set_blas(n)


def calls():
    """What stands below this torch: the BLAS it was built for or has loaded, oneDNN, threads."""
    config = torch.__config__.show()
    words = []
    mkl = re.search(r"Math Kernel Library Version (\S+)", config)
    info = re.search(r"BLAS_INFO=(\w+)", config)
    libraries = [os.path.basename(path) for path in loaded("blas") if not re.search("cublas|numpy|scipy", path)]
    if mkl:
        words.append("MKL " + mkl.group(1))
    elif libraries:
        words.append("BLAS " + ", ".join(libraries))
    else:
        words.append("BLAS " + (info.group(1) if info else "unknown"))
    onednn = re.search(r"MKL-DNN v(\S+)", config)
    words.append("oneDNN " + onednn.group(1) if onednn else "without oneDNN")
    words.append("OpenMP" if "OpenMP" in torch.__config__.parallel_info() else "its own threads")
    words.append(f"{torch.get_num_threads()} threads where it is not told otherwise")
    origin = "the distribution's" if "/dist-packages/" in torch.__file__ else "PyPI's"
    return ", ".join([origin] + words)


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
    print(f"torch {torch.__version__}; {calls()}, {kind}", flush=True)
    key, call, width = None, None, None
    for line in sys.stdin:
        if line.startswith("product"):
            width = None
            set_threads(1)
            size = int(line.split()[1])
            a, b = torch.randn(size, size), torch.randn(size, size)
            start = time.perf_counter()
            torch.mm(a, b)
            print(repr(time.perf_counter() - start), flush=True)
            continue
        direction, dtype, heads, n, d, causal, threads, count = line.split()
        if width != threads:
            width = threads
            set_threads(int(threads))
        if key != (direction, dtype, heads, n, d, causal):
            key = (direction, dtype, heads, n, d, causal)
            call = None  # the old problem's memory first
            call = make_call(direction, dtype, int(heads), int(n), int(d), causal == "1")
        start = time.perf_counter()
        for _ in range(int(count)):
            call()
        print(repr(time.perf_counter() - start), flush=True)


main()
