"""Running a method as a command: files, gates, interruption, shards."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from shiftscope import running
from shiftscope.zoo import sums


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("js_mean_nats < 0.01", running.Gate("js_mean_nats", "<", 0.01)),
        ("a.b>=1e-3", running.Gate("a.b", ">=", 1e-3)),
        ("window_stable == true", running.Gate("window_stable", "==", 1.0)),
    ],
)
def test_gates_are_read(text, gate):
    assert running.parse_gate(text) == gate


@pytest.mark.parametrize("text", ["", "js <", "js 0.1", "js < x", "< 1", "js =< 1"])
def test_what_is_no_gate_is_refused(text):
    with pytest.raises(ValueError, match="is not of the form 'figure < number'"):
        running.parse_gate(text)


@pytest.mark.parametrize(
    ("gate", "expected"), [("js_mean_nats < 0.5", 0), ("js_mean_nats<1e-9", 1), ("positions >= 1", 0)]
)
def test_a_gate_that_does_not_hold_makes_the_exit_code_1(shiftscope, texts, gate, expected):
    code, _, err = shiftscope("compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--json", "--gate", gate)
    assert code == expected
    assert ("gate failed" in err) == (expected == 1)


def test_every_gate_counts(shiftscope, texts):
    gates = ["--gate", "js_mean_nats < 0.5", "--gate", "js_mean_nats > 0.5"]
    assert shiftscope("compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--json", *gates)[0] == 1


def test_an_out_that_cannot_be_written_is_found_before_anything_runs(shiftscope, texts, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = shiftscope(
        "compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--out", tmp_path / "file" / "out"
    )
    assert code == 2
    assert "cannot be written" in err


def test_control_c_keeps_the_parts_and_resume_gives_the_same_result(shiftscope, tmp_path):
    rows = [{"prompt": prompt["prompt"]} for prompt in sums.prompts(200, seed=3)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "shiftscope", "compare", "tokens", "sums-base", "sums-rlvr", "--threads", "1"]
    command += ["--texts", str(tmp_path / "many.jsonl"), "--batch-size", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    parts = tmp_path / "out" / "parts"
    while len(list(parts.glob("pass-*.done"))) < 3 and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "add --resume" in err
    assert 3 <= len(list(parts.glob("pass-*.done"))) < 100  # some, and by far not all
    code, _, err = shiftscope(*command[3:], "--out", tmp_path / "out")
    assert code == 2
    assert "parts of an interrupted run" in err
    assert shiftscope(*command[3:], "--out", tmp_path / "out", "--resume")[0] == 0
    assert shiftscope(*command[3:], "--out", tmp_path / "fresh")[0] == 0
    resumed, fresh = (pq.read_table(tmp_path / name / "table.parquet") for name in ("out", "fresh"))
    assert resumed.equals(fresh)
    figures = [json.loads((tmp_path / name / "summary.json").read_text())["figures"] for name in ("out", "fresh")]
    assert figures[0] == figures[1]


def test_shards_on_any_scheduler_merge_into_the_result_of_a_single_run(shiftscope, texts, tmp_path):
    command = [
        "compare",
        "tokens",
        "sums-base",
        "sums-rlvr",
        "--texts",
        texts,
        "--batch-size",
        "2",
        "--temperature",
        "1",
    ]
    assert shiftscope(*command, "--out", tmp_path / "whole")[0] == 0
    for number in range(3):
        code, _, err = shiftscope(*command, "--shard", f"{number}/3", "--out", tmp_path / f"shard{number}")
        assert code == 0, err
        assert "shiftscope merge" in err
        assert not (tmp_path / f"shard{number}" / "summary.json").exists()
    folders = [tmp_path / f"shard{number}" for number in range(3)]
    code, _, err = shiftscope("merge", *folders, "--out", tmp_path / "merged")
    assert code == 0, err
    whole, merged = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "merged"))
    assert merged["figures"] == whole["figures"]
    assert pq.read_table(tmp_path / "merged" / "table.parquet").equals(
        pq.read_table(tmp_path / "whole" / "table.parquet")
    )


@pytest.mark.parametrize(
    ("method", "more"),
    [("swaps", ["--verifier", "shiftscope.zoo.sums:verify", "--thresholds", "0.1", "--no-controls"]), ("models", [])],
)
def test_longer_methods_merge_too(shiftscope, tmp_path, method, more):
    rows = [{"prompt": row["prompt"], "reference": row["reference"]} for row in sums.prompts(6, seed=3)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["compare", method, "sums-base", "sums-rlvr", "--texts", tmp_path / "texts.jsonl", *more]
    assert shiftscope(*command, "--out", tmp_path / "whole")[0] == 0
    for number in range(2):
        code, _, err = shiftscope(*command, "--shard", f"{number}/2", "--out", tmp_path / "shards")
        assert code == 0, err
        assert not (tmp_path / "shards" / "summary.json").exists()
    code, _, err = shiftscope("merge", tmp_path / "shards", "--out", tmp_path / "shards")
    assert code == 0, err
    whole, merged = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "shards"))
    assert merged["figures"] == whole["figures"]


@pytest.mark.parametrize("shard", ["3/3", "x", "1", "-1/2"])
def test_a_shard_that_is_none_is_named(shiftscope, texts, tmp_path, shard):
    arguments = [
        "compare",
        "tokens",
        "sums-base",
        "sums-rlvr",
        "--texts",
        texts,
        "--out",
        tmp_path / "o",
        f"--shard={shard}",
    ]
    code, _, err = shiftscope(*arguments)
    assert (code, "is not of the form i/n" in err) == (2, True)


def test_merging_what_is_no_shard_or_of_two_commands_is_named(shiftscope, texts, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no parts of a shard" in shiftscope("merge", tmp_path / "empty", "--out", tmp_path / "m")[2]
    for limit in (2, 3):
        command = ["compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--limit", limit]
        assert shiftscope(*command, "--shard", "0/2", "--out", tmp_path / f"limit{limit}")[0] == 0
    code, _, err = shiftscope("merge", tmp_path / "limit2", tmp_path / "limit3", "--out", tmp_path / "m")
    assert (code, "different commands" in err) == (2, True)
