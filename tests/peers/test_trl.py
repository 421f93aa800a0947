"""TRL: its DPO trainer's own loss, and our loss in its trainer as chapter 05 shows it."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: make peers")

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from mathlib import dpo_loss, sequence_log_prob

CHAPTERS = Path(__file__).parents[2] / "chapters"
WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[UNK]", "[PAD]", "[EOS]"]


def tokenizer():
    """A tokeniser made on the spot: nothing is downloaded."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")


def language_model(seed):
    torch.manual_seed(seed)
    size = len(SPECIAL) + len(WORDS)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=1, n_head=2, **none, **ends))


def snippet():
    """The one code block of chapter 05's text that names the trainer."""
    cells = json.loads((CHAPTERS / "05_dpo.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "DPOTrainer" in code]
    return code


@pytest.fixture
def names(tmp_path):
    """What the chapter's snippet takes as given: a policy that has left its reference, and pairs of unequal length."""
    generator = torch.Generator().manual_seed(0)
    count = {"prompt": 3, "chosen": 5, "rejected": 2}

    def text(longest):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(40, (length,), generator=generator))

    rows = [{name: text(longest) + " " for name, longest in count.items()} for _ in range(8)]
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "report_to": "none"}
    exact = {"bf16": False, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    return {
        "model": language_model(1),
        "reference": language_model(0),
        "args": DPOConfig(str(tmp_path), beta=0.3, **options, **exact),
        "pairs": Dataset.from_list(rows),
        "tokenizer": tokenizer(),
    }


CURVES = ["logps/chosen", "logps/rejected", *(f"rewards/{x}" for x in ("chosen", "rejected", "margins", "accuracies"))]


def value_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    value = trainer.compute_loss(trainer.model, batch)
    value.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return value.item(), gradients


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # the peer uses old names
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # what the trainer's default does on a CPU
def test_the_chapters_trainer_computes_the_peers_loss_and_trains(names):
    peer = DPOTrainer(
        copy.deepcopy(names["model"]),
        ref_model=copy.deepcopy(names["reference"]),
        args=names["args"],
        train_dataset=names["pairs"],
        processing_class=names["tokenizer"],
    )
    exec(snippet(), names)
    trainer = names["trainer"]
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert (batch["attention_mask"] == 0).any()  # there is padding,
        assert (batch["completion_mask"] < batch["attention_mask"]).any()  # and a prompt
        ours, our_gradients = value_and_gradient(trainer, batch)
        theirs, their_gradients = value_and_gradient(peer, batch)
        assert abs(theirs - torch.tensor(2.0).log().item()) > 1e-3
        assert ours == pytest.approx(theirs, rel=1e-5)
        torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-6)

    # while they train, what they log is the same too
    before = value_and_gradient(trainer, batches[0])[0]
    curves = []
    for each in (trainer, peer):
        each._metrics["train"].clear()  # of the batches above
        each.train()
        assert each.state.global_step == 4
        curves.append([[entry[name] for name in CURVES] for entry in each.state.log_history if "loss" in entry])
    assert torch.tensor(curves[0]) == pytest.approx(torch.tensor(curves[1]), rel=1e-4, abs=1e-5)
    assert len(curves[0]) == 4
    assert value_and_gradient(trainer, batches[0])[0] < before
    frozen = language_model(0).state_dict()
    torch.testing.assert_close(names["reference"].state_dict(), frozen, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "sigmoid_norm"])
def test_what_smoothing_and_averages_are_to_the_peer(names, loss_type):
    beta, epsilon = 0.3, 0.2
    names["args"].loss_type, names["args"].label_smoothing = [loss_type], epsilon
    trainer = DPOTrainer(
        names["model"],
        ref_model=names["reference"],
        args=names["args"],
        train_dataset=names["pairs"],
        processing_class=names["tokenizer"],
    )
    for batch in trainer.get_train_dataloader():
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)[:, 1:]
        log_probs = []
        for model in (names["model"], names["reference"]):
            with torch.no_grad():
                logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            log_probs += sequence_log_prob(logits, labels).chunk(2)
        lengths = (labels != -100).sum(dim=1).chunk(2) * 2
        policy_chosen, policy_rejected, reference_chosen, reference_rejected = log_probs
        flipped = policy_rejected, policy_chosen, reference_rejected, reference_chosen
        right = dpo_loss(*log_probs, beta=beta)
        expected = {
            "sigmoid": right,  # not smoothed at all
            "robust": ((1 - epsilon) * right - epsilon * dpo_loss(*flipped, beta=beta)) / (1 - 2 * epsilon),
            "sigmoid_norm": dpo_loss(*(x / n for x, n in zip(log_probs, lengths, strict=True)), beta=beta),
        }
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected[loss_type].item(), rel=1e-5)
        assert dpo_loss(*log_probs, beta=beta, label_smoothing=epsilon) != right
        assert expected["robust"] != right != expected["sigmoid_norm"]
