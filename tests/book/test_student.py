"""What the search box of chapter 04 loads: made from this corpus, small, and worth being asked."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nbformat import v4

from mathlib import mean_reciprocal_rank, search
from mathlib.book import data, minilm
from tools import student

CHAPTER = Path(__file__).parents[2] / "chapters" / "04_dual_encoder.ipynb"


@pytest.fixture(scope="module")
def stored():
    body = gzip.decompress(student.FILE.read_bytes())
    end = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:end])
    for name, (kind, size) in header["arrays"].items():
        header[name] = np.frombuffer(body, kind, size, end)
        assert end % header[name].itemsize == 0, f"{name} could not be read by a browser"
        end += header[name].nbytes
    assert end == len(body)
    return header


def test_it_is_made_from_this_corpus(stored):
    entries = data.docstrings()
    assert stored["corpus"] == student.corpus_digest(entries), "run: make student"
    assert stored["names"] == [entry.name for entry in entries]
    assert stored["summaries"] == [entry.query for entry in entries]
    assert len(stored["pieceVectors"]) == len(stored["known"]) * stored["dimensions"]
    assert len(stored["documentVectors"]) == len(entries) * stored["dimensions"]


def test_it_counts_the_words_of_every_document(stored):
    words = [data.words(entry.document) for entry in data.docstrings()]
    assert stored["lengths"].tolist() == list(map(len, words))
    assert len(stored["having"]) == len(stored["words"]) and stored["having"].sum() == len(stored["gaps"])
    start = stored["having"][: stored["words"].index("eigenvalues")].sum()
    part = slice(start, start + stored["having"][stored["words"].index("eigenvalues")])
    found = dict(zip(np.cumsum(stored["gaps"][part]).tolist(), stored["counts"][part].tolist(), strict=True))
    assert found == {i: many.count("eigenvalues") for i, many in enumerate(words) if "eigenvalues" in many}


def test_the_chapter_says_how_much_is_loaded():
    size = student.FILE.stat().st_size / 1e6
    text = "\n".join(cell.source for cell in v4.reads(CHAPTER.read_text(encoding="utf-8")).cells)
    assert size < 3 and re.findall(r'data-megabytes="([\d.]+)"', text) == [f"{size:.1f}"]


def test_it_finds_more_than_bm25(stored):
    """Whose mean reciprocal rank on the test queries is 0.558: lab 04."""
    entries = data.docstrings()
    _, tokenizer = minilm.load()
    test_ids = data.split(entries)[1]
    row = {stored["pieces"][number]: i for i, number in enumerate(stored["known"].tolist())}
    pieces, documents = (
        torch.from_numpy(stored[f"{kind}Steps"][:, None] * stored[f"{kind}Vectors"].reshape(-1, stored["dimensions"]))
        for kind in ("piece", "document")
    )
    queries = []
    for i in test_ids:
        known = [piece for piece in minilm.pieces(tokenizer, entries[i].query) if piece in row]
        weights = torch.tensor([1 + np.log(known.count(piece)) for piece in dict.fromkeys(known)]).float()
        queries.append(weights @ pieces[[row[piece] for piece in dict.fromkeys(known)]])
    ranked = search(torch.stack(queries), documents, k=10).indices
    assert mean_reciprocal_rank(ranked, data.relevant(entries, test_ids)) > 0.558
