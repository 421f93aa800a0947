"""Every function by every way that torch has to look at it without numbers, or with numbers of any batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tracing import APART, CALLS, WAYS, outcome

LOSSES = ("info_nce", "gist_embed_loss")
REFUSED = "RuntimeError: info_nce and gist_embed_loss do not work under torch.vmap: call them for each batch in turn"


@pytest.fixture(scope="module")
def outcomes():
    script = Path(__file__).with_name("tracing.py")
    result = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in APART])
@pytest.mark.parametrize("name", CALLS)
def test_it_needs_no_numbers_or_says_that_it_does(bad_input, name, way):
    refused = way == "vmap" and name.startswith(LOSSES)
    assert outcome(way, name) == (REFUSED if refused else "ok")


@pytest.mark.parametrize("way", APART)
@pytest.mark.parametrize("name", CALLS)
def test_it_can_be_traced(outcomes, name, way):
    if torch.__version__ < "2.13" and (name, way) == ("attention, grouped, a mask for each head, weights", "export"):
        pytest.skip("torch 2.10's export takes a bound of its own for one of the caller's")
    assert outcomes[f"{name} / {way}"] == "ok"
