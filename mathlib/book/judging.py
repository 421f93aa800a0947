"""How the labs judge a search on text: by the first ten documents that a model finds for each query."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mathlib import DualEncoder, mean_reciprocal_rank, ndcg_at_k, search
from mathlib.book.text import Bags


@torch.no_grad()
def first_ten(model: DualEncoder, queries: Bags, documents: Bags, answers: Sequence[set[int]]) -> Tensor:
    """The MRR and the nDCG@10 of each query, [2, queries], float64."""
    q, d = model(queries, documents)
    ranked = search(q, d, k=10).indices
    found = [
        mean_reciprocal_rank(ranked, answers, reduction="none"),
        ndcg_at_k(ranked, answers, k=10, reduction="none"),
    ]
    return torch.stack(found).double()


def error_over(groups: Tensor, gains: Tensor) -> float:
    """The standard error of the mean of gains [queries], where the queries of one group are one draw.

    >>> error_over(torch.tensor([4, 4, 7]), torch.tensor([1.0, 1.0, -2.0]))
    0.942...
    """
    numbers = groups.unique(return_inverse=True)[1]
    off = torch.zeros(int(numbers.max()) + 1, dtype=gains.dtype)
    off.index_add_(0, numbers, gains - gains.mean())
    return float(off.square().sum().sqrt()) / len(gains)
