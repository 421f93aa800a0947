"""pytorch-metric-learning: NTXentLoss, and the triplets of TripletMarginMiner."""

import pytest
import torch

from mathlib import info_nce, semi_hard_negatives, similarity_matrix

pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed: make peers")

from agreement import assert_agree
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.miners import TripletMarginMiner


def ntxent(temperature):
    """In-batch InfoNCE: row b of the references is the only one with anchor b's label.

    The labels are cloned because the peer takes one and the same tensor for one and the same batch, in
    which a row is no positive of itself: there would be no pairs, and a loss of 0.
    """

    def loss(anchor, positive):
        labels = torch.arange(len(anchor), device=anchor.device)
        return NTXentLoss(temperature)(anchor, labels, ref_emb=positive, ref_labels=labels.clone())

    return loss


def test_ntxent_is_in_batch_info_nce(normal):
    # up to the 1e-7 or so that NTXentLoss adds inside its logarithm
    tensors = normal(0, 8, 5), normal(1, 8, 5)
    assert_agree(lambda a, p: info_nce(a, p, temperature=0.5), ntxent(0.5), *tensors, rtol=1e-4, atol=1e-6)


def test_ntxent_saturates_where_the_model_is_wrong_and_info_nce_does_not(device):
    # anchor 0 is opposite to its positive and equal to the other: at temperature 0.01 its loss is 2 / 0.01
    anchor = torch.tensor([[1.0, 0.1], [0.1, 1.0]], device=device)
    positive = torch.tensor([[-1.0, 0.2], [1.0, 0.2]], device=device)
    gradients = {}
    for name, loss in (("theirs", ntxent(0.01)), ("ours", lambda a, p: info_nce(a, p, temperature=0.01))):
        leaf = anchor.clone().requires_grad_()
        loss(leaf, positive).backward()
        gradients[name] = leaf.grad[0]
    assert torch.equal(gradients["theirs"], torch.zeros_like(gradients["theirs"]))
    assert gradients["ours"].norm() > 1


@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
def test_semi_hard_below_chooses_the_miners_triplets_and_above_none_of_them(normal, margin):
    anchor, positive = normal(2, 32, 6), normal(3, 32, 6) + normal(2, 32, 6)
    labels = torch.arange(32, device=anchor.device)
    miner = TripletMarginMiner(margin, "semihard", distance=CosineSimilarity())
    anchors, positives, negatives = miner(anchor, labels, ref_emb=positive, ref_labels=labels.clone())
    assert torch.equal(anchors, positives)
    theirs = set(zip(anchors.tolist(), negatives.tolist(), strict=True))
    assert theirs

    scores = similarity_matrix(anchor, positive)
    own = torch.eye(32, dtype=torch.bool, device=anchor.device)
    candidates = scores.masked_fill(own, -torch.inf)
    chosen = {
        side: set(
            map(
                tuple,
                semi_hard_negatives(scores.diag()[:, None], candidates, margin=margin, side=side).nonzero().tolist(),
            )
        )
        for side in ("below", "above")
    }
    assert chosen["below"] == theirs
    assert chosen["above"] and not chosen["above"] & theirs
