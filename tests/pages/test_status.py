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
