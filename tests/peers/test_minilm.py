"""sentence-transformers: the model as it is published, and as examples/finetune.py leaves it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mathlib.book import minilm

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed: make peers")

from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[2]
TEXTS = [
    "sort a list",
    "",
    " \n",
    "Façade naïve, 日本語, 🙂, ½ and x²",
    "np.linalg.norm(x, ord=None, axis=-1)",
    "unbelievabilities",
    "the boat is blue " * 300,  # longer than the 256 tokens that are read
    "x" * 300,  # a word too long to be one
]


def theirs(folder):
    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def test_the_published_model():
    published = theirs(minilm.checked(None, "model.safetensors").parent)
    assert_close(minilm.embed(*minilm.load(), TEXTS), published, rtol=0, atol=1e-6)


def test_it_loads_the_fine_tuned_model_as_it_is(tmp_path):
    options = "--pairs 60 --batch-size 8 --longest 16 --steps 1 --warm-up 0 --learning-rate 1e-3".split()
    files = ["--checkpoint", tmp_path / "checkpoint", "--save", tmp_path / "tuned"]
    subprocess.run([sys.executable, ROOT / "examples" / "finetune.py", *options, *files], check=True)
    model, tokenizer = minilm.load()
    published = minilm.embed(model, tokenizer, TEXTS)
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    model.load_state_dict(state["model"])
    ours = minilm.embed(model, tokenizer, TEXTS)
    assert (ours - published).abs().max() > 1e-2
    assert_close(ours, theirs(tmp_path / "tuned"), rtol=0, atol=1e-6)
    shutil.rmtree(tmp_path)  # it is large
