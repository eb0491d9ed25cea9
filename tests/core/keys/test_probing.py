from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core import checkpoints, corpus
from shiftscope.core.keys import clusters, probing
from shiftscope.core.keys.probing import Probing
from shiftscope.zoo import lists


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


@pytest.fixture(scope="module")
def fitted(base):
    return clusters.fit(base.head.weight, base.tokenizer.get_vocab().values(), seed=0, n_clusters=16)


def probed(base, fitted, probes, n=3, verifier=lists.verify):
    return probing.probe({"base": base}, corpus.read(lists.prompts(n, seed=0)), verifier, fitted, probes).to_pandas()


def test_a_rank_is_in_cluster_by_the_clusters_of_the_top_ranks():
    assert probing.places([5, 5, 2, -1, 2, 7, -1, 5], top=4) == ["top"] * 4 + ["in", "out", "out", "in"]


def test_probes_are_the_ranks_of_the_law_in_order_judged_one_by_one(base, fitted):
    rows = probed(base, fitted, Probing(top=3, candidates=20, stop=" ", max_probe_tokens=4))
    assert rows["rank"].tolist() == list(range(1, 21)) * 3
    for text, mine in rows.groupby("text"):
        prompt = lists.prompts(3, seed=0)[text]["prompt"]
        assert [lists.verify(prompt, answer) for answer in mine["answer"]] == mine["reward"].tolist()
        assert [base.tokenizer.decode([token]) for token in mine["token_id"]] == mine["answer"].tolist()
    assert (rows["cluster"] == fitted.label_V[rows["token_id"]]).all()
    assert not rows["failed"].any()


def test_a_completion_without_its_stop_text_has_failed_and_is_not_judged(base, fitted):
    def never(prompt, answer, reference):
        raise AssertionError("a failed probe must not be judged")

    rows = probed(base, fitted, Probing(top=3, candidates=8, stop="|", max_probe_tokens=3), verifier=never, n=1)
    assert rows["failed"].all()
    assert (rows["reward"] == 0).all()


def test_only_the_asked_number_of_prompts_is_probed(base, fitted):
    rows = probed(base, fitted, Probing(top=3, candidates=5, stop=" ", probed_prompts=2))
    assert np.unique(rows["text"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"top": 5, "candidates": 5}, "need 0 < top < candidates"),
        ({"probed_prompts": 0}, "need 1 or more"),
        ({"stop": ""}, "stop is empty"),
    ],
)
def test_settings_out_of_range_are_sentences(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Probing(**settings)
