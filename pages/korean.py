"""The Korean edition is the English one with other words: `python -m pages korean` lists where the two do not agree.

`ko/NAME.md` holds the Korean of a page's Markdown cells, each under `<!-- ID DIGEST -->`: the cell's id, and a digest
of the English that it says. A page without cells has sections, s0, s1, ..., each from a heading of level 1 or 2 to the
next. `ko/outputs/NAME.json` has the words of the page's figures, charts and tables, `common.json` those of several.
"""

import difflib
import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from pages.words import NUMBER, Words, translate_output

ENGLISH = {"api", "references"}  # they stay so, beside the labs
PAGES_OF_PAGES = {"evidence", "status"}  # they say what others do
COMMON = "common"

MARK = re.compile(r"^<!-- ([\w-]+) ([0-9a-f]{8}) -->\n", re.MULTILINE)
SILENT = re.compile(r"(```+)\{solution-(?:start|end)\}[^`]*\1\s*")
SECTION = re.compile(r"^(```+|:::+).*?^\1$|^#{1,2} ", re.MULTILINE | re.DOTALL)  # a comment in code is no heading
DIRECTIVE = re.compile(r"\{([\w:-]+)\} *(.*)")
OPTION = re.compile(r"^:[\w-]+:.*$", re.MULTILINE)
LITERAL = {"bibliography", "eval-rst", "math"}
# What is said within formulas, by tags, in templates, and in the comments of code.
SAID = re.compile(r'(?<=text)\{[^{}]*\}|\b(?:alt|aria-label|placeholder|title)="[^"]*"|(?<=[ (])"[^"]*"')
COMMENT = re.compile(r"(?:^|  +)# .*$", re.MULTILINE)
TAG = re.compile(r"<[^>]*>|\{%.*?%\}")

EQUATION = re.compile(r"\{(?:eq|numref)\}`[^`]+`[가-힣]")
BOTH = re.compile(r"[은는이가을를과와]\([은는이가을를과와]\)")
# A number, or a formula of one letter, and a particle, which depends on whether it is read with a vowel at its end.
READ = re.compile(r"([\d%]|\$[A-Za-z]\$)(은|는|이|가|을|를|과|와|으로|로)(?![가-힣])")
VOWEL, L_OR_R, OTHER = ("는가를와로", "은이을과로", "은이을과으로")

extensions = {"amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "substitution"}
markdown = create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML)


class Cell(NamedTuple):
    line: int
    digest: str
    text: str


class Found(NamedTuple):
    broken: list[str]  # no build will have it
    unfinished: list[str]  # until then the page is shown in English


def digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:8]


def source(root: Path, name: str) -> Path:
    """Where the English is written."""
    places = f"chapters/{name}.ipynb", f"pages/_templates/{name}.md", f"chapters/{name}.md", f"{name}.md"
    return next((root / place for place in places if root.joinpath(place).exists()), root / places[-1])


def target(root: Path, name: str) -> Path:
    return root / ("README.ko.md" if name == "README" else f"ko/{name}.md")


def pages(root: Path) -> list[str]:
    """What there is to say in Korean."""
    paths = [path for pattern in ("chapters/*.ipynb", "chapters/*.md", "ko/*.md") for path in root.glob(pattern)]
    return [*sorted({path.stem for path in paths} - ENGLISH), "README"]


def english(path: Path, text: str = "") -> dict[str, str]:
    """The cells or sections that say something, by id, as the file has them or once had."""
    text = text or path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        found = {cell["id"]: "".join(cell["source"]) for cell in cells}
        return {name: said for name, said in found.items() if SILENT.sub("", said).strip()}
    starts = [found.start() for found in SECTION.finditer(text) if not found[1]]
    ends = [*starts[1:], len(text)] if starts else []
    return {f"s{n}": text[start:end] for n, (start, end) in enumerate(zip(starts, ends, strict=True))}


def korean(path: Path) -> dict[str, Cell]:
    raw = path.read_bytes() if path.exists() else b""
    try:
        parts = MARK.split(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f":{line}: must be UTF-8, {error.reason}") from None
    cells: dict[str, Cell] = {}
    line = 1 + parts[0].count("\n")
    for name, made, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name in cells:
            raise ValueError(f":{line}: {name} must stand once")
        cells[name] = Cell(line, made, text.strip())
        line += 1 + text.count("\n")
    return cells


