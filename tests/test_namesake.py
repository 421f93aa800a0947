"""Another project named mathlib, installed into the same folder: whoever imports the mixture is told.

What its wheel holds: `mathlib/__init__.py`, empty, and a few modules, none of them named as one of ours.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mathlib._namesake import DAMAGED, refuse_namesake

PACKAGE = Path(__file__).parents[1] / "mathlib"


def install_namesake(site):
    """What pip writes for it."""
    for name in ("mathlib/__init__.py", "mathlib/primes.py", "mathlib/lib/__init__.py", "mathlib/py.typed"):
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    record = site / "mathlib-0.6.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mathlib\nVersion: 0.6.0\n", encoding="utf-8")


def uninstall_namesake(site):
    """What pip deletes: its record and all that it wrote, whoever wrote it last."""
    shutil.rmtree(site / "mathlib-0.6.0.dist-info")
    shutil.rmtree(site / "mathlib" / "lib")
    for name in ("__init__.py", "primes.py", "py.typed"):
        (site / "mathlib" / name).unlink()


def install_ours(site):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, site / "mathlib", ignore=ignored, dirs_exist_ok=True)


def error(site, statement):
    """The last line of what Python says to the statement, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", statement]
    result = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    return result.stderr.strip().rpartition("\n")[2]


def test_a_namesake_is_refused_where_it_is_installed(tmp_path, monkeypatch):
    refuse_namesake()
    install_namesake(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as raised:
        refuse_namesake()
    assert str(raised.value) == DAMAGED


@pytest.mark.parametrize(
    ("steps", "statement"),
    [
        ((install_namesake, install_ours), "import mathlib"),
        ((install_ours, install_namesake), "import mathlib.book"),
        ((install_ours, install_namesake, uninstall_namesake), "from mathlib.book import data"),
        ((install_namesake, install_ours, uninstall_namesake), "from mathlib.book import data"),
    ],
    ids=["ours last", "theirs last", "theirs last, then uninstalled", "ours last, then theirs uninstalled"],
)
def test_a_mixture_says_what_happened(tmp_path, steps, statement):
    for step in steps:
        step(tmp_path)
    assert error(tmp_path, statement) == f"ImportError: {DAMAGED}"


def test_one_of_them_alone_is_whole(tmp_path):
    install_namesake(tmp_path)
    uninstall_namesake(tmp_path)
    install_ours(tmp_path)
    assert error(tmp_path, "import mathlib.book") == ""
