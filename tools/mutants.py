"""Can the tests fail? Change mathlib in one place after another, print every change that no test sees (make mutants).

All changes take an hour or more; EVERY=10 tries every tenth of them, spread over all functions. ONLY=_rows,_gist tries
those of these modules, in this order, ONLY=_gist.x_divergences those of one function. mutants/outcomes.txt has what is
known so far.

mutmut makes the changes and finds which tests call which function. To run them it would start pytest anew for each of
some four thousand changes. Here one process collects the tests and runs them all; it then forks for each change, and
the tests that caught another change of the same function run first.
"""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTANTS = ROOT / "mutants"
LEAST = 0.95
CAUGHT, SURVIVED = "caught by", "survived"
# What a change may do to the process itself: run for ever, or make torch read memory that is not its own.
DEATHS = {signal.SIGXCPU, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE}
# mutmut runs one change at least; the function that the fewest tests call takes the least time
ONE = "mathlib._similarity.x_cosine_similarity__mutmut_1"


def mutmut(*arguments, **options):
    """Run the tool with this Python's packages."""
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=ROOT, text=True, check=True, **options)


def first_to_fail(name, tests, seconds):
    """In a process of its own: run the tests with this change, "" for none, and return the first that fails."""
    import resource

    from mutmut.mutation.trampoline import set_mutant_under_test

    # a change may make a loop endless
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    set_mutant_under_test(name)
    session = tests[0].session
    for test, following in zip(tests, [*tests[1:], None], strict=True):
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        if session.testsfailed:
            return f"{CAUGHT} {test.nodeid}"
    return SURVIVED


class Forks:
    """A process for each change, as many at once as the machine has cores."""

    def __init__(self, path):
        self.running = {}
        self.caught_by = defaultdict(Counter)
        self.outcomes = {}
        self.path = path

    def note(self, name, outcome):
        """Keep what became of a change, also if the run is cut off."""
        self.outcomes[name] = outcome
        with open(self.path, "a", encoding="utf-8") as file:
            print(name, outcome, sep="\t", file=file)

    def start(self, name, function, tests, seconds):
        """Run the tests with this change, as soon as there is room."""
        while len(self.running) >= (os.cpu_count() or 2):
            self.wait()
        told, tell = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                outcome = first_to_fail(name, tests, seconds)
            except BaseException as error:  # the parent raises it
                outcome = repr(error)
            os.write(tell, outcome.encode())
            os._exit(0)
        os.close(tell)
        self.running[process] = name, function, told

    def wait(self):
        """One change is done: note which test caught it, or that none did."""
        process, status = os.wait()
        name, function, told = self.running.pop(process)
        with os.fdopen(told) as file:
            outcome = file.read()
        if outcome.startswith(CAUGHT):
            self.caught_by[function][outcome.removeprefix(CAUGHT).strip()] += 1
        elif not outcome and os.WIFSIGNALED(status) and os.WTERMSIG(status) in DEATHS:
            outcome = f"died of {signal.Signals(os.WTERMSIG(status)).name}"
        elif outcome != SURVIVED:
            raise RuntimeError(f"the tests of {name or 'no change'} did not run: {outcome or status}")
        self.note(name, outcome)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Instead of the tests in turn: for each change the tests that call what it changes."""
    from mutmut.utils.format_utils import mangled_name_from_mutant_name

    collected = {test.nodeid: test for test in session.items}
    known = json.loads(Path("mutmut-stats.json").read_text(encoding="utf-8"))
    seconds, calls = known["duration_by_test"], known["tests_by_mangled_function_name"]
    changes = [
        name
        for only in os.environ.get("ONLY", "").split(",")
        for path in sorted(Path("mathlib").rglob("*.meta"))
        for name in json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if name.startswith(f"mathlib.{only}")
    ][:: int(os.environ.get("EVERY", "1"))]
    for test, following in zip(session.items, [*session.items[1:], None], strict=True):
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
    if session.testsfailed:  # what fails without a change proves nothing
        return True
    # nor does what fails when it runs again: each change's fork runs a test for the second time
    control = Forks("control.txt")
    control.start("", "", session.items, 60 + 10 * round(sum(seconds.values())))
    control.wait()
    if control.outcomes[""] != SURVIVED:
        raise RuntimeError(f"run for the second time, without a change, this fails: {control.outcomes['']}")
    gc.freeze()  # a fork that looks for garbage among the tests would copy them all: ten times as long
    forks = Forks("outcomes.txt")
    for i, name in enumerate(changes):
        survive = list(forks.outcomes.values()).count(SURVIVED)
        print(f"\r{i} of {len(changes)} changes, {survive} survive", end="", file=sys.stderr, flush=True)
        function = mangled_name_from_mutant_name(name)
        tests = sorted(
            (test for test in calls.get(function, ()) if test in collected),
            key=lambda test: (-forks.caught_by[function][test], seconds[test]),
        )
        if tests:
            limit = 60 + 10 * round(sum(seconds[test] for test in tests))
            forks.start(name, function, [collected[test] for test in tests], limit)
        else:
            forks.note(name, SURVIVED)
    while forks.running:
        forks.wait()
    return True


def main():
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)["tool"]["mutmut"]
    shutil.rmtree(MUTANTS, ignore_errors=True)
    mutmut("run", ONE)
    arguments = [*settings["pytest_add_cli_args"], *settings["pytest_add_cli_args_test_selection"]]
    subprocess.run(
        # --tb=native: an excerpt of the source would be parsed for each failure, with all changes in it
        [sys.executable, "-m", "pytest", "-p", "mutants", "-q", "--tb=native", *arguments],
        cwd=MUTANTS,
        # one thread for each process
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools"), "OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": ""},
        check=True,
    )
    lines = (MUTANTS / "outcomes.txt").read_text(encoding="utf-8").splitlines()
    outcomes = dict(line.split("\t") for line in lines)
    survivors = [name for name, outcome in outcomes.items() if outcome == SURVIVED]
    for name in survivors:
        print(mutmut("show", name, stdout=subprocess.PIPE).stdout)
    tried, survived = (Counter(name.split(".")[1] for name in names) for names in (outcomes, survivors))
    for module in tried:
        print(f"{module}: {tried[module] - survived[module]} of {tried[module]} caught")
    score = 1 - len(survivors) / len(outcomes)
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} mutants caught, {score:.1%} (at least {LEAST:.0%})")
    return score < LEAST


if __name__ == "__main__":
    sys.exit(main())
