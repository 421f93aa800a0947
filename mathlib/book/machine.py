"""What a stored measurement says about the machine it was made on.

>>> found = machine("cpu", "torch", "a-package-that-nobody-has")
>>> sorted(found)
['cores', 'date', 'device', 'threads', 'versions']
>>> found["versions"]["a-package-that-nobody-has"]
'not installed'
"""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine(device: str, *packages: str) -> dict[str, Any]:
    """The date, the processor ("cpu") or card ("cuda"), cores, torch's threads, and versions of Python and packages."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    if device == "cuda":
        device = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        device = models[0] if models else platform.processor()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
