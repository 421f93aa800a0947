"""info-nce-pytorch. That values and gradients agree is proved in tests/test_contrastive.py; here is where it breaks."""

import pytest
import torch

from mathlib import info_nce

peer = pytest.importorskip("info_nce", reason="info-nce-pytorch is not installed: make peers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_vector_is_nan_to_the_peer_in_float16_and_similarity_0_to_us(normal, dtype):
    anchor, positive = normal(0, 4, 3, dtype=dtype), normal(1, 4, 3, dtype=dtype)
    anchor[0] = 0
    theirs = peer.info_nce(anchor, positive, temperature=0.5)
    # normalize divides by max(|x|, 1e-12), and 1e-12 is 0 in float16
    assert theirs.isnan() == (dtype == torch.float16)
    losses = info_nce(anchor, positive, temperature=0.5, reduction="none")
    assert losses.isfinite().all()
    assert losses[0].item() == pytest.approx(torch.tensor(4.0).log().item())  # 1 of 4 that are all alike
