"""Claims about comparing images: no shift is no finding, planted ones are found, order is nothing, faults are sentences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from shiftscope import report
from shiftscope.compare.images import Judging, images
from shiftscope.core.images import adversary
from shiftscope.core.images.image_detector import Training
from shiftscope.core.images.patches import Patching
from shiftscope.core.parts import Parts, ShardDone

BRIEF = Training(steps=40, widths=(8, 16), latent=8)
LONGER = Training(steps=150, widths=(16, 32), latent=8)
PATCHES = Patching(patch=8, patches=12)
QUICK = {"training": BRIEF, "patching": PATCHES, "judging": Judging(known=False, permutations=199)}


def mosaics(count, seed):
    """32x32 mosaics of the digits 0 to 4, slightly blurred and noisy."""
    pixels, label = load_digits(return_X_y=True)
    digits, generator = pixels[label < 5].reshape(-1, 8, 8) / 16, np.random.default_rng(seed)
    tiles = digits[generator.integers(0, len(digits), (count, 4, 4))]
    flat = gaussian_filter(tiles.transpose(0, 1, 3, 2, 4).reshape(count, 32, 32), (0, 0.4, 0.4))
    return np.clip(0.1 + 0.8 * flat + 0.04 * generator.standard_normal(flat.shape), 0, 1).astype(np.float32)


A, SAME = mosaics(100, 0), mosaics(30, 1)
BLURRED = gaussian_filter(SAME, (0, 0.8, 0.8))


def bytes_of(x):
    return np.round(255 * x).astype(np.uint8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "d.safetensors"
    return path, images(A, BLURRED, save=path, **QUICK)


def by_key(result, group="b"):
    return {row["key"]: row for row in result.table.to_pylist() if row["group"] == group}


def test_planted_blur_is_found_and_the_blurred_images_are_the_shifted_ones(detector):
    found = detector[1]
    assert found["p_corrected"] <= 0.05
    assert found["auroc_error_two_sided"] > 0.8  # 40 steps on 60 images
    assert found["auroc_error"] < 0.1  # a blurred image is easier to reconstruct: one-sided it looks better than A
    assert found["beyond_error_b"] > 0.8 > 0.3 > found["beyond_error_a"]
    assert found.verdict[0].startswith("B is distinguishable from held-out A (smallest of 6 permutation p-values")
    assert (found["images_calibration"], found["images_a"], found["images_b"]) == (20, 20, 30)


def test_images_of_the_same_kind_are_not_told_apart(detector):
    found = images(A, SAME, detector=detector[0], patching=PATCHES, judging=QUICK["judging"])
    assert found["p_corrected"] > 0.05
    assert found.verdict[0].startswith("Nothing distinguishes B from held-out A")
    for measure in ("score", "absolute", "error"):
        low, high = (getattr(found.figures[f"auroc_{measure}_two_sided"], end) for end in ("low", "high"))
        assert low < 0.5 < high


def test_a_reused_detector_gives_every_image_the_same_numbers_and_leaves_its_training_images_out(detector):
    path, first = detector
    again = images(A, BLURRED, detector=path, patching=PATCHES, judging=QUICK["judging"])
    old, new = by_key(first), by_key(again)
    assert old.keys() == new.keys()
    for key, row in old.items():
        assert all(row[name] == new[key][name] for name in ("score", "absolute", "error"))
    assert again["images_calibration"] + again["images_a"] == 40
    assert "discriminator_loss_nats" not in again.figures
    assert again.provenance["detector"]["sha256"]


def test_a_saved_detector_brings_its_settings_along_for_a_later_stream(detector):
    """Nothing but the file is repeated; what differs from the defaults is told."""
    path, first = detector
    again = images(A, BLURRED, detector=path, judging=QUICK["judging"])
    assert again.table.equals(images(A, BLURRED, detector=path, patching=PATCHES, judging=QUICK["judging"]).table)
    assert by_key(again).keys() == by_key(first).keys()
    assert "as the detector was trained: patch 8, patches 12" in again.notes
    assert again.provenance["settings"]["patching"]["patch"] == 8


def test_no_order_of_images_on_either_side_changes_a_number(detector):
    order_a, order_b = np.random.default_rng(0).permutation(100), np.random.default_rng(1).permutation(30)
    found, first = images(A[order_a], BLURRED[order_b], **QUICK), detector[1]
    for group in ("calibration", "a", "b"):
        old, new = by_key(first, group), by_key(found, group)
        assert old.keys() == new.keys()
        for key, row in old.items():
            for name in ("score", "absolute", "error"):
                assert new[key][name] == pytest.approx(row[name], abs=1e-6)  # float32: other batches of convolutions
    assert found["auroc_error"] == first["auroc_error"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, detector):
    monkeypatch.setattr(adversary, "KEPT_EVERY", 10)
    seen = []

    def stop(stage, done, total):
        seen.append((stage, done))
        if (stage == "training the detector" and done == 25 and len(seen) < 200) or (
            stage == "judging images" and done == 2
        ):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            images(A, BLURRED, **QUICK, parts=Parts(tmp_path / "parts", resume=True), advance=stop)
    resumed = [done for stage, done in seen if stage == "training the detector"]
    assert resumed == [*range(1, 26), *range(21, 41)]
    found = images(A, BLURRED, **QUICK, parts=Parts(tmp_path / "parts", resume=True))
    assert found.table.equals(detector[1].table)
    with pytest.raises(ValueError, match="parts of an interrupted run: add --resume"):
        Parts(tmp_path / "parts")


def test_shards_judge_with_a_saved_detector_and_merge_to_the_whole(tmp_path, detector):
    settings = {"detector": detector[0], "patching": PATCHES, "judging": QUICK["judging"]}
    for shard in range(2):
        with pytest.raises(ShardDone):
            images(A, BLURRED, **settings, parts=Parts(tmp_path, resume=True, shard=(shard, 2)))
    merged = images(A, BLURRED, **settings, parts=Parts(tmp_path, resume=True))
    assert merged.table.equals(images(A, BLURRED, **settings).table)
    with pytest.raises(ValueError, match="train it once with --save"):
        images(A, BLURRED, parts=Parts(tmp_path / "other", shard=(0, 2)))


def test_known_corruptions_say_what_would_be_found_and_the_page_is_drawn(tmp_path, detector):
    judging = replace(QUICK["judging"], known=True)
    found = images(A, BLURRED, detector=detector[0], patching=PATCHES, judging=judging)
    known = next(panel for panel in found.panels if panel.title == "What this detector would find").table.to_pylist()
    assert len(known) == 7 * 3
    noise = max(row["auroc"] for row in known if row["corruption"] == "noise 0.15")
    assert noise > 0.8  # 20 images
    assert found.verdict[-1].startswith("Planted in held-out A, this detector finds ")
    kinds = [panel.kind for panel in found.panels]
    assert kinds.count("heat") == 3
    most = next(panel for panel in found.panels if panel.title == "Most shifted images of B").table
    assert most["shift"].to_pylist() == sorted(most["shift"].to_pylist(), reverse=True)
    page = report.write(found, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Where in" in page


def test_the_heat_points_at_the_part_of_an_image_that_was_changed():
    spoiled = SAME.copy()
    spoiled[:, 16:, 16:] = np.random.default_rng(5).random((30, 16, 16))  # noise in the lower right quarter
    found = images(A, spoiled, **QUICK)
    heat = next(panel for panel in found.panels if panel.kind == "heat" and panel.color == "error").table
    rows = np.array([int(row) for row in heat["row"].to_pylist()])
    inside = (rows >= 16) & (heat["column"].to_numpy() >= 16)
    outside = (rows <= 8) & (heat["column"].to_numpy() <= 8)
    error = heat["error"].to_numpy()
    assert error[inside].mean() > error[outside].mean() + 3 * error[outside].std()


def test_a_regular_grid_replaces_the_random_patches(detector):
    found = images(A, BLURRED, detector=detector[0], patching=Patching(patch=8, stride=8), judging=QUICK["judging"])
    assert found["p_corrected"] <= 0.05
    assert by_key(found).keys() == by_key(detector[1]).keys()


def test_token_grids_are_compared_by_a_random_code_or_a_codebook(tmp_path):
    generator = np.random.default_rng(0)
    grids = (generator.integers(0, 4, (120, 16, 1)) + np.arange(16)[None, None] // 4) % 4  # stripes of equal tokens
    shuffled = generator.permuted(grids[:20].reshape(20, -1), axis=1).reshape(20, 16, 16)
    settings = {**QUICK, "training": LONGER}
    first = images(grids[20:], shuffled, **settings)
    assert first["p_corrected"] <= 0.05
    assert first["auroc_error_two_sided"] > 0.95
    np.save(tmp_path / "book.npy", generator.normal(size=(4, 3)))
    book = images(grids[20:], shuffled, codebook=tmp_path / "book.npy", save=tmp_path / "d.safetensors", **settings)
    assert book["p_corrected"] <= 0.05
    again = images(
        grids[20:], shuffled, detector=tmp_path / "d.safetensors", patching=PATCHES, judging=QUICK["judging"]
    )
    assert {key: row["error"] for key, row in by_key(again).items()} == {
        key: row["error"] for key, row in by_key(book).items()
    }
    assert not any("brightness" in panel.color for panel in book.panels)
    for more in (
        {"codebook": tmp_path / "book.npy", **settings},
        {"detector": tmp_path / "d.safetensors", "patching": PATCHES},
    ):
        with pytest.raises(ValueError, match="the token id 4 is beyond the codebook, which has 4 rows"):
            images(grids[20:], shuffled + 1, **more)


def test_windows_of_token_texts_are_compared_too():
    generator = np.random.default_rng(0)
    counting = (generator.integers(0, 50, (100, 1)) + np.arange(32)) % 50
    found = images(counting, generator.integers(0, 50, (20, 32)), **{**QUICK, "training": LONGER})
    assert found["p_corrected"] <= 0.05


def test_sequences_of_embeddings_are_compared_channel_by_channel():
    generator = np.random.default_rng(0)
    phase = generator.uniform(0, 6, (100, 1, 1)) + np.arange(16)[None, :, None]
    waves = np.sin(phase + np.arange(32) / 3)[:, :, None].astype(np.float32)  # [N, channels, 1, positions]
    shuffled = generator.permuted(waves[:20], axis=3)
    found = images(waves, shuffled, **{**QUICK, "training": LONGER})
    assert found["p_corrected"] <= 0.05
    assert found["auroc_error"] > 0.95


def folder(path, levels, suffix="png", **settings):
    pillow = pytest.importorskip("PIL.Image")
    path.mkdir()
    for number, one in enumerate(levels):
        pillow.fromarray(one).save(path / f"{number:03d}.{suffix}", **settings)
    return path


def test_a_way_of_images_that_is_itself_detected_is_warned_of(tmp_path):
    """B is A's kind of image, but stored at half the size: what differs is the way, and the report says so."""
    small = torch.nn.functional.interpolate(torch.from_numpy(SAME)[:, None], (16, 16), mode="bilinear", antialias=True)
    a, b = folder(tmp_path / "a", bytes_of(A)), folder(tmp_path / "b", bytes_of(small[:, 0].numpy()))
    found = images(a, b, size=32, **QUICK)
    assert found["p_corrected"] <= 0.05
    assert found["p_corrected_route"] <= 0.05
    assert any(sentence.startswith("The way of the images is detected by itself") for sentence in found.verdict)
    assert any("PNG 16x16, shorter side to 32" in note for note in found.notes)
    assert {row["group"] for row in found.table.to_pylist()} == {"calibration", "a", "b", "route"}
    with pytest.raises(ValueError, match=r"are 32x32 and of .* 16x16: give --size"):
        images(a, b, **QUICK)


