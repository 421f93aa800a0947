"""The code for sentence-transformers in chapters 02, 03, 04, 06 and 08, run as it stands in the text."""

import pytest
import torch

import mathlib
from mathlib import gist_embed_loss

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: make peers")

from datasets import Dataset
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import semantic_search
from test_sentence_transformers import random_texts, snippet, static_model, value_and_gradient

# Chapter 02, "Use it"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # what the trainer's default does on a CPU
@pytest.mark.parametrize("n", [0, 2])
def test_the_weighted_loss_of_the_chapter_trains_a_model(n, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the trainer's default is a folder beside you
    generator = torch.Generator().manual_seed(0)
    texts = [random_texts(8, 4, generator) for _ in range(2 + n)]
    texts[1][1] = texts[1][0]  # a false negative: anchors 0 and 1 have the same positive
    names = ["query", "document", "negative_1", "negative_2"]
    pairs = Dataset.from_dict(dict(zip(names, texts, strict=False)))
    model = static_model()
    names = {"model": model, "pairs": pairs}
    exec(snippet("02_false_negatives"), names)
    trainer = names["trainer"]

    # before the rule is trusted: the peer's loss
    plain, plain_gradient = value_and_gradient(model, texts, trainer.loss)
    peer = losses.MultipleNegativesRankingLoss(model, scale=1 / 0.05)
    expected, expected_gradient = value_and_gradient(model, texts, peer)
    assert plain == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(plain_gradient, expected_gradient)

    # afterwards the rule removes candidates: at least the copy, so the loss is smaller
    trainer.state.global_step = 100
    before, _ = value_and_gradient(model, texts, trainer.loss)
    assert before < plain

    # and what it removes is what cross-entropy over the rest gives
    with torch.no_grad():
        embedded = [model(model.preprocess(column))["sentence_embedding"] for column in texts]
        anchors, candidates = (torch.nn.functional.normalize(x) for x in (embedded[0], torch.cat(embedded[1:])))
        scores = anchors @ candidates.T
        own = scores.diagonal()[:, None]
        gone = scores > own - own.abs() * 0.05
        gone.fill_diagonal_(False)
        logits = scores.masked_fill(gone, -torch.inf) / 0.05
        assert gone[0, 1] and gone[1, 0]
        assert before == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.arange(8)).item(), rel=1e-5)
    assert [share.item() for share in names["shares"]] == pytest.approx([gone.float().mean().item()] * 2)

    logged = len(names["shares"])
    trainer.train()
    assert trainer.state.global_step >= 2
    assert len(next(iter(trainer.get_train_dataloader()))["query_offsets"]) == 7  # its copy waits for another batch
    assert len(names["shares"]) > logged
    assert value_and_gradient(model, texts, trainer.loss)[0] < plain


# Chapter 03, "Use it"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # what the trainer's default does on a CPU
def test_the_chapters_mined_column_holds_hard_negatives_and_trains(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the trainer's default is a folder beside you
    generator = torch.Generator().manual_seed(0)
    texts = random_texts(60, 5, generator)
    documents, queries = texts[:40], texts[40:]
    answers = [[q, 39 - q] for q in range(20)]
    model = static_model()
    names = {"model": model, "queries": queries, "documents": documents, "answers": answers}
    exec(snippet("03_hard_negatives"), names)

    scores = torch.cosine_similarity(
        model.encode(queries, convert_to_tensor=True)[:, None], model.encode(documents, convert_to_tensor=True), dim=2
    )
    rows = names["trainer"].train_dataset
    assert rows.column_names == ["query", "document", "negative"]
    assert len(rows) > 10
    for row in rows:
        q = queries.index(row["query"])
        assert row["document"] == documents[answers[q][0]]
        s_p = scores[q, answers[q]].min()
        limit = s_p - abs(s_p) * 0.05
        allowed = [d for d in range(40) if d not in answers[q] and scores[q, d] <= limit]
        hardest = max(scores[q, d] for d in allowed)
        negative = documents.index(row["negative"])
        assert negative in allowed
        assert scores[q, negative] == pytest.approx(hardest.item(), abs=1e-6)

    columns = [rows["query"], rows["document"], rows["negative"]]
    ours, _ = value_and_gradient(model, columns, names["trainer"].loss)
    theirs, _ = value_and_gradient(model, columns, losses.MultipleNegativesRankingLoss(model, scale=1 / 0.05))
    assert ours == pytest.approx(theirs, rel=1e-5)

    before = model[0].embedding.weight.detach().clone()
    names["trainer"].train()
    assert names["trainer"].state.global_step >= 2
    assert not torch.equal(model[0].embedding.weight, before)


# Chapter 04, "Use it"


def test_the_chapters_search_finds_what_the_peers_does(capsys):
    generator = torch.Generator().manual_seed(0)
    texts = random_texts(60, 5, generator)
    documents, queries = texts[:50], texts[50:]
    model = static_model()
    names = {"model": model, "documents": documents, "queries": queries}
    exec(snippet("04_dual_encoder", "encode_query"), names)

    expected = semantic_search(
        model.encode_query(queries, convert_to_tensor=True),
        model.encode_document(documents, convert_to_tensor=True),
        top_k=3,
    )
    scores = torch.tensor([[hit["score"] for hit in hits] for hits in expected])
    torch.testing.assert_close(names["scores"].cpu(), scores)
    assert names["ranked"].tolist() == [[hit["corpus_id"] for hit in hits] for hits in expected]

    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{query} {[documents[hit['corpus_id']] for hit in hits]}"
        for query, hits in zip(queries, expected, strict=True)
    ]


