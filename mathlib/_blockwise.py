"""One pass over a batch, some rows of scores at a time: the losses and, with them, the gradients.

A loss of rows of scores needs B x C scores, but never all at once. For each block of rows this
engine multiplies out the scores, asks the loss for its value and for its derivative at each
score, and adds what that means for the embeddings: three matrix products for the whole batch, in
memory of block x C. Ordinary autograd keeps several B x C matrices for the backward pass.

What the loss is, the engine does not know. `contrastive` and `gist` bring it as `Slopes`, and bring
`plain`, the same loss as its definition reads; that one is differentiated where a gradient shall have
a gradient itself, and it is what the tests compare with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mathlib.similarity import direction

Places = Callable[[Tensor], list[Tensor]]
Slopes = Callable[[int, int, Tensor, Tensor, Places, Tensor | float], tuple[Tensor, Tensor, Tensor, Tensor]]
"""(first, last, positive_scores [R], scores [R, C], own, temperature)
-> (losses [R], by_scores [R, C], at_positive [R], scale [R]).

by_scores, times scale, are the derivatives of the losses by the scores over the temperature, at_positive,
times scale, that by the positive's. The scores may be overwritten. own(matrix) are views of a matrix of
their shape at what is no candidate, the positive itself or a row compared with itself; the scores read -inf there.
"""


class Softmax(NamedTuple):
    """Of each row's candidates apart from the positive, whose logit is 0."""

    shares: Tensor
    """Their probabilities among themselves [R, C]."""
    lead: Tensor
    """log of the sum of their exponentials [R]: the logit of all of them together, -inf if there are none."""


def softmax_(logits: Tensor, weights: Tensor | None = None, own: Places | None = None) -> Softmax:
    """The softmax of logits [R, C]; in a row that has nothing but -inf, one of those may be overwritten.

    With weights, exp(z_i) counts w_i times, except at the own places, where a rule may have answered anything. Logits
    of weight 0 must read -inf: far above the others, they would leave them no digits.
    """
    if logits.shape[1] == 0:
        return Softmax(logits, logits.new_full((len(logits),), -torch.inf))
    highest = logits.amax(dim=1)
    dead = highest == -torch.inf
    logits[:, 0].masked_fill_(dead, 0.0)  # the shares of a row need a sum
    shares = logits.softmax(dim=1)
    # the share of the highest is 1 / sum_i exp(z_i - highest): no further pass over the block
    lead = highest - shares.amax(dim=1).log()
    if weights is not None and own is not None:
        shares.mul_(weights)
        for view in own(shares):
            view.zero_()
        whole = shares.sum(dim=1)
        lead = lead + whole.log()
        shares.div_(whole.masked_fill(whole == 0, 1.0)[:, None])
    return Softmax(shares, lead)


class Task(NamedTuple):
    """Which candidates there are, and what is asked of their scores."""

    slopes: Slopes
    plain: Callable[[Tensor, Tensor, Tensor | None, Tensor | float], Tensor]
    rows: int
    """So many anchors have a loss; further rows, other processes' own, are candidates and nothing else."""
    in_batch: bool
    among: tuple[str, ...] = ()
    """Further candidates: "anchor" and "positive" compare each row of these with all others of them."""
    both: bool = False
    """Half of the loss is that of the positives, each among all anchors."""
    block_size: int | None = None


class Embeddings(NamedTuple):
    """Of unit length; their gradients make a second one, without anything where none were asked for."""

    anchor: Any
    positive: Any
    negatives: Any


