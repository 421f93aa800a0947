import math
import runpy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from by_hand import DTYPES, FURTHER, LAYOUTS, batch, cosine, info_nce_by_hand, lists, row_loss
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import mathlib._contrastive
from mathlib import contrastive_loss, info_nce

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_layout_of_all = pytest.mark.parametrize("layout", LAYOUTS | FURTHER)


def losses_and_gradients(tensors, temperature=0.3, forward=nullcontext(), **options):
    """Each row's loss, and the gradient of their weighted sum to every tensor and to the temperature."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in tensors]
    temperature = torch.tensor(temperature, dtype=torch.float64, device=tensors[0].device, requires_grad=True)
    with forward:
        losses = info_nce(*leaves, temperature=temperature, reduction="none", **options)
    upstream = torch.arange(1, len(losses) + 1).to(losses)
    leaves = [x for x in leaves if x is not None] + [temperature]
    return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream)]


# Rules, for numbers as well as for tensors


def half_if_harder(s_p, s):
    return 1.0 - 0.5 * (s > s_p)


def remove_if_easy(s_p, s):
    return 1.0 * (s > -0.5)


def smooth(s_p, s):
    return (s - s_p + 3) ** 2  # inf where the positive reads -inf


# By hand


def test_the_notes_formula_on_two_negatives(device):
    # s_p = 2 t, s_i = t, 0: e^2 / (e^2 + e + 1) = 7.3891 / 11.1073 = 0.6652, and -log of it is 0.4076
    loss = contrastive_loss(
        torch.tensor([1.0], device=device), torch.tensor([[0.5, 0.0]], device=device), temperature=0.5
    )
    assert loss.item() == pytest.approx(-math.log(math.e**2 / (math.e**2 + math.e + 1)), rel=1e-6)
    assert loss.item() == pytest.approx(0.4076, abs=5e-5)


def test_weights_multiply_the_exponentials(device):
    # all scores equal: 1 / (1 + 3 + 1/2) = 2 / 9
    scores = torch.ones(1, 2, device=device)
    weights = torch.tensor([[3.0, 0.5]], device=device)
    loss = contrastive_loss(scores[:, 0], scores, temperature=0.1, weights=weights)
    assert loss.item() == pytest.approx(math.log(9 / 2), rel=1e-6)


def test_reduction_is_mean_sum_or_none(device):
    # 1, 3 candidates that tie with the positive: log 2 and log 4 = 2 log 2; -inf deletes
    negatives = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 0.0, 0.0]], device=device)
    rows = torch.tensor([math.log(2), math.log(4)], device=device)
    loss = {
        reduction: contrastive_loss(torch.zeros(2, device=device), negatives, temperature=0.7, reduction=reduction)
        for reduction in ("none", "mean", "sum")
    }
    assert_close(loss["none"], rows)
    assert_close(loss["mean"], rows.mean())
    assert_close(loss["sum"], rows.sum())
    assert_close(contrastive_loss(torch.zeros(2, device=device), negatives, temperature=0.7), rows.mean())


def test_a_batch_of_two(device):
    # cosines: anchor 0 with the positives 1, 1/sqrt 2; anchor 1 with them 0, 1/sqrt 2
    anchor = torch.eye(2, dtype=torch.float64, device=device)
    positive = torch.tensor([[1.0, 0.0], [5.0, 5.0]], dtype=torch.float64, device=device)
    r = math.sqrt(0.5)
    forward = [math.log(1 + math.exp(r - 1)), math.log(1 + math.exp(0 - r))]
    backward = [math.log(1 + math.exp(0 - 1)), math.log(1 + math.exp(r - r))]
    losses = info_nce(anchor, positive, temperature=1.0, reduction="none")
    assert losses.tolist() == pytest.approx(forward, rel=1e-14)
    losses = info_nce(anchor, positive, temperature=1.0, reduction="none", symmetric=True)
    assert losses.tolist() == pytest.approx([(f + b) / 2 for f, b in zip(forward, backward, strict=True)], rel=1e-14)


def test_defaults_are_temperature_0_05_in_batch_one_direction_and_the_mean(device):
    anchor = torch.eye(2, dtype=torch.float64, device=device)
    positive = torch.tensor([[1.0, 0.0], [5.0, 5.0]], dtype=torch.float64, device=device)
    r = math.sqrt(0.5)
    by_hand = (math.log(1 + math.exp((r - 1) / 0.05)) + math.log(1 + math.exp((0 - r) / 0.05))) / 2
    assert info_nce(anchor, positive).item() == pytest.approx(by_hand, rel=1e-13)


# By a loop over Python floats (by_hand.py)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_contrastive_loss_is_the_loop(normal, temperature):
    positive, negatives, weights = normal(0, 4), normal(1, 4, 5), normal(2, 4, 5).exp()
    rows = zip(positive.tolist(), negatives.tolist(), weights.tolist(), strict=True)
    expected = [row_loss(*row, temperature) for row in rows]
    ours = contrastive_loss(positive, negatives, temperature=temperature, weights=weights, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@each_layout_of_all
@pytest.mark.parametrize("rule", [None, half_if_harder, remove_if_easy, smooth])
def test_info_nce_is_the_loop(normal, layout, rule):
    tensors, options = batch(normal, layout)
    weigh = {} if rule is None else {"weigh": lambda s_p, scores: [rule(s_p, s) for s in scores]}
    expected = info_nce_by_hand(*lists(tensors), **options, **weigh)
    ours = info_nce(*tensors, temperature=0.3, **options, weigh=rule, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


def test_groups_are_rules_that_know_the_labels_whatever_the_scores(normal):
    # the four rows of group 1 are alike: no score tells them apart, and each has but one candidate, row 1
    anchor = torch.cat([normal(0, 1, 3).expand(4, 3), normal(1, 1, 3)])
    groups = torch.tensor([1, 1, 1, 1, 7], device=anchor.device)
    losses = info_nce(anchor, anchor, temperature=1.0, groups=groups, reduction="none")
    among_two = math.log(1 + math.exp(cosine(anchor[0].tolist(), anchor[4].tolist()) - 1))
    of_the_last = math.log(1 + 4 * math.exp(cosine(anchor[0].tolist(), anchor[4].tolist()) - 1))
    assert losses.tolist() == pytest.approx([among_two] * 4 + [of_the_last], rel=1e-12)


def test_labels_that_all_differ_remove_nothing(normal):
    tensors, options = batch(normal, "batch and pool, both directions")
    labels = torch.arange(8, device=tensors[0].device)
    whole = losses_and_gradients(tensors, **options)
    same = losses_and_gradients(tensors, **options, groups=labels[:5] - 100, negative_groups=labels[5:])
    assert_close(same, whole)


def test_labels_that_are_all_the_same_leave_the_positive_alone(normal):
    tensors, options = batch(normal, "batch and pool, both directions")
    labels = torch.zeros(8, dtype=torch.int32, device=tensors[0].device)
    for x in losses_and_gradients(tensors, **options, groups=labels[:5], negative_groups=labels[5:]):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [layout for layout in FURTHER if "groups" in layout])
def test_a_rule_does_not_see_what_a_group_removes(normal, layout):
    tensors, options = batch(normal, layout)

    def hardest(s_p, s):
        return (s == s.amax(dim=1, keepdim=True)).to(s)

    expected = info_nce_by_hand(
        *lists(tensors), **options, weigh=lambda s_p, scores: [float(s == max(scores)) for s in scores]
    )
    ours = info_nce(*tensors, temperature=0.3, **options, weigh=hardest, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


def test_labels_that_change_after_the_call_have_no_part_in_the_gradient(normal):
    (anchor, positive, _), options = batch(normal, "batch in groups")
    (expected,) = torch.autograd.grad(
        info_nce(anchor.requires_grad_(), positive, **options, reduction="none").sum(), anchor
    )
    losses = info_nce(anchor, positive, **options, reduction="none")
    options["groups"].zero_()
    assert torch.equal(torch.autograd.grad(losses.sum(), anchor)[0], expected)


def test_both_directions_with_the_anchors_among_themselves_are_simclrs_loss(normal):
    # every one of the 2 B views against all others but itself (Chen et al. 2020, arXiv:2002.05709, eq. 1)
    (anchor, positive, _), _ = batch(normal, "batch")
    views = F.normalize(torch.cat([anchor, positive]), dim=1)
    logits = (views @ views.T / 0.3).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(10, device=logits.device).roll(5))
    assert_close(info_nce(anchor, positive, temperature=0.3, symmetric=True, contrast_anchors=True), expected)


# Peers


def test_agrees_with_cross_entropy_of_weighted_logits(normal):
    positive, negatives = normal(0, 4).requires_grad_(), normal(1, 4, 5).requires_grad_()
    weights, temperature = normal(2, 4, 5).exp(), normal(3).exp().requires_grad_()
    ours = contrastive_loss(positive, negatives, temperature=temperature, weights=weights)
    logits = torch.cat([positive[:, None] / temperature, negatives / temperature + weights.log()], dim=1)
    theirs = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long, device=logits.device))
    assert_close(ours, theirs)
    leaves = (positive, negatives, temperature)
    assert_close(*(torch.autograd.grad(loss, leaves) for loss in (ours, theirs)))


@pytest.mark.parametrize(
    "layout, peer_options",
    [
        ("batch", {}),
        ("pool", {"negative_mode": "unpaired"}),
        ("own", {"negative_mode": "paired"}),
    ],
)
def test_agrees_with_info_nce_pytorch(normal, layout, peer_options):
    peer = pytest.importorskip("info_nce", reason="needs info-nce-pytorch")
    tensors, options = batch(normal, layout)
    leaves = [x.requires_grad_() for x in tensors if x is not None]
    ours = info_nce(*leaves, temperature=0.2, **options)
    theirs = peer.info_nce(*leaves, temperature=0.2, **peer_options)
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(loss, leaves) for loss in (ours, theirs)))


# What must hold for all scores

seeds = st.integers(0, 2**32)
temperatures = st.floats(0.05, 50)


def scores(normal, seed):
    return normal(seed, 3), normal(seed + 1, 3, 4), normal(seed + 2, 3, 4).exp()


@given(seeds, st.permutations(range(4)), temperatures)
def test_the_order_of_candidates_does_not_matter(normal, seed, order, temperature):
    positive, negatives, weights = scores(normal, seed)
    once = contrastive_loss(positive, negatives, temperature=temperature, weights=weights)
    again = contrastive_loss(positive, negatives[:, order], temperature=temperature, weights=weights[:, order])
    assert_close(again, once)


@given(seeds, st.lists(st.booleans(), min_size=4, max_size=4), temperatures)
def test_weight_0_equals_deletion_equals_score_minus_infinity(normal, seed, keep, temperature):
    positive, negatives, weights = scores(normal, seed)
    keep = torch.tensor(keep, device=positive.device)
    deleted = contrastive_loss(positive, negatives[:, keep], temperature=temperature, weights=weights[:, keep])
    assert_close(contrastive_loss(positive, negatives, temperature=temperature, weights=weights * keep), deleted)
    gone = negatives.masked_fill(~keep, -math.inf)
    assert_close(contrastive_loss(positive, gone, temperature=temperature, weights=weights), deleted)


@given(seeds, st.integers(0, 3), temperatures)
def test_weight_3_equals_three_copies(normal, seed, i, temperature):
    positive, negatives, _ = scores(normal, seed)
    weights = torch.ones_like(negatives)
    weights[:, i] = 3
    copies = torch.cat([negatives, negatives[:, [i, i]]], dim=1)
    assert_close(
        contrastive_loss(positive, negatives, temperature=temperature, weights=weights),
        contrastive_loss(positive, copies, temperature=temperature),
    )


@given(seeds, st.floats(-100, 100), temperatures)
def test_a_shift_of_all_scores_changes_nothing(normal, seed, shift, temperature):
    positive, negatives, weights = scores(normal, seed)
    assert_close(
        contrastive_loss(positive + shift, negatives + shift, temperature=temperature, weights=weights),
        contrastive_loss(positive, negatives, temperature=temperature, weights=weights),
    )


@given(seeds, st.floats(0.1, 10), temperatures)
def test_the_temperature_is_the_unit_of_the_scores(normal, seed, scale, temperature):
    positive, negatives, weights = scores(normal, seed)
    assert_close(
        contrastive_loss(positive * scale, negatives * scale, temperature=temperature * scale, weights=weights),
        contrastive_loss(positive, negatives, temperature=temperature, weights=weights),
    )


@given(seeds, temperatures)
def test_rows_do_not_see_each_other(normal, seed, temperature):
    positive, negatives, weights = scores(normal, seed)
    losses = contrastive_loss(positive, negatives, temperature=temperature, weights=weights, reduction="none")
    for b in range(3):
        alone = contrastive_loss(positive[[b]], negatives[[b]], temperature=temperature, weights=weights[[b]])
        assert_close(alone, losses[b])


@given(seeds, st.floats(-6, 6), st.floats(-6, 6), st.sampled_from(sorted(LAYOUTS)))
def test_the_length_of_vectors_does_not_matter(normal, seed, log_a, log_p, layout):
    (anchor, positive, negatives), options = batch(normal, layout, seed)
    once = info_nce(anchor, positive, negatives, **options)
    longer = None if negatives is None else negatives * 10**-log_a
    assert_close(info_nce(anchor * 10**log_a, positive * 10**log_p, longer, **options), once)


@given(seeds, st.permutations(range(5)), st.sampled_from(sorted(LAYOUTS)))
def test_permuted_anchors_have_permuted_losses(normal, seed, order, layout):
    (anchor, positive, negatives), options = batch(normal, layout, seed)
    once = info_nce(anchor, positive, negatives, **options, reduction="none")
    if negatives is not None:
        negatives = negatives[order] if negatives.ndim == 3 else negatives.flip(0)
    again = info_nce(anchor[order], positive[order], negatives, **options, reduction="none")
    assert_close(again, once[order])


@given(seeds, st.integers(0, 2))
def test_a_rule_of_0_equals_deletion_from_the_pool(normal, seed, i):
    (anchor, positive, negatives), options = batch(normal, "pool", seed)

    def without_i(positive_scores, candidate_scores):
        return torch.ones_like(candidate_scores).index_fill_(1, torch.tensor([i], device=anchor.device), 0.0)

    rest = negatives[[j for j in range(3) if j != i]]
    assert_close(
        info_nce(anchor, positive, negatives, **options, weigh=without_i),
        info_nce(anchor, positive, rest, **options),
    )


def test_what_is_removed_leaves_the_others_their_digits_however_far_above_them_it_was(device):
    anchor, positive = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], device=device)
    copy_and_opposite = torch.stack([anchor, -positive], dim=1)

    def remove_the_copy(positive_scores, candidate_scores):
        return (candidate_scores < 0.5).float()

    options = dict(temperature=0.001, in_batch=False, weigh=remove_the_copy)
    assert_close(info_nce(anchor, positive, copy_and_opposite, **options), torch.tensor(math.log(2), device=device))


@given(seeds, st.sampled_from(sorted(LAYOUTS)))
def test_rules_multiply(normal, seed, layout):
    tensors, options = batch(normal, layout, seed)
    rules = [half_if_harder, remove_if_easy]

    def product(s_p, s):
        return half_if_harder(s_p, s) * remove_if_easy(s_p, s)

    once = info_nce(*tensors, **options, weigh=product)
    assert_close(info_nce(*tensors, **options, weigh=rules), once)
    assert_close(info_nce(*tensors, **options, weigh=tuple(reversed(rules))), once)
    assert_close(info_nce(*tensors, **options, weigh=[]), info_nce(*tensors, **options))


@each_layout_of_all
@pytest.mark.parametrize("rule", [None, half_if_harder])
@pytest.mark.parametrize("block_size", range(1, 5 + 2))
def test_block_size_changes_neither_losses_nor_gradients(normal, layout, rule, block_size):
    tensors, options = batch(normal, layout)
    whole = losses_and_gradients(tensors, **options, weigh=rule)
    blocks = losses_and_gradients(tensors, **options, weigh=rule, block_size=block_size)
    assert_close(blocks, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rule", [None, half_if_harder])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_more_than_a_block_of_scores_is_ever_alive(normal, largest, symmetric, rule, reduction):
    anchor, positive = normal(0, 64, 2).requires_grad_(), normal(1, 64, 2).requires_grad_()
    for block_size, most in ((8, 8 * 64), (None, 64 * 64)):
        with largest() as seen:
            options = {"weigh": rule, "symmetric": symmetric, "reduction": reduction, "block_size": block_size}
            info_nce(anchor, positive, **options).sum().backward()
        assert seen.numel == most


@pytest.mark.parametrize(
    ("rule", "pool", "rows"),
    [(None, 0, 512), (None, 9000, 512), (half_if_harder, 0, 512), (half_if_harder, 1300, 2**20 // 2324)]
    + [(half_if_harder, 9000, 384)],
)
def test_on_a_cpu_a_rule_takes_fewer_rows_at_once_the_more_candidates_there_are(largest, rule, pool, rows):
    for batch_size, blocks in ((rows, 1), (2 * rows, 2)):
        anchor, positive = torch.ones(2, batch_size, 1)
        with largest() as seen:
            info_nce(anchor, positive, torch.ones(pool + 1024 - batch_size, 1), weigh=rule)
        assert seen.numel == batch_size // blocks * (1024 + pool)


def test_a_rule_may_answer_with_the_scores_themselves(normal):
    anchor, positive = normal(0, 6, 4).abs().requires_grad_(), normal(1, 6, 4).abs()
    same, copied = (
        info_nce(anchor, positive, temperature=0.3, weigh=rule) for rule in (lambda s_p, s: s, lambda s_p, s: s.clone())
    )
    assert same == copied
    assert torch.equal(*(torch.autograd.grad(loss, anchor)[0] for loss in (same, copied)))


@each_layout
@pytest.mark.parametrize("block_size", [None, 3])
def test_a_rule_sees_each_row_once_without_gradient_and_never_the_positive(normal, layout, block_size):
    (anchor, positive, negatives), options = batch(normal, layout)
    seen = []

    def spy(positive_scores, candidate_scores):
        assert not torch.is_grad_enabled()
        assert not positive_scores.requires_grad and not candidate_scores.requires_grad
        assert positive_scores.shape == (len(candidate_scores), 1)
        seen.append(torch.cat([positive_scores, candidate_scores], dim=1))
        return torch.ones_like(candidate_scores)

    info_nce(anchor.requires_grad_(), positive, negatives, **options, weigh=spy, block_size=block_size)
    # a direction takes one call for all rows, or one for rows 0, 1, 2 and one for rows 3, 4
    calls = 1 if block_size is None else 2
    assert len(seen) == calls * (1 + options["symmetric"])

    def cosines(a, candidates):
        return torch.tensor([[cosine(x, y) for y in candidates.tolist()] for x in a.tolist()]).to(anchor)

    itself = torch.eye(5, dtype=torch.bool, device=anchor.device)
    directions = [(anchor, positive, negatives)] + [(positive, anchor, None)] * options["symmetric"]
    for direction, (a, p, n) in enumerate(directions):
        blocks = [cosines(a, p).masked_fill(itself, -math.inf)] if options["in_batch"] else []
        if n is not None and n.ndim == 3 and not options["in_batch"]:
            blocks.append(torch.cat([cosines(a[[b]], n[b]) for b in range(5)]))
        elif n is not None:
            blocks.append(cosines(a, n.flatten(0, -2)))
        expected = torch.cat([cosines(a, p).diagonal()[:, None], *blocks], dim=1)
        rows = torch.cat(seen[direction * calls : (direction + 1) * calls])
        assert_close(rows, expected, check_dtype=False, rtol=1e-6, atol=1e-6)


@each_layout_of_all
@pytest.mark.parametrize("answer", [0.0, 7.0, math.nan, math.inf])
def test_what_a_rule_returns_for_the_positive_does_not_matter(normal, layout, answer):
    tensors, options = batch(normal, layout)

    def rule(s_p, s):
        return torch.where(s.isneginf(), answer, half_if_harder(s_p, s))

    once = losses_and_gradients(tensors, **options, weigh=half_if_harder)
    assert_close(losses_and_gradients(tensors, **options, weigh=rule), once)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_a_rule_may_answer_in_any_dtype(normal, dtype):
    tensors, options = batch(normal, "batch", dtype=torch.float32)
    loss = info_nce(*tensors, **options, weigh=lambda s_p, s: (s < s_p).to(dtype))
    assert loss.dtype == torch.float32
    assert_close(loss, info_nce(*tensors, **options, weigh=lambda s_p, s: (s < s_p).to(s)))


def test_weights_in_half_precision_count_at_their_value_and_multiply_exactly(normal):
    positive, negatives, weights = scores(normal, 0)
    half = weights.half()
    ours, exact = (contrastive_loss(positive, negatives, temperature=0.1, weights=w) for w in (half, half.double()))
    assert_close(ours, exact, rtol=1e-14, atol=0)

    def tenth(s_p, s):
        return torch.full_like(s, 0.1, dtype=torch.float16)

    def hundredth(s_p, s):
        return tenth(s_p, s).to(s).square()

    tensors, options = batch(normal, "batch")
    ours, exact = (info_nce(*tensors, **options, weigh=rules) for rules in ([tenth, tenth], hundredth))
    assert_close(ours, exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("by_definition", [False, True])
@pytest.mark.parametrize("width", [1, 2, 5, 33, 384])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_layout
def test_copies_of_the_positive_tie_with_it(normal, monkeypatch, layout, dtype, width, by_definition):
    # the products of the last rows and columns are summed up another way than the rest, on every processor otherwise
    shape, in_batch, symmetric = LAYOUTS[layout]
    anchor, copy = normal(0, 29, width, dtype=dtype), normal(1, width, dtype=dtype)
    negatives = None if shape is None else copy.expand(*((31,) if len(shape) == 2 else (29, 7)), width)
    options = {"in_batch": in_batch, "symmetric": symmetric, "block_size": 28}
    if symmetric:
        anchor = copy.expand(29, width)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    for apart in (torch.gt, torch.lt):

        def rule(s_p, s, apart=apart):
            return (apart(s, s_p) & (s > -torch.inf)).to(s)

        assert info_nce(anchor, copy.expand(29, width), negatives, weigh=rule, **options) == 0


@pytest.mark.parametrize("by_definition", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_further_from_the_positive_than_its_copies_does_not_tie(device, monkeypatch, dtype, by_definition):
    # turned by 1 and by 6 eps: cosines 0.8 and 4.8 eps below 0.6, where up to 2 eps are a tie
    eps = torch.finfo(dtype).eps
    positive, across = torch.tensor([[3.0, 4.0], [-4.0, 3.0]], dtype=torch.float64, device=device)
    negatives = torch.stack([positive + angle * across for angle in (eps, 6 * eps)]).to(dtype)
    seen = []

    def spy(s_p, s):
        seen.append(torch.cat([s_p, s], dim=1))
        return torch.ones_like(s)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    anchor = torch.eye(2, dtype=dtype, device=device)[:1]
    info_nce(anchor, positive[None].to(dtype), negatives[None], in_batch=False, weigh=spy)
    s_p, copy, other = seen[0][0].double()
    assert copy == s_p and 3 * eps < s_p - other < 7 * eps


@each_layout_of_all
def test_weights_are_constants_for_the_gradient(normal, layout):
    tensors, options = batch(normal, layout)
    answers = []

    def record(s_p, s):
        answers.append(smooth(s_p, s))
        return answers[-1]

    once = losses_and_gradients(tensors, **options, weigh=record)
    replay = iter(answers)
    assert_close(losses_and_gradients(tensors, **options, weigh=lambda s_p, s: next(replay)), once)


def test_no_gradient_flows_to_given_weights(normal):
    positive, negatives, weights = (x.requires_grad_() for x in scores(normal, 0))
    contrastive_loss(positive, negatives, temperature=0.1, weights=weights).backward()
    assert weights.grad is None
    assert (negatives.grad != 0).any()


# Edges


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 1e3])
@each_layout
def test_value_and_gradient_are_finite_and_right_in_every_dtype(normal, dtype, temperature, layout):
    tensors, options = batch(normal, layout, dtype=dtype)
    half = dtype in (torch.float16, torch.bfloat16)
    ours = losses_and_gradients(tensors, temperature, **options)
    exact = losses_and_gradients([x if x is None else x.double() for x in tensors], temperature, **options)
    assert ours[0].dtype == (torch.float32 if half else dtype)
    assert [x.dtype for x in ours[1:-1]] == [dtype] * (len(ours) - 2)
    # float32's rounding of a cosine, divided by the temperature; the gradient to a half is itself half
    error = 1e-14 if dtype == torch.float64 else 4e-7
    kinds = [x.dtype for x in ours]
    if half and ours[0].is_cuda:
        kinds[-1] = dtype  # the temperature's comes from products of which one factor was rounded
    for x, y, kind in zip(ours, exact, kinds, strict=True):
        rounding = torch.finfo(kind).eps
        scale = y.abs().max().item()
        assert_close(x.double(), y, rtol=2 * rounding, atol=error / temperature * scale + 4 * rounding * scale + error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@each_layout_of_all
def test_zero_vectors_have_finite_losses_and_gradients(normal, dtype, temperature, layout):
    (anchor, positive, negatives), options = batch(normal, layout, dtype=dtype)
    anchor[0] = positive[1] = 0
    anchor[2] = positive[2] = 0
    if negatives is not None:
        negatives[0] = 0
    ours = losses_and_gradients([anchor, positive, negatives], temperature, **options)
    assert all(x.isfinite().all() for x in ours)
    assert (ours[1][0] == 0).all() and (ours[2][1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_ties_share_equally(device, dtype, temperature):
    # 4 candidates, all alike: the positive's probability is 1/4
    same = torch.ones(4, 3, dtype=dtype, device=device)
    losses = info_nce(same, same, temperature=temperature, reduction="none")
    assert_close(losses, torch.full_like(losses, math.log(4)))
    scores = torch.zeros(2, 3, dtype=dtype, device=device)
    loss = contrastive_loss(scores[:, 0], scores, temperature=temperature)
    assert_close(loss, torch.full_like(loss, math.log(4)))


@pytest.mark.parametrize("by_definition", [False, True])
def test_a_rule_sees_a_tie_where_the_loss_sees_a_difference(device, monkeypatch, by_definition):
    # in 384 features of float32 up to 4.6e-5 may be rounding: cosines of 0.6 and, turned by 3e-5, of 0.6 - 2.4e-5
    positive, negative = torch.zeros(2, 1, 384, dtype=torch.float64, device=device)
    positive[0, :2] = torch.tensor([0.6, 0.8])
    negative[0, :2] = torch.tensor([math.cos(math.acos(0.6) + 3e-5), math.sin(math.acos(0.6) + 3e-5)])
    anchor = torch.eye(1, 384, device=device)
    seen = []

    def spy(s_p, s):
        seen.append((s - s_p).abs().max())
        return torch.ones_like(s)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: by_definition)
    options = {"temperature": 1e-4, "in_batch": False, "weigh": spy}
    loss = info_nce(anchor, positive.float(), negative.float()[None], **options)
    assert seen == [0]
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.24)), abs=1e-3)


@each_layout_of_all
def test_one_feature_is_enough(normal, layout):
    tensors, options = batch(normal, layout)
    tensors = [x if x is None else x[..., :1] for x in tensors]
    expected = info_nce_by_hand(*lists(tensors), **options)
    assert info_nce(*tensors, temperature=0.3, **options, reduction="none").tolist() == pytest.approx(expected)


@pytest.mark.parametrize("layout", ["batch", "batch, both directions"])
@pytest.mark.parametrize("block_size", [None, 1])
def test_one_row_alone_has_loss_and_gradient_zero(normal, layout, block_size):
    tensors, options = batch(normal, layout)
    tensors = [x if x is None else x[:1] for x in tensors]
    for x in losses_and_gradients(tensors, **options, block_size=block_size):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (5, 0, 3)])
def test_no_explicit_negatives_leave_the_batch(normal, shape):
    (anchor, positive, _), options = batch(normal, "batch")
    empty = torch.zeros(shape, dtype=anchor.dtype, device=anchor.device)
    assert_close(info_nce(anchor, positive, empty), info_nce(anchor, positive))


def test_no_candidates_at_all_have_loss_and_gradient_zero(normal):
    positive = normal(0, 2).requires_grad_()
    loss = contrastive_loss(positive, normal(0, 2, 0), temperature=0.1)
    assert loss == 0
    assert_close(*torch.autograd.grad(loss, positive), torch.zeros_like(positive))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("death", ["weights", "scores"])
def test_a_dead_row_has_loss_and_gradient_zero_and_still_counts_in_the_mean(normal, dtype, death):
    positive, negatives = normal(0, 2, dtype=dtype), normal(1, 2, 3, dtype=dtype)
    weights = torch.ones_like(negatives)
    if death == "weights":
        weights[0] = 0
    else:
        negatives[0] = -math.inf
    temperature = torch.tensor(0.5, device=positive.device)
    leaves = [positive.requires_grad_(), negatives.requires_grad_(), temperature.requires_grad_()]
    loss = contrastive_loss(positive, negatives, temperature=temperature, weights=weights)
    alive = contrastive_loss(positive[1:], negatives[1:], temperature=temperature)
    assert_close(loss, alive / 2)
    assert alive > 0
    ours, expected = (torch.autograd.grad(x, leaves) for x in (loss, alive / 2))
    assert_close(ours, expected)
    assert ours[0][0] == 0 and (ours[1][0] == 0).all()


@each_layout_of_all
def test_anchors_without_a_candidate_left_have_loss_and_gradient_zero(normal, layout):
    tensors, options = batch(normal, layout)
    for x in losses_and_gradients(tensors, **options, weigh=lambda s_p, s: torch.zeros_like(s)):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=0)


def test_a_temperature_learns_beside_scores_of_minus_infinity(normal):
    temperature = torch.tensor(0.3, dtype=torch.float64, device=normal(0, 1).device, requires_grad=True)
    positive, negatives = normal(0, 3), normal(1, 3, 4)
    masked = torch.cat([negatives, torch.full_like(negatives[:, :1], -math.inf)], dim=1)
    (ours,) = torch.autograd.grad(contrastive_loss(positive, masked, temperature=temperature), temperature)
    (expected,) = torch.autograd.grad(contrastive_loss(positive, negatives, temperature=temperature), temperature)
    assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_scores_are_summed_in_float32(normal, dtype):
    positive, negatives = normal(0, 3, dtype=dtype), normal(1, 3, 300, dtype=dtype)
    loss = contrastive_loss(positive, negatives, temperature=0.1)
    assert loss.dtype == torch.float32
    exact = contrastive_loss(positive.double(), negatives.double(), temperature=0.1)
    assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_differences_survive_a_temperature_of_one_thousandth(device):
    # neighbours in float32 just below 1: their difference, 2^-24, is exact, but not that of their quotients
    positive, negative = torch.tensor([1.0], device=device), torch.tensor([[1 - 2**-24]], device=device)
    loss = contrastive_loss(positive, negative, temperature=1e-3)
    (slope,) = torch.autograd.grad(contrastive_loss(positive, negative.requires_grad_(), temperature=1e-3), negative)
    share = 1 / (1 + math.exp(2**-24 / 1e-3))
    assert loss.item() == pytest.approx(-math.log(1 - share), rel=2e-7)
    assert slope.item() == pytest.approx(share / 1e-3, rel=2e-7)


def test_a_tiny_loss_is_not_rounded_to_zero(device):
    # log(1 + e^-40) = 4.2e-18, far below float32's step at 1
    loss = contrastive_loss(torch.tensor([1.0], device=device), torch.tensor([[-1.0]], device=device), temperature=0.05)
    assert loss.item() == pytest.approx(math.exp(-40), rel=1e-5)


@pytest.mark.parametrize("difference", [-1e4, 1e4])
def test_extreme_differences_neither_overflow_nor_vanish(device, difference):
    # far behind: the loss is the difference over the temperature; far ahead: 0
    positive = torch.tensor([difference], device=device, requires_grad=True)
    loss = contrastive_loss(positive, torch.zeros(1, 1, device=device), temperature=0.5)
    assert loss.item() == max(0.0, -difference / 0.5)
    (slope,) = torch.autograd.grad(loss, positive)
    assert slope.item() == (-2.0 if difference < 0 else 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@each_layout
@pytest.mark.parametrize("block_size", [None, 3])
def test_autocast_changes_neither_losses_nor_gradients(normal, dtype, layout, block_size):
    tensors, options = batch(normal, layout, dtype=dtype)
    # the loss inside, its backward pass outside, as torch asks for
    autocast = torch.autocast(tensors[0].device.type, dtype=torch.bfloat16)
    outside = losses_and_gradients(tensors, **options, block_size=block_size)
    inside = losses_and_gradients(tensors, **options, block_size=block_size, forward=autocast)
    assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_number_and_a_tensor_are_the_same_temperature(normal, dtype):
    tensors, options = batch(normal, "batch", dtype=torch.float32)
    as_tensor = info_nce(*tensors, temperature=torch.tensor(0.25, dtype=dtype, device=tensors[0].device))
    assert as_tensor.dtype == torch.float32
    assert_close(as_tensor, info_nce(*tensors, temperature=0.25))


def test_a_temperature_may_be_an_int(normal):
    tensors, options = batch(normal, "batch")
    assert_close(info_nce(*tensors, temperature=1), info_nce(*tensors, temperature=1.0))


def test_a_wrong_number_is_not_hidden(normal):
    # NaN among the scores, and a negative weight, whose logarithm is NaN: neither spreads to other rows
    positive, negatives, weights = scores(normal, 0)
    negatives[0, 0] = math.nan
    weights[1, 2] = -1
    losses = contrastive_loss(positive, negatives, temperature=0.1, weights=weights, reduction="none")
    assert losses.isnan().tolist() == [True, True, False]


@each_layout
def test_inputs_are_not_mutated(normal, layout):
    tensors, options = batch(normal, layout)
    temperature = torch.tensor(0.3, device=tensors[0].device)
    rules = [half_if_harder, remove_if_easy]
    before = [x if x is None else x.clone() for x in (*tensors, temperature)]
    info_nce(*tensors, temperature=temperature, **options, weigh=rules)
    for x, y in zip((*tensors, temperature), before, strict=True):
        assert x is y is None or torch.equal(x, y)
    assert rules == [half_if_harder, remove_if_easy]


def test_scores_and_weights_are_not_mutated(normal):
    given = scores(normal, 0)
    given[1][0, 0] = -math.inf
    before = [x.clone() for x in given]
    contrastive_loss(given[0], given[1], temperature=0.1, weights=given[2])
    assert_close(list(given), before, rtol=0, atol=0)


@each_layout
@pytest.mark.parametrize("rule", [None, half_if_harder])
def test_the_blocks_and_the_definition_agree(normal, layout, rule, monkeypatch):
    tensors, options = batch(normal, layout)
    by_blocks = losses_and_gradients(tensors, weigh=rule, block_size=3, **options)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # which takes the definition
    assert_close(by_blocks, losses_and_gradients(tensors, weigh=rule, **options))


def test_they_agree_where_not_all_embeddings_are_scaled_at_once(normal, monkeypatch):
    tensors = [normal(0, 2, 3), normal(1, 2, 3), normal(2, 9000, 3)]
    by_blocks = losses_and_gradients(tensors)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_close(by_blocks, losses_and_gradients(tensors))


@each_layout_of_all
@pytest.mark.parametrize("rule", [None, half_if_harder])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_has_a_gradient(normal, layout, rule, reduction):
    tensors, options = batch(normal, layout)
    leaves = [x if x is None else x.requires_grad_() for x in tensors]
    temperature = torch.tensor(0.5, dtype=torch.float64, device=tensors[0].device, requires_grad=True)

    def loss(temperature, *leaves):
        return info_nce(*leaves, temperature=temperature, weigh=rule, reduction=reduction, block_size=3, **options)

    inputs = [x for x in (temperature, *leaves) if x is not None]
    gradients = [torch.autograd.grad(loss(temperature, *leaves).sum(), inputs, create_graph=x) for x in (False, True)]
    assert_close(*gradients)
    # along random directions: each second derivative alone would take a minute
    assert torch.autograd.gradgradcheck(loss, (temperature, *leaves), fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_arguments_made_of_one_another_have_one_gradient_by_every_road(normal, reduction):
    def loss(x):
        return info_nce(x, x.tanh(), x.sin(), temperature=x.square().mean(), reduction=reduction).sum()

    x = normal(0, 5, 4).requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    (ours,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert_close(ours, expected)
    assert_close(torch.func.grad(loss)(x.detach()), expected)
    assert torch.autograd.gradcheck(loss, x)


@each_layout_of_all
@pytest.mark.parametrize("rule", [None, half_if_harder])
def test_what_is_frozen_changes_no_other_gradient(normal, layout, rule):
    tensors, options = batch(normal, layout)
    _, *gradients, by_temperature = losses_and_gradients(tensors, weigh=rule, block_size=3, **options)
    upstream = torch.arange(1, 6).to(tensors[0])
    given = [*tensors, tensors[0].new_tensor(0.3)]
    for i, expected in [*enumerate(gradients), (3, by_temperature)]:
        leaves = [x if x is None else x.detach().requires_grad_(i == j) for j, x in enumerate(given)]
        losses = info_nce(*leaves[:3], temperature=leaves[3], weigh=rule, reduction="none", block_size=3, **options)
        assert_close(torch.autograd.grad(losses, leaves[i], upstream)[0], expected)


def test_a_second_derivative_passes_by_what_is_frozen(normal):
    anchor, positive = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3)
    assert torch.autograd.gradgradcheck(lambda a: info_nce(a, positive, temperature=0.5), anchor)


def test_a_gradient_too_small_for_float16_survives_the_scaling_of_the_loss(normal):
    anchor, positive = (normal(seed, 4, 3, dtype=torch.float16).requires_grad_() for seed in range(2))
    exact = info_nce(anchor.double(), positive.double(), temperature=1e3)
    (expected,) = torch.autograd.grad(exact * 2**16, anchor)
    (ours,) = torch.autograd.grad(info_nce(anchor, positive, temperature=1e3) * 2**16, anchor)
    assert_close(ours, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_backward_pass_can_be_run_twice(normal, reduction):
    anchor, positive = normal(0, 4, 3).requires_grad_(), normal(1, 4, 3)
    loss = info_nce(anchor, positive, temperature=0.5, reduction=reduction).sum()
    first, second = (torch.autograd.grad(3 * loss, anchor, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_functional_gradients_are_the_same(normal):
    anchor, positive = normal(0, 4, 3), normal(1, 4, 3)
    ours = torch.func.grad(lambda a: info_nce(a, positive, temperature=0.5))(anchor)
    value, pull = torch.func.vjp(lambda a: info_nce(a, positive, temperature=0.5), anchor)
    assert_close(pull(torch.ones_like(value))[0], ours)
    (expected,) = torch.autograd.grad(info_nce(anchor.requires_grad_(), positive, temperature=0.5), anchor)
    assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_derivatives_are_refused(normal):
    anchor, positive = normal(0, 4, 3), normal(1, 4, 3)
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda a: info_nce(a, positive), (anchor,), (torch.ones_like(anchor),))


def test_many_batches_at_once_are_refused(normal):
    with pytest.raises(RuntimeError) as caught:
        torch.func.vmap(info_nce)(normal(0, 2, 4, 3), normal(1, 2, 4, 3))
    said = "info_nce and gist_embed_loss do not work under torch.vmap: call them for each batch in turn"
    assert str(caught.value) == said


@pytest.fixture(scope="module")
def unhooked():
    """The module run as a file: the check of shapes wraps inner functions too, and dynamo can't trace that."""
    return runpy.run_path(mathlib._contrastive.__file__)


