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

Or none is chosen and none dropped, but the harder ones count more:

>>> hardness_weights(positive_scores, candidate_scores, strength=2.0)
tensor([[1.9002, 0.9436, 0.7726, 0.3836]])

A curriculum starts with the easy ones, so the threshold rises while training goes on:

>>> [curriculum(step, start=0.0, end=0.5, total_steps=100) for step in (0, 50, 100, 150)]
[0.0, 0.25, 0.5, 0.5]

And from a whole corpus they are mined before training:

>>> documents = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
>>> scores, indices = mine_hard_negatives(torch.tensor([[1.0, 0.2]]), documents, torch.tensor([0]), k=1)
>>> indices
tensor([[1]])
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mathlib._checks import check_choice, check_count, check_number, check_shapes, check_some
from mathlib._false_negatives import check_rule, limit_below
from mathlib._retrieval import Relevant, SearchResult, listed, nearest, parts_of
from mathlib._similarity import unit, wide


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
        Robinson et al. (2021), arXiv:2010.04592, for the idea (principle 2; principle 1 asks for true
        negatives); they weigh, and have no threshold.

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

    "above" chooses negatives ranked before the positive, many of them false. "below" is
    FaceNet's, on squared distances d^2 = 2 - 2 cos, carried over to cosines: a margin there is m/2 here
    (FaceNet's 0.2 is m = 0.1). Both are strict on both sides. A row with nothing chosen has loss 0.

    Args:
        positive_scores: s_p, any scale.
        candidate_scores: s_i, the same scale; -inf, the place of the row's own positive, is never chosen.
        margin: m >= 0; 0 chooses nothing.
        side: "above" or "below" the positive, where FaceNet has them.

    Returns:
        The weights, without gradient; float32 for half-precision inputs, which are compared in float32.

    Raises:
        ValueError: if the scores do not fit together, or an option is out of its range.

    Source:
        Schroff, Kalenichenko and Philbin (2015), arXiv:1503.03832, eq. 4, the lower limit on the distance; the upper
        one, the margin, is in the sentence after it.

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


def hardness_weights(
    positive_scores: Float[Tensor, "B 1"], candidate_scores: Float[Tensor, "B C"], *, strength: float
) -> Float[Tensor, "B C"]:
    r"""A rule: each candidate counts the more the higher it scores, and all together as much as without the rule.

    .. math:: w_i = \frac{e^{\beta s_i}}{\frac{1}{|C|} \sum_{j \in C} e^{\beta s_j}},
        \qquad C = \{j : s_j > -\infty\}

    The soft form of `top_k_negatives`: none is dropped, but as beta grows the hardest takes the weight of
    all. The gradient takes the weights as constants. False negatives gain weight too: multiply with
    `false_negative_weights` to remove them, which leaves the others' weights as they are.

    Args:
        positive_scores: s_p; not used, every rule is given them.
        candidate_scores: s_i; -inf, the place of the row's own positive, has weight 0 and no part in the mean.
        strength: beta >= 0, finite; 0 gives all candidates weight 1. It multiplies the scores as they are given,
            for cosines before the temperature divides them.

    Returns:
        The weights, without gradient; float32 for half-precision inputs. They are finite at any strength, and
        all 0 in a row without candidates.

    Raises:
        ValueError: if the scores do not fit together, or strength is negative or not finite.

    Source:
        Robinson et al. (2021), arXiv:2010.04592, section 3 (with tau+ = 0; its beta multiplies scores that the
        temperature has divided).

    Example:
        >>> hardness_weights(torch.tensor([[0.8]]), torch.tensor([[0.9, 0.5, -torch.inf]]), strength=10.0)
        tensor([[1.9640, 0.0360, 0.0000]])

    Chapter: 03_hard_negatives (eq. hardness)
    """
    check_rule(positive_scores, candidate_scores)
    check_number("strength", strength, least=0)
    s = wide(candidate_scores.detach())
    if s.shape[1] == 0:
        return torch.zeros_like(s)
    there = s != -torch.inf
    # relative to the hardest, so that no exponential overflows; in a row without candidates there are no numbers
    below = (s - s.amax(dim=1, keepdim=True)) * min(strength, torch.finfo(s.dtype).max)
    relative = below.exp().masked_fill(~there, 0)
    # at least 1, the highest's own, unless nothing is there
    total = relative.sum(dim=1, keepdim=True).clamp_min(1)
    return relative * (there.sum(dim=1, keepdim=True) / total)


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
) -> SearchResult:
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
    passes, up to rounding: to remove copies of a positive, take a margin > 0. A document whose score is not a
    number is never mined; a query with a NaN has no negatives, nor, with a margin, has one whose positive
    has no number. No gradient is recorded.

    Args:
        queries: Q embeddings, any scale.
        documents: N embeddings; same dtype and device as queries.
        positive_indices: P_q: one document's index for each query, or Q collections of indices, none
            empty. They are never returned. Of a mapping {document: grade}, P_q are those with a grade
            above 0; what is judged not relevant may be mined.
        k: how many, 1 <= k <= N.
        margin: m >= 0; None compares with no positive.
        strategy: "relative" or "absolute": how margin is meant, as in `false_negative_weights`.
        range_min: how many of the most similar documents left are skipped, >= 0.
        block_size: queries, and documents, scored at once, by default as in `search` (on CUDA 4096 queries);
            memory is of the order of their product, D x block, and Q x (range_min + k).

    Returns:
        As of `search`, the named pair of cosines, highest first (float32 for half-precision inputs), and the
        documents' indices. Where fewer than k are left, the rest has score -inf and index -1, which as an index of
        ``documents`` would be the last of them: see ``indices >= 0`` first.

    Raises:
        ValueError: if a collection has no relevant document, or one of its indices is not in 0..N-1.
        IndexError: if positive_indices is a tensor with an index that is not in 0..N-1. Its values are not
            read; on CUDA the error surfaces later, as a device-side assertion.

    Source:
        Moreira et al. (2024), arXiv:2407.15831 (TopK-MarginPos and TopK-PercPos).

    Example:
        >>> documents = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        >>> mine_hard_negatives(torch.tensor([[1.0, 0.0]]), documents, [{1}], k=2).indices
        tensor([[0, 2]])
        >>> scores, indices = mine_hard_negatives(torch.tensor([[1.0, 0.0]]), documents, [{1}], k=3, margin=0.05)
        >>> indices
        tensor([[ 2,  3, -1]])
        >>> scores
        tensor([[0.6000, 0.0000,   -inf]])

    Chapter: 03_hard_negatives (eq. mining)
    """
    check_shapes(("queries", queries, "Q D"), ("documents", documents, "N D"))
    check_some("queries", queries, 1, "feature")
    check_some("documents", documents, 0, "row")
    size = documents.shape[0]
    known, _ = listed("positive_indices", positive_indices, queries.shape[0], "queries", queries)
    if not isinstance(positive_indices, Tensor):
        for q, positives in enumerate(positive_indices):
            for d in positives:
                if not 0 <= d < size:
                    raise ValueError(f"positive_indices must lie in 0..{size - 1}, item {q} had {d}")
    check_count("k", k, most=size, most_meaning="the number of documents")
    if margin is not None:
        check_number("margin", margin, least=0)
    check_choice("strategy", strategy, ("relative", "absolute"))
    check_count("range_min", range_min, least=0)
    if block_size is not None:
        check_count("block_size", block_size)
    known = known.long()
    with torch.no_grad():
        # computed even without a margin: an index out of range fails here
        parts = parts_of(queries.shape[0], 4096)
        worst = torch.cat([lowest_of_positives(queries[rows], documents, known[rows]) for rows in parts])
        limit = None if margin is None else limit_below(worst, margin, strategy)

        def drop(block: Tensor, rows: slice, columns: slice) -> Tensor:
            if limit is not None:
                # keeps what is not above; a NaN is neither
                block = torch.where(block <= limit[rows], block, -torch.inf)
            places = known[rows] - columns.start
            last = columns.stop - columns.start - 1
            inside = (places >= 0) & (places <= last)
            # a positive of another block leaves what it meets as it is
            lowered = torch.where(inside, -torch.inf, torch.inf).to(block.dtype)
            return block.scatter_reduce_(1, places.clamp(0, last), lowered, "amin")

        rows = block_size or (4096 if queries.is_cuda else None)
        scores, indices = nearest(queries, documents, min(range_min + k, size), "cosine", rows, block_size, drop)
        scores, indices = scores[:, range_min:], indices[:, range_min:]
        missing = (0, k - scores.shape[1])
        scores, indices = F.pad(scores, missing, value=-torch.inf), F.pad(indices, missing)
        return SearchResult(scores, indices.masked_fill(scores == -torch.inf, -1))


def lowest_of_positives(queries: Tensor, documents: Tensor, known: Tensor) -> Tensor:
    """The cosine [Q, 1] of each query with the least similar of its documents, known [Q, P]."""
    directions = unit(queries)
    of_each = [(directions * unit(documents.index_select(0, column))).sum(dim=1) for column in known.unbind(dim=1)]
    return torch.stack(of_each).amin(dim=0)[:, None]
