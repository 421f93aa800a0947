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

from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from pages.words import NUMBER, Words, translate_output

GENERATED = {"evidence", "status"}  # they say what others do
COMMON = "common"

MARK = re.compile(r"^<!-- ([\w-]+) ([0-9a-f]{8}) -->\n", re.MULTILINE)
SILENT = re.compile(r"(```+)\{solution-(?:start|end)\}[^`]*\1\s*")
SECTION = re.compile(r"^(```+|:::+).*?^\1$|^#{1,2} ", re.MULTILINE | re.DOTALL)  # a comment in code is no heading
DIRECTIVE = re.compile(r"\{([\w:-]+)\} *(.*)")
OPTION = re.compile(r"^:[\w-]+:.*$", re.MULTILINE)
LITERAL = {"bibliography", "eval-rst", "math"}
SAME = re.compile(r"math|amsmath|fence|colon|code|myst_target|substitution|directive|link$")
# What is said within formulas, by tags, in templates, and in the comments of code.
SAID = re.compile(r'(?<=text)\{[^{}]*\}|\b(?:alt|aria-label|placeholder|title)="[^"]*"|(?:^|(?<=[ (]))"[^"]*"')
COMMENT = re.compile(r"(?:^|  +)# .*$", re.MULTILINE)
TAG = re.compile(r"<[^>]*>|\{%.*?%\}")

# A number, or a formula of one letter, and a particle, which depends on how its end is read.
READ = re.compile(r"([\d%]|\$[A-Za-z]\$)(은|는|이|가|을|를|과|와|으로|로)(?![가-힣])")
AFTER = {last: "은이을과로" if last in "178LR" else "은이을과으로" for last in "013678LMNR"}
SHOWN = {
    r"\{(?:eq|numref)\}`[^`]+`[가-힣]": "the particle depends on a number: write 식 before it",
    r"[은는이가을를과와]\([은는이가을를과와]\)": "write the one that is read",
}

