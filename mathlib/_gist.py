r"""GISTEmbedLoss: a guide model decides which candidates count, and how much.

The model that is being trained cannot tell a false negative: it does not yet know what belongs
together. A *guide*, a model that is already trained, does. Its similarities choose the candidates, and
its softmax over them is a second target for the student.

>>> import torch
>>> anchor = positive = torch.eye(2)
>>> blind, seeing = torch.eye(2), torch.ones(2, 1)  # to the second guide, all texts mean the same

The blind guide keeps the other positive. The seeing one finds it as good as the anchor's own, and with a
margin removes it; an anchor without candidates has nothing to learn:

>>> gist_embed_loss(anchor, positive, guide_anchor=blind, guide_positive=blind, lam=0.0, temperature=1.0)
tensor(0.3133)
>>> gist_embed_loss(anchor, positive, guide_anchor=seeing, guide_positive=seeing, lam=0.0,
...                 temperature=1.0, margin=0.1)
tensor(0.)
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mathlib._blockwise import Block, Derivatives, Vectors, blockwise, fill_scores, removal, softmax_, vectors_of
from mathlib._checks import check_choice, check_count, check_device, check_flag, check_number, check_temperature
from mathlib._distributed import check_on_ranks, untraced, world_size
from mathlib._false_negatives import false_negative_weights
from mathlib._rows import (
    Embeddings,
    Layout,
    Rule,
    all_candidates,
    check_candidates,
    check_embeddings,
    layout_of,
    loss_of_lead,
    relative_logits,
    row_losses,
    scored,
    units,
    weighted,
)
from mathlib._similarity import no_autocast


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
    kl_over: str = "all",
    margin: float = 0.0,
    strategy: str = "absolute",
    in_batch: bool = True,
    groups: Integer[Tensor, "B"] | None = None,
    negative_groups: Integer[Tensor, "N"] | Integer[Tensor, "B N"] | None = None,
    contrast_anchors: bool = False,
    contrast_positives: bool = False,
    reduction: str = "mean",
    block_size: int | None = None,
    gather: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "B"]:
    r"""InfoNCE over the candidates that a guide keeps, plus the divergence of the student from the guide.

    .. math::
        L = L_{\text{InfoNCE}} + \lambda\, \mathrm{KL}(g \,\|\, s), \qquad
        \mathrm{KL}(g \,\|\, s) = \sum_{i \in \{p\} \cup \mathcal{N}_b} g_i \log\frac{g_i}{s_i}

    The guide removes a candidate from InfoNCE that it finds more similar than the positive less a margin
    (`false_negative_weights`, on the guide's scores); without a margin, a copy of the positive stays. g and s are
    the softmax probabilities of guide and student over the positive and all candidates, as the notes have it, or
    with ``kl_over="kept"`` over those that the guide keeps: what it removes is what it knows best, so "all" is the
    default, and chapter 06 measures the difference. With ``lam=0``, ``contrast_anchors`` and
    ``contrast_positives`` this is the published loss; the second term is the notes' own.

    sentence-transformers' GISTEmbedLoss has the published loss, at temperature 0.01.

    Args:
        anchor: the student's embeddings, any scale.
        positive: row b belongs to anchor b.
        negatives: a pool shared by all anchors [N, D], or N of each anchor's own [B, N, D].
        guide_anchor: the guide's embeddings of the same items; their width and dtype are their own.
        guide_positive: likewise.
        guide_negatives: likewise; needed if negatives are given.
        temperature: the student's, > 0, a number or a 0-d tensor that may require grad; a tensor's value is not
            checked.
        guide_temperature: the guide's, > 0; None takes the student's, without its gradient: one that is learned
            moves the guide's too. No gradient goes to the guide's.
        lam: the weight of the divergence, >= 0.
        kl_over: "all" candidates or those that were "kept".
        margin: >= 0, in the guide's cosine, or with "relative" a share of the positive's.
        strategy: "absolute" or "relative", how the margin is taken off the positive's score.
        in_batch: whether the rest of the batch counts as negatives.
        groups: labels of the anchors, e.g. their documents' ids: an anchor's candidates of its own group are in
            neither term, whatever the guide finds. Its positive stays.
        negative_groups: labels of the negatives, for the same purpose.
        contrast_anchors: whether the other anchors are candidates too, scored against the anchor.
        contrast_positives: whether pairs of positives are candidates too: row b's positive against all
            others. A row is never compared with itself.
        reduction: "mean" over the anchors, "sum", or "none" for the loss of each.
        block_size: rows whose scores are alive at once, as in `info_nce`; None means 512 to 160 on a CPU, the
            fewer the more candidates there are. Where the gradient itself is to be differentiated, and under
            torch.compile, the formula is evaluated as it stands.
        gather: on several processes, whether the candidates of all ranks count, as in `info_nce`; the guide's
            embeddings are exchanged too.

    Returns:
        The loss, 0-d, or [B] with reduction "none"; float32 for half-precision inputs. Gradient goes to
        the student alone. An anchor with no candidate has loss 0 and gradient 0; if the guide
        removes every candidate, the divergence over "all" is what remains.

    Raises:
        ValueError: if there are no negatives without in_batch, or if negatives are given without the guide's, or
            the guide's without them; with gather, on every rank, if what must be the same on every rank is not, or
            if an argument is wrong on one.
        RuntimeError: under `torch.vmap`, and, from torch, under forward-mode differentiation.

    Source:
        Solatorio (2024), arXiv:2402.16829, for the guide's choice of candidates.

    Example:
        >>> anchor, positive = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> gist_embed_loss(anchor, positive, guide_anchor=anchor, guide_positive=anchor,
        ...                 temperature=1.0, reduction="none")
        tensor([0.6113, 0.4096])

    Chapter: 06_gist (eq. gist)
    """

    kinds = {"in_batch": in_batch, "contrast_anchors": contrast_anchors, "contrast_positives": contrast_positives}

    def check() -> None:
        sizes = check_embeddings("", anchor, positive, negatives, ("B D", "N D | B N D"))
        if negatives is not None and guide_negatives is None:
            raise ValueError("guide_negatives must be given together with negatives, was None")
        if negatives is None and guide_negatives is not None:
            raise ValueError("negatives must be given together with guide_negatives, was None")
        of_negatives = "N G" if negatives is not None and negatives.ndim == 2 else "B N G"
        check_embeddings("guide_", guide_anchor, guide_positive, guide_negatives, ("B G", of_negatives), **sizes)
        check_device("guide_anchor", guide_anchor, "anchor", anchor)
        check_candidates(sizes, anchor, negatives, groups, negative_groups, **kinds)
        check_temperature("temperature", temperature, anchor)
        if guide_temperature is not None:
            check_temperature("guide_temperature", guide_temperature, anchor)
        check_number("lam", lam, least=0)
        check_choice("kl_over", kl_over, ("all", "kept"))
        check_number("margin", margin, least=0)
        check_choice("strategy", strategy, ("absolute", "relative"))
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        check_flag("gather", gather)
        if block_size is not None:
            check_count("block_size", block_size)

    gathering = bool(gather) and world_size() > 1
    if gathering:  # pragma: no cover - distributed, no mutate block
        settings = {
            "function": "gist_embed_loss",
            "anchor": anchor,
            "positive": positive,
            "negatives": negatives,
            "guide_anchor": guide_anchor,
            "guide_positive": guide_positive,
            "guide_negatives": guide_negatives,
            "temperature": temperature,
            "guide_temperature": guide_temperature,
            "lam": lam,
            "kl_over": kl_over,
            "margin": margin,
            "strategy": strategy,
            "in_batch": in_batch,
            "groups": groups,
            "negative_groups": negative_groups,
            "contrast_anchors": contrast_anchors,
            "contrast_positives": contrast_positives,
            "reduction": reduction,
        }
        untraced(check_on_ranks)(check, settings)
    else:
        check()

    layout = layout_of(anchor.shape[0], groups, negative_groups, **kinds)
    student = Embeddings(anchor, positive, negatives)
    guide = Embeddings(guide_anchor, guide_positive, guide_negatives)
    if gathering:  # pragma: no cover - distributed, no mutate block
        with torch.no_grad():
            guide, _ = all_candidates(guide, layout._replace(groups=None), contrast_anchors)
        student, layout = all_candidates(student, layout, contrast_anchors)
    if guide_temperature is None:
        guide_temperature = temperature
    if isinstance(guide_temperature, Tensor):
        guide_temperature = guide_temperature.detach().clone()  # the backward pass may ask for it again
    with torch.no_grad(), no_autocast(anchor):
        vectors, _ = vectors_of(guide)
    rule = partial(false_negative_weights, strategy=strategy, margin=margin)
    loss = Gist(vectors, guide_temperature, rule, lam, kl_over == "all", layout)
    return blockwise(loss, layout, student, temperature, reduction=reduction, block_size=block_size)


class Gist(NamedTuple):
    """The loss of `gist_embed_loss` under a guide, as the engine asks for it."""

    guide: Vectors
    guide_temperature: Tensor | float
    rule: Rule
    lam: float
    over_all: bool
    """Whether the divergence is over all candidates, not only those that the guide keeps."""
    layout: Layout

    @property
    def features(self) -> int:
        """The guide's."""
        return self.guide.factors.anchor.shape[1]

    @property
    def takes_logits(self) -> bool:
        return True

    @property
    def least_rows(self) -> int:
        return 160  # four blocks: the student's scores, the guide's, what the rule keeps, the two scores' differences

    def definition(
        self, anchor: Tensor, positive: Tensor, negatives: Tensor | None, temperature: Tensor | float
    ) -> Tensor:
        with torch.no_grad():
            guide_positive, guide_scores = scored(self.layout, self.guide.units())
            kept = weighted(guide_positive, guide_scores, [self.rule], self.features)
        positive_scores, scores = scored(self.layout, units(anchor, positive, negatives))
        losses = row_losses(positive_scores, scores, kept, temperature)
        if self.lam == 0:
            return losses
        counted = None if self.over_all else kept
        with torch.no_grad():
            guide_logits = relative_logits(guide_positive, guide_scores, counted, self.guide_temperature)
        return losses + self.lam * divergences(
            guide_logits, relative_logits(positive_scores, scores, counted, temperature)
        )

    def derivatives(self, block: Block, temperature: Tensor | float) -> Derivatives:
        logits, z_p, dtype = block.scores, block.positive, block.scores.dtype
        guide_dtype = self.guide.dtype
        guide_scores = block.scratch if guide_dtype == dtype else torch.empty_like(logits, dtype=guide_dtype)
        guide_p = fill_scores(self.layout, self.guide, block.rows, block.excluded, guide_scores)
        kept = weighted(guide_p, guide_scores, [self.rule], self.features)
        assert kept is not None
        far = removal(dtype)
        gone = kept.to(dtype).neg_().add_(1)
        if self.lam == 0:
            shares, lead = softmax_(logits.sub_(gone, alpha=far), z_p)
            wrong = lead.sigmoid()
            return Derivatives(loss_of_lead(lead), shares, -1.0, wrong)
        guide_logits = guide_scores.div_(self.guide_temperature).to(dtype)
        guide_z_p = (guide_p / self.guide_temperature).to(dtype)
        block.excluded.fill_(guide_logits, -far)
        # With s the student's probabilities among the kept, s' and g the student's and the guide's among those that the
        # divergence is over, l, l' and m the candidates' leads over the positive (so that s_p = 1 - sigma(l)), and
        # shares the probabilities of the candidates among themselves (s_i = sigma(l) share_i):
        #     L = log(1 + e^l) + lam KL,    KL = sum_i g_i (log g_i - log s'_i),    dKL/dz_i = s'_i - g_i
        #     dL/dz_i = s_i + lam (s'_i - g_i),    dL/dz_p = -sigma(l) - lam (sigma(l') - sigma(m))
        if self.over_all:
            shares, lead = softmax_(torch.sub(logits, gone, alpha=far, out=gone), z_p)
            differences = guide_logits - logits
            shares_kl, lead_kl = softmax_(logits, z_p)
        else:
            guide_logits.sub_(gone, alpha=far)
            logits.sub_(gone, alpha=far)
            differences = torch.sub(guide_logits, logits, out=gone)
            shares, lead = shares_kl, lead_kl = softmax_(logits, z_p)
        guide_shares, guide_lead = softmax_(guide_logits, guide_z_p)
        wrong, wrong_kl, guide_wrong = lead.sigmoid(), lead_kl.sigmoid(), guide_lead.sigmoid()
        # log g_i - log s'_i = (u_i - z_i) - (u_p - z_p) + (log g_p - log s'_p), with u the guide's logits
        apart = differences.mul_(guide_shares).sum(dim=1) - (guide_z_p - z_p)
        divergence = apart * guide_wrong + loss_of_lead(lead_kl) - loss_of_lead(guide_lead)
        if self.over_all:
            by_scores = shares.mul_(wrong[:, None]).addcmul_(shares_kl, (self.lam * wrong_kl)[:, None])
        else:
            by_scores = shares.mul_((wrong + self.lam * wrong_kl)[:, None])
        by_scores.addcmul_(guide_shares, (self.lam * guide_wrong)[:, None], value=-1)
        by_positive = self.lam * (guide_wrong - wrong_kl) - wrong
        return Derivatives(loss_of_lead(lead) + self.lam * divergence, by_scores, by_positive)


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
