"""The training loop that the chapters share; chapter 01 shows it line by line."""

from collections.abc import Callable

import torch
from torch import Tensor

from mathlib.book.text import Bags
from mathlib.retrieval import DualEncoder


def train(
    model: DualEncoder,
    queries: Bags,
    documents: Bags,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
    epochs: int = 2,
    batch_size: int = 256,
    learning_rate: float = 0.05,
) -> None:
    """Minimise loss(query embeddings, document embeddings) over shuffled batches of pairs, with Adam.

    Row i of queries belongs to row i of documents. The order of the batches is drawn from the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(queries.ids), generator=generator).split(batch_size):
            optimiser.zero_grad()
            loss(*model(queries.rows(batch), documents.rows(batch))).backward()
            optimiser.step()
