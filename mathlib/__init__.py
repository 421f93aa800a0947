"""The mathematics of embedding models and LLM alignment, as functions of tensors.

Read the modules in this order: `similarity` (two vectors), `contrastive` (an anchor, its positive and
the other candidates), `retrieval` (a corpus).
"""

from mathlib.contrastive import contrastive_loss, info_nce
from mathlib.retrieval import DualEncoder, mean_reciprocal_rank, ndcg_at_k, recall_at_k, search
from mathlib.similarity import cosine_similarity, similarity_matrix

__all__ = [
    "DualEncoder",
    "contrastive_loss",
    "cosine_similarity",
    "info_nce",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "recall_at_k",
    "search",
    "similarity_matrix",
]
