"""Claims about patches: where they lie, that they hang on the image alone, and codes of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shiftscope.core.images import patches, pictures
from shiftscope.core.images.patches import Patching, View


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(1, 9))
def test_every_place_of_a_grid_or_a_draw_lies_inside(rows, columns, part, stride):
    side = (min(part, rows), min(part, columns))
    for tops, lefts in (
        patches.grid((rows, columns), side, stride),
        patches.drawn((rows, columns), side, 20, key=5, seed=0),
    ):
        assert tops.min() >= 0 <= lefts.min()
        assert tops.max() + side[0] <= rows
        assert lefts.max() + side[1] <= columns


def test_a_stride_of_the_patch_tiles_the_image_exactly():
    x = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    tiles = patches.cut(x, patches.grid((6, 8), (3, 4), 3 + 0), (3, 4))
    assert tiles.shape == (4, 2, 3, 4)
    again = patches.cut(x, (np.array([0, 0, 3, 3]), np.array([0, 3, 0, 3])), (3, 4))
    assert np.array_equal(tiles, again)
    assert np.array_equal(tiles[3], x[:, 3:6, 3:7])


def test_the_last_place_can_be_drawn_and_all_places_are():
    tops, lefts = patches.drawn((5, 6), (3, 3), 2000, key=1, seed=0)
    assert sorted(set(tops.tolist())) == [0, 1, 2]
    assert sorted(set(lefts.tolist())) == [0, 1, 2, 3]


def test_patches_hang_on_the_image_s_key_and_the_seed_alone():
    x = np.random.default_rng(0).random((1, 20, 20), dtype=np.float32)
    view = View(Patching(patch=8, patches=6), tokens=False)
    assert np.array_equal(view.patches(x, 3), view.patches(x.copy(), 3))
    assert not np.array_equal(view.patches(x, 3), view.patches(x, 4))
    other = View(Patching(patch=8, patches=6, patch_seed=1), tokens=False)
    assert not np.array_equal(view.patches(x, 3), other.patches(x, 3))


def test_noise_is_uniform_of_the_stated_width_and_scales_to_the_span():
    view = View(Patching(noise=0.1), tokens=False, span=(-3.0, 5.0))
    seen = view.seen(np.full((1, 100, 100), 1.0), key=7)  # the middle of the span
    assert np.abs(seen).max() <= 0.1  # half of 0.1 of a range of 2
    assert seen.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.02)  # 10,000 values
    bare = View(Patching(noise=0.0), tokens=False, span=(-3.0, 5.0))
    assert np.array_equal(bare.seen(np.array([[[-3.0, 5.0]]]), 0), np.array([[[-1.0, 1.0]]], dtype=np.float32))


def test_a_step_draws_images_and_places_from_its_generator():
    side = pictures.prepare(pictures.find(np.random.default_rng(0).random((9, 12, 12)), "a"), 1)
    view = View(Patching(patch=4), tokens=False)
    one, again, other = (
        view.batch(side, np.arange(9), (3, 5), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one.shape == (15, 1, 4, 4)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_tokens_get_a_code_that_hangs_on_the_id_alone():
    how = Patching(code_width=6)
    one = patches.coded(np.array([[3, 7], [7, 900]]), None, how)
    other = patches.coded(np.array([[7, 3]]), None, how)
    assert one.shape == (6, 2, 2)
    assert np.array_equal(one[:, 0, 1], one[:, 1, 0])
    assert np.array_equal(one[:, 0, 1], other[:, 0, 0])
    assert np.abs(one).max() < 1


def test_a_codebook_gives_its_rows_and_refuses_ids_beyond_it():
    book = patches.codebook(np.array([[0.0, 1.0], [2.0, 4.0], [3.0, 1.0]]), "book")
    assert (book.min(), book.max()) == (-1, 1)
    assert np.array_equal(patches.coded(np.array([[2, 0]]), book, Patching())[:, 0, 0], book[2])
    with pytest.raises(ValueError, match="id 3 is beyond the codebook, which has 3 rows"):
        patches.coded(np.array([[3]]), book, Patching())
    with pytest.raises(ValueError, match="a codebook is a matrix of finite floats"):
        patches.codebook(np.array([[np.nan, 1.0]]), "book")


def test_images_of_one_row_get_patches_of_one_row():
    ids = np.arange(24).reshape(1, 24)
    cut = View(Patching(patch=8, patches=3, code_width=2), tokens=True).patches(ids, 0)
    assert cut.shape == (3, 2, 1, 8)
    assert patches.group_size((1, 24), Patching(patch=8, stride=8)) == 3


def test_images_smaller_than_a_patch_are_named():
    with pytest.raises(ValueError, match="images of 40x10 are smaller than a patch of 16x16"):
        patches.group_size((10, 40), Patching())


@pytest.mark.parametrize("settings", [{"patch": 1}, {"patches": 0}, {"stride": 0}, {"noise": 1.0}, {"code_width": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} (is )?{next(iter(settings.values()))}"):
        Patching(**settings)
