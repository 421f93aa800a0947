import math

import numpy
import pytest
import sklearn.metrics
import torch
from by_hand import DTYPES, HALVES, dot
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import mathlib._retrieval
from mathlib import DualEncoder, info_nce, mean_reciprocal_rank, ndcg_at_k, recall_at_k, search

seeds = st.integers(0, 2**32)


# search: by hand


def test_search_by_hand(device):
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device)
    documents = torch.tensor([[3.0, 4.0], [1.0, 0.0], [-1.0, 6.0]], device=device)
    # products 3, 1, -1 and 4, 0, 6; lengths 5, 1, sqrt 37
    scores, indices = search(queries, documents, k=2)
    assert scores.tolist() == [[3, 1], [6, 4]]
    assert indices.tolist() == [[0, 1], [2, 0]]
    # cosines 3/5, 1, -1/sqrt 37 and 4/5, 0, 6/sqrt 37 = 0.986
    scores, indices = search(queries, documents, k=2, metric="cosine")
    assert_close(scores, torch.tensor([[1.0, 3 / 5], [6 / math.sqrt(37), 4 / 5]], device=device))
    assert indices.tolist() == [[1, 0], [2, 0]]


# search: by a loop over Python floats


def loop_search(queries, documents, metric):
    """Every document for every query: (score, index), best first, equal scores by index."""

    def length(x):
        return math.sqrt(math.fsum(v * v for v in x)) if metric == "cosine" else 1.0

    ranked = []
    for q in queries:
        products = [math.fsum(x * y for x, y in zip(q, d, strict=True)) for d in documents]
        scores = [p / (length(q) * length(d)) for p, d in zip(products, documents, strict=True)]
        ranked.append(sorted(zip(scores, range(len(scores)), strict=True), key=lambda hit: (-hit[0], hit[1])))
    return ranked


@given(seeds, st.integers(1, 7), st.one_of(st.none(), st.integers(1, 9)), st.sampled_from(["dot", "cosine"]))
def test_search_is_the_loop_for_every_k_and_block_size(normal, seed, k, block_size, metric):
    queries, documents = normal(seed, 3, 4), normal(seed + 1, 7, 4)
    scores, indices = search(queries, documents, k=k, metric=metric, block_size=block_size)
    expected = [hits[:k] for hits in loop_search(queries.tolist(), documents.tolist(), metric)]
    assert indices.tolist() == [[i for _, i in hits] for hits in expected]
    assert_close(scores.cpu(), torch.tensor([[s for s, _ in hits] for hits in expected], dtype=torch.float64))


@given(st.lists(st.integers(-1, 1), min_size=6, max_size=6), st.integers(1, 6), st.integers(1, 8))
def test_equal_scores_come_in_the_order_of_their_index(device, values, k, block_size):
    documents = torch.tensor(values, device=device)[:, None].float()
    scores, indices = search(torch.ones(1, 1, device=device), documents, k=k, block_size=block_size)
    hits = list(zip(scores[0].tolist(), indices[0].tolist(), strict=True))
    everything = sorted(zip(values, range(6), strict=True), key=lambda hit: (-hit[0], hit[1]))
    assert [score for score, _ in hits] == [score for score, _ in everything[:k]]
    assert all(values[i] == score for score, i in hits)
    assert hits == sorted(hits, key=lambda hit: (-hit[0], hit[1]))
    assert len({i for _, i in hits}) == k
    # only which of those that tie for the last place are found is left open
    certain = [hit for hit in everything if hit[0] > everything[k - 1][0]]
    assert hits[: len(certain)] == certain
    if k == 6:
        assert hits == everything


@pytest.mark.parametrize("block_size", [None, 300])
def test_many_equal_scores_come_in_the_order_of_their_index(normal, block_size):
    # enough of them that a sort which is not stable would mix them up
    documents = normal(0, 1000, 1).round()
    scores, indices = search(torch.ones_like(documents[:1]), documents, k=1000, block_size=block_size)
    expected = sorted(range(1000), key=lambda i: (-documents[i].item(), i))
    assert indices[0].tolist() == expected
    assert torch.equal(scores[0], documents[expected, 0])


def test_the_default_block_holds_every_document_of_a_large_corpus(normal):
    # more than one default block, of queries too: the best are the first, the last, and those around the seams
    documents = torch.zeros(8192 + 10, 1, dtype=torch.float64, device=normal(0, 1).device)
    for index, value in [(0, 2.0), (4096, 1.0), (8191, 4.0), (8192, 5.0), (8201, 3.0)]:
        documents[index] = value
    queries = torch.arange(1.0, 600).to(documents)[:, None]
    scores, indices = search(queries, documents, k=5)
    assert indices.tolist() == [[8192, 8191, 8201, 0, 4096]] * 599
    assert torch.equal(scores, queries * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).to(queries))


