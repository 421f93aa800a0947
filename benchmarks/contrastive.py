"""What does InfoNCE cost, forward and backward, over the three products that it cannot do without?"""

from functools import partial
from importlib.util import find_spec

import torch
from measure import DEVICE, backward, bar, main, normal, timed

from mathlib import false_negative_weights, info_nce

D = 768 if DEVICE == "cuda" else 384
BASE = "three raw products"
SIZES = (256, 1024, 2048, 4096, 8192, 32768, 131072)
OURS = {
    "mathlib": {},
    "mathlib, symmetric": {"symmetric": True},
    "mathlib, false-negative rule": {"weigh": partial(false_negative_weights, strategy="absolute", margin=0.1)},
}
PEERS = {
    "info-nce-pytorch": "info_nce",
    "sentence-transformers MNRL": "sentence_transformers",
    "pytorch-metric-learning SupCon": "pytorch_metric_learning",
}


def plain(a, p):
    """As one would write it by hand."""
    normalize, cross_entropy = torch.nn.functional.normalize, torch.nn.functional.cross_entropy
    return cross_entropy(normalize(a) @ normalize(p).T / 0.05, torch.arange(len(a), device=a.device))


def ranking_loss():
    from sentence_transformers.sentence_transformer import losses

    class PassThrough(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["given"]}

    loss = losses.MultipleNegativesRankingLoss(PassThrough(), scale=20)
    return lambda a, p: loss([{"given": a}, {"given": p}], None)


def supervised_contrastive():
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(0.05)

    def of(a, p):
        labels = torch.arange(len(a), device=a.device)
        return loss(a, labels, ref_emb=p, ref_labels=labels.clone())

    return of


def step(name, size):
    a, p = normal(0, size, D), normal(1, size, D)
    if name == BASE:

        def products():
            for rows in a.split(32768):  # a larger matrix of scores would not fit
                scores = rows @ p.T
                scores @ p, scores.T @ rows

        return products
    if name in OURS:
        return backward(partial(info_nce, **OURS[name]), a, p)
    if name == "torch, by hand":
        return backward(plain, a, p)
    if name == "torch.compile, by hand":
        return backward(torch.compile(plain, dynamic=False), a, p)
    if name == "info-nce-pytorch":
        from info_nce import info_nce as peer

        return backward(partial(peer, temperature=0.05), a, p)
    return backward(ranking_loss() if "MNRL" in name else supervised_contrastive(), a, p)


def cuda_bars(found, most):
    """Limits on the share of the products' rate, and on the device's memory."""
    reason = "the softmax is no part of a product's kernel: its passes over a block go through the device's memory"
    limits = [(32768, "time", "ratio", 1 / 0.7, "x three products"), (131072, "extra memory", "mb", 20_000, "MB")]
    return [
        bar(f"mathlib, B = {size}: {what}", limit, found["mathlib", size][key], unit, reason)
        for size, what, key, limit, unit in limits
        if size <= most
    ]


def run(quick, most):
    peers = [name for name, module in PEERS.items() if find_spec(module)]
    others = ["torch, by hand", *peers]
    if not quick:  # to compile takes half a minute
        others.insert(1, "torch.compile, by hand")
    rows = []
    for size in [64] if quick else [size for size in SIZES if size <= most]:
        names = [BASE, *OURS]
        if size <= 8192:
            names += others
        elif size > 32768:
            names = [BASE, "mathlib"]
        elif DEVICE == "cuda":  # there the B x B matrices of a definition fit
            names += others[:2]
        rounds = 1 if quick else max(2, min(25, 65536 // size))
        rows += timed("contrastive", __file__, step, names, size, rounds, BASE)
    found = {(row["name"], row["size"]): row for row in rows}
    if DEVICE == "cuda" and not quick:
        return rows, cuda_bars(found, most)
    bars = []
    small = (
        "the softmax and two maxima are passes over all scores; those over the embeddings themselves (length, "
        "direction, projection) shrink as 1 / B, and weigh most at 1024"
    )
    reasons = {
        "mathlib": small,
        "mathlib, symmetric": (
            "a column's sum must be known before its entries can be differentiated: without a B x B matrix that is a "
            "fourth product, 1.33 x before any exponential"
        ),
        "mathlib, false-negative rule": (
            "the rule's weights are a matrix of their own, written, compared, and multiplied in; " + small
        ),
    }
    for name, limit in zip(OURS, (1.15, 1.6, 1.4), strict=True):
        for size in [64] if quick else [size for size in (1024, 4096, 8192, 32768) if size <= most]:
            ratio = found[name, size]["ratio"]
            bars.append(bar(f"{name}, B = {size}: time", limit, ratio, "x three products", reasons[name]))
        for size, megabytes in [(4096, 60), (8192, 110)]:
            if quick or size > most:
                continue
            reason = "two blocks of rows, four matrices of the embeddings' size, and what the allocator keeps"
            bars.append(bar(f"{name}, B = {size}: extra memory", megabytes, found[name, size]["mb"], "MB", reason))
    return rows, bars


if __name__ == "__main__":
    main(run, step, 64, bars_on_cuda=True)
