"""One pass over a batch, some rows of scores at a time: the losses and, with them, the gradients.

A loss of rows of scores needs B x C scores, but never all at once. For each block of rows this
engine multiplies out the scores, asks the loss for its value and for its derivative at each
score, and adds what that means for the embeddings: three matrix products for the whole batch, in
memory of block x C. Ordinary autograd keeps several B x C matrices for the backward pass.

What the loss is, the engine does not know. `contrastive` and `gist` bring it as `Slopes`, and bring
`plain`, the same loss as its definition reads; that one is differentiated where a gradient shall have
a gradient itself, and it is what the tests compare with.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mathlib.similarity import direction

Places = Callable[[Tensor], list[Tensor]]
Slopes = Callable[[int, int, Tensor, Tensor, Tensor, Places, Tensor | float], tuple[Tensor, Tensor, Tensor, Tensor]]
"""(first, last, positive_scores [R], scores [R, C], spare [R, C], own, temperature)
-> (losses [R], by_scores [R, C], at_positive [R], scale [R]).

by_scores, times scale, are the derivatives of the losses by the scores over the temperature, at_positive,
times scale, that by the positive's. The scores may be overwritten, and spare as well, unless the task asks
`both`. own(matrix) are views of a matrix of their shape at what is no candidate, the positive itself or a row
compared with itself; the scores read -inf there.
"""


class Softmax(NamedTuple):
    """Of each row's candidates apart from the positive."""

    shares: Tensor
    """Their probabilities among themselves [R, C]."""
    lead: Tensor
    """log of the sum of their exponentials [R], relative to the positive's logit; -inf if there are none."""


def removal(dtype: torch.dtype) -> float:
    """What a logit loses that is not to count: more than any logit has, and no infinity, which has no differences."""
    return torch.finfo(dtype).max / 4


def softmax_(
    logits: Tensor, positive_logits: Tensor, weights: Tensor | None = None, own: Places | None = None
) -> Softmax:
    """The softmax of logits [R, C], in their place; -inf, or less the `removal`, is no candidate.

    With weights, exp(z_i) counts w_i times, except at the own places, where a rule may have answered anything. Logits
    of weight 0 must be removed: far above the others, they would leave them no digits.
    """
    highest = logits.amax(dim=1)
    dead = highest < -removal(logits.dtype) / 2
    logits[:, 0].masked_fill_(dead, 0.0)  # the shares of a row need a sum
    shares = torch.softmax(logits, dim=1, out=logits)
    # the share of the highest is 1 / sum_i exp(z_i - highest): no further pass over the block. Its difference from
    # the positive first: at temperature 1e-3 the logits have no digits for the logarithm
    lead = (highest - positive_logits - shares.amax(dim=1).log()).masked_fill_(dead, -torch.inf)
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
    divided: bool
    """Whether slopes get logits, scores over the temperature, which costs no pass over them."""
    among: tuple[str, ...] = ()
    """Further candidates: "anchor" and "positive" compare each row of these with all others of them."""
    both: bool = False
    """Half of the loss is that of the positives, each among all anchors."""
    block_size: int | None = None
    least_rows: int = 512
    """So many rows at once where there are many candidates: the fewer, the more blocks of them are alive."""


class Embeddings(NamedTuple):
    """Of unit length; their gradients make a second one, without anything where none were asked for."""

    anchor: Any
    positive: Any
    negatives: Any


