"""The package as it is published: what the wheel holds, and what a program that depends on it sees."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mathlib

ROOT = Path(__file__).parents[2]
DOWNSTREAM = Path(__file__).with_name("downstream.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: what an earlier build left in the checkout would get into it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mathlib", folder / "mathlib", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    built = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the program, and an environment in which the wheel's files can be imported."""
    packages, folder = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("downstream")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    shutil.copy(DOWNSTREAM, folder)
    return folder, {**os.environ, "PYTHONPATH": str(packages)}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
    package = ROOT / "mathlib"
    sources = [path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")]
    kept = ("chart.html", "figure.html", "judged.csv", "measured.json", "minilm.safetensors", "tuned.safetensors")
    assert sorted(names) == sorted([*sources, *(f"mathlib/book/{name}" for name in kept), "mathlib/py.typed"])


def test_downstream_uses_every_public_name():
    [names] = [
        [alias.name for alias in node.names]
        for node in ast.parse(DOWNSTREAM.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module == "mathlib"
    ]
    assert sorted(names) == sorted(mathlib.__all__)  # that none is imported in vain is for ruff to see


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={ROOT / '.mypy_cache' / 'downstream'}"],
        ["-m", "pyright", "--pythonpath", sys.executable],
    ],
    ids=["run", "mypy", "pyright"],
)
def test_downstream(installed, command):
    folder, environment = installed
    # pyright would look for a newer version of itself otherwise
    environment = {**environment, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, *command, DOWNSTREAM.name]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
