"""Claims about reading images: every layout gives the same numbers, paths are stated, and faults are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from shiftscope.core.images import pictures
from shiftscope.core.images.image_files import Route

Image = pytest.importorskip("PIL.Image")

LEVELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def folder(path, levels, suffix="png", **settings):
    path.mkdir()
    for number, one in enumerate(levels):
        Image.fromarray(one).save(path / f"{number}.{suffix}", **settings)
    return path


def opened(source, channels=3, **settings):
    return pictures.prepare(pictures.find(source, "given", **settings), channels)


def test_folders_arrays_and_tensors_of_the_same_images_are_the_same(tmp_path):
    np.save(tmp_path / "last.npy", LEVELS)
    np.savez(tmp_path / "one.npz", images=LEVELS)
    save_file({"images": np.ascontiguousarray(LEVELS.transpose(0, 3, 1, 2))}, tmp_path / "first.safetensors")
    sources = [
        folder(tmp_path / "f", LEVELS),
        tmp_path / "last.npy",
        tmp_path / "one.npz",
        tmp_path / "first.safetensors",
    ]
    sources += [LEVELS, torch.from_numpy(LEVELS), LEVELS.astype(np.float32) / np.float32(255)]
    sides = [opened(source) for source in sources]
    for side in sides:
        assert side.shape == (6, 8)
        assert np.array_equal(side.keys_N, sides[0].keys_N)
        assert np.array_equal(side.read(3), LEVELS[3].transpose(2, 0, 1) / np.float32(255))
        assert 0 <= side.low < side.high <= 1
    assert sides[0].provenance["sha256"] == sides[1].provenance["sha256"]


def test_the_key_is_of_the_content_not_of_the_name_or_the_place(tmp_path):
    assert np.array_equal(opened(LEVELS[::-1]).keys_N, opened(LEVELS).keys_N[::-1])
    assert len(set(opened(LEVELS).keys_N.tolist())) == 5


def test_grey_files_are_one_channel_unless_the_other_side_has_colour(tmp_path):
    path = folder(tmp_path / "grey", LEVELS[..., 0])
    assert pictures.find(path, "grey").channels == 1
    one, three = opened(path, 1), opened(path, 3)
    assert one.read(0).shape == (1, 6, 8)
    assert np.array_equal(three.read(0), np.repeat(one.read(0), 3, 0))


def test_integers_are_tokens_and_bytes_are_pixels_unless_it_is_said_otherwise():
    grid = np.arange(24).reshape(2, 3, 4)
    assert pictures.find(grid, "a").kind == "tokens"
    assert pictures.find(grid.astype(np.uint8), "a").kind == "pixels"
    assert pictures.find(grid.astype(np.uint8), "a", kind="tokens").kind == "tokens"
    assert pictures.find(grid.astype(np.uint16), "a", kind="pixels").kind == "pixels"
    text = opened(np.arange(12).reshape(2, 6), 1)
    assert text.shape == (1, 6)
    assert np.array_equal(text.read(1), np.arange(6, 12)[None])


def test_latents_of_any_number_of_channels_are_taken_channels_first():
    assert pictures.find(np.zeros((2, 16, 8, 8)), "a").channels == 16


def test_resizing_keeps_a_constant_and_cuts_the_centre():
    ramp = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32), (1, 20, 40))
    small = pictures.fitted(ramp, 10)
    assert small.shape == (1, 10, 10)
    assert small.mean() == pytest.approx(0.5, abs=1e-5)  # float32: the centre of a symmetric ramp
    assert np.allclose(pictures.fitted(np.full((3, 7, 9), 0.3), 4), 0.3, atol=1e-6)
    assert np.array_equal(pictures.fitted(ramp, 20), ramp[:, :, 10:30])


def test_another_route_costs_what_its_size_and_format_cost(tmp_path):
    x = LEVELS[0].transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(pictures.rerouted(x, Route(6, "PNG"), None), x)
    smaller = pictures.rerouted(x, Route(3, "array"), 6)
    assert smaller.shape == (3, 6, 6)
    assert smaller.std() < x[:, :, 1:7].std()
    assert not np.array_equal(pictures.rerouted(x, Route(3, "WEBP"), 6), smaller)


def test_what_a_side_has_in_memory_and_what_it_reads_again_are_the_same(monkeypatch):
    held = opened(LEVELS)
    monkeypatch.setattr(pictures, "HELD_BYTES", 0)
    assert all(np.array_equal(held.read(number), opened(LEVELS).read(number)) for number in range(5))


def broken(path):
    folder(path, LEVELS)
    whole = (path / "3.png").read_bytes()
    (path / "3.png").write_bytes(whole[: len(whole) // 2])
    return path


def mixed(path):
    folder(path, LEVELS)
    Image.fromarray(LEVELS[0][:4]).save(path / "9.png")
    return path


def test_faults_of_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "a.png").write_bytes(b"nothing")
    for source, sentence in (
        (tmp_path / "empty", "is empty: images end in .png"),
        (tmp_path / "texts", r"holds 1 files, but no image \(.txt\)"),
        (tmp_path / "fake", "a.png cannot be read as an image"),
        (broken(tmp_path / "broken"), "3.png cannot be read as an image"),
        (mixed(tmp_path / "mixed"), "image 9.png is 8x4 and 0.png is 8x6: give --size"),
        (tmp_path / "nowhere", "nowhere does not exist: give a folder of images"),
        (tmp_path / "texts" / "a.txt", "a.txt ends in .txt"),
    ):
        with pytest.raises(ValueError, match=sentence):
            opened(source)


NAN = np.where(np.arange(48).reshape(1, 6, 8) == 7, np.nan, 0.0).repeat(3, 0)


@pytest.mark.parametrize(
    ("source", "settings", "sentence"),
    [
        (NAN, {}, "image 0 has 1 values that are not finite"),
        (np.zeros((0, 4, 4)), {}, "none of these sizes is 0"),
        (np.zeros(4), {}, "is an array of 4 float64"),
        (np.zeros((2, 4, 4), dtype=bool), {}, "images are numbers"),
        (np.zeros((2, 3, 4, 4)), {}, "channels may be the second axis or the last"),
        (np.zeros((2, 9)), {}, "pixels are floats or unsigned integers"),
        (np.zeros((2, 9)), {"kind": "tokens"}, "token ids are integers"),
        (np.full((2, 4, 4), -1), {}, "token id -1: ids start at 0"),
        (np.zeros((2, 4, 4)), {"limit": 0}, "limit is 0"),
        (np.zeros((2, 3, 6, 6)), {}, "has 3 channels and the other side 1"),
    ],
)
def test_faults_of_arrays_are_named(source, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(source, 1, **settings)


def test_faults_of_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="size is 0: it must be at least 1"):
        pictures.prepare(pictures.find(np.zeros((2, 4, 4)), "a"), 1, size=0)
    for name in ("a.npy", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            pictures.find(tmp_path / name, name)
    np.savez(tmp_path / "two.npz", x=LEVELS, y=LEVELS)
    with pytest.raises(ValueError, match=r"two.npz holds 2 arrays \(x, y\)"):
        pictures.find(tmp_path / "two.npz", "two")
    with pytest.raises(ValueError, match="which cannot be resized: leave --size out"):
        pictures.prepare(pictures.find(np.zeros((2, 4, 4), dtype=np.int64), "t"), 1, size=2)
