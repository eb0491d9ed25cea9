"""Claims about following a run: checkpoints in order of steps, half-written ones later, and an end to the waiting."""

from __future__ import annotations

import os
import threading
import time

import pytest

from shiftscope.core.layers import runs


def written(run, step, age_s=60.0):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    return folder


def test_checkpoints_come_in_order_of_steps_not_of_names(tmp_path):
    for step in (1000, 20, 300):
        written(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "logs").mkdir()
    assert list(runs.checkpoint_folders(tmp_path)) == [20, 300, 1000]
    assert [step for step, _ in runs.follow(tmp_path)] == [20, 300, 1000]


def test_a_checkpoint_still_being_written_is_left_out_without_patience(tmp_path):
    written(tmp_path, 10)
    written(tmp_path, 20, age_s=0.0)
    (tmp_path / "checkpoint-30").mkdir()
    assert [step for step, _ in runs.follow(tmp_path)] == [10]


def test_with_patience_new_checkpoints_are_waited_for(tmp_path):
    written(tmp_path, 10)
    later = threading.Timer(0.3, written, (tmp_path, 20))
    later.start()
    started = time.monotonic()
    assert [step for step, _ in runs.follow(tmp_path, patience_s=1.0, poll_s=0.05)] == [10, 20]
    assert 1.0 < time.monotonic() - started < 5.0
    later.join()


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_checkpoints_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="checkpoint-<step>"):
        runs.checkpoint_folders(tmp_path / name)
