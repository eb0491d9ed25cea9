"""The closed form of the cosine depth beside the pairwise definition, and a million embeddings streamed from disk.

CPU seconds of the process. The pairwise definition is scipy's distance of every pair in a Python loop, at a size it can
bear, and scipy's `cdist`; the ratio is that of the same work. Bar: 1000 times the loop, and depths within 1e-9 of it.

    python benchmarks/depth.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import distance

from shiftscope.core.corpora import text_depth

WIDTH, PAIRS, MANY, LOOPED = 384, 2000, 1_000_000, 100
BAR = 1000


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def looped(f: np.ndarray, rows: int) -> np.ndarray:
    """The definition for the first rows: every other row's distance, one by one."""
    return np.array([2 - np.mean([distance.cosine(f[i], g) for j, g in enumerate(f) if j != i]) for i in range(rows)])


def main() -> None:
    generator = np.random.default_rng(0)
    f = (generator.normal(size=(PAIRS, WIDTH)) + 0.1).astype(np.float32)
    double = f.astype(np.float64)
    closed, depth = min((seconds(lambda: text_depth.depth(f, f, own=True)) for _ in range(5)), key=lambda pair: pair[0])
    loop, expected = seconds(lambda: looped(double, LOOPED))
    loop *= PAIRS / LOOPED
    matrix, _ = seconds(lambda: distance.cdist(double, double, "cosine").sum(1))
    apart = np.abs(depth[:LOOPED] - expected).max()
    print(
        f"{PAIRS} x {WIDTH}: closed form {closed:.4f} s, loop {loop:.1f} s (from {LOOPED} rows), cdist {matrix:.2f} s"
    )
    holds = loop / closed >= BAR and apart < 1e-9
    print(
        f"{loop / closed:.0f} x the loop, {matrix / closed:.0f} x cdist, largest difference {apart:.1e} (bar {BAR} x, 1e-9):"
    )
    print("holds" if holds else "does not hold")
    with tempfile.TemporaryDirectory() as folder:
        rows = np.lib.format.open_memmap(Path(folder) / "m.npy", "w+", np.float32, (MANY, WIDTH))
        for start in range(0, MANY, 50_000):
            rows[start : start + 50_000] = generator.standard_normal((50_000, WIDTH), dtype=np.float32) + 0.1
        rows = np.load(Path(folder) / "m.npy", mmap_mode="r")
        wall = time.perf_counter()
        spent, _ = seconds(lambda: text_depth.depth(rows, rows, own=True))
        print(f"{MANY:,} x {WIDTH} from disk: {spent:.2f} CPU s, {time.perf_counter() - wall:.2f} s wall")


if __name__ == "__main__":
    main()
