"""A check says what is wrong, and never the answer. Stored exercises: stubs fail, solutions pass."""

import json
from pathlib import Path

import pytest
import torch

from mathlib.book.exercises import check

NOTEBOOKS = sorted((Path(__file__).parents[2] / "chapters").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize(
    ("answer", "expected", "printed"),
    [
        (3.0, 3.0, "Right."),
        (3.0004, 3.0, "Right."),
        (lambda: torch.ones(2), lambda: torch.ones(2), "Right."),
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), "Right."),
        (..., 3.0, "Not yet: nothing is filled in."),
        (lambda: None, 3.0, "Not yet: nothing is filled in."),
        ([None, None], torch.ones(2), "Not yet: nothing is filled in."),
        (2.0, 3.0, "Not yet: the value is too small. Hint."),
        (4.0, 3.0, "Not yet: the value is too large. Hint."),
        (float("nan"), 3.0, "Not yet: the value is not finite. Hint."),
        (torch.ones(2), 3.0, "Not yet: the shape is [2], wanted is []. Hint."),
        (torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), "Not yet: 2 of 3 values are off. Hint."),
        ("three", 3.0, "Not yet: a number or a tensor is wanted, not str. Hint."),
        (lambda: 1 / 0, 3.0, "Not yet: ZeroDivisionError: division by zero. Hint."),
    ],
)
def test_a_check_says_what_is_wrong(answer, expected, printed, capsys):
    check(answer, expected, hint="Hint.")
    assert capsys.readouterr().out == printed + "\n"


def tagged(notebook, tag):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if tag in cell["metadata"].get("tags", [])]


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


# what is stored is what the cells print: nbval compares it
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_stub_fails_its_check_and_every_solution_passes(notebook):
    stubs, checks, solutions = (tagged(notebook, tag) for tag in ("stub", "check", "solution"))
    assert len(stubs) == len(checks) == len(solutions) >= 4
    assert all(printed(cell).startswith("Not yet: ") for cell in checks)
    assert all(printed(cell).endswith("Right.\n") for cell in solutions)
