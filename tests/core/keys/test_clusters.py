from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from shiftscope.core import checkpoints
from shiftscope.core.keys import clusters
from shiftscope.zoo import lists


def planted(n_clusters=6, per_cluster=30, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(n_clusters, width, generator=generator)
    label = torch.arange(n_clusters).repeat_interleave(per_cluster)
    return centres[label] + 0.3 * torch.randn(len(label), width, generator=generator), label.numpy()


def test_planted_clusters_are_found_and_two_seeds_agree_on_them():
    rows, label = planted()
    found = clusters.fit(rows, range(len(rows)), seed=0, n_clusters=6)
    assert adjusted_rand_score(label, found.label_V) == 1
    assert found.seed_ari == 1
    assert found.sizes_K.tolist() == [30] * 6
    assert set(found.mates(0)) == set(range(1, 30))


def test_inertia_is_the_sum_of_squared_distances_to_the_cluster_means():
    rows, _ = planted()
    found = clusters.fit(rows, range(len(rows)), seed=0, n_clusters=6)
    inside = sum(float((rows[k] - rows[k].mean(0)).square().sum()) for k in (found.label_V == c for c in range(6)))
    assert found.inertia == pytest.approx(inside, rel=1e-4)
    assert found.unexplained_share == pytest.approx(inside / float((rows - rows.mean(0)).square().sum()), rel=1e-4)
    assert float(np.square(found.distance_V).sum()) == pytest.approx(inside, rel=1e-4)


def test_padding_and_repeated_rows_are_dropped_counted_and_do_not_disturb_the_rest():
    rows, label = planted()
    untrained = torch.full((40, rows.shape[1]), 0.25) + 1e-6 * torch.randn(40, rows.shape[1])
    padding = torch.randn(7, rows.shape[1], generator=torch.Generator().manual_seed(1))
    found = clusters.fit(torch.cat([rows, untrained, padding]), range(len(rows) + 40), seed=0, n_clusters=6)
    assert (found.nameless, found.coinciding) == (7, 40)
    assert (found.label_V[len(rows) :] == clusters.UNASSIGNED).all()
    assert np.isnan(found.distance_V[len(rows) :]).all()
    assert adjusted_rand_score(label, found.label_V[: len(rows)]) == 1
    assert len(found.mates(len(rows))) == 0


def test_a_pair_of_equal_rows_coincides_wherever_it_stands():
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
    rows[411] = rows[3]
    assert np.flatnonzero(clusters.coinciding(rows)).tolist() == [3, 411]


def test_the_partition_does_not_depend_on_the_order_of_the_vocabulary():
    rows, _ = planted()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    one, two = (clusters.fit(r, range(len(rows)), seed=0, n_clusters=6) for r in (rows, rows[order]))
    assert adjusted_rand_score(one.label_V[order.numpy()], two.label_V) == 1


def test_cosine_clusters_ignore_the_length_of_the_rows():
    rows, label = planted()
    scaled = rows * (0.1 + 10 * torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(4)))
    found = clusters.fit(scaled, range(len(rows)), seed=0, n_clusters=6, metric="cosine")
    assert adjusted_rand_score(label, found.label_V) == 1
    assert adjusted_rand_score(label, clusters.fit(scaled, range(len(rows)), seed=0, n_clusters=6).label_V) < 0.9


def test_fitting_is_reproducible_and_leaves_the_weights_as_they_are():
    weight = checkpoints.load("lists-base").head.weight
    before = weight.detach().clone()
    one, two = (clusters.fit(weight, range(len(weight)), seed=5, n_clusters=16) for _ in range(2))
    assert (one.label_V == two.label_V).all()
    assert torch.equal(weight, before)


def test_the_number_of_clusters_follows_the_vocabulary_as_in_the_paper():
    assert [clusters.default_count(rows) for rows in (128_256, 50_304, 300)] == [1024, 512, 8]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_residual_of_a_scaled_dot_product_is_the_share_the_scale_adds(scale):
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(5, 8, generator=generator), torch.randn(50, 8, generator=generator)
    residual = clusters.dot_product_residual(scale * hidden @ weight.T, hidden, weight)
    assert residual == pytest.approx(1 - 1 / scale, abs=1e-6)


def test_residual_ignores_what_no_law_notices_and_sees_a_bias():
    generator = torch.Generator().manual_seed(7)
    hidden, weight = torch.randn(5, 8, generator=generator), torch.randn(50, 8, generator=generator)
    dots = hidden @ weight.T
    assert clusters.dot_product_residual(dots + 3.0, hidden, weight) < 1e-6
    assert clusters.dot_product_residual(dots + torch.randn(50, generator=generator), hidden, weight) > 0.1


def test_the_keys_of_word_families_fall_into_one_cluster_each():
    checkpoint = checkpoints.load("lists-base")
    found = clusters.fit(checkpoint.head.weight, checkpoint.tokenizer.get_vocab().values(), seed=0, n_clusters=16)
    words = [word for family in lists.families().values() for word in family]
    label = found.label_V[checkpoint.tokenizer.convert_tokens_to_ids(words)]
    stems = np.array([lists.family(word) for word in words])
    pure = sum(np.unique(stems[label == k], return_counts=True)[1].max() for k in np.unique(label))
    assert pure / len(words) > 0.98
    assert found.seed_ari > 0.8


@pytest.mark.parametrize("count", [1, 181])
def test_more_clusters_than_rows_is_a_sentence(count):
    with pytest.raises(ValueError, match=f"{count} clusters were asked for; 180 usable rows allow 2 to 180"):
        clusters.fit(planted()[0], range(180), seed=0, n_clusters=count)


def test_rows_that_are_no_numbers_and_an_unknown_metric_are_sentences():
    rows, _ = planted()
    with pytest.raises(ValueError, match="'euclidean' or 'cosine'"):
        clusters.fit(rows, range(len(rows)), seed=0, metric="manhattan")  # type: ignore[arg-type]
    rows[3, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        clusters.fit(rows, range(len(rows)), seed=0)
