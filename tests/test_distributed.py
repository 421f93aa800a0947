"""Real processes (gloo) against one process with the whole batch: the loss, and every gradient."""

import inspect
import math
import multiprocessing
import os
import re
import sys
from datetime import timedelta
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mathlib import (
    SentenceTransformerLoss,
    encode_in_blocks,
    false_negative_weights,
    gather_with_grad,
    gist_embed_loss,
    info_nce,
)

# A server imports, once, what each process needs. Windows has none.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
multiprocessing.set_forkserver_preload(["mathlib", "torch.distributed", "torch._dynamo"])

WORLDS = (2, 4)
B, D, N = 3, 4, 2  # of each rank

below = partial(false_negative_weights, strategy="absolute", margin=0.1, alpha=0.25)

# name: the shape of one rank's negatives (their last axis left out), the function, its options
CASES = {
    "mean": (None, "info_nce", {}),
    "sum": (None, "info_nce", {"reduction": "sum"}),
    "none": (None, "info_nce", {"reduction": "none"}),
    "small blocks": (None, "info_nce", {"block_size": 2}),
    "pool": ((N,), "info_nce", {}),
    "every anchor's own, for all": ((B, N), "info_nce", {}),
    "a pool alone": ((N,), "info_nce", {"in_batch": False}),
    "own alone": ((B, N), "info_nce", {"in_batch": False}),
    "a rule": ((N,), "info_nce", {"weigh": below}),
    "symmetric": ((N,), "info_nce", {"symmetric": True}),
    "symmetric, a rule, rows": (None, "info_nce", {"symmetric": True, "weigh": below, "reduction": "none"}),
    "groups": ((B, N), "info_nce", {"groups": True, "symmetric": True}),
    "groups, own alone": ((B, N), "info_nce", {"groups": True, "in_batch": False}),
    "contrasts": (None, "info_nce", {"contrast_anchors": True, "contrast_positives": True}),
    "contrasts, both directions": ((N,), "info_nce", {"contrast_anchors": True, "symmetric": True, "groups": True}),
    "gist": (None, "gist", {}),
    "gist, groups": ((N,), "gist", {"groups": True, "contrast_anchors": True, "kl_over": "kept"}),
    "gist, anchors": (None, "gist", {"contrast_anchors": True}),
    "gist, everything": ((N,), "gist", {"contrast_anchors": True, "contrast_positives": True, "block_size": 2}),
    "gist, every anchor's own": ((B, N), "gist", {"reduction": "none", "margin": 0.1}),
    "gist, own alone": ((B, N), "gist", {"in_batch": False, "reduction": "sum"}),
    "gist, a pool alone": ((N,), "gist", {"in_batch": False, "guide_temperature": 0.2}),
}
WAYS = ("blockwise", "differentiated twice", "compiled")


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(case, world):
    """Embeddings of all ranks: the student's [of D], the guide's [of another width]."""
    shape, _, _ = CASES[case]
    shapes = [(B,), (B,)] + [shape] * (shape is not None)
    return tuple(
        [draw(seed + i, world * s[0], *s[1:], width) for i, s in enumerate(shapes)] for seed, width in ((0, D), (9, 5))
    )


def labels(case, world):
    """Three groups, each spread over all ranks."""
    shape, _, options = CASES[case]
    if "groups" not in options:
        return {}
    found = {"groups": torch.arange(world * B) % 3}
    if shape is not None:
        found["negative_groups"] = (torch.arange(world * math.prod(shape)) % 3).reshape(-1, *shape[1:])
    return found


def outcome(case, student, guide, labels, upstream, way, gather):
    """The loss, then the gradients of embeddings and temperature."""
    _, function, options = CASES[case]
    options = options | labels
    leaves = [x.clone().requires_grad_() for x in student]
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    if function == "gist":
        names = ("guide_anchor", "guide_positive", "guide_negatives")
        options = {**options, **dict(zip(names, guide, strict=False))}
    function = info_nce if function == "info_nce" else gist_embed_loss
    if way == "compiled":
        function = torch.compile(function, backend="eager")
    loss = function(*leaves, temperature=temperature, gather=gather, **options)
    weights = upstream if loss.ndim else loss.new_ones(())
    inputs = [*leaves, temperature]
    if way != "differentiated twice":
        return [loss.detach(), *torch.autograd.grad(loss, inputs, weights)]
    gradients = torch.autograd.grad(loss, leaves, weights, create_graph=True)
    bent = sum((g * (1 + x.detach()) ** 2).sum() for g, x in zip(gradients, leaves, strict=True))
    return [loss.detach(), *torch.autograd.grad(bent, inputs)]


