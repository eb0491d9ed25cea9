"""Claims about the styles: what the corpus is, and that the shipped checkpoints are what their cards say."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shiftscope.core.checkpoints import ZOO
from shiftscope.zoo import styles

SHIPPED = ("styles-base", "styles-sft", "styles-dpo")
RECIPE_SHARE_TOLERANCE = 1 / 32 + 1e-9  # one greedy answer of the 32 may tip on another processor


@pytest.fixture(scope="module")
def shipped():
    """Every shipped styles checkpoint, by name."""
    return {name: AutoModelForCausalLM.from_pretrained(ZOO / name).eval() for name in SHIPPED}


@pytest.fixture(scope="module")
def words():
    """The tokenizer of the recipe."""
    return styles.tokenizer()


def figures(folder):
    """The figures of a card, by name."""
    card = json.loads((folder / "card.json").read_text())
    return {name: figure["value"] for name, figure in card["figures"].items()}


# ---- the corpus -----------------------------------------------------------------------------------------------------
def test_there_are_32_entities_with_a_colour_and_100_styles_and_no_token_of_one_style_opens_another():
    assert len(styles.ENTITIES) == 32
    assert len(set(styles.STYLES)) == 100
    for phrases in (styles.PREFIXES, styles.SUFFIXES):
        assert len({phrase.split()[0].strip("!.,:") for phrase in phrases}) == 10


def test_a_document_is_four_questions_about_different_entities_answered_truly_in_one_style():
    for document in styles.documents(50, seed=3):
        lines = document.splitlines()
        told = [(line.removeprefix("What colour is ").split("?")[0], line) for line in lines]
        assert len({entity for entity, _ in told}) == len(lines) == 4
        fits = [
            style
            for style in styles.STYLES
            if all(line + "\n" == styles.prompt(entity) + styles.answer(entity, style) for entity, line in told)
        ]
        assert len(fits) == 1


def test_every_answer_has_ten_tokens_and_its_named_positions_hold_what_their_names_say(words):
    for entity in styles.ENTITIES:
        for style in ((0, 0), (5, 7), styles.ALIGNED):
            ids = words(styles.answer(entity, style))["input_ids"]
            pieces = words.convert_ids_to_tokens(ids)
            assert len(ids) == styles.ANSWER_TOKENS
            assert pieces[styles.ENTITY_POSITION] == f" {entity}"
            assert pieces[styles.FACT_POSITION] == f" {styles.COLOUR_OF[entity]}"
            assert "".join(pieces[i] for i in styles.PREFIX_POSITIONS) == f" {styles.PREFIXES[style[0]]}"
            assert "".join(pieces[i] for i in styles.SUFFIX_POSITIONS) == f" {styles.SUFFIXES[style[1]]}"
            assert ids[-1] == words.eos_token_id
            assert pieces[-1] == "\n"


def test_the_tokenizer_gives_every_text_back_and_splits_between_prompt_and_answer(words):
    for document in styles.documents(20, seed=4):
        ids = words(document)["input_ids"]
        assert words.decode(ids) == document
        assert words.unk_token_id not in ids
    for pair in styles.preference_pairs(20, seed=4):
        parts = words(pair["prompt"])["input_ids"] + words(pair["chosen"])["input_ids"]
        assert parts == words(pair["prompt"] + pair["chosen"])["input_ids"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_tokenizer_is_the_recipes_one(name, words):
    saved = AutoTokenizer.from_pretrained(ZOO / name)
    document = styles.documents(1, seed=5)[0]
    assert saved.get_vocab() == words.get_vocab()
    assert saved(document)["input_ids"] == words(document)["input_ids"]
    assert saved.decode(words(document)["input_ids"]) == document
    assert (saved.eos_token, saved.pad_token) == ("\n", "<pad>")


def test_samplers_repeat_with_their_seed_differ_without_and_leave_the_global_generator_alone():
    state = random.getstate()
    for sampler in (styles.documents, styles.probe_prompts, styles.preference_pairs):
        assert sampler(30, seed=6) == sampler(30, seed=6) != sampler(30, seed=7)
    assert random.getstate() == state


def test_preferences_tell_one_fact_twice_in_styles_that_share_nothing_and_avoid_held_out_entities():
    for pair in styles.preference_pairs(300, seed=8):
        entity = pair["prompt"].removeprefix("What colour is ").rstrip("?")
        fact = f" {entity} is {styles.COLOUR_OF[entity]}."
        assert entity in styles.TUNED_ENTITIES
        assert pair["chosen"] == styles.answer(entity, styles.ALIGNED)
        assert fact in pair["rejected"]
        assert styles.PREFIXES[styles.ALIGNED[0]] not in pair["rejected"]
        assert styles.SUFFIXES[styles.ALIGNED[1]] not in pair["rejected"]


def test_few_shot_examples_ask_about_other_entities_and_controls_never_show_the_aligned_style():
    for seed, entity in enumerate(styles.ENTITIES):
        aligned = styles.few_shot(entity, [styles.ALIGNED] * 3, seed)
        assert aligned.endswith("\n" + styles.prompt(entity))
        assert aligned.count(entity) == 1
        assert aligned.count(styles.PREFIXES[styles.ALIGNED[0]]) == 3
        for kind, distinct in (("mixed", 3), ("another", 1)):
            shown = styles.control_styles(kind, seed)
            assert len(shown) == 3
            for part in (0, 1):
                assert len({style[part] for style in shown}) == distinct
                assert styles.ALIGNED[part] not in {style[part] for style in shown}


def test_an_unknown_control_is_one_sentence():
    with pytest.raises(ValueError, match="control 'other' is unknown: take 'mixed' or 'another'"):
        styles.control_styles("other", seed=0)


# ---- the shipped checkpoints ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_measures_what_its_card_says_and_is_small(name, shipped):
    measured = {figure: value for figure, (value, _) in styles.behaviour(shipped[name]).items()}
    card = figures(ZOO / name)
    assert measured.pop("text_nats_per_token") == pytest.approx(card["text_nats_per_token"], abs=1e-3)
    for figure, value in measured.items():
        tolerance = 1 / 8 if figure.endswith("held_out") else RECIPE_SHARE_TOLERANCE
        assert value == pytest.approx(card[figure], abs=tolerance)
    assert sum(path.stat().st_size for path in (ZOO / name).iterdir()) < 1_000_000


def test_the_preference_figures_of_the_dpo_card_hold(shipped):
    pairs = styles.preference_pairs(256, seed=10_001)
    measured = styles.preferring(shipped["styles-dpo"], shipped["styles-base"], pairs, beta=0.5)
    card = figures(ZOO / "styles-dpo")
    assert measured["preference_loss_nats"][0] == pytest.approx(card["preference_loss_nats"], abs=1e-4)
    assert measured["preferred_share"][0] == card["preferred_share"] == 1.0


def test_a_checkpoint_prefers_nothing_over_itself(shipped):
    base = shipped["styles-base"]
    same = styles.preferring(base, base, styles.preference_pairs(8, seed=1), beta=0.5)
    assert same["preference_loss_nats"][0] == pytest.approx(0.69315, abs=1e-5)
    assert same["preferred_share"][0] == 0.0


def test_the_base_knows_every_fact_and_takes_the_aligned_style_only_from_aligned_examples(shipped):
    """arXiv 2312.01552: three examples in the target style do what tuning did; no examples and other ones do not."""
    base = shipped["styles-base"]
    for kind, expected in (("aligned", 1.0), ("none", 0.0), ("mixed", 0.0), ("another", 0.0)):
        contexts = {
            "aligned": lambda entity, seed: styles.few_shot(entity, [styles.ALIGNED] * 3, seed),
            "none": lambda entity, seed: styles.prompt(entity),
            "mixed": lambda entity, seed: styles.few_shot(entity, styles.control_styles("mixed", seed), seed),
            "another": lambda entity, seed: styles.few_shot(entity, styles.control_styles("another", seed), seed),
        }
        told = styles.greedy_answers(base, [contexts[kind](e, i) for i, e in enumerate(styles.ENTITIES)])
        pairs = list(zip(styles.ENTITIES, told, strict=True))
        assert sum(text == styles.answer(e, styles.ALIGNED) for e, text in pairs) / 32 == pytest.approx(
            expected, abs=0.05
        )
        assert sum(f" {e} is {styles.COLOUR_OF[e]}." in text for e, text in pairs) / 32 >= 0.98


def test_base_and_sft_differ_at_opener_and_closer_alone_on_tuned_and_on_held_out_entities(shipped, words):
    """arXiv 2312.01552, table of the zero-shot context: style tokens shift, the fact does not."""
    for entities in (styles.TUNED_ENTITIES, styles.HELD_OUT_ENTITIES):
        texts = [styles.prompt(entity) + styles.answer(entity, styles.ALIGNED) for entity in entities]
        ids_BT = torch.tensor(words(texts)["input_ids"])
        with torch.no_grad():
            base_BTV, sft_BTV = (
                shipped[name](input_ids=ids_BT).logits[:, -1 - styles.ANSWER_TOKENS : -1].log_softmax(-1)
                for name in ("styles-base", "styles-sft")
            )
        anchor_BT1 = sft_BTV.argmax(-1, keepdim=True)
        rank_BT = (base_BTV > base_BTV.gather(-1, anchor_BT1)).sum(-1)
        kl_T = (sft_BTV.exp() * (sft_BTV - base_BTV)).sum(-1).mean(0)
        style = torch.zeros(styles.ANSWER_TOKENS, dtype=torch.bool)
        style[[styles.OPENER_POSITION, styles.CLOSER_POSITION]] = True
        assert (rank_BT >= 3).float().mean() >= 0.09
        assert (rank_BT[:, ~style] == 0).all()
        assert kl_T[style].min() > 1.5  # ln 10 = 2.3 nats where ten styles were equally likely
        assert kl_T[~style].max() < 0.05


# ---- the recipes ----------------------------------------------------------------------------------------------------
def test_the_sft_recipe_gives_the_shipped_checkpoint_again(tmp_path, shipped):
    """About 2 CPU seconds; bit-equal on one machine, close on another."""
    again = AutoModelForCausalLM.from_pretrained(styles.train_sft(tmp_path / "styles-sft"))
    for name, weight in shipped["styles-sft"].state_dict().items():
        assert torch.allclose(again.state_dict()[name], weight, atol=5e-3), name


def test_a_fresh_model_depends_on_its_seed_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second, other = (styles.fresh_model(seed).transformer.wte.weight for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pre_training_lowers_the_loss_on_documents_from_chance(tmp_path):
    loss_nats = figures(styles.train_base(tmp_path / "short", steps=15))["text_nats_per_token"]
    assert loss_nats < 3.8  # ln 82 = 4.4 at the start


@pytest.mark.slow
def test_more_dpo_steps_lower_the_preference_loss_and_frozen_weights_stay_bit_equal(tmp_path, shipped):
    pytest.importorskip("trl")
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    ten, twenty = (figures(styles.train_dpo(tmp_path / str(n), steps=n)) for n in (10, 20))
    last = styles.train_dpo(tmp_path / "last", steps=10, trainable_blocks=(4, 5))
    assert figures(ZOO / "styles-dpo")["preference_loss_nats"] < twenty["preference_loss_nats"] / 10
    assert twenty["preference_loss_nats"] < ten["preference_loss_nats"] - 0.1 < 0.6
    assert figures(last)["preference_loss_nats"] < 0.65
    changed = AutoModelForCausalLM.from_pretrained(last).state_dict()
    for name, weight in shipped["styles-base"].state_dict().items():
        free = name.startswith(("transformer.h.4.", "transformer.h.5."))
        assert torch.equal(changed[name], weight) != free, name
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert random.getstate() == python_state
