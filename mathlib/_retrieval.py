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

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set, Sized
from numbers import Integral, Real
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mathlib._checks import check_choice, check_count, check_device, check_shapes, check_some
from mathlib._halves import as_factor, directions_of_halves, products_of_halves
from mathlib._rows import reduced
from mathlib._similarity import HALVES, products, similarity_matrix, unit


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
        asked, given = self(queries, documents)
        if all(isinstance(x, Tensor) and x.ndim == 2 for x in (asked, given)) and asked.shape[1] != given.shape[1]:
            shape, was = f"[N, D] = [N, {asked.shape[1]}]", list(given.shape)
            raise ValueError(f"document_encoder must return shape {shape}, as query_encoder does, was {was}")
        return similarity_matrix(asked, given, metric="dot")


class SearchResult(NamedTuple):
    """The k best documents of each query [Q, k], best first: a pair of scores and indices, by name or by place."""

    scores: Tensor
    indices: Tensor


def search(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    *,
    k: int,
    metric: str = "dot",
    block_size: int | None = None,
) -> SearchResult:
    r"""The k documents most similar to each query, exactly, by blocks.

    .. math:: \text{top-}k_{\,d}\; q^\top d

    Equal scores come in the order of their index (rounding may set those of equal documents apart); which
    of several documents that tie for the last place is returned is left open. A score that is not a number
    counts as -inf: a document with a NaN comes after all others, and what a query with a NaN finds has score
    -inf throughout. No gradient is recorded.

    Args:
        queries: Q embeddings.
        documents: N embeddings; same dtype and device as queries.
        k: how many, 1 <= k <= N.
        metric: "dot" or "cosine".
        block_size: documents scored at once, by default 8192, for 64 queries or fewer 65536; on CUDA 2^25 / Q, at
            least 4096. Memory is of the order Q x (block + k), on a CPU min(Q, 512) x block + Q x k, and with
            "cosine" or half precision D x block.

    Returns:
        The named pair of scores, best first (float32 for half-precision inputs), and the documents' indices.

    Raises:
        ValueError: if queries and documents do not fit together, or an option is out of its range.

    Source:
        Johnson, Douze and Jégou (2017), arXiv:1702.08734, section 5.1 (exact search).

    Example:
        >>> found = search(torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, 1.0]]), k=1)
        >>> found.scores
        tensor([[1.],
                [2.]])
        >>> found.indices
        tensor([[1],
                [0]])

    Chapter: 04_dual_encoder (eq. search)
    """
    check_shapes(("queries", queries, "Q D"), ("documents", documents, "N D"))
    check_some("queries", queries, 1, "feature")
    check_some("documents", documents, 0, "row")
    check_count("k", k, most=documents.shape[0], most_meaning="the number of documents")
    check_choice("metric", metric, ("dot", "cosine"))
    if block_size is not None:
        check_count("block_size", block_size)
    with torch.no_grad():
        return nearest(queries, documents, k, metric, None, block_size)


class Vectors(NamedTuple):
    """Embeddings as they are multiplied: as they are, of unit length, or, half precision, with 1 / length [n, 1]."""

    factors: Tensor
    inverse: Tensor | None


def vectors_of(x: Tensor, metric: str) -> Vectors:
    """Embeddings in whatever form the products of that metric need."""
    if x.dtype not in HALVES:
        return Vectors(unit(x) if metric == "cosine" else x, None)
    if metric == "dot":
        return Vectors(as_factor(x, x.dtype), None)
    factors, inverse, _ = directions_of_halves(x)
    return Vectors(factors, inverse)


def scores_of(queries: Vectors, documents: Vectors, dtype: torch.dtype) -> Tensor:
    """The scores of every query and document, from embeddings of that dtype, in at least float32, in fresh memory."""
    if dtype not in HALVES:
        return products(queries.factors, documents.factors)
    scores = products_of_halves(queries.factors, documents.factors, dtype)
    if queries.inverse is None or documents.inverse is None:
        return scores
    return scores.mul_(queries.inverse).mul_(documents.inverse.mT)


