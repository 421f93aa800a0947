"""How the labs judge a search, against numbers on paper."""

import math

import pytest
import torch

from mathlib import DualEncoder
from mathlib.book.judging import Gains, first_ten
from mathlib.book.text import TextEncoder, Vocabulary


def test_the_first_ten_are_judged_for_each_query():
    vocabulary = Vocabulary(["a", "b", "c"], least=1)
    model = DualEncoder(TextEncoder(vocabulary, start=torch.eye(3, dtype=torch.float64)))
    documents = vocabulary.bags(["a", "a b", "b", *["c"] * 9])
    found = first_ten(model, vocabulary.bags(["a", "b"]), documents, [{1}, {2, 1}])
    # the first query finds document 0 before its answer; the second finds its two answers first
    torch.testing.assert_close(found, torch.tensor([[1 / 2, 1.0], [1 / math.log2(3), 1.0]]).double())


def test_an_interval_over_queries_counts_groups_not_queries():
    by_query = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)

    def half(*groups):
        return Gains([], torch.tensor(groups), by_query).over_queries

    assert half(0, 1, 2, 3) == pytest.approx(1.96 * math.sqrt(2**2 + 0 + 1 + 1) / 4)
    assert half(9, 9, 2, 5) == pytest.approx(1.96 * math.sqrt(2**2 + 1 + 1) / 4)
    assert half(9, 2, 9, 5) == pytest.approx(1.96 * math.sqrt(1 + 0 + 1) / 4)
    assert Gains([0.5, -1.0], torch.tensor([0, 1, 2, 3]), by_query) == [0.5, -1.0]
