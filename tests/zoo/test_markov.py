"""The Markov chain: its exact law, and a masked model of it whose greedy texts the chain mostly allows."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from shiftscope.zoo import markov

ENTROPY = -sum(p * math.log(p) for p in markov.CHANCES)


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(markov.CHECKPOINT, local_files_only=True).eval()


# ---- the chain ------------------------------------------------------------------------------------------------------
def test_every_syllable_has_three_successors_and_is_as_often_reached_as_left():
    matrix_SS = markov.chain()
    wanted_SK = torch.tensor([markov.CHANCES] * 48, dtype=torch.float64)
    assert torch.equal(matrix_SS.sort(-1, descending=True).values[:, :3], wanted_SK)
    assert (matrix_SS > 0).sum(-1).eq(3).all()
    assert torch.allclose(matrix_SS.sum(0), torch.ones(48, dtype=torch.float64))
    assert not matrix_SS.diagonal().any()
    assert len(set(markov.SYLLABLES)) == 48


def test_drawn_walks_have_the_transitions_of_the_chain():
    walks_NT = markov.walks(400, 50, torch.Generator().manual_seed(1))
    found_SS = torch.zeros(48, 48)
    found_SS.index_put_((walks_NT[:, :-1].flatten(), walks_NT[:, 1:].flatten()), torch.ones(400 * 49), accumulate=True)
    assert not found_SS[markov.chain() == 0].any()
    shares = found_SS.gather(1, markov.successors()).sum(0) / found_SS.sum()
    # four standard errors of 19 600 draws
    assert shares.tolist() == pytest.approx(markov.CHANCES, abs=4 * 0.5 / math.sqrt(19_600))


def test_the_mean_nll_of_the_chains_own_texts_is_its_entropy_rate_and_all_of_them_are_legal():
    rows = markov.prompts(200, seed=7)
    nll = sum(markov.nll_nats(row["prompt"], row["reference"], floor=0.0) for row in rows) / len(rows)
    spread = math.sqrt(sum(p * math.log(p) ** 2 for p in markov.CHANCES) - ENTROPY**2)
    assert nll == pytest.approx(ENTROPY, abs=4 * spread / math.sqrt(200 * 88))
    assert {markov.verify(row["prompt"], row["reference"]) for row in rows} == {1.0}


def test_probabilities_follow_the_path_and_begin_at_the_end_of_the_prompt():
    follow = markov.successors().tolist()
    first, second, third = 5, follow[5][0], follow[follow[5][0]][2]
    names = [markov.SYLLABLES[i] for i in (first, second, third)]
    chances = markov.transition_probabilities(f"ba {names[0]}", f"{names[1]} {names[2]}")
    assert chances.tolist() == [0.7, 0.1]
    assert markov.nll_nats(names[0], " ".join(names[1:]), floor=0.0) == pytest.approx(-math.log(0.07) / 2)


def test_one_forbidden_step_has_infinite_nll_and_costs_the_floor_where_one_is_set():
    first, second = markov.SYLLABLES[0], markov.SYLLABLES[markov.successors()[0, 0]]
    answer = f"{second} {second}"  # no syllable follows itself
    assert markov.legal_rate(first, answer) == 0.5
    assert markov.nll_nats(first, answer, floor=0.0) == math.inf
    assert markov.nll_nats(first, answer) == pytest.approx(-(math.log(0.7) + math.log(1e-4)) / 2)


def test_masks_left_open_and_ends_are_no_syllables():
    first, second = markov.SYLLABLES[0], markov.SYLLABLES[markov.successors()[0, 0]]
    assert markov.transition_probabilities(first, f"{second} <mask> {second} <end>").tolist() == [0.7, 0.0, 0.0, 0.0]
    assert markov.verify(first, "") == 0.0
    with pytest.raises(ValueError, match="no transition"):
        markov.legal_rate(first, "")
    with pytest.raises(ValueError, match="no transition"):
        markov.nll_nats("", first)


def test_prompts_follow_from_their_seed_alone():
    assert markov.prompts(3, seed=1) == markov.prompts(3, seed=1) != markov.prompts(3, seed=2)
    assert len(markov.prompts(3, seed=1)[0]["prompt"].split()) == 8


# ---- the checkpoint -------------------------------------------------------------------------------------------------
def test_a_syllable_is_one_token_and_the_special_tokens_are_known():
    words = AutoTokenizer.from_pretrained(markov.CHECKPOINT, local_files_only=True)
    assert words.get_vocab() == markov.tokenizer().get_vocab()
    text = " ".join(markov.SYLLABLES)
    assert words(text)["input_ids"] == list(range(5, 53))
    assert words.decode(list(range(5, 53))) == text
    special = (words.pad_token_id, words.unk_token_id, words.mask_token_id, words.bos_token_id, words.eos_token_id)
    assert special == (0, 1, 2, 3, 4)
    assert words.decode([5, 2, 4], skip_special_tokens=True) == "ba"


def test_the_shipped_bound_is_what_the_card_says_and_not_below_the_chains_own(model):
    card = json.loads((markov.CHECKPOINT / "card.json").read_text(encoding="utf-8"))["figures"]
    found = markov.bound(model)
    assert found == pytest.approx(card["bound"]["value"], abs=1e-3)  # float32 sums in another order
    floor = (math.log(48) + 95 * ENTROPY) / 96
    assert floor - 0.03 < found < 1.2  # 0.03: the held-out texts' own scatter; 1.2: the unigram law has ln 48 = 3.87


@torch.no_grad()
def test_positions_may_be_given_may_go_far_beyond_training_and_only_their_differences_matter(model):
    assert set(model.config.layer_types) == {"full_attention"}
    assert model.config.max_position_embeddings == 512
    ids_BT = markov.canvases(1, torch.Generator().manual_seed(2)).ids_BT
    long_BT = torch.cat([ids_BT[:, :8], torch.full((1, 384), 2)], dim=1)
    places_BT = torch.arange(392)[None]
    plain = model(input_ids=long_BT).logits
    assert torch.equal(model(input_ids=long_BT, position_ids=places_BT).logits, plain)
    shifted = model(input_ids=long_BT, position_ids=places_BT + 120).logits
    assert torch.allclose(shifted, plain, atol=2e-3)  # angles up to 511 radians in float32
    assert plain.isfinite().all()


@torch.no_grad()
def test_next_to_the_text_in_sight_the_model_knows_the_three_successors(model):
    rows = markov.prompts(48, seed=11)
    words = markov.tokenizer()
    ids_NT = words([row["prompt"] for row in rows], return_tensors="pt")["input_ids"]
    canvas_NT = torch.cat([ids_NT, torch.full((48, 88), words.mask_token_id)], dim=1)
    law_NS = model(input_ids=canvas_NT).logits[:, 8, 5:].softmax(-1)
    truth_NS = markov.chain()[ids_NT[:, 7] - 5].float()
    assert (law_NS - truth_NS).abs().sum(-1).mean() / 2 < 0.1  # total variation; an even law has 0.94


@pytest.mark.slow
def test_greedy_texts_measure_what_the_card_says_and_the_first_masks_first_is_the_better_order(model):
    card = json.loads((markov.CHECKPOINT / "card.json").read_text(encoding="utf-8"))["figures"]
    measured = markov.figures(model)
    assert set(card) == {*measured, "training_loss"}
    for name, (value, unit) in measured.items():
        assert card[name]["unit"] == unit
        # one token that another machine picks otherwise changes what is written after it
        assert value == pytest.approx(card[name]["value"], abs=0.1 if name.startswith("nll") else 0.02)
    assert measured["legal_rate_first_16_of_192"][0] >= 0.95
    assert measured["legal_rate_first_16_of_192"][0] > measured["legal_rate_any_of_192"][0]


@pytest.mark.slow
def test_the_recipe_trains_and_writes_a_checkpoint_that_loads(tmp_path):
    folder = markov.train(tmp_path / "markov-masked", steps=40)
    trained = AutoModelForMaskedLM.from_pretrained(folder)
    assert markov.bound(trained) < math.log(53)  # from ln of the whole vocabulary towards ln 48
    assert (folder / "model.safetensors").stat().st_size < 1.5e6
