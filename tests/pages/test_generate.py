"""The file, the pages and the picture are what the notebooks store."""

import json
from pathlib import Path

import pytest
import torch
from nbformat import v4

from mathlib.book import verdicts
from mathlib.book.judging import Gains
from pages.generate import KEY, MEASURED, fill, measurements, picture

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (MEASURED, measurements),
        ("chapters/evidence.md", lambda root: fill(root, "evidence")),
        ("chapters/status.md", lambda root: fill(root, "status")),
        ("pages/_static/readme.svg", picture),
    ],
)
def test_it_is_what_the_notebooks_store(path, made):
    assert ROOT.joinpath(path).read_text(encoding="utf-8") == made(ROOT), "run: python -m pages evidence"


def store(path, *made, title="# Title\n\ntext"):
    outputs = [v4.new_output("display_data", data=claim._repr_mimebundle_()) for claim in made]
    cells = [v4.new_markdown_cell(title), v4.new_code_cell(outputs=[v4.new_output("stream", text="1"), *outputs])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(v4.writes(v4.new_notebook(cells=cells)), encoding="utf-8")


@pytest.fixture
def book(tmp_path):
    """A lab that measured two claims, and what it takes to write the page of evidence."""
    words = {"effect": "with minus without", "setting": "a | glass", "unit": "m"}
    strong, none = [0.9, 1.1] * 5, [-1.0, 1.0] * 5
    store(
        tmp_path / "chapters/labs/01_x.ipynb",
        verdicts.measured("claim-a", "a < b | c", of="notes 1", cases={"first": strong, "second": none}, **words),
        verdicts.measured("claim-b", "b", of="book", cases={"third": none}, **words),
        title="# Lab: One\n\ntext",
    )
    tmp_path.joinpath(MEASURED).parent.mkdir(parents=True)
    tmp_path.joinpath(MEASURED).write_text(measurements(tmp_path), encoding="utf-8")
    tmp_path.joinpath("pages").mkdir()
    advise(tmp_path, "claim-a", "holds in part")
    lines = [{"question": "a | b", "digits": ["claim-a", "claim-b"], "text": []}]
    tmp_path.joinpath("pages", "grounds.yml").write_text(json.dumps(lines))
    return tmp_path


def advise(book, label, verdict, setting="0.1"):
    line = {"situation": "few | many", "advice": "do", "setting": setting, "why": {label: verdict}}
    book.joinpath("pages", "advice.yml").write_text(json.dumps([line]))


def test_the_evidence_begins_with_advice_then_come_the_notes_claims_then_the_books(book):
    before, advice, rest = fill(book, "evidence").partition(
        "few \\| many\n: **do.** 0.1.\n"
        ': *Because:* [a &lt; b \\| c](labs/01_x.ipynb#claim-a "holds in part") (holds in part, 1 of 2 cases).\n'
    )
    assert "## What to do" in before and advice
    assert (
        "What the notes state, 1: holds 0, holds in part 1, not shown 0, reversed in part 0, reversed 0, derived 0."
        in rest
    )
    assert (
        "What the book adds, 1: holds 0, holds in part 0, not shown 1, reversed in part 0, reversed 0, derived 0."
        in rest
    )
    both = "[holds in part, 1 of 2 cases](labs/01_x.ipynb#claim-a), [not shown](labs/01_x.ipynb#claim-b)"
    assert f"|---|---|---|\n| a \\| b | digits: {both} | text: not measured |\n" in rest
    assert "a p of at most 0.0001." in rest  # that of claim-a's first case
    assert "has a p below 0.01:\n. What" in rest
    notes, ours = rest.split("## What the notes state\n")[1].split("## What the book adds\n")
    assert "### One\n\nMeasured in {doc}`labs/01_x`.\n\n<figure" in notes
    assert 'id="claim-a"' in notes and 'id="claim-b"' in ours and "claim-b" not in notes
    drawn = notes[notes.index("<figure") :].strip()
    assert "\n" not in drawn and "a | glass; 10 seeds" in drawn  # one block of HTML, in which | ends no cell


def test_a_reversed_case_and_a_weak_p_are_named(book):
    words = {"effect": "with minus without", "setting": "x", "unit": "m", "of": "book"}
    up, weak = [0.9, 1.1] * 5, [1.1, -0.1] * 5
    mixed = {"up": up, "down": [-x for x in up]}
    store(
        book / "chapters/labs/01_x.ipynb",
        verdicts.measured("claim-a", "a", cases=mixed, **words),
        verdicts.measured("claim-b", "b", cases={"weak": weak}, **words),
        title="# Lab: One\n\ntext",
    )
    book.joinpath(MEASURED).write_text(measurements(book), encoding="utf-8")
    case = json.loads(book.joinpath(MEASURED).read_text())["claims"][1]["cases"][0]
    assert 0.01 < case["p"] < 0.05 and case["outcome"] == "shown"
    page = fill(book, "evidence")
    assert '"holds in part") (holds in part, 1 of 2 cases, 1 reversed).' in page
    assert "| digits: [holds in part, 1 of 2 cases, 1 reversed](labs/01_x.ipynb#claim-a)" in page
    assert "has a p below 0.01:\n[b](labs/01_x.ipynb#claim-b). What" in page


@pytest.mark.parametrize(("least", "others"), [(0.0, ""), (0.5, ", the others negligible")])
def test_a_reversed_claim_says_in_how_many_cases(book, least, others):
    cases = {"down": [-0.9, -1.1] * 5, "flat": [0.1, -0.1] * 5}
    words = {"effect": "with minus without", "setting": "x", "unit": "m", "of": "book"}
    store(
        book / "chapters/labs/01_x.ipynb",
        verdicts.measured("claim-a", "a", cases=cases, least=least, **words),
        verdicts.measured("claim-b", "b", cases=cases, least=least, **words),
        title="# Lab: One\n\ntext",
    )
    book.joinpath(MEASURED).write_text(measurements(book), encoding="utf-8")
    advise(book, "claim-a", "reversed in part")
    page = fill(book, "evidence")
    assert f"| digits: [reversed in part, 1 of 2 cases{others}](labs/01_x.ipynb#claim-a)" in page


@pytest.mark.parametrize(
    ("means", "options", "said"),
    [
        ({"open": 1.0, "wide": 1.0}, {}, "holds, for these queries"),
        ({"open": 1.0, "sure": 1.0}, {}, "holds, 1 of 2 for these queries"),
        ({"open": -1.0}, {}, "reversed, for these queries"),
        ({"open": -1.0, "sure": 1.0}, {"jointly": True}, "reversed, 1 of 2 cases, for these queries"),
        ({"open": 0.01, "sure": 0.01}, {"least": 0.5}, "not shown, negligible"),
        ({"open": 1.0, "flat": 0.0}, {"jointly": True}, "not shown"),
    ],
)
def test_a_verdict_says_how_many_of_its_cases_other_queries_leave_open(book, means, options, said):
    # over queries the interval is 1.96, or of a tenth 0.196, to each side
    def gains(name, mean):
        by_query = torch.tensor([0.0, 4.0] * 2) / (10 if name == "sure" else 1)
        return Gains([mean + x for x in [0.1, -0.1] * 5], torch.arange(4), by_query)

    cases = {name: gains(name, mean) for name, mean in means.items()}
    words = {"effect": "with minus without", "setting": "x", "unit": "m", "of": "book"}
    store(
        book / "chapters/labs/01_x.ipynb",
        verdicts.measured("claim-a", "a", cases=cases, **words, **options),
        verdicts.measured("claim-b", "b", cases={"none": [-1.0, 1.0] * 5}, **words),
        title="# Lab: One\n\ntext",
    )
    book.joinpath(MEASURED).write_text(measurements(book), encoding="utf-8")
    advise(book, "claim-a", said.partition(",")[0])
    assert f"| digits: [{said}](labs/01_x.ipynb#claim-a), [not shown](labs/01_x.ipynb#claim-b) |" in fill(
        book, "evidence"
    )


@pytest.mark.parametrize(("label", "found"), [("claim-a", "'holds in part'"), ("claim-z", "'not measured'")])
def test_advice_whose_verdict_changed_is_not_written(book, label, found):
    advise(book, label, "holds")
    with pytest.raises(ValueError, match=f"few . many: {label} must be 'holds', was {found}"):
        fill(book, "evidence")


def test_advice_quotes_the_effects_of_its_own_claims_alone(book):
    mean = json.loads(book.joinpath(MEASURED).read_text())["claims"][0]["cases"][0]["mean"]
    advise(book, "claim-a", "holds in part", "gained {claim-a: first}")
    assert f"gained {mean:.3f}." in fill(book, "evidence")
    for quoted in ("claim-a: fourth", "claim-b: third"):
        advise(book, "claim-a", "holds in part", f"{{{quoted}}}")
        with pytest.raises(ValueError, match=f"few . many: {quoted} must be a case of a claim in its why"):
            fill(book, "evidence")


def test_advice_marks_what_other_queries_leave_open_and_what_no_correction_covers(book):
    words = {"effect": "with minus without", "setting": "x", "unit": "m", "of": "book"}
    wide, narrow = (Gains([1.1, 0.9] * 5, torch.arange(4), torch.tensor([0.0, 4.0] * 2) / part) for part in (1, 10))
    claim = verdicts.measured(
        "claim-a", "a", cases={"open": wide, "sure": narrow}, controls={"luck": wide, "seeds": [1.1, 0.9] * 5}, **words
    )
    store(book / "chapters/labs/01_x.ipynb", claim, title="# Lab: One\n\ntext")
    book.joinpath(MEASURED).write_text(measurements(book), encoding="utf-8")
    book.joinpath("pages", "grounds.yml").write_text("[]")
    advise(book, "claim-a", "holds", " ".join(f"{{claim-a: {name}}}" for name in ("open", "sure", "luck", "seeds")))
    assert " 1.000† 1.000 1.000†‡ 1.000‡." in fill(book, "evidence")


def test_each_set_of_versions_has_a_table(tmp_path):
    for name, version in (("00_x", "2.1"), ("01_y", "2.2"), ("labs/02_z", "2.1")):
        notebook = v4.new_notebook(cells=[v4.new_markdown_cell(f"# Title of {name}\n\ntext")])
        notebook.metadata[KEY] = {
            "executed": "2026-02-03",
            "seconds": 4.06,
            "versions": {"Python": "3.12.1", "torch": version},
        }
        path = tmp_path.joinpath("chapters", f"{name}.ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(v4.writes(notebook), encoding="utf-8")
    head, first, second = fill(tmp_path, "status").split("## With Python 3.12.1\n")
    assert "Python 3.12.1, torch 2.1." in first and "Python 3.12.1, torch 2.2." in second
    assert "| [Title of 00_x](00_x.ipynb) | 2026-02-03 | 4.1 |\n| [Title of labs/02_z](labs/02_z.ipynb) |" in first
    assert "| [Title of 01_y](01_y.ipynb) | 2026-02-03 | 4.1 |" in second
