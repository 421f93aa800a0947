"""Products of half-precision vectors at half precision's speed, and as exact as float32's.

The product of two bfloat16 or float16 numbers fits into float32 without rounding. So what half-precision embeddings
need is not float32 factors but float32 sums, and a processor that multiplies half precision gives these several times
faster. Cosines come by scaling the product, not the factors, whose quotients would have to be rounded again.

On CUDA, torch takes half-precision factors and returns float32. On a CPU it does not: there the factors are float32
copies, and a switch lets oneDNN read them as bfloat16, which changes none of them. Where the processor cannot multiply
bfloat16 (AMX), and for float16, the product is float32's own.
"""

import contextlib
import threading

import torch
from torch import Tensor

from mathlib._similarity import no_autocast


def as_factor(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as `products_of_halves` multiplies it: on CUDA in that dtype, elsewhere float32."""
    return x.to(dtype if x.is_cuda else torch.float32)


def directions_of_halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors y that point where x [n, D] does, 1/|y| [n, 1] in float32, 0 where `unit` has no direction, and y/x.

    y is x times a power of two: as exact, and no product overflows.
    """
    eps = 1e-4 if x.dtype == torch.float16 else 1e-12
    wide = x.float()
    largest = torch.maximum(wide.amax(dim=1, keepdim=True), -wide.amin(dim=1, keepdim=True)).clamp_min(eps)
    # the largest entry to 2^8: then neither the scale of a huge vector nor what is small in a float16 one is subnormal
    scale = torch.exp2(8 - torch.floor(torch.log2(largest)))
    wide = wide * scale
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return as_factor(wide, x.dtype), lengths.masked_fill(lengths < eps * scale, torch.inf).reciprocal(), scale


def scaled_factor(x: Tensor, scale: Tensor, dtype: torch.dtype, memory: Tensor) -> Tensor:
    """x times scale, rounded once to what `as_factor` makes of it: in x's place, or on CUDA in memory of x's shape."""
    if not x.is_cuda:
        return x.mul_(scale)
    out = memory.view(dtype)[:, : x.shape[1]]  # pragma: no cover - needs CUDA, no mutate
    return torch.mul(x, scale, out=out)  # pragma: no cover - needs CUDA, no mutate


def products_of_halves(
    a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None, *, onto: Tensor | None = None
) -> Tensor:
    """a @ b.T of two factors of that dtype, [m, D], [n, D] -> [m, n], in float32 whatever autocast would make of it:
    in new memory, into `out`, or added `onto` what is there.

    A factor that is float32, and does not hold values of the dtype, may be rounded to it. Traced (torch.compile), the
    product on a CPU is float32's own: a graph cannot hold the switch.
    """
    with no_autocast(a):
        if a.is_cuda:  # pragma: no cover - needs CUDA, no mutate block
            product = torch.mm(as_factor(a, dtype), b.mT, out_dtype=torch.float32, out=out)
            return product if onto is None else onto.add_(product)
        own = dtype == torch.float16 or torch.compiler.is_compiling()
        with contextlib.nullcontext() if own else as_bfloat16:
            return torch.mm(a, b.mT, out=out) if onto is None else onto.addmm_(a, b.mT)


class AsBfloat16:
    """While any thread is inside, float32 products on a CPU may read their factors as bfloat16.

    The switch is torch's, and the whole process's: the last one to leave puts it back as the first one found it, also
    after an error. A float32 product that another thread computes in the meantime may be rounded too.
    """

    found: str

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0

    def __enter__(self) -> None:
        switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self.lock:
            if self.inside == 0:
                self.found = switch.fp32_precision
                # what is read may stand at a more general switch, which must still be followed afterwards
                switch.fp32_precision = "none"
                if switch.fp32_precision == self.found:
                    self.found = "none"
                switch.fp32_precision = "bf16"
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                torch.backends.mkldnn.matmul.fp32_precision = self.found  # type: ignore[attr-defined]


as_bfloat16 = AsBfloat16()
