"""Claims about scoring traces: a token's surprisal is the student's own, and what is suggested is the plainest part."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from shiftscope.compare.traces import Judging, kind, longest_run, summarise, traces
from shiftscope.core import checkpoints, divergence
from shiftscope.core.answers import Loading
from shiftscope.core.parts import Parts

RECORDS = [
    {"id": "own", "prompt": "3 1 4 2 =", "answer": "take 3 gives 3 ; see 1 makes 4 ; add 4 now 3 ; use 2 so 0"},
    {"id": "odd", "prompt": "3 1 4 2 =", "answer": "= = = 3 ; see 1 makes 4 ; = = now 3 ; use 2 so 0"},
    {"id": "plain", "prompt": "9 1 4 2 =", "answer": "take 9 gives 4 ; see 1 makes 0"},
]


@pytest.fixture(scope="module")
def student():
    return checkpoints.load("sums-base")


@pytest.fixture(scope="module")
def found(student):
    return traces(student, traces=RECORDS)


def test_every_surprisal_is_that_of_the_student_run_alone_on_the_whole_trace(student, found):
    for number, record in enumerate(RECORDS):
        ids = student.tokenizer(f"{record['prompt']} {record['answer']}", return_tensors="pt")["input_ids"]
        start = len(student.tokenizer(record["prompt"])["input_ids"])
        logp = student.model(ids).logits[0, start - 1 : -1].detach().log_softmax(-1)
        rows = found.table.filter(pc.equal(found.table["text"], number))
        expected = -logp[torch.arange(len(logp)), ids[0, start:]]
        np.testing.assert_allclose(rows["surprisal_nats"].to_numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(rows["entropy_nats"].to_numpy(), divergence.entropy_nats(logp), atol=1e-5)
        assert rows["rank"].to_pylist() == divergence.rank(logp, ids[0, start:]).tolist()


def test_improbable_tokens_are_those_below_the_threshold_and_runs_are_counted(found):
    table = found.table
    assert table["improbable"].to_pylist() == (np.exp(-table["surprisal_nats"].to_numpy()) < 0.01).tolist()
    flags = [found.table.filter(pc.equal(table["text"], n))["improbable"].to_pylist() for n in range(3)]
    runs = [max(len(run) for run in "".join(".#"[flag] for flag in trace).split(".")) for trace in flags]
    assert runs[0] == runs[2] == 0
    assert runs[1] >= 3
    assert found["improbable_longest_run"] == runs[1]
    assert found["traces_without_improbable_share"] == pytest.approx(2 / 3)
    frequent = next(panel.table for panel in found.panels if panel.title == "Improbable tokens").to_pylist()
    assert frequent[0]["token"].strip() == "="
    assert frequent[0]["times improbable"] == 5


def test_the_suggested_traces_are_those_with_the_fewest_improbable_tokens(student, tmp_path):
    target = tmp_path / "subset.jsonl"
    result = traces(student, traces=RECORDS, judging=Judging(keep=0.5, subset=target))
    assert [json.loads(line)["id"] for line in target.read_text(encoding="utf-8").splitlines()] == ["own", "plain"]
    assert result["suggested_traces"] == 2
    assert result["suggested_improbable_share"] == 0
    assert any("Keeping the 2 traces" in sentence for sentence in result.verdict)


def test_ids_with_labels_are_scored_as_they_are(student, found):
    words = student.tokenizer
    records = []
    for record in RECORDS:
        prompt, answer = (words(record[name])["input_ids"] for name in ("prompt", "answer"))
        records.append({"input_ids": [*prompt, *answer], "labels": [*[-100] * len(prompt), *answer]})
    again = traces(student, traces=records)
    np.testing.assert_allclose(
        again.table["surprisal_nats"].to_numpy(), found.table["surprisal_nats"].to_numpy(), atol=1e-6
    )


def test_batches_parts_and_the_order_of_rows_change_nothing(student, found, tmp_path):
    one_by_one = traces(student, traces=RECORDS, loading=Loading(batch_size=1), parts=Parts(tmp_path))
    a, b = found.table["surprisal_nats"].to_numpy(), one_by_one.table["surprisal_nats"].to_numpy()
    np.testing.assert_allclose(a, b, atol=1e-5)
    backwards = found.table.take(list(range(len(found.table)))[::-1])
    assert (
        summarise(backwards.sort_by([("text", "ascending"), ("position", "ascending")])).summary()["figures"]
        == found.summary()["figures"]
    )


def test_the_page_draws_it(found, tmp_path):
    from shiftscope import report

    report.write(found, tmp_path / "report.html")
    report.terminal(found)
    assert "Which tokens are improbable?" in (tmp_path / "report.html").read_text(encoding="utf-8")
    texts = next(panel.table for panel in found.panels if panel.kind == "texts")
    surprisal = texts["surprisal_nats"].to_numpy()
    order = np.argsort(surprisal)
    assert (np.diff(texts["js_nats"].to_numpy()[order]) >= -1e-6).all()


def test_the_colour_is_the_divergence_of_the_law_from_the_written_token():
    p = torch.tensor([0.7, 0.2, 0.1, 0.0]).log()
    for token in range(4):
        certain = torch.full((4,), -torch.inf)
        certain[token] = 0.0
        assert divergence.js_to_token_nats(p[token]) == pytest.approx(float(divergence.js_nats(p, certain)), abs=1e-6)


def test_token_kinds_and_runs():
    pieces = {
        " the": "word",
        "42": "number",
        " ,": "punctuation",
        "\n": "white space",
        "a1": "mixed",
        " don't": "mixed",
    }
    assert {piece: kind(piece) for piece in pieces} == pieces
    assert kind("<end>", special=True) == "special"
    assert longest_run(np.array([False, True, True, False, True])) == 2
    assert longest_run(np.array([False, False])) == 0
    assert longest_run(np.array([True])) == 1


def test_bad_input_is_one_sentence(student, tmp_path):
    with pytest.raises(ValueError, match=r"record 1 has no `answer` and no `input_ids`"):
        traces(student, traces=[{"prompt": "1 2 3 4 ="}])
    with pytest.raises(ValueError, match="there are no traces"):
        traces(student, traces=[])
    with pytest.raises(ValueError, match="other maskings cannot be scored"):
        traces(student, traces=[{"input_ids": [3, 4, 5], "labels": [-100, 4, -100]}])
    with pytest.raises(ValueError, match="has id 400; sums-base has ids up to 26"):
        traces(student, traces=[{"input_ids": [3, 400], "labels": [-100, 400]}])
    with pytest.raises(ValueError, match="reads at most 64"):
        traces(student, traces=[{"prompt": "1 2 3 4 =", "answer": "take 3 " * 40}])
    with pytest.raises(ValueError, match="is not a file"):
        traces(student, traces=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="p_min"):
        Judging(p_min=0)
