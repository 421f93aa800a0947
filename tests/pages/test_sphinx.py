"""What the build does with a book that is broken, and with downloads, on books of one page."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4, validate

from pages.execute import normalise

ROOT = Path(__file__).parents[2]
GITHUB = {
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "someone/some-book",
    "GITHUB_REF_NAME": "trunk",
}


def build(root, *arguments, **environment):
    """What make book does, or plain `jupyter-book build .`; pages is found by _config.yml alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "PYTHONPATH"))}
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", *arguments]
    return subprocess.run(command, cwd=root, env={**kept, **environment}, capture_output=True, text=True)


STRICT = re.search(r"jupyter-book build \. (.*?) &&", ROOT.joinpath("Makefile").read_text())[1].split()


@pytest.fixture
def book(tmp_path):
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copytree(ROOT / "pages", tmp_path / "pages")
    tmp_path.joinpath("_toc.yml").write_text("format: jb-book\nroot: chapters/page\n")
    chapters = tmp_path / "chapters"
    chapters.mkdir()
    chapters.joinpath("references.bib").write_text("@misc{known, title={A}, author={B, C}, year={2000}}")
    chapters.joinpath("page.md").write_text("# Page\n\nText.\n")
    return tmp_path


def failed_notebook():
    error = v4.new_output("error", ename="ValueError", evalue="k must be at least 1, was 0", traceback=[])
    failed, late = (
        v4.new_code_cell("f()", execution_count=1, outputs=[error]),
        v4.new_code_cell("g()", execution_count=3),
    )
    return v4.writes(v4.new_notebook(cells=[failed, late]))


def test_broken_pages_fail_the_build_each_time_and_are_named_until_they_are_mended(book):
    chapters, contents = book / "chapters", book.joinpath("_toc.yml").read_text()
    book.joinpath("_toc.yml").write_text(f"{contents}chapters:\n- file: chapters/cited\n- file: chapters/failed\n")
    chapters.joinpath("page.md").write_text("# Page\n\nSee [there](nowhere.md), {eq}`nothing` and $a \\unheard{x}$.\n")
    chapters.joinpath("cited.md").write_text("# Cited\n\n{cite:t}`nobody`\n\n```{bibliography}\n```\n")
    chapters.joinpath("failed.ipynb").write_text(failed_notebook())
    for _ in range(2):
        result = build(book, *STRICT)
        assert result.returncode != 0
        lines = (result.stdout + result.stderr).splitlines()
        for named in (
            ("page.md:3", "nowhere.md"),
            ("page.md:3", "nothing"),
            ("page.md:3", r"cannot read the equation a \unheard{x}, at letter 2: Unknown command"),
            ("cited.md:3", "nobody"),
            ("failed.ipynb", "code cell 1 stores an error: ValueError: k must be at least 1, was 0"),
            ("failed.ipynb", "code cell 2 was not run in its place"),
        ):
            assert any("WARNING" in line and all(name in line for name in named) for line in lines), named
    for name in ("cited.md", "failed.ipynb"):
        chapters.joinpath(name).unlink()
    book.joinpath("_toc.yml").write_text(contents)
    chapters.joinpath("page.md").write_text("# Page\n\nText.\n")
    result = build(book, *STRICT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("environment", [GITHUB, {}], ids=["known repository", "unknown repository"])
def test_a_download_says_what_to_install_and_runs_elsewhere(book, tmp_path_factory, environment):
    text = v4.new_markdown_cell("# Page\n\nText.")
    sources = "from mathlib import info_nce", "import torch\ninfo_nce(torch.eye(3), torch.eye(3)).item() < 0.001"
    cells = [v4.new_code_cell(source, execution_count=count) for count, source in enumerate(sources, start=1)]
    book.joinpath("chapters/page.md").unlink()
    notebook = v4.new_notebook(cells=[text, *cells])
    normalise(notebook)
    book.joinpath("chapters/page.ipynb").write_text(v4.writes(notebook), encoding="utf-8")
    result = build(book, *STRICT, **environment)
    assert result.returncode == 0, result.stderr
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
    for mark in ("og:url", 'rel="canonical"', "Repository", "Report a mistake"):
        assert environment or mark not in html, mark

    # pip is not called: the package is there, as a reader's second run finds it
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    NotebookClient(download, resources={"metadata": {"path": str(elsewhere)}}, kernel_name="python3").execute()
    assert rest[-1].outputs[0].data["text/plain"] == "True"
    assert not list(elsewhere.iterdir())


def test_the_plain_command_builds_the_same(book):
    """Without what make book adds, and with nothing but mathlib installed."""
    pages = {}
    for arguments in [], STRICT:
        result = build(book, *arguments)
        assert result.returncode == 0, result.stderr
        html = book / "_build" / "html"
        pages[len(arguments)] = {
            path.relative_to(html): path.read_bytes() for path in html.rglob("*.*") if path.is_file()
        }
        shutil.rmtree(html)
    plain, strict = pages.values()
    assert plain == strict and Path("chapters/page.html") in plain


def test_claims_are_linked_and_their_old_addresses_lead_to_the_lab(book):
    claims = [
        {"label": "claim-new", "was": ["claim-old"], "lab": "page"},
        {"label": "claim-drawn", "was": [], "lab": "page"},
        {"label": "claim-else", "was": [], "lab": "other"},
    ]
    file = book / "mathlib" / "book" / "measured.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"claims": claims}))
    book.joinpath("_toc.yml").write_text(
        "format: jb-book\nroot: chapters/page\nchapters:\n- file: chapters/labs/page\n"
    )
    drawn = '<p id="claim-drawn">Here.</p>'
    book.joinpath("chapters/page.md").write_text(f'# Page\n\n[It](labs/page.ipynb#claim-new "holds").\n\n{drawn}\n')
    book.joinpath("chapters/labs").mkdir()
    book.joinpath("chapters/labs/page.md").write_text("# Lab\n\n(claim-new)=\nIt does.\n")
    result = build(book, *STRICT)
    assert result.returncode == 0, result.stderr
    html = book.joinpath("_build/html/chapters/page.html").read_text(encoding="utf-8")
    assert 'href="labs/page.html#claim-new"' in html
    moved = json.loads(re.search(r"<script>const moved = (.*?)</script>", html)[1])
    assert moved == dict.fromkeys(("claim-new", "claim-old"), "labs/page.html#claim-new")
    lab = book.joinpath("_build/html/chapters/labs/page.html").read_text(encoding="utf-8")
    moved = json.loads(re.search(r"<script>const moved = (.*?)</script>", lab)[1])
    assert moved == {"claim-old": "#claim-new", "claim-drawn": "#claim-drawn"}
