import math
import runpy

import pytest
import torch
from by_hand import DTYPES, cosine, lists, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import mathlib._gist
from mathlib import gist_embed_loss, info_nce

# the shape of negatives (their last axis left out), in_batch, contrast_anchors, contrast_positives, whether in groups
LAYOUTS = {
    "batch": (None, True, False, False, False),
    "batch and anchors": (None, True, True, False, False),
    "batch and positives": (None, True, False, True, False),
    "batch, pool, anchors and positives": ((3,), True, True, True, False),
    "batch and every anchor's own": ((5, 2), True, False, False, False),
    "pool": ((3,), False, False, False, False),
    "own": ((5, 2), False, False, False, False),
    "batch in groups": (None, True, True, False, True),
    "batch and pool in groups": ((3,), True, False, True, True),
    "own in groups": ((5, 2), False, False, False, True),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def batch(normal, layout, seed=0, dtype=torch.float64, guide_width=5):
    """Five student embeddings of 3 features and the guide's of 5, and the options of the layout."""
    shape, in_batch, anchors, positives, grouped = LAYOUTS[layout]
    options = {"in_batch": in_batch, "contrast_anchors": anchors, "contrast_positives": positives}
    student = [normal(seed, 5, 3, dtype=dtype), normal(seed + 1, 5, 3, dtype=dtype)]
    guide = [normal(seed + 2, 5, guide_width), normal(seed + 3, 5, guide_width)]
    if shape is not None:
        student.append(normal(seed + 4, *shape, 3, dtype=dtype))
        guide.append(normal(seed + 5, *shape, guide_width))
    names = ["anchor", "positive", "negatives"]
    options |= {f"guide_{name}": x for name, x in zip(names, guide, strict=False)}
    if grouped:
        options["groups"] = torch.tensor([0, 1, 0, 2, 1], device=student[0].device)
    if grouped and shape is not None:
        labels = torch.arange(math.prod(shape), device=student[0].device) % 3
        options["negative_groups"] = labels.reshape(shape)
    return student, options


def losses_and_gradients(student, options, temperature=0.3, **more):
    leaves = [x.detach().requires_grad_() for x in student]
    temperature = torch.tensor(temperature, dtype=torch.float64, device=leaves[0].device, requires_grad=True)
    losses = gist_embed_loss(*leaves, temperature=temperature, reduction="none", **options, **more)
    upstream = torch.arange(1, len(losses) + 1).to(losses)
    return [losses.detach(), *torch.autograd.grad(losses, [*leaves, temperature], upstream)]


# By hand


def test_infonce_plus_divergence(device):
    # student: cosines 1 and 0 at temperature 1, so softmax e/(e+1), 1/(e+1) and loss log(1 + 1/e)
    # guide: cosines 0 and 0, so 1/2 and 1/2. KL = log(1/2) - (log s_p + log s_1) / 2
    student = torch.eye(2, 3, device=device)
    guide = torch.eye(4, device=device)
    loss = gist_embed_loss(
        student, student, guide_anchor=guide[:2], guide_positive=guide[2:], temperature=1.0, lam=2.0
    )  # fmt: skip
    divergence = math.log(0.5) - (math.log(math.e / (math.e + 1)) + math.log(1 / (math.e + 1))) / 2
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + 2 * divergence, rel=1e-6)


def test_the_guide_removes_what_it_finds_more_similar_than_the_positive(device):
    # guide: cos(a_0, p_0) = 0.8, cos(a_0, p_1) = 0.6 < 0.8 stays; cos(a_1, p_1) = 0, cos(a_1, p_0) = 0.6 > 0 goes
    guide_anchor = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device)
    guide_positive = torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.0, 0.8]], device=device)
    student = torch.eye(2, device=device)
    losses = gist_embed_loss(
        student, student, guide_anchor=guide_anchor, guide_positive=guide_positive,
        temperature=1.0, lam=0.0, reduction="none",
    )  # fmt: skip
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)), 0.0], rel=1e-6)


