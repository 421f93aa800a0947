"""The repository around the book: workflows, and what no file may name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
# Folders of one machine. (?<!...) keeps addresses such as https://a.example/home/ out.
MACHINE_PATH = re.compile(r"(?<![\w.~)}>/-])/(?:home|Users|root|work|tmp|opt|mnt|var|private)/\w|\b[A-Z]:\\Users\\")


def files():
    """What is committed, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflow_meets_the_schema(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_workflow_publishes_and_tests():
    assert [path.name for path in WORKFLOWS] == ["publish.yml", "test.yml"]


def test_importing_mathlib_imports_nothing_of_the_book():
    code = "import sys, mathlib; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"mathlib.book", "matplotlib", "sklearn", "ipywidgets", "IPython", "sphinx"}
    assert heavy & set(loaded.stdout.split()) == set()


def test_no_file_names_a_folder_of_one_machine():
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {m[0]}" for m in MACHINE_PATH.finditer(line)]
    assert found == []
