"""The book's two editions: the English one at its address and the Korean one below that, at ko/, which is read from the
same notebooks with the words of ko/. Each is built in a process of its own, since translations are a process's."""

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import yaml
from docutils import nodes
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.locale import _
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from pages import korean
from pages.words import translate_output

logger = logging.getLogger(__name__)

TITLE = "임베딩과 정렬의 수학, 실행하며 읽기"
FOLDERS = {"en": "", "ko": "ko/"}  # below the book's address
NAMES = {"en": "English", "ko": "한국어"}
LOCALES = {"en": "en_US", "ko": "ko_KR"}
# A claim's link says in English which case or verdict it quotes.
CLAIM_TITLE = re.compile(r'(\]\([^()\s]*#claim-[^()\s]*) "[^"]*"\)')

# A glossary has its terms in one language: it may be English where what leads there is Korean.
TERM = re.compile(r"\{term\}(`[^`<]*)<[^`]*>`")


def build(root: Path, output: Path) -> list[str]:
    """The Korean edition into output/html/ko: to be called before the English is built, which leads to it."""
    config = yaml.safe_load(root.joinpath("_config.yml").read_text(encoding="utf-8"))
    config["title"] = TITLE
    config["sphinx"]["config"]["language"] = "ko"
    config["sphinx"]["local_extensions"] = {"pages.sphinx": str(root)}  # else it is looked for beside the file
    work = output / "ko"
    work.mkdir(parents=True, exist_ok=True)
    work.joinpath("_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--config", work / "_config.yml", "--path-output", work, "--all", "-W", "--keep-going"]
    if subprocess.run([program, "build", root, *options]).returncode:
        return ["the Korean edition has warnings"]
    shutil.rmtree(output / "html" / "ko", ignore_errors=True)
    shutil.copytree(work / "_build" / "html", output / "html" / "ko")
    return []


def in_korean(root: Path, name: str, text: str) -> str:
    """A page's source with Korean words."""
    cells, say = korean.korean(korean.target(root, name)), korean.words(root)
    said = {
        cell: CLAIM_TITLE.sub(r"\1)", TERM.sub(r"{doc}\1<notation>`", text)) for cell, (_, _, text) in cells.items()
    }
    if not text.startswith("{"):
        from pages import generate  # its libraries take seconds to import

        page = "\n\n".join(said.values())
        return generate.fill(root, name, say, page) if name in korean.PAGES_OF_PAGES else page
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        cell["source"] = said.get(cell["id"], cell["source"])
        for output in cell.get("outputs", []):
            translate_output(output, say)
    return json.dumps(notebook, ensure_ascii=False)


def translate(app, docname, source) -> None:
    """What is complete; the rest stays English, and says so."""
    root, name = Path(app.srcdir), docname.removeprefix("chapters/")
    path = korean.target(root, name)
    if not path.exists():
        return
    for each in [path, *root.glob("ko/outputs/*.json")]:
        app.env.note_dependency(str(each))
    broken, unfinished = korean.compare(root, name)
    for problem in broken:
        logger.warning(problem)
    if not broken and not unfinished:
        english = korean.english(korean.source(root, name), source[0])
        app.env.temp_data["headings"] = [found for text in english.values() for found in headings(text)]
        source[0] = in_korean(root, name, source[0])
        app.env.metadata[docname]["korean"] = True


def headings(text: str) -> list[tuple[str, str]]:
    """What docutils and what a link makes an anchor of."""
    lines = [line for mark, line in pairwise(korean.markdown.parse(text)) if mark.type == "heading_open"]
    words = [[child for child in line.children if child.content] for line in lines]
    return [
        (
            "".join(part.content for part in parts),
            "".join(part.content for part in parts if part.type in ("text", "code_inline")),
        )
        for parts in words
    ]


class Anchors(SphinxTransform):
    """A section's anchor is that of the English heading: what leads there leads there in both editions."""

    default_priority = 5

    def apply(self, **_) -> None:
        headings = self.env.temp_data.pop("headings", [])
        # an exercise's content is a section without a title
        titles = [title for title in self.document.findall(nodes.title) if isinstance(title.parent, nodes.section)]
        slugs = {}
        for title, (text, linked) in zip(titles, headings, strict=bool(headings)):
            section = title.parent
            old, new = section["ids"][0], nodes.make_id(text)
            if new not in self.document.ids:
                section["ids"][0] = new
                self.document.ids[new] = self.document.ids.pop(old)
                for name in [name for name, place in self.document.nameids.items() if place == old]:
                    self.document.nameids[name] = new
            slugs[default_slugify(linked)] = (section.line, section["ids"][0], title.astext())
        getattr(self.document, "myst_slugs", {}).update(slugs)


def add_languages(app, pagename, templatename, context, doctree) -> None:
    here, there = ("ko", "en") if app.config.language == "ko" else ("en", "ko")
    context["locale"] = LOCALES[here]
    context["english"] = (
        here == "ko" and pagename in app.env.found_docs and not app.env.metadata[pagename].get("korean")
    )
    if here == "ko" or Path(app.outdir, "ko").exists():
        up = "../" * (pagename.count("/") + (here == "ko"))
        context["other"] = {"language": there, "name": NAMES[there], "url": f"{up}{FOLDERS[there]}{pagename}.html"}
        if context.get("pageurl"):
            base = app.config.html_baseurl.removesuffix(FOLDERS[here])
            folders = {**FOLDERS, "x-default": ""}
            context["alternates"] = {code: f"{base}{folder}{pagename}.html" for code, folder in folders.items()}
    if here == "ko" and context.get("body"):
        # where a line would end, though the word goes on: 독스트링(docstring)의
        context["body"] = re.sub(r"([)”’%–])(?=[가-힣])", "\\1\N{WORD JOINER}", context["body"])
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = re.sub('(?<="caption-text">)[^<]*', lambda found: _(found[0]), tree)


class SearchKorean(SearchEnglish):
    """Korean glues particles to words and words to each other: any part of two letters or more can be found."""

    lang = "ko"
    language_name = "Korean"
    js_splitter_code = Path(__file__).parent.joinpath("search.js").read_text(encoding="utf-8")

    def split(self, text: str) -> list[str]:
        found = []
        for run in re.findall(r"[가-힣]+|[^가-힣\W]+", text):
            ends = range(2, 9) if run[0] >= "가" else ()
            found += {run, *(run[i : i + n] for n in ends for i in range(len(run) - n + 1))}
        return found


def setup(app) -> dict:
    app.add_search_language(SearchKorean)
    app.add_transform(Anchors)
    app.connect("html-page-context", add_languages, priority=600)  # after the theme's
    if app.config.language == "ko":
        app.connect("source-read", translate, priority=400)  # before what reads the source
    return {"parallel_read_safe": True, "parallel_write_safe": True}
