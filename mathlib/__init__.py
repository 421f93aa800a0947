"""The mathematics of embedding models and LLM alignment, as functions of tensors.

Read the modules in this order: `_similarity` (two vectors), `_contrastive` (an anchor, its positive and
the other candidates), `_false_negatives` and `_hard_negatives` (which candidates count), `_retrieval` (a
corpus), `_preference` (two answers), `_gist` (a guide), `_attention` (a query that mixes values),
`_encoding` (a batch in blocks), `_distributed` (several processes), `_adapters` (another library's trainer). What
several of them share stands in `_checks` (arguments), `_halves` (products of half-precision vectors), `_rows` (rows
of scores) and `_blockwise` (the same rows, a few at a time, with their gradients).

An argument of a wrong type or dtype raises a TypeError, one of a wrong shape, on another device or out of its range a
ValueError; the message names the argument, what it must be and what it was. Values of tensors are not read.
"""

from mathlib._adapters import SentenceTransformerLoss
from mathlib._attention import MultiHeadAttention, attention
from mathlib._contrastive import contrastive_loss, info_nce
from mathlib._distributed import gather_with_grad
from mathlib._encoding import encode_in_blocks
from mathlib._false_negatives import false_negative_weights
from mathlib._gist import gist_embed_loss
from mathlib._hard_negatives import (
    curriculum,
    hard_negatives,
    hardness_weights,
    mine_hard_negatives,
    semi_hard_negatives,
    top_k_negatives,
)
from mathlib._namesake import refuse_namesake as _refuse_namesake
from mathlib._preference import dpo_loss, sequence_log_prob
from mathlib._retrieval import DualEncoder, mean_reciprocal_rank, ndcg_at_k, recall_at_k, search
from mathlib._similarity import cosine_similarity, similarity_matrix

__all__ = [
    "DualEncoder",
    "MultiHeadAttention",
    "SentenceTransformerLoss",
    "attention",
    "contrastive_loss",
    "cosine_similarity",
    "curriculum",
    "dpo_loss",
    "encode_in_blocks",
    "false_negative_weights",
    "gather_with_grad",
    "gist_embed_loss",
    "hard_negatives",
    "hardness_weights",
    "info_nce",
    "mean_reciprocal_rank",
    "mine_hard_negatives",
    "ndcg_at_k",
    "recall_at_k",
    "search",
    "semi_hard_negatives",
    "sequence_log_prob",
    "similarity_matrix",
    "top_k_negatives",
]

_refuse_namesake()
