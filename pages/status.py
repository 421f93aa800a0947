"""When each chapter was executed, how long that took, and with which versions.

`execute` keeps this in the notebook's own metadata. It writes it anew only when the code or an output
has changed, so that a second run on unchanged code leaves no diff.
"""

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version

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
