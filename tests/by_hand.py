"""Definitions once more, over Python floats with `math`, sharing no line with mathlib: what the tests compare with."""

import math

import torch

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32, torch.float64]

# how candidates reach info_nce: the shape of negatives, in_batch, symmetric
LAYOUTS = {
    "batch": (None, True, False),
    "batch, both directions": (None, True, True),
    "batch and pool": ((3, 3), True, False),
    "batch and pool, both directions": ((3, 3), True, True),
    "batch and every anchor's own": ((5, 2, 3), True, False),
    "pool": ((3, 3), False, False),
    "own": ((5, 2, 3), False, False),
}


def batch(normal, layout, seed=0, dtype=torch.float64):
    """Five anchors, positives and negatives of 3 features, and the options that say how they are used.

    Blocks of them, of 2 rows and of 3, differ in length.
    """
    shape, in_batch, symmetric = LAYOUTS[layout]
    negatives = None if shape is None else normal(seed + 2, *shape, dtype=dtype)
    tensors = [normal(seed, 5, 3, dtype=dtype), normal(seed + 1, 5, 3, dtype=dtype), negatives]
    return tensors, {"in_batch": in_batch, "symmetric": symmetric}


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    product = dot(a, b)
    return product / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))) if product else 0.0


def row_loss(s_p, scores, weights, temperature):
    """The notes' formula: -log of the positive's share."""
    others = math.fsum(w * math.exp(s / temperature) for s, w in zip(scores, weights, strict=True))
    return -math.log(math.exp(s_p / temperature) / (math.exp(s_p / temperature) + others))


def candidates_of(b, positive, negatives, in_batch):
    """Whom anchor b is compared with."""
    found = [p for i, p in enumerate(positive) if i != b] if in_batch else []
    if negatives is not None and isinstance(negatives[0][0], float):
        found += negatives
    elif negatives is not None:
        found += [n for i, own in enumerate(negatives) if in_batch or i == b for n in own]
    return found


def info_nce_by_hand(
    anchor, positive, negatives, in_batch, symmetric, weigh=lambda s_p, scores: [1.0] * len(scores), temperature=0.3
):
    """Each anchor's loss; weigh(s_p, scores) are the weights of a row."""
    losses = []
    for b, a in enumerate(anchor):
        s_p = cosine(a, positive[b])
        scores = [cosine(a, candidate) for candidate in candidates_of(b, positive, negatives, in_batch)]
        losses.append(row_loss(s_p, scores, weigh(s_p, scores), temperature))
    if symmetric:
        backward = info_nce_by_hand(positive, anchor, None, True, False, weigh, temperature)
        losses = [(x + y) / 2 for x, y in zip(losses, backward, strict=True)]
    return losses


def lists(tensors):
    """Tensors as lists; None stays."""
    return [None if x is None else x.tolist() for x in tensors]
