import copy
import runpy
from collections import UserDict
from functools import partial

import pytest
import torch
from by_hand import DTYPES, HALVES
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import mathlib
from mathlib import encode_in_blocks, gist_embed_loss, info_nce

exact = partial(assert_close, rtol=0, atol=0)


class Texts(nn.Module):
    """Words and where they stand [B, T] -> embeddings [B, 4]. Some words are padding, and some are dropped."""

    def __init__(self, dtype=torch.float64, device="cpu", dropout=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))
        self.to(device, dtype)

    def forward(self, words, keep, scale=1.0):
        keep = keep[:, :, None].to(self.words.weight.dtype)
        return (self.inner(self.words(words)) * keep).sum(dim=1) / keep.sum(dim=1) * scale


def texts(seed, size, device="cpu", length=5):
    """Words, and which of them are no padding: the first of each text at least."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(11, (size, length), generator=generator)
    keep = torch.rand(size, length, generator=generator) < 0.7
    keep[:, 0] = True
    return words.to(device), keep.to(device)


def alive(encoder, *inputs, block_size, **options):
    """The same blocks, all of their activations kept: inputs and options are tensors."""
    size = len(inputs[0])
    blocks = [slice(first, first + block_size) for first in range(0, size, block_size)]
    return torch.cat(
        [encoder(*[x[rows] for x in inputs], **{k: x[rows] for k, x in options.items()}) for rows in blocks]
    )


def outcome(function, encoder, block_size, loss=info_nce, autocast=None):
    """Loss, embeddings, every parameter's gradient, and where the random numbers stand afterwards."""
    device = next(encoder.parameters()).device
    torch.manual_seed(1)
    encoder.zero_grad()
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        embedded = [function(encoder, *texts(seed, 7, device), block_size=block_size) for seed in (0, 1)]
        value = loss(*embedded)
    value.backward()
    gradients = [x.grad.clone() for x in encoder.parameters()]
    return value.detach(), [x.detach() for x in embedded], gradients, torch.rand(1, device=device)


# By hand


def test_each_block_is_encoded_once_and_again_when_its_gradient_is_asked_for():
    calls = []

    def double(x):
        calls.append(x.tolist())
        return 2 * x.exp()

    x = torch.zeros(5, requires_grad=True)
    embedded = encode_in_blocks(double, x, block_size=2)
    assert embedded.tolist() == [2.0] * 5
    assert calls == [[0, 0], [0, 0], [0]]
    embedded.backward(torch.arange(5.0))
    assert x.grad.tolist() == [0, 2, 4, 6, 8]
    assert sorted(calls[3:], key=len) == [[0], [0, 0], [0, 0]]


def test_without_gradient_each_block_is_encoded_once():
    calls = []

    def double(x):
        calls.append(torch.is_grad_enabled())
        return 2 * x

    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert encode_in_blocks(double, torch.ones(5), block_size=2).tolist() == [2.0] * 5
    assert calls == [False] * 6


def test_tensors_are_cut_wherever_they_are_and_the_rest_is_passed_as_it_is():
    seen = []
    note = object()

    def encoder(first, second, *, mask, name):
        seen.append((first, second, mask, name))
        return first["ids"].double()

    ids, weights, mask = torch.arange(3), torch.arange(6).view(3, 2), torch.arange(3)
    first, second = {"ids": ids, "kind": "query", "deep": [weights, None]}, (ids, note)
    embedded = encode_in_blocks(encoder, first, second, mask=mask, name=note, block_size=2)
    assert embedded.tolist() == [0, 1, 2]
    for rows, found in zip(([0, 1], [2]), seen, strict=True):
        (one, two, cut, name) = found
        assert one["ids"].tolist() == rows and one["kind"] == "query"
        assert one["deep"][0].tolist() == weights[rows].tolist() and one["deep"][1] is None
        assert type(one["deep"]) is list and type(two) is tuple
        assert two[0].tolist() == rows and two[1] is note
        assert cut.tolist() == rows and name is note
    assert first["ids"] is ids and second[0] is ids  # what was given stays as it was


def test_options_alone_may_hold_the_batch():
    encoder = lambda *, x: x + 1  # noqa: E731
    assert encode_in_blocks(encoder, x=torch.arange(3.0), block_size=2).tolist() == [1, 2, 3]


def test_any_mapping_is_a_dict():
    assert encode_in_blocks(lambda x: x["a"], UserDict(a=torch.ones(3)), block_size=2).tolist() == [1, 1, 1]


def test_an_encoder_may_write_its_results_into_the_dict_that_it_is_given():
    layer = nn.Linear(2, 2)

    def encoder(features):
        assert set(features) == {"x"}  # the second time too
        features["result"] = layer(features["x"])
        return features["result"]

    features = {"x": torch.ones(4, 2)}
    encode_in_blocks(encoder, features, block_size=2).sum().backward()
    assert set(features) == {"x"}
    assert layer.bias.grad.tolist() == [4, 4]


