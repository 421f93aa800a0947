"""What ties topics together: the same number, reached by two roads."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mathlib import (
    attention,
    contrastive_loss,
    cosine_similarity,
    dpo_loss,
    gist_embed_loss,
    info_nce,
    recall_at_k,
    search,
    sequence_log_prob,
    similarity_matrix,
)

seeds = st.integers(0, 2**32)
temperatures = st.floats(0.05, 10)


@given(seeds, temperatures)
def test_in_batch_info_nce_is_cross_entropy_of_the_similarity_matrix(normal, seed, temperature):
    anchor, positive = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    logits = similarity_matrix(anchor, positive) / temperature
    expected = F.cross_entropy(logits, torch.arange(5, device=logits.device))
    assert_close(info_nce(anchor, positive, temperature=temperature), expected)


@given(seeds, temperatures)
def test_info_nce_is_contrastive_loss_of_cosines(normal, seed, temperature):
    anchor, positive, negatives = normal(seed, 5, 3), normal(seed + 1, 5, 3), normal(seed + 2, 5, 4, 3)
    expected = contrastive_loss(
        cosine_similarity(anchor, positive),
        cosine_similarity(anchor[:, None], negatives),
        temperature=temperature,
    )
    assert_close(info_nce(anchor, positive, negatives, temperature=temperature, in_batch=False), expected)


@given(seeds, st.sampled_from([(2, 3), (5, 2, 3)]))
def test_symmetric_is_the_mean_of_both_directions(normal, seed, shape):
    anchor, positive, negatives = normal(seed, 5, 3), normal(seed + 1, 5, 3), normal(seed + 2, *shape)
    forward = info_nce(anchor, positive, negatives, reduction="none")
    backward = info_nce(positive, anchor, reduction="none")  # explicit negatives belong to anchors
    both = info_nce(anchor, positive, negatives, reduction="none", symmetric=True)
    assert_close(both, (forward + backward) / 2)


@given(seeds)
def test_symmetric_does_not_change_when_anchors_and_positives_are_swapped(normal, seed):
    anchor, positive = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    assert_close(info_nce(positive, anchor, symmetric=True), info_nce(anchor, positive, symmetric=True))


@given(seeds, st.permutations(range(5)), st.booleans())
def test_a_batch_in_another_order_has_the_same_loss(normal, seed, order, symmetric):
    anchor, positive = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    once = info_nce(anchor, positive, symmetric=symmetric)
    assert_close(info_nce(anchor[order], positive[order], symmetric=symmetric), once)


@given(seeds)
def test_every_anchors_negatives_are_one_pool_when_in_batch(normal, seed):
    anchor, positive, negatives = normal(seed, 5, 3), normal(seed + 1, 5, 3), normal(seed + 2, 5, 2, 3)
    pool = negatives.reshape(10, 3)
    assert_close(info_nce(anchor, positive, negatives), info_nce(anchor, positive, pool))


@given(seeds)
def test_other_positives_given_as_own_negatives_are_the_batch(normal, seed):
    anchor, positive = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    others = torch.stack([torch.cat([positive[:b], positive[b + 1 :]]) for b in range(5)])
    assert_close(info_nce(anchor, positive, others, in_batch=False), info_nce(anchor, positive))


@given(seeds, temperatures)
def test_gist_with_nothing_removed_and_no_divergence_is_info_nce(normal, seed, temperature):
    student = normal(seed, 4, 3), normal(seed + 1, 4, 3), normal(seed + 2, 4, 2, 3)
    eye = torch.eye(12, dtype=torch.float64, device=student[0].device)  # similarity 1 to the positive, 0 to all else
    guide = {"guide_anchor": eye[:4], "guide_positive": eye[:4], "guide_negatives": eye[4:].reshape(4, 2, 12)}
    gist = gist_embed_loss(*student, **guide, temperature=temperature, lam=0.0, reduction="none")
    assert_close(gist, info_nce(*student, temperature=temperature, reduction="none"))


@given(seeds, st.floats(0.01, 5))
def test_dpo_is_a_softmax_over_two_candidates(normal, seed, beta):
    # the scores are log pi_theta / pi_ref, the temperature is 1 / beta
    pairs = [normal(seed + i, 6).requires_grad_() for i in range(4)]
    chosen, rejected = pairs[0] - pairs[2], pairs[1] - pairs[3]
    expected = contrastive_loss(chosen, rejected[:, None], temperature=1 / beta)
    loss = dpo_loss(*pairs, beta=beta)
    assert_close(loss, expected)
    assert_close(*(torch.autograd.grad(x, pairs, retain_graph=True) for x in (loss, expected)))


@given(seeds)
def test_the_log_probability_of_one_token_is_minus_info_nce_of_its_logits(normal, seed):
    logits = normal(seed, 6, 5)
    expected = -contrastive_loss(logits[:, 2], logits[:, [0, 1, 3, 4]], temperature=1, reduction="none")
    label = torch.full((6, 1), 2, device=logits.device)
    assert_close(sequence_log_prob(logits[:, None], label), expected)


@given(seeds)
def test_the_positives_probability_is_its_attention_weight(normal, seed):
    query, keys = normal(seed, 1, 4), normal(seed + 1, 5, 4)
    _, weights = attention(query, keys, keys, return_weights=True)
    # with the identity as values, attention returns its weights
    assert_close(attention(query, keys, torch.eye(5).to(keys)), weights)
    scores = similarity_matrix(query, keys, metric="dot")[0]
    for i in range(5):
        others = torch.cat([scores[:i], scores[i + 1 :]])
        loss = contrastive_loss(scores[[i]], others[None], temperature=math.sqrt(4))
        assert_close(torch.exp(-loss), weights[0, i])


@given(seeds, st.floats(0.05, 2), st.lists(st.booleans(), min_size=5, max_size=5))
def test_attention_of_unit_vectors_with_a_mask_holds_the_probabilities_of_info_nce(normal, seed, temperature, drop):
    # each anchor attends to the positives; what a rule weighs 0, the mask forbids
    anchor, positive = (F.normalize(normal(seed + i, 5, 3), dim=1) for i in range(2))
    itself = torch.eye(5, dtype=torch.bool, device=anchor.device)
    keep = itself | ~torch.tensor(drop, device=anchor.device)
    _, weights = attention(anchor, positive, positive, mask=keep, scale=1 / temperature, return_weights=True)
    losses = info_nce(anchor, positive, temperature=temperature, weigh=lambda s_p, s: keep.to(s), reduction="none")
    assert_close(torch.exp(-losses), weights.diagonal())


@given(seeds)
def test_the_gradient_on_a_score_is_its_probability_over_the_temperature(normal, seed):
    positive, negatives = normal(seed, 1).requires_grad_(), normal(seed + 1, 1, 4).requires_grad_()
    probabilities = torch.softmax(torch.cat([positive[None], negatives], dim=1) / 0.2, dim=1)
    loss = contrastive_loss(positive, negatives, temperature=0.2)
    of_positive, of_negatives = torch.autograd.grad(loss, (positive, negatives))
    assert_close(of_negatives, probabilities[:, 1:] / 0.2)
    assert_close(of_positive, -of_negatives.sum(dim=1))


@given(seeds)
def test_a_cold_loss_is_the_lead_of_the_hardest_candidate(normal, seed):
    positive, negatives = normal(seed, 6), normal(seed + 1, 6, 4)
    cold = 1e-3
    losses = contrastive_loss(positive, negatives, temperature=cold, reduction="none")
    lead = (negatives.amax(dim=1) - positive).clamp_min(0)
    # log(1 + 4) is the most that ties can add
    assert ((cold * losses - lead) >= -1e-12).all()
    assert ((cold * losses - lead) <= cold * math.log(5) + 1e-12).all()


@given(seeds)
def test_a_hot_loss_is_the_logarithm_of_the_number_of_candidates(normal, seed):
    loss = contrastive_loss(normal(seed, 6), normal(seed + 1, 6, 4), temperature=1e6)
    assert loss.item() == pytest.approx(math.log(5), abs=1e-5)


@given(seeds)
def test_a_search_misses_where_the_loss_exceeds_log_2_when_cold(normal, seed):
    # cold enough, only the hardest candidate counts: ahead of the positive, the loss is above log 2
    anchor, positive = normal(seed, 6, 3), normal(seed + 1, 6, 3)
    losses = info_nce(anchor, positive, temperature=1e-6, reduction="none")
    _, found = search(anchor, positive, k=1, metric="cosine")
    own = torch.arange(6, device=found.device)
    assert torch.equal(found[:, 0] == own, losses < math.log(2))
    assert_close(recall_at_k(found, own, k=1), (losses < math.log(2)).float().mean())


@given(seeds, st.sampled_from(["dot", "cosine"]))
def test_search_sorts_the_rows_of_the_similarity_matrix(normal, seed, metric):
    queries, documents = normal(seed, 3, 4), normal(seed + 1, 6, 4)
    scores, indices = search(queries, documents, k=6, metric=metric, block_size=4)
    matrix = similarity_matrix(queries, documents, metric=metric)
    assert_close(scores, matrix.sort(dim=1, descending=True).values)
    assert_close(matrix.gather(1, indices), scores)
