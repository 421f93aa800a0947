"""torchmetrics: the metrics of a ranking."""

import pytest
import torch
from torch.testing import assert_close

from mathlib import mean_reciprocal_rank, ndcg_at_k, recall_at_k, search

peer = pytest.importorskip("torchmetrics.functional.retrieval", reason="torchmetrics is not installed: make peers")

METRICS = {
    "recall": (lambda r, s: recall_at_k(r, s, k=5), lambda p, t: peer.retrieval_recall(p, t, top_k=5)),
    "mrr": (mean_reciprocal_rank, peer.retrieval_reciprocal_rank),
    "ndcg": (lambda r, s: ndcg_at_k(r, s, k=5), lambda p, t: peer.retrieval_normalized_dcg(p, t, top_k=5)),
}


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_of_a_search(normal, metric):
    ours, theirs = METRICS[metric]
    queries, documents = normal(0, 12, 6).abs(), normal(1, 40, 6).abs()  # all scores are positive
    relevant = [{q, q + 5, 3 * q} for q in range(12)]
    _, ranked = search(queries, documents, k=40)
    scores = queries @ documents.T
    values = []
    for q, row in enumerate(scores):
        target = torch.zeros(40, dtype=torch.bool, device=row.device)
        target[list(relevant[q])] = True
        values.append(theirs(row, target))
    assert_close(ours(ranked, relevant), torch.stack(values).mean().float())


def test_ndcg_of_graded_judgements(normal):
    # its gain is the grade as well
    queries, documents = normal(0, 12, 6).abs(), normal(1, 40, 6).abs()
    grades = normal(2, 12, 40).mul(2).round().clamp(0, 3).long()
    judged = [dict(enumerate(row)) for row in grades.tolist()]
    _, ranked = search(queries, documents, k=40)
    theirs = [peer.retrieval_normalized_dcg(s, g, top_k=5) for s, g in zip(queries @ documents.T, grades, strict=True)]
    assert_close(ndcg_at_k(ranked, judged, k=5, reduction="none"), torch.stack(theirs).float())


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_score_may_be_below_zero(device, metric):
    # cosines often are; document 1 is the best of three, and the relevant one
    ours, theirs = METRICS[metric]
    scores = torch.tensor([[-0.9, -0.1, -0.5, -1.0, -0.8]], device=device)
    target = torch.tensor([False, True, False, False, False], device=device)
    # the peer's recall and reciprocal rank count no result with a score <= 0
    assert theirs(scores[0], target).item() == (1 if metric == "ndcg" else 0)
    ranked = scores.argsort(dim=1, descending=True)
    assert ours(ranked, torch.tensor([1], device=device)).item() == 1
