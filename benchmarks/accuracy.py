"""How far are loss and gradient from float64's on the same embeddings?"""

import argparse
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from contrastive import plain
from measure import DEVICE
from small import TEMPERATURE, cosines, rows_of

from mathlib import info_nce

ROWS, D = 2048, 384


def wide_loss(a, p):
    """`plain`, whose scores alone are of the embeddings' dtype: what of its error is theirs?"""
    return torch.nn.functional.cross_entropy((cosines(a, p) / TEMPERATURE).float(), rows_of(a))


def functions():
    """The losses at temperature 0.05, by name."""
    found = {"mathlib": info_nce, "torch, by hand": plain, "torch, by hand, cross_entropy in float32": wide_loss}
    if find_spec("info_nce"):
        from info_nce import info_nce as peer

        found["info-nce-pytorch"] = partial(peer, temperature=0.05)
    return found


def errors(loss, dtype, rows):
    """Of the loss, and of the gradient by the anchors, relative to float64's on the same values."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, D, generator=generator)
    p = a + torch.randn(rows, D, generator=generator)
    found = []
    for function, wanted in ((loss, dtype), (plain, torch.float64)):
        given = [x.to(DEVICE, dtype).to(wanted).detach().requires_grad_() for x in (a, p)]
        value = function(*given)
        value.backward()
        found.append((value.detach().double(), given[0].grad.double()))
    (value, gradient), (exact, exact_gradient) = found
    return (value / exact - 1).abs(), (gradient - exact_gradient).norm() / exact_gradient.norm()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small batch: does it run?")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options, _ = parser.parse_known_args()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, loss in functions().items():
            if loss is wide_loss and dtype == torch.float32:
                continue  # there it is `plain`
            of_loss, of_gradient = errors(loss, dtype, 64 if options.quick else ROWS)
            size, name = (64 if options.quick else ROWS), f"{name}, {str(dtype).removeprefix('torch.')}"
            print(f"  {name:38s} {size:6d} loss {of_loss:8.1e} gradient {of_gradient:8.1e}", flush=True)
            rows.append({"name": name, "size": size, "loss": float(of_loss), "gradient": float(of_gradient)})
    if options.json:
        options.json.write_text(json.dumps({"accuracy": rows}))


if __name__ == "__main__":
    main()
