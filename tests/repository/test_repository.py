"""The repository around the book: workflows, forms and habits, and what no file may name."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from nbformat import v4

from pages.sphinx import DOWNLOADS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
SCHEMAS = {
    **dict.fromkeys(WORKFLOWS, "github-workflows"),
    **dict.fromkeys(sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), "github-issue-forms"),
    ROOT / "CITATION.cff": "citation-file-format",
}
# Folders of one machine. (?<!...) keeps addresses such as https://a.example/home/ out.
MACHINE_PATH = re.compile(r"(?<![\w.~)}>/-])/(?:home|Users|root|work|tmp|opt|mnt|var|private)/\w|\b[A-Z]:\\Users\\")


def files():
    """What is committed, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_it_meets_its_schema(path):
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", f"vendor.{SCHEMAS[path]}", str(path)])
    assert result.exit_code == 0, result.output


def test_no_test_file_is_left_out():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    paths = [path for pattern in config["testpaths"] for path in ROOT.glob(pattern)]
    found = {file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))}
    apart = [ROOT / "tests" / folder for folder in ("peers", "browser")]  # each with a command of its own
    assert found == {file for file in ROOT.glob("tests/**/test_*.py") if file.parent not in apart}


def test_the_workflows_test_publish_release_and_measure():
    assert [path.name for path in WORKFLOWS] == ["labs.yml", "publish.yml", "release.yml", "test.yml"]


def test_the_version_is_the_changelogs_newest_and_the_one_to_cite():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*)\] - (\S+)$", changelog, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (version, newest[2]) == (newest[1], str(citation["date-released"]))
    assert citation["version"] == version


def test_colab_opens_the_branch_to_which_the_downloads_are_pushed():
    publish = yaml.safe_load(ROOT.joinpath(".github/workflows/publish.yml").read_text(encoding="utf-8"))
    script = publish["jobs"]["notebooks"]["steps"][-1]["run"]
    assert f":refs/heads/{DOWNLOADS}" in script


def test_binder_takes_a_python_that_is_supported():
    assert (ROOT / "runtime.txt").read_text().strip() in ("python-3.11", "python-3.12", "python-3.13")


def test_the_extra_brings_all_that_a_chapter_imports():
    """A download installs mathlib-book[book] and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = project["dependencies"] + project["optional-dependencies"]["book"]
    brought = {re.match(r"[\w-]+", requirement)[0] for requirement in brought} | {"mathlib-book"}
    projects = packages_distributions()
    missing = {}
    for path in [*ROOT.glob("chapters/*.ipynb"), *ROOT.glob("chapters/labs/*.ipynb")]:
        cells = v4.reads(path.read_text(encoding="utf-8")).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for name in re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE):
            if name not in sys.stdlib_module_names and not brought & set(projects[name]):
                missing.setdefault(path.stem, set()).add(name)
    assert missing == {}


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
