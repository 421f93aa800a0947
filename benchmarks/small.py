"""What do the losses of small batches cost, forward and backward, over their definitions as one would write them?"""

from functools import partial

import torch
from contrastive import plain
from measure import DEVICE, backward, bar, main, normal, one_thread, row, times_of
from torch.nn.functional import cross_entropy, kl_div, normalize

from mathlib import false_negative_weights, gist_embed_loss, info_nce

D = 384
TEMPERATURE = 0.05
SIZES = (16, 64, 128, 256)
ROUNDS = 1000 if DEVICE == "cpu" else 200


def cosines(a, p):
    return normalize(a) @ normalize(p).T


def rows_of(a):
    return torch.arange(len(a), device=a.device)


def both_by_hand(a, p):
    logits = cosines(a, p) / TEMPERATURE
    return (cross_entropy(logits, rows_of(a)) + cross_entropy(logits.T, rows_of(a))) / 2


def harder(scores, margin):
    """Where a candidate's score is above the positive's less the margin."""
    return (scores > scores.diagonal()[:, None] - margin).fill_diagonal_(False)


def rule_by_hand(a, p):
    scores = cosines(a, p)
    with torch.no_grad():
        gone = harder(scores, 0.1)
    return cross_entropy(scores.masked_fill(gone, -torch.inf) / TEMPERATURE, rows_of(a))


def gist_by_hand(a, p, guide_a, guide_p):
    logits = cosines(a, p) / TEMPERATURE
    with torch.no_grad():
        guide = cosines(guide_a, guide_p)
        gone = harder(guide, 0.0)
        target = (guide / TEMPERATURE).log_softmax(dim=1)
    divergence = kl_div(logits.log_softmax(dim=1), target, reduction="batchmean", log_target=True)
    return cross_entropy(logits.masked_fill(gone, -torch.inf), rows_of(a)) + divergence


def gist(a, p, guide_a, guide_p):
    return gist_embed_loss(a, p, guide_anchor=guide_a, guide_positive=guide_p)


RULE = partial(false_negative_weights, strategy="absolute", margin=0.1)
PAIRS = {
    "small batch": (info_nce, plain),
    "small batch, symmetric": (partial(info_nce, symmetric=True), both_by_hand),
    "small batch, false-negative rule": (partial(info_nce, weigh=RULE), rule_by_hand),
    "small batch, GIST with KL": (gist, gist_by_hand),
}


def step(name, size):
    definition = name.endswith(", by hand")
    name = name.removesuffix(", by hand")
    loss = PAIRS[name][definition]
    a, p, *guide = (normal(seed, size, D) for seed in range(4 if "GIST" in name else 2))
    return backward(lambda a, p: loss(a, p, *guide), a, p)


def run(quick, most):
    one_thread()
    rows, bars = [], []
    reason = (
        "each operation, a view too, takes microseconds before it computes: the scores' softmax relative to the "
        "positive, rows without candidates and lengths of any size ask for more of them than the definition does, and "
        "a function that gives its own gradients takes as long as ten"
    )
    for size in [64] if quick else [size for size in SIZES if size <= most]:
        for name in PAIRS:
            names = [f"{name}, by hand", name]
            times = times_of({each: step(each, size) for each in names}, 1 if quick else ROUNDS)
            rows += [row("small", each, size, times[each], times[names[0]]) for each in names]
            bars.append(bar(f"{name}, B = {size}: time", 1.1, rows[-1]["ratio"], "x by hand", reason))
    return rows, bars


if __name__ == "__main__":
    main(run, step, 16)
