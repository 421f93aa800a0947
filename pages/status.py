"""When each chapter was executed, how long that took, and with which versions.

`execute` keeps this in the notebook's own metadata. It writes it anew only when the code or an output
has changed, so that a second run on unchanged code leaves no diff.
"""

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mathlib.book import evidence

KEY = "mathlib"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "networkx", "matplotlib")


def code(notebook) -> str:
    """A digest of the code cells: was it this code that ran?"""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def record(notebook, seconds: float) -> dict:
    """What is kept of a run that ended just now."""
    return {
        "code": code(notebook),
        "executed": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def table(chapters: Path) -> str:
    """The text of status.md: one table for each set of versions."""
    groups: dict[str, list[str]] = {}
    for path in sorted(chapters.glob("*.ipynb")):
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"][KEY]
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        row = f"| [{evidence.title(path)}]({path.name}) | {run['executed']} | {run['seconds']:.1f} |"
        groups.setdefault(versions, []).append(row)
    lines = [HEAD]
    for versions, rows in groups.items():
        lines += [f"## With {versions.partition(',')[0]}", "", f"{versions}.", "", *COLUMNS, *rows, ""]
    return "\n".join(lines)


HEAD = """# Status

When each page with code was executed, how long it took from a new kernel to the last cell, and with which
versions. The seconds are of that one run, on one thread, whatever else the machine did meanwhile. The tests
run all of it again and compare every output with the stored one; a date moves only when the code or an output
does. The page is generated from what `make notebooks` leaves in the notebooks.
"""
COLUMNS = ("| Page | Executed | Seconds |", "|---|---|---|")
