"""Every page as its readers meet it: wide and narrow, light and dark, by keyboard, pointer and touch."""

import itertools
import re

import pytest

from browser.conftest import AXE, HTML, KOREAN, NEXT_FRAME, PAGES, PICTURES, scroll_through

UNTYPESET = """() => [...document.querySelectorAll(".math")].filter(math =>
    !math.querySelector("math")?.getBoundingClientRect().width || math.querySelector("merror"))
    .map(math => math.textContent)"""
# Colours do not depend on the width, and nothing but colours depends on the scheme.
COLOURS = ["color-contrast", "color-contrast-enhanced", "link-in-text-block"]
# All of its rules, the experimental ones and those that it leaves off, for colours or for the rest.
FOUND_BY_AXE = """async ([colours, wanted]) => {
    const rules = axe.getRules().map(rule => rule.ruleId).filter(id => colours.includes(id) === wanted);
    const found = await axe.run(document, {runOnly: rules, resultTypes: ["violations"], preload: false});
    return found.violations.map(each =>
        `${each.id} (${each.impact}): ${each.nodes.slice(0, 4).map(node => node.target.join(" ")).join(", ")}`);
}"""
# For a text's contrast axe looks at all that lies behind it, element by element: of a page's blocks that look alike, in
# elements and classes from the body down, it sees one. What is hidden it would not look at.
ONE_OF_EACH_LOOK = """() => {
    const seen = new Set(), superfluous = [];
    const look = element => {
        let path = "";
        for (; element !== document.body; element = element.parentElement) {
            const stripe = element.tagName === "TR" ? [...element.parentElement.children].indexOf(element) % 2 : "";
            path += `${element.tagName}${stripe} ${element.className} ${element.getAttribute("style")} < `;
        }
        return path;
    };
    const written = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    for (const block of document.body.querySelectorAll("p, li, td, th, dt, dd, figcaption, math, pre span")) {
        const looks = block.checkVisibility() ? [block, ...block.querySelectorAll("*")].filter(written).map(look) : [];
        if (looks.every(each => seen.has(each))) superfluous.push(block);
        looks.forEach(each => seen.add(each));
    }
    superfluous.forEach(block => block.remove());
}"""
# Half faded, a colour is neither scheme's; and what is far from the screen is to be looked at too.
STILL = "* { transition: none !important } .cell, section { content-visibility: visible !important }"
TO_TOP = f"""async () => {{
    scrollTo({{top: 0, behavior: "instant"}});
    for (let i = 0; i < 3; i++) await {NEXT_FRAME};
}}"""
# What sticks out and cannot be scrolled to within its own box.
OVERFLOW = """() => {
    const scrolls = box => !box.matches(".content") && /auto|scroll/.test(getComputedStyle(box).overflowX);
    const reached = box => box.matches("[role=main]") ? false : scrolls(box) || reached(box.parentElement);
    return [...document.querySelectorAll("[role=main] *")].filter(box =>
        box.getBoundingClientRect().width && box.getBoundingClientRect().right > innerWidth + 1 && !reached(box))
        .map(box => box.tagName + "." + box.className + " " + box.textContent.trim().slice(0, 40)).slice(0, 8);
}"""
# What its own box cuts off; a box of one pixel holds what only a screen reader is to find.
CUT = """() => [...document.body.querySelectorAll("*")].filter(box =>
    box.clientWidth > 1 && box.scrollWidth > box.clientWidth + 1 && /hidden|clip/.test(getComputedStyle(box).overflowX)
    && box.textContent.trim() && box.checkVisibility({visibilityProperty: true}))
    .map(box => box.tagName + "." + box.className + " " + box.textContent.trim().slice(0, 40))"""
# What scrolls sideways out of a keyboard's reach. axe has such a rule, and lets the first few pixels pass.
UNREACHABLE = """() => [...document.querySelectorAll("body *")].filter(box =>
    box.scrollWidth > box.clientWidth && /auto|scroll/.test(getComputedStyle(box).overflowX)
    && [box, ...box.querySelectorAll("*")].every(each => each.tabIndex < 0)
    && box.checkVisibility({visibilityProperty: true}))
    .map(box => box.tagName + "." + box.className + " " + box.textContent.trim().slice(0, 40))"""
