"""Run the chapters again and store what they print."""

import hashlib
import json
import time
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import v4, validate
from sphinx_external_toc.parsing import parse_toc_yaml

from pages import status

CELL_SECONDS = 60


def execute(root: Path, names: list[str]) -> list[str]:
    """Run the chapters again, each in a new kernel, and store what they print; the problems, or []."""
    notebooks = [root / f"{page}.ipynb" for page in parse_toc_yaml(root / "_toc.yml")]
    # the first page sums up what the others measured
    notebooks = [path for path in [*notebooks[1:], notebooks[0]] if path.exists()]
    stems = [path.stem for path in notebooks]
    for name in names:
        if Path(name).stem not in stems:
            return [f"a chapter must be one of {', '.join(stems)}, was {name}"]
    wanted = {Path(name).stem for name in names} or set(stems)

    for path in notebooks:
        if path.stem in wanted and (problem := execute_notebook(path)):
            return [problem]
    return []


def execute_notebook(path: Path) -> str | None:
    """Run one notebook and store its outputs; the problem, or None."""
    before = path.read_text(encoding="utf-8")
    notebook = v4.reads(before)
    normalise(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [json.dumps(cell.outputs, sort_keys=True) for cell in code]
    begun = []

    def begin(cell, cell_index):
        begun.append(cell)
        print(f"\r{path.stem}: cell {len(begun)} of {len(code)}", end="", flush=True)

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
    print(f"\r{path.stem}: {len(code)} cells, {seconds:.1f} s")

    normalise(notebook)
    validate(notebook)
    known = notebook.metadata.get(status.KEY, {}).get("code") == status.code(notebook)
    for number, (old, cell) in enumerate(zip(stored, code, strict=True), start=1):
        if old != json.dumps(cell.outputs, sort_keys=True):
            known = False
            first_line = cell.source.strip().partition("\n")[0]
            print(f"  the output of code cell {number} changed: {first_line}")
    if not known:
        notebook.metadata[status.KEY] = status.record(notebook, seconds)
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
