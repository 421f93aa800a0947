"""What the search box of chapter 04 loads: a static student of MiniLM and BM25's counts, pages/_static/student.bin.

`make student` trains it, in a minute: MiniLM's vectors of word pieces by themselves, moved by InfoNCE on the training
pairs. The vectors of pieces and documents are then cut to the documents' principal directions and rounded to a byte a
number. The file is gzip of a JSON header, after its length in four bytes, and of the arrays that it names.
"""

import functools
import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mathlib import DualEncoder, info_nce
from mathlib.book import data, minilm
from mathlib.book.text import TextEncoder, Vocabulary
from mathlib.book.training import train

FILE = Path(__file__).parents[1] / "pages" / "_static" / "student.bin"
DIMENSIONS = 96
QUERY, DOCUMENT = 40, 32  # the most pieces that are read


def corpus_digest(entries) -> str:
    """What a file must have been made from."""
    texts = json.dumps([[entry.name, entry.query, entry.document] for entry in entries])
    return hashlib.sha256(texts.encode()).hexdigest()


def trained(entries, tokenizer) -> tuple[Vocabulary, torch.Tensor, torch.Tensor]:
    """The student's vocabulary, its vectors of pieces [pieces, 256] and of documents [entries, 256]."""
    asked, texts = [entry.query for entry in entries], [entry.document for entry in entries]
    train_ids = data.split(entries)[0]
    vocabulary, start = minilm.static(tokenizer, entries, train_ids)
    model = DualEncoder(TextEncoder(vocabulary, start=start))
    queries, documents = vocabulary.bags(asked, longest=QUERY), vocabulary.bags(texts, longest=DOCUMENT)
    train(
        model,
        queries.rows(train_ids),
        documents.rows(train_ids),
        functools.partial(info_nce, temperature=0.05),
        seed=10,
        epochs=8,
        learning_rate=0.005,
        falling=True,
    )
    with torch.no_grad():
        return vocabulary, model.query_encoder.vectors.weight[1:].clone(), model.encode_documents(documents)


def in_bytes(vectors: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each row as whole numbers of its own step: int8, and the steps."""
    steps = vectors.abs().amax(1).clamp(min=1e-12) / 127
    return minilm.in_steps(vectors, steps[:, None]).numpy(), steps.float().numpy()


def counted(entries) -> tuple[list[str], dict[str, np.ndarray]]:
    """The words of the documents, and for each those that have it, as gaps, and how often: an inverted index."""
    bags = [Counter(data.words(entry.document)) for entry in entries]
    words = sorted({word for bag in bags for word in bag})
    having: dict[str, list[tuple[int, int]]] = {word: [] for word in words}
    for i, bag in enumerate(bags):
        for word, count in bag.items():
            having[word].append((i, count))
    gaps = [np.diff([i for i, _ in having[word]], prepend=0) for word in words]
    counts = [min(count, 255) for word in words for _, count in having[word]]
    return words, {
        "having": np.array([len(gap) for gap in gaps], np.uint16),
        "lengths": np.array([bag.total() for bag in bags], np.uint16),
        "gaps": np.concatenate(gaps).astype(np.uint16),
        "counts": np.array(counts, np.uint8),
    }


def main() -> None:
    torch.set_num_threads(1)
    entries = data.docstrings()
    tokenizer = minilm.load()[1]
    vocabulary, pieces, documents = trained(entries, tokenizer)
    directions = torch.linalg.svd(documents, full_matrices=False).Vh[:DIMENSIONS].T
    rarity = torch.tensor(list(vocabulary.rarity.values()), dtype=torch.float64)
    piece_bytes, piece_steps = in_bytes(rarity[:, None] * pieces @ directions)
    document_bytes, document_steps = in_bytes(nn.functional.normalize(documents @ directions, dim=1))
    words, index = counted(entries)
    arrays = {
        "pieceSteps": piece_steps,
        "documentSteps": document_steps,
        "known": np.array([tokenizer.token_to_id(piece) for piece in vocabulary.index], np.uint16),
        **index,
        "pieceVectors": piece_bytes,
        "documentVectors": document_bytes,
    }
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # each stands at a multiple of its size
    header = {
        "corpus": corpus_digest(entries),
        "dimensions": DIMENSIONS,
        "longest": QUERY,
        "pieces": [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])],
        "words": words,
        "names": [entry.name for entry in entries],
        "summaries": [entry.query for entry in entries],
        "arrays": {name: [array.dtype.name, array.size] for name, array in arrays.items()},
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join([len(text).to_bytes(4, "little"), text, *(array.tobytes() for array in arrays.values())])
    FILE.write_bytes(gzip.compress(body, 9, mtime=0))
    print(f"wrote {FILE.name}, {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
