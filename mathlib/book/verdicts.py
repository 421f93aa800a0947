"""What the labs measure, and what may be said of it.

A lab states a claim with `measured`: in words what its effect means, and for each case one number per fresh seed,
above 0 as claimed. Its card shows each case's mean with a 95 % interval (Student's t; corrected after Nadeau and
Bengio where train and test halves of one small data set overlap). Whether a case is *shown* is decided only when
`gather` has all labs' cells before it: Benjamini and Hochberg, 5 % over the book. What it gathers is measured.json,
next to this file; from it a chapter draws with `chart` and `record`, without running its lab.

A case whose whole interval is closer to 0 than the least that matters is *negligible*, also where its sign is certain.

A claim *holds* (all its cases are shown), *holds in part*, is *not shown*, *reversed in part* (a case is, and none is
shown), or *reversed* (all are; of a conjunction, one is); what follows from a definition is *derived*.

>>> measured("claim-water", "Warmth raises water", of="book", effect="height after minus before", unit="mm",
...          setting="a glass, ten tries", cases={"heated": [1.0, 1.2, 0.9, 1.1, 1.0, 1.0, 0.8, 1.0, 1.1, 0.9]},
...          controls={"left alone": [0.1, -0.1, 0.0, 0.2, -0.2, 0.0, 0.1, -0.1, 0.0, 0.0]})
Claim (book): Warmth raises water
  effect: height after minus before (mm); above 0 is as claimed
  heated: +1.000 [+0.917, +1.083], above 0
  control, left alone: +0.000 [-0.083, +0.083], 0 inside, 0.115 would have been seen
  10 seeds, 95 % intervals
"""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import special

from mathlib.book import figures

MIME = "application/vnd.mathlib.measurement+json"
FILE = Path(__file__).with_name("measured.json")
SHOWN, NEGLIGIBLE, NOT_SHOWN, REVERSED = "shown", "negligible", "not shown", "reversed"
VERDICTS = ("holds", "holds in part", NOT_SHOWN, "reversed in part", REVERSED, "derived")
MARKS = (SHOWN, NEGLIGIBLE, NOT_SHOWN, REVERSED, "control")
# The least that matters, by unit: of 0.005 of the mean reciprocal rank, one answer in a hundred moves from the second
# place to the first; mining, one of the larger gains that a lab shows, brings four times as much.
LEAST = dict.fromkeys(("share", "mAP", "MRR", "nDCG@10", "recall@10", "accuracy"), 0.005)
SOURCES = re.compile(r"book|notes ([1-7]|demo)")
SEEDS = 10
LEVEL = 0.05


@dataclass(frozen=True)
class Output:
    """What a cell shows: text, HTML for the page, and JSON to be gathered."""

    plain: str
    html: str
    data: dict

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        return {"text/html": self.html, "text/plain": self.plain, MIME: self.data}


# In a lab


def measured(
    label: str,
    statement: str,
    *,
    of: str,
    effect: str,
    setting: str,
    cases: Mapping[str, Sequence[float]],
    controls: Mapping[str, Sequence[float]] | None = None,
    unit: str = "",
    overlap: float | None = None,
    least: float | None = None,
    jointly: bool = False,
    bound: bool = False,
    reason: str = "",
    was: Sequence[str] = (),
) -> Output:
    """A claim about a random outcome: `cases` maps each case to one signed effect per seed.

    `of` says whose statement it is: "book", or "notes" with the section. `controls` are drawn, and never count.
    Gains over queries (`judging.Gains`) bring an interval over these as well.
    `overlap` is n_test / n_train where the seeds are splits of one data set. `least` is the smallest effect that
    matters, by default that of the unit. With `jointly` the claim is the conjunction of its cases; with `bound`, that
    no seed ever crosses a limit, and the effect is the distance that was left. `was` are labels under which it could
    once be found.
    """
    claim = _claim(label, statement, of, reason, was)
    if "minus" not in effect and "above 0" not in effect:
        raise ValueError(f"effect of {label} must say what is subtracted (... minus ...), was {effect!r}")
    if not setting.strip():
        raise ValueError(f"setting of {label} must say how it was measured, was {setting!r}")
    least = LEAST.get(unit, 0.0) if least is None else least
    if least < 0:
        raise ValueError(f"least of {label} must be at least 0, was {least}")
    controls = controls or {}
    if not cases or cases.keys() & controls.keys():
        raise ValueError(f"cases of {label} must be one or more, and not among its controls, had {list(cases)}")
    tries = {**cases, **controls}
    counts = {len(values) for values in tries.values()}
    if len(counts) > 1 or min(counts) < SEEDS:
        had = ", ".join(f"{len(values)} for {name!r}" for name, values in tries.items())
        raise ValueError(f"cases of {label} must have one effect for each of the same {SEEDS} or more seeds, had {had}")
    rows = [_row(label, name, values, overlap, least, bound) for name, values in tries.items()]
    for row in rows[len(cases) :]:
        row["control"] = True
    claim |= {"effect": effect, "setting": setting, "unit": unit, "seeds": counts.pop(), "cases": rows}
    claim |= {"overlap": overlap, "least": least, "jointly": jointly, "bound": bound}
    lines = [f"Claim ({of}): {statement}", f"  effect: {_axis(claim)}; above 0 is as claimed"]
    lines += [f"  {_name(row)}: {_number(row)}, {_reading(row, claim)}" for row in rows]
    lines.append(f"  {_seeds(claim)}")
    return Output("\n".join(lines), picture([claim], lab=True), claim)


