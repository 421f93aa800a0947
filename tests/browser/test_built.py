"""The files of the built book, which need no browser to be read; `make book` has checked its links."""

import html
import json
import os
import re

import pytest
import yaml
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from nbformat import v4

from browser.conftest import HTML, PAGES, ROOT
from mathlib.book import verdicts
from pages.check import read, title
from pages.editions import TITLE

pytestmark = pytest.mark.usefixtures("host")  # says so where there is no book


def test_each_page_tells_the_browser_to_load_nothing_from_outside_before_it_loads_anything():
    pages = [path for path in HTML.glob("**/*.html") if "</head>" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(HTML).with_suffix("").as_posix() for path in pages} >= {*PAGES, "search"}
    for path in pages:
        first = re.search(r"<(?:meta http-equiv|link|script|style|img)[^>]*>", path.read_text(encoding="utf-8"))[0]
        assert "Content-Security-Policy" in first and "default-src 'self'" in first, path.name


def test_pages_are_named_by_their_headings_and_the_book():
    english = yaml.safe_load(ROOT.joinpath("_config.yml").read_text(encoding="utf-8"))["title"]
    for name in [*PAGES, *(f"ko/{name}" for name in PAGES)]:
        book = TITLE if name.startswith("ko/") else english
        page = HTML / f"{name}.html"
        text = page.read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta property="og:(\w+)" content="(.+?)"', text))
        assert tags["site_name"] == book and tags["description"]
        assert title(read(page)) == tags["title"]
        named = book if name.endswith("chapters/index") else f"{tags['title']} - {book}"
        assert html.unescape(re.search(r"<title>(.*?)</title>", text)[1]) == named
        assert "Project name not set" not in text


def test_every_equation_is_mathml_whose_letters_the_font_has():
    letters = TTFont(HTML / "_static" / "math.woff").getBestCmap()
    total = 0
    for path in HTML.glob("**/*.html"):
        text = path.read_text(encoding="utf-8")
        equations = re.findall(r"<math[ >].*?</math>", text, re.DOTALL)
        assert len(equations) == len(re.findall(r'class="(?:[^"]* )?math ', text)), path.name
        shown = html.unescape(re.sub("<[^>]*>", "", "".join(equations))) + "√" * ("<msqrt" in text)
        shown = re.sub("[가-힣\n]", "", shown)  # Hangul is set in the page's font
        missing = {char for char in shown if ord(char) not in letters}
        assert missing == set(), f"{path.name}: run tools/mathfont.py"
        total += len(equations)
    assert total > 400


@pytest.mark.parametrize("name", sorted(PAGES))
def test_hidden_code_is_all_there_and_no_two_bars_hide_code_with_nothing_in_between(name):
    source = ROOT / f"{name}.ipynb"
    if not source.exists():
        pytest.skip("has no code")
    page = BeautifulSoup((HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    cells = [cell for cell in v4.reads(source.read_text(encoding="utf-8")).cells if cell.cell_type == "code"]
    shown = [code.get_text().strip() for code in page.select(".cell_input")]
    assert shown == [cell.source.strip() for cell in cells]
    hidden = [cell.source.strip() for cell in cells if "hide-input" in cell.metadata.get("tags", [])]
    assert [code.get_text().strip() for code in page.select("details.hide .cell_input")] == hidden
    for bar in page.select("details.hide"):
        following = None if bar.find_next_sibling() else bar.parent.find_next_sibling()
        assert following is None or not following.select(":scope > details.hide"), bar


@pytest.mark.parametrize(("name", "parts"), [("api", "dl.py"), ("references", "div.citation")])
def test_what_stays_english_on_a_korean_page_says_so(name, parts):
    text = (HTML / "ko" / "chapters" / f"{name}.html").read_text(encoding="utf-8")
    found = BeautifulSoup(text, "html.parser").select(parts)
    assert found and {part.get("lang") for part in found} == {"en"}


@pytest.mark.skipif("GITHUB_REPOSITORY" in os.environ, reason="the book was built in a repository")
def test_no_page_tells_of_a_repository_when_none_is_known():
    for path in HTML.glob("**/*.html"):
        text = path.read_text(encoding="utf-8")
        for mark in ("og:url", 'rel="canonical"', "Repository", "Report a mistake"):
            assert mark not in text, f"{path.name} has {mark}"


def test_each_claim_can_be_found_under_its_old_addresses():
    for claim in verdicts.load()["claims"]:
        page = HTML / "chapters" / f"{claim['lab']}.html"
        text, place = page.read_text(encoding="utf-8"), f"labs/{claim['lab']}.html#{claim['label']}"
        found = re.search(r"<script>const moved = (.*?)</script>", text)
        moved = json.loads(found[1]) if found else {}
        for label in (claim["label"], *claim["was"]):
            assert moved.get(label) == place or f'id="{label}"' in text, label
        assert f'id="{claim["label"]}"' in page.with_name("labs").joinpath(page.name).read_text(encoding="utf-8")
