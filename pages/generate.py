"""Write what is made of the chapters' stored outputs: the pages of evidence and status, and README's picture."""

import json
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from mathlib.book.evidence import counted, tested, title

KEY = "mathlib"  # of a notebook's metadata, where its run is recorded
# a | within a table's cell would end it
templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "_templates"),
    trim_blocks=True,
    keep_trailing_newline=True,
    finalize=lambda value: str(value).replace("|", "\\|"),
)


def generate(root: Path) -> None:
    chapters = root / "chapters"
    made = {
        chapters / "evidence.md": evidence_page(chapters),
        chapters / "status.md": status_page(chapters),
        root / "pages" / "_static" / "readme.svg": picture(chapters),
    }
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(root)}")


def evidence_page(chapters: Path) -> str:
    """Every claim that the executed chapters measured."""
    found = tested(chapters)
    counts = counted([claim for made in found.values() for claim in made])
    chapters = [(title(notebook), notebook.stem, made) for notebook, made in found.items()]
    return templates.get_template("evidence.md").render(counts=counts, chapters=chapters)


def status_page(chapters: Path) -> str:
    """One table for each set of versions."""
    groups: dict[str, list[tuple]] = {}
    for path in sorted(chapters.glob("*.ipynb")):
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"][KEY]
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        groups.setdefault(versions, []).append((title(path), path.name, run))
    return templates.get_template("status.md").render(groups=groups)


def picture(chapters: Path) -> str:
    """The last frame of the first page's figure, in colours that stand on any background."""
    text = (chapters / "index.ipynb").read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    html = "".join(next(o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})))
    svg = re.findall(r"<svg .*?</svg>", html, re.DOTALL)[-1]
    svg = svg.replace("currentColor", "#767676").replace("var(--paper)", "none")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    return svg.replace("<svg ", f"<svg {names} ", 1) + "\n"
