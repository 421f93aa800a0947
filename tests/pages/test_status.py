"""Each notebook says when it was run, for how long, and with what."""

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from nbformat import v4

from pages import status

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"


@pytest.mark.parametrize("path", sorted(CHAPTERS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_its_code_was_run_with_the_pinned_versions(path):
    notebook = v4.reads(path.read_text(encoding="utf-8"))
    assert status.KEY in notebook.metadata, f"run: python -m pages execute {path.stem}"
    run = dict(notebook.metadata[status.KEY])
    assert run["code"] == status.code(notebook), "the code changed after its run"
    assert date(2026, 1, 1) <= date.fromisoformat(run["executed"]) <= datetime.now(UTC).date()
    assert run["seconds"] > 0
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", ROOT.joinpath("requirements.txt").read_text(), re.MULTILINE))
    versions = dict(run["versions"])
    assert versions.pop("Python").rpartition(".")[0] in ("3.11", "3.12", "3.13")
    # torch adds where it computes: 2.13.0+cpu
    found = {name: number.partition("+")[0] for name, number in versions.items()}
    assert found == {name: pins[name] for name in status.PACKAGES}


def test_the_page_is_what_the_notebooks_say():
    stored = CHAPTERS.joinpath("status.md").read_text(encoding="utf-8")
    assert stored == status.table(CHAPTERS), "run: python -m pages evidence"


def test_each_set_of_versions_has_a_table(tmp_path):
    for stem, torch in (("00_x", "2.1"), ("01_y", "2.2"), ("02_z", "2.1")):
        notebook = v4.new_notebook(cells=[v4.new_markdown_cell(f"# Title of {stem}\n\ntext")])
        notebook.metadata[status.KEY] = {
            "executed": "2026-02-03",
            "seconds": 4.06,
            "versions": {"Python": "3.12.1", "torch": torch},
        }
        tmp_path.joinpath(f"{stem}.ipynb").write_text(v4.writes(notebook), encoding="utf-8")
    head, first, second = status.table(tmp_path).split("## With Python 3.12.1\n")
    assert "Python 3.12.1, torch 2.1." in first and "Python 3.12.1, torch 2.2." in second
    assert "| [Title of 00_x](00_x.ipynb) | 2026-02-03 | 4.1 |\n| [Title of 02_z](02_z.ipynb) |" in first
    assert "| [Title of 01_y](01_y.ipynb) | 2026-02-03 | 4.1 |" in second
