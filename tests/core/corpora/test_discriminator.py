"""Claims about the discriminator: held-out scores are those of refitted models, chance is a half, a shift is found."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from shiftscope.core import permutation
from shiftscope.core.corpora import discriminator


def corpora(shift, width=8, seed=0):
    rows = np.random.default_rng(seed).normal(size=(90, width))
    rows[50:, 0] += shift
    return rows, np.repeat([0.0, 1.0], [50, 40])


@pytest.mark.parametrize("width", [8, 200])
def test_out_of_fold_scores_are_those_of_ridge_regressions_that_never_saw_the_row(width):
    rows, second = corpora(1.0, width)
    folds = discriminator.stratified_folds(second)
    found = discriminator.scores_of_labels(rows, folds, ridge=0.5)(second[:, None])[:, 0]
    scaled = discriminator.standardised(rows)
    for fold in range(5):
        model = Ridge(alpha=0.5 * len(rows)).fit(scaled[folds != fold], second[folds != fold])
        assert found[folds == fold] == pytest.approx(model.predict(scaled[folds == fold]), abs=1e-9)
    auc = discriminator.auc_of_labels(rows, folds, ridge=0.5)(second[:, None])[0, 0]
    assert auc == pytest.approx(roc_auc_score(second, found), abs=1e-12)


def test_the_null_sits_at_a_half_and_a_shift_lies_outside_it():
    for shift, bound in ((0.0, (0.05, 1.0)), (1.5, (0.0, 0.01))):
        rows, second = corpora(shift, seed=3)
        folds = discriminator.stratified_folds(second)
        found = permutation.permute(discriminator.auc_of_labels(rows, folds), second, draws=299, strata_N=folds)
        assert found.null_SP.mean() == pytest.approx(0.5, abs=0.02)
        assert bound[0] <= found.p(0, "greater") <= bound[1]


def test_folds_hold_every_label_as_evenly_as_they_can():
    folds = discriminator.stratified_folds(["x"] * 23 + ["y"] * 12 + ["z"] * 5)
    for part in (slice(0, 23), slice(23, 35), slice(35, 40)):
        counts = np.bincount(folds[part], minlength=5)
        assert counts.max() - counts.min() <= 1
    with pytest.raises(ValueError, match="2 rows of each"):
        discriminator.stratified_folds(["x", "x", "y"])
