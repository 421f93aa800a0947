import math
import threading

import pytest
import torch
from by_hand import HALVES, cosine, dot
from torch.testing import assert_close

from mathlib._halves import AsBfloat16, as_bfloat16, as_factor, directions_of_halves, products_of_halves

switch = torch.backends.mkldnn.matmul


@pytest.fixture
def found():
    """Every switch of torch as the tests found it, also after one that changes them."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)
    switch.fp32_precision = "none"


def multiplied(a, b, **options):
    return products_of_halves(as_factor(a, a.dtype), as_factor(b, b.dtype), a.dtype, **options)


def cosines(a, b):
    (x, of_x, _), (y, of_y, _) = directions_of_halves(a), directions_of_halves(b)
    return products_of_halves(x, y, a.dtype) * of_x * of_y.mT


# The product


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_exact_up_to_float32_sums(normal, dtype):
    a, b = normal(0, 5, 70, dtype=dtype), normal(1, 6, 70, dtype=dtype)
    expected = [[dot(x, y) for y in b.tolist()] for x in a.tolist()]
    ours = multiplied(a, b)
    assert ours.dtype == torch.float32
    # rounded to the dtype, each would be off by as much as 1e-2
    assert_close(ours.double().cpu(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_scratch_matrix_holds_the_products(normal, dtype):
    a, b = normal(0, 5, 7, dtype=dtype), normal(1, 6, 7, dtype=dtype)
    scratch = torch.empty(5, 6, device=a.device)
    assert multiplied(a, b, out=scratch) is scratch
    assert torch.equal(scratch, multiplied(a, b))


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_added_to_what_is_there(normal, dtype):
    a, b = normal(0, 5, 7, dtype=dtype), normal(1, 6, 7, dtype=dtype)
    sums = torch.full((5, 6), 100.0, device=a.device)
    assert multiplied(a, b, onto=sums) is sums
    assert_close(sums, 100 + multiplied(a, b))


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_rounds_no_product(normal, dtype):
    a, b = normal(0, 5, 70, dtype=dtype), normal(1, 6, 70, dtype=dtype)
    outside = multiplied(a, b)
    for other in HALVES:
        with torch.autocast(a.device.type, dtype=other):
            assert torch.equal(multiplied(a, b), outside)
    assert not torch.is_autocast_enabled(a.device.type)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_product_compiles_without_a_graph_break(normal, bad_input, dtype):
    a, b = normal(0, 5, 70, dtype=dtype), normal(1, 6, 70, dtype=dtype)
    compiled = torch.compile(multiplied, backend="aot_eager", fullgraph=True)
    assert_close(compiled(a, b), multiplied(a, b))
    with torch.autocast(a.device.type, dtype=torch.bfloat16):
        assert_close(compiled(a, b), multiplied(a, b))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # CUDA's product is mapped by a loop
@pytest.mark.parametrize("dtype", HALVES)
def test_a_product_reads_no_value_and_is_mapped(normal, dtype):
    a, b = normal(0, 3, 5, 7, dtype=dtype), normal(1, 6, 7, dtype=dtype)
    assert multiplied(a[0].to("meta"), b.to("meta")).shape == (5, 6)
    assert_close(torch.vmap(lambda x: multiplied(x, b))(a), torch.stack([multiplied(x, b) for x in a]))
    assert_close(torch.vmap(lambda x: cosines(x, b))(a), torch.stack([cosines(x, b) for x in a]))


# Directions


@pytest.mark.parametrize("dtype", HALVES)
def test_cosines_are_those_of_the_loop(normal, dtype):
    a, b = normal(0, 5, 70, dtype=dtype), normal(1, 6, 70, dtype=dtype)
    expected = [[cosine(x, y) for y in b.tolist()] for x in a.tolist()]
    assert_close(cosines(a, b).double().cpu(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype, exponents", [(torch.float16, (-12, 0, 14)), (torch.bfloat16, (-38, 0, 126))])
def test_no_length_overflows_and_no_value_loses_a_digit(normal, dtype, exponents):
    x = normal(0, 4, 9, dtype=dtype)
    x = (x / x.abs().amax(dim=1, keepdim=True)).double()
    for exponent in exponents:
        scaled = (x * 2.0**exponent).to(dtype)
        y, inverse, _ = directions_of_halves(scaled)
        assert inverse.dtype == torch.float32 and inverse.shape == (4, 1)
        assert torch.equal(y.double(), scaled.double() * 2.0 ** (8 - exponent))
        assert_close(cosines(scaled, scaled).diagonal(), torch.ones(4, device=x.device))


def test_a_vector_shorter_than_eps_has_no_direction(device):
    for dtype, eps in ((torch.float16, 1e-4), (torch.bfloat16, 1e-12)):
        x = torch.tensor([[0.0, 0.0], [0.6 * eps, 0.6 * eps], [0.8 * eps, 0.8 * eps]], dtype=dtype, device=device)
        _, inverse, _ = directions_of_halves(x)
        assert (inverse[:2] == 0).all() and 0 < inverse[2] < 1
        assert_close(cosines(x, x[2:])[:, 0], torch.tensor([0.0, 0.0, 1.0], device=device))


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_no_number_has_no_direction_that_is_one(device, dtype):
    one = torch.ones(1, 2, dtype=dtype, device=device)
    for value in (math.nan, math.inf):
        assert cosines(torch.tensor([[value, 1.0]], dtype=dtype, device=device), one).isnan().all()


# The switch


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """What the switch says whenever something is multiplied; once as told, the product fails."""

    def __init__(self, fails=False):
        super().__init__()
        self.seen, self.fails = [], fails

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.mm:
            self.seen.append(switch.fp32_precision)
            if self.fails:
                raise ArithmeticError
        return function(*args, **(kwargs or {}))


def test_the_switch_is_on_for_bfloat16_alone(found):
    for dtype, expected in ((torch.bfloat16, "bf16"), (torch.float16, "none")):
        one = torch.ones(1, 1, dtype=dtype)
        with Watched() as watched:
            multiplied(one, one)
        assert watched.seen == [expected]
        assert switch.fp32_precision == "none"


def test_the_first_to_enter_sets_the_switch(found):
    with AsBfloat16():
        assert switch.fp32_precision == "bf16"
    assert switch.fp32_precision == "none"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_switch_is_put_back_also_after_an_error(found, precision, fails):
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    torch.set_float32_matmul_precision(precision)
    before = switch.fp32_precision
    try:
        with Watched(fails):
            multiplied(one, one)
    except ArithmeticError:
        assert fails
    assert switch.fp32_precision == before != "none"
    assert torch.get_float32_matmul_precision() == precision


def test_a_more_general_switch_is_still_followed_afterwards(found):
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    for general in ("ieee", "bf16", "tf32"):
        torch.backends.fp32_precision = general
        assert switch.fp32_precision == general
        multiplied(one, one)
        assert switch.fp32_precision == general


def test_the_last_thread_to_leave_puts_the_switch_back(found):
    torch.set_float32_matmul_precision("highest")
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with as_bfloat16:
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=stay)
    other.start()
    entered.wait(60)
    with as_bfloat16:
        pass
    assert switch.fp32_precision == "bf16"
    leave.set()
    other.join()
    assert switch.fp32_precision == "ieee"


def test_many_threads_multiply_exactly_and_leave_nothing_behind(found, normal):
    a, b = normal(0, 8, 40, dtype=torch.bfloat16), normal(1, 9, 40, dtype=torch.bfloat16)
    expected, products = multiplied(a, b), [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(multiplied(a, b) for _ in range(200)))
        for mine in products
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(product, expected) for mine in products for product in mine)
    assert [len(mine) for mine in products] == [200] * 4
    assert switch.fp32_precision == "none"
