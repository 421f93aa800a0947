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