extensions = {"amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "substitution"}
markdown = create_md_parser(MdParserConfig(enable_extensions=extensions), RendererHTML)


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
    return [*sorted({path.stem for path in paths}), "README"]


def english(path: Path, text: str = "") -> dict[str, str]:
    """The cells or sections that say something, by id, as the file has them or once had."""
    text = text or path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        found = {cell["id"]: "".join(cell["source"]) for cell in cells}
        return {name: said for name, said in found.items() if SILENT.sub("", said).strip()}
    starts = [found.start() for found in SECTION.finditer(text) if not found[1]]
    return {f"s{n}": text[a:b] for n, (a, b) in enumerate(zip(starts, [*starts[1:], None], strict=False))}


def korean(path: Path) -> dict[str, tuple[int, str, str]]:
    """By id, the line of its mark, the digest of the English that it says, and what it says."""
    raw = path.read_bytes() if path.exists() else b""
    try:
        parts = MARK.split(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f":{line}: must be UTF-8, {error.reason}") from None
    cells: dict[str, tuple[int, str, str]] = {}
    line = 1 + parts[0].count("\n")
    for name, made, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if name in cells:
            raise ValueError(f":{line}: {name} must stand once")
        cells[name] = line, made, text.strip()
        line += 1 + text.count("\n")
    return cells


def compare(root: Path, name: str) -> tuple[list[str], list[str]]:
    """What no build will have, and what is unfinished, so that the page is shown in English; each with its place."""
    ours, path, broken, unfinished = english(source(root, name)), target(root, name), list[str](), list[str]()
    where = path.relative_to(root).as_posix()
    try:
        theirs = korean(path)
    except ValueError as error:
        return [f"{where}{error}"], []
    for cell, said in ours.items():
        if not theirs.get(cell, ("",))[-1]:
            unfinished.append(f"{where}: no Korean for <!-- {cell} {digest(said)} --> {' '.join(said.split())[:60]}")
    for cell, (line, made, text) in theirs.items():
        said = ours.get(cell, "")
        odd = [*differences(said, text), *traps(said, text)] if said and text else []
        (broken if made == digest(said) else unfinished).extend(f"{where}:{line}: {each}" for each in odd)
        if not said:
            broken.append(f"{where}:{line}: {source(root, name).name} has no cell {cell}")
        elif made != digest(said):
            unfinished.append(f"{where}:{line}: the English has changed; then write <!-- {cell} {digest(said)} -->")
    if [cell for cell in theirs if cell in ours] != [cell for cell in ours if cell in theirs]:
        broken.append(f"{where}: its cells must stand in the order of the English, {', '.join(ours)}")
    return broken, unfinished


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
        if token.type == "heading_open":
            headings += 1
            yield f"heading {headings} of level {token.tag[1]}"
        elif SAME.match(token.type):
            yield f"{token.type} {token.info} {said.replace(' ', '') if 'math' in token.type else said}"
        elif token.type == "myst_role":  # its text may be said
            yield f"{{{token.meta['name']}}}`{said.rpartition('<')[2].strip('>')}`"
        elif token.type == "image":
            yield f"image {token.attrs['src']}"
        elif token.type.startswith(("html", "text")):
            yield from TAG.findall(said)
            numbers |= {*re.findall(r"\d+(?:[.,]\d+)*", said)} if token.type == "text" else set()
    yield from (f"number {number}" for number in numbers)


def tokens(text: str) -> Iterator[Token]:
    """The parts of a text, with those of its directives and its lines; of a link's text its numbers."""
    for token in markdown.parse(text):
        if token.type.endswith("fence") and (found := DIRECTIVE.fullmatch(token.info)) and found[1] not in LITERAL:
            yield Token("directive", "", 0, info=found[1], content=" ".join(OPTION.findall(token.content)))
            yield from tokens(f"{found[2]}\n\n{OPTION.sub('', token.content)}")
        else:
            yield token
        parts = token.children or []
        yield from parts
        for start in [n for n, part in enumerate(parts) if part.type == "link_open"]:
            end = next(n for n, part in enumerate(parts) if n > start and part.type == "link_close")
            numbers = NUMBER.findall(" ".join(part.content for part in parts[start:end]))
            yield Token("link", "", 0, info=str(parts[start].attrs), content=" ".join(numbers))


def traps(ours: str, theirs: str) -> Iterator[str]:
    """What Markdown or a reader makes of the Korean that its author did not see."""
    before, after = ("".join(part.content for part in tokens(text) if part.type == "text") for text in (ours, theirs))
    if after.count("*") > before.count("*"):
        yield f"asterisks will show, {after[after.index('*') :][:20]!r}: write **온도**(temperature)는"
    yield from (f"{odd} will show: write *...*" for odd in re.findall(r"_\S*_[가-힣]", after))
    yield from (f"{odd}: {better}" for shown, better in SHOWN.items() for odd in re.findall(shown, theirs))
    for read, particle in READ.findall(theirs):
        if particle not in AFTER.get(read.strip("$").upper(), "는가를와로"):
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


def words(root: Path) -> Words:
    return Words({text: korean for page in outputs(root).values() for text, korean in page.items()})


def say_all(root: Path) -> dict[str, Words]:
    """What each page's outputs say."""
    from pages import generate  # its libraries take seconds to import

    known = words(root).known
    said = {name: Words(known) for name in pages(root)}
    for name, say in said.items():
        if name in GENERATED:
            generate.fill(root, name, say)
        elif (path := source(root, name)).suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            for output in [output for cell in cells for output in cell.get("outputs", [])]:
                translate_output(output, say)
    return said


def compare_words(root: Path, names: list[str], write: bool = False) -> list[str]:
    """What has no Korean, or is no longer said. Written are files with all that is said, "" for what has none."""
    said = say_all(root)
    times = Counter(text for name in {*said} - GENERATED for text in said[name].used)
    all_pages = Words({})
    all_pages.used = {text: korean for say in said.values() for text, korean in say.used.items()}
    lines = []
    for name in names:
        say, path = said.get(name, all_pages), root / f"ko/outputs/{name}.json"
        least, most = (2, len(said)) if name == COMMON else (0, 0) if name in GENERATED else (1, 1)
        file = {text: korean for text, korean in say.used.items() if least <= times[text] <= most}
        if write and file:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{json.dumps(file, indent=1, ensure_ascii=False)}\n", encoding="utf-8", newline="\n")
        odd = [*say.problems, *(f"no Korean for {text!r}" for text, korean in file.items() if korean == "")]
        odd += [f"nothing says {text!r}" for text in outputs(root).get(name, {}) if text not in file]
        lines += [f"{path.relative_to(root).as_posix()}: {each}" for each in odd]
    return lines


def check(root: Path, names: list[str], write: bool = False) -> list[str]:
    """All that is wrong, each line with its place."""
    found: list[str] = []
    for name in [name for name in names or pages(root) if name != COMMON]:
        broken, unfinished = compare(root, name)
        found += [*broken, *unfinished, *(changes(root, name) if unfinished else ())]
    return found + compare_words(root, names or [*pages(root), COMMON], write)


def changes(root: Path, name: str) -> Iterator[str]:
    """How the English of stale cells changed since it was said in Korean, out of git's history."""
    path = source(root, name)
    place = path.relative_to(root).as_posix()
    made = {cell: each[1] for cell, each in korean(target(root, name)).items()}
    stale = {cell: said for cell, said in english(path).items() if made.get(cell, digest(said)) != digest(said)}
    for commit in git(root, "log", "--format=%h", "--", place).split() if stale else []:
        old = english(path, git(root, "show", f"{commit}:{place}"))
        for cell in [cell for cell in stale if digest(old.get(cell, "")) == made[cell]]:
            lines = difflib.ndiff(old[cell].splitlines(), stale.pop(cell).splitlines())
            yield "\n".join([f"{place}, {cell}, since {commit}:", *(line.rstrip() for line in lines if line[0] != " ")])


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=True).stdout
