# pyright: strict
"""Every public name, as a program that depends on mathlib calls it. test_package.py has strict mypy and pyright read it."""

from functools import partial
from typing import Any, assert_type

import torch
from torch import Tensor, nn

from mathlib import (
    DualEncoder,
    MultiHeadAttention,
    SentenceTransformerLoss,
    attention,
    contrastive_loss,
    cosine_similarity,
    curriculum,
    dpo_loss,
    encode_in_blocks,
    false_negative_weights,
    gather_with_grad,
    gist_embed_loss,
    hard_negatives,
    hardness_weights,
    info_nce,
    mean_reciprocal_rank,
    mine_hard_negatives,
    ndcg_at_k,
    recall_at_k,
    search,
    semi_hard_negatives,
    sequence_log_prob,
    similarity_matrix,
    top_k_negatives,
)


def similarities(a: Tensor, b: Tensor) -> None:
    assert_type(cosine_similarity(a, b), Tensor)
    assert_type(similarity_matrix(a, b, metric="dot"), Tensor)


def rules(positive_scores: Tensor, candidate_scores: Tensor) -> Tensor:
    """A rule of one's own, made of others."""
    weights = false_negative_weights(positive_scores, candidate_scores, strategy="absolute", margin=0.1, alpha=0.5)
    weights = weights * hard_negatives(positive_scores, candidate_scores, threshold=-0.5)
    weights = weights * semi_hard_negatives(positive_scores, candidate_scores, margin=1.0, side="below")
    weights = weights * hardness_weights(positive_scores, candidate_scores, strength=2.0)
    return weights * assert_type(top_k_negatives(positive_scores, candidate_scores, k=2), Tensor)


def losses(anchor: Tensor, positive: Tensor, negatives: Tensor) -> None:
    threshold = assert_type(curriculum(3, start=0.2, end=0.8, total_steps=10), float)
    rule = partial(hard_negatives, threshold=threshold)
    assert_type(info_nce(anchor, positive, negatives, temperature=torch.tensor(0.1), weigh=rule), Tensor)
    assert_type(info_nce(anchor, positive, weigh=[rule, rules], symmetric=True, reduction="none"), Tensor)
    assert_type(gather_with_grad(anchor), Tensor)
    scores = similarity_matrix(anchor, positive)
    assert_type(contrastive_loss(scores[:, 0], scores[:, 1:], temperature=0.1, weights=None), Tensor)
    guided = gist_embed_loss(
        anchor, positive, negatives, guide_anchor=anchor, guide_positive=positive, guide_negatives=negatives, lam=0.5
    )
    assert_type(guided, Tensor)


class Column(nn.Module):
    """A model as sentence-transformers has it: a column's features in, its embeddings out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.linear(features["x"])}


def large_batches(anchor: Tensor, positive: Tensor) -> None:
    encoder = nn.Linear(8, 4)
    encoded = [encode_in_blocks(encoder, x, block_size=2) for x in (anchor, positive)]
    assert_type(info_nce(*encoded), Tensor)
    temperature = nn.Parameter(torch.tensor(0.1))
    adapted = SentenceTransformerLoss(Column(), info_nce, block_size=2, temperature=temperature)
    assert_type(adapted.forward([{"x": anchor}, {"x": positive}]), Tensor)
    assert_type(adapted.get_config_dict(), dict[str, Any])


def preferences(logits: Tensor, labels: Tensor, mask: Tensor) -> None:
    chosen = assert_type(sequence_log_prob(logits, labels, mask=mask), Tensor)
    assert_type(dpo_loss(chosen, chosen - 1, chosen, chosen, beta=0.2, label_smoothing=0.1), Tensor)


def retrieval(queries: Tensor, documents: Tensor) -> None:
    model = DualEncoder(nn.Linear(8, 4), nn.Linear(8, 4))
    encoded = assert_type(model.encode_documents(documents), Tensor)
    assert_type(model.score(queries, documents), Tensor)
    scores, indices = search(model.encode_queries(queries), encoded, k=2, block_size=2)
    assert_type(scores, Tensor)
    relevant = [{0}, {1, 2}, {3}, {0, 3}]
    assert_type(recall_at_k(indices, relevant, k=2), Tensor)
    assert_type(mean_reciprocal_rank(indices, torch.arange(4)), Tensor)
    graded: list[dict[int, float]] = [{0: 1}, {1: 0, 2: 1}, {3: 2.5}, {0: 1, 3: 2}]
    assert_type(ndcg_at_k(indices, graded, k=2, reduction="none"), Tensor)
    mined = mine_hard_negatives(queries, documents, relevant, k=1, margin=0.1)
    assert_type(mined.scores, Tensor)
    assert_type(mined.indices, Tensor)


def attend(x: Tensor) -> None:
    output = attention(x, x, x, is_causal=True)
    weighted = attention(x, x, x, return_weights=True)
    assert isinstance(output, Tensor) and not isinstance(weighted, Tensor)
    assert_type(output, Tensor)
    assert_type(weighted, tuple[Tensor, Tensor])
    heads = MultiHeadAttention(8, 2, bias=False)
    assert_type(heads.forward(x, is_causal=True), Tensor | tuple[Tensor, Tensor])


def main() -> None:
    a, b, n = (torch.eye(4, 8).roll(i, 1) for i in range(3))
    similarities(a, b)
    losses(a, b, n)
    large_batches(a, b)
    preferences(torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))
    retrieval(a, b)
    attend(torch.ones(2, 4, 8))


if __name__ == "__main__":
    main()
