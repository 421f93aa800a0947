"""What does GISTEmbedLoss with its KL term cost over its four products, the student's three and the guide's one?"""

from importlib.util import find_spec

import torch
from measure import backward, bar, main, normal, timed

from mathlib import gist_embed_loss

D = 384
BASE = "four raw products"
OURS = "mathlib GIST with KL"
PEER = "sentence-transformers GIST (no KL)"


def peer():
    from sentence_transformers.sentence_transformer import losses
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    class PassThrough(torch.nn.Module):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), unk_token="[UNK]"
        )
        max_seq_length = 8

        def __init__(self, entry):
            super().__init__()
            self.entry = entry

        def forward(self, features):
            return {"sentence_embedding": features[self.entry]}

    options = {"contrast_anchors": False, "contrast_positives": False}
    return losses.GISTEmbedLoss(PassThrough("student"), PassThrough("guide"), temperature=0.05, **options)


def step(name, size):
    a, p, guide_a, guide_p = (normal(seed, size, D) for seed in range(4))
    if name == BASE:

        def products():
            scores = a @ p.T
            return guide_a @ guide_p.T, scores @ p, scores.T @ a

        return products
    if name == OURS:
        return backward(lambda a, p: gist_embed_loss(a, p, guide_anchor=guide_a, guide_positive=guide_p), a, p)
    loss = peer()
    return backward(lambda a, p: loss([{"student": a, "guide": guide_a}, {"student": p, "guide": guide_p}], None), a, p)


def run(quick, most):
    rows = []
    for size in [64] if quick else [size for size in (256, 1024, 4096, 8192, 32768) if size <= most]:
        names = [BASE, OURS]
        if size <= 256 and find_spec("sentence_transformers"):  # B x B x D in memory: gigabytes at 512
            names.append(PEER)
        rows += timed("gist", __file__, step, names, size, 1 if quick else max(2, min(25, 65536 // size)), BASE)
    found = {(row["name"], row["size"]): row for row in rows}
    reason = (
        "two softmaxes, the rule's weights and the divergence are a dozen passes over the block, most of them bound by "
        "memory when two threads share a cache"
    )
    bars = [
        bar(f"{OURS}, B = {size}: time", 1.4, found[OURS, size]["ratio"], "x four products", reason)
        for size in ([64] if quick else [size for size in (1024, 4096, 8192, 32768) if size <= most])
    ]
    kept = "three blocks of rows (the rule's weights are the third) and six matrices of the embeddings' size"
    for size, megabytes in [(4096, 60), (8192, 110)]:
        if quick or size > most:
            continue
        bars.append(bar(f"{OURS}, B = {size}: extra memory", megabytes, found[OURS, size]["mb"], "MB", kept))
    return rows, bars


if __name__ == "__main__":
    main(run, step, 64)
