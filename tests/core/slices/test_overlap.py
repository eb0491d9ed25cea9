from __future__ import annotations

import itertools

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from shiftscope.core.slices import overlap
from shiftscope.core.slices.slices import SliceTable


def random_weights(seed: int, n: int = 20, density: float = 0.5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    upper = np.triu(generator.random((n, n)) * (generator.random((n, n)) < density), 1)
    chain = np.diag(np.full(n - 1, 0.3), 1)  # keeps it connected
    return np.maximum(upper, chain) + np.maximum(upper, chain).T


def test_overlap_is_that_of_brute_force_over_sets():
    generator = np.random.default_rng(0)
    named = {f"s{n}": set(generator.integers(0, 60, 15).tolist()) for n in range(12)}
    table = SliceTable.of(named)
    expected = [
        [len(named[a] & named[b]) / min(len(named[a]), len(named[b])) for b in table.names] for a in table.names
    ]
    assert np.allclose(overlap.coefficients(table), expected, atol=0)


def test_an_empty_slice_has_no_overlap():
    with pytest.raises(ValueError, match="the slice 'b' is empty"):
        overlap.coefficients(SliceTable.of({"a": [1], "b": []}))


def test_weights_below_the_threshold_are_no_links():
    weight = overlap.weights(np.array([[1, 0.2, 0.19], [0.2, 1, 0.5], [0.19, 0.5, 1]]), 0.2)
    assert np.array_equal(weight, [[0, 0.2, 0], [0.2, 0, 0.5], [0, 0.5, 0]])


@pytest.mark.parametrize("seed", range(5))
def test_the_spectral_layout_is_that_of_networkx_up_to_signs(seed):
    weight = random_weights(seed)
    layout = networkx.spectral_layout(networkx.from_numpy_array(weight), dim=5)
    theirs = np.array([layout[n] for n in range(len(weight))])
    ours = overlap.spectral(weight, 5)
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    assert np.allclose(pdist(ours), pdist(theirs), atol=1e-9)
    assert np.allclose(overlap.distances(weight, "spectral5")[np.triu_indices(20, 1)], pdist(theirs), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_commute_distance_is_the_root_of_the_resistance_that_networkx_solves_for(seed):
    weight = random_weights(seed, n=9)
    graph = networkx.from_numpy_array(weight)
    ours = overlap.distances(weight, "commute")
    for a, b in itertools.combinations(range(9), 2):
        resistance = networkx.resistance_distance(graph, a, b, weight="weight", invert_weight=False)
        assert ours[a, b] ** 2 == pytest.approx(resistance, rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_the_commute_distance_is_a_metric_and_does_not_depend_on_the_order(seed):
    weight = random_weights(seed, n=8)
    distance = overlap.distances(weight)
    order = np.random.default_rng(seed).permutation(8)
    assert np.allclose(distance, distance.T)
    assert (distance[:, :, None] <= distance[:, None, :] + distance.T[None, :, :] + 1e-9).all()
    assert np.allclose(overlap.distances(weight[np.ix_(order, order)]), distance[np.ix_(order, order)], atol=1e-8)


def test_unconnected_slices_are_infinitely_far_and_each_part_is_as_if_alone():
    one, two = random_weights(0, 6), random_weights(1, 7)
    both = np.block([[one, np.zeros((6, 7))], [np.zeros((7, 6)), two]])
    distance = overlap.distances(both)
    assert np.isinf(distance[:6, 6:]).all()
    assert np.allclose(distance[:6, :6], overlap.distances(one))
    assert np.allclose(distance[6:, 6:], overlap.distances(two))
    assert np.isinf(overlap.between(distance, np.array([0]), np.array([1, 6])))
    assert np.array_equal(overlap.components(both), [0] * 6 + [1] * 7)


def test_a_lone_slice_is_infinitely_far_from_all_others():
    weight = np.pad(random_weights(0, 4), (0, 1))
    distance = overlap.distances(weight)
    assert np.isinf(distance[4, :4]).all()
    assert distance[4, 4] == 0


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (random_weights(0, 11), "11 slices: a spectral layout in 5 dimensions needs at least 12"),
        (np.pad(random_weights(0, 12), (0, 1)), "2 components"),
        (np.ones((12, 12)) - np.eye(12), "equal: its spectral layout is arbitrary"),
    ],
    ids=["small", "disconnected", "symmetric"],
)
def test_a_spectral_layout_that_means_nothing_is_refused_and_its_distances_are_no_numbers(weight, reason):
    with pytest.raises(ValueError, match=reason):
        overlap.spectral(weight, 5)
    part = overlap.distances(weight, "spectral5")[:11, :11]
    if reason.startswith("2"):
        assert np.isfinite(part).all()  # its large part has a layout of its own
    else:
        assert np.isnan(part[np.triu_indices(11, 1)]).all()


def test_why_few_slices_are_refused_all_spectral_distances_are_equal_with_all_eigenvectors():
    weight = random_weights(3, 6)
    _, vectors = np.linalg.eigh(np.diag(weight.sum(1)) - weight)
    assert np.ptp(pdist(vectors[:, 1:])) < 1e-12  # dim = n - 1


def test_communities_are_those_of_networkx_numbered_by_first_slice():
    weight = np.zeros((9, 9))
    for block in (range(0, 9, 3), range(1, 9, 3), range(2, 9, 3)):
        weight[np.ix_(list(block), list(block))] = 0.9
    weight[weight == 0] = 0.01
    np.fill_diagonal(weight, 0)
    assert np.array_equal(overlap.communities(weight), [0, 1, 2] * 3)
    assert len(set(overlap.communities(weight, weighted=False).tolist())) == 1  # without weights all links are alike


def test_slices_without_links_are_communities_of_their_own():
    assert np.array_equal(overlap.communities(np.zeros((3, 3))), [0, 1, 2])


def test_merging_unites_the_slices_of_a_community():
    table = SliceTable.of({"c(a)": [1, 2], "c(b)": [2, 3], "c(x)": [9]})
    union, groups = overlap.merged(table, np.array([0, 0, 1]))
    assert groups == [["c(a)", "c(b)"], ["c(x)"]]
    assert union.ids_of("c(a) + c(b)") == ["1", "2", "3"]
