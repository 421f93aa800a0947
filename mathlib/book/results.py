"""What each seed gave: kept in a file for all seeds, computed again for the first of them whenever a lab runs.

>>> path = getfixture("tmp_path") / "glass.json"
>>> _ = path.write_text('{"warm, 2 cm": [1.0, 1.2, 0.9]}', encoding="utf-8")
>>> results = Results(path, range(10, 13))
>>> results.again
[10]
>>> results["warm", "2 cm"] = [1.0]  # what the first seed gives now
>>> results["warm", "2 cm"]
[1.0, 1.2, 0.9]
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch


class Results(dict):
    """Per-seed values under a name. Set those of the seeds in `again`; read those of all seeds.

    `again` are the first of the seeds, by default one: what they give must be what the file has. With SEEDS=all in the
    environment it is all of them, and the file is written anew. A seed's value is a number, or a list or table of
    numbers. Where a lab chooses a setting, the tries stand in the seeds' place. Processors differ in the order of near
    ties: what a run gives may be `close` to what is kept.
    """

    def __init__(self, path: str | Path, seeds: Iterable[int], *, again: int = 1, close: float = 1e-4) -> None:
        self.path, self.seeds, self.close = Path(path), list(seeds), close
        self.anew = os.environ.get("SEEDS") == "all"
        self.again = self.seeds if self.anew else self.seeds[:again]
        self.stored = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.written: dict[str, list] = {}

    def __setitem__(self, name: object, values: list) -> None:
        text = ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)
        if len(values) != len(self.again):
            raise ValueError(f"results of {text} must be one for each of {self.again}, were {len(values)}")
        values, known = _rounded(values), self.stored.get(text, [])
        try:
            torch.testing.assert_close(values, known[: len(values)], rtol=0, atol=self.close)
        except AssertionError as error:
            if not self.anew:
                raise ValueError(f"{text} must be as in {self.path}, which SEEDS=all writes anew: {error}") from None
            known = values
        if self.anew:
            self.written[text] = known
            lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(kept)}" for key, kept in self.written.items())
            self.path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8", newline="\n")
        super().__setitem__(name, known)


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else round(float(value), 6)
