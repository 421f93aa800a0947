"""The chapters' shape: what holds for each page and notebook, and for every public name."""

import ast
import inspect
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import v4
from sphinx_external_toc.parsing import parse_toc_yaml

import mathlib
from mathlib.book import verdicts
from pages.execute import normalise
from pages.sphinx import CHAPTER_LINE

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
LABS = sorted(CHAPTERS.glob("labs/*.ipynb"))
NOTEBOOKS = [*sorted(CHAPTERS.glob("*.ipynb")), *LABS]
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
PLANNED = (
    "00_cosine_similarity 01_infonce 02_false_negatives 03_hard_negatives 04_dual_encoder 05_dpo 06_gist "
    "07_attention 08_capstone"
).split()
EXCLUDING = {
    *("nbval-skip", "nbval-ignore-output", "nbval-raises-exception", "raises-exception", "skip-execution"),
    *("NBVAL_SKIP", "NBVAL_IGNORE_OUTPUT", "NBVAL_RAISES_EXCEPTION", "PYTEST_VALIDATE_IGNORE_OUTPUT"),
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(CHAPTERS).as_posix())
each_lab = pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
each_name = pytest.mark.parametrize("name", mathlib.__all__)


@cache
def code_cells(path):
    return [cell for cell in v4.reads(path.read_text(encoding="utf-8")).cells if cell.cell_type == "code"]


@cache
def trees(path):
    """The syntax tree of each code cell; %magics become calls, as in IPython."""
    return [ast.parse(TransformerManager().transform_cell(cell.source)) for cell in code_cells(path)]


@cache
def snippets(path):
    """The syntax tree of each code block of the Markdown: tests/peers run what these show of other libraries."""
    return [ast.parse(code) for code in re.findall(r"```python\n(.*?)```", prose(path), re.DOTALL)]


@cache
def prose(path):
    """A page's Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return "\n\n".join(cell.source for cell in v4.reads(text).cells if cell.cell_type == "markdown")


def chapter_line(name):
    """The chapter and the equation's label that the docstring of a public name ends with."""
    last = inspect.getdoc(getattr(mathlib, name)).splitlines()[-1]
    match = CHAPTER_LINE.fullmatch(last)
    assert match, f"mathlib.{name}: the docstring must end with Chapter: STEM (eq. LABEL), was: {last}"
    return match["stem"], match["label"]


# Pages


def test_each_file_is_in_the_table_of_contents_and_each_entry_is_a_file():
    files = [*CHAPTERS.glob("*.ipynb"), *CHAPTERS.glob("*.md"), *LABS]
    assert sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in files) == sorted(PAGES)


@pytest.mark.parametrize("folder", ["chapters", "chapters/labs"])
def test_the_sections_stand_in_the_order_of_the_notes(folder):
    stems = [Path(page).stem for page in PAGES if Path(page).parent.as_posix() == folder]
    sections = [stem for stem in stems if stem[0].isdigit()]
    assert sections == [stem for stem in PLANNED if stem in stems]


@pytest.mark.parametrize("page", ["README.md", "chapters/index.ipynb"])
def test_the_map_names_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:chapters|mathlib|tests)/[\w./]*\w\.(?:ipynb|md|py))\b", text))
    if page == "README.md":
        assert any(path.startswith("chapters/") for path in named)
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


# Notebooks


@each_notebook
def test_it_is_stored_as_execute_stores_it(path):
    """No widget state, no cell's time: a second run on unchanged code leaves no diff."""
    stored = path.read_text(encoding="utf-8")
    notebook = v4.reads(stored)
    normalise(notebook)
    assert stored == v4.writes(notebook).rstrip("\n") + "\n", "run: make notebooks"


@each_notebook
def test_no_code_line_is_cut_at_the_edge_of_the_column(path):
    lines = [line for cell in code_cells(path) for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 75] == []


