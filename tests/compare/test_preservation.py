"""Which decoders keep the law of their model: the table of rules, on exact laws and on a checkpoint."""

import re

import numpy as np
import pytest
from scipy.special import entr

from shiftscope.compare.preservation import RULES, Chain, preservation
from shiftscope.core.denoising import decoders
from shiftscope.core.denoising.oracle import random_chain


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


# arXiv 2502.09992's rules on 10,000 texts of 8 places: distance to the true law of neighbours, and how varied they are
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("left_to_right", 0, 0.015), ("random", 0, 0.015), ("max_prob", 0, 0.015), ("entropy", 0, 0.015),
        ("sampled", 0.2, 1), ("random per_call=2", 0.02, 0.1), ("max_prob per_call=2", 0.02, 0.1),
    ],
)  # fmt: skip
def test_the_rules_that_keep_and_that_break_the_law(name, low, high):
    """The bars are those of 20,000 texts; noise is about 0.007 here; choosing by the draw collapses the entropy, drawing in parallel adds to it."""
    oracle, named = random_chain(6, concentration=1.0), decoders.parse(name, temperature=1.0)
    jobs = [decoders.Text(document, [oracle.mask_id] * 8, 0) for document in range(10_000)]
    texts = np.array(
        [
            ids
            for start in range(0, 10_000, 5000)
            for ids, _ in decoders.write(oracle, named, jobs[start : start + 5000])
        ]
    )
    pairs = np.bincount((texts[:, :-1] * 6 + texts[:, 1:]).ravel(), minlength=36) / (7 * 10_000)
    true = oracle.bigrams(8).ravel()
    assert low <= np.abs(pairs - true).sum() / 2 < high
    entropy, own = (float(entr(law).sum()) for law in (pairs, true))
    assert abs(entropy - own) < 0.015 or low > 0
    assert (entropy < own - 0.3) == (name == "sampled")
    assert (entropy > own + 0.03) == ("per_call" in name)


def test_figures_of_neighbours_are_those_of_the_texts():
    found = preservation(["random"], chain=Chain(texts=300, places=4))
    rows = found.table.to_pandas().pivot(index="document", columns="place", values="token").to_numpy()
    pairs = np.bincount((rows[:, :-1] * 6 + rows[:, 1:]).ravel(), minlength=36) / (3 * 300)
    true = random_chain(6, concentration=1.0).bigrams(4).ravel()
    assert found["random.tv_neighbours"] == pytest.approx(np.abs(pairs - true).sum() / 2)
    assert found["random.pair_entropy"] == pytest.approx(entr(pairs).sum())
    assert found["model.pair_entropy"] == pytest.approx(entr(true).sum())


def test_a_speculative_method_is_exact_on_an_any_order_model_and_only_along_its_order_on_a_masked_one():
    found = preservation(["assd k=3", "independent k=2"], chain=Chain(texts=100))
    assert [row["declares"] for row in found.panels[0].table.to_pylist()] == ["exact_if_consistent", "no"]
    assert any("assd k=3: exact_if_consistent, each text has exactly the law" in note for note in found.notes)
    any_order = preservation(["assd k=3"], model="docs-anyorder", limit=2)
    assert [row["declares"] for row in any_order.panels[0].table.to_pylist()] == ["exact"]


def test_passing_says_what_so_few_reveals_could_not_have_shown():
    few, many = (preservation(["max_prob"], chain=Chain(texts=texts)) for texts in (20, 500))
    small, large = (found.panels[0].table["seen_from_nats"][0].as_py() for found in (few, many))
    assert small == pytest.approx(large * 5, rel=0.2)  # with the root of the number of texts
    assert any("an excess below" in note for note in few.notes)


def test_a_decoder_is_held_to_what_it_declares(monkeypatch):
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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts": [{"prompt": "x"}]}, "the oracle, which reads none"),
        ({"chain": Chain(texts=5), "model": "markov-masked"}, "are of the oracle, and a checkpoint is tested"),
        ({"level": 0.0}, "level 0.0"),
    ],
)
def test_settings_that_would_be_ignored_or_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        preservation(["max_prob"], **settings)


def test_a_causal_checkpoint_is_refused():
    with pytest.raises(ValueError, match="it is a causal language model"):
        preservation(["max_prob"], model="sums-base")
