"""Verdicts follow from the numbers, by hand; what chapters draw and say is what the labs measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat import v4
from test_structure import prose

from mathlib.book import verdicts
from mathlib.book.judging import Gains
from mathlib.book.verdicts import NEGLIGIBLE, NOT_SHOWN, REVERSED, SHOWN

CHAPTERS = Path(__file__).parents[2] / "chapters"
WORDS = {"of": "notes 1", "effect": "with minus without", "setting": "none"}
# ten numbers of mean 0 and standard deviation 1: half their 95 % interval is 2.2622 / sqrt(10) = 0.7154
TEN = np.array([-1.0, 1.0] * 5) * 0.9**0.5


def measure(cases, label="claim-x", statement="x", **changes):
    return verdicts.measured(label, statement, cases=cases, **{**WORDS, **changes})


def lab(path, *outputs):
    cells = [v4.new_code_cell(outputs=[v4.new_output("display_data", data=o._repr_mimebundle_())]) for o in outputs]
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_markdown_cell("# Lab: One\n"), *cells])), encoding="utf-8")
    return path


def gathered(folder, *outputs):
    return verdicts.gather([lab(folder / "01_x.ipynb", *outputs)])


# A case


@pytest.mark.parametrize(("mean", "outcome"), [(0.72, SHOWN), (0.71, NOT_SHOWN), (-0.71, NOT_SHOWN), (-0.72, REVERSED)])
def test_the_interval_decides_a_case(mean, outcome):
    [case] = measure({"a": mean + TEN}).data["cases"]
    assert case["outcome"] == outcome
    assert (case["low"], case["mean"], case["high"]) == (round(mean - 0.7154, 3), mean, round(mean + 0.7154, 3))
    assert (case["p"] < 0.05) == (outcome != NOT_SHOWN)


def test_what_would_have_been_seen_is_seen_with_80_percent():
    # (2.2622 + 0.8834) / sqrt(10): Student's t, 9 degrees of freedom
    [case] = measure({"a": TEN}).data["cases"]
    assert case["sees"] == 0.995
    draws = np.random.default_rng(0).normal(0.995, 1, (400, 10))
    found = [measure({"a": draw}).data["cases"][0]["outcome"] for draw in draws]
    assert 0.74 < found.count(SHOWN) / 400 < 0.86


def test_halves_that_overlap_widen_the_interval():
    # Nadeau and Bengio: sqrt(1 / 10 + 0.5) in the place of sqrt(1 / 10), so 2.2622 * 0.7746 = 1.7523
    [case] = measure({"a": 1.76 + TEN}, overlap=0.5).data["cases"]
    assert (case["low"], case["outcome"]) == (0.008, SHOWN)
    assert measure({"a": 1.75 + TEN}, overlap=0.5).data["cases"][0]["outcome"] == NOT_SHOWN
    assert "n_test / n_train = 0.5" in repr(measure({"a": 1.75 + TEN}, overlap=0.5))


def test_an_interval_within_the_least_that_matters_is_negligible_also_if_its_sign_is_certain():
    # the interval ends 0.7154 from the mean, and 0.0715 from that of a tenth
    means = {"within": 0.0, "ends at it": 0.1, "small": 0.02, "costs": -0.1, "larger": 0.13, "reversed": -0.13}
    wide = {name: 10 * mean + TEN for name, mean in means.items()}
    found = [case["outcome"] for case in measure({n: v / 10 for n, v in wide.items()}, least=0.2).data["cases"]]
    assert found == [NEGLIGIBLE] * 4 + [SHOWN, REVERSED]
    ends = [measure({"a": TEN}, least=least).data["cases"][0]["outcome"] for least in (0.7153, 0.7155)]
    assert ends == [NOT_SHOWN, NEGLIGIBLE]
    assert "a: +0.000 [-0.715, +0.715], within 0.72 of 0" in repr(measure({"a": TEN}, least=0.72))


@pytest.mark.parametrize(("unit", "least"), [("MRR", 0.005), ("share", 0.005), ("nats", 0)])
def test_the_least_that_matters_is_that_of_the_unit(unit, least):
    assert measure({"a": TEN}, unit=unit).data["least"] == least
    assert not any("least" in repr(measure({"a": TEN}, unit=unit, least=x)) for x in (None, 0))
    other = measure({"a": TEN}, unit=unit, least=0.1)
    assert other.data["least"] == 0.1 and "the least that matters is 0.1" in repr(other)


def test_equal_numbers_have_no_spread():
    equal = measure({"a": [0.3] * 10, "b": [0.0] * 10, "c": [-0.3] * 10}).data["cases"]
    assert [case["outcome"] for case in equal] == [SHOWN, NOT_SHOWN, REVERSED]
    assert equal[0]["low"] == equal[0]["high"] == 0.3


def test_what_rounds_to_0_keeps_its_sign():
    shown = repr(measure({"a": [-0.0004] * 10, "b": [0.0004] * 10, "c": [-1e-9] * 10, "d": [0.0] * 10}))
    means = re.findall(r"[abcd]: (\S+) \[(\S+), (\S+)\]", shown)
    assert means == [("-0.000",) * 3, ("+0.000",) * 3, ("+0.000",) * 3, ("+0.000",) * 3]


def test_gains_over_queries_bring_their_interval_and_say_where_it_is_open(tmp_path):
    # both cases are shown over seeds; half the interval over four queries of 0 and 4 is 1.96
    queries, apart = torch.tensor([0.0, 4.0, 0.0, 4.0]), torch.arange(4)
    cases = {"open": Gains(1.9 + TEN, apart, queries), "sure": Gains(2.1 + TEN, apart, queries), "none": 2 + TEN}
    controls = {"control": Gains(1.0 + TEN, apart, queries)}
    claim = measure(cases, controls=controls)
    assert "open: +1.900 [+1.185, +2.615], above 0; [-0.060, +3.860] over queries" in repr(claim)
    assert "none: +2.000 [+1.285, +2.715], above 0\n" in repr(claim)
    [claim] = gathered(tmp_path, claim)["claims"]
    assert [verdicts.for_these_queries(case, claim) for case in claim["cases"]] == [True, False, False, False]
    assert claim["verdict"] == "holds"
    said = verdicts.text(claim).splitlines()[2:]
    assert [line.rpartition("], ")[2] for line in said] == ["shown, for these queries", "shown", "shown", "control"]
    page = BeautifulSoup(verdicts.picture([claim]), "html.parser")
    assert [row.small.text for row in page.select("tbody th") if row.small] == ["(for these queries)"]
    assert [len(svg.find_all("line")) for svg in page.select("tbody td > svg")] == [3, 3, 2, 3]
    assert page.figcaption.text.endswith(", thin line: over queries")
    # what is negligible over seeds may matter for other queries: half the interval is 1.96 or, of a tenth, 0.196
    small = {"open": Gains(TEN / 100, apart, queries), "sure": Gains(TEN / 100, apart, queries / 10)}
    [claim] = gathered(tmp_path, measure(small, least=0.2))["claims"]
    assert [case["outcome"] for case in claim["cases"]] == [NEGLIGIBLE, NEGLIGIBLE]
    assert [verdicts.for_these_queries(case, claim) for case in claim["cases"]] == [True, False]
    assert "over queries" not in verdicts.picture([gathered(tmp_path, measure({"a": TEN}))["claims"][0]])


def test_a_bound_holds_until_one_seed_crosses_it(tmp_path):
    kept = measure({"a": [0.0] * 9 + [9.0]}, bound=True, least=100)
    crossed = measure({"a": [9.0] * 9 + [-0.001]}, label="claim-y", bound=True)
    assert "a: +0.900" in repr(kept) and "never crossed" in repr(kept) and ", crossed" in repr(crossed)
    assert [claim["verdict"] for claim in gathered(tmp_path, kept, crossed)["claims"]] == ["holds", REVERSED]


# A verdict


@pytest.mark.parametrize(
    ("means", "jointly", "said"),
    [
        ({"a": 2, "b": 3}, False, "holds"),
        ({"a": 2, "b": 0, "c": -2}, False, "holds in part (shown for a; not shown for b; reversed for c)"),
        ({"a": 2, "b": 3, "c": 0}, False, "holds in part (shown for a / b; not shown for c)"),
        (dict.fromkeys("abcd", 2) | {"e": -2}, False, "holds in part (shown for 4 cases; reversed for e)"),
        ({"a": 2, "b": 0}, True, "not shown (shown for a; not shown for b)"),
        ({"a": 2, "b": -2}, True, "reversed (shown for a; reversed for b)"),
        ({"a": -2, "b": -3}, False, "reversed"),
        ({"a": 0, "b": 0}, False, "not shown"),
        ({"a": 0, "b": -2}, False, "reversed in part (not shown for a; reversed for b)"),
        ({"a": 2, "b": 0.1, "c": -0.1}, False, "holds in part (shown for a; negligible for b / c)"),
        ({"a": 0.1, "b": -0.1}, False, "not shown (negligible for a / b)"),
        ({"a, x": 2, "a, y": 3, "b": 0}, False, "holds in part (shown for a, x / y; not shown for b)"),
        ({"a, x": 2, "b, x": 3, "c": 0}, False, "holds in part (shown for a, x / b, x; not shown for c)"),
        ({"a": -2, "b": 0.1}, False, "reversed in part (negligible for b; reversed for a)"),
        ({"a": 2, "b": 0.1}, True, "not shown (shown for a; negligible for b)"),
    ],
)
def test_a_verdict_sums_up_its_cases(tmp_path, means, jointly, said):
    controls = {"control": TEN - 3}
    cases = {name: mean + (TEN / 10 if abs(mean) == 0.1 else TEN) for name, mean in means.items()}
    least = 0.2 if 0.1 in means.values() else 0.0
    claim = measure(cases, jointly=jointly, controls=controls, least=least)
    [claim] = gathered(tmp_path, claim)["claims"]
    assert verdicts.text(claim).splitlines()[0] == f"x: {said} (notes 1)"
    assert said.partition(" (")[0] == claim["verdict"] in verdicts.VERDICTS


def test_cases_are_corrected_over_the_whole_book_by_benjamini_and_hochberg(tmp_path):
    # p of 0.72 + TEN is 0.0486: alone it is shown, as one of four it would have to be below 0.05 / 4
    weak = measure({"weak": 0.72 + TEN})
    [alone] = gathered(tmp_path, weak)["claims"]
    assert alone["verdict"] == "holds"
    others = measure({"a": TEN, "b": TEN, "c": TEN}, label="claim-y", controls={"d": 9 + TEN})
    bound = measure({"a": [0.0] * 10}, label="claim-z", bound=True)
    weak_claim, _, bound_claim = gathered(tmp_path, weak, others, bound)["claims"]
    assert weak_claim["verdict"] == NOT_SHOWN and bound_claim["verdict"] == "holds"
    assert "weak: +0.720 [+0.005, +1.435], not shown after correction, 0.995 would have been seen" in verdicts.text(
        weak_claim
    )
    # what is negligible stays so, whether its sign survives or not
    small = measure({"small": (0.72 + TEN) / 10, **dict.fromkeys("abc", TEN)}, least=0.2)
    assert [case["outcome"] for case in gathered(tmp_path, small)["claims"][0]["cases"]] == [NEGLIGIBLE] + [
        NOT_SHOWN
    ] * 3
    # of four, the two smallest may be .0125 and .025: p is .020 and .024 in the first try, .020 and .040 in the second
    for second, shown in ((0.857, ["a", "b"]), (0.758, [])):
        means = {"a": 0.892, "b": second, "c": 0.5, "d": 0.2}
        [claim] = gathered(tmp_path, measure({name: mean + TEN for name, mean in means.items()}))["claims"]
        assert [case["name"] for case in claim["cases"] if case["outcome"] == SHOWN] == shown


def test_what_follows_from_a_definition_is_checked_and_counts_apart(tmp_path):
    right = verdicts.derived("claim-a", "a", of="book", said="log 2", found="log 2")
    slip = verdicts.derived("claim-b", "b", of="notes demo", said="0.974", found="0.975", slip=True)
    found = gathered(tmp_path, right, slip)["claims"]
    assert [verdicts.text(claim) for claim in found] == [
        "a: derived (book)\n  computed: log 2",
        "b: derived (notes demo)\n  the notes say 0.974, it is 0.975",
    ]
    assert verdicts.counted(found) == dict.fromkeys(verdicts.VERDICTS, 0) | {"derived": 2}
    for said, found, slip in (("1", "2", False), ("1", "1", True)):
        with pytest.raises(ValueError, match="found of claim-a must"):
            verdicts.derived("claim-a", "a", of="book", said=said, found=found, slip=slip)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "x"}, "label must be claim-..., was 'x'".replace("...,", "... in small letters,")),
        ({"statement": " "}, "statement of claim-x must not be empty"),
        ({"of": ""}, "of claim-x must be \"book\", .* was ''"),
        ({"of": "notes 8"}, "was 'notes 8'"),
        ({"effect": ""}, "effect of claim-x must say what is subtracted .*, was ''"),
        ({"effect": "mAP"}, "effect of claim-x must say what is subtracted .*, was 'mAP'"),
        ({"setting": ""}, "setting of claim-x must say how it was measured, was ''"),
        ({"least": -0.1}, "least of claim-x must be at least 0, was -0.1"),
        ({"cases": {}}, r"cases of claim-x must be one or more, .* had \[\]"),
        ({"controls": {"a": TEN}}, r"not among its controls, had \['a'\]"),
        ({"cases": {"a": []}}, "the same 10 or more seeds, had 0 for 'a'"),
        ({"cases": {"a": [1.0] * 9}}, "the same 10 or more seeds, had 9 for 'a'"),
        ({"cases": {"a": TEN, "b": [1.0] * 11}}, "had 10 for 'a', 11 for 'b'"),
        ({"controls": {"b": [1.0] * 11}}, "had 10 for 'a', 11 for 'b'"),
        ({"cases": {"a": [*TEN[1:], float("nan")]}}, "cases of claim-x must be finite, 'a' had .*nan"),
    ],
)
def test_an_incomplete_claim_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        measure(**{"cases": {"a": TEN}, **changes})


def test_unknown_claims_and_records_are_named():
    with pytest.raises(ValueError, match="claims must be among those that the labs measured, claim-unheard is not"):
        verdicts.chart("claim-unheard")
    with pytest.raises(ValueError, match="a record must be one of .*, was unheard"):
        verdicts.record("unheard")


def test_a_name_can_stand_for_one_thing_only(tmp_path):
    with pytest.raises(ValueError, match="unique in all labs, claim-x is not"):
        gathered(tmp_path, measure({"a": TEN}), measure({"a": TEN}, label="claim-y", was=["claim-x"]))
    with pytest.raises(ValueError, match="unique in all labs, c is not"):
        gathered(tmp_path, verdicts.recorded("c", {}), verdicts.recorded("c", {}))


@pytest.mark.parametrize("value", [float("inf"), None, np.ones(2), {"deep": [float("nan")]}])
def test_a_record_holds_what_a_file_can_hold(value):
    with pytest.raises(ValueError, match="record curve, x.* must hold finite numbers"):
        verdicts.recorded("curve", {"x": value})


# What is gathered, and drawn


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Two claims, the first with a control, in a file of their own."""
    first = measure(
        {"a < b": 2 + TEN, "c": 0 + TEN, "d": TEN / 1000},
        controls={"at random": TEN},
        statement="1 < 2 | 3",
        unit="mAP",
        was=["claim-w"],
    )
    slip = verdicts.derived("claim-y", "y", of="notes demo", said="1", found="2", slip=True)
    data = gathered(tmp_path, first, slip, verdicts.recorded("curve", {"x": [1, 0.12345678], "y": {"z": 1e-4}}))
    file = tmp_path / "measured.json"
    file.write_text(verdicts.dump(data), encoding="utf-8")
    monkeypatch.setattr(verdicts, "FILE", file)
    return data


