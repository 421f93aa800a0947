"""The engine and its contract: `derivatives`, a few rows at a time, against `definition`, for every loss and layout."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from mathlib import false_negative_weights, top_k_negatives
from mathlib._blockwise import (
    Block,
    Columns,
    Task,
    Vectors,
    column_totals,
    fill_column_derivatives,
    fill_scores,
    removal,
    row_blocks,
    softmax_,
    vectors_of,
    with_gradients,
)
from mathlib._contrastive import InfoNCE
from mathlib._gist import Gist
from mathlib._halves import products_of_halves
from mathlib._rows import Embeddings, Excluded, Layout, loss_of_lead, scored, units

TEMPERATURE = 0.3

GROUPS = {"groups": torch.tensor([1, 0, 1, 1, 2])}
# the shape of the negatives without their last axis, and the layout; where there are three rows, two more are those of
# other processes
LAYOUTS = {
    "batch": (None, Layout(5, True)),
    "batch of which two rows are other processes'": (None, Layout(3, True)),
    "batch and pool": ((4,), Layout(5, True)),
    "batch and every anchor's own": ((5, 2), Layout(5, True)),
    "batch, anchors, positives and pool": ((4,), Layout(3, True, ("anchor", "positive"))),
    "pool": ((4,), Layout(5, False)),
    "own": ((5, 2), Layout(5, False)),
    "batch in groups": (None, Layout(3, True, **GROUPS)),
    "batch, anchors and pool in groups": ((4,), Layout(5, True, ("anchor",), **GROUPS)),
    "batch and own in groups": ((5, 2), Layout(5, True, **GROUPS, negative_groups=torch.arange(10).reshape(5, 2) % 3)),
    "pool in groups": ((4,), Layout(5, False, **GROUPS, negative_groups=torch.tensor([2, 1, 0, 0]))),
    "own in groups": ((5, 2), Layout(5, False, **GROUPS, negative_groups=torch.arange(10).reshape(5, 2) % 3)),
}


def info_nce(rules, layout, guide):
    return InfoNCE(rules, layout, 3)


def gist(lam, margin, over_all, layout, guide):
    return Gist(guide, 0.5, partial(false_negative_weights, strategy="absolute", margin=margin), lam, over_all, layout)


def tripled_if_harder(s_p, s):
    return 1.0 + 2.0 * (s > s_p)


def unbounded(s_p, s):
    return torch.where(s.isneginf(), torch.inf, tripled_if_harder(s_p, s))


LOSSES = {
    "InfoNCE": partial(info_nce, []),
    "InfoNCE with weights": partial(info_nce, [tripled_if_harder]),
    "InfoNCE with removal": partial(info_nce, [partial(top_k_negatives, k=2), tripled_if_harder]),
    "InfoNCE with any weight where there is no score": partial(info_nce, [unbounded]),
    "GIST, mask alone": partial(gist, 0.0, 0.1, True),
    "GIST over all": partial(gist, 0.7, 0.1, True),
    "GIST over the kept": partial(gist, 0.7, 0.1, False),
    "GIST that removes all, over all": partial(gist, 0.7, 3.0, True),
    "GIST that removes all, over the kept": partial(gist, 0.7, 3.0, False),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def draw(normal, shape, width, seed):
    negatives = None if shape is None else normal(seed + 2, *shape, width)
    return Embeddings(normal(seed, 5, width), normal(seed + 1, 5, width), negatives)


def laid_out(normal, layout):
    """The shape of the negatives, and the layout, its labels on the device."""
    shape, layout = LAYOUTS[layout]
    device = normal(0, 1).device
    on_device = (x.to(device) if isinstance(x, torch.Tensor) else x for x in layout)
    return shape, Layout(*on_device)


def case(normal, loss, layout):
    """A loss of that layout, and embeddings for it."""
    shape, layout = laid_out(normal, layout)
    guide, _ = vectors_of(draw(normal, shape, 4, seed=10))
    return LOSSES[loss](layout, guide), draw(normal, shape, 3, seed=0)


def block_of(loss, given, rows):
    """The block that the engine would hand over, for embeddings of any length."""
    x, _ = vectors_of(given)
    scores = given.anchor.new_empty(rows.stop - rows.start, loss.layout.width(given))
    excluded = loss.layout.excluded(given, rows)
    positive = fill_scores(loss.layout, x, rows, excluded, scores, TEMPERATURE if loss.takes_logits else None)
    return Block(rows, positive, scores, torch.full_like(scores, torch.nan), excluded)


@each_loss
@each_layout
@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 2), slice(2, 3)])
def test_the_losses_of_a_block_are_those_of_the_definition(normal, loss, layout, rows):
    loss, given = case(normal, loss, layout)
    losses = loss.derivatives(block_of(loss, given, rows), TEMPERATURE).losses
    assert_close(losses, loss.definition(*given, TEMPERATURE)[rows])


@each_loss
@each_layout
def test_the_derivatives_of_a_block_are_the_slopes_of_its_losses(normal, loss, layout):
    loss, given = case(normal, loss, layout)
    block = block_of(loss, given, slice(1, 3))
    step = 1e-6 if loss.takes_logits else 1e-6 * TEMPERATURE  # by a logit, that is by a score over the temperature

    def losses(by_positive=0.0, column=0, by_candidate=0.0):
        scores = block.scores.clone()
        scores[:, column] += by_candidate
        moved = block._replace(positive=block.positive + by_positive, scores=scores, scratch=block.scratch.clone())
        return loss.derivatives(moved, TEMPERATURE)

    ours = losses()
    scale = torch.ones_like(ours.losses) if ours.scale is None else ours.scale
    by_scores, by_positive = ours.by_scores * scale[:, None], ours.by_positive * scale
    block.excluded.fill_(by_scores, 0.0)  # the engine puts its own number there
    for column in range(block.scores.shape[1]):
        slope = (losses(0, column, step).losses - losses(0, column, -step).losses) / 2e-6
        assert_close(by_scores[:, column], slope, rtol=1e-6, atol=1e-7)
    slope = (losses(step).losses - losses(-step).losses) / 2e-6
    assert_close(by_positive, slope, rtol=1e-6, atol=1e-7)


@each_loss
@each_layout
@pytest.mark.parametrize("block_size", [None, 1, 2])
@pytest.mark.parametrize("by_row, reduction", [(False, "sum"), (False, "mean"), (True, "none")])
def test_the_gradients_are_those_of_the_definition(normal, loss, layout, block_size, by_row, reduction):
    loss, given = case(normal, loss, layout)
    temperature = torch.tensor(TEMPERATURE, dtype=torch.float64, device=given.anchor.device, requires_grad=True)
    leaves = [x.requires_grad_() for x in given if x is not None]
    upstream = torch.arange(1, loss.layout.rows + 1).to(given.anchor) if by_row else None
    task = Task(loss, loss.layout, block_size, reduction, (True,) * 4)
    losses = loss.definition(*given, temperature)
    reduced = (losses if upstream is None else losses * upstream).sum()
    expected = torch.autograd.grad(reduced * task.row_weight, [*leaves, temperature])
    with torch.no_grad():
        ours, *gradients = with_gradients(task, task.needed, upstream, Embeddings(*given), temperature)
    assert_close(ours, losses.detach())
    assert_close([x for x in gradients if x is not None], list(expected))


@each_layout
def test_no_more_gradients_are_computed_than_are_needed(normal, layout):
    loss, given = case(normal, "InfoNCE", layout)
    task = Task(loss, loss.layout, None, "sum", (True,) * 4)
    _, *every = with_gradients(task, task.needed, None, given, TEMPERATURE)
    for wanted in product([False, True], repeat=3):
        _, *gradients = with_gradients(task, (*wanted, False), None, given, TEMPERATURE)
        expected = [x if want else None for x, want in zip(every, (*wanted, False), strict=True)]
        assert_close(gradients, expected)


# Its parts


@each_layout
@pytest.mark.parametrize("temperature", [None, 0.3])
def test_fill_scores_writes_the_scores_of_the_definition(normal, layout, temperature):
    shape, layout = laid_out(normal, layout)
    given = draw(normal, shape, 3, seed=0)
    positive, scores = scored(layout, units(*given))
    rows = slice(1, 3)
    ours = torch.full_like(scores[rows], torch.nan)
    own = fill_scores(layout, vectors_of(given)[0], rows, layout.excluded(given, rows), ours, temperature)
    if temperature is not None:
        positive, scores = positive / temperature, scores.div(temperature).nan_to_num(neginf=-removal(scores.dtype))
    assert_close(own, positive[rows])
    assert_close(ours, scores[rows])


def test_the_scores_stand_in_the_order_of_the_pairings(device):
    # rows along axes 0, 1 and 2: a number says which of them meet
    anchor, positive = torch.eye(3, device=device)[[0, 1]], torch.eye(3, device=device)[[1, 2]]
    x = Embeddings(anchor, positive, 2 * torch.eye(3, device=device))
    layout = Layout(2, True, ("anchor", "positive"))
    assert layout.pairings(x) == [
        ("anchor", "positive"),
        ("anchor", "anchor"),
        ("positive", "positive"),
        ("anchor", "negatives"),
    ]
    inf = torch.inf
    _, scores = scored(layout, x)
    assert scores.tolist() == [[-inf, 0, -inf, 0, -inf, 0, 2, 0, 0], [1, -inf, 0, -inf, 0, -inf, 0, 2, 0]]
    assert layout.width(x) == 9


def test_the_softmax_of_a_row_and_its_lead(normal):
    logits, positive = normal(0, 3, 4), normal(1, 3)
    logits[0, 1], logits[2] = -torch.inf, -removal(logits.dtype)
    logits[1, 2] -= removal(logits.dtype)
    shares, lead = softmax_(logits.clone(), positive)
    assert_close(shares[:2], logits[:2].softmax(dim=1))
    assert shares[0, 1] == 0 and shares[1, 2] == 0
    assert_close(lead, logits.logsumexp(dim=1) - positive)
    assert loss_of_lead(lead)[2] == 0 and lead.sigmoid()[2] == 0


def test_what_is_removed_is_below_every_logit_that_counts_and_leaves_differences(device):
    for dtype in (torch.float32, torch.float64):
        lowest = -2 / torch.tensor(1e-12, dtype=dtype, device=device)  # cosines of -1 and 1 at a tiny temperature
        gone = lowest - removal(dtype)
        assert gone < 2 * lowest and (gone - gone == 0)


def test_the_columns_are_the_rows_of_the_other_direction(normal):
    layout = Layout(5, True, symmetric=True)
    x = units(normal(0, 5, 3), normal(1, 5, 3), None)
    logits = x.anchor @ x.positive.T / TEMPERATURE
    blocks, buffer = [slice(0, 2), slice(2, 5)], torch.empty_like(logits)
    columns = column_totals(layout, Vectors(x, None, None), blocks, TEMPERATURE, buffer)
    assert_close(columns.total, logits.logsumexp(dim=0))
    others = logits.clone().fill_diagonal_(-torch.inf)
    assert_close(columns.lead, others.logsumexp(dim=0) - logits.diagonal())

    # what a column is differentiated by: autograd of its loss, each column counted as upstream says
    upstream = torch.arange(1, 6).to(logits)
    leaf = logits.clone().requires_grad_()
    losses = leaf.logsumexp(dim=0) - leaf.diagonal()
    for given, total in ((None, losses.sum()), (upstream, (losses * upstream).sum())):
        (expected,) = torch.autograd.grad(total, leaf, retain_graph=True)
        out = torch.empty(3, 7).to(logits)
        fill_column_derivatives(columns, others[1:4], slice(1, 4), given, Excluded(1, [5], None), out)
        assert_close(out[:, :5], expected[1:4])


def test_a_probability_far_below_all_others_is_no_subnormal_number(device):
    columns = Columns(*torch.zeros(3, 1, device=device))
    out = torch.empty(2, 1, device=device)
    fill_column_derivatives(
        columns, torch.tensor([[-1e4], [-1e4]], device=device), slice(0, 2), None, Excluded(0, [1], None), out
    )
    assert torch.finfo(torch.float32).tiny < out[1, 0] < 1e-30


@pytest.mark.parametrize(
    "rows, candidates, least, size, expected",
    [
        (5, 5, 512, 2, [(0, 2), (2, 4), (4, 5)]),
        (5, 5, 512, 9, [(0, 5)]),
        (513, 10_000, 512, None, [(0, 512), (512, 513)]),
        (300, 10_000, 160, None, [(0, 160), (160, 300)]),
        (600, 4_096, 160, None, [(0, 256), (256, 512), (512, 600)]),  # 2^20 scores at once
    ],
)
def test_rows_are_cut_into_blocks(rows, candidates, least, size, expected):
    x = Embeddings(torch.empty(rows, 1), torch.empty(candidates, 1), None)
    blocks = row_blocks(Layout(rows, True), x, least, size)
    assert [(block.start, block.stop) for block in blocks] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_multiplied_as_it_is_and_scaled_afterwards(normal, monkeypatch, dtype):
    seen = []

    def spy(a, b, half, *options, **more):
        seen.append(half)
        return products_of_halves(a, b, half, *options, **more)

    monkeypatch.setattr("mathlib._blockwise.products_of_halves", spy)
    anchor, positive = (100 * normal(seed, 5, 3, dtype=dtype) for seed in range(2))
    vectors, _ = vectors_of(Embeddings(anchor, positive, None))
    layout = Layout(5, True)
    scores = torch.empty(5, 5, device=anchor.device)
    fill_scores(layout, vectors, slice(0, 5), layout.excluded(vectors.factors, slice(0, 5)), scores)
    assert seen == ([] if dtype == torch.float32 else [dtype])
    exact = units(anchor.double(), positive.double(), None)
    expected = (exact.anchor @ exact.positive.T).fill_diagonal_(-torch.inf)
    assert_close(scores.double(), expected, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [None, (4, 3), (5, 2, 3)])
def test_embeddings_as_they_are_multiplied_can_be_made_units(normal, dtype, shape):
    negatives = None if shape is None else 100 * normal(2, *shape, dtype=dtype)
    given = Embeddings(normal(0, 5, 3, dtype=dtype), normal(1, 5, 3, dtype=dtype), negatives)
    assert_close(vectors_of(given)[0].units(), units(*given))