def test_no_more_than_a_block_of_scores_is_alive(device, largest):
    many = torch.ones(70_000, 1, device=device)
    # by default, for 64 queries and for more
    for queries, documents, scores in [(64, 70_000, 64 * 65_536), (65, 70_000, 65 * 8192), (9000, 30, 512 * 30)]:
        with largest() as seen:
            search(many[:queries], many[:documents], k=1)
        if device == "cpu":
            assert seen.numel == scores
    with largest() as seen:
        search(many[:20], many[:1000], k=2, block_size=100)
    assert seen.numel == 20 * 100


# search: the k best by two levels


@pytest.mark.parametrize("columns", [64 * 500, 64 * 500 + 1, 64 * 501 - 1])
@pytest.mark.parametrize("k", [1, 10, 250, 251])
@pytest.mark.parametrize("values", ["all differ", "many tie"])
def test_the_best_of_groups_are_those_of_topk(normal, columns, k, values):
    scores = normal(columns, 5, columns, dtype=torch.float32)
    if values == "many tie":
        scores = scores.round()
    best, places = mathlib._retrieval.strongest(scores, k)
    assert torch.equal(best.sort(descending=True).values, scores.topk(k, dim=1).values)
    assert torch.equal(scores.gather(1, places), best)
    assert all(len(set(row)) == k for row in places.tolist())


def test_the_best_may_all_stand_in_one_group_or_in_the_rest(device):
    scores = torch.zeros(3, 64 * 2000 + 7, device=device)
    # beside one another; one in each of 10 groups; in the columns after the last whole group
    scores[0, 640:650] = scores[1, 5:650:65] = scores[2, -10:] = torch.arange(10.0, 0, -1, device=device)
    _, places = mathlib._retrieval.strongest(scores, 10)
    expected = [range(640, 650), range(5, 650, 65), range(64 * 2000 - 3, 64 * 2000 + 7)]
    assert [sorted(row) for row in places.tolist()] == [list(row) for row in expected]


@pytest.mark.parametrize(
    "rows, columns, k, twice", [(4, 32768, 256, True), (4, 32767, 4, False), (4, 32768, 257, False)]
)
def test_only_what_is_large_takes_two_levels(device, rows, columns, k, twice):
    with torch.profiler.profile() as profile:
        mathlib._retrieval.strongest(torch.zeros(rows, columns, device=device), k)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::topk"] == (2 if twice else 1)


@given(seeds, st.sampled_from([1, 3, 20]), st.sampled_from([None, 20_000, 33_000]))
def test_a_large_search_is_exact(normal, seed, k, block_size):
    queries, documents = normal(seed, 5, 3), normal(seed + 1, 33_000, 3)
    scores, indices = search(queries, documents, k=k, block_size=block_size)
    expected, places = (queries @ documents.T).topk(k, dim=1)
    assert torch.equal(indices, places)
    assert_close(scores, expected)


def test_the_two_levels_are_made_where_the_scores_are():
    # on the meta device there are no values, and nothing else may meet its tensors
    best, places = mathlib._retrieval.strongest(torch.empty(64, 4096, device="meta"), 2)
    assert (best.device.type, places.device.type) == ("meta", "meta")