def test_the_file_is_what_was_gathered_a_case_in_a_line(book):
    assert verdicts.load() == book
    assert verdicts.record("curve") == {"x": [1, 0.1235], "y": {"z": 1e-4}}
    lines = verdicts.FILE.read_text(encoding="utf-8").splitlines()
    assert sum('"name": "a < b"' in line and '"mean": 2.0' in line for line in lines) == 1


def test_a_chart_says_what_it_draws(book):
    drawn = verdicts.chart("claim-x", "claim-y")
    assert repr(drawn).splitlines() == [
        "1 < 2 | 3: holds in part (shown for a < b; negligible for d; not shown for c) (notes 1)",
        "  effect: with minus without (mAP)",
        "  a < b: +2.000 [+1.285, +2.715], shown",
        "  c: +0.000 [-0.715, +0.715], not shown, 0.995 would have been seen",
        "  d: +0.000 [-0.001, +0.001], negligible",
        "  control, at random: +0.000 [-0.715, +0.715], control",
        "y: derived (notes demo)",
        "  the notes say 1, it is 2",
    ]
    page = BeautifulSoup(drawn.html, "html.parser")
    assert [row.get_text(" ", strip=True) for row in page.select("tbody tr")] == [
        "a < b +2.000 [+1.285, +2.715]",
        "c (0.995 would have been seen) +0.000 [-0.715, +0.715]",
        "d +0.000 [-0.001, +0.001]",
        "control, at random +0.000 [-0.715, +0.715]",
    ]
    assert [svg["aria-label"] for svg in page.select("tbody td > svg")] == [
        "shown",
        "not shown, 0.995 would have been seen",
        "negligible",
        "control",
    ]
    assert [tag["id"] for tag in page.find_all(id=True)] == ["claim-x", "claim-y"]
    assert [link["href"] for link in page.find_all("a")] == [f"labs/01_x.html#claim-{x}" for x in "xy"]
    caption = page.caption.get_text(" ", strip=True)
    assert caption.startswith("1 < 2 | 3 (notes 1): holds in part (shown for a < b; negligible for d; not shown for c)")