def nearest(
    queries: Tensor,
    documents: Tensor,
    k: int,
    metric: str,
    rows: int | None,
    columns: int | None,
    drop: Callable[[Tensor, slice, slice], Tensor] = lambda block, of_queries, of_documents: block,
) -> SearchResult:
    """The k best documents of each query, `rows` queries and `columns` documents at a time.

    drop(block, rows, columns) gives the scores of what shall not be found -inf; it may write into the block.
    """
    asking = queries.shape[0]
    # on a CPU a block of scores should stay in its cache, but be worth its launches; CUDA wants few of these
    if queries.is_cuda:  # pragma: no cover - needs CUDA, no mutate block
        rows = rows or asking
        columns = columns or max(4096, 2**25 // max(min(rows, asking), 1))
    else:
        rows, columns = rows or 512, columns or (8192 if asking > 64 else 65536)
    given = [(part, vectors_of(queries[part], metric)) for part in parts_of(asking, rows)]
    best: list[SearchResult | None] = [None] * len(given)
    for part in parts_of(documents.shape[0], columns):
        candidates = vectors_of(documents[part], metric)
        for i, (asked, vectors) in enumerate(given):
            block = drop(scores_of(vectors, candidates, queries.dtype), asked, part)
            found = strongest(block.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf), k)
            del block  # memory that the next one can take
            best[i] = merged(best[i], found, part.start, k)
    results = [ordered(*result) for result in best if result is not None]
    return results[0] if len(results) == 1 else SearchResult(*map(torch.cat, zip(*results, strict=True)))


def parts_of(size: int, most: int) -> list[slice]:
    """Consecutive slices of at most so many; a size that fits is not looked at, so that a graph may leave it open."""
    return [slice(0, size)] if size <= most else [slice(i, min(i + most, size)) for i in range(0, size, int(most))]


WIDTH = 64


