"""Run the notebooks again; store what they print, when they were run, how long it took and with which versions."""

import hashlib
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import v4, validate
from sphinx_external_toc.parsing import parse_toc_yaml

from pages.generate import KEY, generate, write_measured

CELL_SECONDS = 600 if os.environ.get("SEEDS") == "all" else 60
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "networkx", "matplotlib")


def execute(root: Path, names: list[str]) -> list[str]:
    """Run the notebooks again, each in a new kernel, and renew what is made of them; the problems, or []."""
    first, *others = (page.removeprefix("chapters/") for page in parse_toc_yaml(root / "_toc.yml"))
    # chapters draw what the labs measured, and the first page sums it up
    others.sort(key=lambda page: not page.startswith("labs/"))
    notebooks = {page: path for page in [*others, first] if (path := root / "chapters" / f"{page}.ipynb").exists()}
    for name in names:
        if name not in notebooks:
            return [f"a notebook must be one of {', '.join(notebooks)}, was {name}"]
    for page, path in notebooks.items():
        if not names or page in names:
            if problem := execute_notebook(path):
                return [problem]
            if page.startswith("labs/"):
                write_measured(root)
    generate(root)
    return []


def execute_notebook(path: Path) -> str | None:
    """Run one notebook and store its outputs; the problem, or None."""
    name = f"{'labs/' * (path.parent.name == 'labs')}{path.stem}"
    before = path.read_text(encoding="utf-8")
    notebook = v4.reads(before)
    normalise(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [cell.outputs for cell in code]
    begun = []

    def begin(cell, cell_index):
        begun.append(cell)
        print(f"\r{name}: cell {len(begun)} of {len(code)}", end="", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # how a run's prints are cut into messages is chance
        on_cell_execute=begin,
        resources={"metadata": {"path": str(path.parent)}},
    )
    started = time.perf_counter()
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print()
        return f"{path}: code cell {len(begun)} failed, and the file was left as it was.\n\n{error}"
    seconds = time.perf_counter() - started
    print(f"\r{name}: {len(code)} cells, {seconds:.1f} s")

    normalise(notebook)
    validate(notebook)
    known = notebook.metadata.get(KEY, {}).get("code") == digest(notebook)
    for number, (old, cell) in enumerate(zip(stored, code, strict=True), start=1):
        if old != cell.outputs:
            known = False
            first_line = cell.source.strip().partition("\n")[0]
            print(f"  the output of code cell {number} changed: {first_line}")
    if not known:
        notebook.metadata[KEY] = record(notebook, seconds)
    after = v4.writes(notebook).rstrip("\n") + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8", newline="\n")
    return None


def normalise(notebook) -> None:
    """Take out what differs between two runs of the same code, or between two editors."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    # The lexer is named because myst-nb colours nothing without it; versions are not.
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    notebook.nbformat_minor = 5

    for index, cell in enumerate(notebook.cells):
        if "id" not in cell:
            cell["id"] = hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8]
        for key in ("execution", "ExecuteTime", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data.pop("application/vnd.jupyter.widget-view+json", None)


def digest(notebook) -> str:
    """A digest of the code cells: was it this code that ran?"""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def record(notebook, seconds: float) -> dict:
    """What the notebook keeps of a run that ended just now: its date moves only when the code or an output does."""
    return {
        "code": digest(notebook),
        "executed": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
