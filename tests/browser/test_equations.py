"""Equations as Chromium sets them."""

from browser.conftest import PAGES, ROOT

# Of each aligned block, row by row: where the part before & ends, and where the one after it begins. (Those of
# \begin{cases} are in text style, and rows of \begin{gathered} have one part.)
ALIGNED = """() => [...document.querySelectorAll("mtable[displaystyle=true]:has(mtd + mtd)")].map(table =>
    [...table.querySelectorAll("mtr")].map(({children: [before, after]}) => [
        before.lastElementChild?.getBoundingClientRect().right, after.firstElementChild.getBoundingClientRect().left]))"""


def test_aligned_rows_meet_at_their_relation_signs(reader):
    blocks = {}

    def check(visit):
        for name in PAGES:
            visit.page.goto(f"{visit.host}/{name}.html", wait_until="load")
            visit.page.evaluate("document.fonts.ready")
            for number, rows in enumerate(visit.page.evaluate(ALIGNED)):
                blocks[name, number] = rows

    reader.read(PAGES[0], check)
    written = sum(path.read_text(encoding="utf-8").count(r"\begin{aligned}") for path in ROOT.glob("chapters/*.ipynb"))
    assert len(blocks) == written > 0
    for place, rows in blocks.items():
        starts = [start for _, start in rows]
        assert max(starts) - min(starts) < 0.5, place
        gaps = [start - end for end, start in rows if end is not None]
        assert gaps and all(-0.5 < gap < 8 for gap in gaps), (place, gaps)


# One element of each text; what is far from the screen has not been drawn yet.
DIFFERENT = """() => {
    const seen = new Set();
    for (const element of document.querySelectorAll("math :is(mi, mo, mn, mtext)")) {
        const written = element.outerHTML;
        if (!seen.has(written)) element.dataset.different = "";
        seen.add(written);
    }
    return seen.size;
}"""
BARE_ROOTS = """() => [...document.querySelectorAll("msqrt")].filter(root => {
    const inner = [...root.children].map(child => child.getBoundingClientRect().width).reduce((a, b) => a + b);
    return root.getBoundingClientRect().width < inner + 3;
}).length"""


def test_all_of_it_is_drawn_in_the_books_own_font(reader):
    drawn = set()

    def check(visit):
        page, tools = visit.page, visit.page.context.new_cdp_session(visit.page)
        tools.send("DOM.enable")
        tools.send("CSS.enable")
        for name in PAGES:
            page.goto(f"{visit.host}/{name}.html", wait_until="load")
            page.add_style_tag(content="* { content-visibility: visible !important }")
            different = page.evaluate(DIFFERENT)
            page.evaluate("document.fonts.ready")
            root = tools.send("DOM.getDocument")["root"]["nodeId"]
            found = tools.send("DOM.querySelectorAll", {"nodeId": root, "selector": "[data-different]"})["nodeIds"]
            assert len(found) == different
            for node in found:
                for font in tools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]:
                    drawn.add((font["familyName"], font["isCustomFont"]))
            assert page.evaluate(BARE_ROOTS) == 0, name

    reader.read(PAGES[0], check)
    assert drawn == {("Mathlib Book Math", True)}
