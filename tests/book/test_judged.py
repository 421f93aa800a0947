"""The sample of mined negatives that was read: drawn as lab 02 says, and judged once each."""

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch

from mathlib import mine_hard_negatives
from mathlib.book import data, minilm

FILE = Path(minilm.__file__).with_name("judged.csv")


@pytest.fixture(scope="module")
def rows():
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_what_mining_gives(rows):
    entries = data.docstrings()
    train_ids, _ = data.split(entries)
    names = [entries[i].name for i in train_ids]
    queries, documents = (minilm.stored(name)[train_ids] for name in ("queries", "documents"))
    _, mined = mine_hard_negatives(queries, documents, torch.arange(len(names)), k=4)
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[: len(rows)].tolist()
    ranks = [place % 4 for place in range(len(rows))]
    expected = [(names[i], str(rank + 1), names[mined[i, rank]]) for i, rank in zip(drawn, ranks, strict=True)]
    assert [(row["query"], row["rank"], row["document"]) for row in rows] == expected


def test_each_has_a_verdict_with_a_reason(rows):
    assert len(rows) == 100
    assert {row["verdict"] for row in rows} == {"yes", "partly", "no"}
    assert all(2 <= len(row["reason"].split()) <= 12 for row in rows)
    assert max(Counter(row["query"] for row in rows).values()) == 1
