"""Hugging Face's transformers: masks as its models build them, whose forbidden places are the lowest finite number."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("transformers", reason="transformers is not installed: make peers")

from transformers import GPT2Config
from transformers.masking_utils import create_causal_mask

from mathlib import MultiHeadAttention, attention


def mask_of(implementation, dtype, device):
    """Of two sequences of four tokens, the first with two of padding before it."""
    return create_causal_mask(
        config=GPT2Config(attn_implementation=implementation),
        inputs_embeds=torch.zeros(2, 4, 8, dtype=dtype, device=device),
        attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], device=device),
        past_key_values=None,
    )


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_padding_has_finite_numbers_and_the_gradient_of_the_formula(normal, dtype, return_weights):
    query, key, value = (normal(seed, 2, 3, 4, 8, dtype=dtype).requires_grad_() for seed in range(3))
    added, keep = (mask_of(way, dtype, query.device) for way in ("eager", "sdpa"))
    assert (added[0, 0, :2] == torch.finfo(dtype).min).all() and not keep[0, 0, :2].any()

    def found(mask):
        attended = attention(query, key, value, mask=mask, return_weights=return_weights)
        attended = attended[0] if return_weights else attended
        return [attended.detach(), *torch.autograd.grad(attended.float().sum(), (query, key, value))]

    # a constant added to a whole row changes nothing: such a row attends to everything
    ours = found(added)
    assert_close(ours, found(keep | ~keep.any(dim=-1, keepdim=True)))
    assert ours[3].float().sum().item() == pytest.approx(ours[0].numel(), rel=0.01)


def test_a_layer_takes_them_too(normal, device):
    layer = MultiHeadAttention(8, 2).to(device)
    tokens = normal(0, 2, 4, 8, dtype=torch.float32)
    added, keep = (mask_of(way, torch.float32, device) for way in ("eager", "sdpa"))
    with torch.autocast(device, dtype=torch.bfloat16):  # in which the lowest float32 is -inf
        assert_close(layer(tokens, mask=added), layer(tokens, mask=keep | ~keep.any(dim=-1, keepdim=True)))