# search: what has no number


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("block_size", [None, 1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_document_without_a_number_comes_last(device, metric, block_size, dtype):
    documents = torch.tensor([[math.nan, 1], [-1, 0], [1, math.nan], [1, 0], [-1, 1]], dtype=dtype, device=device)
    query = torch.tensor([[1.0, 0.0]], dtype=dtype, device=device)
    found = search(query, documents, k=5, metric=metric, block_size=block_size)
    third, fourth = (4, 1) if metric == "cosine" else (1, 4)
    assert found.indices.tolist() == [[3, third, fourth, 0, 2]]
    assert found.scores[0, 3:].tolist() == [-math.inf, -math.inf]
    assert search(query, documents, k=1, metric=metric, block_size=block_size).indices.tolist() == [[3]]


def test_documents_without_a_number_do_not_hide_others(normal):
    # large enough for two levels: every group has one
    queries, documents = normal(0, 5, 3), normal(1, 33_000, 3)
    documents[::50] = math.nan
    scores, indices = search(queries, documents, k=20)
    expected, places = (queries @ documents.T).nan_to_num(-math.inf).topk(20, dim=1)
    assert torch.equal(indices, places)
    assert_close(scores, expected)


@pytest.mark.parametrize("block_size", [None, 2])
def test_a_query_without_a_number_finds_what_has_none(normal, block_size):
    queries, documents = normal(0, 3, 4), normal(1, 5, 4)
    others = search(queries, documents, k=2, block_size=block_size)
    queries[1, 2] = math.nan
    scores, indices = search(queries, documents, k=2, block_size=block_size)
    assert scores[1].tolist() == [-math.inf, -math.inf]
    assert len(set(indices[1].tolist())) == 2 and ((indices[1] >= 0) & (indices[1] < 5)).all()
    assert torch.equal(scores[::2], others.scores[::2]) and torch.equal(indices[::2], others.indices[::2])


def test_an_infinite_score_is_a_number(device):
    documents = torch.tensor([[1.0], [math.inf], [-math.inf], [math.nan]], device=device)
    found = search(torch.ones(1, 1, device=device), documents, k=2)
    assert (found.scores.tolist(), found.indices.tolist()) == ([[math.inf, 1]], [[1, 0]])


# search: edges


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_half_precision_is_searched_in_float32(normal, dtype, metric):
    queries, documents = normal(0, 3, 300, dtype=dtype), normal(1, 9, 300, dtype=dtype)
    scores, indices = search(queries, documents, k=9, metric=metric, block_size=4)
    exact, expected = search(queries.double(), documents.double(), k=9, metric=metric)
    assert scores.dtype == torch.float32
    assert torch.equal(indices, expected)
    assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_half_precision_is_multiplied_as_such(monkeypatch, normal, metric):
    seen = []
    product = mathlib._retrieval.products_of_halves
    monkeypatch.setattr(
        mathlib._retrieval, "products_of_halves", lambda a, b, dtype: seen.append(dtype) or product(a, b, dtype)
    )
    for dtype in HALVES:
        search(normal(0, 3, 4, dtype=dtype), normal(1, 5, 4, dtype=dtype), k=1, metric=metric)
    search(normal(0, 3, 4), normal(1, 5, 4), k=1, metric=metric)
    assert seen == HALVES


@pytest.mark.parametrize("dtype", HALVES)
def test_cosines_of_half_precision_do_not_overflow(device, dtype):
    largest = torch.finfo(dtype).max
    documents = torch.tensor([[largest] * 4, [largest, largest, 0, 0], [0] * 4], dtype=dtype, device=device)
    scores, indices = search(documents[:1], documents, k=3, metric="cosine")
    assert indices.tolist() == [[0, 1, 2]]
    assert scores[0].tolist() == pytest.approx([1, math.sqrt(0.5), 0], rel=1e-6)


def test_the_result_has_names_and_unpacks(device):
    documents = torch.eye(2, device=device)
    found = search(documents, documents, k=1)
    scores, indices = found
    assert scores is found.scores is found[0] and indices is found.indices is found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_keep_the_dtype_and_indices_are_int64(normal, dtype):
    scores, indices = search(normal(0, 3, 4, dtype=dtype), normal(1, 5, 4, dtype=dtype), k=2)
    assert (scores.dtype, indices.dtype) == (dtype, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_no_result(normal, dtype):
    queries, documents = normal(0, 3, 50, dtype=dtype), normal(1, 9, 50, dtype=dtype)
    outside = search(queries, documents, k=9, block_size=4)
    with torch.autocast(queries.device.type, dtype=torch.bfloat16):
        assert_close(search(queries, documents, k=9, block_size=4), outside, rtol=0, atol=0)


def test_a_zero_vector_is_found_with_cosine_0(device):
    documents = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], device=device)
    scores, indices = search(torch.tensor([[2.0, 0.0]], device=device), documents, k=3, metric="cosine")
    assert (scores.tolist(), indices.tolist()) == ([[1, 0, -1]], [[2, 0, 1]])


def test_no_query_finds_nothing(device):
    scores, indices = search(torch.zeros(0, 2, device=device), torch.zeros(3, 2, device=device), k=2)
    assert scores.shape == indices.shape == (0, 2)


def test_search_records_no_gradient_and_mutates_nothing(normal):
    queries, documents = normal(0, 3, 4).requires_grad_(), normal(1, 5, 4).requires_grad_()
    before = queries.detach().clone(), documents.detach().clone()
    scores, _ = search(queries, documents, k=2, block_size=2)
    assert not scores.requires_grad
    assert torch.equal(queries, before[0]) and torch.equal(documents, before[1])


def test_search_compiles_without_a_graph_break(normal, bad_input):
    queries, documents = normal(0, 3, 4), normal(1, 5, 4)
    compiled = torch.compile(search, backend="aot_eager", fullgraph=True)
    assert_close(compiled(queries, documents, k=3, block_size=2), search(queries, documents, k=3))


# The metrics: by hand


def test_recall_by_hand(device):
    ranked = torch.tensor([[4, 2, 7], [1, 2, 3]], device=device)
    relevant = torch.tensor([2, 5], device=device)
    # 2 stands second in the first row, 5 is not in the second
    assert [recall_at_k(ranked, relevant, k=k).item() for k in (1, 2, 3)] == [0, 1 / 2, 1 / 2]
    # of {2, 9}, 2 is found from k = 2 on; of {1, 2, 3}, k of 3
    shares = [recall_at_k(ranked, [{2, 9}, {1, 2, 3}], k=k).item() for k in (1, 2, 3)]
    assert shares == pytest.approx([(0 + 1 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 / 2 + 1) / 2], rel=1e-6)


def test_mean_reciprocal_rank_by_hand(device):
    ranked = torch.tensor([[4, 2, 7], [1, 2, 3], [3, 2, 1]], device=device)
    # ranks 3, none, 1
    by_hand = pytest.approx((1 / 3 + 0 + 1) / 3, rel=1e-6)
    assert mean_reciprocal_rank(ranked, torch.tensor([7, 5, 3], device=device)).item() == by_hand
    # the first counts: 2 before 7
    by_hand = pytest.approx((1 / 2 + 1 / 2 + 1) / 3, rel=1e-6)
    assert mean_reciprocal_rank(ranked, [{7, 2}, {2}, {1, 3}]).item() == by_hand


def test_ndcg_by_hand(device):
    ranked = torch.tensor([[4, 2, 7]], device=device)
    # hits at ranks 1 and 3: 1/log2(2) + 1/log2(4) = 1.5; three relevant documents could give 1 + 0.6309 + 0.5
    relevant = [{4, 7, 8}]
    assert ndcg_at_k(ranked, relevant, k=3).item() == pytest.approx(1.5 / (1.5 + 1 / math.log2(3)), rel=1e-6)
    # of 2 results, at most ranks 1 and 2 can be hits
    assert ndcg_at_k(ranked, relevant, k=2).item() == pytest.approx(1 / (1 + 1 / math.log2(3)), rel=1e-6)
    # one relevant document, at rank 2
    by_hand = pytest.approx(1 / math.log2(3), rel=1e-6)
    assert ndcg_at_k(ranked, torch.tensor([2], device=device), k=3).item() == by_hand
    assert ndcg_at_k(ranked, torch.tensor([2], device=device), k=1).item() == 0


def test_grades_by_hand(device):
    # as in the qrels of pytrec_eval and BEIR: 7 was judged, and is not relevant
    ranked = torch.tensor([[7, 3]], device=device)
    judged = [{3: 1, 7: 0}]
    assert recall_at_k(ranked, judged, k=1) == 0
    assert mean_reciprocal_rank(ranked, judged) == 0.5
    assert ndcg_at_k(ranked, judged, k=1) == 0
    # gains 2, 0, 0.5 at ranks 1, 2, 3; the best order has 3, 2, 0.5
    ranked = torch.tensor([[4, 2, 7]], device=device)
    judged = [{4: 2, 9: 3, 2: -1, 7: 0.5}]
    gain, best = 2 + 0.5 / 2, 3 + 2 / math.log2(3) + 0.5 / 2
    assert ndcg_at_k(ranked, judged, k=3).item() == pytest.approx(gain / best, rel=1e-6)
    assert ndcg_at_k(ranked, judged, k=1).item() == pytest.approx(2 / 3, rel=1e-6)
    assert recall_at_k(ranked, judged, k=3).item() == pytest.approx(2 / 3, rel=1e-6)


# The metrics: by a loop over Python ints and floats


def loop_metrics(ranked, relevant, k):
    """Each query's recall, reciprocal rank and nDCG."""
    values = []
    for row, wanted in zip(ranked, relevant, strict=True):
        grades = wanted if isinstance(wanted, dict) else dict.fromkeys(wanted, 1)
        good = {document for document, grade in grades.items() if grade > 0}
        discounts = [1 / math.log2(r + 1) for r in range(1, k + 1)]
        gains = [max(grades.get(document, 0), 0) for document in row[:k]]
        ideal = sorted((grades[document] for document in good), reverse=True)[:k]
        values.append([
            sum(document in good for document in row[:k]) / len(good),
            next((1 / r for r, document in enumerate(row, 1) if document in good), 0.0),
            dot(gains, discounts) / dot(ideal, discounts[: len(ideal)]),
        ])  # fmt: skip
    return values


def means(values):
    return [math.fsum(column) / len(values) for column in zip(*values, strict=True)]


def metrics(ranked, relevant, k):
    values = (
        recall_at_k(ranked, relevant, k=k),
        mean_reciprocal_rank(ranked, relevant),
        ndcg_at_k(ranked, relevant, k=k),
    )
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in values)
    return [value.item() for value in values]


