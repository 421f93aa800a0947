"""Real data without a download: the documentation of the installed scientific stack, and digits.

The docstrings of the pinned packages are read from their source files with `ast`; none of the packages
is imported for it. Every wheel of a version holds the same Python sources, so the corpus is the same
on every machine and for every Python.

>>> entries = docstrings()
>>> entry = next(e for e in entries if e.name == "networkx.algorithms.dag.topological_sort")
>>> entry.query
'Returns a generator of nodes in topologically sorted order.'
>>> train, test = split(entries)
>>> 3 < len(train) / len(test) < 5
True
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import distribution, version
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

PACKAGES = ("matplotlib", "networkx", "numpy", "scipy", "sklearn")

# Tests describe bugs, not use; vendored code repeats other packages; the last five differ between the wheels of a
# version.
SKIPPED = {"tests", "testing", "benchmarks", "conftest", "externals", "extern", "_external", "_lib",
           "_version", "version", "__config__", "distutils", "_distributor_init"}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One documented name: the summary sentence asks, the rest of the docstring answers.

    `group` is the index of the first entry with an equal summary or a nearly equal document: to a
    reader, each entry of a group answers the others' question.
    """

    name: str
    query: str
    document: str
    group: int


@functools.cache
def docstrings() -> tuple[Entry, ...]:
    """All entries, ordered by name: public modules, classes, functions and methods.

    A docstring makes an entry when its summary has 3 to 40 words and the rest at least 20. Reading
    takes some ten seconds; the result is kept in the user's cache folder, under a digest of the
    packages' versions and of this file.
    """
    key = hashlib.sha256(Path(__file__).read_bytes())
    for package in PACKAGES:
        key.update(version("scikit-learn" if package == "sklearn" else package).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mathlib-book"
    cached = folder / f"docstrings-{key.hexdigest()[:16]}.json"
    if cached.exists():
        return tuple(Entry(*row) for row in json.loads(cached.read_text(encoding="utf-8")))
    entries = read(*PACKAGES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump([astuple(entry) for entry in entries], file)
        os.replace(file.name, cached)  # all or nothing, even when two kernels start at once
    except OSError:
        pass  # with a read-only home the next kernel reads them again
    return entries


def read(*packages: str) -> tuple[Entry, ...]:
    """The entries of the named packages, from their sources."""
    found: dict[str, tuple[str, str]] = {}
    for package in packages:
        for name, text in documented(package):
            summary, _, rest = text.strip().partition("\n\n")
            if 3 <= len(summary.split()) <= 40 and len(rest.split()) >= 20:
                found.setdefault(name, (" ".join(summary.split()), f"{name}\n\n{inspect.cleandoc(rest)}"))
    names = sorted(found)
    groups = grouped([found[name] for name in names])
    return tuple(Entry(name, *found[name], group) for name, group in zip(names, groups, strict=True))


def documented(package: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of every public definition in the package's source files."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"packages must name installed packages, {package!r} was not found")
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        if SKIPPED.intersection(parts) or any(part.startswith("test_") for part in parts):
            continue
        source = path.read_text(encoding="utf-8")
        if '"""' not in source and "'''" not in source:
            continue
        with warnings.catch_warnings():  # invalid escape sequences in other people's strings
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        module = ".".join(part for part in parts if part != "__init__")
        yield from definitions(module, tree)


def definitions(name: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """The node's own docstring, then those of the public definitions directly inside it."""
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else ():
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
            yield from definitions(f"{name}.{child.name}", child)


def grouped(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """For each (query, document) the index of the first one of its group.

    Two belong together when their queries are equal up to case and punctuation, or when their documents,
    names left out, share at least 80 % of their five-word sequences (Jaccard).
    """
    if not len(pairs):
        raise ValueError("pairs must be at least one, there were none")
    runs: dict[tuple[str, ...], int] = {}
    queries: dict[tuple[str, ...], int] = {}
    columns, starts, links = [], [0], []
    for i, (query, document) in enumerate(pairs):
        first = queries.setdefault(tuple(words(query)), i)
        links.append((first, i))
        body = words(document.partition("\n\n")[2])
        columns.extend({runs.setdefault(tuple(body[j : j + 5]), len(runs)) for j in range(max(1, len(body) - 4))})
        starts.append(len(columns))
    shape = (len(pairs), len(runs))
    holds = sparse.csr_array((np.ones(len(columns), np.int32), np.array(columns), np.array(starts)), shape=shape)
    shared = (holds @ holds.T).tocoo()
    sizes, (rows, cols) = np.diff(starts), shared.coords
    near = 10 * shared.data >= 8 * (sizes[rows] + sizes[cols] - shared.data)
    links = np.concatenate([np.array(links), np.stack([rows[near], cols[near]], axis=1)])
    graph = sparse.coo_array((np.ones(len(links), bool), tuple(links.T)), shape=(len(pairs), len(pairs)))
    _, labels = csgraph.connected_components(graph, directed=False)
    _, firsts = np.unique(labels, return_index=True)
    return [int(firsts[label]) for label in labels]


def split(
    entries: Sequence[Entry], among: Sequence[int] | None = None, *, salt: str = ""
) -> tuple[list[int], list[int]]:
    """Indices for training and for testing, about 4 to 1; no group is on both sides.

    The side is drawn from a hash of the name of the group's first entry, so that an entry that is added or
    removed moves no other. With another `salt` another fifth is drawn, `among` the training indices for example, where
    settings are chosen.
    """
    train, test = list[int](), list[int]()
    for i in range(len(entries)) if among is None else among:
        digest = hashlib.sha256(f"{salt}{entries[entries[i].group].name}".encode()).digest()
        (test if digest[0] % 5 == 0 else train).append(i)
    return train, test


def relevant(entries: Sequence[Entry], indices: Sequence[int]) -> list[set[int]]:
    """For each of the entries at indices, all that answer its query: the members of its group."""
    members: dict[int, set[int]] = {}
    for i, entry in enumerate(entries):
        members.setdefault(entry.group, set()).add(i)
    return [members[entries[i].group] for i in indices]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: pixels [1797, 64] in [0, 1], float64, and labels [1797].

    >>> pixels, labels = digits()
    >>> pixels.shape, int(labels.max())
    ((1797, 64), 9)
    """
    # the file that its load_digits reads, after seconds of imports
    table = np.loadtxt(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"), delimiter=",")
    return table[:, :-1] / 16.0, table[:, -1].astype(np.int64)


def words(text: str) -> list[str]:
    """Lower-case words and numbers; identifiers are split at underscores, dots and capitals.

    >>> words("GraphMatcher.is_isomorphic(G1, G2): 2 graphs")
    ['graph', 'matcher', 'is', 'isomorphic', 'g1', 'g2', '2', 'graphs']
    """
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z])(?=[A-Z])", r"\1 ", text).lower())