def strongest(scores: Tensor, k: int) -> SearchResult:
    """The k best columns (all, if there are fewer) of scores without NaN, in any order.

    `topk` costs several times a maximum. So of groups of 64 columns, those k with the largest maxima are looked for:
    whatever stands in another group is no better than these k maxima.
    """
    rows, columns = scores.shape
    groups = columns // WIDTH
    # the candidates must be few, and there must be enough scores to be worth the launches
    if rows * columns < 2**17 or groups < 2 * k:
        return SearchResult(*scores.topk(min(k, columns), dim=1, sorted=False))
    rest = groups * WIDTH
    grouped = scores[:, :rest].unflatten(1, (groups, WIDTH))
    chosen = grouped.amax(dim=2).topk(k, dim=1, sorted=False).indices
    candidates = grouped[torch.arange(rows, device=scores.device)[:, None], chosen].flatten(1)
    scores, found = torch.cat([candidates, scores[:, rest:]], dim=1).topk(k, dim=1, sorted=False)
    group = chosen.gather(1, (found // WIDTH).clamp_max(k - 1))
    places = torch.where(found < k * WIDTH, group * WIDTH + found % WIDTH, found - k * WIDTH + rest)
    return SearchResult(scores, places)


def merged(before: SearchResult | None, found: SearchResult, first: int, k: int) -> SearchResult:
    """The k best of both, in any order; found are those of the documents from the first on."""
    if before is None:
        return found
    scores = torch.cat([before.scores, found.scores], dim=1)
    indices = torch.cat([before.indices, found.indices + first], dim=1)
    best, places = scores.topk(min(k, scores.shape[1]), dim=1, sorted=False)
    return SearchResult(best, indices.gather(1, places))


def ordered(scores: Tensor, indices: Tensor) -> SearchResult:
    """Best first; equal scores by index."""
    indices, by_index = indices.sort(dim=1)
    scores, by_score = scores.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return SearchResult(scores, indices.gather(1, by_score))


# a collection may be a mapping, whose values are grades
Relevant = Int[Tensor, "Q"] | Sequence[Collection[int]]


def recall_at_k(
    ranked: Int[Tensor, "Q n"], relevant: Relevant, *, k: int, reduction: str = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "Q"]:
    r"""The share of a query's relevant documents among its first k results, averaged over queries.

    .. math:: \frac{1}{Q} \sum_q \frac{|R_q \cap \{d_{q1}, \ldots, d_{qk}\}|}{|R_q|}

    Args:
        ranked: document indices, best first, each at most once a row.
        relevant: R_q: one index for each query, or Q collections of indices, none empty; of a mapping
            {document: grade}, the documents with a grade above 0.
        k: how many results count, 1 <= k <= n.
        reduction: "mean", or "none" for each query's value, e.g. for a paired comparison.

    Returns:
        float32 in [0, 1], a 0-d tensor, or [Q].

    Raises:
        TypeError: if ranked or relevant does not hold integers, or a grade is not a number.
        ValueError: if a collection has no relevant document, a grade is not finite, or k is not in 1..n.

    Source:
        Manning, Raghavan and Schütze (2008), Introduction to Information Retrieval, section 8.4.

    Example:
        >>> recall_at_k(torch.tensor([[4, 2, 7]]), [{2, 9}], k=2)
        tensor(0.5000)

    Chapter: 04_dual_encoder (eq. recall)
    """
    gains, grades = judged(ranked, relevant)
    check_count("k", k, most=ranked.shape[1], most_meaning="the number of results in ranked")
    check_choice("reduction", reduction, ("mean", "none"))
    return reduced((gains[:, :k] > 0).sum(dim=1) / (grades > 0).sum(dim=1), reduction)


def mean_reciprocal_rank(
    ranked: Int[Tensor, "Q n"], relevant: Relevant, *, reduction: str = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "Q"]:
    r"""One over the rank of the first relevant result, 0 if there is none, averaged over queries.

    .. math:: \frac{1}{Q} \sum_q \frac{1}{\min\{r : d_{qr} \in R_q\}}

    Args:
        ranked: document indices, best first; of the first ten, ``ranked[:, :10]``, it is MRR@10.
        relevant: R_q: one index for each query, or Q collections of indices, none empty; of a mapping
            {document: grade}, the documents with a grade above 0.
        reduction: "mean", or "none" for each query's value, e.g. for a paired comparison of two rankings.

    Returns:
        float32 in [0, 1], a 0-d tensor, or [Q].

    Raises:
        TypeError: if ranked or relevant does not hold integers, or a grade is not a number.
        ValueError: if a collection has no relevant document, or a grade is not finite.

    Source:
        Voorhees (1999), "The TREC-8 question answering track report".

    Example:
        >>> mean_reciprocal_rank(torch.tensor([[4, 2, 7], [1, 2, 3]]), torch.tensor([2, 5]))
        tensor(0.2500)

    Chapter: 04_dual_encoder (eq. mrr)
    """
    gains, _ = judged(ranked, relevant)
    check_choice("reduction", reduction, ("mean", "none"))
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    return reduced(((gains > 0) / ranks).amax(dim=1), reduction)


def ndcg_at_k(
    ranked: Int[Tensor, "Q n"], relevant: Relevant, *, k: int, reduction: str = "mean"
) -> Float[Tensor, ""] | Float[Tensor, "Q"]:
    r"""Normalised discounted cumulative gain, averaged over queries.

    .. math::
        \frac{1}{Q} \sum_q \frac{\sum_{r=1}^{k} g_q(d_{qr}) / \log_2(r + 1)}
            {\sum_{r=1}^{k} g_{qr} / \log_2(r + 1)},
        \qquad g_{q1} \ge g_{q2} \ge \ldots

    The gain is the grade itself, as in trec_eval and scikit-learn, not 2^g - 1; the best possible ranking, with
    gains g_q1, g_q2, ..., has 1. Where judgements have no grades, a relevant document has 1, another 0.

    Args:
        ranked: document indices, best first, each at most once a row.
        relevant: one index for each query, or Q collections of indices, none empty, whose grades are 1; or
            mappings {document: grade}. Grades need not be whole; those below 0 count as 0.
        k: how many results count, 1 <= k <= n.
        reduction: "mean", or "none" for each query's value, e.g. for a paired comparison.

    Returns:
        float32 in [0, 1], a 0-d tensor, or [Q].

    Raises:
        TypeError: if ranked or relevant does not hold integers, or a grade is not a number.
        ValueError: if a collection has no relevant document, a grade is not finite, or k is not in 1..n.

    Source:
        Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4); with this
        discount, Burges et al. (2005), "Learning to rank using gradient descent", ICML.

    Example:
        >>> ndcg_at_k(torch.tensor([[4, 2, 7]]), torch.tensor([2]), k=3)
        tensor(0.6309)
        >>> ndcg_at_k(torch.tensor([[4, 2, 7]]), [{2: 1, 7: 3, 4: 0}], k=3)  # (0.6309 + 3/2) / (3 + 0.6309)
        tensor(0.5869)

    Chapter: 04_dual_encoder (eq. ndcg)
    """
    gains, grades = judged(ranked, relevant)
    check_count("k", k, most=ranked.shape[1], most_meaning="the number of results in ranked")
    check_choice("reduction", reduction, ("mean", "none"))
    discounts = 1 / torch.arange(2, k + 2, device=ranked.device).log2()
    ideal = grades.sort(dim=1, descending=True).values[:, :k]
    best = (ideal * discounts[: ideal.shape[1]]).sum(dim=1)
    return reduced((gains[:, :k] * discounts).sum(dim=1) / best, reduction)


def judged(ranked: Tensor, relevant: Relevant) -> tuple[Tensor, Tensor]:
    """The grade of each result [Q, n], 0 where it is not relevant, and the grades of all that are [Q, R]."""
    if not isinstance(ranked, Tensor) or not holds_integers(ranked):
        was = ranked.dtype if isinstance(ranked, Tensor) else type(ranked).__name__
        raise TypeError(f"ranked must be a tensor of integers, was {was}")
    if ranked.ndim != 2 or 0 in ranked.shape:
        raise ValueError(f"ranked must have shape [Q, n], neither 0, was {list(ranked.shape)}")
    wanted, grades = listed("relevant", relevant, ranked.shape[0], "ranked", ranked)
    return torch.where(ranked[:, :, None] == wanted[:, None, :], grades[:, None, :], 0.0).sum(dim=2), grades


def listed(name: str, given: Relevant, queries: int, other_name: str, other: Tensor) -> tuple[Tensor, Tensor]:
    """Each query's relevant documents and their grades, both [Q, R], on other's device.

    Rows of one length: a query's first document, with grade 0, fills up what it lacks, and so changes nothing.
    """
    if isinstance(given, Tensor):
        if not holds_integers(given):
            raise TypeError(f"{name} must hold integers, was {given.dtype}")
        if given.shape != (queries,):
            raise ValueError(f"{name} must have shape [{queries}], was {list(given.shape)}")
        check_device(name, given, other_name, other)
        return given[:, None], torch.ones_like(given[:, None], dtype=torch.float32)
    if not isinstance(given, Sized) or isinstance(given, (Set, Mapping)):
        raise TypeError(f"{name} must be a tensor or a sequence of collections, was {type(given).__name__}")
    if len(given) != queries:
        raise ValueError(f"{name} must have one collection for each of {queries} queries, was {len(given)}")
    graded = [above_zero(name, q, documents) for q, documents in enumerate(given)]
    longest = max(map(len, graded), default=1)
    there = torch.arange(longest) < torch.tensor([len(row) for row in graded], dtype=torch.int64)[:, None]
    first = torch.tensor([next(iter(row)) for row in graded], dtype=torch.int64)
    documents, grades = first[:, None].repeat(1, longest), torch.zeros(there.shape, dtype=torch.float32)
    documents[there] = torch.tensor([document for row in graded for document in row], dtype=torch.int64)
    grades[there] = torch.tensor([grade for row in graded for grade in row.values()], dtype=torch.float32)
    return documents.to(other.device), grades.to(other.device)


def above_zero(name: str, q: int, documents: Collection[int]) -> dict[int, float]:
    """A query's relevant documents, those with a grade above 0, and their grades, 1 where there are none."""
    if not isinstance(documents, Collection):
        raise TypeError(f"{name} must hold a collection for every query, item {q} was {type(documents).__name__}")
    if len(documents) == 0:
        raise ValueError(f"{name} must have a document for every query, item {q} was empty")
    for document in documents:
        # nearly all are ints, and an abstract class is slow to ask
        if type(document) is not int and (isinstance(document, bool) or not isinstance(document, Integral)):
            raise TypeError(f"{name} must hold ints, item {q} had a {type(document).__name__}")
    if not isinstance(documents, Mapping):
        return dict.fromkeys(documents, 1.0)
    for document, grade in documents.items():
        if isinstance(grade, bool) or not isinstance(grade, Real):
            raise TypeError(
                f"{name} must have numbers as grades, item {q} had a {type(grade).__name__} for document {document}"
            )
        if not math.isfinite(grade):
            raise ValueError(f"{name} must have finite grades, item {q} had {grade} for document {document}")
    relevant = {document: float(grade) for document, grade in documents.items() if grade > 0}
    if not relevant:
        raise ValueError(f"{name} must have a grade above 0 for every query, item {q} had none")
    return relevant


def holds_integers(x: Tensor) -> bool:
    """Whether its dtype is one of the integer dtypes."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