def test_the_same_way_on_both_sides_needs_no_test(detector):
    assert "p_corrected_route" not in detector[1].figures
    assert any("by the same route" in note for note in detector[1].notes)


def test_caveats_are_told():
    doubled = np.concatenate([A, A[:3]])
    found = images(doubled, 2 * BLURRED, **{**QUICK, "patching": Patching(patch=8, patches=1)})
    notes = " ".join(found.notes)
    assert "3 images are copies of others" in notes
    assert "beyond the scale [0, 1] of A" in notes
    assert "judged by one patch alone" in notes


def test_a_single_image_is_judged_and_its_p_value_is_said_to_be_too_coarse(detector):
    found = images(A, BLURRED[:1], detector=detector[0], patching=PATCHES, judging=QUICK["judging"])
    assert found["images_b"] == 1
    assert found["auroc_error"] < 0.1
    assert any("no corrected p can be below 0.29" in note for note in found.notes)


def test_images_of_b_that_were_trained_on_are_told(detector):
    found = images(A, A[:50], detector=detector[0], patching=PATCHES, judging=QUICK["judging"])
    assert "images of B were trained on" in " ".join(found.notes)


def test_an_array_on_another_scale_than_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"values of B lie in \[.*, 2.*\], but image files are read as 0 to 1"):
        images(folder(tmp_path / "a", bytes_of(A)), 2 * A[:, None], **QUICK)


