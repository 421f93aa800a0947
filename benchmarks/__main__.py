"""Run every benchmark and write results.json: python benchmarks [--most B] [--note "under what load"] ...

On CUDA, where one is found, the batch goes on to 131072; --bfloat16 and --tf32 say in what is multiplied.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import MOST, RESULTS, environment

SCRIPTS = ("contrastive", "growth", "gist", "log_prob", "search", "attention", "imports")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="the smallest sizes, once: does it run?")
parser.add_argument("--most", type=int, default=MOST, help="the largest batch; 32768 takes minutes, gigabytes")
parser.add_argument("--cpu-time", action="store_true", help="time of the processor, one thread: for a busy machine")
parser.add_argument("--bfloat16", action="store_true", help="inputs of that dtype, not float32")
parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 factors of a product to TF32")
parser.add_argument("--note", default="", help="under what load it was taken")
parser.add_argument("--output", type=Path, default=RESULTS)
options = parser.parse_args()

results: dict = {"environment": environment(), "note": options.note, "rows": [], "bars": []}
with tempfile.TemporaryDirectory() as folder:
    for i, name in enumerate(SCRIPTS):
        print(f"[{i + 1}/{len(SCRIPTS)}] {name}", flush=True)
        part = Path(folder) / f"{name}.json"
        script = Path(__file__).with_name(f"{name}.py")
        switches = ("quick", "cpu_time", "bfloat16", "tf32")
        flags = ["--" + switch.replace("_", "-") for switch in switches if getattr(options, switch)]
        flags += ["--most", str(options.most)]
        subprocess.run([sys.executable, str(script), *flags, "--json", str(part)], check=True)
        for key, rows in json.loads(part.read_text()).items():
            results[key] += rows
options.output.write_text(json.dumps(results, indent=1) + "\n")
print(f"{sum(each['met'] for each in results['bars'])} of {len(results['bars'])} bars met: {options.output}")
