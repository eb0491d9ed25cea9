"""generate any-order: what is hidden is filled and scored, with its cost, its law and its record."""

import json

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from shiftscope.core.answers import Loading
from shiftscope.core.checkpoints import Opened
from shiftscope.core.denoising import any_subset
from shiftscope.core.denoising.gapped import Gapped
from shiftscope.core.denoising.speculation import Speculation
from shiftscope.core.parts import Parts
from shiftscope.generate.any_order import any_order
from shiftscope.zoo import anyorder

PROMPTS = [
    {"id": "middle", "prompt": "return the [[6]] of the key and the[[3]]"},
    {"id": "scored", "prompt": "return the[[]] of the key", "answer": " value and the name"},
    {"id": "end", "prompt": "the name of[[8]]"},
    {"id": "mask", "prompt": f"the {anyorder.MASK} of the key"},
]


@pytest.fixture(scope="module")
def model():
    words = anyorder.tokenizer(["return the value of the key and the name of the file " * 20])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16, "initializer_range": 0.4, "dropout": 0.0}
        ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        net = XLNetLMHeadModel(XLNetConfig(vocab_size=len(words), **sizes, **ids)).eval()
    return any_subset.adapted(Opened("tiny", net, words))


def test_holes_are_filled_answers_scored_and_calls_counted(model, tmp_path):
    result = any_order(model, prompts=PROMPTS, samples=2)
    rows = result.table.to_pylist()
    assert [row["given"] for row in rows] == [True, *[False] * 6]
    assert result["tokens_written"] == 2 * (9 + 8 + 1)
    assert result["calls"] == sum(row["calls"] for row in rows if not row["given"]) <= result["tokens_written"]
    assert result["most_calls_per_token"] <= 1
    assert result["calls_at_most_tokens"] is True
    assert result["rows_per_token"] > result["calls_per_token"]
    assert result.provenance["preserves"] == "exact"
    assert "The law is exact" in result.verdict[1]
    for row in rows:
        if not row["given"]:
            assert len(row["position"]) == row["hidden"] == sum(row["written"])
            assert row["marked"].count("⟦") == {"middle": 2, "end": 1, "mask": 1}[row["id"]]
            assert row["filled"] == row["marked"].replace("⟦", "").replace("⟧", "") or "\ufffd" in row["marked"]
            # float32 networks: what was drawn from, against one joint call
            assert -sum(row["logp_nats"]) == pytest.approx(row["nll_nats"], abs=1e-3)
    assert result.panels[0].title == "Filled texts"
    result.save(tmp_path / "out")


def test_a_given_answer_costs_what_separate_calls_say(model):
    result = any_order(model, prompts=PROMPTS[1:2])
    found = result.table.to_pylist()[0]
    assert result["given_nll_nats_per_token"] == pytest.approx(found["nll_nats"] / found["hidden"])
    alone = any_order(model, prompts=[{"prompt": "return the value and the name of the key"}], hide=0.4)
    assert [row["given"] for row in alone.table.to_pylist()] == [True, False]
    assert (found["calls"], found["call"]) == (1, [1] * found["hidden"])
    assert found["nll_nats"] == pytest.approx(-sum(found["logp_nats"]))
    assert model.tokenizer.decode(found["token"]) == PROMPTS[1]["answer"]
    assert "tokens_written" not in result.figures


def test_the_density_of_any_subset_is_that_of_separate_calls_token_by_token(model):
    """Words in brackets, not next to each other: one call against the draft mask walked position by position."""
    row = any_order(model, prompts=[{"prompt": "return the⟦ value⟧ of the⟦ key and⟧ the name"}]).table.to_pylist()[0]
    assert (row["given"], row["hidden"], row["calls"]) == (True, len(row["position"]), 1)
    walked = Gapped(0, model.tokenizer("return the value of the key and the name")["input_ids"], tuple(row["position"]))
    for token, logp in zip(row["token"], row["logp_nats"], strict=True):
        own_V = model.draft([walked], [1])[0, 0].double().log_softmax(-1)
        assert float(own_V[token]) == pytest.approx(logp, abs=1e-4)  # float32 networks
        walked.write(token, logp)


