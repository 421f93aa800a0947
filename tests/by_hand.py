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

GROUPS = [1, 0, 1, 1, 2]
# and with the further options that say who is a candidate; the one that is alone in its group keeps all
FURTHER = {
    "batch in groups": (None, True, False, {"groups": GROUPS}),
    "batch in groups, both directions": (None, True, True, {"groups": GROUPS}),
    "batch and pool in groups": ((3, 3), True, True, {"groups": GROUPS, "negative_groups": [0, 1, 2]}),
    "batch and pool, some in groups": ((3, 3), True, False, {"groups": GROUPS}),
    "own, none in groups": ((5, 2, 3), False, False, {"groups": GROUPS}),
    "own in groups": (
        (5, 2, 3),
        False,
        False,
        {"groups": GROUPS, "negative_groups": [[1, 0], [1, 0], [2, 2], [2, 0], [1, 1]]},
    ),
    "batch and anchors, both directions": (None, True, True, {"contrast_anchors": True}),
    "batch and positives, both directions": (None, True, True, {"contrast_positives": True}),
    "batch, positives and every anchor's own": ((5, 2, 3), True, False, {"contrast_positives": True}),
    "batch, anchors and positives in groups": (
        None,
        True,
        False,
        {"contrast_anchors": True, "contrast_positives": True, "groups": GROUPS},
    ),
}


def batch(normal, layout, seed=0, dtype=torch.float64):
    """Five anchors, positives and negatives of 3 features, and the options that say how they are used.

    Blocks of them, of 2 rows and of 3, differ in length.
    """
    shape, in_batch, symmetric, *further = (LAYOUTS | FURTHER)[layout]
    negatives = None if shape is None else normal(seed + 2, *shape, dtype=dtype)
    tensors = [normal(seed, 5, 3, dtype=dtype), normal(seed + 1, 5, 3, dtype=dtype), negatives]
    options = {"in_batch": in_batch, "symmetric": symmetric}
    for name, value in further[0].items() if further else ():
        options[name] = torch.tensor(value, device=tensors[0].device) if isinstance(value, list) else value
    return tensors, options


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    product = dot(a, b)
    return product / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))) if product else 0.0


def row_loss(s_p, scores, weights, temperature):
    """The notes' formula: -log of the positive's share."""
    others = math.fsum(w * math.exp(s / temperature) for s, w in zip(scores, weights, strict=True))
    return -math.log(math.exp(s_p / temperature) / (math.exp(s_p / temperature) + others))


def scores_of(
    b,
    anchor,
    positive,
    negatives,
    in_batch,
    contrast_anchors=False,
    contrast_positives=False,
    groups=None,
    negative_groups=None,
):
    """The cosines of row b with all its candidates."""
    others = [c for c in range(len(anchor)) if c != b and (groups is None or groups[c] != groups[b])]
    found = [cosine(anchor[b], positive[c]) for c in others] if in_batch else []
    for x in [anchor] * contrast_anchors + [positive] * contrast_positives:
        found += [cosine(x[b], x[c]) for c in others]
    if negatives is None:
        return found
    if isinstance(negatives[0][0], float):
        labels = [None] * len(negatives) if negative_groups is None else negative_groups
        labelled = list(zip(negatives, labels, strict=True))
    else:
        rows = range(len(anchor)) if in_batch else [b]
        labels = [[None] * len(own) for own in negatives] if negative_groups is None else negative_groups
        labelled = [pair for c in rows for pair in zip(negatives[c], labels[c], strict=True)]
    return found + [cosine(anchor[b], n) for n, label in labelled if label is None or label != groups[b]]


def info_nce_by_hand(anchor, positive, negatives, in_batch, symmetric=False, weigh=None, temperature=0.3, **options):
    """Each anchor's loss; weigh(s_p, scores) are the weights of a row, options those of scores_of."""
    losses = []
    for b, a in enumerate(anchor):
        s_p, scores = cosine(a, positive[b]), scores_of(b, anchor, positive, negatives, in_batch, **options)
        weights = weigh(s_p, scores) if weigh else [1.0] * len(scores)
        losses.append(row_loss(s_p, scores, weights, temperature))
    if symmetric:
        backward = info_nce_by_hand(positive, anchor, None, True, False, weigh, temperature, **options)
        losses = [(x + y) / 2 for x, y in zip(losses, backward, strict=True)]
    return losses


def lists(tensors):
    """Tensors as lists; None stays."""
    return [None if x is None else x.tolist() for x in tensors]
