"""Every function by every way that torch has to look at it; what test_tracing.py runs.

Run as a program it prints, for each function and each way that needs a process of its own, "ok" or the error: the check
of shapes in the tests can be switched off, but not be traced.
"""

import copy
import json
import sys
import warnings
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import mathlib


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def half_if_harder(s_p, s):
    return 1.0 - 0.5 * (s > s_p)


def joined(tensors):
    """Output and weights, both in one tensor."""
    return torch.cat(tensors, dim=-1)


class Layer(nn.Module):
    """MultiHeadAttention of any number of tensors, the last of which is a mask."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.options = mathlib.MultiHeadAttention(8, 2).double(), options

    def forward(self, *tensors):
        *tokens, mask = tensors
        return self.heads(*tokens, mask=mask, **self.options)


# 6 queries, 7 keys, of 2 heads of 8 features, or 5 of queries to each of keys
HEADS = (normal(4, 2, 6, 8), normal(4, 2, 7, 8), normal(4, 2, 7, 8).sin())
GROUPED = (normal(4, 10, 6, 8), *HEADS[1:])
PADDING = torch.arange(7) < torch.tensor([7, 2, 5, 0])[:, None, None, None]
LOGITS, ANSWERS = normal(4, 6, 5), torch.arange(24).reshape(4, 6) % 5
PAIR, SCORES = (normal(4, 3), normal(4, 3).sin()), (normal(4, 1), normal(4, 3))
LABELS = torch.tensor([0, 1, 0, 2])
RANKED = torch.tensor([[0, 2, 1], [2, 1, 0], [1, 2, 0], [2, 0, 1]])
# a function of tensors whose first axis, of 4, is the batch (6 and 7 are lengths, wherever they stand), and the tensors
CALLS = {
    "cosine_similarity": (mathlib.cosine_similarity, PAIR),
    "similarity_matrix": (mathlib.similarity_matrix, PAIR),
    "contrastive_loss": (
        lambda s_p, s, weights: mathlib.contrastive_loss(s_p[:, 0], s, temperature=0.1, weights=weights),
        (*SCORES, normal(4, 3).exp()),
    ),
    "info_nce": (mathlib.info_nce, PAIR),
    "info_nce, a rule, both directions": (
        partial(mathlib.info_nce, weigh=half_if_harder, symmetric=True),
        (*PAIR, normal(4, 2, 3)),
    ),
    "info_nce, groups and contrasts": (
        lambda a, p, labels: mathlib.info_nce(a, p, groups=labels, contrast_anchors=True),
        (*PAIR, LABELS),
    ),
    "gist_embed_loss": (
        lambda a, p, g, h: mathlib.gist_embed_loss(a, p, guide_anchor=g, guide_positive=h, kl_over="kept"),
        (*PAIR, normal(4, 5), normal(4, 5).sin()),
    ),
    "false_negative_weights": (
        partial(mathlib.false_negative_weights, strategy="absolute", margin=0.1),
        SCORES,
    ),
    "false_negative_weights, alpha": (
        partial(mathlib.false_negative_weights, strategy="threshold", threshold=0.1, alpha=0.5),
        SCORES,
    ),
    "hard_negatives": (partial(mathlib.hard_negatives, threshold=0.1), SCORES),
    "semi_hard_negatives": (partial(mathlib.semi_hard_negatives, margin=0.5), SCORES),
    "top_k_negatives": (partial(mathlib.top_k_negatives, k=2), SCORES),
    "hardness_weights": (partial(mathlib.hardness_weights, strength=2.0), SCORES),
    "search": (lambda q, d: mathlib.search(q, d, k=2).scores, PAIR),
    "search, cosine": (lambda q, d: mathlib.search(q, d, k=2, metric="cosine").indices, PAIR),
    "mine_hard_negatives": (
        lambda q, d, known: mathlib.mine_hard_negatives(q, d, known, k=2, margin=0.1).scores,
        (*PAIR, LABELS),
    ),
    "recall_at_k": (partial(mathlib.recall_at_k, k=2, reduction="none"), (RANKED, LABELS)),
    "mean_reciprocal_rank": (mathlib.mean_reciprocal_rank, (RANKED, LABELS)),
    "ndcg_at_k": (partial(mathlib.ndcg_at_k, k=2), (RANKED, LABELS)),
    "attention, causal": (partial(mathlib.attention, is_causal=True), HEADS),
    "attention, grouped, padding": (
        lambda q, k, v, mask: mathlib.attention(q, k, v, mask=mask),
        (*GROUPED, PADDING),
    ),
    "attention, added, causal": (
        lambda q, k, v, mask: mathlib.attention(q, k, v, mask=mask, is_causal=True),
        (*HEADS, normal(4, 1, 6, 7)),
    ),
    "attention, grouped, a mask for each head, weights": (
        lambda q, k, v, mask: joined(mathlib.attention(q, k, v, mask=mask, return_weights=True)),
        (*GROUPED, normal(4, 10, 6, 7) > 0),
    ),
    "a layer, padding": (Layer(), (normal(4, 7, 8), PADDING)),
    "a layer, added, across, causal": (Layer(is_causal=True), (normal(4, 6, 8), normal(4, 7, 8), normal(4, 2, 6, 7))),
    "sequence_log_prob": (mathlib.sequence_log_prob, (LOGITS, ANSWERS.masked_fill(ANSWERS == 1, -100))),
    "sequence_log_prob, mask": (
        lambda logits, labels, mask: mathlib.sequence_log_prob(logits, labels, mask=mask),
        (LOGITS, ANSWERS, normal(4, 6) > 0),
    ),
    "dpo_loss": (partial(mathlib.dpo_loss, label_smoothing=0.1), [x[:, 0] for x in (*PAIR, *SCORES)]),
}


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def longer(x):
    """Twice as many of all that there may be any number of."""
    for axis, size in enumerate(x.shape):
        if axis == 0 or size in (6, 7):
            x = torch.cat([x, x.flip(axis)], dim=axis)
    return x


def meta(function, tensors):
    there = copy.deepcopy(function).to("meta") if isinstance(function, nn.Module) else function
    result = there(*(x.to("meta") for x in tensors))
    assert result.device.type == "meta" and result.shape == function(*tensors).shape


def fake(function, tensors):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        result = function(*map(mode.from_tensor, tensors))
    assert result.shape == function(*tensors).shape


def export(function, tensors):
    """As torch.export does by default, with a batch of any size, and any lengths."""
    named = {
        size: torch.export.Dim(name, min=2, max=64) for size, name in {4: "batch", 6: "queries", 7: "keys"}.items()
    }
    free = [{axis: named[size] for axis, size in enumerate(x.shape) if axis == 0 or size in (6, 7)} for x in tensors]
    program = torch.export.export(Module(function), tuple(tensors), dynamic_shapes={"tensors": tuple(free)})
    for given in (tensors, [longer(x) for x in tensors]):
        assert_close(program.module()(*given), function(*given))


def compiled(function, tensors):
    """Once for batches of any size and any lengths, values and gradients."""
    torch._dynamo.reset()
    traced = torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for given in (tensors, [longer(x) for x in tensors]):
            leaves = [x.requires_grad_() if x.is_floating_point() else x for x in map(torch.clone, given)]
            ours, expected = traced(*leaves), function(*leaves)
            assert_close(ours, expected)
            if expected.requires_grad:
                asked = [x for x in leaves if x.requires_grad]
                gradients = (torch.autograd.grad(y.sum(), asked, allow_unused=True) for y in (ours, expected))
                assert_close(*gradients)


def vmapped(function, tensors):
    stacked = [torch.stack([x, x.flip(0)]) for x in tensors]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        result = torch.vmap(function)(*stacked)
    assert_close(result, torch.stack([function(*tensors), function(*(x.flip(0) for x in tensors))]))


WAYS = {"meta": meta, "fake": fake, "vmap": vmapped, "export": export, "compile": compiled}
APART = ("export", "compile")


def outcome(way, name):
    try:
        WAYS[way](*CALLS[name])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({f"{name} / {way}": outcome(way, name) for name in CALLS for way in APART}, sys.stdout)
