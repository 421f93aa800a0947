"""How the labs judge a search on text: by the first ten documents that a model finds for each query."""

from collections.abc import Iterable, Sequence

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


class Gains(list[float]):
    """What each seed gains; and `over_queries`, half the 95 % interval of the mean over queries.

    `by_query` [queries] are the gains of the seeds whose rankings are at hand, on average; the queries of one group are
    one draw.

    >>> Gains([0.1, -0.1], torch.tensor([4, 4, 7]), torch.tensor([1.0, 1.0, -2.0])).over_queries
    1.847...
    """

    def __init__(self, values: Iterable[float], groups: Tensor, by_query: Tensor) -> None:
        super().__init__(values)
        numbers = groups.unique(return_inverse=True)[1]
        off = torch.zeros(int(numbers.max()) + 1, dtype=by_query.dtype)
        off.index_add_(0, numbers, by_query - by_query.mean())
        self.over_queries = 1.96 * float(off.square().sum().sqrt()) / len(by_query)
