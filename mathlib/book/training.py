"""The training loop that the chapters share; chapter 01 shows it line by line."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mathlib import DualEncoder
from mathlib.book.text import Bags, TextEncoder

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


@contextlib.contextmanager
def only(model: nn.Module, *bags: Bags) -> Iterator[list[Bags]]:
    """Inside, the tables of the model's text encoders hold the words of these bags alone, renumbered with them.

    A word that no bag has gets no gradient, so that Adam leaves it where it is: what is trained is the same, and a step
    no longer reads and writes the whole table.
    """
    tables = [module.vectors for module in model.modules() if isinstance(module, TextEncoder)]
    whole = [table.weight for table in tables]
    there = torch.zeros(max([1, *map(len, whole)]), dtype=torch.bool)
    for ids in [torch.zeros(1, dtype=torch.long), *(x.ids for x in bags)]:  # number 0 stands for no word
        there[ids] = True
    place = there.cumsum(0) - 1
    for table, weight in zip(tables, whole, strict=True):
        table.weight = nn.Parameter(weight.detach()[there])
    try:
        yield [x._replace(ids=place[x.ids]) for x in bags]
    finally:
        for table, weight in zip(tables, whole, strict=True):
            weight.data[there] = table.weight.detach()
            table.weight = weight


def train(
    model: DualEncoder,
    queries: Bags,
    documents: Bags,
    loss: Callable[..., Tensor],
    *,
    seed: int,
    epochs: int = 2,
    batch_size: int = 256,
    learning_rate: float = 0.05,
    falling: bool = False,
    negatives: Tensor | None = None,
    more: Sequence[Tensor] = (),
    also: Sequence[dict] = (),
) -> None:
    """Minimise loss(query embeddings, document embeddings) over shuffled batches of pairs, with Adam.

    Row i of queries belongs to row i of documents. The order of the batches is drawn from the seed. A falling learning
    rate reaches 0 with the last batch, in a straight line.

    Where there are negatives [pairs, K], the rows of documents that go with each pair, the loss gets their embeddings
    [batch, K, D] too; and then the batch's rows of every tensor in `more` [pairs, ...]. `also` are Adam's further
    groups of parameters, each with a learning rate "lr" of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(queries.ids), generator=generator) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    with only(model, queries, documents) as (queries, documents):
        optimiser = torch.optim.Adam([{"params": model.parameters()}, *also], lr=learning_rate, fused=True)
        rates = [group["lr"] for group in optimiser.param_groups]
        for step, batch in enumerate(watched(batches)):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / len(batches)) if falling else rate
            optimiser.zero_grad()
            rows = batch if negatives is None else torch.cat([batch, negatives[batch].flatten()])
            asked, given = queries.rows(batch), documents.rows(rows)
            if model.query_encoder is model.document_encoder:  # one look-up costs less than two
                both = model.query_encoder(asked, given).split([len(batch), len(rows)])
            else:
                both = model(asked, given)
            q, d = both[0], both[1][: len(batch)]
            own = [] if negatives is None else [both[1][len(batch) :].unflatten(0, (len(batch), -1))]
            loss(q, d, *own, *(x[batch] for x in more)).backward()
            optimiser.step()
