"""What `python -m pages check` finds on books of one page."""

import pytest

from pages.check import check


@pytest.fixture
def book(tmp_path):
    tmp_path.joinpath("_toc.yml").write_text("format: jb-book\nroot: chapters/page\n")
    return tmp_path


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
        ("<article><h1>Title</h1><style>p {}</style></article>", "has nothing below its title"),
        ('<a href="gone.html">x</a>', "links to gone.html"),
        ('<p id="x">x</p><p id="y">y</p><p id="x">z</p>', "has the id x 2 times"),
        ('<a href="#gone">x</a>', "links to #gone, but there is no such anchor"),
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
        '<a href="../chapters/page.html">x</a><a href="mailto:a@a.example">y</a>',
    ],
)
def test_check_lets_links_and_names_pass(book, body):
    write_page(book, "<article><h1>Title</h1>Text</article>" + body)
    assert check(book, book / "_build") == []


def test_check_finds_pages_that_were_not_built(book):
    assert check(book, book / "_build") == [f"{book / '_build' / 'html'} does not exist: build the book first"]
    book.joinpath("_build", "html").mkdir(parents=True)
    assert check(book, book / "_build") == [
        "chapters/page.html is in _toc.yml, but was not built",
        "index.html, which leads to the first page, was not built",
    ]
