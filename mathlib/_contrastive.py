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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mathlib._blockwise import Block, Derivatives, blockwise, removal, softmax_
from mathlib._checks import (
    check_choice,
    check_count,
    check_device,
    check_flag,
    check_shapes,
    check_some,
    check_temperature,
)
from mathlib._distributed import check_on_ranks, untraced, world_size
from mathlib._rows import (
    Embeddings,
    Layout,
    Rule,
    all_candidates,
    check_candidates,
    check_embeddings,
    layout_of,
    loss_of_lead,
    reduced,
    row_losses,
    scored,
    units,
    weighted,
)
from mathlib._similarity import wide


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
        ValueError: if the shapes do not fit together, there is no row, or an option is out of its range.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4.

    Example:
        >>> contrastive_loss(torch.tensor([1.0]), torch.tensor([[1.0, 1.0]]), temperature=0.05)
        tensor(1.0986)

    Chapter: 01_infonce (eq. info-nce)
    """
    sizes = check_shapes(("positive_scores", positive_scores, "B"), ("negative_scores", negative_scores, "B N"))
    if weights is not None:
        check_shapes(("weights", weights, "B N"), sizes=sizes)
        check_device("weights", weights, "negative_scores", negative_scores)
    check_temperature("temperature", temperature, positive_scores)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_some("positive_scores", positive_scores, 0, "row")
    return reduced(row_losses(wide(positive_scores), wide(negative_scores), weights, temperature), reduction)


def info_nce(
    anchor: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "N D"] | Float[Tensor, "B N D"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.05,
    in_batch: bool = True,
    weigh: Rule | Sequence[Rule] | None = None,
    symmetric: bool = False,
    groups: Integer[Tensor, "B"] | None = None,
    negative_groups: Integer[Tensor, "N"] | Integer[Tensor, "B N"] | None = None,
    contrast_anchors: bool = False,
    contrast_positives: bool = False,
    reduction: str = "mean",
    block_size: int | None = None,
    gather: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""InfoNCE of a batch of embeddings: each anchor must find its positive among the candidates.

    .. math::
        L_b = -\log\frac{e^{\cos(a_b, p_b)/\tau}}
            {e^{\cos(a_b, p_b)/\tau} + \sum_{n \in \mathcal{N}_b} w_{bn}\, e^{\cos(a_b, n)/\tau}}

    With ``in_batch`` the candidates of an anchor are all other positives and all explicit negatives,
    those given for other anchors too; without it, the explicit negatives alone, of a pool all of them. (In-batch
    positives and each anchor's own negatives, no others', are scores for `contrastive_loss`.)

    **Rules.** A rule is a function (positive_scores [B, 1], candidate_scores [B, C]) -> weights [B, C], each >= 0
    (not checked), called without gradient; it must not change its arguments. The scores are cosines, not divided by the
    temperature, float32 for half-precision inputs, and B is a block's rows, so what a rule returns must come from them.
    Where a block of scores holds the positive itself, that entry reads -inf. A score within D eps of the positive's, as
    that of a copy is by rounding, is given as equal to it. With reduction "none", and where a gradient is
    differentiated, a rule is asked again in the backward pass, so a random rule needs "mean" or "sum".

    **Several processes.** With ``gather`` each rank of `torch.distributed` scores its own anchors against all
    ranks' positives, negatives and, where they are asked for, anchors, which have the same shape and the same
    options on every rank; a pool is each rank's share of one pool, and a label means the same on all ranks. Under
    DistributedDataParallel, which averages, "mean" gives the gradient of the whole batch on one process; "sum" and
    "none" need the loss times the number of ranks, as they do without gather.

    Args:
        anchor: a, any scale (embeddings are scaled to unit length).
        positive: p, row b belongs to anchor b.
        negatives: a pool shared by all anchors [N, D], or N of each anchor's own [B, N, D].
        temperature: tau > 0, a number or a 0-d tensor that may require grad; a tensor's value is not checked. From
            half-precision embeddings its gradient, like theirs, is as exact as half precision.
        in_batch: whether the rest of the batch counts as negatives.
        weigh: w, by default 1: a rule, or several whose weights multiply.
        symmetric: whether to take the mean with the loss in which anchors and positives have changed places, explicit
            negatives left out: each positive looks for its anchor.
        groups: integer labels of the anchors [B], e.g. their documents' ids or classes: an anchor's candidates of its
            own group, its positive apart, are removed before any rule sees them (explicit negatives by their
            negative_groups). Rules see scores alone, and under dropout even copies of one text score apart.
        negative_groups: integer labels of the negatives, [N] or [B, N], for the same purpose.
        contrast_anchors: whether the other anchors are candidates too, scored against the anchor; with ``symmetric``
            this is SimCLR's loss.
        contrast_positives: whether pairs of positives are candidates too: row b's positive against all others.
        reduction: "mean" over the anchors, "sum", or "none" for the loss of each.
        block_size: rows whose scores are alive at once; None means 512 on a CPU (as few as 384 with a rule
            and many candidates), on CUDA 1024, or as many as have 2^26 scores. Memory is O(block_size * candidates);
            loss and gradients stay the same, up to rounding. Where the gradient itself is to be differentiated, and
            under torch.compile, the formula is evaluated as it stands.
        gather: whether the candidates of all ranks count.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs. An anchor
        with no candidate left has loss 0 and gradient 0.

    Raises:
        ValueError: if without in_batch there are no negatives, or symmetric or a contrast is asked for, or a rule's
            weights have another shape than the scores; with gather, on every rank, if what must be the same on every
            rank is not, or if an argument is wrong on one.
        RuntimeError: under `torch.vmap`, and, from torch, under forward-mode differentiation.

    Source:
        van den Oord, Li and Vinyals (2018), arXiv:1807.03748, eq. 4; in-batch negatives: Sohn (2016),
        "Improved deep metric learning with multi-class N-pair loss objective", NeurIPS; Henderson et al. (2017),
        arXiv:1705.00652.

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
    kinds = {"in_batch": in_batch, "contrast_anchors": contrast_anchors, "contrast_positives": contrast_positives}
    rules = [] if weigh is None else list(weigh) if isinstance(weigh, Sequence) else [weigh]

    def check() -> None:
        sizes = check_embeddings("", anchor, positive, negatives, ("B D", "N D | B N D"))
        check_candidates(sizes, anchor, negatives, groups, negative_groups, **kinds)
        check_flag("symmetric", symmetric)
        if symmetric and not in_batch:
            raise ValueError("symmetric must be False when in_batch is False: a positive would have no negatives")
        check_flag("gather", gather)
        check_temperature("temperature", temperature, anchor)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        if block_size is not None:
            check_count("block_size", block_size)
        for i, rule in enumerate(rules):
            if not callable(rule):
                raise TypeError(f"weigh must be a function or a sequence of them, item {i} was {type(rule).__name__}")

    gathering = bool(gather) and world_size() > 1
    if gathering:  # pragma: no cover - distributed, no mutate block
        settings = {
            "function": "info_nce",
            "anchor": anchor,
            "positive": positive,
            "negatives": negatives,
            "temperature": temperature,
            "in_batch": in_batch,
            "number of rules": len(rules),
            "symmetric": symmetric,
            "groups": groups,
            "negative_groups": negative_groups,
            "contrast_anchors": contrast_anchors,
            "contrast_positives": contrast_positives,
            "reduction": reduction,
        }
        untraced(check_on_ranks)(check, settings)
    else:
        check()

    # Both directions come from one pass over the scores, unless the row of a positive has weights or candidates of its
    # own, or other ranks' anchors, which are rows of no block here.
    at_once = symmetric and not (rules or contrast_anchors or contrast_positives or gathering)
    layout = layout_of(anchor.shape[0], groups, negative_groups, **kinds, symmetric=at_once)
    given = Embeddings(anchor, positive, negatives)
    if gathering:  # pragma: no cover - distributed, no mutate block
        given, layout = all_candidates(given, layout, symmetric or contrast_anchors)
    loss = InfoNCE(rules, layout, anchor.shape[1])
    directions = [given]
    if symmetric and not at_once:
        directions.append(Embeddings(given.positive, given.anchor, None))
    found = [blockwise(loss, layout, x, temperature, reduction=reduction, block_size=block_size) for x in directions]
    return found[0] if len(found) == 1 else (found[0] + found[1]) / 2


class InfoNCE(NamedTuple):
    """The loss of `info_nce` on unit vectors of that many features, as the engine asks for it."""

    rules: list[Rule]
    layout: Layout
    features: int

    @property
    def takes_logits(self) -> bool:
        return not self.rules

    @property
    def least_rows(self) -> int:
        return 384 if self.rules else 512

    def definition(
        self, anchor: Tensor, positive: Tensor, negatives: Tensor | None, temperature: Tensor | float
    ) -> Tensor:
        losses = self.one_way(units(anchor, positive, negatives), temperature)
        if not self.layout.symmetric:
            return losses
        return (losses + self.one_way(units(positive, anchor, None), temperature)) / 2

    def one_way(self, x: Embeddings, temperature: Tensor | float) -> Tensor:
        """The loss of each anchor among its candidates."""
        positive_scores, scores = scored(self.layout, x)
        weights = weighted(positive_scores, scores, self.rules, self.features)
        return row_losses(positive_scores, scores, weights, temperature)

    def derivatives(self, block: Block, temperature: Tensor | float) -> Derivatives:
        s_p, scores = block.positive, block.scores
        weights = weighted(s_p, scores, self.rules, self.features, block.scratch)
        if weights is not None:
            if weights.untyped_storage() is block.scratch.untyped_storage():
                weights = weights.clone()  # the rule returned the scores themselves, which are about to be overwritten
            # far above the others, logits of weight 0 would leave them no digits
            s_p, far = s_p / temperature, removal(scores.dtype)
            scores.div_(temperature).sub_(torch.eq(weights, 0, out=block.scratch), alpha=far)
            block.excluded.fill_(scores, -far)
        # With z the logits and l = log sum_i w_i e^{z_i - z_p} the candidates' lead, L = log(1 + e^l), and
        #     dL/dz_i = sigma(l) w_i e^{z_i} / sum_j w_j e^{z_j},    dL/dz_p = -sigma(l)
        shares, lead = softmax_(scores, s_p)
        if weights is None:
            wrong = lead.sigmoid()
            return Derivatives(loss_of_lead(lead), shares, -1.0, wrong)
        block.excluded.fill_(shares.mul_(weights), 0.0)  # where a rule may have answered anything
        whole = shares.sum(dim=1)
        lead.add_(whole.log())
        whole.clamp_min_(torch.finfo(whole.dtype).tiny)  # 0 where every weight is
        return Derivatives(loss_of_lead(lead), shares, -whole, lead.sigmoid() / whole)