# 3 queries that rank 5 of 8 documents, and any documents as relevant
rankings = st.lists(st.permutations(range(8)).map(lambda row: row[:5]), min_size=3, max_size=3)
judgements = st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=3, max_size=3)
a_grade = st.sampled_from([-2, 0, 0, 0.5, 1, 1, 3])
grades = st.dictionaries(st.integers(0, 7), a_grade).filter(lambda wanted: any(g > 0 for g in wanted.values()))
graded = st.lists(grades, min_size=3, max_size=3)
cutoffs = st.integers(1, 5)


@given(rankings, judgements | graded, cutoffs)
def test_metrics_are_the_loop(device, ranked, relevant, k):
    ours = metrics(torch.tensor(ranked, device=device), relevant, k)
    assert ours == pytest.approx(means(loop_metrics(ranked, relevant, k)), rel=1e-6)


@given(rankings, judgements | graded, cutoffs)
def test_each_query_has_its_value(device, ranked, relevant, k):
    rows = torch.tensor(ranked, device=device)
    ours = [
        recall_at_k(rows, relevant, k=k, reduction="none"),
        mean_reciprocal_rank(rows, relevant, reduction="none"),
        ndcg_at_k(rows, relevant, k=k, reduction="none"),
    ]
    assert all(values.shape == (3,) and values.dtype == torch.float32 for values in ours)
    for q, expected in enumerate(loop_metrics(ranked, relevant, k)):
        assert [values[q].item() for values in ours] == pytest.approx(expected, rel=1e-6)