@pytest.mark.parametrize(
    "strategy, margin, kept",
    [("absolute", 0.19, True), ("absolute", 0.21, False), ("relative", 0.24, True), ("relative", 0.26, False)],
)
def test_a_margin_counts_from_the_guides_positive(device, strategy, margin, kept):
    # guide: 0.8 for the positive, 0.6 for the candidate: 0.2 below, a quarter of 0.8
    guide_anchor = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device)
    guide_positive = torch.tensor([[0.8, 0.6], [0.6, 0.8]], device=device)
    student = torch.eye(2, device=device)
    losses = gist_embed_loss(
        student, student, guide_anchor=guide_anchor, guide_positive=guide_positive,
        temperature=1.0, lam=0.0, margin=margin, strategy=strategy, reduction="none",
    )  # fmt: skip
    assert losses[0].item() == pytest.approx(math.log(1 + math.exp(-1)) if kept else 0.0, rel=1e-6)


def test_defaults_are_temperature_0_05_for_both_and_lam_1_over_all(normal):
    student, options = batch(normal, "batch, pool, anchors and positives")
    options |= {"in_batch": True, "contrast_anchors": False, "contrast_positives": False}
    said = gist_embed_loss(
        *student,
        temperature=0.05,
        guide_temperature=0.05,
        lam=1.0,
        kl_over="all",
        margin=0.0,
        strategy="absolute",
        **options,
    )
    assert_close(gist_embed_loss(*student, **options), said, rtol=0, atol=0)


def test_no_more_than_a_block_of_scores_is_ever_alive(normal, largest):
    embeddings = [normal(seed, 64, 2).requires_grad_() for seed in range(2)]
    guide = {"guide_anchor": normal(2, 64, 3), "guide_positive": normal(3, 64, 3)}
    for block_size, most in ((8, 8 * 64), (None, 64 * 64)):
        with largest() as seen:
            gist_embed_loss(*embeddings, **guide, block_size=block_size).backward()
        assert seen.numel == most


