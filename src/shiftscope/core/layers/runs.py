"""The checkpoints of a training run, in order of steps, and those that are still to come."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

SETTLED_S = 2.0  # a checkpoint is taken for written when none of its files changed for so long


def checkpoint_folders(run: str | Path) -> dict[int, Path]:
    """The checkpoint-<step> folders of a training run by step, ascending.

    Raises ValueError where the run is no folder or holds none.
    """
    if not Path(run).is_dir():
        raise ValueError(
            f"{str(run)!r} is not a folder: a run to watch is the folder that holds its checkpoint-<step> folders"
        )
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(run).iterdir() if path.is_dir()}
    steps = {int(name[1]): path for path, name in found.items() if name}
    if not steps:
        raise ValueError(
            f"{str(run)!r} holds no checkpoint-<step> folder: a run to watch is the folder that holds them"
        )
    return dict(sorted(steps.items()))


def follow(run: str | Path, *, patience_s: float = 0.0, poll_s: float = 5.0) -> Iterator[tuple[int, Path]]:
    """Step and folder of every checkpoint of a run, in order of steps, then of new ones as they are written.

    patience_s: how long to wait for the next one after the caller is done with the last (0: do not wait).
    A checkpoint still being written is taken once it is whole; without patience it is left out.
    """
    seen: set[int] = set()
    quiet_since = time.monotonic()
    while True:
        for step, folder in checkpoint_folders(run).items():
            if step not in seen and settled(folder):
                seen.add(step)
                yield step, folder
                quiet_since = time.monotonic()
        left_s = patience_s - (time.monotonic() - quiet_since)
        if left_s <= 0:
            return
        time.sleep(min(left_s, poll_s))


def settled(folder: Path) -> bool:
    """Whether a checkpoint has its configuration and none of its files changed in the last two seconds."""
    files = [path for path in folder.iterdir() if path.is_file()]
    configured = any(path.name in ("config.json", "adapter_config.json") for path in files)
    return configured and max(path.stat().st_mtime for path in files) < time.time() - SETTLED_S
