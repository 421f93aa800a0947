"""How does the cost of InfoNCE grow with the features D, and with a pool of N explicit negatives?"""

from functools import partial

import torch
from contrastive import plain
from measure import backward, main, normal, timed

from mathlib import info_nce

ROWS = 1024
BASE = {"D": "three raw products, by D", "N": "three raw products, by N"}
OURS = {"D": "mathlib, by D", "N": "mathlib, by N"}
BY_HAND = {"D": "torch, by hand, by D", "N": "torch, by hand, by N"}


def by_hand_with_pool(a, p, n):
    return plain(a, torch.cat([p, n]))


def step(name, size):
    """1024 rows of `size` features, or of 384 with a pool of `size` negatives."""
    by = name[-1]
    width, pool = (size, 0) if by == "D" else (384, size)
    a, p, n = normal(0, ROWS, width), normal(1, ROWS, width), normal(2, pool, width)
    given = (a, p) if by == "D" else (a, p, n)
    if name == BASE[by]:
        candidates = torch.cat([p, n])

        def products():
            scores = a @ candidates.T
            return scores @ candidates, scores.T @ a

        return products
    if name == OURS[by]:
        return backward(partial(info_nce, temperature=0.05), *given)
    return backward(plain if by == "D" else by_hand_with_pool, *given)


def run(quick, most):
    rows = []
    for by, sizes in (("D", (96, 384, 1536, 4096)), ("N", (1024, 4096, 16384))):
        for size in [64] if quick else sizes:
            names = [BASE[by], OURS[by], BY_HAND[by]]
            rows += timed("growth", __file__, step, names, size, 1 if quick else 9, BASE[by])
    return rows, []


if __name__ == "__main__":
    main(run, step, 64)
