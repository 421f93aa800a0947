"""Rows of scores: what the losses that compare an anchor's positive with other candidates have in common.

A row holds the scores of one anchor. `Layout` says who is compared with whom, `scored` writes all rows out, `weighted`
asks the rules, and `row_losses` is the formula. The losses' definitions are made of these; `_blockwise` computes the
same a few rows at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mathlib._checks import INTEGER, check_device, check_flag, check_shapes, check_some
from mathlib._distributed import gathered, untraced
from mathlib._similarity import products, unit, with_exact_ties

Rule = Callable[[Tensor, Tensor], Tensor]
"""(positive_scores [B, 1], candidate_scores [B, C]) -> weights [B, C], each >= 0."""


class Embeddings(NamedTuple):
    """Of unit length wherever scores are taken."""

    anchor: Tensor
    positive: Tensor
    negatives: Tensor | None

    def matrix(self, name: str) -> Tensor:
        """The embeddings of that name, one in each row."""
        rows: Tensor = getattr(self, name)
        return rows if rows.ndim == 2 else rows.flatten(0, -2)


def part(x: Tensor, slices: slice, axis: int = 0) -> Tensor:
    """x cut along the axis, itself where nothing is cut off: a view takes as long as a product of a small batch."""
    first, last = slices.start, slices.stop
    return x if first == 0 and last == x.shape[axis] else x.narrow(axis, first, last - first)


def units(anchor: Tensor, positive: Tensor, negatives: Tensor | None) -> Embeddings:
    """The three, of unit length."""
    return Embeddings(unit(anchor), unit(positive), None if negatives is None else unit(negatives))


class Excluded(NamedTuple):
    """The entries of some rows of scores that are not candidates: where a row meets its own positive, or itself, or
    another member of its group.
    """

    first: int
    """The number of the first row."""
    widths: list[int]
    """The columns begin with blocks of these widths, each of which has such entries on a diagonal."""
    same_group: Tensor | None
    """Where a row meets its group [R, C]; None without groups."""

    def fill_(self, matrix: Tensor, value: float) -> None:
        """Write the value into all of these entries of a matrix [R, C]."""
        start = 0
        for width in self.widths:
            part(matrix, slice(start, start + width), axis=1).diagonal(self.first).fill_(value)
            start += width
        if self.same_group is not None:
            matrix.masked_fill_(self.same_group, value)


class Layout(NamedTuple):
    """Who is compared with whom."""

    rows: int
    """How many rows have a loss. Those beyond belong to other processes and are candidates only."""
    in_batch: bool
    """Whether all positives, and all anchors' negatives, are candidates of each anchor."""
    among: tuple[str, ...] = ()
    """Further candidates: "anchor" and "positive" compare each row of these with all others of them."""
    symmetric: bool = False
    """Whether half of the loss is that of the positives, each among all anchors."""
    groups: Tensor | None = None
    """A label for each row: no row is compared with others of its group."""
    negative_groups: Tensor | None = None
    """Labels of the negatives [N] or [B, N]."""

    def own_negatives(self, x: Embeddings) -> bool:
        """Whether each anchor has candidates that no other anchor has."""
        return x.negatives is not None and x.negatives.ndim == 3 and not self.in_batch

    def pairings(self, x: Embeddings) -> list[tuple[str, str]]:
        """(left, right) of each product: row b of left is compared with all rows of right. The anchor's with the
        positive's comes first, negatives last.
        """
        pairs = [("anchor", "positive")] if self.in_batch else []
        if self.among:
            pairs += [(name, name) for name in self.among]
        if x.negatives is not None and not self.own_negatives(x):
            pairs.append(("anchor", "negatives"))
        return pairs

    def is_batch(self, x: Embeddings) -> bool:
        """Whether each anchor is compared with all positives, each one's own apart, and with nothing else."""
        alone = self.in_batch and x.negatives is None and not self.among and self.groups is None
        return alone and x.anchor.shape[0] == x.positive.shape[0] == self.rows

    def width(self, x: Embeddings) -> int:
        """The number of scores in a row, those of the row with its own positive, or with itself, included."""
        columns = x.negatives.shape[1] if x.negatives is not None and self.own_negatives(x) else 0
        for _, right in self.pairings(x):
            columns += x.matrix(right).shape[0]
        return columns

    def excluded(self, x: Embeddings, rows: slice) -> Excluded:
        """What is not a candidate among the scores of some rows."""
        widths = [x.matrix(right).shape[0] for _, right in self.pairings(x) if right != "negatives"]
        return Excluded(rows.start, widths, self.same_group(x, rows))

    def same_group(self, x: Embeddings, rows: slice) -> Tensor | None:
        """Where the rows meet others of their group [R, C]; None without groups."""
        if self.groups is None:
            return None
        own = self.groups[rows, None]
        parts = [own == self.groups for _, right in self.pairings(x) if right != "negatives"]
        if x.negatives is not None and self.negative_groups is not None:
            labels = self.negative_groups[rows] if self.own_negatives(x) else self.negative_groups.flatten()
            parts.append(own == labels)
        elif x.negatives is not None:
            count = x.negatives.shape[1] if self.own_negatives(x) else x.matrix("negatives").shape[0]
            parts.append(torch.zeros(own.shape[0], count, dtype=torch.bool, device=own.device))
        return torch.cat(parts, dim=1)


