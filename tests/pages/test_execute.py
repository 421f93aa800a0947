"""What `python -m pages execute` stores, and that it stores nothing where a cell fails."""

import json
import platform
import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from nbformat import v4

from pages.execute import PACKAGES, digest, execute, execute_notebook
from pages.generate import KEY

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"


@pytest.fixture
def book(tmp_path):
    tmp_path.joinpath("_toc.yml").write_text("format: jb-book\nroot: chapters/page\n")
    tmp_path.joinpath("chapters").mkdir()
    return tmp_path


def write_notebook(book, *sources):
    path = book / "chapters" / "page.ipynb"
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])))
    return path


def test_a_second_run_leaves_no_diff_and_names_what_changed(book, capsys):
    path = write_notebook(book, "import os\nprint(os.path.basename(os.getcwd()))", "print(1, flush=True)\nprint(2)")
    assert execute_notebook(path) is None
    first = path.read_text(encoding="utf-8")
    outputs = [cell["outputs"] for cell in json.loads(first)["cells"]]
    assert [output["text"] for (output,) in outputs] == [["chapters\n"], ["1\n", "2\n"]]
    assert "code cell 1 changed: import os" in capsys.readouterr().out

    assert execute_notebook(path) is None
    assert path.read_text(encoding="utf-8") == first
    assert "changed" not in capsys.readouterr().out


def test_a_run_is_dated_anew_only_when_code_or_output_changed(book):
    path = write_notebook(book, "print(6 * 7)")
    old = {"executed": "2020-02-02", "seconds": 0.1, "versions": {"Python": "3.9.1"}}

    def executed(change):
        notebook = v4.reads(path.read_text(encoding="utf-8"))
        notebook.metadata["mathlib"] |= old
        change(notebook.cells[0])
        path.write_text(v4.writes(notebook))
        assert execute_notebook(path) is None
        return json.loads(path.read_text(encoding="utf-8"))["metadata"]["mathlib"]

    assert execute_notebook(path) is None
    assert executed(lambda cell: None) == old | {"code": executed(lambda cell: None)["code"]}
    for change in (lambda cell: cell.update(source="print(42)"), lambda cell: cell.outputs[0].update(text="41\n")):
        found = executed(change)
        assert found["executed"] > "2025" and found["seconds"] != 0.1
        assert found["versions"]["Python"] == platform.python_version()


def test_a_cell_that_fails_is_named_and_the_file_left_as_it_was(book):
    path = write_notebook(book, "x = 1", "x / 0")
    before = path.read_text(encoding="utf-8")
    problem = execute_notebook(path)
    assert problem.startswith(f"{path}: code cell 2 failed") and "ZeroDivisionError" in problem
    assert path.read_text(encoding="utf-8") == before


def test_an_unknown_notebook_is_named(book):
    write_notebook(book, "x = 1")
    assert execute(book, ["99_nothing"]) == ["a notebook must be one of page, was 99_nothing"]


def test_labs_run_before_the_chapters_which_find_what_they_measured(book, monkeypatch):
    seen = []
    monkeypatch.setattr("pages.execute.execute_notebook", lambda path: seen.append(path.stem))
    monkeypatch.setattr("pages.execute.write_measured", lambda root: seen.append("measured.json"))
    monkeypatch.setattr("pages.execute.generate", lambda root: None)
    pages = "file: chapters/01_a\n  - file: chapters/labs/01_b"
    book.joinpath("_toc.yml").write_text(f"format: jb-book\nroot: chapters/page\nchapters:\n  - {pages}\n")
    book.joinpath("chapters/labs").mkdir()
    for name in ("page", "01_a", "labs/01_b"):
        book.joinpath("chapters", f"{name}.ipynb").touch()
    assert execute(book, []) == []
    assert seen == ["01_b", "measured.json", "01_a", "page"]
    seen.clear()
    assert execute(book, ["01_a"]) == [] and seen == ["01_a"]


@pytest.mark.parametrize(
    "path",
    [*sorted(CHAPTERS.glob("*.ipynb")), *sorted(CHAPTERS.glob("labs/*.ipynb"))],
    ids=lambda path: path.relative_to(CHAPTERS).as_posix(),
)
def test_its_code_was_run_with_the_pinned_versions(path):
    notebook = v4.reads(path.read_text(encoding="utf-8"))
    assert KEY in notebook.metadata, f"run: python -m pages execute {path.relative_to(CHAPTERS).with_suffix('')}"
    run = dict(notebook.metadata[KEY])
    assert run["code"] == digest(notebook), "the code changed after its run"
    assert date(2026, 1, 1) <= date.fromisoformat(run["executed"]) <= datetime.now(UTC).date()
    assert run["seconds"] > 0
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", ROOT.joinpath("requirements.txt").read_text(), re.MULTILINE))
    versions = dict(run["versions"])
    assert versions.pop("Python").rpartition(".")[0] in ("3.11", "3.12", "3.13")
    # torch adds where it computes: 2.13.0+cpu
    found = {name: number.partition("+")[0] for name, number in versions.items()}
    assert found == {name: pins[name] for name in PACKAGES}