# The same blocks all alive


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_random_numbers_are_those_of_the_blocks_all_alive(device, block_size, training):
    encoder = Texts(device=device).train(training)
    found, expected = (outcome(f, encoder, block_size) for f in (encode_in_blocks, alive))
    exact(found, expected)
    assert all(gradient.abs().max() > 0 for gradient in found[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_every_dtype(device, dtype):
    encoder = Texts(dtype, device)
    found, expected = (outcome(f, encoder, 3) for f in (encode_in_blocks, alive))
    assert found[1][0].dtype == dtype
    exact(found, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_under_autocast(device, dtype):
    # the backward pass runs outside of it, as it should; the blocks are encoded again as they were
    encoder = Texts(torch.float32, device)
    found, expected = (outcome(f, encoder, 3, autocast=dtype) for f in (encode_in_blocks, alive))
    exact(found, expected)
    assert not torch.equal(found[0], outcome(alive, encoder, 3)[0])


def test_for_every_loss(device):
    guide = torch.eye(7, 4, dtype=torch.float64, device=device)
    losses = [
        partial(info_nce, symmetric=True, weigh=lambda s_p, s: (s < s_p).double()),
        partial(gist_embed_loss, guide_anchor=guide, guide_positive=guide, contrast_anchors=True),
    ]
    for loss in losses:
        exact(*(outcome(f, Texts(device=device), 2, loss) for f in (encode_in_blocks, alive)))


@given(size=st.integers(1, 9), block_size=st.integers(1, 10), seed=st.integers(0, 10))
def test_whatever_the_sizes(size, block_size, seed):
    encoder = Texts()
    words, keep = texts(seed, size)
    scale = torch.linspace(1, 2, size, dtype=torch.float64)[:, None].requires_grad_()
    results = []
    for function in (encode_in_blocks, alive):
        torch.manual_seed(seed)
        embedded = function(encoder, words, keep, block_size=block_size, scale=scale)
        inputs = [scale, *encoder.parameters()]
        results.append([embedded.detach(), *torch.autograd.grad(embedded.square().sum(), inputs)])
    exact(*results)


def test_rows_that_do_not_see_one_another_do_not_depend_on_the_block(device):
    encoder = Texts(device=device, dropout=0.0)
    words, keep = texts(0, 7, device)
    for block_size in (1, 3, 7):
        assert_close(encode_in_blocks(encoder, words, keep, block_size=block_size), encoder(words, keep))


def test_inputs_get_their_gradient_too(normal):
    layer = nn.Linear(3, 2).to(normal(0, 1))
    x, y = normal(0, 5, 3).requires_grad_(), normal(1, 5, 3).requires_grad_()
    encode = lambda x, y: encode_in_blocks(lambda a, *, b: layer(a * b).tanh(), x, b=y, block_size=2)  # noqa: E731
    assert gradcheck(encode, (x, y))
    assert gradgradcheck(encode, (x, y))


def test_a_graph_can_be_used_twice():
    encoder = Texts()
    embedded = encode_in_blocks(encoder, *texts(0, 5), block_size=2).square().sum()
    first = torch.autograd.grad(embedded, encoder.parameters(), retain_graph=True)
    exact(torch.autograd.grad(embedded, encoder.parameters()), first)


def test_embeddings_may_have_any_shape_after_the_batch():
    for shape in ((), (3,), (3, 4)):
        encode = lambda x: x.new_ones(len(x), *shape)  # noqa: B023, E731
        assert encode_in_blocks(encode, torch.ones(5, 2), block_size=2).shape == (5, *shape)


# Memory


class Alive(TorchDispatchMode):
    """The largest number of bytes that the results of operations hold at a time."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.held[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.held = {pointer: entry for pointer, entry in self.held.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return result


def peak(function, size):
    """In rows of the encoder's width. Its 12 layers hold an activation of each row, if they all are kept."""
    encoder = nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.Tanh())])
    rows = torch.zeros(size, 64, requires_grad=True)
    with Alive() as seen:
        torch.autograd.grad(function(encoder, rows, block_size=4).sum(), rows)
    return seen.peak / (64 * 4)


def test_memory_is_that_of_one_block_and_of_the_embeddings():
    kept, freed = ([peak(function, size) for size in (4, 32, 64)] for function in (alive, encode_in_blocks))
    assert freed[0] == pytest.approx(kept[0], abs=4 * 4)  # one block, and so nothing to free
    for more, few, rows in ((1, 0, 28), (2, 1, 32)):
        assert kept[more] - kept[few] > 12 * rows
        # its embedding, once more where all are joined, and the gradient of it and of its input
        assert freed[more] - freed[few] <= 4 * rows


# Edges


def test_what_requires_no_gradient_gets_none():
    encoder = Texts().requires_grad_(False)
    assert not encode_in_blocks(encoder, *texts(0, 5), block_size=2).requires_grad


def test_a_layer_that_mixes_rows_sees_blocks_and_counts_twice():
    layer = nn.BatchNorm1d(3).double()
    x = torch.arange(18, dtype=torch.float64).view(6, 3)
    expected = torch.cat([copy.deepcopy(layer)(block) for block in x.split(2)])
    embedded = encode_in_blocks(layer, x, block_size=2)
    exact(embedded, expected)
    assert layer.num_batches_tracked == 3
    embedded.sum().backward()
    assert layer.num_batches_tracked == 6


