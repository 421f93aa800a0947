import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from by_hand import DTYPES, HALVES, LAYOUTS, batch, info_nce_by_hand, lists
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from wrong_scores import WRONG_SCORES

from mathlib import contrastive_loss, false_negative_weights, info_nce, similarity_matrix

seeds = st.integers(0, 2**32)

# each strategy, with options for which some scores are flagged and some are not
OPTIONS = {
    "threshold": {"strategy": "threshold", "threshold": 0.25, "alpha": 0.5},
    "absolute": {"strategy": "absolute", "margin": 0.25, "alpha": 0.125},
    "relative": {"strategy": "relative", "margin": 0.5},
}
each_strategy = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())

# By hand


def test_threshold_by_hand(device):
    positive = torch.tensor([[0.1], [0.9]], device=device)
    candidates = torch.tensor([[0.75, 0.5, 0.25], [0.5, 0.625, 1.0]], device=device)
    weights = false_negative_weights(positive, candidates, strategy="threshold", threshold=0.5)
    assert weights.tolist() == [[0, 1, 1], [1, 0, 0]]  # equality keeps; the positive plays no part


def test_absolute_margin_by_hand(device):
    positive = torch.tensor([[0.75], [0.25]], device=device)
    candidates = torch.tensor([[0.75, 0.625, 0.5, 0.25], [0.125, 0.0, -0.125, 0.375]], device=device)
    # limits 0.75 - 0.25 = 0.5 and 0.25 - 0.25 = 0
    weights = false_negative_weights(positive, candidates, strategy="absolute", margin=0.25)
    assert weights.tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    # without a margin: what is more similar than the positive, not what ties with it
    weights = false_negative_weights(positive, candidates, strategy="absolute", margin=0)
    assert weights.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_relative_margin_by_hand(device):
    # limits 0.5 - 0.125 = 0.375, -0.5 - 0.125 = -0.625, 0 - 0 = 0
    positive = torch.tensor([[0.5], [-0.5], [0.0]], device=device)
    candidates = torch.tensor(
        [[0.5, 0.4, 0.375, 0.3], [-0.4, -0.6, -0.625, -0.7], [0.1, 0.0, -0.1, 0.2]], device=device
    )
    weights = false_negative_weights(positive, candidates, strategy="relative", margin=0.25)
    assert weights.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0]]


def test_alpha_is_the_weight_of_what_is_flagged(device):
    positive, candidates = torch.zeros(1, 1, device=device), torch.tensor([[1.0, -1.0]], device=device)
    for alpha in (0, 0.25, 1.0):
        weights = false_negative_weights(positive, candidates, strategy="absolute", margin=0.5, alpha=alpha)
        assert weights.tolist() == [[alpha, 1]]


def test_removing_a_false_negative_from_a_batch_by_hand(device):
    # anchors 0 and 1 mean the same; what is left for each is the third positive: log(1 + e^-1)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, device=device)
    rule = partial(false_negative_weights, strategy="absolute", margin=0.1)
    losses = info_nce(x, x, temperature=1.0, weigh=rule, reduction="none")
    alone, third = math.log(1 + math.exp(-1)), math.log(1 + 2 * math.exp(-1))
    assert losses.tolist() == pytest.approx([alone, alone, third], rel=1e-14)


# By a loop over Python floats


def loop_weight(s_p, s, strategy, threshold=None, margin=None, alpha=0.0):
    if strategy == "threshold":
        flagged = s > threshold
    elif strategy == "absolute":
        flagged = s_p - s < margin
    elif s_p >= 0:
        flagged = s > s_p * (1 - margin)
    else:
        flagged = s > s_p * (1 + margin)
    return alpha if flagged else 1.0


margins = st.floats(0, 3)


