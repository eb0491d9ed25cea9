"""Work in shards on an actor pool: every worker holds the model pair and writes parts; the caller then merges them.

Shards are the same parts that a single process would write, so merging changes no figure. A worker that dies is replaced
and goes on with the parts that it had not written. Needs the extra `ray`.
"""

from __future__ import annotations

import importlib
import logging
import time
import typing
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftscope.core.parts import Parts, ShardDone

SHARDS_PER_WORKER = 4  # so that a slow worker does not keep the others waiting
TRIES = 3
HELD = ("base", "tuned", "student", "teacher", "model")


@dataclass(frozen=True)
class Pool:
    """An actor pool. workers: how many processes hold the models. gpus: share of a GPU for each (0: CPU only).

    threads: of each one's computation (None: an equal share of the cores).
    """

    workers: int
    gpus: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or self.gpus < 0:
            raise ValueError(f"{self.workers} workers with {self.gpus} GPUs each: need at least 1 worker and 0 GPUs")


class Worker:
    """Holds the loaded checkpoints of one method call and computes shards of it."""

    def __init__(self, method: str, settings: Mapping[str, Any], threads: int) -> None:
        import torch

        from shiftscope.core.checkpoints import Checkpoint, opened

        torch.set_num_threads(threads)
        module, _, name = method.partition(":")
        self.function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        loading = settings.get("loading")
        where = {"dtype": loading.dtype, "device": loading.device} if loading else {}
        hints = typing.get_type_hints(self.function)
        held = {
            name: opened(settings[name], **where)
            for name in HELD
            if settings.get(name) is not None and Checkpoint in typing.get_args(hints[name])
        }
        self.settings = {**settings, **held}

    def work(self, folder: str, shard: tuple[int, int]) -> str:
        """Compute the missing parts of one shard; returns how many parts it has."""
        try:
            self.function(**self.settings, parts=Parts(folder, resume=True, shard=shard))
        except ShardDone as done:
            return str(done)
        return "the whole"


def on_ray(
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    folder: Path,
    pool: Pool,
    advance: Callable[[str, int, int], None] | None = None,
) -> None:
    """Compute all parts of `function(**settings)` in folder with an actor pool; they are then there to be merged.

    A shard whose worker dies is tried again on a new worker, up to three times. Raises ValueError where ray is missing or a
    shard keeps failing; errors of the method itself pass through.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray needs the package ray: pip install 'shiftscope[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // pool.workers)
    threads = pool.threads or cores
    actor = ray.remote(num_cpus=cores, num_gpus=pool.gpus)(Worker)
    method = f"{function.__module__}:{function.__name__}"

    def start() -> Any:
        return actor.remote(method, dict(settings), threads)

    count = pool.workers * SHARDS_PER_WORKER
    waiting, tries = deque(range(count)), dict.fromkeys(range(count), 0)
    idle, done = [start() for _ in range(pool.workers)], 0
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                shard, worker = waiting.popleft(), idle.pop()
                running[worker.work.remote(str(folder), (shard, count))] = (shard, worker)
            finished, _ = ray.wait(list(running), num_returns=1)
            shard, worker = running.pop(finished[0])
            try:
                ray.get(finished[0])
                idle.append(worker)
                done += 1
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayActorError as error:
                tries[shard] += 1
                if tries[shard] >= TRIES:
                    raise ValueError(f"the worker of shard {shard}/{count} died {TRIES} times: {error}") from error
                time.sleep(0.1)
                waiting.append(shard)
                idle.append(start())
            if advance:
                advance("shards", done, count)
    finally:
        for worker in [*idle, *(worker for _, worker in running.values())]:
            ray.kill(worker)