def derived(
    label: str,
    statement: str,
    *,
    of: str,
    said: str,
    found: str,
    slip: bool = False,
    reason: str = "",
    was: Sequence[str] = (),
) -> Output:
    """A claim that follows from a definition: what is said, and what the computation that checks it found.

    With `slip` they differ, and what is said is a slip of whoever says it.
    """
    if (said != found) != slip:
        expected = "differ from" if slip else "equal"
        raise ValueError(f"found of {label} must {expected} what is said, {said!r}, was {found!r}")
    claim = _claim(label, statement, of, reason, was) | {"cases": [], "said": said, "found": found}
    return Output(f"Derived ({of}): {statement}\n  {_compared(claim)}", picture([claim], lab=True), claim)


def recorded(name: str, values: Mapping[str, object]) -> Output:
    """A curve or a table that a chapter draws, to four digits.

    >>> recorded("water", {"degrees": [10, 20], "height": [1.00003, 1.23456]})
    Recorded as water
      degrees: [10, 20]
      height: [1.0, 1.235]
    """
    kept = {key: _rounded(f"{name}, {key}", value) for key, value in values.items()}
    plain = "\n".join([f"Recorded as {name}", *(f"  {key}: {json.dumps(kept[key])}" for key in kept)])
    return Output(plain, f"<pre>{html.escape(plain)}</pre>", {"record": name, "values": kept})


# In a chapter


def chart(*labels: str) -> Output:
    """One picture of these claims' effects, each under its statement and verdict."""
    known = {claim["label"]: claim for claim in load()["claims"]}
    if unknown := [label for label in labels if label not in known]:
        raise ValueError(f"a chart's claims must be among those that the labs measured, {unknown[0]} is not")
    claims = [known[label] for label in labels]
    return Output("\n".join(map(text, claims)), picture(claims), {"chart": list(labels)})


def record(name: str) -> dict:
    """What a lab recorded under this name."""
    records = load()["records"]
    if name not in records:
        raise ValueError(f"a record must be one of {', '.join(records)}, was {name}")
    return records[name]


def summary() -> Output:
    """How the claims of each section came out: the first page's table."""
    gathered = load()
    lines, body = [], ""
    for stem, name in gathered["sections"].items():
        counts = counted(claim for claim in gathered["claims"] if claim["lab"] == stem)
        lines.append(f"{name}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")
        cells = "".join(f"<td>{count}</td>" for count in counts.values())
        body += f'<tr><td><a href="labs/{stem}.html">{html.escape(name)}</a></td>{cells}</tr>'
    heads = "".join(f"<th>{head.capitalize()}</th>" for head in ("section", *VERDICTS))
    page = f'<table class="summary"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return Output("\n".join(lines), page, {"summary": True})


def load() -> dict:
    """What was gathered: claims, in the labs' order, and records."""
    return json.loads(FILE.read_text(encoding="utf-8"))


# For the pages


def stored(notebook: Path) -> list[dict]:
    """What `measured`, `derived`, `recorded` and `chart` left in an executed notebook, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]


def title(notebook: Path) -> str:
    """The heading that the notebook opens with."""
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.partition("\n")[0].lstrip("# ")


def gather(labs: Sequence[Path]) -> dict:
    """What the labs' stored outputs hold, with the verdicts, for which all of them are needed."""
    from scipy import stats  # slow to import, and labs do not gather

    found = [(lab.stem, data) for lab in labs for data in stored(lab)]
    claims = [data | {"lab": stem} for stem, data in found if "label" in data]
    records = {data["record"]: data["values"] for _, data in found if "record" in data}
    names = [data["record"] for _, data in found if "record" in data]
    names += [name for claim in claims for name in (claim["label"], *claim["was"])]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"names must be unique in all labs, {name} is not")
    cases = judged(claims)
    survive = stats.false_discovery_control([case["p"] for case in cases]) if cases else []
    for case, p in zip(cases, survive, strict=True):
        if p > LEVEL and case["outcome"] != NEGLIGIBLE:
            case["outcome"] = NOT_SHOWN
    for claim in claims:
        claim["verdict"] = _verdict(claim)
    sections = {lab.stem: title(lab).removeprefix("Lab: ") for lab in labs}
    return {"claims": claims, "records": records, "sections": sections}


