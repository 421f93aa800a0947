"""One pass over a batch, some rows of scores at a time: the losses and, with them, the gradients.

A loss of rows of scores needs B x C scores, but never all at once. For each block of rows this
engine multiplies out the scores, asks the loss for its value and for its derivative at each
score, and adds what that means for the embeddings: three matrix products for the whole batch, in
memory of block x C. Ordinary autograd keeps several B x C matrices for the backward pass.

What the loss is, the engine does not know. It is a `RowLoss`: `definition` reads as the mathematics and is what
autograd differentiates when a second derivative is wanted; `derivatives` computes the same, and its derivatives, on a
block of rows. `tests/test_blockwise.py` holds one against the other.
"""

import inspect
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mathlib._halves import as_factor, directions_of_halves, products_of_halves, scaled_factor
from mathlib._rows import Embeddings, Excluded, Layout, loss_of_lead, part, reduced
from mathlib._similarity import HALVES, direction, no_autocast, wide


class Block(NamedTuple):
    """Some rows of scores, and the memory that a loss may use to work on them."""

    rows: slice
    positive: Tensor
    """The positive's scores [R], or logits where the loss `takes_logits`."""
    scores: Tensor
    """The candidates' [R, C], likewise; -inf where there is none, or as a logit -`removal`; may be overwritten."""
    scratch: Tensor
    """[R, C], unset; may be overwritten, unless the layout is symmetric: then the engine keeps the columns there."""
    excluded: Excluded
    """The entries that are not candidates."""


class Derivatives(NamedTuple):
    """A block's losses, and their derivatives by the logits, which are the scores over the temperature. What a row's
    derivatives have in common may stand in `scale`: it saves a pass over the block where lengths are multiplied anyway.
    """

    losses: Tensor
    """[R]"""
    by_scores: Tensor
    """By the candidates' logits [R, C], over `scale`; times that, 0 where nothing is a candidate, except that the
    engine writes by_positive over the positive's own entry. It may be the block's own memory.
    """
    by_positive: Tensor | float
    """By the positive's logit [R], over `scale`, which is there where this is a number."""
    scale: Tensor | None = None
    """[R], at least 0; None stands for 1."""


class RowLoss(Protocol):
    """A loss of each anchor that depends on the scores of its row alone, and on these as multiples of the temperature
    alone: the temperature's gradient follows from that.
    """

    @property
    def takes_logits(self) -> bool:
        """Whether a block's scores come divided by the temperature, which then costs no pass over them."""

    @property
    def least_rows(self) -> int:
        """The smallest block, used when there are many candidates: the more buffers a loss needs, the smaller."""

    def definition(
        self, anchor: Tensor, positive: Tensor, negatives: Tensor | None, temperature: Tensor | float
    ) -> Tensor:
        """The losses of all anchors [B] as the formula reads, differentiable any number of times."""

    def derivatives(self, block: Block, temperature: Tensor | float) -> Derivatives:
        """The losses of a block's rows and their derivatives; without the half that a symmetric layout adds."""


class Vectors(NamedTuple):
    """Embeddings as they are multiplied: of unit length, or, from half precision, as they are, with 1 / length."""

    factors: Embeddings
    inverse: Embeddings | None
    """1 / length [..., 1] of each, by which the products of half-precision embeddings are multiplied."""
    half: torch.dtype | None
    """The dtype of half-precision embeddings."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of scores."""
        return torch.float32 if self.half else self.factors.anchor.dtype

    def multiply(self, left: Tensor, right: Tensor, out: Tensor | None = None, *, onto: Tensor | None = None) -> Tensor:
        """left @ right.T at half precision's speed, if either holds half-precision embeddings."""
        assert self.half is not None
        return products_of_halves(as_factor(left, self.half), as_factor(right, self.half), self.half, out, onto=onto)

    def inverse_lengths_of(self, name: str) -> Tensor:
        """1 / length of the embeddings of that name, one in each row [n, 1]."""
        assert self.inverse is not None
        return self.inverse.matrix(name)

    def units(self) -> Embeddings:
        """The unit vectors, at least in float32."""
        y, inverse = self.factors, self.inverse
        if inverse is None:
            return y
        negatives = None if y.negatives is None or inverse.negatives is None else wide(y.negatives) * inverse.negatives
        return Embeddings(wide(y.anchor) * inverse.anchor, wide(y.positive) * inverse.positive, negatives)

    def turned(self) -> "Vectors":
        """With anchors and positives in one another's place."""

        def turn(x: Embeddings) -> Embeddings:
            return Embeddings(x.positive, x.anchor, None)

        return Vectors(turn(self.factors), None if self.inverse is None else turn(self.inverse), self.half)


