"""How often the tests of `compare corpora` reject: nothing to find, and ever more foreign texts mixed in.

First sentences of the standard library's docstrings under the default sentence encoder (extra `embed`); the foreign ones
are those of tkinter and idlelib. Per row: share of trials with p <= 0.05 of the published one-sided rank-sum test of Q, of
the same two-sided, and of the two-sided label permutation (fewer trials); mean and spread of Q. Under no shift every share
should be 0.05; the last row of the first table has no texts but isotropic Gaussian vectors of the same width.
Bar: the permutation within 0.05 ± 3 standard errors wherever nothing is to be found.

    python benchmarks/calibration.py
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shiftscope.core import embedding, permutation
from shiftscope.core.corpora import text_depth
from shiftscope.core.rank_test import rank_test

OTHER = ("asyncio", "email", "http", "logging", "multiprocessing", "unittest", "urllib", "xml", "json", "concurrent")
FOREIGN = ("tkinter", "idlelib")
LEVEL, TRIALS, PERMUTED, DRAWS = 0.05, 1000, 200, 199
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def sentences(packages: tuple[str, ...]) -> list[str]:
    """The first paragraph of every docstring of the packages, at most 200 characters, each once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())[:200]
                    if len(text.split()) > 3:
                        found[text] = None
    return list(found)


def row(name: str, draw: Draw) -> float:
    """One line of a table; returns the permutation's share of rejections."""
    generator = np.random.default_rng(0)
    tests = []
    for _ in range(TRIALS):
        f, g = draw(generator)
        tests.append(rank_test(text_depth.depth(f, f, own=True), text_depth.depth(g, f)))
    rejected = []
    for trial in range(PERMUTED):
        f, g = draw(generator)
        labels = np.repeat([0.0, 1.0], [len(f), len(g)])
        q = text_depth.q_of_labels(np.concatenate([f, g]))
        rejected.append(permutation.permute(q, labels, draws=DRAWS, seed=trial).p(0) <= LEVEL)
    one, two = (np.mean([getattr(test, p) <= LEVEL for test in tests]) for p in ("p_below", "p_two_sided"))
    q_S, share = np.array([test.q for test in tests]), float(np.mean(rejected))
    print(f"{name:28} {one:9.3f} {two:9.3f} {share:11.3f}   {q_S.mean():.3f} ± {q_S.std():.3f}")
    return share


def halves(rows: np.ndarray, n: int) -> Draw:
    def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        picked = generator.permutation(len(rows))[: 2 * n]
        return rows[picked[:n]], rows[picked[n:]]

    return draw


def contaminated(rows: np.ndarray, foreign: np.ndarray, n: int, share: float) -> Draw:
    def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        picked, own = generator.permutation(len(rows))[: 2 * n], round(share * n)
        mixed = np.concatenate([rows[picked[n + own :]], foreign[generator.permutation(len(foreign))[:own]]])
        return rows[picked[:n]], mixed

    return draw


def main() -> None:
    encoder = embedding.load()
    rows = embedding.embed(encoder, sentences(OTHER))[0]
    foreign = embedding.embed(encoder, sentences(FOREIGN))[0]
    print(
        f"{len(rows)} sentences, {len(foreign)} of tkinter and idlelib; {TRIALS} trials, {PERMUTED} of the permutation"
    )
    head = f"{'':28} {'one-sided':>9} {'two-sided':>9} {'permutation':>11}   Q"
    print(f"\nnothing to find{head[15:]}")
    calibrated = [row(f"halves, n = {n}", halves(rows, n)) for n in (20, 100, 500)]
    calibrated.append(
        row(
            "Gaussian, d = 384, n = 100",
            lambda generator: (generator.normal(size=(100, 384)), generator.normal(size=(100, 384))),
        )
    )
    print(f"\nforeign texts, n = 200{head[22:]}")
    for share in (0.05, 0.10, 0.25, 0.50):
        row(f"{share:.0%}", contaminated(rows, foreign, 200, share))
    reach = 3 * (LEVEL * (1 - LEVEL) / PERMUTED) ** 0.5
    print(f"\nbar {LEVEL} ± {reach:.3f}: {'holds' if max(calibrated) <= LEVEL + reach else 'does not hold'}")


if __name__ == "__main__":
    main()