@each_notebook
def test_few_cells_are_excluded_from_comparison_and_each_is_followed_by_an_assertion(path):
    cells = code_cells(path)
    excluded = []
    for number, cell in enumerate(cells):
        comments = {line.lstrip("# ").strip() for line in cell.source.splitlines() if line.startswith("#")}
        if EXCLUDING & (comments | set(cell.metadata.get("tags", []))):
            excluded.append(number)
    assert len(excluded) <= len(cells) / 5
    for number in excluded:
        asserts = any(
            isinstance(node, ast.Assert) for tree in trees(path)[number + 1 : number + 2] for node in ast.walk(tree)
        )
        assert asserts, f"code cell {number + 1} is excluded, so cell {number + 2} must assert what holds"


@each_notebook
def test_it_redefines_no_public_name(path):
    public = set(mathlib.__all__)
    for number, tree in enumerate(trees(path), start=1):
        bound = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
            elif isinstance(node, ast.Import):
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                ours = (node.module or "").partition(".")[0] == "mathlib"
                # `from mathlib import search as recall_at_k` would be a redefinition as well.
                bound |= {a.asname or a.name for a in node.names if not ours or a.asname not in (None, a.name)}
        assert sorted(bound & public) == [], f"code cell {number}"


# Chapters

# what a page does not show as text: code that is counted by itself, tags, the fences and options of directives
MARKUP = re.compile(r"(?m)```python\n(?s:.*?)```|</?(?:details|summary)[^>]*>|^(?:```(?:\{solution-.*)?|:[\w-]+:.*)$")


@pytest.mark.parametrize("stem", PLANNED)
def test_a_chapter_is_short_and_shows_what_it_says(stem):
    """Words of its text, lines of code in sight, words from one figure to the next; ten questions at its end."""
    notebook = v4.reads((CHAPTERS / f"{stem}.ipynb").read_text(encoding="utf-8"))
    cells = notebook.cells
    words, lines, unseen, beyond, questions, testing, limit = 0, 0, 0, 0, 0, False, 500
    for cell in cells:
        if cell.cell_type == "markdown":
            testing |= "## Check yourself" in cell.source
            limit = 650 if "## Exercises" in cell.source else limit
            questions += cell.source.count('<details class="solution">')
            count = len(MARKUP.sub("", cell.source).split())
            words, unseen = words + count, unseen + count
            beyond = max(beyond, 0 if testing else unseen - limit)
        else:
            unseen = 0 if "<svg" in str(cell.outputs) else unseen
            if not any(tag.startswith("hide-") or tag in ("stub", "solution") for tag in cell.metadata.get("tags", [])):
                lines += sum(bool(line.strip()) for line in cell.source.splitlines())
    assert testing and questions == 10, questions
    assert words <= 2500 and lines <= 120 and beyond == 0, (words, lines, beyond)
    seconds = notebook.metadata["mathlib"]["seconds"]
    assert seconds <= 30, f"{seconds} s: a chapter must run in 15 s, which is 30 on a slow or busy machine"


# Labs


@each_lab
def test_a_lab_is_named_after_its_chapter_leads_to_it_and_hides_no_code(path):
    heading, _, text = prose(path).partition("\n")
    chapter = CHAPTERS / path.name
    assert heading == f"# Lab: {prose(chapter).partition(chr(10))[0].removeprefix('# ')}"
    assert re.search(rf"{{doc}}`[^`]*/chapters/{path.stem}\W", text)
    assert re.search(rf"{{doc}}`[^`]*labs/{path.stem}\W", prose(chapter))
    assert [cell.source for cell in code_cells(path) if cell.metadata] == []


@each_lab
def test_each_claim_of_a_lab_has_a_target_above_it_and_nothing_else_has_one(path):
    targets = re.findall(r"^\((claim-[\w-]+)\)=$", prose(path), re.MULTILINE)
    assert targets == [data["label"] for data in verdicts.stored(path) if "label" in data]
    assert re.findall(r"^\((claim-[\w-]+)\)=$", prose(CHAPTERS / path.name), re.MULTILINE) == []


