"""Chapter 04's search box: what it loads and when, what it answers, and for whom."""

import random

import bm25s
import pytest

from browser.conftest import AXE
from browser.test_pages import FOUND_BY_AXE, OVERFLOW, STILL
from mathlib.book import data, minilm

PAGE = "chapters/04_dual_encoder"
# What BERT's pieces are cut at, or lose: accents, kinds of space, letters that grow, other scripts, special pieces.
LETTERS = [
    *"aZ é ß ſ İ ı Σ ς ό ﬁ ① ½ 한국어 日本 漢字 カナ 𠀀 😀 ﷺ ʼ K _-+=$^`|~<>«»“”…–— 1.5e-3 ##ing å Å ñ",
    *"\u200b\u00ad\u0301\u00a0\t\n\r\x00\ufffd\u2028\u3000\u0378\ue000",
    *("[SEP]", "[MASK]", "[sep]", "unaffable", "eigenvalues"),
]
LOAD = 'loadStudent(new URL("student.bin", document.getElementById("student").dataset.script))'


def loaded(visit):
    return [url for url in visit.bytes if "student.bin" in url]


def ask(page, text):
    page.get_by_label("Ask the documentation").fill(text)
    page.get_by_role("status").filter(has_text=f"“{text}”").wait_for()


def names(page, title):
    part = page.locator(".answers > div").filter(has=page.get_by_role("heading", name=title))
    return part.locator("li code").all_inner_texts()


def test_pieces_are_those_of_the_tokenizer(reader):
    _, tokenizer = minilm.load()
    draw = random.Random(0)
    texts = [entry.query for entry in data.docstrings()[::4]] + [entry.document for entry in data.docstrings()[::40]]
    texts += ["".join(draw.choices(LETTERS, k=draw.randint(1, 30))) for _ in range(1500)]
    texts += ["", " ", "a" * 100, "a" * 101, "ΟΔΥΣΣΕΥΣ"]
    expected = [minilm.pieces(tokenizer, text) for text in texts]

    def check(visit):
        run = f"async texts => {{const s = await {LOAD}; return texts.map(t => wordPieces(t, s.vocabulary))}}"
        return visit.page.evaluate(run, texts)

    found = reader.read(PAGE, check)
    assert [each for each in zip(texts, found, expected, strict=True) if each[1] != each[2]] == []


def test_bm25_scores_are_those_of_bm25s(reader):
    texts = ["the sort the set sort colors", "A ClassName of_x 3", "shortest path between two nodes"]
    judge = bm25s.BM25()
    judge.index([data.words(entry.document) for entry in data.docstrings()], show_progress=False)
    expected = [judge.get_scores(data.words(text)).tolist() for text in texts]

    def check(visit):
        run = f"async texts => {{const s = await {LOAD}; return texts.map(t => [...bm25Scores(s, t)])}}"
        return visit.page.evaluate(run, texts)

    for scores, theirs in zip(reader.read(PAGE, check), expected, strict=True):
        assert scores == pytest.approx(theirs, abs=1e-4)


def test_nothing_is_loaded_before_a_question_and_then_once(reader):
    def check(visit):
        page = visit.page
        page.wait_for_load_state("networkidle")
        assert loaded(visit) == [] and page.locator(".answers").inner_text() == ""
        ask(page, "eigenvalues of a symmetric matrix")
        ask(page, "sort an array and return the indices")
        assert len(loaded(visit)) == 1 and visit.problems == []
        assert "numpy._core.fromnumeric.argsort" in names(page, "Static student")
        assert len(names(page, "BM25")) == 5 == page.locator(".answers ol").first.locator("li").count()
        ask(page, "zzqqx")
        assert names(page, "BM25") == [] and "No word is known." in page.locator(".answers").inner_text()
        page.get_by_label("Ask the documentation").fill("")
        page.get_by_role("status").filter(has_text="Ready.").wait_for()
        assert page.locator(".answers").inner_text() == ""

    reader.read(PAGE, check)


def test_it_is_used_by_keyboard_and_read_aloud(reader):
    def check(visit):
        page = visit.page
        page.get_by_label("Ask the documentation").focus()
        page.keyboard.type("draw a histogram")
        page.keyboard.press("Enter")
        page.get_by_role("status").filter(has_text="“draw a histogram”").wait_for()
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Search"
        assert page.get_by_role("search", name="Documentation").count() == 1
        assert page.get_by_role("list").filter(has_text="hist").count() >= 2

    reader.read(PAGE, check)


@pytest.mark.parametrize("width", [1280, 390])
def test_its_answers_fit_and_can_be_read(reader, width):
    def check(visit):
        page = visit.page
        ask(page, "shortest path between two nodes of a graph")
        page.add_style_tag(content=STILL)
        assert page.evaluate(OVERFLOW) == []
        page.evaluate(AXE.read_text(encoding="utf-8"))
        box = page.locator("#student")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate("document.body.replaceChildren(document.getElementById('student'))")
            found = page.evaluate(FOUND_BY_AXE, [["color-contrast", "color-contrast-enhanced"], True])
            assert found == [] and box.bounding_box()["width"] <= width

    reader.read(PAGE, check, width=width)


def test_it_says_what_is_missing(reader):
    def without_data(visit):
        page = visit.page
        page.route("**/student.bin", lambda route: route.abort())
        page.get_by_label("Ask the documentation").fill("graph")
        page.get_by_role("status").filter(has_text="could not be loaded").wait_for()
        page.unroute("**/student.bin")
        ask(page, "graphs")

    def without_scripts(visit):
        assert "needs JavaScript" in visit.page.locator("#student").text_content()

    reader.read(PAGE, without_data)
    reader.read(PAGE, without_scripts, scripts=False)