@given(
    seeds,
    st.one_of(
        st.fixed_dictionaries({"strategy": st.just("threshold"), "threshold": st.floats(-2, 2)}),
        st.fixed_dictionaries({"strategy": st.sampled_from(["absolute", "relative"]), "margin": margins}),
    ),
    st.floats(0, 1),
)
def test_weights_are_the_loop(normal, seed, options, alpha):
    positive, candidates = normal(seed, 3, 1), normal(seed + 1, 3, 5)
    weights = false_negative_weights(positive, candidates, **options, alpha=alpha)
    rows = zip(positive.tolist(), candidates.tolist(), strict=True)
    assert weights.tolist() == [[loop_weight(s_p, s, **options, alpha=alpha) for s in row] for [s_p], row in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
@each_strategy
@pytest.mark.parametrize("block_size", [None, 1, 3])
def test_as_a_rule_of_info_nce_it_is_the_loop(normal, layout, options, block_size):
    tensors, how = batch(normal, layout)
    expected = info_nce_by_hand(
        *lists(tensors), **how, weigh=lambda s_p, scores: [loop_weight(s_p, s, **options) for s in scores]
    )
    rule = partial(false_negative_weights, **options)
    ours = info_nce(*tensors, temperature=0.3, **how, weigh=rule, block_size=block_size, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)
    unweighted = info_nce(*tensors, temperature=0.3, **how, reduction="none")
    assert (ours < unweighted).any()


# Peers


def test_removal_agrees_with_cross_entropy_of_masked_logits(normal):
    anchor, positive = normal(0, 6, 3).requires_grad_(), normal(1, 6, 3).requires_grad_()
    rule = partial(false_negative_weights, strategy="absolute", margin=0.0)
    ours = info_nce(anchor, positive, temperature=0.2, weigh=rule)
    scores = similarity_matrix(anchor, positive)
    logits = scores.masked_fill(scores > scores.diagonal()[:, None], -math.inf) / 0.2
    assert logits.isinf().any()
    theirs = F.cross_entropy(logits, torch.arange(6, device=logits.device))
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(loss, (anchor, positive)) for loss in (ours, theirs)))


# What must hold for all scores

# multiples of 1/64, on which sums and differences are exact
exact = st.integers(-128, 128).map(lambda n: n / 64)
rows = st.tuples(exact, st.lists(exact, min_size=5, max_size=5))


def tensors_of(row, device):
    s_p, candidates = row
    return (torch.tensor(x, dtype=torch.float64, device=device) for x in ([[s_p]], [candidates]))


@given(rows, st.permutations(range(5)), st.sampled_from(sorted(OPTIONS)))
def test_permuted_candidates_have_permuted_weights(device, row, order, name):
    positive, candidates = tensors_of(row, device)
    weights = false_negative_weights(positive, candidates, **OPTIONS[name])
    assert torch.equal(false_negative_weights(positive, candidates[:, order], **OPTIONS[name]), weights[:, order])


@given(rows, exact, exact.map(abs))
def test_a_shift_of_all_scores_changes_no_absolute_margin(device, row, shift, margin):
    positive, candidates = tensors_of(row, device)
    options = {"strategy": "absolute", "margin": margin}
    once = false_negative_weights(positive, candidates, **options)
    assert torch.equal(false_negative_weights(positive + shift, candidates + shift, **options), once)


@given(rows, exact, exact)
def test_a_shift_of_scores_and_threshold_changes_nothing(device, row, shift, threshold):
    positive, candidates = tensors_of(row, device)
    once = false_negative_weights(positive, candidates, strategy="threshold", threshold=threshold)
    shifted = false_negative_weights(positive, candidates + shift, strategy="threshold", threshold=threshold + shift)
    assert torch.equal(shifted, once)


@given(rows, st.sampled_from([0.25, 0.5, 2.0, 8.0]), exact.map(abs))
def test_a_scale_of_all_scores_changes_no_relative_margin(device, row, scale, margin):
    positive, candidates = tensors_of(row, device)
    options = {"strategy": "relative", "margin": margin}
    once = false_negative_weights(positive, candidates, **options)
    assert torch.equal(false_negative_weights(positive * scale, candidates * scale, **options), once)


@given(rows, exact.map(abs))
def test_one_row_reaches_one_limit_by_three_roads(device, row, margin):
    positive, candidates = tensors_of(row, device)
    s_p = positive.item()
    absolute = false_negative_weights(positive, candidates, strategy="absolute", margin=margin)
    threshold = false_negative_weights(positive, candidates, strategy="threshold", threshold=s_p - margin)
    assert torch.equal(threshold, absolute)
    relative = false_negative_weights(positive, candidates, strategy="relative", margin=margin)
    absolute = false_negative_weights(positive, candidates, strategy="absolute", margin=abs(s_p) * margin)
    assert torch.equal(relative, absolute)


@given(rows, exact.map(abs), exact.map(abs), st.sampled_from(["absolute", "relative"]))
def test_a_larger_margin_keeps_no_more(device, row, margin, more, strategy):
    positive, candidates = tensors_of(row, device)
    once, later = (
        false_negative_weights(positive, candidates, strategy=strategy, margin=m) for m in (margin, margin + more)
    )
    assert (later <= once).all()


@given(seeds, st.sampled_from(sorted(OPTIONS)))
def test_rows_do_not_see_each_other(normal, seed, name):
    positive, candidates = normal(seed, 3, 1), normal(seed + 1, 3, 4)
    together = false_negative_weights(positive, candidates, **OPTIONS[name])
    apart = [false_negative_weights(positive[[b]], candidates[[b]], **OPTIONS[name]) for b in range(3)]
    assert torch.equal(torch.cat(apart), together)


