"""The Korean edition says what the English one says, and what `python -m pages korean` finds where it does not."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from nbformat import v4

from pages import korean
from pages.words import Words, translate_html

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", korean.pages(ROOT))
def test_the_page_is_said_in_korean(name):
    broken, unfinished = korean.compare(ROOT, name)
    assert [*broken, *unfinished] == [], f"run: python -m pages korean {name}"


@cache
def words_that_differ():
    """Of all pages at once: what one says depends on what the others do."""
    return korean.compare_words(ROOT, [*korean.pages(ROOT), korean.COMMON])


@pytest.mark.parametrize("name", [*korean.pages(ROOT), korean.COMMON])
def test_its_outputs_speak_korean(name):
    found = [each for each in words_that_differ() if each.startswith(f"ko/outputs/{name}.json: ")]
    assert found == [], f"run: python -m pages korean {name} --words"


ENGLISH = "# A page\n\nSee {eq}`one` and **temperature**."


@pytest.fixture
def book(tmp_path):
    tmp_path.joinpath("chapters").mkdir()
    tmp_path.joinpath("ko/outputs").mkdir(parents=True)
    tmp_path.joinpath("README.md").write_text("# Read\n")
    write(tmp_path, ENGLISH)
    return tmp_path


def write(book, *cells, outputs=()):
    """A chapter of these Markdown cells, a, b, ..., and of a code cell with these outputs."""
    made = [v4.new_markdown_cell(text, id="abc"[i]) for i, text in enumerate(cells)]
    shown = [v4.new_output("display_data", data={"text/html": text}) for text in outputs]
    notebook = v4.new_notebook(cells=[*made, v4.new_code_cell(id="code", outputs=shown)])
    book.joinpath("chapters/page.ipynb").write_text(v4.writes(notebook), encoding="utf-8")


def translate(book, *cells, english=(ENGLISH,), ids="abc"):
    made = [f"<!-- {i} {korean.digest(e)} -->\n{text}\n" for i, e, text in zip(ids, english, cells, strict=False)]
    book.joinpath("ko/page.md").write_text("\n".join(made), encoding="utf-8")


def test_what_agrees_passes(book):
    translate(book, "# 쪽\n\n{eq}`one` 식과 **온도**(temperature)를 보세요.")
    assert korean.compare(book, "page") == ([], [])


@pytest.mark.parametrize(
    ("english", "said", "problem"),
    [
        ("$a_1$", "$a_2$", "lost math_inline  a_1"),
        ("$$\na\n$$ (x)", "$$\na\n$$ (y)", "lost math_block_label x a"),
        ("text", "text $a$", "the English has no math_inline  a"),
        ("{py:func}`a`", "{py:func}`b`", "lost {py:func}`a`"),
        ("{doc}`a <b>`", "{doc}`a <c>`", "lost {doc}`b`"),
        ("{cite}`a`", "글", "lost {cite}`a`"),
        ("`a`", "글", "lost code_inline  a"),
        ("```python\na = 1  # one\n```", "```python\na = 2  # 하나\n```", "lost fence python a = 1"),
        ("(a)=\n## b", "## b", "lost myst_target  a"),
        ("## a", "### 가", "lost heading 1 of level 2"),
        ('[+0.1](a "b")', '[+0.2](a "b")', "lost link {'href': 'a', 'title': 'b'} +0.1"),
        ('[a](a "b")', "[a](a)", "lost link {'href': 'a', 'title': 'b'}"),
        ("![a](a.svg)", "![가](b.svg)", "lost image a.svg"),
        ("in 1,024 steps", "스텝에서", "lost number 1,024"),
        ('<details class="a">', "<details>", 'lost <details class="a">'),
        (
            "```{exercise} A\n:label: a\n$x$\n```",
            "```{exercise} 가\n:label: b\n$x$\n```",
            "lost directive exercise :label: a",
        ),
        ("```{exercise} A\n:label: a\n$x$\n```", "```{exercise} 가\n:label: a\n글\n```", "lost math_inline  x"),
        ("a", "**온도(temperature)**는", "asterisks will show"),
        ("a", "**95 %**는", "asterisks will show"),
        ("$a$", "**$a$**는", "asterisks will show"),
        ("a", "_내적_입니다", "_내적_입 will show"),
        ("{eq}`a`", "{eq}`a`을", "{eq}`a`을: the particle depends on a number"),
        ("3", "3를", "3를: write the particle that is read"),
        ("1", "1으로", "1으로: write the particle that is read"),
        ("$N$", "$N$는", "$N$는: write the particle that is read"),
        ("a", "값을(를)", "을(를): write the one that is read"),
    ],
)
def test_what_a_translation_lost_or_got_wrong_is_named(book, english, said, problem):
    write(book, english)
    translate(book, said, english=[english])
    broken, unfinished = korean.compare(book, "page")
    assert unfinished == [] and any(line.startswith(f"ko/page.md:1: {problem}") for line in broken), broken


@pytest.mark.parametrize(
    ("english", "said"),
    [
        ("$\\text{else}$", "$\\text{그 밖에}$"),
        ("{doc}`a <b>`", "{doc}`가 <b>`"),
        ('[+0.1](a "b"), two of 3', '[+0.1](a "b"), 3, 2'),
        ("two of 3", "2, 3"),
        ("```python\na = 1  # one\n```", "```python\na = 1  # 하나\n```"),
        ('<img src="a" alt="b">', '<img src="a" alt="나">'),
        ("3, 2, 1, 0, $N$, $L$, $B$, 5 %", "3을, 2를, 1로, 0으로, $N$은, $L$로, $B$는, 5 %가, 3입니다"),
        ("`a * b` $a * b$ 3 \\* 4", "`a * b` $a * b$ 3 \\* 4"),
    ],
)
def test_words_may_differ(book, english, said):
    write(book, english)
    translate(book, said, english=[english])
    assert korean.compare(book, "page") == ([], [])


def test_cells_that_are_missing_unknown_or_out_of_order_are_named(book):
    write(book, "a", "b", "```{solution-end}\n```")
    translate(book, "가", english=["a"])
    assert korean.compare(book, "page") == (
        [],
        [f"ko/page.md: no Korean for <!-- b {korean.digest('b')} --> b"],
    )
    translate(book, "나", "가", "다", english=["b", "a", "c"], ids="bax")
    assert korean.compare(book, "page")[0] == [
        "ko/page.md:7: page.ipynb has no cell x",
        "ko/page.md: its cells must stand in the order of the English, a, b",
    ]
    translate(book, "가", "가", english=["a", "a"], ids="aa")
    assert korean.compare(book, "page")[0] == ["ko/page.md:4: a must stand once"]


def test_a_file_that_is_not_utf_8_is_named_with_its_line(book):
    book.joinpath("ko/page.md").write_bytes("<!-- a 00000000 -->\n온도".encode("euc-kr"))
    assert korean.compare(book, "page")[0] == ["ko/page.md:2: must be UTF-8, invalid start byte"]
    book.joinpath("ko/outputs/page.json").write_bytes(b'{"a": "')
    with pytest.raises(ValueError, match=r"^ko/outputs/page.json: "):
        korean.outputs(book)


def test_an_edit_of_the_english_is_shown_until_its_korean_is_looked_at(book):
    translate(book, "# 쪽\n\n{eq}`one` 식과 **온도**.")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=book, check=True)
    write(book, new := ENGLISH.replace("temperature", "margin"))
    assert korean.compare(book, "page") == (
        [],
        [f"ko/page.md:1: the English has changed; then write <!-- a {korean.digest(new)} -->"],
    )
    (change,) = korean.changes(book, "page")
    assert "\n- See {eq}`one` and **temperature**.\n" in change and "\n+ See {eq}`one` and **margin**.\n" in change
    translate(book, "# 쪽\n\n{eq}`one` 식과 **마진**.", english=[new])
    assert korean.check(book, ["page"]) == []


def test_sections_of_a_page_without_cells_begin_at_its_headings(book):
    text = "before\n\n# One\n\n```sh\n# no heading\n```\n\n### a\n\n## Two\n"
    book.joinpath("README.md").write_text(text)
    found = korean.english(korean.source(book, "README"))
    assert "".join(found.values()) == text.removeprefix("before\n\n") and [*found] == ["s0", "s1"]


FIGURE = (
    '<figure><svg aria-label="Loss 3 at 0.1" viewBox="0 0 374.4 230">{}'
    '<text style="text-anchor:end" x="1" y="2">0.1</text></svg></figure>'
)
TITLE = '<text style="font-weight:700" transform="translate(50 {})">{}</text>'


def test_outputs_are_said_with_their_numbers_and_a_title_stays_in_its_place():
    title = TITLE.format(10, "At 0.1 the loss") + TITLE.format(23.2, "falls to 3 nats")
    say = Words({"Loss {0} at {1}": "{1}에서 손실 {0}", "At {0} the loss falls to {1} nats": "{0}에서 손실은 {1} nats"})
    page = translate_html(FIGURE.format(title), say)
    assert page == FIGURE.format(TITLE.format(23.2, "0.1에서 손실은 3 nats")).replace("Loss 3 at 0.1", "0.1에서 손실 3")
    assert say.problems == [] and [*say.used] == [*say.known]
    assert say("Loss 3†‡ at 0.1") == "0.1에서 손실 3†‡"
    long = translate_html(FIGURE.format(title), Words({"At {0} the loss falls to {1} nats": "긴 글 {0} {1} " * 6}))
    assert long.count("</text>") == 3  # two lines as before


@pytest.mark.parametrize(
    ("places", "style"),
    [
        ((50, 50), ""),
        ((23.89, 58.26), ' style="text-anchor:end"'),
        ((23.89, 41.08), ' style="text-anchor:middle"'),
    ],
)
def test_a_label_of_several_lines_stays_aligned_as_it_was_and_no_line_gets_much_longer(places, style):
    lines = '<text transform="translate({} 10)">{}</text><text transform="translate({} 22)">{}</text>'
    say = Words({"Add two arrays. reward {0}": "Add two arrays. 보상\u00a0{0}"})
    page = FIGURE.format(lines.format(places[0], "Add two arrays.", places[1], "reward 2"))
    _, one, two, _ = translate_html(page, say).split("<text", 3)
    assert one.startswith(f"{style} transform") and one.endswith(">Add two arrays.</text>")
    assert two.startswith(f"{style} transform") and two.endswith(">보상\u00a02</text>")
    places = {float(part.partition("translate(")[2].partition(" ")[0]) for part in (one, two)}
    assert places == {
        {"": min(places), ' style="text-anchor:end"': 102.44, ' style="text-anchor:middle"': 63.16}[style]
    }


def test_what_is_composed_is_said_by_its_parts():
    known = {"rule {0}": "규칙 {0}", "other": "다른 것", "holds in part": "일부 성립", "shown for": "보인 경우:"}
    known |= {"not shown for": "못 보인 경우:", "control": "대조군", "as random": "무작위", "stays": None}
    say = Words(known)
    page = "<td>holds in part (shown for rule 1 / rule 2; not shown for other),</td><i>control, rule 3: as random</i><b>stays</b>"
    assert translate_html(page, say) == (
        "<td>일부 성립 (보인 경우: 규칙 1 / 규칙 2; 못 보인 경우: 다른 것),</td><i>대조군, 규칙 3: 무작위</i><b>stays</b>"
    )
    assert {*say.used} == {*known}
    slider = '<p data-label="other"><input aria-valuetext="other 0.5"><output>0.5</output></p><script>other</script>'
    assert translate_html(slider, say) == slider.replace('"other', '"다른 것')


def test_words_that_are_missing_unused_too_long_or_lack_a_number_are_named(book):
    write(book, ENGLISH, outputs=[FIGURE.format(TITLE.format(10, "Short 1")), "<p>new</p><p>f_x</p>"])
    known = {"Loss {0} at {1}": "{2}", "Short {0}": "아주 긴 제목 " * 9, "gone": "없음"}
    book.joinpath("ko/outputs/page.json").write_text(json.dumps(known))
    found = korean.compare_words(book, ["page"])
    assert len(found) == 4 and all(line.startswith("ko/outputs/page.json: ") for line in found)
    for line, part in zip(
        found, ("'{2}' must have the numbers", "is too long", "no Korean for 'new'", "'gone'"), strict=True
    ):
        assert part in line
    korean.compare_words(book, ["page"], write=True)
    written = json.loads(book.joinpath("ko/outputs/page.json").read_text(encoding="utf-8"))
    assert [*written.items()][1:] == [("Short {0}", known["Short {0}"]), ("new", "")]


PROGRAM = Path(sys.executable).with_name("jupyter-book")
GITHUB = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "someone/book"}
STRICT = re.search(r"jupyter-book build \. (.*?) &&", ROOT.joinpath("Makefile").read_text())[1].split()


@pytest.fixture
def whole(book):
    """A book of one chapter and one page that stays English, with what builds it."""
    for name in ("_config.yml", "pages"):
        (shutil.copytree if "." not in name else shutil.copy)(ROOT / name, book / name)
    toc = "format: jb-book\nroot: chapters/page\nchapters:\n- file: chapters/other\n"
    book.joinpath("_toc.yml").write_text(toc)
    book.joinpath("chapters/references.bib").write_text("@misc{known, title={A}, author={B, C}, year={2000}}")
    book.joinpath("chapters/other.md").write_text("# Other\n\nSee {ref}`place` and {eq}`one`.\n")
    text = "# A page\n\n$$\na\n$$ (one)\n\n(place)=\n## What it does\n\nSee [this](#why-a-is-it) and **one**.\n\n## Why `a` is it\n\n## Is $b$ it\n"
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(text, id="a")])
    book.joinpath("chapters/page.ipynb").write_text(v4.writes(notebook), encoding="utf-8")
    said = "# 쪽\n\n$$\na\n$$ (one)\n\n(place)=\n## 하는 일\n\n[이것](#why-a-is-it)과 **하나**(one)를 보세요.\n\n## 왜 `a`일까\n\n## $b$일까\n"
    translate(book, said, english=[text])
    return book


def build(book):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "PYTHONPATH"))}
    commands = (
        [sys.executable, "-m", "pages", "edition"],
        [PROGRAM, "build", ".", *STRICT],
        [sys.executable, "-m", "pages", "check"],
    )
    for command in commands:
        run = subprocess.run(command, cwd=book, env={**kept, **GITHUB}, capture_output=True, text=True)
        if run.returncode:
            return run.stdout + run.stderr
    return ""


def test_both_editions_are_built_with_the_same_anchors_and_know_of_each_other(whole):
    found = build(whole)
    assert found == "", found
    pages = {
        language: whole.joinpath(f"_build/html/{folder}chapters/page.html").read_text(encoding="utf-8")
        for language, folder in (("en", ""), ("ko", "ko/"))
    }
    site = "https://someone.github.io/book/"
    for language, page in pages.items():
        assert f'lang="{language}"' in page.partition("<head>")[0]
        for anchor in ("a-page", "what-it-does", "place", "why-a-is-it", "is-b-it"):
            assert f'id="{anchor}"' in page, anchor
        assert 'href="#why-a-is-it"' in page.partition("<article")[2]
        assert f'hreflang="en" href="{site}chapters/page.html"' in page
        assert f'hreflang="ko" href="{site}ko/chapters/page.html"' in page
    assert f'rel="canonical" href="{site}ko/chapters/page.html"' in pages["ko"] and "ko_KR" in pages["ko"]
    assert 'href="../ko/chapters/page.html"' in pages["en"] and 'href="../../chapters/page.html"' in pages["ko"]
    assert (
        "하는 일" in pages["ko"] and "본문으로 건너뛰기" in pages["ko"] and "notebooks/ko/chapters/page" in pages["ko"]
    )
    download = v4.reads(whole.joinpath("_build/html/ko/_sources/chapters/page.ipynb").read_text(encoding="utf-8"))
    assert download.cells[1].source.startswith("# 쪽")
    other = whole.joinpath("_build/html/ko/chapters/other.html").read_text(encoding="utf-8")
    assert '<article role="main" lang="en"' in other and "영어로만" in other and "하는 일" in other
    # and where a Korean page lists it
    assert re.search('<a lang="en" [^>]*href="other.html">Other<', pages["ko"]) and '<a lang="en"' not in pages["en"]


def test_a_translation_that_breaks_a_formula_fails_the_build_and_says_where(whole):
    path = whole / "ko/page.md"
    path.write_text(path.read_text(encoding="utf-8").replace("$b$", "$c$"), encoding="utf-8")
    assert "ko/page.md:1: lost math_inline  b" in build(whole)
