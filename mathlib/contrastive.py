"""Contrastive losses: is the positive more similar to its anchor than every other candidate?

All of them ask one question of a row of scores. With s_p the positive's score, s_i those of the other
candidates, w_i >= 0 their weights and t the temperature, the loss of the row is

    L = log(1 + sum_i w_i exp((s_i - s_p) / t)),

which is -log softmax of the positive among its candidates. `contrastive_loss` is that formula;
`info_nce` takes embeddings, makes the rows out of a batch, and asks *rules* for the weights.

>>> import torch
>>> contrastive_loss(torch.tensor([0.9]), torch.tensor([[0.1, 0.5]]), temperature=0.1)
tensor(0.0185)

Without a candidate there is nothing to lose against. A row in which every weight is 0 has loss 0 and
gradient 0:

>>> contrastive_loss(torch.tensor([0.9]), torch.tensor([[0.1, 0.5]]), temperature=0.1,
...                  weights=torch.zeros(1, 2))
tensor(0.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mathlib._blockwise import Places, Task, blockwise, removal, softmax_, surprise
from mathlib._checks import (
    check_alike,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_size,
    check_some,
    check_tensor,
)
from mathlib.distributed import check_same_on_ranks, gathered, untraced, world_size
from mathlib.similarity import products, tied, unit, wide

Rule = Callable[[Tensor, Tensor], Tensor]
"""(positive_scores [B, 1], candidate_scores [B, C]) -> weights [B, C], each >= 0."""


def contrastive_loss(
    positive_scores: Float[Tensor, "B"],
    negative_scores: Float[Tensor, "B N"],
    *,
    temperature: float | Float[Tensor, ""],
    weights: Float[Tensor, "B N"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""InfoNCE on scores: -log of the positive's softmax probability among its candidates.

    .. math:: L = -\log\frac{e^{s_p/\tau}}{e^{s_p/\tau} + \sum_{i=1}^N w_i\, e^{s_i/\tau}}

    Computed in log space, for half-precision inputs in float32. Weight 0 deletes a candidate, as does
    the score -inf; weight 3 equals three copies. With no candidate left, loss and gradient are 0.

    Args:
        positive_scores: s_p, any scale.
        negative_scores: s_i; a row may be empty (N = 0).
        temperature: tau > 0, a number or a 0-d tensor that may require grad.
        weights: w_i >= 0, by default 1; constants, no gradient flows to them. Their sign is not
            checked: a negative one gives NaN.
        reduction: "mean" over the rows, "sum", or "none" for the loss of each row.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs.

    Raises:
        TypeError: if a tensor is not floating-point, dtypes differ, or temperature is no number.
        ValueError: if a shape, a device, the temperature or the reduction is not as above.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4.

    Example:
        >>> contrastive_loss(torch.tensor([1.0]), torch.tensor([[1.0, 1.0]]), temperature=0.05)
        tensor(1.0986)

    Chapter: 01_infonce (eq. info-nce)
    """
    check_tensor("positive_scores", positive_scores, "B")
    check_tensor("negative_scores", negative_scores, "B N")
    check_alike("negative_scores", negative_scores, "positive_scores", positive_scores)
    check_size("negative_scores", negative_scores, 0, len(positive_scores), "rows")
    if weights is not None:
        check_tensor("weights", weights, "B N")
        if weights.shape != negative_scores.shape:
            raise ValueError(
                f"weights must have the shape of negative_scores, {list(negative_scores.shape)}, "
                f"was {list(weights.shape)}"
            )
        if weights.device != negative_scores.device:
            raise ValueError(
                f"weights must be on the device of negative_scores, {negative_scores.device}, was {weights.device}"
            )
    check_temperature(temperature, positive_scores)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_some("positive_scores", positive_scores, 0, "row")
    return reduced(row_losses(wide(positive_scores), wide(negative_scores), weights, temperature), reduction)


