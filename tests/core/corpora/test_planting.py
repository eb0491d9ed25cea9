"""Claims about planted shifts: mixes as asked for, rows used once, domains of one size."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.corpora import latent, planting


def test_planted_mixtures_and_domains_are_as_asked_for():
    generator = np.random.default_rng(0)
    mixture_KR = planting.planted_mixture(4, 7, alpha=2, condition=6, generator=generator)
    assert np.linalg.cond(mixture_KR) <= 6
    assert mixture_KR.sum(0) == pytest.approx(np.ones(7))
    labels = generator.integers(0, 4, 20_000)
    rows, domain = planting.planted_domains(labels, mixture_KR, generator)
    assert len(set(rows.tolist())) == len(rows)
    sizes = np.bincount(domain)
    assert sizes.max() - sizes.min() <= 4
    assert latent.cluster_shares(labels[rows], domain, 4, 7) == pytest.approx(mixture_KR, abs=0.005)
    with pytest.raises(ValueError, match="allow a larger one"):
        planting.planted_mixture(4, 7, alpha=2, condition=1.0, generator=generator)
