"""Can the tests fail? Change mathlib in one place after another, print every change that no test sees (make mutants).

mutmut makes the changes and finds which tests call which function. To run them it would start pytest anew for each of
some four thousand changes. Here one process collects the tests and runs them all; it then forks for each change, and
the tests that caught another change of the same function run first.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTANTS = ROOT / "mutants"
LEAST = 0.95
# mutmut runs one change at least; the function that the fewest tests call takes the least time
ONE = "mathlib._similarity.x_cosine_similarity__mutmut_1"


def mutmut(*arguments, **options):
    """Run the tool with this Python's packages."""
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=ROOT, text=True, check=True, **options)


def is_caught(name, tests, told, seconds):
    """In a process of its own: run the tests with this change until one fails, and write which."""
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
            os.write(told, test.nodeid.encode())
            return True
    return False


class Forks:
    """A process for each change, as many at once as the machine has cores."""

    def __init__(self):
        self.running = {}
        self.caught_by = defaultdict(Counter)
        self.survivors = []

    def start(self, name, function, tests, seconds):
        """Run the tests with this change, as soon as there is room."""
        while len(self.running) >= (os.cpu_count() or 2):
            self.wait()
        told, tell = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = int(is_caught(name, tests, tell, seconds))
            finally:
                os._exit(code)
        os.close(tell)
        self.running[process] = name, function, told

    def wait(self):
        """One change is done: note which test caught it, or that none did."""
        process, status = os.wait()
        name, function, told = self.running.pop(process)
        with os.fdopen(told) as file:
            test = file.read()
        if test:
            self.caught_by[function][test] += 1
        if status == 0:
            self.survivors.append(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Instead of the tests in turn: for each change the tests that call what it changes."""
    from mutmut.utils.format_utils import mangled_name_from_mutant_name

    collected = {test.nodeid: test for test in session.items}
    known = json.loads(Path("mutmut-stats.json").read_text(encoding="utf-8"))
    seconds, calls = known["duration_by_test"], known["tests_by_mangled_function_name"]
    changes = [
        name
        for path in sorted(Path("mathlib").rglob("*.meta"))
        for name in json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    ]
    for test, following in zip(session.items, [*session.items[1:], None], strict=True):
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
    if session.testsfailed:  # what fails without a change proves nothing
        return True
    forks = Forks()
    for i, name in enumerate(changes):
        print(f"\r{i} of {len(changes)} changes, {len(forks.survivors)} survive", end="", file=sys.stderr, flush=True)
        function = mangled_name_from_mutant_name(name)
        tests = sorted(
            (test for test in calls.get(function, ()) if test in collected),
            key=lambda test: (-forks.caught_by[function][test], seconds[test]),
        )
        if tests:
            limit = 60 + 10 * round(sum(seconds[test] for test in tests))
            forks.start(name, function, [collected[test] for test in tests], limit)
        else:
            forks.survivors.append(name)
    while forks.running:
        forks.wait()
    Path("survivors.json").write_text(json.dumps([len(changes), forks.survivors]), encoding="utf-8")
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
    changes, survivors = json.loads((MUTANTS / "survivors.json").read_text(encoding="utf-8"))
    for name in survivors:
        print(mutmut("show", name, stdout=subprocess.PIPE).stdout)
    caught = changes - len(survivors)
    score = caught / changes
    print(f"{caught} of {changes} mutants caught, {score:.1%} (at least {LEAST:.0%})")
    return score < LEAST


if __name__ == "__main__":
    sys.exit(main())