class Stacked(NamedTuple):
    """All embeddings, one in each row, anchors first and negatives last: what is done to each is launched once."""

    rows: Tensor
    """As they are multiplied [n, D]: `Vectors` are views of them."""
    inverse: Tensor | None
    """1 / length [n, 1], as in `Vectors`."""
    divisor: Tensor
    """What a gradient by the rows is to be divided by to be one by the given [n, 1]: the lengths, infinite for a zero
    vector, or, from half precision, whose lengths are in `inverse`, a power of two.
    """
    sizes: list[int]
    """How many rows are the anchors', the positives' and the negatives'."""


def vectors_of(given: Embeddings) -> tuple[Vectors, Stacked]:
    """Embeddings of any length as they are multiplied."""
    matrices = [given.anchor, given.positive]
    if given.negatives is not None:
        matrices.append(given.negatives.flatten(0, -2))
    sizes = [x.shape[0] for x in matrices]
    stacked = torch.cat(matrices)
    if given.anchor.dtype not in HALVES:
        rows, lengths = direction(stacked, in_place=True)
        return Vectors(unstacked(rows, sizes, given), None, None), Stacked(rows, None, lengths, sizes)
    rows, inverse, scales = directions_of_halves(stacked)
    vectors = Vectors(unstacked(rows, sizes, given), unstacked(inverse, sizes, given), given.anchor.dtype)
    return vectors, Stacked(rows, inverse, scales.reciprocal(), sizes)


def unstacked(rows: Tensor, sizes: list[int], given: Embeddings) -> Embeddings:
    """Views of the rows that belong to the anchors, the positives and the negatives."""
    anchor, positive, *others = rows.split(sizes)
    shaped = None if given.negatives is None else others[0].unflatten(0, given.negatives.shape[:-1])
    return Embeddings(anchor, positive, shaped)


class Gradients(NamedTuple):
    """By the unit vectors, times 1 / length if `Vectors` has it; None where none is needed."""

    anchor: Tensor | None
    positive: Tensor | None
    negatives: Tensor | None

    def matrix(self, name: str) -> Tensor | None:
        """The gradient of that name, a row for each embedding."""
        rows: Tensor | None = getattr(self, name)
        return rows if rows is None or rows.ndim == 2 else rows.flatten(0, -2)


class Softmax(NamedTuple):
    """Of each row's candidates apart from the positive."""

    shares: Tensor
    """Their probabilities among themselves [R, C]."""
    lead: Tensor
    """log of the sum of their exponentials [R], relative to the positive's logit."""


def removal(dtype: torch.dtype) -> float:
    """Subtracted from logits that must not count: larger than any real logit, yet finite, as inf - inf would be NaN."""
    return torch.finfo(dtype).max / 4


def softmax_(logits: Tensor, positive_logits: Tensor) -> Softmax:
    """The softmax of logits [R, C], in their place; what is less by the `removal` is not a candidate. A row without one
    has a lead so low that its loss, and all that is multiplied by its derivative, is 0.
    """
    highest = logits.amax(dim=1)
    shares = torch.softmax(logits, dim=1, out=logits)
    # The share of the highest is 1 / sum_i exp(z_i - highest), so that the sum needs no further pass over the block.
    # Its difference from the positive comes first: at temperature 1e-3 the logits have no digits for the logarithm.
    return Softmax(shares, highest.sub_(positive_logits).sub_(shares.amax(dim=1).log_()))