@pytest.mark.parametrize("how", [Speculation(), Speculation(draft="ngram"), Speculation("sequential")], ids=str)
def test_texts_do_not_depend_on_batches(model, how):
    one, many = (
        any_order(model, prompts=PROMPTS, speculation=how, loading=Loading(batch_size=size)) for size in (1, 4)
    )
    by_id = {(row["id"], row["given"]): row["filled"] for row in many.table.to_pylist()}
    assert {(row["id"], row["given"]): row["filled"] for row in one.table.to_pylist()} == by_id


def test_an_interrupted_run_goes_on_and_gives_the_same(model, tmp_path):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 2:
            raise Stop

    settings = {"prompts": PROMPTS, "loading": Loading(batch_size=1)}
    with pytest.raises(Stop):
        any_order(model, **settings, parts=Parts(tmp_path / "parts"), advance=stop)
    seen = []
    resumed = any_order(
        model, **settings, parts=Parts(tmp_path / "parts", resume=True), advance=lambda *now: seen.append(now)
    )
    assert resumed.table.equals(any_order(model, **settings).table)
    assert seen[-1] == ("filling", 4, 4)


def test_as_published_the_first_draft_of_every_round_is_kept(model):
    result = any_order(model, prompts=PROMPTS, speculation=Speculation(bonus=False, ahead=0))
    assert result["kept_at_1"] == 1
    assert result["tokens_per_round"] >= 1
    assert not any("laws that an earlier call gave" in note for note in result.notes)


def test_a_sampler_that_changes_the_law_says_so(model):
    result = any_order(model, prompts=PROMPTS, speculation=Speculation("independent", k=3))
    assert result.provenance["preserves"] == "no"
    assert "The law is not the model's" in result.verdict[1]
    assert "kept_at_1" not in result.figures
    assert result["calls"] == 3 + 3 + 1  # 9, 8 and 1 tokens, three a call


def test_an_ngram_draft_reports_its_own_calls(model):
    result = any_order(model, prompts=PROMPTS, speculation=Speculation(draft="ngram"))
    assert result["auxiliary_per_token"] == pytest.approx(result["calls"] / result["tokens_written"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hide": 1.5}, "hide is 1.5"),
        ({"samples": 2, "speculation": Speculation(temperature=0)}, "samples is 2 at temperature 0"),
        ({"prompts": [{"prompt": "nothing hidden"}]}, "has no hidden position"),
        ({"prompts": [{"prompt": "x [[200]]"}]}, "reads at most 96: shorten it"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        any_order(model, **{"prompts": PROMPTS, **settings})


def test_a_causal_checkpoint_is_named_with_what_to_use():
    with pytest.raises(ValueError, match=r"'lists-base' cannot be loaded.*generate bytes"):
        any_order("lists-base", prompts=PROMPTS)


@pytest.mark.parametrize("draft", ["self", "ngram"])
def test_a_masked_model_is_filled_by_fewer_calls_in_an_order_fixed_in_advance(draft):
    prompts = [{"prompt": "ha li no ho[[48]]"}]
    result = any_order("markov-masked", prompts=prompts, speculation=Speculation(draft=draft, k=8))
    row = result.table.to_pylist()[0]
    assert result.provenance["preserves"] == "exact_if_consistent"
    assert "an order fixed in advance" in result.verdict[1]
    assert (row["position"] == sorted(row["position"])) == (draft == "ngram")
    assert result["most_calls_per_token"] <= 1
    assert draft == "ngram" or result["calls_per_token"] < 0.7
    # what was drawn from, against the copies that score: float32 networks
    assert -sum(row["logp_nats"]) == pytest.approx(row["nll_nats"], abs=1e-3)
    given = any_order("markov-masked", prompts=[{"prompt": row["marked"]}], speculation=Speculation(draft="ngram"))
    assert given.table["filled"].to_pylist() == [row["filled"]]
    assert draft == "self" or given.table["nll_nats"][0].as_py() == pytest.approx(row["nll_nats"], abs=1e-3)


def test_the_shipped_prompts_are_filled_by_fewer_calls_than_tokens(tmp_path):
    result = any_order("docs-anyorder", limit=8)
    assert result["calls_per_token"] < 0.9
    assert result["given_nll_nats_per_token"] < 4.5
    saved = json.loads((result.save(tmp_path) / "summary.json").read_text())
    assert saved["provenance"]["base"]["name"] == "docs-anyorder"
