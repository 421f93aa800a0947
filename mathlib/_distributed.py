"""Batches larger than one device: every process scores its own anchors against the candidates of all.

In-batch negatives are worth more the more there are, and the batch is as large as memory allows. On
several devices the batch grows with their number, if the processes exchange their embeddings: numbers of
B x D, while the encoders and the B x B scores stay where they are.

`gather_with_grad` is that exchange. Without a `torch.distributed` group there is one process, and its rows
are all rows:

>>> import torch
>>> gather_with_grad(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
tensor([[1., 2.],
        [3., 4.]])
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from mathlib._checks import check_tensor
from mathlib._similarity import wide


def gather_with_grad(tensor: Float[Tensor, "B *rest"]) -> Float[Tensor, "G *rest"]:
    r"""The rows of all ranks of the running `torch.distributed` group, this rank's own first.

    .. math:: x_r \mapsto [x_r, x_0, \ldots, x_{r-1}, x_{r+1}, \ldots, x_{W-1}]

    With the own rows first, row b of the result belongs to the rank's anchor b. The gradient is exact: a row
    receives the sum of what it was given on all W ranks, so backward must run on each of them. It is that of the
    sum of the ranks' losses. DistributedDataParallel takes the mean over the ranks, so a loss that each rank
    averages over its own rows needs no factor: the parameters get the gradient of the mean over the whole
    batch. A loss that is summed needs the factor W, with or without this function.

    Args:
        tensor: this rank's rows, [B] or [B, ...]; shape, dtype and whether it requires grad are the same on
            every rank.

    Returns:
        All W * B rows, the others in the order of their ranks; without a group, or in a group of one, the tensor.

    Raises:
        ValueError: if it has no axis, or, on every rank, if it is not alike on all ranks.

    Source:
        Radford et al. (2021), arXiv:2103.00020, for a batch that is spread over devices.

    Example:
        >>> rows = torch.ones(2, 3, requires_grad=True)
        >>> gather_with_grad(rows).sum().backward()
        >>> rows.grad[0]
        tensor([1., 1., 1.])

    Chapter: 01_infonce (eq. info-nce-batch)
    """

    def check() -> None:
        check_tensor("tensor", tensor)
        if not tensor.ndim:
            raise ValueError("tensor must have shape [B, ...], was []")

    if world_size() > 1:  # pragma: no cover - distributed
        check_on_ranks(check, {"function": "gather_with_grad", "tensor": tensor})
        return gathered(tensor)[0]
    check()
    return tensor


def world_size() -> int:
    """How many processes there are: 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def untraced(function: Callable) -> Callable:  # pragma: no cover - distributed
    """The function as it is, inside what torch.compile compiles too."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def check_on_ranks(check: Callable[[], None], given: dict[str, object]) -> None:  # pragma: no cover - distributed
    """Run the check, and raise on every rank if it raises on one, or unless all call with the same settings and with
    tensors alike: otherwise they would wait for one another forever.

    A digest is exchanged; only where the digests differ, the words.
    """
    error: Exception | None = None
    try:
        check()
        words = {name: described(value) for name, value in given.items()}
    except (TypeError, ValueError) as caught:
        error, words = caught, {"error": str(caught)}
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    digest = torch.frombuffer(bytearray(hashlib.sha256(repr(words).encode()).digest()), dtype=torch.uint8).to(device)
    digests = [torch.empty_like(digest) for _ in range(world_size())]
    dist.all_gather(digests, digest)
    everyone: list[Any] = [words] * world_size()
    if not bool((torch.stack(digests) == digest).all()):
        dist.all_gather_object(everyone, words)
    if error:
        raise error
    for rank, other in enumerate(everyone):
        if "error" in other:
            raise ValueError(f"{other['error']}, on rank {rank}")
    for name in words:
        was = [other[name] for other in everyone]
        if len(set(was)) > 1:
            found = ", ".join(f"{what} on rank {rank}" for rank, what in enumerate(was))
            raise ValueError(f"{name} must be the same on every rank, was {found}")


def described(value: object) -> str:  # pragma: no cover - distributed
    """What must be the same on all ranks: of a tensor, what decides how much is exchanged, and whether backward is."""
    if not isinstance(value, Tensor):
        return repr(value)
    grad = " with grad" if value.requires_grad and torch.is_grad_enabled() else ""
    return f"{list(value.shape)} {value.dtype}{grad}"


def gathered(*tensors: Tensor) -> tuple[Tensor, ...]:  # pragma: no cover - distributed
    """`gather_with_grad` of tensors that are known to be alike on all ranks, in one node of the graph:
    so every rank's backward pass enters the collectives in the same order.
    """
    return Gather.apply(*tensors)


class Gather(torch.autograd.Function):  # pragma: no cover - distributed
    """Rows [B, ...] of each rank -> [W * B, ...], own rows first."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for tensor in tensors:
            rows = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
            dist.all_gather(by_rank(rows), tensor.detach().contiguous())
            outputs.append(rows)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return Scatter.apply(*upstream)


class Scatter(torch.autograd.Function):  # pragma: no cover - distributed
    """The transpose of `Gather`: rows [W * B, ...], own first, of each rank -> the sums for the own rows [B, ...]."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for tensor in tensors:
            # half precision is rounded after the sum: one rank's part of a gradient may be too small for it
            parts = [part.contiguous() for part in by_rank(wide(tensor.detach()))]
            total = torch.empty_like(parts[0])
            dist.reduce_scatter(total, parts)
            outputs.append(total.to(tensor.dtype))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return Gather.apply(*upstream)


def by_rank(rows: Tensor) -> list[Tensor]:  # pragma: no cover - distributed
    """Views of rows that stand with the own first: each rank's, in the order of the ranks."""
    own, *others = rows.chunk(world_size())
    others.insert(dist.get_rank(), own)
    return others
