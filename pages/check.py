"""Whether the built book is whole: every page of _toc.yml, every link and anchor, and nothing loaded from outside."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx_external_toc.parsing import parse_toc_yaml

# <link rel="canonical"> and the like name a page, but load nothing.
LOADING_RELS = {"stylesheet", "icon", "apple-touch-icon", "mask-icon", "manifest", "preload", "prefetch"}
LOADING_RELS |= {"modulepreload", "preconnect", "dns-prefetch"}
LOADED_ATTRIBUTES = {
    "src": None,
    "srcset": None,
    "imagesrcset": None,
    "poster": None,
    "background": None,
    "data": {"object"},
    "href": {"link", "use", "image", "feimage"},
    "xlink:href": {"use", "image", "feimage"},
}
ABSOLUTE = re.compile(r"\s*(https?:|ftp:|wss?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
# What a script loads by a literal address; one put together at run time needs a browser to see.
IN_QUOTES = re.compile(r"""["'`]((?:https?:)?//[^"'`\s]+)""")
LOADING_CODE = re.compile(
    r"""(\b(import|from)\s*\(?|\b(fetch|importScripts|Worker)\s*\(|\.open\s*\(\s*["']\w+["']\s*,"""
    r"""|\.(src|href)\s*=)\s*$"""
)


def loads_in_script(script: str) -> set[str]:
    matches = IN_QUOTES.finditer(script)
    return {m[1] for m in matches if LOADING_CODE.search(script[max(0, m.start() - 40) : m.start()])}


def loads_in_style(style: str) -> set[str]:
    return set(IN_STYLE.findall(style))


def scan(html: str) -> dict:
    """One page: its title heading, text, anchors, links, and the absolute addresses that it loads."""
    page = {"title": "", "text": 0, "ids": set(), "links": set(), "loads": set()}
    open_tags = []  # those of interest only: article, h1, script, style

    def start(tag, attributes):
        if tag in ("article", "h1", "script", "style"):
            open_tags.append(tag)
        attributes = {name: value or "" for name, value in attributes}
        page["ids"].update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            page["links"].add(attributes["href"])
        for name, value in attributes.items():
            if name == "style":
                page["loads"].update(loads_in_style(value))
            if name not in LOADED_ATTRIBUTES or tag not in (LOADED_ATTRIBUTES[name] or {tag}):
                continue
            if tag == "link" and not LOADING_RELS & set(attributes.get("rel", "").lower().split()):
                continue
            addresses = value.split(",") if name.endswith("srcset") else [value]
            page["loads"].update(part.split()[0] for part in addresses if ABSOLUTE.match(part))

    def end(tag):
        if tag in open_tags:
            del open_tags[len(open_tags) - 1 - open_tags[::-1].index(tag) :]

    def data(text):
        if "script" in open_tags:
            page["loads"].update(loads_in_script(text))
        elif "style" in open_tags:
            page["loads"].update(loads_in_style(text))
        elif "h1" in open_tags:
            page["title"] += text.strip()
        elif "article" in open_tags:
            page["text"] += len(text.strip())

    parser = HTMLParser()
    parser.handle_starttag, parser.handle_endtag, parser.handle_data = start, end, data
    parser.feed(html)
    parser.close()
    return page


def check(root: Path, output: Path) -> list[str]:
    """What is wrong with the built book: pages missing or empty, dead links, loads from outside."""
    html = output / "html"
    if not html.is_dir():
        return [f"{html} does not exist: build the book first"]
    found = {path: scan(path.read_text(encoding="utf-8")) for path in sorted(html.rglob("*.html"))}
    problems = []

    for name in parse_toc_yaml(root / "_toc.yml"):
        page = found.get(html / f"{name}.html")
        if page is None:
            problems.append(f"{name}.html is in _toc.yml, but was not built")
        elif not page["title"].strip("#"):
            problems.append(f"{name}.html has no title heading")
        elif not page["text"]:
            problems.append(f"{name}.html has nothing below its title")
    if html / "index.html" not in found:
        problems.append("index.html, which leads to the first page, was not built")

    for path, page in found.items():
        name = path.relative_to(html).as_posix()
        problems += [f"{name} loads {url}" for url in sorted(page["loads"])]
        for link in sorted(page["links"]):
            url = urlsplit(link)
            if url.scheme or url.netloc or link in ("", "#"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.exists():
                problems.append(f"{name} links to {link}, which was not built")
            elif url.fragment and target in found and unquote(url.fragment) not in found[target]["ids"]:
                problems.append(f"{name} links to {link}, but there is no such anchor")

    for suffix, loads in ((".css", loads_in_style), (".svg", loads_in_style), (".js", loads_in_script)):
        for path in sorted(html.rglob(f"*{suffix}")):
            name = path.relative_to(html).as_posix()
            text = path.read_text(encoding="utf-8", errors="replace")
            problems += [f"{name} loads {url}" for url in sorted(loads(text))]
    return problems
