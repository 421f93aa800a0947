"""What the benchmarks share: time as a ratio in one run, memory of a fresh process, and one results file.

Each script is one question. It has `step(name, size)`, which makes the inputs and returns a function
that does the work once, and `run(quick, most)`, which returns rows and bars; most is the largest batch.

Times are the shortest of several rounds in which all candidates take turns: whatever else a machine does can only
add to a time, and adds most to those who hand small pieces of work to two threads. The median is given too; only
ratios are worth reading. Memory is the peak of a fresh process beyond its inputs; on CUDA, what the allocator
counts while it runs once more.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mathlib.book.machine import machine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESULTS = Path(__file__).with_name("results-cuda.json" if DEVICE == "cuda" else "results.json")
PACKAGES = (
    "torch",
    "sentence-transformers",
    "info-nce-pytorch",
    "pytorch-metric-learning",
    "faiss-cpu",
)

Step = Callable[[], object]

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="the smallest sizes, once: does it run?")
parser.add_argument(
    "--most",
    type=int,
    default=131072 if DEVICE == "cuda" else 8192,
    help="the largest batch; 32768 takes minutes and gigabytes on a CPU",
)
parser.add_argument("--bfloat16", action="store_true", help="inputs of that dtype, not float32")
parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 factors of a product to TF32")
parser.add_argument(
    "--cpu-time",
    action="store_true",
    help="processor time on one thread, for a machine that others use too: there, wall time on two says nothing",
)
options = parser.parse_args([])  # the defaults; `read_command_line` overwrites them


def read_command_line() -> None:
    """What the program was asked for, into `options` and torch's settings."""
    parser.parse_args(namespace=options)
    torch.set_num_threads(1 if options.cpu_time else 2)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32


def one_thread() -> None:
    """Processor time on one thread from here on, whatever was asked for: so the bars of a script may be set."""
    if DEVICE == "cpu":
        options.cpu_time = True
        torch.set_num_threads(1)


def flags(*names: str) -> list[str]:
    """Those of the switches that were given, for another process."""
    return ["--" + name.replace("_", "-") for name in names if getattr(options, name)]


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(DEVICE, torch.bfloat16 if options.bfloat16 else torch.float32)


def backward(loss: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Step:
    """Forward and backward of a loss, to inputs of its own."""
    leaves = [x.requires_grad_() for x in inputs]

    def step() -> None:
        for x in leaves:
            x.grad = None
        loss(*leaves).backward()

    return step


def seconds(step: Step) -> float:
    if DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    clock = time.process_time if options.cpu_time else time.perf_counter
    start = clock()
    step()
    return clock() - start


def times_of(steps: dict[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """The shortest and the median time of each step, in seconds; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    return {name: (min(times), sorted(times)[rounds // 2]) for name, times in taken.items()}


def peak() -> float:
    """The most memory so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss of a new process begins with what its parent had
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1e3
    # kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def extra_memory(script: str, make: Callable[[str, int], Step], name: str, size: int) -> float:
    """The MB that one step needs beyond its inputs; on a CPU in a process of its own."""
    if DEVICE == "cuda":
        step = make(name, size)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    command = [sys.executable, script, *flags("bfloat16"), "--memory", name, str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def row(
    question: str,
    name: str,
    size: int,
    times: tuple[float, float],
    base: tuple[float, float],
    memory: float | None = None,
    rounds: int | None = None,
) -> dict[str, Any]:
    """One measurement: the shortest time and the median of so many rounds, each with its ratio to the base's."""
    memory = None if memory is None else round(memory, 1)
    ratio, median_ratio = (round(time / other, 3) for time, other in zip(times, base, strict=True))
    ms, median_ms = (round(time * 1e3, 3) for time in times)
    mb = "" if memory is None else f"{memory:8.0f} MB"
    print(f"  {name:38s} {size:6d} {ms:10.2f} ms {ratio:8.2f} x {median_ratio:8.2f} x (medians) {mb}", flush=True)
    return {
        "question": question,
        "name": name,
        "size": size,
        "ms": ms,
        "ratio": ratio,
        "median_ms": median_ms,
        "median_ratio": median_ratio,
        "mb": memory,
        "rounds": rounds,
    }


def bar(name: str, limit: float, measured: float | None, unit: str, reason: str) -> dict[str, Any]:
    """Whether a limit was met, and the reason where it was not; a quick run measures no memory."""
    met = measured is not None and measured <= limit
    return {
        "bar": name,
        "limit": limit,
        "measured": measured if measured is None else round(measured, 3),
        "unit": unit,
        "met": met,
        "reason": "" if met else reason,
    }


def timed(
    question: str,
    script: str,
    step: Callable[[str, int], Step],
    names: Sequence[str],
    size: int,
    rounds: int,
    base: str,
) -> list[dict[str, Any]]:
    """One row for each name at one size; the first in the table is what the others are compared with."""
    times = times_of({name: step(name, size) for name in names}, rounds)
    rows = []
    for name in names:
        # a fresh process takes seconds to start; one that compiles needs most of its memory for that
        unknown = options.quick or (DEVICE == "cpu" and name.startswith("torch.compile"))
        used = None if unknown else extra_memory(script, step, name, size)
        rows.append(row(question, name, size, times[name], times[base], used, rounds))
    return rows


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    found = machine(DEVICE, *PACKAGES)
    found["clock"] = "time of the processor" if options.cpu_time and DEVICE == "cpu" else "wall time"
    found["dtype"] = f"{'bfloat16' if options.bfloat16 else 'float32'}, TF32 {'on' if options.tf32 else 'off'}"
    return found


def main(
    run: Callable[[bool, int], tuple[list, list]],
    step: Callable[[str, int], Step],
    smallest: int,
    *,
    bars_on_cuda: bool = False,
) -> None:
    """The command line of each script: a table, or the memory of one step; most bars were set for a CPU alone."""
    parser.add_argument("--json", type=Path, help="also write the rows and bars to this file")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "SIZE"), help="only print the MB that one step needs")
    read_command_line()
    if options.memory:
        name, size = options.memory
        step(name, smallest)()  # what a library allocates once
        work = step(name, int(size))
        before = peak()
        work()
        print(peak() - before)
    else:
        rows, bars = run(options.quick, options.most)
        if DEVICE == "cuda" and not bars_on_cuda:
            bars = []
        for each in bars:
            print(f"  {each['bar']}: {each['measured']} of {each['limit']} {each['unit']}, met: {each['met']}")
        if options.json:
            options.json.write_text(json.dumps({"rows": rows, "bars": bars}))
