"""What the programs of this folder share: one or several processes that can be stopped at any moment, and go on."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor

from mathlib import mean_reciprocal_rank, ndcg_at_k, recall_at_k, search


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are, as torchrun set them; they are joined until the end."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    yield rank, world
    if world > 1:
        dist.destroy_process_group()


def batch_of(step: int, pairs: int, batch_size: int, seed: int, rank: int, world: int) -> Tensor:
    """This process's share of the pairs of a step, which depend on the arguments alone: a run can resume at any step.

    The end of an epoch, too short for a batch, is left out.
    """
    if batch_size % world:
        raise ValueError(f"--batch-size must be a multiple of the {world} processes, was {batch_size}")
    if not 0 < batch_size <= pairs:
        raise ValueError(f"--batch-size must be from 1 to the {pairs} pairs to train on, was {batch_size}")
    epoch, number = divmod(step, pairs // batch_size)
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(pairs, generator=generator)
    return order[number * batch_size : (number + 1) * batch_size].chunk(world)[rank]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in the place of path, all or nothing: a process that is killed leaves the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def checkpoint(path: Path, settings: dict[str, object]) -> dict | None:
    """What a run with these settings, on which its numbers depend, has left there, if anything."""
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings:
        raise ValueError(f"{path} must be of a run with {settings}, was of one with {state['settings']}")
    return state


def quality(queries: Tensor, documents: Tensor, wanted: Sequence[set[int]]) -> dict[str, float]:
    """How well all documents are ranked for queries, by their embeddings; wanted are the documents that answer each."""
    return quality_of(search(queries, documents, k=min(100, len(documents))).indices, wanted)


def quality_of(ranked: Tensor, wanted: Sequence[set[int]]) -> dict[str, float]:
    """How good the rankings [Q, n] are."""
    return {
        "recall@10": recall_at_k(ranked, wanted, k=10).item(),
        "MRR": mean_reciprocal_rank(ranked, wanted).item(),
        "nDCG@10": ndcg_at_k(ranked, wanted, k=10).item(),
    }