def test_judgements_are_compared_where_the_results_are():
    ranked = torch.empty(2, 3, dtype=torch.int64, device="meta")
    for relevant in ([{3: 1, 7: 2}, {1: 1}], [{3, 7}, {1}], torch.empty(2, dtype=torch.int64, device="meta")):
        found = [
            recall_at_k(ranked, relevant, k=2),
            mean_reciprocal_rank(ranked, relevant),
            ndcg_at_k(ranked, relevant, k=2),
        ]
        assert [(x.device.type, x.dtype) for x in found] == [("meta", torch.float32)] * 3


# The metrics: peers


@given(rankings, st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=3, max_size=3), cutoffs)
def test_ndcg_agrees_with_scikit_learn(device, ranked, relevant, k):
    # the documents that were not ranked follow in any order: a cut-off at k <= 5 does not see them
    truth = [[float(d in wanted) for d in range(8)] for wanted in relevant]
    scores = [[-row.index(d) if d in row else -9 - d for d in range(8)] for row in ranked]
    theirs = sklearn.metrics.ndcg_score(truth, scores, k=k)
    assert ndcg_at_k(torch.tensor(ranked, device=device), relevant, k=k).item() == pytest.approx(theirs, rel=1e-6)


@given(rankings, graded, cutoffs)
def test_graded_ndcg_agrees_with_scikit_learn(device, ranked, relevant, k):
    # it takes no grade below 0
    truth = [[max(wanted.get(d, 0), 0) for d in range(8)] for wanted in relevant]
    scores = [[-row.index(d) if d in row else -9 - d for d in range(8)] for row in ranked]
    theirs = sklearn.metrics.ndcg_score(truth, scores, k=k)
    assert ndcg_at_k(torch.tensor(ranked, device=device), relevant, k=k).item() == pytest.approx(theirs, rel=1e-6)


