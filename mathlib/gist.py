r"""GISTEmbedLoss: a guide model decides which candidates count, and how much.

A false negative is hard to see for the model that is being trained: it does not yet know what belongs
together. A *guide*, a model that is already trained, does. Its similarities choose the candidates, and
its softmax over them is a second target for the student.

>>> import torch
>>> anchor = positive = torch.eye(2)
>>> blind, seeing = torch.eye(2), torch.ones(2, 1)  # to the second guide, all texts mean the same

The blind guide lets the other positive stand. To the seeing one it is as good as the anchor's own, and
with a margin it goes; an anchor without candidates has nothing to learn:

>>> gist_embed_loss(anchor, positive, guide_anchor=blind, guide_positive=blind, lam=0.0, temperature=1.0)
tensor(0.3133)
>>> gist_embed_loss(anchor, positive, guide_anchor=seeing, guide_positive=seeing, lam=0.0,
...                 temperature=1.0, margin=0.1)
tensor(0.)
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mathlib._blockwise import Embeddings, Places, Task, blockwise, fill, removal, softmax_, surprise
from mathlib._checks import check_choice, check_count, check_flag, check_number
from mathlib.contrastive import (
    Batch,
    all_candidates,
    check_any_negatives,
    check_embeddings,
    check_temperature,
    reduced,
    relative_logits,
    row_losses,
    scored,
    weighted,
)
from mathlib.distributed import check_same_on_ranks, untraced, world_size
from mathlib.false_negatives import false_negative_weights
from mathlib.similarity import unit


def gist_embed_loss(
    anchor: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    negatives: Float[Tensor, "N D"] | Float[Tensor, "B N D"] | None = None,
    *,
    guide_anchor: Float[Tensor, "B G"],
    guide_positive: Float[Tensor, "B G"],
    guide_negatives: Float[Tensor, "N G"] | Float[Tensor, "B N G"] | None = None,
    temperature: float | Float[Tensor, ""] = 0.05,
    guide_temperature: float | Float[Tensor, ""] | None = None,
    lam: float = 1.0,
    margin: float = 0.0,
    strategy: str = "absolute",
    in_batch: bool = True,
    contrast_anchors: bool = False,
    contrast_positives: bool = False,
    reduction: str = "mean",
    block_size: int | None = None,
    gather: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""InfoNCE over the candidates that a guide lets stand, plus its divergence from the student there.

    .. math::
        L = L_{\text{InfoNCE}} + \lambda\, \mathrm{KL}(g \,\|\, s), \qquad
        \mathrm{KL}(g \,\|\, s) = \sum_{i \in \{p\} \cup \mathcal{N}_b} g_i \log\frac{g_i}{s_i}

    g and s are the softmax probabilities of guide and student over the same candidates: the positive and
    what the guide lets stand. A candidate goes when the guide finds it more similar than the positive
    less a margin (`false_negative_weights`, on the guide's scores); without a margin, a copy of the positive
    stays. With `lam=0`, `contrast_anchors` and `contrast_positives` it is the published loss; the second
    term is the notes' own.

    Args:
        anchor: the student's embeddings, any scale.
        positive: row b belongs to anchor b.
        negatives: a pool shared by all anchors [N, D], or N of each anchor's own [B, N, D].
        guide_anchor: the guide's embeddings of the same items; their width and dtype are their own.
        guide_positive: likewise.
        guide_negatives: likewise; needed if negatives are given.
        temperature: the student's, > 0, a number or a 0-d tensor that may require grad; a tensor's value is not
            checked.
        guide_temperature: the guide's, > 0; None takes the student's.
        lam: the weight of the divergence, >= 0.
        margin: >= 0, in the guide's cosine, or with "relative" a share of the positive's.
        strategy: "absolute" or "relative", how the margin is taken off the positive's score.
        in_batch: whether the rest of the batch counts as negatives.
        contrast_anchors: whether the other anchors are candidates too, scored against the anchor.
        contrast_positives: whether pairs of positives are candidates too: row b's positive against all
            others. A row is never compared with itself.
        reduction: "mean" over the anchors, "sum", or "none" for the loss of each.
        block_size: rows whose scores are alive at once, as in `info_nce`; None takes 512 to 160 on a CPU, the
            fewer the more candidates there are. Where the gradient itself is to be differentiated, and under
            torch.compile, the formula is evaluated as it stands.
        gather: on several processes, whether the candidates of all ranks count, as in `info_nce`; the guide's
            embeddings are exchanged too.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs. Gradient goes to
        the student alone. An anchor with no candidate left has loss 0 and gradient 0.

    Raises:
        TypeError: if a tensor is not floating-point, dtypes differ, or an option has a wrong type.
        ValueError: if a shape, a device or an option is not as above, if without in_batch there are no negatives,
            or if negatives are given without the guide's, or the other way round; with gather, on every
            rank, if what must be the same on every rank is not.
        RuntimeError: from torch, under forward-mode differentiation or vmap.

    Source:
        Solatorio (2024), arXiv:2402.16829, for the guide's choice of candidates.

    Example:
        >>> anchor, positive = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> gist_embed_loss(anchor, positive, guide_anchor=anchor, guide_positive=anchor,
        ...                 temperature=1.0, reduction="none")
        tensor([0.6113, 0.4096])

    Chapter: 06_gist (eq. gist)
    """
    check_embeddings("", anchor, positive, negatives)
    check_embeddings("guide_", guide_anchor, guide_positive, guide_negatives)
    if len(guide_anchor) != len(anchor):
        raise ValueError(f"guide_anchor must have {len(anchor)} rows, as anchor, was {list(guide_anchor.shape)}")
    if guide_anchor.device != anchor.device:
        raise ValueError(f"guide_anchor must be on the device of anchor, {anchor.device}, was {guide_anchor.device}")
    if (negatives is None) != (guide_negatives is None):
        given, missing = ("negatives", "guide_negatives")[:: 1 if guide_negatives is None else -1]
        raise ValueError(f"{missing} must be given together with {given}, was None")
    if negatives is not None and guide_negatives is not None and guide_negatives.shape[:-1] != negatives.shape[:-1]:
        raise ValueError(
            f"guide_negatives must be {list(negatives.shape[:-1])} embeddings, as negatives, "
            f"was {list(guide_negatives.shape)}"
        )
    check_temperature(temperature, anchor)
    if guide_temperature is not None:
        check_temperature(guide_temperature, anchor, name="guide_temperature")
    check_number("lam", lam, least=0)
    check_number("margin", margin, least=0)
    check_choice("strategy", strategy, ("absolute", "relative"))
    check_flag("in_batch", in_batch)
    check_flag("gather", gather)
    for name, flag in (("contrast_anchors", contrast_anchors), ("contrast_positives", contrast_positives)):
        check_flag(name, flag)
        if flag and not in_batch:
            raise ValueError(f"{name} must be False when in_batch is False")
    check_any_negatives(negatives, in_batch)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if block_size is not None:
        check_count("block_size", block_size)

    rows = len(anchor)
    if gather and world_size() > 1:  # pragma: no cover - distributed, no mutate block
        settings: dict[str, object] = {
            **{"anchor": anchor, "positive": positive, "negatives": negatives},
            **{"guide_anchor": guide_anchor, "guide_positive": guide_positive, "guide_negatives": guide_negatives},
            **{"temperature": temperature, "guide_temperature": guide_temperature, "lam": lam, "margin": margin},
            **{"strategy": strategy, "in_batch": in_batch, "contrast_anchors": contrast_anchors},
            **{"contrast_positives": contrast_positives, "reduction": reduction},
        }
        untraced(check_same_on_ranks)(anchor.device, {"function": "gist_embed_loss", **settings})
        anchor, positive, negatives = all_candidates(anchor, positive, negatives, in_batch, contrast_anchors)
        with torch.no_grad():
            guides = guide_anchor, guide_positive, guide_negatives
            guide_anchor, guide_positive, guide_negatives = all_candidates(*guides, in_batch, contrast_anchors)

    among = ("anchor",) * contrast_anchors + ("positive",) * contrast_positives
    if guide_temperature is None:
        guide_temperature = temperature
    if isinstance(guide_temperature, Tensor):
        guide_temperature = guide_temperature.detach().clone()  # the backward pass may ask for it again
    rule = partial(false_negative_weights, strategy=strategy, margin=margin)

    def units(a: Tensor, p: Tensor, n: Tensor | None) -> Embeddings:
        return Embeddings(unit(a), unit(p), None if n is None else unit(n))

    def batch(x: Embeddings) -> Batch:
        return Batch(x.anchor[:rows], x.positive, x.negatives, in_batch, tuple(getattr(x, name) for name in among))

    with torch.no_grad():
        guide = units(guide_anchor, guide_positive, guide_negatives)

    def plain(a: Tensor, p: Tensor, n: Tensor | None, temperature: float | Tensor) -> Tensor:
        with torch.no_grad():
            guide_positive_scores, guide_scores, itself = scored(batch(guide))
            weights = weighted(guide_positive_scores, guide_scores, itself, [rule], guide_anchor.shape[1])
            guide_logits = relative_logits(guide_positive_scores, guide_scores, weights, guide_temperature)
        positive_scores, scores, _ = scored(batch(units(a, p, n)))
        losses = row_losses(positive_scores, scores, weights, temperature)
        if lam == 0:
            return losses
        logits = relative_logits(positive_scores, scores, weights, temperature)
        return losses + lam * divergences(guide_logits, logits)

    if torch.compiler.is_compiling():
        return reduced(plain(anchor, positive, negatives, temperature), reduction)

    def slopes(
        first: int, last: int, z_p: Tensor, logits: Tensor, spare: Tensor, own: Places, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        guide_logits = spare if spare.dtype == guide.anchor.dtype else guide.anchor.new_empty(spare.shape)
        guide_z_p, _ = fill(task, guide, first, last, guide_logits)
        weights: Any = weighted(guide_z_p, guide_logits, None, [rule], guide_anchor.shape[1])
        gone = weights.to(logits.dtype).neg_().add_(1)
        guide_logits = guide_logits.div_(guide_temperature).to(logits.dtype)
        guide_z_p = (guide_z_p / guide_temperature).to(logits.dtype)
        for matrix in (logits, guide_logits):
            for view in own(matrix):  # a number, of which a difference can be taken
                view.fill_(-removal(logits.dtype))
            matrix.sub_(gone, alpha=removal(logits.dtype))
        differences = torch.sub(guide_logits, logits, out=gone) if lam else gone
        shares, lead = softmax_(logits, z_p)
        wrong, losses = lead.sigmoid(), surprise(lead)
        if lam == 0:
            return losses, shares, -torch.ones_like(wrong), wrong
        guide_shares, guide_lead = softmax_(guide_logits, guide_z_p)
        guide_wrong = guide_lead.sigmoid()
        # sum of g (log g - log s), over the candidates apart from the positive and the positive
        apart = differences.mul_(guide_shares).sum(dim=1) - (guide_z_p - z_p)
        divergences = apart * guide_wrong + losses - surprise(guide_lead)
        # the student's softmax belongs to both terms, the guide's to the second one
        mine, guides = (1 + lam) * wrong, lam * guide_wrong
        by_scores = shares.mul_(mine[:, None]).addcmul_(guide_shares, guides[:, None], value=-1)
        return losses + lam * divergences, by_scores, guides - mine, torch.ones_like(mine)

    # blocks of the student's scores, the guide's, those that the rule sees, and its weights
    task = Task(slopes, plain, rows, in_batch, divided=True, among=among, block_size=block_size, least_rows=160)
    return blockwise(task, reduction, anchor, positive, negatives, temperature)


def divergences(guide_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(guide || student) of each row, from logits relative to the positive's, which is 0: [B, C] -> [B].

    Both have -inf at the same candidates, those that do not count.
    """
    gone = torch.nn.functional.pad(student_logits.isneginf(), (1, 0))

    def log_probabilities(logits: Tensor) -> Tensor:
        # 0 log 0 is 0 here, and must not be -inf times 0 in the gradient
        return torch.nn.functional.pad(logits, (1, 0)).log_softmax(dim=1).masked_fill(gone, 0.0)

    log_g = log_probabilities(guide_logits.to(student_logits.dtype))
    log_s = log_probabilities(student_logits)
    return (log_g.exp().masked_fill(gone, 0.0) * (log_g - log_s)).sum(dim=1)
