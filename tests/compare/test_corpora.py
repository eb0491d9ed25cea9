"""Claims about comparing corpora: the gates of the replication, what depth is blind to, and faults by name."""

from __future__ import annotations

import ast
import importlib.util
import json
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shiftscope.compare.corpora import Chance, corpora
from shiftscope.core import embedding, permutation
from shiftscope.core.corpora import text_depth
from shiftscope.core.rank_test import rank_test

QUICK = Chance(permutations=199)
needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec(embedding.DEFAULT_PACKAGE) is None, reason="needs the extra embed"
)


def docstrings(packages):
    """First sentences of the docstrings of packages of the standard library, in order of their files."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), []
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            if "test" not in str(file.relative_to(root)):
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef):
                        text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                        if len(text.split()) > 3:
                            found.append(text[:200])
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def stdlib():
    """Vectors and texts: 400 of other modules (in random order), 200 of tkinter and idlelib."""
    generator = np.random.default_rng(0)
    other = docstrings(["asyncio", "email", "http", "logging", "multiprocessing", "unittest", "urllib", "xml", "json"])
    own = docstrings(["tkinter", "idlelib"])
    if len(own) < 200:
        pytest.skip("this Python has no tkinter")
    texts = (
        [other[i] for i in generator.permutation(len(other))[:400]],
        [own[i] for i in generator.permutation(len(own))[:200]],
    )
    encoder = embedding.load()
    return [(given, embedding.embed(encoder, given)[0]) for given in texts]


@needs_encoder
def test_halves_of_one_corpus_are_not_told_apart(stdlib):
    rows = stdlib[0][1]
    found = corpora(rows[:200], rows[200:], chance=QUICK)
    assert abs(found["q_b_in_a"] - 0.5) < 0.05
    assert abs(found["q_a_in_b"] - 0.5) < 0.05
    assert min(found[f"{name}_p_permutation"] for name in ("q_b_in_a", "q_a_in_b", "mmd2")) > 0.01
    assert "Nothing tells" in found.verdict[0]


def rejections(own, foreign, n, share, trials=200):
    """How often n texts and n others, of which a share is foreign, are told apart: by permutation; and the mean Q."""
    generator, rejected, q = np.random.default_rng(1), [], []
    second, strange = np.repeat([0.0, 1.0], n), round(share * n)
    for trial in range(trials):
        picked = generator.permutation(len(own))[: 2 * n - strange]
        rows = np.concatenate([own[picked], foreign[generator.permutation(len(foreign))[:strange]]])
        found = permutation.permute(text_depth.q_of_labels(rows), second, draws=99, seed=trial)
        rejected.append(found.p(0) <= 0.05)
        q.append(found.observed_S[0])
    return np.mean(rejected), np.mean(q)


@needs_encoder
@pytest.mark.parametrize("n", [20, 100])
def test_without_a_shift_the_permutation_rejects_as_often_as_its_level_says(stdlib, n):
    """The whole table, up to n = 500 and with the published test, is benchmarks/calibration.py."""
    share, q = rejections(stdlib[0][1], stdlib[1][1], n, 0)
    assert share <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5  # 200 trials
    assert q == pytest.approx(0.5, abs=0.02)


@needs_encoder
def test_the_more_foreign_texts_the_more_often_they_are_seen(stdlib):
    found = [rejections(stdlib[0][1], stdlib[1][1], 100, share) for share in (0, 0.1, 0.25, 0.5)]
    powers, q = zip(*found, strict=True)
    assert sorted(powers) == list(powers)
    assert powers[0] < 0.1 < 0.3 < powers[2] < powers[3]
    assert powers[3] > 0.95
    assert sorted(q, reverse=True) == list(q)


@needs_encoder
@pytest.mark.parametrize("distance", ["cosine", "chord", "arc"])
def test_the_tkinter_shift_is_seen_both_ways_by_every_distance(stdlib, distance):
    other, own = stdlib[0][1][:200], stdlib[1][1]
    found = corpora(other, own, distance=distance, chance=QUICK)
    assert found["q_b_in_a"] <= 0.30
    assert found["q_a_in_b"] <= 0.25
    assert found["q_b_in_a_p_one_sided"] < 1e-4
    assert found["q_b_in_a_p_permutation"] == pytest.approx(2 / 200)
    assert found["discriminator_auc"] > 0.85
    halves = corpora(stdlib[0][1][:200], stdlib[0][1][200:], distance=distance, chance=QUICK)
    assert found["q_b_in_a"] < halves["q_b_in_a"] - 0.15  # the baseline: no shift


@needs_encoder
def test_a_concentrated_corpus_is_more_central_and_only_the_two_sided_p_sees_it(stdlib):
    rows = stdlib[0][1]
    pool, rest = rows[:250], rows[250:]
    deepest = rest[np.argsort(-text_depth.depth(rest, pool))[:60]]
    found = corpora(pool, deepest, chance=QUICK)
    assert found["q_b_in_a"] > 0.7
    assert found["q_b_in_a_p_one_sided"] > 0.99
    assert found["q_b_in_a_p_two_sided"] < 1e-3
    assert any("more central" in sentence for sentence in found.verdict)


def bigrams(texts, count, seed=0):
    """Word salad: a chain over the words of the texts."""
    generator, after = np.random.default_rng(seed), {}
    for text in texts:
        words = ["", *text.split(), ""]
        for first, second in pairwise(words):
            after.setdefault(first, []).append(second)
    found = []
    while len(found) < count:
        words = [""]
        while len(words) < 18:
            words.append(str(generator.choice(after[words[-1]])))
        found.append(" ".join(word for word in words if word))
    return found


@needs_encoder
def test_word_salad_is_called_unshifted_by_the_published_test_and_caught_by_ours(stdlib):
    human, rows = stdlib[0]
    salad, _ = embedding.embed(embedding.load(), bigrams(human, 200))
    found = corpora(rows[:400], salad, chance=QUICK)
    assert found["q_b_in_a"] > 0.55
    assert found["q_b_in_a_p_one_sided"] > 0.5
    assert found["q_b_in_a_p_two_sided"] < 1e-3


def planted(seed=0, count=150):
    generator = np.random.default_rng(seed)
    rows = 0.3 * generator.normal(size=(2 * count, 8))
    rows[:, 0] += 2
    rows[:count, 1] += np.repeat([1.0, -1.0], count // 2)
    rows[count:, 2] += np.repeat([1.0, -1.0], count // 2)
    return rows[:count], rows[count:]


def test_a_shift_that_keeps_the_mean_direction_is_said_to_escape_depth():
    found = corpora(*planted(), chance=QUICK)
    assert min(found["q_b_in_a_p_permutation"], found["q_a_in_b_p_permutation"]) > 0.05
    assert found["mmd2_p_permutation"] < 0.01
    assert any("blind" in sentence for sentence in found.verdict)


def test_a_shift_that_only_all_texts_show_is_not_called_absent():
    """Q of all texts has an interval without 0.5, the permuted sample is too small for it: the verdict says both."""
    generator = np.random.default_rng(4)
    a, b = (generator.normal(size=(4000, 8)) + shift for shift in (1.0, 0.94))
    found = corpora(a, b, chance=Chance(permutations=99, sample=60))
    q = found.figures["q_b_in_a"]
    assert q.high < 0.5
    assert found["q_b_in_a_p_permutation"] > 0.05
    assert "on a sample of 120 of the 8,000 texts" in found.verdict[0]
    assert "all 8,000 texts show a shift of B" in found.verdict[1]
    assert "too small for the permuted sample" in found.verdict[1]


def test_figures_are_those_of_the_table_and_swapping_the_corpora_swaps_them():
    a, b = planted(1)
    found, swapped = corpora(a, b[:90], chance=QUICK), corpora(b[:90], a, chance=QUICK)
    depth = found.table["depth_a"].to_numpy()
    assert found["q_b_in_a"] == rank_test(depth[: len(a)], depth[len(a) :]).q
    for name, mirror in (("q_b_in_a", "q_a_in_b"), ("depth_median_a", "depth_median_b")):
        assert found[name] == pytest.approx(swapped[mirror], abs=1e-12)
    assert found["mmd2"] == pytest.approx(swapped["mmd2"], abs=1e-12)


def test_rows_without_direction_and_repeated_ids_stay_in_the_table_and_are_named():
    a, b = planted()
    a = np.concatenate([a, np.zeros((2, 8))])
    found = corpora(a, b, chance=QUICK)
    assert len(found.table) == len(a) + len(b)
    assert found.table["depth_a"].null_count == 2
    assert found["texts_a"] == len(a) - 2
    assert "2 rows have no direction" in " ".join(found.notes)


@pytest.mark.parametrize("rows", [np.ones((1, 8)), np.concatenate([np.ones((1, 8)), np.zeros((5, 8))])])
def test_a_corpus_of_one_usable_text_is_refused(rows):
    with pytest.raises(ValueError, match="needs at least two"):
        corpora(rows, planted()[0])


def test_settings_that_mean_nothing_are_named():
    for settings in ({"shown": 0}, {"limit": 0}, {"limit": -5}):
        with pytest.raises(ValueError, match=r"(shown is 0|limit is)"):
            corpora(*planted(), **settings)
    for settings in ({"seed": -1}, {"permutations": 9}, {"sample": 1}):
        with pytest.raises(ValueError, match="need at least 99, 2 and 0"):
            Chance(**settings)


def test_mmd_is_left_out_with_its_reason_where_it_has_no_bandwidth():
    found = corpora(np.ones((8, 4)), np.concatenate([np.ones((7, 4)), -np.ones((1, 4))]), chance=QUICK)
    assert "mmd2" not in found.figures
    assert any("MMD is left out" in note for note in found.notes)


def test_the_page_gets_histograms_a_map_the_driving_texts_and_a_sample_is_named(tmp_path):
    found = corpora(*planted(), chance=Chance(permutations=99, sample=50), shown=3)
    assert [panel.kind for panel in found.panels] == ["line", "line", "points", "table", "table"]
    assert len(found.panels[2].table) == 100
    assert {panel.table["corpus"][0].as_py() for panel in found.panels[:3]} == {"A"}  # one colour each on all charts
    assert len(found.panels[3].table) == 6
    assert any("at most 50 texts" in note for note in found.notes)
    found.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["q_b_in_a"]["n"] == 300
