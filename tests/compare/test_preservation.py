"""Which decoders keep the law of their model: the table of rules, on exact laws and on a checkpoint."""

import re

import pytest

from shiftscope.compare.preservation import RULES, Chain, preservation


@pytest.fixture(scope="module")
def rules():
    """The bundled rules on the oracle: 2,000 texts each."""
    return preservation(["rules"])


def slug(name):
    return re.sub(r"[^\w.]+", "_", name)


KEEP = ["left_to_right", "random", "max_prob", "margin", "entropy", "blocks block=4", "assd k=3"]


@pytest.mark.slow
def test_orders_that_do_not_look_at_the_draw_keep_the_law_and_the_others_do_not(rules):
    passing = {name for name in RULES if rules[f"{slug(name)}.passes"]}
    assert passing == set(KEEP)
    assert rules["declarations_broken"] == 0


@pytest.mark.slow
def test_distances_to_the_true_law_of_neighbours_are_those_of_the_replication(rules):
    tv = {name: rules[f"{slug(name)}.tv_neighbours"] for name in RULES}
    assert all(tv[name] < 0.0276 for name in KEEP)  # the 99.9 % quantile of as many true texts
    assert tv["sampled"] > 0.2
    assert 0.02 < tv["random per_call=2"] < 0.1
    assert 0.02 < tv["max_prob per_call=2"] < 0.1


@pytest.mark.slow
def test_choosing_by_the_draw_makes_texts_too_likely_and_parallel_draws_too_unlikely(rules):
    assert rules["sampled.excess"] > 0.2
    assert rules["max_prob_per_call_2.excess"] < -0.1
    assert abs(rules["max_prob.excess"]) < 0.02


def test_a_decoder_is_held_to_what_it_declares(monkeypatch):
    from shiftscope.core.denoising import decoders
    from shiftscope.core.denoising.preservation import Preservation

    honest = preservation(["sampled"], chain=Chain(texts=200))
    assert honest["declarations_broken"] == 0  # it declares no, and it changes the law
    monkeypatch.setattr(decoders.Named, "preserves", Preservation("exact_if_consistent", "so it says"))
    lying = preservation(["sampled"], chain=Chain(texts=200))
    assert lying["declarations_broken"] == 1
    assert "sampled do not keep what they declare" in lying.verdict[-1]


@pytest.mark.slow
def test_the_same_test_on_a_checkpoint():
    found = preservation(
        ["max_prob", "sampled", "max_prob per_call=4"], model="markov-masked", limit=12, max_new_tokens=24
    )
    assert found["max_prob.passes"]
    assert not found["sampled.passes"]
    assert not found["max_prob_per_call_4.passes"]


@pytest.mark.slow
def test_the_same_test_on_an_any_order_checkpoint():
    found = preservation(["sequential", "assd k=4", "independent k=4"], model="docs-anyorder", limit=8)
    assert found["sequential.passes"]
    assert found["assd_k_4.passes"]
    assert not found["independent_k_4.passes"]


def test_the_table_has_a_row_for_every_filled_position():
    found = preservation(["max_prob"], chain=Chain(texts=50, places=5))
    assert found.table.num_rows == 250


@pytest.mark.parametrize(
    ("names", "sentence"),
    [([], "no decoder was given"), (["max_prob", "max_prob"], "is given twice"), (["x"], "neither a decoder's word")],
)
def test_names_that_cannot_be_tested_are_refused(names, sentence):
    with pytest.raises(ValueError, match=sentence):
        preservation(names)


def test_a_causal_checkpoint_is_refused():
    with pytest.raises(ValueError, match="it is a causal language model"):
        preservation(["max_prob"], model="sums-base")
