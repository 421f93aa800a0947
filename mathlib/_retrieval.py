"""Retrieval: encode a corpus once, then answer each query with one matrix product.

>>> import torch
>>> documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
>>> scores, indices = search(torch.tensor([[1.0, 0.1]]), documents, k=2)
>>> indices
tensor([[0, 2]])

Was the right document among them, and how far up?

>>> recall_at_k(indices, torch.tensor([2]), k=1)
tensor(0.)
>>> mean_reciprocal_rank(indices, torch.tensor([2]))
tensor(0.5000)
"""

from collections.abc import Callable, Collection, Sequence, Set, Sized
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mathlib._checks import check_choice, check_count, check_device, check_shapes, check_some
from mathlib._similarity import products, similarity_matrix, unit, wide


class DualEncoder(nn.Module):
    r"""Two encoders that never see each other's input; the score is an inner product.

    .. math:: \mathrm{score}(q, d) = f_q(q)^\top f_d(d)

    Documents can therefore be encoded before any query is known.

    Args:
        query_encoder: f_q, a module that maps a batch of queries to embeddings [Q, D].
        document_encoder: f_d, likewise for documents; None shares f_q, weights and all.

    Raises:
        TypeError: if an encoder is not a `torch.nn.Module`.

    Source:
        Karpukhin et al. (2020), arXiv:2004.04906, eq. 1.

    Example:
        >>> model = DualEncoder(nn.Linear(3, 2, bias=False))
        >>> model.score(torch.zeros(4, 3), torch.ones(5, 3)).shape
        torch.Size([4, 5])

    Chapter: 04_dual_encoder (eq. dual-encoder)
    """

    def __init__(self, query_encoder: nn.Module, document_encoder: nn.Module | None = None) -> None:
        super().__init__()
        for name, encoder in (("query_encoder", query_encoder), ("document_encoder", document_encoder)):
            if not isinstance(encoder, nn.Module) and (encoder is not None or name == "query_encoder"):
                raise TypeError(f"{name} must be a torch.nn.Module, was {type(encoder).__name__}")
        self.query_encoder = query_encoder
        self.document_encoder = query_encoder if document_encoder is None else document_encoder

    def encode_queries(self, *queries: object, **options: object) -> Tensor:
        """f_q(q): the arguments go to the query encoder as they are."""
        return self.query_encoder(*queries, **options)

    def encode_documents(self, *documents: object, **options: object) -> Tensor:
        """f_d(d): the arguments go to the document encoder as they are."""
        return self.document_encoder(*documents, **options)

    def forward(self, queries: object, documents: object) -> tuple[Tensor, Tensor]:
        """Both embeddings, e.g. as `info_nce(*model(queries, documents))` wants them."""
        return self.encode_queries(queries), self.encode_documents(documents)

    def score(self, queries: object, documents: object) -> Tensor:
        """The inner product of every query with every document, [Q, N]."""
        return similarity_matrix(*self(queries, documents), metric="dot")