SLIDER = """input => {
    const figure = input.closest("figure"), frames = [...figure.querySelectorAll("[data-value]")];
    const shown = frames.filter(frame => !frame.hidden);
    return {count: frames.length, shown: shown.length, frame: frames.indexOf(shown[0]), value: +input.value,
            spoken: input.getAttribute("aria-valuetext"), written: figure.querySelector("output").value};
}"""


def problems_of_look(page, name, view):
    """What is wrong with a page in one view; a picture of it is kept for whoever asks for PICTURES."""
    found = [f"{view}: not typeset: {text[:60]}" for text in page.evaluate(UNTYPESET)]
    found += [f"{view}: overflows: {what}" for what in page.evaluate(OVERFLOW)]
    found += [f"{view}: cut off: {what}" for what in page.evaluate(CUT)]
    if PICTURES:
        PICTURES.mkdir(parents=True, exist_ok=True)
        whole = view.endswith("light")  # of a long page it takes seconds; the dark one has the same layout
        page.screenshot(
            path=PICTURES / f"{name.replace('chapters/', '').replace('/', '-')}-{view}.jpg",
            type="jpeg",
            quality=70,
            full_page=whole,
        )
    return found


def problems_of_access(page, view, colours):
    """What axe finds."""
    page.evaluate(TO_TOP)  # further down, the theme's button lies over what is read
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return [f"{view}: axe {found}" for found in page.evaluate(FOUND_BY_AXE, [COLOURS, colours])]


def move_sliders(page, width):
    """Each slider to both ends and between by keyboard, then by touch or pointer."""
    for slider in page.query_selector_all(".mathlib-control input"):
        slider.evaluate("slider => slider.scrollIntoView({block: 'center', behavior: 'instant'})")
        slider.focus()
        seen = {}
        for key in ("End", "ArrowLeft", "Home", "ArrowRight"):
            page.keyboard.press(key)
            seen[key] = slider.evaluate(SLIDER)
        box = slider.bounding_box()
        for place in (0.03, 0.97):
            x, y = box["x"] + box["width"] * place, box["y"] + box["height"] / 2
            (page.touchscreen.tap if width < 500 else page.mouse.click)(x, y)
            seen[place] = slider.evaluate(SLIDER)
        last = seen["End"]["count"] - 1
        frames = {step: state["frame"] for step, state in seen.items()}
        assert frames == {"End": last, "ArrowLeft": last - 1, "Home": 0, "ArrowRight": 1, 0.03: 0, 0.97: last}
        for state in seen.values():
            assert state["shown"] == 1 and state["frame"] == state["value"]
            assert state["spoken"].endswith(state["written"]) and state["written"]
        assert len({state["spoken"] for state in seen.values()}) == len(set(frames.values()))


def fold_solutions(page):
    """Each solution is folded, opens, and folds again; each exercise has its check cell."""
    assert page.locator(".exercise").count() == page.locator(".tag_check").count()
    solutions = page.locator("details.solution[id]")  # answers of Check yourself look alike, and have no id
    assert solutions.count() == page.locator(".exercise").count()
    for solution in solutions.all():
        code, bar = solution.locator(".cell_input").first, solution.locator("summary").first
        assert not code.is_visible()
        bar.click()
        code.wait_for(state="visible")
        bar.click()
        code.wait_for(state="hidden")


def copy_code(page):
    """Each block of code has its button, and a block's button copies that block."""
    blocks = page.locator(".cell_input div.highlight").all()
    assert blocks and all(block.locator("button.copybtn").count() == 1 for block in blocks)
    block = next(block for block in blocks if block.is_visible())
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip()


def background(page):
    return luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))


