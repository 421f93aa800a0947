r"""False negatives: what if a candidate that counts as wrong is right?

In a batch, every other anchor's positive is a negative, and some of these would be right answers too. A rule
looks at the scores, and lets the candidates that look like right answers count for less:

>>> import torch
>>> positive_scores, candidate_scores = torch.tensor([[0.8]]), torch.tensor([[0.9, 0.75, 0.1]])
>>> false_negative_weights(positive_scores, candidate_scores, strategy="threshold", threshold=0.7)
tensor([[0., 0., 1.]])
>>> false_negative_weights(positive_scores, candidate_scores, strategy="absolute", margin=0.0, alpha=0.5)
tensor([[0.5000, 1.0000, 1.0000]])

`info_nce` calls the rule once its options are fixed. The first two anchors here mean the same thing,
so that each one's positive is a false negative of the other; the rule stops pushing them apart:

>>> from functools import partial
>>> from mathlib import info_nce
>>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
>>> info_nce(x, x, temperature=1.0, reduction="none")
tensor([0.8620, 0.8620, 0.5514])
>>> rule = partial(false_negative_weights, strategy="absolute", margin=0.1)
>>> info_nce(x, x, temperature=1.0, weigh=rule, reduction="none")
tensor([0.3133, 0.3133, 0.5514])
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mathlib._checks import check_choice, check_number, check_shapes
from mathlib._similarity import wide


def false_negative_weights(
    positive_scores: Float[Tensor, "B 1"],
    candidate_scores: Float[Tensor, "B C"],
    *,
    strategy: str,
    threshold: float | None = None,
    margin: float | None = None,
    alpha: float = 0.0,
) -> Float[Tensor, "B C"]:
    r"""A rule: weight alpha for each candidate that looks like a false negative, else 1.

    .. math::
        w_i = \begin{cases} \alpha & s_i > \ell \\ 1 & \text{otherwise} \end{cases}
        \qquad
        \ell = \begin{cases}
            \theta & \text{threshold} \\ s_p - m & \text{absolute} \\ s_p - |s_p|\, m & \text{relative}
        \end{cases}

    A score equal to the limit keeps its weight 1, and so does -inf, the place of the row's own positive.

    Whose similarity is asked decides everything. Given to `info_nce`, the rule sees the student's, who
    at first knows little: what it removes then are the informative negatives. Called on a guide's
    scores, it gives weights for `contrastive_loss`; `gist_embed_loss` does so with a whole batch.

    A weight between 0 and 1 lowers a score by a constant, alpha e^(s/tau) = e^((s + tau ln alpha)/tau):
    at tau = 0.05, alpha = 0.5 takes off 0.035, no more. Only alpha = 0 removes a candidate.

    The relative margin is a share of the positive's size, hence its absolute value: with s_p < 0 the product
    s_p (1 - m) lies above s_p, and would spare candidates more similar than the positive. At s_p = 0
    the margin vanishes.

    Args:
        positive_scores: s_p, any scale.
        candidate_scores: s_i, the same scale; the rows may be empty (C = 0).
        strategy: "threshold", "absolute" or "relative".
        threshold: theta, finite; for "threshold", and for no other.
        margin: m >= 0; for "absolute" and "relative", and not for "threshold".
        alpha: the weight of what looks false, in [0, 1].

    Returns:
        The weights, without gradient; float32 for half-precision inputs, which are compared in float32.

    Raises:
        ValueError: if threshold or margin is missing, or given to a strategy that does not use it.

    Source:
        Huynh et al. (2022), arXiv:2011.11765 (elimination is alpha = 0); the margins: Moreira et al.
        (2024), arXiv:2407.15831 (TopK-MarginPos and TopK-PercPos); absolute with m = 0: Solatorio
        (2024), arXiv:2402.16829.

    Example:
        >>> positive_scores = torch.tensor([[0.5], [-0.5]])
        >>> candidate_scores = torch.tensor([[0.45, 0.3], [-0.55, -0.7]])
        >>> false_negative_weights(positive_scores, candidate_scores, strategy="relative", margin=0.2)
        tensor([[0., 1.],
                [0., 1.]])

    Chapter: 02_false_negatives (eq. false-negative-weights)
    """
    check_rule(positive_scores, candidate_scores)
    check_choice("strategy", strategy, ("threshold", "absolute", "relative"))
    for name, value, wanted in (
        ("threshold", threshold, strategy == "threshold"),
        ("margin", margin, strategy != "threshold"),
    ):
        if (value is not None) != wanted:
            raise ValueError(f"{name} must {'' if wanted else 'not '}be given with strategy {strategy!r}, was {value}")
    check_number("alpha", alpha, least=0, most=1)
    s_p, s = wide(positive_scores.detach()), wide(candidate_scores.detach())
    if margin is None:
        check_number("threshold", threshold)
        limit: Any = threshold
    else:
        check_number("margin", margin, least=0)
        limit = limit_below(s_p, margin, strategy)
    if alpha == 0:
        # writes 1 or 0 directly, without an intermediate bool tensor; not(s > limit) keeps NaN, s <= limit would not
        return s.clone().gt_(limit).neg_().add_(1)
    return torch.ones_like(s).masked_fill_(s > limit, alpha)


def limit_below(positive_scores: Tensor, margin: float, strategy: str) -> Tensor:
    """The highest score that a margin, "absolute" or "relative", leaves beside each positive's."""
    return positive_scores - (margin if strategy == "absolute" else positive_scores.abs() * margin)


def check_rule(positive_scores: Tensor, candidate_scores: Tensor) -> None:
    """Raise unless a rule can be asked: [B, 1] and [B, C], of one dtype, on one device."""
    check_shapes(("positive_scores", positive_scores, "B 1"), ("candidate_scores", candidate_scores, "B C"))
