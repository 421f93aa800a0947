import math
import runpy

import pytest
import torch
import torch.nn.functional as F
from by_hand import DTYPES, HALVES
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import mathlib._preference
from mathlib._preference import dpo_loss, plain_token_log_probs, sequence_log_prob

# By hand


def test_two_tokens_of_a_vocabulary_of_three(device):
    # softmax of log 1, log 2, log 5 is 1/8, 2/8, 5/8; of three equal logits 1/3 each
    logits = torch.tensor([[[0.0, math.log(2), math.log(5)], [7.0, 7.0, 7.0]]], dtype=torch.float64, device=device)
    labels = torch.tensor([[2, 0]], device=device)
    assert sequence_log_prob(logits, labels).tolist() == pytest.approx([math.log(5 / 8) + math.log(1 / 3)], rel=1e-14)
    first = torch.tensor([[True, False]], device=device)
    assert sequence_log_prob(logits, labels, mask=first).tolist() == pytest.approx([math.log(5 / 8)], rel=1e-14)


def test_the_gradient_is_1_at_the_label_minus_the_probabilities(device):
    logits = torch.tensor([[[0.0, math.log(2), math.log(5)]]], dtype=torch.float64, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(2 * sequence_log_prob(logits, torch.tensor([[1]], device=device)).sum(), logits)
    assert gradient.flatten().tolist() == pytest.approx([2 * -1 / 8, 2 * 6 / 8, 2 * -5 / 8], rel=1e-14)


def test_dpo_of_one_pair(device):
    # h = beta ((-10 + 12) - (-20 + 15)) = 7 beta
    pair = [torch.tensor([x], dtype=torch.float64, device=device) for x in (-10.0, -20.0, -12.0, -15.0)]
    assert dpo_loss(*pair).item() == pytest.approx(math.log(1 + math.exp(-0.7)), rel=1e-14)
    assert dpo_loss(*pair, beta=2).item() == pytest.approx(math.log(1 + math.exp(-14)), rel=1e-9)
    smoothed = 0.75 * math.log(1 + math.exp(-0.7)) + 0.25 * math.log(1 + math.exp(0.7))
    assert dpo_loss(*pair, label_smoothing=0.25).item() == pytest.approx(smoothed, rel=1e-14)


def test_reduction_is_mean_sum_or_none(device):
    # margins log 3 and -log 3: log(4/3) and log 4
    zeros = torch.zeros(2, dtype=torch.float64, device=device)
    chosen = torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64, device=device)
    rows = torch.tensor([math.log(4 / 3), math.log(4)], dtype=torch.float64, device=device)
    assert_close(dpo_loss(chosen, zeros, zeros, zeros, beta=1.0, reduction="none"), rows)
    assert_close(dpo_loss(chosen, zeros, zeros, zeros, beta=1.0, reduction="sum"), rows.sum())
    assert_close(dpo_loss(chosen, zeros, zeros, zeros, beta=1.0, reduction="mean"), rows.mean())
    assert_close(dpo_loss(chosen, zeros, zeros, zeros, beta=1.0), rows.mean())


# By a loop over Python floats


def loop_log_prob(logits, labels, mask):
    total = 0.0
    for row, label, counts in zip(logits, labels, mask, strict=True):
        if counts:
            total += math.log(math.exp(row[label]) / math.fsum(math.exp(z) for z in row))
    return total


def loop_dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, smoothing):
    ratio_chosen = math.exp(policy_chosen) / math.exp(reference_chosen)
    ratio_rejected = math.exp(policy_rejected) / math.exp(reference_rejected)
    h = beta * math.log(ratio_chosen) - beta * math.log(ratio_rejected)
    sigma = 1 / (1 + math.exp(-h))
    return -(1 - smoothing) * math.log(sigma) - smoothing * math.log(1 - sigma)


def everywhere(labels):
    return torch.ones_like(labels, dtype=torch.bool)


def sequences(normal, seed=0, dtype=torch.float64):
    """Logits [3, 4, 5], labels [3, 4] and a mask of which row 1 keeps nothing."""
    labels = (normal(seed + 1, 3, 4).abs() * 10).long() % 5
    mask = normal(seed + 2, 3, 4) > -0.5
    mask[1] = False
    return normal(seed, 3, 4, 5, dtype=dtype), labels, mask


@pytest.fixture(params=[1, 12, 45, 2**22], ids="block of {}".format)
def block(request, monkeypatch):
    """Blocks of 1 token (of 5 logits, so more than asked for), of 2 tokens, of 2 sequences, of everything."""
    monkeypatch.setattr(mathlib._preference, "BLOCK", {"cpu": request.param})


