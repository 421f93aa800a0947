"""What MiniLM makes of the corpus, once, for the labs (make vectors): mathlib/book/minilm.safetensors.

Five minutes of two cores, and small differences between processors, are kept out of the labs. Each query and document
goes through the model, and each word piece of the corpus by itself; the pieces are reduced to the principal components
of the whole vocabulary. All are rounded to a byte a number. A test makes some of them anew.

    python tools/vectors.py EMBEDDINGS

writes mathlib/book/tuned.safetensors instead, from what a run of examples/finetune.py left with --embeddings (make
tuned): the directions that a guide's similarities need.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mathlib.book import data, minilm

DIMENSIONS, LONGEST, TUNED_DIMENSIONS = 256, 256, 192


def main() -> None:
    model, tokenizer = minilm.load()
    entries = data.docstrings()
    texts = [entry.query for entry in entries] + [entry.document for entry in entries]
    every = minilm.piece_vectors(model, range(tokenizer.get_vocab_size()))
    mean = every.mean(0)
    basis = torch.linalg.svd((every - mean).double(), full_matrices=False).Vh[:DIMENSIONS].T.float()
    tensors = {"mean": mean, "basis": basis, "step": ((every - mean) @ basis).abs().max() / 127}
    found = {piece for text in texts for piece in minilm.pieces(tokenizer, text)}
    ids = torch.tensor(sorted(map(tokenizer.token_to_id, found)))
    tensors["ids"] = ids.to(torch.int16)
    tensors["pieces"] = minilm.in_steps((every[ids] - mean) @ basis, tensors["step"])
    embedded = minilm.embed(model, tokenizer, texts, longest=LONGEST)
    tensors["queries"], tensors["documents"] = minilm.in_steps(embedded, embedded.abs().max() / 127).chunk(2)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, minilm.FILE)


def tuned(file: Path) -> None:
    both = torch.cat([load_file(file)[name] for name in ("queries", "documents")]).double()
    # about 0, not about the mean: what is to stay as it is are the cosines
    both = both @ torch.linalg.svd(both, full_matrices=False).Vh[:TUNED_DIMENSIONS].T
    queries, documents = minilm.in_steps(both, both.abs().max() / 127).chunk(2)
    save_file({"queries": queries.contiguous(), "documents": documents.contiguous()}, minilm.TUNED)


if __name__ == "__main__":
    tuned(Path(sys.argv[1])) if sys.argv[1:] else main()