def compare(root: Path, name: str) -> Found:
    """What is wrong with a page's Korean; each line begins with its place."""
    ours, broken, unfinished = english(source(root, name)), [], []
    path = target(root, name)
    where = path.relative_to(root).as_posix()
    try:
        theirs = korean(path)
    except ValueError as error:
        return Found([f"{where}{error}"], [])
    for cell, said in ours.items():
        if cell not in theirs or not theirs[cell].text:
            unfinished.append(
                f"{where}: the Korean is missing: <!-- {cell} {digest(said)} --> {' '.join(said.split())[:60]}"
            )
    for cell, (line, made, text) in theirs.items():
        if cell not in ours:
            broken.append(f"{where}:{line}: {source(root, name).name} has no cell {cell}")
            continue
        now = digest(ours[cell])
        if made != now:
            unfinished.append(
                f"{where}:{line}: the English has changed; once this says it, write <!-- {cell} {now} -->"
            )
        odd = [*differences(ours[cell], text), *traps(ours[cell], text)] if text else []
        (broken if made == now else unfinished).extend(f"{where}:{line}: {each}" for each in odd)
    if [cell for cell in theirs if cell in ours] != [cell for cell in ours if cell in theirs]:
        broken.append(f"{where}: its cells must stand in the order of the English, {', '.join(ours)}")
    return Found(broken, unfinished)


def differences(ours: str, theirs: str) -> Iterator[str]:
    before, after = Counter(kept(ours)), Counter(kept(theirs))
    yield from (f"lost {each}" for each in (before - after).elements())
    # a number may be a word in English
    yield from (f"the English has no {each}" for each in (after - before).elements() if not each.startswith("number"))


def kept(text: str) -> Iterator[str]:
    """What is the same in every language."""
    headings, numbers = 0, set()
    for token in tokens(text):
        said = " ".join((COMMENT if token.type == "fence" else SAID).sub("", token.content).split())
        match token.type.partition("_")[0]:
            case "heading" if token.nesting == 1:
                headings += 1
                yield f"heading {headings} of level {token.tag[1]}"
            case "math" | "amsmath":
                yield f"${said.replace(' ', '')}$ {token.info}"
            case "fence" | "colon":
                yield f"{token.markup}{token.info} {said}"
            case "directive":
                yield f"{{{token.info}}}"
                yield from OPTION.findall(token.content)
            case "myst" if token.meta:  # a role; its text may be said
                yield f"{{{token.meta['name']}}}`{said.rpartition('<')[2].strip('>')}`"
            case "myst" | "code" | "substitution":
                yield f"{token.type} {said}"
            case "link" if token.content:
                yield f"link to {token.attrs}, {NUMBER.findall(said)}"
            case "image":
                yield f"image {token.attrs['src']}"
            case "html":
                yield from TAG.findall(said)
            case "text":
                yield from TAG.findall(said)
                numbers |= {*re.findall(r"\d+(?:[.,]\d+)*", said)}
    yield from (f"number {number}" for number in numbers)


def tokens(text: str) -> Iterator[Token]:
    """The parts of a text, with those of its directives and its lines; a link's content is what it says."""
    for token in markdown.parse(text):
        if token.type.endswith("fence") and (found := DIRECTIVE.fullmatch(token.info)) and found[1] not in LITERAL:
            yield Token("directive", "", 0, info=found[1], content=token.content)
            yield from tokens(f"{found[2]}\n\n{OPTION.sub('', token.content)}")
        else:
            yield token
        link = None
        for child in token.children or []:
            if child.type in {"link_open", "link_close"}:
                link = child if child.type == "link_open" else None
            elif link:
                link.content += child.content or " "
        yield from token.children or []


def traps(ours: str, theirs: str) -> Iterator[str]:
    """What Markdown or a reader makes of the Korean that its author did not see."""
    before, after = ("".join(part.content for part in tokens(text) if part.type == "text") for text in (ours, theirs))
    if after.count("*") > before.count("*"):
        yield f"asterisks will show, {after[after.index('*') :][:20]!r}: write **온도**(temperature)는"
    yield from (f"{odd} will show: write *...*" for odd in re.findall(r"_\S*_[가-힣]", after))
    yield from (f"{odd}: its particle depends on a number: write 식 before it" for odd in EQUATION.findall(theirs))
    yield from (f"{odd}: write the one that is read" for odd in BOTH.findall(theirs))
    for read, particle in READ.findall(theirs):
        last = read.strip("$").upper()
        if particle not in (L_OR_R if last in "178LR" else OTHER if last in "036MN" else VOWEL):
            yield f"{read}{particle}: write the particle that is read, or a noun before it"