@pytest.mark.parametrize("masked", [False, True])
def test_log_probs_are_the_loop(normal, block, masked):
    logits, labels, mask = sequences(normal)
    keep = mask if masked else torch.ones_like(mask)
    rows = zip(logits.tolist(), labels.tolist(), keep.tolist(), strict=True)
    ours = sequence_log_prob(logits, labels, mask=mask if masked else None)
    assert ours.tolist() == pytest.approx([loop_log_prob(*row) for row in rows], rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (1.5, 0.3), (0.7, 0.49)])
def test_dpo_is_the_loop(normal, beta, smoothing):
    log_probs = [normal(seed, 5) for seed in range(4)]
    expected = [loop_dpo(*row, beta, smoothing) for row in zip(*(x.tolist() for x in log_probs), strict=True)]
    ours = dpo_loss(*log_probs, beta=beta, label_smoothing=smoothing, reduction="none")
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


# Peers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_are_the_plain_definition_in_value_and_gradient(normal, block, dtype, masked):
    logits, labels, mask = sequences(normal, dtype=dtype)
    counts = mask if masked else everywhere(labels)
    upstream = normal(3, 3, dtype=torch.float32 if dtype in HALVES else dtype)
    leaf = logits.requires_grad_()
    ours = sequence_log_prob(leaf, labels, mask=mask if masked else None)
    plain = plain_token_log_probs(leaf, labels, counts).sum(dim=1)
    assert_close(ours, plain)
    assert_close(*(torch.autograd.grad(x, leaf, upstream)[0] for x in (ours, plain)))


@pytest.mark.parametrize("by", ["mask", "label", "either"])
def test_agrees_with_cross_entropy(normal, block, by):
    logits, labels, mask = sequences(normal)
    logits.requires_grad_()
    ignoring = labels.masked_fill(~mask, -100)
    if by == "mask":
        ours = sequence_log_prob(logits, labels, mask=mask)
    elif by == "label":
        ours = sequence_log_prob(logits, ignoring)
    else:  # some by one, some by the other, some by both
        first = torch.arange(4, device=mask.device) < 2
        ours = sequence_log_prob(logits, labels.masked_fill(~mask & first, -100), mask=mask | first)
    theirs = -F.cross_entropy(logits.mT, ignoring, reduction="none").sum(dim=1)  # -100 is its default too
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(x.sum(), logits) for x in (ours, theirs)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_binary_cross_entropy_of_the_margin(normal, smoothing):
    leaves = [normal(seed, 5).requires_grad_() for seed in range(4)]
    ours = dpo_loss(*leaves, beta=0.3, label_smoothing=smoothing)
    margin = 0.3 * (leaves[0] - leaves[2]) - 0.3 * (leaves[1] - leaves[3])
    theirs = F.binary_cross_entropy_with_logits(margin, torch.full_like(margin, 1 - smoothing))
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(x, leaves) for x in (ours, theirs)))


# What must hold for all inputs

seeds = st.integers(0, 2**32)
betas = st.floats(0.01, 10)
smoothings = st.sampled_from([0.0, 0.1, 0.4])


@given(seeds, st.floats(-1e3, 1e3))
def test_a_shift_of_a_tokens_logits_changes_nothing(normal, seed, shift):
    logits, labels, mask = sequences(normal, seed)
    shifted = logits + shift * normal(seed + 3, 3, 4, 1)
    assert_close(sequence_log_prob(shifted, labels, mask=mask), sequence_log_prob(logits, labels, mask=mask))


@given(seeds, st.permutations(range(4)), st.permutations(range(5)))
def test_the_order_of_tokens_and_of_the_vocabulary_does_not_matter(normal, seed, order, words):
    logits, labels, mask = sequences(normal, seed)
    once = sequence_log_prob(logits, labels, mask=mask)
    assert_close(sequence_log_prob(logits[:, order], labels[:, order], mask=mask[:, order]), once)
    place = torch.tensor(words, device=labels.device).argsort()  # where each word has gone
    assert_close(sequence_log_prob(logits[:, :, words], place[labels], mask=mask), once)


@given(seeds)
def test_masking_equals_deleting(normal, seed):
    logits, labels, mask = sequences(normal, seed)
    for b in range(3):
        kept = mask[b]
        alone = sequence_log_prob(logits[[b]][:, kept], labels[[b]][:, kept])
        assert_close(sequence_log_prob(logits, labels, mask=mask)[[b]], alone)


