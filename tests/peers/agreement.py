"""What a peer and mathlib must agree on: the value, and the gradient to every input."""

import torch
from torch.testing import assert_close


def assert_agree(ours, theirs, *tensors, **tolerance):
    """Call both with the tensors as leaves; compare the values, and the gradients to every one of them."""
    results = []
    for function in (ours, theirs):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        value = function(*leaves)
        gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
        results.append((value.detach(), *gradients))
    assert all(gradient.abs().max() > 0 for gradient in results[0][1:]), "nothing to compare: a gradient is 0"
    assert_close(*results, **tolerance)
