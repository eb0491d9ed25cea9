"""Counting to 31: a task whose answers' lengths follow from the prompt, and a masked model that has learnt it."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from shiftscope.zoo import counts


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(counts.CHECKPOINT, local_files_only=True).eval()


# ---- the task -------------------------------------------------------------------------------------------------------
def test_there_are_64_prompts_and_their_answers_stop_at_31():
    rows = counts.prompts(seed=0)
    assert len({row["prompt"] for row in rows}) == 64
    lengths = [len(row["reference"].split()) for row in rows]
    assert (min(lengths), max(lengths), sum(lengths) / 64) == (1, 32, 12.5)
    assert counts.right_answer("26 2") == "26 28 30"
    assert counts.right_answer("31 1") == "31"


def test_verify_asks_for_the_numbers_up_to_the_first_end_and_for_nothing_else():
    assert counts.verify("28 1", "28 29 30 31") == 1.0
    assert counts.verify("28 1", "28 29 30 31 <end> <end> 4") == 1.0
    assert counts.verify("28 1", "28 29 30 31", "28 29 30 31") == 1.0
    for wrong in ("28 29 30", "28 29 30 31 31", "", "<end> 28 29 30 31", "28 29 <mask> 31"):
        assert counts.verify("28 1", wrong) == 0.0


@pytest.mark.parametrize("prompt", ["5", "5 3", "32 1", "five 2", "5 2 1"])
def test_what_is_no_count_is_refused_in_a_sentence(prompt):
    with pytest.raises(ValueError, match="no start of 0 to 31 and step of 1 or 2"):
        counts.verify(prompt, "5")


def test_prompts_follow_from_their_seed_alone_and_there_are_64_at_most():
    assert counts.prompts(5, seed=1) == counts.prompts(5, seed=1) != counts.prompts(5, seed=2)
    with pytest.raises(ValueError, match="there are 64"):
        counts.prompts(65, seed=0)


def test_training_canvases_are_prompt_and_answer_as_the_tokenizer_cuts_them_then_ends():
    words, generator = counts.tokenizer(), torch.Generator().manual_seed(4)
    lengths = set()
    for _ in range(30):
        rows = counts.canvases(4, generator)
        length = rows.ids_BT.shape[1] - counts.PROMPT_TOKENS
        lengths.add(length)
        assert rows.answer_BT[:, counts.PROMPT_TOKENS :].all()
        assert not rows.answer_BT[:, : counts.PROMPT_TOKENS].any()
        for ids in rows.ids_BT.tolist():
            prompt = words.decode(ids[1:3])
            wanted = [*words(f"{prompt} {counts.right_answer(prompt)}")["input_ids"], *[words.eos_token_id] * 64]
            assert ids == wanted[: length + counts.PROMPT_TOKENS]
    assert counts.SHORTEST_CANVAS <= min(lengths) < 16 < 48 < max(lengths) <= counts.LONGEST_CANVAS


# ---- the checkpoint -------------------------------------------------------------------------------------------------
def test_a_number_is_one_token_a_start_goes_before_and_the_special_tokens_are_known():
    words = AutoTokenizer.from_pretrained(counts.CHECKPOINT, local_files_only=True)
    assert words.get_vocab() == counts.tokenizer().get_vocab()
    assert words("5 2")["input_ids"] == [words.bos_token_id, 10, 7]
    assert words("5 7 9", add_special_tokens=False)["input_ids"] == [10, 12, 14]
    special = (words.pad_token_id, words.unk_token_id, words.mask_token_id, words.bos_token_id, words.eos_token_id)
    assert special == (0, 1, 2, 3, 4)
    assert words.decode([3, 10, 7, 4], skip_special_tokens=True) == "5 2"


def test_the_checkpoint_measures_what_its_card_says(model):
    card = json.loads((counts.CHECKPOINT / "card.json").read_text(encoding="utf-8"))["figures"]
    measured = counts.figures(model)
    assert set(card) == {*measured, "training_loss"}
    for name, (value, unit) in measured.items():
        assert card[name]["unit"] == unit
        # bounds: float32 sums in another order; shares: one tie of 64 prompts may fall otherwise
        assert value == pytest.approx(card[name]["value"], abs=2e-3 if name == "bound" else 0.02)


def test_with_room_the_model_is_right_and_too_short_a_canvas_is_as_wrong_as_it_must_be(model):
    rows = counts.prompts(seed=0)
    for masks in (8, 24):
        answers = counts.filled(model, [row["prompt"] for row in rows], masks=masks)
        fits = [len(row["reference"].split()) <= masks for row in rows]
        right = [counts.verify(row["prompt"], text) == 1.0 for row, text in zip(rows, answers, strict=True)]
        # an answer that does not fit cannot be right; of those that fit two in 64 may fail
        assert sum(fits) - 2 <= sum(right) <= sum(fits)


@torch.no_grad()
def test_the_first_look_at_an_empty_canvas_shows_ends_behind_the_answer_and_none_within(model):
    words = counts.tokenizer()
    for prompt in ("0 1", "8 1", "20 2", "31 2"):
        ids_T = words(prompt)["input_ids"]
        canvas = torch.tensor([[*ids_T, *[words.mask_token_id] * 64]])
        seen = model(input_ids=canvas).logits[0, counts.PROMPT_TOKENS :].argmax(-1) == words.eos_token_id
        length = len(counts.right_answer(prompt).split())
        assert not seen[:length].any()
        assert seen[length:].all()


def test_there_is_a_position_for_every_token_of_the_longest_canvas_and_no_more(model):
    assert model.config.max_position_embeddings == counts.PROMPT_TOKENS + counts.LONGEST_CANVAS == 67


@pytest.mark.slow
def test_the_recipe_trains_and_writes_a_checkpoint_that_loads(tmp_path):
    folder = counts.train(tmp_path / "counts-masked", steps=40)
    trained = AutoModelForMaskedLM.from_pretrained(folder)
    assert counts.bound(trained) < 2.5  # ln 37 = 3.61 before the first step: ends are learnt first
    assert (folder / "model.safetensors").stat().st_size < 1.5e6
