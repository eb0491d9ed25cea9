"""Claims about known corruptions: strength zero changes nothing, each does what it says, the same image the same way."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.images import corruptions

X = np.random.default_rng(0).random((2, 40, 50), dtype=np.float32)


@pytest.mark.parametrize(
    ("corrupt", "nothing"),
    [
        (corruptions.noise, 0.0),
        (corruptions.blur, 0.0),
        (corruptions.contrast, 1.0),
        (corruptions.brightness, 0.0),
        (corruptions.gamma, 1.0),
    ],
)
def test_strength_zero_changes_nothing(corrupt, nothing):
    assert np.allclose(corrupt(X, nothing, 3), X, atol=1e-7)  # float32


def test_noise_has_its_standard_deviation_and_hangs_on_the_image():
    added = corruptions.noise(X, 0.2, 3) - X
    assert added.std() == pytest.approx(0.2, rel=0.05)  # 4,000 values
    assert abs(added.mean()) < 0.015
    assert np.array_equal(corruptions.noise(X, 0.2, 3), corruptions.noise(X, 0.2, 3))
    assert not np.array_equal(corruptions.noise(X, 0.2, 3), corruptions.noise(X, 0.2, 4))


def test_blur_keeps_the_mean_and_shrinks_differences_of_neighbours_only_within_a_channel():
    blurred = corruptions.blur(X, 1.0)
    assert blurred.mean() == pytest.approx(X.mean(), abs=2e-3)
    assert np.abs(np.diff(blurred)).mean() < np.abs(np.diff(X)).mean() / 2
    assert np.array_equal(blurred[:1], corruptions.blur(X[:1], 1.0))


def test_levels_gamma_contrast_and_brightness_do_what_they_say():
    assert set(np.unique(corruptions.levels(X, 5))) == {0, 0.25, 0.5, 0.75, 1}
    assert np.allclose(corruptions.gamma(X, 2.0), X**2, atol=1e-6)
    assert np.allclose(corruptions.contrast(X, 0.5), X / 2)
    assert np.allclose(corruptions.brightness(X, 0.1), X + 0.1)


def test_replaced_tokens_are_the_share_that_was_asked_for_and_come_from_the_grid():
    ids = np.arange(10_000).reshape(100, 100)
    changed = corruptions.replaced(ids, 0.1, 3)
    assert (changed != ids).mean() == pytest.approx(0.1, abs=0.01)  # three standard errors
    assert set(changed.ravel().tolist()) <= set(range(10_000))
    assert np.array_equal(corruptions.replaced(ids, 0.0, 3), ids)
