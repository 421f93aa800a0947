"""Whether the built book is whole: each page of _toc.yml has a title and text, each link and anchor leads somewhere
and no id stands twice."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from sphinx_external_toc.parsing import parse_toc_yaml

DENSE = re.compile(r"<(svg|math|pre)\b.*?</\1>", re.DOTALL)
ID = re.compile(r' id="[^"]*"')


def check(root: Path, output: Path) -> list[str]:
    """What is wrong with the book in output/html: pages missing or empty, dead links, ids that stand twice."""
    html = output / "html"
    if not html.is_dir():
        return [f"{html} does not exist: build the book first"]
    paths = sorted(html.rglob("*.html"))
    pages = {path: read(path) for path in paths}
    anchors = {
        path: {tag[name] for name in ("id", "name") for tag in page.find_all(attrs={name: True})}
        for path, page in pages.items()
    }
    problems = []

    folders = ["", "ko/"] if html.joinpath("ko").exists() else [""]
    for name in [f"{folder}{name}" for folder in folders for name in parse_toc_yaml(root / "_toc.yml")]:
        page = pages.get(html / f"{name}.html")
        if page is None:
            problems.append(f"{name}.html is in _toc.yml, but was not built")
        elif not title(page):
            problems.append(f"{name}.html has no title heading")
        elif page.article.get_text(strip=True) == page.article.h1.get_text(strip=True):
            problems.append(f"{name}.html has nothing below its title")
    if html / "index.html" not in pages:
        problems.append("index.html, which leads to the first page, was not built")

    for path in html.glob("chapters/**/*.html"):
        same = html / "ko" / path.relative_to(html)
        for lost in sorted(anchors[path] - anchors.get(same, anchors[path])):
            if not re.fullmatch(r"id\d+", lost):  # numbered in the order of the sentences
                problems.append(f"{same.relative_to(html).as_posix()} has no anchor {lost}, which the English page has")

    for path, page in pages.items():
        name = path.relative_to(html).as_posix()
        ids = Counter(tag["id"] for tag in page.find_all(id=True))
        problems += [f"{name} has the id {each} {count} times" for each, count in ids.items() if count > 1]
        for link in sorted({tag["href"] for tag in page.find_all("a", href=True)}):
            url = urlsplit(link)
            if url.scheme or url.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.exists():
                problems.append(f"{name} links to {link}, which was not built")
            elif url.fragment and target in anchors and unquote(url.fragment) not in anchors[target]:
                problems.append(f"{name} links to {link}, but there is no such anchor")
    return problems


def read(path: Path) -> BeautifulSoup:
    """A page, of whose figures, formulas and code, which hold most of its tags, only the anchors are left."""
    text = path.read_text(encoding="utf-8")
    text = DENSE.sub(lambda found: "".join(f"<i{each}></i>" for each in ID.findall(found[0])), text)
    return BeautifulSoup(text, "html.parser")


def title(page: BeautifulSoup) -> str:
    """The page's heading, without the sign that links to it."""
    heading = page.select_one("article h1")
    return heading.get_text(strip=True).strip("#¶") if heading else ""