NAN = np.where(np.arange(32 * 32).reshape(1, 32, 32) == 5, np.nan, SAME[:1])


@pytest.mark.parametrize(
    ("b", "settings", "sentence"),
    [
        (NAN, {}, "image 0 has 1 values that are not finite"),
        (SAME[:, :, :16], {}, "images of A are 32x32 and of B 16x32: give --size"),
        (np.arange(2048).reshape(2, 32, 32), {}, "A holds pixels and B tokens"),
        (SAME[:, None].repeat(3, 1), {}, "A has 1 channels and the other side 3"),
        (SAME, {"patching": Patching(patch=64)}, "images of 32x32 are smaller than a patch of 64x64"),
        (SAME, {"patching": Patching(patch=10)}, "patch 10x10 with 2 widths: a side must be a multiple of 4"),
        (SAME, {"codebook": "book.npy"}, "codebook is book.npy, but A holds pixels"),
        (SAME, {"device": "nowhere"}, "device 'nowhere' cannot be used"),
        (SAME, {"judging": Judging(held_out=0.05)}, "95 to train on, 2 to calibrate with and 3 to compare"),
        (SAME, {"detector": "d", "save": "e"}, "leave one of them out"),
        (SAME[:0], {}, "none of these sizes is 0"),
        ("nowhere", {}, "nowhere does not exist"),
    ],
)
def test_faults_are_one_sentence_and_come_before_any_training(b, settings, sentence):
    def advance(stage, done, total):
        assert stage.startswith("reading")

    with pytest.raises(ValueError, match=sentence):
        images(A, b, **{**QUICK, **settings}, advance=advance)


def test_a_detector_that_does_not_fit_is_named(detector):
    for settings, sentence in (
        ({"patching": Patching(patch=12)}, "trained with patch = 8 and now it is 12"),
        ({"patching": PATCHES, "size": 16}, "trained with size = None and now it is 16"),
        ({"patching": PATCHES, "training": BRIEF}, "nothing is trained with --detector"),
    ):
        with pytest.raises(ValueError, match=sentence):
            images(A, BLURRED, detector=detector[0], **settings)
    seen = A[[int(row["id"]) for row in detector[1].table.to_pylist() if row["group"] == "a"]]
    with pytest.raises(ValueError, match="has 2 images that the detector was not trained on"):
        images(seen[:2], BLURRED, detector=detector[0], patching=PATCHES)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Training(batch_images=1), "batch_images 1"),
        (lambda: Training(steps=0), "steps 0"),
        (lambda: Judging(held_out=1.0), "held_out 1.0"),
        (lambda: Judging(permutations=5), "permutations 5"),
    ],
)
def test_impossible_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
