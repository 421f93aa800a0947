"""The adapter on stand-ins for sentence-transformers' models and wrappers. tests/peers/test_adapter.py has the real ones."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from mathlib import (
    SentenceTransformerLoss,
    contrastive_loss,
    false_negative_weights,
    gist_embed_loss,
    info_nce,
    similarity_matrix,
)

exact = partial(assert_close, rtol=0, atol=0)
WORDS = [f"w{i}" for i in range(10)]


class Tokenizer:
    """Words and their numbers; 0 is padding."""

    def __init__(self, words=WORDS):
        self.words = ["[PAD]", *words]

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(self.words[i] for i in row if i) for row in rows]


class Model(nn.Module):
    """As far as the adapter can see a SentenceTransformer: it writes its results into the column that it is given."""

    def __init__(self, seed=0, width=4, words=WORDS, longest=8, dropout=0.0, device="cpu"):
        super().__init__()
        torch.manual_seed(seed)
        self.tokenizer, self.max_seq_length = Tokenizer(words), longest
        self.words = nn.Embedding(1 + len(words), width)
        self.dropout = nn.Dropout(dropout)
        self.to(device, torch.float64)

    def preprocess(self, texts):
        rows = [[self.tokenizer.words.index(word) for word in text.split()][: self.max_seq_length] for text in texts]
        ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "modality": "text"}

    def forward(self, features):
        assert features["modality"] == "text"
        keep = features["attention_mask"][:, :, None]
        features["token_embeddings"] = self.dropout(self.words(features["input_ids"])) * keep
        features["sentence_embedding"] = features["token_embeddings"].sum(dim=1) / keep.sum(dim=1)
        return features


def texts(seed, size=6, words=WORDS):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (size,), generator=generator).tolist()
    return [" ".join(words[i] for i in torch.randint(len(words), (n,), generator=generator)) for n in lengths]


def columns(model, count, device="cpu"):
    """Tokenised columns, as a trainer gives them."""
    features = [model.preprocess(texts(seed)) for seed in range(count)]
    return [{k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in f.items()} for f in features]


def embedded(model, given):
    return [copy.copy(model)(dict(column))["sentence_embedding"] for column in given]


def value_and_gradient(loss, given, labels=None):
    loss.model.zero_grad()
    value = loss(given, labels)
    value.backward()
    return value.detach(), loss.model.words.weight.grad.clone()


def by_hand(model, given, loss):
    """The same of loss(*embeddings)."""
    model.zero_grad()
    value = loss(*embedded(model, given))
    value.backward()
    return value.detach(), model.words.weight.grad.clone()


def stacked(loss):
    return lambda a, p, *n: loss(a, p, *([torch.stack(n, dim=1)] if n else []))


def grouped(anchor, positive, negatives=None, *, temperature=0.1, groups=None):
    """Which also is a loss of the same form: without the positives of the anchor's own group."""
    scores = similarity_matrix(anchor, positive)
    weights = torch.ones_like(scores) if groups is None else (groups[:, None] != groups).to(scores.dtype)
    weights.fill_diagonal_(0)
    return contrastive_loss(scores.diagonal(), scores, temperature=temperature, weights=weights)


# The columns


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_loss_is_that_of_the_embeddings(device, negatives):
    model = Model(device=device)
    given = columns(model, 2 + negatives, device)
    rule = partial(false_negative_weights, strategy="relative", margin=0.1)
    options = {"temperature": 0.1, "weigh": rule, "in_batch": not negatives or negatives == 3}
    found = value_and_gradient(SentenceTransformerLoss(model, info_nce, **options), given)
    exact(found, by_hand(model, given, stacked(partial(info_nce, **options))))
    assert found[1].abs().max() > 0


def test_columns_may_come_from_an_iterator_and_labels_by_name():
    model = Model()
    loss = SentenceTransformerLoss(model, info_nce)
    exact(loss(iter(columns(model, 2)), labels=None), loss(columns(model, 2)))


def test_the_model_may_fill_the_columns():
    # AdaptiveLayerLoss has it leave its layers there, for the next time
    model = Model()
    given = columns(model, 2)
    SentenceTransformerLoss(model, info_nce)(given)
    assert all("token_embeddings" in column for column in given)


def test_a_function_with_options_of_its_own():
    model = Model()
    given = columns(model, 2)
    loss = SentenceTransformerLoss(model, partial(info_nce, block_size=2, temperature=0.3), symmetric=True)
    exact(loss(given), by_hand(model, given, partial(info_nce, temperature=0.3, symmetric=True, block_size=2))[0])


# Labels


