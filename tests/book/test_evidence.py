"""Verdicts follow from the numbers, by hand-computed intervals."""

from pathlib import Path

import pytest
import yaml

from mathlib.book import evidence, verdicts

CHAPTERS = Path(__file__).parents[2] / "chapters"
FIVE = {"experiment": "none", "reason": "because"}


def outcomes(claim):
    return [outcome for _, _, outcome in claim.cases]


def test_the_interval_decides_a_case():
    # sd 1 over 5 seeds: half the 95 % interval is 2.776 / sqrt(5) = 1.2415
    shape = [-1.2649, -0.6325, 0.0, 0.6325, 1.2649]  # mean 0, sd 1
    claim = evidence.measured(
        "claim-x", "x", effects={
            "above": [1.25 + s for s in shape],
            "below": [-1.25 + s for s in shape],
            "inside": [1.23 + s for s in shape],
        }, **FIVE,
    )  # fmt: skip
    assert outcomes(claim) == ["as claimed", "the opposite", "not shown"]
    assert claim.verdict == "holds when above"


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({"a": [1.0, 1.1, 0.9, 1.0, 1.0]}, "holds"),
        ({"a": [-1.0, -1.1, -0.9, -1.0, -1.0]}, "does not hold"),
        ({"a": [1.0] * 5, "b": [2.0] * 5, "c": [-1.0] * 5}, "holds when a; b"),
    ],
)
def test_a_verdict_sums_up_its_cases(effects, verdict):
    assert evidence.measured("claim-x", "x", effects=effects, **FIVE).verdict == verdict


def test_a_bound_holds_until_one_seed_crosses_it():
    kept = evidence.measured("claim-x", "x", effects={"a": [0.0, 0, 0, 0, 9]}, bound=True, **FIVE)
    crossed = evidence.measured("claim-x", "x", effects={"a": [9.0, 9, 9, 9, -0.001]}, bound=True, **FIVE)
    assert (kept.verdict, crossed.verdict) == ("holds", "does not hold")


@pytest.mark.parametrize(("found", "verdict"), [("0.974", "holds"), ("0.975", "does not hold")])
def test_a_computed_claim_compares_what_is_printed(found, verdict):
    claim = evidence.computed("claim-x", "x", experiment="sum", said="0.974", found=found)
    assert claim.verdict == verdict


@pytest.mark.parametrize(
    ("effects", "message"),
    [
        ({}, "effects must have at least one case, was empty"),
        ({"a": [1.0] * 4}, "the same 5 or more seeds, had 4 for 'a'"),
        ({"a": [1.0] * 5, "b": [1.0] * 6}, "the same 5 or more seeds, had 5 for 'a', 6 for 'b'"),
    ],
)
def test_too_little_is_refused(effects, message):
    with pytest.raises(ValueError, match=message):
        evidence.measured("claim-x", "x", effects=effects, **FIVE)


def test_html_in_a_statement_is_text():
    page = evidence.computed("claim-x", "<b>", experiment="", said="1", found="1")._repr_mimebundle_()["text/html"]
    assert "&lt;b&gt;" in page and "<b>" not in page


def test_every_statement_of_the_notes_is_measured():
    """claims.yml lists what the notes state; each statement, and each erratum, has its place in the evidence.

    A number that is computed once is checked in its chapter.
    """
    gathered = {claim["label"] for claim in verdicts.load()["claims"]}
    rows = (CHAPTERS / "evidence.md").read_text(encoding="utf-8")
    sections = yaml.safe_load((Path(__file__).parent / "claims.yml").read_text(encoding="utf-8"))
    assert len(sections) == 8
    listed = [item for section in sections for item in section["states"] + section.get("errata", [])]
    assert all(item["claims"] if "claims" in item else item["checked"] for item in listed)
    for stem, label in (item["checked"].split("#") for item in listed if "checked" in item):
        assert f'"({label})=' in CHAPTERS.joinpath(f"{stem}.ipynb").read_text(encoding="utf-8")
    listed = {label for item in listed for label in item.get("claims", [])}
    missing = {label for label in listed - gathered if f"](#{label})" not in rows}
    assert missing == set()