def row_blocks(layout: Layout, x: Embeddings, least_rows: int, block_size: int | None) -> list[slice]:
    """The rows, cut into blocks."""
    if block_size is None:
        columns = layout.width(x)
        if x.anchor.device.type == "cpu":
            block_size = min(512, max(least_rows, 2**20 // columns))
        else:  # pragma: no cover - needs CUDA: fill the device, no mutate block
            block_size = max(1024, 2**26 // columns)
    return [slice(first, min(first + block_size, layout.rows)) for first in range(0, layout.rows, block_size)]


def fill_scores(
    layout: Layout,
    x: Vectors,
    rows: slice,
    excluded: Excluded,
    scores: Tensor,
    temperature: Tensor | float | None = None,
) -> Tensor:
    """Write the scores of some rows, -inf where excluded; return the positive's [R]. Both are logits, and -`removal`,
    with a temperature.
    """
    y, t = x.factors, 1.0 if temperature is None else temperature
    if rows.stop - rows.start == layout.rows and not x.half and layout.is_batch(y):
        return fill_batch_scores(y.anchor, y.positive, scores, temperature)

    def left_rows(name: str) -> Tensor:
        left = part(getattr(y, name), rows)
        return left / t if isinstance(t, Tensor) and not x.half else left

    # a number is a product's own factor
    alpha = 1.0 if isinstance(t, Tensor) else 1 / t
    start = 0
    for left, right in layout.pairings(y):
        columns = y.matrix(right)
        block = part(scores, slice(start, start + columns.shape[0]), axis=1)
        if x.half:
            x.multiply(left_rows(left), columns, out=block)
            block.mul_(x.inverse_lengths_of(left)[rows] / t).mul_(x.inverse_lengths_of(right).T)
        else:
            block.addmm_(left_rows(left), columns.T, beta=0, alpha=alpha)
        start += columns.shape[0]
    if y.negatives is not None and layout.own_negatives(y):
        torch.bmm(wide(y.negatives[rows]), wide(left_rows("anchor"))[:, :, None], out=scores[:, :, None])
        if x.inverse is None:
            scores.mul_(alpha)
        else:
            assert x.inverse.negatives is not None
            scores.mul_(x.inverse.anchor[rows] / t).mul_(x.inverse.negatives[rows, :, 0])
    if layout.in_batch:
        positive_scores = scores.diagonal(rows.start).clone()
    else:
        positive_scores = torch.linalg.vecdot(wide(left_rows("anchor")), wide(y.positive[rows]))
        if x.inverse is None:
            positive_scores.mul_(alpha)
        else:
            positive_scores.mul_((x.inverse.anchor[rows] * x.inverse.positive[rows])[:, 0] / t)
    excluded.fill_(scores, -torch.inf if temperature is None else -removal(scores.dtype))
    return positive_scores


def fill_batch_scores(anchor: Tensor, positive: Tensor, scores: Tensor, temperature: Tensor | float | None) -> Tensor:
    """`fill_scores` of all rows, where each is compared with all positives and with nothing else."""
    torch.mm(anchor, positive.T, out=scores)
    if temperature is not None:
        scores.div_(temperature)
    own = scores.diagonal()
    positive_scores = own.clone()
    own.fill_(-torch.inf if temperature is None else -removal(scores.dtype))
    return positive_scores


class Task(NamedTuple):
    """What is computed of the embeddings."""

    loss: RowLoss
    layout: Layout
    block_size: int | None
    reduction: str
    needed: tuple[bool, ...]
    """Whether the anchors, the positives, the negatives and the temperature need a gradient."""

    @property
    def row_weight(self) -> float:
        """By which a row's loss counts in the reduced."""
        return 1 / self.layout.rows if self.reduction == "mean" else 1.0


def one_pass(
    task: Task, upstream: Tensor | None, x: Vectors, temperature: Tensor | float, gradients: Gradients | None
) -> Tensor:
    """The loss of each row; adds the gradients of their sum weighted by upstream, times the temperature, and of both
    directions if the layout is symmetric, where the loss is their mean: `with_gradients` divides that out.
    """
    y, loss, layout = x.factors, task.loss, task.layout
    blocks = row_blocks(layout, y, loss.least_rows, task.block_size)
    scores_buffer = torch.empty(blocks[0].stop, layout.width(y), dtype=x.dtype, device=y.anchor.device)
    scratch_buffer = torch.empty_like(scores_buffer)
    columns: Columns | None = None
    losses = scores_buffer.new_empty(layout.rows)
    for rows in blocks:
        count = rows.stop - rows.start
        scores, scratch = part(scores_buffer, slice(0, count)), part(scratch_buffer, slice(0, count))
        excluded = layout.excluded(y, rows)
        positive_scores = fill_scores(layout, x, rows, excluded, scores, temperature if loss.takes_logits else None)
        if layout.symmetric:
            if columns is None:
                logits = (scores, positive_scores) if len(blocks) == 1 else None
                columns = column_totals(layout, x, blocks, temperature, scratch, logits)
            if gradients is not None:
                fill_column_derivatives(columns, scores, rows, upstream, excluded, scratch)
        found = loss.derivatives(Block(rows, positive_scores, scores, scratch, excluded), temperature)
        if len(blocks) > 1:  # not kept apart: between them, what the blocks free would lie in pieces
            losses[rows] = found.losses
        else:
            losses = found.losses
        if gradients is None:
            continue
        by_scores, by_positive, scale = found[1:]
        if upstream is not None:
            scale = upstream[rows] if scale is None else scale * upstream[rows]
        if layout.in_batch:
            write_positive(by_scores.diagonal(rows.start), by_positive)
        if scale is not None and (not x.half or columns is not None or not layout.in_batch):
            by_scores.mul_(scale[:, None])
            by_positive, scale = by_positive * scale, None
        if columns is not None:
            by_scores[:, : layout.rows].add_(scratch[:, : layout.rows])
        # only CUDA writes there
        spare = scores if by_scores.untyped_storage() is scratch.untyped_storage() else scratch  # pragma: no mutate
        add_gradients(layout, x, rows, by_scores, by_positive, scale, gradients, spare)
        del found, by_scores  # memory that the next block can take
    return losses if columns is None else (losses + columns.losses) / 2


def write_positive(own: Tensor, by_positive: Tensor | float) -> None:
    """Write the derivatives by the positive's logits over its own scores."""
    if isinstance(by_positive, Tensor):
        own.copy_(by_positive)
    else:
        own.fill_(by_positive)


def add_gradients(
    layout: Layout,
    x: Vectors,
    rows: slice,
    by_scores: Tensor,
    by_positive: Tensor | float,
    scale: Tensor | None,
    gradients: Gradients,
    spare: Tensor,
) -> None:
    """Add what a block of derivatives means for the embeddings, each row times its scale, which only half precision
    has. The block may be overwritten, and so may as much spare memory.
    """
    y, start = x.factors, 0
    for left, right in layout.pairings(y):
        columns, of_left, of_right = y.matrix(right), gradients.matrix(left), gradients.matrix(right)
        lefts = part(y.matrix(left), rows)
        some = slice(start, start + columns.shape[0])
        block = part(by_scores, some, axis=1)
        start = some.stop
        if not x.half:
            if of_left is not None:
                part(of_left, rows).addmm_(block, columns)
            if of_right is not None:
                of_right.addmm_(block.T, lefts)
            continue
        # The derivative by a product of two embeddings, not by their score: it has both lengths in it, and so has what
        # either of them receives.
        block = scaled_factor(block, x.inverse_lengths_of(right).T, x.half, part(spare, some, axis=1))
        inverse = x.inverse_lengths_of(left)[rows]
        by_row = inverse if scale is None else inverse * scale[:, None]
        if of_left is not None:
            of_left[rows].addcmul_(x.multiply(block, columns.T), by_row)
        if of_right is not None:
            x.multiply(block.T, (wide(lefts) * by_row).T, onto=of_right)
    if layout.in_batch:
        return
    assert isinstance(by_positive, Tensor)
    a, p = wide(y.anchor[rows]), wide(y.positive[rows])
    of_a, of_p = (None if of is None else of[rows] for of in gradients[:2])
    if y.negatives is not None and layout.own_negatives(y):
        if x.inverse is not None and x.inverse.negatives is not None:
            by_scores.mul_(x.inverse.negatives[rows, :, 0]).mul_(x.inverse.anchor[rows])
        if of_a is not None:
            of_a.add_(torch.bmm(by_scores[:, None], wide(y.negatives[rows]))[:, 0])
        if gradients.negatives is not None:
            torch.mul(by_scores[:, :, None], a[:, None], out=gradients.negatives[rows])
    by_positive = by_positive[:, None]
    if x.inverse is not None:
        by_positive = by_positive * x.inverse.anchor[rows] * x.inverse.positive[rows]
    if of_a is not None:
        of_a.addcmul_(by_positive, p)
    if of_p is not None:
        of_p.addcmul_(by_positive, a)


# A symmetric layout: each positive among all anchors, a column of the scores that the rows have anyway.


class Columns(NamedTuple):
    """Of each positive among all anchors."""

    lead: Tensor
    """The logit of all other anchors together, relative to its own."""
    losses: Tensor
    total: Tensor
    """log of the sum of all exponentials."""


def column_totals(
    layout: Layout,
    x: Vectors,
    blocks: list[slice],
    temperature: Tensor | float,
    buffer: Tensor,
    filled: tuple[Tensor, Tensor] | None = None,
) -> Columns:
    """One pass for what a column needs to know before its entries can be differentiated; without products, if the
    logits of all rows are there, and the positive's.
    """
    turned = x.turned()
    own_logits, lead = [], []
    for rows in blocks:
        logits = buffer[: rows.stop - rows.start, : layout.rows]
        if filled is None:
            excluded = layout.excluded(turned.factors, rows)
            own_logits.append(fill_scores(layout, turned, rows, excluded, logits, temperature))
        else:
            logits.copy_(filled[0][:, : layout.rows].T)
            own_logits.append(filled[1])
        lead.append(softmax_(logits, own_logits[-1]).lead)
    leads = torch.cat(lead)
    losses = loss_of_lead(leads)
    return Columns(leads, losses, torch.cat(own_logits) + losses)


def fill_column_derivatives(
    columns: Columns, logits: Tensor, rows: slice, upstream: Tensor | None, excluded: Excluded, out: Tensor
) -> None:
    """Write the columns' derivatives by a block of logits; the positive's own stands at its place."""
    # L_j = log sum_b e^{z_bj} - z_jj, so dL_j / dz_bj is the softmax down the column, less 1 at b = j
    out = out[:, : len(columns.lead)]
    torch.sub(logits[:, : out.shape[1]], columns.total, out=out)
    out.clamp_min_(-80).exp_()  # below that exp is slow (subnormal numbers), and would not change a sum
    if excluded.same_group is not None:
        out.masked_fill_(excluded.same_group[:, : out.shape[1]], 0.0)
    out.diagonal(rows.start).copy_(-columns.lead[rows].sigmoid())
    if upstream is not None:
        out.mul_(upstream)


class Blockwise(torch.autograd.Function):
    """The losses, for autograd: their gradients are computed on the way, or, for rows apart, in the backward pass."""

    @staticmethod
    def forward(
        task: Task, anchor: Tensor, positive: Tensor, negatives: Tensor | None, temperature: Tensor | float
    ) -> tuple[Tensor | None, ...]:
        # The gradients are outputs, though no caller uses them: setup_context, which torch.func needs apart from
        # forward, can save nothing but inputs and outputs. Of rows apart, the backward pass knows each one's part.
        wanted = (False,) * 4 if task.reduction == "none" else task.needed
        losses, *gradients = with_gradients(task, wanted, None, Embeddings(anchor, positive, negatives), temperature)
        return reduced(losses, task.reduction), *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.task, anchor, positive, negatives, temperature = inputs
        ctx.temperature = temperature
        learned = temperature if isinstance(temperature, Tensor) else None
        ctx.save_for_backward(anchor, positive, negatives, learned, *outputs[1:])
        ctx.mark_non_differentiable(*(x for x in outputs[1:] if x is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(*_: Any) -> Any:
        raise RuntimeError(
            "info_nce and gist_embed_loss do not work under torch.vmap: call them for each batch in turn"
        )

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: Any) -> tuple[Any, ...]:
        if upstream is None:
            return (None,) * 5
        task, needed = ctx.task, ctx.needs_input_grad[1:]
        anchor, positive, negatives, learned, *gradients = ctx.saved_tensors
        inputs = [anchor, positive, negatives]
        # A second derivative is wanted. torch.func.vjp enables gradients here too, but then no input requires one.
        again = torch.is_grad_enabled()
        if again:
            # views, so that autograd stops here and does not walk the caller's graph from one input to another
            *inputs, learned = (None if x is None else x.view_as(x) for x in (*inputs, learned))
        if again and any(x is not None and x.requires_grad for x in (*inputs, learned)):
            losses = task.loss.definition(*inputs, ctx.temperature if learned is None else learned)
            losses = reduced(losses, task.reduction)
            leaves = [x for x, need in zip((*inputs, learned), needed, strict=True) if need]
            found = iter(torch.autograd.grad(losses, leaves, upstream, create_graph=True))
            return None, *(next(found) if need else None for need in needed)
        if task.reduction == "none":
            temperature = ctx.temperature if learned is None else learned
            _, *gradients = with_gradients(task, needed, upstream, Embeddings(*inputs), temperature)
            upstream = upstream.new_ones(())
        given: list[Tensor | None] = []
        for x, gradient in zip((*inputs, learned), gradients, strict=True):
            # rounded to a half-precision input's dtype only now: before, a small gradient might vanish
            given.append(None if x is None or gradient is None else (gradient * upstream).to(x.dtype))
        return None, *given


# torch binds the arguments to the inspected signature at every call, which takes a part of a small batch's time: keep
# the signature, and one that binds all at once
Blockwise.forward.__signature__ = inspect.signature(lambda *inputs: None)  # type: ignore[attr-defined]


def with_gradients(
    task: Task, needed: tuple[bool, ...], upstream: Tensor | None, given: Embeddings, temperature: Tensor | float
) -> tuple[Any, ...]:
    """`one_pass` for embeddings of any length and dtype: the losses, and four gradients of their sum, each times its
    row's weight and upstream, None where not needed.
    """
    with no_autocast(given.anchor):
        # half precision's products are more exact, though in a small batch they take longer
        small = task.layout.rows <= (task.block_size or 512) and given.anchor.dtype not in HALVES
        if small and task.layout.is_batch(given) and (needed[0] and needed[1] or not any(needed)):
            return whole_batch(task, needed, upstream, given, temperature)
        x, stacked = vectors_of(given)
        t = temperature.to(x.dtype) if isinstance(temperature, Tensor) else temperature
        wanted = [y is not None and (need or needed[3]) for y, need in zip(given, needed, strict=False)]
        if not any(wanted):
            return one_pass(task, None, x, t, None), None, None, None, None
        # one memory, from the first to the last that is wanted
        first, after = wanted.index(True), len(wanted) - wanted[::-1].index(True)
        sizes = stacked.sizes[first:after]
        begin = sum(stacked.sizes[:first])
        rows = slice(begin, begin + sum(sizes))
        vectors = part(stacked.rows, rows)
        memory = torch.zeros_like(vectors, dtype=x.dtype)
        found: list[Tensor | None] = [None, None, None]
        for i, some_rows in enumerate(memory.split(sizes), first):
            if wanted[i]:
                found[i] = some_rows
        if found[2] is not None and given.negatives is not None:
            found[2] = found[2].view(given.negatives.shape)
        gradients = Gradients(*found)
        losses = one_pass(task, upstream, x, t, gradients)
        # what was left undone: each row's weight, the temperature, and the mean of both directions
        weight = task.row_weight / (2 if task.layout.symmetric else 1)
        along: Tensor | float = 0.0
        for start in range(0, len(vectors), 4096):  # not all: vecdot takes memory for the products
            some = slice(start, min(start + 4096, len(vectors)))
            gradient, unit_vectors = part(memory, some), wide(part(vectors, some))
            outward = torch.linalg.vecdot(gradient, unit_vectors)[:, None]
            if needed[3]:
                along += outward.sum()
            if stacked.inverse is not None:
                outward = outward * part(part(stacked.inverse, rows), some) ** 2
            # keep the tangential part: a longer input has the same unit vector
            gradient.addcmul_(unit_vectors, outward, value=-1)
        memory.div_(part(stacked.divisor, rows) * (t / weight))
        # a score is bilinear: score times derivative appears once for each of its two sides, and a loss knows
        # scores only as multiples of the temperature
        by_temperature = along * (-0.5 * weight) / t**2 if needed[3] else None
        return losses, *gradients, by_temperature


def whole_batch(
    task: Task, needed: tuple[bool, ...], upstream: Tensor | None, given: Embeddings, temperature: Tensor | float
) -> tuple[Any, ...]:
    """`with_gradients` of one block in which each anchor is compared with all positives and with nothing else. Nothing
    is asked on the way: in a small batch a question takes as long as an answer.
    """
    loss, count = task.loss, task.layout.rows
    rows, lengths = direction(torch.cat((given.anchor, given.positive)), in_place=True)
    a, p = rows.chunk(2)
    t = temperature.to(rows.dtype) if isinstance(temperature, Tensor) else temperature
    scores = rows.new_empty(count, count)
    positive = fill_batch_scores(a, p, scores, t if loss.takes_logits else None)
    excluded = Excluded(0, [count], None)
    ways = [scores]
    if task.layout.symmetric:
        ways.append(scores.T.clone(memory_format=torch.contiguous_format))
    losses = []
    for i, logits in enumerate(ways):
        block = Block(slice(0, count), positive, logits, torch.empty_like(logits), excluded)
        found, by_scores, by_positive, scale = loss.derivatives(block, t)
        losses.append(found)
        write_positive(by_scores.diagonal(), by_positive)
        if upstream is not None:
            scale = upstream if scale is None else scale * upstream
        ways[i] = by_scores if scale is None else by_scores.mul_(scale[:, None])
    loss_of_rows = losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2
    if not any(needed):
        return loss_of_rows, None, None, None, None
    by_scores = ways[0] if len(ways) == 1 else ways[0].add_(ways[1].T)
    memory = torch.empty_like(rows)
    of_a, of_p = memory.chunk(2)
    torch.mm(by_scores, p, out=of_a)
    torch.mm(by_scores.T, a, out=of_p)
    weight = task.row_weight / len(ways)
    outward = torch.linalg.vecdot(memory, rows)[:, None]
    memory.addcmul_(rows, outward, value=-1).div_(lengths * (t / weight))
    by_temperature = outward.sum() * (-0.5 * weight) / t**2 if needed[3] else None
    return loss_of_rows, of_a, of_p, None, by_temperature


def blockwise(
    loss: RowLoss,
    layout: Layout,
    given: Embeddings,
    temperature: Tensor | float,
    *,
    reduction: str,
    block_size: int | None,
) -> Tensor:
    """The reduced loss of embeddings of any length: by blocks, or by its definition where torch traces, and where a
    gradient is differentiated.
    """
    if torch.compiler.is_compiling():
        return reduced(loss.definition(*given, temperature), reduction)
    inputs = (*given, temperature)
    differentiating = torch.is_grad_enabled()
    needed = tuple([differentiating and isinstance(x, Tensor) and x.requires_grad for x in inputs])
    return Blockwise.apply(Task(loss, layout, block_size, reduction, needed), *inputs)[0]