@each_lab
def test_a_chapter_with_a_lab_measures_nothing_and_states_little(path):
    stored = verdicts.stored(CHAPTERS / path.name)
    assert all("chart" in data for data in stored)
    assert sum(len(data["chart"]) for data in stored) <= 5


# Figures


def unnamed_figures(html):
    """The svg and img elements that a screen reader could not name."""
    found, open_elements = [], []  # open_elements: [tag, is named or hidden]
    void = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

    def start(tag, attributes):
        attributes = {name: value or "" for name, value in attributes}
        name = attributes.get("aria-label") or attributes.get("aria-labelledby") or ""
        named = attributes.get("role") in ("img", "figure") and name.strip()
        fine = named or attributes.get("aria-hidden") == "true" or any(ok for _, ok in open_elements)
        if tag == "img" and not attributes.get("alt", "").strip() and not fine:
            found.append(f"<img src={attributes.get('src', '')[:40]!r}> without alt")
        if tag == "svg" and not fine:
            found.append('<svg> without role="img" and aria-label')
        if tag not in void:
            open_elements.append((tag, bool(fine)))

    def end(tag):
        while open_elements and open_elements.pop()[0] != tag:
            pass

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_endtag = start, end
    parser.handle_startendtag = lambda tag, attributes: (start(tag, attributes), tag in void or end(tag))
    parser.feed(html)
    return found


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<svg role="img" aria-label="a curve"><path/></svg>', 0),
        ('<div role="img" aria-label="frames"><br><svg><g/></svg><svg></svg></div>', 0),
        ('<svg aria-hidden="true"></svg><img src="a.png" alt="a">', 0),
        ('<div role="img" aria-label="one"></div><svg></svg>', 1),
        ('<svg role="img" aria-label=" "></svg><img src="a.png"><img src="b.png" alt="">', 3),
    ],
)
def test_unnamed_figures_are_found(html, count):
    assert len(unnamed_figures(html)) == count


@each_notebook
def test_every_figure_has_a_text(path):
    for number, cell in enumerate(code_cells(path), start=1):
        for output in cell.outputs:
            data = output.get("data", {})
            html = data.get("text/html", "") or data.get("image/svg+xml", "")
            assert unnamed_figures(html) == [], f"code cell {number}"
            bare = {"image/png", "image/jpeg", "image/gif"} & set(data) and "text/html" not in data
            assert not bare, f"code cell {number}: a bare image has no text; use mathlib.book.figures"


@pytest.mark.parametrize("page", PAGES)
def test_every_image_of_the_text_has_an_alternative(page):
    path = next(path for path in ROOT.glob(f"{page}.*") if path.suffix in (".ipynb", ".md"))
    text = prose(path)
    assert re.findall(r"!\[\s*\]\([^)]*\)", text) == []
    assert unnamed_figures(re.sub(r"(?s)```.*?```|`[^`]*`", "", text)) == []
    for directive in re.findall(r"(?s)(?:```|:::)\{(?:figure|image)\}.*?(?:```|:::)", text):
        assert re.search(r"^:alt: \S", directive, re.MULTILINE), directive


# Public names


@each_name
def test_its_docstring_names_its_chapter_and_an_equation_of_it(name):
    stem, label = chapter_line(name)
    assert stem in PLANNED
    if label and (CHAPTERS / f"{stem}.ipynb").exists():
        text = prose(CHAPTERS / f"{stem}.ipynb")
        label = re.escape(label)
        assert re.search(rf"\$\$\s*\({label}\)|^:label: {label}$|\\label\{{{label}\}}", text, re.MULTILINE)


@each_name
def test_it_is_used_in_a_chapter(name):
    stem, _ = chapter_line(name)
    if not (CHAPTERS / f"{stem}.ipynb").exists():
        pytest.skip(f"{stem} is not written yet")
    used = [
        path.stem
        for path in NOTEBOOKS
        for tree in trees(path) + snippets(path)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Attribute) and node.attr == name)
    ]
    assert used


@each_name
def test_it_is_documented(name):
    text = (CHAPTERS / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"auto(function|class):: mathlib\.(\w+\.)?{name}\b", text)
