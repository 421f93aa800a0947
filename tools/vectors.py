"""What MiniLM makes of the corpus, once, for the labs (make vectors): mathlib/book/minilm.safetensors.

Five minutes of two cores, and small differences between processors, are kept out of the labs. Each query and document
goes through the model, and each word piece of the corpus by itself; the pieces are reduced to the principal components
of the whole vocabulary. All are rounded to a byte a number. A test makes some of them anew.
"""

import torch
from safetensors.torch import save_file

from mathlib.book import data, minilm

DIMENSIONS, LONGEST = 256, 256


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


if __name__ == "__main__":
    main()