@given(seeds)
def test_probabilities_of_all_sequences_sum_to_1(normal, seed):
    logits = normal(seed, 1, 3, 2).expand(8, 3, 2)
    labels = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], device=logits.device)
    total = sequence_log_prob(logits, labels).exp().sum()
    assert_close(total, torch.ones_like(total))


@given(seeds, betas, smoothings)
def test_swapping_chosen_and_rejected_turns_the_margin(normal, seed, beta, smoothing):
    a, b, c, d = (normal(seed + i, 5) for i in range(4))
    options = {"beta": beta, "label_smoothing": smoothing, "reduction": "none"}
    once, swapped = dpo_loss(a, b, c, d, **options), dpo_loss(b, a, d, c, **options)
    margin = beta * ((a - c) - (b - d))
    # log sigma(h) - log sigma(-h) = h
    assert_close(swapped - once, (1 - 2 * smoothing) * margin)


@given(seeds, betas, smoothings, st.floats(-100, 100))
def test_only_differences_to_the_reference_count(normal, seed, beta, smoothing, shift):
    a, b, c, d = (normal(seed + i, 5) for i in range(4))
    options = {"beta": beta, "label_smoothing": smoothing}
    once = dpo_loss(a, b, c, d, **options)
    assert_close(dpo_loss(a + shift, b, c + shift, d, **options), once)
    assert_close(dpo_loss(a, b + shift, c, d + shift, **options), once)
    assert_close(dpo_loss(a + shift, b + shift, c, d, **options), once)


@given(seeds, betas, smoothings)
def test_before_the_first_step_the_loss_is_log_2(normal, seed, beta, smoothing):
    chosen, rejected = normal(seed, 5), normal(seed + 1, 5)
    losses = dpo_loss(chosen, rejected, chosen, rejected, beta=beta, label_smoothing=smoothing, reduction="none")
    assert_close(losses, torch.full_like(losses, math.log(2)))


@given(seeds, st.sampled_from([0.1, 0.25, 0.4]))
def test_a_smoothed_loss_is_least_where_the_model_is_as_sure_as_the_labels(normal, seed, smoothing):
    # sigma(h) = 1 - epsilon, h = log((1 - epsilon) / epsilon)
    zero = torch.zeros(1, dtype=torch.float64, device=normal(0, 1).device)
    best = math.log((1 - smoothing) / smoothing)

    def loss(h):
        return dpo_loss(zero + h, zero, zero, zero, beta=1.0, label_smoothing=smoothing)

    assert loss(best) <= loss(best + normal(seed, 1))


# Edges


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs_and_gradients_are_right_in_every_dtype(normal, block, dtype):
    logits, labels, mask = sequences(normal, dtype=dtype)
    ours = sequence_log_prob(logits.requires_grad_(), labels, mask=mask)
    exact_logits = logits.detach().double().requires_grad_()
    exact = plain_token_log_probs(exact_logits, labels, mask).sum(dim=1)
    assert ours.dtype == (torch.float32 if dtype in HALVES else dtype)
    assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)
    (gradient,), (expected,) = (torch.autograd.grad(x.sum(), y) for x, y in ((ours, logits), (exact, exact_logits)))
    assert gradient.dtype == dtype
    assert_close(gradient, expected.to(dtype), atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_logits_are_summed_in_float32(normal, dtype):
    # 2000 tokens at about -log 50: near 8000, one step of bfloat16 is 32 and one of float16 is 4
    logits = normal(0, 2, 2000, 50, dtype=dtype)
    labels = torch.arange(2000, device=logits.device).remainder(50).expand(2, -1)
    exact = plain_token_log_probs(logits.double(), labels, everywhere(labels)).sum(dim=1)
    assert_close(sequence_log_prob(logits, labels).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [100.0, 6e4])
def test_extreme_logits_stay_finite_and_exact(device, dtype, size):
    logits = torch.tensor([[[size, 0.0, -size]], [[-size, 0.0, size]]], dtype=dtype, device=device, requires_grad=True)
    log_probs = sequence_log_prob(logits, torch.tensor([[0], [0]], device=device))
    # the label far ahead, and far behind
    assert log_probs.tolist() == [pytest.approx(0, abs=1e-43), -2 * logits[0, 0, 0].item()]
    (gradient,) = torch.autograd.grad(log_probs.sum(), logits)
    expected = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 0.0, -1.0]]], dtype=dtype, device=device)
    assert_close(gradient, expected, atol=1e-40, rtol=0)


