import math
import runpy
from functools import partial

import numpy
import pytest
import sklearn.neighbors
import torch
from by_hand import DTYPES, HALVES, LAYOUTS, batch, cosine, info_nce_by_hand, lists
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from wrong_scores import WRONG_SCORES

import mathlib._hard_negatives
from mathlib import (
    contrastive_loss,
    curriculum,
    false_negative_weights,
    hard_negatives,
    hardness_weights,
    info_nce,
    mine_hard_negatives,
    search,
    semi_hard_negatives,
    similarity_matrix,
    top_k_negatives,
)

seeds = st.integers(0, 2**32)

RULES = {
    "hard": partial(hard_negatives, threshold=0.1),
    "semi-hard above": partial(semi_hard_negatives, margin=0.7),
    "semi-hard below": partial(semi_hard_negatives, margin=0.7, side="below"),
    "hardest": partial(top_k_negatives, k=1),
    "top 2": partial(top_k_negatives, k=2),
}
each_rule = pytest.mark.parametrize("name", RULES)

# The rules: by hand


def test_hard_negatives_by_hand(device):
    positive = torch.tensor([[0.1], [0.9]], device=device)
    candidates = torch.tensor([[0.75, 0.5, 0.25], [0.625, -0.5, 1.0]], device=device)
    weights = hard_negatives(positive, candidates, threshold=0.5)
    assert weights.tolist() == [[1, 0, 0], [1, 0, 1]]  # equality leaves out; the positive plays no part


def test_semi_hard_negatives_by_hand(device):
    positive = torch.tensor([[0.5], [-0.25]], device=device)
    candidates = torch.tensor(
        [[0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], [0.125, 0.0, -0.125, -0.25, -0.375, -0.5, -0.625]],
        device=device,
    )
    # 0.5 < s < 0.75 and -0.25 < s < 0, neither end included
    for options in ({}, {"side": "above"}):
        weights = semi_hard_negatives(positive, candidates, margin=0.25, **options)
        assert weights.tolist() == [[0, 0, 1, 0, 0, 0, 0]] * 2
    # 0.25 < s < 0.5 and -0.5 < s < -0.25
    weights = semi_hard_negatives(positive, candidates, margin=0.25, side="below")
    assert weights.tolist() == [[0, 0, 0, 0, 1, 0, 0]] * 2


def test_top_k_negatives_by_hand(device):
    candidates = torch.tensor([[0.5, 0.9, 0.5, 0.2], [0.1, 0.2, 0.3, 0.4]], device=device)
    expected = {
        1: [[0, 1, 0, 0], [0, 0, 0, 1]],
        2: [[1, 1, 0, 0], [0, 0, 1, 1]],  # of those that tie, the first
        3: [[1, 1, 1, 0], [0, 1, 1, 1]],
        4: [[1, 1, 1, 1], [1, 1, 1, 1]],
        99: [[1, 1, 1, 1], [1, 1, 1, 1]],
    }
    for k, weights in expected.items():
        assert top_k_negatives(candidates[:, :1], candidates, k=k).tolist() == weights


def test_the_hardest_negative_in_a_batch_by_hand(device):
    # anchor 0 meets 0.6 and 0, anchor 1 -0.6 and 0, anchor 2 0 and 0.8: the hardest alone is left, also by blocks
    anchor = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, device=device)
    positive = torch.tensor([[1.0, -0.75, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64, device=device)
    by_hand = [math.log(1 + math.exp(0.6 - 0.8)), math.log(1 + math.exp(0 - 0.8)), math.log(1 + math.exp(0 - 1))]
    for block_size in (None, 1, 2):
        losses = info_nce(
            anchor,
            positive,
            temperature=1.0,
            weigh=partial(top_k_negatives, k=1),
            reduction="none",
            block_size=block_size,
        )
        assert losses.tolist() == pytest.approx(by_hand, rel=1e-14)


# The rules: by a loop over Python floats


def loop_weights(name, s_p, scores):
    if name == "hard":
        return [float(s > 0.1) for s in scores]
    if name == "semi-hard above":
        return [float(0 < s - s_p < 0.7) for s in scores]
    if name == "semi-hard below":
        return [float(0 < s_p - s < 0.7) for s in scores]
    return loop_top(1 if name == "hardest" else 2, scores)


def loop_top(k, scores):
    finite = [i for i, s in enumerate(scores) if s > -math.inf]
    chosen = sorted(finite, key=lambda i: (-scores[i], i))[:k]
    return [float(i in chosen) for i in range(len(scores))]


@given(seeds, st.sampled_from(sorted(RULES)))
def test_rules_are_the_loop(normal, seed, name):
    positive, candidates = normal(seed, 3, 1), normal(seed + 1, 3, 6)
    expected = [loop_weights(name, s_p, row) for [s_p], row in zip(positive.tolist(), candidates.tolist(), strict=True)]
    assert RULES[name](positive, candidates).tolist() == expected


@given(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 1.0]), min_size=6, max_size=6), st.integers(1, 8))
def test_the_k_hardest_are_exactly_k_also_where_scores_tie(device, scores, k):
    weights = top_k_negatives(torch.zeros(1, 1, device=device), torch.tensor([scores], device=device), k=k)
    assert weights.tolist() == [loop_top(k, scores)]
    assert weights.sum() == min(k, sum(s > -math.inf for s in scores))


