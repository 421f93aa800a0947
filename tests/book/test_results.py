import contextlib
import json

import pytest

from mathlib.book.results import Results


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.delenv("SEEDS", raising=False)
    path = tmp_path / "lab.json"
    path.write_text(json.dumps({"a, 1": [0.5, 0.25, 0.75], "pairs": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}))
    return path


def test_one_seed_runs_and_three_are_read(kept):
    results = Results(kept, range(10, 13))
    assert results.again == [10]
    results["a", 1] = [0.5]
    assert results == {("a", 1): [0.5, 0.25, 0.75]}


def test_two_seeds_run_where_a_lab_asks_for_two(kept):
    results = Results(kept, range(10, 13), again=2)
    assert results.again == [10, 11] and results.seeds == [10, 11, 12]
    results["a", 1] = [0.5, 0.25]
    results["pairs"] = [(1, 2), (3.0, 4.00009)]  # another processor's last digits
    assert results == {("a", 1): [0.5, 0.25, 0.75], "pairs": [[1, 2], [3, 4], [5, 6]]}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (("a", 1), [0.5, 0.2502], r"^a, 1 must be as in .*lab\.json, which SEEDS=all writes anew: [^$]*0\.2502"),
        ("pairs", [[1, 2], [3, 4.1]], r"^pairs must be as in .*lab\.json"),
        ("pairs", [[1, 2], [3, float("nan")]], r"^pairs must be as in .*lab\.json"),
        ("b", [0.5, 0.25], r"^b must be as in .*lab\.json"),
        (("a", 1), [0.5], r"^results of a, 1 must be one for each of \[10, 11\], were 1$"),
    ],
)
def test_what_is_not_kept_is_refused(kept, name, values, message):
    results = Results(kept, range(10, 13), again=2)
    with pytest.raises(ValueError, match=message):
        results[name] = values
    assert results == {}


def test_a_lab_says_how_close_is_close(kept):
    for close, refused in ((0.011, False), (0.009, True)):
        results = Results(kept, range(10, 13), close=close)
        with pytest.raises(ValueError, match="^a, 1 must be as in") if refused else contextlib.nullcontext():
            results["a", 1] = [0.51]


def test_a_missing_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SEEDS", raising=False)
    with pytest.raises(ValueError, match=r"^a must be as in .*none\.json, which SEEDS=all writes anew"):
        Results(tmp_path / "none.json", range(10, 13))["a"] = [1]


def test_all_seeds_write_the_file_that_a_run_is_compared_with(kept, monkeypatch):
    monkeypatch.setenv("SEEDS", "all")
    results = Results(kept, range(10, 13))
    assert results.again == [10, 11, 12]
    results["new", 2] = [{"x": 1 / 3}, {"x": 2}, {"x": 3}]
    results["a", 1] = [0.50009, 0.25, 0.75]  # what is close stays, so that no processor leaves a difference
    assert results["new", 2] == [{"x": 0.333333}, {"x": 2.0}, {"x": 3.0}] and results["a", 1] == [0.5, 0.25, 0.75]
    written = kept.read_text(encoding="utf-8")
    assert written.count("\n") == 4 and json.loads(written).keys() == {"new, 2", "a, 1"}  # what is not set is gone

    monkeypatch.delenv("SEEDS")
    again = Results(kept, range(10, 13))
    again["new", 2] = [{"x": 0.3333334}]
    assert again["new", 2] == results["new", 2]
