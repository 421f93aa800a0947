"""What do the log-probabilities of answers cost, forward and backward, against log_softmax and gather?"""

import torch
from measure import DEVICE, backward, bar, main, normal, timed

from mathlib import sequence_log_prob

BASE = "log_softmax + gather"
OURS = "mathlib sequence_log_prob"
TOKENS = 512


def step(name, size):
    """[8, 512, size] logits."""
    logits = normal(0, 8, TOKENS, size)
    labels = torch.randint(size, (8, TOKENS), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def plain(logits):
        return logits.log_softmax(-1).gather(-1, labels[..., None]).sum()

    return backward(plain if name == BASE else lambda x: sequence_log_prob(x, labels).sum(), logits)


def run(quick, most):
    rows = []
    for size in [64] if quick else [2000, 8000, 32000]:
        rows += timed("log_prob", __file__, step, [BASE, OURS], size, 1 if quick else 3, BASE)
    found = rows[-1]
    time = bar(f"{OURS}: time", 1.0, found["ratio"], "x log_softmax + gather", "the work is the same to the noise")
    gradient = 8 * TOKENS * found["size"] * 4 / 1e6  # MB
    limit = round(1.05 * gradient, 1)
    memory = bar(f"{OURS}: extra memory", limit, found["mb"], "MB", "the gradient, and blocks of the softmax")
    return rows, [time, memory]


if __name__ == "__main__":
    main(run, step, 64)
