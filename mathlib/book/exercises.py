"""Exercises that check themselves: the reader runs the check, which says what is wrong, not the answer.

>>> check(lambda: 1 / 0, 3.0, hint="There are three terms.")
Not yet: ZeroDivisionError: division by zero. There are three terms.
>>> check(..., 3.0, hint="There are three terms.")
Not yet: nothing is filled in.
>>> check(2.0, 3.0, hint="There are three terms.")
Not yet: the value is too small. There are three terms.
>>> check(lambda: 3.0, 3.0, hint="There are three terms.")
Right.
"""

import textwrap

import torch

BLANK = "nothing is filled in."


def check(answer: object, expected: object, *, hint: str, tolerance: float = 1e-3) -> None:
    """Print whether the answer is right, or what kind of wrong it is.

    `answer` and `expected` are numbers or tensors, or functions that return them (an exception in the
    reader's function is reported, not raised). A blank is `...` or None; the hint is for who has tried.
    """
    wrong = verdict(answer, expected, tolerance)
    if wrong is None:
        print("Right.")
    else:
        print(textwrap.fill(f"Not yet: {wrong}" if wrong == BLANK else f"Not yet: {wrong} {hint}", 72))


def verdict(answer: object, expected: object, tolerance: float) -> str | None:
    """What is wrong with the answer, or None."""
    if callable(answer):
        try:
            answer = answer()
        except Exception as error:  # whatever the reader's code raises is what they must see
            return f"{type(error).__name__}: {error}."
    if answer is None or answer is ... or (isinstance(answer, list) and None in answer):
        return BLANK
    expected = torch.as_tensor(expected() if callable(expected) else expected).double()
    try:
        answer = torch.as_tensor(answer).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return f"a number or a tensor is wanted, not {type(answer).__name__}."
    if answer.shape != expected.shape:
        return f"the shape is {list(answer.shape)}, wanted is {list(expected.shape)}."
    if not answer.isfinite().all():
        return "the value is not finite."
    if torch.allclose(answer, expected, rtol=tolerance, atol=tolerance):
        return None
    if answer.numel() > 1:
        wrong = int((~torch.isclose(answer, expected, rtol=tolerance, atol=tolerance)).sum())
        return f"{wrong} of {answer.numel()} values are off."
    return f"the value is too {'small' if (answer < expected).all() else 'large'}."
