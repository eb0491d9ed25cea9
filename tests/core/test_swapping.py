"""Claims about a sweep of crossings: what its settings are, and that controls switch as much as their threshold."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from shiftscope.core import checkpoints, crossing, swapping, verifiers
from shiftscope.core.decode import Sampling
from shiftscope.core.lockstep import Written
from shiftscope.core.swapping import Setting, Stage, Sweep


def test_a_sweep_is_both_models_alone_then_every_rule_in_both_directions():
    found = swapping.items(Sweep(thresholds=(0.2, 0.1), taus=(-3.0,)))
    assert found[:2] == [Setting("", "base"), Setting("", "tuned")]
    rules = [("js", 0.2), ("js", 0.1), ("signed", -3.0)]
    assert found[2:] == [Setting(d, rule, value) for d in ("forward", "reverse") for rule, value in rules]


def answer(switched, differs, entropy) -> Written:
    n = len(switched)
    steps = {name: np.zeros(n) for name in swapping.STEPS} | {
        "switched": np.array(switched), "other": np.array(differs, dtype=int), "entropy_primary_nats": np.array(entropy)
    }  # fmt: skip
    return Written((0,) * n, False, steps)


def test_controls_have_the_rate_of_what_they_control():
    written = [
        answer([1, 0, 0, 0], [1, 1, 0, 0], [0.1, 0.9, 0.2, 0.3]),
        answer([1, 0, 0, 0], [1, 1, 0, 0], [0.4, 0.8, 0.5, 0.6]),
    ]
    switched = swapping._controls(Sweep(), "forward", written)
    assert switched["random"][0] == 0.25
    assert np.mean(np.float64(switched["entropy"][0]) < [0.1, 0.9, 0.2, 0.3, 0.4, 0.8, 0.5, 0.6]) == 0.25
    effective = swapping._controls(Sweep(match="effective"), "forward", written)
    assert effective["random"][0] == 0.5  # half of the positions where the draws differ were switched
    assert swapping._controls(Sweep(controls=False), "forward", written) == {}
    for flag in (0, 1):  # a control of nothing, or of everything, has no positions to choose
        assert swapping._controls(Sweep(), "forward", [answer([flag] * 3, [1] * 3, [1.0] * 3)]) == {}


def test_rows_count_effective_switches_and_hold_the_verified_answer():
    pair = checkpoints.load("sums-base"), checkpoints.load("sums-rlvr")
    from shiftscope.core import answers, corpus

    texts = answers.corpus_of(None, pair[1], 5)
    contexts = [(corpus.context_ids(pair[0], text),) * 2 for text in texts]
    verifier = verifiers.load("shiftscope.zoo.sums:verify")
    sampling = Sampling(temperature=1.0, max_new_tokens=24, seed=1)
    stage = Stage(*pair, texts, contexts, verifier, Sweep(controls=False), sampling, 3, False)
    rows = swapping.measured(stage, Setting("forward", "js", 0.1)).to_pylist()
    again = swapping._written(stage, "forward", partial(crossing.js_above, epsilon=0.1))
    assert [tuple(row["token"]) for row in rows] == [one.ids for one in again]
    for row, text in zip(rows, texts, strict=True):
        assert row["n_effective"] == sum(a != b for a, b in zip(row["token"], row["primary"], strict=True))
        assert row["score"] == verifier(text.prompt, row["answer"], text.reference)
        assert row["ended"]
        assert "<end>" not in row["answer"]


@pytest.mark.parametrize("wrong", [{"thresholds": ()}, {"thresholds": (0.1, 0.1)}, {"block": 0}, {"budget": -1}])
def test_bad_sweeps_are_sentences(wrong):
    with pytest.raises(ValueError, match=r"give at least one|may be given once|need block"):
        Sweep(**wrong)
