"""Checks of arguments: each error names the argument, what it must be, and what it was.

Only shapes, dtypes, devices and Python scalars are looked at. A tensor's values stay where they
are, so no check makes a GPU wait.
"""

import math
from fractions import Fraction
from numbers import Integral, Real

import torch
from torch import Tensor


def check_tensor(name: str, value: object, *shapes: str, kinds: tuple[str, ...] = ("a floating-point",)) -> None:
    """Raise unless value is a tensor of one of the kinds, of as many axes as one of the shapes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, was {type(value).__name__}")
    if value.is_floating_point():
        kind: str | None = "a floating-point"
    elif value.dtype == torch.bool:
        kind = "a bool"
    else:
        kind = None if value.is_complex() else "an integer"
    if kind not in kinds:
        raise TypeError(f"{name} must have {' or '.join(kinds)} dtype, was {value.dtype}")
    if shapes and value.ndim not in [len(shape.split()) for shape in shapes]:
        wanted = " or ".join(f"[{', '.join(shape.split())}]" for shape in shapes)
        raise ValueError(f"{name} must have shape {wanted}, was {list(value.shape)}")


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, was {value.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, was {value.device}")


def check_size(name: str, value: Tensor, axis: int, size: int, meaning: str) -> None:
    """Raise unless value has that many entries along the axis."""
    if value.shape[axis] != size:
        raise ValueError(f"{name} must have {size} {meaning} along axis {axis}, was {list(value.shape)}")


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
    limits = [f"> {above:g}"] * (above > -math.inf) + [f">= {least:g}"] * (least > -math.inf)
    limits += [f"<= {most:g}"] * (most < math.inf) + [f"< {below:g}"] * (below < math.inf)
    wanted = " and ".join(["a finite number", *limits])
    if isinstance(value, (bool, Fraction)) or not isinstance(value, Real):  # torch divides by no fraction
        raise TypeError(f"{name} must be {wanted}, was {type(value).__name__}")
    # not math.isfinite: torch.compile cannot trace it once a schedule changes the number
    if not (-math.inf < value < math.inf and above < value < below and least <= value <= most):  # type: ignore[operator]
        raise ValueError(f"{name} must be {wanted}, was {value}")


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None, most_meaning: str = "") -> None:
    """Raise unless value is an int with least <= value <= most."""
    wanted = f"an int >= {least}" + (f" and <= {most} ({most_meaning})" if most is not None else "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {wanted}, was {type(value).__name__}")
    if value < least or (most is not None and value > most):  # type: ignore[operator]
        raise ValueError(f"{name} must be {wanted}, was {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, was {type(value).__name__}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, was {value!r}")