@pytest.mark.parametrize("layout, block_size", [("batch and pool, both directions", 3), ("own", None)])
def test_info_nce_compiles_without_a_graph_break(normal, bad_input, unhooked, layout, block_size):
    (anchor, positive, negatives), options = batch(normal, layout)
    leaves = [anchor.requires_grad_(), positive.requires_grad_(), negatives.requires_grad_()]
    options |= {"weigh": half_if_harder, "block_size": block_size}
    compiled = torch.compile(unhooked["info_nce"], backend="aot_eager", fullgraph=True)
    ours, eager = (f(*leaves, **options) for f in (compiled, info_nce))
    assert_close(ours, eager)
    assert_close(*(torch.autograd.grad(loss, leaves) for loss in (ours, eager)))


def test_contrastive_loss_compiles_without_a_graph_break(normal, bad_input, unhooked):
    positive, negatives, weights = scores(normal, 0)
    temperature = torch.tensor(0.1, device=positive.device, requires_grad=True)
    compiled = torch.compile(unhooked["contrastive_loss"], backend="aot_eager", fullgraph=True)
    losses = [f(positive, negatives, temperature=temperature, weights=weights) for f in (compiled, contrastive_loss)]
    assert_close(*losses)
    assert_close(*(torch.autograd.grad(loss, temperature) for loss in losses))


