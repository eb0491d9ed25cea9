"""Long work in parts: each part is written as parquet when it is done, so that an interrupted run goes on where it was.

A folder of parts carries the settings it was made with; parts made with other settings are never mixed in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

Item = TypeVar("Item")


class ShardDone(Exception):
    """A shard has computed its parts; the whole is made by merging. Not an error: it ends the method early."""


class Parts:
    """Where the parts of one run are kept: in memory (no folder) or in `folder`, one parquet file per part and table.

    resume: go on from parts that are there. shard: (i, n) works only on parts i, i+n, i+2n, …
    Raises ValueError where parts of an earlier run are in the folder and resume is off, or where they do not fit.
    """

    def __init__(
        self, folder: str | Path | None = None, *, resume: bool = False, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.resume = resume
        self.shard = shard
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard {shard[0]}/{shard[1]}: the shard number must lie in 0..{shard[1] - 1}")
        if self.folder and not resume and self._begun():
            raise ValueError(
                f"{self.folder} holds {self._begun()} parts of an interrupted run: add --resume to go on with it, or give "
                f"another --out"
            )

    def _begun(self) -> int:
        """How many parts, or folders of them, are there already."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        return sum(path.suffix == ".parquet" or path.is_dir() for path in self.folder.iterdir())

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Record what this run measures, or check it against what is recorded.

        Raises ValueError naming the first setting that differs from those of the parts on disk.
        """
        if self.folder is None:
            return
        path, settings = self.folder / "settings.json", json.loads(json.dumps(settings, default=str))
        if path.exists() and self._begun():
            recorded, settings_now = _flat(json.loads(path.read_text())), _flat(settings)
            for name in sorted(recorded.keys() | settings_now.keys()):
                if recorded.get(name) != settings_now.get(name):
                    raise ValueError(
                        f"the parts in {self.folder} were made with {name} = {recorded.get(name)!r}, now it is "
                        f"{settings_now.get(name)!r}: they cannot be mixed; give another --out"
                    )
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(settings, indent=2))
        scratch.rename(path)

    def mine(self, count: int) -> range:
        """Which of `count` items are this shard's."""
        return range(self.shard[0], count, self.shard[1])

    def inside(self, name: str) -> Parts:
        """Parts of a stage with settings of its own, in a sub-folder."""
        return Parts(self.folder / name if self.folder else None, resume=self.resume, shard=self.shard)

    def map(
        self,
        stage: str,
        items: Sequence[Item],
        measure: Callable[[Item], dict[str, pa.Table]],
        *,
        advance: Callable[[int, int], None] | None = None,
        final: bool = False,
        take: Callable[[dict[str, pa.Table]], None] | None = None,
    ) -> dict[str, pa.Table]:
        """measure(item) for every item of this shard, part by part; returns the tables of all parts, concatenated.

        advance: called with (parts done, parts in all) after each. final: a shard has nothing more to do after this stage.
        take: given each part's tables instead, so that all of them need not fit in memory; nothing is then returned.
        Raises ShardDone after the final stage of a shard.
        """
        mine = self.mine(len(items))
        found: dict[str, list[pa.Table]] = {}
        for done, index in enumerate(mine, start=1):
            tables = self._read(stage, index)
            if tables is None:
                tables = measure(items[index])
                self._write(stage, index, tables)
            if take is not None:
                take(tables)
            else:
                for name, table in tables.items():
                    found.setdefault(name, []).append(table)
            if advance:
                advance(done, len(mine))
        if final and self.shard[1] > 1:
            raise ShardDone(f"{len(mine)} of {len(items)} parts")
        return {name: pa.concat_tables(tables) for name, tables in found.items()}

    def _read(self, stage: str, index: int) -> dict[str, pa.Table] | None:
        if self.folder is None:
            return None
        prefix = f"{stage}-{index:06d}."
        files = sorted(self.folder.glob(f"{prefix}*.parquet"))
        complete = (self.folder / f"{prefix}done").exists()
        return (
            {file.name.removeprefix(prefix).removesuffix(".parquet"): pq.read_table(file) for file in files}
            if complete
            else None
        )

    def _write(self, stage: str, index: int, tables: dict[str, pa.Table]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            target = self.folder / f"{stage}-{index:06d}.{name}.parquet"
            pq.write_table(table, target.with_suffix(".tmp"), compression="zstd")
            target.with_suffix(".tmp").rename(target)
        (self.folder / f"{stage}-{index:06d}.done").touch()

    def clear(self) -> None:
        """Remove the parts: the run is whole and its table is saved."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names, so that a difference can be named."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