@pytest.mark.parametrize("function", [info_nce, grouped, partial(info_nce, weigh=[])])
def test_integer_labels_are_groups(device, function):
    model = Model(device=device)
    given = columns(model, 2, device)
    labels = torch.tensor([0, 1, 0, 2, 1, 3], device=device)
    loss = SentenceTransformerLoss(model, function, temperature=0.2)
    found = value_and_gradient(loss, given, labels)
    assert_close(found, by_hand(model, given, partial(grouped, temperature=0.2, groups=labels)))
    assert found[0] < loss(given)


def test_a_guided_loss_has_groups_too(device):
    model, guide = Model(device=device), Model(1, device=device)
    given = columns(model, 3, device)
    labels = torch.tensor([0, 1, 0, 2, 1, 3], dtype=torch.int32, device=device)
    a, p, n = embedded(guide, given)
    guides = {"guide_anchor": a, "guide_positive": p, "guide_negatives": n[:, None]}
    expected = by_hand(model, given, stacked(partial(gist_embed_loss, groups=labels, **guides)))
    loss = SentenceTransformerLoss(model, gist_embed_loss, guide=guide)
    exact(value_and_gradient(loss, given, labels), expected)
    assert loss(given) != expected[0]


# A guide


@pytest.mark.parametrize("negatives", [0, 2])
def test_a_guide_of_the_same_words_reads_the_same_tokens(device, negatives):
    model, guide = Model(device=device), Model(1, width=5, dropout=0.5, device=device)
    given = columns(model, 2 + negatives, device)
    loss = SentenceTransformerLoss(model, gist_embed_loss, guide=guide, margin=0.1)
    guide.preprocess = None
    guides = stacked(lambda *x: x)(*embedded(guide.eval(), given))
    guide.train()
    names = ("guide_anchor", "guide_positive", "guide_negatives")
    expected = partial(gist_embed_loss, margin=0.1, **dict(zip(names, guides, strict=False)))
    exact(value_and_gradient(loss, given), by_hand(model, given, stacked(expected)))
    assert guide.words.weight.grad is None


def test_a_guide_is_frozen_and_in_eval_mode():
    model, guide = Model(), Model(1)
    loss = SentenceTransformerLoss(model, gist_embed_loss, guide=guide).train()
    loss(columns(model, 2))
    assert (model.training, guide.training) == (True, False)
    assert [x.requires_grad for x in loss.parameters()] == [True, False]


def test_a_guide_of_other_words_reads_the_texts(device):
    model, guide = Model(device=device), Model(1, words=[*reversed(WORDS)], device=device)
    given = columns(model, 3, device)
    loss = SentenceTransformerLoss(model, gist_embed_loss, guide=guide, margin=0.1)
    a, p, n = (
        guide({k: x.to(device) if k != "modality" else x for k, x in guide.preprocess(texts(seed)).items()})
        for seed in range(3)
    )
    guides = {
        "guide_anchor": a["sentence_embedding"],
        "guide_positive": p["sentence_embedding"],
        "guide_negatives": n["sentence_embedding"][:, None],
    }
    expected = by_hand(model, given, stacked(partial(gist_embed_loss, margin=0.1, **guides)))
    exact(value_and_gradient(loss, given), expected)

    # texts without padding: in one row, whose first and last places are given
    for column in given:
        keep = column["attention_mask"].bool()
        column["input_ids"] = column["input_ids"][keep][None]
        column["cu_seq_lens_q"] = nn.functional.pad(keep.sum(dim=1).cumsum(0), (1, 0))
    read = [loss.for_guide(column)["input_ids"] for column in given]
    exact([x.cpu() for x in read], [guide.preprocess(texts(seed))["input_ids"] for seed in range(3)])


@pytest.mark.parametrize(
    "theirs, ours, retokenised", [(2, 8, True), (8, 8, False), (9, 8, False), (None, 8, False), (8, None, True)]
)
def test_a_guide_that_reads_fewer_words_reads_the_texts(theirs, ours, retokenised):
    model, guide = Model(longest=ours), Model(1, longest=theirs)
    loss = SentenceTransformerLoss(model, gist_embed_loss, guide=guide)
    [column] = columns(model, 1)
    read = loss.for_guide(column)
    assert read is not column
    if retokenised:
        exact(read["input_ids"], guide.preprocess(texts(0))["input_ids"])
    else:
        assert read == column


def test_a_guide_may_be_an_option_of_the_loss():
    model = Model()
    either = lambda anchor, positive, *, guide_anchor=None, guide_positive=None: (  # noqa: E731
        guide_anchor.sum() if guide_anchor is not None else anchor.sum()
    )
    given, guide = columns(model, 2), Model(1)
    exact(SentenceTransformerLoss(model, either)(given), embedded(model, given)[0].sum())
    exact(SentenceTransformerLoss(model, either, guide=guide)(given), embedded(guide, given)[0].sum())


# Blocks


