"""The examples as a reader runs them: from the command line, in processes of their own."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).parents[2] / "examples" / "train_distributed.py")
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


def test_a_killed_run_goes_on_as_if_nothing_had_happened(two, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    command = [SCRIPT, *SMALL, "--checkpoint", str(checkpoint)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun sets: a process that it starts would outlive it
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | group | {"RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in "01"
    ]
    try:
        while not checkpoint.exists() and processes[0].poll() is None:
            time.sleep(0.001)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    stopped = torch.load(checkpoint, weights_only=True)["step"]
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
