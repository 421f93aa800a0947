import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mathlib._checks import (
    BOOL,
    FLOATING,
    INTEGER,
    broadcast,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_shapes,
    check_tensor,
)

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
    check_tensor("x", torch.zeros(2, dtype=torch.bool), (BOOL, FLOATING))
    check_tensor("x", torch.zeros(2, dtype=torch.float16), (BOOL, FLOATING))


@pytest.mark.parametrize(
    "dtype, kinds, message",
    [
        (torch.int64, (BOOL, FLOATING), "x must have a bool or a floating-point dtype, was torch.int64"),
        (torch.bool, (INTEGER,), "x must have an integer dtype, was torch.bool"),
        (torch.complex64, (INTEGER,), "x must have an integer dtype, was torch.complex64"),
        (torch.float32, (BOOL,), "x must have a bool dtype, was torch.float32"),
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
        check_tensor("x", torch.zeros(2, dtype=torch.complex64), kinds=(INTEGER, BOOL))


def test_a_letter_stands_for_one_size_wherever_it_occurs():
    x = torch.zeros(4, 8)
    assert check_shapes(("x", x, "B D")) == {"B": 4, "D": 8}
    assert check_shapes(("x", x, "B D"), ("y", torch.zeros(3, 8), "N D | B N D")) == {"B": 4, "D": 8, "N": 3}
    assert check_shapes(("x", x, "B D"), ("y", torch.zeros(4, 2, 8), "N D | B N D")) == {"B": 4, "D": 8, "N": 2}
    assert check_shapes(("x", x, "... D"), ("y", torch.zeros(8), "... D")) == {"D": 8}
    assert check_shapes(("x", torch.zeros(4, 1), "B 1"), ("y", x, "B C"), sizes={"C": 8}) == {"B": 4, "C": 8}
    assert check_shapes(("x", x.int(), "B D"), kind=INTEGER) == {"B": 4, "D": 8}


def test_the_given_sizes_are_not_changed():
    sizes = {"B": 4}
    check_shapes(("x", torch.zeros(4, 8), "B D"), sizes=sizes)
    assert sizes == {"B": 4}


@pytest.mark.parametrize(
    "given, sizes, message",
    [
        ([((4,), "B D")], {}, "x0 must have shape [B, D], was [4]"),
        ([((4, 8), "B D"), ((5, 8), "B D")], {}, "x1 must have shape [B, D] = [4, 8], was [5, 8]"),
        ([((4, 8), "B D"), ((4, 8), "D E")], {}, "x1 must have shape [D, E] = [8, E], was [4, 8]"),
        ([((4, 8), "D D")], {}, "x0 must have shape [D, D], was [4, 8]"),
        ([((4, 2), "B 1")], {}, "x0 must have shape [B, 1], was [4, 2]"),
        ([((4, 8), "B D")], {"B": 3}, "x0 must have shape [B, D] = [3, D], was [4, 8]"),
        ([((), "... D")], {}, "x0 must have shape [..., D], was []"),
        ([((8,), "... D"), ((4, 8, 7), "... D")], {}, "x1 must have shape [..., D] = [..., 8], was [4, 8, 7]"),
        (
            [((4, 8), "B D"), ((5, 2, 8), "N D | B N D")],
            {},
            "x1 must have shape [N, D] = [N, 8] or [B, N, D] = [4, N, 8], was [5, 2, 8]",
        ),
        # what an alternative that does not fit has read binds nothing
        ([((4, 8), "B D | D B E"), ((8, 3), "B D")], {}, "x1 must have shape [B, D] = [4, 8], was [8, 3]"),
    ],
)
def test_a_shape_that_does_not_fit_is_told_the_letters_and_their_sizes(given, sizes, message):
    tensors = [(f"x{i}", torch.zeros(shape), letters) for i, (shape, letters) in enumerate(given)]
    with pytest.raises(ValueError) as caught:
        check_shapes(*tensors, sizes=sizes)
    assert str(caught.value) == message


def test_all_have_the_dtype_and_the_device_of_the_first():
    x = torch.zeros(2)
    with pytest.raises(TypeError, match="^y must have the dtype of x, torch.float32, was torch.float64$"):
        check_shapes(("x", x, "B"), ("y", x.double(), "B"))
    with pytest.raises(ValueError, match="^y must be on the device of x, cpu, was meta$"):
        check_shapes(("x", x, "B"), ("y", x.to("meta"), "B"))
    with pytest.raises(TypeError, match="^x must have a bool dtype, was torch.float32$"):
        check_shapes(("x", x, "B"), kind=BOOL)


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3), min_size=1, max_size=3))
def test_shapes_broadcast_as_torch_has_it(shapes):
    try:
        expected = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        expected = None
    assert broadcast(*shapes) == expected


def test_a_first_call_loads_nothing_large():
    code = """if True:
        import sys, torch, mathlib
        row = torch.ones(1, 1, 4)
        mathlib.cosine_similarity(row, torch.ones(3, 2, 4))
        mathlib.attention(row, torch.ones(3, 2, 4), torch.ones(2, 4))
        assert "sympy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
