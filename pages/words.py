"""The Korean for what stored outputs say: titles, labels and legends of figures, their descriptions, cards, tables.

A text is looked up without its numbers, "At {0}°, the cosine is {1}", and the Korean puts them back in any order: the
outputs stay the English book's, and a run that changes only numbers needs no translator.
"""

import html
import re
import textwrap

NUMBER = re.compile(r"[+−-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
# Single letters, and names of functions, are the same in every language.
SAYS_NOTHING = re.compile(r"[^A-Za-z]*(?:[A-Za-z]?|[\w.]*[._]\w[\w.]*(?:\(\))?)[^A-Za-z]*")
EDGES = re.compile(r"([\s,:.]*)(.*?)([\s,:]*)", re.DOTALL)
# A verdict lists its cases, which have names of their own, and a control has that of what it controls.
COMPOSED = re.compile(r".+? \((?:not shown|shown|reversed) for .*\)|control, .*")
PARTS = re.compile(r"( \((?=not shown for|shown for|reversed for)|; | / |(?:not shown|shown|reversed) for |\)$)")
CONTROL = re.compile(r"(control)(, .+?)(: .*)?")

# what a slider's script says of it: its label and its value
SPOKEN = re.compile(r'(data-label="([^"]*)".*?aria-valuetext=")\2 ([^"]*)', re.DOTALL)
# matplotlib writes the lines of a text one by one, each below the other and styled alike
LINE = re.compile(r'(<text((?: style="[^"]*")?) transform="translate\(([\d.]+) ([\d.]+)\)">)([^<]*)</text>')
SAID = re.compile(
    r"(?P<unseen><(style|script)\b.*?</\2>)"
    r'|(?P<lines>(?:<text(?: style="[^"]*")? transform="translate\([\d.]+ [\d.]+\)">[^<]*</text>)+)'
    r'|(?P<name>\b(?:aria-label|alt|title|placeholder|data-label|data-value)=")(?P<value>[^"]*)'
    r"|(?<=>)(?P<text>[^<>]+)(?=<)",
    re.DOTALL,
)
FILLER = "\ue000"


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
            width = re.findall(r'viewBox="0 0 ([\d.]+)', page[: found.start()])[-1]
            return "".join(translate_lines(lines, float(width), words) for lines in paragraphs(found["lines"]))
        return found["unseen"] or (found["name"] or "") + say(found["value"] or found["text"] or "")

    page = SPOKEN.sub(lambda found: f"{found[1]}{say(found[2])} {say(found[3])}", page)
    return SAID.sub(replace, page)


def paragraphs(texts: str) -> list[list[re.Match]]:
    """Its lines, by what stands at a line's distance below another, from the left in the same style."""
    groups: list[list[re.Match]] = [[]]
    for line in LINE.finditer(texts):
        last = groups[-1][-1] if groups[-1] else line
        if line is not last and not (
            (line[2], line[3]) == (last[2], last[3]) and 10 < float(line[4]) - float(last[4]) < 15
        ):
            groups.append([])
        groups[-1].append(line)
    return groups


def translate_lines(lines: list[re.Match], width: float, words: Words) -> str:
    """A text in a figure, on at most as many lines as in English, the last of which stand next to the axes."""
    english = html.unescape(" ".join(line[5] for line in lines))
    korean = words(english)
    if korean == english:
        return "".join(line[0] for line in lines)
    # a Latin letter of a bold title of 11 points is about 0.58 as wide as it is high, and one of Hangul 5/3 of that
    padded = re.sub(r"\S", lambda found: found[0] + FILLER * (4 if found[0] >= "가" else 2), korean)
    room = int((width - float(lines[0][3])) / 11 * 3 / 0.58)
    made = [line.replace(FILLER, "") for line in textwrap.wrap(padded, room, break_on_hyphens=False)]
    if len(made) > len(lines):
        words.problems.append(f"{korean!r} is too long for its figure")
    places = lines[-len(made) :]
    return "".join(f"{place[1]}{html.escape(line)}</text>" for place, line in zip(places, made, strict=False))