def whole(case, world, way):
    """On one process."""
    upstream = torch.arange(1.0, world * B + 1, dtype=torch.float64)
    loss, *gradients = outcome(case, *batch(case, world), labels(case, world), upstream, way, gather=False)
    return loss, gradients


def share(case, world, rank, way):
    """What a rank finds with its own rows of the batch."""
    student, guide = ([x.chunk(world)[rank] for x in xs] for xs in batch(case, world))
    own_labels = {name: x.chunk(world)[rank] for name, x in labels(case, world).items()}
    upstream = torch.arange(1.0, world * B + 1, dtype=torch.float64).chunk(world)[rank]
    return outcome(case, student, guide, own_labels, upstream, way, gather=True)


def encoder():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, D)).double()
    for i, x in enumerate(model.parameters()):
        x.data = draw(100 + i, *x.shape)
    return model


class InBlocks(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return encode_in_blocks(self.model, x, block_size=2)


def trained(world, rank, model, gather):
    """The parameters after three steps on inputs of which a rank sees its share."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        a, p = (draw(20 + 2 * step + i, world * B, 6) for i in range(2))
        if rank is not None:
            a, p = a.chunk(world)[rank], p.chunk(world)[rank]
        optimiser.zero_grad()
        embedded = model(torch.cat([a, p])).chunk(2)
        info_nce(*embedded, temperature=0.3, symmetric=True, gather=gather).backward()
        optimiser.step()
    return [x.detach() for x in model.parameters()]


class Columns(nn.Module):
    """An encoder, as the adapter wants it."""

    def __init__(self):
        super().__init__()
        self.model = encoder()

    def forward(self, features):
        return {"sentence_embedding": self.model(features["x"])}


def adapted(world, rank, wrap, **options):
    """The temperature and the parameters after three steps of the adapter, which no one wraps."""
    temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss = SentenceTransformerLoss(wrap(Columns()), info_nce, temperature=temperature, **options)
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.01)
    for step in range(3):
        columns = [draw(20 + 2 * step + i, world * B, 6) for i in range(2)]
        optimiser.zero_grad()
        loss([{"x": x if rank is None else x.chunk(world)[rank]} for x in columns]).backward()
        optimiser.step()
    return [x.detach() for x in loss.parameters()]


def refused(function, *args, **options):
    """The error, and that the group still works after it."""
    try:
        function(*args, **options)
    except (TypeError, ValueError) as error:
        alive = torch.ones(())
        dist.all_reduce(alive)
        return type(error).__name__, str(error), alive.item()
    return None


def differing(rank):
    """Calls with something that is not the same on every rank: 1 on rank 0, 2 elsewhere."""
    two = 1 + (rank > 0)
    x = draw(0, 4, 3)
    guide = {"guide_anchor": x, "guide_positive": x}
    return {
        "rows": partial(info_nce, x[:two], x[:two], x),
        "features": partial(info_nce, x[:, :two], x[:, :two]),
        "dtype": partial(info_nce, *[x.to((torch.float64, torch.float32)[two - 1])] * 2),
        "grad": partial(info_nce, x.clone().requires_grad_(rank == 0), x),
        "missing": partial(info_nce, x, x, None if rank else x),
        "temperature": partial(info_nce, x, x, temperature=0.1 * two),
        "reduction": partial(info_nce, x, x, reduction=("mean", "sum")[two - 1]),
        "rules": partial(info_nce, x, x, weigh=[below] * two),
        "guide": partial(gist_embed_loss, x, x, guide_anchor=x[:, :two], guide_positive=x[:, :two]),
        "lam": partial(gist_embed_loss, x, x, **guide, lam=float(two)),
        "function": partial(gist_embed_loss, x, x, **guide) if rank else partial(info_nce, x, x),
    }


def wrong_on_rank_1(rank):
    """Calls of which rank 1's would be refused on one process as well."""
    x = draw(0, 4, 3)
    wrong = rank == 1
    guide = {"guide_anchor": x, "guide_positive": x}
    return {
        "an empty last batch": partial(info_nce, x[:0] if wrong else x, x[:0] if wrong else x, gather=True),
        "a dtype": partial(info_nce, x, x.float() if wrong else x, gather=True),
        "no tensor": partial(info_nce, None if wrong else x, x, gather=True),
        "an option": partial(info_nce, x, x, temperature=-1.0 if wrong else 1.0, gather=True),
        "gather itself": partial(info_nce, x, x, gather=1 if wrong else True),
        "a guide": partial(gist_embed_loss, x, x, **guide, margin="0" if wrong else 0.0, gather=True),
        "rows to gather": partial(gather_with_grad, x.int() if wrong else x),
    }


def work(rank, world, folder, environment):
    os.environ |= environment  # the server's is the one that it began with
    torch.set_num_threads(1)
    join(rank, world, folder / "group")
    found = {(case, way): share(case, world, rank, way) for case in CASES for way in WAYS[:2]}
    found["gathered"] = gather_with_grad(torch.full((2,), float(rank)))
    scalar = torch.tensor(float(rank), dtype=torch.float16).expand(1).clone().requires_grad_()
    gather_with_grad(scalar)[0].backward()
    found["half"] = scalar.grad
    for gather in (True, False):
        found["trained", gather] = trained(world, rank, DistributedDataParallel(encoder()), gather)
    found["trained", "blocks inside"] = trained(world, rank, DistributedDataParallel(InBlocks(encoder())), True)
    found["trained", "blocks around"] = trained(world, rank, InBlocks(DistributedDataParallel(encoder())), True)
    found["adapted"] = adapted(world, rank, DistributedDataParallel, gather=True, block_size=2)
    found["gathering unequal rows"] = refused(gather_with_grad, torch.zeros(rank + 1))
    x = draw(0, 4, 3)
    call = partial(gather_with_grad, x) if rank else partial(info_nce, x, x, gather=True)
    found["gathering beside a loss"] = refused(call)
    for name, call in differing(rank).items():
        found["differing", name] = refused(call, gather=True)
    for name, call in wrong_on_rank_1(rank).items():
        found["wrong", name] = refused(call)
    if world == 2:
        found["largest"] = largest_tensor(rank, world)
        found["compiled"] = share("symmetric", world, rank, "compiled")
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def largest_tensor(rank, world):
    """The numbers that are alive at once where a rank has 64 rows and scores 8 of them at a time."""
    from conftest import Largest

    embeddings = [draw(rank + world * i, 64, 2).requires_grad_() for i in range(2)]
    guide = {f"guide_{name}": x.detach() for name, x in zip(("anchor", "positive"), embeddings, strict=True)}
    seen = []
    for function in (partial(info_nce, symmetric=True), partial(gist_embed_loss, **guide)):
        with Largest() as largest:
            function(*embeddings, gather=True, block_size=8).backward()
        seen.append(largest.numel)
    return seen


def join(rank, world, file):
    # the clock ends a test that hangs; nothing here waits for it
    dist.init_process_group(
        "gloo", init_method=file.as_uri(), rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """ranks(world): what each rank found."""

    @cache
    def run(world):
        folder = tmp_path_factory.mktemp("ranks")
        start_processes(work, (world, folder, dict(os.environ)), nprocs=world, start_method=START)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]

    return run


def agree(ranks, expected, reduction):
    """Losses, and gradients as DistributedDataParallel would average them."""
    loss, gradients = expected
    world = len(ranks)
    losses = torch.stack([found[0] for found in ranks])
    together = {"mean": losses.mean, "sum": losses.sum, "none": losses.flatten}[reduction]()
    assert_close(together, loss, rtol=0, atol=1e-6)
    # the mean of W means, or, as the docstring says, W times the mean of sums
    factor = 1 / world if reduction == "mean" else 1.0
    for i, gradient in enumerate(gradients[:-1], start=1):
        assert_close(torch.cat([found[i] for found in ranks]) * factor, gradient, rtol=0, atol=1e-6)
    assert_close(sum(found[-1] for found in ranks) * factor, gradients[-1], rtol=0, atol=1e-6)


# By hand


@pytest.mark.parametrize("world", WORLDS)
def test_own_rows_come_first_then_the_others_in_order(ranks, world):
    for rank, found in enumerate(ranks(world)):
        order = [rank, *(r for r in range(world) if r != rank)]
        assert found["gathered"].tolist() == [float(r) for r in order for _ in range(2)]


@pytest.mark.parametrize("world", WORLDS)
def test_half_precision_keeps_its_dtype(ranks, world):
    # each rank's loss is its own first row
    for found in ranks(world):
        assert found["half"].dtype == torch.float16
        assert found["half"].tolist() == [1.0]


# What each rank may choose for itself: a function cannot be compared (only how many there are), and blocks change no
# result. A rank that does not gather is not asked.
OWN = {"weigh", "block_size", "gather"}


@pytest.mark.parametrize("function", [info_nce, gist_embed_loss])
def test_whatever_must_agree_is_compared_between_ranks(monkeypatch, function):
    class Asked(Exception):
        """Ends the call with what is compared."""

    def compare(check, given):
        raise Asked(given)

    module = sys.modules[function.__module__]
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "check_on_ranks", compare)
    x = torch.eye(2)
    guide = {"guide_anchor": x, "guide_positive": x} if function is gist_embed_loss else {}
    with pytest.raises(Asked) as caught:
        function(x, x, **guide, gather=True)
    [given] = caught.value.args
    assert given["function"] == function.__name__
    assert set(given) - {"function", "number of rules"} == set(inspect.signature(function).parameters) - OWN


