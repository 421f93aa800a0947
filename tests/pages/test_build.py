"""The book, built once into a folder of its own, as a reader gets it."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont
from sphinx_external_toc.parsing import parse_toc_yaml

from pages.check import check, scan
from pages.sphinx import ICON_CLASS, ICON_RULE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Not _build: two processes that write there at once would spoil it."""
    folder = tmp_path_factory.mktemp("book")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ".",
        "-W",
        "--keep-going",
        "--path-output",
        folder,
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-8000:]
    return folder / "_build"


@pytest.mark.parametrize("page", list(parse_toc_yaml(ROOT / "_toc.yml")))
def test_each_page_has_a_title_and_text(output, page):
    found = scan((output / "html" / f"{page}.html").read_text(encoding="utf-8"))
    assert found["title"] and found["text"]


def test_nothing_is_missing_dead_or_loaded_from_outside(output):
    assert check(ROOT, output) == []


def test_every_equation_is_mathml_whose_letters_the_font_has(output):
    letters = TTFont(output / "html" / "_static" / "math.woff").getBestCmap()
    total = 0
    for path in output.glob("html/**/*.html"):
        text = path.read_text(encoding="utf-8")
        equations = re.findall(r"<math[ >].*?</math>", text, re.DOTALL)
        assert len(equations) == len(re.findall(r'class="(?:[^"]* )?math ', text)), path.name
        shown = html.unescape(re.sub("<[^>]*>", "", "".join(equations))) + "√" * ("<msqrt" in text)
        missing = {char for char in shown if ord(char) not in letters and char != "\n"}
        assert missing == set(), f"{path.name}: run tools/mathfont.py"
        total += len(equations)
    assert total > 400


def test_no_page_tells_of_a_repository_when_none_is_known(output):
    for path in output.glob("html/**/*.html"):
        text = path.read_text(encoding="utf-8")
        for mark in ("og:url", 'rel="canonical"', "source-repository-button", "source-issues-button"):
            assert mark not in text, f"{path.name} has {mark}"


def test_a_page_waits_for_no_script_and_loads_no_sheet_that_it_has_no_use_for(output):
    for path in output.glob("html/chapters/*.html"):
        text = path.read_text(encoding="utf-8")
        scripts = re.findall(r"<script([^>]* src=[^>]*)>", text)
        assert len(scripts) > 5
        waited_for = [script for script in scripts if " defer" not in script]
        assert all("documentation_options" in script for script in waited_for) and len(waited_for) == 1
        assert ("exercise.css" in text) == ('class="exercise' in text), path.name
        assert "design-tabs" not in text and "proof.css" not in text
    assert "@import" not in (output / "html/_static/styles/theme.css").read_text(encoding="utf-8")


def test_the_style_knows_the_icons_of_the_pages_and_few_others(output):
    style = (output / "html/_static/styles/pydata-sphinx-theme.css").read_text(encoding="utf-8")
    known = {icon for selectors, _ in ICON_RULE.findall(style) for icon in ICON_CLASS.findall(selectors)}
    pages = "".join(path.read_text(encoding="utf-8") for path in output.glob("html/**/*.html"))
    shown = set(re.findall(r'class="fa[a-z]* (fa-[a-z-]+)"', pages))
    assert "fa-download" in shown and shown - {"fa-solid", "fa-lg"} <= known
    assert len(known) < 40
