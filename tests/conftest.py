"""Set before any test imports mathlib: shape checks at run time, and reproducible hypothesis runs."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

# temperature=1 is as good as temperature=1.0.
beartype_with_int_as_float = beartype(conf=BeartypeConf(is_pep484_tower=True))

# The signatures' shapes are checked in tests only, in the modules of the public functions: those that they share
# (and mathlib.book) have no shapes in their annotations.
SHARED = {"__init__", "_blockwise", "_checks", "_halves", "_namesake", "_rows"}
MODULES = [f"mathlib.{path.stem}" for path in Path(__file__).parents[1].glob("mathlib/*.py") if path.stem not in SHARED]
jaxtyping.install_import_hook(MODULES, "conftest.beartype_with_int_as_float")

# No database and no clock: a test that passed yesterday passes today.
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("same")
torch.set_num_threads(1)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_report_header():
    return f"devices: {', '.join(DEVICES)}"


# session: hypothesis wants a fixture that stays the same from example to example
@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Each device in turn: a test on CUDA is the same test."""
    return request.param


@pytest.fixture(scope="session")
def normal(device):
    """normal(seed, *shape): standard normal numbers, the same on every device, float64 unless told."""

    def draw(seed, *shape, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return draw


@pytest.fixture
def bad_input():
    """Switch the shape checks off, to see mathlib's own error for an argument of a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.fixture
def largest():
    """with largest() as seen: ...; seen.numel."""
    return Largest
