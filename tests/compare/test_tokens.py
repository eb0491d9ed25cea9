"""compare tokens: oracles on one pass, and the replications of arXiv 2603.22446 and arXiv 2312.01552 on the zoo."""

import json

import numpy as np
import pytest
import torch

from shiftscope.compare.tokens import summarise, tokens
from shiftscope.core import checkpoints, divergence, native, paired
from shiftscope.core.answers import Compiling
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts
from shiftscope.core.positions import Listing, described, measure
from shiftscope.zoo import styles, sums

PROMPTS = [{"prompt": prompt["prompt"]} for prompt in sums.prompts(64, seed=5)]


@pytest.fixture(scope="module")
def sums_result():
    return tokens("sums-base", "sums-rlvr", texts=PROMPTS, sampling=Sampling(temperature=1))


def full_laws(name, texts, contexts):
    """log-laws [N, V] of one model by plain forwards, one text at a time, in float64."""
    model = checkpoints.load(name).model
    rows = []
    for context, answer in zip(contexts, texts, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *answer]])).logits[0]
        rows.append(logits[len(context) - 1 : -1].double().log_softmax(-1))
    return torch.cat(rows)


def test_every_number_of_a_position_equals_the_plain_computation_on_full_logits(sums_result):
    table = sums_result.table
    tokenizer = checkpoints.load("sums-base").tokenizer
    answers = [[] for _ in PROMPTS]
    for text, token in zip(table["text"].to_pylist(), table["token_id"].to_pylist(), strict=True):
        answers[text].append(token)
    contexts = [tokenizer(prompt["prompt"])["input_ids"] for prompt in PROMPTS]
    p, q = (full_laws(name, answers, contexts) for name in ("sums-base", "sums-rlvr"))
    emitted, favourite = torch.tensor([token for answer in answers for token in answer]), q.argmax(-1)
    expected = {
        "js_nats": divergence.js_nats(p, q),
        "kl_base_tuned_nats": divergence.kl_nats(p, q),
        "kl_tuned_base_nats": divergence.kl_nats(q, p),
        "tv": divergence.tv(p, q),
        "entropy_base_nats": divergence.entropy_nats(p),
        "entropy_tuned_nats": divergence.entropy_nats(q),
        "logp_base_nats": p.gather(-1, emitted[:, None])[:, 0],
        "logp_tuned_nats": q.gather(-1, emitted[:, None])[:, 0],
        "p_base_of_tuned_top1": p.gather(-1, favourite[:, None])[:, 0].exp(),
        "flow_1": (q - p).new_tensor([(b.exp() - a.exp())[a.argmax()] for a, b in zip(p, q, strict=True)]),
    }
    for name, value in expected.items():
        # float32 forwards in another batch layout: logits agree to 1e-6 relative, log-laws to some 1e-5
        np.testing.assert_allclose(table[name].to_numpy(), value.numpy(), atol=2e-5, rtol=2e-5, err_msg=name)
    for name, law, ids in (
        ("rank_base", p, emitted),
        ("rank_tuned", q, emitted),
        ("rank_base_of_tuned_top1", p, favourite),
    ):
        agree = np.mean(table[name].to_numpy() == divergence.rank(law, ids).numpy())
        assert agree > 0.97, name  # the synonyms are equally probable up to rounding: near-ties may swap


