"""mathlib.book.digits: views are of their image, the split is clean, average precision is scikit-learn's."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from mathlib.book import data, digits


def test_the_halves_part_the_images():
    half = digits.halves(3)
    assert (len(half.train), len(half.test)) == (898, 899)
    both = torch.cat([half.train, half.test])
    pixels, labels = data.digits()
    order = np.lexsort(both.numpy().T), np.lexsort(pixels.T)
    assert np.array_equal(both.numpy()[order[0]], pixels[order[1]])
    assert torch.cat([half.train_labels, half.test_labels]).bincount().tolist() == np.bincount(labels).tolist()


def test_a_view_is_its_image_moved_by_a_pixel_at_most_and_a_little_noise():
    images = digits.halves(0).train[:200]
    seen = digits.view(images, torch.Generator().manual_seed(0)).view(-1, 8, 8)
    padded = torch.nn.functional.pad(images.view(-1, 8, 8), (1, 1, 1, 1))
    moved = torch.stack([padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    noise = seen - moved  # [9, 200, 8, 8], for each of the nine ways
    smallest = noise.square().mean((2, 3)).sqrt().amin(0)
    assert smallest.max() < 0.15
    chosen = noise.square().mean((2, 3)).argmin(0)
    assert chosen.bincount(minlength=9).min() > 0
    assert not torch.equal(digits.view(images, torch.Generator().manual_seed(1)), seen.flatten(1))


def test_the_encoder_starts_the_same_for_a_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = digits.encoder(0), digits.encoder(0), digits.encoder(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert {p.dtype for p in first.parameters()} == {torch.float64}


def test_average_precision_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(30) % 3
    scores = torch.nn.functional.cosine_similarity(embedded[:, None], embedded[None], dim=-1)
    expected = []
    for i in range(30):
        others = [j for j in range(30) if j != i]
        expected.append(average_precision_score(labels[others] == labels[i], scores[i, others]))
    assert abs(digits.average_precision(embedded, labels) - np.mean(expected)) < 1e-12
