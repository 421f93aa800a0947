"""A small text encoder: a weighted sum of the vectors of a text's words, scaled to unit length.

>>> vocabulary = Vocabulary(["sort a graph", "sort an array", "plot a graph"], least=2)
>>> list(vocabulary.index)
['a', 'graph', 'sort']
>>> TextEncoder(vocabulary, dimensions=4)(vocabulary.bags(["a graph", "unknown words"])).shape
torch.Size([2, 4])
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mathlib.book.data import words


class Bags(NamedTuple):
    """Texts as bags of words: word numbers and their weights, both [texts, words of the longest], 0 where none."""

    ids: Tensor
    weights: Tensor

    def rows(self, index: Tensor | Sequence[int]) -> "Bags":
        """The bags of some of the texts."""
        return Bags(self.ids[index], self.weights[index])


class Vocabulary:
    """The words of at least `least` of the texts, numbered from 1 in alphabetical order; `split` says what a word is.

    A word's weight in a text is (1 + ln count) * ln(number of texts / texts that have it): TF-IDF.
    """

    def __init__(self, texts: Sequence[str], *, least: int = 3, split: Callable[[str], list[str]] = words) -> None:
        if not len(texts):
            raise ValueError("texts must be at least one, there were none")
        self.split = split
        counts = Counter(chain.from_iterable(set(split(text)) for text in texts))
        kept = sorted(word for word, count in counts.items() if count >= least)
        self.index = {word: number for number, word in enumerate(kept, start=1)}
        self.rarity = {word: math.log(len(texts) / counts[word]) for word in kept}

    def bags(self, texts: Sequence[str], *, longest: int = 128) -> Bags:
        """Each text's first `longest` different words that the vocabulary knows."""
        numbers, counts, lengths = [], [], []
        for text in texts:
            found = Counter(map(self.index.get, self.split(text)))
            found.pop(None, None)  # the words that it does not know
            numbers += islice(found, longest)
            counts += islice(found.values(), longest)
            lengths.append(min(len(found), longest))
        places = torch.arange(max([1, *lengths])) < torch.tensor(lengths)[:, None]
        ids, weights = places.long(), places.double()
        ids[places] = torch.tensor(numbers, dtype=torch.long)
        rarity = torch.tensor([0, *self.rarity.values()], dtype=torch.float64)[ids[places]]
        weights[places] = torch.tensor([1 + math.log(n) for n in counts], dtype=torch.float64) * rarity
        return Bags(ids, weights)


class TextEncoder(nn.Module):
    """Bags -> embeddings [texts, dimensions], by default of unit length; no known words give 0.

    The word vectors start at `start` [words, dimensions], in the vocabulary's order, or at random, drawn from `seed`.
    Already then similar texts are similar: random projections keep angles, and the angles are those of the TF-IDF
    vectors. float64, because the chapters print what training gives, and it must be the same number on every
    processor.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        dimensions: int = 64,
        seed: int = 0,
        normalise: bool = True,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        generator, size = torch.Generator().manual_seed(seed), len(vocabulary.index)
        if start is None:
            start = torch.randn(size + 1, dimensions, generator=generator, dtype=torch.float64)[1:]
        if len(start) != size:
            raise ValueError(f"start must have a row for each of the vocabulary's {size} words, had {len(start)}")
        self.normalise = normalise
        vectors = torch.cat([start.new_zeros(1, start.shape[1]), start])
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0)

    def forward(self, *bags: Bags) -> Tensor:
        """The texts of all bags, one after the other: their embeddings [texts, dimensions]."""
        known = [x.ids > 0 for x in bags]
        lengths = torch.cat([x.sum(1) for x in known])
        sums = nn.functional.embedding_bag(
            torch.cat([x.ids[keep] for x, keep in zip(bags, known, strict=True)]),
            self.vectors.weight,
            lengths.cumsum(0) - lengths,
            mode="sum",
            per_sample_weights=torch.cat([x.weights[keep] for x, keep in zip(bags, known, strict=True)]),
        )
        return nn.functional.normalize(sums, dim=-1) if self.normalise else sums
