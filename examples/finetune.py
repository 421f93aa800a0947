"""Fine-tune all-MiniLM-L6-v2, the whole transformer, on the documentation corpus.

    python examples/finetune.py --loss mined --save tuned
    torchrun --nproc-per-node 2 examples/finetune.py --loss mined --save tuned

What the query, the summary of a docstring, must find is the rest of it:

    infonce     among the documents of the batch
    mined       and among those that the model as it comes finds most like the query
    random      and among as many that chance picks, to compare the mined ones with
    gist        among the documents of the batch that the model as it comes, the guide, finds less like the query than
                its own; and the student's similarities are drawn to the guide's
    mined-gist  and among the mined ones, as the guide finds them

Documents that are known to answer the query too, its group, are never negatives. Stop it at any moment: the same
command, given again, resumes from the last checkpoint and ends with the same numbers, to the last bit on the same
machine with as many threads, as a run that was never stopped. There are no random numbers to keep, since our MiniLM has
no dropout. With --save, sentence-transformers loads the folder as it is.
"""

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path

import bm25s
import torch
from resumable import batch_of, checkpoint, processes, quality, quality_of, replacing
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mathlib import encode_in_blocks, gist_embed_loss, hardness_weights, info_nce, mine_hard_negatives
from mathlib.book import data, minilm
from mathlib.book.machine import machine

FILES = ("checkpoint", "checkpoint_every", "save", "embeddings", "results")
# the last five are the corpus
PACKAGES = ("torch", "tokenizers", "matplotlib", "networkx", "numpy", "scipy", "scikit-learn")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, type=int)
    add("--steps", default=100)
    add("--batch-size", default=32, help="pairs, of all processes together")
    add("--longest", default=64, metavar="TOKENS", help="what is read of a text, also in evaluation")
    add("--block-size", metavar="TEXTS", help="how many are encoded at once, where a batch does not fit into memory")
    add("--seed", default=0, help="for the order of the pairs")
    add("--pairs", help="use the corpus up to this pair only")
    add("--learning-rate", type=float, default=1e-4, help="AdamW's at its highest")
    add("--warm-up", default=10, metavar="STEPS", help="until then; afterwards it falls to 0")
    add("--loss", type=str, choices=("infonce", "mined", "random", "gist", "mined-gist"), default="infonce")
    add("--temperature", type=float, default=0.05)
    add("--hardness", type=float, default=0.0, help="without a guide: the strength of hardness_weights")
    add("--negatives", default=1, help="how many are mined, or drawn, for each query")
    add("--margin", type=float, default=0.05, help="mined ones score below the positive by this share of it")
    add("--guide-margin", type=float, default=0.0, help="the guide keeps what scores below its positive less this")
    add("--lam", type=float, default=1.0, help="the weight of the guide's divergence; 0 leaves its choice alone")
    parser.add_argument("--symmetric", action="store_true", help="without a guide: also from documents to queries")
    parser.add_argument("--validate", action="store_true", help="on a fifth of the training side, to choose settings")
    add("--checkpoint", type=Path, default=Path("finetune.pt"))
    add("--checkpoint-every", default=20, metavar="STEPS")
    add("--save", type=Path, metavar="FOLDER", help="the model, for sentence-transformers")
    add("--embeddings", type=Path, metavar="FILE", help="of all queries and documents afterwards, as safetensors")
    add("--results", type=Path, metavar="FILE", help="JSON to add the run to; one that it holds is not run again")
    return parser.parse_args()


class Columns(nn.Module):
    """The embeddings of several columns of texts in one forward pass, which is what DistributedDataParallel counts."""

    def __init__(self, model: nn.Module, block_size: int | None) -> None:
        super().__init__()
        self.model, self.block_size = model, block_size

    def forward(self, *columns: tuple[Tensor, Tensor]) -> list[Tensor]:
        if self.block_size is None:
            return [self.model(*column) for column in columns]
        return [encode_in_blocks(self.model, *column, block_size=self.block_size) for column in columns]