def test_an_encoder_that_changes_its_input_is_refused_by_torch():
    # the second time it would be given something else
    layer = nn.Linear(2, 2)
    encoder = lambda x: (layer(x.clone()).tanh(), x.zero_())[0]  # noqa: E731
    embedded = encode_in_blocks(encoder, torch.ones(4, 2), block_size=2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        embedded.sum().backward()


@pytest.fixture
def unhooked():
    """The module run as a file: the check of shapes wraps inner functions too, and dynamo can't trace that."""
    return runpy.run_path(mathlib._encoding.__file__)["encode_in_blocks"]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_without_a_graph_break(bad_input, unhooked, backend, dynamic):
    torch._dynamo.reset()
    layer = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    compiled = torch.compile(unhooked, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in (7, 5):
        x = torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        results = []
        for function in (compiled, encode_in_blocks):
            embedded = function(lambda y: layer(y["x"]), {"x": x}, block_size=3)
            results.append([embedded.detach(), *torch.autograd.grad(embedded.square().sum(), layer.parameters())])
        assert_close(*results)


def test_it_is_exported_for_one_number_of_rows(bad_input, unhooked):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return unhooked(self.layer, x, block_size=2)

    model, x = Encoder(), torch.ones(5, 3)
    assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("B")}})


def test_meta_tensors_have_shapes():
    layer = nn.Linear(3, 2, device="meta")
    embedded = encode_in_blocks(layer, torch.empty(5, 3, device="meta"), block_size=2)
    assert (embedded.shape, embedded.device.type) == ((5, 2), "meta")


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch 2.10's checkpoint knows no vmap")
def test_vmap_but_not_the_gradients_of_torch_func(normal):
    layer = nn.Linear(3, 2).to(normal(0, 1))
    encode = lambda x: encode_in_blocks(layer, x, block_size=2)  # noqa: E731
    x = normal(0, 4, 5, 3)
    assert_close(torch.vmap(encode)(x), layer(x))
    with pytest.raises(RuntimeError, match="don't yet support saved tensor hooks"):
        torch.func.grad(lambda x: encode(x).sum())(x[0])


# What is refused


def same(*inputs, **options):
    return inputs[0]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: encode_in_blocks("encoder", x, block_size=2), TypeError, "encoder must be a function or a module, was str"),
        (lambda x: encode_in_blocks(same, x, block_size=0), ValueError, "block_size must be an int >= 1, was 0"),
        (lambda x: encode_in_blocks(same, x, block_size=2.0), TypeError, "block_size must be an int >= 1, was float"),
        (lambda x: encode_in_blocks(same, x, block_size=None), TypeError, "block_size must be an int >= 1, was NoneType"),
        (lambda x: encode_in_blocks(same, block_size=2), TypeError, "inputs must hold a tensor, was none"),
        (lambda x: encode_in_blocks(same, block_size=2, a=3), TypeError, "inputs must hold a tensor, was none"),
        (lambda x: encode_in_blocks(same, x, "text", block_size=2), TypeError, "inputs[1] must be a tensor, or hold one, was str"),
        (lambda x: encode_in_blocks(same, ["a", "b"], block_size=2), TypeError, "inputs[0] must be a tensor, or hold one, was list"),
        (lambda x: encode_in_blocks(same, x, {}, block_size=2), TypeError, "inputs[1] must be a tensor, or hold one, was dict"),
        (lambda x: encode_in_blocks(same, x, x[:2], block_size=2), ValueError, "inputs[1] must have as many rows as inputs[0], 3, was [2, 4]"),
        (lambda x: encode_in_blocks(same, x, block_size=2, mask=x[:1]), ValueError, "mask must have as many rows as inputs[0], 3, was [1, 4]"),
        (lambda x: encode_in_blocks(same, {"a": x, "b": (x, x[:0])}, block_size=2), ValueError, "inputs[0]['b'][1] must have as many rows as inputs[0]['a'], 3, was [0, 4]"),
        (lambda x: encode_in_blocks(same, x, x.sum(), block_size=2), ValueError, "inputs[1] must have the batch as its first axis, was a scalar tensor"),
        (lambda x: encode_in_blocks(same, x[:0], block_size=2), ValueError, "inputs[0] must have at least one row, was [0, 4]"),
        (lambda x: encode_in_blocks(lambda x: {"embedding": x}, x, block_size=2), TypeError, "encoder must return a torch.Tensor, was dict"),
        (lambda x: encode_in_blocks(lambda x: x.sum(), x, block_size=2), ValueError, "encoder must return a row for each of 2, was []"),
        (lambda x: encode_in_blocks(lambda x: x[:1], x, block_size=2), ValueError, "encoder must return a row for each of 2, was [1, 4]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("grad", [True, False])
def test_it_says_what_is_wrong(bad_input, call, error, message, grad):
    with torch.set_grad_enabled(grad), pytest.raises(error) as caught:
        call(torch.ones(3, 4))
    assert str(caught.value) == message
