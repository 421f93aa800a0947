"""The examples as a reader runs them: from the command line, in processes of their own."""

import importlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bm25s
import pytest
import torch
from safetensors.torch import load_file

from mathlib.book import data, minilm

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, FINETUNE = (str(EXAMPLES / f"{name}.py") for name in ("train_distributed", "finetune"))
SMALL = ["--pairs", "1000", "--batch-size", "64", "--checkpoint-every", "1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def metrics(output):
    found = dict(re.findall(r"^(recall@10|MRR|nDCG@10) +([\d.]+)$", output, re.MULTILINE))
    assert len(found) == 3, output
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run on two processes that nothing stops: its output and its last checkpoint."""
    checkpoint = tmp_path_factory.mktemp("two") / "checkpoint.pt"
    return run(*TORCHRUN, SCRIPT, *SMALL, "--checkpoint", str(checkpoint)), torch.load(checkpoint, weights_only=True)


def test_two_processes_end_where_one_does(two, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    output = run(sys.executable, SCRIPT, *SMALL, "--checkpoint", str(checkpoint))
    assert metrics(output) == metrics(two[0])
    one = torch.load(checkpoint, weights_only=True)
    for name, value in one["model"].items():
        torch.testing.assert_close(two[1]["model"][name], value, rtol=0, atol=1e-6)
    # training is of some use
    started = run(sys.executable, SCRIPT, *SMALL, "--epochs", "0", "--checkpoint", str(tmp_path / "none.pt"))
    assert metrics(output)["MRR"] > metrics(started)["MRR"]


def killed_after_a_step(command, checkpoint, world):
    """Start the processes, kill them when they have left a checkpoint, and return its step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun sets: a process that it starts would outlive it
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | group | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(world)
    ]
    try:
        while not checkpoint.exists() and processes[0].poll() is None:
            time.sleep(0.001)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return torch.load(checkpoint, weights_only=True)["step"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(two, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    command = [SCRIPT, *SMALL, "--checkpoint", str(checkpoint)]
    stopped = killed_after_a_step(command, checkpoint, world=2)
    output, end = two
    assert 1 <= stopped < end["step"]

    resumed = run(*TORCHRUN, *command)
    assert f"goes on after step {stopped} of {end['step']}" in resumed
    assert metrics(resumed) == metrics(output)
    again = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(again["model"][name], value) for name, value in end["model"].items())


def test_a_checkpoint_of_another_run_is_refused(two, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save(two[1], checkpoint)
    command = [sys.executable, SCRIPT, *SMALL, "--checkpoint", str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(
        r"ValueError: .* must be of a run with .*'world': 1.*, was of one with .*'world': 2", result.stderr
    )


# The whole transformer. A checkpoint of it is large: each test removes its own.

TINY = ["--pairs", "120", "--batch-size", "8", "--longest", "16", "--learning-rate", "1e-4", "--checkpoint-every", "1"]
MINED = ["--loss", "mined", "--negatives", "2", "--steps", "3"]


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)


def tuned(folder, *options, start=(sys.executable,)):
    """What a run prints, its record, its embeddings, and what its last checkpoint holds."""
    files = {name: folder / name for name in ("checkpoint", "results", "embeddings")}
    given = [x for name, path in files.items() for x in (f"--{name}", str(path))]
    output = run(*start, FINETUNE, *TINY, *options, *given)
    [record] = json.loads(files["results"].read_text())["runs"]
    return output, record, load_file(files["embeddings"]), torch.load(files["checkpoint"], weights_only=True)


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """A run with mined negatives that nothing stops, and what a second start of it prints."""
    folder = tmp_path_factory.mktemp("mined")
    found = tuned(folder, *MINED)
    again = run(sys.executable, FINETUNE, *TINY, *MINED, "--results", str(folder / "results"))
    shutil.rmtree(folder)
    return *found, again


def first_loss(found):
    """The loss of a run's first step by a loop over scores of the model as it comes."""
    _, record, _, state = found
    settings = record["settings"]
    entries = data.docstrings()[: settings["pairs"]]
    train = data.split(entries)[0]
    if settings["validate"]:
        train = data.split(entries, train, salt="validation ")[0]
    queries, documents = (x.double() for x in state["start"])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 * settings["seed"]))
    batch = [train[i] for i in order[: settings["batch_size"]]]
    score = lambda i, j: float(queries[i] @ documents[j])  # noqa: E731
    known = lambda i, j: entries[i].group == entries[j].group  # noqa: E731
    negatives = []
    for i in batch if "mined" in settings["loss"] else ():
        limit = 0.95 * min(score(i, j) for j in train if known(i, j))
        below = [j for j in train if not known(i, j) and score(i, j) <= limit]
        negatives += sorted(below, key=lambda j: -score(i, j))[: settings["negatives"]]
    if settings["loss"] == "random":
        luck = torch.Generator().manual_seed(settings["seed"])
        drawn = torch.randint(len(train), (len(train), settings["negatives"]), generator=luck)
        negatives = [train[j] for row in order[: len(batch)] for j in drawn[row]]
    losses, removed = [], 0
    directions = (score, lambda i, j: score(j, i)) if settings["symmetric"] else (score,)
    for towards, i in itertools.product(directions, batch):
        candidates = [j for j in batch if j != i] + negatives
        removed += sum(known(i, j) for j in candidates)
        candidates = [j for j in candidates if not known(i, j)]
        if "gist" in settings["loss"]:
            candidates = [j for j in candidates if towards(i, j) <= towards(i, i)]
        weights = [math.exp(settings["hardness"] * towards(i, j)) for j in candidates]
        others = [
            w * math.exp((towards(i, j) - towards(i, i)) / 0.05) for w, j in zip(weights, candidates, strict=True)
        ]
        losses.append(math.log(1 + sum(others) * len(weights) / sum(weights)))
    assert removed, "nothing is known: another seed would show more"
    return sum(losses) / len(losses)


