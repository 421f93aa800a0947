"""The training loop that the chapters share; chapter 01 shows it line by line."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mathlib import DualEncoder
from mathlib.book.text import Bags

T = TypeVar("T")


def watched(steps: Sequence[T]) -> Iterator[T]:
    """The steps, with a progress bar while they run in a notebook that somebody watches.

    A notebook with a reader can ask for input; one that is only run, to be stored or compared, cannot.
    Nothing is displayed there, so that no bar gets into the stored outputs.

    >>> list(watched([1, 2, 3]))
    [1, 2, 3]
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not getattr(getattr(shell, "kernel", None), "_allow_stdin", False):
        return iter(steps)
    from IPython.display import ProgressBar  # only a running kernel needs it

    return (step for _, step in zip(ProgressBar(len(steps)), steps, strict=False))


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
    falling: bool = False,
) -> None:
    """Minimise loss(query embeddings, document embeddings) over shuffled batches of pairs, with Adam.

    Row i of queries belongs to row i of documents. The order of the batches is drawn from the seed. A falling learning
    rate reaches 0 with the last batch, in a straight line.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    orders = [torch.randperm(len(queries.ids), generator=generator) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    for step, batch in enumerate(watched(batches)):
        if falling:
            optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
        optimiser.zero_grad()
        loss(*model(queries.rows(batch), documents.rows(batch))).backward()
        optimiser.step()
