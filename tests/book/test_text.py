"""The small text encoder and its training loop, against sums on paper."""

import math

import pytest
import torch

from mathlib import DualEncoder, info_nce
from mathlib.book.text import TextEncoder, Vocabulary
from mathlib.book.training import only, train

TEXTS = ["sort a graph", "sort sort an array", "plot a graph"]


def test_a_vocabulary_keeps_frequent_words_in_alphabetical_order():
    assert Vocabulary(TEXTS, least=2).index == {"a": 1, "graph": 2, "sort": 3}


def test_a_weight_is_tf_idf():
    bags = Vocabulary(TEXTS, least=1).bags(["sort sort array unknown"])
    # sort: twice here, in 2 of 3 texts; array: once here, in 1 of 3
    assert bags.weights[0, 0] == pytest.approx((1 + math.log(2)) * math.log(3 / 2))
    assert bags.weights[0, 1] == pytest.approx(math.log(3))
    assert bags.ids[0].count_nonzero() == 2


def test_only_the_first_different_words_count():
    bags = Vocabulary(TEXTS, least=1).bags(["sort sort graph array"], longest=2)
    vocabulary = Vocabulary(TEXTS, least=1).index
    assert bags.ids.tolist() == [[vocabulary["sort"], vocabulary["graph"]]]


@pytest.mark.parametrize("normalise", [True, False])
def test_an_embedding_is_the_weighted_sum_of_word_vectors(normalise):
    vocabulary = Vocabulary(TEXTS, least=1)
    encoder = TextEncoder(vocabulary, dimensions=3, seed=1, normalise=normalise)
    bags = vocabulary.bags(["plot an array"])
    expected = sum(w * encoder.vectors.weight[i] for i, w in zip(bags.ids[0], bags.weights[0], strict=True))
    if normalise:
        expected = expected / expected.norm()
    torch.testing.assert_close(encoder(bags)[0], expected)


def test_a_text_without_known_words_is_the_zero_vector():
    vocabulary = Vocabulary(TEXTS, least=1)
    assert TextEncoder(vocabulary)(vocabulary.bags(["unknown"])).eq(0).all()


def test_a_text_is_the_same_beside_longer_and_shorter_ones():
    vocabulary = Vocabulary(TEXTS, least=1)
    encoder, texts = TextEncoder(vocabulary), ["sort", "plot an array", "unknown"]
    assert encoder(vocabulary.bags(texts)).equal(torch.cat([encoder(vocabulary.bags([text])) for text in texts]))


def test_the_seed_decides_the_start_and_the_order():
    vocabulary = Vocabulary(TEXTS, least=1)

    def trained(seed):
        model = DualEncoder(TextEncoder(vocabulary, dimensions=4, seed=0))
        bags = vocabulary.bags(TEXTS)
        train(model, bags, bags, lambda q, d: info_nce(q, d.detach()), seed=seed, batch_size=2)
        return model.query_encoder.vectors.weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_training_lowers_the_loss():
    vocabulary = Vocabulary(TEXTS, least=1)
    model = DualEncoder(TextEncoder(vocabulary, dimensions=4))
    queries, documents = vocabulary.bags(TEXTS), vocabulary.bags(TEXTS[1:] + TEXTS[:1])
    before = info_nce(*model(queries, documents)).item()
    train(model, queries, documents, info_nce, seed=0, epochs=20)
    assert info_nce(*model(queries, documents)).item() < before


def test_a_falling_rate_reaches_0_in_a_straight_line():
    vocabulary = Vocabulary(TEXTS, least=1)
    bags = vocabulary.bags(TEXTS)
    model, expected = (DualEncoder(TextEncoder(vocabulary, dimensions=4)) for _ in range(2))
    # the gradient is 1 everywhere, so that Adam moves every number by the rate
    loss = lambda q, d: sum(w.sum() for w in model.parameters())  # noqa: E731
    train(model, bags, bags, loss, seed=0, epochs=4, learning_rate=0.8, falling=True)
    for moved, start in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(start - moved, torch.full_like(start, 0.8 + 0.6 + 0.4 + 0.2), rtol=0, atol=1e-6)


def test_texts_of_several_bags_come_one_after_the_other():
    vocabulary = Vocabulary(TEXTS, least=1)
    encoder, short, long = TextEncoder(vocabulary), vocabulary.bags(["unknown", "sort"]), vocabulary.bags(TEXTS)
    assert short.ids.shape != long.ids.shape
    assert encoder(short, long).equal(torch.cat([encoder(short), encoder(long)]))