def test_fine_tuning_moves_the_model_and_is_recorded(mined):
    output, record, embeddings, state, again = mined
    for name, value in record["after"].items():
        assert (
            f"{name:9}  {record['before'][name]:.6f} before, {value:.6f} after, {record['with BM25'][name]:.6f} with BM25"
            in output
        )
    assert record["settings"]["loss"] == "mined" and record["seconds"] > 0 and len(record["losses"]) == 3
    assert "not installed" not in record["environment"]["versions"].values()
    for name, start in zip(("queries", "documents"), state["start"], strict=True):
        assert embeddings[name].shape == (120, 384)
        torch.testing.assert_close(embeddings[name].norm(dim=1), torch.ones(120))
        assert (embeddings[name] - start).abs().max() > 1e-3
    assert record["losses"][0] == pytest.approx(first_loss(mined[:4]), abs=1e-5)
    assert re.search("results holds this run$", again.strip())


def test_a_killed_fine_tuning_goes_on_as_if_nothing_had_happened(mined, folder):
    command = [FINETUNE, *TINY, *MINED]
    checkpoint = folder / "checkpoint"
    stopped = killed_after_a_step([*command, "--checkpoint", str(checkpoint)], checkpoint, world=1)
    assert 1 <= stopped < 3
    output, record, embeddings, state = tuned(folder, *MINED)
    assert f"goes on after step {stopped} of 3" in output
    for name in ("before", "after", "losses"):
        assert record[name] == mined[1][name]
    for name, value in mined[2].items():
        assert torch.equal(embeddings[name], value)
    for name, value in mined[3]["model"].items():
        assert torch.equal(state["model"][name], value)


def test_two_processes_fine_tune_as_one(mined, folder):
    _, record, embeddings, _ = tuned(folder, *MINED, start=TORCHRUN)
    for name, value in mined[2].items():
        torch.testing.assert_close(embeddings[name], value, rtol=0, atol=1e-5)
    assert record["after"] == pytest.approx(mined[1]["after"], abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("infonce", ["--block-size", "3", "--hardness", "5", "--symmetric", "--validate"]),
        ("random", ["--negatives", "2"]),
        ("gist", []),
        ("mined-gist", []),
    ],
    ids=["infonce", "random", "gist", "mined-gist"],
)
def test_the_first_loss_by_hand(loss, options, folder):
    # two of the first batch are of one group
    more = "--pairs 200 --batch-size 16 --seed 15 --steps 1".split()
    found = tuned(folder, "--loss", loss, *options, *more)
    assert found[1]["losses"] == [pytest.approx(first_loss(found), abs=1e-5)]


