"""What a reader's first view costs."""

import re

import pytest

from browser.conftest import HTML, PAGES

CHAPTERS = [name for name in PAGES if re.search(r"/\d\d_", name)]
VIEW = 300_000  # compressed, without pictures
BOOK = 60_000_000


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapters_first_view_is_light(reader, name):
    def check(visit):
        return {url: size for url, size in visit.bytes.items() if not url.endswith((".png", ".jpg", ".svg"))}

    reader.contexts.pop(1280, None)  # a new context has nothing cached
    needed = reader.read(name, check)
    heaviest = sorted(needed.items(), key=lambda item: -item[1])[:6]
    assert 0 < sum(needed.values()) <= VIEW, heaviest


@pytest.mark.parametrize("name", PAGES)
def test_equations_need_a_font_and_nothing_else(reader, name):
    def check(visit):
        equations = visit.page.locator(".math").count()
        loaded = [url for url in visit.bytes if re.search("math[^/]*$", url, re.IGNORECASE)]
        assert loaded == [f"{visit.host}/_static/math.woff"] * bool(equations)

    reader.read(name, check)


def test_the_book_is_small():
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) < BOOK