def by_hand(model, queries, documents, loss, *, negatives, more, rate, falling):
    """Three pairs in batches of two, twice, with Adam written out; all embeddings of all texts anew for each."""
    [weight] = [w.detach().clone().requires_grad_() for w in model.parameters()]
    embed = lambda bags: torch.func.functional_call(  # noqa: E731
        model.query_encoder, {"vectors.weight": weight}, (bags,)
    )
    mean = square = 0.0
    generator = torch.Generator().manual_seed(5)
    batches = [b for _ in range(2) for b in torch.randperm(3, generator=generator).split(2)]
    for step, batch in enumerate(batches):
        d = embed(documents)
        value = loss(embed(queries)[batch], d[batch], d[negatives][batch], *(x[batch] for x in more))
        gradient = torch.autograd.grad(value, weight)[0]
        gradient[0] = 0  # of no word
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        now = rate * (1 - step / len(batches)) if falling else rate
        with torch.no_grad():
            weight -= now * (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    return weight


@pytest.mark.parametrize("falling", [False, True])
def test_training_is_adam_on_batches_of_pairs_and_what_goes_with_them(falling):
    vocabulary = Vocabulary([*TEXTS, "never seen here"], least=1)
    queries, documents = vocabulary.bags(["sort", "array", "a"]), vocabulary.bags([*TEXTS, "an array"])
    negatives, told = torch.tensor([[1, 3], [2, 0], [0, 3]]), torch.tensor([0.5, 1.0, 2.0])
    model, twin = (DualEncoder(TextEncoder(vocabulary, dimensions=4)) for _ in range(2))

    def loss(q, d, n, factor):
        return (factor * info_nce(q, d, n, reduction="none")).sum()

    settings = {"negatives": negatives, "more": [told]}
    expected = by_hand(twin, queries, documents, loss, rate=0.1, falling=falling, **settings)
    train(model, queries, documents, loss, seed=5, batch_size=2, learning_rate=0.1, falling=falling, **settings)
    [weight] = model.parameters()
    torch.testing.assert_close(weight, expected)
    unseen = vocabulary.index["never"]
    assert weight[unseen].equal(twin.query_encoder.vectors.weight[unseen])


def test_two_towers_learn_each_from_its_own_texts():
    vocabulary = Vocabulary(TEXTS, least=1)
    model = DualEncoder(*(TextEncoder(vocabulary, dimensions=4, seed=seed) for seed in (0, 1)))
    starts = [w.detach().clone() for w in model.parameters()]
    train(model, vocabulary.bags(["sort"]), vocabulary.bags(["plot"]), lambda q, d: q.sum() + d.sum(), seed=0)
    for word in vocabulary.index.values():
        moved = [bool((w[word] != start[word]).any()) for w, start in zip(model.parameters(), starts, strict=True)]
        assert moved == [word == vocabulary.index["sort"], word == vocabulary.index["plot"]]


def test_further_parameters_learn_at_a_rate_of_their_own():
    vocabulary = Vocabulary(TEXTS, least=1)
    bags, number = vocabulary.bags(TEXTS), torch.zeros(1, requires_grad=True)
    model = DualEncoder(TextEncoder(vocabulary, dimensions=4))
    group = {"params": [number], "lr": 0.25}
    train(model, bags, bags, lambda q, d: q.sum() + number.sum(), seed=0, epochs=3, also=[group])
    torch.testing.assert_close(number.detach(), torch.tensor([-0.75]))  # Adam moves by the rate


def test_an_error_inside_leaves_the_whole_table():
    vocabulary = Vocabulary(TEXTS, least=1)
    model = DualEncoder(TextEncoder(vocabulary, dimensions=4))
    [weight] = model.parameters()
    with pytest.raises(RuntimeError), only(model, vocabulary.bags(["sort"])) as [bags]:
        assert len(model.query_encoder.vectors.weight) == 2 and bags.ids.tolist() == [[1]]
        raise RuntimeError
    assert model.query_encoder.vectors.weight is weight and len(weight) == len(vocabulary.index) + 1


def test_what_a_word_is_can_be_said():
    vocabulary = Vocabulary(TEXTS, least=2, split=list)
    assert vocabulary.index == {letter: i for i, letter in enumerate(" aghoprst", start=1)}
    assert vocabulary.bags(["tt?"]).ids.tolist() == [[vocabulary.index["t"]]]


def test_the_vectors_start_where_they_are_told():
    vocabulary = Vocabulary(TEXTS, least=2)  # a, graph, sort
    start = torch.tensor([[3.0, 0.0], [0.0, 4.0], [5.0, 5.0]])
    encoder = TextEncoder(vocabulary, start=start, normalise=False)
    bags = vocabulary.bags(["graph"])
    assert encoder(bags._replace(weights=torch.ones(1, 1))).tolist() == [[0.0, 4.0]]
    assert encoder(vocabulary.bags(["unknown"])._replace(weights=torch.zeros(1, 1))).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="start must have a row for each of the vocabulary's 3 words, had 2"):
        TextEncoder(vocabulary, start=start[:2])


def test_no_text_at_all_is_refused():
    with pytest.raises(ValueError, match="texts must be at least one, there were none"):
        Vocabulary([])
