"""The pages and the picture are what the notebooks store."""

import json
from pathlib import Path

import pytest
from nbformat import v4

from mathlib.book import evidence
from pages.generate import KEY, evidence_page, picture, status_page

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("chapters/evidence.md", evidence_page),
        ("chapters/status.md", status_page),
        ("pages/_static/readme.svg", picture),
    ],
)
def test_it_is_what_the_chapters_store(path, made):
    assert ROOT.joinpath(path).read_text(encoding="utf-8") == made(CHAPTERS), "run: python -m pages evidence"


def test_the_table_is_read_from_stored_outputs(tmp_path):
    five = {"experiment": "none", "reason": "because"}
    claims = [
        evidence.measured("claim-a", "a < b | c", effects={"first": [1.0] * 5}, unit="m", **five),
        evidence.computed("claim-b", "b", experiment="sum", said="1", found="2"),
    ]
    outputs = [{"output_type": "execute_result", "data": claim._repr_mimebundle_()} for claim in claims]
    cells = [
        {"cell_type": "markdown", "source": "# Title\n\ntext"},
        {"cell_type": "code", "outputs": [{"output_type": "stream", "text": "1"}, *outputs]},
    ]
    (tmp_path / "01_x.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    table = evidence_page(tmp_path)
    assert "2 statements have been tested: 1 hold, 0 hold in some cases, 1 do not hold." in table
    assert (
        "| [a &lt; b \\| c](#claim-a) | **holds** | first: +1.000\xa0±\xa00.000<br>*m, mean ± sd over 5 seeds* | none |"
        in table
    )
    assert "## Title\n\nMeasured in {doc}`01_x`." in table
    summary = evidence.Summary(tmp_path)
    assert repr(summary) == "Title: 2 tested, 1 hold, 0 hold in some cases, 1 do not"
    assert '<td><a href="01_x.html">Title</a></td><td>2</td><td>1</td><td>0</td><td>1</td>' in summary._repr_html_()


def test_each_set_of_versions_has_a_table(tmp_path):
    for stem, torch in (("00_x", "2.1"), ("01_y", "2.2"), ("02_z", "2.1")):
        notebook = v4.new_notebook(cells=[v4.new_markdown_cell(f"# Title of {stem}\n\ntext")])
        notebook.metadata[KEY] = {
            "executed": "2026-02-03",
            "seconds": 4.06,
            "versions": {"Python": "3.12.1", "torch": torch},
        }
        tmp_path.joinpath(f"{stem}.ipynb").write_text(v4.writes(notebook), encoding="utf-8")
    head, first, second = status_page(tmp_path).split("## With Python 3.12.1\n")
    assert "Python 3.12.1, torch 2.1." in first and "Python 3.12.1, torch 2.2." in second
    assert "| [Title of 00_x](00_x.ipynb) | 2026-02-03 | 4.1 |\n| [Title of 02_z](02_z.ipynb) |" in first
    assert "| [Title of 01_y](01_y.ipynb) | 2026-02-03 | 4.1 |" in second
