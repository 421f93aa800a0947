"""Train chapter 01's search engine on one process or several, stop it at any moment, and go on.

    python examples/train_distributed.py
    torchrun --nproc-per-node 2 examples/train_distributed.py

Both train the same model: a batch is shared out among the processes, and each scores its queries against
the documents of all of them (`info_nce(..., gather=True)`). The same command, given again, resumes from the
last checkpoint and ends with the same numbers, to the last bit, as a run that was never stopped.
"""

import argparse
from pathlib import Path

import torch
from resumable import batch_of, checkpoint, processes, quality, replacing
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mathlib import DualEncoder, info_nce
from mathlib.book import data
from mathlib.book.text import TextEncoder, Vocabulary


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, help="use the corpus up to this pair only")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--checkpoint-every", type=int, default=10, metavar="STEPS")
    return parser.parse_args()


def main(options: argparse.Namespace, rank: int, world: int) -> None:
    torch.set_num_threads(1)  # the same sums in the same order, whatever the machine

    entries = data.docstrings()[: options.pairs]
    train_ids, test_ids = data.split(entries)
    vocabulary = Vocabulary([f"{entries[i].query} {entries[i].document}" for i in train_ids])
    queries = vocabulary.bags([entry.query for entry in entries])
    documents = vocabulary.bags([entry.document for entry in entries])
    train_queries, train_documents = queries.rows(train_ids), documents.rows(train_ids)

    encoders = DualEncoder(TextEncoder(vocabulary, seed=options.seed))
    model = DistributedDataParallel(encoders) if world > 1 else encoders
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    steps = options.epochs * (len(train_ids) // options.batch_size)
    # what the numbers depend on; more epochs may be asked for later
    settings = {
        name: getattr(options, name) for name in ("batch_size", "learning_rate", "temperature", "seed", "pairs")
    }
    settings["world"] = world

    start = 0
    if state := checkpoint(options.checkpoint, settings):
        encoders.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
        if rank == 0:
            print(f"goes on after step {start} of {steps}")

    progress = tqdm(range(start, steps), initial=start, total=steps, disable=rank > 0)
    for step in progress:
        batch = batch_of(step, len(train_ids), options.batch_size, options.seed, rank, world)
        optimiser.zero_grad()
        embedded = model(train_queries.rows(batch), train_documents.rows(batch))
        loss = info_nce(*embedded, temperature=options.temperature, gather=True)
        loss.backward()
        optimiser.step()
        done = step + 1
        if rank == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            if done % options.checkpoint_every == 0 or done == steps:
                state = {"model": encoders.state_dict(), "optimiser": optimiser.state_dict()}
                with replacing(options.checkpoint) as file:
                    torch.save({**state, "step": done, "settings": settings}, file)

    if rank == 0:
        wanted = data.relevant(entries, test_ids)
        with torch.no_grad():
            embedded = encoders(queries.rows(test_ids), documents)
        for name, value in quality(*embedded, wanted).items():
            print(f"{name:9}  {value:.6f}")


if __name__ == "__main__":
    with processes() as (rank, world):
        main(arguments(), rank, world)
