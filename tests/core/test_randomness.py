"""Claims about keyed uniform numbers: uniform, independent, and the same whatever the batching."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from shiftscope.core.randomness import uniforms


def test_numbers_over_documents_and_over_positions_are_uniform():
    assert kstest(uniforms(0, np.arange(50_000), 0), "uniform").pvalue > 1e-3
    assert kstest(uniforms(0, 0, np.arange(50_000)), "uniform").pvalue > 1e-3
    assert kstest([float(uniforms(seed, 3, 5)) for seed in range(5000)], "uniform").pvalue > 1e-3
    assert kstest([float(uniforms(1, 3, 5, stream)) for stream in range(5000)], "uniform").pvalue > 1e-3


def test_neighbours_in_every_key_are_uncorrelated():
    grid = uniforms(7, np.arange(300)[:, None], np.arange(300)[None])
    pairs = {
        "documents": (grid[1:], grid[:-1]),
        "positions": (grid[:, 1:], grid[:, :-1]),
        "swapped": (grid[np.triu_indices(300, 1)], grid.T[np.triu_indices(300, 1)]),
        "seeds": (grid, uniforms(8, np.arange(300)[:, None], np.arange(300)[None])),
        "streams": (grid, uniforms(7, np.arange(300)[:, None], np.arange(300)[None], stream=1)),
    }
    for name, (a, b) in pairs.items():
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(a.size), name
    counts = np.histogram2d(grid[:, 1:].ravel(), grid[:, :-1].ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_a_number_does_not_depend_on_what_else_is_asked():
    documents, positions = np.arange(40), np.arange(40) * 3
    whole = uniforms(5, documents, positions)
    assert [float(uniforms(5, d, p)) for d, p in zip(documents, positions, strict=True)] == whole.tolist()
    order = np.random.default_rng(0).permutation(40)
    assert (uniforms(5, documents[order], positions[order]) == whole[order]).all()


def test_numbers_lie_in_the_half_open_unit_interval_and_do_not_repeat():
    numbers = uniforms(0, np.arange(1000)[:, None], np.arange(100)[None])
    assert numbers.shape == (1000, 100)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_any_64_bit_seed_is_taken(seed):
    assert 0 <= float(uniforms(seed, 0, 0)) < 1
