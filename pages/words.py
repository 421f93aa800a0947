"""The Korean for what stored outputs say: titles, labels and legends of figures, their descriptions, cards, tables.

A text is looked up without its numbers, "At {0}°, the cosine is {1}", and the Korean puts them back in any order: the
outputs stay the English book's, and a run that changes only numbers needs no translator.
"""

import html
import re
import unicodedata

NUMBER = re.compile(r"[+−-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
# Single letters, and names of functions, are the same in every language.
SAYS_NOTHING = re.compile(r"[^A-Za-z]*(?:[A-Za-z]?|[\w.]*[._]\w[\w.]*(?:\(\))?)[^A-Za-z]*")
EDGES = re.compile(r"([\s,:]*)(.*?)([\s,:]*)", re.DOTALL)
# A verdict lists its cases, which have names of their own, and so has what controls a case.
VERDICT = re.compile(r"(?P<verdict>.+?)(?P<rest> \((?:not shown|shown|reversed) for .*\))")
CASES = re.compile(r"( \(|; | / |(?:not shown|shown|reversed) for |\)$)")
CONTROL = re.compile(r"(control)(, .+?)(: .*)?")

UNSEEN = re.compile(r"<(style|script)\b.*?</\1>", re.DOTALL)
ATTRIBUTE = re.compile(r'(\b(?:aria-label|alt|title|placeholder|data-label|data-value)=")([^"]*)"')
# what a slider's script says of it: its label and its value
SPOKEN = re.compile(r'(data-label="([^"]*)".*?aria-valuetext=")\2 ([^"]*)"', re.DOTALL)
BETWEEN_TAGS = re.compile(r"(?<=>)[^<>]+(?=<)")
# matplotlib writes the lines of a text one by one, each below the other and styled alike
LINES = re.compile(r'(?:<text((?: style="[^"]*")?) transform="translate\(([\d.]+) [\d.]+\)">[^<]*</text>)+')
LINE = re.compile(r'(<text(?: style="[^"]*")? transform="translate\([\d.]+ ([\d.]+)\)">)([^<]*)</text>')
TITLE = 11  # the size of a figure's title, bold


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
        if found := VERDICT.fullmatch(inner):
            return before + self(found["verdict"]) + "".join(map(self, CASES.split(found["rest"]))) + after
        if found := CONTROL.fullmatch(inner):
            return before + "".join(self(part) for part in found.groups("")) + after
        numbers = NUMBER.findall(inner)
        parts = (part.replace("{", "{{").replace("}", "}}") for part in NUMBER.split(inner))
        template = "".join(part + f"{{{n}}}" * (n < len(numbers)) for n, part in enumerate(parts))
        korean = self.used[template] = self.known.get(template, "")
        try:
            return before + korean.format(*numbers) + after if korean else text
        except (IndexError, KeyError, ValueError) as error:
            self.problems.append(f"{korean!r} has other numbers in braces than {template!r}: {error!r}")
            return text


def translate_output(output: dict, words: Words) -> None:
    data = output.get("data", {})
    if "text/html" in data:
        data["text/html"] = translate_html("".join(data["text/html"]), words)
    if "text/markdown" in data:
        data["text/markdown"] = re.sub(r"[^|\n]+", lambda part: words(part[0]), "".join(data["text/markdown"]))


def translate_html(page: str, words: Words) -> str:
    """An output's words, those of its figures, and those that only a screen reader says."""
    saved: list[str] = []

    def save(text: str) -> str:
        saved.append(text)
        return f"\ue000{len(saved) - 1}\ue001"

    page = UNSEEN.sub(lambda found: save(found[0]), page)
    page = SPOKEN.sub(lambda found: f'{found[1]}{say(found[2], words)} {say(found[3], words)}"', page)
    page = ATTRIBUTE.sub(lambda found: f'{found[1]}{say(found[2], words)}"', page)
    page = LINES.sub(lambda found: save(translate_lines(found, words)), page)
    page = BETWEEN_TAGS.sub(lambda found: say(found[0], words), page)
    return re.sub("\ue000(\\d+)\ue001", lambda found: saved[int(found[1])], page)


def say(text: str, words: Words) -> str:
    return html.escape(words(html.unescape(text)))


def translate_lines(found: re.Match, words: Words) -> str:
    """A text in a figure, on at most as many lines as in English, the last of which stand next to the axes."""
    room = (float(re.findall(r'viewBox="0 0 ([\d.]+)', found.string[: found.start()])[-1]) - float(found[2])) / TITLE
    out = ""
    for lines in paragraphs(found[0]):
        text = html.unescape(" ".join(words for _, _, words in lines))
        korean = words(text)
        if korean == text:
            out += "".join(f"{tag}{words}</text>" for tag, _, words in lines)
            continue
        made = wrap(korean, room, len(lines))
        if "font-weight" in found[1] and width(made[-1]) > room:
            words.problems.append(f"{korean!r} is too long for its figure, by {width(made[-1]) / room - 1:.0%}")
        places = lines[-len(made) :]
        out += "".join(f"{tag}{html.escape(line)}</text>" for (tag, _, _), line in zip(places, made, strict=True))
    return out


def paragraphs(texts: str) -> list[list[tuple[str, float, str]]]:
    """The lines (tag, y, words) that follow each other at a line's distance, in groups."""
    groups: list[list[tuple[str, float, str]]] = []
    for tag, y, words in LINE.findall(texts):
        near = (
            groups
            and 10 < float(y) - groups[-1][-1][1] < 15
            and tag.partition("tr")[0] == groups[-1][-1][0].partition("tr")[0]
        )
        groups[-1].append((tag, float(y), words)) if near else groups.append([(tag, float(y), words)])
    return groups


def width(text: str) -> float:
    """About how wide a bold text is, in letters' heights."""
    return sum(0.95 if unicodedata.east_asian_width(letter) in "WF" else 0.58 for letter in text)


def wrap(text: str, room: float, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if width(longer) > room and lines[-1] and len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