def outputs(root: Path) -> dict[str, dict[str, str | None]]:
    """The words of outputs, by page."""
    found = {}
    for path in sorted(root.glob("ko/outputs/*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # as one that is not UTF-8 is
            raise ValueError(f"{path.relative_to(root).as_posix()}: {error}") from None
    return found


def words(root: Path, name: str) -> Words:
    found = outputs(root)
    others = found if name in PAGES_OF_PAGES else ()
    return Words({text: korean for each in (*others, COMMON, name) for text, korean in found.get(each, {}).items()})


def say_all(root: Path) -> dict[str, Words]:
    """What each page's outputs say."""
    said = {}
    for name in pages(root):
        path, said[name] = source(root, name), words(root, name)
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if path.suffix == ".ipynb" else []:
            for output in cell.get("outputs", []):
                translate_output(output, said[name])
    return said


def assign(said: dict[str, Words]) -> dict[str, dict[str, str | None]]:
    """What is said, by the file in which it should stand."""
    times = Counter(text for name, say in said.items() if name not in PAGES_OF_PAGES for text in say.used)
    files: dict[str, dict[str, str | None]] = {COMMON: {text: None for text, count in times.items() if count > 1}}
    for name, say in said.items():
        files[name] = {text: None for text in say.used if times[text] == (name not in PAGES_OF_PAGES)}
    return files


def compare_words(root: Path, names: list[str]) -> list[str]:
    """What has no Korean, or is no longer said."""
    has, said = outputs(root), say_all(root)
    lines = [f"ko/outputs/{name}.json: {odd}" for name in said if name in names for odd in said[name].problems]
    for name, wanted in assign(said).items():
        if name in names:
            have, where = has.get(name, {}), f"ko/outputs/{name}.json"
            lines += [f"{where}: no Korean for {text!r}" for text in wanted if have.get(text, "") == ""]
            lines += [f"{where}: nothing says {text!r}" for text in have if text not in wanted]
    return lines


def write_words(root: Path, names: list[str]) -> None:
    """Files with all that is said, in its order, and "" for what has no Korean yet."""
    root.joinpath("ko/outputs").mkdir(parents=True, exist_ok=True)
    has = {text: korean for file in outputs(root).values() for text, korean in file.items()}
    for name, wanted in assign(say_all(root)).items():
        if name in names and wanted:
            file = json.dumps({text: has.get(text, "") for text in wanted}, indent=1, ensure_ascii=False)
            root.joinpath(f"ko/outputs/{name}.json").write_text(f"{file}\n", encoding="utf-8", newline="\n")


def check(root: Path, names: list[str]) -> list[str]:
    """All that is wrong, each line with its place."""
    found: list[str] = []
    for name in names or pages(root):
        broken, unfinished = compare(root, name)
        found += [*broken, *unfinished, *changes(root, name)] if name != COMMON else []
    return found + compare_words(root, names or [*pages(root), COMMON])


def changes(root: Path, name: str) -> Iterator[str]:
    """How the English of stale cells changed since it was said in Korean, out of git's history."""
    path, theirs = source(root, name), korean(target(root, name))
    stale = {
        cell: said for cell, said in english(path).items() if cell in theirs and theirs[cell].digest != digest(said)
    }
    for commit in git(root, "log", "--format=%h", "--", str(path)).split() if stale else []:
        old = english(path, git(root, "show", f"{commit}:{path.relative_to(root).as_posix()}"))
        for cell in [cell for cell in stale if digest(old.get(cell, "")) == theirs[cell].digest]:
            lines = difflib.ndiff(old[cell].splitlines(), stale.pop(cell).splitlines())
            yield "\n".join(
                [f"{path.name}, {cell}, since {commit}:", *(line.rstrip() for line in lines if line[0] != " ")]
            )


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=True).stdout