def test_a_dot_stands_at_its_mean_and_outcomes_differ_in_shape(book):
    page = BeautifulSoup(verdicts.chart("claim-x").html, "html.parser")
    drawn = page.select("tbody td > svg")

    def at(tag, name="x"):
        return float(tag[name].rstrip("%"))

    band, line, interval = drawn[0].find_all("line")
    zero, (low, high) = at(line, "x1"), [at(interval, end) for end in ("x1", "x2")]
    middle = at(drawn[0].svg)
    assert low < middle < high <= 100 and abs((low + high) / 2 - middle) < 0.11
    # 2 is to 2.715 as the dot's way from 0 is to the interval's end
    assert abs((middle - zero) / (high - zero) - 2 / 2.7154) < 0.01
    assert all(abs(at(svg.svg) - zero) < 0.11 for svg in drawn[1:])
    shapes = {re.sub(r"#\w+", "", "".join(map(str, svg.svg.contents))) for svg in drawn}
    assert len(shapes) == 4
    # what is too small to matter lies around 0, as wide as twice 0.005 of the axis
    assert at(band, "x1") < zero < at(band, "x2")
    assert abs((at(band, "x2") - at(band, "x1")) / (high - low) - 0.005 / 0.7154) < 0.01


def test_the_first_page_counts_the_verdicts_of_each_section(book):
    drawn = verdicts.summary()
    assert repr(drawn) == "One: 0 holds, 1 holds in part, 0 not shown, 0 reversed in part, 0 reversed, 1 derived"
    row = BeautifulSoup(drawn.html, "html.parser").tbody.tr
    assert (row.get_text(" "), row.a["href"]) == ("One 0 1 0 0 0 1", "labs/01_x.html")


