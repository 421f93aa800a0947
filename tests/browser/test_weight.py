"""What a reader's first view costs."""

import re

import pytest

from browser.conftest import HTML, PAGES, scroll_through

VIEW = 150_000  # compressed, without pictures
BOOK = 60_000_000


@pytest.mark.parametrize("name", PAGES)
def test_a_first_view_is_light(reader, name):
    """Equations need a font of the book's own, and nothing else."""

    def check(visit):
        visit.page.wait_for_load_state("networkidle")
        sizes = {url: size for url, size in visit.bytes.items() if not url.endswith((".png", ".jpg", ".svg"))}
        heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
        assert 0 < sum(sizes.values()) <= VIEW, heaviest
        scroll_through(visit.page)  # the font may wait until the first equation is near
        fonts = [url for url in visit.bytes if re.search("math[^/]*$", url, re.IGNORECASE)]
        assert fonts == [f"{visit.host}/_static/math.woff"] * bool(visit.page.locator(".math").count())

    reader.contexts.pop((1280, True), None)  # a new context has nothing cached
    reader.read(name, check)


def test_the_book_is_small():
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) < BOOK
