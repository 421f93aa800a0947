import math

import jaxtyping
import pytest
import sklearn.metrics.pairwise
import torch
import torch.nn.functional as F
from by_hand import DTYPES, HALVES, cosine, dot
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mathlib import cosine_similarity, similarity_matrix
from mathlib._similarity import with_exact_ties

SHORTEST = {torch.float16: 1e-4, torch.bfloat16: 1e-12, torch.float32: 1e-12, torch.float64: 1e-12}


# By hand


def test_the_demo_of_the_notes(device):
    a, b = torch.tensor([1.0, 2.0, 3.0], device=device), torch.tensor([4.0, 5.0, 6.0], device=device)
    # 1*4 + 2*5 + 3*6 = 32;  1 + 4 + 9 = 14;  16 + 25 + 36 = 77
    assert cosine_similarity(a, b).item() == pytest.approx(32 / math.sqrt(14 * 77), rel=1e-6)


def test_cosine_of_3_4_and_4_3(device):
    # (3*4 + 4*3) / (5 * 5) = 24 / 25
    a = torch.tensor([3.0, 4.0], dtype=torch.float64, device=device)
    assert cosine_similarity(a, a.flip(0)).item() == pytest.approx(24 / 25, rel=1e-15)


def test_every_row_meets_every_row(device):
    a = torch.tensor([[3.0, 4.0], [0.0, 2.0]], device=device)
    b = torch.tensor([[1.0, 0.0], [4.0, 3.0], [-3.0, -4.0]], device=device)
    # cosine: |a| = 5, 2 and |b| = 1, 5, 5
    cosines = torch.tensor([[3 / 5, 24 / 25, -1.0], [0.0, 3 / 5, -4 / 5]], device=device)
    products = torch.tensor([[3.0, 24.0, -25.0], [0.0, 6.0, -8.0]], device=device)
    assert_close(similarity_matrix(a, b), cosines)
    assert_close(similarity_matrix(a, b, metric="cosine"), cosines)
    assert_close(similarity_matrix(a, b, metric="dot"), products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_up_to_as_many_eps_as_there_are_features_are_a_tie(device, dtype):
    # numbers between 1 / 2 and 1 are half an eps apart: all of these are exact
    eps = torch.finfo(dtype).eps
    apart = torch.tensor([[-2.5, -2.0, 0.0, 1.5, 2.0, 2.5, -math.inf]], dtype=torch.float64, device=device)
    scores = (0.75 + apart * eps).to(dtype)
    expected = (0.75 + torch.tensor([[-2.5, 0.0, 0.0, 0.0, 0.0, 2.5, -math.inf]]).to(apart) * eps).to(dtype)
    assert torch.equal(with_exact_ties(scores, torch.tensor([0.75], dtype=dtype, device=device), 2), expected)


# By a loop over Python floats (by_hand.py)


@pytest.mark.parametrize("metric, loop", [("cosine", cosine), ("dot", dot)])
def test_the_matrix_is_the_loop(normal, metric, loop):
    a, b = normal(0, 5, 7), normal(1, 3, 7)
    expected = torch.tensor([[loop(x, y) for y in b.tolist()] for x in a.tolist()], dtype=a.dtype).to(a)
    assert_close(similarity_matrix(a, b, metric=metric), expected, rtol=1e-13, atol=1e-13)


def test_leading_axes_broadcast_as_in_the_loop(normal):
    a, b = normal(0, 2, 1, 7), normal(1, 3, 7)
    expected = [[cosine(x, y) for y in b.tolist()] for [x] in a.tolist()]
    assert_close(cosine_similarity(a, b), torch.tensor(expected, dtype=a.dtype).to(a), rtol=1e-13, atol=1e-13)


# Peers


def test_agrees_with_torch(normal):
    a, b = normal(0, 4, 6).requires_grad_(), normal(1, 4, 6)
    ours, theirs = cosine_similarity(a, b), F.cosine_similarity(a, b, dim=-1)
    assert_close(ours, theirs)
    upstream = normal(2, 4)
    assert_close(*(torch.autograd.grad(x, a, upstream)[0] for x in (ours, theirs)))


def test_agrees_with_scikit_learn(normal):
    a, b = normal(0, 4, 6).cpu(), normal(1, 5, 6).cpu()
    expected = sklearn.metrics.pairwise.cosine_similarity(a.numpy(), b.numpy())
    assert_close(similarity_matrix(a, b), torch.from_numpy(expected))


# What must hold for all vectors

seeds = st.integers(0, 2**32)


@given(seeds, st.floats(-6, 6), st.floats(-6, 6))
def test_length_does_not_matter_and_sign_flips(normal, seed, log_a, log_b):
    a, b = normal(seed, 3, 5), normal(seed + 1, 3, 5)
    once = cosine_similarity(a, b)
    assert_close(cosine_similarity(10**log_a * a, 10**log_b * b), once)
    assert_close(cosine_similarity(-(10**log_a) * a, b), -once)


@given(seeds)
def test_symmetric_bounded_and_1_with_itself(normal, seed):
    a, b = normal(seed, 3, 5), normal(seed + 1, 3, 5)
    assert_close(cosine_similarity(a, b), cosine_similarity(b, a), rtol=0, atol=0)
    assert cosine_similarity(a, b).abs().max() <= 1 + 1e-15
    assert_close(cosine_similarity(a, a), torch.ones_like(a[:, 0]))


@given(seeds, st.permutations(range(4)), st.sampled_from(["cosine", "dot"]))
def test_permuted_rows_give_the_permuted_matrix(normal, seed, order, metric):
    a, b = normal(seed, 4, 3), normal(seed + 1, 4, 3)
    assert_close(similarity_matrix(a[order], b, metric=metric), similarity_matrix(a, b, metric=metric)[order])
    assert_close(similarity_matrix(b, a, metric=metric), similarity_matrix(a, b, metric=metric).T)


@given(seeds)
def test_the_matrix_is_cosine_similarity_of_all_pairs(normal, seed):
    a, b = normal(seed, 4, 3), normal(seed + 1, 2, 3)
    assert_close(similarity_matrix(a, b), cosine_similarity(a[:, None], b))


# Edges


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_vector_has_similarity_and_gradient_zero(normal, dtype):
    a = torch.stack([torch.zeros(4), torch.ones(4)]).to(normal(0, 1).device, dtype).requires_grad_()
    b = normal(0, 2, 4, dtype=dtype).requires_grad_()
    for similarity in (cosine_similarity(a, b), similarity_matrix(a, b)):
        assert similarity.dtype == dtype
        assert (similarity[0] == 0).all() and (similarity[1] != 0).all()
        of_a, of_b = torch.autograd.grad(similarity.sum(), (a, b))
        assert (of_a[0] == 0).all() and (of_a[1] != 0).any()
        assert of_a.isfinite().all() and of_b.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_vectors_shorter_than_eps_count_as_zero(device, dtype):
    # one component, so that its length is itself; for float16 just above 1e-4, which it can't hold
    long = torch.tensor([SHORTEST[dtype]], dtype=dtype, device=device)
    if long.double().item() < SHORTEST[dtype]:
        long = torch.nextafter(long.cpu(), torch.ones(1, dtype=dtype)).to(device)
    short = long * 0.99
    one = torch.ones(1, dtype=dtype, device=device)
    assert cosine_similarity(long, one) == 1
    assert cosine_similarity(short, one) == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_of_a_short_vector_is_finite(device, dtype):
    a = torch.tensor([2 * SHORTEST[dtype], 0.0], dtype=dtype, device=device, requires_grad=True)
    b = torch.tensor([0.0, 1.0], dtype=dtype, device=device)
    # the cosine changes by 1 / |a| for a step across a
    (gradient,) = torch.autograd.grad(cosine_similarity(a, b), a)
    assert_close(gradient, torch.tensor([0.0, 1 / a[0].item()], device=device).to(dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_half_precision_is_rounded_once(normal, dtype, metric):
    a, b = normal(0, 3, 500, dtype=dtype), normal(1, 4, 500, dtype=dtype)
    exact = similarity_matrix(a.double(), b.double(), metric=metric)
    # half a unit in the last place, and a little for float32's own error
    ulp = torch.finfo(dtype).eps
    assert_close(similarity_matrix(a, b, metric=metric).double(), exact, rtol=0.51 * ulp, atol=1e-5)
    if metric == "cosine":
        assert_close(cosine_similarity(a[:, None], b).double(), exact, rtol=0.51 * ulp, atol=1e-5)


@pytest.mark.parametrize("length", [1e-3, 300.0])
def test_float16_neither_overflows_nor_underflows(device, length):
    # squares in float16: 1e-6 has lost its digits, 9e4 is inf
    a = torch.full((1, 100), length, dtype=torch.float16, device=device)
    assert cosine_similarity(a, a).item() == 1
    assert similarity_matrix(a, a).item() == 1


# the length, 5 times the size, is the second time more than the dtype can hold
@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, 1e30), (torch.float32, 8e37), (torch.float64, 1e300), (torch.float64, 4e307)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_squares_may_overflow(device, dtype, size, sign):
    a = torch.tensor([3.0, 4.0], dtype=dtype, device=device) * sign * size
    b = torch.tensor([4.0, 3.0], dtype=dtype, device=device)
    # (3 * 4 + 4 * 3) / 25
    assert_close(cosine_similarity(a, b), torch.tensor(0.96 * sign, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_autocast_changes_nothing(normal, dtype, metric):
    a, b = normal(0, 3, 50, dtype=dtype), normal(1, 4, 50, dtype=dtype)
    with torch.autocast(a.device.type, dtype=torch.bfloat16):
        inside = similarity_matrix(a, b, metric=metric), cosine_similarity(a[:, None], b)
    outside = similarity_matrix(a, b, metric=metric), cosine_similarity(a[:, None], b)
    assert_close(inside, outside, rtol=0, atol=0)


def test_inputs_are_not_mutated(normal):
    a, b = normal(0, 3, 4), normal(1, 3, 4)
    before = a.clone(), b.clone()
    cosine_similarity(a, b), similarity_matrix(a, b), similarity_matrix(a, b, metric="dot")
    assert_close((a, b), before, rtol=0, atol=0)


def test_there_may_be_no_rows(device):
    empty, two = torch.zeros(0, 3, device=device), torch.zeros(2, 3, device=device)
    assert cosine_similarity(empty, empty).shape == (0,)
    assert similarity_matrix(empty, two).shape == (0, 2)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(normal, bad_input, backend):
    a, b = normal(0, 3, 4), normal(1, 3, 4)
    for f in (cosine_similarity, similarity_matrix):
        assert_close(torch.compile(f, backend=backend, fullgraph=True)(a, b), f(a, b))


# Gradients


@pytest.mark.parametrize(
    "f", [cosine_similarity, similarity_matrix, lambda a, b: similarity_matrix(a, b, metric="dot")]
)
def test_gradcheck(normal, f):
    a, b = normal(0, 3, 4).requires_grad_(), normal(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(f, (a, b))
    assert torch.autograd.gradgradcheck(f, (a, b))


# What is refused, and how


def test_signatures_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        cosine_similarity(torch.zeros(2), torch.zeros(3))


vector, matrix = torch.zeros(3), torch.zeros(2, 3)

both = [
    ({"a": [1.0, 2.0]}, TypeError, "a must be a torch.Tensor, was list"),
    ({"b": None}, TypeError, "b must be a torch.Tensor, was NoneType"),
    ({"a": matrix.long()}, TypeError, "a must have a floating-point dtype, was torch.int64"),
    ({"b": matrix.bool()}, TypeError, "b must have a floating-point dtype, was torch.bool"),
    ({"b": matrix.to(torch.complex64)}, TypeError, "b must have a floating-point dtype, was torch.complex64"),
    ({"b": matrix.double()}, TypeError, "b must have the dtype of a, torch.float32, was torch.float64"),
    ({"b": matrix.to("meta")}, ValueError, "b must be on the device of a, cpu, was meta"),
]


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        *both,
        ({"a": torch.tensor(1.0)}, ValueError, "a must have shape [..., D], was []"),
        ({"b": torch.tensor(1.0)}, ValueError, "b must have shape [..., D] = [..., 3], was []"),
        ({"b": torch.zeros(2, 4)}, ValueError, "b must have shape [..., D] = [..., 3], was [2, 4]"),
        ({"a": torch.zeros(2, 0), "b": torch.zeros(0)}, ValueError, "a must have at least one feature, was [2, 0]"),
        ({"b": torch.zeros(2, 1)}, ValueError, "b must have shape [..., D] = [..., 3], was [2, 1]"),
        ({"b": torch.zeros(4, 3)}, ValueError, "b must broadcast with a, [2, 3], was [4, 3]"),
    ],
)
def test_cosine_similarity_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        cosine_similarity(**{"a": matrix, "b": matrix, **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        *both,
        ({"a": vector}, ValueError, "a must have shape [m, D], was [3]"),
        ({"b": matrix[None]}, ValueError, "b must have shape [n, D] = [n, 3], was [1, 2, 3]"),
        ({"b": torch.zeros(2, 4)}, ValueError, "b must have shape [n, D] = [n, 3], was [2, 4]"),
        ({"a": torch.zeros(2, 0), "b": torch.zeros(3, 0)}, ValueError, "a must have at least one feature, was [2, 0]"),
        ({"metric": "euclid"}, ValueError, "metric must be one of 'cosine', 'dot', was 'euclid'"),
        ({"metric": None}, ValueError, "metric must be one of 'cosine', 'dot', was None"),
    ],
)
def test_similarity_matrix_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        similarity_matrix(**{"a": matrix, "b": matrix, **wrong})
    assert str(caught.value) == message
