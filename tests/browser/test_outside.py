"""No page loads anything from outside: its own policy has the browser refuse."""

import pytest

from browser.conftest import PAGES

ADDRESS = "https://a.example/b"
LOADS = {
    "img": {"src": ADDRESS},
    "script": {"src": ADDRESS},
    "iframe": {"src": ADDRESS},
    "video": {"src": ADDRESS},
    "link": {"rel": "stylesheet", "href": ADDRESS},
    "style": {"textContent": f"@import '{ADDRESS}'"},
    "fetch": {},
}
# The directive that was violated, once the browser says so.
TRY = """([name, attributes, address]) => new Promise((resolve, reject) => {
    setTimeout(reject, 5000, `${name} was let through`);
    document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective), {once: true});
    if (name === "fetch") fetch(address).catch(() => {});
    else document.body.append(Object.assign(document.createElement(name), attributes));
})"""


@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_a_page_may_load_nothing_from_outside(reader, page):
    def check(visit):
        visit.page.wait_for_load_state("networkidle")
        assert visit.problems == []
        return [visit.page.evaluate(TRY, [name, attributes, ADDRESS]) for name, attributes in LOADS.items()]

    refused = [
        "img-src",
        "script-src-elem",
        "frame-src",
        "media-src",
        "style-src-elem",
        "style-src-elem",
        "connect-src",
    ]
    assert reader.read(page, check) == refused