def test_a_large_shift_loses_nothing(device):
    # softmax over (0, 0) beside (1e4, 1e4): log 2 to the last digit of float32, value and gradient
    logits = torch.full((1, 1, 2), 1e4, device=device, requires_grad=True)
    log_prob = sequence_log_prob(logits, torch.tensor([[0]], device=device))
    assert log_prob.item() == pytest.approx(-math.log(2), rel=1e-7)
    assert_close(torch.autograd.grad(log_prob, logits)[0], torch.tensor([[[0.5, -0.5]]], device=device))


def test_a_forbidden_token_has_probability_and_gradient_zero(normal, block):
    logits, labels, _ = sequences(normal)
    labels = labels % 4
    forbidden = torch.cat([logits[:, :, :4], torch.full_like(logits[:, :, :1], -math.inf)], dim=2).requires_grad_()
    allowed = logits[:, :, :4].clone().requires_grad_()
    ours, expected = sequence_log_prob(forbidden, labels), sequence_log_prob(allowed, labels)
    assert_close(ours, expected)
    (gradient,), (shorter,) = (torch.autograd.grad(x.sum(), y) for x, y in ((ours, forbidden), (expected, allowed)))
    assert_close(gradient, F.pad(shorter, (0, 1)))
    assert (gradient[:, :, 4] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label, logit", [(-100, 0.0), (-100, math.nan), (5, -math.inf), (2**40, math.inf)])
def test_where_masked_labels_and_logits_may_hold_anything(normal, block, dtype, label, logit):
    logits, labels, mask = sequences(normal, dtype=dtype)
    expected_leaf = logits.clone().requires_grad_()
    expected = sequence_log_prob(expected_leaf, labels, mask=mask)
    leaf = logits.masked_fill(~mask[:, :, None], logit).requires_grad_()
    ours = sequence_log_prob(leaf, labels.masked_fill(~mask, label), mask=mask)
    assert_close(ours, expected)
    (gradient,), (expected_gradient,) = (
        torch.autograd.grad(x.sum(), y) for x, y in ((ours, leaf), (expected, expected_leaf))
    )
    assert_close(gradient, expected_gradient)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()
    assert ours[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_so_may_logits_where_the_label_says_that_the_token_does_not_count(normal, block, dtype, logit):
    logits, labels, mask = sequences(normal, dtype=dtype)
    leaves = [x.requires_grad_() for x in (logits, logits.masked_fill(~mask[:, :, None], logit))]
    labels = labels.masked_fill(~mask, -100)
    expected, ours = (sequence_log_prob(x, labels) for x in leaves)
    assert_close(ours, expected)
    # also if the sequence's gradient is no number, as where its loss is infinite
    upstream = torch.tensor([1.0, math.nan, 2.0]).to(ours)
    found = [torch.autograd.grad(x, leaf, upstream)[0] for x, leaf in zip((expected, ours), leaves, strict=True)]
    assert_close(*found)
    assert found[1].isfinite().all()


def test_a_label_of_a_byte_is_itself(device):
    # 156 is -100 in a signed byte
    logits = torch.arange(200.0, device=device)[None, None]
    label = torch.tensor([[156]], dtype=torch.uint8, device=device)
    assert_close(sequence_log_prob(logits, label)[0], logits.log_softmax(2)[0, 0, 156])
    assert sequence_log_prob(logits, label.to(torch.int8)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_forbidden_answer_has_log_probability_minus_infinity_and_a_finite_gradient(normal, block, dtype):
    logits, labels, _ = sequences(normal, dtype=dtype)
    forbidden = F.one_hot(labels[:1], 5).bool() & (torch.arange(4, device=labels.device) == 2)[:, None]
    leaf = torch.cat([logits[:1].masked_fill(forbidden, -math.inf), logits[1:]]).requires_grad_()
    ours = sequence_log_prob(leaf, labels)
    assert ours[0] == -math.inf and ours[1:].isfinite().all()
    (gradient,) = torch.autograd.grad(ours.sum(), leaf)
    # 1 at the label minus the probabilities of the rest
    expected = F.one_hot(labels, 5) - leaf.detach().double().softmax(2)
    assert_close(gradient.double(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_where_every_token_is_forbidden_there_is_no_probability(device):
    logits, label = torch.full((1, 1, 3), -math.inf, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    assert sequence_log_prob(logits, label).isnan().all()
    assert sequence_log_prob(logits, label - 100) == 0


def test_the_plain_definition_masks_likewise(normal):
    logits, labels, mask = sequences(normal)
    leaf = logits.masked_fill(~mask[:, :, None], math.nan).requires_grad_()
    (gradient,) = torch.autograd.grad(plain_token_log_probs(leaf, labels, mask).sum(), leaf)
    assert (gradient[~mask] == 0).all() and gradient.isfinite().all()


def test_a_vocabulary_of_one_token_has_no_surprises(device):
    labels = torch.tensor([[0, -100]], device=device)
    log_probs = sequence_log_prob(torch.ones(1, 2, 1, device=device), labels, mask=labels == 0)
    assert log_probs.tolist() == [0.0]


def test_a_label_that_counts_must_exist():
    for label in (-101, -99, -1, 5):
        with pytest.raises((RuntimeError, IndexError)):
            sequence_log_prob(torch.zeros(1, 1, 5), torch.tensor([[label]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_may_have_any_integer_dtype(normal, dtype):
    logits, labels, mask = sequences(normal)
    assert_close(sequence_log_prob(logits, labels.to(dtype), mask=mask), sequence_log_prob(logits, labels, mask=mask))


@pytest.mark.parametrize(
    "slicing", [lambda x: x[:, :-1], lambda x: x[:, ::2], lambda x: x.mT, lambda x: x[:1].expand(3, 4, 5)]
)
def test_logits_may_be_a_view(normal, block, slicing):
    logits, labels, _ = sequences(normal)
    view = slicing(logits.requires_grad_())
    labels = labels[:, : view.shape[1]] if view.shape[1] <= 4 else labels[:, [0, 1, 2, 3, 0]] % 4
    ours, plain = sequence_log_prob(view, labels), plain_token_log_probs(view, labels, everywhere(labels)).sum(dim=1)
    assert_close(ours, plain)
    assert_close(*(torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (ours, plain)))


def test_there_may_be_no_tokens_and_no_sequences(normal):
    for shape in ((2, 0, 5), (0, 3, 5)):
        logits = normal(0, *shape).requires_grad_()
        labels = torch.zeros(shape[:2], dtype=torch.long, device=logits.device)
        log_probs = sequence_log_prob(logits, labels)
        assert log_probs.tolist() == [0.0] * shape[0]
        assert torch.autograd.grad(log_probs.sum(), logits)[0].shape == shape


def test_blocks_cover_every_token_once_and_hold_no_more_than_they_may(monkeypatch):
    monkeypatch.setattr(mathlib._preference, "BLOCK", {"cpu": 24})
    for shape in ((3, 4, 5), (2, 9, 6), (7, 1, 12), (5, 2, 3), (2, 3, 100)):
        seen = torch.zeros(shape)
        blocks = list(mathlib._preference.blocks(seen))
        for block in blocks:
            seen[block] += 1
            assert seen[block].numel() <= 24 or seen[block].shape[:2] == (1, 1)
        assert (seen == 1).all()
    assert len(list(mathlib._preference.blocks(torch.zeros(5, 2, 3)))) == 2  # 4 sequences of 6 logits, then 1


def test_nothing_waits_for_the_backward_pass_but_the_arguments(normal):
    logits, labels, mask = sequences(normal)
    logits.requires_grad_()
    saved = []

    def note(x):
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        sequence_log_prob(logits, labels, mask=mask)
    assert [x.shape for x in saved if x.is_floating_point()] == [logits.shape]
    assert all(x.data_ptr() == logits.data_ptr() for x in saved if x.is_floating_point())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_derivatives_are_refused(normal):
    logits, labels, _ = sequences(normal)
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: sequence_log_prob(x, labels), (logits,), (torch.ones_like(logits),))


def test_the_gradient_of_a_gradient_is_never_silently_zero(normal):
    logits, labels, mask = sequences(normal)
    logits.requires_grad_()
    penalties = []
    for log_probs in (sequence_log_prob(logits, labels, mask=mask), plain_token_log_probs(logits, labels, mask)):
        (gradient,) = torch.autograd.grad(log_probs.sum(), logits, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    assert_close(*penalties)
    assert (penalties[0] != 0).any()


def test_torch_func_grad_is_the_gradient(normal, block):
    logits, labels, mask = sequences(normal)
    ours = torch.func.grad(lambda x: sequence_log_prob(x, labels, mask=mask).sum())(logits)
    value, pull = torch.func.vjp(lambda x: sequence_log_prob(x, labels, mask=mask), logits)
    assert_close(pull(torch.ones_like(value))[0], ours)
    (expected,) = torch.autograd.grad(sequence_log_prob(logits.requires_grad_(), labels, mask=mask).sum(), logits)
    assert_close(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_nothing(normal, dtype):
    logits, labels, mask = sequences(normal, dtype=dtype)
    log_probs = [normal(seed, 5, dtype=dtype) for seed in range(4)]

    def values():
        return sequence_log_prob(logits, labels, mask=mask), dpo_loss(*log_probs, label_smoothing=0.1)

    with torch.autocast(logits.device.type, dtype=torch.bfloat16):
        inside = values()
    assert_close(inside, values(), rtol=0, atol=0)


def test_inputs_are_not_mutated(normal):
    logits, labels, mask = sequences(normal)
    log_probs = [normal(seed, 5) for seed in range(4)]
    before = [x.clone() for x in (logits, labels, mask, *log_probs)]
    sequence_log_prob(logits.requires_grad_(), labels, mask=mask).sum().backward()
    dpo_loss(*log_probs, label_smoothing=0.1)
    assert_close([logits.detach(), labels, mask, *log_probs], before, rtol=0, atol=0)


@pytest.fixture(scope="module")
def unhooked():
    """The module run as a file: the check of shapes wraps inner functions too, and dynamo can't trace that."""
    return runpy.run_path(mathlib._preference.__file__)


@pytest.mark.parametrize("masked", [False, True])
def test_log_probs_compile_without_a_graph_break(normal, bad_input, unhooked, masked):
    logits, labels, mask = sequences(normal)
    logits.requires_grad_()
    mask = mask if masked else None
    compiled = torch.compile(unhooked["sequence_log_prob"], backend="aot_eager", fullgraph=True)
    ours, eager = (f(logits, labels, mask=mask) for f in (compiled, sequence_log_prob))
    assert "TokenLogProbs" not in str(ours.grad_fn)
    assert_close(ours, eager)
    assert_close(*(torch.autograd.grad(x.sum(), logits) for x in (ours, eager)))


def test_dpo_compiles_without_a_graph_break(normal, bad_input, unhooked):
    leaves = [normal(seed, 5).requires_grad_() for seed in range(4)]
    compiled = torch.compile(unhooked["dpo_loss"], backend="aot_eager", fullgraph=True)
    ours, eager = (f(*leaves, label_smoothing=0.1) for f in (compiled, dpo_loss))
    assert_close(ours, eager)
    assert_close(*(torch.autograd.grad(x, leaves) for x in (ours, eager)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_in_every_dtype(normal, dtype, smoothing):
    leaves = [(normal(seed, 5, dtype=dtype) * 10).requires_grad_() for seed in range(4)]
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    ours = dpo_loss(*leaves, label_smoothing=smoothing)
    exact = dpo_loss(*exact_leaves, label_smoothing=smoothing)
    assert ours.dtype == (torch.float32 if dtype in HALVES else dtype)
    assert_close(ours.double(), exact, rtol=2e-6, atol=0)
    for x, y in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(exact, exact_leaves), strict=True):
        assert x.dtype == dtype
        assert_close(x, y.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_differences_of_half_log_probs_are_not_rounded(device, dtype):
    # 1 - 2^-11 is no half; the margin is 2 - 2^-11
    pair = [torch.tensor([x], dtype=dtype, device=device) for x in (1.0, -1.0, 2**-11, 0.0)]
    assert dpo_loss(*pair, beta=1.0).item() == pytest.approx(math.log1p(math.exp(-(2 - 2**-11))), rel=2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("size", [200.0, 6e4])
def test_huge_margins_neither_overflow_nor_vanish(device, dtype, smoothing, size):
    chosen = torch.tensor([size, -size], dtype=dtype, device=device, requires_grad=True)
    zeros = torch.zeros(2, dtype=dtype, device=device)
    losses = dpo_loss(chosen, zeros, zeros, zeros, beta=1.0, label_smoothing=smoothing, reduction="none")
    # ahead: epsilon h, and behind: (1 - epsilon) |h|
    size = chosen[0].item()
    assert losses.tolist() == pytest.approx([smoothing * size, (1 - smoothing) * size], rel=1e-6, abs=1e-80)
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    assert gradient.tolist() == pytest.approx([smoothing, smoothing - 1], abs=1e-80)


def test_a_tiny_loss_is_not_rounded_to_zero(device):
    zero = torch.zeros(1, device=device)
    assert dpo_loss(zero + 40, zero, zero, zero, beta=1.0).item() == pytest.approx(math.exp(-40), rel=1e-6)


def test_a_rejected_answer_that_has_become_impossible_costs_nothing(device):
    zero = torch.zeros(1, device=device)
    impossible = torch.full((1,), -math.inf, device=device, requires_grad=True)
    loss = dpo_loss(zero, impossible, zero, zero)
    assert loss == 0
    assert torch.autograd.grad(loss, impossible)[0] == 0


IMPOSSIBLE = {
    # log-probabilities of chosen and rejected under the policy, then under the reference; the margin at beta = 1; how
    # it grows with the policy's two
    "rejected, by the policy": ((-1.0, -math.inf, -1.0, -1.0), math.inf, (1, -1)),
    "chosen, by the policy": ((-math.inf, -1.0, -1.0, -1.0), -math.inf, (1, -1)),
    "rejected, by the reference": ((-1.0, -1.0, -1.0, -math.inf), -math.inf, (1, -1)),
    "chosen, by the reference": ((-1.0, -1.0, -math.inf, -1.0), math.inf, (1, -1)),
    # what both forbid has gained nothing: the other answer's gain counts
    "chosen, by both": ((-math.inf, -2.0, -math.inf, -1.0), 1.0, (0, -1)),
    "rejected, by both": ((-1.0, -math.inf, -2.0, -math.inf), 1.0, (1, 0)),
    "both, by both": ((-math.inf, -math.inf, -math.inf, -math.inf), 0.0, (0, 0)),
    "both, by the policy": ((-math.inf, -math.inf, -1.0, -2.0), 0.0, (0, 0)),
    "both, by the reference": ((-1.0, -2.0, -math.inf, -math.inf), 0.0, (0, 0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_answers(device, dtype, smoothing, case):
    log_probs, h, signs = IMPOSSIBLE[case]
    # beside the impossible pair stands one that is not
    tensors = [torch.tensor([x, -1.0], dtype=dtype, device=device, requires_grad=True) for x in log_probs]
    losses = dpo_loss(*tensors, beta=1.0, label_smoothing=smoothing, reduction="none")
    shares = {h: 1 - smoothing, -h: smoothing} if smoothing and h else {h: 1.0}
    loss = sum(share * math.log1p(math.exp(-x)) for x, share in shares.items())
    assert losses.tolist() == pytest.approx([loss, math.log(2)], rel=1e-6)
    gradients = torch.autograd.grad(losses.sum(), tensors)
    slope = smoothing - 1 / (1 + math.exp(h))
    found = [x[0].item() for x in gradients]
    assert found == pytest.approx([slope * sign for sign in (*signs, -signs[0], -signs[1])], rel=0.02, abs=1e-9)
    assert all(x[1].isfinite() and x[1] != 0 for x in gradients)


def test_a_batch_of_batches_is_each_of_them(normal):
    logits, (labels, mask) = normal(0, 2, 3, 4, 5), sequences(normal)[1:]

    def log_probs(logits, labels, mask):
        return sequence_log_prob(logits, labels, mask=mask)

    def gradient(logits, labels, mask):
        return torch.func.grad(lambda x: log_probs(x, labels, mask).sum())(logits)

    for function in (log_probs, gradient):
        expected = torch.stack([function(x, labels, mask) for x in logits])
        assert_close(torch.vmap(function, (0, None, None))(logits, labels, mask), expected)
        last = torch.vmap(function, (3, 1, None), 1)(logits.movedim(0, 3), torch.stack([labels, labels], dim=1), mask)
        assert_close(last.movedim(1, 0), expected)


# Gradients


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_logits(normal, block, masked):
    logits, labels, mask = sequences(normal)
    mask = mask if masked else None

    def log_probs(logits):
        return sequence_log_prob(logits, labels, mask=mask)

    assert torch.autograd.gradcheck(log_probs, logits.requires_grad_())
    assert torch.autograd.gradgradcheck(log_probs, logits, fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck_of_dpo(normal, reduction, smoothing):
    leaves = tuple(normal(seed, 3).requires_grad_() for seed in range(4))

    def loss(*log_probs):
        return dpo_loss(*log_probs, beta=0.7, label_smoothing=smoothing, reduction=reduction)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


# What is refused, and how

GOOD_SEQUENCES = {"logits": torch.zeros(2, 3, 5), "labels": torch.zeros(2, 3).long()}
GOOD_PAIRS = dict.fromkeys(
    ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"), torch.zeros(2)
)
others = ("policy_rejected", "reference_chosen", "reference_rejected")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"logits": [0.0]}, TypeError, "logits must be a torch.Tensor, was list"),
        ({"labels": [[0]]}, TypeError, "labels must be a torch.Tensor, was list"),
        ({"mask": True}, TypeError, "mask must be a torch.Tensor, was bool"),
        (
            {"logits": torch.zeros(2, 3, 5).long()},
            TypeError,
            "logits must have a floating-point dtype, was torch.int64",
        ),
        ({"labels": torch.zeros(2, 3)}, TypeError, "labels must have an integer dtype, was torch.float32"),
        ({"labels": torch.zeros(2, 3).bool()}, TypeError, "labels must have an integer dtype, was torch.bool"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must have a bool dtype, was torch.float32"),
        ({"mask": torch.ones(2, 3).long()}, TypeError, "mask must have a bool dtype, was torch.int64"),
        ({"logits": torch.zeros(3, 5)}, ValueError, "logits must have shape [B, T, V], was [3, 5]"),
        (
            {"logits": torch.zeros(2, 3, 0)},
            ValueError,
            "logits must have at least one token in their vocabulary, was [2, 3, 0]",
        ),
        ({"labels": torch.zeros(2).long()}, ValueError, "labels must have shape [B, T] = [2, 3], was [2]"),
        ({"labels": torch.zeros(1, 3).long()}, ValueError, "labels must have shape [B, T] = [2, 3], was [1, 3]"),
        ({"labels": torch.zeros(2, 2).long()}, ValueError, "labels must have shape [B, T] = [2, 3], was [2, 2]"),
        ({"mask": torch.ones(3).bool()}, ValueError, "mask must have shape [B, T] = [2, 3], was [3]"),
        ({"mask": torch.ones(1, 3).bool()}, ValueError, "mask must have shape [B, T] = [2, 3], was [1, 3]"),
        ({"mask": torch.ones(2, 1).bool()}, ValueError, "mask must have shape [B, T] = [2, 3], was [2, 1]"),
        (
            {"labels": torch.zeros(2, 3, device="meta").long()},
            ValueError,
            "labels must be on the device of logits, cpu, was meta",
        ),
        (
            {"mask": torch.ones(2, 3, device="meta").bool()},
            ValueError,
            "mask must be on the device of logits, cpu, was meta",
        ),
    ],
)
def test_sequence_log_prob_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        sequence_log_prob(**{**GOOD_SEQUENCES, **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"policy_chosen": -1.0}, TypeError, "policy_chosen must be a torch.Tensor, was float"),
        *(({name: None}, TypeError, f"{name} must be a torch.Tensor, was NoneType") for name in others),
        (
            {"policy_chosen": torch.zeros(2).long()},
            TypeError,
            "policy_chosen must have a floating-point dtype, was torch.int64",
        ),
        *(
            ({name: torch.zeros(2).int()}, TypeError, f"{name} must have a floating-point dtype, was torch.int32")
            for name in others
        ),
        *(
            (
                {name: torch.zeros(2).double()},
                TypeError,
                f"{name} must have the dtype of policy_chosen, torch.float32, was torch.float64",
            )
            for name in others
        ),
        *(
            (
                {name: torch.zeros(2, device="meta")},
                ValueError,
                f"{name} must be on the device of policy_chosen, cpu, was meta",
            )
            for name in others
        ),
        ({"policy_chosen": torch.zeros(2, 3)}, ValueError, "policy_chosen must have shape [B], was [2, 3]"),
        *(({name: torch.zeros(2, 1)}, ValueError, f"{name} must have shape [B] = [2], was [2, 1]") for name in others),
        *(({name: torch.zeros(1)}, ValueError, f"{name} must have shape [B] = [2], was [1]") for name in others),
        (dict.fromkeys(GOOD_PAIRS, torch.zeros(0)), ValueError, "policy_chosen must have at least one row, was [0]"),
        ({"beta": 0}, ValueError, "beta must be a finite number and > 0, was 0"),
        ({"beta": -0.1}, ValueError, "beta must be a finite number and > 0, was -0.1"),
        ({"beta": math.inf}, ValueError, "beta must be a finite number and > 0, was inf"),
        ({"beta": None}, TypeError, "beta must be a finite number and > 0, was NoneType"),
        ({"beta": torch.tensor(0.1)}, TypeError, "beta must be a finite number and > 0, was Tensor"),
        (
            {"label_smoothing": -0.1},
            ValueError,
            "label_smoothing must be a finite number and >= 0 and < 0.5, was -0.1",
        ),
        ({"label_smoothing": 0.5}, ValueError, "label_smoothing must be a finite number and >= 0 and < 0.5, was 0.5"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a finite number and >= 0 and < 0.5, was bool"),
        ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', was 'max'"),
        ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', was None"),
    ],
)
def test_dpo_loss_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        dpo_loss(**{**GOOD_PAIRS, **wrong})
    assert str(caught.value) == message