# with both sidebars, and with none; a Korean page differs from the English one in its words, for which a phone has less room
@pytest.mark.parametrize(
    ("name", "width"), [*itertools.product(PAGES, (1366, 390)), *itertools.product(KOREAN, (390,))]
)
def test_page(reader, name, width):
    def check(visit):
        page, found = visit.page, []
        page.add_style_tag(content=STILL)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert (background(page) > 0.5) == (scheme == "light")
            found += problems_of_look(page, name, f"{width}-{scheme}")
        scroll_through(page)
        found += [f"{width}: scrolls, but not by keyboard: {what}" for what in page.evaluate(UNREACHABLE)]
        move_sliders(page, width)
        fold_solutions(page)
        if width == 1366 and re.search(r"/\d\d_", name):
            copy_code(page)
        found += problems_of_access(page, width, colours=False)
        if width == 1366:
            page.evaluate(ONE_OF_EACH_LOOK)
            for scheme in ("dark", "light"):
                page.emulate_media(color_scheme=scheme)
                found += problems_of_access(page, scheme, colours=True)
        return found + visit.problems

    assert reader.read(name, check, width) == []


def test_a_small_telephone_shows_all_within_reach_before_any_script(reader):
    for name in PAGES + KOREAN:
        found = reader.read(
            name, lambda visit: visit.page.evaluate(OVERFLOW) + visit.page.evaluate(UNREACHABLE), 320, scripts=False
        )
        assert found == [], name


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_a_phone_opens_the_sidebars_without_a_script(reader, by_keyboard):
    def check(visit):
        page = visit.page
        for switch, sidebar in (("nav", ".sidebar-drawer"), ("toc", ".toc-drawer")):
            link = page.locator(f"{sidebar} a").last
            assert not link.is_visible()
            if by_keyboard:
                page.keyboard.press("Tab")
                page.keyboard.press("Space")
            else:
                page.locator(f".mobile-header .{switch}-overlay-icon").click()
            link.wait_for(state="visible")
            page.wait_for_timeout(400)  # it slides in
            link.scroll_into_view_if_needed()
            box = link.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= 390
            if by_keyboard:
                page.keyboard.press("Space")
            else:
                page.locator(f".{'sidebar' if switch == 'nav' else 'toc'}-overlay").click(
                    position={"x": 380 if switch == "nav" else 10, "y": 450}
                )
            link.wait_for(state="hidden")

    reader.read(PAGES[2], check, 390, scripts=False)


def test_theme_switch_goes_round_and_is_remembered(reader):
    def check(visit):
        page = visit.page
        page.emulate_media(color_scheme="light")
        seen = {}
        for _ in range(3):
            page.locator(".theme-toggle:visible").click()
            seen[page.evaluate("document.body.dataset.theme")] = background(page) < 0.5
        assert seen == {"dark": True, "light": False, "auto": False}
        while page.evaluate("document.body.dataset.theme") != "dark":
            page.locator(".theme-toggle:visible").click()
        page.reload()
        assert background(page) < 0.5
        page.evaluate("localStorage.clear()")

    reader.read(PAGES[0], check)


def test_next_leads_through_the_book_and_previous_back(reader):
    def check(visit):
        page = visit.page
        for before, name in itertools.pairwise(PAGES):
            page.locator("a.next-page").press("Enter")  # a pointer may miss what the layout still moves
            page.wait_for_url(f"**/{name}.html", wait_until="domcontentloaded")
            assert page.locator("a.prev-page").evaluate("a => a.href") == f"{visit.host}/{before}.html"
        page.locator("a.prev-page").press("Enter")
        page.wait_for_url(f"**/{before}.html", wait_until="domcontentloaded")
        assert visit.problems == []

    reader.read(PAGES[0], check)


TEXTS = """async names => Object.fromEntries(await Promise.all(names.map(async name => {
    const answer = await fetch(`/${name}.html`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    return [name, [...page.querySelectorAll("article :is(p, h1, h2)")].map(text => text.textContent).join(" ")];
})))"""


def rare_word(name, texts):
    """A word of a page that no other page has."""
    words = {other: set(re.findall(r"\b[a-z]{5,}\b", text.lower())) for other, text in texts.items()}
    rest = set().union(*(found for other, found in words.items() if other != name))
    return max(words[name] - rest, key=lambda word: (texts[name].lower().count(word), word))


