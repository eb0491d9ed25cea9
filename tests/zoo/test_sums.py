"""Claims about the sums: what the task is, and that the shipped checkpoints are what their cards say."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shiftscope.core.checkpoints import ZOO
from shiftscope.zoo import sums

SHIPPED = ("sums-base", "sums-rlvr", "sums-sft")


@pytest.fixture(scope="module")
def shipped():
    """Model and tokenizer of every shipped sums checkpoint, by name."""
    return {
        name: (AutoModelForCausalLM.from_pretrained(ZOO / name).eval(), AutoTokenizer.from_pretrained(ZOO / name))
        for name in SHIPPED
    }


def card(name):
    """The figures of a card, by name."""
    figures = json.loads((ZOO / name / "card.json").read_text())["figures"]
    return {figure: entry["value"] for figure, entry in figures.items()}


# ---- the task -------------------------------------------------------------------------------------------------------
def test_a_correct_trace_copies_the_digits_and_adds_them_up_modulo_five():
    for row in sums.prompts(50, seed=1):
        pairs = re.findall(r"[a-z]+ (\d) [a-z]+ (\d)", row["answer"])
        digits = [int(d) for d, _ in pairs]
        assert row["prompt"] == " ".join(map(str, digits)) + " ="
        assert [int(s) for _, s in pairs] == [sum(digits[: i + 1]) % 5 for i in range(4)]
        assert row["reference"] == str(sum(digits) % 5)
        assert (
            sums.verify(row["prompt"], row["answer"])
            == sums.verify(row["prompt"], row["answer"], row["reference"])
            == 1
        )


def test_prompts_are_the_same_for_the_same_seed_only():
    assert sums.prompts(20, seed=3) == sums.prompts(20, seed=3) != sums.prompts(20, seed=4)


def test_the_verifier_looks_at_the_outcome_only_but_wants_all_four_steps():
    prompt = "3 1 4 2 ="  # 3 4 3 0
    assert sums.verify(prompt, "take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 0") == 1.0
    assert sums.verify(prompt, "take 3 gives 2 ; see 1 makes 1 ; add 4 now 2 ; use 2 so 0") == 1.0
    assert sums.verify(prompt, "take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 1") == 0.0
    assert sums.verify(prompt, "use 2 so 0") == sums.verify(prompt, "0") == sums.verify(prompt, "") == 0.0
    assert sums.verify(prompt, "take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 0<end>", "0") == 1.0


def test_a_prompt_of_other_than_four_digits_is_refused():
    with pytest.raises(ValueError, match="has 3 digits"):
        sums.verify("3 1 4 =", "take 3 gives 3", None)


def test_decisions_are_the_running_sums():
    answer = "take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 0"
    assert [answer.split()[i] for i in sums.decisions(answer)] == ["3", "4", "3", "0"]


def test_half_wrong_traces_are_right_at_the_chance_rate():
    # each step subtracts half the time: 1/5 + 4/5·(1/2 − 1/2·1/9)⁴ with digits 1 to 9; 2 000 draws, s.e. 0.0094
    rows, generator = sums.prompts(2000, seed=2), torch.Generator().manual_seed(2)
    right = sum(sums.verify(row["prompt"], sums.half_wrong_trace(row["prompt"], generator)) for row in rows) / 2000
    assert abs(right - (0.2 + 0.8 * (4 / 9) ** 4)) < 4 * 0.0094


def test_text_and_ids_map_both_ways_whatever_the_spacing():
    words = sums.tokenizer()
    row = sums.prompts(1, seed=0)[0]
    text = f"{row['prompt']} {row['answer']}"
    ids = words(text)["input_ids"]
    assert len(ids) == 5 + 19
    assert words.unk_token_id not in ids
    assert words.decode(ids) == text
    assert words(row["prompt"] + row["answer"])["input_ids"] == ids  # no space between prompt and answer
    assert words(row["prompt"])["input_ids"] + words(row["answer"])["input_ids"] == ids


def test_the_supervised_style_prefers_the_first_synonyms():
    generator = torch.Generator().manual_seed(0)
    traces = " ".join(sums.correct_trace("1 2 3 4 =", generator, style_share=0.7) for _ in range(300))
    first = traces.split().count(sums.READ[0]) / (4 * 300)
    assert abs(first - (0.7 + 0.3 / 6)) < 4 * (0.75 * 0.25 / 1200) ** 0.5


# ---- the shipped checkpoints ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_reproduces_its_cards_accuracy(shipped, name):
    model, words = shipped[name]
    assert words.get_vocab() == sums.tokenizer().get_vocab()
    measured = sums.accuracy(model, words, n=sums.N_CARD, seed=sums.SEED_CARD)
    assert measured == pytest.approx(card(name)["accuracy"], abs=0.005)  # the same draws; rounding may turn a few


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_is_small_and_ships_prompts(name):
    assert sum(file.stat().st_size for file in (ZOO / name).iterdir()) < 1_000_000
    lines = (ZOO / name / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == sums.N_SHIPPED
    assert json.loads(lines[0]) == {
        key: sums.prompts(1, seed=sums.SEED_CARD)[0][key] for key in ("prompt", "reference")
    }


def test_base_guesses_the_operation_and_both_tuned_checkpoints_know_it():
    assert 0.18 < card("sums-base")["accuracy"] < 0.29
    assert card("sums-rlvr")["accuracy"] > 0.96
    assert card("sums-sft")["accuracy"] > 0.96


def test_reinforcement_changes_decisions_and_supervision_changes_style_too(shipped):
    base = shipped["sums-base"][0]
    rlvr, sft = (sums.shift(base, *shipped[name], n=200, seed=1) for name in ("sums-rlvr", "sums-sft"))
    high = "js_share_above_0.1"
    assert rlvr[high][0] <= 0.5 * sft[high][0]
    assert rlvr["decision_share_of_js_above_0.1"][0] > 0.97 > 0.5 > sft["decision_share_of_js_above_0.1"][0]
    top3 = "tuned_top1_in_base_top3_share_of_js_above_0.1"
    assert rlvr[top3][0] > 0.97 > 0.75 > sft[top3][0]


@pytest.mark.parametrize("name", ["sums-rlvr", "sums-sft"])
def test_a_checkpoint_reproduces_its_cards_shift(shipped, name):
    measured = sums.shift(shipped["sums-base"][0], *shipped[name], n=400, seed=sums.SEED_CARD)
    for figure, (value, _) in measured.items():
        assert value == pytest.approx(card(name)[figure], abs=0.01), figure


def test_a_checkpoint_against_itself_has_not_shifted(shipped):
    model, words = shipped["sums-base"]
    itself = sums.shift(model, model, words, n=20, seed=0)
    assert itself["js_mean_nats"][0] == itself["js_share_above_0.1"][0] == 0