def test_one_process_has_all_rows():
    x = draw(0, 2, 3).requires_grad_()
    assert gather_with_grad(x) is x


@pytest.mark.parametrize("function", ["info_nce", "gist"])
def test_one_process_gathers_nothing(function):
    case = {"info_nce": "symmetric", "gist": "gist, everything"}[function]
    for way in WAYS[:2]:
        (loss, *gradients), (same, expected) = share(case, 1, 0, way), whole(case, 1, way)
        assert_close([loss, *gradients], [same, *expected], rtol=0, atol=0)


def test_a_group_of_one_gathers_nothing(tmp_path):
    join(0, 1, tmp_path / "group")
    try:
        test_one_process_has_all_rows()
        test_one_process_gathers_nothing("gist")
    finally:
        dist.destroy_process_group()


# One process with the whole batch


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("case", CASES)
def test_the_ranks_together_are_the_whole_batch(ranks, case, way, world):
    found = [rank[case, way] for rank in ranks(world)]
    agree(found, whole(case, world, way), CASES[case][2].get("reduction", "mean"))


def test_compiled_too(ranks):
    agree([rank["compiled"] for rank in ranks(2)], whole("symmetric", 2, "blockwise"), "mean")


@pytest.mark.parametrize("world", WORLDS)
def test_training_is_that_of_one_process(ranks, world):
    expected = trained(world, None, encoder(), gather=False)
    for found in ranks(world):
        for way in (True, "blocks inside", "blocks around"):
            assert_close(found["trained", way], expected, rtol=0, atol=1e-6)
        # each rank for itself is another loss
        assert any(not torch.allclose(x, y, atol=1e-3) for x, y in zip(found["trained", False], expected, strict=True))


