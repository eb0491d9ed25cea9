"""How often the tests of `compare corpora` reject, and what Q is: nothing to find, real shifts, foreign texts, word salad.

First sentences of the standard library's docstrings under the default sentence encoder (extra `embed`); the foreign ones
are those of tkinter and idlelib. Per row: share of trials with p <= 0.05 of the published one-sided rank-sum test of Q, of
the same two-sided, and of the two-sided label permutation (fewer trials); mean and spread of Q; and, last, what an earlier
replication (other sentences of the same library, 4000 of them) found for the one-sided test and Q. Under no shift every
share should be 0.05; the last row of the first table has no texts but isotropic Gaussian vectors of the same width. The
last table has single comparisons, with their p-values: real shifts, and sentences from n-gram models of the human ones
(trigrams of 400 sentences mostly spell them again, which is not told apart here).
Bars: the permutation within 0.05 ± 3 standard errors wherever nothing is to be found; Q <= 0.30 for tkinter; two-sided
p < 1e-3 for bigram text, which the one-sided test calls unshifted.

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


def row(name: str, draw: Draw, earlier: str) -> float:
    """One line of a table; returns the permutation's share of rejections. earlier: one-sided share and Q found before."""
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
    print(f"{name:28} {one:9.3f} {two:9.3f} {share:11.3f}   {q_S.mean():.3f} ± {q_S.std():.3f}   {earlier}")
    return share


def salad(human: list[str], order: int, count: int, generator: np.random.Generator) -> list[str]:
    """Sentences of an n-gram model of words: each word drawn from those that followed the same order - 1 words before."""
    after: dict[tuple[str, ...], list[str]] = {}
    for text in human:
        words = [""] * (order - 1) + text.split() + [""]
        for place in range(order - 1, len(words)):
            after.setdefault(tuple(words[place - order + 1 : place]), []).append(words[place])
    found: list[str] = []
    while len(found) < count:
        words = [""] * (order - 1)
        while len(words) < 40 and (word := str(generator.choice(after[tuple(words[len(words) - order + 1 :])]))):
            words.append(word)
        if len(words) > order + 2:
            found.append(" ".join(words).strip())
    return found


def single(name: str, f: np.ndarray, g: np.ndarray, earlier: str) -> tuple[float, float]:
    """One comparison of G with F; returns Q and the two-sided p."""
    test = rank_test(text_depth.depth(f, f, own=True), text_depth.depth(g, f))
    labels = np.repeat([0.0, 1.0], [len(f), len(g)])
    permuted = permutation.permute(text_depth.q_of_labels(np.concatenate([f, g])), labels, draws=999)
    print(f"{name:28} {test.p_below:9.2g} {test.p_two_sided:9.2g} {permuted.p(0):11.3f}   {test.q:.3f}   {earlier}")
    return test.q, test.p_two_sided


def singles(encoder: embedding.Encoder, human: list[str], rows: np.ndarray, foreign: np.ndarray) -> tuple[bool, bool]:
    """The table of single comparisons; returns whether the gates of tkinter and of bigram text hold."""
    generator = np.random.default_rng(0)
    order, strange = generator.permutation(len(rows)), foreign[generator.permutation(len(foreign))[:300]]
    q, _ = single("tkinter, idlelib, 300 v 300", rows[order[:300]], strange, "Q 0.260")
    back, _ = single("the same, the other way", strange, rows[order[:300]], "Q 0.171")
    deepest = rows[np.argsort(-text_depth.depth(rows, rows, own=True))[:300]]
    single("the 300 deepest of all", rows, deepest, "Q 0.937, one-sided 1, two-sided 1e-76")
    reference, known = rows[order[:400]], [human[i] for i in order[:400]]
    single("held-out human, 400 v 200", reference, rows[order[400:600]], "Q 0.516, one-sided 0.70")
    p = 1.0
    for size, earlier in ((3, "Q 0.603"), (2, "Q 0.711"), (1, "Q 0.631")):
        made = embedding.embed(encoder, salad(known, size, 200, generator))[0]
        found = single(
            f"{size}-gram text, 400 v 200", reference, made, f"{earlier}, one-sided about 1, two-sided < 1e-3"
        )
        p = found[1] if size == 2 else p
    return q <= 0.30 and back <= 0.30, p < 1e-3


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
    human = sentences(OTHER)
    rows = embedding.embed(encoder, human)[0]
    foreign = embedding.embed(encoder, sentences(FOREIGN))[0]
    print(
        f"{len(rows)} sentences, {len(foreign)} of tkinter and idlelib; {TRIALS} trials, {PERMUTED} of the permutation"
    )
    head = f"{'':28} {'one-sided':>9} {'two-sided':>9} {'permutation':>11}   Q               earlier"
    print(f"\nnothing to find{head[15:]}")
    calibrated = [
        row(f"halves, n = {n}", halves(rows, n), earlier)
        for n, earlier in ((20, "0.070, 0.507 ± 0.105"), (100, "0.048, 0.505 ± 0.040"), (500, "0.027, 0.499 ± 0.016"))
    ]
    calibrated.append(
        row(
            "Gaussian, d = 384, n = 100",
            lambda generator: (generator.normal(size=(100, 384)), generator.normal(size=(100, 384))),
            "0.078",
        )
    )
    print(f"\nforeign texts, n = 200{head[22:]}")
    for share, earlier in ((0.05, "0.08, 0.493"), (0.10, "0.22, 0.472"), (0.25, "0.68, 0.436"), (0.50, "1.00, 0.375")):
        row(f"{share:.0%}", contaminated(rows, foreign, 200, share), earlier)
    print(f"\np-values of one comparison{head[26:]}")
    far, bland = singles(encoder, human, rows, foreign)
    reach = 3 * (LEVEL * (1 - LEVEL) / PERMUTED) ** 0.5
    level = max(calibrated) <= LEVEL + reach
    for bar, holds in (
        (f"permutation 0.05 ± {reach:.3f}", level),
        ("Q of tkinter <= 0.30", far),
        ("bigrams < 1e-3", bland),
    ):
        print(f"bar {bar}: {'holds' if holds else 'does not hold'}")


if __name__ == "__main__":
    main()
