"""The benchmarks run, and what the book shows of them has a row for each bar. No test looks at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py") if path.stem not in ("measure", "accuracy"))
BARS = {
    "contrastive": ["mathlib", "mathlib, symmetric", "mathlib, false-negative rule"],
    "small": ["small batch", "small batch, symmetric", "small batch, false-negative rule", "small batch, GIST with KL"],
    "growth": [],
    "gist": ["mathlib GIST with KL"],
    "halves": [
        "mathlib, bfloat16",
        "mathlib, symmetric, bfloat16",
        "mathlib, false-negative rule, bfloat16",
        "mathlib GIST with KL, bfloat16",
        "mathlib search, bfloat16",
        "mathlib mine_hard_negatives, bfloat16",
    ],
    "log_prob": ["mathlib sequence_log_prob"],
    "search": ["mathlib search"],
    "attention": ["mathlib attention"],
    "imports": ["import mathlib"],
}


def test_each_script_has_a_bar():
    assert SCRIPTS == sorted(BARS)


@pytest.mark.parametrize("script", BARS)
def test_it_runs(script, tmp_path):
    path = tmp_path / "part.json"
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--quick", "--json", path]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in found["rows"])
    for name in BARS[script]:
        [time] = [bar for bar in found["bars"] if bar["bar"].startswith((f"{name}: time", f"{name}, B = 64: time"))]
        assert time["met"] == (time["measured"] <= time["limit"])


def test_accuracy_runs(tmp_path):
    path = tmp_path / "part.json"
    subprocess.run([sys.executable, BENCHMARKS / "accuracy.py", "--quick", "--json", path], check=True)
    found = {row["name"]: row for row in json.loads(path.read_text())["accuracy"]}
    assert found["mathlib, float32"]["gradient"] < 1e-4
    assert found["mathlib, bfloat16"]["loss"] < 1e-6 < found["torch, by hand, bfloat16"]["loss"]


def test_memory_is_that_of_a_fresh_process():
    command = [sys.executable, BENCHMARKS / "contrastive.py", "--memory", "torch, by hand", "1024"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) > 2 * 4  # at least two of the matrices of 1024 x 1024 float32


def test_the_results_have_a_row_for_each_bar():
    results = json.loads((BENCHMARKS / "results.json").read_text())
    names = [bar["bar"] for bar in results["bars"]]
    for name in (name for names in BARS.values() for name in names):
        assert any(each.startswith((f"{name}: ", f"{name}, B = ")) for each in names), name


@pytest.mark.parametrize("file", ["results.json", "results-cuda.json"])
def test_a_bar_that_is_not_met_has_a_reason(file):
    results = json.loads((BENCHMARKS / file).read_text())
    for bar in results["bars"]:
        assert bar["met"] == (bar["measured"] <= bar["limit"])
        assert bar["met"] or bar["reason"], bar["bar"]
    assert results["note"] and results["environment"]["versions"]["torch"]