@given(seeds, st.sampled_from(sorted(OPTIONS)))
def test_alpha_0_equals_deletion(normal, seed, name):
    anchor, positive, pool = normal(seed, 4, 3), normal(seed + 1, 4, 3), normal(seed + 2, 5, 3)
    rule = partial(false_negative_weights, **{**OPTIONS[name], "alpha": 0.0})
    s_p, scores = similarity_matrix(anchor, positive).diagonal(), similarity_matrix(anchor, pool)
    kept = [row[w > 0] for row, w in zip(scores, rule(s_p[:, None], scores), strict=True)]
    expected = [
        contrastive_loss(s_p[[b]], row[None], temperature=0.1) if len(row) else torch.zeros_like(s_p[0])
        for b, row in enumerate(kept)
    ]
    ours = info_nce(anchor, positive, pool, in_batch=False, temperature=0.1, weigh=rule, reduction="none")
    assert_close(ours, torch.stack(expected))


@given(seeds, st.floats(1e-6, 1), st.floats(0.05, 10))
def test_alpha_lowers_a_score_by_tau_ln_alpha(normal, seed, alpha, temperature):
    positive, candidates = normal(seed, 4), normal(seed + 1, 4, 5)
    weights = false_negative_weights(positive[:, None], candidates, strategy="absolute", margin=0.3, alpha=alpha)
    lowered = torch.where(candidates > positive[:, None] - 0.3, candidates + temperature * math.log(alpha), candidates)
    assert_close(
        contrastive_loss(positive, candidates, temperature=temperature, weights=weights),
        contrastive_loss(positive, lowered, temperature=temperature),
    )


@given(seeds)
def test_two_rules_multiply(normal, seed):
    (anchor, positive, _), how = batch(normal, "batch", seed)
    rules = [partial(false_negative_weights, **OPTIONS[name]) for name in ("threshold", "absolute")]
    both = info_nce(anchor, positive, weigh=lambda *scores: rules[0](*scores) * rules[1](*scores))
    assert_close(info_nce(anchor, positive, weigh=rules), both)


# Edges


@each_strategy
@pytest.mark.parametrize("s_p", [-math.inf, -1.0, 0.0, 1.0])
def test_minus_infinity_is_never_flagged(device, options, s_p):
    gone = torch.tensor([[-math.inf, 1.5]], device=device)
    weights = false_negative_weights(torch.tensor([[s_p]], device=device), gone, **options)
    assert weights[0, 0] == 1


@each_strategy
def test_what_is_no_number_is_not_hidden(device, options):
    candidates = torch.tensor([[math.nan, 2.0]], device=device)
    positive = torch.zeros(1, device=device)
    weights = false_negative_weights(positive[:, None], candidates, **options)
    assert weights[0, 0] == 1
    assert contrastive_loss(positive, candidates, temperature=0.1, weights=weights).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@each_strategy
