"""Encoding a batch whose activations do not fit into memory.

A contrastive loss wants a large batch. What that costs is the encoder's activations, since the loss itself needs but
one vector of each text. `encode_in_blocks` keeps the activations of one block of rows at a time, for any encoder and
any loss:

>>> import torch
>>> encoder = torch.nn.Linear(3, 2)
>>> texts = torch.eye(5, 3)
>>> torch.equal(encode_in_blocks(encoder, texts, block_size=2), torch.cat([encoder(x) for x in texts.split(2)]))
True
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mathlib._checks import check_count


def encode_in_blocks(
    encoder: Callable[..., Tensor], *inputs: object, block_size: int, **options: object
) -> Float[Tensor, "B *rest"]:
    r"""The encoder's embeddings of a batch, a block of rows at a time: gradient caching for every loss.

    .. math::
        \frac{\partial L}{\partial \theta}
            = \sum_k \frac{\partial L}{\partial e_k} \frac{\partial f_\theta(x_k)}{\partial \theta},
            \qquad e_k = f_\theta(x_k)

    Each block x_k is encoded without storing its activations. The backward pass, which has dL/de_k by then, encodes it
    again, one block after the other, with the same random numbers (dropout) and under the same autocast. So values and
    gradients are, bit for bit, those of the same blocks with all activations kept. Memory is that of one block and of
    all embeddings, time that of one more forward pass. Without gradient every block is encoded once.

    Leave the encoder as it is until the backward pass is over: weights that change in between give another gradient,
    and no error says so; a change of mode, by ``eval()``, gives one from torch.

    A layer that mixes rows, as BatchNorm does in training, sees one block at a time, and updates its statistics twice.
    torch.compile compiles each number of rows for itself, and fails with dynamic=True on an encoder with dropout;
    torch.export fixes the number of rows; torch.func's gradients, and with torch 2.10 vmap, raise torch's RuntimeError.

    Args:
        encoder: f, a function or a module that maps rows to their embeddings, each row by itself.
        inputs: x: tensors whose first axis is the batch, or dicts, tuples or lists that hold such. What else these hold
            goes to every block as it is: a list of numbers for each row must be a tensor to be split.
        block_size: rows that are encoded at once, >= 1.
        options: the encoder's keywords: likewise, and anything else goes to every block as it is.

    Returns:
        The embeddings, [B, D], or whatever the encoder makes of each row.

    Raises:
        TypeError: if an input holds no tensor, or the encoder returns anything but one.
        ValueError: if the inputs and options are not of one batch size, or the encoder does not return a row for each.

    Source:
        Gao, Zhang, Han and Callan (2021), arXiv:2101.06983; by recomputation, Chen et al. (2016), arXiv:1604.06174.

    Example:
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        >>> queries, documents = torch.ones(6, 3), torch.ones(6, 3)
        >>> embedded = [encode_in_blocks(encoder, x, block_size=2) for x in (queries, documents)]
        >>> [x.shape for x in embedded]
        [torch.Size([6, 2]), torch.Size([6, 2])]
        >>> (embedded[0] * embedded[1]).sum().backward()  # or the backward pass of info_nce(*embedded), say

    Chapter: 01_infonce (eq. info-nce-blocks)
    """
    if not callable(encoder):
        raise TypeError(f"encoder must be a function or a module, was {type(encoder).__name__}")
    check_count("block_size", block_size)
    found = [list(tensors(f"inputs[{i}]", given)) for i, given in enumerate(inputs)]
    for i, held in enumerate(found):
        if not held:
            raise TypeError(f"inputs[{i}] must be a tensor, or hold one, was {type(inputs[i]).__name__}")
    batch = [named for held in found for named in held]
    for name, given in options.items():
        batch += tensors(name, given)
    if not batch:
        raise TypeError("inputs must hold a tensor, was none")
    check_rows(batch)

    def encode(*rows: Tensor) -> Any:
        # from tensors alone: the checkpoint looks among them for the devices whose random numbers it keeps
        given, keywords = replaced((inputs, options), iter(rows))
        return encoder(*given, **keywords)

    run = partial(checkpoint, encode, use_reentrant=False) if torch.is_grad_enabled() else encode
    embedded = []
    for rows in zip(*(tensor.split(block_size) for _, tensor in batch), strict=True):
        block = run(*rows)
        if not isinstance(block, Tensor):
            raise TypeError(f"encoder must return a torch.Tensor, was {type(block).__name__}")
        if block.ndim == 0 or len(block) != len(rows[0]):
            raise ValueError(f"encoder must return a row for each of {len(rows[0])}, was {list(block.shape)}")
        embedded.append(block)
    return torch.cat(embedded)


def tensors(name: str, given: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what is given, and their names."""
    if isinstance(given, Tensor):
        yield name, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from tensors(f"{name}[{key!r}]", value)
    elif isinstance(given, (tuple, list)):
        for i, value in enumerate(given):
            yield from tensors(f"{name}[{i}]", value)


def replaced(given: Any, new: Iterator[Tensor]) -> Any:
    """What is given, each tensor in it, in the order of `tensors`, replaced by a new one."""
    if isinstance(given, Tensor):
        return next(new)
    if isinstance(given, Mapping):
        return {key: replaced(value, new) for key, value in given.items()}
    if isinstance(given, (tuple, list)):
        values = [replaced(value, new) for value in given]
        return values if isinstance(given, list) else tuple(values)
    return given


def check_rows(batch: list[tuple[str, Tensor]]) -> None:
    """Raise unless all have the same number of rows, at least one."""
    first, tensor = batch[0]
    for name, given in batch:
        if given.ndim == 0:
            raise ValueError(f"{name} must have the batch as its first axis, was a scalar tensor")
        if len(given) != len(tensor):
            raise ValueError(f"{name} must have as many rows as {first}, {len(tensor)}, was {list(given.shape)}")
    if len(tensor) == 0:
        raise ValueError(f"{first} must have at least one row, was {list(tensor.shape)}")