# Gradients


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck_of_scores(normal, reduction):
    positive, negatives, weights = scores(normal, 0)
    negatives[0, 0] = -math.inf  # deleted, and so a constant
    weights[1, 1] = 0
    weights[2] = 0
    finite = negatives.isfinite()

    def loss(positive, present, temperature):
        negatives = torch.full_like(weights, -math.inf).masked_scatter(finite, present)
        return contrastive_loss(positive, negatives, temperature=temperature, weights=weights, reduction=reduction)

    temperature = torch.tensor(0.4, dtype=torch.float64, device=positive.device)
    leaves = (positive, negatives[finite], temperature)
    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in leaves))


@each_layout_of_all
@pytest.mark.parametrize("rule", [None, half_if_harder, [half_if_harder, remove_if_easy]])
@pytest.mark.parametrize("block_size", [None, 3])
def test_gradcheck_of_embeddings_and_temperature(normal, layout, rule, block_size):
    tensors, options = batch(normal, layout)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=tensors[0].device)

    def losses(temperature, *tensors):
        return info_nce(
            *tensors, temperature=temperature, weigh=rule, block_size=block_size, reduction="none", **options
        )

    leaves = [temperature, *(x for x in tensors if x is not None)]
    assert torch.autograd.gradcheck(losses, tuple(x.requires_grad_() for x in leaves), fast_mode=True)


