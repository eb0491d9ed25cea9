"""Kernels as samples: drift against scipy, its null, variance entropy against a plain SVD, the random threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, gaussian_kde
from sklearn.decomposition import PCA
from torch import nn

from shiftscope.core.kernels import filters
from shiftscope.core.kernels.filters import Layer


def gaussian(n: int, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width))


def smooth(n: int, seed: int = 0) -> np.ndarray:
    """Kernels that mostly point one way, as trained ones do."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 1)) * np.linspace(-1, 1, 9) + 0.3 * generator.standard_normal((n, 9))


def coded(p: np.ndarray, q: np.ndarray):
    rows = filters.scaled(p), filters.scaled(q)
    basis = filters.basis(np.concatenate(rows), (3, 3))
    return basis, *(basis.codes(side) for side in rows)


def test_scaling_brings_every_kernel_to_a_largest_weight_of_one_and_leaves_zeros():
    rows = np.array([[1.0, -4.0], [0.0, 0.0], [1e-30, 0.0]])
    assert filters.scaled(rows).tolist() == [[0.25, -1.0], [0.0, 0.0], [1.0, 0.0]]


def test_the_basis_is_the_one_of_scikit_learn_up_to_sign():
    rows = filters.scaled(smooth(500))
    basis, oracle = filters.basis(rows, (3, 3)), PCA().fit(rows)
    assert basis.ratio_C == pytest.approx(oracle.explained_variance_ratio_, abs=1e-12)
    assert np.abs(np.sum(basis.components_CK * oracle.components_, 1)) == pytest.approx(np.ones(9), abs=1e-9)
    assert basis.ratio_C.sum() == pytest.approx(1)


def test_drift_is_the_weighted_symmetric_kl_of_the_papers_histograms():
    p, q = filters.scaled(gaussian(400)), filters.scaled(smooth(300))
    basis, codes_p, codes_q = coded(p, q)
    symmetric, bounded = [], []
    for c in range(9):
        densities = [
            np.histogram(basis.coefficients(side)[:, c], 70, range=(basis.low, basis.high), density=True)[0]
            for side in (p, q)
        ]
        bounded.append(jensenshannon(*densities) ** 2)
        a, b = (np.where(d > 0, d, np.finfo(np.float32).eps) for d in densities)
        symmetric.append(entropy(a, b) + entropy(b, a))  # scipy renormalises both to sum 1
    found = filters.drift(codes_p, codes_q, basis, permutations=20, seed=0)
    each = filters.by_component(basis.counts(codes_p), basis.counts(codes_q), basis)
    assert each[0] == pytest.approx(symmetric, rel=1e-10)
    assert each[1] == pytest.approx(bounded, rel=1e-10)
    assert found.nats == pytest.approx(basis.ratio_C @ symmetric, rel=1e-10)
    assert found.js_nats == pytest.approx(basis.ratio_C @ bounded, rel=1e-10)
    assert 0 < found.js_nats <= math.log(2)


def test_a_set_has_no_drift_from_itself_and_drift_is_symmetric():
    p, q = gaussian(300), smooth(300)
    basis, codes_p, codes_q = coded(p, q)
    there = filters.drift(codes_p, codes_q, basis, permutations=20, seed=0)
    back = filters.drift(codes_q, codes_p, basis, permutations=20, seed=0)
    assert (there.nats, there.js_nats) == pytest.approx((back.nats, back.js_nats), rel=1e-12)
    same = filters.drift(codes_p, codes_p, basis, permutations=20, seed=0)
    assert same.nats == 0
    assert same.p == 1


def test_drift_of_small_samples_is_large_by_chance_alone_and_the_null_says_so():
    """Noise floor of two i.i.d. Gaussian samples: 4.11 at 100, 0.53 at 500, 0.037 at 5000 (our measurement, ± a fifth)."""
    for n, floor in ((100, 4.11), (500, 0.53), (5000, 0.037)):
        basis, codes_p, codes_q = coded(gaussian(n, seed=1), gaussian(n, seed=2))
        found = filters.drift(codes_p, codes_q, basis, permutations=40, seed=0)
        assert found.nats == pytest.approx(floor, rel=0.25)
        assert found.null_S.mean() == pytest.approx(found.nats, rel=0.25)


def test_the_permutation_p_is_uniform_where_nothing_drifted_and_smallest_where_something_did():
    p_values = []
    for seed in range(60):
        basis, codes_p, codes_q = coded(gaussian(150, seed=2 * seed), gaussian(150, seed=2 * seed + 1))
        p_values.append(filters.drift(codes_p, codes_q, basis, permutations=39, seed=seed).p)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.2  # binomial(60, 0.1): above 12 with probability 0.01
    assert 0.35 < np.mean(p_values) < 0.65
    basis, codes_p, codes_q = coded(gaussian(150), smooth(150))
    assert filters.drift(codes_p, codes_q, basis, permutations=39, seed=0).p == 1 / 40