# Chapter 06, "Use it"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # what the trainer's default does on a CPU
def test_the_chapters_guide_teaches_on_texts_that_are_no_pairs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the trainer's default is a folder beside you
    generator = torch.Generator().manual_seed(0)
    columns = {name: [random_texts(8, 4, generator) for _ in range(2)] for name in ("pairs", "texts")}
    sets = {name: Dataset.from_dict(dict(zip(("query", "document"), x, strict=True))) for name, x in columns.items()}
    model, guide = static_model(0), static_model(1)
    given = guide[0].embedding.weight.detach().clone()
    scope = {"model": model, "guide": guide, **sets}
    exec(snippet("06_gist"), scope)
    trainer = scope["trainer"]

    student, frozen = (model.similarity(*(m.encode(x) for x in columns["texts"])).double() for m in (model, guide))
    log_s, log_g = ((x / 0.05).log_softmax(1) for x in (student, frozen))
    expected = 0.3 * (log_g.exp() * (log_g - log_s)).sum(1).mean().item()
    peer = losses.MultipleNegativesRankingLoss(model, scale=20)
    before = {name: value_and_gradient(model, columns[name], trainer.loss[name]) for name in columns}
    assert before["texts"][0] == pytest.approx(expected, rel=1e-4)
    assert before["pairs"][0] == pytest.approx(value_and_gradient(model, columns["pairs"], peer)[0], rel=1e-5)

    trainer.train()
    for name, (value, _) in before.items():
        assert value_and_gradient(model, columns[name], trainer.loss[name])[0] < value
    torch.testing.assert_close(guide[0].embedding.weight.detach(), given, rtol=0, atol=0)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_chapters_mask_and_divergence_are_the_guides(n):
    generator = torch.Generator().manual_seed(0)
    texts = [random_texts(8, 4, generator) for _ in range(2 + n)]
    model, guide = static_model(0), static_model(1)
    scope = {"mathlib": mathlib, "model": model, "guide": guide}
    exec(snippet("06_gist", "masked"), scope)

    # the function itself agrees with the peer in test_sentence_transformers.py
    embedded = [model(model.preprocess(column))["sentence_embedding"] for column in texts]
    judged = [guide(guide.preprocess(column))["sentence_embedding"].detach() for column in texts]
    expected = gist_embed_loss(
        *embedded[:2],
        torch.cat(embedded[2:]) if n else None,
        guide_anchor=judged[0],
        guide_positive=judged[1],
        guide_negatives=torch.cat(judged[2:]) if n else None,
        lam=1.0,
        margin=0.3,
    )
    model.zero_grad()
    expected.backward()
    expected_gradient = model[0].embedding.weight.grad.clone()
    value, gradient = value_and_gradient(model, texts, scope["masked"])
    assert value == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient)


# Chapter 08, "Use it"


def test_the_capstones_columns_are_hard_and_within_the_margin():
    generator = torch.Generator().manual_seed(0)
    texts = random_texts(60, 5, generator)
    queries, documents = texts[:30], texts[30:]
    documents[:15] = queries[:15]  # so that some positives score high enough to leave room below them
    names = {}
    exec(snippet("08_capstone", "with_mined_negatives"), names)
    model = static_model()
    mined = names["with_mined_negatives"](
        model, Dataset.from_dict({"query": queries, "document": documents}), k=2, margin=0.05
    )
    assert mined.column_names == ["query", "document", "negative_1", "negative_2"]
    assert len(mined) >= 15
    scores = torch.cosine_similarity(
        model.encode(queries, convert_to_tensor=True)[:, None], model.encode(documents, convert_to_tensor=True), dim=2
    )
    for row in mined:
        q = queries.index(row["query"])
        limit = scores[q, q] - abs(scores[q, q]) * 0.05
        allowed = sorted((scores[q, d].item() for d in range(30) if d != q and scores[q, d] <= limit), reverse=True)
        found = [scores[q, documents.index(row[f"negative_{i}"])].item() for i in (1, 2)]
        assert found == pytest.approx(allowed[:2], abs=1e-6)
