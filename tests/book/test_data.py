"""The corpus is the same on every machine, and its groups and split are what they claim to be."""

import hashlib
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mathlib.book import data


@pytest.fixture(scope="module")
def entries():
    return data.docstrings()


def test_the_corpus_is_the_same_on_every_machine(entries):
    # computed from the wheels for Linux, Windows and macOS, by Python 3.11 and 3.13; new with each pin
    text = json.dumps([[e.name, e.query, e.document, e.group] for e in entries])
    assert len(entries) == 6272
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_reading_the_sources_gives_what_the_cache_keeps(entries):
    fresh = data.read("networkx")
    kept = [e for e in entries if e.name.startswith("networkx.")]
    assert [(e.name, e.query, e.document) for e in fresh] == [(e.name, e.query, e.document) for e in kept]


def test_entries_are_public_unique_and_in_order(entries):
    names = [e.name for e in entries]
    assert names == sorted(set(names))
    assert not any(part in ("tests", "conftest") or part.startswith("test_") for n in names for part in n.split("."))
    assert not any(name.rpartition(".")[2].startswith("_") for name in names if name.count(".") > 3)


def test_digits_are_those_of_scikit_learn():
    pixels, labels = load_digits(return_X_y=True)
    assert (data.digits()[0] == pixels / 16).all() and (data.digits()[1] == labels).all()
    assert data.digits()[1].dtype == labels.dtype


def test_no_group_is_split_between_training_and_test(entries):
    train, test = data.split(entries)
    assert sorted(train + test) == list(range(len(entries)))
    assert not {entries[i].group for i in train} & {entries[i].group for i in test}
    assert 0.15 < len(test) / len(entries) < 0.25
    fit, held = data.split(entries, train, salt="validation ")
    assert sorted(fit + held) == train
    assert not {entries[i].group for i in fit} & {entries[i].group for i in held}
    assert 0.15 < len(held) / len(train) < 0.25
    assert data.split(entries, train) == (train, [])  # without another salt it is the same fifth


def test_equal_summaries_and_nearly_equal_documents_form_groups():
    body = " ".join(f"word{i}" for i in range(60))
    other = " ".join(f"other{i}" for i in range(60))
    pairs = [
        ("Sort an array.", "a\n\n" + body),
        ("Plot a line.", "b\n\n" + other),
        ("sort AN array", "c\n\n" + other.replace("other", "third")),  # the summary of the first
        ("Turn a matrix.", "d\n\n" + other + " end"),  # 56 of 57 runs of five are the second's
        ("Fill a matrix.", "e\n\n" + other.replace("other30 ", "x ")),  # 51 of 61: 5 runs differ on each side
        ("Draw a matrix.", "f\n\n" + other.replace("other30 ", "x ").replace("other45 ", "y ")),  # 46 of 66
    ]
    # the last one is near the fifth (51 of 61), and so belongs to the group although it is far from the second
    assert data.grouped(pairs) == [0, 1, 0, 1, 1, 1]
    assert data.grouped([*pairs[:2], pairs[5]]) == [0, 1, 2]
    with pytest.raises(ValueError, match="^pairs must be at least one, there were none$"):
        data.grouped([])


def test_members_of_a_group_answer_each_other(entries):
    first = next(i for i, e in enumerate(entries) if e.group != i)
    answers = data.relevant(entries, [first])[0]
    assert {first, entries[first].group} <= answers
    assert {entries[i].group for i in answers} == {entries[first].group}


def test_an_unwritable_cache_changes_nothing(monkeypatch, tmp_path, entries):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(data, "read", lambda *packages: entries[:3])
    assert data.docstrings.__wrapped__() == entries[:3]


def test_the_cache_returns_what_was_written(monkeypatch, tmp_path, entries):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "read", lambda *packages: entries[:3])
    first = data.docstrings.__wrapped__()
    monkeypatch.setattr(data, "read", lambda *packages: pytest.fail("read twice"))
    assert data.docstrings.__wrapped__() == first == entries[:3]


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match="packages must name installed packages, 'no_such_package'"):
        data.read("no_such_package")


def test_digits_are_real_and_scaled():
    pixels, labels = data.digits()
    assert pixels.shape == (1797, 64) and pixels.dtype == np.float64
    assert pixels.min() == 0 and pixels.max() == 1
    assert set(labels.tolist()) == set(range(10))


DIGEST = "ceb96fe2e8867446bf5d2a8520b3b7423f2b0c7e8d69d8f27dd5c3144c4085b8"