def layout_of(
    rows: int,
    groups: Tensor | None,
    negative_groups: Tensor | None,
    *,
    in_batch: bool,
    contrast_anchors: bool,
    contrast_positives: bool,
    symmetric: bool = False,
) -> Layout:
    """The layout that a loss's options ask for, with labels of its own: the backward pass may ask for them again."""
    among = ("anchor",) * contrast_anchors + ("positive",) * contrast_positives
    if groups is not None:
        groups = groups.detach().clone()
    if negative_groups is not None:
        negative_groups = negative_groups.detach().clone()
    return Layout(rows, in_batch, among, symmetric, groups, negative_groups)


def scored(layout: Layout, x: Embeddings) -> tuple[Tensor, Tensor]:
    """The scores of all rows: the positive's [B], and the candidates' [B, C], -inf at what is not a candidate."""
    a = x.anchor[: layout.rows]
    pairs = layout.pairings(x)
    blocks = [products(getattr(x, left)[: layout.rows], x.matrix(right)) for left, right in pairs]
    positive_scores = blocks[0].diagonal() if layout.in_batch else (a * x.positive[: layout.rows]).sum(dim=1)
    if x.negatives is not None and layout.own_negatives(x):
        blocks.append(products(a[:, None], x.negatives)[:, 0])
    scores = torch.cat(blocks, dim=1)
    gone = torch.zeros_like(scores, dtype=torch.bool)
    layout.excluded(x, slice(0, layout.rows)).fill_(gone, True)
    return positive_scores, scores.masked_fill(gone, -torch.inf)


def weighted(
    positive_scores: Tensor, candidate_scores: Tensor, rules: list[Rule], features: int, out: Tensor | None = None
) -> Tensor | None:
    """The product of the rules' weights; where the score is -inf a rule may have answered anything."""
    weights: Tensor | None = None
    if not rules:
        return weights
    with torch.no_grad():
        candidate_scores = with_exact_ties(candidate_scores, positive_scores, features, out)
        for rule in rules:
            given = rule(positive_scores[:, None], candidate_scores)
            if not isinstance(given, Tensor) or given.shape != candidate_scores.shape:
                was = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise ValueError(f"weigh must return weights of shape {list(candidate_scores.shape)}, was {was}")
            given = given.to(candidate_scores.dtype)
            weights = given if weights is None else weights * given
    return weights