@pytest.mark.parametrize("layout", LAYOUTS)
@each_rule
@pytest.mark.parametrize("block_size", [None, 1, 3])
def test_as_a_rule_of_info_nce_it_is_the_loop(normal, layout, name, block_size):
    tensors, how = batch(normal, layout)
    expected = info_nce_by_hand(*lists(tensors), **how, weigh=partial(loop_weights, name))
    ours = info_nce(*tensors, temperature=0.3, **how, weigh=RULES[name], block_size=block_size, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


# The rules: peers


@given(seeds, st.integers(1, 6))
def test_without_ties_the_k_hardest_are_those_of_topk(normal, seed, k):
    positive, candidates = normal(seed, 3, 1), normal(seed + 1, 3, 6)
    theirs = torch.zeros_like(candidates).scatter_(1, candidates.topk(k, dim=1).indices, 1.0)
    assert torch.equal(top_k_negatives(positive, candidates, k=k), theirs)


@given(seeds, st.floats(0, 2))
def test_below_is_facenets_inequality_between_squared_distances(normal, seed, margin):
    # eq. 4 with its margin, on unit vectors: d_p^2 < d_n^2 < d_p^2 + margin
    a, p, n = (normal(seed + i, 4, 3) for i in range(3))
    a, p, n = (x / x.norm(dim=1, keepdim=True) for x in (a, p, n))
    d_p, d_n = ((a - p) ** 2).sum(dim=1)[:, None], ((a[:, None] - n) ** 2).sum(dim=2)
    facenet = (d_p < d_n) & (d_n < d_p + margin)
    s_p, s_n = similarity_matrix(a, p).diagonal()[:, None], similarity_matrix(a, n)
    assert torch.equal(semi_hard_negatives(s_p, s_n, margin=margin / 2, side="below"), facenet.double())
    # the notes' inequality chooses none of them
    assert not (semi_hard_negatives(s_p, s_n, margin=margin / 2) * facenet).any()


# The rules: what must hold for all scores

# multiples of 1/64, on which sums and differences are exact
exact = st.integers(-128, 128).map(lambda n: n / 64)
distinct = st.tuples(exact, st.lists(exact, min_size=5, max_size=5, unique=True))


def tensors_of(row, device):
    s_p, candidates = row
    return (torch.tensor(x, dtype=torch.float64, device=device) for x in ([[s_p]], [candidates]))


@given(distinct, st.permutations(range(5)), st.sampled_from(sorted(RULES)))
def test_permuted_candidates_have_permuted_weights(device, row, order, name):
    positive, candidates = tensors_of(row, device)
    weights = RULES[name](positive, candidates)
    assert torch.equal(RULES[name](positive, candidates[:, order]), weights[:, order])


@given(distinct, exact, exact.map(abs), st.sampled_from(["above", "below"]), st.integers(1, 5))
def test_a_shift_of_all_scores_changes_nothing(device, row, shift, margin, side, k):
    positive, candidates = tensors_of(row, device)
    rules = [
        (partial(semi_hard_negatives, margin=margin, side=side),) * 2,
        (partial(top_k_negatives, k=k),) * 2,
        (partial(hard_negatives, threshold=margin), partial(hard_negatives, threshold=margin + shift)),
    ]
    for rule, shifted in rules:
        assert torch.equal(shifted(positive + shift, candidates + shift), rule(positive, candidates))


@given(distinct, exact.map(abs))
def test_below_is_above_seen_from_the_other_side(device, row, margin):
    positive, candidates = tensors_of(row, device)
    above = semi_hard_negatives(-positive, -candidates, margin=margin, side="above")
    assert torch.equal(semi_hard_negatives(positive, candidates, margin=margin, side="below"), above)


@given(distinct, st.integers(1, 5))
def test_the_k_hardest_are_those_above_the_next(device, row, k):
    positive, candidates = tensors_of(row, device)
    ranked = sorted(row[1], reverse=True) + [-99.0]
    assert torch.equal(
        top_k_negatives(positive, candidates, k=k), hard_negatives(positive, candidates, threshold=ranked[k])
    )


@given(seeds, st.sampled_from(sorted(RULES)))
def test_rows_do_not_see_each_other(normal, seed, name):
    positive, candidates = normal(seed, 3, 1), normal(seed + 1, 3, 4)
    apart = [RULES[name](positive[[b]], candidates[[b]]) for b in range(3)]
    assert torch.equal(torch.cat(apart), RULES[name](positive, candidates))


@given(seeds, st.sampled_from(sorted(RULES)))
def test_weight_0_equals_deletion(normal, seed, name):
    anchor, positive, pool = normal(seed, 4, 3), normal(seed + 1, 4, 3), normal(seed + 2, 5, 3)
    s_p, scores = similarity_matrix(anchor, positive).diagonal(), similarity_matrix(anchor, pool)
    chosen = RULES[name](s_p[:, None], scores) > 0
    expected = [
        contrastive_loss(s_p[[b]], scores[[b]][:, chosen[b]], temperature=0.1) if chosen[b].any() else 0.0 * s_p[b]
        for b in range(4)
    ]
    ours = info_nce(anchor, positive, pool, in_batch=False, temperature=0.1, weigh=RULES[name], reduction="none")
    assert_close(ours, torch.stack(expected))


@given(seeds, st.sampled_from(sorted(RULES)))
def test_rules_multiply_with_the_removal_of_false_negatives(normal, seed, name):
    (anchor, positive, _), _ = batch(normal, "batch", seed)
    no_false = partial(false_negative_weights, strategy="absolute", margin=0.2)

    def product(s_p, s):
        return RULES[name](s_p, s) * no_false(s_p, s)

    together = info_nce(anchor, positive, weigh=product)
    assert_close(info_nce(anchor, positive, weigh=[RULES[name], no_false]), together)
    assert_close(info_nce(anchor, positive, weigh=[no_false, RULES[name]]), together)


# The rules: edges


@pytest.mark.parametrize("s_p", [-math.inf, -1.0, 1.0])
def test_minus_infinity_is_never_chosen(device, s_p):
    positive, gone = torch.tensor([[s_p]], device=device), torch.full((1, 3), -math.inf, device=device)
    rules = [*RULES.values(), partial(top_k_negatives, k=9), partial(hard_negatives, threshold=-3e38)]
    for rule in rules:
        assert rule(positive, gone).tolist() == [[0, 0, 0]]


def test_an_anchor_with_nothing_chosen_has_loss_and_gradient_zero(normal):
    anchor, positive = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3).requires_grad_()
    for rule in (partial(hard_negatives, threshold=1.5), partial(semi_hard_negatives, margin=0.0)):
        loss = info_nce(anchor, positive, weigh=rule)
        assert loss == 0
        assert all((x == 0).all() for x in torch.autograd.grad(loss, (anchor, positive)))


def test_many_equal_scores_are_chosen_in_the_order_of_their_index(normal):
    # enough of them that a sort which is not stable would mix them up
    scores = normal(0, 2, 1000).round()
    weights = top_k_negatives(scores[:, :1], scores, k=500)
    assert weights.tolist() == [loop_top(500, row) for row in scores.tolist()]


@each_rule
def test_what_is_no_number_is_not_hidden(device, name):
    candidates = torch.tensor([[math.nan, 0.2, 0.3]], device=device)
    positive = torch.zeros(1, device=device)
    weights = RULES[name](positive[:, None], candidates)
    assert weights.isfinite().all()
    assert contrastive_loss(positive, candidates, temperature=0.1, weights=weights).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@each_rule
