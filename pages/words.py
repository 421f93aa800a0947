"""The Korean for what stored outputs say: titles, labels and legends of figures, their descriptions, cards, tables.

A text is looked up without its numbers, "At {0}°, the cosine is {1}", and the Korean puts them back in any order: the
outputs stay the English book's, and a run that changes only numbers needs no translator.
"""

import html
import re
import unicodedata
from functools import cache
from typing import NamedTuple

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

NUMBER = re.compile(r"[+−-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?[†‡]*")
# Single letters, and names of functions, are the same in every language.
SAYS_NOTHING = re.compile(r"[^A-Za-z]*(?:[A-Za-z]?|[\w.]*[._]\w[\w.]*(?:\(\))?)[^A-Za-z]*")
EDGES = re.compile(r"([\s,:.]*)(.*?)([\s,:]*)", re.DOTALL)
# A verdict lists its cases, which have names of their own, and a control has that of what it controls.
FOR = "(?:not shown|shown|negligible|reversed) for"
COMPOSED = re.compile(rf".+? \({FOR} .*\)|control, .*")
PARTS = re.compile(rf"( \((?={FOR})|; | / |{FOR} |\)$)")
CONTROL = re.compile(r"(control)(, .+?)(: .*)?")

# what a slider's script says of it: its label and its value
SPOKEN = re.compile(r'(data-label="([^"]*)".*?aria-valuetext=")\2 ([^"]*)', re.DOTALL)
# matplotlib writes the lines of a text one by one, each below the other and styled alike
LINE = re.compile(r'<text(?: style="([^"]*)")? transform="translate\(([\d.]+) ([\d.]+)\)">([^<]*)</text>')
SIZE = re.compile(r"font-size:([\d.]+)px")
WIDER = 1.2  # than in English a text that is no title may be, before it meets its neighbours
SAID = re.compile(
    r"(?P<unseen><(style|script)\b.*?</\2>)"
    r'|(?P<lines>(?:<text(?: style="[^"]*")? transform="translate\([\d.]+ [\d.]+\)">[^<]*</text>)+)'
    r'|(?P<name>\b(?:aria-label|alt|title|placeholder|data-label|data-value)=")(?P<value>[^"]*)'
    r"|(?<=>)(?P<text>[^<>]+)(?=<)",
    re.DOTALL,
)


class Words:
    """Says a text in Korean. One that has none stays as it is, and so does one whose Korean is None."""

    def __init__(self, known: dict[str, str | None]) -> None:
        self.known = known
        self.used: dict[str, str | None] = {}  # by template, in the order of the page
        self.problems: list[str] = []

    def __call__(self, text: str) -> str:
        before, inner, after = EDGES.fullmatch(text).groups()
        if SAYS_NOTHING.fullmatch(inner):
            return text
        if COMPOSED.fullmatch(inner):
            control = CONTROL.fullmatch(inner)
            return before + "".join(map(self, control.groups("") if control else PARTS.split(inner))) + after
        numbers = NUMBER.findall(inner)
        parts = NUMBER.sub("\0", inner.replace("{", "{{").replace("}", "}}")).split("\0")
        template = "".join(f"{{{n - 1}}}" * (n > 0) + part for n, part in enumerate(parts))
        korean = self.used[template] = self.known.get(template, "")
        try:
            return before + korean.format(*numbers) + after if korean else text
        except (IndexError, KeyError, ValueError):
            self.problems.append(f"{korean!r} must have the numbers of {template!r}")
            return text


def translate_output(output: dict, words: Words) -> None:
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = translate_html("".join(data["text/html"]), words)
    if "text/markdown" in data:
        data["text/markdown"] = re.sub(r"[^|\n]+", lambda part: words(part[0]), "".join(data["text/markdown"]))


def translate_html(page: str, words: Words) -> str:
    """An output's words, those of its figures, and those that only a screen reader says."""

    def say(text: str) -> str:
        return html.escape(words(html.unescape(text)))

    def replace(found: re.Match) -> str:
        if found["lines"]:
            edge = re.findall(r'viewBox="0 0 ([\d.]+)', page[: found.start()])[-1]
            return translate_lines(found["lines"], float(edge), words)
        return found["unseen"] or (found["name"] or "") + say(found["value"] or found["text"] or "")

    page = SPOKEN.sub(lambda found: f"{found[1]}{say(found[2])} {say(found[3])}", page)
    return SAID.sub(replace, page)


class Line(NamedTuple):
    style: str
    x: float
    y: float
    words: str

    @property
    def size(self) -> float:
        found = SIZE.search(self.style)
        return float(found[1]) if found else 10

    def __str__(self) -> str:
        style = f' style="{self.style}"' * bool(self.style)
        return (
            f'<text{style} transform="translate({self.x:g} {self.y:g})">{html.escape(self.words, quote=False)}</text>'
        )


def translate_lines(texts: str, edge: float, words: Words) -> str:
    """The texts of a figure, each on at most as many lines as in English, the last of which stand next to the axes."""
    out = ""
    for lines in paragraphs(texts):
        text = " ".join(line.words for line in lines)
        korean = words(text)
        if korean == text:
            out += "".join(map(str, lines))
            continue
        first, title = lines[0], "font-weight" in lines[0].style
        longest = max(drawn(line) for line in lines)
        room = (edge - first.x if title or len(lines) == 1 else WIDER * longest) / first.size
        made = wrap(korean, room, len(lines))
        if title and width(made[-1]) > room:
            words.problems.append(f"{korean!r} is too long for its figure, by {width(made[-1]) / room - 1:.0%}")
        anchor, x = aligned(lines)[0]
        style = ";".join(filter(None, (first.style, anchor)))
        for line, said in zip(lines[-len(made) :], made, strict=True):
            out += str(line._replace(style=style, x=x, words=said))
    return out


def paragraphs(texts: str) -> list[list[Line]]:
    """The lines that follow each other at a line's distance, aligned and styled alike, in groups."""
    groups: list[list[Line]] = []
    for style, x, y, words in LINE.findall(texts):
        line = Line(style, float(x), float(y), html.unescape(words))
        last = groups[-1] if groups else [line]
        near = 10 < line.y - last[-1].y < 15 and line.style == last[-1].style and aligned([*last, line])
        last.append(line) if near else groups.append([line])
    return groups


def aligned(lines: list[Line]) -> list[tuple[str, float]]:
    """What its lines, which matplotlib places one by one, have in common: a left end, a right one, a middle."""
    ends = {"": 0, "text-anchor:end": 1, "text-anchor:middle": 0.5}
    places = {anchor: [line.x + share * drawn(line) for line in lines] for anchor, share in ends.items()}
    return [(anchor, round(at[0], 2)) for anchor, at in places.items() if max(at) - min(at) < 0.1]


@cache
def drawn(line: Line) -> float:
    """How wide matplotlib took it to be."""
    return text_to_path.get_text_width_height_descent(line.words, FontProperties(size=line.size), ismath=False)[0]


def width(text: str) -> float:
    """About how wide a bold text is, in letters' heights."""
    return sum(0.95 if unicodedata.east_asian_width(letter) in "WF" else 0.58 for letter in text)


def wrap(text: str, room: float, most: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):  # not at a space that does not break
        longer = f"{lines[-1]} {word}".strip()
        if width(longer) > room and lines[-1] and len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