@pytest.mark.parametrize("world", WORLDS)
def test_what_the_adapter_learns_is_what_it_learns_on_one_process(ranks, world):
    expected = adapted(world, None, lambda model: model)
    assert expected[0] != 0.3
    for found in ranks(world):
        assert_close(found["adapted"], expected, rtol=0, atol=1e-6)


def test_no_more_than_a_block_of_scores_is_ever_alive(ranks):
    assert [rank["largest"] for rank in ranks(2)] == [[8 * 2 * 64] * 2] * 2


# What is refused


@pytest.mark.parametrize(
    "name, message",
    [
        ("rows", "anchor must be the same on every rank, was [1, 3] torch.float64 on rank 0, [2, 3] torch.float64 on rank 1"),
        ("features", "anchor must be the same on every rank, was [4, 1] torch.float64 on rank 0, [4, 2] torch.float64 on rank 1"),
        ("dtype", "anchor must be the same on every rank, was [4, 3] torch.float64 on rank 0, [4, 3] torch.float32 on rank 1"),
        ("grad", "anchor must be the same on every rank, was [4, 3] torch.float64 with grad on rank 0, [4, 3] torch.float64 on rank 1"),
        ("missing", "negatives must be the same on every rank, was [4, 3] torch.float64 on rank 0, None on rank 1"),
        ("temperature", "temperature must be the same on every rank, was 0.1 on rank 0, 0.2 on rank 1"),
        ("reduction", "reduction must be the same on every rank, was 'mean' on rank 0, 'sum' on rank 1"),
        ("rules", "number of rules must be the same on every rank, was 1 on rank 0, 2 on rank 1"),
        ("guide", "guide_anchor must be the same on every rank, was [4, 1] torch.float64 on rank 0, [4, 2] torch.float64 on rank 1"),
        ("lam", "lam must be the same on every rank, was 1.0 on rank 0, 2.0 on rank 1"),
        ("function", "function must be the same on every rank, was 'info_nce' on rank 0, 'gist_embed_loss' on rank 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("world", WORLDS)
def test_what_differs_between_ranks_is_refused_on_every_rank(ranks, world, name, message):
    for found in ranks(world):
        error, said, alive = found["differing", name]
        assert (error, alive) == ("ValueError", world)
        assert said.startswith(message)
        assert len(re.findall("on rank", said)) == world


def test_rows_to_gather_must_be_equally_many(ranks):
    message = "tensor must be the same on every rank, was [1] torch.float32 on rank 0, [2] torch.float32 on rank 1"
    assert [found["gathering unequal rows"] for found in ranks(2)] == [("ValueError", message, 2.0)] * 2


def test_to_gather_rows_is_another_function_than_a_loss(ranks):
    message = "function must be the same on every rank, was 'info_nce' on rank 0, 'gather_with_grad' on rank 1"
    assert [found["gathering beside a loss"] for found in ranks(2)] == [("ValueError", message, 2.0)] * 2


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("an empty last batch", "ValueError", "anchor must have at least one row, was [0, 3]"),
        ("a dtype", "TypeError", "positive must have the dtype of anchor, torch.float64, was torch.float32"),
        ("no tensor", "TypeError", "anchor must be a torch.Tensor, was NoneType"),
        ("an option", "ValueError", "temperature must be a finite number and > 0, was -1.0"),
        ("gather itself", "TypeError", "gather must be True or False, was int"),
        ("a guide", "TypeError", "margin must be a finite number and >= 0, was str"),
        ("rows to gather", "TypeError", "tensor must have a floating-point dtype, was torch.int32"),
    ],
)
@pytest.mark.parametrize("world", WORLDS)
def test_what_is_wrong_on_one_rank_is_told_on_every_rank(ranks, world, name, error, message):
    for rank, found in enumerate(ranks(world)):
        expected = (error, message) if rank == 1 else ("ValueError", f"{message}, on rank 1")
        assert found["wrong", name] == (*expected, world)


def dying(rank, world, folder):
    torch.set_num_threads(1)
    join(rank, world, folder / "group")
    x = draw(rank, B, D).requires_grad_()
    loss = info_nce(x, x, gather=True)
    if rank == 1:
        os._exit(7)
    try:
        loss.backward()
    except RuntimeError:
        (folder / "noticed").touch()
        raise


def test_a_rank_that_dies_ends_the_job(tmp_path):
    # the other is inside a collective then: it gets an error, and does not wait for ever
    processes = start_processes(dying, (2, tmp_path), nprocs=2, join=False, start_method=START)
    for process in processes.processes:
        process.join(50)
        assert process.exitcode not in (None, 0)
    assert (tmp_path / "noticed").exists()
    with pytest.raises(ProcessException):
        processes.join()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gather_with_grad([1.0]), TypeError, "tensor must be a torch.Tensor, was list"),
        (lambda: gather_with_grad(torch.zeros(2, dtype=torch.int64)), TypeError, "tensor must have a floating-point dtype, was torch.int64"),
        (lambda: gather_with_grad(torch.zeros(())), ValueError, "tensor must have shape [B, ...], was []"),
    ],
)  # fmt: skip
def test_it_says_what_is_wrong(bad_input, call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
