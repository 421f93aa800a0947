"""Checks of arguments: each error names the argument, what it must be, and what it was.

Only shapes, dtypes, devices and Python scalars are looked at. A tensor's values stay where they
are, so no check makes a GPU wait.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from numbers import Integral, Real

import torch
from torch import Tensor

FLOATING, BOOL, INTEGER = "a floating-point", "a bool", "an integer"


def check_tensor(name: str, value: object, kinds: Sequence[str] = (FLOATING,)) -> None:
    """Raise unless value is a tensor of one of the kinds of dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, was {type(value).__name__}")
    if value.is_floating_point():
        kind: str | None = FLOATING
    elif value.dtype == torch.bool:
        kind = BOOL
    else:
        kind = None if value.is_complex() else INTEGER
    if kind not in kinds:
        raise TypeError(f"{name} must have {' or '.join(kinds)} dtype, was {value.dtype}")


def check_shapes(
    *given: tuple[str, Tensor, str], kind: str = FLOATING, sizes: dict[str, int] | None = None
) -> dict[str, int]:
    """Raise unless each (name, value, shape) is a tensor of that shape, all of one dtype and on one device.

    A shape is letters, "B D", or alternatives, "N D | B N D". A letter stands for the same size wherever it occurs,
    starting with the given sizes; "1" stands for itself, "..." at the start for any further axes. Returns the sizes.
    """
    sizes = dict(sizes or {})
    first_name, first, _ = given[0]
    for name, value, shapes in given:
        check_tensor(name, value, (kind,))
        if value is not first:
            check_alike(name, value, first_name, first)
        alternatives = shapes.split(" | ")
        for shape in alternatives:
            fitting = bound(shape.split(), value.shape, sizes)
            if fitting is not None:
                sizes = fitting
                break
        else:
            wanted = " or ".join(described(shape.split(), sizes) for shape in alternatives)
            raise ValueError(f"{name} must have shape {wanted}, was {list(value.shape)}")
    return sizes


def bound(letters: list[str], shape: Sequence[int], sizes: dict[str, int]) -> dict[str, int] | None:
    """The sizes, and those that the shape gives to further letters; None if it does not fit."""
    if letters[0] == "...":
        letters = letters[1:]
        shape = shape[max(len(shape) - len(letters), 0) :]
    if len(shape) != len(letters):
        return None
    sizes = dict(sizes)
    for letter, size in zip(letters, shape, strict=True):
        if size != (1 if letter == "1" else sizes.setdefault(letter, size)):
            return None
    return sizes


def described(letters: list[str], sizes: dict[str, int]) -> str:
    """[B, D], or where a size is known [B, D] = [4, D]."""
    shape = f"[{', '.join(letters)}]"
    known = f"[{', '.join(str(sizes.get(letter, letter)) for letter in letters)}]"
    return shape if known == shape else f"{shape} = {known}"


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, was {value.dtype}")
    check_device(name, value, other_name, other)


def broadcast(*shapes: Sequence[int]) -> torch.Size | None:
    """The shape to which all of these broadcast; None if they do not."""
    # torch.broadcast_shapes first loads sympy, for most of a second, and then takes longer than a small product
    sizes = []
    for axis in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        wanted = 1
        for size in axis:
            if size not in (1, wanted):
                if wanted != 1:
                    return None
                wanted = size
        sizes.append(wanted)
    return torch.Size(sizes[::-1])


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, was {value.device}")


def check_some(name: str, value: Tensor, axis: int, meaning: str) -> None:
    """Raise unless value has an entry along the axis."""
    if value.shape[axis] == 0:
        raise ValueError(f"{name} must have at least one {meaning}, was {list(value.shape)}")


def check_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise unless value is a finite real number with above < value < below and least <= value <= most."""
    real = isinstance(value, Real) and not isinstance(value, (bool, Fraction))  # torch cannot divide by a Fraction
    # not math.isfinite: torch.compile cannot trace it once a schedule changes the number
    if real and -math.inf < value < math.inf and above < value < below and least <= value <= most:  # type: ignore[operator]
        return
    limits = [(">", above, -math.inf), (">=", least, -math.inf), ("<=", most, math.inf), ("<", below, math.inf)]
    given = [f"{sign} {limit:g}" for sign, limit, none in limits if limit != none]
    wanted = " and ".join(["a finite number", *given])
    if real:
        raise ValueError(f"{name} must be {wanted}, was {value}")
    raise TypeError(f"{name} must be {wanted}, was {type(value).__name__}")


def check_temperature(name: str, value: object, other: Tensor) -> None:
    """Raise unless value is a number > 0 or a 0-d floating-point tensor on other's device."""
    if not isinstance(value, Tensor):
        return check_number(name, value, above=0)
    check_tensor(name, value)
    if value.ndim:
        raise ValueError(f"{name} must be a number or a 0-d tensor, was {list(value.shape)}")
    check_device(name, value, "the scores", other)


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None, most_meaning: str = "") -> None:
    """Raise unless value is an int with least <= value <= most."""
    number = isinstance(value, Integral) and not isinstance(value, bool)
    if number and value >= least and (most is None or value <= most):  # type: ignore[operator]
        return
    # not before: a graph in which a size is open would have to be one for the size that is written out
    wanted = f"an int >= {least}" + (f" and <= {most} ({most_meaning})" if most is not None else "")
    if not number:
        raise TypeError(f"{name} must be {wanted}, was {type(value).__name__}")
    raise ValueError(f"{name} must be {wanted}, was {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, was {type(value).__name__}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, was {value!r}")