@pytest.mark.parametrize(("pool", "rows"), [(0, 512), (3000, 2**20 // 4024), (9000, 160)])
def test_the_more_candidates_the_fewer_rows_are_taken_at_once_on_a_cpu(largest, pool, rows):
    pair, further = torch.ones(2, 2 * rows, 1), torch.ones(pool + 1024 - 2 * rows, 1)
    with largest() as seen:
        gist_embed_loss(*pair, further, guide_anchor=pair[0], guide_positive=pair[1], guide_negatives=further)
    assert seen.numel == rows * (1024 + pool)


# By a loop


def gist_by_loop(student, guide, temperature, guide_temperature, lam, margin, strategy, kl_over="all", **options):
    def softmax(scores, temperature):
        exps = [math.exp(s / temperature) for s in scores]
        return [x / sum(exps) for x in exps]

    losses = []
    for b in range(len(student[0])):
        s_p, g_p = cosine(student[0][b], student[1][b]), cosine(guide[0][b], guide[1][b])
        limit = g_p - (margin if strategy == "absolute" else margin * abs(g_p))
        pairs = list(zip(scores_of(b, *student, **options), scores_of(b, *guide, **options), strict=True))
        kept = [(s, g) for s, g in pairs if g <= limit]
        counted = [(s_p, g_p), *(pairs if kl_over == "all" else kept)]
        s, g = softmax([x for x, _ in counted], temperature), softmax([x for _, x in counted], guide_temperature)
        divergence = sum(y * math.log(y / x) for x, y in zip(s, g, strict=True))
        losses.append(-math.log(softmax([s_p, *(s for s, _ in kept)], temperature)[0]) + lam * divergence)
    return losses


def by_hand(student, options, **settings):
    """The loop's losses for embeddings and options as `gist_embed_loss` takes them."""
    options, guide = dict(options), {name: options.get(f"guide_{name}") for name in ("anchor", "positive", "negatives")}
    options = {name: x for name, x in options.items() if not name.startswith("guide_")}
    options = {name: x.tolist() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    return gist_by_loop(lists([*student, None][:3]), lists(guide.values()), **options, **settings)


@each_layout
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("guide_temperature", [None, 0.7])
@pytest.mark.parametrize("kl_over", ["all", "kept"])
def test_agrees_with_a_loop(normal, layout, strategy, guide_temperature, kl_over):
    student, options = batch(normal, layout)
    settings = {"temperature": 0.3, "lam": 0.6, "margin": 0.1, "strategy": strategy, "kl_over": kl_over}
    losses = gist_embed_loss(*student, **options, **settings, guide_temperature=guide_temperature, reduction="none")
    expected = by_hand(student, options, guide_temperature=guide_temperature or 0.3, **settings)
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(normal, reduction):
    student, options = batch(normal, "batch")
    losses = gist_embed_loss(*student, **options, reduction="none")
    assert_close(gist_embed_loss(*student, **options, reduction=reduction), getattr(losses, reduction)())


# What must hold for all inputs


@each_layout
@settings(max_examples=10)  # for each layout
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6))
def test_the_block_size_changes_nothing(normal, layout, seed, size):
    student, options = batch(normal, layout, seed)
    for ours, whole in zip(
        losses_and_gradients(student, options, block_size=size), losses_and_gradients(student, options), strict=True
    ):
        assert_close(ours, whole)


@given(seed=st.integers(0, 10**6))
def test_permuting_the_rows_permutes_the_losses(normal, seed):
    student, options = batch(normal, "batch, pool, anchors and positives", seed)
    order = torch.tensor([2, 0, 4, 3, 1], device=student[0].device)
    moved = [student[0][order], student[1][order], student[2]]
    moved_options = options | {name: options[name][order] for name in ("guide_anchor", "guide_positive")}
    losses = gist_embed_loss(*student, **options, reduction="none")
    assert_close(gist_embed_loss(*moved, **moved_options, reduction="none"), losses[order])


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(normal, seed, scale):
    student, options = batch(normal, "batch", seed)
    scaled = options | {"guide_anchor": scale * options["guide_anchor"]}
    assert_close(gist_embed_loss(scale * student[0], student[1], **scaled), gist_embed_loss(*student, **options))


@each_layout
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_the_divergence_is_never_negative_and_zero_for_a_student_like_its_guide(normal, layout, seed):
    student, options = batch(normal, layout, seed, guide_width=3)
    without = gist_embed_loss(*student, **options, lam=0.0, reduction="none")
    assert (gist_embed_loss(*student, **options, reduction="none") - without >= -1e-12).all()
    names = ["guide_anchor", "guide_positive", "guide_negatives"]
    same = options | dict(zip(names, student, strict=False))
    alone = gist_embed_loss(*student, **same, lam=0.0, reduction="none")
    assert_close(gist_embed_loss(*student, **same, lam=5.0, reduction="none"), alone)


# Edges


@pytest.mark.parametrize("layout", [layout for layout, (_, in_batch, *_) in LAYOUTS.items() if in_batch])
def test_self_pairs_never_count_even_when_the_guide_finds_anchor_and_positive_equal(normal, layout):
    # guide(a) = guide(p): its score for the positive is 1, as that of an item with itself. At margin 0 a
    # strict comparison would let self-pairs stand; deleting them from the loop is the oracle
    student, options = batch(normal, layout)
    options["guide_positive"] = options["guide_anchor"]
    settings = {"temperature": 0.3, "guide_temperature": 0.3, "lam": 0.5, "margin": 0.0, "strategy": "absolute"}
    expected = by_hand(student, options, **settings)
    losses = gist_embed_loss(*student, **options, temperature=0.3, lam=0.5, reduction="none")
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"lam": 1.0, "kl_over": "kept"}])
def test_an_anchor_whose_candidates_all_go_has_loss_and_gradient_zero(normal, settings):
    student, options = batch(normal, "batch, pool, anchors and positives")
    losses, *gradients = losses_and_gradients(student, options, margin=3.0, **settings)
    assert losses.eq(0).all() and all(gradient.eq(0).all() for gradient in gradients)


def test_what_the_guide_removes_still_teaches_by_the_divergence_over_all(normal):
    student, options = batch(normal, "batch, pool, anchors and positives")
    settings = {"temperature": 0.3, "guide_temperature": 0.3, "lam": 0.7, "margin": 3.0, "strategy": "absolute"}
    losses = gist_embed_loss(*student, **options, **settings, reduction="none")
    assert (losses > 0).all()
    assert losses.tolist() == pytest.approx(by_hand(student, options, **settings), rel=1e-12)


