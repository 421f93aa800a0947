"""What python -m mathlib.book does with a book that is broken, on books of one page."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4, validate

from mathlib.book.__main__ import check, execute, execute_notebook, normalise

ROOT = Path(__file__).parents[2]
GITHUB = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "someone/some-book",
    "GITHUB_REF_NAME": "trunk",
}


def run(root, *arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    return subprocess.run(
        [sys.executable, "-m", "mathlib.book", *arguments],
        cwd=root,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def book(tmp_path):
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copytree(ROOT / "_static", tmp_path / "_static")
    tmp_path.joinpath("_toc.yml").write_text("format: jb-book\nroot: chapters/page\n")
    chapters = tmp_path / "chapters"
    chapters.mkdir()
    chapters.joinpath("references.bib").write_text("@misc{known, title={A}, author={B, C}, year={2000}}")
    chapters.joinpath("page.md").write_text("# Page\n\nText.\n")
    return tmp_path


def failed_notebook():
    error = v4.new_output("error", ename="ValueError", evalue="k must be at least 1, was 0", traceback=[])
    return v4.writes(v4.new_notebook(cells=[v4.new_code_cell("f()", execution_count=1, outputs=[error])]))


# Building


def test_broken_pages_fail_the_build_each_time_and_are_named_until_they_are_mended(book):
    chapters, contents = book / "chapters", book.joinpath("_toc.yml").read_text()
    book.joinpath("_toc.yml").write_text(f"{contents}chapters:\n- file: chapters/cited\n- file: chapters/failed\n")
    chapters.joinpath("page.md").write_text("# Page\n\nSee [there](nowhere.md) and {eq}`nothing`.\n")
    chapters.joinpath("cited.md").write_text("# Cited\n\n{cite:t}`nobody`\n\n```{bibliography}\n```\n")
    chapters.joinpath("failed.ipynb").write_text(failed_notebook())
    for _ in range(2):
        result = run(book, "build")
        assert result.returncode != 0
        lines = (result.stdout + result.stderr).splitlines()
        for named in (
            ("page.md:3", "nowhere.md"),
            ("page.md:3", "nothing"),
            ("cited.md:3", "nobody"),
            ("failed.ipynb: code cell 1", "k must be at least 1, was 0"),
        ):
            assert any("WARNING" in line and all(name in line for name in named) for line in lines), named
    for name in ("cited.md", "failed.ipynb"):
        chapters.joinpath(name).unlink()
    book.joinpath("_toc.yml").write_text(contents)
    chapters.joinpath("page.md").write_text("# Page\n\nText.\n")
    result = run(book, "build")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("environment", [GITHUB, {}], ids=["known repository", "unknown repository"])
def test_a_download_says_what_to_install_and_runs_elsewhere(book, tmp_path_factory, environment):
    text = v4.new_markdown_cell("# Page\n\nText.")
    sources = "from mathlib import info_nce", "import torch\ninfo_nce(torch.eye(3), torch.eye(3)).item() < 0.001"
    cells = [v4.new_code_cell(source, execution_count=1) for source in sources]
    book.joinpath("chapters/page.md").unlink()
    notebook = v4.new_notebook(cells=[text, *cells])
    normalise(notebook)
    book.joinpath("chapters/page.ipynb").write_text(v4.writes(notebook), encoding="utf-8")
    style = book / "_static" / "book.css"
    for change in ["", "", "/* mine */"] if environment else [""]:  # a second build leaves the page as it is
        style.write_text(style.read_text() + change)
        result = run(book, "build", **environment)
        assert result.returncode == 0, result.stderr
        assert (book / "_build/html/_static/book.css").read_text() == style.read_text()
    html = book.joinpath("_build/html/chapters/page.html").read_text(encoding="utf-8")
    served = re.search(r'href="([^"]*_sources/[^"]*page\.ipynb)"', html)[1]
    download = v4.reads((book / "_build/html/chapters" / served).read_text(encoding="utf-8"))
    validate(download)
    first, *rest = download.cells
    assert [cell.source for cell in rest] == [text.source, *sources]
    assert "mathlib-book[book] @ git+https://github.com/someone/some-book" in first.source or not environment
    assert "[book]" in first.source and first.source.startswith("# ")
    for address in (
        'href="https://github.com/someone/some-book"',
        "https://github.com/someone/some-book/issues/new",
        'content="https://someone.github.io/some-book/chapters/page.html"',
        "Colab",
        "Binder",
    ):
        assert (address in html) == bool(environment), address

    # pip is not called: the package is there, as a reader's second run finds it
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    NotebookClient(download, resources={"metadata": {"path": str(elsewhere)}}, kernel_name="python3").execute()
    assert rest[-1].outputs[0].data["text/plain"] == "True"
    assert not list(elsewhere.iterdir())


def test_it_says_in_which_folder_to_run_it(tmp_path):
    result = run(tmp_path, "build")
    assert result.returncode != 0
    assert f"_toc.yml must be in the current folder, was not in {tmp_path}" in result.stderr


# Checking


def write_page(book, body):
    html = book / "_build" / "html"
    html.joinpath("chapters").mkdir(parents=True, exist_ok=True)
    html.joinpath("index.html").write_text("")
    html.joinpath("chapters", "page.html").write_text(body)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<article></article>", "has no title heading"),
        ("<article><h1>Title<a>#</a></h1></article>", "has nothing below its title"),
        ('<a href="gone.html">x</a>', "links to gone.html"),
        ('<a href="#gone">x</a>', "links to #gone, but there is no such anchor"),
        ('<script src="https://a.example/b.js"></script>', "loads https://a.example/b.js"),
        ('<link rel="stylesheet" href="//a.example/b.css">', "loads //a.example/b.css"),
        ('<img srcset="c.png 1x, https://a.example/b.png 2x">', "loads https://a.example/b.png"),
        ('<iframe src="https://a.example/"></iframe>', "loads https://a.example/"),
        ('<object data="https://a.example/b"></object>', "loads https://a.example/b"),
        ('<video><source src="https://a.example/b"></video>', "loads https://a.example/b"),
        ("<style>@import 'https://a.example/b.css'</style>", "loads https://a.example/b.css"),
        ('<p style="background: url(https://a.example/b)">', "loads https://a.example/b"),
        ('<svg><use href="https://a.example/b#c"/></svg>', "loads https://a.example/b#c"),
        ('<script>fetch("https://a.example/b")</script>', "loads https://a.example/b"),
        ('<script type="module">import x from "https://a.example/b"</script>', "loads https://a.example/b"),
    ],
)
def test_check_names_the_page_and_what_is_wrong(book, body, problem):
    write_page(book, "<article><h1>Title</h1>Text</article>" * (not body.startswith("<article>")) + body)
    problems = check(book, book / "_build")
    assert len(problems) == 1
    assert problems[0].startswith("chapters/page.html ") and problem in problems[0]


@pytest.mark.parametrize(
    "body",
    [
        '<a href="https://a.example/">x</a><a href="page.html#x" id="x">y</a><a href="#">z</a>',
        '<link rel="canonical" href="https://a.example/">',
        '<script>const home = "https://a.example/"</script>',
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    ],
)
def test_check_lets_links_and_names_pass(book, body):
    write_page(book, "<article><h1>Title</h1>Text</article>" + body)
    assert check(book, book / "_build") == []


def test_check_finds_pages_that_were_not_built_and_loads_of_styles_and_scripts(book):
    html = book / "_build" / "html"
    html.mkdir(parents=True)
    html.joinpath("a.css").write_text("@font-face { src: url(https://a.example/b.woff2) }")
    html.joinpath("a.js").write_text('import("https://a.example/c.js")')
    assert check(book, book / "_build") == [
        "chapters/page.html is in _toc.yml, but was not built",
        "index.html, which leads to the first page, was not built",
        "a.css loads https://a.example/b.woff2",
        "a.js loads https://a.example/c.js",
    ]


# Executing


def write_notebook(book, *sources):
    path = book / "chapters" / "page.ipynb"
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])))
    return path


def test_a_second_run_leaves_no_diff_and_names_what_changed(book, capsys):
    path = write_notebook(book, "import os\nprint(os.path.basename(os.getcwd()))", "print(1, flush=True)\nprint(2)")
    assert execute_notebook(path) is None
    first = path.read_text(encoding="utf-8")
    outputs = [cell["outputs"] for cell in json.loads(first)["cells"]]
    assert [output["text"] for (output,) in outputs] == [["chapters\n"], ["1\n", "2\n"]]
    assert "code cell 1 changed: import os" in capsys.readouterr().out

    assert execute_notebook(path) is None
    assert path.read_text(encoding="utf-8") == first
    assert "changed" not in capsys.readouterr().out


def test_a_run_is_dated_anew_only_when_code_or_output_changed(book):
    path = write_notebook(book, "print(6 * 7)")
    old = {"executed": "2020-02-02", "seconds": 0.1, "versions": {"Python": "3.9.1"}}

    def executed(change):
        notebook = v4.reads(path.read_text(encoding="utf-8"))
        notebook.metadata["mathlib"] |= old
        change(notebook.cells[0])
        path.write_text(v4.writes(notebook))
        assert execute_notebook(path) is None
        return json.loads(path.read_text(encoding="utf-8"))["metadata"]["mathlib"]

    assert execute_notebook(path) is None
    assert executed(lambda cell: None) == old | {"code": executed(lambda cell: None)["code"]}
    for change in (lambda cell: cell.update(source="print(42)"), lambda cell: cell.outputs[0].update(text="41\n")):
        found = executed(change)
        assert found["executed"] > "2025" and found["seconds"] != 0.1
        assert found["versions"]["Python"] == platform.python_version()


def test_a_cell_that_fails_is_named_and_the_file_left_as_it_was(book):
    path = write_notebook(book, "x = 1", "x / 0")
    before = path.read_text(encoding="utf-8")
    problem = execute_notebook(path)
    assert problem.startswith(f"{path}: code cell 2 failed") and "ZeroDivisionError" in problem
    assert path.read_text(encoding="utf-8") == before


def test_an_unknown_chapter_is_named(book):
    write_notebook(book, "x = 1")
    assert execute(book, ["99_nothing"]) == ["a chapter must be one of page, was 99_nothing"]
