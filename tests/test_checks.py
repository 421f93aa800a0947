import math
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from mathlib._checks import check_choice, check_count, check_flag, check_number, check_size, check_tensor

# Each check is also tested through the public functions; here is what none of those can reach.


@pytest.mark.parametrize(
    "value, limits",
    [
        (-1e300, {}),
        (0, {"least": 0}),
        (1, {"most": 1}),
        (0.5, {"least": 0, "most": 1}),
        (1e-300, {"above": 0}),
        (numpy.float32(0.5), {"above": 0}),
        (0.5, {"below": 0.6}),
    ],
)
def test_a_number_within_its_limits_passes(value, limits):
    check_number("x", value, **limits)


@pytest.mark.parametrize(
    "value, limits, message",
    [
        (math.nan, {}, "x must be a finite number, was nan"),
        (-math.inf, {}, "x must be a finite number, was -inf"),
        (-0.1, {"least": 0}, "x must be a finite number and >= 0, was -0.1"),
        (1.5, {"most": 1}, "x must be a finite number and <= 1, was 1.5"),
        (0.5, {"above": 0.5}, "x must be a finite number and > 0.5, was 0.5"),
        (-1, {"least": 0, "most": 1}, "x must be a finite number and >= 0 and <= 1, was -1"),
        (0.5, {"below": 0.5}, "x must be a finite number and < 0.5, was 0.5"),
        (2, {"most": 1, "below": 3}, "x must be a finite number and <= 1 and < 3, was 2"),
        (2, {"above": 0, "least": 1, "most": 1.5}, "x must be a finite number and > 0 and >= 1 and <= 1.5, was 2"),
    ],
)
def test_a_number_outside_its_limits_is_told_all_of_them(value, limits, message):
    with pytest.raises(ValueError) as caught:
        check_number("x", value, **limits)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [True, Fraction(1, 2), Decimal("0.5"), 1j, "1", None])
def test_what_torch_cannot_divide_by_is_no_number(value):
    with pytest.raises(TypeError) as caught:
        check_number("x", value, above=0)
    assert str(caught.value) == f"x must be a finite number and > 0, was {type(value).__name__}"


def test_counts_flags_choices_and_tensors_that_are_right_pass():
    check_count("k", 1)
    check_count("k", numpy.int64(3), most=3)
    check_count("k", 1, most=1, most_meaning="rows")
    check_flag("f", True)
    check_flag("f", False)
    check_choice("c", "a", ("a", "b"))
    check_tensor("x", torch.zeros(()))
    check_tensor("x", torch.zeros(2, 3, dtype=torch.bfloat16), "B", "B D")
    check_tensor("x", torch.zeros(2, dtype=torch.int32), "B", kinds=("an integer",))
    check_tensor("x", torch.zeros(2, dtype=torch.bool), kinds=("a bool", "a floating-point"))
    check_tensor("x", torch.zeros(2, dtype=torch.float16), kinds=("a bool", "a floating-point"))
    check_size("x", torch.zeros(2, 3), -1, 3, "features")


@pytest.mark.parametrize(
    "dtype, kinds, message",
    [
        (torch.int64, ("a bool", "a floating-point"), "x must have a bool or a floating-point dtype, was torch.int64"),
        (torch.bool, ("an integer",), "x must have an integer dtype, was torch.bool"),
        (torch.complex64, ("an integer",), "x must have an integer dtype, was torch.complex64"),
        (torch.float32, ("a bool",), "x must have a bool dtype, was torch.float32"),
    ],
)
def test_a_tensor_of_another_kind_is_told_all_kinds_that_are_right(dtype, kinds, message):
    with pytest.raises(TypeError) as caught:
        check_tensor("x", torch.zeros(2, dtype=dtype), kinds=kinds)
    assert str(caught.value) == message


def test_a_complex_tensor_is_called_so():
    with pytest.raises(TypeError) as caught:
        check_tensor("x", torch.zeros(2, dtype=torch.complex64))
    assert str(caught.value) == "x must have a floating-point dtype, was torch.complex64"
    with pytest.raises(TypeError):
        check_tensor("x", torch.zeros(2, dtype=torch.complex64), kinds=("an integer", "a bool"))