def test_the_paired_null_sees_a_common_move_that_pooling_calls_less_than_chance():
    before = gaussian(8000)
    after = before + 0.12 * np.eye(9)[4] * np.abs(before).max(1, keepdims=True)
    basis, codes_p, codes_q = coded(before, after)
    pooled = filters.drift(codes_p, codes_q, basis, permutations=99, seed=0)
    paired = filters.drift(codes_p, codes_q, basis, permutations=99, seed=0, paired=True)
    assert pooled.nats == paired.nats
    assert paired.p <= 0.05 < pooled.p
    assert paired.js_p == 0.01
    assert paired.null_S.mean() < 0.8 * pooled.null_S.mean()


def test_whole_layers_change_sides_in_every_way_and_the_smallest_p_is_stated():
    basis, codes_p, codes_q = coded(gaussian(600), smooth(600))
    layers = [np.stack([basis.counts(part) for part in np.array_split(codes, 6)]) for codes in (codes_p, codes_q)]
    found = filters.layer_drift(*layers, basis, permutations=200, seed=0)
    assert len(found.null_S) == 2**6 - 1
    assert found.exact
    assert found.p == found.least_p == 2 / 64
    assert found.nats == filters.drift(codes_p, codes_q, basis, permutations=20, seed=0).nats
    one = filters.layer_drift(layers[0][:1], layers[1][:1], basis, permutations=200, seed=0)
    assert one.p == one.least_p == 1
    drawn = filters.layer_drift(*layers, basis, permutations=40, seed=0)
    assert not drawn.exact
    assert drawn.least_p == 1 / 41 <= drawn.p


def test_a_kept_basis_is_the_same_bit_for_bit_and_takes_kernels_beyond_its_range():
    import json

    basis = filters.basis(filters.scaled(gaussian(200)), (3, 3))
    again = filters.Basis.from_json(json.loads(json.dumps(basis.as_json())))
    rows = filters.scaled(smooth(200))
    assert (again.codes(rows) == basis.codes(rows)).all()
    assert again.kernel == (3, 3)
    assert basis.outside(filters.scaled(gaussian(200))) == 0
    assert basis.outside(np.full((5, 9), 9.0)) == 5
    assert basis.counts(basis.codes(np.full((5, 9), 9.0))).sum(1).tolist() == [5] * 9


def test_variance_entropy_is_that_of_a_plain_svd_on_raw_rows():
    rows = smooth(200) * np.random.default_rng(1).lognormal(size=(200, 1))
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    assert filters.variance_entropy(rows) == pytest.approx(entropy(values) / math.log(10), abs=1e-12)


def test_the_entropy_of_scaled_rows_leaves_sparse_kernels_out_and_does_not_see_the_length_of_kernels():
    rows = smooth(300)
    longer = rows * np.random.default_rng(1).uniform(0.5, 2, (300, 1))  # too little to make a kernel sparse
    dead = np.concatenate([longer, np.full((40, 9), 1e-9)])
    plain, found = (filters.health(Layer("x", (3, 3), each, 4), rows="scaled") for each in (rows, dead))
    oracle = filters.variance_entropy(filters.scaled(rows))
    assert found["entropy"] == found["entropy_clean"] == pytest.approx(plain["entropy"], rel=1e-9)
    assert plain["entropy"] == pytest.approx(oracle, rel=1e-9)
    assert found["sparsity"] == 40 / 340
    assert found["entropy"] != pytest.approx(filters.health(Layer("x", (3, 3), dead, 4))["entropy"], rel=1e-3)


def test_drift_does_not_see_a_normalisation_folded_into_the_outputs():
    p, q = gaussian(400), smooth(400)
    folded = q * np.repeat(np.random.default_rng(0).lognormal(size=(40, 1)), 10, 0)  # ten inputs of each output
    for one, other in zip(coded(p, q), coded(p, folded), strict=True):
        if isinstance(one, np.ndarray):
            assert (one == other).mean() > 0.999  # rounding moves a coefficient over the edge of a bin at most


@pytest.mark.parametrize("width", [3, 4, 9, 25])
def test_variance_entropy_lies_between_nothing_and_the_logarithm_of_the_width(width):
    assert filters.variance_entropy(np.tile(np.arange(width, dtype=float), (7, 1))) == 0
    assert filters.variance_entropy(np.ones((1, width))) == 0
    even = np.concatenate([np.eye(width), -np.eye(width)])
    assert filters.variance_entropy(even) == pytest.approx(math.log10(width))


def test_random_layers_lie_above_the_threshold_as_often_as_measured():
    for n, share in ((9, 1.0), (16, 1.0), (32, 1.0), (64, 0.97), (128, 0.95), (256, 0.93), (1024, 1.0), (8192, 1.0)):
        above = [
            filters.variance_entropy(gaussian(n, seed=seed)) >= filters.random_threshold(n, 9) for seed in range(100)
        ]
        assert np.mean(above) == pytest.approx(share, abs=0.06), n


