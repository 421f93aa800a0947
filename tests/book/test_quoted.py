"""Numbers in the chapters' sentences that are no links to a claim are what a notebook printed."""

import re
from pathlib import Path

import pytest
import yaml
from nbformat import v4
from test_structure import prose

CHAPTERS = Path(__file__).parents[2] / "chapters"
ADVICE = " ".join((CHAPTERS.parent / "pages" / "advice.yml").read_text(encoding="utf-8").split())
QUOTED = yaml.safe_load((Path(__file__).parent / "quoted.yml").read_text(encoding="utf-8"))


def printed(path):
    """The text that a notebook's cells show, and what they recorded."""
    cells = v4.reads(path.read_text(encoding="utf-8")).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def misquoted(quote, text, output):
    """What is wrong with a quote: {} are around its numbers, () around those of the line that it rests on."""
    words = re.sub(r"[{}]", "", quote["says"])
    if text.count(words) != 1:
        return f"the chapter must say it once, says it {text.count(words)} times: {words}"
    lines = re.findall(quote["prints"], output)
    if len(lines) != 1:
        return f"the notebook must print it once, prints it {len(lines)} times: {quote['prints']}"
    shown = [lines[0]] if isinstance(lines[0], str) else list(lines[0])
    said = [number.replace(",", "").replace("\N{MINUS SIGN}", "-") for number in re.findall(r"{(.*?)}", quote["says"])]
    if not said or len(said) != len(shown):
        return f"as many numbers must be said as printed: {words}, {shown}"
    for number, value in zip(said, shown, strict=True):
        exact = float(value.replace(",", "")) * quote.get("times", 1)
        unit = quote.get("to", 10 ** -len(number.partition(".")[2]))
        if abs(float(number) - exact) > 0.5 * unit + 1e-9:
            return f"{words}: it is {exact:g}, not {number}"
    return ""


@pytest.mark.parametrize(
    ("says", "prints", "problem"),
    [
        ("a share of {0.63}, then {28} %", r"after 32 +(\S+) +(\S+)", "it is 0.28, not 28"),
        ("a share of {0.63}", r"after 32 +(\S+) ", ""),
        ("a share of {0.6}", r"after 32 +(\S+) ", ""),
        ("a share of {0.62}", r"after 32 +(\S+) ", "it is 0.631, not 0.62"),
        ("a share of {0.63}", r"after 64 +(\S+) ", "prints it 0 times"),
        ("a share of {0.63}", r"after \d+ +(\S+) ", "prints it 2 times"),
        ("a lot", r"after 32 +(\S+) ", "says it 0 times"),
        ("a share of 0.63", r"after 32 +(\S+) ", "as many numbers"),
    ],
)
def test_a_quote_is_what_was_printed(says, prints, problem):
    text = re.sub(r"[{}]", "", says) if says != "a lot" else ""
    output = "own, after 32   0.631 0.28\nown, after 1   0.5 0.2"
    found = misquoted({"says": says, "prints": prints}, text, output)
    assert problem in found and bool(problem) == bool(found)


@pytest.mark.parametrize("stem", QUOTED)
def test_what_a_chapter_quotes_was_printed(stem):
    outputs = {quote["from"]: printed(CHAPTERS / f"{quote['from']}.ipynb") for quote in QUOTED[stem]}
    text = ADVICE if stem == "advice" else prose(CHAPTERS / f"{stem}.ipynb")
    found = [misquoted(quote, text, outputs[quote["from"]]) for quote in QUOTED[stem]]
    assert [problem for problem in found if problem] == []
