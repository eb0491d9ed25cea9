"""Claims about cross-sampling: which tokens carry a gain, against controls that switch as much elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from shiftscope.compare.swaps import summarise, swaps
from shiftscope.core import answers, checkpoints, decode
from shiftscope.core.answers import Compiling
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.swapping import Sweep

SUMS = "shiftscope.zoo.sums:verify"
SAMPLING = Sampling(temperature=1.0, max_new_tokens=24, seed=1)


@pytest.fixture(scope="module")
def pair():
    return checkpoints.load("sums-base"), checkpoints.load("sums-rlvr")


def compared(pair, *, limit=40, sweep=None, sampling=SAMPLING, batch_size=64, **more):
    sweep = sweep or Sweep(thresholds=(0.1,))
    return swaps(
        *pair,
        verifier=SUMS,
        limit=limit,
        sweep=sweep,
        sampling=sampling,
        loading=Compiling(batch_size=batch_size),
        **more,
    )


@pytest.fixture(scope="module")
def found(pair):
    return compared(pair, sweep=Sweep(thresholds=(0.69315, 0.1, -1.0)))


def of(table, **where):
    for name, value in where.items():
        table = table.filter(pc.equal(table[name], value))
    return table.sort_by([("text", "ascending"), ("sample", "ascending")])


# ---- replication ----------------------------------------------------------------------------------------------------
def test_a_twelfth_of_the_tokens_carries_the_gain_and_as_many_elsewhere_do_not(pair):
    result = compared(pair, limit=200, batch_size=200)
    assert result["accuracy_base"] < 0.35
    assert result["accuracy_tuned"] > 0.95
    assert result["forward_js_0.1_accuracy"] >= 0.95
    assert result["forward_js_0.1_effective_share"] <= 0.12
    assert result["forward_random_0.1_accuracy"] <= 0.45
    assert result["forward_entropy_0.1_accuracy"] <= 0.45
    assert result["reverse_js_0.1_accuracy"] <= 0.35
    assert result["reverse_random_0.1_accuracy"] >= 0.65
    assert result["reverse_entropy_0.1_accuracy"] >= 0.65
    assert result["forward_signed_minus_3_accuracy"] >= 0.95
    assert result["forward_signed_minus_3_switched_share"] < result["forward_js_0.1_switched_share"]
    strict = compared(pair, limit=200, batch_size=200, sweep=Sweep(thresholds=(0.1,), taus=(), match="effective"))
    assert strict["forward_random_0.1_accuracy"] < strict["forward_js_0.1_accuracy"] - 0.2
    assert strict["reverse_random_0.1_accuracy"] > strict["reverse_js_0.1_accuracy"] + 0.2


# ---- identities -----------------------------------------------------------------------------------------------------
def test_thresholds_below_zero_and_beyond_ln_2_are_the_models_alone(found):
    table = found.table
    for rule, forward, reverse in (("base", 0.69315, -1.0), ("tuned", -1.0, 0.69315)):
        alone = of(table, rule=rule)["token"].to_pylist()
        assert of(table, direction="forward", rule="js", value=forward)["token"].to_pylist() == alone
        assert of(table, direction="reverse", rule="js", value=reverse)["token"].to_pylist() == alone
    assert found["forward_js_-1_accuracy".replace("-", "minus_")] == found["accuracy_tuned"]
    assert found["reverse_js_0.69315_accuracy"] == found["accuracy_tuned"]


def test_the_models_alone_are_the_plain_samples_of_decode(pair, found):
    texts = answers.corpus_of(None, pair[1], 40)
    contexts = [tuple(pair[1].tokenizer(text.prompt)["input_ids"]) for text in texts]
    for rule, checkpoint in zip(("base", "tuned"), pair, strict=True):
        sampled = decode.sample(checkpoint, contexts, range(40), SAMPLING)
        assert [tuple(row) for row in of(found.table, rule=rule)["token"].to_pylist()] == sampled


def test_what_is_written_does_not_depend_on_blocks_batches_or_the_order_of_rows(pair, found):
    sweep = Sweep(thresholds=(0.69315, 0.1, -1.0), block=4)
    other = compared(pair, sweep=sweep, batch_size=7)
    assert other.table["answer"].to_pylist() == found.table["answer"].to_pylist()
    assert {name: other[name] for name in other.figures} == {name: found[name] for name in found.figures}
    shuffled = found.table.take(pa.array(np.random.default_rng(0).permutation(len(found.table))))
    again = summarise(shuffled)
    assert again.summary()["figures"] == found.summary()["figures"]
    assert again.verdict == found.verdict


def test_effective_switches_are_those_where_the_draws_differ(found):
    for row in of(found.table, direction="forward", rule="js", value=0.1).to_pylist():
        switched, primary, other, token = (np.array(row[name]) for name in ("switched", "primary", "other", "token"))
        assert row["n_switched"] == switched.sum()
        assert row["n_effective"] == (switched & (primary != other)).sum() == (token != primary).sum()
        assert (token == np.where(switched, other, primary)).all()
        assert (switched == (np.array(row["js_nats"]) > 0.1)).all()


def test_controls_switch_about_as_much_as_their_threshold(found):
    for direction in ("forward", "reverse"):
        rate = {}
        for key in ({"rule": "js", "value": 0.1}, {"rule": "random", "like": 0.1}, {"rule": "entropy", "like": 0.1}):
            rows = of(found.table, direction=direction, **key)
            rate[key["rule"]] = pc.sum(rows["n_switched"]).as_py() / pc.sum(rows["tokens"]).as_py()
        assert abs(rate["random"] - rate["js"]) < 0.06
        assert abs(rate["entropy"] - rate["js"]) < 0.06


def test_a_threshold_that_switches_nothing_has_no_controls(found):
    assert of(found.table, rule="random", like=0.69315).num_rows == 0
    assert of(found.table, rule="random", like=0.1).num_rows == 80


def test_a_budget_of_none_is_the_primary_alone(pair):
    result = compared(pair, limit=10, sweep=Sweep(thresholds=(0.05,), taus=(), controls=False, budget=0))
    assert result["forward_js_0.05_accuracy"] == result["accuracy_base"]


# ---- the result -----------------------------------------------------------------------------------------------------
def test_the_verdict_says_how_few_tokens_carry_how_much(found):
    share, carried = found.figures["forward_effective_share"], found.figures["forward_gain_carried_share"]
    assert found["forward_threshold_nats"] == 0.1
    assert found.verdict[0].startswith(
        f"Swapping {100 * share.value:.3g} % of tokens carries {100 * carried.value:.3g} % of the gain"
    )
    assert "at random positions" in found.verdict[0]
    assert found.verdict[1].startswith("Taking back ")
    assert carried.low <= carried.value <= carried.high
    assert found.figures["accuracy_base"].low < found["accuracy_base"] < found.figures["accuracy_base"].high


def test_panels_draw_the_curves_and_mark_swapped_tokens(found):
    panels = {panel.kind: panel for panel in found.panels}
    curve = next(panel for panel in found.panels if panel.title == "Are the shifted tokens enough?").table
    for series in set(curve["switched"].to_pylist()):
        first = of2(curve, series)[0]
        assert first["effective"] == 0
        assert first["accuracy"] == found["accuracy_base"]
    tokens = panels["texts"].table
    assert {"text", "position", "token", "token_id", "js_nats", "swapped", "source"} <= set(tokens.column_names)
    swapped = tokens.filter(tokens["swapped"])
    assert (swapped["js_nats"].to_numpy() > 0.1).all()
    listed = json.loads(tokens.schema.metadata[b"texts"])
    assert len(listed) == 80
    forward = swapped.filter(pc.less(swapped["text"], 40))
    assert set(forward["source"].to_pylist()) == {"tuned"}
    assert forward["tuned_wrote"].to_pylist() == forward["token"].to_pylist()
    assert all(a != b for a, b in zip(forward["base_wrote"].to_pylist(), forward["token"].to_pylist(), strict=True))


def of2(curve, series):
    return [row for row in curve.to_pylist() if row["switched"] == series]


def test_the_page_and_the_terminal_draw_it(found, tmp_path):
    from shiftscope import report

    page = report.write(found, tmp_path / "report.html") or tmp_path / "report.html"
    assert "Answers with swapped tokens" in page.read_text(encoding="utf-8")
    report.terminal(found)


def test_a_pair_without_a_gain_says_so(pair):
    result = swaps(
        pair[0],
        pair[0],
        verifier=SUMS,
        limit=12,
        texts=shipped(pair),
        sweep=Sweep(thresholds=(0.1,)),
        sampling=SAMPLING,
    )
    assert "no gain" in result.verdict[0]
    assert "forward_gain_carried_share" not in result.figures
    assert result["forward_js_0.1_switched_share"] == 0
    assert any("not measurably better" in note for note in result.notes)


def shipped(pair):
    return [{"prompt": text.prompt, "reference": text.reference} for text in answers.corpus_of(None, pair[1], 12)]


def test_several_samples_of_a_prompt_are_resampled_as_one(pair):
    sampling = Sampling(temperature=1.0, max_new_tokens=24, samples=3, seed=1)
    result = compared(pair, limit=12, sampling=sampling, sweep=Sweep(thresholds=(0.1,), taus=(), controls=False))
    assert result.figures["accuracy_base"].n == 36
    assert len(of(result.table, rule="base")) == 36
    answers_of_one = of(result.table, rule="base", text=0)["answer"].to_pylist()
    assert len(set(answers_of_one)) > 1


def test_an_interrupted_run_goes_on_and_gives_the_same(pair, tmp_path):
    calls = []

    def failing(prompt: str, answer: str, reference: str | None) -> float:
        calls.append(answer)
        if len(calls) == 45:
            raise RuntimeError("gone")
        return float(len(answer) % 2)

    sweep = Sweep(thresholds=(0.1,), taus=(), controls=False)
    arguments = {"verifier": failing, "limit": 20, "sweep": sweep, "sampling": SAMPLING}
    with pytest.raises(ValueError, match=r"failing fails on the answer '.*': RuntimeError: gone"):
        swaps(*pair, **arguments, parts=Parts(tmp_path))
    result = swaps(*pair, **arguments, parts=Parts(tmp_path, resume=True))
    assert len(calls) == 45 + 40
    assert result.summary()["figures"] == swaps(*pair, **arguments).summary()["figures"]


# ---- bad input ------------------------------------------------------------------------------------------------------
def test_bad_input_is_one_sentence(pair):
    with pytest.raises(ValueError, match="thresholds"):
        Sweep(thresholds=())
    with pytest.raises(ValueError, match="may be given once"):
        Sweep(thresholds=(0.1, 0.1))
    with pytest.raises(ValueError, match="is no verifier"):
        swaps(*pair, verifier="nonsense")
    with pytest.raises(ValueError, match="the vocabularies differ"):
        swaps("sums-base", "docs-base", verifier="exact")
    with pytest.raises(ValueError, match="no reference"):
        swaps(*pair, verifier="exact", texts=[{"prompt": "1 2 3 4 ="}], sampling=SAMPLING)
    with pytest.raises(ValueError, match="leaves no room"):
        swaps(*pair, verifier=SUMS, texts=[{"prompt": "1 " * 70, "reference": "1"}], sampling=SAMPLING)
