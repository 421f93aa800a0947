"""How long does `import mathlib` take once torch is there?"""

import subprocess
import sys

from measure import bar, main, row

CODE = "import torch, time; start = time.perf_counter(); import mathlib; print(time.perf_counter() - start)"


def step(name, size):
    return lambda: subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)


def run(quick, most):
    rounds = 1 if quick else 5
    taken = sorted(float(step("", 0)().stdout) for _ in range(rounds))
    least, median = taken[0], taken[rounds // 2]
    reason = "jaxtyping, which states the shapes, and the modules themselves"
    rows = [row("imports", "import mathlib, torch imported", 1, (least, median), (least, median), rounds=rounds)]
    return rows, [bar("import mathlib: time over import torch", 50, least * 1e3, "ms", reason)]


if __name__ == "__main__":
    main(run, step, 0)