def search(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    *,
    k: int,
    metric: str = "dot",
    block_size: int | None = None,
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    r"""The k documents most similar to each query, exactly, by blocks of documents.

    .. math:: \text{top-}k_{\,d}\; q^\top d

    Equal scores come in the order of their index (rounding may set those of equal documents apart); which
    of several documents that tie for the last place is returned is left open. No gradient is recorded.

    Args:
        queries: Q embeddings.
        documents: N embeddings; same dtype and device as queries.
        k: how many, 1 <= k <= N.
        metric: "dot" or "cosine".
        block_size: documents scored at once, by default 4096; memory is of the order Q x (block + k).

    Returns:
        Scores, best first (float32 for half-precision inputs), and the documents' indices.

    Raises:
        ValueError: if queries and documents do not fit together, or an option is out of its range.

    Source:
        Johnson, Douze and Jégou (2017), arXiv:1702.08734, section 3 (exact search by blocks).

    Example:
        >>> search(torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, 1.0]]), k=1)
        (tensor([[1.],
                [2.]]), tensor([[1],
                [0]]))

    Chapter: 04_dual_encoder (eq. search)
    """
    check_shapes(("queries", queries, "Q D"), ("documents", documents, "N D"))
    check_some("queries", queries, 1, "feature")
    check_count("k", k, most=len(documents), most_meaning="the number of documents")
    check_choice("metric", metric, ("dot", "cosine"))
    if block_size is not None:
        check_count("block_size", block_size)
    prepare = unit if metric == "cosine" else wide
    with torch.no_grad():
        prepared = prepare(queries)
        return best_of_blocks(
            lambda first, last: products(prepared, prepare(documents[first:last])),
            len(documents),
            k,
            block_size or 4096,
        )


def best_of_blocks(scores: Callable[[int, int], Tensor], size: int, k: int, block_size: int) -> tuple[Tensor, Tensor]:
    """The k best of `size` documents, scores and indices, where scores(first, last) is that block's [Q, block]."""
    best = scores(0, 0)  # [Q, 0]
    indices = best.long()
    for first in range(0, size, block_size):
        block = scores(first, first + block_size)
        values, found = block.topk(min(k, block.shape[1]), dim=1)
        best, indices = ordered(torch.cat([best, values], dim=1), torch.cat([indices, found + first], dim=1), k)
    return best, indices


def ordered(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k columns by score, best first; equal scores by index."""
    by_index = indices.argsort(dim=1)
    scores, indices = scores.gather(1, by_index), indices.gather(1, by_index)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], indices.gather(1, order[:, :k])


Relevant = Int[Tensor, "Q"] | Sequence[Collection[int]]


def recall_at_k(ranked: Int[Tensor, "Q n"], relevant: Relevant, *, k: int) -> Float[Tensor, ""]:
    r"""The share of a query's relevant documents among its first k results, averaged over queries.

    .. math:: \frac{1}{Q} \sum_q \frac{|R_q \cap \{d_{q1}, \ldots, d_{qk}\}|}{|R_q|}

    Args:
        ranked: document indices, best first, each at most once a row.
        relevant: R_q: one index for each query, or Q collections of indices, none empty.
        k: how many results count, 1 <= k <= n.

    Returns:
        A 0-d float32 tensor in [0, 1].

    Raises:
        TypeError: if ranked or relevant does not hold integers.
        ValueError: if a collection is empty, or k is not in 1..n.

    Source:
        Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, section 8.4.

    Example:
        >>> recall_at_k(torch.tensor([[4, 2, 7]]), [{2, 9}], k=2)
        tensor(0.5000)

    Chapter: 04_dual_encoder (eq. recall)
    """
    hits, counts = judged(ranked, relevant)
    check_count("k", k, most=ranked.shape[1], most_meaning="the number of results in ranked")
    return (hits[:, :k].sum(dim=1) / counts).mean()


def mean_reciprocal_rank(ranked: Int[Tensor, "Q n"], relevant: Relevant) -> Float[Tensor, ""]:
    r"""One over the rank of the first relevant result, 0 if there is none, averaged over queries.

    .. math:: \frac{1}{Q} \sum_q \frac{1}{\min\{r : d_{qr} \in R_q\}}

    Args:
        ranked: document indices, best first.
        relevant: R_q: one index for each query, or Q collections of indices, none empty.

    Returns:
        A 0-d float32 tensor in [0, 1].

    Raises:
        TypeError: if ranked or relevant does not hold integers.
        ValueError: if a collection is empty.

    Source:
        Voorhees (1999), "The TREC-8 question answering track report", section 3.

    Example:
        >>> mean_reciprocal_rank(torch.tensor([[4, 2, 7], [1, 2, 3]]), torch.tensor([2, 5]))
        tensor(0.2500)

    Chapter: 04_dual_encoder (eq. mrr)
    """
    hits, _ = judged(ranked, relevant)
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    return (hits / ranks).amax(dim=1).mean()


def ndcg_at_k(ranked: Int[Tensor, "Q n"], relevant: Relevant, *, k: int) -> Float[Tensor, ""]:
    r"""Normalised discounted cumulative gain with relevance 0 or 1, averaged over queries.

    .. math::
        \frac{1}{Q} \sum_q \frac{\sum_{r=1}^{k} [d_{qr} \in R_q] / \log_2(r + 1)}
            {\sum_{r=1}^{\min(k, |R_q|)} 1 / \log_2(r + 1)}

    Args:
        ranked: document indices, best first, each at most once a row.
        relevant: R_q: one index for each query, or Q collections of indices, none empty.
        k: how many results count, 1 <= k <= n.

    Returns:
        A 0-d float32 tensor in [0, 1].

    Raises:
        TypeError: if ranked or relevant does not hold integers.
        ValueError: if a collection is empty, or k is not in 1..n.

    Source:
        Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4).

    Example:
        >>> ndcg_at_k(torch.tensor([[4, 2, 7]]), torch.tensor([2]), k=3)
        tensor(0.6309)

    Chapter: 04_dual_encoder (eq. ndcg)
    """
    hits, counts = judged(ranked, relevant)
    check_count("k", k, most=ranked.shape[1], most_meaning="the number of results in ranked")
    ranks = torch.arange(1, k + 1, device=ranked.device)
    discounts = 1 / (ranks + 1).log2()
    ideal = torch.where(ranks <= counts[:, None], discounts, 0.0).sum(dim=1)
    return ((hits[:, :k] * discounts).sum(dim=1) / ideal).mean()


def judged(ranked: Tensor, relevant: Relevant) -> tuple[Tensor, Tensor]:
    """Whether each result is relevant, [Q, n], and how many documents are, [Q]."""
    if not isinstance(ranked, Tensor) or not holds_integers(ranked):
        was = ranked.dtype if isinstance(ranked, Tensor) else type(ranked).__name__
        raise TypeError(f"ranked must be a tensor of integers, was {was}")
    if ranked.ndim != 2 or 0 in ranked.shape:
        raise ValueError(f"ranked must have shape [Q, n], neither 0, was {list(ranked.shape)}")
    wanted, counts = listed("relevant", relevant, len(ranked), "ranked", ranked)
    return (ranked[:, :, None] == wanted[:, None, :]).any(dim=2), counts


def listed(name: str, given: Relevant, queries: int, other_name: str, other: Tensor) -> tuple[Tensor, Tensor]:
    """Each query's documents [Q, n], and how many of them differ [Q], on other's device."""
    if isinstance(given, Tensor):
        if not holds_integers(given):
            raise TypeError(f"{name} must hold integers, was {given.dtype}")
        if given.shape != (queries,):
            raise ValueError(f"{name} must have shape [{queries}], was {list(given.shape)}")
        check_device(name, given, other_name, other)
        return given[:, None], torch.ones_like(given)
    if not isinstance(given, Sized) or isinstance(given, Set):
        raise TypeError(f"{name} must be a tensor or a sequence of collections, was {type(given).__name__}")
    if len(given) != queries:
        raise ValueError(f"{name} must have one collection for each of {queries} queries, was {len(given)}")
    for q, documents in enumerate(given):
        if not isinstance(documents, Collection):
            raise TypeError(f"{name} must hold a collection for every query, item {q} was {type(documents).__name__}")
        if len(documents) == 0:
            raise ValueError(f"{name} must have a document for every query, item {q} was empty")
        for document in documents:
            if isinstance(document, bool) or not isinstance(document, Integral):
                raise TypeError(f"{name} must hold ints, item {q} had a {type(document).__name__}")
    sets = [set(documents) for documents in given]
    # rows of one length: a query's first document fills up what it lacks, and so changes nothing
    longest = max(map(len, sets), default=1)
    padded = [[*documents, *[next(iter(documents))] * (longest - len(documents))] for documents in sets]
    counts = torch.tensor([len(documents) for documents in sets], device=other.device)
    return torch.tensor(padded, dtype=torch.int64, device=other.device).reshape(queries, longest), counts


def holds_integers(x: Tensor) -> bool:
    """Whether its dtype is one of the integer dtypes."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