def row_losses(
    positive_scores: Tensor, negative_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """log(1 + sum_i w_i exp((s_i - s_p) / t)) for each row: [B], [B, N] -> [B]."""
    logits = relative_logits(positive_scores, negative_scores, weights, temperature)
    dead = logits.isneginf().all(dim=1)
    # autograd of logsumexp gives NaN where a whole row is -inf
    others = logits.masked_fill(dead[:, None], 0.0).logsumexp(dim=1).masked_fill(dead, -torch.inf)
    return torch.logaddexp(others, torch.zeros_like(others))


def relative_logits(
    positive_scores: Tensor, negative_scores: Tensor, weights: Tensor | None, temperature: float | Tensor
) -> Tensor:
    """(s_i - s_p) / t + log w_i, the logits of the negatives when the positive's is 0: [B], [B, N] -> [B, N]."""
    # the difference first: at temperature 1e-3 the quotients have lost the digits that matter
    gone = negative_scores == -torch.inf
    logits = (negative_scores.masked_fill(gone, 0.0) - positive_scores[:, None]) / temperature
    # -inf only now: divided by a temperature that learns, it would give that one the gradient 0 * inf
    logits = logits.masked_fill(gone, -torch.inf)
    return logits if weights is None else logits + weights.detach().to(logits.dtype).log()


def info_nce(
    anchor: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "N D"] | Float[Tensor, "B N D"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.05,
    in_batch: bool = True,
    weigh: Rule | Sequence[Rule] | None = None,
    symmetric: bool = False,
    reduction: str = "mean",
    block_size: int | None = None,
    gather: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""InfoNCE of a batch of embeddings: each anchor must find its positive among the candidates.

    .. math::
        L_b = -\log\frac{e^{\cos(a_b, p_b)/\tau}}
            {e^{\cos(a_b, p_b)/\tau} + \sum_{n \in \mathcal{N}_b} w_{bn}\, e^{\cos(a_b, n)/\tau}}

    With ``in_batch`` the candidates of an anchor are all other positives and all explicit negatives,
    those given for other anchors too; without it, its own explicit negatives alone.

    Args:
        anchor: a, any scale (embeddings are scaled to unit length).
        positive: p, row b belongs to anchor b.
        negatives: a pool shared by all anchors [N, D], or N of each anchor's own [B, N, D].
        temperature: tau > 0, a number or a 0-d tensor that may require grad; a tensor's value is not checked.
        in_batch: whether the rest of the batch counts as negatives.
        weigh: a rule, or several whose weights multiply. A rule is a function
            (positive_scores [B, 1], candidate_scores [B, C]) -> weights [B, C], each >= 0 (not checked), called
            without gradient; where the block of scores holds the positive itself, it reads -inf. What differs from
            the positive's score by no more than D eps, as a copy of it does by rounding, is given as equal to it. A
            rule must not change its arguments. With reduction "none", and where a gradient is differentiated, it is
            asked again in the backward pass: a random rule wants "mean" or "sum".
        symmetric: also ask each positive for its anchor among all anchors, and take the mean of both.
        reduction: "mean" over the anchors, "sum", or "none" for the loss of each.
        block_size: rows whose scores are alive at once; None takes 512 on a CPU, down to 384 with a
            rule and many candidates, and more on a GPU. Memory is O(block_size * candidates); loss and gradients
            stay the same, up to rounding. Where the gradient itself is to be differentiated, and under
            torch.compile, the formula is evaluated as it stands.
        gather: on several processes (`torch.distributed`), whether the candidates of all ranks count: each rank
            scores its own anchors against all ranks' positives, negatives and, for symmetric, anchors, all of
            the same shape and with the same options on every rank. A pool is each rank's own share of a pool.
            "mean" under DistributedDataParallel, which averages, then gives the gradient of the whole batch on
            one process; "sum" and "none" want the loss times the number of ranks, as they do without gather.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs. An anchor
        with no candidate left has loss 0 and gradient 0.

    Raises:
        TypeError: if a tensor is not floating-point, dtypes differ, or an option has a wrong type.
        ValueError: if a shape, a device or an option is not as above, or without in_batch there are no
            negatives, or a rule's weights have another shape than the scores; with gather, on every rank, if
            what must be the same on every rank is not.
        RuntimeError: from torch, under forward-mode differentiation or vmap.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; in-batch negatives: Chen et al.
        (2017), "On sampling strategies for neural network-based collaborative filtering", KDD.

    Example:
        >>> anchor, positive = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> info_nce(anchor, positive, temperature=1.0, reduction="none")
        tensor([0.5574, 0.4008])
        >>> def keep_easy(positive_scores, candidate_scores):
        ...     return (candidate_scores < 0.5).float()
        >>> info_nce(anchor, positive, temperature=1.0, weigh=keep_easy, reduction="none")
        tensor([0.0000, 0.4008])

    Chapter: 01_infonce (eq. info-nce-batch)
    """
    check_embeddings("", anchor, positive, negatives)
    check_flag("in_batch", in_batch)
    check_flag("symmetric", symmetric)
    check_flag("gather", gather)
    check_any_negatives(negatives, in_batch)
    if symmetric and not in_batch:
        raise ValueError("symmetric must be False when in_batch is False: a positive would have no negatives")
    check_temperature(temperature, anchor)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if block_size is not None:
        check_count("block_size", block_size)
    rules = [] if weigh is None else list(weigh) if isinstance(weigh, Sequence) else [weigh]
    for i, rule in enumerate(rules):
        if not callable(rule):
            raise TypeError(f"weigh must be a function or a sequence of them, item {i} was {type(rule).__name__}")

    anchors, positives = anchor, positive  # the candidates
    gather = gather and world_size() > 1
    if gather:  # pragma: no cover - distributed, no mutate block
        given: dict[str, object] = {
            **{"anchor": anchor, "positive": positive, "negatives": negatives, "temperature": temperature},
            **{"in_batch": in_batch, "number of rules": len(rules), "symmetric": symmetric, "reduction": reduction},
        }
        untraced(check_same_on_ranks)(anchor.device, {"function": "info_nce", **given})
        anchors, positives, negatives = all_candidates(anchor, positive, negatives, in_batch, symmetric)

    def one_way(a: Tensor, p: Tensor, n: Tensor | None, temperature: float | Tensor) -> Tensor:
        batch = Batch(unit(a), unit(p), None if n is None else unit(n), in_batch)
        return weighted_losses(batch, rules, temperature)

    def both_ways(a: Tensor, p: Tensor, n: Tensor | None, temperature: float | Tensor) -> Tensor:
        return (one_way(a, p, n, temperature) + one_way(p, a, None, temperature)) / 2

    def slopes(
        first: int, last: int, s_p: Tensor, scores: Tensor, spare: Tensor, own: Places, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = weighted(s_p, scores, None, rules, anchor.shape[1], spare)
        if weights is not None:
            if weights.untyped_storage().data_ptr() == spare.untyped_storage().data_ptr():
                weights = weights.clone()  # the rule answered with the scores, which are about to be overwritten
            s_p, scores = s_p / temperature, scores.div_(temperature)
            scores.sub_(torch.eq(weights, 0, out=spare), alpha=removal(scores.dtype))
        shares, lead = softmax_(scores, s_p, weights, own)
        wrong = lead.sigmoid()  # the probability of all negatives
        return surprise(lead), shares, -torch.ones_like(wrong), wrong

    if torch.compiler.is_compiling():
        losses = one_way(anchor, positives, negatives, temperature)
        if symmetric:
            losses = (losses + one_way(positive, anchors, None, temperature)) / 2
        return reduced(losses, reduction)

    # with rules, the row of a positive has weights of its own, which only a pass over its row can ask for;
    # and other ranks' anchors are rows of no block here
    at_once = symmetric and not rules and not gather
    task = Task(
        slopes,
        both_ways if at_once else one_way,
        len(anchor),
        in_batch,
        divided=not rules,
        both=at_once,
        block_size=block_size,
        least_rows=384 if rules else 512,
    )
    loss = blockwise(task, reduction, anchor, positives, negatives, temperature)
    if symmetric and not at_once:
        loss = (loss + blockwise(task, reduction, positive, anchors, None, temperature)) / 2
    return loss


def all_candidates(
    anchor: Tensor, positive: Tensor, negatives: Tensor | None, in_batch: bool, anchors: bool
) -> tuple[Tensor, Tensor, Tensor | None]:  # pragma: no cover - distributed, no mutate block
    """The three, all ranks' rows of each that others may have as candidates, own rows first."""
    if negatives is not None and in_batch:
        negatives = negatives.flatten(0, -2)
    shared = {"anchor": anchor} if anchors else {}
    if in_batch:
        shared["positive"] = positive
    if negatives is not None and negatives.ndim == 2:
        shared["negatives"] = negatives
    found = dict(zip(shared, untraced(gathered)(*shared.values()), strict=True))
    return found.get("anchor", anchor), found.get("positive", positive), found.get("negatives", negatives)


class Batch(NamedTuple):
    """Embeddings of unit length, and who is compared with whom."""

    anchor: Tensor
    positive: Tensor
    negatives: Tensor | None
    in_batch: bool
    among: tuple[Tensor, ...] = ()
    """Further blocks of candidates: of each [B or more, D], row b against all other rows."""


def scored(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of all anchors: the positive's [B], the candidates' [B, C], and which of the candidates [B, C]
    is the positive itself, or in a further block the row itself: it reads -inf.
    """
    a, negatives = batch.anchor, batch.negatives
    blocks = [products(a, batch.positive)] if batch.in_batch else []
    blocks += [products(x[: len(a)], x) for x in batch.among]
    itself = [torch.eye(*block.shape, dtype=torch.bool, device=a.device) for block in blocks]
    positive_scores = blocks[0].diagonal() if blocks else (a * batch.positive).sum(dim=1)
    if negatives is not None:
        if negatives.ndim == 3 and not batch.in_batch:
            blocks.append(products(a[:, None], negatives)[:, 0])
        else:
            blocks.append(products(a, negatives.flatten(0, -2)))
        itself.append(torch.zeros_like(blocks[-1], dtype=torch.bool))
    mask = torch.cat(itself, dim=1)
    return positive_scores, torch.cat(blocks, dim=1).masked_fill(mask, -torch.inf), mask


def weighted_losses(batch: Batch, rules: list[Rule], temperature: float | Tensor) -> Tensor:
    """The loss of each anchor of the batch, its candidates weighted by the rules: the definition."""
    positive_scores, scores, itself = scored(batch)
    weights = weighted(positive_scores, scores, itself, rules, batch.anchor.shape[1])
    return row_losses(positive_scores, scores, weights, temperature)


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


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses, or the losses themselves."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def check_embeddings(prefix: str, anchor: Tensor, positive: Tensor, negatives: Tensor | None) -> None:
    """Raise unless the three fit together; their names in the messages get the prefix."""
    names = [f"{prefix}{name}" for name in ("anchor", "positive", "negatives")]
    check_tensor(names[0], anchor, "B D")
    check_some(names[0], anchor, 0, "row")  # the mean of no losses is not a number
    check_some(names[0], anchor, 1, "feature")
    check_tensor(names[1], positive, "B D")
    check_alike(names[1], positive, names[0], anchor)
    check_size(names[1], positive, 0, anchor.shape[0], "rows")
    check_size(names[1], positive, 1, anchor.shape[1], "features")
    if negatives is not None:
        check_tensor(names[2], negatives, "N D", "B N D")
        check_alike(names[2], negatives, names[0], anchor)
        check_size(names[2], negatives, -1, anchor.shape[1], "features")
        if negatives.ndim == 3:
            check_size(names[2], negatives, 0, anchor.shape[0], "anchors")


def check_any_negatives(negatives: Tensor | None, in_batch: bool) -> None:
    """Raise if an anchor could have no candidates but its positive, whatever the batch."""
    if not in_batch and (negatives is None or negatives.shape[-2] == 0):
        raise ValueError("negatives must be given when in_batch is False: there is nothing else to contrast with")


def check_temperature(temperature: object, other: Tensor, *, name: str = "temperature") -> None:
    """Raise unless temperature is a number > 0 or a 0-d floating-point tensor on other's device."""
    if not isinstance(temperature, Tensor):
        return check_number(name, temperature, above=0)
    check_tensor(name, temperature)
    if temperature.ndim:
        raise ValueError(f"{name} must be a number or a 0-d tensor, was {list(temperature.shape)}")
    if temperature.device != other.device:
        raise ValueError(f"{name} must be on the device of the scores, {other.device}, was {temperature.device}")
