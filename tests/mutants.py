"""Can the tests fail? Run mutmut over mathlib, print every survivor and the score (make mutants)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST = 0.95


def mutmut(*arguments, **options):
    """Run the tool with this Python's packages."""
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=ROOT, text=True, check=True, **options)


def main():
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    mutmut("run", "--max-children", "2")
    mutmut("export-cicd-stats", stdout=subprocess.DEVNULL)
    counts = json.loads((ROOT / "mutants" / "mutmut-cicd-stats.json").read_text(encoding="utf-8"))
    for line in mutmut("results", stdout=subprocess.PIPE).stdout.splitlines():
        name, _, status = line.strip().partition(": ")
        if status == "survived":
            print(mutmut("show", name, stdout=subprocess.PIPE).stdout)
        elif status:
            print(line)
    caught = counts["killed"] + counts["timeout"]
    score = caught / (counts["total"] - counts["skipped"])
    print(f"{caught} of {counts['total']} mutants caught, {score:.1%} (at least {LEAST:.0%}); {counts}")
    return score < LEAST


if __name__ == "__main__":
    sys.exit(main())