@pytest.mark.parametrize("guided", [False, True])
def test_blocks_give_the_same_loss_and_gradient(device, guided):
    model = Model(device=device)
    given = columns(model, 3, device)
    options = {"guide": Model(1, device=device)} if guided else {}
    function = gist_embed_loss if guided else info_nce
    whole = value_and_gradient(SentenceTransformerLoss(model, function, **options), copied(given))
    for block_size in (1, 4, 100):
        loss = SentenceTransformerLoss(model, function, block_size=block_size, **options)
        assert_close(value_and_gradient(loss, copied(given)), whole)
        with torch.no_grad():
            assert_close(loss(copied(given)), whole[0])


def copied(given):
    return [dict(column) for column in given]


def test_blocks_are_what_model_and_guide_are_given():
    model, guide = Model(dropout=0.5), Model(1)
    seen = {model: [], guide: []}
    for module in seen:
        module.register_forward_pre_hook(lambda module, inputs: seen[module].append(len(inputs[0]["input_ids"])))
    value = SentenceTransformerLoss(model, gist_embed_loss, guide=guide, block_size=4)(columns(model, 2))
    assert seen == {model: [4, 2, 4, 2], guide: [4, 2, 4, 2]}
    value.backward()
    assert sorted(seen[model][4:]) == [2, 2, 4, 4]
    assert len(seen[guide]) == 4


class Wrapper:
    """As MatryoshkaLoss wraps a model's forward: the first time round it keeps the outputs, then it shortens them."""

    def __init__(self, fn):
        self.fn, self.kept, self.calls, self.width = fn, [], 0, None

    def start(self, width):
        self.width, self.calls, self.first = width, 0, self.width is None

    def __call__(self, features):
        if self.first:
            self.kept.append(self.fn(features))
        output = self.kept[self.calls]
        output["sentence_embedding"] = output["sentence_embedding"][:, : self.width]
        self.calls += 1
        return output


def at_two_widths(model, loss, given):
    original = model.forward
    model.forward = wrapper = Wrapper(original)
    values = []
    try:
        for width in (4, 2):
            wrapper.start(width)
            values.append(loss(given))
        assert wrapper.calls == len(given) and wrapper.fn == original
    finally:
        del model.forward
    return sum(values)


def test_what_wraps_the_models_forward_for_a_while_wraps_all_blocks_together():
    model = Model()
    results = []
    for block_size in (None, 4):
        loss = SentenceTransformerLoss(model, info_nce, block_size=block_size)
        model.zero_grad()
        value = at_two_widths(model, loss, columns(model, 3))
        value.backward()  # by now the wrapper is gone
        results.append((value.detach(), model.words.weight.grad.clone()))
    assert_close(*results)
    exact(
        results[0][0],
        sum(
            by_hand(model, columns(model, 3), stacked(lambda *x, n=n: info_nce(*(y[..., :n] for y in x))))[0]
            for n in (4, 2)
        ),
    )


def test_a_wrapper_gets_its_function_back_after_an_error():
    model = Model()
    model.forward = wrapper = Wrapper(model.forward)
    original = wrapper.fn
    wrapper.start(4)
    loss = SentenceTransformerLoss(model, info_nce, block_size=4)
    with pytest.raises(KeyError):
        loss([{"attention_mask": torch.ones(6, 1)}] * 2)
    assert wrapper.fn is original


# What is learned


def test_a_parameter_is_the_modules_own_and_is_trained_saved_and_loaded():
    def new():
        temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        return SentenceTransformerLoss(Model(), info_nce, temperature=temperature, symmetric=True)

    loss = new()
    assert dict(loss.named_parameters())["temperature"] is loss.temperature
    given = columns(loss.model, 2)
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.01)
    value = loss(given)
    value.backward()
    leaf = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    expected = info_nce(*embedded(loss.model, given), temperature=leaf, symmetric=True)
    exact((value, loss.temperature.grad), (expected, torch.autograd.grad(expected, leaf)[0]))
    optimiser.step()
    assert loss.temperature.item() != 0.2
    assert loss.get_config_dict()["temperature"] == loss.temperature.item()

    again = new()
    again.load_state_dict(loss.state_dict())
    exact(again(columns(again.model, 2)), loss(columns(loss.model, 2)))
    assert again.temperature.item() == loss.temperature.item()


def test_a_parameter_can_be_kept_positive():
    class Exponential(nn.Module):
        def forward(self, x):
            return x.exp()

        def right_inverse(self, x):
            return x.log()

    model = Model()
    loss = SentenceTransformerLoss(model, info_nce, temperature=nn.Parameter(torch.tensor(0.1)))
    parametrize.register_parametrization(loss, "temperature", Exponential())
    given = columns(model, 2)
    value = loss(given)
    assert_close(value, info_nce(*embedded(model, given), temperature=0.1))
    value.backward()
    assert loss.parametrizations.temperature.original.grad != 0


