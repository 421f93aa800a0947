"""Claims, measured: a chapter states a claim and its measurements, the verdict is computed here.

A claim has one or several cases (conditions under which it was tried). Each case is a list of effects,
one per seed, signed so that positive means "as claimed". A case holds when the 95 % interval of its
mean (Student's t) lies above 0; where the interval lies below 0 the opposite was seen, where it has 0
inside nothing was shown. The claim then holds, holds when ..., or does not hold.

>>> measured("claim-demo", "Warm water rises", experiment="a glass, 5 tries",
...          effects={"heated": [1.0, 1.2, 0.9, 1.1, 1.0], "cooled": [-1.0, -0.9, -1.1, -1.0, -1.2]})
Claim: Warm water rises
  heated: +1.040 ± 0.114, as claimed
  cooled: -1.040 ± 0.114, the opposite
  (mean ± sd over 5 seeds)
Verdict: holds when heated
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from mathlib.book.verdicts import stored, title

MIME = "application/vnd.mathlib.claim+json"
AS_CLAIMED, OPPOSITE, NOT_SHOWN = "as claimed", "the opposite", "not shown"


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict, as a display object: text, a table for the page, JSON for the page of evidence."""

    label: str
    statement: str
    experiment: str
    cases: tuple[tuple[str, str, str], ...]
    measure: str
    reason: str

    @property
    def verdict(self) -> str:
        """Holds, holds when (the cases that did), or does not hold."""
        kept = [condition for condition, _, outcome in self.cases if outcome == AS_CLAIMED]
        if len(kept) == len(self.cases):
            return "holds"
        return f"holds when {'; '.join(kept)}" if kept else "does not hold"

    def __repr__(self) -> str:
        lines = [f"Claim: {self.statement}"]
        lines += [f"  {condition}: {effect}, {outcome}" for condition, effect, outcome in self.cases]
        return "\n".join([*lines, f"  ({self.measure})", f"Verdict: {self.verdict}"])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in case)}</tr>" for case in self.cases)
        page = (
            f'<div class="claim"><p><strong>Claim.</strong> {html.escape(self.statement)}.<br>'
            f"<strong>Verdict: {html.escape(self.verdict)}.</strong> {html.escape(self.reason)}</p>"
            f"<table><thead><tr><th>Case</th><th>{html.escape(self.measure)}</th>"
            f"<th>Outcome</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
        return {"text/html": page, "text/plain": repr(self), MIME: {**asdict(self), "verdict": self.verdict}}


def measured(
    label: str,
    statement: str,
    *,
    experiment: str,
    effects: Mapping[str, Sequence[float]],
    unit: str = "",
    reason: str = "",
    bound: bool = False,
) -> Claim:
    """A claim about a random outcome. `effects` maps each case to one signed effect per seed.

    `label` is the chapter's own target for the claim, such as "claim-temperature". With `bound` the
    claim is that no seed ever crosses a limit, and the effect is the distance that was left.
    """
    if not effects:
        raise ValueError("effects must have at least one case, was empty")
    counts = {len(values) for values in effects.values()}
    if len(counts) > 1 or min(counts) < 5:
        was = ", ".join(f"{len(values)} for {condition!r}" for condition, values in effects.items())
        raise ValueError(f"effects must have one number for each of the same 5 or more seeds, had {was}")
    cases = []
    for condition, values in effects.items():
        x = np.asarray(values, dtype=float)
        mean, deviation = x.mean(), x.std(ddof=1)
        # scipy's ttest_1samp has this interval too, but warns where all values are equal
        half = student.ppf(0.975, len(x) - 1) * deviation / len(x) ** 0.5
        if bound:
            outcome = AS_CLAIMED if (x >= 0).all() else OPPOSITE
        elif mean - half > 0:
            outcome = AS_CLAIMED
        elif mean + half < 0:
            outcome = OPPOSITE
        else:
            outcome = NOT_SHOWN
        cases.append((condition, f"{mean:+.3f} ± {deviation:.3f}", outcome))
    [seeds] = counts
    measure = f"mean ± sd over {seeds} seeds"
    if unit:
        measure = f"{unit}, {measure}"
    return Claim(label, statement, experiment, tuple(cases), measure, reason)


def computed(label: str, statement: str, *, experiment: str, said: str, found: str, reason: str = "") -> Claim:
    """A claim about a number or a formula: what the notes say, and what the computation gave."""
    outcome = AS_CLAIMED if said == found else OPPOSITE
    cases = ((f"the notes say {said}", f"computed {found}", outcome),)
    return Claim(label, statement, experiment, cases, "value", reason)


def tested(chapters: Path) -> dict[Path, list[dict]]:
    """The notebooks that measured something, in order, and their claims."""
    return {notebook: made for notebook in sorted(chapters.glob("*.ipynb")) if (made := stored(notebook, MIME))}


def counted(made: Sequence[dict]) -> tuple[int, int, int, int]:
    """How many claims; how many hold, hold in some cases, do not hold."""
    verdicts = [claim["verdict"] for claim in made]
    hold, fail = verdicts.count("holds"), verdicts.count("does not hold")
    return len(verdicts), hold, len(verdicts) - hold - fail, fail


class Summary:
    """How the claims of each chapter came out, as a display object: the first page's table."""

    def __init__(self, chapters: Path) -> None:
        self.rows = [(notebook.stem, title(notebook), counted(made)) for notebook, made in tested(chapters).items()]

    def __repr__(self) -> str:
        lines = [
            f"{name}: {n} tested, {a} hold, {b} hold in some cases, {c} do not" for _, name, (n, a, b, c) in self.rows
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heads = ("Chapter", "Tested", "Hold", "Hold in some cases", "Do not hold")
        body = "".join(
            f'<tr><td><a href="{stem}.html">{html.escape(name)}</a></td>{"".join(f"<td>{n}</td>" for n in counts)}</tr>'
            for stem, name, counts in self.rows
        )
        return (
            f'<table class="summary"><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )
