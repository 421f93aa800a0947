"""The Korean edition beside the English one: found, switched to, and set as Korean is."""

import re

import pytest

from browser.conftest import HTML, KOREAN, PAGES

CHAPTER = "chapters/01_infonce"


@pytest.fixture(scope="module", autouse=True)
def texts():
    """The words of each page that is in Korean."""
    found = {name: HTML.joinpath(f"{name}.html").read_text(encoding="utf-8") for name in KOREAN}
    found = {name: text for name, text in found.items() if 'role="main" lang="en"' not in text}
    # the names of other pages, in the sidebar, are no page's own
    found = {name: re.sub(r"<[^>]*>", " ", text[text.index("<article") :]) for name, text in found.items()}
    if f"ko/{CHAPTER}" not in found:
        pytest.skip("not yet in Korean")
    return found


@pytest.mark.parametrize(
    ("asked", "written"),
    [("온도", "온도[를가는에]"), ("온도를", "온도"), ("코사인유사도", "코사인 유사도"), ("InfoNCE는", "InfoNCE")],
)
def test_a_word_is_found_with_its_particles_and_in_compounds(reader, texts, asked, written):
    def check(visit):
        visit.page.goto(f"{visit.host}/ko/search.html?q={asked}")
        visit.page.locator("#search-results .search-summary:not(:empty)").wait_for()
        visit.page.wait_for_function("!document.querySelector('#search-progress')?.innerText.includes('...')")
        return visit.page.locator("#search-results li a").evaluate_all("links => links.map(a => a.pathname)")

    wanted = {f"/{name}.html" for name, text in texts.items() if re.search(written, text)}
    assert wanted and wanted <= {*reader.read(f"ko/{CHAPTER}", check)}


def test_the_switch_keeps_the_place_and_home_remembers_the_choice(reader):
    def check(visit):
        page = visit.page

        def switch(place):
            page.locator("a.language:visible").press("Enter")  # a pointer may miss what the layout still moves
            page.wait_for_url(f"{visit.host}/{place}")
            return page.locator("html").get_attribute("lang")

        page.goto(f"{visit.host}/{CHAPTER}.html#the-equation")
        assert switch(f"ko/{CHAPTER}.html#the-equation") == "ko"
        assert page.locator("#the-equation h2").evaluate("title => Math.abs(title.getBoundingClientRect().top) < 300")
        page.goto(f"{visit.host}/{PAGES[0]}.html")
        page.wait_for_url(f"{visit.host}/ko/{PAGES[0]}.html")
        assert switch(f"{PAGES[0]}.html") == "en"
        page.reload()
        page.goto(f"{visit.host}/ko/{PAGES[0]}.html")  # who is sent to the Korean page stays there
        page.wait_for_timeout(300)
        assert page.url == f"{visit.host}/ko/{PAGES[0]}.html"
        page.evaluate("localStorage.clear()")

    reader.read(CHAPTER, check)


# The ends of lines within a word: letters whose places are not one beside the other, with no blank between them.
CUT = """() => {
    const found = [], range = document.createRange();
    const words = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
    while (words.nextNode()) {
        const node = words.currentNode;
        if (node.parentElement.closest("pre, svg, math")) continue;
        for (const { index } of node.data.matchAll(/(?<=[가-힣])[가-힣]/g)) {
            range.setStart(node, index - 1), range.setEnd(node, index + 1);
            const boxes = [...range.getClientRects()].filter((box) => box.width > 1);
            if (boxes.length > 1 && boxes.at(-1).top > boxes[0].top + 8) found.push(node.data.slice(index - 8, index + 8));
        }
    }
    return found;
}"""
SLANTED = """() => [...document.querySelectorAll("article *")].filter(box => /italic|oblique/.test(getComputedStyle(box).fontStyle)
    && !box.closest(".highlight, [lang=en]") && [...box.childNodes].some(part => part.nodeType === 3 && /[가-힣]/.test(part.data)))
    .map(box => box.textContent.slice(0, 40))"""


@pytest.mark.parametrize("width", [390, 1280])
def test_lines_end_between_words_and_hangul_stands_upright(reader, texts, width):
    for name in texts:
        found = reader.read(name, lambda visit: visit.page.evaluate(CUT) + visit.page.evaluate(SLANTED), width)
        assert found == [], name


def test_a_copy_button_speaks_korean(reader):
    def check(visit):
        return visit.page.locator("button.copybtn").first.get_attribute("data-tooltip")

    assert reader.read(f"ko/{CHAPTER}", check) == "복사"