def test_the_model_card_reads_what_was_given():
    model, guide = Model(), Model(1)
    rule = partial(false_negative_weights, strategy="relative", margin=0.05)
    loss = SentenceTransformerLoss(model, info_nce, temperature=0.1, weigh=[rule, grouped], block_size=8)
    assert loss.get_config_dict() == {
        "loss": "info_nce",
        "block_size": 8,
        "temperature": 0.1,
        "weigh": ["false_negative_weights(strategy='relative', margin=0.05)", "grouped"],
    }
    loss = SentenceTransformerLoss(model, partial(gist_embed_loss, lam=0.0), guide=guide, temperature=torch.tensor(0.1))
    assert loss.get_config_dict() == {
        "loss": "gist_embed_loss(lam=0.0)",
        "guide": guide,
        "temperature": torch.tensor(0.1),
    }
    rule = partial(min, 1, key=None)
    assert SentenceTransformerLoss(model, info_nce, weigh=rule).get_config_dict()["weigh"] == "min(1, key=None)"
    assert not hasattr(loss, "loss")  # the library would list it as another loss


# What is refused


class Undecodable(Model):
    def __init__(self):
        super().__init__()
        self.tokenizer = type("Static", (), {"get_vocab": lambda self: {}})()


class Layer(nn.Module):
    """As AdaptiveLayerLoss leaves a layer while it takes the loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.forward = type("Decorator", (), {"set_layer_idx": None, "__call__": lambda self, x: model(x)})()


def call(function=info_nce, labels=None, count=2, change=None, **options):
    options.setdefault("model", Model())
    given = columns(Model(), count)
    for column in given:
        column |= change or {}
    return SentenceTransformerLoss(loss=function, **options)(given, labels)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"model": None}, TypeError, "model must be a torch.nn.Module, was NoneType"),
        ({"model": info_nce}, TypeError, "model must be a torch.nn.Module, was function"),
        ({"model": ()}, TypeError, "model must be a torch.nn.Module, was tuple"),
        ({"function": "info_nce"}, TypeError, "loss must be a function, was str"),
        ({"guide": gist_embed_loss}, TypeError, "guide must be a torch.nn.Module, was function"),
        ({"guide": Model(1)}, TypeError, "guide must be None for info_nce, which takes no guide_anchor, was given"),
        ({"function": gist_embed_loss}, TypeError, "guide must be given for gist_embed_loss, which needs guide_anchor, was None"),
        ({"block_size": 0}, ValueError, "block_size must be an int >= 1, was 0"),
        ({"block_size": True}, TypeError, "block_size must be an int >= 1, was bool"),
        ({"temprature": 0.1}, TypeError, "got an unexpected keyword argument 'temprature'"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number and > 0, was 0.0"),
        ({"temperature": torch.tensor(0.1, requires_grad=True)}, TypeError, "temperature must be a torch.nn.Parameter to be trained, was a tensor that requires grad"),
        ({"function": gist_embed_loss, "model": Undecodable(), "guide": Model(1)}, TypeError, "model must have a tokenizer that decodes, for a guide of other words, was Static"),
        ({"count": 1}, ValueError, "sentence_features must have an anchor and a positive column, was 1"),
        ({"function": grouped, "labels": torch.ones(6)}, TypeError, "labels must have an integer dtype, was torch.float32"),
        ({"function": grouped, "labels": [1] * 6}, TypeError, "labels must be a torch.Tensor, was list"),
        ({"function": contrastive_loss, "labels": torch.ones(6).long()}, ValueError, "labels must be None for contrastive_loss, which takes no groups, was given"),
        ({"block_size": 4, "change": {"offsets": torch.arange(6)}}, ValueError, "block_size must be None where all texts stand in one row, was 4"),
        ({"block_size": 4, "change": {"cu_seq_lens_q": torch.arange(7)}}, ValueError, "block_size must be None where all texts stand in one row, was 4"),
        ({"block_size": 4, "model": nn.Sequential(Layer(Model()))}, ValueError, "block_size must be None inside AdaptiveLayerLoss, which keeps all layers, was 4"),
    ],
)  # fmt: skip
def test_it_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        call(**wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize("shared", ["itself", "its words"])
def test_a_guide_that_shares_parameters_would_freeze_the_model(shared):
    model = Model()
    guide = Model(1)
    guide.words = model.words
    with pytest.raises(ValueError) as caught:
        SentenceTransformerLoss(model, gist_embed_loss, guide=model if shared == "itself" else guide)
    assert str(caught.value) == "guide must share no parameter with model: it is frozen"
    assert all(x.requires_grad for x in model.parameters())