@given(st.lists(st.permutations(range(5)), min_size=3, max_size=3), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_mean_reciprocal_rank_agrees_with_scikit_learn(device, ranked, relevant):
    # with one relevant label, the precision averaged over relevant labels is one over its rank
    truth = [[int(d == wanted) for d in range(5)] for wanted in relevant]
    scores = [[-row.index(d) for d in range(5)] for row in ranked]
    theirs = sklearn.metrics.label_ranking_average_precision_score(truth, scores)
    ours = mean_reciprocal_rank(torch.tensor(ranked, device=device), torch.tensor(relevant, device=device))
    assert ours.item() == pytest.approx(theirs, rel=1e-6)


# The metrics: what must hold for all rankings


@given(rankings, st.lists(st.integers(0, 9), min_size=3, max_size=3), cutoffs)
def test_one_document_each_is_a_set_of_one_document(device, ranked, relevant, k):
    ranked = torch.tensor(ranked, device=device)
    assert metrics(ranked, torch.tensor(relevant, device=device), k) == metrics(ranked, [{d} for d in relevant], k)


@given(rankings, judgements, cutoffs, st.sampled_from([0.25, 1, 7]))
def test_one_grade_for_all_is_none(device, ranked, relevant, k, grade):
    ranked = torch.tensor(ranked, device=device)
    alike = [dict.fromkeys(wanted, grade) for wanted in relevant]
    assert metrics(ranked, alike, k) == pytest.approx(metrics(ranked, relevant, k), rel=1e-6)


@given(rankings, graded, cutoffs)
def test_recall_and_reciprocal_rank_see_of_grades_only_which_are_above_0(device, ranked, relevant, k):
    ranked = torch.tensor(ranked, device=device)
    good = [{d for d, grade in wanted.items() if grade > 0} for wanted in relevant]
    assert metrics(ranked, relevant, k)[:2] == metrics(ranked, good, k)[:2]


@given(rankings, judgements, st.permutations(range(3)), cutoffs)
def test_the_order_of_queries_does_not_matter(device, ranked, relevant, order, k):
    once = metrics(torch.tensor(ranked, device=device), relevant, k)
    again = metrics(torch.tensor([ranked[i] for i in order], device=device), [relevant[i] for i in order], k)
    assert again == pytest.approx(once, rel=1e-6)


@given(rankings, judgements)
def test_metrics_lie_in_0_1_and_recall_grows_with_k(device, ranked, relevant):
    ranked = torch.tensor(ranked, device=device)
    assert all(0 <= value <= 1 for k in range(1, 6) for value in metrics(ranked, relevant, k))
    recalls = [recall_at_k(ranked, relevant, k=k).item() for k in range(1, 6)]
    assert recalls == sorted(recalls)


@given(rankings, cutoffs)
def test_a_perfect_ranking_scores_1(device, ranked, k):
    relevant = [set(row[:k]) for row in ranked]
    assert metrics(torch.tensor(ranked, device=device), relevant, k) == [1, 1, 1]


# The metrics: edges


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_indices_may_have_any_integer_dtype(device, dtype):
    ranked = torch.tensor([[4, 2, 7]], device=device)
    expected = metrics(ranked, torch.tensor([2], device=device), 2)
    assert metrics(ranked.to(dtype), torch.tensor([2], dtype=dtype, device=device), 2) == expected
    assert metrics(ranked.to(dtype), [{2}], 2) == expected


@pytest.mark.parametrize(
    "relevant",
    [[[2, 7], [3]], [(7, 2, 2), range(3, 4)], ({7, 2}, frozenset([3])), [numpy.array([2, 7]), {3: numpy.float32(1)}]],
)
def test_relevant_documents_may_come_in_any_collection(device, bad_input, relevant):
    ranked = torch.tensor([[4, 2, 7], [1, 2, 3]], device=device)
    assert metrics(ranked, relevant, 2) == metrics(ranked, [{2, 7}, {3}], 2)


def test_metrics_mutate_nothing(device):
    ranked, relevant = torch.tensor([[4, 2, 7]], device=device), [{2, 7}]
    metrics(ranked, relevant, 2)
    assert ranked.tolist() == [[4, 2, 7]] and relevant == [{2, 7}]


# DualEncoder


def test_a_shared_encoder_encodes_both(normal):
    encoder = nn.Linear(3, 2, dtype=torch.float64, device=normal(0, 1).device)
    model = DualEncoder(encoder)
    x = normal(0, 4, 3)
    assert torch.equal(model.encode_queries(x), encoder(x))
    assert torch.equal(model.encode_documents(x), encoder(x))
    assert len(list(model.parameters())) == 2
    assert set(model.state_dict()) == {
        "query_encoder.weight", "query_encoder.bias", "document_encoder.weight", "document_encoder.bias"
    }  # fmt: skip


def test_separate_encoders_encode_one_each(normal):
    device = normal(0, 1).device
    f_q = nn.Linear(3, 2, dtype=torch.float64, device=device)
    f_d = nn.Linear(5, 2, bias=False, dtype=torch.float64, device=device)
    model = DualEncoder(f_q, f_d)
    queries, documents = normal(0, 4, 3), normal(1, 6, 5)
    for embeddings, expected in zip(model(queries, documents), (f_q(queries), f_d(documents)), strict=True):
        assert torch.equal(embeddings, expected)
    assert torch.equal(model.encode_queries(queries), f_q(queries))
    assert torch.equal(model.encode_documents(documents), f_d(documents))
    assert len(list(model.parameters())) == 3
    assert set(model.state_dict()) == {"query_encoder.weight", "query_encoder.bias", "document_encoder.weight"}


def test_the_score_is_the_inner_product_of_the_embeddings(device):
    # f_q doubles, f_d is the identity: 2 * (1*3 + 2*4) = 22
    f_q, f_d = nn.Linear(2, 2, bias=False, device=device), nn.Identity()
    nn.init.eye_(f_q.weight)
    f_q.weight.data *= 2
    model = DualEncoder(f_q, f_d)
    queries = torch.tensor([[1.0, 2.0]], device=device)
    documents = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]], device=device)
    assert model.score(queries, documents).tolist() == [[22, 4, 2]]


def test_further_arguments_reach_the_encoder(device):
    class Bag(nn.Module):
        def forward(self, tokens, offsets, *, scale=1.0):
            return scale * (tokens + offsets)

    model = DualEncoder(Bag())
    one = torch.ones(2, 2, device=device)
    assert torch.equal(model.encode_queries(one, one, scale=3.0), 6 * one)
    assert torch.equal(model.encode_documents(one, offsets=2 * one), 3 * one)


