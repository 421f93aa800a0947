"""Rows of scores: what the losses that compare an anchor's positive with other candidates have in common.

A row holds the scores of one anchor. `Layout` says who is compared with whom, `scored` writes all rows out, `weighted`
asks the rules, and `row_losses` is the formula. The losses' definitions are made of these; `_blockwise` computes the
same a few rows at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mathlib._checks import check_shapes, check_some
from mathlib._distributed import gathered, untraced
from mathlib._similarity import products, tied, unit

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
        return rows.flatten(0, -2)


def units(anchor: Tensor, positive: Tensor, negatives: Tensor | None) -> Embeddings:
    """The three, of unit length."""
    return Embeddings(unit(anchor), unit(positive), None if negatives is None else unit(negatives))


class Layout(NamedTuple):
    """Who is compared with whom."""

    rows: int
    """How many anchors have a loss. Rows beyond these belong to other processes and are candidates only."""
    in_batch: bool
    """Whether all positives, and all anchors' negatives, are candidates of each anchor."""
    among: tuple[str, ...] = ()
    """Further candidates: "anchor" and "positive" compare each row of these with all others of them."""
    symmetric: bool = False
    """Whether half of the loss is that of the positives, each among all anchors."""

    def own_negatives(self, x: Embeddings) -> bool:
        """Whether each anchor has candidates that no other anchor has."""
        return x.negatives is not None and x.negatives.ndim == 3 and not self.in_batch

    def pairings(self, x: Embeddings) -> list[tuple[str, str]]:
        """(left, right) of each product: row b of left is compared with all rows of right."""
        pairs = [("anchor", "positive")] if self.in_batch else []
        pairs += [(name, name) for name in self.among]
        if x.negatives is not None and not self.own_negatives(x):
            pairs.append(("anchor", "negatives"))
        return pairs

    def width(self, x: Embeddings) -> int:
        """The number of scores in a row, those of the row with its own positive, or with itself, included."""
        own = x.negatives.shape[1] if x.negatives is not None and self.own_negatives(x) else 0
        return own + sum(len(x.matrix(right)) for _, right in self.pairings(x))

    def excluded(self, x: Embeddings, first: int, matrix: Tensor) -> list[Tensor]:
        """Views of a matrix [R, C] whose rows begin with row `first`: the entries that are not candidates, since there
        a row meets its own positive, or itself.
        """
        widths = [len(x.matrix(right)) for left, right in self.pairings(x) if right != "negatives"]
        return [block.diagonal(first) for block in matrix[:, : sum(widths)].split(widths, dim=1)]


def scored(layout: Layout, x: Embeddings) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of all rows: the positive's [B], the candidates' [B, C], and where these are -inf since the row
    meets its own positive or itself [B, C].
    """
    a = x.anchor[: layout.rows]
    pairs = layout.pairings(x)
    blocks = [products(getattr(x, left)[: layout.rows], x.matrix(right)) for left, right in pairs]
    positive_scores = blocks[0].diagonal() if layout.in_batch else (a * x.positive[: layout.rows]).sum(dim=1)
    if x.negatives is not None and layout.own_negatives(x):
        blocks.append(products(a[:, None], x.negatives)[:, 0])
    scores = torch.cat(blocks, dim=1)
    itself = torch.zeros_like(scores, dtype=torch.bool)
    for view in layout.excluded(x, 0, itself):
        view.fill_(True)
    return positive_scores, scores.masked_fill(itself, -torch.inf), itself


def weighted(
    positive_scores: Tensor,
    candidate_scores: Tensor,
    itself: Tensor | None,
    rules: list[Rule],
    features: int,
    out: Tensor | None = None,
) -> Tensor | None:
    """The product of the rules' weights, 1 where the candidate is the row's own positive (or the row itself)."""
    weights: Tensor | None = None
    with torch.no_grad():
        if rules:
            candidate_scores = tied(candidate_scores, positive_scores, features, out)
        for rule in rules:
            given = rule(positive_scores.detach()[:, None], candidate_scores.detach())
            if not isinstance(given, Tensor) or given.shape != candidate_scores.shape:
                was = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise ValueError(f"weigh must return weights of shape {list(candidate_scores.shape)}, was {was}")
            given = given.to(candidate_scores.dtype)
            weights = given if weights is None else weights * given
        return weights if weights is None or itself is None else weights.masked_fill(itself, 1.0)


def relative_logits(
    positive_scores: Tensor, candidate_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """(s_i - s_p) / t + log w_i, the candidates' logits when the positive's is 0: [B], [B, C] -> [B, C]."""
    # the difference first: at temperature 1e-3 the quotients have lost the digits that matter
    gone = candidate_scores == -torch.inf
    logits = (candidate_scores.masked_fill(gone, 0.0) - positive_scores[:, None]) / temperature
    # -inf only now: divided by a temperature that learns, it would give that one the gradient 0 * inf
    logits = logits.masked_fill(gone, -torch.inf)
    return logits if weights is None else logits + weights.detach().to(logits.dtype).log()


def row_losses(
    positive_scores: Tensor, candidate_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """log(1 + sum_i w_i exp((s_i - s_p) / t)) of each row."""
    logits = relative_logits(positive_scores, candidate_scores, weights, temperature)
    dead = logits.isneginf().all(dim=1)
    # autograd of logsumexp gives NaN where a whole row is -inf
    lead = logits.masked_fill(dead[:, None], 0.0).logsumexp(dim=1).masked_fill(dead, -torch.inf)
    return surprise(lead)


def surprise(lead: Tensor) -> Tensor:
    """log(1 + exp(lead)): the loss of a positive whose logit is lower than the candidates' together by lead."""
    return torch.logaddexp(lead, torch.zeros_like(lead))


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses, or the losses themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def all_candidates(
    anchor: Tensor, positive: Tensor, negatives: Tensor | None, in_batch: bool, anchors: bool
) -> Embeddings:  # pragma: no cover - distributed, no mutate block
    """The three with all ranks' rows of each that others may have as candidates, own rows first."""
    if negatives is not None and in_batch:
        negatives = negatives.flatten(0, -2)
    shared = {"anchor": anchor} if anchors else {}
    if in_batch:
        shared["positive"] = positive
    if negatives is not None and negatives.ndim == 2:
        shared["negatives"] = negatives
    found = dict(zip(shared, untraced(gathered)(*shared.values()), strict=True))
    return Embeddings(anchor, positive, negatives)._replace(**found)


def check_embeddings(
    prefix: str, anchor: Tensor, positive: Tensor, negatives: Tensor | None, shapes: tuple[str, str, str], **sizes: int
) -> dict[str, int]:
    """Raise unless the three have these shapes; their names in the messages get the prefix. Returns the sizes."""
    given = [(f"{prefix}anchor", anchor, shapes[0]), (f"{prefix}positive", positive, shapes[1])]
    if negatives is not None:
        given.append((f"{prefix}negatives", negatives, shapes[2]))
    sizes = check_shapes(*given, sizes=sizes)
    check_some(f"{prefix}anchor", anchor, 0, "row")  # the mean of no losses is not a number
    check_some(f"{prefix}anchor", anchor, 1, "feature")
    return sizes


def check_any_negatives(negatives: Tensor | None, in_batch: bool) -> None:
    """Raise if an anchor could have no candidates but its positive, whatever the batch."""
    if not in_batch and (negatives is None or negatives.shape[-2] == 0):
        raise ValueError("negatives must be given when in_batch is False: there is nothing else to contrast with")
