from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from shiftscope.compare.keys import Clustering, described, keys, ranks, summarise
from shiftscope.core import checkpoints, corpus, paired
from shiftscope.core.keys import gains, probing
from shiftscope.core.keys.probing import Probing
from shiftscope.core.parts import Parts
from shiftscope.zoo import lists

SIXTEEN = Clustering(n_clusters=16)
PROBES = Probing(top=3, candidates=40, stop=" ", max_probe_tokens=4)


@pytest.fixture(scope="module")
def base():
    return checkpoints.load("lists-base")


def diagnosed(checkpoint):
    rows = lists.prompts(40, seed=0)
    return keys(checkpoint, texts=rows, verifier=lists.verify, clustering=SIXTEEN, probes=PROBES)


@pytest.fixture(scope="module")
def diagnosis(base):
    return diagnosed(base)


def lessons(n=4, seed=0):
    """For n categories, one word of a family the category has no members of."""
    generator, gold, taught = torch.Generator().manual_seed(seed), lists.members(), []
    for category in lists.CATEGORIES[:n]:
        foreign = [stem for stem in lists.STEMS if stem not in {word[:2] for word in gold[category]}]
        stem = foreign[int(torch.randint(len(foreign), (1,), generator=generator))]
        taught.append((category, stem + lists.ENDINGS[int(torch.randint(20, (1,), generator=generator))]))
    return taught


def taught(base, lessons, seed=0):
    """base tuned on the lessons with its keys frozen: only the query changes."""
    model = copy.deepcopy(base.model)
    model.get_output_embeddings().weight.requires_grad_(False)
    texts = [f"{lists.prompt(category)} {word} {lists.END}" for category, word in lessons]
    return checkpoints.wrap(lists.fit(model, texts, steps=40, batch=12, seed=seed), base.tokenizer, "taught")


def asked(lessons):
    return [{"prompt": lists.prompt(category), "answer": f" {word}"} for category, word in lessons]


@pytest.fixture(scope="module")
def spilled(base):
    four = lessons()
    clustering = dataclasses.replace(SIXTEEN, gainers=4)
    return keys(base, taught(base, four), texts=asked(four), clustering=clustering)


def gate_of_the_diagnosis(result):
    inside, outside = result["in_cluster_accuracy_base"], result["out_cluster_accuracy_base"]
    assert inside <= 0.5 * outside
    assert result["in_cluster_rank_base"] < result["out_cluster_rank_base"]
    assert result["top_accuracy_base"] > 0.85
    assert result.figures["out_minus_in_accuracy_base"].low > 0


def test_look_alikes_of_the_top_tokens_are_wrong_though_they_rank_higher(diagnosis):
    """arXiv 2410.02284, the diagnosis: in-cluster accuracy at most half of out-of-cluster, at a better mean rank."""
    gate_of_the_diagnosis(diagnosis)
    assert "look-alikes that are wrong" in diagnosis.verdict[0]


@pytest.mark.slow
def test_the_diagnosis_holds_for_another_seed_of_the_recipe(tmp_path):
    gate_of_the_diagnosis(diagnosed(str(lists.train(tmp_path / "lists", seed=1))))


def test_clusters_that_are_shuffled_over_the_tokens_show_no_difference(base, diagnosis):
    """The control: the same sizes, the same probes, but clusters without meaning."""
    found = described(base, None, SIXTEEN).clusters
    label = np.random.default_rng(0).permutation(found.label_V)
    shuffled = dataclasses.replace(found, label_V=label)
    rows = corpus.read(lists.prompts(40, seed=0))
    control = ranks(probing.probe({"base": base}, rows, lists.verify, shuffled, PROBES))
    gap = control.figures["out_minus_in_accuracy_base"]
    assert gap.low < 0.05
    assert abs(gap.value) < 0.4 * diagnosis["out_minus_in_accuracy_base"]


def test_teaching_single_words_lifts_their_look_alikes_that_no_answer_contains(spilled):
    """arXiv 2410.02284, the risk in training: keys stay, the query moves, neighbours rise."""
    assert spilled["key_drift"] == 0
    for name in ("spillover", "spillover_unseen"):
        assert spilled[f"{name}_matched_p_value"] < 0.01
        assert spilled[f"{name}_random_p_value"] < 0.05
        assert spilled.figures[f"{name}_excess_gain"].low > 0
    assert 0 < spilled["spillover_gain"] < spilled["gainers_gain"]
    assert "spilled over" in spilled.verdict[0]