def judged(claims: Iterable[dict]) -> list[dict]:
    """The cases that the correction is over: a control is none, and what no seed may cross needs none."""
    return [case for claim in claims if not claim.get("bound") for case in claim["cases"] if "control" not in case]


def dump(gathered: dict) -> str:
    """The text of measured.json: what holds no other list or table stands in one line."""
    text = json.dumps(gathered, indent=1, sort_keys=True, ensure_ascii=False)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\n *", " ", found[0]), text) + "\n"


def text(claim: dict) -> str:
    """A gathered claim in words."""
    cases = [f"  {_name(case)}: {_number(case)}, {_outcome(case, claim)}" for case in claim["cases"]]
    lines = [f"  effect: {_axis(claim)}", *cases] if cases else [f"  {_compared(claim)}"]
    return "\n".join([f"{claim['statement']}: {_said(claim)} ({claim['of']})", *lines])


def for_these_queries(case: dict, claim: dict) -> bool:
    """Whether a case, which is no control, is open over queries."""
    return "control" not in case and open_over_queries(case, claim)


def open_over_queries(case: dict, claim: dict) -> bool:
    """Whether other queries than these might decide a case, or a control, otherwise than the seeds do."""
    if "from" not in case or case["outcome"] == NOT_SHOWN:
        return False
    low, high = case["from"], case["to"]
    return max(-low, high) > claim["least"] if case["outcome"] == NEGLIGIBLE else low <= 0 <= high


def counted(claims: Iterable[dict]) -> dict[str, int]:
    """How many claims have each verdict."""
    verdicts = [claim["verdict"] for claim in claims]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def _claim(label: str, statement: str, of: str, reason: str, was: Sequence[str]) -> dict:
    if not re.fullmatch(r"claim-[a-z0-9-]+", label):
        raise ValueError(f"label must be claim-... in small letters, was {label!r}")
    if not statement.strip():
        raise ValueError(f"statement of {label} must not be empty")
    if not SOURCES.fullmatch(of):
        raise ValueError(f'of {label} must be "book", "notes 1" to "notes 7", or "notes demo", was {of!r}')
    return {"label": label, "statement": statement, "of": of, "reason": reason, "was": list(was)}


def _row(label: str, name: str, values: Sequence[float], overlap: float | None, least: float, bound: bool) -> dict:
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError(f"cases of {label} must be finite, {name!r} had {x.tolist()}")
    mean, spread = x.mean(), np.ptp(x) and x.std(ddof=1)  # a sum of equal numbers can be off by a rounding
    error = spread * math.sqrt(1 / len(x) + (overlap or 0.0))
    half, power = (special.stdtrit(len(x) - 1, q) * error for q in (1 - LEVEL / 2, 0.8))
    p = 2 * special.stdtr(len(x) - 1, -abs(mean) / error) if error else float(not mean)
    outcome = NOT_SHOWN if p >= LEVEL else SHOWN if mean > 0 else REVERSED
    if bound:
        outcome = SHOWN if (x >= 0).all() else REVERSED
    elif abs(mean) + half < least:
        outcome = NEGLIGIBLE
    # below 1e-4 it survives the correction over some hundred cases, and its digits depend on the processor
    row = {"name": name, "outcome": outcome, "p": float(f"{max(p, 1e-4):.2g}")}
    numbers = {"mean": mean, "low": mean - half, "high": mean + half, "sees": half + power}
    if (over := getattr(values, "over_queries", None)) is not None:
        numbers |= {"from": mean - over, "to": mean + over}
    # of what rounds to 0 the sign stays, since it decides; of what is 0 but for its last digits there is none
    return row | {key: round(round(float(number), 6) or 0.0, 3) for key, number in numbers.items()}