def test_weights_have_the_scores_dtype_or_float32(normal, dtype, options):
    positive, candidates = normal(0, 4, 1, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    weights = false_negative_weights(positive, candidates, **options)
    assert weights.dtype == (torch.float32 if dtype in HALVES else dtype)
    exactly = false_negative_weights(positive.double(), candidates.double(), **options)
    assert torch.equal(weights.double(), exactly)
    assert weights.unique().numel() == 2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
def test_half_precision_is_compared_in_float32(device, dtype, strategy):
    # in half precision 1 - 1e-4 is 1, and an alpha of 1e-9 is 0 in float16
    one = torch.ones(1, 1, dtype=dtype, device=device)
    weights = false_negative_weights(one, one, strategy=strategy, margin=1e-4, alpha=1e-9)
    assert_close(weights, torch.full_like(weights, 1e-9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@each_strategy
def test_autocast_changes_nothing(normal, dtype, options):
    positive, candidates = normal(0, 4, 1, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    outside = false_negative_weights(positive, candidates, **options)
    with torch.autocast(positive.device.type, dtype=torch.bfloat16):
        assert_close(false_negative_weights(positive, candidates, **options), outside, rtol=0, atol=0)


@each_strategy
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_row_and_no_candidate_have_no_weights(device, options, shape):
    positive, candidates = torch.zeros(shape[0], 1, device=device), torch.zeros(shape, device=device)
    assert false_negative_weights(positive, candidates, **options).shape == shape


@each_strategy
def test_no_gradient_flows_and_nothing_is_mutated(normal, options):
    positive, candidates = normal(0, 3, 1).requires_grad_(), normal(1, 3, 4).requires_grad_()
    before = positive.detach().clone(), candidates.detach().clone()
    weights = false_negative_weights(positive, candidates, **options)
    assert not weights.requires_grad
    assert torch.equal(positive, before[0]) and torch.equal(candidates, before[1])
    assert weights.untyped_storage().data_ptr() != candidates.untyped_storage().data_ptr()


@each_strategy
def test_no_value_is_read(bad_input, options):
    # on the meta device there are none
    positive, candidates = torch.zeros(2, 1, device="meta"), torch.zeros(2, 3, device="meta")
    assert false_negative_weights(positive, candidates, **options).shape == (2, 3)


@each_strategy
def test_compiles_without_a_graph_break_while_options_change(normal, bad_input, options):
    torch.compiler.reset()  # other tests' graphs count towards the limit of recompilations
    compiled = torch.compile(false_negative_weights, backend="eager", fullgraph=True)
    positive, candidates = normal(0, 3, 1), normal(1, 3, 4)
    option = "threshold" if "threshold" in options else "margin"
    for value in (0.1, 0.2, 0.3):
        now = {**options, option: value, "alpha": value}
        assert torch.equal(compiled(positive, candidates, **now), false_negative_weights(positive, candidates, **now))


# Gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@each_strategy
@pytest.mark.parametrize("block_size", [None, 3])
def test_gradcheck_of_info_nce_with_the_rule(normal, layout, options, block_size):
    tensors, how = batch(normal, layout)
    rule = partial(false_negative_weights, **options)

    def losses(*tensors):
        return info_nce(*tensors, temperature=0.4, weigh=rule, block_size=block_size, reduction="none", **how)

    leaves = tuple(x.requires_grad_() for x in tensors if x is not None)
    assert torch.autograd.gradcheck(losses, leaves, fast_mode=True)


# What is refused, and how

GOOD = {
    "positive_scores": torch.zeros(2, 1),
    "candidate_scores": torch.zeros(2, 3),
    "strategy": "absolute",
    "margin": 0.1,
}
THRESHOLD = {"strategy": "threshold", "threshold": 0.5, "margin": None}
RELATIVE = {"strategy": "relative"}
number, positive_number = "must be a finite number, was", "must be a finite number and >= 0, was"
share = "alpha must be a finite number and >= 0 and <= 1, was"


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        *WRONG_SCORES,
        (
            {"strategy": "percentage"},
            ValueError,
            "strategy must be one of 'threshold', 'absolute', 'relative', was 'percentage'",
        ),
        ({"strategy": None}, ValueError, "strategy must be one of 'threshold', 'absolute', 'relative', was None"),
        (
            THRESHOLD | {"threshold": None},
            ValueError,
            "threshold must be given with strategy 'threshold', was None",
        ),
        (THRESHOLD | {"margin": 0.1}, ValueError, "margin must not be given with strategy 'threshold', was 0.1"),
        ({"margin": None}, ValueError, "margin must be given with strategy 'absolute', was None"),
        (RELATIVE | {"margin": None}, ValueError, "margin must be given with strategy 'relative', was None"),
        ({"threshold": 0.5}, ValueError, "threshold must not be given with strategy 'absolute', was 0.5"),
        (RELATIVE | {"threshold": 0}, ValueError, "threshold must not be given with strategy 'relative', was 0"),
        (THRESHOLD | {"threshold": math.nan}, ValueError, f"threshold {number} nan"),
        (THRESHOLD | {"threshold": math.inf}, ValueError, f"threshold {number} inf"),
        (THRESHOLD | {"threshold": "0.5"}, TypeError, f"threshold {number} str"),
        (THRESHOLD | {"threshold": torch.tensor(0.5)}, TypeError, f"threshold {number} Tensor"),
        ({"margin": -0.1}, ValueError, f"margin {positive_number} -0.1"),
        (RELATIVE | {"margin": -0.1}, ValueError, f"margin {positive_number} -0.1"),
        ({"margin": math.inf}, ValueError, f"margin {positive_number} inf"),
        ({"margin": True}, TypeError, f"margin {positive_number} bool"),
        ({"alpha": -0.1}, ValueError, f"{share} -0.1"),
        ({"alpha": 1.1}, ValueError, f"{share} 1.1"),
        ({"alpha": math.nan}, ValueError, f"{share} nan"),
        ({"alpha": None}, TypeError, f"{share} NoneType"),
    ],
)
def test_false_negative_weights_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        false_negative_weights(**{**GOOD, **wrong})
    assert str(caught.value) == message


def test_options_go_by_name_and_the_strategy_is_asked_for():
    with pytest.raises(TypeError, match="positional"):
        false_negative_weights(torch.zeros(2, 1), torch.zeros(2, 3), "absolute")
    with pytest.raises(TypeError, match="strategy"):
        false_negative_weights(torch.zeros(2, 1), torch.zeros(2, 3), margin=0.1)
