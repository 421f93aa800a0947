"""How the labs judge a search, against numbers on paper."""

import math

import pytest
import torch

from mathlib import DualEncoder
from mathlib.book.judging import error_over, first_ten
from mathlib.book.text import TextEncoder, Vocabulary


def test_the_first_ten_are_judged_for_each_query():
    vocabulary = Vocabulary(["a", "b", "c"], least=1)
    model = DualEncoder(TextEncoder(vocabulary, start=torch.eye(3, dtype=torch.float64)))
    documents = vocabulary.bags(["a", "a b", "b", *["c"] * 9])
    found = first_ten(model, vocabulary.bags(["a", "b"]), documents, [{1}, {2, 1}])
    # the first query finds document 0 before its answer; the second finds its two answers first
    torch.testing.assert_close(found, torch.tensor([[1 / 2, 1.0], [1 / math.log2(3), 1.0]]).double())


def test_an_error_counts_groups_not_queries():
    gains = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    alone = error_over(torch.arange(4), gains)
    assert alone == pytest.approx(math.sqrt(2**2 + 0 + 1 + 1) / 4)
    assert error_over(torch.tensor([9, 9, 2, 5]), gains) == pytest.approx(math.sqrt(2**2 + 1 + 1) / 4)
    assert error_over(torch.tensor([9, 2, 9, 5]), gains) == pytest.approx(math.sqrt(1 + 0 + 1) / 4)