# What is refused, and how

GOOD_SCORES = {"positive_scores": torch.zeros(2), "negative_scores": torch.zeros(2, 3), "temperature": 0.1}
GOOD_BATCH = {"anchor": torch.ones(2, 3), "positive": torch.ones(2, 3)}


def learned(x, **options):
    return torch.tensor(x, **options)


temperature_errors = [
    ({"temperature": 0}, ValueError, "temperature must be a finite number and > 0, was 0"),
    ({"temperature": -0.1}, ValueError, "temperature must be a finite number and > 0, was -0.1"),
    ({"temperature": math.nan}, ValueError, "temperature must be a finite number and > 0, was nan"),
    ({"temperature": math.inf}, ValueError, "temperature must be a finite number and > 0, was inf"),
    ({"temperature": True}, TypeError, "temperature must be a finite number and > 0, was bool"),
    ({"temperature": "0.1"}, TypeError, "temperature must be a finite number and > 0, was str"),
    ({"temperature": None}, TypeError, "temperature must be a finite number and > 0, was NoneType"),
    ({"temperature": 1j}, TypeError, "temperature must be a finite number and > 0, was complex"),
    ({"temperature": learned(1)}, TypeError, "temperature must have a floating-point dtype, was torch.int64"),
    ({"temperature": learned([0.1])}, ValueError, "temperature must be a number or a 0-d tensor, was [1]"),
    (
        {"temperature": learned(0.1, device="meta")},
        ValueError,
        "temperature must be on the device of the scores, cpu, was meta",
    ),
]
reduction_errors = [
    ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', was 'max'"),
    ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', was None"),
]


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        *temperature_errors,
        *reduction_errors,
        ({"positive_scores": [0.0]}, TypeError, "positive_scores must be a torch.Tensor, was list"),
        ({"negative_scores": None}, TypeError, "negative_scores must be a torch.Tensor, was NoneType"),
        ({"weights": 1.0}, TypeError, "weights must be a torch.Tensor, was float"),
        (
            {"positive_scores": torch.zeros(2).long()},
            TypeError,
            "positive_scores must have a floating-point dtype, was torch.int64",
        ),
        (
            {"negative_scores": torch.zeros(2, 3).long()},
            TypeError,
            "negative_scores must have a floating-point dtype, was torch.int64",
        ),
        ({"weights": torch.ones(2, 3).bool()}, TypeError, "weights must have a floating-point dtype, was torch.bool"),
        (
            {"negative_scores": torch.zeros(2, 3).double()},
            TypeError,
            "negative_scores must have the dtype of positive_scores, torch.float32, was torch.float64",
        ),
        ({"positive_scores": torch.zeros(2, 1)}, ValueError, "positive_scores must have shape [B], was [2, 1]"),
        ({"negative_scores": torch.zeros(2)}, ValueError, "negative_scores must have shape [B, N] = [2, N], was [2]"),
        (
            {"negative_scores": torch.zeros(3, 3)},
            ValueError,
            "negative_scores must have shape [B, N] = [2, N], was [3, 3]",
        ),
        ({"weights": torch.ones(3)}, ValueError, "weights must have shape [B, N] = [2, 3], was [3]"),
        (
            {"weights": torch.ones(2, 1)},
            ValueError,
            "weights must have shape [B, N] = [2, 3], was [2, 1]",
        ),
        (
            {"negative_scores": torch.zeros(2, 3, device="meta")},
            ValueError,
            "negative_scores must be on the device of positive_scores, cpu, was meta",
        ),
        (
            {"weights": torch.ones(2, 3, device="meta")},
            ValueError,
            "weights must be on the device of negative_scores, cpu, was meta",
        ),
        (
            {"positive_scores": torch.zeros(0), "negative_scores": torch.zeros(0, 3)},
            ValueError,
            "positive_scores must have at least one row, was [0]",
        ),
    ],
)
def test_contrastive_loss_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        contrastive_loss(**{**GOOD_SCORES, **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        *temperature_errors,
        *reduction_errors,
        ({"anchor": None}, TypeError, "anchor must be a torch.Tensor, was NoneType"),
        ({"positive": 1.0}, TypeError, "positive must be a torch.Tensor, was float"),
        ({"negatives": [1.0]}, TypeError, "negatives must be a torch.Tensor, was list"),
        ({"anchor": torch.ones(2, 3).long()}, TypeError, "anchor must have a floating-point dtype, was torch.int64"),
        ({"positive": torch.ones(2, 3).bool()}, TypeError, "positive must have a floating-point dtype, was torch.bool"),
        (
            {"negatives": torch.ones(2, 3).int()},
            TypeError,
            "negatives must have a floating-point dtype, was torch.int32",
        ),
        (
            {"positive": torch.ones(2, 3).half()},
            TypeError,
            "positive must have the dtype of anchor, torch.float32, was torch.float16",
        ),
        (
            {"negatives": torch.ones(2, 3).double()},
            TypeError,
            "negatives must have the dtype of anchor, torch.float32, was torch.float64",
        ),
        ({"anchor": torch.ones(3)}, ValueError, "anchor must have shape [B, D], was [3]"),
        ({"positive": torch.ones(2, 1, 3)}, ValueError, "positive must have shape [B, D] = [2, 3], was [2, 1, 3]"),
        (
            {"negatives": torch.ones(3)},
            ValueError,
            "negatives must have shape [N, D] = [N, 3] or [B, N, D] = [2, N, 3], was [3]",
        ),
        (
            {"anchor": torch.ones(0, 3), "positive": torch.ones(0, 3)},
            ValueError,
            "anchor must have at least one row, was [0, 3]",
        ),
        (
            {"anchor": torch.ones(2, 0), "positive": torch.ones(2, 0)},
            ValueError,
            "anchor must have at least one feature, was [2, 0]",
        ),
        ({"positive": torch.ones(1, 3)}, ValueError, "positive must have shape [B, D] = [2, 3], was [1, 3]"),
        ({"positive": torch.ones(2, 1)}, ValueError, "positive must have shape [B, D] = [2, 3], was [2, 1]"),
        # both alike, so that one is no reason to look at the other
        ({"anchor": torch.ones(3), "positive": torch.ones(3)}, ValueError, "anchor must have shape [B, D], was [3]"),
        (
            {"anchor": torch.ones(2, 3).int(), "positive": torch.ones(2, 3).int()},
            TypeError,
            "anchor must have a floating-point dtype, was torch.int32",
        ),
        (
            {"negatives": torch.ones(5, 2)},
            ValueError,
            "negatives must have shape [N, D] = [N, 3] or [B, N, D] = [2, N, 3], was [5, 2]",
        ),
        (
            {"negatives": torch.ones(2, 4, 1)},
            ValueError,
            "negatives must have shape [N, D] = [N, 3] or [B, N, D] = [2, N, 3], was [2, 4, 1]",
        ),
        (
            {"negatives": torch.ones(3, 4, 3)},
            ValueError,
            "negatives must have shape [N, D] = [N, 3] or [B, N, D] = [2, N, 3], was [3, 4, 3]",
        ),
        (
            {"positive": torch.ones(2, 3, device="meta")},
            ValueError,
            "positive must be on the device of anchor, cpu, was meta",
        ),
        (
            {"negatives": torch.ones(2, 3, device="meta")},
            ValueError,
            "negatives must be on the device of anchor, cpu, was meta",
        ),
        ({"in_batch": 1}, TypeError, "in_batch must be True or False, was int"),
        ({"gather": 1}, TypeError, "gather must be True or False, was int"),
        ({"symmetric": None}, TypeError, "symmetric must be True or False, was NoneType"),
        *(
            (
                {"in_batch": False, "negatives": none},
                ValueError,
                "negatives must be given when in_batch is False: there is nothing else to contrast with",
            )
            for none in (None, torch.ones(0, 3), torch.ones(2, 0, 3))
        ),
        (
            {"in_batch": False, "symmetric": True, "negatives": torch.ones(5, 3)},
            ValueError,
            "symmetric must be False when in_batch is False: a positive would have no negatives",
        ),
        ({"contrast_anchors": 1}, TypeError, "contrast_anchors must be True or False, was int"),
        ({"contrast_positives": None}, TypeError, "contrast_positives must be True or False, was NoneType"),
        *(
            (
                {"in_batch": False, "negatives": torch.ones(5, 3), name: True},
                ValueError,
                f"{name} must be False when in_batch is False",
            )
            for name in ("contrast_anchors", "contrast_positives")
        ),
        ({"groups": [0, 1]}, TypeError, "groups must be a torch.Tensor, was list"),
        ({"groups": torch.zeros(2)}, TypeError, "groups must have an integer dtype, was torch.float32"),
        ({"groups": torch.zeros(3).long()}, ValueError, "groups must have shape [B] = [2], was [3]"),
        (
            {"groups": torch.zeros(2, device="meta").long()},
            ValueError,
            "groups must be on the device of anchor, cpu, was meta",
        ),
        *(
            (
                {"negative_groups": torch.zeros(4).long(), **given},
                ValueError,
                "negative_groups must be given together with negatives and groups only",
            )
            for given in ({"groups": torch.zeros(2).long()}, {"negatives": torch.ones(4, 3)})
        ),
        (
            {
                "groups": torch.zeros(2).long(),
                "negatives": torch.ones(4, 3),
                "negative_groups": torch.zeros(2, 2).long(),
            },
            ValueError,
            "negative_groups must have shape [N] = [4], was [2, 2]",
        ),
        (
            {
                "groups": torch.zeros(2).long(),
                "negatives": torch.ones(2, 4, 3),
                "negative_groups": torch.zeros(4).long(),
            },
            ValueError,
            "negative_groups must have shape [B, N] = [2, 4], was [4]",
        ),
        (
            {
                "groups": torch.zeros(2).long(),
                "negatives": torch.ones(4, 3),
                "negative_groups": torch.zeros(4, device="meta").long(),
            },
            ValueError,
            "negative_groups must be on the device of anchor, cpu, was meta",
        ),
        ({"block_size": 0}, ValueError, "block_size must be an int >= 1, was 0"),
        ({"block_size": -1}, ValueError, "block_size must be an int >= 1, was -1"),
        ({"block_size": 2.0}, TypeError, "block_size must be an int >= 1, was float"),
        ({"block_size": True}, TypeError, "block_size must be an int >= 1, was bool"),
        ({"weigh": "hard"}, TypeError, "weigh must be a function or a sequence of them, item 0 was str"),
        ({"weigh": 2}, TypeError, "weigh must be a function or a sequence of them, item 0 was int"),
        (
            {"weigh": [half_if_harder, None]},
            TypeError,
            "weigh must be a function or a sequence of them, item 1 was NoneType",
        ),
        ({"weigh": lambda s_p, s: s_p}, ValueError, "weigh must return weights of shape [2, 2], was [2, 1]"),
        ({"weigh": lambda s_p, s: 1.0}, ValueError, "weigh must return weights of shape [2, 2], was float"),
        (
            {"weigh": [half_if_harder, lambda s_p, s: s.T], "negatives": torch.ones(1, 3)},
            ValueError,
            "weigh must return weights of shape [2, 3], was [3, 2]",
        ),
    ],
)
def test_info_nce_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        info_nce(**{**GOOD_BATCH, **wrong})
    assert str(caught.value) == message
