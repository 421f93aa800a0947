"""sentence-transformers: its ranking, distillation and GISTEmbed losses, its miner, and our loss in its trainer."""

import json
import re
from pathlib import Path

import pytest
import torch

from mathlib import gist_embed_loss, info_nce, mine_hard_negatives

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: make peers")

from agreement import assert_agree
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import mine_hard_negatives as st_mine_hard_negatives
from sentence_transformers.util import pairwise_cos_sim
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

CHAPTERS = Path(__file__).parents[2] / "chapters"
WORDS = [f"w{i}" for i in range(40)]
# A tokeniser made on the spot: nothing is downloaded.
TOKENIZER = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
TOKENIZER.pre_tokenizer = Whitespace()


class PassThrough(torch.nn.Module):
    """A model whose embeddings are given: it picks one entry of its features."""

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER, unk_token="[UNK]")
    max_seq_length = 8

    def __init__(self, entry="student"):
        super().__init__()
        self.entry = entry

    def forward(self, features):
        return {"sentence_embedding": features[self.entry]}


def columns(*embeddings):
    return [{"student": x} for x in embeddings]


def random_texts(count, length, generator):
    """Texts of so many of the WORDS."""
    return [" ".join(WORDS[i] for i in torch.randint(40, (length,), generator=generator)) for _ in range(count)]


def static_model(seed=0):
    """Random vectors for 40 words; a text's embedding is the mean over its words."""
    torch.manual_seed(seed)
    return SentenceTransformer(modules=[StaticEmbedding(TOKENIZER, embedding_dim=16)], device="cpu")


# MultipleNegativesRankingLoss


def ranking_loss(temperature, **options):
    peer = losses.MultipleNegativesRankingLoss(PassThrough(), scale=1 / temperature, **options)
    return lambda *embeddings: peer(columns(*embeddings), None)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("block_size", [None, 3])
def test_in_batch(normal, temperature, block_size):
    ours = lambda a, p: info_nce(a, p, temperature=temperature, block_size=block_size)  # noqa: E731
    assert_agree(ours, ranking_loss(temperature), normal(0, 8, 5), normal(1, 8, 5))


@pytest.mark.parametrize("n", [1, 4])
def test_in_batch_and_every_anchors_own(normal, n):
    def ours(a, p, *negatives):
        return info_nce(a, p, torch.stack(negatives, dim=1), temperature=0.1)

    assert_agree(ours, ranking_loss(0.1), *[normal(seed, 8, 5) for seed in range(2 + n)])


def test_both_directions(normal):
    both = ranking_loss(0.1, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    assert_agree(lambda a, p: info_nce(a, p, temperature=0.1, symmetric=True), both, normal(0, 8, 5), normal(1, 8, 5))


@pytest.mark.parametrize("strength", [1.0, 9.0])
def test_hardness_is_a_rule(normal, strength):
    # each negative's exponential times e^(strength * its similarity), taken as a constant
    def ours(a, p, n):
        return info_nce(a, p, n, temperature=0.1, weigh=lambda s_p, s: (strength * s).exp())

    theirs = ranking_loss(0.1, hardness_mode="all_negatives", hardness_strength=strength)
    assert_agree(ours, theirs, normal(0, 8, 5), normal(1, 8, 5), normal(2, 8, 5))


# GISTEmbedLoss


def gist_embed(temperature, guides, **options):
    """The peer's loss, with the guide's embedding of each column beside the student's."""
    model, guide = PassThrough(), PassThrough("guide")
    peer = losses.GISTEmbedLoss(model, guide, temperature=temperature, **options)

    def loss(*embeddings):
        return peer([{"student": x, "guide": g} for x, g in zip(embeddings, guides, strict=True)], None)

    return loss


@pytest.mark.parametrize("contrast", [False, True], ids=["cross", "cross and self"])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3)])
@pytest.mark.parametrize("n", [0, 1])
def test_gist(normal, contrast, strategy, margin, n):
    students = [normal(seed, 32, 5) for seed in range(2 + n)]
    # the guide has another width, and an opinion: half of its positives are close, some score below 0
    guides = [normal(10 + seed, 32, 7) for seed in range(2 + n)]
    guides[1][:16] += 2 * guides[0][:16]
    scores = torch.cosine_similarity(guides[0], guides[1])
    assert (scores < 0).any()
    assert (scores > 0.5).any()
    blocks = {"contrast_anchors": contrast, "contrast_positives": contrast}

    def ours(a, p, *negatives):
        return gist_embed_loss(
            a,
            p,
            *[x[:, None] for x in negatives],
            guide_anchor=guides[0],
            guide_positive=guides[1],
            guide_negatives=guides[2][:, None] if n else None,
            temperature=0.1,
            lam=0.0,
            margin=margin,
            strategy=strategy,
            **blocks,
        )

    theirs = gist_embed(0.1, guides, margin=margin, margin_strategy=strategy, **blocks)
    assert_agree(ours, theirs, *students)


def test_gist_counts_no_anchor_as_its_own_negative(device):
    # the guide takes anchor and positive for the same: its similarity of an anchor to itself, 1, is then
    # not *greater* than that to the positive, and the peer keeps both self-pairs as negatives
    x = torch.eye(8, device=device)
    theirs = gist_embed(0.05, [x, x], contrast_anchors=True, contrast_positives=True)(x, x)
    ours = gist_embed_loss(
        x,
        x,
        guide_anchor=x,
        guide_positive=x,
        temperature=0.05,
        lam=0.0,
        contrast_anchors=True,
        contrast_positives=True,
    )
    assert theirs.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-6)  # 1 of 3 that are all alike
    assert ours.item() == pytest.approx(0, abs=1e-6)


