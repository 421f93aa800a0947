"""Similarity: how alike are two vectors?

Everything later in the package starts from one number per pair of vectors.

>>> import torch
>>> cosine_similarity(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
tensor(0.9746)

For every pair of two sets at once:

>>> similarity_matrix(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
tensor([[1.0000, 0.7071],
        [0.0000, 0.7071]])
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mathlib._checks import broadcast, check_choice, check_shapes, check_some

HALVES = (torch.float16, torch.bfloat16)


def wide(x: Tensor) -> Tensor:
    """x in the dtype that sums are taken in: float32 for half precision, else its own."""
    return x.float() if x.dtype in HALVES else x


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, in at least float32; 0 with gradient 0 where |x| is below eps.

    The gradient of x / |x| grows like 1 / |x|. eps is the length at which that factor still fits
    into the input's own dtype: 1e-4 for float16, whose largest number is 65504, else 1e-12.
    """
    return direction(x)[0]


def direction(x: Tensor, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """`unit`, and the lengths [..., 1], infinite where |x| is below eps."""
    eps = 1e-4 if x.dtype == torch.float16 else 1e-12
    limit = eps * (1 - 1e-6)  # since a threshold lets pass what is above it, not what is at it
    x = wide(x)
    # Squares overflow long before lengths do. The direction, and its gradient, do not depend on a scale. Of two lengths
    # the first is right unless it is infinite; then far makes the second right, as it makes what is too short vanish.
    far = torch.finfo(x.dtype).max ** 0.75
    scale = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    scale = torch.threshold(scale, limit, far).clamp_max_(far)
    divide = Tensor.div_ if in_place else torch.div  # fresh memory costs more than the division
    x = divide(x, scale)
    length = torch.threshold(torch.linalg.vector_norm(x, dim=-1, keepdim=True), 1 / far, torch.inf)
    return divide(x, length), length * scale


def cosine_similarity(a: Float[Tensor, "*#batch D"], b: Float[Tensor, "*#batch D"]) -> Float[Tensor, "*batch"]:
    r"""Cosine of the angle between a and b along the last axis, broadcasting over the others.

    .. math:: \cos(a, b) = \frac{a \cdot b}{|a|\,|b|}

    Half-precision inputs are computed in float32 and rounded once, at the end. A zero vector (shorter
    than 1e-12, or 1e-4 in float16) has similarity 0 to everything, and gradient 0.

    Args:
        a: vectors, any scale.
        b: vectors, any scale; same dtype and device as a.

    Returns:
        Values in [-1, 1], up to rounding, in the dtype of the inputs.

    Raises:
        ValueError: if the last axes differ, or the others do not broadcast.

    Source:
        Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, eq. 6.10.

    Example:
        >>> cosine_similarity(torch.tensor([3.0, 4.0]), torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
        tensor([0.9600, 0.0000])

    Chapter: 00_cosine_similarity (eq. cosine)
    """
    check_shapes(("a", a, "... D"), ("b", b, "... D"))
    check_some("a", a, -1, "feature")
    if broadcast(a.shape, b.shape) is None:
        raise ValueError(f"b must broadcast with a, {list(a.shape)}, was {list(b.shape)}")
    return (unit(a) * unit(b)).sum(-1).to(a.dtype)


def similarity_matrix(
    a: Float[Tensor, "m D"], b: Float[Tensor, "n D"], *, metric: str = "cosine"
) -> Float[Tensor, "m n"]:
    r"""Similarity of every row of a to every row of b: one matrix product.

    .. math:: S_{ij} = \cos(a_i, b_j) \quad\text{or}\quad S_{ij} = a_i \cdot b_j

    Half-precision inputs are multiplied in float32 and rounded once, at the end, under autocast too.

    Args:
        a: m vectors.
        b: n vectors; same dtype and device as a.
        metric: "cosine", or "dot" for the plain inner product.

    Returns:
        The m x n similarities in the dtype of the inputs. Zero vectors have cosine 0 and gradient 0.

    Raises:
        ValueError: if a and b differ in their number of features, or have none.

    Source:
        Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, section 6.3.

    Example:
        >>> similarity_matrix(torch.tensor([[1.0, 2.0]]), torch.eye(2), metric="dot")
        tensor([[1., 2.]])

    Chapter: 00_cosine_similarity (eq. similarity-matrix)
    """
    check_shapes(("a", a, "m D"), ("b", b, "n D"))
    check_some("a", a, 1, "feature")
    check_choice("metric", metric, ("cosine", "dot"))
    prepare = unit if metric == "cosine" else wide
    return products(prepare(a), prepare(b)).to(a.dtype)


def products(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in the dtype of its inputs, whatever autocast would make of it.

    Scores are divided by temperatures down to 1e-3: a bfloat16 product, good to 2 decimals, would
    leave nothing of their differences.
    """
    with no_autocast(a):
        return a @ b.mT


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on x's device, and free where it is off already."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device ("meta" has none)."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def with_exact_ties(scores: Tensor, positive_scores: Tensor, features: int, out: Tensor | None = None) -> Tensor:
    """The scores [R, C], with those that differ from the positive's [R] only by rounding replaced by it.

    A product's last bits depend on where in a matrix it stands, so that a copy of the positive would land above it,
    below it or on it, depending on the processor. Two sums of D products of unit vectors are at most D eps apart.
    """
    positive_scores = positive_scores[:, None]
    near = torch.sub(scores, positive_scores, out=out).abs_() <= features * torch.finfo(scores.dtype).eps
    return torch.where(near, positive_scores, scores, out=out)