@pytest.fixture
def finetune(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("finetune")


def test_the_published_names_come_back(finetune):
    state = minilm.load()[0].state_dict()
    again = minilm.from_published(finetune.to_published(state))
    assert again.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(again[name], value), name


def test_the_scores_with_bm25_by_hand(finetune):
    texts, asked = ["sort an array", "sort a list, then sort it again", "draw a line"], ["sort", "a line"]
    queries, documents = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    index = bm25s.BM25()
    index.index([data.words(text) for text in texts], show_progress=False)
    wanted = []
    for query, text in zip(queries, asked, strict=True):
        both = [(documents @ query).tolist(), index.get_scores(data.words(text)).tolist()]
        both = [[(x - statistics.mean(row)) / statistics.stdev(row) for x in row] for row in both]
        wanted.append([sum(scores) for scores in zip(*both, strict=True)])
    torch.testing.assert_close(finetune.with_bm25(queries, documents, asked, texts), torch.tensor(wanted))


def test_where_too_few_documents_are_left_a_pair_has_its_own(finetune):
    entries = [data.Entry(f"name {i}", "query", "document", group) for i, group in enumerate([0, 0, 2, 3])]
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    documents = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    # the first two answer both of their queries: 0.8 is their limit; the last has 0.8, 0.96 and 0.6 below its 1
    assert finetune.mined(queries, documents, entries, k=2, margin=0.0).tolist() == [[3, 2], [3, 2], [3, 1], [1, 2]]
    found = finetune.mined(queries, documents, entries, k=3, margin=0.1)
    assert found.tolist() == [[3, 2, 0], [3, 2, 1], [3, 1, 0], [2, 0, 3]]


def test_a_run_is_stored_once_and_made_again_for_other_versions(finetune, tmp_path):
    path, new, old = tmp_path / "results", {"torch": "2"}, {"torch": "1"}
    assert finetune.others(None, {"seed": 0}, new) == finetune.others(path, {"seed": 0}, new) == []
    runs = [{"settings": {"seed": seed}, "environment": {"versions": old}} for seed in (0, 1)]
    path.write_text(json.dumps({"runs": runs}))
    assert finetune.others(path, {"seed": 0}, old) is None
    assert finetune.others(path, {"seed": 0}, new) == runs[1:]
    assert finetune.others(path, {"seed": 2}, old) == runs


def test_the_learning_rate_rises_and_falls(finetune):
    shares = [finetune.rate(step, steps=10, warm_up=4) for step in range(10)]
    assert shares == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert finetune.rate(0, steps=1, warm_up=0) == 1


@pytest.mark.parametrize(
    ("size", "world", "message"),
    [
        (9, 2, "--batch-size must be a multiple of the 2 processes, was 9"),
        (12, 1, "--batch-size must be from 1 to the 10 pairs to train on, was 12"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(finetune, size, world, message):
    with pytest.raises(ValueError, match=message):
        finetune.batch_of(0, 10, size, seed=0, rank=0, world=world)


RESULTS = EXAMPLES / "finetune.json"


@pytest.mark.skipif(not RESULTS.exists(), reason="there are no results yet: make finetune")
def test_the_stored_runs_are_at_least_three_of_each_loss_from_one_start():
    runs = json.loads(RESULTS.read_text())["runs"]
    seeds = {}
    for run in runs:
        settings = {name: value for name, value in run["settings"].items() if name != "seed"}
        seeds.setdefault(json.dumps(settings), []).append(run["settings"]["seed"])
        assert len(run["losses"]) == settings["steps"] and run["seconds"] > 0
        assert run["environment"]["versions"] == runs[0]["environment"]["versions"]
        assert run["before"] == pytest.approx(runs[0]["before"], abs=1e-4)
        # the guide's runs are older than the sum with BM25
        assert run["before"].keys() == run["after"].keys() == run.get("with BM25", run["after"]).keys()
        assert "with BM25" in run or settings["loss"] == "gist"
        assert not settings["validate"] and settings["pairs"] is None
    assert all(len(set(found)) == len(found) for found in seeds.values())
    enough = {json.loads(settings)["loss"] for settings, found in seeds.items() if len(found) >= 3}
    assert enough == {"infonce", "mined", "random", "gist"}