def relative_logits(
    positive_scores: Tensor, candidate_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """(s_i - s_p) / t + log w_i, the candidates' logits when the positive's is 0: [B], [B, C] -> [B, C]."""
    # the difference first: at temperature 1e-3 the quotients have lost the digits that matter
    gone = candidate_scores == -torch.inf
    logits = (candidate_scores.masked_fill(gone, 0.0) - positive_scores[:, None]) / temperature
    # -inf only at the end: divided by a temperature that learns, it would give that one the gradient 0 * inf, and a
    # rule may have given it any weight
    if weights is not None:
        logits = logits + weights.detach().to(logits.dtype).log()
    return logits.masked_fill(gone, -torch.inf)


def row_losses(
    positive_scores: Tensor, candidate_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """log(1 + sum_i w_i exp((s_i - s_p) / t)) of each row."""
    logits = relative_logits(positive_scores, candidate_scores, weights, temperature)
    dead = logits.isneginf().all(dim=1)
    # autograd of logsumexp gives NaN where a whole row is -inf
    lead = logits.masked_fill(dead[:, None], 0.0).logsumexp(dim=1).masked_fill(dead, -torch.inf)
    return loss_of_lead(lead)


def loss_of_lead(lead: Tensor) -> Tensor:
    """log(1 + exp(lead)): the loss of a positive whose logit is lower than the candidates' together by lead."""
    return torch.nn.functional.softplus(lead, threshold=50)  # beyond, float64 cannot tell it from lead


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses, or the losses themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def all_candidates(
    given: Embeddings, layout: Layout, anchors: bool
) -> tuple[Embeddings, Layout]:  # pragma: no cover - distributed, no mutate block
    """Both with all ranks' rows of each that others may have as candidates, own rows first."""
    shared = {"anchor": given.anchor} if anchors else {}
    if layout.in_batch:
        shared["positive"] = given.positive
    if given.negatives is not None and (layout.in_batch or given.negatives.ndim == 2):
        shared["negatives"] = given.matrix("negatives")
    found = dict(zip(shared, untraced(gathered)(*shared.values()), strict=True))
    if layout.groups is not None:
        with torch.no_grad():
            labels = {"groups": layout.groups}
            if layout.negative_groups is not None and "negatives" in shared:
                labels["negative_groups"] = layout.negative_groups.flatten()
            layout = layout._replace(**dict(zip(labels, untraced(gathered)(*labels.values()), strict=True)))
    return given._replace(**found), layout


def check_embeddings(
    prefix: str, anchor: Tensor, positive: Tensor, negatives: Tensor | None, shapes: tuple[str, str], **sizes: int
) -> dict[str, int]:
    """Raise unless the pair and the negatives have these shapes; their names in the messages get the prefix. Returns
    the sizes.
    """
    pair, of_negatives = shapes
    if negatives is None and not sizes and is_pair(anchor, positive):
        return {"B": anchor.shape[0], "D": anchor.shape[1]}
    given = [(f"{prefix}anchor", anchor, pair), (f"{prefix}positive", positive, pair)]
    if negatives is not None:
        given.append((f"{prefix}negatives", negatives, of_negatives))
    sizes = check_shapes(*given, sizes=sizes)
    check_some(f"{prefix}anchor", anchor, 0, "row")  # the mean of no losses is not a number
    check_some(f"{prefix}anchor", anchor, 1, "feature")
    return sizes


def is_pair(anchor: Tensor, positive: Tensor) -> bool:
    """Whether nothing is wrong with them: most calls need to be asked no more."""
    tensors = isinstance(anchor, Tensor) and isinstance(positive, Tensor)
    if not tensors or anchor.ndim != 2 or anchor.shape != positive.shape:
        return False
    alike = anchor.dtype == positive.dtype and anchor.device == positive.device
    return alike and anchor.is_floating_point() and anchor.shape[0] > 0 and anchor.shape[1] > 0


def check_candidates(
    sizes: dict[str, int],
    anchor: Tensor,
    negatives: Tensor | None,
    groups: Tensor | None,
    negative_groups: Tensor | None,
    *,
    in_batch: bool,
    contrast_anchors: bool,
    contrast_positives: bool,
) -> None:
    """Raise unless the options that say who is a candidate fit together and fit embeddings of these sizes."""
    if in_batch is True and contrast_anchors is contrast_positives is False and groups is negative_groups is None:
        return
    check_flag("in_batch", in_batch)
    if not in_batch and (negatives is None or negatives.shape[-2] == 0):
        raise ValueError("negatives must be given when in_batch is False: there is nothing else to contrast with")
    for name, flag in (("contrast_anchors", contrast_anchors), ("contrast_positives", contrast_positives)):
        check_flag(name, flag)
        if flag and not in_batch:
            raise ValueError(f"{name} must be False when in_batch is False")
    if groups is not None:
        check_shapes(("groups", groups, "B"), kind=INTEGER, sizes=sizes)
        check_device("groups", groups, "anchor", anchor)
    if negative_groups is not None:
        if negatives is None or groups is None:
            raise ValueError("negative_groups must be given together with negatives and groups only")
        shape = "N" if negatives.ndim == 2 else "B N"
        check_shapes(("negative_groups", negative_groups, shape), kind=INTEGER, sizes=sizes)
        check_device("negative_groups", negative_groups, "anchor", anchor)