def test_a_step_on_info_nce_moves_both_encoders_and_lowers_the_loss(normal):
    device = normal(0, 1).device
    torch.manual_seed(0)
    model = DualEncoder(nn.Linear(3, 4), nn.Linear(5, 4)).to(device)
    queries, documents = normal(0, 8, 3, dtype=torch.float32), normal(1, 8, 5, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(2):
        losses.append(info_nce(*model(queries, documents), temperature=0.5))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert all((p != q).any() for p, q in zip(model.parameters(), before, strict=True))


def test_a_loaded_state_scores_the_same(normal):
    saved, fresh = (DualEncoder(nn.Linear(3, 2), nn.Linear(3, 2)).to(normal(0, 1)) for _ in range(2))
    queries, documents = normal(0, 4, 3), normal(1, 5, 3)
    assert not torch.equal(fresh.score(queries, documents), saved.score(queries, documents))
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh.score(queries, documents), saved.score(queries, documents))


# What is refused, and how


@pytest.mark.parametrize(
    "encoders, message",
    [
        ((None,), "query_encoder must be a torch.nn.Module, was NoneType"),
        ((len,), "query_encoder must be a torch.nn.Module, was builtin_function_or_method"),
        ((nn.Identity(), "bert"), "document_encoder must be a torch.nn.Module, was str"),
        ((nn.Identity(), False), "document_encoder must be a torch.nn.Module, was bool"),
    ],
)
def test_dual_encoder_says_what_is_wrong(bad_input, encoders, message):
    with pytest.raises(TypeError) as caught:
        DualEncoder(*encoders)
    assert str(caught.value) == message


def test_encoders_of_two_widths_have_no_score():
    model = DualEncoder(nn.Linear(3, 2), nn.Linear(3, 4))
    with pytest.raises(ValueError) as caught:
        model.score(torch.zeros(1, 3), torch.zeros(5, 3))
    assert str(caught.value) == "document_encoder must return shape [N, D] = [N, 2], as query_encoder does, was [5, 4]"


def test_what_an_encoder_returns_is_judged_as_scores_are(bad_input):
    with pytest.raises(ValueError, match="a must have shape"):
        DualEncoder(nn.Flatten(0), nn.Identity()).score(torch.zeros(1, 3), torch.zeros(5, 3))


three, two = torch.zeros(3, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"queries": [[0.0] * 4]}, TypeError, "queries must be a torch.Tensor, was list"),
        ({"documents": None}, TypeError, "documents must be a torch.Tensor, was NoneType"),
        ({"queries": two.long()}, TypeError, "queries must have a floating-point dtype, was torch.int64"),
        ({"documents": three.bool()}, TypeError, "documents must have a floating-point dtype, was torch.bool"),
        (
            {"documents": three.half()},
            TypeError,
            "documents must have the dtype of queries, torch.float32, was torch.float16",
        ),
        (
            {"documents": three.to("meta")},
            ValueError,
            "documents must be on the device of queries, cpu, was meta",
        ),
        ({"queries": torch.zeros(4)}, ValueError, "queries must have shape [Q, D], was [4]"),
        ({"documents": three[None]}, ValueError, "documents must have shape [N, D] = [N, 4], was [1, 3, 4]"),
        ({"documents": torch.zeros(3, 5)}, ValueError, "documents must have shape [N, D] = [N, 4], was [3, 5]"),
        (
            {"queries": torch.zeros(2, 0), "documents": torch.zeros(3, 0)},
            ValueError,
            "queries must have at least one feature, was [2, 0]",
        ),
        ({"k": 0}, ValueError, "k must be an int >= 1 and <= 3 (the number of documents), was 0"),
        ({"k": 4}, ValueError, "k must be an int >= 1 and <= 3 (the number of documents), was 4"),
        ({"k": 1.0}, TypeError, "k must be an int >= 1 and <= 3 (the number of documents), was float"),
        ({"k": True}, TypeError, "k must be an int >= 1 and <= 3 (the number of documents), was bool"),
        (
            {"documents": torch.zeros(0, 4)},
            ValueError,
            "documents must have at least one row, was [0, 4]",
        ),
        ({"metric": "l2"}, ValueError, "metric must be one of 'dot', 'cosine', was 'l2'"),
        ({"block_size": 0}, ValueError, "block_size must be an int >= 1, was 0"),
        ({"block_size": 8.0}, TypeError, "block_size must be an int >= 1, was float"),
        ({"block_size": "all"}, TypeError, "block_size must be an int >= 1, was str"),
    ],
)
def test_search_says_what_is_wrong(bad_input, wrong, error, message):
    with pytest.raises(error) as caught:
        search(**{"queries": two, "documents": three, "k": 1, **wrong})
    assert str(caught.value) == message


ranked = torch.tensor([[4, 2, 7], [1, 2, 3]])