@pytest.mark.parametrize(("n", "width"), [(12, 25), (60, 25), (40, 4)])
def test_the_simulated_threshold_is_the_smallest_entropy_of_random_layers_of_that_shape(n, width):
    found = filters.random_threshold(n, width)
    drawn = [filters.variance_entropy(gaussian(n, width, seed)) for seed in range(400)]
    assert np.mean(np.array(drawn) < found) < 0.05  # the minimum of 100 draws: 1 % on average
    assert found < np.quantile(drawn, 0.2)
    assert found == filters.random_threshold(n, width)


def test_the_simulated_threshold_at_nine_weights_agrees_with_the_authors_sigmoid():
    for n in (64, 512, 16384):
        assert filters._simulated_threshold(n, 9, 0) == pytest.approx(filters.random_threshold(n, 9), abs=0.015)


def test_sparse_kernels_are_those_below_a_hundredth_of_the_layers_largest_weight():
    rows = np.array([[1.0, 0.0], [0.009, -0.0099], [0.01, 0.0], [0.0, 0.0]])
    assert filters.sparse(rows).tolist() == [False, True, False, True]
    assert filters.sparse(np.zeros((3, 2))).all()


def test_classes_of_layers():
    def named(rows: np.ndarray) -> str:
        return filters.health(Layer("x", (3, 3), rows, 4))["class"]

    generator = np.random.default_rng(0)
    half_dead = smooth(400) * generator.lognormal(size=(400, 9))
    half_dead[:100] *= 1e-6
    assert named(gaussian(400)) == "random"
    assert named(generator.standard_normal((400, 1)) * np.linspace(-1, 1, 9)) == "low diversity"
    assert named(half_dead) == "sparse"
    assert named(np.zeros((400, 9))) == "sparse"
    assert named(gaussian(8)) == "too few kernels"
    assert named(gaussian(400) * np.linspace(0.4, 1.6, 9)) == "healthy"


def test_zero_layers_have_no_clean_figures_and_single_filters_no_orthogonality():
    found = filters.health(Layer("x", (3, 3), np.zeros((12, 9)), 1))
    assert found["entropy_clean"] is found["threshold_clean"] is found["orthogonality"] is None
    assert (found["sparsity"], found["entropy"]) == (1.0, 0.0)


def test_orthogonality_is_one_for_orthogonal_filters_and_zero_for_copies():
    assert filters.orthogonality(Layer("x", (2,), np.eye(2) * 3, 2)) == 1
    assert filters.orthogonality(Layer("x", (2,), np.array([[1.0, 1.0], [-2.0, -2.0]]), 2)) == pytest.approx(0)


def test_convolutions_of_every_width_are_found_and_others_are_left_alone():
    model = nn.ModuleDict(
        {
            "two": nn.Conv2d(3, 4, 3, bias=True),
            "wide": nn.Conv2d(3, 4, (7, 5)),
            "one": nn.Conv1d(6, 6, 4, groups=6),
            "three": nn.Conv3d(1, 2, 3),
            "back": nn.ConvTranspose2d(2, 5, 2),
            "point": nn.Conv2d(3, 4, 1),
            "linear": nn.Linear(3, 4),
            "norm": nn.BatchNorm2d(4),
        }
    )
    layers, notes = filters.convolutions(dict(model.state_dict()), "m")
    assert {layer.name: (layer.kernel, layer.rows_NK.shape) for layer in layers} == {
        "two": ((3, 3), (12, 9)),
        "wide": ((7, 5), (12, 35)),
        "one": ((4,), (6, 4)),
        "three": ((3, 3, 3), (2, 27)),
        "back": ((2, 2), (10, 4)),
    }
    assert len(notes) == 1
    assert "1 pointwise" in notes[0]


def test_weight_normalisation_is_undone():
    plain = nn.Conv1d(4, 6, 5)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 5), dim=2)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(1.7)
    (layer,), _ = filters.convolutions(dict(normed.state_dict()), "m")
    assert torch.from_numpy(layer.rows_NK).view_as(plain.weight) == pytest.approx(normed.weight.detach(), rel=1e-5)


def test_weights_that_are_no_numbers_are_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"m has 1 of 18 weights that are not finite .* in 0.weight"):
        filters.convolutions(dict(model.state_dict()), "m")


def test_integer_weights_are_left_out_with_a_sentence():
    layers, notes = filters.convolutions({"a.weight": torch.ones(2, 2, 3, 3, dtype=torch.int8)}, "m")
    assert not layers
    assert "of type int8" in notes[0]


def test_kernels_that_are_all_alike_make_no_basis():
    with pytest.raises(ValueError, match="alike up to scale"):
        filters.basis(np.ones((20, 9)), (3, 3))
    with pytest.raises(ValueError, match="at least 3"):
        filters.basis(gaussian(2), (3, 3))


def test_the_density_is_that_of_scipy_with_the_same_bandwidth():
    values = np.random.default_rng(0).standard_normal(400)
    grid = np.linspace(-5, 5, 401)
    bandwidth = 0.9 * min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34) * 400**-0.2
    oracle = gaussian_kde(values, bandwidth / values.std(ddof=1))(grid)
    found = filters.density(values, grid)
    assert found == pytest.approx(oracle, abs=0.004)
    assert found.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-6)
