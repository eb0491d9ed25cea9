"""Claims about depth: the closed form is the pairwise definition, the median is central, nothing without a direction counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from shiftscope.core import permutation
from shiftscope.core.corpora import text_depth
from shiftscope.core.rank_test import rank_test

DISTANCES = ("cosine", "chord", "arc")


def rows(count, width=12, seed=0, shift=0.5):
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def pairwise(x, f, distance, own):
    """The definition, one pair at a time."""
    found = []
    for i, a in enumerate(x):
        apart = []
        for j, b in enumerate(f):
            if own and i == j:
                continue
            cos = np.clip(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b), -1, 1)
            apart.append({"cosine": 1 - cos, "chord": np.sqrt(2 * (1 - cos)), "arc": np.arccos(cos)}[distance])
        found.append((np.pi if distance == "arc" else 2) - np.mean(apart))
    return np.array(found)


@pytest.mark.parametrize("distance", DISTANCES)
def test_depth_is_the_pairwise_definition_in_both_directions(distance):
    f, g = rows(40), rows(25, seed=1)
    assert text_depth.depth(g, f, distance) == pytest.approx(pairwise(g, f, distance, False), abs=1e-12)
    assert text_depth.depth(f, f, distance, own=True) == pytest.approx(pairwise(f, f, distance, True), abs=1e-12)


def test_the_closed_form_is_the_pairwise_mean_of_2000_rows_within_1e_9():
    f = rows(2000, 64, shift=0.1).astype(np.float32)
    apart = cdist(f.astype(np.float64), f.astype(np.float64), "cosine")
    np.fill_diagonal(apart, 0)
    found = text_depth.depth(f, f, own=True)
    assert np.abs(found - (2 - apart.sum(1) / 1999)).max() < 1e-9


def test_two_references_at_once_are_one_after_the_other():
    f, g = rows(1500), rows(1100, seed=1)  # more than a block
    both = text_depth.cosine_depth(f, text_depth.reference(f), text_depth.reference(g), own=0)
    assert both[:, 0] == pytest.approx(text_depth.depth(f, f, own=True), abs=1e-12)
    assert both[:, 1] == pytest.approx(text_depth.depth(f, g), abs=1e-12)


def test_a_memory_mapped_matrix_gives_the_same_depths(tmp_path):
    f = rows(300).astype(np.float32)
    np.save(tmp_path / "f.npy", f)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert (text_depth.depth(mapped, mapped, own=True) == text_depth.depth(f, f, own=True)).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_length_of_a_vector_does_not_matter_and_copies_of_one_text_have_the_largest_depth(distance):
    f = rows(20)
    scale = np.random.default_rng(3).uniform(0.1, 9, (20, 1))
    own = text_depth.depth(f, f, distance, own=True)
    assert text_depth.depth(f * scale, f * scale, distance, own=True) == pytest.approx(own, abs=1e-7)
    copies = np.tile(f[:1], (5, 1))
    assert text_depth.depth(copies, copies, distance, own=True) == pytest.approx(text_depth.LARGEST[distance], abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_row_of_zeros_gets_no_depth_and_counts_for_nobody(distance):
    f = rows(10)
    holed = np.insert(f, 4, 0, axis=0)
    found = text_depth.depth(holed, holed, distance, own=True)
    assert np.isnan(found[4])
    assert np.delete(found, 4) == pytest.approx(text_depth.depth(f, f, distance, own=True), abs=1e-12)
    assert text_depth.depth(f, holed, distance) == pytest.approx(text_depth.depth(f, f, distance), abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_corpus_of_one_text_has_no_depth_of_its_own(distance):
    assert np.isnan(text_depth.depth(rows(1), rows(1), distance, own=True)).all()


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match="must agree in width"):
        text_depth.depth(rows(3, 4), rows(3, 5))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_permuted_statistic_is_q_of_the_depths_with_those_labels(distance):
    x = rows(30)
    labels = np.stack(
        [np.random.default_rng(seed).permutation(np.repeat([0.0, 1.0], [18, 12])) for seed in range(4)], 1
    )
    found = text_depth.q_of_labels(x, distance)(labels)
    for column in range(4):
        f, g = x[labels[:, column] == 0], x[labels[:, column] == 1]
        for number, (own, other) in enumerate(((f, g), (g, f))):
            depth = text_depth.depth(own, own, distance, own=True), text_depth.depth(other, own, distance)
            assert found[number, column] == pytest.approx(rank_test(*depth).q, abs=1e-12)


def test_permutation_p_of_q_keeps_its_level_where_the_rank_sum_test_does_not():
    generator = np.random.default_rng(0)
    permuted, ranked = [], []
    for trial in range(150):
        x = generator.normal(size=(40, 128))
        second = np.repeat([0.0, 1.0], 20)
        permuted.append(permutation.permute(text_depth.q_of_labels(x), second, draws=99, seed=trial).p(0) <= 0.05)
        f, g = x[:20], x[20:]
        ranked.append(rank_test(text_depth.depth(f, f, own=True), text_depth.depth(g, f)).p_two_sided <= 0.05)
    assert np.mean(permuted) < 0.10  # 0.05 expected, standard error 0.018
    assert np.mean(ranked) > np.mean(permuted)