@pytest.mark.parametrize("metric", [recall_at_k, mean_reciprocal_rank, ndcg_at_k])
@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"ranked": [[4, 2, 7]]}, TypeError, "ranked must be a tensor of integers, was list"),
        ({"ranked": ranked.float()}, TypeError, "ranked must be a tensor of integers, was torch.float32"),
        ({"ranked": ranked.bool()}, TypeError, "ranked must be a tensor of integers, was torch.bool"),
        ({"ranked": ranked.cfloat()}, TypeError, "ranked must be a tensor of integers, was torch.complex64"),
        ({"ranked": ranked[0]}, ValueError, "ranked must have shape [Q, n], neither 0, was [3]"),
        ({"ranked": ranked[None]}, ValueError, "ranked must have shape [Q, n], neither 0, was [1, 2, 3]"),
        ({"ranked": ranked[:0]}, ValueError, "ranked must have shape [Q, n], neither 0, was [0, 3]"),
        ({"ranked": ranked[:, :0]}, ValueError, "ranked must have shape [Q, n], neither 0, was [2, 0]"),
        ({"relevant": torch.ones(2)}, TypeError, "relevant must hold integers, was torch.float32"),
        ({"relevant": torch.ones(2).cfloat()}, TypeError, "relevant must hold integers, was torch.complex64"),
        ({"relevant": torch.ones(2).bool()}, TypeError, "relevant must hold integers, was torch.bool"),
        ({"relevant": ranked}, ValueError, "relevant must have shape [2], was [2, 3]"),
        ({"relevant": torch.tensor([2])}, ValueError, "relevant must have shape [2], was [1]"),
        (
            {"relevant": torch.tensor([2, 5], device="meta")},
            ValueError,
            "relevant must be on the device of ranked, cpu, was meta",
        ),
        ({"relevant": 2}, TypeError, "relevant must be a tensor or a sequence of collections, was int"),
        (
            {"relevant": {frozenset({1}), frozenset({2})}},
            TypeError,
            "relevant must be a tensor or a sequence of collections, was set",
        ),
        ({"relevant": {0: {1}, 1: {2}}}, TypeError, "relevant must be a tensor or a sequence of collections, was dict"),
        ({"relevant": [[[1]], [2]]}, TypeError, "relevant must hold ints, item 0 had a list"),
        ({"relevant": [{2}]}, ValueError, "relevant must have one collection for each of 2 queries, was 1"),
        ({"relevant": [{2}] * 3}, ValueError, "relevant must have one collection for each of 2 queries, was 3"),
        ({"relevant": [{2}, 5]}, TypeError, "relevant must hold a collection for every query, item 1 was int"),
        ({"relevant": [set(), {2}]}, ValueError, "relevant must have a document for every query, item 0 was empty"),
        ({"relevant": [{2}, {2.0}]}, TypeError, "relevant must hold ints, item 1 had a float"),
        ({"relevant": [{2}, [False]]}, TypeError, "relevant must hold ints, item 1 had a bool"),
        ({"relevant": [["4"], {2}]}, TypeError, "relevant must hold ints, item 0 had a str"),
        ({"relevant": [{2}, {"3": 1}]}, TypeError, "relevant must hold ints, item 1 had a str"),
        ({"relevant": [{2}, {}]}, ValueError, "relevant must have a document for every query, item 1 was empty"),
        (
            {"relevant": [{2: 1}, {3: 0, 7: -1}]},
            ValueError,
            "relevant must have a grade above 0 for every query, item 1 had none",
        ),
        (
            {"relevant": [{2: "1"}, {3: 1}]},
            TypeError,
            "relevant must have numbers as grades, item 0 had a str for document 2",
        ),
        (
            {"relevant": [{2: 1}, {3: 1, 4: True}]},
            TypeError,
            "relevant must have numbers as grades, item 1 had a bool for document 4",
        ),
        (
            {"relevant": [{2: 1}, {3: math.nan}]},
            ValueError,
            "relevant must have finite grades, item 1 had nan for document 3",
        ),
        (
            {"relevant": [{2: 1, 5: -math.inf}, {3: 1}]},
            ValueError,
            "relevant must have finite grades, item 0 had -inf for document 5",
        ),
        ({"reduction": "sum"}, ValueError, "reduction must be one of 'mean', 'none', was 'sum'"),
        ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'none', was None"),
    ],
)
def test_metrics_say_what_is_wrong(bad_input, metric, wrong, error, message):
    options = {} if metric is mean_reciprocal_rank else {"k": 1}
    with pytest.raises(error) as caught:
        metric(**{"ranked": ranked, "relevant": torch.tensor([2, 5]), **options, **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize("metric", [recall_at_k, ndcg_at_k])
@pytest.mark.parametrize(
    "k, error, message",
    [
        (0, ValueError, "k must be an int >= 1 and <= 3 (the number of results in ranked), was 0"),
        (4, ValueError, "k must be an int >= 1 and <= 3 (the number of results in ranked), was 4"),
        (None, TypeError, "k must be an int >= 1 and <= 3 (the number of results in ranked), was NoneType"),
    ],
)
def test_a_wrong_k_says_what_is_wrong(bad_input, metric, k, error, message):
    with pytest.raises(error) as caught:
        metric(ranked, torch.tensor([2, 5]), k=k)
    assert str(caught.value) == message