def test_flows_sum_to_zero_and_top_lists_are_sorted_and_score_both_models(sums_result):
    table = sums_result.table
    flows = np.stack([table[name].to_numpy() for name in table.column_names if name.startswith("flow_")])
    np.testing.assert_allclose(flows.sum(0), 0, atol=1e-6)  # five float32 numbers of size below 1
    lists = table["top_tuned_logp"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    assert (np.diff(lists, axis=1) <= 0).all()
    own = table["top_base_logp"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    assert (
        own
        >= table["top_tuned_logp_base"].combine_chunks().flatten().to_numpy().reshape(own.shape).min(1, keepdims=True)
    ).all()


def test_a_checkpoint_against_itself_has_no_shift_at_all():
    result = tokens("sums-base", "sums-base", texts=PROMPTS[:8])
    assert result.table["js_nats"].to_numpy().max() == 0
    assert result["kl_base_tuned_nats"] == result["tv_mean"] == result["shifted_share"] == 0
    assert "exactly the same law" in result.verdict[0]


def test_neither_model_is_altered_by_being_measured():
    pair = [checkpoints.load(name) for name in ("sums-base", "sums-rlvr")]
    pair[0].model.train()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = [checkpoint.model(ids).logits.clone() for checkpoint in pair]
    tokens(*pair, texts=PROMPTS[:4])
    with torch.no_grad():
        assert all(torch.equal(checkpoint.model(ids).logits, old) for checkpoint, old in zip(pair, before, strict=True))
    assert pair[0].model.training
    assert not any(module._forward_hooks for checkpoint in pair for module in checkpoint.model.modules())


def test_the_result_does_not_depend_on_batches_nor_on_the_order_of_the_rows(sums_result):
    other = tokens(
        "sums-base", "sums-rlvr", texts=PROMPTS, sampling=Sampling(temperature=1), loading=Compiling(batch_size=7)
    )
    assert other.table["token_id"].equals(sums_result.table["token_id"])
    np.testing.assert_allclose(other.table["js_nats"].to_numpy(), sums_result.table["js_nats"].to_numpy(), atol=1e-6)
    assert other["js_mean_nats"] == pytest.approx(sums_result["js_mean_nats"], abs=1e-7)
    shuffled = sums_result.table.take(np.random.default_rng(0).permutation(len(sums_result.table)))
    again = summarise(shuffled.sort_by([("text", "ascending"), ("position", "ascending")]))
    assert again["js_mean_nats"] == sums_result["js_mean_nats"]


def test_an_interrupted_run_resumes_and_gives_the_same_table(tmp_path, monkeypatch):
    loading, done = Compiling(batch_size=16), []

    def stop_after_two(stage, count, total):
        done.append(stage)
        if done.count("comparing") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens("sums-base", "sums-rlvr", texts=PROMPTS, loading=loading, parts=Parts(tmp_path), advance=stop_after_two)
    resumed = tokens("sums-base", "sums-rlvr", texts=PROMPTS, loading=loading, parts=Parts(tmp_path, resume=True))
    fresh = tokens("sums-base", "sums-rlvr", texts=PROMPTS, loading=loading)
    assert resumed.table.equals(fresh.table)
    assert resumed.figures == fresh.figures


def test_parts_made_with_other_settings_are_refused(tmp_path):
    tokens("sums-base", "sums-rlvr", texts=PROMPTS[:8], parts=Parts(tmp_path))
    with pytest.raises(ValueError, match="were made with"):
        tokens("sums-base", "sums-sft", texts=PROMPTS[:8], parts=Parts(tmp_path, resume=True))


def test_an_answer_beyond_the_context_is_named_before_anything_runs():
    with pytest.raises(ValueError, match=r"text 0 has .* but sums-base reads at most"):
        tokens("sums-base", "sums-rlvr", texts=[{"prompt": "1 =", "answer": "take " * 100}])


def test_the_table_holds_the_text_of_every_listed_token(sums_result):
    names = json.loads(sums_result.table.schema.metadata[b"tokens"])
    listed = set(sums_result.table["top_base_ids"].combine_chunks().flatten().to_pylist())
    assert {str(token) for token in listed} <= names.keys()
    assert len(json.loads(sums_result.table.schema.metadata[b"texts"])) == len(PROMPTS)


def at_decisions(table):
    """Which positions of a sums answer decide (the running sums), from the answers in the table's metadata."""
    answers = {entry["text"]: entry["answer"] for entry in json.loads(table.schema.metadata[b"texts"])}
    places = {text: set(sums.decisions(answer)) for text, answer in answers.items()}
    return np.array(
        [p in places[t] for t, p in zip(table["text"].to_pylist(), table["position"].to_pylist(), strict=True)]
    )


def test_rl_moves_few_tokens_and_those_decide_while_sft_moves_many():
    """arXiv 2603.22446: reinforcement with a KL leash is sparse, supervised tuning is dense (same task, same base)."""
    texts = [{"prompt": prompt["prompt"]} for prompt in sums.prompts(200, seed=11)]
    results = {
        name: tokens("sums-base", f"sums-{name}", texts=texts, sampling=Sampling(temperature=1))
        for name in ("rlvr", "sft")
    }
    above = {name: float(result["js_share_above_0.1"]) for name, result in results.items()}
    assert above["rlvr"] <= 0.5 * above["sft"]
    shifted = results["rlvr"].table["js_nats"].to_numpy() > 0.1
    decisive = at_decisions(results["rlvr"].table)
    assert decisive[shifted].mean() >= 0.95  # the baseline: what a random position would score
    assert decisive.mean() < 0.5
    sft = results["sft"].table
    assert at_decisions(sft)[sft["js_nats"].to_numpy() > 0.1].mean() < 0.6
    assert results["rlvr"]["tuned_top1_in_base_top3_share_where_js_above_0.1"] >= 0.95


def test_truncating_the_laws_inflates_the_share_of_large_shifts():
    """The reason why full laws are the default (note of arXiv 2603.22446): top-p 0.7 moves the share above 0.1."""
    result = tokens(
        "sums-base", "sums-rlvr", texts=PROMPTS, sampling=Sampling(temperature=1), listing=Listing(compat_top_p=0.7)
    )
    assert result["js_top_p_share_above_0.1"] > 2 * float(result["js_share_above_0.1"])
    barely = tokens(
        "sums-base", "sums-rlvr", texts=PROMPTS, sampling=Sampling(temperature=1), listing=Listing(compat_top_p=1.0)
    )
    assert barely["js_top_p_mean_nats"] == pytest.approx(barely["js_mean_nats"], abs=1e-6)


def test_zero_shot_shift_of_a_style_tuned_model_sits_on_style_tokens_only():
    """arXiv 2312.01552, zero-shot row: style tokens shift, facts do not, even about entities never tuned on."""
    for entities in (styles.TUNED_ENTITIES, styles.HELD_OUT_ENTITIES):
        texts = [{"prompt": styles.prompt(entity)} for entity in entities]
        result = tokens(
            "styles-base", "styles-sft", texts=texts, sampling=Sampling(max_new_tokens=styles.ANSWER_TOKENS)
        )
        assert result["shifted_share"] >= 0.09
        table = result.table
        position, rank = table["position"].to_numpy(), table["rank_base_of_tuned_top1"].to_numpy()
        assert set(position[rank > 2]) <= {styles.OPENER_POSITION, styles.CLOSER_POSITION}
        assert (rank[position == styles.FACT_POSITION] == 0).mean() >= 0.98
        js = table["js_nats"].to_numpy()
        assert js[position == styles.OPENER_POSITION].mean() > 20 * js[position == styles.FACT_POSITION].mean()


@pytest.mark.parametrize(
    ("context", "shifted_at_most", "shifted_at_least"),
    [("aligned", 0.02, 0.0), ("mixed", 1.0, 0.09), ("another", 1.0, 0.09)],
)
def test_only_examples_of_the_right_style_close_the_shift(context, shifted_at_most, shifted_at_least):
    """arXiv 2312.01552: three examples in the target style close the gap; as many in other styles do not (controls)."""
    pair = [checkpoints.load(name) for name in ("styles-base", "styles-sft")]
    items = []
    for number, entity in enumerate(styles.TUNED_ENTITIES):
        shown = [styles.ALIGNED] * 3 if context == "aligned" else styles.control_styles(context, number)
        base_ids = pair[0].tokenizer(styles.few_shot(entity, shown, number))["input_ids"]
        tuned_ids = pair[1].tokenizer(styles.prompt(entity))["input_ids"]
        answer = pair[1].tokenizer(styles.answer(entity, styles.ALIGNED))["input_ids"]
        items.append(paired.PairedText(number, tuple(base_ids), tuple(tuned_ids), tuple(answer)))
    rows = paired.run(paired.Scorer(*pair), items, {"tokens": measure()})["tokens"]
    shifted = float(summarise(described(rows, [], pair[0]))["shifted_share"])
    assert shifted_at_least <= shifted <= shifted_at_most


def test_compiled_statistics_give_the_same_figures_and_a_missing_compiler_is_noted(monkeypatch, sums_result):
    compiled = tokens(
        "sums-base", "sums-rlvr", texts=PROMPTS, sampling=Sampling(temperature=1), loading=Compiling(compile=True)
    )
    assert compiled["js_mean_nats"] == pytest.approx(sums_result["js_mean_nats"], abs=1e-7)  # float32 sums
    monkeypatch.setattr(native, "kernel", lambda: (None, "there is no C compiler"))
    eager = tokens("sums-base", "sums-rlvr", texts=PROMPTS[:4], loading=Compiling(compile=True))
    assert any("the statistics were not compiled" in note for note in eager.notes)