def rate(step: int, steps: int, warm_up: int) -> float:
    """The share of the learning rate at a step: up in a straight line, and down in another."""
    return min((step + 1) / max(1, warm_up), (steps - step) / max(1, steps - warm_up))


def mined(queries: Tensor, documents: Tensor, entries: list[data.Entry], *, k: int, margin: float) -> Tensor:
    """For each pair the k documents that look most relevant [pairs, k]; where too few are left, its own."""
    known = data.relevant(entries, range(len(entries)))
    found = mine_hard_negatives(queries, documents, known, k=k, margin=margin).indices
    own = torch.arange(len(entries))[:, None]
    return torch.where(found < 0, own, found)


def with_bm25(queries: Tensor, documents: Tensor, asked: list[str], texts: list[str]) -> Tensor:
    """The embeddings' scores and BM25's, added after each query's are brought to mean 0 and deviation 1 [Q, N]."""
    bm25 = bm25s.BM25()
    bm25.index([data.words(text) for text in texts], show_progress=False)
    by_words = torch.stack([torch.from_numpy(bm25.get_scores(data.words(text))) for text in asked])
    both = torch.stack([queries @ documents.T, by_words])
    return ((both - both.mean(-1, keepdim=True)) / both.std(-1, keepdim=True)).sum(0)


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names for our parameters, as sentence-transformers and transformers read them."""
    old = {"embeddings.word_embeddings.weight": state["words.weight"]}
    old["embeddings.position_embeddings.weight"] = state["places.weight"]
    old["embeddings.token_type_embeddings.weight"] = state["places.weight"].new_zeros(2, minilm.WIDTH)
    for kind in ("weight", "bias"):
        old[f"embeddings.LayerNorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(minilm.LAYERS):
            name = f"encoder.layer.{i}."
            parts = state[f"layers.{i}.attention.in_proj_{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                old[f"{name}attention.self.{part}.{kind}"] = value.contiguous()
            for theirs, ours in minilm.NAMES.items():
                old[f"{name}{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"]
    return old


def save_model(state: dict[str, Tensor], folder: Path) -> None:
    """The published model's folder with other weights; what describes its own training is left out."""
    weights = minilm.checked(None, "model.safetensors")
    kept = shutil.ignore_patterns(weights.name, "README.md", "data_config.json", ".*")
    shutil.copytree(weights.parent, folder, ignore=kept, dirs_exist_ok=True)
    # the pooler, which is not used, stays, so that no name is missing
    published = load_file(weights) | to_published(state)
    with replacing(folder / weights.name) as file:
        file.write(save(published, metadata={"format": "pt"}))


def others(results: Path | None, settings: dict, versions: dict[str, str]) -> list[dict] | None:
    """The runs that a file holds besides the one with these settings; None if that one has these versions, too."""
    if results is None or not results.exists():
        return []
    runs = json.loads(results.read_text(encoding="utf-8"))["runs"]
    same = [run for run in runs if run["settings"] == settings]
    if any(run["environment"]["versions"] == versions for run in same):
        return None
    return [run for run in runs if run not in same]


