"""FAISS: exact search by inner product."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mathlib import search

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed: make peers")


def flat(queries, documents, k):
    """The scores and indices of IndexFlatIP."""
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents.cpu().numpy())
    scores, indices = index.search(queries.cpu().numpy(), k)
    return torch.from_numpy(scores).to(queries.device), torch.from_numpy(indices).to(queries.device)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("block_size", [None, 100])
def test_search_is_an_exact_index(normal, metric, block_size):
    queries, documents = normal(0, 50, 16, dtype=torch.float32), normal(1, 1000, 16, dtype=torch.float32)
    scores, indices = search(queries, documents, k=10, metric=metric, block_size=block_size)
    if metric == "cosine":
        queries, documents = F.normalize(queries), F.normalize(documents)
    expected_scores, expected_indices = flat(queries, documents, 10)
    assert_close(scores, expected_scores)
    # scores that differ in the last bit may change places
    assert [set(row) for row in indices.tolist()] == [set(row) for row in expected_indices.tolist()]


@pytest.mark.parametrize("size", [9000, 20_011])
def test_a_large_search_is_an_exact_index(normal, size):
    # several blocks of documents and of queries, and what is left over, by two levels
    queries, documents = normal(0, 600, 16, dtype=torch.float32), normal(1, size, 16, dtype=torch.float32)
    scores, indices = search(queries, documents, k=10)
    expected_scores, expected_indices = flat(queries, documents, 10)
    assert_close(scores, expected_scores)
    assert (indices.sort(dim=1).values == expected_indices.sort(dim=1).values).float().mean() > 0.999


def test_copies_have_the_same_scores_and_ours_come_in_the_order_of_their_index(normal):
    # each document three times: which of the copies FAISS names, and in what order, is its own affair. In integers,
    # whose products no rounding sets apart
    queries, documents = (
        normal(seed, size, 8, dtype=torch.float32).mul(100).round() for seed, size in ((2, 20), (3, 30))
    )
    documents = documents.repeat(3, 1)
    scores, indices = search(queries, documents, k=9)
    expected_scores, expected_indices = flat(queries, documents, 9)
    assert_close(scores, expected_scores)
    assert [set(row) for row in (indices % 30).tolist()] == [set(row) for row in (expected_indices % 30).tolist()]
    assert (indices.view(20, 3, 3).diff(dim=2) == 30).all()
