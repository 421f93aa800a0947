r"""Hard negatives: which of all the wrong candidates are worth learning from?

Those that the model mistakes for the right answer teach most. The rules here choose them among the
candidates of a batch, with weight 1 for a chosen one and 0 for the others:

>>> import torch
>>> positive_scores, candidate_scores = torch.tensor([[0.5]]), torch.tensor([[0.9, 0.55, 0.45, 0.1]])
>>> hard_negatives(positive_scores, candidate_scores, threshold=0.4)
tensor([[1., 1., 1., 0.]])
>>> semi_hard_negatives(positive_scores, candidate_scores, margin=0.1, side="below")
tensor([[0., 0., 1., 0.]])
>>> top_k_negatives(positive_scores, candidate_scores, k=2)
tensor([[1., 1., 0., 0.]])

The best of them, 0.9, may well be right. So rules multiply, and what looks false can go:

>>> from functools import partial
>>> from mathlib import false_negative_weights, info_nce
>>> no_false = partial(false_negative_weights, strategy="absolute", margin=0.0)
>>> top_k_negatives(positive_scores, candidate_scores, k=3) * no_false(positive_scores, candidate_scores)
tensor([[0., 0., 1., 0.]])
>>> loss = info_nce(torch.eye(4), torch.eye(4), weigh=[partial(top_k_negatives, k=3), no_false])

A curriculum starts with the easy ones, so the threshold rises while training goes on:

>>> [curriculum(step, start=0.0, end=0.5, total_steps=100) for step in (0, 50, 100, 150)]
[0.0, 0.25, 0.5, 0.5]

And from a whole corpus they are mined before training:

>>> documents = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
>>> indices, scores = mine_hard_negatives(torch.tensor([[1.0, 0.2]]), documents, torch.tensor([0]), k=1)
>>> indices
tensor([[1]])
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mathlib._checks import check_choice, check_count, check_number, check_shapes, check_some
from mathlib._false_negatives import check_rule, false_negative_weights
from mathlib._retrieval import Relevant, best_of_blocks, listed
from mathlib._similarity import products, unit, wide


def hard_negatives(
    positive_scores: Float[Tensor, "B 1"], candidate_scores: Float[Tensor, "B C"], *, threshold: float
) -> Float[Tensor, "B C"]:
    r"""A rule: weight 1 for the candidates above a threshold, else 0.

    .. math:: w_i = [\, s_i > \theta \,]

    There is no upper limit: false negatives are the first to be chosen. Multiply with
    `false_negative_weights` to remove them. A row with nothing chosen has loss 0.

    Args:
        positive_scores: s_p; not used, every rule is given them.
        candidate_scores: s_i; -inf, the place of the row's own positive, is never chosen.
        threshold: theta, finite, in the scale of the scores.

    Returns:
        The weights, without gradient; float32 for half-precision inputs, which are compared in float32.

    Raises:
        ValueError: if the scores do not fit together, or threshold is not finite.

    Source:
        Robinson et al. (2021), arXiv:2010.04592 (principle 2; its principle 1 asks for true negatives).

    Example:
        >>> hard_negatives(torch.tensor([[0.8]]), torch.tensor([[0.9, 0.5, 0.2]]), threshold=0.5)
        tensor([[1., 0., 0.]])

    Chapter: 03_hard_negatives (eq. threshold-set)
    """
    check_rule(positive_scores, candidate_scores)
    check_number("threshold", threshold)
    s = wide(candidate_scores)
    return (s > threshold).to(s.dtype)


def semi_hard_negatives(
    positive_scores: Float[Tensor, "B 1"],
    candidate_scores: Float[Tensor, "B C"],
    *,
    margin: float,
    side: str = "above",
) -> Float[Tensor, "B C"]:
    r"""A rule: weight 1 for the candidates less than a margin away from the positive, on one side of it.

    .. math::
        w_i = [\, s_p < s_i < s_p + m \,] \;\text{(above)}
        \quad\text{or}\quad
        w_i = [\, s_p - m < s_i < s_p \,] \;\text{(below)}

    "above" is the notes' inequality: negatives ranked before the positive, many of them false. "below" is
    FaceNet's, on squared distances d^2 = 2 - 2 cos, carried over to cosines: a margin there is m/2 here
    (FaceNet's 0.2 is m = 0.1). Both are strict on both sides. A row with nothing chosen has loss 0.

    Args:
        positive_scores: s_p, any scale.
        candidate_scores: s_i, the same scale; -inf, the place of the row's own positive, is never chosen.
        margin: m >= 0; 0 chooses nothing.
        side: "above" as the notes have it, "below" as FaceNet has.

    Returns:
        The weights, without gradient; float32 for half-precision inputs, which are compared in float32.

    Raises:
        ValueError: if the scores do not fit together, or an option is out of its range.

    Source:
        Schroff, Kalenichenko and Philbin (2015), arXiv:1503.03832, eq. 4.

    Example:
        >>> positive_scores, candidate_scores = torch.tensor([[0.5]]), torch.tensor([[0.9, 0.55, 0.5, 0.45, 0.1]])
        >>> semi_hard_negatives(positive_scores, candidate_scores, margin=0.1)
        tensor([[0., 1., 0., 0., 0.]])
        >>> semi_hard_negatives(positive_scores, candidate_scores, margin=0.1, side="below")
        tensor([[0., 0., 0., 1., 0.]])

    Chapter: 03_hard_negatives (eq. semi-hard)
    """
    check_rule(positive_scores, candidate_scores)
    check_number("margin", margin, least=0)
    check_choice("side", side, ("above", "below"))
    s_p, s = wide(positive_scores), wide(candidate_scores)
    low, high = (s_p, s_p + margin) if side == "above" else (s_p - margin, s_p)
    return ((low < s) & (s < high)).to(s.dtype)


def top_k_negatives(
    positive_scores: Float[Tensor, "B 1"], candidate_scores: Float[Tensor, "B C"], *, k: int
) -> Float[Tensor, "B C"]:
    r"""A rule: weight 1 for the k candidates of each row with the highest scores, else 0.

    .. math:: w_i = \bigl[\, |\{j : s_j > s_i\}| + |\{j < i : s_j = s_i\}| < k \,\bigr]

    Exactly k are chosen also where scores tie: those with the lower index. Rules do not see what another
    one removes, so that k hardest times `false_negative_weights` may leave fewer than k.

    Args:
        positive_scores: s_p; not used, every rule is given them.
        candidate_scores: s_i; -inf, the place of the row's own positive, is never chosen.
        k: how many, at least 1; where there are fewer, all.

    Returns:
        The weights, without gradient; float32 for half-precision inputs.

    Raises:
        ValueError: if the scores do not fit together, or k is below 1.

    Source:
        Faghri et al. (2018), arXiv:1707.05612 (k = 1).

    Example:
        >>> top_k_negatives(torch.tensor([[0.8]]), torch.tensor([[0.5, 0.9, 0.5, 0.2]]), k=2)
        tensor([[1., 1., 0., 0.]])

    Chapter: 03_hard_negatives (eq. top-k)
    """
    check_rule(positive_scores, candidate_scores)
    check_count("k", k)
    s = wide(candidate_scores)
    last = s.topk(min(k, s.shape[1]), dim=1).values[:, -1:]
    harder, equal = s > last, s == last
    # the places left go to the first of those that tie with the last; a stable sort would do, but takes longer
    left = k - harder.sum(dim=1, keepdim=True)
    first = equal & (equal.cumsum(dim=1, dtype=torch.int32) <= left)
    return ((harder | first) & (s > -torch.inf)).to(s.dtype)


def curriculum(step: float, *, start: float, end: float, total_steps: float, shape: str = "linear") -> float:
    r"""The value of an option at a step of training, e.g. of a threshold: from start to end, then end.

    .. math::
        v(t) = v_0 + (v_1 - v_0)\, f\!\left(\min\left(1, \tfrac{t}{T}\right)\right),
        \qquad f(x) = x \;\text{(linear)} \quad\text{or}\quad \tfrac{1 - \cos \pi x}{2} \;\text{(cosine)}

    Args:
        step: t >= 0, in any unit (steps, epochs); it need not be whole.
        start: v_0, finite.
        end: v_1, finite; above or below start.
        total_steps: T > 0, in the unit of step.
        shape: "linear", or "cosine", which changes slowly at both ends.

    Returns:
        A Python float, exactly start at step 0 and exactly end from total_steps on.

    Raises:
        ValueError: if a number is not finite or out of its range, or the shape is neither of the two.

    Source:
        Bengio et al. (2009), "Curriculum learning", ICML; cosine: Loshchilov and Hutter (2017),
        arXiv:1608.03983, eq. 5.

    Example:
        >>> curriculum(25, start=0.25, end=0.75, total_steps=100)
        0.375
        >>> round(curriculum(25, start=0.25, end=0.75, total_steps=100, shape="cosine"), 4)
        0.3232

    Chapter: 03_hard_negatives (eq. curriculum)
    """
    check_number("step", step, least=0)
    check_number("start", start)
    check_number("end", end)
    check_number("total_steps", total_steps, above=0)
    check_choice("shape", shape, ("linear", "cosine"))
    if step >= total_steps:
        return float(end)
    done = step / total_steps
    if shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return float(start + (end - start) * done)


def mine_hard_negatives(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    positive_indices: Relevant,
    *,
    k: int,
    margin: float | None = None,
    strategy: str = "relative",
    range_min: int = 0,
    block_size: int | None = None,
) -> tuple[Int[Tensor, "Q k"], Float[Tensor, "Q k"]]:
    r"""The k documents of a corpus most similar to each query that are not known, and do not look, relevant.

    .. math::
        \text{top-}k_{\,d \notin P_q} \bigl\{ \cos(q, d) :
            \cos(q, d) \le s_p - |s_p|\, m \bigr\},
        \qquad s_p = \min_{p \in P_q} \cos(q, p)

    With strategy "absolute" the limit is s_p - m. Of several positives the lowest sets it, as in
    sentence-transformers: that one proves that what is relevant may score as low as that. The price: one
    mislabelled positive far down costs its query the hardest negatives.

    Equal scores come in the order of their index (rounding may set those of equal documents apart); which
    of several documents that tie for the last place is returned is left open. A score equal to the limit
    passes, up to rounding: to remove copies of a positive, take a margin > 0. No gradient is recorded.

    Args:
        queries: Q embeddings, any scale.
        documents: N embeddings; same dtype and device as queries.
        positive_indices: P_q: one document's index for each query, or Q collections of indices, none
            empty. They are never returned.
        k: how many, 1 <= k <= N.
        margin: m >= 0; None compares with no positive.
        strategy: "relative" or "absolute": how margin is meant, as in `false_negative_weights`.
        range_min: of the documents left, skip as many of the most similar ones, >= 0.
        block_size: queries, and documents, scored at once, by default 4096; memory is of the order
            block x (block + range_min + k).

    Returns:
        The documents' indices, most similar first, and their cosines (float32 for half-precision inputs),
        in this order, unlike `search`. Where fewer than k are left, the rest has index -1 and score -inf.

    Raises:
        ValueError: if a collection is empty, or one of its indices is not in 0..N-1.
        IndexError: if positive_indices is a tensor with an index that is not in 0..N-1. Its values are not
            read; on CUDA the error surfaces later, as a device-side assertion.

    Source:
        Moreira et al. (2024), arXiv:2407.15831 (TopK-MarginPos and TopK-PercPos).

    Example:
        >>> documents = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        >>> mine_hard_negatives(torch.tensor([[1.0, 0.0]]), documents, [{1}], k=2)
        (tensor([[0, 2]]), tensor([[1.0000, 0.6000]]))
        >>> mine_hard_negatives(torch.tensor([[1.0, 0.0]]), documents, [{1}], k=3, margin=0.05)
        (tensor([[ 2,  3, -1]]), tensor([[0.6000, 0.0000,   -inf]]))

    Chapter: 03_hard_negatives (eq. mining)
    """
    check_shapes(("queries", queries, "Q D"), ("documents", documents, "N D"))
    check_some("queries", queries, 1, "feature")
    known, _ = listed("positive_indices", positive_indices, len(queries), "queries", queries)
    if not isinstance(positive_indices, Tensor):
        for q, positives in enumerate(positive_indices):
            for d in positives:
                if not 0 <= d < len(documents):
                    raise ValueError(f"positive_indices must lie in 0..{len(documents) - 1}, item {q} had {d}")
    check_count("k", k, most=len(documents), most_meaning="the number of documents")
    check_choice("strategy", strategy, ("relative", "absolute"))
    check_count("range_min", range_min, least=0)
    if block_size is not None:
        check_count("block_size", block_size)
    size = min(int(block_size or 4096), max(len(queries), len(documents)))
    with torch.no_grad():
        blocks = [
            mined(unit(rows), documents, positives.long(), k, margin, strategy, range_min, size)
            for rows, positives in zip(queries.split(size), known.split(size), strict=True)
        ]
    indices, scores = zip(*blocks, strict=True)
    return torch.cat(indices), torch.cat(scores)


def mined(
    queries: Tensor,
    documents: Tensor,
    known: Tensor,
    k: int,
    margin: float | None,
    strategy: str,
    range_min: int,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """`mine_hard_negatives` for queries of unit length, few enough to be scored at once; known is [Q, P]."""
    # computed even without a margin: an index out of range fails here
    of_positives = [(queries * unit(documents.index_select(0, column))).sum(dim=1) for column in known.unbind(dim=1)]
    worst = torch.stack(of_positives).amin(dim=0)[:, None]

    def scores(first: int, last: int) -> Tensor:
        block = products(queries, unit(documents[first:last]))
        width = block.shape[1]
        # one column more for the positives of other blocks
        place = torch.where((known >= first) & (known < first + width), known - first, width)
        gone = torch.zeros(len(block), width + 1, dtype=torch.bool, device=block.device)
        gone = gone.scatter_(1, place, True)[:, :width]
        if margin is not None:
            gone = gone | (false_negative_weights(worst, block, strategy=strategy, margin=margin) == 0)
        return block.masked_fill(gone, -torch.inf)

    best, indices = best_of_blocks(scores, len(documents), min(range_min + k, len(documents)), block_size)
    best, indices = best[:, range_min:], indices[:, range_min:]
    missing = (0, k - best.shape[1])
    best, indices = F.pad(best, missing, value=-torch.inf), F.pad(indices, missing, value=-1)
    return indices.masked_fill(best == -torch.inf, -1), best
