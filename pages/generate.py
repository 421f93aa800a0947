"""Write what is made of the notebooks' stored outputs: the file of the labs' measurements, which chapters draw, the
pages of evidence and status, and README's picture."""

import json
import re
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from mathlib.book import verdicts
from mathlib.book.verdicts import REVERSED, SHOWN, judged, title
from pages.words import Words, translate_html

KEY = "mathlib"  # of a notebook's metadata, where its run is recorded
MEASURED = Path("mathlib", "book", "measured.json")
EFFECT = re.compile(r"\{(claim-[\w-]+: [^{}]+)\}")  # in a line of advice: the mean of a claim's case
# a | within a table's cell would end it
templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("_templates")),
    trim_blocks=True,
    keep_trailing_newline=True,
    finalize=lambda value: value if isinstance(value, Markup) else str(value).replace("|", "\\|"),
)


def generate(root: Path) -> None:
    write_measured(root)
    made = {
        root / "chapters" / "evidence.md": fill(root, "evidence"),
        root / "chapters" / "status.md": fill(root, "status"),
        root / "pages" / "_static" / "readme.svg": picture(root),
    }
    for path, text in made.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(root)}")


def write_measured(root: Path) -> None:
    root.joinpath(MEASURED).write_text(measurements(root), encoding="utf-8", newline="\n")
    print(f"wrote {MEASURED.as_posix()}")


def measurements(root: Path) -> str:
    """What the labs' outputs hold, with the verdicts."""
    return verdicts.dump(verdicts.gather(sorted(root.glob("chapters/labs/*.ipynb"))))


def fill(root: Path, name: str, say: Words | None = None, template: str = "") -> str:
    """The page of evidence or of status; in Korean by its words and its template."""
    page = templates.from_string(template) if template else templates.get_template(f"{name}.md")
    return page.render(**(evidence(root, say) if name == "evidence" else status(root)), say=say or str)


def evidence(root: Path, say: Words | None) -> dict:
    """What to do, and every claim that was measured: the notes' by section, then the book's."""
    gathered = json.loads(root.joinpath(MEASURED).read_text(encoding="utf-8"))
    claims = gathered["claims"]
    groups: dict[str, list[tuple]] = {"What the notes state": [], "What the book adds": []}
    for stem, name in gathered["sections"].items():
        for heading, ours in zip(groups, (False, True), strict=True):
            if mine := [claim for claim in claims if claim["lab"] == stem and (claim["of"] == "book") == ours]:
                groups[heading].append((name, stem, mine))

    def picture_of_claims(mine: list[dict]) -> Markup:
        drawn = verdicts.picture(mine, settings=True)
        return Markup(translate_html(drawn, say) if say else drawn)

    known = {claim["label"]: claim for claim in claims}
    return {
        "advice": advice(root, known),
        "counted": {name: verdicts.counted(c for *_, mine in parts for c in mine) for name, parts in groups.items()},
        "cutoff": max((case["p"] for case in judged(claims) if case["outcome"] in (SHOWN, REVERSED)), default=0),
        "verdicts": verdicts,
        "grounds": yaml.safe_load(root.joinpath("pages", "grounds.yml").read_text(encoding="utf-8")),
        "known": known,
        "groups": groups,
        "picture": picture_of_claims,
    }


def advice(root: Path, known: dict[str, dict]) -> list[dict]:
    """The lines of advice.yml; each names the claims that it rests on, with the verdicts that they must have."""
    lines = yaml.safe_load(root.joinpath("pages", "advice.yml").read_text(encoding="utf-8"))
    for line in lines:
        for label, verdict in line["why"].items():
            found = known[label]["verdict"] if label in known else "not measured"
            if found != verdict:
                raise ValueError(f"advice.yml: {line['situation']}: {label} must be {verdict!r}, was {found!r}")
        cases = {f"{c['label']}: {x['name']}": (x, c) for c in map(known.get, line["why"]) for x in c["cases"]}
        for quoted in EFFECT.findall(line["setting"]):
            if quoted not in cases:
                raise ValueError(f"advice.yml: {line['situation']}: {quoted} must be a case of a claim in its why")
            case, claim = cases[quoted]
            mark = "†" * verdicts.open_over_queries(case, claim) + "‡" * ("control" in case)
            line["setting"] = line["setting"].replace(f"{{{quoted}}}", f"{case['mean']:.3f}{mark}")
    return [line | {"why": [(known[label], verdict) for label, verdict in line["why"].items()]} for line in lines]


def status(root: Path) -> dict:
    """One table for each set of versions."""
    groups: dict[str, list[tuple]] = {}
    for path in [*sorted(root.glob("chapters/*.ipynb")), *sorted(root.glob("chapters/labs/*.ipynb"))]:
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"][KEY]
        versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
        groups.setdefault(versions, []).append((title(path), path.relative_to(root / "chapters").as_posix(), run))
    return {"groups": groups}


def picture(root: Path) -> str:
    """The last frame of the first page's figure, in colours that stand on any background."""
    text = root.joinpath("chapters", "index.ipynb").read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    html = "".join(next(o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})))
    svg = re.findall(r"<svg .*?</svg>", html, re.DOTALL)[-1]
    svg = svg.replace("currentColor", "#767676").replace("var(--paper)", "none")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    return svg.replace("<svg ", f"<svg {names} ", 1) + "\n"
