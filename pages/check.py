"""Whether the built book is whole: each page of _toc.yml has a title and text, each link and anchor leads somewhere
and no id stands twice."""

from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from sphinx_external_toc.parsing import parse_toc_yaml


def check(root: Path, output: Path) -> list[str]:
    """What is wrong with the book in output/html: pages missing or empty, dead links, ids that stand twice."""
    html = output / "html"
    if not html.is_dir():
        return [f"{html} does not exist: build the book first"]
    paths = sorted(html.rglob("*.html"))
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}
    anchors = {
        path: {tag[name] for name in ("id", "name") for tag in page.find_all(attrs={name: True})}
        for path, page in pages.items()
    }
    problems = []

    for name in parse_toc_yaml(root / "_toc.yml"):
        page = pages.get(html / f"{name}.html")
        if page is None:
            problems.append(f"{name}.html is in _toc.yml, but was not built")
        elif not title(page):
            problems.append(f"{name}.html has no title heading")
        elif page.article.get_text(strip=True) == page.article.h1.get_text(strip=True):
            problems.append(f"{name}.html has nothing below its title")
    if html / "index.html" not in pages:
        problems.append("index.html, which leads to the first page, was not built")

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


def title(page: BeautifulSoup) -> str:
    """The page's heading, without the sign that links to it."""
    heading = page.select_one("article h1")
    return heading.get_text(strip=True).strip("#¶") if heading else ""