def test_random_clusters_show_no_spill_over(base):
    four = lessons()
    tuned = taught(base, four)
    found = described(base, tuned, SIXTEEN)
    texts = [
        paired.PairedText(n, *(tuple(base.tokenizer(row["prompt"])["input_ids"]),) * 2, tuple(base.tokenizer(row["answer"])["input_ids"]))
        for n, row in enumerate(asked(four))
    ]  # fmt: skip
    rows = paired.run(paired.Scorer(base, tuned), texts, {"keys": gains.measure()})["keys"]
    p_values = []
    for seed in range(10):
        label = np.random.default_rng(seed).permutation(found.clusters.label_V)
        shuffled = dataclasses.replace(found, clusters=dataclasses.replace(found.clusters, label_V=label))
        p_values.append(
            summarise(shuffled, rows, clustering=Clustering(gainers=4, permutations=200))["spillover_matched_p_value"]
        )
    assert sum(p < 0.05 for p in p_values) <= 3  # binomial(10, 0.05): more than 3 has probability 0.001


def test_a_model_against_itself_raises_no_token(base):
    result = keys(base, base, texts=asked(lessons()), clustering=SIXTEEN)
    assert result["key_drift"] == 0
    assert not any(name.startswith("spillover") for name in result.figures)
    assert any("no token was raised" in note for note in result.notes)


def test_without_tuned_and_verifier_their_figures_are_absent_with_a_reason(base):
    result = keys(base, clustering=SIXTEEN)
    assert not any("accuracy" in name or "spillover" in name for name in result.figures)
    assert any("no verifier" in note for note in result.notes)
    assert any("no tuned checkpoint" in note for note in result.notes)


def test_the_table_has_one_row_per_cluster_and_the_result_is_saved(diagnosis, spilled, tmp_path):
    assert diagnosis.table.column_names == ["cluster", "size", "spread", "examples"]
    assert diagnosis.table.num_rows == 16
    assert sum(diagnosis.table["size"].to_pylist()) == diagnosis.figures["key_clusters"].n
    assert spilled.table.column_names[-1] == "gain"
    summary = json.loads((diagnosis.save(tmp_path) / "summary.json").read_text())
    assert summary["method"] == "compare keys"
    assert summary["provenance"]["settings"]["verifier"] == "verify"
    assert [panel.kind for panel in diagnosis.panels] == ["bar", "line", "table"]
    assert [panel.kind for panel in spilled.panels] == ["bar", "table"]


def test_tokens_that_cannot_open_an_answer_are_counted(diagnosis):
    assert diagnosis["probe_masked_tokens_base"] >= 0
    assert diagnosis["probe_failed_share_base"] == 0


def test_both_checkpoints_are_probed_when_two_are_given(base):
    result = keys(
        base,
        taught(base, lessons()),
        texts=lists.prompts(6, seed=0),
        verifier=lists.verify,
        clustering=SIXTEEN,
        probes=PROBES,
    )
    assert {"in_cluster_accuracy_base", "in_cluster_accuracy_tuned"} <= result.figures.keys()


def test_the_measured_model_is_left_as_it_was(base):
    ids = torch.tensor([base.tokenizer("birds : badan")["input_ids"]])
    before = base.model(input_ids=ids).logits
    diagnosed(base)
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_head_with_a_bias_and_tied_keys_are_reported(base):
    from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": len(base.tokenizer), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    tied = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **sizes))
    phi = PhiConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        **sizes,
    )
    biased = PhiForCausalLM(phi)
    torch.nn.init.normal_(biased.lm_head.bias)
    first, second = (keys(checkpoints.wrap(model.eval(), base.tokenizer)) for model in (tied, biased))
    assert first["keys_tied"] is True
    assert first["dot_product_residual"] < 1e-5
    assert second["keys_tied"] is False
    assert second["dot_product_residual"] > 0.1
    assert any("has a bias" in note for note in second.notes)


def test_an_interrupted_run_goes_on_and_gives_the_same_result(base, tmp_path):
    rows, stop = lists.prompts(8, seed=0), []

    def breaks(prompt, answer, reference):
        if len(stop) > 150:
            raise KeyboardInterrupt
        stop.append(1)
        return lists.verify(prompt, answer, reference)

    breaks.__qualname__ = "verify"
    whole = keys(base, texts=rows, verifier=lists.verify, clustering=SIXTEEN, probes=PROBES)
    with pytest.raises(KeyboardInterrupt):
        keys(base, texts=rows, verifier=breaks, clustering=SIXTEEN, probes=PROBES, parts=Parts(tmp_path))
    again = keys(
        base, texts=rows, verifier=lists.verify, clustering=SIXTEEN, probes=PROBES, parts=Parts(tmp_path, resume=True)
    )
    assert again.summary()["figures"] == whole.summary()["figures"]


def test_settings_out_of_range_are_a_sentence():
    with pytest.raises(ValueError, match="gainers 0 and permutations 1000"):
        Clustering(gainers=0)
