"""The zoo as a whole: every checkpoint has a card, a recipe and prompts, and together they stay small."""

import importlib
import json

import pytest

from shiftscope import zoo
from shiftscope.core import checkpoints, corpus
from shiftscope.core.denoising import decoders
from shiftscope.zoo import __main__ as make

NAMES = sorted(path.parent.name for path in zoo.FOLDER.glob("*/card.json"))


def test_every_shipped_checkpoint_can_be_trained_again_and_no_other():
    assert set(make.RECIPES) == set(NAMES) == {card["name"] for card in zoo.cards()}
    with pytest.raises(ValueError, match="no recipe for nothing: the zoo has sums-base"):
        make.main(["nothing"])


def test_all_files_together_stay_under_forty_megabytes():
    assert sum(path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file()) < 40e6


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_it_is_and_names_a_recipe_that_exists(name):
    card = json.loads((zoo.FOLDER / name / "card.json").read_text())
    assert {"name", "about", "licence", "recipe", "figures"} <= card.keys()
    module, _, function = card["recipe"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert card["figures"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_prompts_can_be_read_by_their_model(name):
    texts = corpus.read(zoo.FOLDER / name / "prompts.jsonl")
    if checkpoints.kind_named(name) == "causal":
        checkpoint = checkpoints.load(name)
        contexts = [corpus.context_ids(checkpoint, text) for text in texts]
    else:
        checkpoint = decoders.opened(name)
        contexts = [canvas.ids for canvas in decoders.canvases(checkpoint, texts, room=1, samples=1)]
    unknown = checkpoint.tokenizer.unk_token_id
    for ids in contexts:
        assert 0 < len(ids) <= checkpoint.context_length
        assert unknown is None or unknown not in ids
