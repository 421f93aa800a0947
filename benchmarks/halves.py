"""What do bfloat16 embeddings cost over float32 ones, by each function that multiplies them?"""

from functools import partial
from pathlib import Path

import torch
from contrastive import OURS
from gist import OURS as GIST
from measure import DEVICE, backward, bar, main, normal, one_thread, timed
from search import MINING
from search import OURS as SEARCH
from small import gist

from mathlib import info_nce, mine_hard_negatives, search

D = 384
HALF = ", bfloat16"
LIMITS = dict(zip((*OURS, GIST, SEARCH, MINING), (0.45, 0.45, 0.5, 0.5, 0.45, 0.45), strict=True))


def step(name, size):
    """A loss of `size` pairs, or 1000 queries in `size` documents."""
    dtype = torch.bfloat16 if name.endswith(HALF) else torch.float32
    name = name.removesuffix(HALF)
    if name in (SEARCH, MINING):
        queries, documents = normal(0, 1000, D).to(dtype), normal(1, size, D).to(dtype)
        if name == SEARCH:
            return lambda: search(queries, documents, k=10)
        known = torch.arange(len(queries), device=DEVICE) % size
        return lambda: mine_hard_negatives(queries, documents, known, k=10)
    a, p, *guide = (normal(seed, size, D).to(dtype) for seed in range(4 if name == GIST else 2))
    loss = gist if name == GIST else partial(info_nce, **OURS[name])
    return backward(lambda a, p: loss(a, p, *guide), a, p)


def has_amx():
    """Whether the processor multiplies bfloat16 matrices; False where it does not say."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


def run(quick, most):
    one_thread()
    rows, bars = [], []
    reason = "only the products are faster: launches and the passes over float32 scores take as long in either"
    more = "a product of half-precision factors is added to the gradients from memory of its own"
    if DEVICE == "cpu" and not has_amx():
        reason = "this processor does not multiply bfloat16 matrices (AMX), so that the products are float32's own"
    # a GPU has more to do than launches from some ten thousand pairs on
    sizes = (64,) if quick else (4096, 32768) if DEVICE == "cuda" else (4096,)
    pairs = [size for size in sizes if size <= most]
    for name, limit in LIMITS.items():
        for size in [64 if quick else 100_000] if name in (SEARCH, MINING) else pairs:
            base, half = timed("halves", __file__, step, [name, name + HALF], size, 1 if quick else 9, name)
            rows += [base, half]
            what = f"{name}{HALF}, B = {size}" if size == 32768 else name + HALF
            bars.append(bar(f"{what}: time", limit, half["ratio"], "x float32", reason))
            if not quick:
                bars.append(bar(f"{what}: extra memory", base["mb"], half["mb"], "MB, as float32", more))
    return rows, bars


if __name__ == "__main__":
    main(run, step, 64, bars_on_cuda=True)