def _rounded(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _rounded(f"{name}, {key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(name, inner) for inner in value]
    if isinstance(value, bool | int | str):
        return value
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"record {name} must hold finite numbers, texts, lists or tables of them, had {value!r}")
    return round(float(f"{value:.4g}"), 6) + 0.0


def _verdict(claim: dict) -> str:
    outcomes = {case["outcome"] for case in claim["cases"] if "control" not in case}
    if not outcomes:
        return "derived"
    if outcomes == {SHOWN}:
        return "holds"
    if REVERSED in outcomes and (claim["jointly"] or SHOWN not in outcomes):
        return REVERSED if claim["jointly"] or outcomes == {REVERSED} else "reversed in part"
    return "holds in part" if SHOWN in outcomes and not claim["jointly"] else NOT_SHOWN


def _said(claim: dict) -> str:
    """The verdict, with the cases where they differ or are negligible; a chart has a row for each of many."""
    parts = []
    for outcome in MARKS:
        names = [case["name"] for case in claim["cases"] if case["outcome"] == outcome and "control" not in case]
        if names:
            begin = {name.rpartition(", ")[0] for name in names}  # said once, if all begin alike
            ends = [name.rpartition(", ")[2] if len(begin) == 1 else name for name in names[1:]]
            parts.append(f"{outcome} for {' / '.join([names[0], *ends]) if len(names) < 4 else f'{len(names)} cases'}")
    told = len(parts) > 1 or "".join(parts).startswith(NEGLIGIBLE)
    return f"{claim['verdict']} ({'; '.join(parts)})" if told else claim["verdict"]


def _compared(claim: dict) -> str:
    if claim["said"] == claim["found"]:
        return f"computed: {claim['found']}"
    who = "the book says" if claim["of"] == "book" else "the notes say"
    return f"{who} {claim['said']}, it is {claim['found']}"


def _axis(claim: dict) -> str:
    return claim["effect"] + (f" ({claim['unit']})" if claim["unit"] else "")


def _seeds(claim: dict) -> str:
    overlap, least = claim["overlap"], claim["least"]
    corrected = f", corrected for halves that overlap (n_test / n_train = {overlap:g})" if overlap else ""
    matters = f", the least that matters is {least:g}" if least not in (0.0, LEAST.get(claim["unit"])) else ""
    return f"{claim['seeds']} seeds, 95 % intervals{corrected}{matters}"


def _name(case: dict) -> str:
    return f"control, {case['name']}" if "control" in case else case["name"]


def _number(case: dict) -> str:
    return f"{case['mean']:+.3f} [{case['low']:+.3f}, {case['high']:+.3f}]"


def _reading(case: dict, claim: dict) -> str:
    """What a lab may say, without the other labs."""
    if claim["bound"]:
        return "never crossed" if case["outcome"] == SHOWN else "crossed"
    readings = {SHOWN: "above 0", NEGLIGIBLE: f"within {claim['least']:g} of 0", REVERSED: "below 0"}
    over = f"; [{case['from']:+.3f}, {case['to']:+.3f}] over queries" if "from" in case else ""
    return readings.get(case["outcome"], f"0 inside, {case['sees']:.3f} would have been seen") + over


def _outcome(case: dict, claim: dict) -> str:
    mark = "control" if "control" in case else case["outcome"]
    if mark != NOT_SHOWN:
        return f"{mark}, for these queries" if for_these_queries(case, claim) else mark
    corrected = " after correction" if case["p"] < LEVEL else ""
    return f"{mark}{corrected}, {case['sees']:.3f} would have been seen"


def picture(claims: Sequence[dict], *, lab: bool = False, settings: bool = False) -> str:
    """The HTML of claims, in one line. Those of one unit have one scale."""
    tables = []
    for claim in claims:
        alike = [case for other in claims if other.get("unit") == claim.get("unit") for case in other["cases"]]
        least = claim.get("least", 0.0)
        ends = [-least, 0.0, least, *(case[x] for case in alike for x in ("low", "high", "from", "to") if x in case)]
        low, width = min(ends), max(ends) - min(ends) or 1.0
        ticks = [tick for tick in MaxNLocator(3).tick_values(low, low + width) if low <= tick <= low + width]
        # a margin on both sides, for what is drawn around a point
        tables.append((claim, lambda x, low=low, width=width: f"{5 + 90 * (x - low) / width:.1f}%", ticks))
    used = {"control" if "control" in case else case["outcome"] for claim in claims for case in claim["cases"]}
    return figures.HTML.get_template("chart.html").render(
        said=_said, seeds=_seeds, axis=_axis, compared=_compared, name=_name, number=_number, reading=_reading,
        outcome=_outcome, open=for_these_queries, figures=figures, tables=tables, lab=lab, settings=settings,
        reason=claims[0]["reason"], marks=[m for m in MARKS if m in used],
    ).replace("\n", "")  # fmt: skip
