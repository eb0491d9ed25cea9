"""Claims about the detector of images: parts do not matter, scales are A's, heat covers the image without drowning it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shiftscope.core.images import image_detector, pictures
from shiftscope.core.images.adversary import Adversary
from shiftscope.core.images.image_detector import Job, Recipe, Training
from shiftscope.core.images.patches import Patching
from shiftscope.core.parts import Parts

CPU = torch.device("cpu")
HOW = Recipe(Patching(patch=8, patches=6), Training(steps=2, widths=(4, 8), latent=2), Adversary(), None)


def side(x):
    return pictures.prepare(pictures.find(x, "given"), 1)


def trained(x, how=HOW):
    return image_detector.train(side(x), np.arange(len(x)), how, CPU, Parts(), None)


X = np.random.default_rng(0).random((12, 24, 20), dtype=np.float32)


@pytest.fixture(scope="module")
def detector():
    return trained(X)


def test_images_judged_apart_and_together_have_the_same_numbers(detector):
    whole = image_detector.judged(detector, Job("b", side(X), range(12)), CPU).to_pylist()
    parts = [image_detector.judged(detector, Job("b", side(X), [number]), CPU).to_pylist()[0] for number in range(12)]
    for one, other in zip(whole, parts, strict=True):
        assert (one["id"], one["key"], one["group"]) == (other["id"], other["key"], "b")
        for name in image_detector.MEASURES:
            assert one[name] == pytest.approx(other[name], abs=1e-6)  # float32: other batches of convolutions


def test_a_change_is_made_before_an_image_is_judged(detector):
    inverted = Job("x", side(X), [3], lambda image, number: 1 - image)
    directly = Job("x", side(1 - X), [3])
    assert (
        directly.side.keys_N[3] != inverted.side.keys_N[3]
    )  # the patches of the first are those of the unchanged image
    plain = image_detector.judged(detector, Job("x", side(X), [3]), CPU).to_pylist()[0]
    assert image_detector.judged(detector, inverted, CPU).to_pylist()[0]["error"] != plain["error"]


@pytest.mark.parametrize(
    ("scale", "span"), [(lambda x: x, (0, 1)), (lambda x: 2 * x - 1, (-1, 1)), (lambda x: 5 * x - 9, None)]
)
def test_the_scale_is_the_narrowest_usual_one_that_holds_a_or_a_s_own(scale, span):
    x = scale(X)
    assert trained(x).view.span == (span or (float(x.min()), float(x.max())))


def test_a_side_without_any_difference_is_refused():
    with pytest.raises(ValueError, match=r"all values of given are 0\.5: there is nothing to learn"):
        trained(np.full((6, 24, 20), 0.5))


def test_heat_covers_the_image_and_stays_below_a_thousand_cells(detector):
    cells = image_detector.by_place(detector, X[:1], 5, CPU)
    assert (max(cells["row"].to_pylist()), max(cells["column"].to_pylist())) == (16, 12)
    assert set(cells["stride"].to_pylist()) == {4}
    large = image_detector.by_place(detector, np.tile(X[:1], (1, 10, 10)), 5, CPU)
    assert len(large) <= image_detector.SHOWN_PATCHES
    strided = trained(X, Recipe(Patching(patch=8, stride=2), HOW.training, HOW.weights, None))
    assert set(image_detector.by_place(strided, X[:1], 5, CPU)["stride"].to_pylist()) == {2}


def test_the_training_images_are_kept_by_their_content(detector, tmp_path):
    from shiftscope.core.images import patch_detector

    image_detector.save(detector, tmp_path / "d.safetensors", None)
    saved = patch_detector.load(tmp_path / "d.safetensors")
    assert saved.trained_on == set(side(X).keys_N.tolist())
    again = image_detector.reused(saved, (side(X), side(X)), HOW.patching, None, None, False, CPU)
    assert again.view.span == detector.view.span
    one, other = (image_detector.judged(each, Job("b", side(X), [0, 1]), CPU) for each in (detector, again))
    assert one.equals(other)
