"""Whether the built book is whole: each page of _toc.yml has a title and text, each link and anchor leads somewhere."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx_external_toc.parsing import parse_toc_yaml


class Page(HTMLParser):
    """A page's title heading and text, its anchors and its links."""

    def __init__(self, html: str):
        super().__init__()
        self.title, self.text, self.anchors, self.links, self.open = "", "", set(), set(), []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag in ("article", "h1", "script", "style"):
            self.open.append(tag)
        attributes = {name: value or "" for name, value in attributes}
        self.anchors.update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            self.links.add(attributes["href"])

    def handle_endtag(self, tag):
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, text):
        if self.open[-1:] == ["h1"]:
            self.title += text.strip()
        elif self.open[-1:] == ["article"]:
            self.text += text.strip()


def check(root: Path, output: Path) -> list[str]:
    """What is wrong with the book in output/html: pages that are missing or empty, and dead links."""
    html = output / "html"
    if not html.is_dir():
        return [f"{html} does not exist: build the book first"]
    found = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(html.rglob("*.html"))}
    problems = []

    for name in parse_toc_yaml(root / "_toc.yml"):
        page = found.get(html / f"{name}.html")
        if page is None:
            problems.append(f"{name}.html is in _toc.yml, but was not built")
        elif not page.title.strip("#"):
            problems.append(f"{name}.html has no title heading")
        elif not page.text:
            problems.append(f"{name}.html has nothing below its title")
    if html / "index.html" not in found:
        problems.append("index.html, which leads to the first page, was not built")

    for path, page in found.items():
        name = path.relative_to(html).as_posix()
        for link in sorted(page.links):
            url = urlsplit(link)
            if url.scheme or url.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.exists():
                problems.append(f"{name} links to {link}, which was not built")
            elif url.fragment and target in found and unquote(url.fragment) not in found[target].anchors:
                problems.append(f"{name} links to {link}, but there is no such anchor")
    return problems
