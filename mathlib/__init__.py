"""The mathematics of embedding models and LLM alignment, as functions of tensors.

Read the modules in this order: `similarity` (two vectors), `contrastive` (an anchor, its positive and
the other candidates), `false_negatives` and `hard_negatives` (which candidates count), `retrieval` (a
corpus), `preference` (two answers), `gist` (a guide), `attention` (a query that mixes values),
`distributed` (several processes).
"""

from mathlib._attention import MultiHeadAttention, attention
from mathlib._contrastive import contrastive_loss, info_nce
from mathlib._distributed import gather_with_grad
from mathlib._false_negatives import false_negative_weights
from mathlib._gist import gist_embed_loss
from mathlib._hard_negatives import (
    curriculum,
    hard_negatives,
    mine_hard_negatives,
    semi_hard_negatives,
    top_k_negatives,
)
from mathlib._namesake import refuse_namesake
from mathlib._preference import dpo_loss, sequence_log_prob
from mathlib._retrieval import DualEncoder, mean_reciprocal_rank, ndcg_at_k, recall_at_k, search
from mathlib._similarity import cosine_similarity, similarity_matrix

__all__ = [
    "DualEncoder",
    "MultiHeadAttention",
    "attention",
    "contrastive_loss",
    "cosine_similarity",
    "curriculum",
    "dpo_loss",
    "false_negative_weights",
    "gather_with_grad",
    "gist_embed_loss",
    "hard_negatives",
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

refuse_namesake()