def row_blocks(task: Task, embeddings: Embeddings) -> list[tuple[int, int]]:
    """(first, last) of the blocks of rows."""
    size = task.block_size
    if size is None:
        # CPU: a block of scores shall stay in the cache from its product to the next; CUDA: fill the device
        size = 512 if embeddings.anchor.device.type == "cpu" else max(512, 2**28 // width(task, embeddings))
    return [(first, min(first + size, task.rows)) for first in range(0, task.rows, size)]


def pairings(task: Task, x: Embeddings) -> list[tuple[Tensor, Tensor]]:
    """(left, right) of each product: row b of left is compared with all rows of right."""
    pairs = [(x.anchor, x.positive)] if task.in_batch else []
    pairs += [(getattr(x, name), getattr(x, name)) for name in task.among]
    if x.negatives is not None and not own_negatives(task, x):
        pairs.append((x.anchor, x.negatives.flatten(0, -2)))
    return pairs


def own_negatives(task: Task, x: Embeddings) -> bool:
    """Whether each anchor has candidates that no other has."""
    return x.negatives is not None and x.negatives.ndim == 3 and not task.in_batch


def width(task: Task, x: Embeddings) -> int:
    """The number of candidates in a row of scores, the positive's place included."""
    own = x.negatives.shape[1] if x.negatives is not None and own_negatives(task, x) else 0
    return own + sum(len(right) for _, right in pairings(task, x))


def no_candidates(widths: list[int], first: int, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix [R, C], rows from first on: where a row meets its positive or, further on, itself.

    The first columns are blocks of these widths.
    """
    return [block.diagonal(first) for block in matrix[:, : sum(widths)].split(widths, dim=1)] if widths else []


def fill(task: Task, x: Embeddings, first: int, last: int, scores: Tensor) -> tuple[Tensor, Places]:
    """Write the scores of some rows; return the positive's [R], and where those are that are -inf."""
    pairs, start = pairings(task, x), 0
    for left, right in pairs:
        torch.mm(left[first:last], right.T, out=scores[:, start : start + len(right)])
        start += len(right)
    if own_negatives(task, x):
        torch.bmm(x.negatives[first:last], x.anchor[first:last, :, None], out=scores[:, :, None])
    widths = [len(right) for _, right in pairs[: task.in_batch + len(task.among)]]
    own = partial(no_candidates, widths, first)
    if task.in_batch:
        # read off the product: computed apart, it would not tie with its copies among the candidates
        positive_scores = own(scores)[0].clone()
    else:
        positive_scores = torch.linalg.vecdot(x.anchor[first:last], x.positive[first:last])
    for view in own(scores):
        view.fill_(-torch.inf)
    return positive_scores, own


def one_pass(
    task: Task, upstream: Tensor | float | None, x: Embeddings, temperature: Tensor | float
) -> tuple[Tensor, Embeddings, Tensor | None]:
    """The loss of each row and, unless upstream is None, the gradients of their sum weighted by upstream.

    The last one is the sum of score times derivative, which is that by log(1 / temperature): a loss knows
    scores only as multiples of the temperature.
    """
    losses = x.anchor.new_empty(task.rows)
    blocks = row_blocks(task, x)
    buffer = x.anchor.new_empty(blocks[0][1], width(task, x))
    columns = column_totals(task, x, temperature, buffer) if task.both else None
    if upstream is None:
        for first, last in blocks:
            scores = buffer[: last - first]
            positive_scores, own = fill(task, x, first, last, scores)
            losses[first:last] = task.slopes(first, last, positive_scores, scores, own, temperature)[0]
        return halves(losses, columns), x, None

    gradients = Embeddings(*(None if y is None else torch.zeros_like(y) for y in x))
    by_scale = losses.new_zeros(())
    for first, last in blocks:
        scores = buffer[: last - first]
        positive_scores, own = fill(task, x, first, last, scores)
        other = None if columns is None else by_columns(columns, scores, first, upstream, temperature)
        slopes = task.slopes(first, last, positive_scores, scores, own, temperature)
        losses[first:last], scores, at_positive, scale = slopes
        scale = scale * (upstream[first:last] if isinstance(upstream, Tensor) else upstream) / temperature
        at_positive = at_positive * scale
        scores.mul_(scale[:, None])
        for i, view in enumerate(own(scores)):
            view.zero_() if i or not task.in_batch else view.copy_(at_positive)
        if other is not None:
            scores.div_(2)[:, : other.shape[1]].add_(other)
        start = 0
        for (left, right), (left_gradient, right_gradient) in zip(
            pairings(task, x), pairings(task, gradients), strict=True
        ):
            block, rows = scores[:, start : start + len(right)], left[first:last]
            pull = block @ right
            left_gradient[first:last] += pull
            by_scale += torch.linalg.vecdot(rows, pull).sum()
            right_gradient.addmm_(block.T, rows)
            start += len(right)
        a, p = x.anchor[first:last], x.positive[first:last]
        if own_negatives(task, x):
            pull = torch.bmm(scores[:, None], x.negatives[first:last])[:, 0]
            gradients.anchor[first:last] += pull
            by_scale += torch.linalg.vecdot(a, pull).sum()
            torch.mul(scores[:, :, None], a[:, None], out=gradients.negatives[first:last])
        if not task.in_batch:
            gradients.anchor[first:last].addcmul_(at_positive[:, None], p)
            gradients.positive[first:last].addcmul_(at_positive[:, None], a)
            by_scale += at_positive @ positive_scores
    return halves(losses, columns), gradients, by_scale


class Columns(NamedTuple):
    """Of each positive among all anchors: its score, and the logit of all other anchors together."""

    positive_scores: Tensor
    lead: Tensor


def column_totals(task: Task, x: Embeddings, temperature: Tensor | float, buffer: Tensor) -> Columns:
    """One pass for what a column needs to know before its entries can be differentiated."""
    positive_scores = torch.linalg.vecdot(x.anchor, x.positive)
    lead = torch.full_like(positive_scores, -torch.inf)
    for first, last in row_blocks(task, x):
        logits = buffer[: last - first, : len(x.positive)]
        torch.mm(x.anchor[first:last], x.positive.T, out=logits)
        logits.diagonal(first).fill_(-torch.inf)
        lead = torch.logaddexp(lead, logits.sub_(positive_scores).div_(temperature).logsumexp(dim=0))
    return Columns(positive_scores, lead)


def by_columns(
    columns: Columns, scores: Tensor, first: int, upstream: Tensor | float, temperature: Tensor | float
) -> Tensor:
    """Half of the columns' derivatives by a block of scores; the positive's own stands at its place."""
    rows, others = len(scores), len(columns.lead)
    derivatives = (scores[:, :others] - columns.positive_scores).div_(temperature)
    derivatives.sub_(surprise(columns.lead)).exp_()
    derivatives.diagonal(first).copy_(-columns.lead.sigmoid()[first : first + rows])
    return derivatives.mul_(upstream / temperature / 2)


def halves(losses: Tensor, columns: Columns | None) -> Tensor:
    """The losses of rows, or their mean with those of the columns."""
    return losses if columns is None else (losses + surprise(columns.lead)) / 2


def surprise(lead: Tensor) -> Tensor:
    """log(1 + exp(lead)): the loss of a positive whose logit is 0."""
    return torch.logaddexp(lead, torch.zeros_like(lead))


class Blockwise(torch.autograd.Function):
    """The losses of `task`; their gradients are computed on the way, or, for rows apart, in the backward pass."""

    @staticmethod
    def forward(
        task: Task,
        factor: float | None,
        wanted: bool,
        anchor: Tensor,
        positive: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | float,
    ) -> tuple[Tensor | None, ...]:
        upstream = factor if wanted else None
        losses, gradients, by_temperature = gradients_of(task, upstream, (anchor, positive, negatives), temperature)
        if factor is not None:
            losses = losses.sum() * factor
        return losses, *gradients, by_temperature

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.task, ctx.factor, _, anchor, positive, negatives, temperature = inputs
        ctx.temperature = temperature
        learned = temperature if isinstance(temperature, Tensor) else None
        ctx.save_for_backward(anchor, positive, negatives, learned, *outputs[1:])
        ctx.mark_non_differentiable(*(x for x in outputs[1:] if x is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: Any) -> tuple[Any, ...]:
        if upstream is None:
            return (None,) * 7
        saved: Any = ctx.saved_tensors
        inputs, learned = saved[:3], saved[3]
        gradients, by_temperature = Embeddings(*saved[4:7]), saved[7]
        temperature = ctx.temperature if learned is None else learned
        if torch.is_grad_enabled():  # somebody wants to differentiate the gradient
            losses: Any = ctx.task.plain(*inputs, temperature)
            if ctx.factor is not None:
                losses = losses.sum() * ctx.factor
            leaves = [x for x, needed in zip((*inputs, learned), ctx.needs_input_grad[3:], strict=True) if needed]
            found = iter(torch.autograd.grad(losses, leaves, upstream, create_graph=True, materialize_grads=True))
            return None, None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[3:])
        if ctx.factor is None:
            _, gradients, by_temperature = gradients_of(ctx.task, upstream, inputs, temperature)
            upstream = upstream.new_ones(())
        given: list[Tensor | None] = []
        for x, gradient in zip((*inputs, learned), (*gradients, by_temperature), strict=True):
            # rounded to a half-precision input's dtype only now: before, a small gradient might vanish
            given.append(None if x is None or gradient is None else (gradient * upstream).to(x.dtype))
        return None, None, None, *given


def gradients_of(
    task: Task,
    upstream: Tensor | float | None,
    given: tuple[Tensor, Tensor, Tensor | None],
    temperature: Tensor | float,
) -> tuple[Tensor, Embeddings, Tensor | None]:
    """`one_pass` for embeddings of any length and dtype, and the derivative by the temperature."""
    with torch.autocast(given[0].device.type, enabled=False):
        units, lengths = zip(*((None, None) if y is None else direction(y) for y in given), strict=True)
        t = temperature.to(units[0].dtype) if isinstance(temperature, Tensor) else temperature
        losses, gradients, by_scale = one_pass(task, upstream, Embeddings(*units), t)
        if by_scale is None:
            return losses, Embeddings(None, None, None), None
        for gradient, y, length in zip(gradients, units, lengths, strict=True):
            if gradient is not None:
                # only what turns the vector counts
                gradient.addcmul_(y, torch.linalg.vecdot(gradient, y)[..., None], value=-1).div_(length)
        return losses, gradients, -by_scale / t


def blockwise(
    task: Task,
    reduction: str,
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | float,
) -> Tensor:
    """The loss of the task; its gradients can be differentiated once more, through `plain`."""
    factor = {"mean": 1 / task.rows, "sum": 1.0, "none": None}[reduction]
    tensors = [x for x in (anchor, positive, negatives, temperature) if isinstance(x, Tensor)]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return Blockwise.apply(task, factor, wanted, anchor, positive, negatives, temperature)[0]
