"""Digits to learn from: views of real images, a small encoder, and labels that know the truth.

Two views of one image are a pair that belongs together. Another image of the same class is a *false negative* when
it stands among the negatives, and here, unlike in most data, the label says which ones are.

>>> half = halves(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> view(half.train, generator).shape
torch.Size([898, 64])
>>> encode = encoder(seed=0)
>>> 0 < average_precision(encode(half.test), half.test_labels) < 1
True
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mathlib import similarity_matrix
from mathlib.book import data


class Halves(NamedTuple):
    """Images [n, 64] and their labels [n], one half to train on, the other to judge by."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def halves(seed: int) -> Halves:
    """A random split of the digits into 898 images for training and 899 for testing."""
    pixels, labels = (torch.from_numpy(array) for array in data.digits())
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:898], order[898:]
    return Halves(pixels[train], labels[train], pixels[test], labels[test])


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, 64] moved by up to one pixel either way and with noise of standard deviation 0.1 added."""
    count = len(images)
    shifts = torch.randint(-1, 2, (2, count, 1), generator=generator)
    rows, columns = torch.arange(8) + shifts  # [n, 8] each
    outside = (rows < 0)[:, :, None] | (rows > 7)[:, :, None] | (columns < 0)[:, None] | (columns > 7)[:, None]
    source = rows.clamp(0, 7)[:, :, None] * 8 + columns.clamp(0, 7)[:, None]  # [n, 8, 8]
    moved = images.gather(1, source.flatten(1)).masked_fill(outside.flatten(1), 0.0)
    return moved + 0.1 * torch.randn(count, 64, generator=generator, dtype=images.dtype)


def encoder(seed: int, dimensions: int = 32) -> nn.Sequential:
    """A network of one hidden layer, 64 -> 128 -> dimensions, in float64 from its first number on.

    float64, because the chapters print what training gives, and it must be the same on every processor.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 128, dtype=torch.float64),
            nn.ReLU(),
            nn.Linear(128, dimensions, dtype=torch.float64),
        )


@torch.no_grad()
def average_precision(embedded: Tensor, labels: Tensor) -> float:
    """Mean average precision: rank all other images for each one; those of its class are relevant."""
    scores = similarity_matrix(embedded, embedded).fill_diagonal_(-torch.inf)
    ranked = torch.from_numpy(scores.neg_().numpy().argsort(axis=1))[:, :-1]  # NumPy sorts five times as fast
    relevant = (labels[ranked] == labels[:, None]).double()
    precision = relevant.cumsum(1) / torch.arange(1, len(labels), dtype=torch.float64)
    return float(((precision * relevant).sum(1) / relevant.sum(1)).mean())
