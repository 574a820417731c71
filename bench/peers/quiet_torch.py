# limpid: PyTorch 2 as a peer of the bench needs it, or a line that says there is none
# SPDX-License-Identifier: MIT
"""`from quiet_torch import functional, torch`: ends the program where they are missing."""

import os
import sys
import warnings

# Before torch is loaded. Threads that wait must not spin: somebody else is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
warnings.filterwarnings("ignore")

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    print("no torch:", error, flush=True)
    sys.exit(0)

if not hasattr(functional, "scaled_dot_product_attention"):
    print("no torch 2: found", torch.__version__, flush=True)
    sys.exit(0)
