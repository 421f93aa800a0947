"""What every rule refuses in its scores: the wrong argument, the type of the error, its whole message."""

import torch

WRONG_SCORES = [
    ({"positive_scores": [[0.0]]}, TypeError, "positive_scores must be a torch.Tensor, was list"),
    ({"candidate_scores": None}, TypeError, "candidate_scores must be a torch.Tensor, was NoneType"),
    (
        {"positive_scores": torch.zeros(2, 1).long()},
        TypeError,
        "positive_scores must have a floating-point dtype, was torch.int64",
    ),
    (
        {"candidate_scores": torch.zeros(2, 3).bool()},
        TypeError,
        "candidate_scores must have a floating-point dtype, was torch.bool",
    ),
    (
        {"candidate_scores": torch.zeros(2, 3).half()},
        TypeError,
        "candidate_scores must have the dtype of positive_scores, torch.float32, was torch.float16",
    ),
    (
        {"candidate_scores": torch.zeros(2, 3, device="meta")},
        ValueError,
        "candidate_scores must be on the device of positive_scores, cpu, was meta",
    ),
    ({"positive_scores": torch.zeros(2)}, ValueError, "positive_scores must have shape [B, 1], was [2]"),
    ({"candidate_scores": torch.zeros(2)}, ValueError, "candidate_scores must have shape [B, C] = [2, C], was [2]"),
    (
        {"positive_scores": torch.zeros(2, 3)},
        ValueError,
        "positive_scores must have shape [B, 1], was [2, 3]",
    ),
    (
        {"candidate_scores": torch.zeros(1, 3)},
        ValueError,
        "candidate_scores must have shape [B, C] = [2, C], was [1, 3]",
    ),
    (
        {"candidate_scores": torch.zeros(2, 3).double()},
        TypeError,
        "candidate_scores must have the dtype of positive_scores, torch.float32, was torch.float64",
    ),
    ({"candidate_scores": torch.zeros(3)}, ValueError, "candidate_scores must have shape [B, C] = [2, C], was [3]"),
]
