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
from sphinx.locale import translators
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from pages import korean
from pages.words import translate_output

logger = logging.getLogger(__name__)

TITLE = "임베딩과 정렬의 수학, 실행하며 읽기"
# A claim's link says in English which case or verdict it quotes.
CLAIM_TITLE = re.compile(r'(\]\([^()\s]*#claim-[^()\s]*) "[^"]*"\)')
# A glossary has its terms in one language, and what leads to it may be in the other.
TERM = re.compile(r"\{term\}(`[^`<]*<)[^`]*>`")

# As doctools.js has it, but for the plural, which it makes of a text, and no page runs texts.
TRANSLATIONS = """Documentation.addTranslations = ({ messages }) => {
  Object.assign(Documentation.TRANSLATIONS, messages);
  Documentation.PLURAL_EXPR = () => 0;
};"""


def build(root: Path, output: Path) -> list[str]:
    """The Korean edition into output/html/ko: to be called before the English is built, which leads to it."""
    work, place = output / "ko", output / "html" / "ko"
    config = yaml.safe_load(root.joinpath("_config.yml").read_text(encoding="utf-8")) | {"title": TITLE}
    config["sphinx"]["config"]["language"] = "ko"
    config["sphinx"]["local_extensions"] = {"pages.sphinx": str(root)}  # else it is looked for beside the file
    work.mkdir(parents=True, exist_ok=True)
    work.joinpath("_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    options = ["--config", work / "_config.yml", "--path-output", work, "--all", "-W", "--keep-going"]
    if subprocess.run([Path(sys.executable).with_name("jupyter-book"), "build", root, *options]).returncode:
        return ["the Korean edition has warnings"]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(work / "_build" / "html", place)
    return []


def in_korean(root: Path, name: str, text: str) -> str:
    """A page's source with Korean words."""
    say, cells = korean.words(root), korean.korean(korean.target(root, name))
    said = {cell: CLAIM_TITLE.sub(r"\1)", text) for cell, (_, _, text) in cells.items()}
    if name in korean.GENERATED:
        from pages import generate  # its libraries take seconds to import

        return generate.fill(root, name, say, "\n\n".join(said.values()))
    if not text.startswith("{"):
        return "\n\n".join(said.values())
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
    broken, unfinished = korean.compare(root, name) if path.exists() else ([], ["all"])
    for problem in broken:
        logger.warning(problem)
    if not broken and not unfinished:
        for each in [path, *root.glob("ko/outputs/*.json")]:
            app.env.note_dependency(str(each))
        english = "\n\n".join(korean.english(korean.source(root, name), source[0]).values())
        marks = pairwise(korean.markdown.parse(english))
        app.env.temp_data["headings"] = [line.children for mark, line in marks if mark.type == "heading_open"]
        source[0] = in_korean(root, name, source[0])
        app.env.metadata[docname]["korean"] = True
    source[0] = TERM.sub(r"{doc}\1/chapters/notation>`", source[0])


class Anchors(SphinxTransform):
    """A section's anchor is that of the English heading: what leads there leads there in both editions."""

    default_priority = 5

    def apply(self, **_) -> None:
        headings = self.env.temp_data.pop("headings", [])
        # an exercise's content is a section without a title
        titles = [title for title in self.document.findall(nodes.title) if isinstance(title.parent, nodes.section)]
        for title, parts in zip(titles, headings, strict=bool(headings)):
            old, new = title.parent["ids"][0], nodes.make_id("".join(part.content for part in parts))
            if new not in self.document.ids:
                title.parent["ids"][0] = new
                self.document.ids[new] = self.document.ids.pop(old)
                names = self.document.nameids
                names.update({name: new for name, place in names.items() if place == old})
            slug = default_slugify("".join(part.content for part in parts if part.type in ("text", "code_inline")))
            self.document.myst_slugs[slug] = (title.line, title.parent["ids"][0], title.astext())


class SearchKorean(SearchEnglish):
    """Korean glues particles to words and words to each other: any part of two letters or more can be found."""

    lang = "ko"
    language_name = "Korean"
    js_splitter_code = Path(__file__).parent.joinpath("search.js").read_text(encoding="utf-8")

    def split(self, text: str) -> list[str]:
        runs = re.findall(r"[가-힣]+|[^가-힣\W]+", text)
        parts = (run[i : i + n] for run in runs if run[0] >= "가" for n in range(2, 9) for i in range(len(run) - n + 1))
        return [*runs, *parts]


def setup(app) -> dict:
    app.add_search_language(SearchKorean)
    if app.config.language == "ko":
        translators["general", "exercise"]._catalog |= {"Exercise": "연습 문제", "Solution to": "풀이:"}
        app.add_transform(Anchors)
        app.add_js_file(None, body=TRANSLATIONS, priority=300)  # after doctools.js, before the translations
        app.connect("source-read", translate, priority=400)  # before what reads the source
    return {"parallel_read_safe": True, "parallel_write_safe": True}
