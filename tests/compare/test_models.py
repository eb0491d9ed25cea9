"""compare models: one pass gives what the methods give one by one, on one page."""

import json

import pytest

from shiftscope.compare import bytes_, layers, models, tokens
from shiftscope.core import paired
from shiftscope.core.answers import Compiling
from shiftscope.zoo import styles, sums

PROMPTS = [{"prompt": prompt["prompt"], "reference": prompt["reference"]} for prompt in sums.prompts(24, seed=5)]


@pytest.fixture(scope="module")
def found():
    return models("sums-base", "sums-rlvr", texts=PROMPTS)


def test_the_parts_are_those_of_the_methods_alone(found):
    alone = tokens("sums-base", "sums-rlvr", texts=PROMPTS, loading=Compiling(batch_size=64))
    assert found.table.equals(alone.table)
    assert all(found.all_figures()[name] == figure for name, figure in alone.figures.items())
    by_layer = layers("sums-base", "sums-rlvr", texts=PROMPTS)
    assert all(found.all_figures()[name] == figure for name, figure in by_layer.figures.items())
    assert [part.method for part in found.parts] == ["compare layers", "compare keys", "compare swaps"]


def test_both_models_run_once_over_every_batch(monkeypatch):
    calls = []
    original = paired._side
    monkeypatch.setattr(
        paired, "_side", lambda checkpoint, *rest: calls.append(checkpoint.name) or original(checkpoint, *rest)
    )
    models("styles-base", "styles-sft", texts=styles.probe_prompts(8, 0))
    batches, floor = 1, 1 + 8  # the noise floor runs the eight texts together and one by one
    assert calls.count("styles-base") == calls.count("styles-sft") == batches + floor


def test_the_verifier_that_ships_with_a_checkpoint_is_used_and_can_be_left_out(found):
    assert "accuracy_gain" in found.all_figures()
    without = models("styles-base", "styles-sft", texts=styles.probe_prompts(8, 0))
    assert [part.method for part in without.parts] == ["compare layers", "compare keys"]


def test_different_depths_leave_out_the_layers_with_a_note():
    from transformers import AutoModelForCausalLM

    from shiftscope.core import checkpoints

    base = checkpoints.load("sums-base")
    shallow = AutoModelForCausalLM.from_pretrained(checkpoints.ZOO / "sums-base", num_hidden_layers=1)
    shallow.config.name_or_path = ""
    other = checkpoints.wrap(shallow.eval(), base.tokenizer, "shallow")
    texts = [{"prompt": "3 1 4 1 =", "answer": "take 3 gives 3"}, {"prompt": "2 2 2 2 =", "answer": "add 2 is 2"}]
    result = models(base, other, texts=texts)
    assert "compare layers" not in [part.method for part in result.parts]
    assert any("different numbers of layers" in note for note in result.notes)


def test_saved_parts_stand_in_folders_of_their_own(found, tmp_path):
    found.save(tmp_path)
    assert json.loads((tmp_path / "layers" / "summary.json").read_text())["method"] == "compare layers"
    names = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert {"js_mean_nats", "alpha_terminal_delta", "window_stable", "transport_terminal_delta"} <= names.keys()


def test_models_with_different_vocabularies_are_compared_byte_by_byte():
    texts = [{"prompt": "3 1 4 1 =", "answer": " take 3 gives 3"}]
    result = models("sums-base", "docs-base", texts=texts)
    alone = bytes_("sums-base", "docs-base", texts=texts)
    assert result.method == "compare models"
    assert result.figures == alone.figures
    assert "the vocabularies differ" in result.notes[0]
