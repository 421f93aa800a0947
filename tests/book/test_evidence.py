"""What the notes state is measured."""

from pathlib import Path

import yaml

from mathlib.book import verdicts

CHAPTERS = Path(__file__).parents[2] / "chapters"


def test_every_statement_of_the_notes_is_measured():
    """claims.yml lists what the notes state; each statement, and each erratum, has its place in the evidence.

    A number that is computed once is checked in its chapter.
    """
    gathered = {claim["label"] for claim in verdicts.load()["claims"]}
    sections = yaml.safe_load((Path(__file__).parent / "claims.yml").read_text(encoding="utf-8"))
    assert len(sections) == 8
    listed = [item for section in sections for item in section["states"] + section.get("errata", [])]
    assert all(item["claims"] if "claims" in item else item["checked"] for item in listed)
    for stem, label in (item["checked"].split("#") for item in listed if "checked" in item):
        assert f'"({label})=' in CHAPTERS.joinpath(f"{stem}.ipynb").read_text(encoding="utf-8")
    assert {label for item in listed for label in item.get("claims", [])} <= gathered


def test_what_is_said_of_negatives_and_guides_on_digits_is_asked_on_text_too():
    rows = yaml.safe_load((CHAPTERS.parent / "pages" / "grounds.yml").read_text(encoding="utf-8"))
    assert all(row["text"] for row in rows)
    compared = {label for row in rows for label in row["digits"] + row["text"]}
    sections = ("02_false_negatives", "03_hard_negatives", "06_gist")
    asked = {claim["label"] for claim in verdicts.load()["claims"] if claim["lab"] in sections and claim["cases"]}
    assert asked <= compared
