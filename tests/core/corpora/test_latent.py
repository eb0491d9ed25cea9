"""Latent classes: exactness of the anchor factoriser, the EM against a general optimiser, planted shifts, naming."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from shiftscope.core.corpora import latent, matching, planting


def population(seed: int, clusters: int = 30, classes: int = 4, domains: int = 6) -> tuple[np.ndarray, ...]:
    """p(c|y) in which every class has a cluster of its own, p(y|d), and what infinite data would show: p(c|d), p(d|c)."""
    generator = np.random.default_rng(seed)
    emission_MK = generator.dirichlet(np.full(clusters, 0.5), classes).T
    emission_MK[:classes] = np.diag(generator.uniform(0.05, 0.2, classes))
    emission_MK /= emission_MK.sum(0)
    mixture_KR = planting.planted_mixture(classes, domains, alpha=3, condition=8, generator=generator)
    share_MR = emission_MK @ mixture_KR
    return emission_MK, mixture_KR, share_MR, share_MR / share_MR.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(6))
def test_the_anchor_factoriser_is_exact_on_infinite_data(seed):
    emission_MK, mixture_KR, share_MR, centre_MR = population(seed)
    found = latent.anchor(centre_MR, share_MR, 4, smallest=0)
    order = matching.aligned(found.mixture_KR, mixture_KR)
    assert found.mixture_KR[order] == pytest.approx(mixture_KR, abs=1e-8)
    assert found.emission_MK[:, order] == pytest.approx(emission_MK, abs=1e-7)
    assert found.error < 1e-9


def test_nmf_explains_infinite_data_but_is_not_unique():
    """The reconstruction is right and the mixture is a valid one; that it is the true one is not promised."""
    errors = []
    for seed in range(3):
        _, mixture_KR, share_MR, _ = population(seed)
        found = latent.nmf(share_MR, 4, seed=0)
        assert found.error < 0.01
        assert found.mixture_KR.sum(0) == pytest.approx(np.ones(6))
        assert found.emission_MK.sum(0) == pytest.approx(np.ones(4))
        assert found.emission_MK @ found.mixture_KR == pytest.approx(share_MR, abs=0.01)
        errors.append(np.abs(found.mixture_KR[matching.aligned(found.mixture_KR, mixture_KR)] - mixture_KR).mean())
    assert 1e-3 < np.mean(errors) < 0.1


def test_nmf_goes_on_from_a_solution_without_renaming_its_classes():
    _, _, share_MR, _ = population(0)
    found = latent.nmf(share_MR, 4, seed=0)
    noisy_MR = share_MR * np.random.default_rng(0).uniform(0.9, 1.1, share_MR.shape)
    again = latent.nmf(noisy_MR / noisy_MR.sum(0), 4, seed=0, start=found)
    assert matching.aligned(again.mixture_KR, found.mixture_KR).tolist() == [0, 1, 2, 3]
    assert again.mixture_KR == pytest.approx(found.mixture_KR, abs=0.1)


def test_bayes_goes_from_the_mix_to_domains_given_class_and_back():
    mixture_KR = np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    domain_RK = latent.domain_given_class(mixture_KR)
    assert domain_RK.T.tolist() == pytest.approx(np.array([[0.6, 0.1 / 1.5, 0.5 / 1.5], [0.1 / 1.5, 0.6, 0.5 / 1.5]]))
    assert latent.mixture_of_corners(domain_RK) == pytest.approx(mixture_KR)
    empty = latent.domain_given_class(np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert empty[:, 1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("solver", ["em", "pinv"])
def test_both_solvers_recover_class_probabilities_that_the_domains_were_made_of(solver):
    generator = np.random.default_rng(0)
    domain_RK = latent.domain_given_class(planting.planted_mixture(3, 5, alpha=2, condition=4, generator=generator))
    class_NK = generator.dirichlet(np.ones(3), 50)
    found = latent.class_given_text(class_NK @ domain_RK.T, domain_RK, solver, steps=20_000)
    assert found == pytest.approx(class_NK, abs=1e-3)


def test_em_is_the_maximum_of_the_likelihood_that_it_names():
    generator = np.random.default_rng(1)
    domain_RK = latent.domain_given_class(generator.dirichlet(np.ones(3), 4).T)
    p_R = generator.dirichlet(np.ones(4))

    def loss(free: np.ndarray) -> float:
        t_K = np.exp(free - free.max())
        return -float(p_R @ np.log(domain_RK @ (t_K / t_K.sum())))

    oracle = minimize(
        loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 9999}
    )
    found = latent.class_given_text(p_R[None], domain_RK, "em", steps=5000)[0]
    assert -float(p_R @ np.log(domain_RK @ found)) == pytest.approx(oracle.fun, abs=1e-8)


def test_the_pseudo_inverse_is_clipped_so_that_no_probability_is_negative():
    domain_RK = np.array([[0.8, 0.2], [0.2, 0.8]])
    p_NR = np.array([[1.0, 0.0], [0.5, 0.5]])
    found = latent.class_given_text(p_NR, domain_RK, "pinv")
    assert (found > 0).all()
    assert found.sum(1) == pytest.approx(np.ones(2))
    posterior = latent.class_in_domain(found, domain_RK, np.array([1, 1]))
    assert posterior.sum(1) == pytest.approx(np.ones(2))
    assert posterior[1] == pytest.approx([0.2, 0.8])
    with pytest.raises(ValueError, match="'em' or 'pinv'"):
        latent.class_given_text(p_NR, domain_RK, "svd")  # type: ignore[arg-type]


def test_unequal_domains_are_brought_to_the_uniform_prior():
    domain_N = np.array([0] * 30 + [1] * 10)
    found = latent.with_uniform_prior(np.array([[0.75, 0.25]] * 40), domain_N)
    assert found == pytest.approx(np.full((40, 2), 0.5))
    assert latent.gains(found, domain_N) == pytest.approx(np.zeros(40))


def test_gains_are_the_logarithm_of_the_domains_for_certainty_whatever_their_sizes():
    domain_N = np.array([0] * 30 + [1] * 10 + [2] * 2)
    assert latent.gains(np.eye(3)[domain_N], domain_N).mean() == pytest.approx(math.log(3))


def test_tempering_undoes_over_confidence():
    generator = np.random.default_rng(0)
    true_NR = generator.dirichlet(np.ones(3), 4000)
    domain_N = np.array([generator.choice(3, p=p) for p in true_NR])
    sharp_NR = latent.tempered(true_NR, 0.4)
    assert latent.best_temperature(sharp_NR, domain_N) == pytest.approx(2.5, rel=0.1)
    assert latent.tempered(sharp_NR, 2.5) == pytest.approx(true_NR, abs=1e-4)


def test_out_of_fold_probabilities_do_not_remember_their_own_text():
    """Each text has a feature of its own: a discriminator that had seen it would be certain."""
    domain_N = np.arange(60) % 3
    p_NR = latent.out_of_fold(np.eye(60), domain_N)
    assert p_NR.sum(1) == pytest.approx(np.ones(60))
    assert latent.gains(p_NR, domain_N).mean() < 0.01


def test_cluster_shares_are_columns_that_sum_to_one():
    found = latent.cluster_shares(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4, 2)
    assert found.tolist() == [[1, 1 / 3], [0, 1 / 3], [0, 1 / 3], [0, 0]]


def test_the_singular_values_of_three_classes_are_two_beyond_chance():
    generator = np.random.default_rng(0)
    mixture_KR = planting.planted_mixture(3, 6, alpha=2, condition=4, generator=generator)
    emission_MK = generator.dirichlet(np.ones(9), 3).T
    domain_N = np.repeat(np.arange(6), 500)
    cluster_N = np.array([generator.choice(9, p=(emission_MK @ mixture_KR)[:, d]) for d in domain_N])
    shape = (9, 6)
    value_S = latent.singular_values(latent.cluster_shares(cluster_N, domain_N, *shape))
    null_PS = latent.null_singular_values(cluster_N, domain_N, shape, draws=60, seed=0)
    assert (value_S > np.quantile(null_PS[:, 0], 0.95)).tolist() == [True, True, False, False, False]
    errors = latent.held_out_errors(cluster_N, domain_N, shape, most=6, seed=0)
    assert errors[2] < 0.9 * errors[1]
    assert errors[1] < 0.9 * errors[0]
    assert errors[5] > 0.9 * errors[2]


def test_too_many_corners_are_refused():
    with pytest.raises(ValueError, match="span only 2 directions"):
        latent.corner_rows(np.array([[0.2, 0.8], [0.8, 0.2], [0.5, 0.5]]), 3)
    with pytest.raises(ValueError, match=r"1 clusters hold at least 0.5%"):
        latent.anchor(np.eye(2), np.array([[1.0, 1.0], [0.0, 0.0]]), 2)