def row_blocks(task: Task, embeddings: Embeddings) -> list[tuple[int, int]]:
    """(first, last) of the blocks of rows."""
    size = task.block_size
    if size is None:
        columns = width(task, embeddings)
        if embeddings.anchor.device.type == "cpu":
            size = min(512, max(task.least_rows, 2**20 // columns))
        else:  # pragma: no cover - needs CUDA: fill the device, no mutate block
            size = max(512, 2**28 // columns)
    return [(first, min(first + size, task.rows)) for first in range(0, task.rows, size)]


def pairings(task: Task, x: Embeddings) -> list[tuple[str, str]]:
    """(left, right) of each product: row b of left is compared with all rows of right."""
    pairs = [("anchor", "positive")] if task.in_batch else []
    pairs += [(name, name) for name in task.among]
    if x.negatives is not None and not own_negatives(task, x):
        pairs.append(("anchor", "negatives"))
    return pairs


def rows_of(x: Embeddings, name: str) -> Any:
    """The embeddings of that name as a matrix, or None."""
    rows = getattr(x, name)
    return rows if rows is None else rows.flatten(0, -2)


def own_negatives(task: Task, x: Embeddings) -> bool:
    """Whether each anchor has candidates that no other has."""
    return x.negatives is not None and x.negatives.ndim == 3 and not task.in_batch


def width(task: Task, x: Embeddings) -> int:
    """The number of candidates in a row of scores, the positive's place included."""
    own = x.negatives.shape[1] if x.negatives is not None and own_negatives(task, x) else 0
    return own + sum(len(rows_of(x, right)) for _, right in pairings(task, x))


def no_candidates(widths: list[int], first: int, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix [R, C], rows from first on: where a row meets its positive or, further on, itself.

    The first columns are blocks of these widths.
    """
    return [block.diagonal(first) for block in matrix[:, : sum(widths)].split(widths, dim=1)]


def fill(
    task: Task, x: Embeddings, first: int, last: int, scores: Tensor, temperature: Tensor | float | None = None
) -> tuple[Tensor, Places]:
    """Write the scores of some rows, over the temperature if given; return the positive's [R], and where those are
    that are -inf.
    """

    def rows(left: str) -> Tensor:
        y = getattr(x, left)[first:last]
        return y if temperature is None else y / temperature

    pairs, start = pairings(task, x), 0
    for left, right in pairs:
        columns = rows_of(x, right)
        torch.mm(rows(left), columns.T, out=scores[:, start : start + len(columns)])
        start += len(columns)
    if own_negatives(task, x):
        torch.bmm(x.negatives[first:last], rows("anchor")[:, :, None], out=scores[:, :, None])
    widths = [len(rows_of(x, right)) for _, right in pairs[: task.in_batch + len(task.among)]]
    own = partial(no_candidates, widths, first)
    if task.in_batch:
        positive_scores = own(scores)[0].clone()
    else:
        positive_scores = torch.linalg.vecdot(rows("anchor"), x.positive[first:last])
    for view in own(scores):
        view.fill_(-torch.inf)
    return positive_scores, own


def one_pass(
    task: Task, upstream: Tensor | None, needed: tuple[bool, ...], x: Embeddings, temperature: Tensor | float
) -> tuple[Tensor, Embeddings]:
    """The loss of each row and, of their sum weighted by upstream, the needed gradients, times the temperature."""
    losses = x.anchor.new_empty(task.rows)
    blocks = row_blocks(task, x)
    buffer = x.anchor.new_empty(blocks[0][1], width(task, x))
    second = torch.empty_like(buffer)
    columns = column_totals(task, x, temperature, buffer) if task.both else None
    gradients = Embeddings(*(torch.zeros_like(y) if want else None for y, want in zip(x, needed, strict=True)))
    for first, last in blocks:
        scores, spare = buffer[: last - first], second[: last - first]
        positive_scores, own = fill(task, x, first, last, scores, temperature if task.divided else None)
        if columns is not None and any(needed):
            by_columns(columns, scores, first, upstream, spare)
        slopes = task.slopes(first, last, positive_scores, scores, spare, own, temperature)
        losses[first:last], scores, at_positive, scale = slopes
        if not any(needed):
            continue
        if upstream is not None:
            scale = scale * upstream[first:last]
        if task.in_batch:
            own(scores)[0].copy_(at_positive)
        if columns is not None:
            both = spare[:, : len(x.anchor)].addcmul_(scores[:, : len(x.anchor)], scale[:, None]).div_(2)
            torch.mul(scores[:, both.shape[1] :], scale[:, None] / 2, out=spare[:, both.shape[1] :])
            scores, scale = spare, torch.ones_like(scale)
        pull_rows(task, x, first, last, scores, at_positive, scale[:, None], gradients)
    return (losses if columns is None else (losses + surprise(columns.lead)) / 2), gradients


def pull_rows(
    task: Task,
    x: Embeddings,
    first: int,
    last: int,
    by_scores: Tensor,
    at_positive: Tensor,
    scale: Tensor,
    gradients: Embeddings,
) -> None:
    """Add what a block of derivatives, its rows yet to be scaled, means for the embeddings."""
    start = 0
    for left, right in pairings(task, x):
        columns, of_left, of_right = rows_of(x, right), rows_of(gradients, left), rows_of(gradients, right)
        block = by_scores[:, start : start + len(columns)]
        if of_left is not None:
            of_left[first:last].addcmul_(block @ columns, scale)
        if of_right is not None:
            # scaled here, where there are fewer numbers than in the block
            of_right.addmm_(block.T, rows_of(x, left)[first:last] * scale)
        start += len(columns)
    a, p = x.anchor[first:last], x.positive[first:last]
    of_a, of_p, of_n = (None if y is None else y[first:last] for y in gradients)
    if own_negatives(task, x):
        if of_a is not None:
            of_a.addcmul_(torch.bmm(by_scores[:, None], x.negatives[first:last])[:, 0], scale)
        if of_n is not None:
            torch.mul((by_scores * scale)[:, :, None], a[:, None], out=of_n)
    if not task.in_batch:
        at_positive = at_positive[:, None] * scale
        if of_a is not None:
            of_a.addcmul_(at_positive, p)
        if of_p is not None:
            of_p.addcmul_(at_positive, a)


class Columns(NamedTuple):
    """Of each positive among all anchors."""

    lead: Tensor
    """The logit of all other anchors together, relative to its own."""
    total: Tensor
    """log of the sum of all exponentials."""


def column_totals(task: Task, x: Embeddings, temperature: Tensor | float, buffer: Tensor) -> Columns:
    """One pass for what a column needs to know before its entries can be differentiated."""
    own_logits, lead = torch.empty_like(x.anchor[:, 0]), torch.empty_like(x.anchor[:, 0])
    turned = Embeddings(x.positive, x.anchor, None)
    for first, last in row_blocks(task, x):
        logits = buffer[: last - first, : len(x.anchor)]
        own_logits[first:last] = fill(task, turned, first, last, logits, temperature)[0]
        lead[first:last] = softmax_(logits, own_logits[first:last]).lead
    return Columns(lead, own_logits + surprise(lead))


def by_columns(columns: Columns, logits: Tensor, first: int, upstream: Tensor | None, out: Tensor) -> None:
    """The columns' derivatives by a block of logits; the positive's own stands at its place."""
    out = out[:, : len(columns.lead)]
    torch.sub(logits[:, : out.shape[1]], columns.total, out=out)
    out.clamp_min_(-80).exp_()  # far below it, exp is slow, and to a sum of probabilities nothing is added
    own = -columns.lead.sigmoid()
    out.diagonal(first).copy_(own[first : first + len(out)])
    if upstream is not None:
        out.mul_(upstream)


def surprise(lead: Tensor) -> Tensor:
    """log(1 + exp(lead)): the loss of a positive whose logit is lower by lead."""
    return torch.logaddexp(lead, torch.zeros_like(lead))


class Blockwise(torch.autograd.Function):
    """The losses of `task`; their gradients are computed on the way, or, for rows apart, in the backward pass."""

    @staticmethod
    def forward(
        task: Task,
        factor: float | None,
        needed: tuple[bool, ...],
        anchor: Tensor,
        positive: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | float,
    ) -> tuple[Tensor | None, ...]:
        needed = needed if factor is not None else (False,) * 4
        losses, *gradients = gradients_of(task, factor, needed, (anchor, positive, negatives), temperature)
        if factor is not None:
            losses = losses.sum() * factor
        return losses, *gradients

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
        needed = ctx.needs_input_grad[3:]
        # views, since the caller may have made one of these of another: that way is theirs to go, not ours
        saved = [None if x is None else x.view_as(x) for x in saved]
        inputs, learned, gradients = saved[:3], saved[3], saved[4:]
        temperature = ctx.temperature if learned is None else learned
        # somebody wants to differentiate the gradient; torch.func.vjp says so too, with nothing to differentiate it by
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in saved[:4]):
            losses: Any = ctx.task.plain(*inputs, temperature)
            if ctx.factor is not None:
                losses = losses.sum() * ctx.factor
            leaves = [x for x, need in zip((*inputs, learned), needed, strict=True) if need]
            found = iter(torch.autograd.grad(losses, leaves, upstream, create_graph=True))
            return None, None, None, *(next(found) if need else None for need in needed)
        if ctx.factor is None:
            _, *gradients = gradients_of(ctx.task, upstream, needed, inputs, temperature)
            upstream = upstream.new_ones(())
        given: list[Tensor | None] = []
        for x, gradient in zip((*inputs, learned), gradients, strict=True):
            # rounded to a half-precision input's dtype only now: before, a small gradient might vanish
            given.append(None if x is None or gradient is None else (gradient * upstream).to(x.dtype))
        return None, None, None, *given


# torch asks for it at each call, and to find it out takes as long as the loss of a small batch
Blockwise.forward.__signature__ = inspect.signature(Blockwise.forward)  # type: ignore[attr-defined]


def gradients_of(
    task: Task,
    upstream: Tensor | float | None,
    needed: tuple[bool, ...],
    given: tuple[Tensor, Tensor, Tensor | None],
    temperature: Tensor | float,
) -> tuple[Any, ...]:
    """`one_pass` for embeddings of any length and dtype: the losses, and the four gradients, None where not needed."""
    with torch.autocast(given[0].device.type, enabled=False):
        units, lengths = zip(*((None, None) if y is None else direction(y) for y in given), strict=True)
        t = temperature.to(units[0].dtype) if isinstance(temperature, Tensor) else temperature
        rows, factor = (upstream, 1.0) if isinstance(upstream, Tensor) else (None, upstream or 1.0)
        wanted = tuple((need or needed[3]) and y is not None for need, y in zip(needed, units, strict=False))
        losses, gradients = one_pass(task, rows, wanted, Embeddings(*units), t)
        along = losses.new_zeros(())
        for gradient, y, length in zip(gradients, units, lengths, strict=True):
            if gradient is not None:
                outward = torch.linalg.vecdot(gradient, y)[..., None]
                along += outward.sum()
                # only what turns the vector counts
                gradient.addcmul_(y, outward, value=-1).div_(length * (t / factor))
        # a score is bilinear: score times derivative appears once for each of its two sides, and a loss knows
        # scores only as multiples of the temperature
        by_temperature = along * (-0.5 * factor) / t**2 if needed[3] else None
        return losses, *gradients, by_temperature


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
    inputs = (anchor, positive, negatives, temperature)
    needed = tuple(torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad for x in inputs)
    return Blockwise.apply(task, factor, needed, *inputs)[0]
