"""generate masked: what windows and length control save on checkpoints whose truth is known, beside their baselines."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from shiftscope.core.answers import Loading
from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising import masked_model
from shiftscope.core.denoising.decodings import Decoder
from shiftscope.core.denoising.length import Length
from shiftscope.core.denoising.scope import Scope
from shiftscope.core.masked import Filling
from shiftscope.core.parts import Parts
from shiftscope.generate.masked import masked, steps
from shiftscope.zoo import markov as chain

STARTS = (4, 8, 16, 32, 64)
PROMPTS = 32


@cache
def model(name):
    return masked_model.load(name)


@cache
def counted(**settings):
    return masked(model("counts-masked"), limit=PROMPTS, extent=Length(**settings))


def rho(start, **settings):
    return counted(length="rho-eos", max_new_tokens=start, **settings)


# ---- replication: length --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", STARTS)
def test_rho_eos_reaches_the_length_from_any_start(start):
    found = rho(start)
    assert found["reward_mean"] >= 0.99
    assert found["effective_after_cut"] >= 0.85
    assert found["rows_mean"] <= 0.35 * counted(max_new_tokens=64)["rows_mean"]


def test_a_fixed_canvas_is_right_only_where_it_is_long_enough():
    right = {start: counted(max_new_tokens=start)["reward_mean"] for start in STARTS}
    assert right[4] < right[8] < right[16] < 0.9
    assert right[32] == right[64] == 1
    assert counted(max_new_tokens=64, early_stop=False)["effective_after_cut"] < 0.25  # ends, up to the last position


@pytest.mark.slow
def test_the_two_guards_are_what_makes_it_work():
    """Without the floor wanted positions are cut; without the hold and the early stop the canvas swings and calls double."""
    for start in (4, 32, 64):
        assert rho(start, floor=False)["reward_mean"] < 0.92
        loose = rho(start, hold=False, early_stop=False)
        assert loose["reward_mean"] == 1
        assert loose["calls_mean"] > 1.5 * rho(start)["calls_mean"]
    edits = rho(64, hold=False, early_stop=False).table["edit_tokens"].to_pylist()
    assert max(map(len, edits)) > 2 * max(map(len, rho(64).table["edit_tokens"].to_pylist()))


@pytest.mark.slow
def test_the_published_code_depends_on_its_start():
    """Its tail signal without guards: frozen at the longest canvas from some starts, cut too short from others."""
    code = {"signal": "tail", "floor": False, "hold": False, "freeze": True, "early_stop": False}
    right = {start: rho(start, **code)["reward_mean"] for start in (16, 32, 64)}
    assert right[64] == 1
    assert rho(64, **code)["calls_mean"] == 64  # nothing was shortened
    assert right[16] < 0.95
    assert right[32] < 0.95


@pytest.mark.parametrize(
    ("scope", "filling"),
    [
        (Scope("blocks", block=8), Filling()),
        (Scope("window", inner=16, outer=32, refresh=4), Filling()),
        (Scope(), Filling(threshold=0.9)),
    ],
    ids=["blocks", "window", "several a call"],
)
def test_length_control_composes(scope, filling):
    found = masked(
        model("counts-masked"), limit=PROMPTS, scope=scope, filling=filling,
        extent=Length(length="rho-eos", max_new_tokens=4),
    )  # fmt: skip
    assert found["reward_mean"] >= 0.96
    assert found["rows_mean"] < rho(4)["rows_mean"]


# ---- replication: windows -------------------------------------------------------------------------------------------
@cache
def walked(**scope):
    return masked(model("markov-masked"), limit=4, scope=Scope(**scope), extent=Length(max_new_tokens=192))


def nll(found):
    rows = found.table.to_pylist()
    return sum(chain.nll_nats(row["prompt"], row["answer"]) for row in rows) / len(rows)


@pytest.mark.slow
def test_a_window_keeps_quality_at_a_fifth_of_the_token_forwards():
    """Beside the full decoder with the same candidates: the full one without a restriction also differs in its order."""
    same_candidates = walked(method="window", inner=16, outer=0, refresh=1)
    found, stale = walked(method="window", refresh=16), walked(method="window", refresh=16, renew=False)
    assert same_candidates["rows_left_by_all"] == 1
    assert found["rows_left_by_pruning"] <= 0.20
    assert found["reward_mean"] == pytest.approx(same_candidates["reward_mean"], abs=0.015)
    assert stale["reward_mean"] < same_candidates["reward_mean"] - 0.02
    # a likelihood above the chain's own (0.80 nats) is mode seeking: both have it alike, and vary as much
    assert nll(found) == pytest.approx(nll(same_candidates), abs=0.15)
    assert found["distinct_4_grams_share"] == pytest.approx(same_candidates["distinct_4_grams_share"], abs=0.05)
    assert nll(stale) > 2 * nll(found)


def test_token_forwards_per_token_stay_level_with_a_window_and_grow_without():
    def rows_per_token(scope, tokens):
        found = masked(model("markov-masked"), limit=1, scope=scope, extent=Length(max_new_tokens=tokens))
        return found["rows_per_token"]

    window = Scope("window", inner=8, outer=16, refresh=16)
    growth = rows_per_token(window, 120) / rows_per_token(window, 40)
    assert rows_per_token(Scope(), 120) / rows_per_token(Scope(), 40) == pytest.approx(128 / 48)
    assert growth < 1.4


# ---- the command ----------------------------------------------------------------------------------------------------
def test_each_saving_is_told_apart_and_they_multiply():
    found = masked(
        model("counts-masked"), limit=8, filling=Filling(order="left_to_right", per_call=2),
        scope=Scope("window", inner=8, outer=16, refresh=4),
    )  # fmt: skip
    left = [found[f"rows_left_by_{cause}"] for cause in ("ends", "parallel", "pruning")]
    assert found["rows_left_by_parallel"] == pytest.approx(0.5, abs=0.05)  # two positions a call
    assert all(share < 1 for share in left)
    assert left[0] * left[1] * left[2] == pytest.approx(found["rows_left_by_all"])
    assert found["calls_mean"] * 2 < 64


def test_a_plain_run_saves_nothing_and_says_so():
    found = masked(model("markov-masked"), limit=2, extent=Length(max_new_tokens=12))
    assert found["rows_left_by_all"] == 1
    assert "nothing was saved" in found.verdict[1]
    assert found["rows_mean"] == 12 * (8 + 12)
    assert found["calls_per_token"] == 1


def test_accounting_follows_the_lengths_of_the_canvas():
    row = {
        "first_tokens": 4, "edit_tokens": [10, 6], "prompt_tokens": 2, "whole_rows": 6 + 12 + 8, "calls": 3, "filled": 6,
        "rows": 13,
    }  # fmt: skip
    assert steps(row) == {"to_the_end": 120.0, "one_by_one": 52.0, "several": 26.0, "computed": 13.0}


def test_the_record_tells_the_order_and_its_probabilities():
    found = masked(model("markov-masked"), limit=1, extent=Length(max_new_tokens=10))
    row = found.table.to_pylist()[0]
    assert sorted(row["position"]) == list(range(8, 18))
    assert row["call"] == list(range(1, 11))
    assert [row["ids"][place - 8] for place in row["position"]] == row["token"]
    assert row["logp_mean_nats"] == pytest.approx(sum(row["logp_nats"]) / 10)
    order = next(panel for panel in found.panels if panel.kind == "heat")
    assert len(order.table) == 10


def test_holes_are_filled_between_what_stands_there():
    prompts = [{"prompt": "5 2 5 7 [[2]] 13 15 <mask> 19 21 <end>"}, {"prompt": "28 2"}]
    found = masked(model("counts-masked"), prompts=prompts).table.to_pylist()
    assert found[0]["answer"] == "5 2 5 7 9 11 13 15 17 19 21"
    assert (found[0]["stopped"], found[0]["calls"], found[0]["rows"]) == ("filled", 3, 3 * 13)
    assert (found[1]["answer"], found[1]["stopped"], found[1]["infilled"]) == ("28 30", "end", False)


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    settings = {
        "limit": 12, "filling": Filling(temperature=1.0), "loading": Loading(batch_size=4),
        "extent": Length(length="rho-eos", max_new_tokens=8),
    }  # fmt: skip
    whole = masked(model("counts-masked"), **settings)

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        masked(model("counts-masked"), **settings, parts=Parts(tmp_path), advance=stop)
    resumed = masked(model("counts-masked"), **settings, parts=Parts(tmp_path, resume=True))
    assert resumed.table.equals(whole.table)
    assert resumed.figures == whole.figures
    with pytest.raises(ValueError, match=r"extent\.length = 'rho-eos', now it is 'fixed'"):
        masked(model("counts-masked"), **settings | {"extent": Length()}, parts=Parts(tmp_path, resume=True))


@pytest.mark.parametrize("length", ["fixed", "rho-eos"])
def test_texts_do_not_depend_on_the_batch(length):
    settings = {"limit": 6, "samples": 2, "filling": Filling(temperature=1.0, seed=5)}
    settings["extent"] = Length(length=length, max_new_tokens=16)
    together, alone = (
        masked(model("counts-masked"), **settings, loading=Loading(batch_size=size)).table for size in (6, 1)
    )
    for column in ("ids", "position", "call", "rows", "edit_tokens", "stopped"):
        assert together[column].to_pylist() == alone[column].to_pylist()


def test_the_model_is_left_as_it_was():
    opened = masked_model.load("counts-masked")
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    attention = opened.model.config._attn_implementation
    opened.model.train()
    masked(opened, limit=2, scope=Scope("window", inner=4, outer=8))
    assert opened.model.training
    assert opened.model.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in opened.model.state_dict().items())


def test_the_verifier_that_ships_judges_the_prompts_that_ship_and_no_others():
    assert "reward_mean" in masked(model("counts-masked"), limit=2).figures
    own = masked(model("counts-masked"), prompts=[{"prompt": "5 2", "answer": "5"}])
    assert "reward_mean" not in own.figures
    assert any("no verifier" in note for note in own.notes)
    assert any("1 records hold an answer, which was not read" in note for note in own.notes)
    judged = masked(model("counts-masked"), prompts=[{"prompt": "5 2"}], verifier="shiftscope.zoo.counts:verify")
    assert judged["reward_mean"] == 1


def test_a_model_that_never_learnt_to_end_is_named():
    found = masked(
        model("markov-masked"), limit=2, extent=Length(length="rho-eos", max_new_tokens=8, longest=24, grow=4)
    )
    assert any("did not learn to fill a text up with ends" in note for note in found.notes)
    assert not any("did not learn" in note for note in rho(4).notes)
    assert any("reads 67 tokens" in note for note in rho(4).notes)


def test_what_the_decoder_keeps_of_the_law_is_a_figure():
    drawn = masked(model("markov-masked"), limit=1, filling=Filling(temperature=1.0), extent=Length(max_new_tokens=4))
    assert drawn["preserves"] == "exact_if_consistent"
    assert Decoder(Filling(temperature=1.0)).preserves.reason in drawn.verdict[2]
    assert rho(4)["preserves"] == "no"


def deberta():
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    words = model("counts-masked").tokenizer
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=len(words), **sizes)).eval()
    return masked_model.adapted(Opened("a deberta", network, words))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "docs-base"}, "it is a causal language model .*generate bytes"),
        ({"mask_token": "[MASK]"}, "'[MASK]' is no token of counts-masked"),
        ({"extent": Length(max_new_tokens=65)}, "a prompt of 3 tokens and 65 hidden ones do not fit"),
        ({"scope": Scope("window", inner=16, outer=65)}, "the outer window has 65 positions, and no text has more than 64"),
        ({"scope": Scope("window", inner=65, outer=0)}, "the inner window has 65 positions"),
        ({"prompts": [{"prompt": "5 [[3]]"}], "extent": Length(length="rho-eos")}, "hides positions of its own"),
        ({"samples": 2}, "the texts would all be equal"),
        ({"samples": 0}, "at least one text per prompt"),
        ({"template": "chat"}, "has no chat template"),
        ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl is not a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_a_sentence(settings, sentence):
    settings = {"model": model("counts-masked"), **settings}
    with pytest.raises(ValueError, match=sentence.replace("[", r"\[")) as refused:
        masked(settings.pop("model"), **settings)
    assert len(str(refused.value).splitlines()) == 1


def test_models_that_lack_what_a_method_needs_are_refused():
    endless = replace(model("counts-masked"), end_ids=())
    with pytest.raises(ValueError, match="has no end token, and rho-eos reads the share of ends"):
        masked(endless, limit=1, extent=Length(length="rho-eos"))
    assert not any("without an end" in note for note in masked(endless, limit=1, extent=Length(max_new_tokens=4)).notes)
    prompts = [{"prompt": "5 2"}]
    with pytest.raises(ValueError, match="use method full or blocks"):
        masked(deberta(), prompts=prompts, scope=Scope("window", inner=2, outer=4))
    assert masked(deberta(), prompts=prompts, scope=Scope("blocks"), extent=Length(max_new_tokens=4))["texts"] == 1


def test_the_command_line_takes_every_setting(shiftscope, monkeypatch, tmp_path):
    from shiftscope import generate

    monkeypatch.setitem(generate.METHODS, "masked", masked)
    arguments = ["generate", "masked", "counts-masked", "--method", "window", "--length", "rho-eos", "--limit", 3]
    code, _, err = shiftscope(*arguments, "--inner", 8, "--outer", 16, "--max-new-tokens", 8, "--out", tmp_path)
    assert (code, (tmp_path / "report.html").is_file()) == (0, True), err
    code, _, err = shiftscope("generate", "masked", "docs-base")
    assert code == 2
    assert "generate bytes" in err
