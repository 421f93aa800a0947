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

from mathlib._halves import directions_of_halves, factor, products_of_halves
from mathlib._rows import Embeddings, Excluded, Layout, reduced, surprise
from mathlib._similarity import direction, no_autocast, wide


class Block(NamedTuple):
    """Some rows of scores, and the memory that a loss may use to work on them."""

    rows: slice
    positive: Tensor
    """The positive's scores [R], or logits where the loss `takes_logits`."""
    scores: Tensor
    """The candidates' [R, C], likewise; -inf where there is none; may be overwritten."""
    scratch: Tensor
    """[R, C], unset; may be overwritten, unless the layout is symmetric: then the engine keeps the columns there."""
    excluded: Excluded
    """The entries that are not candidates."""


class Derivatives(NamedTuple):
    """A block's losses, and their derivatives by the logits, which are the scores over the temperature."""

    losses: Tensor
    """[R]"""
    by_scores: Tensor
    """By the candidates' logits [R, C], each row to be multiplied by its scale; 0 where nothing is a candidate, except
    that the engine writes by_positive over the positive's own entry. It may be the block's own memory.
    """
    by_positive: Tensor
    """By the positive's logit [R], to be multiplied by the scale as well."""
    scale: Tensor
    """[R]; apart, since to multiply the embeddings by it later takes fewer numbers than to multiply the scores."""


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

    def multiply(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """left @ right.T; of half-precision embeddings at half precision's speed, if either holds these."""
        if self.half is None:
            return torch.mm(left, right.T, out=out)
        return products_of_halves(factor(left, self.half), factor(right, self.half), self.half, out)

    def inverse_lengths_of(self, name: str) -> Tensor:
        """1 / length of the embeddings of that name, one in each row [n, 1]."""
        assert self.inverse is not None
        return self.inverse.matrix(name)

    def units(self) -> Embeddings:
        """The unit vectors, at least in float32."""
        if self.inverse is None:
            return self.factors
        pairs = zip(self.factors, self.inverse, strict=True)
        anchor, positive, negatives = (
            None if y is None or inverse is None else wide(y) * inverse for y, inverse in pairs
        )
        assert anchor is not None and positive is not None
        return Embeddings(anchor, positive, negatives)

    def turned(self) -> "Vectors":
        """With anchors and positives in one another's place."""

        def turn(x: Embeddings) -> Embeddings:
            return Embeddings(x.positive, x.anchor, None)

        return Vectors(turn(self.factors), None if self.inverse is None else turn(self.inverse), self.half)


def vectors_of(given: Embeddings) -> tuple[Vectors, tuple[Tensor, ...]]:
    """Embeddings of any length as they are multiplied, and what a gradient by these is to be divided by to be one by
    the given: the lengths, infinite for a zero vector, or, from half precision, whose lengths are in `Vectors`, a power
    of two.
    """
    rows = [y for y in given if y is not None]

    def embeddings(anchor: Tensor, positive: Tensor, negatives: Tensor | None = None) -> Embeddings:
        return Embeddings(anchor, positive, negatives)

    if given.anchor.dtype.itemsize > 2:
        units, lengths = zip(*map(direction, rows), strict=True)
        return Vectors(embeddings(*units), None, None), lengths
    factors, inverse, scales = zip(*map(directions_of_halves, rows), strict=True)
    vectors = Vectors(embeddings(*factors), embeddings(*inverse), given.anchor.dtype)
    return vectors, tuple(scale.reciprocal() for scale in scales)


class Gradients(NamedTuple):
    """By the unit vectors, times 1 / length if `Vectors` has it; None where none is needed."""

    anchor: Tensor | None
    positive: Tensor | None
    negatives: Tensor | None

    def matrix(self, name: str) -> Tensor | None:
        """The gradient of that name, a row for each embedding."""
        rows: Tensor | None = getattr(self, name)
        return None if rows is None else rows.flatten(0, -2)


class Softmax(NamedTuple):
    """Of each row's candidates apart from the positive."""

    shares: Tensor
    """Their probabilities among themselves [R, C]."""
    lead: Tensor
    """log of the sum of their exponentials [R], relative to the positive's logit; -inf if there are none."""


def removal(dtype: torch.dtype) -> float:
    """Subtracted from logits that must not count: larger than any real logit, yet finite, as inf - inf would be NaN."""
    return torch.finfo(dtype).max / 4


def softmax_(
    logits: Tensor, positive_logits: Tensor, weights: Tensor | None = None, excluded: Excluded | None = None
) -> Softmax:
    """The softmax of logits [R, C], in their place; what reads -inf, or less the `removal`, is not a candidate.

    With weights, exp(z_i) counts w_i times, except at the excluded entries, where a rule may have answered anything.
    Logits of weight 0 must be removed: far above the others, they would leave them no digits.
    """
    highest = logits.amax(dim=1)
    dead = highest < -removal(logits.dtype) / 2
    logits[:, 0].masked_fill_(dead, 0.0)  # the softmax of a row of -inf would be NaN
    shares = torch.softmax(logits, dim=1, out=logits)
    # The share of the highest is 1 / sum_i exp(z_i - highest), so that the sum needs no further pass over the block.
    # Its difference from the positive comes first: at temperature 1e-3 the logits have no digits for the logarithm.
    lead = (highest - positive_logits - shares.amax(dim=1).log()).masked_fill_(dead, -torch.inf)
    if weights is not None and excluded is not None:
        shares.mul_(weights)
        excluded.fill_(shares, 0.0)
        whole = shares.sum(dim=1)
        lead = lead + whole.log()
        shares.div_(whole.masked_fill(whole == 0, 1.0)[:, None])
    return Softmax(shares, lead)


def row_blocks(layout: Layout, x: Embeddings, least_rows: int, block_size: int | None) -> list[slice]:
    """The rows, cut into blocks."""
    if block_size is None:
        columns = layout.width(x)
        if x.anchor.device.type == "cpu":
            block_size = min(512, max(least_rows, 2**20 // columns))
        else:  # pragma: no cover - needs CUDA: fill the device, no mutate block
            block_size = max(512, 2**28 // columns)
    return [slice(first, min(first + block_size, layout.rows)) for first in range(0, layout.rows, block_size)]


def fill(
    layout: Layout,
    x: Vectors,
    rows: slice,
    excluded: Excluded,
    scores: Tensor,
    temperature: Tensor | float | None = None,
) -> Tensor:
    """Write the scores of some rows, over the temperature if given, -inf where excluded; return the positive's [R]."""
    y, t = x.factors, 1.0 if temperature is None else temperature

    def left_rows(name: str) -> Tensor:
        left: Tensor = getattr(y, name)[rows]
        return left if temperature is None or x.half else left / t

    start = 0
    for left, right in layout.pairings(y):
        columns = y.matrix(right)
        block = scores[:, start : start + columns.shape[0]]
        x.multiply(left_rows(left), columns, out=block)
        if x.half:
            block.mul_(x.inverse_lengths_of(left)[rows] / t).mul_(x.inverse_lengths_of(right).T)
        start += columns.shape[0]
    if y.negatives is not None and layout.own_negatives(y):
        torch.bmm(wide(y.negatives[rows]), wide(left_rows("anchor"))[:, :, None], out=scores[:, :, None])
        if x.inverse is not None and x.inverse.negatives is not None:
            scores.mul_(x.inverse.anchor[rows] / t).mul_(x.inverse.negatives[rows, :, 0])
    if layout.in_batch:
        positive_scores = excluded.diagonals(scores)[0].clone()
    else:
        positive_scores = torch.linalg.vecdot(wide(left_rows("anchor")), wide(y.positive[rows]))
        if x.inverse is not None:
            positive_scores.mul_((x.inverse.anchor[rows] * x.inverse.positive[rows])[:, 0] / t)
    excluded.fill_(scores, -torch.inf)
    return positive_scores


def one_pass(
    loss: RowLoss,
    layout: Layout,
    block_size: int | None,
    upstream: Tensor | None,
    needed: tuple[bool, ...],
    x: Vectors,
    temperature: Tensor | float,
) -> tuple[Tensor, Gradients]:
    """The loss of each row and, of their sum weighted by upstream, the needed gradients, times the temperature, which
    `with_gradients` divides out again.
    """
    y = x.factors
    blocks = row_blocks(layout, y, loss.least_rows, block_size)
    losses, scores_buffer, scratch_buffer = (
        torch.empty(shape, dtype=wide(y.anchor[:0]).dtype, device=y.anchor.device)
        for shape in ((layout.rows,), *[(blocks[0].stop, layout.width(y))] * 2)
    )
    columns = column_totals(layout, x, blocks, temperature, scores_buffer) if layout.symmetric else None
    gradients = Gradients(
        *(
            None if rows is None or not want else torch.zeros_like(rows, dtype=losses.dtype)
            for rows, want in zip(y, needed, strict=True)
        )
    )
    for rows in blocks:
        count = rows.stop - rows.start
        scores, scratch = scores_buffer[:count], scratch_buffer[:count]
        excluded = layout.excluded(y, rows)
        positive_scores = fill(layout, x, rows, excluded, scores, temperature if loss.takes_logits else None)
        if columns is not None and any(needed):
            by_columns(columns, scores, rows, upstream, excluded, scratch)
        losses[rows], by_scores, by_positive, scale = loss.derivatives(
            Block(rows, positive_scores, scores, scratch, excluded), temperature
        )
        if not any(needed):
            continue
        if upstream is not None:
            scale = scale * upstream[rows]
        if layout.in_batch:
            excluded.diagonals(by_scores)[0].copy_(by_positive)
        if columns is not None:
            batch = y.anchor.shape[0]
            scratch[:, :batch].addcmul_(by_scores[:, :batch], scale[:, None]).div_(2)
            torch.mul(by_scores[:, batch:], scale[:, None] / 2, out=scratch[:, batch:])
            by_scores, scale = scratch, torch.ones_like(scale)
        pull_rows(layout, x, rows, by_scores, by_positive, scale[:, None], gradients)
    return (losses if columns is None else (losses + surprise(columns.lead)) / 2), gradients


def pull_rows(
    layout: Layout,
    x: Vectors,
    rows: slice,
    by_scores: Tensor,
    by_positive: Tensor,
    scale: Tensor,
    gradients: Gradients,
) -> None:
    """Add what a block of derivatives, its rows yet to be scaled, means for the embeddings; it may be overwritten."""
    y, start = x.factors, 0
    for left, right in layout.pairings(y):
        columns, of_left, of_right = y.matrix(right), gradients.matrix(left), gradients.matrix(right)
        block = by_scores[:, start : start + columns.shape[0]]
        row_scale = scale
        if x.half:
            # The derivative by a product of two embeddings, not by their score: it has both lengths in it, and so has
            # what either of them receives.
            block.mul_(x.inverse_lengths_of(right).T)
            row_scale = scale * x.inverse_lengths_of(left)[rows]
        if of_left is not None:
            of_left[rows].addcmul_(x.multiply(block, columns.T), row_scale)
        if of_right is not None:
            # scaled here, where there are fewer numbers than in the block
            scaled = wide(y.matrix(left)[rows]) * row_scale
            if x.half:
                of_right.add_(x.multiply(block.T, scaled.T))
            else:
                of_right.addmm_(block.T, scaled)
        start += columns.shape[0]
    a, p = wide(y.anchor[rows]), wide(y.positive[rows])
    of_a, of_p, of_n = (None if rows_of is None else rows_of[rows] for rows_of in gradients)
    if y.negatives is not None and layout.own_negatives(y):
        row_scale = scale
        if x.inverse is not None and x.inverse.negatives is not None:
            by_scores.mul_(x.inverse.negatives[rows, :, 0])
            row_scale = scale * x.inverse.anchor[rows]
        if of_a is not None:
            of_a.addcmul_(torch.bmm(by_scores[:, None], wide(y.negatives[rows]))[:, 0], row_scale)
        if of_n is not None:
            torch.mul((by_scores * row_scale)[:, :, None], a[:, None], out=of_n)
    if not layout.in_batch:
        by_positive = by_positive[:, None] * scale
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
    total: Tensor
    """log of the sum of all exponentials."""


def column_totals(
    layout: Layout, x: Vectors, blocks: list[slice], temperature: Tensor | float, buffer: Tensor
) -> Columns:
    """One pass for what a column needs to know before its entries can be differentiated."""
    turned = x.turned()
    own_logits, lead = buffer.new_empty(2, layout.rows)
    for rows in blocks:
        logits = buffer[: rows.stop - rows.start, : layout.rows]
        own_logits[rows] = fill(layout, turned, rows, layout.excluded(turned.factors, rows), logits, temperature)
        lead[rows] = softmax_(logits, own_logits[rows]).lead
    return Columns(lead, own_logits + surprise(lead))


def by_columns(
    columns: Columns, logits: Tensor, rows: slice, upstream: Tensor | None, excluded: Excluded, out: Tensor
) -> None:
    """The columns' derivatives by a block of logits; the positive's own stands at its place."""
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
        loss: RowLoss,
        layout: Layout,
        block_size: int | None,
        factor: float | None,
        needed: tuple[bool, ...],
        anchor: Tensor,
        positive: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | float,
    ) -> tuple[Tensor | None, ...]:
        # The gradients are outputs, though no caller uses them: setup_context, which torch.func needs apart from
        # forward, can save nothing but inputs and outputs. A factor of None leaves the rows' losses as they are, and
        # their gradients to the backward pass, which knows each row's part.
        wanted = needed if factor is not None else (False,) * 4
        given = Embeddings(anchor, positive, negatives)
        losses, *gradients = with_gradients(loss, layout, block_size, None, factor or 1.0, wanted, given, temperature)
        return losses if factor is None else losses.sum() * factor, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        *ctx.task, ctx.factor, _, anchor, positive, negatives, temperature = inputs
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
            return (None,) * 9
        loss, layout, block_size = ctx.task
        needed = ctx.needs_input_grad[5:]
        # views, so that autograd stops here and does not walk the caller's graph from one input to another
        saved: Any = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
        inputs, learned, gradients = Embeddings(*saved[:3]), saved[3], saved[4:]
        temperature = ctx.temperature if learned is None else learned
        # A second derivative is wanted. torch.func.vjp enables gradients here too, but then no input requires one.
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in saved[:4]):
            losses = loss.definition(*inputs, temperature)
            if ctx.factor is not None:
                losses = losses.sum() * ctx.factor
            leaves = [x for x, need in zip((*inputs, learned), needed, strict=True) if need]
            found = iter(torch.autograd.grad(losses, leaves, upstream, create_graph=True))
            return *(None,) * 5, *(next(found) if need else None for need in needed)
        if ctx.factor is None:
            _, *gradients = with_gradients(loss, layout, block_size, upstream, 1.0, needed, inputs, temperature)
            upstream = upstream.new_ones(())
        given: list[Tensor | None] = []
        for x, gradient in zip((*inputs, learned), gradients, strict=True):
            # rounded to a half-precision input's dtype only now: before, a small gradient might vanish
            given.append(None if x is None or gradient is None else (gradient * upstream).to(x.dtype))
        return *(None,) * 5, *given


# torch inspects the signature at every call, which takes as long as the loss of a small batch: keep the answer
Blockwise.forward.__signature__ = inspect.signature(Blockwise.forward)  # type: ignore[attr-defined]


def with_gradients(
    loss: RowLoss,
    layout: Layout,
    block_size: int | None,
    upstream: Tensor | None,
    factor: float,
    needed: tuple[bool, ...],
    given: Embeddings,
    temperature: Tensor | float,
) -> tuple[Any, ...]:
    """`one_pass` for embeddings of any length and dtype: the losses, and four gradients of their sum, each times the
    factor and its row of upstream, None where not needed.
    """
    with no_autocast(given.anchor):
        x, lengths = vectors_of(given)
        t = temperature.to(wide(x.factors.anchor[:0]).dtype) if isinstance(temperature, Tensor) else temperature
        wanted = tuple(need or needed[3] for need in needed[:3])
        losses, gradients = one_pass(loss, layout, block_size, upstream, wanted, x, t)
        along = losses.new_zeros(())
        inverse = x.inverse or (None, None, None)
        # strict=False: there may be no negatives
        for gradient, y, length, inverse_length in zip(gradients, x.factors, lengths, inverse, strict=False):
            if gradient is not None and y is not None:
                y = wide(y)
                outward = torch.linalg.vecdot(gradient, y)[..., None]
                if needed[3]:
                    along += outward.sum()
                if inverse_length is not None:
                    outward = outward * inverse_length**2
                # keep the tangential part: a longer input has the same unit vector
                gradient.addcmul_(y, outward, value=-1).div_(length * (t / factor))
        # a score is bilinear: score times derivative appears once for each of its two sides, and a loss knows
        # scores only as multiples of the temperature
        by_temperature = along * (-0.5 * factor) / t**2 if needed[3] else None
        return losses, *gradients, by_temperature


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
    factor = {"mean": 1 / layout.rows, "sum": 1.0, "none": None}[reduction]
    inputs = (*given, temperature)
    needed = tuple(torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad for x in inputs)
    return Blockwise.apply(loss, layout, block_size, factor, needed, *inputs)[0]