def main(options: argparse.Namespace, rank: int, world: int) -> None:
    settings = {name: value for name, value in vars(options).items() if name not in FILES} | {"world": world}
    environment = machine("cpu", *PACKAGES)
    if (runs := others(options.results, settings, environment["versions"])) is None:
        print(f"{options.results} holds this run")
        return

    entries = data.docstrings()[: options.pairs]
    train_ids, test_ids = data.split(entries)
    if options.validate:
        train_ids, test_ids = data.split(entries, train_ids, salt="validation ")
    train, group = torch.tensor(train_ids), torch.tensor([entry.group for entry in entries])
    queries, documents = [entry.query for entry in entries], [entry.document for entry in entries]

    encoder, tokenizer = minilm.load()
    embed = partial(minilm.embed, encoder, tokenizer, longest=options.longest)
    columns = Columns(encoder, options.block_size)
    model = DistributedDataParallel(columns) if world > 1 else columns
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    if state := checkpoint(options.checkpoint, settings):
        encoder.load_state_dict(state.pop("model"))
        optimiser.load_state_dict(state.pop("optimiser"))
        if rank == 0:
            print(f"goes on after step {state['step']} of {options.steps}")
    else:
        if rank == 0:
            print(f"embeds {len(entries)} queries and as many documents")
        state = {"step": 0, "seconds": 0.0, "losses": [], "settings": settings}
        state["start"] = [embed(queries), embed(documents)]
    start_queries, start_documents = state["start"]
    if "mined" in options.loss:
        start = start_queries[train], start_documents[train], [entries[i] for i in train_ids]
        negatives = train[mined(*start, k=options.negatives, margin=options.margin)]
    if options.loss == "random":
        luck = torch.Generator().manual_seed(options.seed)
        negatives = train[torch.randint(len(train), (len(train), options.negatives), generator=luck)]

    def loss_of(rows: Tensor) -> Tensor:
        """The loss of some of the training pairs, by their row."""
        batch = train[rows]
        texts = [[queries[i] for i in batch], [documents[i] for i in batch]]
        if options.loss in ("mined", "random", "mined-gist"):
            texts.append([documents[i] for i in negatives[rows].flatten()])
        query, document, *negative = model(*(minilm.tokenised(tokenizer, x, longest=options.longest) for x in texts))
        shared = {"temperature": options.temperature, "groups": group[batch], "gather": True}
        guide = {"guide_anchor": start_queries[batch], "guide_positive": start_documents[batch]}
        if negative:
            own = negative[0].unflatten(0, (len(batch), -1))  # [B, k, D]
            shared |= {"negatives": own, "negative_groups": group[negatives[rows]]}
            guide["guide_negatives"] = start_documents[negatives[rows]]
        if "gist" in options.loss:
            return gist_embed_loss(query, document, **guide, margin=options.guide_margin, lam=options.lam, **shared)
        weigh = partial(hardness_weights, strength=options.hardness)
        return info_nce(query, document, weigh=weigh, symmetric=options.symmetric, **shared)

    progress = tqdm(range(state["step"], options.steps), initial=state["step"], total=options.steps, disable=rank > 0)
    for step in progress:
        began = time.perf_counter()
        for parameters in optimiser.param_groups:
            parameters["lr"] = options.learning_rate * rate(step, options.steps, options.warm_up)
        optimiser.zero_grad()
        loss = loss_of(batch_of(step, len(train), options.batch_size, options.seed, rank, world))
        loss.backward()
        optimiser.step()
        state["step"] = step + 1
        state["losses"].append(loss.item())
        state["seconds"] += time.perf_counter() - began
        if rank == 0:
            progress.set_postfix(loss=f"{state['losses'][-1]:.4f}", refresh=False)
            if state["step"] % options.checkpoint_every == 0 or state["step"] == options.steps:
                with replacing(options.checkpoint) as file:
                    torch.save({**state, "model": encoder.state_dict(), "optimiser": optimiser.state_dict()}, file)
    if rank > 0:
        return

    end = [embed(queries), embed(documents)]
    wanted = data.relevant(entries, test_ids)
    before, after = (quality(q[test_ids], d, wanted) for q, d in (state["start"], end))
    scores = with_bm25(end[0][test_ids], end[1], [queries[i] for i in test_ids], documents)
    both = quality_of(scores.topk(min(100, len(documents))).indices, wanted)
    for name in before:
        print(f"{name:9}  {before[name]:.6f} before, {after[name]:.6f} after, {both[name]:.6f} with BM25")
    if options.save:
        save_model(encoder.state_dict(), options.save)
    if options.embeddings:
        with replacing(options.embeddings) as file:
            file.write(save(dict(zip(("queries", "documents"), end, strict=True))))
    if options.results:
        run = {"settings": settings, "before": before, "after": after, "with BM25": both, "losses": state["losses"]}
        runs.append(run | {"seconds": state["seconds"], "environment": environment})
        lines = ",\n".join(map(json.dumps, runs))
        with replacing(options.results) as file:
            file.write(f'{{"runs": [\n{lines}\n]}}\n'.encode())


if __name__ == "__main__":
    with processes() as (rank, world):
        main(arguments(), rank, world)
