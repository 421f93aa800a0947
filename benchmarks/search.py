"""What does the exact top 10 cost over the bare product of 1000 queries with all documents?"""

import os
from importlib.util import find_spec

import torch
from measure import DEVICE, bar, main, normal, one_thread, timed

from mathlib import mine_hard_negatives, search

# the OpenBLAS that faiss-cpu brings shall choose its kernels by the processor; it looks once, when FAISS is imported
for variable in [name for name in os.environ if name.startswith("OPENBLAS_")]:
    del os.environ[variable]

D = 384
BASE, PLAIN = "the bare product", "torch product and topk"
OURS, MINING = "mathlib search", "mathlib mine_hard_negatives"
FEW = "64 queries: "
FAISS = "FAISS IndexFlatIP"
PEERS = {FAISS: "faiss", "sentence-transformers semantic_search": "sentence_transformers"}


def step(name, size):
    """1000 queries, or 64, in `size` documents."""
    queries, documents = normal(0, 64 if name.startswith(FEW) else 1000, D), normal(1, size, D)
    name = name.removeprefix(FEW)
    if name == BASE:
        return lambda: queries @ documents.T
    if name == PLAIN:
        return lambda: torch.topk(queries @ documents.T, 10)
    if name == OURS:
        return lambda: search(queries, documents, k=10)
    if name == MINING:
        known = torch.arange(len(queries), device=queries.device) % size
        return lambda: mine_hard_negatives(queries, documents, known, k=10)
    if name == FAISS:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(D)
        index.add(documents.float().cpu().numpy())
        return lambda: index.search(queries.float().cpu().numpy(), 10)
    from sentence_transformers.util import dot_score, semantic_search

    return lambda: semantic_search(queries, documents, top_k=10, score_function=dot_score)


def kernels():
    """What multiplies matrices in torch, whose library is linked into it and says no more than this, and in FAISS."""
    found = {"torch": "CUDA" if DEVICE == "cuda" else torch.backends.cpu.get_cpu_capability()}
    if find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_info

        for library in threadpool_info():
            if library["user_api"] == "blas" and "faiss" in library["filepath"]:
                found[FAISS] = f"{library['internal_api']} {library['version']} {library['architecture']}"
    return found


def run(quick, most):
    peers = [name for name, module in PEERS.items() if find_spec(module)]
    rows = []
    for size in [64] if quick else [10_000, 100_000]:
        names = [BASE, PLAIN, OURS, MINING, *peers]
        rows += timed("search", __file__, step, names, size, 1 if quick else 5, BASE)
    one_thread()
    for size in [64] if quick else [1000, 10_000]:
        names = [FEW + name for name in (PLAIN, OURS)]
        rows += timed("search", __file__, step, names, size, 1 if quick else 200, FEW + PLAIN)
    used = kernels()
    print(f"  kernels: {used}")
    for row in rows:
        row["kernels"] = used.get(row["name"], used["torch"])
    largest = 64 if quick else 100_000
    found = {(row["name"], row["size"]): row for row in rows}
    ours, product = found[OURS, largest], found[BASE, largest]
    bars = [
        bar(
            f"{OURS}: time",
            1.15,
            ours["ratio"],
            "x the bare product",
            "each score is read once more by the selection, whose pass over memory a fused kernel would save",
        ),
        bar(
            f"{OURS}: extra memory, below the product's",
            (product["mb"] or 0) / 2,
            ours["mb"],
            "MB",
            "a block and its top 10",
        ),
    ]
    if FAISS in peers:
        bars.append(
            bar(
                f"{OURS}, beside FAISS: time",
                1.0,
                ours["ms"] / found[FAISS, largest]["ms"],
                "x FAISS in the same run",
                "three quarters of it are the products; maxima, the choice and a pass for NaN are the rest",
            )
        )
    for size in sorted({row["size"] for row in rows if row["name"] == FEW + OURS}):
        bars.append(
            bar(
                f"{FEW}{OURS}, {size} documents: time",
                1.1,
                found[FEW + OURS, size]["ratio"],
                "x product and topk",
                "checks of arguments and the order of ties, 60 microseconds, are what is left at this size",
            )
        )
    return rows, bars


if __name__ == "__main__":
    main(run, step, 64)