def test_a_single_row_without_negatives_has_loss_and_gradient_zero(normal):
    x, g = normal(0, 1, 3), normal(1, 1, 5)
    losses, *gradients = losses_and_gradients([x, x + 1], {"guide_anchor": g, "guide_positive": g})
    assert losses.eq(0).all() and all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guide_dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_every_dtype_zero_vectors_and_extreme_temperatures_are_finite(normal, dtype, guide_dtype, temperature):
    student, options = batch(normal, "batch, pool, anchors and positives", dtype=dtype)
    student = [x.clone() for x in student]
    student[0][1] = student[1][2] = 0
    options = {name: x.to(guide_dtype) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    options["guide_anchor"][3] = 0
    leaves = [x.requires_grad_() for x in student]
    for guide_temperature in (None, 1e-3, 1e3):
        loss = gist_embed_loss(*leaves, **options, temperature=temperature, guide_temperature=guide_temperature)
        gradients = torch.autograd.grad(loss, leaves)
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradients[0][1].eq(0).all()


@pytest.mark.parametrize("by_definition", [False, True])
def test_a_guide_in_float32_takes_no_digits_from_a_student_in_float64(normal, monkeypatch, by_definition):
    student, options = batch(normal, "batch")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    found = []
    for dtype in (torch.float32, torch.float64):
        # along the axes: scores of 0 and 1, exact in either dtype
        axes = torch.eye(5, dtype=dtype, device=student[0].device)
        options |= {"guide_anchor": axes, "guide_positive": axes, "guide_temperature": 0.5}
        found.append(losses_and_gradients(student, options))
    assert_close(*found, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("by_definition", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [2, 33, 384])
def test_what_is_a_copy_of_the_positive_to_the_guide_stays_without_a_margin(
    normal, monkeypatch, dtype, width, by_definition
):
    # the last rows' and columns' products are summed up another way than the rest, on every processor otherwise
    anchor, positive, negatives = normal(0, 29, 4), normal(1, 29, 4), normal(2, 31, 4)
    copy = normal(3, width, dtype=dtype)
    guide = {"guide_anchor": normal(4, 29, width, dtype=dtype), "guide_positive": copy.expand(29, width)}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    found = gist_embed_loss(
        anchor, positive, negatives, **guide, guide_negatives=copy.expand(31, width), lam=0.0, block_size=28
    )
    assert_close(found, info_nce(anchor, positive, negatives))


@pytest.mark.parametrize("by_definition", [False, True])
def test_the_divergence_sees_the_differences_of_the_guide_scores_that_tie(device, monkeypatch, by_definition):
    # in 384 features of float32 up to 4.6e-5 may be rounding: cosines of 0.6 and, turned by 3e-5, of 0.6 - 2.4e-5
    angles = [math.acos(0.6), math.acos(0.6) + 3e-5]
    rows = torch.tensor([[math.cos(x), math.sin(x)] + [0.0] * 382 for x in angles], device=device)
    anchor = torch.eye(1, 384, device=device)
    guide = {"guide_anchor": anchor, "guide_positive": rows[:1], "guide_negatives": rows[None, 1:]}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    # the student's two scores are equal, the guide's logits 0.24 apart
    options = {"guide_temperature": 1e-4, "in_batch": False}
    loss = gist_embed_loss(anchor, anchor, anchor[None], **guide, **options, lam=1.0)
    g = 1 / (1 + math.exp(-0.24))
    divergence = g * math.log(2 * g) + (1 - g) * math.log(2 * (1 - g))
    assert loss.item() == pytest.approx(math.log(2) + divergence, abs=1e-4)


def test_autocast_changes_nothing(normal, device):
    student, options = batch(normal, "batch, pool, anchors and positives", dtype=torch.float32)
    expected = gist_embed_loss(*student, **options)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_close(gist_embed_loss(*student, **options), expected, rtol=0, atol=0)


def test_the_guide_gets_no_gradient_and_nothing_is_mutated(normal):
    student, options = batch(normal, "batch and every anchor's own")
    tensors = [*student, *(x for x in options.values() if isinstance(x, torch.Tensor))]
    before = [x.clone() for x in tensors]
    guide = tensors[len(student) :]
    for x in (*student, *guide):
        x.requires_grad_()
    guide_temperature = torch.tensor(0.2, requires_grad=True, device=student[0].device)
    gist_embed_loss(*student, **options, guide_temperature=guide_temperature).backward()
    assert all(x.grad is not None for x in student)
    assert all(x.grad is None for x in (*guide, guide_temperature))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_compiles_without_a_graph_break(normal, bad_input):
    # the module is loaded anew, for the shape checks of conftest.py cannot be traced
    function = runpy.run_path(mathlib._gist.__file__)["gist_embed_loss"]
    student, options = batch(normal, "batch, pool, anchors and positives")
    compiled = torch.compile(function, backend="aot_eager")
    assert_close(compiled(*student, **options), function(*student, **options))


# Gradients


@each_layout
@pytest.mark.parametrize("block_size", [None, 3])
def test_gradcheck(normal, layout, block_size):
    student, options = batch(normal, layout)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=student[0].device)

    def losses(temperature, *student):
        return gist_embed_loss(
            *student, **options, temperature=temperature, guide_temperature=0.5, block_size=block_size, reduction="none"
        )

    leaves = tuple(x.requires_grad_() for x in (temperature, *student))
    assert torch.autograd.gradcheck(losses, leaves, fast_mode=True)


@each_layout
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_blocks_and_the_definition_agree(normal, layout, lam, monkeypatch):
    student, options = batch(normal, layout)
    by_blocks = losses_and_gradients(student, options, lam=lam, block_size=3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # which takes the definition
    assert_close(by_blocks, losses_and_gradients(student, options, lam=lam))


@each_layout
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_gradient_has_a_gradient(normal, layout, lam):
    student, options = batch(normal, layout)
    temperature = torch.tensor(0.5, dtype=torch.float64, device=student[0].device)

    def loss(temperature, *student):
        return gist_embed_loss(*student, **options, temperature=temperature, guide_temperature=0.5, lam=lam)

    leaves = tuple(x.requires_grad_() for x in (temperature, *student))
    assert_close(*(torch.autograd.grad(loss(*leaves), leaves, create_graph=x) for x in (False, True)))
    # along random directions: each second derivative alone would take a minute
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_arguments_made_of_one_another_have_one_gradient_by_every_road(normal, reduction):
    def loss(x):
        guide = {"guide_anchor": x.cos(), "guide_positive": x.exp()}
        return gist_embed_loss(x, x.tanh(), temperature=x.square().mean(), reduction=reduction, **guide).sum()

    x = normal(0, 5, 4).requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    (ours,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert_close(ours, expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_changes_after_the_call_has_no_part_in_the_gradient(normal, create_graph):
    student, guide = (normal(seed, 2, 5, 4) for seed in range(2))
    temperature = torch.tensor(0.3, dtype=torch.float64, device=student.device)

    def gradient(change):
        anchor = student[0].clone().requires_grad_()
        given = {"guide_anchor": guide[0].clone(), "guide_positive": guide[1].clone()}
        given["guide_temperature"] = temperature.clone()
        losses = gist_embed_loss(anchor, student[1], temperature=0.2, reduction="none", **given)
        if change:
            for tensor in given.values():
                tensor.neg_()
        return torch.autograd.grad(losses.sum(), anchor, create_graph=create_graph)[0]

    assert_close(gradient(change=True), gradient(change=False), rtol=0, atol=0)


# What is refused, and how

GOOD = {
    "anchor": torch.ones(2, 3),
    "positive": torch.ones(2, 3),
    "guide_anchor": torch.ones(2, 5),
    "guide_positive": torch.ones(2, 5),
}
NEGATIVES = {"negatives": torch.ones(4, 3), "guide_negatives": torch.ones(4, 5)}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"anchor": None}, TypeError, "anchor must be a torch.Tensor, was NoneType"),
        ({"anchor": torch.ones(3)}, ValueError, "anchor must have shape [B, D], was [3]"),
        ({"positive": torch.ones(2, 4)}, ValueError, "positive must have shape [B, D] = [2, 3], was [2, 4]"),
        ({"guide_anchor": torch.ones(2)}, ValueError, "guide_anchor must have shape [B, G] = [2, G], was [2]"),
        ({"guide_anchor": [1]}, TypeError, "guide_anchor must be a torch.Tensor, was list"),
        (
            {"anchor": torch.ones(0, 3), "positive": torch.ones(0, 3)},
            ValueError,
            "anchor must have at least one row, was [0, 3]",
        ),
        (
            {"guide_anchor": torch.ones(2, 0), "guide_positive": torch.ones(2, 0)},
            ValueError,
            "guide_anchor must have at least one feature, was [2, 0]",
        ),
        (
            {"guide_positive": torch.ones(2, 5).int()},
            TypeError,
            "guide_positive must have a floating-point dtype, was torch.int32",
        ),
        (
            {"guide_positive": torch.ones(2, 5).double()},
            TypeError,
            "guide_positive must have the dtype of guide_anchor, torch.float32, was torch.float64",
        ),
        (
            {"guide_positive": torch.ones(2, 4)},
            ValueError,
            "guide_positive must have shape [B, G] = [2, 5], was [2, 4]",
        ),
        (
            {"guide_anchor": torch.ones(3, 5), "guide_positive": torch.ones(3, 5)},
            ValueError,
            "guide_anchor must have shape [B, G] = [2, G], was [3, 5]",
        ),
        (
            {"guide_anchor": torch.ones(2, 5, device="meta"), "guide_positive": torch.ones(2, 5, device="meta")},
            ValueError,
            "guide_anchor must be on the device of anchor, cpu, was meta",
        ),
        (
            {"negatives": torch.ones(4, 3)},
            ValueError,
            "guide_negatives must be given together with negatives, was None",
        ),
        (
            {"guide_negatives": torch.ones(4, 5)},
            ValueError,
            "negatives must be given together with guide_negatives, was None",
        ),
        (
            NEGATIVES | {"guide_negatives": torch.ones(3, 5)},
            ValueError,
            "guide_negatives must have shape [N, G] = [4, 5], was [3, 5]",
        ),
        (
            {"negatives": torch.ones(2, 4, 3), "guide_negatives": torch.ones(2, 3, 5)},
            ValueError,
            "guide_negatives must have shape [B, N, G] = [2, 4, 5], was [2, 3, 5]",
        ),
        (
            NEGATIVES | {"negatives": torch.ones(4, 2)},
            ValueError,
            "negatives must have shape [N, D] = [N, 3] or [B, N, D] = [2, N, 3], was [4, 2]",
        ),
        (
            NEGATIVES | {"guide_negatives": torch.ones(4, 6)},
            ValueError,
            "guide_negatives must have shape [N, G] = [4, 5], was [4, 6]",
        ),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number and > 0, was 0.0"),
        ({"temperature": torch.ones(1)}, ValueError, "temperature must be a number or a 0-d tensor, was [1]"),
        ({"guide_temperature": -1.0}, ValueError, "guide_temperature must be a finite number and > 0, was -1.0"),
        (
            {"guide_temperature": torch.tensor(1.0, device="meta")},
            ValueError,
            "guide_temperature must be on the device of the scores, cpu, was meta",
        ),
        ({"guide_temperature": "1"}, TypeError, "guide_temperature must be a finite number and > 0, was str"),
        ({"lam": -0.1}, ValueError, "lam must be a finite number and >= 0, was -0.1"),
        ({"lam": None}, TypeError, "lam must be a finite number and >= 0, was NoneType"),
        ({"kl_over": "none"}, ValueError, "kl_over must be one of 'all', 'kept', was 'none'"),
        ({"groups": torch.zeros(3).long()}, ValueError, "groups must have shape [B] = [2], was [3]"),
        (
            NEGATIVES | {"negative_groups": torch.zeros(4).long()},
            ValueError,
            "negative_groups must be given together with negatives and groups only",
        ),
        ({"margin": -1}, ValueError, "margin must be a finite number and >= 0, was -1"),
        ({"margin": math.inf}, ValueError, "margin must be a finite number and >= 0, was inf"),
        ({"strategy": "threshold"}, ValueError, "strategy must be one of 'absolute', 'relative', was 'threshold'"),
        ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', was 'max'"),
        ({"in_batch": 1}, TypeError, "in_batch must be True or False, was int"),
        ({"gather": 1}, TypeError, "gather must be True or False, was int"),
        ({"contrast_anchors": None}, TypeError, "contrast_anchors must be True or False, was NoneType"),
        (
            NEGATIVES | {"in_batch": False, "contrast_anchors": True},
            ValueError,
            "contrast_anchors must be False when in_batch is False",
        ),
        (
            NEGATIVES | {"in_batch": False, "contrast_positives": True},
            ValueError,
            "contrast_positives must be False when in_batch is False",
        ),
        (
            {"in_batch": False},
            ValueError,
            "negatives must be given when in_batch is False: there is nothing else to contrast with",
        ),
        ({"block_size": 0}, ValueError, "block_size must be an int >= 1, was 0"),
        ({"block_size": 1.5}, TypeError, "block_size must be an int >= 1, was float"),
    ],
)
def test_gist_embed_loss_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        gist_embed_loss(**{**GOOD, **wrong})
    assert str(caught.value) == message
