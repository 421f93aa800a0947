"""Run every benchmark and write results.json: python benchmarks [--most B] [--note "under what load"] ...

On a CUDA device it is results-cuda.json, and the batch grows to 131072. --bfloat16 and --tf32 choose the dtype of the
products.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import RESULTS, environment, flags, options, parser, read_command_line

SCRIPTS = ("contrastive", "small", "growth", "gist", "halves", "log_prob", "search", "attention", "imports", "accuracy")

parser.description = __doc__
parser.add_argument("--note", default="", help="under what load the numbers were taken")
parser.add_argument("--output", type=Path, default=RESULTS)
read_command_line()

results: dict = {"environment": environment(), "note": options.note, "rows": [], "bars": [], "accuracy": []}
with tempfile.TemporaryDirectory() as folder:
    for i, name in enumerate(SCRIPTS):
        print(f"[{i + 1}/{len(SCRIPTS)}] {name}", flush=True)
        part = Path(folder) / f"{name}.json"
        script = Path(__file__).with_name(f"{name}.py")
        given = [*flags("quick", "cpu_time", "bfloat16", "tf32"), "--most", str(options.most)]
        subprocess.run([sys.executable, str(script), *given, "--json", str(part)], check=True)
        for key, rows in json.loads(part.read_text()).items():
            results[key] += rows
options.output.write_text(json.dumps(results, indent=1) + "\n")
print(f"{sum(each['met'] for each in results['bars'])} of {len(results['bars'])} bars met: {options.output}")
