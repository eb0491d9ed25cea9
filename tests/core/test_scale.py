"""Shards on an actor pool: the merged figures are those of a single process, even when a worker is killed."""

import threading
import time

import psutil
import pyarrow as pa
import pytest

from shiftscope.compare.tokens import tokens
from shiftscope.core import scale
from shiftscope.core.answers import Compiling
from shiftscope.core.decode import Sampling
from shiftscope.core.parts import Parts, ShardDone
from shiftscope.zoo import sums

TEXTS = [{"prompt": prompt["prompt"]} for prompt in sums.prompts(96, seed=3)]
SETTINGS = {
    "base": "sums-base",
    "tuned": "sums-rlvr",
    "texts": TEXTS,
    "sampling": Sampling(temperature=1),
    "loading": Compiling(batch_size=4),
}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def test_a_worker_computes_the_parts_of_its_shard_and_no_others(tmp_path):
    worker = scale.Worker("shiftscope.compare.tokens:tokens", SETTINGS, threads=1)
    assert worker.work(str(tmp_path), (1, 3)) == "8 of 24 parts"
    done = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("pass-*.done"))
    assert done == list(range(1, 24, 3))


@pytest.mark.parametrize("wrong", [(0, 0.0), (1, -1.0)])
def test_a_pool_needs_workers(wrong):
    with pytest.raises(ValueError, match="need at least 1 worker"):
        scale.Pool(*wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own resource and deprecation warnings
def test_two_actors_with_one_killed_mid_run_give_the_figures_of_a_single_process(cluster, tmp_path):
    killed = []

    def kill_the_first_worker_that_has_written_a_part():
        while not any(tmp_path.glob("pass-*.done")):
            time.sleep(0.01)
        workers = [p for p in psutil.Process().children(recursive=True) if "ray::Worker" in " ".join(p.cmdline())]
        workers[0].kill()
        killed.append(workers[0].pid)

    killer = threading.Thread(target=kill_the_first_worker_that_has_written_a_part, daemon=True)
    killer.start()
    scale.on_ray(tokens, SETTINGS, tmp_path, scale.Pool(2))
    killer.join(timeout=30)
    assert killed
    parts = Parts(tmp_path, resume=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    merged = tokens(**SETTINGS, parts=parts)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}  # all were there
    single = tokens(**SETTINGS)
    assert merged.table.equals(single.table)
    assert merged.figures == single.figures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_error_of_the_method_itself_passes_through(cluster, tmp_path):
    with pytest.raises(ValueError, match="vocabularies differ"):
        scale.on_ray(tokens, {**SETTINGS, "tuned": "styles-base"}, tmp_path, scale.Pool(1))


def test_a_shard_ends_the_method_with_shard_done(tmp_path):
    parts = Parts(tmp_path, shard=(0, 2))
    with pytest.raises(ShardDone, match="2 of 3 parts"):
        parts.map("pass", [1, 2, 3], lambda item: {"t": pa.table({"item": [item]})}, final=True)
    whole = Parts(tmp_path, resume=True).map("pass", [1, 2, 3], lambda item: {"t": pa.table({"item": [item]})})
    assert whole["t"]["item"].to_pylist() == [1, 2, 3]