def test_search_finds_a_word_of_each_chapter(reader):
    chapters = [name for name in PAGES if re.search(r"/\d\d_", name)]

    def check(visit):
        page, texts = visit.page, visit.page.evaluate(TEXTS, PAGES)
        for name in chapters:
            page.goto(f"{visit.host}/{PAGES[0]}.html", wait_until="load")
            page.keyboard.press("/")
            page.keyboard.type(rare_word(name, texts))
            page.keyboard.press("Enter")
            page.wait_for_url("**/search.html?**")
            page.locator(f'#search-results a[href*="{name}.html"]').first.wait_for()

    reader.read(PAGES[0], check)


def test_links_resolve_raw_ones_and_anchors_included(reader):
    """In the DOM as scripts leave it: what only a script writes is followed too."""

    def check(visit):
        links, ids = {}, {}
        for name in PAGES + KOREAN:
            visit.page.goto(f"{visit.host}/{name}.html", wait_until="load")
            links[name] = visit.page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
            ids[f"{name}.html"] = set(visit.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        found = []
        for name, hrefs in links.items():
            for href in set(hrefs):
                if not href.startswith(visit.host):
                    continue
                path, _, anchor = href.removeprefix(f"{visit.host}/").partition("#")
                path = path.partition("?")[0]
                if not (HTML / path).exists():
                    found.append(f"{name} -> {href}")
                elif anchor and path in ids and anchor not in ids[path]:
                    found.append(f"{name} -> {href}: no such anchor")
        return found

    assert reader.read(PAGES[0], check) == []


def test_a_link_from_elsewhere_ends_at_its_claim(reader):
    """Though what lies before it has not been laid out."""
    name = "chapters/labs/01_infonce.html"
    claims = re.findall(r'id="(claim-[^"]+)"', HTML.joinpath(name).read_text(encoding="utf-8"))

    arrived = (
        "id => { const top = document.getElementById(id).getBoundingClientRect().top; return 0 <= top && top < 300; }"
    )

    def check(visit):
        page, lab = visit.page, f"{visit.host}/{name}"
        for claim in claims:
            page.goto("about:blank")
            page.goto(f"{lab}#{claim}")
            page.wait_for_function(arrived, arg=claim)
        page.goto("about:blank")
        page.goto(lab)
        for claim in reversed(claims):
            page.evaluate("id => location.hash = id", claim)
            page.wait_for_function(arrived, arg=claim)

    assert claims
    reader.read(PAGES[0], check)


def test_a_claims_old_address_leads_to_its_lab(reader):
    name, old, new = "chapters/01_infonce.html", "claim-mutual-information-lower", "claim-mutual-information"

    def check(visit):
        page, place = visit.page, f"{visit.host}/chapters/labs/01_infonce.html#{new}"
        page.goto(f"{visit.host}/{name}#{old}")
        page.wait_for_url(place)
        page.goto(f"{visit.host}/{name}")
        page.evaluate("id => { location.hash = id }", old)
        page.wait_for_url(place)

    reader.read(PAGES[0], check)


def test_printed_page_shows_solutions_and_hides_controls(reader):
    def check(visit):
        page = visit.page
        page.emulate_media(color_scheme="dark", media="print")
        assert page.locator(".solution").count()
        for solution in page.locator(".solution .cell_input").all():
            assert solution.is_visible()
        hidden = ".mathlib-control, .copybtn, .related-pages, .sidebar-drawer, .toc-drawer, details.hide, .links"
        for control in page.locator(hidden).all():
            assert not control.is_visible()
        # Ink on paper, whatever the screen was: text dark, its background light or none.
        colours = page.evaluate(
            """() => [...document.querySelectorAll("article :is(h1, h2, h3, p, td, th, li, pre, pre span)")].map(e =>
            [e.tagName, getComputedStyle(e).color, getComputedStyle(e.closest("pre") || e).backgroundColor])"""
        )
        for tag, ink, paper in {tuple(colour) for colour in colours}:
            assert luminance(ink) < 0.4, (tag, ink)
            assert "rgba" in paper or luminance(paper) > 0.7, (tag, paper)

    reader.read(next(name for name in reversed(PAGES) if re.search(r"chapters/\d\d_", name)), check)


def luminance(colour):
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