def test_statements_are_text_not_html(book):
    assert "<b>" not in measure({"<b>": TEN}, statement="<b>", reason="<b>", setting="<b>").html
    assert "1 &lt; 2" in verdicts.chart("claim-x").html


# The book


NOTEBOOKS = sorted(CHAPTERS.glob("*.ipynb"))
PAGES = [*NOTEBOOKS, *sorted(CHAPTERS.glob("labs/*.ipynb")), *sorted(CHAPTERS.glob("*.md"))]
# [+0.024](labs/06_gist.ipynb#claim-gist-mask "200 labels, margin 0"): a case's mean, or a verdict
QUOTED = re.compile(r'\[([^\]]+)\]\((?:labs/(\w+)\.ipynb)?#(claim-[\w-]+)\s+"([^"]+)"\)')


def misquoted(text, claims):
    """The sentences' numbers and verdicts that are not the file's."""
    problems, known = [], {claim["label"]: claim for claim in claims}
    for words, lab, label, title in QUOTED.findall(text):
        if label not in known or lab not in ("", known[label]["lab"]):
            problems.append(f"{label} was not measured" + f" in {lab}" * bool(lab))
            continue
        means = {case["name"]: case["mean"] for case in known[label]["cases"]}
        numbers = re.findall(r"[+\N{MINUS SIGN}-]?\d+(?:\.\d+)?", words)
        if title in verdicts.VERDICTS:
            if title != known[label]["verdict"]:
                problems.append(f"{label}: {known[label]['verdict']}, not {title}")
        elif title not in means:
            problems.append(f"{label} has no case {title}")
        elif len(numbers) != 1:
            problems.append(f"{label}, {title}: one number, not {words}")
        else:
            number = numbers[0].replace("\N{MINUS SIGN}", "-")
            digits = len(number.partition(".")[2])
            if abs(float(number) - means[title]) > 0.5 * 10**-digits + 1e-9:
                problems.append(f"{label}, {title}: {means[title]:+.3f}, not {words}")
    return problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('gains [+2.000 mAP](labs/01_x.ipynb#claim-x "a < b") and [\N{MINUS SIGN}0.0](#claim-x "c")', None),
        ('[2.0](#claim-x "a < b"), [helps](#claim-x "holds in part"), [0.3](#claim-x)', None),
        ('[+2.001](#claim-x "a < b")', "claim-x, a < b: +2.000, not +2.001"),
        ('[-2.0](#claim-x "a < b")', "claim-x, a < b: +2.000, not -2.0"),
        ('[two](#claim-x "a < b")', "claim-x, a < b: one number, not two"),
        ('[helps](#claim-x "holds")', "claim-x: holds in part, not holds"),
        ('[2.0](#claim-x "b")', "claim-x has no case b"),
        ('[2.0](#claim-z "b")', "claim-z was not measured"),
        ('[2.0](labs/02_y.ipynb#claim-x "a < b")', "claim-x was not measured in 02_y"),
    ],
)
def test_a_sentence_quotes_the_file(book, text, problem):
    assert misquoted(text, book["claims"]) == ([problem] if problem else [])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(CHAPTERS).as_posix())
def test_numbers_and_verdicts_in_sentences_are_the_files(path):
    assert misquoted(prose(path), verdicts.load()["claims"]) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_charts_are_drawn_from_the_file_as_it_is(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for data in (o["data"] for cell in cells for o in cell.get("outputs", []) if verdicts.MIME in o.get("data", {})):
        drawn = verdicts.chart(*data[verdicts.MIME]["chart"]) if "chart" in data[verdicts.MIME] else verdicts.summary()
        assert "".join(data["text/plain"]) == repr(drawn), f"run: python -m pages execute {path.stem}"
        assert "".join(data["text/html"]) == drawn.html, f"run: python -m pages execute {path.stem}"