def test_weights_have_the_scores_dtype_or_float32(normal, dtype, name):
    positive, candidates = normal(0, 4, 1, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    weights = RULES[name](positive, candidates)
    assert weights.dtype == (torch.float32 if dtype in HALVES else dtype)
    assert torch.equal(weights.double(), RULES[name](positive.double(), candidates.double()))
    assert weights.unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_compared_in_float32(device, dtype):
    # in half precision, 1 - 1e-4 and 1 + 1e-4 are 1, and so is the threshold 1 - 1e-4
    one, half = torch.ones(1, 1, dtype=dtype, device=device), torch.full((1, 1), 0.5, dtype=dtype, device=device)
    assert hard_negatives(one, one, threshold=1 - 1e-4) == 1
    # the next number above 1/2 is nearer than 0.6 of its step, which half precision would round up to a whole one
    step = torch.finfo(dtype).eps / 2
    for options in ({"margin": 1.4 * step}, {"margin": 1.4 * step / 2, "side": "below"}):
        away = half + step if "side" not in options else half - step / 2
        assert semi_hard_negatives(half, away, **options) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@each_rule
def test_autocast_changes_nothing(normal, dtype, name):
    positive, candidates = normal(0, 4, 1, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    outside = RULES[name](positive, candidates)
    with torch.autocast(positive.device.type, dtype=torch.bfloat16):
        assert_close(RULES[name](positive, candidates), outside, rtol=0, atol=0)


@each_rule
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_row_and_no_candidate_have_no_weights(device, name, shape):
    positive, candidates = torch.zeros(shape[0], 1, device=device), torch.zeros(shape, device=device)
    assert RULES[name](positive, candidates).shape == shape


@each_rule
def test_no_gradient_flows_and_nothing_is_mutated(normal, name):
    positive, candidates = normal(0, 3, 1).requires_grad_(), normal(1, 3, 4).requires_grad_()
    before = positive.detach().clone(), candidates.detach().clone()
    assert not RULES[name](positive, candidates).requires_grad
    assert torch.equal(positive, before[0]) and torch.equal(candidates, before[1])


@each_rule
def test_no_value_is_read(bad_input, name):
    # on the meta device there are none
    weights = RULES[name](torch.zeros(2, 1, device="meta"), torch.zeros(2, 3, device="meta"))
    assert weights.shape == (2, 3)


@pytest.mark.parametrize(
    "rule, option, values",
    [
        (hard_negatives, "threshold", [curriculum(t, start=0.0, end=0.5, total_steps=2) for t in range(3)]),
        (semi_hard_negatives, "margin", [0.3, 0.2, 0.1]),
        (partial(semi_hard_negatives, side="below"), "margin", [0.3, 0.2, 0.1]),
        (top_k_negatives, "k", [3, 2, 1]),
        (hardness_weights, "strength", [0.5, 1.0, 2.0]),
    ],
)
def test_rules_compile_without_a_graph_break_while_a_schedule_runs(normal, bad_input, rule, option, values):
    torch.compiler.reset()  # other tests' graphs count towards the limit of recompilations
    compiled = torch.compile(rule, backend="eager", fullgraph=True)
    positive, candidates = normal(0, 3, 1), normal(1, 3, 4)
    for value in values:
        now = {option: value}
        assert torch.equal(compiled(positive, candidates, **now), rule(positive, candidates, **now))


# hardness_weights


def loop_hardness(strength, s_p, scores):
    there = [math.exp(strength * s) for s in scores if s > -math.inf]
    return [math.exp(strength * s) * len(there) / math.fsum(there) if s > -math.inf else 0.0 for s in scores]


def test_hardness_weights_by_hand(device):
    # e^(2 s) is 1, 4, 2: their mean is 7/3; without the second 3/2
    scores = torch.tensor([[0, math.log(2), math.log(2) / 2], [0, -math.inf, math.log(2) / 2]], device=device)
    weights = hardness_weights(torch.zeros(2, 1, device=device), scores, strength=2.0)
    assert_close(weights.cpu(), torch.tensor([[3 / 7, 12 / 7, 6 / 7], [2 / 3, 0, 4 / 3]]))


some_scores = st.lists(st.one_of(st.just(-math.inf), st.floats(-1, 1)), min_size=1, max_size=6)


@given(some_scores, st.floats(0, 50))
def test_hardness_weights_are_the_loop(device, scores, strength):
    candidates = torch.tensor([scores], dtype=torch.float64, device=device)
    weights = hardness_weights(torch.zeros_like(candidates[:, :1]), candidates, strength=strength)
    assert weights[0].tolist() == pytest.approx(loop_hardness(strength, 0, scores), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_size", [None, 1, 3])
def test_hardness_as_a_rule_of_info_nce_is_the_loop(normal, layout, block_size):
    tensors, how = batch(normal, layout)
    expected = info_nce_by_hand(*lists(tensors), **how, weigh=partial(loop_hardness, 3.0))
    rule = partial(hardness_weights, strength=3.0)
    ours = info_nce(*tensors, temperature=0.3, **how, weigh=rule, block_size=block_size, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


def test_hardness_agrees_with_the_papers_reweighting(normal):
    # as its authors' code has it, with tau_plus = 0: reweight = (imp * neg).sum() / imp.mean(), imp = neg ** beta
    temperature, beta = 0.5, 1.5
    s_p, scores = normal(0, 4).tanh(), normal(1, 4, 6).tanh()
    positive, negative = (s_p / temperature).exp(), (scores / temperature).exp()
    importance = (beta * negative.log()).exp()
    reweighted = (importance * negative).sum(dim=1) / importance.mean(dim=1)
    weights = hardness_weights(s_p[:, None], scores, strength=beta / temperature)
    ours = contrastive_loss(s_p, scores, temperature=temperature, weights=weights, reduction="none")
    assert_close(ours, -(positive / (positive + reweighted)).log())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_strength_it_is_plain_info_nce(normal, layout):
    tensors, how = batch(normal, layout)
    ours = info_nce(*tensors, **how, weigh=partial(hardness_weights, strength=0))
    assert_close(ours, info_nce(*tensors, **how))


@given(distinct, st.permutations(range(5)), exact, st.floats(0, 1e30))
def test_hardness_sees_the_distances_of_scores_not_where_they_stand(device, row, order, shift, strength):
    positive, candidates = tensors_of(row, device)
    weights = hardness_weights(positive, candidates, strength=strength)
    assert_close(hardness_weights(positive - 1, candidates[:, order], strength=strength), weights[:, order])
    assert_close(hardness_weights(positive, candidates + shift, strength=strength), weights)
    # together as much as without, the harder the more
    assert weights.sum().item() == pytest.approx(5)
    assert (weights[0, candidates[0].argsort()].diff() >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1e3, 1e30, 1e300])
def test_hardness_is_finite_at_any_strength(device, dtype, strength):
    scores = torch.tensor([[1, 0.5, 1, -math.inf], [-9e3, -math.inf, -math.inf, -math.inf], [-math.inf] * 4])
    scores = scores.to(device, dtype)
    weights = hardness_weights(torch.zeros_like(scores[:, :1]), scores, strength=strength)
    expected = torch.tensor([[1.5, 0, 1.5, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=weights.dtype, device=device)
    assert_close(weights, expected, rtol=0, atol=1e-200)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hardness_has_the_scores_dtype_or_float32_also_under_autocast(normal, dtype):
    positive, candidates = normal(0, 4, 1, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    weights = hardness_weights(positive, candidates, strength=2.0)
    assert weights.dtype == (torch.float32 if dtype in HALVES else dtype)
    exact_weights = hardness_weights(positive.double(), candidates.double(), strength=2.0)
    assert_close(weights.double(), exact_weights, rtol=1e-5, atol=1e-6)
    with torch.autocast(positive.device.type, dtype=torch.bfloat16):
        assert_close(hardness_weights(positive, candidates, strength=2.0), weights, rtol=0, atol=0)


def test_hardness_lets_no_gradient_through_and_mutates_nothing(normal):
    positive, candidates = normal(0, 3, 1).requires_grad_(), normal(1, 3, 4).requires_grad_()
    before = candidates.detach().clone()
    assert not hardness_weights(positive, candidates, strength=2.0).requires_grad
    assert torch.equal(candidates, before)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_hardness_of_no_row_and_no_candidate(device, shape):
    positive, candidates = torch.zeros(shape[0], 1, device=device), torch.zeros(shape, device=device)
    assert hardness_weights(positive, candidates, strength=2.0).shape == shape


def test_hardness_does_not_hide_what_is_no_number(device):
    candidates, positive = torch.tensor([[math.nan, 0.2, 0.3]], device=device), torch.zeros(1, device=device)
    weights = hardness_weights(positive[:, None], candidates, strength=2.0)
    assert contrastive_loss(positive, candidates, temperature=0.1, weights=weights).isnan()


def test_gradcheck_of_info_nce_with_constant_hardness(normal):
    # the weights count as constants, so what is differentiated is the loss at these weights
    anchor, positive = (normal(seed, 5, 3).requires_grad_() for seed in (0, 1))
    s_p, scores = similarity_matrix(anchor, positive).diagonal(), similarity_matrix(anchor, positive)
    others = ~torch.eye(5, dtype=torch.bool, device=anchor.device)
    scores = scores[others].view(5, 4)
    weights = hardness_weights(s_p[:, None], scores, strength=3.0)
    expected = contrastive_loss(s_p, scores, temperature=0.4, weights=weights)
    ours = info_nce(anchor, positive, temperature=0.4, weigh=partial(hardness_weights, strength=3.0))
    assert_close(ours, expected)
    assert_close(*(torch.autograd.grad(loss, (anchor, positive)) for loss in (ours, expected)))


# curriculum


def test_curriculum_by_hand():
    # a quarter of the way; half a cosine: (1 - cos(pi / 4)) / 2 = 0.1464
    options = {"start": 0.25, "end": 0.75, "total_steps": 100}
    assert [curriculum(t, **options) for t in (0, 25, 50, 100, 101, 1e9)] == [0.25, 0.375, 0.5, 0.75, 0.75, 0.75]
    assert [curriculum(t, **options, shape="linear") for t in (0, 25)] == [0.25, 0.375]
    quarter = 0.25 + 0.5 * (1 - math.sqrt(0.5)) / 2
    assert curriculum(25, **options, shape="cosine") == pytest.approx(quarter, rel=1e-14)
    assert curriculum(50, **options, shape="cosine") == pytest.approx(0.5, rel=1e-14)
    assert [curriculum(t, **options, shape="cosine") for t in (0, 100, 999)] == [0.25, 0.75, 0.75]


def test_curriculum_may_fall_stay_and_count_in_fractions():
    assert curriculum(1.5, start=3, end=-1, total_steps=2) == 0
    assert curriculum(0.75, start=0.2, end=0.2, total_steps=1.5) == 0.2
    assert curriculum(0.25, start=0, end=1, total_steps=0.5) == 0.5


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_curriculum_arrives_exactly(shape):
    # on the way, 0.9 + (0.1 - 0.9) is not 0.1
    assert 0.9 + (0.1 - 0.9) != 0.1
    assert curriculum(7, start=0.9, end=0.1, total_steps=7, shape=shape) == 0.1


@pytest.mark.parametrize("shape, scheduler", [
    ("linear", partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.25, total_iters=8)),
    ("cosine", partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8, eta_min=0.1)),
])  # fmt: skip
def test_curriculum_agrees_with_torchs_schedulers(shape, scheduler):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    schedule = scheduler(optimizer)
    for step in range(9):
        ours = curriculum(step, start=0.4, end=0.1, total_steps=8, shape=shape)
        assert ours == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


numbers = st.floats(-10, 10)
shapes = st.sampled_from(["linear", "cosine"])


@given(st.floats(0, 10), st.floats(0, 10), numbers, numbers, st.floats(0.1, 10), shapes)
def test_curriculum_is_monotone_between_its_ends(t, later, start, end, total_steps, shape):
    t, later = sorted([t, later])
    options = {"start": start, "end": end, "total_steps": total_steps, "shape": shape}
    values = [start, curriculum(t, **options), curriculum(later, **options), end]
    assert all(isinstance(value, float) for value in values)
    rounding = 1e-14
    ordered = values if start <= end else values[::-1]
    assert all(x <= y + rounding for x, y in zip(ordered, ordered[1:], strict=False))


@given(st.floats(0, 1), numbers, numbers, shapes)
def test_curriculum_backwards_in_time_swaps_its_ends(t, start, end, shape):
    forward = curriculum(t, start=start, end=end, total_steps=1, shape=shape)
    backward = curriculum(1 - t, start=end, end=start, total_steps=1, shape=shape)
    assert forward == pytest.approx(backward, rel=1e-12, abs=1e-12)


def test_curriculum_returns_python_floats(bad_input):
    for step in (0, 1, 2, 3, numpy.float32(1)):
        for shape in ("linear", "cosine"):
            assert type(curriculum(step, start=0, end=numpy.int64(4), total_steps=2, shape=shape)) is float


# mine_hard_negatives: by hand

# cosines with [1, 0, 0, 0]: 1, 0.8, 0.6, 0.5, 0.5, 0, -0.6, -1
CORPUS = [
    [2.0, 0.0, 0.0, 0.0],
    [4.0, 3.0, 0.0, 0.0],
    [3.0, 4.0, 0.0, 0.0],
    [1.0, 1.0, 1.0, 1.0],
    [1.0, -1.0, 1.0, 1.0],
    [0.0, 0.0, 7.0, 0.0],
    [-3.0, 0.0, 4.0, 0.0],
    [-1.0, 0.0, 0.0, 0.0],
]
COSINES = [1, 0.8, 0.6, 0.5, 0.5, 0, -0.6, -1]


@pytest.mark.parametrize(
    "positives, options, found",
    [
        ([0], {"k": 4}, [1, 2, 3, 4]),
        ([2], {"k": 2}, [0, 1]),
        ([0, 2, 3], {"k": 3}, [1, 4, 5]),
        ([5], {"k": 8}, [0, 1, 2, 3, 4, 6, 7, -1]),  # 7 of 8 are no positive
        # range_min skips as many
        ([0], {"k": 2, "range_min": 2}, [3, 4]),
        ([0], {"k": 3, "range_min": 5}, [6, 7, -1]),
        ([0], {"k": 2, "range_min": 7}, [-1, -1]),
        ([0], {"k": 2, "range_min": 99}, [-1, -1]),
        # the limit 1 - 0.5 itself passes
        ([0], {"k": 2, "margin": 0.5}, [3, 4]),
        ([0], {"k": 2, "margin": 0.5, "strategy": "absolute"}, [3, 4]),
        ([0], {"k": 2, "margin": 0.6}, [5, 6]),
        # 0.5 - 0.25 = 0.25, and 0.5 - 0.5 * 0.25 = 0.375
        ([3], {"k": 1, "margin": 0.25, "strategy": "absolute"}, [5]),
        ([3], {"k": 1, "margin": 0.25, "strategy": "relative"}, [5]),
        # the copy 4 of the positive 3 passes without a margin, whatever is above does not
        ([3], {"k": 2, "margin": 0}, [4, 5]),
        # -0.6 - 0.6 * 0.5 = -0.9, -0.6 - 0.5 = -1.1
        ([6], {"k": 2, "margin": 0.5}, [7, -1]),
        ([6], {"k": 2, "margin": 0.5, "strategy": "absolute"}, [-1, -1]),
        # of 1 and 0.5, the worst sets the limit, wherever it stands
        ([0, 3], {"k": 2, "margin": 0.0}, [4, 5]),
        ([3, 0], {"k": 2, "margin": 0.0}, [4, 5]),
        ([1, 0], {"k": 2, "margin": 0.25, "strategy": "absolute"}, [3, 4]),
        # first what looks false, then the first of what is left
        ([0], {"k": 2, "margin": 0.5, "range_min": 1}, [4, 5]),
    ],
)
@pytest.mark.parametrize("block_size", [None, 1, 3])
def test_mining_by_hand(device, positives, options, found, block_size):
    queries = torch.tensor([[3.0, 0.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    documents = torch.tensor(CORPUS, dtype=torch.float64, device=device)
    scores, indices = mine_hard_negatives(queries, documents, [positives], **options, block_size=block_size)
    assert indices.tolist() == [found]
    assert scores[0].tolist() == pytest.approx([COSINES[i] if i >= 0 else -math.inf for i in found], abs=1e-15)
    if len(positives) == 1:
        as_tensor = torch.tensor(positives, device=device)
        again = mine_hard_negatives(queries, documents, as_tensor, **options, block_size=block_size)
        assert torch.equal(again.indices, indices) and torch.equal(again.scores, scores)


def test_the_relative_margin_is_the_default(device):
    # limits 0.8 - 0.8 * 0.3 = 0.56, and 0.8 - 0.3 = 0.5
    queries = torch.tensor([[3.0, 0.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    documents = torch.tensor([[4.0, 3.0, 0.0, 0.0], [0.53, 0.848, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).to(queries)
    options = {"k": 1, "margin": 0.3}
    assert mine_hard_negatives(queries, documents, [{0}], **options).indices.tolist() == [[1]]
    assert mine_hard_negatives(queries, documents, [{0}], **options, strategy="relative").indices.tolist() == [[1]]
    assert mine_hard_negatives(queries, documents, [{0}], **options, strategy="absolute").indices.tolist() == [[2]]


def test_of_grades_only_those_above_0_are_positives(device):
    queries = torch.tensor([[3.0, 0.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    documents = torch.tensor(CORPUS, dtype=torch.float64, device=device)
    # 0 was judged and is not relevant, so it is the hardest negative, and 5 sets no limit
    judged = [{0: 0, 1: 2, 2: 0.5, 5: -1}]
    for options in ({}, {"margin": 0.3}):
        ours = mine_hard_negatives(queries, documents, judged, k=4, **options)
        expected = mine_hard_negatives(queries, documents, [{1, 2}], k=4, **options)
        assert torch.equal(ours.indices, expected.indices) and torch.equal(ours.scores, expected.scores)
    assert mine_hard_negatives(queries, documents, judged, k=2).indices.tolist() == [[0, 3]]


# mine_hard_negatives: by a loop over Python floats


def loop_mine(queries, documents, positives, k, margin, strategy, range_min):
    """Every document for every query: (index, score), best first."""
    mined = []
    for q, known in zip(queries, positives, strict=True):
        cosines = [cosine(q, d) for d in documents]
        limit = math.inf
        if margin is not None:
            worst = min(cosines[p] for p in known)
            limit = worst - (margin if strategy == "absolute" else abs(worst) * margin)
        hits = [(i, s) for i, s in enumerate(cosines) if i not in known and s <= limit]
        hits = sorted(hits, key=lambda hit: (-hit[1], hit[0]))[range_min : range_min + k]
        mined.append(hits + [(-1, -math.inf)] * (k - len(hits)))
    return mined


@given(
    seeds,
    st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=4, max_size=4),
    st.integers(1, 9),
    st.one_of(st.none(), st.floats(0, 1.5)),
    st.sampled_from(["absolute", "relative"]),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(1, 10)),
)
def test_mining_is_the_loop_for_every_option(normal, seed, positives, k, margin, strategy, range_min, block_size):
    queries, documents = normal(seed, 4, 3), normal(seed + 1, 9, 3)
    options = {"k": k, "margin": margin, "strategy": strategy, "range_min": range_min}
    expected = loop_mine(queries.tolist(), documents.tolist(), positives, **options)
    scores, indices = mine_hard_negatives(queries, documents, positives, **options, block_size=block_size)
    assert indices.tolist() == [[i for i, _ in hits] for hits in expected]
    assert_close(scores.cpu(), torch.tensor([[s for _, s in hits] for hits in expected], dtype=torch.float64))


# mine_hard_negatives: peers


def test_mining_agrees_with_scikit_learns_neighbours(normal):
    queries, documents = normal(0, 20, 5), normal(1, 50, 5)
    positives = torch.arange(20, device=queries.device)
    index = sklearn.neighbors.NearestNeighbors(n_neighbors=8, metric="cosine", algorithm="brute").fit(documents.cpu())
    distances, neighbours = index.kneighbors(queries.cpu())
    hits = [list(zip(*row, strict=True)) for row in zip(neighbours.tolist(), distances.tolist(), strict=True)]
    theirs = [[(d, 1 - distance) for d, distance in row if d != q][:7] for q, row in enumerate(hits)]
    scores, indices = mine_hard_negatives(queries, documents, positives, k=7, block_size=16)
    assert indices.tolist() == [[d for d, _ in row] for row in theirs]
    assert_close(scores.cpu(), torch.tensor([[s for _, s in row] for row in theirs], dtype=torch.float64))


# mine_hard_negatives: what must hold for all embeddings


@given(seeds, st.integers(1, 8), st.integers(0, 8))
def test_mining_is_search_without_the_positive(normal, seed, k, positive):
    queries, documents = normal(seed, 1, 3), normal(seed + 1, 9, 3)
    scores, indices = mine_hard_negatives(queries, documents, [[positive]], k=k)
    found_scores, found = search(queries, documents, k=9, metric="cosine")
    others = found != positive
    assert torch.equal(indices[0], found[others][:k])
    assert_close(scores[0], found_scores[others][:k])


@given(seeds, st.permutations(range(9)), st.floats(0, 0.5))
def test_documents_in_another_order_are_mined_all_the_same(normal, seed, order, margin):
    queries, documents = normal(seed, 4, 3), normal(seed + 1, 9, 3)
    options = {"k": 5, "margin": margin, "block_size": 4}
    scores, indices = mine_hard_negatives(queries, documents, [{0, 1}, {2}, {3}, {1, 8}], **options)
    positives = [{order.index(d) for d in known} for known in ({0, 1}, {2}, {3}, {1, 8})]
    same, moved = mine_hard_negatives(queries, documents[order], positives, **options)
    assert_close(same, scores)
    back = torch.tensor([*order, -1], device=indices.device)
    assert torch.equal(back[moved], indices)


@given(seeds, st.floats(-6, 6), st.floats(-6, 6))
def test_the_length_of_vectors_does_not_matter(normal, seed, log_q, log_d):
    queries, documents = normal(seed, 3, 3), normal(seed + 1, 9, 3)
    once = mine_hard_negatives(queries, documents, [[0], [1], [2]], k=4, margin=0.1)
    again = mine_hard_negatives(queries * 10**log_q, documents * 10**log_d, [[0], [1], [2]], k=4, margin=0.1)
    assert torch.equal(again.indices, once.indices)
    assert_close(again.scores, once.scores)


@given(seeds, st.sets(st.integers(0, 8), min_size=1), st.integers(0, 8), st.floats(0, 1))
def test_one_more_positive_is_never_more_lenient(normal, seed, positives, more, margin):
    queries, documents = normal(seed, 1, 3), normal(seed + 1, 9, 3)
    options = {"k": 9, "margin": margin, "strategy": "absolute"}
    _, fewer = mine_hard_negatives(queries, documents, [positives | {more}], **options)
    _, once = mine_hard_negatives(queries, documents, [positives], **options)
    assert set(fewer[0].tolist()) <= set(once[0].tolist()) | {-1}


# mine_hard_negatives: edges


def test_many_equal_scores_are_mined_in_the_order_of_their_index(normal):
    documents = normal(0, 1000, 1)
    _, indices = mine_hard_negatives(torch.ones_like(documents[:1]), documents, [[7]], k=1000, block_size=300)
    expected = sorted((i for i in range(1000) if i != 7), key=lambda i: (documents[i].item() < 0, i))
    assert indices[0].tolist() == [*expected, -1]


@pytest.mark.parametrize(
    "positives",
    [[[1, 7], [0]], [(7, 1, 1), range(0, 1)], ({7, 1}, frozenset([0])), [numpy.array([1, 7]), {0: 2}]],
)
def test_positives_may_come_in_any_collection(normal, bad_input, positives):
    queries, documents = normal(0, 2, 3), normal(1, 8, 3)
    expected = mine_hard_negatives(queries, documents, [{1, 7}, {0}], k=3)
    assert_close(mine_hard_negatives(queries, documents, positives, k=3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_positives_may_have_any_integer_dtype(normal, dtype):
    queries, documents = normal(0, 2, 3), normal(1, 8, 3)
    positives = torch.tensor([7, 0], dtype=dtype, device=queries.device)
    expected = mine_hard_negatives(queries, documents, [{7}, {0}], k=3, margin=0.1)
    assert_close(mine_hard_negatives(queries, documents, positives, k=3, margin=0.1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_mined_in_float32(normal, dtype):
    queries, documents = normal(0, 3, 300, dtype=dtype), normal(1, 9, 300, dtype=dtype)
    positives = [{0, 4}, {1}, {8}]
    scores, indices = mine_hard_negatives(queries, documents, positives, k=6, margin=0.01, block_size=4)
    exact, expected = mine_hard_negatives(queries.double(), documents.double(), positives, k=6, margin=0.01)
    assert scores.dtype == torch.float32
    assert torch.equal(indices, expected)
    assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_keep_the_dtype_and_indices_are_int64(normal, dtype):
    scores, indices = mine_hard_negatives(normal(0, 2, 4, dtype=dtype), normal(1, 5, 4, dtype=dtype), [[0], [1]], k=2)
    assert (indices.dtype, scores.dtype) == (torch.int64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_no_result_of_mining(normal, dtype):
    queries, documents = normal(0, 3, 50, dtype=dtype), normal(1, 9, 50, dtype=dtype)
    options = {"k": 9, "margin": 0.1, "block_size": 4}
    outside = mine_hard_negatives(queries, documents, [[0], [1], [2]], **options)
    with torch.autocast(queries.device.type, dtype=torch.bfloat16):
        assert_close(mine_hard_negatives(queries, documents, [[0], [1], [2]], **options), outside, rtol=0, atol=0)


margins = [{}, {"margin": 0.1}, {"margin": 0.1, "strategy": "absolute"}]


@pytest.mark.parametrize("options", margins)
@pytest.mark.parametrize("block_size", [None, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_document_without_a_number_is_never_mined(device, options, block_size, dtype):
    rows = [[math.nan, 1], [1, 0], [1, math.nan], [-1, 0], [math.nan, math.nan]]
    documents = torch.tensor(rows, dtype=dtype, device=device)
    query = torch.tensor([[1.0, 0.0]], dtype=dtype, device=device)
    found = mine_hard_negatives(query, documents, [{1}], k=3, block_size=block_size, **options)
    assert found.indices.tolist() == [[3, -1, -1]]
    assert found.scores.tolist() == [[-1, -math.inf, -math.inf]]


@pytest.mark.parametrize("options", margins)
def test_a_query_without_a_number_has_no_negatives(normal, options):
    queries, documents = normal(0, 3, 4), normal(1, 9, 4)
    others = mine_hard_negatives(queries, documents, [[0], [1], [2]], k=3, **options)
    queries[1, 0] = math.nan
    scores, indices = mine_hard_negatives(queries, documents, [[0], [1], [2]], k=3, **options)
    assert indices[1].tolist() == [-1] * 3 and scores[1].tolist() == [-math.inf] * 3
    assert torch.equal(scores[::2], others.scores[::2]) and torch.equal(indices[::2], others.indices[::2])


def test_a_positive_without_a_number_sets_no_margin_and_is_never_mined(normal):
    queries, documents = normal(0, 1, 4), normal(1, 5, 4)
    documents[2] = math.nan
    for positives in ([{2}], [{1, 2}], [{2, 1}]):
        without = mine_hard_negatives(queries, documents, positives, k=5)
        left = set(range(5)) - positives[0]
        assert without.indices[0].tolist()[: len(left)] != [-1] and set(without.indices[0].tolist()) == left | {-1}
        with_margin = mine_hard_negatives(queries, documents, positives, k=2, margin=0.1)
        assert with_margin.indices.tolist() == [[-1, -1]]


@pytest.mark.parametrize("margin", [None, 0.05])
def test_mining_a_large_corpus_is_exact(normal, margin):
    # large enough for two levels, several blocks of queries and documents; numbers of positives differ
    queries, documents = normal(0, 600, 8), normal(1, 9000, 8)
    positives = [{q, 8192 + q % 300, 8191} if q % 2 else {q} for q in range(600)]
    scores, indices = mine_hard_negatives(queries, documents, positives, k=10, margin=margin, range_min=2)
    expected = similarity_matrix(queries, documents)
    for q, known in enumerate(positives):
        limit = min(expected[q, d].item() for d in known)
        if margin is not None:
            expected[q, expected[q] > limit - abs(limit) * margin] = -math.inf
        expected[q, list(known)] = -math.inf
    best, places = expected.topk(12, dim=1)
    assert_close(scores, best[:, 2:])
    assert torch.equal(indices, places[:, 2:].masked_fill(best[:, 2:] == -math.inf, -1))


def test_the_pair_is_that_of_search(normal):
    documents = normal(0, 5, 3)
    mined, found = (
        mine_hard_negatives(documents, documents, [[d] for d in range(5)], k=1),
        search(documents, documents, k=1),
    )
    assert type(mined) is type(found)
    scores, indices = mined
    assert scores is mined.scores and indices is mined.indices


def test_a_zero_query_has_cosine_0_with_everything(device):
    queries = torch.zeros(1, 2, device=device)
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], device=device)
    relative, absolute = {"margin": 0.5}, {"margin": 0.5, "strategy": "absolute"}
    for options, found in (({}, [[0, 2]]), (relative, [[0, 2]]), (absolute, [[-1, -1]])):
        scores, indices = mine_hard_negatives(queries, documents, [[1]], k=2, **options)
        assert indices.tolist() == found
        assert scores.tolist() == [[0.0 if i >= 0 else -math.inf for i in found[0]]]


@pytest.mark.parametrize("positives", [[], torch.zeros(0, dtype=torch.int64)])
def test_no_query_finds_nothing(device, positives):
    if isinstance(positives, torch.Tensor):
        positives = positives.to(device)
    found = mine_hard_negatives(torch.zeros(0, 2, device=device), torch.zeros(3, 2, device=device), positives, k=2)
    assert [x.shape for x in found] == [(0, 2), (0, 2)]


def test_mining_records_no_gradient_and_mutates_nothing(normal):
    queries, documents = normal(0, 2, 4).requires_grad_(), normal(1, 5, 4).requires_grad_()
    positives = [{0, 1}, {2}]
    before = queries.detach().clone(), documents.detach().clone()
    scores, _ = mine_hard_negatives(queries, documents, positives, k=2, margin=0.1, block_size=2)
    assert not scores.requires_grad
    assert torch.equal(queries, before[0]) and torch.equal(documents, before[1])
    assert positives == [{0, 1}, {2}]


@pytest.mark.parametrize("block_size", [numpy.int64(2), 10**30])
def test_a_block_may_be_any_whole_number(normal, bad_input, block_size):
    queries, documents = normal(0, 5, 3), normal(1, 6, 3)
    arguments = queries, documents, torch.arange(5, device=queries.device)
    assert_close(*(mine_hard_negatives(*arguments, k=2, block_size=size) for size in (block_size, None)))


def test_no_more_than_a_block_of_scores_is_alive(normal, largest):
    queries, documents = normal(0, 60, 1), normal(1, 70, 1)
    positives = torch.arange(60, device=queries.device)
    with largest() as seen:
        mine_hard_negatives(queries, documents, positives, k=2, margin=0.1, block_size=10)
    assert seen.numel <= 10 * (10 + 2 + 2) + 1
    # by default
    rows, columns = (512, 8192) if queries.device.type == "cpu" else (4096, 9000)
    many = torch.ones(9000, 1, device=queries.device)
    positives = torch.zeros(9000, dtype=torch.int64, device=queries.device)
    with largest() as seen:
        mine_hard_negatives(many[:65], many, positives[:65], k=1)
    assert seen.numel == 65 * columns
    with largest() as seen:
        mine_hard_negatives(many, many[:30], positives, k=1)
    assert seen.numel == rows * 30


def test_the_default_block_holds_every_document_of_a_large_corpus(device):
    # the best are the positive, the first and the last, and those around the seam at 4096
    documents = torch.zeros(4096 + 10, 2, dtype=torch.float64, device=device)
    documents[:, 1] = 1.0
    for index, value in [(0, 2.0), (4095, 4.0), (4096, 5.0), (4105, 3.0), (4097, 6.0)]:
        documents[index, 0] = value
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device)
    _, indices = mine_hard_negatives(query, documents, [[4097]], k=4)
    assert indices.tolist() == [[4096, 4095, 4105, 0]]


def test_mining_compiles_without_a_graph_break(normal, bad_input):
    # which also says that no value is read
    # the module run as a file: the check of shapes wraps inner functions too, and dynamo can't trace that
    unhooked = runpy.run_path(mathlib._hard_negatives.__file__)["mine_hard_negatives"]
    queries, documents = normal(0, 3, 4), normal(1, 9, 4)
    positives = torch.arange(3, device=queries.device)
    compiled = torch.compile(unhooked, backend="eager", fullgraph=True)
    options = {"k": 3, "margin": 0.1, "block_size": 4}
    expected = mine_hard_negatives(queries, documents, positives, **options)
    assert_close(compiled(queries, documents, positives, **options), expected)


# Gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@each_rule
def test_gradcheck_of_info_nce_with_the_rule(normal, layout, name):
    tensors, how = batch(normal, layout)

    def losses(*tensors):
        return info_nce(*tensors, temperature=0.4, weigh=RULES[name], block_size=3, reduction="none", **how)

    leaves = tuple(x.requires_grad_() for x in tensors if x is not None)
    assert torch.autograd.gradcheck(losses, leaves, fast_mode=True)


# What is refused, and how

GOOD = {"positive_scores": torch.zeros(2, 1), "candidate_scores": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    "rule",
    [
        partial(hard_negatives, threshold=0.5),
        partial(semi_hard_negatives, margin=0.5),
        partial(top_k_negatives, k=1),
        partial(hardness_weights, strength=1.0),
    ],
)
@pytest.mark.parametrize("wrong, error, message", WRONG_SCORES)
def test_rules_say_what_is_wrong_with_scores(bad_input, rule, wrong, error, message):
    with pytest.raises(error) as caught:
        rule(**{**GOOD, **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "rule, options, error, message",
    [
        (hard_negatives, {"threshold": math.nan}, ValueError, "threshold must be a finite number, was nan"),
        (hard_negatives, {"threshold": -math.inf}, ValueError, "threshold must be a finite number, was -inf"),
        (hard_negatives, {"threshold": None}, TypeError, "threshold must be a finite number, was NoneType"),
        (semi_hard_negatives, {"margin": -0.1}, ValueError, "margin must be a finite number and >= 0, was -0.1"),
        (semi_hard_negatives, {"margin": math.inf}, ValueError, "margin must be a finite number and >= 0, was inf"),
        (semi_hard_negatives, {"margin": "0.1"}, TypeError, "margin must be a finite number and >= 0, was str"),
        (
            semi_hard_negatives,
            {"margin": 0.1, "side": "left"},
            ValueError,
            "side must be one of 'above', 'below', was 'left'",
        ),
        (
            semi_hard_negatives,
            {"margin": 0.1, "side": None},
            ValueError,
            "side must be one of 'above', 'below', was None",
        ),
        (top_k_negatives, {"k": 0}, ValueError, "k must be an int >= 1, was 0"),
        (top_k_negatives, {"k": -3}, ValueError, "k must be an int >= 1, was -3"),
        (top_k_negatives, {"k": 1.0}, TypeError, "k must be an int >= 1, was float"),
        (top_k_negatives, {"k": True}, TypeError, "k must be an int >= 1, was bool"),
        (hardness_weights, {"strength": -1}, ValueError, "strength must be a finite number and >= 0, was -1"),
        (hardness_weights, {"strength": math.inf}, ValueError, "strength must be a finite number and >= 0, was inf"),
        (hardness_weights, {"strength": None}, TypeError, "strength must be a finite number and >= 0, was NoneType"),
    ],
)
def test_rules_say_what_is_wrong_with_an_option(bad_input, rule, options, error, message):
    with pytest.raises(error) as caught:
        rule(**GOOD, **options)
    assert str(caught.value) == message


time, length = "step must be a finite number and >= 0, was", "total_steps must be a finite number and > 0, was"


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"step": -1}, ValueError, f"{time} -1"),
        ({"step": math.inf}, ValueError, f"{time} inf"),
        ({"step": math.nan}, ValueError, f"{time} nan"),
        ({"step": None}, TypeError, f"{time} NoneType"),
        ({"step": True}, TypeError, f"{time} bool"),
        ({"start": math.nan}, ValueError, "start must be a finite number, was nan"),
        ({"start": "0"}, TypeError, "start must be a finite number, was str"),
        ({"end": -math.inf}, ValueError, "end must be a finite number, was -inf"),
        ({"end": torch.tensor(1.0)}, TypeError, "end must be a finite number, was Tensor"),
        ({"total_steps": 0}, ValueError, f"{length} 0"),
        ({"total_steps": -5}, ValueError, f"{length} -5"),
        ({"total_steps": math.inf}, ValueError, f"{length} inf"),
        ({"total_steps": 1j}, TypeError, f"{length} complex"),
        ({"shape": "exponential"}, ValueError, "shape must be one of 'linear', 'cosine', was 'exponential'"),
        ({"shape": None}, ValueError, "shape must be one of 'linear', 'cosine', was None"),
        # also after the last step
        ({"step": 99, "shape": "step"}, ValueError, "shape must be one of 'linear', 'cosine', was 'step'"),
    ],
)
def test_curriculum_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        curriculum(**{"step": 1, "start": 0.0, "end": 1.0, "total_steps": 10, **wrong})
    assert str(caught.value) == message


three, two = torch.zeros(3, 4), torch.zeros(2, 4)
count = "k must be an int >= 1 and <= 3 (the number of documents), was"


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"queries": [[0.0] * 4]}, TypeError, "queries must be a torch.Tensor, was list"),
        ({"documents": None}, TypeError, "documents must be a torch.Tensor, was NoneType"),
        ({"queries": two.long()}, TypeError, "queries must have a floating-point dtype, was torch.int64"),
        ({"documents": three.bool()}, TypeError, "documents must have a floating-point dtype, was torch.bool"),
        (
            {"documents": three.half()},
            TypeError,
            "documents must have the dtype of queries, torch.float32, was torch.float16",
        ),
        ({"documents": three.to("meta")}, ValueError, "documents must be on the device of queries, cpu, was meta"),
        ({"queries": torch.zeros(4)}, ValueError, "queries must have shape [Q, D], was [4]"),
        ({"documents": three[None]}, ValueError, "documents must have shape [N, D] = [N, 4], was [1, 3, 4]"),
        ({"documents": torch.zeros(3, 5)}, ValueError, "documents must have shape [N, D] = [N, 4], was [3, 5]"),
        ({"documents": torch.zeros(0, 4)}, ValueError, "documents must have at least one row, was [0, 4]"),
        (
            {"queries": torch.zeros(2, 0), "documents": torch.zeros(3, 0)},
            ValueError,
            "queries must have at least one feature, was [2, 0]",
        ),
        ({"positive_indices": torch.ones(2)}, TypeError, "positive_indices must hold integers, was torch.float32"),
        ({"positive_indices": torch.ones(2).bool()}, TypeError, "positive_indices must hold integers, was torch.bool"),
        ({"positive_indices": torch.tensor([1])}, ValueError, "positive_indices must have shape [2], was [1]"),
        ({"positive_indices": torch.ones(2, 1).long()}, ValueError, "positive_indices must have shape [2], was [2, 1]"),
        (
            {"positive_indices": torch.tensor([0, 1], device="meta")},
            ValueError,
            "positive_indices must be on the device of queries, cpu, was meta",
        ),
        (
            {"positive_indices": 2},
            TypeError,
            "positive_indices must be a tensor or a sequence of collections, was int",
        ),
        (
            {"positive_indices": [{2}]},
            ValueError,
            "positive_indices must have one collection for each of 2 queries, was 1",
        ),
        (
            {"positive_indices": [0, 1]},
            TypeError,
            "positive_indices must hold a collection for every query, item 0 was int",
        ),
        (
            {"positive_indices": [{0}, []]},
            ValueError,
            "positive_indices must have a document for every query, item 1 was empty",
        ),
        ({"positive_indices": [{0}, [1.0]]}, TypeError, "positive_indices must hold ints, item 1 had a float"),
        ({"positive_indices": [{0}, [0, 3]]}, ValueError, "positive_indices must lie in 0..2, item 1 had 3"),
        ({"positive_indices": [{-1}, [0]]}, ValueError, "positive_indices must lie in 0..2, item 0 had -1"),
        (
            {"positive_indices": [{0: 1}, {1: 0, 2: -1}]},
            ValueError,
            "positive_indices must have a grade above 0 for every query, item 1 had none",
        ),
        (
            {"positive_indices": [{0: 1}, {1: 1, 3: 0}]},
            ValueError,
            "positive_indices must lie in 0..2, item 1 had 3",
        ),
        (
            {"positive_indices": [{0: None}, {1}]},
            TypeError,
            "positive_indices must have numbers as grades, item 0 had a NoneType for document 0",
        ),
        ({"positive_indices": torch.tensor([0, 3])}, IndexError, "index out of range in self"),
        ({"positive_indices": torch.tensor([-1, 0])}, IndexError, "index out of range in self"),
        ({"k": 0}, ValueError, f"{count} 0"),
        ({"k": 4}, ValueError, f"{count} 4"),
        ({"k": 1.0}, TypeError, f"{count} float"),
        ({"margin": -0.1}, ValueError, "margin must be a finite number and >= 0, was -0.1"),
        ({"margin": math.nan}, ValueError, "margin must be a finite number and >= 0, was nan"),
        ({"margin": "0.1"}, TypeError, "margin must be a finite number and >= 0, was str"),
        ({"strategy": "threshold"}, ValueError, "strategy must be one of 'relative', 'absolute', was 'threshold'"),
        (
            {"strategy": None, "margin": 0.1},
            ValueError,
            "strategy must be one of 'relative', 'absolute', was None",
        ),
        ({"range_min": -1}, ValueError, "range_min must be an int >= 0, was -1"),
        ({"range_min": 1.0}, TypeError, "range_min must be an int >= 0, was float"),
        ({"range_min": None}, TypeError, "range_min must be an int >= 0, was NoneType"),
        ({"block_size": 0}, ValueError, "block_size must be an int >= 1, was 0"),
        ({"block_size": 8.0}, TypeError, "block_size must be an int >= 1, was float"),
    ],
)
def test_mine_hard_negatives_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        mine_hard_negatives(
            **{"queries": two, "documents": three, "positive_indices": torch.tensor([0, 1]), "k": 1, **wrong}
        )
    assert str(caught.value) == message


def test_an_empty_corpus_has_no_positive_to_name(bad_input):
    with pytest.raises(ValueError) as caught:
        mine_hard_negatives(two[:0], three[:0], [], k=1)
    assert str(caught.value) == "documents must have at least one row, was [0, 4]"
