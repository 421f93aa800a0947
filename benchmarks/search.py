"""What does the exact top 10 cost over the bare product of 1000 queries with all documents?"""

from importlib.util import find_spec

import torch
from measure import bar, main, normal, timed

from mathlib import search

D = 384
BASE = "the bare product"
OURS = "mathlib search"
PEERS = {"FAISS IndexFlatIP": "faiss", "sentence-transformers semantic_search": "sentence_transformers"}


def step(name, size):
    """1000 queries in `size` documents."""
    queries, documents = normal(0, 1000, D), normal(1, size, D)
    if name == BASE:
        return lambda: queries @ documents.T
    if name == "torch product and topk":
        return lambda: torch.topk(queries @ documents.T, 10)
    if name == OURS:
        return lambda: search(queries, documents, k=10)
    if name == "FAISS IndexFlatIP":
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(D)
        index.add(documents.float().cpu().numpy())
        return lambda: index.search(queries.float().cpu().numpy(), 10)
    from sentence_transformers.util import dot_score, semantic_search

    return lambda: semantic_search(queries, documents, top_k=10, score_function=dot_score)


def run(quick, most):
    peers = [name for name, module in PEERS.items() if find_spec(module)]
    rows = []
    for size in [64] if quick else [10_000, 100_000]:
        names = [BASE, "torch product and topk", OURS, *peers]
        rows += timed("search", __file__, step, names, size, 1 if quick else 5, BASE)
    ours = [row for row in rows if row["name"] == OURS][-1]
    product = next(row for row in rows if row["name"] == BASE and row["size"] == ours["size"])
    reason = "each score is read once more by the selection, whose pass over memory a fused kernel would save"
    return rows, [
        bar(f"{OURS}: time", 1.15, ours["ratio"], "x the bare product", reason),
        bar(
            f"{OURS}: extra memory, below the product's",
            (product["mb"] or 0) / 2,
            ours["mb"],
            "MB",
            "a block and its top 10",
        ),
    ]


if __name__ == "__main__":
    main(run, step, 64)
