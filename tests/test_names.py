"""What is public, and which module may import which."""

import ast
import graphlib
import importlib
import importlib.util
from pathlib import Path

import pytest

import mathlib

MODULES = {path.stem: path for path in Path(mathlib.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("name", mathlib.__all__)
def test_a_public_name_is_never_a_modules_name(name):
    # else `import mathlib.name` would give the function, or hide it
    assert importlib.util.find_spec(f"mathlib.{name}") is None


def test_what_mathlib_shows_is_what_is_public():
    importlib.import_module("mathlib.book")
    shown = {name for name in vars(mathlib) if not name.startswith("_")}
    assert shown == {*mathlib.__all__, "book"}
    assert mathlib.__all__ == sorted(mathlib.__all__)
    assert all(getattr(mathlib, name).__module__.startswith("mathlib._") for name in mathlib.__all__)


def test_modules_import_one_another_in_one_direction():
    imports = {}
    for stem, path in MODULES.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        imports[stem] = {module.removeprefix("mathlib.") for module in found if module.startswith("mathlib")}
    assert "mathlib" not in set().union(*imports.values())  # a module names the module that it takes from
    order = list(graphlib.TopologicalSorter(imports).static_order())
    assert order[-1] == "__init__"
