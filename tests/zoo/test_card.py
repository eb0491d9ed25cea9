"""Claims about saving a checkpoint: it reads back as it was measured, and its card says what was said of it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from shiftscope.core import answers, checkpoints, corpus
from shiftscope.zoo import card

SAID = {"about": "a tiny one – für Prüfungen", "recipe": "shiftscope.zoo.docs:train"}
FIGURES = {"loss": (1.25, "nats/token"), "share": (0.5, "share")}


@pytest.fixture
def small(docs):
    return docs[0].model, docs[0].tokenizer


def test_weights_tokenizer_and_card_read_back(small, tmp_path):
    folder = card.save(tmp_path / "deep" / "mine", *small, figures=FIGURES, **SAID)
    assert folder == tmp_path / "deep" / "mine"
    again = checkpoints.load(str(folder))
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in small[0].state_dict().items())
    assert again.tokenizer.get_vocab() == small[1].get_vocab()
    assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == {
        "name": "mine",
        **SAID,
        "licence": "Apache-2.0",
        "figures": {"loss": {"value": 1.25, "unit": "nats/token"}, "share": {"value": 0.5, "unit": "share"}},
    }
    assert "für Prüfungen" in (folder / "card.json").read_text(encoding="utf-8")  # for people to read
    assert not list(folder.glob("*.bin"))  # no pickles
    assert not (folder / "prompts.jsonl").exists()


def test_stored_weights_are_rounded_to_the_type_asked_for_and_the_model_given_is_not(small, tmp_path):
    model, tokenizer = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folder = card.save(tmp_path / "half", model, tokenizer, figures=FIGURES, dtype=torch.bfloat16, **SAID)
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.float32 for name, value in model.state_dict().items()
    )
    stored = checkpoints.load(str(folder), dtype="bfloat16").model.state_dict()
    assert all(torch.equal(stored[name], value.to(torch.bfloat16)) for name, value in before.items())
    whole = card.save(tmp_path / "whole", model, tokenizer, figures=FIGURES, **SAID)
    sizes = [(one / "model.safetensors").stat().st_size for one in (folder, whole)]
    assert sizes[0] < 0.6 * sizes[1]


def test_the_verifier_and_the_prompts_are_those_that_comparisons_find(small, tmp_path):
    rows = [{"prompt": "wie groß?", "reference": "3"}, {"prompt": "two\nlines"}]
    folder = card.save(
        tmp_path / "judged", *small, figures=FIGURES, verifier="some.module:verify", prompts=rows, **SAID
    )
    found = checkpoints.load(str(folder))
    assert answers.shipped_verifier(found) == "some.module:verify"
    assert [text.prompt for text in corpus.read(folder / "prompts.jsonl")] == [row["prompt"] for row in rows]
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "groß" in lines[0]
    plain = card.save(tmp_path / "plain", *small, figures=FIGURES, **SAID)
    assert answers.shipped_verifier(checkpoints.load(str(plain))) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused_before_anything_is_written(small, tmp_path, value):
    with pytest.raises(ValueError, match=f"the figure loss is {value} nats: a card holds finite numbers only"):
        card.save(tmp_path / "none", *small, figures={"loss": (value, "nats")}, **SAID)
    assert not (tmp_path / "none").exists()
