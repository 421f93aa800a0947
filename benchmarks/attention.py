"""Does `attention` cost more than the fused kernel that it calls?"""

import torch
from measure import backward, bar, main, normal, timed

from mathlib import attention

BASE = "torch scaled_dot_product_attention"
OURS = "mathlib attention"


def by_hand(query, key, value):
    return (query @ key.mT / 8).softmax(-1) @ value


FUNCTIONS = {BASE: torch.nn.functional.scaled_dot_product_attention, OURS: attention, "torch, by hand": by_hand}


def step(name, size):
    """[2, 8, size, 64], forward and backward."""
    query, key, value = (normal(seed, 2, 8, size, 64) for seed in range(3))
    return backward(lambda *x: FUNCTIONS[name](*x).sum(), query, key, value)


def run(quick, most):
    rows = []
    for size in [64] if quick else [256, 1024]:
        rows += timed("attention", __file__, step, [*FUNCTIONS], size, 1 if quick else 15, BASE)
    ours, base = rows[-2], rows[-3]
    reason = "the same kernel, called with checked arguments: what differs is the noise of the run"
    return rows, [
        bar(f"{OURS}: time", 1.03, ours["ratio"], "x the fused kernel", reason),
        bar(f"{OURS}: extra memory", (base["mb"] or 0) + 5, ours["mb"], "MB", "the same kernel"),
    ]


if __name__ == "__main__":
    main(run, step, 64)