# DistillKLDivLoss


def distilled(temperature, teacher_temperature, teacher_scores):
    """KL(teacher || student); the peer multiplies by the temperature's square, which we do not."""
    peer = losses.DistillKLDivLoss(
        PassThrough(),
        similarity_fct=pairwise_cos_sim,
        student_temperature=temperature,
        teacher_temperature=teacher_temperature,
    )
    return lambda *embeddings: peer(columns(*embeddings), teacher_scores) / temperature**2


def kl_alone(*args, **options):
    return gist_embed_loss(*args, lam=1.0, **options) - gist_embed_loss(*args, lam=0.0, **options)


@pytest.mark.parametrize("guide_temperature", [None, 0.5])
def test_kl_over_an_anchors_own_negatives(normal, guide_temperature):
    guide_anchor, guide_negatives = normal(10, 8, 7), normal(11, 8, 3, 7)
    guides = torch.cat(
        [guide_anchor[:, None], guide_negatives], dim=1
    )  # the positive is the anchor: nothing is removed
    teacher_scores = torch.cosine_similarity(guide_anchor[:, None], guides, dim=2)

    def ours(a, p, *negatives):
        return kl_alone(
            a,
            p,
            torch.stack(negatives, dim=1),
            guide_anchor=guide_anchor,
            guide_positive=guide_anchor,
            guide_negatives=guide_negatives,
            temperature=0.2,
            guide_temperature=guide_temperature,
            in_batch=False,
        )

    theirs = distilled(0.2, guide_temperature or 0.2, teacher_scores)
    assert_agree(ours, theirs, *[normal(seed, 8, 5) for seed in range(5)])


def test_kl_over_the_batch(normal):
    guide = normal(10, 8, 7)
    shifts = range(8)
    teacher_scores = torch.stack([torch.cosine_similarity(guide, guide.roll(-i, 0)) for i in shifts], dim=1)

    def ours(a, p):
        return kl_alone(a, p, guide_anchor=guide, guide_positive=guide, temperature=0.2)

    theirs = distilled(0.2, 0.2, teacher_scores)
    assert_agree(ours, lambda a, p: theirs(a, *[p.roll(-i, 0) for i in shifts]), normal(0, 8, 5), normal(1, 8, 5))


# mine_hard_negatives


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"margin": 0.1}, {"relative_margin": 0.1}),
        ({"margin": 0.05, "strategy": "absolute"}, {"absolute_margin": 0.05}),
    ],
    ids=["no margin", "relative", "absolute"],
)
def test_mining(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    texts = random_texts(60, 5, generator)
    documents, queries = texts[:40], texts[40:]
    # queries 0 and 20, 1 and 21, ... are the same text with two positives
    positives = [[q, 39 - q] for q in range(20)]
    model = static_model()
    pairs = Dataset.from_dict(
        {"query": queries + queries, "document": [documents[p[i]] for i in (0, 1) for p in positives]}
    )
    mined = st_mine_hard_negatives(
        pairs, model, corpus=documents, num_negatives=3, range_max=40, output_format="n-tuple", verbose=False, **theirs
    )
    assert len(mined) > 10
    embed = lambda texts: model.encode(texts, convert_to_tensor=True)  # noqa: E731
    _, indices = mine_hard_negatives(embed(queries), embed(documents), [set(p) for p in positives], k=3, **ours)
    for row in mined:
        q = queries.index(row["query"])
        assert {row[f"negative_{i}"] for i in (1, 2, 3)} == {documents[i] for i in indices[q]}


# Chapter 01, "Use it"


def value_and_gradient(model, texts, loss):
    """Of a loss of the library's form, on columns of texts: its value, and the gradient to the model's one weight."""
    model.zero_grad()
    value = loss([model.preprocess(column) for column in texts], None)
    value.backward()
    return value.item(), model[0].embedding.weight.grad.clone()


def snippet(chapter, word="SentenceTransformerTrainer"):
    """The one code block of a chapter's text that has the word."""
    cells = json.loads((CHAPTERS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in code]
    return code


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # what the trainer's default does on a CPU
@pytest.mark.parametrize("n", [0, 2])
def test_the_chapters_loss_trains_a_model_as_the_peers_does(n, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the trainer's default is a folder beside you
    generator = torch.Generator().manual_seed(0)
    texts = [random_texts(8, 4, generator) for _ in range(2 + n)]
    names = ["query", "document", "negative_1", "negative_2"]
    pairs = Dataset.from_dict(dict(zip(names, texts, strict=False)))
    model = static_model()
    names = {"model": model, "pairs": pairs}
    exec(snippet("01_infonce"), names)
    trainer = names["trainer"]
    assert trainer.args.batch_sampler == "no_duplicates"
    peer = losses.MultipleNegativesRankingLoss(model, scale=1 / trainer.loss.options["temperature"])

    before, gradient = value_and_gradient(model, texts, trainer.loss)
    expected, expected_gradient = value_and_gradient(model, texts, peer)
    assert before == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient)

    trainer.train()
    assert trainer.state.global_step >= 2
    assert value_and_gradient(model, texts, trainer.loss)[0] < before
