"""Liger-Kernel: DPO on log-probabilities, and the whole way there from hidden states."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mathlib import dpo_loss, sequence_log_prob

pytest.importorskip("liger_kernel.chunked_loss.dpo_loss", reason="liger-kernel is not installed: make peers")

from agreement import assert_agree
from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction, LigerFusedLinearDPOLoss


def liger(beta, **options):
    """The peer's loss of B pairs of log-probabilities."""

    def loss(chosen, rejected, reference_chosen, reference_rejected):
        pairs = chosen.new_zeros(2 * len(chosen), 1)
        return LigerFusedLinearDPOFunction.preference_loss_fn(
            chosen, rejected, pairs, reference_chosen, reference_rejected, beta=beta, **options
        )[0]

    return loss


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_dpo(normal, beta):
    log_probs = [-20 * normal(seed, 8).abs() for seed in range(4)]
    assert_agree(lambda *x: dpo_loss(*x, beta=beta), liger(beta), *log_probs)


@pytest.mark.parametrize("label_smoothing", [0.1, 0.4])
def test_label_smoothing_is_a_mixture_of_both_labels(normal, label_smoothing):
    def mixture(chosen, rejected, reference_chosen, reference_rejected):
        flipped = rejected, chosen, reference_rejected, reference_chosen
        right = liger(0.3)(chosen, rejected, reference_chosen, reference_rejected)
        return (1 - label_smoothing) * right + label_smoothing * liger(0.3)(*flipped)

    log_probs = [-5 * normal(seed, 8).abs() for seed in range(4)]
    assert_agree(lambda *x: dpo_loss(*x, beta=0.3, label_smoothing=label_smoothing), mixture, *log_probs)


def test_dpo_from_hidden_states(normal):
    # B = 3 pairs, T = 5 tokens, H = 4 features, V = 7 words; the first tokens are the prompt
    hidden, reference_hidden = normal(0, 6, 5, 4), normal(1, 6, 5, 4)
    weight, reference_weight = normal(2, 7, 4), normal(3, 7, 4)
    labels = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(0)).to(hidden.device)
    mask = torch.arange(5, device=hidden.device) >= torch.tensor([1, 2, 0, 3, 1, 4], device=hidden.device)[:, None]

    def ours(hidden, weight):
        policy = sequence_log_prob(hidden @ weight.T, labels, mask=mask)
        reference = sequence_log_prob(reference_hidden @ reference_weight.T, labels, mask=mask)
        return dpo_loss(*policy.chunk(2), *reference.chunk(2), beta=0.2)

    def theirs(hidden, weight):
        peer = LigerFusedLinearDPOLoss(beta=0.2, compiled=False)
        targets = labels.masked_fill(~mask, -100)
        loss, _ = peer(weight, hidden, targets, ref_input=reference_hidden, ref_weight=reference_weight)
        return loss.double()

    assert_agree(ours, theirs, hidden, weight, rtol=1e-5, atol=1e-6)  # the peer sums in float32


# Where a formula as it is often written breaks


def test_a_hopeless_pair_has_a_finite_loss_and_its_whole_gradient(device):
    # beta times the difference is -200, and 1 / (1 + e^200) is 0 in float32
    chosen = torch.tensor([-2000.0], device=device, requires_grad=True)
    zero = torch.zeros(1, device=device)
    assert torch.sigmoid(0.1 * chosen).log().neg().item() == torch.inf
    loss = dpo_loss(chosen, zero, zero, zero, beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert chosen.grad.item() == pytest.approx(-0.1)


def test_a_long_answer_in_bfloat16_is_summed_in_float32(normal):
    logits = normal(0, 4, 512, 50, dtype=torch.bfloat16)
    labels = torch.arange(512, device=logits.device).expand(4, 512) % 50
    exact = F.log_softmax(logits.double(), dim=-1).gather(2, labels[..., None]).sum(dim=(1, 2))
    as_written = F.log_softmax(logits, dim=-1).gather(2, labels[..., None]).sum(dim=(1, 2))
    assert (as_written - exact).abs().max() > 0.5
    assert_close(sequence_log_prob(logits, labels).double(), exact, rtol=0, atol=0.01)
