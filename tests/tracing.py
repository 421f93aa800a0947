"""What test_tracing.py runs, in a process of its own: the check of shapes in the tests cannot be traced.

Prints, for each function and each way to trace it, "ok" or the error.
"""

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


PAIR, SCORES = (normal(4, 3), normal(4, 3).sin()), (normal(4, 1), normal(4, 3))
LABELS = torch.tensor([0, 1, 0, 2])
# a function of tensors whose first axis is the batch, and the tensors
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
}


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def meta(function, tensors):
    result = function(*(x.to("meta") for x in tensors))
    assert result.device.type == "meta" and result.shape == function(*tensors).shape


def fake(function, tensors):
    mode = FakeTensorMode()
    with mode:
        result = function(*map(mode.from_tensor, tensors))
    assert result.shape == function(*tensors).shape


def export(function, tensors):
    """As torch.export does by default, with a batch of any size."""
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"tensors": tuple({0: batch} for _ in tensors)}
    program = torch.export.export(Module(function), tensors, dynamic_shapes=shapes)
    for longer in (tensors, [torch.cat([x, x.flip(0)]) for x in tensors]):
        assert_close(program.module()(*longer), function(*longer))


def compiled(function, tensors):
    """Once for batches of any size, values and gradients."""
    torch._dynamo.reset()
    traced = torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for longer in (tensors, [torch.cat([x, x.flip(0)]) for x in tensors]):
            leaves = [x.requires_grad_() if x.is_floating_point() else x for x in map(torch.clone, longer)]
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


WAYS = {"meta": meta, "fake": fake, "export": export, "compile": compiled, "vmap": vmapped}


def outcome(way, name):
    try:
        WAYS[way](*CALLS[name])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({f"{name} / {way}": outcome(way, name) for name in CALLS for way in WAYS}, sys.stdout)
